//! The register tile: up to twelve rows of activations by one strip of weights, whose codes are taken apart once for all rows.

use super::activations::{BIAS, Floats, Integers, MAGIC};
use super::lanes::{F, I, Lanes};
use super::strips::{CHUNK, Coding, Layout, STEP, Scales, WIDTH};
use crate::isa::{Isa, Level};
use crate::library::gemm::tile::prefetch_once;
use crate::library::simd::{Baseline, Simd};
#[cfg(target_arch = "x86_64")]
use {
    super::lanes::Vnni,
    crate::library::simd::{Avx2, Avx512},
};

/// Operands of one tile.
pub(super) struct Tile<'a> {
    pub layout: &'a Layout,
    /// The strip, of so many tiles.
    pub strip: *const u8,
    pub tiles: usize,
    /// The panel of activations: for each tile those of all rows, as [`Integers`] or [`Floats`].
    pub panel: *const u8,
    /// Destination, rows `row_stride` apart.
    pub to: *mut f32,
    pub row_stride: usize,
    /// Rows to store, at most those of the code.
    pub rows: usize,
    /// Columns to store, at most [`WIDTH`].
    pub cols: usize,
}

/// Code of one height of panels.
///
/// # Safety
/// The pointers of the tile must be valid as its fields say, and the processor must have the features of the code.
pub(super) type TileFn = unsafe fn(&Tile);

/// Code for one level, coding and form of activations.
#[derive(Clone, Copy)]
pub(super) struct TileSet {
    /// Heights of panels, ascending, and their code.
    pub codes: &'static [(usize, TileFn)],
}

impl TileSet {
    /// Rows of the tallest panel.
    pub fn max_rows(&self) -> usize {
        self.codes.last().map_or(1, |(rows, _)| *rows)
    }

    /// The shortest code for panels of so many rows, and its height.
    pub fn code(&self, rows: usize) -> (usize, TileFn) {
        let fitting = self.codes.iter().find(|(height, _)| *height >= rows);
        match fitting {
            Some(code) => *code,
            None => unreachable!("bug: a panel taller than every tile"),
        }
    }
}

const NIBBLES: u8 = Coding::Nibbles as u8;
const TABLE: u8 = Coding::Table as u8;
const SIXES: u8 = Coding::Sixes as u8;
const BYTES: u8 = Coding::Bytes as u8;

/// Makes the [`TileSet`] of a [`Lanes`] type, compiled with the given features.
macro_rules! tile_set {
    ($lanes:ty, $token:expr, $coding:expr, $exact:expr, $($feature:literal,)? rows: $($rows:literal)*) => {{
        $(#[target_feature(enable = $feature)])?
        unsafe fn integers<const R: usize, const C: u8>(tile: &Tile) {
            // SAFETY: the caller's contract; the features are those of this function.
            unsafe { run_integers::<$lanes, R, C>($token, tile) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn floats<const R: usize, const C: u8>(tile: &Tile) {
            // SAFETY: the caller's contract; the features are those of this function.
            unsafe { run_floats::<$lanes, R, C>($token, tile) }
        }
        TileSet {
            codes: match ($exact, $coding) {
                (false, Coding::Nibbles) => &[$(($rows, integers::<$rows, NIBBLES>)),*],
                (false, Coding::Table) => &[$(($rows, integers::<$rows, TABLE>)),*],
                (false, Coding::Sixes) => &[$(($rows, integers::<$rows, SIXES>)),*],
                (false, Coding::Bytes) => &[$(($rows, integers::<$rows, BYTES>)),*],
                (true, Coding::Nibbles) => &[$(($rows, floats::<$rows, NIBBLES>)),*],
                (true, Coding::Table) => &[$(($rows, floats::<$rows, TABLE>)),*],
                (true, Coding::Sixes) => &[$(($rows, floats::<$rows, SIXES>)),*],
                (true, Coding::Bytes) => &[$(($rows, floats::<$rows, BYTES>)),*],
            },
        }
    }};
}

/// The code for a level and coding, and activations as floats (`exact`) or integers.
pub(super) fn tile_set_of(isa: Isa, coding: Coding, exact: bool) -> TileSet {
    match isa.level() {
        Level::Baseline => tile_set!(Baseline, Baseline, coding, exact, rows: 1 2 4),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            tile_set!(Avx2, Avx2::new(), coding, exact, "avx2,fma,f16c", rows: 1 2 4)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if isa.vnni() => tile_set!(
            Vnni, Vnni::new(), coding, exact,
            "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
            rows: 1 2 4 6 8 10 12
        ),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => tile_set!(
            Avx512, Avx512::new(), coding, exact,
            "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c",
            rows: 1 2 4 8
        ),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => unreachable!("bug: an x86 level on another architecture"),
    }
}

/// Vectors of codes in a tile.
const VECTORS: usize = STEP / 4;

/// Rows up to which weights are asked for ahead: with more of them the next tiles come while these are multiplied.
const AHEAD_ROWS: usize = 8;
/// Bytes by which they are (1 to 8 KiB measured, with Q4_1 out of DRAM on Zen 4: 32 to 37 GB/s).
const AHEAD: usize = 8192;

/// Whether the processor's own prefetcher needs help: where the scales of a tile fill a cache line, scales and codes advance by
/// turns in one page, and Q4_1 is read at 10 GB/s where all other formats reach 32 to 34, which help would slow down.
fn needs_help(layout: &Layout) -> bool {
    layout.scales_size().is_multiple_of(64)
}

/// Asks for the weights of a tile that comes later, given its position in the strip.
#[inline(always)]
fn ask_ahead(layout: &Layout, tile: &Tile, index: usize) {
    let size = layout.scales_size() + layout.codes_size();
    let from = tile.strip.wrapping_add(index * size + AHEAD);
    for line in (0..size).step_by(64) {
        prefetch_once(from.wrapping_add(line));
    }
}

/// Lanes of a strip from `first` on.
#[derive(Clone, Copy)]
struct Part<'a, L: Lanes> {
    l: L,
    layout: &'a Layout,
    first: usize,
    table: I<L>,
}

/// What the scales and minima of a chunk are multiples of.
#[derive(Clone, Copy)]
struct Steps<L: Lanes> {
    scale: F<L>,
    min: F<L>,
}

impl<'a, L: Lanes> Part<'a, L> {
    #[inline(always)]
    fn new(l: L, layout: &'a Layout, first: usize) -> Self {
        // SAFETY: the table has as many bytes as the widest vector.
        let table = unsafe { l.simd().int_load(layout.table.as_ptr().cast()) };
        Part {
            l,
            layout,
            first,
            table,
        }
    }

    /// # Safety
    /// `header` must be that of a chunk.
    #[inline(always)]
    unsafe fn steps(&self, header: *const u8) -> Steps<L> {
        let s = self.l.simd();
        let at = header.cast::<f32>().wrapping_add(self.first);
        let mut steps = Steps {
            scale: s.splat(1.0),
            min: s.splat(1.0),
        };
        if self.layout.scales == Scales::Steps {
            // SAFETY: the header begins with the steps.
            unsafe {
                steps.scale = s.load(at);
                if self.layout.has_min {
                    steps.min = s.load(at.add(WIDTH));
                }
            }
        }
        steps
    }

    /// The scales of one group.
    ///
    /// # Safety
    /// `from` must be those of a group.
    #[inline(always)]
    unsafe fn scale(&self, from: *const u8, step: F<L>) -> F<L> {
        let s = self.l.simd();
        // SAFETY: passed on.
        unsafe {
            match self.layout.scales {
                Scales::Halves => s.load_f16(from.cast::<half::f16>().add(self.first)),
                Scales::Floats => s.load(from.cast::<f32>().add(self.first)),
                Scales::Steps => s.mul(step, self.l.load_i8(from.cast::<i8>().add(self.first))),
            }
        }
    }

    /// The scales of both halves of a tile, equal when the tile has one group.
    ///
    /// # Safety
    /// `from` must be those of a tile.
    #[inline(always)]
    unsafe fn scale_pair(&self, from: *const u8, step: F<L>) -> [F<L>; 2] {
        // SAFETY: passed on.
        unsafe {
            let first = self.scale(from, step);
            if self.layout.groups == 1 {
                return [first; 2];
            }
            [first, self.scale(from.add(self.layout.group_size()), step)]
        }
    }

    /// The unsigned codes of a tile.
    ///
    /// # Safety
    /// `from` must be the codes of a tile.
    #[inline(always)]
    unsafe fn codes<const C: u8>(&self, from: *const u8) -> [I<L>; VECTORS] {
        let s = self.l.simd();
        let mut codes = [s.int_splat(0); VECTORS];
        let from = from.cast::<i32>().wrapping_add(self.first);
        // SAFETY: passed on.
        unsafe {
            if C == BYTES {
                for (v, codes) in codes.iter_mut().enumerate() {
                    *codes = s.int_load(from.add(v * WIDTH));
                }
                return codes;
            }
            let low = s.int_splat(0x0F0F_0F0F);
            for v in 0..VECTORS / 2 {
                let both = s.int_load(from.add(v * WIDTH));
                codes[v] = s.and(both, low);
                codes[v + VECTORS / 2] = s.and(s.shr::<4>(both), low);
            }
        }
        if C == SIXES {
            // SAFETY: passed on.
            unsafe { self.add_upper_bits(from.add(VECTORS / 2 * WIDTH), &mut codes) };
        }
        if C == TABLE {
            for codes in &mut codes {
                *codes = self.l.lookup(self.table, *codes);
            }
        }
        codes
    }
}

impl<L: Lanes> Part<'_, L> {
    /// Puts the fifth and sixth bits to the codes of a tile.
    ///
    /// # Safety
    /// `from` must be those bits.
    #[inline(always)]
    unsafe fn add_upper_bits(&self, from: *const i32, codes: &mut [I<L>; VECTORS]) {
        let s = self.l.simd();
        let mask = s.int_splat(0x3030_3030);
        for half in 0..2 {
            // SAFETY: passed on.
            let bits = unsafe { s.int_load(from.add(half * WIDTH)) };
            let upper = [s.shl::<4>(bits), s.shl::<2>(bits), bits, s.shr::<2>(bits)];
            for (v, upper) in upper.iter().enumerate() {
                let at = half * (VECTORS / 2) + v;
                codes[at] = s.or(codes[at], s.and(*upper, mask));
            }
        }
    }
}

/// Stores sums of the lanes from `first` on.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn store<L: Lanes, const R: usize>(l: L, tile: &Tile, first: usize, sums: [F<L>; R]) {
    let s = l.simd();
    let cols = tile.cols.saturating_sub(first).min(L::S::LANES);
    for (row, sums) in sums.into_iter().enumerate() {
        if row >= tile.rows || cols == 0 {
            break;
        }
        let to = tile.to.wrapping_add(row * tile.row_stride + first);
        // SAFETY: `rows` by `cols` elements may be written.
        unsafe {
            if cols == L::S::LANES {
                s.store(to, sums);
            } else {
                s.store_first(to, cols, sums);
            }
        }
    }
}

/// One tile with activations in 8 bits.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn run_integers<L: Lanes, const R: usize, const C: u8>(l: L, tile: &Tile) {
    let s = l.simd();
    let layout = tile.layout;
    let (groups, has_min, min_offset) = (layout.groups, layout.has_min, layout.min_offset());
    let asks = R <= AHEAD_ROWS && needs_help(layout);
    let magic = s.splat(MAGIC);
    for first in (0..WIDTH).step_by(L::S::LANES) {
        let part = Part::new(l, layout, first);
        let mut sums = [s.splat(0.0); R];
        let mut panel = tile.panel.cast::<Integers>();
        let mut chunk = tile.strip;
        for start in (0..tile.tiles).step_by(CHUNK) {
            let count = CHUNK.min(tile.tiles - start);
            let mut scales = chunk.wrapping_add(layout.steps_size());
            let mut codes = chunk.wrapping_add(layout.header_size(count));
            // SAFETY: the chunk and its activations lie inside the strip and the panel.
            unsafe {
                let steps = part.steps(chunk);
                for at in 0..count {
                    if asks && first == 0 {
                        ask_ahead(layout, tile, start + at);
                    }
                    let words = part.codes::<C>(codes);
                    let scale = part.scale_pair(scales, steps.scale);
                    let min = match has_min {
                        true => part.scale_pair(scales.add(min_offset), steps.min),
                        false => [s.splat(0.0); 2],
                    };
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let x = &*panel.add(row);
                        let mut a = s.int_splat(x.start[0]);
                        let mut b = s.int_splat(x.start[1]);
                        for v in 0..VECTORS / 2 {
                            let w = v + VECTORS / 2;
                            if C == NIBBLES || C == SIXES {
                                a = l.dot_small(a, words[v], x.codes[v]);
                                b = l.dot_small(b, words[w], x.codes[w]);
                            } else {
                                a = l.dot(a, words[v], x.codes[v]);
                                b = l.dot(b, words[w], x.codes[w]);
                            }
                        }
                        let a = s.sub(s.float_of_bits(a), magic);
                        let b = s.sub(s.float_of_bits(b), magic);
                        let a = s.mul(a, s.splat(x.scales[0]));
                        if groups == 1 {
                            let both = s.mul_add(b, s.splat(x.scales[1]), a);
                            *sum = s.mul_add(scale[0], both, *sum);
                        } else {
                            let b = s.mul(b, s.splat(x.scales[1]));
                            *sum = s.mul_add(scale[0], a, *sum);
                            *sum = s.mul_add(scale[1], b, *sum);
                        }
                        if has_min {
                            *sum = s.mul_add(min[0], s.splat(x.sums[0]), *sum);
                            if groups == 2 {
                                *sum = s.mul_add(min[1], s.splat(x.sums[1]), *sum);
                            }
                        }
                    }
                    panel = panel.add(R);
                    scales = scales.add(layout.scales_size());
                    codes = codes.add(layout.codes_size());
                }
            }
            chunk = chunk.wrapping_add(layout.chunk_size(count));
        }
        // SAFETY: passed on.
        unsafe { store::<L, R>(l, tile, first, sums) };
    }
}

/// One tile with activations as they are: weights become the same floats as by dequantising.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn run_floats<L: Lanes, const R: usize, const C: u8>(l: L, tile: &Tile) {
    let s = l.simd();
    let layout = tile.layout;
    // A byte in the last place of a float of this exponent, less that float and the code of zero.
    let exponent = s.int_splat(BIAS);
    let zero = s.splat(f32::from_bits(BIAS as u32) + f32::from(layout.zero));
    let byte = s.int_splat(0xFF);
    let asks = R <= AHEAD_ROWS && needs_help(layout);
    for first in (0..WIDTH).step_by(L::S::LANES) {
        let part = Part::new(l, layout, first);
        let mut sums = [s.splat(0.0); R];
        let mut panel = tile.panel.cast::<Floats>();
        let mut chunk = tile.strip;
        for start in (0..tile.tiles).step_by(CHUNK) {
            let count = CHUNK.min(tile.tiles - start);
            let mut scales = chunk.wrapping_add(layout.steps_size());
            let mut codes = chunk.wrapping_add(layout.header_size(count));
            // SAFETY: the chunk and its activations lie inside the strip and the panel.
            unsafe {
                let steps = part.steps(chunk);
                for at in 0..count {
                    if asks && first == 0 {
                        ask_ahead(layout, tile, start + at);
                    }
                    let words = part.codes::<C>(codes);
                    let scale = part.scale_pair(scales, steps.scale);
                    let min = if layout.has_min {
                        part.scale_pair(scales.add(layout.min_offset()), steps.min)
                    } else {
                        [s.splat(0.0); 2]
                    };
                    for (v, word) in words.iter().enumerate() {
                        let group = v / (VECTORS / 2);
                        let parts = [
                            *word,
                            s.shr::<8>(*word),
                            s.shr::<16>(*word),
                            s.shr::<24>(*word),
                        ];
                        for (k, part) in parts.iter().enumerate() {
                            let code = s.or(s.and(*part, byte), exponent);
                            let code = s.sub(s.float_of_bits(code), zero);
                            let mut weight = s.mul(code, scale[group]);
                            if layout.has_min {
                                weight = s.add(weight, min[group]);
                            }
                            for (row, sum) in sums.iter_mut().enumerate() {
                                let x = (&*panel.add(row)).0[v * 4 + k];
                                *sum = s.mul_add(weight, s.splat(x), *sum);
                            }
                        }
                    }
                    panel = panel.add(R);
                    scales = scales.add(layout.scales_size());
                    codes = codes.add(layout.codes_size());
                }
            }
            chunk = chunk.wrapping_add(layout.chunk_size(count));
        }
        // SAFETY: passed on.
        unsafe { store::<L, R>(l, tile, first, sums) };
    }
}

//! Packing: operands copied into panels of words in the order in which the tiles read them.
//!
//! A panel holds, for each word along the inner dimension, the words of `height` neighbours across it (rows of the left operand,
//! columns of the right one); the places beyond the matrix are zero.

use bytemuck::Pod;
use half::bf16;

use crate::isa::Isa;
use crate::library::simd::{Float, Kernel, MAX_LANES, Simd, dispatch};
use crate::library::view::Element;

/// A panel to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel<W> {
    /// First row (left) or column (right) and how many there are.
    pub first: usize,
    pub count: usize,
    /// Places for them, at least `count`.
    pub height: usize,
    /// First word along the inner dimension and how many to write.
    pub start: usize,
    pub words: usize,
    /// Destination of `words * height` words.
    pub to: *mut W,
}

impl<W> Panel<W> {
    /// The same panel with another destination.
    pub fn with<V>(&self, to: *mut V) -> Panel<V> {
        let Panel {
            first,
            count,
            height,
            start,
            words,
            ..
        } = *self;
        Panel {
            first,
            count,
            height,
            start,
            words,
            to,
        }
    }
}

/// An operand in memory: `across` counts rows of the left or columns of the right operand, `along` the inner dimension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<T> {
    pub from: *const T,
    pub across: usize,
    pub along: usize,
    /// Elements along the inner dimension.
    pub inner: usize,
}

// SAFETY: readers only; the borrow is kept by the caller of the driver.
unsafe impl<T: Sync> Send for Strided<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Strided<T> {}

impl<T: Element> Strided<T> {
    /// Address of one element.
    #[inline(always)]
    pub fn at(&self, across: usize, along: usize) -> *const T {
        self.from
            .wrapping_add(across * self.across + along * self.along)
    }
}

/// Packs floats as f32 words.
///
/// # Safety
/// The panel must lie inside the operand, and its destination be writable.
pub(crate) unsafe fn pack_floats<T: Float>(isa: Isa, source: &Strided<T>, panel: &Panel<f32>) {
    dispatch(isa, PackFloats { source, panel });
}

struct PackFloats<'a, T> {
    source: &'a Strided<T>,
    panel: &'a Panel<f32>,
}

impl<T: Float> Kernel for PackFloats<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackFloats { source, panel } = self;
        // SAFETY: the contract of `pack_floats`.
        unsafe {
            if source.along == 1 {
                transpose_blocks(s, source, panel);
            } else if source.across == 1 || panel.count == 1 {
                copy_rows(s, source, panel);
            } else {
                pack_elements::<T, f32, 1>(source, panel, |_, x| x.widen());
            }
        }
    }
}

/// Writes a vector to the places of a panel from number `at` on, of which `places` count. What lies behind them in the panel is
/// overwritten too and must be written later: masked stores cost several times as much as whole ones (measured on Zen 4).
///
/// # Safety
/// The panel must have as many places.
#[inline(always)]
pub(super) unsafe fn put<S: Simd>(s: S, panel: &Panel<f32>, at: usize, places: usize, v: S::F) {
    let to = panel.to.wrapping_add(at);
    // Taller panels are written a vector's width at a time, from their first word to the last.
    let overwrites = places == S::LANES || panel.height <= S::LANES;
    // SAFETY: the caller's contract.
    unsafe {
        if overwrites && at + S::LANES <= panel.words * panel.height {
            s.store(to, v);
        } else {
            f32::store_first_or_all(s, to, places, v);
        }
    }
}

/// Neighbours across are neighbours in memory.
#[inline(always)]
unsafe fn copy_rows<S: Simd, T: Float>(s: S, source: &Strided<T>, panel: &Panel<f32>) {
    for word in 0..panel.words {
        let from = source.at(panel.first, panel.start + word);
        for lane in (0..panel.height).step_by(S::LANES) {
            let there = panel.count.saturating_sub(lane).min(S::LANES);
            let places = (panel.height - lane).min(S::LANES);
            // SAFETY: `there` elements are inside the operand, and the destination has `height` places in this row.
            unsafe {
                let v = T::load_first_or_all(s, from.wrapping_add(lane), there);
                put(s, panel, word * panel.height + lane, places, v);
            }
        }
    }
}

/// Packs floats rounded to `N` as f32 words.
///
/// # Safety
/// As [`pack_floats`].
pub(crate) unsafe fn pack_rounded<N: Float>(isa: Isa, source: &Strided<f32>, panel: &Panel<f32>) {
    // SAFETY: passed on; the destination has that many words.
    unsafe {
        pack_floats(isa, source, panel);
        let words = std::slice::from_raw_parts_mut(panel.to, panel.words * panel.height);
        for word in words {
            *word = N::narrow(*word).widen();
        }
    }
}

/// Packs floats as words of two bf16 each, neighbours along the inner dimension.
///
/// # Safety
/// As [`pack_floats`]; words are counted in pairs, and the processor multiplies bf16 ([`Isa::bf16`]).
pub(crate) unsafe fn pack_pairs<T: Float>(isa: Isa, source: &Strided<T>, panel: &Panel<u32>) {
    dispatch(isa, PackPairs { source, panel });
}

struct PackPairs<'a, T> {
    source: &'a Strided<T>,
    panel: &'a Panel<u32>,
}

impl<T: Float> Kernel for PackPairs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackPairs { source, panel } = self;
        // SAFETY: the contract of `pack_pairs`.
        unsafe {
            if source.along == 1 {
                transpose_blocks(s, Pairs(source), &panel.with(panel.to.cast()));
            } else if source.across == 1 || panel.count == 1 {
                pair_rows(s, source, &panel.with(panel.to.cast()));
            } else {
                let panel = panel.with(panel.to.cast());
                pack_elements::<T, bf16, 2>(source, &panel, |_, x| bf16::narrow(x.widen()));
            }
        }
    }
}

/// As [`copy_rows`], two rows to a word.
#[inline(always)]
unsafe fn pair_rows<S: Simd, T: Float>(s: S, source: &Strided<T>, panel: &Panel<f32>) {
    for word in 0..panel.words {
        let along = 2 * (panel.start + word);
        let has_odd = along + 1 < source.inner;
        for lane in (0..panel.height).step_by(S::LANES) {
            let there = panel.count.saturating_sub(lane).min(S::LANES);
            let row = |along| source.at(panel.first + lane, along);
            let odd = has_odd.then(|| row(along + 1));
            let places = (panel.height - lane).min(S::LANES);
            // SAFETY: `there` elements are inside the operand, and the destination has `height` places in this row.
            unsafe {
                let pairs = T::load_pairs(s, row(along), odd, there);
                put(s, panel, word * panel.height + lane, places, pairs);
            }
        }
    }
}

/// Operands whose neighbours along the inner dimension are neighbours in memory, as vectors of words.
trait Rows: Copy {
    /// `len` words of a row from word `word` on; 0 in the other lanes.
    ///
    /// # Safety
    /// The words must lie inside the operand.
    unsafe fn load<S: Simd>(self, s: S, across: usize, word: usize, len: usize) -> S::F;
}

impl<T: Float> Rows for &Strided<T> {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, across: usize, word: usize, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { T::load_first_or_all(s, self.at(across, word), len) }
    }
}

/// Two neighbours as bf16 in one word.
struct Pairs<'a, T>(&'a Strided<T>);

impl<T> Clone for Pairs<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Pairs<'_, T> {}

impl<T: Float> Rows for Pairs<'_, T> {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, across: usize, word: usize, len: usize) -> S::F {
        let there = (2 * len).min(self.0.inner - 2 * word);
        let from = self.0.at(across, 2 * word);
        // SAFETY: `there` elements lie inside the operand.
        let (low, high) = unsafe {
            (
                T::load_first_or_all(s, from, there.min(S::LANES)),
                T::load_first_or_all(
                    s,
                    from.wrapping_add(S::LANES),
                    there.saturating_sub(S::LANES),
                ),
            )
        };
        // SAFETY: the contract of `pack_pairs`.
        unsafe { s.join_bf16(low, high) }
    }
}

/// Packs bytes as words of four, neighbours along the inner dimension, with the bits of `flip` turned over.
///
/// # Safety
/// As [`pack_floats`]; words are counted in fours.
pub(crate) unsafe fn pack_quads(isa: Isa, source: &Strided<u8>, panel: &Panel<u32>, flip: u8) {
    dispatch(
        isa,
        PackQuads {
            source,
            panel,
            flip,
        },
    );
}

struct PackQuads<'a> {
    source: &'a Strided<u8>,
    panel: &'a Panel<u32>,
    flip: u8,
}

impl Kernel for PackQuads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackQuads {
            source,
            panel,
            flip,
        } = self;
        // SAFETY: the contract of `pack_quads`.
        unsafe {
            if source.along == 1 {
                transpose_blocks(s, Quads { source, flip }, &panel.with(panel.to.cast()));
            } else if source.across == 1 {
                quad_rows(source, panel, flip);
            } else {
                let panel = panel.with(panel.to.cast());
                pack_elements::<u8, u8, 4>(source, &panel, |_, byte| byte ^ flip);
            }
        }
    }
}

/// Neighbours across are neighbours in memory: four rows to a word.
#[inline(always)]
unsafe fn quad_rows(source: &Strided<u8>, panel: &Panel<u32>, flip: u8) {
    for word in 0..panel.words {
        let along = 4 * (panel.start + word);
        // SAFETY: the destination has `height` places in this row, the operand `count` elements in each of its.
        unsafe {
            let to = std::slice::from_raw_parts_mut(
                panel.to.wrapping_add(word * panel.height),
                panel.height,
            );
            let rows = [0, 1, 2, 3].map(|part| {
                let there = along + part < source.inner;
                there.then(|| {
                    std::slice::from_raw_parts(source.at(panel.first, along + part), panel.count)
                })
            });
            quads(to, rows, flip);
        }
    }
}

/// Words of one byte from each row, those that are there with the bits of `flip` turned over, the others 0; so are words
/// beyond the rows.
#[inline(always)]
pub(crate) fn quads(to: &mut [u32], rows: [Option<&[u8]>; 4], flip: u8) {
    let count = rows[0].map_or(0, <[u8]>::len).min(to.len());
    let (to, rest) = to.split_at_mut(count);
    rest.fill(0);
    let flip = u32::from(flip);
    if let [Some(a), Some(b), Some(c), Some(d)] = rows {
        let (a, b, c, d) = (&a[..count], &b[..count], &c[..count], &d[..count]);
        for (at, word) in to.iter_mut().enumerate() {
            let low = u32::from(a[at]) | u32::from(b[at]) << 8;
            let high = u32::from(c[at]) | u32::from(d[at]) << 8;
            *word = (low | high << 16) ^ flip.wrapping_mul(0x0101_0101);
        }
        return;
    }
    to.fill(0);
    for (part, row) in rows.iter().enumerate() {
        if let Some(row) = row {
            for (word, byte) in to.iter_mut().zip(*row) {
                *word |= (u32::from(*byte) ^ flip) << (8 * part);
            }
        }
    }
}

/// Four bytes in one word.
#[derive(Clone, Copy)]
struct Quads<'a> {
    source: &'a Strided<u8>,
    flip: u8,
}

impl Rows for Quads<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, across: usize, word: usize, len: usize) -> S::F {
        let there = (4 * len).min(self.source.inner - 4 * word);
        let from = self.source.at(across, 4 * word);
        // SAFETY: `there` bytes lie inside the operand, and the copy holds any vector.
        unsafe {
            if there == 4 * S::LANES {
                let turned = s.int_splat(i32::from_ne_bytes([self.flip; 4]));
                return s.float_of_bits(s.xor(s.bits(s.load(from.cast())), turned));
            }
            let mut lanes = [0u8; 4 * MAX_LANES];
            for (at, lane) in lanes.iter_mut().enumerate().take(there) {
                *lane = *from.add(at) ^ self.flip;
            }
            s.load(lanes.as_ptr().cast())
        }
    }
}

/// Neighbours along the inner dimension are neighbours in memory: square blocks are transposed in registers.
#[inline(always)]
unsafe fn transpose_blocks<S: Simd, R: Rows>(s: S, source: R, panel: &Panel<f32>) {
    if panel.height == 1 {
        for word in (0..panel.words).step_by(S::LANES) {
            let long = (panel.words - word).min(S::LANES);
            // SAFETY: the words lie inside the only row, and the destination has as many places.
            unsafe {
                let v = source.load(s, panel.first, panel.start + word, long);
                f32::store_first_or_all(s, panel.to.wrapping_add(word), long, v);
            }
        }
        return;
    }
    for lane in (0..panel.height).step_by(S::LANES) {
        let there = panel.count.saturating_sub(lane).min(S::LANES);
        let places = (panel.height - lane).min(S::LANES);
        for word in (0..panel.words).step_by(S::LANES) {
            let long = (panel.words - word).min(S::LANES);
            let mut block = [s.splat(0.0); MAX_LANES];
            for (row, v) in block.iter_mut().enumerate().take(S::LANES) {
                if row < there {
                    let across = panel.first + lane + row;
                    // SAFETY: `long` words from here on are inside the operand.
                    *v = unsafe { source.load(s, across, panel.start + word, long) };
                }
            }
            s.transpose(&mut block);
            for (row, &v) in block.iter().enumerate().take(S::LANES) {
                if row < long {
                    let at = (word + row) * panel.height + lane;
                    // SAFETY: the destination has `places` places from here on in this row.
                    unsafe { put(s, panel, at, places, v) };
                }
            }
        }
    }
}

/// Packs any elements, `GROUP` of them in one word, each converted by `convert(across, element)`. Words are counted in groups;
/// `panel.to` addresses the first element of the first word. Elements beyond the inner dimension are zero.
///
/// # Safety
/// As [`pack_floats`].
#[inline(always)]
pub(crate) unsafe fn pack_elements<T: Element, E: Pod, const GROUP: usize>(
    source: &Strided<T>,
    panel: &Panel<E>,
    convert: impl Fn(usize, T) -> E,
) {
    let element = |lane: usize, along: usize| {
        if lane < panel.count && along < source.inner {
            let across = panel.first + lane;
            // SAFETY: inside the operand.
            convert(across, unsafe { *source.at(across, along) })
        } else {
            E::zeroed()
        }
    };
    // SAFETY: the place is one of the `words * height * GROUP` of the destination.
    let put = |lane: usize, word: usize, part: usize, value: E| unsafe {
        *panel.to.add((word * panel.height + lane) * GROUP + part) = value;
    };
    if source.along <= source.across {
        for lane in 0..panel.height {
            for word in 0..panel.words {
                for part in 0..GROUP {
                    put(
                        lane,
                        word,
                        part,
                        element(lane, (panel.start + word) * GROUP + part),
                    );
                }
            }
        }
    } else {
        for word in 0..panel.words {
            for lane in 0..panel.height {
                for part in 0..GROUP {
                    put(
                        lane,
                        word,
                        part,
                        element(lane, (panel.start + word) * GROUP + part),
                    );
                }
            }
        }
    }
}

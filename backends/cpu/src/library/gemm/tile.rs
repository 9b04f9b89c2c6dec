//! The register tile: `R` rows by `V` vectors of accumulators, updated by one rank-1 step for each packed word.
//!
//! A *word* is what one lane multiplies in one step: one element, or a group of neighbours along the inner dimension for the
//! dot-product instructions. [`Dot`] is such a step for one number format on one level; [`run_tile`] is the only loop.

use bytemuck::Pod;

use crate::isa::Isa;

/// One multiply-accumulate step on vectors.
///
/// The loads and stores are unsafe as those of [`crate::library::simd::Simd`].
#[allow(
    clippy::missing_safety_doc,
    reason = "one contract for all, stated above"
)]
pub(crate) trait Dot: Copy {
    /// Word of the left operand.
    type A: Pod;
    /// Word of the right operand.
    type B: Pod;
    /// Accumulator.
    type C: Pod;
    /// Accumulators, one a lane.
    type Sums: Copy;
    /// Words of the right operand, one a lane.
    type Words: Copy;
    /// Lanes.
    const LANES: usize;

    /// Accumulators at zero.
    fn zero(self) -> Self::Sums;
    /// Loads a vector of words.
    unsafe fn load_words(self, from: *const Self::B) -> Self::Words;
    /// `sums + a * b` in every lane.
    fn dot(self, a: Self::A, b: Self::Words, sums: Self::Sums) -> Self::Sums;
    /// `a + b`
    fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Loads accumulators.
    unsafe fn load(self, from: *const Self::C) -> Self::Sums;
    /// Stores accumulators.
    unsafe fn store(self, to: *mut Self::C, sums: Self::Sums);
    /// Loads the first `len < LANES` accumulators.
    unsafe fn load_first(self, from: *const Self::C, len: usize) -> Self::Sums;
    /// Stores the first `len < LANES` accumulators.
    unsafe fn store_first(self, to: *mut Self::C, len: usize, sums: Self::Sums);
}

/// Operands of one tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<A, B, C> {
    /// Steps.
    pub inner: usize,
    /// Left operand: a packed panel, `inner` groups of `R` words; or, for tiles over rows, `R` rows of `inner` words that are
    /// [`LEFT_ROW`] apart; for tiles over columns, `inner` groups that are so far apart.
    pub a: *const A,
    /// Right panel: `inner` rows of `V * LANES` words, `b_stride` apart.
    pub b: *const B,
    pub b_stride: usize,
    /// Destination, rows `c_stride` apart.
    pub c: *mut C,
    pub c_stride: usize,
    /// Rows to store, at most `R`.
    pub rows: usize,
    /// Columns to store, at most `V * LANES`, more than `(V - 1) * LANES`.
    pub cols: usize,
    /// Add to the destination instead of overwriting it.
    pub add: bool,
    /// What is read after this tile and would not come by itself.
    pub ahead: Option<Ahead<B>>,
}

/// Words between the rows of a left operand that is not packed. A constant, so that rows need no addresses of their own; not a
/// multiple of a page, so that rows share no place in the cache.
pub(crate) const LEFT_ROW: usize = 272;

/// Memory to be brought into the second-level cache while a tile is computed: `step` words in each step, at most two lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead<B> {
    pub from: *const B,
    pub step: usize,
}

/// Code of one tile shape.
///
/// # Safety
/// The pointers of the tile must be valid as its fields say, and the processor must have the features of the set.
pub(crate) type TileFn<A, B, C> = unsafe fn(&Tile<A, B, C>);

/// Adds `len` accumulators to others, `(to, from, len)`.
///
/// # Safety
/// Both must exist, and the processor must have the features of the set.
pub(crate) type AddFn<C> = unsafe fn(*mut C, *const C, usize);

/// The tile shapes of one format on one level.
#[derive(Debug)]
pub(crate) struct TileSet<A: 'static, B: 'static, C: 'static> {
    /// Lanes of a vector; panels are two vectors wide.
    pub lanes: usize,
    /// Code for 1, 2, 4, 6 ... rows, one vector wide.
    pub narrow: &'static [TileFn<A, B, C>],
    /// The same, two vectors wide.
    pub wide: &'static [TileFn<A, B, C>],
    /// Adds accumulators.
    pub add: AddFn<C>,
}

impl<A, B, C> Clone for TileSet<A, B, C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A, B, C> Copy for TileSet<A, B, C> {}

impl<A, B, C> TileSet<A, B, C> {
    /// Columns of a right panel.
    pub fn panel_cols(&self) -> usize {
        2 * self.lanes
    }

    /// Rows of the tallest tile.
    pub fn max_rows(&self) -> usize {
        2 * (self.wide.len() - 1)
    }

    /// Rows of the shortest tile that holds `rows`.
    pub fn tile_rows(&self, rows: usize) -> usize {
        if rows <= 1 {
            1
        } else {
            rows.next_multiple_of(2)
        }
    }

    /// The code for a tile of `tile_rows` rows with `cols` columns to store.
    pub fn code(&self, tile_rows: usize, cols: usize) -> TileFn<A, B, C> {
        let widths = if cols > self.lanes {
            self.wide
        } else {
            self.narrow
        };
        widths[tile_rows / 2]
    }
}

/// Formats choose their tiles by level.
pub(crate) trait Tiles: 'static {
    /// Word of the left operand.
    type A: Pod + Send + Sync;
    /// Word of the right operand.
    type B: Pod + Send + Sync;
    /// Accumulator.
    type C: Pod + Send + Sync;
    /// The tile shapes for `isa`.
    fn set(isa: Isa) -> TileSet<Self::A, Self::B, Self::C>;
}

/// Computes one tile. In the left operand rows are `ROW` words apart and steps `STEP`.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(crate) unsafe fn run_tile<
    D: Dot,
    const R: usize,
    const V: usize,
    const ROW: usize,
    const STEP: usize,
>(
    d: D,
    tile: &Tile<D::A, D::B, D::C>,
) {
    let Tile {
        inner,
        mut a,
        mut b,
        b_stride,
        c,
        c_stride,
        rows,
        cols,
        add,
        ahead,
    } = *tile;
    for row in 0..rows {
        let c = c.wrapping_add(row * c_stride);
        prefetch(c);
        prefetch(c.wrapping_add(cols - 1));
    }
    // Without anything to fetch, lines that are there are asked for again: cheaper than a branch in the loop.
    let Ahead { from, step } = ahead.unwrap_or(Ahead { from: b, step: 0 });
    let (mut next, step) = (from.cast::<u8>(), step * size_of::<D::B>());
    let mut sums = [[d.zero(); V]; R];
    for _ in 0..inner {
        // SAFETY: the panels hold `inner` groups of words.
        unsafe {
            let mut words = [d.load_words(b); V];
            for (v, word) in words.iter_mut().enumerate().skip(1) {
                *word = d.load_words(b.add(v * D::LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let left = *a.add(row * ROW);
                for (word, sum) in words.iter().zip(sums) {
                    *sum = d.dot(left, *word, *sum);
                }
            }
            a = a.add(STEP);
        }
        b = b.wrapping_add(b_stride);
        // With fewer rows the right operand streams in as fast as it can already.
        if R >= 4 {
            prefetch_second(next);
            prefetch_second(next.wrapping_add(LINE));
            next = next.wrapping_add(step);
        }
    }
    let full = cols == V * D::LANES;
    for (row, sums) in sums.iter().enumerate() {
        if row >= rows {
            break;
        }
        let c = c.wrapping_add(row * c_stride);
        for (v, &sum) in sums.iter().enumerate() {
            let c = c.wrapping_add(v * D::LANES);
            // SAFETY: `rows` by `cols` elements may be written, and read when adding.
            unsafe {
                if full || v + 1 < V {
                    d.store(c, if add { d.add(sum, d.load(c)) } else { sum });
                } else {
                    let rest = cols - v * D::LANES;
                    d.store_first(
                        c,
                        rest,
                        if add {
                            d.add(sum, d.load_first(c, rest))
                        } else {
                            sum
                        },
                    );
                }
            }
        }
    }
}

/// Adds `len` accumulators to others.
///
/// # Safety
/// As [`AddFn`].
#[inline(always)]
pub(crate) unsafe fn add_all<D: Dot>(d: D, to: *mut D::C, from: *const D::C, len: usize) {
    let whole = len / D::LANES * D::LANES;
    // SAFETY: the caller's contract.
    unsafe {
        for at in (0..whole).step_by(D::LANES) {
            let sum = d.add(d.load(to.add(at)), d.load(from.add(at)));
            d.store(to.add(at), sum);
        }
        let rest = len - whole;
        if rest > 0 {
            let (to, from) = (to.add(whole), from.add(whole));
            let sum = d.add(d.load_first(to, rest), d.load_first(from, rest));
            d.store_first(to, rest, sum);
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Brings the line of an address, which need not be valid, into the first-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    fetch::<T, FIRST_LEVEL>(address);
}

/// Brings the line of an address, which need not be valid, into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_second<T>(address: *const T) {
    fetch::<T, SECOND_LEVEL>(address);
}

/// As [`prefetch`], for what is read once: other lines stay in the caches.
#[inline(always)]
pub(crate) fn prefetch_once<T>(address: *const T) {
    fetch::<T, ONCE>(address);
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _MM_HINT_NTA as ONCE, _MM_HINT_T0 as FIRST_LEVEL, _MM_HINT_T1 as SECOND_LEVEL,
};
#[cfg(not(target_arch = "x86_64"))]
const ONCE: i32 = 0;
#[cfg(not(target_arch = "x86_64"))]
const FIRST_LEVEL: i32 = 1;
#[cfg(not(target_arch = "x86_64"))]
const SECOND_LEVEL: i32 = 2;

#[inline(always)]
fn fetch<T, const LEVEL: i32>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not access memory as far as the program can tell, and SSE is part of the baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<LEVEL>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Makes the [`TileSet`] of a [`Dot`] type, compiled with the given features: for packed left operands, for rows or for columns.
macro_rules! tile_set {
    (packed, $($rest:tt)*) => {
        tile_set!(@ 1, R, $($rest)*)
    };
    (rows, $($rest:tt)*) => {
        tile_set!(@ LEFT_ROW, 1, $($rest)*)
    };
    (columns, $($rest:tt)*) => {
        tile_set!(@ 1, LEFT_ROW, $($rest)*)
    };
    (@ $row:tt, $step:tt, $dot:ty, $token:expr, $($feature:literal,)? rows: $($rows:literal)*) => {{
        type Args = Tile<<$dot as Dot>::A, <$dot as Dot>::B, <$dot as Dot>::C>;
        $(#[target_feature(enable = $feature)])?
        unsafe fn code<const R: usize, const V: usize>(tile: &Args) {
            // SAFETY: the caller's contract; the features are those of this function.
            unsafe { run_tile::<$dot, R, V, $row, $step>($token, tile) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn add(to: *mut <$dot as Dot>::C, from: *const <$dot as Dot>::C, len: usize) {
            // SAFETY: as above.
            unsafe { add_all::<$dot>($token, to, from, len) }
        }
        TileSet {
            lanes: <$dot as Dot>::LANES,
            narrow: &[$(code::<$rows, 1>),*],
            wide: &[$(code::<$rows, 2>),*],
            add,
        }
    }};
}
pub(crate) use tile_set;

//! The vector code of a block's gradient.

use crate::library::attention::vectors::Softmax;
use crate::library::attention::words::Words;
use crate::library::gemm::formats::FloatWords;
use crate::library::gemm::pack::Strided;
use crate::library::gemm::tile::LEFT_ROW;
use crate::library::math::{exp, tanh};
use crate::library::simd::loops::{fold_vectors, for_each_part, for_each_vector};
use crate::library::simd::{Float, Kernel, Simd, sum_parts};

/// Dot products of rows.
pub(super) struct Dots<T> {
    pub lhs: Strided<T>,
    pub rhs: Strided<T>,
    pub rows: usize,
    pub to: *mut f32,
}

impl<T: Float> Kernel for Dots<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Dots { lhs, rhs, rows, to } = self;
        let depth = lhs.inner;
        for row in 0..rows {
            let (a, b) = (lhs.at(row, 0), rhs.at(row, 0));
            // SAFETY: whoever made the kernel vouches for `depth` elements of each row, and for a number for each.
            unsafe {
                let dot = if lhs.along == 1 && rhs.along == 1 {
                    let zero = s.splat(0.0);
                    let sums = fold_vectors!(
                        s,
                        depth,
                        zero,
                        |sums, at, count| s.mul_add(
                            T::load_first_or_all(s, a.add(at), count),
                            T::load_first_or_all(s, b.add(at), count),
                            sums
                        ),
                        add
                    );
                    s.sum(sums)
                } else {
                    let each = |at: usize| (*lhs.at(row, at)).widen() * (*rhs.at(row, at)).widen();
                    (0..depth).map(each).sum()
                };
                *to.add(row) = dot;
            }
        }
    }
}

/// Slopes of the soft limit: `1 - tanh(factor * score)^2`, of rows [`LEFT_ROW`] apart.
pub(super) struct Steepness {
    pub scores: *const f32,
    pub to: *mut f32,
    pub rows: usize,
    pub len: usize,
    pub factor: f32,
}

impl Kernel for Steepness {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            let (from, to) = (
                self.scores.wrapping_add(row * LEFT_ROW),
                self.to.wrapping_add(row * LEFT_ROW),
            );
            for_each_vector!(s, self.len, |at, _count| {
                // SAFETY: rows have room for whole vectors.
                unsafe {
                    let t = tanh(s, s.mul(s.load(from.add(at)), s.splat(self.factor)));
                    s.store(to.add(at), s.neg_mul_add(t, t, s.splat(1.0)));
                }
            });
        }
    }
}

/// Turns products into scores, and brings the largest score and the sum of exponentials of each row up to date, where they are
/// given.
pub(super) struct Measure<'a, T> {
    softmax: Softmax<'a, T>,
    statistics: Option<(*mut f32, *mut f32)>,
}

impl<'a, T> Measure<'a, T> {
    /// Largest scores and sums have a number for each row of the block.
    pub fn new(softmax: Softmax<'a, T>, statistics: Option<(*mut f32, *mut f32)>) -> Self {
        Measure {
            softmax,
            statistics,
        }
    }
}

impl<T: FloatWords> Kernel for Measure<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = self.softmax.tile;
        for (index, row) in tile.rows.clone().enumerate() {
            let scores = self.softmax.scores.wrapping_add(index * LEFT_ROW);
            // SAFETY: a row of scores has room for whole vectors of the tile's keys, and there are statistics for each row.
            unsafe {
                let largest = self.softmax.adjust(s, row, scores);
                let Some((largest_to, sum_to)) = self.statistics else {
                    continue;
                };
                let before = *largest_to.add(row);
                let found = s.largest(largest);
                let largest = if found > before { found } else { before };
                let shift = if largest == f32::NEG_INFINITY {
                    0.0
                } else {
                    largest
                };
                let mut sums = [s.splat(0.0); crate::library::simd::MAX_VECTORS];
                for_each_part!(s, tile.keys.len(), |vector, at, count| {
                    let v = exp(s, s.sub(s.load(scores.add(at)), s.splat(shift)));
                    let v = s.keep_first(count, v, s.splat(0.0));
                    sums[vector] = s.add(sums[vector], v);
                });
                let shrunk = if before == f32::NEG_INFINITY {
                    0.0
                } else {
                    *sum_to.add(row) * (before - shift).exp()
                };
                *sum_to.add(row) = shrunk + sum_parts(s, &sums);
                *largest_to.add(row) = largest;
            }
        }
    }
}

/// From scores of a tile to its weights `p` and the gradients `ds = p (products - own) * scale` of the raw scores. Both go where
/// tiles over columns read them; the gradients also take the place of the products, for tiles over rows.
pub(super) struct Weigh<W: Words> {
    pub rows: usize,
    pub len: usize,
    /// Rows [`LEFT_ROW`] apart, as are those of `products` and `steepness`.
    pub scores: *const f32,
    pub products: *mut f32,
    /// Slopes of the soft limit.
    pub steepness: Option<*const f32>,
    /// Of each row: the largest score, the inverse of the sum of exponentials, the sum of cotangent times result.
    pub largest: *const f32,
    pub factors: *const f32,
    pub own: *const f32,
    pub scale: f32,
    pub weights: *mut W::Word,
    pub slopes: *mut W::Word,
}

impl<W: Words> Kernel for Weigh<W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for even in (0..self.rows).step_by(2) {
            let has_odd = even + 1 < self.rows;
            let to = even / W::GROUP * LEFT_ROW;
            let (weights, slopes) = (self.weights.wrapping_add(to), self.slopes.wrapping_add(to));
            for_each_vector!(s, self.len, |at, count| {
                // SAFETY: rows have room for whole vectors.
                unsafe {
                    let (p, ds) = self.one(s, even, at, count);
                    let (mut odd_p, mut odd_ds) = (None, None);
                    if has_odd {
                        let (p, ds) = self.one(s, even + 1, at, count);
                        (odd_p, odd_ds) = (Some(p), Some(ds));
                    }
                    W::store_rows(s, weights.add(at), p, odd_p);
                    W::store_rows(s, slopes.add(at), ds, odd_ds);
                }
            });
        }
    }
}

impl<W: Words> Weigh<W> {
    /// A vector of one row.
    #[inline(always)]
    unsafe fn one<S: Simd>(&self, s: S, row: usize, at: usize, count: usize) -> (S::F, S::F) {
        let place = row * LEFT_ROW + at;
        let zero = s.splat(0.0);
        // SAFETY: the caller's contract.
        unsafe {
            let shift = *self.largest.add(row);
            let shift = if shift == f32::NEG_INFINITY {
                0.0
            } else {
                shift
            };
            let e = exp(s, s.sub(s.load(self.scores.add(place)), s.splat(shift)));
            let p = s.mul(e, s.splat(*self.factors.add(row)));
            let p = s.keep_first(count, p, zero);
            let centred = s.sub(
                s.load(self.products.add(place)),
                s.splat(*self.own.add(row)),
            );
            let mut ds = s.mul(s.mul(p, centred), s.splat(self.scale));
            if let Some(steepness) = self.steepness {
                ds = s.mul(ds, s.load(steepness.add(place)));
            }
            let ds = s.keep_first(count, ds, zero);
            W::store(s, self.products.wrapping_add(row * LEFT_ROW), at, ds);
            (p, ds)
        }
    }
}

/// Writes rows of sums, of which there are several parts, as a result.
pub(super) struct Write<O> {
    pub from: *const f32,
    pub parts: usize,
    pub part_len: usize,
    pub rows: usize,
    pub depth: usize,
    pub to: *mut O,
    pub stride: usize,
}

impl<O: Float> Kernel for Write<O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            let from = self.from.wrapping_add(row * self.depth);
            let to = self.to.wrapping_add(row * self.stride);
            for_each_vector!(s, self.depth, |at, count| {
                // SAFETY: whoever made the kernel vouches for the rows of both.
                unsafe {
                    let mut v = f32::load_first_or_all(s, from.add(at), count);
                    for part in 1..self.parts {
                        let other = from.add(part * self.part_len + at);
                        v = s.add(v, f32::load_first_or_all(s, other, count));
                    }
                    O::store_first_or_all(s, to.add(at), count, v);
                }
            });
        }
    }
}

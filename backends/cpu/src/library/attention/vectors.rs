//! The vector code of a block: scores by dot products, the running softmax, the final division.

use std::ops::Range;

use super::block::{BLOCK_KEYS, Part, RowBlock, Work};
use super::{Mask, larger};
use crate::library::gemm::formats::FloatWords;
use crate::library::math::{exp, tanh};
use crate::library::simd::loops::{fold_vectors, for_each_vector};
use crate::library::simd::{Float, Kernel, Simd};
use crate::library::view::Shared;

/// Scores of few rows by dot products.
pub(super) struct DotScores<'a, T> {
    pub block: &'a RowBlock<'a, T>,
    pub work: Work,
    pub keys: Range<usize>,
}

impl<T: FloatWords> Kernel for DotScores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let depth = self.block.extents.depth;
        let (from, [across, _]) = self.block.strided(&self.block.attention.key);
        let mut key = self.keys.start;
        while key < self.keys.end {
            let step = if self.keys.end - key >= 4 { 4 } else { 1 };
            for row in 0..self.block.count {
                let query = self.work.query.wrapping_add(row * depth);
                let to = self
                    .work
                    .scores
                    .wrapping_add(row * BLOCK_KEYS + key - self.keys.start);
                let from = from.wrapping_add(key * across);
                // SAFETY: `step` keys from here on are inside the operand, and the scores have room for them.
                unsafe {
                    if step == 4 {
                        dots::<S, T, 4>(s, query, from, across, depth, to);
                    } else {
                        dots::<S, T, 1>(s, query, from, across, depth, to);
                    }
                }
            }
            key += step;
        }
    }
}

/// Dot products of one row of queries with `N` keys.
#[inline(always)]
unsafe fn dots<S: Simd, T: FloatWords, const N: usize>(
    s: S,
    query: *const f32,
    keys: *const T,
    across: usize,
    depth: usize,
    to: *mut f32,
) {
    let mut sums = [s.splat(0.0); N];
    for_each_vector!(s, depth, |at, len| {
        // SAFETY: the caller vouches for `depth` elements of the row and of each key.
        unsafe {
            let q = f32::load_first_or_all(s, query.add(at), len);
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul_add(
                    q,
                    T::load_first_or_all(s, keys.add(n * across + at), len),
                    *sum,
                );
            }
        }
    });
    for (n, &sum) in sums.iter().enumerate() {
        // SAFETY: the caller vouches for `N` scores.
        unsafe { *to.add(n) = s.sum(sum) };
    }
}

/// Turns scores into exponentials and brings the state up to date.
pub(super) struct Update<'a, T> {
    pub block: &'a RowBlock<'a, T>,
    pub work: Work,
    pub part: Part,
    pub keys: Range<usize>,
    /// These are all the keys: the exponentials are divided by their sum at once, in the order of operations of a graph that
    /// stores its scores. What follows may round to few bits, and then the last bit can matter.
    pub whole: bool,
}

impl<T: FloatWords> Kernel for Update<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let block = self.block;
        let len = self.keys.len();
        let depth = block.extents.value_depth;
        for row in 0..block.count {
            let scores = self.work.scores.wrapping_add(row * BLOCK_KEYS);
            // SAFETY: a row of scores has `len <= BLOCK_KEYS` elements; the state has an entry for each row.
            unsafe {
                let row_scores = std::slice::from_raw_parts_mut(scores, len);
                self.mask(s, row, row_scores);
                let hidden = s.splat(f32::NEG_INFINITY);
                let found = fold_vectors!(
                    s,
                    len,
                    hidden,
                    |so_far, at, len| {
                        let v = f32::load_first_or_all(s, scores.add(at), len);
                        s.max(s.keep_first(len, v, hidden), so_far)
                    },
                    max
                );
                let before = *self.part.largest.add(row);
                let largest = larger(before, s.largest(found));
                if largest == f32::NEG_INFINITY {
                    // Nothing seen yet: no weight, but NaN is passed on.
                    row_scores
                        .iter_mut()
                        .for_each(|score| *score = if score.is_nan() { *score } else { 0.0 });
                    *self.part.sum.add(row) += row_scores.iter().sum::<f32>();
                    continue;
                }
                let shift = s.splat(largest);
                let sum = fold_vectors!(
                    s,
                    len,
                    s.splat(0.0),
                    |so_far, at, len| {
                        let v = exp(
                            s,
                            s.sub(f32::load_first_or_all(s, scores.add(at), len), shift),
                        );
                        f32::store_first_or_all(s, scores.add(at), len, v);
                        s.add(so_far, s.keep_first(len, v, s.splat(0.0)))
                    },
                    add
                );
                let shrink = if largest == before {
                    1.0
                } else {
                    (before - largest).exp()
                };
                let mut total = *self.part.sum.add(row) * shrink + s.sum(sum);
                if self.whole {
                    scale(s, row_scores, block.factor(total));
                    total = 1.0;
                }
                *self.part.sum.add(row) = total;
                *self.part.largest.add(row) = largest;
                if shrink != 1.0 {
                    let values = self.part.values.add(row * depth);
                    scale(s, std::slice::from_raw_parts_mut(values, depth), shrink);
                }
            }
        }
    }
}

/// Multiplies numbers by a factor.
#[inline(always)]
fn scale<S: Simd>(s: S, numbers: &mut [f32], factor: f32) {
    let start = numbers.as_mut_ptr();
    for_each_vector!(s, numbers.len(), |at, len| {
        // SAFETY: inside the numbers.
        unsafe {
            let v = f32::load_first_or_all(s, start.add(at), len);
            f32::store_first_or_all(s, start.add(at), len, s.mul(v, s.splat(factor)));
        }
    });
}

impl<T: FloatWords> Update<'_, T> {
    /// Applies softcap, mask and band to the scores of one row.
    #[inline(always)]
    unsafe fn mask<S: Simd>(&self, s: S, row: usize, scores: &mut [f32]) {
        let attention = self.block.attention;
        if let Some(cap) = attention.softcap {
            for_each_vector!(s, scores.len(), |at, len| {
                // SAFETY: inside the row.
                unsafe {
                    let v = f32::load_first_or_all(s, scores.as_ptr().add(at), len);
                    let v = s.mul(tanh(s, s.div(v, s.splat(cap))), s.splat(cap));
                    f32::store_first_or_all(s, scores.as_mut_ptr().add(at), len, v);
                }
            });
        }
        let (head, position) = self.block.place(row);
        let offset = |strides: [usize; 4]| {
            self.block.batch * strides[0]
                + head * strides[1]
                + position * strides[2]
                + self.keys.start * strides[3]
        };
        match &attention.mask {
            None => {}
            Some(Mask::Add(view)) => {
                let (from, step) = (
                    view.as_ptr().wrapping_add(offset(view.strides())),
                    view.strides()[3],
                );
                if step == 1 {
                    for_each_vector!(s, scores.len(), |at, len| {
                        // SAFETY: inside the row and the mask.
                        unsafe {
                            let v = f32::load_first_or_all(s, scores.as_ptr().add(at), len);
                            let v = s.add(v, f32::load_first_or_all(s, from.add(at), len));
                            f32::store_first_or_all(s, scores.as_mut_ptr().add(at), len, v);
                        }
                    });
                } else {
                    for (key, score) in scores.iter_mut().enumerate() {
                        // SAFETY: inside the mask.
                        *score += unsafe { *from.add(key * step) };
                    }
                }
            }
            Some(Mask::Keep(view)) => {
                let (from, step) = (
                    view.as_ptr().wrapping_add(offset(view.strides())),
                    view.strides()[3],
                );
                for (key, score) in scores.iter_mut().enumerate() {
                    // SAFETY: inside the mask.
                    if unsafe { *from.add(key * step) } == 0 {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
        let seen = self.block.row_range(row);
        let begin = seen.start.clamp(self.keys.start, self.keys.end) - self.keys.start;
        let end = seen.end.clamp(self.keys.start, self.keys.end) - self.keys.start;
        scores[..begin].fill(f32::NEG_INFINITY);
        scores[end.max(begin)..].fill(f32::NEG_INFINITY);
    }
}

/// Divides by the sums and writes the output rows.
pub(super) struct Finish<'a, T> {
    pub block: &'a RowBlock<'a, T>,
    pub part: Part,
    pub to: (Shared<T>, [usize; 4]),
}

impl<T: FloatWords> Kernel for Finish<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let depth = self.block.extents.value_depth;
        for row in 0..self.block.count {
            // SAFETY: the state has a row of `depth` values for each row; the output row is this block's alone.
            unsafe {
                let factor = s.splat(self.block.factor(*self.part.sum.add(row)));
                let (from, to) = (
                    self.part.values.add(row * depth),
                    self.block.output_row(row, self.to),
                );
                for_each_vector!(s, depth, |at, len| {
                    let v = s.mul(f32::load_first_or_all(s, from.add(at), len), factor);
                    T::store_first_or_all(s, to.add(at), len, v);
                });
            }
        }
    }
}

//! The vector code of a block: scores by dot products, the running softmax, the final division.

use std::marker::PhantomData;

use super::Mask;
use super::block::{Head, Part, RowBlock, RowTile};
use super::words::Words;
use crate::library::gemm::formats::FloatWords;
use crate::library::gemm::tile::LEFT_ROW;
use crate::library::math::{exp, tanh};
use crate::library::simd::loops::{for_each_part, for_each_vector};
use crate::library::simd::{Float, Kernel, MAX_LANES, MAX_VECTORS, PARTS, Simd, sum_parts};
use crate::library::view::{Shared, View};

/// Scores of few rows by dot products.
pub(super) struct DotScores<'a, T> {
    pub block: &'a RowBlock<'a, T>,
    /// All rows of the block, `depth` apart.
    pub query: *const f32,
    pub keys: Head<T>,
    pub scores: *mut f32,
    pub tile: &'a RowTile,
}

impl<T: FloatWords> Kernel for DotScores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let depth = self.block.extents.depth;
        let Head { from, across, .. } = self.keys;
        let RowTile { rows, keys } = self.tile;
        let mut key = keys.start;
        while key < keys.end {
            let step = if keys.end - key >= 4 { 4 } else { 1 };
            for (index, row) in rows.clone().enumerate() {
                let query = self.query.wrapping_add(row * depth);
                let to = self
                    .scores
                    .wrapping_add(index * LEFT_ROW + key - keys.start);
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
    let mut sums = [[s.splat(0.0); MAX_VECTORS]; N];
    for_each_part!(s, depth, |vector, at, len| {
        // SAFETY: the caller vouches for `depth` elements of the row and of each key.
        unsafe {
            let q = f32::load_first_or_all(s, query.add(at), len);
            for (n, sums) in sums.iter_mut().enumerate() {
                let key = T::load_first_or_all(s, keys.add(n * across + at), len);
                sums[vector] = s.mul_add(q, key, sums[vector]);
            }
        }
    });
    for (n, sums) in sums.iter().enumerate() {
        // SAFETY: the caller vouches for `N` scores.
        unsafe { *to.add(n) = sum_parts(s, sums) };
    }
}

/// Turns the scores of a tile of rows into weights, exponentials that are not divided by their sum yet, and brings the state up
/// to date.
pub(super) struct Softmax<'a, T> {
    pub block: &'a RowBlock<'a, T>,
    /// Rows [`LEFT_ROW`] apart.
    pub scores: *mut f32,
    pub part: Part,
    pub tile: &'a RowTile,
    /// There is nothing to be rescaled yet.
    pub first: bool,
}

/// The same with a format of weights.
pub(super) struct StoringSoftmax<'a, T, W>(Softmax<'a, T>, PhantomData<W>);

impl<'a, T> Softmax<'a, T> {
    /// Stores weights as `W`.
    pub fn storing<W: Words>(self) -> StoringSoftmax<'a, T, W> {
        StoringSoftmax(self, PhantomData)
    }
}

/// [`PARTS`] numbers of each row of a tile, which has at most as many rows.
type RowParts = [[f32; PARTS]; PARTS];

/// Joins the parts of each row by the named method: halves with halves.
macro_rules! join_parts {
    ($s:ident, $parts:expr, $join:ident) => {{
        let mut results = [0f32; PARTS];
        for first in (0..PARTS).step_by(S::LANES) {
            let mut columns = [$s.splat(0.0); PARTS];
            for col in (0..PARTS).step_by(S::LANES) {
                let mut square = [$s.splat(0.0); MAX_LANES];
                for (row, v) in square.iter_mut().enumerate().take(S::LANES) {
                    // SAFETY: a vector from `col` on lies inside the row.
                    *v = unsafe { $s.load($parts[first + row].as_ptr().add(col)) };
                }
                $s.transpose(&mut square);
                columns[col..col + S::LANES].copy_from_slice(&square[..S::LANES]);
            }
            let mut half = PARTS / 2;
            while half > 0 {
                for i in 0..half {
                    columns[i] = $s.$join(columns[i], columns[i + half]);
                }
                half /= 2;
            }
            // SAFETY: a vector from `first` on lies inside the results.
            unsafe { $s.store(results.as_mut_ptr().add(first), columns[0]) };
        }
        results
    }};
}

impl<T: FloatWords, W: Words> Kernel for StoringSoftmax<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let StoringSoftmax(this, _) = self;
        let len = this.tile.keys.len();
        let row_scores = |index: usize| this.scores.wrapping_add(index * LEFT_ROW);
        let mut parts: RowParts = [[f32::NEG_INFINITY; PARTS]; PARTS];
        for (index, row) in this.tile.rows.clone().enumerate() {
            // SAFETY: a row of scores has `len` elements; a vector fits into the parts of a row.
            unsafe {
                let largest = this.adjust(s, row, row_scores(index));
                s.store(parts[index].as_mut_ptr(), largest);
            }
        }
        let found = join_parts!(s, parts, max);
        let (shifts, shrinks) = this.advance(s, &found);
        parts = [[0.0; PARTS]; PARTS];
        for index in 0..this.tile.rows.len() {
            let scores = row_scores(index);
            let shift = s.splat(shifts[index]);
            let mut sums = [s.splat(0.0); MAX_VECTORS];
            for_each_part!(s, len, |vector, at, count| {
                // SAFETY: rows have room for whole vectors.
                unsafe {
                    let v = exp(s, s.sub(s.load(scores.add(at)), shift));
                    let v = s.keep_first(count, v, s.splat(0.0));
                    W::store(s, scores, at, v);
                    sums[vector] = s.add(sums[vector], v);
                }
            });
            for (vector, &sum) in sums.iter().enumerate().take(PARTS / S::LANES) {
                // SAFETY: the vectors are as many parts as a row has.
                unsafe { s.store(parts[index].as_mut_ptr().add(vector * S::LANES), sum) };
            }
        }
        let found = join_parts!(s, parts, add);
        this.add_sums(s, &found, &shrinks);
    }
}

impl<T: FloatWords> Softmax<'_, T> {
    /// Brings the largest scores up to date. Returns what is to be taken off the scores, and what earlier sums are multiplied
    /// by; rows that have seen nothing yet keep weights of 0, but pass NaN on.
    #[inline(always)]
    fn advance<S: Simd>(&self, s: S, found: &[f32; PARTS]) -> ([f32; PARTS], [f32; PARTS]) {
        let (mut shifts, mut shrinks) = ([0f32; PARTS], [0f32; PARTS]);
        for_each_vector!(s, self.tile.rows.len(), |at, len| {
            // SAFETY: the state has an entry for each row; arrays hold whole vectors.
            unsafe {
                let state = self.part.largest.add(self.tile.rows.start + at);
                let before = f32::load_first_or_all(s, state, len);
                let largest = s.max(before, s.load(found.as_ptr().add(at)));
                f32::store_first_or_all(s, state, len, largest);
                let seen = s.lt(s.splat(f32::NEG_INFINITY), largest);
                let shift = s.select(seen, largest, s.splat(0.0));
                s.store(shifts.as_mut_ptr().add(at), shift);
                s.store(shrinks.as_mut_ptr().add(at), exp(s, s.sub(before, shift)));
            }
        });
        (shifts, shrinks)
    }

    /// Adds to the sums, which shrink first, as do the weighted sums of values.
    #[inline(always)]
    fn add_sums<S: Simd>(&self, s: S, found: &[f32; PARTS], shrinks: &[f32; PARTS]) {
        let depth = self.block.extents.value_depth;
        for (index, row) in self.tile.rows.clone().enumerate() {
            // SAFETY: the state has a sum and a row of `depth` values for each row.
            unsafe {
                let sum = self.part.sum.add(row);
                *sum = *sum * shrinks[index] + found[index];
                if !self.first && shrinks[index] != 1.0 {
                    scale(s, self.part.values.add(row * depth), depth, shrinks[index]);
                }
            }
        }
    }

    /// Scales the scores of one row, applies softcap, mask and band, and returns the largest of each lane. NaN is passed over.
    ///
    /// # Safety
    /// The row has room for a score of each key of the tile.
    #[inline(always)]
    pub(super) unsafe fn adjust<S: Simd>(&self, s: S, row: usize, scores: *mut f32) -> S::F {
        let (attention, keys) = (self.block.attention, &self.tile.keys);
        let seen = self.block.row_range(row);
        let begin = seen.start.clamp(keys.start, keys.end) - keys.start;
        let end = (seen.end.clamp(keys.start, keys.end) - keys.start).max(begin);
        let lowest = s.splat(f32::NEG_INFINITY);
        let (mut factor, mut added) = (attention.scale, None);
        // SAFETY: scores and mask have an element for every key.
        unsafe {
            let row_scores = std::slice::from_raw_parts_mut(scores, keys.len());
            row_scores[..begin].fill(f32::NEG_INFINITY);
            row_scores[end..].fill(f32::NEG_INFINITY);
            let row_scores = &mut row_scores[begin..end];
            if let Some(cap) = attention.softcap {
                soften(s, row_scores, factor, cap);
                factor = 1.0;
            }
            match &attention.mask {
                None => {}
                Some(Mask::Add(view)) => {
                    let from = self
                        .mask_row(view, row)
                        .wrapping_add(begin * view.strides()[3]);
                    if view.strides()[3] == 1 {
                        added = Some(from);
                    } else {
                        for (key, score) in row_scores.iter_mut().enumerate() {
                            *score = *score * factor + *from.add(key * view.strides()[3]);
                        }
                        factor = 1.0;
                    }
                }
                Some(Mask::Keep(view)) => {
                    let from = self
                        .mask_row(view, row)
                        .wrapping_add(begin * view.strides()[3]);
                    for (key, score) in row_scores.iter_mut().enumerate() {
                        *score = match *from.add(key * view.strides()[3]) {
                            0 => f32::NEG_INFINITY,
                            _ => *score * factor,
                        };
                    }
                    factor = 1.0;
                }
            }
            let (scores, len, factor) =
                (row_scores.as_mut_ptr(), row_scores.len(), s.splat(factor));
            let mut largest = lowest;
            match added {
                None => for_each_vector!(s, len, |at, count| {
                    let v = s.mul(f32::load_first_or_all(s, scores.add(at), count), factor);
                    f32::store_first_or_all(s, scores.add(at), count, v);
                    largest = s.max(s.keep_first(count, v, lowest), largest);
                }),
                Some(mask) => for_each_vector!(s, len, |at, count| {
                    let mask = f32::load_first_or_all(s, mask.add(at), count);
                    let v = f32::load_first_or_all(s, scores.add(at), count);
                    let v = s.mul_add(v, factor, mask);
                    f32::store_first_or_all(s, scores.add(at), count, v);
                    largest = s.max(s.keep_first(count, v, lowest), largest);
                }),
            }
            largest
        }
    }

    /// The mask's element of a row and the first key.
    #[inline(always)]
    fn mask_row<E: crate::library::Element>(&self, view: &View<'_, E, 4>, row: usize) -> *const E {
        let (head, position) = self.block.place(row);
        let strides = view.strides();
        view.as_ptr().wrapping_add(
            self.block.batch * strides[0]
                + head * strides[1]
                + position * strides[2]
                + self.tile.keys.start * strides[3],
        )
    }
}

/// `cap * tanh(factor * score / cap)` of every score.
#[inline(always)]
fn soften<S: Simd>(s: S, scores: &mut [f32], factor: f32, cap: f32) {
    let start = scores.as_mut_ptr();
    for_each_vector!(s, scores.len(), |at, len| {
        // SAFETY: inside the scores.
        unsafe {
            let v = s.mul(
                f32::load_first_or_all(s, start.add(at), len),
                s.splat(factor),
            );
            let v = s.mul(tanh(s, s.div(v, s.splat(cap))), s.splat(cap));
            f32::store_first_or_all(s, start.add(at), len, v);
        }
    });
}

/// Multiplies numbers by a factor.
#[inline(always)]
unsafe fn scale<S: Simd>(s: S, numbers: *mut f32, len: usize, factor: f32) {
    for_each_vector!(s, len, |at, len| {
        // SAFETY: the caller vouches for the numbers.
        unsafe {
            let v = f32::load_first_or_all(s, numbers.add(at), len);
            f32::store_first_or_all(s, numbers.add(at), len, s.mul(v, s.splat(factor)));
        }
    });
}

/// Divides by the sums and writes the output rows.
pub(super) struct Finish<'a, T, O> {
    pub block: &'a RowBlock<'a, T>,
    pub part: Part,
    pub to: (Shared<O>, [usize; 4]),
}

impl<T: FloatWords, O: Float> Kernel for Finish<'_, T, O> {
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
                    O::store_first_or_all(s, to.add(at), len, v);
                });
            }
        }
    }
}

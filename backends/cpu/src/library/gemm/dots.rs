//! Products with few rows or few columns whose operands lie along the inner dimension: dot products straight from memory.
//!
//! Packing would read and write the large operand once more than needed. Both operands are read where they are, two rows by
//! four columns at a time; the small one is copied first if its neighbours along the inner dimension are apart.

use super::driver::{Finished, Target};
use super::pack::{Panel, Strided, pack_elements};
use super::{Matrix, Number, OneLeft, OneRight, Sum};
use crate::error::Result;
use crate::library::Context;
use crate::library::simd::loops::for_each_part;
use crate::library::simd::{Float, Kernel, MAX_VECTORS, PARTS, Simd, dispatch, sum_parts};
use crate::library::view::Shared;

/// Rows or columns up to which dot products beat packing, measured against the tiles at 2048 by 2048.
const FEW: usize = 4;

/// Whether an operand with so many rows or columns is better left unpacked.
pub fn few(across: usize) -> bool {
    across <= FEW
}

/// Computes `matrix` by dot products if its shape and strides suit them; None if they do not.
///
/// # Safety
/// As [`super::numbers::Multiply::multiply`].
pub(super) unsafe fn multiply<T: Float + Number<Sum = f32>>(
    cx: &Context,
    matrix: &Matrix<T>,
) -> Option<Result<()>> {
    let (OneLeft::Strided(left), OneRight::Strided(right)) = (&matrix.left, &matrix.right) else {
        return None;
    };
    let few_rows = matrix.rows <= FEW && right.along == 1 && matrix.rows <= matrix.cols;
    let few_cols = matrix.cols <= FEW && left.along == 1;
    if matrix.inner < 16 || matrix.rows == 0 || matrix.cols == 0 || !(few_rows || few_cols) {
        return None;
    }
    // SAFETY: passed on.
    Some(unsafe { run(cx, matrix, *left, *right) })
}

unsafe fn run<T: Float + Number<Sum = f32>>(
    cx: &Context,
    matrix: &Matrix<T>,
    mut left: Strided<T>,
    mut right: Strided<T>,
) -> Result<()> {
    let (rows, cols) = (matrix.rows, matrix.cols);
    // SAFETY: passed on; the copies live as long as their views.
    let copies = unsafe { [gather(cx, &mut left, rows)?, gather(cx, &mut right, cols)?] };
    let discarded = match matrix.target {
        Target::Discard => Some(cx.scratch.take::<Sum<T>>(rows * cols)?),
        Target::Store { .. } | Target::Add { .. } => None,
    };
    let (to, row_stride, add) = match matrix.target {
        Target::Store { to, row_stride } => (to, row_stride, false),
        Target::Add { to, row_stride } => (to, row_stride, true),
        Target::Discard => (
            Shared(
                discarded
                    .as_ref()
                    .map_or(std::ptr::null_mut(), |lent| lent.as_ptr()),
            ),
            cols,
            false,
        ),
    };
    let long = rows.max(cols);
    let grain = (GRAIN_STEPS / (matrix.inner * rows.min(cols)))
        .next_multiple_of(4)
        .max(4);
    cx.pool.run_ranges(long.div_ceil(4), grain / 4, |quads| {
        let range = quads.start * 4..long.min(quads.end * 4);
        let (part_rows, part_cols) = if cols >= rows {
            (0..rows, range)
        } else {
            (range, 0..cols)
        };
        let start = to
            .get()
            .wrapping_add(part_rows.start * row_stride + part_cols.start);
        let part = Finished {
            start,
            row_stride,
            batch: matrix.batch,
            row: part_rows.start,
            rows: part_rows.len(),
            col: part_cols.start,
            cols: part_cols.len(),
        };
        dispatch(
            cx.isa,
            Dots {
                left: &left,
                right: &right,
                part,
                add,
            },
        );
        if let Some(epilogue) = matrix.epilogue {
            epilogue(part);
        }
    });
    drop(copies);
    Ok(())
}

/// Multiplications that a thread should have to do for a part.
const GRAIN_STEPS: usize = 1 << 15;

/// Copies an operand so that its neighbours along the inner dimension become neighbours in memory, if they are not.
unsafe fn gather<'a, T: Float>(
    cx: &Context<'a>,
    operand: &mut Strided<T>,
    across: usize,
) -> Result<Option<crate::memory::Lent<'a>>> {
    if operand.along == 1 {
        return Ok(None);
    }
    let copy = cx.scratch.take::<T>(across * operand.inner)?;
    for first in 0..across {
        let to = copy.as_ptr::<T>().wrapping_add(first * operand.inner);
        let panel = Panel {
            first,
            count: 1,
            height: 1,
            start: 0,
            words: operand.inner,
            to,
        };
        // SAFETY: the panel is inside the operand, and the copy has room for it.
        unsafe { pack_elements::<T, T, 1>(operand, &panel, |_, x| x) };
    }
    *operand = Strided {
        from: copy.as_ptr(),
        across: operand.inner,
        along: 1,
        inner: operand.inner,
    };
    Ok(Some(copy))
}

struct Dots<'a, T> {
    left: &'a Strided<T>,
    right: &'a Strided<T>,
    part: Finished<f32>,
    add: bool,
}

impl<T: Float> Kernel for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rows, cols) = (self.part.rows, self.part.cols);
        for col in (0..cols).step_by(4) {
            // Where one sum takes several vectors, two rows would not fit into the registers.
            let height = if S::LANES < PARTS { 1 } else { 2 };
            for row in (0..rows).step_by(height) {
                match (height == 2 && rows - row >= 2, cols - col >= 4) {
                    (true, true) => self.block::<S, 2, 4>(s, row, col),
                    (false, true) => self.block::<S, 1, 4>(s, row, col),
                    (true, false) => (col..cols).for_each(|col| self.block::<S, 2, 1>(s, row, col)),
                    (false, false) => {
                        (col..cols).for_each(|col| self.block::<S, 1, 1>(s, row, col))
                    }
                }
            }
        }
    }
}

impl<T: Float> Dots<'_, T> {
    /// `R` rows by `C` columns of the part.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const C: usize>(&self, s: S, row: usize, col: usize) {
        let inner = self.left.inner;
        let mut sums = [[[s.splat(0.0); MAX_VECTORS]; C]; R];
        for_each_part!(s, inner, |vector, at, len| {
            // SAFETY: `len` elements from `at` on lie inside the rows and columns.
            unsafe {
                let mut right = [s.splat(0.0); C];
                for (c, v) in right.iter_mut().enumerate() {
                    let from = self.right.at(self.part.col + col + c, at);
                    *v = T::load_first_or_all(s, from, len);
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let from = self.left.at(self.part.row + row + r, at);
                    let left = T::load_first_or_all(s, from, len);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        sum[vector] = s.mul_add(left, right, sum[vector]);
                    }
                }
            }
        });
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                let sum = sum_parts(s, sum);
                // SAFETY: the element is inside the part, which is ours.
                unsafe {
                    let to = self.part.start;
                    let to = to.add((row + r) * self.part.row_stride + col + c);
                    *to = if self.add { *to + sum } else { sum };
                }
            }
        }
    }
}

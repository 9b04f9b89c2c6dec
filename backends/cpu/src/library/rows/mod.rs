//! Kernels over rows: softmax, log-softmax, layer and RMS normalisation.
//!
//! A row is read from memory once and written once; the passes between work on it in the cache. Sums are accumulated in f32 in
//! partial sums whose number does not depend on the width of vectors, so in an order that the length of the row alone decides.

#[cfg(test)]
mod tests;

use super::gemm::tile::prefetch_second;
use super::gemm::{Epilogue, Finished};
use super::math::exp;
use super::simd::loops::{fold_vectors, for_each_vector};
use super::simd::{Float, Kernel, Simd, dispatch};
use super::view::{Shared, View, ViewMut, mismatch};
use super::{Context, Element};
use crate::error::Result;

/// Elements that a thread should have to do, about 2 us of work.
const GRAIN: usize = 4096;

/// Where finished rows go. The column of a row's first element is 0, the matrix number 0.
pub enum RowsOutput<'a, T> {
    /// Into memory.
    Store(ViewMut<'a, T, 2>),
    /// Into memory, then to the epilogue while they are in the cache.
    Finish(ViewMut<'a, T, 2>, Epilogue<'a, T>),
    /// To the epilogue only.
    Discard(Epilogue<'a, T>),
}

/// Rows of an input and an output, both with neighbouring columns.
struct Rows<'a, T> {
    from: Shared<T>,
    from_stride: usize,
    /// Memory of the result.
    to: Option<(Shared<T>, usize)>,
    epilogue: Option<Epilogue<'a, T>>,
    rows: usize,
    cols: usize,
    /// Input and result are so large together that the result will be gone from the cache before anyone reads it: write around
    /// the cache.
    streams: bool,
}

/// One row: addresses of input and result, and room for the row in f32.
#[derive(Clone, Copy)]
struct Row<T> {
    index: usize,
    from: *const T,
    /// The row that comes after this one.
    next: *const T,
    to: *mut T,
    own: *mut f32,
    cols: usize,
    streams: bool,
}

impl<'a, T: Element> Rows<'a, T> {
    fn new(input: &View<'_, T, 2>, output: RowsOutput<'a, T>) -> Result<Rows<'a, T>> {
        let [rows, cols] = input.shape();
        let (view, epilogue) = match output {
            RowsOutput::Store(view) => (Some(view), None),
            RowsOutput::Finish(view, epilogue) => (Some(view), Some(epilogue)),
            RowsOutput::Discard(epilogue) => (None, Some(epilogue)),
        };
        let [from_stride, from_col] = input.strides();
        let neighbours = |what, col: usize| match col {
            1 => Ok(()),
            _ if cols <= 1 => Ok(()),
            _ => Err(mismatch(what, col, 1)),
        };
        neighbours("column stride of input rows", from_col)?;
        if let Some(view) = &view {
            if view.shape() != [rows, cols] {
                return Err(mismatch("output rows", view.shape(), [rows, cols]));
            }
            neighbours("column stride of output rows", view.strides()[1])?;
        }
        let size = rows.saturating_mul(cols).saturating_mul(size_of::<T>());
        Ok(Rows {
            from: Shared(input.as_ptr().cast_mut()),
            from_stride,
            to: view.map(|view| (Shared(view.as_ptr()), view.strides()[0])),
            streams: epilogue.is_none() && size.saturating_mul(2) >= crate::isa::caches().l3,
            epilogue,
            rows,
            cols,
        })
    }

    /// Calls `each` for every row, from several threads, and hands finished rows on.
    fn run(&self, cx: &Context, each: impl Fn(Row<T>) + Sync) -> Result<()> {
        let grain = (GRAIN / self.cols.max(1)).max(1);
        let chunks = (self.rows / grain)
            .clamp(1, 4 * cx.pool.threads())
            .min(self.rows);
        cx.try_run(chunks, |chunk| {
            let own = cx.scratch.take::<f32>(self.cols)?;
            let discarded = match self.to {
                None => Some(cx.scratch.take::<T>(self.cols)?),
                Some(_) => None,
            };
            for index in chunk * self.rows / chunks..(chunk + 1) * self.rows / chunks {
                let to = match (self.to, &discarded) {
                    (Some((to, stride)), _) => to.get().wrapping_add(index * stride),
                    (None, Some(lent)) => lent.as_ptr(),
                    (None, None) => unreachable!("bug: rows without memory"),
                };
                each(Row {
                    index,
                    from: self.from.get().wrapping_add(index * self.from_stride),
                    next: self.from.get().wrapping_add((index + 1) * self.from_stride),
                    to,
                    own: own.as_ptr(),
                    cols: self.cols,
                    streams: self.streams && (to as usize).is_multiple_of(64),
                });
                if let (Some(epilogue), true) = (self.epilogue, self.cols > 0) {
                    epilogue(Finished {
                        start: to,
                        row_stride: self.cols,
                        batch: 0,
                        row: index,
                        rows: 1,
                        col: 0,
                        cols: self.cols,
                    });
                }
            }
            if self.streams {
                dispatch(cx.isa, EndStreaming);
            }
            Ok(())
        })
    }
}

/// Stores a row whose vectors the body gives, around the cache if it says so.
macro_rules! store_row {
    ($s:expr, $row:expr, |$at:ident, $len:ident| $body:expr) => {{
        let (s, row) = ($s, $row);
        if row.streams && row.to.cast_const() != row.from {
            for_each_vector!(s, row.cols, |$at, $len| {
                let v = $body;
                if $len == S::LANES {
                    T::stream(s, row.to.add($at), v);
                } else {
                    T::store_first(s, row.to.add($at), $len, v);
                }
            });
        } else {
            for_each_vector!(s, row.cols, |$at, $len| {
                let v = $body;
                T::store_first_or_all(s, row.to.add($at), $len, v)
            });
        }
    }};
}

/// Orders the streamed stores of finished rows before what follows.
struct EndStreaming;

impl Kernel for EndStreaming {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.end_streaming();
    }
}

/// Which softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Softmax {
    /// `e^x / sum(e^x)`
    Plain,
    /// `x - ln(sum(e^x))`
    Log,
}

/// Softmax of every row of `input`, `[rows, cols]`, computed in f32 from the differences to the largest element, within 1e-6
/// relative of the exact value. A row with NaN or `+inf`, or with only `-inf`, gives NaN. Input and output may be the same
/// memory. Errors: shapes that differ, columns that are not neighbours, out of memory.
pub fn softmax<T: Float>(
    cx: &Context,
    kind: Softmax,
    input: View<'_, T, 2>,
    output: RowsOutput<'_, T>,
) -> Result<()> {
    Rows::new(&input, output)?.run(cx, |row| dispatch(cx.isa, SoftmaxRow { kind, row }))
}

struct SoftmaxRow<T> {
    kind: Softmax,
    row: Row<T>,
}

impl<T: Float> Kernel for SoftmaxRow<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let SoftmaxRow { kind, row } = self;
        let Row {
            from,
            next,
            own,
            cols,
            ..
        } = row;
        let lowest = s.splat(f32::NEG_INFINITY);
        // SAFETY: `from` and `to` are rows of `cols` elements of the views, `own` has room for as many.
        unsafe {
            let largest = fold_vectors!(
                s,
                cols,
                lowest,
                |so_far, at, len| {
                    let v = T::load_first_or_all(s, from.add(at), len);
                    s.max(s.keep_first(len, v, lowest), so_far)
                },
                max
            );
            let shift = s.splat(s.largest(largest));
            let sum = fold_vectors!(
                s,
                cols,
                s.splat(0.0),
                |so_far, at, len| {
                    // The exponentials leave memory idle.
                    prefetch_second(next.wrapping_add(at));
                    let v = exp(s, s.sub(T::load_first_or_all(s, from.add(at), len), shift));
                    if kind == Softmax::Plain {
                        f32::store_first_or_all(s, own.add(at), len, v);
                    }
                    s.add(so_far, s.keep_first(len, v, s.splat(0.0)))
                },
                add
            );
            let sum = s.sum(sum);
            match kind {
                Softmax::Plain => {
                    let factor = s.splat(1.0 / sum);
                    store_row!(s, row, |at, len| s
                        .mul(f32::load_first_or_all(s, own.add(at), len), factor));
                }
                Softmax::Log => {
                    let log = s.splat(sum.ln());
                    store_row!(s, row, |at, len| {
                        let v = s.sub(T::load_first_or_all(s, from.add(at), len), shift);
                        s.sub(v, log)
                    });
                }
            }
        }
    }
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `(x - mean) / sqrt(variance + epsilon)`, the variance being that of the row (divided by the number of columns).
    Layer,
    /// `x / sqrt(mean(x^2) + epsilon)`
    Rms,
}

/// What follows a normalisation, and what it reports.
#[derive(Debug, Default)]
pub struct NormExtras<'a, T> {
    /// Factor of each column.
    pub scale: Option<&'a [T]>,
    /// Added to each column.
    pub bias: Option<&'a [T]>,
    /// Receives the mean of each row (0 for RMS).
    pub mean: Option<&'a mut [f32]>,
    /// Receives `1 / sqrt(variance + epsilon)` of each row.
    pub inverse: Option<&'a mut [f32]>,
}

/// Normalises every row of `input`, `[rows, cols]`, then multiplies by `scale` and adds `bias`, computed in f32 with the variance
/// summed from differences to the mean. Input and output may be the same memory. Errors: shapes or lengths that differ, columns
/// that are not neighbours.
pub fn normalize<T: Float>(
    cx: &Context,
    norm: Norm,
    epsilon: f32,
    extras: NormExtras<'_, T>,
    input: View<'_, T, 2>,
    output: RowsOutput<'_, T>,
) -> Result<()> {
    let rows = Rows::new(&input, output)?;
    for (what, operand) in [
        ("scale of a normalisation", extras.scale),
        ("bias of a normalisation", extras.bias),
    ] {
        if let Some(operand) = operand
            && operand.len() != rows.cols
        {
            return Err(mismatch(what, operand.len(), rows.cols));
        }
    }
    for (what, report) in [
        ("mean of a normalisation", &extras.mean),
        ("inverse of a normalisation", &extras.inverse),
    ] {
        if let Some(report) = report
            && report.len() != rows.rows
        {
            return Err(mismatch(what, report.len(), rows.rows));
        }
    }
    let (mean, inverse) = (
        extras.mean.map(|m| Shared(m.as_mut_ptr())),
        extras.inverse.map(|i| Shared(i.as_mut_ptr())),
    );
    rows.run(cx, |row| {
        let kernel = NormRow {
            norm,
            epsilon,
            scale: extras.scale,
            bias: extras.bias,
            row,
        };
        let (row_mean, row_inverse) = dispatch(cx.isa, kernel);
        // SAFETY: there is an element for each row, and this call alone handles the row.
        unsafe {
            if let Some(mean) = mean {
                *mean.get().add(row.index) = row_mean;
            }
            if let Some(inverse) = inverse {
                *inverse.get().add(row.index) = row_inverse;
            }
        }
    })
}

struct NormRow<'a, T> {
    norm: Norm,
    epsilon: f32,
    scale: Option<&'a [T]>,
    bias: Option<&'a [T]>,
    row: Row<T>,
}

impl<T: Float> Kernel for NormRow<'_, T> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let NormRow { norm, row, .. } = self;
        let Row { from, cols, .. } = row;
        let zero = s.splat(0.0);
        // SAFETY: `from` and `to` are rows of `cols` elements of the views.
        unsafe {
            let mean = match norm {
                Norm::Rms => 0.0,
                Norm::Layer => {
                    let sum = fold_vectors!(
                        s,
                        cols,
                        zero,
                        |so_far, at, len| s.add(so_far, T::load_first_or_all(s, from.add(at), len)),
                        add
                    );
                    s.sum(sum) / cols as f32
                }
            };
            let center = s.splat(mean);
            let squares = fold_vectors!(
                s,
                cols,
                zero,
                |so_far, at, len| {
                    let v = s.sub(T::load_first_or_all(s, from.add(at), len), center);
                    let v = s.keep_first(len, v, zero);
                    s.mul_add(v, v, so_far)
                },
                add
            );
            let inverse = 1.0 / (s.sum(squares) / cols as f32 + self.epsilon).sqrt();
            let factor = s.splat(inverse);
            store_row!(s, row, |at, len| self.finished(s, center, factor, at, len));
            (mean, inverse)
        }
    }
}

impl<T: Float> NormRow<'_, T> {
    /// The result for `len` columns from `at` on.
    #[inline(always)]
    unsafe fn finished<S: Simd>(
        &self,
        s: S,
        center: S::F,
        factor: S::F,
        at: usize,
        len: usize,
    ) -> S::F {
        // SAFETY: the columns are inside the row; scale and bias have one element for each.
        unsafe {
            let mut v = s.mul(
                s.sub(T::load_first_or_all(s, self.row.from.add(at), len), center),
                factor,
            );
            if let Some(scale) = self.scale {
                v = s.mul(v, T::load_first_or_all(s, scale.as_ptr().add(at), len));
            }
            if let Some(bias) = self.bias {
                v = s.add(v, T::load_first_or_all(s, bias.as_ptr().add(at), len));
            }
            v
        }
    }
}

//! Kernels over rows: softmax, log-softmax, layer and RMS normalisation.
//!
//! A row is read from memory once and written once; the passes between work on it in the cache. Sums are accumulated in f32 in
//! four vectors of partial sums, so in an order that depends on the length of the row and the level only.

use super::math::exp;
use super::simd::loops::{fold_vectors, for_each_vector};
use super::simd::{Float, Kernel, Simd, dispatch};
use super::view::{Shared, View, ViewMut, mismatch};
use super::{Context, Element};
use crate::error::Result;

/// Elements that a thread should have to do, about 2 us of work.
const GRAIN: usize = 4096;

/// Rows of an input and an output, both with neighbouring columns.
struct Rows<T> {
    from: Shared<T>,
    from_stride: usize,
    to: Shared<T>,
    to_stride: usize,
    rows: usize,
    cols: usize,
}

impl<T: Element> Rows<T> {
    fn new(input: &View<'_, T, 2>, output: &ViewMut<'_, T, 2>) -> Result<Rows<T>> {
        let [rows, cols] = input.shape();
        if output.shape() != [rows, cols] {
            return Err(mismatch("output rows", output.shape(), [rows, cols]));
        }
        let ([from_stride, from_col], [to_stride, to_col]) = (input.strides(), output.strides());
        if cols > 1 && (from_col, to_col) != (1, 1) {
            return Err(mismatch(
                "column strides of rows",
                [from_col, to_col],
                [1, 1],
            ));
        }
        let (from, to) = (Shared(input.as_ptr().cast_mut()), Shared(output.as_ptr()));
        Ok(Rows {
            from,
            from_stride,
            to,
            to_stride,
            rows,
            cols,
        })
    }

    fn run(&self, cx: &Context, each: impl Fn(usize, *const T, *mut T) + Sync) {
        let grain = (GRAIN / self.cols.max(1)).max(1);
        cx.pool.run_ranges(self.rows, grain, |rows| {
            for row in rows {
                let from = self.from.get().wrapping_add(row * self.from_stride);
                each(row, from, self.to.get().wrapping_add(row * self.to_stride));
            }
        });
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
    output: ViewMut<'_, T, 2>,
) -> Result<()> {
    let rows = Rows::new(&input, &output)?;
    // Room for the row in f32 for each thread's chunk would be needed only for narrow types; f32 works in the output itself.
    let grain = (GRAIN / rows.cols.max(1)).max(1);
    let chunks = (rows.rows / grain)
        .clamp(1, 4 * cx.pool.threads())
        .min(rows.rows);
    cx.try_run(chunks, |chunk| {
        let own = cx.scratch.take::<f32>(rows.cols)?;
        for row in chunk * rows.rows / chunks..(chunk + 1) * rows.rows / chunks {
            let from = rows.from.get().wrapping_add(row * rows.from_stride);
            let to = rows.to.get().wrapping_add(row * rows.to_stride);
            dispatch(
                cx.isa,
                SoftmaxRow {
                    kind,
                    from,
                    to,
                    own: own.as_ptr(),
                    cols: rows.cols,
                },
            );
        }
        Ok(())
    })
}

struct SoftmaxRow<T> {
    kind: Softmax,
    from: *const T,
    to: *mut T,
    own: *mut f32,
    cols: usize,
}

impl<T: Float> Kernel for SoftmaxRow<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let SoftmaxRow {
            kind,
            from,
            to,
            own,
            cols,
        } = self;
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
                    for_each_vector!(s, cols, |at, len| {
                        let v = s.mul(f32::load_first_or_all(s, own.add(at), len), factor);
                        T::store_first_or_all(s, to.add(at), len, v)
                    });
                }
                Softmax::Log => {
                    let log = s.splat(sum.ln());
                    for_each_vector!(s, cols, |at, len| {
                        let v = s.sub(T::load_first_or_all(s, from.add(at), len), shift);
                        T::store_first_or_all(s, to.add(at), len, s.sub(v, log))
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
    output: ViewMut<'_, T, 2>,
) -> Result<()> {
    let rows = Rows::new(&input, &output)?;
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
    let streams = rows
        .rows
        .saturating_mul(rows.cols)
        .saturating_mul(size_of::<T>())
        > crate::isa::caches().l3;
    let (mean, inverse) = (
        extras.mean.map(|m| Shared(m.as_mut_ptr())),
        extras.inverse.map(|i| Shared(i.as_mut_ptr())),
    );
    rows.run(cx, |row, from, to| {
        let kernel = NormRow {
            norm,
            epsilon,
            scale: extras.scale,
            bias: extras.bias,
            from,
            to,
            cols: rows.cols,
            streams,
        };
        let (row_mean, row_inverse) = dispatch(cx.isa, kernel);
        // SAFETY: there is an element for each row, and this call alone handles the row.
        unsafe {
            if let Some(mean) = mean {
                *mean.get().add(row) = row_mean;
            }
            if let Some(inverse) = inverse {
                *inverse.get().add(row) = row_inverse;
            }
        }
    });
    Ok(())
}

struct NormRow<'a, T> {
    norm: Norm,
    epsilon: f32,
    scale: Option<&'a [T]>,
    bias: Option<&'a [T]>,
    from: *const T,
    to: *mut T,
    cols: usize,
    streams: bool,
}

impl<T: Float> Kernel for NormRow<'_, T> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let NormRow {
            norm,
            from,
            to,
            cols,
            ..
        } = self;
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
            // A row as large as this one will be gone from the cache before anyone reads it: write around the cache.
            if self.streams && (to as usize).is_multiple_of(64) && from != to.cast_const() {
                for_each_vector!(s, cols, |at, len| {
                    let v = self.finished(s, center, factor, at, len);
                    if len == S::LANES {
                        T::stream(s, to.add(at), v);
                    } else {
                        T::store_first(s, to.add(at), len, v);
                    }
                });
                s.end_streaming();
            } else {
                for_each_vector!(s, cols, |at, len| {
                    let v = self.finished(s, center, factor, at, len);
                    T::store_first_or_all(s, to.add(at), len, v)
                });
            }
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
                s.sub(T::load_first_or_all(s, self.from.add(at), len), center),
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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::library::testing::{Rng, contexts};

    const COLS: [usize; 9] = [0, 1, 2, 7, 16, 33, 64, 100, 1000];

    fn close(got: f32, want: f64, relative: f64) -> bool {
        (got.is_nan() && want.is_nan())
            || (f64::from(got) - want).abs() <= relative * want.abs() + relative * 1e-3
    }

    fn check_softmax<T: Float>(cx: &Context, relative: f64) {
        let mut rng = Rng::new(2);
        for cols in COLS {
            let (rows, stride) = (5, cols + 3);
            let mut data: Vec<T> = (0..rows * stride)
                .map(|_| T::narrow(rng.float() * 20.0))
                .collect();
            if cols > 1 {
                data[1] = T::narrow(f32::NEG_INFINITY);
                data[stride] = T::narrow(f32::NAN);
                data[2 * stride + 1] = T::narrow(f32::INFINITY);
                data[3 * stride..3 * stride + cols].fill(T::narrow(f32::NEG_INFINITY));
            }
            for kind in [Softmax::Plain, Softmax::Log] {
                let mut out = vec![T::narrow(9.0); rows * stride];
                let input = View::new("x", &data, [rows, cols], [stride, 1]).expect("fits");
                let output = ViewMut::new("y", &mut out, [rows, cols], [stride, 1]).expect("fits");
                softmax(cx, kind, input, output).expect("agrees");
                for (from, to) in data.chunks(stride).zip(out.chunks(stride)) {
                    let from = from[..cols].iter().map(|x| f64::from(x.widen()));
                    let largest = from.clone().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = from.clone().map(|x| (x - largest).exp()).sum();
                    for (x, got) in from.zip(to) {
                        let want = match kind {
                            Softmax::Plain => (x - largest).exp() / sum,
                            Softmax::Log => x - largest - sum.ln(),
                        };
                        let same = got.widen() == want as f32;
                        // A logarithm near 0 has the absolute error of the sum.
                        let near = (f64::from(got.widen()) - want).abs() <= relative;
                        assert!(
                            same || close(got.widen(), want, relative)
                                || (kind == Softmax::Log && near),
                            "{cols} {kind:?}: {got:?} instead of {want}"
                        );
                    }
                    assert!(to[cols..].iter().all(|x| x.widen() == 9.0));
                }
            }
        }
    }

    #[test]
    fn softmaxes() {
        contexts(|cx| {
            check_softmax::<f32>(cx, 2e-6);
            check_softmax::<f16>(cx, 1e-3);
            check_softmax::<bf16>(cx, 8e-3);
        });
    }

    fn check_norm<T: Float>(cx: &Context, relative: f64) {
        let mut rng = Rng::new(4);
        for cols in COLS {
            for norm in [Norm::Layer, Norm::Rms] {
                let rows = 3;
                let data: Vec<T> = (0..rows * cols)
                    .map(|_| T::narrow(rng.float() * 3.0 + 1.0))
                    .collect();
                let scale: Vec<T> = (0..cols).map(|_| T::narrow(rng.float())).collect();
                let bias: Vec<T> = (0..cols).map(|_| T::narrow(rng.float())).collect();
                for with in [false, true] {
                    let mut out = vec![T::narrow(0.0); rows * cols];
                    let (mut mean, mut inverse) = ([9f32; 3], [9f32; 3]);
                    let input = View::dense("x", &data, [rows, cols]).expect("fits");
                    let output = ViewMut::dense("y", &mut out, [rows, cols]).expect("fits");
                    let extras = NormExtras {
                        scale: with.then_some(&scale[..]),
                        bias: with.then_some(&bias[..]),
                        mean: with.then_some(&mut mean[..]),
                        inverse: with.then_some(&mut inverse[..]),
                    };
                    normalize(cx, norm, 1e-5, extras, input, output).expect("agrees");
                    for row in 0..rows {
                        let x: Vec<f64> = data[row * cols..][..cols]
                            .iter()
                            .map(|x| f64::from(x.widen()))
                            .collect();
                        let average = |values: &mut dyn Iterator<Item = f64>| {
                            values.sum::<f64>() / cols as f64
                        };
                        let center = if norm == Norm::Rms {
                            0.0
                        } else {
                            average(&mut x.iter().copied())
                        };
                        let variance = average(&mut x.iter().map(|x| (x - center).powi(2)));
                        let factor = 1.0 / (variance + 1e-5).sqrt();
                        for col in 0..cols {
                            let mut want = (x[col] - center) * factor;
                            if with {
                                want = want * f64::from(scale[col].widen())
                                    + f64::from(bias[col].widen());
                            }
                            let got = out[row * cols + col].widen();
                            let near =
                                (f64::from(got) - want).abs() <= relative * (1.0 + want.abs());
                            // One column: what is left of the difference is rounding, magnified by epsilon.
                            assert!(
                                near || (cols == 1 && (f64::from(got) - want).abs() < 1e-2),
                                "{cols} {norm:?}: {got} not {want}"
                            );
                        }
                        if with && cols > 0 {
                            assert!(
                                close(inverse[row], factor, 1e-4),
                                "{} {factor}",
                                inverse[row]
                            );
                            assert!((f64::from(mean[row]) - center).abs() < 1e-5);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn norms() {
        contexts(|cx| {
            check_norm::<f32>(cx, 1e-5);
            check_norm::<f16>(cx, 2e-3);
            check_norm::<bf16>(cx, 2e-2);
        });
    }

    #[test]
    fn streaming_gives_the_same() {
        contexts(|cx| {
            let cols = 1 << 12;
            let rows = crate::isa::caches().l3 / (4 * cols) + 1;
            if rows > 1 << 15 || cx.pool.threads() == 1 {
                return;
            }
            let usage = crate::memory::Usage::unlimited();
            let mut out =
                crate::memory::Buffer::zeroed_for::<f32>(rows * cols, &usage).expect("memory");
            let row: Vec<f32> = Rng::new(1).floats(cols);
            let input = View::new("x", &row, [rows, cols], [0, 1]).expect("fits");
            let output = ViewMut::dense("y", out.as_mut_slice(), [rows, cols]).expect("fits");
            normalize(cx, Norm::Layer, 0.0, NormExtras::default(), input, output).expect("agrees");
            let mut once = vec![0f32; cols];
            let single = View::dense("x", &row, [1, cols]).expect("fits");
            let output = ViewMut::dense("y", &mut once, [1, cols]).expect("fits");
            normalize(cx, Norm::Layer, 0.0, NormExtras::default(), single, output).expect("agrees");
            assert!(out.as_slice::<f32>().chunks(cols).all(|got| got == once));
        });
    }

    #[test]
    fn disagreement_is_an_error() {
        contexts(|cx| {
            let (data, mut out) = ([0f32; 6], [0f32; 6]);
            let input = View::dense("x", &data, [2, 3]).expect("fits");
            let output = ViewMut::dense("y", &mut out, [3, 2]).expect("fits");
            assert!(softmax(cx, Softmax::Plain, input, output).is_err());
            let output = ViewMut::dense("y", &mut out, [2, 3]).expect("fits");
            let extras = NormExtras {
                scale: Some(&data[..2]),
                ..NormExtras::default()
            };
            assert!(normalize(cx, Norm::Layer, 0.0, extras, input, output).is_err());
            let output = ViewMut::new("y", &mut out, [2, 3], [1, 2]).expect("fits");
            assert!(softmax(cx, Softmax::Log, input, output).is_err());
        });
    }
}

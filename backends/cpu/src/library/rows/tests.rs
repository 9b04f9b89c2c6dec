//! Rows against plain loops in f64.

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
            softmax(cx, kind, input, RowsOutput::Store(output)).expect("agrees");
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
                normalize(cx, norm, 1e-5, extras, input, RowsOutput::Store(output))
                    .expect("agrees");
                for row in 0..rows {
                    let x: Vec<f64> = data[row * cols..][..cols]
                        .iter()
                        .map(|x| f64::from(x.widen()))
                        .collect();
                    let average =
                        |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / cols as f64;
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
                            want =
                                want * f64::from(scale[col].widen()) + f64::from(bias[col].widen());
                        }
                        let got = out[row * cols + col].widen();
                        let near = (f64::from(got) - want).abs() <= relative * (1.0 + want.abs());
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
        normalize(
            cx,
            Norm::Layer,
            0.0,
            NormExtras::default(),
            input,
            RowsOutput::Store(output),
        )
        .expect("agrees");
        let mut once = vec![0f32; cols];
        let single = View::dense("x", &row, [1, cols]).expect("fits");
        let output = ViewMut::dense("y", &mut once, [1, cols]).expect("fits");
        normalize(
            cx,
            Norm::Layer,
            0.0,
            NormExtras::default(),
            single,
            RowsOutput::Store(output),
        )
        .expect("agrees");
        assert!(out.as_slice::<f32>().chunks(cols).all(|got| got == once));
    });
}

#[test]
fn disagreement_is_an_error() {
    contexts(|cx| {
        let (data, mut out) = ([0f32; 6], [0f32; 6]);
        let input = View::dense("x", &data, [2, 3]).expect("fits");
        let output = ViewMut::dense("y", &mut out, [3, 2]).expect("fits");
        assert!(softmax(cx, Softmax::Plain, input, RowsOutput::Store(output)).is_err());
        let output = ViewMut::dense("y", &mut out, [2, 3]).expect("fits");
        let extras = NormExtras {
            scale: Some(&data[..2]),
            ..NormExtras::default()
        };
        assert!(
            normalize(
                cx,
                Norm::Layer,
                0.0,
                extras,
                input,
                RowsOutput::Store(output)
            )
            .is_err()
        );
        let output = ViewMut::new("y", &mut out, [2, 3], [1, 2]).expect("fits");
        assert!(softmax(cx, Softmax::Log, input, RowsOutput::Store(output)).is_err());
    });
}

#[test]
fn levels_and_threads_give_the_same_bits() {
    let mut rng = Rng::new(6);
    for cols in [1, 15, 40, 200, 769, 1024] {
        let data = rng.floats(7 * cols);
        let mut first: Option<Vec<f32>> = None;
        contexts(|cx| {
            if cx.isa.level() == crate::isa::Level::Baseline {
                return;
            }
            let input = View::dense("x", &data, [7, cols]).expect("fits");
            let mut all = vec![0f32; 3 * 7 * cols];
            let [soft, layer, rms] = all
                .get_disjoint_mut([0..7 * cols, 7 * cols..14 * cols, 14 * cols..21 * cols])
                .expect("apart");
            let output = |to| RowsOutput::Store(ViewMut::dense("y", to, [7, cols]).expect("fits"));
            softmax(cx, Softmax::Plain, input, output(soft)).expect("agrees");
            for (norm, to) in [(Norm::Layer, layer), (Norm::Rms, rms)] {
                let extras = NormExtras::default();
                normalize(cx, norm, 1e-5, extras, input, output(to)).expect("agrees");
            }
            let want = first.get_or_insert_with(|| all.clone());
            let same = all
                .iter()
                .zip(&*want)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{cols} {:?}", cx.isa);
        });
    }
}

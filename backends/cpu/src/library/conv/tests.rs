//! Convolutions of every geometry against plain loops.

use super::*;
use crate::library::gemm::ZeroPoints;
use crate::library::testing::{Rng, contexts};
use crate::library::window::Taps;

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub batch: usize,
    pub groups: usize,
    /// Channels in a group.
    pub inputs: usize,
    pub outputs: usize,
    pub input: Vec<usize>,
    pub taps: Vec<Taps>,
}

fn taps(kernel: usize, stride: usize, dilation: usize, pads: [usize; 2]) -> Taps {
    Taps {
        kernel,
        stride,
        dilation,
        pads,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |batch, groups, inputs, outputs, input: &[usize], taps: &[Taps]| Case {
        batch,
        groups,
        inputs,
        outputs,
        input: input.to_vec(),
        taps: taps.to_vec(),
    };
    let same = taps(3, 1, 1, [1, 1]);
    vec![
        case(1, 1, 1, 1, &[1], &[Taps::ONE]),
        case(2, 1, 3, 5, &[7, 9], &[same, same]),
        case(1, 1, 17, 20, &[14, 14], &[same, same]),
        case(
            1,
            1,
            3,
            8,
            &[11, 40],
            &[taps(3, 1, 1, [0, 0]), taps(5, 1, 1, [2, 1])],
        ),
        case(
            2,
            1,
            4,
            6,
            &[9, 11],
            &[taps(3, 2, 1, [1, 0]), taps(3, 2, 1, [0, 1])],
        ),
        case(
            1,
            1,
            5,
            7,
            &[9, 13],
            &[taps(2, 1, 2, [1, 2]), taps(3, 1, 3, [4, 2])],
        ),
        case(1, 1, 6, 33, &[5, 8], &[Taps::ONE, Taps::ONE]),
        case(1, 2, 3, 4, &[6, 6], &[Taps::ONE, taps(1, 2, 1, [0, 0])]),
        case(2, 3, 2, 2, &[37], &[taps(7, 3, 2, [5, 0])]),
        case(1, 1, 2, 3, &[4, 5, 6], &[same, taps(2, 2, 1, [0, 0]), same]),
        case(1, 1, 1, 2, &[50], &[taps(40, 1, 1, [3, 3])]),
        case(2, 5, 1, 1, &[12, 19], &[same, same]),
        case(
            1,
            4,
            1,
            2,
            &[13, 70],
            &[taps(5, 2, 1, [2, 2]), taps(3, 2, 2, [1, 3])],
        ),
        case(1, 3, 1, 1, &[3, 4, 5], &[taps(2, 1, 1, [1, 0]), same, same]),
        case(1, 2, 1, 3, &[9], &[taps(4, 3, 1, [7, 0])]),
        case(0, 1, 2, 3, &[4, 4], &[same, same]),
        case(1, 1, 0, 3, &[4, 4], &[same, same]),
        case(1, 1, 2, 0, &[4, 4], &[same, same]),
        case(1, 1, 2, 2, &[1, 4], &[taps(3, 1, 1, [0, 0]), same]),
    ]
}

/// Sum over channels and taps of input and weight, in f64.
pub(super) fn expected(
    case: &Case,
    window: &Window,
    x: &[f64],
    w: &[f64],
    [image, row, z, y, col]: [usize; 5],
) -> f64 {
    let [depth, height, width] = window.input;
    let group = row / case.outputs;
    let mut sum = 0.0;
    for channel in 0..case.inputs {
        for tap in 0..window.volume() {
            let [_, kernel_y, kernel_x] = window.kernel;
            let taps = [
                tap / (kernel_y * kernel_x),
                tap / kernel_x % kernel_y,
                tap % kernel_x,
            ];
            let at: Option<Vec<usize>> = (0..3)
                .map(|d| window.at(d, [z, y, col][d], taps[d]))
                .collect();
            if let Some(at) = at {
                let plane = (image * case.groups + group) * case.inputs + channel;
                let index = ((plane * depth + at[0]) * height + at[1]) * width + at[2];
                sum += x[index] * w[(row * case.inputs + channel) * window.volume() + tap];
            }
        }
    }
    sum
}

trait Sample: Convolve {
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    fn sum(x: Sum<Self>) -> f64;
    const EPS: f64;
}
macro_rules! samples {
    ($($t:ty: $of:expr, $wide:expr, $eps:expr;)*) => {
        $(impl Sample for $t {
            fn of(x: f64) -> $t {
                $of(x)
            }
            fn wide(self) -> f64 {
                $wide(self)
            }
            fn sum(x: Sum<$t>) -> f64 {
                f64::from(x)
            }
            const EPS: f64 = $eps;
        })*
    };
}
samples! {
    f32: |x| x as f32, f64::from, 4e-7;
    f64: |x| x, |x| x, 1e-14;
    f16: f16::from_f64, f16::to_f64, 4e-7;
    bf16: bf16::from_f64, bf16::to_f64, 4e-7;
}

fn check_case<T: Sample>(cx: &Context, case: &Case) {
    let window = Window::new(&case.input, &case.taps).expect("fine");
    let mut rng = Rng::new(5);
    let (in_channels, out_channels) = (case.groups * case.inputs, case.groups * case.outputs);
    let [depth, height, width] = window.input;
    let input_len = case.batch * in_channels * depth * height * width;
    let weight_len = out_channels * case.inputs * window.volume();
    let x: Vec<T> = (0..input_len)
        .map(|_| T::of(f64::from(rng.float())))
        .collect();
    let w: Vec<T> = (0..weight_len)
        .map(|_| T::of(f64::from(rng.float())))
        .collect();
    let (wide_x, wide_w): (Vec<f64>, Vec<f64>) = (
        x.iter().map(|&x| x.wide()).collect(),
        w.iter().map(|&w| w.wide()).collect(),
    );
    let input =
        View::dense("x", &x, [case.batch, in_channels, depth, height, width]).expect("fits");
    let [kernel_z, kernel_y, kernel_x] = window.kernel;
    let weights = View::dense(
        "w",
        &w,
        [out_channels, case.inputs, kernel_z, kernel_y, kernel_x],
    )
    .expect("fits");
    let packed = PackedWeights::new(cx, weights, case.groups).expect("memory");
    let [out_z, out_y, out_x] = window.output();
    let shape = [case.batch, out_channels, out_z, out_y, out_x];
    let len = shape.iter().product();
    let add_row = |part: Finished<Sum<T>>| {
        for row in 0..part.rows {
            for col in 0..part.cols {
                let element = unsafe { &mut *part.start.add(row * part.row_stride + col) };
                let extra = ((part.batch * 100 + part.row + row) * 1000 + part.col + col) as f64;
                *element = T::add(*element, T::of(extra % 64.0).widen());
            }
        }
    };
    for (choice, epilogue) in [(0, false), (1, false), (2, true), (3, true)] {
        let mut sums = vec![T::ZERO; len];
        let mut narrow = vec![T::of(0.0); len];
        let weights = if choice & 1 == 0 {
            Weights::View(weights)
        } else {
            Weights::Packed(&packed)
        };
        let output = match choice {
            3 => ConvOutput::Narrow(ViewMut::dense("y", &mut narrow, shape).expect("fits")),
            _ => ConvOutput::Store(ViewMut::dense("y", &mut sums, shape).expect("fits")),
        };
        let epilogue: Option<Epilogue<Sum<T>>> = if epilogue { Some(&add_row) } else { None };
        convolve(cx, &window, case.groups, input, weights, output, epilogue).expect("agrees");
        for index in 0..len {
            let place = out_z * out_y * out_x;
            let at = [
                index / (place * out_channels),
                index / place % out_channels,
                index / (out_y * out_x) % out_z,
                index / out_x % out_y,
                index % out_x,
            ];
            let mut want = expected(case, &window, &wide_x, &wide_w, at);
            if epilogue.is_some() {
                want += ((at[0] * 100 + at[1]) * 1000 + index % place) as f64 % 64.0;
            }
            let got = if choice == 3 {
                narrow[index].wide()
            } else {
                T::sum(sums[index])
            };
            let bound = T::EPS * (case.inputs * window.volume() + 64) as f64;
            let bound = if choice == 3 {
                bound + want.abs() / 128.0
            } else {
                bound
            };
            assert!(
                (got - want).abs() <= bound,
                "{case:?} {choice} {:?} at {at:?}: {got} instead of {want}",
                cx.isa
            );
        }
    }
}

fn check_all<T: Sample>() {
    contexts(|cx| cases().iter().for_each(|case| check_case::<T>(cx, case)));
}

#[test]
fn f32_convolutions() {
    check_all::<f32>();
}

#[test]
fn f64_convolutions() {
    check_all::<f64>();
}

#[test]
fn f16_convolutions() {
    check_all::<f16>();
}

#[test]
fn bf16_convolutions() {
    check_all::<bf16>();
}

#[test]
fn transposed_is_the_adjoint() {
    // <conv(x), y> = <x, transposed(y)> element by element: y is one-hot in turn would be slow, so compare with plain loops.
    contexts(|cx| {
        for case in cases() {
            let window = Window::new(&case.input, &case.taps).expect("fine");
            let mut rng = Rng::new(9);
            let windows = window.output();
            let count: usize = windows.iter().product();
            let (rows, channels) = (case.groups * case.outputs, case.groups * case.inputs);
            let y = rng.floats(case.batch * rows * count);
            let w = rng.floats(rows * case.inputs * window.volume());
            let [kernel_z, kernel_y, kernel_x] = window.kernel;
            let from = View::dense(
                "y",
                &y,
                [case.batch, rows, windows[0], windows[1], windows[2]],
            )
            .expect("fits");
            let weights = View::dense("w", &w, [rows, case.inputs, kernel_z, kernel_y, kernel_x])
                .expect("fits");
            let places: usize = window.input.iter().product();
            let len = case.batch * channels * places;
            let mut want = vec![0f64; len];
            for (index, &value) in y.iter().enumerate() {
                let (image, row, at) =
                    (index / (rows * count), index / count % rows, index % count);
                let at = [
                    at / (windows[1] * windows[2]),
                    at / windows[2] % windows[1],
                    at % windows[2],
                ];
                for channel in 0..case.inputs {
                    for tap in 0..window.volume() {
                        let taps = [
                            tap / (kernel_y * kernel_x),
                            tap / kernel_x % kernel_y,
                            tap % kernel_x,
                        ];
                        let to: Option<Vec<usize>> =
                            (0..3).map(|d| window.at(d, at[d], taps[d])).collect();
                        if let Some(to) = to {
                            let plane =
                                (image * case.groups + row / case.outputs) * case.inputs + channel;
                            let place = ((plane * window.input[0] + to[0]) * window.input[1]
                                + to[1])
                                * window.input[2]
                                + to[2];
                            let weight = w[(row * case.inputs + channel) * window.volume() + tap];
                            want[place] += f64::from(value) * f64::from(weight);
                        }
                    }
                }
            }
            let shape = [
                case.batch,
                channels,
                window.input[0],
                window.input[1],
                window.input[2],
            ];
            let mut got = vec![0f32; len];
            let add_one = |part: Finished<f32>| {
                for col in 0..part.cols {
                    unsafe { *part.start.add(col) += 1.0 };
                }
            };
            let output = ConvOutput::Store(ViewMut::dense("x", &mut got, shape).expect("fits"));
            convolve_transposed(
                cx,
                &window,
                case.groups,
                from,
                weights,
                output,
                Some(&add_one),
            )
            .expect("agrees");
            for (index, (&got, &want)) in got.iter().zip(&want).enumerate() {
                let want = want + 1.0;
                assert!(
                    (f64::from(got) - want).abs() < 2e-5,
                    "{case:?} at {index}: {got} instead of {want}"
                );
            }
            let (half_y, half_w): (Vec<f16>, Vec<f16>) = (
                y.iter().map(|&y| f16::from_f32(y)).collect(),
                w.iter().map(|&w| f16::from_f32(w)).collect(),
            );
            let from = View::dense("y", &half_y, from.shape()).expect("fits");
            let weights = View::dense("w", &half_w, weights.shape()).expect("fits");
            let mut narrow = vec![f16::ZERO; len];
            let output = ConvOutput::Narrow(ViewMut::dense("x", &mut narrow, shape).expect("fits"));
            convolve_transposed(cx, &window, case.groups, from, weights, output, None)
                .expect("agrees");
            for (&got, &want) in narrow.iter().zip(&want) {
                assert!(
                    (got.to_f64() - want).abs() < 0.02 * (1.0 + want.abs()),
                    "{case:?}: {got} instead of {want}"
                );
            }
        }
    });
}

#[test]
fn bytes() {
    contexts(|cx| {
        for (index, case) in cases().iter().enumerate() {
            let window = Window::new(&case.input, &case.taps).expect("fine");
            let mut rng = Rng::new(index as u64);
            let (in_channels, out_channels) =
                (case.groups * case.inputs, case.groups * case.outputs);
            let [depth, height, width] = window.input;
            let [kernel_z, kernel_y, kernel_x] = window.kernel;
            let x: Vec<u8> = (0..case.batch * in_channels * depth * height * width)
                .map(|_| rng.next() as u8)
                .collect();
            let w: Vec<u8> = (0..out_channels * case.inputs * window.volume())
                .map(|_| rng.next() as u8)
                .collect();
            let (input_signed, weights_signed) = (index % 2 == 0, index % 3 == 0);
            let points: Vec<i32> = (0..out_channels)
                .map(|channel| channel as i32 * 3)
                .collect();
            let input = ByteInput {
                view: View::dense("x", &x, [case.batch, in_channels, depth, height, width])
                    .expect("fits"),
                signed: input_signed,
                zero: 7,
            };
            let weights = ByteWeights {
                view: View::dense(
                    "w",
                    &w,
                    [out_channels, case.inputs, kernel_z, kernel_y, kernel_x],
                )
                .expect("fits"),
                signed: weights_signed,
                zero: if index % 2 == 0 {
                    ZeroPoints::Each(&points)
                } else {
                    ZeroPoints::One(2)
                },
            };
            let value = |byte: u8, signed: bool| {
                if signed {
                    f64::from(byte as i8)
                } else {
                    f64::from(byte)
                }
            };
            let wide_x: Vec<f64> = x
                .iter()
                .map(|&byte| value(byte, input_signed) - 7.0)
                .collect();
            let per_row = case.inputs * window.volume();
            let zero = |row: usize| {
                if index % 2 == 0 {
                    f64::from(points[row])
                } else {
                    2.0
                }
            };
            let wide_w: Vec<f64> = w
                .iter()
                .enumerate()
                .map(|(i, &byte)| value(byte, weights_signed) - zero(i / per_row))
                .collect();
            let [out_z, out_y, out_x] = window.output();
            let shape = [case.batch, out_channels, out_z, out_y, out_x];
            let mut got = vec![0i32; shape.iter().product()];
            let output = ViewMut::dense("y", &mut got, shape).expect("fits");
            let negate = |part: Finished<i32>| {
                for row in 0..part.rows {
                    for col in 0..part.cols {
                        let element = unsafe { &mut *part.start.add(row * part.row_stride + col) };
                        *element = -*element + ((part.row + row) * 1000 + part.col + col) as i32;
                    }
                }
            };
            let packed = PackedByteWeights::new(cx, &weights, case.groups);
            let packed = packed.expect("memory");
            convolve_bytes(cx, &window, &input, &packed, output, Some(&negate)).expect("agrees");
            for (index, &got) in got.iter().enumerate() {
                let place = out_z * out_y * out_x;
                let row = index / place % out_channels;
                let at = [
                    index / (place * out_channels),
                    row,
                    index / (out_y * out_x) % out_z,
                    index / out_x % out_y,
                    index % out_x,
                ];
                let want = (row * 1000 + index % place) as f64
                    - expected(case, &window, &wide_x, &wide_w, at);
                assert_eq!(f64::from(got), want, "{case:?} at {at:?}");
            }
        }
    });
}

#[test]
fn disagreement_is_an_error() {
    contexts(|cx| {
        let window = Window::new(&[4], &[taps(3, 1, 1, [1, 1])]).expect("fine");
        let x = [0f32; 8];
        let w = [0f32; 12];
        let mut y = [0f32; 16];
        let mut refuse = |x_shape, w_shape, y_shape, groups| {
            let input = View::dense("x", &x, x_shape).expect("fits");
            let weights = Weights::View(View::dense("w", &w, w_shape).expect("fits"));
            let output = ConvOutput::Store(ViewMut::dense("y", &mut y, y_shape).expect("fits"));
            convolve(cx, &window, groups, input, weights, output, None).expect_err("does not agree")
        };
        refuse([1, 2, 1, 1, 4], [2, 2, 1, 1, 2], [1, 2, 1, 1, 4], 1);
        refuse([1, 2, 1, 1, 4], [2, 1, 1, 1, 3], [1, 2, 1, 1, 4], 1);
        refuse([1, 2, 1, 1, 4], [2, 1, 1, 1, 3], [1, 2, 1, 1, 4], 0);
        refuse([1, 2, 1, 1, 4], [3, 1, 1, 1, 3], [1, 3, 1, 1, 4], 2);
        refuse([1, 2, 1, 1, 4], [2, 1, 1, 1, 3], [1, 2, 1, 1, 3], 2);
        refuse([1, 1, 1, 2, 4], [2, 1, 1, 1, 3], [1, 2, 1, 1, 4], 1);
    });
}

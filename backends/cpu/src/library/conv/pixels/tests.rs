//! Channels-last convolutions of every geometry against plain loops.

use super::super::tests::{Case, cases, expected};
use super::*;
use crate::isa::Level;
use crate::library::testing::{Rng, contexts};
use crate::library::window::Taps;
use half::bf16;
use std::sync::Mutex;

/// A case with its operands, images channels first and last.
struct Images {
    window: Window,
    x: Vec<f64>,
    x_last: Vec<f32>,
    w: Vec<f64>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    /// `[batch, depth, height, width, channels]` of input and output.
    shapes: [[usize; 5]; 2],
}

fn images(case: &Case, rng: &mut Rng) -> Images {
    let window = Window::new(&case.input, &case.taps).expect("a window");
    let [depth, height, width] = window.input;
    let [out_depth, out_height, out_width] = window.output();
    let (inputs, outputs) = (case.groups * case.inputs, case.groups * case.outputs);
    let plane = depth * height * width;
    let x: Vec<f64> = (0..case.batch * inputs * plane)
        .map(|_| f64::from(rng.float()))
        .collect();
    let mut x_last = vec![0f32; x.len()];
    for (index, &value) in x.iter().enumerate() {
        let (image, rest) = (index / plane / inputs, index % (plane * inputs));
        let (channel, pixel) = (rest / plane, rest % plane);
        x_last[(image * plane + pixel) * inputs + channel] = value as f32;
    }
    let len = case.batch * out_depth * out_height * out_width * outputs;
    let w = (0..outputs * case.inputs * window.volume()).map(|_| f64::from(rng.float()));
    Images {
        w: w.collect(),
        x,
        x_last,
        bias: rng.floats(outputs),
        residual: rng.floats(len),
        shapes: [
            [case.batch, depth, height, width, inputs],
            [case.batch, out_depth, out_height, out_width, outputs],
        ],
        window,
    }
}

impl Images {
    fn weights(&self, cx: &Context, case: &Case, minimal: bool) -> PixelWeights {
        let w: Vec<f32> = self.w.iter().map(|&w| w as f32).collect();
        let [depth, height, width] = self.window.kernel;
        let shape = [
            case.groups * case.outputs,
            case.inputs,
            depth,
            height,
            width,
        ];
        let view = View::dense("weights", &w, shape).expect("fits");
        let expected = Expected {
            window: &self.window,
            batch: case.batch,
        };
        PixelWeights::new(cx, view, case.groups, minimal.then_some(expected)).expect("packs")
    }

    fn run(&self, cx: &Context, case: &Case, finish: Finish, y: &mut [f32]) {
        self.run_with(cx, &self.weights(cx, case, true), finish, y);
    }

    fn run_with(&self, cx: &Context, weights: &PixelWeights, finish: Finish, y: &mut [f32]) {
        let output = ViewMut::dense("output", y, self.shapes[1]).expect("fits");
        self.run_into(cx, weights, finish, PixelOutput::Store(output));
    }

    fn run_into(&self, cx: &Context, weights: &PixelWeights, finish: Finish, output: PixelOutput) {
        let convolution = Convolution {
            window: &self.window,
            input: PixelInput::Floats(
                View::dense("input", &self.x_last, self.shapes[0]).expect("fits"),
            ),
            weights,
            finish,
        };
        convolve_pixels(cx, &convolution, output).expect("runs");
    }

    fn expected(&self, case: &Case) -> Vec<f64> {
        let [batch, depth, height, width, outputs] = self.shapes[1];
        let mut all = Vec::new();
        for image in 0..batch {
            for pixel in 0..depth * height * width {
                let (z, rest) = (pixel / (height * width), pixel % (height * width));
                for row in 0..outputs {
                    let at = [image, row, z, rest / width, rest % width];
                    all.push(expected(case, &self.window, &self.x, &self.w, at));
                }
            }
        }
        all
    }
}

/// The cases of the other layout, and some whose channels fill and overflow panels.
fn more_cases() -> Vec<Case> {
    let taps = |kernel, stride, dilation, pads| Taps {
        kernel,
        stride,
        dilation,
        pads,
    };
    let wide = |groups, inputs, outputs, height, width, taps: [Taps; 2]| Case {
        batch: 2,
        groups,
        inputs,
        outputs,
        input: vec![height, width],
        taps: taps.to_vec(),
    };
    let same = taps(3, 1, 1, [1, 1]);
    let mut all = cases();
    all.extend([
        wide(1, 19, 70, 7, 9, [same, same]),
        wide(1, 33, 32, 5, 31, [Taps::ONE, Taps::ONE]),
        // Whole lines of taps in the padding.
        wide(
            1,
            17,
            20,
            4,
            12,
            [taps(4, 1, 1, [3, 3]), taps(3, 1, 1, [2, 2])],
        ),
        wide(
            3,
            8,
            17,
            6,
            5,
            [taps(3, 2, 1, [0, 1]), taps(2, 1, 2, [1, 1])],
        ),
        wide(
            70,
            1,
            1,
            9,
            11,
            [taps(3, 2, 1, [1, 1]), taps(5, 1, 1, [2, 2])],
        ),
        wide(33, 1, 1, 4, 4, [taps(2, 1, 3, [2, 2]), same]),
        wide(1, 40, 40, 17, 19, [same, same]),
        wide(1, 36, 50, 28, 27, [same, taps(3, 1, 1, [0, 2])]),
        wide(1, 64, 33, 7, 7, [same, same]),
        // Few outputs: taps as channels, with and without a copy, and vectors of channels.
        wide(1, 8, 1, 9, 21, [taps(5, 1, 1, [2, 2]); 2]),
        wide(1, 1, 2, 3, 150, [Taps::ONE, taps(64, 2, 1, [0, 0])]),
        wide(1, 35, 3, 5, 9, [same, taps(3, 2, 1, [1, 0])]),
        wide(1, 48, 4, 6, 7, [same, taps(3, 1, 2, [2, 2])]),
        // Lines whose windows reach beyond both ends.
        wide(24, 1, 1, 3, 4, [taps(7, 1, 1, [3, 3]); 2]),
        wide(17, 1, 1, 12, 19, [taps(5, 1, 1, [2, 2]); 2]),
    ]);
    all
}

fn close(found: f32, wanted: f64, what: &str, case: &Case) {
    let bound = 1e-4 + 1e-5 * wanted.abs();
    let off = (f64::from(found) - wanted).abs();
    assert!(
        off <= bound,
        "{what}: {found} instead of {wanted} in {case:?}"
    );
}

const GATE: Gate = Gate {
    scale: 0.5,
    shift: 0.25,
    bounds: [0.0, 0.5],
    factor: 2.0,
    offset: -0.125,
};

fn gated(y: f64) -> f64 {
    y * (y * 0.5 + 0.25).clamp(0.0, 0.5) * 2.0 - 0.125
}

#[test]
fn agrees_with_plain_loops() {
    let mut rng = Rng::new(5);
    for case in more_cases() {
        let images = images(&case, &mut rng);
        let wanted = images.expected(&case);
        let channels = case.groups * case.outputs;
        contexts(|cx| {
            let mut y = vec![f32::NAN; wanted.len()];
            images.run(cx, &case, Finish::Tail(Tail::NONE), &mut y);
            for (&found, &wanted) in y.iter().zip(&wanted) {
                close(found, wanted, "sums", &case);
            }
            // The residual is what the output replaces.
            y.copy_from_slice(&images.residual);
            let tail = Tail {
                bias: Some(&images.bias),
                residual: Some(Shared(y.as_mut_ptr())),
                clamp: [-0.5, 0.75],
                gate: Some(GATE),
            };
            images.run(cx, &case, Finish::Tail(tail), &mut y);
            for (at, (&found, &wanted)) in y.iter().zip(&wanted).enumerate() {
                let sum = wanted + f64::from(images.bias[at % channels] + images.residual[at]);
                close(found, gated(sum.clamp(-0.5, 0.75)), "with a tail", &case);
            }
            let doubled = |part: Finished<f32>| {
                for row in 0..part.rows {
                    for col in 0..part.cols {
                        // SAFETY: the part is this call's own.
                        unsafe { *part.start.add(row * part.row_stride + col) *= 2.0 };
                    }
                }
            };
            images.run(cx, &case, Finish::Epilogue(&doubled), &mut y);
            for (&found, &wanted) in y.iter().zip(&wanted) {
                close(found, 2.0 * wanted, "with an epilogue", &case);
            }
            let seen = Mutex::new(vec![f32::NAN; y.len()]);
            let take = |part: Finished<f32>| {
                let mut seen = seen.lock().expect("no panic");
                for row in 0..part.rows {
                    for col in 0..part.cols {
                        let at = (part.row + row) * channels + part.col + col;
                        assert!(seen[at].is_nan(), "{at} twice");
                        // SAFETY: the part is this call's own.
                        seen[at] = unsafe { *part.start.add(row * part.row_stride + col) };
                    }
                }
            };
            let weights = images.weights(cx, &case, true);
            let finish = Finish::Epilogue(&take);
            images.run_into(cx, &weights, finish, PixelOutput::Discard);
            for (&found, &wanted) in seen.lock().expect("no panic").iter().zip(&wanted) {
                close(found, wanted, "for an epilogue alone", &case);
            }
        });
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_wide_levels() {
    let mut rng = Rng::new(6);
    for case in more_cases() {
        let images = images(&case, &mut rng);
        let len = images.residual.len();
        let mut first: Option<Vec<u32>> = None;
        contexts(|cx| {
            if cx.isa.level() == Level::Baseline {
                return;
            }
            let mut y = vec![0f32; len];
            images.run(cx, &case, Finish::Tail(Tail::NONE), &mut y);
            let bits: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
            let first = first.get_or_insert_with(|| bits.clone());
            assert_eq!(&bits, first, "{case:?}");
        });
    }
}

#[test]
fn minimal_filtering_is_used_where_it_pays_and_nearly_as_precise() {
    let same = Taps {
        kernel: 3,
        pads: [1, 1],
        ..Taps::ONE
    };
    let case = |inputs, outputs, side: usize| Case {
        batch: 1,
        groups: 1,
        inputs,
        outputs,
        input: vec![side, side],
        taps: vec![same, same],
    };
    let forms = [
        (case(64, 32, 28), Form::Tiles(Tiling::Four)),
        (case(128, 64, 7), Form::Tiles(Tiling::Two)),
        // So many channels that pixels stand apart.
        (case(512, 32, 14), Form::Tiles(Tiling::Two)),
        (case(3, 8, 9), Form::Panels),
        (case(48, 1, 9), Form::Dots),
        (case(64, 64, 1), Form::Panels),
    ];
    for (case, form) in forms {
        let images = images(&case, &mut Rng::new(8));
        let wanted = images.expected(&case);
        let rms = (wanted.iter().map(|x| x * x).sum::<f64>() / wanted.len() as f64).sqrt();
        contexts(|cx| {
            let off = |minimal: bool| {
                let weights = images.weights(cx, &case, minimal);
                let mut y = vec![0f32; wanted.len()];
                images.run_with(cx, &weights, Finish::Tail(Tail::NONE), &mut y);
                let off = y
                    .iter()
                    .zip(&wanted)
                    .map(|(y, w)| (f64::from(*y) - w).abs());
                (weights.form, off.fold(0.0, f64::max) / rms)
            };
            let ((_, direct), (found, minimal)) = (off(false), off(true));
            assert_eq!(found, form, "{case:?}");
            assert!(
                minimal < 4.0 * direct && minimal < 2e-5,
                "{minimal} against {direct}"
            );
        });
    }
}

#[test]
fn minimal_filtering_keeps_nan_where_it_belongs() {
    let same = Taps {
        kernel: 3,
        pads: [1, 1],
        ..Taps::ONE
    };
    let case = Case {
        batch: 1,
        groups: 1,
        inputs: 32,
        outputs: 40,
        input: vec![16, 16],
        taps: vec![same, same],
    };
    let mut images = images(&case, &mut Rng::new(9));
    images.x_last[(5 * 16 + 9) * 32 + 3] = f32::NAN;
    contexts(|cx| {
        let mut y = vec![0f32; images.residual.len()];
        images.run(cx, &case, Finish::Tail(Tail::NONE), &mut y);
        for (pixel, channels) in y.chunks(40).enumerate() {
            let (row, col) = (pixel / 16, pixel % 16);
            if (4..=6).contains(&row) && (8..=10).contains(&col) {
                assert!(channels.iter().all(|y| y.is_nan()), "pixel {row}, {col}");
            }
            // Tiles that do not read the pixel are untouched.
            if !(0..12).contains(&row) || !(4..16).contains(&col) {
                assert!(channels.iter().all(|y| y.is_finite()), "pixel {row}, {col}");
            }
        }
    });
}

#[test]
fn a_clamp_keeps_nan() {
    let case = Case {
        batch: 1,
        groups: 1,
        inputs: 3,
        outputs: 20,
        input: vec![5, 5],
        taps: vec![Taps::ONE; 2],
    };
    let mut images = images(&case, &mut Rng::new(7));
    images.x_last[7 * 3] = f32::NAN;
    contexts(|cx| {
        let tail = Tail {
            clamp: [0.0, 6.0],
            ..Tail::NONE
        };
        let mut y = vec![0f32; images.residual.len()];
        images.run(cx, &case, Finish::Tail(tail), &mut y);
        for (at, y) in y.iter().enumerate() {
            assert_eq!(y.is_nan(), at / 20 == 7, "element {at}: {y}");
        }
    });
}

#[test]
fn refuses_what_does_not_fit() {
    contexts(|cx| {
        let w = vec![0f32; 6 * 4];
        let view = View::dense("weights", &w, [6, 4, 1, 1, 1]).expect("fits");
        assert!(PixelWeights::new(cx, view, 4, None).is_err());
        let weights = PixelWeights::new(cx, view, 1, None).expect("packs");
        let window = Window::new(&[2, 2], &[Taps::ONE; 2]).expect("a window");
        let x = [0f32; 2 * 2 * 5];
        let mut y = vec![0f32; 2 * 2 * 6];
        for (shape, fits) in [([1, 1, 2, 2, 4], true), ([1, 1, 2, 2, 5], false)] {
            let len = shape.iter().product();
            let convolution = Convolution {
                window: &window,
                input: PixelInput::Floats(View::dense("input", &x[..len], shape).expect("fits")),
                weights: &weights,
                finish: Finish::Tail(Tail::NONE),
            };
            let output = ViewMut::dense("output", &mut y, [1, 1, 2, 2, 6]).expect("fits");
            assert_eq!(
                convolve_pixels(cx, &convolution, PixelOutput::Store(output)).is_ok(),
                fits
            );
        }
    });
}

/// Rounded to bf16.
fn narrow(x: &[f64]) -> Vec<f64> {
    let rounded = x.iter().map(|&x| bf16::from_f32(x as f32).to_f64());
    rounded.collect()
}

#[test]
fn weights_of_bf16_multiply_rounded_input() {
    let mut rng = Rng::new(11);
    for case in more_cases() {
        let mut images = images(&case, &mut rng);
        images.w = narrow(&images.w);
        let rounded = Images {
            x: narrow(&images.x),
            ..images
        };
        let wanted = rounded.expected(&case);
        let w: Vec<bf16> = rounded
            .w
            .iter()
            .map(|&w| bf16::from_f32(w as f32))
            .collect();
        let [depth, height, width] = rounded.window.kernel;
        let shape = [
            case.groups * case.outputs,
            case.inputs,
            depth,
            height,
            width,
        ];
        let rms = (wanted.iter().map(|x| x * x).sum::<f64>() / wanted.len() as f64).sqrt();
        for minimal in [false, true] {
            contexts(|cx| {
                let view = View::dense("weights", &w, shape).expect("fits");
                let expected = Expected {
                    window: &rounded.window,
                    batch: case.batch,
                };
                let weights = PixelWeights::new(cx, view, case.groups, minimal.then_some(expected));
                let weights = weights.expect("packs");
                let size = PixelWeights::size_for::<bf16>(
                    cx,
                    shape,
                    case.groups,
                    minimal.then_some(expected),
                );
                assert_eq!(
                    size.map(|n| n.next_multiple_of(64)),
                    Some(weights.size().next_multiple_of(64))
                );
                let mut y = vec![f32::NAN; wanted.len()];
                rounded.run_with(cx, &weights, Finish::Tail(Tail::NONE), &mut y);
                // Transformed tiles are rounded instead of the input.
                let is_transformed =
                    weights.reading == Reading::Pairs && weights.form != Form::Panels;
                for (&found, &wanted) in y.iter().zip(&wanted) {
                    if is_transformed {
                        let off = (f64::from(found) - wanted).abs();
                        assert!(off <= 0.03 * rms, "{found} instead of {wanted} in {case:?}");
                    } else {
                        close(
                            found,
                            wanted,
                            &format!("by bf16 on {:?} {:?}", cx.isa, weights.form),
                            &case,
                        );
                    }
                }
            });
        }
    }
}

#[test]
fn neighbours_of_pixels_in_bf16_stay_apart() {
    let case = Case {
        batch: 1,
        groups: 1,
        inputs: 3,
        outputs: 20,
        input: vec![9, 9],
        taps: vec![
            Taps {
                kernel: 3,
                ..Taps::ONE
            };
            2
        ],
    };
    let mut images = images(&case, &mut Rng::new(7));
    images.x_last[(4 * 9 + 4) * 3] = f32::NAN;
    let w: Vec<bf16> = images.w.iter().map(|&w| bf16::from_f32(w as f32)).collect();
    contexts(|cx| {
        let view = View::dense("weights", &w, [20, 3, 1, 3, 3]).expect("fits");
        let weights = PixelWeights::new(cx, view, 1, None).expect("packs");
        let mut y = vec![0f32; images.residual.len()];
        images.run_with(cx, &weights, Finish::Tail(Tail::NONE), &mut y);
        for (at, y) in y.iter().enumerate() {
            let (row, col) = (at / 20 / 7, at / 20 % 7);
            let reads = (2..=4).contains(&row) && (2..=4).contains(&col);
            assert_eq!(y.is_nan(), reads, "pixel {row}, {col}: {y}");
        }
    });
}

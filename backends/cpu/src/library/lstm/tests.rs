//! Every cell and variant against the formulas in f64.

use super::*;
use crate::library::testing::{Rng, contexts};

fn activate(activation: Activation, x: f64, clip: Option<f32>) -> f64 {
    let x = clip.map_or(x, |clip| x.clamp(-f64::from(clip), f64::from(clip)));
    let wide = f64::from;
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Affine(alpha, beta) => wide(alpha) * x + wide(beta),
        Activation::LeakyRelu(alpha) => {
            if x < 0.0 {
                wide(alpha) * x
            } else {
                x
            }
        }
        Activation::ThresholdedRelu(alpha) => {
            if x >= wide(alpha) {
                x
            } else {
                0.0
            }
        }
        Activation::ScaledTanh(alpha, beta) => wide(alpha) * (wide(beta) * x).tanh(),
        Activation::HardSigmoid(alpha, beta) => (wide(alpha) * x + wide(beta)).clamp(0.0, 1.0),
        Activation::Elu(alpha) => {
            if x < 0.0 {
                wide(alpha) * x.exp_m1()
            } else {
                x
            }
        }
        Activation::Softsign => x / (1.0 + x.abs()),
        Activation::Softplus => x.exp().ln_1p(),
    }
}

struct Case<'a> {
    cell: Cell<'a>,
    clip: Option<f32>,
    reverse: bool,
    lens: Option<Vec<usize>>,
    with_first: bool,
}

const STEPS: usize = 4;

fn check(cx: &Context, case: &Case<'_>, batch: usize, hidden: usize) {
    let gates = case.cell.gates();
    let mut rng = Rng::new(hidden as u64);
    let inputs = rng.floats(STEPS * batch * gates * hidden);
    let scale = 1.0 / (hidden as f32).sqrt();
    let weights: Vec<f32> = rng
        .floats(gates * hidden * hidden)
        .iter()
        .map(|w| w * scale)
        .collect();
    let (first_h, first_c) = (rng.floats(batch * hidden), rng.floats(batch * hidden));
    let view = View::dense("r", &weights, [gates * hidden, hidden]).expect("fits");
    let packed = PackedRecurrent::new(cx, &case.cell, Weights::F32(view)).expect("memory");
    let lens = case.lens.as_ref().map(|lens| lens[..batch].to_vec());
    let initial = |data| View::dense("first", data, [batch, hidden]).expect("fits");
    let layer = Recurrent {
        cell: case.cell,
        clip: case.clip,
        reverse: case.reverse,
        inputs: View::dense("x", &inputs, [STEPS, batch, gates * hidden]).expect("fits"),
        weights: &packed,
        lens: lens.as_deref(),
        first_hidden: case.with_first.then(|| initial(&first_h)),
        first_cell: case.with_first.then(|| initial(&first_c)),
    };
    let mut states = vec![9f32; STEPS * batch * hidden];
    let (mut last_h, mut last_c) = (vec![9f32; batch * hidden], vec![9f32; batch * hidden]);
    let outputs = RecurrentOutputs {
        states: Some(ViewMut::dense("y", &mut states, [STEPS, batch, hidden]).expect("fits")),
        last_hidden: Some(ViewMut::dense("h", &mut last_h, [batch, hidden]).expect("fits")),
        last_cell: Some(ViewMut::dense("c", &mut last_c, [batch, hidden]).expect("fits")),
    };
    recur(cx, &layer, outputs).expect("agrees");
    let close = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-5 * (1.0 + want.abs());
    for row in 0..batch {
        let start = |from: &[f32]| -> Vec<f64> {
            (0..hidden)
                .map(|unit| {
                    if case.with_first {
                        f64::from(from[row * hidden + unit])
                    } else {
                        0.0
                    }
                })
                .collect()
        };
        let (mut h, mut c) = (start(&first_h), start(&first_c));
        let len = lens.as_ref().map_or(STEPS, |lens| lens[row]);
        for step in 0..len {
            let place = if case.reverse { len - 1 - step } else { step };
            let input = |gate: usize, unit: usize| {
                f64::from(inputs[(place * batch + row) * gates * hidden + gate * hidden + unit])
            };
            (h, c) = expected(case, &weights, hidden, &input, &h, &c);
            for (unit, &want) in h.iter().enumerate() {
                let got = states[(place * batch + row) * hidden + unit];
                assert!(
                    close(got, want),
                    "{:?} step {step}: {got} instead of {want}",
                    case.cell
                );
            }
        }
        for place in len..STEPS {
            assert!(
                states[(place * batch + row) * hidden..][..hidden]
                    .iter()
                    .all(|&x| x == 0.0)
            );
        }
        for unit in 0..hidden {
            assert!(close(last_h[row * hidden + unit], h[unit]));
            assert!(
                !matches!(case.cell, Cell::Lstm { .. })
                    || close(last_c[row * hidden + unit], c[unit])
            );
        }
    }
}

/// State and cell state after one step.
fn expected(
    case: &Case<'_>,
    weights: &[f32],
    hidden: usize,
    input: &dyn Fn(usize, usize) -> f64,
    h: &[f64],
    c: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let product = |gate: usize, unit: usize, h: &[f64]| -> f64 {
        h.iter()
            .zip(&weights[(gate * hidden + unit) * hidden..])
            .map(|(h, &w)| h * f64::from(w))
            .sum()
    };
    let run = |activation, x| activate(activation, x, case.clip);
    let plain = |gate, unit| input(gate, unit) + product(gate, unit, h);
    let units = 0..hidden;
    match case.cell {
        Cell::Rnn { gate } => (
            units.map(|unit| run(gate, plain(0, unit))).collect(),
            c.to_vec(),
        ),
        Cell::Lstm {
            gate,
            cell,
            hidden: output,
            peepholes,
            coupled,
        } => units
            .map(|unit| {
                let peep = |index: usize, c: f64| {
                    peepholes.map_or(0.0, |p| f64::from(p[index * hidden + unit]) * c)
                };
                let i = run(gate, plain(0, unit) + peep(0, c[unit]));
                let f = if coupled {
                    1.0 - i
                } else {
                    run(gate, plain(2, unit) + peep(2, c[unit]))
                };
                let c = f * c[unit] + i * run(cell, plain(3, unit));
                let output = activate(output, c, None);
                (run(gate, plain(1, unit) + peep(1, c)) * output, c)
            })
            .unzip(),
        Cell::Gru {
            gate,
            hidden: candidate,
            linear_before_reset,
        } => {
            let reset: Vec<f64> = (0..hidden).map(|unit| run(gate, plain(1, unit))).collect();
            let scaled: Vec<f64> = h.iter().zip(&reset).map(|(h, r)| h * r).collect();
            let next = units.map(|unit| {
                let z = run(gate, plain(0, unit));
                let recurrent = match linear_before_reset {
                    None => product(2, unit, &scaled),
                    Some(bias) => reset[unit] * (product(2, unit, h) + f64::from(bias[unit])),
                };
                (1.0 - z) * run(candidate, input(2, unit) + recurrent) + z * h[unit]
            });
            (next.collect(), c.to_vec())
        }
    }
}

#[test]
fn cells() {
    contexts(|cx| {
        let (tanh, sigmoid) = (Activation::Tanh, Activation::Sigmoid);
        for (batch, hidden) in [(1, 1), (3, 17), (2, 64), (20, 33)] {
            let extra = Rng::new(77).floats(3 * hidden);
            let lstm = |peepholes, coupled| Cell::Lstm {
                gate: sigmoid,
                cell: tanh,
                hidden: tanh,
                peepholes,
                coupled,
            };
            let gru = |linear_before_reset| Cell::Gru {
                gate: sigmoid,
                hidden: tanh,
                linear_before_reset,
            };
            let lens: Vec<usize> = (0..20).map(|row| row * 3 % (STEPS + 1)).collect();
            for (cell, clip, reverse) in [
                (lstm(None, false), None, false),
                (lstm(Some(&extra[..]), false), Some(0.4), true),
                (lstm(Some(&extra[..]), true), None, false),
                (gru(None), None, false),
                (gru(None), Some(0.5), true),
                (gru(Some(&extra[..hidden])), None, true),
                (Cell::Rnn { gate: tanh }, None, false),
                (Cell::Rnn { gate: tanh }, Some(0.2), true),
            ] {
                for lens in [None, Some(lens.clone())] {
                    let with_first = lens.is_some() != reverse;
                    check(
                        cx,
                        &Case {
                            cell,
                            clip,
                            reverse,
                            lens,
                            with_first,
                        },
                        batch,
                        hidden,
                    );
                }
            }
        }
    });
}

#[test]
fn activations() {
    contexts(|cx| {
        for gate in [
            Activation::Relu,
            Activation::Affine(0.5, 0.1),
            Activation::LeakyRelu(0.1),
            Activation::ThresholdedRelu(0.2),
            Activation::ScaledTanh(1.5, 0.5),
            Activation::HardSigmoid(0.3, 0.4),
            Activation::Elu(0.7),
            Activation::Softsign,
            Activation::Softplus,
        ] {
            let case = Case {
                cell: Cell::Rnn { gate },
                clip: None,
                reverse: false,
                lens: None,
                with_first: true,
            };
            check(cx, &case, 2, 19);
        }
    });
}

#[test]
fn nothing_to_do_and_disagreement() {
    contexts(|cx| {
        let cell = Cell::Rnn {
            gate: Activation::Tanh,
        };
        let view = |data, shape| View::dense("r", data, shape).expect("fits");
        let data = [0.5f32; 24];
        let packed =
            PackedRecurrent::new(cx, &cell, Weights::F32(view(&data, [2, 2]))).expect("memory");
        assert!(PackedRecurrent::new(cx, &cell, Weights::F32(view(&data, [4, 2]))).is_err());
        let layer = |inputs, lens| Recurrent {
            cell,
            clip: None,
            reverse: false,
            inputs,
            weights: &packed,
            lens,
            first_hidden: None,
            first_cell: None,
        };
        let inputs = |shape| View::dense("x", &data, shape).expect("fits");
        for shape in [[0, 3, 2], [3, 0, 2]] {
            let mut last = [9f32; 6];
            let outputs = RecurrentOutputs {
                last_hidden: Some(ViewMut::dense("h", &mut last, [shape[1], 2]).expect("fits")),
                ..RecurrentOutputs::default()
            };
            recur(cx, &layer(inputs(shape), None), outputs).expect("agrees");
            assert!(last[..2 * shape[1]].iter().all(|&x| x == 0.0));
        }
        let none = RecurrentOutputs::default;
        assert!(recur(cx, &layer(inputs([2, 3, 4]), None), none()).is_err());
        assert!(recur(cx, &layer(inputs([2, 3, 2]), Some(&[1, 2])), none()).is_err());
        assert!(recur(cx, &layer(inputs([2, 3, 2]), Some(&[1, 2, 3])), none()).is_err());
        recur(cx, &layer(inputs([2, 3, 2]), Some(&[1, 2, 0])), none()).expect("agrees");
    });
}

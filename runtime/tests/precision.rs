//! Products in narrower types: every device against the interpreter, and what the narrower type costs.

mod common;

use common::{attention, convolution, numbers, perceptron, recurrent, weights_left};
use cupola_ir::{Graph, Tensor, Value};
use cupola_passes::Precision;
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::sync::Arc;

/// Runs a graph of one input `x`, whose first extent is a symbol.
fn run(graph: &Graph, device: DeviceSpec, precision: Precision, level: u8, x: &Tensor) -> Vec<f32> {
    let options = CompileOptions {
        device,
        precision,
        level,
        threads: 2,
        verify: true,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph.clone(), &Host::new(), &options).expect("compiles");
    let mut session = Session::new(Arc::new(program));
    let results = session.run(vec![("x", x.clone().into())]).expect("runs");
    match &results[0].1 {
        Value::Tensor(t) => t.to_vec::<f32>().expect("f32"),
        other => panic!("{other:?}"),
    }
}

/// Largest difference over the root mean square.
fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let squares: f32 = want.iter().map(|x| x * x).sum();
    let largest = got.iter().zip(want).map(|(g, w)| (g - w).abs());
    largest.fold(0.0, f32::max) / (squares / want.len().max(1) as f32).sqrt()
}

/// What a precision may cost, in root mean squares of the result.
fn cost(precision: Precision) -> f32 {
    match precision {
        Precision::Model | Precision::F32 => 1e-5,
        Precision::F16 => 5e-3,
        Precision::Bf16 => 4e-2,
        Precision::Int8 => 6e-2,
    }
}

#[test]
fn narrow_products_agree_with_the_interpreter() {
    let cases = [
        (perceptron(), vec![72]),
        (weights_left(), vec![80]),
        (convolution(), vec![16, 9, 7]),
        (recurrent(), vec![2, 24]),
        (attention(), vec![96]),
    ];
    for (graph, rest) in cases {
        for rows in [1, 5, 40] {
            let x = numbers(&[&[rows], &rest[..]].concat(), 9);
            let exact = run(&graph, DeviceSpec::Reference, Precision::F32, 2, &x);
            for precision in [Precision::Bf16, Precision::F16, Precision::Int8] {
                let want = run(&graph, DeviceSpec::Reference, precision, 2, &x);
                let lost = error(&want, &exact);
                let allowed = cost(precision);
                let as_before = graph.name == "recurrent" && precision != Precision::Bf16;
                let narrow = lost > 0.0 || as_before;
                let what = format!("{} {precision:?}: {lost}", graph.name);
                assert!(narrow && lost < allowed, "{what}");
                for level in 0..=3 {
                    let got = run(&graph, DeviceSpec::Cpu, precision, level, &x);
                    let off = error(&got, &want);
                    let what = format!("{} {precision:?} {rows} rows, level {level}", graph.name);
                    // A sum that rounds the other way moves what follows by a step of the narrow type. Convolutions
                    // may stay wider than the interpreter makes them, which takes the activations of 8-bit products as
                    // they are.
                    let wider = graph.name == "convolution" || precision == Precision::Int8;
                    let allowed = if wider { allowed } else { allowed / 3.0 };
                    assert!(off < allowed, "{what}: {off}");
                }
            }
        }
    }
}

/// Largest difference of a graph on the GPU from the interpreter's result at full precision, over the root mean square of
/// that; and whether more than its weights were rounded.
fn on_gpu(graph: &Graph, level: u8, x: &Tensor) -> (f32, bool) {
    let exact = run(graph, DeviceSpec::Reference, Precision::F32, level, x);
    let weights = run(graph, DeviceSpec::Reference, Precision::F16, level, x);
    let got = run(graph, DeviceSpec::Gpu(0), Precision::F16, level, x);
    let wide = run(graph, DeviceSpec::Gpu(0), Precision::F32, level, x);
    assert!(error(&wide, &exact) < 1e-5, "{}", graph.name);
    (error(&got, &exact), error(&got, &weights) > 1e-5)
}

#[test]
fn gpus_that_compute_with_halves_take_activations_of_them() {
    if std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_none() {
        eprintln!("CUPOLA_TEST_REQUIRE_GPU is not set: nothing is checked");
        return;
    }
    let devices = Host::new().devices().expect("devices");
    let features = devices[1].facts.iter().find(|(what, _)| what == "features");
    let has_halves = features.is_some_and(|(_, used)| used.contains("f16"));
    let cases = [
        (perceptron(), vec![72]),
        (weights_left(), vec![80]),
        (convolution(), vec![16, 9, 7]),
        (attention(), vec![96]),
    ];
    for (graph, rest) in cases {
        for rows in [1, 5, 40] {
            let x = numbers(&[&[rows], &rest[..]].concat(), 9);
            for level in 0..=3 {
                let (off, rounded) = on_gpu(&graph, level, &x);
                let what = format!("{} {rows} rows, level {level}", graph.name);
                assert!(off < cost(Precision::F16), "{what}: {off}");
                assert_eq!(rounded, has_halves, "{what}");
            }
        }
    }
}

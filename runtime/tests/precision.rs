//! Products in narrower types: every device against the interpreter, and what the narrower type costs.

mod common;

use common::{attention, convolution, numbers, perceptron, recurrent, weights_left};
use cupola_ir::{Graph, Tensor, Value};
use cupola_passes::Precision;
use cupola_runtime::{
    Attempt, CompileOptions, DeviceSpec, Host, HostOptions, Prober, Program, Session, try_gpu,
};
use std::sync::Arc;

/// Runs a graph of one input `x`, whose first extent is a symbol.
fn run(graph: &Graph, device: DeviceSpec, precision: Precision, level: u8, x: &Tensor) -> Vec<f32> {
    run_on(&Host::new(), graph, device, precision, level, x)
}

fn run_on(
    host: &Host,
    graph: &Graph,
    device: DeviceSpec,
    precision: Precision,
    level: u8,
    x: &Tensor,
) -> Vec<f32> {
    let options = CompileOptions {
        device,
        precision,
        level,
        threads: 2,
        verify: true,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph.clone(), host, &options).expect("compiles");
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

/// Tries features in this process, where that is safe.
#[derive(Debug)]
struct ThisProcess;

impl Prober for ThisProcess {
    fn probe(&self, adapter: usize) -> Result<Attempt, String> {
        let mut text = vec![];
        try_gpu(adapter, &mut text).map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(Attempt { text, cut: None })
    }
}

/// A host with the GPU's matrix units; software adapters are known to survive them at subgroups of eight only.
fn host_with_matrix_units() -> Host {
    let host = Host::new();
    let all = host.devices().expect("devices");
    let fact = |what: &str| {
        let found = all[1].facts.iter().find(|(name, _)| name == what);
        found.map_or(String::new(), |(_, value)| value.clone())
    };
    let is_safe = fact("kind") != "software" || fact("features").contains("subgroups of 8 to 8");
    Host::with(HostOptions {
        prober: is_safe.then(|| -> Arc<dyn Prober> { Arc::new(ThisProcess) }),
        ..HostOptions::default()
    })
}

#[test]
fn gpus_with_matrix_units_take_activations_of_halves() {
    if std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_none() {
        eprintln!("CUPOLA_TEST_REQUIRE_GPU is not set: nothing is checked");
        return;
    }
    let host = host_with_matrix_units();
    let devices = host.devices().expect("devices");
    let kernels = devices[1].facts.iter();
    let has_units = kernels
        .clone()
        .any(|(what, _)| what == "kernels with cooperative matrices");
    let cases = [
        (perceptron(), vec![72]),
        (weights_left(), vec![80]),
        (convolution(), vec![16, 9, 7]),
        (attention(), vec![96]),
    ];
    for (graph, rest) in cases {
        for rows in [1, 5, 40] {
            let x = numbers(&[&[rows], &rest[..]].concat(), 9);
            let interpret = |precision| run(&graph, DeviceSpec::Reference, precision, 2, &x);
            let (exact, weights) = (interpret(Precision::F32), interpret(Precision::F16));
            for level in [0, 2] {
                let on_gpu =
                    |precision| run_on(&host, &graph, DeviceSpec::Gpu(0), precision, level, &x);
                let what = format!("{} {rows} rows, level {level}", graph.name);
                assert!(error(&on_gpu(Precision::F32), &exact) < 1e-5, "{what}");
                let got = on_gpu(Precision::F16);
                assert!(error(&got, &exact) < cost(Precision::F16), "{what}");
                // More than the weights is rounded there.
                assert_eq!(error(&got, &weights) > 1e-5, has_units, "{what}");
            }
        }
    }
}

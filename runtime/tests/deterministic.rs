//! Deterministic programs give the same bits at every vector level with fused multiply-add, and with any number of threads.
//!
//! The level is chosen once in a process, so the test starts itself again for each.

mod common;

use common::{attention, convolution, convolutions, numbers, perceptron, recurrent, stacked};
use cupola_ir::{Graph, Value};
use cupola_passes::{Step, plan};
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::process::Command;
use std::sync::Arc;

fn program(graph: &Graph, threads: usize, level: u8) -> Program {
    let options = CompileOptions {
        device: DeviceSpec::Cpu,
        level,
        threads,
        deterministic: true,
        ..CompileOptions::default()
    };
    Program::compile(graph.clone(), &Host::new(), &options).expect("compiles")
}

/// The bits of the result, by a hash (FNV-1a).
fn digest(graph: &Graph, threads: usize, shape: &[usize]) -> u64 {
    let mut session = Session::new(Arc::new(program(graph, threads, 3)));
    let x = numbers(shape, 21);
    let results = session.run(vec![("x", x.into())]).expect("runs");
    let Value::Tensor(t) = &results[0].1 else {
        panic!("a tensor")
    };
    let values = t.to_vec::<f32>().expect("f32");
    assert!(values.iter().all(|x| x.is_finite()), "{}", graph.name);
    values.iter().fold(0xCBF2_9CE4_8422_2325, |hash, x| {
        (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01B3)
    })
}

#[test]
fn every_run_gives_the_same_bits() {
    let cases: [(Graph, &[usize]); 5] = [
        (perceptron(), &[72]),
        (attention(), &[96]),
        (recurrent(), &[2, 24]),
        (convolution(), &[16, 9, 7]),
        (convolutions(), &[20, 30, 26]),
    ];
    for (graph, rest) in cases {
        for rows in [1, 9, 150] {
            // Images are large; two are enough.
            let rows = if rest.len() == 3 { rows.min(2) } else { rows };
            let shape = [&[rows], rest].concat();
            let alone = digest(&graph, 1, &shape);
            assert_eq!(alone, digest(&graph, 3, &shape), "{} {shape:?}", graph.name);
            println!("digest {} {shape:?} {alone:016x}", graph.name);
        }
    }
}

#[test]
fn independent_layers_run_at_the_same_time() {
    for level in [1, 3] {
        let program = program(&recurrent(), 2, level);
        let compiled = program.compiled().expect("compiled");
        assert_eq!(plan::check_plan(compiled), Vec::<String>::new());
        let groups = &compiled.plan.concurrent;
        assert_eq!(groups.len(), 1, "both directions, without the layer above");
        let names = compiled.plan.steps[groups[0].clone()]
            .iter()
            .map(|step| match step {
                Step::Launch { unit, .. } => compiled.units[*unit].unit.name(),
                other => panic!("{other:?}"),
            });
        assert_eq!(names.collect::<Vec<_>>(), ["composite.recurrent"; 2]);
    }
}

#[test]
fn a_layer_waits_for_the_one_that_it_reads() {
    for level in [1, 3] {
        let program = program(&stacked(), 2, level);
        let compiled = program.compiled().expect("compiled");
        assert_eq!(plan::check_plan(compiled), Vec::<String>::new());
        assert!(compiled.plan.concurrent.is_empty());
    }
}

/// What the test of bits prints at a level; None where the processor lacks it.
fn digests(level: &str) -> Option<Vec<String>> {
    // Not the current executable, which is the loader where one was named.
    let program = std::env::args_os().next().expect("the name of this test");
    let output = Command::new(program)
        .args(["--exact", "every_run_gives_the_same_bits", "--nocapture"])
        .env("CUPOLA_CPU", level)
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("does not have that level") {
        return None;
    }
    assert!(output.status.success(), "{level}: {text}{error}");
    // The first line may follow the test's name.
    let found = |line: &str| line.find("digest ").map(|at| line[at..].to_owned());
    Some(text.lines().filter_map(found).collect())
}

#[test]
fn levels_give_the_same_bits() {
    let [narrow, wide] = ["x86-64-v3", "x86-64-v4"].map(digests);
    if let (Some(narrow), Some(wide)) = (narrow, wide) {
        assert_eq!(narrow.len(), 15);
        assert_eq!(narrow, wide);
    }
}

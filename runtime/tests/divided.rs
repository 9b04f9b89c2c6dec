//! Tensors over the limits of a GPU's bindings and buffers: the same results, seen through several of them.

mod common;

use common::{attention, convolution, convolutions, numbers, perceptron, recurrent, weights_left};
use cupola_ir::ops::{Bounds, Gather, ReduceKind};
use cupola_ir::{DType, Dim, Graph, Scalar, Tensor, TensorType, Value};
use cupola_runtime::{
    CompileOptions, DeviceSpec, Host, HostOptions, MemoryLimits, Program, Session,
};
use half::f16;
use std::sync::Arc;

fn gpu_is_required() -> bool {
    let required = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_some();
    if !required {
        eprintln!("CUPOLA_TEST_REQUIRE_GPU is not set: nothing is checked");
    }
    required
}

fn run(graph: Graph, limits: Option<MemoryLimits>, inputs: Vec<(&str, Tensor)>) -> Vec<Tensor> {
    let host = Host::with(HostOptions {
        memory_limits: limits,
        ..HostOptions::default()
    });
    let options = CompileOptions {
        device: DeviceSpec::Gpu(0),
        threads: 1,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph, &host, &options).expect("compiles");
    let inputs = inputs.into_iter().map(|(name, t)| (name, t.into()));
    let results = Session::new(Arc::new(program)).run(inputs.collect());
    let tensor = |(_, value): (_, Value)| match value {
        Value::Tensor(tensor) => tensor,
        other => panic!("{other:?} is no tensor"),
    };
    let results = results.expect("runs").into_iter();
    results.map(|(name, value)| tensor((name, value))).collect()
}

#[test]
fn kernels_of_every_kind_see_divided_memory() {
    if !gpu_is_required() {
        return;
    }
    let cases: [(Graph, &[usize]); 6] = [
        (perceptron(), &[23, 72]),
        (weights_left(), &[23, 80]),
        (attention(), &[23, 96]),
        (recurrent(), &[5, 2, 24]),
        (convolution(), &[2, 16, 9, 7]),
        (convolutions(), &[1, 20, 30, 26]),
    ];
    for (graph, shape) in cases {
        let name = graph.name.clone();
        let x = numbers(shape, 5);
        let whole = run(graph.clone(), None, vec![("x", x.clone())]);
        for (binding, buffer) in [(16 << 10, 1 << 30), (16 << 10, 32 << 10)] {
            let limits = MemoryLimits { binding, buffer };
            let divided = run(graph.clone(), Some(limits), vec![("x", x.clone())]);
            let values = |t: &Tensor| t.to_vec::<f32>().expect("f32");
            let (got, want) = (values(&divided[0]), values(&whole[0]));
            let largest = want.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                let close = (got - want).abs() <= 1e-5 * largest;
                assert!(close, "{name} {limits:?} [{at}]: {got}, not {want}");
            }
        }
    }
}

/// `y = f(x, x)` of a vector, with its length.
fn double(dtype: DType, f: Scalar) -> Graph {
    let mut g = Graph::new("elementwise");
    let x = g.input("x", TensorType::new(dtype, [Dim::sym("n")]));
    let x = x.expect("input");
    let y = g.binary(f, x, x).expect("doubled");
    g.output("y", y);
    g
}

#[test]
fn bytes_and_halves_are_stored_over_a_window_edge() {
    if !gpu_is_required() {
        return;
    }
    // An odd length over 128 MiB.
    let bytes: Vec<u8> = (0..140_000_003u32).map(|i| (i % 127) as u8).collect();
    let x = Tensor::from_slice(&[bytes.len()], &bytes).expect("a vector");
    let y = run(double(DType::U8, Scalar::Add), None, vec![("x", x)]);
    let y = y[0].to_vec::<u8>().expect("bytes");
    assert!(y.iter().zip(&bytes).all(|(y, x)| *y == 2 * x));
    let halves: Vec<f16> = (0..70_000_001u32)
        .map(|i| f16::from_f32((i % 2047) as f32))
        .collect();
    let x = Tensor::from_slice(&[halves.len()], &halves).expect("a vector");
    let y = run(double(DType::F16, Scalar::Add), None, vec![("x", x)]);
    let y = y[0].to_vec::<f16>().expect("halves");
    assert!(
        y.iter()
            .zip(&halves)
            .all(|(y, x)| y.to_f32() == 2.0 * x.to_f32())
    );
}

#[test]
fn a_long_vector_is_scaled_and_summed() {
    if !gpu_is_required() {
        return;
    }
    let len = 40_000_001usize;
    let mut g = Graph::new("sum");
    let x = g.input("x", TensorType::new(DType::I32, [Dim::sym("n")]));
    let x = x.expect("input");
    let y = g.binary(Scalar::Add, x, x).expect("doubled");
    g.output("y", y);
    let sum = g.reduce(ReduceKind::Sum, x, &[0]).expect("a sum");
    g.output("sum", sum);
    let values: Vec<i32> = (0..len as i32).map(|i| i % 101 - 50).collect();
    let x = Tensor::from_slice(&[len], &values).expect("a vector");
    let results = run(g, None, vec![("x", x)]);
    let y = results[0].to_vec::<i32>().expect("i32");
    assert!(y.iter().zip(&values).all(|(y, x)| *y == 2 * x));
    let sum: i32 = values.iter().sum();
    assert_eq!(results[1].to_vec::<i32>().expect("i32"), [sum]);
}

#[test]
fn a_table_and_a_weight_are_larger_than_a_buffer() {
    if !gpu_is_required() {
        return;
    }
    let (rows, cols) = (1_060_001usize, 64usize);
    let mut g = Graph::new("table");
    let of = |row: usize, col: usize| ((row * 7 + col * 3) % 1021) as f32;
    let table: Vec<f32> = (0..rows * cols).map(|i| of(i / cols, i % cols)).collect();
    let table = Tensor::from_slice(&[rows, cols], &table).expect("a matrix");
    let table = g.constant(table).expect("a table");
    let index = g.input("index", TensorType::new(DType::I64, [Dim::sym("n")]));
    let gather = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Check,
    };
    let picked = g
        .one(gather, &[table, index.expect("input")])
        .expect("rows");
    g.output("picked", picked);
    let x = g.input(
        "x",
        TensorType::new(DType::F32, [Dim::sym("m"), cols.into()]),
    );
    // The table is a weight too: a product with its transpose.
    let scores = g.matmul_nt(x.expect("input"), table).expect("a product");
    g.output("scores", scores);
    let picks: Vec<i64> = (0..200).map(|i| i * 5_301 + 1_519).collect();
    let mut one = vec![0f32; cols];
    (one[1], one[63]) = (1.0, 2.0);
    let inputs = vec![
        (
            "index",
            Tensor::from_slice(&[200], &picks).expect("a vector"),
        ),
        ("x", Tensor::from_slice(&[1, cols], &one).expect("a row")),
    ];
    // The limits that WebGPU guarantees.
    let limits = MemoryLimits {
        binding: 128 << 20,
        buffer: 256 << 20,
    };
    let results = run(g, Some(limits), inputs);
    let picked = results[0].to_vec::<f32>().expect("f32");
    for (at, row) in picks.iter().enumerate() {
        for col in 0..cols {
            assert_eq!(
                picked[at * cols + col],
                of(*row as usize, col),
                "{row} {col}"
            );
        }
    }
    let scores = results[1].to_vec::<f32>().expect("f32");
    for (row, score) in scores.iter().enumerate() {
        assert_eq!(*score, of(row, 1) + 2.0 * of(row, 63), "{row}");
    }
}

//! Products in narrower types: every device against the interpreter, and what the narrower type costs.

use cupola_ir::composite::{Cell, Conv, Recurrent};
use cupola_ir::{CompositeOp, DType, Dim, Graph, Op, Scalar, Tensor, TensorType, Value};
use cupola_passes::Precision;
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::sync::Arc;

/// Numbers between -1 and 1, the same at every run.
fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let len: usize = shape.iter().product();
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..len).map(|_| next()).collect();
    Tensor::from_slice(shape, &values).expect("the shape's length")
}

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

/// Two products with something between, a residual connection around them, weights in both orders.
fn perceptron() -> Graph {
    let mut g = Graph::new("perceptron");
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), 72usize.into()]);
    let x = g.input("x", ty).expect("input");
    let first = g.constant(numbers(&[72, 130], 1)).expect("weights");
    let second = g.constant(numbers(&[72, 130], 2)).expect("weights");
    let y = g.matmul(x, first).expect("product");
    let y = g.unary(Scalar::Tanh, y).expect("tanh");
    let y = g.matmul_nt(y, second).expect("product");
    let y = g.binary(Scalar::Add, x, y).expect("sum");
    let y = g.matmul(y, first).expect("product");
    g.output("y", y);
    g
}

/// A product whose weights are the left operand.
fn weights_left() -> Graph {
    let mut g = Graph::new("left");
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), 80usize.into()]);
    let x = g.input("x", ty).expect("input");
    let x = g.permute(x, &[1, 0]).expect("transposed");
    let weights = g.constant(numbers(&[64, 80], 3)).expect("weights");
    let y = g.matmul(weights, x).expect("product");
    g.output("y", y);
    g
}

fn convolution() -> Graph {
    let mut g = Graph::new("convolution");
    let ty = TensorType::new(
        DType::F32,
        [Dim::sym("n"), 16usize.into(), 9usize.into(), 7usize.into()],
    );
    let x = g.input("x", ty).expect("input");
    let w = g.constant(numbers(&[36, 16, 3, 3], 4)).expect("weights");
    let op = Op::Composite(CompositeOp::Conv(Conv {
        strides: vec![1, 2],
        dilations: vec![1, 1],
        pads_low: vec![1usize.into(), 0usize.into()],
        pads_high: vec![1usize.into(), 1usize.into()],
        groups: 1,
    }));
    let y = g.one(op, &[x, w]).expect("convolution");
    let zero = g.number_like(0.0, y).expect("zero");
    let y = g.binary(Scalar::Max, y, zero).expect("relu");
    g.output("y", y);
    g
}

/// A layer of long short-term memory over the first axis.
fn recurrent() -> Graph {
    let (input, hidden) = (24usize, 48usize);
    let mut g = Graph::new("recurrent");
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), 2usize.into(), input.into()]);
    let x = g.input("x", ty).expect("input");
    let mut weights = |shape: &[usize], seed| {
        let t = numbers(shape, seed).to_vec::<f32>().expect("f32");
        let small: Vec<f32> = t.iter().map(|w| w / 4.0).collect();
        g.constant(Tensor::from_slice(shape, &small).expect("shape"))
            .expect("weights")
    };
    let w = weights(&[4 * hidden, input], 5);
    let r = weights(&[4 * hidden, hidden], 6);
    let state = weights(&[2, hidden], 7);
    let op = Op::Composite(CompositeOp::Recurrent(Recurrent {
        cell: Cell::Lstm,
        activations: ["sigmoid", "tanh", "tanh"].map(String::from).to_vec(),
        alpha: vec![0.0; 3],
        beta: vec![0.0; 3],
        clip: 0.0,
        input_forget: false,
        linear_before_reset: false,
        reverse: false,
        bias: false,
        lens: false,
        peephole: false,
        quantized: false,
    }));
    let y = g.push(op, &[x, w, r, state, state]).expect("layer");
    g.output("y", y[0]);
    g
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

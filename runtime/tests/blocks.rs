//! Graphs with block-quantised weights on the CPU against the interpreter.

use bytes::Bytes;
use cupola_ir::convert::dequantize;
use cupola_ir::ops::{Bounds, Gather};
use cupola_ir::{
    BlockFormat, CoreOp, DType, Dim, Graph, Op, Scalar, Tensor, TensorType, Value, ValueId,
};
use cupola_passes::Precision;
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::sync::Arc;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = (self.0 ^ (self.0 << 13)) ^ ((self.0 ^ (self.0 << 13)) >> 7);
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 16 & 0xFFFF) as f32 / 32768.0 - 1.0
    }
}

/// Random blocks with numbers of ordinary size.
fn weights(format: BlockFormat, shape: [usize; 2]) -> Tensor {
    let mut rng = Rng(0x1234_5678_9ABC ^ format.block_size() as u64);
    let mut bytes = vec![];
    let mut block = vec![0f32; format.block_len()];
    while bytes.len() < shape[0] * shape[1] / format.block_len() * format.block_size() {
        let codes: Vec<u8> = (0..format.block_size()).map(|_| rng.next() as u8).collect();
        dequantize(format, &codes, &mut block).expect("one block");
        let is_ordinary = |x: &f32| x.is_finite() && x.abs() < 50.0;
        if block.iter().all(is_ordinary) && block.iter().any(|x| x.abs() > 0.01) {
            bytes.extend(codes);
        }
    }
    Tensor::new(DType::Block(format), shape.to_vec(), Bytes::from(bytes)).expect("whole blocks")
}

/// Whether a graph turns a whole matrix of blocks into floats.
fn widens(graph: &Graph) -> bool {
    graph.nodes().any(|(_, node)| {
        let is_blocks = |v: &ValueId| {
            graph.as_const(*v).is_some() && matches!(graph.dtype(*v), DType::Block(_))
        };
        matches!(node.op, Op::Core(CoreOp::Cast(_))) && node.operands.iter().any(is_blocks)
    })
}

fn run(
    graph: &Graph,
    device: DeviceSpec,
    precision: Precision,
    level: u8,
    x: &Tensor,
) -> (Vec<f32>, bool) {
    let options = CompileOptions {
        device,
        precision,
        level,
        threads: 2,
        verify: true,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph.clone(), &Host::new(), &options).expect("compiles");
    let widens = program.compiled().is_some_and(|c| widens(&c.graph));
    let mut session = Session::new(Arc::new(program));
    let results = session.run(vec![("x", x.clone().into())]).expect("runs");
    match &results[0].1 {
        Value::Tensor(t) => (t.to_vec::<f32>().expect("f32"), widens),
        other => panic!("{other:?}"),
    }
}

/// Root of the mean squared difference over the root mean square.
fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let pairs = got
        .iter()
        .zip(want)
        .map(|(g, w)| (f64::from(g - w), f64::from(*w)));
    let (off, all) = pairs.fold((0.0, 0.0), |(d, s), (x, w)| (d + x * x, s + w * w));
    (off / all).sqrt()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Right,
    Transposed,
    Left,
}

/// `x w^T` and something that is fused behind it.
fn product(format: BlockFormat, order: Order) -> (Graph, usize) {
    // Smaller weights are folded to floats.
    let inner = 512;
    let mut g = Graph::new("product");
    let x = TensorType::new(DType::F32, [Dim::sym("n"), inner.into()]);
    let x = g.input("x", x).expect("input");
    let w = g.constant(weights(format, [37, inner])).expect("weights");
    let w = g.cast(w, DType::F32).expect("floats");
    let y = match order {
        Order::Right => g.matmul_nt(x, w).expect("product"),
        Order::Transposed => {
            let w = g.permute(w, &[1, 0]).expect("transposed");
            g.matmul(x, w).expect("product")
        }
        Order::Left => {
            let x = g.permute(x, &[1, 0]).expect("transposed");
            g.matmul(w, x).expect("product")
        }
    };
    let two = g.number_like(2.0, y).expect("number");
    let y = g.binary(Scalar::Mul, y, two).expect("twice");
    g.output("y", y);
    (g, inner)
}

fn activations(rows: usize, inner: usize) -> Tensor {
    let mut rng = Rng(77);
    let x: Vec<f32> = (0..rows * inner).map(|_| rng.float()).collect();
    Tensor::from_slice(&[rows, inner], &x).expect("shape")
}

#[test]
fn every_format_agrees_with_the_interpreter() {
    for &(format, ..) in BlockFormat::TABLE {
        let (graph, inner) = product(format, Order::Right);
        for rows in [1, 5] {
            let x = activations(rows, inner);
            let (want, _) = run(&graph, DeviceSpec::Reference, Precision::Model, 2, &x);
            for (precision, allowed) in [(Precision::F32, 2e-6), (Precision::Model, 1e-2)] {
                let (got, widens) = run(&graph, DeviceSpec::Cpu, precision, 2, &x);
                let off = error(&got, &want);
                assert!(off < allowed, "{format:?} {precision:?} {rows} rows: {off}");
                let rounds = precision == Precision::Model;
                assert_eq!(off > 1e-5, rounds, "{format:?} {precision:?}: {off}");
                assert!(!widens, "{format:?}");
            }
        }
    }
}

#[test]
fn weights_are_found_in_any_order() {
    for order in [Order::Right, Order::Transposed, Order::Left] {
        let (graph, inner) = product(BlockFormat::Q4_K, order);
        let x = activations(4, inner);
        let (want, _) = run(&graph, DeviceSpec::Reference, Precision::F32, 2, &x);
        for level in 0..=3 {
            let (got, widens) = run(&graph, DeviceSpec::Cpu, Precision::F32, level, &x);
            assert!(error(&got, &want) < 2e-6, "{order:?}, level {level}");
            assert_eq!(widens, level < 2, "{order:?}, level {level}");
        }
    }
}

/// Rows of a matrix by number, multiplied by the same matrix.
#[test]
fn tied_weights_are_never_widened_as_a_whole() {
    let mut g = Graph::new("tied");
    let x = TensorType::new(DType::I64, [Dim::sym("n")]);
    let x = g.input("x", x).expect("input");
    let w = g
        .constant(weights(BlockFormat::Q4_1, [300, 64]))
        .expect("weights");
    let w = g.cast(w, DType::F32).expect("floats");
    let gather = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Check,
    };
    let rows = g.one(gather, &[w, x]).expect("rows");
    let y = g.matmul_nt(rows, w).expect("product");
    g.output("y", y);
    let x = Tensor::from_slice(&[3], &[7i64, 299, 0]).expect("shape");
    let (want, _) = run(&g, DeviceSpec::Reference, Precision::F32, 2, &x);
    let (got, widens) = run(&g, DeviceSpec::Cpu, Precision::F32, 2, &x);
    assert!(error(&got, &want) < 2e-6);
    assert!(!widens);
    let (rounded, _) = run(&g, DeviceSpec::Cpu, Precision::Model, 2, &x);
    assert!(error(&rounded, &want) < 1e-2);
}

//! Types of values after autocast, by the classes of PyTorch for GPUs.

use cupola_ir::composite::{Attention, Conv, CrossEntropy, Gelu, LayerNorm, Softmax};
use cupola_ir::eval::{self, Env};
use cupola_ir::ops::{ReadState, ReduceKind, WriteState};
use cupola_ir::{DType, Dim, Graph, Op, Scalar, StateSlot, Tensor, TensorType, ValueId, convert};
use cupola_passes::autocast;

fn input(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    let ty = TensorType::new(DType::F32, shape.iter().copied());
    g.input(name, ty).expect("an input")
}

/// A weight that is a state slot.
fn weight(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    let ty = TensorType::new(DType::F32, shape.iter().copied());
    let len = shape.iter().product();
    let initial = Tensor::from_slice(shape, &vec![0.5f32; len]).expect("as many elements");
    g.slots.insert(
        name.into(),
        StateSlot {
            ty: ty.clone().into(),
            initial,
        },
    );
    let read = ReadState {
        slot: name.into(),
        ty: ty.into(),
    };
    g.one(read, &[]).expect("a slot")
}

fn composite(
    g: &mut Graph,
    op: impl Into<cupola_ir::CompositeOp>,
    operands: &[ValueId],
) -> ValueId {
    g.push(Op::Composite(op.into()), operands).expect("an op")[0]
}

/// A graph with some of everything: values by name.
fn model() -> (Graph, Vec<(&'static str, ValueId, DType)>) {
    use DType::{BF16, F32};
    let mut g = Graph::new("model");
    let mut all = vec![];
    let x = input(&mut g, "x", &[2, 4]);
    let w = weight(&mut g, "w", &[4, 4]);
    let b = weight(&mut g, "b", &[4]);
    let y = g.matmul_nt(x, w).unwrap();
    all.push(("product", y, BF16));
    let y = g.binary(Scalar::Add, y, b).unwrap();
    all.push(("product and bias", y, BF16));
    let zero = g.number(0.0, F32).unwrap();
    let y = g.binary(Scalar::Max, y, zero).unwrap();
    all.push(("relu", y, BF16));
    let half = g.scale(y, 0.5).unwrap();
    all.push(("times a number", half, BF16));
    let sum = g.binary(Scalar::Add, half, x).unwrap();
    all.push(("sum with f32", sum, F32));
    let joined = g.concat(&[half, x], 0).unwrap();
    all.push(("join with f32", joined, F32));
    let scaled = g.binary(Scalar::Mul, half, b).unwrap();
    all.push(("times a weight", scaled, F32));
    let turned = g.permute(half, &[1, 0]).unwrap();
    all.push(("view", turned, BF16));
    let again = g.matmul_nt(half, w).unwrap();
    all.push(("second product", again, BF16));
    let op = Softmax {
        axis: 1,
        log: false,
    };
    all.push(("softmax", composite(&mut g, op, &[half]), F32));
    let op = LayerNorm {
        axis: 1,
        epsilon: 1e-5,
        stats: false,
    };
    all.push(("layer norm", composite(&mut g, op, &[half, b, b]), F32));
    all.push((
        "gelu",
        composite(&mut g, Gelu { tanh: false }, &[half]),
        BF16,
    ));
    all.push(("exp", g.unary(Scalar::Exp, half).unwrap(), F32));
    all.push(("tanh", g.unary(Scalar::Tanh, half).unwrap(), BF16));
    all.push(("sum", g.reduce(ReduceKind::Sum, half, &[1]).unwrap(), F32));
    all.push(("max", g.reduce(ReduceKind::Max, half, &[1]).unwrap(), BF16));
    let classes = g.constant(Tensor::vector(&[1i64, 0])).unwrap();
    let op = CrossEntropy {
        axis: 1,
        soft: false,
        ignore: -1,
        smoothing: 0.0,
    };
    all.push((
        "cross-entropy",
        composite(&mut g, op, &[half, classes]),
        F32,
    ));
    let image = input(&mut g, "image", &[1, 2, 3, 3]);
    let kernel = weight(&mut g, "kernel", &[2, 2, 2, 2]);
    let conv = Conv {
        strides: vec![1, 1],
        dilations: vec![1, 1],
        pads_low: vec![Dim::ZERO; 2],
        pads_high: vec![Dim::ZERO; 2],
        groups: 1,
    };
    all.push((
        "convolution",
        composite(&mut g, conv, &[image, kernel]),
        BF16,
    ));
    let q = g.reshape(half, &[1, 1, 2, 4].map(Dim::Const)).unwrap();
    let mask = input(&mut g, "mask", &[2, 2]);
    let op = Attention {
        scale: 0.5,
        causal: true,
        softcap: 0.0,
    };
    all.push(("attention", composite(&mut g, op, &[q, q, q, mask]), BF16));
    let wide = input(&mut g, "wide", &[2, 2]);
    let wide = g.cast(wide, DType::F64).unwrap();
    let product = g.matmul(wide, wide).unwrap();
    all.push(("product of f64", product, DType::F64));
    (g, all)
}

#[test]
fn every_op_is_of_its_class() {
    let (mut g, values) = model();
    let map = autocast(&mut g, DType::BF16).expect("casts");
    for (name, value, want) in values {
        assert_eq!(g.dtype(map[value.index()]), want, "{name}");
    }
}

#[test]
fn weights_are_converted_once_and_outputs_keep_their_type() {
    let (mut g, values) = model();
    for (name, value, _) in &values {
        g.output(name, *value);
    }
    let before = g.output_types();
    autocast(&mut g, DType::F16).expect("casts");
    g.compact().expect("an order");
    cupola_ir::verify(&g).expect("a sound graph");
    assert_eq!(g.output_types(), before);
    let of_weight = |name: &str| {
        let read = g.nodes().find_map(|(_, n)| match &n.op {
            Op::Core(cupola_ir::CoreOp::ReadState(p)) if p.slot == name => Some(n.results[0]),
            _ => None,
        });
        let read = read.expect("the weight");
        g.nodes()
            .filter(|(_, n)| n.operands.contains(&read) && n.op.name() == "cast")
            .count()
    };
    assert_eq!(of_weight("w"), 1);
}

#[test]
fn results_stay_close_and_states_keep_their_type() {
    let (mut plain, values) = model();
    for (name, value, _) in &values {
        plain.output(name, *value);
    }
    let product = values[0].1;
    let next = plain.reduce(ReduceKind::Sum, product, &[0]).unwrap();
    let next = plain.binary(Scalar::Min, next, next).unwrap();
    plain.one(WriteState { slot: "b".into() }, &[next]).unwrap();
    let mut low = plain.clone();
    autocast(&mut low, DType::BF16).expect("casts");
    low.compact().expect("an order");
    let ramp = |shape: &[usize]| {
        let len: usize = shape.iter().product();
        let v: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
        cupola_ir::Value::Tensor(Tensor::from_slice(shape, &v).unwrap())
    };
    let inputs = [
        ramp(&[2, 4]),
        ramp(&[1, 2, 3, 3]),
        ramp(&[2, 2]),
        ramp(&[2, 2]),
    ];
    let run = |g: &Graph| {
        let mut env = Env::default();
        let out = eval::run(g, &inputs, &mut env).expect("runs");
        let b = env.states["b"].as_tensor().expect("a tensor").clone();
        let numbers = |t: &Tensor| convert::lanes(t).expect("numbers").into_f64s();
        let all: Vec<Vec<f64>> = out
            .iter()
            .map(|v| numbers(v.as_tensor().unwrap()))
            .collect();
        (all, b)
    };
    let ((want, b), (got, low_b)) = (run(&plain), run(&low));
    assert_eq!(b.ty(), low_b.ty());
    for ((name, ..), (want, got)) in values.iter().zip(want.iter().zip(&got)) {
        for (w, g) in want.iter().zip(got) {
            assert!(
                (w - g).abs() <= 0.03 * (1.0 + w.abs()),
                "{name}: {g} instead of {w}"
            );
        }
    }
    assert_ne!(want, got);
}

#[test]
fn other_types_are_refused() {
    let (mut g, _) = model();
    assert!(autocast(&mut g, DType::F32).is_err());
}

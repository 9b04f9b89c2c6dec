//! Small graphs with one input `x`, whose first extent is a symbol, and one output `y`.

#![allow(dead_code, reason = "each test uses some")]

use cupola_ir::composite::{Attention, Cell, Conv, Gelu, LayerNorm, Recurrent};
use cupola_ir::{CompositeOp, DType, Dim, Graph, Op, Scalar, Tensor, TensorType, ValueId};

/// Numbers between -1 and 1, the same at every run.
pub fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let len: usize = shape.iter().product();
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..len).map(|_| next()).collect();
    Tensor::from_slice(shape, &values).expect("the shape's length")
}

/// Two products with something between, a residual connection around them, weights in both orders.
pub fn perceptron() -> Graph {
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
pub fn weights_left() -> Graph {
    let mut g = Graph::new("left");
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), 80usize.into()]);
    let x = g.input("x", ty).expect("input");
    let x = g.permute(x, &[1, 0]).expect("transposed");
    let weights = g.constant(numbers(&[64, 80], 3)).expect("weights");
    let y = g.matmul(weights, x).expect("product");
    g.output("y", y);
    g
}

/// A convolution with uneven strides and a relu.
pub fn convolution() -> Graph {
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

/// A layer of long short-term memory over the first axis, both ways, and one more over their sum.
#[allow(dead_code, reason = "for some of the tests")]
pub fn recurrent() -> Graph {
    layers("recurrent", |g, [forward, backward]| {
        g.binary(Scalar::Add, forward, backward).expect("sum")
    })
}

/// As [`recurrent`], but the last layer reads the forward one as it is.
#[allow(dead_code, reason = "for some of the tests")]
pub fn stacked() -> Graph {
    layers("stacked", |_, [forward, _]| forward)
}

/// Two recurrent layers of `x`, one in each direction, and a third over what is made of them.
fn layers(name: &str, joined: impl FnOnce(&mut Graph, [ValueId; 2]) -> ValueId) -> Graph {
    let (input, hidden) = (24usize, 48usize);
    let mut g = Graph::new(name);
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), 2usize.into(), input.into()]);
    let x = g.input("x", ty).expect("input");
    let mut weights = |shape: &[usize], seed| {
        let t = numbers(shape, seed).to_vec::<f32>().expect("f32");
        let small: Vec<f32> = t.iter().map(|w| w / 4.0).collect();
        g.constant(Tensor::from_slice(shape, &small).expect("shape"))
            .expect("weights")
    };
    let operands = [5, 8].map(|seed| {
        let w = weights(&[4 * hidden, input], seed);
        let r = weights(&[4 * hidden, hidden], seed + 1);
        let state = weights(&[2, hidden], seed + 2);
        [x, w, r, state, state]
    });
    let above = weights(&[4 * hidden, hidden], 11);
    let layer = |reverse| {
        Op::Composite(CompositeOp::Recurrent(Recurrent {
            cell: Cell::Lstm,
            activations: ["sigmoid", "tanh", "tanh"].map(String::from).to_vec(),
            alpha: vec![0.0; 3],
            beta: vec![0.0; 3],
            clip: 0.0,
            input_forget: false,
            linear_before_reset: false,
            reverse,
            bias: false,
            lens: false,
            peephole: false,
            quantized: false,
        }))
    };
    let [forward, backward] = [false, true].map(|reverse| {
        let operands = &operands[usize::from(reverse)];
        g.push(layer(reverse), operands).expect("layer")[0]
    });
    let sum = joined(&mut g, [forward, backward]);
    let [_, _, r, state, _] = operands[0];
    let y = g.push(layer(false), &[sum, above, r, state, state]);
    g.output("y", y.expect("layer")[0]);
    g
}

/// A convolution of 3 by 3 windows that move by one, another over single channels, a third of single pixels.
pub fn convolutions() -> Graph {
    let mut g = Graph::new("convolutions");
    let ty = TensorType::new(
        DType::F32,
        [
            Dim::sym("n"),
            20usize.into(),
            30usize.into(),
            26usize.into(),
        ],
    );
    let x = g.input("x", ty).expect("input");
    let mut layer = |x, shape: [usize; 4], groups: usize| {
        let w = g.constant(numbers(&shape, groups as u32)).expect("weights");
        let pads = vec![Dim::from(shape[2] / 2); 2];
        let op = Op::Composite(CompositeOp::Conv(Conv {
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads_low: pads.clone(),
            pads_high: pads,
            groups,
        }));
        let y = g.one(op, &[x, w]).expect("convolution");
        let zero = g.number_like(0.0, y).expect("zero");
        g.binary(Scalar::Max, y, zero).expect("relu")
    };
    let y = layer(x, [40, 20, 3, 3], 1);
    let y = layer(y, [40, 1, 3, 3], 40);
    let y = layer(y, [24, 40, 1, 1], 1);
    g.output("y", y);
    g
}

/// A layer of a transformer: normalisation, attention of four heads, and an activated product, each with what went in added.
pub fn attention() -> Graph {
    let (width, heads) = (96usize, 4usize);
    let mut g = Graph::new("attention");
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), width.into()]);
    let x = g.input("x", ty).expect("input");
    let weights = |g: &mut Graph, cols: usize, seed| {
        let t = numbers(&[width, cols], seed).to_vec::<f32>().expect("f32");
        let small: Vec<f32> = t.iter().map(|w| w / 5.0).collect();
        let t = Tensor::from_slice(&[width, cols], &small).expect("shape");
        g.constant(t).expect("weights")
    };
    let norm = |g: &mut Graph, x| {
        let op = LayerNorm {
            axis: 1,
            epsilon: 1e-5,
            stats: false,
        };
        g.one(Op::Composite(CompositeOp::LayerNorm(op)), &[x])
            .expect("norm")
    };
    let rows = || Dim::sym("n");
    let normal = norm(&mut g, x);
    let mut inputs = vec![];
    for seed in [11, 12, 13] {
        let w = weights(&mut g, width, seed);
        let y = g.matmul(normal, w).expect("product");
        let dims = [Dim::ONE, rows(), heads.into(), (width / heads).into()];
        let y = g.reshape(y, &dims).expect("heads");
        inputs.push(g.permute(y, &[0, 2, 1, 3]).expect("heads first"));
    }
    let op = Attention {
        scale: 0.2,
        causal: false,
        softcap: 0.0,
    };
    let y = g
        .one(Op::Composite(CompositeOp::Attention(op)), &inputs)
        .expect("attention");
    let y = g.permute(y, &[0, 2, 1, 3]).expect("heads last");
    let y = g.reshape(y, &[rows(), width.into()]).expect("merged");
    let w = weights(&mut g, width, 14);
    let y = g.matmul(y, w).expect("product");
    let y = g.binary(Scalar::Add, x, y).expect("sum");
    let w = weights(&mut g, 3 * width, 15);
    let normal = norm(&mut g, y);
    let inner = g.matmul(normal, w).expect("product");
    let op = Op::Composite(CompositeOp::Gelu(Gelu { tanh: false }));
    let inner = g.one(op, &[inner]).expect("gelu");
    let back = g.permute(w, &[1, 0]).expect("transposed");
    let inner = g.matmul(inner, back).expect("product");
    let y = g.binary(Scalar::Add, y, inner).expect("sum");
    g.output("y", y);
    g
}

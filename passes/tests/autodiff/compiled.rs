//! Gradient graphs through the pipeline: the same numbers before and after, by the kernels where there are no regions.

use crate::check::{Given, floats, indices, weighted_sum};
use crate::support;
use cupola_ir::composite::*;
use cupola_ir::eval::{self, Env};
use cupola_ir::ops::*;
use cupola_ir::{
    DType, Dim, Graph, Op, Result, Scalar, Target, Tensor, TensorType, Value, ValueId,
};
use cupola_passes::autodiff::gradients;
use cupola_passes::{Level, Options, compile};

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::from(*n)).collect()
}

type Build<'a> = &'a dyn Fn(&mut Graph, &[ValueId]) -> Result<ValueId>;

/// The loss and its gradients for all float operands, in f32.
fn training(given: &[Given], build: Build) -> Graph {
    let mut g = Graph::new("training");
    let inputs: Vec<ValueId> = (given.iter().enumerate())
        .map(|(i, x)| {
            let dtype = if x.differs { DType::F32 } else { DType::I64 };
            g.input(&format!("x{i}"), TensorType::new(dtype, x.dims.clone()))
                .unwrap()
        })
        .collect();
    let wrt: Vec<ValueId> = (inputs.iter().zip(given))
        .filter(|(_, x)| x.differs)
        .map(|(v, _)| *v)
        .collect();
    let y = build(&mut g, &inputs).unwrap();
    let loss = weighted_sum(&mut g, y, 0.3).unwrap();
    let loss = g.cast(loss, DType::F32).unwrap();
    let grads = gradients(&mut g, loss, &wrt).unwrap();
    g.output("loss", loss);
    for (i, v) in grads.into_iter().enumerate() {
        g.output(&format!("d{i}"), v.unwrap());
    }
    g.compact().unwrap();
    g
}

fn values(given: &[Given]) -> Vec<Tensor> {
    let narrow = |x: &Given| match x.value.to_vec::<f64>() {
        Some(v) => {
            let v: Vec<f32> = v.into_iter().map(|v| v as f32).collect();
            Tensor::from_slice(x.value.shape(), &v).unwrap()
        }
        None => x.value.clone(),
    };
    given.iter().map(narrow).collect()
}

fn interpreted(g: &Graph, given: &[Tensor]) -> Vec<Tensor> {
    let inputs: Vec<Value> = given.iter().cloned().map(Value::Tensor).collect();
    let out = eval::run(g, &inputs, &mut Env::default()).expect("runs");
    out.iter().map(|v| v.as_tensor().unwrap().clone()).collect()
}

/// Compares the graph after all passes with the graph before them, for a device with kernels for everything, for products
/// only, and for nothing.
fn same_after_passes(what: &str, g: &Graph, given: &[Given]) {
    let given = values(given);
    let want = interpreted(g, &given);
    let targets = [support::nothing, support::products, support::everything].map(support::target);
    for target in &targets {
        for level in [Level::Separate, Level::Merge] {
            let options = Options {
                level,
                verify: true,
                ..Options::default()
            };
            let compiled = compile(g.clone(), &[target], &options).expect("compiles");
            let got = interpreted(&compiled.graph, &given);
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let (got, want) = (got.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
                assert_eq!(got.len(), want.len());
                let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (a, b) in got.iter().zip(&want) {
                    assert!(
                        (a - b).abs() <= 1e-5 * (1.0 + most),
                        "{what} {k}: {a} should be {b}"
                    );
                }
            }
        }
    }
}

fn same_as_kernels(g: &Graph, target: &Target, given: &[Given], syms: &[(&str, i64)]) {
    let inputs: Vec<support::T> = (values(given).iter())
        .map(|t| support::T {
            dtype: t.dtype(),
            shape: t.shape().to_vec(),
            v: support::reference::elements(t),
        })
        .collect();
    support::check(g, target, &inputs, syms);
}

/// The summed negative logarithm of the softmax at the labels.
fn cross_entropy(g: &mut Graph, scores: ValueId, labels: ValueId) -> Result<ValueId> {
    let log = g.one(
        Op::Composite(Softmax { axis: 1, log: true }.into()),
        &[scores],
    )?;
    let gather = Gather {
        axes: vec![1],
        batch: 1,
        bounds: Bounds::Check,
    };
    let picked = g.one(gather, &[log, labels])?;
    g.unary(Scalar::Neg, picked)
}

fn relu(g: &mut Graph, x: ValueId) -> Result<ValueId> {
    let zero = g.number_like(0.0, x)?;
    g.binary(Scalar::Max, x, zero)
}

fn linear(g: &mut Graph, x: ValueId, w: ValueId, b: ValueId) -> Result<ValueId> {
    let y = g.matmul_nt(x, w)?;
    g.binary(Scalar::Add, y, b)
}

#[test]
fn a_perceptron() {
    let given = [
        floats(&[5, 6], 1).named(&["n", "i"]),
        floats(&[4, 6], 2),
        floats(&[4], 3),
        floats(&[3, 4], 4),
        floats(&[3], 5),
        indices(&[5], &[0, 2, 1, 1, 0]).named(&["n"]),
    ];
    let g = training(&given, &|g, x| {
        let h = linear(g, x[0], x[1], x[2])?;
        let h = relu(g, h)?;
        let y = linear(g, h, x[3], x[4])?;
        cross_entropy(g, y, x[5])
    });
    same_after_passes("perceptron", &g, &given);
    let target = support::target(support::products);
    same_as_kernels(&g, &target, &given, &[("n", 5), ("i", 6)]);
}

#[test]
fn a_convolutional_network() {
    let given = [
        floats(&[2, 1, 8, 8], 1),
        floats(&[3, 1, 3, 3], 2),
        floats(&[4, 3, 3, 3], 3),
        floats(&[3, 16], 4),
        floats(&[3], 5),
        indices(&[2], &[2, 0]),
    ];
    let g = training(&given, &|g, x| {
        let conv = |pad: i64| Conv {
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads_low: vec![Dim::Const(pad); 2],
            pads_high: vec![Dim::Const(pad); 2],
            groups: 1,
        };
        let h = g.one(Op::Composite(conv(1).into()), &[x[0], x[1]])?;
        let h = relu(g, h)?;
        let h = g.one(Op::Composite(conv(0).into()), &[h, x[2]])?;
        let window = Window {
            axes: vec![2, 3],
            sizes: dims(&[2, 2]),
            strides: vec![3, 3],
            dilations: vec![1, 1],
        };
        let h = g.one(window, &[h])?;
        let h = g.reduce(ReduceKind::Max, h, &[4, 5])?;
        let h = g.reshape(h, &dims(&[2, 16]))?;
        let y = linear(g, h, x[3], x[4])?;
        cross_entropy(g, y, x[5])
    });
    same_after_passes("network", &g, &given);
    same_as_kernels(&g, &support::target(support::products), &given, &[]);
}

#[test]
fn an_attention_block() {
    let given = [
        floats(&[2, 3, 4], 1).named(&["b", "t", "d"]),
        floats(&[12, 4], 2),
        floats(&[4, 4], 3),
        floats(&[4], 4),
        floats(&[4], 5),
    ];
    let g = training(&given, &|g, x| {
        let norm = LayerNorm {
            axis: 2,
            epsilon: 1e-5,
            stats: false,
        };
        let h = g.one(Op::Composite(norm.into()), &[x[0], x[3], x[4]])?;
        let qkv = g.matmul_nt(h, x[1])?;
        let (b, t) = (g.dim(x[0], 0), g.dim(x[0], 1));
        let two = Dim::from(2usize);
        let mut heads = vec![];
        for k in 0..3i64 {
            let part = g.slice_axis(qkv, 2, &Dim::Const(k * 4), &Dim::Const(4))?;
            let part = g.reshape(part, &[b.clone(), t.clone(), two.clone(), two.clone()])?;
            heads.push(g.permute(part, &[0, 2, 1, 3])?);
        }
        let attention = Attention {
            scale: 0.7,
            causal: true,
            softcap: 0.0,
        };
        let y = g.one(Op::Composite(attention.into()), &heads)?;
        let y = g.permute(y, &[0, 2, 1, 3])?;
        let y = g.reshape(y, &[b, t, Dim::from(4usize)])?;
        let y = g.matmul_nt(y, x[2])?;
        let y = g.binary(Scalar::Add, y, x[0])?;
        g.one(Op::Composite(Gelu { tanh: true }.into()), &[y])
    });
    same_after_passes("attention", &g, &given);
    let target = support::target(support::products);
    same_as_kernels(&g, &target, &given, &[("b", 2), ("t", 3), ("d", 4)]);
}

#[test]
fn a_recurrent_network() {
    let given = [
        floats(&[7, 3], 1),
        indices(&[4, 2], &[1, 6, 0, 1, 3, 3, 2, 5]).named(&["t", "b"]),
        floats(&[8, 3], 2),
        floats(&[8, 2], 3),
        floats(&[16], 4),
        floats(&[7, 2], 5),
    ];
    let g = training(&given, &|g, x| {
        let gather = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        let e = g.one(gather, &[x[0], x[1]])?;
        let b = g.dim(x[1], 1);
        let zero = g.number_like(0.0, e)?;
        let zero = g.broadcast_to(zero, &[b, Dim::from(2usize)])?;
        let lstm = Recurrent {
            cell: Cell::Lstm,
            activations: ["sigmoid", "tanh", "tanh"].map(String::from).to_vec(),
            alpha: vec![],
            beta: vec![],
            clip: 0.0,
            input_forget: false,
            linear_before_reset: false,
            reverse: false,
            bias: true,
            lens: false,
            peephole: false,
            quantized: false,
        };
        let y = g.push(
            Op::Composite(lstm.into()),
            &[e, x[2], x[3], zero, zero, x[4]],
        )?[0];
        g.matmul_nt(y, x[5])
    });
    same_after_passes("lstm", &g, &given);
}

//! Gradients through 16-bit floats beside those in f32: close, of the values' own types, finite.

use crate::check::{Given, floats, weighted_sum};
use cupola_ir::composite::*;
use cupola_ir::eval::{self, Env};
use cupola_ir::ops::Contract;
use cupola_ir::{DType, Dim, Graph, Op, Result, Scalar, Tensor, TensorType, Value, ValueId};
use cupola_passes::autodiff::gradients;

type Build<'a> = &'a dyn Fn(&mut Graph, &[ValueId], DType) -> Result<ValueId>;

/// Gradients for f32 operands of what is built with parts of the given type.
fn grads(given: &[Given], build: Build, dtype: DType) -> Vec<Vec<f32>> {
    let mut g = Graph::new("narrow");
    let inputs: Vec<ValueId> = (given.iter().enumerate())
        .map(|(i, x)| {
            let ty = TensorType::new(DType::F32, x.dims.clone());
            g.input(&format!("x{i}"), ty).unwrap()
        })
        .collect();
    let y = build(&mut g, &inputs, dtype).unwrap();
    let loss = weighted_sum(&mut g, y, 0.3).unwrap();
    let found = gradients(&mut g, loss, &inputs).unwrap();
    for (i, v) in found.into_iter().enumerate() {
        let v = v.expect("a gradient");
        assert_eq!(g.dtype(v), DType::F32);
        g.output(&format!("d{i}"), v);
    }
    g.compact().unwrap();
    cupola_ir::verify(&g).unwrap();
    let values = given.iter().map(|x| {
        let v: Vec<f64> = x.value.to_vec().unwrap();
        let v: Vec<f32> = v.into_iter().map(|v| v as f32).collect();
        Value::from(Tensor::from_slice(x.value.shape(), &v).unwrap())
    });
    let out = eval::run(&g, &values.collect::<Vec<_>>(), &mut Env::default()).unwrap();
    let numbers = out.iter().map(|v| v.as_tensor().unwrap().to_vec().unwrap());
    numbers.collect()
}

fn close(what: &str, given: &[Given], build: Build) {
    let want = grads(given, build, DType::F32);
    for (dtype, part) in [(DType::BF16, 0.05), (DType::F16, 0.01)] {
        let got = grads(given, build, dtype);
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in got.iter().zip(want) {
                assert!(
                    (a - b).abs() <= part * (0.1 + most),
                    "{what} in {dtype}, operand {k}: {a} should be about {b}"
                );
            }
        }
    }
}

#[test]
fn all_in_one_narrow_type() {
    let one = |op: CompositeOp| {
        move |g: &mut Graph, x: &[ValueId], dtype: DType| {
            let x: Vec<ValueId> = (x.iter())
                .map(|v| g.cast(*v, dtype))
                .collect::<Result<_>>()?;
            Ok(g.push(Op::Composite(op.clone()), &x)?[0])
        }
    };
    let norm = LayerNorm {
        axis: 1,
        epsilon: 1e-5,
        stats: false,
    };
    let three = [floats(&[3, 6], 1), floats(&[6], 2), floats(&[6], 3)];
    close("layer_norm", &three, &one(norm.into()));
    close(
        "softmax",
        &three[..1],
        &one(Softmax {
            axis: 1,
            log: false,
        }
        .into()),
    );
    close(
        "log_softmax",
        &three[..1],
        &one(Softmax { axis: 1, log: true }.into()),
    );
    close("gelu", &three[..1], &one(Gelu { tanh: false }.into()));
    let attention = Attention {
        scale: 0.7,
        causal: true,
        softcap: 0.0,
    };
    let heads = [1, 2, 3].map(|s| floats(&[1, 2, 4, 3], s));
    close("attention", &heads, &one(attention.into()));
    close(
        "matmul",
        &[floats(&[3, 4], 1), floats(&[4, 5], 2)],
        &|g, x, dtype| {
            let (a, b) = (g.cast(x[0], dtype)?, g.cast(x[1], dtype)?);
            let y = g.matmul(a, b)?;
            g.binary(Scalar::Mul, y, y)
        },
    );
}

#[test]
fn products_of_narrow_factors_with_wide_results() {
    close(
        "contract",
        &[floats(&[3, 4], 1), floats(&[5, 4], 2)],
        &|g, x, dtype| {
            let (a, b) = (g.cast(x[0], dtype)?, g.cast(x[1], dtype)?);
            let contract = Contract {
                lhs_batch: vec![],
                rhs_batch: vec![],
                lhs_contract: vec![1],
                rhs_contract: vec![1],
                accum: DType::F32,
                out: DType::F32,
            };
            g.one(contract, &[a, b])
        },
    );
    for stride in [1, 2] {
        let conv = Conv {
            strides: vec![stride],
            dilations: vec![1],
            pads_low: vec![Dim::ONE],
            pads_high: vec![Dim::ONE],
            groups: 1,
        };
        close(
            "conv",
            &[floats(&[2, 3, 6], 1), floats(&[4, 3, 3], 2)],
            &|g, x, dtype| {
                let w = g.cast(x[1], dtype)?;
                g.one(Op::Composite(conv.clone().into()), &[x[0], w])
            },
        );
    }
    let given = [
        floats(&[3, 2, 3], 1),
        floats(&[8, 3], 2),
        floats(&[8, 2], 3),
        floats(&[2, 2], 4),
        floats(&[2, 2], 5),
        floats(&[16], 6),
    ];
    close("lstm", &given, &|g, x, dtype| {
        let lstm = Recurrent {
            cell: Cell::Lstm,
            activations: ["sigmoid", "tanh", "tanh"].map(String::from).to_vec(),
            alpha: vec![],
            beta: vec![],
            clip: 0.0,
            input_forget: false,
            linear_before_reset: false,
            reverse: true,
            bias: true,
            lens: false,
            peephole: false,
            quantized: false,
        };
        let (w, r) = (g.cast(x[1], dtype)?, g.cast(x[2], dtype)?);
        let operands = [x[0], w, r, x[3], x[4], x[5]];
        Ok(g.push(Op::Composite(lstm.into()), &operands)?[0])
    });
}

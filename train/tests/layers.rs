//! Every layer's result and gradients beside those of PyTorch (`fixtures/make.py`), on the reference interpreter.

#[path = "../../passes/tests/support/mod.rs"]
mod plans;
mod support;

use cupola_ir::composite::Cell;
use cupola_ir::eval::Env;
use cupola_ir::ops::CoreOp;
use cupola_ir::{DType, Dim, Graph, Op, Tensor, ValueId};
use cupola_passes::autodiff::vjp;
use cupola_train::layers::{
    BatchNorm, Conv, ConvTranspose, Embedding, Pool, Recurrent, SelfAttention,
};
use cupola_train::{Net, Result};
use std::collections::BTreeMap;
use support::fixture::Fixture;
use support::{close, each, numbers, run};

/// Appends a layer without a name.
type Layer = fn(&mut Net, ValueId) -> Result<ValueId>;

fn conv2d_groups() -> Conv {
    Conv {
        stride: vec![2, 1],
        padding: vec![1],
        dilation: vec![1, 2],
        groups: 2,
        bias: false,
        ..Conv::new(6, [3, 2])
    }
}

fn transposed() -> ConvTranspose {
    ConvTranspose {
        conv: Conv {
            stride: vec![2],
            padding: vec![1],
            ..Conv::new(2, [3])
        },
        output_padding: vec![1],
    }
}

fn transposed_groups() -> ConvTranspose {
    ConvTranspose {
        conv: Conv {
            stride: vec![2],
            groups: 2,
            dilation: vec![1, 2],
            ..Conv::new(6, [3, 2])
        },
        output_padding: vec![0],
    }
}

/// Windows of 3 at a distance of 2 with a border of 1, their number rounded up.
fn wide_pool() -> Pool {
    Pool {
        stride: vec![2],
        padding: vec![1],
        ceil: true,
        ..Pool::new([3, 3])
    }
}

fn norm1d() -> BatchNorm {
    BatchNorm {
        momentum: 0.3,
        epsilon: 1e-3,
        affine: true,
    }
}

fn stacked(cell: Cell) -> Recurrent {
    Recurrent {
        layers: 2,
        bidirectional: true,
        ..Recurrent::new(cell, 4)
    }
}

fn attention(causal: bool) -> SelfAttention {
    SelfAttention {
        heads: 2,
        causal,
        bias: !causal,
        dropout: 0.0,
    }
}

const LAYERS: &[(&str, Layer)] = &[
    ("linear", |n, x| n.linear("", x, 3)),
    ("linear_steps", |n, x| n.linear("", x, 3)),
    ("linear_no_bias", |n, x| n.linear_without_bias("", x, 3)),
    ("embedding", |n, x| {
        n.embedding("", x, &Embedding::new(7, 3))
    }),
    ("embedding_padding", |n, x| {
        let padding = Some(2);
        n.embedding(
            "",
            x,
            &Embedding {
                padding,
                ..Embedding::new(7, 3)
            },
        )
    }),
    ("conv1d", |n, x| {
        n.conv("", x, &Conv::new(4, [3]).stride(2).padding(1))
    }),
    ("conv2d", |n, x| n.conv("", x, &Conv::new(4, [3, 3]))),
    ("conv2d_groups", |n, x| n.conv("", x, &conv2d_groups())),
    ("conv3d", |n, x| {
        n.conv("", x, &Conv::new(3, [2, 2, 2]).padding(1))
    }),
    ("conv_transpose1d", |n, x| {
        n.conv_transpose("", x, &transposed())
    }),
    ("conv_transpose2d", |n, x| {
        n.conv_transpose("", x, &transposed_groups())
    }),
    ("conv_transpose3d", |n, x| {
        let mut t = ConvTranspose::new(2, [2, 2, 2]);
        t.conv.stride = vec![2];
        n.conv_transpose("", x, &t)
    }),
    ("max_pool2d", |n, x| n.max_pool(x, &wide_pool())),
    ("max_pool2d_plain", |n, x| n.max_pool(x, &Pool::new([2, 2]))),
    ("max_pool1d_dilated", |n, x| {
        let (stride, dilation) = (vec![1], vec![2]);
        n.max_pool(
            x,
            &Pool {
                stride,
                dilation,
                ..Pool::new([2])
            },
        )
    }),
    ("avg_pool2d", |n, x| n.avg_pool(x, &Pool::new([2, 2]))),
    ("avg_pool2d_border", |n, x| n.avg_pool(x, &wide_pool())),
    ("avg_pool2d_inside", |n, x| {
        n.avg_pool(
            x,
            &Pool {
                count_padding: false,
                ..wide_pool()
            },
        )
    }),
    ("avg_pool1d", |n, x| {
        n.avg_pool(
            x,
            &Pool {
                stride: vec![1],
                ..Pool::new([3])
            },
        )
    }),
    ("adaptive_avg_pool2d", |n, x| {
        n.adaptive_avg_pool(x, &[3, 2])
    }),
    ("adaptive_avg_pool2d_one", |n, x| {
        n.adaptive_avg_pool(x, &[1, 1])
    }),
    ("batch_norm2d", |n, x| {
        n.batch_norm("", x, &BatchNorm::default())
    }),
    ("batch_norm1d", |n, x| n.batch_norm("", x, &norm1d())),
    ("batch_norm1d_plain", |n, x| {
        n.batch_norm(
            "",
            x,
            &BatchNorm {
                affine: false,
                ..BatchNorm::default()
            },
        )
    }),
    ("batch_norm2d_eval", |n, x| {
        n.batch_norm("", x, &BatchNorm::default())
    }),
    ("layer_norm", |n, x| n.layer_norm("", x, 1)),
    ("layer_norm2", |n, x| n.layer_norm("", x, 2)),
    ("group_norm", |n, x| n.group_norm("", x, 2)),
    ("rms_norm", |n, x| n.rms_norm("", x, None)),
    ("lstm", |n, x| {
        Ok(n.recurrent("", x, &Recurrent::lstm(4))?.y)
    }),
    ("lstm_two", |n, x| {
        Ok(n.recurrent("", x, &stacked(Cell::Lstm))?.y)
    }),
    ("lstm_states", |n, x| {
        let settings = Recurrent {
            layers: 2,
            bias: false,
            batch_first: false,
            ..Recurrent::lstm(4)
        };
        let out = n.recurrent("", x, &settings)?;
        Ok(n.graph.concat(&[out.h, out.c.expect("an lstm")], 0)?)
    }),
    ("gru_two", |n, x| {
        Ok(n.recurrent("", x, &stacked(Cell::Gru))?.y)
    }),
    ("rnn", |n, x| {
        Ok(n.recurrent("", x, &Recurrent::new(Cell::Rnn, 4))?.y)
    }),
    ("rnn_relu", |n, x| {
        let relu = true;
        Ok(n.recurrent(
            "",
            x,
            &Recurrent {
                relu,
                ..Recurrent::new(Cell::Rnn, 4)
            },
        )?
        .y)
    }),
    ("attention", |n, x| {
        n.self_attention("", x, &attention(false))
    }),
    ("attention_causal", |n, x| {
        n.self_attention("", x, &attention(true))
    }),
    ("relu", |n, x| n.relu(x)),
    ("leaky_relu", |n, x| n.leaky_relu(x, 0.1)),
    ("clamp", |n, x| n.clamp(x, -1.0, 2.0)),
    ("gelu", |n, x| n.gelu(x)),
    ("gelu_tanh", |n, x| n.gelu_tanh(x)),
    ("silu", |n, x| n.silu(x)),
    ("elu", |n, x| n.elu(x, 0.7)),
    ("softplus", |n, x| n.softplus(x)),
    ("tanh", |n, x| n.tanh(x)),
    ("sigmoid", |n, x| n.sigmoid(x)),
    ("softmax", |n, x| n.softmax(x)),
    ("log_softmax", |n, x| n.log_softmax(x)),
];

/// A layer over the fixture's input, whose first extent is a symbol.
fn build(fixture: &Fixture, name: &str, layer: Layer) -> (Net, ValueId, ValueId) {
    let mut net = Net::new(name);
    let given = fixture.get(name, "x");
    let mut dims: Vec<Dim> = given.shape().iter().map(|d| Dim::from(*d)).collect();
    dims[0] = Dim::sym("batch");
    let x = net.input("x", given.dtype(), dims).expect("an input");
    let y = layer(&mut net, x).unwrap_or_else(|e| panic!("{name}: {e}"));
    (net, x, y)
}

/// Weights of a case under the names that they have in the model.
fn weights(fixture: &Fixture, name: &str) -> BTreeMap<String, Tensor> {
    let own = fixture.roles(name, "p.").into_iter();
    own.map(|(n, t)| (if n.contains("_l") { n } else { format!(".{n}") }, t))
        .collect()
}

fn outputs(
    graph: &Graph,
    weights: &BTreeMap<String, Tensor>,
    inputs: BTreeMap<String, Tensor>,
) -> BTreeMap<String, Tensor> {
    let states = weights.iter().map(|(n, t)| (n.clone(), t.clone().into()));
    let mut env = Env::default();
    env.states = states.collect();
    run(graph, &inputs, &mut env)
}

/// A layer with its gradients for the cotangent `c` as outputs.
fn backward(net: &Net, x: ValueId, y: ValueId, name: &str) -> Graph {
    let wrt: Vec<(String, ValueId)> = (net.parameters().iter())
        .map(|p| (p.name.trim_start_matches('.').to_string(), p.value))
        .chain((net.graph.dtype(x) == DType::F32).then_some(("x".into(), x)))
        .collect();
    let mut g = net.graph.clone();
    let ty = g.tensor(y);
    let c = g.input("c", ty).expect("an input");
    let values: Vec<ValueId> = wrt.iter().map(|(_, v)| *v).collect();
    let grads = vjp(&mut g, &[(y, c)], &values).unwrap_or_else(|e| panic!("{name}: {e}"));
    g.output("y", y);
    for ((n, _), grad) in wrt.iter().zip(grads) {
        let grad = grad.unwrap_or_else(|| panic!("{name}: no gradient of {n}"));
        g.output(&format!("g.{n}"), grad);
    }
    for b in net.buffers() {
        g.output(&format!("b{}", b.name), b.next.expect("a next value"));
    }
    g.compact().expect("an order");
    g
}

fn compare(fixture: &Fixture, name: &str, layer: Layer) {
    let (mut net, x, y) = build(fixture, name, layer);
    let weights = weights(fixture, name);
    let unknown = net.load(&weights).expect("weights fit");
    assert!(unknown.is_empty(), "{name} has no {unknown:?}");
    let parameters = net.parameters().iter().map(|p| &p.name);
    for own in parameters.chain(net.buffers().iter().map(|b| &b.name)) {
        assert!(weights.contains_key(own), "{name}: PyTorch has no '{own}'");
    }
    let mut inputs = BTreeMap::from([("x".to_string(), fixture.get(name, "x").clone())]);
    if name.ends_with("_eval") {
        net.output("y", y);
        let eval = net.eval_graph(&[]).expect("an evaluation");
        let got = outputs(&eval, &weights, inputs);
        let want = numbers(fixture.get(name, "y"));
        close(name, &numbers(&got["y"]), &want, 1e-5, 1e-6);
        return;
    }
    inputs.insert("c".into(), fixture.get(name, "c").clone());
    let got = outputs(&backward(&net, x, y, name), &weights, inputs);
    for (role, tensor) in &got {
        let want = fixture.get(name, role);
        assert_eq!(tensor.shape(), want.shape(), "{name} {role}");
        let what = format!("{name} {role}");
        close(&what, &numbers(tensor), &numbers(want), 2e-5, 2e-6);
    }
    for role in ["g.", "b."] {
        for n in fixture.roles(name, role).keys() {
            let role = format!("{role}{n}");
            assert!(got.contains_key(&role), "{name}: {role} was not compared");
        }
    }
}

/// Elements as the plans' interpreter takes them.
fn elements(t: &Tensor) -> plans::T {
    plans::T {
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        v: plans::reference::elements(t),
    }
}

#[test]
fn compiled_layers_and_gradients_give_what_the_graph_gives() {
    let fixture = Fixture::read("layers");
    let target = plans::target(plans::products);
    // Loops are steps of the runtime.
    let loops = ["lstm", "gru", "rnn"];
    let plain = LAYERS.iter().map(|(n, _)| *n);
    let plain = plain.filter(|n| !loops.iter().any(|l| n.starts_with(l)));
    each(plain.filter(|n| !n.ends_with("_eval")), |name| {
        let (_, layer) = LAYERS.iter().find(|(n, _)| *n == name).expect("a layer");
        let (net, x, y) = build(&fixture, name, *layer);
        let weights = weights(&fixture, name);
        let mut g = backward(&net, x, y, name);
        let slots = std::mem::take(&mut g.slots);
        let reads: Vec<(ValueId, String)> = (g.nodes())
            .filter_map(|(_, n)| match &n.op {
                Op::Core(CoreOp::ReadState(p)) => Some((n.results[0], p.slot.clone())),
                _ => None,
            })
            .collect();
        for (value, slot) in reads {
            let input = g.input(&slot, slots[&slot].ty.clone()).expect("an input");
            g.replace(value, input);
        }
        g.compact().expect("an order");
        let given = g.inputs().iter().map(|v| match g.input_name(*v) {
            role @ ("x" | "c") => elements(fixture.get(name, role)),
            slot => elements(&weights[slot]),
        });
        let given: Vec<plans::T> = given.collect();
        let batch = fixture.get(name, "x").shape()[0] as i64;
        plans::check(&g, &target, &given, &[("batch", batch)]);
    });
}

#[test]
fn layers_agree_with_pytorch() {
    let fixture = Fixture::read("layers");
    each(LAYERS.iter().map(|(n, _)| *n), |name| {
        let (_, layer) = LAYERS.iter().find(|(n, _)| *n == name).expect("a layer");
        compare(&fixture, name, *layer);
    });
    let names: Vec<&str> = LAYERS.iter().map(|(n, _)| *n).collect();
    for case in fixture.cases() {
        assert!(names.contains(&case.as_str()), "{case} is not tested");
    }
}

#[test]
fn empty_batches_go_through_every_layer() {
    let fixture = Fixture::read("layers");
    for (name, layer) in LAYERS {
        // PyTorch refuses statistics over nothing; here they are NaN.
        let (mut net, _, y) = build(&fixture, name, *layer);
        if *name == "lstm_states" {
            continue; // Its first axis are the steps.
        }
        net.output("y", y);
        let graph = net.eval_graph(&[]).expect("an evaluation");
        let x = fixture.get(name, "x");
        let mut shape = x.shape().to_vec();
        shape[0] = 0;
        let x = Tensor::new(x.dtype(), shape, vec![].into()).expect("an empty tensor");
        let got = outputs(
            &graph,
            &weights(&fixture, name),
            BTreeMap::from([("x".to_string(), x)]),
        );
        assert!(got["y"].is_empty(), "{name}");
    }
}

#[test]
fn what_a_layer_does_not_take_is_refused_by_name() {
    let mut net = Net::new("n");
    let x = net
        .input("x", DType::F32, [Dim::sym("b"), 6usize.into()])
        .unwrap();
    let free = net
        .input("free", DType::F32, [Dim::sym("b"), Dim::sym("n")])
        .unwrap();
    let said = |e: cupola_train::TrainError| e.to_string();
    let e = said(net.linear("head", free, 2).unwrap_err());
    assert!(e.contains("head") && e.contains("known extent"), "{e}");
    let e = said(net.conv("c", x, &Conv::new(2, [3, 3])).unwrap_err());
    assert!(e.contains("2 spatial axes"), "{e}");
    let e = said(net.embedding("e", x, &Embedding::new(3, 2)).unwrap_err());
    assert!(e.contains("whole numbers"), "{e}");
    assert!(net.dropout(x, 1.5).is_err() && net.dropout(x, f64::NAN).is_err());
    assert!(net.group_norm("g", x, 4).is_err());
    assert!(net.attention("a", x, 2, false, 0.0).is_err());
    let dims = [Dim::sym("b"), Dim::sym("n"), 12usize.into()];
    let joined = net.input("joined", DType::F32, dims).unwrap();
    assert!(net.attention("a", joined, 2, false, 1.5).is_err());
    assert!(net.attention("a", joined, 3, false, 0.0).is_err());
    assert!(net.max_pool(x, &Pool::new([0])).is_err());
    net.linear("fc", x, 2).unwrap();
    let e = said(net.linear("fc", x, 3).unwrap_err());
    assert!(e.contains("fc.weight") && e.contains("already"), "{e}");
    assert!(net.input("x", DType::F32, [1usize]).is_err());
}

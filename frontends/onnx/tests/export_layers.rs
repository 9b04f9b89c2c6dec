//! Layers are exported as other exporters write them: which operators and initializers a graph becomes, and that it computes the
//! same after it is read again.

use cupola_ir::composite::{Attention, Cell, Conv, Recurrent};
use cupola_ir::{DType, Dim, Graph, Op, Scalar, Tensor, TensorType, Value, ValueId, eval};
use cupola_onnx::proto::ModelProto;
use cupola_onnx::{ImportOptions, Model, export, import};
use cupola_source::Source;
use prost::Message;

/// Small numbers without a pattern.
fn floats(shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.71).sin()).collect();
    Tensor::from_slice(shape, &values).expect("a tensor")
}

fn weight(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    let w = g.constant(floats(shape)).expect("a constant");
    g.set_name(w, name);
    w
}

fn input(g: &mut Graph, dims: &[usize]) -> ValueId {
    let batch = std::iter::once(Dim::sym("batch"));
    let dims = batch.chain(dims.iter().map(|d| Dim::from(*d)));
    let ty = TensorType::new(DType::F32, dims);
    g.input("x", ty).expect("an input")
}

/// Exports, reads and imports the graph again, and runs both on `x`.
fn check(graph: &Graph, x: &[usize]) -> ModelProto {
    let x = [Value::Tensor(floats(x))];
    let run = |g: &Graph| eval::run(g, &x, &mut eval::Env::default()).expect("a run");
    let proto = export(graph, &|_| None).expect("a model");
    let model = Model::read(&Source::from_bytes(proto.encode_to_vec())).expect("a model");
    let again = import(&model, &ImportOptions::default()).expect("a graph");
    for (want, got) in run(graph).iter().zip(run(&again.graph)) {
        let (want, got) = (want.as_tensor(), got.as_tensor());
        let (want, got) = (want.expect("a tensor"), got.expect("a tensor"));
        assert_eq!(want.shape(), got.shape());
        let numbers = |t: &Tensor| t.to_vec::<f32>().expect("numbers");
        for (a, b) in numbers(want).into_iter().zip(numbers(got)) {
            assert!((a - b).abs() < 1e-6 * (1.0 + a.abs()), "{b} instead of {a}");
        }
    }
    proto
}

/// The operators with the names of their operands, and the names of all initializers.
fn written(model: &ModelProto) -> (Vec<String>, Vec<String>) {
    let graph = model.graph.as_ref().expect("a graph");
    let nodes = graph.node.iter();
    let nodes = nodes.map(|n| format!("{} {}", n.op_type(), n.input.join(" ")));
    let names = graph.initializer.iter().map(|t| t.name().to_owned());
    (nodes.collect(), names.collect())
}

fn relu(g: &mut Graph, x: ValueId) -> ValueId {
    let zero = g.number_like(0.0, x).expect("a number");
    g.binary(Scalar::Max, x, zero).expect("a value")
}

#[test]
fn linear_layers_on_rows_are_gemm() {
    let mut g = Graph::new("mlp");
    let x = input(&mut g, &[4]);
    let (w, b) = (
        weight(&mut g, "fc.weight", &[3, 4]),
        weight(&mut g, "fc.bias", &[3]),
    );
    let y = g.matmul_nt(x, w).expect("a product");
    let y = g.binary(Scalar::Add, y, b).expect("a sum");
    let y = relu(&mut g, y);
    g.output("y", y);
    let (nodes, names) = written(&check(&g, &[2, 4]));
    assert_eq!(nodes, ["Gemm x fc.weight fc.bias", "Relu matmul"]);
    assert_eq!(names, ["fc.weight", "fc.bias"]);
}

#[test]
fn a_product_that_is_used_otherwise_keeps_no_bias() {
    let mut g = Graph::new("twice");
    let x = input(&mut g, &[4]);
    let w = weight(&mut g, "w", &[4, 3]);
    let b = weight(&mut g, "b", &[3]);
    let product = g.matmul(x, w).expect("a product");
    let y = g.binary(Scalar::Add, product, b).expect("a sum");
    g.output("y", y);
    g.output("product", product);
    let (nodes, _) = written(&check(&g, &[2, 4]));
    assert_eq!(nodes, ["MatMul x w", "Add product b"]);
    // Sequences are no operand of Gemm, and a bias that is computed may come too late.
    let mut g = Graph::new("sequence");
    let x = input(&mut g, &[5, 4]);
    let (w, b) = (weight(&mut g, "w", &[4, 3]), weight(&mut g, "b", &[3]));
    let y = g.matmul(x, w).expect("a product");
    let y = g.binary(Scalar::Add, b, y).expect("a sum");
    g.output("y", y);
    let (nodes, _) = written(&check(&g, &[2, 5, 4]));
    assert!(nodes.iter().all(|n| !n.starts_with("Gemm")), "{nodes:?}");
    let mut g = Graph::new("late");
    let x = input(&mut g, &[4]);
    let (w, b) = (weight(&mut g, "w", &[4, 3]), weight(&mut g, "b", &[3]));
    let y = g.matmul(x, w).expect("a product");
    let b = g.unary(Scalar::Exp, b).expect("a value");
    let y = g.binary(Scalar::Add, y, b).expect("a sum");
    g.output("y", y);
    let (nodes, _) = written(&check(&g, &[2, 4]));
    assert!(nodes.iter().any(|n| n.starts_with("MatMul")), "{nodes:?}");
}

#[test]
fn convolutions_take_their_bias() {
    for unbatched in [false, true] {
        let mut g = Graph::new("cnn");
        let x = input(&mut g, &[2, 6, 6]);
        let w = weight(&mut g, "c1.weight", &[3, 2, 3, 3]);
        let b = weight(&mut g, "c1.bias", &[3]);
        let p = Conv {
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads_low: vec![Dim::ZERO; 2],
            pads_high: vec![Dim::ZERO; 2],
            groups: 1,
        };
        let y = g.one(Op::Composite(p.into()), &[x, w]).expect("a value");
        let b = match unbatched {
            // A bias along another axis is none of the operator.
            true => {
                let b = weight(&mut g, "other", &[4]);
                g.unsqueeze(b, &[1]).expect("a view")
            }
            false => g.unsqueeze(b, &[1, 2]).expect("a view"),
        };
        let y = g.binary(Scalar::Add, y, b).expect("a sum");
        let y = relu(&mut g, y);
        g.output("y", y);
        let (nodes, names) = written(&check(&g, &[2, 2, 6, 6]));
        if unbatched {
            assert_eq!(nodes[0], "Conv x c1.weight");
        } else {
            assert_eq!(nodes, ["Conv x c1.weight c1.bias", "Relu conv"]);
            assert_eq!(names, ["c1.weight", "c1.bias"]);
        }
    }
}

/// A layer whose gates are reordered from i, f, g, o, as PyTorch has them.
fn lstm(g: &mut Graph, x: ValueId, settings: &Recurrent, suffix: &str) -> ValueId {
    let reordered = |g: &mut Graph, w: ValueId| {
        let gates: Vec<ValueId> = [0usize, 3, 1, 2]
            .map(|gate| {
                let (start, len) = (Dim::from(3 * gate), Dim::from(3usize));
                g.slice_axis(w, 0, &start, &len).expect("a gate")
            })
            .to_vec();
        g.concat(&gates, 0).expect("gates")
    };
    let w = weight(g, &format!("l.weight_ih_l0{suffix}"), &[12, 2]);
    let r = weight(g, &format!("l.weight_hh_l0{suffix}"), &[12, 3]);
    let (a, b) = (
        weight(g, &format!("l.bias_ih_l0{suffix}"), &[12]),
        weight(g, &format!("l.bias_hh_l0{suffix}"), &[12]),
    );
    let [w, r, a, b] = [w, r, a, b].map(|w| reordered(g, w));
    let b = g.concat(&[a, b], 0).expect("a bias");
    let batch = g.dim(x, 1);
    let zero = g.number_like(0.0, x).expect("a number");
    let state = g.broadcast_to(zero, &[batch, Dim::from(3usize)]);
    let state = state.expect("a state");
    let operands = [x, w, r, state, state, b];
    let op = Op::Composite(settings.clone().into());
    g.push(op, &operands).expect("a layer")[0]
}

fn plain() -> Recurrent {
    Recurrent {
        cell: Cell::Lstm,
        activations: ["sigmoid", "tanh", "tanh"].map(str::to_owned).to_vec(),
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
    }
}

#[test]
fn recurrent_layers_are_operators_with_constant_weights() {
    let plain = plain();
    let back = Recurrent {
        reverse: true,
        clip: 0.5,
        activations: ["sigmoid", "relu", "tanh"].map(str::to_owned).to_vec(),
        ..plain.clone()
    };
    for settings in [plain.clone(), back] {
        let mut g = Graph::new("lstm");
        let x = input(&mut g, &[4, 2]);
        let x = g.permute(x, &[1, 0, 2]).expect("a view");
        let y = lstm(&mut g, x, &settings, "");
        g.output("y", y);
        let (nodes, names) = written(&check(&g, &[5, 4, 2]));
        let wanted = "LSTM transpose l.weight_ih_l0 l.weight_hh_l0 l.bias_ih_l0";
        assert_eq!(nodes[1], wanted);
        assert_eq!(nodes.len(), 3, "{nodes:?}");
        assert_eq!(names.len(), 4, "{names:?}");
    }
    // Activations that are no operator's attribute here: the layer in parts.
    let other = Recurrent {
        activations: ["hard_sigmoid", "tanh", "tanh"].map(str::to_owned).to_vec(),
        alpha: vec![0.2, 0.0, 0.0],
        beta: vec![0.5, 0.0, 0.0],
        ..plain
    };
    let mut g = Graph::new("lstm");
    let x = input(&mut g, &[4, 2]);
    let y = lstm(&mut g, x, &other, "");
    g.output("y", y);
    let (nodes, _) = written(&check(&g, &[5, 4, 2]));
    assert!(nodes.iter().all(|n| !n.starts_with("LSTM")), "{nodes:?}");
}

/// Extents along the first axis of every initializer.
fn lengths(model: &ModelProto) -> Vec<i64> {
    let graph = model.graph.as_ref().expect("a graph");
    graph.initializer.iter().map(|t| t.dims[0]).collect()
}

#[test]
fn both_directions_are_one_operator() {
    // Whichever comes first, the forward one is the operator's first.
    for order in [[false, true], [true, false]] {
        let mut g = Graph::new("lstm");
        let x = input(&mut g, &[4, 2]);
        let x = g.permute(x, &[1, 0, 2]).expect("a view");
        let mut made = order.map(|reverse| {
            let settings = Recurrent {
                reverse,
                clip: 0.5,
                activations: ["sigmoid", "relu", "tanh"].map(str::to_owned).to_vec(),
                ..plain()
            };
            let suffix = if reverse { "_reverse" } else { "" };
            lstm(&mut g, x, &settings, suffix)
        });
        if order[0] {
            made.reverse();
        }
        let y = g.concat(&made, 2).expect("states");
        g.output("y", y);
        let model = check(&g, &[5, 4, 2]);
        let (nodes, names) = written(&model);
        let wanted = "LSTM transpose l.weight_ih_l0 l.weight_hh_l0 l.bias_ih_l0";
        let wanted = [wanted, "Transpose lstm", "Reshape transpose_6 ints"];
        let kinds = |nodes: &[String]| -> Vec<String> {
            let words = nodes.iter().filter_map(|n| n.split(' ').next());
            words.map(str::to_owned).collect()
        };
        assert_eq!(kinds(&nodes[1..]), kinds(&wanted.map(str::to_owned)));
        assert_eq!(
            nodes[1].split(' ').nth(2),
            Some("l.weight_ih_l0"),
            "{nodes:?}"
        );
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(lengths(&model).iter().filter(|n| **n == 2).count(), 3);
    }
}

#[test]
fn directions_that_are_no_pair_stay_apart() {
    let mut g = Graph::new("lstm");
    let x = input(&mut g, &[4, 2]);
    let x = g.permute(x, &[1, 0, 2]).expect("a view");
    let forward = lstm(&mut g, x, &plain(), "");
    let settings = Recurrent {
        reverse: true,
        clip: 0.5,
        ..plain()
    };
    let limited = lstm(&mut g, x, &settings, "_reverse");
    let y = g.concat(&[forward, limited], 2).expect("states");
    g.output("y", y);
    let (nodes, _) = written(&check(&g, &[5, 4, 2]));
    assert_eq!(nodes.iter().filter(|n| n.starts_with("LSTM")).count(), 2);
    // A pair of which one alone is used, too, is one operator with both.
    let mut g = Graph::new("lstm");
    let x = input(&mut g, &[4, 2]);
    let x = g.permute(x, &[1, 0, 2]).expect("a view");
    let forward = lstm(&mut g, x, &plain(), "");
    let settings = Recurrent {
        reverse: true,
        ..plain()
    };
    let back = lstm(&mut g, x, &settings, "_reverse");
    let y = g.concat(&[back, forward], 2).expect("states");
    g.output("y", y);
    g.output("back", back);
    let (nodes, _) = written(&check(&g, &[5, 4, 2]));
    assert_eq!(nodes.iter().filter(|n| n.starts_with("LSTM")).count(), 1);
    assert!(nodes.iter().any(|n| n.starts_with("Concat")), "{nodes:?}");
}

/// `(x - mean) / sqrt(var + epsilon)`, scaled and shifted where that is asked for, with channels along the second axis.
fn batch_norm(g: &mut Graph, x: ValueId, is_affine: bool) -> ValueId {
    let after: Vec<usize> = (1..g.rank(x) - 1).collect();
    let channels = |g: &mut Graph, name: &str| {
        // Variances are not negative.
        let v = g.constant(Tensor::vector(&[0.5f32, 1.5, 0.25]));
        let v = v.expect("a constant");
        g.set_name(v, name);
        g.unsqueeze(v, &after).expect("a view")
    };
    let mean = channels(g, "bn.running_mean");
    let y = g.binary(Scalar::Sub, x, mean).expect("a value");
    let var = channels(g, "bn.running_var");
    let epsilon = g.number_like(1e-3, var).expect("a number");
    let sum = g.binary(Scalar::Add, var, epsilon).expect("a value");
    let inverse = g.unary(Scalar::Rsqrt, sum).expect("a value");
    let y = g.binary(Scalar::Mul, y, inverse).expect("a value");
    if !is_affine {
        return y;
    }
    let (scale, bias) = (channels(g, "bn.weight"), channels(g, "bn.bias"));
    let y = g.binary(Scalar::Mul, y, scale).expect("a value");
    g.binary(Scalar::Add, y, bias).expect("a value")
}

#[test]
fn normalisation_by_running_statistics_is_an_operator() {
    for dims in [&[3usize][..], &[3, 5], &[3, 4, 5]] {
        let mut g = Graph::new("bn");
        let x = input(&mut g, dims);
        let y = batch_norm(&mut g, x, true);
        let y = relu(&mut g, y);
        g.output("y", y);
        let (nodes, names) = written(&check(&g, &[&[2], dims].concat()));
        let wanted = "BatchNormalization x bn.weight bn.bias bn.running_mean bn.running_var";
        assert_eq!(nodes[0], wanted);
        assert_eq!((nodes.len(), names.len()), (2, 4), "{nodes:?} {names:?}");
    }
    let mut g = Graph::new("plain");
    let x = input(&mut g, &[3, 5]);
    let y = batch_norm(&mut g, x, false);
    g.output("y", y);
    let (nodes, _) = written(&check(&g, &[2, 3, 5]));
    let all = nodes.join("; ");
    assert!(all.contains("BatchNormalization x"), "{all}");
    assert!(!all.contains("Sub") && !all.contains("Sqrt"), "{all}");
}

#[test]
fn attention_is_products_and_a_softmax() {
    for causal in [false, true] {
        let mut g = Graph::new("attention");
        let x = input(&mut g, &[2, 6, 4]);
        let p = Attention {
            scale: 0.5,
            causal,
            softcap: 0.0,
        };
        let y = g.one(Op::Composite(p.into()), &[x, x, x]).expect("a value");
        g.output("y", y);
        let (nodes, _) = written(&check(&g, &[3, 2, 6, 4]));
        let mut kinds: Vec<&str> = nodes.iter().filter_map(|n| n.split(' ').next()).collect();
        assert_eq!(kinds.iter().filter(|k| **k == "Softmax").count(), 1);
        assert_eq!(kinds.contains(&"Where"), causal, "{nodes:?}");
        if !causal {
            kinds.retain(|k| *k != "Transpose");
            assert_eq!(kinds, ["MatMul", "Mul", "Softmax", "MatMul"]);
        }
    }
}

#[test]
fn products_of_sequences_and_their_views_need_no_shapes() {
    let mut g = Graph::new("sequence");
    let x = input(&mut g, &[5, 4]);
    let w = weight(&mut g, "w", &[4, 6]);
    let y = g.matmul(x, w).expect("a product");
    let batch = g.dim(y, 0);
    let dims = [batch, 5usize.into(), 2usize.into(), 3usize.into()];
    let y = g.reshape(y, &dims).expect("a view");
    g.output("y", y);
    let (nodes, _) = written(&check(&g, &[2, 5, 4]));
    let kinds: Vec<&str> = nodes.iter().filter_map(|n| n.split(' ').next()).collect();
    assert!(
        !kinds.contains(&"Shape") && !kinds.contains(&"Concat"),
        "{nodes:?}"
    );
}

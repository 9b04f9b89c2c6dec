//! Whole training steps on the reference interpreter.

mod support;

use cupola_ir::{DType, Dim, Tensor};
use cupola_train::{
    Clip, CrossEntropy, GradScaler, Net, Optimiser, SlotKind, StepOptions, layers::BatchNorm,
};
use std::collections::BTreeMap;
use support::{Run, close, numbers, run, scalar};

/// Two classes of points in a plane, told apart by a small perceptron.
fn perceptron() -> (Net, cupola_ir::ValueId) {
    let mut net = Net::new("mlp");
    let batch = Dim::sym("batch");
    let x = net
        .input("x", DType::F32, [batch.clone(), 2usize.into()])
        .unwrap();
    let labels = net.input("labels", DType::I64, [batch]).unwrap();
    let h = net.linear("fc1", x, 8).unwrap();
    let h = net.relu(h).unwrap();
    let y = net.linear("fc2", h, 2).unwrap();
    net.output("y", y);
    let accuracy = net.accuracy(y, labels, -100).unwrap();
    net.metric("accuracy", accuracy);
    let loss = net
        .cross_entropy(y, labels, &CrossEntropy::default())
        .unwrap();
    (net, loss)
}

fn ring() -> [(&'static str, Tensor); 2] {
    let points: Vec<f32> = (0..16)
        .flat_map(|i| {
            let (angle, radius) = (i as f32 * 0.8, if i % 2 == 0 { 0.3 } else { 1.0 });
            [radius * angle.cos(), radius * angle.sin()]
        })
        .collect();
    let labels: Vec<i64> = (0..16).map(|i| i % 2).collect();
    [
        ("x", Tensor::from_slice(&[16, 2], &points).unwrap()),
        ("labels", Tensor::vector(&labels)),
    ]
}

#[test]
fn a_perceptron_learns() {
    let (net, loss) = perceptron();
    let step = net
        .train_step(loss, &Optimiser::adam(), &StepOptions::default())
        .unwrap();
    assert_eq!(step.outputs(), ["loss", "accuracy"]);
    let mut r = Run::new(step);
    let first = scalar(&r.step(0.05, &ring())["loss"]);
    for _ in 0..150 {
        r.step(0.05, &ring());
    }
    let out = r.step(0.05, &ring());
    assert!(
        scalar(&out["loss"]) < first / 10.0,
        "{first} to {:?}",
        scalar(&out["loss"])
    );
    assert_eq!(scalar(&out["accuracy"]), 1.0);
    assert_eq!(r.slot("optimiser.step"), [152.0]);
}

/// A parameter `w` of three elements whose gradient is the input `g`.
fn given_gradient(options: &StepOptions) -> Run {
    let mut net = Net::new("given");
    let g = net.input("g", DType::F32, [3usize]).unwrap();
    let w = net.parameter("w", &[3], cupola_train::Init::ONES).unwrap();
    let product = net.mul(w, g).unwrap();
    let loss = net
        .graph
        .reduce(cupola_ir::ops::ReduceKind::Sum, product, &[0])
        .unwrap();
    Run::new(
        net.train_step(loss, &Optimiser::momentum(0.5), options)
            .unwrap(),
    )
}

fn scaled(scaler: GradScaler) -> Run {
    let scaler = Some(scaler);
    given_gradient(&StepOptions {
        scaler,
        ..StepOptions::default()
    })
}

#[test]
fn the_loss_scale_follows_the_documented_trace() {
    let mut r = scaled(GradScaler {
        interval: 3,
        ..GradScaler::default()
    });
    // Scale, steps without infinities and whether the optimiser stepped, of PyTorch 2.15.
    let trace = [
        (65536.0, 1.0, true),
        (65536.0, 2.0, true),
        (131072.0, 0.0, true),
        (131072.0, 1.0, true),
        (65536.0, 0.0, false),
        (65536.0, 1.0, true),
        (65536.0, 2.0, true),
        (131072.0, 0.0, true),
        (131072.0, 1.0, true),
        (65536.0, 0.0, false),
        (65536.0, 1.0, true),
        (65536.0, 2.0, true),
    ];
    let mut taken = 0.0;
    for (i, (scale, tracker, stepped)) in trace.into_iter().enumerate() {
        let bad = [(4, f32::INFINITY), (9, f32::NAN)]
            .iter()
            .find(|(at, _)| *at == i)
            .map(|b| b.1);
        let g = Tensor::vector(&[1.0f32, bad.unwrap_or(0.5), -1.0]);
        let before = ["w", "sgd.momentum/w"].map(|s| r.slot(s));
        let out = r.step(0.1, &[("g", g)]);
        assert_eq!(scalar(&out["scale"]), scale, "step {i}");
        assert_eq!(r.slot("scaler.scale"), [scale]);
        assert_eq!(r.slot("scaler.tracker"), [tracker], "step {i}");
        assert_eq!(scalar(&out["found_inf"]), if stepped { 0.0 } else { 1.0 });
        let after = ["w", "sgd.momentum/w"].map(|s| r.slot(s));
        assert_eq!(before != after, stepped, "step {i}");
        taken += f64::from(u8::from(stepped));
        assert_eq!(r.slot("optimiser.step"), [taken]);
    }
    assert_eq!(r.taken, 10);
}

#[test]
fn a_scale_that_would_be_infinite_is_kept() {
    let init_scale = f64::from(2f32.powi(127));
    let mut r = scaled(GradScaler {
        interval: 1,
        init_scale,
        ..GradScaler::default()
    });
    let zeros = Tensor::vector(&[0.0f32; 3]);
    assert_eq!(scalar(&r.step(0.1, &[("g", zeros)])["scale"]), init_scale);
    assert_eq!(r.slot("scaler.tracker"), [0.0]);
    let sound = GradScaler {
        growth: 1.0,
        ..GradScaler::default()
    };
    let (net, loss) = perceptron();
    let options = StepOptions {
        scaler: Some(sound),
        ..StepOptions::default()
    };
    assert!(net.train_step(loss, &Optimiser::sgd(), &options).is_err());
}

#[test]
fn gradients_are_clipped_after_they_are_unscaled() {
    for scaler in [None, Some(GradScaler::default())] {
        let clip = Some(Clip::Norm(1.0));
        let mut r = given_gradient(&StepOptions {
            clip,
            scaler,
            ..StepOptions::default()
        });
        let out = r.step(1.0, &[("g", Tensor::vector(&[3.0f32, 4.0, 0.0]))]);
        assert_eq!(scalar(&out["grad_norm"]), 5.0);
        // Of clip_grad_norm_ with a limit of 1.
        close(
            "clipped",
            &r.slot("sgd.momentum/w"),
            &[0.59999988, 0.79999983, 0.0],
            0.0,
            6e-8,
        );
    }
    let clip = Some(Clip::Value(2.0));
    let mut r = given_gradient(&StepOptions {
        clip,
        grad_norm: true,
        ..StepOptions::default()
    });
    let out = r.step(1.0, &[("g", Tensor::vector(&[3.0f32, -4.0, 1.0]))]);
    assert_eq!(r.slot("sgd.momentum/w"), [2.0, -2.0, 1.0]);
    close(
        "norm",
        &[scalar(&out["grad_norm"])],
        &[26f64.sqrt()],
        1e-6,
        0.0,
    );
}

#[test]
fn frozen_parameters_and_those_without_a_gradient_stay() {
    let (mut net, loss) = perceptron();
    net.parameter("unused", &[2], cupola_train::Init::ONES)
        .unwrap();
    net.freeze(|name| name.starts_with("fc1"));
    let step = net
        .train_step(loss, &Optimiser::adam(), &StepOptions::default())
        .unwrap();
    let of_optimiser = step.slots.iter().filter(|s| s.kind == SlotKind::Optimiser);
    let names: Vec<&str> = of_optimiser.map(|s| s.name.as_str()).collect();
    let want = [
        "adam.m/fc2.weight",
        "adam.v/fc2.weight",
        "adam.m/fc2.bias",
        "adam.v/fc2.bias",
        "optimiser.step",
    ];
    assert_eq!(names, want);
    let mut r = Run::new(step);
    let before = r.slot("fc1.weight");
    r.step(0.1, &ring());
    assert_eq!(r.slot("fc1.weight"), before);
    net.freeze(|_| true);
    let e = net
        .train_step(loss, &Optimiser::adam(), &StepOptions::default())
        .unwrap_err();
    assert!(e.to_string().contains("no trainable parameter"), "{e}");
}

#[test]
fn dropout_keeps_the_mean_and_is_off_in_evaluation() {
    let mut net = Net::new("dropout");
    let x = net.input("x", DType::F32, [Dim::sym("n")]).unwrap();
    let w = net.parameter("w", &[1], cupola_train::Init::ONES).unwrap();
    let h = net.mul(x, w).unwrap();
    let y = net.dropout(h, 0.3).unwrap();
    let none = net.dropout(h, 1.0).unwrap();
    let none = net
        .graph
        .reduce(cupola_ir::ops::ReduceKind::Sum, none, &[0])
        .unwrap();
    net.metric("none", none);
    let zero = net.graph.number(0.0, DType::F32).unwrap();
    let off = net.graph.binary(cupola_ir::Scalar::Eq, y, zero).unwrap();
    let off = net.graph.cast(off, DType::F32).unwrap();
    let off = net.mean(off, 0).unwrap();
    net.metric("off", off);
    let loss = net.mean(y, 0).unwrap();
    let mut r = Run::new(
        net.train_step(loss, &Optimiser::sgd(), &StepOptions::default())
            .unwrap(),
    );
    let x = Tensor::vector(&vec![1f32; 40_000]);
    let mut seen = vec![];
    for _ in 0..2 {
        let out = r.step(0.0, &[("x", x.clone())]);
        close("mean", &[scalar(&out["loss"])], &[1.0], 0.0, 0.015);
        close("share", &[scalar(&out["off"])], &[0.3], 0.0, 0.01);
        assert_eq!(scalar(&out["none"]), 0.0);
        seen.push(scalar(&out["loss"]));
    }
    assert_ne!(seen[0], seen[1], "each step draws anew");
    // The gradient of w is the mean of what was kept, scaled: that of the loss itself.
    let out = r.step(1.0, &[("x", x.clone())]);
    close("w", &r.slot("w"), &[1.0 - scalar(&out["loss"])], 0.0, 1e-5);
    let graph = net.eval_graph(&[("loss", loss)]).unwrap();
    let mut env = cupola_ir::eval::Env::default();
    env.states
        .insert("w".into(), Tensor::vector(&[1.0f32]).into());
    let out = run(&graph, &BTreeMap::from([("x".to_string(), x)]), &mut env);
    assert_eq!(scalar(&out["loss"]), 1.0);
    assert_eq!(scalar(&out["none"]), 40_000.0);
}

/// Mean squares of the difference of attention with dropout of its weights from attention without, in training, and the mean.
fn dropped_attention(causal: bool, p: f64) -> (f64, f64) {
    let mut net = Net::new("attention");
    let dims = [Dim::sym("b"), Dim::sym("n"), 12usize.into()];
    let x = net.input("x", DType::F32, dims).unwrap();
    let w = net.parameter("w", &[1], cupola_train::Init::ONES).unwrap();
    let x = net.mul(x, w).unwrap();
    let plain = net.attention("a", x, 2, causal, 0.0).unwrap();
    let y = net.attention("a", x, 2, causal, p).unwrap();
    let g = &mut net.graph;
    let apart = g.binary(cupola_ir::Scalar::Sub, y, plain).unwrap();
    let square = g.binary(cupola_ir::Scalar::Mul, apart, apart).unwrap();
    let mean = |net: &mut Net, x| (0..3).rev().fold(x, |x, axis| net.mean(x, axis).unwrap());
    let (square, loss) = (mean(&mut net, square), mean(&mut net, y));
    net.metric("apart", square);
    let step = net.train_step(loss, &Optimiser::sgd(), &StepOptions::default());
    let mut r = Run::new(step.unwrap());
    let mut x: Vec<f32> = (0..2 * 40 * 12)
        .map(|i| (i * 37 % 101) as f32 / 50.0)
        .collect();
    // All values are ones, so that sums of weights come out.
    let rows = x.chunks_mut(12);
    rows.for_each(|row| row[8..].fill(1.0));
    let x = Tensor::from_slice(&[2, 40, 12], &x).unwrap();
    let out = r.step(0.0, &[("x", x)]);
    (scalar(&out["apart"]), scalar(&out["loss"]))
}

#[test]
fn dropout_of_attention_drops_normalised_weights() {
    for causal in [false, true] {
        let (apart, mean) = dropped_attention(causal, 1e-10);
        assert!(apart < 1e-12, "nothing is dropped: {apart}");
        assert!((mean - 1.0).abs() < 1e-5, "{mean}");
        let (apart, mean) = dropped_attention(causal, 0.4);
        assert!(apart > 1e-4 && (mean - 1.0).abs() < 0.15, "{apart} {mean}");
    }
}

#[test]
fn evaluation_and_inference_ask_only_for_what_they_need() {
    let mut net = Net::new("norm");
    let x = net
        .input("x", DType::F32, [Dim::sym("n"), 3usize.into()])
        .unwrap();
    let labels = net.input("labels", DType::I64, [Dim::sym("n")]).unwrap();
    let h = net.batch_norm("bn", x, &BatchNorm::default()).unwrap();
    let y = net.linear("fc", h, 2).unwrap();
    net.output("y", y);
    let loss = net
        .cross_entropy(y, labels, &CrossEntropy::default())
        .unwrap();
    let names = |g: &cupola_ir::Graph| -> Vec<String> {
        g.inputs()
            .iter()
            .map(|v| g.input_name(*v).to_string())
            .collect()
    };
    let eval = net.eval_graph(&[("loss", loss)]).unwrap();
    assert_eq!(names(&eval), ["x", "labels"]);
    let writes = |g: &cupola_ir::Graph| {
        g.nodes()
            .filter(|(_, n)| n.op.name() == "write_state")
            .count()
    };
    assert_eq!(writes(&eval), 0);
    let step = net
        .train_step(loss, &Optimiser::sgd(), &StepOptions::default())
        .unwrap();
    // Four parameters, two statistics, the counter.
    assert_eq!(writes(&step.graph), 7);
    let weights: BTreeMap<String, Tensor> = (step.slots.iter())
        .map(|s| (s.name.clone(), step.initial(s, 3).unwrap()))
        .collect();
    let inference = net
        .inference_graph(&|name| weights.get(name).cloned())
        .unwrap();
    assert_eq!(names(&inference), ["x"]);
    assert!(inference.slots.is_empty());
    let e = net.inference_graph(&|_| None).unwrap_err().to_string();
    assert!(e.contains("no weights for"), "{e}");
    let x = Tensor::from_slice(&[2, 3], &[1.0f32, 2.0, 3.0, -1.0, 0.5, 0.0]).unwrap();
    let inputs = BTreeMap::from([
        ("x".to_string(), x),
        ("labels".to_string(), Tensor::vector(&[0i64, 1])),
    ]);
    let mut env = cupola_ir::eval::Env::default();
    env.states = weights
        .iter()
        .map(|(n, t)| (n.clone(), t.clone().into()))
        .collect();
    let by_state = numbers(&run(&eval, &inputs, &mut env)["y"]);
    let by_constants =
        numbers(&run(&inference, &inputs, &mut cupola_ir::eval::Env::default())["y"]);
    assert_eq!(by_state, by_constants);
}

#[test]
fn an_imported_graph_is_trained_by_its_constants() {
    let mut g = cupola_ir::Graph::new("imported");
    let x = g
        .input(
            "x",
            cupola_ir::TensorType::new(DType::F32, [Dim::sym("n"), 2usize.into()]),
        )
        .unwrap();
    let w = g
        .constant(Tensor::from_slice(&[1, 2], &[0.5f32, -0.5]).unwrap())
        .unwrap();
    g.set_name(w, "w");
    let y = g.matmul_nt(x, w).unwrap();
    g.output("y", y);
    let mut net = Net::from_graph(g.clone(), &Net::is_weight).unwrap();
    let target = net
        .input("target", DType::F32, [Dim::sym("n"), 1usize.into()])
        .unwrap();
    let y = net.result(None).unwrap();
    assert!(net.result(Some("z")).is_err());
    let loss = net.mse(y, target, cupola_train::Reduction::Mean).unwrap();
    let step = net
        .train_step(loss, &Optimiser::sgd(), &StepOptions::default())
        .unwrap();
    let mut r = Run::new(step);
    assert_eq!(r.slot("w"), [0.5, -0.5]);
    let x = Tensor::from_slice(&[2, 2], &[1.0f32, 0.0, 0.0, 1.0]).unwrap();
    let target = Tensor::from_slice(&[2, 1], &[2.0f32, -1.0]).unwrap();
    for _ in 0..60 {
        r.step(0.5, &[("x", x.clone()), ("target", target.clone())]);
    }
    close("w", &r.slot("w"), &[2.0, -1.0], 0.0, 1e-4);
    assert!(Net::from_graph(g, &|_, _| false).is_err());
}

#[test]
fn losses_and_limits_that_make_no_sense_are_refused() {
    let (mut net, loss) = perceptron();
    let sgd = Optimiser::sgd();
    let clip = Some(Clip::Norm(f64::NAN));
    assert!(
        net.train_step(
            loss,
            &sgd,
            &StepOptions {
                clip,
                ..StepOptions::default()
            }
        )
        .is_err()
    );
    let rows = net.cross_entropy(
        net.result(None).unwrap(),
        net.graph.inputs()[1],
        &CrossEntropy {
            reduction: cupola_train::Reduction::None,
            ..CrossEntropy::default()
        },
    );
    let e = net
        .train_step(rows.unwrap(), &sgd, &StepOptions::default())
        .unwrap_err();
    assert!(e.to_string().contains("scalar"), "{e}");
    let autocast = Some(DType::F64);
    assert!(
        net.train_step(
            loss,
            &sgd,
            &StepOptions {
                autocast,
                ..StepOptions::default()
            }
        )
        .is_err()
    );
}

#[test]
fn shards_sum_gradients_and_agree_on_batch_statistics() {
    let mut net = Net::new("norm");
    let x = net
        .input("x", DType::F32, [Dim::sym("n"), 3usize.into()])
        .unwrap();
    let y = net.batch_norm("bn", x, &BatchNorm::default()).unwrap();
    let square = net.mul(y, y).unwrap();
    let half = net.linear("fc", square, 1).unwrap();
    let loss = net
        .graph
        .reduce(cupola_ir::ops::ReduceKind::Sum, half, &[0, 1])
        .unwrap();
    let step = |shards: usize| {
        let options = StepOptions {
            shards,
            sync_batch_norm: true,
            ..StepOptions::default()
        };
        net.train_step(loss, &Optimiser::sgd(), &options).unwrap()
    };
    let count = |step: &cupola_train::TrainStep| {
        step.graph
            .nodes()
            .filter(|(_, n)| n.op.name() == "collective")
            .count()
    };
    assert_eq!(count(&step(1)), 0);
    // Two statistics, their count, four parameters and the loss; nothing before the statistics is learnt.
    let two = step(2);
    assert_eq!(count(&two), 8);
    cupola_ir::verify(&two.graph).expect("a sound graph");
    let mut one = Run::new(step(1));
    let x = Tensor::from_slice(&[2, 3], &[1.0f32, 2.0, 3.0, -1.0, 0.5, 0.0]).unwrap();
    one.step(0.1, &[("x", x)]);
    close(
        "mean",
        &one.slot("bn.running_mean"),
        &[0.0, 0.125, 0.15],
        0.0,
        1e-6,
    );
    close(
        "var",
        &one.slot("bn.running_var"),
        &[1.1, 1.0125, 1.35],
        0.0,
        1e-6,
    );
}

#[test]
fn gradients_through_statistics_of_all_shards_are_summed() {
    let mut net = Net::new("norm");
    let x = net
        .input("x", DType::F32, [Dim::sym("n"), 3usize.into()])
        .unwrap();
    let h = net.linear_without_bias("fc", x, 2).unwrap();
    let settings = BatchNorm {
        affine: false,
        ..BatchNorm::default()
    };
    let y = net.batch_norm("bn", h, &settings).unwrap();
    let y = net.relu(y).unwrap();
    let sum = cupola_ir::ops::ReduceKind::Sum;
    let loss = net.graph.reduce(sum, y, &[0, 1]).unwrap();
    let options = StepOptions {
        shards: 4,
        sync_batch_norm: true,
        ..StepOptions::default()
    };
    let step = net.train_step(loss, &Optimiser::sgd(), &options).unwrap();
    cupola_ir::verify(&step.graph).expect("a sound graph");
    let nodes = step.graph.nodes();
    let collectives = nodes.filter(|(_, n)| n.op.name() == "collective").count();
    // Two statistics and their count forward, two backward, one parameter, the loss.
    assert_eq!(collectives, 7);
}

#[test]
fn padding_rows_leave_no_trace_in_inference() {
    let mut net = Net::new("padding");
    let x = net.input("x", DType::I64, [Dim::sym("batch")]).unwrap();
    let settings = cupola_train::layers::Embedding {
        padding: Some(0),
        ..cupola_train::layers::Embedding::new(4, 3)
    };
    let y = net.embedding("e", x, &settings).unwrap();
    net.output("y", y);
    let rows = Tensor::from_slice(&[4, 3], &[1.0f32; 12]).unwrap();
    let graph = net.inference_graph(&|_| Some(rows.clone())).unwrap();
    let ops: Vec<String> = graph.nodes().map(|(_, n)| n.op.name()).collect();
    assert_eq!(ops, ["input", "const", "gather"]);
}

#[test]
fn a_double_model_is_f64_throughout_and_begins_with_the_numbers_of_a_single_one() {
    let model = |double: bool| {
        let mut net = Net::new("norm");
        if double {
            net = net.double();
        }
        let dims = [Dim::sym("n"), 3usize.into()];
        let x = net.input("x", net.dtype(), dims.clone()).unwrap();
        let y = net.batch_norm("bn", x, &BatchNorm::default()).unwrap();
        let y = net.linear("fc", y, 3).unwrap();
        let y = net.dropout(y, 0.25).unwrap();
        let target = net.input("target", net.dtype(), dims).unwrap();
        let loss = net.mse(y, target, cupola_train::Reduction::Mean).unwrap();
        let options = StepOptions {
            clip: Some(Clip::Norm(0.5)),
            ..StepOptions::default()
        };
        net.train_step(loss, &Optimiser::adamw(), &options).unwrap()
    };
    let step = model(true);
    for (_, node) in step.graph.nodes() {
        for v in &node.results {
            assert_ne!(step.graph.dtype(*v), DType::F32, "{}", node.op.name());
        }
    }
    let (mut wide, mut single) = (Run::new(step), Run::new(model(false)));
    for slot in ["fc.weight", "fc.bias", "bn.running_var"] {
        assert_eq!(wide.slot(slot), single.slot(slot));
    }
    let x: Vec<f64> = (0..24).map(|i| f64::from(i as f32 * 0.37).sin()).collect();
    let of = |values: &[f64], double: bool| match double {
        true => Tensor::from_slice(&[8, 3], values).unwrap(),
        false => {
            let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            Tensor::from_slice(&[8, 3], &values).unwrap()
        }
    };
    for _ in 0..5 {
        let inputs = |double| [("x", of(&x, double)), ("target", of(&x, double))];
        let (a, b) = (
            wide.step(0.1, &inputs(true)),
            single.step(0.1, &inputs(false)),
        );
        assert_eq!(a["loss"].dtype(), DType::F64);
        close(
            "loss",
            &numbers(&b["loss"]),
            &numbers(&a["loss"]),
            1e-5,
            0.0,
        );
    }
}

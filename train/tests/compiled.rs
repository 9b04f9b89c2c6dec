//! Whole training steps through the pipeline, run by the kernel interpreter: what the graph gives.

#[path = "../../passes/tests/support/mod.rs"]
mod plans;
mod support;

use cupola_ir::ops::{CoreOp, Reshape};
use cupola_ir::{Bindings, DType, Dim, Graph, Op, Tensor, ValueId};
use cupola_passes::{DeviceId, Level, Step};
use cupola_train::layers::{BatchNorm, Conv, Pool};
use cupola_train::{
    Clip, CrossEntropy, GradScaler, Net, Optimiser, SlotKind, StepOptions, TrainStep, zoo,
};
use std::collections::BTreeMap;
use support::close;

/// What fusion and another order of sums may change in f32.
const TOLERANCE: f64 = 1e-5;

/// The step with its states as inputs and outputs.
fn without_states(step: &TrainStep) -> Graph {
    let mut g = step.graph.clone();
    let slots = std::mem::take(&mut g.slots);
    let nodes: Vec<_> = g.nodes().map(|(id, n)| (id, n.clone())).collect();
    let mut reads: Vec<(ValueId, String)> = vec![];
    for (id, node) in nodes {
        match &node.op {
            Op::Core(CoreOp::ReadState(p)) => reads.push((node.results[0], p.slot.clone())),
            Op::Core(CoreOp::WriteState(p)) => {
                g.output(&format!("next {}", p.slot), node.operands[0]);
                let dims = g.dims(node.operands[0]);
                g.node_mut(id).op = Reshape { dims }.into();
            }
            _ => {}
        }
    }
    for (value, slot) in reads {
        let input = g.input(&slot, slots[&slot].ty.clone()).expect("an input");
        g.replace(value, input);
    }
    g.compact().expect("an order");
    g
}

fn elements(t: &Tensor) -> plans::T {
    plans::T {
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        v: plans::reference::elements(t),
    }
}

fn ramp(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let v: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_slice(shape, &v).expect("a tensor")
}

/// Compiles a step at every level and compares all that it gives and leaves behind.
fn check(step: &TrainStep, data: &[(&str, Tensor)], tolerance: f64) {
    let g = without_states(step);
    let mut all: BTreeMap<String, Tensor> = (step.slots.iter())
        .map(|s| (s.name.clone(), step.initial(s, 5).expect("drawn")))
        .collect();
    for slot in step.slots.iter().filter(|s| s.kind == SlotKind::Optimiser) {
        // Memory as after some steps.
        if slot.ty.rank() > 0 {
            let shape = slot.ty.const_shape().expect("known");
            let v: Vec<f32> = (0..shape.iter().product())
                .map(|i| 0.01 + (i as f32 * 0.11).cos().abs())
                .collect();
            let memory = Tensor::from_slice(&shape, &v).expect("a tensor");
            all.insert(slot.name.clone(), memory);
        }
    }
    all.extend(step.hyper(3, 0.01));
    all.extend(data.iter().map(|(n, t)| (n.to_string(), t.clone())));
    let names = g.inputs().iter().map(|v| g.input_name(*v));
    let given: Vec<plans::T> = names.map(|n| elements(&all[n])).collect();
    let target = plans::target(plans::products);
    for level in [Level::Separate, Level::Merge] {
        let c = plans::compiled_at(level, &g, &[&target], DeviceId::HOST);
        let mut bindings = Bindings::default();
        let want = plans::reference::run(&g, &given, &mut bindings);
        let symbols = bindings.sorted();
        let symbols: Vec<(&str, i64)> = symbols.iter().map(|(s, n)| (s.name(), *n)).collect();
        let got = plans::run(&c, &given, &symbols);
        for ((name, _), (got, want)) in g.outputs().iter().zip(got.iter().zip(&want)) {
            let numbers = |t: &plans::T| t.v.iter().map(|v| v.f()).collect::<Vec<_>>();
            let what = format!("{level:?} {name}");
            close(&what, &numbers(got), &numbers(want), tolerance, tolerance);
        }
    }
}

/// What other shards need is handed over as soon as it is there: totals before the forward pass, gradients during the backward
/// pass.
#[test]
fn shards_hand_over_what_they_have_before_they_go_on() {
    let m = zoo::mlp(&[784, 512, 512, 10]).expect("a model");
    let options = StepOptions {
        shards: 2,
        ..StepOptions::default()
    };
    let step = m.net.train_step(m.loss, &Optimiser::adam(), &options);
    let step = step.expect("a step");
    let target = plans::target(plans::products);
    let c = plans::compiled_at(Level::Merge, &step.graph, &[&target], DeviceId::HOST);
    let mut launched = 0;
    let mut begun = vec![];
    for step in &c.plan.steps {
        match step {
            Step::Launch { .. } => launched += 1,
            Step::Collective { .. } => begun.push(launched),
            _ => {}
        }
    }
    // Totals, then gradients: the last layer's long before the first's.
    assert!(begun.len() > 2 && begun[0] <= 4, "{begun:?}");
    assert!(
        begun[1] > begun[0] && begun[1] + 6 < begun[begun.len() - 1],
        "{begun:?}"
    );
}

fn labels() -> Tensor {
    Tensor::vector(&[0i64, 2, 1, -100])
}

#[test]
fn a_step_with_clipping_and_adam() {
    let m = zoo::mlp(&[4, 8, 3]).expect("a model");
    let options = StepOptions {
        clip: Some(Clip::Norm(0.1)),
        ..StepOptions::default()
    };
    let optimiser = Optimiser::adamw().no_decay_of_vectors();
    let step = m
        .net
        .train_step(m.loss, &optimiser, &options)
        .expect("a step");
    check(
        &step,
        &[("x", ramp(&[4, 4])), ("labels", labels())],
        TOLERANCE,
    );
}

#[test]
fn a_step_in_f16_that_is_taken_and_one_that_is_not() {
    let m = zoo::mlp(&[4, 8, 3]).expect("a model");
    let options = StepOptions {
        autocast: Some(DType::F16),
        scaler: Some(GradScaler {
            init_scale: 256.0,
            ..GradScaler::default()
        }),
        ..StepOptions::default()
    };
    let step = m
        .net
        .train_step(m.loss, &Optimiser::momentum(0.9), &options);
    let step = step.expect("a step");
    check(
        &step,
        &[("x", ramp(&[4, 4])), ("labels", labels())],
        4.0 * f64::from(half::f16::EPSILON),
    );
    let mut x: Vec<f32> = ramp(&[4, 4]).to_vec().expect("f32");
    x[5] = f32::INFINITY;
    let x = Tensor::from_slice(&[4, 4], &x).expect("a tensor");
    check(
        &step,
        &[("x", x), ("labels", labels())],
        4.0 * f64::from(half::f16::EPSILON),
    );
}

#[test]
fn a_step_with_convolution_statistics_and_pooling() {
    let mut net = Net::new("cnn");
    let batch = Dim::sym("batch");
    let dims = [batch.clone(), 1usize.into(), 6usize.into(), 6usize.into()];
    let x = net.input("x", DType::F32, dims).unwrap();
    let labels_in = net.input("labels", DType::I64, [batch]).unwrap();
    let h = net.conv("c1", x, &Conv::new(4, [3, 3]).padding(1)).unwrap();
    let h = net.batch_norm("n1", h, &BatchNorm::default()).unwrap();
    let h = net.relu(h).unwrap();
    let h = net.max_pool(h, &Pool::new([2, 2])).unwrap();
    let h = net.flatten(h, 1).unwrap();
    let y = net.linear("f1", h, 3).unwrap();
    let smooth = CrossEntropy {
        smoothing: 0.1,
        ..CrossEntropy::default()
    };
    let loss = net.cross_entropy(y, labels_in, &smooth).unwrap();
    let options = StepOptions {
        clip: Some(Clip::Value(0.05)),
        grad_norm: true,
        ..StepOptions::default()
    };
    let step = net.train_step(loss, &Optimiser::momentum(0.9), &options);
    let data = [("x", ramp(&[4, 1, 6, 6])), ("labels", labels())];
    check(&step.expect("a step"), &data, TOLERANCE);
}

#[test]
fn a_step_of_a_transformer() {
    let m = zoo::gpt(&zoo::Gpt {
        vocabulary: 11,
        width: 8,
        layers: 1,
        heads: 2,
        context: 9,
        dropout: 0.0,
    });
    let m = m.expect("a model");
    let step = m
        .net
        .train_step(m.loss, &Optimiser::adam(), &StepOptions::default());
    let tokens = |from: i64| {
        let v: Vec<i64> = (0..8).map(|i| (i * 3 + from) % 11).collect();
        Tensor::from_slice(&[2, 4], &v).expect("tokens")
    };
    check(
        &step.expect("a step"),
        &[("x", tokens(0)), ("labels", tokens(3))],
        TOLERANCE,
    );
}

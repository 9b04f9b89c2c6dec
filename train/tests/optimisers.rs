//! A hundred steps of every optimiser beside those of PyTorch (`fixtures/make.py`), on the reference interpreter.

mod support;

use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Graph, Scalar, Tensor, ValueId};
use cupola_train::{
    Clip, Group, Init, Members, Net, Optimiser, Rule, Schedule, StepOptions, TrainStep,
};
use support::fixture::Fixture;
use support::{Run, close, each, numbers};

const STEPS: usize = 100;
const EVERY: usize = 10;

fn sgd(momentum: f64, dampening: f64, nesterov: bool) -> Optimiser {
    Optimiser::new(Rule::Sgd {
        momentum,
        dampening,
        nesterov,
    })
}

fn adam(betas: (f64, f64), epsilon: f64, amsgrad: bool, decoupled: bool) -> Optimiser {
    Optimiser::new(Rule::Adam {
        betas,
        epsilon,
        amsgrad,
        decoupled,
    })
}

fn grouped() -> Optimiser {
    let mut all = Optimiser::adamw().weight_decay(0.2);
    all.groups.push(Group {
        members: Members::Vectors,
        rate: 0.5,
        weight_decay: Some(0.0),
    });
    all
}

/// An optimiser, its base rate and its clipping, by the name of the case.
fn setting(name: &str) -> (Optimiser, f64, Option<Clip>) {
    let usual = (0.9, 0.999);
    let up = |o: Optimiser| Optimiser {
        maximise: true,
        ..o
    };
    match name {
        "sgd" => (Optimiser::sgd(), 0.1, None),
        "sgd_momentum" => (Optimiser::momentum(0.9), 0.05, None),
        "sgd_all" => (sgd(0.9, 0.1, false).weight_decay(0.01), 0.05, None),
        "sgd_nesterov" => (sgd(0.8, 0.0, true).weight_decay(0.02), 0.05, None),
        "sgd_maximise" => (up(sgd(0.5, 0.0, false).weight_decay(0.1)), 0.05, None),
        "adam" => (Optimiser::adam(), 0.05, None),
        "adam_decay" => (Optimiser::adam().weight_decay(0.1), 0.05, None),
        "adam_amsgrad" => (adam((0.8, 0.9), 1e-8, true, false), 0.05, None),
        "adam_maximise" => (up(adam(usual, 1e-4, false, false)), 0.05, None),
        "adamw" => (Optimiser::adamw(), 0.05, None),
        "adamw_amsgrad" => (adam(usual, 1e-8, true, true).weight_decay(0.2), 0.05, None),
        "adamw_groups" => (grouped(), 0.05, None),
        "clip_norm" => (Optimiser::momentum(0.9), 0.05, Some(Clip::Norm(0.7))),
        "clip_value" => (Optimiser::adam(), 0.05, Some(Clip::Value(0.2))),
        other => panic!("{other} is not tested"),
    }
}

/// A step over parameters w and b whose gradients are the inputs gw and gb.
fn step(fixture: &Fixture, optimiser: &Optimiser, clip: Option<Clip>) -> TrainStep {
    let mut net = Net::new("given");
    let mut loss: Option<ValueId> = None;
    for name in ["w", "b"] {
        let first = fixture.0[&format!("p0.{name}")].clone();
        let shape = first.shape().to_vec();
        let g = net
            .input(&format!("g{name}"), DType::F32, shape.clone())
            .unwrap();
        let p = net.parameter(name, &shape, Init::Values(first)).unwrap();
        let graph = &mut net.graph;
        let product = graph.binary(Scalar::Mul, p, g).unwrap();
        let axes: Vec<usize> = (0..shape.len()).collect();
        let sum = graph.reduce(ReduceKind::Sum, product, &axes).unwrap();
        loss = Some(match loss {
            Some(l) => graph.binary(Scalar::Add, l, sum).unwrap(),
            None => sum,
        });
    }
    let options = StepOptions {
        clip,
        ..StepOptions::default()
    };
    net.train_step(loss.unwrap(), optimiser, &options).unwrap()
}

/// One entry of a tensor's first axis.
fn row(t: &Tensor, at: usize) -> Tensor {
    let shape = &t.shape()[1..];
    let len: usize = shape.iter().product();
    let all: Vec<f32> = t.to_vec().expect("f32");
    Tensor::from_slice(shape, &all[at * len..(at + 1) * len]).expect("a row")
}

#[test]
fn optimisers_agree_with_pytorch_over_a_hundred_steps() {
    let fixture = Fixture::read("optimisers");
    let cases = fixture.cases();
    assert_eq!(cases.len(), 14);
    let steps = STEPS as u64;
    let schedule = Schedule::Cosine {
        steps,
        minimum: 0.0,
    };
    each(cases.iter().map(String::as_str), |name| {
        let (optimiser, base, clip) = setting(name);
        let mut r = Run::new(step(&fixture, &optimiser, clip));
        for k in 0..STEPS {
            let rate = schedule.rate(base, k as u64);
            let grads = ["w", "b"].map(|n| row(&fixture.0[&format!("g.{n}")], k));
            let [gw, gb] = grads;
            r.step(rate, &[("gw", gw), ("gb", gb)]);
            if (k + 1) % EVERY == 0 {
                for n in ["w", "b"] {
                    let want = numbers(&row(fixture.get(name, n), k / EVERY));
                    close(
                        &format!("{name} {n} after {}", k + 1),
                        &r.slot(n),
                        &want,
                        1e-5,
                        1e-6,
                    );
                }
            }
        }
    });
}

#[test]
fn steps_continue_from_saved_state() {
    let fixture = Fixture::read("optimisers");
    let (optimiser, ..) = setting("adam_amsgrad");
    let grads = |k: usize| {
        let [w, b] = ["w", "b"].map(|n| row(&fixture.0[&format!("g.{n}")], k));
        [("gw", w), ("gb", b)]
    };
    let mut whole = Run::new(step(&fixture, &optimiser, None));
    let mut half = Run::new(step(&fixture, &optimiser, None));
    for k in 0..6 {
        whole.step(0.1, &grads(k));
        if k < 3 {
            half.step(0.1, &grads(k));
        }
    }
    let mut rest = Run::new(step(&fixture, &optimiser, None));
    rest.env.states = half.env.states.clone();
    rest.taken = half.slot("optimiser.step")[0] as u64;
    for k in 3..6 {
        rest.step(0.1, &grads(k));
    }
    assert_eq!(whole.env.states, rest.env.states);
}

#[test]
fn parameters_of_other_types_keep_them() {
    for dtype in [DType::BF16, DType::F64] {
        let mut g = Graph::new("g");
        let w = cupola_ir::convert::splat(1.0, dtype).expect("a float");
        let w = g.constant(w.reshaped(vec![1]).expect("one")).unwrap();
        g.set_name(w, "w");
        g.output("w", w);
        let mut net = Net::from_graph(g, &|_, _| true).unwrap();
        let w = net.result(None).unwrap();
        let loss = net.mul(w, w).unwrap();
        let loss = net.graph.reduce(ReduceKind::Sum, loss, &[0]).unwrap();
        let step = net
            .train_step(loss, &Optimiser::adamw(), &StepOptions::default())
            .unwrap();
        assert!(
            step.slots
                .iter()
                .filter(|s| s.name.contains('w'))
                .all(|s| s.ty.dtype == dtype)
        );
        let mut r = Run::new(step);
        r.step(0.5, &[]);
        close("w", &r.slot("w"), &[0.495], 0.005, 0.0);
    }
}

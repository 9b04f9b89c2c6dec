//! Runs training steps with the reference interpreter.
#![allow(dead_code)]

pub mod fixture;

use cupola_ir::convert;
use cupola_ir::eval::{self, Env};
use cupola_ir::{Graph, Tensor, Value};
use cupola_train::TrainStep;
use std::collections::BTreeMap;

/// A step with its state.
pub struct Run {
    pub step: TrainStep,
    pub env: Env,
    pub taken: u64,
}

impl Run {
    /// A step whose state begins as it is drawn with seed 0.
    pub fn new(step: TrainStep) -> Run {
        let mut env = Env::default();
        for slot in &step.slots {
            let first = step.initial(slot, 0).expect("drawn");
            env.states.insert(slot.name.clone(), first.into());
        }
        Run {
            step,
            env,
            taken: 0,
        }
    }

    /// Runs one step; its outputs by name.
    pub fn step(&mut self, lr: f64, inputs: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
        let mut all: BTreeMap<String, Tensor> = inputs
            .iter()
            .map(|(n, t)| (n.to_string(), t.clone()))
            .collect();
        all.extend(self.step.hyper(self.taken + 1, lr));
        let out = run(&self.step.graph, &all, &mut self.env);
        let skipped = out.get("found_inf").is_some_and(|t| scalar(t) != 0.0);
        self.taken += u64::from(!skipped);
        out
    }

    /// A slot's elements.
    pub fn slot(&self, name: &str) -> Vec<f64> {
        numbers(self.env.states[name].as_tensor().expect("a tensor"))
    }
}

/// Runs a graph on inputs by name; extra ones are left out.
pub fn run(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    env: &mut Env,
) -> BTreeMap<String, Tensor> {
    cupola_ir::verify(graph).expect("a sound graph");
    let names = graph.inputs().iter().map(|v| graph.input_name(*v));
    let values: Vec<Value> = names
        .map(|n| {
            inputs
                .get(n)
                .unwrap_or_else(|| panic!("no input '{n}'"))
                .clone()
                .into()
        })
        .collect();
    let out = eval::run(graph, &values, env).expect("runs");
    let names = graph.outputs().iter().map(|(n, _)| n.to_string());
    names
        .zip(out)
        .map(|(n, v)| (n, v.as_tensor().expect("a tensor").clone()))
        .collect()
}

/// Elements as f64.
pub fn numbers(t: &Tensor) -> Vec<f64> {
    convert::lanes(t).expect("numbers").into_f64s()
}

/// The element of a scalar.
pub fn scalar(t: &Tensor) -> f64 {
    assert_eq!(t.len(), 1);
    numbers(t)[0]
}

/// Asserts that numbers agree within a relative and an absolute tolerance; NaN agrees with NaN.
pub fn close(what: &str, got: &[f64], want: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if g.is_nan() && w.is_nan() || g == w {
            continue;
        }
        let bound = absolute + relative * w.abs();
        assert!((g - w).abs() <= bound, "{what} [{i}]: {g} instead of {w}");
    }
}

/// Checks every case and names all that fail.
pub fn each<'a>(cases: impl Iterator<Item = &'a str>, check: impl Fn(&str)) {
    let failed: Vec<&str> = cases
        .filter(|case| {
            let run = std::panic::AssertUnwindSafe(|| check(case));
            std::panic::catch_unwind(run).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "these failed: {failed:?}");
}

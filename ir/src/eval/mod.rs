//! The reference interpreter: the meaning of a graph.
//!
//! Every backend and every pass is held against it, so it prefers plain loops: elements are decoded to wide numbers
//! (`f64`, `i64`, `u64`), computed on, and rounded to the dtype once per op; sums accumulate in `f64`. The host steps
//! of a compiled program and constant folding use it too, through [`eval_op`].
//!
//! Nothing here panics or grows without bound on bad input: operands are checked against the op's own contract with
//! their actual extents, and sizes against [`Limits`] before memory is taken.
//!
//! Reading order: this file, `bind`, `op`, `control`, then the families: `scalar`, `cells` and `view`, `reduce`,
//! `index`, `product`; `exchange` for several replicas.

pub mod bind;
mod cells;
mod control;
mod exchange;
mod index;
mod op;
pub(crate) mod product;
pub mod random;
mod reduce;
pub mod scalar;
pub(crate) mod special;
mod view;

pub use control::{Regions, join as join_rows, row, rows, run_control};
pub use exchange::{Exchange, Exchanging, combine};
pub use op::eval_op;

use crate::dim::Bindings;
use crate::error::{IrError, Result};
use crate::graph::{Graph, Node, ValueId};
use crate::ops::{CoreOp, Op};
use crate::tensor::{Tensor, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Bounds on the work of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one tensor.
    pub tensor_size: usize,
    /// Most bytes of all computed values alive at once.
    pub total_size: usize,
    /// Most iterations of one loop or scan.
    pub trips: u64,
    /// Most nodes evaluated, those of regions once per iteration.
    pub steps: u64,
    /// Most regions and decompositions inside each other.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tensor_size: 1 << 34,
            total_size: 1 << 36,
            trips: 1 << 32,
            steps: 1 << 40,
            depth: 48,
        }
    }
}

/// When a run stops before it is done: between two nodes, once any flag is set or the deadline has passed.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Set by whoever wants the run to end.
    pub flags: Vec<Arc<AtomicBool>>,
    /// The last moment.
    pub deadline: Option<Instant>,
}

impl Stop {
    /// Whether to go on.
    ///
    /// # Errors
    /// [`IrError::Cancelled`] once a flag is set; [`IrError::Limit`] after the deadline.
    pub fn check(&self) -> Result<()> {
        if self.flags.iter().any(|f| f.load(Ordering::Relaxed)) {
            return Err(IrError::Cancelled);
        }
        match self.deadline {
            Some(last) if Instant::now() > last => Err(IrError::Limit("time of one run".into())),
            _ => Ok(()),
        }
    }
}

/// What a graph is run with, and what a run leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// Values of symbols. [`run`] binds those of inputs, weights and states anew; the others are taken as given.
    pub bindings: Bindings,
    /// Weights by name.
    pub params: BTreeMap<String, Tensor>,
    /// State slots by name. A missing one starts at its initial value; a run that fails changes none.
    pub states: BTreeMap<String, Value>,
    /// Key of random numbers.
    pub seed: u64,
    /// Number of the run, for random numbers; [`run`] increments it when it succeeds.
    pub run: u64,
    /// Bounds on the work.
    pub limits: Limits,
    /// When the run stops before it is done.
    pub stop: Stop,
    /// The way to the other replicas; without it collectives of several are refused.
    pub exchange: Option<Exchange>,
    /// States written so far in this run.
    written: BTreeMap<String, Value>,
    steps: u64,
    live: usize,
    depth: usize,
}

/// Tensors of equal extents but for one axis, joined along it; at least one.
pub(crate) fn join(parts: &[&Tensor], axis: usize) -> Result<Tensor, String> {
    view::concat(&crate::ops::Concat { axis }, parts)
}

/// Runs a graph: values of its outputs for values of its inputs, both in order.
///
/// # Errors
/// [`IrError::Run`] for inputs, weights or states that are missing or do not fit, and for values that an op does not
/// allow; [`IrError::Limit`]; [`IrError::Cancelled`].
pub fn run(graph: &Graph, inputs: &[Value], env: &mut Env) -> Result<Vec<Value>> {
    for (name, slot) in &graph.slots {
        if !env.states.contains_key(name) {
            env.states
                .insert(name.clone(), Value::Tensor(slot.initial.clone()));
        }
    }
    env.written.clear();
    (env.steps, env.live, env.depth) = (0, 0, 0);
    let outputs = region(graph, inputs, env);
    let written = std::mem::take(&mut env.written);
    if outputs.is_ok() {
        env.states.extend(written);
        env.run = env.run.wrapping_add(1);
    }
    outputs
}

/// Runs a graph or region with the symbols bound so far; those that it binds itself are forgotten at the end unless
/// it is the outermost.
fn region(graph: &Graph, inputs: &[Value], env: &mut Env) -> Result<Vec<Value>> {
    if env.depth >= env.limits.depth {
        return Err(IrError::Limit(format!(
            "{} regions inside each other",
            env.depth
        )));
    }
    let outer = (env.depth > 0).then(|| env.bindings.clone());
    let (depth, live) = (env.depth, env.live);
    env.depth += 1;
    let outputs = bind::enter(graph, inputs, env).and_then(|()| nodes(graph, inputs, env));
    env.depth = depth;
    env.live = live;
    if let Some(outer) = outer {
        env.bindings = outer;
    }
    outputs
}

fn nodes(graph: &Graph, inputs: &[Value], env: &mut Env) -> Result<Vec<Value>> {
    let mut uses = vec![0u32; graph.value_count()];
    let operands = graph.nodes().flat_map(|(_, n)| &n.operands);
    for v in operands.chain(graph.outputs().iter().map(|(_, v)| v)) {
        let count = uses.get_mut(v.index());
        *count.ok_or_else(|| IrError::Invalid(format!("{v} does not exist")))? += 1;
    }
    let mut values: Vec<Option<Value>> = vec![None; graph.value_count()];
    for (v, value) in graph.inputs().iter().zip(inputs) {
        values[v.index()] = Some(value.clone());
    }
    for (_, node) in graph.nodes() {
        if matches!(node.op, Op::Core(CoreOp::Input(_))) {
            continue;
        }
        let results = one_node(graph, node, &values, env).map_err(|e| locate(e, node))?;
        for (v, value) in node.results.iter().zip(results) {
            if uses[v.index()] > 0 {
                env.live = env.live.saturating_add(size(&value));
                values[v.index()] = Some(value);
            }
        }
        for v in &node.operands {
            uses[v.index()] -= 1;
            if uses[v.index()] == 0
                && let Some(dead) = values[v.index()].take()
            {
                env.live = env.live.saturating_sub(size(&dead));
            }
        }
        if env.live > env.limits.total_size {
            return Err(IrError::Limit(format!(
                "values take {} bytes at once, {} are allowed",
                env.live, env.limits.total_size
            )));
        }
    }
    let outputs = graph.outputs().iter();
    outputs.map(|(_, v)| get(&values, *v).cloned()).collect()
}

fn get(values: &[Option<Value>], v: ValueId) -> Result<&Value> {
    values[v.index()]
        .as_ref()
        .ok_or_else(|| IrError::Invalid(format!("{v} is used before it is defined")))
}

fn one_node(
    graph: &Graph,
    node: &Node,
    values: &[Option<Value>],
    env: &mut Env,
) -> Result<Vec<Value>> {
    env.stop.check()?;
    env.steps += 1;
    if env.steps > env.limits.steps {
        return Err(IrError::Limit(format!("{} steps", env.limits.steps)));
    }
    let operands = node.operands.iter().map(|v| get(values, *v));
    let operands: Vec<&Value> = operands.collect::<Result<_>>()?;
    let types: Vec<_> = node.results.iter().map(|v| graph.ty(*v).clone()).collect();
    eval_op(&node.op, &operands, &types, env)
}

/// Adds the source node's name to a run-time error.
fn locate(error: IrError, node: &Node) -> IrError {
    match (error, node.origins.first()) {
        (IrError::Run { op, what }, Some(o)) if !op.contains('\'') => {
            IrError::run(format!("{} '{}' ({op})", o.op, o.node), what)
        }
        (error, _) => error,
    }
}

/// Bytes that a value takes.
fn size(value: &Value) -> usize {
    match value {
        Value::Tensor(t) => match t.strings() {
            Some(s) => s.iter().map(|s| s.len() + size_of::<String>()).sum(),
            None => t.bytes().len(),
        },
        Value::Sequence(v) => v.iter().map(size).sum(),
        Value::Optional(v) => v.as_deref().map_or(0, size),
    }
}

#[cfg(test)]
mod tests;

//! Reverse-mode differentiation: from a graph to the same graph with vector-Jacobian products appended.
//!
//! [`vjp`] walks the nodes that lie on a path from one of `wrt` to a seed, from the seeds back. One rule per core op, in
//! one file per family, builds the operands' cotangents from core ops, so that what comes out is differentiated, fused and
//! planned as anything else. Composites have rules of their own (`CompositeDef::vjp`) or are differentiated through their
//! decomposition, whose values merge with those of the forward pass where no device claims the composite.
//!
//! Cotangents have the dtype of the value that they belong to and are summed by additions in it. A value that nothing
//! depends on has none: no zeros are made where none are needed. Only floats have gradients; values of other dtypes end a
//! path. Reading order: this file, `rule`, `map`, `view`, `reduce`, `contract`, `index`, `control`, `repeat`,
//! `back`, `deferred`, and `rematerialise` for memory.

mod back;
mod contract;
mod control;
mod deferred;
mod index;
mod map;
mod reduce;
mod rematerialise;
mod repeat;
mod rule;
mod view;

pub(crate) use rematerialise::purpose;
pub use rematerialise::{Kept, rematerialise};

use crate::{PassError, Result};
use cupola_ir::{CompositeOp, CoreOp, DType, Graph, IrError, NodeId, Op, ValueId, ValueType};
use rustc_hash::{FxHashMap, FxHashSet};

/// Result inside of rules.
type Ir<T> = Result<T, IrError>;

/// Gradients of some values, as far as there are any.
type Grads = Ir<Vec<Option<ValueId>>>;

/// Appends the vector-Jacobian product: for each of `wrt` the sum over `seeds` (a value and a cotangent of its type) of
/// cotangent times d value / d wrt; `None` where no path of floats leads from it to a seed. What is asked for may lie on the
/// way to something else that is; both are total derivatives. Applied to its own results it gives higher derivatives.
/// Symbolic extents are followed. Values keep their ids. Nodes are only appended, but that scans and loops on the way give
/// more results, and that recurrent layers become scans in front of what uses them (ids of nodes change then).
///
/// At kinks and ties: `max(x, c)` and `min(x, c)` with a constant `c` (relu, clamp) have no slope at `c`; equal operands of
/// other `max` and `min` share alike, as equal elements of a reduction do; the largest of a window is its first.
///
/// # Errors
/// [`PassError::Options`] for seeds that are no floats or have a cotangent of another type; [`PassError::Unsupported`] with
/// the node's name where an op on the way has no gradient; [`PassError::Graph`] for what an op finds wrong.
pub fn vjp(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    for (value, cotangent) in seeds {
        let (v, c) = (graph.ty(*value), graph.ty(*cotangent));
        let fits = v
            .as_tensor()
            .zip(c.as_tensor())
            .is_some_and(|(v, c)| v.dtype.is_float() && v.dtype == c.dtype && v.rank() == c.rank());
        if !fits {
            return Err(PassError::Options(format!(
                "{value} of type {v} cannot be differentiated with a cotangent of type {c}: both must be floats of one type"
            )));
        }
    }
    let before = graph.node_count();
    let result = open_layers(graph, seeds, wrt)
        .and_then(|()| backward(graph, seeds, wrt, &FxHashSet::default()));
    graph.set_origin(None);
    tracing::debug!(nodes = graph.node_count() - before, "differentiated");
    result.map_err(|error| match error {
        IrError::Unsupported(what) => PassError::Unsupported {
            node: "autodiff".into(),
            what,
        },
        error => PassError::Graph {
            pass: "autodiff",
            error,
        },
    })
}

/// As [`vjp`] of one float scalar, seeded by one.
///
/// # Errors
/// As [`vjp`], and for a loss that has axes.
pub fn gradients(
    graph: &mut Graph,
    loss: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    let ty = graph.ty(loss);
    let scalar = ty
        .as_tensor()
        .is_some_and(|t| t.dtype.is_float() && t.rank() == 0);
    if !scalar {
        return Err(PassError::Options(format!(
            "{loss} of type {ty} is no loss: sum it to one float"
        )));
    }
    let one = graph.number_like(1.0, loss);
    let one = one.map_err(|error| PassError::Graph {
        pass: "autodiff",
        error,
    })?;
    vjp(graph, &[(loss, one)], wrt)
}

/// Puts recurrent layers on the way in the form of scans, whose steps can be kept: beside a layer as one kernel they would be
/// computed twice. Seeds and what is asked for keep their ids.
fn open_layers(graph: &mut Graph, seeds: &[(ValueId, ValueId)], wrt: &[ValueId]) -> Ir<()> {
    let order = reaching(graph, seeds, &FxHashSet::default());
    let active = depending(graph, &order, wrt);
    let held: FxHashSet<ValueId> = (seeds.iter().map(|(v, _)| *v))
        .chain(wrt.iter().copied())
        .collect();
    let mut replaced = FxHashMap::default();
    for id in order {
        let node = graph.node(id);
        let Op::Composite(op @ CompositeOp::Recurrent(_)) = &node.op else {
            continue;
        };
        let flows = node.operands.iter().any(|v| active.contains(v));
        if !flows || node.results.iter().any(|v| held.contains(v)) {
            continue;
        }
        let (op, node) = (op.clone(), node.clone());
        graph.set_origin(node.origins.first().cloned());
        let results = op.def().decompose(graph, &node.operands)?;
        replaced.extend(node.results.iter().copied().zip(results));
    }
    if replaced.is_empty() {
        return Ok(());
    }
    graph.replace_all(&replaced);
    graph.sort()
}

/// One node whose operands' gradients are asked for.
struct Site {
    node: NodeId,
    operands: Vec<ValueId>,
    results: Vec<ValueId>,
    /// Which operands lie on the way to something asked for.
    wanted: Vec<bool>,
    /// Cotangents of the results.
    given: Vec<Option<ValueId>>,
}

/// As [`vjp`], where `leaves` are taken as given: what they are made of is not looked at.
fn backward(
    graph: &mut Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
    leaves: &FxHashSet<ValueId>,
) -> Grads {
    let order = reaching(graph, seeds, leaves);
    let active = depending(graph, &order, wrt);
    let mut parts = Parts::default();
    for (value, cotangent) in seeds {
        parts.add(graph, *value, *cotangent);
    }
    for id in order.into_iter().rev() {
        let node = graph.node(id);
        let wanted: Vec<bool> = node.operands.iter().map(|v| active.contains(v)).collect();
        let reached = node.results.iter().any(|v| parts.0.contains_key(v));
        if !reached || !wanted.contains(&true) {
            continue;
        }
        let (operands, results) = (node.operands.to_vec(), node.results.to_vec());
        let origin = node.origins.first().cloned();
        graph.set_origin(origin);
        let given = results.iter().map(|v| parts.sum(graph, *v));
        let site = Site {
            node: id,
            operands,
            given: given.collect::<Ir<_>>()?,
            results,
            wanted,
        };
        let grads = rule::apply(graph, &site)?;
        debug_assert_eq!(grads.len(), site.operands.len());
        for ((operand, wanted), grad) in site.operands.iter().zip(&site.wanted).zip(grads) {
            if let (true, Some(grad)) = (*wanted, grad) {
                parts.add(graph, *operand, grad);
            }
        }
    }
    wrt.iter().map(|v| parts.sum(graph, *v)).collect()
}

/// Parts of cotangents that are still to be summed.
#[derive(Default)]
struct Parts(FxHashMap<ValueId, Vec<ValueId>>);

impl Parts {
    fn add(&mut self, graph: &Graph, value: ValueId, part: ValueId) {
        debug_assert_eq!(graph.dtype(value), graph.dtype(part), "{value}");
        self.0.entry(value).or_default().push(part);
    }

    /// The sum of a value's parts, in their order.
    fn sum(&mut self, graph: &mut Graph, value: ValueId) -> Ir<Option<ValueId>> {
        let Some(parts) = self.0.get_mut(&value) else {
            return Ok(None);
        };
        // Sums of a region's captures are taken apart again (`deferred`).
        let is_input = matches!(graph.op_of(value), Op::Core(CoreOp::Input(_)));
        if parts.len() > 1 && !is_input {
            view::join(graph, parts)?;
        }
        let mut all = parts.iter().copied();
        let first = all.next();
        let first = first.unwrap_or_else(|| unreachable!("bug: no parts of {value}"));
        let sum = all.try_fold(first, |sum, part| {
            graph.binary(cupola_ir::Scalar::Add, sum, part)
        })?;
        *parts = vec![sum];
        Ok(Some(sum))
    }
}

/// Nodes that the seeds are made of, each after its operands. The arena's own order is not relied on.
fn reaching(
    graph: &Graph,
    seeds: &[(ValueId, ValueId)],
    leaves: &FxHashSet<ValueId>,
) -> Vec<NodeId> {
    let mut seen = vec![false; graph.node_count()];
    let mut order = vec![];
    for (seed, _) in seeds {
        if leaves.contains(seed) {
            continue;
        }
        let mut stack = vec![(graph.value(*seed).node, false)];
        while let Some((id, expanded)) = stack.pop() {
            if expanded {
                order.push(id);
                continue;
            }
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            stack.push((id, true));
            for operand in graph.node(id).operands.iter().rev() {
                let from = graph.value(*operand).node;
                if !seen[from.index()] && !leaves.contains(operand) {
                    stack.push((from, false));
                }
            }
        }
    }
    order
}

/// Values that may have a gradient and depend on one of `wrt`, those included.
fn depending(graph: &Graph, order: &[NodeId], wrt: &[ValueId]) -> FxHashSet<ValueId> {
    // Sequences and optionals may hold floats; the ops that make them have no rule, and say so.
    let carries = |v: ValueId| graph.ty(v).as_tensor().is_none_or(|t| t.dtype.is_float());
    let of_wrt = wrt.iter().copied().filter(|v| carries(*v));
    let mut found: FxHashSet<ValueId> = of_wrt.collect();
    for id in order {
        let node = graph.node(*id);
        if node.operands.iter().any(|v| found.contains(v)) {
            found.extend(node.results.iter().copied().filter(|v| carries(*v)));
        }
    }
    found
}

/// Zeros of a type.
fn zeros(graph: &mut Graph, ty: &ValueType) -> Ir<ValueId> {
    let ty = ty
        .as_tensor()
        .ok_or_else(|| IrError::Unsupported(format!("no zeros of type {ty}")))?;
    splat(graph, 0.0, ty.dtype, &ty.dims.clone())
}

/// One number everywhere.
fn splat(graph: &mut Graph, number: f64, dtype: DType, dims: &[cupola_ir::Dim]) -> Ir<ValueId> {
    let number = graph.number(number, dtype)?;
    graph.broadcast_to(number, dims)
}

//! Collectives that travel together: sums over replicas that nothing but the end of the step needs (those of gradients) are
//! grouped to buckets in the order in which they become ready, so that few messages overlap with the rest of the backward
//! pass. Those that other collectives wait for (statistics of a batch) are grouped only with their direct neighbours.
//!
//! A bucket is one collective of several operands, in the place of its last member. Groups never make a cycle: no collective
//! depends on a member of a bucket of gradients, and the groups of the others are runs of them in order.

use crate::{Context, PassError, Result, Work};
use cupola_ir::ops::{Collective, CoreOp};
use cupola_ir::{Graph, NodeId, Op, Tensor, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let graph = &mut work.graph;
    let all: Vec<(NodeId, Collective)> = (graph.nodes())
        .filter_map(|(id, node)| Some((id, several(&node.op)?.clone())))
        .collect();
    if all.len() < 2 {
        return Ok(());
    }
    let failed = |error| PassError::Graph {
        pass: "bucket",
        error,
    };
    for group in groups(graph, &all, context.options.bucket) {
        if group.len() > 1 {
            join(graph, &group).map_err(failed)?;
        }
    }
    graph.compact().map_err(failed)?;
    Ok(())
}

/// A collective of several replicas.
fn several(op: &Op) -> Option<&Collective> {
    match op {
        Op::Core(CoreOp::Collective(p)) => Some(p).filter(|p| p.replicas > 1),
        Op::Core(_) | Op::Host(_) | Op::Composite(_) => None,
    }
}

/// A group under construction.
#[derive(Default)]
struct Open {
    members: Vec<NodeId>,
    op: Option<Collective>,
    size: u64,
}

fn groups(graph: &Graph, all: &[(NodeId, Collective)], most: u64) -> Vec<Vec<NodeId>> {
    let ids: FxHashSet<NodeId> = all.iter().map(|(id, _)| *id).collect();
    let needs: FxHashMap<NodeId, FxHashSet<NodeId>> = all
        .iter()
        .map(|(id, _)| (*id, needed(graph, *id, &ids)))
        .collect();
    let inner: FxHashSet<NodeId> = needs.values().flatten().copied().collect();
    let mut done = vec![];
    // Those that others wait for, and those that nothing but the end waits for.
    let mut open = [Open::default(), Open::default()];
    for (id, op) in all {
        let at = usize::from(!inner.contains(id));
        let group = &mut open[at];
        let waits = group.members.iter().any(|m| needs[id].contains(m));
        let is_full = group.size >= most;
        if waits || is_full || group.op.as_ref().is_some_and(|own| own != op) {
            done.push(std::mem::take(group).members);
        }
        group.members.push(*id);
        group.op = Some(op.clone());
        group.size += size(graph, *id);
    }
    done.extend(open.map(|group| group.members));
    done
}

/// The collectives that a node depends on.
fn needed(graph: &Graph, id: NodeId, ids: &FxHashSet<NodeId>) -> FxHashSet<NodeId> {
    let mut found = FxHashSet::default();
    let mut seen = FxHashSet::default();
    let mut stack = vec![id];
    while let Some(at) = stack.pop() {
        for v in &graph.node(at).operands {
            let from = graph.value(*v).node;
            if seen.insert(from) {
                if ids.contains(&from) {
                    found.insert(from);
                }
                stack.push(from);
            }
        }
    }
    found
}

/// Bytes of a node's operands; what no number is known of counts for nothing.
fn size(graph: &Graph, id: NodeId) -> u64 {
    let of = |v: &ValueId| {
        let ty = graph.ty(*v).as_tensor()?;
        Tensor::size_of(ty.dtype, &ty.const_shape()?)
    };
    let operands = graph.node(id).operands.iter();
    operands
        .filter_map(of)
        .fold(0, |sum, size| sum + size as u64)
}

/// Makes the last member the only one.
fn join(graph: &mut Graph, members: &[NodeId]) -> Result<(), cupola_ir::IrError> {
    let Some((last, others)) = members.split_last() else {
        return Ok(());
    };
    let Some(op) = several(&graph.node(*last).op).cloned() else {
        return Ok(());
    };
    let mut old = vec![];
    for id in others {
        let node = graph.node(*id).clone();
        graph
            .node_mut(*last)
            .operands
            .extend(node.operands.iter().copied());
        graph.add_origins(*last, &node.origins);
        old.extend(node.results.iter().copied());
    }
    let new = graph.extend(*last, op.clone())?;
    let renamed: FxHashMap<ValueId, ValueId> = old.into_iter().zip(new).collect();
    graph.replace_all(&renamed);
    // Without users and alone, they are dropped with what is dead.
    for id in others {
        graph.node_mut(*id).op = Collective {
            replicas: 1,
            ..op.clone()
        }
        .into();
    }
    Ok(())
}

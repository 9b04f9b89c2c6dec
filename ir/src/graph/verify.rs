//! The verifier: reports every broken invariant of a graph with its place.

use super::{Graph, NodeId};
use crate::error::{IrError, Result};
use crate::ops::{CoreOp, Op};
use rustc_hash::FxHashSet;

/// Checks that operands are defined before use, types are those the ops infer (extents may be refined), symbols are
/// bound before use, names of inputs and outputs are unique, and state slots exist with one writer; regions included.
///
/// # Errors
/// [`IrError::Invalid`] with one line per finding.
pub fn verify(graph: &Graph) -> Result<()> {
    verify_region(graph, &FxHashSet::default())
}

/// As [`verify`], for a region that sees the symbols `outer`.
///
/// # Errors
/// As [`verify`].
pub fn verify_region(graph: &Graph, outer: &FxHashSet<crate::dim::Sym>) -> Result<()> {
    let mut found = vec![];
    check(graph, &mut found, "", outer);
    if found.is_empty() {
        Ok(())
    } else {
        Err(IrError::Invalid(found.join("\n")))
    }
}

fn check(graph: &Graph, found: &mut Vec<String>, place: &str, outer: &FxHashSet<crate::dim::Sym>) {
    let mut bound = outer.clone();
    let mut names = FxHashSet::default();
    let mut writers = FxHashSet::default();
    for (id, node) in graph.nodes() {
        let at = |what: String| describe(graph, id, place, what);
        for v in &node.operands {
            if v.index() >= graph.value_count() {
                found.push(at(format!("operand {v} does not exist")));
                return;
            }
            if graph.value(*v).node >= id {
                found.push(at(format!("operand {v} is defined later")));
            }
        }
        match &node.op {
            Op::Core(CoreOp::Input(p)) => {
                if !names.insert(p.name.as_str()) {
                    found.push(at(format!("second input '{}'", p.name)));
                }
                p.ty.for_each_dim(&mut |d| {
                    d.for_each_sym(&mut |s| {
                        bound.insert(s.clone());
                    })
                });
            }
            Op::Core(CoreOp::Param(p)) => {
                p.ty.for_each_dim(&mut |d| {
                    d.for_each_sym(&mut |s| {
                        bound.insert(s.clone());
                    })
                });
            }
            Op::Core(CoreOp::ReadState(p)) => {
                p.ty.for_each_dim(&mut |d| {
                    d.for_each_sym(&mut |s| {
                        bound.insert(s.clone());
                    })
                });
                if !graph.slots.contains_key(&p.slot) {
                    found.push(at(format!("state slot '{}' does not exist", p.slot)));
                }
            }
            Op::Core(CoreOp::WriteState(p)) => {
                if !writers.insert(p.slot.as_str()) {
                    found.push(at(format!("second writer of state slot '{}'", p.slot)));
                }
                if !graph.slots.contains_key(&p.slot) {
                    found.push(at(format!("state slot '{}' does not exist", p.slot)));
                }
            }
            _ => {}
        }
        bound.extend(node.op.binds());
        let mut unbound = |d: &crate::dim::Dim| {
            d.for_each_sym(&mut |s| {
                if !bound.contains(s) {
                    found.push(describe(
                        graph,
                        id,
                        place,
                        format!("symbol {s} is not bound"),
                    ));
                }
            });
        };
        node.op.for_each_dim(&mut unbound);
        node.results
            .iter()
            .for_each(|v| graph.ty(*v).for_each_dim(&mut unbound));
        check_types(graph, id, found, place);
        for region in node.op.regions() {
            check(region, found, &format!("{place}{id}/"), &bound);
        }
    }
    let mut outputs = FxHashSet::default();
    for (name, v) in graph.outputs() {
        if !outputs.insert(name.clone()) {
            found.push(format!("{place}second output '{name}'"));
        }
        if v.index() >= graph.value_count() {
            found.push(format!(
                "{place}output '{name}' is {v}, which does not exist"
            ));
        }
    }
}

fn check_types(graph: &Graph, id: NodeId, found: &mut Vec<String>, place: &str) {
    let node = graph.node(id);
    let types: Vec<_> = node.operands.iter().map(|v| graph.ty(*v)).collect();
    match node.op.infer(&types) {
        Err(what) => found.push(describe(graph, id, place, what)),
        Ok(inferred) => {
            let kinds = inferred.len() == node.results.len()
                && inferred
                    .iter()
                    .zip(&node.results)
                    .all(|(t, v)| crate::ops::control::same_kind(t, graph.ty(*v)));
            if !kinds {
                let have: Vec<String> = node
                    .results
                    .iter()
                    .map(|v| graph.ty(*v).to_string())
                    .collect();
                let want: Vec<String> = inferred.iter().map(ToString::to_string).collect();
                found.push(describe(
                    graph,
                    id,
                    place,
                    format!("has results {have:?}, should have {want:?}"),
                ));
            }
        }
    }
}

fn describe(graph: &Graph, id: NodeId, place: &str, what: String) -> String {
    let node = graph.node(id);
    let origin = node
        .origins
        .first()
        .map_or(String::new(), |o| format!(" of {} '{}'", o.op, o.node));
    format!("{place}{id} {}{origin}: {what}", node.op.name())
}

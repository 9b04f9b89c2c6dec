//! The one adaptor to petgraph: order, liveness, cycles and DOT.

use super::{Graph, NodeId, ValueId};
use crate::error::{IrError, Result};
use crate::ops::{CoreOp, Op, OpClass};
use petgraph::graph::DiGraph;
use rustc_hash::FxHashMap;
use std::fmt::Write;

/// A petgraph view of a graph: edges run from definition to use, values and symbols alike. Node weights are ids.
pub type NodeGraph = DiGraph<NodeId, ()>;

/// Builds the petgraph view.
pub fn node_graph(graph: &Graph) -> NodeGraph {
    let mut view = NodeGraph::with_capacity(graph.node_count(), graph.node_count() * 2);
    let at: Vec<_> = graph.nodes().map(|(id, _)| view.add_node(id)).collect();
    let binders = binders(graph);
    for (id, node) in graph.nodes() {
        for from in dependencies(graph, id, &binders) {
            view.add_edge(at[from.index()], at[id.index()], ());
        }
        debug_assert_eq!(view[at[id.index()]], id, "{}", node.op.name());
    }
    view
}

/// The node that binds each symbol while running (symbols of inputs and states are bound at the start).
pub(super) fn binders(graph: &Graph) -> FxHashMap<crate::dim::Sym, NodeId> {
    graph
        .nodes()
        .flat_map(|(id, n)| n.op.binds().into_iter().map(move |s| (s, id)))
        .collect()
}

/// Nodes that must run before this one.
fn dependencies(
    graph: &Graph,
    id: NodeId,
    binders: &FxHashMap<crate::dim::Sym, NodeId>,
) -> Vec<NodeId> {
    let node = graph.node(id);
    let mut from: Vec<NodeId> = node.operands.iter().map(|v| graph.value(*v).node).collect();
    if !binders.is_empty() {
        let mut add = |d: &crate::dim::Dim| {
            d.for_each_sym(&mut |s| {
                if let Some(b) = binders.get(s)
                    && *b != id
                {
                    from.push(*b);
                }
            });
        };
        node.op.for_each_dim(&mut add);
        for v in &node.results {
            graph.ty(*v).for_each_dim(&mut add);
        }
        for region in node.op.regions() {
            region_dims(region, &mut add);
        }
    }
    from.sort_unstable();
    from.dedup();
    from
}

fn region_dims(region: &Graph, visit: &mut dyn FnMut(&crate::dim::Dim)) {
    for (_, node) in region.nodes() {
        node.op.for_each_dim(visit);
        for v in &node.results {
            region.ty(*v).for_each_dim(visit);
        }
        for inner in node.op.regions() {
            region_dims(inner, visit);
        }
    }
}

/// All nodes in the present order; what another value was `replaced` by in the place of that.
pub(super) fn places(graph: &Graph, replaced: &FxHashMap<ValueId, ValueId>) -> Vec<NodeId> {
    let mut places = vec![];
    for (id, node) in graph.nodes() {
        places.push(id);
        let others = node.results.iter().filter(|v| replaced.contains_key(v));
        places.extend(others.map(|v| {
            let mut v = *v;
            while let Some(new) = replaced.get(&v) {
                v = *new;
            }
            graph.value(v).node
        }));
    }
    places
}

/// Nodes needed by outputs, inputs and effects, each after what it depends on; otherwise in the order of `places`. Walking
/// from the roots alone would put what a late node needs before everything that merely stands before that node, and values
/// would be kept from there on.
pub(super) fn live_in_order(graph: &Graph, places: &[NodeId]) -> Result<Vec<NodeId>> {
    let is_root = |op: &Op| match op {
        Op::Core(CoreOp::WriteState(_)) => true,
        Op::Core(CoreOp::Collective(p)) => p.replicas > 1,
        Op::Core(_) | Op::Host(_) | Op::Composite(_) => {
            op.class() == OpClass::Control && !op.is_pure()
        }
    };
    let mut roots: Vec<NodeId> = graph
        .nodes()
        .filter(|(_, n)| is_root(&n.op))
        .map(|(id, _)| id)
        .collect();
    roots.extend(graph.inputs.iter().map(|v| graph.value(*v).node));
    roots.extend(graph.outputs.iter().map(|(_, v)| graph.value(*v).node));
    let mut live = vec![false; graph.node_count()];
    for id in in_order(graph, &roots)? {
        live[id.index()] = true;
    }
    let places: Vec<NodeId> = places
        .iter()
        .copied()
        .filter(|id| live[id.index()])
        .collect();
    in_order(graph, &places)
}

/// The roots and what they need, each node after what it depends on.
pub(super) fn in_order(graph: &Graph, roots: &[NodeId]) -> Result<Vec<NodeId>> {
    let binders = binders(graph);
    let mut mark = vec![0u8; graph.node_count()]; // 0 unseen, 1 open, 2 done
    let mut order = vec![];
    for root in roots.iter().copied() {
        let mut stack = vec![(root, false)];
        while let Some((id, expanded)) = stack.pop() {
            if expanded {
                mark[id.index()] = 2;
                order.push(id);
                continue;
            }
            match mark[id.index()] {
                2 => continue,
                1 => {
                    return Err(IrError::Invalid(format!(
                        "{id} ({}) depends on itself",
                        graph.node(id).op.name()
                    )));
                }
                _ => {}
            }
            mark[id.index()] = 1;
            stack.push((id, true));
            for d in dependencies(graph, id, &binders).into_iter().rev() {
                match mark[d.index()] {
                    0 => stack.push((d, false)),
                    1 if stack.contains(&(d, true)) => {
                        return Err(IrError::Invalid(format!(
                            "{d} ({}) depends on itself",
                            graph.node(d).op.name()
                        )));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(order)
}

/// Graphviz text: a box per node with op and result types.
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph {\n  node [shape=box, fontname=\"monospace\"];\n");
    let quote = |s: &str| s.replace('\\', "\\\\").replace('"', "\\\"");
    for (id, node) in graph.nodes() {
        let types: Vec<String> = node
            .results
            .iter()
            .map(|v| format!("{v}: {}", graph.ty(*v)))
            .collect();
        let origin = node.origins.first().map_or(String::new(), |o| {
            format!("\\n{} {}", quote(&o.op), quote(&o.node))
        });
        let _ = writeln!(
            out,
            "  n{} [label=\"{}\\n{}{origin}\"];",
            id.0,
            node.op.name(),
            quote(&types.join("\\n"))
        );
    }
    for (id, node) in graph.nodes() {
        for v in &node.operands {
            let _ = writeln!(
                out,
                "  n{} -> n{} [label=\"{v}\"];",
                graph.value(*v).node.0,
                id.0
            );
        }
    }
    for (name, v) in graph.outputs() {
        let _ = writeln!(
            out,
            "  \"{}\" [shape=ellipse];\n  n{} -> \"{0}\";",
            quote(name),
            graph.value(*v).node.0
        );
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::ReduceKind;
    use crate::{DType, Scalar, TensorType};

    /// Names of the ops but inputs, in order.
    fn ops(graph: &Graph) -> Vec<String> {
        let name = |op: &Op| match op {
            Op::Core(CoreOp::Map(p)) => p.f.name().to_string(),
            _ => op.name(),
        };
        let all = graph.nodes().map(|(_, n)| name(&n.op));
        all.filter(|name| name != "input").collect()
    }

    #[test]
    fn what_replaces_a_value_stands_in_its_place() {
        let mut g = Graph::new("order");
        let x = g.input("x", TensorType::new(DType::F32, [4usize])).unwrap();
        let early = g.unary(Scalar::Exp, x).unwrap();
        let other = g.unary(Scalar::Neg, x).unwrap();
        let other = g.unary(Scalar::Sqrt, other).unwrap();
        let late = g.binary(Scalar::Add, early, other).unwrap();
        g.output("late", late);
        // In two steps, each made at the end.
        let first = g.unary(Scalar::Abs, x).unwrap();
        let second = g.unary(Scalar::Floor, x).unwrap();
        let replaced = FxHashMap::from_iter([(early, first), (first, second)]);
        g.replace_all(&replaced);
        let mut plain = g.clone();
        plain.compact().unwrap();
        assert_eq!(ops(&plain), ["neg", "sqrt", "floor", "add"]);
        let map = g.compact_replaced(&replaced).unwrap();
        assert_eq!(ops(&g), ["floor", "neg", "sqrt", "add"]);
        assert!(map[early.index()].is_none() && map[first.index()].is_none());
        assert_eq!(g.outputs()[0].1, map[late.index()].unwrap());
    }

    #[test]
    fn what_it_needs_comes_before() {
        let mut g = Graph::new("order");
        let x = g.input("x", TensorType::new(DType::F32, [4usize])).unwrap();
        let sum = g.reduce(ReduceKind::Sum, x, &[0]).unwrap();
        let early = g.unary(Scalar::Exp, sum).unwrap();
        let floor = g.unary(Scalar::Floor, sum).unwrap();
        let root = g.unary(Scalar::Sqrt, sum).unwrap();
        let both = g.binary(Scalar::Add, early, root).unwrap();
        let all = g.binary(Scalar::Mul, both, floor).unwrap();
        g.output("all", all);
        let last = g.unary(Scalar::Neg, root).unwrap();
        let replaced = FxHashMap::from_iter([(early, last)]);
        g.replace_all(&replaced);
        g.compact_replaced(&replaced).unwrap();
        let want = ["reduce", "sqrt", "neg", "floor", "add", "mul"];
        assert_eq!(ops(&g), want);
    }
}

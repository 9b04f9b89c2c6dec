//! Puts constants into the regions that take them, in the place of operands: a body then has weights like any other graph,
//! which are packed, folded or narrowed once.
//!
//! Rules: what goes in is a constant, or views of one, of the very type of the region's input, whose extents are numbers.

use crate::{Context, PassError, Result, Work};
use cupola_ir::ops::CoreOp;
use cupola_ir::{Graph, IrError, Node, NodeId, Op, OpClass, ValueId, ValueType};
use rustc_hash::FxHashMap;

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    let graph = &mut work.graph;
    let holders: Vec<NodeId> = (graph.nodes())
        .filter(|(_, node)| captures(node).is_some())
        .map(|(id, _)| id)
        .collect();
    for id in holders {
        sink(graph, id).map_err(|error| PassError::Graph {
            pass: "sink",
            error,
        })?;
    }
    Ok(())
}

/// Where an op with regions takes what stays the same in all of its runs: the first such operand, and how many operands
/// before it are no inputs of the regions.
fn captures(node: &Node) -> Option<(usize, usize)> {
    match &node.op {
        Op::Core(CoreOp::If(_)) => Some((1, 1)),
        // The iteration's number is an input of its own.
        Op::Core(CoreOp::Loop(p)) => Some((2 + p.carried, 1)),
        Op::Core(CoreOp::Scan(p)) => Some((p.carried + p.scanned, 0)),
        Op::Core(CoreOp::Call(_)) => Some((0, 0)),
        Op::Core(_) | Op::Host(_) | Op::Composite(_) => None,
    }
}

fn sink(graph: &mut Graph, id: NodeId) -> Result<(), IrError> {
    let node = graph.node(id);
    let Some((first, shift)) = captures(node) else {
        return Ok(());
    };
    let regions = node.op.regions();
    let fits = |at: &usize| {
        let operand = node.operands[*at];
        let is_taken =
            |region: &&Graph| region.ty(region.inputs()[at - shift]) == graph.ty(operand);
        is_constant(graph, operand) && regions.iter().all(is_taken)
    };
    let moved: Vec<usize> = (first..node.operands.len()).filter(fits).collect();
    if moved.is_empty() {
        return Ok(());
    }
    let mut op = node.op.clone();
    let operands = node.operands.clone();
    for region in op.regions_mut() {
        let mut replaced = FxHashMap::default();
        for at in &moved {
            let inner = copy(graph, operands[*at], region)?;
            replaced.insert(region.inputs()[at - shift], inner);
        }
        region.replace_all(&replaced);
        for at in moved.iter().rev() {
            region.remove_input(at - shift);
        }
        region.compact()?;
    }
    let node = graph.node_mut(id);
    node.op = op;
    for at in moved.iter().rev() {
        node.operands.remove(*at);
    }
    Ok(())
}

/// Whether a value is a constant, or views of one, whose extents are numbers.
fn is_constant(graph: &Graph, value: ValueId) -> bool {
    let ValueType::Tensor(ty) = graph.ty(value) else {
        return false;
    };
    let node = graph.def(value);
    let is_view = node.op.class() == OpClass::View && node.operands.len() == 1;
    let is_const = matches!(node.op, Op::Core(CoreOp::Const(_)));
    let source = || is_view && is_constant(graph, node.operands[0]);
    ty.const_shape().is_some() && (is_const || source())
}

/// A constant and its views in a region.
fn copy(graph: &Graph, value: ValueId, region: &mut Graph) -> Result<ValueId, IrError> {
    let node = graph.def(value);
    let operands: Vec<ValueId> = (node.operands.iter())
        .map(|v| copy(graph, *v, region))
        .collect::<Result<_, _>>()?;
    region.set_origin(node.origins.first().cloned());
    let inner = region.one(node.op.clone(), &operands)?;
    region.set_origin(None);
    Ok(inner)
}

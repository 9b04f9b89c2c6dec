//! Inlines the composites that the primary device has no library kernel for, and calls of regions.
//!
//! Rule: an op that stays is one that the device claims for exactly these operands.

use crate::edit::Edits;
use crate::region::inline;
use crate::{Context, PassError, Recognised, Result, Work};
use cupola_ir::ops::CoreOp;
use cupola_ir::target::Claim;
use cupola_ir::{Graph, IrError, Node, NodeId, Op, TensorType, ValueId};

/// Most rounds of composites inside composites.
const MAX_ROUNDS: usize = 16;

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let error = |error: IrError| PassError::Graph {
        pass: "decompose",
        error,
    };
    work.composites = recognised(&work.graph, context);
    for _ in 0..MAX_ROUNDS {
        let nodes: Vec<NodeId> = work.graph.nodes().map(|(id, _)| id).collect();
        let mut edits = Edits::default();
        for id in nodes {
            if let Some(results) = expand(&mut work.graph, id, context).map_err(error)? {
                let old = work.graph.node(id).results.clone();
                for (a, b) in old.into_iter().zip(results) {
                    edits.replace(a, b);
                }
            }
        }
        if !edits.apply(work).map_err(error)? {
            return Ok(());
        }
    }
    Err(PassError::Limit(format!(
        "composites nested deeper than {MAX_ROUNDS}"
    )))
}

fn recognised(graph: &Graph, context: &Context) -> Vec<Recognised> {
    let of = |(id, node): (NodeId, &Node)| match &node.op {
        Op::Composite(op) => Some(Recognised {
            name: op.name(),
            origins: node.origins.to_vec(),
            library: claimed(graph, id, context),
        }),
        Op::Core(_) | Op::Host(_) => None,
    };
    graph.nodes().filter_map(of).collect()
}

/// The results of a node in simpler ops; `None` when it stays.
fn expand(
    graph: &mut Graph,
    id: NodeId,
    context: &Context,
) -> Result<Option<Vec<ValueId>>, IrError> {
    let node = graph.node(id);
    let simple = match &node.op {
        Op::Composite(_) => {
            !claimed(graph, id, context) && !crate::layout::will_take(graph, node, context)
        }
        Op::Core(CoreOp::Call(p)) => p.binds.is_empty(),
        Op::Core(CoreOp::Collective(p)) => p.replicas <= 1,
        Op::Core(_) | Op::Host(_) => false,
    };
    if !simple {
        return Ok(None);
    }
    let node = node.clone();
    graph.set_origin(node.origins.first().cloned());
    let results = match &node.op {
        Op::Composite(op) if !context.target(context.options.device).joins_in_turn => {
            op.def().decompose_without_joins(graph, &node.operands)?
        }
        Op::Composite(op) => op.def().decompose(graph, &node.operands)?,
        Op::Core(CoreOp::Call(p)) => match inline(graph, &p.body, &node.operands)? {
            Some(results) => results,
            None => return Ok(None),
        },
        Op::Core(_) | Op::Host(_) => node.operands.to_vec(),
    };
    for r in &results {
        let at = graph.value(*r).node;
        if at > id {
            graph.add_origins(at, &node.origins);
        }
    }
    Ok(Some(results))
}

fn claimed(graph: &Graph, id: NodeId, context: &Context) -> bool {
    let target = context.target(context.options.device);
    claim(graph, id, target).is_some_and(|c| matches!(c, Claim::Yes { .. }))
}

/// What a target says about a node; `None` when an operand is no tensor.
pub(crate) fn claim(
    graph: &Graph,
    id: NodeId,
    target: &cupola_ir::target::Target,
) -> Option<Claim> {
    let node = graph.node(id);
    let types: Option<Vec<&TensorType>> = node
        .operands
        .iter()
        .map(|v| graph.ty(*v).as_tensor())
        .collect();
    Some((target.claim)(&node.op, &types?))
}

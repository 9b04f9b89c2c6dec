//! Splits joins of more parts than a kernel of the device has buffers for: parts are joined in groups, and the groups.
//! No other op takes many operands.

use crate::edit::Edits;
use crate::{Context, PassError, Result, Work};
use cupola_ir::{CoreOp, Graph, IrError, NodeId, Op, ValueId};

/// Buffers of a kernel beside the parts: the result, and one for reports of indices outside.
const OTHERS: usize = 2;

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let error = |error: IrError| PassError::Graph {
        pass: "split",
        error,
    };
    let most = context.target(context.options.device).max_buffers;
    let most = most.saturating_sub(OTHERS).max(2);
    let wide: Vec<NodeId> = (work.graph.nodes())
        .filter(|(_, n)| matches!(n.op, Op::Core(CoreOp::Concat(_))) && n.operands.len() > most)
        .map(|(id, _)| id)
        .collect();
    let mut edits = Edits::default();
    for id in wide {
        let joined = join(&mut work.graph, id, most).map_err(error)?;
        edits.replace(work.graph.node(id).results[0], joined);
    }
    edits.apply(work).map_err(error)?;
    Ok(())
}

fn join(graph: &mut Graph, id: NodeId, most: usize) -> Result<ValueId, IrError> {
    let node = graph.node(id).clone();
    graph.set_origin(node.origins.first().cloned());
    let Op::Core(CoreOp::Concat(p)) = &node.op else {
        unreachable!("bug: {} is no join", node.op.name())
    };
    let mut parts = node.operands.to_vec();
    while parts.len() > most {
        parts = parts
            .chunks(most)
            .map(|group| graph.one(p.clone(), group))
            .collect::<Result<_, _>>()?;
    }
    let joined = graph.one(p.clone(), &parts)?;
    // The node may know its extents better than a join infers them.
    graph.refine(joined, graph.ty(node.results[0]).clone());
    Ok(joined)
}

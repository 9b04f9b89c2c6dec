//! Numbers that are narrowed after they were joined are so before: one unit then writes the parts in turn, where the join
//! would otherwise be stored in the wide type for the conversion alone.
//!
//! Rule: the join goes nowhere else, be it through other extents of the same elements.

use crate::edit::Edits;
use crate::{Context, PassError, Result, Work};
use cupola_ir::ops::Concat;
use cupola_ir::{CoreOp, Graph, IrError, NodeId, Op, ValueId};
use smallvec::SmallVec;

type Users = [SmallVec<[NodeId; 2]>];

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    let error = |error: IrError| PassError::Graph {
        pass: "narrow",
        error,
    };
    let graph = &mut work.graph;
    let users = graph.users();
    let found: Vec<(NodeId, NodeId)> = (graph.nodes())
        .filter_map(|(id, _)| Some((id, narrowed_join(graph, id, &users)?)))
        .collect();
    let mut edits = Edits::default();
    for (cast, join) in found {
        let origins = graph.node(cast).origins.clone();
        let before = graph.node_count();
        let narrow = narrow(graph, cast, join).map_err(error)?;
        for new in before..graph.node_count() {
            graph.add_origins(NodeId(new as u32), &origins);
        }
        edits.replace(graph.node(cast).results[0], narrow);
    }
    edits.apply(work).map_err(error)?;
    Ok(())
}

/// The join whose elements a cast to a narrower type takes.
fn narrowed_join(graph: &Graph, cast: NodeId, users: &Users) -> Option<NodeId> {
    let node = graph.node(cast);
    let Op::Core(CoreOp::Cast(p)) = &node.op else {
        return None;
    };
    let mut x = *node.operands.first()?;
    let from = graph.dtype(x);
    if !from.is_float() || !p.to.is_float() || p.to.bits() >= from.bits() {
        return None;
    }
    loop {
        let is_output = graph.outputs().iter().any(|(_, v)| *v == x);
        if is_output || users[x.index()].len() != 1 {
            return None;
        }
        match graph.op_of(x) {
            Op::Core(CoreOp::Reshape(_)) => x = graph.def(x).operands[0],
            Op::Core(CoreOp::Concat(_)) => return Some(graph.value(x).node),
            _ => return None,
        }
    }
}

/// What a cast makes of a join, as the join of casts.
fn narrow(graph: &mut Graph, cast: NodeId, join: NodeId) -> Result<ValueId, IrError> {
    let (cast, join) = (graph.node(cast).clone(), graph.node(join).clone());
    let Op::Core(CoreOp::Concat(Concat { axis })) = join.op else {
        unreachable!("bug: {} is no join", join.op.name())
    };
    let parts: Vec<ValueId> = (join.operands.iter())
        .map(|part| graph.one(cast.op.clone(), &[*part]))
        .collect::<Result<_, _>>()?;
    let joined = graph.concat(&parts, axis)?;
    let dims = graph.dims(cast.results[0]);
    graph.reshape(joined, &dims)
}

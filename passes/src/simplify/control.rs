//! Control flow that is known beforehand: branches whose condition is constant, short loops that always run to the end.

use super::{Found, Rewrite};
use crate::region::{Symbols, inline, unify};
use cupola_ir::{CoreOp, DType, Graph, NodeId, Op, Sym, ValueId, ValueType};

/// A branch whose condition is constant.
pub(super) fn branch(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::If(p)) = &node.op else {
        return Ok(None);
    };
    let Some(condition) = graph.as_uniform(node.operands[0]) else {
        return Ok(None);
    };
    let region = if condition != 0.0 {
        p.then_branch.clone()
    } else {
        p.else_branch.clone()
    };
    let (results, binds) = (p.results.clone(), p.binds.clone());
    let captures = node.operands[1..].to_vec();
    let Some(values) = inline(graph, &region, &captures)? else {
        return Ok(None);
    };
    Ok(found(graph, &results, &binds, values))
}

/// Most nodes that a loop may become.
const MOST_NODES: usize = 256;

/// A loop whose number of iterations is constant and whose condition never ends it before, if it stays small: its
/// iterations then need no decision of the host between them, and fuse.
pub(super) fn unroll(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::Loop(p)) = &node.op else {
        return Ok(None);
    };
    let [trips, condition, rest @ ..] = &node.operands[..] else {
        return Ok(None);
    };
    let (Some(trips), Some(first)) = (graph.as_uniform(*trips), graph.as_uniform(*condition))
    else {
        return Ok(None);
    };
    let always = |body: &Graph| {
        body.outputs()
            .first()
            .and_then(|(_, v)| body.as_uniform(*v))
    };
    let scans = p.results.len() > p.carried;
    let endless = first != 0.0 && always(&p.body).is_some_and(|go_on| go_on != 0.0);
    // Fewer than none stands for no limit.
    let small = trips >= 0.0 && trips * (1 + p.body.node_count()) as f64 <= MOST_NODES as f64;
    if scans || !endless || !small {
        return Ok(None);
    }
    let (body, results, binds, trips) = (
        p.body.clone(),
        p.results.clone(),
        p.binds.clone(),
        trips as i64,
    );
    let (start, captures) = rest.split_at(p.carried);
    let (mut carried, captures) = (start.to_vec(), captures.to_vec());
    for iteration in 0..trips {
        let mut operands = vec![graph.number(iteration as f64, DType::I64)?];
        operands.extend(carried.iter().chain(&captures));
        let Some(mut outputs) = inline(graph, &body, &operands)? else {
            return Ok(None);
        };
        carried = outputs.split_off(1);
    }
    Ok(found(graph, &results, &binds, carried))
}

/// The values as results of these types, which bind symbols; `None` when they do not fit.
fn found(
    graph: &Graph,
    results: &[ValueType],
    binds: &[Sym],
    values: Vec<ValueId>,
) -> Option<Found> {
    let mut symbols = Symbols::default();
    let fits = results
        .iter()
        .zip(&values)
        .all(|(t, v)| unify(t, graph.ty(*v), &mut symbols));
    symbols.retain(|s, _| binds.contains(s));
    (fits && symbols.len() == binds.len()).then_some(Found {
        results: values,
        symbols,
    })
}

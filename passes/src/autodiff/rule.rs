//! Which rule an op has.

use super::repeat::{Repetition, repeat};
use super::{Grads, Ir, Site, backward, contract, control, index, map, reduce, view};
use crate::region::inline;
use cupola_ir::composite::CompositeOp;
use cupola_ir::ops::{CollectiveKind, CoreOp};
use cupola_ir::{Graph, IrError, Op, ValueId};
use rustc_hash::FxHashSet;

/// Gradients of the operands of a node; at least one is wanted, and at least one result has a cotangent.
pub(super) fn apply(g: &mut Graph, site: &Site) -> Grads {
    let op = g.node(site.node).op.clone();
    match &op {
        Op::Core(op) => core(g, site, op),
        Op::Composite(op) => composite(g, site, op),
        Op::Host(_) => Err(refused(g, site, "ops of the host have no gradient")),
    }
}

/// An error that names the node.
pub(super) fn refused(g: &Graph, site: &Site, why: &str) -> IrError {
    let node = g.node(site.node);
    let at = match node.origins.first() {
        Some(o) => format!("{} '{}' ({})", o.op, o.node, node.op.name()),
        None => format!("{} {}", site.node, node.op.name()),
    };
    IrError::Unsupported(format!("{at} cannot be differentiated: {why}"))
}

fn core(g: &mut Graph, site: &Site, op: &CoreOp) -> Grads {
    use CoreOp::*;
    let x = site.operands.first().copied();
    let dy = site.given[0];
    // Ops of one operand and one result, both there since the operand is wanted and the result has a cotangent.
    let one = |grad: Ir<ValueId>| grad.map(|v| vec![Some(v)]);
    match (op, x, dy) {
        (Map(p), _, Some(dy)) => map::map(g, site, p.f, dy),
        (Cast(_), Some(x), Some(dy)) => one(g.cast_like(dy, x)),
        (Reshape(_), Some(x), Some(dy)) => {
            let dims = g.dims(x);
            one(g.reshape(dy, &dims))
        }
        (Permute(p), _, Some(dy)) => one(g.permute(dy, &view::inverse(&p.perm))),
        (Broadcast(_), Some(x), Some(dy)) => one(view::broadcast(g, x, dy)),
        (Slice(p), Some(x), Some(dy)) => one(view::slice(g, p, x, dy)),
        (Pad(p), Some(_), Some(dy)) => view::pad(g, site, p, dy),
        (Concat(p), Some(_), Some(dy)) => view::concat(g, site, p.axis, dy),
        (Window(p), Some(x), Some(dy)) => one(view::window(g, p, x, dy)),
        (Fold(p), Some(_), Some(dy)) => one(view::fold(g, p, dy)),
        (Reduce(p), Some(x), Some(dy)) => one(reduce::reduce(g, p, x, site.results[0], dy)),
        (Contract(p), _, Some(dy)) => contract::contract(g, site, p, dy),
        (Gather(p), Some(_), Some(dy)) => index::gather(g, site, p, dy),
        (Scatter(p), Some(_), Some(dy)) => index::scatter(g, site, p, dy),
        (Sort(p), Some(x), Some(dy)) => one(index::sort(g, p, x, site.results[1], dy)),
        (WriteState(_) | Transfer(_), _, Some(dy)) => Ok(vec![Some(dy)]),
        (Collective(p), ..) => match p.kind {
            _ if p.replicas <= 1 => Ok(site.given.clone()),
            // Every replica's loss counts: what one gave went to all.
            CollectiveKind::AllReduceSum => {
                let each = site.given.iter().map(|dy| match dy {
                    Some(dy) => g.one(Collective(p.clone()), &[*dy]).map(Some),
                    None => Ok(None),
                });
                each.collect()
            }
            CollectiveKind::AllReduceMax
            | CollectiveKind::AllGather
            | CollectiveKind::Broadcast => {
                let why = format!("no gradient of {} between replicas", p.kind.name());
                Err(refused(g, site, &why))
            }
        },
        (Call(p), ..) => {
            let what = "extents inside differ from those of the operands";
            let results = inline(g, &p.body, &site.operands)?;
            let results = results.ok_or_else(|| refused(g, site, what))?;
            through(g, site, &results)
        }
        (If(p), ..) => control::choice(g, site, p),
        (Loop(p), ..) => repeat(g, site, &Repetition::of_loop(p)),
        (Scan(p), ..) => repeat(g, site, &Repetition::of_scan(p)),
        (Bitcast(_), ..) => Err(refused(g, site, "bits of a float are no number")),
        // Positions, integers and what depends on no operand; nothing flows through them.
        (
            ArgReduce(_) | Iota(_) | Dims(_) | Const(_) | Input(_) | Param(_) | ReadState(_)
            | Random(_) | BindDim(_),
            ..,
        ) => Ok(vec![None; site.operands.len()]),
        // Only a sort has a second result that could have been the one with a cotangent, and that is an integer.
        (_, _, _) => unreachable!("bug: {} without a cotangent", op.name()),
    }
}

fn composite(g: &mut Graph, site: &Site, op: &CompositeOp) -> Grads {
    let own = op
        .def()
        .vjp(g, &site.operands, &site.results, &site.given, &site.wanted);
    match own {
        Some(grads) => grads,
        None => {
            let results = op.def().decompose(g, &site.operands)?;
            through(g, site, &results)
        }
    }
}

/// Gradients of the operands through other values that stand for the results.
fn through(g: &mut Graph, site: &Site, results: &[ValueId]) -> Grads {
    let leaves: FxHashSet<ValueId> = site.operands.iter().copied().collect();
    let pairs = results.iter().zip(&site.given);
    let seeds: Vec<_> = pairs.filter_map(|(v, c)| Some((*v, (*c)?))).collect();
    let mut wrt: Vec<ValueId> = vec![];
    for (v, wanted) in site.operands.iter().zip(&site.wanted) {
        if *wanted && !wrt.contains(v) {
            wrt.push(*v);
        }
    }
    let grads = backward(g, &seeds, &wrt, &leaves)?;
    // An operand that is given twice has all of its gradient at its first place.
    let mut grads: Vec<_> = wrt.into_iter().zip(grads).collect();
    let take = |v: &ValueId| {
        let at = grads.iter().position(|(w, _)| w == v)?;
        grads.swap_remove(at).1
    };
    Ok(site.operands.iter().map(take).collect())
}

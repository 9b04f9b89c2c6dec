//! Views of views, joins of one part, reductions of nothing: ops that move no element go away.

use super::Rewrite;
use cupola_ir::ops::*;
use cupola_ir::{CoreOp, Dim, Graph, NodeId, Op, ValueId};

fn done(v: ValueId) -> Rewrite {
    Ok(Some(v.into()))
}

/// A value in place of another of the same extents.
fn instead(graph: &Graph, id: NodeId, value: ValueId) -> Rewrite {
    let same = graph.dims(value) == graph.dims(graph.node(id).results[0]);
    Ok(same.then(|| value.into()))
}

pub(super) fn view(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(op) = node.op.clone() else {
        return Ok(None);
    };
    let Some(x) = node.operands.first().copied() else {
        return Ok(None);
    };
    let inner = match graph.op_of(x) {
        Op::Core(inner) => Some((inner.clone(), graph.def(x).operands.first().copied())),
        Op::Host(_) | Op::Composite(_) => None,
    };
    let own = graph.dims(x);
    match (op, inner) {
        (CoreOp::Reshape(p), _) if p.dims == own => done(x),
        (CoreOp::Reshape(p), Some((CoreOp::Reshape(_), Some(y)))) => {
            done(graph.reshape(y, &p.dims)?)
        }
        (CoreOp::Reshape(p), Some((CoreOp::Permute(q), Some(y)))) => {
            match permuted_behind(graph, &p.dims, &q.perm, y) {
                Some((z, perm)) => done(graph.permute(z, &perm)?),
                None => Ok(None),
            }
        }
        (CoreOp::Reshape(p), Some((CoreOp::Const(c), _))) => {
            let shape: Option<Vec<usize>> = p
                .dims
                .iter()
                .map(|d| usize::try_from(d.as_const()?).ok())
                .collect();
            match shape.and_then(|s| c.value.reshaped(s)) {
                Some(t) => done(graph.constant(t)?),
                None => Ok(None),
            }
        }
        (CoreOp::Permute(p), _) if p.perm.iter().enumerate().all(|(i, a)| i == *a) => done(x),
        (CoreOp::Permute(p), Some((CoreOp::Permute(q), Some(y)))) => {
            let perm: Vec<usize> = p.perm.iter().map(|a| q.perm[*a]).collect();
            done(graph.permute(y, &perm)?)
        }
        (CoreOp::Permute(p), _) => {
            // Only axes of extent 1 move: the order of elements stays.
            let kept: Vec<usize> = p.perm.iter().copied().filter(|a| !own[*a].is(1)).collect();
            if kept.windows(2).all(|w| w[0] < w[1]) {
                let dims: Vec<Dim> = p.perm.iter().map(|a| own[*a].clone()).collect();
                return done(graph.reshape(x, &dims)?);
            }
            Ok(None)
        }
        (CoreOp::Broadcast(p), _) if p.dims == own => done(x),
        (CoreOp::Broadcast(p), Some((CoreOp::Broadcast(_), Some(y)))) => done(graph.one(p, &[y])?),
        (CoreOp::Slice(p), inner) => slice(graph, id, p, x, &own, inner),
        (CoreOp::Pad(p), _) if p.low.iter().chain(&p.high).all(|d| d.is(0)) => {
            instead(graph, id, x)
        }
        _ => Ok(None),
    }
}

/// The value and the order of its axes, when the leading axes of `y` were merged by a reshape, stay in front in `perm`
/// and are split to `dims` again: then only the axes behind them move.
fn permuted_behind(
    graph: &Graph,
    dims: &[Dim],
    perm: &[usize],
    y: ValueId,
) -> Option<(ValueId, Vec<usize>)> {
    let Op::Core(CoreOp::Reshape(_)) = graph.op_of(y) else {
        return None;
    };
    let z = graph.def(y).operands[0];
    let (whole, merged) = (graph.dims(z), graph.dims(y));
    let front = perm.iter().enumerate().take_while(|(i, a)| i == *a).count();
    let behind = perm.len() - front;
    let lead = whole.len().checked_sub(behind)?;
    let order: Vec<usize> = (0..lead)
        .chain(perm[front..].iter().map(|a| a - front + lead))
        .collect();
    let same = whole[lead..] == merged[front..]
        && order.len() == dims.len()
        && order.iter().zip(dims).all(|(a, d)| whole[*a] == *d);
    same.then_some((z, order))
}

fn slice(
    graph: &mut Graph,
    id: NodeId,
    p: Slice,
    x: ValueId,
    own: &[Dim],
    inner: Option<(CoreOp, Option<ValueId>)>,
) -> Rewrite {
    let whole = |a: usize| p.starts[a].is(0) && p.steps[a] == 1 && p.dims[a] == own[a];
    if (0..own.len()).all(whole) {
        return instead(graph, id, x);
    }
    match inner {
        Some((CoreOp::Slice(q), Some(y))) => {
            let mut merged = p.clone();
            for a in 0..own.len() {
                merged.starts[a] =
                    q.starts[a].clone() + p.starts[a].clone() * Dim::Const(q.steps[a]);
                match p.steps[a].checked_mul(q.steps[a]) {
                    Some(step) => merged.steps[a] = step,
                    None => return Ok(None),
                }
            }
            done(graph.one(merged, &[y])?)
        }
        // A part of one operand of a join.
        Some((CoreOp::Concat(c), Some(_))) => {
            let a = c.axis;
            if p.steps[a] != 1 {
                return Ok(None);
            }
            let parts = graph.def(x).operands.clone();
            let mut start = Dim::ZERO;
            for part in parts {
                let len = graph.dim(part, a);
                if p.starts[a] == start && p.dims[a] == len {
                    let mut q = p.clone();
                    q.starts[a] = Dim::ZERO;
                    return done(graph.slice(part, &q.starts, &q.steps, &q.dims)?);
                }
                start = start + len;
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

pub(super) fn join(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::Concat(p)) = &node.op else {
        return Ok(None);
    };
    let axis = p.axis;
    let parts = node.operands.clone();
    if let [x] = parts[..] {
        return instead(graph, id, x);
    }
    let mut flat = vec![];
    for v in &parts {
        if graph.dim(*v, axis).is(0) {
            continue;
        }
        match graph.op_of(*v) {
            Op::Core(CoreOp::Concat(q)) if q.axis == axis => {
                flat.extend(graph.def(*v).operands.iter().copied())
            }
            _ => flat.push(*v),
        }
    }
    // Inner joins that others use too would be joined twice: worth it only to drop empty parts.
    if flat.len() < parts.len() && !flat.is_empty() {
        return done(graph.concat(&flat, axis)?);
    }
    if let Some(apart) = before_merging(graph, &parts, axis) {
        let dims = graph.dims(graph.node(id).results[0]);
        let joined = graph.concat(&apart, axis)?;
        return done(graph.reshape(joined, &dims)?);
    }
    Ok(None)
}

/// What parts were when the axis that joins them was two, the second the same for all: heads that were moved to their place.
/// Joined like that, they are copied in runs of the second axis.
fn before_merging(graph: &Graph, parts: &[ValueId], axis: usize) -> Option<Vec<ValueId>> {
    let mut inner = None;
    let each = parts.iter().map(|v| {
        let Op::Core(CoreOp::Reshape(_)) = graph.op_of(*v) else {
            return None;
        };
        let whole = graph.def(*v).operands[0];
        let Op::Core(CoreOp::Permute(_)) = graph.op_of(whole) else {
            return None;
        };
        let (own, merged) = (graph.dims(whole), graph.dims(*v));
        let same = own.len() == merged.len() + 1
            && own[..axis] == merged[..axis]
            && own[axis + 2..] == merged[axis + 1..]
            && *inner.get_or_insert_with(|| own[axis + 1].clone()) == own[axis + 1];
        same.then_some(whole)
    });
    each.collect()
}

pub(super) fn reduce(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::Reduce(p)) = &node.op else {
        return Ok(None);
    };
    let x = node.operands[0];
    let own = graph.dims(x);
    if p.axes.iter().all(|a| own[*a].is(1)) {
        let dims = graph.dims(node.results[0]);
        return done(graph.reshape(x, &dims)?);
    }
    Ok(None)
}

/// One constant index is a slice; its bounds are checked with the other sizes.
pub(super) fn gather(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::Gather(p)) = &node.op else {
        return Ok(None);
    };
    let (&[data, index], &[axis]) = (&node.operands[..], &p.axes[..]) else {
        return Ok(None);
    };
    if p.batch > 0 || p.bounds != Bounds::Check || graph.tensor(index).len() != Dim::ONE {
        return Ok(None);
    }
    let index = super::dims::known(graph, index);
    let Some([at]) = index.as_deref() else {
        return Ok(None);
    };
    let at = at.clone();
    let dims = graph.dims(node.results[0]);
    let own = graph.dim(data, axis);
    let inside = match (at.as_const(), own.as_const()) {
        (Some(a), Some(n)) => (0..n).contains(&a),
        _ => true,
    };
    if !inside {
        return Ok(None);
    }
    let part = graph.slice_axis(data, axis, &at, &Dim::ONE)?;
    // The picked axes come first, and all have extent 1: elements keep their order.
    done(graph.reshape(part, &dims)?)
}

//! Ops that move elements: the adjoint brings cotangents back to where the elements came from, and adds where they meet.

use super::{Grads, Ir, Site, splat, zeros};
use cupola_ir::ops::{Bounds, CoreOp, Fold, Pad, ReduceKind, Scatter, ScatterKind, Slice, Window};
use cupola_ir::{DType, Dim, Graph, Op, Scalar, ValueId};

/// The permutation that undoes one.
pub(super) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut back = vec![0; perm.len()];
    for (to, from) in perm.iter().enumerate() {
        back[*from] = to;
    }
    back
}

/// Repeated elements: sums over the axes of extent 1, also where only the bound symbols tell which these are.
pub(super) fn broadcast(g: &mut Graph, x: ValueId, dy: ValueId) -> Ir<ValueId> {
    let (from, to) = (g.dims(x), g.dims(dy));
    let repeated = |a: &usize| from[*a].is(1) && !to[*a].is(1);
    let axes: Vec<usize> = (0..from.len()).filter(repeated).collect();
    let mut dx = g.reduce_keep(ReduceKind::Sum, dy, &axes)?;
    for axis in 0..from.len() {
        let at_least = |d: &Dim| d.range(&|s| g.ranges.get(s).copied().unwrap_or_default()).0;
        let same = axes.contains(&axis) || from[axis] == to[axis] || at_least(&from[axis]) > 1;
        if !same {
            dx = collapse(g, dx, axis, &from[axis])?;
        }
    }
    Ok(dx)
}

/// The sum over an axis if `extent` turns out to be 1, the same elements if it is that of the axis.
fn collapse(g: &mut Graph, x: ValueId, axis: usize, extent: &Dim) -> Ir<ValueId> {
    let mut dims = g.dims(x);
    let long = dims[axis].clone();
    dims[axis] = extent.clone();
    let at = g.iota(DType::I64, &[long], 0)?;
    let last = g.dim_value(&(extent.clone() - Dim::ONE))?;
    let at = g.binary(Scalar::Min, at, last)?;
    let front: Vec<usize> = std::iter::once(axis)
        .chain((0..dims.len()).filter(|a| *a != axis))
        .collect();
    let updates = g.permute(x, &front)?;
    let dtype = g.dtype(x);
    let wide = g.accumulator(dtype);
    let updates = g.cast(updates, wide)?;
    let zeros = splat(g, 0.0, wide, &dims)?;
    let scatter = Scatter {
        axes: vec![axis],
        batch: 0,
        kind: ScatterKind::Add,
        bounds: Bounds::Clamp,
    };
    let sum = g.one(scatter, &[zeros, updates, at])?;
    g.cast(sum, dtype)
}

/// Elements go back to their places between zeros.
pub(super) fn slice(g: &mut Graph, p: &Slice, x: ValueId, dy: ValueId) -> Ir<ValueId> {
    let dims = g.dims(x);
    if p.dims.iter().any(|d| d.is(0)) {
        let ty = g.ty(x).clone();
        return zeros(g, &ty);
    }
    let mut dx = dy;
    let rank = dims.len();
    let (mut low, mut high) = (vec![Dim::ZERO; rank], vec![Dim::ZERO; rank]);
    let mut longer = false;
    for axis in 0..rank {
        let step = p.steps[axis].abs();
        let by = Dim::Const(step);
        let len = p.dims[axis].clone();
        low[axis] = p.starts[axis].clone();
        if p.steps[axis] < 0 {
            dx = g.flip(dx, axis)?;
            low[axis] = low[axis].clone() - (len.clone() - Dim::ONE) * by.clone();
        }
        if step > 1 {
            dx = spread(g, dx, axis, step)?;
            longer = true;
        }
        // Of the zeros behind the last element some may lie outside; they are cut off below.
        high[axis] = dims[axis].clone() - low[axis].clone() - len * by + Dim::Const(step - 1);
    }
    let zero = g.number_like(0.0, dy)?;
    let dx = g.pad(dx, zero, &low, &high)?;
    if !longer {
        return Ok(dx);
    }
    g.slice(dx, &vec![Dim::ZERO; rank], &vec![1; rank], &dims)
}

/// Every element of an axis followed by `step - 1` zeros.
fn spread(g: &mut Graph, x: ValueId, axis: usize, step: i64) -> Ir<ValueId> {
    let mut dims = g.dims(x);
    let apart = g.unsqueeze(x, &[axis + 1])?;
    let zero = g.number_like(0.0, x)?;
    let low = vec![Dim::ZERO; dims.len() + 1];
    let mut high = low.clone();
    high[axis + 1] = Dim::Const(step - 1);
    let padded = g.pad(apart, zero, &low, &high)?;
    dims[axis] = dims[axis].clone() * Dim::Const(step);
    g.reshape(padded, &dims)
}

/// The inner part for what is padded, the sum of the border for the value.
pub(super) fn pad(g: &mut Graph, site: &Site, p: &Pad, dy: ValueId) -> Grads {
    let x = site.operands[0];
    let dims = g.dims(x);
    let dx = g.slice(dy, &p.low, &vec![1; dims.len()], &dims)?;
    if !site.wanted[1] {
        return Ok(vec![Some(dx), None]);
    }
    let inside = splat(g, 0.0, g.dtype(dy), &dims)?;
    let one = g.number_like(1.0, dy)?;
    let border = g.pad(inside, one, &p.low, &p.high)?;
    let part = g.binary(Scalar::Mul, dy, border)?;
    let axes: Vec<usize> = (0..dims.len()).collect();
    let value = g.reduce(ReduceKind::Sum, part, &axes)?;
    Ok(vec![Some(dx), Some(value)])
}

/// Replaces parts that fill an axis one behind the other, with zeros around each, by their join: what gradients of the
/// slices of one value are. Nothing is then added to zero, and no element chooses among the parts.
pub(super) fn join(g: &mut Graph, parts: &mut Vec<ValueId>) -> Ir<()> {
    let found: Vec<Option<Between>> = parts.iter().map(|v| Between::of(g, *v)).collect();
    for first in 0..parts.len() {
        let Some(head) = found[first].as_ref().filter(|p| p.low.is(0)) else {
            continue;
        };
        let mut chain = vec![first];
        let mut last = head;
        while !last.high.is(0) {
            let end = last.low.clone() + last.len.clone();
            let follows = |p: &Between| p.axis == head.axis && p.low == end && !p.len.is(0);
            let is_next = |k: &usize| !chain.contains(k) && found[*k].as_ref().is_some_and(follows);
            let next = (0..parts.len()).find(is_next);
            let Some(next) = next else { break };
            chain.push(next);
            last = found[next].as_ref().unwrap_or(last);
        }
        if chain.len() < 2 || !last.high.is(0) {
            continue;
        }
        let inner = chain.iter().filter_map(|k| found[*k].as_ref());
        let inner: Vec<ValueId> = inner.map(|p| p.inner).collect();
        let joined = g.concat(&inner, head.axis)?;
        let ty = g.ty(parts[first]).clone();
        g.refine(joined, ty);
        parts[first] = joined;
        let mut at = 0;
        parts.retain(|_| {
            at += 1;
            at - 1 == first || !chain.contains(&(at - 1))
        });
        return Ok(());
    }
    Ok(())
}

/// Something with zeros before and after along one axis.
struct Between {
    inner: ValueId,
    axis: usize,
    low: Dim,
    len: Dim,
    high: Dim,
}

impl Between {
    fn of(g: &Graph, v: ValueId) -> Option<Between> {
        let node = g.def(v);
        let Op::Core(CoreOp::Pad(Pad { low, high })) = &node.op else {
            return None;
        };
        let mut axes = (0..low.len()).filter(|a| !low[*a].is(0) || !high[*a].is(0));
        let (axis, None) = (axes.next()?, axes.next()) else {
            return None;
        };
        let inner = node.operands[0];
        (g.as_uniform(node.operands[1]) == Some(0.0)).then(|| Between {
            inner,
            axis,
            low: low[axis].clone(),
            len: g.dim(inner, axis),
            high: high[axis].clone(),
        })
    }
}

/// Each part of the joined axis.
pub(super) fn concat(g: &mut Graph, site: &Site, axis: usize, dy: ValueId) -> Grads {
    let mut start = Dim::ZERO;
    let mut grads = vec![];
    for (x, wanted) in site.operands.iter().zip(&site.wanted) {
        let len = g.dim(*x, axis);
        grads.push(match wanted {
            true => Some(g.slice_axis(dy, axis, &start, &len)?),
            false => None,
        });
        start = start + len;
    }
    Ok(grads)
}

/// Windows are folded; those that lie side by side are put beside each other.
pub(super) fn window(g: &mut Graph, p: &Window, x: ValueId, dy: ValueId) -> Ir<ValueId> {
    let is_tile =
        |k: usize| p.sizes[k].is(p.strides[k]) && (p.dilations[k] == 1 || p.sizes[k].is(1));
    if (0..p.axes.len()).all(is_tile) {
        return tiles(g, p, x, dy);
    }
    let fold = Fold {
        axes: p.axes.clone(),
        sizes: p.sizes.clone(),
        strides: p.strides.clone(),
        dilations: p.dilations.clone(),
        dims: g.dims(x),
    };
    g.one(fold, &[dy])
}

/// `[.., windows.., .., elements..]` as `[.., windows * elements.., ..]`, with zeros behind the last window.
fn tiles(g: &mut Graph, p: &Window, x: ValueId, dy: ValueId) -> Ir<ValueId> {
    let (dims, windows) = (g.dims(x), g.dims(dy));
    let rank = dims.len();
    let mut perm = vec![];
    let mut joined = vec![];
    for axis in 0..rank {
        perm.push(axis);
        joined.push(windows[axis].clone());
        if let Some(k) = p.axes.iter().position(|a| *a == axis) {
            perm.push(rank + k);
            joined[axis] = joined[axis].clone() * windows[rank + k].clone();
        }
    }
    let side_by_side = g.permute(dy, &perm)?;
    let side_by_side = g.reshape(side_by_side, &joined)?;
    let zero = g.number_like(0.0, dy)?;
    let rest = dims.iter().zip(&joined).enumerate();
    let rest: Vec<Dim> = rest
        .map(|(a, (n, m))| match p.axes.contains(&a) {
            true => n - m,
            false => Dim::ZERO,
        })
        .collect();
    g.pad(side_by_side, zero, &vec![Dim::ZERO; rank], &rest)
}

/// What is folded comes in windows.
pub(super) fn fold(g: &mut Graph, p: &Fold, dy: ValueId) -> Ir<ValueId> {
    let window = Window {
        axes: p.axes.clone(),
        sizes: p.sizes.clone(),
        strides: p.strides.clone(),
        dilations: p.dilations.clone(),
    };
    g.one(window, &[dy])
}

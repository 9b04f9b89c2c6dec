//! Reductions.

use super::{Ir, splat};
use cupola_ir::ops::{ArgReduce, CoreOp, Reduce, ReduceKind, Window};
use cupola_ir::{DType, Dim, Graph, Op, Scalar, ValueId};

/// The operand's gradient for the cotangent `dy` of the result `r`.
pub(super) fn reduce(
    g: &mut Graph,
    p: &Reduce,
    x: ValueId,
    r: ValueId,
    dy: ValueId,
) -> Ir<ValueId> {
    let spread = |g: &mut Graph, v: ValueId| -> Ir<ValueId> {
        let v = g.unsqueeze(v, &p.axes)?;
        let dims = g.dims(x);
        g.broadcast_to(v, &dims)
    };
    match p.kind {
        ReduceKind::Sum => spread(g, dy),
        ReduceKind::Prod => {
            let wide = g.widen(x)?;
            let dy = g.widen(dy)?;
            let dy = spread(g, dy)?;
            let dx = product(g, p, wide, dy)?;
            g.cast_like(dx, x)
        }
        ReduceKind::Max | ReduceKind::Min => {
            if windows(g, x).is_some_and(|axes| axes == p.axes) {
                return first_of_window(g, p, x, r, dy);
            }
            // Ties share alike.
            let r = spread(g, r)?;
            let hit = g.binary(Scalar::Eq, x, r)?;
            let count = g.cast(hit, g.accumulator(g.dtype(x)))?;
            let count = g.reduce(ReduceKind::Sum, count, &p.axes)?;
            let wide = g.widen(dy)?;
            let share = g.binary(Scalar::Div, wide, count)?;
            let share = g.cast_like(share, x)?;
            let share = spread(g, share)?;
            let zero = g.number_like(0.0, x)?;
            g.select(hit, share, zero)
        }
    }
}

/// Every factor gets the product of the others, also where some are zero: with one zero only that one gets anything.
fn product(g: &mut Graph, p: &Reduce, x: ValueId, dy: ValueId) -> Ir<ValueId> {
    let dims = g.dims(x);
    let zero = g.number_like(0.0, x)?;
    let one = g.number_like(1.0, x)?;
    let is_zero = g.binary(Scalar::Eq, x, zero)?;
    let factors = g.select(is_zero, one, x)?;
    let rest = g.reduce_keep(ReduceKind::Prod, factors, &p.axes)?;
    let count = g.cast_like(is_zero, x)?;
    let zeros = g.reduce_keep(ReduceKind::Sum, count, &p.axes)?;
    // Zeros among the others.
    let zeros = g.broadcast_to(zeros, &dims)?;
    let others = g.binary(Scalar::Sub, zeros, count)?;
    let none = g.binary(Scalar::Eq, others, zero)?;
    let rest = g.broadcast_to(rest, &dims)?;
    let slope = g.binary(Scalar::Div, rest, factors)?;
    let slope = g.select(none, slope, zero)?;
    g.binary(Scalar::Mul, dy, slope)
}

/// The inner axes of sliding windows, where a value is those.
fn windows(g: &Graph, x: ValueId) -> Option<Vec<usize>> {
    match g.op_of(x) {
        Op::Core(CoreOp::Window(Window { axes, .. })) => {
            let rank = g.rank(x);
            Some((rank - axes.len()..rank).collect())
        }
        _ => None,
    }
}

/// Elements of a window up to which the first extreme one is found by comparing each.
const FEW: i64 = 64;

/// Pooling: all to the first extreme element of each window. Only its position is kept; the comparison with it is inlined
/// into whatever brings the windows' elements back to their places.
fn first_of_window(g: &mut Graph, p: &Reduce, x: ValueId, r: ValueId, dy: ValueId) -> Ir<ValueId> {
    let dims = g.dims(x);
    let kept = dims.len() - p.axes.len();
    let first = match compared(g, x, r)? {
        Some(first) => first,
        None => {
            let flat = [&dims[..kept], &[Dim::product(&dims[kept..])]].concat();
            let rows = g.reshape(x, &flat)?;
            let arg = ArgReduce {
                kind: p.kind,
                axis: kept,
                last: false,
            };
            let first = g.one(arg, &[rows])?;
            g.cast(first, DType::I32)?
        }
    };
    let first = g.unsqueeze(first, &p.axes)?;
    let zero = g.number(0.0, DType::I32)?;
    let mut own = g.broadcast_to(zero, &dims)?;
    for axis in &p.axes {
        let inner = g.dim_value(&Dim::product(&dims[axis + 1..]))?;
        let inner = g.cast(inner, DType::I32)?;
        let at = g.iota(DType::I32, &dims, *axis)?;
        let at = g.binary(Scalar::Mul, at, inner)?;
        own = g.binary(Scalar::Add, own, at)?;
    }
    let hit = g.binary(Scalar::Eq, own, first)?;
    let dy = g.unsqueeze(dy, &p.axes)?;
    let dy = g.broadcast_to(dy, &dims)?;
    let none = splat(g, 0.0, g.dtype(dy), &dims)?;
    g.select(hit, dy, none)
}

/// The position of the first element of each window that is the extreme one `r`, for windows of a few elements: these are
/// strided slices, and choosing among them is elementwise. The last position where none is (it is no number).
fn compared(g: &mut Graph, x: ValueId, r: ValueId) -> Ir<Option<ValueId>> {
    let node = g.def(x);
    let (base, Op::Core(CoreOp::Window(w))) = (node.operands[0], &node.op) else {
        return Ok(None);
    };
    let w = w.clone();
    let sizes: Option<Vec<i64>> = w.sizes.iter().map(Dim::as_const).collect();
    let Some(sizes) = sizes.filter(|s| (1..=FEW).contains(&s.iter().product())) else {
        return Ok(None);
    };
    let (rank, dims) = (g.rank(base), g.dims(r));
    let mut steps = vec![1; rank];
    for (axis, stride) in w.axes.iter().zip(&w.strides) {
        steps[*axis] = *stride;
    }
    let count: i64 = sizes.iter().product();
    let mut first = g.number((count - 1) as f64, DType::I32)?;
    for at in (0..count - 1).rev() {
        let mut starts = vec![Dim::ZERO; rank];
        let mut rest = at;
        for k in (0..sizes.len()).rev() {
            starts[w.axes[k]] = Dim::Const(rest % sizes[k] * w.dilations[k]);
            rest /= sizes[k];
        }
        let element = g.slice(base, &starts, &steps, &dims)?;
        let hit = g.binary(Scalar::Eq, element, r)?;
        let at = g.number(at as f64, DType::I32)?;
        first = g.select(hit, at, first)?;
    }
    g.broadcast_to(first, &dims).map(Some)
}

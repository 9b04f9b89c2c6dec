//! Reductions over axes.
//!
//! Axes are an attribute first and an operand later (version 13 for `ReduceSum`, 18 for the others). Float sums run in
//! the accumulator type throughout, so that squares and exponentials of f16 do not overflow before they are added.

use cupola_ir::ops::{ArgReduce, ReduceKind};
use cupola_ir::{DType, Graph, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("ReduceSum", 1, |cx| reduce(cx, sum)),
    op("ReduceMean", 1, |cx| reduce(cx, mean)),
    op("ReduceProd", 1, |cx| reduce(cx, prod)),
    op("ReduceMax", 1, |cx| reduce(cx, max)),
    op("ReduceMin", 1, |cx| reduce(cx, min)),
    op("ReduceL1", 1, |cx| reduce(cx, l1)),
    op("ReduceL2", 1, |cx| reduce(cx, l2)),
    op("ReduceSumSquare", 1, |cx| reduce(cx, sum_square)),
    op("ReduceLogSum", 1, |cx| reduce(cx, log_sum)),
    op("ReduceLogSumExp", 1, |cx| reduce(cx, log_sum_exp)),
    op("ArgMax", 1, |cx| arg_reduce(cx, ReduceKind::Max)),
    op("ArgMin", 1, |cx| arg_reduce(cx, ReduceKind::Min)),
    op("LpNormalization", 1, lp_normalization),
];

/// A reduction of `x` over axes that stay with extent 1.
type Reduction = fn(&mut Graph, ValueId, &[usize]) -> OpResult<ValueId>;

fn reduce(cx: &mut NodeCx<'_, '_>, f: Reduction) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let given = match cx.optional(1) {
        Some(v) => Some(cx.ints(v)?),
        None => cx.ints_attr("axes")?,
    };
    let keep = cx.flag("keepdims", true)?;
    let axes: Vec<usize> = match given {
        Some(axes) if !axes.is_empty() => cx.axes(&axes, ty.rank())?,
        _ if cx.flag("noop_with_empty_axes", false)? => vec![],
        _ => (0..ty.rank()).collect(),
    };
    let wide = cx.g.widen(x)?;
    let y = f(cx.g, wide, &axes)?;
    let y = cx.g.cast(y, ty.dtype)?;
    Ok(vec![match keep {
        true => y,
        false => cx.g.squeeze(y, &axes)?,
    }])
}

fn sum(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    Ok(g.reduce_keep(ReduceKind::Sum, x, axes)?)
}

fn prod(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    Ok(g.reduce_keep(ReduceKind::Prod, x, axes)?)
}

fn max(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    Ok(g.reduce_keep(ReduceKind::Max, x, axes)?)
}

fn min(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    Ok(g.reduce_keep(ReduceKind::Min, x, axes)?)
}

fn mean(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    match axes {
        [] => Ok(x),
        _ => Ok(g.mean_keep(x, axes)?),
    }
}

fn l1(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    let x = match g.dtype(x).class() {
        cupola_ir::Class::Unsigned => x,
        _ => g.unary(Scalar::Abs, x)?,
    };
    sum(g, x, axes)
}

fn sum_square(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    let square = g.binary(Scalar::Mul, x, x)?;
    sum(g, square, axes)
}

/// Integers go through f64 where a root or a logarithm is taken.
fn in_float(
    g: &mut Graph,
    x: ValueId,
    f: impl FnOnce(&mut Graph, ValueId) -> OpResult<ValueId>,
) -> OpResult<ValueId> {
    let dtype = g.dtype(x);
    let wide = match dtype.is_int() {
        true => g.cast(x, DType::F64)?,
        false => x,
    };
    let y = f(g, wide)?;
    Ok(g.cast(y, dtype)?)
}

fn l2(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    in_float(g, x, |g, x| {
        let s = sum_square(g, x, axes)?;
        Ok(g.unary(Scalar::Sqrt, s)?)
    })
}

fn log_sum(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    in_float(g, x, |g, x| {
        let s = sum(g, x, axes)?;
        Ok(g.unary(Scalar::Log, s)?)
    })
}

/// `log(sum(e^x))`, with the largest element taken out of the sum.
fn log_sum_exp(g: &mut Graph, x: ValueId, axes: &[usize]) -> OpResult<ValueId> {
    in_float(g, x, |g, x| {
        let top = max(g, x, axes)?;
        // An infinite maximum (all elements -inf, or none) must not turn differences into NaN.
        let infinite = g.unary(Scalar::IsInf, top)?;
        let zero = g.number_like(0.0, top)?;
        let top = g.select(infinite, zero, top)?;
        let e = g.binary(Scalar::Sub, x, top)?;
        let e = g.unary(Scalar::Exp, e)?;
        let s = sum(g, e, axes)?;
        let log = g.unary(Scalar::Log, s)?;
        Ok(g.binary(Scalar::Add, log, top)?)
    })
}

fn arg_reduce(cx: &mut NodeCx<'_, '_>, kind: ReduceKind) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", 0)?;
    let axis = cx.axis(axis, ty.rank())?;
    let last = cx.flag("select_last_index", false)?;
    let at = cx.g.one(ArgReduce { kind, axis, last }, &[x])?;
    Ok(vec![match cx.flag("keepdims", true)? {
        true => cx.g.unsqueeze(at, &[axis])?,
        false => at,
    }])
}

/// `x / |x|_p` along an axis; 0 where the norm is 0.
fn lp_normalization(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank())?;
    let wide = cx.g.widen(x)?;
    let norm = match cx.int_or("p", 2)? {
        1 => l1(cx.g, wide, &[axis])?,
        2 => l2(cx.g, wide, &[axis])?,
        p => return invalid(format!("p is {p}, it may be 1 or 2")),
    };
    let zero = cx.g.number_like(0.0, norm)?;
    let none = cx.g.binary(Scalar::Eq, norm, zero)?;
    let y = cx.g.binary(Scalar::Div, wide, norm)?;
    let y = cx.g.select(none, zero, y)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

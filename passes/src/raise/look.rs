//! Looking at graphs: small questions about what defines a value.

use cupola_ir::composite::CompositeOp;
use cupola_ir::ops::*;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, Scalar, ValueId};
use rustc_hash::FxHashMap;

/// Operands of a one-operand function.
pub fn unary(g: &Graph, v: ValueId, f: Scalar) -> Option<ValueId> {
    match g.op_of(v) {
        Op::Core(CoreOp::Map(p)) if p.f == f => g.def(v).operands.first().copied(),
        _ => None,
    }
}

/// Operands of a two-operand function.
pub fn binary(g: &Graph, v: ValueId, f: Scalar) -> Option<(ValueId, ValueId)> {
    match (g.op_of(v), &g.def(v).operands[..]) {
        (Op::Core(CoreOp::Map(p)), [x, y]) if p.f == f => Some((*x, *y)),
        _ => None,
    }
}

/// Both orders of a commutative function's operands.
pub fn either(g: &Graph, v: ValueId, f: Scalar) -> Vec<(ValueId, ValueId)> {
    binary(g, v, f).map_or(vec![], |(x, y)| vec![(x, y), (y, x)])
}

/// `x + c`: the value and the number.
pub fn plus(g: &Graph, v: ValueId) -> Option<(ValueId, f64)> {
    let added = either(g, v, Scalar::Add).into_iter();
    let added = added.map(|(x, c)| (x, g.as_uniform(c)));
    let taken = binary(g, v, Scalar::Sub).map(|(x, c)| (x, g.as_uniform(c).map(|c| -c)));
    added.chain(taken).find_map(|(x, c)| Some((x, c?)))
}

/// `x * c` or `x / c`: the value and the factor.
pub fn times(g: &Graph, v: ValueId) -> Option<(ValueId, f64)> {
    let product = either(g, v, Scalar::Mul).into_iter();
    let product = product.map(|(x, c)| (x, g.as_uniform(c)));
    let quotient = binary(g, v, Scalar::Div).map(|(x, c)| (x, g.as_uniform(c).map(|c| 1.0 / c)));
    product.chain(quotient).find_map(|(x, c)| Some((x, c?)))
}

/// The value without constant factors, and their product.
pub fn strip_factors(g: &Graph, v: ValueId) -> (ValueId, f64) {
    let (mut v, mut factor) = (v, 1.0);
    while let Some((x, c)) = times(g, v) {
        (v, factor) = (x, factor * c);
    }
    (v, factor)
}

/// Through `op` when it is that one-operand view.
fn view(g: &Graph, v: ValueId, is: fn(&CoreOp) -> bool) -> Option<ValueId> {
    match g.op_of(v) {
        Op::Core(op) if is(op) => g.def(v).operands.first().copied(),
        _ => None,
    }
}

/// The operand of a repetition, or the value itself.
pub fn before_broadcast(g: &Graph, v: ValueId) -> ValueId {
    view(g, v, |op| matches!(op, CoreOp::Broadcast(_))).unwrap_or(v)
}

/// The operand of a conversion, or the value itself.
pub fn before_cast(g: &Graph, v: ValueId) -> ValueId {
    view(g, v, |op| matches!(op, CoreOp::Cast(_))).unwrap_or(v)
}

/// The operand of a reshape, or the value itself.
pub fn before_reshape(g: &Graph, v: ValueId) -> ValueId {
    view(g, v, |op| matches!(op, CoreOp::Reshape(_))).unwrap_or(v)
}

/// A reduction of `x` that keeps its axes and is perhaps repeated along them again: what is reduced, and the axes.
pub fn kept_reduction(g: &Graph, v: ValueId, kind: ReduceKind) -> Option<(ValueId, Vec<usize>)> {
    let narrow = before_broadcast(g, v);
    let reduced = before_reshape(g, narrow);
    let Op::Core(CoreOp::Reduce(p)) = g.op_of(reduced) else {
        return None;
    };
    let x = g.def(reduced).operands[0];
    let mut dims = g.dims(x);
    p.axes.iter().for_each(|a| dims[*a] = Dim::ONE);
    (p.kind == kind && dims == g.dims(narrow)).then(|| (x, p.axes.clone()))
}

/// The mean of `x` over axes that are kept, perhaps repeated along them again.
pub fn kept_mean(g: &Graph, v: ValueId) -> Option<(ValueId, Vec<usize>)> {
    let narrow = before_broadcast(g, v);
    let count_of = |sum: ValueId| {
        let (x, axes) = kept_reduction(g, sum, ReduceKind::Sum)?;
        let dims = g.dims(x);
        let count = Dim::product(axes.iter().map(|a| &dims[*a]));
        Some((x, axes, count))
    };
    if let Some((sum, factor)) = times(g, narrow)
        && let Some((x, axes, count)) = count_of(sum)
    {
        let count = count.as_const()? as f64;
        return (near(factor * count, 1.0, g.dtype(v))).then_some((x, axes));
    }
    // A count that is known only when symbols are bound.
    let (sum, count) = binary(g, narrow, Scalar::Div)?;
    let (x, axes, dim) = count_of(sum)?;
    let count = before_cast(g, before_reshape(g, before_broadcast(g, count)));
    let count = before_reshape(g, before_broadcast(g, count));
    match g.op_of(count) {
        Op::Core(CoreOp::Dims(p)) if p.dims == [dim] => Some((x, axes)),
        _ => None,
    }
}

/// Whether two numbers agree as far as constants of a dtype are exact.
pub fn near(a: f64, b: f64, dtype: DType) -> bool {
    let tolerance = match dtype {
        DType::F64 => 1e-7,
        DType::F16 | DType::BF16 => 1e-2,
        _ => 1e-5,
    };
    (a - b).abs() <= tolerance * b.abs()
}

/// Where each axis goes in a reshape that only adds or drops axes of extent 1; those have no place.
pub fn axes_through_reshape(from: &[Dim], to: &[Dim]) -> Option<FxHashMap<usize, usize>> {
    let axes = |dims: &[Dim]| (0..dims.len()).filter(|a| !dims[*a].is(1)).collect();
    let (a, b): (Vec<usize>, Vec<usize>) = (axes(from), axes(to));
    let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| from[*a] == to[*b]);
    same.then(|| a.into_iter().zip(b).collect())
}

/// The composite that defines a value.
pub fn composite(g: &Graph, v: ValueId) -> Option<&CompositeOp> {
    match g.op_of(v) {
        Op::Composite(op) => Some(op),
        Op::Core(_) | Op::Host(_) => None,
    }
}

//! Rotary position embedding: `x * cos + rotate(x) * sin` with tables of the full width whose halves are equal, or
//! the two halves (or every other element) turned apart and joined again.

use super::Cx;
use super::look::*;
use cupola_ir::composite::Rope;
use cupola_ir::ops::Slice;
use cupola_ir::{CoreOp, Dim, Graph, IrError, NodeId, Op, Scalar, ValueId};

/// Most values looked at from a table of angles to the join of its halves.
const MAX_VALUES: usize = 32;

/// Raises a rotation that ends in this node.
pub(super) fn rope(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    if let Some((x, cos, sin)) = match_full(g, out, cx) {
        let tables = [half(g, cos)?, half(g, sin)?];
        let op = Rope { interleaved: false };
        return build(g, op, x, tables);
    }
    match match_joined(g, out) {
        Some((op, x, tables)) => build(g, op, x, tables),
        None => Ok(None),
    }
}

fn build(
    g: &mut Graph,
    op: Rope,
    x: ValueId,
    tables: [ValueId; 2],
) -> Result<Option<ValueId>, IrError> {
    let [cos, sin] = tables.map(|t| before_broadcast(g, t));
    g.one(Op::Composite(op.into()), &[x, cos, sin]).map(Some)
}

/// `(x, cos, sin)` for `x * cos + rotate(x) * sin` with tables of equal halves.
fn match_full(g: &Graph, out: ValueId, cx: &mut Cx) -> Option<(ValueId, ValueId, ValueId)> {
    for (straight, turned) in either(g, out, Scalar::Add) {
        let turned = either(g, turned, Scalar::Mul).into_iter();
        let Some((x, sin)) = turned
            .filter_map(|(r, sin)| Some((rotated(g, r)?, sin)))
            .next()
        else {
            continue;
        };
        let straight = either(g, straight, Scalar::Mul);
        let Some((_, cos)) = straight.into_iter().find(|(y, _)| *y == x) else {
            return cx.near(out, "rope: the cosines are not of the rotated value");
        };
        if ![cos, sin]
            .into_iter()
            .all(|t| halves(g, t, &mut { MAX_VALUES }))
        {
            return cx.near(
                out,
                "rope: the halves of the tables are not known to be equal",
            );
        }
        return Some((x, cos, sin));
    }
    None
}

/// `x` for `concat(-b, a)` with `a` and `b` the halves of `x`.
fn rotated(g: &Graph, v: ValueId) -> Option<ValueId> {
    let (first, second) = joined(g, v)?;
    let b = unary(g, first, Scalar::Neg)?;
    pair(g, second, b, false)
}

/// The two parts of a join along the last axis.
fn joined(g: &Graph, v: ValueId) -> Option<(ValueId, ValueId)> {
    match (g.op_of(v), &g.def(v).operands[..]) {
        (Op::Core(CoreOp::Concat(p)), [a, b]) if p.axis + 1 == g.rank(v) => Some((*a, *b)),
        _ => None,
    }
}

/// `x` when `a` and `b` are its halves, or its even and odd elements.
fn pair(g: &Graph, a: ValueId, b: ValueId, interleaved: bool) -> Option<ValueId> {
    let part = |v: ValueId, position: usize| {
        if interleaved {
            every_other(g, v, position)
        } else {
            half_of(g, v, position)
        }
    };
    let (x, y) = (part(a, 0)?, part(b, 1)?);
    (x == y).then_some(x)
}

/// Width of a half, when the last extent is even.
fn half_width(g: &Graph, x: ValueId) -> Option<Dim> {
    g.dims(x).last()?.exact_div(&Dim::Const(2))
}

/// `x` when the value is its lower or upper half.
fn half_of(g: &Graph, v: ValueId, position: usize) -> Option<ValueId> {
    let (x, p) = sliced(g, v)?;
    let half = half_width(g, x)?;
    let start = half.clone() * Dim::from(position);
    (p.starts.last() == Some(&start) && p.steps.last() == Some(&1) && p.dims.last() == Some(&half))
        .then_some(x)
}

/// `x` when the value is its even or odd elements, by a step of two or by an axis of pairs.
fn every_other(g: &Graph, v: ValueId, position: usize) -> Option<ValueId> {
    let start = Dim::from(position);
    if let Some((x, p)) = sliced(g, v)
        && p.starts.last() == Some(&start)
        && p.steps.last() == Some(&2)
        && p.dims.last() == half_width(g, x).as_ref()
    {
        return Some(x);
    }
    let (pairs, p) = sliced(g, before_reshape(g, v))?;
    let x = before_reshape(g, pairs);
    let mut split = g.dims(x);
    *split.last_mut()? = half_width(g, x)?;
    split.push(Dim::Const(2));
    let one = p.starts.last() == Some(&start) && p.dims.last() == Some(&Dim::ONE);
    let mut dims = g.dims(pairs);
    let fits = x != pairs && one && dims == split;
    dims.pop();
    (fits && g.dims(v) == dims).then_some(x)
}

/// The operand of a slice along the last axis alone.
fn sliced(g: &Graph, v: ValueId) -> Option<(ValueId, &Slice)> {
    let Op::Core(CoreOp::Slice(p)) = g.op_of(v) else {
        return None;
    };
    let x = g.def(v).operands[0];
    let dims = g.dims(x);
    let last = dims.len().checked_sub(1)?;
    let whole = |a: usize| p.starts[a].is(0) && p.steps[a] == 1 && p.dims[a] == dims[a];
    (0..last).all(whole).then_some((x, p))
}

/// `(rope, x, [cos, sin])` for turned parts that are joined, as halves or as pairs.
fn match_joined(g: &Graph, out: ValueId) -> Option<(Rope, ValueId, [ValueId; 2])> {
    if let Some((p, q)) = joined(g, out) {
        let (x, tables) = turned(g, p, q, false)?;
        return Some((Rope { interleaved: false }, x, tables));
    }
    let Op::Core(CoreOp::Reshape(_)) = g.op_of(out) else {
        return None;
    };
    let (p, q) = joined(g, g.def(out).operands[0])?;
    // Each part got an axis of one to be joined along.
    let narrow = |v: ValueId| {
        let mut dims = g.dims(v);
        let last = dims.pop();
        let x = before_reshape(g, v);
        (x != v && last?.is(1) && g.dims(x) == dims).then_some(x)
    };
    let (x, tables) = turned(g, narrow(p)?, narrow(q)?, true)?;
    (g.dims(out) == g.dims(x)).then_some((Rope { interleaved: true }, x, tables))
}

/// `(x, [cos, sin])` for `a * cos - b * sin` and `b * cos + a * sin` with parts `a` and `b` of `x`.
fn turned(g: &Graph, p: ValueId, q: ValueId, interleaved: bool) -> Option<(ValueId, [ValueId; 2])> {
    let (ac, bs) = binary(g, p, Scalar::Sub)?;
    for (bc, as_) in either(g, q, Scalar::Add) {
        for (a, cos) in either(g, ac, Scalar::Mul) {
            for (b, sin) in either(g, bs, Scalar::Mul) {
                let is = |v: ValueId, x: ValueId, y: ValueId| {
                    either(g, v, Scalar::Mul).contains(&(x, y))
                };
                if is(bc, b, cos)
                    && is(as_, a, sin)
                    && let Some(x) = pair(g, a, b, interleaved)
                {
                    return Some((x, [cos, sin]));
                }
            }
        }
    }
    None
}

/// Whether the two halves of the last axis are known to be equal.
fn halves(g: &Graph, v: ValueId, budget: &mut usize) -> bool {
    if g.as_uniform(v).is_some() {
        return true;
    }
    if *budget == 0 {
        return false;
    }
    *budget -= 1;
    let operands = &g.def(v).operands;
    match g.op_of(v) {
        Op::Core(CoreOp::Concat(_)) => joined(g, v).is_some_and(|(a, b)| a == b),
        Op::Core(CoreOp::Map(_) | CoreOp::Cast(_)) => {
            operands.iter().all(|x| halves(g, *x, budget))
        }
        Op::Core(CoreOp::Broadcast(_) | CoreOp::Reshape(_)) => {
            g.dims(operands[0]).last() == g.dims(v).last() && halves(g, operands[0], budget)
        }
        Op::Core(CoreOp::Slice(p)) => {
            let whole = g.dims(operands[0]).last() == p.dims.last();
            whole && p.steps.last() == Some(&1) && halves(g, operands[0], budget)
        }
        Op::Core(CoreOp::Gather(p)) => {
            let last = g.rank(operands[0]) - 1;
            let kept = g.dims(operands[0]).last() == g.dims(v).last();
            kept && !p.axes.contains(&last) && halves(g, operands[0], budget)
        }
        Op::Core(CoreOp::Const(c)) => {
            let width = c.value.shape().last().copied().unwrap_or(0) * c.value.dtype().size();
            width > 0
                && width % 2 == 0
                && (c.value.bytes().chunks_exact(width))
                    .all(|row| row[..width / 2] == row[width / 2..])
        }
        _ => false,
    }
}

/// The lower half of the last axis.
fn half(g: &mut Graph, v: ValueId) -> Result<ValueId, IrError> {
    let narrow = before_broadcast(g, v);
    let axis = g.rank(narrow) - 1;
    match half_width(g, narrow) {
        Some(half) => g.slice_axis(narrow, axis, &Dim::ZERO, &half),
        None => Ok(narrow),
    }
}

//! `e / sum(e)` with `e = exp(x - max(x))`, and its logarithm.

use super::Cx;
use super::look::*;
use cupola_ir::composite::{CompositeOp, Softmax};
use cupola_ir::ops::ReduceKind;
use cupola_ir::{Graph, IrError, NodeId, Op, Scalar, ValueId};

/// Raises a softmax or log-softmax that ends in this node.
pub(super) fn softmax(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    let found = ratio(g, out)
        .and_then(|(e, sum)| match_softmax(g, out, e, sum, cx))
        .or_else(|| match_log(g, out, cx));
    let Some((x, op)) = found else {
        return Ok(None);
    };
    let op = Op::Composite(CompositeOp::Softmax(op));
    g.one(op, &[x]).map(Some)
}

/// Numerator and denominator.
fn ratio(g: &Graph, v: ValueId) -> Option<(ValueId, ValueId)> {
    let product = either(g, v, Scalar::Mul)
        .into_iter()
        .find_map(|(x, y)| Some((x, unary(g, before_broadcast(g, y), Scalar::Recip)?)));
    binary(g, v, Scalar::Div).or(product)
}

fn match_softmax(
    g: &Graph,
    out: ValueId,
    e: ValueId,
    sum: ValueId,
    cx: &mut Cx,
) -> Option<(ValueId, Softmax)> {
    let (summed, axes) = kept_reduction(g, sum, ReduceKind::Sum)?;
    let shifted = unary(g, e, Scalar::Exp)?;
    if summed != e {
        return cx.near(
            out,
            "softmax: the sum is not of the exponentials divided by it",
        );
    }
    let [axis] = axes[..] else {
        return cx.near(out, "softmax: the sum is over several axes");
    };
    let x = unshifted(g, out, shifted, axis, cx)?;
    Some((x, Softmax { axis, log: false }))
}

/// `x` for `x - max(x)` along an axis.
fn unshifted(
    g: &Graph,
    out: ValueId,
    shifted: ValueId,
    axis: usize,
    cx: &mut Cx,
) -> Option<ValueId> {
    let shift = binary(g, shifted, Scalar::Sub)
        .and_then(|(x, max)| Some((x, kept_reduction(g, max, ReduceKind::Max)?)));
    let Some((x, (y, axes))) = shift else {
        return cx.near(
            out,
            "softmax: the maximum is not subtracted before exp, which overflows for large x",
        );
    };
    if x != y || axes != [axis] {
        return cx.near(
            out,
            "softmax: the maximum is of other elements than the sum",
        );
    }
    Some(x)
}

fn match_log(g: &Graph, out: ValueId, cx: &mut Cx) -> Option<(ValueId, Softmax)> {
    let (shifted, log) = binary(g, out, Scalar::Sub)?;
    let sum = unary(g, before_broadcast(g, log), Scalar::Log)?;
    let (e, axes) = kept_reduction(g, sum, ReduceKind::Sum)?;
    let inner = unary(g, e, Scalar::Exp)?;
    let [axis] = axes[..] else {
        return cx.near(out, "log-softmax: the sum is over several axes");
    };
    if inner != shifted {
        return cx.near(out, "log-softmax: the sum is not of the same exponentials");
    }
    let x = unshifted(g, out, shifted, axis, cx)?;
    Some((x, Softmax { axis, log: true }))
}

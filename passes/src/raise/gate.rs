//! Gates by a sigmoid: `x * sigmoid(alpha * x)` in its spellings, and that times another value.

use super::Cx;
use super::look::*;
use cupola_ir::composite::{CompositeOp, Swiglu, Swish};
use cupola_ir::{CoreOp, Graph, IrError, NodeId, Op, Scalar, ValueId};

/// Raises a swish that ends in this node.
pub(super) fn swish(g: &mut Graph, id: NodeId, _: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    if !g.dtype(out).is_float() {
        return Ok(None);
    }
    let product = either(g, out, Scalar::Mul).into_iter();
    let product = product.filter_map(|(x, gate)| Some((x, sigmoid(g, gate)?)));
    let quotient = binary(g, out, Scalar::Div);
    let quotient = quotient.and_then(|(x, d)| Some((x, grown(g, d)?)));
    let found = product.chain(quotient).find_map(|(x, inner)| {
        let (base, alpha) = match times(g, inner) {
            _ if inner == x => (x, 1.0),
            Some(found) => found,
            None => return None,
        };
        (base == x && alpha > 0.0).then_some((x, alpha))
    });
    match found {
        Some((x, alpha)) => g.one(Op::Composite(Swish { alpha }.into()), &[x]).map(Some),
        None => Ok(None),
    }
}

/// `y` for `sigmoid(y)` or `1 / (1 + exp(-y))`.
fn sigmoid(g: &Graph, v: ValueId) -> Option<ValueId> {
    let inverse = unary(g, v, Scalar::Recip).or_else(|| {
        let (one, d) = binary(g, v, Scalar::Div)?;
        (g.as_uniform(one) == Some(1.0)).then_some(d)
    });
    unary(g, v, Scalar::Sigmoid).or_else(|| grown(g, inverse?))
}

/// `y` for `1 + exp(-y)`.
fn grown(g: &Graph, v: ValueId) -> Option<ValueId> {
    let (e, one) = plus(g, v)?;
    let negative = unary(g, e, Scalar::Exp)?;
    (one == 1.0).then(|| unary(g, negative, Scalar::Neg))?
}

/// Raises a swish times another value of its extents.
pub(super) fn swiglu(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    for (gate, up) in either(g, out, Scalar::Mul) {
        let Some(CompositeOp::Swish(p)) = composite(g, gate) else {
            continue;
        };
        let alpha = p.alpha;
        // A value that is repeated is a scale, as in squeeze and excitation.
        let repeated = matches!(
            g.op_of(up),
            Op::Core(CoreOp::Broadcast(_) | CoreOp::Const(_))
        );
        if repeated || !cx.is_private(gate) {
            continue;
        }
        let x = g.def(gate).operands[0];
        let op = Op::Composite(Swiglu { alpha }.into());
        return g.one(op, &[x, up]).map(Some);
    }
    Ok(None)
}

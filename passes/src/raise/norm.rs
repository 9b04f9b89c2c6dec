//! Layer norm and RMS norm: first the normalisation itself, then scale and bias one at a time.

use super::Cx;
use super::look::*;
use cupola_ir::composite::{CompositeOp, LayerNorm, RmsNorm};
use cupola_ir::ops::ReduceKind;
use cupola_ir::{CoreOp, Dim, Graph, IrError, NodeId, Op, Scalar, ValueId};

/// Raises `(x - mean) / sqrt(var + epsilon)` and `x / sqrt(mean(x^2) + epsilon)` that end in this node.
pub(super) fn norm(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    let Some((x, op)) = match_norm(g, out, cx) else {
        return Ok(None);
    };
    g.one(Op::Composite(op), &[x]).map(Some)
}

fn match_norm(g: &Graph, out: ValueId, cx: &mut Cx) -> Option<(ValueId, CompositeOp)> {
    if !g.dtype(out).is_float() {
        return None;
    }
    let Some((numerator, radicand)) = scaled_by_root(g, out) else {
        return epsilon_outside(g, out, cx);
    };
    let (mean, epsilon) = plus(g, radicand).unwrap_or((radicand, 0.0));
    let Some((square, axes)) = kept_mean(g, mean) else {
        let what = variance_of_moments(g, mean).or_else(|| other_count(g, mean));
        return cx.near(out, what?);
    };
    let squared = squared(g, square)?;
    if squared != numerator {
        return cx.near(
            out,
            "norm: the squares are not of the value that is normalised",
        );
    }
    let rank = g.rank(numerator);
    let axis = axes[0];
    if axes != (axis..rank).collect::<Vec<_>>() {
        return cx.near(out, "norm: normalised axes are not the last ones");
    }
    if epsilon < 0.0 {
        return cx.near(out, "norm: epsilon is negative");
    }
    let centred = binary(g, numerator, Scalar::Sub)
        .and_then(|(x, m)| Some((x, kept_mean(g, m)?)))
        .filter(|(x, (y, a))| x == y && *a == axes);
    Some(match centred {
        Some((x, _)) => {
            let op = LayerNorm {
                axis,
                epsilon,
                stats: false,
            };
            (x, op.into())
        }
        None => (numerator, RmsNorm { axis, epsilon }.into()),
    })
}

/// `(y, r)` for `y / sqrt(r)` in any of its spellings.
fn scaled_by_root(g: &Graph, v: ValueId) -> Option<(ValueId, ValueId)> {
    let root = |v: ValueId| {
        let v = before_broadcast(g, v);
        let power = binary(g, v, Scalar::Pow).and_then(|(x, e)| Some((x, g.as_uniform(e)?)));
        match power {
            Some((x, 0.5)) => Some(x),
            _ => unary(g, v, Scalar::Sqrt),
        }
    };
    let inverse = |v: ValueId| {
        let v = before_broadcast(g, v);
        let power = binary(g, v, Scalar::Pow).and_then(|(x, e)| Some((x, g.as_uniform(e)?)));
        if let Some((x, -0.5)) = power {
            return Some(x);
        }
        let quotient = binary(g, v, Scalar::Div)
            .filter(|(one, _)| g.as_uniform(*one) == Some(1.0))
            .and_then(|(_, r)| root(r));
        unary(g, v, Scalar::Rsqrt)
            .or_else(|| root(unary(g, v, Scalar::Recip)?))
            .or(quotient)
    };
    let divided = binary(g, v, Scalar::Div).and_then(|(y, r)| Some((y, root(r)?)));
    divided.or_else(|| {
        either(g, v, Scalar::Mul)
            .into_iter()
            .find_map(|(y, r)| Some((y, inverse(r)?)))
    })
}

/// `x` for `x * x` or `x^2`.
fn squared(g: &Graph, v: ValueId) -> Option<ValueId> {
    let power = binary(g, v, Scalar::Pow).filter(|(_, e)| g.as_uniform(*e) == Some(2.0));
    let product = binary(g, v, Scalar::Mul).filter(|(x, y)| x == y);
    power.or(product).map(|(x, _)| x)
}

/// `mean(x^2) - mean(x)^2`, which cancels.
fn variance_of_moments(g: &Graph, v: ValueId) -> Option<&'static str> {
    let (a, b) = binary(g, v, Scalar::Sub)?;
    let (square, _) = kept_mean(g, a)?;
    let (x, m) = (squared(g, square)?, squared(g, b)?);
    let (y, _) = kept_mean(g, m)?;
    (x == y).then_some(
        "norm: the variance is mean(x^2) - mean(x)^2, which loses digits; use mean((x - mean)^2)",
    )
}

/// A sum of squares divided by something else than their number.
fn other_count(g: &Graph, v: ValueId) -> Option<&'static str> {
    let divided = times(g, before_broadcast(g, v)).map(|(sum, _)| sum);
    let (square, _) = kept_reduction(g, divided.unwrap_or(v), ReduceKind::Sum)?;
    squared(g, square).map(|_| {
        "norm: the sum of squares is not divided by the number of elements, as the biased variance is"
    })
}

/// `d / (sqrt(var) + epsilon)`.
fn epsilon_outside<T>(g: &Graph, out: ValueId, cx: &mut Cx) -> Option<T> {
    let (_, divisor) = binary(g, out, Scalar::Div)?;
    let (root, epsilon) = plus(g, before_broadcast(g, divisor))?;
    let mean = unary(g, before_broadcast(g, root), Scalar::Sqrt)?;
    let (square, _) = kept_mean(g, mean)?;
    squared(g, square)?;
    (epsilon != 0.0).then_some(())?;
    cx.near(out, "norm: epsilon is added to the root, not under it")
}

/// Makes a scale or bias after a norm an operand of it.
pub(super) fn affine(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    let scale = either(g, out, Scalar::Mul).into_iter().map(|p| (p, 1));
    let bias = either(g, out, Scalar::Add).into_iter().map(|p| (p, 2));
    let pairs: Vec<_> = scale.chain(bias).collect();
    for ((norm, operand), have) in pairs {
        let (op, axis, most) = match composite(g, norm) {
            Some(CompositeOp::LayerNorm(p)) if !p.stats => {
                (CompositeOp::from(p.clone()), p.axis, 3)
            }
            Some(CompositeOp::RmsNorm(p)) => (CompositeOp::from(p.clone()), p.axis, 2),
            _ => continue,
        };
        let mut operands = g.def(norm).operands.to_vec();
        if operands.len() != have || have >= most || g.dims(out) != g.dims(norm) {
            continue;
        }
        if !cx.is_private(norm) {
            let _: Option<()> = cx.near(
                out,
                "norm: its result without scale or bias is used elsewhere too",
            );
            continue;
        }
        let Some(narrow) = trailing(g, operand, axis) else {
            continue;
        };
        let dims: Vec<Dim> = g.dims(narrow)[axis..].to_vec();
        let narrow = g.reshape(narrow, &dims)?;
        operands.push(narrow);
        return g.one(Op::Composite(op), &operands).map(Some);
    }
    Ok(None)
}

/// The operand before repetition when it is the same for all leading indices.
fn trailing(g: &Graph, v: ValueId, axis: usize) -> Option<ValueId> {
    let narrow = before_broadcast(g, v);
    let dims = g.dims(narrow);
    (dims.len() > axis && dims[..axis].iter().all(|d| d.is(1))).then_some(narrow)
}

/// A norm or softmax between a conversion up and the same conversion down widens by itself.
pub(super) fn narrow(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let node = g.node(id);
    let Op::Core(CoreOp::Cast(p)) = &node.op else {
        return Ok(None);
    };
    let (inner, to) = (node.operands[0], p.to);
    let op = match composite(g, inner) {
        Some(op @ (CompositeOp::RmsNorm(_) | CompositeOp::Softmax(_))) => op.clone(),
        Some(CompositeOp::LayerNorm(p)) if !p.stats => p.clone().into(),
        _ => return Ok(None),
    };
    let mut operands = g.def(inner).operands.to_vec();
    let x = before_cast(g, operands[0]);
    let wide = g.dtype(inner);
    if x == operands[0] || g.dtype(x) != to || g.accumulator(to) != wide || !cx.is_private(inner) {
        return Ok(None);
    }
    operands[0] = x;
    g.one(Op::Composite(op), &operands).map(Some)
}

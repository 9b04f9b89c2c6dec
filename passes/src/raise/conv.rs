//! A scale per output channel after a convolution with constant weights moves into the weights, as batch norm in
//! inference leaves it: `(conv(x, w) - mean) * scale + bias`.

use super::Cx;
use super::look::*;
use cupola_ir::composite::CompositeOp;
use cupola_ir::{Dim, Graph, IrError, NodeId, Op, Scalar, ValueId};

/// Scales the weights instead of the result; what is added before the scale is scaled apart.
pub(super) fn scale(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    for (y, factor) in either(g, out, Scalar::Mul) {
        let added = either(g, y, Scalar::Add)
            .into_iter()
            .map(|p| (p, Scalar::Add));
        let taken = binary(g, y, Scalar::Sub)
            .into_iter()
            .map(|p| (p, Scalar::Sub));
        let mut bases: Vec<(ValueId, Option<(Scalar, ValueId)>)> = vec![(y, None)];
        bases.extend(added.chain(taken).map(|((x, c), f)| (x, Some((f, c)))));
        for (conv, shift) in bases {
            let Some(CompositeOp::Conv(p)) = composite(g, conv) else {
                continue;
            };
            let op = Op::Composite(p.clone().into());
            let (x, w) = (g.def(conv).operands[0], g.def(conv).operands[1]);
            let rank = g.rank(conv);
            let constant = |v: ValueId| g.as_const(before_reshape(g, v)).is_some();
            let shift = match shift {
                Some((f, c)) => match per_channel(g, c, rank).filter(|c| constant(*c)) {
                    Some(c) => Some((f, c)),
                    None => continue,
                },
                None => None,
            };
            let Some(factor) = per_channel(g, factor, rank).filter(|f| constant(*f)) else {
                continue;
            };
            if g.as_const(w).is_none() || g.dims(out) != g.dims(conv) || !g.dtype(w).is_float() {
                continue;
            }
            if !cx.is_private(conv) || y != conv && !cx.is_private(y) {
                let _: Option<()> = cx.near(
                    out,
                    "conv: its result without the scale is used elsewhere too",
                );
                continue;
            }
            return rebuild(g, op, x, w, factor, shift).map(Some);
        }
    }
    Ok(None)
}

fn rebuild(
    g: &mut Graph,
    op: Op,
    x: ValueId,
    w: ValueId,
    factor: ValueId,
    shift: Option<(Scalar, ValueId)>,
) -> Result<ValueId, IrError> {
    let channels = g.dims(factor)[1].clone();
    let mut dims = vec![Dim::ONE; g.rank(w)];
    dims[0] = channels;
    let column = g.reshape(factor, &dims)?;
    let w = g.binary(Scalar::Mul, w, column)?;
    let w = fold(g, w)?;
    let y = g.one(op, &[x, w])?;
    match shift {
        Some((f, c)) => {
            let c = g.binary(Scalar::Mul, c, factor)?;
            g.binary(f, y, c)
        }
        None => Ok(y),
    }
}

/// The operand before repetition when it has one element per channel (axis 1), or one in all.
fn per_channel(g: &Graph, v: ValueId, rank: usize) -> Option<ValueId> {
    let narrow = before_broadcast(g, v);
    let dims = g.dims(narrow);
    let fits = dims.len() == rank && (0..rank).all(|a| a == 1 || dims[a].is(1));
    fits.then_some(narrow)
}

/// The value as a constant. Weights are larger than what constant folding takes on by itself.
fn fold(g: &mut Graph, v: ValueId) -> Result<ValueId, IrError> {
    match crate::simplify::constant_of(g, v) {
        Some(t) => g.constant(t),
        None => Ok(v),
    }
}

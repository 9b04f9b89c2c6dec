//! Sums of embeddings, normalised.

use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, ValueId};

use super::ms;
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};
use crate::ops::OpRow;
use crate::ops::indexed::take;
use crate::ops::math::Math;
use crate::ops::norm::push_layer_norm;
use crate::ops::quantize::dequantize_from;

pub(in crate::ops) const OPS: &[OpRow] = &[
    ms("EmbedLayerNormalization", embed),
    ms("QEmbedLayerNormalization", quantised_embed),
];

/// What is looked up and how the sum is normalised.
struct Tables {
    word: ValueId,
    position: ValueId,
    segment: Option<ValueId>,
    gamma: ValueId,
    beta: ValueId,
}

fn embed(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let tables = Tables {
        word: cx.input(2)?,
        position: cx.input(3)?,
        segment: cx.optional(4),
        gamma: cx.input(5)?,
        beta: cx.input(6)?,
    };
    let positions = cx.optional(8);
    normalised_sum(cx, &tables, positions)
}

/// Operands (ids, segments, five quantised tables, mask, five scales, five zero points).
fn quantised_embed(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let open = |cx: &mut NodeCx<'_, '_>, i: usize| -> OpResult<ValueId> {
        let (x, scale, zero) = (cx.input(2 + i)?, cx.input(8 + i)?, cx.optional(13 + i));
        dequantize_from(cx, x, scale, zero)
    };
    let tables = Tables {
        word: open(cx, 0)?,
        position: open(cx, 1)?,
        segment: match cx.optional(4) {
            Some(_) => Some(open(cx, 2)?),
            None => None,
        },
        gamma: open(cx, 3)?,
        beta: open(cx, 4)?,
    };
    normalised_sum(cx, &tables, None)
}

/// The normalised sum of the rows that the ids name; how many keys the mask (operand 7) leaves in each batch entry;
/// the sum itself.
fn normalised_sum(
    cx: &mut NodeCx<'_, '_>,
    tables: &Tables,
    positions: Option<ValueId>,
) -> OpResult {
    let (ids, ty) = cx.tensor_input(0)?;
    let [batch, len] = &ty.dims[..] else {
        return invalid(format!("ids of type {ty}"));
    };
    let (segments, mask) = (cx.optional(1), cx.optional(7));
    let epsilon = cx.float_or("epsilon", 1e-12)?;
    let mut m = Math { g: cx.g };
    let rows = |m: &mut Math<'_>, table: ValueId, ids: ValueId| -> OpResult<ValueId> {
        let ids = m.g.cast(ids, DType::I64)?;
        take(m.g, table, 0, ids)
    };
    let mut sum = rows(&mut m, tables.word, ids)?;
    let positions = match positions {
        Some(ids) => ids,
        None => m.g.iota(DType::I64, std::slice::from_ref(len), 0)?,
    };
    let at = rows(&mut m, tables.position, positions)?;
    sum = m.add(sum, at)?;
    if let (Some(table), Some(ids)) = (tables.segment, segments) {
        let part = rows(&mut m, table, ids)?;
        sum = m.add(sum, part)?;
    }
    let axis = m.g.rank(sum) - 1;
    let operands = [sum, tables.gamma, tables.beta];
    let y = push_layer_norm(m.g, &operands, axis, epsilon, false)?[0];
    let left = match mask {
        Some(mask) => {
            let kept = m.eq(mask, 1.0)?;
            let kept = m.g.cast(kept, DType::I32)?;
            m.g.reduce(ReduceKind::Sum, kept, &[1])?
        }
        None => {
            let zero = m.g.number(0.0, DType::I32)?;
            m.g.broadcast_to(zero, std::slice::from_ref(batch))?
        }
    };
    Ok(vec![y, left, sum])
}

//! Distinct values, boxes that do not overlap, determinants and inverses.

use cupola_ir::ops::HostOp;
use cupola_ir::ops::host::{Determinant, Inverse, NonMaxSuppression, Unique};
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Op, ValueId};

use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::OpResult;

pub(super) const OPS: &[OpRow] = &[
    op("Unique", 11, unique),
    op("NonMaxSuppression", 10, non_max_suppression),
    op("Det", 11, |cx| matrices(cx, Determinant {}.into())),
    op_in("com.microsoft", "Inverse", 1, |cx| {
        matrices(cx, Inverse {}.into())
    }),
];

fn push(cx: &mut NodeCx<'_, '_>, op: HostOp, operands: &[ValueId]) -> OpResult {
    Ok(cx.g.push(Op::Host(op), operands)?.to_vec())
}

fn matrices(cx: &mut NodeCx<'_, '_>, op: HostOp) -> OpResult {
    let x = cx.input(0)?;
    push(cx, op, &[x])
}

fn unique(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = match cx.int("axis")? {
        Some(axis) => Some(cx.axis(axis, ty.rank())?),
        None => None,
    };
    let op = Unique {
        axis,
        sorted: cx.flag("sorted", true)?,
        count: cx.fresh_sym("distinct"),
    };
    push(cx, op.into(), &[x])
}

fn non_max_suppression(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (boxes, scores) = (cx.input(0)?, cx.input(1)?);
    let scalar = |cx: &mut NodeCx<'_, '_>, i: usize, default: Tensor| -> OpResult<ValueId> {
        let dtype = default.dtype();
        let v = match cx.optional(i) {
            Some(v) => cx.g.cast(v, dtype)?,
            None => cx.g.constant(default)?,
        };
        Ok(cx.g.reshape(v, &[])?)
    };
    let most = scalar(cx, 2, Tensor::scalar(0i64))?;
    let overlap = scalar(cx, 3, Tensor::scalar(0f32))?;
    // Without a threshold every score is good enough.
    let least = scalar(cx, 4, Tensor::scalar(f32::NEG_INFINITY))?;
    let (boxes, scores) = (
        cx.g.cast(boxes, DType::F32)?,
        cx.g.cast(scores, DType::F32)?,
    );
    let op = NonMaxSuppression {
        centred: cx.int_or("center_point_box", 0)? != 0,
        count: cx.fresh_sym("boxes"),
    };
    push(cx, op.into(), &[boxes, scores, most, overlap, least])
}

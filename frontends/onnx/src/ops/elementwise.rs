//! Elementwise operators.

use cupola_ir::Scalar;

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::OpResult;

pub(super) const OPS: &[OpRow] = &[
    op("Abs", 1, |cx| unary(cx, Scalar::Abs)),
    op("Add", 7, |cx| binary(cx, Scalar::Add)),
    op("Relu", 1, relu),
];

fn unary(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let x = cx.input(0)?;
    Ok(vec![cx.g.unary(f, x)?])
}

fn binary(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let (x, y) = (cx.input(0)?, cx.input(1)?);
    Ok(vec![cx.g.binary(f, x, y)?])
}

fn relu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let zero = cx.g.number_like(0.0, x)?;
    Ok(vec![cx.g.binary(Scalar::Max, x, zero)?])
}

//! Quantised forms of ordinary operators: operands are dequantised, the result is quantised again. The element type of
//! the result is that of the operand.

use cupola_ir::composite::Softmax;
use cupola_ir::{CompositeOp, DType, Dim, Op, Scalar, ValueId};

use super::ms;
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};
use crate::ops::OpRow;
use crate::ops::math::Math;
use crate::ops::pool::average;
use crate::ops::quantize::{
    dequantize, dequantize_from, integer_product, qlinear_conv, quantize, quantize_dynamically,
    quantize_to, scaled_product,
};

pub(in crate::ops) const OPS: &[OpRow] = &[
    ms("QuantizeLinear", quantize),
    ms("DequantizeLinear", dequantize),
    ms("MatMulIntegerToFloat", matmul_integer_to_float),
    ms("DynamicQuantizeMatMul", dynamic_quantize_matmul),
    ms("QLinearAdd", |cx| qlinear_binary(cx, Scalar::Add)),
    ms("QLinearMul", |cx| qlinear_binary(cx, Scalar::Mul)),
    ms("QLinearSigmoid", |cx| {
        qlinear_unary(cx, |cx, x| Ok(cx.g.unary(Scalar::Sigmoid, x)?))
    }),
    ms("QLinearLeakyRelu", |cx| qlinear_unary(cx, leaky_relu)),
    ms("QLinearSoftmax", |cx| qlinear_unary(cx, softmax)),
    ms("QLinearGlobalAveragePool", |cx| {
        qlinear_unary(cx, global_average)
    }),
    ms("QLinearAveragePool", |cx| qlinear_unary(cx, average_pool)),
    ms("QLinearReduceMean", |cx| qlinear_unary(cx, reduce_mean)),
    ms("QLinearConcat", qlinear_concat),
    ms("QLinearWhere", qlinear_where),
    ms("QLinearConv", conv),
    ms("QGemm", gemm),
];

fn matmul_integer_to_float(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (a, b, sa, sb) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.input(3)?);
    let (za, zb, bias) = (cx.optional(4), cx.optional(5), cx.optional(6));
    scaled_product(cx, [a, b], [sa, sb], [za, zb], bias).map(|y| vec![y])
}

fn dynamic_quantize_matmul(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, b, sb) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (zb, bias) = (cx.optional(3), cx.optional(4));
    let [a, sa, za] = quantize_dynamically(cx, x)?;
    scaled_product(cx, [a, b], [sa, sb], [Some(za), zb], bias).map(|y| vec![y])
}

/// Operands (A, A_scale, A_zero, B, B_scale, B_zero, C_scale, C_zero).
fn qlinear_binary(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let (a, sa, za) = (cx.input(0)?, cx.input(1)?, cx.optional(2));
    let (b, sb, zb) = (cx.input(3)?, cx.input(4)?, cx.optional(5));
    let (sc, zc) = (cx.input(6)?, cx.optional(7));
    let to = cx.g.dtype(a);
    let a = dequantize_from(cx, a, sa, za)?;
    let b = dequantize_from(cx, b, sb, zb)?;
    let y = cx.g.binary(f, a, b)?;
    Ok(vec![quantize_to(cx, y, sc, zc, to, true)?])
}

fn leaky_relu(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let alpha = cx.float_or("alpha", 0.01)?;
    let low = cx.g.scale(x, alpha)?;
    let zero = cx.g.number_like(0.0, x)?;
    let negative = cx.g.binary(Scalar::Lt, x, zero)?;
    Ok(cx.g.select(negative, low, x)?)
}

/// Operands (X, X_scale, X_zero, Y_scale, Y_zero).
fn qlinear_unary(
    cx: &mut NodeCx<'_, '_>,
    f: fn(&mut NodeCx<'_, '_>, ValueId) -> OpResult<ValueId>,
) -> OpResult {
    let (x, sx, zx) = (cx.input(0)?, cx.input(1)?, cx.optional(2));
    let (sy, zy) = (cx.input(3)?, cx.optional(4));
    let to = cx.g.dtype(x);
    let x = dequantize_from(cx, x, sx, zx)?;
    let y = f(cx, x)?;
    Ok(vec![quantize_to(cx, y, sy, zy, to, true)?])
}

/// The axes between batch and channels, wherever the channels are.
fn spatial(cx: &NodeCx<'_, '_>, x: ValueId) -> OpResult<Vec<usize>> {
    let last = cx.flag("channels_last", false)?;
    match cx.g.rank(x) {
        rank @ 2.. if last => Ok((1..rank - 1).collect()),
        rank @ 2.. => Ok((2..rank).collect()),
        _ => cx.bad_type(x),
    }
}

fn global_average(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let axes = spatial(cx, x)?;
    Ok(cx.g.mean_keep(x, &axes)?)
}

/// `f` on an operand whose channels are axis 1, for one whose channels are the last axis when so stated.
fn channels_first(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    f: impl FnOnce(&mut NodeCx<'_, '_>, ValueId) -> OpResult<ValueId>,
) -> OpResult<ValueId> {
    match (cx.flag("channels_last", false)?, cx.g.rank(x)) {
        (true, 2..) => super::small::channels_first(cx, x, f),
        _ => f(cx, x),
    }
}

fn average_pool(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    channels_first(cx, x, average)
}

fn reduce_mean(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let rank = cx.g.rank(x);
    let axes = match cx.ints_attr("axes")? {
        Some(axes) => cx.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    let y = cx.g.mean_keep(x, &axes)?;
    match cx.flag("keepdims", true)? {
        true => Ok(y),
        false => Ok(cx.g.squeeze(y, &axes)?),
    }
}

/// Along the axis, or before version 13 over all axes from it on.
fn softmax(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let dims = cx.g.dims(x);
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, dims.len())?;
    let flat = cx.required_int("opset")? < 13;
    let (x, axis) = match flat {
        true => {
            let rows = [Dim::product(&dims[..axis]), Dim::product(&dims[axis..])];
            (cx.g.reshape(x, &rows)?, 1)
        }
        false => (x, axis),
    };
    let op = Op::Composite(CompositeOp::Softmax(Softmax { axis, log: false }));
    let y = cx.g.one(op, &[x])?;
    Ok(cx.g.reshape(y, &dims)?)
}

/// Operands (condition, X, X_scale, X_zero, Y, Y_scale, Y_zero, Z_scale, Z_zero).
fn qlinear_where(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let condition = cx.input(0)?;
    let (x, sx, zx) = (cx.input(1)?, cx.input(2)?, cx.optional(3));
    let (y, sy, zy) = (cx.input(4)?, cx.input(5)?, cx.optional(6));
    let (sz, zz) = (cx.input(7)?, cx.optional(8));
    let to = cx.g.dtype(x);
    let x = dequantize_from(cx, x, sx, zx)?;
    let y = dequantize_from(cx, y, sy, zy)?;
    let z = cx.g.select(condition, x, y)?;
    Ok(vec![quantize_to(cx, z, sz, zz, to, true)?])
}

fn conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    if !cx.flag("channels_last", false)? {
        return qlinear_conv(cx);
    }
    let x = cx.input(0)?;
    let y = channels_first(cx, x, |cx, x| {
        cx.inputs[0] = Some(x);
        Ok(qlinear_conv(cx)?[0])
    })?;
    Ok(vec![y])
}

/// Operands (A, A_scale, A_zero, B, B_scale, B_zero, C, Y_scale, Y_zero): `alpha * (A B * A_scale * B_scale + C)`, where
/// C is i32 in the scale of the product; a float without Y_scale.
fn gemm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (mut a, sa, za) = (cx.input(0)?, cx.input(1)?, cx.optional(2));
    let (mut b, sb, zb) = (cx.input(3)?, cx.input(4)?, cx.optional(5));
    if cx.g.rank(a) != 2 || cx.g.rank(b) != 2 {
        return invalid(format!("{} times {}", cx.g.ty(a), cx.g.ty(b)));
    }
    let to = cx.g.dtype(a);
    if cx.flag("transA", false)? {
        a = cx.g.permute(a, &[1, 0])?;
    }
    if cx.flag("transB", false)? {
        b = cx.g.permute(b, &[1, 0])?;
    }
    let alpha = cx.float_or("alpha", 1.0)?;
    let mut y = integer_product(cx, [a, b], [za, zb])?;
    if let Some(c) = cx.optional(6) {
        y = cx.g.binary(Scalar::Add, y, c)?;
    }
    let mut m = Math { g: cx.g };
    let y = m.g.cast(y, DType::F32)?;
    let scale = m.mul(sa, sb)?;
    let scale = m.mul(scale, alpha)?;
    let y = m.mul(y, scale)?;
    Ok(vec![match cx.optional(7) {
        Some(sy) => {
            let zy = cx.optional(8);
            quantize_to(cx, y, sy, zy, to, true)?
        }
        None => y,
    }])
}

/// Operands (Y_scale, Y_zero, then value, scale and zero of each part).
fn qlinear_concat(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (sy, zy) = (cx.input(0)?, cx.input(1)?);
    let all = cx.inputs_from(2)?;
    let parts: Vec<ValueId> = all
        .chunks_exact(3)
        .map(|p| dequantize_from(cx, p[0], p[1], Some(p[2])))
        .collect::<OpResult<_>>()?;
    let Some(first) = parts.first() else {
        return invalid("takes at least one part");
    };
    let axis = cx.required_int("axis")?;
    let axis = cx.axis(axis, cx.g.rank(*first))?;
    let y = cx.g.concat(&parts, axis)?;
    let to = cx.g.dtype(zy);
    Ok(vec![quantize_to(cx, y, sy, Some(zy), to, true)?])
}

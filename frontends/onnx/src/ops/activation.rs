//! Activations, dropout and the softmax family.

use cupola_ir::composite::{Gelu, Softmax};
use cupola_ir::ops::{ArgReduce, ReduceKind};
use cupola_ir::{CompositeOp, DType, Dim, Graph, Op, Scalar, ValueId};

use super::elementwise::unary;
use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("Relu", 1, relu),
    op("LeakyRelu", 1, leaky_relu),
    op("ThresholdedRelu", 10, thresholded_relu),
    op("PRelu", 1, prelu_by_channel),
    op("PRelu", 7, prelu),
    op("Elu", 1, elu),
    op("Selu", 1, selu),
    op("Celu", 12, celu),
    op("Sigmoid", 1, |cx| unary(cx, Scalar::Sigmoid)),
    op("Tanh", 1, |cx| unary(cx, Scalar::Tanh)),
    op("HardSigmoid", 1, hard_sigmoid),
    op("HardSwish", 14, hard_swish),
    op("Softplus", 1, |cx| with(cx, softplus)),
    op("Softsign", 1, |cx| with(cx, softsign)),
    op("Mish", 18, |cx| with(cx, mish)),
    op("Gelu", 20, gelu),
    op("Swish", 24, swish),
    op("SwiGLU", 28, swiglu),
    op("Shrink", 9, shrink),
    op("Dropout", 1, dropout_is_test),
    op("Dropout", 7, dropout_inference),
    op("Dropout", 12, dropout),
    op("Softmax", 1, |cx| softmax_of_rest(cx, false)),
    op("Softmax", 13, |cx| softmax(cx, false)),
    op("LogSoftmax", 1, |cx| softmax_of_rest(cx, true)),
    op("LogSoftmax", 13, |cx| softmax(cx, true)),
    op("Hardmax", 1, hardmax_of_rest),
    op("Hardmax", 13, hardmax),
    op_in("com.microsoft", "Gelu", 1, |cx| biased_gelu(cx, false)),
    op_in("com.microsoft", "BiasGelu", 1, |cx| biased_gelu(cx, false)),
    op_in("com.microsoft", "FastGelu", 1, |cx| biased_gelu(cx, true)),
    op_in("com.microsoft", "QuickGelu", 1, quick_gelu),
];

/// A function of one operand without attributes.
fn with(cx: &mut NodeCx<'_, '_>, f: fn(&mut Graph, ValueId) -> OpResult<ValueId>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    Ok(vec![f(cx.g, x)?])
}

fn relu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let zero = cx.g.number_like(0.0, x)?;
    Ok(vec![cx.g.binary(Scalar::Max, x, zero)?])
}

/// `x < 0 ? below : x`.
fn where_negative(g: &mut Graph, x: ValueId, below: ValueId) -> OpResult<ValueId> {
    let zero = g.number_like(0.0, x)?;
    let negative = g.binary(Scalar::Lt, x, zero)?;
    Ok(g.select(negative, below, x)?)
}

fn leaky_relu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let alpha = cx.float_or("alpha", 0.01)?;
    let below = cx.g.scale(x, alpha)?;
    Ok(vec![where_negative(cx.g, x, below)?])
}

fn thresholded_relu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let alpha = cx.float_or("alpha", 1.0)?;
    let (alpha, zero) = (cx.g.number_like(alpha, x)?, cx.g.number_like(0.0, x)?);
    let above = cx.g.binary(Scalar::Lt, alpha, x)?;
    Ok(vec![cx.g.select(above, x, zero)?])
}

fn prelu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, slope) = (cx.input(0)?, cx.input(1)?);
    let below = cx.g.binary(Scalar::Mul, x, slope)?;
    Ok(vec![where_negative(cx.g, x, below)?])
}

/// Before version 7 a slope per channel was given without the axes after it.
fn prelu_by_channel(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, slope) = (cx.input(0)?, cx.input(1)?);
    let mut dims = cx.g.dims(slope);
    if dims.len() == 1 && !dims[0].is(1) {
        dims.resize(cx.g.rank(x).saturating_sub(1).max(1), Dim::ONE);
    }
    let slope = cx.g.reshape(slope, &dims)?;
    let below = cx.g.binary(Scalar::Mul, x, slope)?;
    Ok(vec![where_negative(cx.g, x, below)?])
}

fn elu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let alpha = cx.float_or("alpha", 1.0)?;
    let below = cx.g.unary(Scalar::Expm1, x)?;
    let below = cx.g.scale(below, alpha)?;
    Ok(vec![where_negative(cx.g, x, below)?])
}

fn selu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    // Defaults of the operator's definition; version 1 rounded them.
    let (alpha, gamma) = match cx.opset < 6 {
        true => (1.6732, 1.0507),
        false => (1.673_263_192_176_818_8, 1.050_701_022_148_132_3),
    };
    let (alpha, gamma) = (cx.float_or("alpha", alpha)?, cx.float_or("gamma", gamma)?);
    let below = cx.g.unary(Scalar::Expm1, x)?;
    let below = cx.g.scale(below, alpha)?;
    let y = where_negative(cx.g, x, below)?;
    Ok(vec![cx.g.scale(y, gamma)?])
}

fn celu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let alpha = cx.float_or("alpha", 1.0)?;
    if alpha == 0.0 {
        return invalid("alpha is 0");
    }
    let alpha_value = cx.g.number_like(alpha, x)?;
    let below = cx.g.binary(Scalar::Div, x, alpha_value)?;
    let below = cx.g.unary(Scalar::Expm1, below)?;
    let below = cx.g.scale(below, alpha)?;
    Ok(vec![where_negative(cx.g, x, below)?])
}

/// `max(0, min(1, alpha * x + beta))`.
fn ramp(g: &mut Graph, x: ValueId, alpha: f64, beta: f64) -> OpResult<ValueId> {
    let y = g.scale(x, alpha)?;
    let (beta, zero, one) = (
        g.number_like(beta, x)?,
        g.number_like(0.0, x)?,
        g.number_like(1.0, x)?,
    );
    let y = g.binary(Scalar::Add, y, beta)?;
    let y = g.binary(Scalar::Min, y, one)?;
    Ok(g.binary(Scalar::Max, y, zero)?)
}

fn hard_sigmoid(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let (alpha, beta) = (cx.float_or("alpha", 0.2)?, cx.float_or("beta", 0.5)?);
    Ok(vec![ramp(cx.g, x, alpha, beta)?])
}

fn hard_swish(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let gate = ramp(cx.g, x, 1.0 / 6.0, 0.5)?;
    Ok(vec![cx.g.binary(Scalar::Mul, x, gate)?])
}

/// `log(1 + e^x)` as `max(x, 0) + log1p(e^-|x|)`, which neither overflows nor cancels.
pub(super) fn softplus(g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
    let zero = g.number_like(0.0, x)?;
    let high = g.binary(Scalar::Max, x, zero)?;
    let low = g.unary(Scalar::Abs, x)?;
    let low = g.unary(Scalar::Neg, low)?;
    let low = g.unary(Scalar::Exp, low)?;
    let low = g.unary(Scalar::Log1p, low)?;
    Ok(g.binary(Scalar::Add, high, low)?)
}

pub(super) fn softsign(g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
    let size = g.unary(Scalar::Abs, x)?;
    let one = g.number_like(1.0, x)?;
    let size = g.binary(Scalar::Add, size, one)?;
    Ok(g.binary(Scalar::Div, x, size)?)
}

fn mish(g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
    let gate = softplus(g, x)?;
    let gate = g.unary(Scalar::Tanh, gate)?;
    Ok(g.binary(Scalar::Mul, x, gate)?)
}

pub(super) fn push_gelu(g: &mut Graph, x: ValueId, tanh: bool) -> OpResult<ValueId> {
    Ok(g.one(Op::Composite(CompositeOp::Gelu(Gelu { tanh })), &[x])?)
}

fn gelu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let tanh = match cx.text_or("approximate", "none")?.as_str() {
        "none" => false,
        "tanh" => true,
        other => return invalid(format!("approximation '{other}' does not exist")),
    };
    Ok(vec![push_gelu(cx.g, x, tanh)?])
}

fn biased_gelu(cx: &mut NodeCx<'_, '_>, tanh: bool) -> OpResult {
    let mut x = cx.input(0)?;
    if let Some(bias) = cx.optional(1) {
        x = cx.g.binary(Scalar::Add, x, bias)?;
    }
    Ok(vec![push_gelu(cx.g, x, tanh)?])
}

/// `x * sigmoid(alpha * x)`.
pub(super) fn push_swish(g: &mut Graph, x: ValueId, alpha: f64) -> OpResult<ValueId> {
    let gate = g.scale(x, alpha)?;
    let gate = g.unary(Scalar::Sigmoid, gate)?;
    Ok(g.binary(Scalar::Mul, x, gate)?)
}

fn swish(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let alpha = cx.float_or("alpha", 1.0)?;
    Ok(vec![push_swish(cx.g, x, alpha)?])
}

fn quick_gelu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let alpha = cx.float_or("alpha", 1.702)?;
    Ok(vec![push_swish(cx.g, x, alpha)?])
}

fn swiglu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (gate, x) = (cx.input(0)?, cx.input(1)?);
    let alpha = cx.float_or("alpha", 1.0)?;
    let gate = push_swish(cx.g, gate, alpha)?;
    Ok(vec![cx.g.binary(Scalar::Mul, gate, x)?])
}

fn shrink(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let (bias, lambda) = (cx.float_or("bias", 0.0)?, cx.float_or("lambd", 0.5)?);
    let g = &mut *cx.g;
    let zero = g.number_like(0.0, x)?;
    let (bias, high, low) = (
        g.number_like(bias, x)?,
        g.number_like(lambda, x)?,
        g.number_like(-lambda, x)?,
    );
    let below = g.binary(Scalar::Lt, x, low)?;
    let above = g.binary(Scalar::Lt, high, x)?;
    let (plus, minus) = (
        g.binary(Scalar::Add, x, bias)?,
        g.binary(Scalar::Sub, x, bias)?,
    );
    let inner = g.select(above, minus, zero)?;
    Ok(vec![g.select(below, plus, inner)?])
}

fn dropout_is_test(cx: &mut NodeCx<'_, '_>) -> OpResult {
    if !cx.flag("is_test", false)? && cx.float_or("ratio", 0.5)? > 0.0 {
        let ratio = cx.float_or("ratio", 0.5)?;
        return drop_random(cx, ratio);
    }
    dropout_inference(cx)
}

/// The identity, with a mask of ones: bool from version 10 on.
fn dropout_inference(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let mask = match cx.opset < 10 {
        true => ty.dtype,
        false => DType::Bool,
    };
    let one = cx.g.number(1.0, mask)?;
    let mask = cx.g.broadcast_to(one, &ty.dims)?;
    Ok(vec![x, mask])
}

fn dropout(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let training = match cx.optional(2) {
        Some(v) => cx.known_number(v)? != 0.0,
        None => false,
    };
    let ratio = match cx.optional(1) {
        Some(v) if training => cx.known_number(v)?,
        Some(_) | None => 0.5,
    };
    match training && ratio != 0.0 {
        true => drop_random(cx, ratio),
        false => dropout_inference(cx),
    }
}

/// Each element is 0 with probability `ratio`; the rest is scaled by `1 / (1 - ratio)`.
fn drop_random(cx: &mut NodeCx<'_, '_>, ratio: f64) -> OpResult {
    if !(0.0..=1.0).contains(&ratio) {
        return invalid(format!("ratio {ratio} is outside 0 to 1"));
    }
    let (x, ty) = cx.tensor_input(0)?;
    let bits = cx.random_bits(&ty.dims)?;
    let threshold = cx.g.number((ratio * 4_294_967_296.0).floor(), DType::U32)?;
    let kept = cx.g.binary(Scalar::Le, threshold, bits)?;
    let scaled = cx.g.scale(x, 1.0 / (1.0 - ratio).max(f64::MIN_POSITIVE))?;
    let zero = cx.g.number_like(0.0, x)?;
    let y = cx.g.select(kept, scaled, zero)?;
    let mask = match cx.opset < 10 {
        true => cx.g.cast(kept, ty.dtype)?,
        false => kept,
    };
    Ok(vec![y, mask])
}

fn softmax(cx: &mut NodeCx<'_, '_>, log: bool) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank())?;
    Ok(vec![push_softmax(cx.g, x, axis, log)?])
}

pub(super) fn push_softmax(g: &mut Graph, x: ValueId, axis: usize, log: bool) -> OpResult<ValueId> {
    Ok(g.one(
        Op::Composite(CompositeOp::Softmax(Softmax { axis, log })),
        &[x],
    )?)
}

/// Applies `f(graph, rows, axis)` to the operand seen as a matrix, rows being the axes before `axis` (the rule before
/// version 13), and gives the result its extents back.
fn on_rest(
    cx: &mut NodeCx<'_, '_>,
    f: impl FnOnce(&mut Graph, ValueId, usize) -> OpResult<ValueId>,
) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", 1)?;
    let axis = match axis == ty.rank() as i64 {
        true => ty.rank(),
        false => cx.axis(axis, ty.rank())?,
    };
    if axis + 1 == ty.rank() {
        return Ok(vec![f(cx.g, x, axis)?]);
    }
    let (rows, columns) = ty.dims.split_at(axis);
    let matrix =
        cx.g.reshape(x, &[Dim::product(rows), Dim::product(columns)])?;
    let y = f(cx.g, matrix, 1)?;
    Ok(vec![cx.g.reshape(y, &ty.dims)?])
}

fn softmax_of_rest(cx: &mut NodeCx<'_, '_>, log: bool) -> OpResult {
    on_rest(cx, |g, x, axis| push_softmax(g, x, axis, log))
}

/// 1 at the first largest element along the axis, 0 elsewhere.
fn push_hardmax(g: &mut Graph, x: ValueId, axis: usize) -> OpResult<ValueId> {
    let best = g.one(
        ArgReduce {
            kind: ReduceKind::Max,
            axis,
            last: false,
        },
        &[x],
    )?;
    let best = g.unsqueeze(best, &[axis])?;
    let dims = g.dims(x);
    let at = g.iota(DType::I64, &dims, axis)?;
    let hit = g.binary(Scalar::Eq, at, best)?;
    Ok(g.cast_like(hit, x)?)
}

fn hardmax(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank())?;
    Ok(vec![push_hardmax(cx.g, x, axis)?])
}

fn hardmax_of_rest(cx: &mut NodeCx<'_, '_>) -> OpResult {
    on_rest(cx, push_hardmax)
}

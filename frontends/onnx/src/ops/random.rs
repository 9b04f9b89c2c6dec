//! Random values, from counter-based bits: a run with the same seed gives the same values on every device.

use cupola_ir::ops::{ArgReduce, ReduceKind};
use cupola_ir::{DType, Dim, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("RandomUniform", 1, |cx| shaped(cx, uniform)),
    op("RandomUniformLike", 1, |cx| like(cx, uniform)),
    op("RandomNormal", 1, |cx| shaped(cx, normal)),
    op("RandomNormalLike", 1, |cx| like(cx, normal)),
    op("Bernoulli", 15, bernoulli),
    op("Multinomial", 7, multinomial),
];

/// Makes values of these extents in f32, or f64 for f64.
type Distribution = fn(&mut NodeCx<'_, '_>, &[Dim], DType) -> OpResult<ValueId>;

/// Uniform in [0, 1), a multiple of 2^-24.
fn unit(cx: &mut NodeCx<'_, '_>, dims: &[Dim], wide: DType) -> OpResult<ValueId> {
    let bits = cx.random_bits(dims)?;
    let by = cx.g.number_like(8.0, bits)?;
    let bits = cx.g.binary(Scalar::Shr, bits, by)?;
    let x = cx.g.cast(bits, wide)?;
    Ok(cx.g.scale(x, 1.0 / f64::from(1u32 << 24))?)
}

fn uniform(cx: &mut NodeCx<'_, '_>, dims: &[Dim], wide: DType) -> OpResult<ValueId> {
    let (low, high) = (cx.float_or("low", 0.0)?, cx.float_or("high", 1.0)?);
    let x = unit(cx, dims, wide)?;
    let x = cx.g.scale(x, high - low)?;
    let low = cx.g.number_like(low, x)?;
    Ok(cx.g.binary(Scalar::Add, x, low)?)
}

/// Normal by the transform of Box and Muller (1958).
fn normal(cx: &mut NodeCx<'_, '_>, dims: &[Dim], wide: DType) -> OpResult<ValueId> {
    let (mean, deviation) = (cx.float_or("mean", 0.0)?, cx.float_or("scale", 1.0)?);
    let (u, angle) = (unit(cx, dims, wide)?, unit(cx, dims, wide)?);
    let g = &mut *cx.g;
    // 1 - u is never 0.
    let one = g.number_like(1.0, u)?;
    let u = g.binary(Scalar::Sub, one, u)?;
    let log = g.unary(Scalar::Log, u)?;
    let square = g.scale(log, -2.0)?;
    let radius = g.unary(Scalar::Sqrt, square)?;
    let angle = g.scale(angle, std::f64::consts::TAU)?;
    let angle = g.unary(Scalar::Cos, angle)?;
    let x = g.binary(Scalar::Mul, radius, angle)?;
    let x = g.scale(x, deviation)?;
    let mean = g.number_like(mean, x)?;
    Ok(g.binary(Scalar::Add, x, mean)?)
}

fn made(cx: &mut NodeCx<'_, '_>, dims: &[Dim], dtype: DType, make: Distribution) -> OpResult {
    if !dtype.is_float() {
        return invalid(format!("random values of {dtype}"));
    }
    let wide = cx.g.accumulator(dtype);
    let x = make(cx, dims, wide)?;
    Ok(vec![cx.g.cast(x, dtype)?])
}

fn shaped(cx: &mut NodeCx<'_, '_>, make: Distribution) -> OpResult {
    let Some(shape) = cx.ints_attr("shape")? else {
        return invalid("attribute 'shape' is missing");
    };
    if shape.iter().any(|n| *n < 0) {
        return invalid(format!("shape {shape:?}"));
    }
    let dims: Vec<Dim> = shape.iter().map(|n| Dim::Const(*n)).collect();
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(DType::F32);
    made(cx, &dims, dtype, make)
}

fn like(cx: &mut NodeCx<'_, '_>, make: Distribution) -> OpResult {
    let (_, ty) = cx.tensor_input(0)?;
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(ty.dtype);
    made(cx, &ty.dims, dtype, make)
}

/// True with the probability that the operand holds.
fn bernoulli(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (p, ty) = cx.tensor_input(0)?;
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(ty.dtype);
    let p = cx.g.widen(p)?;
    let wide = cx.g.dtype(p);
    let u = unit(cx, &ty.dims, wide)?;
    let hit = cx.g.binary(Scalar::Lt, u, p)?;
    Ok(vec![cx.g.cast(hit, dtype)?])
}

/// Classes drawn by unnormalised log-probabilities `[batch, classes]`: the largest of `x - log(-log(u))` (Gumbel).
fn multinomial(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let [batch, classes] = &ty.dims[..] else {
        return cx.bad_type(x);
    };
    let count = cx.int_or("sample_size", 1)?;
    if count < 0 {
        return invalid(format!("{count} samples"));
    }
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(DType::I32);
    let x = cx.g.widen(x)?;
    let wide = cx.g.dtype(x);
    let dims = [batch.clone(), Dim::Const(count), classes.clone()];
    let u = unit(cx, &dims, wide)?;
    let g = &mut *cx.g;
    let tiny = g.number_like(0.5 / f64::from(1u32 << 24), u)?;
    let u = g.binary(Scalar::Add, u, tiny)?;
    let log = g.unary(Scalar::Log, u)?;
    let log = g.unary(Scalar::Neg, log)?;
    let log = g.unary(Scalar::Log, log)?;
    let x = g.unsqueeze(x, &[1])?;
    let x = g.binary(Scalar::Sub, x, log)?;
    let op = ArgReduce {
        kind: ReduceKind::Max,
        axis: 2,
        last: false,
    };
    let y = g.one(op, &[x])?;
    Ok(vec![g.cast(y, dtype)?])
}

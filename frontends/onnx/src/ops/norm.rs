//! Normalisation.

use cupola_ir::composite::{LayerNorm, RmsNorm};
use cupola_ir::{CompositeOp, DType, Dim, Graph, Op, Scalar, ValueId};

use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("BatchNormalization", 1, batch_norm_old),
    op("BatchNormalization", 14, batch_norm),
    op("InstanceNormalization", 1, instance_norm),
    op("LayerNormalization", 17, layer_norm),
    op("GroupNormalization", 18, |cx| group_norm(cx, true)),
    op("GroupNormalization", 21, |cx| group_norm(cx, false)),
    op("RMSNormalization", 23, rms_norm),
    op("MeanVarianceNormalization", 9, mean_variance_norm),
    // Written into the standard domain by one exporter before version 23 had it.
    op("SimplifiedLayerNormalization", 1, rms_norm),
    op_in("com.microsoft", "SimplifiedLayerNormalization", 1, rms_norm),
    op_in("com.microsoft", "SkipLayerNormalization", 1, |cx| {
        skip_norm(cx, false)
    }),
    op_in(
        "com.microsoft",
        "SkipSimplifiedLayerNormalization",
        1,
        |cx| skip_norm(cx, true),
    ),
];

pub(super) fn push_layer_norm(
    g: &mut Graph,
    operands: &[ValueId],
    axis: usize,
    epsilon: f64,
    stats: bool,
) -> OpResult {
    let op = LayerNorm {
        axis,
        epsilon,
        stats,
    };
    Ok(g.push(Op::Composite(CompositeOp::LayerNorm(op)), operands)?
        .to_vec())
}

/// One value per channel (axis 1) laid out to broadcast against `x`.
fn per_channel(g: &mut Graph, v: ValueId, x: ValueId) -> OpResult<ValueId> {
    let mut dims = g.dims(v);
    if dims.len() != 1 {
        return invalid(format!("{} where one value per channel is needed", g.ty(v)));
    }
    dims.resize(g.rank(x).saturating_sub(1).max(1), Dim::ONE);
    Ok(g.reshape(v, &dims)?)
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, with operands that broadcast.
fn normalize(
    g: &mut Graph,
    x: ValueId,
    [scale, bias, mean, variance]: [ValueId; 4],
    epsilon: f64,
) -> OpResult<ValueId> {
    let wide = g.widen(x)?;
    let epsilon = g.number_like(epsilon, wide)?;
    let [scale, bias, mean, variance] = [scale, bias, mean, variance].map(|v| g.cast_like(v, wide));
    let deviation = g.binary(Scalar::Add, variance?, epsilon)?;
    let inverse = g.unary(Scalar::Rsqrt, deviation)?;
    let factor = g.binary(Scalar::Mul, inverse, scale?)?;
    let y = g.binary(Scalar::Sub, wide, mean?)?;
    let y = g.binary(Scalar::Mul, y, factor)?;
    let y = g.binary(Scalar::Add, y, bias?)?;
    Ok(g.cast_like(y, x)?)
}

/// Mean and biased variance over all axes but the channels'.
fn batch_statistics(g: &mut Graph, x: ValueId) -> OpResult<(ValueId, ValueId)> {
    let axes: Vec<usize> = (0..g.rank(x)).filter(|a| *a != 1).collect();
    let wide = g.widen(x)?;
    let mean = g.mean_keep(wide, &axes)?;
    let centred = g.binary(Scalar::Sub, wide, mean)?;
    let square = g.binary(Scalar::Mul, centred, centred)?;
    let variance = g.mean_keep(square, &axes)?;
    Ok((g.squeeze(mean, &axes)?, g.squeeze(variance, &axes)?))
}

/// `old * momentum + new * (1 - momentum)` in the type of `old`.
fn moving(g: &mut Graph, old: ValueId, new: ValueId, momentum: f64) -> OpResult<ValueId> {
    let wide = g.cast_like(old, new)?;
    let kept = g.scale(wide, momentum)?;
    let added = g.scale(new, 1.0 - momentum)?;
    let y = g.binary(Scalar::Add, kept, added)?;
    Ok(g.cast_like(y, old)?)
}

fn batch_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let training = cx.flag("training_mode", false)?;
    batch_norm_with(cx, training)
}

/// Before version 14 more than one result, or `is_test` 0 before version 7, meant training.
fn batch_norm_old(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let training = cx.output_count() > 1 && !cx.flag("is_test", false)?;
    batch_norm_with(cx, training)
}

fn batch_norm_with(cx: &mut NodeCx<'_, '_>, training: bool) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    if ty.rank() < 2 {
        return cx.bad_type(x);
    }
    let (scale, bias, mean, variance) = (cx.input(1)?, cx.input(2)?, cx.input(3)?, cx.input(4)?);
    let (epsilon, momentum) = (cx.float_or("epsilon", 1e-5)?, cx.float_or("momentum", 0.9)?);
    let per_element = cx.int_or("spatial", 1)? == 0;
    let g = &mut *cx.g;
    if !training {
        let params = [scale, bias, mean, variance];
        // Parameters for each element of a sample broadcast by themselves.
        let params = match per_element {
            true => params,
            false => {
                let [a, b, c, d] = params.map(|v| per_channel(g, v, x));
                [a?, b?, c?, d?]
            }
        };
        let y = normalize(g, x, params, epsilon)?;
        return Ok(vec![y, mean, variance, mean, variance]);
    }
    let (new_mean, new_variance) = batch_statistics(g, x)?;
    let [a, b, c, d] = [scale, bias, new_mean, new_variance].map(|v| per_channel(g, v, x));
    let y = normalize(g, x, [a?, b?, c?, d?], epsilon)?;
    let next_mean = moving(g, mean, new_mean, momentum)?;
    let next_variance = moving(g, variance, new_variance, momentum)?;
    let new_mean = g.cast_like(new_mean, mean)?;
    let new_variance = g.cast_like(new_variance, variance)?;
    Ok(vec![y, next_mean, next_variance, new_mean, new_variance])
}

fn instance_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    if ty.rank() < 3 {
        return cx.bad_type(x);
    }
    let (scale, bias) = (cx.input(1)?, cx.input(2)?);
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    let scale = per_channel(cx.g, scale, x)?;
    let bias = per_channel(cx.g, bias, x)?;
    push_layer_norm(cx.g, &[x, scale, bias], 2, epsilon, false)
}

fn layer_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), scale) = (cx.tensor_input(0)?, cx.input(1)?);
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank())?;
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    let operands: Vec<ValueId> = [x, scale].into_iter().chain(cx.optional(2)).collect();
    let stats = cx.output_count() > 1;
    let mut out = push_layer_norm(cx.g, &operands, axis, epsilon, stats)?;
    let stash = match cx.int_or("stash_type", 1)? {
        1 => DType::F32,
        number => crate::import::dtype_of_number(number)?,
    };
    for v in out.iter_mut().skip(1) {
        *v = cx.g.cast(*v, stash)?;
    }
    Ok(out)
}

fn rms_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), scale) = (cx.tensor_input(0)?, cx.input(1)?);
    let axis = cx.int_or("axis", -1)?;
    let axis = cx.axis(axis, ty.rank())?;
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    Ok(vec![push_rms_norm(cx.g, x, scale, axis, epsilon)?])
}

fn push_rms_norm(
    g: &mut Graph,
    x: ValueId,
    scale: ValueId,
    axis: usize,
    epsilon: f64,
) -> OpResult<ValueId> {
    let op = Op::Composite(CompositeOp::RmsNorm(RmsNorm { axis, epsilon }));
    let y = g.one(op, &[x, scale])?;
    Ok(g.cast_like(y, scale)?)
}

/// The normalised sum of a branch and its shortcut, with that sum as the last result.
fn skip_norm(cx: &mut NodeCx<'_, '_>, rms: bool) -> OpResult {
    let (x, skip, gamma) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    // The simplified form has no beta.
    let (beta, bias) = match rms {
        true => (None, cx.optional(3)),
        false => (cx.optional(3), cx.optional(4)),
    };
    let epsilon = cx.float_or("epsilon", 1e-12)?;
    let mut sum = cx.g.binary(Scalar::Add, x, skip)?;
    if let Some(bias) = bias {
        sum = cx.g.binary(Scalar::Add, sum, bias)?;
    }
    let Some(axis) = cx.g.rank(sum).checked_sub(1) else {
        return cx.bad_type(x);
    };
    if rms {
        let y = push_rms_norm(cx.g, sum, gamma, axis, epsilon)?;
        // Mean and deviation are left out by all who write this operator.
        return Ok(vec![y, y, y, sum]);
    }
    let operands: Vec<ValueId> = [sum, gamma].into_iter().chain(beta).collect();
    let mut out = push_layer_norm(cx.g, &operands, axis, epsilon, true)?;
    out.push(sum);
    Ok(out)
}

/// Normalised over each group of channels and all spatial axes; scale and bias are per group first, per channel later.
fn group_norm(cx: &mut NodeCx<'_, '_>, per_group: bool) -> OpResult {
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let groups = cx.required_int("num_groups")?;
    Ok(vec![push_group_norm(
        cx,
        x,
        [scale, bias],
        groups,
        per_group,
    )?])
}

pub(super) fn push_group_norm(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    [scale, bias]: [ValueId; 2],
    groups: i64,
    per_group: bool,
) -> OpResult<ValueId> {
    let ty = cx.g.tensor(x);
    let [batch, channels, spatial @ ..] = &ty.dims[..] else {
        return cx.bad_type(x);
    };
    let Some(channels_in) = channels.as_const() else {
        return Err(OpError::NeedsShape(x));
    };
    if groups < 1 || channels_in % groups != 0 {
        return invalid(format!("{groups} groups of {channels_in} channels"));
    }
    let epsilon = cx.float_or("epsilon", 1e-5)?;
    let g = &mut *cx.g;
    let groups = Dim::Const(groups);
    let inner = Dim::Const(channels_in).floor_div(&groups);
    let split = [batch.clone(), groups.clone(), inner * Dim::product(spatial)];
    let y = g.reshape(x, &split)?;
    let mut operands = vec![y];
    if per_group {
        for v in [scale, bias] {
            operands.push(g.reshape(v, &[groups.clone(), Dim::ONE])?);
        }
    }
    let y = push_layer_norm(g, &operands, 2, epsilon, false)?[0];
    let y = g.reshape(y, &ty.dims)?;
    if per_group {
        return Ok(y);
    }
    let scale = per_channel(g, scale, x)?;
    let bias = per_channel(g, bias, x)?;
    let y = g.binary(Scalar::Mul, y, scale)?;
    Ok(g.binary(Scalar::Add, y, bias)?)
}

/// `(x - mean) / (deviation + 1e-9)`, as the operator's definition has it.
fn mean_variance_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axes = cx.ints_attr("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes = cx.axes(&axes, ty.rank())?;
    let g = &mut *cx.g;
    let wide = g.widen(x)?;
    let mean = g.mean_keep(wide, &axes)?;
    let centred = g.binary(Scalar::Sub, wide, mean)?;
    let square = g.binary(Scalar::Mul, centred, centred)?;
    let variance = g.mean_keep(square, &axes)?;
    let deviation = g.unary(Scalar::Sqrt, variance)?;
    let epsilon = g.number_like(1e-9, deviation)?;
    let deviation = g.binary(Scalar::Add, deviation, epsilon)?;
    let y = g.binary(Scalar::Div, centred, deviation)?;
    Ok(vec![g.cast(y, ty.dtype)?])
}

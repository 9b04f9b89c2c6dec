//! Convolutions.

use cupola_ir::composite::{Conv, ConvTranspose};
use cupola_ir::{CompositeOp, Dim, Op, Scalar, ValueId};

use super::activation::push_swish;
use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid, unsupported};

pub(super) const OPS: &[OpRow] = &[
    op("Conv", 1, conv),
    op("ConvTranspose", 1, conv_transpose),
    op("CausalConvWithState", 1, causal_conv),
    op_in("com.microsoft", "CausalConvWithState", 1, causal_conv),
    op_in("com.microsoft", "FusedConv", 1, fused_conv),
];

/// Strides, dilations and borders of an operator that slides a window over spatial axes.
pub(super) struct Sliding {
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    pub(super) low: Vec<Dim>,
    pub(super) high: Vec<Dim>,
}

/// `count` positive numbers of an attribute, 1 each by default.
pub(super) fn positive(cx: &NodeCx<'_, '_>, name: &str, count: usize) -> OpResult<Vec<i64>> {
    let v = cx.ints_attr(name)?.unwrap_or_else(|| vec![1; count]);
    match v.len() == count && v.iter().all(|n| *n > 0) {
        true => Ok(v),
        false => invalid(format!("{name} {v:?}, {count} positive numbers are needed")),
    }
}

/// Explicit or automatic borders for spatial extents and window extents.
pub(super) fn sliding(cx: &NodeCx<'_, '_>, spatial: &[Dim], kernel: &[Dim]) -> OpResult<Sliding> {
    let n = spatial.len();
    let strides = positive(cx, "strides", n)?;
    let dilations = positive(cx, "dilations", n)?;
    let mut s = Sliding {
        strides,
        dilations,
        low: vec![Dim::ZERO; n],
        high: vec![Dim::ZERO; n],
    };
    match cx.text_or("auto_pad", "NOTSET")?.as_str() {
        "NOTSET" | "" => {
            if let Some(pads) = cx.ints_attr("pads")? {
                if pads.len() != 2 * n || pads.iter().any(|p| *p < 0) {
                    return invalid(format!("pads {pads:?} for {n} spatial axes"));
                }
                s.low = pads[..n].iter().map(|p| Dim::Const(*p)).collect();
                s.high = pads[n..].iter().map(|p| Dim::Const(*p)).collect();
            }
        }
        "VALID" => {}
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            for a in 0..n {
                let stride = Dim::Const(s.strides[a]);
                let span = span(&kernel[a], s.dilations[a]);
                let reach = (spatial[a].ceil_div(&stride) - Dim::ONE) * stride + span;
                let total = cx.at_least_zero(&(reach - spatial[a].clone()));
                let half = total.floor_div(&Dim::Const(2));
                let rest = total - half.clone();
                (s.low[a], s.high[a]) = match mode {
                    "SAME_UPPER" => (half, rest),
                    _ => (rest, half),
                };
            }
        }
        other => return invalid(format!("auto_pad '{other}' does not exist")),
    }
    Ok(s)
}

/// Extent of a window with gaps.
pub(super) fn span(size: &Dim, dilation: i64) -> Dim {
    (size.clone() - Dim::ONE) * Dim::Const(dilation) + Dim::ONE
}

/// Checks a stated `kernel_shape` against the weights.
fn check_kernel(cx: &NodeCx<'_, '_>, kernel: &[Dim]) -> OpResult<()> {
    let Some(stated) = cx.ints_attr("kernel_shape")? else {
        return Ok(());
    };
    let agrees = |(d, s): (&Dim, &i64)| d.as_const().is_none_or(|d| d == *s);
    match stated.len() == kernel.len() && kernel.iter().zip(&stated).all(agrees) {
        true => Ok(()),
        false => invalid(format!(
            "kernel_shape {stated:?} with weights of {kernel:?}"
        )),
    }
}

pub(super) fn groups(cx: &NodeCx<'_, '_>) -> OpResult<usize> {
    match cx.int_or("group", 1)? {
        n @ 1.. => Ok(n as usize),
        n => invalid(format!("group is {n}")),
    }
}

/// `y + bias` with one bias per channel (axis 1).
pub(super) fn add_bias(cx: &mut NodeCx<'_, '_>, y: ValueId, bias: ValueId) -> OpResult<ValueId> {
    let mut dims = cx.g.dims(bias);
    if dims.len() != 1 {
        return invalid(format!("bias of type {}", cx.g.ty(bias)));
    }
    dims.resize(cx.g.rank(y) - 1, Dim::ONE);
    let bias = cx.g.reshape(bias, &dims)?;
    Ok(cx.g.binary(Scalar::Add, y, bias)?)
}

pub(super) fn conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, x_ty), (w, w_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if x_ty.rank() < 2 || x_ty.rank() != w_ty.rank() {
        return invalid(format!("x {x_ty} with weights {w_ty}"));
    }
    let kernel = &w_ty.dims[2..];
    check_kernel(cx, kernel)?;
    let groups = groups(cx)?;
    let s = sliding(cx, &x_ty.dims[2..], kernel)?;
    let n = Dim::from(groups);
    let channels = w_ty.dims[1].clone() * n.clone();
    let differ = (&channels - &x_ty.dims[1])
        .as_const()
        .is_some_and(|d| d != 0);
    if differ
        || w_ty.dims[0]
            .as_const()
            .is_some_and(|o| o % groups as i64 != 0)
    {
        return invalid(format!("x {x_ty} with weights {w_ty} in {groups} groups"));
    }
    for a in 0..kernel.len() {
        let padded = x_ty.dims[2 + a].clone() + s.low[a].clone() + s.high[a].clone();
        let room = padded - span(&kernel[a], s.dilations[a]);
        if room.as_const().is_some_and(|r| r < 0) && !x_ty.is_empty() {
            return invalid(format!("weights {w_ty} reach over x {x_ty}"));
        }
    }
    let op = Conv {
        strides: s.strides,
        dilations: s.dilations,
        pads_low: s.low,
        pads_high: s.high,
        groups,
    };
    let y = cx.g.one(Op::Composite(CompositeOp::Conv(op)), &[x, w])?;
    Ok(vec![match cx.optional(2) {
        Some(bias) => add_bias(cx, y, bias)?,
        None => y,
    }])
}

pub(super) fn fused_conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let mut y = conv(cx)?[0];
    if let Some(z) = cx.optional(3) {
        y = cx.g.binary(Scalar::Add, y, z)?;
    }
    Ok(vec![fused_activation(cx, y)?])
}

/// The `activation` of a fused operator, with its parameters.
pub(super) fn fused_activation(cx: &mut NodeCx<'_, '_>, y: ValueId) -> OpResult<ValueId> {
    let params = cx.floats_attr("activation_params")?.unwrap_or_default();
    let param = |i: usize, default: f64| params.get(i).copied().unwrap_or(default);
    let g = &mut *cx.g;
    let zero = g.number_like(0.0, y)?;
    Ok(match cx.text_or("activation", "")?.as_str() {
        "" => y,
        "Relu" => cx.g.binary(Scalar::Max, y, zero)?,
        "Sigmoid" => cx.g.unary(Scalar::Sigmoid, y)?,
        "Tanh" => cx.g.unary(Scalar::Tanh, y)?,
        "LeakyRelu" => {
            let below = cx.g.scale(y, param(0, 0.01))?;
            let negative = cx.g.binary(Scalar::Lt, y, zero)?;
            cx.g.select(negative, below, y)?
        }
        "Clip" => {
            let (low, high) = (
                cx.g.number_like(param(0, f64::MIN), y)?,
                cx.g.number_like(param(1, f64::MAX), y)?,
            );
            let y = cx.g.binary(Scalar::Max, y, low)?;
            cx.g.binary(Scalar::Min, y, high)?
        }
        "HardSigmoid" => {
            let (one, beta) = (
                cx.g.number_like(1.0, y)?,
                cx.g.number_like(param(1, 0.5), y)?,
            );
            let y = cx.g.scale(y, param(0, 0.2))?;
            let y = cx.g.binary(Scalar::Add, y, beta)?;
            let y = cx.g.binary(Scalar::Min, y, one)?;
            cx.g.binary(Scalar::Max, y, zero)?
        }
        other => return unsupported(format!("activation '{other}'")),
    })
}

fn conv_transpose(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, x_ty), (w, w_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if x_ty.rank() < 2 || x_ty.rank() != w_ty.rank() {
        return invalid(format!("x {x_ty} with weights {w_ty}"));
    }
    let kernel = &w_ty.dims[2..];
    check_kernel(cx, kernel)?;
    let n = kernel.len();
    let groups = groups(cx)?;
    let channels = (&x_ty.dims[1], &w_ty.dims[0]);
    let uneven = channels
        .1
        .as_const()
        .is_some_and(|c| c % groups as i64 != 0);
    if uneven || (channels.0 - channels.1).as_const().is_some_and(|d| d != 0) {
        return invalid(format!("x {x_ty} with weights {w_ty} in {groups} groups"));
    }
    let strides = positive(cx, "strides", n)?;
    let dilations = positive(cx, "dilations", n)?;
    let extra = cx
        .ints_attr("output_padding")?
        .unwrap_or_else(|| vec![0; n]);
    let pads = cx.ints_attr("pads")?.unwrap_or_else(|| vec![0; 2 * n]);
    let stated = cx.ints_attr("output_shape")?;
    let auto = cx.text_or("auto_pad", "NOTSET")?;
    if extra.len() != n || pads.len() != 2 * n || extra.iter().any(|e| *e < 0) {
        return invalid(format!(
            "pads {pads:?} and output_padding {extra:?} for {n} spatial axes"
        ));
    }
    // An output shape may come with batch and channel axes.
    let stated = stated.map(|s| s[s.len().saturating_sub(n)..].to_vec());
    if stated.as_ref().is_some_and(|s| s.len() != n) {
        return invalid(format!("output_shape {stated:?} for {n} spatial axes"));
    }
    let same = matches!(auto.as_str(), "SAME_UPPER" | "SAME_LOWER");
    let (mut low, mut spatial) = (vec![], vec![]);
    for a in 0..n {
        let full = (x_ty.dims[2 + a].clone() - Dim::ONE) * Dim::Const(strides[a])
            + span(&kernel[a], dilations[a])
            + Dim::Const(extra[a]);
        let out = match &stated {
            Some(s) => Dim::Const(s[a]),
            None if same => x_ty.dims[2 + a].clone() * Dim::Const(strides[a]),
            None if auto == "VALID" => full.clone(),
            None => full.clone() - Dim::Const(pads[a]) - Dim::Const(pads[a + n]),
        };
        low.push(if stated.is_some() || same {
            let total = full - out.clone();
            let half = total.floor_div(&Dim::Const(2));
            // The larger half goes to the end for SAME_UPPER and to the start otherwise.
            match auto.as_str() {
                "SAME_UPPER" => half,
                _ => total - half,
            }
        } else if auto == "VALID" {
            Dim::ZERO
        } else {
            Dim::Const(pads[a])
        });
        if out.as_const().is_some_and(|o| o < 0) {
            return invalid(format!("the result would have an extent of {out}"));
        }
        spatial.push(out);
    }
    let op = ConvTranspose {
        strides,
        dilations,
        pads_low: low,
        spatial,
        groups,
    };
    let y =
        cx.g.one(Op::Composite(CompositeOp::ConvTranspose(op)), &[x, w])?;
    Ok(vec![match cx.optional(2) {
        Some(bias) => add_bias(cx, y, bias)?,
        None => y,
    }])
}

/// A depthwise convolution over the past and the present, with the last positions as the next past.
fn causal_conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, x_ty), (w, w_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let ([batch, channels, _], [_, _, kernel]) = (&x_ty.dims[..], &w_ty.dims[..]) else {
        return invalid(format!("x {x_ty} with weights {w_ty}"));
    };
    let Some(groups) = channels.as_const().and_then(|c| usize::try_from(c).ok()) else {
        return Err(crate::import_error::OpError::NeedsShape(x));
    };
    let past_len = kernel.clone() - Dim::ONE;
    let past = match cx.optional(3) {
        Some(past) => past,
        None => {
            let zero = cx.g.number_like(0.0, x)?;
            cx.g.broadcast_to(zero, &[batch.clone(), channels.clone(), past_len.clone()])?
        }
    };
    let all = cx.g.concat(&[past, x], 2)?;
    let op = Conv {
        strides: vec![1],
        dilations: vec![1],
        pads_low: vec![Dim::ZERO],
        pads_high: vec![Dim::ZERO],
        groups,
    };
    let mut y = cx.g.one(Op::Composite(CompositeOp::Conv(op)), &[all, w])?;
    if let Some(bias) = cx.optional(2) {
        y = add_bias(cx, y, bias)?;
    }
    y = match cx.text_or("activation", "none")?.as_str() {
        "none" => y,
        "silu" | "swish" => push_swish(cx.g, y, 1.0)?,
        other => return invalid(format!("activation '{other}' does not exist")),
    };
    let start = cx.g.dim(all, 2) - past_len.clone();
    let present = cx.g.slice_axis(all, 2, &start, &past_len)?;
    Ok(vec![y, present])
}

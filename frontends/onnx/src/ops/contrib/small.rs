//! Small fused operators: biases, normalisations of channels-last images, distances, and standard operators under
//! another name or layout.

use cupola_ir::composite::Softmax;
use cupola_ir::ops::ReduceKind;
use cupola_ir::{CompositeOp, DType, Dim, Op, Scalar, ValueId};

use super::ms;
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};
use crate::ops::OpRow;
use crate::ops::activation::{push_gelu, push_swish};
use crate::ops::conv::{conv, fused_activation, fused_conv};
use crate::ops::math::Math;
use crate::ops::matmul::{fused_matmul, product};
use crate::ops::norm::push_group_norm;
use crate::ops::pool::max_pool;
use crate::ops::sample::grid_sample;
use crate::ops::source::trilu;
use crate::ops::view::pad;

pub(in crate::ops) const OPS: &[OpRow] = &[
    ms("BiasAdd", bias_add),
    ms("BiasSplitGelu", bias_split_gelu),
    ms("BiasSoftmax", bias_softmax),
    ms("BiasDropout", bias_dropout),
    ms("GroupNorm", group_norm),
    ms("SkipGroupNorm", skip_group_norm),
    ms("GemmFastGelu", gemm_fast_gelu),
    ms("TransposeMatMul", fused_matmul),
    ms("FusedMatMulActivation", fused_matmul_activation),
    ms("NhwcConv", |cx| first_channels_last(cx, conv)),
    ms("NhwcFusedConv", nhwc_fused_conv),
    ms("NhwcMaxPool", |cx| first_channels_last(cx, max_pool)),
    ms("Trilu", trilu),
    ms("Pad", pad),
    ms("GridSample", grid_sample),
    ms("ExpandDims", expand_dims),
    ms("CDist", distances),
    ms("IsAllFinite", all_finite),
];

/// `f` on an operand whose channels come after the spatial axes, for one where they come before them; the result
/// likewise.
pub(super) fn channels_first(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    f: impl FnOnce(&mut NodeCx<'_, '_>, ValueId) -> OpResult<ValueId>,
) -> OpResult<ValueId> {
    let rank = cx.g.rank(x);
    if rank < 2 {
        return cx.bad_type(x);
    }
    let inward: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let x = cx.g.permute(x, &inward)?;
    let y = f(cx, x)?;
    let rank = cx.g.rank(y);
    let outward: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    Ok(cx.g.permute(y, &outward)?)
}

/// A standard operator whose first operand and result have their channels last.
fn first_channels_last(
    cx: &mut NodeCx<'_, '_>,
    f: fn(&mut NodeCx<'_, '_>) -> OpResult,
) -> OpResult {
    let x = cx.input(0)?;
    let y = channels_first(cx, x, |cx, x| {
        cx.inputs[0] = Some(x);
        Ok(f(cx)?[0])
    })?;
    Ok(vec![y])
}

/// The operand added to the convolution has its channels last, too.
fn nhwc_fused_conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    if let Some(z) = cx.optional(3) {
        let rank = cx.g.rank(z);
        if rank < 2 {
            return cx.bad_type(z);
        }
        let inward: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        cx.inputs[3] = Some(cx.g.permute(z, &inward)?);
    }
    first_channels_last(cx, fused_conv)
}

fn bias_add(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, bias, skip) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let mut m = Math { g: cx.g };
    let y = m.add(x, bias)?;
    Ok(vec![m.add(y, skip)?])
}

/// The first half of the biased last axis times the Gaussian unit of the second.
fn bias_split_gelu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, bias) = (cx.input(0)?, cx.input(1)?);
    let x = cx.g.binary(Scalar::Add, x, bias)?;
    let Some(last) = cx.g.rank(x).checked_sub(1) else {
        return cx.bad_type(x);
    };
    let half = cx.g.dim(x, last).floor_div(&Dim::Const(2));
    let left = cx.g.slice_axis(x, last, &Dim::ZERO, &half)?;
    let right = cx.g.slice_axis(x, last, &half, &half)?;
    let right = push_gelu(cx.g, right, false)?;
    Ok(vec![cx.g.binary(Scalar::Mul, left, right)?])
}

/// Softmax over all axes from one on, of data and a bias whose missing axes lie inside or outside.
fn bias_softmax(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (bias, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let axis = cx.int_or("axis", 1)?;
    let axis = cx.axis(axis, ty.rank())?;
    let sum = cx.g.binary(Scalar::Add, x, bias)?;
    let rows = [
        Dim::product(&ty.dims[..axis]),
        Dim::product(&ty.dims[axis..]),
    ];
    let flat = cx.g.reshape(sum, &rows)?;
    let op = Op::Composite(CompositeOp::Softmax(Softmax {
        axis: 1,
        log: false,
    }));
    let y = cx.g.one(op, &[flat])?;
    Ok(vec![cx.g.reshape(y, &ty.dims)?])
}

/// Nothing is dropped outside of training.
fn bias_dropout(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, bias) = (cx.input(0)?, cx.input(1)?);
    if let Some(training) = cx.optional(4)
        && cx.known_number(training)? != 0.0
    {
        return crate::import_error::unsupported("training");
    }
    let mut y = cx.g.binary(Scalar::Add, x, bias)?;
    if let Some(residual) = cx.optional(2) {
        y = cx.g.binary(Scalar::Add, y, residual)?;
    }
    let dims = cx.g.dims(y);
    let kept = cx.g.number(1.0, DType::Bool)?;
    Ok(vec![y, cx.g.broadcast_to(kept, &dims)?])
}

fn group_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    Ok(vec![grouped(cx, x)?])
}

/// Operands (X, gamma, beta, skip, bias): the norm of `X + skip + bias`, and that sum.
fn skip_group_norm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, mut skip) = (cx.input(0)?, cx.input(3)?);
    if cx.g.rank(skip) == 2 {
        let inner: Vec<usize> = (1..cx.g.rank(x).saturating_sub(1)).collect();
        skip = cx.g.unsqueeze(skip, &inner)?;
    }
    let mut sum = cx.g.binary(Scalar::Add, x, skip)?;
    if let Some(bias) = cx.optional(4) {
        sum = cx.g.binary(Scalar::Add, sum, bias)?;
    }
    Ok(vec![grouped(cx, sum)?, sum])
}

fn grouped(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let (scale, bias) = (cx.input(1)?, cx.input(2)?);
    let groups = cx.required_int("groups")?;
    let norm = |cx: &mut NodeCx<'_, '_>, x: ValueId| {
        let (scale, bias) = (cx.g.cast_like(scale, x)?, cx.g.cast_like(bias, x)?);
        push_group_norm(cx, x, [scale, bias], groups, false)
    };
    let y = match cx.flag("channels_last", true)? {
        true => channels_first(cx, x, norm)?,
        false => norm(cx, x)?,
    };
    match cx.required_int("activation")? {
        0 => Ok(y),
        1 => push_swish(cx.g, y, 1.0),
        other => invalid(format!("activation {other} does not exist")),
    }
}

fn gemm_fast_gelu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let mut y = product(cx, x, w)?;
    if let Some(bias) = cx.optional(2) {
        y = cx.g.binary(Scalar::Add, y, bias)?;
    }
    Ok(vec![push_gelu(cx.g, y, true)?])
}

fn fused_matmul_activation(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let y = fused_matmul(cx)?[0];
    Ok(vec![fused_activation(cx, y)?])
}

fn expand_dims(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), axis) = (cx.tensor_input(0)?, cx.input(1)?);
    let axis = cx.known_number(axis)? as i64;
    let axis = cx.axis(axis, ty.rank() + 1)?;
    Ok(vec![cx.g.unsqueeze(x, &[axis])?])
}

/// Distances between all rows of two matrices.
fn distances(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((a, a_ty), (b, b_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if a_ty.rank() != 2 || b_ty.rank() != 2 {
        return invalid(format!("{a_ty} and {b_ty}"));
    }
    let square = match cx.text_or("metric", "sqeuclidean")?.as_str() {
        "sqeuclidean" => true,
        "euclidean" => false,
        other => return invalid(format!("metric '{other}' does not exist")),
    };
    let mut m = Math { g: cx.g };
    let (a, b) = (m.g.unsqueeze(a, &[1])?, m.g.unsqueeze(b, &[0])?);
    let d = m.sub(a, b)?;
    let d = m.mul(d, d)?;
    let y = m.g.reduce(ReduceKind::Sum, d, &[2])?;
    Ok(vec![match square {
        true => y,
        false => m.unary(Scalar::Sqrt, y)?,
    }])
}

/// Whether no element of any operand is NaN or (unless one kind is asked for only) an infinity.
fn all_finite(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (infinity, nan) = (cx.flag("isinf_only", false)?, cx.flag("isnan_only", false)?);
    let all = cx.inputs_from(0)?;
    let mut m = Math { g: cx.g };
    let mut bad = m.g.number(0.0, DType::Bool)?;
    for x in all {
        let axes: Vec<usize> = (0..m.g.rank(x)).collect();
        for (f, other_only) in [(Scalar::IsInf, nan), (Scalar::IsNan, infinity)] {
            if !other_only {
                let hit = m.unary(f, x)?;
                let any = m.g.reduce(ReduceKind::Max, hit, &axes)?;
                bad = m.or(bad, any)?;
            }
        }
    }
    Ok(vec![m.unary(Scalar::Not, bad)?])
}

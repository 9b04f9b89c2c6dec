//! Matrix products.

use cupola_ir::{Scalar, ValueId};

use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("MatMul", 1, matmul),
    op("Gemm", 1, gemm),
    op_in("com.microsoft", "FusedMatMul", 1, fused_matmul),
    op_in("com.microsoft", "FusedGemm", 1, fused_gemm),
];

fn matmul(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, _), (y, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    Ok(vec![product(cx, x, y)?])
}

/// NumPy's `matmul`: a vector on the left is a row, on the right a column, and that axis vanishes.
pub(super) fn product(cx: &mut NodeCx<'_, '_>, x: ValueId, y: ValueId) -> OpResult<ValueId> {
    if cx.g.dtype(x) != cx.g.dtype(y) {
        return invalid(format!("{} times {}", cx.g.ty(x), cx.g.ty(y)));
    }
    product_by(cx, x, y, |cx, x, y| Ok(cx.g.matmul(x, y)?))
}

/// As [`product`], where `by` multiplies what has two axes at least.
pub(super) fn product_by(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    y: ValueId,
    by: impl FnOnce(&mut NodeCx<'_, '_>, ValueId, ValueId) -> OpResult<ValueId>,
) -> OpResult<ValueId> {
    let (left, right) = (cx.g.rank(x), cx.g.rank(y));
    if left == 0 || right == 0 {
        return invalid(format!("{} times {}", cx.g.ty(x), cx.g.ty(y)));
    }
    let x = match left {
        1 => cx.g.unsqueeze(x, &[0])?,
        _ => x,
    };
    let y = match right {
        1 => cx.g.unsqueeze(y, &[1])?,
        _ => y,
    };
    let mut z = by(cx, x, y)?;
    if right == 1 {
        z = cx.g.squeeze(z, &[cx.g.rank(z) - 1])?;
    }
    if left == 1 {
        let row = cx.g.rank(z) - if right == 1 { 1 } else { 2 };
        z = cx.g.squeeze(z, &[row])?;
    }
    Ok(z)
}

fn gemm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((a, a_ty), (b, b_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if a_ty.rank() != 2 || b_ty.rank() != 2 {
        return invalid(format!("{a_ty} times {b_ty}"));
    }
    let (alpha, beta) = (cx.float_or("alpha", 1.0)?, cx.float_or("beta", 1.0)?);
    let a = match cx.flag("transA", false)? {
        true => cx.g.permute(a, &[1, 0])?,
        false => a,
    };
    let y = match cx.flag("transB", false)? {
        true => cx.g.matmul_nt(a, b)?,
        false => cx.g.matmul(a, b)?,
    };
    let y = cx.g.scale(y, alpha)?;
    let Some(c) = cx.optional(2) else {
        return Ok(vec![y]);
    };
    let dims = cx.g.dims(y);
    let c = cx.g.scale(c, beta)?;
    let c = cx.g.broadcast_to(c, &dims)?;
    Ok(vec![cx.g.binary(Scalar::Add, y, c)?])
}

fn fused_gemm(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let y = gemm(cx)?[0];
    Ok(vec![super::conv::fused_activation(cx, y)?])
}

/// `alpha * op(a) * op(b)`: the last two axes swapped where asked, or the first axis moved before the last.
pub(super) fn fused_matmul(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((a, _), (b, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let mut turned = [a, b];
    for (v, (last, batch)) in turned
        .iter_mut()
        .zip([("transA", "transBatchA"), ("transB", "transBatchB")])
    {
        let rank = cx.g.rank(*v);
        let mut perm: Vec<usize> = (0..rank).collect();
        if rank < 2 {
            continue;
        }
        if cx.flag(batch, false)? {
            perm = (1..rank - 1).chain([0, rank - 1]).collect();
        }
        if cx.flag(last, false)? {
            perm.swap(rank - 2, rank - 1);
        }
        *v = cx.g.permute(*v, &perm)?;
    }
    let y = product(cx, turned[0], turned[1])?;
    let alpha = cx.float_or("alpha", 1.0)?;
    Ok(vec![cx.g.scale(y, alpha)?])
}

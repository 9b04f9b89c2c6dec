//! Weights of a few bits, packed into bytes and scaled in blocks.

use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Scalar, ValueId};

use super::ms;
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid, unsupported};
use crate::ops::OpRow;
use crate::ops::indexed::{take, wrap};
use crate::ops::math::Math;
use crate::ops::quantize::{dequantize_from, spread};

pub(in crate::ops) const OPS: &[OpRow] = &[
    ms("MatMulNBits", matmul_nbits),
    ms("MatMulBnb4", matmul_bnb4),
    ms("GatherBlockQuantized", gather_blocks),
];

/// Blocks that hold so many numbers, all of them positive.
fn blocks_of(len: i64, block: i64) -> OpResult<i64> {
    let blocks = (len - 1) / block + 1;
    match blocks.checked_mul(block) {
        Some(_) => Ok(blocks),
        None => invalid(format!("{len} numbers in blocks of {block}")),
    }
}

/// Weights of n rows packed in blocks of k, `bits` each, little end first; `y = x w^T`.
fn matmul_nbits(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, w, scales) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (k, n) = (cx.required_int("K")?, cx.required_int("N")?);
    let (bits, block) = (cx.int_or("bits", 4)?, cx.required_int("block_size")?);
    if !matches!(bits, 2 | 4 | 8) || block <= 0 || k <= 0 || n <= 0 {
        return unsupported(format!("{bits} bits in blocks of {block}"));
    }
    if cx.optional(4).is_some() {
        return unsupported("a group index (g_idx)");
    }
    let blocks = blocks_of(k, block)?;
    let per_byte = 8 / bits;
    let bytes = cx.g.reshape(
        w,
        &[
            Dim::Const(n),
            Dim::Const(blocks),
            Dim::Const(block / per_byte),
        ],
    )?;
    let values = unpack(cx, bytes, bits)?;
    let values = cx.g.cast_like(values, scales)?;
    let scale =
        cx.g.reshape(scales, &[Dim::Const(n), Dim::Const(blocks), Dim::ONE])?;
    let zero = match cx.optional(3) {
        Some(z) if cx.g.dtype(z) == DType::U8 => {
            let row = (blocks + per_byte - 1) / per_byte;
            let z = cx.g.reshape(z, &[Dim::Const(n), Dim::Const(row)])?;
            let z = unpack(cx, z, bits)?;
            let z = cx.g.slice_axis(z, 1, &Dim::ZERO, &Dim::Const(blocks))?;
            let z = cx.g.cast_like(z, scales)?;
            cx.g.reshape(z, &[Dim::Const(n), Dim::Const(blocks), Dim::ONE])?
        }
        Some(z) => {
            cx.g.reshape(z, &[Dim::Const(n), Dim::Const(blocks), Dim::ONE])?
        }
        None => cx.g.number_like(f64::from(1u32 << (bits - 1)), scales)?,
    };
    let y = cx.g.binary(Scalar::Sub, values, zero)?;
    let y = cx.g.binary(Scalar::Mul, y, scale)?;
    let y =
        cx.g.reshape(y, &[Dim::Const(n), Dim::Const(blocks * block)])?;
    let y = cx.g.slice_axis(y, 1, &Dim::ZERO, &Dim::Const(k))?;
    let y = cx.g.cast_like(y, x)?;
    let out = cx.g.matmul_nt(x, y)?;
    Ok(vec![match cx.optional(5) {
        Some(bias) => cx.g.binary(Scalar::Add, out, bias)?,
        None => out,
    }])
}

/// The last axis of bytes as `8 / bits` times as many numbers.
fn unpack(cx: &mut NodeCx<'_, '_>, bytes: ValueId, bits: i64) -> OpResult<ValueId> {
    if bits == 8 {
        return Ok(bytes);
    }
    let per_byte = 8 / bits;
    let dims = cx.g.dims(bytes);
    let rank = dims.len();
    let wide = cx.g.unsqueeze(bytes, &[rank])?;
    let shifts: Vec<u8> = (0..per_byte).map(|i| (i * bits) as u8).collect();
    let shifts = cx.g.constant(cupola_ir::Tensor::vector(&shifts))?;
    let shifted = cx.g.binary(Scalar::Shr, wide, shifts)?;
    let mask = cx.g.number(f64::from((1u32 << bits) - 1), DType::U8)?;
    let parts = cx.g.binary(Scalar::And, shifted, mask)?;
    let mut flat = dims.clone();
    flat[rank - 1] = dims[rank - 1].clone() * Dim::Const(per_byte);
    Ok(cx.g.reshape(parts, &flat)?)
}

/// The 16 values of the two 4-bit types of QLoRA: a float of 2 exponent bits, and quantiles of the normal distribution
/// (Dettmers et al. 2023, appendix E).
const FLOAT4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];
const NORMAL4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// `y = x w^T` for weights `[N, K]` as codes of a table, two in a byte with the first in the high half, times the
/// largest size of each block of consecutive elements.
fn matmul_bnb4(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, w, largest) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (k, n) = (cx.required_int("K")?, cx.required_int("N")?);
    let block = cx.required_int("block_size")?;
    let table = match cx.required_int("quant_type")? {
        0 => FLOAT4,
        1 => NORMAL4,
        other => return invalid(format!("quant_type {other} does not exist")),
    };
    if !cx.flag("transB", true)? {
        return unsupported("weights that are not transposed");
    }
    let len = k.checked_mul(n).filter(|_| k > 0 && n > 0 && block > 0);
    let Some(len) = len else {
        return invalid(format!("weights of {n} times {k} in blocks of {block}"));
    };
    let (blocks, bytes) = (blocks_of(len, block)?, blocks_of(len, 2)?);
    let w = cx.g.reshape(w, &[Dim::Const(bytes), Dim::ONE])?;
    let mut m = Math { g: cx.g };
    let shifts = m.g.constant(Tensor::vector(&[4u8, 0]))?;
    let codes = m.f(Scalar::Shr, w, shifts)?;
    let codes = m.and(codes, 15.0)?;
    let codes = m.g.reshape(codes, &[Dim::Const(2 * bytes)])?;
    let codes = m.g.slice_axis(codes, 0, &Dim::ZERO, &Dim::Const(len))?;
    let codes = m.g.cast(codes, DType::I64)?;
    let table = m.g.constant(Tensor::vector(&table))?;
    let table = m.g.cast_like(table, largest)?;
    let values = take(m.g, table, 0, codes)?;
    let largest = m.g.reshape(largest, &[Dim::Const(blocks), Dim::ONE])?;
    let largest =
        m.g.broadcast_to(largest, &[Dim::Const(blocks), Dim::Const(block)])?;
    let largest = m.g.reshape(largest, &[Dim::Const(blocks * block)])?;
    let largest = m.g.slice_axis(largest, 0, &Dim::ZERO, &Dim::Const(len))?;
    let w = m.mul(values, largest)?;
    let w = m.g.reshape(w, &[Dim::Const(n), Dim::Const(k)])?;
    let w = m.g.cast_like(w, x)?;
    Ok(vec![m.g.matmul_nt(x, w)?])
}

/// Rows of a table of quantised blocks. Bytes hold `8 / bits` numbers of the last axis each, with a default zero point
/// in the middle; 4-bit types are numbers as they are.
fn gather_blocks(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((data, ty), (index, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (scales, scale_ty) = cx.tensor_input(2)?;
    let (bits, block) = (cx.int_or("bits", 4)?, cx.int_or("block_size", 128)?);
    let rank = ty.rank();
    let gathered = cx.int_or("gather_axis", 0)?;
    let gathered = cx.axis(gathered, rank)?;
    let axis = cx.int_or("quantize_axis", 1)?;
    let axis = cx.axis(axis, rank)?;
    if scale_ty.rank() != rank || block < 1 || !matches!(bits, 2 | 4 | 8) {
        return invalid(format!(
            "{ty} with scales {scale_ty}, {bits} bits in blocks of {block}"
        ));
    }
    let packed = ty.dtype == DType::U8;
    let open = |cx: &mut NodeCx<'_, '_>, v: ValueId| match packed {
        true => unpack(cx, v, bits),
        false => Ok(v),
    };
    let x = open(cx, data)?;
    let zero = match cx.optional(3) {
        Some(z) if cx.g.rank(z) != rank => return cx.bad_type(z),
        Some(z) => {
            let z = open(cx, z)?;
            // The last byte may have room for more blocks than there are.
            let last = rank - 1;
            Some(cx.g.slice_axis(z, last, &Dim::ZERO, &scale_ty.dims[last])?)
        }
        None if packed => Some(cx.g.number_like(f64::from(1u32 << (bits - 1)), x)?),
        None => None,
    };
    let index = wrap(cx, index, &ty.dims[gathered])?;
    let scales = spread(cx, scales, x, axis as i64, block)?;
    let zero = match zero {
        Some(z) if cx.g.rank(z) > 0 => Some(spread(cx, z, x, axis as i64, block)?),
        zero => zero,
    };
    let y = dequantize_from(cx, x, scales, zero)?;
    Ok(vec![take(cx.g, y, gathered, index)?])
}

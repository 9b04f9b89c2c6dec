//! Quantised operators: linear quantisation and integer products.

use cupola_ir::composite::{Conv, DynamicQuantize, IntegerConv, IntegerProduct};
use cupola_ir::{DType, Dim, Op, Scalar, ValueId};

use super::conv::{groups, sliding};
use super::matmul::{product as matmul, product_by};
use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("QuantizeLinear", 10, quantize),
    op("DequantizeLinear", 10, dequantize),
    op("DynamicQuantizeLinear", 11, dynamic_quantize),
    op("MatMulInteger", 10, matmul_integer),
    op("ConvInteger", 10, conv_integer),
    op("QLinearMatMul", 10, qlinear_matmul),
    op("QLinearConv", 10, qlinear_conv),
];

/// A scale or zero point spread over the extents of `x`: one number, one per index of `axis`, or one per block of it.
pub(super) fn spread(
    cx: &mut NodeCx<'_, '_>,
    p: ValueId,
    x: ValueId,
    axis: i64,
    block: i64,
) -> OpResult<ValueId> {
    let rank = cx.g.rank(x);
    let pd = cx.g.dims(p);
    if pd.iter().all(|d| d.is(1)) && block == 0 {
        return Ok(cx.g.reshape(p, &[])?);
    }
    if rank == 0 {
        return invalid("a scalar has no axis to quantise along");
    }
    let axis = cx.axis(axis, rank)?;
    if block == 0 {
        if pd.len() != 1 {
            return invalid(format!(
                "scale {} should be a number or a vector",
                cx.g.ty(p)
            ));
        }
        let mut dims = vec![Dim::ONE; rank];
        dims[axis] = pd[0].clone();
        return Ok(cx.g.reshape(p, &dims)?);
    }
    if pd.len() != rank || block < 0 {
        return invalid(format!("blocks of {block} with scale {}", cx.g.ty(p)));
    }
    let p = cx.g.unsqueeze(p, &[axis + 1])?;
    let mut wide = cx.g.dims(p);
    wide[axis + 1] = Dim::Const(block);
    let p = cx.g.broadcast_to(p, &wide)?;
    let mut flat = pd.clone();
    flat[axis] = pd[axis].clone() * Dim::Const(block);
    let p = cx.g.reshape(p, &flat)?;
    let n = cx.g.dim(x, axis);
    Ok(if flat[axis] == n {
        p
    } else {
        cx.g.slice_axis(p, axis, &Dim::ZERO, &n)?
    })
}

/// `saturate(round(x / scale) + zero)` as an integer type; a cast for float kinds.
pub(super) fn quantize_to(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    to: DType,
    saturate: bool,
) -> OpResult<ValueId> {
    let wide = cx.g.widen(x)?;
    let scale = cx.g.cast_like(scale, wide)?;
    let y = cx.g.binary(Scalar::Div, wide, scale)?;
    let Some((low, high)) = to.int_range() else {
        let cast = cupola_ir::ops::Cast { to, saturate };
        return Ok(cx.g.one(cast, &[y])?);
    };
    let mut y = cx.g.unary(Scalar::Round, y)?;
    if let Some(z) = zero {
        let z = cx.g.cast_like(z, y)?;
        y = cx.g.binary(Scalar::Add, y, z)?;
    }
    let (low, high) = (
        cx.g.number_like(low as f64, y)?,
        cx.g.number_like(high as f64, y)?,
    );
    let y = cx.g.binary(Scalar::Max, y, low)?;
    let y = cx.g.binary(Scalar::Min, y, high)?;
    Ok(cx.g.cast(y, to)?)
}

/// `(x - zero) * scale` in the type of scale.
pub(super) fn dequantize_from(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
) -> OpResult<ValueId> {
    let wide = if cx.g.dtype(scale) == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let mut y = if cx.g.dtype(x).bits() > 16 {
        // A 32-bit integer minus its zero point is exact only as an integer.
        match zero {
            Some(z) => {
                let z = cx.g.cast_like(z, x)?;
                let d = cx.g.binary(Scalar::Sub, x, z)?;
                cx.g.cast(d, wide)?
            }
            None => cx.g.cast(x, wide)?,
        }
    } else {
        let y = cx.g.cast(x, wide)?;
        match zero {
            Some(z) => {
                let z = cx.g.cast(z, wide)?;
                cx.g.binary(Scalar::Sub, y, z)?
            }
            None => y,
        }
    };
    let scale_wide = cx.g.cast(scale, wide)?;
    y = cx.g.binary(Scalar::Mul, y, scale_wide)?;
    Ok(cx.g.cast_like(y, scale)?)
}

pub(super) fn quantize(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, scale) = (cx.input(0)?, cx.input(1)?);
    let (axis, block) = (cx.int_or("axis", 1)?, cx.int_or("block_size", 0)?);
    let zero = cx.optional(2);
    let to = match (zero, cx.int_or("output_dtype", 0)?) {
        (Some(z), _) => cx.g.dtype(z),
        (None, 0) => DType::U8,
        (None, _) => cx.dtype_attr("output_dtype")?.unwrap_or(DType::U8),
    };
    let saturate = cx.flag("saturate", true)?;
    let scale = spread(cx, scale, x, axis, block)?;
    let zero = match zero {
        Some(z) => Some(spread(cx, z, x, axis, block)?),
        None => None,
    };
    Ok(vec![quantize_to(cx, x, scale, zero, to, saturate)?])
}

pub(super) fn dequantize(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, scale) = (cx.input(0)?, cx.input(1)?);
    let (axis, block) = (cx.int_or("axis", 1)?, cx.int_or("block_size", 0)?);
    let out = cx.dtype_attr("output_dtype")?;
    let s = spread(cx, scale, x, axis, block)?;
    let zero = match cx.optional(2) {
        Some(z) => Some(spread(cx, z, x, axis, block)?),
        None => None,
    };
    let y = dequantize_from(cx, x, s, zero)?;
    Ok(vec![match out {
        Some(d) => cx.g.cast(y, d)?,
        None => y,
    }])
}

/// Values, scale and zero point of `x` as u8 over its whole range.
pub(super) fn quantize_dynamically(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<[ValueId; 3]> {
    let x = cx.g.cast(x, DType::F32)?;
    let op = Op::Composite(DynamicQuantize {}.into());
    let results = cx.g.push(op, &[x])?;
    Ok([results[0], results[1], results[2]])
}

fn dynamic_quantize(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    Ok(quantize_dynamically(cx, x)?.to_vec())
}

/// The product of `a` and `b` less their zero points, in i32. A zero point is one number, or one per row of `a` or column
/// of `b`.
pub(super) fn integer_product(
    cx: &mut NodeCx<'_, '_>,
    [a, b]: [ValueId; 2],
    [za, zb]: [Option<ValueId>; 2],
) -> OpResult<ValueId> {
    let rows = cx.g.rank(a).checked_sub(2).map(|axis| cx.g.dim(a, axis));
    let cols = (cx.g.rank(b) > 1).then(|| cx.g.dim(b, cx.g.rank(b) - 1));
    let (Some(za_of), Some(zb_of)) = (zero_point(cx, a, za, rows)?, zero_point(cx, b, zb, cols)?)
    else {
        let a = centred(cx, a, za, true)?;
        let b = centred(cx, b, zb, false)?;
        return matmul(cx, a, b);
    };
    product_by(cx, a, b, |cx, a, b| {
        let (product, [a, b]) = cx.g.matmul_parts(a, b, false)?;
        let product = IntegerProduct::from(product);
        let op = Op::Composite(product.into());
        Ok(cx.g.one(op, &[a, b, za_of, zb_of])?)
    })
}

/// A zero point as composites take it: a number, or a vector of `extent`; 0 where none is given. `None` for other shapes
/// and for elements of more than 8 bits.
fn zero_point(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    zero: Option<ValueId>,
    extent: Option<Dim>,
) -> OpResult<Option<ValueId>> {
    let dtype = cx.g.dtype(x);
    if !matches!(dtype, DType::I8 | DType::U8) {
        return Ok(None);
    }
    let Some(zero) = zero else {
        let none = cx.g.number(0.0, dtype)?;
        return Ok(Some(none));
    };
    let dims = cx.g.dims(zero);
    if cx.g.dtype(zero) != dtype {
        return Ok(None);
    }
    if dims.iter().all(|d| d.is(1)) {
        return Ok(Some(cx.g.reshape(zero, &[])?));
    }
    Ok((dims.len() == 1 && Some(&dims[0]) == extent.as_ref()).then_some(zero))
}

/// `x - zero` as i32; the zero point is one number, or one per row (of a left operand) or column (of a right one).
fn centred(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    zero: Option<ValueId>,
    rows: bool,
) -> OpResult<ValueId> {
    let y = cx.g.cast(x, DType::I32)?;
    let Some(z) = zero else {
        return Ok(y);
    };
    let mut z = cx.g.cast(z, DType::I32)?;
    if rows && cx.g.rank(z) == 1 && !cx.g.dim(z, 0).is(1) {
        z = cx.g.unsqueeze(z, &[1])?;
    }
    Ok(cx.g.binary(Scalar::Sub, y, z)?)
}

fn matmul_integer(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let factors = [cx.input(0)?, cx.input(1)?];
    let zeros = [cx.optional(2), cx.optional(3)];
    Ok(vec![integer_product(cx, factors, zeros)?])
}

pub(super) fn scaled_product(
    cx: &mut NodeCx<'_, '_>,
    factors: [ValueId; 2],
    [sa, sb]: [ValueId; 2],
    zeros: [Option<ValueId>; 2],
    bias: Option<ValueId>,
) -> OpResult<ValueId> {
    let y = integer_product(cx, factors, zeros)?;
    let y = cx.g.cast_like(y, sa)?;
    let scale = cx.g.binary(Scalar::Mul, sa, sb)?;
    let y = cx.g.binary(Scalar::Mul, y, scale)?;
    Ok(match bias {
        Some(bias) => cx.g.binary(Scalar::Add, y, bias)?,
        None => y,
    })
}

fn conv_integer(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let (zx, zw) = (cx.optional(2), cx.optional(3));
    let y = integer_conv(cx, x, w, zx, zw)?;
    Ok(vec![y])
}

pub(super) fn integer_conv(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    w: ValueId,
    zx: Option<ValueId>,
    zw: Option<ValueId>,
) -> OpResult<ValueId> {
    let (spatial, kernel) = (cx.g.dims(x), cx.g.dims(w));
    if spatial.len() < 2 || spatial.len() != kernel.len() {
        return invalid(format!("x {} with weights {}", cx.g.ty(x), cx.g.ty(w)));
    }
    let s = sliding(cx, &spatial[2..], &kernel[2..])?;
    let conv = Conv {
        strides: s.strides,
        dilations: s.dilations,
        pads_low: s.low,
        pads_high: s.high,
        groups: groups(cx)?,
    };
    let outputs = kernel[0].clone();
    let numbers = (
        zero_point(cx, x, zx, None)?,
        zero_point(cx, w, zw, Some(outputs))?,
    );
    if let (Some(zx), Some(zw)) = numbers {
        let conv = Op::Composite(IntegerConv::from(conv).into());
        return Ok(cx.g.one(conv, &[x, w, zx, zw])?);
    }
    let x = centred(cx, x, zx, false)?;
    let zw = match zw {
        Some(z) if cx.g.rank(z) == 1 => {
            let mut dims = vec![Dim::ONE; cx.g.rank(w)];
            dims[0] = cx.g.dim(z, 0);
            Some(cx.g.reshape(z, &dims)?)
        }
        other => other,
    };
    let w = centred(cx, w, zw, false)?;
    Ok(cx.g.one(Op::Composite(conv.into()), &[x, w])?)
}

fn qlinear_matmul(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (a, sa, za) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (b, sb, zb) = (cx.input(3)?, cx.input(4)?, cx.input(5)?);
    let (sy, zy) = (cx.input(6)?, cx.input(7)?);
    let y = integer_product(cx, [a, b], [Some(za), Some(zb)])?;
    let y = cx.g.cast(y, DType::F32)?;
    let sa = cx.g.cast(sa, DType::F32)?;
    let sa = if cx.g.rank(sa) == 1 && !cx.g.dim(sa, 0).is(1) {
        cx.g.unsqueeze(sa, &[1])?
    } else {
        sa
    };
    let sb = cx.g.cast(sb, DType::F32)?;
    let sy = cx.g.cast(sy, DType::F32)?;
    let scale = cx.g.binary(Scalar::Mul, sa, sb)?;
    let y = cx.g.binary(Scalar::Mul, y, scale)?;
    let to = cx.g.dtype(zy);
    Ok(vec![quantize_to(cx, y, sy, Some(zy), to, true)?])
}

pub(super) fn qlinear_conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, sx, zx) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (w, sw, zw) = (cx.input(3)?, cx.input(4)?, cx.input(5)?);
    let (sy, zy) = (cx.input(6)?, cx.input(7)?);
    let mut y = integer_conv(cx, x, w, Some(zx), Some(zw))?;
    let rank = cx.g.rank(y);
    let column = |cx: &mut NodeCx<'_, '_>, v: ValueId| -> OpResult<ValueId> {
        let mut dims = vec![Dim::ONE; rank];
        if cx.g.rank(v) == 1 {
            dims[1] = cx.g.dim(v, 0);
        }
        Ok(cx.g.reshape(v, &dims)?)
    };
    if let Some(bias) = cx.optional(8) {
        let bias = column(cx, bias)?;
        y = cx.g.binary(Scalar::Add, y, bias)?;
    }
    let y = cx.g.cast(y, DType::F32)?;
    let sw = column(cx, sw)?;
    let sx = column(cx, sx)?;
    let scale = cx.g.binary(Scalar::Mul, sx, sw)?;
    let y = cx.g.binary(Scalar::Mul, y, scale)?;
    let to = cx.g.dtype(zy);
    let (sy, zy) = (cx.g.reshape(sy, &[])?, cx.g.reshape(zy, &[])?);
    Ok(vec![quantize_to(cx, y, sy, Some(zy), to, true)?])
}

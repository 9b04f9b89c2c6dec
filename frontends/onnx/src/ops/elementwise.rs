//! Elementwise operators: arithmetic, comparison, logic, rounding and choice. Activations are in `activation`.
//!
//! Before version 7 two operands had equal extents, or the second was aligned with the first at an `axis` when
//! `broadcast` was set; from then on they broadcast as in NumPy.

use cupola_ir::ops::{Bitcast, Cast};
use cupola_ir::{Class, DType, Dim, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("Abs", 1, |cx| unary(cx, Scalar::Abs)),
    op("Acos", 7, |cx| unary(cx, Scalar::Acos)),
    op("Acosh", 9, |cx| unary(cx, Scalar::Acosh)),
    op("Asin", 7, |cx| unary(cx, Scalar::Asin)),
    op("Asinh", 9, |cx| unary(cx, Scalar::Asinh)),
    op("Atan", 7, |cx| unary(cx, Scalar::Atan)),
    op("Atanh", 9, |cx| unary(cx, Scalar::Atanh)),
    op("BitwiseNot", 18, |cx| unary(cx, Scalar::Not)),
    op("Ceil", 1, |cx| unary(cx, Scalar::Ceil)),
    op("Cos", 7, |cx| unary(cx, Scalar::Cos)),
    op("Cosh", 9, |cx| unary(cx, Scalar::Cosh)),
    op("Erf", 9, |cx| unary(cx, Scalar::Erf)),
    op("Exp", 1, |cx| unary(cx, Scalar::Exp)),
    op("Floor", 1, |cx| unary(cx, Scalar::Floor)),
    op("IsNaN", 9, |cx| unary(cx, Scalar::IsNan)),
    op("Log", 1, |cx| unary(cx, Scalar::Log)),
    op("Neg", 1, |cx| unary(cx, Scalar::Neg)),
    op("Not", 1, |cx| unary(cx, Scalar::Not)),
    op("Reciprocal", 1, |cx| unary(cx, Scalar::Recip)),
    op("Round", 11, |cx| unary(cx, Scalar::Round)),
    op("Sign", 9, |cx| unary(cx, Scalar::Sign)),
    op("Sin", 7, |cx| unary(cx, Scalar::Sin)),
    op("Sinh", 9, |cx| unary(cx, Scalar::Sinh)),
    op("Sqrt", 1, |cx| unary(cx, Scalar::Sqrt)),
    op("Tan", 7, |cx| unary(cx, Scalar::Tan)),
    op("Add", 1, |cx| aligned(cx, Scalar::Add)),
    op("Add", 7, |cx| binary(cx, Scalar::Add)),
    op("And", 1, |cx| aligned(cx, Scalar::And)),
    op("And", 7, |cx| binary(cx, Scalar::And)),
    op("BitwiseAnd", 18, |cx| binary(cx, Scalar::And)),
    op("BitwiseOr", 18, |cx| binary(cx, Scalar::Or)),
    op("BitwiseXor", 18, |cx| binary(cx, Scalar::Xor)),
    op("Div", 1, |cx| aligned(cx, Scalar::Div)),
    op("Div", 7, |cx| binary(cx, Scalar::Div)),
    op("Equal", 1, |cx| aligned(cx, Scalar::Eq)),
    op("Equal", 7, |cx| binary(cx, Scalar::Eq)),
    op("Less", 1, |cx| aligned(cx, Scalar::Lt)),
    op("Less", 7, |cx| binary(cx, Scalar::Lt)),
    op("LessOrEqual", 12, |cx| binary(cx, Scalar::Le)),
    op("Mul", 1, |cx| aligned(cx, Scalar::Mul)),
    op("Mul", 7, |cx| binary(cx, Scalar::Mul)),
    op("Or", 1, |cx| aligned(cx, Scalar::Or)),
    op("Or", 7, |cx| binary(cx, Scalar::Or)),
    op("Sub", 1, |cx| aligned(cx, Scalar::Sub)),
    op("Sub", 7, |cx| binary(cx, Scalar::Sub)),
    op("Xor", 1, |cx| aligned(cx, Scalar::Xor)),
    op("Xor", 7, |cx| binary(cx, Scalar::Xor)),
    op("Greater", 1, greater_aligned),
    op("Greater", 7, |cx| swapped(cx, Scalar::Lt)),
    op("GreaterOrEqual", 12, |cx| swapped(cx, Scalar::Le)),
    op("BitShift", 11, bit_shift),
    op("Mod", 10, modulo),
    op("Pow", 1, pow_aligned),
    op("Pow", 7, pow),
    op("Max", 1, |cx| variadic(cx, Scalar::Max)),
    op("Min", 1, |cx| variadic(cx, Scalar::Min)),
    op("Sum", 1, |cx| variadic(cx, Scalar::Add)),
    op("Mean", 1, mean),
    op("Where", 9, select),
    op("Clip", 1, clip_attributes),
    op("Clip", 11, clip),
    op("IsInf", 10, is_inf),
    op("Cast", 1, cast_by_name),
    op("Cast", 6, cast),
    op("CastLike", 15, cast_like),
    op("BitCast", 26, bit_cast),
];

pub(super) fn unary(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    Ok(vec![cx.g.unary(f, x)?])
}

fn binary(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let (x, y) = pair(cx)?;
    Ok(vec![cx.g.binary(f, x, y)?])
}

fn swapped(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let (x, y) = pair(cx)?;
    Ok(vec![cx.g.binary(f, y, x)?])
}

fn pair(cx: &NodeCx<'_, '_>) -> OpResult<(ValueId, ValueId)> {
    let (x, y) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if cx.input_count() > 2 {
        return invalid(format!("takes 2 operands, not {}", cx.input_count()));
    }
    Ok((x.0, y.0))
}

/// The operands with the second one's axes aligned as `broadcast` and `axis` say.
fn aligned_pair(cx: &mut NodeCx<'_, '_>) -> OpResult<(ValueId, ValueId)> {
    let (x, y) = pair(cx)?;
    if cx.int_or("broadcast", 0)? == 0 {
        return Ok((x, y));
    }
    let (rank, own) = (cx.g.rank(x), cx.g.rank(y));
    let Some(axis) = cx.int("axis")? else {
        return Ok((x, y));
    };
    // Some writers of that time give an axis with a second operand that has all axes.
    let axis = match rank > own {
        true => cx.axis(axis, rank)?,
        false => 0,
    };
    let Some(after) = rank.checked_sub(axis + own) else {
        return invalid(format!("axis {axis} for operands of {rank} and {own} axes"));
    };
    let dims = [cx.g.dims(y), vec![Dim::ONE; after]].concat();
    let y = cx.g.reshape(y, &dims)?;
    Ok((x, y))
}

fn aligned(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let (x, y) = aligned_pair(cx)?;
    Ok(vec![cx.g.binary(f, x, y)?])
}

fn greater_aligned(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, y) = aligned_pair(cx)?;
    Ok(vec![cx.g.binary(Scalar::Lt, y, x)?])
}

fn variadic(cx: &mut NodeCx<'_, '_>, f: Scalar) -> OpResult {
    let all = cx.inputs_from(0)?;
    let Some((first, rest)) = all.split_first() else {
        return invalid("takes at least one operand");
    };
    let mut y = *first;
    for x in rest {
        y = cx.g.binary(f, y, *x)?;
    }
    Ok(vec![y])
}

fn mean(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let sum = variadic(cx, Scalar::Add)?[0];
    Ok(vec![cx.g.scale(sum, 1.0 / cx.input_count() as f64)?])
}

fn select(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (c, x, y) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    Ok(vec![cx.g.select(c, x, y)?])
}

fn bit_shift(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let f = match cx.text_or("direction", "")?.as_str() {
        "LEFT" => Scalar::Shl,
        "RIGHT" => Scalar::Shr,
        other => return invalid(format!("direction '{other}' is neither LEFT nor RIGHT")),
    };
    let (x, mut count) = pair(cx)?;
    let dtype = cx.g.dtype(count);
    if dtype.class() == Class::Signed {
        // A negative count shifts everything out, as one of the full width does.
        let (zero, width) = (
            cx.g.number_like(0.0, count)?,
            cx.g.number_like(dtype.bits() as f64, count)?,
        );
        let negative = cx.g.binary(Scalar::Lt, count, zero)?;
        count = cx.g.select(negative, width, count)?;
    }
    Ok(vec![cx.g.binary(f, x, count)?])
}

fn modulo(cx: &mut NodeCx<'_, '_>) -> OpResult {
    match cx.flag("fmod", false)? {
        true => binary(cx, Scalar::Rem),
        false => binary(cx, Scalar::Mod),
    }
}

fn pow_aligned(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, y) = aligned_pair(cx)?;
    raise(cx, x, y)
}

fn pow(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, y) = pair(cx)?;
    raise(cx, x, y)
}

/// `x^y` in the type of `x`; small constant exponents become products.
fn raise(cx: &mut NodeCx<'_, '_>, x: ValueId, y: ValueId) -> OpResult {
    let (base, exponent) = (cx.g.dtype(x), cx.g.dtype(y));
    let scalar = cx.g.tensor(y).len().is(1) && cx.g.rank(y) <= cx.g.rank(x);
    if scalar && let Some(n) = cx.g.as_uniform(y) {
        if n == 1.0 {
            return Ok(vec![x]);
        }
        if n == 2.0 {
            return Ok(vec![cx.g.binary(Scalar::Mul, x, x)?]);
        }
    }
    if base.is_int() && exponent.is_float() {
        let wide = cx.g.cast(x, DType::F64)?;
        let y = cx.g.cast(y, DType::F64)?;
        let z = cx.g.binary(Scalar::Pow, wide, y)?;
        return Ok(vec![cx.g.cast(z, base)?]);
    }
    let y = cx.g.cast(y, base)?;
    Ok(vec![cx.g.binary(Scalar::Pow, x, y)?])
}

fn clip_attributes(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let mut x = cx.input(0)?;
    for (name, f) in [("min", Scalar::Max), ("max", Scalar::Min)] {
        if let Some(bound) = cx.float(name)? {
            let bound = cx.g.number_like(bound, x)?;
            x = cx.g.binary(f, x, bound)?;
        }
    }
    Ok(vec![x])
}

fn clip(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let mut x = cx.input(0)?;
    for (index, f) in [(1, Scalar::Max), (2, Scalar::Min)] {
        if let Some(bound) = cx.optional(index) {
            let bound = cx.g.reshape(bound, &[])?;
            x = cx.g.binary(f, x, bound)?;
        }
    }
    Ok(vec![x])
}

fn is_inf(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let (negative, positive) = (
        cx.flag("detect_negative", true)?,
        cx.flag("detect_positive", true)?,
    );
    let any = cx.g.unary(Scalar::IsInf, x)?;
    let zero = cx.g.number_like(0.0, x)?;
    let side = match (negative, positive) {
        (true, true) => return Ok(vec![any]),
        (true, false) => cx.g.binary(Scalar::Lt, x, zero)?,
        (false, true) => cx.g.binary(Scalar::Lt, zero, x)?,
        (false, false) => {
            let none = cx.g.number(0.0, DType::Bool)?;
            return Ok(vec![cx.g.binary(Scalar::And, any, none)?]);
        }
    };
    Ok(vec![cx.g.binary(Scalar::And, any, side)?])
}

fn cast_by_name(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let name = cx.text_or("to", "")?;
    let known = (1..=26).filter_map(|n| crate::tensor::ElementType::from_number(n).ok());
    let Some(element) = known.into_iter().find(|e| e.as_str_name() == name) else {
        return invalid(format!("no element type '{name}'"));
    };
    let to = crate::import::dtype_of_number(element as i64)?;
    let x = cx.input(0)?;
    Ok(vec![convert(cx, x, to)?])
}

fn cast(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let Some(to) = cx.dtype_attr("to")? else {
        return invalid("attribute 'to' is missing");
    };
    Ok(vec![convert(cx, x, to)?])
}

fn cast_like(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let (_, like) = cx.tensor_input(1)?;
    Ok(vec![convert(cx, x, like.dtype)?])
}

fn convert(cx: &mut NodeCx<'_, '_>, x: ValueId, to: DType) -> OpResult<ValueId> {
    let saturate = cx.flag("saturate", true)?;
    if cx.g.dtype(x) == to {
        return Ok(x);
    }
    if to == DType::F8E8M0 {
        let mode = cx.text_or("round_mode", "up")?;
        return power_of_two(cx, x, saturate, &mode);
    }
    let mut x = x;
    if cx.g.dtype(x).is_float() && to.is_int() && to.bits() < 8 {
        // Packed integers keep the low bits of what is outside their range, as conversions between integers do.
        x = cx.g.cast(x, DType::I32)?;
    }
    if to == DType::F4E2M1 && cx.g.dtype(x).is_float() {
        // The type has no NaN; the standard's own conversion gives -0.
        let nan = cx.g.unary(Scalar::IsNan, x)?;
        let zero = cx.g.number_like(-0.0, x)?;
        x = cx.g.select(nan, zero, x)?;
    }
    Ok(cx.g.one(Cast { to, saturate }, &[x])?)
}

/// Conversion to a power of two with a rounding mode: the exponent field of the f32, stepped up where the fraction
/// says so, is the result's bit pattern.
fn power_of_two(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    saturate: bool,
    mode: &str,
) -> OpResult<ValueId> {
    const NAN: f64 = 255.0;
    const LARGEST: f64 = 254.0;
    let threshold = match mode {
        "up" => 1.0,
        "nearest" => f64::from(1u32 << 22),
        "down" => f64::from(1u32 << 23),
        other => return invalid(format!("round_mode '{other}' does not exist")),
    };
    let g = &mut *cx.g;
    let x = g.cast(x, DType::F32)?;
    let bits = g.one(Bitcast { to: DType::U32 }, &[x])?;
    let shift = g.number(23.0, DType::U32)?;
    let exponent = g.binary(Scalar::Shr, bits, shift)?;
    let low = g.number(255.0, DType::U32)?;
    let exponent = g.binary(Scalar::And, exponent, low)?;
    let fraction_mask = g.number(f64::from((1u32 << 23) - 1), DType::U32)?;
    let fraction = g.binary(Scalar::And, bits, fraction_mask)?;
    let threshold = g.number(threshold, DType::U32)?;
    let up = g.binary(Scalar::Le, threshold, fraction)?;
    let up = g.cast(up, DType::U32)?;
    let code = g.binary(Scalar::Add, exponent, up)?;
    let largest = g.number(LARGEST, DType::U32)?;
    let nan = g.number(NAN, DType::U32)?;
    let code = if saturate {
        g.binary(Scalar::Min, code, largest)?
    } else {
        let over = g.binary(Scalar::Lt, largest, code)?;
        let zero = g.number(0.0, DType::F32)?;
        let zero = g.binary(Scalar::Eq, x, zero)?;
        let lost = g.binary(Scalar::Or, over, zero)?;
        g.select(lost, nan, code)?
    };
    let is_nan = g.unary(Scalar::IsNan, x)?;
    let code = g.select(is_nan, nan, code)?;
    let code = g.cast(code, DType::U8)?;
    Ok(g.one(Bitcast { to: DType::F8E8M0 }, &[code])?)
}

fn bit_cast(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let Some(to) = cx.dtype_attr("to")? else {
        return invalid("attribute 'to' is missing");
    };
    if cx.g.dtype(x) == to {
        return Ok(vec![x]);
    }
    Ok(vec![cx.g.one(Bitcast { to }, &[x])?])
}

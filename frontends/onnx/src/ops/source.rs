//! Operators that make values: constants, shapes, ranges, masks.

use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};
use crate::shape::Elem;

pub(super) const OPS: &[OpRow] = &[
    op("Constant", 1, constant),
    op("ConstantOfShape", 9, constant_of_shape),
    op("Shape", 1, shape),
    op("Size", 1, size),
    op("Range", 11, range),
    op("EyeLike", 9, eye_like),
    op("Trilu", 14, trilu),
];

fn constant(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let f32s = |v: Vec<f64>| v.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let value = if let Some(t) = cx.tensor_attr("value")? {
        t
    } else if let Some(t) = cx.sparse_attr("sparse_value")? {
        t
    } else if let Some(v) = cx.float("value_float")? {
        Tensor::scalar(v as f32)
    } else if let Some(v) = cx.floats_attr("value_floats")? {
        Tensor::vector(&f32s(v))
    } else if let Some(v) = cx.int("value_int")? {
        Tensor::scalar(v)
    } else if let Some(v) = cx.ints_attr("value_ints")? {
        Tensor::vector(&v)
    } else if let Some(v) = cx.text("value_string")? {
        strings(vec![], vec![v])?
    } else if let Some(v) = cx.texts_attr("value_strings")? {
        strings(vec![v.len()], v)?
    } else {
        return invalid("no value is given");
    };
    Ok(vec![cx.g.constant(value)?])
}

fn strings(shape: Vec<usize>, values: Vec<String>) -> OpResult<Tensor> {
    match Tensor::from_strings(shape, values) {
        Some(t) => Ok(t),
        None => invalid("a string tensor of another length"),
    }
}

fn constant_of_shape(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let shape = cx.input(0)?;
    let dims = cx.extents(shape, 0)?;
    let value = match cx.tensor_attr("value")? {
        Some(t) => match t.reshaped(vec![]) {
            Some(t) => t,
            None => return invalid(format!("value {t:?} is not one element")),
        },
        None => Tensor::scalar(0f32),
    };
    let value = cx.g.constant(value)?;
    Ok(vec![cx.g.broadcast_to(value, &dims)?])
}

fn shape(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (_, ty) = cx.tensor_input(0)?;
    let rank = ty.rank() as i64;
    let clamp = |i: i64| if i < 0 { i + rank } else { i }.clamp(0, rank) as usize;
    let (start, end) = (cx.int_or("start", 0)?, cx.int_or("end", rank)?);
    let (start, end) = (clamp(start), clamp(end));
    let dims = ty.dims.get(start..end.max(start)).unwrap_or_default();
    Ok(vec![cx.sizes(dims)?])
}

fn size(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (_, ty) = cx.tensor_input(0)?;
    Ok(vec![cx.g.dim_value(&ty.len())?])
}

/// `start + i * delta` for `i` below `max(0, ceil((limit - start) / delta))`.
fn range(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (start, limit, delta) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let dtype = cx.g.dtype(start);
    let scalars = [start, limit, delta].map(|v| cx.g.reshape(v, &[]));
    let [start, limit, delta] = scalars;
    let (start, limit, delta) = (start?, limit?, delta?);
    let count = range_len(cx, start, limit, delta)?;
    // Narrow floats count in their accumulator type.
    let wide = match dtype.is_float() {
        true => cx.g.accumulator(dtype),
        false => dtype,
    };
    let (start, delta) = (cx.g.cast(start, wide)?, cx.g.cast(delta, wide)?);
    let at = cx.g.iota(wide, &[count], 0)?;
    let y = cx.g.binary(Scalar::Mul, at, delta)?;
    let y = cx.g.binary(Scalar::Add, y, start)?;
    Ok(vec![cx.g.cast(y, dtype)?])
}

fn range_len(
    cx: &mut NodeCx<'_, '_>,
    start: ValueId,
    limit: ValueId,
    delta: ValueId,
) -> OpResult<Dim> {
    let one = |cx: &mut NodeCx<'_, '_>, v| cx.elems(v).map(|e| e[0].clone());
    let known = (one(cx, start), one(cx, limit), one(cx, delta));
    if let (Some(Elem::Int(start)), Some(Elem::Int(limit)), Some(Elem::Int(delta))) = &known
        && let Some(step) = delta.as_const()
    {
        let span = match step {
            0 => return invalid("delta is 0"),
            1.. => limit - start,
            _ => start - limit,
        };
        let by = Dim::Const(step.checked_abs().unwrap_or(i64::MAX));
        return Ok(cx.at_least_zero(&span).ceil_div(&by));
    }
    if let (Some(Elem::Real(start)), Some(Elem::Real(limit)), Some(Elem::Real(delta))) = known {
        let n = ((limit - start) / delta).ceil().max(0.0);
        if !n.is_finite() || n > 9.0e15 {
            return invalid(format!("a range of {n} elements"));
        }
        return Ok(Dim::Const(n as i64));
    }
    let g = &mut *cx.g;
    let span = match g.dtype(start).is_float() {
        true => {
            let [start, limit, delta] = [start, limit, delta].map(|v| g.cast(v, DType::F64));
            let span = g.binary(Scalar::Sub, limit?, start?)?;
            let n = g.binary(Scalar::Div, span, delta?)?;
            g.unary(Scalar::Ceil, n)?
        }
        false => {
            // ceil(a / b) = -floor(-a / b), and floor(c / b) = (c - c mod b) / b.
            let [start, limit, delta] = [start, limit, delta].map(|v| g.cast(v, DType::I64));
            let (start, limit, delta) = (start?, limit?, delta?);
            let back = g.binary(Scalar::Sub, start, limit)?;
            let rest = g.binary(Scalar::Mod, back, delta)?;
            let whole = g.binary(Scalar::Sub, back, rest)?;
            let n = g.binary(Scalar::Div, whole, delta)?;
            g.unary(Scalar::Neg, n)?
        }
    };
    let zero = g.number_like(0.0, span)?;
    let n = g.binary(Scalar::Max, span, zero)?;
    let n = g.cast(n, DType::I64)?;
    cx.extent(n, 0)
}

fn eye_like(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    if ty.rank() != 2 {
        return cx.bad_type(x);
    }
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(ty.dtype);
    let k = cx.int_or("k", 0)?;
    let i = cx.g.iota(DType::I64, &ty.dims, 0)?;
    let j = cx.g.iota(DType::I64, &ty.dims, 1)?;
    let k = cx.g.constant(Tensor::scalar(k))?;
    let i = cx.g.binary(Scalar::Add, i, k)?;
    let hit = cx.g.binary(Scalar::Eq, i, j)?;
    Ok(vec![cx.g.cast(hit, dtype)?])
}

/// The upper (`j - i >= k`) or lower (`j - i <= k`) triangle, 0 elsewhere.
pub(super) fn trilu(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let [.., rows, columns] = &ty.dims[..] else {
        return cx.bad_type(x);
    };
    let plane = [rows.clone(), columns.clone()];
    let k = match cx.optional(1) {
        Some(k) => cx.g.reshape(k, &[])?,
        None => cx.g.constant(Tensor::scalar(0i64))?,
    };
    let i = cx.g.iota(DType::I64, &plane, 0)?;
    let j = cx.g.iota(DType::I64, &plane, 1)?;
    let edge = cx.g.binary(Scalar::Add, i, k)?;
    let kept = match cx.flag("upper", true)? {
        true => cx.g.binary(Scalar::Le, edge, j)?,
        false => cx.g.binary(Scalar::Le, j, edge)?,
    };
    let zero = cx.g.number_like(0.0, x)?;
    Ok(vec![cx.g.select(kept, x, zero)?])
}

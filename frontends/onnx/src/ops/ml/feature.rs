//! Features made ready: scaled, normalised, filled in, encoded, chosen and joined.

use cupola_ir::ops::{Bounds, Gather, ReduceKind};
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Scalar, ValueId};

use super::{floats, lookup, ml, per_feature, texts};
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid, unsupported};
use crate::ops::OpRow;
use crate::ops::indexed::take;
use crate::ops::math::Math;

pub(in crate::ops) const OPS: &[OpRow] = &[
    ml("Scaler", 1, scaler),
    ml("Normalizer", 1, normalizer),
    ml("Binarizer", 1, binarizer),
    ml("Imputer", 1, imputer),
    ml("OneHotEncoder", 1, one_hot),
    ml("LabelEncoder", 1, label_encoder_one),
    ml("LabelEncoder", 2, label_encoder),
    ml("CategoryMapper", 1, category_mapper),
    ml("ArrayFeatureExtractor", 1, extractor),
    ml("FeatureVectorizer", 1, vectorizer),
    ml("ZipMap", 1, |_| maps()),
    ml("DictVectorizer", 1, |_| maps()),
    ml("CastMap", 1, |_| maps()),
];

fn maps() -> OpResult {
    unsupported("maps from keys to values, which the graph has no type for")
}

/// `(x - offset) * scale`.
fn scaler(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let mut y = floats(cx.g, x)?;
    for (name, f) in [("offset", Scalar::Sub), ("scale", Scalar::Mul)] {
        if let Some(values) = cx.floats_attr(name)?.filter(|v| !v.is_empty()) {
            let values = per_feature(cx.g, &values, y)?;
            y = cx.g.binary(f, y, values)?;
        }
    }
    Ok(vec![cx.g.cast(y, DType::F32)?])
}

/// Each row over its largest element, the sum of sizes, or the root of the sum of squares; unchanged where that is 0.
fn normalizer(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let norm = cx.text_or("norm", "MAX")?;
    let Some(last) = ty.rank().checked_sub(1) else {
        return cx.bad_type(x);
    };
    let x = floats(cx.g, x)?;
    let mut m = Math { g: cx.g };
    let by = match norm.as_str() {
        "MAX" => m.g.reduce_keep(ReduceKind::Max, x, &[last])?,
        "L1" => {
            let size = m.unary(Scalar::Abs, x)?;
            m.g.reduce_keep(ReduceKind::Sum, size, &[last])?
        }
        "L2" => {
            let square = m.mul(x, x)?;
            let sum = m.g.reduce_keep(ReduceKind::Sum, square, &[last])?;
            m.unary(Scalar::Sqrt, sum)?
        }
        other => return invalid(format!("norm '{other}' does not exist")),
    };
    let none = m.eq(by, 0.0)?;
    let by = m.select(none, 1.0, by)?;
    let y = m.div(x, by)?;
    Ok(vec![m.g.cast(y, DType::F32)?])
}

fn binarizer(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let threshold = cx.float_or("threshold", 0.0)?;
    let wide = floats(cx.g, x)?;
    let mut m = Math { g: cx.g };
    let above = m.lt(threshold, wide)?;
    Ok(vec![m.g.cast_like(above, x)?])
}

/// Elements equal to a value (NaN to NaN) replaced by that of their feature.
fn imputer(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let ints = cx
        .ints_attr("imputed_value_int64s")?
        .filter(|_| ty.dtype.is_int());
    let (values, replaced): (Vec<f64>, f64) = match ints {
        Some(v) => (
            v.into_iter().map(|n| n as f64).collect(),
            cx.int_or("replaced_value_int64", 0)? as f64,
        ),
        None => (
            cx.floats_attr("imputed_value_floats")?.unwrap_or_default(),
            cx.float_or("replaced_value_float", 0.0)?,
        ),
    };
    if values.is_empty() || ty.rank() == 0 {
        return invalid(format!("no values to put into {ty}"));
    }
    let values = per_feature(cx.g, &values, x)?;
    let mut m = Math { g: cx.g };
    let hit = match replaced.is_nan() {
        true if !ty.dtype.is_float() => return Ok(vec![x]),
        true => m.unary(Scalar::IsNan, x)?,
        false => m.eq(x, replaced)?,
    };
    Ok(vec![m.select(hit, values, x)?])
}

/// A new last axis with 1 at the category; the run fails on unknown ones unless they may be all zeros.
fn one_hot(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let (x, keys) = if ty.dtype == DType::String {
        (x, texts(cx.texts_attr("cats_strings")?.unwrap_or_default()))
    } else {
        let keys = cx.ints_attr("cats_int64s")?.unwrap_or_default();
        (cx.g.cast(x, DType::I64)?, Tensor::vector(&keys))
    };
    let n = keys.len();
    if n == 0 {
        return invalid(format!("no categories for {ty}"));
    }
    let numbers: Vec<i64> = (0..n as i64).collect();
    let at = lookup(
        cx.g,
        x,
        keys,
        Tensor::vector(&numbers),
        Tensor::vector(&[-1i64]),
    )?;
    let plane = [Dim::from(n), Dim::from(n)];
    let (row, column) = (
        cx.g.iota(DType::I64, &plane, 0)?,
        cx.g.iota(DType::I64, &plane, 1)?,
    );
    let unit = cx.g.binary(Scalar::Eq, row, column)?;
    let unit = cx.g.cast(unit, DType::F32)?;
    let pick = Gather {
        axes: vec![0],
        batch: 0,
        bounds: match cx.flag("zeros", true)? {
            true => Bounds::Skip,
            false => Bounds::Check,
        },
    };
    Ok(vec![cx.g.one(pick, &[unit, at])?])
}

/// A tensor of one column given as one of several attributes.
fn column(cx: &NodeCx<'_, '_>, prefix: &str) -> OpResult<Option<Tensor>> {
    if let Some(t) = cx.tensor_attr(&format!("{prefix}_tensor"))? {
        let n = t.len();
        return Ok(t.reshaped(vec![n]));
    }
    if let Some(v) = cx.texts_attr(&format!("{prefix}_strings"))? {
        return Ok(Some(texts(v)));
    }
    if let Some(v) = cx.ints_attr(&format!("{prefix}_int64s"))? {
        return Ok(Some(Tensor::vector(&v)));
    }
    let floats = cx.floats_attr(&format!("{prefix}_floats"))?;
    Ok(floats.map(|v| Tensor::vector(&v.iter().map(|x| *x as f32).collect::<Vec<f32>>())))
}

fn label_encoder(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let (Some(keys), Some(values)) = (column(cx, "keys")?, column(cx, "values")?) else {
        return invalid("keys or values are missing");
    };
    let default = match (cx.tensor_attr("default_tensor")?, values.dtype()) {
        (Some(t), _) => t,
        (None, DType::String) => texts(vec![cx.text_or("default_string", "_Unused")?]),
        (None, dtype) => {
            let number = match dtype.is_int() {
                true => cx.int_or("default_int64", -1)? as f64,
                false => cx.float_or("default_float", -0.0)?,
            };
            let t = cupola_ir::convert::splat(number, dtype);
            t.ok_or_else(|| OpError::Unsupported(format!("values of {dtype}")))?
        }
    };
    Ok(vec![lookup(cx.g, x, keys, values, default)?])
}

/// Strings to numbers or numbers to strings, by what the operand is.
fn both_ways(cx: &mut NodeCx<'_, '_>, names: Vec<String>, numbers: &[i64]) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    if names.is_empty() || names.len() != numbers.len() {
        return invalid(format!(
            "{} strings for {} numbers",
            names.len(),
            numbers.len()
        ));
    }
    let (names, numbers) = (texts(names), Tensor::vector(numbers));
    Ok(vec![if ty.dtype == DType::String {
        let default = cx.int_or("default_int64", -1)?;
        lookup(cx.g, x, names, numbers, Tensor::vector(&[default]))?
    } else {
        let default = cx.text_or("default_string", "_Unused")?;
        lookup(cx.g, x, numbers, names, texts(vec![default]))?
    }])
}

/// Version 1: the number of a string is its position.
fn label_encoder_one(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let names = cx.texts_attr("classes_strings")?.unwrap_or_default();
    let numbers: Vec<i64> = (0..names.len() as i64).collect();
    both_ways(cx, names, &numbers)
}

fn category_mapper(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let names = cx.texts_attr("cats_strings")?.unwrap_or_default();
    let numbers = cx.ints_attr("cats_int64s")?.unwrap_or_default();
    both_ways(cx, names, &numbers)
}

/// Columns of the last axis at flattened positions; a vector gives one row.
fn extractor(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (at, at_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let x = match ty.rank() {
        0 => return cx.bad_type(x),
        1 => cx.g.unsqueeze(x, &[0])?,
        _ => x,
    };
    if !at_ty.dtype.is_int() {
        return cx.bad_type(at);
    }
    let at = cx.g.cast(at, DType::I64)?;
    let at = cx.g.reshape(at, &[at_ty.len()])?;
    let last = cx.g.rank(x) - 1;
    Ok(vec![take(cx.g, x, last, at)?])
}

/// Columns of all operands side by side, each cut or filled with zeros to its stated number.
fn vectorizer(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let all = cx.inputs_from(0)?;
    let widths = cx.ints_attr("inputdimensions")?;
    if widths
        .as_ref()
        .is_some_and(|w| w.len() != all.len() || w.iter().any(|n| *n < 0))
    {
        return invalid(format!("{widths:?} columns for {} operands", all.len()));
    }
    let mut parts: Vec<ValueId> = vec![];
    for (i, x) in all.into_iter().enumerate() {
        let x = match cx.g.rank(x) {
            1 => cx.g.unsqueeze(x, &[0])?,
            2 => x,
            _ => return cx.bad_type(x),
        };
        let mut x = cx.g.cast(x, DType::F32)?;
        if let Some(widths) = &widths {
            let (own, width) = (cx.g.dim(x, 1), Dim::Const(widths[i]));
            let kept = cx.smaller(&own, &width);
            let missing = width - kept.clone();
            x = cx.g.slice_axis(x, 1, &Dim::ZERO, &kept)?;
            let zero = cx.g.number(0.0, DType::F32)?;
            x =
                cx.g.pad(x, zero, &[Dim::ZERO, Dim::ZERO], &[Dim::ZERO, missing])?;
        }
        parts.push(x);
    }
    match parts.is_empty() {
        true => invalid("takes at least one operand"),
        false => Ok(vec![cx.g.concat(&parts, 1)?]),
    }
}

//! The operators of `ai.onnx.ml`: features, linear and kernel machines, tree ensembles. This file holds what they
//! share: rows of features, class labels, and what is done to scores.

pub(super) mod feature;
pub(super) mod linear;
pub(super) mod tree;

use cupola_ir::ops::HostOp;
use cupola_ir::ops::host::Lookup;
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Graph, Op, Scalar, ValueId};

use super::indexed::take;
use super::math::Math;
use super::{Importer, OpRow, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

/// A row of this domain.
const fn ml(name: &'static str, since: i64, import: Importer) -> OpRow {
    op_in("ai.onnx.ml", name, since, import)
}

/// Numbers as floats: f64 stays, all else becomes f32.
fn floats(g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
    let to = match g.dtype(x) {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    Ok(g.cast(x, to)?)
}

/// The first operand as floats `[rows, features]`; a vector is one row.
fn rows(cx: &mut NodeCx<'_, '_>) -> OpResult<ValueId> {
    let (x, ty) = cx.tensor_input(0)?;
    let x = match &ty.dims[..] {
        [n] => cx.g.reshape(x, &[Dim::ONE, n.clone()])?,
        [_, _] => x,
        _ => return cx.bad_type(x),
    };
    floats(cx.g, x)
}

/// A constant of this dtype.
fn constant(g: &mut Graph, values: &[f64], shape: &[usize], dtype: DType) -> OpResult<ValueId> {
    let Some(t) = Tensor::from_slice(shape, values) else {
        return invalid(format!("{} numbers for {shape:?}", values.len()));
    };
    let v = g.constant(t)?;
    Ok(g.cast(v, dtype)?)
}

/// One number, or one per feature, as a constant that broadcasts over rows.
fn per_feature(g: &mut Graph, values: &[f64], x: ValueId) -> OpResult<ValueId> {
    let n = g.dims(x).last().and_then(Dim::as_const);
    if values.len() != 1 && n.is_some_and(|n| n != values.len() as i64) {
        return invalid(format!("{} numbers for {}", values.len(), g.ty(x)));
    }
    let dtype = g.dtype(x);
    constant(g, values, &[values.len()], dtype)
}

/// Names of classes.
enum Labels {
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

impl Labels {
    /// Those of the attributes named; strings where both are given, none where neither is.
    fn read(cx: &NodeCx<'_, '_>, ints: &str, texts: &str) -> OpResult<Option<Labels>> {
        if let Some(v) = cx.texts_attr(texts)?.filter(|v| !v.is_empty()) {
            return Ok(Some(Labels::Texts(v)));
        }
        let ints = cx.ints_attr(ints)?.filter(|v| !v.is_empty());
        Ok(ints.map(Labels::Ints))
    }

    fn len(&self) -> usize {
        match self {
            Labels::Ints(v) => v.len(),
            Labels::Texts(v) => v.len(),
        }
    }

    /// The labels of class numbers.
    fn of(&self, g: &mut Graph, index: ValueId) -> OpResult<ValueId> {
        match self {
            Labels::Ints(v) => {
                let table = g.i64s(v)?;
                take(g, table, 0, index)
            }
            Labels::Texts(v) => {
                let keys: Vec<i64> = (0..v.len() as i64).collect();
                lookup(
                    g,
                    index,
                    Tensor::vector(&keys),
                    texts(v.clone()),
                    texts(vec![String::new()]),
                )
            }
        }
    }
}

/// A vector of strings.
fn texts(v: Vec<String>) -> Tensor {
    Tensor::from_strings(vec![v.len()], v).unwrap_or_else(|| unreachable!("bug: length of texts"))
}

/// `values[j]` for the first `keys[j]` that equals the element.
fn lookup(
    g: &mut Graph,
    x: ValueId,
    keys: Tensor,
    values: Tensor,
    default: Tensor,
) -> OpResult<ValueId> {
    let op = Lookup {
        keys,
        values,
        default,
    };
    Ok(g.one(Op::Host(HostOp::Lookup(op)), &[x])?)
}

/// What is done to the scores of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Post {
    None,
    Softmax,
    Logistic,
    /// A softmax in which zeros stay zeros.
    SoftmaxZero,
    Probit,
}

impl Post {
    fn read(cx: &NodeCx<'_, '_>) -> OpResult<Post> {
        Ok(match cx.text_or("post_transform", "NONE")?.as_str() {
            "NONE" => Post::None,
            "SOFTMAX" => Post::Softmax,
            "LOGISTIC" => Post::Logistic,
            "SOFTMAX_ZERO" => Post::SoftmaxZero,
            "PROBIT" => Post::Probit,
            other => return invalid(format!("post_transform '{other}' does not exist")),
        })
    }

    /// Scores `[rows, classes]` transformed.
    fn apply(self, m: &mut Math<'_>, scores: ValueId) -> OpResult<ValueId> {
        let softmax = || cupola_ir::composite::Softmax {
            axis: 1,
            log: false,
        };
        match self {
            Post::None => Ok(scores),
            Post::Logistic => m.unary(Scalar::Sigmoid, scores),
            Post::Softmax => Ok(m.g.one(Op::Composite(softmax().into()), &[scores])?),
            Post::SoftmaxZero => {
                // Elements this near to zero count as zero.
                const SMALL: f64 = 1e-7;
                let size = m.unary(Scalar::Abs, scores)?;
                let there = m.lt(SMALL, size)?;
                let max =
                    m.g.reduce_keep(cupola_ir::ops::ReduceKind::Max, scores, &[1])?;
                let e = m.sub(scores, max)?;
                let e = m.unary(Scalar::Exp, e)?;
                let minus = m.unary(Scalar::Neg, max)?;
                let factor = m.unary(Scalar::Exp, minus)?;
                let rest = m.mul(scores, factor)?;
                let e = m.select(there, e, rest)?;
                let sum = m.g.reduce_keep(cupola_ir::ops::ReduceKind::Sum, e, &[1])?;
                let none = m.eq(sum, 0.0)?;
                let y = m.div(e, sum)?;
                m.select(none, 0.5, y)
            }
            Post::Probit => probit(m, scores),
        }
    }

    /// The scores of two classes for one score, that of the second class: a probability, or else a margin around 0.
    /// Only the logistic function and the probit are applied to them.
    fn of_one(self, m: &mut Math<'_>, score: ValueId, probability: bool) -> OpResult<ValueId> {
        if self == Post::Probit {
            return probit(m, score);
        }
        let first = match probability && self != Post::Logistic {
            true => m.sub(1.0, score)?,
            false => m.unary(Scalar::Neg, score)?,
        };
        let both = m.g.concat(&[first, score], 1)?;
        match self {
            Post::Logistic => self.apply(m, both),
            _ => Ok(both),
        }
    }
}

/// The inverse of the normal distribution function by Winitzki's approximation of the inverse error function, which
/// the standard's definition of this transform uses.
fn probit(m: &mut Math<'_>, x: ValueId) -> OpResult<ValueId> {
    const A: f64 = 0.147;
    let x = m.mul(x, 2.0)?;
    let x = m.sub(x, 1.0)?;
    let square = m.mul(x, x)?;
    let rest = m.sub(1.0, square)?;
    let log = m.unary(Scalar::Log, rest)?;
    let half = m.mul(log, 0.5)?;
    let v = m.add(half, 2.0 / (std::f64::consts::PI * A))?;
    let v2 = m.mul(log, 1.0 / A)?;
    let squared = m.mul(v, v)?;
    let root = m.sub(squared, v2)?;
    let root = m.unary(Scalar::Sqrt, root)?;
    let root = m.sub(root, v)?;
    let root = m.unary(Scalar::Sqrt, root)?;
    let negative = m.lt(x, 0.0)?;
    let minus = m.unary(Scalar::Neg, root)?;
    let y = m.select(negative, minus, root)?;
    let y = m.mul(y, std::f64::consts::SQRT_2)?;
    let end = m.eq(rest, 0.0)?;
    m.select(end, 0.0, y)
}

//! Sequences and optionals.
//!
//! The element type of a sequence states extents that all elements share; the others are symbols that nothing binds,
//! and become fresh ones where an element is taken out.

use cupola_ir::ops::host::{
    ConcatFromSequence, MakeOptional, OptionalGet, OptionalHas, SequenceAt, SequenceConstruct,
    SequenceErase, SequenceInsert, SequenceLength, SequenceRetype, SplitToSequence,
};
use cupola_ir::ops::{HostOp, Loop};
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, Sym, TensorType, ValueId, ValueType};

use super::control::Formal;
use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("SequenceConstruct", 11, construct),
    op("SequenceEmpty", 11, empty),
    op("SequenceInsert", 11, insert),
    op("SequenceErase", 11, erase),
    op("SequenceAt", 11, element_at),
    op("SequenceLength", 11, length),
    op("SplitToSequence", 11, split),
    op("ConcatFromSequence", 11, concat),
    op("SequenceMap", 17, map),
    op("Optional", 15, optional),
    op("OptionalHasElement", 15, has_element),
    op("OptionalGetElement", 15, get_element),
];

fn push(g: &mut Graph, op: impl Into<HostOp>, operands: &[ValueId]) -> OpResult {
    Ok(g.push(Op::Host(op.into()), operands)?.to_vec())
}

/// The type with a fresh symbol for every extent that is not a number; the symbols are added to `fresh`.
fn renewed(cx: &mut NodeCx<'_, '_>, ty: &ValueType, fresh: &mut Vec<Sym>) -> ValueType {
    match ty {
        ValueType::Tensor(t) => {
            let mut dims = t.dims.clone();
            for d in &mut dims {
                if d.as_const().is_none() {
                    let sym = cx.fresh_sym("element");
                    *d = Dim::from(&sym);
                    fresh.push(sym);
                }
            }
            TensorType {
                dtype: t.dtype,
                dims,
            }
            .into()
        }
        ValueType::Sequence(t) => {
            // Nothing binds the extents of elements.
            ValueType::Sequence(Box::new(renewed(cx, t, &mut vec![])))
        }
        ValueType::Optional(t) => ValueType::Optional(Box::new(renewed(cx, t, fresh))),
    }
}

/// A type that both fit: extents that differ become symbols. `None` when they differ in more.
fn common(cx: &mut NodeCx<'_, '_>, a: &ValueType, b: &ValueType) -> Option<ValueType> {
    Some(match (a, b) {
        (ValueType::Tensor(x), ValueType::Tensor(y)) => {
            if x.dtype != y.dtype || x.rank() != y.rank() {
                return None;
            }
            let pairs = x.dims.iter().zip(&y.dims);
            let dims = pairs
                .map(|(m, n)| match m == n {
                    true => m.clone(),
                    false => Dim::from(&cx.fresh_sym("element")),
                })
                .collect();
            TensorType {
                dtype: x.dtype,
                dims,
            }
            .into()
        }
        (ValueType::Sequence(x), ValueType::Sequence(y)) => {
            ValueType::Sequence(Box::new(common(cx, x, y)?))
        }
        (ValueType::Optional(x), ValueType::Optional(y)) => {
            ValueType::Optional(Box::new(common(cx, x, y)?))
        }
        _ => return None,
    })
}

/// The type of a carried sequence whose elements turn out to have another rank after an iteration: it is empty before
/// the first.
pub(super) fn widened(
    cx: &mut NodeCx<'_, '_>,
    before: &ValueType,
    after: &ValueType,
    fresh: &mut Vec<Sym>,
) -> Option<ValueType> {
    let (ValueType::Sequence(a), ValueType::Sequence(b)) = (before, after) else {
        return None;
    };
    let same = a.as_tensor()?.dtype == b.as_tensor()?.dtype;
    let element = same.then(|| renewed(cx, b, fresh))?;
    Some(ValueType::Sequence(Box::new(element)))
}

/// A sequence under the type that it is used with.
pub(super) fn retyped(g: &mut Graph, v: ValueId, ty: &ValueType) -> OpResult<ValueId> {
    let rank = |t: &ValueType| match t {
        ValueType::Sequence(e) => e.as_tensor().map(TensorType::rank),
        ValueType::Tensor(_) | ValueType::Optional(_) => None,
    };
    if rank(g.ty(v)) == rank(ty) {
        return Ok(v);
    }
    Ok(push(g, SequenceRetype { ty: ty.clone() }, &[v])?[0])
}

/// The element type of a sequence operand.
fn element(cx: &NodeCx<'_, '_>, v: ValueId) -> OpResult<ValueType> {
    match cx.g.ty(v) {
        ValueType::Sequence(e) => Ok((**e).clone()),
        other => invalid(format!("{other} where a sequence is needed")),
    }
}

fn sequence_of(element: ValueType) -> ValueType {
    ValueType::Sequence(Box::new(element))
}

fn construct(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let all = cx.inputs_from(0)?;
    let Some(first) = all.first() else {
        return invalid("takes at least one value");
    };
    let mut ty = cx.g.ty(*first).clone();
    for v in &all[1..] {
        let other = cx.g.ty(*v).clone();
        ty = match common(cx, &ty, &other) {
            Some(t) => t,
            None => return invalid(format!("{ty} and {other} in one sequence")),
        };
    }
    push(
        cx.g,
        SequenceConstruct {
            ty: sequence_of(ty),
        },
        &all,
    )
}

fn empty(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(DType::F32);
    let ty = sequence_of(TensorType::scalar(dtype).into());
    push(cx.g, SequenceConstruct { ty }, &[])
}

/// The position operand as a scalar.
fn position(cx: &mut NodeCx<'_, '_>, index: usize) -> OpResult<Option<ValueId>> {
    Ok(match cx.optional(index) {
        Some(p) if cx.g.dtype(p).is_int() => Some(cx.g.reshape(p, &[])?),
        Some(p) => return cx.bad_type(p),
        None => None,
    })
}

fn insert(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (sequence, value) = (cx.input(0)?, cx.input(1)?);
    let at = position(cx, 2)?;
    let (old, new) = (element(cx, sequence)?, cx.g.ty(value).clone());
    let joined = match (common(cx, &old, &new), &old, &new) {
        (Some(t), _, _) => t,
        // Elements of another rank: the sequence is empty, or the run fails.
        (None, ValueType::Tensor(a), ValueType::Tensor(b)) if a.dtype == b.dtype => new.clone(),
        _ => return invalid(format!("{new} into a sequence of {old}")),
    };
    let ty = sequence_of(joined);
    let sequence = retyped(cx.g, sequence, &ty)?;
    let operands: Vec<ValueId> = [sequence, value].into_iter().chain(at).collect();
    push(cx.g, SequenceInsert { ty }, &operands)
}

fn erase(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let sequence = cx.input(0)?;
    element(cx, sequence)?;
    let at = position(cx, 1)?;
    let operands: Vec<ValueId> = [sequence].into_iter().chain(at).collect();
    push(cx.g, SequenceErase {}, &operands)
}

fn element_at(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let sequence = cx.input(0)?;
    let e = element(cx, sequence)?;
    let Some(at) = position(cx, 1)? else {
        return invalid("operand 1 is missing");
    };
    let mut binds = vec![];
    let ty = renewed(cx, &e, &mut binds);
    push(cx.g, SequenceAt { ty, binds }, &[sequence, at])
}

fn length(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let sequence = cx.input(0)?;
    element(cx, sequence)?;
    push(cx.g, SequenceLength {}, &[sequence])
}

fn split(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axis = cx.int_or("axis", 0)?;
    let axis = cx.axis(axis, ty.rank())?;
    let keep = cx.flag("keepdims", true)?;
    let mut e = ty.clone();
    let mut operands = vec![x];
    match cx.optional(1) {
        Some(split) => {
            let rank = cx.g.rank(split);
            if rank > 1 || !cx.g.dtype(split).is_int() {
                return cx.bad_type(split);
            }
            operands.push(split);
            e.dims[axis] = Dim::from(&cx.fresh_sym("element"));
        }
        None if keep => e.dims[axis] = Dim::ONE,
        None => {
            e.dims.remove(axis);
        }
    }
    let ty = sequence_of(e.into());
    push(cx.g, SplitToSequence { axis, keep, ty }, &operands)
}

fn concat(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let sequence = cx.input(0)?;
    let ValueType::Tensor(mut e) = element(cx, sequence)? else {
        return cx.bad_type(sequence);
    };
    let stack = cx.flag("new_axis", false)?;
    let axis = cx.required_int("axis")?;
    let axis = cx.axis(axis, e.rank() + usize::from(stack))?;
    let joined = Dim::from(&cx.fresh_sym("joined"));
    match stack {
        true => e.dims.insert(axis, joined),
        false => e.dims[axis] = joined,
    }
    let mut binds = vec![];
    let ty = renewed(cx, &e.into(), &mut binds);
    let op = ConcatFromSequence {
        axis,
        stack,
        ty,
        binds,
    };
    push(cx.g, op, &[sequence])
}

/// A loop over the first sequence: the body on the elements at each position, its results appended to sequences.
fn map(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let body = cx.graph_attr("body")?;
    let inputs = cx.inputs_from(0)?;
    let Some(first) = inputs.first() else {
        return invalid("takes at least one sequence");
    };
    let count = push(cx.g, SequenceLength {}, &[*first])?[0];
    let captures = cx.captures(&[body])?;
    let mut elements = vec![];
    for v in &inputs {
        let ty = cx.g.ty(*v).clone();
        let mut binds = vec![];
        elements.push(match &ty {
            ValueType::Sequence(e) => (renewed(cx, e, &mut binds), Some(binds)),
            ValueType::Tensor(_) => (ty, None),
            ValueType::Optional(_) => return invalid(format!("takes sequences, not {ty}")),
        });
    }
    let formals = elements.iter().map(|(t, _)| Formal::Input(t.clone()));
    let region = cx.region(body, formals.collect(), &captures)?.graph;
    let results: Vec<ValueType> = region
        .output_types()
        .iter()
        .map(|t| sequence_of(renewed(cx, t, &mut vec![])))
        .collect();
    let n = results.len();
    // The loop's body: an element of each sequence, the given body, one more element of each result.
    let mut b = Graph::new("map");
    let at = b.input("at", TensorType::scalar(DType::I64))?;
    let mut grown = vec![];
    for (i, ty) in results.iter().enumerate() {
        grown.push(b.input(&format!("result{i}"), ty.clone())?);
    }
    let given: Vec<ValueId> = inputs
        .iter()
        .copied()
        .chain(captures.iter().map(|(_, v)| *v))
        .collect();
    let mut operands = vec![];
    for (i, v) in given.iter().enumerate() {
        let whole = b.input(&format!("given{i}"), cx.g.ty(*v).clone())?;
        operands.push(match elements.get(i) {
            Some((ty, Some(binds))) => {
                let op = SequenceAt {
                    ty: ty.clone(),
                    binds: binds.clone(),
                };
                push(&mut b, op, &[whole, at])?[0]
            }
            _ => whole,
        });
    }
    let made = b.inline(&region, &operands)?;
    let always = b.number(1.0, DType::Bool)?;
    b.output("condition", always);
    for (i, ((old, new), ty)) in grown.iter().zip(&made).zip(&results).enumerate() {
        let all = push(&mut b, SequenceInsert { ty: ty.clone() }, &[*old, *new])?[0];
        b.output(&format!("result{i}"), all);
    }
    let condition = cx.g.number(1.0, DType::Bool)?;
    let mut operands = vec![count, condition];
    for ty in &results {
        operands.extend(push(cx.g, SequenceConstruct { ty: ty.clone() }, &[])?);
    }
    operands.extend(given);
    let op = Loop {
        body: b,
        carried: n,
        results,
        binds: vec![],
    };
    Ok(cx.g.push(CoreOp::Loop(op), &operands)?.to_vec())
}

fn optional(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let value = cx.optional(0);
    let mut binds = vec![];
    let inner = match (value, cx.type_attr("type")?) {
        (Some(v), _) => cx.g.ty(v).clone(),
        (None, Some(ty)) => match cx.declared(ty, "element")? {
            Some(t) => renewed(cx, &t, &mut binds),
            None => return invalid("the type of an empty optional lacks a shape"),
        },
        (None, None) => return invalid("needs a value or a type"),
    };
    let ty = ValueType::Optional(Box::new(inner));
    let operands: Vec<ValueId> = value.into_iter().collect();
    push(cx.g, MakeOptional { ty, binds }, &operands)
}

fn has_element(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let has = match cx.optional(0) {
        Some(v) if matches!(cx.g.ty(v), ValueType::Optional(_)) => {
            return push(cx.g, OptionalHas {}, &[v]);
        }
        Some(_) => 1.0,
        None => 0.0,
    };
    Ok(vec![cx.g.number(has, DType::Bool)?])
}

fn get_element(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let v = cx.input(0)?;
    let ValueType::Optional(inner) = cx.g.ty(v).clone() else {
        return Ok(vec![v]);
    };
    let mut binds = vec![];
    let ty = renewed(cx, &inner, &mut binds);
    push(cx.g, OptionalGet { ty, binds }, &[v])
}

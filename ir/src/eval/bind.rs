//! Symbols from actual extents.

use super::Env;
use crate::dim::{Atom, Bindings, Dim};
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::graph::Graph;
use crate::ops::{CoreOp, Op};
use crate::tensor::Value;
use crate::tensor_type::{TensorType, ValueType};

/// Binds the free symbols of `dims` from the extents of an actual tensor and checks the others: an extent that is a
/// symbol, or linear in one unbound symbol, binds it. An extent with several unbound symbols is left alone.
///
/// # Errors
/// The first axis whose extent contradicts, in words.
pub fn bind_extents(dims: &[Dim], shape: &[usize], bindings: &mut Bindings) -> Result<(), String> {
    if dims.len() != shape.len() {
        return Err(format!("it has {} axes, not {}", shape.len(), dims.len()));
    }
    // Plain symbols first: they may occur in the expressions of earlier axes.
    for (d, n) in dims.iter().zip(shape) {
        if let Some(s) = d.as_sym()
            && bindings.get(s).is_none()
        {
            bindings.set(s.clone(), *n as i64);
        }
    }
    for (axis, (d, n)) in dims.iter().zip(shape).enumerate() {
        let n = *n as i64;
        match d.eval(bindings) {
            Some(want) if want != n => {
                let known = match d.as_const() {
                    Some(_) => String::new(),
                    None => format!(" = {d}"),
                };
                return Err(format!(
                    "axis {axis} has extent {n} instead of {want}{known}"
                ));
            }
            Some(_) => {}
            None => solve(d, n, bindings)
                .ok_or_else(|| format!("axis {axis} has extent {n}, which is no value of {d}"))?,
        }
    }
    Ok(())
}

/// Binds the one unbound symbol of a linear expression; `None` when no value of it gives `n`.
fn solve(dim: &Dim, n: i64, bindings: &mut Bindings) -> Option<()> {
    let (mut unknown, mut rest) = (None, Dim::ZERO);
    for term in dim.terms() {
        let (mut coef, mut sym) = (Dim::Const(term.coef), None);
        for factor in &term.factors {
            match factor {
                Atom::Sym(s) if bindings.get(s).is_none() => {
                    if sym.replace(s.clone()).is_some() {
                        return Some(());
                    }
                }
                Atom::Sym(s) => coef = coef * Dim::Const(bindings.get(s)?),
                Atom::FloorDiv(..) | Atom::Min(..) | Atom::Max(..) | Atom::Broadcast(..) => {
                    let mut free = false;
                    factor.for_each_sym(&mut |s| free |= bindings.get(s).is_none());
                    if free {
                        return Some(());
                    }
                    coef = coef * Dim::Const(factor.eval(bindings)?);
                }
            }
        }
        match (sym, &unknown) {
            (None, _) => rest = rest + coef,
            (Some(s), None) => unknown = Some((s, coef.as_const()?)),
            (Some(_), Some(_)) => return Some(()),
        }
    }
    let (sym, coef) = unknown?;
    let left = n.checked_sub(rest.as_const()?)?;
    if coef == 0 || left.checked_rem(coef)? != 0 {
        return None;
    }
    bindings.set(sym, left / coef);
    Some(())
}

/// Binds the free symbols of a tensor type from what a tensor has.
///
/// # Errors
/// What contradicts, in words.
pub fn bind_tensor(
    ty: &TensorType,
    dtype: DType,
    shape: &[usize],
    bindings: &mut Bindings,
) -> Result<(), String> {
    if ty.dtype != dtype {
        return Err(format!("it has elements of {dtype}"));
    }
    bind_extents(&ty.dims, shape, bindings)
}

/// Binds the free symbols of a type from a value and checks the rest. Extents of elements of a sequence are free.
///
/// # Errors
/// What contradicts, in words.
pub fn bind_value(ty: &ValueType, value: &Value, bindings: &mut Bindings) -> Result<(), String> {
    match (ty, value) {
        (ValueType::Tensor(t), Value::Tensor(v)) => bind_tensor(t, v.dtype(), v.shape(), bindings),
        (ValueType::Optional(t), Value::Optional(Some(v))) => bind_value(t, v, bindings),
        _ if value.fits(ty) => Ok(()),
        _ => Err("it is another kind of value".into()),
    }
}

/// A value's type, for messages.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Tensor(t) => t.ty().to_string(),
        Value::Sequence(v) => format!("a sequence of {}", v.len()),
        Value::Optional(None) => "an empty optional".into(),
        Value::Optional(Some(v)) => format!("an optional of {}", describe(v)),
    }
}

fn contradiction(place: String, ty: &ValueType, value: &Value, why: String) -> IrError {
    IrError::run(
        place,
        format!("expected {ty}, got {}: {why}", describe(value)),
    )
}

/// Binds the symbols of a graph's inputs, weights and states anew.
pub(super) fn enter(graph: &Graph, inputs: &[Value], env: &mut Env) -> Result<()> {
    if inputs.len() != graph.inputs().len() {
        return Err(IrError::run(
            format!("graph '{}'", graph.name),
            format!(
                "takes {} inputs, not {}",
                graph.inputs().len(),
                inputs.len()
            ),
        ));
    }
    for (_, node) in graph.nodes() {
        if let Op::Core(CoreOp::Input(_) | CoreOp::Param(_) | CoreOp::ReadState(_)) = &node.op {
            for r in &node.results {
                graph.ty(*r).for_each_dim(&mut |d| {
                    d.for_each_sym(&mut |s| env.bindings.remove(s));
                });
            }
        }
    }
    for (v, value) in graph.inputs().iter().zip(inputs) {
        let ty = graph.ty(*v);
        bind_value(ty, value, &mut env.bindings).map_err(|why| {
            contradiction(format!("input '{}'", graph.input_name(*v)), ty, value, why)
        })?;
    }
    for (_, node) in graph.nodes() {
        let (place, ty, value) = match &node.op {
            Op::Core(CoreOp::Param(p)) => {
                let place = format!("weight '{}'", p.name);
                let given = env.params.get(&p.name).cloned().map(Value::Tensor);
                (place, &p.ty, given)
            }
            Op::Core(CoreOp::ReadState(p)) => {
                let place = format!("state '{}'", p.slot);
                (place, &p.ty, env.states.get(&p.slot).cloned())
            }
            _ => continue,
        };
        let value = value.ok_or_else(|| IrError::run(place.clone(), "is not given"))?;
        bind_value(ty, &value, &mut env.bindings)
            .map_err(|why| contradiction(place, ty, &value, why))?;
    }
    check_ranges(graph, &env.bindings)
}

fn check_ranges(graph: &Graph, bindings: &Bindings) -> Result<()> {
    for (sym, range) in &graph.ranges {
        let Some(v) = bindings.get(sym) else { continue };
        if v < range.min || v > range.max || (range.multiple > 1 && v % range.multiple != 0) {
            let multiple = match range.multiple {
                ..=1 => String::new(),
                m => format!(" and a multiple of {m}"),
            };
            return Err(IrError::run(
                format!("size {sym}"),
                format!(
                    "is {v}, must be in {} to {}{multiple}",
                    range.min, range.max
                ),
            ));
        }
    }
    Ok(())
}

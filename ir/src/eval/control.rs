//! Ops that hold regions.

use super::bind::describe;
use super::{Env, region, view};
use crate::dim::Dim;
use crate::error::{IrError, Result};
use crate::graph::Graph;
use crate::ops::{Call, Concat, CoreOp, If, Loop, Scan, Slice};
use crate::tensor::{Tensor, Value};
use crate::tensor_type::ValueType;
use bytes::Bytes;

/// Evaluates an op of the control class.
pub(super) fn eval(
    op: &CoreOp,
    operands: &[&Value],
    results: &[ValueType],
    env: &mut Env,
) -> Result<Vec<Value>> {
    let own = |vs: &[&Value]| vs.iter().map(|v| (*v).clone()).collect::<Vec<Value>>();
    match op {
        CoreOp::If(If {
            then_branch,
            else_branch,
            ..
        }) => {
            let (condition, captures) = operands
                .split_first()
                .ok_or_else(|| IrError::run("if", "takes a condition"))?;
            let branch = if flag("if", condition)? {
                then_branch
            } else {
                else_branch
            };
            region(branch, &own(captures), env)
        }
        CoreOp::Call(Call { body, .. }) => region(body, &own(operands), env),
        CoreOp::Loop(p) => repeat(p, &own(operands), results, env),
        CoreOp::Scan(p) => scan(p, &own(operands), results, env),
        other => unreachable!("bug: {} holds no region", other.name()),
    }
}

/// A bool scalar.
fn flag(op: &str, value: &Value) -> Result<bool> {
    match value.as_tensor().map(Tensor::bytes) {
        Some([b]) => Ok(*b != 0),
        _ => Err(IrError::run(
            op,
            format!("the condition is {}", describe(value)),
        )),
    }
}

fn check_trips(op: &str, trips: u64, env: &Env) -> Result<()> {
    if trips > env.limits.trips {
        return Err(IrError::Limit(format!(
            "{op}: {} iterations",
            env.limits.trips
        )));
    }
    Ok(())
}

/// The carried values and the values to be stacked out of what an iteration gave.
fn keep(
    op: &str,
    mut outs: Vec<Value>,
    carried: &mut Vec<Value>,
    stacks: &mut [Vec<Value>],
) -> Result<()> {
    if outs.len() != carried.len() + stacks.len() {
        return Err(IrError::run(
            op,
            format!("the body gives {} values", outs.len()),
        ));
    }
    let stacked = outs.split_off(carried.len());
    *carried = outs;
    for (stack, value) in stacks.iter_mut().zip(stacked) {
        stack.push(value);
    }
    Ok(())
}

fn repeat(
    p: &Loop,
    operands: &[Value],
    results: &[ValueType],
    env: &mut Env,
) -> Result<Vec<Value>> {
    let [trips, condition, rest @ ..] = operands else {
        return Err(IrError::run("loop", "takes a trip count and a condition"));
    };
    let trips = trips.as_tensor().and_then(Tensor::to_i64s);
    let trips = *trips
        .as_deref()
        .and_then(<[i64]>::first)
        .ok_or_else(|| IrError::run("loop", "the trip count is no number"))?;
    let stacks = results.len().checked_sub(p.carried);
    let (Some(stacks), true) = (stacks, rest.len() >= p.carried) else {
        return Err(IrError::run("loop", "too few values are given"));
    };
    let mut go = flag("loop", condition)?;
    let (carried, captures) = rest.split_at(p.carried);
    let (mut carried, mut stacks) = (carried.to_vec(), vec![vec![]; stacks]);
    let mut done = 0u64;
    while go && (trips < 0 || done < trips as u64) {
        check_trips("loop", done + 1, env)?;
        let mut inputs = vec![Tensor::scalar(done as i64).into()];
        inputs.extend(carried.iter().chain(captures).cloned());
        let mut outs = region(&p.body, &inputs, env)?;
        if outs.is_empty() {
            return Err(IrError::run("loop", "the body gives no condition"));
        }
        go = flag("loop", &outs.remove(0))?;
        keep("loop", outs, &mut carried, &mut stacks)?;
        done += 1;
    }
    finish("loop", &p.body, carried, stacks, &results[p.carried..], env)
}

fn scan(p: &Scan, operands: &[Value], results: &[ValueType], env: &mut Env) -> Result<Vec<Value>> {
    let stacks = results.len().checked_sub(p.carried);
    let (Some(stacks), true) = (stacks, operands.len() >= p.carried + p.scanned) else {
        return Err(IrError::run("scan", "too few values are given"));
    };
    let (carried, rest) = operands.split_at(p.carried);
    let (scanned, captures) = rest.split_at(p.scanned);
    let scanned: Option<Vec<&Tensor>> = scanned.iter().map(Value::as_tensor).collect();
    let scanned = scanned.ok_or_else(|| IrError::run("scan", "scans tensors only"))?;
    let extents: Option<Vec<usize>> = scanned.iter().map(|t| t.shape().first().copied()).collect();
    let extents = extents.ok_or_else(|| IrError::run("scan", "a scalar has no axis to scan"))?;
    let trips = extents.first().copied().unwrap_or(0);
    if extents.iter().any(|n| *n != trips) {
        return Err(IrError::run(
            "scan",
            format!("the scanned extents {extents:?} differ"),
        ));
    }
    check_trips("scan", trips as u64, env)?;
    let (mut carried, mut stacks) = (carried.to_vec(), vec![vec![]; stacks]);
    for i in 0..trips {
        let mut inputs = carried.clone();
        for t in &scanned {
            inputs.push(row(t, i).map_err(|e| IrError::run("scan", e))?.into());
        }
        inputs.extend_from_slice(captures);
        let outs = region(&p.body, &inputs, env)?;
        keep("scan", outs, &mut carried, &mut stacks)?;
    }
    finish("scan", &p.body, carried, stacks, &results[p.carried..], env)
}

/// The elements at index `i` of axis 0, which vanishes.
fn row(t: &Tensor, i: usize) -> Result<Tensor, String> {
    let shape = t.shape();
    let mut starts = vec![Dim::ZERO; shape.len()];
    starts[0] = Dim::from(i);
    let mut dims: Vec<Dim> = shape.iter().map(|n| Dim::from(*n)).collect();
    dims[0] = Dim::ONE;
    let steps = vec![1; shape.len()];
    let one = view::slice(
        &Slice {
            starts,
            steps,
            dims,
        },
        t,
    )?;
    one.reshaped(shape[1..].to_vec())
        .ok_or_else(|| "bad extents".into())
}

/// The results: carried values and stacks.
fn finish(
    op: &str,
    body: &Graph,
    carried: Vec<Value>,
    stacks: Vec<Vec<Value>>,
    types: &[ValueType],
    env: &Env,
) -> Result<Vec<Value>> {
    let mut out = carried;
    let first = body.outputs().len() - stacks.len();
    for (k, (stack, ty)) in stacks.iter().zip(types).enumerate() {
        let value = if stack.is_empty() {
            let inner = body.ty(body.outputs()[first + k].1);
            nothing(ty, inner, env)
        } else {
            join(stack, env)
        };
        out.push(value.map_err(|what| IrError::run(op, what))?.into());
    }
    Ok(out)
}

/// Equal tensors joined along a new leading axis.
fn join(stack: &[Value], env: &Env) -> Result<Tensor, String> {
    let tensors: Option<Vec<&Tensor>> = stack.iter().map(Value::as_tensor).collect();
    let tensors = tensors.ok_or("only tensors can be stacked")?;
    let first = tensors[0];
    let total = stack.len().checked_mul(first.bytes().len());
    if total.is_none_or(|n| n > env.limits.tensor_size) {
        return Err(format!(
            "{} values of {} are too large",
            stack.len(),
            first.ty()
        ));
    }
    let shape = [&[1], first.shape()].concat();
    let mut lifted = vec![];
    for t in tensors {
        if t.shape() != first.shape() || t.dtype() != first.dtype() {
            return Err(format!("iterations give {} and {}", first.ty(), t.ty()));
        }
        lifted.push(t.reshaped(shape.clone()).ok_or("bad extents")?);
    }
    view::concat(&Concat { axis: 0 }, &lifted.iter().collect::<Vec<_>>())
}

/// A stack of no iterations; extents that nothing decides are 0.
fn nothing(ty: &ValueType, inner: &ValueType, env: &Env) -> Result<Tensor, String> {
    let (Some(ty), Some(inner)) = (ty.as_tensor(), inner.as_tensor()) else {
        return Err("only tensors can be stacked".into());
    };
    let known = |d: &Dim| d.eval(&env.bindings).and_then(|n| usize::try_from(n).ok());
    let mut shape = vec![0];
    for (axis, d) in inner.dims.iter().enumerate() {
        let outside = ty.dims.get(axis + 1).and_then(known);
        shape.push(
            outside
                .or_else(|| d.as_const().and_then(|n| usize::try_from(n).ok()))
                .unwrap_or(0),
        );
    }
    match ty.dtype {
        crate::DType::String => Tensor::from_strings(shape, vec![]),
        dtype => Tensor::new(dtype, shape, Bytes::new()),
    }
    .ok_or_else(|| "bad extents".into())
}

//! One node: checks, dispatch, binding of symbols from results.

use super::bind::{bind_value, describe};
use super::view::{bytes_needed, extents};
use super::{Env, control, index, product, random, reduce, scalar, view};
use crate::convert;
use crate::dim::Dim;
use crate::error::{IrError, Result};
use crate::ops::{CoreOp, Map, Op, OpClass};
use crate::scalar::Scalar;
use crate::tensor::{Tensor, Value};
use crate::tensor_type::ValueType;
use bytes::Bytes;
use std::borrow::Cow;

/// Evaluates one node on actual operands. `results` are the node's result types: symbols that the op binds are bound
/// in `env.bindings` from the actual results, the others must agree. An `input` has no value here.
///
/// # Errors
/// [`IrError::Run`] for operands that the op does not allow, unbound symbols, indices outside and divisions by zero;
/// [`IrError::Limit`] for results that are too large.
pub fn eval_op(
    op: &Op,
    operands: &[&Value],
    results: &[ValueType],
    env: &mut Env,
) -> Result<Vec<Value>> {
    let named = |what: String| IrError::run(op.name(), what);
    let op = &*concrete(op, env)?;
    let out = match op {
        Op::Core(core) if op.class() == OpClass::Control => {
            control::eval(core, operands, results, env)?
        }
        Op::Core(core) => {
            check(op, operands, env)?;
            core_op(core, operands, env)?
        }
        Op::Host(host) => host.def().eval(operands).map_err(named)?,
        Op::Composite(composite) => {
            let types = check(op, operands, env)?;
            match composite.def().eval(operands) {
                Some(own) => own.map_err(named)?,
                None => {
                    let types: Vec<&ValueType> = types.iter().collect();
                    let (graph, _) = composite.expand(&types)?;
                    let operands: Vec<Value> = operands.iter().map(|v| (*v).clone()).collect();
                    super::region(&graph, &operands, env)?
                }
            }
        }
    };
    if out.len() != results.len() {
        return Err(named(format!(
            "gives {} results, not {}",
            out.len(),
            results.len()
        )));
    }
    for sym in op.binds() {
        if !matches!(op, Op::Core(CoreOp::BindDim(_))) {
            env.bindings.remove(&sym);
        }
    }
    for (ty, value) in results.iter().zip(&out) {
        bind_value(ty, value, &mut env.bindings).map_err(|why| {
            named(format!(
                "gives {} where its type is {ty}: {why}",
                describe(value)
            ))
        })?;
    }
    Ok(out)
}

/// The op with every dimension among its attributes evaluated.
fn concrete<'a>(op: &'a Op, env: &Env) -> Result<Cow<'a, Op>> {
    use CoreOp::*;
    if let Op::Host(_) = op {
        return Ok(Cow::Borrowed(op));
    }
    if let Op::Core(
        Input(_) | Param(_) | Const(_) | Map(_) | Cast(_) | Bitcast(_) | Permute(_) | Concat(_)
        | Reduce(_) | ArgReduce(_) | Contract(_) | Gather(_) | Scatter(_) | Sort(_) | If(_)
        | Loop(_) | Scan(_) | Call(_) | ReadState(_) | WriteState(_) | Collective(_) | Transfer(_)
        | BindDim(_),
    ) = op
    {
        return Ok(Cow::Borrowed(op));
    }
    let (mut symbolic, mut unbound) = (false, None);
    op.for_each_dim(&mut |d: &Dim| {
        if d.as_const().is_none() {
            symbolic = true;
            if d.eval(&env.bindings).is_none() {
                unbound = Some(d.clone());
            }
        }
    });
    match unbound {
        Some(d) => Err(IrError::run(
            op.name(),
            format!("{d} has no value: a symbol is not bound, or the value overflows"),
        )),
        None if !symbolic => Ok(Cow::Borrowed(op)),
        None => Ok(Cow::Owned(op.map_dims(&|d| {
            d.eval(&env.bindings).map_or_else(|| d.clone(), Dim::Const)
        }))),
    }
}

/// Holds the actual operands against the op's contract and the sizes of its results against the limits; gives the
/// operand types.
fn check(op: &Op, operands: &[&Value], env: &Env) -> Result<Vec<ValueType>> {
    // These take values of any kind, whose type the graph declares.
    if let Op::Core(CoreOp::ReadState(_) | CoreOp::WriteState(_) | CoreOp::Param(_)) = op {
        return Ok(vec![]);
    }
    let named = |what: String| IrError::run(op.name(), what);
    let types = operands.iter().map(|v| match v {
        Value::Tensor(t) => Ok(ValueType::from(t.ty())),
        other => Err(named(format!("{} is no tensor", describe(other)))),
    });
    let types: Vec<ValueType> = types.collect::<Result<_>>()?;
    let results = op.infer(&types.iter().collect::<Vec<_>>()).map_err(named)?;
    for ty in results.iter().filter_map(ValueType::as_tensor) {
        let shape = extents(&ty.dims).map_err(named)?;
        if bytes_needed(ty.dtype, &shape).is_none_or(|n| n > env.limits.tensor_size) {
            return Err(IrError::Limit(format!(
                "{}: a result of type {ty}",
                op.name()
            )));
        }
    }
    Ok(types)
}

fn core_op(op: &CoreOp, operands: &[&Value], env: &mut Env) -> Result<Vec<Value>> {
    let named = |what: String| IrError::run(op.name(), what);
    let missing = |kind: &str, name: &str| IrError::run(format!("{kind} '{name}'"), "is not given");
    match op {
        CoreOp::Param(p) => {
            let value = env.params.get(&p.name).cloned();
            return Ok(vec![
                value.ok_or_else(|| missing("weight", &p.name))?.into(),
            ]);
        }
        CoreOp::ReadState(p) => {
            let value = env.states.get(&p.slot).cloned();
            return Ok(vec![value.ok_or_else(|| missing("state", &p.slot))?]);
        }
        CoreOp::WriteState(p) => {
            let [x] = operands else {
                return Err(named("takes 1 operand".into()));
            };
            env.written.insert(p.slot.clone(), (*x).clone());
            return Ok(vec![(*x).clone()]);
        }
        _ => {}
    }
    let xs: Option<Vec<&Tensor>> = operands.iter().map(|v| v.as_tensor()).collect();
    let xs = xs.ok_or_else(|| named("takes tensors".into()))?;
    if let CoreOp::BindDim(p) = op {
        let value = xs[0]
            .to_i64s()
            .and_then(|v| v.first().copied())
            .unwrap_or(0);
        if value < p.min {
            return Err(named(format!(
                "{} is {value}, must be at least {}",
                p.sym, p.min
            )));
        }
        env.bindings.set(p.sym.clone(), value);
    }
    if let CoreOp::Collective(p) = op {
        let all = match &env.exchange {
            _ if p.replicas <= 1 => xs.into_iter().cloned().collect(),
            Some(exchange) => (exchange.0)(p, &xs).map_err(named)?,
            None => {
                let what = format!("takes {} replicas, and this run has no others", p.replicas);
                return Err(named(what));
            }
        };
        return Ok(all.into_iter().map(Value::Tensor).collect());
    }
    if let CoreOp::Sort(p) = op {
        let [values, indices] = reduce::sort(p, xs[0]).map_err(named)?;
        return Ok(vec![values.into(), indices.into()]);
    }
    let one = tensor_op(op, &xs, env).map_err(named)?;
    Ok(vec![one.into()])
}

/// Ops of tensors with one result; operands fit the op.
fn tensor_op(op: &CoreOp, xs: &[&Tensor], env: &Env) -> Result<Tensor, String> {
    use CoreOp::*;
    Ok(match op {
        Const(p) => p.value.clone(),
        Iota(p) => reduce::iota(p.dtype, &extents(&p.dims)?, p.axis)?,
        Dims(p) => {
            let values = p.dims.iter().map(Dim::as_const);
            Tensor::vector(
                &values
                    .collect::<Option<Vec<i64>>>()
                    .ok_or("a size is not known")?,
            )
        }
        Map(p) => map(p, xs)?,
        Cast(p) => convert::cast(xs[0], p.to, p.saturate)?,
        Bitcast(p) => {
            let bytes = xs[0].shared_bytes().ok_or("takes numbers")?;
            Tensor::new(p.to, xs[0].shape().to_vec(), bytes).ok_or("widths differ")?
        }
        Reshape(p) => view::reshape(p, xs[0])?,
        Permute(p) => view::permute(p, xs[0])?,
        Broadcast(p) => view::broadcast(p, xs[0])?,
        Slice(p) => view::slice(p, xs[0])?,
        Pad(p) => view::pad(p, xs[0], xs[1])?,
        Concat(p) => view::concat(p, xs)?,
        Window(p) => view::window(p, xs[0])?,
        Fold(p) => view::fold(p, xs[0])?,
        Reduce(p) => reduce::reduce(p, xs[0])?,
        ArgReduce(p) => reduce::arg_reduce(p, xs[0])?,
        Contract(p) => product::contract(p, xs[0], xs[1])?,
        Gather(p) => index::gather(p, xs[0], &xs[1..])?,
        Scatter(p) => index::scatter(p, xs[0], xs[1], &xs[2..])?,
        Random(p) => {
            let shape = extents(&p.dims)?;
            let len: usize = shape.iter().product();
            let bits = (0..len as u64).map(|i| random::bits(env.seed, p.stream, env.run, i));
            Tensor::from_slice(&shape, &bits.collect::<Vec<u32>>()).ok_or("bad extents")?
        }
        Transfer(_) | BindDim(_) => xs[0].clone(),
        Input(p) => return Err(format!("input '{}' has no value here", p.name)),
        Param(_) | ReadState(_) | WriteState(_) | Sort(_) | If(_) | Loop(_) | Scan(_) | Call(_)
        | Collective(_) => {
            unreachable!("bug: {} is evaluated elsewhere", op.name())
        }
    })
}

pub(super) fn map(p: &Map, xs: &[&Tensor]) -> Result<Tensor, String> {
    if p.f == Scalar::Select {
        return view::select(xs[0], xs[1], xs[2]);
    }
    let shape = xs[0].shape();
    if let (Some(a), Some(b)) = (xs[0].strings(), xs.get(1).and_then(|t| t.strings())) {
        let equal: Vec<u8> = a.iter().zip(b).map(|(a, b)| u8::from(a == b)).collect();
        let equal = Tensor::new(crate::DType::Bool, shape.to_vec(), Bytes::from(equal));
        return equal.ok_or_else(|| "bad extents".into());
    }
    let lanes: Option<Vec<_>> = xs.iter().map(|x| convert::lanes(x)).collect();
    let lanes = lanes.ok_or("takes numbers")?;
    let dtypes: Vec<_> = xs.iter().map(|x| x.dtype()).collect();
    let out = scalar::eval(p.f, dtypes[0], &lanes.iter().collect::<Vec<_>>())?;
    convert::encode(&out, p.f.infer(&dtypes)?, shape, false).ok_or_else(|| "bad result".into())
}

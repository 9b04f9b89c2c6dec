//! Ops that hold regions: which region runs how often on what. The interpreter and runtimes share this driver.

use super::bind::describe;
use super::{Env, Limits, region, view};
use crate::dim::{Bindings, Dim};
use crate::error::{IrError, Result};
use crate::graph::Graph;
use crate::ops::{Concat, CoreOp, Loop, Scan, Slice};
use crate::tensor::{Tensor, Value};
use crate::tensor_type::ValueType;
use bytes::Bytes;

/// What a loop carries: a value of the host, or a handle to one elsewhere.
pub trait Carried: Clone + From<Value> {
    /// Error of whoever runs the regions.
    type Error: From<IrError>;

    /// The value on the host.
    ///
    /// # Errors
    /// When it cannot be fetched.
    fn on_host(&self) -> Result<Value, Self::Error>;
}

impl Carried for Value {
    type Error = IrError;

    fn on_host(&self) -> Result<Value> {
        Ok(self.clone())
    }
}

/// Runs a region: number among the op's regions, inputs.
pub type CallRegion<'a, V> = dyn FnMut(usize, Vec<V>) -> Result<Vec<V>, <V as Carried>::Error> + 'a;

/// Runs an op of the control class. Carried values and captures are handed on as they are; conditions, trip counts
/// and what is sliced or stacked goes through the host.
///
/// # Errors
/// [`IrError::Run`] for operands that the op does not allow, [`IrError::Limit`] past `limits`, and errors of `call`.
pub fn run_control<V: Carried>(
    op: &CoreOp,
    operands: Vec<V>,
    results: &[ValueType],
    limits: &Limits,
    bindings: &Bindings,
    call: &mut CallRegion<'_, V>,
) -> Result<Vec<V>, V::Error> {
    let ends = Ends {
        results,
        limits,
        bindings,
    };
    match op {
        CoreOp::If(_) => {
            let (condition, captures) = operands
                .split_first()
                .ok_or_else(|| IrError::run("if", "takes a condition"))?;
            let condition = flag("if", condition)?;
            call(usize::from(!condition), captures.to_vec())
        }
        CoreOp::Call(_) => call(0, operands),
        CoreOp::Loop(p) => repeat(p, &operands, &ends, call),
        CoreOp::Scan(p) => scan(p, &operands, &ends, call),
        other => unreachable!("bug: {} holds no region", other.name()),
    }
}

/// Evaluates an op of the control class by interpreting its regions.
pub(super) fn eval(
    op: &CoreOp,
    operands: &[&Value],
    results: &[ValueType],
    env: &mut Env,
) -> Result<Vec<Value>> {
    let regions = op.regions();
    let operands = operands.iter().map(|v| (*v).clone()).collect();
    let (limits, bindings) = (env.limits, env.bindings.clone());
    run_control(
        op,
        operands,
        results,
        &limits,
        &bindings,
        &mut |at, inputs| region(regions[at], &inputs, env),
    )
}

/// What the results must be.
struct Ends<'a> {
    results: &'a [ValueType],
    limits: &'a Limits,
    bindings: &'a Bindings,
}

/// A bool scalar.
fn flag<V: Carried>(op: &str, value: &V) -> Result<bool, V::Error> {
    let value = value.on_host()?;
    match value.as_tensor().map(Tensor::bytes) {
        Some([b]) => Ok(*b != 0),
        _ => {
            let what = format!("the condition is {}", describe(&value));
            Err(IrError::run(op, what).into())
        }
    }
}

fn check_trips(op: &str, trips: u64, limits: &Limits) -> Result<()> {
    if trips > limits.trips {
        return Err(IrError::Limit(format!("{op}: {} iterations", limits.trips)));
    }
    Ok(())
}

/// Takes what an iteration gave apart: `count` carried values, then values to be stacked.
fn keep<V: Carried>(
    op: &str,
    mut outs: Vec<V>,
    count: usize,
    carried: &mut Vec<V>,
    stacks: &mut [Vec<Value>],
) -> Result<(), V::Error> {
    if outs.len() != count + stacks.len() {
        let what = format!("the body gives {} values", outs.len());
        return Err(IrError::run(op, what).into());
    }
    let stacked = outs.split_off(count);
    *carried = outs;
    for (stack, value) in stacks.iter_mut().zip(stacked) {
        stack.push(value.on_host()?);
    }
    Ok(())
}

fn repeat<V: Carried>(
    p: &Loop,
    operands: &[V],
    ends: &Ends<'_>,
    call: &mut CallRegion<'_, V>,
) -> Result<Vec<V>, V::Error> {
    let [trips, condition, rest @ ..] = operands else {
        return Err(IrError::run("loop", "takes a trip count and a condition").into());
    };
    let trips = trips.on_host()?.as_tensor().and_then(Tensor::to_i64s);
    let trips = *trips
        .as_deref()
        .and_then(<[i64]>::first)
        .ok_or_else(|| IrError::run("loop", "the trip count is no number"))?;
    let stacks = ends.results.len().checked_sub(p.carried);
    let (Some(stacks), true) = (stacks, rest.len() >= p.carried) else {
        return Err(IrError::run("loop", "too few values are given").into());
    };
    let mut go = flag("loop", condition)?;
    let (carried, captures) = rest.split_at(p.carried);
    let (mut carried, mut stacks) = (carried.to_vec(), vec![vec![]; stacks]);
    let mut done = 0u64;
    while go && (trips < 0 || done < trips as u64) {
        check_trips("loop", done + 1, ends.limits)?;
        let mut inputs = vec![V::from(Tensor::scalar(done as i64).into())];
        inputs.append(&mut carried);
        inputs.extend_from_slice(captures);
        let mut outs = call(0, inputs)?;
        if outs.is_empty() {
            return Err(IrError::run("loop", "the body gives no condition").into());
        }
        go = flag("loop", &outs.remove(0))?;
        keep("loop", outs, p.carried, &mut carried, &mut stacks)?;
        done += 1;
    }
    finish("loop", &p.body, carried, &stacks, ends)
}

fn scan<V: Carried>(
    p: &Scan,
    operands: &[V],
    ends: &Ends<'_>,
    call: &mut CallRegion<'_, V>,
) -> Result<Vec<V>, V::Error> {
    let stacks = ends.results.len().checked_sub(p.carried);
    let (Some(stacks), true) = (stacks, operands.len() >= p.carried + p.scanned) else {
        return Err(IrError::run("scan", "too few values are given").into());
    };
    let (carried, rest) = operands.split_at(p.carried);
    let (scanned, captures) = rest.split_at(p.scanned);
    let scanned: Vec<Value> = scanned.iter().map(V::on_host).collect::<Result<_, _>>()?;
    let scanned: Option<Vec<&Tensor>> = scanned.iter().map(Value::as_tensor).collect();
    let scanned = scanned.ok_or_else(|| IrError::run("scan", "scans tensors only"))?;
    let extents: Option<Vec<usize>> = scanned.iter().map(|t| t.shape().first().copied()).collect();
    let extents = extents.ok_or_else(|| IrError::run("scan", "a scalar has no axis to scan"))?;
    let trips = extents.first().copied().unwrap_or(0);
    if extents.iter().any(|n| *n != trips) {
        let what = format!("the scanned extents {extents:?} differ");
        return Err(IrError::run("scan", what).into());
    }
    check_trips("scan", trips as u64, ends.limits)?;
    let (mut carried, mut stacks) = (carried.to_vec(), vec![vec![]; stacks]);
    for i in 0..trips {
        let mut inputs = std::mem::take(&mut carried);
        for t in &scanned {
            let row = row(t, i).map_err(|e| IrError::run("scan", e))?;
            inputs.push(V::from(row.into()));
        }
        inputs.extend_from_slice(captures);
        let outs = call(0, inputs)?;
        keep("scan", outs, p.carried, &mut carried, &mut stacks)?;
    }
    finish("scan", &p.body, carried, &stacks, ends)
}

/// The elements at index `i` of axis 0, which vanishes. Shares memory where rows are whole bytes.
fn row(t: &Tensor, i: usize) -> Result<Tensor, String> {
    let shape = t.shape();
    if let (Some(bytes), Some(size)) = (t.shared_bytes(), Tensor::size_of(t.dtype(), &shape[1..]))
        && size.checked_mul(shape[0]) == Some(bytes.len())
    {
        let bytes = bytes.slice(i * size..(i + 1) * size);
        return Tensor::new(t.dtype(), shape[1..].to_vec(), bytes)
            .ok_or_else(|| "bad extents".into());
    }
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
fn finish<V: Carried>(
    op: &str,
    body: &Graph,
    carried: Vec<V>,
    stacks: &[Vec<Value>],
    ends: &Ends<'_>,
) -> Result<Vec<V>, V::Error> {
    let mut out = carried;
    let types = &ends.results[out.len()..];
    let first = body.outputs().len() - stacks.len();
    for (k, (stack, ty)) in stacks.iter().zip(types).enumerate() {
        let value = if stack.is_empty() {
            let inner = body.ty(body.outputs()[first + k].1);
            nothing(ty, inner, ends.bindings)
        } else {
            join(stack, ends.limits)
        };
        let value = value.map_err(|what| IrError::run(op, what))?;
        out.push(V::from(value.into()));
    }
    Ok(out)
}

/// Equal tensors joined along a new leading axis.
fn join(stack: &[Value], limits: &Limits) -> Result<Tensor, String> {
    let tensors: Option<Vec<&Tensor>> = stack.iter().map(Value::as_tensor).collect();
    let tensors = tensors.ok_or("only tensors can be stacked")?;
    let first = tensors[0];
    let total = stack.len().checked_mul(first.bytes().len());
    if total.is_none_or(|n| n > limits.tensor_size) {
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
fn nothing(ty: &ValueType, inner: &ValueType, bindings: &Bindings) -> Result<Tensor, String> {
    let (Some(ty), Some(inner)) = (ty.as_tensor(), inner.as_tensor()) else {
        return Err("only tensors can be stacked".into());
    };
    let known = |d: &Dim| d.eval(bindings).and_then(|n| usize::try_from(n).ok());
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

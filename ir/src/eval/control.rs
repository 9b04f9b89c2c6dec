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

/// Runs the regions of an op, and holds the values that these take and give: on the host, or as handles to where they are.
pub trait Regions {
    /// A value, or a handle to one.
    type Value: Clone;
    /// A tensor whose rows along axis 0 are given to a region one by one.
    type Rows;
    /// Values of iterations, to be joined along a new leading axis.
    type Stack;
    /// Error of whoever runs the regions.
    type Error: From<IrError>;

    /// Takes a value of the host.
    fn take(&mut self, value: Value) -> Self::Value;

    /// The values on the host, in order.
    ///
    /// # Errors
    /// When they cannot be fetched.
    fn fetch(&mut self, values: &[Self::Value]) -> Result<Vec<Value>, Self::Error>;

    /// Runs a region by its number among the op's. The last of what it gives will be pushed onto `stacks`, in order.
    ///
    /// # Errors
    /// Those of the region.
    fn call(
        &mut self,
        region: usize,
        inputs: Vec<Self::Value>,
        stacks: &[Self::Stack],
    ) -> Result<Vec<Self::Value>, Self::Error>;

    /// How many iterations of a loop to start before the first one's condition is known, once `done` are done. Those
    /// that prove to be one too many have no effect.
    fn ahead(&self, _done: u64) -> u64 {
        1
    }

    /// The rows of a value and how many there are.
    ///
    /// # Errors
    /// [`IrError::Run`] for what has no rows.
    fn rows(&mut self, value: &Self::Value) -> Result<(Self::Rows, usize), Self::Error>;

    /// One of the rows; the axis vanishes.
    ///
    /// # Errors
    /// When it cannot be fetched.
    fn row(&mut self, rows: &Self::Rows, at: usize) -> Result<Self::Value, Self::Error>;

    /// A stack that will take about so many values.
    fn stack(&mut self, expected: usize) -> Self::Stack;

    /// Puts a value onto a stack.
    ///
    /// # Errors
    /// [`IrError::Run`] for a value of other dtype or extents than those before, [`IrError::Limit`] for too many.
    fn push(&mut self, stack: &mut Self::Stack, value: Self::Value) -> Result<(), Self::Error>;

    /// Takes all but the first `len` values off.
    fn truncate(&mut self, stack: &mut Self::Stack, len: usize);

    /// The values of a stack joined; `None` when there are none.
    ///
    /// # Errors
    /// As [`Regions::push`].
    fn join(&mut self, stack: Self::Stack) -> Result<Option<Self::Value>, Self::Error>;
}

/// The regions of an op, interpreted.
struct Interpreted<'a> {
    regions: Vec<&'a Graph>,
    env: &'a mut Env,
}

impl Regions for Interpreted<'_> {
    type Value = Value;
    type Rows = Tensor;
    type Stack = Vec<Value>;
    type Error = IrError;

    fn take(&mut self, value: Value) -> Value {
        value
    }

    fn fetch(&mut self, values: &[Value]) -> Result<Vec<Value>> {
        Ok(values.to_vec())
    }

    fn call(&mut self, at: usize, inputs: Vec<Value>, _: &[Vec<Value>]) -> Result<Vec<Value>> {
        region(self.regions[at], &inputs, self.env)
    }

    fn rows(&mut self, value: &Value) -> Result<(Tensor, usize)> {
        rows(value)
    }

    fn row(&mut self, rows: &Tensor, at: usize) -> Result<Value> {
        row(rows, at)
    }

    fn stack(&mut self, _: usize) -> Vec<Value> {
        vec![]
    }

    fn push(&mut self, stack: &mut Vec<Value>, value: Value) -> Result<()> {
        stack.push(value);
        Ok(())
    }

    fn truncate(&mut self, stack: &mut Vec<Value>, len: usize) {
        stack.truncate(len);
    }

    fn join(&mut self, stack: Vec<Value>) -> Result<Option<Value>> {
        join(&stack, &self.env.limits)
    }
}

/// Runs an op of the control class. Carried values and captures are handed on as they are; conditions and trip counts
/// are fetched.
///
/// # Errors
/// [`IrError::Run`] for operands that the op does not allow, [`IrError::Limit`] past `limits`, and errors of `regions`.
pub fn run_control<R: Regions>(
    op: &CoreOp,
    operands: Vec<R::Value>,
    results: &[ValueType],
    limits: &Limits,
    bindings: &Bindings,
    regions: &mut R,
) -> Result<Vec<R::Value>, R::Error> {
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
            let condition = flags("if", std::slice::from_ref(condition), regions)?[0];
            regions.call(usize::from(!condition), captures.to_vec(), &[])
        }
        CoreOp::Call(_) => regions.call(0, operands, &[]),
        CoreOp::Loop(p) => repeat(p, &operands, &ends, regions),
        CoreOp::Scan(p) => scan(p, operands, &ends, regions),
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
    let operands = operands.iter().map(|v| (*v).clone()).collect();
    let (limits, bindings) = (env.limits, env.bindings.clone());
    let mut regions = Interpreted {
        regions: op.regions(),
        env,
    };
    run_control(op, operands, results, &limits, &bindings, &mut regions)
}

/// What the results must be.
struct Ends<'a> {
    results: &'a [ValueType],
    limits: &'a Limits,
    bindings: &'a Bindings,
}

/// Bool scalars.
fn flags<R: Regions>(
    op: &str,
    values: &[R::Value],
    regions: &mut R,
) -> Result<Vec<bool>, R::Error> {
    let flag = |value: Value| match value.as_tensor().map(Tensor::bytes) {
        Some([b]) => Ok(*b != 0),
        _ => {
            let what = format!("the condition is {}", describe(&value));
            Err(IrError::run(op, what).into())
        }
    };
    regions.fetch(values)?.into_iter().map(flag).collect()
}

fn check_trips(op: &str, trips: u64, limits: &Limits) -> Result<()> {
    if trips > limits.trips {
        return Err(IrError::Limit(format!("{op}: {} iterations", limits.trips)));
    }
    Ok(())
}

/// Takes what an iteration gave apart: `count` carried values, then values for the stacks.
fn keep<R: Regions>(
    op: &str,
    mut outs: Vec<R::Value>,
    count: usize,
    stacks: &mut [R::Stack],
    regions: &mut R,
) -> Result<Vec<R::Value>, R::Error> {
    if outs.len() != count + stacks.len() {
        let what = format!("the body gives {} values", outs.len());
        return Err(IrError::run(op, what).into());
    }
    let stacked = outs.split_off(count);
    for (stack, value) in stacks.iter_mut().zip(stacked) {
        regions.push(stack, value)?;
    }
    Ok(outs)
}

/// A loop under way.
struct Turns<'a, R: Regions> {
    carried: Vec<R::Value>,
    captures: &'a [R::Value],
    stacks: Vec<R::Stack>,
    /// Complete iterations.
    done: u64,
}

impl<R: Regions> Turns<'_, R> {
    /// Starts an iteration and gives its condition.
    fn turn(&mut self, number: u64, regions: &mut R) -> Result<R::Value, R::Error> {
        let mut inputs = vec![regions.take(Tensor::scalar(number as i64).into())];
        let count = self.carried.len();
        inputs.append(&mut self.carried);
        inputs.extend_from_slice(self.captures);
        let mut outs = regions.call(0, inputs, &self.stacks)?;
        if outs.is_empty() {
            return Err(IrError::run("loop", "the body gives no condition").into());
        }
        let condition = outs.remove(0);
        self.carried = keep("loop", outs, count, &mut self.stacks, regions)?;
        Ok(condition)
    }

    /// Runs up to `most` iterations, some before the conditions of those before are known, and says whether to go on.
    fn advance(&mut self, most: u64, regions: &mut R) -> Result<bool, R::Error> {
        let mut conditions = vec![self.turn(self.done, regions)?];
        // What is carried after each iteration but the last.
        let mut lives = vec![];
        while (conditions.len() as u64) < most {
            let before = self.carried.clone();
            match self.turn(self.done + conditions.len() as u64, regions) {
                Ok(condition) => conditions.push(condition),
                // An iteration that may not be wanted at all; if it is, the error comes again.
                Err(_) => {
                    self.carried = before;
                    break;
                }
            }
            lives.push(before);
        }
        let conditions = flags("loop", &conditions, regions)?;
        let kept = conditions.iter().position(|go| !go);
        let kept = kept.map_or(conditions.len(), |last| last + 1);
        if let Some(carried) = lives.into_iter().nth(kept - 1) {
            self.carried = carried;
        }
        self.done += kept as u64;
        for stack in &mut self.stacks {
            regions.truncate(stack, self.done as usize);
        }
        Ok(conditions[kept - 1])
    }
}

/// Most values that a stack expects where a condition may end the loop before.
const EXPECTED: u64 = 64;

fn repeat<R: Regions>(
    p: &Loop,
    operands: &[R::Value],
    ends: &Ends<'_>,
    regions: &mut R,
) -> Result<Vec<R::Value>, R::Error> {
    let [trips, condition, rest @ ..] = operands else {
        return Err(IrError::run("loop", "takes a trip count and a condition").into());
    };
    let trips = regions.fetch(std::slice::from_ref(trips))?;
    let trips = trips[0].as_tensor().and_then(Tensor::to_i64s);
    let trips = *trips
        .as_deref()
        .and_then(<[i64]>::first)
        .ok_or_else(|| IrError::run("loop", "the trip count is no number"))?;
    // Fewer than none stands for no limit.
    let trips = u64::try_from(trips).unwrap_or(u64::MAX);
    let stacks = ends.results.len().checked_sub(p.carried);
    let (Some(stacks), true) = (stacks, rest.len() >= p.carried) else {
        return Err(IrError::run("loop", "too few values are given").into());
    };
    let mut go = flags("loop", std::slice::from_ref(condition), regions)?[0];
    let (carried, captures) = rest.split_at(p.carried);
    let expected = trips.min(EXPECTED) as usize;
    let mut turns = Turns {
        carried: carried.to_vec(),
        captures,
        stacks: (0..stacks).map(|_| regions.stack(expected)).collect(),
        done: 0,
    };
    while go && turns.done < trips {
        check_trips("loop", turns.done + 1, ends.limits)?;
        let left = trips.min(ends.limits.trips) - turns.done;
        let most = regions.ahead(turns.done).clamp(1, left);
        go = turns.advance(most, regions)?;
    }
    finish("loop", &p.body, turns.carried, turns.stacks, ends, regions)
}

fn scan<R: Regions>(
    p: &Scan,
    mut operands: Vec<R::Value>,
    ends: &Ends<'_>,
    regions: &mut R,
) -> Result<Vec<R::Value>, R::Error> {
    let stacks = ends.results.len().checked_sub(p.carried);
    let (Some(stacks), true) = (stacks, operands.len() >= p.carried + p.scanned) else {
        return Err(IrError::run("scan", "too few values are given").into());
    };
    let captures = operands.split_off(p.carried + p.scanned);
    let scanned = operands.split_off(p.carried);
    let mut carried = operands;
    let scanned: Vec<(R::Rows, usize)> = (scanned.iter())
        .map(|v| regions.rows(v))
        .collect::<Result<_, _>>()?;
    let trips = scanned.first().map_or(0, |(_, count)| *count);
    if scanned.iter().any(|(_, count)| *count != trips) {
        let extents: Vec<usize> = scanned.iter().map(|(_, count)| *count).collect();
        let what = format!("the scanned extents {extents:?} differ");
        return Err(IrError::run("scan", what).into());
    }
    check_trips("scan", trips as u64, ends.limits)?;
    let mut stacks: Vec<R::Stack> = (0..stacks).map(|_| regions.stack(trips)).collect();
    for i in 0..trips {
        let mut inputs = std::mem::take(&mut carried);
        for (rows, _) in &scanned {
            inputs.push(regions.row(rows, i)?);
        }
        inputs.extend_from_slice(&captures);
        let outs = regions.call(0, inputs, &stacks)?;
        carried = keep("scan", outs, p.carried, &mut stacks, regions)?;
    }
    finish("scan", &p.body, carried, stacks, ends, regions)
}

/// The tensor that a scan takes the rows of, and how many it has.
///
/// # Errors
/// [`IrError::Run`] for what is no tensor or has no axis.
pub fn rows(value: &Value) -> Result<(Tensor, usize)> {
    let tensor = value.as_tensor();
    let tensor = tensor.ok_or_else(|| IrError::run("scan", "scans tensors only"))?;
    let count = tensor.shape().first();
    let count = count.ok_or_else(|| IrError::run("scan", "a scalar has no axis to scan"))?;
    Ok((tensor.clone(), *count))
}

/// The elements at index `i` of axis 0, which vanishes. Shares memory where rows are whole bytes.
///
/// # Errors
/// [`IrError::Run`] outside the axis.
pub fn row(t: &Tensor, i: usize) -> Result<Value> {
    let row = row_of(t, i).map_err(|e| IrError::run("scan", e))?;
    Ok(row.into())
}

fn row_of(t: &Tensor, i: usize) -> Result<Tensor, String> {
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
fn finish<R: Regions>(
    op: &str,
    body: &Graph,
    carried: Vec<R::Value>,
    stacks: Vec<R::Stack>,
    ends: &Ends<'_>,
    regions: &mut R,
) -> Result<Vec<R::Value>, R::Error> {
    let mut out = carried;
    let types = &ends.results[out.len()..];
    let first = body.outputs().len() - stacks.len();
    for (k, (stack, ty)) in stacks.into_iter().zip(types).enumerate() {
        let value = match regions.join(stack)? {
            Some(value) => value,
            None => {
                let inner = body.ty(body.outputs()[first + k].1);
                let value = nothing(ty, inner, ends.bindings);
                regions.take(value.map_err(|what| IrError::run(op, what))?.into())
            }
        };
        out.push(value);
    }
    Ok(out)
}

/// Equal tensors joined along a new leading axis; `None` when there are none.
///
/// # Errors
/// [`IrError::Run`] for values that are no tensors or differ in dtype or extents, and for more bytes than `limits` say.
pub fn join(stack: &[Value], limits: &Limits) -> Result<Option<Value>> {
    if stack.is_empty() {
        return Ok(None);
    }
    let joined = join_all(stack, limits).map_err(|what| IrError::run("stack", what))?;
    Ok(Some(joined.into()))
}

fn join_all(stack: &[Value], limits: &Limits) -> Result<Tensor, String> {
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

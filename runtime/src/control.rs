//! Loops over regions, on host values.

use crate::error::{Result, RuntimeError};
use crate::exec::scalar_bool;
use bytes::Bytes;
use cupola_ir::{IrError, Tensor, Value, ValueType};

/// Runs a region: number among the node's regions, inputs.
pub(crate) type Call<'a> = dyn FnMut(usize, Vec<Value>) -> Result<Vec<Value>> + 'a;

/// The meaning of [`cupola_ir::ops::Loop`].
pub(crate) fn run_loop(
    carried: usize,
    results: &[ValueType],
    operands: Vec<Value>,
    call: &mut Call<'_>,
) -> Result<Vec<Value>> {
    let trips = operands[0]
        .as_tensor()
        .and_then(Tensor::to_i64s)
        .and_then(|v| v.first().copied())
        .unwrap_or(-1);
    let mut go = scalar_bool(&operands[1]);
    let mut state = operands[2..2 + carried].to_vec();
    let captures = &operands[2 + carried..];
    let mut scanned: Vec<Vec<Value>> = vec![vec![]; results.len() - carried];
    let mut iteration = 0i64;
    while go && (trips < 0 || iteration < trips) {
        let inputs = std::iter::once(Tensor::scalar(iteration).into())
            .chain(state)
            .chain(captures.iter().cloned());
        let mut out = call(0, inputs.collect())?.into_iter();
        go = out.next().is_some_and(|v| scalar_bool(&v));
        state = out.by_ref().take(carried).collect();
        scanned
            .iter_mut()
            .zip(out)
            .for_each(|(list, v)| list.push(v));
        iteration += 1;
    }
    join(state, scanned, &results[carried..])
}

/// The meaning of [`cupola_ir::ops::Scan`].
pub(crate) fn run_scan(
    carried: usize,
    scanned: usize,
    results: &[ValueType],
    operands: Vec<Value>,
    call: &mut Call<'_>,
) -> Result<Vec<Value>> {
    let mut state = operands[..carried].to_vec();
    let sequences = &operands[carried..carried + scanned];
    let captures = &operands[carried + scanned..];
    let steps = sequences[0]
        .as_tensor()
        .and_then(|t| t.shape().first().copied())
        .unwrap_or(0);
    let mut outputs: Vec<Vec<Value>> = vec![vec![]; results.len() - carried];
    for step in 0..steps {
        let slices = sequences
            .iter()
            .map(|s| row(s, step))
            .collect::<Result<Vec<_>>>()?;
        let inputs = state
            .into_iter()
            .chain(slices)
            .chain(captures.iter().cloned());
        let mut out = call(0, inputs.collect())?.into_iter();
        state = out.by_ref().take(carried).collect();
        outputs
            .iter_mut()
            .zip(out)
            .for_each(|(list, v)| list.push(v));
    }
    join(state, outputs, &results[carried..])
}

/// Row `index` of a tensor's first axis; shares memory where elements are whole bytes.
fn row(value: &Value, index: usize) -> Result<Value> {
    let fail = |what: &str| RuntimeError::Ir(IrError::run("scan", what.to_string()));
    let t = value
        .as_tensor()
        .ok_or_else(|| fail("a scanned operand is no tensor"))?;
    let (n, rest) = t
        .shape()
        .split_first()
        .ok_or_else(|| fail("a scanned operand has no axis"))?;
    if index >= *n {
        return Err(fail("scanned operands differ in length"));
    }
    let len: usize = rest.iter().product();
    let row = match t.strings() {
        Some(s) => Tensor::from_strings(rest.to_vec(), s[index * len..(index + 1) * len].to_vec()),
        None => {
            let bytes = t.shared_bytes().unwrap_or_default();
            let size = bytes.len() / n;
            Tensor::new(
                t.dtype(),
                rest.to_vec(),
                bytes.slice(index * size..(index + 1) * size),
            )
        }
    };
    row.map(Value::from)
        .ok_or_else(|| fail("a scanned operand has packed elements"))
}

/// Carried values, then each list stacked along a new leading axis.
fn join(state: Vec<Value>, lists: Vec<Vec<Value>>, types: &[ValueType]) -> Result<Vec<Value>> {
    let mut all = state;
    for (list, ty) in lists.into_iter().zip(types) {
        all.push(stack(list, ty)?);
    }
    Ok(all)
}

fn stack(list: Vec<Value>, ty: &ValueType) -> Result<Value> {
    let fail = |what: String| RuntimeError::Ir(IrError::run("loop", what));
    let tensors: Option<Vec<&Tensor>> = list.iter().map(Value::as_tensor).collect();
    let tensors = tensors.ok_or_else(|| fail("a scanned output is no tensor".into()))?;
    let t = ty
        .as_tensor()
        .ok_or_else(|| fail("a scanned output is no tensor".into()))?;
    let Some(first) = tensors.first() else {
        // Nothing ran: extents that only an iteration would tell are 0.
        let shape = t.dims.iter().enumerate();
        let shape = shape
            .map(|(i, d)| {
                if i == 0 {
                    0
                } else {
                    d.as_const().map_or(0, |c| c.max(0) as usize)
                }
            })
            .collect();
        let empty = match t.dtype {
            cupola_ir::DType::String => Tensor::from_strings(shape, vec![]),
            dtype => Tensor::new(dtype, shape, Bytes::new()),
        };
        return empty
            .map(Value::from)
            .ok_or_else(|| fail("no empty result".into()));
    };
    if let Some(other) = tensors.iter().find(|x| x.shape() != first.shape()) {
        return Err(fail(format!(
            "scanned outputs of {:?} and {:?} do not stack",
            first.shape(),
            other.shape()
        )));
    }
    let shape = [&[tensors.len()], first.shape()].concat();
    let stacked = match first.strings() {
        Some(_) => {
            let all = tensors
                .iter()
                .flat_map(|x| x.strings().unwrap_or_default().iter().cloned())
                .collect();
            Tensor::from_strings(shape, all)
        }
        None => {
            let bytes: Vec<u8> = tensors
                .iter()
                .flat_map(|x| x.bytes().iter().copied())
                .collect();
            Tensor::new(first.dtype(), shape, Bytes::from(bytes))
        }
    };
    stacked
        .map(Value::from)
        .ok_or_else(|| fail(format!("{} does not stack", first.dtype())))
}

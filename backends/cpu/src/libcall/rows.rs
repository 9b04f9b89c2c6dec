//! Softmax and normalisation over trailing axes.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::gemm::Finished;
use crate::library::rows::{self, Norm, NormExtras, RowsOutput};
use crate::library::simd::Float;
use crate::library::view::{View, ViewMut};
use cupola_ir::composite::{LayerNorm, RmsNorm, Softmax};
use cupola_ir::{DType, TensorType};
use half::{bf16, f16};

/// Why there is no softmax of this operand along an axis.
pub(crate) fn softmax_refusal(p: &Softmax, operands: &[&TensorType]) -> Option<String> {
    let [x] = operands else {
        return Some("takes one operand".into());
    };
    let inner = x.dims.get(p.axis + 1..).unwrap_or_default();
    if !inner.iter().all(|d| d.is(1)) {
        return Some("elements along the axis are not neighbours".into());
    }
    dtype_refusal(x)
}

/// Why there is no normalisation from `axis` on of these operands: `x`, scale and bias.
pub(crate) fn norm_refusal(axis: usize, operands: &[&TensorType]) -> Option<String> {
    let [x, columns @ ..] = operands else {
        return Some("takes an operand".into());
    };
    if axis >= x.rank() || columns.len() > 2 {
        return Some("no axis, or more than scale and bias".into());
    }
    for t in columns {
        let lead = t.rank().saturating_sub(x.rank() - axis);
        let (ones, own) = t.dims.split_at(lead);
        if t.dtype != x.dtype || own != &x.dims[axis..] || !ones.iter().all(|d| d.is(1)) {
            return Some(format!("scale or bias {t} for {x}"));
        }
    }
    dtype_refusal(x)
}

fn dtype_refusal(x: &TensorType) -> Option<String> {
    let known = matches!(x.dtype, DType::F32 | DType::F16 | DType::BF16);
    (!known).then(|| format!("no rows of {}", x.dtype))
}

/// Whether finished rows can be handed to generated code, which takes them in the type of the sums.
pub(crate) fn takes_epilogue(operands: &[&TensorType]) -> bool {
    operands.first().is_some_and(|x| x.dtype == DType::F32)
}

/// Runs a softmax.
pub(crate) fn softmax(call: &Call, p: &Softmax) -> Result<(), Failure> {
    match call.operands[0].dtype {
        DType::F16 => softmax_of::<f16>(call, p),
        DType::BF16 => softmax_of::<bf16>(call, p),
        _ => softmax_of::<f32>(call, p),
    }
}

fn softmax_of<T: Float>(call: &Call, p: &Softmax) -> Result<(), Failure> {
    let kind = match p.log {
        true => rows::Softmax::Log,
        false => rows::Softmax::Plain,
    };
    with_rows::<T>(call, p.axis, |input, output| {
        rows::softmax(&call.cx, kind, input, output)
    })
}

/// Runs a layer normalisation.
pub(crate) fn layer_norm(call: &Call, p: &LayerNorm) -> Result<(), Failure> {
    norm(call, Norm::Layer, p.axis, p.epsilon)
}

/// Runs a normalisation by root mean square.
pub(crate) fn rms_norm(call: &Call, p: &RmsNorm) -> Result<(), Failure> {
    norm(call, Norm::Rms, p.axis, p.epsilon)
}

fn norm(call: &Call, kind: Norm, axis: usize, epsilon: f64) -> Result<(), Failure> {
    match call.operands[0].dtype {
        DType::F16 => norm_of::<f16>(call, kind, axis, epsilon),
        DType::BF16 => norm_of::<bf16>(call, kind, axis, epsilon),
        _ => norm_of::<f32>(call, kind, axis, epsilon),
    }
}

fn norm_of<T: Float>(call: &Call, kind: Norm, axis: usize, epsilon: f64) -> Result<(), Failure> {
    // SAFETY: operands and results are dense, lie inside their buffers, and hold as many elements as they say.
    let columns = |at: usize| {
        let x = call.operands.get(at)?;
        Some(unsafe { std::slice::from_raw_parts(x.start.cast::<T>(), x.len()) })
    };
    // SAFETY: as above; nothing else uses the results of this call.
    let report = |at: usize| {
        let x: &Operand = call.results.get(at)?;
        Some(unsafe { std::slice::from_raw_parts_mut(x.start.cast::<f32>(), x.len()) })
    };
    let extras = NormExtras {
        scale: columns(1),
        bias: columns(2),
        mean: report(1),
        inverse: report(2),
    };
    with_rows::<T>(call, axis, |input, output| {
        rows::normalize(&call.cx, kind, epsilon as f32, extras, input, output)
    })
}

/// Calls `run` with the rows of the operand, from `axis` on, and those of the result.
fn with_rows<T: Float>(
    call: &Call,
    axis: usize,
    run: impl FnOnce(View<'_, T, 2>, RowsOutput<'_, T>) -> crate::Result<()>,
) -> Result<(), Failure> {
    let (x, result) = (&call.operands[0], &call.results[0]);
    let extent = |dims: &[usize]| dims.iter().product::<usize>();
    let (rows, cols) = (extent(&x.dims[..axis]), extent(&x.dims[axis..]));
    // SAFETY: the operand is dense and lies inside its buffer.
    let input = unsafe { View::from_raw(x.start.cast(), [rows, cols], [cols, 1]) };
    // SAFETY: the result is dense, lies inside its buffer, and this call has it alone.
    let output = unsafe { ViewMut::from_raw(result.start.cast(), [rows, cols], [cols, 1]) };
    let Some(code) = &call.epilogue else {
        return Ok(run(input, RowsOutput::Store(output))?);
    };
    let finish = |part: Finished<T>| code.finish(&part, |row| (part.row + row) * cols + part.col);
    let output = match result.dtype == x.dtype && !code.reads_result() {
        true => RowsOutput::Finish(output, &finish),
        false => RowsOutput::Discard(&finish),
    };
    Ok(run(input, output)?)
}

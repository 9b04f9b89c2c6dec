//! Rounding to 8-bit integers over the range of a tensor.

use super::{Call, Failure};
use crate::library::quantise::quantise;
use cupola_ir::{DType, TensorType};

/// Why the operand is not rounded.
pub(crate) fn refusal(operands: &[&TensorType]) -> Option<String> {
    match operands {
        [x] if x.dtype == DType::F32 => None,
        [x] => Some(format!("no rounding of {}", x.dtype)),
        _ => Some("takes one operand".into()),
    }
}

/// Runs the rounding.
pub(crate) fn run(call: &Call) -> Result<(), Failure> {
    let x = &call.operands[0];
    let [y, scale, zero] = call.results else {
        unreachable!("bug: {} results of rounding", call.results.len())
    };
    // SAFETY: operand and results are dense and lie inside their buffers, and this call has the results alone.
    let (from, to) = unsafe {
        (
            std::slice::from_raw_parts(x.start.cast::<f32>(), x.len()),
            std::slice::from_raw_parts_mut(y.start, y.len()),
        )
    };
    let steps = quantise(&call.cx, from, to)?;
    // SAFETY: as above; each has one element.
    unsafe {
        scale.start.cast::<f32>().write(steps.scale);
        zero.start.write(steps.zero);
    }
    Ok(())
}

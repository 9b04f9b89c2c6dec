//! Rows of block-quantised matrices: picked as they are, and widened.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::simd::Float;
use crate::library::view::Shared;
use cupola_ir::convert::dequantize;
use cupola_ir::ops::{Bounds, Gather};
use cupola_ir::{BlockFormat, DType, TensorType};
use half::{bf16, f16};

/// Why rows are not picked from these operands.
pub(crate) fn gather_refusal(p: &Gather, operands: &[&TensorType]) -> Option<String> {
    let is_blocks = matches!(operands.first()?.dtype, DType::Block(_));
    let outermost = p.axes == [0] && p.batch == 0 && operands[0].rank() > 1;
    (!is_blocks || !outermost).then(|| "only rows of block-quantised matrices are picked".into())
}

/// Why these operands are not widened.
pub(crate) fn cast_refusal(to: DType, operands: &[&TensorType]) -> Option<String> {
    let is_blocks = matches!(operands.first()?.dtype, DType::Block(_));
    let known = matches!(to, DType::F32 | DType::F16 | DType::BF16);
    (!is_blocks || !known).then(|| format!("no library kernel widens to {to}"))
}

/// Picks rows of blocks.
pub(crate) fn gather(call: &Call, p: &Gather) -> Result<(), Failure> {
    let [data, indices] = call.operands else {
        unreachable!("bug: a gather with {} operands", call.operands.len());
    };
    let count = data.dims[0];
    let inner = data.dims.last().copied().unwrap_or(0);
    let rows = data.dims[1..data.dims.len() - 1].iter().product();
    let size = data.dtype.storage_size(rows, inner).unwrap_or(0);
    let to = call.results[0].start;
    for at in 0..indices.len() {
        // SAFETY: indices are dense i64 inside their buffer.
        let i = unsafe { indices.start.cast::<i64>().add(at).read_unaligned() };
        let inside = usize::try_from(i).ok().filter(|i| *i < count);
        let from = match (inside, p.bounds) {
            (Some(i), _) => Some(i),
            (None, Bounds::Clamp) if count > 0 => Some(if i < 0 { 0 } else { count - 1 }),
            (None, Bounds::Check) => {
                return Err(Failure::Fault(format!(
                    "index {i} is outside axis 0 of extent {count}"
                )));
            }
            (None, Bounds::Clamp | Bounds::Skip) => None,
        };
        let to = to.wrapping_add(at * size);
        // SAFETY: data and result hold whole rows of blocks, and are different memory.
        unsafe {
            match from {
                Some(i) => data.start.add(i * size).copy_to_nonoverlapping(to, size),
                None => to.write_bytes(0, size),
            }
        }
    }
    Ok(())
}

/// Widens blocks.
pub(crate) fn cast(call: &Call) -> Result<(), Failure> {
    let (from, to) = (&call.operands[0], &call.results[0]);
    let DType::Block(format) = from.dtype else {
        unreachable!("bug: {} is no block format", from.dtype);
    };
    match to.dtype {
        DType::F16 => widen::<f16>(call, format, from, to),
        DType::BF16 => widen::<bf16>(call, format, from, to),
        _ => widen::<f32>(call, format, from, to),
    }
    Ok(())
}

fn widen<T: Float>(call: &Call, format: BlockFormat, from: &Operand, to: &Operand) {
    let (len, size) = (format.block_len(), format.block_size());
    let blocks = from.len() / len;
    let (source, target) = (Shared(from.start), Shared(to.start.cast::<T>()));
    call.cx.pool.run_ranges(blocks, (1 << 13) / len, |part| {
        let mut wide = [0f32; cupola_ir::convert::MAX_BLOCK];
        let wide = &mut wide[..len];
        for block in part {
            let from = source.get().wrapping_add(block * size);
            // SAFETY: the block lies inside the operand, which was checked to hold all of them.
            let bytes = unsafe { std::slice::from_raw_parts(from, size) };
            if dequantize(format, bytes, wide).is_err() {
                unreachable!("bug: a block of {size} bytes");
            }
            for (i, x) in wide.iter().enumerate() {
                // SAFETY: the result has as many elements; different blocks are different elements of it.
                unsafe { *target.get().add(block * len + i) = T::narrow(*x) };
            }
        }
    });
}

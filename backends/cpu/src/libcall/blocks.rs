//! Contractions with block-quantised weights.

use super::contract::{axes, matrices};
use super::operand::Operand;
use super::packed::Side;
use super::{Call, Failure, Prepared};
use crate::library::Context;
use crate::library::gemm::{
    Activations, BlockNumber, BlockOutput, Finished, PackedBlocks, multiply_blocks,
};
use crate::library::view::{View, ViewMut};
use cupola_ir::ops::Contract;
use cupola_ir::{BlockFormat, DType, TensorType};
use half::{bf16, f16};

/// Why there is no product with these block-quantised weights.
pub(super) fn refusal(p: &Contract, x: DType, w: &TensorType) -> Option<String> {
    let first = w.rank().saturating_sub(p.rhs_contract.len());
    let is_inner = p.rhs_contract.iter().copied().eq(first..w.rank());
    if !matches!(x, DType::F32 | DType::F16 | DType::BF16) {
        return Some(format!("no product of {x} and {}", w.dtype));
    }
    if !p.rhs_batch.is_empty() || !is_inner || p.rhs_contract.is_empty() {
        return Some(format!("{} is not summed along its last axes", w.dtype));
    }
    let known = matches!(p.accum, DType::F32 | DType::I32) && (p.out == DType::F32 || p.out == x);
    (!known).then(|| {
        format!(
            "no product of {x} and {} accumulated in {} to {}",
            w.dtype, p.accum, p.out
        )
    })
}

/// Packs the weights.
pub(super) fn pack(
    cx: &Context,
    format: BlockFormat,
    p: &Contract,
    w: &Operand,
) -> crate::Result<PackedBlocks> {
    let [inner, cols] = extents(p, &w.dims);
    let size = DType::Block(format).storage_size(cols, inner).unwrap_or(0);
    // SAFETY: the operand was checked to hold its blocks when it was bound.
    let bytes = unsafe { std::slice::from_raw_parts(w.start, size) };
    PackedBlocks::new(cx, format, bytes, [inner, cols])
}

/// Extents along and across the summed axes.
pub(super) fn extents(p: &Contract, dims: &[usize]) -> [usize; 2] {
    let (_, free, summed) = axes(p, Side::Right, dims.len());
    let len = |axes: &[usize]| axes.iter().map(|a| dims[*a]).product();
    [len(summed), len(&free)]
}

/// Runs the contraction.
pub(super) fn run(call: &Call, p: &Contract, format: BlockFormat) -> Result<(), Failure> {
    let own;
    let weights = match call.prepared {
        Some(Prepared::Contract(packed)) => packed.get::<PackedBlocks>(),
        _ => {
            own = pack(&call.cx, format, p, &call.operands[1])?;
            &own
        }
    };
    let cols = extents(p, &call.operands[1].dims)[1];
    match call.operands[0].read {
        DType::F16 => product::<f16>(call, p, weights, cols),
        DType::BF16 => product::<bf16>(call, p, weights, cols),
        _ => product::<f32>(call, p, weights, cols),
    }
}

fn product<T: BlockNumber>(
    call: &Call,
    p: &Contract,
    weights: &PackedBlocks,
    cols: usize,
) -> Result<(), Failure> {
    let (cx, x) = (&call.cx, &call.operands[0]);
    let (_, free, summed) = axes(p, Side::Left, x.dims.len());
    let mut left = matrices(cx, x, &[], &free, summed, false)?;
    let _copy;
    if left.along.1 != 1 && left.along.0 > 1 {
        let (dense, lent) = x.permuted(&[&free[..], summed].concat()).dense(cx, 0)?;
        _copy = lent;
        let axes: Vec<usize> = (0..x.dims.len()).collect();
        let (free, summed) = axes.split_at(free.len());
        left = matrices(cx, &dense, &[], free, summed, false)?;
    }
    let rows = left.across.0;
    let strides = [left.across.1 as usize, 1];
    // SAFETY: the operand was checked to lie inside its buffer when it was bound, or is a copy that lives as long.
    let view = unsafe { View::from_raw(left.start.cast::<T>(), [rows, left.along.0], strides) };
    let how = match p.accum {
        DType::I32 => Activations::Rounded,
        _ => Activations::Exact,
    };
    let (code, result) = (call.epilogue.as_ref(), &call.results[0]);
    let shape = [rows, cols];
    // SAFETY: the result is dense and holds the whole product; this call has it alone.
    let output = unsafe {
        match code {
            Some(e) if result.dtype != DType::F32 || e.reads_result() => BlockOutput::Discard,
            None if p.out != DType::F32 => {
                BlockOutput::Narrow(ViewMut::from_raw(result.start.cast(), shape, [cols, 1]))
            }
            _ => BlockOutput::Store(ViewMut::from_raw(result.start.cast(), shape, [cols, 1])),
        }
    };
    let finish = |part: Finished<f32>| {
        if let Some(e) = code {
            e.finish(&part, |row| (part.row + row) * cols + part.col);
        }
    };
    let epilogue = code.map(|_| &finish as &(dyn Fn(Finished<f32>) + Sync));
    Ok(multiply_blocks(cx, view, weights, how, output, epilogue)?)
}

//! Which ops have library kernels here.

use cupola_ir::composite::CompositeOp;
use cupola_ir::ops::{Contract, CoreOp, Op};
use cupola_ir::target::Claim;
use cupola_ir::{Class, DType, TensorType};
use cupola_shaders::convolution::SPATIAL_AXES;
use cupola_shaders::matmul::{BATCH_AXES, INNER_AXES};
use cupola_shaders::sort::ROW_AXES;

use super::scatter;
use crate::emit::element_of;

/// Whether there is a library kernel for an op on these operands.
pub fn claim(op: &Op, operands: &[&TensorType]) -> Claim {
    match refusal(op, operands) {
        Some(reason) => Claim::No { reason },
        None => Claim::Yes {
            strided: !matches!(op, Op::Core(CoreOp::Scatter(_))),
            epilogue: takes_epilogue(op),
            converts: matches!(op, Op::Core(CoreOp::Contract(_))),
        },
    }
}

/// As [`claim`], of ops that have a form with a thread for each result. Attention has none: it is then computed by the ops it
/// is made of.
pub fn claim_plain(op: &Op, operands: &[&TensorType]) -> Claim {
    match op {
        Op::Composite(CompositeOp::Attention(_) | CompositeOp::PagedAttention(_)) => Claim::No {
            reason: "attention has no plain form".to_owned(),
        },
        _ => claim(op, operands),
    }
}

fn takes_epilogue(op: &Op) -> bool {
    match op {
        Op::Core(CoreOp::Contract(_)) => true,
        Op::Composite(CompositeOp::Conv(_) | CompositeOp::ConvTranspose(_)) => true,
        Op::Core(_) | Op::Host(_) | Op::Composite(_) => false,
    }
}

/// Why there is none.
pub(super) fn refusal(op: &Op, operands: &[&TensorType]) -> Option<String> {
    let number = |ty: &&TensorType| {
        let known =
            element_of(ty.dtype).is_some() && ty.dtype != DType::Bool && ty.dtype.bits() <= 32;
        (!known).then(|| format!("no library kernel for {}", ty.dtype))
    };
    match op {
        Op::Core(CoreOp::Contract(contract)) => match operands {
            [x, w] if w.dtype.class() == Class::Block => blocks_refusal(contract, x, w),
            _ => operands
                .iter()
                .find_map(number)
                .or_else(|| contract_refusal(contract, operands)),
        },
        Op::Core(CoreOp::Sort(_)) => {
            let ty = operands.first()?;
            let bits = ty.dtype.bits();
            let sortable = matches!(bits, 8 | 16 | 32 | 64)
                && !(ty.dtype.is_float() && matches!(bits, 8 | 64));
            if !sortable {
                return Some(format!("no sort of {}", ty.dtype));
            }
            (ty.rank() > ROW_AXES + 1).then(|| format!("no sort of {} axes", ty.rank()))
        }
        Op::Core(CoreOp::Scatter(op)) => {
            let data = operands.first()?;
            element_of(data.dtype)
                .is_none()
                .then(|| format!("no scatter of {}", data.dtype))
                .or_else(|| scatter::refusal(op, data.dtype, data.rank()))
        }
        Op::Composite(CompositeOp::Conv(_) | CompositeOp::ConvTranspose(_)) => {
            let spatial = operands.first()?.rank().saturating_sub(2);
            let mixed = operands
                .windows(2)
                .any(|pair| pair[0].dtype.is_float() && pair[0].dtype != pair[1].dtype);
            operands.iter().find_map(number).or_else(|| {
                (spatial > SPATIAL_AXES)
                    .then(|| format!("no convolution over {spatial} axes"))
                    .or_else(|| mixed.then(|| "no convolution of two float types".into()))
            })
        }
        Op::Composite(CompositeOp::Attention(_)) => {
            let (vectors, mask) = operands.split_at(operands.len().min(3));
            let float = |ty: &&TensorType| {
                let known = ty.dtype.is_float() && element_of(ty.dtype).is_some();
                (!known || ty.dtype.bits() > 32).then(|| format!("no attention of {}", ty.dtype))
            };
            let mask_fits = |ty: &&TensorType| {
                let known = element_of(ty.dtype).is_some() && ty.dtype.bits() <= 32;
                (!known || ty.rank() > 4).then(|| format!("no attention mask of {ty}"))
            };
            vectors
                .iter()
                .find_map(float)
                .or_else(|| mask.iter().find_map(mask_fits))
        }
        Op::Composite(CompositeOp::PagedAttention(_)) => {
            let float = |ty: &&&TensorType| {
                ty.dtype.is_float() && element_of(ty.dtype).is_some() && ty.dtype.bits() <= 32
            };
            let floats = operands.iter().take(3);
            let refused = floats.clone().find(|ty| !float(ty));
            refused.map(|ty| format!("no attention over pages of {}", ty.dtype))
        }
        Op::Core(op) => Some(format!("no library kernel for {}", op.name())),
        Op::Composite(op) => Some(format!("no library kernel for {}", op.name())),
        Op::Host(op) => Some(format!("{} runs on the host", op.name())),
    }
}

/// Why there is no product with these block-quantised weights. Sums that are asked for in 32-bit integers, with
/// activations rounded to 8 bits, are computed of activations as they are, in f32.
fn blocks_refusal(contract: &Contract, x: &TensorType, w: &TensorType) -> Option<String> {
    let first = w.rank().saturating_sub(contract.rhs_contract.len());
    let is_inner = contract.rhs_contract.iter().copied().eq(first..w.rank());
    if !matches!(x.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Some(format!("no product of {} and {}", x.dtype, w.dtype));
    }
    if !contract.rhs_batch.is_empty() || !is_inner || contract.rhs_contract.is_empty() {
        return Some(format!("{} is not summed along its last axes", w.dtype));
    }
    let known = matches!(contract.accum, DType::F32 | DType::I32)
        && (contract.out == DType::F32 || contract.out == x.dtype);
    if !known {
        let (accum, out) = (contract.accum, contract.out);
        return Some(format!("no product summed in {accum} to {out}"));
    }
    axes_refusal(contract, &[x, w])
}

fn contract_refusal(contract: &Contract, operands: &[&TensorType]) -> Option<String> {
    let narrow = matches!(contract.accum, DType::F32 | DType::I32 | DType::U32);
    if !narrow || contract.accum.is_float() != operands.first()?.dtype.is_float() {
        return Some(format!("no product summed in {}", contract.accum));
    }
    if element_of(contract.out).is_none() || contract.out == DType::Bool || contract.out.bits() > 32
    {
        return Some(format!("no product stored as {}", contract.out));
    }
    axes_refusal(contract, operands)
}

fn axes_refusal(contract: &Contract, operands: &[&TensorType]) -> Option<String> {
    let axes = operands.iter().map(|ty| ty.rank()).sum::<usize>();
    let inner = contract.lhs_contract.len();
    // Every axis may stay on its own; one row and one column axis are not batches.
    let outer = axes - 2 * inner - contract.lhs_batch.len();
    (outer > BATCH_AXES || inner > INNER_AXES).then(|| format!("no product over {axes} axes"))
}

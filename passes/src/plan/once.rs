//! What is computed when a plan is loaded instead of in every run: units that read constants only.
//!
//! Rule: the result is held as long as the program, so it may take [`WIDENING`] times the bytes of the constants that it is
//! made of (8-bit weights as f32), or [`SMALL`]; more than that, such as a repetition, is cheaper to compute again. Units whose
//! loads can fail stay in the run, which may never come to them.

use super::{Plan, SlotId, Storage, owner};
use crate::lower::LoweredUnit;
use cupola_ir::kernel::{Access, Unit};
use cupola_ir::ops::Map;
use cupola_ir::{CoreOp, Graph, Node, Op, OpClass, Scalar, Tensor, ValueType};

/// Most bytes of a result for each byte of its operands.
const WIDENING: usize = 4;
/// Bytes of a result that are held whatever it is made of.
const SMALL: usize = 64 << 10;

/// Whether a unit, given the slots that it reads, is computed once.
pub(super) fn is_once(
    graph: &Graph,
    plan: &Plan,
    unit: &LoweredUnit,
    buffers: &[Option<SlotId>],
) -> bool {
    let accesses = unit.placed.unit.accesses();
    let results = accesses.iter().filter(|a| **a != Access::Read).count();
    let is_safe = |node: &Node| match &node.op {
        Op::Core(CoreOp::Map(Map { f })) => {
            let divides = matches!(f, Scalar::Div | Scalar::Rem | Scalar::Mod);
            let ty = graph.ty(node.results[0]).as_tensor();
            !divides || ty.is_some_and(|t| t.dtype.is_float())
        }
        op => matches!(
            op.class(),
            OpClass::Elementwise | OpClass::View | OpClass::Reduction | OpClass::Leaf
        ),
    };
    let nodes = &unit.placed.nodes;
    if !matches!(unit.placed.unit, Unit::Loops(_))
        || !unit.placed.unit.sizes().is_empty()
        || results != 1
        || !nodes.iter().all(|id| is_safe(graph.node(*id)))
    {
        return false;
    }
    let mut operands = 0usize;
    for slot in buffers.iter().flatten() {
        let own = &plan.slots[owner(plan, *slot).0 as usize];
        let Some(size) = size(&own.ty) else {
            return false;
        };
        if !matches!(own.storage, Storage::Const(_) | Storage::Made { .. }) {
            return false;
        }
        operands = operands.saturating_add(size);
    }
    let most = operands.saturating_mul(WIDENING).max(SMALL);
    let result = accesses.iter().position(|a| *a != Access::Read);
    let result = result.and_then(|at| size(graph.ty(unit.buffers[at])));
    operands > 0 && result.is_some_and(|size| size <= most)
}

/// Bytes of a value whose extents are numbers.
fn size(ty: &ValueType) -> Option<usize> {
    let ty = ty.as_tensor()?;
    Tensor::size_of(ty.dtype, &ty.const_shape()?)
}

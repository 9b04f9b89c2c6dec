//! Writes a kernel's result over an operand that nobody reads afterwards, where the device allows it: the result
//! becomes an alias of the operand's slot.
//!
//! Rule: the operand is another kernel's result, and this one reads it only at the element that it writes, so that no
//! element is needed after it was overwritten, by whatever thread.

use super::pack::{is_packed, owner};
use super::{Plan, SlotId, Step, Storage};
use crate::Context;
use crate::lower::LoweredUnit;
use cupola_ir::Dim;
use cupola_ir::kernel::{Access, Expr, Kernel, Phase, StoreKind, Unit};

/// Turns results into aliases, step by step.
pub(super) fn reuse(plan: &mut Plan, units: &[LoweredUnit], context: &Context) {
    for at in 0..plan.steps.len() {
        let Step::Launch { unit, buffers } = &plan.steps[at] else {
            continue;
        };
        let placed = &units[*unit].placed;
        let Unit::Loops(kernel) = &placed.unit else {
            continue;
        };
        if !context.target(placed.device).aliasing {
            continue;
        }
        if let Some((result, of, offset)) = overwritten(plan, kernel, buffers, at) {
            alias(plan, result, of, offset);
        }
    }
}

/// The result's slot, and the slot and byte offset of the operand it can lie over.
fn overwritten(
    plan: &Plan,
    kernel: &Kernel,
    buffers: &[SlotId],
    at: usize,
) -> Option<(SlotId, SlotId, Dim)> {
    let Some(Phase::Store { stores, .. }) = kernel.phases.last() else {
        return None;
    };
    let [store] = &stores[..] else { return None };
    let written = store.buffer.0 as usize;
    let result = buffers[written];
    if store.kind != StoreKind::Set || store.guard.is_some() || !is_packed(plan, result) {
        return None;
    }
    let is_element = |b: usize| {
        kernel.exprs.iter().all(|e| match e {
            Expr::Load { buffer, index, .. } => buffer.0 as usize != b || *index == store.index,
            _ => true,
        })
    };
    let fits = |b: usize| {
        let (x, y) = (&kernel.buffers[b], &kernel.buffers[written]);
        let size = |dtype: cupola_ir::DType| dtype.is_whole_byte().then(|| dtype.size());
        x.access == Access::Read
            && x.len == y.len
            && size(x.dtype).is_some_and(|s| size(y.dtype) == Some(s))
    };
    (0..buffers.len()).find_map(|b| {
        let of = owner(plan, buffers[b]);
        let slot = &plan.slots[of.0 as usize];
        // What the host hands over may lie in memory that is not ours to write.
        let launched = matches!(plan.steps[slot.first], Step::Launch { .. });
        let dies = is_packed(plan, of) && slot.last == at && launched;
        let alone = (buffers.iter().enumerate()).all(|(k, s)| k == b || owner(plan, *s) != of);
        let offset = match &plan.slots[buffers[b].0 as usize].storage {
            Storage::Alias { offset, .. } => offset.clone(),
            _ => Dim::ZERO,
        };
        (dies && alone && fits(b) && is_element(b)).then_some((result, of, offset))
    })
}

fn alias(plan: &mut Plan, result: SlotId, of: SlotId, offset: Dim) {
    let last = plan.slots[result.0 as usize].last;
    for slot in &mut plan.slots {
        if let Storage::Alias {
            of: base,
            offset: own,
        } = &mut slot.storage
            && *base == result
        {
            *base = of;
            *own = own.clone() + offset.clone();
        }
    }
    plan.slots[result.0 as usize].storage = Storage::Alias { of, offset };
    let owner = &mut plan.slots[of.0 as usize];
    owner.last = owner.last.max(last);
}

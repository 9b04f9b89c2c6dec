//! The bytes that a plan needs when its symbols are bound: known before anything is allocated.

use super::pack::{is_packed, pack, slot_sizes};
use super::{Compiled, DeviceId, SlotId, Storage};
use cupola_ir::Bindings;
use cupola_ir::target::Target;

/// Bytes by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights given by name.
    pub weights: u64,
    /// Packed working memory, that of the largest region included.
    pub activations: u64,
    /// What outlives the run.
    pub outputs: u64,
    /// Values of state slots at the start of the run.
    pub states: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.activations, self.outputs, self.states]
            .iter()
            .fold(0, |a, b| a.saturating_add(*b))
    }
}

/// What a compiled graph needs on `targets`, those that it was compiled for, beside its constants: the form in which
/// these are held is the backends' affair. Sizes that `bindings` do not decide count as nothing.
pub fn footprint(compiled: &Compiled, targets: &[&Target], bindings: &Bindings) -> Footprint {
    let plan = &compiled.plan;
    let sizes: Vec<u64> = slot_sizes(plan, bindings)
        .into_iter()
        .map(|s| s.unwrap_or(0))
        .collect();
    let mut sum = Footprint::default();
    for (i, slot) in plan.slots.iter().enumerate() {
        let add = match &slot.storage {
            Storage::Param(_) => &mut sum.weights,
            Storage::State(_) => &mut sum.states,
            Storage::Planned if !is_packed(plan, SlotId(i as u32)) => &mut sum.outputs,
            Storage::Planned
            | Storage::Const(_)
            | Storage::Made { .. }
            | Storage::Input(_)
            | Storage::Alias { .. }
            | Storage::HostValue => continue,
        };
        *add = add.saturating_add(sizes[i]);
    }
    for (d, target) in targets.iter().enumerate() {
        let device = DeviceId(d as u32);
        let alignment = target.alignment as u64;
        let packing = pack(plan, device, &sizes, alignment, target.max_binding);
        sum.activations = sum.activations.saturating_add(packing.size());
    }
    // One region runs at a time, while the memory of the graph around it is held.
    let region = compiled.bodies().map(|body| {
        let inner = footprint(body, targets, bindings);
        inner.activations.saturating_add(inner.outputs)
    });
    sum.activations = sum.activations.saturating_add(region.max().unwrap_or(0));
    sum
}

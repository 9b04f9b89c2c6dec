//! The bytes that a plan needs when its symbols are bound: known before anything is allocated.

use super::pack::{is_packed, pack, slot_sizes};
use super::{Compiled, DeviceId, SlotId, Step, Storage};
use cupola_ir::Bindings;
use cupola_ir::target::Target;
use rustc_hash::FxHashSet;

/// Bytes by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Constants and weights, each once.
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

/// What a compiled graph needs on `targets`, those that it was compiled for. Sizes that `bindings` do not decide count
/// as nothing.
pub fn footprint(compiled: &Compiled, targets: &[&Target], bindings: &Bindings) -> Footprint {
    count(compiled, targets, bindings, &mut FxHashSet::default())
}

/// Device, address and length of a constant's bytes: regions share constants with the graph around them.
type Known = FxHashSet<(DeviceId, usize, usize)>;

fn count(
    compiled: &Compiled,
    targets: &[&Target],
    bindings: &Bindings,
    known: &mut Known,
) -> Footprint {
    let plan = &compiled.plan;
    let sizes: Vec<u64> = slot_sizes(plan, bindings)
        .into_iter()
        .map(|s| s.unwrap_or(0))
        .collect();
    let mut sum = Footprint::default();
    for (i, slot) in plan.slots.iter().enumerate() {
        match &slot.storage {
            Storage::Const(t) => {
                let bytes = t.bytes();
                if known.insert((slot.device, bytes.as_ptr() as usize, bytes.len())) {
                    sum.weights = sum.weights.saturating_add(bytes.len() as u64);
                }
            }
            Storage::Param(_) => sum.weights = sum.weights.saturating_add(sizes[i]),
            Storage::State(_) => sum.states = sum.states.saturating_add(sizes[i]),
            Storage::Planned if !is_packed(plan, SlotId(i as u32)) => {
                sum.outputs = sum.outputs.saturating_add(sizes[i]);
            }
            Storage::Planned | Storage::Input(_) | Storage::Alias { .. } | Storage::HostValue => {}
        }
    }
    for (d, target) in targets.iter().enumerate() {
        let device = DeviceId(d as u32);
        let alignment = target.alignment as u64;
        let packing = pack(plan, device, &sizes, alignment, target.max_binding);
        sum.activations = sum.activations.saturating_add(packing.size());
    }
    // One region runs at a time, while the memory of the graph around it is held.
    let mut region = 0;
    for step in &plan.steps {
        if let Step::Control { bodies, .. } = step {
            for body in bodies {
                let inner = count(body, targets, bindings, known);
                sum.weights = sum.weights.saturating_add(inner.weights);
                region = region.max(inner.activations.saturating_add(inner.outputs));
            }
        }
    }
    sum.activations = sum.activations.saturating_add(region);
    sum
}

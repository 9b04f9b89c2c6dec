//! Packs planned slots into blocks of device memory: slots that are never alive together share bytes.
//!
//! Greedy by size: the largest slot first, each at the smallest gap that fits among the slots it is alive with. The
//! same sizes always give the same packing.

use super::{DeviceId, Plan, SlotId, Step, Storage};
use cupola_ir::{Bindings, Tensor};
use std::cmp::Reverse;

/// Where slots are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// Bytes of each block.
    pub blocks: Vec<u64>,
    /// Per slot of the plan: block and byte offset; `None` for slots that are not planned on this device.
    pub at: Vec<Option<(u32, u64)>>,
}

impl Packing {
    /// Bytes of all blocks.
    pub fn size(&self) -> u64 {
        self.blocks.iter().fold(0, |a, b| a.saturating_add(*b))
    }
}

/// Bytes of every slot's tensor; 0 for host values. `None` where an extent is unbound, negative or overflows.
pub fn slot_sizes(plan: &Plan, bindings: &Bindings) -> Vec<Option<u64>> {
    let size = |slot: &super::Slot| {
        let Some(ty) = slot.ty.as_tensor() else {
            return Some(0);
        };
        if slot.storage == Storage::HostValue {
            return Some(0);
        }
        let size = Tensor::size_of(ty.dtype, &ty.shape(bindings)?)?;
        u64::try_from(size).ok()
    };
    plan.slots.iter().map(size).collect()
}

/// Whether a slot shares packed memory: planned, not alive after the run, and not given by regions. What outlives the run
/// has memory of its own, so that keeping an output does not keep the working memory; so has what regions give.
pub fn is_packed(plan: &Plan, slot: SlotId) -> bool {
    let slot = &plan.slots[slot.0 as usize];
    let from_regions = || matches!(plan.steps[slot.first], Step::Control { .. });
    slot.storage == Storage::Planned && slot.last < plan.steps.len() && !from_regions()
}

/// Offsets for the packed slots of a device. `sizes` are bytes per slot; offsets are multiples of `alignment` (a power
/// of two); no block exceeds `max_block` unless a single slot does.
pub fn pack(
    plan: &Plan,
    device: DeviceId,
    sizes: &[u64],
    alignment: u64,
    max_block: u64,
) -> Packing {
    let alignment = alignment.max(1);
    let planned = |i: usize| plan.slots[i].device == device && is_packed(plan, SlotId(i as u32));
    let mut order: Vec<usize> = (0..plan.slots.len()).filter(|i| planned(*i)).collect();
    order.sort_by_key(|i| (Reverse(sizes[*i]), plan.slots[*i].first, *i));
    let mut out = Packing {
        blocks: vec![],
        at: vec![None; plan.slots.len()],
    };
    // Slots of each block, by offset.
    let mut placed: Vec<Vec<usize>> = vec![];
    for i in order {
        let slot = &plan.slots[i];
        // An empty slot still has an address of its own, so that no two buffers of a launch coincide.
        let size = sizes[i].max(1).next_multiple_of(alignment);
        let fit = (0..placed.len())
            .filter_map(|b| {
                let taken = placed[b].iter().filter_map(|k| {
                    let other = &plan.slots[*k];
                    let together = other.first <= slot.last && slot.first <= other.last;
                    let (_, offset) = out.at[*k]?;
                    let end = offset + sizes[*k].max(1).next_multiple_of(alignment);
                    together.then_some((offset, end))
                });
                let (offset, waste) = best_gap(taken, size, out.blocks[b]);
                let end = offset.checked_add(size)?;
                (end <= max_block || offset == 0).then_some((waste, b, offset))
            })
            .min();
        let (block, offset) = match fit {
            Some((_, b, offset)) => (b, offset),
            None => {
                placed.push(vec![]);
                out.blocks.push(0);
                (placed.len() - 1, 0)
            }
        };
        out.blocks[block] = out.blocks[block].max(offset.saturating_add(size));
        out.at[i] = Some((block as u32, offset));
        let at = placed[block].partition_point(|k| out.at[*k].is_some_and(|(_, o)| o <= offset));
        placed[block].insert(at, i);
    }
    out
}

/// The tightest gap of at least `size` among taken ranges sorted by start, or the end of them; with the bytes that
/// stay unused, where growing the block counts as worst.
fn best_gap(taken: impl Iterator<Item = (u64, u64)>, size: u64, block: u64) -> (u64, u64) {
    let mut best: Option<(u64, u64)> = None;
    let mut end = 0u64;
    for (from, to) in taken {
        if from >= end && from - end >= size {
            let waste = from - end - size;
            if best.is_none_or(|(_, w)| waste < w) {
                best = Some((end, waste));
            }
        }
        end = end.max(to);
    }
    best.unwrap_or_else(|| {
        let grown = end.saturating_add(size).saturating_sub(block);
        let waste = if grown > 0 {
            1 << 62
        } else {
            block - end - size
        };
        (end, waste + grown.min(1 << 61))
    })
}

/// The slot that owns the memory of `slot`, and the byte offset in it as a dimension.
pub(crate) fn owner(plan: &Plan, slot: SlotId) -> SlotId {
    match plan.slots[slot.0 as usize].storage {
        Storage::Alias { of, .. } => of,
        _ => slot,
    }
}

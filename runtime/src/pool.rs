//! Reuse of device memory between steps and runs.

use crate::error::{Result, RuntimeError};
use crate::value::padded;
use cupola_backend::{Buffer, Device};
use cupola_ir::{Bindings, Target};
use cupola_passes::plan::{self, Packing};
use cupola_passes::{DeviceId, Plan};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Free buffers of one device.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Vec<Buffer>,
    /// Bytes of all buffers that came from here and still live, free or not.
    pub held: u64,
    /// Most bytes held at once.
    pub peak: u64,
    /// Bytes that may be held.
    pub budget: Option<u64>,
}

/// Most free buffers kept.
const MOST_FREE: usize = 256;

impl Pool {
    /// A buffer of at least `size` bytes: the smallest free one that is not more than twice as large, or a new one.
    /// `queued` says how many of a buffer's handles do not count: those of commands that come before its next use.
    pub fn take(
        &mut self,
        device: &dyn Device,
        size: usize,
        queued: impl Fn(&Buffer) -> usize,
    ) -> Result<Buffer> {
        let is_free = |b: &Buffer| match Arc::strong_count(b) {
            1 => true,
            handles => handles == 1 + queued(b),
        };
        let fits = |b: &Buffer| b.size() >= size && b.size() / 2 <= size.max(4096) && is_free(b);
        let best = (0..self.free.len())
            .filter(|i| fits(&self.free[*i]))
            .min_by_key(|i| self.free[*i].size());
        if let Some(at) = best {
            return Ok(self.free.swap_remove(at));
        }
        let size = padded(size);
        // The new one does the work of those that are a little smaller: sizes that grow leave no buffer of each.
        let is_replaced = |b: &Buffer| (size / 2..size).contains(&b.size()) && is_free(b);
        while let Some(at) = self.free.iter().position(is_replaced) {
            self.drop_free(at);
        }
        self.make_room(size as u64)?;
        let buffer = device.alloc(size)?;
        self.held += buffer.size() as u64;
        self.peak = self.peak.max(self.held);
        Ok(buffer)
    }

    /// Drops free buffers until `size` more bytes are within the budget.
    fn make_room(&mut self, size: u64) -> Result<()> {
        let Some(budget) = self.budget else {
            return Ok(());
        };
        while self.held.saturating_add(size) > budget {
            let Some(at) = self.free.iter().position(|b| Arc::strong_count(b) == 1) else {
                let need = self.held.saturating_add(size);
                return Err(RuntimeError::Memory { need, budget });
            };
            self.drop_free(at);
        }
        Ok(())
    }

    fn drop_free(&mut self, at: usize) {
        let dropped = self.free.remove(at);
        self.held = self.held.saturating_sub(dropped.size() as u64);
    }

    /// Takes a buffer back; it is handed out again once nobody else holds it.
    pub fn give(&mut self, buffer: Buffer) {
        if self.free.len() >= MOST_FREE {
            self.drop_free(0);
        }
        self.free.push(buffer);
    }
}

/// What the last run of a plan evaluated; as long as its symbols have the same values, runs evaluate nothing again.
#[derive(Debug, Default)]
pub(crate) struct Evaluated {
    bindings: Bindings,
    /// Sizes by unit, as far as they have been asked for.
    sizes: Vec<Option<Vec<i64>>>,
    /// Bytes by slot.
    slots: Option<Arc<[Option<u64>]>>,
}

impl Evaluated {
    /// Forgets what belongs to other values.
    pub fn renew(&mut self, bindings: &Bindings, units: usize) {
        if self.sizes.len() != units || self.bindings != *bindings {
            self.bindings = bindings.clone();
            self.sizes = vec![None; units];
            self.slots = None;
        }
    }

    /// Bytes of the plan's slots.
    pub fn slot_sizes(&mut self, plan: &Plan) -> Arc<[Option<u64>]> {
        let sizes = || plan::slot_sizes(plan, &self.bindings).into();
        self.slots.get_or_insert_with(sizes).clone()
    }

    /// The sizes of a unit, once they have been noted.
    pub fn sizes(&self, unit: usize) -> Option<&Vec<i64>> {
        self.sizes.get(unit)?.as_ref()
    }

    /// Notes the sizes of a unit.
    pub fn note(&mut self, unit: usize, sizes: &[i64]) {
        if let Some(noted) = self.sizes.get_mut(unit) {
            *noted = Some(sizes.to_vec());
        }
    }
}

/// Most packings remembered.
const MOST_LAYOUTS: usize = 64;

/// What is remembered of plans from run to run, by their numbers in the process.
#[derive(Debug, Default)]
pub(crate) struct Layouts {
    /// By plan and sizes: runs of a size seen before do not pack again.
    packings: Vec<(u64, DeviceId, Vec<u64>, Arc<Packing>)>,
    evaluated: FxHashMap<u64, Evaluated>,
}

impl Layouts {
    /// What the last run of a plan evaluated.
    pub fn evaluated(&mut self, id: u64) -> &mut Evaluated {
        self.evaluated.entry(id).or_default()
    }

    /// The packing of a plan's slots on a device for these sizes.
    pub fn packing(
        &mut self,
        id: u64,
        plan: &Plan,
        device: DeviceId,
        sizes: Vec<u64>,
        target: &Target,
    ) -> Arc<Packing> {
        if let Some((.., p)) = self
            .packings
            .iter()
            .find(|(k, d, s, _)| *k == id && *d == device && *s == sizes)
        {
            return p.clone();
        }
        let packing = plan::pack(
            plan,
            device,
            &sizes,
            target.alignment as u64,
            target.max_binding,
        );
        if self.packings.len() == MOST_LAYOUTS {
            self.packings.remove(0);
        }
        self.packings.push((id, device, sizes, Arc::new(packing)));
        self.packings[self.packings.len() - 1].3.clone()
    }
}

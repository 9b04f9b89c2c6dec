//! Compiled graphs made ready to run: executables and weights on their devices.

use crate::error::Result;
use cupola_backend::{Backend, Buffer, BufferRange, Executable};
use cupola_ir::kernel::Unit;
use cupola_passes::{Compiled, DeviceId, SlotId, Step, Storage};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Devices by [`DeviceId`].
pub(crate) type Devices = [Arc<dyn Backend>];

/// Weights already on a device, by device and address of their bytes. Equal handles are uploaded once, also across
/// regions.
#[derive(Default)]
pub(crate) struct WeightCache {
    buffers: FxHashMap<(DeviceId, usize, usize), Buffer>,
    /// Bytes of all weights, and of the forms of them that executables hold.
    pub bytes: u64,
    /// Plans loaded so far.
    plans: usize,
}

/// A compiled graph with its executables and constants; regions loaded likewise.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Position among the plans of the program: a graph before its regions.
    pub number: usize,
    /// What to do.
    pub compiled: Compiled,
    /// One per unit.
    pub executables: Vec<Arc<dyn Executable>>,
    /// Memory of constant slots.
    pub constants: Vec<Option<Buffer>>,
    /// Regions of control steps, by step.
    pub bodies: FxHashMap<usize, Vec<Loaded>>,
    /// Slots whose last reader is this step, by step.
    pub releases: Vec<Vec<usize>>,
}

impl Loaded {
    /// Compiles all units, device by device, and uploads constants.
    pub fn new(
        mut compiled: Compiled,
        devices: &Devices,
        weights: &mut WeightCache,
    ) -> Result<Loaded> {
        let number = weights.plans;
        weights.plans += 1;
        let mut executables = compile_units(&compiled, devices)?;
        let mut constants = vec![None; compiled.plan.slots.len()];
        for (slot, at) in compiled.plan.slots.iter().zip(&mut constants) {
            if let Storage::Const(tensor) = &slot.storage
                && let Some(bytes) = tensor.shared_bytes()
            {
                let key = (slot.device, bytes.as_ptr() as usize, bytes.len());
                let buffer = match weights.buffers.get(&key) {
                    Some(b) => b.clone(),
                    None => {
                        weights.bytes += bytes.len() as u64;
                        let b = devices[slot.device.0 as usize].device().constant(bytes)?;
                        weights.buffers.insert(key, b.clone());
                        b
                    }
                };
                *at = Some(buffer);
            }
        }
        bind_constants(&compiled, &constants, devices, &mut executables)?;
        weights.bytes += executables
            .iter()
            .map(|e| e.constant_size() as u64)
            .sum::<u64>();
        let mut bodies = FxHashMap::default();
        for (i, step) in compiled.plan.steps.iter_mut().enumerate() {
            if let Step::Control {
                bodies: regions, ..
            } = step
            {
                let regions = std::mem::take(regions);
                let loaded = regions
                    .into_iter()
                    .map(|r| Loaded::new(r, devices, weights))
                    .collect::<Result<_>>()?;
                bodies.insert(i, loaded);
            }
        }
        let mut releases = vec![vec![]; compiled.plan.steps.len()];
        for (i, slot) in compiled.plan.slots.iter().enumerate() {
            if let Some(list) = releases.get_mut(slot.last)
                && slot.first <= slot.last
            {
                list.push(i);
            }
        }
        Ok(Loaded {
            number,
            compiled,
            executables,
            constants,
            bodies,
            releases,
        })
    }

    /// The plans of this graph and its regions, by [`Loaded::number`].
    pub fn plans(&self) -> BTreeMap<usize, &Compiled> {
        let mut all = BTreeMap::from([(self.number, &self.compiled)]);
        let regions = self.bodies.values().flatten();
        regions.for_each(|body| all.extend(body.plans()));
        all
    }

    /// Units compiled, regions included.
    pub fn unit_count(&self) -> usize {
        self.executables.len()
            + self
                .bodies
                .values()
                .flatten()
                .map(Loaded::unit_count)
                .sum::<usize>()
    }
}

/// Lets executables prepare the operands that are constants. A unit is launched by one step, so its executable may hold
/// what belongs to that step.
fn bind_constants(
    compiled: &Compiled,
    constants: &[Option<Buffer>],
    devices: &Devices,
    executables: &mut [Arc<dyn Executable>],
) -> Result<()> {
    for step in &compiled.plan.steps {
        let Step::Launch { unit, buffers } = step else {
            continue;
        };
        let whole = |buffer: &Buffer| BufferRange {
            buffer: buffer.clone(),
            offset: 0,
            size: buffer.size(),
        };
        let known: Vec<Option<BufferRange>> = (buffers.iter())
            .map(|slot| constants[slot.0 as usize].as_ref().map(whole))
            .collect();
        if known.iter().any(Option::is_some) {
            let backend = &devices[compiled.units[*unit].device.0 as usize];
            executables[*unit] = backend.bind_constants(executables[*unit].clone(), &known)?;
        }
    }
    Ok(())
}

/// Bytes of the forms of constants that units hold beside the constants themselves, regions included; known
/// before anything is loaded.
pub fn packed_size(compiled: &Compiled, devices: &[Arc<dyn Backend>]) -> u64 {
    let slots = &compiled.plan.slots;
    let of_step = |step: &Step| -> u64 {
        let Step::Launch { unit, buffers } = step else {
            return 0;
        };
        let is_constant =
            |slot: &SlotId| matches!(slots[slot.0 as usize].storage, Storage::Const(_));
        let is_constant: Vec<bool> = buffers.iter().map(is_constant).collect();
        let unit = &compiled.units[*unit];
        devices[unit.device.0 as usize].constant_size(&unit.unit, &is_constant) as u64
    };
    let own: u64 = compiled.plan.steps.iter().map(of_step).sum();
    let regions = compiled.bodies().map(|body| packed_size(body, devices));
    own + regions.sum::<u64>()
}

fn compile_units(compiled: &Compiled, devices: &Devices) -> Result<Vec<Arc<dyn Executable>>> {
    let mut done: Vec<Option<Arc<dyn Executable>>> = vec![None; compiled.units.len()];
    for (d, backend) in devices.iter().enumerate() {
        let mine: Vec<usize> = (0..done.len())
            .filter(|i| compiled.units[*i].device.0 as usize == d)
            .collect();
        let units: Vec<&Unit> = mine.iter().map(|i| &compiled.units[*i].unit).collect();
        if units.is_empty() {
            continue;
        }
        for (i, result) in mine.into_iter().zip(backend.compile(&units)) {
            done[i] = Some(result?);
        }
    }
    Ok(done.into_iter().flatten().collect())
}

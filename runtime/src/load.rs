//! Compiled graphs made ready to run: executables and weights on their devices.

use crate::error::Result;
use crate::keeping::Keeping;
use crate::value::{download, whole};
use bytes::Bytes;
use cupola_backend::{Backend, Binding, Buffer, Command, Device, Executable, Launch};
use cupola_ir::kernel::Unit;
use cupola_ir::{CoreOp, NodeId, Op, Tensor};
use cupola_passes::{Compiled, DeviceId, Slot, SlotId, Step, Storage};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Devices by [`DeviceId`].
pub(crate) type Devices = [Arc<dyn Backend>];

/// Where constant bytes lie on the host, and the device that has them.
type Place = (DeviceId, usize, usize);

fn place(device: DeviceId, bytes: &Bytes) -> Place {
    (device, bytes.as_ptr() as usize, bytes.len())
}

/// Told of bytes of constants that are not needed any more where they lie: they have been copied, or made into another
/// form. They may be asked for again.
#[derive(Clone)]
pub struct Release(Arc<dyn Fn(&[u8]) + Send + Sync>);

impl Release {
    /// Calls `release` with the bytes.
    pub fn new(release: impl Fn(&[u8]) + Send + Sync + 'static) -> Release {
        Release(Arc::new(release))
    }

    pub(crate) fn call(&self, bytes: &[u8]) {
        self.0(bytes);
    }
}

impl fmt::Debug for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Release")
    }
}

/// Weights already on a device, and whether they are aligned there. Equal handles are uploaded once, also across regions.
#[derive(Default)]
pub(crate) struct WeightCache {
    buffers: FxHashMap<Place, (Buffer, bool)>,
    /// Bytes of all weights, and of the forms of them that executables hold.
    pub bytes: u64,
    /// Plans loaded so far.
    plans: usize,
    release: Option<Release>,
    keeping: Option<Arc<Keeping>>,
}

impl WeightCache {
    pub fn new(release: Option<Release>, keeping: Option<Arc<Keeping>>) -> WeightCache {
        WeightCache {
            release,
            keeping,
            ..WeightCache::default()
        }
    }

    fn release(&self, bytes: &[u8]) {
        if let Some(release) = &self.release {
            release.call(bytes);
        }
    }

    /// The memory of a constant that is read; without `aligned` it may lie anywhere.
    fn put(
        &mut self,
        id: DeviceId,
        device: &dyn Device,
        bytes: Bytes,
        aligned: bool,
    ) -> Result<Buffer> {
        let place = place(id, &bytes);
        match self.buffers.get(&place) {
            Some((buffer, known)) if *known || !aligned => return Ok(buffer.clone()),
            Some(_) => {}
            None => self.bytes += bytes.len() as u64,
        }
        let buffer = match aligned {
            true => device.constant(bytes.clone())?,
            false => device.constant_in_place(bytes.clone())?,
        };
        let shared = device.share(&whole(buffer.clone(), bytes.len()))?;
        if shared.is_none_or(|shared| shared.as_ptr() != bytes.as_ptr()) {
            self.release(&bytes);
        }
        self.buffers.insert(place, (buffer.clone(), aligned));
        Ok(buffer)
    }
}

/// Tells plans apart that states remember.
fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// Whether no step binds a symbol.
fn is_settled(compiled: &Compiled) -> bool {
    let mut steps = compiled.plan.steps.iter();
    steps.all(|step| match step {
        Step::Launch { .. }
        | Step::Transfer { .. }
        | Step::Require { .. }
        | Step::Collective { .. }
        | Step::Await { .. }
        | Step::WriteState { .. } => true,
        Step::Host { .. } | Step::Control { .. } | Step::Bind { .. } => false,
    })
}

/// A compiled graph with its executables and constants; regions loaded likewise.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Position among the plans of the program: a graph before its regions.
    pub number: usize,
    /// What to do.
    pub compiled: Compiled,
    /// Differs from that of any other plan of the process.
    pub id: u64,
    /// Whether all sizes are known once the inputs are.
    pub is_settled: bool,
    /// One per unit.
    pub executables: Vec<Arc<dyn Executable>>,
    /// Memory of constant slots.
    pub constants: Vec<Option<Buffer>>,
    /// Regions of control steps, by step.
    pub bodies: FxHashMap<usize, Vec<Loaded>>,
    /// Of a region that is repeated, what its units take that is the same in all repetitions.
    pub invariants: Vec<Invariants>,
    /// Constants of which runs pick rows, by the last step that does.
    pub picked: Vec<Vec<Bytes>>,
    /// Told of constants that need not stay in memory.
    pub release: Option<Release>,
    /// Slots whose last reader is this step, by step.
    pub releases: Vec<Vec<usize>>,
    /// Where each input is read; `None` where it is only handed on.
    pub input_homes: Vec<Option<DeviceId>>,
    /// Whether the first output comes from a device other than the host, and running the plan once more than needed would
    /// cost nothing but time.
    pub may_run_ahead: bool,
}

/// Arguments of a unit of a repeated region that stay the same, and that its backend makes something of.
#[derive(Debug)]
pub(crate) struct Invariants {
    pub unit: usize,
    /// For each buffer argument the input of the region that it is, if it is one of these.
    pub inputs: Vec<Option<usize>>,
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
        let mut executables = compile_units(&compiled, devices, weights.keeping.as_deref())?;
        let mut made = Made::new(&compiled);
        prepare(
            number,
            &compiled,
            devices,
            &mut executables,
            weights,
            &mut made,
        )?;
        // Copies of weights on their way are larger than what runs will need.
        devices.iter().for_each(|d| d.device().trim());
        let read = constants_read(&compiled, |unit, argument| {
            executables[unit].replaces(argument)
        });
        let aligned = constants_read(&compiled, |unit, argument| {
            executables[unit].takes_any_address(argument)
        });
        let mut constants = vec![None; compiled.plan.slots.len()];
        let mut picked = vec![vec![]; compiled.plan.steps.len()];
        let is_made = |slot: &Slot| matches!(slot.storage, Storage::Made { .. });
        // Launches are given what was made and then replaced, but leave it alone: any bytes will do. Nobody touches these, so
        // that they take no memory.
        let slots = compiled.plan.slots.iter().zip(&read);
        let replaced = slots.filter(|(slot, read)| is_made(slot) && !**read);
        let most = replaced.filter_map(|(slot, _)| constant_size(slot)).max();
        let stand_in = Bytes::from(vec![0; most.unwrap_or(0)]);
        for (i, slot) in compiled.plan.slots.iter().enumerate() {
            let device = devices[slot.device.0 as usize].device();
            if let Some(bytes) = constant_bytes(slot) {
                constants[i] = Some(match (read[i], aligned[i]) {
                    (false, _) => device.constant_in_place(bytes.clone())?,
                    (true, aligned) => weights.put(slot.device, device, bytes.clone(), aligned)?,
                });
                if let Some(last) = picked_until(&compiled, SlotId(i as u32), &executables) {
                    picked[last].push(bytes);
                }
            } else if is_made(slot) && !read[i] {
                let size = constant_size(slot).unwrap_or(0);
                constants[i] = Some(device.constant_in_place(stand_in.slice(..size))?);
            } else if is_made(slot) {
                let id = SlotId(i as u32);
                let bytes = made.bytes(id, &compiled, devices, &executables)?;
                weights.bytes += bytes.len() as u64;
                constants[i] = Some(device.constant(bytes)?);
            }
        }
        weights.bytes += executables
            .iter()
            .map(|e| e.constant_size() as u64)
            .sum::<u64>();
        let mut bodies = FxHashMap::default();
        for (i, step) in compiled.plan.steps.iter_mut().enumerate() {
            if let Step::Control {
                node,
                bodies: regions,
                ..
            } = step
            {
                let regions = std::mem::take(regions);
                let first = first_invariant(&compiled.graph.node(*node).op);
                let loaded = regions.into_iter().map(|r| {
                    let mut body = Loaded::new(r, devices, weights)?;
                    if let Some(first) = first {
                        body.invariants = invariants(&body.compiled, first, devices);
                    }
                    Ok(body)
                });
                bodies.insert(i, loaded.collect::<Result<_>>()?);
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
        let inputs = compiled.plan.inputs.iter();
        let input_homes = inputs.map(|slot| input_home(&compiled, *slot)).collect();
        Ok(Loaded {
            input_homes,
            may_run_ahead: may_run_ahead(&compiled, &executables),
            number,
            id: next_id(),
            is_settled: is_settled(&compiled),
            compiled,
            executables,
            constants,
            picked,
            release: weights.release.clone(),
            bodies,
            invariants: vec![],
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

/// The first input of an op's regions that is the same in all their runs, where they are repeated.
fn first_invariant(op: &Op) -> Option<usize> {
    match op {
        // The iteration's number comes first.
        Op::Core(CoreOp::Loop(p)) => Some(1 + p.carried),
        Op::Core(CoreOp::Scan(p)) => Some(p.carried + p.scanned),
        Op::Core(_) | Op::Host(_) | Op::Composite(_) => None,
    }
}

/// What units take of the inputs from `first` on and can be bound to, see [`Backend::bind_constants`].
fn invariants(compiled: &Compiled, first: usize, devices: &Devices) -> Vec<Invariants> {
    let slots = &compiled.plan.slots;
    let input = |slot: &SlotId| match slots[slot.0 as usize].storage {
        Storage::Input(at) if at >= first => Some(at),
        _ => None,
    };
    let mut all = vec![];
    for step in &compiled.plan.steps {
        let Step::Launch { unit, buffers } = step else {
            continue;
        };
        let mut inputs: Vec<Option<usize>> = buffers.iter().map(input).collect();
        let is_constant: Vec<bool> = (buffers.iter().zip(&inputs))
            .map(|(slot, input)| input.is_some() || is_constant(&slots[slot.0 as usize].storage))
            .collect();
        let placed = &compiled.units[*unit];
        let backend = &devices[placed.device.0 as usize];
        let arguments = backend.replacement(&placed.unit, &is_constant).arguments;
        for (at, input) in inputs.iter_mut().enumerate() {
            *input = input.filter(|_| arguments.contains(&at));
        }
        // What is made of constants and of these together would have to be made again of both.
        let is_whole = arguments.iter().all(|at| inputs[*at].is_some());
        if is_whole && !arguments.is_empty() {
            all.push(Invariants {
                unit: *unit,
                inputs,
            });
        }
    }
    all
}

/// Where an input is read; `None` where it is only handed on.
fn input_home(compiled: &Compiled, input: SlotId) -> Option<DeviceId> {
    let plan = &compiled.plan;
    let device = plan.slots[input.0 as usize].device;
    if device != DeviceId::HOST {
        return Some(device);
    }
    let is_input = |slot: &SlotId| match plan.slots[slot.0 as usize].storage {
        Storage::Alias { of, .. } => of == input,
        _ => *slot == input,
    };
    let is_read = |step: &Step| match step {
        Step::Launch { buffers, .. } => buffers.iter().any(is_input),
        Step::Host { operands, .. } | Step::Collective { operands, .. } => {
            operands.iter().any(is_input)
        }
        Step::Control { node, operands, .. } => match &compiled.graph.node(*node).op {
            Op::Core(op) => operands[..op.decisions()].iter().any(is_input),
            Op::Host(_) | Op::Composite(_) => false,
        },
        Step::Bind { from, .. } => is_input(from),
        Step::Transfer { .. }
        | Step::Require { .. }
        | Step::Await { .. }
        | Step::WriteState { .. } => false,
    };
    plan.steps.iter().any(is_read).then_some(device)
}

fn may_run_ahead(compiled: &Compiled, executables: &[Arc<dyn Executable>]) -> bool {
    let plan = &compiled.plan;
    let is_far = |slot: &SlotId| plan.slots[slot.0 as usize].device != DeviceId::HOST;
    let is_harmless = |step: &Step| match step {
        Step::Launch { unit, .. } => {
            compiled.units[*unit].device != DeviceId::HOST && !executables[*unit].can_fault()
        }
        Step::Require { .. } => true,
        _ => false,
    };
    plan.outputs.first().is_some_and(is_far) && plan.steps.iter().all(is_harmless)
}

/// Whether a slot's contents are the same in every run.
fn is_constant(storage: &Storage) -> bool {
    matches!(storage, Storage::Const(_) | Storage::Made { .. })
}

/// The bytes of a slot that holds a constant of the graph.
pub(crate) fn constant_bytes(slot: &Slot) -> Option<Bytes> {
    match &slot.storage {
        Storage::Const(tensor) => tensor.shared_bytes(),
        _ => None,
    }
}

/// Most bytes of constants that executables are given at a time: enough to keep several threads busy, few enough not to
/// matter beside the weights.
const GROUP: usize = 8 << 20;

/// Lets executables prepare the operands that are constants, and lets go of the memory these were read from. A unit is
/// launched by one step, so its executable may hold what belongs to that step.
fn prepare(
    number: usize,
    compiled: &Compiled,
    devices: &Devices,
    executables: &mut [Arc<dyn Executable>],
    weights: &WeightCache,
    made: &mut Made,
) -> Result<()> {
    let plan = &compiled.plan;
    let is_constant = |s: &SlotId| is_constant(&plan.slots[s.0 as usize].storage);
    let size_of = |s: &SlotId| match constant_bytes(&plan.slots[s.0 as usize]) {
        Some(bytes) => bytes.len(),
        None => constant_size(&plan.slots[s.0 as usize]).unwrap_or(0),
    };
    let launches = plan.steps.iter().filter_map(|step| match step {
        Step::Launch { unit, buffers } if buffers.iter().any(is_constant) => {
            let constants = buffers.iter().filter(|s| is_constant(s));
            Some((*unit, buffers, constants.map(size_of).sum::<usize>()))
        }
        _ => None,
    });
    // The largest first: both it and its form are in memory while little else is, what is lent for copies of it serves all
    // others, and threads end together.
    let mut launches: Vec<(usize, &Vec<SlotId>, usize)> = launches.collect();
    launches.sort_by_key(|(.., size)| Reverse(*size));
    let mut rest = &launches[..];
    while !rest.is_empty() {
        let mut size = 0;
        let fits = rest.iter().take_while(|(.., own)| {
            let begun = size < GROUP;
            size += own;
            begun
        });
        let (group, others) = rest.split_at(fits.count());
        rest = others;
        let mut waiting: Vec<(usize, Binding)> = vec![];
        for (unit, buffers, _) in group {
            let constant = |s: &SlotId| match plan.slots[s.0 as usize].storage {
                Storage::Made { .. } => {
                    let bytes = made.bytes(*s, compiled, devices, executables);
                    bytes.map(Some)
                }
                _ => Ok(constant_bytes(&plan.slots[s.0 as usize])),
            };
            let constants = buffers.iter().map(constant).collect::<Result<_>>()?;
            let keeping = weights.keeping.as_ref();
            let binding = Binding {
                executable: executables[*unit].clone(),
                constants,
                kept: keeping.map(|k| k.kept(number, compiled, *unit, buffers)),
                lasts: true,
            };
            waiting.push((*unit, binding));
        }
        for (d, backend) in devices.iter().enumerate() {
            let of_device =
                |(unit, _): &mut (usize, Binding)| compiled.units[*unit].device.0 as usize == d;
            let (units, group): (Vec<usize>, Vec<Binding>) =
                waiting.extract_if(.., of_device).unzip();
            let bound = backend.bind_constants(&group);
            for ((unit, bound), binding) in units.into_iter().zip(bound).zip(&group) {
                executables[unit] = bound?;
                let replaced = |(k, _): &(usize, _)| executables[unit].replaces(*k);
                let constants = binding.constants.iter().enumerate().filter(replaced);
                constants
                    .filter_map(|(_, c)| c.as_ref())
                    .for_each(|c| weights.release(c));
            }
        }
        // What was made for the kernels of this group, and will be made again for what reads it as it is.
        made.forget();
    }
    Ok(())
}

/// What is made of constants, as far as it is wanted just now: forms that kernels make of it take its place.
struct Made {
    bytes: Vec<Option<Bytes>>,
}

impl Made {
    fn new(compiled: &Compiled) -> Made {
        Made {
            bytes: vec![None; compiled.plan.once.len()],
        }
    }

    fn forget(&mut self) {
        self.bytes.fill(None);
    }

    /// The bytes of a slot that holds a constant, of the graph or made of such.
    fn bytes(
        &mut self,
        slot: SlotId,
        compiled: &Compiled,
        devices: &Devices,
        executables: &[Arc<dyn Executable>],
    ) -> Result<Bytes> {
        let held = &compiled.plan.slots[slot.0 as usize];
        let by = match &held.storage {
            Storage::Made { by } => *by,
            Storage::Alias { of, offset } => {
                let whole = self.bytes(*of, compiled, devices, executables)?;
                let start = offset.as_const().and_then(|n| usize::try_from(n).ok());
                let range = start.zip(constant_size(held)).map(|(at, n)| at..at + n);
                let part = range.filter(|range| range.end <= whole.len());
                let range =
                    part.unwrap_or_else(|| unreachable!("bug: a part outside of the whole"));
                return Ok(whole.slice(range));
            }
            _ => {
                let bytes = constant_bytes(held);
                return Ok(bytes.unwrap_or_else(|| unreachable!("bug: made of no constant")));
            }
        };
        if let Some(known) = &self.bytes[by] {
            return Ok(known.clone());
        }
        let once = &compiled.plan.once[by];
        let backend = &devices[held.device.0 as usize];
        let device = backend.device();
        let executable = executables[once.unit].clone();
        let mut buffers = vec![];
        for (at, argument) in once.buffers.iter().enumerate() {
            if *argument == once.result {
                let size = constant_size(held);
                let size = size.unwrap_or_else(|| unreachable!("bug: made of a size unknown"));
                buffers.push(whole(device.alloc(size)?, size));
                continue;
            }
            let bytes = self.bytes(*argument, compiled, devices, executables)?;
            let size = bytes.len();
            let buffer = match executable.takes_any_address(at) {
                true => device.constant_in_place(bytes)?,
                false => device.constant(bytes)?,
            };
            buffers.push(whole(buffer, size));
        }
        let result = once.buffers.iter().position(|s| *s == once.result);
        let result = result.map(|at| buffers[at].clone());
        let result = result.unwrap_or_else(|| unreachable!("bug: a unit without a result"));
        device.submit(&[Command::Launch(Launch {
            executable,
            buffers,
            sizes: vec![],
        })])?;
        device.wait()?;
        let bytes = match device.share(&result)? {
            Some(bytes) => bytes,
            None => download(&**backend, &result)?,
        };
        self.bytes[by] = Some(bytes.clone());
        Ok(bytes)
    }
}

/// Bytes of a slot whose extents are numbers.
fn constant_size(slot: &Slot) -> Option<usize> {
    let ty = slot.ty.as_tensor()?;
    Tensor::size_of(ty.dtype, &ty.const_shape()?)
}

/// For each slot whether it is a constant that something reads, launches left out of which `except` is true for the unit
/// and the argument.
fn constants_read(compiled: &Compiled, except: impl Fn(usize, usize) -> bool) -> Vec<bool> {
    let plan = &compiled.plan;
    let mut all = vec![false; plan.slots.len()];
    let mut read = |slot: &SlotId| {
        let owner = match plan.slots[slot.0 as usize].storage {
            Storage::Alias { of, .. } => of,
            _ => *slot,
        };
        let constant = is_constant(&plan.slots[owner.0 as usize].storage);
        all[owner.0 as usize] |= constant;
    };
    for step in &plan.steps {
        match step {
            Step::Launch { unit, buffers } => {
                let kept = |(k, _): &(usize, &SlotId)| !except(*unit, *k);
                let kept = buffers.iter().enumerate().filter(kept);
                kept.for_each(|(_, slot)| read(slot));
            }
            Step::Host { operands, .. }
            | Step::Control { operands, .. }
            | Step::Collective { operands, .. } => operands.iter().for_each(&mut read),
            Step::Transfer { from, .. }
            | Step::Bind { from, .. }
            | Step::WriteState { from, .. } => read(from),
            Step::Require { .. } | Step::Await { .. } => {}
        }
    }
    plan.outputs.iter().for_each(read);
    all
}

/// The last step that reads a constant, where all that is read of it are rows that other operands name.
fn picked_until(
    compiled: &Compiled,
    slot: SlotId,
    executables: &[Arc<dyn Executable>],
) -> Option<usize> {
    let value = compiled.plan.slots[slot.0 as usize].value;
    let picks = |node: &NodeId| {
        let node = compiled.graph.node(*node);
        let is_gather = matches!(node.op, Op::Core(CoreOp::Gather(_)));
        let mut others = node.operands.iter().skip(usize::from(is_gather));
        others.all(|operand| *operand != value)
    };
    let mut last = None;
    for (at, step) in compiled.plan.steps.iter().enumerate() {
        let is_kept = match step {
            Step::Launch { unit, buffers } => {
                let mut arguments = buffers.iter().enumerate();
                let reads = arguments.any(|(k, s)| *s == slot && !executables[*unit].replaces(k));
                last = if reads { Some(at) } else { last };
                !reads || compiled.units[*unit].nodes.iter().all(picks)
            }
            Step::Host { operands, .. }
            | Step::Control { operands, .. }
            | Step::Collective { operands, .. } => !operands.contains(&slot),
            Step::Transfer { from, .. }
            | Step::Bind { from, .. }
            | Step::WriteState { from, .. } => *from != slot,
            Step::Require { .. } | Step::Await { .. } => true,
        };
        if !is_kept {
            return None;
        }
    }
    last.filter(|_| !compiled.plan.outputs.contains(&slot))
}

/// Bytes of all constants on the devices, each once, regions included: of those that units hold in a form of their own,
/// that form. Known before anything is loaded.
pub fn weight_size(compiled: &Compiled, devices: &[Arc<dyn Backend>]) -> u64 {
    fn add(compiled: &Compiled, devices: &Devices, seen: &mut FxHashSet<Place>) -> u64 {
        let slots = &compiled.plan.slots;
        let mut replaced = FxHashSet::default();
        let mut sum = 0u64;
        for step in &compiled.plan.steps {
            if let Step::Launch { unit, buffers } = step {
                let storage = buffers.iter().map(|s| &slots[s.0 as usize].storage);
                let constant: Vec<bool> = storage.map(is_constant).collect();
                let placed = &compiled.units[*unit];
                let backend = &devices[placed.device.0 as usize];
                let replacement = backend.replacement(&placed.unit, &constant);
                sum = sum.saturating_add(replacement.size as u64);
                replaced.extend(replacement.arguments.into_iter().map(|k| (*unit, k)));
            }
        }
        let read = constants_read(compiled, |unit, k| replaced.contains(&(unit, k)));
        for (slot, read) in slots.iter().zip(read) {
            if let (Storage::Made { .. }, true) = (&slot.storage, read) {
                sum = sum.saturating_add(constant_size(slot).unwrap_or(0) as u64);
            }
            if let (Some(bytes), true) = (constant_bytes(slot), read)
                && seen.insert(place(slot.device, &bytes))
            {
                sum = sum.saturating_add(bytes.len() as u64);
            }
        }
        let regions = compiled.bodies();
        regions.fold(sum, |sum, body| {
            sum.saturating_add(add(body, devices, seen))
        })
    }
    add(compiled, devices, &mut FxHashSet::default())
}

fn compile_units(
    compiled: &Compiled,
    devices: &Devices,
    keeping: Option<&Keeping>,
) -> Result<Vec<Arc<dyn Executable>>> {
    let mut done: Vec<Option<Arc<dyn Executable>>> = vec![None; compiled.units.len()];
    for (d, backend) in devices.iter().enumerate() {
        let mine: Vec<usize> = (0..done.len())
            .filter(|i| compiled.units[*i].device.0 as usize == d)
            .collect();
        let units: Vec<&Unit> = mine.iter().map(|i| &compiled.units[*i].unit).collect();
        if units.is_empty() {
            continue;
        }
        let results = match keeping {
            Some(keeping) => backend.compile_kept(&units, keeping),
            None => backend.compile(&units),
        };
        for (i, result) in mine.into_iter().zip(results) {
            done[i] = Some(result?);
        }
    }
    Ok(done.into_iter().flatten().collect())
}

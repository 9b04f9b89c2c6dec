//! Where the values of a running plan live, and how they move.
//!
//! Slots whose sizes are known at the start share packed blocks; what outlives the run has buffers of its own. Both come
//! from a pool of the run's [`crate::State`], so runs of equal sizes allocate nothing. Only buffers of their own are
//! handed out of the run: a block is overwritten while the run goes on. Regions may read the blocks of the plan around
//! them, which waits meanwhile.

use crate::error::{Result, RuntimeError};
use crate::exec::RunCx;
use crate::load::Loaded;
use crate::value::{DeviceTensor, Place, RunValue, download, whole};
use cupola_backend::{BufferRange, Command, Executable};
use cupola_ir::eval::bind;
use cupola_ir::{Bindings, DType, IrError, NodeId, Tensor, Value, ValueType};
use cupola_passes::plan;
use cupola_passes::{DeviceId, Slot, SlotId, Storage};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values of one plan while it runs.
pub(crate) struct Frame<'a> {
    pub loaded: &'a Loaded,
    /// Code of the units.
    pub executables: &'a [Arc<dyn Executable>],
    pub bindings: Bindings,
    /// The step that runs now.
    pub at: usize,
    memory: Vec<Option<BufferRange>>,
    /// Whether a slot's memory is a buffer of its own from the pool.
    pooled: Vec<bool>,
    /// Values that are not in the memory of the slot's device.
    elsewhere: Vec<Option<RunValue>>,
    /// Memory that the caller gave for outputs, until it is used.
    given: Vec<(SlotId, DeviceTensor)>,
    /// Collectives that are on their way: their numbers by node.
    pub begun: BTreeMap<NodeId, u64>,
    /// The first of the run's blocks that belongs to this plan.
    first_block: usize,
}

/// Where outputs go.
pub(crate) enum Outputs {
    /// Where the caller of the run wants them, on the host past the end.
    Places(Vec<Place>),
    /// Where they are, for the plan around. Where there is memory for one it is used if it fits.
    Region(Vec<Option<DeviceTensor>>),
}

/// Where one output goes, once the memory given for it is set aside.
pub(crate) enum Target {
    Host,
    Device,
    Into(DeviceTensor),
    /// Where it is, be it in memory that is overwritten once the plan around goes on.
    Anywhere,
}

impl<'a> Frame<'a> {
    pub fn new(
        loaded: &'a Loaded,
        executables: &'a [Arc<dyn Executable>],
        bindings: Bindings,
        first_block: usize,
    ) -> Frame<'a> {
        let slots = loaded.compiled.plan.slots.len();
        Frame {
            loaded,
            executables,
            bindings,
            at: 0,
            memory: vec![None; slots],
            pooled: vec![false; slots],
            elsewhere: vec![None; slots],
            given: vec![],
            begun: BTreeMap::new(),
            first_block,
        }
    }

    fn slot(&self, id: SlotId) -> &'a Slot {
        &self.loaded.compiled.plan.slots[id.0 as usize]
    }

    /// Binds the symbols of a slot's type from its value.
    pub fn bind_type(&mut self, id: SlotId, value: &RunValue) -> Result<(), String> {
        let ty = &self.slot(id).ty;
        match value {
            RunValue::Host(v) => bind::bind_value(ty, v, &mut self.bindings),
            RunValue::Device(t) => match ty.as_tensor() {
                Some(ty) => bind::bind_tensor(ty, t.dtype(), t.shape(), &mut self.bindings),
                None => Err(format!("{} where {ty} is taken", t.ty())),
            },
        }
    }

    /// Takes the inputs, weights and states in, and refers to constants.
    pub fn bind_inputs(&mut self, inputs: Vec<RunValue>, cx: &mut RunCx<'_>) -> Result<()> {
        let loaded = self.loaded;
        let plan = &loaded.compiled.plan;
        let mut inputs: Vec<Option<RunValue>> = inputs.into_iter().map(Some).collect();
        for (i, slot) in plan.slots.iter().enumerate() {
            let id = SlotId(i as u32);
            let (name, value) = match &slot.storage {
                Storage::Input(at) => {
                    let value = inputs.get_mut(*at).and_then(Option::take);
                    let value =
                        value.unwrap_or_else(|| unreachable!("bug: input slots are distinct"));
                    (loaded.compiled.graph.input_name(slot.value), value)
                }
                Storage::Param(name) => match cx.params.get(name) {
                    Some(value) => (name.as_str(), value.clone()),
                    None => return Err(RuntimeError::input(name, "the weight was not given")),
                },
                Storage::State(name) => match cx.states.get(name) {
                    Some(value) if plan.overwritten.contains(&id) => {
                        (name.as_str(), self.exclusive(value, slot.device, cx)?)
                    }
                    Some(value) => (name.as_str(), value.clone()),
                    None => unreachable!("bug: state without a value"),
                },
                Storage::Const(tensor) => {
                    match &loaded.constants[i] {
                        Some(b) => self.memory[i] = Some(whole(b.clone(), b.size())),
                        None => self.elsewhere[i] = Some(tensor.clone().into()),
                    }
                    continue;
                }
                Storage::Made { .. } => {
                    let made = loaded.constants[i].clone();
                    self.memory[i] = made.map(|b| whole(b.clone(), b.size()));
                    continue;
                }
                Storage::Planned | Storage::Alias { .. } | Storage::HostValue => continue,
            };
            self.bind_type(id, &value)
                .map_err(|what| RuntimeError::input(name, what))?;
            self.put(id, value, cx)?;
        }
        Ok(())
    }

    /// The value of a state in device memory that nobody else has, so that the run may write into it.
    fn exclusive(
        &self,
        value: &RunValue,
        device: DeviceId,
        cx: &mut RunCx<'_>,
    ) -> Result<RunValue> {
        let backend = cx.devices[device.0 as usize].clone();
        match value {
            RunValue::Device(t) if t.is_on(&backend) && t.is_unshared() => Ok(value.clone()),
            RunValue::Device(t) if t.is_on(&backend) => {
                let own = DeviceTensor::empty(&backend, t.dtype(), t.shape())?;
                self.copy(t, &own.range, cx)?;
                Ok(own.into())
            }
            other => {
                let value = other.to_host()?;
                let tensor = value.as_tensor();
                let tensor = tensor.unwrap_or_else(|| unreachable!("bug: memory of no tensor"));
                Ok(DeviceTensor::upload(&backend, tensor)?.into())
            }
        }
    }

    /// Sets memory aside that is given for outputs.
    pub fn place_outputs(&mut self, outputs: Outputs) -> Result<Vec<Target>> {
        let plan = &self.loaded.compiled.plan;
        let places = match outputs {
            Outputs::Places(places) => places,
            Outputs::Region(near) => {
                for (id, tensor) in plan.outputs.iter().zip(near) {
                    if let Some(tensor) = tensor {
                        self.set_aside(*id, tensor);
                    }
                }
                return Ok(plan.outputs.iter().map(|_| Target::Anywhere).collect());
            }
        };
        let names = self.loaded.compiled.graph.outputs();
        let mut targets = vec![];
        let mut places = places.into_iter();
        for ((name, _), id) in names.iter().zip(&plan.outputs) {
            targets.push(match places.next().unwrap_or_default() {
                Place::Host => Target::Host,
                Place::Device => Target::Device,
                Place::Into(tensor) => {
                    tensor.check_unshared(name)?;
                    self.set_aside(*id, tensor.clone());
                    Target::Into(tensor)
                }
            });
        }
        Ok(targets)
    }

    fn set_aside(&mut self, id: SlotId, tensor: DeviceTensor) {
        let owned = self.slot(id).storage == Storage::Planned;
        if owned && self.given.iter().all(|(other, _)| *other != id) {
            self.given.push((id, tensor));
        }
    }

    /// The outputs where they are wanted.
    pub fn outputs(&mut self, targets: Vec<Target>, cx: &mut RunCx<'_>) -> Result<Vec<RunValue>> {
        let mut outputs = vec![];
        let mut on_host = vec![];
        let ids = &self.loaded.compiled.plan.outputs;
        for (position, (id, target)) in ids.iter().zip(targets).enumerate() {
            outputs.push(match target {
                Target::Host => {
                    on_host.push(position);
                    self.lend(*id, cx)?
                }
                Target::Anywhere => self.lend(*id, cx)?,
                Target::Device => self.hold(*id, cx)?,
                Target::Into(tensor) => {
                    let name = self.loaded.compiled.graph.outputs()[position].0.clone();
                    self.copy_out(&name, *id, &tensor, cx)?;
                    tensor.into()
                }
            });
        }
        let fetched: Vec<RunValue> = on_host.iter().map(|at| outputs[*at].clone()).collect();
        for (at, value) in on_host.into_iter().zip(cx.fetch_all(&fetched)?) {
            outputs[at] = value.into();
        }
        Ok(outputs)
    }

    /// Sees that an output is in the memory that the caller gave.
    fn copy_out(
        &mut self,
        name: &str,
        id: SlotId,
        to: &DeviceTensor,
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        let from = self.hold(id, cx)?;
        let ty = match &from {
            RunValue::Device(t) => Some(t.ty()),
            RunValue::Host(v) => v.as_tensor().map(Tensor::ty),
        };
        if ty.as_ref() != Some(&to.ty()) {
            let computed = ty.map_or("no tensor".into(), |t| t.to_string());
            let what = format!("memory for {} given, {computed} computed", to.ty());
            return Err(RuntimeError::input(name, what));
        }
        match from {
            RunValue::Device(t) if t.is_at(&to.range) => Ok(()),
            RunValue::Device(t) if t.is_on(&to.backend) && cx.device_of(&t).is_some() => {
                self.copy(&t, &to.range, cx)
            }
            other => {
                let value = cx.fetch(&other)?;
                let bytes = value.as_tensor().map(Tensor::bytes).unwrap_or_default();
                Ok(to.backend.device().upload(&to.range, bytes)?)
            }
        }
    }

    /// Copies within a device of the run.
    fn copy(&self, from: &DeviceTensor, to: &BufferRange, cx: &mut RunCx<'_>) -> Result<()> {
        let device = cx.device_of(from);
        let device = device.unwrap_or_else(|| unreachable!("bug: a copy on no device of the run"));
        let command = Command::Copy {
            from: from.range.clone(),
            to: to.clone(),
        };
        cx.enqueue(device, command, (self.loaded.number, self.at))
    }

    /// Gives memory to all slots whose sizes are known by now, packed; the others get theirs when they are written.
    pub fn lay_out(&mut self, cx: &mut RunCx<'_>) -> Result<()> {
        let loaded = self.loaded;
        let plan = &loaded.compiled.plan;
        let sizes = match loaded.is_settled {
            true => cx.layouts.evaluated(loaded.id).slot_sizes(plan),
            false => plan::slot_sizes(plan, &self.bindings).into(),
        };
        for (d, backend) in cx.devices.iter().enumerate() {
            let device = DeviceId(d as u32);
            let planned = |i: usize| {
                plan.slots[i].device == device && plan::is_packed(plan, SlotId(i as u32))
            };
            let known: Option<Vec<u64>> = (0..sizes.len())
                .map(|i| if planned(i) { sizes[i] } else { Some(0) })
                .collect();
            let Some(known) = known else { continue };
            let target = backend.target();
            let packing = (cx.layouts).packing(loaded.id, plan, device, known, target);
            let kept = |i: &usize| {
                let slot = &plan.slots[*i];
                slot.device == device && slot.storage == Storage::Planned && !planned(*i)
            };
            let kept = (0..sizes.len()).filter(kept).filter_map(|i| sizes[i]);
            let need = kept.fold(packing.size(), u64::saturating_add);
            cx.planned = cx.planned.saturating_add(need);
            cx.planned_peak = cx.planned_peak.max(cx.planned);
            if let Some(budget) = cx.budget.filter(|b| cx.planned > *b) {
                return Err(RuntimeError::Memory {
                    need: cx.planned,
                    budget,
                });
            }
            let first = cx.blocks.len();
            for block in &packing.blocks {
                let size = usize::try_from(*block)
                    .map_err(|_| IrError::Limit(format!("{block} bytes")))?;
                let block = cx.take(device, size)?;
                cx.blocks.push((device, block));
            }
            for (i, at) in packing.at.iter().enumerate() {
                if let Some((block, offset)) = at {
                    self.memory[i] = Some(BufferRange {
                        buffer: cx.blocks[first + *block as usize].1.clone(),
                        offset: *offset as usize,
                        size: sizes[i].unwrap_or(0) as usize,
                    });
                }
            }
        }
        Ok(())
    }

    /// Memory of a slot, allocated on first use.
    pub fn range(&mut self, id: SlotId, cx: &mut RunCx<'_>) -> Result<BufferRange> {
        let at = id.0 as usize;
        if let Some(range) = &self.memory[at] {
            return Ok(range.clone());
        }
        let slot = self.slot(id);
        if let Some(value) = self.elsewhere[at].clone() {
            let value = cx.fetch(&value)?;
            let range = match value.as_tensor() {
                Some(t) if slot.device == DeviceId::HOST => whole_constant(t, cx)?,
                Some(t) => cx.put_on(slot.device, t)?.range,
                None => unreachable!("bug: memory of no tensor"),
            };
            self.memory[at] = Some(range.clone());
            return Ok(range);
        }
        let size = self.size_of(&slot.ty)?;
        let range = match &slot.storage {
            Storage::Alias { of, offset } => {
                let owner = self.range(*of, cx)?;
                let offset = offset
                    .eval(&self.bindings)
                    .and_then(|o| usize::try_from(o).ok());
                let offset = offset.unwrap_or_else(|| unreachable!("bug: alias offset"));
                BufferRange {
                    buffer: owner.buffer,
                    offset: owner.offset + offset,
                    size,
                }
            }
            _ => match self.take_given(id, size, cx) {
                Some(range) => range,
                None => {
                    let buffer = cx.take(slot.device, size)?;
                    self.pooled[at] = true;
                    whole(buffer, size)
                }
            },
        };
        self.memory[at] = Some(range.clone());
        Ok(range)
    }

    /// The memory that the caller gave for an output, if it fits.
    fn take_given(&mut self, id: SlotId, size: usize, cx: &RunCx<'_>) -> Option<BufferRange> {
        let at = self.given.iter().position(|(slot, _)| *slot == id)?;
        let (_, tensor) = self.given.swap_remove(at);
        let device = &cx.devices[self.slot(id).device.0 as usize];
        (tensor.is_on(device) && tensor.size() == size).then_some(tensor.range)
    }

    fn shape_of(&self, ty: &ValueType) -> Result<(DType, Vec<usize>)> {
        let t = ty
            .as_tensor()
            .unwrap_or_else(|| unreachable!("bug: memory of no tensor"));
        let shape = t.shape(&self.bindings);
        let shape =
            shape.ok_or_else(|| IrError::run("size", format!("{t} has no valid extents here")))?;
        Ok((t.dtype, shape))
    }

    fn size_of(&self, ty: &ValueType) -> Result<usize> {
        let (dtype, shape) = self.shape_of(ty)?;
        let size = Tensor::size_of(dtype, &shape).filter(|s| *s <= isize::MAX as usize);
        size.ok_or_else(|| {
            IrError::Limit(format!("{dtype}{shape:?} does not fit in memory")).into()
        })
    }

    fn is_host_value(&self, id: SlotId) -> bool {
        let slot = self.slot(id);
        slot.storage == Storage::HostValue
            || slot.ty.as_tensor().is_none_or(|t| t.dtype == DType::String)
    }

    /// Gives a slot a value. A device tensor is referred to, not copied; a host tensor that belongs in other memory goes
    /// there when a launch needs it.
    pub fn put(&mut self, id: SlotId, value: RunValue, cx: &mut RunCx<'_>) -> Result<()> {
        let at = id.0 as usize;
        let slot = self.slot(id);
        let is_part = matches!(slot.storage, Storage::Alias { .. });
        let value = match value {
            RunValue::Device(t) if t.is_on(&cx.devices[slot.device.0 as usize]) => {
                if !is_part {
                    self.memory[at] = Some(t.range);
                    return Ok(());
                }
                let to = self.range(id, cx)?;
                return self.copy(&t, &to, cx);
            }
            RunValue::Device(t) if is_part => cx.fetch(&t.into())?.into(),
            other => other,
        };
        match value {
            RunValue::Host(Value::Tensor(t)) if is_part => {
                let range = self.range(id, cx)?;
                cx.upload(slot.device, &range, t.bytes())
            }
            RunValue::Host(Value::Tensor(t))
                if slot.device == DeviceId::HOST && !self.is_host_value(id) =>
            {
                self.memory[at] = Some(whole_constant(&t, cx)?);
                Ok(())
            }
            other => {
                self.memory[at] = None;
                self.elsewhere[at] = Some(other);
                Ok(())
            }
        }
    }

    /// The value of a slot on the host. It stays valid: memory that is overwritten later is copied.
    pub fn value(&mut self, id: SlotId, cx: &mut RunCx<'_>) -> Result<Value> {
        if let Some(RunValue::Host(v)) = &self.elsewhere[id.0 as usize] {
            return Ok(v.clone());
        }
        let value = self.lend(id, cx)?;
        cx.fetch(&value)
    }

    /// The value of a slot: where it has any, in its device's memory, for as long as the slot lives; what the host has
    /// of it may be kept for longer.
    pub fn lend(&mut self, id: SlotId, cx: &mut RunCx<'_>) -> Result<RunValue> {
        let at = id.0 as usize;
        if let (None, Some(v)) = (&self.memory[at], &self.elsewhere[at]) {
            return Ok(v.clone());
        }
        if self.is_host_value(id) {
            unreachable!("bug: host value read before it is written");
        }
        let slot = self.slot(id);
        let (dtype, shape) = self.shape_of(&slot.ty)?;
        let range = self.range(id, cx)?;
        let backend = &cx.devices[slot.device.0 as usize];
        if slot.device != DeviceId::HOST || cx.is_own(&range) {
            return Ok(DeviceTensor::over(backend, dtype, shape, range).into());
        }
        let tensor = Tensor::new(dtype, shape, download(&**backend, &range)?);
        Ok(tensor
            .unwrap_or_else(|| unreachable!("bug: slot size"))
            .into())
    }

    /// The value of a slot for after the run: in its device's memory where it has any.
    pub fn hold(&mut self, id: SlotId, cx: &mut RunCx<'_>) -> Result<RunValue> {
        let value = self.lend(id, cx)?;
        self.own(value, self.slot(id).device, cx)
    }

    /// A value in memory of its own: on the device that it is on, or on this one.
    pub fn own(&self, value: RunValue, device: DeviceId, cx: &mut RunCx<'_>) -> Result<RunValue> {
        match value {
            RunValue::Host(Value::Tensor(t)) if t.dtype() != DType::String => {
                Ok(DeviceTensor::upload(&cx.devices[device.0 as usize], &t)?.into())
            }
            RunValue::Device(t) if !cx.is_own(&t.range) => {
                let on = cx.device_of(&t).unwrap_or(device);
                let copy = whole(cx.take_shared(on, t.size())?, t.size());
                self.copy(&t, &copy, cx)?;
                Ok(t.moved(copy).into())
            }
            value => Ok(value),
        }
    }

    /// The value of a slot for another slot, by the shortest way.
    pub fn fetch(&mut self, from: SlotId, to: SlotId, cx: &mut RunCx<'_>) -> Result<RunValue> {
        match &self.elsewhere[from.0 as usize] {
            Some(RunValue::Device(t)) if t.is_on(&cx.devices[self.slot(to).device.0 as usize]) => {
                Ok(t.clone().into())
            }
            _ => Ok(self.value(from, cx)?.into()),
        }
    }

    /// Returns memory of slots that no later step reads.
    pub fn release_after(&mut self, step: usize, cx: &mut RunCx<'_>) {
        let loaded = self.loaded;
        loaded.releases[step]
            .iter()
            .for_each(|i| self.release(*i, cx));
        if let (true, Some(release)) = (cx.gives_back_picked, &loaded.release) {
            (loaded.picked[step].iter()).for_each(|bytes| release.call(bytes));
        }
    }

    fn release(&mut self, at: usize, cx: &mut RunCx<'_>) {
        self.elsewhere[at] = None;
        if let Some(range) = self.memory[at].take()
            && self.pooled[at]
        {
            self.pooled[at] = false;
            let device = self.slot(SlotId(at as u32)).device;
            cx.pools[device.0 as usize].give(range.buffer);
        }
    }

    /// Returns all memory.
    pub fn release_all(&mut self, cx: &mut RunCx<'_>) {
        (0..self.memory.len()).for_each(|i| self.release(i, cx));
        for (device, block) in cx.blocks.drain(self.first_block..) {
            cx.pools[device.0 as usize].give(block);
        }
    }
}

/// Memory of the host with the elements of a tensor, which may be the tensor's own.
fn whole_constant(tensor: &Tensor, cx: &RunCx<'_>) -> Result<BufferRange> {
    let bytes = tensor.shared_bytes().unwrap_or_default();
    let size = bytes.len();
    Ok(whole(cx.devices[0].device().constant(bytes)?, size))
}

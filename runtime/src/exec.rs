//! Executes a plan: binds symbols, gives slots memory, launches units, runs host steps and regions.
//!
//! Memory of planned slots comes from a pool of the run's [`crate::State`] and goes back after the slot's last use, so
//! runs of equal sizes allocate nothing. Commands are queued per device and submitted when the host needs a result.

use crate::error::{Result, RuntimeError};
use crate::load::{Devices, Loaded};
use crate::pool::{Layouts, Pool};
use bytes::Bytes;
use cupola_backend::{Buffer, BufferRange, Command, Launch};
use cupola_ir::eval::{self, Env};
use cupola_ir::{Bindings, CoreOp, DType, IrError, NodeId, Op, Tensor, Value, ValueType};
use cupola_passes::plan;
use cupola_passes::{DeviceId, SlotId, Step, Storage};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// What one run shares with its regions.
pub(crate) struct RunCx<'a> {
    pub devices: &'a Devices,
    pub pools: &'a mut [Pool],
    pub layouts: &'a mut Layouts,
    pub params: &'a BTreeMap<String, Tensor>,
    pub states: &'a BTreeMap<String, Value>,
    pub new_states: BTreeMap<String, Value>,
    pub seed: u64,
    pub run: u64,
    pub cancel: &'a AtomicBool,
    pub launches: u64,
    /// Bytes of packed memory and of what outlives the run, by the plan.
    pub planned_bytes: u64,
}

/// Values of one plan while it runs.
struct Frame<'a> {
    loaded: &'a Loaded,
    bindings: Bindings,
    memory: Vec<Option<BufferRange>>,
    /// Whether a slot's memory is a buffer of its own from the pool.
    pooled: Vec<bool>,
    host: Vec<Option<Value>>,
    queues: Vec<Vec<Command>>,
    /// Packed memory, by device.
    blocks: Vec<(usize, Buffer)>,
}

/// Runs a plan on inputs in order; gives the outputs in order.
pub(crate) fn execute(
    loaded: &Loaded,
    inputs: Vec<Value>,
    bindings: Bindings,
    cx: &mut RunCx<'_>,
) -> Result<Vec<Value>> {
    let slots = loaded.compiled.plan.slots.len();
    let mut frame = Frame {
        loaded,
        bindings,
        memory: vec![None; slots],
        pooled: vec![false; slots],
        host: vec![None; slots],
        queues: vec![vec![]; cx.devices.len()],
        blocks: vec![],
    };
    let result = frame.run(inputs, cx);
    frame.release_all(cx);
    result
}

impl Frame<'_> {
    fn run(&mut self, inputs: Vec<Value>, cx: &mut RunCx<'_>) -> Result<Vec<Value>> {
        let loaded = self.loaded;
        let plan = &loaded.compiled.plan;
        self.bind_inputs(inputs, cx)?;
        self.lay_out(cx)?;
        for (i, step) in plan.steps.iter().enumerate() {
            if cx.cancel.load(Ordering::Relaxed) {
                return Err(RuntimeError::Cancelled);
            }
            self.step(i, step, cx)?;
            self.release_after(i, cx);
        }
        let outputs = plan
            .outputs
            .iter()
            .map(|s| self.value(*s, cx))
            .collect::<Result<_>>()?;
        for d in 0..cx.devices.len() {
            self.flush(DeviceId(d as u32), cx)?;
            cx.devices[d].device().wait()?;
        }
        Ok(outputs)
    }

    fn bind_inputs(&mut self, inputs: Vec<Value>, cx: &mut RunCx<'_>) -> Result<()> {
        let loaded = self.loaded;
        let mut inputs: Vec<Option<Value>> = inputs.into_iter().map(Some).collect();
        for (i, slot) in loaded.compiled.plan.slots.iter().enumerate() {
            let id = SlotId(i as u32);
            match &slot.storage {
                Storage::Input(at) => {
                    let value = inputs.get_mut(*at).and_then(Option::take);
                    let value =
                        value.unwrap_or_else(|| unreachable!("bug: input slots are distinct"));
                    let name = loaded.compiled.graph.input_name(slot.value).to_string();
                    eval::bind::bind_value(&slot.ty, &value, &mut self.bindings)
                        .map_err(|what| RuntimeError::Input { name, what })?;
                    self.put(id, value, cx)?;
                }
                Storage::Param(name) => {
                    let value =
                        cx.params
                            .get(name)
                            .cloned()
                            .ok_or_else(|| RuntimeError::Input {
                                name: name.clone(),
                                what: "the weight was not given".into(),
                            })?;
                    self.put_bound(id, value.into(), name, cx)?;
                }
                Storage::State(name) => {
                    let value = cx.states.get(name).cloned();
                    let value = value.unwrap_or_else(|| unreachable!("bug: state without a value"));
                    self.put_bound(id, value, name, cx)?;
                }
                Storage::Const(tensor) => match &loaded.constants[i] {
                    Some(buffer) => {
                        let size = buffer.size();
                        self.memory[i] = Some(BufferRange {
                            buffer: buffer.clone(),
                            offset: 0,
                            size,
                        });
                    }
                    None => self.host[i] = Some(tensor.clone().into()),
                },
                Storage::Planned | Storage::Alias { .. } | Storage::HostValue => {}
            }
        }
        Ok(())
    }

    /// Gives memory to all slots whose sizes are known by now, packed; the others get theirs when they are written.
    fn lay_out(&mut self, cx: &mut RunCx<'_>) -> Result<()> {
        let loaded = self.loaded;
        let plan = &loaded.compiled.plan;
        let sizes = plan::slot_sizes(plan, &self.bindings);
        for (d, backend) in cx.devices.iter().enumerate() {
            let device = DeviceId(d as u32);
            let planned = |i: usize| {
                plan.slots[i].device == device && plan::is_packed(plan, SlotId(i as u32))
            };
            let known: Option<Vec<u64>> = (0..sizes.len())
                .map(|i| if planned(i) { sizes[i] } else { Some(0) })
                .collect();
            let Some(known) = known else { continue };
            let packing = cx.layouts.packing(plan, device, known, backend.target());
            let kept = |i: &usize| {
                let slot = &plan.slots[*i];
                slot.device == device && slot.storage == Storage::Planned && !planned(*i)
            };
            let kept: u64 = (0..sizes.len()).filter(kept).filter_map(|i| sizes[i]).sum();
            cx.planned_bytes += packing.size() + kept;
            for block in &packing.blocks {
                let size = usize::try_from(*block)
                    .map_err(|_| IrError::Limit(format!("{block} bytes")))?;
                self.blocks
                    .push((d, cx.pools[d].take(backend.device(), size)?));
            }
            let first = self.blocks.len() - packing.blocks.len();
            for (i, at) in packing.at.iter().enumerate() {
                if let Some((block, offset)) = at {
                    let buffer = self.blocks[first + *block as usize].1.clone();
                    let size = sizes[i].unwrap_or(0) as usize;
                    self.memory[i] = Some(BufferRange {
                        buffer,
                        offset: *offset as usize,
                        size,
                    });
                }
            }
        }
        Ok(())
    }

    fn put_bound(
        &mut self,
        id: SlotId,
        value: Value,
        name: &str,
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        let ty = &self.loaded.compiled.plan.slots[id.0 as usize].ty;
        eval::bind::bind_value(ty, &value, &mut self.bindings).map_err(|what| {
            RuntimeError::Input {
                name: name.to_string(),
                what,
            }
        })?;
        self.put(id, value, cx)
    }

    fn step(&mut self, at: usize, step: &Step, cx: &mut RunCx<'_>) -> Result<()> {
        match step {
            Step::Launch { unit, buffers } => {
                let placed = &self.loaded.compiled.units[*unit];
                let sizes = self.sizes(*unit, cx)?;
                let buffers = buffers
                    .iter()
                    .map(|s| self.range(*s, cx))
                    .collect::<Result<_>>()?;
                let executable = self.loaded.executables[*unit].clone();
                self.queues[placed.device.0 as usize].push(Command::Launch(Launch {
                    executable,
                    buffers,
                    sizes,
                }));
                cx.launches += 1;
                // Without a queue of its own the host runs at once, while operands are in cache.
                if placed.device == DeviceId::HOST {
                    self.flush(placed.device, cx)
                } else {
                    Ok(())
                }
            }
            Step::Host {
                node,
                operands,
                results,
            } => self.host_step(*node, operands, results, cx),
            Step::Control {
                node,
                operands,
                results,
                ..
            } => self.control_step(at, *node, operands, results, cx),
            Step::Transfer { from, to } => {
                let value = self.value(*from, cx)?;
                self.put(*to, value, cx)
            }
            Step::Bind { sym, from, min } => {
                let value = self.value(*from, cx)?;
                let number = value
                    .as_tensor()
                    .and_then(Tensor::to_i64s)
                    .and_then(|v| v.first().copied());
                let number = number.unwrap_or_else(|| unreachable!("bug: bind of no number"));
                if number < *min {
                    let what = format!("{sym} is {number}, must be at least {min}");
                    return Err(IrError::run("bind_dim", what).into());
                }
                self.bindings.set(sym.clone(), number);
                Ok(())
            }
            Step::Require { node, that } => {
                if that.holds(&self.bindings) {
                    return Ok(());
                }
                let node = self.loaded.compiled.graph.node(*node);
                let origin = node
                    .origins
                    .first()
                    .map_or(String::new(), |o| format!(" of {} '{}'", o.op, o.node));
                Err(IrError::run(
                    format!("{}{origin}", node.op.name()),
                    format!("sizes must satisfy {that}"),
                )
                .into())
            }
            Step::WriteState { slot, from } => {
                let value = self.value(*from, cx)?;
                // A state outlives the run's memory.
                let value = match value {
                    Value::Tensor(t) => detach(&t).into(),
                    other => other,
                };
                cx.new_states.insert(slot.clone(), value);
                Ok(())
            }
        }
    }

    /// Values of a unit's run-time sizes.
    fn sizes(&self, unit: usize, cx: &RunCx<'_>) -> Result<Vec<i64>> {
        let unit = &self.loaded.compiled.units[unit].unit;
        unit.sizes()
            .iter()
            .map(|d| match d.as_sym().map(|s| s.name()) {
                Some(cupola_passes::SEED) => Ok(cx.seed as i64),
                Some(cupola_passes::RUN) => Ok(cx.run as i64),
                _ => d.eval(&self.bindings).ok_or_else(|| {
                    RuntimeError::Ir(IrError::run(
                        unit.name(),
                        format!("size {d} overflows or is not bound"),
                    ))
                }),
            })
            .collect()
    }

    fn node_op(&self, node: NodeId) -> &Op {
        &self.loaded.compiled.graph.node(node).op
    }

    fn host_step(
        &mut self,
        node: NodeId,
        operands: &[SlotId],
        results: &[SlotId],
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        let values: Vec<Value> = operands
            .iter()
            .map(|s| self.value(*s, cx))
            .collect::<Result<_>>()?;
        let refs: Vec<&Value> = values.iter().collect();
        let loaded = self.loaded;
        let types: Vec<ValueType> = results
            .iter()
            .map(|s| loaded.compiled.plan.slots[s.0 as usize].ty.clone())
            .collect();
        let mut env = Env::default();
        (env.seed, env.run, env.bindings) = (cx.seed, cx.run, self.bindings.clone());
        let out = eval::eval_op(self.node_op(node), &refs, &types, &mut env)?;
        self.bindings = env.bindings;
        self.finish(results, out, cx)
    }

    /// Binds symbols of result types from actual results and stores them.
    fn finish(&mut self, results: &[SlotId], values: Vec<Value>, cx: &mut RunCx<'_>) -> Result<()> {
        for (slot, value) in results.iter().zip(values) {
            let ty = &self.loaded.compiled.plan.slots[slot.0 as usize].ty;
            eval::bind::bind_value(ty, &value, &mut self.bindings)
                .map_err(|what| IrError::run("result", what))?;
            self.put(*slot, value, cx)?;
        }
        Ok(())
    }

    fn control_step(
        &mut self,
        at: usize,
        node: NodeId,
        operands: &[SlotId],
        results: &[SlotId],
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        let values: Vec<Value> = operands
            .iter()
            .map(|s| self.value(*s, cx))
            .collect::<Result<_>>()?;
        let bodies = &self.loaded.bodies[&at];
        let bindings = self.bindings.clone();
        let mut call = |region: usize, inputs: Vec<Value>| -> Result<Vec<Value>> {
            execute(&bodies[region], inputs, bindings.clone(), cx)
        };
        let out = match self.node_op(node) {
            Op::Core(CoreOp::If(_)) => {
                let condition = scalar_bool(&values[0]);
                call(usize::from(!condition), values[1..].to_vec())?
            }
            Op::Core(CoreOp::Call(_)) => call(0, values)?,
            Op::Core(CoreOp::Loop(p)) => {
                crate::control::run_loop(p.carried, &p.results, values, &mut call)?
            }
            Op::Core(CoreOp::Scan(p)) => {
                crate::control::run_scan(p.carried, p.scanned, &p.results, values, &mut call)?
            }
            other => unreachable!("bug: {} has no regions", other.name()),
        };
        self.finish(results, out, cx)
    }

    /// Memory of a slot, allocated on first use.
    fn range(&mut self, id: SlotId, cx: &mut RunCx<'_>) -> Result<BufferRange> {
        let at = id.0 as usize;
        if let Some(range) = &self.memory[at] {
            return Ok(range.clone());
        }
        let slot = &self.loaded.compiled.plan.slots[at];
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
            _ => {
                let device = slot.device.0 as usize;
                let buffer = cx.pools[device].take(cx.devices[device].device(), size)?;
                self.pooled[at] = true;
                BufferRange {
                    buffer,
                    offset: 0,
                    size,
                }
            }
        };
        self.memory[at] = Some(range.clone());
        Ok(range)
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
        let slot = &self.loaded.compiled.plan.slots[id.0 as usize];
        slot.storage == Storage::HostValue
            || slot.ty.as_tensor().is_none_or(|t| t.dtype == DType::String)
    }

    /// Gives a slot a value.
    fn put(&mut self, id: SlotId, value: Value, cx: &mut RunCx<'_>) -> Result<()> {
        let at = id.0 as usize;
        let slot = &self.loaded.compiled.plan.slots[at];
        let tensor = match value {
            Value::Tensor(t) if !self.is_host_value(id) => t,
            other => {
                self.host[at] = Some(other);
                return Ok(());
            }
        };
        let device = cx.devices[slot.device.0 as usize].device();
        let bytes = tensor.shared_bytes().unwrap_or_default();
        if slot.device == DeviceId::HOST && !matches!(slot.storage, Storage::Alias { .. }) {
            let size = bytes.len();
            let buffer = device.constant(bytes)?;
            self.memory[at] = Some(BufferRange {
                buffer,
                offset: 0,
                size,
            });
            return Ok(());
        }
        let range = self.range(id, cx)?;
        self.flush(slot.device, cx)?;
        Ok(device.upload(&range, &bytes)?)
    }

    /// The value of a slot on the host.
    fn value(&mut self, id: SlotId, cx: &mut RunCx<'_>) -> Result<Value> {
        let at = id.0 as usize;
        if let Some(v) = &self.host[at] {
            return Ok(v.clone());
        }
        if self.is_host_value(id) {
            unreachable!("bug: host value read before it is written");
        }
        let slot = &self.loaded.compiled.plan.slots[at];
        let (dtype, shape) = self.shape_of(&slot.ty)?;
        let range = self.range(id, cx)?;
        self.flush(slot.device, cx)?;
        let device = cx.devices[slot.device.0 as usize].device();
        let owner = match slot.storage {
            Storage::Alias { of, .. } => of,
            _ => id,
        };
        // Packed memory is written again by later steps, whoever still holds the value.
        let shared = match plan::is_packed(&self.loaded.compiled.plan, owner) {
            true => None,
            false => device.share(&range)?,
        };
        let bytes = match shared {
            Some(shared) => shared,
            None => {
                let mut bytes = vec![0u8; range.size];
                device.download(&range, &mut bytes)?;
                Bytes::from(bytes)
            }
        };
        let tensor = Tensor::new(dtype, shape, bytes);
        Ok(tensor
            .unwrap_or_else(|| unreachable!("bug: slot size"))
            .into())
    }

    fn flush(&mut self, device: DeviceId, cx: &RunCx<'_>) -> Result<()> {
        let queue = &mut self.queues[device.0 as usize];
        if queue.is_empty() {
            return Ok(());
        }
        let result = cx.devices[device.0 as usize].device().submit(queue);
        queue.clear();
        Ok(result?)
    }

    /// Returns memory of slots that no later step reads.
    fn release_after(&mut self, step: usize, cx: &mut RunCx<'_>) {
        let loaded = self.loaded;
        loaded.releases[step]
            .iter()
            .for_each(|i| self.release(*i, cx));
    }

    fn release(&mut self, at: usize, cx: &mut RunCx<'_>) {
        let slot = &self.loaded.compiled.plan.slots[at];
        self.host[at] = None;
        if let Some(range) = self.memory[at].take()
            && self.pooled[at]
        {
            self.pooled[at] = false;
            cx.pools[slot.device.0 as usize].give(range.buffer);
        }
    }

    fn release_all(&mut self, cx: &mut RunCx<'_>) {
        (0..self.memory.len()).for_each(|i| self.release(i, cx));
        for (device, block) in self.blocks.drain(..) {
            cx.pools[device].give(block);
        }
    }
}

/// Whether a bool scalar holds.
pub(crate) fn scalar_bool(value: &Value) -> bool {
    value
        .as_tensor()
        .is_some_and(|t| t.bytes().first().is_some_and(|b| *b != 0))
}

/// A copy that owns its bytes.
fn detach(t: &Tensor) -> Tensor {
    let copy = Tensor::new(
        t.dtype(),
        t.shape().to_vec(),
        Bytes::copy_from_slice(t.bytes()),
    );
    copy.unwrap_or_else(|| t.clone())
}

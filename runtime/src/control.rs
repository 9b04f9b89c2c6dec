//! Steps with regions: what regions take and give stays where it is, as views of larger tensors or in rows of such.
//!
//! The host decides only how often a region runs. Where it needs nothing of a device for that, all iterations are queued
//! without waiting; where a device computes the condition of a loop, some iterations are started ahead.

use crate::error::{Result, RuntimeError};
use crate::exec::{RunCx, execute_with};
use crate::frame::{Frame, Outputs};
use crate::load::Loaded;
use crate::value::{DeviceTensor, RunValue, whole};
use bytes::Bytes;
use cupola_backend::{Binding, BufferRange, Command, Executable};
use cupola_ir::eval::{self, Regions};
use cupola_ir::{Bindings, CoreOp, DType, IrError, NodeId, Op, Tensor, Value};
use cupola_passes::{DeviceId, SlotId};
use std::sync::Arc;

/// Most iterations of a loop that are started before the first one's condition is known.
const MOST_AHEAD: u64 = 16;

/// Devices copy whole words.
const WORD: usize = 4;

/// Values that a stack makes room for at first, and again when it is full, at least.
const LEAST_STACKED: usize = 16;

impl Frame<'_> {
    /// Runs a node with regions.
    pub fn control_step(
        &mut self,
        at: usize,
        node: NodeId,
        operands: &[SlotId],
        results: &[SlotId],
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        let mut values: Vec<RunValue> = (operands.iter())
            .map(|s| self.lend(*s, cx))
            .collect::<Result<_>>()?;
        let loaded = self.loaded;
        let Op::Core(op) = &loaded.compiled.graph.node(node).op else {
            unreachable!("bug: {} has no regions", self.node_op(node).name())
        };
        let bodies = &loaded.bodies[&at];
        let mut driver = Driver {
            bodies,
            bound: vec![None; bodies.len()],
            bindings: &self.bindings,
            step: (loaded.number, at),
            cx,
        };
        driver.bring(op, &mut values)?;
        let limits = driver.cx.limits;
        let types = self.types(results);
        let out = eval::run_control(op, values, &types, &limits, &self.bindings, &mut driver)?;
        let owned = out.into_iter().zip(results);
        let device = |s: &SlotId| loaded.compiled.plan.slots[s.0 as usize].device;
        // A region may give what it was lent.
        let owned = owned.map(|(value, slot)| match value {
            RunValue::Device(_) => self.own(value, device(slot), cx),
            value => Ok(value),
        });
        let out = owned.collect::<Result<_>>()?;
        self.finish(results, out, cx)
    }
}

/// Runs the regions of one step.
struct Driver<'a, 'c, 'r> {
    bodies: &'a [Loaded],
    /// Their executables, made ready for what is the same in all repetitions when the first begins.
    bound: Vec<Option<Arc<[Arc<dyn Executable>]>>>,
    bindings: &'a Bindings,
    /// The plan and the step.
    step: (usize, usize),
    cx: &'c mut RunCx<'r>,
}

/// Rows of a tensor.
enum Rows {
    Host(Tensor),
    /// Each begins so many bytes after the one before.
    Device {
        all: DeviceTensor,
        pitch: usize,
    },
}

/// Values of iterations.
struct Stack {
    expected: usize,
    /// Those that are not in `rows`.
    values: Vec<RunValue>,
    rows: Option<StackRows>,
}

/// Values of equal type one after the other in a device's memory.
struct StackRows {
    device: DeviceId,
    /// One of the values.
    row: DeviceTensor,
    range: BufferRange,
    len: usize,
}

impl StackRows {
    /// Where the value at a position is or will be, if there is room for it.
    fn at(&self, position: usize) -> Option<BufferRange> {
        let size = self.row.size();
        let offset = position * size;
        (offset + size <= self.range.size).then(|| BufferRange {
            buffer: self.range.buffer.clone(),
            offset,
            size,
        })
    }

    fn used(&self) -> BufferRange {
        BufferRange {
            size: self.len * self.row.size(),
            ..self.range.clone()
        }
    }
}

impl Driver<'_, '_, '_> {
    /// Brings values to where regions take them, once instead of in every iteration.
    fn bring(&mut self, op: &CoreOp, values: &mut [RunValue]) -> Result<()> {
        // The iteration's number is no operand.
        let first = usize::from(matches!(op, CoreOp::Loop(_)));
        let taken = values.iter_mut().skip(op.decisions());
        for (input, value) in (first..).zip(taken) {
            let homes = self.bodies.iter().map(|body| body.input_homes[input]);
            let Some(home) = homes.flatten().max() else {
                continue;
            };
            *value = match value {
                RunValue::Host(Value::Tensor(t)) if home != DeviceId::HOST => {
                    if t.dtype() == DType::String {
                        continue;
                    }
                    self.cx.put_on(home, t)?.into()
                }
                RunValue::Device(t) if home == DeviceId::HOST && self.far(t).is_some() => {
                    self.cx.fetch(value)?.into()
                }
                _ => continue,
            };
        }
        Ok(())
    }

    /// The device other than the host that a tensor is on.
    fn far(&self, tensor: &DeviceTensor) -> Option<DeviceId> {
        let device = self.cx.device_of(tensor);
        device.filter(|device| *device != DeviceId::HOST)
    }

    fn alignment(&self, device: DeviceId) -> usize {
        self.cx.devices[device.0 as usize].target().alignment
    }

    fn copy(&mut self, device: DeviceId, from: BufferRange, to: BufferRange) -> Result<()> {
        (self.cx).enqueue(device, Command::Copy { from, to }, self.step)
    }

    /// The rows of a tensor in a device's memory, where launches can be given them; `None` when they are no whole words.
    fn far_rows(&mut self, device: DeviceId, tensor: &DeviceTensor) -> Result<Option<Rows>> {
        let (Some(count), Some(size)) = (
            tensor.shape().first(),
            Tensor::size_of(tensor.dtype(), tensor.shape().get(1..).unwrap_or(&[])),
        ) else {
            return Ok(None);
        };
        let count = *count;
        let whole_rows = size.checked_mul(count) == Some(tensor.size());
        let pitch = size.next_multiple_of(self.alignment(device));
        if pitch == size || count == 1 {
            let all = tensor.clone();
            return Ok(whole_rows.then_some(Rows::Device { all, pitch: size }));
        }
        if !whole_rows || !size.is_multiple_of(WORD) {
            return Ok(None);
        }
        let spread = pitch.checked_mul(count);
        let spread =
            spread.ok_or_else(|| IrError::Limit(format!("{count} rows of {pitch} bytes")))?;
        let target = whole(self.cx.take_shared(device, spread)?, spread);
        for at in 0..count {
            let part = |range: &BufferRange, pitch: usize| BufferRange {
                buffer: range.buffer.clone(),
                offset: range.offset + at * pitch,
                size,
            };
            let (from, to) = (part(&tensor.range, size), part(&target, pitch));
            self.copy(device, from, to)?;
        }
        let all = tensor.clone().moved(target);
        Ok(Some(Rows::Device { all, pitch }))
    }

    /// Makes room for one more value; what is there already is kept.
    fn grow(&mut self, rows: &mut StackRows, expected: usize) -> Result<()> {
        let wanted = (2 * rows.len).max(expected).max(LEAST_STACKED);
        let size = rows.row.size();
        let most = self.cx.limits.tensor_size;
        let fits = |len: &usize| len.checked_mul(size).is_some_and(|bytes| bytes <= most);
        let len = Some(wanted)
            .filter(fits)
            .or(Some(rows.len + 1).filter(fits));
        let len = len.ok_or_else(|| {
            let what = format!("{} values of {} are too large", rows.len + 1, rows.row.ty());
            IrError::run("stack", what)
        })?;
        let larger = whole(self.cx.take_shared(rows.device, len * size)?, len * size);
        if rows.len > 0 {
            let from = rows.used();
            let to = BufferRange {
                size: from.size,
                ..larger.clone()
            };
            self.copy(rows.device, from, to)?;
        }
        rows.range = larger;
        Ok(())
    }

    /// Puts a value behind the others.
    fn append(&mut self, rows: &mut StackRows, value: &RunValue, expected: usize) -> Result<()> {
        let ty = match value {
            RunValue::Device(t) => Some(t.ty()),
            RunValue::Host(v) => v.as_tensor().map(Tensor::ty),
        };
        if ty.as_ref() != Some(&rows.row.ty()) {
            let other = ty.map_or("no tensor".into(), |ty| ty.to_string());
            let what = format!("iterations give {} and {other}", rows.row.ty());
            return Err(IrError::run("stack", what).into());
        }
        if rows.at(rows.len).is_none() {
            self.grow(rows, expected)?;
        }
        let to = rows.at(rows.len);
        let to = to.unwrap_or_else(|| unreachable!("bug: a stack without room"));
        rows.len += 1;
        match value {
            RunValue::Device(t) if t.is_at(&to) => Ok(()),
            RunValue::Device(t) if t.is_on(&rows.row.backend) => {
                self.copy(rows.device, t.range.clone(), to)
            }
            other => {
                let value = self.cx.fetch(other)?;
                let bytes = value.as_tensor().map(Tensor::bytes).unwrap_or_default();
                self.cx.upload(rows.device, &to, bytes)
            }
        }
    }
}

impl Regions for Driver<'_, '_, '_> {
    type Value = RunValue;
    type Rows = Rows;
    type Stack = Stack;
    type Error = RuntimeError;

    fn take(&mut self, value: Value) -> RunValue {
        value.into()
    }

    fn fetch(&mut self, values: &[RunValue]) -> Result<Vec<Value>> {
        self.cx.fetch_all(values)
    }

    fn call(
        &mut self,
        region: usize,
        inputs: Vec<RunValue>,
        stacks: &[Stack],
    ) -> Result<Vec<RunValue>> {
        self.cx.stop.check()?;
        let body = &self.bodies[region];
        let count = body.compiled.plan.outputs.len();
        let mut near = vec![None; count];
        for (stack, place) in stacks.iter().rev().zip(near.iter_mut().rev()) {
            let next = stack.rows.as_ref().and_then(|rows| {
                let range = rows.at(rows.len)?;
                let aligned = range.offset.is_multiple_of(self.alignment(rows.device));
                aligned.then(|| rows.row.clone().moved(range))
            });
            *place = next;
        }
        let outputs = Outputs::Region(near);
        let bound = match &self.bound[region] {
            Some(bound) => bound.clone(),
            None => {
                let bound = self.bind(body, &inputs)?;
                self.bound[region].insert(bound).clone()
            }
        };
        let bindings = self.bindings.clone();
        execute_with(body, &bound, inputs, outputs, bindings, self.cx)
    }

    fn ahead(&self, done: u64) -> u64 {
        // A quarter of the work at most is for nothing.
        match self.bodies[0].may_run_ahead && self.cx.recording.is_none() {
            true => (done / 4).clamp(1, MOST_AHEAD),
            false => 1,
        }
    }

    fn rows(&mut self, value: &RunValue) -> Result<(Rows, usize)> {
        if let RunValue::Device(t) = value
            && let Some(device) = self.far(t)
            && let Some(rows) = self.far_rows(device, t)?
        {
            return Ok((rows, t.shape()[0]));
        }
        let (tensor, count) = eval::rows(&self.cx.fetch(value)?)?;
        Ok((Rows::Host(tensor), count))
    }

    fn row(&mut self, rows: &Rows, at: usize) -> Result<RunValue> {
        match rows {
            Rows::Host(tensor) => Ok(eval::row(tensor, at)?.into()),
            Rows::Device { all, pitch } => Ok(all.row(at, *pitch).into()),
        }
    }

    fn stack(&mut self, expected: usize) -> Stack {
        Stack {
            expected,
            values: vec![],
            rows: None,
        }
    }

    fn push(&mut self, stack: &mut Stack, value: RunValue) -> Result<()> {
        if stack.rows.is_none() && stack.values.is_empty() {
            stack.rows = self.far_stack(&value);
        }
        match (&mut stack.rows, value) {
            (Some(rows), value) => self.append(rows, &value, stack.expected)?,
            // Of a device's memory handles are kept, and all are fetched together.
            (None, RunValue::Device(t)) if self.far(&t).is_some() => stack.values.push(t.into()),
            (None, value) => stack.values.push(self.cx.fetch(&value)?.into()),
        }
        Ok(())
    }

    fn truncate(&mut self, stack: &mut Stack, len: usize) {
        stack.values.truncate(len);
        if let Some(rows) = &mut stack.rows {
            rows.len = rows.len.min(len);
        }
    }

    fn join(&mut self, stack: Stack) -> Result<Option<RunValue>> {
        if let Some(rows) = stack.rows.filter(|rows| rows.len > 0) {
            return Ok(Some(rows.row.stacked(rows.len, rows.used()).into()));
        }
        let values = self.cx.fetch_all(&stack.values)?;
        let joined = eval::join_rows(&values, &self.cx.limits)?;
        Ok(joined.map(RunValue::Host))
    }
}

impl Driver<'_, '_, '_> {
    /// The executables of a region, made ready for those of its inputs that stay the same while it is repeated.
    fn bind(&self, body: &Loaded, inputs: &[RunValue]) -> Result<Arc<[Arc<dyn Executable>]>> {
        let mut bound = body.executables.clone();
        for (d, backend) in self.cx.devices.iter().enumerate() {
            let mut units = vec![];
            let mut bindings = vec![];
            for of_unit in &body.invariants {
                if body.compiled.units[of_unit.unit].device.0 as usize != d {
                    continue;
                }
                let bytes = |at: &Option<usize>| match at.map(|at| &inputs[at]) {
                    Some(RunValue::Device(t)) if t.is_on(backend) => {
                        backend.device().share(&t.range)
                    }
                    Some(RunValue::Host(Value::Tensor(t))) => Ok(t.shared_bytes()),
                    _ => Ok(None),
                };
                let constants = of_unit.inputs.iter().map(bytes);
                let constants: Vec<Option<Bytes>> = constants.collect::<Result<_, _>>()?;
                units.push(of_unit.unit);
                bindings.push(Binding {
                    executable: body.executables[of_unit.unit].clone(),
                    constants,
                    kept: None,
                    lasts: false,
                });
            }
            let made = backend.bind_constants(&bindings);
            for (unit, made) in units.into_iter().zip(made) {
                bound[unit] = made?;
            }
        }
        Ok(bound.into())
    }

    /// A stack in a device's memory for values like this one; `None` for what is elsewhere or no whole words.
    fn far_stack(&self, value: &RunValue) -> Option<StackRows> {
        let RunValue::Device(t) = value else {
            return None;
        };
        let device = self.far(t)?;
        (t.size() > 0 && t.size().is_multiple_of(WORD)).then(|| StackRows {
            device,
            row: t.clone(),
            range: BufferRange {
                size: 0,
                ..t.range.clone()
            },
            len: 0,
        })
    }
}

//! Commands on their way to devices: queued per device, submitted together, waited for only when the host needs a result.

use crate::error::Result;
use crate::exec::RunCx;
use crate::record::{Event, on_host_clock};
use crate::value::{DeviceTensor, RunValue, whole};
use cupola_backend::{Buffer, BufferRange, Command, Download};
use cupola_ir::{Tensor, Value};
use cupola_passes::DeviceId;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Commands submitted at once at most: the device works on them while the host queues the next.
const MOST_QUEUED: usize = 256;

/// Commands for one device that have not been submitted.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    commands: Vec<Command>,
    /// Plan and step of each.
    steps: Vec<(usize, usize)>,
    /// How often the commands refer to each buffer.
    held: FxHashMap<*const (), usize>,
}

fn address(buffer: &Buffer) -> *const () {
    Arc::as_ptr(buffer).cast()
}

impl Queue {
    /// How often queued commands refer to a buffer.
    pub fn holds(&self, buffer: &Buffer) -> usize {
        self.held.get(&address(buffer)).copied().unwrap_or(0)
    }

    fn push(&mut self, command: Command, step: (usize, usize)) {
        let mut hold = |range: &BufferRange| {
            *self.held.entry(address(&range.buffer)).or_default() += 1;
        };
        match &command {
            Command::Launch(launch) => launch.buffers.iter().for_each(&mut hold),
            Command::Concurrent(launches) => {
                let ranges = launches.iter().flat_map(|launch| &launch.buffers);
                ranges.for_each(&mut hold);
            }
            Command::Copy { from, to } => [from, to].into_iter().for_each(&mut hold),
        }
        self.commands.push(command);
        self.steps.push(step);
    }
}

impl RunCx<'_> {
    /// Queues a command of a plan's step.
    pub fn enqueue(
        &mut self,
        device: DeviceId,
        command: Command,
        step: (usize, usize),
    ) -> Result<()> {
        let d = device.0 as usize;
        // Without a queue of its own the host runs at once, while operands are in cache.
        if device == DeviceId::HOST {
            self.start_others()?;
            return Ok(self.devices[d].device().submit(&[command])?);
        }
        self.queues[d].push(command, step);
        if self.queues[d].commands.len() >= MOST_QUEUED {
            self.flush(device)
        } else {
            Ok(())
        }
    }

    /// Submits what the other devices can do while the host computes.
    pub fn start_others(&mut self) -> Result<()> {
        (1..self.devices.len()).try_for_each(|d| self.flush(DeviceId(d as u32)))
    }

    /// Submits what is queued for a device; where the run is recorded and the device has a clock, by that.
    pub fn flush(&mut self, device: DeviceId) -> Result<()> {
        let d = device.0 as usize;
        if self.queues[d].commands.is_empty() {
            return Ok(());
        }
        let queue = std::mem::take(&mut self.queues[d]);
        self.submissions += u64::from(device != DeviceId::HOST);
        let device = self.devices[d].device();
        match &mut self.recording {
            Some(recording) if device.has_clock() => {
                let begun = recording.now();
                let spans = device.submit_timed(&queue.commands)?;
                let times = on_host_clock(&spans, begun, recording.now());
                let run = recording.runs.len();
                let events = queue.steps.iter().zip(times);
                let events = events.map(|(&(plan, step), (start, end))| Event {
                    run,
                    plan,
                    step,
                    start,
                    end,
                });
                recording.events.extend(events);
            }
            _ => device.submit(&queue.commands)?,
        }
        Ok(())
    }

    /// Submits what is queued for all devices and waits for it.
    pub fn settle(&mut self) -> Result<()> {
        for d in 0..self.devices.len() {
            self.flush(DeviceId(d as u32))?;
            self.devices[d].device().wait()?;
        }
        Ok(())
    }

    /// Memory that nobody else uses; queued commands may, since they come before whatever uses it next.
    pub fn take(&mut self, device: DeviceId, size: usize) -> Result<Buffer> {
        let d = device.0 as usize;
        let queue = &self.queues[d];
        let found = self.pools[d].take(self.devices[d].device(), size, |b| queue.holds(b));
        if found.is_ok() || queue.commands.is_empty() {
            return found;
        }
        // Memory that only queued commands hold can be freed once they are submitted.
        self.flush(device)?;
        self.take_idle(device, size)
    }

    /// As [`RunCx::take`], for memory that the host writes to: no queued command uses it.
    pub fn take_idle(&mut self, device: DeviceId, size: usize) -> Result<Buffer> {
        let d = device.0 as usize;
        self.pools[d].take(self.devices[d].device(), size, |_| 0)
    }

    /// Memory that returns to the pool when the last handle is dropped.
    pub fn take_shared(&mut self, device: DeviceId, size: usize) -> Result<Buffer> {
        let buffer = self.take(device, size)?;
        self.pools[device.0 as usize].give(buffer.clone());
        Ok(buffer)
    }

    /// Copies from the host, after all commands queued so far.
    pub fn upload(&mut self, device: DeviceId, to: &BufferRange, bytes: &[u8]) -> Result<()> {
        let d = device.0 as usize;
        if self.queues[d].holds(&to.buffer) > 0 {
            self.flush(device)?;
        }
        Ok(self.devices[d].device().upload(to, bytes)?)
    }

    /// A copy of a host tensor in a device's memory.
    pub fn put_on(&mut self, device: DeviceId, tensor: &Tensor) -> Result<DeviceTensor> {
        let bytes = tensor.bytes();
        let buffer = self.take_idle(device, bytes.len())?;
        let range = whole(buffer, bytes.len());
        self.upload(device, &range, bytes)?;
        let d = device.0 as usize;
        self.pools[d].give(range.buffer.clone());
        let shape = tensor.shape().to_vec();
        let backend = &self.devices[d];
        Ok(DeviceTensor::over(backend, tensor.dtype(), shape, range))
    }

    /// The device of the run that a tensor is on.
    pub fn device_of(&self, tensor: &DeviceTensor) -> Option<DeviceId> {
        let at = self.devices.iter().position(|d| tensor.is_on(d))?;
        Some(DeviceId(at as u32))
    }

    /// A value on the host; waits for the device that has it.
    pub fn fetch(&mut self, value: &RunValue) -> Result<Value> {
        let values = self.fetch_all(std::slice::from_ref(value))?;
        let only = values.into_iter().next();
        Ok(only.unwrap_or_else(|| unreachable!("bug: one value of one")))
    }

    /// Values on the host, in order. All that a device has of them comes in one wait.
    pub fn fetch_all(&mut self, values: &[RunValue]) -> Result<Vec<Value>> {
        let mut found: Vec<Option<Value>> = vec![None; values.len()];
        for d in 1..self.devices.len() {
            let on_it = |(i, value): (usize, &_)| match value {
                RunValue::Device(t) if self.device_of(t)?.0 as usize == d => Some((i, t.clone())),
                _ => None,
            };
            let wanted: Vec<(usize, DeviceTensor)> =
                values.iter().enumerate().filter_map(on_it).collect();
            if wanted.is_empty() {
                continue;
            }
            self.flush(DeviceId(d as u32))?;
            self.waits += 1;
            self.read_bytes += wanted.iter().map(|(_, t)| t.size() as u64).sum::<u64>();
            let mut bytes: Vec<Vec<u8>> = wanted.iter().map(|(_, t)| vec![0; t.size()]).collect();
            let each = wanted.iter().zip(&mut bytes);
            let each = each.map(|((_, t), target)| Download {
                from: &t.range,
                target,
            });
            let mut downloads: Vec<Download<'_>> = each.collect();
            self.devices[d].device().download_all(&mut downloads)?;
            for ((i, t), bytes) in wanted.into_iter().zip(bytes) {
                found[i] = Some(t.with_bytes(bytes.into()).into());
            }
        }
        let each = found.into_iter().zip(values);
        each.map(|(found, value)| found.map_or_else(|| value.to_host(), Ok))
            .collect()
    }
}

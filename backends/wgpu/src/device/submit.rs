//! Submissions: a list of commands becomes one unit of work for the device.

use std::sync::Mutex;
use std::time::Duration;

use super::buffer::GpuBuffer;
use super::inject::Mishap;
use super::pipeline::{Bindings, ParamSpace, Pipeline};
use super::{GpuDevice, lock};
use crate::adapter::Timestamps;
use crate::error::Error;

/// Bytes of the largest parameter block in uniform space: the guaranteed uniform binding size.
pub(super) const LARGEST_PARAMS: u64 = 16 << 10;

/// Offsets of parameter blocks: WebGPU's default alignment for uniform bindings, the most any driver asks.
const PARAM_ALIGNMENT: u64 = 256;

/// Sizes of the parameter ranges that bind groups are made for. A block is bound with the first that holds it.
const PARAM_WINDOWS: [u64; 3] = [256, 1024, LARGEST_PARAMS];

/// Queries of one query set, the limit of WebGPU.
const QUERIES: u32 = 4096;

/// One run of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Dispatch<'a> {
    /// The kernel.
    pub pipeline: &'a Pipeline,
    /// Its buffers.
    pub bindings: &'a Bindings,
    /// Its parameters, as many as [`KernelSource::params_len`](super::KernelSource::params_len) says.
    pub params: &'a [u32],
    /// Workgroups along x, y, z; a zero makes it no work at all.
    pub groups: [u32; 3],
}

/// One step of a submission. Steps run in order; each sees what those before it wrote.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// Runs a kernel.
    Dispatch(Dispatch<'a>),
    /// Copies `size` bytes. Offsets are multiples of four; the bytes that fill the last word of the target are copied too.
    Copy {
        /// Where from.
        source: &'a GpuBuffer,
        /// First byte read.
        source_offset: u64,
        /// Where to; the same buffer is allowed if the ranges are apart.
        target: &'a GpuBuffer,
        /// First byte written.
        target_offset: u64,
        /// Bytes.
        size: u64,
    },
    /// Writes zeros. The offset is a multiple of four; the bytes that fill the last word become zero too.
    Zero {
        /// The buffer.
        buffer: &'a GpuBuffer,
        /// First byte.
        offset: u64,
        /// Bytes.
        size: u64,
    },
}

/// Work handed to the device.
#[derive(Debug, Clone)]
pub struct Submission {
    index: wgpu::SubmissionIndex,
}

/// Folds a number of workgroups over the axes of a dispatch: x, then y, then z. The product may exceed `total`; kernels
/// number their groups `x + groups.x * (y + groups.y * z)` and stop at `total`.
///
/// # Errors
/// [`Error::Limit`] if `total` groups do not fit three axes of `per_axis`, or do not fit 32 bits.
pub fn fold_groups(total: u64, per_axis: u32) -> Result<[u32; 3], Error> {
    let axis = u64::from(per_axis.max(1));
    let limit = Error::Limit {
        what: "a dispatch in workgroups",
        needed: total,
        allowed: u64::from(u32::MAX),
    };
    let y_and_z = total.div_ceil(axis).max(1);
    let x = total.div_ceil(y_and_z);
    let z = y_and_z.div_ceil(axis);
    let y = y_and_z.div_ceil(z);
    let numbered = x.checked_mul(y).and_then(|plane| plane.checked_mul(z));
    if z > axis || numbered.is_none_or(|count| count > u64::from(u32::MAX)) {
        return Err(limit);
    }
    Ok([x as u32, y as u32, z as u32])
}

/// Uniform buffers for parameters, lent to one submission at a time.
#[derive(Debug)]
pub(super) struct ParamPool {
    layout: wgpu::BindGroupLayout,
    free: Mutex<Vec<ParamArena>>,
}

#[derive(Debug)]
struct ParamArena {
    buffer: wgpu::Buffer,
    windows: [wgpu::BindGroup; PARAM_WINDOWS.len()],
    size: u64,
}

impl ParamPool {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("params"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
                count: None,
            }],
        });
        Self {
            layout,
            free: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn layout(&self) -> &wgpu::BindGroupLayout {
        &self.layout
    }

    /// An arena of at least `size` bytes. Work submitted earlier may still read it: the queue orders later writes behind.
    fn take(&self, device: &wgpu::Device, size: u64) -> ParamArena {
        let size = size.max(64 << 10).next_power_of_two();
        let mut free = lock(&self.free);
        if let Some(position) = free.iter().position(|arena| arena.size >= size) {
            return free.swap_remove(position);
        }
        drop(free);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let windows = PARAM_WINDOWS.map(|window| {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("params"),
                layout: &self.layout,
                entries: &[wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &buffer,
                        offset: 0,
                        size: std::num::NonZeroU64::new(window),
                    }),
                }],
            })
        });
        ParamArena {
            buffer,
            windows,
            size,
        }
    }
}

/// Parameters of a submission as bytes, and where each dispatch's block starts.
struct PackedParams {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
}

impl PackedParams {
    /// Lays the uniform parameters of `commands` out, one aligned block for each dispatch.
    fn of(commands: &[Command<'_>]) -> Result<Self, Error> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut offsets = Vec::new();
        for command in commands {
            let Command::Dispatch(dispatch) = command else {
                continue;
            };
            if dispatch.pipeline.source().params_in != ParamSpace::Uniform
                || dispatch.params.is_empty()
            {
                offsets.push(0);
                continue;
            }
            bytes.resize(bytes.len().next_multiple_of(PARAM_ALIGNMENT as usize), 0);
            let offset = u32::try_from(bytes.len()).map_err(|_| Error::Limit {
                what: "a submission's parameters",
                needed: bytes.len() as u64,
                allowed: u64::from(u32::MAX),
            })?;
            offsets.push(offset);
            bytes.extend_from_slice(bytemuck::cast_slice(dispatch.params));
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Ok(Self { bytes, offsets })
    }

    /// Bytes the arena needs, so that the widest window still fits behind the last block.
    fn arena_size(&self) -> u64 {
        if self.bytes.is_empty() {
            0
        } else {
            self.bytes.len() as u64 + LARGEST_PARAMS + PARAM_ALIGNMENT
        }
    }
}

impl GpuDevice {
    /// Hands `commands` to the device and returns at once.
    ///
    /// # Errors
    /// [`Error::Range`] for commands that do not fit their buffers or pipelines, [`Error::Limit`] for too many workgroups,
    /// [`Error::Lost`] and [`Error::OutOfMemory`] from the driver. Nothing runs then.
    pub fn submit(&self, commands: &[Command<'_>]) -> Result<Submission, Error> {
        self.record(commands, None)
    }

    /// Waits until `submission` has run.
    ///
    /// # Errors
    /// [`Error::Lost`] if the device died over it.
    pub fn wait(&self, submission: &Submission) -> Result<(), Error> {
        self.poll_until(submission.index.clone())
    }

    /// Runs `commands` and returns the device time each dispatch took, in order. The dispatches run in passes of their
    /// own, so the sum is a little more than one submission takes.
    ///
    /// # Errors
    /// As [`Self::submit`] and [`Self::wait`]; [`Error::MissingFeature`] without timestamps.
    pub fn run_timed(&self, commands: &[Command<'_>]) -> Result<Vec<Duration>, Error> {
        let spans = self.run_stamped(commands)?;
        Ok(spans.into_iter().map(|(start, end)| end - start).collect())
    }

    /// As [`Self::run_timed`], with the beginning and the end of each dispatch since the beginning of the first.
    ///
    /// # Errors
    /// As [`Self::run_timed`].
    pub fn run_stamped(
        &self,
        commands: &[Command<'_>],
    ) -> Result<Vec<(Duration, Duration)>, Error> {
        if self.features().timestamps == Timestamps::Absent {
            return Err(Error::MissingFeature {
                what: "timing",
                feature: "timestamp-query",
            });
        }
        let mut ticks: Vec<[u64; 2]> = Vec::new();
        for part in commands.chunks(QUERIES as usize / 2) {
            ticks.extend(self.run_stamped_part(part)?);
        }
        let origin = ticks.first().map_or(0, |pair| pair[0]);
        let period = f64::from(self.queue.get_timestamp_period());
        let since =
            |tick: u64| Duration::from_nanos((tick.saturating_sub(origin) as f64 * period) as u64);
        // A clock that wraps around or steps back must not make a negative time.
        let span = |[start, end]: [u64; 2]| (since(start), since(end.max(start)));
        Ok(ticks.into_iter().map(span).collect())
    }

    /// Ticks at the beginning and the end of each dispatch.
    fn run_stamped_part(&self, commands: &[Command<'_>]) -> Result<Vec<[u64; 2]>, Error> {
        let dispatches = commands
            .iter()
            .filter(|command| matches!(command, Command::Dispatch(_)))
            .count();
        if dispatches == 0 {
            let submission = self.submit(commands)?;
            self.wait(&submission)?;
            return Ok(Vec::new());
        }
        let stamps = self.allocate(16 * dispatches as u64)?;
        let (set, resolved) = self.scoped("timing", || {
            let set = self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2 * dispatches as u32,
            });
            let resolved = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: stamps.size(),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            (set, resolved)
        })?;
        self.record(commands, Some(&set))?;
        self.scoped("timing", || {
            let mut encoder = self
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.resolve_query_set(&set, 0..2 * dispatches as u32, &resolved, 0);
            let (handle, at) = stamps.parts.place(0);
            encoder.copy_buffer_to_buffer(&resolved, 0, handle, at, stamps.size());
            self.queue.submit([encoder.finish()]);
        })?;
        let mut ticks = vec![[0u64; 2]; dispatches];
        self.download(&stamps, 0, bytemuck::cast_slice_mut(&mut ticks))?;
        Ok(ticks)
    }

    /// Encodes and submits; with `stamps`, each dispatch in its own timed pass.
    fn record(
        &self,
        commands: &[Command<'_>],
        stamps: Option<&wgpu::QuerySet>,
    ) -> Result<Submission, Error> {
        for command in commands {
            self.check_command(command)?;
        }
        let packed = PackedParams::of(commands)?;
        if self.injector.strikes(Mishap::Submission) {
            self.lose("a failure was ordered");
        }
        let index = self.scoped("submission", || {
            let arena = (!packed.bytes.is_empty())
                .then(|| self.params.take(&self.device, packed.arena_size()));
            if let Some(arena) = &arena {
                self.queue.write_buffer(&arena.buffer, 0, &packed.bytes);
            }
            let mut encoder = self
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut recorder = Recorder {
                device: self,
                encoder: &mut encoder,
                stamps,
                next_dispatch: 0,
            };
            let is_dispatch = |command: &Command<'_>| matches!(command, Command::Dispatch(_));
            let mut rest = commands;
            while let Some(first) = rest.first() {
                let run = if !is_dispatch(first) || stamps.is_some() {
                    1
                } else {
                    rest.iter()
                        .take_while(|command| is_dispatch(command))
                        .count()
                };
                let (now, later) = rest.split_at(run);
                recorder.step(now, arena.as_ref(), &packed.offsets);
                rest = later;
            }
            let index = self.queue.submit([encoder.finish()]);
            if let Some(arena) = arena {
                lock(&self.params.free).push(arena);
            }
            index
        })?;
        Ok(Submission { index })
    }

    fn check_command(&self, command: &Command<'_>) -> Result<(), Error> {
        match command {
            Command::Dispatch(dispatch) => self.check_dispatch(dispatch),
            Command::Copy {
                source,
                source_offset,
                target,
                target_offset,
                size,
            } => {
                source.transfer("copy", *source_offset, *size)?;
                let whole = target.transfer("copy", *target_offset, *size)?;
                let overlap = source.number == target.number
                    && *source_offset < target_offset + whole
                    && *target_offset < source_offset + whole;
                if overlap && *size > 0 {
                    return Err(Error::Range {
                        what: "copy",
                        reason: format!(
                            "{size} bytes from {source_offset} to {target_offset} of one buffer overlap"
                        ),
                    });
                }
                Ok(())
            }
            Command::Zero {
                buffer,
                offset,
                size,
            } => buffer.transfer("zero", *offset, *size).map(drop),
        }
    }

    fn check_dispatch(&self, dispatch: &Dispatch<'_>) -> Result<(), Error> {
        let source = dispatch.pipeline.source();
        let mismatch = |reason| Error::Range {
            what: "dispatch",
            reason: format!("kernel `{}`: {reason}", source.label),
        };
        if dispatch.params.len() != source.params_len as usize {
            return Err(mismatch(format!(
                "takes {} parameters, got {}",
                source.params_len,
                dispatch.params.len()
            )));
        }
        if *dispatch.bindings.accesses != *source.bindings {
            return Err(mismatch(
                "the buffers were bound for a kernel that uses them otherwise".to_owned(),
            ));
        }
        let allowed = self.limits().groups_per_axis;
        match dispatch.groups.iter().find(|&&count| count > allowed) {
            Some(&count) => Err(Error::Limit {
                what: "an axis of a dispatch in workgroups",
                needed: u64::from(count),
                allowed: u64::from(allowed),
            }),
            None => Ok(()),
        }
    }
}

/// Writes commands into an encoder.
struct Recorder<'a> {
    device: &'a GpuDevice,
    encoder: &'a mut wgpu::CommandEncoder,
    stamps: Option<&'a wgpu::QuerySet>,
    next_dispatch: u32,
}

impl Recorder<'_> {
    /// One command, or a run of dispatches for one pass.
    fn step(&mut self, commands: &[Command<'_>], arena: Option<&ParamArena>, offsets: &[u32]) {
        match commands {
            [
                Command::Copy {
                    source,
                    source_offset,
                    target,
                    target_offset,
                    size,
                },
            ] => {
                self.copy(
                    source,
                    *source_offset,
                    target,
                    *target_offset,
                    size.next_multiple_of(4),
                );
            }
            [
                Command::Zero {
                    buffer,
                    offset,
                    size,
                },
            ] => {
                let size = size.next_multiple_of(4);
                for (handle, from, bytes) in buffer.parts.pieces(*offset, size, size) {
                    self.encoder
                        .clear_buffer(handle, from, Some(bytes.end - bytes.start));
                }
            }
            dispatches => self.pass(dispatches, arena, offsets),
        }
    }

    /// Copies piece by piece where a buffer has parts. No piece reads what one before wrote: the ranges are apart.
    fn copy(&mut self, source: &GpuBuffer, from: u64, target: &GpuBuffer, to: u64, size: u64) {
        for (from_handle, from, bytes) in source.parts.pieces(from, size, size) {
            let size = bytes.end - bytes.start;
            for (to_handle, to, part) in target.parts.pieces(to + bytes.start, size, size) {
                let size = part.end - part.start;
                self.copy_piece(from_handle, from + part.start, to_handle, to, size);
            }
        }
    }

    /// WebGPU copies between two buffers only; within one, the bytes go through a third.
    fn copy_piece(
        &mut self,
        source: &wgpu::Buffer,
        from: u64,
        target: &wgpu::Buffer,
        to: u64,
        size: u64,
    ) {
        if source != target {
            self.encoder
                .copy_buffer_to_buffer(source, from, target, to, size);
        } else {
            let between = self.device.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            self.encoder
                .copy_buffer_to_buffer(source, from, &between, 0, size);
            self.encoder
                .copy_buffer_to_buffer(&between, 0, target, to, size);
        }
    }

    fn pass(&mut self, dispatches: &[Command<'_>], arena: Option<&ParamArena>, offsets: &[u32]) {
        let timestamp_writes = self
            .stamps
            .map(|query_set| wgpu::ComputePassTimestampWrites {
                query_set,
                beginning_of_pass_write_index: Some(2 * self.next_dispatch),
                end_of_pass_write_index: Some(2 * self.next_dispatch + 1),
            });
        let mut pass = self
            .encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes,
            });
        for command in dispatches {
            let Command::Dispatch(dispatch) = command else {
                continue;
            };
            let offset = offsets[self.next_dispatch as usize];
            self.next_dispatch += 1;
            if dispatch.groups.contains(&0) {
                continue;
            }
            pass.set_pipeline(&dispatch.pipeline.handle);
            pass.set_bind_group(0, &dispatch.bindings.handle, &[]);
            if !dispatch.params.is_empty() {
                match dispatch.pipeline.source().params_in {
                    ParamSpace::Immediate => {
                        pass.set_immediates(0, bytemuck::cast_slice(dispatch.params))
                    }
                    ParamSpace::Uniform => {
                        let size = dispatch.params.len() as u64 * 4;
                        let window = PARAM_WINDOWS.iter().position(|&window| size <= window);
                        if let (Some(arena), Some(window)) = (arena, window) {
                            pass.set_bind_group(1, &arena.windows[window], &[offset]);
                        }
                    }
                }
            }
            let [x, y, z] = dispatch.groups;
            pass.dispatch_workgroups(x, y, z);
        }
    }
}

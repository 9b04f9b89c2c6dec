//! The traits of `cupola-backend` over one GPU: units to executables, launches to dispatches.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cupola_backend::{
    Backend, BackendError, Buffer, BufferRange, Device, Executable, Launch, Memory, Result,
};
use cupola_ir::kernel::{Kernel, Unit};
use cupola_ir::target::Target;
use cupola_ir::{DType, Scalar};
use rustc_hash::FxHashMap;

use crate::adapter::{Adapter, Timestamps};
use crate::device::buffer::Download;
use crate::device::pipeline::{KernelSource, ParamSpace, Trust};
use crate::device::{
    Bindings, Command, DeviceOptions, Dispatch, GpuBuffer, GpuDevice, Pipeline, STORAGE_ALIGNMENT,
    fold_groups,
};
use crate::emit::{self, Mapping, Variant};
use crate::error::Error;
use crate::library::unit::{LibraryUnit, claim};
use crate::library::{Place, kernel_source};
use crate::peaks;
use crate::schedule::{self, Bound};

/// Compiles for one GPU and runs there.
#[derive(Debug)]
pub struct WgpuBackend {
    target: Target,
    device: WgpuDevice,
}

/// A GPU's memory and queue.
#[derive(Debug)]
pub struct WgpuDevice {
    gpu: Arc<GpuDevice>,
    name: String,
    /// One word that kernels write the number of a faulting launch to.
    faults: GpuBuffer,
    watch: Mutex<FaultWatch>,
    /// Memory between the dispatches of one launch, used again by later ones: the device runs them in order.
    scratch: Mutex<Vec<GpuBuffer>>,
}

/// Scratch buffers kept.
const MOST_SCRATCH: usize = 32;

/// Seconds that one submission may be expected to take: drivers end what takes longer than about two.
const LONGEST_SUBMISSION: f64 = 0.5;

/// Launches that can fault.
#[derive(Debug, Default)]
struct FaultWatch {
    /// Number of the last one.
    last: u32,
    /// Names by number, of the recent ones.
    names: FxHashMap<u32, Arc<str>>,
    /// Submissions with such launches, and how many of them had been made when the fault word was last read.
    submitted: u64,
    seen: u64,
}

/// Names remembered: a fault is noticed at the next read-back, which comes sooner.
const MOST_NAMES: usize = 4096;

/// Memory of a GPU.
#[derive(Debug)]
struct WgpuMemory(GpuBuffer);

impl Memory for WgpuMemory {
    fn size(&self) -> usize {
        self.0.size() as usize
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A lock whose holder panicked still holds plain data here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WgpuBackend {
    /// Opens an adapter. `name` is the device's name in messages, as in `--device`.
    ///
    /// # Errors
    /// As [`GpuDevice::open`].
    pub fn open(adapter: &Adapter, options: &DeviceOptions, name: &str) -> Result<Self, Error> {
        let gpu = Arc::new(GpuDevice::open(adapter, options)?);
        let faults = gpu.allocate(4)?;
        let target = target(name, &gpu);
        let device = WgpuDevice {
            gpu,
            name: name.to_owned(),
            faults,
            watch: Mutex::default(),
            scratch: Mutex::default(),
        };
        Ok(Self { target, device })
    }

    /// The GPU underneath.
    pub fn gpu(&self) -> &GpuDevice {
        &self.device.gpu
    }

    fn compile_one(&self, unit: &Unit) -> Result<Arc<dyn Executable>> {
        let unsupported = |error: emit::EmitError| BackendError::Unsupported {
            unit: unit.name(),
            device: self.device.name.clone(),
            what: error.0,
        };
        let work = match unit {
            Unit::Loops(kernel) => {
                // Every variant has the same expressions, so one says whether all can be written.
                emit::emit(kernel, PLAIN).map_err(unsupported)?;
                Work::Loops(Box::new(kernel.clone()))
            }
            Unit::Library(library) => {
                Work::Library(Box::new(LibraryUnit::new(library).map_err(unsupported)?))
            }
        };
        Ok(Arc::new(WgpuExecutable {
            name: unit.name().into(),
            work,
            prepared: Mutex::default(),
        }))
    }
}

/// The variant that every kernel has.
const PLAIN: Variant = Variant {
    mapping: Mapping::Threads { lanes: 1 },
    words: 0,
    shared: 0,
};

impl Backend for WgpuBackend {
    fn target(&self) -> &Target {
        &self.target
    }

    fn device(&self) -> &dyn Device {
        &self.device
    }

    fn measure(&self) -> Option<Rates> {
        let gpu = &self.device.gpu;
        let peaks = peaks::measure(gpu).ok()?;
        gpu.learn(peaks.rates(gpu.model().rates));
        Some(Rates {
            f32_ops: peaks.f32,
            reads: vec![(usize::MAX, peaks.copy)],
            copy: peaks.copy,
            f16_ops: peaks.f16,
            matrix_ops: peaks.matrix,
            submit: peaks.submit,
            dispatch: peaks.dispatch,
        })
    }

    fn compile(&self, units: &[&Unit]) -> Vec<Result<Arc<dyn Executable>>> {
        units.iter().map(|unit| self.compile_one(unit)).collect()
    }
}

fn target(name: &str, gpu: &GpuDevice) -> Target {
    use DType::*;
    let limits = gpu.limits();
    Target {
        name: name.to_owned(),
        dtypes: vec![
            Bool, I2, I4, I8, I16, I32, I64, U2, U4, U8, U16, U32, U64, F16, BF16, F32, F8E4M3FN,
            F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F4E2M1,
        ],
        scalars: Scalar::ALL.to_vec(),
        // One binding is kept for the fault word.
        max_buffers: limits.storage_buffers as usize - 1,
        alignment: STORAGE_ALIGNMENT as usize,
        max_binding: limits.binding_size,
        aliasing: false,
        joins_in_turn: false,
        claim,
    }
}

/// A unit that launches can be made of.
struct WgpuExecutable {
    name: Arc<str>,
    work: Work,
    /// What launches with these sizes, and these buffers that are shared, run.
    prepared: Mutex<PreparedCache>,
}

/// By sizes, and the set of shared buffers.
type PreparedCache = FxHashMap<(Vec<i64>, u64), Arc<Prepared>>;

/// Sizes remembered for each executable; a loop over ever new sizes does not fill the memory.
const MOST_PREPARED: usize = 64;

enum Work {
    Loops(Box<Kernel>),
    Library(Box<LibraryUnit>),
}

/// Compiled dispatches of a unit for given sizes.
struct Prepared {
    steps: Vec<PreparedStep>,
    scratch: Vec<u64>,
    /// The last buffer of the last step is the fault word, and its launch number is parameter 1.
    faults: bool,
}

struct PreparedStep {
    pipeline: Arc<Pipeline>,
    places: Vec<Place>,
    params: Vec<u32>,
    groups: [u32; 3],
}

/// A dispatch with its buffers.
struct Ready {
    pipeline: Arc<Pipeline>,
    bindings: Bindings,
    params: Vec<u32>,
    groups: [u32; 3],
    faults: bool,
    /// Whether it is the first of its launch.
    first: bool,
    /// Seconds it is expected to take.
    expected: f64,
}

impl fmt::Debug for WgpuExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WgpuExecutable({})", self.name)
    }
}

impl Executable for WgpuExecutable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn listing(&self) -> String {
        let prepared = lock(&self.prepared);
        let mut texts: Vec<String> = Vec::new();
        for step in prepared.values().flat_map(|prepared| &prepared.steps) {
            let text = &step.pipeline.source().text;
            if !texts.contains(text) {
                texts.push(text.clone());
            }
        }
        if texts.is_empty()
            && let Work::Loops(kernel) = &self.work
            && let Ok(shader) = emit::emit(kernel, PLAIN)
        {
            texts.push(shader.wgsl(ParamSpace::Uniform));
        }
        texts.join("\n")
    }
}

impl WgpuExecutable {
    /// What its launches with these sizes and buffers are prepared under.
    fn key(&self, launch: &Launch) -> (Vec<i64>, u64) {
        let ranges: Vec<&BufferRange> = launch.buffers.iter().collect();
        let shared = match &self.work {
            Work::Loops(kernel) => shared_buffers(kernel, &ranges),
            Work::Library(library) => u64::from(library_shares(library, &ranges)),
        };
        (launch.sizes.clone(), shared)
    }

    fn is_prepared(&self, launch: &Launch) -> bool {
        lock(&self.prepared).contains_key(&self.key(launch))
    }

    fn prepare(&self, gpu: &GpuDevice, launch: &Launch) -> Result<Arc<Prepared>, Error> {
        let key = self.key(launch);
        if let Some(prepared) = lock(&self.prepared).get(&key) {
            return Ok(Arc::clone(prepared));
        }
        let (sizes, shared) = (launch.sizes.as_slice(), key.1);
        let prepared = Arc::new(match &self.work {
            Work::Loops(kernel) => self.prepare_loops(gpu, kernel, sizes, shared)?,
            Work::Library(library) => prepare_library(gpu, library, sizes, shared != 0)?,
        });
        let mut cache = lock(&self.prepared);
        if cache.len() >= MOST_PREPARED {
            cache.clear();
        }
        cache.insert(key, Arc::clone(&prepared));
        Ok(prepared)
    }

    fn prepare_loops(
        &self,
        gpu: &GpuDevice,
        kernel: &Kernel,
        sizes: &[i64],
        shared: u64,
    ) -> Result<Prepared, Error> {
        let bound = schedule::bind(kernel, sizes, &gpu.model()).map_err(|error| match error {
            schedule::BindError::TooLarge { reach } => Error::Limit {
                what: "an index of a kernel",
                needed: u64::try_from(reach.unsigned_abs()).unwrap_or(u64::MAX),
                allowed: i32::MAX as u64,
            },
            schedule::BindError::MissingSize { at } => Error::Range {
                what: "launch",
                reason: format!("size {at} is not given"),
            },
        })?;
        let faults = emit::can_fault(kernel);
        if bound.groups == 0 {
            return Ok(Prepared {
                steps: Vec::new(),
                scratch: Vec::new(),
                faults: false,
            });
        }
        let Bound {
            variant,
            positions,
            groups,
        } = bound;
        let shader =
            emit::emit(kernel, Variant { shared, ..variant }).map_err(|error| Error::Shader {
                label: self.name.to_string(),
                message: error.0,
            })?;
        let pipeline = gpu.pipeline(&kernel_source(&shader, gpu.features()))?;
        let step = PreparedStep {
            pipeline,
            places: (0..kernel.buffers.len()).map(Place::Argument).collect(),
            params: emit::param_words(kernel, positions, 0, sizes),
            groups: fold_groups(groups, gpu.limits().groups_per_axis)?,
        };
        Ok(Prepared {
            steps: vec![step],
            scratch: Vec::new(),
            faults,
        })
    }
}

/// Buffers of a kernel that are read alone while another argument writes to the same memory object.
fn shared_buffers(kernel: &Kernel, ranges: &[&BufferRange]) -> u64 {
    use cupola_ir::kernel::Access;
    let mut shared = 0;
    for (at, buffer) in kernel.buffers.iter().enumerate().take(64) {
        let written_too = kernel.buffers.iter().zip(ranges).any(|(other, range)| {
            other.access != Access::Read && Arc::ptr_eq(&range.buffer, &ranges[at].buffer)
        });
        if buffer.access == Access::Read && written_too {
            shared |= 1 << at;
        }
    }
    shared
}

/// Whether a library unit reads and writes one memory object.
fn library_shares(library: &LibraryUnit, ranges: &[&BufferRange]) -> bool {
    let written = library.written();
    ranges.iter().enumerate().any(|(at, range)| {
        !written.contains(&at)
            && written.iter().any(|&other| {
                ranges
                    .get(other)
                    .is_some_and(|other| Arc::ptr_eq(&other.buffer, &range.buffer))
            })
    })
}

fn prepare_library(
    gpu: &GpuDevice,
    library: &LibraryUnit,
    sizes: &[i64],
    shares: bool,
) -> Result<Prepared, Error> {
    let program = library.plan(sizes, &gpu.model())?;
    let epilogue = library
        .epilogue_kernel()
        .map_or(Vec::new(), |kernel| emit::size_words(kernel, sizes));
    let mut steps = Vec::new();
    for (mut call, places) in program.steps {
        if call.groups == 0 {
            continue;
        }
        if shares {
            for binding in &mut call.shader.bindings {
                binding.share();
            }
        }
        let source: KernelSource = kernel_source(&call.shader, gpu.features());
        debug_assert_eq!(source.trust, Trust::Generated);
        steps.push(PreparedStep {
            pipeline: gpu.pipeline(&source)?,
            places,
            params: call.params_with(&epilogue),
            groups: call.folded(gpu.limits().groups_per_axis)?,
        });
    }
    Ok(Prepared {
        steps,
        scratch: program.scratch,
        faults: false,
    })
}

impl WgpuDevice {
    fn error(&self, error: Error) -> BackendError {
        match error {
            Error::OutOfMemory { requested, .. } => BackendError::OutOfMemory {
                device: self.name.clone(),
                size: requested,
                what: error.to_string(),
            },
            Error::Limit {
                what: "a buffer",
                needed,
                ..
            } => BackendError::OutOfMemory {
                device: self.name.clone(),
                size: needed,
                what: error.to_string(),
            },
            other => BackendError::Device {
                device: self.name.clone(),
                what: other.to_string(),
            },
        }
    }

    fn foreign(&self, what: &str) -> BackendError {
        BackendError::Device {
            device: self.name.clone(),
            what: format!("{what} of another device"),
        }
    }

    fn memory<'a>(&self, buffer: &'a Buffer) -> Result<&'a GpuBuffer> {
        let memory = buffer.as_any().downcast_ref::<WgpuMemory>();
        memory
            .map(|memory| &memory.0)
            .ok_or_else(|| self.foreign("a buffer"))
    }

    fn executable<'a>(&self, launch: &'a Launch) -> Result<&'a WgpuExecutable> {
        let executable = launch.executable.as_any().downcast_ref();
        executable.ok_or_else(|| self.foreign("code"))
    }

    /// Compiles what launches need that have not been run before, on all cores.
    fn prepare_all(&self, launches: &[&Launch]) -> Result<()> {
        let mut missing = Vec::new();
        for launch in launches {
            let executable = self.executable(launch)?;
            if !executable.is_prepared(launch) {
                missing.push((executable, *launch));
            }
        }
        let prepare = |(executable, launch): &(&WgpuExecutable, &Launch)| {
            let prepared = executable.prepare(&self.gpu, launch);
            prepared.map(drop).map_err(|error| self.error(error))
        };
        if missing.len() < 2 {
            return missing.iter().try_for_each(prepare);
        }
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(entry) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                prepare(entry)?;
            }
            Ok(())
        };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        std::thread::scope(|scope| {
            // Without further threads this one does it all.
            let others: Vec<_> = (1..cores.min(missing.len()))
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mut outcome = work();
            for other in others {
                let other = other.join().unwrap_or_else(|_| {
                    Err(BackendError::Device {
                        device: self.name.clone(),
                        what: "a compiler thread ended".to_owned(),
                    })
                });
                outcome = outcome.and(other);
            }
            outcome
        })
    }

    /// Memory that nothing else uses until it is given back; contents undefined.
    fn take_scratch(&self, size: u64) -> Result<GpuBuffer> {
        let mut free = lock(&self.scratch);
        let fits = |buffer: &GpuBuffer| (size..=2 * size.max(1 << 16)).contains(&buffer.size());
        let best = (0..free.len())
            .filter(|&at| fits(&free[at]))
            .min_by_key(|&at| free[at].size());
        if let Some(at) = best {
            return Ok(free.remove(at));
        }
        let fresh = self.gpu.allocate(size).or_else(|_| {
            // What is kept for later may be what is missing now.
            free.clear();
            self.gpu.allocate(size)
        });
        fresh.map_err(|error| self.error(error))
    }

    fn give_scratch(&self, buffers: Vec<GpuBuffer>) {
        let mut free = lock(&self.scratch);
        free.extend(buffers);
        let surplus = free.len().saturating_sub(MOST_SCRATCH);
        free.drain(..surplus);
    }

    /// The dispatches of a launch with their buffers.
    fn ready(&self, launch: &Launch, out: &mut Vec<Step>) -> Result<()> {
        let executable = self.executable(launch)?;
        let prepared = executable
            .prepare(&self.gpu, launch)
            .map_err(|error| self.error(error))?;
        let scratch: Vec<GpuBuffer> = prepared
            .scratch
            .iter()
            .map(|&size| self.take_scratch(size))
            .collect::<Result<_, _>>()?;
        let moved: usize = launch.buffers.iter().map(|range| range.size).sum();
        let rates = self.gpu.model().rates;
        let mut expected = moved as f64 / rates.copy;
        for (at, step) in prepared.steps.iter().enumerate() {
            let mut bound = Vec::with_capacity(step.places.len() + 1);
            for place in &step.places {
                bound.push(match *place {
                    Place::Scratch(at) => scratch[at].whole(),
                    Place::Argument(at) => {
                        let range = launch.buffers.get(at).ok_or_else(|| BackendError::Device {
                            device: self.name.clone(),
                            what: format!("{} takes more than {at} buffers", executable.name),
                        })?;
                        let memory = self.memory(&range.buffer)?;
                        memory
                            .range(range.offset as u64, range.size as u64)
                            .map_err(|error| self.error(error))?
                    }
                });
            }
            let mut params = step.params.clone();
            if prepared.faults {
                bound.push(self.faults.whole());
                params[1] = self.number(&executable.name);
            }
            let bindings = self
                .gpu
                .bind(&step.pipeline, &bound)
                .map_err(|error| self.error(error))?;
            out.push(Step::Run(Ready {
                pipeline: Arc::clone(&step.pipeline),
                bindings,
                params,
                groups: step.groups,
                faults: prepared.faults,
                first: at == 0,
                expected: std::mem::take(&mut expected) + rates.dispatch,
            }));
        }
        self.give_scratch(scratch);
        Ok(())
    }

    /// A number for a launch that may fault; never 0.
    fn number(&self, name: &Arc<str>) -> u32 {
        let mut watch = lock(&self.watch);
        if watch.names.len() >= MOST_NAMES {
            watch.names.clear();
        }
        watch.last = watch.last.wrapping_add(1).max(1);
        let number = watch.last;
        watch.names.insert(number, Arc::clone(name));
        number
    }

    /// The steps of commands in order, and where those of each command end.
    fn steps(&self, commands: &[cupola_backend::Command]) -> Result<(Vec<Step>, Vec<usize>)> {
        use cupola_backend::Command::{Concurrent, Copy, Launch};
        let launches = commands.iter().flat_map(|command| match command {
            Launch(launch) => std::slice::from_ref(launch),
            Concurrent(launches) => launches,
            Copy { .. } => &[],
        });
        self.prepare_all(&launches.collect::<Vec<_>>())?;
        let mut steps = Vec::with_capacity(commands.len());
        let mut ends = Vec::with_capacity(commands.len());
        for command in commands {
            match command {
                Launch(launch) => self.ready(launch, &mut steps)?,
                Concurrent(launches) => {
                    for launch in launches {
                        self.ready(launch, &mut steps)?;
                    }
                }
                Copy { from, to } => steps.push(Step::Copy {
                    from: from.clone(),
                    to: to.clone(),
                }),
            }
            ends.push(steps.len());
        }
        Ok((steps, ends))
    }

    fn encode<'a>(&self, steps: &'a [Step]) -> Result<Vec<Command<'a>>> {
        let encode = |step: &'a Step| match step {
            Step::Run(ready) => Ok(Command::Dispatch(Dispatch {
                pipeline: &ready.pipeline,
                bindings: &ready.bindings,
                params: &ready.params,
                groups: ready.groups,
            })),
            Step::Copy { from, to } => Ok(Command::Copy {
                source: self.memory(&from.buffer)?,
                source_offset: from.offset as u64,
                target: self.memory(&to.buffer)?,
                target_offset: to.offset as u64,
                size: from.size as u64,
            }),
        };
        steps.iter().map(encode).collect()
    }

    /// Remembers that steps which may write the fault word have been submitted.
    fn note_faults(&self, steps: &[Step]) {
        let can_fault = |step: &Step| matches!(step, Step::Run(ready) if ready.faults);
        if steps.iter().any(can_fault) {
            lock(&self.watch).submitted += 1;
        }
    }

    /// Submissions made, if any since the last look can have written the fault word.
    fn unread_faults(&self) -> Option<u64> {
        let watch = lock(&self.watch);
        (watch.submitted != watch.seen).then_some(watch.submitted)
    }

    /// Reads what is wanted, and the fault word if any launch since the last look can have written it.
    fn read(&self, wanted: Option<Download<'_>>) -> Result<()> {
        let submitted = self.unread_faults();
        let mut word = [0; 4];
        let faults = submitted.map(|_| Download {
            buffer: &self.faults,
            offset: 0,
            target: &mut word,
        });
        let mut downloads: Vec<Download<'_>> = wanted.into_iter().chain(faults).collect();
        self.gpu
            .download_all(&mut downloads)
            .map_err(|error| self.error(error))?;
        let mut watch = lock(&self.watch);
        watch.seen = watch.seen.max(submitted.unwrap_or(0));
        let number = u32::from_le_bytes(word);
        if number == 0 {
            return Ok(());
        }
        let unit = watch
            .names
            .get(&number)
            .map_or("a kernel", |name| name)
            .to_owned();
        drop(watch);
        self.gpu
            .upload(&self.faults, 0, &[0; 4])
            .map_err(|error| self.error(error))?;
        Err(BackendError::Fault {
            unit,
            what: "an index or a divisor outside what the op allows".to_owned(),
        })
    }
}

/// A device command that owns what it refers to.
enum Step {
    Run(Ready),
    Copy { from: BufferRange, to: BufferRange },
}

/// How many steps to submit together: up to those that are expected to take as long as a driver lets pass. Steps of one
/// launch share scratch memory with launches of other threads, so they stay together.
fn worth_submitting(steps: &[Step]) -> usize {
    let mut expected = 0.0;
    for (at, step) in steps.iter().enumerate() {
        if let Step::Run(ready) = step {
            expected += ready.expected;
            if ready.first && at > 0 && expected > LONGEST_SUBMISSION {
                return at;
            }
        }
    }
    steps.len()
}

impl Device for WgpuDevice {
    fn alloc(&self, size: usize) -> Result<Buffer> {
        let buffer = self
            .gpu
            .allocate(size as u64)
            .map_err(|error| self.error(error))?;
        Ok(Arc::new(WgpuMemory(buffer)))
    }

    fn upload(&self, to: &BufferRange, bytes: &[u8]) -> Result<()> {
        if bytes.len() != to.size {
            return Err(BackendError::Device {
                device: self.name.clone(),
                what: format!("{} bytes for a range of {}", bytes.len(), to.size),
            });
        }
        let buffer = self.memory(&to.buffer)?;
        self.gpu
            .upload(buffer, to.offset as u64, bytes)
            .map_err(|error| self.error(error))
    }

    fn download(&self, from: &BufferRange, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() != from.size {
            return Err(BackendError::Device {
                device: self.name.clone(),
                what: format!("{} bytes from a range of {}", bytes.len(), from.size),
            });
        }
        let buffer = self.memory(&from.buffer)?;
        self.read(Some(Download {
            buffer,
            offset: from.offset as u64,
            target: bytes,
        }))
    }

    fn submit(&self, commands: &[cupola_backend::Command]) -> Result<()> {
        let (steps, _) = self.steps(commands)?;
        let mut rest = steps.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(worth_submitting(rest));
            let encoded = self.encode(now)?;
            self.gpu
                .submit(&encoded)
                .map_err(|error| self.error(error))?;
            rest = later;
        }
        self.note_faults(&steps);
        Ok(())
    }

    fn has_clock(&self) -> bool {
        self.gpu.features().timestamps != Timestamps::Absent
    }

    fn submit_timed(
        &self,
        commands: &[cupola_backend::Command],
    ) -> Result<Vec<(Duration, Duration)>> {
        let (steps, ends) = self.steps(commands)?;
        let encoded = self.encode(&steps)?;
        let times = self
            .gpu
            .run_stamped(&encoded)
            .map_err(|error| self.error(error))?;
        self.note_faults(&steps);
        // Copies have no times of their own; they take up none between their neighbours.
        let mut times = times.into_iter();
        let mut now = Duration::ZERO;
        let mut first = 0;
        let mut spans = Vec::with_capacity(ends.len());
        for end in ends {
            let dispatches = steps[first..end]
                .iter()
                .filter(|step| matches!(step, Step::Run(_)))
                .count();
            let own: Vec<(Duration, Duration)> = times.by_ref().take(dispatches).collect();
            let start = own.first().map_or(now, |span| span.0);
            now = own.iter().map(|span| span.1).max().unwrap_or(now);
            spans.push((start, now));
            first = end;
        }
        Ok(spans)
    }

    fn wait(&self) -> Result<()> {
        if self.unread_faults().is_some() {
            // Reading waits for all work before.
            return self.read(None);
        }
        let submission = self.gpu.submit(&[]).map_err(|error| self.error(error))?;
        self.gpu
            .wait(&submission)
            .map_err(|error| self.error(error))
    }

    fn is_lost(&self) -> bool {
        self.gpu.is_lost()
    }

    fn trim(&self) {
        lock(&self.scratch).clear();
        self.gpu.trim();
    }

    fn memory_used(&self) -> (u64, u64) {
        let used = self.gpu.memory();
        (used.live, used.peak)
    }
}

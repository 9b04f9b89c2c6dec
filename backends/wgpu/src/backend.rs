//! The traits of `cupola-backend` over one GPU: units to executables, launches to dispatches.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cupola_backend::{
    Backend, BackendError, Buffer, BufferRange, Device, Executable, Memory, Rates, Result,
};
use cupola_ir::kernel::{Kernel, Unit};
use cupola_ir::target::Target;
use cupola_ir::{DType, Scalar};
use rustc_hash::FxHashMap;

use crate::adapter::Adapter;
use crate::device::buffer::Download;
use crate::device::pipeline::{KernelSource, ParamSpace, Trust};
use crate::device::{
    Bindings, Command, DeviceOptions, Dispatch, GpuBuffer, GpuDevice, Pipeline, STORAGE_ALIGNMENT,
    fold_groups,
};
use crate::emit::{self, Variant};
use crate::error::Error;
use crate::library::unit::{LibraryUnit, claim};
use crate::library::{Place, kernel_source};
use crate::peaks;
use crate::schedule;

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
}

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
                emit::emit(kernel, Variant::default()).map_err(unsupported)?;
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
            && let Ok(shader) = emit::emit(kernel, Variant::default())
        {
            texts.push(shader.wgsl(ParamSpace::Uniform));
        }
        texts.join("\n")
    }
}

impl WgpuExecutable {
    fn prepare(
        &self,
        gpu: &GpuDevice,
        sizes: &[i64],
        ranges: &[&BufferRange],
    ) -> Result<Arc<Prepared>, Error> {
        let shared = match &self.work {
            Work::Loops(kernel) => shared_buffers(kernel, ranges),
            Work::Library(library) => u64::from(library_shares(library, ranges)),
        };
        let key = (sizes.to_vec(), shared);
        if let Some(prepared) = lock(&self.prepared).get(&key) {
            return Ok(Arc::clone(prepared));
        }
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
        let mut places: Vec<Place> = (0..kernel.buffers.len()).map(Place::Argument).collect();
        let mut scratch = Vec::new();
        if bound.partial_size > 0 {
            places.push(Place::Scratch(0));
            scratch.push(bound.partial_size);
        }
        let params = emit::param_words(&bound.kernel, bound.positions, bound.parts, &bound.sizes);
        let mut steps = Vec::new();
        for &(part, groups) in &bound.launches {
            let variant = Variant {
                shared,
                part,
                ..bound.variant.clone()
            };
            let shader = emit::emit(&bound.kernel, variant).map_err(|error| Error::Shader {
                label: self.name.to_string(),
                message: error.0,
            })?;
            steps.push(PreparedStep {
                pipeline: gpu.pipeline(&kernel_source(&shader, gpu.features()))?,
                places: places.clone(),
                params: params.clone(),
                groups: fold_groups(groups, gpu.limits().groups_per_axis)?,
            });
        }
        Ok(Prepared {
            steps,
            scratch,
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

    /// The dispatches of a launch with their buffers.
    fn ready(&self, launch: &cupola_backend::Launch, out: &mut Vec<Step>) -> Result<()> {
        let executable = launch.executable.as_any().downcast_ref::<WgpuExecutable>();
        let executable = executable.ok_or_else(|| self.foreign("code"))?;
        let ranges: Vec<&BufferRange> = launch.buffers.iter().collect();
        let prepared = executable
            .prepare(&self.gpu, &launch.sizes, &ranges)
            .map_err(|error| self.error(error))?;
        let scratch: Vec<GpuBuffer> = prepared
            .scratch
            .iter()
            .map(|&size| self.gpu.allocate(size))
            .collect::<Result<_, _>>()
            .map_err(|error| self.error(error))?;
        for step in &prepared.steps {
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
            }));
        }
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

    /// Reads what is wanted, and the fault word if any launch since the last look can have written it.
    fn read(&self, wanted: Option<Download<'_>>) -> Result<()> {
        let submitted = {
            let watch = lock(&self.watch);
            (watch.submitted != watch.seen).then_some(watch.submitted)
        };
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
        let mut steps = Vec::with_capacity(commands.len());
        for command in commands {
            match command {
                cupola_backend::Command::Launch(launch) => self.ready(launch, &mut steps)?,
                cupola_backend::Command::Concurrent(launches) => {
                    for launch in launches {
                        self.ready(launch, &mut steps)?;
                    }
                }
                cupola_backend::Command::Copy { from, to } => {
                    steps.push(Step::Copy {
                        from: from.clone(),
                        to: to.clone(),
                    });
                }
            }
        }
        let mut encoded = Vec::with_capacity(steps.len());
        for step in &steps {
            encoded.push(match step {
                Step::Run(ready) => Command::Dispatch(Dispatch {
                    pipeline: &ready.pipeline,
                    bindings: &ready.bindings,
                    params: &ready.params,
                    groups: ready.groups,
                }),
                Step::Copy { from, to } => Command::Copy {
                    source: self.memory(&from.buffer)?,
                    source_offset: from.offset as u64,
                    target: self.memory(&to.buffer)?,
                    target_offset: to.offset as u64,
                    size: from.size as u64,
                },
            });
        }
        self.gpu
            .submit(&encoded)
            .map_err(|error| self.error(error))?;
        if steps
            .iter()
            .any(|step| matches!(step, Step::Run(ready) if ready.faults))
        {
            lock(&self.watch).submitted += 1;
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let submission = self.gpu.submit(&[]).map_err(|error| self.error(error))?;
        self.gpu
            .wait(&submission)
            .map_err(|error| self.error(error))?;
        self.read(None)
    }

    fn memory_used(&self) -> (u64, u64) {
        let used = self.gpu.memory();
        (used.live, used.peak)
    }
}

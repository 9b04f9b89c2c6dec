//! Units prepared for sizes: what their launches dispatch.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cupola_backend::Executable;
use cupola_ir::kernel::{Kernel, Unit};
use cupola_shaders::shader::LAUNCH;
use cupola_shaders::{Binding, Shader, Windows};
use rustc_hash::FxHashMap;

use crate::choice::{Choices, DeviceModel};
use crate::device::pipeline::ParamSpace;
use crate::device::{BufferRange, GpuDevice, Pipeline, fold_groups, lock};
use crate::effort::Effort;
use crate::emit::{self, Variant};
use crate::error::Error;
use crate::library::unit::LibraryUnit;
use crate::library::{LibraryCall, LibraryProgram, Place, kernel_source};
use crate::over;
use crate::schedule;
use crate::tune::Question;

/// A unit that launches can be made of.
pub(crate) struct WgpuExecutable {
    name: Arc<str>,
    /// What it was made of.
    unit: Unit,
    work: Work,
    /// What launches run.
    prepared: Mutex<FxHashMap<PreparedKey, Arc<Prepared>>>,
}

/// What decides the code of launches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PreparedKey {
    sizes: Vec<i64>,
    /// The set of buffers that are read alone while another argument writes to the same memory object; for library
    /// kernels whether there are any.
    shared: u64,
    /// Arguments that are the memory of a result, and that result: of a library kernel its first operand alone.
    over: Vec<(usize, usize)>,
    /// The arguments that need several bindings.
    divided: Vec<(usize, Windows)>,
}

impl PreparedKey {
    fn windows(&self, argument: usize) -> Windows {
        let found = self.divided.iter().find(|(at, _)| *at == argument);
        found.map_or(Windows::ONE, |(_, windows)| *windows)
    }

    /// The device as it is to kernels that do not know of windows: those beyond the first of each argument are taken.
    fn model(&self, gpu: &GpuDevice) -> DeviceModel {
        let mut model = DeviceModel::clone(&gpu.model());
        let further: u32 = (self.divided.iter())
            .map(|(_, windows)| windows.count - 1)
            .sum();
        model.limits.storage_buffers = model.limits.storage_buffers.saturating_sub(further);
        model
    }
}

/// Sizes remembered for each executable; a loop over ever new sizes does not fill the memory.
const MOST_PREPARED: usize = 64;

/// Where indices of kernels end.
const LARGEST_INDEX: u64 = i32::MAX as u64;

/// What a unit computes.
pub(crate) enum Work {
    Loops(Box<Kernel>),
    Library(Arc<LibraryUnit>),
}

/// Compiled dispatches of a unit for given sizes.
pub(crate) struct Prepared {
    pub steps: Vec<PreparedStep>,
    /// Bytes of each scratch buffer.
    pub scratch: Vec<u64>,
    /// Instructions of all steps together, about.
    pub instructions: f64,
    /// Bytes that all steps together move at most, beside what arguments hold.
    pub most_bytes: f64,
    /// What decided among plans, where there are several.
    decided: Option<Decided>,
}

/// What was known of a class of problems when one of them was prepared.
struct Decided {
    class: String,
    plan: Option<String>,
    /// The revision of the choices that this was last compared with.
    revision: AtomicU64,
}

impl Decided {
    fn new(class: String, choices: &Choices) -> Self {
        Self {
            plan: choices.plan(&class).map(str::to_owned),
            class,
            revision: AtomicU64::new(choices.revision()),
        }
    }

    /// Whether nothing else has been decided since.
    fn is_current(&self, choices: &Choices) -> bool {
        let revision = choices.revision();
        let same = self.revision.load(Ordering::Relaxed) == revision
            || choices.plan(&self.class) == self.plan.as_deref();
        if same {
            self.revision.store(revision, Ordering::Relaxed);
        }
        same
    }
}

/// A dispatch without its buffers.
pub(crate) struct PreparedStep {
    pub pipeline: Arc<Pipeline>,
    pub places: Vec<Place>,
    pub params: Vec<u32>,
    /// Parameter word that takes the launch number, if the kernel reports faults.
    pub launch: Option<usize>,
    pub groups: [u32; 3],
}

impl PreparedStep {
    /// A kernel that reports faults has a buffer for them, which is the device's, and a parameter for its number.
    fn new(
        gpu: &GpuDevice,
        mut shader: Shader,
        mut places: Vec<Place>,
        (params, groups): (Vec<u32>, u64),
        windows: impl Fn(Place) -> Windows,
    ) -> Result<Self, Error> {
        let launch = shader.fault_word().and_then(|at| {
            places.resize(shader.bindings.len(), Place::Faults);
            places[at] = Place::Faults;
            shader.word_at(LAUNCH)
        });
        for (binding, place) in shader.bindings.iter_mut().zip(&places) {
            binding.windows = windows(*place);
            check_reach(binding)?;
        }
        Ok(Self {
            pipeline: gpu.pipeline(&kernel_source(&shader, gpu.features()))?,
            places,
            params,
            launch,
            groups: fold_groups(groups, gpu.limits().groups_per_axis)?,
        })
    }
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

    fn can_fault(&self) -> bool {
        match &self.work {
            Work::Loops(kernel) => emit::can_fault(kernel),
            Work::Library(library) => library.can_fault(),
        }
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
    pub fn new(unit: &Unit, work: Work) -> Self {
        Self {
            name: unit.name().into(),
            unit: unit.clone(),
            work,
            prepared: Mutex::default(),
        }
    }

    /// Name of the unit.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What launches with these sizes and arguments are prepared under.
    fn key(&self, sizes: &[i64], arguments: &[BufferRange<'_>]) -> PreparedKey {
        let windows = arguments.iter().map(BufferRange::windows).enumerate();
        let over = match &self.work {
            Work::Loops(kernel) => over::pairs(kernel, arguments),
            Work::Library(library) => library_writes_over(library, arguments),
        };
        PreparedKey {
            sizes: sizes.to_vec(),
            shared: match &self.work {
                Work::Loops(kernel) => shared_buffers(kernel, arguments),
                Work::Library(library) => {
                    u64::from(library_shares(library, arguments, !over.is_empty()))
                }
            },
            over,
            divided: windows.filter(|(_, w)| *w != Windows::ONE).collect(),
        }
    }

    /// Whether a launch like this one has been prepared, by the plan that is best as far as is known now.
    pub fn is_prepared(
        &self,
        gpu: &GpuDevice,
        sizes: &[i64],
        arguments: &[BufferRange<'_>],
    ) -> bool {
        self.find(gpu, &self.key(sizes, arguments)).is_some()
    }

    fn find(&self, gpu: &GpuDevice, key: &PreparedKey) -> Option<Arc<Prepared>> {
        let prepared = lock(&self.prepared).get(key).cloned()?;
        let decided = prepared.decided.as_ref();
        let is_current = decided.is_none_or(|decided| decided.is_current(&gpu.model().choices));
        is_current.then_some(prepared)
    }

    /// What the tuner has to know to time the plans of such a launch, if it has several.
    pub fn question(&self, sizes: &[i64], arguments: &[BufferRange<'_>]) -> Option<Question> {
        let Work::Library(library) = &self.work else {
            return None;
        };
        let is_whole = arguments
            .iter()
            .all(|range| range.windows() == Windows::ONE);
        is_whole.then(|| Question {
            library: Arc::clone(library),
            sizes: sizes.to_vec(),
            arguments: arguments.iter().map(BufferRange::size).collect(),
        })
    }

    /// What a launch dispatches; kernels are compiled now that no launch before has used.
    pub fn prepare(
        &self,
        gpu: &GpuDevice,
        sizes: &[i64],
        arguments: &[BufferRange<'_>],
    ) -> Result<Arc<Prepared>, Error> {
        let key = self.key(sizes, arguments);
        if let Some(prepared) = self.find(gpu, &key) {
            return Ok(prepared);
        }
        let prepared = match &self.work {
            Work::Loops(kernel) => self.prepare_loops(gpu, kernel, &key)?,
            Work::Library(library) => prepare_library(gpu, library, &key)?,
        };
        let effort = Effort::of(&self.unit, sizes);
        let prepared = Arc::new(Prepared {
            instructions: effort.instructions,
            most_bytes: match (&self.work, !key.over.is_empty()) {
                (Work::Loops(_), _) => f64::INFINITY,
                (Work::Library(_), false) => effort.bytes,
                // Updates are read and written, the data stay where they are.
                (Work::Library(_), true) => {
                    let others = arguments.iter().skip(1).rev().skip(1);
                    2.0 * others.map(|range| range.size() as f64).sum::<f64>()
                }
            },
            ..prepared
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
        key: &PreparedKey,
    ) -> Result<Prepared, Error> {
        let (kernel, arguments) = over::write_over(kernel, &key.over);
        let shared = (arguments.iter().enumerate().take(64))
            .fold(0, |all, (k, at)| all | (key.shared >> at.min(&63) & 1) << k);
        let bound =
            schedule::bind(&kernel, &key.sizes, &key.model(gpu)).map_err(|error| match error {
                schedule::BindError::TooLarge { reach } => Error::Limit {
                    what: "an index of a kernel",
                    needed: u64::try_from(reach.unsigned_abs()).unwrap_or(u64::MAX),
                    allowed: LARGEST_INDEX,
                },
                schedule::BindError::MissingSize { at } => Error::Range {
                    what: "launch",
                    reason: format!("size {at} is not given"),
                },
            })?;
        let mut places: Vec<Place> = arguments.into_iter().map(Place::Argument).collect();
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
            steps.push(PreparedStep::new(
                gpu,
                shader,
                places.clone(),
                (params.clone(), groups),
                |place| windows_of(gpu, key, &scratch, place),
            )?);
        }
        Ok(Prepared {
            steps,
            scratch,
            instructions: 0.0,
            most_bytes: f64::INFINITY,
            decided: None,
        })
    }
}

/// Whether indices of 32 bits reach all elements of a divided argument.
fn check_reach(binding: &Binding) -> Result<(), Error> {
    let Windows {
        count,
        size_log2,
        start,
    } = binding.windows;
    let before_last = (u64::from(count - 1) << size_log2).saturating_sub(start.into());
    let elements = before_last * 8 / u64::from(binding.element.bits());
    match elements <= LARGEST_INDEX {
        true => Ok(()),
        false => Err(Error::Limit {
            what: "an index of a kernel",
            needed: elements,
            allowed: LARGEST_INDEX,
        }),
    }
}

/// The windows of what a step finds at a place.
fn windows_of(gpu: &GpuDevice, key: &PreparedKey, scratch: &[u64], place: Place) -> Windows {
    match place {
        Place::Argument(at) => key.windows(at),
        Place::Scratch(at) => gpu.windows(scratch[at]),
        Place::Book(_) | Place::Faults => Windows::ONE,
    }
}

/// Buffers of a kernel that are read alone while another argument writes to the same memory object.
fn shared_buffers(kernel: &Kernel, ranges: &[BufferRange<'_>]) -> u64 {
    use cupola_ir::kernel::Access;
    let mut shared = 0;
    for (at, buffer) in kernel.buffers.iter().enumerate().take(64) {
        let written_too =
            kernel.buffers.iter().zip(ranges).any(|(other, range)| {
                other.access != Access::Read && range.same_buffer(&ranges[at])
            });
        if buffer.access == Access::Read && written_too {
            shared |= 1 << at;
        }
    }
    shared
}

/// A library unit's first operand and its result where they are one memory and the unit can write over it.
fn library_writes_over(library: &LibraryUnit, ranges: &[BufferRange<'_>]) -> Vec<(usize, usize)> {
    let over = |at: &usize| {
        let result = ranges.get(*at).zip(ranges.first());
        library.can_write_over() && result.is_some_and(|(result, data)| result.same_range(data))
    };
    let result = library.written().first().copied().filter(over);
    result.map(|at| (0, at)).into_iter().collect()
}

/// Whether a library unit reads and writes one memory object, apart from a first operand that it writes `over`.
fn library_shares(library: &LibraryUnit, ranges: &[BufferRange<'_>], over: bool) -> bool {
    let written = library.written();
    let read = ranges.iter().enumerate().skip(usize::from(over));
    read.filter(|(at, _)| !written.contains(at))
        .any(|(_, range)| {
            written.iter().any(|&other| {
                let other = ranges.get(other);
                other.is_some_and(|other| other.same_buffer(range))
            })
        })
}

fn prepare_library(
    gpu: &GpuDevice,
    library: &LibraryUnit,
    key: &PreparedKey,
) -> Result<Prepared, Error> {
    let model = key.model(gpu);
    let mut program = match !key.over.is_empty() {
        true => library.plan_over(&key.sizes)?,
        false => library.plan(&key.sizes, &model)?,
    };
    if key.shared != 0 {
        let calls = program.steps.iter_mut().map(|(call, _)| call);
        calls.for_each(|call| call.shader.bindings.iter_mut().for_each(Binding::share));
    }
    let decided = library.class(&key.sizes)?;
    Ok(Prepared {
        steps: library_steps(gpu, library, &key.sizes, &program, |place| {
            windows_of(gpu, key, &program.scratch, place)
        })?,
        scratch: program.scratch,
        instructions: 0.0,
        most_bytes: f64::INFINITY,
        decided: decided.map(|class| Decided::new(class, &model.choices)),
    })
}

/// The dispatches of a program of a unit, compiled.
pub(crate) fn library_steps(
    gpu: &GpuDevice,
    library: &LibraryUnit,
    sizes: &[i64],
    program: &LibraryProgram,
    windows: impl Fn(Place) -> Windows,
) -> Result<Vec<PreparedStep>, Error> {
    let epilogue = library
        .epilogue_kernel()
        .map_or(Vec::new(), |kernel| emit::epilogue_words(kernel, sizes));
    let steps = program.steps.iter().filter(|(call, _)| call.groups > 0);
    let step = |(call, places): &(LibraryCall, Vec<Place>)| {
        let launch = (call.params_with(&epilogue), call.groups);
        PreparedStep::new(gpu, call.shader.clone(), places.clone(), launch, &windows)
    };
    steps.map(step).collect()
}

//! Units prepared for sizes: what their launches dispatch.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};

use cupola_backend::{BufferRange, Executable, Launch};
use cupola_ir::kernel::Kernel;
use cupola_shaders::Shader;
use cupola_shaders::shader::LAUNCH;
use rustc_hash::FxHashMap;

use crate::device::pipeline::ParamSpace;
use crate::device::{GpuDevice, Pipeline, fold_groups, lock};
use crate::emit::{self, Variant};
use crate::error::Error;
use crate::library::unit::LibraryUnit;
use crate::library::{Place, kernel_source};
use crate::schedule;

/// A unit that launches can be made of.
pub(crate) struct WgpuExecutable {
    name: Arc<str>,
    work: Work,
    /// What launches with these sizes, and these buffers that are shared, run.
    prepared: Mutex<PreparedCache>,
}

/// By sizes, and the set of shared buffers.
type PreparedCache = FxHashMap<(Vec<i64>, u64), Arc<Prepared>>;

/// Sizes remembered for each executable; a loop over ever new sizes does not fill the memory.
const MOST_PREPARED: usize = 64;

/// What a unit computes.
pub(crate) enum Work {
    Loops(Box<Kernel>),
    Library(Box<LibraryUnit>),
}

/// Compiled dispatches of a unit for given sizes.
pub(crate) struct Prepared {
    pub steps: Vec<PreparedStep>,
    /// Bytes of each scratch buffer.
    pub scratch: Vec<u64>,
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
        shader: &Shader,
        mut places: Vec<Place>,
        params: Vec<u32>,
        groups: u64,
    ) -> Result<Self, Error> {
        let launch = shader.fault_word().and_then(|at| {
            places.resize(shader.bindings.len(), Place::Faults);
            places[at] = Place::Faults;
            shader.word_at(LAUNCH)
        });
        Ok(Self {
            pipeline: gpu.pipeline(&kernel_source(shader, gpu.features()))?,
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
    pub fn new(name: &str, work: Work) -> Self {
        Self {
            name: name.into(),
            work,
            prepared: Mutex::default(),
        }
    }

    /// Name of the unit.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What its launches with these sizes and buffers are prepared under.
    fn key(&self, launch: &Launch) -> (Vec<i64>, u64) {
        let ranges: Vec<&BufferRange> = launch.buffers.iter().collect();
        let shared = match &self.work {
            Work::Loops(kernel) => shared_buffers(kernel, &ranges),
            Work::Library(library) => u64::from(library_shares(library, &ranges)),
        };
        (launch.sizes.clone(), shared)
    }

    /// Whether a launch like this one has been prepared.
    pub fn is_prepared(&self, launch: &Launch) -> bool {
        lock(&self.prepared).contains_key(&self.key(launch))
    }

    /// What a launch dispatches; kernels are compiled now that no launch before has used.
    pub fn prepare(&self, gpu: &GpuDevice, launch: &Launch) -> Result<Arc<Prepared>, Error> {
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
            steps.push(PreparedStep::new(
                gpu,
                &shader,
                places.clone(),
                params.clone(),
                groups,
            )?);
        }
        Ok(Prepared { steps, scratch })
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
        .map_or(Vec::new(), |kernel| emit::epilogue_words(kernel, sizes));
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
        let params = call.params_with(&epilogue);
        steps.push(PreparedStep::new(
            gpu,
            &call.shader,
            places,
            params,
            call.groups,
        )?);
    }
    Ok(Prepared {
        steps,
        scratch: program.scratch,
    })
}

//! One opened adapter: memory, compiled kernels, submissions.
//!
//! [`GpuDevice`] is shared by threads freely. Its parts: [`buffer`] holds memory and moves bytes between host and device,
//! [`pipeline`] compiles WGSL and remembers what it compiled, [`submit`] turns a list of commands into one submission.
//! [`open`] opens the device with those [`optional`] features that pass the [`selftest`].
//!
//! Rules: a driver's error is a value of [`Error`]; a lost device makes every later call return [`Error::Lost`]. wgpu's
//! error scopes are kept per thread, so calls of different threads do not see each other's errors.
//!
//! This is the one module of the crate with `unsafe` code: kernels without wgpu's run-time checks, and the
//! experimental matrix feature, are both opted into here.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cupola_backend::Keeper;

use crate::adapter::{AdapterFacts, AdapterLimits, CoopShape, Timestamps};
use crate::choice::{DeviceModel, Origin, Rates};
use crate::error::Error;
use crate::tune::TuneOptions;

pub mod buffer;
mod inject;
mod open;
mod optional;
mod parts;
pub mod pipeline;
mod reuse;
mod selftest;
pub mod submit;

pub use buffer::{BufferRange, GpuBuffer, MemoryUse};
pub use inject::{Injected, Mishap};
pub use open::{Attempt, Cut, Prober, try_out};
pub(crate) use optional::identity;
pub use optional::{Findings, Optional};
pub use parts::MemoryLimits;
pub use pipeline::{Access, Bindings, KernelSource, ParamSpace, Pipeline};
pub use submit::{Command, Dispatch, Submission, fold_groups};

/// Storage bindings and plan offsets are multiples of this many bytes: WebGPU's default, and the most any driver asks.
pub const STORAGE_ALIGNMENT: u64 = 256;

/// How much of an adapter to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Tier {
    /// WebGPU's default limits and no optional feature: what a browser or the weakest driver gives.
    Base,
    /// All limits and all stable features that the adapter offers.
    Full,
    /// As `Full`, and the experimental cooperative matrices. wgpu does not promise that kernels using them are free of
    /// undefined behaviour; shapes that do not pass the self-test are not used, and without any the device is `Full`.
    #[default]
    Experimental,
}

/// The environment variable that names a [`Tier`].
const TIER_VARIABLE: &str = "CUPOLA_GPU_TIER";

impl Tier {
    /// Every tier, the least first.
    pub const ALL: [Self; 3] = [Self::Base, Self::Full, Self::Experimental];

    /// Lower-case name, as in `CUPOLA_GPU_TIER`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Full => "full",
            Self::Experimental => "experimental",
        }
    }

    /// The tier that `CUPOLA_GPU_TIER` names; the default where it is unset or empty.
    ///
    /// # Errors
    /// [`Error::Setting`] for any other value.
    pub fn from_environment() -> Result<Self, Error> {
        setting(TIER_VARIABLE, &Self::ALL, Self::name)
    }
}

/// Which forms of kernels a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forms {
    /// Those that the cost model expects to be the fastest.
    #[default]
    Chosen,
    /// The same as if threads cost what they do on a GPU: what a software adapter runs to test the kernels of GPUs.
    Parallel,
    /// A thread for each result and scalar loads throughout; workgroup memory only where an op cannot do without. What the
    /// others are measured against.
    Plain,
}

/// The environment variable that names [`Forms`].
const FORMS_VARIABLE: &str = "CUPOLA_GPU_FORMS";

impl Forms {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chosen, Self::Parallel, Self::Plain];

    /// Lower-case name, as in `CUPOLA_GPU_FORMS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Parallel => "parallel",
            Self::Plain => "plain",
        }
    }

    /// The forms that `CUPOLA_GPU_FORMS` names; the default where it is unset or empty.
    ///
    /// # Errors
    /// [`Error::Setting`] for any other value.
    pub fn from_environment() -> Result<Self, Error> {
        setting(FORMS_VARIABLE, &Self::ALL, Self::name)
    }
}

/// What of `all` the environment variable names; the default where it is unset or empty.
fn setting<T: Copy + Default>(
    variable: &'static str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, Error> {
    match std::env::var_os(variable).filter(|value| !value.is_empty()) {
        None => Ok(T::default()),
        Some(value) => named(variable, &value.to_string_lossy(), all, name),
    }
}

fn named<T: Copy>(
    variable: &'static str,
    value: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, Error> {
    let found = all.iter().copied().find(|&one| name(one) == value);
    found.ok_or_else(|| Error::Setting {
        variable,
        value: value.to_owned(),
        allowed: all
            .iter()
            .map(|&one| name(one))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// wgpu's run-time checks in kernels (index clamping, loop counters).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShaderChecks {
    /// Every check, as for kernels of unknown origin.
    Full,
    /// No check in kernels marked [`pipeline::Trust::Generated`], whose indices and loops are bounded by construction.
    Trusted,
}

impl Default for ShaderChecks {
    fn default() -> Self {
        if cfg!(debug_assertions) {
            Self::Full
        } else {
            Self::Trusted
        }
    }
}

/// How to open a device.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Limits and features to ask for.
    pub tier: Tier,
    /// Which forms of kernels to run.
    pub forms: Forms,
    /// Run-time checks in kernels.
    pub checks: ShaderChecks,
    /// Most bytes of buffers alive at once; without one the driver decides.
    pub memory_budget: Option<u64>,
    /// Where features that can end the process are tried first. Without one they are tried in this process, and on software
    /// adapters not at all.
    pub prober: Option<Arc<dyn Prober>>,
    /// Where findings and compiled kernels are kept for later processes.
    pub keeper: Option<Arc<dyn Keeper>>,
    /// Whether and when kernels are timed to choose among them.
    pub tune: TuneOptions,
    /// A failure to order.
    pub inject: Option<Injected>,
    /// Divides memory as a device with these limits would, to test that; they are below the device's own.
    pub memory_limits: Option<MemoryLimits>,
    /// Kernels are translated for every graphics interface before they are compiled for this one, and refused where one
    /// would not take them.
    pub translate: bool,
}

/// Features an opened device has, after fallbacks.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFeatures {
    /// 16-bit float arithmetic and storage in kernels.
    pub f16: bool,
    /// Smallest and largest subgroup size, where subgroup operations exist.
    pub subgroups: Option<(u32, u32)>,
    /// 64-bit integers in kernels.
    pub int64: bool,
    /// Shapes of the matrix units that WGSL can use.
    pub cooperative: Vec<CoopShape>,
    /// Device-side time measurement.
    pub timestamps: Timestamps,
    /// Bytes of parameters that fit inside a command; 0 where they go through a uniform buffer.
    pub immediate_size: u32,
}

/// An opened adapter. Cheap to share behind an [`Arc`]; all methods take `&self`.
#[derive(Debug)]
pub struct GpuDevice {
    device: wgpu::Device,
    queue: wgpu::Queue,
    facts: AdapterFacts,
    model: Mutex<Arc<DeviceModel>>,
    limits: AdapterLimits,
    features: DeviceFeatures,
    tier: Tier,
    findings: Findings,
    checks: ShaderChecks,
    translate: bool,
    keeper: Option<Arc<dyn Keeper>>,
    books: buffer::Books,
    health: Arc<Health>,
    memory: Arc<buffer::MemoryAccount>,
    pipelines: pipeline::PipelineCache,
    params: submit::ParamPool,
    bound: Arc<reuse::BindCache>,
    staging: reuse::StagingPool,
    uploads: Mutex<buffer::Uploads>,
    injector: inject::Injector,
}

/// What callbacks of the driver reported; they run on any thread.
#[derive(Debug, Default)]
struct Health {
    lost: Mutex<Option<String>>,
    stray: Mutex<Option<String>>,
}

/// A lock whose holder panicked still holds plain data here, so its content stays usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for GpuDevice {
    fn drop(&mut self) {
        if !self.is_lost() {
            self.pipelines.keep();
        }
    }
}

impl GpuDevice {
    /// The adapter it was opened from.
    pub fn facts(&self) -> &AdapterFacts {
        &self.facts
    }

    /// Limits of this device: the adapter's, or WebGPU's defaults in [`Tier::Base`].
    pub fn limits(&self) -> &AdapterLimits {
        &self.limits
    }

    /// Optional features this device has.
    pub fn features(&self) -> &DeviceFeatures {
        &self.features
    }

    /// The tier in use, after fallbacks.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Which optional features the self-test passed, and which are not used for what reason.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// What kernels are chosen by.
    pub fn model(&self) -> Arc<DeviceModel> {
        Arc::clone(&lock(&self.model))
    }

    /// Takes measured rates in place of the typical ones. What is already prepared stays as it is.
    pub fn learn(&self, rates: Rates) {
        let mut model = lock(&self.model);
        let model = Arc::make_mut(&mut model);
        model.rates = rates;
        model.origin = Origin::Measured;
    }

    /// Takes plans by class of problem that were timed; launches from now on use them.
    pub fn decide<'a>(&self, plans: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut model = lock(&self.model);
        let choices = Arc::make_mut(&mut Arc::make_mut(&mut model).choices);
        for (class, plan) in plans {
            choices.set(class, plan);
        }
    }

    /// Where what was found out is kept for later processes.
    pub(crate) fn keeper(&self) -> Option<&Arc<dyn Keeper>> {
        self.keeper.as_ref()
    }

    /// Frees what is kept only to be used again.
    pub fn trim(&self) {
        self.staging.clear();
        self.pipelines.keep();
    }

    /// Ends the device as a driver would.
    fn lose(&self, reason: &str) {
        lock(&self.health.lost).get_or_insert_with(|| reason.to_owned());
        self.device.destroy();
    }

    /// Whether nothing on the device can be used any more.
    pub fn is_lost(&self) -> bool {
        lock(&self.health.lost).is_some()
    }

    /// Ok while the device answers.
    ///
    /// # Errors
    /// [`Error::Lost`] once it is lost; [`Error::Refused`], once, for an error that the driver reported outside any call.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(reason) = lock(&self.health.lost).clone() {
            return Err(Error::Lost { reason });
        }
        match lock(&self.health.stray).take() {
            Some(message) => Err(Error::Refused {
                what: "earlier work",
                message,
            }),
            None => Ok(()),
        }
    }

    /// Runs `body` and returns the first error that wgpu raised in it on this thread.
    fn scoped<T>(&self, what: &'static str, body: impl FnOnce() -> T) -> Result<T, Error> {
        self.check()?;
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = body();
        let raised = [validation, memory, internal].map(|scope| pollster::block_on(scope.pop()));
        match raised.into_iter().flatten().next() {
            None => {
                // A failed pipeline can lose the device without any error in a scope.
                self.check()?;
                Ok(value)
            }
            Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory {
                requested: 0,
                live: self.memory.snapshot().live,
                budget: None,
            }),
            Some(
                wgpu::Error::Validation { description, .. }
                | wgpu::Error::Internal { description, .. },
            ) => {
                self.check()?;
                Err(Error::Refused {
                    what,
                    message: one_line(&description),
                })
            }
        }
    }

    /// Blocks until `index` has run. wgpu panics when a device is lost while it is polled.
    fn poll_until(&self, index: wgpu::SubmissionIndex) -> Result<(), Error> {
        self.check()?;
        let poll = wgpu::PollType::Wait {
            submission_index: Some(index),
            timeout: None,
        };
        match catch_unwind(AssertUnwindSafe(|| self.device.poll(poll))) {
            Ok(Ok(_)) => self.check(),
            Ok(Err(error)) => {
                self.check()?;
                Err(Error::Refused {
                    what: "waiting for the device",
                    message: error.to_string(),
                })
            }
            Err(_) => {
                let reason = "the driver failed while work was awaited".to_owned();
                lock(&self.health.lost).get_or_insert_with(|| reason.clone());
                Err(Error::Lost { reason })
            }
        }
    }
}

/// wgpu's messages are trees over many lines; errors here are one line.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_known_by_name() {
        let tier = |name| named(TIER_VARIABLE, name, &Tier::ALL, Tier::name);
        for known in Tier::ALL {
            assert_eq!(tier(known.name()), Ok(known));
        }
        for known in Forms::ALL {
            let found = named(FORMS_VARIABLE, known.name(), &Forms::ALL, Forms::name);
            assert_eq!(found, Ok(known));
        }
        let Err(error) = tier("Base") else {
            panic!("names are lower-case")
        };
        assert_eq!(
            error.to_string(),
            "CUPOLA_GPU_TIER is 'Base', which is none of base, full, experimental"
        );
    }
}

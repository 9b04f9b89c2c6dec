//! One opened adapter: memory, compiled kernels, submissions.
//!
//! [`GpuDevice`] is shared by threads freely. Its parts: [`buffer`] holds memory and moves bytes between host and device,
//! [`pipeline`] compiles WGSL and remembers what it compiled, [`submit`] turns a list of commands into one submission.
//!
//! Rules: a driver's error is a value of [`Error`]; a lost device makes every later call return [`Error::Lost`]. wgpu's
//! error scopes are kept per thread, so calls of different threads do not see each other's errors.
//!
//! This is the one module of the crate with `unsafe` code: kernels without wgpu's run-time checks, and the
//! experimental matrix feature, are both opted into here.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::adapter::{Adapter, AdapterFacts, AdapterKind, AdapterLimits, CoopShape, Timestamps};
use crate::choice::{DeviceModel, Rates};
use crate::error::Error;

pub mod buffer;
pub mod pipeline;
pub mod submit;

pub use buffer::{BufferRange, GpuBuffer, MemoryUse};
pub use pipeline::{Access, Bindings, KernelSource, ParamSpace, Pipeline};
pub use submit::{Command, Dispatch, Submission, fold_groups};

/// Storage bindings and plan offsets are multiples of this many bytes: WebGPU's default, and the most any driver asks.
pub const STORAGE_ALIGNMENT: u64 = 256;

/// How much of an adapter to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tier {
    /// WebGPU's default limits and no optional feature: what a browser or the weakest driver gives.
    Base,
    /// All limits and all stable features that the adapter offers.
    #[default]
    Full,
    /// As `Full`, and the experimental cooperative matrices. wgpu does not promise that kernels using them are free of
    /// undefined behaviour; if the driver refuses or fails, the device is opened as `Full`.
    Experimental,
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
    /// Run-time checks in kernels.
    pub checks: ShaderChecks,
    /// Most bytes of buffers alive at once; without one the driver decides.
    pub memory_budget: Option<u64>,
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
    checks: ShaderChecks,
    health: Arc<Health>,
    memory: Arc<buffer::MemoryAccount>,
    pipelines: pipeline::PipelineCache,
    params: submit::ParamPool,
}

/// What callbacks of the driver reported; they run on any thread.
#[derive(Debug, Default)]
struct Health {
    lost: Mutex<Option<String>>,
    stray: Mutex<Option<String>>,
}

/// A lock whose holder panicked still holds plain data here, so its content stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GpuDevice {
    /// Opens `adapter`. Optional features that it lacks are left out without an error; see [`Self::features`].
    ///
    /// # Errors
    /// [`Error::Unusable`] if the adapter is below the base tier, [`Error::Open`] if the driver gives no device.
    pub fn open(adapter: &Adapter, options: &DeviceOptions) -> Result<Self, Error> {
        let facts = adapter.facts().clone();
        if let Some(reason) = &facts.refusal {
            return Err(Error::Unusable {
                adapter: facts.name,
                reason: reason.clone(),
            });
        }
        let offered = adapter.handle.features();
        let stable = (wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::IMMEDIATES)
            & offered;
        let matrix = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let (tier, mut wanted) = match options.tier {
            Tier::Base => (Tier::Base, wgpu::Features::empty()),
            Tier::Experimental if offered.contains(matrix) && !matrix_denied(&facts) => {
                (Tier::Experimental, stable | matrix)
            }
            Tier::Full | Tier::Experimental => (Tier::Full, stable),
        };
        let limits = match tier {
            Tier::Base => wgpu::Limits::default(),
            Tier::Full | Tier::Experimental => adapter.handle.limits(),
        };
        let opened = request(&adapter.handle, wanted, &limits).or_else(|reason| {
            if tier != Tier::Experimental {
                return Err(reason);
            }
            tracing::warn!(
                adapter = facts.name,
                reason,
                "cooperative matrices are not used"
            );
            wanted = stable;
            request(&adapter.handle, wanted, &limits)
        });
        let (device, queue) = opened.map_err(|reason| Error::Open {
            adapter: facts.name.clone(),
            reason,
        })?;
        let health = watch(&device);
        let has = |feature| wanted.contains(feature);
        let features = DeviceFeatures {
            f16: has(wgpu::Features::SHADER_F16),
            subgroups: facts
                .features
                .subgroups
                .filter(|_| has(wgpu::Features::SUBGROUP)),
            int64: has(wgpu::Features::SHADER_INT64),
            cooperative: if has(matrix) {
                facts
                    .features
                    .cooperative
                    .iter()
                    .copied()
                    .filter(|shape| shape.in_wgsl())
                    .collect()
            } else {
                Vec::new()
            },
            timestamps: if has(wgpu::Features::TIMESTAMP_QUERY) {
                Timestamps::PassBoundary
            } else {
                Timestamps::Absent
            },
            immediate_size: if has(wgpu::Features::IMMEDIATES) {
                limits.max_immediate_size
            } else {
                0
            },
        };
        let limits = AdapterLimits::of(&limits);
        let model = DeviceModel {
            features: features.clone(),
            limits: limits.clone(),
            rates: Rates::typical(facts.kind, facts.vendor),
        };
        Ok(Self {
            limits,
            model: Mutex::new(Arc::new(model)),
            pipelines: pipeline::PipelineCache::default(),
            params: submit::ParamPool::new(&device),
            memory: Arc::new(buffer::MemoryAccount::new(options.memory_budget)),
            checks: options.checks,
            device,
            queue,
            facts,
            features,
            health,
        })
    }

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

    /// What kernels are chosen by.
    pub fn model(&self) -> Arc<DeviceModel> {
        Arc::clone(&lock(&self.model))
    }

    /// Takes measured rates in place of the typical ones. What is already prepared stays as it is.
    pub fn learn(&self, rates: Rates) {
        let mut model = lock(&self.model);
        *model = Arc::new(DeviceModel {
            rates,
            ..DeviceModel::clone(&model)
        });
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

/// Lavapipe offers matrices at every vector width, but fails to create the device at 128 bits and crashes at 512.
fn matrix_denied(facts: &AdapterFacts) -> bool {
    facts.kind == AdapterKind::Software && facts.features.subgroups != Some((8, 8))
}

/// A device, or the driver's words. wgpu panics instead when a driver offers a feature that it then refuses.
fn request(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Result<(wgpu::Device, wgpu::Queue), String> {
    let experimental_features = if features.intersects(wgpu::Features::all_experimental_mask()) {
        // SAFETY: the caller of `GpuDevice::open` chose `Tier::Experimental`, whose documentation passes wgpu's warning
        // on; kernels that use the feature come only from this crate's own templates.
        unsafe { wgpu::ExperimentalFeatures::enabled() }
    } else {
        wgpu::ExperimentalFeatures::disabled()
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("cupola"),
        required_features: features,
        required_limits: limits.clone(),
        experimental_features,
        memory_hints: wgpu::MemoryHints::Performance,
        trace: wgpu::Trace::Off,
    };
    catch_unwind(AssertUnwindSafe(|| {
        pollster::block_on(adapter.request_device(&descriptor))
    }))
    .map_err(|_| "the driver failed while the device was created".to_owned())?
    .map_err(|error| one_line(&error.to_string()))
}

/// Installs the callbacks that note loss and stray errors.
fn watch(device: &wgpu::Device) -> Arc<Health> {
    let health = Arc::new(Health::default());
    let lost = Arc::clone(&health);
    device.set_device_lost_callback(move |reason, message| {
        let words = if message.is_empty() {
            format!("{reason:?}")
        } else {
            one_line(&message)
        };
        // Dropping the device reports a loss too; nobody is left to read that one.
        tracing::debug!(reason = words, "GPU device lost");
        lock(&lost.lost).get_or_insert(words);
    });
    let stray = Arc::clone(&health);
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let message = one_line(&error.to_string());
        tracing::error!(message, "GPU error outside any call");
        lock(&stray.stray).get_or_insert(message);
    }));
    health
}

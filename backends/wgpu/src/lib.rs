//! The GPU backend: WGSL kernels run through wgpu on Vulkan, Metal or Direct3D 12.
//!
//! Reading order: [`adapter`] says what is installed, [`device`] opens one adapter and owns buffers, pipelines and
//! submissions, [`choice`] is what kernels are chosen by, [`emit`] writes WGSL for generated kernels and [`schedule`] chooses
//! how, [`library`] turns the shader templates of `cupola-shaders` into dispatches, [`WgpuBackend`] ties them to the traits of `cupola-backend`: `executable`
//! prepares units for sizes, `effort` says how much they compute, `queue` runs their launches, [`tune`] times the kernels that a
//! problem may be computed by, [`forecast()`] says what a device would do that is not there.
//!
//! Rules: nothing here is global, so two devices (or the same adapter opened twice) never see each other. Every error of
//! the driver comes back as a value of [`Error`]; no handler of this crate panics. Kernels run on the default limits of
//! WebGPU with no optional feature; whatever else an adapter offers is an option with a fallback.

pub mod adapter;
mod backend;
mod canonical;
pub mod choice;
pub mod device;
mod effort;
pub mod emit;
mod error;
mod executable;
mod forecast;
mod known;
pub mod library;
mod over;
pub mod peaks;
mod queue;
pub mod schedule;
pub mod tune;

pub use adapter::{Adapter, AdapterFacts, AdapterList};
pub use backend::{WgpuBackend, target};
pub use choice::{DeviceModel, Rates, Threading};
pub use device::{Attempt, Cut, DeviceOptions, Forms, GpuBuffer, GpuDevice, Prober, Tier, try_out};
pub use error::Error;
pub use forecast::{Dispatch, Forecast, forecast};
pub use known::{KNOWN, known};
pub use queue::WgpuDevice;
pub use tune::{TuneObserver, TuneOptions, Tuning};

//! Cupola's runtime: compile once, run many.
//!
//! A [`Program`] is a graph compiled for a device: immutable, shared. A [`Session`] runs it for one caller with a
//! [`State`] of its own (state slots, random counters, working memory); [`Weights`] may be shared. There is no global
//! state: devices live in a [`Host`]. Inputs and outputs may stay in a device's memory ([`DeviceTensor`], [`Place`]), and
//! [`Session::submit`] returns before the run has ended.
//!
//! Reading order: `devices`, `program`, `load`, `state`, `value`, `exec`, `queue`, `frame`, `control`, `session`, `replicas`; then `store`, `cache` and `keeping`
//! (code and packed weights on disk), `record`, `auto`, `forecast` and `fault`.

mod auto;
mod cache;
mod control;
mod devices;
mod error;
mod exec;
mod fault;
mod forecast;
mod frame;
mod keeping;
mod load;
mod pool;
mod program;
mod queue;
mod record;
mod replicas;
mod session;
mod state;
pub mod store;
mod value;

pub use cache::{Cache, USUAL_LIMIT};
pub use cupola_backend::{BackendError, Key, Rates};
pub use cupola_ir::eval::Stop;
pub use cupola_wgpu::{Dispatch, Forecast};
pub use devices::{
    Attempt, Cut, DeviceInfo, DeviceSpec, Host, HostOptions, Injected, MemoryLimits, Mishap,
    Prober, Table, TuneObserver, TuneOptions, TunedDevice, Tuning, Winner, physical_cores,
    processor, try_gpu,
};
pub use error::{Result, RuntimeError};
pub use fault::Fault;
pub use forecast::KnownGpu;
pub use keeping::{Identify, Keep};
pub use load::{Release, weight_size};
pub use program::{CompileOptions, Program};
pub use record::{Event, Recording, Travel};
pub use replicas::{Group, Idle, Link, Replica, Turn};
pub use session::{Cancel, Outputs, Pending, Request, Session};
pub use state::{RunLimits, RunStats, State, Weights};
pub use value::{DeviceTensor, Place, RunValue};

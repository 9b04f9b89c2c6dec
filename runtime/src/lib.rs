//! Cupola's runtime: compile once, run many.
//!
//! A [`Program`] is a graph compiled for a device: immutable, shared. A [`Session`] runs it for one caller with a
//! [`State`] of its own (state slots, random counters, working memory). There is no global state: devices live in a
//! [`Host`]. Reading order: `devices`, `program`, `load`, `exec`, `control`, `session`.

mod control;
mod devices;
mod error;
mod exec;
mod load;
mod pool;
mod program;
mod session;

pub use cupola_backend::BackendError;
pub use devices::{DeviceInfo, DeviceSpec, Host, list_devices};
pub use error::{Result, RuntimeError};
pub use program::{CompileOptions, Program, RunStats, State};
pub use session::{Cancel, Session};

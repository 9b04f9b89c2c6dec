//! The error type of the crate.

use cupola_backend::BackendError;
use cupola_ir::IrError;
use cupola_passes::PassError;
use thiserror::Error;

/// What can go wrong while compiling or running a program.
#[derive(Clone, Debug, Error)]
pub enum RuntimeError {
    /// An input is missing, unknown, or of another type than the program takes. *User input.*
    #[error("input '{name}': {what}")]
    Input {
        /// Input name.
        name: String,
        /// What is wrong and what is taken.
        what: String,
    },
    /// Compiling failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A graph is invalid, or a value was outside what an op allows.
    #[error(transparent)]
    Ir(IrError),
    /// A device failed, refused memory, or found a fault in a launch.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The device that was asked for does not exist. *User input.*
    #[error("no device '{device}': {what}")]
    NoDevice {
        /// Device as asked for.
        device: String,
        /// What there is.
        what: String,
    },
    /// An environment variable holds something it cannot mean. *User input.*
    #[error("{0}")]
    Setting(String),
    /// A tuning table is damaged, of another version, or cannot be read or written. *User input.*
    #[error("{0}")]
    Table(String),
    /// Ops would run on another device than the one asked for, and that was forbidden. *Unsupported.*
    #[error("not on {device}: {}", ops.join(", "))]
    Fallback {
        /// Device asked for.
        device: String,
        /// Source ops that would run elsewhere.
        ops: Vec<String>,
    },
    /// More memory than the stated budget, known before running. *Limit.*
    #[error("needs {need} bytes, the budget is {budget}")]
    Memory {
        /// Bytes needed.
        need: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The caller cancelled the run. State is that of the last complete run.
    #[error("cancelled")]
    Cancelled,
    /// Another replica failed, which ended the run of all.
    #[error("replica {number} failed: {what}")]
    Replica {
        /// Its number.
        number: usize,
        /// What it found.
        what: String,
    },
    /// Replicas gave what does not fit together, or another process could not be reached.
    #[error("the replicas cannot go on: {0}")]
    Exchange(String),
    /// The thread that ran a submitted request ended. *Our own bug or a panic in a custom op.*
    #[error("the run was lost: its thread ended")]
    Lost,
}

impl RuntimeError {
    pub(crate) fn input(name: impl Into<String>, what: impl Into<String>) -> RuntimeError {
        RuntimeError::Input {
            name: name.into(),
            what: what.into(),
        }
    }
}

impl From<IrError> for RuntimeError {
    fn from(e: IrError) -> RuntimeError {
        match e {
            IrError::Cancelled => RuntimeError::Cancelled,
            e => RuntimeError::Ir(e),
        }
    }
}

/// Result with [`RuntimeError`].
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

//! One error for users, with a class that says whose fault it is.

use cupola_ir::IrError;
use cupola_llm::LlmError;
use cupola_onnx::ImportError;
use cupola_passes::PassError;
use cupola_runtime::RuntimeError;
use cupola_source::{Fault, SourceError};
use thiserror::Error;

/// Whose fault an error is; the command line's exit status follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Failed while running: a value outside what an op allows, a refused allocation, a lost device.
    Run,
    /// Called wrongly: an unknown input, a device that does not exist.
    Usage,
    /// The file is malformed or invalid.
    Malformed,
    /// Well formed, but needs something not implemented.
    Unsupported,
    /// Over a stated limit, or known beforehand not to fit.
    Limit,
}

impl Class {
    /// Exit status of the command line.
    pub fn exit_status(self) -> u8 {
        match self {
            Class::Run => 1,
            Class::Usage => 2,
            Class::Malformed => 3,
            Class::Unsupported => 4,
            Class::Limit => 5,
        }
    }

    /// Short word for `error[..]`.
    pub fn code(self) -> &'static str {
        match self {
            Class::Run => "run",
            Class::Usage => "usage",
            Class::Malformed => "malformed",
            Class::Unsupported => "unsupported",
            Class::Limit => "limit",
        }
    }
}

impl From<Fault> for Class {
    fn from(fault: Fault) -> Class {
        match fault {
            Fault::Malformed => Class::Malformed,
            Fault::Unsupported => Class::Unsupported,
            Fault::Limit => Class::Limit,
        }
    }
}

/// Anything that can go wrong.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be opened or mapped.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An ONNX file could not be read.
    #[error(transparent)]
    OnnxRead(#[from] cupola_onnx::ReadError),
    /// An ONNX file could not be turned into a graph.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A GGUF file could not be read.
    #[error(transparent)]
    Gguf(#[from] cupola_gguf::GgufError),
    /// A safetensors file could not be read.
    #[error(transparent)]
    SafeTensors(#[from] cupola_safetensors::SafeTensorsError),
    /// A graph could not be written as an ONNX file.
    #[error(transparent)]
    Export(#[from] cupola_onnx::ExportError),
    /// A `.cupola` file could not be read.
    #[error(transparent)]
    Native(#[from] cupola_native::NativeError),
    /// A graph is invalid.
    #[error(transparent)]
    Graph(#[from] IrError),
    /// A language model's files were refused.
    #[error(transparent)]
    Language(#[from] cupola_language::LanguageError),
    /// A tokenizer or chat template was refused.
    #[error(transparent)]
    Text(#[from] cupola_text::TextError),
    /// Text could not be generated.
    #[error(transparent)]
    Generate(LlmError),
    /// Compiling or running failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A model, loss or optimiser of a training run does not fit.
    #[error(transparent)]
    Train(#[from] cupola_train::TrainError),
    /// Data to train on cannot be used.
    #[error(transparent)]
    Data(#[from] cupola_train::data::DataError),
    /// The configuration of a training run is wrong.
    #[error("{0}")]
    Config(String),
    /// A checkpoint was refused.
    #[error("{0}")]
    Checkpoint(String),
    /// Something that was named is not there.
    #[error("{0}")]
    Missing(String),
    /// A file cannot be written.
    #[error("cannot write {}: {}", .0.display(), .1)]
    Write(std::path::PathBuf, String),
    /// Replicas of a training run have come apart. *Our own bug, or memory that fails.*
    #[error("replicas have come apart: {0}")]
    Replicas(String),
    /// Training led to numbers that are none.
    #[error("{0}")]
    NotFinite(String),
    /// The file is of no known kind.
    #[error("{0}")]
    Format(String),
    /// A sound file of a kind that holds no graph to run.
    #[error("{0}")]
    NoGraph(String),
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<LlmError> for Error {
    fn from(e: LlmError) -> Error {
        match e {
            LlmError::Runtime(e) => Error::Runtime(e),
            e => Error::Generate(e),
        }
    }
}

impl Error {
    /// Whose fault it is.
    pub fn class(&self) -> Class {
        match self {
            Error::Source(e) => e.fault().into(),
            Error::OnnxRead(e) => e.fault().into(),
            Error::Gguf(e) => e.fault().into(),
            Error::Export(_) => Class::Unsupported,
            Error::Native(_) => Class::Malformed,
            Error::SafeTensors(e) => e.fault().into(),
            Error::Import(e) => e.fault().into(),
            Error::Language(e) => e.fault().into(),
            Error::Text(e) => e.fault().into(),
            Error::Generate(e) => llm_class(e),
            Error::Graph(e) => ir_class(e),
            Error::Train(e) => train_class(e),
            Error::Data(e) => match e {
                cupola_train::data::DataError::Io { .. } => Class::Usage,
                _ => Class::Malformed,
            },
            Error::Config(_) | Error::Checkpoint(_) => Class::Malformed,
            Error::Missing(_) => Class::Usage,
            Error::Write(..) | Error::NotFinite(_) | Error::Replicas(_) => Class::Run,
            Error::Format(_) => Class::Malformed,
            Error::NoGraph(_) => Class::Unsupported,
            Error::Runtime(e) => runtime_class(e),
        }
    }
}

fn llm_class(e: &LlmError) -> Class {
    match e {
        LlmError::Runtime(e) => runtime_class(e),
        LlmError::Request(_) => Class::Usage,
        LlmError::NoDecoder(..) => Class::Unsupported,
        LlmError::TooLong { .. } | LlmError::QueueFull(_) => Class::Limit,
        LlmError::Snapshot(_) => Class::Malformed,
        LlmError::NotFinite => Class::Run,
    }
}

fn runtime_class(e: &RuntimeError) -> Class {
    match e {
        RuntimeError::Input { .. } => Class::Run,
        RuntimeError::NoDevice { .. } | RuntimeError::Setting(_) => Class::Usage,
        RuntimeError::Table(_) => Class::Malformed,
        RuntimeError::Pass(e) => pass_class(e),
        RuntimeError::Ir(e) => match e {
            IrError::Op { .. } | IrError::Run { .. } | IrError::Limit(_) | IrError::Cancelled => {
                Class::Run
            }
            IrError::Parse { .. } | IrError::Invalid(_) | IrError::Unsupported(_) => ir_class(e),
        },
        RuntimeError::Backend(e) => match e {
            cupola_runtime::BackendError::Unsupported { .. } => Class::Unsupported,
            cupola_runtime::BackendError::OutOfMemory { .. }
            | cupola_runtime::BackendError::Fault { .. }
            | cupola_runtime::BackendError::Device { .. } => Class::Run,
        },
        RuntimeError::Fallback { .. } => Class::Unsupported,
        RuntimeError::Memory { .. } => Class::Limit,
        RuntimeError::Cancelled
        | RuntimeError::Lost
        | RuntimeError::Replica { .. }
        | RuntimeError::Exchange(_) => Class::Run,
    }
}

fn ir_class(e: &IrError) -> Class {
    match e {
        IrError::Op { .. } | IrError::Parse { .. } | IrError::Invalid(_) => Class::Malformed,
        IrError::Run { .. } | IrError::Cancelled => Class::Run,
        IrError::Limit(_) => Class::Limit,
        IrError::Unsupported(_) => Class::Unsupported,
    }
}

fn train_class(e: &cupola_train::TrainError) -> Class {
    use cupola_train::TrainError;
    match e {
        TrainError::Graph(e) => ir_class(e),
        TrainError::Pass(e) => pass_class(e),
        TrainError::Layer { .. } | TrainError::Options(_) => Class::Malformed,
    }
}

fn pass_class(e: &PassError) -> Class {
    match e {
        PassError::Graph { error, .. } => ir_class(error),
        PassError::Unsupported { .. } => Class::Unsupported,
        PassError::Limit(_) => Class::Limit,
        PassError::Options(_) => Class::Usage,
    }
}

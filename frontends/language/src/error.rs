//! [`LanguageError`]: everything that can be wrong with a language model's files.

use cupola_gguf::GgufError;
use cupola_ir::{DType, IrError};
use cupola_safetensors::SafeTensorsError;
use cupola_source::{Fault, SourceError, quote};

/// Why a language model was refused. `Display` is one line, `what, where`.
#[derive(Debug, thiserror::Error)]
pub enum LanguageError {
    /// User input: a file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A GGUF file was refused.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A safetensors file or folder was refused.
    #[error(transparent)]
    SafeTensors(#[from] SafeTensorsError),
    /// User input: neither a GGUF file nor a folder of safetensors.
    #[error("no language model: {0}")]
    NoModel(String),
    /// Unsupported: an architecture that nothing here builds.
    #[error("architecture {} is not supported; supported are {known}", quote(name))]
    Architecture {
        /// What the file names.
        name: String,
        /// What is built.
        known: String,
    },
    /// User input: a key that the architecture needs is not there.
    #[error("the key is missing, key {}", quote(.0))]
    MissingKey(String),
    /// User input: a key whose value no model can have.
    #[error("{what}, key {}", quote(key))]
    Key {
        /// The key.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// Unsupported: a key whose value asks for something that is not implemented.
    #[error("{what} is not supported, key {}", quote(key))]
    UnsupportedKey {
        /// The key.
        key: String,
        /// What it asks for.
        what: String,
    },
    /// User input: a tensor that the architecture needs is not there.
    #[error("the tensor is missing, tensor {}", quote(.0))]
    MissingTensor(String),
    /// User input: a tensor of other extents than the keys say.
    #[error(
        "extents {found:?} where {needed:?} are needed, tensor {}",
        quote(tensor)
    )]
    Extents {
        /// Name of the tensor.
        tensor: String,
        /// Its extents.
        found: Vec<usize>,
        /// Those it must have.
        needed: Vec<usize>,
    },
    /// Unsupported: weights of a type that nothing computes with.
    #[error("weights of type {dtype} are not supported, tensor {}", quote(tensor))]
    WeightType {
        /// Name of the tensor.
        tensor: String,
        /// Name of the type.
        dtype: &'static str,
    },
    /// Unsupported: a tensor that the architecture, as it is built here, has no place for.
    #[error(
        "the tensor has no place in architecture {}, tensor {}",
        quote(architecture),
        quote(tensor)
    )]
    UnusedTensor {
        /// Name of the tensor.
        tensor: String,
        /// The architecture.
        architecture: String,
    },
    /// Usage: an option that no cache can have.
    #[error("{0}")]
    Option(String),
    /// The graph could not be built.
    #[error(transparent)]
    Graph(#[from] IrError),
}

/// Result with [`LanguageError`].
pub type Result<T, E = LanguageError> = std::result::Result<T, E>;

impl LanguageError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            LanguageError::Source(e) => e.fault(),
            LanguageError::Gguf(e) => e.fault(),
            LanguageError::SafeTensors(e) => e.fault(),
            LanguageError::Architecture { .. }
            | LanguageError::UnsupportedKey { .. }
            | LanguageError::WeightType { .. }
            | LanguageError::UnusedTensor { .. } => Fault::Unsupported,
            LanguageError::Graph(IrError::Limit(_)) => Fault::Limit,
            LanguageError::NoModel(_)
            | LanguageError::MissingKey(_)
            | LanguageError::Key { .. }
            | LanguageError::MissingTensor(_)
            | LanguageError::Extents { .. }
            | LanguageError::Option(_)
            | LanguageError::Graph(_) => Fault::Malformed,
        }
    }

    pub(crate) fn key(key: &str, what: impl Into<String>) -> LanguageError {
        LanguageError::Key {
            key: key.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn unsupported(key: &str, what: impl Into<String>) -> LanguageError {
        LanguageError::UnsupportedKey {
            key: key.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn weight_type(tensor: &str, dtype: DType) -> LanguageError {
        LanguageError::WeightType {
            tensor: tensor.to_owned(),
            dtype: dtype.name(),
        }
    }
}

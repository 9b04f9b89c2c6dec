//! The error type of the crate.

use cupola_ir::IrError;
use cupola_passes::PassError;
use thiserror::Error;

/// What can go wrong while a model or a training step is put together.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TrainError {
    /// An op was given operands that it does not take. *User input.*
    #[error(transparent)]
    Graph(#[from] IrError),
    /// A pass over the graph failed. *User input or unsupported.*
    #[error(transparent)]
    Pass(#[from] PassError),
    /// A layer or loss was given what it does not take. *User input.*
    #[error("{layer}: {what}")]
    Layer {
        /// Name of the layer, or what it is.
        layer: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// Settings of an optimiser, a schedule or a step that do not fit. *User input.*
    #[error("{0}")]
    Options(String),
}

impl TrainError {
    /// A [`TrainError::Layer`].
    pub fn layer(layer: impl Into<String>, what: impl Into<String>) -> TrainError {
        TrainError::Layer {
            layer: layer.into(),
            what: what.into(),
        }
    }
}

/// Result with [`TrainError`].
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

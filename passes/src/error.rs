//! The error type of the crate.

use cupola_ir::IrError;
use thiserror::Error;

/// What can go wrong while compiling a graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PassError {
    /// The graph is invalid, before the first pass or after the named one. *User input, or a bug in the pass.*
    #[error("after '{pass}': {error}")]
    Graph {
        /// Name of the pass.
        pass: &'static str,
        /// What is wrong.
        error: IrError,
    },
    /// A node needs something that is not implemented. *Unsupported.*
    #[error("{node}: {what}")]
    Unsupported {
        /// Op and source node.
        node: String,
        /// What is missing.
        what: String,
    },
    /// More depth or work than a stated limit. *Limit.*
    #[error("over the limit: {0}")]
    Limit(String),
    /// Targets and options do not fit together. *User input.*
    #[error("{0}")]
    Options(String),
}

/// Result with [`PassError`].
pub type Result<T, E = PassError> = std::result::Result<T, E>;

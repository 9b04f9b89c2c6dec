//! The error type of the crate.

use thiserror::Error;

/// What can go wrong while building, checking, reading or interpreting a graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IrError {
    /// An op was given operands or attributes that its definition does not allow. *User input.*
    #[error("{op}: {what}")]
    Op {
        /// Text name of the op, with the source node's name where known.
        op: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A text or binary form that does not parse. *User input.*
    #[error("line {line}, column {column}: {what}\n  {text}")]
    Parse {
        /// 1-based line.
        line: usize,
        /// 1-based column.
        column: usize,
        /// What was expected.
        what: String,
        /// The offending line.
        text: String,
    },
    /// A graph that breaks an invariant; every finding on a line of its own. *User input or a bug in a pass.*
    #[error("invalid graph: {0}")]
    Invalid(String),
    /// A value computed at run time is outside what an op allows (an index, a size, a division). *User input.*
    #[error("{op}: {what}")]
    Run {
        /// Text name of the op, with the source node's name where known.
        op: String,
        /// What happened.
        what: String,
    },
    /// More memory, depth or work than a stated limit. *Limit.*
    #[error("over the limit: {0}")]
    Limit(String),
    /// The caller asked to stop. *Neither.*
    #[error("cancelled")]
    Cancelled,
    /// Well formed, but not implemented. *Unsupported.*
    #[error("not supported: {0}")]
    Unsupported(String),
}

impl IrError {
    /// An [`IrError::Op`].
    pub fn op(op: impl Into<String>, what: impl Into<String>) -> IrError {
        IrError::Op {
            op: op.into(),
            what: what.into(),
        }
    }

    /// An [`IrError::Run`].
    pub fn run(op: impl Into<String>, what: impl Into<String>) -> IrError {
        IrError::Run {
            op: op.into(),
            what: what.into(),
        }
    }
}

/// Result with [`IrError`].
pub type Result<T, E = IrError> = std::result::Result<T, E>;

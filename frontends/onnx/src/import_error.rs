//! [`ImportError`]: why a model that was read cannot become a graph, and [`OpError`], what an operator's importer says
//! before its place is known.

use std::fmt;

use cupola_ir::{IrError, ValueId};
use cupola_source::{Fault, quote};

use crate::error::{Place, ReadError};

/// At most this many bytes of a message come from types and attributes of the file.
const MAX_TEXT_SIZE: usize = 300;

/// Why a model cannot be imported. `Display` is one line of at most about 480 bytes.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// User input: an operator is used in a way that its definition does not allow.
    #[error("{what}, {place}")]
    Malformed {
        /// What is wrong, with the types involved.
        what: String,
        /// The node or value.
        place: Place,
    },
    /// User input: a tensor of the file that cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Unsupported: operators that are not implemented, all of the model.
    #[error("{}", list(.0))]
    Unsupported(Vec<UnsupportedOp>),
    /// Limit: more memory, depth or work than allowed.
    #[error("{what}, {place}")]
    Limit {
        /// The limit.
        what: String,
        /// The node or value.
        place: Place,
    },
    /// Unsupported without more facts: import again with [`crate::ImportOptions::known_inputs`] holding `values` and
    /// [`crate::ImportOptions::input_types`] holding `types`.
    #[error("the graph's structure depends on inputs: {}", needs(values, types))]
    NeedsInputs {
        /// Inputs whose values decide the structure.
        values: Vec<String>,
        /// Inputs of which the number of axes, or an extent, is not stated and is needed.
        types: Vec<String>,
    },
}

impl ImportError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            ImportError::Malformed { .. } => Fault::Malformed,
            ImportError::Read(e) => e.fault(),
            ImportError::Unsupported(_) | ImportError::NeedsInputs { .. } => Fault::Unsupported,
            ImportError::Limit { .. } => Fault::Limit,
        }
    }
}

/// An operator that is not implemented, at one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedOp {
    /// Domain of the operator; empty for the standard one.
    pub domain: String,
    /// Operator name.
    pub op: String,
    /// Version of the domain that the model imports.
    pub opset: i64,
    /// Name of the node, or of its first output.
    pub node: String,
    /// What is missing; empty when the operator is not known at all.
    pub reason: String,
}

/// `domain::Op (opset N): reason`.
impl fmt::Display for UnsupportedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}::", plain(&self.domain))?;
        }
        write!(f, "{} (opset {})", plain(&self.op), self.opset)?;
        match self.reason.as_str() {
            "" => Ok(()),
            reason => write!(f, ": {}", clip(reason)),
        }
    }
}

/// A name without quotes when it is a plain word, so that lists stay readable.
fn plain(name: &str) -> String {
    let word = name.len() <= 48
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
    if word { name.to_string() } else { quote(name) }
}

fn list(ops: &[UnsupportedOp]) -> String {
    let mut texts: Vec<String> = ops.iter().map(ToString::to_string).collect();
    texts.sort();
    texts.dedup();
    let all = texts.len();
    let mut out = String::new();
    for (i, text) in texts.iter().enumerate() {
        if i > 0 && out.len() + text.len() > 400 {
            return format!("{out}, and {} more", all - i);
        }
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(text);
    }
    out
}

fn needs(values: &[String], types: &[String]) -> String {
    let some = |names: &[String]| {
        let shown: Vec<String> = names.iter().take(3).map(|n| quote(n)).collect();
        let rest = names.len().saturating_sub(3);
        match rest {
            0 => shown.join(", "),
            _ => format!("{} and {rest} more", shown.join(", ")),
        }
    };
    match (values, types) {
        (_, []) => format!("the values of {}", some(values)),
        ([], _) => format!("the shapes of {}", some(types)),
        _ => format!(
            "the values of {}, the shapes of {}",
            some(values),
            some(types)
        ),
    }
}

/// `text` on one printable line, cut.
pub(crate) fn clip(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() > MAX_TEXT_SIZE {
            out.push_str("...");
            break;
        }
        match c {
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// What an operator's importer finds wrong, without the place.
#[derive(Debug)]
pub(crate) enum OpError {
    /// The operator does not allow this.
    Invalid(String),
    /// The operator allows it, and it is not implemented.
    Unsupported(String),
    /// A stated limit.
    Limit(String),
    /// The elements of this value decide the structure of the graph.
    NeedsValue(ValueId),
    /// The rank or the extents of this value decide the structure of the graph.
    NeedsShape(ValueId),
    /// A node inside a subgraph failed and is already in the list.
    Poisoned,
    /// An error that already has its place.
    Placed(Box<ImportError>),
}

/// Result of an operator's importer.
pub(crate) type OpResult<T = Vec<ValueId>> = Result<T, OpError>;

impl From<IrError> for OpError {
    fn from(e: IrError) -> OpError {
        match e {
            IrError::Op { what, .. } | IrError::Run { what, .. } => OpError::Invalid(what),
            IrError::Limit(what) => OpError::Limit(what),
            IrError::Cancelled => OpError::Limit(e.to_string()),
            IrError::Unsupported(what) => OpError::Unsupported(what),
            IrError::Parse { what, .. } | IrError::Invalid(what) => OpError::Invalid(what),
        }
    }
}

impl From<ImportError> for OpError {
    fn from(e: ImportError) -> OpError {
        OpError::Placed(Box::new(e))
    }
}

/// An [`OpError::Invalid`].
pub(crate) fn invalid<T>(what: impl Into<String>) -> OpResult<T> {
    Err(OpError::Invalid(what.into()))
}

/// An [`OpError::Unsupported`].
pub(crate) fn unsupported<T>(what: impl Into<String>) -> OpResult<T> {
    Err(OpError::Unsupported(what.into()))
}

//! Failures: one line on standard error and an exit status.
//!
//! Codes: `usage` (2), `malformed` (3), `unsupported` (4), `limit` (5), `run` (1), `io` (1), `differs` (6).

use cupola::Error;
use cupola::onnx::ImportError;
use serde::Serialize;

/// Why a command ends with a status other than 0.
#[derive(Debug)]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// Short word for `error[..]`.
    pub code: &'static str,
    /// One line: what, where, what to do.
    pub message: String,
    /// For status 4: each op that is not implemented, and why.
    pub missing: Vec<Missing>,
}

/// An op of a model that is not implemented.
#[derive(Debug, Serialize)]
pub struct Missing {
    /// Operator of the source file.
    pub op: String,
    /// Name of its node.
    pub node: String,
    /// Why.
    pub why: String,
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without further details.
    pub fn new(status: u8, code: &'static str, message: impl Into<String>) -> Failure {
        Failure {
            status,
            code,
            message: message.into(),
            missing: vec![],
        }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(2, "usage", message)
    }

    /// A file that cannot be read or written.
    pub fn io(what: &str, path: &std::path::Path, error: impl std::fmt::Display) -> Failure {
        Failure::new(1, "io", format!("{what} {}: {error}", path.display()))
    }

    /// A file given as data that is not what it should be.
    pub fn malformed(message: impl Into<String>) -> Failure {
        Failure::new(3, "malformed", message)
    }

    /// Over a stated limit.
    pub fn limit(message: impl Into<String>) -> Failure {
        Failure::new(5, "limit", message)
    }

    /// Results that differ from what was expected.
    pub fn differs(message: impl Into<String>) -> Failure {
        Failure::new(6, "differs", message)
    }

    /// The line for standard error: at most 500 bytes, control characters escaped.
    pub fn line(&self) -> String {
        let first: Vec<&str> = self
            .message
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let mut text = String::from("error[");
        text.push_str(self.code);
        text.push_str("]: ");
        for c in first.join("; ").chars() {
            if text.len() > 480 {
                text.push_str("...");
                break;
            }
            if c.is_control() {
                text.extend(c.escape_default())
            } else {
                text.push(c)
            }
        }
        text
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let class = e.class();
        let missing = match &e {
            Error::Import(ImportError::Unsupported(ops)) => ops
                .iter()
                .map(|o| Missing {
                    op: match o.domain.as_str() {
                        "" => o.op.clone(),
                        domain => format!("{domain}::{}", o.op),
                    },
                    node: o.node.clone(),
                    why: o.reason.clone(),
                })
                .collect(),
            _ => vec![],
        };
        Failure {
            missing,
            ..Failure::new(class.exit_status(), class.code(), e.to_string())
        }
    }
}

impl From<cupola::runtime::RuntimeError> for Failure {
    fn from(e: cupola::runtime::RuntimeError) -> Failure {
        Error::from(e).into()
    }
}

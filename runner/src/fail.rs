//! Failures: one line on standard error and an exit status.
//!
//! Codes: `usage` (2), `malformed` (3), `unsupported` (4), `limit` (5), `run` (1), `io` (1), `differs` (6).

use cupola::Error;

/// Why a command ends with a status other than 0.
#[derive(Debug)]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// Short word for `error[..]`.
    pub code: &'static str,
    /// One line: what, where, what to do.
    pub message: String,
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure {
            status: 2,
            code: "usage",
            message: message.into(),
        }
    }

    /// A file that cannot be read or written.
    pub fn io(what: &str, path: &std::path::Path, error: impl std::fmt::Display) -> Failure {
        Failure {
            status: 1,
            code: "io",
            message: format!("{what} {}: {error}", path.display()),
        }
    }

    /// A file given as data that is not what it should be.
    pub fn malformed(message: impl Into<String>) -> Failure {
        Failure {
            status: 3,
            code: "malformed",
            message: message.into(),
        }
    }

    /// Results that differ from what was expected.
    pub fn differs(message: impl Into<String>) -> Failure {
        Failure {
            status: 6,
            code: "differs",
            message: message.into(),
        }
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
        Failure {
            status: class.exit_status(),
            code: class.code(),
            message: e.to_string(),
        }
    }
}

impl From<cupola::runtime::RuntimeError> for Failure {
    fn from(e: cupola::runtime::RuntimeError) -> Failure {
        Error::from(e).into()
    }
}

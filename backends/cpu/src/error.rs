//! The crate's error type.

/// What can go wrong in the CPU backend. Every variant says whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// *Limit*: the system refused the memory, or the caller's budget does not allow it.
    #[error("cannot allocate {size} bytes ({in_use} in use, limit {limit})")]
    OutOfMemory {
        /// Bytes asked for.
        size: usize,
        /// Bytes already in use under the same budget.
        in_use: usize,
        /// The budget; `usize::MAX` when there is none.
        limit: usize,
    },
    /// *Neither*: only what was kept was wanted, and it was not. Never leaves the crate.
    #[error("not kept")]
    NotKept,
    /// *User input*: `CUPOLA_CPU` names a level that does not exist or that this processor lacks.
    #[error("CUPOLA_CPU={name}: {reason} (known levels: x86-64-v2, x86-64-v3, x86-64-v4, native)")]
    CpuLevel {
        /// The value as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// *User input*: an operand does not fit the sizes it is used with.
    #[error("{what}: {reason}")]
    Operand {
        /// The operand, as the called function names it.
        what: &'static str,
        /// What does not fit, with the numbers.
        reason: String,
    },
}

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! The processes of an MPI job, as far as Cupola needs them: who there is, messages between two, and a common end.
//!
//! Built with the feature `mpi`, which needs an MPI library with its headers (Open MPI: `libopenmpi-dev`) and libclang. All calls
//! of the library come from one thread. It looks for messages now and then instead of spinning, so that a process that waits
//! leaves its core to those that compute.

#[cfg(feature = "mpi")]
mod job;
#[cfg(not(feature = "mpi"))]
mod without;

#[cfg(feature = "mpi")]
pub use job::Job;
#[cfg(not(feature = "mpi"))]
pub use without::Job;

/// What can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MpiError {
    /// Built without MPI. *User input.*
    #[error(
        "this build has no MPI; with an MPI library and libclang installed (Debian: openmpi-bin, libopenmpi-dev, libclang-dev), \
         cargo build --release --features mpi makes one that has"
    )]
    Without,
    /// The library cannot be used.
    #[error("MPI: {0}")]
    Library(String),
}

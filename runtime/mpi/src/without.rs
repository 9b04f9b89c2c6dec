//! What there is without MPI: an error that says how to get it.

use crate::MpiError;

/// A process of an MPI job; there is none in this build.
#[derive(Debug)]
pub struct Job(std::convert::Infallible);

impl Job {
    /// Joins the job that this process belongs to.
    ///
    /// # Errors
    /// [`MpiError::Without`].
    pub fn join() -> Result<Job, MpiError> {
        Err(MpiError::Without)
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        match self.0 {}
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        match self.0 {}
    }

    /// Number of this process among those of its machine, and how many they are.
    pub fn on_machine(&self) -> (usize, usize) {
        match self.0 {}
    }

    /// Sends bytes to a process and gives those that it sends; both call at the same time. While the process `is_idle`, they are
    /// looked for without pauses.
    ///
    /// # Errors
    /// What the library finds.
    pub fn exchange(
        &self,
        _with: usize,
        _bytes: Vec<u8>,
        _is_idle: impl Fn() -> bool + Send + 'static,
    ) -> Result<Vec<u8>, MpiError> {
        match self.0 {}
    }

    /// Ends all processes of the job with this status.
    pub fn abort(&self, _status: u8) {
        match self.0 {}
    }
}

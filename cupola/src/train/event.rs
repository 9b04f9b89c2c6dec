//! What is told while a model is trained.

use super::evaluate::Scores;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

/// A step that was done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// The loss before the update.
    pub loss: f64,
    /// The learning rate of the update.
    pub lr: f64,
    /// The gradients' norm before clipping, where it is computed.
    pub grad_norm: Option<f64>,
    /// The loss scale after the step, where there is one.
    pub scale: Option<f64>,
    /// No update was made, since a gradient was infinite.
    pub is_skipped: bool,
    /// Samples.
    pub samples: usize,
    /// Wall time, that of waiting for data included.
    pub time: Duration,
}

/// What happens while a model is trained.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step was done.
    Step(StepReport),
    /// The model was validated.
    Validated {
        /// Steps done.
        step: u64,
        /// Results.
        scores: Scores,
        /// None were better.
        is_best: bool,
    },
    /// A checkpoint was written.
    Saved(PathBuf),
    /// Something that takes time or that one should know.
    Note(String),
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All epochs or steps are done.
    Done,
    /// Validation no longer improved.
    Early,
    /// Whoever listens asked for it.
    Stopped,
}

/// Hears what happens; [`ControlFlow::Break`] ends the run after the step, with a checkpoint.
pub type Listener<'a> = dyn FnMut(Event) -> ControlFlow<()> + 'a;

//! What happened in runs and when, for profiles. Without a [`Recording`] in the state a run asks for no time at all.

use crate::error::Result;
use crate::exec::RunCx;
use crate::frame::Frame;
use cupola_ir::Bindings;
use cupola_passes::{DeviceId, Step};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The steps of recorded runs; [`crate::State::recording`] holds one while runs are to be recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    origin: Instant,
    /// Steps that did work (launches, host steps, regions, transfers), in the order in which they ended. A step with
    /// regions spans the steps of its regions.
    pub events: Vec<Event>,
    /// Beginning and end of every complete run since the recording was made.
    pub runs: Vec<(Duration, Duration)>,
    /// The sizes of the last execution of each plan, by [`crate::Program::plans`].
    pub bindings: BTreeMap<usize, Bindings>,
}

/// One execution of a step; times since the recording was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The run, counted from 0: position in [`Recording::runs`] once it is complete.
    pub run: usize,
    /// The plan, by [`crate::Program::plans`].
    pub plan: usize,
    /// The step of that plan.
    pub step: usize,
    /// Beginning.
    pub start: Duration,
    /// End of all work of the step, on whatever device.
    pub end: Duration,
}

impl Recording {
    /// An empty recording; its clock starts now.
    pub fn new() -> Recording {
        Recording {
            origin: Instant::now(),
            events: vec![],
            runs: vec![],
            bindings: BTreeMap::new(),
        }
    }

    /// Time since the recording was made.
    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

impl Default for Recording {
    fn default() -> Recording {
        Recording::new()
    }
}

impl Frame<'_> {
    /// The time, where the run is recorded.
    pub(crate) fn clock(cx: &RunCx<'_>) -> Option<Duration> {
        cx.recording.as_ref().map(|r| r.now())
    }

    /// Notes a step that began at `start`, after waiting for what it has started.
    pub(crate) fn note(
        &mut self,
        at: usize,
        step: &Step,
        start: Option<Duration>,
        cx: &mut RunCx<'_>,
    ) -> Result<()> {
        let Some(start) = start else { return Ok(()) };
        match step {
            Step::Launch { .. }
            | Step::Host { .. }
            | Step::Control { .. }
            | Step::Transfer { .. } => {}
            Step::Bind { .. } | Step::Require { .. } | Step::WriteState { .. } => return Ok(()),
        }
        self.settle(cx)?;
        if let Some(recording) = &mut cx.recording {
            let event = Event {
                run: recording.runs.len(),
                plan: self.loaded.number,
                step: at,
                start,
                end: recording.now(),
            };
            recording.events.push(event);
        }
        Ok(())
    }

    /// Notes the sizes that the plan ended with.
    pub(crate) fn note_sizes(&self, cx: &mut RunCx<'_>) {
        if let Some(recording) = &mut cx.recording {
            let bindings = self.bindings.clone();
            recording.bindings.insert(self.loaded.number, bindings);
        }
    }

    /// Submits what is queued for all devices and waits for it.
    pub(crate) fn settle(&mut self, cx: &RunCx<'_>) -> Result<()> {
        for d in 0..cx.devices.len() {
            self.flush(DeviceId(d as u32), cx)?;
            cx.devices[d].device().wait()?;
        }
        Ok(())
    }
}

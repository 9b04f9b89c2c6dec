//! What happened in runs and when, for profiles. Without a [`Recording`] in the state a run asks for no time at all.

use crate::error::Result;
use crate::exec::RunCx;
use crate::frame::Frame;
use crate::replicas::Done;
use cupola_ir::Bindings;
use cupola_passes::Step;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The steps of recorded runs; [`crate::State::recording`] holds one while runs are to be recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    origin: Instant,
    /// Steps that did work (launches, host steps, regions, transfers), in the order in which they ended. A step with
    /// regions spans the steps of its regions.
    pub events: Vec<Event>,
    /// Collectives: when what they carry was on its way.
    pub travels: Vec<Travel>,
    /// Beginning and end of every complete run since the recording was made.
    pub runs: Vec<(Duration, Duration)>,
    /// The sizes of the last execution of each plan, by [`crate::Program::plans`].
    pub bindings: BTreeMap<usize, Bindings>,
}

/// One execution of a step; times since the recording was made. Those of a launch on a device with a clock are by that clock,
/// brought to the host's by when the host had the results.
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

/// A collective on its way, beside what the run computed meanwhile; times as those of an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Travel {
    /// The run.
    pub run: usize,
    /// The plan, and the step that waited for the results.
    pub at: (usize, usize),
    /// Tensors that travelled together.
    pub tensors: usize,
    /// Bytes of the results.
    pub bytes: u64,
    /// When all replicas of the process had given their operands.
    pub start: Duration,
    /// When the results were there.
    pub end: Duration,
}

impl Recording {
    /// Notes a collective that the step `at` has waited for.
    pub(crate) fn travelled(&mut self, at: (usize, usize), done: &Done) {
        let since = |moment: Instant| moment.saturating_duration_since(self.origin);
        let (start, end) = (since(done.span.0), since(done.span.1));
        self.travels.push(Travel {
            run: self.runs.len(),
            at,
            tensors: done.tensors.len(),
            bytes: done.tensors.iter().map(|t| t.bytes().len() as u64).sum(),
            start,
            end,
        });
    }

    /// An empty recording; its clock starts now.
    pub fn new() -> Recording {
        Recording {
            origin: Instant::now(),
            events: vec![],
            travels: vec![],
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

/// Spans of steps, given since the first began, brought to the host's clock: what was submitted at `begun` had run at
/// `ended`.
pub(crate) fn on_host_clock(
    spans: &[(Duration, Duration)],
    begun: Duration,
    ended: Duration,
) -> Vec<(Duration, Duration)> {
    let length = spans.iter().map(|span| span.1).max().unwrap_or_default();
    let origin = ended.saturating_sub(length).max(begun);
    let moved = spans
        .iter()
        .map(|(start, end)| (origin + *start, origin + *end));
    moved.collect()
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
            // Noted when the device has run it.
            Step::Launch { unit, .. } if self.has_clock(*unit, cx) => return Ok(()),
            Step::Launch { .. }
            | Step::Host { .. }
            | Step::Control { .. }
            | Step::Collective { .. }
            | Step::Await { .. }
            | Step::Transfer { .. } => {}
            Step::Bind { .. } | Step::Require { .. } | Step::WriteState { .. } => return Ok(()),
        }
        cx.settle()?;
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

    fn has_clock(&self, unit: usize, cx: &RunCx<'_>) -> bool {
        let device = self.loaded.compiled.units[unit].device;
        cx.devices[device.0 as usize].device().has_clock()
    }

    /// Notes the sizes that the plan ended with.
    pub(crate) fn note_end(&mut self, cx: &mut RunCx<'_>) {
        if let Some(recording) = &mut cx.recording {
            let bindings = self.bindings.clone();
            recording.bindings.insert(self.loaded.number, bindings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_a_device_end_when_the_host_has_the_results() {
        let ms = Duration::from_millis;
        let spans = [(ms(0), ms(2)), (ms(3), ms(5))];
        let on_host = |ended: u64| on_host_clock(&spans, ms(100), ms(ended));
        assert_eq!(on_host(110), [(ms(105), ms(107)), (ms(108), ms(110))]);
        // Clocks differ: nothing begins before it was submitted.
        assert_eq!(on_host(103), [(ms(100), ms(102)), (ms(103), ms(105))]);
    }
}

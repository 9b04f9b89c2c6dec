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

/// A step that ran on a device with a clock.
pub(crate) struct Timed {
    step: usize,
    start: Duration,
    end: Duration,
}

impl Timed {
    /// Spans of steps, given since the first began, brought to the host's clock: what was submitted at `begun` had run at
    /// `ended`.
    pub fn on_host_clock(
        steps: &[usize],
        spans: &[(Duration, Duration)],
        begun: Duration,
        ended: Duration,
    ) -> Vec<Timed> {
        let length = spans.iter().map(|span| span.1).max().unwrap_or_default();
        let origin = ended.saturating_sub(length).max(begun);
        let timed = steps.iter().zip(spans).map(|(step, (start, end))| Timed {
            step: *step,
            start: origin + *start,
            end: origin + *end,
        });
        timed.collect()
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
            // Noted when the device has run it.
            Step::Launch { unit, .. } if self.has_clock(*unit, cx) => return Ok(()),
            Step::Launch { .. }
            | Step::Host { .. }
            | Step::Control { .. }
            | Step::Transfer { .. } => {}
            Step::Bind { .. } | Step::Require { .. } | Step::WriteState { .. } => return Ok(()),
        }
        self.settle(cx)?;
        self.note_timed(cx);
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

    /// Notes the steps that devices have timed.
    fn note_timed(&mut self, cx: &mut RunCx<'_>) {
        let timed = std::mem::take(&mut self.timed);
        let Some(recording) = &mut cx.recording else {
            return;
        };
        let run = recording.runs.len();
        recording.events.extend(timed.into_iter().map(|t| Event {
            run,
            plan: self.loaded.number,
            step: t.step,
            start: t.start,
            end: t.end,
        }));
    }

    /// Notes what devices have timed, and the sizes that the plan ended with.
    pub(crate) fn note_end(&mut self, cx: &mut RunCx<'_>) {
        self.note_timed(cx);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_a_device_end_when_the_host_has_the_results() {
        let ms = Duration::from_millis;
        let spans = [(ms(0), ms(2)), (ms(3), ms(5))];
        let on_host = |ended: u64| {
            let timed = Timed::on_host_clock(&[7, 9], &spans, ms(100), ms(ended));
            timed
                .iter()
                .map(|t| (t.step, t.start, t.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(on_host(110), [(7, ms(105), ms(107)), (9, ms(108), ms(110))]);
        // Clocks differ: nothing begins before it was submitted.
        assert_eq!(on_host(103), [(7, ms(100), ms(102)), (9, ms(103), ms(105))]);
    }
}

//! The trace of the first steps: JSON in the Trace Event Format, which Perfetto and chrome://tracing read. Kernels and what the
//! host does are on one track, collectives on their way on another, so that what overlaps is seen.

use cupola::passes::Step;
use cupola::runtime::{Program, Recording};
use serde_json::{Value as Json, json};
use std::time::Duration;

/// Steps that are traced.
pub const STEPS: u64 = 8;

/// Tracks.
const COMPUTING: u32 = 1;
const TRAVELLING: u32 = 2;

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// The document.
pub fn document(program: &Program, recording: &Recording) -> Json {
    let track = |tid: u32, name: &str| json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": { "name": name } });
    let slice = |name: &str, tid: u32, start: Duration, end: Duration, more: Json| {
        json!({
            "ph": "X", "name": name, "pid": 1, "tid": tid, "ts": micros(start),
            "dur": micros(end.saturating_sub(start)), "args": more,
        })
    };
    let mut events = vec![
        track(COMPUTING, "computing"),
        track(TRAVELLING, "between replicas"),
    ];
    for (start, end) in &recording.runs {
        events.push(slice("step", COMPUTING, *start, *end, json!({})));
    }
    let plans = program.plans();
    for event in &recording.events {
        let Some(compiled) = plans.get(&event.plan) else {
            continue;
        };
        let name = match &compiled.plan.steps[event.step] {
            Step::Launch { unit, .. } => compiled.units[*unit].unit.name(),
            Step::Host { node, .. } | Step::Control { node, .. } => {
                compiled.graph.node(*node).op.name()
            }
            Step::Transfer { .. } => "transfer".into(),
            Step::Collective { .. } => "hand over".into(),
            Step::Await { .. } => "wait".into(),
            Step::Bind { .. } | Step::Require { .. } | Step::WriteState { .. } => continue,
        };
        let more = json!({ "plan": event.plan, "step": event.step });
        events.push(slice(&name, COMPUTING, event.start, event.end, more));
    }
    for travel in &recording.travels {
        let more = json!({ "tensors": travel.tensors, "bytes": travel.bytes });
        events.push(slice("bucket", TRAVELLING, travel.start, travel.end, more));
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

//! The trace: JSON in the Trace Event Format, which Perfetto and chrome://tracing read. Times are microseconds.

use super::{bound, rate};
use cupola::{Profile, StepKind, StepProfile};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::time::Duration;

const PROCESS: u32 = 1;
const HOST: usize = 1;

/// The track of a device's kernels; the host's own is [`HOST`].
fn track(device: usize) -> usize {
    HOST + 1 + device
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// One run: a track for the host, one for each device, and the working memory over time.
pub fn document(model: &str, profile: &Profile) -> Json {
    let steps: BTreeMap<(usize, usize), &StepProfile> =
        profile.steps.iter().map(|s| (s.at, s)).collect();
    let mut events = vec![
        name("process_name", 0, model),
        name("thread_name", HOST, "host"),
    ];
    for (d, device) in profile.devices.iter().enumerate() {
        events.push(name("thread_name", track(d), &format!("{device} kernels")));
    }
    let whole = Span {
        start: Duration::ZERO,
        end: profile.trace_time,
    };
    events.push(slice("run", "run", HOST, whole, json!({})));
    for event in &profile.trace {
        let Some(step) = steps.get(&(event.plan, event.step)) else {
            continue;
        };
        let at = match step.kind {
            StepKind::Kernel => track(step.device),
            StepKind::Host | StepKind::Control | StepKind::Transfer => HOST,
        };
        let span = Span {
            start: event.start,
            end: event.end,
        };
        events.push(slice(
            &step.name,
            step.kind.name(),
            at,
            span,
            arguments(step),
        ));
        if event.plan == 0 {
            events.push(memory(profile, event.step, event.start));
        }
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

struct Span {
    start: Duration,
    end: Duration,
}

fn name(kind: &str, track: usize, name: &str) -> Json {
    json!({ "ph": "M", "name": kind, "pid": PROCESS, "tid": track, "args": { "name": name } })
}

fn slice(name: &str, kind: &str, track: usize, span: Span, arguments: Json) -> Json {
    json!({
        "ph": "X", "name": name, "cat": kind, "pid": PROCESS, "tid": track, "ts": micros(span.start),
        "dur": micros(span.end - span.start), "args": arguments,
    })
}

fn arguments(step: &StepProfile) -> Json {
    let sources = step.sources.iter().map(|(op, node)| format!("{op} {node}"));
    json!({
        "plan": step.at.0, "step": step.at.1, "sources": sources.collect::<Vec<_>>(), "flops": step.flops,
        "bytes": step.bytes, "median_us": micros(step.time), "GB/s": rate(step.bytes, step.time),
        "GFLOP/s": rate(step.flops, step.time), "bound": bound(step), "fraction_of_limit": step.fraction(),
    })
}

/// Bytes of working memory that are alive during a step.
fn memory(profile: &Profile, step: usize, at: Duration) -> Json {
    let alive = |s: &&cupola::MemorySlot| (s.steps.0..=s.steps.1).contains(&step);
    let slots = profile.memory.slots.iter().filter(alive);
    let bytes: u64 = slots.map(|s| s.range.1).sum();
    json!({
        "ph": "C", "name": "working memory", "pid": PROCESS, "ts": micros(at), "args": { "bytes": bytes },
    })
}

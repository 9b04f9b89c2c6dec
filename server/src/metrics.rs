//! Figures in the text form that Prometheus reads.

use crate::embedder::EmbedStats;
use cupola_llm::EngineStats;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// What handlers count.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub requests: AtomicU64,
    pub refused: AtomicU64,
}

type Row = (&'static str, &'static str, &'static str, u64);

/// Figures of a model that continues texts.
pub(crate) fn generation(counters: &Counters, stats: EngineStats) -> String {
    let rows = [
        (
            "steps_total",
            "counter",
            "Runs of the decoder.",
            stats.steps,
        ),
        ("rows_total", "counter", "Rows of all runs.", stats.rows),
        (
            "generated_tokens_total",
            "counter",
            "Tokens generated.",
            stats.generated,
        ),
        (
            "reused_tokens_total",
            "counter",
            "Tokens of prompts found in the cache.",
            stats.reused,
        ),
        (
            "preempted_total",
            "counter",
            "Texts that gave up their pages to another.",
            stats.preempted,
        ),
        (
            "running",
            "gauge",
            "Texts being continued.",
            stats.running as u64,
        ),
        ("waiting", "gauge", "Texts that wait.", stats.waiting as u64),
        (
            "pages_held",
            "gauge",
            "Pages of the cache that texts hold.",
            stats.pages_held as u64,
        ),
        ("pages", "gauge", "Pages of the cache.", stats.pages as u64),
    ];
    text(counters, &rows)
}

/// Figures of a model that describes texts.
pub(crate) fn embedding(counters: &Counters, stats: EmbedStats) -> String {
    let rows = [
        (
            "rounds_total",
            "counter",
            "Rounds over the texts that wait.",
            stats.rounds,
        ),
        ("texts_total", "counter", "Texts described.", stats.texts),
        (
            "text_tokens_total",
            "counter",
            "Tokens of them.",
            stats.tokens,
        ),
        (
            "waiting",
            "gauge",
            "Requests that wait or are under way.",
            stats.waiting as u64,
        ),
    ];
    text(counters, &rows)
}

fn text(counters: &Counters, more: &[Row]) -> String {
    let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let rows = [
        (
            "requests_total",
            "counter",
            "Requests for texts or vectors.",
            count(&counters.requests),
        ),
        (
            "refused_total",
            "counter",
            "Those that were refused or failed.",
            count(&counters.refused),
        ),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows.iter().chain(more) {
        let name = format!("cupola_{name}");
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    }
    text
}

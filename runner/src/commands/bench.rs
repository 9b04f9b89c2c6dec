//! `cupola bench`: times a model; with `--suite` the device itself; with `--worker` it answers a harness that times several engines in turn.

use super::{bench_compare, bench_worker, language, suite};
use crate::args::{BenchAction, BenchArgs};
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs};
use cupola::{ProfileOptions, Runner, StepProfile, Value};
use serde::Serialize;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Times a model, or serves as a worker.
pub fn bench(args: &BenchArgs) -> Outcome {
    if let Some(BenchAction::Compare(args)) = &args.action {
        return bench_compare::compare(args);
    }
    if args.worker {
        return bench_worker::worker(args);
    }
    if args.suite {
        return suite::suite(args);
    }
    if args.llm {
        return language::bench(args);
    }
    let path = args
        .model
        .as_ref()
        .ok_or_else(|| Failure::usage("bench needs a MODEL, --suite or --worker"))?;
    let model = super::open(path, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let mut job = Job {
        runner: model.runner(super::host(&args.compile), super::options(&args.compile)?),
        inputs: given,
    };
    job.run()?;
    let samples = sample(&mut job, args.iterations, args.warmup, f64::INFINITY)?;
    let mut document = summary(&samples);
    document["name"] = json!(job.runner.model().name());
    document["machine"] = machine();
    let roofline = job.roofline()?;
    document["roofline"] = json!(roofline);
    match &args.json {
        // One line: harnesses read the last one.
        Some(to) if to == "-" => println!("{document}"),
        Some(to) => outputs::write_json(to, &document)?,
        None => {
            let get = |k: &str| document[k].as_f64().unwrap_or(f64::NAN);
            println!(
                "median {:.3} ms  min {:.3} ms  p90 {:.3} ms",
                get("median_ms"),
                get("min_ms"),
                get("p90_ms")
            );
            if let Some(found) = roofline {
                println!("{}", found.line(get("median_ms")));
            }
            println!("{document}");
        }
    }
    Ok(())
}

/// What timings are compared with: another machine gives others.
fn machine() -> Json {
    let processor = cupola::runtime::processor();
    let facts = processor.facts.into_iter().map(|(k, v)| (k, json!(v)));
    let name = ("name".to_string(), json!(processor.name));
    Json::Object(std::iter::once(name).chain(facts).collect())
}

fn summary(samples: &[f64]) -> Json {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
    json!({ "samples_ms": samples, "median_ms": at(0.5), "min_ms": at(0.0), "p90_ms": at(0.9) })
}

/// What a run computes and moves, and the least time that the machine's measured limits allow for it.
#[derive(Serialize)]
struct Roofline {
    limit_ms: f64,
    flops: u64,
    bytes: u64,
}

impl Roofline {
    fn line(&self, median_ms: f64) -> String {
        format!(
            "roofline {:.3} ms, {:.0} % of it reached: {:.3} GFLOP, {:.3} MB",
            self.limit_ms,
            100.0 * self.limit_ms / median_ms,
            self.flops as f64 / 1e9,
            self.bytes as f64 / 1e6
        )
    }
}

/// Something that is timed.
pub(super) trait Timed {
    /// Runs it once; its results.
    fn run(&mut self) -> Outcome<Vec<(String, Value)>>;

    /// Whether other engines give the same results.
    fn is_comparable(&self) -> bool {
        true
    }
}

/// A model with its inputs.
pub(super) struct Job {
    pub runner: Runner,
    pub inputs: BTreeMap<String, Value>,
}

impl Timed for Job {
    fn run(&mut self) -> Outcome<Vec<(String, Value)>> {
        let inputs = self.inputs.iter();
        let named = inputs.map(|(n, v)| (n.as_str(), v.clone())).collect();
        Ok(self.runner.run(named)?)
    }
}

impl Job {
    /// `None` where nothing is measured: the reference interpreter.
    fn roofline(&mut self) -> Outcome<Option<Roofline>> {
        let session = self.runner.session(&self.inputs)?;
        let options = ProfileOptions { warmup: 0, runs: 1 };
        let profile = cupola::profile(session, &self.inputs, options)?;
        Ok(profile.and_then(|profile| {
            let total = |amount: fn(&StepProfile) -> u64| {
                profile
                    .steps
                    .iter()
                    .map(amount)
                    .fold(0, u64::saturating_add)
            };
            Some(Roofline {
                limit_ms: profile.limit()?.as_secs_f64() * 1e3,
                flops: total(|step| step.flops),
                bytes: total(|step| step.bytes),
            })
        }))
    }
}

/// Milliseconds of up to `n` runs within `max_s` (one at least), after a warm-up.
pub(super) fn sample(
    job: &mut dyn Timed,
    n: usize,
    warmup_s: f64,
    max_s: f64,
) -> Outcome<Vec<f64>> {
    let start = Instant::now();
    let warmup = Duration::from_secs_f64(warmup_s.clamp(0.0, 60.0));
    loop {
        job.run()?;
        if start.elapsed() >= warmup {
            break;
        }
    }
    let start = Instant::now();
    let mut samples = vec![];
    while samples.is_empty() || (samples.len() < n && start.elapsed().as_secs_f64() < max_s) {
        let one = Instant::now();
        let result = job.run()?;
        samples.push(one.elapsed().as_secs_f64() * 1e3);
        drop(result);
    }
    Ok(samples)
}

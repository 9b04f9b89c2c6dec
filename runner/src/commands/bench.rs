//! `cupola bench`: times a model; with `--suite` the device itself; with `--worker` it answers a harness that times several engines in turn.
//!
//! Worker protocol: one JSON object a line. At start `{"ready":true,"peer":"cupola","version":V}`. Requests:
//! `{"cmd":"load","case":"w2/b1s128"}`, `{"cmd":"run","n":8,"warmup_s":0.05,"max_s":0.6}`, `{"cmd":"quit"}`. Cases are
//! looked up in the folder `$PEERS_MODELS`: `CASE.onnx` (or the shared file of a family) and `inputs/CASE.NAME.bin`
//! with extents in `inputs/CASE.json`.

use super::{bench_compare, language, suite};
use crate::args::{BenchAction, BenchArgs};
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs};
use cupola::ir::convert::{self, Lanes};
use cupola::{DType, Model, ProfileOptions, Runner, StepProfile, Tensor, Value};
use serde::Serialize;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Times a model, or serves as a worker.
pub fn bench(args: &BenchArgs) -> Outcome {
    if let Some(BenchAction::Compare(args)) = &args.action {
        return bench_compare::compare(args);
    }
    if args.worker {
        return worker(args);
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
    let samples = job.sample(args.iterations, args.warmup, f64::INFINITY)?;
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

/// A model with its inputs.
struct Job {
    runner: Runner,
    inputs: BTreeMap<String, Value>,
}

impl Job {
    fn run(&mut self) -> Outcome<Vec<(String, Value)>> {
        let named = self
            .inputs
            .iter()
            .map(|(n, v)| (n.as_str(), v.clone()))
            .collect();
        Ok(self.runner.run(named)?)
    }

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

    /// Milliseconds of up to `n` runs within `max_s` (one at least), after a warm-up.
    fn sample(&mut self, n: usize, warmup_s: f64, max_s: f64) -> Outcome<Vec<f64>> {
        let start = Instant::now();
        let warmup = Duration::from_secs_f64(warmup_s.clamp(0.0, 60.0));
        loop {
            self.run()?;
            if start.elapsed() >= warmup {
                break;
            }
        }
        let start = Instant::now();
        let mut samples = vec![];
        while samples.is_empty() || (samples.len() < n && start.elapsed().as_secs_f64() < max_s) {
            let one = Instant::now();
            let result = self.run()?;
            samples.push(one.elapsed().as_secs_f64() * 1e3);
            drop(result);
        }
        Ok(samples)
    }
}

fn worker(args: &BenchArgs) -> Outcome {
    say(&json!({ "ready": true, "peer": "cupola", "version": env!("CARGO_PKG_VERSION") }))?;
    let host = super::host(&args.compile);
    let mut job: Option<Job> = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        if line.trim().is_empty() {
            continue;
        }
        let request: Json = serde_json::from_str(&line).unwrap_or(Json::Null);
        let reply = match request["cmd"].as_str() {
            Some("load") => {
                job = None;
                let start = Instant::now();
                let case = request["case"].as_str().unwrap_or_default();
                let loaded = load(case, args, &host).and_then(|mut j| {
                    let first = j.run()?;
                    Ok((digest(&first), j))
                });
                match loaded {
                    Ok((digest, loaded)) => {
                        job = Some(loaded);
                        json!({ "ok": true, "load_ms": start.elapsed().as_secs_f64() * 1e3, "digest": digest })
                    }
                    Err(f) => json!({ "ok": false, "error": f.message }),
                }
            }
            Some("run") => match &mut job {
                None => json!({ "ok": false, "error": "nothing is loaded" }),
                Some(job) => {
                    let number = |k: &str, default: f64| request[k].as_f64().unwrap_or(default);
                    let n = number("n", 8.0).max(1.0) as usize;
                    match job.sample(n, number("warmup_s", 0.05), number("max_s", 0.6)) {
                        Ok(samples) => json!({ "ok": true, "samples_ms": samples }),
                        Err(f) => json!({ "ok": false, "error": f.message }),
                    }
                }
            },
            Some("quit") => break,
            _ => json!({ "ok": false, "error": "unknown request" }),
        };
        say(&reply)?;
    }
    Ok(())
}

fn say(reply: &Json) -> Outcome {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{reply}").and_then(|()| out.flush());
    written.map_err(|e| Failure::new(1, "io", format!("standard output: {e}")))
}

fn load(case: &str, args: &BenchArgs, host: &std::sync::Arc<cupola::Host>) -> Outcome<Job> {
    let folder = std::env::var_os("PEERS_MODELS").map(PathBuf::from);
    let folder = folder.ok_or_else(|| Failure::usage("PEERS_MODELS is not set"))?;
    let key = case.replace('/', "_");
    let (family, rest) = case.split_once('/').unwrap_or((case, ""));
    let file = match family {
        "w2" => "minilm.onnx".to_string(),
        "w3" => format!("{rest}.onnx"),
        "w5" => format!(
            "lstm{}.onnx",
            rest.trim_start_matches('l')
                .split('b')
                .next()
                .unwrap_or("1")
        ),
        _ => format!("{key}.onnx"),
    };
    let path = folder.join(file);
    if !path.exists() {
        return Err(Failure::usage("not supported"));
    }
    let model = Model::open(path)?;
    let types = model.input_types()?;
    let shapes_path = folder.join("inputs").join(format!("{key}.json"));
    let text = std::fs::read_to_string(&shapes_path)
        .map_err(|e| Failure::io("cannot read", &shapes_path, e))?;
    let shapes: Json =
        serde_json::from_str(&text).map_err(|e| Failure::io("cannot parse", &shapes_path, e))?;
    let mut given = BTreeMap::new();
    for (name, ty) in &types {
        let Some(list) = shapes[name].as_array() else {
            continue;
        };
        let shape: Vec<usize> = list
            .iter()
            .filter_map(|d| d.as_u64())
            .map(|d| d as usize)
            .collect();
        let path = folder.join("inputs").join(format!("{key}.{name}.bin"));
        let bytes = std::fs::read(&path).map_err(|e| Failure::io("cannot read", &path, e))?;
        let dtype = ty.as_tensor().map_or(DType::F32, |t| t.dtype);
        let tensor = Tensor::new(dtype, shape, bytes.into());
        let tensor =
            tensor.ok_or_else(|| Failure::malformed(format!("{}: size", path.display())))?;
        given.insert(name.clone(), tensor.into());
    }
    Ok(Job {
        runner: model.runner(host.clone(), super::options(&args.compile)?),
        inputs: given,
    })
}

/// Size, root mean square of the first 2^22 elements, and up to 64 evenly spaced elements of the first output.
fn digest(results: &[(String, Value)]) -> Json {
    let Some(Value::Tensor(t)) = results.first().map(|(_, v)| v) else {
        return Json::Null;
    };
    let Some(Lanes::F(v)) = convert::lanes(t) else {
        return Json::Null;
    };
    let head = &v[..v.len().min(1 << 22)];
    let rms = (head.iter().map(|x| x * x).sum::<f64>() / head.len().max(1) as f64).sqrt();
    let count = v.len().min(64);
    let at = |i: usize| {
        if count > 1 {
            v[i * (v.len() - 1) / (count - 1)]
        } else {
            v[0]
        }
    };
    json!({ "size": v.len(), "rms": rms, "at": (0..count).map(at).collect::<Vec<_>>() })
}

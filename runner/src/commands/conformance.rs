//! `cupola conformance`: many cases in one process, one JSON line before and one after each.

use super::tuning;
use crate::args::{ConformanceArgs, Profile};
use crate::compare::{self, Difference, Tolerance};
use crate::fail::{Failure, Outcome};
use crate::{outputs, pb};
use cupola::runtime::Tuning;
use cupola::{Class, Error, Host, Keep, Model, Options, Value};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A case of the manifest.
struct Case {
    name: String,
    rtol: f64,
    atol: f64,
}

/// Goes through the cases of a suite.
pub fn conformance(args: &ConformanceArgs) -> Outcome {
    let cases = cases(args)?;
    // What is judged is what this release makes, and a thousand small stores are of no use to anyone.
    let options = Options {
        keep: Keep::default(),
        ..super::options(&args.compile)?
    };
    let host = super::host_with(tuning::options(&args.compile, Some(Tuning::Never)));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&args.json);
    let log = Mutex::new(file.map_err(|e| Failure::io("cannot write", &args.json, e))?);
    let next = AtomicUsize::new(0);
    let bar = indicatif::ProgressBar::new(cases.len() as u64);
    let worker = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            line(&log, &json!({ "case": case.name, "status": "start" }));
            line(&log, &one(case, args, &options, &host));
            bar.inc(1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            // Deeply nested subgraphs recurse; the default stack of a thread is small.
            let _ = std::thread::Builder::new()
                .stack_size(256 << 20)
                .spawn_scoped(scope, worker);
        }
    });
    bar.finish_and_clear();
    Ok(())
}

fn line(log: &Mutex<std::fs::File>, value: &Json) {
    let mut file = log.lock().unwrap_or_else(|e| e.into_inner());
    let _ = writeln!(file, "{value}");
    let _ = file.flush();
}

fn cases(args: &ConformanceArgs) -> Outcome<Vec<Case>> {
    let path = args.suite.join("manifest.json");
    let unreadable = |e: String| Failure::malformed(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| unreadable(e.to_string()))?;
    let manifest: Json = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
    let list = manifest["cases"]
        .as_array()
        .ok_or_else(|| unreadable("has no cases".into()))?;
    let pattern = args.r#match.as_deref().map(regex::Regex::new).transpose();
    let pattern = pattern.map_err(|e| Failure::usage(format!("--match: {e}")))?;
    let skip: HashSet<String> = match &args.skip_file {
        Some(p) => {
            let text = std::fs::read_to_string(p).map_err(|e| Failure::io("cannot read", p, e))?;
            text.lines().map(|l| l.trim().to_string()).collect()
        }
        None => HashSet::new(),
    };
    let mut all = vec![];
    for case in list {
        let name = case["name"]
            .as_str()
            .ok_or_else(|| unreadable("a case has no name".into()))?;
        let wanted = pattern.as_ref().is_none_or(|p| p.is_match(name));
        if wanted && !skip.contains(name) {
            let number = |key: &str, default: f64| case[key].as_f64().unwrap_or(default);
            all.push(Case {
                name: name.to_string(),
                rtol: number("rtol", 1e-3),
                atol: number("atol", 1e-7),
            });
        }
    }
    Ok(all)
}

/// The result line of a case; a panic inside becomes an error line.
fn one(case: &Case, args: &ConformanceArgs, options: &Options, host: &Arc<Host>) -> Json {
    let start = Instant::now();
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run_case(case, args, options, host)
    }));
    let mut result = match run {
        Ok(Ok(result)) => result,
        Ok(Err(CaseError::Cupola(e))) if e.class() == Class::Unsupported => {
            json!({ "status": "unsupported", "detail": e.to_string() })
        }
        Ok(Err(CaseError::Cupola(e))) => json!({ "status": "error", "detail": e.to_string() }),
        Ok(Err(CaseError::Other(f))) => json!({ "status": "error", "detail": f.line() }),
        Err(panic) => json!({ "status": "error", "detail": super::panic_text(&*panic) }),
    };
    result["case"] = json!(case.name);
    result["ms"] = json!(start.elapsed().as_secs_f64() * 1e3);
    if result.get("device").is_none() {
        result["device"] = json!(options.device.to_string());
    }
    result
}

enum CaseError {
    Cupola(Error),
    Other(Failure),
}

impl<E: Into<Error>> From<E> for CaseError {
    fn from(e: E) -> Self {
        CaseError::Cupola(e.into())
    }
}

fn run_case(
    case: &Case,
    args: &ConformanceArgs,
    options: &Options,
    host: &Arc<Host>,
) -> Result<Json, CaseError> {
    let folder = args.suite.join(&case.name);
    let model = Model::open(folder.join("model.onnx"))?;
    let types = model.input_types()?;
    let mut runner = model.runner(host.clone(), options.clone());
    let mut total = Difference::default();
    for set in data_sets(&folder) {
        let directory = folder.join(&set);
        let mut inputs = BTreeMap::new();
        for (i, (name, ty)) in types.iter().enumerate() {
            let path = directory.join(format!("input_{i}.pb"));
            if path.exists() {
                inputs.insert(name.clone(), pb::read(&path, ty).map_err(CaseError::Other)?);
            }
        }
        let named = inputs
            .iter()
            .map(|(n, v)| (n.as_str(), v.clone()))
            .collect();
        let got = runner.run(named)?;
        if let Some(out) = &args.outputs {
            outputs::write(&out.join(&case.name).join(&set), &got, true)
                .map_err(CaseError::Other)?;
        }
        let found = judge(case, &set, &directory, &got, args.profile).map_err(CaseError::Other)?;
        total = total.join(found);
    }
    let status = if total.is_ok() { "pass" } else { "fail" };
    let finite = |x: f64| {
        if x.is_finite() {
            json!(x)
        } else {
            json!(f64::MAX)
        }
    };
    let mut result = json!({ "status": status, "max_abs": finite(total.max_abs), "max_rel": finite(total.max_rel) });
    if !total.is_ok() {
        result["detail"] = json!(total.detail);
    }
    result["kernels"] = json!(runner.stats().launches);
    if let Some(program) = runner.program() {
        result["device"] = json!(program.device.to_string());
        let fallback = program.fallbacks();
        if !fallback.is_empty() {
            result["fallback"] = json!(fallback);
        }
    }
    Ok(result)
}

fn data_sets(folder: &Path) -> Vec<String> {
    let number = |name: &str| {
        name.strip_prefix("test_data_set_")
            .and_then(|n| n.parse::<u32>().ok())
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut all: Vec<String> = names.filter(|n| number(n).is_some()).collect();
    all.sort_by_key(|n| number(n));
    all
}

fn judge(
    case: &Case,
    set: &str,
    directory: &Path,
    got: &[(String, Value)],
    profile: Profile,
) -> Outcome<Difference> {
    let tolerance = Tolerance {
        rtol: case.rtol,
        atol: case.atol,
        device: profile == Profile::Device,
    };
    let mut total = Difference::default();
    for (i, (_, value)) in got.iter().enumerate() {
        let path: PathBuf = directory.join(format!("output_{i}.pb"));
        if !path.exists() {
            break;
        }
        let want = pb::read(&path, &super::run::kind_of(value))?;
        let found = compare::values(&format!("{set}/output_{i}"), value, &want, tolerance);
        total = total.join(found);
    }
    Ok(total)
}

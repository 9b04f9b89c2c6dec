//! `cupola run`: one model, once.

use super::tuning;
use crate::args::{RunArgs, StatsFormat};
use crate::compare::{self, Tolerance};
use crate::fail::{Failure, Outcome};
use crate::{inputs, npy, outputs, pb};
use cupola::Value;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Runs a model and prints, writes or compares its outputs.
pub fn run(args: &RunArgs) -> Outcome {
    let start = Instant::now();
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let inputs = inputs::gather(&types, &args.input, &args.compile, false)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let host = super::host_with(tuning::options(&args.compile, None));
    let mut runner = model.runner(host, super::options(&args.compile)?);
    {
        let _busy = super::busy("compiling");
        runner.session(&inputs)?.state_mut().seed = args.compile.seed;
    }
    let mut results = vec![];
    let mut run_ms = vec![];
    for _ in 0..args.repeat.max(1) {
        let named = inputs
            .iter()
            .map(|(n, v)| (n.as_str(), v.clone()))
            .collect();
        let start = Instant::now();
        results = runner.run(named)?;
        run_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let stats = statistics(&runner, load_ms, &run_ms);
    if let Some(dir) = &args.outputs {
        outputs::write(dir, &results, args.input.inputs.is_some())?;
    } else if args.json.as_deref() != Some("-") && args.stats != Some(StatsFormat::Json) {
        outputs::print(&results);
    }
    if let Some(to) = &args.json {
        let mut document = json!({ "model": args.model.display().to_string(), "outputs": outputs::to_json(&results) });
        document["stats"] = stats.clone();
        outputs::write_json(to, &document)?;
    }
    match args.stats {
        Some(StatsFormat::Json) => println!("{stats}"),
        Some(StatsFormat::Text) => print_stats(&stats),
        None => {}
    }
    match &args.expect {
        Some(dir) => expect(dir, &results, args),
        None => Ok(()),
    }
}

fn statistics(runner: &cupola::Runner, load_ms: f64, run_ms: &[f64]) -> Json {
    let last = runner.stats();
    let program = runner.program();
    json!({
        "device": program.map(|p| p.device.to_string()),
        "load_ms": load_ms,
        "compile_ms": runner.compile_time().as_secs_f64() * 1e3,
        "run_ms": run_ms.last(),
        "runs_ms": run_ms,
        "kernels": last.launches,
        "waits": last.waits,
        "submissions": last.submissions,
        "read_bytes": last.read_bytes,
        "units": program.map(|p| p.unit_count()),
        "compiles": runner.compiles(),
        "weight_bytes": program.map(|p| p.weight_bytes()),
        "peak_bytes_planned": last.planned_bytes + program.map_or(0, |p| p.weight_bytes()),
        "peak_bytes_used": last.peak_bytes + program.map_or(0, |p| p.weight_bytes()),
        "fallback": program.map(|p| p.fallbacks()),
    })
}

fn print_stats(stats: &Json) {
    if let Some(all) = stats.as_object() {
        for (key, value) in all.iter().filter(|(k, _)| *k != "runs_ms") {
            eprintln!("{key:20} {value}");
        }
    }
}

/// Compares with `NAME.npy`, `output_<i>.pb`, or members `out.<i>` of an `.npz` file.
fn expect(place: &Path, results: &[(String, Value)], args: &RunArgs) -> Outcome {
    let tolerance = Tolerance {
        rtol: args.rtol,
        atol: args.atol,
        device: false,
    };
    let archive: BTreeMap<String, cupola::Tensor> = if place.is_file() {
        npy::read_npz(place)?.into_iter().collect()
    } else {
        BTreeMap::new()
    };
    let mut compared = 0;
    for (i, (name, got)) in results.iter().enumerate() {
        let npy_path = place.join(format!("{}.npy", outputs::file_name(name)));
        let pb_path = place.join(format!("output_{i}.pb"));
        let want: Value = match archive.get(&format!("out.{i}")).or(archive.get(name)) {
            Some(t) => t.clone().into(),
            None if npy_path.exists() => npy::read(&npy_path)?.into(),
            None if pb_path.exists() => pb::read(&pb_path, &kind_of(got))?,
            None => continue,
        };
        compared += 1;
        let difference = compare::values(name, got, &want, tolerance);
        if !difference.is_ok() {
            let (abs, rel) = (difference.max_abs, difference.max_rel);
            return Err(Failure::differs(format!(
                "{} (max abs {abs:.3e}, max rel {rel:.3e})",
                difference.detail
            )));
        }
        eprintln!(
            "{name}: max abs {:.3e}, max rel {:.3e}",
            difference.max_abs, difference.max_rel
        );
    }
    if compared == 0 {
        return Err(Failure::usage(format!(
            "{} has no file for any output",
            place.display()
        )));
    }
    Ok(())
}

/// The type of a value, for reading its expected counterpart.
pub fn kind_of(value: &Value) -> cupola::ValueType {
    match value {
        Value::Tensor(t) => t.ty().into(),
        Value::Sequence(v) => {
            let element = v.first().map_or(
                cupola::TensorType::scalar(cupola::DType::F32).into(),
                kind_of,
            );
            cupola::ValueType::Sequence(Box::new(element))
        }
        Value::Optional(v) => {
            let element = v
                .as_ref()
                .map_or(cupola::TensorType::scalar(cupola::DType::F32).into(), |v| {
                    kind_of(v)
                });
            cupola::ValueType::Optional(Box::new(element))
        }
    }
}

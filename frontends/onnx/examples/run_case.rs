//! Runs the cases of a suite folder on the reference interpreter: `run_case SUITE [SUBSTRING]`.
//!
//! One line per case that does not pass, then counts.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use common::{compare, import_for};
use cupola_ir::tensor::Value;
use cupola_ir::{eval, verify};
use cupola_onnx::{ImportError, Model, Value as FileValue, ValueKind, value_from_file};

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let mut args = std::env::args().skip(1);
    let suite = args.next().expect("a suite folder");
    let part = args.next().unwrap_or_default();
    let text = std::fs::read_to_string(format!("{suite}/manifest.json")).expect("manifest");
    let cases: serde_json::Value = serde_json::from_str(&text).expect("json");
    let cases = cases
        .as_array()
        .or(cases["cases"].as_array())
        .expect("a list");
    let mut counts = BTreeMap::<&str, usize>::new();
    for case in cases {
        let name = case["name"].as_str().expect("name").to_string();
        if !name.contains(&part) {
            continue;
        }
        let tolerance = (
            case["rtol"].as_f64().unwrap_or(0.0),
            case["atol"].as_f64().unwrap_or(0.0),
        );
        let folder = format!("{suite}/{name}");
        let start = Instant::now();
        let outcome = catch_unwind(|| run(Path::new(&folder), tolerance));
        let outcome = outcome.unwrap_or_else(|p| {
            let text = p.downcast_ref::<String>().cloned();
            (
                "panic",
                text.or(p.downcast_ref::<&str>().map(|s| s.to_string()))
                    .unwrap_or_default(),
            )
        });
        *counts.entry(outcome.0).or_default() += 1;
        let seconds = start.elapsed().as_secs_f64();
        if outcome.0 != "pass" || seconds > 5.0 {
            println!("{name} {}: {} ({seconds:.1} s)", outcome.0, outcome.1);
        }
    }
    println!("{counts:?}");
}

fn run(folder: &Path, tolerance: (f64, f64)) -> (&'static str, String) {
    let model = match Model::open(folder.join("model.onnx")) {
        Ok(m) => m,
        Err(e) => return ("read", e.to_string()),
    };
    let stored: Vec<&str> = model.graph().initializer.iter().map(|t| t.name()).collect();
    let inputs: Vec<_> = model
        .graph()
        .input
        .iter()
        .filter(|i| !stored.contains(&i.name()))
        .collect();
    for k in 0.. {
        let set = folder.join(format!("test_data_set_{k}"));
        if !set.exists() {
            break;
        }
        let load = |kind: &str, i: usize, ty: Option<&cupola_onnx::proto::TypeProto>| {
            let bytes = std::fs::read(set.join(format!("{kind}_{i}.pb"))).ok()?;
            let kind = ValueKind::of_type(ty?).ok()?;
            value_from_file(FileValue::read(&Bytes::from(bytes), kind).ok()?).ok()
        };
        let mut given = vec![];
        for (i, input) in inputs.iter().enumerate() {
            match load("input", i, input.r#type.as_ref()) {
                Some(v) => given.push((input.name().to_string(), v)),
                None => return ("data", format!("input {i}")),
            }
        }
        let graph = match import_for(&model, &given) {
            Ok(i) => i.graph,
            Err(e @ ImportError::Unsupported(_)) => return ("unsupported", e.to_string()),
            Err(e @ ImportError::NeedsInputs { .. }) => return ("needs", e.to_string()),
            Err(e) => return ("import", e.to_string()),
        };
        if let Err(e) = verify(&graph) {
            return ("verify", e.to_string());
        }
        let values: Vec<Value> = given.into_iter().map(|(_, v)| v).collect();
        let got = match eval::run(&graph, &values, &mut eval::Env::default()) {
            Ok(v) => v,
            Err(e) => return ("run", e.to_string()),
        };
        for (i, output) in model.graph().output.iter().enumerate() {
            let Some(want) = load("output", i, output.r#type.as_ref()) else {
                return ("data", format!("output {i}"));
            };
            if let Err(e) = compare(&got[i], &want, tolerance) {
                return ("fail", format!("output {i}: {e}"));
            }
        }
    }
    ("pass", String::new())
}

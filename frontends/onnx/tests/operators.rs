//! Single operators against stored values: `operators/*.json` hold nodes with operands and results, made by other
//! runtimes or by hand. Each case runs with stated and with open extents.

mod common;
#[path = "common/node.rs"]
mod node;

use common::{compare, import_for};
use cupola_ir::tensor::{Tensor, Value};
use cupola_ir::{eval, verify};
use node::{Extents, OneNode, attribute, tensor};
use serde_json::Value as Json;

fn run(case: &Json, extents: Extents) -> Result<(), String> {
    let optional = |v: &Json| (!v.is_null()).then(|| tensor(v));
    let all = |v: &Json| -> Vec<Option<Tensor>> {
        v.as_array().expect("a list").iter().map(optional).collect()
    };
    let (inputs, outputs) = (all(&case["inputs"]), all(&case["outputs"]));
    let asked: Vec<bool> = outputs.iter().map(Option::is_some).collect();
    let attributes = case["attributes"].as_object().expect("attributes");
    let node = OneNode {
        domain: case["domain"].as_str().expect("a domain"),
        op: case["op"].as_str().expect("an operator"),
        version: case["version"].as_i64().expect("a version"),
        attributes: attributes.iter().map(|(n, v)| attribute(n, v)).collect(),
        inputs: &inputs,
        outputs: &asked,
    };
    let model = node.model(extents).map_err(|e| e.to_string())?;
    let present = inputs.iter().enumerate();
    let given: Vec<(String, Value)> = present
        .filter_map(|(i, t)| Some((format!("x{i}"), Value::Tensor(t.clone()?))))
        .collect();
    let graph = import_for(&model, &given).map_err(|e| e.to_string())?.graph;
    verify(&graph).map_err(|e| e.to_string())?;
    let values: Vec<Value> = given.into_iter().map(|(_, v)| v).collect();
    let got = eval::run(&graph, &values, &mut eval::Env::default()).map_err(|e| e.to_string())?;
    let tolerance = (
        case["rtol"].as_f64().expect("rtol"),
        case["atol"].as_f64().expect("atol"),
    );
    let want = outputs.into_iter().flatten();
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        compare(got, &Value::Tensor(want), tolerance).map_err(|e| format!("result {i}: {e}"))?;
    }
    Ok(())
}

fn check(text: &str) {
    let cases: Vec<Json> = serde_json::from_str(text).expect("a list of cases");
    assert!(!cases.is_empty());
    let mut wrong = vec![];
    for case in &cases {
        for extents in [Extents::Stated, Extents::Open] {
            if let Err(e) = run(case, extents) {
                wrong.push(format!("{} ({extents:?}): {e}", case["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn images_are_sampled_pooled_and_folded() {
    check(include_str!("operators/vision.json"));
}

#[test]
fn classical_models_are_evaluated() {
    check(include_str!("operators/ml.json"));
}

#[test]
fn fused_operators_of_exporters_are_taken_apart() {
    check(include_str!("operators/contrib.json"));
}

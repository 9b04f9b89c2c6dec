//! Imports every case of a suite folder and counts what fails: `import_case SUITE [PREFIX]`.

use cupola_ir::verify;
use cupola_onnx::{ImportError, ImportOptions, Model, import};

fn main() {
    let mut args = std::env::args().skip(1);
    let suite = args.next().unwrap_or_default();
    let prefix = args.next().unwrap_or_default();
    let text = std::fs::read_to_string(format!("{suite}/manifest.json")).expect("manifest");
    let cases: serde_json::Value = serde_json::from_str(&text).expect("json");
    let cases = cases.as_array().cloned().unwrap_or_else(|| cases["cases"].as_array().cloned().unwrap_or_default());
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for case in &cases {
        let name = case["name"].as_str().unwrap_or_default();
        if !name.starts_with(&prefix) {
            continue;
        }
        let path = format!("{suite}/{name}/model.onnx");
        let outcome = match Model::open(&path) {
            Err(e) => format!("read: {e}"),
            Ok(model) => match import(&model, &ImportOptions::default()) {
                Ok(i) => match verify(&i.graph) {
                    Ok(()) => "ok".to_string(),
                    Err(e) => format!("verify: {e}"),
                },
                Err(e @ ImportError::NeedsInputs { .. }) => format!("needs: {e}"),
                Err(e) => format!("{:?}: {e}", e.fault()),
            },
        };
        let kind = outcome.split(':').next().unwrap_or_default().to_string();
        *counts.entry(kind.clone()).or_default() += 1;
        if kind != "ok" {
            println!("{name}: {outcome}");
        }
    }
    println!("{counts:?}");
}

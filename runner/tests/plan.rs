//! `cupola plan` says before a run what memory the run takes.
//!
//! Models outside the repository lie in the folder that `CUPOLA_TEST_MODELS` names, as `scripts/fetch_models.py` lays
//! them out; those that are not there are not checked, and the test says so.

use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A model and inputs for it.
type Case = (&'static str, &'static [&'static str]);

const FETCHED: &[Case] = &[
    (
        "minilm-l6-v2-int8/model.onnx",
        &[
            "input_ids=2x64xi64:zeros",
            "attention_mask=2x64xi64:zeros",
            "token_type_ids=2x64xi64:zeros",
        ],
    ),
    (
        "resnet50-thin/model.onnx",
        &["input_0=2x224x224x3xf32:rand"],
    ),
    ("ppocr-v4/det.onnx", &["x=1x3x96x160xf32:rand"]),
    ("ppocr-v4/cls.onnx", &["x=3x3x48x192xf32:rand"]),
];

fn cupola(args: &[&str]) -> Json {
    let out = Command::new(env!("CARGO_BIN_EXE_cupola"))
        .args(args)
        .output()
        .expect("cupola starts");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{args:?}: {errors}");
    let start = text.find('{').expect("a document");
    serde_json::from_str(&text[start..]).expect("a document")
}

fn bytes(document: &Json, key: &str) -> f64 {
    document[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} in {document}"))
}

/// The plan and the counters of a run agree within 3%: weights and the forms in which units hold them, working memory,
/// outputs.
fn holds(model: &Path, inputs: &[&str]) {
    let model = model.to_str().expect("a path that is text");
    let mut given = vec![];
    inputs.iter().for_each(|i| given.extend(["-i", *i]));
    let plan = cupola(&[&["plan", model, "--json", "-"], &given[..]].concat());
    let stats = cupola(&[&["run", model, "--stats", "json"], &given[..]].concat());
    for (planned, used) in [("total", "peak_bytes_used"), ("weights", "weight_bytes")] {
        let (planned, used) = (bytes(&plan, planned), bytes(&stats, used));
        assert!(
            (planned - used).abs() <= 0.03 * used,
            "{model}: {planned} planned, {used} used"
        );
    }
}

#[test]
fn planned_bytes_are_the_bytes_of_a_run() {
    let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits/digits.onnx");
    holds(&digits, &["image=5x1x28x28xf32:rand"]);
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS").map(PathBuf::from) else {
        eprintln!("CUPOLA_TEST_MODELS is not set: only one model is checked");
        return;
    };
    for (name, inputs) in FETCHED {
        let model = folder.join(name);
        if model.exists() {
            holds(&model, inputs);
        } else {
            eprintln!("{name} was not fetched");
        }
    }
}

#[test]
fn sizes_are_said_and_bind_the_plan() {
    let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits/digits.onnx");
    let digits = digits.to_str().expect("a path that is text");
    let one = cupola(&["plan", digits, "--json", "-"]);
    assert_eq!(one["unset"], serde_json::json!(["batch"]));
    assert_eq!(one["sizes"]["batch"], 1);
    let eight = cupola(&[
        "plan",
        digits,
        "-i",
        "image=8x1x28x28xf32:zeros",
        "--json",
        "-",
    ]);
    assert_eq!(
        (&eight["sizes"]["batch"], &eight["unset"]),
        (&8.into(), &serde_json::json!([]))
    );
    assert_eq!(eight["weights"], one["weights"]);
    assert_eq!(bytes(&eight, "outputs"), 8.0 * bytes(&one, "outputs"));
    assert!(bytes(&eight, "activations") > 4.0 * bytes(&one, "activations"));
}

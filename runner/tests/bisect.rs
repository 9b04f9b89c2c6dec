//! `cupola bisect` on faults that are compiled in on purpose: it finds them, and its reproducers reproduce.

mod support;

use serde_json::Value as Json;
use std::path::Path;
use support::{Folder, repository, run, text};

/// Layer norm, GELU, a mask, a softmax, products, reductions and sums with operands in memory: something for every fault.
const MIXED: &str = r#"graph @mixed {
  %0 = input {name: "x", ty: f32[$n, 8]} : f32[$n, 8] "x"
  %1 = input {name: "bias", ty: f32[8]} : f32[8] "bias"
  %2 = const {value: tensor f32[8] [0.5, 1.5, -1.0, 2.0, 0.25, -0.75, 1.25, 3.0]}
  %3 = composite.layer_norm(%0, %2, %1) {axis: 1, epsilon: 1e-5, stats: false} : f32[$n, 8] "normed"
  %4 = const {value: tensor f32[1, 1] [0.35]}
  %5 = broadcast(%4) {dims: [$n, 8]}
  %6 = map(%3, %5) {f: "mul"} : f32[$n, 8] "scaled"
  %7 = composite.gelu(%6) {tanh: false} : f32[$n, 8] "gelu"
  %8 = reshape(%1) {dims: [1, 8]}
  %9 = broadcast(%8) {dims: [$n, 8]}
  %10 = map(%7, %9) {f: "lt"}
  %11 = map(%0, %0) {f: "mul"}
  %12 = map(%10, %7, %11) {f: "select"} : f32[$n, 8] "selected"
  %13 = contract(%12, %0) {lhs_batch: [], rhs_batch: [], lhs_contract: [1], rhs_contract: [1], accum: f32, out: f32} : f32[$n, $n] "scores"
  %14 = composite.softmax(%13) {axis: 1, log: false} : f32[$n, $n] "weights"
  %15 = contract(%14, %7) {lhs_batch: [], rhs_batch: [], lhs_contract: [1], rhs_contract: [0], accum: f32, out: f32} : f32[$n, 8] "mixed"
  %16 = map(%15, %0) {f: "sub"} : f32[$n, 8] "residual"
  %17 = map(%16, %9) {f: "add"} : f32[$n, 8] "biased"
  %18 = reduce(%17) {kind: "max", axes: [1], accum: f32} : f32[$n] "largest"
  %19 = reduce(%17) {kind: "sum", axes: [1], accum: f32} : f32[$n] "total"
  return "largest" = %18, "total" = %19, "biased" = %17
}
"#;

/// A product with a bias and an activation, twice: its epilogues are fused.
const LAYERS: &str = r#"graph @layers {
  %0 = input {name: "x", ty: f32[$n, 16]} : f32[$n, 16] "x"
  %1 = input {name: "w", ty: f32[16, 16]} : f32[16, 16] "w"
  %2 = input {name: "v", ty: f32[16, 16]} : f32[16, 16] "v"
  %3 = input {name: "b", ty: f32[1, 16]} : f32[1, 16] "b"
  %4 = contract(%0, %1) {lhs_batch: [], rhs_batch: [], lhs_contract: [1], rhs_contract: [0], accum: f32, out: f32}
  %5 = broadcast(%3) {dims: [$n, 16]}
  %6 = map(%4, %5) {f: "add"} : f32[$n, 16] "biased"
  %7 = map(%6) {f: "tanh"} : f32[$n, 16] "hidden"
  %8 = contract(%7, %2) {lhs_batch: [], rhs_batch: [], lhs_contract: [1], rhs_contract: [0], accum: f32, out: f32}
  %9 = map(%8, %0) {f: "add"} : f32[$n, 16] "residual"
  return "y" = %9
}
"#;

const MIXED_INPUTS: &[&str] = &["-i", "x=6x8xf32:rand", "-i", "bias=8xf32:rand"];
const LAYERS_INPUTS: &[&str] = &[
    "-i",
    "x=9x16xf32:rand",
    "-i",
    "w=16x16xf32:rand",
    "-i",
    "v=16x16xf32:rand",
    "-i",
    "b=1x16xf32:rand",
];
const DIGITS_INPUTS: &[&str] = &["-i", "image=examples/digits/seven.png"];

/// Bisects, checks the reproducer, and gives what was found.
fn bisect(folder: &Path, model: &str, inputs: &[&str], fault: &str) -> Json {
    let out = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (graph, report) = (out("small.cup"), out("report.json"));
    let place = ["-o", &graph, "--json", &report, "--fault", fault];
    let found = run(&[&["bisect", model], inputs, &place].concat());
    assert_eq!(
        found.status.code(),
        Some(6),
        "{model} {fault}: {}",
        text(&found.stderr)
    );
    let report = std::fs::read_to_string(&report).expect("a report");
    let report: Json = serde_json::from_str(&report).expect("JSON");
    let nodes = report["reproducer_nodes"].as_u64().expect("a count");
    assert!((1..=5).contains(&nodes), "{model} {fault}: {report}");

    let data = report["inputs"].as_str().expect("a folder");
    let again = [
        "compare",
        &graph,
        "--inputs",
        data,
        "--devices",
        "reference,cpu",
    ];
    let wrong = run(&[&again[..], &["--fault", fault]].concat());
    assert_eq!(
        wrong.status.code(),
        Some(6),
        "{model} {fault}: {}",
        text(&wrong.stderr)
    );
    let right = run(&again);
    assert_eq!(
        right.status.code(),
        Some(0),
        "{model} {fault}: {}",
        text(&right.stderr)
    );
    report
}

#[test]
fn seeded_faults_are_found_and_reproduced_by_a_few_nodes() {
    let folder = Folder::new("bisect");
    let mixed = folder.write("mixed.cup", MIXED);
    let layers = folder.write("layers.cup", LAYERS);
    let digits = "examples/digits/digits.onnx".to_string();
    let cases: &[(&str, &String, &[&str])] = &[
        ("dropped-scale", &mixed, MIXED_INPUTS),
        ("swapped-operands", &mixed, MIXED_INPUTS),
        ("inverted-select", &mixed, MIXED_INPUTS),
        ("wrong-constant", &mixed, MIXED_INPUTS),
        ("short-reduction", &mixed, MIXED_INPUTS),
        ("max-becomes-min", &mixed, MIXED_INPUTS),
        ("shifted-load", &mixed, MIXED_INPUTS),
        ("narrowed-store", &mixed, MIXED_INPUTS),
        ("wrong-function", &layers, LAYERS_INPUTS),
        ("dropped-bias", &layers, LAYERS_INPUTS),
        ("add-becomes-sub", &layers, LAYERS_INPUTS),
        ("lost-epilogue", &layers, LAYERS_INPUTS),
        ("swapped-buffers", &layers, LAYERS_INPUTS),
        ("swapped-operands", &digits, DIGITS_INPUTS),
        ("max-becomes-min", &digits, DIGITS_INPUTS),
        ("lost-epilogue", &digits, DIGITS_INPUTS),
    ];
    for (fault, model, inputs) in cases {
        bisect(&folder.0, model, inputs, fault);
    }
}

#[test]
fn the_node_with_the_fault_is_named() {
    let folder = Folder::new("bisect-name");
    let mixed = folder.write("mixed.cup", MIXED);
    let found = bisect(&folder.0, &mixed, MIXED_INPUTS, "inverted-select");
    let detail = |found: &Json| found["detail"].as_str().expect("text").to_string();
    assert!(detail(&found).starts_with("selected"), "{found}");
    let layers = folder.write("layers.cup", LAYERS);
    let found = bisect(&folder.0, &layers, LAYERS_INPUTS, "wrong-function");
    assert!(detail(&found).starts_with("hidden"), "{found}");
}

#[test]
fn no_fault_is_found_where_there_is_none() {
    let out = run(&[&["bisect", "examples/digits/digits.onnx"], DIGITS_INPUTS].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("no difference"));
    let unknown = run(&[
        "bisect",
        &repository()
            .join("examples/digits/digits.onnx")
            .to_string_lossy(),
        "--fault",
        "gremlin",
    ]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("error[usage]"));
}

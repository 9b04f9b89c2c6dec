//! `cupola profile` on a shipped model: the table, the trace and the page.

mod support;

use serde_json::Value as Json;
use std::sync::{Mutex, MutexGuard};
use support::{Folder, cupola, run, text};

const MODEL: &[&str] = &[
    "profile",
    "examples/digits/digits.onnx",
    "-i",
    "image=examples/digits/seven.png",
    "--runs",
    "5",
];

/// Held while a process measures: beside others it would find a slower machine than the one its kernels ran on.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn profile(more: &[&str]) -> String {
    let _alone = alone();
    // Minimal filtering does with fewer operations than are counted, so that a limit would be none.
    let mut command = cupola(&[MODEL, more].concat());
    let out = command
        .env("CUPOLA_WINOGRAD", "off")
        .output()
        .expect("cupola starts");
    assert!(out.status.success(), "{more:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

fn number(json: &Json) -> f64 {
    json.as_f64().unwrap_or_else(|| panic!("no number: {json}"))
}

#[test]
fn the_document_accounts_for_the_time_of_a_run() {
    let document: Json = serde_json::from_str(&profile(&["--json"])).expect("a document");
    let steps = document["steps"].as_array().expect("steps");
    assert!(steps.len() > 5, "{document}");
    let mut sum = 0.0;
    for step in steps {
        let ms = number(&step["ms"]);
        sum += ms;
        assert!(ms > 0.0 && number(&step["calls"]) == 1.0, "{step}");
        assert_eq!(step["kind"], "kernel");
        assert_eq!(step["device"], "cpu");
        assert!(number(&step["bytes"]) > 0.0, "{step}");
        // A limit above what was measured would be no limit; some slack for a disturbed machine.
        assert!(number(&step["fraction"]) < 1.5, "{step}");
        let own = number(&step["step"]);
        let reads = step["reads"].as_array().expect("reads");
        assert!(reads.iter().all(|r| number(r) < own), "{step}");
    }
    let convolutions = |s: &&Json| s["sources"][0]["op"] == "Conv";
    assert!(
        steps
            .iter()
            .filter(convolutions)
            .all(|s| number(&s["flops"]) > 1e5)
    );
    assert!(steps.iter().any(|s| s["sources"][0]["op"] == "Conv"));
    let total = number(&document["run_ms"]);
    let overhead = number(&document["overhead_ms"]);
    assert!(
        (sum + overhead - total).abs() < 1e-6 || overhead == 0.0,
        "{document}"
    );
    assert!(number(&document["machine"]["f32_gflop_s"]) > 0.1);
}

#[test]
fn the_table_ends_with_what_is_outside_of_kernels() {
    let table = profile(&["--rows", "2"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[2].starts_with("kernel"), "{table}");
    let last: Vec<&str> = lines[lines.len() - 3..].to_vec();
    assert!(last[0].contains("others"), "{table}");
    assert!(last[1].starts_with("outside of kernels"), "{table}");
    assert!(last[2].starts_with("run"), "{table}");
    // Convolutions of equal form make one row.
    let named = profile(&["--by-name", "--rows", "0"]);
    assert!(named.lines().count() < profile(&["--rows", "0"]).lines().count());
}

#[test]
fn the_trace_has_a_track_for_the_host_and_one_for_the_device() {
    let folder = Folder::new("trace");
    let path = folder.path("trace.json");
    profile(&["--trace", &path]);
    let trace = std::fs::read_to_string(&path).expect("a trace");
    let trace: Json = serde_json::from_str(&trace).expect("a trace");
    let events = trace["traceEvents"].as_array().expect("events");
    let named = |name: &str| {
        let found = events
            .iter()
            .find(|e| e["ph"] == "M" && e["args"]["name"] == name);
        found.unwrap_or_else(|| panic!("no track {name}"))["tid"].clone()
    };
    let (host, device) = (named("host"), named("cpu kernels"));
    assert_ne!(host, device);
    let run = events.iter().find(|e| e["name"] == "run").expect("the run");
    assert_eq!(run["tid"], host);
    let end = number(&run["dur"]);
    let kernels: Vec<&Json> = events.iter().filter(|e| e["cat"] == "kernel").collect();
    assert!(kernels.len() > 5);
    let mut before = 0.0;
    for kernel in kernels {
        assert_eq!(kernel["tid"], device);
        let start = number(&kernel["ts"]);
        assert!(
            start >= before,
            "kernels of one device follow each other: {kernel}"
        );
        before = start + number(&kernel["dur"]);
        assert!(before <= end, "{kernel}");
        assert!(kernel["args"]["bytes"].is_u64() && kernel["args"]["sources"].is_array());
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let folder = Folder::new("page");
    let path = folder.path("page.html");
    profile(&["--html", &path]);
    let page = std::fs::read_to_string(&path).expect("a page");
    for part in [
        "Kernels by time",
        "Roofline",
        "Working memory",
        "Graph of kernels",
        "Add conv3",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    for foreign in [
        "http:", "https:", "<script", "src=", "@import", "NaN", "inf",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[test]
fn the_interpreter_has_nothing_to_profile() {
    let _alone = alone();
    let out = run(&[MODEL, &["--device", "reference"]].concat());
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).starts_with("error[usage]"));
}

#[test]
fn the_time_of_a_loop_is_that_of_its_region() {
    let folder = Folder::new("loop");
    let path = folder.write(
        "loop.cup",
        r#"graph @loop {
  %0 = input {name: "trips", ty: i64[]} : i64[] "trips"
  %1 = input {name: "c", ty: f32[$n]} : f32[$n] "c"
  %2 = const {value: tensor bool[] [true]}
  %3 = loop(%0, %2, %1) {body: graph @body {
    %0 = input {name: "i", ty: i64[]} : i64[] "i"
    %1 = input {name: "c", ty: f32[$n]} : f32[$n] "c"
    %2 = map(%1) {f: "sqrt"}
    %3 = const {value: tensor bool[] [true]}
    return "go" = %3, "next" = %2
  }, carried: 1, results: [f32[$n]], binds: []}
  return "last" = %3
}"#,
    );
    let trips = folder.write("trips.npy", "");
    let mut scalar = b"\x93NUMPY\x01\x00".to_vec();
    let header = format!(
        "{:<117}\n",
        "{'descr': '<i8', 'fortran_order': False, 'shape': ()}"
    );
    scalar.extend((header.len() as u16).to_le_bytes());
    scalar.extend(header.as_bytes());
    scalar.extend(7i64.to_le_bytes());
    std::fs::write(&trips, scalar).expect("a file");
    let trips = format!("trips={trips}");
    let _alone = alone();
    let out = run(&[
        "profile",
        &path,
        "-i",
        &trips,
        "-i",
        "c=1000000xf32:zeros",
        "--runs",
        "3",
        "--json",
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let document: Json = serde_json::from_str(&text(&out.stdout)).expect("a document");
    let steps = document["steps"].as_array().expect("steps");
    let of = |kind: &str, plan: u64| {
        let found = steps
            .iter()
            .find(|s| s["kind"] == kind && s["plan"] == plan);
        found.unwrap_or_else(|| panic!("no {kind} of plan {plan}: {document}"))
    };
    let (control, root) = (of("control", 0), of("kernel", 1));
    assert_eq!(root["calls"], 7);
    assert_eq!(root["bytes"], 7 * 8_000_000);
    assert_eq!(root["flops"], 7_000_000);
    assert!(number(&control["ms"]) < number(&root["ms"]), "{document}");
}

#[test]
fn kernels_of_a_gpu_are_timed_by_its_clock() {
    if std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_none() {
        return;
    }
    let folder = Folder::new("gpu-trace");
    let path = folder.path("trace.json");
    let document = profile(&["--device", "gpu", "--json", "--trace", &path]);
    let document: Json = serde_json::from_str(&document).expect("a document");
    let steps = document["steps"].as_array().expect("steps");
    let kernels: Vec<&Json> = steps.iter().filter(|s| s["device"] == "gpu").collect();
    assert!(kernels.len() > 5, "{document}");
    let ms: f64 = kernels.iter().map(|k| number(&k["ms"])).sum();
    assert!(kernels.iter().all(|k| k["device_clock"] == true));
    assert!(
        ms > 0.0 && ms <= number(&document["recorded_ms"]),
        "{document}"
    );
    let trace = std::fs::read_to_string(&path).expect("a trace");
    let trace: Json = serde_json::from_str(&trace).expect("a trace");
    let events = trace["traceEvents"].as_array().expect("events");
    let track = events.iter().find(|e| e["args"]["name"] == "gpu kernels");
    let track = &track.expect("a track")["tid"];
    let spans = events
        .iter()
        .filter(|e| e["cat"] == "kernel" && e["tid"] == *track);
    let mut before = 0.0;
    for span in spans {
        let start = number(&span["ts"]);
        assert!(
            start >= before,
            "one queue, one kernel after another: {span}"
        );
        before = start;
    }
    assert!(before > 0.0);
}

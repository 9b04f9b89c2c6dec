//! `cupola bench --suite`: what it writes is what the schema says, and can be compared, joined and drawn.

mod support;

use serde_json::Value as Json;
use support::{Folder, repository, run, text};

/// Checks a value against a schema; panics with the place that does not fit. Keywords that it does not know are a failure,
/// so that nothing in the schema goes unchecked.
fn check(value: &Json, schema: &Json, place: &str) {
    for (keyword, wanted) in schema.as_object().expect("a schema is an object") {
        let fits = match keyword.as_str() {
            "$schema" | "title" | "description" => true,
            "const" => value == wanted,
            "enum" => wanted.as_array().expect("a list").contains(value),
            "type" => has_type(value, wanted),
            "minimum" => value
                .as_f64()
                .is_none_or(|v| v >= wanted.as_f64().expect("a number")),
            "exclusiveMinimum" => value
                .as_f64()
                .is_none_or(|v| v > wanted.as_f64().expect("a number")),
            "minItems" => value
                .as_array()
                .is_some_and(|v| v.len() as u64 >= wanted.as_u64().expect("a number")),
            "required" => {
                let names = wanted.as_array().expect("a list");
                names.iter().all(|name| {
                    !value[name.as_str().expect("a name")].is_null() || nullable(schema, name)
                })
            }
            "properties" | "additionalProperties" => members(value, schema, place),
            "items" => {
                let items = value.as_array().expect("an array").iter().enumerate();
                items.for_each(|(i, item)| check(item, wanted, &format!("{place}[{i}]")));
                true
            }
            other => panic!("{place}: the schema's keyword '{other}' is not checked"),
        };
        assert!(fits, "{place}: {value} does not fit {keyword} {wanted}");
    }
}

fn has_type(value: &Json, wanted: &Json) -> bool {
    let one = |name: &Json| match name.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    wanted
        .as_array()
        .map_or_else(|| one(wanted), |all| all.iter().any(one))
}

/// Whether a member may be null.
fn nullable(schema: &Json, name: &Json) -> bool {
    let types = &schema["properties"][name.as_str().expect("a name")]["type"];
    types
        .as_array()
        .is_some_and(|all| all.contains(&Json::from("null")))
}

fn members(value: &Json, schema: &Json, place: &str) -> bool {
    let members = value.as_object().expect("an object");
    for (name, member) in members {
        let place = format!("{place}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (own, _) if own.is_object() => check(member, own, &place),
            (_, others) if others.is_object() => check(member, others, &place),
            (_, Json::Bool(false)) => panic!("{place} is not in the schema"),
            _ => {}
        }
    }
    true
}

fn measured(device: &str, only: &str, path: &str) -> Json {
    let out = run(&[
        "bench", "--suite", "--device", device, "--match", only, "-o", path,
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let written = std::fs::read_to_string(path).expect("a file");
    assert_eq!(
        written.lines().count(),
        1,
        "one line, so that files can be joined"
    );
    serde_json::from_str(&written).expect("JSON")
}

fn schema() -> Json {
    let path = repository().join("docs/suite.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the schema")).expect("JSON")
}

#[test]
fn results_fit_the_schema_and_come_together_in_one_page() {
    let folder = Folder::new("suite");
    let (one, two, both) = (
        folder.path("one.json"),
        folder.path("two.json"),
        folder.path("both.jsonl"),
    );
    let results = measured("cpu", "16x64", &one);
    check(&results, &schema(), "results");
    let rows = results["rows"].as_array().expect("rows");
    assert!(rows.len() >= 2, "{results}");
    for row in rows {
        let number = |name: &str| row[name].as_f64().expect("a number");
        let speed = number("flops") / number("median_ms") / 1e6;
        assert!((number("gflop_s") - speed).abs() <= 1e-6 * speed, "{row}");
        assert!(
            row["fallback"].as_array().is_some_and(Vec::is_empty),
            "{row}"
        );
    }
    measured("cpu", "16x64", &two);
    let page = folder.path("page.html");
    let out = run(&[
        "bench", "compare", &one, &two, "--merge", &both, "--html", &page,
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("softmax f32 16x64"));
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("<svg") && page.contains("softmax f32 16x64"));
    assert!(
        !page.contains("http") && !page.contains("<script"),
        "self-contained"
    );
    let joined = run(&["bench", "compare", &both]);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    assert!(text(&joined.stdout).contains("factor"));
}

#[test]
fn a_gpu_is_measured_as_the_cpu_is() {
    let devices = run(&["devices", "--json"]);
    if !text(&devices.stdout).contains("\"gpu\"") {
        let required = std::env::var("CUPOLA_TEST_REQUIRE_GPU").is_ok_and(|v| v == "1");
        assert!(
            !required,
            "CUPOLA_TEST_REQUIRE_GPU=1, but there is no adapter"
        );
        return;
    }
    let folder = Folder::new("suite-gpu");
    let results = measured("gpu", "16x64", &folder.path("gpu.json"));
    check(&results, &schema(), "results");
    assert_eq!(results["machine"]["device"], "gpu");
    let f16 = results["machine"]["facts"]["features"]
        .as_str()
        .expect("features")
        .contains("f16");
    assert!(
        results["measured"]["f16_gflop_s"].is_number() || !f16,
        "{results}"
    );
}

#[test]
fn what_is_no_device_or_no_case_is_refused() {
    for arguments in [
        &["--device", "auto"][..],
        &["--device", "reference"],
        &["--match", "no such case"],
        &["model.onnx"],
    ] {
        let out = run(&[&["bench", "--suite"], arguments].concat());
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
    }
    let folder = Folder::new("suite-bad");
    let bad = folder.write("bad.json", "{\"schema\": \"cupola-suite-1\", \"rows\": []}");
    let out = run(&["bench", "compare", &bad, &bad]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
}

/// The cells of the lines of a forecast, without the table's head.
fn forecast(gpu: &str, only: &str) -> Vec<Vec<String>> {
    let out = run(&["bench", "--suite", "--forecast", gpu, "--match", only]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let printed = text(&out.stdout);
    let lines = printed.lines().filter(|line| line.starts_with('|')).skip(2);
    lines
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|c| c.trim().to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn a_forecast_needs_no_gpu_and_counts_what_a_product_is() {
    let case = "matmul f16 4096x4096x4096";
    let [full, base] = ["h200", "h200,base"].map(|gpu| forecast(gpu, case).remove(0));
    // Three matrices of two bytes an element; 4096 cubed multiply-adds.
    for line in [&full, &base] {
        assert_eq!(line[..3], [case, "100.66", "137439.0"]);
    }
    assert!(full[5].contains("cooperative"), "{full:?}");
    assert!(!base[5].contains("cooperative"), "{base:?}");
    let micros = |line: &[String]| line[3].parse::<f64>().expect("a number");
    assert!(micros(&full) < micros(&base), "{full:?} {base:?}");
    // A copy of 134 MB at 4.3 TB/s.
    let copy = forecast("h200", "negate f32 4096x4096").remove(0);
    assert!((30.0..40.0).contains(&micros(&copy)), "{copy:?}");
}

#[test]
fn unknown_gpus_are_answered_with_the_known_ones() {
    let out = run(&["bench", "--suite", "--forecast", "abacus"]);
    assert_eq!(out.status.code(), Some(2));
    let said = text(&out.stderr);
    assert!(said.contains("'abacus'") && said.contains("h200"), "{said}");
}

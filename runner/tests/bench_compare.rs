//! `cupola bench compare` on recorded timings.

mod support;

use serde_json::{Value as Json, json};
use support::{Folder, run, text};

/// Timings of a quiet machine: a floor with a skewed spread, and an interruption now and then.
fn samples(seed: u64, base: f64) -> Vec<f64> {
    let one = |i: u64| {
        let noise = ((i * 7919 + seed * 104_729) % 997) as f64 / 997.0;
        let stop = if (i + seed).is_multiple_of(29) {
            2.5
        } else {
            1.0
        };
        base * (1.0 + 0.02 * noise * noise) * stop
    };
    (0..60).map(one).collect()
}

fn results(rows: &[(&str, Vec<f64>)], machine: &str) -> String {
    let row = |(name, samples): &(&str, Vec<f64>)| json!({ "name": name, "samples_ms": samples });
    let rows: Vec<Json> = rows.iter().map(row).collect();
    json!({ "machine": { "name": machine }, "rows": rows }).to_string()
}

#[test]
fn a_planted_slowdown_is_named_and_noise_is_not() {
    let folder = Folder::new("compare");
    let before = results(
        &[
            ("steady", samples(1, 2.0)),
            ("worse", samples(2, 5.0)),
            ("better", samples(3, 1.0)),
        ],
        "m",
    );
    let after = results(
        &[
            ("steady", samples(4, 2.02)),
            ("worse", samples(5, 5.5)),
            ("better", samples(6, 0.8)),
        ],
        "m",
    );
    let (before, after) = (
        folder.write("before.json", &before),
        folder.write("after.json", &after),
    );
    let out = run(&["bench", "compare", &before, &after]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let table = text(&out.stdout);
    let line = |name: &str| {
        table
            .lines()
            .find(|l| l.starts_with(name))
            .expect("a row")
            .to_string()
    };
    assert!(line("worse").ends_with("slower"), "{table}");
    assert!(line("better").ends_with("faster"), "{table}");
    assert!(!line("steady").ends_with("er"), "{table}");
    let out = run(&["bench", "compare", &before, &after, "--check"]);
    assert_eq!(out.status.code(), Some(6));
    let out = run(&["bench", "compare", &before, &before, "--check", "--json"]);
    assert!(out.status.success());
    let document: Json = serde_json::from_str(&text(&out.stdout)).expect("a document");
    assert_eq!(document["rows"][0]["against_first"][0]["factor"], 1.0);
}

#[test]
fn files_of_several_machines_make_one_table() {
    let folder = Folder::new("machines");
    let one = folder.write("one.json", &results(&[("a", samples(1, 2.0))], "m"));
    let lines = [("a", 1.0), ("b", 3.0)]
        .map(|(n, base)| json!({ "name": n, "samples_ms": samples(2, base) }).to_string());
    let two = folder.write("two.jsonl", &lines.join("\n"));
    let three = folder.write("three.json", &results(&[("b", samples(3, 4.0))], "n"));
    let out = run(&["bench", "compare", &one, &two, &three]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let table = text(&out.stdout);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table
            .lines()
            .nth(2)
            .is_some_and(|l| l.starts_with("b") && l.contains(" - ")),
        "{table}"
    );
    assert!(text(&out.stderr).contains("different machines"));
}

#[test]
fn what_bench_writes_is_read_and_other_files_are_refused() {
    let folder = Folder::new("written");
    let path = folder.path("digits.json");
    let out = run(&[
        "bench",
        "examples/digits/digits.onnx",
        "--iterations",
        "6",
        "--warmup",
        "0",
        "--json",
        &path,
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = run(&["bench", "compare", &path, &path]);
    assert!(
        text(&out.stdout).contains("digits.onnx"),
        "{}",
        text(&out.stderr)
    );
    for (contents, status) in [
        ("{", 3),
        ("{}", 3),
        ("{\"samples_ms\": [-1]}", 3),
        ("{\"samples_ms\": []}", 3),
    ] {
        let bad = folder.write("bad.json", contents);
        let out = run(&["bench", "compare", &path, &bad]);
        assert_eq!(out.status.code(), Some(status), "{contents}");
        assert!(
            text(&out.stderr).starts_with("error[malformed]"),
            "{contents}"
        );
    }
    assert_eq!(run(&["bench", "compare", &path]).status.code(), Some(2));
}

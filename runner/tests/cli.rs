//! The command line as a user sees it: real models, the ONNX suite, malformed files.
//!
//! Data outside the repository is named by environment variables that `scripts/test.sh` sets; a test whose variable is
//! not set checks nothing and says so, a test whose variable is set fails when something is missing.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Folder, repository, run, text};

fn data(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        eprintln!("{variable} is not set: nothing is checked");
    }
    found
}

fn has_gpu() -> bool {
    std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_some()
}

#[test]
fn an_unknown_setting_is_one_clear_error() {
    for (variable, allowed) in [
        ("CUPOLA_GPU_TIER", "base, full, experimental"),
        ("CUPOLA_GPU_FORMS", "chosen, parallel, plain"),
    ] {
        for command in [&["devices"][..], &["doctor"]] {
            let out = with_variables(command, &[(variable, "fast")]);
            assert_eq!(out.status.code(), Some(2));
            let want = format!("error[usage]: {variable} is 'fast', which is none of {allowed}\n");
            assert_eq!(text(&out.stderr), want);
        }
    }
}

/// Runs to the end with environment variables.
fn with_variables(args: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = support::cupola(args);
    command.envs(variables.iter().copied());
    command.output().expect("cupola starts")
}

#[test]
fn a_failing_driver_is_one_line_and_status_1() {
    if !has_gpu() {
        return;
    }
    let args = [
        "run",
        "examples/digits/digits.onnx",
        "-i",
        "image=examples/digits/seven.png",
        "--device",
        "gpu",
    ];
    for failure in [
        "allocation:1",
        "allocation:9",
        "pipeline:3",
        "submission:1",
        "map:1",
    ] {
        let out = with_variables(&args, &[("CUPOLA_GPU_FAIL", failure)]);
        assert_eq!(
            out.status.code(),
            Some(1),
            "{failure}: {}",
            text(&out.stderr)
        );
        let error = text(&out.stderr);
        assert!(error.starts_with("error[run]: gpu "), "{failure}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let out = with_variables(&args, &[("CUPOLA_GPU_FAIL", "luck")]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
}

#[test]
fn devices_tell_what_is_used_and_what_is_not() {
    if !has_gpu() {
        return;
    }
    let facts = |tier: &str| {
        let out = with_variables(&["devices", "--json"], &[("CUPOLA_GPU_TIER", tier)]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        json(&out.stdout)[1]["facts"].clone()
    };
    let base = facts("base");
    assert_eq!(
        (&base["tier"], &base["features"]),
        (&"base".into(), &"none".into())
    );
    assert_eq!(base["storage buffers"], "8");
    let kernels = |facts: &serde_json::Value, key: &str| facts[key].as_str().map(str::to_owned);
    let plain = kernels(&base, "kernels").expect("forms");
    assert!(plain.contains("f32 products in tiles") && !plain.contains("subgroups"));
    assert_eq!(kernels(&base, "kernels with subgroups"), None);
    let rate = base["f32 rate"].as_str().expect("a rate");
    assert!(rate.ends_with(" GFLOP/s"), "{rate}");
    let origin = base["rates"].as_str().expect("their origin");
    assert!(["typical", "measured"].contains(&origin), "{origin}");
    let full = facts("full");
    assert_eq!(full["tier"], "full");
    assert!(
        full["features"].as_str().is_some_and(|f| f.contains("f16")),
        "{full}"
    );
    let by_subgroups = kernels(&full, "kernels with subgroups").expect("forms");
    assert!(by_subgroups.contains("row reductions joined by subgroups"));
    let most = facts("experimental");
    let units = most["matrix units"].as_str().expect("text");
    let used = most["features"].as_str().expect("text");
    let keys: Vec<&String> = most.as_object().expect("facts").keys().collect();
    let dropped = keys.iter().any(|k| k.starts_with("without cooperative"));
    // Matrix units that are there are either used, or it is said why not.
    assert!(
        units == "none" || used.contains("cooperative") || dropped,
        "{most}"
    );
    assert_eq!(used.contains("cooperative"), most["tier"] == "experimental");
}

#[test]
fn kernels_are_timed_when_asked_and_tables_are_joined() {
    if !has_gpu() {
        return;
    }
    let folder = Folder::new("tuning");
    let path = |name: &str| folder.0.join(name).display().to_string();
    let (table, all) = (path("a.json"), path("all.json"));
    let start = ["run", "examples/digits/digits.onnx", "-i"];
    let image = ["image=examples/digits/seven.png", "--device", "gpu"];
    let with = |more: &[&str]| run(&[&start[..], &image, more].concat());
    let tuned = with(&["--tune", "--tune-table", &table]);
    assert!(tuned.status.success(), "{}", text(&tuned.stderr));
    let again = with(&["--tune-table", &table]);
    assert_eq!(text(&again.stdout), text(&tuned.stdout));
    let shown = run(&["tuning", &table, &table, "--merge", &all, "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let problems = json(&shown.stdout)["devices"][0]["problems"].clone();
    assert!(problems.as_object().is_some_and(|all| !all.is_empty()));
    let read = |path: &str| std::fs::read(path).expect("a table");
    assert_eq!(json(&read(&all)), json(&read(&table)));
    std::fs::write(&table, "{").expect("written");
    for out in [
        with(&["--tune", "--tune-table", &table]),
        run(&["tuning", &all, &table, "--merge", &all]),
    ] {
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert_eq!(text(&out.stderr).lines().count(), 1);
    }
    assert_eq!(read(&table), b"{");
    assert_eq!(with(&["--tune", "--deterministic"]).status.code(), Some(2));
    let missing = run(&["tuning", &path("none.json")]);
    assert_eq!(missing.status.code(), Some(1));
}

/// The digit that the model reads in a picture.
fn digit(picture: &str, device: &str) -> String {
    let image = format!("image={picture}");
    let out = run(&[
        "run",
        "examples/digits/digits.onnx",
        "-i",
        &image,
        "--device",
        device,
    ]);
    assert!(
        out.status.success(),
        "{picture} on {device}: {}",
        text(&out.stderr)
    );
    let stdout = text(&out.stdout);
    let line = stdout
        .lines()
        .find(|l| l.starts_with("digit"))
        .expect("an output named digit");
    line.split_whitespace().last().expect("a value").to_string()
}

#[test]
fn the_command_of_the_readme_reads_a_seven() {
    assert_eq!(digit("examples/digits/seven.png", "cpu"), "7");
    assert_eq!(digit("examples/digits/seven.png", "reference"), "7");
    if has_gpu() {
        assert_eq!(digit("examples/digits/seven.png", "gpu"), "7");
    }
}

#[test]
fn drawn_digits_are_recognised() {
    let mut count = 0;
    for entry in std::fs::read_dir(repository().join("examples/digits/samples"))
        .expect("samples")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let want = name
            .split('_')
            .next()
            .expect("a digit in the name")
            .to_string();
        assert_eq!(
            digit(&format!("examples/digits/samples/{name}"), "cpu"),
            want,
            "{name}"
        );
        count += 1;
    }
    assert_eq!(count, 20);
}

#[test]
fn errors_are_one_line_with_a_documented_status() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["run"], 2, "error[usage]"),
        (&["run", "no-such-file.onnx"], 3, "error["),
        (&["run", "README.md"], 3, "error["),
        (&["run", "examples/digits/digits.onnx"], 1, "error[run]"),
        (
            &[
                "run",
                "examples/digits/digits.onnx",
                "-i",
                "image=1x1x28x27xf32:rand",
            ],
            1,
            "error[run]",
        ),
        (
            &[
                "run",
                "examples/digits/digits.onnx",
                "-i",
                "nothing=f32:rand",
            ],
            2,
            "error[usage]",
        ),
        (
            &["run", "examples/digits/digits.onnx", "--device", "abacus"],
            2,
            "error[usage]",
        ),
        (
            &["plan", "examples/digits/digits.onnx", "--memory", "1KiB"],
            5,
            "error[limit]",
        ),
    ];
    for (args, status, start) in cases {
        let out = run(args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(*status), "{args:?}: {stderr}");
        assert!(stderr.starts_with(start), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.len() <= 500, "{args:?}");
    }
}

#[test]
fn outputs_are_written_and_compared() {
    let folder = Folder::new("outputs");
    let place = folder.path("results");
    let out = digits(&["--outputs", &place]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(Path::new(&place).join("probabilities.npy").exists());
    let same = digits(&["--expect", &place, "--device", "reference"]);
    assert!(same.status.success(), "{}", text(&same.stderr));
    let other = [
        "run",
        "examples/digits/digits.onnx",
        "-i",
        "image=1x1x28x28xf32:zeros",
        "--expect",
        &place,
    ];
    assert_eq!(run(&other).status.code(), Some(6));
}

const DIGITS: [&str; 4] = [
    "run",
    "examples/digits/digits.onnx",
    "-i",
    "image=examples/digits/seven.png",
];

/// The digits network with more flags.
fn digits(flags: &[&str]) -> std::process::Output {
    run(&[&DIGITS[..], flags].concat())
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {}", text(bytes)))
}

#[test]
fn text_graphs_that_do_not_fit_together_are_refused() {
    let folder = Folder::new("text");
    for (name, op) in [
        ("few.cup", "composite.softmax() {axis: 0, log: false}"),
        ("axis.cup", "composite.softmax(%0) {axis: 7, log: false}"),
        ("later.cup", "map(%2) {f: \"neg\"}"),
    ] {
        let input = "%0 = input {name: \"x\", ty: f32[2]} : f32[2] \"x\"";
        let graph = format!("graph @g {{\n  {input}\n  %1 = {op}\n  return \"y\" = %1\n}}\n");
        let out = run(&["check", &folder.write(name, &graph)]);
        assert_eq!(out.status.code(), Some(3), "{name}: {}", text(&out.stderr));
        assert!(text(&out.stderr).starts_with("error[malformed]"), "{name}");
    }
}

#[test]
fn a_budget_of_memory_is_kept_or_refused_beforehand() {
    assert!(digits(&["--memory", "64MiB"]).status.success());
    for device in ["cpu", "reference"] {
        let out = digits(&["--memory", "100KB", "--device", device]);
        let expected = if device == "cpu" { 5 } else { 1 };
        assert_eq!(
            out.status.code(),
            Some(expected),
            "{device}: {}",
            text(&out.stderr)
        );
    }
    let weights_fit = digits(&["--memory", "420000"]);
    assert_eq!(
        weights_fit.status.code(),
        Some(5),
        "{}",
        text(&weights_fit.stderr)
    );
    assert_eq!(digits(&["--memory", "much"]).status.code(), Some(2));
}

#[test]
fn flags_of_every_run_are_taken() {
    let plain = digits(&[
        "--deterministic",
        "--precision",
        "f32",
        "--device",
        "auto",
        "-O3",
        "--threads",
        "1",
    ]);
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    let out = digits(&["--precision", "bf16"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(digits(&["--precision", "f5"]).status.code(), Some(2));
}

#[test]
fn statistics_hold_what_the_contract_names() {
    let out = digits(&["--stats", "json", "--repeat", "3"]);
    let stats = json(&out.stdout);
    assert_eq!(stats["compiles"], 1);
    assert_eq!(stats["device"], "cpu");
    assert_eq!(stats["waits"], 0, "the CPU's results are there");
    for key in ["load_ms", "compile_ms", "run_ms"] {
        assert!(
            stats[key].as_f64().is_some_and(|ms| ms > 0.0),
            "{key}: {stats}"
        );
    }
    for key in [
        "kernels",
        "peak_bytes_planned",
        "peak_bytes_used",
        "weight_bytes",
    ] {
        assert!(stats[key].as_u64().is_some_and(|n| n > 0), "{key}: {stats}");
    }
    assert_eq!(stats["fallback"], serde_json::json!([]));
}

#[test]
fn every_document_is_json_on_standard_output() {
    let model = "examples/digits/digits.onnx";
    let image = ["-i", "image=examples/digits/seven.png"];
    let cases: &[(&[&str], &str)] = &[
        (&["devices"], "/0/device"),
        (&["doctor"], "/0/ok"),
        (&["check", model], "/format"),
        (&["inspect", model], "/parameters/bytes"),
        (&["inspect", model, "--support"], "/0/support"),
        (&["plan", model], "/total"),
        (&["explain", model], "/kernels/0/sources"),
        (&["run", model, image[0], image[1]], "/outputs/0/shape"),
        (&["compare", model, image[0], image[1]], "/0/max_abs"),
        (
            &["bench", model, "--iterations", "2", "--warmup", "0"],
            "/median_ms",
        ),
        (
            &["bench", model, "--iterations", "2", "--warmup", "0"],
            "/roofline/limit_ms",
        ),
    ];
    for (command, pointer) in cases {
        let out = run(&[command, &["--json"][..]].concat());
        assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
        let document = json(&out.stdout);
        assert!(
            document.pointer(pointer).is_some(),
            "{command:?}: {document}"
        );
    }
}

#[test]
fn graphs_are_shown_in_every_form_and_read_again() {
    let folder = Folder::new("forms");
    let model = "examples/digits/digits.onnx";
    for step in ["import", "simplify", "raise", "fuse"] {
        let out = run(&["inspect", model, "--after", step]);
        assert!(out.status.success(), "{step}: {}", text(&out.stderr));
        assert!(text(&out.stdout).starts_with("graph "), "{step}");
    }
    let dot = run(&["inspect", model, "--format", "dot"]);
    assert!(text(&dot.stdout).starts_with("digraph"));
    let html = run(&["inspect", model, "--format", "html"]);
    assert!(text(&html.stdout).starts_with("<!"));
    let place = folder.path("results");
    assert!(digits(&["--outputs", &place]).status.success());
    for name in ["digits.cup", "digits.cupola", "again.onnx"] {
        let path = folder.path(name);
        let out = run(&["convert", model, &path]);
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
        assert!(run(&["check", &path]).status.success(), "{name}");
        let same = run(&["run", &path, DIGITS[2], DIGITS[3], "--expect", &place]);
        assert!(same.status.success(), "{name}: {}", text(&same.stderr));
    }
    assert_eq!(
        run(&["convert", model, &folder.path("a.txt")])
            .status
            .code(),
        Some(2)
    );
}

/// Recurrent and branching models, with inputs that decide nothing about their structure.
const STEADY: &[(&str, &[&str])] = &[
    (
        "silero-vad-v6/vad_op18_ifless.onnx",
        &[
            "input=1x512xf32:rand",
            "sr=i64:zeros",
            "state=2x1x128xf32:zeros",
        ],
    ),
    (
        "silero-vad-v6/vad_16k_sequence.onnx",
        &[
            "input=7x576xf32:rand",
            "h=1x1x128xf32:zeros",
            "c=1x1x128xf32:zeros",
        ],
    ),
];

#[test]
fn models_with_control_flow_compile_once() {
    let Some(folder) = data("CUPOLA_TEST_MODELS") else {
        return;
    };
    for (model, inputs) in STEADY {
        let model = folder.join(model).to_string_lossy().into_owned();
        let mut args = vec!["run", &model, "--repeat", "4", "--stats", "json"];
        inputs.iter().for_each(|i| args.extend(["-i", i]));
        let devices = if has_gpu() {
            &["cpu", "gpu"][..]
        } else {
            &["cpu"]
        };
        for device in devices {
            let out = run(&[&args[..], &["--device", device]].concat());
            assert!(
                out.status.success(),
                "{model} on {device}: {}",
                text(&out.stderr)
            );
            assert_eq!(json(&out.stdout)["compiles"], 1, "{model} on {device}");
        }
    }
}

/// Results of a suite by status.
#[derive(Default, Debug)]
struct Tally {
    pass: usize,
    unsupported: usize,
    wrong: Vec<String>,
    unfinished: Option<String>,
}

/// Goes through a suite; `target` is a device, or a device and a tier.
fn conformance(suite: &Path, target: &str) -> Tally {
    let (device, tier) = target.split_once(' ').unwrap_or((target, ""));
    // Suites are gone through at the same time.
    let name = suite.file_name().unwrap_or_default().to_string_lossy();
    let log = format!("cupola-{}-{name}-{device}-{tier}.jsonl", std::process::id());
    let log = std::env::temp_dir().join(log);
    let _ = std::fs::remove_file(&log);
    let (suite, path) = (
        suite.to_string_lossy().into_owned(),
        log.to_string_lossy().into_owned(),
    );
    let profile = if device == "gpu" { "device" } else { "strict" };
    let args = [
        "conformance",
        "--suite",
        &suite,
        "--device",
        device,
        "--profile",
        profile,
        "--json",
        &path,
    ];
    let out = with_variables(&args, &[("CUPOLA_GPU_TIER", tier)]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let mut tally = Tally::default();
    for line in std::fs::read_to_string(&log).expect("result lines").lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let name = row["case"].as_str().expect("a case").to_string();
        match row["status"].as_str().expect("a status") {
            "start" => tally.unfinished = Some(name),
            status => {
                tally.unfinished = None;
                match status {
                    "pass" => tally.pass += 1,
                    "unsupported" => tally.unsupported += 1,
                    _ => tally.wrong.push(format!("{name}: {}", row["detail"])),
                }
            }
        }
    }
    let _ = std::fs::remove_file(&log);
    tally
}

/// Counts that were reached and may only grow: `tests/conformance/baseline.json`.
fn baseline(suite: &str, device: &str) -> (usize, usize) {
    let path = repository().join("tests/conformance/baseline.json");
    let text = std::fs::read_to_string(path).expect("the baseline");
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let row = &all[suite][device];
    let number = |key: &str| row[key].as_u64().expect("a count") as usize;
    (number("pass"), number("wrong"))
}

fn check_suite(variable: &str, suite: &str, device: &str) {
    let Some(folder) = data(variable) else { return };
    let tally = conformance(&folder, device);
    let (pass, wrong) = baseline(suite, device);
    assert_eq!(tally.unfinished, None, "the program ended inside a case");
    assert!(tally.wrong.len() <= wrong, "{device}: {:#?}", tally.wrong);
    assert!(
        tally.pass >= pass,
        "{device}: {} pass, {pass} did before",
        tally.pass
    );
}

#[test]
fn onnx_suite_on_the_reference() {
    check_suite("CUPOLA_TEST_SUITE", "onnx", "reference");
}

#[test]
fn onnx_suite_on_the_cpu() {
    check_suite("CUPOLA_TEST_SUITE", "onnx", "cpu");
}

#[test]
fn generated_graphs_on_the_reference() {
    check_suite("CUPOLA_TEST_FUZZ", "fuzz", "reference");
}

#[test]
fn generated_graphs_on_the_cpu() {
    check_suite("CUPOLA_TEST_FUZZ", "fuzz", "cpu");
}

#[test]
fn onnx_suite_on_the_gpu_with_and_without_optional_features() {
    if has_gpu() {
        check_suite("CUPOLA_TEST_SUITE", "onnx", "gpu");
        check_suite("CUPOLA_TEST_SUITE", "onnx", "gpu base");
    }
}

#[test]
fn generated_graphs_on_the_gpu_with_and_without_optional_features() {
    if has_gpu() {
        check_suite("CUPOLA_TEST_FUZZ", "fuzz", "gpu");
        check_suite("CUPOLA_TEST_FUZZ", "fuzz", "gpu base");
    }
}

#[test]
fn malformed_files_get_one_clear_error() {
    let Some(corpus) = data("CUPOLA_TEST_MALFORMED") else {
        return;
    };
    let list = std::fs::read_to_string(corpus.join("corpus.json")).expect("corpus.json");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let mut found = vec![];
    for case in list["cases"].as_array().expect("cases") {
        let get = |key: &str| case[key].as_str().unwrap_or_default();
        let folder = corpus.join(get("name"));
        let file = folder.join(get("file")).to_string_lossy().into_owned();
        let inputs = folder.join("inputs").to_string_lossy().into_owned();
        let check = get("verb") == "check";
        let start = Instant::now();
        let out = if check {
            run(&["check", &file])
        } else {
            run(&["run", &file, "--inputs", &inputs])
        };
        let stderr = text(&out.stderr);
        let mut fault = |what: &str| {
            found.push(format!(
                "{}: {what}: {:?} {stderr}",
                get("name"),
                out.status
            ))
        };
        if start.elapsed() > Duration::from_secs(5) {
            fault("slow");
        }
        match (out.status.code(), get("expect")) {
            (Some(0), "reject") => fault("accepted"),
            (Some(0), _) => {}
            (Some(_), "accept") => fault("refused"),
            (Some(1 | 3..=5), _) if !(check && out.status.code() == Some(1)) => {
                if !stderr.starts_with("error[")
                    || stderr.len() > 500
                    || stderr.trim_end().lines().count() != 1
                {
                    fault("message");
                }
            }
            _ => fault("status"),
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Models that are compared with the reference interpreter on made-up inputs.
const COMPARED: &[(&str, &str)] = &[
    ("ppocr-v4/rec.onnx", "x=1x3x48x64xf32:rand"),
    ("ppocr-v4/det.onnx", "x=1x3x64x96xf32:rand"),
];

#[test]
fn real_models_agree_with_the_reference_interpreter() {
    let Some(folder) = data("CUPOLA_TEST_MODELS") else {
        return;
    };
    for (model, input) in COMPARED {
        let model = folder.join(model).to_string_lossy().into_owned();
        let out = run(&[
            "compare",
            &model,
            "-i",
            input,
            "--devices",
            "reference,cpu",
            "--atol",
            "1e-4",
        ]);
        assert!(out.status.success(), "{model}: {}", text(&out.stderr));
    }
}

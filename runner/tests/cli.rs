//! The command line as a user sees it: real models, the ONNX suite, malformed files.
//!
//! Data outside the repository is named by environment variables that `scripts/test.sh` sets; a test whose variable is
//! not set checks nothing and says so, a test whose variable is set fails when something is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the runner lies in the repository")
        .to_path_buf()
}

/// `cupola` with arguments, started through the program that makes the software GPU adapter visible, if there is one.
fn cupola(args: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_cupola");
    let mut command = match std::env::var_os("CUPOLA_TEST_RUNNER") {
        Some(runner) => {
            let mut c = Command::new(runner);
            c.arg(binary);
            c
        }
        None => Command::new(binary),
    };
    command
        .args(args)
        .current_dir(repository())
        .stdin(Stdio::null())
        .env_remove("RUST_BACKTRACE");
    command
}

fn run(args: &[&str]) -> Output {
    cupola(args).output().expect("cupola starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

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
    let folder = std::env::temp_dir().join(format!("cupola-cli-{}", std::process::id()));
    let place = folder.to_string_lossy().into_owned();
    let base = [
        "run",
        "examples/digits/digits.onnx",
        "-i",
        "image=examples/digits/seven.png",
    ];
    let out = run(&[&base[..], &["--outputs", &place]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(folder.join("probabilities.npy").exists());
    let same = run(&[&base[..], &["--expect", &place, "--device", "reference"]].concat());
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
    std::fs::remove_dir_all(folder).expect("the folder was made here");
}

/// Results of a suite by status.
#[derive(Default, Debug)]
struct Tally {
    pass: usize,
    unsupported: usize,
    wrong: Vec<String>,
    unfinished: Option<String>,
}

fn conformance(suite: &Path, device: &str) -> Tally {
    let log = std::env::temp_dir().join(format!("cupola-{}-{device}.jsonl", std::process::id()));
    let _ = std::fs::remove_file(&log);
    let (suite, path) = (
        suite.to_string_lossy().into_owned(),
        log.to_string_lossy().into_owned(),
    );
    let profile = if device == "gpu" { "device" } else { "strict" };
    let out = run(&[
        "conformance",
        "--suite",
        &suite,
        "--device",
        device,
        "--profile",
        profile,
        "--json",
        &path,
    ]);
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

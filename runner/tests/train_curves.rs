//! The examples of examples/train: their first losses are those that PyTorch finds with the same weights, samples and dropout
//! (benches/results/curves, made by scripts/compare_training.py), and those of a GPU are those of the CPU. In f32 only the first
//! steps can be compared closely, since training amplifies rounding; in f64 all can.
//!
//! What is not in the repository lies in the folder that `CUPOLA_TEST_MODELS` names; without it only the small examples are trained.
//! The 10,000 digits come from another registry, and may be missing there.

mod support;

use serde_json::Value as Json;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use support::{Folder, repository};

/// Every example, and how many of its first steps are compared with PyTorch's in f32 and in f64: as many as take a few seconds.
const EXAMPLES: [(&str, usize, usize); 10] = [
    ("linear", 200, 200),
    ("diabetes", 200, 200),
    ("digits", 200, 200),
    ("mnist-mlp", 200, 200),
    ("mnist-cnn", 20, 200),
    ("reuters", 20, 40),
    ("attention", 40, 200),
    ("gpt", 2, 0),
    ("lstm-lm", 8, 4),
    ("lstm-lm-deep", 1, 0),
];

/// The configuration of an example with all its paths, in a folder for what it writes; `None` where its data are not here.
fn configuration(folder: &Folder, name: &str) -> Option<String> {
    let examples = repository().join("examples/train");
    let text = std::fs::read_to_string(examples.join(format!("{name}.toml"))).expect(name);
    let fetched = "../../.cache/models";
    let models = std::env::var_os("CUPOLA_TEST_MODELS").map(PathBuf::from);
    if text.contains(fetched) && models.is_none() {
        eprintln!("CUPOLA_TEST_MODELS is not set: {name} is not trained");
        return None;
    }
    let models = models.unwrap_or_default();
    let digits = "data-mnist-10k";
    if text.contains(digits) && !models.join(digits).is_dir() {
        eprintln!("{digits} is not here: {name} is not trained");
        return None;
    }
    let models = models.to_string_lossy().into_owned();
    let own = examples.to_string_lossy();
    let text = text.replace(fetched, &models);
    let local = ["linear.csv", "diabetes.csv", "digits.csv.gz"];
    let text = local.iter().fold(text, |text, file| {
        text.replace(&format!("\"{file}\""), &format!("\"{own}/{file}\""))
    });
    Some(folder.write(&format!("{name}.toml"), &text))
}

/// The losses of the first steps. The run is ended after them: it would go on to measure the test samples.
fn losses(config: &str, options: &[&str], steps: usize) -> Vec<f64> {
    let args = [&["train", config, "--json"], options].concat();
    let mut command = support::cupola(&args);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = command.spawn().expect("cupola starts");
    let output = BufReader::new(run.stdout.take().expect("a pipe"));
    let mut found = vec![];
    for line in output.lines().map_while(Result::ok) {
        let line: Json = serde_json::from_str(&line).expect("a line");
        if line.get("epoch").is_some() {
            found.push(line["loss"].as_f64().expect("a loss"));
        }
        if found.len() == steps {
            break;
        }
    }
    // One that has ended is no failure.
    let _ = run.kill();
    let out = run.wait_with_output().expect("an end");
    let errors = support::text(&out.stderr);
    assert_eq!(found.len(), steps, "{args:?}: {errors}");
    found
}

/// That losses are alike, but for a relative difference.
fn check(what: &str, got: &[f64], want: &[f64], most: f64) {
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.is_finite() && want.is_finite(), "{what}: {got}, {want}");
        let difference = (got - want).abs();
        // Losses of the first example fall to the rounding of its data.
        let bound = most * want.abs() + 1e-12;
        assert!(
            difference <= bound,
            "{what}, step {}: {got} and {want}",
            step + 1
        );
    }
}

/// Compares the first losses of an example with those that are stored under a key.
fn compare(folder: &Folder, name: &str, steps: usize, key: &str, more: &[&str], most: f64) {
    let Some(config) = configuration(folder, name).filter(|_| steps > 0) else {
        return;
    };
    let stored = repository().join(format!("benches/results/curves/{name}.json"));
    let stored = std::fs::read_to_string(&stored).expect(name);
    let stored: Json = serde_json::from_str(&stored).expect(name);
    let texts = stored["options"].as_array().expect("options");
    let texts = texts.iter().filter_map(Json::as_str);
    let options: Vec<&str> = texts.chain(more.iter().copied()).collect();
    let want = stored[key].as_array().expect("losses");
    let want: Vec<f64> = want.iter().filter_map(Json::as_f64).collect();
    assert!(want.len() >= steps, "{name}, {key}: {}", want.len());
    let got = losses(&config, &options, steps);
    check(&format!("{name}, {key}"), &got, &want, most);
}

#[test]
fn first_losses_are_those_of_pytorch() {
    let folder = Folder::new("train-curves");
    for (name, steps, _) in EXAMPLES {
        // What is stored has seven digits.
        compare(&folder, name, steps, "pytorch", &[], 1e-4);
    }
}

#[test]
fn losses_in_f64_are_those_of_pytorch() {
    let folder = Folder::new("train-curves-f64");
    for (name, _, steps) in EXAMPLES {
        compare(&folder, name, steps, "pytorch_f64", &["--double"], 1e-9);
    }
}

#[test]
fn a_gpu_finds_the_losses_of_the_cpu() {
    if std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_none() {
        return;
    }
    let folder = Folder::new("train-gpu");
    let both = |name: &str, steps: usize, options: &[&str], most: f64| {
        let Some(config) = configuration(&folder, name) else {
            return;
        };
        let run = |device: &str| {
            let options = [&["--batch", "1", "--device", device], options].concat();
            losses(&config, &options, steps)
        };
        check(
            &format!("{name} {options:?}"),
            &run("gpu"),
            &run("cpu"),
            most,
        );
    };
    for (name, ..) in EXAMPLES {
        // Twelve layers take a software adapter half a minute to compile.
        let steps = if name == "lstm-lm-deep" { 1 } else { 3 };
        both(name, steps, &[], 1e-4);
    }
    // Sums are rounded to narrow numbers after other orders.
    for amp in ["bf16", "f16"] {
        both("mnist-cnn", 3, &["--amp", amp], 2e-2);
        both("attention", 3, &["--amp", amp], 2e-2);
    }
}

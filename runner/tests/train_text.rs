//! Language models of `cupola train`: `generate`, `perplexity` and `tokenize` from their checkpoints. What the engine says one token
//! at a time is what the exported model says over whole windows.

mod support;

use serde_json::Value as Json;
use support::{Folder, failure, run, succeed};

/// Most kinds of tokens.
const KINDS: usize = 60;

/// A configuration of a small text with these units and layers.
fn config(units: &str, length: usize, layers: &str) -> String {
    let text = support::repository().join("docs/training.md");
    format!(
        "loss = \"ce\"\noptim = \"adam:lr=5e-3\"\nbatch = 8\nsteps = 40\n[data]\nfiles = [{text:?}]\nkind = \"text\"\n\
         units = \"{units}\"\nvocabulary = {KINDS}\nlength = {length}\ntest = 0.1\n[model]\nlayers = [{layers}]\n"
    )
}

/// Windows of i64 as a NumPy file.
fn npy(rows: &[Vec<i64>]) -> Vec<u8> {
    let shape = format!("({}, {})", rows.len(), rows[0].len());
    let mut header =
        format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}").into_bytes();
    header.resize(117, b' ');
    header.push(b'\n');
    let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    file.extend(header);
    file.extend(rows.iter().flatten().flat_map(|x| x.to_le_bytes()));
    file
}

/// Scores `[windows, length, kinds]` that a model file gives for windows of tokens.
fn scores(folder: &Folder, model: &str, windows: &[Vec<i64>]) -> Vec<f32> {
    let input = folder.path("x.npy");
    std::fs::write(&input, npy(windows)).expect("a file");
    let outputs = folder.path("outputs");
    succeed(&[
        "run",
        model,
        "-i",
        &format!("x={input}"),
        "--outputs",
        &outputs,
    ]);
    let bytes = std::fs::read(folder.path("outputs/y.npy")).expect("scores");
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let words = bytes[header..].chunks_exact(4);
    words
        .map(|w| f32::from_le_bytes(w.try_into().expect("four bytes")))
        .collect()
}

/// The log-probability of a token, and the largest of all, from scores.
fn log_probability(scores: &[f32], token: usize) -> (f64, f64) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert!(most.is_finite());
    let sum: f64 = scores.iter().map(|s| f64::from(s - most).exp()).sum();
    (f64::from(scores[token] - most) - sum.ln(), -sum.ln())
}

fn tokens(document: &Json) -> Vec<i64> {
    let all = document["tokens"].as_array().expect("tokens");
    all.iter().map(|t| t.as_i64().expect("a token")).collect()
}

/// Continues texts from a checkpoint, with a cache that rounds nothing, and compares every token with what the exported model
/// says of the window before it.
fn check_windows(folder: &Folder, name: &str, length: usize, prompts: &[(&str, usize)]) {
    let config = folder.path(&format!("{name}.toml"));
    let exported = ["onnx", "cupola"].map(|suffix| folder.path(&format!("{name}.{suffix}")));
    succeed(&[
        "train",
        &config,
        "--export",
        &exported[0],
        "--export",
        &exported[1],
    ]);
    let checkpoints = folder.path(&format!("checkpoints/{name}"));
    let mut windows = vec![];
    let mut said = vec![];
    for (prompt, count) in prompts {
        let text = succeed(&["tokenize", &config, "-p", prompt, "--json"]);
        let mut context = tokens(&serde_json::from_str(&text).expect("tokens"));
        let count = count.to_string();
        let out = succeed(&[
            "generate",
            &checkpoints,
            "-p",
            prompt,
            "-n",
            &count,
            "--temp",
            "0",
            "--logprobs",
            "1",
            "--cache-type",
            "f32",
            "--json",
        ]);
        let document: Json = serde_json::from_str(&out).expect("a document");
        assert_eq!(document["finish"], "length");
        for (i, token) in tokens(&document).into_iter().enumerate() {
            let mut window = context[context.len().saturating_sub(length)..].to_vec();
            let place = window.len() - 1;
            window.resize(length, 0);
            windows.push(window);
            let log = document["logprobs"][i]["logprob"]
                .as_f64()
                .expect("a number");
            said.push((place, token as usize, log));
            context.push(token);
        }
    }
    for model in &exported {
        let scores = scores(folder, model, &windows);
        let kinds = scores.len() / windows.len() / length;
        assert!(kinds <= KINDS && kinds > 1, "{kinds}");
        for (i, (place, token, log)) in said.iter().enumerate() {
            let row = &scores[(i * length + place) * kinds..][..kinds];
            let (own, best) = log_probability(row, *token);
            assert!(
                (own - log).abs() < 1e-5,
                "{name}, window {i}: {own} and {log}"
            );
            assert!(
                best - own < 1e-5,
                "{name}, window {i}: not the likeliest token"
            );
        }
    }
}

#[test]
fn a_gpt_continues_texts_as_its_windows_say() {
    let folder = Folder::new("text-gpt");
    let layers = "\"embedding:24\", \"positions\", \"dropout:0.1\", \"blocks:1,heads=3,dropout=0.1\", \
                  \"blocks:1,heads=2,factor=2,name=more\", \"layer_norm\", \"linear:tokens,bias=false\"";
    folder.write("gpt.toml", &config("characters", 32, layers));
    let prompts = [
        ("A", 31),
        ("the loss", 12),
        ("A model of layers, end to end: y", 1),
    ];
    check_windows(&folder, "gpt", 32, &prompts);
    let checkpoints = folder.path("checkpoints/gpt");
    // No position is beyond the last, unless the beginning is forgotten.
    let (status, error) = failure(&["generate", &checkpoints, "-p", &"a".repeat(40), "-n", "4"]);
    assert_eq!(status, 5, "{error}");
    let sampled = |seed: &str| {
        succeed(&[
            "generate",
            &checkpoints,
            "-p",
            "The ",
            "-n",
            "60",
            "--shift",
            "8",
            "--temp",
            "0.9",
            "--top-k",
            "12",
            "--seed",
            seed,
        ])
    };
    let first = sampled("1");
    assert!(first.chars().count() > 32, "{first}");
    assert_eq!(first, sampled("1"));
    assert_ne!(first, sampled("2"));
    let out = succeed(&[
        "perplexity",
        &checkpoints,
        "-p",
        "the loss of the model",
        "--json",
    ]);
    let document: Json = serde_json::from_str(&out).expect("a document");
    let perplexity = document["perplexity"].as_f64().expect("a number");
    assert!((2.0..KINDS as f64).contains(&perplexity), "{document}");
    let (status, error) = failure(&["chat", &checkpoints]);
    assert_eq!(status, 4, "{error}");
}

#[test]
fn a_recurrent_model_is_evaluated_over_each_window() {
    let folder = Folder::new("text-lstm");
    let layers =
        "\"embedding:12\", \"lstm:24,layers=2\", \"linear:16\", \"relu\", \"linear:tokens\"";
    folder.write("lstm.toml", &config("words", 6, layers));
    // Texts are longer than a window, which then moves along.
    let prompts = [
        ("the", 14),
        ("a model, of layers and the data of a file", 5),
    ];
    check_windows(&folder, "lstm", 6, &prompts);
    let layers = "\"embedding:12\", \"attention:2,causal=true\", \"softmax\", \"linear:tokens\"";
    folder.write("causal.toml", &config("characters", 8, layers));
    check_windows(&folder, "causal", 8, &[("the loss", 9)]);
}

#[test]
fn models_that_do_not_continue_texts_say_so() {
    let folder = Folder::new("text-none");
    let layers = "\"embedding:12\", \"gru:8,bidirectional=true\", \"linear:tokens\"";
    folder.write("both.toml", &config("characters", 8, layers));
    let table = "loss = \"mse\"\noptim = \"sgd:lr=0.1\"\nsteps = 1\n[data]\nfiles = [\"line.csv\"]\n[model]\nlayers = [\"linear:1\"]\n";
    folder.write("line.csv", "1,2\n2,4\n");
    folder.write("line.toml", table);
    for (name, what) in [
        ("both", "depends on later ones"),
        ("line", "its data are no texts"),
    ] {
        let config = folder.path(&format!("{name}.toml"));
        let (status, error) = failure(&["generate", &config, "-p", "a"]);
        assert!(
            status == 2 && error.contains("no checkpoints yet"),
            "{error}"
        );
        assert!(run(&["train", &config]).status.success());
        let (status, error) = failure(&["generate", &config, "-p", "a", "-n", "1"]);
        assert!(status == 4 && error.contains(what), "{status}: {error}");
    }
}

//! Language models on the command line. `CUPOLA_TEST_MODELS` names a folder with SmolLM2 in it; without it only what
//! needs no model is checked, and the tests say so.

#[allow(dead_code, reason = "folders are for other tests")]
mod support;

use serde_json::Value as Json;
use std::io::Write;
use std::process::Stdio;
use support::{cupola, run, text};

/// `<|im_start|>user ...` as SmolLM2's chat template writes it.
const QUESTION: &str =
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";

fn model() -> Option<String> {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS") else {
        eprintln!("CUPOLA_TEST_MODELS is not set: nothing is checked");
        return None;
    };
    let path = std::path::Path::new(&folder).join("smollm2-135m-q4_1/model.gguf");
    Some(path.to_string_lossy().into_owned())
}

/// The one document of a command that succeeds.
fn document(args: &[&str]) -> Json {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("one document")
}

#[test]
fn greedy_text_is_that_of_the_reference() {
    let Some(model) = model() else { return };
    for precision in ["f32", "model"] {
        let args = [
            "-p",
            QUESTION,
            "-n",
            "16",
            "--temp",
            "0",
            "--precision",
            precision,
            "--json",
        ];
        let found = document(&[&["generate", &model][..], &args].concat());
        assert_eq!(found["text"], "The capital of France is Paris.");
        assert_eq!(
            found["tokens"].to_string(),
            "[504,3575,282,4649,314,7042,30]"
        );
        assert_eq!(found["prompt_tokens"], 16);
        assert_eq!(found["finish"], "stop");
        for figure in ["prefill_tok_s", "decode_tok_s", "peak_rss_mib"] {
            assert!(
                found[figure].as_f64().is_some_and(|x| x > 0.0),
                "{figure}: {found}"
            );
        }
    }
}

#[test]
fn text_comes_without_json_too_and_stops_where_asked() {
    let Some(model) = model() else { return };
    let out = run(&[
        "generate", &model, "-p", QUESTION, "--temp", "0", "--stop", " is",
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "The capital of France\n");
}

#[test]
fn guessing_ahead_changes_no_token() {
    let Some(model) = model() else { return };
    let prompt = "one two three four one two three four one two three";
    let args = [
        "generate", &model, "-p", prompt, "-n", "40", "--temp", "0", "--json",
    ];
    let plain = document(&args);
    let guessed = document(&[&args[..], &["--lookup", "4"]].concat());
    assert_eq!(guessed["tokens"], plain["tokens"]);
    assert!(
        guessed["accepted"].as_u64().is_some_and(|n| n > 10),
        "{guessed}"
    );
}

#[test]
fn a_pattern_holds_the_text() {
    let Some(model) = model() else { return };
    let args = [
        "-p",
        "My number is",
        "-n",
        "20",
        "--regex",
        " [0-9]{3}-[0-9]{2}",
        "--json",
    ];
    let found = document(&[&["generate", &model][..], &args].concat());
    let text = found["text"].as_str().expect("a text");
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    assert!(
        text.len() == 7 && digits == 5 && &text[4..5] == "-",
        "{found}"
    );
    assert_eq!(found["finish"], "stop");
}

#[test]
fn a_seed_decides_what_is_drawn() {
    let Some(model) = model() else { return };
    let draw = |seed| {
        let args = ["-n", "12", "--temp", "1", "--seed", seed, "--json"];
        document(&[&["generate", &model, "-p", "Once"][..], &args].concat())["tokens"].clone()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn a_conversation_goes_on() {
    let Some(model) = model() else { return };
    let mut child = cupola(&[
        "chat",
        &model,
        "--temp",
        "0",
        "-n",
        "24",
        "--precision",
        "f32",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("cupola starts");
    let mut input = child.stdin.take().expect("its input");
    input
        .write_all(b"What is the capital of France?\nAnd of Italy?\n")
        .expect("it reads");
    drop(input);
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{}", text(&out.stderr));
    let answers = text(&out.stdout);
    assert!(
        answers.contains("Paris") && answers.lines().count() >= 2,
        "{answers}"
    );
}

#[test]
fn tokens_of_a_text_are_shown() {
    let Some(model) = model() else { return };
    let found = document(&["tokenize", &model, "-p", "Hello world<|im_end|>", "--json"]);
    assert_eq!(found["tokens"].to_string(), "[19556,905,2]");
    let plain = document(&["tokenize", &model, "-p", "<|im_end|>", "--plain", "--json"]);
    assert!(plain["count"].as_u64().is_some_and(|n| n > 1), "{plain}");
}

#[test]
fn a_text_is_foretold_better_than_noise() {
    let Some(model) = model() else { return };
    let cost = |prompt| {
        let found = document(&["perplexity", &model, "-p", prompt, "--json"]);
        found["ln_perplexity"].as_f64().expect("a number")
    };
    let prose = cost("The quick brown fox jumps over the lazy dog. The dog did not move.");
    let noise = cost("dog The jumps move quick not The lazy did fox. brown the over dog.");
    assert!((0.5..noise).contains(&prose), "{prose} and {noise}");
}

#[test]
fn rates_come_as_lines() {
    let Some(model) = model() else { return };
    let args = [
        "--llm", "-p", "16", "-n", "4", "-t", "1", "-r", "2", "--json",
    ];
    let out = run(&[&["bench", &model][..], &args].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let lines: Vec<Json> = text(&out.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("a document"))
        .collect();
    let names: Vec<&str> = lines.iter().filter_map(|l| l["name"].as_str()).collect();
    assert_eq!(names, ["pp16", "tg4"]);
    for line in &lines {
        assert_eq!(line["threads"], 1);
        assert!(line["median"].as_f64().is_some_and(|m| m > 0.0), "{line}");
        assert_eq!(line["tok_s"].as_array().map(Vec::len), Some(2));
    }
}

#[test]
fn wrong_calls_and_files_get_one_clear_error() {
    let missing = run(&["generate", "no-such-file.gguf", "-p", "a"]);
    assert_eq!(missing.status.code(), Some(3));
    let other = run(&["generate", "Cargo.toml", "-p", "a"]);
    assert_eq!(other.status.code(), Some(3), "{}", text(&other.stderr));
    let none = run(&["generate", "Cargo.toml"]);
    assert_eq!(none.status.code(), Some(2));
    for out in [missing, other, none] {
        let said = text(&out.stderr);
        assert!(
            said.starts_with("error[") && said.lines().count() == 1,
            "{said}"
        );
    }
    let Some(model) = model() else { return };
    let wrong: [(&[&str], i32); 3] = [
        (&["-p", ""], 2),
        (&["-p", "a", "--top-p", "2"], 2),
        (&["-p", "one two three four five six", "-c", "4"], 5),
    ];
    for (args, status) in wrong {
        let out = run(&[&["generate", &model][..], args].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.starts_with("error["), "{said}");
    }
}

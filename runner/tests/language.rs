//! Language models on the command line. `CUPOLA_TEST_MODELS` names a folder with SmolLM2 in it; without it only what
//! needs no model is checked, and the tests say so.

mod support;

use serde_json::Value as Json;
use std::io::Write;
use std::process::Stdio;
use support::{Folder, cupola, run, text};

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
fn guesses_of_a_model_change_no_token() {
    let Some(model) = model() else { return };
    for sampling in [["--temp", "0"], ["--temp", "0.9"]] {
        let args = [
            "generate", &model, "-p", QUESTION, "-n", "40", "--json", "--seed", "3",
        ];
        let args = [&args[..], &sampling].concat();
        let plain = document(&args);
        // There is no smaller model of this vocabulary here: it guesses for itself, and is nearly always right.
        let guessed = document(&[&args[..], &["--draft", &model, "--draft-len", "5"]].concat());
        assert_eq!(guessed["tokens"], plain["tokens"]);
        let share = guessed["accepted_share"].as_f64();
        assert!(share.is_some_and(|s| s > 0.9), "{guessed}");
    }
}

#[test]
fn a_saved_text_goes_on_where_it_was() {
    let Some(model) = model() else { return };
    let folder = Folder::new("saved-text");
    let saved = folder.path("saved.safetensors");
    let begin =
        "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen";
    let args = ["generate", &model, "--temp", "0", "-n", "24", "--json"];
    let first = document(&[&args[..], &["-p", begin, "--save-cache", &saved]].concat());
    let whole = format!("{begin}{}", first["text"].as_str().expect("a text"));
    let plain = document(&[&args[..], &["-p", &whole]].concat());
    let restored = document(&[&args[..], &["-p", &whole, "--load-cache", &saved]].concat());
    assert_eq!(restored["tokens"], plain["tokens"]);
    let prompt = restored["prompt_tokens"].as_u64().expect("a number");
    let reused = restored["reused_tokens"].as_u64().expect("a number");
    assert!(reused + 17 >= prompt && reused < prompt, "{restored}");

    // Another cache, a damaged file, none.
    let bytes = std::fs::read(&saved).expect("the file");
    let damaged = folder.path("damaged");
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).expect("a file");
    let missing = folder.path("missing");
    let wrong: [&[&str]; 3] = [
        &["--load-cache", &saved, "--cache-type", "q8"],
        &["--load-cache", &damaged],
        &["--load-cache", &missing],
    ];
    for more in wrong {
        let out = run(&[&args[..], &["-p", "a"], more].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{said}");
        assert!(
            said.starts_with("error[malformed]") && said.lines().count() == 1,
            "{said}"
        );
    }
}

#[test]
fn a_full_context_ends_the_text_or_shifts_it() {
    let Some(model) = model() else { return };
    let args = [
        "generate",
        &model,
        "-p",
        "Once upon a time",
        "-n",
        "60",
        "-c",
        "24",
        "--ignore-eos",
        "--temp",
        "0",
        "--json",
    ];
    let ended = document(&args);
    assert_eq!(ended["finish"], "context");
    let count = |found: &Json| found["tokens"].as_array().map_or(0, Vec::len);
    let prompt = ended["prompt_tokens"].as_u64().expect("a number") as usize;
    assert_eq!(count(&ended), 24 - prompt + 1);
    let shifted = document(&[&args[..], &["--shift", "4"]].concat());
    assert_eq!(shifted["finish"], "length");
    assert_eq!(count(&shifted), 60);
    let begin = shifted["tokens"].as_array().expect("tokens");
    assert_eq!(
        &begin[..count(&ended)],
        &ended["tokens"].as_array().expect("tokens")[..]
    );
}

#[test]
fn a_conversation_that_is_full_says_so() {
    let Some(model) = model() else { return };
    let mut child = cupola(&[
        "chat",
        &model,
        "--temp",
        "0",
        "-n",
        "8",
        "-c",
        "64",
        "--precision",
        "f32",
    ])
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("cupola starts");
    let long = "one two three four five six seven eight ".repeat(12);
    let lines = format!("{long}\n/clear\nWhat is the capital of France?\n");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(lines.as_bytes()).expect("it reads");
    drop(input);
    let out = child.wait_with_output().expect("it ends");
    let said = text(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(
        said.starts_with("error[limit]: the conversation has") && said.lines().count() == 1,
        "{said}"
    );
    assert!(text(&out.stdout).contains("Paris"), "{}", text(&out.stdout));
}

#[test]
fn what_does_not_fit_is_refused_beforehand() {
    let Some(model) = model() else { return };
    let cases: [&[&str]; 4] = [
        &[
            "generate",
            &model,
            "-p",
            "a",
            "--shift",
            "4",
            "-c",
            "2000000000",
        ],
        &[
            "generate", &model, "-p", "a", "-n", "4000", "--memory", "130MiB",
        ],
        &["serve", &model, "--port", "0", "-c", "2000000000"],
        &[
            "plan", &model, "-c", "8192", "--slots", "8", "--memory", "1GiB",
        ],
    ];
    for args in cases {
        let out = run(args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(5), "{args:?}: {said}");
        assert!(said.contains("error[limit]: needs"), "{said}");
    }
}

#[test]
fn the_plan_is_the_cache_that_is_made() {
    let Some(model) = model() else { return };
    for (dtype, position) in [
        ("f32", 46_080),
        ("f16", 23_040),
        ("bf16", 23_040),
        ("q8", 12_240),
    ] {
        let args = ["--cache-type", dtype, "--json"];
        let plan = document(&[&["plan", &model, "-c", "48", "--slots", "1"][..], &args].concat());
        let made = [
            "generate",
            &model,
            "-p",
            "Once upon a time",
            "-n",
            "44",
            "--shift",
            "-c",
            "48",
        ];
        let made = document(&[&made[..], &args].concat());
        assert_eq!(plan["kv_cache"], made["kv_cache_bytes"], "{dtype}");
        assert_eq!(plan["kv_cache"], 48 * position, "{dtype}");
        assert_eq!(plan["sizes"]["pages"], 3);
        for part in ["weights", "workspace", "total"] {
            assert!(plan[part].as_u64().is_some_and(|b| b > 0), "{part}: {plan}");
        }
    }
    let usual = document(&["plan", &model, "--slots", "2", "--json"]);
    assert_eq!(usual["kv_cache"], 2 * 8192 * 23_040u64);
}

/// The likelihood of a text hardly changes with keys and values in 8 bits.
#[test]
fn a_cache_in_8_bits_foretells_as_well() {
    let Some(model) = model() else { return };
    let prose = "The quick brown fox jumps over the lazy dog. The dog did not move. ".repeat(6);
    let cost = |dtype| {
        let args = [
            "perplexity",
            &model,
            "-p",
            &prose,
            "--cache-type",
            dtype,
            "--json",
        ];
        document(&args)["ln_perplexity"].as_f64().expect("a number")
    };
    let (narrow, half) = (cost("q8"), cost("f16"));
    assert!((narrow - half).abs() < 0.02, "{narrow} and {half}");
}

/// Ctrl-C while a long prompt is read ends the program within a step.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_long_prompt() {
    use std::io::{BufRead, BufReader};
    let Some(model) = model() else { return };
    let folder = Folder::new("interrupted");
    let prompt = folder.write("long.txt", &"one two three four ".repeat(1700));
    let args = [
        "generate",
        &model,
        "-f",
        &prompt,
        "-n",
        "400",
        "--ignore-eos",
        "--json",
        "-v",
    ];
    let mut child = cupola(&args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cupola starts");
    let mut said = BufReader::new(child.stderr.take().expect("its errors"));
    let mut line = String::new();
    while !line.contains("tokens are read") {
        line.clear();
        assert!(said.read_line(&mut line).expect("a line") > 0, "it ended");
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let start = std::time::Instant::now();
    let pid = child.id().to_string();
    let killed = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(killed.expect("kill starts").success());
    let out = child.wait_with_output().expect("it ends");
    let took = start.elapsed();
    assert!(took.as_secs() < 10, "{took:?}");
    let found: Json = serde_json::from_slice(&out.stdout).expect("one document");
    assert_eq!(found["finish"], "interrupted");
    assert_eq!(found["tokens"], serde_json::json!([]));
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

#[test]
fn logits_of_a_text_are_written_and_give_its_perplexity() {
    let Some(model) = model() else { return };
    let folder = Folder::new("logits");
    let path = folder.path("logits.npy");
    let text = [
        "-p",
        "Once upon a time there was a king who had a daughter.",
    ];
    let tokens = document(&[&["tokenize", &model, "--json"][..], &text].concat());
    let args = ["perplexity", &model, "--json", "--logits", &path];
    let found = document(&[&args[..], &text].concat());

    let bytes = std::fs::read(&path).expect("a file");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..start]).into_owned();
    let tokens: Vec<usize> = serde_json::from_value(tokens["tokens"].clone()).expect("tokens");
    let (rows, width) = (tokens.len() - 1, 49_152);
    assert!(header.contains(&format!("({rows}, {width}")), "{header}");
    let logits = bytes[start..].as_chunks::<4>().0.iter();
    let logits: Vec<f64> = logits.map(|x| f32::from_le_bytes(*x).into()).collect();
    assert_eq!(logits.len(), rows * width);

    let costs = logits.chunks(width).zip(&tokens[1..]).map(|(row, next)| {
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        largest + sum.ln() - row[*next]
    });
    let mean = costs.sum::<f64>() / rows as f64;
    let claimed = found["ln_perplexity"].as_f64().expect("a number");
    assert!((mean - claimed).abs() < 1e-6, "{mean} {claimed}");
}

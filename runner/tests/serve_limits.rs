//! What a server bears: slow clients, long prompts, broken requests, a browser. `CUPOLA_TEST_MODELS` names a folder
//! with models; without it nothing is checked, and the tests say so.

#[allow(dead_code, reason = "what is not used here is for other tests")]
mod support;

use serde_json::{Value as Json, json};
use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::server::{model, question, serve, server};

#[test]
fn a_client_that_keeps_the_server_waiting_is_left() {
    let Some(server) = server(&["--timeout", "4", "--slots", "2"]) else {
        return;
    };
    // A head that does not end, a body that does not come, and an idle connection.
    let begun = Instant::now();
    for sent in [
        "POST /v1/chat",
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
        "",
    ] {
        let mut stream = server.send(sent);
        let mut answer = String::new();
        // A connection that is closed without an answer may be an error.
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    // Answers that are not done in time, whole and in pieces.
    let mut long = json!({ "prompt": "Once", "max_tokens": 1000, "n": 2, "logprobs": 20 });
    let (status, found) = server.post("/v1/completions", &long);
    assert!(
        status == 504 || found["choices"][0]["finish_reason"] != Json::Null,
        "{found}"
    );
    long["stream"] = true.into();
    // One that nobody reads holds neither slots nor memory for long.
    let body = long.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let unread: Vec<TcpStream> = (0..8)
        .map(|_| server.send(&format!("{head}{body}")))
        .collect();
    let begun = Instant::now();
    let idle = "cupola_running 0\n";
    while !server.exchange("GET", "/metrics", "", "").1.contains(idle) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    // A machine with much to do may be late for one question.
    let answered = (0..10).any(|_| server.post("/v1/chat/completions", &question()).0 == 200);
    assert!(answered);
    drop(unread);
}

#[test]
fn a_long_prompt_lets_others_go_on() {
    let Some(model) = model("smollm2-135m-q4_1/model.gguf") else {
        return;
    };
    let server = serve(&model, &["-c", "8192", "--slots", "3"]);
    let ask = |prompt: String, most: usize| {
        let (status, found) = server.post(
            "/v1/completions",
            &json!({ "prompt": prompt, "max_tokens": most, "temperature": 0 }),
        );
        assert_eq!(status, 200, "{found}");
        Instant::now()
    };
    std::thread::scope(|scope| {
        let long = scope.spawn(|| ask("one two three four ".repeat(1000), 1));
        while !server
            .exchange("GET", "/metrics", "", "")
            .1
            .contains("cupola_running 1\n")
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let short =
            ["a b c", "Once upon a time"].map(|prompt| scope.spawn(move || ask(prompt.into(), 8)));
        let short = short.map(|client| client.join().expect("an answer"));
        let long = long.join().expect("an answer");
        assert!(
            short.iter().all(|end| *end < long),
            "the long prompt went first"
        );
    });
}

/// Runs one of the repository's scripts with Python; `None` where there is none.
fn script(name: &str, args: &[&str]) -> Option<std::process::Output> {
    let path = support::repository().join("scripts").join(name);
    let mut python = std::process::Command::new("python3");
    let output = python
        .arg(path)
        .args(args)
        .env("CUPOLA_CACHE", "off")
        .output();
    if output.is_err() {
        eprintln!("there is no python3: {name} is not run");
    }
    output.ok()
}

#[test]
fn bodies_that_nobody_means_and_broken_connections_leave_it_as_it_was() {
    for (name, flags) in [
        (
            "smollm2-135m-q4_1/model.gguf",
            ["--requests", "150", "--aborts", "30"],
        ),
        ("minilm-l6-v2-f32", ["--requests", "120", "--aborts", "0"]),
    ] {
        let Some(model) = model(name) else { return };
        // So few requests say little of memory: the script as a whole does.
        let args = [
            env!("CARGO_BIN_EXE_cupola"),
            &model,
            "--growth",
            "30",
            "--seed",
            "3",
        ];
        let Some(output) = script("fuzz_server.py", &[&args[..], &flags].concat()) else {
            return;
        };
        assert!(
            output.status.success(),
            "{}",
            support::text(&output.stdout) + &support::text(&output.stderr)
        );
    }
}

#[test]
fn the_page_is_used_by_a_browser() {
    let Some(server) = server(&[]) else { return };
    let address = format!("http://{}", server.address);
    let Some(output) = script("drive_page.py", &[&address]) else {
        return;
    };
    let said = support::text(&output.stderr);
    // Where there is no browser it says so.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
    eprint!("{said}");
}

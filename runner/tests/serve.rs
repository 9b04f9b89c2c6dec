//! The server as clients see it, over plain sockets. `CUPOLA_TEST_MODELS` names a folder with SmolLM2 in it; without
//! it nothing is checked, and the tests say so.

#[allow(dead_code, reason = "what is not started here is for other tests")]
mod support;

use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use support::cupola;

/// A server that ends with the test.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself fails the test elsewhere.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn server(flags: &[&str]) -> Option<Server> {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS") else {
        eprintln!("CUPOLA_TEST_MODELS is not set: nothing is checked");
        return None;
    };
    let model = std::path::Path::new(&folder).join("smollm2-135m-q4_1/model.gguf");
    let model = model.to_string_lossy().into_owned();
    let args = [
        "serve", &model, "--port", "0", "-c", "1024", "--name", "small",
    ];
    let mut child = cupola(&[&args[..], flags].concat())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cupola starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its errors")).lines();
    let address = lines
        .find_map(|line| Some(line.ok()?.strip_prefix("listening on http://")?.to_string()))
        .expect("it listens");
    Some(Server { child, address })
}

impl Server {
    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("sent");
        stream
    }

    /// Status and body.
    fn exchange(&self, method: &str, path: &str, header: &str, body: &str) -> (u16, String) {
        let len = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}Content-Length: {len}\r\n\r\n{body}"
        );
        let mut answer = String::new();
        let mut stream = self.send(&request);
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_string());
        (status.expect("a status"), body.expect("a body"))
    }

    fn post(&self, path: &str, body: &Json) -> (u16, Json) {
        let (status, body) = self.exchange("POST", path, "", &body.to_string());
        (
            status,
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")),
        )
    }
}

fn question() -> Json {
    json!({
        "messages": [
            { "role": "system", "content": "You are a helpful assistant." },
            { "role": "user", "content": "What is the capital of France?" },
        ],
        "temperature": 0,
        "max_tokens": 12,
    })
}

#[test]
fn conversations_are_answered_whole_and_in_pieces() {
    let Some(server) = server(&["--precision", "f32"]) else {
        return;
    };
    let (status, whole) = server.post("/v1/chat/completions", &question());
    assert_eq!(status, 200, "{whole}");
    let text = whole["choices"][0]["message"]["content"]
        .as_str()
        .expect("a text");
    assert!(text.contains("Paris"), "{whole}");
    assert_eq!(whole["model"], "small");
    let used = &whole["usage"];
    let sum = used["prompt_tokens"]
        .as_u64()
        .zip(used["completion_tokens"].as_u64());
    assert_eq!(used["total_tokens"].as_u64(), sum.map(|(a, b)| a + b));

    let mut streamed = question();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({ "include_usage": true });
    let (status, body) = server.exchange("POST", "/v1/chat/completions", "", &streamed.to_string());
    assert_eq!(status, 200, "{body}");
    let data: Vec<&str> = body
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let chunks: Vec<Json> = data[..data.len() - 1]
        .iter()
        .map(|d| serde_json::from_str(d).expect("a chunk"))
        .collect();
    let pieces = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    let used = &chunks[chunks.len() - 1]["usage"]["prompt_tokens_details"];
    assert!(
        used["cached_tokens"].as_u64().is_some_and(|n| n >= 16),
        "{chunks:?}"
    );
}

#[test]
fn texts_are_continued_with_all_that_was_asked_for() {
    let Some(server) = server(&[]) else { return };
    let body = json!({
        "prompt": "one two three four one two three", "max_tokens": 6, "temperature": 0, "logprobs": 2, "n": 2,
    });
    let (status, found) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{found}");
    let choices = found["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 2);
    for choice in choices {
        assert!(
            choice["text"]
                .as_str()
                .is_some_and(|t| t.starts_with(" four")),
            "{found}"
        );
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(
            choice["logprobs"]["token_logprobs"]
                .as_array()
                .map(Vec::len),
            Some(6)
        );
    }
    let schema = json!({ "type": "object", "properties": { "city": { "enum": ["Rome", "Paris"] } }, "required": ["city"] });
    let mut held = question();
    held["max_tokens"] = 60.into();
    held["response_format"] =
        json!({ "type": "json_schema", "json_schema": { "name": "city", "schema": schema } });
    let (status, found) = server.post("/v1/chat/completions", &held);
    assert_eq!(status, 200, "{found}");
    let text = found["choices"][0]["message"]["content"]
        .as_str()
        .expect("a text");
    let city: Json = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(city["city"] == "Rome" || city["city"] == "Paris", "{city}");
    let mut stopped =
        json!({ "prompt": "one two three four one two", "temperature": 0, "max_tokens": 9 });
    let text = |body: &Json| {
        let (_, found) = server.post("/v1/completions", body);
        let choice = &found["choices"][0];
        let text = choice["text"].as_str().expect("a text").to_owned();
        (text, choice["finish_reason"].clone())
    };
    let (whole, reason) = text(&stopped);
    assert_eq!(reason, "length");
    // The last word begins somewhere inside the tokens.
    let stop = whole.split_whitespace().next_back().expect("a word");
    stopped["stop"] = stop.into();
    let (part, reason) = text(&stopped);
    assert_eq!(reason, "stop");
    assert_eq!(part, whole[..whole.find(stop).expect("the word")]);
}

#[test]
fn what_is_wrong_is_said_and_the_server_goes_on() {
    let Some(server) = server(&["--api-key", "secret", "--body-size", "64KiB"]) else {
        return;
    };
    let key = "Authorization: Bearer secret\r\n";
    let post = |body: &str| server.exchange("POST", "/v1/chat/completions", key, body).0;
    assert_eq!(server.exchange("GET", "/health", "", "").0, 200);
    assert_eq!(server.exchange("GET", "/v1/models", "", "").0, 401);
    assert_eq!(server.exchange("GET", "/v1/models", key, "").0, 200);
    assert_eq!(server.exchange("GET", "/nothing", key, "").0, 404);
    let deep = "[".repeat(10_000);
    for bad in [
        "",
        "{",
        "[]",
        "{}",
        "{\"messages\": []}",
        "{\"messages\": 3}",
        &deep,
    ] {
        assert_eq!(post(bad), 400, "{bad}");
    }
    assert_eq!(post(&" ".repeat(100_000)), 413);
    let mut refused = question();
    for (field, value) in [
        ("temperature", json!(-1)),
        ("n", json!(99)),
        ("logit_bias", json!({ "x": 1 })),
    ] {
        let kept = refused[field].take();
        refused[field] = value;
        assert_eq!(post(&refused.to_string()), 400, "{field}");
        refused[field] = kept;
    }
    // Clients that go away before the answer.
    for _ in 0..5 {
        let mut long = question();
        long["max_tokens"] = 500.into();
        let long = long.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{key}Content-Length: {}",
            long.len()
        );
        drop(server.send(&format!("{head}\r\n\r\n{long}")));
    }
    assert_eq!(post(&question().to_string()), 200);
    // That a client has gone is seen at the next token or, while it waits for a slot, at its turn.
    let begun = Instant::now();
    loop {
        let (_, figures) = server.exchange("GET", "/metrics", key, "");
        if figures.contains("cupola_running 0\n") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{figures}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

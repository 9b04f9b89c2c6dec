//! The server as clients see it. `CUPOLA_TEST_MODELS` names a folder with SmolLM2 in it; without it nothing is
//! checked, and the tests say so.

#[allow(dead_code, reason = "what is not used here is for other tests")]
mod support;

use serde_json::{Value as Json, json};
use std::time::{Duration, Instant};
use support::server::{question, server};

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

/// The events of a stream, without the last.
fn events(body: &str) -> Vec<Json> {
    let data: Vec<&str> = body
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .collect();
    assert_eq!(data.last(), Some(&"[DONE]"), "{body}");
    data[..data.len() - 1]
        .iter()
        .map(|d| serde_json::from_str(d).expect("a chunk"))
        .collect()
}

fn tools() -> Json {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "$ref": "#/$defs/city" }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["city", "days"],
        "$defs": { "city": { "enum": ["Paris", "Rome"] } },
    });
    json!([
        { "type": "function", "function": { "name": "weather", "parameters": parameters } },
        { "type": "function", "function": { "name": "now", "description": "The time" } },
    ])
}

#[test]
fn functions_are_called_where_that_is_demanded() {
    let Some(server) = server(&[]) else { return };
    let mut body = question();
    body["tools"] = tools();
    body["max_tokens"] = 60.into();
    body["tool_choice"] = json!({ "type": "function", "function": { "name": "weather" } });
    let (status, found) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{found}");
    let choice = &found["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{found}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "weather");
    let text = call["function"]["arguments"].as_str().expect("a text");
    let arguments: Json = serde_json::from_str(text).expect("JSON");
    assert!(
        arguments["days"]
            .as_u64()
            .is_some_and(|d| (1..=9).contains(&d)),
        "{arguments}"
    );
    assert!(choice["message"]["content"].is_null());

    // The same in pieces.
    body["stream"] = true.into();
    let (_, streamed) = server.exchange("POST", "/v1/chat/completions", "", &body.to_string());
    let chunks = events(&streamed);
    let deltas: Vec<&Json> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    let calls = deltas
        .iter()
        .filter_map(|d| d["tool_calls"].as_array())
        .flatten();
    let calls: Vec<&Json> = calls.collect();
    assert_eq!(calls[0]["function"]["name"], "weather");
    assert!(calls[0]["id"].as_str().is_some_and(|id| id.len() == 9));
    let pieces = calls
        .iter()
        .filter_map(|c| c["function"]["arguments"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    assert_eq!(
        chunks[chunks.len() - 1]["choices"][0]["finish_reason"],
        "tool_calls"
    );

    // The answer of the function, and any of the functions.
    body["stream"] = false.into();
    body["tool_choice"] = "required".into();
    let messages = body["messages"].as_array_mut().expect("messages");
    let asked = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
    messages.extend([
        asked,
        json!({ "role": "tool", "tool_call_id": call["id"], "content": "sunny" }),
    ]);
    let (status, found) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{found}");
    let name = &found["choices"][0]["message"]["tool_calls"][0]["function"]["name"];
    assert!(name == "weather" || name == "now", "{found}");

    body["tool_choice"] = "none".into();
    let (_, found) = server.post("/v1/chat/completions", &body);
    assert!(
        found["choices"][0]["message"]["content"].is_string(),
        "{found}"
    );
    for (field, wrong) in [
        (
            "tool_choice",
            json!({ "type": "function", "function": { "name": "other" } }),
        ),
        ("tool_choice", json!("perhaps")),
        ("tools", json!([{ "name": "weather" }])),
        (
            "messages",
            json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
        ),
        ("messages", json!([{ "content": "who?" }])),
    ] {
        let mut bad = body.clone();
        bad[field] = wrong;
        assert_eq!(server.post("/v1/chat/completions", &bad).0, 400, "{bad}");
    }
}

#[test]
fn texts_are_bounded_and_repeated_where_asked() {
    let Some(server) = server(&[]) else { return };
    let body = json!({ "prompt": ["one two three", "a b c"], "max_tokens": 3, "temperature": 0, "echo": true });
    let (status, found) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{found}");
    let text = |i: usize| {
        found["choices"][i]["text"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    assert!(text(0).starts_with("one two three"), "{found}");
    assert!(text(1).starts_with("a b c"), "{found}");
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (_, pieces) = server.exchange("POST", "/v1/completions", "", &streamed.to_string());
    let choices = events(&pieces);
    let of = |i: usize| {
        let choices = choices.iter().map(|c| &c["choices"][0]);
        let mine = choices.filter(|c| c["index"] == i);
        mine.filter_map(|c| c["text"].as_str()).collect::<String>()
    };
    assert_eq!((of(0), of(1)), (text(0), text(1)));
    // No text is longer than the context, however much is asked for.
    let long = json!({ "prompt": "one two three ".repeat(320), "max_tokens": 1_000_000, "temperature": 0 });
    let (status, found) = server.post("/v1/completions", &long);
    assert_eq!(status, 200, "{found}");
    assert_eq!(found["choices"][0]["finish_reason"], "length");
    assert!(
        found["usage"]["total_tokens"]
            .as_u64()
            .is_some_and(|n| n <= 1025),
        "{found}"
    );
    for (field, wrong) in [
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1e300)),
        ("n", json!(0)),
        ("logprobs", json!(21)),
        ("prompt", json!([])),
        ("prompt", json!({})),
        ("prompt", json!([1, "a"])),
        ("stop", json!(3)),
        ("grammar", json!("root ::= nothing")),
    ] {
        let mut bad = body.clone();
        bad["echo"] = false.into();
        bad[field] = wrong;
        let (status, found) = server.post("/v1/completions", &bad);
        assert_eq!(status, 400, "{bad}: {found}");
    }
    assert_eq!(server.exchange("GET", "/v1/completions", "", "").0, 405);
    let (_, found) = server.post(
        "/v1/completions",
        &json!({ "prompt": "a b c d", "max_tokens": 4, "temperature": 0, "logprobs": 1 }),
    );
    let told = &found["choices"][0]["logprobs"];
    let tokens = told["tokens"].as_array().expect("tokens");
    let len = tokens[0].as_str().expect("a token").chars().count();
    assert_eq!(told["text_offset"][1], len, "{found}");
    let mut chat = question();
    chat["logprobs"] = true.into();
    chat["top_logprobs"] = 2.into();
    let (_, found) = server.post("/v1/chat/completions", &chat);
    let told = found["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("tokens");
    assert_eq!(told[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        told[0]["top_logprobs"][0]["logprob"], told[0]["logprob"],
        "{found}"
    );
}

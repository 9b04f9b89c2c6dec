//! Servers of encoders: vectors over HTTP. `CUPOLA_TEST_MODELS` names a folder with MiniLM in it; without it nothing
//! is checked, and the tests say so.

#[allow(dead_code, reason = "what is not used here is for other tests")]
mod support;

use serde_json::{Value as Json, json};
use support::server::{Server, model, question, serve, server};

fn numbers(of: &Json) -> Vec<f64> {
    let list = of.as_array().expect("a list");
    list.iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn assert_near(a: &[f64], b: &[f64], within: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= within, "{a} and {b}");
    }
}

#[test]
fn encoders_give_the_vectors_of_the_command_line() {
    let Some(folder) = model("minilm-l6-v2-f32") else {
        return;
    };
    let server = serve(&folder, &[]);
    let texts = ["A cat sits on the mat.", "Vectors of texts", "x"];
    let mut args = vec!["embed", &folder, "--json", "-p"];
    args.extend(texts);
    let printed = support::run(&args);
    let printed: Json = serde_json::from_slice(&printed.stdout).expect("JSON");

    let (status, found) = server.post(
        "/v1/embeddings",
        &json!({ "input": texts, "model": "small" }),
    );
    assert_eq!(status, 200, "{found}");
    for i in 0..texts.len() {
        assert_eq!(found["data"][i]["index"], i);
        let vector = numbers(&found["data"][i]["embedding"]);
        assert_near(&vector, &numbers(&printed["embeddings"][i]), 1e-5);
    }
    let used: u64 = printed["tokens"]
        .as_array()
        .expect("counts")
        .iter()
        .filter_map(Json::as_u64)
        .sum();
    assert_eq!(
        found["usage"],
        json!({ "prompt_tokens": used, "total_tokens": used })
    );

    // The same as base64, as one text, and as tokens.
    let coded = json!({ "input": texts[0], "encoding_format": "base64", "dimensions": 384 });
    let (_, coded) = server.post("/v1/embeddings", &coded);
    let coded = coded["data"][0]["embedding"].as_str().expect("a text");
    let plain = numbers(&found["data"][0]["embedding"]);
    assert_near(&floats(coded), &plain, 1e-6);
    let tokens = support::run(&["tokenize", &folder, "-p", texts[0], "--json"]);
    let tokens: Json = serde_json::from_slice(&tokens.stdout).expect("JSON");
    let tokens = &tokens["tokens"];
    for input in [tokens.clone(), json!([tokens, tokens])] {
        let (status, found) = server.post("/v1/embeddings", &json!({ "input": input }));
        assert_eq!(status, 200, "{found}");
        assert_near(&numbers(&found["data"][0]["embedding"]), &plain, 1e-5);
    }
    for bad in [
        json!({}),
        json!({ "input": "" , "dimensions": 7 }),
        json!({ "input": [] }),
        json!({ "input": [[]] }),
        json!({ "input": [[4_000_000_000u32]] }),
        json!({ "input": { "a": 1 } }),
        json!({ "input": "a ".repeat(1000) }),
        json!({ "input": "a", "encoding_format": "hex" }),
    ] {
        let (status, found) = server.post("/v1/embeddings", &bad);
        assert_eq!(status, 400, "{bad}: {found}");
    }
    let (status, found) = server.post("/v1/chat/completions", &question());
    let message = found["error"]["message"].as_str().expect("a message");
    assert!(
        status == 400 && message.contains("does not generate"),
        "{found}"
    );
    let (_, models) = server.exchange("GET", "/v1/models/small", "", "");
    assert!(models.contains("context_length"), "{models}");
    several_at_once(&server, &plain, texts[0]);
}

/// Requests that come together share runs, and change nothing for each other.
fn several_at_once(server: &Server, vector: &[f64], text: &str) {
    let long = "many words of a text ".repeat(40);
    std::thread::scope(|scope| {
        let ask = || {
            let mut texts = vec![long.as_str(); 25];
            texts[0] = text;
            let (_, found) = server.post("/v1/embeddings", &json!({ "input": texts }));
            assert_near(&numbers(&found["data"][0]["embedding"]), vector, 1e-5);
        };
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        clients
            .into_iter()
            .for_each(|client| client.join().expect("an answer"));
    });
    let (_, figures) = server.exchange("GET", "/metrics", "", "");
    assert!(figures.contains("cupola_waiting 0\n"), "{figures}");
}

/// Base64 of f32s.
fn floats(text: &str) -> Vec<f64> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let values = text
        .bytes()
        .filter_map(|c| digits.iter().position(|d| *d == c));
    let (mut bytes, mut bits, mut len) = (vec![], 0usize, 0);
    for value in values {
        (bits, len) = (bits << 6 | value, len + 6);
        if len >= 8 {
            len -= 8;
            bytes.push((bits >> len & 255) as u8);
        }
    }
    let each = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    each.map(f64::from).collect()
}

#[test]
fn decoders_say_that_they_give_no_vectors() {
    let Some(server) = server(&[]) else { return };
    let (status, found) = server.post("/v1/embeddings", &json!({ "input": "a" }));
    let message = found["error"]["message"].as_str().expect("a message");
    assert!(status == 400 && message.contains("no vectors"), "{found}");
}

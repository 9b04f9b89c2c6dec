//! A server that ends with the test, and what clients say to it over plain sockets.

use super::cupola;
use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// A server that ends with the test.
pub struct Server {
    child: Child,
    /// Host and port.
    pub address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself fails the test elsewhere.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One with SmolLM2, or nothing where there are no models.
pub fn server(flags: &[&str]) -> Option<Server> {
    let model = model("smollm2-135m-q4_1/model.gguf")?;
    Some(serve(&model, &[&["-c", "1024"], flags].concat()))
}

/// The path of one of the models.
pub fn model(name: &str) -> Option<String> {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS") else {
        eprintln!("CUPOLA_TEST_MODELS is not set: nothing is checked");
        return None;
    };
    let model = std::path::Path::new(&folder).join(name);
    Some(model.to_string_lossy().into_owned())
}

/// One with a model.
pub fn serve(model: &str, flags: &[&str]) -> Server {
    let args = ["serve", model, "--port", "0", "--name", "small"];
    let mut child = cupola(&[&args[..], flags].concat())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cupola starts");
    let mut lines = BufReader::new(child.stderr.take().expect("its errors")).lines();
    let address = lines
        .find_map(|line| Some(line.ok()?.strip_prefix("listening on http://")?.to_string()))
        .expect("it listens");
    Server { child, address }
}

impl Server {
    /// A connection on which this was sent.
    pub fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("sent");
        stream
    }

    /// Status and body.
    pub fn exchange(&self, method: &str, path: &str, header: &str, body: &str) -> (u16, String) {
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

    /// Status and body of a JSON document that was sent.
    pub fn post(&self, path: &str, body: &Json) -> (u16, Json) {
        let (status, body) = self.exchange("POST", path, "", &body.to_string());
        (
            status,
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")),
        )
    }
}

/// A conversation with one answer.
pub fn question() -> Json {
    json!({
        "messages": [
            { "role": "system", "content": "You are a helpful assistant." },
            { "role": "user", "content": "What is the capital of France?" },
        ],
        "temperature": 0,
        "max_tokens": 12,
    })
}

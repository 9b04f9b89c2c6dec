//! Files of saved texts: what is written is read again, by the same model only, and damage is found.

use cupola::language::{identity, read_snapshot, write_snapshot};
use cupola::llm::{Decoder, Engine, EngineOptions, Request, Snapshot};
use cupola::{Graph, Host, LanguageOptions, Model, ModelOptions, Options, Program};
use std::path::{Path, PathBuf};

fn graph(name: &str, dtype: cupola::DType) -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../frontends/language/tests/fixtures")
        .join(name);
    let options = ModelOptions {
        language: LanguageOptions {
            page_len: 4,
            cache_dtype: dtype,
            ..LanguageOptions::default()
        },
        ..ModelOptions::default()
    };
    let model = Model::open_with(path, options).expect("a model");
    model.graph().expect("a graph").as_ref().clone()
}

fn engine(graph: &Graph) -> Engine {
    let program = Program::compile(graph.clone(), &Host::new(), &Options::default());
    let program = program.expect("a program");
    let decoder = Decoder::new(program.into(), 8).expect("a decoder");
    Engine::new(decoder, EngineOptions::new(32)).expect("an engine")
}

const TEXT: [u32; 11] = [3, 17, 40, 8, 63, 0, 25, 25, 9, 31, 58];

/// A text of two pages.
fn saved(graph: &Graph) -> Snapshot {
    let mut engine = engine(graph);
    let request = Request {
        prompt: TEXT.to_vec(),
        most: 3,
        ..Request::default()
    };
    engine.submit(request).expect("taken");
    while !engine.is_idle() {
        engine.step().expect("a step");
    }
    let snapshot = engine.snapshot(&TEXT).expect("saved");
    assert_eq!(snapshot.tokens, TEXT[..8]);
    snapshot
}

fn written(snapshot: &Snapshot, graph: &Graph) -> Vec<u8> {
    let mut bytes = vec![];
    write_snapshot(snapshot, graph, &mut bytes).expect("written");
    bytes
}

/// A file that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("cupola-saved-{name}-{}", std::process::id())))
    }

    fn read(&self, bytes: &[u8], graph: &Graph) -> cupola::Result<Snapshot> {
        std::fs::write(&self.0, bytes).expect("a file");
        read_snapshot(&self.0, graph)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_gives_what_was_saved() {
    let file = Scratch::new("whole");
    for dtype in [cupola::DType::F16, cupola::DType::F32, cupola::DType::BF16] {
        let graph = graph("llama", dtype);
        let snapshot = saved(&graph);
        let read = file.read(&written(&snapshot, &graph), &graph);
        let read = read.expect("read");
        assert_eq!(read, snapshot);
        assert_eq!(engine(&graph).restore(&read).expect("restored"), 8);
    }
}

#[test]
fn a_model_is_told_from_every_other() {
    let file = Scratch::new("foreign");
    let own = graph("llama", cupola::DType::F16);
    let bytes = written(&saved(&own), &own);
    assert_eq!(
        identity(&own),
        identity(&graph("llama", cupola::DType::F16))
    );
    // The same sizes with other weights, other types of keys, another family.
    for other in [
        graph("llama-linear", cupola::DType::F16),
        graph("llama", cupola::DType::F32),
        graph("qwen2", cupola::DType::F16),
    ] {
        let error = file.read(&bytes, &other).expect_err("refused");
        assert_eq!(error.class(), cupola::Class::Malformed);
        assert!(error.to_string().contains("another model"), "{error}");
    }
}

#[test]
fn every_damaged_file_is_refused() {
    let file = Scratch::new("damaged");
    let graph = graph("llama", cupola::DType::F16);
    let bytes = written(&saved(&graph), &graph);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let error = file.read(&damaged, &graph).expect_err("refused");
        assert_eq!(
            error.class(),
            cupola::Class::Malformed,
            "byte {at}: {error}"
        );
    }
    for len in (0..bytes.len()).step_by(7) {
        file.read(&bytes[..len], &graph).expect_err("refused");
    }
    file.read(&[&bytes[..], &[0]].concat(), &graph)
        .expect_err("refused");
}

#[test]
fn claims_are_not_believed() {
    let file = Scratch::new("claims");
    let graph = graph("llama", cupola::DType::F16);
    let claim = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes
    };
    let meta = r#""__metadata__":{"format":"cupola saved text 1"}"#;
    let huge = r#"{"dtype":"U32","shape":[4611686018427387904],"data_offsets":[0,0]}"#;
    let files = [
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        claim("{}"),
        claim(&format!("{{{meta}}}")),
        claim(&format!("{{{meta},\"tokens\":{huge}}}")),
        claim(&format!("{{{meta},\"key.0\":{huge}}}")),
    ];
    for bytes in files {
        let error = file.read(&bytes, &graph).expect_err("refused");
        assert_eq!(error.class(), cupola::Class::Malformed, "{error}");
    }
}

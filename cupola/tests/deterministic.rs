//! A deterministic engine gives a text the same logits, bit for bit, with any number of threads, in any number of steps
//! and beside any others. Of SmolLM2 too where `CUPOLA_TEST_MODELS` names a folder with it.

use cupola::llm::{Decoder, Engine, EngineOptions, Event, LogProbs, Request, SequenceId};
use cupola::{Host, LanguageOptions, Model, ModelOptions, Options, Precision, Program};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Fixtures of dense weights, tied and untied heads, windows, experts; SmolLM2 of blocks.
fn models() -> Vec<PathBuf> {
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../frontends/language/tests/fixtures");
    let names = [
        "llama",
        "llama3",
        "llama/model.gguf",
        "mistral",
        "mixtral",
        "gemma2",
        "gpt2",
        "phi3",
    ];
    let mut all: Vec<PathBuf> = names.iter().map(|name| fixtures.join(name)).collect();
    match std::env::var_os("CUPOLA_TEST_MODELS") {
        Some(folder) => all.push(Path::new(&folder).join("smollm2-135m-q4_1/model.gguf")),
        None => eprintln!("CUPOLA_TEST_MODELS is not set: SmolLM2 is not checked"),
    }
    all
}

fn program(path: &Path, threads: usize, precision: Precision) -> Arc<Program> {
    let options = ModelOptions {
        language: LanguageOptions::default(),
        ..ModelOptions::default()
    };
    let model = Model::open_with(path, options).expect("a model");
    let graph = model.graph().expect("a graph").as_ref().clone();
    let options = Options {
        threads,
        precision,
        deterministic: true,
        ..Options::default()
    };
    Arc::new(Program::compile(graph, &Host::new(), &options).expect("a program"))
}

/// A text of tokens that every model here has.
fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i * seed + 5 * i + seed) % 64)
        .collect()
}

fn take(all: &mut Vec<LogProbs>, id: SequenceId, events: Vec<Event>) {
    for event in events {
        match event {
            Event::Token {
                sequence,
                log_probs,
                ..
            } if sequence == id => all.extend(log_probs),
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
}

/// All log-probabilities of a text's new tokens, its prompt computed in steps of so many rows, beside so many others.
fn text(program: &Arc<Program>, rows: usize, others: u32) -> Vec<LogProbs> {
    let decoder = Decoder::new(program.clone(), 64).expect("a decoder");
    let top = decoder.vocab_len().min(64);
    let options = EngineOptions {
        slots: 1 + others as usize,
        rows: rows.max(1 + others as usize),
        rows_beside: rows,
        deterministic: true,
        ..EngineOptions::new(64)
    };
    let mut engine = Engine::new(decoder, options).expect("an engine");
    for i in 0..others {
        let request = Request {
            prompt: prompt(i + 3, 3 + 9 * i),
            most: 12,
            ..Request::default()
        };
        engine.submit(request).expect("taken");
    }
    let request = Request {
        prompt: prompt(1, 37),
        most: 10,
        log_probs: Some(top),
        ..Request::default()
    };
    let id = engine.submit(request).expect("taken");
    let mut all = vec![];
    while !engine.is_idle() {
        take(&mut all, id, engine.step().expect("a step"));
    }
    assert_eq!(all.len(), 10);
    all
}

#[test]
fn threads_steps_and_neighbours_change_no_bit() {
    for path in models() {
        for precision in [Precision::Model, Precision::F32, Precision::Bf16] {
            let alone = program(&path, 1, precision);
            let want = text(&alone, 64, 0);
            let both = program(&path, 2, precision);
            let cases = [
                (&alone, 1, 0),
                (&alone, 7, 0),
                (&alone, 17, 0),
                (&alone, 64, 3),
                (&both, 64, 0),
                (&both, 7, 5),
            ];
            for (program, rows, others) in cases {
                assert!(
                    text(program, rows, others) == want,
                    "{} {precision:?}: steps of {rows} rows, {others} others",
                    path.display()
                );
            }
        }
    }
}

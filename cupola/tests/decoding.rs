//! Texts that a GPU writes are those that the CPU writes: tiny models of every family, greedily and in f32. Where
//! `CUPOLA_TEST_REQUIRE_GPU` is set.

use cupola_ir::DType;
use cupola_language::{Kind, LanguageModel, Options};
use cupola_llm::sample::Sampling;
use cupola_llm::{Decoder, Engine, EngineOptions, Event, Request, SequenceId, with_likeliest};
use cupola_passes::Precision;
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAGE_LEN: usize = 4;

fn has_gpu() -> bool {
    let required = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").is_some();
    if !required {
        eprintln!("CUPOLA_TEST_REQUIRE_GPU is not set: nothing is checked");
    }
    required
}

fn open(path: &Path) -> LanguageModel {
    let options = Options {
        cache_dtype: DType::F32,
        page_len: PAGE_LEN,
        ..Options::default()
    };
    LanguageModel::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Folders of decoders among the fixtures.
fn decoders() -> Vec<PathBuf> {
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../frontends/language/tests/fixtures");
    let all = std::fs::read_dir(fixtures).expect("fixtures").flatten();
    let folders = all.map(|e| e.path());
    let mut folders: Vec<PathBuf> = folders
        .filter(|path| path.join("config.json").exists())
        .filter(|path| open(path).config.kind == Kind::Decoder)
        .collect();
    folders.sort();
    folders
}

fn engine(path: &Path, device: DeviceSpec) -> Engine {
    let options = CompileOptions {
        device,
        precision: Precision::F32,
        threads: 1,
        ..CompileOptions::default()
    };
    let mut graph = open(path).graph;
    if options.device == DeviceSpec::Gpu(0) {
        graph = with_likeliest(graph).expect("a decoder");
    }
    let program = Program::compile(graph, &Host::new(), &options).expect("a program");
    let decoder = Decoder::new(Arc::new(program), 30).expect("a decoder");
    let options = EngineOptions {
        slots: 2,
        rows: 12,
        rows_beside: 5,
        ..EngineOptions::new(50)
    };
    Engine::new(decoder, options).expect("an engine")
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * (2 * seed + 3) + seed) % 64).collect()
}

fn request(prompt: Vec<u32>, most: usize) -> Request {
    Request {
        prompt,
        most,
        ..Request::default()
    }
}

/// The texts of some prompts that are continued side by side.
fn continued(engine: &mut Engine, prompts: &[(Vec<u32>, usize)]) -> Vec<Vec<u32>> {
    let mut texts: BTreeMap<SequenceId, Vec<u32>> = BTreeMap::new();
    for (prompt, most) in prompts {
        let id = engine
            .submit(request(prompt.clone(), *most))
            .expect("taken");
        texts.insert(id, vec![]);
    }
    while !engine.is_idle() {
        for event in engine.step().expect("a step") {
            match event {
                Event::Token {
                    sequence, token, ..
                } => {
                    texts
                        .get_mut(&sequence)
                        .expect("a text of ours")
                        .push(token);
                }
                Event::Failed { error, .. } => panic!("{error}"),
                Event::Prefill { .. } | Event::Finished { .. } => {}
            }
        }
    }
    texts.into_values().collect()
}

#[test]
fn greedy_texts_are_those_of_the_cpu() {
    if !has_gpu() {
        return;
    }
    let folders = decoders();
    assert!(folders.len() >= 12, "{folders:?}");
    for folder in folders {
        let run = |device| {
            let mut engine = engine(&folder, device);
            // A prompt of several steps beside a short one, then one that begins as the first did.
            let first = prompt(1, 17);
            let mut texts = continued(&mut engine, &[(first.clone(), 9), (prompt(2, 6), 14)]);
            let again = [&first[..], &prompt(5, 3)].concat();
            texts.extend(continued(&mut engine, &[(again, 6)]));
            let reused = engine.stats().reused;
            assert!(reused >= 4 * PAGE_LEN as u64, "{reused} tokens reused");
            texts
        };
        let (found, wanted) = (run(DeviceSpec::Gpu(0)), run(DeviceSpec::Cpu));
        assert_eq!(found, wanted, "{}", folder.display());
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [9, 14, 6]);
    }
}

/// A greedy step reads one number for each text, and the cache stays where it is; others read logits.
#[test]
fn a_greedy_step_reads_tokens_alone() {
    if !has_gpu() {
        return;
    }
    let folder = decoders().into_iter().find(|path| path.ends_with("qwen3"));
    let mut engine = engine(&folder.expect("a fixture"), DeviceSpec::Gpu(0));
    let program = engine.decoder().program().clone();
    let plan = &program.compiled().expect("a plan").plan;
    // Keys and values of both blocks.
    assert_eq!(plan.overwritten.len(), 4);
    let greedy = || request(prompt(1, 9), 6);
    let sampled = || Request {
        sampling: Sampling {
            temperature: 0.5,
            ..Sampling::default()
        },
        ..greedy()
    };
    let vocab_len = engine.decoder().vocab_len() as u64;
    for (requests, bytes) in [
        (vec![greedy()], 4),
        (vec![greedy(), greedy()], 8),
        (vec![sampled()], 4 * vocab_len),
        (vec![greedy(), sampled()], 8 * vocab_len),
    ] {
        for request in requests {
            engine.submit(request).expect("taken");
        }
        // Prompts first.
        engine.step().expect("a step");
        engine.step().expect("a step");
        let mut held = None;
        while !engine.is_idle() {
            let tokens = engine.step().expect("a step");
            let tokens = tokens.iter().filter(|e| matches!(e, Event::Token { .. }));
            let stats = engine.decoder().stats();
            assert_eq!((stats.waits, stats.submissions), (1, 1), "{stats:?}");
            assert_eq!(stats.read_bytes, bytes, "{} tokens", tokens.count());
            // Nothing grows from step to step.
            assert_eq!(*held.get_or_insert(stats.held_bytes), stats.held_bytes);
        }
    }
}

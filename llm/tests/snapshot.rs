//! Texts saved by one engine and continued by another: bit for bit what the first would have given.

mod common;

use common::*;
use cupola_ir::Tensor;
use cupola_llm::{Engine, EngineOptions, Event, LlmError, LogProbs, Request, Snapshot};
use cupola_runtime::DeviceSpec;

fn text(len: u32) -> Vec<u32> {
    (0..len).map(|i| (i * i + 3) % VOCAB as u32).collect()
}

fn engine_on(device: DeviceSpec, pages: usize) -> Engine {
    let decoder = cupola_llm::Decoder::new(program_on(device), pages).expect("a decoder");
    Engine::new(decoder, options()).expect("an engine")
}

/// Tokens of a continued text with all log-probabilities, and how many of the prompt's were known.
fn continued(engine: &mut Engine, prompt: &[u32]) -> (Vec<LogProbs>, usize) {
    let request = Request {
        log_probs: Some(VOCAB),
        ..request(prompt, 8)
    };
    engine.submit(request).expect("taken");
    let (mut all, mut reused) = (vec![], 0);
    while !engine.is_idle() {
        for event in engine.step().expect("a step") {
            match event {
                Event::Token { log_probs, .. } => all.extend(log_probs),
                Event::Finished { usage, .. } => reused = usage.reused,
                _ => {}
            }
        }
    }
    (all, reused)
}

/// A text of 22 tokens, saved, and the engine that it comes from.
fn saved(device: DeviceSpec) -> (Engine, Snapshot) {
    let mut engine = engine_on(device, 12);
    continued(&mut engine, &text(22));
    let snapshot = engine.snapshot(&text(22)).expect("saved");
    assert_eq!(snapshot.tokens, text(20), "whole pages");
    assert_eq!(snapshot.slots.len(), 2);
    (engine, snapshot)
}

#[test]
fn a_restored_text_goes_on_bit_for_bit() {
    for device in [DeviceSpec::Cpu, DeviceSpec::Reference] {
        let (mut first, snapshot) = saved(device.clone());
        let mut second = engine_on(device, 12);
        // Other pages than in the first engine.
        continued(&mut second, &[1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(second.restore(&snapshot).expect("restored"), 20);
        assert_eq!(second.stats().pages_held, 0);
        let prompt = text(30);
        let wanted = continued(&mut first, &prompt);
        assert_eq!(wanted.1, 20);
        assert_eq!(continued(&mut second, &prompt), wanted);
        assert_eq!(second.snapshot(&text(22)).expect("saved"), snapshot);
    }
}

#[test]
fn what_is_known_already_is_not_written_again() {
    let (mut engine, snapshot) = saved(DeviceSpec::Cpu);
    for _ in 0..3 {
        assert_eq!(engine.restore(&snapshot).expect("restored"), 20);
    }
    assert_eq!(engine.stats().pages_held, 0);
    let nothing = engine.snapshot(&[9, 9, 9, 9, 9]).expect("saved");
    assert!(nothing.tokens.is_empty());
    assert_eq!(engine.restore(&nothing).expect("restored"), 0);
}

#[test]
fn a_small_cache_takes_the_beginning() {
    let (mut first, snapshot) = saved(DeviceSpec::Cpu);
    let mut second = engine_on(DeviceSpec::Cpu, 3);
    assert_eq!(second.restore(&snapshot).expect("restored"), 12);
    // Texts under way keep their pages.
    let mut busy = engine_on(DeviceSpec::Cpu, 4);
    busy.submit(request(&text(9), 5)).expect("taken");
    busy.step().expect("a step");
    assert_eq!(busy.restore(&snapshot).expect("restored"), 12);
    let tokens = finish(&mut busy).into_values().next().expect("a text");
    assert_eq!(tokens.0.len(), 4);
    assert_eq!(continued(&mut first, &text(9)).1, 8);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (_, good) = saved(DeviceSpec::Cpu);
    let other = |change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = good.clone();
        change(&mut snapshot);
        snapshot
    };
    let slot = |pages: usize| Tensor::from_slice(&[pages, 1, PAGE_LEN, 8], &vec![0f32; pages * 32]);
    let wrong = [
        other(&|s| s.tokens.truncate(19)),
        other(&|s| s.tokens.truncate(16)),
        other(&|s| s.tokens[7] = VOCAB as u32),
        other(&|s| drop(s.slots.remove("key.0"))),
        other(&|s| drop(s.slots.insert("key.1".into(), s.slots["key.0"].clone()))),
        other(&|s| drop(s.slots.insert("key.0".into(), slot(5).expect("f32")))),
        other(&|s| drop(s.slots.insert("key.0".into(), slot(4).expect("f32")))),
    ];
    let mut engine = engine_on(DeviceSpec::Cpu, 12);
    for snapshot in wrong {
        let error = engine.restore(&snapshot).expect_err("refused");
        assert!(matches!(error, LlmError::Snapshot(_)), "{error}");
    }
    assert_eq!(engine.known_len(&text(22)), 0);
}

#[test]
fn an_engine_that_reuses_nothing_has_nothing_to_save() {
    let options = EngineOptions {
        reuse: false,
        ..options()
    };
    let mut engine = engine(12, options);
    continued(&mut engine, &text(22));
    let snapshot = engine.snapshot(&text(22)).expect("saved");
    assert!(snapshot.tokens.is_empty());
}

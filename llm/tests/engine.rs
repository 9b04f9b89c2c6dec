//! Texts of a tiny model: whatever happens beside a text, its tokens are those that it has alone.

mod common;

use common::*;
use cupola_llm::sample::Sampling;
use cupola_llm::speculate::PromptLookup;
use cupola_llm::{
    Batch, Constraint, Decoder, Engine, EngineOptions, Event, FinishReason, LlmError, Request,
    TokenMask,
};
use cupola_runtime::DeviceSpec;
use std::collections::BTreeMap;

/// A prompt that other numbers give others.
fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(seed * 2 + 1) ^ seed) % VOCAB as u32)
        .collect()
}

fn sampled(seed: u64) -> Sampling {
    Sampling {
        temperature: 1.5,
        seed,
        ..Sampling::default()
    }
}

#[test]
fn the_cpu_gives_the_logits_of_the_reference() {
    let tokens = prompt(3, 11);
    let run = |device| {
        let mut decoder = Decoder::new(program_on(device), 5).expect("a decoder");
        let mut rows = vec![];
        for (from, to) in [(0, 6), (6, 7), (7, 11)] {
            let mut batch = Batch::new();
            batch.push(&tokens[from..to], from, &[4, 0, 2]);
            batch.want(to - from);
            let logits = decoder.run(&batch).expect("logits");
            rows.extend((0..to - from).flat_map(|i| logits.row(i).to_vec()));
        }
        rows
    };
    let (found, wanted) = (run(DeviceSpec::Cpu), run(DeviceSpec::Reference));
    assert_eq!(found.len(), 11 * VOCAB);
    for (f, w) in found.iter().zip(&wanted) {
        assert!(f.is_finite() && (f - w).abs() < 1e-3, "{f} instead of {w}");
    }
}

#[test]
fn neighbours_and_chunks_change_no_token() {
    let mut engine = engine(30, options());
    let mut wanted = BTreeMap::new();
    for (i, len) in [3, 20, 1, 9, 14, 27].into_iter().enumerate() {
        let make = || Request {
            sampling: match i % 2 {
                0 => Sampling::default(),
                _ => sampled(i as u64),
            },
            ..request(&prompt(i as u32, len), 6 + i)
        };
        wanted.insert(engine.submit(make()).expect("taken"), alone(make()));
    }
    let found = finish(&mut engine);
    for (id, tokens) in wanted {
        assert_eq!(found[&id].0, tokens, "text {id}");
        assert_eq!(found[&id].1, Some(FinishReason::Length));
    }
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.pages_held), (0, 0, 0));
    assert!(stats.steps < 60, "{stats:?}");
}

#[test]
fn a_prompt_seen_before_is_found() {
    let mut engine = engine(30, options());
    let long = prompt(5, 23);
    engine.submit(request(&long, 4)).expect("taken");
    finish(&mut engine);
    assert_eq!(engine.known_len(&long), 20);
    let id = engine.submit(request(&long, 4)).expect("taken");
    let events = engine.step().expect("a step");
    assert!(
        matches!(
            events[0],
            Event::Prefill {
                done: 23,
                total: 23,
                ..
            }
        ),
        "one step computes what is left: {events:?}"
    );
    let mut texts = finish(&mut engine);
    let mut tokens = vec![];
    for event in events {
        if let Event::Token { token, .. } = event {
            tokens.push(token);
        }
    }
    tokens.append(&mut texts.get_mut(&id).expect("the text").0);
    assert_eq!(tokens, alone(request(&long, 4)));
    assert_eq!(engine.stats().reused, 20);
}

#[test]
fn texts_that_lack_pages_are_computed_again() {
    let mut engine = engine(
        8,
        EngineOptions {
            slots: 3,
            ..options()
        },
    );
    let mut wanted = BTreeMap::new();
    for seed in 0..3 {
        let make = || Request {
            sampling: sampled(9),
            ..request(&prompt(seed, 5), 20)
        };
        wanted.insert(engine.submit(make()).expect("taken"), alone(make()));
    }
    let found = finish(&mut engine);
    assert!(engine.stats().preempted > 0, "{:?}", engine.stats());
    for (id, tokens) in wanted {
        assert_eq!(found[&id].0, tokens, "text {id}");
    }
}

#[test]
fn a_cancelled_text_leaves_nothing_behind() {
    let mut engine = engine(10, options());
    let ids = [1, 2, 3, 4].map(|s| engine.submit(request(&prompt(s, 6), 20)).expect("taken"));
    engine.step().expect("a step");
    assert!(engine.cancel(ids[0]), "under way");
    assert!(engine.cancel(ids[3]), "waiting");
    assert!(!engine.cancel(ids[0]), "gone");
    let found = finish(&mut engine);
    assert!(!found.contains_key(&ids[0]) && !found.contains_key(&ids[3]));
    assert_eq!(found[&ids[1]].0.len(), 20);
    assert_eq!(engine.stats().pages_held, 0);
}

#[test]
fn a_full_context_ends_a_text_or_shifts_it() {
    let make = || request(&prompt(2, 10), 30);
    let full = EngineOptions {
        context_len: 16,
        ..options()
    };
    let mut engine = engine(4, full.clone());
    let id = engine.submit(make()).expect("taken");
    let (tokens, reason) = finish(&mut engine).remove(&id).expect("the text");
    assert_eq!(reason, Some(FinishReason::Context));
    assert_eq!(tokens, alone(make())[..7]);

    let mut engine = common::engine(
        4,
        EngineOptions {
            shift: Some(4),
            ..full
        },
    );
    let id = engine.submit(make()).expect("taken");
    let (shifted, reason) = finish(&mut engine).remove(&id).expect("the text");
    assert_eq!(reason, Some(FinishReason::Length));
    assert_eq!(shifted[..7], tokens);
    // After the shift the model sees the first 4 tokens and the newer half of the rest.
    let context = [&prompt(2, 10)[..], &shifted[..7]].concat();
    let context = [&context[..4], &context[11..]].concat();
    assert_eq!(shifted[7..12], alone(request(&context, 5)));
}

#[test]
fn guesses_change_no_token() {
    // Prompts of a period have something to look up.
    let periodic: Vec<u32> = [3, 7, 11, 7, 3, 9].repeat(3);
    for sampling in [Sampling::default(), sampled(4)] {
        let make = || Request {
            sampling: Sampling {
                logit_bias: vec![(3, 1.0), (7, 1.5)],
                ..sampling.clone()
            },
            ..request(&periodic, 20)
        };
        let mut engine = engine(
            30,
            EngineOptions {
                draft_len: 5,
                ..options()
            },
        );
        engine.set_drafter(Box::new(PromptLookup {
            longest: 3,
            shortest: 1,
        }));
        let ids = [(); 2].map(|()| engine.submit(make()).expect("taken"));
        let found = finish(&mut engine);
        let wanted = alone(make());
        for id in ids {
            assert_eq!(found[&id].0, wanted);
        }
        let stats = engine.stats();
        assert!(
            stats.drafted > 0 && stats.accepted <= stats.drafted,
            "{stats:?}"
        );
        assert_eq!(stats.pages_held, 0);
    }
}

/// Allows one token, then the next, and an end.
struct Ascending(u32);

impl Constraint for Ascending {
    fn mask(&mut self, allowed: &mut TokenMask) {
        allowed.forbid_all();
        if self.0 < 6 {
            allowed.allow(self.0);
        }
    }

    fn accept(&mut self, token: u32) {
        assert_eq!(token, self.0);
        self.0 += 1;
    }
}

#[test]
fn a_constraint_decides_what_comes() {
    let mut engine = engine(8, options());
    let constrained = Request {
        constraint: Some(Box::new(Ascending(2))),
        ..request(&[1], 20)
    };
    let id = engine.submit(constrained).expect("taken");
    let found = finish(&mut engine);
    assert_eq!(
        found[&id],
        (vec![2, 3, 4, 5], Some(FinishReason::Constraint))
    );
}

#[test]
fn an_end_token_ends_a_text_and_is_no_part_of_it() {
    let tokens = alone(request(&[1, 2, 3], 12));
    let end = tokens[3];
    let before = tokens.iter().position(|t| *t == end).expect("it is there");
    let mut engine = engine(8, options());
    let ending = Request {
        end_tokens: [end].into(),
        log_probs: Some(2),
        ..request(&[1, 2, 3], 12)
    };
    let id = engine.submit(ending).expect("taken");
    let found = finish(&mut engine);
    assert_eq!(
        found[&id],
        (tokens[..before].to_vec(), Some(FinishReason::EndToken(end)))
    );
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let mut engine = engine(
        3,
        EngineOptions {
            slots: 1,
            queue: 1,
            ..options()
        },
    );
    let refused = |engine: &mut Engine, request| engine.submit(request).expect_err("refused");
    assert!(matches!(
        refused(&mut engine, request(&[], 1)),
        LlmError::Request(_)
    ));
    assert!(matches!(
        refused(&mut engine, request(&[VOCAB as u32], 1)),
        LlmError::Request(_)
    ));
    assert!(matches!(
        refused(&mut engine, request(&[1], 0)),
        LlmError::Request(_)
    ));
    let long = refused(&mut engine, request(&[1; 13], 1));
    assert!(
        matches!(
            long,
            LlmError::TooLong {
                prompt: 13,
                room: 12
            }
        ),
        "{long}"
    );
    for _ in 0..2 {
        engine.submit(request(&[1; 12], 1)).expect("taken");
    }
    assert!(matches!(
        refused(&mut engine, request(&[1], 1)),
        LlmError::QueueFull(2)
    ));
    assert_eq!(finish(&mut engine).len(), 2);
}

#[test]
fn a_program_that_is_no_decoder_is_refused() {
    let graph = cupola_ir::Graph::new("empty");
    let error = cupola_llm::CacheShape::of(&graph).expect_err("refused");
    assert!(matches!(error, LlmError::NoDecoder(..)), "{error}");
}

//! Guesses by a model: whatever it guesses, texts stay those that come without it.

mod common;

use common::*;
use cupola_ir::eval::Stop;
use cupola_llm::sample::Sampling;
use cupola_llm::speculate::{DraftModel, Draftable, Drafter};
use cupola_llm::{Engine, EngineOptions, EngineStats, FinishReason, Request, Result};

fn sampled(seed: u64) -> Sampling {
    Sampling {
        temperature: 1.5,
        top_k: 8,
        seed,
        ..Sampling::default()
    }
}

/// Texts that differ in prompt, length and way of sampling.
fn texts() -> Vec<impl Fn() -> Request> {
    let text = |i: u32| {
        move || Request {
            sampling: match i % 2 {
                0 => Sampling::default(),
                _ => sampled(u64::from(i)),
            },
            ..request(
                &(0..3 + 5 * i)
                    .map(|p| (p * 7 + i) % VOCAB as u32)
                    .collect::<Vec<_>>(),
                14 + i as usize,
            )
        }
    };
    (0..5).map(text).collect()
}

/// Continues all texts side by side with a drafter; they must be those that each is alone.
fn check(drafter: impl Drafter + 'static, pages: usize) -> EngineStats {
    let options = EngineOptions {
        draft_len: 4,
        ..options()
    };
    let mut engine = engine(pages, options);
    engine.set_drafter(Box::new(drafter));
    let texts = texts();
    let ids: Vec<_> = texts
        .iter()
        .map(|text| engine.submit(text()).expect("taken"))
        .collect();
    let found = finish(&mut engine);
    for (id, text) in ids.iter().zip(&texts) {
        assert_eq!(found[id].0, alone(text()), "text {id}");
        assert_eq!(found[id].1, Some(FinishReason::Length));
    }
    let stats = engine.stats();
    assert!(
        stats.drafted > 0 && stats.accepted <= stats.drafted,
        "{stats:?}"
    );
    assert_eq!(stats.pages_held, 0);
    stats
}

#[test]
fn a_model_that_is_the_same_guesses_all_tokens() {
    let stats = check(DraftModel::new(other_decoder(7, 30), 60, 16), 30);
    // Of a text's last tokens some are guessed beyond its end in no step: every guess is right.
    assert_eq!(stats.accepted, stats.drafted, "{stats:?}");
    assert!(stats.accepted * 2 > stats.generated, "{stats:?}");
}

#[test]
fn a_model_that_is_wrong_changes_no_token() {
    let stats = check(DraftModel::new(other_decoder(1234, 30), 60, 16), 30);
    assert!(stats.accepted * 2 < stats.drafted, "{stats:?}");
}

#[test]
fn a_model_without_room_guesses_less() {
    let roomy = check(DraftModel::new(other_decoder(7, 30), 60, 16), 30);
    // Pages for one text at a time, texts longer than the context, rows of single tokens.
    for (pages, context, rows) in [(9, 60, 16), (30, 9, 16), (30, 60, 1), (2, 60, 3)] {
        let stats = check(DraftModel::new(other_decoder(7, pages), context, rows), 30);
        assert!(stats.accepted <= roomy.accepted, "{stats:?}");
    }
}

#[test]
fn texts_that_are_computed_again_are_guessed_on() {
    let stats = check(DraftModel::new(other_decoder(7, 30), 60, 16), 12);
    assert!(stats.preempted > 0 && stats.accepted > 0, "{stats:?}");
}

#[test]
fn a_text_that_is_shifted_is_guessed_on() {
    let run = |drafter: Option<DraftModel>| {
        let options = EngineOptions {
            context_len: 16,
            shift: Some(4),
            draft_len: 4,
            ..options()
        };
        let mut engine = engine(4, options);
        if let Some(drafter) = drafter {
            engine.set_drafter(Box::new(drafter));
        }
        let id = engine.submit(request(&[3, 1, 4, 1, 5], 40)).expect("taken");
        (finish(&mut engine)[&id].0.clone(), engine.stats())
    };
    let (plain, _) = run(None);
    let (guessed, stats) = run(Some(DraftModel::new(other_decoder(7, 8), 60, 16)));
    assert_eq!(guessed, plain);
    assert!(stats.accepted > 10, "{stats:?}");
}

#[test]
fn a_text_that_ended_leaves_its_pages_to_others() {
    let mut engine = engine(
        30,
        EngineOptions {
            draft_len: 4,
            ..options()
        },
    );
    // Room for the guesses on one text: the next has it only after the first.
    engine.set_drafter(Box::new(DraftModel::new(other_decoder(7, 6), 60, 16)));
    for seed in 0..4 {
        let before = engine.stats().accepted;
        let id = engine.submit(request(&[seed, 2, 3], 16)).expect("taken");
        assert_eq!(
            finish(&mut engine)[&id].0,
            alone(request(&[seed, 2, 3], 16))
        );
        assert!(engine.stats().accepted > before + 8, "{:?}", engine.stats());
    }
}

/// Guesses what no vocabulary has.
struct Foreign;

impl Drafter for Foreign {
    fn draft(&mut self, texts: &mut [Draftable<'_>], _: &Stop) -> Result<()> {
        for text in texts {
            text.draft.extend([0, VOCAB as u32, u32::MAX]);
        }
        Ok(())
    }
}

#[test]
fn guesses_outside_of_the_vocabulary_are_left_out() {
    check(Foreign, 30);
}

#[test]
fn a_run_that_is_stopped_can_go_on() {
    let mut engine: Engine = engine(
        30,
        EngineOptions {
            draft_len: 4,
            ..options()
        },
    );
    engine.set_drafter(Box::new(DraftModel::new(other_decoder(7, 30), 60, 16)));
    let id = engine.submit(request(&[5, 6, 7], 12)).expect("taken");
    let mut tokens = vec![];
    let mut take = |events: Vec<cupola_llm::Event>| {
        for event in events {
            if let cupola_llm::Event::Token { token, .. } = event {
                tokens.push(token);
            }
        }
    };
    take(engine.step().expect("a step"));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    engine.decoder_mut().stop_mut().flags = vec![stop.clone()];
    for _ in 0..3 {
        engine.step().expect_err("stopped");
    }
    stop.store(false, std::sync::atomic::Ordering::SeqCst);
    while !engine.is_idle() {
        take(engine.step().expect("a step"));
    }
    assert_eq!(tokens, alone(request(&[5, 6, 7], 12)), "text {id}");
}

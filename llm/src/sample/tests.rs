//! Choices against their definitions.

use super::*;
use crate::error::LlmError;

/// Logits in which token 0 has probability 1/2, token 1 1/4 and so on; the last two are alike.
fn halves(len: usize) -> Vec<f32> {
    let last = len as i32 - 2;
    (0..len as i32)
        .map(|i| -(i.min(last) as f32) * std::f32::consts::LN_2)
        .collect()
}

fn choice(sampling: &Sampling, place: u64) -> Choice<'_> {
    Choice {
        sampling,
        text: &[],
        place,
        allowed: None,
    }
}

/// How often each token is drawn in so many draws.
fn frequencies(logits: &[f32], sampling: &Sampling, draws: u64) -> Vec<f64> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0.0; logits.len()];
    for place in 0..draws {
        let token = sampler.choose(logits, choice(sampling, place));
        counts[token.expect("logits").expect("a token") as usize] += 1.0 / draws as f64;
    }
    counts
}

fn assert_near(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (f, w) in found.iter().zip(wanted) {
        assert!((f - w).abs() < 0.02, "{found:?} instead of {wanted:?}");
        assert!(*w > 0.0 || *f == 0.0, "{found:?} instead of {wanted:?}");
    }
}

fn warm() -> Sampling {
    Sampling {
        temperature: 1.0,
        ..Sampling::default()
    }
}

#[test]
fn temperature_0_takes_the_first_of_the_largest() {
    let mut sampler = Sampler::default();
    let sampling = Sampling::default();
    let mut logits = vec![0.5; 300];
    logits[70] = 2.0;
    logits[200] = 2.0;
    assert_eq!(
        sampler
            .choose(&logits, choice(&sampling, 0))
            .expect("logits"),
        Some(70)
    );
    logits[70] = f32::NAN;
    assert_eq!(
        sampler
            .choose(&logits, choice(&sampling, 0))
            .expect("logits"),
        Some(200)
    );
}

#[test]
fn a_model_that_gives_no_number_is_an_error() {
    let mut sampler = Sampler::default();
    for sampling in [Sampling::default(), warm()] {
        for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
            let chosen = sampler.choose(&[bad; 3], choice(&sampling, 0));
            assert!(
                matches!(chosen, Err(LlmError::NotFinite)),
                "{bad}: {chosen:?}"
            );
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = halves(4);
    assert_near(
        &frequencies(&logits, &warm(), 4000),
        &[0.5, 0.25, 0.125, 0.125],
    );
    let cold = Sampling {
        temperature: 0.5,
        ..warm()
    };
    let wanted = [0.25, 0.0625, 0.015625, 0.015625].map(|w| w / 0.34375);
    assert_near(&frequencies(&logits, &cold, 4000), &wanted);
}

#[test]
fn a_part_of_the_distribution_is_kept() {
    let logits = halves(5);
    let cases: [(Sampling, &[f64]); 6] = [
        (
            Sampling { top_k: 2, ..warm() },
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0],
        ),
        (
            Sampling {
                top_p: 0.6,
                ..warm()
            },
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0],
        ),
        (
            Sampling {
                top_p: 0.0,
                ..warm()
            },
            &[1.0, 0.0, 0.0, 0.0, 0.0],
        ),
        (
            Sampling {
                min_p: 0.3,
                ..warm()
            },
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0],
        ),
        // After top-k there are 4/7, 2/7 and 1/7: the first two reach 0.8.
        (
            Sampling {
                top_k: 3,
                top_p: 0.8,
                ..warm()
            },
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0],
        ),
        // The entropy is 1.875 bits: token 1 with its 2 bits is nearest, then token 0 with 1 bit.
        (
            Sampling {
                typical_p: 0.2,
                ..warm()
            },
            &[0.0, 1.0, 0.0, 0.0, 0.0],
        ),
    ];
    for (sampling, wanted) in cases {
        assert_near(&frequencies(&logits, &sampling, 4000), wanted);
    }
}

#[test]
fn the_likeliest_are_found_among_many() {
    let logits: Vec<f32> = (0..5000u32)
        .map(|i| (i.wrapping_mul(2654435761) >> 20) as f32)
        .collect();
    for k in [1, 7, 300, 4999, 6000] {
        let mut found = vec![];
        keep::largest(&logits, k, &mut found);
        found.sort_by(keep::more_likely);
        let mut wanted: Vec<u32> = (0..5000).collect();
        wanted.sort_by(|a, b| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then(a.cmp(b))
        });
        wanted.truncate(k);
        assert_eq!(found.iter().map(|c| c.token).collect::<Vec<_>>(), wanted);
    }
}

#[test]
fn a_sum_of_probabilities_needs_as_many_tokens_as_it_takes() {
    let mut sampler = Sampler::default();
    let logits = vec![0.0; 10_000];
    let sampling = Sampling {
        top_p: 0.5,
        ..warm()
    };
    for place in 0..50 {
        let token = sampler
            .choose(&logits, choice(&sampling, place))
            .expect("logits");
        assert!(token.expect("a token") < 5001);
    }
    assert!(
        sampler.candidates.len().abs_diff(5000) <= 1,
        "{}",
        sampler.candidates.len()
    );
}

#[test]
fn penalties_and_bias_change_logits() {
    let text = [9, 1, 1, 2];
    let sampling = Sampling {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        penalty_len: 3,
        logit_bias: vec![(3, 1.5), (0, f32::NEG_INFINITY)],
        ..Sampling::default()
    };
    let mut logits = vec![1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    logits::penalise(&mut logits, &sampling, &text);
    let inf = f32::NEG_INFINITY;
    assert_eq!(
        logits,
        [inf, -0.75, -2.75, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    );
}

#[test]
fn a_mask_leaves_what_it_allows() {
    let mut sampler = Sampler::default();
    let mut mask = TokenMask::none(4);
    let logits = halves(4);
    let sampling = Sampling::default();
    fn with<'a>(sampling: &'a Sampling, mask: &'a TokenMask) -> Choice<'a> {
        Choice {
            allowed: Some(mask),
            ..choice(sampling, 0)
        }
    }
    assert_eq!(
        sampler
            .choose(&logits, with(&sampling, &mask))
            .expect("logits"),
        None
    );
    mask.allow(2);
    assert_eq!(
        sampler
            .choose(&logits, with(&sampling, &mask))
            .expect("logits"),
        Some(2)
    );
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let found = log_probs(&halves(4), 1, 2);
    assert!((found.chosen.log_prob - 0.25f32.ln()).abs() < 1e-6);
    assert_eq!(
        found.top.iter().map(|t| t.token).collect::<Vec<_>>(),
        [0, 1]
    );
    assert!((found.top[0].log_prob - 0.5f32.ln()).abs() < 1e-6);
}

#[test]
fn numbers_outside_their_range_are_refused() {
    let bad = [
        Sampling {
            temperature: -1.0,
            ..warm()
        },
        Sampling {
            temperature: f32::NAN,
            ..warm()
        },
        Sampling {
            top_p: 1.5,
            ..warm()
        },
        Sampling {
            repetition_penalty: 0.0,
            ..warm()
        },
        Sampling {
            logit_bias: vec![(10, 1.0)],
            ..warm()
        },
    ];
    for sampling in bad {
        assert!(
            matches!(sampling.check(10), Err(LlmError::Request(_))),
            "{sampling:?}"
        );
    }
    assert!(warm().check(10).is_ok());
}

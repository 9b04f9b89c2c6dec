//! Changes of logits, and reductions over the vocabulary. A logit that is no number counts as impossible.

use super::Sampling;
use crate::error::{LlmError, Result};
use crate::mask::TokenMask;
use rustc_hash::FxHashMap;

/// Lanes of reductions: more than any vector has, so that they are vectors' work.
const LANES: usize = 64;

/// The largest number; negative infinity where there is none.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (most, x) in lanes.iter_mut().zip(chunk) {
            // A comparison with what is no number is false.
            *most = if *x > *most { *x } else { *most };
        }
    }
    let all = lanes.iter().chain(rest);
    all.fold(
        f32::NEG_INFINITY,
        |most, x| if *x > most { *x } else { most },
    )
}

/// The first token with the largest logit.
pub(super) fn largest(logits: &[f32]) -> Result<u32> {
    let most = maximum(logits);
    let first = logits.iter().position(|x| *x == most);
    let found = first.filter(|_| most.is_finite());
    found.map(|i| i as u32).ok_or(LlmError::NotFinite)
}

/// `ln(sum(exp(logits)))`, in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let most = maximum(logits);
    let mut lanes = [0.0f64; 8];
    for chunk in logits.chunks(lanes.len()) {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            let term = f64::from((x - most).exp());
            *sum += if term.is_nan() { 0.0 } else { term };
        }
    }
    f64::from(most) + lanes.iter().sum::<f64>().ln()
}

/// Applies bias and penalties.
pub(super) fn penalise(logits: &mut [f32], sampling: &Sampling, text: &[u32]) {
    if sampling.penalises() {
        let recent = &text[text.len().saturating_sub(sampling.penalty_len)..];
        let mut counts: FxHashMap<u32, u32> = FxHashMap::default();
        for token in recent {
            *counts.entry(*token).or_default() += 1;
        }
        for (token, count) in counts {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            *logit = match *logit > 0.0 {
                true => *logit / sampling.repetition_penalty,
                false => *logit * sampling.repetition_penalty,
            };
            *logit -= sampling.presence_penalty + count as f32 * sampling.frequency_penalty;
        }
    }
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
}

/// Makes what is not allowed impossible.
pub(super) fn restrict(logits: &mut [f32], allowed: &TokenMask) {
    for (token, logit) in logits.iter_mut().enumerate() {
        if !allowed.contains(token as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

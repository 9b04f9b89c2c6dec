//! From logits to a token.
//!
//! The order: logit bias and penalties change logits, a mask takes tokens out; then top-k, typical, top-p and min-p keep
//! a part of what is left, each over the distribution that the one before left; temperature shapes it, and a random
//! number draws. The random number of a token depends on the seed and the token's place in its text alone: neither batch
//! neighbours nor the way that a prompt was cut up change what is drawn. Temperature 0 takes the largest logit, the first
//! of several.
//!
//! Reading order: `options`, `logits` (penalties, reductions over the vocabulary), `keep` (top-k and its like).

mod keep;
mod logits;
mod options;

pub use logits::log_sum_exp;
pub use options::Sampling;

use crate::error::Result;
use crate::mask::TokenMask;
use cupola_ir::eval::random;
use keep::Candidate;

/// A token with the logarithm of its probability under the model, before anything that sampling does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProb {
    /// Token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
}

/// The chosen token's log-probability and the likeliest tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// The chosen token.
    pub chosen: LogProb,
    /// The likeliest tokens, most likely first.
    pub top: Vec<LogProb>,
}

/// Chooses tokens for one text after another; keeps memory only.
#[derive(Debug, Default)]
pub struct Sampler {
    changed: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// What a choice depends on beside the logits.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// How to choose.
    pub sampling: &'a Sampling,
    /// The text so far, prompt included.
    pub text: &'a [u32],
    /// The token's place in what is generated, from 0.
    pub place: u64,
    /// Tokens that may be chosen; all where there is none.
    pub allowed: Option<&'a TokenMask>,
}

impl Sampler {
    /// Chooses a token by its logits; `None` where the mask allows none.
    ///
    /// # Errors
    /// [`crate::LlmError::NotFinite`] when no allowed token has a finite logit.
    pub fn choose(&mut self, logits: &[f32], choice: Choice<'_>) -> Result<Option<u32>> {
        let Choice {
            sampling, allowed, ..
        } = choice;
        if allowed.is_some_and(|mask| mask.count() == 0) {
            return Ok(None);
        }
        let logits = match sampling.changes_logits() || allowed.is_some() {
            true => change(logits, choice, &mut self.changed),
            false => logits,
        };
        if sampling.temperature == 0.0 {
            return logits::largest(logits).map(Some);
        }
        keep::candidates(logits, sampling, &mut self.candidates)?;
        let uniform = uniform(sampling.seed, choice.place);
        Ok(Some(draw(&self.candidates, sampling.temperature, uniform)))
    }
}

/// The logits with bias, penalties and mask.
fn change<'a>(logits: &[f32], choice: Choice<'_>, changed: &'a mut Vec<f32>) -> &'a [f32] {
    changed.clear();
    changed.extend_from_slice(logits);
    logits::penalise(changed, choice.sampling, choice.text);
    if let Some(allowed) = choice.allowed {
        logits::restrict(changed, allowed);
    }
    changed
}

/// A number in [0, 1) with 53 random bits.
fn uniform(seed: u64, place: u64) -> f64 {
    let word = |i| u64::from(random::bits(seed, 0, place, i));
    ((word(0) << 32 | word(1)) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The candidate at which the sum of probabilities passes `uniform`.
fn draw(candidates: &[Candidate], temperature: f32, uniform: f64) -> u32 {
    let highest = candidates.iter().map(|c| c.logit).fold(f32::MIN, f32::max);
    let weight = |c: &Candidate| f64::from((c.logit - highest) / temperature).exp();
    let total: f64 = candidates.iter().map(weight).sum();
    let mut left = uniform * total;
    let passed = candidates.iter().find(|c| {
        left -= weight(c);
        left < 0.0
    });
    // Rounding may leave a rest at the end.
    let chosen = passed.or_else(|| candidates.iter().rfind(|c| weight(c) > 0.0));
    chosen.map_or_else(|| unreachable!("bug: no candidate"), |c| c.token)
}

/// The log-probability of a token, and those of the `top` likeliest.
pub fn log_probs(logits: &[f32], token: u32, top: usize) -> LogProbs {
    let total = log_sum_exp(logits);
    let of = |token: u32, logit: f32| LogProb {
        token,
        log_prob: (f64::from(logit) - total) as f32,
    };
    let mut best = vec![];
    if top > 0 {
        keep::largest(logits, top, &mut best);
        best.sort_by(keep::more_likely);
    }
    LogProbs {
        chosen: of(token, logits[token as usize]),
        top: best.iter().map(|c| of(c.token, c.logit)).collect(),
    }
}

#[cfg(test)]
mod tests;

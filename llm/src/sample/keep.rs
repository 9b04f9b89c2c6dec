//! The part of a distribution that is drawn from.
//!
//! Kept candidates are in an order that their logits and tokens alone decide, so that the same random number draws the
//! same token.

use super::Sampling;
use super::logits::{log_sum_exp, maximum};
use crate::error::{LlmError, Result};
use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// Likelier first, then by token.
pub(super) fn more_likely(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// How many of the likeliest tokens are looked at first where a sum of probabilities decides.
const FIRST_LOOK: usize = 256;

/// The candidates that a sampling keeps.
///
/// # Errors
/// [`LlmError::NotFinite`] when there is none.
pub(super) fn candidates(
    logits: &[f32],
    sampling: &Sampling,
    kept: &mut Vec<Candidate>,
) -> Result<()> {
    let most = maximum(logits);
    if !most.is_finite() {
        return Err(LlmError::NotFinite);
    }
    match sampling.top_k {
        0 => all(logits, kept),
        k => {
            largest(logits, k, kept);
            kept.sort_by(more_likely);
        }
    }
    if sampling.typical_p < 1.0 {
        keep_typical(kept, sampling.typical_p);
    }
    if sampling.top_p < 1.0 {
        match sampling.top_k == 0 && sampling.typical_p >= 1.0 {
            true => keep_top_of_all(logits, sampling.top_p, kept),
            false => keep_top(kept, sampling.top_p, total(kept)),
        }
    }
    if sampling.min_p > 0.0 {
        let highest = kept.iter().map(|c| c.logit).fold(f32::MIN, f32::max);
        let least = highest + sampling.min_p.ln();
        kept.retain(|c| c.logit >= least);
    }
    Ok(())
}

/// All that are possible, by token.
fn all(logits: &[f32], kept: &mut Vec<Candidate>) {
    kept.clear();
    let each = logits.iter().zip(0..);
    let possible = each.filter(|(logit, _)| **logit > f32::NEG_INFINITY);
    kept.extend(possible.map(|(logit, token)| Candidate {
        token,
        logit: *logit,
    }));
}

/// The `k` likeliest of those that are possible, in no order.
pub(super) fn largest(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let most = k.saturating_mul(2).max(FIRST_LOOK);
    let mut least = f32::NEG_INFINITY;
    for (logit, token) in logits.iter().zip(0..) {
        if *logit > least {
            kept.push(Candidate {
                token,
                logit: *logit,
            });
            if kept.len() == most {
                least = cut(kept, k).unwrap_or(least);
            }
        }
    }
    cut(kept, k);
}

/// Leaves the `k` likeliest; gives the least logit that is left if any was taken away. A later token with that logit is
/// less likely than those kept, since ties go to the first.
fn cut(kept: &mut Vec<Candidate>, k: usize) -> Option<f32> {
    if kept.len() <= k {
        return None;
    }
    let (_, least, _) = kept.select_nth_unstable_by(k.max(1) - 1, more_likely);
    let least = least.logit;
    kept.truncate(k.max(1));
    Some(least)
}

/// Logarithm of the sum of weights.
fn total(kept: &[Candidate]) -> f64 {
    let highest = kept.iter().map(|c| c.logit).fold(f32::MIN, f32::max);
    let sum: f64 = (kept.iter())
        .map(|c| f64::from(c.logit - highest).exp())
        .sum();
    f64::from(highest) + sum.ln()
}

fn probability(c: &Candidate, total: f64) -> f64 {
    (f64::from(c.logit) - total).exp()
}

/// Whether the probabilities of these reach the sum; if so, only as many of the first as that takes are left.
fn keep_sum(kept: &mut Vec<Candidate>, sum: f32, total: f64) -> bool {
    let mut reached = 0.0;
    let enough = kept.iter().position(|c| {
        reached += probability(c, total);
        reached >= f64::from(sum)
    });
    if let Some(last) = enough {
        kept.truncate(last + 1);
    }
    enough.is_some()
}

/// As [`keep_sum`], most likely first.
fn reach(kept: &mut Vec<Candidate>, sum: f32, total: f64) -> bool {
    kept.sort_by(more_likely);
    keep_sum(kept, sum, total)
}

fn keep_top(kept: &mut Vec<Candidate>, sum: f32, total: f64) {
    // Where rounding keeps the sum from being reached, everything is needed for it.
    reach(kept, sum, total);
}

/// As [`keep_top`] over the whole vocabulary, most of which is seldom needed.
fn keep_top_of_all(logits: &[f32], sum: f32, kept: &mut Vec<Candidate>) {
    let total = log_sum_exp(logits);
    let mut look = FIRST_LOOK;
    while look < logits.len() {
        largest(logits, look, kept);
        if reach(kept, sum, total) {
            return;
        }
        look *= 16;
    }
    all(logits, kept);
    keep_top(kept, sum, total);
}

/// Leaves the candidates whose information is nearest to the entropy, until their probabilities reach the sum.
fn keep_typical(kept: &mut Vec<Candidate>, sum: f32) {
    let total = total(kept);
    let information = |c: &Candidate| total - f64::from(c.logit);
    let entropy: f64 = (kept.iter())
        .map(|c| probability(c, total) * information(c))
        .sum();
    let distance = |c: &Candidate| (information(c) - entropy).abs();
    kept.sort_by(|a, b| {
        let nearer = distance(a).total_cmp(&distance(b));
        nearer.then_with(|| more_likely(a, b))
    });
    keep_sum(kept, sum, total);
    kept.sort_by(more_likely);
}

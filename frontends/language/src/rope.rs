//! Rotary position embedding: the angle that each pair turns by from one position to the next, after whatever scaling
//! stretches a model beyond the positions it was trained on.

use crate::error::{LanguageError, Result};
use crate::keys::Keys;
use std::f64::consts::TAU;

/// One kind of rotation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Pairs are neighbours, else an element and the one half the rotated width further.
    pub interleaved: bool,
    /// Turn of each pair per position; half as many as elements are rotated.
    pub frequencies: Vec<f64>,
    /// Factor of sines and cosines.
    pub magnitude: f64,
}

/// What rotations are computed from.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Rotated elements of a head, at most all.
    pub len: usize,
    /// The angle of pair `i` of `n` is `base^(-i / n)`.
    pub base: f64,
    /// Pairs are neighbours.
    pub interleaved: bool,
    /// What stretches it.
    pub scaling: Scaling,
}

/// How a rotation is stretched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    /// Not at all.
    None,
    /// All angles divided by a factor.
    Linear(f64),
    /// A larger base for contexts beyond the original one (dynamic NTK).
    Dynamic {
        /// Factor of the context.
        factor: f64,
        /// Positions trained on.
        original: f64,
        /// Positions wanted.
        context: f64,
    },
    /// Slow pairs stretched, fast ones not, a ramp between (YaRN, Peng et al., 2023).
    Yarn {
        /// Factor of the context.
        factor: f64,
        /// Positions trained on.
        original: f64,
        /// Turns within the original context from which on a pair is left alone.
        fast: f64,
        /// Turns below which it is stretched in full.
        slow: f64,
        /// Factor of sines and cosines.
        magnitude: f64,
    },
    /// Slow pairs stretched, fast ones not, by wave length (Llama 3).
    Llama3 {
        /// Factor of the slowest pairs.
        factor: f64,
        /// Divides the original context: longer waves are stretched in full.
        low: f64,
        /// Divides the original context: shorter waves are left alone.
        high: f64,
        /// Positions trained on.
        original: f64,
    },
    /// A divisor for every pair, with a factor of sines and cosines (LongRoPE, and files that carry divisors).
    Divisors(Vec<f64>, f64),
}

impl Setup {
    /// The rotation.
    ///
    /// # Errors
    /// Divisors of another number than there are pairs, or angles that are no numbers.
    pub fn rope(&self) -> Result<Rope> {
        let pairs = self.len / 2;
        let plain = |base: f64, i: usize| base.powf(-(i as f64) / pairs as f64);
        let angle = |i: usize| plain(self.base, i);
        let mut magnitude = 1.0;
        let frequencies: Vec<f64> = match &self.scaling {
            Scaling::None => (0..pairs).map(angle).collect(),
            Scaling::Linear(factor) => (0..pairs).map(|i| angle(i) / factor).collect(),
            Scaling::Dynamic {
                factor,
                original,
                context,
            } => {
                let stretch = (factor * context.max(*original) / original) - (factor - 1.0);
                let len = self.len as f64;
                let base = self.base * stretch.powf(len / (len - 2.0).max(1.0));
                (0..pairs).map(|i| plain(base, i)).collect()
            }
            Scaling::Yarn {
                factor,
                original,
                fast,
                slow,
                magnitude: m,
            } => {
                magnitude = *m;
                let [low, high] = self.ramp(*original, *fast, *slow);
                let stretched = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                (0..pairs)
                    .map(|i| angle(i) * (1.0 - stretched(i) + stretched(i) / factor))
                    .collect()
            }
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let kept = |a: f64| ((original * a / TAU - low) / (high - low)).clamp(0.0, 1.0);
                let stretch = |a: f64| a * (kept(a) + (1.0 - kept(a)) / factor);
                (0..pairs).map(|i| stretch(angle(i))).collect()
            }
            Scaling::Divisors(divisors, m) => {
                magnitude = *m;
                if divisors.len() != pairs {
                    let what = format!("{} divisors for {pairs} pairs", divisors.len());
                    return Err(LanguageError::key("rope.scaling", what));
                }
                (0..pairs).map(|i| angle(i) / divisors[i]).collect()
            }
        };
        if !magnitude.is_finite() || frequencies.iter().any(|f| !f.is_finite()) {
            let what = "the rotation's angles are not finite";
            return Err(LanguageError::key("rope.freq_base", what));
        }
        Ok(Rope {
            interleaved: self.interleaved,
            frequencies,
            magnitude,
        })
    }

    /// The first pair that YaRN stretches and the first that it stretches in full.
    fn ramp(&self, original: f64, fast: f64, slow: f64) -> [f64; 2] {
        let pair =
            |turns: f64| self.len as f64 * (original / (turns * TAU)).ln() / (2.0 * self.base.ln());
        let low = pair(fast).floor().max(0.0);
        let high = pair(slow).ceil().min(self.len as f64 - 1.0);
        [low, high.max(low + 0.001)]
    }
}

/// The scaling that the keys ask for, with whatever context is wanted beyond the model's own.
///
/// # Errors
/// A kind of scaling that is not known, or numbers that no rotation has.
pub(crate) fn scaling(keys: &Keys, context: Option<usize>) -> Result<Scaling> {
    match keys {
        Keys::Gguf { .. } => stated(keys, "rope.scaling.", keys, context),
        Keys::Folder(_) => match parameters(keys, None) {
            Some(part) => stated(&part, "", keys, context),
            None => Ok(Scaling::None),
        },
    }
}

/// The part of a `config.json` that speaks of rotation, for one kind of block where there are several.
pub(crate) fn parameters<'a>(keys: &Keys<'a>, kind: Option<&str>) -> Option<Keys<'a>> {
    let part = keys
        .part("rope_parameters")
        .or_else(|| keys.part("rope_scaling"))?;
    match kind {
        Some(kind) => part.part(kind),
        None => Some(part),
    }
}

/// The scaling spelled in `keys` behind `prefix`; `model` has the rest of the hyperparameters.
pub(crate) fn stated(
    keys: &Keys,
    prefix: &str,
    model: &Keys,
    context: Option<usize>,
) -> Result<Scaling> {
    let at = |name: &str| format!("{prefix}{name}");
    let number = |name: &str| keys.number(&at(name));
    let factor = || match number("factor")? {
        Some(factor) if factor > 0.0 => Ok(factor),
        Some(_) => Err(LanguageError::key(
            &keys.spelled(&at("factor")),
            "the factor is not positive",
        )),
        None => Err(LanguageError::MissingKey(keys.spelled(&at("factor")))),
    };
    let trained = model.count("context_length")?;
    let original = |names: [&str; 2]| -> Result<f64> {
        for name in names {
            if let Some(value) = number(name)?.or(model.number(name)?) {
                return match value >= 1.0 {
                    true => Ok(value),
                    false => Err(LanguageError::key(name, "no position")),
                };
            }
        }
        Ok(trained as f64)
    };
    let original = || {
        original([
            "original_context_length",
            "original_max_position_embeddings",
        ])
    };
    let kind = keys
        .text(&at("rope_type"))
        .or_else(|| keys.text(&at("type")))
        .unwrap_or("default");
    Ok(match kind {
        "default" | "none" | "mrope" => Scaling::None,
        "linear" => Scaling::Linear(factor()?),
        "dynamic" => Scaling::Dynamic {
            factor: factor()?,
            original: original()?,
            context: context.unwrap_or(0) as f64,
        },
        "yarn" => yarn(&number, factor()?, original()?)?,
        "llama3" => {
            let [low, high] = [number("low_freq_factor")?, number("high_freq_factor")?];
            let [low, high] = [low.unwrap_or(1.0), high.unwrap_or(4.0)];
            if high <= low {
                let what = "the high frequency is not above the low one";
                return Err(LanguageError::key(&at("high_freq_factor"), what));
            }
            Scaling::Llama3 {
                factor: factor()?,
                low,
                high,
                original: original()?,
            }
        }
        "longrope" | "su" => longrope(keys, model, &number, original()?, context)?,
        other => {
            let what = format!("the scaling {}", cupola_source::quote(other));
            return Err(LanguageError::unsupported(&keys.spelled(&at("type")), what));
        }
    })
}

fn yarn(
    number: &dyn Fn(&str) -> Result<Option<f64>>,
    factor: f64,
    original: f64,
) -> Result<Scaling> {
    let by = |weight: f64| match factor > 1.0 {
        true => 0.1 * weight * factor.ln() + 1.0,
        false => 1.0,
    };
    let magnitude = match (
        number("attention_factor")?,
        number("mscale")?,
        number("mscale_all_dim")?,
    ) {
        (Some(stated), ..) => stated,
        (None, Some(own), Some(all)) if own != 0.0 && all != 0.0 => by(own) / by(all),
        _ => by(1.0) * number("attn_factor")?.unwrap_or(1.0),
    };
    Ok(Scaling::Yarn {
        factor,
        original,
        fast: number("beta_fast")?
            .or(number("yarn_beta_fast")?)
            .unwrap_or(32.0),
        slow: number("beta_slow")?
            .or(number("yarn_beta_slow")?)
            .unwrap_or(1.0),
        magnitude,
    })
}

/// LongRoPE (Ding et al., 2024): divisors for short and for long contexts.
fn longrope(
    keys: &Keys,
    model: &Keys,
    number: &dyn Fn(&str) -> Result<Option<f64>>,
    original: f64,
    context: Option<usize>,
) -> Result<Scaling> {
    let trained = model.count("context_length")? as f64;
    let stretch = (trained / original).max(1.0);
    let stated = number("attention_factor")?.or(number("attn_factor")?);
    let magnitude = stated.unwrap_or(match stretch > 1.0 {
        true => (1.0 + stretch.ln() / original.ln()).sqrt(),
        false => 1.0,
    });
    let is_long = context.is_some_and(|context| context as f64 > original);
    let list = if is_long {
        "long_factor"
    } else {
        "short_factor"
    };
    let divisors = keys.numbers(list);
    let missing = || LanguageError::MissingKey(list.to_owned());
    Ok(Scaling::Divisors(divisors.ok_or_else(missing)?, magnitude))
}

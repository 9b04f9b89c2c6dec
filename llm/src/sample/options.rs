//! How tokens are chosen.

use crate::error::{LlmError, Result};

/// How tokens are chosen; the default takes the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps so many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens that are at least this times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens whose information is nearest to the expected, until their probabilities reach this sum; 1 keeps
    /// all (Meister et al., 2022).
    pub typical_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that the text has; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Is taken off the logit of a token once if the text has it.
    pub presence_penalty: f32,
    /// Is taken off the logit of a token as often as the text has it.
    pub frequency_penalty: f32,
    /// How many of the last tokens of the text, prompt included, penalties look at.
    pub penalty_len: usize,
    /// Is added to the logits of tokens; negative infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_len: 64,
            logit_bias: vec![],
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether every number is in its range, for a vocabulary of so many tokens.
    ///
    /// # Errors
    /// [`LlmError::Request`] names the first that is not.
    pub fn check(&self, vocab_len: usize) -> Result<()> {
        let unit = 0.0..=1.0;
        let finite = |x: f32| x.is_finite();
        let checks = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature) && self.temperature >= 0.0,
                "at least 0",
            ),
            (
                "top_p",
                self.top_p,
                unit.contains(&self.top_p),
                "between 0 and 1",
            ),
            (
                "min_p",
                self.min_p,
                unit.contains(&self.min_p),
                "between 0 and 1",
            ),
            (
                "typical_p",
                self.typical_p,
                unit.contains(&self.typical_p),
                "between 0 and 1",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "above 0",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                finite(self.presence_penalty),
                "finite",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                finite(self.frequency_penalty),
                "finite",
            ),
        ];
        if let Some((name, value, _, range)) = checks.iter().find(|(_, _, fits, _)| !fits) {
            return Err(LlmError::Request(format!(
                "{name} is {value}; it must be {range}"
            )));
        }
        let outside = |(token, bias): &&(u32, f32)| *token as usize >= vocab_len || bias.is_nan();
        match self.logit_bias.iter().find(outside) {
            Some((token, bias)) => Err(LlmError::Request(format!(
                "logit_bias of {bias} for token {token}: there are {vocab_len} tokens"
            ))),
            None => Ok(()),
        }
    }

    /// Whether logits are changed before one is chosen.
    pub(crate) fn changes_logits(&self) -> bool {
        !self.logit_bias.is_empty() || self.penalises()
    }

    pub(super) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

//! [`Keys`]: hyperparameters under the names that GGUF files give them, read from a GGUF file or a `config.json`.

use crate::error::{LanguageError, Result};
use cupola_gguf::Gguf;
use serde_json::Value as Json;

/// No count of a real model comes near; what is larger would only make other numbers overflow.
const MAX_COUNT: u64 = 1 << 31;

/// Where hyperparameters are read from.
pub(crate) enum Keys<'a> {
    /// Metadata; keys stand behind the architecture's name.
    Gguf {
        /// The file.
        file: &'a Gguf,
        /// The architecture.
        architecture: &'a str,
    },
    /// `config.json`, or the part of it that is about text.
    Folder(&'a Json),
}

/// What `config.json` files call a key of a GGUF file, the newest name first.
const FOLDER_NAMES: &[(&str, &[&str])] = &[
    ("block_count", &["num_hidden_layers", "n_layer"]),
    (
        "context_length",
        &["max_position_embeddings", "n_positions", "n_ctx"],
    ),
    ("embedding_length", &["hidden_size", "n_embd"]),
    ("feed_forward_length", &["intermediate_size", "n_inner"]),
    ("expert_feed_forward_length", &["moe_intermediate_size"]),
    ("attention.head_count", &["num_attention_heads", "n_head"]),
    ("attention.head_count_kv", &["num_key_value_heads"]),
    ("attention.key_length", &["head_dim"]),
    ("attention.value_length", &["head_dim"]),
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    (
        "attention.layer_norm_epsilon",
        &["layer_norm_epsilon", "layer_norm_eps"],
    ),
    ("attention.sliding_window", &["sliding_window"]),
    ("attn_logit_softcapping", &["attn_logit_softcapping"]),
    ("final_logit_softcapping", &["final_logit_softcapping"]),
    ("expert_count", &["num_local_experts", "num_experts"]),
    ("expert_used_count", &["num_experts_per_tok"]),
    ("expert_weights_norm", &["norm_topk_prob"]),
];

impl<'a> Keys<'a> {
    /// Whether the hyperparameters are those of a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self, Keys::Gguf { .. })
    }

    /// The name of a key as the user's file spells it.
    pub fn spelled(&self, key: &str) -> String {
        match self {
            Keys::Gguf { architecture, .. } => format!("{architecture}.{key}"),
            Keys::Folder(_) => folder_names(key).first().copied().unwrap_or(key).to_owned(),
        }
    }

    fn json(&self, key: &str) -> Option<&'a Json> {
        let Keys::Folder(config) = self else {
            return None;
        };
        let names = folder_names(key);
        let names = if names.is_empty() { &[key][..] } else { names };
        let found = names.iter().find_map(|name| config.get(name));
        found.filter(|value| !value.is_null())
    }

    fn metadata(&self, key: &str) -> Option<&'a cupola_gguf::Value> {
        match self {
            Keys::Gguf { file, architecture } => file.get(&format!("{architecture}.{key}")),
            Keys::Folder(_) => None,
        }
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.json(key).is_some() || self.metadata(key).is_some()
    }

    fn wrong<T>(&self, key: &str, what: &str) -> Result<T> {
        Err(LanguageError::key(&self.spelled(key), what))
    }

    fn missing(&self, key: &str) -> LanguageError {
        LanguageError::MissingKey(self.spelled(key))
    }

    /// A count, which may be 0.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let value = match (self.json(key), self.metadata(key)) {
            (None, None) => return Ok(None),
            (Some(json), _) => json.as_u64(),
            (None, Some(value)) => value.as_u64(),
        };
        match value {
            Some(value) if value <= MAX_COUNT => Ok(Some(value as usize)),
            Some(_) => self.wrong(key, "the count is too large"),
            None => self.wrong(key, "the value is not a count"),
        }
    }

    /// A count of at least 1.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.optional_count(key)? {
            Some(0) => self.wrong(key, "the count is 0"),
            Some(value) => Ok(value),
            None => Err(self.missing(key)),
        }
    }

    /// A count of at least 1, or another number where the key is missing.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.has(key) {
            true => self.count(key),
            false => Ok(default),
        }
    }

    /// A count for every block: a list of them, or one for all.
    pub fn counts(&self, key: &str, blocks: usize, default: Option<usize>) -> Result<Vec<usize>> {
        let list: Option<Vec<Option<u64>>> = match (self.json(key), self.metadata(key)) {
            (Some(Json::Array(all)), _) => Some(all.iter().map(Json::as_u64).collect()),
            (None, Some(cupola_gguf::Value::Array(all))) => {
                Some(all.iter().take(blocks + 1).map(|v| v.as_u64()).collect())
            }
            _ => None,
        };
        let Some(list) = list else {
            let one = match default {
                Some(default) => self.count_or(key, default)?,
                None => self.count(key)?,
            };
            return Ok(vec![one; blocks]);
        };
        if list.len() != blocks {
            return self.wrong(key, "the list has not one entry per block");
        }
        let counts = list.into_iter().map(|v| match v {
            Some(v) if (1..=MAX_COUNT).contains(&v) => Ok(v as usize),
            _ => self.wrong(
                key,
                "the list holds something that is no count of at least 1",
            ),
        });
        counts.collect()
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let value = match (self.json(key), self.metadata(key)) {
            (None, None) => return Ok(None),
            (Some(json), _) => json.as_f64(),
            (None, Some(value)) => value.as_f64().or(value.as_u64().map(|v| v as f64)),
        };
        match value {
            Some(value) if value.is_finite() => Ok(Some(value)),
            _ => self.wrong(key, "the value is not a finite number"),
        }
    }

    /// A finite number that must be there.
    pub fn needed_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number of at least 0 that must be there.
    pub fn epsilon(&self, key: &str) -> Result<f64> {
        match self.needed_number(key)? {
            value if value >= 0.0 => Ok(value),
            _ => self.wrong(key, "the number is negative"),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let value = match (self.json(key), self.metadata(key)) {
            (None, None) => return Ok(None),
            (Some(json), _) => json.as_bool(),
            (None, Some(value)) => value.as_bool(),
        };
        match value {
            Some(value) => Ok(Some(value)),
            None => self.wrong(key, "the value is neither true nor false"),
        }
    }

    /// A word.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        match (self.json(key), self.metadata(key)) {
            (Some(json), _) => json.as_str(),
            (None, Some(value)) => value.as_str(),
            (None, None) => None,
        }
    }

    /// A list of words.
    pub fn texts(&self, key: &str) -> Option<Vec<&'a str>> {
        let list = self.json(key)?.as_array()?;
        list.iter().map(Json::as_str).collect()
    }

    /// The hyperparameters of a part of a `config.json`.
    pub fn part(&self, key: &str) -> Option<Keys<'a>> {
        let part = self.json(key)?;
        part.is_object().then_some(Keys::Folder(part))
    }

    /// A list of numbers.
    pub fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        let list = self.json(key)?.as_array()?;
        list.iter().map(Json::as_f64).collect()
    }
}

fn folder_names(key: &str) -> &'static [&'static str] {
    let found = FOLDER_NAMES.iter().find(|(known, _)| *known == key);
    found.map_or(&[], |(_, names)| names)
}

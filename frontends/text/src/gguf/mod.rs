//! Tokenizers from the metadata of a GGUF file (`tokenizer.ggml.*`).

mod pairs;
mod pieces;

use bytes::Bytes;
use cupola_gguf::{Gguf, Value};

use crate::error::TextError;
use crate::tokenizer::{Special, Tokenizer};
use crate::vocabulary::{Prefixes, TokenKind, Vocabulary};

pub(crate) use pairs::byte_token;

/// Tokens are numbered by 32 bits, and some of these numbers mean something else.
const MAX_TOKENS: usize = 1 << 31;

/// Names of tokens that end a turn or a message. Files give at most one of them by a key of its own.
pub(crate) const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
];

impl Tokenizer {
    /// The tokenizer that a GGUF file holds.
    ///
    /// # Errors
    /// [`TextError`] for what is missing, wrong or not supported.
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer, TextError> {
        let keys = Keys(file);
        let parts = match keys.str("model")? {
            "gpt2" => pairs::pairs(&keys, keys.optional_str("pre")?.unwrap_or("default"))?,
            "gemma4" => pairs::pairs(&keys, "gemma4")?,
            "llama" => pairs::sentence(&keys)?,
            "bert" => pieces::words(&keys)?,
            "t5" => pieces::unigrams(&keys)?,
            other => return Err(TextError::Kind(other.to_owned())),
        };
        Ok(Tokenizer::new(parts))
    }
}

/// The keys of a tokenizer.
struct Keys<'a>(&'a Gguf);

impl<'a> Keys<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(&path(name))
    }

    fn typed<T>(
        &self,
        name: &str,
        needed: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(wrong(name, needed)),
        }
    }

    fn optional_str(&self, name: &str) -> Result<Option<&'a str>, TextError> {
        self.typed(name, "a string", Value::as_str)
    }

    fn str(&self, name: &str) -> Result<&'a str, TextError> {
        self.optional_str(name)?
            .ok_or_else(|| TextError::Missing(path(name)))
    }

    fn bool(&self, name: &str, default: bool) -> Result<bool, TextError> {
        Ok(self
            .typed(name, "a boolean", Value::as_bool)?
            .unwrap_or(default))
    }

    /// The token that a key names, or the default if there is such a token.
    fn token(
        &self,
        name: &str,
        default: Option<u32>,
        vocab_len: usize,
    ) -> Result<Option<u32>, TextError> {
        let exists = |id: u64| id < vocab_len as u64;
        match self.typed(name, "a token", Value::as_u64)? {
            // Some writers say -1 for "none".
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if exists(id) => Ok(Some(id as u32)),
            Some(id) => Err(TextError::TokenId {
                key: path(name),
                id,
                vocab_len,
            }),
            None => Ok(default.filter(|&id| exists(id.into()))),
        }
    }

    /// The score of each token.
    fn scores(&self, len: usize) -> Result<Vec<f32>, TextError> {
        let score = |value: &Value| match *value {
            Value::I32(score) => Some(score as f32),
            _ => value.as_f64().map(|score| score as f32),
        };
        let scores = self.numbers("scores", len, score)?;
        scores.ok_or_else(|| TextError::Missing(path("scores")))
    }

    fn strings(&self, name: &str) -> Result<Option<Vec<Bytes>>, TextError> {
        self.typed(name, "an array of strings", |value| {
            let string = |value| match value {
                Value::String(bytes) => Some(bytes),
                _ => None,
            };
            value.as_array()?.iter().map(string).collect()
        })
    }

    /// Numbers of any type, one for each token.
    fn numbers<T>(
        &self,
        name: &str,
        len: usize,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, TextError> {
        self.typed(name, "an array with one number for each token", |value| {
            let array = value.as_array()?;
            if array.len() < len {
                return None;
            }
            array.iter().take(len).map(|value| read(&value)).collect()
        })
    }
}

fn path(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn wrong(name: &str, needed: &'static str) -> TextError {
    TextError::KeyType {
        key: path(name),
        needed,
    }
}

/// The tokens as the file spells them.
struct Spelt {
    texts: Vec<Bytes>,
    kinds: Vec<TokenKind>,
}

fn spelt(keys: &Keys) -> Result<Spelt, TextError> {
    let texts = keys
        .strings("tokens")?
        .ok_or_else(|| TextError::Missing(path("tokens")))?;
    if texts.len() > MAX_TOKENS {
        return Err(TextError::TooLarge("tokens"));
    }
    let kind = |number: &Value| {
        Some(match number.as_u64()? {
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        })
    };
    let kinds = keys
        .numbers("token_type", texts.len(), kind)?
        .unwrap_or_else(|| vec![TokenKind::Normal; texts.len()]);
    Ok(Spelt { texts, kinds })
}

/// The special tokens, with what holds where the file does not say.
fn special(
    keys: &Keys,
    vocabulary: &Vocabulary,
    bos: Option<u32>,
    eos: Option<u32>,
    begins: bool,
) -> Result<Special, TextError> {
    let len = vocabulary.len();
    let bos = keys.token("bos_token_id", bos, len)?;
    let eos = keys.token("eos_token_id", eos, len)?;
    let of_kinds = |kinds: &'static [TokenKind]| {
        let matching = move |&id: &u32| vocabulary.kind(id).is_some_and(|k| kinds.contains(&k));
        Prefixes::new(vocabulary, vocabulary.ids().filter(matching))
    };
    let user_defined = of_kinds(&[TokenKind::UserDefined]);
    let all = of_kinds(&[
        TokenKind::UserDefined,
        TokenKind::Control,
        TokenKind::Unknown,
    ]);
    let mut end_tokens: Vec<u32> = eos.into_iter().collect();
    for key in ["eot_token_id", "eom_token_id"] {
        end_tokens.extend(keys.token(key, None, len)?);
    }
    let named = END_NAMES.iter().filter_map(|name| {
        all.longest(vocabulary, name.as_bytes())
            .filter(|&id| vocabulary.token(id) == name.as_bytes())
    });
    end_tokens.extend(named);
    end_tokens.sort_unstable();
    end_tokens.dedup();
    let before = if keys.bool("add_bos_token", begins)? {
        bos
    } else {
        None
    };
    let after = if keys.bool("add_eos_token", false)? {
        eos
    } else {
        None
    };
    Ok(Special {
        all,
        user_defined,
        before: before.into_iter().collect(),
        after: after.into_iter().collect(),
        bos,
        eos,
        ends: end_tokens,
    })
}

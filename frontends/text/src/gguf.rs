//! Tokenizers from the metadata of a GGUF file (`tokenizer.ggml.*`).

use bytes::Bytes;
use cupola_gguf::{Gguf, Value};

use crate::bpe::{Alphabet, Bpe};
use crate::byte_level;
use crate::error::TextError;
use crate::sentence::Sentence;
use crate::tokenizer::{Method, Parts, SPACE_MARK, Special, Tokenizer};
use crate::vocabulary::{Index, Prefixes, TokenKind, Vocabulary};
use crate::words::{self, Named, Words};

/// Tokens are numbered by 32 bits, and some of these numbers mean something else.
const MAX_TOKENS: usize = 1 << 31;

/// Names of tokens that end a turn or a message. Files give at most one of them by a key of its own.
const END_NAMES: &[&str] = &[
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
            "gpt2" => pairs(&keys, keys.optional_str("pre")?.unwrap_or("default"))?,
            "gemma4" => pairs(&keys, "gemma4")?,
            "llama" => sentence(&keys)?,
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

/// A vocabulary of text with marks for spaces and tokens such as `<0x0A>` for bytes; and the token of each byte.
fn marked(spelt: &Spelt) -> Result<(Vocabulary, Vec<Option<u32>>), TextError> {
    let mut vocabulary = Vocabulary::default();
    let mut bytes = vec![None; 256];
    let mut mark = [0; 4];
    let mark = SPACE_MARK.encode_utf8(&mut mark).as_bytes();
    let mut plain = Vec::new();
    for (id, (text, &kind)) in spelt.texts.iter().zip(&spelt.kinds).enumerate() {
        match kind {
            TokenKind::Byte => {
                let byte = byte_token(text).ok_or(TextError::Token {
                    id,
                    what: "a token of kind byte is not of the form <0x0A>",
                })?;
                bytes[usize::from(byte)].get_or_insert(id as u32);
                vocabulary.push(&[byte], kind)?;
            }
            TokenKind::Normal | TokenKind::Unused | TokenKind::UserDefined => {
                plain.clear();
                replace(text, mark, b" ", &mut plain);
                vocabulary.push(&plain, kind)?;
            }
            TokenKind::Control | TokenKind::Unknown => {
                vocabulary.push(text, kind)?;
            }
        }
    }
    Ok((vocabulary, bytes))
}

fn byte_token(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok()?;
    let is_hexadecimal = digits.len() == 2 && digits.bytes().all(|d| d.is_ascii_hexdigit());
    is_hexadecimal.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Appends `text` with every `from` replaced.
fn replace(mut text: &[u8], from: &[u8], to: &[u8], result: &mut Vec<u8>) {
    while !text.is_empty() {
        match text.strip_prefix(from) {
            Some(rest) => {
                result.extend_from_slice(to);
                text = rest;
            }
            None => {
                result.push(text[0]);
                text = &text[1..];
            }
        }
    }
}

/// A tokenizer of learnt pairs.
fn pairs(keys: &Keys, pre: &str) -> Result<Parts, TextError> {
    let Named {
        patterns, traits, ..
    } = words::named(pre)?;
    let spelt = spelt(keys)?;
    let merges = keys
        .strings("merges")?
        .ok_or_else(|| TextError::Missing(path("merges")))?;
    let (vocabulary, mut bpe) = if traits.marks_spaces {
        let (vocabulary, bytes) = marked(&spelt)?;
        let ids = vocabulary
            .ids()
            .filter(|&id| vocabulary.kind(id) == Some(TokenKind::Normal));
        let index = Index::new(&vocabulary, ids);
        let mut mark = [0; 4];
        let mark = &*SPACE_MARK.encode_utf8(&mut mark);
        let bpe = Bpe::new(
            &vocabulary,
            index,
            bytes,
            Alphabet::Characters,
            Halves::new(&merges, |text, bytes| {
                replace(text.as_bytes(), mark.as_bytes(), b" ", bytes);
            })
            .iter(),
        )?;
        (vocabulary, bpe)
    } else {
        let (vocabulary, index, bytes) = byte_level_vocabulary(&spelt)?;
        let halves = Halves::new(&merges, |text, bytes| {
            byte_level::decode(text, bytes);
        });
        let bpe = Bpe::new(&vocabulary, index, bytes, Alphabet::Bytes, halves.iter())?;
        (vocabulary, bpe)
    };
    bpe.whole_words = traits.whole_words;
    bpe.unknown = keys.token("unknown_token_id", None, vocabulary.len())?;
    let special = special(keys, &vocabulary, None, None, traits.begins, false)?;
    Ok(Parts {
        vocabulary,
        method: Method::Bpe {
            words: Words::new(patterns)?,
            bpe,
        },
        special,
        space_prefix: keys.bool("add_space_prefix", false)?,
        marks_spaces: traits.marks_spaces,
    })
}

/// A vocabulary in the byte-level alphabet, what words are made of, and the token of each byte.
fn byte_level_vocabulary(
    spelt: &Spelt,
) -> Result<(Vocabulary, Index, Vec<Option<u32>>), TextError> {
    let mut vocabulary = Vocabulary::default();
    let mut ids = Vec::with_capacity(spelt.texts.len());
    let mut bytes = vec![None; 256];
    let mut plain = Vec::new();
    for (id, (text, &kind)) in spelt.texts.iter().zip(&spelt.kinds).enumerate() {
        plain.clear();
        let is_byte_level = matches!(kind, TokenKind::Normal | TokenKind::Unused)
            && std::str::from_utf8(text).is_ok_and(|text| byte_level::decode(text, &mut plain));
        if !is_byte_level {
            vocabulary.push(text, kind)?;
            continue;
        }
        vocabulary.push(&plain, kind)?;
        ids.push(id as u32);
        if let [byte] = plain[..] {
            bytes[usize::from(byte)].get_or_insert(id as u32);
        }
    }
    let index = Index::new(&vocabulary, ids.into_iter());
    Ok((vocabulary, index, bytes))
}

/// The halves of all pairs, joined, as bytes.
struct Halves {
    bytes: Vec<u8>,
    /// Where each pair's second half begins, and where it ends.
    splits: Vec<(usize, usize)>,
}

impl Halves {
    /// Reads pairs, which files write with a space between the halves. Lines that are no pairs are empty pairs: they
    /// keep their rank.
    fn new(merges: &[Bytes], decode: impl Fn(&str, &mut Vec<u8>)) -> Halves {
        let mut halves = Halves {
            bytes: Vec::new(),
            splits: Vec::with_capacity(merges.len()),
        };
        for merge in merges {
            let text = std::str::from_utf8(merge).unwrap_or_default();
            // A half may itself begin with a space.
            let space = text
                .char_indices()
                .skip(1)
                .find(|&(_, char)| char == ' ')
                .map_or(0, |(at, _)| at);
            decode(&text[..space], &mut halves.bytes);
            let split = halves.bytes.len();
            decode(
                text[space..].strip_prefix(' ').unwrap_or_default(),
                &mut halves.bytes,
            );
            halves.splits.push((split, halves.bytes.len()));
        }
        halves
    }

    /// The joined bytes of each pair and the size of its first half.
    fn iter(&self) -> impl Iterator<Item = (&[u8], usize)> {
        let mut start = 0;
        self.splits.iter().map(move |&(split, end)| {
            let pair = (&self.bytes[start..end], split - start);
            start = end;
            pair
        })
    }
}

/// SentencePiece's vocabulary of pairs.
fn sentence(keys: &Keys) -> Result<Parts, TextError> {
    let spelt = spelt(keys)?;
    let (vocabulary, bytes) = marked(&spelt)?;
    let score = |value: &Value| match *value {
        Value::I32(score) => Some(score as f32),
        _ => value.as_f64().map(|score| score as f32),
    };
    let scores = keys
        .numbers("scores", vocabulary.len(), score)?
        .ok_or_else(|| TextError::Missing(path("scores")))?;
    let is_text = |&id: &u32| {
        matches!(
            vocabulary.kind(id),
            Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
        )
    };
    let ids = || vocabulary.ids().filter(is_text);
    let sentence = Sentence {
        index: Index::new(&vocabulary, ids()),
        scores,
        bytes,
        unknown: keys.token("unknown_token_id", Some(0), vocabulary.len())?,
        longest: ids()
            .map(|id| vocabulary.token(id).len())
            .max()
            .unwrap_or(0),
    };
    let special = special(keys, &vocabulary, Some(1), Some(2), true, false)?;
    Ok(Parts {
        vocabulary,
        method: Method::Sentence(sentence),
        special,
        space_prefix: keys.bool("add_space_prefix", true)?,
        marks_spaces: true,
    })
}

/// The special tokens, with what holds where the file does not say.
fn special(
    keys: &Keys,
    vocabulary: &Vocabulary,
    bos: Option<u32>,
    eos: Option<u32>,
    begins: bool,
    ends: bool,
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
    let after = if keys.bool("add_eos_token", ends)? {
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

//! Tokenizers of pairs: learnt ones (`gpt2`) and SentencePiece's scored ones (`llama`).

use bytes::Bytes;

use super::{Keys, Spelt, path, special, spelt};
use crate::bpe::{Alphabet, Bpe};
use crate::byte_level;
use crate::error::TextError;
use crate::sentence::Sentence;
use crate::tokenizer::{Method, Parts, SPACE_MARK};
use crate::vocabulary::{Index, TokenKind, Vocabulary};
use crate::words::{self, Named, Words};

/// A tokenizer of learnt pairs.
pub fn pairs(keys: &Keys, pre: &str) -> Result<Parts, TextError> {
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
    let special = special(keys, &vocabulary, None, None, traits.begins)?;
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
pub fn sentence(keys: &Keys) -> Result<Parts, TextError> {
    let spelt = spelt(keys)?;
    let (vocabulary, bytes) = marked(&spelt)?;
    let scores = keys.scores(vocabulary.len())?;
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
    let special = special(keys, &vocabulary, Some(1), Some(2), true)?;
    Ok(Parts {
        vocabulary,
        method: Method::Sentence(sentence),
        special,
        space_prefix: keys.bool("add_space_prefix", true)?,
        marks_spaces: true,
    })
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

pub(crate) fn byte_token(text: &[u8]) -> Option<u8> {
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

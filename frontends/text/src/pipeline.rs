//! Tokenizers that the `tokenizers` library runs: pipelines of normalizers, splitters, a vocabulary and a decoder.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;

use crate::byte_level;
use crate::error::TextError;
use crate::gguf::byte_token;
use crate::tokenizer::SPACE_MARK;
use crate::vocabulary::{TokenKind, Vocabulary};

/// Larger numbers of tokens are mistakes: nothing is allocated for them.
const MAX_TOKEN: u32 = 1 << 24;

/// A pipeline as `tokenizer.json` describes it.
#[derive(Debug)]
pub(crate) struct Pipeline {
    tokenizer: tokenizers::Tokenizer,
    /// The same, for texts in which the names of special tokens are ordinary text. Made when it is first needed.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
}

impl Pipeline {
    /// Reads a description, in the file of this name.
    pub fn read(bytes: &[u8], file: &str) -> Result<Pipeline, TextError> {
        let wrong = |what: String| TextError::Json {
            file: file.to_owned(),
            what,
        };
        // The library asks for text that is JSON, and panics over some descriptions that are not what it expects.
        let description: Value =
            serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let built = std::panic::catch_unwind(|| serde_json::from_value(description));
        let built: Result<tokenizers::Tokenizer, _> =
            built.map_err(|_| wrong("a part is not what its type needs".to_owned()))?;
        let mut tokenizer = built.map_err(|error| wrong(error.to_string()))?;
        // How long texts may be is the model's business.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Pipeline {
            tokenizer,
            plain: OnceLock::new(),
        })
    }

    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TextError> {
        let tokenizer = if parse_special {
            &self.tokenizer
        } else {
            self.plain.get_or_init(|| {
                let mut plain = self.tokenizer.clone();
                plain.set_encode_special_tokens(true);
                Box::new(plain)
            })
        };
        tokenizer
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TextError::Split(error.to_string()))
    }

    /// `None` when the decoder cannot decode these tokens.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Option<String> {
        self.tokenizer.decode(tokens, skip_special).ok()
    }

    /// The token of this text.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_to_id(text)
    }

    /// What each token stands for within a text.
    pub fn vocabulary(&self) -> Result<Vocabulary, TextError> {
        let spelling = Spelling::of(&self.tokenizer);
        let added = self.tokenizer.get_added_tokens_decoder();
        let by_id: BTreeMap<u32, String> = self
            .tokenizer
            .get_vocab(true)
            .into_iter()
            .map(|(text, id)| (id, text))
            .collect();
        if by_id
            .last_key_value()
            .is_some_and(|(&last, _)| last > MAX_TOKEN)
        {
            return Err(TextError::TooLarge("tokens"));
        }
        let mut vocabulary = Vocabulary::default();
        let mut bytes = Vec::new();
        for (id, text) in by_id {
            while (vocabulary.len() as u32) < id {
                vocabulary.push(&[], TokenKind::Unused)?;
            }
            match added.get(&id) {
                Some(token) if token.special => {
                    vocabulary.push(text.as_bytes(), TokenKind::Control)?
                }
                Some(_) => vocabulary.push(text.as_bytes(), TokenKind::UserDefined)?,
                None => {
                    bytes.clear();
                    let kind = spelling.decode(&text, &mut bytes);
                    vocabulary.push(&bytes, kind)?;
                }
            }
        }
        Ok(vocabulary)
    }
}

/// How a vocabulary writes what its tokens stand for: what its decoder undoes.
#[derive(Debug, Default)]
struct Spelling {
    byte_level: bool,
    /// A character that stands for a space.
    space: Option<char>,
    byte_tokens: bool,
    /// What the pieces of a word after the first begin with; all others begin a word.
    continues: Option<String>,
    /// What the last piece of a word ends with.
    ends_word: Option<String>,
}

impl Spelling {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Spelling {
        let decoder = tokenizer
            .get_decoder()
            .and_then(|decoder| serde_json::to_value(decoder).ok());
        let mut spelling = Spelling::default();
        match decoder {
            Some(decoder) => spelling.add(&decoder),
            // Without a decoder tokens are words with spaces between them.
            None => spelling.continues = Some(String::new()),
        }
        spelling
    }

    fn add(&mut self, decoder: &Value) {
        match decoder["type"].as_str().unwrap_or_default() {
            "Sequence" => {
                for part in decoder["decoders"].as_array().into_iter().flatten() {
                    self.add(part);
                }
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_tokens = true,
            "Metaspace" => {
                let mark = decoder["replacement"]
                    .as_str()
                    .and_then(|mark| mark.chars().next());
                self.space = Some(mark.unwrap_or(SPACE_MARK));
            }
            "Replace" if decoder["content"] == " " => {
                let pattern = decoder["pattern"]["String"].as_str();
                self.space = pattern.and_then(|mark| mark.chars().next());
            }
            "WordPiece" => {
                let prefix = decoder["prefix"].as_str().unwrap_or("##");
                self.continues = Some(prefix.to_owned());
            }
            "BPEDecoder" => {
                let suffix = decoder["suffix"].as_str().unwrap_or("</w>");
                self.ends_word = Some(suffix.to_owned());
            }
            _ => {}
        }
    }

    /// Appends the bytes that a token of the model stands for, and says of what kind it is.
    fn decode(&self, text: &str, bytes: &mut Vec<u8>) -> TokenKind {
        if self.byte_level && byte_level::decode(text, bytes) {
            return TokenKind::Normal;
        }
        if self.byte_tokens
            && let Some(byte) = byte_token(text.as_bytes())
        {
            bytes.push(byte);
            return TokenKind::Byte;
        }
        let mut text = text;
        if let Some(prefix) = &self.continues {
            match text.strip_prefix(prefix.as_str()) {
                Some(rest) if !prefix.is_empty() => text = rest,
                _ => bytes.push(b' '),
            }
        }
        let mut space_after = false;
        if let Some(suffix) = &self.ends_word
            && let Some(rest) = text.strip_suffix(suffix.as_str())
        {
            (text, space_after) = (rest, true);
        }
        match self.space {
            Some(mark) => bytes.extend_from_slice(text.replace(mark, " ").as_bytes()),
            None => bytes.extend_from_slice(text.as_bytes()),
        }
        if space_after {
            bytes.push(b' ');
        }
        TokenKind::Normal
    }
}

//! [`Tokenizer`]: text to tokens and tokens to text, whatever the kind of vocabulary.

use std::borrow::Cow;
use std::sync::Arc;

use crate::bpe::Bpe;
use crate::error::TextError;
use crate::pipeline::Pipeline;
use crate::sentence::Sentence;
use crate::vocabulary::{Prefixes, TokenKind, Vocabulary};
use crate::words::Words;

/// Texts above this size are refused: positions in a text are 32-bit numbers.
const MAX_TEXT_SIZE: usize = 1 << 30;

/// The tokenizer of a model. Copies share one vocabulary.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    parts: Arc<Parts>,
}

/// What a reader of files makes a tokenizer of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub vocabulary: Vocabulary,
    pub method: Method,
    pub special: Special,
    /// Texts are read and written with a space in front that is not theirs.
    pub space_prefix: bool,
    /// Marks for spaces in a text are spaces.
    pub marks_spaces: bool,
}

/// How a text without special tokens is encoded.
#[derive(Debug)]
pub(crate) enum Method {
    Bpe {
        words: Words,
        bpe: Bpe,
    },
    Sentence(Sentence),
    /// A pipeline that also knows the special tokens.
    Pipeline(Pipeline),
    /// What is known elsewhere.
    Foreign(Foreign),
}

/// A function that encodes whole texts.
pub(crate) struct Foreign(Arc<Encode>);

/// The tokens of a text, by whoever made the vocabulary.
pub type Encode = dyn Fn(&str) -> Vec<u32> + Send + Sync;

impl std::fmt::Debug for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Foreign")
    }
}

/// The tokens that are no ordinary text.
#[derive(Debug, Default)]
pub(crate) struct Special {
    /// Spelt in texts when special tokens are parsed.
    pub all: Prefixes,
    /// Spelt in every text.
    pub user_defined: Prefixes,
    /// Put before and after a text.
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// In order, without repetitions.
    pub ends: Vec<u32>,
}

/// The mark for a space in SentencePiece's vocabularies.
pub(crate) const SPACE_MARK: char = '\u{2581}';

impl Tokenizer {
    pub(crate) fn new(parts: Parts) -> Tokenizer {
        Tokenizer {
            parts: Arc::new(parts),
        }
    }

    /// A tokenizer of a vocabulary whose owner encodes texts. Nothing is put around them, no token ends one; with
    /// `space_prefix` the space in front of a text's first token is not the text's.
    pub fn foreign(vocabulary: Vocabulary, space_prefix: bool, encode: Arc<Encode>) -> Tokenizer {
        Tokenizer::new(Parts {
            vocabulary,
            method: Method::Foreign(Foreign(encode)),
            special: Special::default(),
            space_prefix,
            marks_spaces: false,
        })
    }

    /// The tokens of a text. `add_special` puts the model's begin and end tokens around it, where it wants them;
    /// `parse_special` reads the names of control tokens in the text as these tokens.
    ///
    /// # Errors
    /// [`TextError::TooLarge`] for texts above 1 GiB, [`TextError::Split`] for texts that a pattern takes too many
    /// steps to split.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TextError> {
        if text.len() > MAX_TEXT_SIZE {
            return Err(TextError::TooLarge("bytes of text"));
        }
        match &self.parts.method {
            Method::Pipeline(pipeline) => {
                return pipeline.encode(text, add_special, parse_special);
            }
            Method::Foreign(Foreign(encode)) => return Ok(encode(text)),
            Method::Bpe { .. } | Method::Sentence(_) => {}
        }
        let special = &self.parts.special;
        let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
        if add_special {
            tokens.extend_from_slice(&special.before);
        }
        let names = if parse_special {
            &special.all
        } else {
            &special.user_defined
        };
        self.encode_fragments(text, names, &mut tokens)?;
        if add_special {
            tokens.extend_from_slice(&special.after);
        }
        Ok(tokens)
    }

    /// Encodes what lies between the special tokens that `names` holds, and these.
    fn encode_fragments(
        &self,
        text: &str,
        names: &Prefixes,
        tokens: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let vocabulary = &self.parts.vocabulary;
        let (mut start, mut at) = (0, 0);
        // What the user defined is text, so that no other text begins after it.
        let mut prefix = self.parts.space_prefix;
        while at < text.len() {
            // Names are looked for at every byte: where one is found, its UTF-8 begins and ends at characters.
            let Some(id) = names.longest(vocabulary, &text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            self.encode_plain(&text[start..at], prefix, tokens)?;
            tokens.push(id);
            prefix = self.parts.space_prefix && self.is_special(id);
            at += vocabulary.token(id).len();
            start = at;
        }
        self.encode_plain(&text[start..], prefix, tokens)
    }

    fn encode_plain(
        &self,
        text: &str,
        space_prefix: bool,
        tokens: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        if text.is_empty() {
            return Ok(());
        }
        let parts = &*self.parts;
        let mut text = Cow::Borrowed(text);
        if parts.marks_spaces && text.contains(SPACE_MARK) {
            text = Cow::Owned(text.replace(SPACE_MARK, " "));
        }
        if space_prefix {
            text.to_mut().insert(0, ' ');
        }
        match &parts.method {
            Method::Bpe { words, bpe } => {
                for word in words.split(&text)? {
                    bpe.encode(&parts.vocabulary, &text[word], tokens);
                }
            }
            Method::Sentence(sentence) => sentence.encode(&parts.vocabulary, &text, tokens),
            Method::Pipeline(_) | Method::Foreign(_) => {
                unreachable!("bug: these encode whole texts")
            }
        }
        Ok(())
    }

    /// The text of tokens from a text's beginning on. Bytes that are no UTF-8 become U+FFFD; tokens that do not exist
    /// are nothing. Special tokens are left out when `skip_special`.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        if let Method::Pipeline(pipeline) = &self.parts.method
            && let Some(text) = pipeline.decode(tokens, skip_special)
        {
            return text;
        }
        let mut bytes = Vec::new();
        let mut is_start = self.parts.space_prefix;
        for &token in tokens {
            let is_special = self.is_special(token);
            if is_special && skip_special {
                continue;
            }
            let piece = self.token_bytes(token);
            let space = is_start && !is_special && piece.first() == Some(&b' ');
            bytes.extend_from_slice(&piece[usize::from(space)..]);
            is_start &= is_special;
        }
        match String::from_utf8_lossy(&bytes) {
            Cow::Owned(text) => text,
            Cow::Borrowed(_) => String::from_utf8(bytes)
                .unwrap_or_else(|_| unreachable!("bug: the bytes were found to be UTF-8")),
        }
    }

    /// The bytes that a token stands for, not always whole characters; none for tokens that do not exist.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.parts.vocabulary.token(token)
    }

    /// All tokens with their kinds.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.parts.vocabulary
    }

    /// Number of tokens. A model's output may be longer.
    pub fn vocab_len(&self) -> usize {
        self.parts.vocabulary.len()
    }

    /// Whether a token is no part of the text that a model writes.
    pub fn is_special(&self, token: u32) -> bool {
        let kind = self.parts.vocabulary.kind(token);
        kind.is_some_and(TokenKind::is_special)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.parts.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.parts.special.eos
    }

    /// Whether [`Tokenizer::encode`] puts the begin token before a text.
    pub fn adds_bos(&self) -> bool {
        let special = &self.parts.special;
        special.bos.is_some() && special.before.first().copied() == special.bos
    }

    /// Every token that ends a text, a turn or a message.
    pub fn end_tokens(&self) -> &[u32] {
        &self.parts.special.ends
    }
}

//! [`TextError`]: everything that can be wrong with a tokenizer or a chat template.

use cupola_source::{Fault, SourceError, clip, quote};

/// Why a tokenizer or a template was refused. `Display` is one line, `what, where`.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// User input: a file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// User input: a key that a tokenizer cannot do without.
    #[error("the tokenizer lacks a key, key {}", quote(.0))]
    Missing(String),
    /// User input: a key with a value of another type or length.
    #[error("the value must be {needed}, key {}", quote(key))]
    KeyType {
        /// The key.
        key: String,
        /// What it must be.
        needed: &'static str,
    },
    /// User input: a token that its kind does not allow.
    #[error("{what}, token {id}")]
    Token {
        /// The token's number.
        id: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// User input: a key that names a token that is not there.
    #[error(
        "token {id} does not exist, the vocabulary has {vocab_len}, key {}",
        quote(key)
    )]
    TokenId {
        /// The key.
        key: String,
        /// The number it gives.
        id: u64,
        /// Length of the vocabulary.
        vocab_len: usize,
    },
    /// User input: a table of replacements whose parts contradict each other.
    #[error("the table of replacements is damaged, key 'tokenizer.ggml.precompiled_charsmap'")]
    Replacements,
    /// Unsupported: a kind of tokenizer.
    #[error("tokenizers of kind {} are not supported", quote(.0))]
    Kind(String),
    /// Unsupported: a way to split text into words.
    #[error("pre-tokenizer {} is not supported", quote(.0))]
    PreTokenizer(String),
    /// User input: a JSON file of a model's folder that cannot be read as what it should be.
    #[error("{}, file {}", clip(what, 200), quote(file))]
    Json {
        /// Name of the file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// User input: a chat template that is none, or that refuses these messages.
    #[error("the chat template failed: {}", clip(.0, 300))]
    Template(String),
    /// Limit: too many tokens or bytes of tokens.
    #[error("there are more {0} than are supported")]
    TooLarge(&'static str),
    /// User input: text that a pattern takes more steps to split than are allowed.
    #[error("the text cannot be split into words: {0}")]
    Split(String),
}

impl TextError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            TextError::Source(error) => error.fault(),
            TextError::Kind(_) | TextError::PreTokenizer(_) => Fault::Unsupported,
            TextError::TooLarge(_) => Fault::Limit,
            TextError::Missing(_)
            | TextError::KeyType { .. }
            | TextError::Token { .. }
            | TextError::TokenId { .. }
            | TextError::Replacements
            | TextError::Json { .. }
            | TextError::Template(_)
            | TextError::Split(_) => Fault::Malformed,
        }
    }
}

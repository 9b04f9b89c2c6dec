//! From text to tokens and back: tokenizers from GGUF metadata.
//!
//! Data only: files in, numbers and strings out; nothing runs a model. Reading order: [`Tokenizer`] (`tokenizer.rs`),
//! [`Decoder`] (`decode.rs`), how files are read (`gguf.rs`), the ways to encode (`bpe.rs` with `words.rs`,
//! `sentence.rs`, `unigram.rs`, `wordpiece.rs`), [`Vocabulary`] (`vocabulary.rs`).

mod bpe;
mod byte_level;
mod decode;
mod error;
mod gguf;
mod sentence;
mod tokenizer;
mod vocabulary;
mod words;

pub use decode::Decoder;
pub use error::TextError;
pub use tokenizer::Tokenizer;
pub use vocabulary::{TokenKind, Vocabulary};

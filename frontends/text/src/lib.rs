//! From text to tokens and back: tokenizers and chat templates, from GGUF metadata or a model's folder.
//!
//! Data only: files in, numbers and strings out; nothing runs a model. Reading order: [`Tokenizer`] (`tokenizer.rs`),
//! [`Decoder`] (`decode.rs`), how files are read (`gguf.rs`, `folder.rs`), the ways to encode (`bpe.rs` with
//! `words.rs`, `sentence.rs`, `pipeline.rs` for all others), [`Vocabulary`] (`vocabulary.rs`), [`ChatTemplate`] (`template/`).

mod bpe;
mod byte_level;
mod decode;
mod error;
mod folder;
mod gguf;
mod pipeline;
mod sentence;
mod template;
mod tokenizer;
mod vocabulary;
mod words;

pub use decode::Decoder;
pub use error::TextError;
pub use template::ChatTemplate;
pub use tokenizer::{Encode, Tokenizer};
pub use vocabulary::{TokenKind, Vocabulary};

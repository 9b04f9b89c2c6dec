//! The engine of language models: texts continued by a compiled decoder, many at a time.
//!
//! A [`Decoder`] is a program that keeps keys and values in pages, with the memory for them. An [`Engine`] owns one and
//! continues any number of texts: [`Engine::submit`] takes a [`Request`], [`Engine::step`] runs the decoder once over
//! rows of all texts that are under way and gives [`Event`]s. Nothing here prints, waits or starts threads; tokens go
//! in and out as numbers.
//!
//! Reading order: `pages` (whose page is whose), `batch` and `decoder` (one run), `sample` and `mask` (from logits to a
//! token; `likeliest` where a device finds it), `sequence`, `schedule` and `engine` (continuous batching), `speculate` (tokens
//! guessed ahead), `snapshot` (a text saved and restored), `constrain` (output held to a grammar), `transcript` (the text of
//! tokens); `encoder` stands alone.

mod batch;
pub mod constrain;
mod decoder;
mod encoder;
mod engine;
mod error;
mod likeliest;
mod mask;
mod pages;
pub mod sample;
mod schedule;
mod sequence;
mod snapshot;
pub mod speculate;
mod transcript;

pub use batch::{Batch, Rows};
pub use decoder::{CacheShape, Decoder, Logits, StepSizes};
pub use encoder::Encoder;
pub use engine::{Engine, EngineOptions, EngineStats};
pub use error::{LlmError, Result};
pub use likeliest::with_likeliest;
pub use mask::{Constraint, TokenMask};
pub use pages::{PageId, PagePool, Prefix, PrefixId};
pub use sample::{LogProb, LogProbs, Sampling};
pub use sequence::{Event, FinishReason, Request, SequenceId, Usage};
pub use snapshot::Snapshot;
pub use transcript::{Transcript, begun};

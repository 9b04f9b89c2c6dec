//! Where model bytes come from: memory-mapped files, their format, their hash, and the words readers share.
//!
//! Every reader works on [`bytes::Bytes`] slices of one [`Source`], so weights stay in the page cache until something
//! packs or uploads them. This crate knows no file format beyond the few bytes that tell formats apart.
//!
//! Reading order: [`Source`] (`map.rs`), [`sniff`] (`format.rs`), [`ContentHash`] (`hash.rs`), [`Fault`] and [`quote`]
//! (`message.rs`), [`WholeFile`] (`whole.rs`).

mod format;
mod hash;
mod map;
mod message;
mod whole;

pub use format::{Format, sniff};
pub use hash::ContentHash;
pub use map::{Source, SourceError};
pub use message::{Fault, clip, quote};
pub use whole::{WholeFile, write_atomically};

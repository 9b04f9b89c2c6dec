//! Language models: a GGUF file or a folder of safetensors as a graph and what an engine must know to run it.
//!
//! [`LanguageModel::open`] reads hyperparameters and weights; the weights of the graph stay bytes of the mapped files. A
//! decoder's graph takes one step of a batch and keeps keys and values in state slots, page by page; an encoder's takes
//! whole texts. The contract of both is that of [`Kind`]. [`LanguageModel::of_tensors`] makes a decoder of tensors that others have.
//!
//! The way of a model: `keys.rs` reads hyperparameters under one set of names, whatever the format calls them;
//! `families/` makes a [`recipe`] of them; `weights.rs` gives tensors under one set of names; `build/` turns recipe and
//! weights into the graph, by what tensors there are. Reading order is that order. Nothing here runs anything.

mod build;
mod config;
mod error;
mod families;
mod keys;
mod names;
mod open;
mod plain;
mod recipe;
mod rope;
mod weights;

pub use config::{CacheBlock, Config, Kind, LanguageModel, Options};
pub use error::{LanguageError, Result};
pub use plain::Plain;

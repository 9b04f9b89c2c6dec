//! Safetensors: files, sharded folders, and writing.
//!
//! [`SafeTensors`] is a set of named tensors whose layout was checked; their data stays a slice of
//! the mapped file. The header is parsed here rather than by the reference crate, which lets a
//! repeated name pass. Reading order: `read.rs`, `header.rs`, `folder.rs`, `write.rs`.

mod error;
mod folder;
mod header;
mod read;
mod write;

pub use error::SafeTensorsError;
pub use folder::ModelFolder;
pub use read::{SafeTensors, Tensor};
pub use write::{TensorToWrite, write};

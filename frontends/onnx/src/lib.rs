//! ONNX files: reading, checking and writing.
//!
//! The container layer knows the file format and nothing about operators. [`Model`] is a file that
//! was decoded without copying its weights, whose names, types, tensors, side files and functions
//! were checked, and whose nodes are in order. Reading order: `read.rs`, then what it calls:
//! `wire.rs`, `check.rs`, `tensor.rs`, `sparse.rs`, `external.rs`, `scope.rs`, `function.rs`.
//! [`Value`] reads and writes single values as test data has them.

pub mod proto;

mod check;
mod error;
mod external;
mod function;
mod read;
mod scope;
mod sparse;
mod tensor;
mod value;
mod wire;

pub use error::{Place, ReadError, TypeFault};
pub use external::ExternalFiles;
pub use read::{MAX_IR_VERSION, MAX_OPSET, Model};
pub use sparse::SparseView;
pub use tensor::{ElementType, MAX_RANK, TensorData, TensorFault, TensorView};
pub use value::{Value, ValueKind, to_tensor};
pub use wire::{WireFault, WireFaultKind};

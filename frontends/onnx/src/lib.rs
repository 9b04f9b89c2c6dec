//! ONNX files: reading, checking and writing.
//!
//! The container layer knows the file format and nothing about operators. [`Model`] is a file that
//! was decoded without copying its weights, whose names, types, tensors, side files and functions
//! were checked, and whose nodes are in order. Reading order: `read.rs`, then what it calls:
//! `wire.rs`, `check.rs`, `tensor.rs`, `sparse.rs`, `external.rs`, `scope.rs`, `function.rs`.
//! [`Value`] reads and writes single values as test data has them; [`write`] builds and writes models.

pub mod proto;

mod check;
mod context;
mod convert;
mod error;
mod export;
mod external;
mod function;
mod import;
mod import_error;
mod ops;
mod read;
mod scope;
mod shape;
mod sparse;
mod symbols;
mod tensor;
mod value;
mod wire;
pub mod write;

pub use convert::{
    dtype_of, element_of, tensor_from_view, value_from_file, value_to_file, view_from_tensor,
};
pub use error::{Place, ReadError, TypeFault};
pub use export::{EXPORT_OPSET, ExportError, export};
pub use external::ExternalFiles;
pub use import::{CustomNode, CustomOp, ImportCustom, ImportOptions, Imported, import, operators};
pub use import_error::{ImportError, UnsupportedOp};
pub use read::{MAX_IR_VERSION, MAX_OPSET, Model};
pub use sparse::SparseView;
pub use tensor::{ElementType, MAX_RANK, TensorData, TensorFault, TensorView};
pub use value::{Value, ValueKind, to_tensor};
pub use wire::{WireFault, WireFaultKind};

/// A model as the bytes of a file.
pub fn encode(model: &proto::ModelProto) -> Vec<u8> {
    prost::Message::encode_to_vec(model)
}

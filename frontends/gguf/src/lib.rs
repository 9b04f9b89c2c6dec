//! GGUF files: metadata, tensor table and block-quantised weights.
//!
//! [`Gguf`] is a file whose structure was checked; tensor data and metadata arrays stay slices of
//! the mapped file. It knows the container, not what the keys of an architecture mean. Reading
//! order: `read.rs`, `metadata.rs`, `tensor_type.rs`, `parts.rs`. Dequantisation is `cupola_ir::convert`.

mod error;
pub mod hyperparameters;
mod metadata;
mod parts;
mod read;
mod tensor_type;

pub use cupola_ir::convert::{SizeMismatch, dequantize};
pub use error::GgufError;
pub use metadata::{Array, Value, ValueType};
pub use parts::GgufParts;
pub use read::{Gguf, Tensor};
pub use tensor_type::GgmlType;

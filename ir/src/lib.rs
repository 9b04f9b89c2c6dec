//! Cupola's intermediate representations: the dataflow graph over tensors and the kernel IR over scalars, with their
//! op tables, types, text forms, verifiers and the reference interpreter that defines meaning.
//!
//! No input or output, no threads, no unsafe code. Reading order: `dtype`, `dim`, `tensor_type`, `tensor`, `scalar`,
//! `ops`, `composite`, `graph`, `eval`, `kernel`, `target`.

pub mod attr;
pub mod composite;
pub mod convert;
pub mod dim;
pub mod dtype;
pub mod error;
pub mod eval;
pub mod graph;
pub mod kernel;
mod lexer;
pub mod ops;
pub mod scalar;
pub mod target;
pub mod tensor;
pub mod tensor_type;

pub use composite::CompositeOp;
pub use dim::{Bindings, Dim, Sym, SymRange};
pub use dtype::{BlockFormat, Class, DType};
pub use error::{IrError, Result};
pub use graph::{Graph, Node, NodeId, Origin, StateSlot, ValueId, verify};
pub use ops::{CoreOp, HostOp, Op, OpClass};
pub use scalar::Scalar;
pub use target::Target;
pub use tensor::{Element, Tensor, Value};
pub use tensor_type::{TensorType, ValueType};

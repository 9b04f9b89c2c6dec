//! Cupola: one compiled dataflow graph, any hardware.
//!
//! Five nouns: a [`Model`] is a file or graph; a [`Host`] holds this machine's devices; [`Options`] say how to compile;
//! a [`Runner`] runs the model (compiling once per structure, not per shape); a [`Value`] goes in and comes out.
//!
//! ```no_run
//! use cupola::{Host, Model, Options, Tensor};
//!
//! # fn main() -> Result<(), cupola::Error> {
//! let model = Model::open("model.onnx")?;
//! let mut runner = model.runner(Host::new().into(), Options::default());
//! let x = Tensor::from_slice(&[1, 3], &[1.0f32, 2.0, 3.0]).expect("three elements");
//! for (name, value) in runner.run(vec![("x", x.into())])? {
//!     println!("{name}: {value:?}");
//! }
//! # Ok(())
//! # }
//! ```

/// The README's example is compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod check;
mod error;
mod model;
mod runner;
mod tools;

pub use check::{FileSummary, check_file};
pub use cupola_ir as ir;
pub use cupola_ir::{Bindings, DType, Dim, Graph, Tensor, TensorType, Value, ValueType};
pub use cupola_onnx as onnx;
pub use cupola_passes as passes;
pub use cupola_runtime as runtime;
pub use cupola_runtime::{
    Cancel, DeviceSpec, DeviceTensor, Fault, Host, Pending, Place, Program, Request, RunLimits,
    RunStats, RunValue, Session, State, Weights,
};
pub use error::{Class, Error, Result};
pub use model::{Model, ModelOptions};
pub use runner::{Options, Runner};
pub use tools::{
    MemoryPlan, SupportRow, graph_after, plan_memory, support, to_binary, to_onnx, to_text,
};

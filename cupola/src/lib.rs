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
//!
//! Below the runner: a [`Program`] is compiled once and shared, each caller has a [`Session`] over it, on any thread.
//!
//! ```
//! use cupola::{DType, Graph, Host, Options, Program, Session, Tensor, TensorType};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), cupola::Error> {
//! let mut graph = Graph::new("rows");
//! let x = graph.input("x", TensorType::new(DType::F32, [cupola::Dim::sym("n")]))?;
//! let y = graph.scale(x, 0.5)?;
//! graph.output("y", y);
//! let program = Arc::new(Program::compile(graph, &Host::new(), &Options::default())?);
//! std::thread::scope(|scope| {
//!     for n in 1..4usize {
//!         let mut session = Session::new(program.clone());
//!         scope.spawn(move || {
//!             let x = Tensor::vector(&vec![1.0f32; n]);
//!             let out = session.run(vec![("x", x.into())]).expect("a run");
//!             assert_eq!(out[0].1, Tensor::vector(&vec![0.5f32; n]).into());
//!         });
//!     }
//! });
//! # Ok(())
//! # }
//! ```
//!
//! Memory is the caller's choice: [`Place::Into`] writes an output where it is wanted, [`RunLimits`] bound a run.
//!
//! ```
//! use cupola::{DType, Graph, Host, Options, Place, Program, Request, RunLimits, Session, Tensor, TensorType};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), cupola::Error> {
//! let mut graph = Graph::new("double");
//! let x = graph.input("x", TensorType::new(DType::F32, [2usize]))?;
//! let y = graph.scale(x, 2.0)?;
//! graph.output("y", y);
//! let program = std::sync::Arc::new(Program::compile(graph, &Host::new(), &Options::default())?);
//! let mut session = Session::new(program.clone());
//! session.state_mut().limits = RunLimits { time: Some(Duration::from_secs(5)), ..RunLimits::default() };
//! let memory = program.empty(DType::F32, &[2])?;
//! let request = Request::new().input("x", Tensor::vector(&[1.0f32, 4.0])).output("y", Place::Into(memory));
//! let out = session.execute(request)?;
//! assert_eq!(out[0].1.to_host()?, Tensor::vector(&[2.0f32, 8.0]).into());
//! # Ok(())
//! # }
//! ```

/// The README's example is compiled with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod artifact;
mod check;
mod cut;
mod error;
pub mod language;
mod model;
mod profile;
mod runner;
pub mod suite;
mod tools;
pub mod train;

pub use artifact::Artifact;
pub use check::{FileSummary, check_file};
pub use cupola_ir as ir;
pub use cupola_ir::{Bindings, DType, Dim, Graph, Tensor, TensorType, Value, ValueType};
pub use cupola_language::{Config as LanguageConfig, Options as LanguageOptions};
pub use cupola_llm as llm;
pub use cupola_onnx as onnx;
pub use cupola_passes as passes;
pub use cupola_passes::Precision;
pub use cupola_runtime as runtime;
pub use cupola_runtime::{
    Cache, Cancel, DeviceSpec, DeviceTensor, Fault, Host, HostOptions, Keep, Pending, Place,
    Program, Request, RunLimits, RunStats, RunValue, Session, State, Weights,
};
pub use cupola_source::{WholeFile, write_atomically};
pub use cupola_text as text;
pub use cut::{Cut, can_cut, cut};
pub use error::{Class, Error, Result};
pub use model::{Model, ModelOptions};
pub use profile::{
    Bound, MemorySlot, MemoryTimeline, Profile, ProfileOptions, StepKind, StepProfile, Timings,
    profile, timings,
};
pub use runner::{Options, Runner};
pub use tools::{
    MemoryPlan, SupportRow, graph_after, plan_memory, support, to_binary, to_onnx, to_text,
};

//! Training: a model of a configuration, fitted to data step by step.
//!
//! A [`Config`] says what is trained on what; [`Parts`] are its samples; a [`Trainer`] compiles the step (forward pass,
//! gradients, optimiser: one graph) and runs it over batches, validates, writes [`Checkpoint`]s and goes on from them bit
//! by bit. Nothing here prints: what happens is told as [`Event`]s.
//!
//! Reading order: `config`, `dataset`, `layers` and `recipe` (descriptions in text), `assemble`, `build`, `team` (replicas),
//! `event`, `trainer`, `evaluate`, `checkpoint`, `blame` (where numbers became none), `export`, `decoder` (language models that
//! continue texts).

mod assemble;
mod blame;
mod build;
mod checkpoint;
mod config;
mod dataset;
mod decoder;
mod evaluate;
mod event;
mod export;
mod layers;
mod recipe;
mod team;
mod trainer;

pub use assemble::{Assembled, assemble};
pub use build::plan;
pub use checkpoint::{Checkpoint, Progress};
pub use config::{Amp, CheckpointConfig, Config, DataConfig, Kind, ModelConfig, ValidationConfig};
pub use cupola_train as parts;
pub use cupola_train::data::Readers;
pub use cupola_train::metrics::Metric;
pub use dataset::Parts;
pub use decoder::checkpoint_path;
pub(crate) use decoder::{checkpoint_at, language_model, tokenizer};
pub use evaluate::{Scores, evaluate_checkpoint};
pub use event::{Ended, Event, StepReport};
pub use export::export_checkpoint;
pub use team::Spread;
pub use trainer::Trainer;

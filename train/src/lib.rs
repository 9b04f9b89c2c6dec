//! Training as data: models, losses, optimisers and learning-rate schedules, put together into one graph per training step.
//!
//! A step (forward pass, loss, gradients, clipping, optimiser) is a [`cupola_ir::Graph`] like any other, compiled and run as one
//! executable. Parameters, the optimiser's memory, running statistics and the loss scale are state slots of that graph. Nothing
//! here executes anything. Semantics and names are those of PyTorch, so that weights of a `state_dict` load by name.
//!
//! ```
//! use cupola_ir::{DType, Dim};
//! use cupola_train::{CrossEntropy, Net, Optimiser, StepOptions};
//!
//! # fn main() -> Result<(), cupola_train::TrainError> {
//! let mut net = Net::new("mlp");
//! let batch = Dim::sym("batch");
//! let x = net.input("x", DType::F32, [batch.clone(), 784usize.into()])?;
//! let labels = net.input("labels", DType::I64, [batch])?;
//! let h = net.linear("fc1", x, 128)?;
//! let h = net.relu(h)?;
//! let y = net.linear("fc2", h, 10)?;
//! let loss = net.cross_entropy(y, labels, &CrossEntropy::default())?;
//! let step = net.train_step(loss, &Optimiser::adam(), &StepOptions::default())?;
//! assert_eq!(step.outputs(), ["loss"]);
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: `net`, `init`, `layers`, `loss`, `optimiser`, `scaler`, `shards`, `step`, `schedule`, `zoo`; then `data`, `metrics`, `spec`.

pub mod data;
mod error;
mod import;
mod init;
pub mod layers;
mod loss;
pub mod metrics;
mod net;
mod optimiser;
mod scaler;
pub mod schedule;
mod shards;
mod spec;
mod step;
pub mod zoo;

pub use error::{Result, TrainError};
pub use init::Init;
pub use loss::{CrossEntropy, Divergence, Reduction};
pub use net::{Buffer, Net, Parameter};
pub use optimiser::{Group, Hyper, Members, Optimiser, Rule};
pub use scaler::{GradScaler, SCALE, TRACKER};
pub use schedule::{Plateau, PlateauMemory, Schedule};
pub use shards::SHARE;
pub use spec::Spec;
pub use step::{Clip, Memory, STEP, Slot, SlotKind, StepOptions, TrainStep};

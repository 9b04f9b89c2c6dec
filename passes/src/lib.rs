//! Cupola's passes: graph to graph to kernels to plan.

pub mod plan;

pub use plan::{Compiled, DeviceId, Miss, MissCode, PlacedUnit, Plan, Slot, SlotId, Step, Storage};

//! Gradients against central differences in f64 on the reference interpreter.

mod check;
mod compiled;
mod composites;
mod controls;
mod maps;
mod memory;
mod narrow;
#[path = "../support/mod.rs"]
mod support;
mod tensors;

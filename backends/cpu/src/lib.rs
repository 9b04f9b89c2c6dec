//! CPU backend of Cupola: generated code, library kernels, threads and memory.
//!
//! A kernel becomes, its axes merged ([`coalesce`]), a vector program ([`vector`]) in a shape chosen by [`schedule`]; [`emit`]
//! turns that into machine code, wide on x86-64 and through Cranelift elsewhere, [`jit`] owns the code, [`backend`] and [`device`] implement the traits that
//! the runtime sees.
//!
//! Reading order: [`isa`] (what the processor can do), [`memory`] (aligned buffers and their accounting), [`threads`] (the
//! pool), `coalesce`, `vector`, `schedule`, `emit`, `jit`, [`backend`], [`device`], and [`library`] (SIMD kernels written by hand:
//! matrix product, convolution, attention, sorting, rows, recurrent cells).

pub mod backend;
mod coalesce;
pub mod device;
mod emit;
pub mod error;
mod executable;
pub mod isa;
mod jit;
mod last;
mod libcall;
pub mod library;
pub mod memory;
mod schedule;
pub mod threads;
mod vector;

pub use backend::CpuBackend;
pub use error::{Error, Result};

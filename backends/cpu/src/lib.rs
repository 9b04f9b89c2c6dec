//! CPU backend of Cupola: library kernels, threads and memory.
//!
//! Reading order: [`isa`] (what the processor can do), [`memory`] (aligned buffers and their accounting), [`threads`] (the
//! pool), [`library`] (SIMD kernels written by hand: matrix product, convolution, attention, sorting, rows, recurrent cells).

pub mod error;
pub mod isa;
pub mod library;
pub mod memory;
pub mod threads;

pub use error::{Error, Result};

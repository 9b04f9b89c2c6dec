//! WGSL text of the GPU library kernels, and the means to write more of it.
//!
//! A kernel here is a [`Shader`]: bindings, parameters and a body. Shapes and strides are parameters, so one compiled
//! kernel serves all shapes; only what changes the code itself (element types, tile sizes, which axis is contiguous) makes
//! another text. The bodies are the files in `wgsl/`, filled in by [`fill`].
//!
//! Reading order: [`element`] (how dtypes live in storage buffers), `window` (those over the limits), [`shader`] (parameters
//! and assembly), then one module per kernel. [`check::check_wgsl`] says whether every graphics interface accepts a text, without any GPU.
//!
//! Rules: no kernel needs an optional WebGPU feature unless its options say so; none assumes a subgroup size; workgroup
//! memory stays within 16 KiB and workgroups within 256 threads; all loops are bounded and all divisors nonzero; a kernel
//! writes workgroup memory before it reads it. This crate never talks to a device.

pub mod attention;
pub mod binding;
pub mod blocks;
pub mod check;
pub mod convolution;
pub mod cooperative;
pub mod element;
pub mod matmul;
mod minifloat;
pub mod peak;
pub mod scatter;
pub mod shader;
pub mod skinny;
pub mod sort;
mod staging;
mod template;
pub mod tile;
mod window;

pub use binding::{Access, Binding, Stores, Width};
pub use element::Element;
pub use shader::{Epilogue, Extension, ParamSpace, Shader};
pub use template::fill;
pub use window::Windows;

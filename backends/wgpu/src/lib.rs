//! Cupola: cupola-wgpu.

//! Cupola: cupola-safetensors.

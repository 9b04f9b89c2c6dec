//! Cupola: cupola-gguf.

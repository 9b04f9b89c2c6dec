//! Cupola: cupola-shaders.

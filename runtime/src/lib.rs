//! Cupola: cupola-runtime.

//! Cupola: cupola-source.

//! Cupola: cupola.

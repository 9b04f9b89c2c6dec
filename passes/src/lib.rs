//! Cupola: cupola-passes.

//! Cupola: cupola-benches.

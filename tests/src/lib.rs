//! Cupola: cupola-tests.

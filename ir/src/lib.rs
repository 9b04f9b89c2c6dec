//! Cupola: cupola-ir.

//! Cupola: cupola-cpu.

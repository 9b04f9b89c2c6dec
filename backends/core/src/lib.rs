//! Cupola: cupola-backend.

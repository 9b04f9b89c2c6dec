//! Cupola: cupola-native.

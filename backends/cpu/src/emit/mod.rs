//! From vector programs to machine code.

mod atomic;
pub(crate) mod clif;
pub(crate) mod helpers;
pub(crate) mod wide;

//! The text form of a graph: printed by [`print()`], read by [`parse`], back and forth without loss.
//!
//! ```text
//! graph @softmax {
//!   range $n: 1..4096 step 8
//!   slot "total": f32[] = tensor f32[] [0.0]
//!   %0 = input {name: "x", ty: f32[$n, 8]} : f32[$n, 8] "x"
//!   %1 = map(%0, %0) {f: "add"} : f32[$n, 8] from ("model.onnx", "/add", "Add")
//!   return "y" = %1
//! }
//! ```
//!
//! A node is its results, its op's name, operands in parentheses, attributes in braces, result types after a colon,
//! each with the value's name where it has one, and the source nodes after `from`. Parts that are empty are left out.
//! Result types may be left out too and are inferred then; given ones must agree with the inferred ones up to extents
//! that are known only at run time. Operand names may be any words when written by hand. `docs/TEXT.md` has the whole
//! grammar.
//!
//! `print` and `parse` hold the two directions, `tensor` both for constants.

mod parse;
mod print;
pub(crate) mod tensor;

pub use parse::parse;
pub use print::{print, print_short};

#[cfg(test)]
mod tests;

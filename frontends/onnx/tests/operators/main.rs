//! Single operators: results against stored values, and misuse. `*.json` hold nodes with operands and results, made by
//! other runtimes or by hand.

#[path = "../common/mod.rs"]
mod common;
mod misuse;
mod node;
mod values;

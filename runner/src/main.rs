//! The `cupola` command.

fn main() {}

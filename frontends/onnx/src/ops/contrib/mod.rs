//! Operators of `com.microsoft` that exporters and optimisers emit and that are no variant of a standard one (those
//! stand with their standard forms).

pub(super) mod attention;
pub(super) mod embed;
pub(super) mod packed;
pub(super) mod qlinear;
pub(super) mod small;

use super::{Importer, OpRow, op_in};

/// A row of this domain.
const fn ms(name: &'static str, import: Importer) -> OpRow {
    op_in("com.microsoft", name, 1, import)
}

//! The operators: one row per version of an operator whose meaning differs from the version before, one file per
//! family. To add one: a row in its family's table and a function.

mod activation;
mod attention;
mod contrib;
pub(crate) mod control;
mod conv;
mod einsum;
mod elementwise;
mod indexed;
mod loss;
mod math;
mod matmul;
mod ml;
mod norm;
mod pool;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod region;
mod resize;
mod sample;
mod select;
mod sequence;
mod signal;
mod source;
mod string;
mod view;

use crate::context::NodeCx;
use crate::import_error::OpResult;

/// An operator's importer.
pub(crate) type Importer = fn(&mut NodeCx<'_, '_>) -> OpResult;

/// One version of an operator.
pub(crate) struct OpRow {
    /// Domain; empty for the standard one.
    pub(crate) domain: &'static str,
    /// Operator name.
    pub(crate) name: &'static str,
    /// First version of the domain with this meaning.
    pub(crate) since: i64,
    /// What builds the graph.
    pub(crate) import: Importer,
}

/// A row of the standard domain.
pub(crate) const fn op(name: &'static str, since: i64, import: Importer) -> OpRow {
    OpRow {
        domain: "",
        name,
        since,
        import,
    }
}

/// A row of another domain.
pub(crate) const fn op_in(
    domain: &'static str,
    name: &'static str,
    since: i64,
    import: Importer,
) -> OpRow {
    OpRow {
        domain,
        name,
        since,
        import,
    }
}

/// The table, by family.
pub(crate) const FAMILIES: &[&[OpRow]] = &[
    activation::OPS,
    attention::OPS,
    contrib::attention::OPS,
    contrib::embed::OPS,
    contrib::packed::OPS,
    contrib::qlinear::OPS,
    contrib::small::OPS,
    control::OPS,
    conv::OPS,
    einsum::OPS,
    elementwise::OPS,
    indexed::OPS,
    loss::OPS,
    matmul::OPS,
    ml::feature::OPS,
    ml::linear::OPS,
    ml::tree::OPS,
    norm::OPS,
    pool::OPS,
    quantize::OPS,
    random::OPS,
    recurrent::OPS,
    reduce::OPS,
    signal::OPS,
    region::OPS,
    resize::OPS,
    sample::OPS,
    select::OPS,
    sequence::OPS,
    source::OPS,
    string::OPS,
    view::OPS,
];

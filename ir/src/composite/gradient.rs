//! What gradient rules of composites share.

use crate::dim::Dim;
use crate::error::Result;
use crate::graph::{Graph, ValueId};
use crate::ops::ReduceKind;

/// What a composite's gradient rule gives: nothing where the decomposition is to be differentiated, otherwise the gradients.
pub(super) type Rule = Option<Result<Vec<Option<ValueId>>>>;

/// The sum over the axes that an operand of extents `dims` was repeated along (aligned from the right) to become like `x`,
/// in the extents of that operand. `None` where only the bound symbols tell which these are.
///
/// # Errors
/// As [`Graph::push`].
pub(super) fn sum_to(g: &mut Graph, x: ValueId, dims: &[Dim]) -> Result<Option<ValueId>> {
    let own = g.dims(x);
    let Some(lead) = own.len().checked_sub(dims.len()) else {
        return Ok(None);
    };
    let repeated = |a: &usize| *a < lead || dims[a - lead].is(1) && !own[*a].is(1);
    let axes: Vec<usize> = (0..own.len()).filter(repeated).collect();
    let unclear = |a: usize| !axes.contains(&a) && own[a] != dims[a - lead];
    if (0..own.len()).any(unclear) {
        return Ok(None);
    }
    let sum = g.reduce(ReduceKind::Sum, x, &axes)?;
    g.reshape(sum, dims).map(Some)
}

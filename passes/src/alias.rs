//! Values whose elements lie in another value's memory, one after the other: nothing is computed for them.

use cupola_ir::{CoreOp, DType, Dim, Graph, Op, ValueId};

/// The value in whose memory this one lies, and the byte offset in it: a reshape, or a part of whole rows.
pub(crate) fn alias(graph: &Graph, value: ValueId) -> Option<(ValueId, Dim)> {
    let base = *graph.def(value).operands.first()?;
    let offset = match graph.op_of(value) {
        Op::Core(CoreOp::Reshape(_)) => Dim::ZERO,
        Op::Core(CoreOp::Slice(p)) => {
            let dims = graph.dims(base);
            let whole = |a: usize| p.starts[a].is(0) && p.steps[a] == 1 && p.dims[a] == dims[a];
            // Only one axis is cut, and nothing outside of it is repeated.
            let axis = (0..dims.len()).find(|a| !whole(*a))?;
            let contiguous = p.steps[axis] == 1
                && dims[..axis].iter().all(|d| d.is(1))
                && (axis + 1..dims.len()).all(whole);
            let row = Dim::product(&dims[axis + 1..]);
            contiguous.then(|| p.starts[axis].clone() * row)? * Dim::from(size(graph.dtype(base))?)
        }
        _ => return None,
    };
    Some((base, offset))
}

fn size(dtype: DType) -> Option<usize> {
    dtype.is_whole_byte().then(|| dtype.size())
}

/// Whether a size is a multiple of a number whatever its symbols are.
pub(crate) fn is_multiple(dim: &Dim, of: usize) -> bool {
    let of = i64::try_from(of).unwrap_or(i64::MAX).max(1);
    dim.terms().iter().all(|t| t.coef % of == 0)
}

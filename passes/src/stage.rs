//! Takes long reductions to few elements in two stages: first within each element of the outermost axis, then over that. A kernel
//! gives threads and lanes the elements that stay, and these alone are too few for the sums of a convolution's bias, or for the
//! statistics of images. The first stage reads memory once and in order, too.
//!
//! Rule: only extents that are known decide, and the running value keeps its type in between.

use crate::edit::Edits;
use crate::{Context, PassError, Result, Work};
use cupola_ir::ops::Reduce;
use cupola_ir::{CoreOp, Dim, Graph, IrError, NodeId, Op, ValueId};

/// Elements that stay, above which there is work for everybody.
const MOST_KEPT: i64 = 1024;

/// Elements of the first stage and of the second one from which on two pay.
const LEAST_FIRST: i64 = 64;
const LEAST_SECOND: i64 = 8;

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    let error = |error: IrError| PassError::Graph {
        pass: "stage",
        error,
    };
    let graph = &mut work.graph;
    let long: Vec<(NodeId, Reduce)> = (graph.nodes())
        .filter_map(|(id, node)| match &node.op {
            Op::Core(CoreOp::Reduce(p)) if suits(graph, p, node.operands[0]) => {
                Some((id, p.clone()))
            }
            _ => None,
        })
        .collect();
    let mut edits = Edits::default();
    for (id, p) in long {
        let staged = staged(graph, id, &p).map_err(error)?;
        edits.replace(graph.node(id).results[0], staged);
    }
    edits.apply(work).map_err(error)?;
    Ok(())
}

/// Whether a reduction takes away the outer axes of many elements, at least two of them, and leaves few.
fn suits(graph: &Graph, p: &Reduce, x: ValueId) -> bool {
    let dims = graph.dims(x);
    let outer = p.axes.len();
    let is_outer = outer >= 2 && outer < dims.len() && p.axes.iter().copied().eq(0..outer);
    if !is_outer || !graph.dtype(x).is_float() {
        return false;
    }
    let known = |dims: &[Dim]| Dim::product(dims).as_const();
    let is_few = known(&dims[outer..]).is_some_and(|n| (1..=MOST_KEPT).contains(&n));
    let first = known(&dims[1..outer]).is_some_and(|n| n >= LEAST_FIRST);
    // A batch that is not known is most likely one.
    let second = dims[0].as_const().is_none_or(|n| n >= LEAST_SECOND);
    is_few && first && second
}

fn staged(graph: &mut Graph, id: NodeId, p: &Reduce) -> std::result::Result<ValueId, IrError> {
    let node = graph.node(id).clone();
    graph.set_origin(node.origins.first().cloned());
    let dtype = graph.dtype(node.results[0]);
    let over = |axes: Vec<usize>| Reduce { axes, ..p.clone() };
    let x = graph.cast(node.operands[0], p.accum)?;
    let parts = graph.one(over((1..p.axes.len()).collect()), &[x])?;
    let whole = graph.one(over(vec![0]), &[parts])?;
    graph.cast(whole, dtype)
}

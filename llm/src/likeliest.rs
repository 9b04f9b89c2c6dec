//! The likeliest token of a row, found where the logits are: where nothing else is asked of them they need not be read.

use crate::error::{LlmError, Result};
use cupola_ir::ops::{ArgReduce, Bounds, Gather, ReduceKind};
use cupola_ir::{DType, Graph, Scalar};

/// Name of the output with it.
pub(crate) const LIKELIEST: &str = "likeliest";

/// The graph of a decoder with one more output, `likeliest: i32[outs]`: of each row of logits the first token that has the
/// largest, or -1 where that is not finite. Worth it on devices whose memory the host has to copy from: a
/// [`crate::Decoder`] then reads no logits where this says it all.
///
/// # Errors
/// [`LlmError::NoDecoder`] for a graph whose first output is not `logits: f32[outs, vocab]`.
pub fn with_likeliest(mut graph: Graph) -> Result<Graph> {
    crate::decoder::vocab_of(&graph)?;
    let logits = graph.outputs()[0].1;
    let g = &mut graph;
    let likeliest = (|| {
        let first = ArgReduce {
            kind: ReduceKind::Max,
            axis: 1,
            last: false,
        };
        // What is no number counts as the largest.
        let token = g.one(first, &[logits])?;
        let at = Gather {
            axes: vec![1],
            batch: 1,
            bounds: Bounds::Clamp,
        };
        let most = g.one(at, &[logits, token])?;
        let size = g.unary(Scalar::Abs, most)?;
        let infinity = g.number_like(f64::INFINITY, size)?;
        let finite = g.binary(Scalar::Lt, size, infinity)?;
        let token = g.cast(token, DType::I32)?;
        let none = g.number_like(-1.0, token)?;
        g.select(finite, token, none)
    })();
    let likeliest = likeliest
        .map_err(|e: cupola_ir::IrError| LlmError::NoDecoder(graph.name.clone(), e.to_string()))?;
    graph.output(LIKELIEST, likeliest);
    Ok(graph)
}

//! Softmax and log-softmax.

use super::CompositeDef;
use crate::attr::payload;
use crate::error::Result;
use crate::graph::{Graph, ValueId};
use crate::ops::ReduceKind;
use crate::scalar::Scalar;

payload! {
    /// Operand `x`. With `e = exp(x - max(x))` along `axis`: `out = e / sum(e)`, or its logarithm
    /// `x - max(x) - log(sum(e))`. Accumulates in f32 at least.
    Softmax {
        /// Normalised axis.
        axis: usize,
        /// Log-softmax.
        log: bool,
    }
}

impl CompositeDef for Softmax {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let x = operands[0];
        let wide = g.widen(x)?;
        let max = g.reduce_keep(ReduceKind::Max, wide, &[self.axis])?;
        let shifted = g.binary(Scalar::Sub, wide, max)?;
        let e = g.unary(Scalar::Exp, shifted)?;
        let sum = g.reduce_keep(ReduceKind::Sum, e, &[self.axis])?;
        let out = if self.log {
            let log = g.unary(Scalar::Log, sum)?;
            g.binary(Scalar::Sub, shifted, log)?
        } else {
            g.binary(Scalar::Div, e, sum)?
        };
        Ok(vec![g.cast_like(out, x)?])
    }
}

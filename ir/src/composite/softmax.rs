//! Softmax and log-softmax.

use super::CompositeDef;
use super::gradient::Rule;
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

    /// In terms of the result, which does not overflow and needs no maximum.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        results: &[ValueId],
        cotangents: &[Option<ValueId>],
        _: &[bool],
    ) -> Rule {
        let (x, y, dy) = (operands[0], results[0], cotangents[0]?);
        Some(self.gradient(g, x, y, dy).map(|dx| vec![Some(dx)]))
    }
}

impl Softmax {
    fn gradient(&self, g: &mut Graph, x: ValueId, y: ValueId, dy: ValueId) -> Result<ValueId> {
        let (y, dy) = (g.widen(y)?, g.widen(dy)?);
        let dx = if self.log {
            let p = g.unary(Scalar::Exp, y)?;
            let sum = g.reduce_keep(ReduceKind::Sum, dy, &[self.axis])?;
            let part = g.binary(Scalar::Mul, p, sum)?;
            g.binary(Scalar::Sub, dy, part)?
        } else {
            let part = g.binary(Scalar::Mul, y, dy)?;
            let sum = g.reduce_keep(ReduceKind::Sum, part, &[self.axis])?;
            let centred = g.binary(Scalar::Sub, dy, sum)?;
            g.binary(Scalar::Mul, y, centred)?
        };
        g.cast_like(dx, x)
    }
}

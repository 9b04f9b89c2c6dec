//! Rotary position embedding.

use super::CompositeDef;
use crate::Dim;
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::scalar::Scalar;

payload! {
    /// Operands `(x: [.., d], cos, sin)`, `d` even; `cos` and `sin` broadcast against `[.., d / 2]`. Every pair `(a, b)` of
    /// the last axis turns by an angle of its own: `(a * cos - b * sin, b * cos + a * sin)`. Pair `i` is elements `i` and
    /// `i + d / 2`, or `2 i` and `2 i + 1` when interleaved.
    Rope {
        /// Pairs are neighbours.
        interleaved: bool,
    }
}

impl CompositeDef for Rope {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, cos, sin] = *operands else {
            return Err(IrError::op("composite.rope", "takes x, cos and sin"));
        };
        let dims = g.dims(x);
        let Some((last, lead)) = dims.split_last() else {
            return Err(IrError::op("composite.rope", "x has an axis to rotate"));
        };
        let two = Dim::Const(2);
        let half = last.floor_div(&two);
        if half.clone() * two.clone() != *last {
            return Err(IrError::op("composite.rope", "the last extent is even"));
        }
        // Pairs as an axis of two beside that of the angles.
        let axis = lead.len() + usize::from(self.interleaved);
        let mut split = [lead, &[half]].concat();
        split.insert(axis, two);
        let pairs = g.reshape(x, &split)?;
        let a = g.pick(pairs, axis, &Dim::ZERO)?;
        let b = g.pick(pairs, axis, &Dim::ONE)?;
        let (cos, sin) = (g.cast_like(cos, x)?, g.cast_like(sin, x)?);
        let mut product = |x, y| g.binary(Scalar::Mul, x, y);
        let (ac, bs, bc, as_) = (
            product(a, cos)?,
            product(b, sin)?,
            product(b, cos)?,
            product(a, sin)?,
        );
        let turned = [
            g.binary(Scalar::Sub, ac, bs)?,
            g.binary(Scalar::Add, bc, as_)?,
        ];
        let turned = [
            g.unsqueeze(turned[0], &[axis])?,
            g.unsqueeze(turned[1], &[axis])?,
        ];
        let out = g.concat(&turned, axis)?;
        Ok(vec![g.reshape(out, &dims)?])
    }
}

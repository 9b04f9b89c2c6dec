//! Rotary position embedding.

use super::CompositeDef;
use super::gradient::Rule;
use crate::Dim;
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::Op;
use crate::scalar::Scalar;
use crate::tensor::Tensor;

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
        let Pairs {
            pairs,
            axis,
            cos,
            sin,
            dims,
        } = self.pairs(g, operands)?;
        let a = g.pick(pairs, axis, &Dim::ZERO)?;
        let b = g.pick(pairs, axis, &Dim::ONE)?;
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

    /// Every element is its own part of the pair and the other part, whose sine counts against the first.
    fn decompose_without_joins(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let Pairs {
            pairs,
            axis,
            cos,
            sin,
            dims,
        } = self.pairs(g, operands)?;
        let others = g.flip(pairs, axis)?;
        let mut signs_dims = vec![Dim::ONE; g.rank(pairs)];
        signs_dims[axis] = Dim::Const(2);
        let signs = g.constant(Tensor::vector(&[-1.0f32, 1.0]))?;
        let signs = g.cast_like(signs, pairs)?;
        let signs = g.reshape(signs, &signs_dims)?;
        // Angles begin with the axes of x that they have, the one of pairs comes in as it did there.
        let from_end = g.rank(pairs) - axis;
        let mut beside = |x| {
            let at = (g.rank(x) + 1).checked_sub(from_end);
            at.map_or(Ok(x), |at| g.unsqueeze(x, &[at]))
        };
        let (cos, sin) = (beside(cos)?, beside(sin)?);
        let sin = g.binary(Scalar::Mul, sin, signs)?;
        let own = g.binary(Scalar::Mul, pairs, cos)?;
        let other = g.binary(Scalar::Mul, others, sin)?;
        let out = g.binary(Scalar::Add, own, other)?;
        Ok(vec![g.reshape(out, &dims)?])
    }

    /// Turned back, which is a rotation by the negative angles. Angles of their own gradient go through the decomposition.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let [_, cos, sin] = *operands else {
            return None;
        };
        let dy = cotangents[0]?;
        if wanted[1] || wanted[2] {
            return None;
        }
        let mut make = || {
            let back = g.unary(Scalar::Neg, sin)?;
            let dx = g.one(Op::Composite(self.clone().into()), &[dy, cos, back])?;
            Ok(vec![Some(dx), None, None])
        };
        Some(make())
    }
}

/// An operand in pairs, with the angles in its type.
struct Pairs {
    /// Both parts of each pair along an axis of two, beside that of the angles.
    pairs: ValueId,
    axis: usize,
    cos: ValueId,
    sin: ValueId,
    /// Extents of the operand.
    dims: Vec<Dim>,
}

impl Rope {
    fn pairs(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Pairs> {
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
        let axis = lead.len() + usize::from(self.interleaved);
        let mut split = [lead, &[half]].concat();
        split.insert(axis, two);
        Ok(Pairs {
            pairs: g.reshape(x, &split)?,
            axis,
            cos: g.cast_like(cos, x)?,
            sin: g.cast_like(sin, x)?,
            dims,
        })
    }
}

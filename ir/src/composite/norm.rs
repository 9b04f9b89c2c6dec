//! Normalisation over trailing axes.

use super::CompositeDef;
use crate::attr::payload;
use crate::error::Result;
use crate::graph::{Graph, ValueId};
use crate::scalar::Scalar;

payload! {
    /// Operands `(x, scale?, bias?)`; `scale` and `bias` broadcast against `x` from the right. Over the axes from `axis`
    /// on: `out = (x - mean) / sqrt(var + epsilon) * scale + bias` with the biased variance, computed in f32 at least.
    /// Results: `out`, and when `stats`: `mean` and `1 / sqrt(var + epsilon)` with kept axes, in the compute type.
    LayerNorm {
        /// First normalised axis.
        axis: usize,
        /// Added to the variance.
        epsilon: f64,
        /// Also give mean and inverse deviation.
        stats: bool,
    }
}

impl CompositeDef for LayerNorm {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        1..=3
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let x = operands[0];
        let wide = g.widen(x)?;
        let axes: Vec<usize> = (self.axis..g.rank(x)).collect();
        let mean = g.mean_keep(wide, &axes)?;
        let centred = g.binary(Scalar::Sub, wide, mean)?;
        let square = g.binary(Scalar::Mul, centred, centred)?;
        let var = g.mean_keep(square, &axes)?;
        let eps = g.number_like(self.epsilon, var)?;
        let var = g.binary(Scalar::Add, var, eps)?;
        let inverse = g.unary(Scalar::Rsqrt, var)?;
        let normal = g.binary(Scalar::Mul, centred, inverse)?;
        let out = affine(g, normal, &operands[1..])?;
        let out = g.cast_like(out, x)?;
        Ok(if self.stats {
            vec![out, mean, inverse]
        } else {
            vec![out]
        })
    }
}

payload! {
    /// Operands `(x, scale?)`. Over the axes from `axis` on: `out = x / sqrt(mean(x^2) + epsilon) * scale`, computed in
    /// f32 at least.
    RmsNorm {
        /// First normalised axis.
        axis: usize,
        /// Added to the mean square.
        epsilon: f64,
    }
}

impl CompositeDef for RmsNorm {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        1..=2
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let x = operands[0];
        let wide = g.widen(x)?;
        let axes: Vec<usize> = (self.axis..g.rank(x)).collect();
        let square = g.binary(Scalar::Mul, wide, wide)?;
        let mean = g.mean_keep(square, &axes)?;
        let eps = g.number_like(self.epsilon, mean)?;
        let mean = g.binary(Scalar::Add, mean, eps)?;
        let inverse = g.unary(Scalar::Rsqrt, mean)?;
        let normal = g.binary(Scalar::Mul, wide, inverse)?;
        let out = affine(g, normal, &operands[1..])?;
        Ok(vec![g.cast_like(out, x)?])
    }
}

/// `x * scale + bias` with what is given, in the type of `x`.
fn affine(g: &mut Graph, x: ValueId, operands: &[ValueId]) -> Result<ValueId> {
    let mut out = x;
    for (operand, f) in operands.iter().zip([Scalar::Mul, Scalar::Add]) {
        let operand = g.cast_like(*operand, x)?;
        out = g.binary(f, out, operand)?;
    }
    Ok(out)
}

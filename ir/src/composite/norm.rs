//! Normalisation over trailing axes.

use super::CompositeDef;
use super::gradient::{Rule, sum_to};
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

    /// Two means over the normalised axes instead of the six of the decomposition.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let [Some(dy), rest @ ..] = cotangents else {
            return None;
        };
        if rest.iter().any(Option::is_some) {
            return None;
        }
        let normalised = |g: &mut Graph| {
            let wide = g.widen(operands[0])?;
            let axes: Vec<usize> = (self.axis..g.rank(wide)).collect();
            let mean = g.mean_keep(wide, &axes)?;
            let centred = g.binary(Scalar::Sub, wide, mean)?;
            let inverse = inverse_root(g, centred, &axes, self.epsilon)?;
            Ok((g.binary(Scalar::Mul, centred, inverse)?, inverse))
        };
        gradient(g, operands, *dy, wanted, self.axis, true, normalised).transpose()
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

    /// One mean over the normalised axes.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let dy = cotangents[0]?;
        let normalised = |g: &mut Graph| {
            let wide = g.widen(operands[0])?;
            let axes: Vec<usize> = (self.axis..g.rank(wide)).collect();
            let inverse = inverse_root(g, wide, &axes, self.epsilon)?;
            Ok((g.binary(Scalar::Mul, wide, inverse)?, inverse))
        };
        gradient(g, operands, dy, wanted, self.axis, false, normalised).transpose()
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)`, spelled as in the decompositions.
fn inverse_root(g: &mut Graph, x: ValueId, axes: &[usize], epsilon: f64) -> Result<ValueId> {
    let square = g.binary(Scalar::Mul, x, x)?;
    let mean = g.mean_keep(square, axes)?;
    let eps = g.number_like(epsilon, mean)?;
    let mean = g.binary(Scalar::Add, mean, eps)?;
    g.unary(Scalar::Rsqrt, mean)
}

/// Gradients of `n(x) * scale + bias`, `n` being the normalisation that `normalised` gives with its inverse deviation:
/// `dx = (d - n * mean(d * n) - mean(d)) * inverse` with `d = dy * scale`, the last mean only where `centred`.
fn gradient(
    g: &mut Graph,
    operands: &[ValueId],
    dy: ValueId,
    wanted: &[bool],
    axis: usize,
    centred: bool,
    normalised: impl FnOnce(&mut Graph) -> Result<(ValueId, ValueId)>,
) -> Result<Option<Vec<Option<ValueId>>>> {
    let x = operands[0];
    let (normal, inverse) = normalised(g)?;
    let axes: Vec<usize> = (axis..g.rank(x)).collect();
    let dy = g.widen(dy)?;
    let mut grads = vec![None; operands.len()];
    if wanted[0] {
        let mut d = dy;
        if let Some(scale) = operands.get(1) {
            let scale = g.cast_like(*scale, dy)?;
            d = g.binary(Scalar::Mul, dy, scale)?;
        }
        let along = g.binary(Scalar::Mul, d, normal)?;
        let along = g.mean_keep(along, &axes)?;
        let part = g.binary(Scalar::Mul, normal, along)?;
        let mut dx = g.binary(Scalar::Sub, d, part)?;
        if centred {
            let mean = g.mean_keep(d, &axes)?;
            dx = g.binary(Scalar::Sub, dx, mean)?;
        }
        let dx = g.binary(Scalar::Mul, dx, inverse)?;
        grads[0] = Some(g.cast_like(dx, x)?);
    }
    for at in 1..operands.len() {
        if !wanted[at] {
            continue;
        }
        let part = match at {
            1 => g.binary(Scalar::Mul, dy, normal)?,
            _ => dy,
        };
        let dims = g.dims(operands[at]);
        let Some(sum) = sum_to(g, part, &dims)? else {
            return Ok(None);
        };
        grads[at] = Some(g.cast_like(sum, operands[at])?);
    }
    Ok(Some(grads))
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

//! Activations that exporters spell in many ways.

use super::CompositeDef;
use crate::attr::payload;
use crate::error::Result;
use crate::graph::{Graph, ValueId};
use crate::scalar::Scalar;

payload! {
    /// `0.5 * x * (1 + erf(x / sqrt(2)))`, or with `tanh`
    /// `0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))` (Hendrycks and Gimpel, 2016).
    Gelu {
        /// The tanh approximation.
        tanh: bool,
    }
}

impl CompositeDef for Gelu {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let x = operands[0];
        let inner = if self.tanh {
            let cube = g.binary(Scalar::Mul, x, x)?;
            let cube = g.binary(Scalar::Mul, cube, x)?;
            let cube = g.scale(cube, 0.044715)?;
            let sum = g.binary(Scalar::Add, x, cube)?;
            let sum = g.scale(sum, (2.0 / std::f64::consts::PI).sqrt())?;
            g.unary(Scalar::Tanh, sum)?
        } else {
            let scaled = g.scale(x, std::f64::consts::FRAC_1_SQRT_2)?;
            g.unary(Scalar::Erf, scaled)?
        };
        let one = g.number_like(1.0, x)?;
        let gate = g.binary(Scalar::Add, inner, one)?;
        let half = g.scale(x, 0.5)?;
        Ok(vec![g.binary(Scalar::Mul, half, gate)?])
    }
}

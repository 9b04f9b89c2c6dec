//! Activations that exporters spell in many ways.

use super::CompositeDef;
use crate::attr::payload;
use crate::error::{IrError, Result};
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

payload! {
    /// `x * sigmoid(alpha * x)`: SiLU with `alpha` 1, the sigmoid form of GELU with `alpha` 1.702.
    Swish {
        /// Slope of the sigmoid.
        alpha: f64,
    }
}

impl CompositeDef for Swish {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x] = *operands else {
            return Err(IrError::op("composite.swish", "takes one operand"));
        };
        Ok(vec![swish(g, x, self.alpha)?])
    }
}

payload! {
    /// Operands `(gate, up)` of equal extents: `swish(gate) * up`, the gated unit of most language models.
    Swiglu {
        /// Slope of the sigmoid.
        alpha: f64,
    }
}

impl CompositeDef for Swiglu {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [gate, up] = *operands else {
            return Err(IrError::op("composite.swiglu", "takes a gate and a value"));
        };
        let gate = swish(g, gate, self.alpha)?;
        Ok(vec![g.binary(Scalar::Mul, gate, up)?])
    }
}

fn swish(g: &mut Graph, x: ValueId, alpha: f64) -> Result<ValueId> {
    let inner = match alpha {
        1.0 => x,
        alpha => g.scale(x, alpha)?,
    };
    let gate = g.unary(Scalar::Sigmoid, inner)?;
    g.binary(Scalar::Mul, x, gate)
}

//! Activations that exporters spell in many ways.

use super::CompositeDef;
use super::gradient::Rule;
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

    /// In f32 at least, rounded once.
    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let x = g.widen(operands[0])?;
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
        let y = g.binary(Scalar::Mul, half, gate)?;
        Ok(vec![g.cast_like(y, operands[0])?])
    }

    /// The slope in f32 at least: its parts cancel for negative x.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        _: &[bool],
    ) -> Rule {
        let (x, dy) = (operands[0], cotangents[0]?);
        Some(self.gradient(g, x, dy).map(|dx| vec![Some(dx)]))
    }
}

impl Gelu {
    fn gradient(&self, g: &mut Graph, x: ValueId, dy: ValueId) -> Result<ValueId> {
        use std::f64::consts::{FRAC_1_SQRT_2, PI};
        let (wide, dy) = (g.widen(x)?, g.widen(dy)?);
        let one = g.number_like(1.0, wide)?;
        let square = g.binary(Scalar::Mul, wide, wide)?;
        // x times the slope of the gate, and the gate.
        let (gate, rise) = if self.tanh {
            let root = (2.0 / PI).sqrt();
            let cubic = g.scale(square, 0.044715 * root)?;
            let straight = g.number_like(root, wide)?;
            let inner = g.binary(Scalar::Add, cubic, straight)?;
            let inner = g.binary(Scalar::Mul, inner, wide)?;
            let t = g.unary(Scalar::Tanh, inner)?;
            let cubic = g.scale(square, 3.0 * 0.044715 * root)?;
            let slope = g.binary(Scalar::Add, cubic, straight)?;
            let tt = g.binary(Scalar::Mul, t, t)?;
            let flat = g.binary(Scalar::Sub, one, tt)?;
            (t, g.binary(Scalar::Mul, slope, flat)?)
        } else {
            let scaled = g.scale(wide, FRAC_1_SQRT_2)?;
            let gate = g.unary(Scalar::Erf, scaled)?;
            let exponent = g.scale(square, -0.5)?;
            let bell = g.unary(Scalar::Exp, exponent)?;
            (gate, g.scale(bell, (2.0 / PI).sqrt())?)
        };
        let gate = g.binary(Scalar::Add, gate, one)?;
        let rise = g.binary(Scalar::Mul, wide, rise)?;
        let slope = g.binary(Scalar::Add, gate, rise)?;
        let slope = g.scale(slope, 0.5)?;
        let dx = g.binary(Scalar::Mul, dy, slope)?;
        g.cast_like(dx, x)
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

    /// In f32 at least, rounded once.
    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x] = *operands else {
            return Err(IrError::op("composite.swish", "takes one operand"));
        };
        let wide = g.widen(x)?;
        let y = swish(g, wide, self.alpha)?;
        Ok(vec![g.cast_like(y, x)?])
    }

    /// One sigmoid, and the slope in f32 at least.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        _: &[bool],
    ) -> Rule {
        let (x, dy) = (operands[0], cotangents[0]?);
        let mut make = || {
            let (wide, dy) = (g.widen(x)?, g.widen(dy)?);
            let (_, slope) = swish_and_slope(g, wide, self.alpha)?;
            let dx = g.binary(Scalar::Mul, dy, slope)?;
            Ok(vec![Some(g.cast_like(dx, x)?)])
        };
        Some(make())
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

    /// One sigmoid for both operands.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        _: &[bool],
    ) -> Rule {
        let [gate, up] = *operands else {
            return None;
        };
        let dy = cotangents[0]?;
        let mut make = || {
            let (dy, wide, wide_up) = (g.widen(dy)?, g.widen(gate)?, g.widen(up)?);
            let (value, slope) = swish_and_slope(g, wide, self.alpha)?;
            let part = g.binary(Scalar::Mul, dy, wide_up)?;
            let of_gate = g.binary(Scalar::Mul, part, slope)?;
            let of_up = g.binary(Scalar::Mul, dy, value)?;
            let grads = [g.cast_like(of_gate, gate)?, g.cast_like(of_up, up)?];
            Ok(grads.into_iter().map(Some).collect())
        };
        Some(make())
    }
}

/// `x * s` and its slope `s * (1 + alpha * x * (1 - s))` with `s = sigmoid(alpha * x)`.
fn swish_and_slope(g: &mut Graph, x: ValueId, alpha: f64) -> Result<(ValueId, ValueId)> {
    let inner = g.scale(x, alpha)?;
    let s = g.unary(Scalar::Sigmoid, inner)?;
    let one = g.number_like(1.0, x)?;
    let rest = g.binary(Scalar::Sub, one, s)?;
    let rise = g.binary(Scalar::Mul, inner, rest)?;
    let rise = g.binary(Scalar::Add, rise, one)?;
    Ok((
        g.binary(Scalar::Mul, x, s)?,
        g.binary(Scalar::Mul, s, rise)?,
    ))
}

fn swish(g: &mut Graph, x: ValueId, alpha: f64) -> Result<ValueId> {
    let inner = match alpha {
        1.0 => x,
        alpha => g.scale(x, alpha)?,
    };
    let gate = g.unary(Scalar::Sigmoid, inner)?;
    g.binary(Scalar::Mul, x, gate)
}

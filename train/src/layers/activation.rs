//! Activations and dropout.
//!
//! Gradients at kinks are those of PyTorch: 0 for relu at 0 and for a clamp at its bounds.

use crate::error::{Result, TrainError};
use crate::net::Net;
use cupola_ir::composite::{Gelu, Softmax, Swish};
use cupola_ir::ops::Random;
use cupola_ir::{DType, Op, Scalar, ValueId};

impl Net {
    /// `max(x, 0)`; NaN stays.
    ///
    /// # Errors
    /// Operands that are no floats, as for all activations.
    pub fn relu(&mut self, x: ValueId) -> Result<ValueId> {
        let g = &mut self.graph;
        let zero = g.number_like(0.0, x)?;
        Ok(g.binary(Scalar::Max, x, zero)?)
    }

    /// `x` above 0, else `slope * x`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn leaky_relu(&mut self, x: ValueId, slope: f64) -> Result<ValueId> {
        let g = &mut self.graph;
        let zero = g.number_like(0.0, x)?;
        let off = g.binary(Scalar::Le, x, zero)?;
        let low = g.scale(x, slope)?;
        Ok(g.select(off, low, x)?)
    }

    /// `x` within `low` to `high`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn clamp(&mut self, x: ValueId, low: f64, high: f64) -> Result<ValueId> {
        let g = &mut self.graph;
        let (low, high) = (g.number_like(low, x)?, g.number_like(high, x)?);
        let y = g.binary(Scalar::Max, x, low)?;
        Ok(g.binary(Scalar::Min, y, high)?)
    }

    /// `x Phi(x)` with the normal distribution's `Phi`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn gelu(&mut self, x: ValueId) -> Result<ValueId> {
        Ok(self
            .graph
            .one(Op::Composite(Gelu { tanh: false }.into()), &[x])?)
    }

    /// The approximation of [`Net::gelu`] by the hyperbolic tangent.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn gelu_tanh(&mut self, x: ValueId) -> Result<ValueId> {
        Ok(self
            .graph
            .one(Op::Composite(Gelu { tanh: true }.into()), &[x])?)
    }

    /// `x sigmoid(x)`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn silu(&mut self, x: ValueId) -> Result<ValueId> {
        Ok(self
            .graph
            .one(Op::Composite(Swish { alpha: 1.0 }.into()), &[x])?)
    }

    /// `x` above 0, else `alpha (e^x - 1)`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn elu(&mut self, x: ValueId, alpha: f64) -> Result<ValueId> {
        let g = &mut self.graph;
        let zero = g.number_like(0.0, x)?;
        let off = g.binary(Scalar::Le, x, zero)?;
        // Above 0 the exponential is of 0, so that it neither overflows nor leaves a gradient that is no number.
        let safe = g.select(off, x, zero)?;
        let low = g.unary(Scalar::Expm1, safe)?;
        let low = g.scale(low, alpha)?;
        Ok(g.select(off, low, x)?)
    }

    /// `log(1 + e^x)`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn softplus(&mut self, x: ValueId) -> Result<ValueId> {
        let g = &mut self.graph;
        // Above 20 the logarithm is x to the last bit of f32; it is taken of 0 there, which leaves no infinite gradient.
        let limit = g.number_like(20.0, x)?;
        let zero = g.number_like(0.0, x)?;
        let high = g.binary(Scalar::Lt, limit, x)?;
        let safe = g.select(high, zero, x)?;
        let e = g.unary(Scalar::Exp, safe)?;
        let low = g.unary(Scalar::Log1p, e)?;
        Ok(g.select(high, x, low)?)
    }

    /// Hyperbolic tangent.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn tanh(&mut self, x: ValueId) -> Result<ValueId> {
        Ok(self.graph.unary(Scalar::Tanh, x)?)
    }

    /// `1 / (1 + e^-x)`.
    ///
    /// # Errors
    /// As [`Net::relu`].
    pub fn sigmoid(&mut self, x: ValueId) -> Result<ValueId> {
        Ok(self.graph.unary(Scalar::Sigmoid, x)?)
    }

    /// Exponentials normalised along the last axis.
    ///
    /// # Errors
    /// As [`Net::relu`]; a scalar.
    pub fn softmax(&mut self, x: ValueId) -> Result<ValueId> {
        self.softmax_with(x, false)
    }

    /// The logarithm of [`Net::softmax`].
    ///
    /// # Errors
    /// As [`Net::softmax`].
    pub fn log_softmax(&mut self, x: ValueId) -> Result<ValueId> {
        self.softmax_with(x, true)
    }

    fn softmax_with(&mut self, x: ValueId, log: bool) -> Result<ValueId> {
        let Some(axis) = self.graph.rank(x).checked_sub(1) else {
            return Err(TrainError::layer("softmax", "a scalar has no axis"));
        };
        Ok(self
            .graph
            .one(Op::Composite(Softmax { axis, log }.into()), &[x])?)
    }

    /// In training, each element is 0 with probability `p`, and the others are divided by `1 - p`; `x` in evaluation.
    ///
    /// # Errors
    /// A probability outside 0 to 1.
    pub fn dropout(&mut self, x: ValueId, p: f64) -> Result<ValueId> {
        if !(0.0..=1.0).contains(&p) {
            return Err(TrainError::layer(
                "dropout",
                format!("the probability {p} is outside 0 to 1"),
            ));
        }
        if p == 0.0 {
            return Ok(x);
        }
        let stream = self.next_stream();
        let g = &mut self.graph;
        let zero = g.number_like(0.0, x)?;
        let y = if p == 1.0 {
            g.binary(Scalar::Mul, x, zero)?
        } else {
            let dims = g.dims(x);
            let bits = g.one(Random { stream, dims }, &[])?;
            let threshold = g.number((p * 4_294_967_296.0).floor(), DType::U32)?;
            let kept = g.binary(Scalar::Le, threshold, bits)?;
            let scaled = g.scale(x, 1.0 / (1.0 - p))?;
            g.select(kept, scaled, zero)?
        };
        self.switch(y, x);
        Ok(y)
    }
}

//! Scaling of the loss for f16, so that small gradients do not vanish: the rule of `torch.amp.GradScaler` as state and ops of
//! the step's graph.

use crate::error::{Result, TrainError};
use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Graph, Scalar, ValueId};

/// Slot of the scale (f32).
pub const SCALE: &str = "scaler.scale";
/// Slot of the number of steps in a row without infinities (i32).
pub const TRACKER: &str = "scaler.tracker";

/// Settings of the loss scale.
#[derive(Clone, Debug, PartialEq)]
pub struct GradScaler {
    /// First scale.
    pub init_scale: f64,
    /// Factor after `interval` steps in a row without infinities.
    pub growth: f64,
    /// Factor after a step with an infinity or NaN, whose update is left out.
    pub backoff: f64,
    /// Steps between growths.
    pub interval: u32,
}

impl Default for GradScaler {
    fn default() -> Self {
        GradScaler {
            init_scale: 65536.0,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
        }
    }
}

impl GradScaler {
    pub(crate) fn check(&self) -> Result<()> {
        let sound = self.growth > 1.0 && self.backoff < 1.0 && self.backoff > 0.0;
        match sound
            && self.init_scale > 0.0
            && self.interval > 0
            && self.interval <= i32::MAX as u32
        {
            true => Ok(()),
            false => {
                let what = format!(
                    "{self:?}: growth is above 1, backoff between 0 and 1, the rest positive"
                );
                Err(TrainError::Options(what))
            }
        }
    }

    /// Scale and tracker after a step.
    pub(crate) fn next(
        &self,
        g: &mut Graph,
        scale: ValueId,
        tracker: ValueId,
        found: ValueId,
    ) -> Result<[ValueId; 2]> {
        let lower = g.scale(scale, self.backoff)?;
        let higher = g.scale(scale, self.growth)?;
        // A scale that is no longer finite is not taken.
        let over = g.unary(Scalar::IsInf, higher)?;
        let higher = g.select(over, scale, higher)?;
        let one = g.number(1.0, DType::I32)?;
        let zero = g.number(0.0, DType::I32)?;
        let count = g.binary(Scalar::Add, tracker, one)?;
        let interval = g.number(f64::from(self.interval), DType::I32)?;
        let grows = g.binary(Scalar::Eq, count, interval)?;
        let clean = g.select(grows, higher, scale)?;
        let count = g.select(grows, zero, count)?;
        Ok([
            g.select(found, lower, clean)?,
            g.select(found, zero, count)?,
        ])
    }
}

/// Divides all gradients by the scale; whether any element of them is infinite or NaN.
pub(crate) fn unscale(
    g: &mut Graph,
    scale: ValueId,
    grads: &mut [(usize, ValueId)],
) -> Result<ValueId> {
    let one = g.number_like(1.0, scale)?;
    let inverse = g.binary(Scalar::Div, one, scale)?;
    let mut found = g.number(0.0, DType::Bool)?;
    for (_, grad) in grads {
        let (none, infinite) = (
            g.unary(Scalar::IsNan, *grad)?,
            g.unary(Scalar::IsInf, *grad)?,
        );
        let bad = g.binary(Scalar::Or, none, infinite)?;
        let axes: Vec<usize> = (0..g.rank(bad)).collect();
        let bad = g.reduce(ReduceKind::Max, bad, &axes)?;
        found = g.binary(Scalar::Or, found, bad)?;
        let inverse = g.cast_like(inverse, *grad)?;
        *grad = g.binary(Scalar::Mul, *grad, inverse)?;
    }
    Ok(found)
}

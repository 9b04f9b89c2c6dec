//! Sums and changes of extents.

use crate::error::{Result, TrainError};
use crate::net::Net;
use cupola_ir::{Dim, Scalar, ValueId};

impl Net {
    /// `x + y`, broadcast; of two float types the wider.
    ///
    /// # Errors
    /// Extents that do not broadcast.
    pub fn add(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        let g = &mut self.graph;
        let y = match g.dtype(y).is_float() {
            true => g.cast_like(y, x)?,
            false => y,
        };
        Ok(g.binary(Scalar::Add, x, y)?)
    }

    /// `x * y`, broadcast.
    ///
    /// # Errors
    /// Extents that do not broadcast.
    pub fn mul(&mut self, x: ValueId, y: ValueId) -> Result<ValueId> {
        Ok(self.graph.binary(Scalar::Mul, x, y)?)
    }

    /// `x + f(x)`.
    ///
    /// # Errors
    /// Those of `f`, and a result of other extents.
    pub fn residual(
        &mut self,
        x: ValueId,
        f: impl FnOnce(&mut Net, ValueId) -> Result<ValueId>,
    ) -> Result<ValueId> {
        let y = f(self, x)?;
        self.add(x, y)
    }

    /// The axes from `first` on joined to one.
    ///
    /// # Errors
    /// An axis that x has not.
    pub fn flatten(&mut self, x: ValueId, first: usize) -> Result<ValueId> {
        let dims = self.graph.dims(x);
        if first >= dims.len() {
            let what = format!("axis {first} of {}", self.graph.ty(x));
            return Err(TrainError::layer("flatten", what));
        }
        let joined = [&dims[..first], &[Dim::product(&dims[first..])]].concat();
        Ok(self.graph.reshape(x, &joined)?)
    }

    /// The first two axes joined to one: `[batch, steps, ..]` to `[batch * steps, ..]`.
    ///
    /// # Errors
    /// Fewer than two axes.
    pub fn join_steps(&mut self, x: ValueId) -> Result<ValueId> {
        let dims = self.graph.dims(x);
        if dims.len() < 2 {
            let what = format!("takes [batch, steps, ..], not {}", self.graph.ty(x));
            return Err(TrainError::layer("join_steps", what));
        }
        let joined = [&[Dim::product(&dims[..2])], &dims[2..]].concat();
        Ok(self.graph.reshape(x, &joined)?)
    }

    /// The last step of `x: [batch, steps, width]`: `[batch, width]`.
    ///
    /// # Errors
    /// Fewer than two axes.
    pub fn last_step(&mut self, x: ValueId) -> Result<ValueId> {
        let dims = self.graph.dims(x);
        if dims.len() < 2 {
            let what = format!("takes [batch, steps, ..], not {}", self.graph.ty(x));
            return Err(TrainError::layer("last_step", what));
        }
        Ok(self.graph.pick(x, 1, &(dims[1].clone() - Dim::ONE))?)
    }

    /// Mean over an axis, which vanishes.
    ///
    /// # Errors
    /// An axis that x has not.
    pub fn mean(&mut self, x: ValueId, axis: usize) -> Result<ValueId> {
        if axis >= self.graph.rank(x) {
            let what = format!("axis {axis} of {}", self.graph.ty(x));
            return Err(TrainError::layer("mean", what));
        }
        let mean = self.graph.mean_keep(x, &[axis])?;
        Ok(self.graph.squeeze(mean, &[axis])?)
    }
}

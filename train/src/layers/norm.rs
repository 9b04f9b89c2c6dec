//! Normalisation.

use super::known;
use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::Net;
use cupola_ir::composite::{LayerNorm, RmsNorm};
use cupola_ir::{Dim, Op, Scalar, ValueId};

/// Settings of [`Net::batch_norm`].
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f64,
    /// Part of a batch's statistics in the next running statistics.
    pub momentum: f64,
    /// Whether results are scaled and shifted by parameters.
    pub affine: bool,
}

impl Default for BatchNorm {
    fn default() -> Self {
        BatchNorm {
            epsilon: 1e-5,
            momentum: 0.1,
            affine: true,
        }
    }
}

impl Net {
    /// Normalises every channel of `x: [batch, channels, ..]` by its mean and biased variance over the batch; in evaluation by
    /// the running ones. Parameters `weight` and `bias`, buffers `running_mean` and `running_var` (which follows the unbiased
    /// variance), all `[channels]`. PyTorch's counter of batches is not kept. In a step of several shards
    /// [`crate::StepOptions`] says whose statistics are taken.
    ///
    /// # Errors
    /// An operand with fewer than two axes, or whose number of channels is not known.
    pub fn batch_norm(&mut self, name: &str, x: ValueId, settings: &BatchNorm) -> Result<ValueId> {
        let rank = self.graph.rank(x);
        if rank < 2 {
            let what = format!("takes [batch, channels, ..], not {}", self.graph.ty(x));
            return Err(TrainError::layer(name, what));
        }
        let channels = known(&self.graph, name, x, 1)?;
        let running = ["running_mean", "running_var"].map(|s| format!("{name}.{s}"));
        let old_mean = self.buffer(&running[0], &[channels], Init::ZEROS)?;
        let old_var = self.buffer(&running[1], &[channels], Init::ONES)?;
        let affine = match settings.affine {
            true => Some([
                self.parameter(&format!("{name}.weight"), &[channels], Init::ONES)?,
                self.parameter(&format!("{name}.bias"), &[channels], Init::ZEROS)?,
            ]),
            false => None,
        };
        let axes: Vec<usize> = (0..rank).filter(|a| *a != 1).collect();
        let wide = self.graph.widen(x)?;
        let mean = self.graph.mean_keep(wide, &axes)?;
        let centred = self.graph.binary(Scalar::Sub, wide, mean)?;
        let square = self.graph.binary(Scalar::Mul, centred, centred)?;
        let var = self.graph.mean_keep(square, &axes)?;
        self.batch_means.extend([mean, var]);
        let trained = self.normalised(centred, var, affine, settings.epsilon)?;
        let trained = self.graph.cast_like(trained, x)?;

        let after: Vec<usize> = (1..rank - 1).collect();
        let kept = self.graph.unsqueeze(old_mean, &after)?;
        let centred = self.graph.binary(Scalar::Sub, wide, kept)?;
        let kept = self.graph.unsqueeze(old_var, &after)?;
        let eval = self.normalised(centred, kept, affine, settings.epsilon)?;
        let eval = self.graph.cast_like(eval, x)?;
        self.switch(trained, eval);

        let dims = self.graph.dims(x);
        let count = Dim::product(axes.iter().map(|a| &dims[*a]));
        let unbiased = self.unbiased(var, &count)?;
        for (name, old, new) in [
            (&running[0], old_mean, mean),
            (&running[1], old_var, unbiased),
        ] {
            let new = self.graph.reshape(new, &[Dim::from(channels)])?;
            let new = self.graph.cast_like(new, old)?;
            let (new, old) = (
                self.graph.scale(new, settings.momentum)?,
                self.graph.scale(old, 1.0 - settings.momentum)?,
            );
            let next = self.graph.binary(Scalar::Add, old, new)?;
            self.set_buffer(name, next)?;
        }
        Ok(trained)
    }

    /// `centred / sqrt(var + epsilon) * weight + bias` with the channels on axis 1.
    fn normalised(
        &mut self,
        centred: ValueId,
        var: ValueId,
        affine: Option<[ValueId; 2]>,
        epsilon: f64,
    ) -> Result<ValueId> {
        let g = &mut self.graph;
        let epsilon = g.number_like(epsilon, var)?;
        let sum = g.binary(Scalar::Add, var, epsilon)?;
        let inverse = g.unary(Scalar::Rsqrt, sum)?;
        let y = g.binary(Scalar::Mul, centred, inverse)?;
        match affine {
            Some(affine) => self.channel_affine(y, affine),
            None => Ok(y),
        }
    }

    /// `y * weight + bias` with the channels on axis 1.
    fn channel_affine(&mut self, y: ValueId, affine: [ValueId; 2]) -> Result<ValueId> {
        let after: Vec<usize> = (1..self.graph.rank(y) - 1).collect();
        let [w, b] = affine;
        let (w, b) = (
            self.graph.unsqueeze(w, &after)?,
            self.graph.unsqueeze(b, &after)?,
        );
        let y = self.graph.binary(Scalar::Mul, y, w)?;
        Ok(self.graph.binary(Scalar::Add, y, b)?)
    }

    /// The variance over `count` elements with `count - 1` as the divisor.
    fn unbiased(&mut self, var: ValueId, count: &Dim) -> Result<ValueId> {
        let g = &mut self.graph;
        let n = g.dim_value(count)?;
        let n = g.cast_like(n, var)?;
        self.batch_counts.push(n);
        let one = g.number_like(1.0, var)?;
        let less = g.binary(Scalar::Sub, n, one)?;
        let factor = g.binary(Scalar::Div, n, less)?;
        Ok(g.binary(Scalar::Mul, var, factor)?)
    }

    /// Normalises over the last `axes` axes by mean and biased variance, epsilon 1e-5. Parameters `weight` and `bias` of the
    /// extents of these axes.
    ///
    /// # Errors
    /// Fewer axes, or extents that are not known.
    pub fn layer_norm(&mut self, name: &str, x: ValueId, axes: usize) -> Result<ValueId> {
        let rank = self.graph.rank(x);
        if axes == 0 || axes > rank {
            let what = format!("{axes} axes of {}", self.graph.ty(x));
            return Err(TrainError::layer(name, what));
        }
        let axis = rank - axes;
        let shape = (axis..rank).map(|a| known(&self.graph, name, x, a));
        let shape = shape.collect::<Result<Vec<_>>>()?;
        let w = self.parameter(&format!("{name}.weight"), &shape, Init::ONES)?;
        let b = self.parameter(&format!("{name}.bias"), &shape, Init::ZEROS)?;
        let op = LayerNorm {
            axis,
            epsilon: 1e-5,
            stats: false,
        };
        Ok(self.graph.one(Op::Composite(op.into()), &[x, w, b])?)
    }

    /// Divides by the root of the mean square over the last axis. Parameter `weight`. PyTorch's epsilon is the distance of 1 to
    /// the next f32.
    ///
    /// # Errors
    /// A scalar, or an extent that is not known.
    pub fn rms_norm(&mut self, name: &str, x: ValueId, epsilon: Option<f64>) -> Result<ValueId> {
        let Some(axis) = self.graph.rank(x).checked_sub(1) else {
            return Err(TrainError::layer(name, "a scalar has no axis"));
        };
        let width = known(&self.graph, name, x, axis)?;
        let w = self.parameter(&format!("{name}.weight"), &[width], Init::ONES)?;
        let op = RmsNorm {
            axis,
            epsilon: epsilon.unwrap_or(f64::from(f32::EPSILON)),
        };
        Ok(self.graph.one(Op::Composite(op.into()), &[x, w])?)
    }

    /// Normalises each group of channels of `x: [batch, channels, ..]` by its mean and biased variance, epsilon 1e-5. Parameters
    /// `weight` and `bias`, `[channels]`.
    ///
    /// # Errors
    /// As [`Net::batch_norm`], and groups that do not divide the channels.
    pub fn group_norm(&mut self, name: &str, x: ValueId, groups: usize) -> Result<ValueId> {
        let dims = self.graph.dims(x);
        if dims.len() < 2 {
            let what = format!("takes [batch, channels, ..], not {}", self.graph.ty(x));
            return Err(TrainError::layer(name, what));
        }
        let channels = known(&self.graph, name, x, 1)?;
        if groups == 0 || channels % groups != 0 {
            let what = format!("{groups} groups of {channels} channels");
            return Err(TrainError::layer(name, what));
        }
        let w = self.parameter(&format!("{name}.weight"), &[channels], Init::ONES)?;
        let b = self.parameter(&format!("{name}.bias"), &[channels], Init::ZEROS)?;
        let lead = [dims[0].clone(), groups.into(), (channels / groups).into()];
        let split = self.graph.reshape(x, &[&lead, &dims[2..]].concat())?;
        let op = LayerNorm {
            axis: 2,
            epsilon: 1e-5,
            stats: false,
        };
        let y = self.graph.one(Op::Composite(op.into()), &[split])?;
        let y = self.graph.reshape(y, &dims)?;
        let (w, b) = (self.graph.cast_like(w, y)?, self.graph.cast_like(b, y)?);
        self.channel_affine(y, [w, b])
    }
}

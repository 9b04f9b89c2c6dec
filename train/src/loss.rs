//! Losses, with the reductions of PyTorch. All are computed in f32 at least.

use crate::error::{Result, TrainError};
use crate::net::Net;
use cupola_ir::composite;
use cupola_ir::ops::{Bounds, Gather, ReduceKind};
use cupola_ir::{DType, Graph, Op, Scalar, Tensor, ValueId};

/// What becomes of the losses of single elements or rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean; what is divided by is said with each loss.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Nothing.
    None,
}

/// Settings of [`Net::cross_entropy`] and [`Net::nll`].
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// A class that counts for nothing; -100 as in PyTorch.
    pub ignore: i64,
    /// Part of the target spread over all classes.
    pub smoothing: f64,
    /// Weights of the classes.
    pub weight: Option<Vec<f32>>,
    /// Reduction over rows.
    pub reduction: Reduction,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        CrossEntropy {
            ignore: -100,
            smoothing: 0.0,
            weight: None,
            reduction: Reduction::Mean,
        }
    }
}

impl Net {
    /// Cross-entropy of scores `x: [classes]`, `[batch, classes]` or `[batch, classes, more..]` and a target: classes (an
    /// integer type) `[batch, more..]`, or a number for each class, of the extents of x. The mean is over the weights of the
    /// classes that count (NaN when none does); with numbers for each class over rows.
    ///
    /// # Errors
    /// Extents that do not match, weights of another number than classes, a smoothing outside of 0 to 1.
    pub fn cross_entropy(
        &mut self,
        x: ValueId,
        target: ValueId,
        settings: &CrossEntropy,
    ) -> Result<ValueId> {
        if !(0.0..=1.0).contains(&settings.smoothing) {
            let what = format!("smoothing {} is outside 0 to 1", settings.smoothing);
            return Err(TrainError::layer("cross_entropy", what));
        }
        let g = &mut self.graph;
        let axis = usize::from(g.rank(x) > 1);
        let soft = g.dtype(target).is_float();
        let target = if soft {
            target
        } else {
            g.cast(target, DType::I64)?
        };
        let weight = class_weights(g, x, axis, settings)?;
        let op = composite::CrossEntropy {
            axis,
            soft,
            ignore: settings.ignore,
            smoothing: settings.smoothing,
        };
        let operands: Vec<ValueId> = [x, target].into_iter().chain(weight).collect();
        let rows = g.push(Op::Composite(op.into()), &operands)?[0];
        match soft {
            true => reduce(g, rows, settings.reduction),
            false => self.mean_of_classes(rows, target, weight, settings),
        }
    }

    /// Negative log-likelihood of log-probabilities `x` and classes, with the extents, weights and mean of
    /// [`Net::cross_entropy`]; smoothing does not apply.
    ///
    /// # Errors
    /// As [`Net::cross_entropy`].
    pub fn nll(&mut self, x: ValueId, target: ValueId, settings: &CrossEntropy) -> Result<ValueId> {
        let g = &mut self.graph;
        let axis = usize::from(g.rank(x) > 1);
        let (rank, classes) = (g.rank(x), g.cast(target, DType::I64)?);
        if rank == 0 || g.rank(classes) != rank - 1 {
            let what = format!("scores {} with classes {}", g.ty(x), g.ty(target));
            return Err(TrainError::layer("nll", what));
        }
        let weight = class_weights(g, x, axis, settings)?;
        let x = g.widen(x)?;
        let (index, kept) = counted(g, classes, settings.ignore)?;
        let mut last: Vec<usize> = (0..rank).filter(|a| *a != axis).collect();
        last.push(axis);
        let x = g.permute(x, &last)?;
        let score = g.one(pick(rank - 1), &[x, index])?;
        let mut rows = g.unary(Scalar::Neg, score)?;
        if let Some(w) = weight {
            let w = g.one(pick(0), &[w, index])?;
            rows = g.binary(Scalar::Mul, rows, w)?;
        }
        let zero = g.number_like(0.0, rows)?;
        let rows = g.select(kept, rows, zero)?;
        self.mean_of_classes(rows, classes, weight, settings)
    }

    /// `(x - target)^2`; the mean is over all elements.
    ///
    /// # Errors
    /// Extents that do not broadcast.
    pub fn mse(&mut self, x: ValueId, target: ValueId, reduction: Reduction) -> Result<ValueId> {
        let g = &mut self.graph;
        let d = difference(g, x, target)?;
        let square = g.binary(Scalar::Mul, d, d)?;
        reduce(g, square, reduction)
    }

    /// `|x - target|`; the mean is over all elements.
    ///
    /// # Errors
    /// Extents that do not broadcast.
    pub fn l1(&mut self, x: ValueId, target: ValueId, reduction: Reduction) -> Result<ValueId> {
        let g = &mut self.graph;
        let d = difference(g, x, target)?;
        let size = g.unary(Scalar::Abs, d)?;
        reduce(g, size, reduction)
    }

    /// With `d = |x - target|`: `d^2 / 2` up to `delta`, `delta (d - delta / 2)` above it; the mean is over all elements.
    ///
    /// # Errors
    /// Extents that do not broadcast, a delta that is not positive.
    pub fn huber(
        &mut self,
        x: ValueId,
        target: ValueId,
        delta: f64,
        reduction: Reduction,
    ) -> Result<ValueId> {
        if delta.is_nan() || delta <= 0.0 {
            return Err(TrainError::layer(
                "huber",
                format!("delta {delta} is not positive"),
            ));
        }
        let g = &mut self.graph;
        let d = difference(g, x, target)?;
        let size = g.unary(Scalar::Abs, d)?;
        let square = g.binary(Scalar::Mul, d, d)?;
        let square = g.scale(square, 0.5)?;
        let (edge, half) = (g.number_like(delta, d)?, g.number_like(delta / 2.0, d)?);
        let linear = g.binary(Scalar::Sub, size, half)?;
        let linear = g.scale(linear, delta)?;
        let near = g.binary(Scalar::Le, size, edge)?;
        let loss = g.select(near, square, linear)?;
        reduce(g, loss, reduction)
    }

    /// With `d = |x - target|`: `d^2 / (2 beta)` below `beta`, `d - beta / 2` from it on; the mean is over all elements.
    ///
    /// # Errors
    /// Extents that do not broadcast, a negative beta.
    pub fn smooth_l1(
        &mut self,
        x: ValueId,
        target: ValueId,
        beta: f64,
        reduction: Reduction,
    ) -> Result<ValueId> {
        if beta == 0.0 {
            return self.l1(x, target, reduction);
        }
        if beta.is_nan() || beta < 0.0 {
            return Err(TrainError::layer(
                "smooth_l1",
                format!("beta {beta} is negative"),
            ));
        }
        let g = &mut self.graph;
        let d = difference(g, x, target)?;
        let size = g.unary(Scalar::Abs, d)?;
        let square = g.binary(Scalar::Mul, d, d)?;
        let square = g.scale(square, 0.5 / beta)?;
        let (edge, half) = (g.number_like(beta, d)?, g.number_like(beta / 2.0, d)?);
        let linear = g.binary(Scalar::Sub, size, half)?;
        let near = g.binary(Scalar::Lt, size, edge)?;
        let loss = g.select(near, square, linear)?;
        reduce(g, loss, reduction)
    }

    /// Binary cross-entropy of scores: `(1 - t) x + (1 + (w - 1) t) (log(1 + e^-|x|) + max(-x, 0))` with the weight `w` of
    /// positives along the last axis (1 without); the mean is over all elements.
    ///
    /// # Errors
    /// Extents that do not broadcast.
    pub fn bce_with_logits(
        &mut self,
        x: ValueId,
        target: ValueId,
        positive: Option<&[f32]>,
        reduction: Reduction,
    ) -> Result<ValueId> {
        let g = &mut self.graph;
        let x = g.widen(x)?;
        let t = g.cast_like(target, x)?;
        let (zero, one) = (g.number_like(0.0, x)?, g.number_like(1.0, x)?);
        // -|x| and max(-x, 0) by one comparison: the slopes of the two sides of 0 agree.
        let is_low = g.binary(Scalar::Lt, x, zero)?;
        let minus = g.unary(Scalar::Neg, x)?;
        let size = g.select(is_low, x, minus)?;
        let e = g.unary(Scalar::Exp, size)?;
        let soft = g.unary(Scalar::Log1p, e)?;
        let low = g.select(is_low, minus, zero)?;
        let mut soft = g.binary(Scalar::Add, soft, low)?;
        if let Some(w) = positive {
            let w = g.constant(Tensor::vector(w))?;
            let w = g.cast_like(w, x)?;
            let more = g.binary(Scalar::Sub, w, one)?;
            let more = g.binary(Scalar::Mul, more, t)?;
            let factor = g.binary(Scalar::Add, more, one)?;
            soft = g.binary(Scalar::Mul, soft, factor)?;
        }
        let rest = g.binary(Scalar::Sub, one, t)?;
        let linear = g.binary(Scalar::Mul, rest, x)?;
        let loss = g.binary(Scalar::Add, linear, soft)?;
        reduce(g, loss, reduction)
    }

    /// Kullback-Leibler divergence of log-probabilities `x` from a target: `t (log t - x)`, 0 where `t` is 0; with `log_target`
    /// the target is `log t`. The mean is over all elements, or with `batch_mean` over the first axis, which is the one of the
    /// formula.
    ///
    /// # Errors
    /// Extents that do not broadcast; `batch_mean` of scalars.
    pub fn kl_div(
        &mut self,
        x: ValueId,
        target: ValueId,
        log_target: bool,
        reduction: Divergence,
    ) -> Result<ValueId> {
        let g = &mut self.graph;
        let x = g.widen(x)?;
        let t = g.cast_like(target, x)?;
        let loss = if log_target {
            let (p, d) = (g.unary(Scalar::Exp, t)?, g.binary(Scalar::Sub, t, x)?);
            g.binary(Scalar::Mul, p, d)?
        } else {
            // Where t is 0 the logarithm is taken of 1, so that neither it nor its gradient is infinite.
            let (zero, one) = (g.number_like(0.0, t)?, g.number_like(1.0, t)?);
            let none = g.binary(Scalar::Eq, t, zero)?;
            let safe = g.select(none, one, t)?;
            let log = g.unary(Scalar::Log, safe)?;
            let own = g.binary(Scalar::Mul, t, log)?;
            let cross = g.binary(Scalar::Mul, t, x)?;
            g.binary(Scalar::Sub, own, cross)?
        };
        match reduction {
            Divergence::Elements(reduction) => reduce(g, loss, reduction),
            Divergence::BatchMean => {
                if g.rank(loss) == 0 {
                    return Err(TrainError::layer("kl_div", "a scalar has no batch axis"));
                }
                let rows = g.dim(loss, 0);
                let sum = reduce(g, loss, Reduction::Sum)?;
                let rows = g.dim_value(&rows)?;
                let rows = g.cast_like(rows, sum)?;
                Ok(g.binary(Scalar::Div, sum, rows)?)
            }
        }
    }

    /// Part of the rows for whose class `labels: [batch, more..]` the score `x: [batch, classes, more..]` is the largest; rows of
    /// the class `ignore` are left out. Has no gradient.
    ///
    /// # Errors
    /// Extents that do not match.
    pub fn accuracy(&mut self, x: ValueId, labels: ValueId, ignore: i64) -> Result<ValueId> {
        let g = &mut self.graph;
        let axis = usize::from(g.rank(x) > 1);
        let best = cupola_ir::ops::ArgReduce {
            kind: ReduceKind::Max,
            axis,
            last: false,
        };
        let best = g.one(best, &[x])?;
        let labels = g.cast(labels, DType::I64)?;
        let hit = g.binary(Scalar::Eq, best, labels)?;
        let (_, kept) = counted(g, labels, ignore)?;
        let hit = g.binary(Scalar::And, hit, kept)?;
        let (hit, kept) = (g.cast(hit, DType::F32)?, g.cast(kept, DType::F32)?);
        let hits = reduce(g, hit, Reduction::Sum)?;
        let rows = reduce(g, kept, Reduction::Sum)?;
        self.mean_of(hits, rows)
    }

    /// Reduces losses by class; the mean is over the weights of those that count.
    fn mean_of_classes(
        &mut self,
        rows: ValueId,
        classes: ValueId,
        weight: Option<ValueId>,
        settings: &CrossEntropy,
    ) -> Result<ValueId> {
        let g = &mut self.graph;
        let sum = match settings.reduction {
            Reduction::None | Reduction::Sum => return reduce(g, rows, settings.reduction),
            Reduction::Mean => reduce(g, rows, Reduction::Sum)?,
        };
        let (index, kept) = counted(g, classes, settings.ignore)?;
        let share = match weight {
            Some(w) => {
                let w = g.one(pick(0), &[w, index])?;
                let zero = g.number_like(0.0, w)?;
                g.select(kept, w, zero)?
            }
            None => g.cast_like(kept, sum)?,
        };
        let total = reduce(g, share, Reduction::Sum)?;
        self.mean_of(sum, total)
    }

    /// A sum by a total, on which shards of a batch agree.
    fn mean_of(&mut self, sum: ValueId, total: ValueId) -> Result<ValueId> {
        self.totals.push(total);
        Ok(self.graph.binary(Scalar::Div, sum, total)?)
    }
}

/// Reductions of [`Net::kl_div`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// Over all elements.
    Elements(Reduction),
    /// The sum over all elements by the extent of the first axis.
    BatchMean,
}

fn pick(batch: usize) -> Gather {
    Gather {
        axes: vec![batch],
        batch,
        bounds: Bounds::Check,
    }
}

/// `x - target` in the wider accumulator type.
fn difference(g: &mut Graph, x: ValueId, target: ValueId) -> Result<ValueId> {
    let x = g.widen(x)?;
    let target = g.cast_like(target, x)?;
    Ok(g.binary(Scalar::Sub, x, target)?)
}

/// Sum or mean over all axes.
fn reduce(g: &mut Graph, x: ValueId, reduction: Reduction) -> Result<ValueId> {
    let axes: Vec<usize> = (0..g.rank(x)).collect();
    Ok(match reduction {
        Reduction::None => x,
        Reduction::Sum => g.reduce(ReduceKind::Sum, x, &axes)?,
        Reduction::Mean => {
            let mean = g.mean_keep(x, &axes)?;
            g.reshape(mean, &[])?
        }
    })
}

/// Classes as indices that exist (0 where ignored), and whether they count.
fn counted(g: &mut Graph, classes: ValueId, ignore: i64) -> Result<(ValueId, ValueId)> {
    let ignored = g.constant(Tensor::scalar(ignore))?;
    let ignored = g.binary(Scalar::Eq, classes, ignored)?;
    let zero = g.number(0.0, DType::I64)?;
    let index = g.select(ignored, zero, classes)?;
    Ok((index, g.unary(Scalar::Not, ignored)?))
}

fn class_weights(
    g: &mut Graph,
    x: ValueId,
    axis: usize,
    settings: &CrossEntropy,
) -> Result<Option<ValueId>> {
    let Some(weight) = &settings.weight else {
        return Ok(None);
    };
    let classes = g.dims(x).get(axis).and_then(|d| d.as_const());
    if classes.is_some_and(|c| c != weight.len() as i64) {
        let what = format!("{} weights for scores {}", weight.len(), g.ty(x));
        return Err(TrainError::layer("cross_entropy", what));
    }
    let w = g.constant(Tensor::vector(weight))?;
    let accum = g.accumulator(g.dtype(x));
    Ok(Some(g.cast(w, accum)?))
}

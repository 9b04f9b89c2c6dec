//! Cross-entropy of scores and classes.

use super::CompositeDef;
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Bounds, Gather, ReduceKind};
use crate::scalar::Scalar;
use crate::{DType, Tensor};

payload! {
    /// Operands `(x: [rows.., classes, more..], target, weight: [classes]?)` with the classes along `axis`. `target` holds
    /// classes (i64 `[rows.., more..]`), or with `soft` a number for each class, of the extents of `x`.
    ///
    /// With `p = log_softmax(x)` along `axis` and, for a class `y`, `t_k = w_k ((1 - smoothing) [k = y] + smoothing / classes)`,
    /// all 0 where y is `ignore`; for numbers, `t_k = w_k ((1 - smoothing) target_k + smoothing / classes)`:
    /// `loss = - sum over k of t_k p_k`. Results: `loss`, and for gradients the maximum of `x` and the logarithm of the sum
    /// of `exp(x - maximum)`, all `[rows.., more..]` in f32 (f64 for f64). A class that does not exist fails the run.
    CrossEntropy {
        /// The axis of the classes.
        axis: usize,
        /// Numbers for each class instead of classes.
        soft: bool,
        /// A class that counts for nothing.
        ignore: i64,
        /// Part of the target that is spread over all classes.
        smoothing: f64,
    }
}

/// What both directions compute with.
struct Parts {
    /// Scores in the accumulator type.
    x: ValueId,
    /// Classes as indices that exist (0 where ignored), and whether they count.
    classes: Option<(ValueId, ValueId)>,
    /// Numbers for each class.
    soft: Option<ValueId>,
    /// Weights of the classes.
    weight: Option<ValueId>,
}

impl CrossEntropy {
    fn parts(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Parts> {
        let wrong = |what: String| Err(IrError::op("composite.cross_entropy", what));
        let (x, target) = (operands[0], operands[1]);
        let rank = g.rank(x);
        let want = rank - usize::from(!self.soft && rank > 0);
        let kind = match self.soft {
            true => g.dtype(target).is_float(),
            false => g.dtype(target) == DType::I64,
        };
        if self.axis >= rank || !g.dtype(x).is_float() || !kind || g.rank(target) != want {
            return wrong(format!(
                "scores {} along axis {} with a target {}",
                g.ty(x),
                self.axis,
                g.ty(target)
            ));
        }
        if let Some(w) = operands.get(2)
            && g.rank(*w) != 1
        {
            return wrong(format!(
                "weights {} where one per class is needed",
                g.ty(*w)
            ));
        }
        let x = g.widen(x)?;
        let weight = match operands.get(2) {
            Some(w) => Some(g.cast_like(*w, x)?),
            None => None,
        };
        if self.soft {
            let soft = Some(g.cast_like(target, x)?);
            return Ok(Parts {
                x,
                classes: None,
                soft,
                weight,
            });
        }
        let ignored = g.constant(Tensor::scalar(self.ignore))?;
        let ignored = g.binary(Scalar::Eq, target, ignored)?;
        let zero = g.number(0.0, DType::I64)?;
        let classes = Some((
            g.select(ignored, zero, target)?,
            g.unary(Scalar::Not, ignored)?,
        ));
        Ok(Parts {
            x,
            classes,
            soft: None,
            weight,
        })
    }

    /// Weights along the axis of the classes, for broadcasting.
    fn along_axis(&self, g: &mut Graph, x: ValueId, weight: ValueId) -> Result<ValueId> {
        let after: Vec<usize> = (1..g.rank(x) - self.axis).collect();
        g.unsqueeze(weight, &after)
    }

    /// `smoothing / classes` as a scalar.
    fn spread(&self, g: &mut Graph, x: ValueId) -> Result<ValueId> {
        let classes = g.dim(x, self.axis);
        let classes = g.dim_value(&classes)?;
        let classes = g.cast_like(classes, x)?;
        let smoothing = g.number_like(self.smoothing, x)?;
        g.binary(Scalar::Div, smoothing, classes)
    }

    /// Numbers for each class with smoothing and weights: `t`.
    fn soft_target(&self, g: &mut Graph, p: &Parts, mut t: ValueId) -> Result<ValueId> {
        if self.smoothing != 0.0 {
            t = g.scale(t, 1.0 - self.smoothing)?;
            let spread = self.spread(g, p.x)?;
            t = g.binary(Scalar::Add, t, spread)?;
        }
        match p.weight {
            Some(w) => {
                let w = self.along_axis(g, p.x, w)?;
                g.binary(Scalar::Mul, t, w)
            }
            None => Ok(t),
        }
    }

    /// The loss of classes: `(1 - smoothing) w_y (lse - x_y) + smoothing / classes * sum of w_k (lse - x_k)`.
    fn of_classes(
        &self,
        g: &mut Graph,
        p: &Parts,
        shifted: ValueId,
        [max, log]: [ValueId; 2],
    ) -> Result<ValueId> {
        let Some((classes, kept)) = p.classes else {
            unreachable!("bug: no classes");
        };
        let rank = g.rank(p.x);
        let mut last: Vec<usize> = (0..rank).filter(|a| *a != self.axis).collect();
        last.push(self.axis);
        let rows = g.permute(p.x, &last)?;
        let pick = |batch: usize| Gather {
            axes: vec![batch],
            batch,
            bounds: Bounds::Check,
        };
        let score = g.one(pick(rank - 1), &[rows, classes])?;
        let score = g.binary(Scalar::Sub, score, max)?;
        let mut loss = g.binary(Scalar::Sub, log, score)?;
        if let Some(w) = p.weight {
            let w = g.one(pick(0), &[w, classes])?;
            loss = g.binary(Scalar::Mul, loss, w)?;
        }
        if self.smoothing != 0.0 {
            loss = g.scale(loss, 1.0 - self.smoothing)?;
            let kept_log = g.unsqueeze(log, &[self.axis])?;
            let mut all = g.binary(Scalar::Sub, kept_log, shifted)?;
            if let Some(w) = p.weight {
                let w = self.along_axis(g, p.x, w)?;
                all = g.binary(Scalar::Mul, all, w)?;
            }
            let all = g.reduce(ReduceKind::Sum, all, &[self.axis])?;
            let spread = self.spread(g, p.x)?;
            let all = g.binary(Scalar::Mul, all, spread)?;
            loss = g.binary(Scalar::Add, loss, all)?;
        }
        let zero = g.number_like(0.0, loss)?;
        g.select(kept, loss, zero)
    }
}

impl CompositeDef for CrossEntropy {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let p = self.parts(g, operands)?;
        let max = g.reduce_keep(ReduceKind::Max, p.x, &[self.axis])?;
        let shifted = g.binary(Scalar::Sub, p.x, max)?;
        let e = g.unary(Scalar::Exp, shifted)?;
        let sum = g.reduce(ReduceKind::Sum, e, &[self.axis])?;
        let log = g.unary(Scalar::Log, sum)?;
        let max = g.squeeze(max, &[self.axis])?;
        let loss = match p.soft {
            None => self.of_classes(g, &p, shifted, [max, log])?,
            Some(t) => {
                let t = self.soft_target(g, &p, t)?;
                let log = g.unsqueeze(log, &[self.axis])?;
                let all = g.binary(Scalar::Sub, log, shifted)?;
                let all = g.binary(Scalar::Mul, all, t)?;
                g.reduce(ReduceKind::Sum, all, &[self.axis])?
            }
        };
        Ok(vec![loss, max, log])
    }

    /// `d loss / d x = T softmax(x) - t` with `T` the sum of `t`: one pass over the scores, by what the forward pass gives.
    /// That of the other results, and of a target that is learnt, goes through the decomposition.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        results: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Option<Result<Vec<Option<ValueId>>>> {
        match (cotangents, wanted) {
            ([Some(loss), None, None], [true, rest @ ..]) if !rest.contains(&true) => {
                Some(self.backward(g, operands, results, *loss))
            }
            _ => None,
        }
    }
}

impl CrossEntropy {
    fn backward(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        results: &[ValueId],
        cotangent: ValueId,
    ) -> Result<Vec<Option<ValueId>>> {
        let p = self.parts(g, operands)?;
        let keep = |g: &mut Graph, v: ValueId| g.unsqueeze(v, &[self.axis]);
        let (max, log) = (keep(g, results[1])?, keep(g, results[2])?);
        // (x - max) - log with all signs changed: the same number, but no value that the forward pass would keep for this.
        let below = g.binary(Scalar::Sub, max, p.x)?;
        let below = g.binary(Scalar::Add, below, log)?;
        let score = g.unary(Scalar::Neg, below)?;
        let share = g.unary(Scalar::Exp, score)?;
        let cotangent = keep(g, cotangent)?;
        let (t, total, rows) = match (p.classes, p.soft) {
            (Some((classes, kept)), _) => {
                let classes = keep(g, classes)?;
                let kept = keep(g, kept)?;
                let zero = g.number_like(0.0, cotangent)?;
                // An ignored row gets nothing, whatever its scores are.
                let rows = g.select(kept, cotangent, zero)?;
                let dims = g.dims(p.x);
                let own = g.iota(DType::I64, &dims, self.axis)?;
                let hit = g.binary(Scalar::Eq, own, classes)?;
                let one = g.number_like(1.0, p.x)?;
                let none = g.number_like(0.0, p.x)?;
                let hit = g.select(hit, one, none)?;
                let t = self.soft_target(g, &p, hit)?;
                let total = match p.weight {
                    Some(_) => Some(g.reduce_keep(ReduceKind::Sum, t, &[self.axis])?),
                    None => None,
                };
                (t, total, rows)
            }
            (None, Some(soft)) => {
                let t = self.soft_target(g, &p, soft)?;
                let total = g.reduce_keep(ReduceKind::Sum, t, &[self.axis])?;
                (t, Some(total), cotangent)
            }
            (None, None) => unreachable!("bug: no target"),
        };
        let share = match total {
            Some(total) => g.binary(Scalar::Mul, share, total)?,
            None => share,
        };
        let slope = g.binary(Scalar::Sub, share, t)?;
        let dx = g.binary(Scalar::Mul, slope, rows)?;
        let dx = g.cast_like(dx, operands[0])?;
        let mut all = vec![None; operands.len()];
        all[0] = Some(dx);
        Ok(all)
    }
}

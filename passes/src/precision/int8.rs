//! Products in 8-bit integers: weights with one scale per output channel, activations with one per row (matrix products) or
//! tensor (convolutions), found in the run.
//!
//! `y = sum(round(x / s) * round(w / t)) * s * t` with `s = max|x| / 127`, `t = max|w| / 127`, so that zero stays zero. In
//! matrix products `round(x / s) + 128` is what is multiplied, unsigned as the dot-product instructions take it, and 128 times
//! the sum of the weights is taken off the result.

use super::Narrower;
use cupola_ir::ops::{Contract, ReduceKind};
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, IrError, Node, Op, Scalar, Tensor, ValueId};

/// The largest integer used; -128 is not, so that the range is symmetric.
const TOP: f32 = 127.0;

/// What stands for a range of zero: dividing by it gives zero again.
const LEAST: f64 = 1e-30;

/// What stands for zero in unsigned activations.
const MIDDLE: f64 = 128.0;

/// A matrix of weights in integers.
struct Quantised {
    weights: ValueId,
    /// One per output channel, `[channels..]`.
    scales: ValueId,
    /// What [`MIDDLE`] instead of zero adds to each output channel.
    shifts: ValueId,
}

impl Narrower<'_> {
    /// The product in integers, if it is one that has a row or tensor of activations to scale.
    pub(super) fn int8(&mut self, node: &Node, side: usize) -> Result<Option<ValueId>, IrError> {
        let (x, w) = (node.operands[1 - side], node.operands[side]);
        match &node.op {
            Op::Core(CoreOp::Contract(p)) if p.lhs_batch.is_empty() => {
                let integers = Contract {
                    accum: DType::I32,
                    out: DType::I32,
                    ..p.clone()
                };
                let op = Op::Core(CoreOp::Contract(integers));
                let types = [0, 1].map(|at| [DType::U8, DType::I8][usize::from(at == side)]);
                if !self.is_claimed(&op, types, node) {
                    return Ok(None);
                }
                let (own, other) = match side {
                    0 => (&p.rhs_contract, &p.lhs_contract),
                    _ => (&p.lhs_contract, &p.rhs_contract),
                };
                self.matrix_product(op, [x, w], side, own, other).map(Some)
            }
            Op::Composite(CompositeOp::Conv(_))
                if self.is_claimed(&node.op, [DType::I8; 2], node) =>
            {
                self.convolution(node, x, w).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// `own` are the summed axes of the activations, `other` those of the weights.
    fn matrix_product(
        &mut self,
        op: Op,
        [x, w]: [ValueId; 2],
        side: usize,
        own: &[usize],
        other: &[usize],
    ) -> Result<ValueId, IrError> {
        let w = self.quantised_weights(w, other)?;
        let range = self.range(x, own)?;
        let x = self.quantised(x, range, DType::U8)?;
        let operands = if side == 1 {
            [x, w.weights]
        } else {
            [w.weights, x]
        };
        let y = self.graph.one(op, &operands)?;
        let g = &mut *self.graph;
        let dims = g.dims(y);
        let rows = free_dims(&g.dims(range), own);
        let channels = g.dims(w.scales);
        let steps = g.scale(range, 1.0 / f64::from(TOP))?;
        // Result axes: those of the left operand, then those of the right one.
        let mut before_others = |v: ValueId, own: &[Dim], others: usize| {
            g.reshape(v, &[own, &vec![Dim::ONE; others]].concat())
        };
        let (steps, scales, shifts) = if side == 1 {
            let steps = before_others(steps, &rows, channels.len())?;
            (steps, w.scales, w.shifts)
        } else {
            let scales = before_others(w.scales, &channels, rows.len())?;
            let shifts = before_others(w.shifts, &channels, rows.len())?;
            (before_others(steps, &rows, 0)?, scales, shifts)
        };
        let shifts = g.broadcast_to(shifts, &dims)?;
        let y = g.binary(Scalar::Sub, y, shifts)?;
        self.scaled(y, &dims, [steps, scales])
    }

    fn convolution(&mut self, node: &Node, x: ValueId, w: ValueId) -> Result<ValueId, IrError> {
        let rank = self.graph.rank(x);
        let summed: Vec<usize> = (1..rank).collect();
        let w = self.quantised_weights(w, &summed)?;
        // In two steps, of which the first has many results to compute side by side.
        let planes = self.range(x, &summed[1..])?;
        let range = self.graph.reduce_keep(ReduceKind::Max, planes, &[0, 1])?;
        let x = self.quantised(x, range, DType::I8)?;
        let y = self.graph.one(node.op.clone(), &[x, w.weights])?;
        let g = &mut *self.graph;
        let dims = g.dims(y);
        let steps = g.scale(range, 1.0 / f64::from(TOP))?;
        let channels = [g.dims(w.scales), vec![Dim::ONE; rank - 2]].concat();
        let scales = g.reshape(w.scales, &channels)?;
        self.scaled(y, &dims, [steps, scales])
    }

    /// Largest absolute value along axes, which stay with one element; never zero.
    fn range(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId, IrError> {
        let key = (x, axes.to_vec());
        if let Some(known) = self.ranges.get(&key) {
            return Ok(*known);
        }
        let g = &mut *self.graph;
        let size = g.unary(Scalar::Abs, x)?;
        let range = g.reduce_keep(ReduceKind::Max, size, axes)?;
        let least = g.number_like(LEAST, range)?;
        let range = g.binary(Scalar::Max, range, least)?;
        self.ranges.insert(key, range);
        Ok(range)
    }

    /// Activations as integers of their range, around [`MIDDLE`] if they are unsigned.
    fn quantised(&mut self, x: ValueId, range: ValueId, to: DType) -> Result<ValueId, IrError> {
        let key = (x, range, to);
        if let Some(known) = self.activations.get(&key) {
            return Ok(*known);
        }
        let g = &mut *self.graph;
        let inverse = g.unary(Scalar::Recip, range)?;
        let inverse = g.scale(inverse, f64::from(TOP))?;
        let inverse = g.broadcast_to(inverse, &g.dims(x))?;
        let steps = g.binary(Scalar::Mul, x, inverse)?;
        let mut steps = g.unary(Scalar::Round, steps)?;
        if to == DType::U8 {
            let middle = g.number_like(MIDDLE, steps)?;
            steps = g.binary(Scalar::Add, steps, middle)?;
        }
        let integers = g.cast(steps, to)?;
        self.activations.insert(key, integers);
        Ok(integers)
    }

    /// Sums as floats times the steps of both operands.
    fn scaled(
        &mut self,
        y: ValueId,
        dims: &[Dim],
        steps: [ValueId; 2],
    ) -> Result<ValueId, IrError> {
        let mut y = self.graph.cast(y, DType::F32)?;
        for factor in steps {
            let factor = self.graph.broadcast_to(factor, dims)?;
            y = self.graph.binary(Scalar::Mul, y, factor)?;
        }
        Ok(y)
    }

    /// Weights as integers, one scale for each index of the axes that are not summed.
    fn quantised_weights(&mut self, w: ValueId, summed: &[usize]) -> Result<Quantised, IrError> {
        let t = self.constant_tensor(w)?;
        let [weights, scales, shifts] =
            quantise(&t, summed).unwrap_or_else(|| unreachable!("bug: weights are tensors of f32"));
        Ok(Quantised {
            weights: self.graph.constant(weights)?,
            scales: self.graph.constant(scales)?,
            shifts: self.graph.constant(shifts)?,
        })
    }
}

/// Extents of the axes that are not summed.
fn free_dims(dims: &[Dim], summed: &[usize]) -> Vec<Dim> {
    let free = Contract::free(dims.len(), &[], summed);
    free.into_iter().map(|a| dims[a].clone()).collect()
}

/// The position among the free axes of an element, given its position in the whole.
fn channel_of(shape: &[usize], free: &[usize]) -> impl Fn(usize) -> usize {
    // For each free axis: elements from one index to the next in the whole, extent, the same among the free axes.
    let mut axes: Vec<(usize, usize, usize)> = vec![];
    let mut step = 1;
    for axis in free.iter().rev() {
        axes.push((shape[axis + 1..].iter().product(), shape[*axis], step));
        step *= shape[*axis];
    }
    move |at| {
        let places = axes
            .iter()
            .map(|(stride, extent, step)| at / stride % extent * step);
        places.sum()
    }
}

/// i8 weights, f32 scales and i32 shifts of `[free axes..]`; `None` for another dtype than f32.
fn quantise(t: &Tensor, summed: &[usize]) -> Option<[Tensor; 3]> {
    let values = t.to_vec::<f32>()?;
    let shape = t.shape();
    let free = Contract::free(shape.len(), &[], summed);
    let channels: Vec<usize> = free.iter().map(|a| shape[*a]).collect();
    let channel = channel_of(shape, &free);
    let mut ranges = vec![0f32; channels.iter().product()];
    for (at, x) in values.iter().enumerate() {
        let range = &mut ranges[channel(at)];
        *range = range.max(x.abs());
    }
    let inverse: Vec<f32> = (ranges.iter())
        .map(|r| if *r > 0.0 { TOP / r } else { 0.0 })
        .collect();
    let integers: Vec<i8> = (values.iter().enumerate())
        .map(|(at, x)| (x * inverse[channel(at)]).round_ties_even() as i8)
        .collect();
    let scales: Vec<f32> = ranges.iter().map(|r| r / TOP).collect();
    let mut shifts = vec![0i32; ranges.len()];
    for (at, x) in integers.iter().enumerate() {
        let shift = &mut shifts[channel(at)];
        *shift = shift.wrapping_add(i32::from(*x) * MIDDLE as i32);
    }
    Some([
        Tensor::from_slice(shape, &integers)?,
        Tensor::from_slice(&channels, &scales)?,
        Tensor::from_slice(&channels, &shifts)?,
    ])
}

//! Products in 8-bit integers.
//!
//! Matrix products: weights become blocks of 32 integers with a scale each (`q8_0`), along the summed axes;
//! activations are rounded likewise by the kernel, as with any block-quantised weights.
//!
//! Convolutions: weights have one scale per output channel, activations one per tensor, found in the run.
//! `y = sum(round(x / s) * round(w / t)) * s * t` with `s = max|x| / 127`, `t = max|w| / 127`, so that zero stays zero.

use super::Narrower;
use cupola_ir::convert::quantize_q8_0;
use cupola_ir::ops::{Contract, ReduceKind};
use cupola_ir::target::Claim;
use cupola_ir::{
    CompositeOp, CoreOp, DType, Dim, IrError, Node, Op, Scalar, Tensor, TensorType, ValueId,
};

/// The largest integer used; -128 is not, so that the range is symmetric.
const TOP: f32 = 127.0;

/// What stands for a range of zero: dividing by it gives zero again.
const LEAST: f64 = 1e-30;

/// Elements of a block of weights.
const BLOCK: usize = 32;

/// A convolution's weights in integers.
struct Quantised {
    weights: ValueId,
    /// One per output channel, `[channels]`.
    scales: ValueId,
}

impl Narrower<'_> {
    /// The product in integers, if it is one that the device has.
    pub(super) fn int8(&mut self, node: &Node, side: usize) -> Result<Option<ValueId>, IrError> {
        let (x, w) = (node.operands[1 - side], node.operands[side]);
        match &node.op {
            Op::Core(CoreOp::Contract(p)) if p.lhs_batch.is_empty() => {
                let axes = match side {
                    0 => (&p.rhs_contract, &p.lhs_contract),
                    _ => (&p.lhs_contract, &p.rhs_contract),
                };
                self.matrix_product([x, w], side, axes)
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
        [x, w]: [ValueId; 2],
        side: usize,
        (own, other): (&Vec<usize>, &Vec<usize>),
    ) -> Result<Option<ValueId>, IrError> {
        let rows = Contract::free(self.graph.rank(x), &[], own);
        let weights = self.constant_tensor(w)?;
        let Some(blocks) = blocks(&weights, other) else {
            return Ok(None);
        };
        let channels = blocks.shape().len() - 1;
        let inner = weights.len() / blocks.shape()[..channels].iter().product::<usize>().max(1);
        let mut dims = self.graph.dims(x);
        dims = rows.iter().map(|a| dims[*a].clone()).collect();
        dims.push(inner.into());
        let product = Op::Core(CoreOp::Contract(Contract {
            lhs_batch: vec![],
            rhs_batch: vec![],
            lhs_contract: vec![rows.len()],
            rhs_contract: vec![channels],
            accum: DType::I32,
            out: DType::F32,
        }));
        let padding = blocks.shape()[channels] - inner;
        let types = [
            TensorType::new(DType::F32, padded(&dims, padding)),
            TensorType::new(blocks.dtype(), blocks.shape().iter().map(|d| Dim::from(*d))),
        ];
        let claim = |target: &cupola_ir::target::Target| {
            let claim = (target.claim)(&product, &[&types[0], &types[1]]);
            matches!(claim, Claim::Yes { .. })
        };
        if !self.target.is_none_or(claim) {
            return Ok(None);
        }
        let g = &mut *self.graph;
        let x = g.permute(x, &[&rows[..], own].concat())?;
        let x = g.reshape(x, &dims)?;
        let zero = g.number_like(0.0, x)?;
        let none = vec![Dim::ZERO; dims.len()];
        let x = g.pad(x, zero, &none, &padded(&none, padding))?;
        let blocks = g.constant(blocks)?;
        let y = g.one(product, &[x, blocks])?;
        if side == 1 {
            return Ok(Some(y));
        }
        // Result axes: those of the left operand, then those of the right one.
        let all = rows.len() + channels;
        let perm: Vec<usize> = (rows.len()..all).chain(0..rows.len()).collect();
        g.permute(y, &perm).map(Some)
    }

    fn convolution(&mut self, node: &Node, x: ValueId, w: ValueId) -> Result<ValueId, IrError> {
        let rank = self.graph.rank(x);
        let summed: Vec<usize> = (1..rank).collect();
        let w = self.quantised_weights(w, &summed)?;
        // In two steps, of which the first has many results to compute side by side.
        let planes = self.range(x, &summed[1..])?;
        let range = self.graph.reduce_keep(ReduceKind::Max, planes, &[0, 1])?;
        let x = self.quantised(x, range)?;
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

    /// Activations as integers of their range.
    fn quantised(&mut self, x: ValueId, range: ValueId) -> Result<ValueId, IrError> {
        let key = (x, range);
        if let Some(known) = self.activations.get(&key) {
            return Ok(*known);
        }
        let g = &mut *self.graph;
        let inverse = g.unary(Scalar::Recip, range)?;
        let inverse = g.scale(inverse, f64::from(TOP))?;
        let inverse = g.broadcast_to(inverse, &g.dims(x))?;
        let steps = g.binary(Scalar::Mul, x, inverse)?;
        let steps = g.unary(Scalar::Round, steps)?;
        let integers = g.cast(steps, DType::I8)?;
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
        let [weights, scales] =
            quantise(&t, summed).unwrap_or_else(|| unreachable!("bug: weights are tensors of f32"));
        Ok(Quantised {
            weights: self.graph.constant(weights)?,
            scales: self.graph.constant(scales)?,
        })
    }
}

/// Extents with more elements along the last axis.
fn padded(dims: &[Dim], padding: usize) -> Vec<Dim> {
    let mut dims = dims.to_vec();
    if let Some(last) = dims.last_mut() {
        *last = last.clone() + Dim::from(padding);
    }
    dims
}

/// `[free axes.., summed axes together]` in blocks, the last axis padded with zeros to whole blocks; `None` for another
/// dtype than f32.
fn blocks(t: &Tensor, summed: &[usize]) -> Option<Tensor> {
    let values = t.to_vec::<f32>()?;
    let shape = t.shape();
    let free = Contract::free(shape.len(), &[], summed);
    let [channel, along] = [&free[..], summed].map(|axes| positions(shape, axes));
    let count = |axes: &[usize]| axes.iter().map(|a| shape[*a]).product::<usize>();
    let (channels, inner) = (count(&free), count(summed));
    let padded = inner.next_multiple_of(BLOCK);
    let mut rows = vec![0f32; channels * padded];
    for (at, x) in values.iter().enumerate() {
        rows[channel(at) * padded + along(at)] = *x;
    }
    let mut dims: Vec<usize> = free.iter().map(|a| shape[*a]).collect();
    dims.push(padded);
    quantize_q8_0(&dims, &rows)
}

/// The position among some axes of an element, given its position in the whole.
fn positions(shape: &[usize], among: &[usize]) -> impl Fn(usize) -> usize + use<> {
    // For each of them: elements from one index to the next in the whole, extent, the same among these axes.
    let mut axes: Vec<(usize, usize, usize)> = vec![];
    let mut step = 1;
    for axis in among.iter().rev() {
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

/// i8 weights and f32 scales of `[free axes..]`; `None` for another dtype than f32.
fn quantise(t: &Tensor, summed: &[usize]) -> Option<[Tensor; 2]> {
    let values = t.to_vec::<f32>()?;
    let shape = t.shape();
    let free = Contract::free(shape.len(), &[], summed);
    let channels: Vec<usize> = free.iter().map(|a| shape[*a]).collect();
    let channel = positions(shape, &free);
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
    Some([
        Tensor::from_slice(shape, &integers)?,
        Tensor::from_slice(&channels, &scales)?,
    ])
}

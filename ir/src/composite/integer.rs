//! Products and convolutions of 8-bit integers with zero points, and the rounding of floats to such integers.

use super::{CompositeDef, Conv};
use crate::attr::payload;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Contract, Op, ReduceKind};
use crate::scalar::Scalar;

payload! {
    /// Operands `(lhs, rhs, lhs_zero, rhs_zero)`, the first two of 8-bit integers, each with a zero point of its type: a
    /// number, or a vector along the last axis that is neither batch nor summed.
    /// `out[b, m, n] = sum over k of (lhs[b, m, k] - lhs_zero[m]) * (rhs[b, n, k] - rhs_zero[n])` in i32, exact modulo
    /// 2^32, with the axes of [`Contract`].
    IntegerProduct {
        /// Batch axes of lhs.
        lhs_batch: Vec<usize>,
        /// Batch axes of rhs, pairwise with `lhs_batch`.
        rhs_batch: Vec<usize>,
        /// Summed axes of lhs.
        lhs_contract: Vec<usize>,
        /// Summed axes of rhs, pairwise with `lhs_contract`.
        rhs_contract: Vec<usize>,
    }
}

impl From<Contract> for IntegerProduct {
    /// The same axes; what the product is accumulated in is given.
    fn from(p: Contract) -> IntegerProduct {
        IntegerProduct {
            lhs_batch: p.lhs_batch,
            rhs_batch: p.rhs_batch,
            lhs_contract: p.lhs_contract,
            rhs_contract: p.rhs_contract,
        }
    }
}

impl IntegerProduct {
    /// The product of the operands once their zero points are taken off.
    pub fn contract(&self) -> Contract {
        Contract {
            lhs_batch: self.lhs_batch.clone(),
            rhs_batch: self.rhs_batch.clone(),
            lhs_contract: self.lhs_contract.clone(),
            rhs_contract: self.rhs_contract.clone(),
            accum: DType::I32,
            out: DType::I32,
        }
    }
}

impl CompositeDef for IntegerProduct {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        4..=4
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let op = "composite.integer_product";
        let [l, r, l_zero, r_zero] = operands else {
            return Err(IrError::op(op, "takes two factors and their zero points"));
        };
        let last = |x: ValueId, batch: &[usize], summed: &[usize]| {
            Contract::free(g.rank(x), batch, summed).last().copied()
        };
        let axes = [
            last(*l, &self.lhs_batch, &self.lhs_contract),
            last(*r, &self.rhs_batch, &self.rhs_contract),
        ];
        let l = centred(g, op, *l, *l_zero, axes[0])?;
        let r = centred(g, op, *r, *r_zero, axes[1])?;
        Ok(vec![g.one(self.contract(), &[l, r])?])
    }
}

payload! {
    /// Operands `(x, w, x_zero, w_zero)`: [`Conv`] of 8-bit integers with zero points of their types, that of x a number,
    /// that of w a number or one for each output channel. `x - x_zero` is convolved with `w - w_zero` in i32, exact modulo
    /// 2^32; around x lies its zero point.
    IntegerConv {
        /// Distance of windows, per spatial axis.
        strides: Vec<i64>,
        /// Distance of elements in a window.
        dilations: Vec<i64>,
        /// Elements before each spatial axis.
        pads_low: Vec<Dim>,
        /// Elements after each spatial axis.
        pads_high: Vec<Dim>,
        /// Channel groups.
        groups: usize,
    }
}

impl From<Conv> for IntegerConv {
    fn from(conv: Conv) -> IntegerConv {
        IntegerConv {
            strides: conv.strides,
            dilations: conv.dilations,
            pads_low: conv.pads_low,
            pads_high: conv.pads_high,
            groups: conv.groups,
        }
    }
}

impl CompositeDef for IntegerConv {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        4..=4
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let op = "composite.integer_conv";
        let [x, w, x_zero, w_zero] = operands else {
            return Err(IrError::op(op, "takes x, w and their zero points"));
        };
        let x = centred(g, op, *x, *x_zero, None)?;
        let w = centred(g, op, *w, *w_zero, Some(0))?;
        let conv = Conv {
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads_low: self.pads_low.clone(),
            pads_high: self.pads_high.clone(),
            groups: self.groups,
        };
        Ok(vec![g.one(Op::Composite(conv.into()), &[x, w])?])
    }
}

/// `x - zero` in i32; a vector of zero points lies along `axis`.
fn centred(
    g: &mut Graph,
    op: &str,
    x: ValueId,
    zero: ValueId,
    axis: Option<usize>,
) -> Result<ValueId> {
    let is_byte = |v| matches!(g.dtype(v), DType::I8 | DType::U8);
    if !is_byte(x) || g.dtype(x) != g.dtype(zero) {
        let (x, zero) = (g.ty(x), g.ty(zero));
        return Err(IrError::op(op, format!("{x} with zero point {zero}")));
    }
    let (wide, zero) = (g.cast(x, DType::I32)?, g.cast(zero, DType::I32)?);
    let zero = match (g.rank(zero), axis) {
        (0, _) => zero,
        (1, Some(axis)) if axis < g.rank(x) => {
            let mut dims = vec![Dim::ONE; g.rank(x)];
            dims[axis] = g.dim(zero, 0);
            g.reshape(zero, &dims)?
        }
        _ => {
            let (x, zero) = (g.ty(x), g.ty(zero));
            return Err(IrError::op(op, format!("{x} with zero point {zero}")));
        }
    };
    g.binary(Scalar::Sub, wide, zero)
}

payload! {
    /// Operand `x` of f32. Results `(y: u8 like x, scale: f32 [], zero: u8 [])`: x rounded over its whole range, which
    /// includes 0. `scale = (max - min) / 255`, `zero = round(-min / scale)` and `y = round(x / scale) + zero`, both within
    /// 0 and 255, rounded half to even. Where scale is 0 all of y is 0.
    DynamicQuantize {}
}

impl CompositeDef for DynamicQuantize {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let x = operands[0];
        let axes: Vec<usize> = (0..g.rank(x)).collect();
        let (zero, top) = (g.number_like(0.0, x)?, g.number_like(255.0, x)?);
        let within = |g: &mut Graph, v: ValueId| -> Result<ValueId> {
            let v = g.binary(Scalar::Max, v, zero)?;
            let v = g.binary(Scalar::Min, v, top)?;
            g.cast(v, DType::U8)
        };
        let max = g.reduce(ReduceKind::Max, x, &axes)?;
        let max = g.binary(Scalar::Max, max, zero)?;
        let min = g.reduce(ReduceKind::Min, x, &axes)?;
        let min = g.binary(Scalar::Min, min, zero)?;
        let range = g.binary(Scalar::Sub, max, min)?;
        let scale = g.binary(Scalar::Div, range, top)?;
        // All zeros: any step but 0 will do.
        let flat = g.binary(Scalar::Eq, scale, zero)?;
        let one = g.number_like(1.0, x)?;
        let step = g.select(flat, one, scale)?;
        let shift = g.binary(Scalar::Div, min, step)?;
        let shift = g.binary(Scalar::Sub, zero, shift)?;
        let shift = g.unary(Scalar::Round, shift)?;
        let point = within(g, shift)?;
        let shift = g.cast_like(point, x)?;
        let y = g.binary(Scalar::Div, x, step)?;
        let y = g.unary(Scalar::Round, y)?;
        let y = g.binary(Scalar::Add, y, shift)?;
        Ok(vec![within(g, y)?, scale, point])
    }
}

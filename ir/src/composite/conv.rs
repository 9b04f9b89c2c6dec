//! Convolution and transposed convolution over any number of spatial axes: channels first, and a convolution of
//! channels-last images.

use super::CompositeDef;
use super::gradient::Rule;
use crate::attr::payload;
use crate::convert;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Contract, Fold, Op, Window};
use crate::tensor::{Tensor, Value};

payload! {
    /// Operands `(x: [batch, groups * in, spatial..], w: [out, in, kernel..])`, `out` a multiple of `groups`.
    /// `y[b, o, p] = sum over i, r of xpad[b, g(o) * in + i, p * stride + r * dilation] * w[o, i, r]`, with zeros
    /// around x. Accumulates in f32 (f64 for f64, i32 for integers). `w` may be of a narrower float type than x, which is
    /// then rounded to it; the result is of x's type. Bias and activation are ops of their own that
    /// fuse as an epilogue.
    Conv {
        /// Distance of windows, per spatial axis.
        strides: Vec<i64>,
        /// Distance of elements in a window.
        dilations: Vec<i64>,
        /// Zeros before each spatial axis.
        pads_low: Vec<Dim>,
        /// Zeros after each spatial axis.
        pads_high: Vec<Dim>,
        /// Channel groups.
        groups: usize,
    }
}

impl CompositeDef for Conv {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, w] = operands else {
            return Err(IrError::op("composite.conv", "takes x and w"));
        };
        let spatial = g.rank(*x).saturating_sub(2);
        check(
            g,
            "composite.conv",
            *x,
            *w,
            spatial,
            [&self.strides, &self.dilations],
            [&self.pads_low, &self.pads_high],
        )?;
        let (xd, wd) = (g.dims(*x), g.dims(*w));
        let (groups, inner) = (Dim::from(self.groups), wd[1].clone());
        let dtype = g.dtype(*x);
        let x = &match is_narrower(g.dtype(*w), dtype) {
            true => g.cast_like(*x, *w)?,
            false => *x,
        };
        let zero = g.number_like(0.0, *x)?;
        let two = [Dim::ZERO, Dim::ZERO];
        let x = g.pad(
            *x,
            zero,
            &[&two, &self.pads_low[..]].concat(),
            &[&two, &self.pads_high[..]].concat(),
        )?;
        let xd = [
            &[xd[0].clone(), groups.clone(), inner.clone()],
            &g.dims(x)[2..],
        ]
        .concat();
        let x = g.reshape(x, &xd)?;
        let window = Window {
            axes: (3..3 + spatial).collect(),
            sizes: wd[2..].to_vec(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
        };
        let x = g.one(window, &[x])?;
        let out = wd[0].floor_div(&groups);
        let w = g.reshape(*w, &[&[groups, out, inner], &wd[2..]].concat())?;
        // x: [batch, groups, in, out spatial.., kernel..]; w: [groups, out, in, kernel..]
        let kernel_axes = |first: usize| (first..first + spatial).collect::<Vec<_>>();
        let accum = g.accumulator(dtype);
        let contract = Contract {
            lhs_batch: vec![1],
            rhs_batch: vec![0],
            lhs_contract: [vec![2], kernel_axes(3 + spatial)].concat(),
            rhs_contract: [vec![2], kernel_axes(3)].concat(),
            accum,
            out: if dtype.is_int() { accum } else { dtype },
        };
        // [groups, batch, out spatial.., out] -> [batch, groups, out, out spatial..]
        let y = g.one(contract, &[x, w])?;
        let perm = [vec![1, 0, 2 + spatial], (2..2 + spatial).collect()].concat();
        let y = g.permute(y, &perm)?;
        let yd = g.dims(y);
        let y = g.reshape(y, &[&[yd[0].clone(), wd[0].clone()], &yd[3..]].concat())?;
        Ok(vec![y])
    }

    fn eval(&self, operands: &[&Value]) -> Option<std::result::Result<Vec<Value>, String>> {
        let [Value::Tensor(x), Value::Tensor(w)] = operands else {
            return None;
        };
        let rounded = |x: &Tensor| match is_narrower(w.dtype(), x.dtype()) {
            true => convert::cast(&convert::cast(x, w.dtype(), true)?, x.dtype(), true),
            false => Ok(x.clone()),
        };
        let y = rounded(x).and_then(|x| crate::eval::product::conv(self, &x, w));
        Some(y.map(|y| vec![y.into()]))
    }

    /// Convolutions again: kernels for these never store the windows.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let [x, w] = *operands else {
            return None;
        };
        Some(self.gradients(g, [x, w], cotangents[0]?, wanted))
    }
}

/// Whether weights of this type are floats of fewer bits than what they multiply.
fn is_narrower(weights: DType, x: DType) -> bool {
    weights.is_float() && x.is_float() && weights.bits() < x.bits()
}

payload! {
    /// Operands `(x: [batch, spatial.., groups * in], w: [out, in, kernel..])`: [`Conv`] of channels-last images, with
    /// the same weights. The result is `[batch, windows.., out]`. A device whose kernels prefer that layout claims it.
    ConvChannelsLast {
        /// Distance of windows, per spatial axis.
        strides: Vec<i64>,
        /// Distance of elements in a window.
        dilations: Vec<i64>,
        /// Zeros before each spatial axis.
        pads_low: Vec<Dim>,
        /// Zeros after each spatial axis.
        pads_high: Vec<Dim>,
        /// Channel groups.
        groups: usize,
    }
}

impl From<Conv> for ConvChannelsLast {
    fn from(conv: Conv) -> ConvChannelsLast {
        ConvChannelsLast {
            strides: conv.strides,
            dilations: conv.dilations,
            pads_low: conv.pads_low,
            pads_high: conv.pads_high,
            groups: conv.groups,
        }
    }
}

impl CompositeDef for ConvChannelsLast {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, w] = operands else {
            return Err(IrError::op("composite.conv_channels_last", "takes x and w"));
        };
        let rank = g.rank(*x);
        if rank < 2 {
            let what = format!("x of rank {rank} has no channels");
            return Err(IrError::op("composite.conv_channels_last", what));
        }
        let x = g.permute(*x, &channels_first(rank))?;
        let conv = Conv {
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads_low: self.pads_low.clone(),
            pads_high: self.pads_high.clone(),
            groups: self.groups,
        };
        let y = g.one(Op::Composite(conv.into()), &[x, *w])?;
        Ok(vec![g.permute(y, &channels_last(rank))?])
    }
}

/// The permutation that moves axis 1 to the end.
pub fn channels_last(rank: usize) -> Vec<usize> {
    [vec![0], (2..rank).collect(), vec![1]].concat()
}

/// The permutation that moves the last axis to position 1.
pub fn channels_first(rank: usize) -> Vec<usize> {
    [vec![0, rank - 1], (1..rank - 1).collect()].concat()
}

payload! {
    /// Operands `(x: [batch, groups * in, spatial..], w: [groups * in, out, kernel..])`: the adjoint of [`Conv`].
    /// `y[b, g * out + o, p * stride + r * dilation - pads_low] += x[b, g * in + i, p] * w[g * in + i, o, r]`.
    ConvTranspose {
        /// Distance of windows, per spatial axis.
        strides: Vec<i64>,
        /// Distance of elements in a window.
        dilations: Vec<i64>,
        /// Elements cut off before each spatial axis; negative adds zeros.
        pads_low: Vec<Dim>,
        /// Result extents of the spatial axes.
        spatial: Vec<Dim>,
        /// Channel groups.
        groups: usize,
    }
}

fn check(
    g: &Graph,
    op: &str,
    x: ValueId,
    w: ValueId,
    spatial: usize,
    ints: [&Vec<i64>; 2],
    dims: [&Vec<Dim>; 2],
) -> Result<()> {
    let lens = ints.iter().all(|v| v.len() == spatial) && dims.iter().all(|v| v.len() == spatial);
    if g.rank(x) < 2 || g.rank(w) != g.rank(x) || !lens {
        let (x, w) = (g.ty(x), g.ty(w));
        return Err(IrError::op(
            op,
            format!("x {x}, w {w}: ranks and {spatial} strides, dilations and pads must match"),
        ));
    }
    Ok(())
}

impl CompositeDef for ConvTranspose {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, w] = operands else {
            return Err(IrError::op("composite.conv_transpose", "takes x and w"));
        };
        let n = g.rank(*x).saturating_sub(2);
        let op = "composite.conv_transpose";
        check(
            g,
            op,
            *x,
            *w,
            n,
            [&self.strides, &self.dilations],
            [&self.pads_low, &self.spatial],
        )?;
        let (xd, wd) = (g.dims(*x), g.dims(*w));
        let groups = Dim::from(self.groups);
        let inner = wd[0].floor_div(&groups);
        let x = g.reshape(
            *x,
            &[&[xd[0].clone(), groups.clone(), inner.clone()], &xd[2..]].concat(),
        )?;
        let w = g.reshape(*w, &[&[groups.clone(), inner], &wd[1..]].concat())?;
        let dtype = g.dtype(x);
        let contract = Contract {
            lhs_batch: vec![1],
            rhs_batch: vec![0],
            lhs_contract: vec![2],
            rhs_contract: vec![1],
            accum: g.accumulator(dtype),
            out: dtype,
        };
        // [groups, batch, spatial.., out, kernel..] -> [batch, groups, out, spatial.., kernel..]
        let y = g.one(contract, &[x, w])?;
        let perm = [
            vec![1, 0, 2 + n],
            (2..2 + n).collect(),
            (3 + n..3 + 2 * n).collect(),
        ]
        .concat();
        let y = g.permute(y, &perm)?;
        let full: Vec<Dim> = (0..n)
            .map(|a| {
                let span =
                    (wd[2 + a].clone() - Dim::ONE) * Dim::Const(self.dilations[a]) + Dim::ONE;
                (xd[2 + a].clone() - Dim::ONE) * Dim::Const(self.strides[a]) + span
            })
            .collect();
        let fold = Fold {
            axes: (3..3 + n).collect(),
            sizes: wd[2..].to_vec(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            dims: [&g.dims(y)[..3], &full[..]].concat(),
        };
        let y = g.one(fold, &[y])?;
        let out = groups * wd[1].clone();
        let y = g.reshape(y, &[&[xd[0].clone(), out], &full[..]].concat())?;
        self.crop(g, y, &full).map(|y| vec![y])
    }

    fn eval(&self, operands: &[&Value]) -> Option<std::result::Result<Vec<Value>, String>> {
        let [Value::Tensor(x), Value::Tensor(w)] = operands else {
            return None;
        };
        Some(crate::eval::product::conv_transpose(self, x, w).map(|y| vec![y.into()]))
    }

    /// Convolutions again.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        _: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let [x, w] = *operands else {
            return None;
        };
        Some(self.gradients(g, [x, w], cotangents[0]?, wanted))
    }
}

impl ConvTranspose {
    /// Cuts `pads_low` off and cuts or extends with zeros to the result extents.
    fn crop(&self, g: &mut Graph, y: ValueId, full: &[Dim]) -> Result<ValueId> {
        let lead = g.dims(y)[..2].to_vec();
        let two = [Dim::ZERO, Dim::ZERO];
        let before: Vec<Dim> = self
            .pads_low
            .iter()
            .map(|p| (-p.clone()).larger(&Dim::ZERO))
            .collect();
        let ends = self
            .spatial
            .iter()
            .zip(&self.pads_low)
            .map(|(s, p)| s.clone() + p.clone());
        let after: Vec<Dim> = ends
            .zip(full)
            .map(|(end, f)| (end - f.clone()).larger(&Dim::ZERO))
            .collect();
        let zero = g.number_like(0.0, y)?;
        let y = g.pad(
            y,
            zero,
            &[&two, &before[..]].concat(),
            &[&two, &after[..]].concat(),
        )?;
        let starts: Vec<Dim> = self.pads_low.iter().map(|p| p.larger(&Dim::ZERO)).collect();
        let dims = [&lead[..], &self.spatial[..]].concat();
        g.slice(
            y,
            &[&two, &starts[..]].concat(),
            &vec![1; dims.len()],
            &dims,
        )
    }
}

//! Gradients of convolutions, as convolutions and products.

use super::{CompositeDef, Conv, ConvTranspose};
use crate::attr::payload;
use crate::dim::Dim;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Contract, Op, Window};

type Grads = Result<Vec<Option<ValueId>>>;

payload! {
    /// Operands `(x: [batch, spatial.., groups * in], dy: [batch, windows.., out])`, channels last: the gradient of the weights
    /// of a [`Conv`] of x whose result has the cotangent `dy`.
    /// `dw[r, i, o] = sum over b, p of xpad[b, p * stride + r * dilation, g(o) * in + i] * dy[b, p, o]`; the result is
    /// `[kernel.., in, out]`, of the operands' type. Accumulates in f32 (f64 for f64).
    ConvWeightGradient {
        /// Extents of the kernel.
        kernel: Vec<Dim>,
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

impl CompositeDef for ConvWeightGradient {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [x, dy] = operands else {
            let what = "takes x and dy";
            return Err(IrError::op("composite.conv_weight_gradient", what));
        };
        let (rank, spatial) = (g.rank(*x), self.kernel.len());
        let lens = [
            self.strides.len(),
            self.dilations.len(),
            self.pads_low.len(),
            self.pads_high.len(),
        ];
        if rank != spatial + 2 || g.rank(*dy) != rank || lens.iter().any(|n| *n != spatial) {
            let (x, dy) = (g.ty(*x), g.ty(*dy));
            let what = format!(
                "x {x}, dy {dy}: ranks and kernel, strides, dilations and pads of {spatial} axes must match"
            );
            return Err(IrError::op("composite.conv_weight_gradient", what));
        }
        let conv = Conv {
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads_low: self.pads_low.clone(),
            pads_high: self.pads_high.clone(),
            groups: self.groups,
        };
        let x = g.permute(*x, &super::channels_first(rank))?;
        let dy = g.permute(*dy, &super::channels_first(rank))?;
        let dw = decomposed(g, &conv, x, dy, &self.kernel)?;
        let taps_first = [(2..rank).collect(), vec![1, 0]].concat();
        Ok(vec![g.permute(dw, &taps_first)?])
    }
}

impl Conv {
    /// That of x is the transposed convolution of `dy`, or one with the kernel turned around where strides are 1.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        [x, w]: [ValueId; 2],
        dy: ValueId,
        wanted: &[bool],
    ) -> Grads {
        let mut grads = vec![None, None];
        if wanted[0] {
            let spatial = g.dims(x)[2..].to_vec();
            let dx = match self.turned(g, w) {
                Some(conv) => {
                    let back = turn_around(g, w, self.groups)?;
                    g.one(Op::Composite(conv.into()), &[dy, back])?
                }
                None => {
                    let wide = g.cast_like(w, dy)?;
                    let transposed = ConvTranspose {
                        strides: self.strides.clone(),
                        dilations: self.dilations.clone(),
                        pads_low: self.pads_low.clone(),
                        spatial,
                        groups: self.groups,
                    };
                    g.one(Op::Composite(transposed.into()), &[dy, wide])?
                }
            };
            grads[0] = Some(dx);
        }
        if wanted[1] {
            let kernel = g.dims(w)[2..].to_vec();
            // Factors of the type of w, as in the convolution itself.
            let (x, dy) = (g.cast_like(x, w)?, g.cast_like(dy, w)?);
            let dw = weight_gradient(g, self, x, dy, &kernel)?;
            grads[1] = Some(g.cast_like(dw, w)?);
        }
        Ok(grads)
    }

    /// The convolution of `dy` by the kernel turned around, for strides of 1 and borders that stay inside of the kernel.
    fn turned(&self, g: &Graph, w: ValueId) -> Option<Conv> {
        if self.strides.iter().any(|s| *s != 1) {
            return None;
        }
        let kernel = &g.dims(w)[2..];
        let rest = |pads: &[Dim]| -> Option<Vec<Dim>> {
            let each = pads.iter().zip(kernel).zip(&self.dilations);
            let each = each.map(|((pad, k), dilation)| {
                let left = (k.clone() - Dim::ONE) * Dim::Const(*dilation) - pad.clone();
                left.as_const().filter(|left| *left >= 0).map(Dim::Const)
            });
            each.collect()
        };
        Some(Conv {
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads_low: rest(&self.pads_low)?,
            pads_high: rest(&self.pads_high)?,
            groups: self.groups,
        })
    }
}

/// `w: [groups * out, in, kernel..]` as `[groups * in, out, kernel reversed..]`.
fn turn_around(g: &mut Graph, w: ValueId, groups: usize) -> Result<ValueId> {
    let dims = g.dims(w);
    let spatial = dims.len() - 2;
    let groups = Dim::from(groups);
    let out = dims[0].floor_div(&groups);
    let split = [&[groups.clone(), out.clone(), dims[1].clone()], &dims[2..]].concat();
    let split = g.reshape(w, &split)?;
    let perm = [vec![0, 2, 1], (3..3 + spatial).collect()].concat();
    let swapped = g.permute(split, &perm)?;
    let joined = [&[groups * dims[1].clone(), out], &dims[2..]].concat();
    let mut back = g.reshape(swapped, &joined)?;
    for axis in 2..dims.len() {
        if !dims[axis].is(1) {
            back = g.flip(back, axis)?;
        }
    }
    Ok(back)
}

/// `dw[o, i, r] = sum over b, p of dy[b, o, p] * xpad[b, g(o) * in + i, p * stride + r * dilation]`.
fn weight_gradient(
    g: &mut Graph,
    conv: &Conv,
    x: ValueId,
    dy: ValueId,
    kernel: &[Dim],
) -> Result<ValueId> {
    let rank = g.rank(x);
    let last = super::channels_last(rank);
    let (x, dy) = (g.permute(x, &last)?, g.permute(dy, &last)?);
    let conv = conv.clone();
    let gradient = ConvWeightGradient {
        kernel: kernel.to_vec(),
        strides: conv.strides,
        dilations: conv.dilations,
        pads_low: conv.pads_low,
        pads_high: conv.pads_high,
        groups: conv.groups,
    };
    let dw = g.one(Op::Composite(gradient.into()), &[x, dy])?;
    let taps_last = [vec![rank - 1, rank - 2], (0..rank - 2).collect()].concat();
    g.permute(dw, &taps_last)
}

/// As [`weight_gradient`], of convolutions and products.
fn decomposed(
    g: &mut Graph,
    conv: &Conv,
    x: ValueId,
    dy: ValueId,
    kernel: &[Dim],
) -> Result<ValueId> {
    let taps: Option<Vec<i64>> = kernel.iter().map(Dim::as_const).collect();
    let plain = conv.groups == 1 && conv.strides.iter().all(|s| *s == 1);
    match taps.filter(|taps| plain && !taps.is_empty() && !taps.contains(&0)) {
        Some(taps) if fills(g, dy, &taps, &conv.dilations) => by_shifts(g, conv, x, dy, &taps),
        _ => by_convolution(g, conv, x, dy, kernel),
    }
}

/// Whether most places of an image with its border are those of a window.
fn fills(g: &Graph, dy: ValueId, taps: &[i64], dilations: &[i64]) -> bool {
    let windows = &g.dims(dy)[2..];
    let known: Option<Vec<i64>> = windows.iter().map(Dim::as_const).collect();
    let Some(windows) = known else { return true };
    let each = windows.iter().zip(taps.iter().zip(dilations));
    let all: i64 = each.map(|(n, (k, d))| n + (k - 1) * d).product();
    all <= 2 * windows.iter().product::<i64>()
}

/// Columns of a product from which on one for each row of the kernel is as good as one for all.
const WIDE: i64 = 32;

/// As products over all places of all images. With channels last and zeros at the places where no window begins, the places
/// are one axis, along which x is shifted for every element of the kernel; those of a row of the kernel are neighbours. No
/// windows are stored but where a row of the kernel has few channels.
fn by_shifts(g: &mut Graph, conv: &Conv, x: ValueId, dy: ValueId, taps: &[i64]) -> Result<ValueId> {
    let spatial = taps.len();
    let none = vec![Dim::ZERO; spatial + 2];
    let two = [Dim::ZERO, Dim::ZERO];
    let zero = g.number_like(0.0, x)?;
    let border = |pads: &[Dim]| [&two, pads].concat();
    let x = g.pad(x, zero, &border(&conv.pads_low), &border(&conv.pads_high))?;
    let x = g.permute(x, &super::channels_last(spatial + 2))?;
    let dims = g.dims(x);
    let dy = g.permute(dy, &super::channels_last(spatial + 2))?;
    let own = g.dims(dy);
    let mut beyond = none.clone();
    for a in 1..=spatial {
        beyond[a] = dims[a].clone() - own[a].clone();
    }
    let dy = g.pad(dy, zero, &none, &beyond)?;
    let places = Dim::product(&dims[..=spatial]);
    let (inner, out) = (dims[spatial + 1].clone(), own[spatial + 1].clone());
    let dy = g.reshape(dy, &[places.clone(), out.clone()])?;
    let x = g.reshape(x, &[places.clone(), inner.clone()])?;
    // How far neighbours along each axis are apart.
    let apart = |a: usize| Dim::product(&dims[a + 2..=spatial]) * Dim::Const(conv.dilations[a]);
    let last = spatial - 1;
    let span = Dim::Const((taps[last] - 1) * conv.dilations[last]);
    let mut rows = vec![Dim::ZERO];
    for a in 0..last {
        let steps = (0..taps[a]).map(|r| apart(a) * Dim::Const(r));
        let steps: Vec<Dim> = steps.collect();
        let each = rows
            .iter()
            .flat_map(|row| steps.iter().map(|s| row.clone() + s.clone()));
        rows = each.collect();
    }
    let most = rows.last().cloned().unwrap_or(Dim::ZERO) + span.clone();
    let end = [most, Dim::ZERO];
    let x = g.pad(x, zero, &[Dim::ZERO, Dim::ZERO], &end)?;
    let len = places + span;
    let mut parts = vec![];
    for row in &rows {
        let shifted = g.slice_axis(x, 0, row, &len)?;
        parts.push(neighbours(g, shifted, taps[last], conv.dilations[last])?);
    }
    let narrow = inner.as_const().is_some_and(|c| c * taps[last] < WIDE);
    if narrow {
        parts = vec![g.concat(&parts, 1)?];
    }
    let accum = g.accumulator(g.dtype(dy));
    let product = Contract {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: vec![0],
        rhs_contract: vec![0],
        accum,
        out: g.dtype(dy),
    };
    for part in &mut parts {
        *part = g.one(product.clone(), &[dy, *part])?;
    }
    // [out, rows of the kernel, its last axis, in]
    let dw = g.concat(&parts, 1)?;
    let kernel: Vec<Dim> = taps.iter().map(|k| Dim::Const(*k)).collect();
    let dw = g.reshape(dw, &[&[out], &kernel[..], &[inner]].concat())?;
    g.permute(dw, &super::channels_first(spatial + 2))
}

/// `[places, in]` as `[windows, 1, taps, in]`: each place with those after it.
fn neighbours(g: &mut Graph, x: ValueId, taps: i64, dilation: i64) -> Result<ValueId> {
    let window = Window {
        axes: vec![0],
        sizes: vec![Dim::Const(taps)],
        strides: vec![1],
        dilations: vec![dilation],
    };
    let windows = g.one(window, &[x])?;
    let windows = g.permute(windows, &[0, 2, 1])?;
    g.unsqueeze(windows, &[1])
}

/// `dw[o, i, r] = sum over b, p of dy[b, o, p] * xpad[b, g(o) * in + i, p * stride + r * dilation]`: a convolution of x by dy
/// in which images are input channels and the input channels of a group are images; strides and dilations change places.
fn by_convolution(
    g: &mut Graph,
    conv: &Conv,
    x: ValueId,
    dy: ValueId,
    kernel: &[Dim],
) -> Result<ValueId> {
    let (xd, spatial) = (g.dims(x), kernel.len());
    let groups = Dim::from(conv.groups);
    let inner = xd[1].floor_div(&groups);
    let split = [&[xd[0].clone(), groups.clone(), inner.clone()], &xd[2..]].concat();
    let images = g.reshape(x, &split)?;
    let perm = [vec![2, 1, 0], (3..3 + spatial).collect()].concat();
    let images = g.permute(images, &perm)?;
    let images = g.reshape(
        images,
        &[&[inner.clone(), groups * xd[0].clone()], &xd[2..]].concat(),
    )?;
    let perm = [vec![1, 0], (2..2 + spatial).collect()].concat();
    let windows = g.permute(dy, &perm)?;
    let product = Conv {
        strides: conv.dilations.clone(),
        dilations: conv.strides.clone(),
        ..conv.clone()
    };
    let dw = g.one(Op::Composite(product.into()), &[images, windows])?;
    // Rows and columns behind the last window would count as further elements of the kernel.
    let dims = [&g.dims(dw)[..2], kernel].concat();
    let dw = g.slice(
        dw,
        &vec![Dim::ZERO; 2 + spatial],
        &vec![1; 2 + spatial],
        &dims,
    )?;
    g.permute(dw, &perm)
}

impl ConvTranspose {
    /// That of x is the convolution of `dy` by the same weights; that of w is the convolution's with x and `dy` in each
    /// other's place.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        [x, w]: [ValueId; 2],
        dy: ValueId,
        wanted: &[bool],
    ) -> Grads {
        let (xd, wd) = (g.dims(x), g.dims(w));
        let high: Vec<Dim> = (0..self.spatial.len())
            .map(|a| {
                let span = (wd[2 + a].clone() - Dim::ONE) * Dim::Const(self.dilations[a]);
                let full = (xd[2 + a].clone() - Dim::ONE) * Dim::Const(self.strides[a]) + span;
                full + Dim::ONE - self.spatial[a].clone() - self.pads_low[a].clone()
            })
            .collect();
        let is_border = |d: &Dim| d.as_const().is_some_and(|c| c >= 0);
        let fits = self.pads_low.iter().chain(&high).all(is_border);
        let none = vec![Dim::ZERO; self.spatial.len()];
        let (dy, low, high) = match fits {
            true => (dy, self.pads_low.clone(), high),
            false => (uncrop(g, dy, &self.pads_low, &high)?, none.clone(), none),
        };
        let conv = Conv {
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            pads_low: low,
            pads_high: high,
            groups: self.groups,
        };
        let mut grads = vec![None, None];
        if wanted[0] {
            grads[0] = Some(g.one(Op::Composite(conv.clone().into()), &[dy, w])?);
        }
        if wanted[1] {
            grads[1] = Some(weight_gradient(g, &conv, dy, x, &wd[2..])?);
        }
        Ok(grads)
    }
}

/// Spatial axes with `low` and `high` zeros more on each side, or elements less where these are negative.
fn uncrop(g: &mut Graph, x: ValueId, low: &[Dim], high: &[Dim]) -> Result<ValueId> {
    let two = [Dim::ZERO, Dim::ZERO];
    let more = |d: &[Dim]| -> Vec<Dim> { d.iter().map(|d| d.larger(&Dim::ZERO)).collect() };
    let less =
        |d: &[Dim]| -> Vec<Dim> { d.iter().map(|d| (-d.clone()).larger(&Dim::ZERO)).collect() };
    let mut dims = g.dims(x);
    let cut = less(low);
    for (a, (l, h)) in cut.iter().zip(less(high)).enumerate() {
        dims[2 + a] = dims[2 + a].clone() - l.clone() - h;
    }
    let x = g.slice(x, &[&two, &cut[..]].concat(), &vec![1; dims.len()], &dims)?;
    let zero = g.number_like(0.0, x)?;
    g.pad(
        x,
        zero,
        &[&two, &more(low)[..]].concat(),
        &[&two, &more(high)[..]].concat(),
    )
}

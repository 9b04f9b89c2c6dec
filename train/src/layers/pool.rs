//! Pooling over the last axes.

use super::{known, per_axis};
use crate::error::{Result, TrainError};
use crate::net::Net;
use cupola_ir::ops::{ReduceKind, Window};
use cupola_ir::{Dim, Scalar, Tensor, ValueId};

/// Settings of [`Net::max_pool`] and [`Net::avg_pool`]; a list has one entry per spatial axis, or one for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Extents of a window, one per spatial axis.
    pub kernel: Vec<usize>,
    /// Distance of windows.
    pub stride: Vec<usize>,
    /// Border on both sides, at most half a window.
    pub padding: Vec<usize>,
    /// Distance of elements in a window; 1 for means.
    pub dilation: Vec<usize>,
    /// Windows may begin inside and end outside: their number is rounded up.
    pub ceil: bool,
    /// Means count the border.
    pub count_padding: bool,
}

impl Pool {
    /// Windows side by side, without border.
    pub fn new(kernel: impl Into<Vec<usize>>) -> Pool {
        let kernel = kernel.into();
        Pool {
            stride: kernel.clone(),
            kernel,
            padding: vec![0],
            dilation: vec![1],
            ceil: false,
            count_padding: true,
        }
    }
}

/// Settings with one entry per spatial axis, and what rounding up adds after the border.
struct Axes {
    stride: Vec<i64>,
    dilation: Vec<i64>,
    padding: Vec<Dim>,
    beyond: Vec<Dim>,
}

impl Axes {
    fn window(&self, p: &Pool, rank: usize) -> Window {
        Window {
            axes: (rank - p.kernel.len()..rank).collect(),
            sizes: p.kernel.iter().map(|k| Dim::from(*k)).collect(),
            strides: self.stride.clone(),
            dilations: self.dilation.clone(),
        }
    }
}

fn axes(net: &Net, name: &str, x: ValueId, p: &Pool) -> Result<Axes> {
    let n = p.kernel.len();
    let dims = net.graph.dims(x);
    let list = |what, values: &[usize]| per_axis(name, what, values, n);
    let (stride, padding) = (list("stride", &p.stride)?, list("padding", &p.padding)?);
    let dilation = list("dilation", &p.dilation)?;
    let positive = [&p.kernel, &stride, &dilation]
        .iter()
        .all(|l| !l.contains(&0));
    let narrow = padding.iter().zip(&p.kernel).all(|(p, k)| 2 * p <= *k);
    if dims.len() <= n || n == 0 || !positive || !narrow {
        let ty = net.graph.ty(x);
        let what = format!(
            "takes [.., {n} spatial axes], positive sizes and a border of at most half a window, not {ty}"
        );
        return Err(TrainError::layer(name, what));
    }
    let spatial = &dims[dims.len() - n..];
    let beyond = (0..n).map(|a| {
        let (step, border) = (Dim::from(stride[a]), Dim::from(padding[a]));
        let before = spatial[a].clone() + border.clone();
        let span = Dim::from(dilation[a] * (p.kernel[a] - 1) + 1);
        let room = before.clone() + border - span;
        // No window begins in the border after the elements.
        let count = (room.ceil_div(&step) + Dim::ONE).smaller(&before.ceil_div(&step));
        match p.ceil {
            true => ((count - Dim::ONE) * step - room).larger(&Dim::ZERO),
            false => Dim::ZERO,
        }
    });
    let beyond = beyond.collect();
    let signed = |list: Vec<usize>| list.into_iter().map(|v| v as i64).collect::<Vec<_>>();
    Ok(Axes {
        beyond,
        stride: signed(stride),
        dilation: signed(dilation),
        padding: padding.into_iter().map(Dim::from).collect(),
    })
}

impl Net {
    /// The largest element of every window over the last axes.
    ///
    /// # Errors
    /// Fewer axes than the kernel's and one, sizes of 0, a border of more than half a window.
    pub fn max_pool(&mut self, x: ValueId, p: &Pool) -> Result<ValueId> {
        let a = axes(self, "max_pool", x, p)?;
        let (rank, n) = (self.graph.rank(x), p.kernel.len());
        let lead = vec![Dim::ZERO; rank - n];
        let low = [&lead, &a.padding[..]].concat();
        let beyond = [&lead, &a.beyond[..]].concat();
        let high: Vec<Dim> = low
            .iter()
            .zip(&beyond)
            .map(|(a, b)| a.clone() + b.clone())
            .collect();
        let g = &mut self.graph;
        let lowest = g.number_like(f64::NEG_INFINITY, x)?;
        let padded = g.pad(x, lowest, &low, &high)?;
        let windows = g.one(a.window(p, rank), &[padded])?;
        let inner: Vec<usize> = (rank..rank + n).collect();
        Ok(g.reduce(ReduceKind::Max, windows, &inner)?)
    }

    /// The mean of every window over the last axes.
    ///
    /// # Errors
    /// As [`Net::max_pool`].
    pub fn avg_pool(&mut self, x: ValueId, p: &Pool) -> Result<ValueId> {
        let a = axes(self, "avg_pool", x, p)?;
        let (rank, n) = (self.graph.rank(x), p.kernel.len());
        let lead = vec![Dim::ZERO; rank - n];
        let window = a.window(p, rank);
        let inner: Vec<usize> = (rank..rank + n).collect();
        let low = [&lead, &a.padding[..]].concat();
        let beyond = [&lead, &a.beyond[..]].concat();
        let g = &mut self.graph;
        let wide = g.widen(x)?;
        let zero = g.number_like(0.0, wide)?;
        let high: Vec<Dim> = low
            .iter()
            .zip(&beyond)
            .map(|(a, b)| a.clone() + b.clone())
            .collect();
        let padded = g.pad(wide, zero, &low, &high)?;
        let windows = g.one(window.clone(), &[padded])?;
        let sum = g.reduce(ReduceKind::Sum, windows, &inner)?;
        let whole = a.beyond.iter().all(|d| d.is(0));
        let bare = a.padding.iter().all(|d| d.is(0));
        let count = if whole && (bare || p.count_padding) {
            g.number_like(p.kernel.iter().map(|k| *k as f64).product(), wide)?
        } else {
            // How many elements a window has, by the sums of windows over ones.
            let one = g.number_like(1.0, wide)?;
            let dims = g.dims(x);
            let ones = [&vec![Dim::ONE; rank - n], &dims[rank - n..]].concat();
            let ones = g.broadcast_to(one, &ones)?;
            let border = if p.count_padding { one } else { zero };
            let ones = g.pad(ones, border, &low, &low)?;
            let ones = g.pad(ones, zero, &vec![Dim::ZERO; rank], &beyond)?;
            let ones = g.one(window, &[ones])?;
            g.reduce(ReduceKind::Sum, ones, &inner)?
        };
        let mean = g.binary(Scalar::Div, sum, count)?;
        Ok(g.cast_like(mean, x)?)
    }

    /// Means over as many parts of each of the last axes as `sizes` says: part `i` of `o` over `n` elements goes from
    /// `floor(i n / o)` to `ceil((i + 1) n / o)`.
    ///
    /// # Errors
    /// Fewer axes than sizes and one; extents that are not known, but for parts of 1.
    pub fn adaptive_avg_pool(&mut self, x: ValueId, sizes: &[usize]) -> Result<ValueId> {
        let (rank, n) = (self.graph.rank(x), sizes.len());
        let name = "adaptive_avg_pool";
        if rank <= n || sizes.contains(&0) {
            let what = format!("{n} positive sizes for {}", self.graph.ty(x));
            return Err(TrainError::layer(name, what));
        }
        let mut y = self.graph.widen(x)?;
        for (i, parts) in sizes.iter().enumerate() {
            let axis = rank - n + i;
            if *parts == 1 {
                y = self.graph.mean_keep(y, &[axis])?;
                continue;
            }
            let extent = known(&self.graph, name, x, axis)?;
            y = self.part_means(y, axis, extent, *parts)?;
        }
        Ok(self.graph.cast_like(y, x)?)
    }

    /// Means over parts of one axis, as a product with a matrix of shares.
    fn part_means(&mut self, x: ValueId, axis: usize, n: usize, parts: usize) -> Result<ValueId> {
        if n == parts {
            return Ok(x);
        }
        let mut shares = vec![0f32; parts * n];
        for i in 0..parts {
            let (from, to) = (i * n / parts, ((i + 1) * n).div_ceil(parts));
            shares[i * n + from..i * n + to].fill(1.0 / (to - from) as f32);
        }
        let shares = Tensor::from_slice(&[parts, n], &shares);
        let shares = shares.unwrap_or_else(|| unreachable!("bug: {parts} by {n} shares"));
        let g = &mut self.graph;
        let shares = g.constant(shares)?;
        let shares = g.cast_like(shares, x)?;
        let last = g.rank(x) - 1;
        let mut perm: Vec<usize> = (0..=last).collect();
        perm.swap(axis, last);
        let y = g.permute(x, &perm)?;
        let y = g.matmul_nt(y, shares)?;
        Ok(g.permute(y, &perm)?)
    }
}

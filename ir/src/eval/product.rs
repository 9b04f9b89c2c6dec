//! Matrix products and convolutions: operands are arranged as matrices and multiplied by one blocked loop.
//!
//! Floats are summed in `f64`, integers in wrapping 64 bits.

use super::cells::{strided, strides};
use super::view::extents;
use crate::composite::{Conv, ConvTranspose};
use crate::convert::{self, Lanes};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::ops::Contract;
use crate::tensor::Tensor;

type Result<T, E = String> = std::result::Result<T, E>;

/// A number that is multiplied and summed.
trait Factor: Copy + Default {
    /// `self + a * b`.
    fn plus(self, a: Self, b: Self) -> Self;
    /// `self + a`.
    fn add(self, a: Self) -> Self;
}

impl Factor for f64 {
    fn plus(self, a: f64, b: f64) -> f64 {
        self + a * b
    }
    fn add(self, a: f64) -> f64 {
        self + a
    }
}

impl Factor for i64 {
    fn plus(self, a: i64, b: i64) -> i64 {
        self.wrapping_add(a.wrapping_mul(b))
    }
    fn add(self, a: i64) -> i64 {
        self.wrapping_add(a)
    }
}

/// Elements of both operands as one kind of number.
enum Pair {
    F(Vec<f64>, Vec<f64>),
    I(Vec<i64>, Vec<i64>),
}

fn pair(x: &Tensor, y: &Tensor) -> Result<Pair> {
    let ints = |t: &Tensor| match convert::lanes(t) {
        Some(Lanes::I(v)) => Some(v),
        Some(Lanes::U(v)) => Some(v.into_iter().map(|x| x as i64).collect()),
        Some(Lanes::F(_)) | None => None,
    };
    let floats = |t: &Tensor| match convert::lanes(t) {
        Some(Lanes::F(v)) => Some(v),
        _ => None,
    };
    if x.dtype().is_int()
        && let (Some(x), Some(y)) = (ints(x), ints(y))
    {
        return Ok(Pair::I(x, y));
    }
    match (floats(x), floats(y)) {
        (Some(x), Some(y)) => Ok(Pair::F(x, y)),
        _ => Err(format!("no product of {} and {}", x.dtype(), y.dtype())),
    }
}

/// Sums as a tensor: integers wrap to `accum` first, then become `out`.
fn sums_f(sums: Vec<f64>, out: DType, shape: &[usize]) -> Result<Tensor> {
    finish(Lanes::F(sums), out, shape)
}

fn sums_i(sums: Vec<i64>, accum: DType, out: DType, shape: &[usize]) -> Result<Tensor> {
    if !accum.is_int() {
        return finish(Lanes::I(sums), out, shape);
    }
    let wide = convert::convert(Lanes::I(sums), accum);
    let running = wide.and_then(|l| convert::encode(&l, accum, shape, true));
    let running = running.ok_or_else(|| format!("no sums of {accum}"))?;
    convert::cast(&running, out, true)
}

fn finish(lanes: Lanes, out: DType, shape: &[usize]) -> Result<Tensor> {
    convert::convert(lanes, out)
        .and_then(|l| convert::encode(&l, out, shape, true))
        .ok_or_else(|| format!("no sums of {out}"))
}

/// Columns of the right matrix handled at a time: four rows of them stay in the first-level cache.
const COLUMNS: usize = 256;

/// `c[m, n] += a[m, k] * b[k, n]`, all dense row-major.
fn multiply<T: Factor>(a: &[T], b: &[T], c: &mut [T], inner: usize, cols: usize) {
    if inner == 0 || cols == 0 {
        return;
    }
    for first in (0..cols).step_by(COLUMNS) {
        let n = COLUMNS.min(cols - first);
        for (a, c) in a.chunks(inner * 4).zip(c.chunks_mut(cols * 4)) {
            let mut rows: Vec<&mut [T]> =
                c.chunks_mut(cols).map(|r| &mut r[first..][..n]).collect();
            let mut left: Vec<&[T]> = a.chunks(inner).collect();
            let row = |k: usize| &b[k * cols + first..][..n];
            let mut k = 0;
            while k + 4 <= inner {
                let b = [row(k), row(k + 1), row(k + 2), row(k + 3)];
                for (c, a) in rows.iter_mut().zip(&mut left) {
                    let f = [a[k], a[k + 1], a[k + 2], a[k + 3]];
                    for j in 0..n {
                        let part = T::default().plus(f[0], b[0][j]).plus(f[1], b[1][j]);
                        c[j] = c[j].add(part.plus(f[2], b[2][j]).plus(f[3], b[3][j]));
                    }
                }
                k += 4;
            }
            for k in k..inner {
                let b = row(k);
                for (c, a) in rows.iter_mut().zip(&mut left) {
                    for j in 0..n {
                        c[j] = c[j].plus(a[k], b[j]);
                    }
                }
            }
        }
    }
}

/// The elements with axes in another order.
fn arranged<T: Clone>(x: &[T], shape: &[usize], axes: &[usize]) -> Result<Vec<T>> {
    let own = strides(shape);
    let extents: Vec<usize> = axes.iter().map(|a| shape[*a]).collect();
    let steps: Vec<isize> = axes.iter().map(|a| own[*a]).collect();
    strided(x, &extents, &steps, 0)
}

fn count(shape: &[usize], axes: &[usize]) -> usize {
    axes.iter().map(|a| shape[*a]).product()
}

/// Extents of the result of a product.
pub(super) fn contract_shape(p: &Contract, x: &Tensor, y: &Tensor) -> Result<Vec<usize>> {
    let pairs = p.lhs_batch.iter().zip(&p.rhs_batch);
    for (a, b) in pairs.chain(p.lhs_contract.iter().zip(&p.rhs_contract)) {
        if x.shape()[*a] != y.shape()[*b] {
            return Err(format!(
                "extents {:?} axis {a} and {:?} axis {b} differ",
                x.shape(),
                y.shape()
            ));
        }
    }
    let rows = Contract::free(x.shape().len(), &p.lhs_batch, &p.lhs_contract);
    let cols = Contract::free(y.shape().len(), &p.rhs_batch, &p.rhs_contract);
    let left = [&p.lhs_batch[..], &rows]
        .concat()
        .into_iter()
        .map(|a| x.shape()[a]);
    Ok(left.chain(cols.into_iter().map(|a| y.shape()[a])).collect())
}

pub(super) fn contract(p: &Contract, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let shape = contract_shape(p, x, y)?;
    let rows = Contract::free(x.shape().len(), &p.lhs_batch, &p.lhs_contract);
    let cols = Contract::free(y.shape().len(), &p.rhs_batch, &p.rhs_contract);
    let left = [&p.lhs_batch[..], &rows, &p.lhs_contract].concat();
    let right = [&p.rhs_batch[..], &p.rhs_contract, &cols].concat();
    let (inner, n) = (count(x.shape(), &p.lhs_contract), count(y.shape(), &cols));
    let m = count(x.shape(), &rows);
    let batch = count(x.shape(), &p.lhs_batch);
    fn all<T: Factor>(x: &[T], y: &[T], [batch, m, inner, n]: [usize; 4]) -> Vec<T> {
        let mut out = vec![T::default(); batch * m * n];
        for b in 0..batch {
            let x = &x[b * m * inner..][..m * inner];
            let y = &y[b * inner * n..][..inner * n];
            multiply(x, y, &mut out[b * m * n..][..m * n], inner, n);
        }
        out
    }
    let sizes = [batch, m, inner, n];
    match pair(x, y)? {
        Pair::F(a, b) => {
            let a = arranged(&a, x.shape(), &left)?;
            let b = arranged(&b, y.shape(), &right)?;
            sums_f(all(&a, &b, sizes), p.out, &shape)
        }
        Pair::I(a, b) => {
            let a = arranged(&a, x.shape(), &left)?;
            let b = arranged(&b, y.shape(), &right)?;
            sums_i(all(&a, &b, sizes), p.accum, p.out, &shape)
        }
    }
}

/// Where the windows of a convolution read: the geometry of both directions.
struct Geometry {
    /// Extents of the windowed side.
    input: Vec<usize>,
    /// Number of windows per axis.
    output: Vec<usize>,
    kernel: Vec<usize>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
}

impl Geometry {
    /// For positions `first..first + n` of the (row-major) windows and one kernel element: calls `visit` with each
    /// position (from 0) and the offset it reads, leaving out those in the border.
    fn visit(&self, tap: usize, first: usize, n: usize, mut visit: impl FnMut(usize, usize)) {
        let rank = self.input.len();
        let mut taps = vec![0; rank];
        let mut rest = tap;
        for axis in (0..rank).rev() {
            taps[axis] = rest % self.kernel[axis];
            rest /= self.kernel[axis];
        }
        let mut index = vec![0; rank];
        let mut rest = first;
        for axis in (0..rank).rev() {
            index[axis] = rest % self.output[axis];
            rest /= self.output[axis];
        }
        for position in 0..n {
            let mut offset = 0;
            let inside = (0..rank).all(|axis| {
                let at = index[axis] as i64 * self.strides[axis]
                    + taps[axis] as i64 * self.dilations[axis]
                    - self.pads[axis];
                offset = offset * self.input[axis] + at.max(0) as usize;
                (0..self.input[axis] as i64).contains(&at)
            });
            if inside {
                visit(position, offset);
            }
            for axis in (0..rank).rev() {
                index[axis] += 1;
                if index[axis] < self.output[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }
}

fn consts(dims: &[Dim]) -> Result<Vec<i64>> {
    let one = |d: &Dim| d.as_const().ok_or_else(|| format!("size {d} is not known"));
    dims.iter().map(one).collect()
}

/// Windows laid out as columns at a time; enough to fill the loop above.
const POSITIONS: usize = 256;

/// The running-sum and result types of a convolution.
fn conv_types(dtype: DType) -> (DType, DType) {
    if dtype.is_int() {
        let accum = if dtype.bits() < 32 { DType::I32 } else { dtype };
        (accum, accum)
    } else {
        (dtype, dtype)
    }
}

struct ConvSizes {
    batch: usize,
    groups: usize,
    /// Channels of one group on the windowed side and on the other.
    inner: usize,
    outer: usize,
}

fn conv_sums<T: Factor>(x: &[T], w: &[T], s: &ConvSizes, g: &Geometry) -> Vec<T> {
    let (plane, windows) = (
        g.input.iter().product::<usize>(),
        g.output.iter().product::<usize>(),
    );
    let taps: usize = g.kernel.iter().product();
    let depth = s.inner * taps;
    let mut out = vec![T::default(); s.batch * s.groups * s.outer * windows];
    for (image, out) in out.chunks_mut((s.outer * windows).max(1)).enumerate() {
        let x = &x[image * s.inner * plane..][..s.inner * plane];
        let w = &w[image % s.groups * s.outer * depth..][..s.outer * depth];
        for first in (0..windows).step_by(POSITIONS) {
            let n = POSITIONS.min(windows - first);
            let mut columns = vec![T::default(); depth * n];
            for (row, column) in columns.chunks_mut(n).enumerate() {
                let x = &x[row / taps * plane..][..plane];
                g.visit(row % taps, first, n, |p, at| column[p] = x[at]);
            }
            let mut sums = vec![T::default(); s.outer * n];
            multiply(w, &columns, &mut sums, depth, n);
            for (out, sums) in out.chunks_mut(windows).zip(sums.chunks(n)) {
                out[first..first + n].copy_from_slice(sums);
            }
        }
    }
    out
}

/// Direct convolution; see [`Conv`].
pub(crate) fn conv(p: &Conv, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let rank = w.shape().len().saturating_sub(2);
    let kernel = w.shape().get(2..).unwrap_or(&[]).to_vec();
    let (low, high) = (extents(&p.pads_low)?, extents(&p.pads_high)?);
    let lens = [p.strides.len(), p.dilations.len(), low.len(), high.len()];
    let groups = p.groups;
    let fits = x.shape().len() == rank + 2
        && w.shape().len() >= 2
        && lens.iter().all(|n| *n == rank)
        && groups > 0
        && w.shape()[0].is_multiple_of(groups)
        && Some(x.shape()[1]) == w.shape()[1].checked_mul(groups);
    if !fits || p.strides.iter().chain(&p.dilations).any(|v| *v <= 0) {
        return Err(format!(
            "x {:?} and w {:?} do not fit",
            x.shape(),
            w.shape()
        ));
    }
    let input = x.shape()[2..].to_vec();
    let output = (0..rank)
        .map(|a| {
            let padded = Dim::from(input[a]) + Dim::from(low[a]) + Dim::from(high[a]);
            let count = crate::ops::Window::count(
                &padded,
                &Dim::from(kernel[a]),
                p.strides[a],
                p.dilations[a],
            );
            usize::try_from(count.as_const().unwrap_or(0)).unwrap_or(0)
        })
        .collect::<Vec<_>>();
    let geometry = Geometry {
        input,
        output: output.clone(),
        kernel,
        strides: p.strides.clone(),
        dilations: p.dilations.clone(),
        pads: low.iter().map(|v| *v as i64).collect(),
    };
    let sizes = ConvSizes {
        batch: x.shape()[0],
        groups,
        inner: w.shape()[1],
        outer: w.shape()[0] / groups,
    };
    let shape = [&[x.shape()[0], w.shape()[0]], &output[..]].concat();
    let (accum, out) = conv_types(x.dtype());
    checked_len(&shape)?;
    match pair(x, w)? {
        Pair::F(x, w) => sums_f(conv_sums(&x, &w, &sizes, &geometry), out, &shape),
        Pair::I(x, w) => sums_i(conv_sums(&x, &w, &sizes, &geometry), accum, out, &shape),
    }
}

/// Most elements of one result: `f64` sums of that many still fit in the address space of a small machine.
const MAX_LEN: usize = 1 << 36;

fn checked_len(shape: &[usize]) -> Result<usize> {
    let len = shape.iter().try_fold(1usize, |p, d| p.checked_mul(*d));
    len.filter(|n| *n <= MAX_LEN)
        .ok_or_else(|| format!("extents {shape:?} are too large"))
}

fn transpose_sums<T: Factor>(x: &[T], w: &[T], s: &ConvSizes, g: &Geometry) -> Vec<T> {
    // The windowed side is the result; x has one element per window.
    let (plane, windows) = (
        g.input.iter().product::<usize>(),
        g.output.iter().product::<usize>(),
    );
    let taps: usize = g.kernel.iter().product();
    let depth = s.outer * taps;
    let mut out = vec![T::default(); s.batch * s.groups * s.outer * plane];
    for (image, out) in out.chunks_mut((s.outer * plane).max(1)).enumerate() {
        let x = &x[image * s.inner * windows..][..s.inner * windows];
        let w = &w[image % s.groups * s.inner * depth..][..s.inner * depth];
        let mut turned = Vec::with_capacity(w.len());
        for row in 0..depth {
            turned.extend((0..s.inner).map(|i| w[i * depth + row]));
        }
        for first in (0..windows).step_by(POSITIONS) {
            let n = POSITIONS.min(windows - first);
            let mut part = Vec::with_capacity(s.inner * n);
            (0..s.inner).for_each(|i| part.extend_from_slice(&x[i * windows + first..][..n]));
            let mut columns = vec![T::default(); depth * n];
            multiply(&turned, &part, &mut columns, s.inner, n);
            for (row, column) in columns.chunks(n).enumerate() {
                let out = &mut out[row / taps * plane..][..plane];
                g.visit(row % taps, first, n, |p, at| {
                    out[at] = out[at].add(column[p])
                });
            }
        }
    }
    out
}

/// Direct transposed convolution; see [`ConvTranspose`].
pub(crate) fn conv_transpose(p: &ConvTranspose, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let rank = w.shape().len().saturating_sub(2);
    let (pads, spatial) = (consts(&p.pads_low)?, extents(&p.spatial)?);
    let lens = [
        p.strides.len(),
        p.dilations.len(),
        pads.len(),
        spatial.len(),
    ];
    let fits = x.shape().len() == rank + 2
        && w.shape().len() >= 2
        && lens.iter().all(|n| *n == rank)
        && p.groups > 0
        && x.shape()[1] == w.shape()[0]
        && w.shape()[0].is_multiple_of(p.groups);
    if !fits || p.strides.iter().chain(&p.dilations).any(|v| *v <= 0) {
        return Err(format!(
            "x {:?} and w {:?} do not fit",
            x.shape(),
            w.shape()
        ));
    }
    let sizes = ConvSizes {
        batch: x.shape()[0],
        groups: p.groups,
        inner: w.shape()[0] / p.groups,
        outer: w.shape()[1],
    };
    let channels = w.shape()[1]
        .checked_mul(p.groups)
        .ok_or("extents overflow")?;
    let shape = [&[x.shape()[0], channels], &spatial[..]].concat();
    checked_len(&shape)?;
    let geometry = Geometry {
        input: spatial,
        output: x.shape()[2..].to_vec(),
        kernel: w.shape()[2..].to_vec(),
        strides: p.strides.clone(),
        dilations: p.dilations.clone(),
        pads,
    };
    let (accum, _) = conv_types(x.dtype());
    match pair(x, w)? {
        Pair::F(a, b) => sums_f(transpose_sums(&a, &b, &sizes, &geometry), x.dtype(), &shape),
        Pair::I(a, b) => sums_i(
            transpose_sums(&a, &b, &sizes, &geometry),
            accum,
            x.dtype(),
            &shape,
        ),
    }
}

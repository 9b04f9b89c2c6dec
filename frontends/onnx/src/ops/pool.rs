//! Pooling and local response normalisation: sliding windows and a reduction.

use cupola_ir::ops::{ArgReduce, ReduceKind, Window};
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Graph, Scalar, TensorType, ValueId};

use super::conv::{Sliding, sliding, span};
use super::math::Math;
use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("MaxPool", 1, max_pool),
    op("AveragePool", 1, average_pool),
    op("GlobalAveragePool", 1, global_average_pool),
    op("GlobalMaxPool", 1, global_max_pool),
    op("LpPool", 1, lp_pool),
    op("GlobalLpPool", 1, global_lp_pool),
    op("LRN", 1, local_response),
];

/// A pooling operator's windows over the spatial axes of its operand.
pub(super) struct Pool {
    pub(super) ty: TensorType,
    pub(super) kernel: Vec<i64>,
    pub(super) sliding: Sliding,
    /// Elements after the border that rounding the number of windows up adds.
    pub(super) beyond: Vec<Dim>,
}

pub(super) fn pool(cx: &NodeCx<'_, '_>, x: ValueId) -> OpResult<Pool> {
    let ty = cx.g.tensor(x);
    let Some(kernel) = cx.ints_attr("kernel_shape")? else {
        return invalid("attribute 'kernel_shape' is missing");
    };
    let len = kernel.iter().try_fold(1i64, |len, k| len.checked_mul(*k));
    if ty.rank() != kernel.len() + 2 || kernel.iter().any(|k| *k < 1) || len.is_none() {
        return invalid(format!("kernel_shape {kernel:?} for {ty}"));
    }
    let spatial = &ty.dims[2..];
    let sizes: Vec<Dim> = kernel.iter().map(|k| Dim::Const(*k)).collect();
    let s = sliding(cx, spatial, &sizes)?;
    let up = cx.flag("ceil_mode", false)?;
    let mut beyond = vec![];
    for a in 0..kernel.len() {
        let stride = Dim::Const(s.strides[a]);
        let before = spatial[a].clone() + s.low[a].clone();
        let room = before.clone() + s.high[a].clone() - span(&sizes[a], s.dilations[a]);
        if room.as_const().is_some_and(|r| r < 0) && !ty.is_empty() {
            return invalid(format!("a window of {kernel:?} reaches over {ty}"));
        }
        beyond.push(if up {
            // No window may begin in the border after the elements.
            let count = room.ceil_div(&stride) + Dim::ONE;
            let count = cx.smaller(&count, &before.ceil_div(&stride));
            cx.at_least_zero(&((count - Dim::ONE) * stride - room))
        } else {
            Dim::ZERO
        });
    }
    Ok(Pool {
        ty,
        kernel,
        sliding: s,
        beyond,
    })
}

impl Pool {
    /// Borders for all axes, without or with what lies beyond them.
    fn borders(&self) -> (Vec<Dim>, Vec<Dim>) {
        let two = [Dim::ZERO, Dim::ZERO];
        (
            [&two, &self.sliding.low[..]].concat(),
            [&two, &self.sliding.high[..]].concat(),
        )
    }

    fn beyond_all(&self) -> Vec<Dim> {
        [&[Dim::ZERO, Dim::ZERO], &self.beyond[..]].concat()
    }

    /// Windows of a padded operand (`[n, c, out.., kernel..]`).
    pub(super) fn windows(&self, cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
        let n = self.kernel.len();
        let window = Window {
            axes: (2..2 + n).collect(),
            sizes: self.kernel.iter().map(|k| Dim::Const(*k)).collect(),
            strides: self.sliding.strides.clone(),
            dilations: self.sliding.dilations.clone(),
        };
        Ok(cx.g.one(window, &[x])?)
    }

    /// The operand with a border of `value` everywhere that a window reaches.
    pub(super) fn padded(
        &self,
        cx: &mut NodeCx<'_, '_>,
        x: ValueId,
        value: ValueId,
    ) -> OpResult<ValueId> {
        let (low, high) = self.borders();
        let high: Vec<Dim> = high
            .into_iter()
            .zip(self.beyond_all())
            .map(|(a, b)| a + b)
            .collect();
        Ok(cx.g.pad(x, value, &low, &high)?)
    }

    /// Axes of the windows' elements.
    pub(super) fn inner(&self) -> Vec<usize> {
        let n = self.kernel.len();
        (2 + n..2 + 2 * n).collect()
    }
}

pub(super) fn max_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let pool = pool(cx, x)?;
    let lowest = match ty.dtype.int_range() {
        Some((lowest, _)) => lowest as f64,
        None => f64::NEG_INFINITY,
    };
    let lowest = cx.g.number_like(lowest, x)?;
    let padded = pool.padded(cx, x, lowest)?;
    let windows = pool.windows(cx, padded)?;
    let y = cx.g.reduce(ReduceKind::Max, windows, &pool.inner())?;
    if !cx.wants(1) {
        return Ok(vec![y]);
    }
    let at = max_positions(cx, &pool, windows)?;
    Ok(vec![y, at])
}

/// Where in the operand, flattened, each window has its first largest element.
fn max_positions(cx: &mut NodeCx<'_, '_>, pool: &Pool, windows: ValueId) -> OpResult<ValueId> {
    let n = pool.kernel.len();
    let out = cx.g.dims(windows)[..2 + n].to_vec();
    let flat = [&out[..], &[Dim::Const(pool.kernel.iter().product())]].concat();
    let windows = cx.g.reshape(windows, &flat)?;
    let arg = ArgReduce {
        kind: ReduceKind::Max,
        axis: 2 + n,
        last: false,
    };
    let mut inside = cx.g.one(arg, &[windows])?;
    let column_major = cx.flag("storage_order", false)?;
    let spatial = &pool.ty.dims[2..];
    let g = &mut *cx.g;
    let mut at = g.iota(DType::I64, &out, 0)?;
    let channels = g.dim_value(&pool.ty.dims[1])?;
    let channel = g.iota(DType::I64, &out, 1)?;
    at = g.binary(Scalar::Mul, at, channels)?;
    at = g.binary(Scalar::Add, at, channel)?;
    let plane = g.dim_value(&Dim::product(spatial))?;
    at = g.binary(Scalar::Mul, at, plane)?;
    for a in (0..n).rev() {
        let size = g.constant(Tensor::scalar(pool.kernel[a]))?;
        let place = g.binary(Scalar::Rem, inside, size)?;
        inside = g.binary(Scalar::Div, inside, size)?;
        let step = g.constant(Tensor::scalar(pool.sliding.dilations[a]))?;
        let place = g.binary(Scalar::Mul, place, step)?;
        let window = g.iota(DType::I64, &out, 2 + a)?;
        let stride = g.constant(Tensor::scalar(pool.sliding.strides[a]))?;
        let window = g.binary(Scalar::Mul, window, stride)?;
        let place = g.binary(Scalar::Add, place, window)?;
        let low = g.dim_value(&pool.sliding.low[a])?;
        let place = g.binary(Scalar::Sub, place, low)?;
        let weight = match column_major {
            true => Dim::product(&spatial[..a]),
            false => Dim::product(&spatial[a + 1..]),
        };
        let weight = g.dim_value(&weight)?;
        let place = g.binary(Scalar::Mul, place, weight)?;
        at = g.binary(Scalar::Add, at, place)?;
    }
    Ok(at)
}

fn average_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let x = cx.g.widen(x)?;
    let y = average(cx, x)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

/// The mean of every window of a float operand that is wide enough to sum in.
pub(super) fn average(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<ValueId> {
    let ty = cx.g.tensor(x);
    let pool = pool(cx, x)?;
    let zero = cx.g.number_like(0.0, x)?;
    let padded = pool.padded(cx, x, zero)?;
    let windows = pool.windows(cx, padded)?;
    let sum = cx.g.reduce(ReduceKind::Sum, windows, &pool.inner())?;
    let with_border = cx.flag("count_include_pad", false)?;
    let (low, high) = pool.borders();
    let border_free = low.iter().chain(&high).all(|d| d.is(0));
    let exact = pool.beyond.iter().all(|d| d.is(0));
    let count = if exact && (border_free || with_border) {
        let size: f64 = pool.kernel.iter().map(|k| *k as f64).product();
        cx.g.number_like(size, x)?
    } else {
        // The number of elements (with the border where that counts) in each window, by pooling ones.
        let one = cx.g.number_like(1.0, x)?;
        let spatial = [&[Dim::ONE, Dim::ONE], &ty.dims[2..]].concat();
        let ones = cx.g.broadcast_to(one, &spatial)?;
        let border = if with_border { one } else { zero };
        let ones = cx.g.pad(ones, border, &low, &high)?;
        let none = vec![Dim::ZERO; ty.rank()];
        let ones = cx.g.pad(ones, zero, &none, &pool.beyond_all())?;
        let ones = pool.windows(cx, ones)?;
        cx.g.reduce(ReduceKind::Sum, ones, &pool.inner())?
    };
    Ok(cx.g.binary(Scalar::Div, sum, count)?)
}

fn spatial_axes(cx: &NodeCx<'_, '_>, x: ValueId) -> OpResult<Vec<usize>> {
    match cx.g.rank(x) {
        rank @ 2.. => Ok((2..rank).collect()),
        _ => cx.bad_type(x),
    }
}

fn global_average_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axes = spatial_axes(cx, x)?;
    let wide = cx.g.widen(x)?;
    let y = cx.g.mean_keep(wide, &axes)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

fn global_max_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, _) = cx.tensor_input(0)?;
    let axes = spatial_axes(cx, x)?;
    Ok(vec![cx.g.reduce_keep(ReduceKind::Max, x, &axes)?])
}

/// The exponent of a norm; version 1 has it as a float.
fn exponent(cx: &NodeCx<'_, '_>) -> OpResult<f64> {
    let p = match cx.opset {
        1 => cx.float_or("p", 2.0)?,
        _ => cx.int_or("p", 2)? as f64,
    };
    match p > 0.0 {
        true => Ok(p),
        false => invalid(format!("p is {p}")),
    }
}

/// `(sum |x|^p)^(1/p)` over axes, which stay with extent 1.
fn norm_keep(g: &mut Graph, x: ValueId, p: f64, axes: &[usize]) -> OpResult<ValueId> {
    let mut m = Math { g };
    let size = m.unary(Scalar::Abs, x)?;
    if p == 1.0 {
        return Ok(m.g.reduce_keep(ReduceKind::Sum, size, axes)?);
    }
    let power = match p == 2.0 {
        true => m.mul(x, x)?,
        false => m.f(Scalar::Pow, size, p)?,
    };
    let sum = m.g.reduce_keep(ReduceKind::Sum, power, axes)?;
    match p == 2.0 {
        true => m.unary(Scalar::Sqrt, sum),
        false => m.f(Scalar::Pow, sum, 1.0 / p),
    }
}

fn lp_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let pool = pool(cx, x)?;
    let p = exponent(cx)?;
    let wide = cx.g.widen(x)?;
    let zero = cx.g.number_like(0.0, wide)?;
    let padded = pool.padded(cx, wide, zero)?;
    let windows = pool.windows(cx, padded)?;
    let y = norm_keep(cx.g, windows, p, &pool.inner())?;
    let y = cx.g.squeeze(y, &pool.inner())?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

fn global_lp_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let axes = spatial_axes(cx, x)?;
    let p = exponent(cx)?;
    let wide = cx.g.widen(x)?;
    let y = norm_keep(cx.g, wide, p, &axes)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

/// `x / (bias + alpha / size * sum of squares over a window of channels)^beta`.
fn local_response(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let size = cx.required_int("size")?;
    if ty.rank() < 2 || size < 1 {
        return invalid(format!("size {size} for {ty}"));
    }
    let (alpha, beta, bias) = (
        cx.float_or("alpha", 0.0001)?,
        cx.float_or("beta", 0.75)?,
        cx.float_or("bias", 1.0)?,
    );
    let g = &mut *cx.g;
    let wide = g.widen(x)?;
    let square = g.binary(Scalar::Mul, wide, wide)?;
    let zero = g.number_like(0.0, square)?;
    let (mut low, mut high) = (vec![Dim::ZERO; ty.rank()], vec![Dim::ZERO; ty.rank()]);
    low[1] = Dim::Const((size - 1) / 2);
    high[1] = Dim::Const(size / 2);
    let padded = g.pad(square, zero, &low, &high)?;
    let window = Window {
        axes: vec![1],
        sizes: vec![Dim::Const(size)],
        strides: vec![1],
        dilations: vec![1],
    };
    let windows = g.one(window, &[padded])?;
    let sum = g.reduce(ReduceKind::Sum, windows, &[ty.rank()])?;
    let sum = g.scale(sum, alpha / size as f64)?;
    let (bias, beta) = (g.number_like(bias, sum)?, g.number_like(beta, sum)?);
    let sum = g.binary(Scalar::Add, sum, bias)?;
    let norm = g.binary(Scalar::Pow, sum, beta)?;
    let y = g.binary(Scalar::Div, wide, norm)?;
    Ok(vec![g.cast(y, ty.dtype)?])
}

//! Signal processing: window functions, Fourier transforms and the mel filter bank.
//!
//! A transform is a product with the matrix of its sines and cosines, whose angles are reduced to one turn in integers
//! first. That is `n^2` work for `n` points, which for the frame lengths of audio models is small change.

use std::f64::consts::PI;

use cupola_ir::ops::Window;
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Graph, Scalar, ValueId, convert};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("HannWindow", 17, |cx| window(cx, &[0.5, -0.5])),
    op("HammingWindow", 17, |cx| {
        window(cx, &[25.0 / 46.0, -21.0 / 46.0])
    }),
    op("BlackmanWindow", 17, |cx| window(cx, &[0.42, -0.5, 0.08])),
    op("MelWeightMatrix", 17, mel_weight_matrix),
    op("DFT", 17, dft),
    op("STFT", 17, stft),
];

/// A mel filter bank may have this many elements at most; real ones have some 10^5.
const MAX_MEL_LEN: usize = 1 << 26;

/// The type in which angles of an axis are computed: f64 where they become constants, f32 where the device does it.
fn angle_type(n: &Dim) -> DType {
    match n.as_const() {
        Some(_) => DType::F64,
        None => DType::F32,
    }
}

/// The sum of `coefficients[k] * cos(2 pi k i / n)`, where `n` is the length, or one less when not periodic.
fn window(cx: &mut NodeCx<'_, '_>, coefficients: &[f64]) -> OpResult {
    let size = cx.input(0)?;
    let size = cx.extent(size, 0)?;
    let out = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let period = match cx.flag("periodic", true)? {
        true => size.clone(),
        false => size.clone() - Dim::ONE,
    };
    let dtype = angle_type(&size);
    let g = &mut *cx.g;
    let at = g.iota(dtype, &[size], 0)?;
    let period = g.dim_value(&period)?;
    let period = g.cast(period, dtype)?;
    let mut sum = g.number(coefficients[0], dtype)?;
    for (k, c) in coefficients.iter().enumerate().skip(1) {
        let angle = g.scale(at, 2.0 * PI * k as f64)?;
        let angle = g.binary(Scalar::Div, angle, period)?;
        let wave = g.unary(Scalar::Cos, angle)?;
        let wave = g.scale(wave, *c)?;
        sum = g.binary(Scalar::Add, sum, wave)?;
    }
    Ok(vec![g.cast(sum, out)?])
}

fn mel_weight_matrix(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let mut numbers = [0.0; 5];
    for (i, n) in numbers.iter_mut().enumerate() {
        let v = cx.input(i)?;
        *n = cx.known_number(v)?;
    }
    let [bands, points, rate, low, high] = numbers;
    if !(bands >= 1.0 && points >= 1.0 && rate > 0.0 && low >= 0.0 && high >= low) {
        return invalid(format!(
            "{bands} bands, {points} points, rate {rate}, {low} to {high} Hz"
        ));
    }
    let rows = (points as usize / 2).saturating_add(1);
    let bands = bands as usize;
    let len = rows.checked_mul(bands).filter(|n| *n <= MAX_MEL_LEN);
    let Some(len) = len else {
        return Err(OpError::Limit(format!(
            "a filter bank of {rows} x {bands} elements"
        )));
    };
    let mel = |hertz: f64| 2595.0 * (hertz / 700.0).ln_1p() / 10f64.ln();
    let step = (mel(high) - mel(low)) / (bands + 2) as f64;
    // The spectrum's row at the edge below, at or above each band.
    let edge = |k: usize| {
        let hertz = 700.0 * ((mel(low) + step * k as f64) / 2595.0 * 10f64.ln()).exp_m1();
        ((points + 1.0) * hertz / rate).floor() as usize
    };
    let mut out = vec![0f64; len];
    for band in 0..bands {
        let (start, centre, end) = (edge(band), edge(band + 1), edge(band + 2));
        if centre >= rows || end > rows {
            return invalid(format!("{high} Hz is above half the rate of {rate} Hz"));
        }
        for row in start..=centre {
            let rise = (centre - start) as f64;
            out[row * bands + band] = if rise == 0.0 {
                1.0
            } else {
                (row - start) as f64 / rise
            };
        }
        for row in centre..end {
            out[row * bands + band] = (end - row) as f64 / (end - centre) as f64;
        }
    }
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let Some(t) = Tensor::from_slice(&[rows, bands], &out) else {
        unreachable!("bug: length of the filter bank");
    };
    let made = match dtype.is_float() {
        true => convert::lanes(&t).and_then(|l| convert::tensor(&l, dtype, &[rows, bands])),
        false => None,
    };
    let t = match made {
        Some(made) => cx.g.constant(made)?,
        None => {
            let t = cx.g.constant(t)?;
            cx.g.cast(t, dtype)?
        }
    };
    Ok(vec![t])
}

/// A signal whose transformed axis is last.
struct Signal {
    real: ValueId,
    imaginary: Option<ValueId>,
}

/// The cosines and sines of `2 pi i k / n` for `i < rows` and `k < columns`.
fn waves(
    cx: &mut NodeCx<'_, '_>,
    rows: &Dim,
    columns: &Dim,
    n: &Dim,
    dtype: DType,
) -> OpResult<(ValueId, ValueId)> {
    let plane = [rows.clone(), columns.clone()];
    let g = &mut *cx.g;
    let i = g.iota(DType::I64, &plane, 0)?;
    let k = g.iota(DType::I64, &plane, 1)?;
    let turns = g.binary(Scalar::Mul, i, k)?;
    let points = g.dim_value(n)?;
    let turns = g.binary(Scalar::Rem, turns, points)?;
    let four = g.number(4.0, DType::I64)?;
    // Counted in quarters of a step, a quarter turn is `n`, whole for every `n`.
    let quarters = g.binary(Scalar::Mul, turns, four)?;
    let ahead = g.binary(Scalar::Add, quarters, points)?;
    let cosine = sine(g, ahead, n)?;
    let sine = sine(g, quarters, n)?;
    Ok((g.cast(cosine, dtype)?, g.cast(sine, dtype)?))
}

/// The sine of `u / 4n` turns for integers from 0 to `5n`. The angle is brought to a quarter turn around 0 in integers,
/// so that zeros and ones come out exact.
fn sine(g: &mut Graph, u: ValueId, n: &Dim) -> OpResult<ValueId> {
    let wide = angle_type(n);
    let half = g.dim_value(&(n.clone() * Dim::Const(2)))?;
    let turn = g.dim_value(&(n.clone() * Dim::Const(4)))?;
    let back = g.binary(Scalar::Sub, u, turn)?;
    let over = g.binary(Scalar::Lt, half, u)?;
    let u = g.select(over, back, u)?;
    let high = g.binary(Scalar::Sub, half, u)?;
    let low = g.unary(Scalar::Neg, half)?;
    let low = g.binary(Scalar::Sub, low, u)?;
    let u = g.binary(Scalar::Min, u, high)?;
    let u = g.binary(Scalar::Max, u, low)?;
    let u = g.cast(u, wide)?;
    let quarter = g.dim_value(n)?;
    let quarter = g.cast(quarter, wide)?;
    let angle = g.binary(Scalar::Div, u, quarter)?;
    let angle = g.scale(angle, PI / 2.0)?;
    Ok(g.unary(Scalar::Sin, angle)?)
}

/// The first `n` elements of the last axis, zeros added where there are fewer.
fn fit(cx: &mut NodeCx<'_, '_>, x: ValueId, n: &Dim) -> OpResult<ValueId> {
    let dims = cx.g.dims(x);
    let last = dims.len() - 1;
    let kept = cx.smaller(&dims[last], n);
    let zero = cx.g.number_like(0.0, x)?;
    let mut high = vec![Dim::ZERO; dims.len()];
    high[last] = n.clone() - kept.clone();
    let y = cx.g.slice_axis(x, last, &Dim::ZERO, &kept)?;
    Ok(cx.g.pad(y, zero, &vec![Dim::ZERO; dims.len()], &high)?)
}

/// The transform of `n` points along the last axis: the first `bins` of the spectrum, real and imaginary part.
fn transform(
    cx: &mut NodeCx<'_, '_>,
    x: &Signal,
    n: &Dim,
    bins: &Dim,
    inverse: bool,
) -> OpResult<(ValueId, ValueId)> {
    let dtype = cx.g.dtype(x.real);
    let (cosine, sine) = waves(cx, n, bins, n, dtype)?;
    let real = fit(cx, x.real, n)?;
    let mut re = cx.g.matmul(real, cosine)?;
    let mut im = cx.g.matmul(real, sine)?;
    if !inverse {
        im = cx.g.unary(Scalar::Neg, im)?;
    }
    if let Some(v) = x.imaginary {
        let v = fit(cx, v, n)?;
        let (c, s) = (cx.g.matmul(v, cosine)?, cx.g.matmul(v, sine)?);
        let f = if inverse { Scalar::Sub } else { Scalar::Add };
        re = cx.g.binary(f, re, s)?;
        im = cx.g.binary(Scalar::Add, im, c)?;
    }
    if inverse {
        re = divide(cx, re, n)?;
        im = divide(cx, im, n)?;
    }
    Ok((re, im))
}

fn divide(cx: &mut NodeCx<'_, '_>, x: ValueId, n: &Dim) -> OpResult<ValueId> {
    let n = cx.g.dim_value(n)?;
    let n = cx.g.cast_like(n, x)?;
    Ok(cx.g.binary(Scalar::Div, x, n)?)
}

/// `n` real points from the half of their spectrum that has all of it: every bin but the first, and the one at half
/// the rate, stands for two.
fn inverse_of_half(cx: &mut NodeCx<'_, '_>, x: &Signal, n: &Dim) -> OpResult<ValueId> {
    let dtype = cx.g.dtype(x.real);
    let bins = n.floor_div(&Dim::Const(2)) + Dim::ONE;
    let (cosine, sine) = waves(cx, &bins, n, n, dtype)?;
    let g = &mut *cx.g;
    let at = g.iota(DType::I64, std::slice::from_ref(&bins), 0)?;
    let (zero, one, two) = (
        g.number(0.0, DType::I64)?,
        g.number(1.0, dtype)?,
        g.number(2.0, dtype)?,
    );
    let first = g.binary(Scalar::Eq, at, zero)?;
    let twice = g.binary(Scalar::Add, at, at)?;
    let points = g.dim_value(n)?;
    let middle = g.binary(Scalar::Eq, twice, points)?;
    let single = g.binary(Scalar::Or, first, middle)?;
    let weight = g.select(single, one, two)?;
    let part = |cx: &mut NodeCx<'_, '_>, v: ValueId, wave: ValueId| -> OpResult<ValueId> {
        let v = fit(cx, v, &bins)?;
        let v = cx.g.binary(Scalar::Mul, v, weight)?;
        Ok(cx.g.matmul(v, wave)?)
    };
    let mut y = part(cx, x.real, cosine)?;
    if let Some(v) = x.imaginary {
        let s = part(cx, v, sine)?;
        y = cx.g.binary(Scalar::Sub, y, s)?;
    }
    divide(cx, y, n)
}

/// The axis in front of the last one (of real and imaginary parts) taken apart, and `axis` moved to the end.
fn signal(cx: &mut NodeCx<'_, '_>, x: ValueId, axis: usize) -> OpResult<Signal> {
    let last = cx.g.rank(x) - 1;
    let parts = cx.const_extent(x, last)?;
    let mut perm: Vec<usize> = (0..last).filter(|a| *a != axis).collect();
    perm.push(axis);
    let mut part = |k: usize| -> OpResult<ValueId> {
        let v = cx.g.pick(x, last, &Dim::from(k))?;
        Ok(cx.g.permute(v, &perm)?)
    };
    match parts {
        1 => Ok(Signal {
            real: part(0)?,
            imaginary: None,
        }),
        2 => Ok(Signal {
            real: part(0)?,
            imaginary: Some(part(1)?),
        }),
        n => invalid(format!("{n} parts of a complex number")),
    }
}

/// The last axis moved back to `axis`, and the parts stacked behind.
fn assemble(cx: &mut NodeCx<'_, '_>, parts: &[ValueId], axis: usize) -> OpResult<ValueId> {
    let rank = cx.g.rank(parts[0]);
    let mut perm: Vec<usize> = (0..rank - 1).collect();
    perm.insert(axis, rank - 1);
    let mut stacked = vec![];
    for v in parts {
        let v = cx.g.permute(*v, &perm)?;
        stacked.push(cx.g.unsqueeze(v, &[rank])?);
    }
    Ok(cx.g.concat(&stacked, rank)?)
}

fn dft(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let (inverse, half) = (cx.flag("inverse", false)?, cx.flag("onesided", false)?);
    // The axis is an operand from version 20 on.
    let axis = match (cx.opset < 20, cx.optional(2)) {
        (true, _) => cx.int_or("axis", 1)?,
        (false, Some(v)) => cx.known_number(v)? as i64,
        (false, None) => -2,
    };
    let axis = cx.axis(axis, ty.rank())?;
    if ty.rank() < 2 || axis == ty.rank() - 1 {
        return invalid(format!("axis {axis} of {ty}"));
    }
    let len = ty.dims[axis].clone();
    let n = match cx.optional(1) {
        Some(v) => cx.extent(v, 1)?,
        None if inverse && half => (len - Dim::ONE) * Dim::Const(2),
        None => len,
    };
    let x = signal(cx, x, axis)?;
    if inverse && half {
        let y = inverse_of_half(cx, &x, &n)?;
        return Ok(vec![assemble(cx, &[y], axis)?]);
    }
    let bins = match half {
        true => n.floor_div(&Dim::Const(2)) + Dim::ONE,
        false => n.clone(),
    };
    let (re, im) = transform(cx, &x, &n, &bins, inverse)?;
    Ok(vec![assemble(cx, &[re, im], axis)?])
}

fn stft(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), step) = (cx.tensor_input(0)?, cx.input(1)?);
    let step = cx.known_number(step)? as i64;
    if ty.rank() != 3 || step < 1 {
        return invalid(format!("{ty} in steps of {step}"));
    }
    let weights = cx.optional(2);
    let frame = match (cx.optional(3), weights) {
        (Some(v), _) => cx.extent(v, 1)?,
        (None, Some(w)) if cx.g.rank(w) == 1 => cx.g.dim(w, 0),
        (None, Some(w)) => return cx.bad_type(w),
        (None, None) => ty.dims[1].clone(),
    };
    let mut x = signal(cx, x, 1)?;
    let cut = Window {
        axes: vec![1],
        sizes: vec![frame.clone()],
        strides: vec![step],
        dilations: vec![1],
    };
    for v in [Some(&mut x.real), x.imaginary.as_mut()]
        .into_iter()
        .flatten()
    {
        *v = cx.g.one(cut.clone(), &[*v])?;
        if let Some(w) = weights {
            *v = cx.g.binary(Scalar::Mul, *v, w)?;
        }
    }
    let bins = match cx.flag("onesided", true)? {
        true => frame.floor_div(&Dim::Const(2)) + Dim::ONE,
        false => frame.clone(),
    };
    let (re, im) = transform(cx, &x, &frame, &bins, false)?;
    Ok(vec![assemble(cx, &[re, im], 2)?])
}

//! Signals: discrete Fourier transforms as products with cosines and sines, windows, the mel scale.

use std::f64::consts::{FRAC_PI_2, TAU};

use cupola_ir::ops::{Contract, Window};
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Dim, Graph, Scalar, ValueId, eval};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("DFT", 17, |cx| {
        let axis = cx.int_or("axis", 1)?;
        dft(cx, axis)
    }),
    op("DFT", 20, |cx| {
        let axis = match cx.optional(2) {
            Some(v) => cx.known_number(v)? as i64,
            None => -2,
        };
        dft(cx, axis)
    }),
    op("STFT", 17, stft),
    op("HannWindow", 17, |cx| cosine_window(cx, &[0.5, -0.5])),
    op("HammingWindow", 17, |cx| {
        cosine_window(cx, &[25.0 / 46.0, -21.0 / 46.0])
    }),
    op("BlackmanWindow", 17, |cx| {
        cosine_window(cx, &[0.42, -0.5, 0.08])
    }),
    op("MelWeightMatrix", 17, mel_weights),
];

/// Tables up to this number of entries are computed at import, in f64.
const MAX_TABLE_LEN: i64 = 1 << 20;

/// What is transformed: `parts` are the real and perhaps the imaginary part, along `axis`.
struct Spectrum {
    parts: Vec<ValueId>,
    axis: usize,
    len: Dim,
    inverse: bool,
    onesided: bool,
}

fn dft(cx: &mut NodeCx<'_, '_>, axis: i64) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    if ty.rank() < 2 || !ty.dtype.is_float() {
        return cx.bad_type(x);
    }
    let axis = cx.axis(axis, ty.rank())?;
    if axis == ty.rank() - 1 {
        return invalid("the last axis holds the parts of complex numbers");
    }
    let (inverse, onesided) = (cx.flag("inverse", false)?, cx.flag("onesided", false)?);
    let n = ty.dims[axis].clone();
    let len = match cx.optional(1) {
        Some(v) => cx.extent(v, 1)?,
        None if inverse && onesided => (n - Dim::ONE) * Dim::Const(2),
        None => n,
    };
    let spectrum = Spectrum {
        parts: parts(cx, x)?,
        axis,
        len,
        inverse,
        onesided,
    };
    let y = transform(cx, spectrum)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

/// The real and, when the last axis has two entries, the imaginary part.
fn parts(cx: &mut NodeCx<'_, '_>, x: ValueId) -> OpResult<Vec<ValueId>> {
    let last = cx.g.rank(x) - 1;
    let count = cx.const_extent(x, last)?;
    if !(1..=2).contains(&count) {
        return invalid(format!("{} with {count} parts", cx.g.ty(x)));
    }
    let x = cx.g.widen(x)?;
    (0..count)
        .map(|i| Ok(cx.g.pick(x, last, &Dim::from(i))?))
        .collect()
}

/// Cosine and sine of `2 pi j k / len` for j below `from` and k below `to`, each `[from, to]`.
fn table(
    cx: &mut NodeCx<'_, '_>,
    from: &Dim,
    to: &Dim,
    len: &Dim,
    wide: DType,
) -> OpResult<[ValueId; 2]> {
    let build = |g: &mut Graph, float: DType| -> OpResult<[ValueId; 2]> {
        let plane = [from.clone(), to.clone()];
        let j = g.iota(DType::I64, &plane, 0)?;
        let k = g.iota(DType::I64, &plane, 1)?;
        let turns = g.binary(Scalar::Mul, j, k)?;
        let len = g.dim_value(len)?;
        let quarters = g.scale(turns, 4.0)?;
        let shifted = g.binary(Scalar::Add, quarters, len)?;
        Ok([
            sine(g, shifted, len, float)?,
            sine(g, quarters, len, float)?,
        ])
    };
    let size = (from.clone() * to.clone()).as_const();
    if len.as_const().is_none() || size.is_none_or(|n| n > MAX_TABLE_LEN) {
        return build(cx.g, wide);
    }
    let mut scratch = Graph::new("table");
    for v in build(&mut scratch, DType::F64)? {
        let v = scratch.cast(v, wide)?;
        scratch.output("part", v);
    }
    let values = eval::run(&scratch, &[], &mut eval::Env::default())?;
    let mut constants = values.iter().map(|v| -> OpResult<ValueId> {
        match v.as_tensor() {
            Some(t) => Ok(cx.g.constant(t.clone())?),
            None => unreachable!("bug: a table is a tensor"),
        }
    });
    let mut next = || {
        let v = constants.next();
        v.unwrap_or_else(|| unreachable!("bug: a table has two parts"))
    };
    Ok([next()?, next()?])
}

/// The sine of `quarters / len` quarter turns: reduced to the first quarter in integers, so that zeros are exact.
fn sine(g: &mut Graph, quarters: ValueId, len: ValueId, float: DType) -> OpResult<ValueId> {
    let (half, whole) = (g.scale(len, 2.0)?, g.scale(len, 4.0)?);
    let at = g.binary(Scalar::Mod, quarters, whole)?;
    let negative = g.binary(Scalar::Le, half, at)?;
    let at = g.binary(Scalar::Mod, at, half)?;
    let mirrored = g.binary(Scalar::Sub, half, at)?;
    let at = g.binary(Scalar::Min, at, mirrored)?;
    let (at, len) = (g.cast(at, float)?, g.cast(len, float)?);
    let part = g.binary(Scalar::Div, at, len)?;
    let angle = g.scale(part, FRAC_PI_2)?;
    let y = g.unary(Scalar::Sin, angle)?;
    let below = g.unary(Scalar::Neg, y)?;
    Ok(g.select(negative, below, y)?)
}

/// The product over `axis` with a matrix `[axis, new]`; the new axis takes its place.
fn along(g: &mut Graph, x: ValueId, axis: usize, matrix: ValueId) -> OpResult<ValueId> {
    let (rank, dtype) = (g.rank(x), g.dtype(x));
    let op = Contract {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: vec![axis],
        rhs_contract: vec![0],
        accum: g.accumulator(dtype),
        out: dtype,
    };
    let y = g.one(op, &[x, matrix])?;
    let mut perm: Vec<usize> = (0..rank - 1).collect();
    perm.insert(axis, rank - 1);
    Ok(g.permute(y, &perm)?)
}

/// The transform, with the parts along a new last axis.
fn transform(cx: &mut NodeCx<'_, '_>, s: Spectrum) -> OpResult<ValueId> {
    let two = Dim::Const(2);
    let half = s.len.floor_div(&two) + Dim::ONE;
    let to_real = s.inverse && s.onesided;
    // Values beyond the length are cut off, missing ones are 0.
    let given = cx.g.dim(s.parts[0], s.axis);
    let most = if to_real { half.clone() } else { s.len.clone() };
    let used = cx.smaller(&given, &most);
    let mut all = vec![];
    for p in &s.parts {
        all.push(cx.g.slice_axis(*p, s.axis, &Dim::ZERO, &used)?);
    }
    let to = if s.onesided && !s.inverse {
        half
    } else {
        s.len.clone()
    };
    let wide = cx.g.dtype(all[0]);
    let [cos, sin] = table(cx, &used, &to, &s.len, wide)?;
    let g = &mut *cx.g;
    if to_real {
        // Every bin but the first and, for even lengths, the middle one stands for its mirror image too.
        let bin = g.iota(DType::I64, &[used, Dim::ONE], 0)?;
        let twice = g.scale(bin, 2.0)?;
        let len = g.dim_value(&s.len)?;
        let zero = g.number_like(0.0, bin)?;
        let first = g.binary(Scalar::Eq, bin, zero)?;
        let middle = g.binary(Scalar::Eq, twice, len)?;
        let single = g.binary(Scalar::Or, first, middle)?;
        let (one, two) = (g.number(1.0, wide)?, g.number(2.0, wide)?);
        let weight = g.select(single, one, two)?;
        let cos = g.binary(Scalar::Mul, cos, weight)?;
        let mut y = along(g, all[0], s.axis, cos)?;
        if let Some(im) = all.get(1) {
            let sin = g.binary(Scalar::Mul, sin, weight)?;
            let other = along(g, *im, s.axis, sin)?;
            y = g.binary(Scalar::Sub, y, other)?;
        }
        let y = over(g, y, &s.len)?;
        let last = g.rank(y);
        return Ok(g.unsqueeze(y, &[last])?);
    }
    let mut re = along(g, all[0], s.axis, cos)?;
    let mut im = along(g, all[0], s.axis, sin)?;
    if !s.inverse {
        im = g.unary(Scalar::Neg, im)?;
    }
    if let Some(part) = all.get(1) {
        let turned = along(g, *part, s.axis, sin)?;
        let straight = along(g, *part, s.axis, cos)?;
        let f = if s.inverse { Scalar::Sub } else { Scalar::Add };
        re = g.binary(f, re, turned)?;
        im = g.binary(Scalar::Add, im, straight)?;
    }
    let last = g.rank(re);
    let (re, im) = (g.unsqueeze(re, &[last])?, g.unsqueeze(im, &[last])?);
    let y = g.concat(&[re, im], last)?;
    match s.inverse {
        true => over(g, y, &s.len),
        false => Ok(y),
    }
}

/// `y / len`.
fn over(g: &mut Graph, y: ValueId, len: &Dim) -> OpResult<ValueId> {
    let len = g.dim_value(len)?;
    let len = g.cast_like(len, y)?;
    Ok(g.binary(Scalar::Div, y, len)?)
}

fn stft(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (mut x, ty) = cx.tensor_input(0)?;
    if !(2..=3).contains(&ty.rank()) || !ty.dtype.is_float() {
        return cx.bad_type(x);
    }
    if ty.rank() == 2 {
        x = cx.g.unsqueeze(x, &[2])?;
    }
    let step = cx.input(1)?;
    let step = cx.known_number(step)?;
    if step < 1.0 {
        return invalid(format!("a step of {step}"));
    }
    let (window, length) = (cx.optional(2), cx.optional(3));
    let size = match (length, window) {
        (Some(v), _) => cx.extent(v, 1)?,
        (None, Some(w)) if cx.g.rank(w) == 1 => cx.g.dim(w, 0),
        (None, Some(w)) => return cx.bad_type(w),
        (None, None) => cx.g.dim(x, 1),
    };
    let frames = Window {
        axes: vec![1],
        sizes: vec![size.clone()],
        strides: vec![step as i64],
        dilations: vec![1],
    };
    let mut all = parts(cx, x)?;
    for p in &mut all {
        *p = cx.g.one(frames.clone(), &[*p])?;
        if let Some(w) = window {
            let w = cx.g.cast_like(w, *p)?;
            *p = cx.g.binary(Scalar::Mul, *p, w)?;
        }
    }
    let spectrum = Spectrum {
        parts: all,
        axis: 2,
        len: size,
        inverse: false,
        onesided: cx.flag("onesided", true)?,
    };
    let y = transform(cx, spectrum)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

/// `sum over m of c[m] cos(2 pi m i / n)`, where n is the size, or one less for a symmetric window.
fn cosine_window(cx: &mut NodeCx<'_, '_>, c: &[f64]) -> OpResult {
    let size = cx.input(0)?;
    let size = cx.extent(size, 0)?;
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let n = match cx.flag("periodic", true)? {
        true => size.clone(),
        false => size.clone() - Dim::ONE,
    };
    let wide = if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let g = &mut *cx.g;
    let at = g.iota(wide, &[size], 0)?;
    let n = g.dim_value(&n)?;
    let n = g.cast(n, wide)?;
    // A window of one element is not divided by 0.
    let one = g.number(1.0, wide)?;
    let n = g.binary(Scalar::Max, n, one)?;
    let turn = g.binary(Scalar::Div, at, n)?;
    let mut y = g.number(c[0], wide)?;
    for (m, c) in c.iter().enumerate().skip(1) {
        let angle = g.scale(turn, TAU * m as f64)?;
        let wave = g.unary(Scalar::Cos, angle)?;
        let wave = g.scale(wave, *c)?;
        y = g.binary(Scalar::Add, y, wave)?;
    }
    Ok(vec![g.cast(y, dtype)?])
}

/// Triangles over the bins of a spectrum, their corners at equal distances on the mel scale
/// `2595 log10(1 + f / 700)`: `[dft_length / 2 + 1, bands]`.
fn mel_weights(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let mut given = [0.0; 5];
    for (i, v) in given.iter_mut().enumerate() {
        let operand = cx.input(i)?;
        *v = cx.known_number(operand)?;
    }
    let [bands, length, rate, low, high] = given;
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let bins = (length / 2.0).floor() + 1.0;
    if !(bands >= 0.0 && length >= 0.0 && rate > 0.0 && bands * bins < 1e9) {
        return invalid(format!("{bands} bands of {length} samples at {rate} Hz"));
    }
    let (bands, bins) = (bands as usize, bins as usize);
    let mel = |f: f64| 2595.0 * (1.0 + f / 700.0).log10();
    let step = (mel(high) - mel(low)) / (bands + 2) as f64;
    let corner = |i: usize| {
        let f = 700.0 * (10f64.powf((mel(low) + step * i as f64) / 2595.0) - 1.0);
        ((length + 1.0) * f / rate).floor() as i64
    };
    let mut out = vec![0f64; bins * bands];
    for band in 0..bands {
        let [left, centre, right] = [corner(band), corner(band + 1), corner(band + 2)];
        for bin in 0..bins {
            let b = bin as i64;
            out[bin * bands + band] = if b == centre {
                1.0
            } else if (left..centre).contains(&b) {
                (b - left) as f64 / (centre - left) as f64
            } else if (centre..right).contains(&b) {
                (right - b) as f64 / (right - centre) as f64
            } else {
                0.0
            };
        }
    }
    let Some(t) = Tensor::from_slice(&[bins, bands], &out) else {
        unreachable!("bug: weights of other extents");
    };
    let t = cx.g.constant(t)?;
    Ok(vec![cx.g.cast(t, dtype)?])
}

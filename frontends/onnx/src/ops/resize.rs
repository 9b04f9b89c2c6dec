//! Resampling along axes: `Resize` and `Upsample`. Axes are independent: each is a weighted sum of a few gathered
//! positions, whose places and weights are computed at import, in f64, when the extents are known.

use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Dim, Graph, Scalar, ValueId, eval};

use super::indexed::take;
use super::math::Math;
use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("Resize", 10, |cx| upsample(cx, 1)),
    op("Resize", 11, resize),
    op("Upsample", 7, |cx| upsample(cx, 0)),
    op("Upsample", 9, |cx| upsample(cx, 1)),
];

/// Taps up to this number become separate gathers that fuse; more become an axis of their own.
const MAX_SEPARATE_TAPS: i64 = 4;

/// How values between positions are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// How positions of the result map to positions of the operand, and what is read there.
struct Style {
    mode: Mode,
    coordinates: String,
    rounding: String,
    cubic_a: f64,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
}

/// What happens to one axis.
struct Stretch {
    axis: usize,
    from: Dim,
    to: Dim,
    /// Stated scale; otherwise `to / from`.
    scale: Option<f64>,
    /// Part of the axis that the result covers.
    roi: (f64, f64),
}

fn mode(cx: &NodeCx<'_, '_>) -> OpResult<Mode> {
    Ok(match cx.text_or("mode", "nearest")?.as_str() {
        "nearest" => Mode::Nearest,
        // Version 1 of Upsample says bilinear.
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic,
        other => return invalid(format!("mode '{other}' does not exist")),
    })
}

/// The early forms: scales as an attribute (`from` 0) or an operand, `x / scale` rounded down.
fn upsample(cx: &mut NodeCx<'_, '_>, from: usize) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let scales = match from {
        0 => cx.floats_attr("scales")?.unwrap_or_default(),
        _ => {
            let scales = cx.input(1)?;
            cx.floats(scales)?
        }
    };
    let style = Style {
        mode: mode(cx)?,
        coordinates: "asymmetric".into(),
        rounding: "floor".into(),
        cubic_a: -0.75,
        exclude_outside: false,
        antialias: false,
        extrapolation: 0.0,
    };
    if scales.len() != ty.rank() {
        return invalid(format!("scales {scales:?} for {ty}"));
    }
    let all = (0..ty.rank())
        .map(|axis| by_scale(axis, &ty.dims[axis], scales[axis], (0.0, 1.0), x))
        .collect::<OpResult<Vec<_>>>()?;
    stretch_all(cx, x, &all, &style)
}

fn resize(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ty) = cx.tensor_input(0)?;
    let rank = ty.rank();
    let style = Style {
        mode: mode(cx)?,
        coordinates: cx.text_or("coordinate_transformation_mode", "half_pixel")?,
        rounding: cx.text_or("nearest_mode", "round_prefer_floor")?,
        cubic_a: cx.float_or("cubic_coeff_a", -0.75)?,
        exclude_outside: cx.flag("exclude_outside", false)?,
        antialias: cx.flag("antialias", false)?,
        extrapolation: cx.float_or("extrapolation_value", 0.0)?,
    };
    let axes = match cx.ints_attr("axes")? {
        Some(axes) => cx.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    let mut rois = vec![(0.0, 1.0); axes.len()];
    if style.coordinates == "tf_crop_and_resize" {
        let roi = cx.input(1)?;
        let roi = cx.floats(roi)?;
        if roi.len() != 2 * axes.len() {
            return invalid(format!("roi {roi:?} for {} axes", axes.len()));
        }
        let (starts, ends) = roi.split_at(axes.len());
        rois = starts.iter().copied().zip(ends.iter().copied()).collect();
    }
    let filled = |cx: &NodeCx<'_, '_>, i: usize| {
        cx.optional(i)
            .filter(|v| !cx.g.dims(*v).iter().any(|d| d.is(0)))
    };
    let all = match (filled(cx, 2), filled(cx, 3)) {
        (Some(scales), None) => {
            let scales = cx.floats(scales)?;
            if scales.len() != axes.len() {
                return invalid(format!("scales {scales:?} for {} axes", axes.len()));
            }
            (axes.iter().enumerate())
                .map(|(i, a)| by_scale(*a, &ty.dims[*a], scales[i], rois[i], x))
                .collect::<OpResult<Vec<_>>>()?
        }
        (None, Some(sizes)) => by_sizes(cx, x, &axes, sizes, &rois)?,
        _ => return invalid("needs either scales or sizes"),
    };
    stretch_all(cx, x, &all, &style)
}

fn by_scale(axis: usize, from: &Dim, scale: f64, roi: (f64, f64), x: ValueId) -> OpResult<Stretch> {
    if !(scale > 0.0 && scale.is_finite()) {
        return invalid(format!("a scale of {scale}"));
    }
    let to = match from.as_const() {
        Some(n) => {
            let to = (n as f64 * scale).floor();
            if to > 9.0e15 {
                return invalid(format!("a scale of {scale} for {n} elements"));
            }
            Dim::Const(to as i64)
        }
        None => {
            let (num, den) = fraction(scale).ok_or(OpError::NeedsShape(x))?;
            (from.clone() * Dim::Const(num)).floor_div(&Dim::Const(den))
        }
    };
    Ok(Stretch {
        axis,
        from: from.clone(),
        to,
        scale: Some(scale),
        roi,
    })
}

/// The fraction with the smallest denominator that is this number in single precision.
fn fraction(x: f64) -> Option<(i64, i64)> {
    (1..=4096i64).find_map(|den| {
        let num = (x * den as f64).round();
        ((num / den as f64) as f32 == x as f32 && num < 1e9).then_some((num as i64, den))
    })
}

fn by_sizes(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    axes: &[usize],
    sizes: ValueId,
    rois: &[(f64, f64)],
) -> OpResult<Vec<Stretch>> {
    let policy = cx.text_or("keep_aspect_ratio_policy", "stretch")?;
    let sizes: Vec<Dim> = match policy.as_str() {
        "stretch" => cx.extents(sizes, 0)?,
        // The smallest or largest ratio decides all extents.
        _ => cx.ints(sizes)?.into_iter().map(Dim::Const).collect(),
    };
    let dims = cx.g.dims(x);
    if sizes.len() != axes.len() || sizes.iter().any(|s| s.as_const().is_some_and(|n| n < 0)) {
        return invalid(format!("sizes {sizes:?} for {} axes", axes.len()));
    }
    let largest = match policy.as_str() {
        "stretch" => {
            let stretch = |(i, a): (usize, &usize)| Stretch {
                axis: *a,
                from: dims[*a].clone(),
                to: sizes[i].clone(),
                scale: None,
                roi: rois[i],
            };
            return Ok(axes.iter().enumerate().map(stretch).collect());
        }
        "not_larger" => false,
        "not_smaller" => true,
        other => return invalid(format!("keep_aspect_ratio_policy '{other}' does not exist")),
    };
    let mut scale: Option<f64> = None;
    for (a, size) in axes.iter().zip(&sizes) {
        let (Some(from), Some(to)) = (dims[*a].as_const(), size.as_const()) else {
            return Err(OpError::NeedsShape(x));
        };
        let own = to as f64 / from as f64;
        scale = Some(match scale {
            Some(s) if largest => s.max(own),
            Some(s) => s.min(own),
            None => own,
        });
    }
    let scale = scale.unwrap_or(1.0);
    let each = axes.iter().zip(rois).map(|(a, roi)| {
        let n = dims[*a].as_const().unwrap_or(0);
        Stretch {
            axis: *a,
            from: dims[*a].clone(),
            to: Dim::Const((scale * n as f64 + 0.5).floor() as i64),
            scale: Some(scale),
            roi: *roi,
        }
    });
    Ok(each.collect())
}

fn stretch_all(cx: &mut NodeCx<'_, '_>, x: ValueId, all: &[Stretch], style: &Style) -> OpResult {
    let dtype = cx.g.dtype(x);
    let mut y = x;
    if style.mode != Mode::Nearest {
        let wide = match dtype.is_float() {
            true => cx.g.accumulator(dtype),
            false => DType::F32,
        };
        y = cx.g.cast(x, wide)?;
    }
    let mut outside: Option<ValueId> = None;
    let rank = cx.g.rank(x);
    for s in all {
        let same = s.from == s.to && s.scale.is_none_or(|v| (v - 1.0).abs() < 1e-9);
        if same && s.roi == (0.0, 1.0) {
            continue;
        }
        let t = taps(cx.g, s, style)?;
        y = apply(cx.g, y, s.axis, &t)?;
        if let Some(out) = t.outside {
            let mut dims = vec![Dim::ONE; rank];
            dims[s.axis] = s.to.clone();
            let out = cx.g.reshape(out, &dims)?;
            outside = Some(match outside {
                Some(old) => cx.g.binary(Scalar::Or, old, out)?,
                None => out,
            });
        }
    }
    if let Some(outside) = outside {
        let value = cx.g.number_like(style.extrapolation, y)?;
        y = cx.g.select(outside, value, y)?;
    }
    if style.mode != Mode::Nearest && !dtype.is_float() {
        y = saturated(cx.g, y, dtype)?;
    }
    Ok(vec![cx.g.cast(y, dtype)?])
}

/// Truncated toward zero and held in the range of an integer type.
fn saturated(g: &mut Graph, y: ValueId, dtype: DType) -> OpResult<ValueId> {
    let Some((low, high)) = dtype.int_range() else {
        return Ok(y);
    };
    let (low, high) = (
        g.number_like(low as f64, y)?,
        g.number_like(high as f64, y)?,
    );
    let y = g.binary(Scalar::Max, y, low)?;
    Ok(g.binary(Scalar::Min, y, high)?)
}

/// Where each position of the result reads.
struct Taps {
    /// `i64[to, count]`, inside the axis.
    index: ValueId,
    /// `[to, count]`; none for a single tap.
    weight: Option<ValueId>,
    /// `bool[to]`: positions that take the extrapolation value.
    outside: Option<ValueId>,
    count: Dim,
}

/// The most taps of an axis that are stored.
const MAX_STORED: i64 = 1 << 18;

/// Taps as constants when the extents are known, computed at run time otherwise: in f32, or in f64 when they are too many to
/// store, as f32 cannot number them.
fn taps(g: &mut Graph, s: &Stretch, style: &Style) -> OpResult<Taps> {
    let (Some(_), Some(to)) = (s.from.as_const(), s.to.as_const()) else {
        return build_taps(g, DType::F32, s, style);
    };
    let count = (Dim::Const(2) * reach(s, style)).as_const();
    if count
        .and_then(|n| n.checked_mul(to))
        .is_none_or(|n| n > MAX_STORED)
    {
        return build_taps(g, DType::F64, s, style);
    }
    let mut scratch = Graph::new("taps");
    let t = build_taps(&mut scratch, DType::F64, s, style)?;
    scratch.output("index", t.index);
    for v in t.weight.into_iter().chain(t.outside) {
        scratch.output("more", v);
    }
    let values = eval::run(&scratch, &[], &mut eval::Env::default())?;
    let mut constants = vec![];
    for v in &values {
        let Some(v) = v.as_tensor() else {
            unreachable!("bug: taps are tensors");
        };
        constants.push(g.constant(v.clone())?);
    }
    let mut rest = constants.into_iter();
    let mut next = |there: bool| if there { rest.next() } else { None };
    let Some(index) = next(true) else {
        unreachable!("bug: taps without an index");
    };
    Ok(Taps {
        index,
        weight: next(t.weight.is_some()),
        outside: next(t.outside.is_some()),
        count: t.count,
    })
}

/// `x` where the scalar `n` is not 1, else `y`.
fn unless_one(m: &mut Math<'_>, n: ValueId, x: ValueId, y: f64) -> OpResult<ValueId> {
    let is = m.eq(n, 1.0)?;
    m.select(is, y, x)
}

/// Positions in the operand for every position of the result, and the scale.
fn coordinates(
    m: &mut Math<'_>,
    float: DType,
    s: &Stretch,
    style: &Style,
) -> OpResult<(ValueId, ValueId)> {
    let at = m.g.iota(float, std::slice::from_ref(&s.to), 0)?;
    let (from, to) = (m.dim(&s.from, float)?, m.dim(&s.to, float)?);
    let scale = match s.scale {
        Some(v) => m.g.number(v, float)?,
        None => m.div(to, from)?,
    };
    // The extent before it was rounded down.
    let width = match s.scale {
        Some(_) => m.mul(scale, from)?,
        None => to,
    };
    let last = m.sub(from, 1.0)?;
    let span = m.sub(width, 1.0)?;
    let half_pixel = |m: &mut Math<'_>| -> OpResult<ValueId> {
        let x = m.add(at, 0.5)?;
        let x = m.div(x, scale)?;
        m.sub(x, 0.5)
    };
    let x = match style.coordinates.as_str() {
        "half_pixel" => half_pixel(m)?,
        "pytorch_half_pixel" => {
            let x = half_pixel(m)?;
            unless_one(m, width, x, -0.5)?
        }
        "half_pixel_symmetric" => {
            let x = half_pixel(m)?;
            let adjust = m.div(to, width)?;
            let rest = m.sub(1.0, adjust)?;
            let centre = m.mul(from, 0.5)?;
            let offset = m.mul(centre, rest)?;
            m.add(x, offset)?
        }
        "align_corners" => {
            let x = m.mul(at, last)?;
            let x = m.div(x, span)?;
            unless_one(m, width, x, 0.0)?
        }
        "asymmetric" => m.div(at, scale)?,
        "tf_half_pixel_for_nn" => {
            let x = m.add(at, 0.5)?;
            m.div(x, scale)?
        }
        "tf_crop_and_resize" => {
            let (start, end) = s.roi;
            let reach = m.mul(last, end - start)?;
            let x = m.mul(at, reach)?;
            let x = m.div(x, span)?;
            let middle = m.mul(reach, 0.5)?;
            let single = m.eq(width, 1.0)?;
            let x = m.g.select(single, middle, x)?;
            let base = m.mul(last, start)?;
            m.add(x, base)?
        }
        other => {
            return invalid(format!(
                "coordinate_transformation_mode '{other}' does not exist"
            ));
        }
    };
    Ok((x, scale))
}

fn build_taps(g: &mut Graph, float: DType, s: &Stretch, style: &Style) -> OpResult<Taps> {
    let mut m = Math { g };
    let (x, scale) = coordinates(&mut m, float, s, style)?;
    let last = s.from.clone() - Dim::ONE;
    let last = m.dim(&last, float)?;
    let mut outside = None;
    if style.coordinates == "tf_crop_and_resize" {
        let before = m.lt(x, 0.0)?;
        let after = m.lt(last, x)?;
        outside = Some(m.or(before, after)?);
    }
    if style.mode == Mode::Nearest {
        let at = match style.rounding.as_str() {
            "round_prefer_floor" => {
                let x = m.sub(x, 0.5)?;
                m.g.unary(Scalar::Ceil, x)?
            }
            "round_prefer_ceil" => {
                let x = m.add(x, 0.5)?;
                m.g.unary(Scalar::Floor, x)?
            }
            "floor" => m.g.unary(Scalar::Floor, x)?,
            "ceil" => m.g.unary(Scalar::Ceil, x)?,
            other => return invalid(format!("nearest_mode '{other}' does not exist")),
        };
        let index = clamped(&mut m, at, last)?;
        return Ok(Taps {
            index: m.g.unsqueeze(index, &[1])?,
            weight: None,
            outside,
            count: Dim::ONE,
        });
    }
    let reach = reach(s, style);
    let count = Dim::Const(2) * reach.clone();
    let base = m.g.unary(Scalar::Floor, x)?;
    let offset = m.g.iota(float, std::slice::from_ref(&count), 0)?;
    let first = m.dim(&(reach - Dim::ONE), float)?;
    let offset = m.sub(offset, first)?;
    let base = m.g.unsqueeze(base, &[1])?;
    let place = m.add(base, offset)?;
    let x = m.g.unsqueeze(x, &[1])?;
    let distance = m.sub(place, x)?;
    let mut distance = m.g.unary(Scalar::Abs, distance)?;
    if style.antialias {
        let shrink = m.min(scale, 1.0)?;
        distance = m.mul(distance, shrink)?;
    }
    let mut weight = kernel(&mut m, distance, style.mode, style.cubic_a)?;
    if style.exclude_outside {
        let before = m.lt(place, 0.0)?;
        let after = m.lt(last, place)?;
        let out = m.or(before, after)?;
        weight = m.select(out, 0.0, weight)?;
    }
    if style.antialias || style.exclude_outside {
        let sum = m.g.reduce_keep(ReduceKind::Sum, weight, &[1])?;
        let none = m.eq(sum, 0.0)?;
        let sum = m.select(none, 1.0, sum)?;
        weight = m.div(weight, sum)?;
    }
    let index = clamped(&mut m, place, last)?;
    Ok(Taps {
        index,
        weight: Some(weight),
        outside,
        count,
    })
}

/// Taps on each side: the kernel's support, wider where shrinking must not skip elements.
fn reach(s: &Stretch, style: &Style) -> Dim {
    let support = if style.mode == Mode::Cubic { 2 } else { 1 };
    let plain = Dim::Const(support);
    if !style.antialias {
        return plain;
    }
    match s.scale {
        Some(scale) if scale < 1.0 => Dim::Const((support as f64 / scale).ceil() as i64),
        Some(_) => plain,
        None if s.to.is(0) => plain,
        None => (s.from.clone() * plain.clone())
            .ceil_div(&s.to)
            .larger(&plain),
    }
}

fn clamped(m: &mut Math<'_>, at: ValueId, last: ValueId) -> OpResult<ValueId> {
    let at = m.min(at, last)?;
    let at = m.max(at, 0.0)?;
    Ok(m.g.cast(at, DType::I64)?)
}

/// The triangle, or the cubic convolution kernel of Keys (1981) with parameter `a`, at a distance.
pub(super) fn kernel(m: &mut Math<'_>, d: ValueId, mode: Mode, a: f64) -> OpResult<ValueId> {
    if mode != Mode::Cubic {
        let w = m.sub(1.0, d)?;
        return m.max(w, 0.0);
    }
    let polynomial = |m: &mut Math<'_>, c: [f64; 4]| -> OpResult<ValueId> {
        let mut y = m.mul(d, c[0])?;
        y = m.add(y, c[1])?;
        for k in &c[2..] {
            y = m.mul(y, d)?;
            y = m.add(y, *k)?;
        }
        Ok(y)
    };
    let near = polynomial(m, [a + 2.0, -(a + 3.0), 0.0, 1.0])?;
    let far = polynomial(m, [a, -5.0 * a, 8.0 * a, -4.0 * a])?;
    let in_far = m.lt(d, 2.0)?;
    let far = m.select(in_far, far, 0.0)?;
    let in_near = m.le(d, 1.0)?;
    m.select(in_near, near, far)
}

/// The weighted sum of what the taps read along an axis.
fn apply(g: &mut Graph, x: ValueId, axis: usize, t: &Taps) -> OpResult<ValueId> {
    let Some(weight) = t.weight else {
        let index = g.squeeze(t.index, &[1])?;
        return take(g, x, axis, index);
    };
    let weight = g.cast_like(weight, x)?;
    let after = g.rank(x) - axis - 1;
    match t.count.as_const() {
        Some(count) if count <= MAX_SEPARATE_TAPS => {
            let mut sum = None;
            for k in 0..count {
                let index = g.pick(t.index, 1, &Dim::Const(k))?;
                let mut w = g.pick(weight, 1, &Dim::Const(k))?;
                let mut dims = g.dims(w);
                dims.resize(1 + after, Dim::ONE);
                w = g.reshape(w, &dims)?;
                let part = take(g, x, axis, index)?;
                let part = g.binary(Scalar::Mul, part, w)?;
                sum = Some(match sum {
                    Some(s) => g.binary(Scalar::Add, s, part)?,
                    None => part,
                });
            }
            Ok(sum.unwrap_or_else(|| unreachable!("bug: no taps")))
        }
        _ => {
            let parts = take(g, x, axis, t.index)?;
            let mut dims = g.dims(weight);
            dims.resize(2 + after, Dim::ONE);
            let w = g.reshape(weight, &dims)?;
            let parts = g.binary(Scalar::Mul, parts, w)?;
            Ok(g.reduce(ReduceKind::Sum, parts, &[axis + 1])?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of constants in the graph of an axis of 3 stretched by `scale`.
    fn stored(scale: f64, antialias: bool) -> OpResult<usize> {
        let style = Style {
            mode: Mode::Linear,
            coordinates: "half_pixel".into(),
            rounding: String::new(),
            cubic_a: -0.75,
            exclude_outside: false,
            antialias,
            extrapolation: 0.0,
        };
        let stretch = Stretch {
            axis: 0,
            from: Dim::Const(3),
            to: Dim::Const((3.0 * scale) as i64),
            scale: Some(scale),
            roi: (0.0, 1.0),
        };
        let mut g = Graph::new("taps");
        let t = taps(&mut g, &stretch, &style)?;
        assert_eq!(g.rank(t.index), 2);
        let sizes = g.nodes().flat_map(|(_, node)| node.results.clone());
        let constants = sizes.filter_map(|v| g.as_const(v));
        Ok(constants.map(|c| c.bytes().len()).sum())
    }

    #[test]
    fn a_file_cannot_make_the_importer_store_what_it_merely_claims() {
        let small = stored(4.0, false).expect("a usual scale");
        assert!(small >= 12 * 2 * 8, "known taps are stored: {small} bytes");
        let huge = stored(1e8, false).expect("a scale that extents can have");
        assert!(huge < 1 << 10, "{huge} bytes");
        let limit = stored(1e-38, true).expect_err("more taps than can be counted");
        assert!(matches!(limit, OpError::Limit(_)), "{limit:?}");
    }
}

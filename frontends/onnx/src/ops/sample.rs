//! Operators that read between positions: `GridSample`, `RoiAlign` and `DeformConv`, and the grids of `AffineGrid`.
//!
//! All of them are one mechanism: for each axis of the operand a few neighbours of a computed place ([`Taps`]), gathered
//! together ([`read`]) and summed by the product of their weights.

use cupola_ir::ops::{Bounds, Contract, Gather, ReduceKind};
use cupola_ir::{DType, Dim, Graph, Scalar, TensorType, ValueId};

use super::conv::{Sliding, add_bias, groups, sliding, span};
use super::math::Math;
use super::resize::{Mode, kernel};
use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("GridSample", 16, grid_sample),
    op("AffineGrid", 20, affine_grid),
    op("RoiAlign", 10, roi_align),
    op("DeformConv", 19, deform_conv),
];

/// What is read outside of an axis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Border {
    Zeros,
    Nearest,
    /// Mirrored at the centres of the outermost elements, or half an element further out.
    Mirror {
        centres: bool,
    },
}

/// The neighbours of every place along one axis.
struct Taps {
    /// Indices, `i64[places.., taps]`.
    index: ValueId,
    /// `[places.., taps]`; none where a single neighbour counts fully.
    weight: Option<ValueId>,
}

/// `x` reflected back into the axis.
fn mirrored(m: &mut Math<'_>, x: ValueId, n: ValueId, centres: bool) -> OpResult<ValueId> {
    let (low, len) = match centres {
        true => (0.0, m.sub(n, 1.0)?),
        false => (-0.5, n),
    };
    let x = m.sub(x, low)?;
    let x = m.unary(Scalar::Abs, x)?;
    // An axis of one element has no distance to repeat.
    let period = m.mul(len, 2.0)?;
    let flat = m.eq(period, 0.0)?;
    let period = m.select(flat, 1.0, period)?;
    let x = m.f(Scalar::Rem, x, period)?;
    let back = m.sub(period, x)?;
    let over = m.lt(len, x)?;
    let x = m.select(over, back, x)?;
    let x = m.add(x, low)?;
    m.select(flat, 0.0, x)
}

/// The neighbours of the places `x` (floats) along an axis of extent `n`.
fn taps(m: &mut Math<'_>, x: ValueId, n: &Dim, mode: Mode, border: Border) -> OpResult<Taps> {
    const CUBIC_A: f64 = -0.75;
    let float = m.g.dtype(x);
    let (first, count) = match mode {
        Mode::Nearest => (0.0, 1),
        Mode::Linear => (0.0, 2),
        Mode::Cubic => (-1.0, 4),
    };
    let rank = m.g.rank(x);
    let base = match mode {
        Mode::Nearest => x,
        Mode::Linear | Mode::Cubic => m.unary(Scalar::Floor, x)?,
    };
    let base = m.g.unsqueeze(base, &[rank])?;
    let offset = m.g.iota(float, &[Dim::Const(count)], 0)?;
    let offset = m.add(offset, first)?;
    let place = m.add(base, offset)?;
    let weight = match mode {
        Mode::Nearest => None,
        Mode::Linear | Mode::Cubic => {
            let x = m.g.unsqueeze(x, &[rank])?;
            let distance = m.sub(place, x)?;
            let distance = m.unary(Scalar::Abs, distance)?;
            Some(kernel(m, distance, mode, CUBIC_A)?)
        }
    };
    let n = m.dim(n, float)?;
    let place = match border {
        Border::Zeros => place,
        Border::Nearest => {
            let last = m.sub(n, 1.0)?;
            m.clamp(place, 0.0, last)?
        }
        Border::Mirror { centres } => mirrored(m, place, n, centres)?,
    };
    let index = m.g.cast(place, DType::I64)?;
    Ok(Taps { index, weight })
}

/// What the taps of several axes read together, weighted: `[batch.., places.., taps per axis.., others of x..]`.
fn read(
    m: &mut Math<'_>,
    x: ValueId,
    batch: usize,
    axes: &[usize],
    taps: &[Taps],
    border: Border,
) -> OpResult<ValueId> {
    let counts = taps.len();
    // One axis of taps for each indexed axis.
    let apart = |g: &mut Graph, v: ValueId, k: usize| -> OpResult<ValueId> {
        let mut dims = g.dims(v);
        let count = dims.pop().unwrap_or(Dim::ONE);
        let places = dims.len();
        dims.resize(places + counts, Dim::ONE);
        dims[places + k] = count;
        Ok(g.reshape(v, &dims)?)
    };
    let mut operands = vec![x];
    let mut weight = None;
    for (k, t) in taps.iter().enumerate() {
        operands.push(apart(m.g, t.index, k)?);
        if let Some(w) = t.weight {
            let w = apart(m.g, w, k)?;
            weight = Some(match weight {
                Some(all) => m.mul(all, w)?,
                None => w,
            });
        }
    }
    let dims = m.g.broadcast_dims(&operands[1..])?;
    for index in &mut operands[1..] {
        *index = m.g.broadcast_to(*index, &dims)?;
    }
    let gather = Gather {
        axes: axes.to_vec(),
        batch,
        bounds: match border {
            Border::Zeros => Bounds::Skip,
            Border::Nearest | Border::Mirror { .. } => Bounds::Clamp,
        },
    };
    let y = m.g.one(gather, &operands)?;
    let Some(weight) = weight else {
        return Ok(y);
    };
    let weight = m.g.cast_like(weight, y)?;
    let mut dims = m.g.dims(weight);
    dims.resize(m.g.rank(y), Dim::ONE);
    let weight = m.g.reshape(weight, &dims)?;
    m.mul(y, weight)
}

/// The operand in the type that weighted sums are computed in.
fn summable(g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
    Ok(match g.dtype(x).is_float() {
        true => g.widen(x)?,
        false => g.cast(x, DType::F32)?,
    })
}

/// Axes from `first` on.
fn run(first: usize, count: usize) -> Vec<usize> {
    (first..first + count).collect()
}

fn border(cx: &NodeCx<'_, '_>, centres: bool) -> OpResult<Border> {
    Ok(match cx.text_or("padding_mode", "zeros")?.as_str() {
        "zeros" => Border::Zeros,
        "border" => Border::Nearest,
        "reflection" => Border::Mirror { centres },
        other => return invalid(format!("padding_mode '{other}' does not exist")),
    })
}

/// The grid's last axis holds coordinates from -1 to 1, those of the operand's last axis first.
pub(super) fn grid_sample(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (grid, grid_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let rank = ty.rank();
    let spatial = rank.saturating_sub(2);
    let fits = rank == grid_ty.rank() && spatial > 0 && grid_ty.dtype.is_float();
    if !fits || cx.const_extent(grid, rank - 1)? != spatial {
        return invalid(format!("x {ty} with a grid {grid_ty}"));
    }
    let mode = match cx.text_or("mode", "linear")?.as_str() {
        "nearest" => Mode::Nearest,
        // Names before version 20 have a prefix.
        "linear" | "bilinear" => Mode::Linear,
        "cubic" | "bicubic" => Mode::Cubic,
        other => return invalid(format!("mode '{other}' does not exist")),
    };
    let aligned = cx.flag("align_corners", false)?;
    let border = border(cx, aligned)?;
    let mut m = Math { g: cx.g };
    let grid = m.g.widen(grid)?;
    let mut all = vec![];
    for a in 0..spatial {
        let at = m.g.pick(grid, rank - 1, &Dim::from(spatial - 1 - a))?;
        let n = &ty.dims[2 + a];
        let place = grid_place(&mut m, at, n, mode, border, aligned)?;
        all.push(taps(&mut m, place, n, mode, border)?);
    }
    let x = match mode {
        Mode::Nearest => x,
        Mode::Linear | Mode::Cubic => summable(m.g, x)?,
    };
    // [batch, places.., taps.., channels]
    let y = read(&mut m, x, 1, &run(2, spatial), &all, border)?;
    let tap_axes = run(1 + spatial, spatial);
    let y = match mode {
        Mode::Nearest => m.g.squeeze(y, &tap_axes)?,
        Mode::Linear | Mode::Cubic => m.g.reduce(ReduceKind::Sum, y, &tap_axes)?,
    };
    let perm = [vec![0, 1 + spatial], run(1, spatial)].concat();
    let y = m.g.permute(y, &perm)?;
    Ok(vec![m.g.cast(y, ty.dtype)?])
}

/// A coordinate of the grid as a place of an axis; places outside are moved by the border's rule first.
fn grid_place(
    m: &mut Math<'_>,
    at: ValueId,
    n: &Dim,
    mode: Mode,
    border: Border,
    aligned: bool,
) -> OpResult<ValueId> {
    let n = m.dim(n, m.g.dtype(at))?;
    let last = m.sub(n, 1.0)?;
    let x = m.add(at, 1.0)?;
    let x = if aligned {
        let x = m.mul(x, 0.5)?;
        m.mul(x, last)?
    } else {
        let x = m.mul(x, n)?;
        let x = m.sub(x, 1.0)?;
        m.mul(x, 0.5)?
    };
    let x = match mode {
        Mode::Nearest => m.unary(Scalar::Round, x)?,
        Mode::Linear | Mode::Cubic => x,
    };
    let moved = match border {
        Border::Zeros => return Ok(x),
        // The cubic kernel weighs the border's repetitions by their distance from the true place.
        Border::Nearest if mode == Mode::Cubic => return Ok(x),
        Border::Nearest => m.clamp(x, 0.0, last)?,
        Border::Mirror { centres } => mirrored(m, x, n, centres)?,
    };
    let margin = if aligned { 0.0 } else { 0.5 };
    let end = m.add(last, margin)?;
    let before = m.lt(x, -margin)?;
    let after = m.lt(end, x)?;
    let outside = m.or(before, after)?;
    m.select(outside, moved, x)
}

/// `out[n, .., i] = sum_j theta[n, i, j] * c_j + theta[n, i, r]` for the coordinates `c` of a regular grid, those of
/// the last axis first.
fn affine_grid(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((theta, ty), (size, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let size = cx.extents(size, 0)?;
    let spatial = size.len().saturating_sub(2);
    let fits = ty.rank() == 3 && spatial > 0 && ty.dtype.is_float();
    if !fits || cx.const_extent(theta, 1)? != spatial || cx.const_extent(theta, 2)? != spatial + 1 {
        return invalid(format!("theta {ty} for a size of {}", size.len()));
    }
    let aligned = cx.flag("align_corners", false)?;
    let mut m = Math { g: cx.g };
    let theta = m.g.widen(theta)?;
    let mut row = vec![Dim::ONE; spatial + 2];
    row[0] = ty.dims[0].clone();
    row[spatial + 1] = Dim::from(spatial);
    let column = |m: &mut Math<'_>, j: usize| -> OpResult<ValueId> {
        let c = m.g.pick(theta, 2, &Dim::from(j))?;
        Ok(m.g.reshape(c, &row)?)
    };
    let mut out = column(&mut m, spatial)?;
    for (a, n) in size[2..].iter().enumerate() {
        let at = regular(&mut m, theta, n, aligned)?;
        let mut dims = vec![Dim::ONE; spatial + 2];
        dims[1 + a] = n.clone();
        let at = m.g.reshape(at, &dims)?;
        let weight = column(&mut m, spatial - 1 - a)?;
        let part = m.mul(weight, at)?;
        out = m.add(out, part)?;
    }
    Ok(vec![m.g.cast(out, ty.dtype)?])
}

/// `n` coordinates over -1 to 1: from end to end, or the centres of `n` equal parts.
fn regular(m: &mut Math<'_>, like: ValueId, n: &Dim, aligned: bool) -> OpResult<ValueId> {
    let float = m.g.dtype(like);
    let i = m.g.iota(float, std::slice::from_ref(n), 0)?;
    let n = m.dim(n, float)?;
    let (x, parts) = if aligned {
        let parts = m.sub(n, 1.0)?;
        // One coordinate stands at the start.
        (m.mul(i, 2.0)?, m.max(parts, 1.0)?)
    } else {
        let x = m.mul(i, 2.0)?;
        (m.add(x, 1.0)?, n)
    };
    let x = m.div(x, parts)?;
    m.sub(x, 1.0)
}

/// How regions are read along one spatial axis.
struct RegionAxis {
    /// First coordinate of each region and extent of its bins, `[regions]`.
    start: ValueId,
    bin: ValueId,
    /// Samples per bin and region, `[regions]` floats, and the largest of them.
    samples: ValueId,
    most: Dim,
}

fn roi_align(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (rois, roi_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (entry, entry_ty) = cx.tensor_input(2)?;
    if ty.rank() != 4 || !ty.dtype.is_float() || roi_ty.rank() != 2 || entry_ty.rank() != 1 {
        return invalid(format!("x {ty}, regions {roi_ty} of {entry_ty}"));
    }
    // Before version 16 coordinates were never shifted.
    let default = if cx.opset < 16 {
        "output_half_pixel"
    } else {
        "half_pixel"
    };
    let half_pixel = match cx
        .text_or("coordinate_transformation_mode", default)?
        .as_str()
    {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return invalid(format!("coordinate_transformation_mode '{other}'")),
    };
    let largest = match cx.text_or("mode", "avg")?.as_str() {
        "avg" => false,
        "max" => true,
        other => return invalid(format!("mode '{other}' does not exist")),
    };
    let bins = [
        cx.int_or("output_height", 1)?,
        cx.int_or("output_width", 1)?,
    ];
    if bins.iter().any(|n| *n < 1) {
        return invalid(format!("{bins:?} bins"));
    }
    let wide = cx.g.widen(x)?;
    let rois = cx.g.cast_like(rois, wide)?;
    let vertical = region_axis(cx, rois, [1, 3], bins[0], half_pixel)?;
    let horizontal = region_axis(cx, rois, [0, 2], bins[1], half_pixel)?;
    let mut m = Math { g: cx.g };
    let entry = m.g.cast(entry, DType::I64)?;
    let entry = m.g.unsqueeze(entry, &run(1, 5))?;
    let entry = Taps {
        index: entry,
        weight: None,
    };
    // Places are [regions, bins down, bins across, samples down, samples across].
    let (down, seen_down, used_down) =
        region_taps(&mut m, &vertical, &ty.dims[2], bins[0], [1, 3])?;
    let (across, seen_across, used_across) =
        region_taps(&mut m, &horizontal, &ty.dims[3], bins[1], [2, 4])?;
    let y = read(
        &mut m,
        wide,
        0,
        &[0, 2, 3],
        &[entry, down, across],
        Border::Nearest,
    )?;
    let outer = |m: &mut Math<'_>, v: ValueId| m.g.unsqueeze(v, &run(5, 4));
    let seen = m.and(seen_down, seen_across)?;
    let seen = outer(&mut m, seen)?;
    let y = m.select(seen, y, 0.0)?;
    let used = m.and(used_down, used_across)?;
    let used = outer(&mut m, used)?;
    let inner = run(3, 5);
    let y = if largest {
        let y = m.select(used, y, f64::NEG_INFINITY)?;
        let y = m.g.reduce(ReduceKind::Max, y, &inner)?;
        let none = m.eq(y, f64::NEG_INFINITY)?;
        m.select(none, 0.0, y)?
    } else {
        let y = m.select(used, y, 0.0)?;
        let y = m.g.reduce(ReduceKind::Sum, y, &inner)?;
        let samples = m.mul(vertical.samples, horizontal.samples)?;
        let samples = m.max(samples, 1.0)?;
        let samples = m.g.unsqueeze(samples, &[1, 2, 3])?;
        m.div(y, samples)?
    };
    let y = m.g.permute(y, &[0, 3, 1, 2])?;
    Ok(vec![m.g.cast(y, ty.dtype)?])
}

/// The part of each region along an axis, from columns `ends` of the regions.
fn region_axis(
    cx: &mut NodeCx<'_, '_>,
    rois: ValueId,
    ends: [usize; 2],
    bins: i64,
    half_pixel: bool,
) -> OpResult<RegionAxis> {
    let scale = cx.float_or("spatial_scale", 1.0)?;
    let ratio = cx.int_or("sampling_ratio", 0)?;
    let mut m = Math { g: cx.g };
    let end = |m: &mut Math<'_>, column: usize| -> OpResult<ValueId> {
        let x = m.g.pick(rois, 1, &Dim::from(column))?;
        let x = m.mul(x, scale)?;
        m.sub(x, if half_pixel { 0.5 } else { 0.0 })
    };
    let (start, stop) = (end(&mut m, ends[0])?, end(&mut m, ends[1])?);
    let mut extent = m.sub(stop, start)?;
    if !half_pixel {
        extent = m.max(extent, 1.0)?;
    }
    let bin = m.div(extent, bins as f64)?;
    if ratio > 0 {
        let samples = m.mul(bin, 0.0)?;
        let samples = m.add(samples, ratio as f64)?;
        return Ok(RegionAxis {
            start,
            bin,
            samples,
            most: Dim::Const(ratio),
        });
    }
    let samples = m.unary(Scalar::Ceil, bin)?;
    let samples = m.max(samples, 0.0)?;
    let most = m.g.reduce(ReduceKind::Max, samples, &[0])?;
    let most = m.max(most, 0.0)?;
    let most = m.g.cast(most, DType::I64)?;
    let most = cx.extent(most, 0)?;
    Ok(RegionAxis {
        start,
        bin,
        samples,
        most,
    })
}

/// Taps of the samples of an axis with their places along `[bins, samples]` of five; which samples are near enough to
/// the operand to be read, and which ones the region has.
fn region_taps(
    m: &mut Math<'_>,
    axis: &RegionAxis,
    n: &Dim,
    bins: i64,
    [bin_axis, sample_axis]: [usize; 2],
) -> OpResult<(Taps, ValueId, ValueId)> {
    let float = m.g.dtype(axis.bin);
    let along = |m: &mut Math<'_>, at: usize, count: Dim| -> OpResult<ValueId> {
        let mut dims = vec![Dim::ONE; 5];
        dims[at] = count;
        Ok(m.g.iota(float, &dims, at)?)
    };
    let bin_index = along(m, bin_axis, Dim::Const(bins))?;
    let sample = along(m, sample_axis, axis.most.clone())?;
    let wide = |m: &mut Math<'_>, v: ValueId| m.g.unsqueeze(v, &[1, 2, 3, 4]);
    let (start, bin) = (wide(m, axis.start)?, wide(m, axis.bin)?);
    let samples = wide(m, axis.samples)?;
    let used = m.lt(sample, samples)?;
    let first = m.mul(bin_index, bin)?;
    let first = m.add(first, start)?;
    let inside = m.add(sample, 0.5)?;
    let inside = m.mul(inside, bin)?;
    let inside = m.div(inside, samples)?;
    let place = m.add(first, inside)?;
    let extent = m.dim(n, float)?;
    let low = m.le(-1.0, place)?;
    let high = m.le(place, extent)?;
    let seen = m.and(low, high)?;
    let last = m.sub(extent, 1.0)?;
    let place = m.clamp(place, 0.0, last)?;
    Ok((
        taps(m, place, n, Mode::Linear, Border::Nearest)?,
        seen,
        used,
    ))
}

/// A convolution whose windows read at shifted places: `offset[n, (group, kernel element, axis), out..]` is added to
/// where a kernel element stands, `mask[n, (group, kernel element), out..]` multiplies what is read there.
fn deform_conv(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, x_ty), (w, w_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let (offset, offset_ty) = cx.tensor_input(2)?;
    let rank = x_ty.rank();
    if rank < 3 || w_ty.rank() != rank || offset_ty.rank() != rank {
        return invalid(format!("x {x_ty}, weights {w_ty}, offsets {offset_ty}"));
    }
    let s = sliding(cx, &x_ty.dims[2..], &w_ty.dims[2..])?;
    let groups = Dim::from(groups(cx)?);
    let parts = match cx.int_or("offset_group", 1)? {
        n @ 1.. => Dim::Const(n),
        n => return invalid(format!("offset_group is {n}")),
    };
    let mask = cx.optional(4);
    let mut m = Math { g: cx.g };
    let wide = summable(m.g, x)?;
    let kernel = Dim::product(&w_ty.dims[2..]);
    let places = deformed_places(&mut m, offset, &parts, &x_ty, &w_ty, &s)?;
    let mut all = vec![];
    for (place, n) in places.into_iter().zip(&x_ty.dims[2..]) {
        all.push(taps(&mut m, place, n, Mode::Linear, Border::Zeros)?);
    }
    let n = rank - 2;
    let split = |d: &Dim, by: &Dim| [by.clone(), d.floor_div(by)];
    let dims = [
        &x_ty.dims[..1],
        &split(&x_ty.dims[1], &parts),
        &x_ty.dims[2..],
    ]
    .concat();
    let parted = m.g.reshape(wide, &dims)?;
    // [batch, parts, kernel, out.., taps.., channels of a part]
    let y = read(&mut m, parted, 2, &run(3, n), &all, Border::Zeros)?;
    let mut y = m.g.reduce(ReduceKind::Sum, y, &run(3 + n, n))?;
    let out = &offset_ty.dims[2..];
    if let Some(mask) = mask {
        let dims = [
            &[x_ty.dims[0].clone(), parts, kernel.clone()],
            out,
            &[Dim::ONE],
        ]
        .concat();
        let mask = m.g.reshape(mask, &dims)?;
        let mask = m.g.cast_like(mask, y)?;
        y = m.mul(y, mask)?;
    }
    let perm = [vec![0, 1, 3 + n], run(2, 1 + n)].concat();
    let y = m.g.permute(y, &perm)?;
    let in_group = split(&x_ty.dims[1], &groups);
    let y = m.g.reshape(
        y,
        &[
            &x_ty.dims[..1],
            &in_group,
            std::slice::from_ref(&kernel),
            out,
        ]
        .concat(),
    )?;
    let w = m.g.cast_like(w, y)?;
    let w_dims = [
        &split(&w_ty.dims[0], &groups)[..],
        &[w_ty.dims[1].clone(), kernel],
    ]
    .concat();
    let w = m.g.reshape(w, &w_dims)?;
    let product = Contract {
        lhs_batch: vec![1],
        rhs_batch: vec![0],
        lhs_contract: vec![2, 3],
        rhs_contract: vec![2, 3],
        accum: m.g.dtype(y),
        out: m.g.dtype(y),
    };
    // [groups, batch, out.., channels of a group]
    let y = m.g.one(product, &[y, w])?;
    let y = m.g.permute(y, &[vec![1, 0, 2 + n], run(2, n)].concat())?;
    let y = m.g.reshape(
        y,
        &[&[x_ty.dims[0].clone(), w_ty.dims[0].clone()], out].concat(),
    )?;
    let y = m.g.cast(y, x_ty.dtype)?;
    Ok(vec![match cx.optional(3) {
        Some(bias) => add_bias(cx, y, bias)?,
        None => y,
    }])
}

/// Per spatial axis the places that kernel elements read, `[batch, parts, kernel, out..]`.
fn deformed_places(
    m: &mut Math<'_>,
    offset: ValueId,
    parts: &Dim,
    x: &TensorType,
    w: &TensorType,
    s: &Sliding,
) -> OpResult<Vec<ValueId>> {
    let n = x.rank() - 2;
    let dims = m.g.dims(offset);
    let kernel = Dim::product(&w.dims[2..]);
    let count = parts.clone() * kernel.clone() * Dim::from(n);
    let mut fits = (&count - &dims[1]).as_const().is_none_or(|d| d == 0);
    for a in 0..n {
        let padded = x.dims[2 + a].clone() + s.low[a].clone() + s.high[a].clone();
        let room = padded - span(&w.dims[2 + a], s.dilations[a]);
        let count = room.floor_div(&Dim::Const(s.strides[a])) + Dim::ONE;
        fits &= (&count - &dims[2 + a]).as_const().is_none_or(|d| d == 0);
    }
    if !fits {
        return invalid(format!(
            "offsets {} for x {x} and weights {w}",
            m.g.ty(offset)
        ));
    }
    let apart = [
        &dims[..1],
        &[parts.clone(), kernel.clone(), Dim::from(n)],
        &dims[2..],
    ]
    .concat();
    let offset = m.g.widen(offset)?;
    let offset = m.g.reshape(offset, &apart)?;
    let float = m.g.dtype(offset);
    let mut places = vec![];
    for a in 0..n {
        let shift = m.g.pick(offset, 3, &Dim::from(a))?;
        let element = m.g.iota(float, &w.dims[2..], a)?;
        let element = m.g.reshape(element, std::slice::from_ref(&kernel))?;
        let element = m.mul(element, s.dilations[a] as f64)?;
        let element = m.g.unsqueeze(element, &run(1, n))?;
        let window = m.g.iota(float, &dims[2..], a)?;
        let window = m.mul(window, s.strides[a] as f64)?;
        let low = m.dim(&s.low[a], float)?;
        let window = m.sub(window, low)?;
        let place = m.add(element, window)?;
        places.push(m.add(place, shift)?);
    }
    Ok(places)
}

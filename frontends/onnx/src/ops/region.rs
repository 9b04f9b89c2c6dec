//! Operators that cut, place and put together parts of images: `CenterCropPad`, `Col2Im`, `MaxUnpool`, `MaxRoiPool`.

use cupola_ir::ops::{Bounds, Fold, Gather, ReduceKind, Scatter, ScatterKind, Window};
use cupola_ir::{DType, Dim, Scalar, ValueId};

use super::conv::positive;
use super::math::Math;
use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("CenterCropPad", 18, center_crop_pad),
    op("Col2Im", 18, col2im),
    op("MaxUnpool", 9, max_unpool),
    op("MaxRoiPool", 1, max_roi_pool),
];

/// Axes cut or filled with zeros to wanted extents; what is odd falls to the end.
fn center_crop_pad(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (shape, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let wanted = cx.extents(shape, 0)?;
    let axes = match cx.ints_attr("axes")? {
        Some(axes) => cx.axes(&axes, ty.rank())?,
        None => (0..ty.rank()).collect(),
    };
    if wanted.len() != axes.len() {
        return invalid(format!("{} extents for {} axes", wanted.len(), axes.len()));
    }
    let two = Dim::Const(2);
    let (mut starts, mut kept) = (vec![Dim::ZERO; ty.rank()], ty.dims.clone());
    let (mut low, mut high) = (starts.clone(), starts.clone());
    for (a, to) in axes.into_iter().zip(wanted) {
        let missing = to.clone() - ty.dims[a].clone();
        starts[a] = cx.at_least_zero(&-missing.clone()).floor_div(&two);
        kept[a] = cx.smaller(&ty.dims[a], &to);
        let border = cx.at_least_zero(&missing);
        low[a] = border.floor_div(&two);
        high[a] = border - low[a].clone();
    }
    let y = cx.g.slice(x, &starts, &vec![1; ty.rank()], &kept)?;
    let zero = cx.g.number_like(0.0, y)?;
    Ok(vec![cx.g.pad(y, zero, &low, &high)?])
}

/// The elements of every window, `[n, (channel, element), window]`, summed where they stand in an image.
fn col2im(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), image, block) = (cx.tensor_input(0)?, cx.input(1)?, cx.input(2)?);
    let (image, block) = (cx.extents(image, 0)?, cx.extents(block, 1)?);
    let n = image.len();
    if ty.rank() != 3 || block.len() != n {
        return invalid(format!(
            "{ty} in blocks of {block:?} for an image of {image:?}"
        ));
    }
    let (strides, dilations) = (positive(cx, "strides", n)?, positive(cx, "dilations", n)?);
    let pads = cx.ints_attr("pads")?.unwrap_or_else(|| vec![0; 2 * n]);
    if pads.len() != 2 * n || pads.iter().any(|p| *p < 0) {
        return invalid(format!("pads {pads:?} for {n} spatial axes"));
    }
    let border = |a: usize| Dim::Const(pads[a]) + Dim::Const(pads[a + n]);
    let padded: Vec<Dim> = (0..n).map(|a| image[a].clone() + border(a)).collect();
    let counts: Vec<Dim> = (0..n)
        .map(|a| Window::count(&padded[a], &block[a], strides[a], dilations[a]))
        .collect();
    let (elements, windows) = (Dim::product(&block), Dim::product(&counts));
    let rest = |d: &Dim, by: &Dim| Some(d.as_const()? % by.as_const()?.max(1));
    let whole = rest(&ty.dims[1], &elements).is_none_or(|r| r == 0);
    if !whole || (&windows - &ty.dims[2]).as_const().is_some_and(|d| d != 0) {
        return invalid(format!("{ty} are not blocks of {block:?} over {image:?}"));
    }
    let lead = [ty.dims[0].clone(), ty.dims[1].floor_div(&elements)];
    let y = cx.g.reshape(x, &[&lead, &block[..], &counts].concat())?;
    let mut perm = vec![0, 1];
    perm.extend(2 + n..2 + 2 * n);
    perm.extend(2..2 + n);
    let y = cx.g.permute(y, &perm)?;
    let fold = Fold {
        axes: (2..2 + n).collect(),
        sizes: block,
        strides,
        dilations,
        dims: [&lead, &padded[..]].concat(),
    };
    let y = cx.g.one(fold, &[y])?;
    let low = pads[..n].iter().map(|p| Dim::Const(*p));
    let starts: Vec<Dim> = [Dim::ZERO, Dim::ZERO].into_iter().chain(low).collect();
    let dims = [&lead, &image[..]].concat();
    Ok(vec![cx.g.slice(y, &starts, &vec![1; n + 2], &dims)?])
}

/// Elements put back where a pooling found them. Positions count in the extents that follow from the attributes; a
/// stated shape only adds zeros after them.
fn max_unpool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (index, index_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let Some(kernel) = cx.ints_attr("kernel_shape")? else {
        return invalid("attribute 'kernel_shape' is missing");
    };
    let n = kernel.len();
    if ty.rank() != n + 2 || index_ty.rank() != ty.rank() || !index_ty.dtype.is_int() {
        return invalid(format!("{ty} at {index_ty} with kernel_shape {kernel:?}"));
    }
    let strides = positive(cx, "strides", n)?;
    let pads = cx.ints_attr("pads")?.unwrap_or_else(|| vec![0; 2 * n]);
    if pads.len() != 2 * n {
        return invalid(format!("pads {pads:?} for {n} spatial axes"));
    }
    let mut dims = ty.dims[..2].to_vec();
    for a in 0..n {
        let reach = (ty.dims[2 + a].clone() - Dim::ONE) * Dim::Const(strides[a]);
        let border = Dim::Const(pads[a]) + Dim::Const(pads[a + n]);
        dims.push(cx.at_least_zero(&(reach + Dim::Const(kernel[a]) - border)));
    }
    let (len, total) = (ty.len(), Dim::product(&dims));
    let zero = cx.g.number_like(0.0, x)?;
    let empty = cx.g.broadcast_to(zero, std::slice::from_ref(&total))?;
    let x = cx.g.reshape(x, std::slice::from_ref(&len))?;
    let index = cx.g.cast(index, DType::I64)?;
    let index = cx.g.reshape(index, &[len])?;
    let put = Scatter {
        axes: vec![0],
        batch: 0,
        kind: ScatterKind::Set,
        bounds: Bounds::Check,
    };
    let y = cx.g.one(put, &[empty, x, index])?;
    let y = cx.g.reshape(y, &dims)?;
    let Some(shape) = cx.optional(2) else {
        return Ok(vec![y]);
    };
    let shape = cx.extents(shape, 0)?;
    if shape.len() != dims.len() {
        return invalid(format!("a result of {shape:?} for {ty}"));
    }
    let missing = shape.iter().zip(&dims).map(|(s, d)| s.clone() - d.clone());
    let high: Vec<Dim> = missing.collect();
    if high.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) {
        return invalid(format!("a result of {shape:?}, {dims:?} are needed"));
    }
    let low = vec![Dim::ZERO; high.len()];
    Ok(vec![cx.g.pad(y, zero, &low, &high)?])
}

/// The largest element of each bin of each region (a row of batch entry, x1, y1, x2, y2); 0 for a bin without elements.
fn max_roi_pool(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (rois, roi_ty)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let bins = cx.ints_attr("pooled_shape")?.unwrap_or_default();
    let bad_bins = bins.len() != 2 || bins.iter().any(|n| *n < 1);
    if bad_bins || ty.rank() != 4 || roi_ty.rank() != 2 || !roi_ty.dtype.is_float() {
        return invalid(format!("x {ty}, regions {roi_ty}, pooled_shape {bins:?}"));
    }
    let scale = cx.float_or("spatial_scale", 1.0)?;
    let mut m = Math { g: cx.g };
    let entry = m.g.pick(rois, 1, &Dim::ZERO)?;
    let entry = m.g.cast(entry, DType::I64)?;
    let take = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Check,
    };
    let mut y = m.g.one(take, &[x, entry])?;
    // One axis after the other: [regions, channels, height, width] to [.., width bins] to [.., bins].
    for (axis, ends, bins) in [(3, [1, 3], bins[1]), (2, [2, 4], bins[0])] {
        let inside = bin_members(&mut m, rois, ends, scale, bins, &ty.dims[axis])?;
        let apart = m.g.unsqueeze(y, &[axis])?;
        let mut dims = vec![Dim::ONE; 5];
        let own = m.g.dims(inside);
        (dims[0], dims[axis], dims[axis + 1]) = (own[0].clone(), own[1].clone(), own[2].clone());
        let inside = m.g.reshape(inside, &dims)?;
        let kept = m.select(inside, apart, f64::NEG_INFINITY)?;
        y = m.g.reduce(ReduceKind::Max, kept, &[axis + 1])?;
    }
    let none = m.eq(y, f64::NEG_INFINITY)?;
    Ok(vec![m.select(none, 0.0, y)?])
}

/// Which elements of an axis of extent `n` each bin of each region has: bool `[regions, bins, n]`.
fn bin_members(
    m: &mut Math<'_>,
    rois: ValueId,
    ends: [i64; 2],
    scale: f64,
    bins: i64,
    n: &Dim,
) -> OpResult<ValueId> {
    let end = |m: &mut Math<'_>, column: i64| -> OpResult<ValueId> {
        let x = m.g.pick(rois, 1, &Dim::Const(column))?;
        let x = m.g.widen(x)?;
        let x = m.mul(x, scale)?;
        // Halves are rounded away from zero; regions have no negative ends.
        let x = m.add(x, 0.5)?;
        let x = m.unary(Scalar::Floor, x)?;
        Ok(m.g.unsqueeze(x, &[1, 2])?)
    };
    let (first, last) = (end(m, ends[0])?, end(m, ends[1])?);
    let extent = m.sub(last, first)?;
    let extent = m.add(extent, 1.0)?;
    let extent = m.max(extent, 1.0)?;
    let bin = m.div(extent, bins as f64)?;
    let float = m.g.dtype(bin);
    let k = m.g.iota(float, &[Dim::Const(bins), Dim::ONE], 0)?;
    let low = m.mul(k, bin)?;
    let low = m.unary(Scalar::Floor, low)?;
    let low = m.add(low, first)?;
    let next = m.add(k, 1.0)?;
    let high = m.mul(next, bin)?;
    let high = m.unary(Scalar::Ceil, high)?;
    let high = m.add(high, first)?;
    let at = m.g.iota(float, std::slice::from_ref(n), 0)?;
    let after = m.le(low, at)?;
    let before = m.lt(at, high)?;
    m.and(after, before)
}

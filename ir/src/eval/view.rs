//! Ops that move elements: views, pads, joins, windows, choices.

// One macro body serves cells that are plain arrays and cells that are strings.
#![allow(clippy::clone_on_copy)]

use super::cells::{Cell, as_rows, for_cell, from_rows, is_block, strided, strides};
use crate::convert::{self, Lanes};
use crate::dim::Dim;
use crate::dtype::{Class, DType};
use crate::ops::{Broadcast, Concat, Fold, Pad, Permute, Reshape, Slice, Window};
use crate::tensor::Tensor;

type Result<T, E = String> = std::result::Result<T, E>;

/// Extents that are constants by now and not negative.
pub(super) fn extents(dims: &[Dim]) -> Result<Vec<usize>> {
    let one = |d: &Dim| {
        let c = d
            .as_const()
            .ok_or_else(|| format!("extent {d} is not known"))?;
        usize::try_from(c).map_err(|_| format!("extent {c} is negative"))
    };
    dims.iter().map(one).collect()
}

fn ints(dims: &[Dim]) -> Result<Vec<i64>> {
    let one = |d: &Dim| d.as_const().ok_or_else(|| format!("size {d} is not known"));
    dims.iter().map(one).collect()
}

fn made(t: Option<Tensor>) -> Tensor {
    t.unwrap_or_else(|| unreachable!("bug: the count of elements was checked"))
}

/// A strided view of a tensor as a dense tensor.
pub(super) fn view(
    x: &Tensor,
    shape: &[usize],
    strides: &[isize],
    offset: isize,
) -> Result<Tensor> {
    for_cell!(x.dtype(), T => {
        let cells = strided(&<T as Cell>::of(x), shape, strides, offset)?;
        Ok(made(T::tensor(cells, x.dtype(), shape.to_vec())))
    })
}

pub(super) fn reshape(p: &Reshape, x: &Tensor) -> Result<Tensor> {
    let shape = extents(&p.dims)?;
    let len = shape.iter().try_fold(1usize, |a, b| a.checked_mul(*b));
    if len != Some(x.len()) {
        return Err(format!(
            "{} elements of {:?} do not fill {shape:?}",
            x.len(),
            x.shape()
        ));
    }
    if is_block(x.dtype()) && shape.last() != x.shape().last() {
        return Err(format!("{} keeps its innermost extent", x.dtype()));
    }
    Ok(made(x.reshaped(shape)))
}

pub(super) fn permute(p: &Permute, x: &Tensor) -> Result<Tensor> {
    let own = strides(x.shape());
    let shape: Vec<usize> = p.perm.iter().map(|a| x.shape()[*a]).collect();
    let strides: Vec<isize> = p.perm.iter().map(|a| own[*a]).collect();
    if is_block(x.dtype()) {
        return Err(format!("{} has no reordered axes", x.dtype()));
    }
    view(x, &shape, &strides, 0)
}

pub(super) fn broadcast(p: &Broadcast, x: &Tensor) -> Result<Tensor> {
    let shape = extents(&p.dims)?;
    if x.shape().iter().zip(&shape).any(|(a, b)| *a != 1 && a != b) {
        return Err(format!(
            "extents {:?} do not broadcast to {shape:?}",
            x.shape()
        ));
    }
    let own = strides(x.shape());
    let repeated = |axis: usize| if x.shape()[axis] == 1 { 0 } else { own[axis] };
    let strides: Vec<isize> = (0..shape.len()).map(repeated).collect();
    if is_block(x.dtype()) && x.shape().last() != shape.last() {
        return Err(format!("{} keeps its innermost extent", x.dtype()));
    }
    let rows = as_rows(x).ok_or("bad block tensor")?;
    let mut shape = shape;
    if let (true, Some(inner)) = (is_block(x.dtype()), shape.last_mut()) {
        *inner = rows.shape()[rows.shape().len() - 1];
        let strides = self::strides(rows.shape())
            .iter()
            .zip(x.shape())
            .map(|(s, n)| if *n == 1 { 0 } else { *s })
            .collect::<Vec<_>>();
        return Ok(made(from_rows(
            view(&rows, &shape, &strides, 0)?,
            x.dtype(),
        )));
    }
    view(x, &shape, &strides, 0)
}

pub(super) fn slice(p: &Slice, x: &Tensor) -> Result<Tensor> {
    let (mut starts, mut shape) = (ints(&p.starts)?, extents(&p.dims)?);
    for axis in 0..shape.len() {
        let (n, start, step) = (
            x.shape()[axis] as i128,
            i128::from(starts[axis]),
            i128::from(p.steps[axis]),
        );
        let last = start + (shape[axis] as i128 - 1) * step;
        if shape[axis] > 0 && !((0..n).contains(&start) && (0..n).contains(&last)) {
            return Err(format!(
                "axis {axis}: indices {start} to {last} are outside 0..{n}"
            ));
        }
    }
    let rows = as_rows(x).ok_or("bad block tensor")?;
    if is_block(x.dtype()) {
        let inner = shape.len() - 1;
        if starts[inner] != 0 || p.steps[inner] != 1 || shape[inner] != x.shape()[inner] {
            return Err(format!("{} is sliced along outer axes only", x.dtype()));
        }
        shape[inner] = rows.shape()[inner];
    }
    let own = strides(rows.shape());
    // An empty result addresses nothing, wherever it starts.
    if shape.contains(&0) {
        starts.fill(0);
    }
    let offset = starts
        .iter()
        .zip(&own)
        .map(|(s, stride)| *s as isize * stride)
        .sum();
    let steps: Vec<isize> = p
        .steps
        .iter()
        .zip(&own)
        .map(|(s, o)| (*s as isize).saturating_mul(*o))
        .collect();
    let out = view(&rows, &shape, &steps, offset)?;
    Ok(made(from_rows(out, x.dtype())))
}

pub(super) fn pad_shape(p: &Pad, x: &Tensor) -> Result<Vec<usize>> {
    let (low, high) = (extents(&p.low)?, extents(&p.high)?);
    let sum = |axis: usize| {
        low[axis]
            .checked_add(x.shape()[axis])?
            .checked_add(high[axis])
    };
    let shape: Option<Vec<usize>> = (0..x.shape().len()).map(sum).collect();
    shape.ok_or_else(|| "extents overflow".into())
}

pub(super) fn pad(p: &Pad, x: &Tensor, value: &Tensor) -> Result<Tensor> {
    if is_block(x.dtype()) {
        return Err(format!("{} has no border", x.dtype()));
    }
    let shape = pad_shape(p, x)?;
    let low = extents(&p.low)?;
    let own = strides(&shape);
    let offset: isize = low.iter().zip(&own).map(|(l, s)| *l as isize * s).sum();
    for_cell!(x.dtype(), T => {
        let fill = T::of(value).first().cloned().ok_or("the value is empty")?;
        let mut out = vec![fill; shape.iter().product()];
        let source = T::of(x);
        let (inner, outer) = x.shape().split_last().map_or((1, &[][..]), |(n, o)| (*n, o));
        if inner > 0 {
            let rows = super::cells::offsets(outer, &own[..outer.len()]);
            for (row, at) in source.chunks_exact(inner).zip(rows) {
                let at = (at + offset) as usize;
                out[at..at + inner].clone_from_slice(row);
            }
        }
        Ok(made(T::tensor(out, x.dtype(), shape)))
    })
}

pub(super) fn concat_shape(p: &Concat, xs: &[&Tensor]) -> Result<Vec<usize>> {
    let mut shape = xs[0].shape().to_vec();
    for x in &xs[1..] {
        let same = (0..shape.len()).all(|a| a == p.axis || shape[a] == x.shape()[a]);
        if !same {
            return Err(format!(
                "extents {:?} and {:?} differ outside axis {}",
                xs[0].shape(),
                x.shape(),
                p.axis
            ));
        }
    }
    let total = xs
        .iter()
        .try_fold(0usize, |sum, x| sum.checked_add(x.shape()[p.axis]));
    shape[p.axis] = total.ok_or("extents overflow")?;
    Ok(shape)
}

pub(super) fn concat(p: &Concat, xs: &[&Tensor]) -> Result<Tensor> {
    let dtype = xs[0].dtype();
    concat_shape(p, xs)?;
    if is_block(dtype) && p.axis + 1 == xs[0].shape().len() {
        return Err(format!("{dtype} is joined along outer axes only"));
    }
    let rows: Option<Vec<Tensor>> = xs.iter().map(|x| as_rows(x)).collect();
    let rows = rows.ok_or("bad block tensor")?;
    let shape = concat_shape(p, &rows.iter().collect::<Vec<_>>())?;
    let outer: usize = shape[..p.axis].iter().product();
    let out = for_cell!(rows[0].dtype(), T => {
        let sources: Vec<_> = rows.iter().map(|x| T::of(x)).collect();
        let chunks: Vec<usize> = rows.iter().map(|x| x.shape()[p.axis..].iter().product()).collect();
        let mut out = Vec::with_capacity(shape.iter().product());
        for i in 0..outer {
            for (source, n) in sources.iter().zip(&chunks) {
                out.extend_from_slice(&source[i * n..(i + 1) * n]);
            }
        }
        made(T::tensor(out, rows[0].dtype(), shape))
    });
    Ok(made(from_rows(out, dtype)))
}

/// Extents and strides of the windows of `x`.
pub(super) fn windows(p: &Window, shape: &[usize]) -> Result<(Vec<usize>, Vec<isize>)> {
    let own = strides(shape);
    let (mut out, mut steps) = (shape.to_vec(), own.clone());
    for (k, &axis) in p.axes.iter().enumerate() {
        let (n, size) = (Dim::from(shape[axis]), &p.sizes[k]);
        let count = Window::count(&n, size, p.strides[k], p.dilations[k]);
        out[axis] = extents(&[count])?[0];
        steps[axis] = own[axis].saturating_mul(p.strides[k] as isize);
        out.push(extents(std::slice::from_ref(size))?[0]);
        steps.push(own[axis].saturating_mul(p.dilations[k] as isize));
    }
    Ok((out, steps))
}

pub(super) fn window(p: &Window, x: &Tensor) -> Result<Tensor> {
    if is_block(x.dtype()) {
        return Err(format!("{} has no windows", x.dtype()));
    }
    let (shape, steps) = windows(p, x.shape())?;
    view(x, &shape, &steps, 0)
}

pub(super) fn fold(p: &Fold, x: &Tensor) -> Result<Tensor> {
    let shape = extents(&p.dims)?;
    let window = Window {
        axes: p.axes.clone(),
        sizes: p.sizes.clone(),
        strides: p.strides.clone(),
        dilations: p.dilations.clone(),
    };
    let (windows, steps) = windows(&window, &shape)?;
    if windows != x.shape() {
        return Err(format!(
            "extents {:?} are not the windows {windows:?} of {shape:?}",
            x.shape()
        ));
    }
    let len = shape.iter().product();
    let at = super::cells::offsets(&windows, &steps);
    let sum = match convert::lanes(x).ok_or("takes numbers")? {
        Lanes::F(v) => {
            let mut out = vec![0.0; len];
            at.iter().zip(v).for_each(|(i, x)| out[*i as usize] += x);
            Lanes::F(out)
        }
        Lanes::I(v) => {
            let mut out = vec![0i64; len];
            for (i, x) in at.iter().zip(v) {
                out[*i as usize] = out[*i as usize].wrapping_add(x);
            }
            Lanes::I(out)
        }
        Lanes::U(v) => {
            let mut out = vec![0u64; len];
            for (i, x) in at.iter().zip(v) {
                out[*i as usize] = out[*i as usize].wrapping_add(x);
            }
            Lanes::U(out)
        }
    };
    Ok(made(convert::tensor(&sum, x.dtype(), &shape)))
}

/// `condition ? x : y` on any dtype.
pub(super) fn select(condition: &Tensor, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let choose = condition.bytes();
    for_cell!(x.dtype(), T => {
        let (a, b) = (T::of(x), T::of(y));
        let pairs = a.iter().zip(b.iter()).zip(choose);
        let out = pairs.map(|((x, y), c)| if *c != 0 { x.clone() } else { y.clone() });
        Ok(made(T::tensor(out.collect(), x.dtype(), x.shape().to_vec())))
    })
}

/// Bytes of a tensor of this dtype and shape for the limit check; strings count as empty ones.
pub(super) fn bytes_needed(dtype: DType, shape: &[usize]) -> Option<usize> {
    match dtype.class() {
        Class::String => shape
            .iter()
            .try_fold(size_of::<String>(), |p, d| p.checked_mul(*d)),
        _ => Tensor::size_of(dtype, shape),
    }
}

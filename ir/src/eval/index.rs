//! Gather and scatter.

// One macro body serves cells that are plain arrays and cells that are strings.
#![allow(clippy::clone_on_copy)]

use super::cells::{Cell, as_rows, for_cell, from_rows, is_block, offsets, strides};
use crate::convert::{self, Lanes};
use crate::ops::{Bounds, Gather, Scatter, ScatterKind};
use crate::tensor::Tensor;

type Result<T, E = String> = std::result::Result<T, E>;

/// Where each index tuple points: the offset of its window in data, or nothing when it is left out.
struct Targets {
    bases: Vec<Option<usize>>,
    /// Offsets of the elements of a window.
    window: Vec<isize>,
}

fn targets(
    shape: &[usize],
    axes: &[usize],
    batch: usize,
    bounds: Bounds,
    indices: &[&Tensor],
) -> Result<Targets> {
    let own = strides(shape);
    let lists: Option<Vec<Vec<i64>>> = indices.iter().map(|t| t.to_vec::<i64>()).collect();
    let lists = lists.ok_or("indices are i64")?;
    let count = indices[0].len();
    let per_batch: usize = indices[0].shape()[batch..].iter().product();
    let batch_stride: usize = shape[batch..].iter().product();
    let mut bases = Vec::with_capacity(count);
    for at in 0..count {
        let mut base = Some(at / per_batch.max(1) * batch_stride);
        for (list, axis) in lists.iter().zip(axes) {
            let (n, i) = (shape[*axis] as i64, list[at]);
            let i = match bounds {
                _ if (0..n).contains(&i) => Some(i),
                Bounds::Check => {
                    return Err(format!("index {i} is outside axis {axis} of extent {n}"));
                }
                Bounds::Clamp if n > 0 => Some(i.clamp(0, n - 1)),
                Bounds::Clamp | Bounds::Skip => None,
            };
            base = base
                .zip(i)
                .map(|(b, i)| b + i as usize * own[*axis] as usize);
        }
        bases.push(base);
    }
    let kept: Vec<usize> = (batch..shape.len()).filter(|a| !axes.contains(a)).collect();
    let extents: Vec<usize> = kept.iter().map(|a| shape[*a]).collect();
    let steps: Vec<isize> = kept.iter().map(|a| own[*a]).collect();
    Ok(Targets {
        bases,
        window: offsets(&extents, &steps),
    })
}

pub(super) fn gather(p: &Gather, data: &Tensor, indices: &[&Tensor]) -> Result<Tensor> {
    if is_block(data.dtype()) && p.axes.contains(&(data.shape().len() - 1)) {
        return Err(format!("{} is indexed along outer axes only", data.dtype()));
    }
    let rows = as_rows(data).ok_or("bad block tensor")?;
    let t = targets(rows.shape(), &p.axes, p.batch, p.bounds, indices)?;
    let kept = (p.batch..rows.shape().len()).filter(|a| !p.axes.contains(a));
    let shape: Vec<usize> = indices[0]
        .shape()
        .iter()
        .copied()
        .chain(kept.map(|a| rows.shape()[a]))
        .collect();
    let dense = t.window.iter().enumerate().all(|(i, o)| i as isize == *o);
    let out = for_cell!(rows.dtype(), T => {
        let source = T::of(&rows);
        let mut out: Vec<T> = Vec::with_capacity(t.bases.len() * t.window.len());
        for base in &t.bases {
            match base {
                _ if t.window.is_empty() => {}
                None => out.extend(std::iter::repeat_n(T::zero(), t.window.len())),
                Some(b) if dense => out.extend_from_slice(&source[*b..b + t.window.len()]),
                Some(b) => out.extend(t.window.iter().map(|o| source[b + *o as usize].clone())),
            }
        }
        T::tensor(out, rows.dtype(), shape)
    });
    out.and_then(|t| from_rows(t, data.dtype()))
        .ok_or_else(|| "bad extents".into())
}

pub(super) fn scatter(
    p: &Scatter,
    data: &Tensor,
    updates: &Tensor,
    indices: &[&Tensor],
) -> Result<Tensor> {
    if is_block(data.dtype()) {
        return Err(format!("{} cannot be written by index", data.dtype()));
    }
    let t = targets(data.shape(), &p.axes, p.batch, p.bounds, indices)?;
    let n = t.window.len().max(1);
    // Every update with the offset it meets, in row-major order.
    let meets = || {
        t.bases.iter().enumerate().flat_map(|(i, base)| {
            let base = *base;
            let window = t.window.iter().enumerate();
            window.filter_map(move |(w, o)| Some((base? + *o as usize, i * n + w)))
        })
    };
    let shape = data.shape().to_vec();
    if p.kind == ScatterKind::Set {
        return for_cell!(data.dtype(), T => {
            let source = T::of(updates);
            let mut out = T::of(data).into_owned();
            meets().for_each(|(to, from)| out[to] = source[from].clone());
            T::tensor(out, data.dtype(), shape).ok_or_else(|| "bad extents".into())
        });
    }
    macro_rules! combine {
        ($out:expr, $from:expr, $add:expr, $mul:expr, $max:expr, $min:expr) => {{
            let f = match p.kind {
                ScatterKind::Add => $add,
                ScatterKind::Mul => $mul,
                ScatterKind::Max => $max,
                ScatterKind::Set | ScatterKind::Min => $min,
            };
            meets().for_each(|(to, from)| $out[to] = f($out[to], $from[from]));
        }};
    }
    let none = || format!("no {} of {}", p.kind.name(), data.dtype());
    let both = convert::lanes(data).zip(convert::lanes(updates));
    let out = match both.ok_or_else(none)? {
        (Lanes::F(mut out), Lanes::F(from)) => {
            let nan = |keep: fn(f64, f64) -> bool| {
                move |a: f64, b: f64| if a.is_nan() || keep(a, b) { a } else { b }
            };
            let (max, min) = (nan(|a, b| a > b), nan(|a, b| a < b));
            match p.kind {
                ScatterKind::Add => meets().for_each(|(to, i)| out[to] += from[i]),
                ScatterKind::Mul => meets().for_each(|(to, i)| out[to] *= from[i]),
                ScatterKind::Max => meets().for_each(|(to, i)| out[to] = max(out[to], from[i])),
                ScatterKind::Set | ScatterKind::Min => {
                    meets().for_each(|(to, i)| out[to] = min(out[to], from[i]));
                }
            }
            Lanes::F(out)
        }
        (Lanes::I(mut out), Lanes::I(from)) => {
            combine!(
                out,
                from,
                i64::wrapping_add,
                i64::wrapping_mul,
                i64::max,
                i64::min
            );
            Lanes::I(out)
        }
        (Lanes::U(mut out), Lanes::U(from)) => {
            combine!(
                out,
                from,
                u64::wrapping_add,
                u64::wrapping_mul,
                u64::max,
                u64::min
            );
            Lanes::U(out)
        }
        _ => return Err(none()),
    };
    convert::encode(&out, data.dtype(), &shape, false).ok_or_else(none)
}

//! Reductions, positions of extremes, sorting.

// One macro body serves cells that are plain arrays and cells that are strings.
#![allow(clippy::clone_on_copy)]

use super::cells::{Cell, for_cell, strided, strides};
use crate::convert::{self, Lanes};
use crate::dtype::DType;
use crate::ops::{ArgReduce, Reduce, ReduceKind, Sort};
use crate::tensor::Tensor;
use std::cmp::Ordering;

type Result<T, E = String> = std::result::Result<T, E>;

/// The elements with the kept axes first: rows to be reduced one after another.
fn rows<T: Clone>(x: &[T], shape: &[usize], kept: &[usize], reduced: &[usize]) -> Result<Vec<T>> {
    let own = strides(shape);
    let axes = || kept.iter().chain(reduced);
    let extents: Vec<usize> = axes().map(|a| shape[*a]).collect();
    let steps: Vec<isize> = axes().map(|a| own[*a]).collect();
    strided(x, &extents, &steps, 0)
}

fn fold_rows<T: Copy>(
    x: &[T],
    count: usize,
    len: usize,
    start: T,
    f: impl Fn(T, T) -> T,
) -> Vec<T> {
    if len == 0 {
        return vec![start; count];
    }
    x.chunks_exact(len)
        .map(|row| row.iter().fold(start, |a, b| f(a, *b)))
        .collect()
}

/// The smaller and the larger with NaN winning.
fn extreme(kind: ReduceKind) -> fn(f64, f64) -> f64 {
    match kind {
        ReduceKind::Max => |a, b| if a.is_nan() || a > b { a } else { b },
        _ => |a, b| if a.is_nan() || a < b { a } else { b },
    }
}

pub(super) fn reduce(p: &Reduce, x: &Tensor) -> Result<Tensor> {
    let kept: Vec<usize> = (0..x.shape().len())
        .filter(|a| !p.axes.contains(a))
        .collect();
    let shape: Vec<usize> = kept.iter().map(|a| x.shape()[*a]).collect();
    let len: usize = p.axes.iter().map(|a| x.shape()[*a]).product();
    let count: usize = shape.iter().product();
    let range = x.dtype().int_range();
    let out = match convert::lanes(x).ok_or("takes numbers")? {
        Lanes::F(v) => {
            let v = rows(&v, x.shape(), &kept, &p.axes)?;
            Lanes::F(match p.kind {
                ReduceKind::Sum => fold_rows(&v, count, len, 0.0, |a, b| a + b),
                ReduceKind::Prod => fold_rows(&v, count, len, 1.0, |a, b| a * b),
                ReduceKind::Max => fold_rows(&v, count, len, f64::NEG_INFINITY, extreme(p.kind)),
                ReduceKind::Min => fold_rows(&v, count, len, f64::INFINITY, extreme(p.kind)),
            })
        }
        Lanes::I(v) => {
            let v = rows(&v, x.shape(), &kept, &p.axes)?;
            let (lo, hi) = range.map_or((i64::MIN, i64::MAX), |(a, b)| (a as i64, b as i64));
            Lanes::I(match p.kind {
                ReduceKind::Sum => fold_rows(&v, count, len, 0, i64::wrapping_add),
                ReduceKind::Prod => fold_rows(&v, count, len, 1, i64::wrapping_mul),
                ReduceKind::Max => fold_rows(&v, count, len, lo, i64::max),
                ReduceKind::Min => fold_rows(&v, count, len, hi, i64::min),
            })
        }
        Lanes::U(v) => {
            let v = rows(&v, x.shape(), &kept, &p.axes)?;
            let hi = range.map_or(u64::MAX, |(_, b)| b as u64);
            Lanes::U(match p.kind {
                ReduceKind::Sum => fold_rows(&v, count, len, 0, u64::wrapping_add),
                ReduceKind::Prod => fold_rows(&v, count, len, 1, u64::wrapping_mul),
                ReduceKind::Max => fold_rows(&v, count, len, 0, u64::max),
                ReduceKind::Min => fold_rows(&v, count, len, hi, u64::min),
            })
        }
    };
    // Sums and products of float8 and float4 overflow as a cast without saturation would.
    convert::encode(&out, x.dtype(), &shape, false)
        .ok_or_else(|| format!("no result of {}", x.dtype()))
}

/// Order of numbers with NaN largest.
fn order_f(a: &f64, b: &f64) -> Ordering {
    a.partial_cmp(b)
        .unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Position of the most extreme element of each row; `beats` says whether the second is more extreme.
fn positions<T>(x: &[T], len: usize, last: bool, beats: impl Fn(&T, &T) -> Ordering) -> Vec<i64> {
    x.chunks_exact(len)
        .map(|row| {
            let best = (1..len).fold(0, |best, i| match beats(&row[best], &row[i]) {
                Ordering::Less => i,
                Ordering::Equal if last => i,
                _ => best,
            });
            best as i64
        })
        .collect()
}

pub(super) fn arg_reduce(p: &ArgReduce, x: &Tensor) -> Result<Tensor> {
    let kept: Vec<usize> = (0..x.shape().len()).filter(|a| *a != p.axis).collect();
    let shape: Vec<usize> = kept.iter().map(|a| x.shape()[*a]).collect();
    let len = x.shape()[p.axis];
    if len == 0 {
        return Err("the reduced axis has no elements".into());
    }
    let max = p.kind == ReduceKind::Max;
    let turn = |o: Ordering| if max { o } else { o.reverse() };
    let out = match convert::lanes(x).ok_or("takes numbers")? {
        Lanes::F(v) => {
            let v = rows(&v, x.shape(), &kept, &[p.axis])?;
            positions(&v, len, p.last, |a, b| match (a.is_nan(), b.is_nan()) {
                (false, false) => turn(order_f(a, b)),
                (a, b) => a.cmp(&b),
            })
        }
        Lanes::I(v) => {
            let v = rows(&v, x.shape(), &kept, &[p.axis])?;
            positions(&v, len, p.last, |a, b| turn(a.cmp(b)))
        }
        Lanes::U(v) => {
            let v = rows(&v, x.shape(), &kept, &[p.axis])?;
            positions(&v, len, p.last, |a, b| turn(a.cmp(b)))
        }
    };
    Tensor::from_slice(&shape, &out).ok_or_else(|| "bad extents".into())
}

/// The permutation that sorts each row, stable.
fn sorted<T>(
    x: &[T],
    len: usize,
    descending: bool,
    order: impl Fn(&T, &T) -> Ordering,
) -> Vec<usize> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(len.max(1)) {
        let mut index: Vec<usize> = (0..row.len()).collect();
        index.sort_by(|a, b| {
            let o = order(&row[*a], &row[*b]);
            if descending { o.reverse() } else { o }
        });
        out.extend(index);
    }
    out
}

/// Sorted values and positions.
pub(super) fn sort(p: &Sort, x: &Tensor) -> Result<[Tensor; 2]> {
    let rank = x.shape().len();
    let kept: Vec<usize> = (0..rank).filter(|a| *a != p.axis).collect();
    let len = x.shape()[p.axis];
    let order = match convert::lanes(x).ok_or("takes numbers")? {
        Lanes::F(v) => sorted(
            &rows(&v, x.shape(), &kept, &[p.axis])?,
            len,
            p.descending,
            order_f,
        ),
        Lanes::I(v) => sorted(
            &rows(&v, x.shape(), &kept, &[p.axis])?,
            len,
            p.descending,
            i64::cmp,
        ),
        Lanes::U(v) => sorted(
            &rows(&v, x.shape(), &kept, &[p.axis])?,
            len,
            p.descending,
            u64::cmp,
        ),
    };
    // Rows hold the sorted axis innermost; `back` puts it where it was.
    let front: Vec<usize> = kept
        .iter()
        .chain([&p.axis])
        .map(|a| x.shape()[*a])
        .collect();
    let own = strides(&front);
    let back: Vec<isize> = (0..rank)
        .map(|a| match kept.iter().position(|k| *k == a) {
            Some(at) => own[at],
            None => own[rank - 1],
        })
        .collect();
    let indices: Vec<i64> = order.iter().map(|i| *i as i64).collect();
    let indices = Tensor::from_slice(x.shape(), &strided(&indices, x.shape(), &back, 0)?);
    let values = for_cell!(x.dtype(), T => {
        let v = rows(&T::of(x), x.shape(), &kept, &[p.axis])?;
        let picked: Vec<T> = order
            .iter()
            .enumerate()
            .map(|(at, i)| v[at / len.max(1) * len + i].clone())
            .collect();
        T::tensor(strided(&picked, x.shape(), &back, 0)?, x.dtype(), x.shape().to_vec())
    });
    match (values, indices) {
        (Some(v), Some(i)) => Ok([v, i]),
        _ => Err("bad extents".into()),
    }
}

/// `out[i] = i[axis]`.
pub(super) fn iota(dtype: DType, shape: &[usize], axis: usize) -> Result<Tensor> {
    let n = shape[axis];
    let counts = (0..n as i64).collect::<Vec<_>>();
    let mut steps = vec![0; shape.len()];
    steps[axis] = 1;
    let all = strided(&counts, shape, &steps, 0)?;
    let lanes = convert::convert(Lanes::I(all), dtype).ok_or("needs a number type")?;
    convert::encode(&lanes, dtype, shape, true).ok_or_else(|| "needs a number type".into())
}

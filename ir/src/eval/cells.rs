//! Elements as opaque cells, for ops that move them without looking: one generic function serves every dtype.
//!
//! A cell is 1, 2, 4 or 8 bytes or a string; sub-byte elements are unpacked to a byte each.

use crate::convert;
use crate::dtype::{Class, DType};
use crate::tensor::Tensor;
use bytes::Bytes;
use std::borrow::Cow;

/// Storage of one element.
pub(super) trait Cell: Clone {
    /// The elements of a tensor of a dtype that [`for_cell`] maps to this cell.
    fn of(t: &Tensor) -> Cow<'_, [Self]>;
    /// The tensor of these elements; the count matches the shape.
    fn tensor(cells: Vec<Self>, dtype: DType, shape: Vec<usize>) -> Option<Tensor>;
    /// Zero, false or the empty string.
    fn zero() -> Self;
}

macro_rules! cell {
    ($n:literal, $of:expr, $bytes:expr) => {
        impl Cell for [u8; $n] {
            fn of(t: &Tensor) -> Cow<'_, [Self]> {
                $of(t)
            }
            fn tensor(cells: Vec<Self>, dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
                Tensor::new(dtype, shape, Bytes::from($bytes(cells, dtype)))
            }
            fn zero() -> Self {
                [0; $n]
            }
        }
    };
}

fn bytes_of<const N: usize>(t: &Tensor) -> Cow<'_, [[u8; N]]> {
    Cow::Borrowed(t.bytes().as_chunks::<N>().0)
}

fn flat<const N: usize>(cells: Vec<[u8; N]>, _: DType) -> Vec<u8> {
    cells.into_flattened()
}

fn unpacked(t: &Tensor) -> Cow<'_, [[u8; 1]]> {
    match t.dtype().bits() {
        bits @ (2 | 4) => {
            let codes = convert::unpack(t.bytes(), bits, t.len());
            Cow::Owned(codes.into_iter().map(|c| [c]).collect())
        }
        _ => bytes_of(t),
    }
}

fn packed(cells: Vec<[u8; 1]>, dtype: DType) -> Vec<u8> {
    match dtype.bits() {
        bits @ (2 | 4) => convert::pack(cells.into_flattened(), bits),
        _ => cells.into_flattened(),
    }
}

cell!(1, unpacked, packed);
cell!(2, bytes_of, flat);
cell!(4, bytes_of, flat);
cell!(8, bytes_of, flat);

impl Cell for String {
    fn of(t: &Tensor) -> Cow<'_, [String]> {
        Cow::Borrowed(t.strings().unwrap_or(&[]))
    }
    fn tensor(cells: Vec<String>, _: DType, shape: Vec<usize>) -> Option<Tensor> {
        Tensor::from_strings(shape, cells)
    }
    fn zero() -> String {
        String::new()
    }
}

/// Evaluates `$body` with `$T` as the cell type of a dtype (block types count as bytes).
macro_rules! for_cell {
    ($dtype:expr, $T:ident => $body:expr) => {
        match ($dtype.class(), $dtype.bits()) {
            (crate::dtype::Class::String, _) => {
                type $T = String;
                $body
            }
            (_, 16) => {
                type $T = [u8; 2];
                $body
            }
            (_, 32) => {
                type $T = [u8; 4];
                $body
            }
            (_, 64) => {
                type $T = [u8; 8];
                $body
            }
            _ => {
                type $T = [u8; 1];
                $body
            }
        }
    };
}
pub(super) use for_cell;

/// A tensor of a block format as bytes with the bytes of a row as innermost axis; others as they are.
pub(super) fn as_rows(t: &Tensor) -> Option<Tensor> {
    let DType::Block(format) = t.dtype() else {
        return Some(t.clone());
    };
    let mut shape = t.shape().to_vec();
    let inner = shape.last_mut()?;
    *inner = *inner / format.block_len() * format.block_size();
    Tensor::new(DType::U8, shape, t.shared_bytes()?)
}

/// Undoes [`as_rows`] for a dtype.
pub(super) fn from_rows(t: Tensor, dtype: DType) -> Option<Tensor> {
    let DType::Block(format) = dtype else {
        return Some(t);
    };
    let mut shape = t.shape().to_vec();
    let inner = shape.last_mut()?;
    *inner = *inner / format.block_size() * format.block_len();
    Tensor::new(dtype, shape, t.shared_bytes()?)
}

/// Whether elements of this dtype are stored in blocks.
pub(super) fn is_block(dtype: DType) -> bool {
    dtype.class() == Class::Block
}

/// Row-major strides in elements.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis] as isize);
    }
    strides
}

/// Copies a strided view: `out[i] = source[offset + sum(i * strides)]`, row-major over `shape`.
///
/// # Errors
/// When the view reaches outside the source.
pub(super) fn strided<T: Clone>(
    source: &[T],
    shape: &[usize],
    strides: &[isize],
    offset: isize,
) -> Result<Vec<T>, String> {
    let len = shape.iter().product();
    let mut out = Vec::with_capacity(len);
    if len == 0 {
        return Ok(out);
    }
    let (mut low, mut high) = (offset as i128, offset as i128);
    for (n, s) in shape.iter().zip(strides) {
        let reach = (*n as i128 - 1) * *s as i128;
        low += reach.min(0);
        high += reach.max(0);
    }
    if low < 0 || high >= source.len() as i128 {
        return Err(format!(
            "addresses elements {low} to {high} of {}",
            source.len()
        ));
    }
    let (inner, outer) = shape.split_last().map_or((1, &[][..]), |(n, o)| (*n, o));
    let step = strides.last().copied().unwrap_or(1);
    let mut index = vec![0usize; outer.len()];
    let mut at = offset;
    loop {
        if step == 1 {
            out.extend_from_slice(&source[at as usize..at as usize + inner]);
        } else {
            out.extend((0..inner as isize).map(|i| source[(at + i * step) as usize].clone()));
        }
        // Advances the odometer of outer axes.
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return Ok(out);
            }
            axis -= 1;
            index[axis] += 1;
            // A stride beyond all elements may overflow here; it is taken back before anything is read.
            at = at.wrapping_add(strides[axis]);
            if index[axis] < outer[axis] {
                break;
            }
            at = at.wrapping_sub(strides[axis].wrapping_mul(outer[axis] as isize));
            index[axis] = 0;
        }
    }
}

/// Offsets of the positions of a strided view in row-major order.
pub(super) fn offsets(shape: &[usize], strides: &[isize]) -> Vec<isize> {
    let mut out = vec![0isize];
    if shape.contains(&0) {
        return vec![];
    }
    for (n, s) in shape.iter().zip(strides) {
        out = out
            .iter()
            .flat_map(|base| (0..*n as isize).map(move |i| base + i * s))
            .collect();
    }
    out
}

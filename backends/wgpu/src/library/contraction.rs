//! Contractions of any axes as matrix products: neighbouring axes are joined, the longest are rows and columns, the others batches.

use cupola_ir::DType;
use cupola_ir::ops::Contract;
use cupola_shaders::shader::Epilogue;

use super::matmul::{BatchAxis, InnerAxis, Matmul, Matrix, Reading};
use super::unit::Bound;

/// One axis of a contraction.
#[derive(Clone, Copy)]
struct Axis {
    len: u64,
    lhs: i64,
    rhs: i64,
    out: i64,
}

/// Joins neighbours that step evenly through all operands, and drops axes of length one.
fn merged(axes: Vec<Axis>) -> Vec<Axis> {
    let mut out: Vec<Axis> = Vec::new();
    for axis in axes.into_iter().filter(|axis| axis.len != 1) {
        let len = axis.len as i64;
        let steps = |outer: i64, inner: i64| outer == inner.wrapping_mul(len);
        match out.last_mut() {
            Some(outer)
                if steps(outer.lhs, axis.lhs)
                    && steps(outer.rhs, axis.rhs)
                    && steps(outer.out, axis.out)
                    && outer.len.checked_mul(axis.len).is_some() =>
            {
                *outer = Axis {
                    len: outer.len * axis.len,
                    ..axis
                };
            }
            _ => out.push(axis),
        }
    }
    out
}

/// Takes the longest axis out; a missing one has length 1.
fn take_longest(axes: &mut Vec<Axis>) -> Axis {
    let longest = (0..axes.len()).max_by_key(|&at| axes[at].len);
    longest.map_or(
        Axis {
            len: 1,
            lhs: 0,
            rhs: 0,
            out: 0,
        },
        |at| axes.remove(at),
    )
}

/// The product that a contraction is.
pub(super) fn contraction(
    contract: &Contract,
    operands: &[Bound],
    result: &Bound,
    epilogue: &Epilogue,
) -> Matmul {
    let (lhs, rhs) = (&operands[0], &operands[1]);
    let lhs_free = Contract::free(lhs.dims.len(), &contract.lhs_batch, &contract.lhs_contract);
    let rhs_free = Contract::free(rhs.dims.len(), &contract.rhs_batch, &contract.rhs_contract);
    let mut out_strides = result.strides.iter().copied();
    let mut next = || out_strides.next().unwrap_or(0);
    let batch: Vec<Axis> = contract
        .lhs_batch
        .iter()
        .zip(&contract.rhs_batch)
        .map(|(&l, &r)| Axis {
            len: lhs.dims[l],
            lhs: lhs.strides[l],
            rhs: rhs.strides[r],
            out: next(),
        })
        .collect();
    let rows = lhs_free
        .iter()
        .map(|&l| Axis {
            len: lhs.dims[l],
            lhs: lhs.strides[l],
            rhs: 0,
            out: next(),
        })
        .collect();
    let cols = rhs_free
        .iter()
        .map(|&r| Axis {
            len: rhs.dims[r],
            lhs: 0,
            rhs: rhs.strides[r],
            out: next(),
        })
        .collect();
    let mut inner: Vec<Axis> = contract
        .lhs_contract
        .iter()
        .zip(&contract.rhs_contract)
        .map(|(&l, &r)| Axis {
            len: lhs.dims[l],
            lhs: lhs.strides[l],
            rhs: rhs.strides[r],
            out: 0,
        })
        .collect();
    // Their order is free, but for blocks; in falling strides neighbours are most likely to join.
    if !matches!(rhs.reading, Reading::Blocks(_)) {
        let strides = |axis: &Axis| (axis.lhs.unsigned_abs(), axis.rhs.unsigned_abs());
        inner.sort_by_key(|axis| std::cmp::Reverse(strides(axis)));
    }
    let inner = merged(inner);
    let (mut rows, mut cols) = (merged(rows), merged(cols));
    let (row, col) = (take_longest(&mut rows), take_longest(&mut cols));
    // Further row and column axes are batches in which the other operand repeats.
    let batch = merged(batch).into_iter().chain(rows).chain(cols);
    let single = match inner.as_slice() {
        [] => Axis {
            len: 1,
            lhs: 0,
            rhs: 0,
            out: 0,
        },
        [axis] => *axis,
        _ => Axis {
            len: 0,
            lhs: 0,
            rhs: 0,
            out: 0,
        },
    };
    Matmul {
        rows: row.len,
        cols: col.len,
        inner: inner
            .iter()
            .fold(1, |product: u64, axis| product.saturating_mul(axis.len)),
        inner_axes: match inner.len() {
            0 | 1 => Vec::new(),
            _ => inner
                .iter()
                .map(|axis| InnerAxis {
                    len: axis.len,
                    lhs: axis.lhs,
                    rhs: axis.rhs,
                })
                .collect(),
        },
        batch: batch
            .map(|axis| BatchAxis {
                len: axis.len,
                lhs: axis.lhs,
                rhs: axis.rhs,
                out: axis.out,
            })
            .collect(),
        lhs: Matrix {
            element: lhs.element,
            offset: lhs.offset,
            row_stride: row.lhs,
            col_stride: single.lhs,
        },
        rhs: Matrix {
            element: rhs.element,
            offset: rhs.offset,
            row_stride: single.rhs,
            col_stride: col.rhs,
        },
        out: Matrix {
            element: result.element,
            offset: result.offset,
            row_stride: row.out,
            col_stride: col.out,
        },
        readings: [lhs.reading, rhs.reading],
        narrow: match rhs.reading {
            Reading::Blocks(_) => contract.accum == DType::I32,
            Reading::Stored | Reading::Rounded(_) => true,
        },
        epilogue: epilogue.clone(),
    }
}

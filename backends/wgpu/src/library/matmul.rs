//! Matrix products: which kernel for which shapes.

use cupola_shaders::element::{Element, Width};
use cupola_shaders::matmul::{
    BATCH_AXES, INNER_AXES, InnerAxes, MatmulForm, MatmulParams, MatmulShader, Orientation,
    SkinnyRows,
};
use cupola_shaders::shader::Epilogue;
use cupola_shaders::tile::{FastAxis, Staging, Tile};

use super::{LibraryCall, accumulator_of, closeness, stride, word};
use crate::choice::DeviceModel;
use crate::error::Error;

/// A matrix in a buffer: element type, first element and strides, all in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Storage.
    pub element: Element,
    /// Position of its first element in the buffer.
    pub offset: i64,
    /// Distance between rows.
    pub row_stride: i64,
    /// Distance between columns.
    pub col_stride: i64,
}

impl Matrix {
    fn transposed(self) -> Self {
        Self {
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// One batch axis, outermost first in a problem. Strides are 0 where an operand is broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchAxis {
    /// Length.
    pub len: u64,
    /// Distance in the left operand.
    pub lhs: i64,
    /// Distance in the right operand.
    pub rhs: i64,
    /// Distance in the result.
    pub out: i64,
}

/// One of several contracted axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerAxis {
    /// Length.
    pub len: u64,
    /// Distance in the left operand.
    pub lhs: i64,
    /// Distance in the right operand.
    pub rhs: i64,
}

/// `out[b, r, c] = sum over k of lhs[b, r, k] * rhs[b, k, c]`, stored by the epilogue if there is one.
///
/// Floats accumulate in f32, integers in 32 bits with wrap-around. The batch number `b` given to the epilogue counts in
/// row-major order of the batch axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Matmul {
    /// Result rows.
    pub rows: u64,
    /// Result columns.
    pub cols: u64,
    /// Contracted length: the product of the contracted axes.
    pub inner: u64,
    /// The contracted axes, outermost first, where they are more than one; the operands' own inner strides do not
    /// count then.
    pub inner_axes: Vec<InnerAxis>,
    /// Batch axes, outermost first.
    pub batch: Vec<BatchAxis>,
    /// `[rows, inner]`.
    pub lhs: Matrix,
    /// `[inner, cols]`.
    pub rhs: Matrix,
    /// `[rows, cols]`.
    pub out: Matrix,
    /// What happens to each result instead of the plain store.
    pub epilogue: Epilogue,
}

/// Workgroups below which a smaller tile is taken, to keep all parts of a large GPU busy (about twice the 64 to 144
/// cores of the cards of 2020 to 2025).
const BUSY_GROUPS: u64 = 192;

impl Matmul {
    /// The dispatch that computes it. Buffers: left, right, result, then the epilogue's.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths beyond 32 bits or more than [`BATCH_AXES`] batch axes that cannot be merged.
    pub fn plan(&self, _device: &DeviceModel) -> Result<LibraryCall, Error> {
        // A few columns are a few rows of the transposed product.
        let few = SkinnyRows::holding(self.cols).is_some();
        if few && self.cols < self.rows {
            return self.transposed().plan_oriented(Orientation::Swapped);
        }
        self.plan_oriented(Orientation::Normal)
    }

    fn transposed(&self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            batch: self
                .batch
                .iter()
                .map(|axis| BatchAxis {
                    lhs: axis.rhs,
                    rhs: axis.lhs,
                    ..*axis
                })
                .collect(),
            lhs: self.rhs.transposed(),
            rhs: self.lhs.transposed(),
            out: self.out.transposed(),
            inner: self.inner,
            inner_axes: (self.inner_axes.iter())
                .map(|axis| InnerAxis {
                    lhs: axis.rhs,
                    rhs: axis.lhs,
                    ..*axis
                })
                .collect(),
            epilogue: self.epilogue.clone(),
        }
    }

    fn plan_oriented(&self, orientation: Orientation) -> Result<LibraryCall, Error> {
        let batch = merged(&self.batch);
        if batch.len() > BATCH_AXES {
            return Err(Error::Limit {
                what: "batch axes of a matrix product",
                needed: batch.len() as u64,
                allowed: BATCH_AXES as u64,
            });
        }
        let batches = batch
            .iter()
            .try_fold(1u64, |product, axis| product.checked_mul(axis.len));
        let batches = batches.ok_or_else(|| too_many(u64::MAX))?;
        let form = self.form(batches);
        let (lhs_staging, rhs_staging) = self.stagings(form, &batch);
        let inner = if self.inner_axes.is_empty() {
            InnerAxes::One
        } else {
            InnerAxes::Many
        };
        let mut inner_dims = [[1, 0, 0, 0]; INNER_AXES];
        if self.inner_axes.len() > INNER_AXES {
            return Err(Error::Limit {
                what: "contracted axes of a matrix product",
                needed: self.inner_axes.len() as u64,
                allowed: INNER_AXES as u64,
            });
        }
        for (dim, axis) in inner_dims.iter_mut().zip(self.inner_axes.iter().rev()) {
            *dim = [
                word("a contracted axis", axis.len)?,
                stride(axis.lhs),
                stride(axis.rhs),
                0,
            ];
        }
        let shader = MatmulShader {
            lhs: self.lhs.element,
            rhs: self.rhs.element,
            out: self.out.element,
            accumulator: accumulator_of(self.lhs.element, self.rhs.element),
            inner,
            lhs_staging,
            rhs_staging,
            form,
            epilogue: self.epilogue.clone(),
            orientation,
        };
        let row_tiles = self.rows.div_ceil(u64::from(shader.group_rows()));
        let col_tiles = self.cols.div_ceil(u64::from(shader.group_cols()));
        let groups = row_tiles
            .checked_mul(col_tiles)
            .and_then(|tiles| tiles.checked_mul(batches));
        let groups = groups.ok_or_else(|| too_many(u64::MAX))?;
        let mut batch_dims = [[1, 0, 0, 0]; BATCH_AXES];
        for (dim, axis) in batch_dims.iter_mut().zip(batch.iter().rev()) {
            *dim = [
                word("a batch axis", axis.len)?,
                stride(axis.lhs),
                stride(axis.rhs),
                stride(axis.out),
            ];
        }
        let params = MatmulParams {
            rows: word("matrix rows", self.rows)?,
            cols: word("matrix columns", self.cols)?,
            inner: word("a contracted length", self.inner)?,
            batches: word("batches", batches)?,
            row_tiles: word("tiles", row_tiles)?,
            col_tiles: word("tiles", col_tiles)?,
            batch_rank: batch.len() as u32,
            inner_rank: self.inner_axes.len() as u32,
            lhs_offset: stride(self.lhs.offset),
            lhs_row: stride(self.lhs.row_stride),
            lhs_inner: stride(self.lhs.col_stride),
            rhs_offset: stride(self.rhs.offset),
            rhs_inner: stride(self.rhs.row_stride),
            rhs_col: stride(self.rhs.col_stride),
            out_offset: stride(self.out.offset),
            out_row: stride(self.out.row_stride),
            out_col: stride(self.out.col_stride),
            batch_dims,
            inner_dims,
        };
        Ok(LibraryCall {
            shader: shader.shader(),
            params: params.words(),
            groups,
        })
    }

    fn form(&self, batches: u64) -> MatmulForm {
        if let Some(rows) = SkinnyRows::holding(self.rows) {
            return MatmulForm::Skinny(rows);
        }
        let groups = |tile: Tile| {
            let tiles = |len: u64, size: u32| len.div_ceil(u64::from(size));
            tiles(self.rows, tile.rows)
                .saturating_mul(tiles(self.cols, tile.cols))
                .saturating_mul(batches)
        };
        let fits = |tile: Tile| {
            self.rows >= u64::from(tile.rows)
                && self.cols >= u64::from(tile.cols)
                && groups(tile) >= BUSY_GROUPS
        };
        let tile = [Tile::LARGE, Tile::MEDIUM]
            .into_iter()
            .find(|&tile| fits(tile))
            .unwrap_or(Tile::SMALL);
        MatmulForm::Tiled(tile)
    }

    fn stagings(&self, form: MatmulForm, batch: &[BatchAxis]) -> (Staging, Staging) {
        if !self.inner_axes.is_empty() {
            let one = Staging {
                fast: FastAxis::Inner,
                width: Width::One,
            };
            return (one, one);
        }
        let lhs_batch = batch.iter().all(|axis| axis.lhs % 4 == 0);
        let rhs_batch = batch.iter().all(|axis| axis.rhs % 4 == 0);
        let lhs = staging(
            self.lhs,
            lhs_batch,
            (self.inner, self.lhs.col_stride),
            (self.rows, self.lhs.row_stride),
        );
        let rhs = staging(
            self.rhs,
            rhs_batch,
            (self.inner, self.rhs.row_stride),
            (self.cols, self.rhs.col_stride),
        );
        match form {
            MatmulForm::Tiled(_) => (lhs, rhs),
            MatmulForm::Skinny(_) => {
                let inner_fours = Staging {
                    fast: FastAxis::Inner,
                    width: Width::Four,
                };
                let lhs = if lhs == inner_fours && rhs == inner_fours {
                    lhs
                } else {
                    Staging {
                        fast: FastAxis::Inner,
                        width: Width::One,
                    }
                };
                (lhs, rhs)
            }
        }
    }
}

/// How to read a matrix whose inner and outer axes are given as `(length, stride)`.
fn staging(matrix: Matrix, batch_in_fours: bool, inner: (u64, i64), outer: (u64, i64)) -> Staging {
    let (fast, near, far) = if closeness(outer.0, outer.1) < closeness(inner.0, inner.1) {
        (FastAxis::Outer, outer, inner)
    } else {
        (FastAxis::Inner, inner, outer)
    };
    let packable = matrix.element.has_fours();
    let in_fours = batch_in_fours
        && packable
        && near.1 == 1
        && near.0.is_multiple_of(4)
        && (far.0 <= 1 || far.1 % 4 == 0)
        && matrix.offset % 4 == 0;
    Staging {
        fast,
        width: if in_fours { Width::Four } else { Width::One },
    }
}

/// Batch axes without those of length one, and with neighbours joined that step evenly through all three matrices.
fn merged(axes: &[BatchAxis]) -> Vec<BatchAxis> {
    let mut out: Vec<BatchAxis> = Vec::new();
    for &axis in axes.iter().filter(|axis| axis.len != 1) {
        let len = axis.len as i64;
        match out.last_mut() {
            Some(outer)
                if outer.lhs == axis.lhs.wrapping_mul(len)
                    && outer.rhs == axis.rhs.wrapping_mul(len)
                    && outer.out == axis.out.wrapping_mul(len)
                    && outer.len.checked_mul(axis.len).is_some() =>
            {
                *outer = BatchAxis {
                    len: outer.len * axis.len,
                    ..axis
                };
            }
            _ => out.push(axis),
        }
    }
    out
}

fn too_many(needed: u64) -> Error {
    Error::Limit {
        what: "workgroups of a matrix product",
        needed,
        allowed: u64::from(u32::MAX),
    }
}

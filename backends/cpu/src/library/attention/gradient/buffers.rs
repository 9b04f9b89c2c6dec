//! Temporary memory of a task, and the loop over right panels.

use super::BLOCK_ROWS;
use crate::isa::Isa;
use crate::library::attention::Extents;
use crate::library::attention::words::Words;
use crate::library::gemm::tile::{LEFT_ROW, Tile, TileSet};

/// Temporary memory of a task.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    /// Right panels of keys and of values, for products that sum over the depth.
    pub keys: *mut f32,
    pub values: *mut f32,
    /// Right panels of keys for products that sum over them, one block of keys after the other.
    pub key_rows: *mut f32,
    /// Left panels of queries and cotangents of a block.
    pub query: *mut f32,
    pub cotangent: *mut f32,
    /// Right panels of them, for products that sum over rows.
    pub query_rows: *mut f32,
    pub cotangent_rows: *mut f32,
    /// Weights and gradients of scores of a block of rows by a block of keys, for tiles over columns.
    pub weights: *mut f32,
    pub slopes: *mut f32,
    /// Of one tile: scores, products of cotangent and values, slopes of the soft limit; rows [`LEFT_ROW`] apart.
    pub scores: *mut f32,
    pub products: *mut f32,
    pub steepness: *mut f32,
    /// Sums of a block's rows.
    pub sums: *mut f32,
    /// Of each row: the largest score, the sum of exponentials or its inverse, the sum of cotangent times result.
    pub largest: *mut f32,
}

impl Buffers {
    /// The buffers one after the other from `start` on, and how many numbers they take together.
    pub fn lay<W: Words>(isa: Isa, extents: &Extents, start: *mut f32) -> (Buffers, usize) {
        let tiles = W::packed(isa);
        let (height, width) = (tiles.max_rows(), tiles.panel_cols());
        let Extents {
            keys,
            rows,
            depth,
            value_depth,
            ..
        } = *extents;
        let (words, value_words) = (depth.div_ceil(W::GROUP), value_depth.div_ceil(W::GROUP));
        let rows = rows.min(BLOCK_ROWS);
        let (tall, row_words) = (rows.next_multiple_of(height), rows.div_ceil(W::GROUP));
        let tile = height * LEFT_ROW;
        let mut taken = 0;
        let mut take = |size: usize| {
            let buffer = start.wrapping_add(taken);
            taken += size.next_multiple_of(16);
            buffer
        };
        let buffers = Buffers {
            keys: take(keys.next_multiple_of(width) * words),
            values: take(keys.next_multiple_of(width) * value_words),
            key_rows: take(keys.div_ceil(W::GROUP) * depth.next_multiple_of(width)),
            query: take(tall * words),
            cotangent: take(tall * value_words),
            query_rows: take(row_words * depth.next_multiple_of(width)),
            cotangent_rows: take(row_words * value_depth.next_multiple_of(width)),
            weights: take((row_words + height) * LEFT_ROW),
            slopes: take((row_words + height) * LEFT_ROW),
            scores: take(tile),
            products: take(tile),
            steepness: take(tile),
            sums: take(rows * depth),
            largest: take(3 * rows),
        };
        (buffers, taken)
    }
}

/// A left operand of rows by right panels.
pub(super) struct Strip<W> {
    pub a: *const W,
    /// The first panel, and how far panels are apart.
    pub b: *const W,
    pub panel: usize,
    pub inner: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub add: bool,
}

impl<W> Strip<W> {
    /// # Safety
    /// As [`crate::library::gemm::tile::TileFn`], for every panel.
    pub unsafe fn multiply(&self, tiles: &TileSet<W, W, f32>, tile_rows: usize) {
        let width = tiles.panel_cols();
        for col in (0..self.cols).step_by(width) {
            let cols = width.min(self.cols - col);
            let tile = Tile {
                inner: self.inner,
                a: self.a,
                b: self.b.wrapping_add(col / width * self.panel),
                b_stride: width,
                c: self.c.wrapping_add(col),
                c_stride: self.c_stride,
                rows: self.rows,
                cols,
                add: self.add,
                ahead: None,
            };
            // SAFETY: the caller's contract.
            unsafe { tiles.code(tile_rows, cols)(&tile) };
        }
    }
}

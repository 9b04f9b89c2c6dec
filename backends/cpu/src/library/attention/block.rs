//! One block of query rows against a range of keys.

use std::ops::Range;

use super::vectors::{DotScores, Finish, Update};
use super::{Attention, Extents, Unseeing};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::formats::{FloatWords, Floats};
use crate::library::gemm::pack::{Panel, Strided, pack_floats};
use crate::library::gemm::tile::{Tile, TileSet, Tiles};
use crate::library::simd::dispatch;
use crate::library::view::Shared;

/// Keys in one step. Scores, keys and values of a block then fit into the second-level cache.
pub(super) const BLOCK_KEYS: usize = 128;

/// Rows up to which scores are dot products of rows and keys in memory; more pay for packing the keys.
const DOT_ROWS: usize = 3;

/// Rows that share a key head, numbered head by head: `row = head in group * rows + position`.
pub(super) struct RowBlock<'a, T> {
    pub attention: &'a Attention<'a, T>,
    pub extents: Extents,
    pub batch: usize,
    pub kv_head: usize,
    /// First row and number of rows.
    pub first: usize,
    pub count: usize,
}

/// The state of the softmax of a block: not yet divided by the sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Weighted sums of values, `[count, value_depth]`.
    pub values: *mut f32,
    /// Largest score of each row.
    pub largest: *mut f32,
    /// Sum of exponentials of each row.
    pub sum: *mut f32,
}

impl Part {
    /// The state in `count * (depth + 2)` numbers from `start` on.
    pub fn at(start: *mut f32, count: usize, depth: usize) -> Part {
        let largest = start.wrapping_add(count * depth);
        Part {
            values: start,
            largest,
            sum: largest.wrapping_add(count),
        }
    }
}

/// Temporary memory of a block.
#[derive(Clone, Copy)]
pub(super) struct Work {
    /// Rows of queries, scaled: left panels, or `[count, depth]` for dot products.
    pub query: *mut f32,
    /// Right panels of keys.
    pub keys: *mut f32,
    /// Right panels of values.
    pub values: *mut f32,
    /// `[count, BLOCK_KEYS]`
    pub scores: *mut f32,
    /// One left panel of exponentials.
    pub weights: *mut f32,
}

impl<T: FloatWords> RowBlock<'_, T> {
    /// Head and position of a row of the block.
    pub fn place(&self, row: usize) -> (usize, usize) {
        let row = self.first + row;
        let group = self.extents.heads / self.extents.kv_heads;
        (
            self.kv_head * group + row / self.extents.rows,
            row % self.extents.rows,
        )
    }

    /// The keys that any row sees by position.
    pub fn visible(&self) -> Range<usize> {
        let ranges = (0..self.count)
            .map(|row| self.row_range(row))
            .filter(|range| !range.is_empty());
        ranges
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0)
    }

    /// The keys that a row sees by position.
    pub fn row_range(&self, row: usize) -> Range<usize> {
        let keys = self
            .attention
            .key_lens
            .map_or(self.extents.keys, |lens| lens[self.batch]);
        self.attention
            .band
            .range(self.batch, self.place(row).1, keys)
    }

    /// First element of an output row.
    pub fn output_row(&self, row: usize, (to, strides): (Shared<T>, [usize; 4])) -> *mut T {
        let (head, position) = self.place(row);
        to.get()
            .wrapping_add(self.batch * strides[0] + head * strides[1] + position * strides[2])
    }

    /// What the weighted sum of values is multiplied by.
    pub fn factor(&self, sum: f32) -> f32 {
        match self.attention.unseeing {
            Unseeing::Zero if sum == 0.0 => 0.0,
            Unseeing::Nan if sum == 0.0 => f32::NAN,
            Unseeing::Zero | Unseeing::Nan => 1.0 / sum,
        }
    }

    /// Attends to the keys in `span`. The state goes to `partial`, if given, else the result to the output.
    pub fn run(
        &self,
        cx: &Context,
        tiles: &TileSet<f32, T, f32>,
        span: Range<usize>,
        partial: Option<*mut f32>,
        to: (Shared<T>, [usize; 4]),
    ) -> Result<()> {
        let Extents {
            depth, value_depth, ..
        } = self.extents;
        let width = tiles.panel_cols();
        let height = tiles.max_rows();
        let padded_rows = self.count.next_multiple_of(height);
        let padded_depth = value_depth.next_multiple_of(width);
        let padded_keys = BLOCK_KEYS.next_multiple_of(width);
        let sizes = [
            padded_rows * depth,
            padded_keys * depth,
            BLOCK_KEYS * padded_depth,
            self.count * BLOCK_KEYS,
            BLOCK_KEYS * height,
            self.count * (value_depth + 2),
        ];
        let lent = cx
            .scratch
            .take::<f32>(sizes.iter().map(|size| size.next_multiple_of(16)).sum())?;
        let mut next = lent.as_ptr::<f32>();
        let mut take = |size: usize| {
            let start = next;
            next = next.wrapping_add(size.next_multiple_of(16));
            start
        };
        let [query, keys, values, scores, weights, state] = sizes.map(&mut take);
        let work = Work {
            query,
            keys,
            values,
            scores,
            weights,
        };
        let part = Part::at(partial.unwrap_or(state), self.count, value_depth);
        let dots = self.count <= DOT_ROWS && self.attention.key.strides()[3] == 1;
        // SAFETY: the buffers have the sizes taken above; spans are inside the operands.
        unsafe {
            part.values.write_bytes(0, self.count * value_depth);
            std::slice::from_raw_parts_mut(part.largest, self.count).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(part.sum, self.count).fill(0.0);
            if !span.is_empty() {
                self.gather_query(work.query, height, dots);
            }
            let whole = partial.is_none() && span.len() <= BLOCK_KEYS;
            for start in span.clone().step_by(BLOCK_KEYS) {
                let keys = start..span.end.min(start + BLOCK_KEYS);
                if dots {
                    dispatch(
                        cx.isa,
                        DotScores {
                            block: self,
                            work,
                            keys: keys.clone(),
                        },
                    );
                } else {
                    self.tile_scores(cx.isa, height, &work, keys.clone());
                }
                dispatch(
                    cx.isa,
                    Update {
                        block: self,
                        work,
                        part,
                        keys: keys.clone(),
                        whole,
                    },
                );
                self.add_values(cx.isa, tiles, &work, part, keys);
            }
            if partial.is_none() {
                dispatch(
                    cx.isa,
                    Finish {
                        block: self,
                        part,
                        to,
                    },
                );
            }
        }
        Ok(())
    }

    /// Copies the query rows, scaled: interleaved in panels of `height` rows, or row by row for dot products.
    unsafe fn gather_query(&self, to: *mut f32, height: usize, dots: bool) {
        let depth = self.extents.depth;
        let strides = self.attention.query.strides();
        let height = if dots { 1 } else { height };
        if !self.count.is_multiple_of(height) {
            let last = self.count / height * height;
            // SAFETY: the last panel has room for `height` rows.
            unsafe { to.add(last * depth).write_bytes(0, height * depth) };
        }
        for row in 0..self.count {
            let (head, position) = self.place(row);
            let offset = self.batch * strides[0] + head * strides[1] + position * strides[2];
            let panel = to.wrapping_add(row / height * height * depth + row % height);
            for d in 0..depth {
                // SAFETY: inside the query operand and the panel.
                unsafe {
                    let x = (*self.attention.query.as_ptr().add(offset + d * strides[3])).widen();
                    *panel.add(d * height) = x * self.attention.scale;
                }
            }
        }
    }

    /// First key (or value) row of this head.
    pub fn strided(&self, view: &crate::library::View<'_, T, 4>) -> (*const T, [usize; 2]) {
        let strides = view.strides();
        (
            view.as_ptr()
                .wrapping_add(self.batch * strides[0] + self.kv_head * strides[1]),
            [strides[2], strides[3]],
        )
    }

    /// Scores of all rows by tiles.
    unsafe fn tile_scores(&self, isa: Isa, height: usize, work: &Work, keys: Range<usize>) {
        let tiles = Floats::<f32>::set(isa);
        let (depth, width) = (self.extents.depth, tiles.panel_cols());
        let (from, [across, along]) = self.strided(&self.attention.key);
        let source = Strided {
            from,
            across,
            along,
            inner: depth,
        };
        for (index, start) in keys.clone().step_by(width).enumerate() {
            let count = width.min(keys.end - start);
            let to = work.keys.wrapping_add(index * width * depth);
            // SAFETY: the panel lies inside the keys, and the buffer has room for it.
            unsafe {
                pack_floats(
                    isa,
                    &source,
                    &Panel {
                        first: start,
                        count,
                        height: width,
                        start: 0,
                        words: depth,
                        to,
                    },
                )
            };
        }
        for row in (0..self.count).step_by(height) {
            let rows = height.min(self.count - row);
            let a = work.query.wrapping_add(row * depth);
            for (index, start) in keys.clone().step_by(width).enumerate() {
                let cols = width.min(keys.end - start);
                let b = work.keys.wrapping_add(index * width * depth);
                let c = work.scores.wrapping_add(row * BLOCK_KEYS + index * width);
                let tile = Tile {
                    inner: depth,
                    a,
                    b,
                    b_stride: width,
                    c,
                    c_stride: BLOCK_KEYS,
                    rows,
                    cols,
                    add: false,
                    ahead: None,
                };
                // SAFETY: the panels were packed above, for tiles of `height` rows.
                unsafe { tiles.code(height, cols)(&tile) };
            }
        }
    }

    /// Adds the values of a block of keys, weighted by the exponentials.
    unsafe fn add_values(
        &self,
        isa: Isa,
        tiles: &TileSet<f32, T, f32>,
        work: &Work,
        part: Part,
        keys: Range<usize>,
    ) {
        let depth = self.extents.value_depth;
        let (width, height) = (tiles.panel_cols(), tiles.max_rows());
        let (from, [along, across]) = self.strided(&self.attention.value);
        let in_place = across == 1 && depth.is_multiple_of(width) && self.count <= height;
        let words = keys.len();
        if !in_place {
            let source = Strided {
                from,
                across,
                along,
                inner: self.extents.keys,
            };
            for first in (0..depth).step_by(width) {
                let to = work.values.wrapping_add(first * words);
                let count = width.min(depth - first);
                let panel = Panel {
                    first,
                    count,
                    height: width,
                    start: keys.start,
                    words,
                    to,
                };
                // SAFETY: the panel lies inside the values, and the buffer has room for it.
                unsafe { pack_floats(isa, &source, &panel) };
            }
        }
        let wide = Floats::<f32>::set(isa);
        for row in (0..self.count).step_by(height) {
            let rows = height.min(self.count - row);
            let tile_rows = tiles.tile_rows(rows);
            let scores = Strided {
                from: work.scores.cast_const(),
                across: BLOCK_KEYS,
                along: 1,
                inner: words,
            };
            let panel = Panel {
                first: row,
                count: rows,
                height: tile_rows,
                start: 0,
                words,
                to: work.weights,
            };
            // SAFETY: the panel lies inside the scores; tiles write inside the block's state.
            unsafe {
                pack_floats(isa, &scores, &panel);
                for col in (0..depth).step_by(width) {
                    let cols = width.min(depth - col);
                    let c = part.values.add(row * depth + col);
                    let (inner, a, c_stride, add) = (words, work.weights.cast_const(), depth, true);
                    if in_place {
                        let b = from.wrapping_add(keys.start * along + col);
                        let tile = Tile {
                            inner,
                            a,
                            b,
                            b_stride: along,
                            c,
                            c_stride,
                            rows,
                            cols,
                            add,
                            ahead: None,
                        };
                        tiles.code(tile_rows, cols)(&tile);
                    } else {
                        let b = work.values.cast_const().add(col * words);
                        let tile = Tile {
                            inner,
                            a,
                            b,
                            b_stride: width,
                            c,
                            c_stride,
                            rows,
                            cols,
                            add,
                            ahead: None,
                        };
                        wide.code(tile_rows, cols)(&tile);
                    }
                }
            }
        }
    }
}

//! One block of query rows against a range of keys.
//!
//! For each block of keys, which is packed once, the rows pass by in tiles: the scores of a tile stay in the first-level cache,
//! where they become weights, which are the left operand of the second product as they are.

use std::ops::Range;

use bytemuck::Pod;

use super::rows::{Rows, Stage};
use super::vectors::{DotScores, Finish, Softmax};
use super::words::Words;
use super::{Attention, Extents, Unseeing};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::formats::FloatWords;
use crate::library::gemm::pack::{Panel, Strided, pack_floats};
use crate::library::gemm::tile::{LEFT_ROW, Tile, TileSet};
use crate::library::simd::{Float, MAX_LANES, dispatch};
use crate::library::view::Shared;

/// Keys in one step. The scores of a tile then fit into the first-level cache, keys and values into the second-level one. Steps
/// begin at multiples of this, so that sums do not depend on the rows of a block.
pub(super) const BLOCK_KEYS: usize = 256;

const _: () = assert!(BLOCK_KEYS <= LEFT_ROW);

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
struct Work<W> {
    /// Left panels of queries, or their rows for dot products.
    query: *mut W,
    /// Right panels of keys.
    keys: *mut W,
    /// Right panels of values.
    values: *mut W,
    /// Scores, then weights of a tile: rows [`LEFT_ROW`] apart.
    scores: *mut f32,
    /// A tile's rows of queries, or a left panel of weights.
    rows: *mut f32,
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

    /// The keys that any of these rows sees by position.
    pub fn visible(&self, rows: Range<usize>) -> Range<usize> {
        let ranges = rows
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
    pub fn output_row<O>(&self, row: usize, (to, strides): (Shared<O>, [usize; 4])) -> *mut O {
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

    /// Attends to the keys in `span`. The state goes to `partial`, if given, else the result to the output. With `dots`, scores
    /// are dot products of rows and keys in memory.
    pub fn run<W: Words, O: Float>(
        &self,
        cx: &Context,
        span: Range<usize>,
        dots: bool,
        partial: Option<*mut f32>,
        to: (Shared<O>, [usize; 4]),
    ) -> Result<()> {
        let Extents {
            depth, value_depth, ..
        } = self.extents;
        let (scorer, weigher) = (W::packed(cx.isa), W::over_rows(cx.isa));
        let (height, width) = (scorer.max_rows(), scorer.panel_cols());
        let sizes = [
            self.count.next_multiple_of(height) * depth,
            BLOCK_KEYS.next_multiple_of(width) * depth.next_multiple_of(W::GROUP),
            BLOCK_KEYS * value_depth.next_multiple_of(width),
            LEFT_ROW * height,
            height * depth.max(BLOCK_KEYS),
            self.count * (value_depth + 2),
            staged(&self.attention.key),
            staged(&self.attention.value),
        ]
        .map(|size| size.next_multiple_of(16));
        let lent = cx.scratch.take::<f32>(sizes.iter().sum())?;
        let mut next = lent.as_ptr::<f32>();
        let [
            query,
            keys,
            values,
            scores,
            rows,
            state,
            staged_keys,
            staged_values,
        ] = sizes.map(|size| {
            let start = next;
            next = next.wrapping_add(size);
            start
        });
        let work = Work::<W::Word> {
            query: query.cast(),
            keys: keys.cast(),
            values: values.cast(),
            scores,
            rows,
        };
        let part = Part::at(partial.unwrap_or(state), self.count, value_depth);
        // SAFETY: the buffers have the sizes taken above; spans are inside the operands.
        unsafe {
            std::slice::from_raw_parts_mut(part.largest, self.count).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(part.sum, self.count).fill(0.0);
            if span.is_empty() {
                part.values.write_bytes(0, self.count * value_depth);
            } else if dots {
                self.copy_query(cx.isa, 0, self.count, work.query.cast());
            } else {
                self.pack_query::<W>(cx.isa, height, &work);
            }
            let mut start = span.start / BLOCK_KEYS * BLOCK_KEYS;
            let mut first = true;
            while start < span.end {
                let keys = start..span.end.min(start + BLOCK_KEYS);
                let step = Step {
                    key: self.stage(cx.isa, &self.attention.key, &keys, staged_keys.cast()),
                    value: self.stage(cx.isa, &self.attention.value, &keys, staged_values.cast()),
                    keys,
                    first,
                };
                if !dots {
                    self.pack_keys::<W>(cx.isa, width, &work, &step);
                }
                let in_place = self.pack_values::<W>(cx.isa, width, &work, &step);
                for row in (0..self.count).step_by(height) {
                    let rows = row..self.count.min(row + height);
                    let seen = self.visible(rows.clone());
                    let keys = step.keys.start..seen.end.min(step.keys.end);
                    if keys.is_empty() || seen.start >= keys.end {
                        if first {
                            let values = part.values.add(row * value_depth);
                            values.write_bytes(0, rows.len() * value_depth);
                        }
                        continue;
                    }
                    let tile = RowTile { rows, keys };
                    if dots {
                        let scores = DotScores {
                            block: self,
                            query: work.query.cast(),
                            keys: step.key,
                            scores: work.scores,
                            tile: &tile,
                        };
                        dispatch(cx.isa, scores);
                    } else {
                        self.score::<W>(&scorer, &work, &tile);
                    }
                    let softmax = Softmax {
                        block: self,
                        scores: work.scores,
                        part,
                        tile: &tile,
                        first,
                    };
                    if in_place {
                        dispatch(cx.isa, softmax.storing::<f32>());
                        self.add_values_in_place(cx.isa, &work, part, &step, &tile);
                    } else {
                        dispatch(cx.isa, softmax.storing::<W>());
                        self.add_values::<W>(&weigher, &work, part, &step, &tile);
                    }
                }
                start = step.keys.end;
                first = false;
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

    /// The query rows from `first` on as an operand, if they are equally far apart.
    fn query_rows(&self, first: usize, count: usize) -> Option<Strided<T>> {
        let strides = self.attention.query.strides();
        let (head, position) = self.place(first);
        let across = if self.extents.rows == 1 {
            strides[1]
        } else {
            strides[2]
        };
        let alike = self.extents.rows == 1 || position + count <= self.extents.rows;
        alike.then(|| Strided {
            from: self
                .attention
                .query
                .as_ptr()
                .wrapping_add(self.batch * strides[0] + head * strides[1] + position * strides[2]),
            across,
            along: strides[3],
            inner: self.extents.depth,
        })
    }

    /// Copies query rows to rows that follow each other.
    unsafe fn copy_query(&self, isa: Isa, first: usize, count: usize, to: *mut f32) {
        let depth = self.extents.depth;
        for row in 0..count {
            let Some(source) = self.query_rows(first + row, 1) else {
                unreachable!("bug: one row is not like itself");
            };
            let panel = Panel {
                first: 0,
                count: 1,
                height: 1,
                start: 0,
                words: depth,
                to: to.wrapping_add(row * depth),
            };
            // SAFETY: the row lies inside the operand; there is room for `count` rows.
            unsafe { pack_floats(isa, &source, &panel) };
        }
    }

    /// Packs the queries in panels of `height` rows.
    unsafe fn pack_query<W: Words>(&self, isa: Isa, height: usize, work: &Work<W::Word>) {
        let depth = self.extents.depth;
        let words = depth.div_ceil(W::GROUP);
        for first in (0..self.count).step_by(height) {
            let count = height.min(self.count - first);
            let panel = Panel {
                first: 0,
                count,
                height,
                start: 0,
                words,
                to: work.query.wrapping_add(first * words),
            };
            // SAFETY: the rows lie inside the operand or the copy, and the buffer has room for the panels.
            unsafe {
                if let Some(source) = self.query_rows(first, count) {
                    W::pack(isa, &source, &panel);
                } else {
                    self.copy_query(isa, first, count, work.rows);
                    let copy = Strided {
                        from: work.rows.cast_const(),
                        across: depth,
                        along: 1,
                        inner: depth,
                    };
                    W::pack(isa, &copy, &panel);
                }
            }
        }
    }

    /// Rows of this head, by their position among all, as far as a step reads them: where they are, or from `buffer`, which has
    /// room for those of a step.
    unsafe fn stage(
        &self,
        isa: Isa,
        rows: &Rows<'_, T>,
        keys: &Range<usize>,
        buffer: *mut T,
    ) -> Head<T> {
        match rows {
            Rows::At(view) => {
                let strides = view.strides();
                let first = self.batch * strides[0] + self.kv_head * strides[1];
                Head {
                    from: view.as_ptr().wrapping_add(first),
                    across: strides[2],
                    along: strides[3],
                }
            }
            Rows::In(pages) => {
                let stage = Stage {
                    pages,
                    batch: self.batch,
                    kv_head: self.kv_head,
                    keys: keys.clone(),
                    to: buffer,
                };
                dispatch(isa, stage);
                Head {
                    from: buffer.wrapping_sub(keys.start * pages.depth),
                    across: pages.depth,
                    along: 1,
                }
            }
        }
    }

    /// Packs the keys of a step in panels of `width` keys.
    unsafe fn pack_keys<W: Words>(
        &self,
        isa: Isa,
        width: usize,
        work: &Work<W::Word>,
        step: &Step<T>,
    ) {
        let source = Strided {
            from: step.key.from,
            across: step.key.across,
            along: step.key.along,
            inner: self.extents.depth,
        };
        let words = self.extents.depth.div_ceil(W::GROUP);
        for first in step.keys.clone().step_by(width) {
            let panel = Panel {
                first,
                count: width.min(step.keys.end - first),
                height: width,
                start: 0,
                words,
                to: work.keys.wrapping_add((first - step.keys.start) * words),
            };
            // SAFETY: the panel lies inside the keys, and the buffer has room for it.
            unsafe { W::pack(isa, &source, &panel) };
        }
    }

    /// Packs the values of a step in panels of `width` columns, unless few rows use them; tells whether they are used in place.
    unsafe fn pack_values<W: Words>(
        &self,
        isa: Isa,
        width: usize,
        work: &Work<W::Word>,
        step: &Step<T>,
    ) -> bool {
        let depth = self.extents.value_depth;
        // Columns of values are the rows of the product's right operand.
        let Head {
            from,
            across: along,
            along: across,
        } = step.value;
        // Whole panels of any level: sums have another order in place.
        if across == 1 && depth.is_multiple_of(2 * MAX_LANES) && self.few() {
            return true;
        }
        let source = Strided {
            from,
            across,
            along,
            inner: step.keys.end,
        };
        let words = step.keys.len().div_ceil(W::GROUP);
        for first in (0..depth).step_by(width) {
            let panel = Panel {
                first,
                count: width.min(depth - first),
                height: width,
                start: step.keys.start / W::GROUP,
                words,
                to: work.values.wrapping_add(first * words),
            };
            // SAFETY: the panel lies inside the values, and the buffer has room for it.
            unsafe { W::pack(isa, &source, &panel) };
        }
        false
    }

    /// Whether all rows of the key head are few, see [`super::FEW_ROWS`].
    fn few(&self) -> bool {
        self.extents.group_rows() <= super::FEW_ROWS
    }

    /// Scores of a tile of rows.
    unsafe fn score<W: Words>(
        &self,
        tiles: &TileSet<W::Word, W::Word, f32>,
        work: &Work<W::Word>,
        RowTile { rows, keys }: &RowTile,
    ) {
        let words = self.extents.depth.div_ceil(W::GROUP);
        let width = tiles.panel_cols();
        for at in (0..keys.len()).step_by(width) {
            let cols = width.min(keys.len() - at);
            let tile = Tile {
                inner: words,
                a: work.query.wrapping_add(rows.start * words).cast_const(),
                b: work.keys.wrapping_add(at * words).cast_const(),
                b_stride: width,
                c: work.scores.wrapping_add(at),
                c_stride: LEFT_ROW,
                rows: rows.len(),
                cols,
                add: false,
                ahead: None,
            };
            // SAFETY: the panels are packed, the left ones for the tallest tiles; a row of scores has room for all keys.
            unsafe { tiles.code(tiles.max_rows(), cols)(&tile) };
        }
    }

    /// Adds packed values, weighted.
    unsafe fn add_values<W: Words>(
        &self,
        tiles: &TileSet<W::Word, W::Word, f32>,
        work: &Work<W::Word>,
        part: Part,
        step: &Step<T>,
        RowTile { rows, keys }: &RowTile,
    ) {
        let depth = self.extents.value_depth;
        let words = step.keys.len().div_ceil(W::GROUP);
        let width = tiles.panel_cols();
        for col in (0..depth).step_by(width) {
            let cols = width.min(depth - col);
            let tile = Tile {
                inner: keys.len().div_ceil(W::GROUP),
                a: work.scores.cast_const().cast(),
                b: work.values.wrapping_add(col * words).cast_const(),
                b_stride: width,
                c: part.values.wrapping_add(rows.start * depth + col),
                c_stride: depth,
                rows: rows.len(),
                cols,
                add: !step.first,
                ahead: None,
            };
            // SAFETY: the values are packed; a tile reads rows that exist, as `scores` has room for the tallest, and writes
            // inside the block's state.
            unsafe { tiles.code(tiles.tile_rows(rows.len()), cols)(&tile) };
        }
    }

    /// Adds values where they are, weighted: a few rows at a time, each over all columns, so that memory is read in long runs.
    unsafe fn add_values_in_place(
        &self,
        isa: Isa,
        work: &Work<impl Pod>,
        part: Part,
        step: &Step<T>,
        RowTile { rows, keys }: &RowTile,
    ) {
        let depth = self.extents.value_depth;
        let tiles = T::tiles(isa);
        let width = tiles.panel_cols();
        let Head {
            from,
            across: along,
            ..
        } = step.value;
        let height = tiles.tile_rows(rows.len());
        let weights = Strided {
            from: work.scores.cast_const(),
            across: LEFT_ROW,
            along: 1,
            inner: keys.len(),
        };
        let panel = Panel {
            first: 0,
            count: rows.len(),
            height,
            start: 0,
            words: keys.len(),
            to: work.rows,
        };
        // SAFETY: the panel lies inside the weights, and the buffer has room for it; columns are whole panels.
        unsafe {
            pack_floats(isa, &weights, &panel);
            for at in (0..keys.len()).step_by(VALUE_ROWS) {
                for col in (0..depth).step_by(width) {
                    let tile = Tile {
                        inner: VALUE_ROWS.min(keys.len() - at),
                        a: work.rows.wrapping_add(at * height).cast_const(),
                        b: from.wrapping_add((keys.start + at) * along + col),
                        b_stride: along,
                        c: part.values.wrapping_add(rows.start * depth + col),
                        c_stride: depth,
                        rows: rows.len(),
                        cols: width,
                        add: !step.first || at > 0,
                        ahead: None,
                    };
                    tiles.code(height, width)(&tile);
                }
            }
        }
    }
}

/// Rows of values used in place at a time.
const VALUE_ROWS: usize = 16;

/// Rows of one head of keys or values: the first, and the distances of rows and of elements.
pub(super) struct Head<T> {
    pub from: *const T,
    pub across: usize,
    pub along: usize,
}

impl<T> Clone for Head<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Head<T> {}

/// Elements that a step stages of these rows.
fn staged<T>(rows: &Rows<'_, T>) -> usize {
    match rows {
        Rows::At(_) => 0,
        Rows::In(pages) => BLOCK_KEYS * pages.depth,
    }
}

/// A step along the keys.
struct Step<T> {
    keys: Range<usize>,
    key: Head<T>,
    value: Head<T>,
    /// Nothing has been added up before.
    first: bool,
}

/// Rows of a block, and the keys of a step up to the last that any of them sees by position.
pub(super) struct RowTile {
    pub rows: Range<usize>,
    pub keys: Range<usize>,
}

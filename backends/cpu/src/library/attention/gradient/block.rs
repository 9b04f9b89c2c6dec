//! One block of query rows against all keys that it sees.

use std::marker::PhantomData;
use std::ops::Range;

use super::buffers::{Buffers, Strip};
use super::vectors::{Dots, Measure, Steepness, Weigh, Write};
use super::{BLOCK_KEYS, BLOCK_ROWS, OneHead};
use crate::isa::Isa;
use crate::library::attention::Extents;
use crate::library::attention::block::{Part, RowBlock, RowTile};
use crate::library::attention::vectors::Softmax;
use crate::library::attention::words::Words;
use crate::library::gemm::formats::FloatWords;
use crate::library::gemm::pack::{Panel, Strided};
use crate::library::gemm::tile::{LEFT_ROW, TileSet};
use crate::library::simd::{Float, dispatch};
use crate::library::view::{Shared, View};

/// What a block of rows works with.
struct BlockWork<'a, T, O, W: Words> {
    head: &'a OneHead<'a, T, O>,
    isa: Isa,
    buffers: &'a Buffers,
    block: RowBlock<'a, T>,
    /// The keys that each tile of rows sees by position.
    seen: Vec<Range<usize>>,
    packed: TileSet<W::Word, W::Word, f32>,
    over_rows: TileSet<W::Word, W::Word, f32>,
    over_columns: TileSet<W::Word, W::Word, f32>,
    words: PhantomData<W>,
}

impl<T: FloatWords, O: Float> OneHead<'_, T, O> {
    /// Computes the queries' cotangents of these blocks, and their sums of those of keys and values.
    ///
    /// # Safety
    /// Buffers and sums have the sizes of the extents, and are this task's alone.
    pub unsafe fn run<W: Words>(&self, isa: Isa, buffers: &Buffers, blocks: Range<usize>) {
        let Extents {
            rows,
            keys,
            depth,
            value_depth,
            ..
        } = self.all.extents;
        // SAFETY: the caller's contract.
        unsafe {
            self.key_sums.write_bytes(0, keys * depth);
            self.value_sums.write_bytes(0, keys * value_depth);
            self.pack_keys::<W>(isa, buffers);
            let blocks_of_head = rows.div_ceil(BLOCK_ROWS).max(1);
            for index in blocks {
                let (head, first) = (index / blocks_of_head, index % blocks_of_head * BLOCK_ROWS);
                let block = RowBlock {
                    attention: &self.all.gradient.attention,
                    extents: self.all.extents,
                    batch: self.batch,
                    kv_head: self.kv_head,
                    first: head * rows + first,
                    count: BLOCK_ROWS.min(rows - first),
                };
                let packed = W::packed(isa);
                let height = packed.max_rows();
                let tiles = (0..block.count).step_by(height);
                let seen = tiles.map(|row| block.visible(row..block.count.min(row + height)));
                let work = BlockWork::<T, O, W> {
                    head: self,
                    isa,
                    buffers,
                    seen: seen.collect(),
                    block,
                    packed,
                    over_rows: W::over_rows(isa),
                    over_columns: W::over_columns(isa),
                    words: PhantomData,
                };
                work.run();
            }
        }
    }

    /// Packs keys and values in all forms in which products read them.
    unsafe fn pack_keys<W: Words>(&self, isa: Isa, buffers: &Buffers) {
        let Extents {
            keys,
            depth,
            value_depth,
            ..
        } = self.all.extents;
        let width = W::packed(isa).panel_cols();
        let rows_of = |view: &View<'_, T, 4>, inner: usize| {
            let strides = view.strides();
            let first = self.batch * strides[0] + self.kv_head * strides[1];
            Strided {
                from: view.as_ptr().wrapping_add(first),
                across: strides[2],
                along: strides[3],
                inner,
            }
        };
        let by_depth = [
            (self.all.key, depth, buffers.keys),
            (self.all.value, value_depth, buffers.values),
        ];
        for (view, depth, to) in by_depth {
            let words = depth.div_ceil(W::GROUP);
            // SAFETY: rows are inside the operand, and the buffer has room for all panels.
            unsafe { pack_all::<T, W>(isa, &rows_of(view, depth), keys, width, words, to.cast()) };
        }
        for start in (0..keys).step_by(BLOCK_KEYS) {
            let len = BLOCK_KEYS.min(keys - start);
            let Strided {
                from,
                across,
                along,
                ..
            } = rows_of(self.all.key, depth);
            let columns = Strided {
                from: from.wrapping_add(start * across),
                across: along,
                along: across,
                inner: len,
            };
            let to = self.key_rows::<W>(buffers, width, start);
            // SAFETY: as above.
            unsafe { pack_all::<T, W>(isa, &columns, depth, width, len.div_ceil(W::GROUP), to) };
        }
    }

    /// The panels of a block of keys that begins at this one.
    fn key_rows<W: Words>(&self, buffers: &Buffers, width: usize, start: usize) -> *mut W::Word {
        let cols = self.all.extents.depth.next_multiple_of(width);
        (buffers.key_rows.cast::<W::Word>()).wrapping_add(start / W::GROUP * cols)
    }
}

/// Packs `count` rows or columns in panels of `height`, one behind the other.
///
/// # Safety
/// They are inside the operand, and there is room for the panels; the processor multiplies such words.
unsafe fn pack_all<T: Float, W: Words>(
    isa: Isa,
    source: &Strided<T>,
    count: usize,
    height: usize,
    words: usize,
    to: *mut W::Word,
) {
    for first in (0..count).step_by(height) {
        let panel = Panel {
            first,
            count: height.min(count - first),
            height,
            start: 0,
            words,
            to: to.wrapping_add(first * words),
        };
        // SAFETY: the caller's contract.
        unsafe { W::pack(isa, source, &panel) };
    }
}

impl<T: FloatWords, O: Float, W: Words> BlockWork<'_, T, O, W> {
    fn height(&self) -> usize {
        self.packed.max_rows()
    }

    /// Rows of a tile.
    fn rows(&self, tile: usize) -> Range<usize> {
        let first = tile * self.height();
        first..self.block.count.min(first + self.height())
    }

    /// The keys of a tile among those of a block of keys.
    fn tile(&self, tile: usize, keys: &Range<usize>) -> Option<RowTile> {
        let seen = &self.seen[tile];
        let end = seen.end.min(keys.end);
        (seen.start < end && keys.start < end).then(|| RowTile {
            rows: self.rows(tile),
            keys: keys.start..end,
        })
    }

    unsafe fn run(&self) {
        let depth = self.block.extents.depth;
        let count = self.block.count;
        let begin = self.seen.iter().map(|keys| keys.start).min().unwrap_or(0);
        let end = self.seen.iter().map(|keys| keys.end).max().unwrap_or(0);
        let first = begin / BLOCK_KEYS * BLOCK_KEYS;
        let is_single = end <= first + BLOCK_KEYS;
        // SAFETY: the buffers have the sizes of these extents.
        unsafe {
            self.buffers.sums.write_bytes(0, count * depth);
            if first < end {
                self.pack_rows();
                self.begin_statistics();
            }
            if !is_single {
                for start in (first..end).step_by(BLOCK_KEYS) {
                    let keys = start..end.min(start + BLOCK_KEYS);
                    for tile in (0..self.seen.len()).filter_map(|t| self.tile(t, &keys)) {
                        self.score(&tile);
                        self.measure(&tile);
                    }
                }
                self.invert_sums(0..count);
            }
            for start in (first..end).step_by(BLOCK_KEYS) {
                let keys = start..end.min(start + BLOCK_KEYS);
                for tile in 0..self.seen.len() {
                    match self.tile(tile, &keys) {
                        Some(tile) => self.tile_step(&tile, &keys, is_single),
                        None => self.clear(self.rows(tile), 0, keys.len()),
                    }
                }
                self.add_keys(&keys);
            }
            self.write_rows();
        }
    }

    /// Weights and gradients of scores of a tile, and what they add to the queries' cotangents.
    unsafe fn tile_step(&self, tile: &RowTile, keys: &Range<usize>, is_single: bool) {
        let Extents {
            depth, value_depth, ..
        } = self.block.extents;
        let rows = &tile.rows;
        let value_words = value_depth.div_ceil(W::GROUP);
        let width = self.packed.panel_cols();
        // SAFETY: the buffers have the sizes of these extents.
        unsafe {
            self.score(tile);
            if is_single {
                self.measure(tile);
                self.invert_sums(rows.clone());
            } else {
                self.adjust(tile);
            }
            let values = self.buffers.values.cast::<W::Word>();
            let products = Strip {
                a: self.cotangent_panel(rows.start),
                b: values.wrapping_add(tile.keys.start * value_words),
                panel: width * value_words,
                inner: value_words,
                c: self.buffers.products,
                c_stride: LEFT_ROW,
                rows: rows.len(),
                cols: tile.keys.len(),
                add: false,
            };
            products.multiply(&self.packed, self.height());
            self.weigh(tile);
            self.clear(rows.clone(), tile.keys.len(), keys.len());
            let len = tile.keys.len();
            let panels = self.head.key_rows::<W>(self.buffers, width, keys.start);
            // Panels were packed for all keys of the operand's block.
            let whole = BLOCK_KEYS.min(self.block.extents.keys - keys.start);
            let sums = Strip {
                a: self.buffers.products.cast::<W::Word>().cast_const(),
                b: panels.cast_const(),
                panel: width * whole.div_ceil(W::GROUP),
                inner: len.div_ceil(W::GROUP),
                c: self.buffers.sums.wrapping_add(rows.start * depth),
                c_stride: depth,
                rows: rows.len(),
                cols: depth,
                add: true,
            };
            let tile_rows = self.over_rows.tile_rows(rows.len());
            sums.multiply(&self.over_rows, tile_rows);
        }
    }

    /// Adds what a block of rows gives to the cotangents of a block of keys and their values.
    unsafe fn add_keys(&self, keys: &Range<usize>) {
        let Extents {
            depth, value_depth, ..
        } = self.block.extents;
        let (height, width) = (self.height(), self.packed.panel_cols());
        let row_words = self.block.count.div_ceil(W::GROUP);
        let (to_keys, to_values) = (self.head.key_sums, self.head.value_sums);
        let b = self.buffers;
        for first in (0..keys.len()).step_by(height) {
            // Rows of earlier tiles see none of these keys.
            let sees = |seen: &Range<usize>| seen.end > keys.start + first;
            let Some(tile) = self.seen.iter().position(sees) else {
                break;
            };
            let skipped = tile * height / W::GROUP;
            let rows = height.min(keys.len() - first);
            for (left, right, to, depth) in [
                (b.weights, b.cotangent_rows, to_values, value_depth),
                (b.slopes, b.query_rows, to_keys, depth),
            ] {
                let (left, right) = (left.cast::<W::Word>(), right.cast::<W::Word>());
                let sums = Strip {
                    a: left.wrapping_add(skipped * LEFT_ROW + first).cast_const(),
                    b: right.wrapping_add(skipped * width).cast_const(),
                    panel: width * row_words,
                    inner: row_words - skipped,
                    c: to.wrapping_add((keys.start + first) * depth),
                    c_stride: depth,
                    rows,
                    cols: depth,
                    add: true,
                };
                // SAFETY: the buffers have the sizes of these extents.
                unsafe { sums.multiply(&self.over_columns, self.over_columns.tile_rows(rows)) };
            }
        }
    }

    /// Scores of a tile, as products.
    unsafe fn score(&self, tile: &RowTile) {
        let words = self.block.extents.depth.div_ceil(W::GROUP);
        let keys = self.buffers.keys.cast::<W::Word>();
        let query = self.buffers.query.cast::<W::Word>();
        let scores = Strip {
            a: query.wrapping_add(tile.rows.start * words).cast_const(),
            b: keys.wrapping_add(tile.keys.start * words).cast_const(),
            panel: self.packed.panel_cols() * words,
            inner: words,
            c: self.buffers.scores,
            c_stride: LEFT_ROW,
            rows: tile.rows.len(),
            cols: tile.keys.len(),
            add: false,
        };
        // SAFETY: the caller's contract.
        unsafe { scores.multiply(&self.packed, self.height()) };
    }

    fn cotangent_panel(&self, row: usize) -> *const W::Word {
        let words = self.block.extents.value_depth.div_ceil(W::GROUP);
        let panels = self.buffers.cotangent.cast::<W::Word>();
        panels.wrapping_add(row * words).cast_const()
    }

    /// The vector code's view of a tile.
    fn softmax<'s>(&'s self, tile: &'s RowTile) -> Softmax<'s, T> {
        Softmax {
            block: &self.block,
            scores: self.buffers.scores,
            part: Part::at(std::ptr::null_mut(), 0, 0),
            tile,
            first: true,
        }
    }

    /// Notes the slopes of the soft limit, if there is one.
    unsafe fn steepness(&self, tile: &RowTile) -> Option<*const f32> {
        let attention = self.block.attention;
        let cap = attention.softcap?;
        let steepness = Steepness {
            scores: self.buffers.scores,
            to: self.buffers.steepness,
            rows: tile.rows.len(),
            len: tile.keys.len(),
            factor: attention.scale / cap,
        };
        dispatch(self.isa, steepness);
        Some(self.buffers.steepness)
    }

    /// Brings largest scores and sums of exponentials up to date; scores become those after scale, limit and mask.
    unsafe fn measure(&self, tile: &RowTile) {
        // SAFETY: the caller's contract.
        unsafe { self.steepness(tile) };
        let softmax = self.softmax(tile);
        let largest = self.buffers.largest;
        let sum = largest.wrapping_add(self.block.count);
        dispatch(self.isa, Measure::new(softmax, Some((largest, sum))));
    }

    /// Scores as after [`Self::measure`], whose results are there.
    unsafe fn adjust(&self, tile: &RowTile) {
        // SAFETY: the caller's contract.
        unsafe { self.steepness(tile) };
        dispatch(self.isa, Measure::new(self.softmax(tile), None));
    }

    /// Weights and gradients of the scores of a tile.
    unsafe fn weigh(&self, tile: &RowTile) {
        let count = self.block.count;
        let word_row = tile.rows.start / W::GROUP * LEFT_ROW;
        let attention = self.block.attention;
        let largest = self.buffers.largest.wrapping_add(tile.rows.start);
        let weigh = Weigh::<W> {
            rows: tile.rows.len(),
            len: tile.keys.len(),
            scores: self.buffers.scores,
            products: self.buffers.products,
            steepness: attention
                .softcap
                .map(|_| self.buffers.steepness.cast_const()),
            largest,
            factors: largest.wrapping_add(count),
            own: largest.wrapping_add(2 * count),
            scale: attention.scale,
            weights: self
                .buffers
                .weights
                .cast::<W::Word>()
                .wrapping_add(word_row),
            slopes: self.buffers.slopes.cast::<W::Word>().wrapping_add(word_row),
        };
        dispatch(self.isa, weigh);
    }

    /// Zeros in the columns of these rows between two keys of a block.
    unsafe fn clear(&self, rows: Range<usize>, from: usize, to: usize) {
        if from >= to {
            return;
        }
        for row in rows.start / W::GROUP..rows.end.div_ceil(W::GROUP) {
            for buffer in [self.buffers.weights, self.buffers.slopes] {
                let row = buffer.cast::<W::Word>().wrapping_add(row * LEFT_ROW + from);
                // SAFETY: rows have room for all keys of a block.
                unsafe { row.write_bytes(0, to - from) };
            }
        }
    }

    /// Packs queries and cotangents in all forms in which products read them.
    unsafe fn pack_rows(&self) {
        let Extents {
            depth, value_depth, ..
        } = self.block.extents;
        let count = self.block.count;
        let (height, width) = (self.height(), self.packed.panel_cols());
        let b = self.buffers;
        let gradient = self.head.all.gradient;
        for (view, depth, left, right) in [
            (&gradient.attention.query, depth, b.query, b.query_rows),
            (
                &gradient.cotangent,
                value_depth,
                b.cotangent,
                b.cotangent_rows,
            ),
        ] {
            let rows = self.rows_of(view, depth);
            let columns = Strided {
                across: rows.along,
                along: rows.across,
                inner: count,
                ..rows
            };
            let (words, row_words) = (depth.div_ceil(W::GROUP), count.div_ceil(W::GROUP));
            // SAFETY: rows are inside the operand, and the buffers have room for all panels.
            unsafe {
                pack_all::<T, W>(self.isa, &rows, count, height, words, left.cast());
                pack_all::<T, W>(self.isa, &columns, depth, width, row_words, right.cast());
            }
        }
    }

    /// The block's rows of an operand of queries' extents.
    fn rows_of(&self, view: &View<'_, T, 4>, inner: usize) -> Strided<T> {
        let strides = view.strides();
        let (head, position) = self.block.place(0);
        let first = self.block.batch * strides[0] + head * strides[1] + position * strides[2];
        Strided {
            from: view.as_ptr().wrapping_add(first),
            across: strides[2],
            along: strides[3],
            inner,
        }
    }

    /// Statistics of rows that have seen nothing yet, and sums of cotangent times result.
    unsafe fn begin_statistics(&self) {
        let count = self.block.count;
        let depth = self.block.extents.value_depth;
        let largest = self.buffers.largest;
        let gradient = self.head.all.gradient;
        // SAFETY: there are three numbers for each row.
        unsafe {
            std::slice::from_raw_parts_mut(largest, count).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(largest.wrapping_add(count), count).fill(0.0);
        }
        let dots = Dots {
            lhs: self.rows_of(&gradient.output, depth),
            rhs: self.rows_of(&gradient.cotangent, depth),
            rows: count,
            to: largest.wrapping_add(2 * count),
        };
        dispatch(self.isa, dots);
    }

    /// Sums of exponentials as what weights are multiplied by; 0 for rows that see no key.
    unsafe fn invert_sums(&self, rows: Range<usize>) {
        let sums = self
            .buffers
            .largest
            .wrapping_add(self.block.count + rows.start);
        // SAFETY: there is a sum for each row.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums, rows.len()) };
        for sum in sums {
            *sum = if *sum == 0.0 { 0.0 } else { 1.0 / *sum };
        }
    }

    /// Writes the queries' cotangents.
    unsafe fn write_rows(&self) {
        let (to, strides): (Shared<O>, [usize; 4]) = self.head.all.query_to;
        let write = Write {
            from: self.buffers.sums,
            parts: 1,
            part_len: 0,
            rows: self.block.count,
            depth: self.block.extents.depth,
            to: self.block.output_row(0, (to, strides)),
            stride: strides[2],
        };
        dispatch(self.isa, write);
    }
}

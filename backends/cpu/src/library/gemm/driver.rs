//! The loops around the tiles: blocking for the caches, packing, and the division of work among threads.
//!
//! For each block of the inner dimension, a first region packs what is not packed yet and a second one computes tasks, each a
//! range of left panels by a range of right panels. Where the left panels fit into a part of the second-level cache, the right
//! panels are read once, each fetched ahead; else one left panel stays in the first-level cache while the right panels, which
//! together fit into half of the second-level cache, pass by. Where few rows meet a large right operand, tasks pack the right panels
//! that they use; where only the left operand is to be packed, threads own rows instead (`own_rows`); where the inner dimension is
//! much longer than the others, it is cut (`deep`). Where only the epilogue sees the product, its smaller operand is packed first (`packed_first`). The result of every element is the same sequence of operations however the work is divided.

use std::ops::Range;

use bytemuck::Pod;

use super::block::{
    Block, BlockWork, LEAST_TASKS, Panels, RowPanels, is_resident, own_column_groups, share,
    task_grid,
};
use super::deep::Deep;
use super::own_rows::OwnRows;
use super::pack::Panel;
use super::packed::Placed;
use super::tile::TileSet;
use crate::error::Result;
use crate::isa::caches;
use crate::library::Context;
use crate::library::view::Shared;

/// A finished part of the product, to be changed in place or read while it is in the cache.
#[derive(Debug, Clone, Copy)]
pub struct Finished<C> {
    /// First element; rows are `row_stride` elements apart, columns are neighbours.
    pub start: *mut C,
    /// Elements between rows.
    pub row_stride: usize,
    /// Index of the matrix in the batch.
    pub batch: usize,
    /// First row and number of rows.
    pub row: usize,
    /// Number of rows, at least 1.
    pub rows: usize,
    /// First column.
    pub col: usize,
    /// Number of columns, at least 1.
    pub cols: usize,
}

impl<C> Finished<C> {
    /// The same part with elements of another type of the same layout.
    pub(crate) fn cast<D>(self) -> Finished<D> {
        let Finished {
            start,
            row_stride,
            batch,
            row,
            rows,
            col,
            cols,
        } = self;
        Finished {
            start: start.cast(),
            row_stride,
            batch,
            row,
            rows,
            col,
            cols,
        }
    }
}

/// Called for every part of the product once it is finished, from any thread; parts are disjoint and cover it. The callee has
/// exclusive access to the part's elements during the call.
pub type Epilogue<'a, C> = &'a (dyn Fn(Finished<C>) + Sync);

/// Writes panels on demand.
pub(crate) type Packer<'a, W> = &'a (dyn Fn(&Panel<W>) + Sync);

/// Where the panels of the left operand come from.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a, W> {
    Packed(Placed<W>),
    Pack(Packer<'a, W>),
}

/// Where the panels of the right operand come from.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a, W> {
    Packed(Placed<W>),
    Pack(Packer<'a, W>),
    /// Rows of words in memory, `stride` apart, used where packing does not pay; the packer serves the other cases.
    Rows {
        from: Shared<W>,
        stride: usize,
        packer: Packer<'a, W>,
    },
}

/// Where the product goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<C> {
    /// Overwritten.
    Store { to: Shared<C>, row_stride: usize },
    /// Added to.
    Add { to: Shared<C>, row_stride: usize },
    /// Only the epilogue sees it.
    Discard,
}

/// A product of `rows x inner` and `inner x cols` words.
pub(crate) struct Product<'a, A, B, C> {
    pub rows: usize,
    pub cols: usize,
    /// Words along the inner dimension.
    pub inner: usize,
    pub left: Left<'a, A>,
    pub right: Right<'a, B>,
    pub target: Target<C>,
    pub epilogue: Option<Epilogue<'a, C>>,
    /// Index handed to the epilogue.
    pub batch: usize,
}

/// Words of the inner dimension in one block. A left panel of 14 rows then takes 20 KiB, and the destination is read and
/// written once for every 360 steps. Measured on Zen 4: 256 to 512 differ by 2 %.
const INNER_BLOCK: usize = 384;

/// Rows and columns packed at a time, so that packed blocks stay within the third-level cache and scratch memory is bounded.
const ROW_BLOCK: usize = 4032;
const COL_BLOCK: usize = 4096;

/// Accumulators of a discarded product that are kept at a time.
pub(super) const DISCARD_BLOCK: usize = 1 << 20;

/// Multiplications below which a product is not divided among threads (about 2 us of work).
pub(super) const SERIAL_STEPS: usize = 1 << 17;

/// Rows of the left operand up to which rows of the right one are read in place. Those of the tallest tile, but the same at every
/// level, because it decides the order of sums.
pub(crate) const IN_PLACE_ROWS: usize = 14;

/// Words along the inner dimension in each block but the last. Depends on `inner` only, so that packed operands agree.
pub(crate) fn inner_block(inner: usize) -> usize {
    let blocks = inner.div_ceil(INNER_BLOCK).max(1);
    inner.div_ceil(blocks).next_multiple_of(8).max(8)
}

/// Rows of each left panel but the last: equal ones, as tall as a tile allows.
pub(crate) fn panel_rows<A, B, C>(tiles: &TileSet<A, B, C>, rows: usize) -> usize {
    let panels = rows.div_ceil(tiles.max_rows()).max(1);
    tiles.tile_rows(rows.div_ceil(panels)).max(1)
}

impl<A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync> Product<'_, A, B, C> {
    /// Computes the product. Error: out of scratch memory.
    ///
    /// # Safety
    /// The operands must be readable and the target writable for the sizes given; packed operands must have been made for the
    /// same `tiles` and sizes.
    pub unsafe fn run(&self, cx: &Context, tiles: &TileSet<A, B, C>) -> Result<()> {
        if self.rows == 0 || self.cols == 0 {
            return Ok(());
        }
        if let Some(deep) = Deep::of(self, cx, tiles) {
            // SAFETY: passed on.
            return unsafe { deep.run() };
        }
        // SAFETY: passed on.
        if let Some(done) = unsafe { self.pack_one_first(cx, tiles) } {
            return done;
        }
        if let Some(own) = OwnRows::of(self, cx, tiles) {
            // SAFETY: passed on.
            return unsafe { own.run() };
        }
        let threads = cx.pool.threads();
        // SAFETY: passed on.
        unsafe { self.blocks(cx, tiles, 0..self.inner, threads) }
    }

    /// Computes the product over a range of words that begins with a block of the inner dimension, on so many threads. The
    /// epilogue is called where the range ends with the last.
    ///
    /// # Safety
    /// As [`Product::run`].
    pub(super) unsafe fn blocks(
        &self,
        cx: &Context,
        tiles: &TileSet<A, B, C>,
        range: Range<usize>,
        threads: usize,
    ) -> Result<()> {
        let height = panel_rows(tiles, self.rows);
        let row_block = self.rows.min(ROW_BLOCK / height * height);
        let inner_block = inner_block(self.inner);
        let own_columns = self.has_own_columns(tiles, row_block, inner_block, threads);
        let col_limit = match self.target {
            Target::Discard => (DISCARD_BLOCK / row_block).clamp(tiles.panel_cols(), COL_BLOCK),
            _ if own_columns => self.cols.next_multiple_of(tiles.panel_cols()),
            _ => COL_BLOCK,
        };
        let col_block = self
            .cols
            .min(col_limit / tiles.panel_cols() * tiles.panel_cols());
        let way = Way {
            height,
            threads,
            own_columns,
        };
        let scratch = Scratches::take(self, cx, tiles, &way, row_block, col_block)?;
        for col in (0..self.cols).step_by(col_block) {
            for row in (0..self.rows).step_by(row_block) {
                for start in (range.start..range.end.max(range.start + 1)).step_by(inner_block) {
                    let words = inner_block.min(self.inner - start);
                    let block = Block {
                        row,
                        rows: row_block.min(self.rows - row),
                        col,
                        cols: col_block.min(self.cols - col),
                        start,
                        words,
                        last: start + words == self.inner,
                    };
                    let adds = start > range.start || matches!(self.target, Target::Add { .. });
                    // SAFETY: passed on; the block lies inside the product, for which the scratch buffers were sized.
                    unsafe { self.run_block(cx, tiles, &way, &block, &scratch, adds)? };
                }
            }
        }
        Ok(())
    }

    /// Whether tasks pack the columns that they multiply: where the right operand is large, and all left panels of a block stay
    /// in the second-level cache beside the few right ones that a task needs at a time.
    fn has_own_columns(
        &self,
        tiles: &TileSet<A, B, C>,
        rows: usize,
        words: usize,
        threads: usize,
    ) -> bool {
        let packs = match self.right {
            Right::Packed(_) => false,
            Right::Pack(_) => true,
            Right::Rows { .. } => !self.reads_rows(),
        };
        let panels = self.cols.div_ceil(tiles.panel_cols());
        let size = words.saturating_mul(self.cols) * size_of::<B>();
        packs
            && is_resident::<A>(rows, words)
            && panels >= LEAST_TASKS * threads
            && size > caches().l2 / 4
    }

    unsafe fn run_block(
        &self,
        cx: &Context,
        tiles: &TileSet<A, B, C>,
        way: &Way,
        block: &Block,
        scratch: &Scratches<'_, A, B, C>,
        adds: bool,
    ) -> Result<()> {
        let left_panels = block.rows.div_ceil(way.height);
        let right_panels = block.cols.div_ceil(tiles.panel_cols());
        let steps = block.rows * block.cols * block.words.max(1);
        let threads = if steps < SERIAL_STEPS { 1 } else { way.threads };
        // SAFETY: passed on.
        let panels = unsafe { self.pack(cx, tiles, way, block, scratch, threads) };
        let (row_groups, col_groups) = match way.own_columns {
            true => (1, own_column_groups(tiles, block, right_panels, threads)),
            false => task_grid(tiles, block, left_panels, right_panels, threads, &panels),
        };
        let (to, row_stride) = match self.target {
            Target::Store { to, row_stride } | Target::Add { to, row_stride } => (
                Shared(to.get().wrapping_add(block.row * row_stride + block.col)),
                row_stride,
            ),
            Target::Discard => (
                Shared(
                    scratch
                        .product
                        .as_ref()
                        .map_or(std::ptr::null_mut(), |lent| lent.as_ptr()),
                ),
                block.cols,
            ),
        };
        let task = |index: usize| {
            let (row_group, col_group) = (index / col_groups, index % col_groups);
            let left_range = share(left_panels, row_groups, row_group);
            let right_range = share(right_panels, col_groups, col_group);
            let mut panels = panels;
            let _own;
            if way.own_columns {
                let panel = tiles.panel_cols() * block.words;
                let own = cx.scratch.take::<B>(right_range.len() * panel)?;
                let to = own.as_ptr::<B>().wrapping_sub(right_range.start * panel);
                self.pack_right(tiles, block, right_range.clone(), to);
                (panels.right, panels.right_next) = (Shared(to), Shared(own.as_ptr()));
                _own = own;
            }
            let work = BlockWork {
                product: self,
                tiles,
                rows: RowPanels::of_height(block.rows, way.height),
                block,
                panels: &panels,
                to,
                row_stride,
                add: adds,
            };
            // SAFETY: the panels were packed above; tasks write disjoint parts of the target.
            unsafe { work.task(left_range, right_range) };
            Ok(())
        };
        let tasks = row_groups * col_groups;
        if threads == 1 {
            (0..tasks).try_for_each(task)
        } else {
            cx.try_run(tasks, task)
        }
    }

    /// Packs right panels of a block into `to`, where panel 0 of the block would lie.
    fn pack_right(
        &self,
        tiles: &TileSet<A, B, C>,
        block: &Block,
        panels: Range<usize>,
        to: *mut B,
    ) {
        let (Right::Pack(packer) | Right::Rows { packer, .. }) = self.right else {
            return;
        };
        let width = tiles.panel_cols();
        for panel in panels {
            packer(&Panel {
                first: block.col + panel * width,
                count: width.min(block.cols - panel * width),
                height: width,
                start: block.start,
                words: block.words,
                to: to.wrapping_add(panel * width * block.words),
            });
        }
    }

    /// Packs what the block needs and neither is packed yet nor will be by tasks, and tells where everything is.
    unsafe fn pack(
        &self,
        cx: &Context,
        tiles: &TileSet<A, B, C>,
        way: &Way,
        block: &Block,
        scratch: &Scratches<'_, A, B, C>,
        threads: usize,
    ) -> Panels<A, B> {
        let (width, height) = (tiles.panel_cols(), way.height);
        let right_panels = block.cols.div_ceil(width);
        let left_panels = block.rows.div_ceil(height);
        let (left, left_packer) = match self.left {
            Left::Packed(packed) => (packed.panels(block.start, block.words, block.row), None),
            // One packed block serves all column blocks only when it is the only one; else it is packed anew.
            Left::Pack(packer) => (
                scratch
                    .left
                    .as_ref()
                    .map_or(std::ptr::null_mut(), |lent| lent.as_ptr()),
                Some(packer),
            ),
        };
        let scratch_right = scratch
            .right
            .as_ref()
            .map_or(std::ptr::null_mut(), |lent| lent.as_ptr::<B>());
        let mut panels = Panels {
            left: Shared(left),
            right: Shared(scratch_right),
            right_panel: width * block.words,
            right_row: width,
            right_last: None,
            right_next: Shared(scratch_right),
            sliced: false,
        };
        // Panels from `right_first` on are packed here.
        let right_first = match self.right {
            Right::Packed(packed) => {
                panels.right = Shared(packed.panels(block.start, block.words, block.col));
                right_panels
            }
            Right::Rows { from, stride, .. } if self.reads_rows() => {
                panels.right = Shared(from.get().wrapping_add(block.start * stride + block.col));
                (panels.right_panel, panels.right_row) = (width, stride);
                panels.sliced = self.rows <= IN_PLACE_ROWS;
                let ragged = !block.cols.is_multiple_of(width);
                panels.right_last = ragged.then_some(Shared(scratch_right));
                right_panels - usize::from(ragged)
            }
            Right::Rows { .. } | Right::Pack(_) if way.own_columns => right_panels,
            Right::Rows { .. } | Right::Pack(_) => 0,
        };
        let right_to = Shared(scratch_right.wrapping_sub(right_first * width * block.words));
        let pack_left = |panel: usize| {
            let Some(packer) = left_packer else { return };
            let count = height.min(block.rows - panel * height);
            packer(&Panel {
                first: block.row + panel * height,
                count,
                height: tiles.tile_rows(count),
                start: block.start,
                words: block.words,
                to: panels.left.get().wrapping_add(panel * height * block.words),
            });
        };
        let left_count = if left_packer.is_some() {
            left_panels
        } else {
            0
        };
        let right_count = right_panels - right_first;
        let pack = |index: usize| match index.checked_sub(left_count) {
            None => pack_left(index),
            Some(index) => {
                let panel = right_first + index;
                self.pack_right(tiles, block, panel..panel + 1, right_to.get());
            }
        };
        let small = (left_count * height + right_count * width) * block.words < PACK_SERIAL_WORDS;
        if threads == 1 || small {
            (0..left_count + right_count).for_each(pack);
        } else {
            cx.pool.run(left_count + right_count, pack);
        }
        panels
    }

    /// Whether the right operand is read where it is: when few left panels use it, or when it is small.
    pub(super) fn reads_rows(&self) -> bool {
        let small = self
            .inner
            .saturating_mul(self.cols)
            .saturating_mul(size_of::<B>())
            <= caches().l1;
        self.rows <= IN_PLACE_ROWS || small
    }
}

/// Words below which packing is not divided among threads (about 2 us).
pub(super) const PACK_SERIAL_WORDS: usize = 16 << 10;

/// How a product is computed.
struct Way {
    /// Rows of each left panel but the last.
    height: usize,
    threads: usize,
    /// Tasks pack the right panels that they use.
    own_columns: bool,
}

/// Temporary memory of one product.
struct Scratches<'a, A, B, C> {
    left: Option<crate::memory::Lent<'a>>,
    right: Option<crate::memory::Lent<'a>>,
    product: Option<crate::memory::Lent<'a>>,
    types: std::marker::PhantomData<(A, B, C)>,
}

impl<'a, A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync> Scratches<'a, A, B, C> {
    fn take(
        product: &Product<'_, A, B, C>,
        cx: &Context<'a>,
        tiles: &TileSet<A, B, C>,
        way: &Way,
        row_block: usize,
        col_block: usize,
    ) -> Result<Self> {
        let words = inner_block(product.inner).min(product.inner);
        let left_len = row_block.next_multiple_of(way.height) * words;
        let right_cols = match product.right {
            Right::Packed(_) => 0,
            _ if way.own_columns => 0,
            Right::Rows { .. } if product.reads_rows() => tiles.panel_cols(),
            _ => col_block.next_multiple_of(tiles.panel_cols()),
        };
        let packs_left = matches!(product.left, Left::Pack(_));
        let discards = matches!(product.target, Target::Discard);
        Ok(Scratches {
            left: packs_left
                .then(|| cx.scratch.take::<A>(left_len))
                .transpose()?,
            right: (right_cols > 0)
                .then(|| cx.scratch.take::<B>(right_cols * words))
                .transpose()?,
            product: discards
                .then(|| cx.scratch.take::<C>(row_block * col_block))
                .transpose()?,
            types: std::marker::PhantomData,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::library::gemm::{Left, Output, Right, multiply};
    use crate::library::testing::{Rng, contexts};
    use crate::library::view::{View, ViewMut};

    /// Few rows by a right operand that is larger than any second-level cache's quarter, in two blocks of words: tasks pack their
    /// columns. Sums of small whole numbers have no rounding.
    #[test]
    fn tasks_pack_their_own_columns() {
        let [rows, inner, cols] = [17, 403, 3_001];
        let mut rng = Rng::new(7);
        let mut numbers =
            |len: usize| -> Vec<f32> { (0..len).map(|_| rng.below(7) as f32 - 3.0).collect() };
        let (left, right) = (numbers(rows * inner), numbers(inner * cols));
        let mut transposed = vec![0f32; inner * cols];
        let mut want = vec![0f32; rows * cols];
        for k in 0..inner {
            for col in 0..cols {
                transposed[col * inner + k] = right[k * cols + col];
                for row in 0..rows {
                    want[row * cols + col] += left[row * inner + k] * right[k * cols + col];
                }
            }
        }
        let left = View::dense("left", &left, [1, 1, rows, inner]).expect("fits");
        let shape = [1, 1, inner, cols];
        let plain = View::dense("right", &right, shape).expect("fits");
        // SAFETY: the same elements, columns first.
        let turned = unsafe { View::from_raw(transposed.as_ptr(), shape, [0, 0, 1, inner]) };
        contexts(|cx| {
            for right in [plain, turned] {
                let mut out = vec![0f32; rows * cols];
                let view = ViewMut::dense("out", &mut out, [1, 1, rows, cols]).expect("fits");
                let output = Output::Store(view);
                multiply(cx, Left::View(left), Right::View(right), output, None).expect("agrees");
                assert!(out == want, "{:?}", cx.isa);
            }
        });
    }
}

//! One block of a product whose panels are packed: how it is cut into tasks, and the order of tiles in a task.

use std::ops::Range;

use bytemuck::Pod;

use super::driver::{Finished, Product};
use super::tile::{Ahead, Tile, TileSet};
use crate::isa::caches;
use crate::library::view::Shared;

/// The part of the product that one pair of regions computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub row: usize,
    pub rows: usize,
    pub col: usize,
    pub cols: usize,
    pub start: usize,
    pub words: usize,
    pub last: bool,
}

/// Left and right panels of a block in memory.
#[derive(Clone, Copy)]
pub(super) struct Panels<A, B> {
    pub left: Shared<A>,
    pub right: Shared<B>,
    /// Words between right panels, and between the rows of one.
    pub right_panel: usize,
    pub right_row: usize,
    /// The last panel, where it does not follow the others.
    pub right_last: Option<Shared<B>>,
    /// What is read after the last panel, if anything.
    pub right_next: Shared<B>,
    /// Whether the right rows are read in place by few left rows.
    pub sliced: bool,
}

/// How rows are divided into left panels: all but the last have an even number of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPanels {
    rows: usize,
    /// Pairs of rows in so many panels.
    pairs: usize,
    panels: usize,
}

impl RowPanels {
    /// Panels of `height` rows, which is even unless there is one row only.
    pub fn of_height(rows: usize, height: usize) -> RowPanels {
        RowPanels {
            rows,
            pairs: height.div_ceil(2),
            panels: 1,
        }
    }

    /// `panels` panels that differ by two rows at most.
    pub fn even(rows: usize, panels: usize) -> RowPanels {
        RowPanels {
            rows,
            pairs: rows.div_ceil(2),
            panels,
        }
    }

    /// The rows of a range of panels.
    pub fn range(&self, panels: Range<usize>) -> Range<usize> {
        let first = |panel: usize| (2 * (panel * self.pairs / self.panels)).min(self.rows);
        first(panels.start)..first(panels.end)
    }
}

/// A block whose panels are packed.
pub(super) struct BlockWork<'a, A: 'static, B: 'static, C: 'static> {
    pub product: &'a Product<'a, A, B, C>,
    pub tiles: &'a TileSet<A, B, C>,
    pub rows: RowPanels,
    pub block: &'a Block,
    pub panels: &'a Panels<A, B>,
    /// First element of the block in the target, and the distance of rows there.
    pub to: Shared<C>,
    pub row_stride: usize,
    pub add: bool,
}

/// A part of the inner dimension of a block, and what to fetch meanwhile.
#[derive(Clone, Copy)]
struct Steps<B> {
    start: usize,
    len: usize,
    /// Read next; None: nothing that would not come by itself.
    ahead: Option<Ahead<B>>,
}

impl<A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync> BlockWork<'_, A, B, C> {
    /// A range of left panels by a range of right panels, epilogue included.
    ///
    /// # Safety
    /// The panels are packed, and nobody else touches this part of the target.
    pub unsafe fn task(&self, left: Range<usize>, right: Range<usize>) {
        let Block { words, .. } = *self.block;
        let few_rows = is_resident::<A>(self.rows.range(left.clone()).len(), words);
        // SAFETY: passed on.
        unsafe {
            if self.panels.sliced {
                // Rows read in place come a few at a time, each over all columns, so that memory is read in long runs.
                for start in (0..words.max(1)).step_by(ROW_SLICE) {
                    let len = ROW_SLICE.min(words - start);
                    let steps = Steps {
                        start,
                        len,
                        ahead: None,
                    };
                    for panel in left.clone() {
                        right
                            .clone()
                            .for_each(|other| self.tile(panel, other, steps));
                    }
                }
            } else if few_rows {
                // The left panels stay in the second-level cache and every right panel is read once, the next one being
                // fetched while this one is used.
                for panel in right.clone() {
                    for (pass, other) in left.clone().enumerate() {
                        let ahead = Some(self.ahead(panel, pass, left.len()));
                        self.tile(
                            other,
                            panel,
                            Steps {
                                start: 0,
                                len: words,
                                ahead,
                            },
                        );
                    }
                }
            } else {
                for (pass, panel) in left.clone().enumerate() {
                    for other in right.clone() {
                        let ahead = (pass == 0).then(|| self.ahead(other, 0, 1));
                        self.tile(
                            panel,
                            other,
                            Steps {
                                start: 0,
                                len: words,
                                ahead,
                            },
                        );
                    }
                    self.finish(panel..panel + 1, right.clone());
                }
                return;
            }
            self.finish(left, right);
        }
    }

    /// The part of the right panel after `panel` that is to be fetched in pass `pass` of `passes` over `panel`.
    fn ahead(&self, panel: usize, pass: usize, passes: usize) -> Ahead<B> {
        let is_last = (panel + 1) * self.tiles.panel_cols() >= self.block.cols;
        let next = match is_last {
            true => self.panels.right_next.get(),
            false => self.right_panel(panel + 1),
        };
        let row = self.panels.right_row;
        let step = row.div_ceil(passes);
        Ahead {
            from: next.wrapping_add(pass * step * self.block.words),
            step,
        }
    }

    /// A right panel that follows the others.
    fn right_panel(&self, panel: usize) -> *mut B {
        let Panels {
            right, right_panel, ..
        } = self.panels;
        right.get().wrapping_add(panel * right_panel)
    }

    /// One tile.
    #[inline]
    unsafe fn tile(&self, left_panel: usize, right_panel: usize, steps: Steps<B>) {
        let BlockWork {
            tiles,
            block,
            panels,
            row_stride,
            ..
        } = *self;
        let width = tiles.panel_cols();
        let Range { start: row, end } = self.rows.range(left_panel..left_panel + 1);
        let rows = end - row;
        let tile_rows = tiles.tile_rows(rows);
        let cols = width.min(block.cols - right_panel * width);
        let a = panels
            .left
            .get()
            .wrapping_add(row * block.words + steps.start * tile_rows);
        let (b, b_stride) = match panels.right_last {
            Some(last) if cols < width => (last.get(), width),
            _ => (self.right_panel(right_panel), panels.right_row),
        };
        let b = b.wrapping_add(steps.start * b_stride);
        let tile = Tile {
            inner: steps.len,
            a,
            b,
            b_stride,
            c: self
                .to
                .get()
                .wrapping_add(row * row_stride + right_panel * width),
            c_stride: row_stride,
            rows,
            cols,
            add: self.add || steps.start > 0,
            ahead: steps.ahead,
        };
        // SAFETY: the tile's operands are packed, its target lies inside the product; the set was made for this processor.
        unsafe { tiles.code(tile_rows, cols)(&tile) };
    }

    /// Hands a finished part to the epilogue.
    fn finish(&self, left: Range<usize>, right: Range<usize>) {
        let (true, Some(epilogue)) = (self.block.last, self.product.epilogue) else {
            return;
        };
        let width = self.tiles.panel_cols();
        let (rows, col) = (self.rows.range(left), right.start * width);
        epilogue(Finished {
            start: (self.to.get()).wrapping_add(rows.start * self.row_stride + col),
            row_stride: self.row_stride,
            batch: self.product.batch,
            row: self.block.row + rows.start,
            rows: rows.len(),
            col: self.block.col + col,
            cols: (right.end * width).min(self.block.cols) - col,
        });
    }
}

/// Rows of the right operand read in place at a time.
const ROW_SLICE: usize = 8;

/// Range `index` of `count` things divided evenly into `groups`.
pub(super) fn share(count: usize, groups: usize, index: usize) -> std::ops::Range<usize> {
    index * count / groups..(index + 1) * count / groups
}

/// Whether rows of the left operand stay in the second-level cache while right panels pass by.
pub(super) fn is_resident<A>(rows: usize, words: usize) -> bool {
    rows * words * size_of::<A>() <= caches().l2 / 4
}

/// Tasks for each thread, where there can be so many: one that comes late, or is disturbed, leaves few to wait for. Measured on
/// two threads of Zen 4: 4 take 5 to 20 % more time for 768 to 1,056 rows and columns, 8 up to 3 %, and 32 no less.
const TASKS: usize = 16;
/// Tasks for each thread that will do where they are ranges of right panels, read once.
pub(super) const LEAST_TASKS: usize = 4;

/// Into how many groups of right panels a block is divided, each packed by who uses it: they and what they are made of stay in the
/// second-level cache.
pub(super) fn own_column_groups<A, B, C>(
    tiles: &TileSet<A, B, C>,
    block: &Block,
    right_panels: usize,
    threads: usize,
) -> usize {
    let panel = (block.words * tiles.panel_cols() * size_of::<B>()).max(1);
    let groups = right_panels.div_ceil((caches().l2 / 8 / panel).max(1));
    match threads {
        1 => groups,
        _ => groups.max(TASKS * threads).min(right_panels),
    }
}

/// Into how many groups of left and right panels a block is divided.
pub(super) fn task_grid<A, B, C>(
    tiles: &TileSet<A, B, C>,
    block: &Block,
    left_panels: usize,
    right_panels: usize,
    threads: usize,
    panels: &Panels<A, B>,
) -> (usize, usize) {
    // The right panels of which rows of the product, when sliced, or which themselves stay in a cache while a task runs.
    let at_a_time = if panels.sliced {
        caches().l1 / 2 / (block.rows * tiles.panel_cols() * size_of::<C>())
    } else {
        caches().l2 / 2 / (block.words * tiles.panel_cols() * size_of::<B>()).max(1)
    }
    .max(1);
    let mut col_groups = right_panels.div_ceil(at_a_time);
    if threads == 1 {
        return (1, col_groups);
    }
    let wanted = TASKS * threads;
    let few_rows = is_resident::<A>(block.rows, block.words);
    if !panels.sliced && few_rows && right_panels >= LEAST_TASKS * threads {
        // Neighbouring panels follow each other on a thread, so that fetching ahead is never in vain.
        return (1, right_panels.min(wanted).max(col_groups));
    }
    let row_groups = wanted.div_ceil(col_groups).min(left_panels);
    if row_groups * col_groups < wanted {
        col_groups = wanted.div_ceil(row_groups).min(right_panels);
    }
    (row_groups, col_groups)
}

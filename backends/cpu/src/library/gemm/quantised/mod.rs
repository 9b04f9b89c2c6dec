//! Products with block-quantised weights: `c[m, n] = sum over k of a[m, k] * b[n, k]`.
//!
//! Weights are packed ahead of time and stay as narrow as they are; each is read once for up to twelve rows. Activations are
//! rounded to 8 bits, 16 of a row sharing a scale, and multiplied as integers, or taken as they are.
//!
//! Reading order: `strips` (weights), `activations`, `lanes` (instructions), `tile` (the loop), this file (threads, results).

mod activations;
mod lanes;
mod strips;
mod tile;

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::Number;
use super::block::share;
use super::driver::{Epilogue, Finished};
use super::numbers::Multiply;
use super::pack::Strided;
use crate::error::Result;
use crate::isa::caches;
use crate::library::Context;
use crate::library::simd::{Float, dispatch};
use crate::library::view::{Shared, View, ViewMut, mismatch};
use activations::{Arrange, Floats, Integers};
pub use strips::PackedBlocks;
use strips::WIDTH;
use tile::{Tile, TileSet, tile_set_of};

/// How activations enter a product with block-quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// As they are, multiplied in f32.
    Exact,
    /// Rounded to 127 steps to either side of zero, with a scale for each 16 neighbours of a row. NaN and infinity make NaN.
    Rounded,
}

/// A type of activations: `f32`, `f16`, `bf16`.
pub trait BlockNumber: Number + Float + Multiply<Sum = f32> {}
impl<T: Number + Float + Multiply<Sum = f32>> BlockNumber for T {}

/// Where the product goes; neighbouring columns are neighbours in memory.
#[derive(Debug)]
pub enum BlockOutput<'a, T> {
    /// Overwrite.
    Store(ViewMut<'a, f32, 2>),
    /// Overwrite, rounded to the type of the activations after the epilogue has seen the sums.
    Narrow(ViewMut<'a, T, 2>),
    /// Nowhere: the epilogue takes what it needs.
    Discard,
}

/// Rows whose activations are arranged at a time: they stay in the third-level cache.
const ROW_BLOCK: usize = 1008;
/// Rows of a task, so that its part of the result stays in the second-level cache.
const TASK_ROWS: usize = 252;
/// Strips of a task at most: the epilogue is called once for all of them.
const TASK_STRIPS: usize = 16;
/// Multiplications below which nothing is divided among threads (about 2 us).
const SERIAL_STEPS: usize = 1 << 18;

/// Computes the product of `left`, `[rows, inner]`, and `right`. The result does not depend on the number of threads.
///
/// Errors: extents that do not agree, elements of a row that are not neighbours, out of memory.
pub fn multiply_blocks<T: BlockNumber>(
    cx: &Context,
    left: View<'_, T, 2>,
    right: &PackedBlocks,
    activations: Activations,
    output: BlockOutput<'_, T>,
    epilogue: Option<Epilogue<'_, f32>>,
) -> Result<()> {
    let [rows, inner] = left.shape();
    let [across, along] = left.strides();
    if inner != right.inner || along != 1 && inner > 1 {
        return Err(mismatch(
            "left operand of a product",
            [inner, along],
            [right.inner, 1],
        ));
    }
    let shape = match &output {
        BlockOutput::Store(view) => view.shape(),
        BlockOutput::Narrow(view) => view.shape(),
        BlockOutput::Discard => [rows, right.cols],
    };
    if shape != [rows, right.cols] {
        return Err(mismatch("output of a product", shape, [rows, right.cols]));
    }
    let target = match output {
        BlockOutput::Store(view) => Target::Store(Shared(view.as_ptr()), view.strides()[0]),
        BlockOutput::Narrow(view) => Target::Narrow(Shared(view.as_ptr()), view.strides()[0]),
        BlockOutput::Discard => Target::Discard,
    };
    let exact = activations == Activations::Exact;
    let tiles = tile_set_of(cx.isa, right.layout.coding, exact);
    let source = Strided {
        from: left.as_ptr(),
        across,
        along,
        inner,
    };
    for first in (0..rows).step_by(ROW_BLOCK) {
        let rows = ROW_BLOCK.min(rows - first);
        let panels = rows.div_ceil(tiles.max_rows());
        let product = Product {
            cx,
            source,
            right,
            exact,
            tiles,
            first,
            rows,
            height: tiles.code(rows.div_ceil(panels)).0,
            target,
            epilogue,
        };
        product.run()?;
    }
    Ok(())
}

/// Where sums go, with the distance of rows.
#[derive(Clone, Copy)]
enum Target<T> {
    Store(Shared<f32>, usize),
    Narrow(Shared<T>, usize),
    Discard,
}

/// A block of rows.
struct Product<'a, T> {
    cx: &'a Context<'a>,
    source: Strided<T>,
    right: &'a PackedBlocks,
    exact: bool,
    tiles: TileSet,
    first: usize,
    rows: usize,
    /// Rows of each panel but the last.
    height: usize,
    target: Target<T>,
    epilogue: Option<Epilogue<'a, f32>>,
}

impl<T: BlockNumber> Product<'_, T> {
    fn run(&self) -> Result<()> {
        let size = self.panel_size(self.height);
        let panels = self.rows.div_ceil(self.height);
        let arranged = self.cx.scratch.take::<u8>(panels.saturating_mul(size))?;
        let start = Shared(arranged.as_ptr::<u8>());
        let steps = self.rows.saturating_mul(self.right.inner);
        let arrange = |panel: usize| {
            let to = start.get().wrapping_add(panel * size);
            self.arrange(panel, to);
        };
        if steps < SERIAL_STEPS / 8 {
            (0..panels).for_each(arrange);
        } else {
            self.cx.pool.run(panels, arrange);
        }
        let strips = self.right.count();
        let (row_groups, col_groups) = self.grid(steps, panels, strips);
        let task = |index: usize| {
            let (row_group, col_group) = (index / col_groups, index % col_groups);
            let panels = share(panels, row_groups, row_group);
            self.task(start, panels, share(strips, col_groups, col_group))
        };
        let tasks = row_groups * col_groups;
        if steps.saturating_mul(self.right.cols) < SERIAL_STEPS {
            (0..tasks).try_for_each(task)
        } else {
            self.cx.try_run(tasks, task)
        }
    }

    /// Into how many groups panels and strips are divided.
    fn grid(&self, steps: usize, panels: usize, strips: usize) -> (usize, usize) {
        let threads = self.cx.pool.threads();
        let row_groups = (panels * self.height).div_ceil(TASK_ROWS);
        // Weights of a task stay in the second-level cache while panels pass by.
        let resident = caches().l2 / 2 / self.right.strip_size().max(1);
        let limit = if panels > 1 {
            resident.clamp(1, TASK_STRIPS)
        } else {
            TASK_STRIPS
        };
        let mut col_groups = strips.div_ceil(limit);
        if steps.saturating_mul(self.right.cols) < SERIAL_STEPS || threads == 1 {
            return (row_groups, col_groups);
        }
        let wanted = 4 * threads;
        if row_groups * col_groups < wanted {
            col_groups = wanted.div_ceil(row_groups).min(strips);
        }
        let row_groups = if row_groups * col_groups < wanted {
            wanted.div_ceil(col_groups).min(panels)
        } else {
            row_groups
        };
        (row_groups, col_groups)
    }

    /// Bytes of a panel.
    fn panel_size(&self, height: usize) -> usize {
        let entry = if self.exact {
            size_of::<Floats>()
        } else {
            size_of::<Integers>()
        };
        self.right.tiles() * height * entry
    }

    /// Rows of a panel that exist, and the height of its code.
    fn panel_rows(&self, panel: usize) -> (usize, usize) {
        let rows = self.height.min(self.rows - panel * self.height);
        (rows, self.tiles.code(rows).0)
    }

    fn arrange(&self, panel: usize, to: *mut u8) {
        let (rows, height) = self.panel_rows(panel);
        let arrange = Arrange {
            source: &self.source,
            layout: &self.right.layout,
            first: self.first + panel * self.height,
            rows,
            height,
            exact: self.exact,
            to,
        };
        dispatch(self.cx.isa, arrange);
    }

    /// Panels by strips, epilogue included.
    fn task(&self, arranged: Shared<u8>, panels: Range<usize>, strips: Range<usize>) -> Result<()> {
        let row = panels.start * self.height;
        let rows = self.rows.min(panels.end * self.height) - row;
        let col = strips.start * WIDTH;
        let cols = self.right.cols.min(strips.end * WIDTH) - col;
        let lent;
        let (to, row_stride) = match self.target {
            Target::Store(to, stride) => {
                let first = (self.first + row) * stride + col;
                (to.get().wrapping_add(first), stride)
            }
            Target::Narrow(..) | Target::Discard => {
                lent = self.cx.scratch.take::<f32>(rows.saturating_mul(cols))?;
                (lent.as_ptr(), cols)
            }
        };
        let size = self.panel_size(self.height);
        for panel in panels.clone() {
            let (count, height) = self.panel_rows(panel);
            let (_, code) = self.tiles.code(height);
            for strip in strips.clone() {
                let (down, right) = (panel * self.height - row, strip * WIDTH - col);
                let tile = Tile {
                    layout: &self.right.layout,
                    strip: self.right.strip(strip),
                    tiles: self.right.tiles(),
                    panel: arranged.get().wrapping_add(panel * size),
                    to: to.wrapping_add(down * row_stride + right),
                    row_stride,
                    rows: count,
                    cols: WIDTH.min(cols - right),
                };
                // SAFETY: strip and panel are whole, the part of the result is this task's; the code is that of the level.
                unsafe { code(&tile) };
            }
        }
        let part = Finished {
            start: to,
            row_stride,
            batch: 0,
            row: self.first + row,
            rows,
            col,
            cols,
        };
        self.finish(part);
        Ok(())
    }

    /// Hands a part to the epilogue, and rounds it where that is asked for.
    fn finish(&self, part: Finished<f32>) {
        if let Some(epilogue) = self.epilogue {
            epilogue(part);
        }
        if let Target::Narrow(to, stride) = self.target {
            for row in 0..part.rows {
                let to = to.get().wrapping_add((part.row + row) * stride + part.col);
                let from = part.start.wrapping_add(row * part.row_stride);
                // SAFETY: the row lies inside the part, and its place is this task's.
                unsafe { T::narrow_row(self.cx.isa, from, to, part.cols) };
            }
        }
    }
}

//! Rows by windows that are read where they are: the sums over all windows of what they hold times a number for each window, for
//! many such numbers. That is the gradient of a convolution's weights by its cotangent.
//!
//! Within a line of windows, a tap's channels are as far apart as the windows: the right operand of a tile needs no copy where
//! its columns are channels of one tap. Only the cotangent is packed, once. A task computes some of its rows over a part of the
//! lines; parts are added at the end. Their number, and how many windows are taken at a time, follow from the sizes alone, so
//! that the order of sums depends neither on threads nor on caches.

use std::ops::Range;

use super::block::{RowPanels, share};
use super::formats::Floats;
use super::pack::{Panel, Strided, pack_floats};
use super::tile::{TileSet, Tiles, prefetch};
use super::windows::Windows;
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::simd::{Kernel, Simd, dispatch};
use crate::library::view::{Shared, View, ViewMut};

/// Windows of a line from which on tiles run long enough.
const LEAST_LINE: usize = 8;

/// Windows taken at a time, and elements of their pixels: what all taps read stays in the second-level cache.
const BLOCK: usize = 384;
const BLOCK_ELEMENTS: usize = BLOCK * 256;

/// Most parts, and most elements of their sums.
const PARTS: usize = 16;
const MOST_SUMS: usize = 1 << 20;

/// Tasks for each thread.
const TASKS: usize = 4;

/// Columns that are added and turned at a time.
const TURN: usize = 64;

/// Such a product.
struct Lines<'a> {
    cx: &'a Context<'a>,
    windows: &'a Windows<'a, f32>,
    /// The numbers of each window as rows.
    rows: Strided<f32>,
    tiles: TileSet<f32, f32, f32>,
    /// Rows of the sums, and their columns: taps by channels.
    outputs: usize,
    cols: usize,
    /// Lines of windows, and those taken at a time.
    lines: usize,
    at_a_time: usize,
    parts: usize,
}

/// Writes to `output`, `[taps * channels, outputs]`, the sums over all windows of their elements times those of `rows`,
/// `[windows, outputs]`, whose elements are neighbours. `false`: not done, where reading windows in place does not suit them.
///
/// Errors: out of memory.
pub fn multiply_windows(
    cx: &Context,
    windows: &Windows<'_, f32>,
    rows: &View<'_, f32, 2>,
    output: &mut ViewMut<'_, f32, 2>,
) -> Result<bool> {
    let ([inner, outputs], [along, across]) = (rows.shape(), rows.strides());
    debug_assert_eq!(output.shape(), [windows.rows(), outputs]);
    let tiles = <Floats<f32> as Tiles>::set(cx.isa);
    let (line, cols) = (windows.line(), windows.rows());
    let len = outputs.saturating_mul(cols);
    let fills = windows.channels() > 0 && windows.channels().is_multiple_of(tiles.panel_cols());
    let suits = fills && line >= LEAST_LINE && outputs > 1 && across == 1 && len <= MOST_SUMS;
    if !suits || inner == 0 {
        return Ok(false);
    }
    let lines = inner / line;
    let at_a_time = (BLOCK_ELEMENTS / windows.channels()).min(BLOCK) / line;
    let at_a_time = at_a_time.max(1);
    let parts = (MOST_SUMS / len).min(lines.div_ceil(at_a_time));
    let product = Lines {
        cx,
        windows,
        rows: Strided {
            from: rows.as_ptr(),
            across,
            along,
            inner,
        },
        tiles,
        outputs,
        cols,
        lines,
        at_a_time,
        parts: parts.clamp(1, PARTS),
    };
    product.run(output)?;
    Ok(true)
}

impl Lines<'_> {
    fn run(&self, output: &mut ViewMut<'_, f32, 2>) -> Result<()> {
        let len = self.outputs * self.cols;
        let sums = self.cx.scratch.take::<f32>(self.parts * len)?;
        let panels = self.outputs.div_ceil(self.tiles.max_rows());
        let groups = match self.cx.pool.threads() {
            1 => 1,
            threads => (TASKS * threads).div_ceil(self.parts).min(panels),
        };
        self.cx.try_run(self.parts * groups, |index| {
            let (part, group) = (index / groups, index % groups);
            let to = sums.as_ptr::<f32>().wrapping_add(part * len);
            let lines = share(self.lines, self.parts, part);
            // SAFETY: these rows of the part's sums are this task's alone.
            unsafe { self.task(lines, share(panels, groups, group), panels, to) }
        })?;
        let [row, col] = output.strides();
        let to = Shared(output.as_ptr());
        self.cx.pool.run(self.cols.div_ceil(TURN), |index| {
            let cols = index * TURN..self.cols.min((index + 1) * TURN);
            // SAFETY: all sums are there, and these rows of the output are this call's.
            unsafe { self.add(sums.as_ptr(), cols, to.get(), [row, col]) }
        });
        Ok(())
    }

    /// A range of row panels over a range of lines.
    unsafe fn task(
        &self,
        lines: Range<usize>,
        panels: Range<usize>,
        all_panels: usize,
        to: *mut f32,
    ) -> Result<()> {
        let split = RowPanels::even(self.outputs, all_panels);
        let line = self.windows.line();
        let words = self.at_a_time * line;
        let height = self.tiles.max_rows();
        let left = self.cx.scratch.take::<f32>(panels.len() * height * words)?;
        let mut starts = Vec::with_capacity(self.at_a_time);
        for first in lines.clone().step_by(self.at_a_time) {
            let now = first..lines.end.min(first + self.at_a_time);
            starts.clear();
            starts.extend(now.clone().map(|at| self.windows.line_start(at)));
            for panel in panels.clone() {
                let rows = split.range(panel..panel + 1);
                let tile_rows = rows.len().next_multiple_of(2);
                let place = (panel - panels.start) * height * words;
                let packed = left.as_ptr::<f32>().wrapping_add(place);
                let target = Panel {
                    first: rows.start,
                    count: rows.len(),
                    height: tile_rows,
                    start: now.start * line,
                    words: now.len() * line,
                    to: packed,
                };
                // SAFETY: the panel lies inside the rows, and there is room for it.
                unsafe { pack_floats(self.cx.isa, &self.rows, &target) };
                let tile = Tile {
                    left: packed,
                    right: self.windows.start(),
                    lines: &starts,
                    line,
                    step: self.windows.step(),
                    to: to.wrapping_add(rows.start * self.cols),
                    stride: self.cols,
                    rows: rows.len(),
                    add: first > lines.start,
                };
                // SAFETY: passed on.
                unsafe { self.tiles(tile, tile_rows) };
            }
        }
        Ok(())
    }

    /// A panel of rows by all taps and channels.
    unsafe fn tiles(&self, tile: Tile<'_>, tile_rows: usize) {
        let channels = self.windows.channels();
        for tap in 0..self.cols / channels {
            let offset = self.windows.tap(tap);
            for channel in (0..channels).step_by(self.tiles.panel_cols()) {
                let tile = Tile {
                    right: tile.right.wrapping_add(offset + channel),
                    to: tile.to.wrapping_add(tap * channels + channel),
                    ..tile
                };
                // SAFETY: the channels of all lines lie in the images, and the sums have a column for each.
                unsafe { tile.run(self.cx.isa, tile_rows) };
            }
        }
    }

    /// Adds columns of all parts and turns them into rows of the output.
    unsafe fn add(&self, sums: *const f32, cols: Range<usize>, to: *mut f32, strides: [usize; 2]) {
        let len = self.outputs * self.cols;
        let mut row = [0f32; TURN];
        let row = &mut row[..cols.len()];
        for output in 0..self.outputs {
            row.fill(0.0);
            for part in 0..self.parts {
                let from = sums.wrapping_add(part * len + output * self.cols + cols.start);
                // SAFETY: the part has sums for these columns.
                let from = unsafe { std::slice::from_raw_parts(from, cols.len()) };
                for (sum, x) in row.iter_mut().zip(from) {
                    *sum += x;
                }
            }
            for (col, sum) in cols.clone().zip(&*row) {
                let to = to.wrapping_add(col * strides[0] + output * strides[1]);
                // SAFETY: the caller's contract.
                unsafe { *to = *sum };
            }
        }
    }
}

/// A few rows by one panel of channels over some lines.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// Packed.
    left: *const f32,
    /// The channels in the first window of a line that begins at the images' first element.
    right: *const f32,
    /// Where lines begin.
    lines: &'a [usize],
    /// Windows of a line, and elements between them.
    line: usize,
    step: usize,
    /// Sums, rows `stride` apart.
    to: *mut f32,
    stride: usize,
    /// Rows to store.
    rows: usize,
    /// Add to what is there.
    add: bool,
}

impl Tile<'_> {
    /// # Safety
    /// The addresses must be valid as the fields say; the left panel has `tile_rows` rows.
    unsafe fn run(self, isa: Isa, tile_rows: usize) {
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match tile_rows {
                    $($rows => dispatch(isa, Rows::<$rows>(self)),)*
                    _ => unreachable!("bug: a tile of {tile_rows} rows"),
                }
            };
        }
        by_rows!(2 4 6 8 10 12 14)
    }
}

/// A tile of `R` rows.
struct Rows<'a, const R: usize>(Tile<'a>);

impl<const R: usize> Kernel for Rows<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = self.0;
        for row in 0..tile.rows {
            let to = tile.to.wrapping_add(row * tile.stride);
            prefetch(to);
            prefetch(to.wrapping_add(S::LANES));
        }
        let mut sums = [[s.splat(0.0); 2]; R];
        let mut left = tile.left;
        for start in tile.lines {
            let mut right = tile.right.wrapping_add(*start);
            for _ in 0..tile.line {
                // SAFETY: the contract of `Tile::run`.
                unsafe {
                    let channels = [s.load(right), s.load(right.add(S::LANES))];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = s.splat(*left.add(row));
                        for (channels, sum) in channels.iter().zip(sums) {
                            *sum = s.mul_add(x, *channels, *sum);
                        }
                    }
                    left = left.add(R);
                }
                right = right.wrapping_add(tile.step);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            if row >= tile.rows {
                break;
            }
            for (v, &sum) in sums.iter().enumerate() {
                let to = tile.to.wrapping_add(row * tile.stride + v * S::LANES);
                // SAFETY: as above.
                unsafe {
                    s.store(
                        to,
                        if tile.add {
                            s.add(sum, s.load(to))
                        } else {
                            sum
                        },
                    )
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::multiply_windows;
    use crate::library::gemm::Windows;
    use crate::library::testing::{Rng, contexts};
    use crate::library::view::{View, ViewMut};
    use crate::library::window::{Taps, Window};

    /// Small whole numbers, whose sums have no rounding.
    fn numbers(rng: &mut Rng, len: usize) -> Vec<f32> {
        (0..len).map(|_| rng.below(7) as f32 - 3.0).collect()
    }

    fn taps(kernel: usize, stride: usize, dilation: usize) -> Taps {
        Taps {
            kernel,
            stride,
            dilation,
            pads: [0, 0],
        }
    }

    /// The sums for images of `[images, height, width, channels]`; whether they were computed.
    fn check(
        images: usize,
        [height, width]: [usize; 2],
        channels: usize,
        taps: [Taps; 2],
        outputs: usize,
    ) -> bool {
        let mut rng = Rng::new(9);
        let window = Window::new(&[height, width], &taps).expect("a window");
        let [_, high, wide] = window.output();
        let x = numbers(&mut rng, images * height * width * channels);
        let rows = numbers(&mut rng, images * high * wide * outputs);
        let cols = taps[0].kernel * taps[1].kernel * channels;
        let mut want = vec![0f32; cols * outputs];
        for (at, sum) in want.iter_mut().enumerate() {
            let (col, output) = (at / outputs, at % outputs);
            let (tap, channel) = (col / channels, col % channels);
            let (tap_y, tap_x) = (tap / taps[1].kernel, tap % taps[1].kernel);
            for place in 0..images * high * wide {
                let (image, y, z) = (place / wide / high, place / wide % high, place % wide);
                let y = y * taps[0].stride + tap_y * taps[0].dilation;
                let z = z * taps[1].stride + tap_x * taps[1].dilation;
                let pixel = (image * height + y) * width + z;
                *sum += x[pixel * channels + channel] * rows[place * outputs + output];
            }
        }
        let shape = [images, 1, height, width, channels];
        let view = View::dense("images", &x, shape).expect("fits");
        let windows = Windows::new(&view, &window).expect("suits");
        let rows = View::dense("rows", &rows, [images * high * wide, outputs]).expect("fits");
        let mut done = true;
        contexts(|cx| {
            let mut out = vec![7f32; want.len()];
            let mut view = ViewMut::dense("out", &mut out, [cols, outputs]).expect("fits");
            let one = multiply_windows(cx, &windows, &rows, &mut view).expect("memory");
            assert!(!one || out == want, "{:?}", cx.isa);
            done &= one;
        });
        done
    }

    #[test]
    fn windows_are_read_in_place() {
        let three = taps(3, 1, 1);
        assert!(check(3, [11, 14], 32, [three, three], 17));
        assert!(check(9, [20, 22], 32, [three, three], 3));
        assert!(check(2, [9, 40], 64, [taps(2, 2, 1), taps(3, 2, 2)], 33));
        // Channels that do not fill tiles, short lines, one row.
        assert!(!check(2, [9, 12], 24, [three, three], 5));
        assert!(!check(2, [9, 9], 32, [three, three], 5));
        assert!(!check(2, [9, 12], 32, [three, three], 1));
    }
}

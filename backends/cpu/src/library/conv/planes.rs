//! Convolution of 8-bit integers by words of four neighbouring channels, for the instructions that multiply four bytes at once.
//!
//! A block of windows is staged as words `[channels / 4, positions]`, the padding included. Where windows lie in one line and
//! move by one, all taps read the same words, each from its own place on; else the words of every tap are staged apart. Every
//! tap then is a product of its weights with rows of words, added to those before it in the first-level cache.

use super::integer::ByteInput;
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::correction::{Correction, Points, Sums, correct};
use crate::library::gemm::driver::panel_rows;
use crate::library::gemm::formats::ByteQuads;
use crate::library::gemm::pack::quads;
use crate::library::gemm::tile::{Tile, TileSet, Tiles};
use crate::library::gemm::{Bytes, Epilogue, Finished, ZeroPoints};
use crate::library::simd::{Kernel, Simd, dispatch};
use crate::library::window::Window;
use crate::memory::{Buffer, Usage};

/// Channels in a word.
const WORD: usize = 4;

/// Words staged at a time: with the weights of some channels they stay in the second-level cache.
const STAGE: usize = 48 << 10;

/// Added to bytes to make them signed, and the bit that does it.
const SHIFT: i32 = 128;
const FLIP: u8 = 0x80;

/// Weights of one group as unsigned words: panels of output channels, in each all taps, in each the words of the channels.
#[derive(Debug)]
pub(super) struct PlaneWeights {
    words: Buffer,
    rows: usize,
    /// Rows of each panel but the last.
    height: usize,
    taps: usize,
    channels: usize,
    correction: Correction,
}

impl PlaneWeights {
    /// Packs `[rows, channels * taps]`. Error: out of memory.
    pub fn new(isa: Isa, source: &Bytes<'_, 2>, taps: usize, usage: &Usage) -> Result<Self> {
        let [rows, inner] = source.view.shape();
        let channels = inner / taps.max(1);
        let tiles = ByteQuads::set(isa);
        let height = panel_rows(&tiles, rows);
        let (shift, flip) = match source.signed {
            true => (SHIFT, FLIP),
            false => (0, 0),
        };
        let words = channels.div_ceil(WORD) * taps;
        let places = places(&tiles, rows, height);
        let form = ("planes", rows, inner, taps, height);
        let buffer = Buffer::made(places * words * size_of::<u32>(), usage, form, |to| {
            let start = to.as_ptr().cast::<u8>();
            let channel_words = channels.div_ceil(WORD);
            for row in 0..rows {
                let (panel, lane) = (row / height, row % height);
                let tile_rows = tiles.tile_rows(height.min(rows - panel * height));
                let first = panel * height * words + lane;
                for (channel, tap) in (0..channels).flat_map(|c| (0..taps).map(move |t| (c, t))) {
                    let word = tap * channel_words + channel / WORD;
                    let place = (first + word * tile_rows) * WORD + channel % WORD;
                    let byte = source.view.at([row, channel * taps + tap]) ^ flip;
                    // SAFETY: the place is one of the buffer's, which nobody else knows yet.
                    unsafe { start.add(place).write(byte) };
                }
            }
        })?;
        let form = ("plane sums", rows, inner);
        let sums = Buffer::made(rows * size_of::<i32>(), usage, form, |to| {
            for row in 0..rows {
                let mut sum = 0i32;
                for at in 0..inner {
                    sum += i32::from(source.view.at([row, at]) ^ flip);
                }
                // SAFETY: the buffer has a place for every row.
                unsafe { to.as_ptr().cast::<i32>().add(row).write(sum) };
            }
        })?;
        let points = match source.zero_points {
            ZeroPoints::One(point) => Points::One(point + shift),
            ZeroPoints::Each(points) => Points::each(points, shift),
        };
        Ok(PlaneWeights {
            words: buffer,
            rows,
            height,
            taps,
            channels,
            correction: Correction {
                points,
                sums: Sums::Kept(sums),
            },
        })
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.words.size()
    }

    fn channel_words(&self) -> usize {
        self.channels.div_ceil(WORD)
    }

    /// How many windows to stage at a time.
    pub fn most_windows(&self, window: &Window, windows: [usize; 3]) -> usize {
        let rows = self.channel_words().max(1);
        match Layout::of(window, windows) {
            Layout::Shared => (STAGE / rows).saturating_sub(window.span(2) - 1),
            Layout::Apart => STAGE / (rows * self.taps.max(1)),
        }
    }

    /// Computes a block into `to`, whose channels are `row_stride` apart, and hands it to the epilogue by rows and columns of
    /// the block. Error: out of memory.
    ///
    /// # Safety
    /// The output has room and is the caller's; the block lies inside its input and fits the weights.
    pub unsafe fn convolve(
        &self,
        cx: &Context,
        block: &Block,
        to: *mut i32,
        row_stride: usize,
        epilogue: Option<Epilogue<'_, i32>>,
    ) -> Result<()> {
        let tiles = ByteQuads::set(cx.isa);
        let layout = Layout::of(block.window, block.windows);
        let words = self.channel_words();
        let (len, staged) = match layout {
            Layout::Shared => (block.count + block.window.span(2) - 1, 1),
            Layout::Apart => (block.count, self.taps),
        };
        // Whole vectors are read, also where a row ends.
        let size = words * len * staged + tiles.panel_cols();
        let mut stage = cx.scratch.take::<u32>(size)?;
        let has_sums = !self.correction.points.is_zero();
        let mut sums = vec![0i32; if has_sums { len } else { 0 }];
        dispatch(
            cx.isa,
            Fill {
                block,
                layout,
                stage: &mut stage.as_mut_slice::<u32>()[..size],
                sums: &mut sums,
                len,
                staged,
            },
        );
        let input = self.input_correction(block, layout, sums);
        let tap_step = match layout {
            Layout::Shared => block.window.dilation[2],
            Layout::Apart => words * len,
        };
        let places = places(&tiles, self.rows, self.height);
        debug_assert!(self.words.size() >= places * words * self.taps * size_of::<u32>());
        for row in (0..self.rows).step_by(self.height) {
            let rows = self.height.min(self.rows - row);
            let tile_rows = tiles.tile_rows(rows);
            let panel = (self.words.as_ptr().cast::<u32>()).wrapping_add(row * words * self.taps);
            let to = to.wrapping_add(row * row_stride);
            for col in (0..block.count).step_by(tiles.panel_cols()) {
                let cols = tiles.panel_cols().min(block.count - col);
                let code = tiles.code(tile_rows, cols);
                for tap in 0..self.taps {
                    let tile = Tile {
                        inner: words,
                        a: panel.wrapping_add(tap * words * tile_rows),
                        b: stage.as_ptr::<u32>().wrapping_add(tap * tap_step + col),
                        b_stride: len,
                        c: to.wrapping_add(col),
                        c_stride: row_stride,
                        rows,
                        cols,
                        add: tap > 0,
                        ahead: None,
                    };
                    // SAFETY: weights and stage hold the words, the caller vouches for the output; the set was made for this
                    // processor.
                    unsafe { code(&tile) };
                }
            }
            let part = Finished {
                start: to,
                row_stride,
                batch: 0,
                row,
                rows,
                col: 0,
                cols: block.count,
            };
            // SAFETY: the caller's output; both have the sums that the other's points ask for.
            unsafe { correct(cx.isa, &part, &self.correction, &input) };
            if let Some(user) = epilogue {
                user(part);
            }
        }
        Ok(())
    }

    /// What products are corrected by for the windows of a block, given the sums of the staged words.
    fn input_correction(&self, block: &Block, layout: Layout, staged: Vec<i32>) -> Correction {
        let point = block.input.zero - if block.input.signed { 0 } else { SHIFT };
        let mut correction = Correction::of(Points::One(point));
        if staged.is_empty() {
            return correction;
        }
        let inner = (self.channels * self.taps) as i32;
        let none = inner.wrapping_mul(point).wrapping_neg();
        let mut sums = vec![none; block.count];
        let (taps, step) = match layout {
            Layout::Shared => (self.taps, block.window.dilation[2]),
            Layout::Apart => (1, 0),
        };
        for tap in 0..taps {
            for (sum, words) in sums.iter_mut().zip(&staged[tap * step..]) {
                *sum = sum.wrapping_add(*words);
            }
        }
        correction.sums = Sums::Made(sums);
        correction
    }
}

/// Places of all panels of so many rows.
fn places<A, B, C>(tiles: &TileSet<A, B, C>, rows: usize, height: usize) -> usize {
    let rest = rows % height;
    rows - rest + if rest > 0 { tiles.tile_rows(rest) } else { 0 }
}

/// How the words of a block are staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Once for all taps.
    Shared,
    /// For every tap.
    Apart,
}

impl Layout {
    fn of(window: &Window, windows: [usize; 3]) -> Layout {
        let in_line = windows[..2] == [1, 1] && window.kernel[..2] == [1, 1];
        match in_line && window.stride[2] == 1 && window.pad_begin[..2] == [0, 0] {
            true => Layout::Shared,
            false => Layout::Apart,
        }
    }
}

/// Windows of one image and group, in the order of the output.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub window: &'a Window,
    pub input: &'a ByteInput<'a>,
    /// The first channel of the group.
    pub from: *const u8,
    pub channels: usize,
    pub windows: [usize; 3],
    pub first: usize,
    pub count: usize,
}

/// Neighbouring windows along the last axis, as one tap sees them.
pub(super) struct Run {
    /// The first among those of the block, and how many.
    pub at: usize,
    pub len: usize,
    /// Offset of the input's line; `None` in the padding.
    pub line: Option<usize>,
    /// Position in the line of the first one, distance of the next, positions that there are.
    pub start: isize,
    pub step: usize,
    pub width: isize,
}

impl Block<'_> {
    /// Address of a channel of the group.
    pub fn channel(&self, channel: usize) -> *const u8 {
        let stride = self.input.view.strides()[1];
        self.from.wrapping_add(channel * stride)
    }

    /// Calls `one` with what a tap sees, run by run.
    #[inline(always)]
    pub fn for_each_run(&self, tap: usize, mut one: impl FnMut(Run)) {
        let [_, height, width] = self.window.kernel;
        let taps = [tap / (height * width), tap / width % height, tap % width];
        let [_, rows, cols] = self.windows;
        let [_, _, plane, line, _] = self.input.view.strides();
        let mut done = 0;
        while done < self.count {
            let index = self.first + done;
            let at = [index / (rows * cols), index / cols % rows, index % cols];
            let len = (cols - at[2]).min(self.count - done);
            let z = self.window.at(0, at[0], taps[0]);
            let y = self.window.at(1, at[1], taps[1]);
            let place = at[2] * self.window.stride[2] + taps[2] * self.window.dilation[2];
            one(Run {
                at: done,
                len,
                line: z.zip(y).map(|(z, y)| z * plane + y * line),
                start: place as isize - self.window.pad_begin[2] as isize,
                step: self.window.stride[2],
                width: self.window.input[2] as isize,
            });
            done += len;
        }
    }
}

/// Stages the words of a block.
struct Fill<'a> {
    block: &'a Block<'a>,
    layout: Layout,
    stage: &'a mut [u32],
    /// Sums of all words of a place, as signed bytes; empty when nobody needs them.
    sums: &'a mut [i32],
    len: usize,
    /// Taps staged apart.
    staged: usize,
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Fill {
            block,
            layout,
            stage,
            sums,
            len,
            staged,
        } = self;
        let words = block.channels.div_ceil(WORD);
        for tap in 0..staged {
            for word in 0..words {
                let first = (tap * words + word) * len;
                let row = &mut stage[first..first + len];
                match layout {
                    Layout::Apart => block.for_each_run(tap, |run| fill(block, word, &run, row)),
                    Layout::Shared => {
                        let start = block.first as isize - block.window.pad_begin[2] as isize;
                        let run = Run {
                            at: 0,
                            len,
                            line: Some(0),
                            start,
                            step: 1,
                            width: block.window.input[2] as isize,
                        };
                        fill(block, word, &run, row);
                    }
                }
                for (sum, word) in sums.iter_mut().zip(row.iter()) {
                    let [a, b, c, d] = word.to_le_bytes().map(|byte| i32::from(byte as i8));
                    *sum = sum.wrapping_add(a + b + c + d);
                }
            }
        }
    }
}

/// Writes the words of a run.
#[inline(always)]
fn fill(block: &Block, word: usize, run: &Run, row: &mut [u32]) {
    let flip = if block.input.signed { 0 } else { FLIP };
    let zero = block.input.zero as u8 ^ flip;
    let there = (block.channels - word * WORD).min(WORD);
    let mut padding = [0u8; WORD];
    padding[..there].fill(zero);
    let padding = u32::from_le_bytes(padding);
    let row = &mut row[run.at..run.at + run.len];
    let Some(line) = run.line else {
        return row.fill(padding);
    };
    let channel = |part: usize| block.channel(word * WORD + part).wrapping_add(line);
    if run.step != 1 {
        for (x, to) in row.iter_mut().enumerate() {
            let place = run.start + (x * run.step) as isize;
            *to = padding;
            if (0..run.width).contains(&place) {
                let mut bytes = [0u8; WORD];
                for (part, byte) in bytes.iter_mut().enumerate().take(there) {
                    // SAFETY: the place is inside the line, the line inside the input.
                    *byte = unsafe { *channel(part).offset(place) } ^ flip;
                }
                *to = u32::from_le_bytes(bytes);
            }
        }
        return;
    }
    let len = run.len as isize;
    let begin = (-run.start).clamp(0, len);
    let end = (run.width - run.start).clamp(begin, len);
    let (begin_at, end_at) = (begin as usize, end as usize);
    row[..begin_at].fill(padding);
    row[end_at..].fill(padding);
    let rows = [0, 1, 2, 3].map(|part| {
        // SAFETY: the places from `begin` to `end` are inside the line, the line inside the input.
        (part < there).then(|| unsafe {
            std::slice::from_raw_parts(channel(part).offset(run.start + begin), end_at - begin_at)
        })
    });
    quads(&mut row[begin_at..end_at], rows, flip);
}

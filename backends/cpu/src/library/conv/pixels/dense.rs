//! Pixels times panels of weights.
//!
//! A task is a range of output pixels by a range of panels. Within it a panel of weights meets the pixels, a few at a time,
//! whose sums over all taps and channels stay in registers; the input pixels of the task stay in the second-level cache.

use super::words::{Reading, Weight, WordKernel, Words, dispatch_words};
use super::{Job, RawTail, store};
use crate::error::Result;
use crate::isa::{Isa, Level, caches};
use crate::library::Context;
use crate::library::gemm::tile::prefetch;
use crate::library::simd::Simd;
use crate::library::view::{Shared, View};

/// Vectors of channels in a panel.
pub(super) const VECTORS: usize = 2;

/// Multiplications below which nothing is divided among threads (about 2 us of work).
const SERIAL_STEPS: usize = 1 << 17;

/// Channels whose weights are fetched ahead.
const AHEAD: usize = 12;

/// Tasks for each thread, so that they end together.
const TASKS: usize = 4;

/// Bytes of the table of addresses of one task.
const TABLE_SIZE: usize = 64 << 10;

/// Lanes of a vector.
pub(super) fn lanes(isa: Isa) -> usize {
    match isa.level() {
        Level::Baseline => 4,
        Level::Avx2 => 8,
        Level::Avx512 => 16,
    }
}

/// Most pixels of a tile at any level.
pub(super) const MAX_ROWS: usize = 14;

/// Pixels whose sums fit into the registers beside two vectors of weights.
pub(super) fn max_rows(isa: Isa) -> usize {
    match isa.level() {
        Level::Baseline | Level::Avx2 => 6,
        Level::Avx512 => MAX_ROWS,
    }
}

/// Products of an output below which channels are not worth a strip of their own.
const SPLIT_STEPS: usize = 32;

/// Strips of a panel: channels that are computed at a time.
#[derive(Clone, Copy)]
pub(super) struct Strips {
    lanes: usize,
    /// Lanes of the narrowest strip.
    least: usize,
    /// Whether channels beyond a vector may be a strip of their own.
    splits: bool,
}

impl Strips {
    /// For outputs of so many products. Half of a vector of the widest level is one of the level below, which takes half its
    /// time.
    pub fn new(isa: Isa, reading: Reading, steps: usize) -> Strips {
        let lanes = lanes(isa);
        let halves = isa.level() == Level::Avx512 && reading != Reading::Pairs;
        Strips {
            lanes,
            least: if halves { lanes / 2 } else { lanes },
            splits: halves && steps >= SPLIT_STEPS,
        }
    }

    /// Channels of the first strip of `rest`.
    fn first(&self, rest: usize) -> usize {
        let alone = self.lanes + if self.splits { self.least } else { 0 };
        if rest > alone {
            VECTORS * self.lanes
        } else if rest > self.least {
            self.lanes
        } else {
            self.least
        }
    }

    /// The first channels of the strips of so many, with their channels.
    pub fn of(self, channels: usize) -> impl Iterator<Item = (usize, usize)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = channels.checked_sub(at).filter(|rest| *rest > 0)?;
            let columns = self.first(rest);
            at += columns;
            Some((at - columns, columns))
        })
    }

    /// Channels with those that fill the last strip.
    pub fn padded(self, channels: usize) -> usize {
        let panel = VECTORS * self.lanes;
        let last = self.of(channels % panel).map(|(_, columns)| columns);
        channels / panel * panel + last.sum::<usize>()
    }
}

/// Packs weights; places beyond the channels are left alone.
///
/// # Safety
/// The weights must be dense, `to` have the padded channels of all groups times the words of a filter.
pub(super) unsafe fn pack<T: Weight>(
    cx: &Context,
    reading: Reading,
    weights: &View<'_, T, 5>,
    groups: usize,
    to: Shared<f32>,
) {
    let [all, inputs, taps @ ..] = weights.shape();
    let taps: usize = taps.iter().product();
    let (outputs, inner) = (all / groups, inputs * taps);
    let words = reading.words(inputs);
    let width = VECTORS * lanes(cx.isa);
    let panels = outputs.div_ceil(width);
    let strips = Strips::new(cx.isa, reading, words * taps);
    let padded = strips.padded(outputs);
    let from = Shared(weights.as_ptr().cast_mut());
    // Filters are read in runs of one or more lines, whose transposes fit into the first-level cache.
    let run = (64 / taps.max(1)).max(1);
    cx.pool.run(groups * panels, |index| {
        let (group, panel) = (index / panels, index % panels * width);
        for (first, columns) in strips.of((outputs - panel).min(width)) {
            let first = panel + first;
            let from = from.get().wrapping_add((group * outputs + first) * inner);
            let to = to
                .get()
                .wrapping_add((group * padded + first) * words * taps);
            for begin in (0..inputs).step_by(run) {
                for lane in 0..columns.min(outputs - first) {
                    for input in begin..(begin + run).min(inputs) {
                        let (word, part) = (input / reading.channels(), input % reading.channels());
                        for tap in 0..taps {
                            let place = (tap * words + word) * columns + lane;
                            // SAFETY: the caller's contract.
                            unsafe {
                                let weight = *from.add(lane * inner + input * taps + tap);
                                reading.set(to.add(place), part, weight.widen());
                            }
                        }
                    }
                }
            }
        }
    });
}

/// How much longer a line of taps in the padding may take, for tiles to keep within lines of pixels: beside its pixels, a tile
/// costs about two more.
const LEAST_GAIN: f64 = 0.98;

/// Pixels that tiles keep within: a line, where whole lines of taps lie in the padding often enough that skipping them pays for
/// tiles of fewer pixels; `None` where any pixels may share a tile.
fn tile_line(job: &Job, most: usize) -> Option<usize> {
    let line = job.pixels.line();
    let cost = |rows: f64| (rows + 2.0) / rows;
    let rows = line as f64 / line.div_ceil(most).max(1) as f64;
    let gain = job.pixels.lines_inside() * cost(rows) / cost(most as f64);
    (gain < LEAST_GAIN).then_some(line)
}

/// How the work is divided.
struct Grid {
    /// Ranges of pixels.
    blocks: usize,
    /// Ranges of panels.
    columns: usize,
    panels: usize,
}

fn grid(cx: &Context, job: &Job) -> Grid {
    let rows = max_rows(cx.isa);
    let taps = job.pixels.taps();
    let panels = job.outputs.div_ceil(VECTORS * lanes(cx.isa));
    // Pixels whose input stays in the second-level cache, in whole tiles.
    let resident = caches().l2 / 2 / (job.inputs * job.pixels.fresh() * size_of::<f32>()).max(1);
    let resident = resident.min(TABLE_SIZE / (taps * size_of::<usize>()).max(1));
    let resident = (resident / rows * rows).max(rows);
    let mut blocks = job.count.div_ceil(resident);
    let inner = job.inputs * taps;
    let steps = job.count * job.outputs * job.groups * inner.max(1);
    let threads = cx.pool.threads();
    if threads == 1 || steps < SERIAL_STEPS {
        let columns = 1;
        return Grid {
            blocks,
            columns,
            panels,
        };
    }
    let wanted = (TASKS * threads).div_ceil(job.groups);
    // Weights that fit into the second-level cache may pass by often; others should not.
    let weights = panels * VECTORS * lanes(cx.isa) * inner * size_of::<f32>();
    if weights <= caches().l2 / 2 {
        blocks = blocks.max(wanted.min(job.count.div_ceil(rows)));
    }
    blocks = blocks.next_multiple_of(threads).min(job.count);
    let columns = wanted.div_ceil(blocks).min(panels);
    Grid {
        blocks,
        columns,
        panels,
    }
}

/// Range `index` of `count` things divided evenly into `parts`.
pub(super) fn share(count: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    index * count / parts..(index + 1) * count / parts
}

/// Computes the convolution.
///
/// # Safety
/// The addresses of the job must be valid for its extents.
pub(super) unsafe fn run(cx: &Context, job: &Job) -> Result<()> {
    let mut grid = grid(cx, job);
    let line = tile_line(job, max_rows(cx.isa));
    let unit = line.unwrap_or(1);
    let units = job.count / unit;
    grid.blocks = grid.blocks.min(units);
    let tasks = job.groups * grid.blocks * grid.columns;
    let one = |index: usize| {
        let (rest, column) = (index / grid.columns, index % grid.columns);
        let (group, block) = (rest / grid.blocks, rest % grid.blocks);
        let panels = share(grid.panels, grid.columns, column);
        let pixels = share(units, grid.blocks, block);
        let tiles = Tiles::new(
            pixels.start * unit..pixels.end * unit,
            line,
            max_rows(cx.isa),
        );
        // SAFETY: passed on.
        unsafe { task(cx, job, group, tiles, panels) }
    };
    if cx.pool.threads() == 1 {
        (0..tasks).try_for_each(one)
    } else {
        cx.try_run(tasks, one)
    }
}

/// A range of pixels by a range of panels of one group.
unsafe fn task(
    cx: &Context,
    job: &Job,
    group: usize,
    tiles: Tiles,
    panels: std::ops::Range<usize>,
) -> Result<()> {
    let taps = job.pixels.taps();
    let pixels = tiles.first..tiles.end;
    let table = cx.scratch.take::<usize>(pixels.len() * taps)?;
    let table = table.as_ptr::<*const f32>();
    let mut at = job.pixels.place(pixels.start);
    for (first, rows) in tiles {
        let to = table.wrapping_add((first - pixels.start) * taps);
        // SAFETY: the table has room for the addresses of all pixels.
        unsafe { job.pixels.fill(&mut at, rows, group * job.inputs, to) };
    }
    let width = VECTORS * lanes(cx.isa);
    let inner = job.inputs * taps;
    let strips = Strips::new(cx.isa, job.reading, inner);
    let group_weights = group * strips.padded(job.outputs) * inner;
    let first_channel = group * job.outputs;
    let columns = panels.start * width..(panels.end * width).min(job.outputs);
    let channel = first_channel + columns.start;
    // Sums that only the epilogue sees are this task's own.
    let own = (job.output.is_null())
        .then(|| cx.scratch.take::<f32>(pixels.len() * columns.len()))
        .transpose()?;
    let (sums, stride, base) = match &own {
        Some(own) => {
            let (start, stride) = (own.as_ptr::<f32>(), columns.len());
            (start.wrapping_sub(pixels.start * stride), stride, 0)
        }
        None => (job.output, job.stride, channel),
    };
    for (offset, padded) in strips.of(columns.len()) {
        let column = columns.start + offset;
        for (first, rows) in tiles {
            let tile = Tile {
                pixels: table.wrapping_add((first - pixels.start) * taps),
                zeros: job.pixels.zeros(),
                taps,
                inputs: job.inputs,
                weights: job.weights.wrapping_add(group_weights + column * inner),
                reading: job.reading,
                output: sums,
                place: first * stride + base + offset,
                stride,
                channel: first_channel + column,
                cols: (job.outputs - column).min(padded),
                padded,
                tail: job.tail,
            };
            // SAFETY: passed on; the tile lies inside the output.
            unsafe { tile.run(cx.isa, rows) };
        }
    }
    let start = sums.wrapping_add(pixels.start * stride + base);
    let rows = [pixels.start, pixels.len()];
    job.finish_at((start, stride), rows, [channel, columns.len()]);
    Ok(())
}

/// Ranges of pixels, at most so many at a time: the first pixel and their number. Those of a line (or of all, where there are no
/// lines) differ by one at most.
#[derive(Clone, Copy)]
struct Tiles {
    first: usize,
    end: usize,
    /// Pixels of the line that are left.
    left: usize,
    line: usize,
    rows: usize,
    /// Tiles of a line that are longer by one.
    longer: usize,
}

impl Tiles {
    /// Of pixels that are whole lines of so many, if lines count.
    fn new(pixels: std::ops::Range<usize>, line: Option<usize>, most: usize) -> Tiles {
        let line = line.unwrap_or(pixels.len());
        let count = line.div_ceil(most).max(1);
        Tiles {
            first: pixels.start,
            end: pixels.end,
            left: line,
            line,
            rows: line / count,
            longer: line % count,
        }
    }
}

impl Iterator for Tiles {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        if self.first == self.end {
            return None;
        }
        let longer = self.line - self.left < self.longer * (self.rows + 1);
        let rows = self.rows + usize::from(longer);
        let first = self.first;
        self.first += rows;
        self.left -= rows;
        if self.left == 0 {
            self.left = self.line;
        }
        Some((first, rows))
    }
}

/// Operands of one tile: a few pixels by one panel.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// For each tap, the address of each pixel.
    pub pixels: *const *const f32,
    /// The address of a pixel in the padding; null where there is none.
    pub zeros: *const f32,
    pub taps: usize,
    /// Words of a pixel.
    pub inputs: usize,
    /// The panel.
    pub weights: *const f32,
    /// What words are.
    pub reading: Reading,
    pub output: *mut f32,
    /// Element of the output where the tile begins.
    pub place: usize,
    /// Elements between the tile's rows.
    pub stride: usize,
    /// First output channel and number of them, at most a panel.
    pub channel: usize,
    pub cols: usize,
    /// The panel's channels in the weights.
    pub padded: usize,
    pub tail: RawTail,
}

impl Tile {
    /// Computes the tile for `rows` pixels.
    ///
    /// # Safety
    /// The addresses must be valid for the extents; words are pairs only where there are instructions for them.
    pub unsafe fn run(self, isa: Isa, rows: usize) {
        let lanes = lanes(isa);
        let below = isa.at_most(Level::Avx2);
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match (rows, self.padded / lanes) {
                    // SAFETY: passed on.
                    $(($rows, 2) => unsafe { dispatch_words(isa, self.reading, Rows::<$rows, 2>(self)) },
                    // SAFETY: as above.
                    ($rows, 1) => unsafe { dispatch_words(isa, self.reading, Rows::<$rows, 1>(self)) },
                    // SAFETY: as above; there are no halves of pairs.
                    ($rows, _) => unsafe { dispatch_words(below, self.reading, Rows::<$rows, 1>(self)) },)*
                    _ => unreachable!("bug: a tile of {rows} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

/// Runs the body for each of `R` rows, written out: the sums of a loop that the compiler does not unroll would leave the registers.
macro_rules! for_each_row {
    (|$r:ident| $body:block) => {
        for_each_row!(0 1 2 3 4 5 6 7 8 9 10 11 12 13, |$r| $body)
    };
    ($($row:literal)*, |$r:ident| $body:block) => {$(
        let $r: usize = $row;
        if $r < R {
            $body
        }
    )*};
}

/// A tile of `R` pixels by `V` vectors of channels.
struct Rows<const R: usize, const V: usize>(Tile);

impl<const R: usize, const V: usize> WordKernel for Rows<R, V> {
    #[inline(always)]
    fn run<S: Simd, W: Words<S>>(self, s: S) {
        let tile = self.0;
        let len = |v: usize| (tile.cols - v * S::LANES).min(S::LANES);
        for r in 0..R {
            for v in 0..V {
                let place = tile.place + r * tile.stride + v * S::LANES;
                prefetch(tile.output.wrapping_add(place));
                if !tile.tail.residual.is_null() {
                    prefetch(tile.tail.residual.wrapping_add(place));
                }
            }
        }
        let mut sums = [[s.splat(0.0); V]; R];
        for v in 0..V {
            // SAFETY: the channels of the tile exist.
            let start = unsafe { tile.tail.start(s, tile.channel + v * S::LANES, len(v)) };
            for row in &mut sums {
                row[v] = start;
            }
        }
        let mut weights = tile.weights;
        for tap in 0..tile.taps {
            // SAFETY: the table has `R` addresses for each tap, each of `inputs` channels; the panel has `V` vectors for each
            // of them.
            unsafe {
                let pixels: [*const f32; R] = *tile.pixels.add(tap * R).cast();
                if pixels.iter().all(|pixel| *pixel == tile.zeros) {
                    weights = weights.add(tile.inputs * V * S::LANES);
                    continue;
                }
                for input in 0..tile.inputs {
                    for v in 0..V {
                        prefetch(weights.wrapping_add((AHEAD * V + v) * S::LANES));
                    }
                    let mut panel = [s.load(weights); V];
                    for (v, words) in panel.iter_mut().enumerate().skip(1) {
                        *words = s.load(weights.add(v * S::LANES));
                    }
                    for r in 0..R {
                        let x = s.splat(*pixels[r].add(input));
                        for v in 0..V {
                            sums[r][v] = W::step(s, x, panel[v], sums[r][v]);
                        }
                    }
                    weights = weights.add(V * S::LANES);
                }
            }
        }
        for_each_row!(|r| {
            for (v, &sum) in sums[r].iter().enumerate() {
                let place = tile.place + r * tile.stride + v * S::LANES;
                // SAFETY: the tile lies inside the output.
                unsafe {
                    let y = tile.tail.end(s, sum, place, len(v));
                    store(s, tile.output.add(place), len(v), y);
                }
            }
        });
        let to = tile.output.wrapping_add(tile.place);
        // SAFETY: as above.
        unsafe { tile.tail.pass(s, to, [R, tile.stride, tile.cols]) };
    }
}

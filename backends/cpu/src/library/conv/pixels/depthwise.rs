//! One input and one output channel in each group: vectors of channels, a few neighbouring pixels at a time so that they share
//! the weights.

use super::table::{Stretch, TapLine};
use super::{Job, Weight, load, store};
use crate::error::Result;
use crate::library::Context;
use crate::library::simd::{Kernel, MAX_LANES, Simd, dispatch};
use crate::library::view::View;

/// Most pixels at a time: with one vector of weights they fit into sixteen registers.
const ROWS: usize = 8;

/// Multiplications of one task, about 10 us.
const TASK_STEPS: usize = 1 << 18;

/// Packs weights `[channels, 1, taps..]` as `[taps, channels]`.
///
/// # Safety
/// The weights must be dense, `to` have as many elements.
pub(super) unsafe fn pack<T: Weight>(weights: &View<'_, T, 5>, to: *mut f32) {
    let [channels, _, taps @ ..] = weights.shape();
    let taps: usize = taps.iter().product();
    for channel in 0..channels {
        for tap in 0..taps {
            // SAFETY: the caller's contract.
            unsafe {
                let weight = *weights.as_ptr().add(channel * taps + tap);
                *to.add(tap * channels + channel) = weight.widen();
            }
        }
    }
}

/// Computes the convolution.
///
/// # Safety
/// The addresses of the job must be valid for its extents.
pub(super) unsafe fn run(cx: &Context, job: &Job) -> Result<()> {
    let taps = job.pixels.taps();
    let grain = (TASK_STEPS / (taps * job.stride).max(1)).max(ROWS);
    let tasks = job.count.div_ceil(grain);
    let width = job.pixels.windows()[2];
    // Whole lines, unless there are too few of them.
    let unit = if job.count / width < tasks { 1 } else { width };
    let units = job.count / unit;
    let stretches = job.pixels.stretches();
    cx.try_run(tasks, |index| {
        let share = index * units / tasks..(index + 1) * units / tasks;
        let pixels = share.start * unit..share.end * unit;
        let mut lines = Vec::new();
        let mut first = pixels.start;
        while first < pixels.end {
            let start = first % width;
            let part = start..(start + pixels.end - first).min(width);
            job.pixels.tap_lines(first / width, &mut lines);
            let end = first + part.len();
            let line = Line {
                job,
                lines: &lines,
                stretches: &stretches,
                part,
                first,
            };
            dispatch(cx.isa, line);
            first = end;
        }
        job.finish(pixels.start, pixels.len(), 0, job.stride);
        Ok(())
    })
}

/// Neighbouring pixels of a line of the output.
struct Line<'a> {
    job: &'a Job<'a>,
    /// The lines of taps that lie in the input.
    lines: &'a [TapLine],
    /// Those of all such lines.
    stretches: &'a [Stretch],
    /// Where the pixels lie in the line, and the first of them over all images.
    part: std::ops::Range<usize>,
    first: usize,
}

impl Kernel for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let step = self.job.pixels.steps();
        for stretch in self.stretches {
            let (start, end) = (
                stretch.windows.start.max(self.part.start),
                stretch.windows.end.min(self.part.end),
            );
            let mut x = start;
            macro_rules! tiles {
                ($($rows:literal)*) => {$(
                    while (x..end).len() >= $rows {
                        let tile = Tile {
                            job: self.job,
                            lines: self.lines,
                            tap: stretch.taps.start,
                            taps: stretch.taps.len(),
                            begin: step.begin(x, stretch.taps.start),
                            pixel: step.pixel,
                            across: step.tap,
                            place: (self.first + x - self.part.start) * self.job.stride,
                        };
                        // SAFETY: the pixels of a stretch have these taps; the job vouches for their addresses.
                        unsafe { tile.run::<S, $rows>(s) };
                        x += $rows;
                    }
                )*};
            }
            tiles!(8 4 2 1);
        }
    }
}

/// A few neighbouring pixels whose windows have the same taps in the input, all channels.
struct Tile<'a> {
    job: &'a Job<'a>,
    lines: &'a [TapLine],
    /// The first tap of each line, and how many.
    tap: usize,
    taps: usize,
    /// Elements from a line's first to that tap of the first pixel, from one pixel to the next, and from one tap to the next.
    begin: isize,
    pixel: usize,
    across: usize,
    /// Element of the output where the tile begins.
    place: usize,
}

/// Most taps of a line whose pixels are kept in registers, and pixels that they reach.
const MAX_SLIDING: usize = 5;
const REACH: usize = ROWS + MAX_SLIDING - 1;

impl Tile<'_> {
    /// Computes `R` pixels.
    ///
    /// # Safety
    /// The addresses must be valid.
    #[inline(always)]
    unsafe fn run<S: Simd, const R: usize>(&self, s: S) {
        let slides = S::LANES == MAX_LANES && self.pixel == self.across;
        // SAFETY: passed on.
        unsafe {
            match self.taps {
                3 if slides => self.channels::<S, R, 3>(s),
                5 if slides => self.channels::<S, R, 5>(s),
                _ => self.channels::<S, R, 0>(s),
            }
        }
    }

    /// All channels; with `W` taps in each line what one pixel reads as a tap its neighbour reads as another, from a register.
    ///
    /// # Safety
    /// As for [`Tile::run`].
    #[inline(always)]
    unsafe fn channels<S: Simd, const R: usize, const W: usize>(&self, s: S) {
        let channels = self.job.stride;
        let whole = channels / S::LANES * S::LANES;
        // SAFETY: the channels exist.
        unsafe {
            for channel in (0..whole).step_by(S::LANES) {
                self.vector::<S, R, W>(s, channel, S::LANES);
            }
            if whole < channels {
                self.vector::<S, R, W>(s, whole, channels - whole);
            }
        }
    }

    /// `len` channels from `channel` on.
    ///
    /// # Safety
    /// As for [`Tile::run`].
    #[inline(always)]
    unsafe fn vector<S: Simd, const R: usize, const W: usize>(
        &self,
        s: S,
        channel: usize,
        len: usize,
    ) {
        let job = self.job;
        // SAFETY: the caller's contract.
        unsafe {
            let mut sums = [job.tail.start(s, channel, len); R];
            for line in self.lines {
                let from = line.from.wrapping_offset(self.begin).wrapping_add(channel);
                let weights = job
                    .weights
                    .add((line.tap + self.tap) * job.stride + channel);
                sums = if W > 0 {
                    self.slide::<S, R, W>(s, sums, from, weights, len)
                } else {
                    self.stride(s, sums, from, weights, len)
                };
            }
            for (r, &sum) in sums.iter().enumerate() {
                let place = self.place + r * job.stride + channel;
                let y = job.tail.end(s, sum, place, len);
                store(s, job.output.add(place), len, y);
            }
            let to = job.output.add(self.place + channel);
            job.tail.pass(s, to, [R, job.stride, len]);
        }
    }

    /// Adds a line of taps, each read where it is.
    ///
    /// # Safety
    /// As for [`Tile::run`].
    #[inline(always)]
    unsafe fn stride<S: Simd, const R: usize>(
        &self,
        s: S,
        mut sums: [S::F; R],
        mut from: *const f32,
        mut weights: *const f32,
        len: usize,
    ) -> [S::F; R] {
        for _ in 0..self.taps {
            // SAFETY: the caller's contract.
            unsafe {
                let w = load(s, weights, len);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = s.mul_add(load(s, from.add(r * self.pixel), len), w, *sum);
                }
            }
            from = from.wrapping_add(self.across);
            weights = weights.wrapping_add(self.job.stride);
        }
        sums
    }

    /// Adds a line of taps that are as far apart as pixels.
    ///
    /// # Safety
    /// As for [`Tile::run`].
    #[inline(always)]
    unsafe fn slide<S: Simd, const R: usize, const W: usize>(
        &self,
        s: S,
        mut sums: [S::F; R],
        from: *const f32,
        mut weights: *const f32,
        len: usize,
    ) -> [S::F; R] {
        let mut reached = [s.splat(0.0); REACH];
        for (at, x) in reached.iter_mut().enumerate().take(R + W - 1) {
            // SAFETY: the caller's contract.
            *x = unsafe { load(s, from.add(at * self.pixel), len) };
        }
        for tap in 0..W {
            // SAFETY: as above.
            let w = unsafe { load(s, weights, len) };
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul_add(reached[r + tap], w, *sum);
            }
            weights = weights.wrapping_add(self.job.stride);
        }
        sums
    }
}

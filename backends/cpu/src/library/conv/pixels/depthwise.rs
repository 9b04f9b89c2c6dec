//! One input and one output channel in each group: vectors of channels, a few pixels at a time so that they share the weights.

use super::table::TapLine;
use super::{Job, Weight, load, store};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::tile::prefetch;
use crate::library::simd::{Kernel, MAX_LANES, Simd, dispatch};
use crate::library::view::View;

/// Pixels at a time: with one vector of weights they fit into sixteen registers.
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
    cx.try_run(tasks, |index| {
        let pixels = index * job.count / tasks..(index + 1) * job.count / tasks;
        let table = cx.scratch.take::<usize>(taps * ROWS)?;
        let table = table.as_ptr::<*const f32>();
        let mut lines = Vec::new();
        let mut first = pixels.start;
        while first < pixels.end {
            let rows = (pixels.end - first).min(ROWS);
            let rows = job.pixels.neighbours(first, rows, &mut lines);
            // SAFETY: the table has room for the taps of a tile; the rest is passed on, and the rows lie inside the output.
            unsafe {
                if lines.is_empty() {
                    job.pixels.fill(first, rows, 0, table);
                    let taps = Table { from: table, taps };
                    run_rows(cx.isa, Tile { job, taps, first }, rows);
                } else {
                    run_line(cx.isa, job, &lines, first, rows);
                }
            }
            first += rows;
        }
        job.finish(pixels.start, pixels.len(), 0, job.stride);
        Ok(())
    })
}

/// Neighbours in a line.
unsafe fn run_line(isa: Isa, job: &Job, lines: &[TapLine], first: usize, rows: usize) {
    let width = job.pixels.width();
    // SAFETY: passed on.
    unsafe {
        match width {
            MAX_SLIDING if job.pixels.slides() => {
                let taps = Sliding::<MAX_SLIDING>(lines);
                run_rows(isa, Tile { job, taps, first }, rows);
            }
            _ => {
                let taps = Striding { lines, width };
                run_rows(isa, Tile { job, taps, first }, rows);
            }
        }
    }
}

/// Where the taps of a few pixels are.
trait Taps: Copy {
    /// Adds the products of `len` channels from `channel` on; `weights` are those of the first tap, `stride` elements before those of
    /// the next.
    ///
    /// # Safety
    /// The taps must be those of `R` pixels, the channels exist.
    unsafe fn add<S: Simd, const R: usize>(
        self,
        s: S,
        sums: [S::F; R],
        weights: *const f32,
        stride: usize,
        channel: usize,
        len: usize,
    ) -> [S::F; R];
}

/// For each tap, the address of each pixel.
#[derive(Clone, Copy)]
struct Table {
    from: *const *const f32,
    taps: usize,
}

impl Taps for Table {
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(
        self,
        s: S,
        mut sums: [S::F; R],
        mut weights: *const f32,
        stride: usize,
        channel: usize,
        len: usize,
    ) -> [S::F; R] {
        let mut table = self.from;
        for _ in 0..self.taps {
            // SAFETY: the caller's contract.
            unsafe {
                let w = load(s, weights, len);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = load(s, (*table.add(r)).add(channel), len);
                    *sum = s.mul_add(x, w, *sum);
                }
                table = table.add(R);
            }
            weights = weights.wrapping_add(stride);
        }
        sums
    }
}

/// Lines of taps, each of so many.
#[derive(Clone, Copy)]
struct Striding<'a> {
    lines: &'a [TapLine],
    width: usize,
}

impl Taps for Striding<'_> {
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(
        self,
        s: S,
        mut sums: [S::F; R],
        mut weights: *const f32,
        stride: usize,
        channel: usize,
        len: usize,
    ) -> [S::F; R] {
        for line in self.lines {
            let mut from = line.from.wrapping_add(channel);
            for r in 0..R {
                prefetch(from.wrapping_add((R + r) * line.step + (self.width - 1) * line.across));
            }
            for _ in 0..self.width {
                // SAFETY: the caller's contract.
                unsafe {
                    let w = load(s, weights, len);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let x = load(s, from.add(r * line.step), len);
                        *sum = s.mul_add(x, w, *sum);
                    }
                }
                from = from.wrapping_add(line.across);
                weights = weights.wrapping_add(stride);
            }
        }
        sums
    }
}

/// Lines of `W` taps, as far apart as pixels: what one reads as a tap its neighbour reads as another, from a register.
#[derive(Clone, Copy)]
struct Sliding<'a, const W: usize>(&'a [TapLine]);

/// Most taps of a sliding line, of which more than three would not fit into the registers, and pixels that they reach.
const MAX_SLIDING: usize = 3;
const REACH: usize = ROWS + MAX_SLIDING - 1;

impl<const W: usize> Taps for Sliding<'_, W> {
    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize>(
        self,
        s: S,
        mut sums: [S::F; R],
        mut weights: *const f32,
        stride: usize,
        channel: usize,
        len: usize,
    ) -> [S::F; R] {
        if S::LANES < MAX_LANES {
            let (lines, width) = (self.0, W);
            let taps = Striding { lines, width };
            // SAFETY: passed on; this level has too few registers for all that a line reaches.
            return unsafe { taps.add(s, sums, weights, stride, channel, len) };
        }
        for line in self.0 {
            let from = line.from.wrapping_add(channel);
            for r in 0..R {
                prefetch(from.wrapping_add((R + W - 1 + r) * line.step));
            }
            let mut reached = [s.splat(0.0); REACH];
            for (at, x) in reached.iter_mut().enumerate().take(R + W - 1) {
                // SAFETY: the caller's contract.
                *x = unsafe { load(s, from.add(at * line.step), len) };
            }
            for tap in 0..W {
                // SAFETY: as above.
                let w = unsafe { load(s, weights, len) };
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = s.mul_add(reached[r + tap], w, *sum);
                }
                weights = weights.wrapping_add(stride);
            }
        }
        sums
    }
}

/// A few pixels, all channels.
#[derive(Clone, Copy)]
struct Tile<'a, T> {
    job: &'a Job<'a>,
    taps: T,
    first: usize,
}

unsafe fn run_rows<T: Taps>(isa: Isa, tile: Tile<T>, rows: usize) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match rows {
                $($rows => dispatch(isa, Rows::<T, $rows>(tile)),)*
                _ => unreachable!("bug: {rows} rows at a time"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8)
}

/// A tile of `R` pixels.
struct Rows<'a, T, const R: usize>(Tile<'a, T>);

impl<T: Taps, const R: usize> Kernel for Rows<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.0.job.stride;
        let whole = channels / S::LANES * S::LANES;
        // SAFETY: the channels exist.
        unsafe {
            for channel in (0..whole).step_by(S::LANES) {
                self.vector(s, channel, S::LANES);
            }
            if whole < channels {
                self.vector(s, whole, channels - whole);
            }
        }
    }
}

impl<T: Taps, const R: usize> Rows<'_, T, R> {
    /// `len` channels from `channel` on.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, s: S, channel: usize, len: usize) {
        let Tile { job, taps, first } = self.0;
        let stride = job.stride;
        // SAFETY: the caller's contract.
        unsafe {
            let sums = [job.tail.start(s, channel, len); R];
            let weights = job.weights.add(channel);
            let sums = taps.add(s, sums, weights, stride, channel, len);
            for (r, &sum) in sums.iter().enumerate() {
                let place = (first + r) * stride + channel;
                let y = job.tail.end(s, sum, place, len);
                store(s, job.output.add(place), len, y);
            }
        }
    }
}

//! One input and one output channel in each group: vectors of channels, a few pixels at a time so that they share the weights.

use super::{Job, Weight, load, store};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::tile::prefetch;
use crate::library::simd::{Kernel, Simd, dispatch};
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
    let leading = job.pixels.leading_taps();
    let grain = (TASK_STEPS / (taps * job.stride).max(1)).max(ROWS);
    let tasks = job.count.div_ceil(grain);
    cx.try_run(tasks, |index| {
        let pixels = index * job.count / tasks..(index + 1) * job.count / tasks;
        let tables = cx.scratch.take::<usize>(2 * taps * ROWS)?;
        let table = |tile: usize| {
            let tables = tables.as_ptr::<*const f32>();
            tables.wrapping_add(tile % 2 * taps * ROWS)
        };
        let tile = |index: usize| {
            let first = (pixels.start + index * ROWS).min(pixels.end);
            first..(first + ROWS).min(pixels.end)
        };
        // SAFETY: a table has room for the taps of a tile.
        let fill = |index: usize| unsafe {
            let tile = tile(index);
            job.pixels.fill(tile.start, tile.len(), 0, table(index));
        };
        fill(0);
        for index in 0..pixels.len().div_ceil(ROWS) {
            fill(index + 1);
            let whole = tile(index + 1).len() == tile(index).len();
            let tile = Tile {
                job,
                table: table(index),
                next: table(index + 1),
                leading: if whole { &leading } else { &[] },
                first: tile(index).start,
            };
            // SAFETY: passed on; the rows lie inside the output.
            unsafe { run_rows(cx.isa, tile, (pixels.end - tile.first).min(ROWS)) };
        }
        job.finish(pixels.start, pixels.len(), 0, job.stride);
        Ok(())
    })
}

/// A few pixels, all channels.
#[derive(Clone, Copy)]
struct Tile<'a> {
    job: &'a Job<'a>,
    /// For each tap, the address of each pixel.
    table: *const *const f32,
    /// The same for the pixels that come next, and the taps of theirs to fetch ahead.
    next: *const *const f32,
    leading: &'a [usize],
    first: usize,
}

unsafe fn run_rows(isa: Isa, tile: Tile, rows: usize) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match rows {
                $($rows => dispatch(isa, Rows::<$rows>(tile)),)*
                _ => unreachable!("bug: {rows} rows at a time"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8)
}

/// A tile of `R` pixels.
struct Rows<'a, const R: usize>(Tile<'a>);

impl<const R: usize> Kernel for Rows<'_, R> {
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

impl<const R: usize> Rows<'_, R> {
    /// `len` channels from `channel` on.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, s: S, channel: usize, len: usize) {
        let Job {
            weights,
            output,
            stride,
            tail,
            ..
        } = *self.0.job;
        // SAFETY: the caller's contract; the tables have `R` addresses for each tap.
        unsafe {
            for &tap in self.0.leading {
                for r in 0..R {
                    prefetch((*self.0.next.add(tap * R + r)).wrapping_add(channel));
                }
            }
            let mut sums = [tail.start(s, channel, len); R];
            let mut table = self.0.table;
            let mut weights = weights.add(channel);
            for _ in 0..self.0.job.pixels.taps() {
                let w = load(s, weights, len);
                for r in 0..R {
                    let x = load(s, (*table.add(r)).add(channel), len);
                    sums[r] = s.mul_add(x, w, sums[r]);
                }
                table = table.add(R);
                weights = weights.add(stride);
            }
            for (r, &sum) in sums.iter().enumerate() {
                let place = (self.0.first + r) * stride + channel;
                let y = tail.end(s, sum, place, len);
                store(s, output.add(place), len, y);
            }
        }
    }
}

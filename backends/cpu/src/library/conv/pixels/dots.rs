//! Few output channels: products along the channels of the input, and along the taps of a line where they are neighbours.
//!
//! A vector of output channels would leave most lanes idle. Here lanes are inputs; the sums of a few pixels are transposed so
//! that their lanes are added up together.

use super::{Job, RawTail, Weight, load, store};
use crate::error::Result;
use crate::library::Context;
use crate::library::simd::loops::for_each_part;
use crate::library::simd::{Kernel, MAX_LANES, MAX_VECTORS, PARTS, Simd, dispatch, join_parts};
use crate::library::view::View;

/// Most output channels.
const MAX_OUTPUTS: usize = 4;

/// Pixels of a tile.
const ROWS: usize = PARTS;

/// Pixels that share vectors of weights.
const QUAD: usize = 4;

/// What adding up the lanes of a sum costs, in multiplications of vectors.
const SUM_COST: usize = 8;

/// Multiplications of one task, about 10 us.
const TASK_STEPS: usize = 1 << 18;

/// Whether products along the inputs take less time than half vectors of output channels would. The same at every level, so
/// that levels agree.
pub(super) fn pays([outputs, inputs, taps @ ..]: [usize; 5]) -> bool {
    let (line, lines) = match super::stage::merges_taps(inputs, taps[2]) {
        true => (inputs * taps[2], taps[0] * taps[1]),
        false => (inputs, taps.iter().product()),
    };
    let vectors = line.div_ceil(PARTS) * lines;
    outputs <= MAX_OUTPUTS && 2 * outputs * (vectors + SUM_COST) < line * lines
}

/// Packs weights `[outputs, inputs, taps..]` as `[outputs, taps, inputs]`.
///
/// # Safety
/// The weights must be dense, `to` have as many elements.
pub(super) unsafe fn pack<T: Weight>(weights: &View<'_, T, 5>, to: *mut f32) {
    let [outputs, inputs, taps @ ..] = weights.shape();
    let taps: usize = taps.iter().product();
    for output in 0..outputs {
        for input in 0..inputs {
            for tap in 0..taps {
                // SAFETY: the caller's contract.
                unsafe {
                    let weight = *weights.as_ptr().add((output * inputs + input) * taps + tap);
                    *to.add((output * taps + tap) * inputs + input) = weight.widen();
                }
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
    let grain = (TASK_STEPS / (taps * job.inputs * job.outputs).max(1)).max(ROWS);
    let tasks = job.count.div_ceil(grain);
    cx.try_run(tasks, |index| {
        let pixels = index * job.count / tasks..(index + 1) * job.count / tasks;
        let table = cx.scratch.take::<usize>(taps * ROWS)?;
        let table = table.as_ptr::<*const f32>();
        let mut at = job.pixels.place(pixels.start);
        for first in pixels.clone().step_by(ROWS) {
            let rows = (pixels.end - first).min(ROWS);
            // SAFETY: the table has room for the taps of a tile.
            unsafe { job.pixels.fill(&mut at, rows, 0, table) };
            let tile = Tile {
                job,
                table,
                taps,
                first,
                rows,
            };
            dispatch(cx.isa, tile);
        }
        job.finish(pixels.start, pixels.len(), 0, job.stride);
        Ok(())
    })
}

/// A few pixels, all output channels.
struct Tile<'a> {
    job: &'a Job<'a>,
    /// For each tap, the address of each pixel.
    table: *const *const f32,
    taps: usize,
    first: usize,
    rows: usize,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (job, outputs) = (self.job, self.job.outputs);
        let mut results = [0f32; ROWS * MAX_OUTPUTS];
        for output in 0..outputs {
            let mut sums = [0f32; ROWS];
            // SAFETY: passed on.
            unsafe { self.sums(s, output, &mut sums) };
            for (row, &sum) in sums.iter().enumerate() {
                results[row * outputs + output] = sum;
            }
        }
        let mut bias = [0f32; ROWS * MAX_OUTPUTS];
        if !job.tail.bias.is_null() {
            for (at, bias) in bias.iter_mut().enumerate() {
                // SAFETY: there is a bias for each channel.
                *bias = unsafe { *job.tail.bias.add(at % outputs) };
            }
        }
        let tail = RawTail {
            bias: bias.as_ptr(),
            ..job.tail
        };
        let (place, len) = (self.first * outputs, self.rows * outputs);
        for at in (0..len).step_by(S::LANES) {
            let count = (len - at).min(S::LANES);
            // SAFETY: the pixels lie inside the output, and the arrays have all their channels.
            unsafe {
                let sum = load(s, results.as_ptr().add(at), count);
                let sum = s.add(sum, tail.start(s, at, count));
                let y = tail.end(s, sum, place + at, count);
                store(s, job.output.add(place + at), count, y);
            }
        }
        // SAFETY: as above.
        unsafe { tail.pass(s, job.output.add(place), [1, 0, len]) };
    }
}

impl Tile<'_> {
    /// The sums of an output channel; those beyond the pixels mean nothing.
    ///
    /// # Safety
    /// The addresses must be valid.
    #[inline(always)]
    unsafe fn sums<S: Simd>(&self, s: S, output: usize, to: &mut [f32; ROWS]) {
        let inputs = self.job.inputs;
        let filter = self.job.weights.wrapping_add(output * self.taps * inputs);
        let mut parts = [[s.splat(0.0); MAX_VECTORS]; ROWS];
        for (first, parts) in (0..self.rows)
            .step_by(QUAD)
            .zip(parts.chunks_exact_mut(QUAD))
        {
            let mut sums = [[s.splat(0.0); MAX_VECTORS]; QUAD];
            for tap in 0..self.taps {
                let weights = filter.wrapping_add(tap * inputs);
                let pixels: [*const f32; QUAD] = std::array::from_fn(|r| {
                    let row = (first + r).min(self.rows - 1);
                    // SAFETY: the table has an address for each pixel.
                    unsafe { *self.table.add(tap * self.rows + row) }
                });
                for_each_part!(s, inputs, |vector, at, len| {
                    // SAFETY: each tap has so many inputs, each pixel the same.
                    unsafe {
                        let w = load(s, weights.add(at), len);
                        for (sums, pixel) in sums.iter_mut().zip(pixels) {
                            sums[vector] = s.mul_add(load(s, pixel.add(at), len), w, sums[vector]);
                        }
                    }
                });
            }
            parts.copy_from_slice(&sums);
        }
        for (parts, to) in parts
            .chunks_exact(S::LANES)
            .zip(to.chunks_exact_mut(S::LANES))
        {
            let mut square = [s.splat(0.0); MAX_LANES];
            for (row, parts) in square.iter_mut().zip(parts) {
                *row = join_parts(s, parts);
            }
            s.transpose(&mut square);
            let mut half = S::LANES / 2;
            while half > 0 {
                for lane in 0..half {
                    square[lane] = s.add(square[lane], square[lane + half]);
                }
                half /= 2;
            }
            // SAFETY: the chunk has room for a vector.
            unsafe { s.store(to.as_mut_ptr(), square[0]) };
        }
    }
}

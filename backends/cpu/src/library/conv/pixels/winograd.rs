//! Winograd's minimal filtering of 3x3 windows that move by one (Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks", 2015): F(2,3) computes 2x2 outputs from 4x4 inputs with 16 multiplications instead of 36, F(4,3) 4x4 outputs
//! from 6x6 inputs with 36 instead of 144.
//!
//! Tiles of the input are transformed, multiplied with transformed weights (a matrix product for each place in a tile), and
//! transformed back; [`super::dense`]'s tiles do the products. F(4,3) interpolates at 0, 3/4, -3/4, 3/2, -3/2 and infinity: all
//! coefficients are short binary fractions, and the error is a sixth of that of the usual 0, 1, -1, 2, -2.

use super::dense::{MAX_ROWS, Tile, VECTORS, lanes, max_rows, share};
use super::stage::pixel_step;
use super::words::{Reading, Weight, WordKernel, Words, dispatch_words};
use super::{Job, RawTail, Tail, load, store};
use crate::error::Result;
use crate::isa::{Isa, caches};
use crate::library::Context;
use crate::library::simd::{Kernel, Simd, dispatch};
use crate::library::view::{Shared, View};
use crate::library::window::Window;

/// Size of the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tiling {
    /// F(2,3)
    Two,
    /// F(4,3)
    Four,
}

/// Inputs along a side of the largest tile.
const MAX_POINTS: usize = 6;

/// Finite interpolation points of F(4,3), and their negatives.
const A: f32 = 0.75;
const B: f32 = 1.5;

impl Tiling {
    /// Outputs along a side of a tile.
    fn outputs(self) -> usize {
        match self {
            Tiling::Two => 2,
            Tiling::Four => 4,
        }
    }

    /// Inputs along a side of a tile.
    fn points(self) -> usize {
        self.outputs() + 2
    }

    /// Products of a tile.
    pub fn products(self) -> usize {
        self.points() * self.points()
    }

    /// For each point, what the three weights of a line count.
    fn weights(self) -> &'static [[f64; 3]] {
        const fn point(p: f64, q: f64) -> [f64; 3] {
            let n = 2.0 * p * p * (p * p - q * q);
            [1.0 / n, p / n, p * p / n]
        }
        const A2: f64 = A as f64;
        const B2: f64 = B as f64;
        const TWO: [[f64; 3]; 4] = [
            [1.0, 0.0, 0.0],
            [0.5, 0.5, 0.5],
            [0.5, -0.5, 0.5],
            [0.0, 0.0, 1.0],
        ];
        const FOUR: [[f64; 3]; 6] = [
            [1.0 / (A2 * A2 * B2 * B2), 0.0, 0.0],
            point(A2, B2),
            point(-A2, B2),
            point(B2, A2),
            point(-B2, A2),
            [0.0, 0.0, 1.0],
        ];
        match self {
            Tiling::Two => &TWO,
            Tiling::Four => &FOUR,
        }
    }
}

/// The cheapest way to convolve `batch` images with weights of this shape; None: directly.
///
/// Costs are in multiplications at full speed. What a weight's way from memory costs was measured on Zen 4: about ten of them.
pub(super) fn choose(
    window: &Window,
    batch: usize,
    shape: [usize; 5],
    reading: Reading,
) -> Option<Tiling> {
    let [outputs, inputs, ..] = shape;
    if !applies(window) {
        return None;
    }
    let [depth, height, width] = window.output();
    let weights = inputs.saturating_mul(outputs) as f64;
    let images = batch.saturating_mul(depth) as f64;
    const FETCH: f64 = 10.0;
    // Products of a word count as one.
    let weights = weights / reading.channels() as f64;
    let direct = 9.0 * weights * (images * height as f64 * width as f64 + FETCH);
    let cost = |tiling: Tiling| {
        let side = tiling.outputs();
        let tiles = images * (height.div_ceil(side) * width.div_ceil(side)) as f64;
        let products = tiling.products() as f64;
        // A transform reads and writes every element of a tile twice and adds about as often as it reads.
        let transforms = 4.0 * products * tiles * (inputs + outputs) as f64;
        products * weights * (tiles + FETCH) + transforms
    };
    // The larger tile needs more memory and is less precise: too little so for a narrow type.
    let surcharge = match reading {
        Reading::Pairs => f64::INFINITY,
        Reading::Plain | Reading::Rounded => 1.1,
    };
    let (two, four) = (cost(Tiling::Two), cost(Tiling::Four) * surcharge);
    let (best, least) = if two <= four {
        (Tiling::Two, two)
    } else {
        (Tiling::Four, four)
    };
    (least < 0.9 * direct).then_some(best)
}

/// Whether windows are 3x3 and move by one.
pub(super) fn applies(window: &Window) -> bool {
    window.kernel == [1, 3, 3] && window.stride == [1; 3] && window.dilation == [1; 3]
}

/// Channels in a panel of which `rest` remain.
fn panel_columns(isa: Isa, rest: usize) -> usize {
    if rest > lanes(isa) {
        VECTORS * lanes(isa)
    } else {
        lanes(isa)
    }
}

/// Output channels with those that fill the last panel.
fn padded_columns(isa: Isa, outputs: usize) -> usize {
    outputs.next_multiple_of(lanes(isa))
}

/// Words of transformed weights for so many output channels and input words.
pub(super) fn packed_len(isa: Isa, tiling: Tiling, [outputs, inputs]: [usize; 2]) -> usize {
    let columns = padded_columns(isa, outputs);
    columns
        .saturating_mul(inputs)
        .saturating_mul(tiling.products())
}

/// Widest panel of any level.
const MAX_COLUMNS: usize = VECTORS * crate::library::simd::MAX_LANES;

/// Transforms and packs weights `[outputs, inputs, 1, 3, 3]`: for each panel of outputs, for each place in a tile, for each
/// word of inputs, the panel's channels.
///
/// # Safety
/// The weights must be dense, `to` have [`packed_len`] words.
pub(super) unsafe fn pack<T: Weight>(
    cx: &Context,
    tiling: Tiling,
    reading: Reading,
    weights: &View<'_, T, 5>,
    to: Shared<f32>,
) {
    let [outputs, inputs, ..] = weights.shape();
    let words = reading.words(inputs);
    let width = VECTORS * lanes(cx.isa);
    let from = Shared(weights.as_ptr().cast_mut());
    cx.pool.run(outputs.div_ceil(width), |panel| {
        let first = panel * width;
        let columns = panel_columns(cx.isa, outputs - first);
        let to = to.get().wrapping_add(first * words * tiling.products());
        for input in 0..inputs {
            let mut filters = [[0f64; MAX_COLUMNS]; 9];
            for lane in 0..columns.min(outputs - first) {
                let filter = from
                    .get()
                    .wrapping_add(((first + lane) * inputs + input) * 9);
                for (tap, lanes) in filters.iter_mut().enumerate() {
                    // SAFETY: the caller's contract.
                    lanes[lane] = f64::from(unsafe { *filter.add(tap) }.widen());
                }
            }
            let transformed = transform_weights(tiling, &filters);
            let (word, half) = (input / reading.channels(), input % reading.channels());
            for (place, lanes) in transformed.iter().enumerate().take(tiling.products()) {
                for (lane, &weight) in lanes.iter().enumerate().take(columns) {
                    let to = to.wrapping_add((place * words + word) * columns + lane);
                    // SAFETY: the caller's contract.
                    unsafe { reading.set(to, half, weight as f32) };
                }
            }
        }
    });
}

type Lanes = [f64; MAX_COLUMNS];

/// Weights at all places of a tile.
fn transform_weights(tiling: Tiling, filters: &[Lanes; 9]) -> [Lanes; MAX_POINTS * MAX_POINTS] {
    let factors = tiling.weights();
    let combine = |factors: &[f64; 3], lines: [&Lanes; 3]| -> Lanes {
        std::array::from_fn(|lane| {
            factors[0] * lines[0][lane] + factors[1] * lines[1][lane] + factors[2] * lines[2][lane]
        })
    };
    let mut all = [[0f64; MAX_COLUMNS]; MAX_POINTS * MAX_POINTS];
    for (row, rows) in factors.iter().enumerate() {
        let half: [Lanes; 3] =
            std::array::from_fn(|x| combine(rows, [&filters[x], &filters[3 + x], &filters[6 + x]]));
        for (col, cols) in factors.iter().enumerate() {
            all[row * factors.len() + col] = combine(cols, [&half[0], &half[1], &half[2]]);
        }
    }
    all
}

/// The tiles of a convolution's output.
struct Plan<'a> {
    job: &'a Job<'a>,
    tiling: Tiling,
    /// Output rows and columns.
    height: usize,
    width: usize,
    /// Tiles over the width and in an image plane.
    across: usize,
    plane: usize,
    /// Tiles that are transformed at a time.
    batch: usize,
    /// Words of a transformed pixel, and between transformed tiles.
    words: usize,
    step: usize,
}

/// Tasks for each thread, so that they end together.
const TASKS: usize = 4;

/// Computes the convolution with transformed weights.
///
/// # Safety
/// The addresses of the job must be valid for its extents.
pub(super) unsafe fn run(cx: &Context, job: &Job, tiling: Tiling) -> Result<()> {
    let [_, height, width] = job.pixels.windows();
    let side = tiling.outputs();
    let across = width.div_ceil(side);
    let plane = across * height.div_ceil(side);
    let total = job.count / (height * width) * plane;
    let threads = cx.pool.threads();
    // Tiles whose transforms stay in the second-level cache.
    let words = job.reading.words(job.inputs);
    let tile_size = tiling.products() * pixel_step(words.max(1)) * size_of::<f32>();
    let resident = (caches().l2 / 2 / tile_size).max(MAX_ROWS);
    let rounds = total.div_ceil(resident * threads);
    let plan = Plan {
        job,
        tiling,
        height,
        width,
        across,
        plane,
        batch: total.div_ceil(rounds),
        words,
        step: pixel_step(words),
    };
    let inputs = cx
        .scratch
        .take::<f32>(tiling.products() * plan.batch * plan.step)?;
    let inputs = Shared(inputs.as_ptr::<f32>());
    for first in (0..total).step_by(plan.batch) {
        let count = plan.batch.min(total - first);
        let parts = if threads == 1 {
            1
        } else {
            count.min(TASKS * threads)
        };
        cx.pool.run(parts, |part| {
            for tile in share(count, parts, part) {
                // SAFETY: passed on; every tile has a place of its own.
                unsafe {
                    plan.transform(
                        cx,
                        first + tile,
                        inputs.get().wrapping_add(tile * plan.step),
                    )
                };
            }
        });
        let panels = job.outputs.div_ceil(VECTORS * lanes(cx.isa));
        let blocks = count.div_ceil(resident);
        let groups = if threads == 1 {
            1
        } else {
            (TASKS * threads).div_ceil(blocks).min(panels)
        };
        cx.try_run(blocks * groups, |task| {
            let tiles = share(count, blocks, task / groups);
            let panels = share(panels, groups, task % groups);
            // SAFETY: passed on; tasks write disjoint parts of the output.
            unsafe { plan.multiply(cx, first, inputs.get(), tiles, panels) }
        })?;
    }
    Ok(())
}

impl Plan<'_> {
    /// Image plane and first output row and column of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (plane, rest) = (tile / self.plane, tile % self.plane);
        let side = self.tiling.outputs();
        (plane, rest / self.across * side, rest % self.across * side)
    }

    /// Transforms the input of a tile; its places in `to` are `batch` pixels apart.
    unsafe fn transform(&self, cx: &Context, tile: usize, to: *mut f32) {
        let (plane, row, col) = self.place(tile);
        let points = self.tiling.points();
        let mut pixels = [std::ptr::null(); MAX_POINTS * MAX_POINTS];
        for (place, pixel) in pixels.iter_mut().enumerate().take(points * points) {
            *pixel = self
                .job
                .pixels
                .at(plane, row + place / points, col + place % points);
        }
        let inputs = Inputs {
            pixels: &pixels,
            channels: self.job.inputs,
            to,
            step: self.batch * self.step,
        };
        let reading = self.job.reading;
        // SAFETY: passed on.
        unsafe {
            match self.tiling {
                Tiling::Two => dispatch_words(cx.isa, reading, InputTile::<4>(inputs)),
                Tiling::Four => dispatch_words(cx.isa, reading, InputTile::<6>(inputs)),
            }
        }
    }

    /// Multiplies a range of transformed tiles by a range of panels, and transforms the products back.
    unsafe fn multiply(
        &self,
        cx: &Context,
        first: usize,
        inputs: *const f32,
        tiles: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
    ) -> Result<()> {
        let (job, places, count) = (self.job, self.tiling.products(), tiles.len());
        let width = VECTORS * lanes(cx.isa);
        let table = cx.scratch.take::<usize>(places * count)?;
        let table = table.as_ptr::<*const f32>();
        for index in 0..places * count {
            let tile = index / count * self.batch + tiles.start + index % count;
            // SAFETY: the table has room for all addresses.
            unsafe { *table.add(index) = inputs.wrapping_add(tile * self.step) };
        }
        let sums = cx.scratch.take::<f32>(places * count * width)?;
        let sums = sums.as_ptr::<f32>();
        for panel in panels.clone() {
            let channel = panel * width;
            let columns = panel_columns(cx.isa, job.outputs - channel);
            let weights = job.weights.wrapping_add(channel * self.words * places);
            let parts = count.div_ceil(max_rows(cx.isa));
            for index in 0..places * parts {
                let (place, part) = (index / parts, index % parts);
                let rows = share(count, parts, part);
                let row = place * count + rows.start;
                let tile = Tile {
                    pixels: table.wrapping_add(row),
                    zeros: std::ptr::null(),
                    taps: 1,
                    inputs: self.words,
                    weights: weights.wrapping_add(place * self.words * columns),
                    reading: job.reading,
                    output: sums,
                    place: row * columns,
                    stride: columns,
                    channel: 0,
                    cols: columns,
                    padded: columns,
                    tail: RawTail::new(&Tail::NONE),
                };
                // SAFETY: passed on; the sums have room for all places.
                unsafe { tile.run(cx.isa, rows.len()) };
            }
            for tile in tiles.clone() {
                let (plane, row, col) = self.place(first + tile);
                let side = self.tiling.outputs();
                let outputs = Outputs {
                    job,
                    sums: sums.wrapping_add((tile - tiles.start) * columns),
                    step: count * columns,
                    pixel: (plane * self.height + row) * self.width + col,
                    width: self.width,
                    rows: side.min(self.height - row),
                    cols: side.min(self.width - col),
                    channel,
                    channels: columns.min(job.outputs - channel),
                };
                match self.tiling {
                    Tiling::Two => dispatch(cx.isa, OutputTile::<4, 2>(outputs)),
                    Tiling::Four => dispatch(cx.isa, OutputTile::<6, 4>(outputs)),
                }
            }
        }
        let channels = panels.start * width..(panels.end * width).min(job.outputs);
        for tile in tiles {
            let (plane, row, col) = self.place(first + tile);
            let side = self.tiling.outputs();
            for row in row..(row + side).min(self.height) {
                let pixel = (plane * self.height + row) * self.width + col;
                let cols = side.min(self.width - col);
                job.finish(pixel, cols, channels.start, channels.len());
            }
        }
        Ok(())
    }
}

/// A tile of the input.
struct Inputs<'a> {
    /// Its pixels, row by row.
    pixels: &'a [*const f32; MAX_POINTS * MAX_POINTS],
    channels: usize,
    to: *mut f32,
    /// Elements between places in `to`.
    step: usize,
}

/// Transforms a tile of `P` by `P` inputs.
struct InputTile<'a, const P: usize>(Inputs<'a>);

impl<const P: usize> WordKernel for InputTile<'_, P> {
    #[inline(always)]
    fn run<S: Simd, W: Words<S>>(self, s: S) {
        let Inputs {
            pixels,
            channels,
            to,
            step,
        } = self.0;
        for channel in (0..channels).step_by(S::LANES) {
            let len = (channels - channel).min(S::LANES);
            let mut half = [[s.splat(0.0); P]; P];
            for x in 0..P {
                let mut line = [s.splat(0.0); P];
                for (y, value) in line.iter_mut().enumerate() {
                    // SAFETY: every pixel has all channels.
                    *value = unsafe { load(s, pixels[y * P + x].add(channel), len) };
                }
                let line = transform_inputs(s, line);
                for y in 0..P {
                    half[y][x] = line[y];
                }
            }
            for (y, line) in half.iter().enumerate() {
                for (x, &value) in transform_inputs(s, *line).iter().enumerate() {
                    let to = to.wrapping_add((y * P + x) * step);
                    // SAFETY: every place has all channels; what lies beyond them is zero.
                    unsafe { W::put(s, to, channel, len, value) };
                }
            }
        }
    }
}

/// A line of 4 or 6 inputs at the interpolation points.
#[inline(always)]
fn transform_inputs<S: Simd, const P: usize>(s: S, d: [S::F; P]) -> [S::F; P] {
    let mut t = d;
    if P == 4 {
        t[0] = s.sub(d[0], d[2]);
        t[1] = s.add(d[1], d[2]);
        t[2] = s.sub(d[2], d[1]);
        t[3] = s.sub(d[1], d[3]);
        return t;
    }
    let (a2, b2) = (s.splat(A * A), s.splat(B * B));
    let (sum, product) = (s.splat(A * A + B * B), s.splat(A * A * B * B));
    t[0] = s.neg_mul_add(sum, d[2], s.mul_add(product, d[0], d[4]));
    t[5] = s.neg_mul_add(sum, d[3], s.mul_add(product, d[1], d[5]));
    let even = s.neg_mul_add(b2, d[2], d[4]);
    let odd = s.mul(s.splat(A), s.neg_mul_add(b2, d[1], d[3]));
    t[1] = s.add(even, odd);
    t[2] = s.sub(even, odd);
    let even = s.neg_mul_add(a2, d[2], d[4]);
    let odd = s.mul(s.splat(B), s.neg_mul_add(a2, d[1], d[3]));
    t[3] = s.add(even, odd);
    t[4] = s.sub(even, odd);
    t
}

/// A tile of the output.
struct Outputs<'a> {
    job: &'a Job<'a>,
    /// Its products, places `step` elements apart.
    sums: *const f32,
    step: usize,
    /// First output pixel, and pixels in a line of the output.
    pixel: usize,
    width: usize,
    /// Outputs that exist.
    rows: usize,
    cols: usize,
    /// First channel and number of them.
    channel: usize,
    channels: usize,
}

/// Transforms `P` by `P` products to `M` by `M` outputs.
struct OutputTile<'a, const P: usize, const M: usize>(Outputs<'a>);

impl<const P: usize, const M: usize> Kernel for OutputTile<'_, P, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = self.0;
        let job = tile.job;
        for from in (0..tile.channels).step_by(S::LANES) {
            let len = (tile.channels - from).min(S::LANES);
            let channel = tile.channel + from;
            let mut half = [[s.splat(0.0); P]; M];
            for x in 0..P {
                let mut line = [s.splat(0.0); P];
                for (y, value) in line.iter_mut().enumerate() {
                    let sums = tile.sums.wrapping_add((y * P + x) * tile.step + from);
                    // SAFETY: panels of sums are whole vectors.
                    *value = unsafe { s.load(sums) };
                }
                let line: [S::F; M] = transform_outputs(s, line);
                for y in 0..M {
                    half[y][x] = line[y];
                }
            }
            // SAFETY: the channels and the first `rows` by `cols` outputs exist.
            unsafe {
                let start = job.tail.start(s, channel, len);
                for (y, line) in half.iter().enumerate().take(tile.rows) {
                    let line: [S::F; M] = transform_outputs(s, *line);
                    for (x, &sum) in line.iter().enumerate().take(tile.cols) {
                        let place = (tile.pixel + y * tile.width + x) * job.stride + channel;
                        let result = job.tail.end(s, s.add(sum, start), place, len);
                        store(s, job.output.add(place), len, result);
                    }
                    let pixel = tile.pixel + y * tile.width;
                    let to = job.output.add(pixel * job.stride + channel);
                    job.tail.pass(s, to, [tile.cols, job.stride, len]);
                }
            }
        }
    }
}

/// A line of 2 or 4 outputs from products at the interpolation points.
#[inline(always)]
fn transform_outputs<S: Simd, const P: usize, const M: usize>(s: S, m: [S::F; P]) -> [S::F; M] {
    let mut y = [m[0]; M];
    let (sum, difference) = (s.add(m[1], m[2]), s.sub(m[1], m[2]));
    if P == 4 {
        y[0] = s.add(m[0], sum);
        y[1] = s.sub(difference, m[3]);
        return y;
    }
    let (far_sum, far_difference) = (s.add(m[3], m[4]), s.sub(m[3], m[4]));
    y[0] = s.add(m[0], s.add(sum, far_sum));
    y[1] = mix(s, [A, B], [difference, far_difference]);
    y[2] = mix(s, [A * A, B * B], [sum, far_sum]);
    let cubes = [A * A * A, B * B * B];
    y[3] = s.add(m[5], mix(s, cubes, [difference, far_difference]));
    y
}

/// `factors[0] * x[0] + factors[1] * x[1]`
#[inline(always)]
fn mix<S: Simd>(s: S, factors: [f32; 2], x: [S::F; 2]) -> S::F {
    s.mul_add(s.splat(factors[0]), x[0], s.mul(s.splat(factors[1]), x[1]))
}

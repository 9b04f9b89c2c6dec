//! The forms of a convolution that a device has, and what each is predicted to cost.

use cupola_shaders::binding::Width;
use cupola_shaders::convolution::{Block, ConvolutionForm, ConvolutionShader, Direction, Order};
use cupola_shaders::shader::Epilogue;
use cupola_shaders::tile::{FastAxis, Split, Staging, Tile};

use super::{Convolution, ConvolutionPlan, Lengths};
use crate::choice::{Arithmetic, DeviceModel, Work};
use crate::device::Forms;
use crate::library::closeness;

/// Results of a thread in block forms, along the last axis but one and the last.
const BLOCKS: [[u32; 2]; 10] = [
    [1, 1],
    [1, 2],
    [1, 4],
    [2, 1],
    [2, 2],
    [2, 4],
    [4, 1],
    [4, 2],
    [4, 4],
    [8, 1],
];

/// Inner positions that a tile stages at a time, where its own would be mostly beyond the last channel.
const STEPS: [u32; 3] = [16, 8, 4];

/// How the work of a plan is divided.
pub(super) struct Grid {
    /// Workgroups along the rows of one group.
    pub row_tiles: u64,
    /// Workgroups along the columns of one group.
    pub col_tiles: u64,
    /// Workgroups in all.
    pub groups: u64,
    /// Inner positions, with those that fill steps up.
    pub inner: u64,
    /// Inner positions of a part.
    pub split_inner: u64,
    /// Blocks of a batch.
    pub blocks: u64,
}

impl Grid {
    pub fn new(problem: &Convolution, lengths: &Lengths, plan: &ConvolutionPlan) -> Self {
        let threads = |count: u64| count.div_ceil(u64::from(plan.shader.threads()));
        let channels = problem.groups.saturating_mul(problem.out_channels);
        let whole = Self {
            row_tiles: 1,
            col_tiles: 1,
            groups: threads(lengths.results),
            inner: lengths.inner,
            split_inner: lengths.inner,
            blocks: 0,
        };
        match plan.shader.form {
            ConvolutionForm::Direct => whole,
            ConvolutionForm::Block(block) => {
                let [x, y, z] = lengths.axes.map(|axis| axis.out_len);
                let blocks = x * y.div_ceil(block.down.into()) * z.div_ceil(block.across.into());
                let all = blocks.saturating_mul(problem.batches);
                Self {
                    blocks,
                    groups: threads(all.saturating_mul(channels)),
                    ..whole
                }
            }
            ConvolutionForm::Tiled(tile, order, _) => {
                let step = u64::from(tile.step);
                let row_tiles = problem.out_channels.div_ceil(tile.rows.into());
                let col_tiles = lengths.cols.div_ceil(tile.cols.into());
                let inner = match order {
                    Order::Channels(_) => lengths.inner,
                    Order::Positions { .. } => {
                        let steps = problem.in_channels.div_ceil(step);
                        steps.saturating_mul(step).saturating_mul(lengths.kernel)
                    }
                };
                let tiles = row_tiles.saturating_mul(col_tiles);
                Self {
                    row_tiles,
                    col_tiles,
                    groups: tiles
                        .saturating_mul(problem.groups)
                        .saturating_mul(plan.splits),
                    inner,
                    split_inner: inner.div_ceil(step).div_ceil(plan.splits) * step,
                    blocks: 0,
                }
            }
        }
    }
}

/// Every plan that can compute the convolution.
pub(super) fn all(
    problem: &Convolution,
    lengths: &Lengths,
    device: &DeviceModel,
) -> Vec<ConvolutionPlan> {
    let whole = |form| ConvolutionPlan {
        shader: problem.shader(lengths, form),
        splits: 1,
    };
    let mut plans = vec![whole(ConvolutionForm::Direct)];
    if device.forms == Forms::Plain || lengths.inner == 0 {
        return plans;
    }
    plans.extend(blocks(problem, lengths).map(|block| whole(ConvolutionForm::Block(block))));
    let orders = [
        Order::Channels(dense_weights(problem, lengths)),
        Order::Positions {
            weights: weight_staging(problem, lengths),
            input: input_staging(problem, lengths),
        },
    ];
    for order in orders {
        for tile in Tile::ALL {
            for tile in tiles(tile, order, problem.in_channels) {
                let plan = whole(ConvolutionForm::Tiled(tile, order, Split::Whole));
                if fits(&plan.shader, device) {
                    plans.extend(splits(problem, lengths, &plan.shader, device));
                    plans.push(plan);
                }
            }
        }
    }
    plans
}

/// Blocks that are no larger than the result, for forward convolutions with a text for their windows.
fn blocks(problem: &Convolution, lengths: &Lengths) -> impl Iterator<Item = Block> + use<> {
    let [_, y, z] = lengths.axes;
    let short = |len: u64| u32::try_from(len).ok().filter(|&len| len <= 1 << 12);
    let pair = |of: fn(&super::SpatialAxis) -> u64| Some([short(of(&y))?, short(of(&z))?]);
    let kernel = pair(|axis| axis.kernel_len);
    let windows = pair(|axis| axis.stride).zip(pair(|axis| axis.dilation));
    let forward = problem.direction == Direction::Forward;
    let known = kernel.zip(windows).filter(|_| forward).into_iter();
    let [most_down, most_across] = [y, z].map(|axis| axis.out_len.next_power_of_two());
    known.flat_map(move |(kernel, (strides, dilations))| {
        BLOCKS
            .into_iter()
            .filter(move |&[down, across]| {
                u64::from(down) <= most_down && u64::from(across) <= most_across
            })
            .map(move |[down, across]| Block {
                down,
                across,
                strides,
                dilations,
            })
            .filter(move |block| {
                let written = |len: u32| u64::from(len) <= super::MOST_KERNEL;
                block.suits(kernel) && kernel.into_iter().all(written)
            })
    })
}

/// A tile with each step that fills up channels less than all larger ones.
fn tiles(tile: Tile, order: Order, channels: u64) -> Vec<Tile> {
    if matches!(order, Order::Channels(_)) {
        return vec![tile];
    }
    let mut least = u64::MAX;
    let mut all = Vec::new();
    for step in STEPS.into_iter().filter(|&step| step <= tile.step) {
        let padded = channels.next_multiple_of(step.into());
        if padded < least {
            all.push(Tile { step, ..tile });
        }
        least = least.min(padded);
    }
    all
}

fn fits(shader: &ConvolutionShader, device: &DeviceModel) -> bool {
    shader.threads() <= device.limits.workgroup_threads
        && shader.memory_size() <= device.limits.workgroup_memory_size
}

/// A tiled kernel with the inner axis divided where that gives a device more to do at a time.
fn splits(
    problem: &Convolution,
    lengths: &Lengths,
    shader: &ConvolutionShader,
    device: &DeviceModel,
) -> Vec<ConvolutionPlan> {
    let ConvolutionForm::Tiled(tile, order, _) = shader.form else {
        return Vec::new();
    };
    let parts = ConvolutionShader {
        form: ConvolutionForm::Tiled(tile, order, Split::Parts),
        out: shader.accumulator.element(),
        epilogue: Epilogue::default(),
        ..shader.clone()
    };
    let plan = |splits| ConvolutionPlan {
        shader: parts.clone(),
        splits,
    };
    let grid = Grid::new(problem, lengths, &plan(1));
    let steps = grid.inner.div_ceil(tile.step.into());
    let mut plans = Vec::new();
    let mut splits = 2;
    while splits <= steps / 2
        && grid.groups.saturating_mul(splits) <= 4 * device.busy_groups()
        && lengths.results.saturating_mul(4 * splits) <= device.limits.binding_size
    {
        // Whole steps for each, and none without work.
        let each = steps.div_ceil(splits);
        plans.push(plan(steps.div_ceil(each)));
        splits *= 2;
    }
    plans
}

/// Whether input channel and kernel position run through the weights without gaps, and how they are read then.
fn dense_weights(problem: &Convolution, lengths: &Lengths) -> Option<Width> {
    let mut next = 1i64;
    let axes = lengths.axes.iter().rev();
    for (len, step) in axes
        .map(|axis| (axis.kernel_len, axis.weight_stride))
        .chain([(problem.in_channels, problem.weight.inner_stride)])
    {
        if len > 1 && step != next {
            return None;
        }
        next = next.wrapping_mul(len as i64);
    }
    let distances = [
        problem.weight.offset,
        problem.weight.outer_stride,
        problem.weight_group(),
        lengths.inner as i64,
    ];
    let in_fours = problem.weight.element.has_fours() && in_fours(&distances);
    Some(if in_fours { Width::Four } else { Width::One })
}

fn in_fours(distances: &[i64]) -> bool {
    distances.iter().all(|distance| distance % 4 == 0)
}

/// How weights are read, some channels of one kernel position at a time.
fn weight_staging(problem: &Convolution, lengths: &Lengths) -> Staging {
    let weight = &problem.weight;
    let longer = lengths.axes.iter().filter(|axis| axis.kernel_len > 1);
    let mut distances: Vec<i64> = longer.map(|axis| axis.weight_stride).collect();
    distances.extend([weight.offset, problem.weight_group()]);
    let inner = (problem.in_channels, weight.inner_stride);
    let outer = (problem.out_channels, weight.outer_stride);
    let (fast, near, far) = match closeness(outer.0, outer.1) < closeness(inner.0, inner.1) {
        true => (FastAxis::Outer, outer, inner),
        false => (FastAxis::Inner, inner, outer),
    };
    distances.extend([near.0 as i64, if far.0 > 1 { far.1 } else { 0 }]);
    let fours = near.1 == 1 && weight.element.has_fours() && in_fours(&distances);
    Staging::new(fast, if fours { Width::Four } else { Width::One })
}

/// How the input is read, some channels at one position at a time.
fn input_staging(problem: &Convolution, lengths: &Lengths) -> Staging {
    let input = &problem.input;
    let longer = lengths.axes.iter().filter(|axis| axis.input_len > 1);
    let mut distances: Vec<i64> = longer.map(|axis| axis.input_stride).collect();
    let nearest = distances.iter().map(|stride| stride.unsigned_abs()).min();
    let channels = closeness(problem.in_channels, input.inner_stride);
    if nearest.is_none_or(|nearest| nearest <= channels) && channels != 1 {
        return Staging::new(FastAxis::Outer, Width::One);
    }
    distances.extend([input.offset, problem.in_channels as i64]);
    if problem.batches > 1 {
        distances.push(input.outer_stride);
    }
    let fours = input.inner_stride == 1 && input.element.has_fours() && in_fours(&distances);
    Staging::new(
        FastAxis::Inner,
        if fours { Width::Four } else { Width::One },
    )
}

/// Predicted seconds.
pub(super) fn seconds(
    problem: &Convolution,
    lengths: &Lengths,
    plan: &ConvolutionPlan,
    device: &DeviceModel,
) -> f64 {
    let shader = &plan.shader;
    let grid = Grid::new(problem, lengths, plan);
    let bytes = |bits: u32| f64::from(bits) / 8.0;
    let (input_size, weight_size) = (bytes(shader.input.bits()), bytes(shader.weight.bits()));
    let lens = |of: fn(&super::SpatialAxis) -> u64| -> f64 {
        lengths.axes.iter().map(|axis| of(axis) as f64).product()
    };
    let inputs = lens(|axis| axis.input_len)
        * problem.batches as f64
        * (problem.groups * problem.in_channels) as f64;
    let weights = (problem.groups * problem.out_channels) as f64 * lengths.inner as f64;
    let results = lengths.results as f64 * f64::from(shader.out.bits()) / 8.0;
    let once = inputs * input_size + weights * weight_size;
    let groups = grid.groups as f64;
    let threads = f64::from(shader.threads());
    let (staged, operations, share) = match shader.form {
        ConvolutionForm::Tiled(tile, order, _) => {
            let (rows, cols) = (f64::from(tile.rows), f64::from(tile.cols));
            let inner = groups * grid.inner as f64 / plan.splits as f64;
            (
                inner * (rows * weight_size + cols * input_size),
                inner * rows * cols * 2.0,
                tile_share(tile, order),
            )
        }
        ConvolutionForm::Block(block) => {
            let slots = block_slots(problem, lengths, block);
            (0.0, groups * threads * slots * 2.0, 1.0)
        }
        ConvolutionForm::Direct => {
            let slots = 30.0 + DIRECT_SLOTS * lengths.inner as f64;
            (0.0, groups * threads * slots * 2.0, 1.0)
        }
    };
    let mut seconds = device.seconds(&Work {
        bytes: once + results * plan.splits as f64,
        cached: (staged - once).max(0.0),
        operations,
        arithmetic: Arithmetic::F32,
        share,
        groups,
        threads,
    });
    if plan.splits > 1 {
        seconds += device.seconds(&Work {
            bytes: results * (plan.splits as f64 + 1.0),
            cached: 0.0,
            operations: lengths.results as f64 * plan.splits as f64,
            arithmetic: Arithmetic::F32,
            share: 1.0,
            groups: lengths.results as f64 / 256.0,
            threads: 256.0,
        });
    }
    seconds
}

/// Instructions of a thread of the direct form for each product: its place in the input and its weight's, and both loads.
const DIRECT_SLOTS: f64 = 30.0;

/// Instructions to find an element's place in the input from its inner position.
const PLACE_SLOTS: f64 = 40.0;

/// Instructions to load an element whose place is known, and to store it to workgroup memory.
const STAGE_SLOTS: f64 = 6.0;

/// Instructions around the barriers of a step.
const STEP_SLOTS: f64 = 12.0;

/// The share of the peak that a tile's loop can reach: products, reading their operands from workgroup memory, and staging.
fn tile_share(tile: Tile, order: Order) -> f64 {
    let reads = f64::from(tile.thread_rows + tile.thread_cols)
        / f64::from(tile.thread_rows * tile.thread_cols);
    let loads = |outer: u32, staging: Staging| {
        let four = if staging.width == Width::One {
            1.0
        } else {
            4.0
        };
        (f64::from(outer * tile.step) / f64::from(tile.threads()) / four).max(1.0)
    };
    let slots = match order {
        Order::Channels(dense) => {
            let weights = Staging::new(FastAxis::Inner, dense.unwrap_or(Width::One));
            let input = Staging::new(FastAxis::Outer, Width::One);
            STAGE_SLOTS * loads(tile.rows, weights)
                + (STAGE_SLOTS + PLACE_SLOTS) * loads(tile.cols, input)
        }
        Order::Positions { weights, input } => {
            // Along the channels each load may be of another position.
            let places = match input.fast {
                FastAxis::Outer => 1.0,
                FastAxis::Inner => loads(tile.cols, input),
            };
            let staged = loads(tile.rows, weights) + loads(tile.cols, input);
            STAGE_SLOTS * staged + PLACE_SLOTS * places
        }
    };
    let products = f64::from(tile.thread_rows * tile.thread_cols * tile.step);
    1.0 / (1.15 + 1.2 * reads + (slots + STEP_SLOTS) / products)
}

/// Instructions of a thread of a block form.
fn block_slots(problem: &Convolution, lengths: &Lengths, block: Block) -> f64 {
    let [x, y, z] = lengths.axes.map(|axis| axis.kernel_len);
    let kernel = [y as u32, z as u32];
    let (taps, reads) = ((y * z) as f64, f64::from(block.reads(kernel)));
    let len = f64::from(block.len());
    let plane = 10.0 + 2.0 * taps + 4.0 * reads + taps * len;
    40.0 + 12.0 * len + problem.in_channels as f64 * x as f64 * plane
}

//! Convolution of 8-bit integers with zero points, accumulated in i32. The padding is the input's zero point.
//!
//! Where words of four bytes can be multiplied, a block of windows at a time reads four neighbouring channels as one (`planes`).
//! Elsewhere, and where channels are few, patches are stored as bytes and multiplied by the weights as any product of bytes.

use super::planes::{Block, PlaneWeights};
use super::{Extents, check_dense};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::{
    Bytes, BytesLeft, BytesRight, Epilogue, Finished, PackedBytesLeft, ZeroPoints, multiply_bytes,
};
use crate::library::view::{Shared, View, ViewMut, mismatch};
use crate::library::window::Window;

/// The input of a convolution of bytes.
#[derive(Debug, Clone, Copy)]
pub struct ByteInput<'a> {
    /// `[batch, in_channels, depth, height, width]`; neighbours along the width are neighbours in memory.
    pub view: View<'a, u8, 5>,
    /// Whether it is `i8`.
    pub signed: bool,
    /// Its zero point, a number of its type.
    pub zero: i32,
}

/// The weights of a convolution of bytes.
#[derive(Debug, Clone, Copy)]
pub struct ByteWeights<'a> {
    /// `[out_channels, in_channels / groups, depth, height, width]`, dense.
    pub view: View<'a, u8, 5>,
    /// Whether they are `i8`.
    pub signed: bool,
    /// Their zero points: one, or one for each output channel.
    pub zero: ZeroPoints<'a>,
}

/// Weights of a convolution of bytes packed for one [`Isa`].
#[derive(Debug)]
pub struct PackedByteWeights {
    groups: Vec<Group>,
    isa: Isa,
    shape: [usize; 5],
}

/// The weights of one group of channels.
#[derive(Debug)]
enum Group {
    Patches(PackedBytesLeft),
    Planes(PlaneWeights),
}

/// Channels of a group from which on words of four of them are well enough filled.
const PLANE_CHANNELS: usize = 12;

impl PackedByteWeights {
    /// Packs the weights of a convolution of so many groups. Errors: extents or zero points that do not agree, weights that are
    /// not dense, out of memory.
    pub fn new(
        cx: &Context,
        weights: &ByteWeights<'_>,
        groups: usize,
    ) -> Result<PackedByteWeights> {
        let isa = cx.isa;
        let shape = weights.view.shape();
        let [outputs, inputs, taps @ ..] = shape;
        if groups == 0 || !outputs.is_multiple_of(groups) {
            let wanted = format!("a multiple of {groups} groups");
            return Err(mismatch("output channels", outputs, wanted));
        }
        check_dense("weights", shape, weights.view.strides(), 1)?;
        if let ZeroPoints::Each(points) = weights.zero
            && points.len() != outputs
        {
            return Err(mismatch("zero points of weights", points.len(), outputs));
        }
        let rows = outputs / groups;
        let volume: usize = taps.iter().product();
        let inner = inputs * volume;
        let whole_words = inputs.is_multiple_of(4) || inputs >= PLANE_CHANNELS;
        let pack = |group: usize| {
            let from = weights.view.as_ptr().wrapping_add(group * rows * inner);
            let bytes = Bytes {
                // SAFETY: the weights are dense, so a group is a dense matrix inside them.
                view: unsafe { View::from_raw(from, [rows, inner], [inner, 1]) },
                signed: weights.signed,
                zero_points: match weights.zero {
                    ZeroPoints::One(point) => ZeroPoints::One(point),
                    ZeroPoints::Each(points) => {
                        ZeroPoints::Each(&points[group * rows..(group + 1) * rows])
                    }
                },
            };
            Ok(match isa.vnni() && whole_words {
                true => Group::Planes(PlaneWeights::new(isa, &bytes, volume, cx.scratch.usage())?),
                false => Group::Patches(PackedBytesLeft::new(cx, &bytes)?),
            })
        };
        Ok(PackedByteWeights {
            groups: (0..groups).map(pack).collect::<Result<_>>()?,
            isa,
            shape,
        })
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        let size = |group: &Group| match group {
            Group::Patches(packed) => packed.size(),
            Group::Planes(packed) => packed.size(),
        };
        self.groups.iter().map(size).sum()
    }
}

/// Bytes of patches stored at a time.
const BLOCK_SIZE: usize = 512 << 10;
/// Blocks for each thread, where there can be so many.
const BLOCKS: usize = 4;
/// Windows of a block are a multiple of this, the columns of the widest tile.
const BLOCK_STEP: usize = 32;

/// Computes `y[n, m, o] = sum over c, t of (w[m, c, t] - zw[m]) * (x[n, c, o * stride + t * dilation - pad] - zx)` modulo 2^32;
/// padding contributes 0. The epilogue is called with `row` = output channel, `col` = index of the window.
///
/// Errors: extents that do not agree, layouts that are not dense, weights packed for another level, out of memory.
pub fn convolve_bytes(
    cx: &Context,
    window: &Window,
    input: &ByteInput<'_>,
    weights: &PackedByteWeights,
    output: ViewMut<'_, i32, 5>,
    epilogue: Option<Epilogue<'_, i32>>,
) -> Result<()> {
    let extents = check(cx.isa, window, input, weights, &output)?;
    let total: usize = extents.windows.iter().product();
    let blocks = Blocks::of(cx, &extents, window, weights, total);
    let to = Shared(output.as_ptr());
    let [batch_stride, channel_stride, ..] = output.strides();
    let groups = extents.groups;
    let rows = extents.outputs;
    cx.try_run(extents.batch * groups * blocks.count, |index| {
        let (image, group) = (index / blocks.count / groups, index / blocks.count % groups);
        let first = index % blocks.count * blocks.windows;
        let count = blocks.windows.min(total - first);
        let start = to
            .get()
            .wrapping_add(image * batch_stride + group * rows * channel_stride + first);
        let shifted = |part: Finished<i32>| {
            if let Some(user) = epilogue {
                user(Finished {
                    batch: image,
                    row: part.row + group * rows,
                    col: part.col + first,
                    ..part
                });
            }
        };
        let epilogue: Option<Epilogue<i32>> = match epilogue {
            Some(_) => Some(&shifted),
            None => None,
        };
        let [batch_step, channel_step, ..] = input.view.strides();
        let channel = group * extents.inputs;
        let block = Block {
            window,
            input,
            from: (input.view.as_ptr()).wrapping_add(image * batch_step + channel * channel_step),
            channels: extents.inputs,
            windows: extents.windows,
            first,
            count,
        };
        match &weights.groups[group] {
            // SAFETY: blocks write disjoint columns of disjoint channels of the output, which is exclusively ours; the extents
            // agree.
            Group::Planes(planes) => unsafe {
                planes.convolve(cx, &block, start, channel_stride, epilogue)
            },
            Group::Patches(left) => {
                // SAFETY: as above.
                let part = unsafe {
                    ViewMut::from_raw(start, [1, 1, rows, count], [0, 0, channel_stride, 1])
                };
                by_patches(cx, &block, left, part, epilogue)
            }
        }
    })
}

/// The extents of a convolution, if everything agrees.
fn check(
    isa: Isa,
    window: &Window,
    input: &ByteInput,
    weights: &PackedByteWeights,
    output: &ViewMut<'_, i32, 5>,
) -> Result<Extents> {
    let [batch, channels, spatial @ ..] = input.view.shape();
    let [outputs, inputs, taps @ ..] = weights.shape;
    let groups = weights.groups.len();
    if spatial != window.input || taps != window.kernel {
        return Err(mismatch(
            "extents of a convolution",
            [spatial, taps],
            [window.input, window.kernel],
        ));
    }
    if weights.isa != isa {
        return Err(mismatch("packed weights", weights.isa, isa));
    }
    if channels != inputs * groups {
        return Err(mismatch("channels", channels, inputs * groups));
    }
    if input.view.strides()[4] != 1 && spatial[2] > 1 {
        let stride = input.view.strides()[4];
        return Err(mismatch("column stride of an input", stride, 1));
    }
    let windows = window.output();
    let wanted = [batch, outputs, windows[0], windows[1], windows[2]];
    if output.shape() != wanted {
        return Err(mismatch("output of a convolution", output.shape(), wanted));
    }
    check_dense("output of a convolution", wanted, output.strides(), 2)?;
    Ok(Extents {
        batch,
        groups,
        inputs,
        outputs: outputs / groups,
        windows,
    })
}

/// How the windows of an image are divided.
struct Blocks {
    windows: usize,
    count: usize,
}

impl Blocks {
    fn of(
        cx: &Context,
        extents: &Extents,
        window: &Window,
        weights: &PackedByteWeights,
        total: usize,
    ) -> Blocks {
        let most = match weights.groups.first() {
            Some(Group::Planes(planes)) => planes.most_windows(window, extents.windows),
            Some(Group::Patches(_)) | None => {
                BLOCK_SIZE / (extents.inputs * window.volume()).max(1)
            }
        };
        let parts = (BLOCKS * cx.pool.threads()).div_ceil((extents.batch * extents.groups).max(1));
        let fair = match cx.pool.threads() {
            1 => total,
            _ => total.div_ceil(parts),
        };
        let windows = most.min(fair).next_multiple_of(BLOCK_STEP).max(BLOCK_STEP);
        Blocks {
            windows,
            count: total.div_ceil(windows),
        }
    }
}

/// A block by patches of bytes.
fn by_patches(
    cx: &Context,
    block: &Block,
    left: &PackedBytesLeft,
    to: ViewMut<'_, i32, 4>,
    epilogue: Option<Epilogue<'_, i32>>,
) -> Result<()> {
    let (inner, count) = (block.channels * block.window.volume(), block.count);
    let mut patches = cx.scratch.take::<u8>(inner * count)?;
    let patches = &mut patches.as_mut_slice::<u8>()[..inner * count];
    store_patches(block, patches);
    let right = Bytes {
        view: View::dense("patches", patches, [1, 1, inner, count])?,
        signed: block.input.signed,
        zero_points: ZeroPoints::One(block.input.zero),
    };
    let (left, right) = (BytesLeft::Packed(left), BytesRight::View(right));
    multiply_bytes(cx, left, right, to, false, epilogue)
}

/// Writes the patches of a block, `[inner, count]`.
fn store_patches(block: &Block, patches: &mut [u8]) {
    let zero = block.input.zero as u8;
    let volume = block.window.volume();
    if block.count == 0 {
        return;
    }
    for (inner, row) in patches.chunks_exact_mut(block.count).enumerate() {
        let (channel, tap) = (inner / volume, inner % volume);
        block.for_each_run(tap, |run| {
            let to = &mut row[run.at..run.at + run.len];
            let from = run
                .line
                .map(|line| block.channel(channel).wrapping_add(line));
            for (x, byte) in to.iter_mut().enumerate() {
                let place = run.start + (x * run.step) as isize;
                *byte = match from {
                    // SAFETY: the place is inside the line, the line inside the input.
                    Some(from) if (0..run.width).contains(&place) => unsafe { *from.offset(place) },
                    _ => zero,
                };
            }
        });
    }
}

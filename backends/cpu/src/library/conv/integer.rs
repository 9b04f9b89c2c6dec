//! Convolution of 8-bit integers with zero points, accumulated in i32. The padding is the input's zero point.
//!
//! Patches are stored as bytes, a block of windows at a time, and multiplied by the weights as any product of bytes.

use super::{Extents, check_dense};
use crate::error::Result;
use crate::library::Context;
use crate::library::gemm::{
    Bytes, BytesLeft, BytesRight, Epilogue, Finished, PackedBytesLeft, ZeroPoints, multiply_bytes,
};
use crate::library::view::{Shared, View, ViewMut, mismatch};
use crate::library::window::Window;

/// Operands of a convolution of bytes.
#[derive(Debug, Clone, Copy)]
pub struct ConvBytes<'a> {
    /// `[batch, in_channels, depth, height, width]`; one zero point.
    pub input: View<'a, u8, 5>,
    /// Whether the input is `i8`.
    pub input_signed: bool,
    /// The input's zero point, a number of its type.
    pub input_zero: i32,
    /// `[out_channels, in_channels / groups, depth, height, width]`, dense.
    pub weights: View<'a, u8, 5>,
    /// Whether the weights are `i8`.
    pub weights_signed: bool,
    /// The weights' zero points: one, or one for each output channel.
    pub weights_zero: ZeroPoints<'a>,
}

/// Bytes of patches stored at a time.
const BLOCK_SIZE: usize = 512 << 10;

/// Computes `y[n, m, o] = sum over c, t of (w[m, c, t] - zw[m]) * (x[n, c, o * stride + t * dilation - pad] - zx)` modulo 2^32;
/// padding contributes 0. The epilogue is called with `row` = output channel, `col` = index of the window.
///
/// Errors: extents that do not agree, layouts that are not dense, out of memory.
pub fn convolve_bytes(
    cx: &Context,
    window: &Window,
    groups: usize,
    operands: &ConvBytes<'_>,
    output: ViewMut<'_, i32, 5>,
    epilogue: Option<Epilogue<'_, i32>>,
) -> Result<()> {
    let [batch, channels, spatial @ ..] = operands.input.shape();
    let [outputs, inputs, taps @ ..] = operands.weights.shape();
    if spatial != window.input || taps != window.kernel {
        return Err(mismatch(
            "extents of a convolution",
            [spatial, taps],
            [window.input, window.kernel],
        ));
    }
    if groups == 0 || !outputs.is_multiple_of(groups) || channels != inputs * groups {
        return Err(mismatch(
            "channels of a convolution",
            [channels, outputs],
            format!("multiples of {groups} groups"),
        ));
    }
    let windows = window.output();
    let wanted = [batch, outputs, windows[0], windows[1], windows[2]];
    if output.shape() != wanted {
        return Err(mismatch("output of a convolution", output.shape(), wanted));
    }
    check_dense("output of a convolution", wanted, output.strides(), 2)?;
    check_dense(
        "weights",
        operands.weights.shape(),
        operands.weights.strides(),
        1,
    )?;
    if let ZeroPoints::Each(points) = operands.weights_zero
        && points.len() != outputs
    {
        return Err(mismatch("zero points of weights", points.len(), outputs));
    }
    let extents = Extents {
        batch,
        groups,
        inputs,
        outputs: outputs / groups,
        windows,
    };
    let inner = inputs * window.volume();
    let total: usize = windows.iter().product();
    let packed = pack_groups(cx, operands, &extents, inner)?;
    let block = (BLOCK_SIZE / inner.max(1))
        .clamp(32, total.max(32))
        .next_multiple_of(32);
    let blocks = total.div_ceil(block);
    let to = Shared(output.as_ptr());
    let [batch_stride, channel_stride, ..] = output.strides();
    cx.try_run(batch * groups * blocks, |index| {
        let (image, group) = (index / blocks / groups, index / blocks % groups);
        let first = index % blocks * block;
        let count = block.min(total - first);
        let mut patches = cx.scratch.take::<u8>(inner * count)?;
        let patches = &mut patches.as_mut_slice::<u8>()[..inner * count];
        store_patches(
            window, operands, &extents, image, group, first, count, patches,
        );
        let right = Bytes {
            view: View::dense("patches", patches, [1, 1, inner, count])?,
            signed: operands.input_signed,
            zero_points: ZeroPoints::One(operands.input_zero),
        };
        let rows = extents.outputs;
        let start = to
            .get()
            .wrapping_add(image * batch_stride + group * rows * channel_stride + first);
        // SAFETY: chunks write disjoint columns of disjoint channels of the output, which is exclusively ours.
        let part =
            unsafe { ViewMut::from_raw(start, [1, 1, rows, count], [0, 0, channel_stride, 1]) };
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
        let left = BytesLeft::Packed(&packed[group]);
        let epilogue: Option<Epilogue<i32>> = if epilogue.is_some() {
            Some(&shifted)
        } else {
            None
        };
        multiply_bytes(cx, left, BytesRight::View(right), part, false, epilogue)
    })
}

fn pack_groups(
    cx: &Context,
    operands: &ConvBytes,
    extents: &Extents,
    inner: usize,
) -> Result<Vec<PackedBytesLeft>> {
    let rows = extents.outputs;
    let pack = |group: usize| {
        let from = operands.weights.as_ptr().wrapping_add(group * rows * inner);
        // SAFETY: the weights are dense, so a group is a dense matrix inside them.
        let view = unsafe { View::from_raw(from, [rows, inner], [inner, 1]) };
        let zero_points = match operands.weights_zero {
            ZeroPoints::One(point) => ZeroPoints::One(point),
            ZeroPoints::Each(points) => ZeroPoints::Each(&points[group * rows..(group + 1) * rows]),
        };
        let bytes = Bytes {
            view,
            signed: operands.weights_signed,
            zero_points,
        };
        PackedBytesLeft::new(cx.isa, &bytes, cx.scratch.usage())
    };
    (0..extents.groups).map(pack).collect()
}

/// Writes the patches of `count` windows from `first` on, `[inner, count]`.
#[allow(clippy::too_many_arguments, reason = "coordinates of a block")]
fn store_patches(
    window: &Window,
    operands: &ConvBytes,
    extents: &Extents,
    image: usize,
    group: usize,
    first: usize,
    count: usize,
    patches: &mut [u8],
) {
    let zero = operands.input_zero as u8;
    let [batch_stride, channel_stride, strides @ ..] = operands.input.strides();
    let [_, rows, cols] = extents.windows;
    let [_, kernel_y, kernel_x] = window.kernel;
    if count == 0 {
        return;
    }
    for (inner, row) in patches.chunks_exact_mut(count).enumerate() {
        let (channel, tap) = (inner / window.volume(), inner % window.volume());
        let taps = [
            tap / (kernel_y * kernel_x),
            tap / kernel_x % kernel_y,
            tap % kernel_x,
        ];
        let offset = image * batch_stride + (group * extents.inputs + channel) * channel_stride;
        let mut column = 0;
        while column < count {
            let index = first + column;
            let at = [index / (rows * cols), index / cols % rows, index % cols];
            let run = (cols - at[2]).min(count - column);
            let line = window
                .at(0, at[0], taps[0])
                .zip(window.at(1, at[1], taps[1]));
            for (x, byte) in row[column..column + run].iter_mut().enumerate() {
                let place = line.zip(window.at(2, at[2] + x, taps[2]));
                *byte = place.map_or(zero, |((z, y), x)| {
                    // SAFETY: the coordinates are inside the input.
                    unsafe {
                        *operands
                            .input
                            .as_ptr()
                            .add(offset + z * strides[0] + y * strides[1] + x * strides[2])
                    }
                });
            }
            column += run;
        }
    }
}

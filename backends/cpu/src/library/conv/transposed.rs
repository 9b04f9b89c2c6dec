//! Transposed convolution: `y[n, m, i * stride + t * dilation - pad] += x[n, c, i] * w[c, m, t]`.
//!
//! A product of transposed weights with the input gives what every input element contributes to each tap; contributions are
//! then added to their places. Output channels are taken in blocks that bound the temporary memory; each block is one chunk of
//! work, so no place is written by two threads.

use super::{ConvOutput, Convolve, RawOutput, check_dense};
use crate::error::Result;
use crate::library::Context;
use crate::library::gemm::driver::{Left, Product, Right, Target};
use crate::library::gemm::pack::{Panel, Strided};
use crate::library::gemm::{Epilogue, Finished, Sum};
use crate::library::view::{Shared, View, mismatch};
use crate::library::window::Window;

/// Contributions kept at a time by a thread.
const BLOCK_LEN: usize = 1 << 20;

/// Computes a transposed convolution. The window's geometry is that of the convolution whose adjoint this is: `window.input`
/// are the spatial extents of the **output** here, and `input`, `[batch, in_channels, depth, height, width]`, has extents of
/// which the windows must be able to cover: at most [`Window::output`] with padding as given, or more when contributions fall
/// into the padding, which drops them. `weights` are `[in_channels, out_channels / groups, taps]`, dense. Spatial dimensions of
/// the input must lie densely. The epilogue is called with `row` = output channel, `col` = index of the output element.
///
/// Errors: extents that do not agree, layouts that are not dense, out of memory.
pub fn convolve_transposed<T: Convolve>(
    cx: &Context,
    window: &Window,
    groups: usize,
    input: View<'_, T, 5>,
    weights: View<'_, T, 5>,
    output: ConvOutput<'_, T>,
    epilogue: Option<Epilogue<'_, Sum<T>>>,
) -> Result<()> {
    let (to, to_strides) = match &output {
        ConvOutput::Store(view) => (view.shape(), view.strides()),
        ConvOutput::Narrow(view) => (view.shape(), view.strides()),
    };
    let [batch, channels, spatial @ ..] = input.shape();
    let [weight_channels, outputs, taps @ ..] = weights.shape();
    if weight_channels != channels || groups == 0 || !channels.is_multiple_of(groups) {
        return Err(mismatch(
            "weights' channels of a transposed convolution",
            weight_channels,
            [channels, groups],
        ));
    }
    if taps != window.kernel {
        return Err(mismatch(
            "taps of a transposed convolution",
            taps,
            window.kernel,
        ));
    }
    let wanted = [
        batch,
        outputs * groups,
        window.input[0],
        window.input[1],
        window.input[2],
    ];
    if to != wanted {
        return Err(mismatch("output of a transposed convolution", to, wanted));
    }
    check_dense("weights", weights.shape(), weights.strides(), 1)?;
    check_dense("output of a transposed convolution", to, to_strides, 2)?;
    check_dense(
        "input of a transposed convolution",
        input.shape(),
        input.strides(),
        2,
    )?;
    let volume = window.volume();
    let elements: usize = spatial.iter().product();
    // Enough blocks for all threads, and none larger than the temporary memory.
    let by_memory = (BLOCK_LEN / (volume * elements).max(1)).max(1);
    let by_threads = outputs.div_ceil((2 * cx.pool.threads()).div_ceil((batch * groups).max(1)));
    let block = by_memory.min(by_threads).clamp(1, outputs.max(1));
    let blocks = outputs.div_ceil(block);
    let work = Transposed {
        window,
        input,
        weights,
        output: RawOutput::new(&output),
        epilogue,
        spatial,
        group_channels: channels / groups,
        group_outputs: outputs,
    };
    cx.try_run(batch * groups * blocks, |index| {
        let (image, group, first) = (
            index / blocks / groups,
            index / blocks % groups,
            index % blocks * block,
        );
        let count = block.min(outputs - first);
        // SAFETY: shapes agree, and chunks have disjoint output channels.
        unsafe { work.block(cx, image, group, first, count) }
    })
}

struct Transposed<'a, T: Convolve> {
    window: &'a Window,
    input: View<'a, T, 5>,
    weights: View<'a, T, 5>,
    output: RawOutput<T>,
    epilogue: Option<Epilogue<'a, Sum<T>>>,
    /// Spatial extents of the input.
    spatial: [usize; 3],
    group_channels: usize,
    group_outputs: usize,
}

impl<T: Convolve> Transposed<'_, T> {
    /// `count` output channels of a group from its channel `first` on.
    unsafe fn block(
        &self,
        cx: &Context,
        image: usize,
        group: usize,
        first: usize,
        count: usize,
    ) -> Result<()> {
        let (isa, volume) = (cx.isa, self.window.volume());
        let elements: usize = self.spatial.iter().product();
        let places: usize = self.window.input.iter().product();
        let first_channel = group * self.group_channels;
        let weight_row = self.group_outputs * volume;
        let weights = Strided {
            from: self
                .weights
                .as_ptr()
                .wrapping_add(first_channel * weight_row + first * volume),
            across: 1,
            along: weight_row,
            inner: self.group_channels,
        };
        let [batch_stride, channel_stride, ..] = self.input.strides();
        let source = Strided {
            from: self
                .input
                .as_ptr()
                .wrapping_add(image * batch_stride + first_channel * channel_stride),
            across: 1,
            along: channel_stride,
            inner: self.group_channels,
        };
        let contributions = cx.scratch.take::<Sum<T>>(count * volume * elements)?;
        let pack_left = |panel: &Panel<Sum<T>>| T::pack_matrix(isa, &weights, panel);
        let pack_right = |panel: &Panel<Sum<T>>| T::pack_matrix(isa, &source, panel);
        let product = Product {
            rows: count * volume,
            cols: elements,
            inner: self.group_channels,
            left: Left::Pack(&pack_left),
            right: Right::Pack(&pack_right),
            target: Target::Store {
                to: Shared(contributions.as_ptr()),
                row_stride: elements,
            },
            epilogue: None,
            batch: 0,
        };
        // SAFETY: operands are inside the views, the target inside the scratch buffer.
        unsafe { product.run(cx, &T::tiles(isa))? };
        let narrowed = match self.output.store {
            Some(_) => None,
            None => Some(cx.scratch.take::<Sum<T>>(places)?),
        };
        for local in 0..count {
            let row = group * self.group_outputs + first + local;
            let start = match (&narrowed, self.output.store) {
                (Some(lent), _) => lent.as_ptr(),
                (None, Some(to)) => to
                    .get()
                    .wrapping_add(image * self.output.batch + row * self.output.channel),
                (None, None) => unreachable!("bug: an output is stored or narrowed"),
            };
            let from = contributions
                .as_ptr::<Sum<T>>()
                .wrapping_add(local * volume * elements);
            // SAFETY: `start` has `places` elements, this chunk's alone; `from` has `volume * elements`.
            unsafe {
                start.write_bytes(0, places);
                self.scatter(from, start);
                let part = Finished {
                    start,
                    row_stride: places,
                    batch: image,
                    row,
                    rows: 1,
                    col: 0,
                    cols: places,
                };
                if places > 0 {
                    if let Some(epilogue) = self.epilogue {
                        epilogue(part);
                    }
                    self.output.narrow(isa, &part);
                }
            }
        }
        Ok(())
    }

    /// Adds the contributions of one output channel to their places.
    unsafe fn scatter(&self, from: *const Sum<T>, to: *mut Sum<T>) {
        let window = self.window;
        let [_, height, width] = self.spatial;
        let [_, to_height, to_width] = window.input;
        let elements: usize = self.spatial.iter().product();
        for tap in 0..window.volume() {
            let [_, kernel_y, kernel_x] = window.kernel;
            let (tap_z, tap_y, tap_x) = (
                tap / (kernel_y * kernel_x),
                tap / kernel_x % kernel_y,
                tap % kernel_x,
            );
            let (begin, end) = self.columns(tap_x);
            for z in 0..self.spatial[0] {
                let Some(to_z) = window.at(0, z, tap_z) else {
                    continue;
                };
                for y in 0..height {
                    let Some(to_y) = window.at(1, y, tap_y) else {
                        continue;
                    };
                    let from = from.wrapping_add(tap * elements + (z * height + y) * width);
                    let row = to.wrapping_add((to_z * to_height + to_y) * to_width);
                    let first = (begin * window.stride[2] + tap_x * window.dilation[2])
                        .wrapping_sub(window.pad_begin[2]);
                    for x in begin..end {
                        let place =
                            row.wrapping_add(first.wrapping_add((x - begin) * window.stride[2]));
                        // SAFETY: `columns` keeps the place inside the row.
                        unsafe { *place = T::add(*place, *from.add(x)) };
                    }
                }
            }
        }
    }

    /// The input columns whose contribution by a tap falls inside the output.
    fn columns(&self, tap: usize) -> (usize, usize) {
        let window = self.window;
        let shift = tap * window.dilation[2];
        let begin = window.pad_begin[2]
            .saturating_sub(shift)
            .div_ceil(window.stride[2]);
        let end = (window.input[2] + window.pad_begin[2])
            .saturating_sub(shift)
            .div_ceil(window.stride[2]);
        let end = end.min(self.spatial[2]);
        (begin.min(end), end)
    }
}

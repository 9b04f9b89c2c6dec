//! Convolution over one to three spatial dimensions, with groups, strides, dilations and asymmetric padding:
//! `y[n, m, o] = sum over c, t of w[m, c, t] * x[n, g * channels + c, o * stride + t * dilation - pad]`, `g` being the group of
//! output channel `m`.
//!
//! A convolution is a matrix product of the weights with patches of the input, which are packed straight from the input and
//! never stored (`patches`); one with single-element windows is an ordinary product; one channel per group is computed directly
//! (`depthwise`). Its adjoint with respect to the input is `transposed`, 8-bit integers are in `integer` and
//! `planes`.

mod depthwise;
mod integer;
mod patches;
pub(crate) mod pixels;
mod planes;
mod transposed;

#[cfg(test)]
mod tests;

use half::{bf16, f16};

pub use integer::{ByteInput, ByteWeights, PackedByteWeights, convolve_bytes};
pub use transposed::convolve_transposed;

use crate::error::{Error, Result};
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::driver::{Left, Product, Right, Target};
use crate::library::gemm::formats::{Doubles, Floats};
use crate::library::gemm::numbers::{Multiply, pack_left_with};
use crate::library::gemm::pack::{Panel, Strided, pack_elements, pack_floats};
use crate::library::gemm::packed::Packed;
use crate::library::gemm::tile::{TileSet, Tiles};
use crate::library::gemm::{Epilogue, Finished, Number, Sum};
use crate::library::view::{Shared, View, ViewMut, mismatch};
use crate::library::window::Window;
use patches::{Patches, pack_patches};

/// Weights, `[out_channels, in_channels / groups, depth, height, width]` (transposed convolution:
/// `[in_channels, out_channels / groups, depth, height, width]`).
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a, T: Convolve> {
    /// In memory, dense.
    View(View<'a, T, 5>),
    /// Packed ahead of time; not for transposed convolution.
    Packed(&'a PackedWeights<T>),
}

/// Weights packed ahead of time for one [`Isa`]. 16-bit floats are widened.
#[derive(Debug)]
pub struct PackedWeights<T: Convolve> {
    groups: Vec<Packed<Sum<T>>>,
    isa: Isa,
    shape: [usize; 5],
    /// The weights themselves, where the direct kernel wants them.
    plain: Vec<Sum<T>>,
}

/// Where the result goes: `[batch, channels, depth, height, width]`, spatially dense (a row of the product is a channel).
#[derive(Debug)]
pub enum ConvOutput<'a, T: Number> {
    /// Accumulators as they are.
    Store(ViewMut<'a, Sum<T>, 5>),
    /// Rounded to the operands' type after the epilogue has seen the accumulators.
    Narrow(ViewMut<'a, T, 5>),
}

/// A type that can be convolved: `f32`, `f64`, `f16`, `bf16`.
pub trait Convolve: Number + sealed::Format {}
impl<T: Number + sealed::Format> Convolve for T {}

mod sealed {
    use super::*;

    #[allow(private_interfaces, reason = "sealed: callable in this crate only")]
    pub trait Format: Multiply {
        const ZERO: Self::Sum;
        fn tiles(isa: Isa) -> TileSet<Self::Sum, Self::Sum, Self::Sum>;
        fn widen(self) -> Self::Sum;
        fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
        fn pack_matrix(isa: Isa, source: &Strided<Self>, panel: &Panel<Self::Sum>);
        fn pack_patches(isa: Isa, patches: &Patches<Self>, panel: &Panel<Self::Sum>);
        /// The direct kernel, if the type has one.
        ///
        /// # Safety
        /// The addresses of the planes must be valid for their geometry.
        unsafe fn depthwise(cx: &Context, planes: &depthwise::Planes<Self>) -> Option<Result<()>>
        where
            Self: Convolve;
    }
}

macro_rules! formats {
    ($($t:ty: $tiles:ty, $zero:expr, $widen:expr, $matrix:expr, $patches:expr, $depthwise:expr;)*) => {
        $(#[allow(private_interfaces, reason = "sealed: callable in this crate only")]
        impl sealed::Format for $t {
            const ZERO: Sum<$t> = $zero;
            fn tiles(isa: Isa) -> TileSet<Sum<$t>, Sum<$t>, Sum<$t>> {
                <$tiles>::set(isa)
            }
            #[inline(always)]
            fn widen(self) -> Sum<$t> {
                $widen(self)
            }
            #[inline(always)]
            fn add(a: Sum<$t>, b: Sum<$t>) -> Sum<$t> {
                a + b
            }
            fn pack_matrix(isa: Isa, source: &Strided<$t>, panel: &Panel<Sum<$t>>) {
                // SAFETY: the driver asks for panels inside the matrix, with room for them.
                unsafe { $matrix(isa, source, panel) }
            }
            fn pack_patches(isa: Isa, patches: &Patches<$t>, panel: &Panel<Sum<$t>>) {
                // SAFETY: the driver asks for panels inside the patches, with room for them.
                unsafe { $patches(isa, patches, panel) }
            }
            unsafe fn depthwise(cx: &Context, planes: &depthwise::Planes<$t>) -> Option<Result<()>> {
                // SAFETY: passed on.
                unsafe { $depthwise(cx, planes) }
            }
        })*
    };
}

unsafe fn pack_f64(_: Isa, source: &Strided<f64>, panel: &Panel<f64>) {
    // SAFETY: passed on.
    unsafe { pack_elements::<f64, f64, 1>(source, panel, |_, x| x) }
}

unsafe fn pack_patches_f64(_: Isa, patches: &Patches<f64>, panel: &Panel<f64>) {
    // SAFETY: passed on.
    unsafe { patches.pack_any(panel, |x| x) }
}

unsafe fn no_depthwise<T: Convolve>(_: &Context, _: &depthwise::Planes<T>) -> Option<Result<()>> {
    None
}

formats! {
    f32: Floats<f32>, 0.0, |x: f32| x, pack_floats, pack_patches, depthwise::convolve;
    f16: Floats<f32>, 0.0, f16::to_f32, pack_floats, pack_patches, depthwise::convolve;
    bf16: Floats<f32>, 0.0, bf16::to_f32, pack_floats, pack_patches, depthwise::convolve;
    f64: Doubles, 0.0, |x: f64| x, pack_f64, pack_patches_f64, no_depthwise;
}

/// Extents of one convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extents {
    batch: usize,
    groups: usize,
    /// Input channels in a group.
    inputs: usize,
    /// Output channels in a group.
    outputs: usize,
    /// Windows in each dimension.
    windows: [usize; 3],
}

impl<T: Convolve> PackedWeights<T> {
    /// Packs dense weights for `groups` groups, for use at the context's level. Errors: channels that the groups do not divide, out of memory.
    pub fn new(cx: &Context, weights: View<'_, T, 5>, groups: usize) -> Result<PackedWeights<T>> {
        let isa = cx.isa;
        let shape = weights.shape();
        check_dense("weights", shape, weights.strides(), 1)?;
        if groups == 0 || !shape[0].is_multiple_of(groups) {
            return Err(mismatch(
                "output channels of packed weights",
                shape[0],
                format!("a multiple of {groups}"),
            ));
        }
        let (outputs, inner) = (shape[0] / groups, shape[1..].iter().product::<usize>());
        let mut packed = Vec::new();
        let mut plain = Vec::new();
        if is_depthwise(shape, groups) {
            // SAFETY: the view is dense.
            plain.extend(
                (0..shape[0] * inner).map(|index| unsafe { *weights.as_ptr().add(index) }.widen()),
            );
        } else {
            for group in 0..groups {
                let source = weight_matrix(&weights, group * outputs, inner);
                let packer = |panel: &Panel<Sum<T>>| T::pack_matrix(isa, &source, panel);
                packed.push(pack_left_with(&T::tiles(isa), outputs, inner, packer, cx)?);
            }
        }
        Ok(PackedWeights {
            groups: packed,
            isa,
            shape,
            plain,
        })
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        let plain = self.plain.len() * size_of::<Sum<T>>();
        plain + self.groups.iter().map(Packed::size).sum::<usize>()
    }
}

/// Whether the direct kernel takes weights of this shape.
fn is_depthwise(shape: [usize; 5], groups: usize) -> bool {
    groups > 1 && shape[1] == 1
}

/// Weights of the output channels from `first` on, as a left operand.
fn weight_matrix<T: Convolve>(weights: &View<'_, T, 5>, first: usize, inner: usize) -> Strided<T> {
    Strided {
        from: weights.as_ptr().wrapping_add(first * inner),
        across: inner,
        along: 1,
        inner,
    }
}

/// Checks that dimensions from `from` on lie densely.
fn check_dense(
    what: &'static str,
    shape: [usize; 5],
    strides: [usize; 5],
    from: usize,
) -> Result<()> {
    let mut wanted = 1usize;
    for d in (from..5).rev() {
        if shape[d] > 1 && strides[d] != wanted && !shape.contains(&0) {
            let reason = format!(
                "strides {strides:?} of shape {shape:?} are not dense from dimension {from} on"
            );
            return Err(Error::Operand { what, reason });
        }
        wanted = wanted.saturating_mul(shape[d]);
    }
    if from == 1 && shape[0] > 1 && strides[0] != wanted && !shape.contains(&0) {
        return Err(Error::Operand {
            what,
            reason: format!("strides {strides:?} of shape {shape:?} are not dense"),
        });
    }
    Ok(())
}

/// Computes a convolution; `input` is `[batch, in_channels, depth, height, width]` with any strides, `output` has
/// `window.output()` windows for each of the output channels. The epilogue is called with `row` = output channel, `col` = index
/// of the window in row-major order, `batch` = image.
///
/// The sum over channels and taps is accumulated in f32 (f64 for f64), in an order that depends on shapes and [`Isa`] only.
///
/// Errors: extents that do not agree, weights packed for another level, an output that is not spatially dense, out of memory.
pub fn convolve<T: Convolve>(
    cx: &Context,
    window: &Window,
    groups: usize,
    input: View<'_, T, 5>,
    weights: Weights<'_, T>,
    output: ConvOutput<'_, T>,
    epilogue: Option<Epilogue<'_, Sum<T>>>,
) -> Result<()> {
    let shape = match &weights {
        Weights::View(view) => view.shape(),
        Weights::Packed(packed) => packed.shape,
    };
    let extents = check(window, groups, input.shape(), shape, &output)?;
    match &weights {
        Weights::View(view) => check_dense("weights", shape, view.strides(), 1)?,
        Weights::Packed(packed) if packed.isa != cx.isa => {
            return Err(mismatch("packed weights", packed.isa, cx.isa));
        }
        Weights::Packed(_) => {}
    }
    let raw = RawOutput::new(&output);
    if is_depthwise(shape, groups) {
        let widened;
        let plain = match &weights {
            Weights::Packed(packed) => packed.plain.as_ptr(),
            Weights::View(view) => {
                let len = shape.iter().product();
                // SAFETY: the view is dense.
                widened = (0..len)
                    .map(|index| unsafe { *view.as_ptr().add(index) }.widen())
                    .collect::<Vec<_>>();
                widened.as_ptr()
            }
        };
        let planes = depthwise::Planes {
            window,
            extents,
            input,
            weights: Shared(plain.cast_mut()),
            output: raw,
            epilogue,
        };
        // SAFETY: the views vouch for their elements, and their shapes agree.
        if let Some(done) = unsafe { T::depthwise(cx, &planes) } {
            return done;
        }
    }
    let images = extents.batch * groups;
    let steps = extents.outputs
        * extents.windows.iter().product::<usize>()
        * extents.inputs
        * window.volume();
    let one = |index: usize| {
        let (image, group) = (index / groups, index % groups);
        // SAFETY: as above.
        unsafe {
            one_image(
                cx, window, &extents, &input, &weights, &raw, epilogue, image, group,
            )
        }
    };
    let side_by_side =
        images >= 4 * cx.pool.threads() || (images > 1 && steps < SIDE_BY_SIDE_STEPS);
    if side_by_side {
        cx.try_run(images, one)
    } else {
        (0..images).try_for_each(one)
    }
}

/// Multiplications of one image and group below which several are computed at a time, a thread each.
const SIDE_BY_SIDE_STEPS: usize = 1 << 22;

fn check<T: Number>(
    window: &Window,
    groups: usize,
    input: [usize; 5],
    weights: [usize; 5],
    output: &ConvOutput<T>,
) -> Result<Extents> {
    let (to, strides) = match output {
        ConvOutput::Store(view) => (view.shape(), view.strides()),
        ConvOutput::Narrow(view) => (view.shape(), view.strides()),
    };
    let [outputs, inputs, taps @ ..] = weights;
    if input[2..] != window.input {
        return Err(mismatch(
            "spatial extents of a convolution's input",
            &input[2..],
            window.input,
        ));
    }
    if taps != window.kernel {
        return Err(mismatch(
            "taps of a convolution's weights",
            taps,
            window.kernel,
        ));
    }
    if groups == 0 || !outputs.is_multiple_of(groups) {
        return Err(mismatch(
            "output channels of a convolution",
            outputs,
            format!("a multiple of {groups} groups"),
        ));
    }
    if input[1] != inputs * groups {
        return Err(mismatch(
            "input channels of a convolution",
            input[1],
            inputs * groups,
        ));
    }
    let windows = window.output();
    let wanted = [input[0], outputs, windows[0], windows[1], windows[2]];
    if to != wanted {
        return Err(mismatch("output of a convolution", to, wanted));
    }
    check_dense("output of a convolution", to, strides, 2)?;
    Ok(Extents {
        batch: input[0],
        groups,
        inputs,
        outputs: outputs / groups,
        windows,
    })
}

/// An output as addresses.
#[derive(Debug)]
pub(crate) struct RawOutput<T: Number> {
    store: Option<Shared<Sum<T>>>,
    narrow: Option<Shared<T>>,
    batch: usize,
    channel: usize,
}

impl<T: Number> Clone for RawOutput<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Number> Copy for RawOutput<T> {}

impl<T: Number> RawOutput<T> {
    fn new(output: &ConvOutput<'_, T>) -> RawOutput<T> {
        let (store, narrow, strides) = match output {
            ConvOutput::Store(view) => (Some(Shared(view.as_ptr())), None, view.strides()),
            ConvOutput::Narrow(view) => (None, Some(Shared(view.as_ptr())), view.strides()),
        };
        RawOutput {
            store,
            narrow,
            batch: strides[0],
            channel: strides[1],
        }
    }

    /// Rounds a finished part to the narrow output, if that is where it goes.
    ///
    /// # Safety
    /// The part must lie inside the output and belong to the caller.
    unsafe fn narrow(&self, isa: Isa, part: &Finished<Sum<T>>) {
        let Some(to) = self.narrow else { return };
        for row in 0..part.rows {
            let place = part.batch * self.batch + (part.row + row) * self.channel + part.col;
            // SAFETY: the caller's contract.
            unsafe {
                T::narrow_row(
                    isa,
                    part.start.add(row * part.row_stride),
                    to.get().add(place),
                    part.cols,
                )
            };
        }
    }
}

/// One group of one image as a matrix product.
#[allow(
    clippy::too_many_arguments,
    reason = "the loop body of `convolve`, with its whole environment"
)]
unsafe fn one_image<T: Convolve>(
    cx: &Context,
    window: &Window,
    extents: &Extents,
    input: &View<'_, T, 5>,
    weights: &Weights<'_, T>,
    output: &RawOutput<T>,
    user: Option<Epilogue<Sum<T>>>,
    image: usize,
    group: usize,
) -> Result<()> {
    let isa = cx.isa;
    let inner = extents.inputs * window.volume();
    let first_output = group * extents.outputs;
    let [batch_stride, channel, spatial @ ..] = input.strides();
    let from = input
        .as_ptr()
        .wrapping_add(image * batch_stride + group * extents.inputs * channel);
    let (pack_weights, pack_plain);
    let left = match weights {
        Weights::Packed(packed) if packed.groups.is_empty() => {
            let from = packed.plain.as_ptr().wrapping_add(first_output * inner);
            let source = Strided {
                from,
                across: inner,
                along: 1,
                inner,
            };
            // SAFETY: the driver asks for panels inside the matrix, with room for them.
            pack_plain = move |panel: &Panel<Sum<T>>| unsafe {
                pack_elements::<_, _, 1>(&source, panel, |_, x| x)
            };
            Left::Pack(&pack_plain)
        }
        Weights::Packed(packed) => Left::Packed(packed.groups[group].placed()),
        Weights::View(view) => {
            let source = weight_matrix(view, first_output, inner);
            pack_weights = move |panel: &Panel<Sum<T>>| T::pack_matrix(isa, &source, panel);
            Left::Pack(&pack_weights)
        }
    };
    let patches = Patches {
        from,
        channel,
        strides: spatial,
        window,
        output: extents.windows,
    };
    let pack_input = |panel: &Panel<Sum<T>>| T::pack_patches(isa, &patches, panel);
    let flat = Strided {
        from,
        across: 1,
        along: channel,
        inner,
    };
    let pack_flat = |panel: &Panel<Sum<T>>| T::pack_matrix(isa, &flat, panel);
    let [_, height, width] = window.input;
    let is_flat = window.is_identity() && spatial == [height * width, width, 1];
    let right = if is_flat {
        Right::Pack(&pack_flat)
    } else {
        Right::Pack(&pack_input)
    };
    let finish = |part: Finished<Sum<T>>| {
        let part = Finished {
            batch: image,
            row: part.row + first_output,
            ..part
        };
        if let Some(user) = user {
            user(part);
        }
        // SAFETY: the driver hands out the part for exclusive use.
        unsafe { output.narrow(isa, &part) };
    };
    let target = match output.store {
        Some(to) => {
            let place = image * output.batch + first_output * output.channel;
            Target::Store {
                to: Shared(to.get().wrapping_add(place)),
                row_stride: output.channel,
            }
        }
        None => Target::Discard,
    };
    let product = Product {
        rows: extents.outputs,
        cols: extents.windows.iter().product(),
        inner,
        left,
        right,
        target,
        epilogue: if user.is_some() || output.store.is_none() {
            Some(&finish)
        } else {
            None
        },
        batch: image,
    };
    // SAFETY: the caller's views cover what the product reads and writes.
    unsafe { product.run(cx, &T::tiles(isa)) }
}

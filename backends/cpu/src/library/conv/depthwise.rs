//! Convolution with one input channel per group, computed directly.
//!
//! Each input plane is copied to a padded one ([`Padded`]); then rows of windows are accumulated in registers, several rows at a
//! time, because they share inputs.

use super::{Convolve, Extents, RawOutput};
use crate::error::Result;
use crate::library::Context;
use crate::library::gemm::{Epilogue, Finished, Sum};
use crate::library::padded::Padded;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::{Shared, View};
use crate::library::window::Window;

/// A depthwise convolution.
pub(crate) struct Planes<'a, T: Convolve> {
    pub window: &'a Window,
    pub extents: Extents,
    pub input: View<'a, T, 5>,
    /// Dense, `[out_channels, taps]`.
    pub weights: Shared<Sum<T>>,
    pub output: RawOutput<T>,
    pub epilogue: Option<Epilogue<'a, Sum<T>>>,
}

/// Vectors of windows accumulated at a time.
const UNROLL: usize = 4;

/// Computes the convolution; None if the geometry does not suit.
///
/// # Safety
/// The addresses must be valid for the extents.
pub(super) unsafe fn convolve<T: Convolve<Sum = f32> + Float>(
    cx: &Context,
    planes: &Planes<T>,
) -> Option<Result<()>> {
    let (window, extents) = (planes.window, &planes.extents);
    let padded = Padded::new(window, extents.windows)?;
    let len = padded.len;
    let channels = extents.groups;
    let count = extents.batch * channels;
    let chunks = count.min(cx.pool.threads() * 8);
    let windows: usize = extents.windows.iter().product();
    Some(cx.try_run(chunks, |chunk| {
        let mut plane = cx.scratch.take::<f32>(len)?;
        // The padding stays zero from plane to plane.
        plane.as_mut_slice::<f32>()[..len].fill(0.0);
        let result = match planes.output.store {
            Some(_) => None,
            None => Some(cx.scratch.take::<f32>(windows)?),
        };
        for index in chunk * count / chunks..(chunk + 1) * count / chunks {
            let (image, channel) = (index / channels, index % channels);
            let narrowed = result.as_ref().map(|lent| lent.as_ptr::<f32>());
            let work = Plane {
                planes,
                padded: &padded,
                plane: plane.as_ptr(),
                image,
            };
            let [batch_stride, channel_stride, strides @ ..] = planes.input.strides();
            let from = planes
                .input
                .as_ptr()
                .wrapping_add(image * batch_stride + channel * channel_stride);
            // SAFETY: the view vouches for its plane; the scratch buffer has `len` elements.
            unsafe { padded.fill(cx.isa, from, strides, plane.as_ptr()) };
            for multiple in 0..extents.outputs {
                // SAFETY: passed on; this chunk alone works on the channel.
                unsafe { one_output(cx, &work, channel * extents.outputs + multiple, narrowed) };
            }
        }
        Ok(())
    }))
}

/// Computes output channel `row` from a filled plane, into `narrowed` if it is to be rounded from there.
unsafe fn one_output<T: Convolve<Sum = f32> + Float>(
    cx: &Context,
    work: &Plane<T>,
    row: usize,
    narrowed: Option<*mut f32>,
) {
    let planes = work.planes;
    let windows: usize = planes.extents.windows.iter().product();
    let to = match (narrowed, planes.output.store) {
        (Some(to), _) => to,
        (None, Some(to)) => to
            .get()
            .wrapping_add(work.image * planes.output.batch + row * planes.output.channel),
        (None, None) => unreachable!("bug: an output is stored or narrowed"),
    };
    let weights = planes
        .weights
        .get()
        .wrapping_add(row * planes.window.volume());
    dispatch(cx.isa, Accumulate { work, weights, to });
    let part = Finished {
        start: to,
        row_stride: windows,
        batch: work.image,
        row,
        rows: 1,
        col: 0,
        cols: windows,
    };
    if windows > 0 {
        if let Some(epilogue) = planes.epilogue {
            epilogue(part);
        }
        // SAFETY: the caller's contract.
        unsafe { planes.output.narrow(cx.isa, &part) };
    }
}

/// One input plane.
struct Plane<'a, T: Convolve> {
    planes: &'a Planes<'a, T>,
    padded: &'a Padded<'a>,
    plane: *mut f32,
    image: usize,
}

/// Accumulates one output plane.
struct Accumulate<'a, T: Convolve> {
    work: &'a Plane<'a, T>,
    weights: *const f32,
    to: *mut f32,
}

impl<T: Convolve> Kernel for Accumulate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let windows = self.work.planes.extents.windows;
        for z in 0..windows[0] {
            let mut y = 0;
            while y < windows[1] {
                // SAFETY: the padded plane covers the taps of all windows and whole vectors beyond them.
                unsafe {
                    if windows[1] - y >= 4 {
                        self.rows::<S, 4>(s, z, y);
                        y += 4;
                    } else {
                        self.rows::<S, 1>(s, z, y);
                        y += 1;
                    }
                }
            }
        }
    }
}

impl<T: Convolve> Accumulate<'_, T> {
    /// `R` rows of windows from (z, y) on.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(&self, s: S, z: usize, y: usize) {
        let width = self.work.planes.extents.windows[2];
        let mut x = 0;
        while x < width {
            // SAFETY: passed on.
            unsafe {
                if R == 1 && width - x > (UNROLL - 1) * S::LANES {
                    self.block::<S, R, UNROLL>(s, z, y, x);
                    x += UNROLL * S::LANES;
                } else if width - x > S::LANES {
                    self.block::<S, R, 2>(s, z, y, x);
                    x += 2 * S::LANES;
                } else {
                    self.block::<S, R, 1>(s, z, y, x);
                    x += S::LANES;
                }
            }
        }
    }

    /// `R` rows of `V` vectors of windows from (z, y, x) on; stores those that exist.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        z: usize,
        y: usize,
        x: usize,
    ) {
        let Plane {
            planes,
            padded,
            plane,
            ..
        } = *self.work;
        let (window, windows) = (planes.window, planes.extents.windows);
        let stride_y = window.stride[1];
        let mut sums = [[s.splat(0.0); V]; R];
        let mut weight = self.weights;
        for tap_z in 0..window.kernel[0] {
            for tap_y in 0..window.kernel[1] {
                for tap_x in 0..window.kernel[2] {
                    let from = plane.wrapping_add(padded.place([z, y, x], [tap_z, tap_y, tap_x]));
                    // SAFETY: the weights hold all taps; the padded plane holds whole vectors for all windows.
                    unsafe {
                        let w = s.splat(*weight);
                        weight = weight.add(1);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            for (v, sum) in sums.iter_mut().enumerate() {
                                let input = s.load(
                                    from.wrapping_add(r * stride_y * padded.row + v * S::LANES),
                                );
                                *sum = s.mul_add(w, input, *sum);
                            }
                        }
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let to = self
                .to
                .wrapping_add((z * windows[1] + y + r) * windows[2] + x);
            for (v, &sum) in sums.iter().enumerate() {
                let len = (windows[2] - x).saturating_sub(v * S::LANES).min(S::LANES);
                // SAFETY: `len` windows of this row remain in the output.
                unsafe {
                    if len == S::LANES {
                        s.store(to.add(v * S::LANES), sum);
                    } else if len > 0 {
                        s.store_first(to.add(v * S::LANES), len, sum);
                    }
                }
            }
        }
    }
}

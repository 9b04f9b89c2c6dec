//! One input plane with its padding, laid out so that every tap of neighbouring windows is a vector load.
//!
//! Columns are sorted by their remainder modulo the stride: for a given tap, the inputs of neighbouring windows then are
//! neighbours in memory.

use crate::isa::Isa;
use crate::library::simd::{Float, Kernel, MAX_LANES, Simd, dispatch};
use crate::library::window::Window;

/// Geometry of a padded plane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Padded<'a> {
    window: &'a Window,
    /// Planes and rows that windows touch.
    depth: usize,
    height: usize,
    /// Columns of one remainder.
    phase: usize,
    /// Elements of a row: all remainders.
    pub row: usize,
    /// Elements of the plane.
    pub len: usize,
}

/// The largest plane, so that temporary memory is bounded.
const MAX_LEN: usize = 16 << 20;

impl<'a> Padded<'a> {
    /// The geometry for `windows` windows; None if the plane would be too large. Vectors of windows may begin at any window.
    pub fn new(window: &'a Window, windows: [usize; 3]) -> Option<Padded<'a>> {
        let touched = |d: usize| (windows[d].max(1) - 1) * window.stride[d] + window.span(d);
        let phase = touched(2).div_ceil(window.stride[2]) + MAX_LANES;
        let (depth, height, row) = (touched(0), touched(1), phase.checked_mul(window.stride[2])?);
        let len = depth.checked_mul(height)?.checked_mul(row)?;
        (len <= MAX_LEN).then_some(Padded {
            window,
            depth,
            height,
            phase,
            row,
            len,
        })
    }

    /// Place of a tap of window `(z, y, x)`; neighbouring windows have neighbouring places.
    #[inline(always)]
    pub fn place(&self, [z, y, x]: [usize; 3], taps: [usize; 3]) -> usize {
        let Window {
            stride, dilation, ..
        } = self.window;
        let layer = z * stride[0] + taps[0] * dilation[0];
        let line = y * stride[1] + taps[1] * dilation[1];
        let shift = taps[2] * dilation[2];
        (layer * self.height + line) * self.row
            + shift % stride[2] * self.phase
            + shift / stride[2]
            + x
    }

    /// Copies an input plane; the padding is left alone.
    ///
    /// # Safety
    /// `from` must be a plane of the window's input with elements `strides` apart, `plane` have [`Padded::len`] elements.
    pub unsafe fn fill<T: Float>(
        &self,
        isa: Isa,
        from: *const T,
        strides: [usize; 3],
        plane: *mut f32,
    ) {
        dispatch(
            isa,
            Fill {
                padded: self,
                from,
                strides,
                plane,
            },
        );
    }
}

struct Fill<'a, T> {
    padded: &'a Padded<'a>,
    from: *const T,
    strides: [usize; 3],
    plane: *mut f32,
}

impl<T: Float> Kernel for Fill<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Fill {
            padded,
            from,
            strides,
            plane,
        } = self;
        let window = padded.window;
        for z in 0..padded.depth {
            for y in 0..padded.height {
                let row = plane.wrapping_add((z * padded.height + y) * padded.row);
                let inside = |d: usize, position: usize| {
                    position
                        .checked_sub(window.pad_begin[d])
                        .filter(|&at| at < window.input[d])
                };
                let (Some(in_z), Some(in_y)) = (inside(0, z), inside(1, y)) else {
                    continue;
                };
                let from = from.wrapping_add(in_z * strides[0] + in_y * strides[1]);
                // SAFETY: the row of the input is readable, and `copy` keeps to the padded row.
                unsafe { copy(s, padded, from, strides[2], row) };
            }
        }
    }
}

/// Copies one row of the input, sorted by remainder.
#[inline(always)]
unsafe fn copy<S: Simd, T: Float>(
    s: S,
    padded: &Padded,
    from: *const T,
    step: usize,
    row: *mut f32,
) {
    let window = padded.window;
    let (width, pad, stride) = (window.input[2], window.pad_begin[2], window.stride[2]);
    // SAFETY: positions below `phase * stride` are places of the row; `x < width` is inside the input.
    unsafe {
        if stride == 1 && step == 1 {
            let len = width.min(padded.phase.saturating_sub(pad));
            let whole = len / S::LANES * S::LANES;
            for x in (0..whole).step_by(S::LANES) {
                s.store(row.add(pad + x), T::load(s, from.add(x)));
            }
            if whole < len {
                s.store_first(
                    row.add(pad + whole),
                    len - whole,
                    T::load_first(s, from.add(whole), len - whole),
                );
            }
            return;
        }
        let mut first = 0;
        if stride == 2 && step == 1 {
            // Even inputs go to the remainder of the padding, odd ones to the other, one place further if that is 0.
            let (same, other) = (
                pad % 2 * padded.phase + pad / 2,
                (1 - pad % 2) * padded.phase + pad.div_ceil(2),
            );
            let len = width.min((padded.phase.saturating_sub(pad.div_ceil(2))) * 2);
            first = len / (2 * S::LANES) * (2 * S::LANES);
            for x in (0..first).step_by(2 * S::LANES) {
                let (even, odd) =
                    s.unzip(T::load(s, from.add(x)), T::load(s, from.add(x + S::LANES)));
                s.store(row.add(same + x / 2), even);
                s.store(row.add(other + x / 2), odd);
            }
        }
        let (mut remainder, mut place) = ((pad + first) % stride, (pad + first) / stride);
        for x in first..width {
            if place >= padded.phase {
                break;
            }
            *row.add(remainder * padded.phase + place) = (*from.add(x * step)).widen();
            remainder += 1;
            if remainder == stride {
                (remainder, place) = (0, place + 1);
            }
        }
    }
}

//! Sliding windows over up to three spatial dimensions: the geometry of convolution and pooling.

use crate::error::{Error, Result};

/// The most taps a window may have in one dimension; more is refused.
pub const MAX_KERNEL: usize = 1 << 16;

/// Windows over `[depth, height, width]`. Fewer spatial dimensions have leading extents of 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Spatial extents of the input.
    pub input: [usize; 3],
    /// Taps.
    pub kernel: [usize; 3],
    /// Input elements between neighbouring windows, at least 1.
    pub stride: [usize; 3],
    /// Input elements between neighbouring taps, at least 1.
    pub dilation: [usize; 3],
    /// Elements added before the first.
    pub pad_begin: [usize; 3],
    /// Elements added after the last.
    pub pad_end: [usize; 3],
}

/// The attributes of a window in one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taps {
    /// Number of taps.
    pub kernel: usize,
    /// Input elements between neighbouring windows.
    pub stride: usize,
    /// Input elements between neighbouring taps.
    pub dilation: usize,
    /// Elements added before the first and after the last.
    pub pads: [usize; 2],
}

impl Taps {
    /// One tap that moves by one.
    pub const ONE: Taps = Taps {
        kernel: 1,
        stride: 1,
        dilation: 1,
        pads: [0, 0],
    };
}

impl Window {
    /// Windows over one to three dimensions of `input`. Errors: another number of dimensions, extents and taps that disagree in
    /// number, a kernel, stride or dilation of 0, sizes beyond
    /// reason.
    pub fn new(input: &[usize], taps: &[Taps]) -> Result<Window> {
        let refuse = |reason: String| {
            Err(Error::Operand {
                what: "window",
                reason,
            })
        };
        if input.len() != taps.len() || input.is_empty() || input.len() > 3 {
            return refuse(format!(
                "{} spatial dimensions with taps for {}, must be 1 to 3",
                input.len(),
                taps.len()
            ));
        }
        let lead = 3 - input.len();
        let mut window = Window {
            input: [1; 3],
            kernel: [1; 3],
            stride: [1; 3],
            dilation: [1; 3],
            pad_begin: [0; 3],
            pad_end: [0; 3],
        };
        for (d, (&extent, taps)) in input.iter().zip(taps).enumerate() {
            let reach = taps
                .kernel
                .saturating_mul(taps.dilation)
                .saturating_add(taps.stride);
            let sizes = [extent, reach, taps.pads[0], taps.pads[1]];
            if taps.kernel == 0
                || taps.stride == 0
                || taps.dilation == 0
                || taps.kernel > MAX_KERNEL
                || sizes.iter().any(|&size| size > 1 << 40)
            {
                return refuse(format!("extent {extent} with {taps:?}"));
            }
            let d = lead + d;
            window.input[d] = extent;
            window.kernel[d] = taps.kernel;
            window.stride[d] = taps.stride;
            window.dilation[d] = taps.dilation;
            [window.pad_begin[d], window.pad_end[d]] = taps.pads;
        }
        Ok(window)
    }

    /// Number of windows in each dimension when only whole windows count; 0 where none fits.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|d| match self.slack(d) {
            Some(slack) => slack / self.stride[d] + 1,
            None => 0,
        })
    }

    /// Number of windows in each dimension when one that begins inside the input or its leading padding counts even if it
    /// reaches beyond the end.
    pub fn output_with_partial(&self) -> [usize; 3] {
        std::array::from_fn(|d| {
            let Some(slack) = self.slack(d) else { return 0 };
            let count = slack.div_ceil(self.stride[d]) + 1;
            let last_begin = (count - 1) * self.stride[d];
            if last_begin >= self.input[d] + self.pad_begin[d] {
                count - 1
            } else {
                count
            }
        })
    }

    /// Taps of a window.
    pub fn volume(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Input elements that a window spans in dimension `d`.
    pub fn span(&self, d: usize) -> usize {
        self.dilation[d] * (self.kernel[d] - 1) + 1
    }

    /// How far the first window can move; None if it does not fit.
    fn slack(&self, d: usize) -> Option<usize> {
        (self.input[d] + self.pad_begin[d] + self.pad_end[d]).checked_sub(self.span(d))
    }

    /// Whether the windows are the elements themselves.
    pub fn is_identity(&self) -> bool {
        self.kernel == [1; 3]
            && self.stride == [1; 3]
            && self.pad_begin == [0; 3]
            && self.pad_end == [0; 3]
    }

    /// Input coordinate in dimension `d` of a tap of a window; None in the padding.
    #[inline]
    pub fn at(&self, d: usize, window: usize, tap: usize) -> Option<usize> {
        let position =
            (window * self.stride[d] + tap * self.dilation[d]).checked_sub(self.pad_begin[d])?;
        (position < self.input[d]).then_some(position)
    }

    /// The taps of a window in dimension `d` that lie inside the input.
    pub fn inside(&self, d: usize, window: usize) -> std::ops::Range<usize> {
        let begin = window * self.stride[d];
        let first = self.pad_begin[d]
            .saturating_sub(begin)
            .div_ceil(self.dilation[d]);
        let end = (self.input[d] + self.pad_begin[d])
            .saturating_sub(begin)
            .div_ceil(self.dilation[d]);
        let end = end.min(self.kernel[d]);
        first.min(end)..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taps(kernel: usize, stride: usize, dilation: usize, pads: [usize; 2]) -> Taps {
        Taps {
            kernel,
            stride,
            dilation,
            pads,
        }
    }

    #[test]
    fn extents() {
        let window =
            Window::new(&[5, 7], &[taps(3, 2, 1, [1, 1]), taps(2, 3, 2, [0, 1])]).expect("fine");
        assert_eq!(window.output(), [1, 3, 2]);
        assert_eq!(window.output_with_partial(), [1, 3, 3]);
        let large = Window::new(&[2], &[taps(4, 1, 1, [0, 1])]).expect("fine");
        assert_eq!(large.output(), [1, 1, 0]);
        assert!(Window::new(&[2], &[taps(1, 0, 1, [0, 0])]).is_err());
        assert!(Window::new(&[2], &[taps(1, 1, usize::MAX, [0, 0])]).is_err());
        assert!(Window::new(&[1; 4], &[Taps::ONE; 4]).is_err());
    }

    #[test]
    fn taps_inside() {
        for (kernel, stride, dilation, pads) in
            [(3, 1, 1, [1, 1]), (4, 2, 3, [5, 2]), (2, 5, 1, [3, 9])]
        {
            let window = Window::new(&[6], &[taps(kernel, stride, dilation, pads)]).expect("fine");
            for position in 0..window.output_with_partial()[2] {
                let inside = window.inside(2, position);
                let expected: Vec<usize> = (0..kernel)
                    .filter(|&tap| window.at(2, position, tap).is_some())
                    .collect();
                assert_eq!(inside.collect::<Vec<_>>(), expected);
            }
        }
    }
}

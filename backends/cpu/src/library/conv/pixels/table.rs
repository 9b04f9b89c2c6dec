//! Addresses of the input pixels that output pixels read.

use crate::library::view::View;
use crate::library::window::Window;
use std::ops::Range;

/// A line of a window's taps in the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct TapLine {
    /// The first pixel of the input's line.
    pub from: *const f32,
    /// The first of the taps, counted over the window.
    pub tap: usize,
}

/// Neighbouring windows of a line that have the same taps in the input.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    pub windows: Range<usize>,
    /// Those of each line of taps; empty where all lie in the padding.
    pub taps: Range<usize>,
}

/// Distances within a line of the input, in elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// From one window to the next, and from one tap to the next.
    pub pixel: usize,
    pub tap: usize,
    /// From the first tap of the first window to the first pixel.
    pad: usize,
}

impl Steps {
    /// From the first pixel to a tap of a window.
    pub fn begin(&self, window: usize, tap: usize) -> isize {
        (window * self.pixel + tap * self.tap) as isize - self.pad as isize
    }
}

/// Where the taps of output pixels lie in a channels-last input.
#[derive(Clone)]
pub(super) struct Pixels<'a> {
    window: &'a Window,
    /// Windows in each dimension.
    windows: [usize; 3],
    from: *const f32,
    /// Elements between images and between neighbours in each spatial dimension.
    image: usize,
    strides: [usize; 3],
    /// Elements from a window's first tap to each of its taps.
    taps: Vec<isize>,
    /// In each dimension, the first window that lies in the input with all its taps, and the one after the last.
    inner: [(usize, usize); 3],
    /// As many zeros as a pixel has channels.
    zeros: *const f32,
}

/// Of the first `count` windows of dimension `d`, those that lie in the input with all their taps.
fn inner_windows(window: &Window, count: usize, d: usize) -> (usize, usize) {
    let first = window.pad_begin[d].div_ceil(window.stride[d]);
    let end = (window.input[d] + window.pad_begin[d])
        .checked_sub(window.span(d))
        .map_or(0, |last| last / window.stride[d] + 1);
    (first, end.min(count))
}

impl<'a> Pixels<'a> {
    /// The first `windows` of a window in each dimension.
    pub fn new(
        window: &'a Window,
        windows: [usize; 3],
        input: &View<'_, f32, 5>,
        zeros: *const f32,
    ) -> Pixels<'a> {
        let [image, depth, height, width, _] = input.strides();
        let strides = [depth, height, width];
        let [kernel_z, kernel_y, kernel_x] = window.kernel;
        let mut taps = Vec::with_capacity(window.volume());
        for z in 0..kernel_z {
            for y in 0..kernel_y {
                for x in 0..kernel_x {
                    let step = |d: usize, tap: usize| tap * window.dilation[d] * strides[d];
                    taps.push((step(0, z) + step(1, y) + step(2, x)) as isize);
                }
            }
        }
        Pixels {
            window,
            windows,
            from: input.as_ptr(),
            image,
            strides,
            taps,
            inner: std::array::from_fn(|d| inner_windows(window, windows[d], d)),
            zeros,
        }
    }

    /// Taps of a window.
    pub fn taps(&self) -> usize {
        self.taps.len()
    }

    /// Windows of a line.
    pub fn line(&self) -> usize {
        self.windows[2]
    }

    /// Stands for a pixel in the padding.
    pub fn zeros(&self) -> *const f32 {
        self.zeros
    }

    /// Of all lines of taps of all lines of windows, the share that lies in the input; 1 without any.
    pub fn lines_inside(&self) -> f64 {
        let share = |d: usize| {
            let inside = (0..self.windows[d]).map(|at| self.window.inside(d, at).len());
            let all = self.windows[d] * self.window.kernel[d];
            match all {
                0 => 1.0,
                _ => inside.sum::<usize>() as f64 / all as f64,
            }
        };
        share(0) * share(1)
    }

    /// Distances in a line.
    pub fn steps(&self) -> Steps {
        let window = self.window;
        Steps {
            pixel: window.stride[2] * self.strides[2],
            tap: window.dilation[2] * self.strides[2],
            pad: window.pad_begin[2] * self.strides[2],
        }
    }

    /// The windows of a line by their taps in the input.
    pub fn stretches(&self) -> Vec<Stretch> {
        let mut all: Vec<Stretch> = Vec::new();
        for x in 0..self.windows[2] {
            let taps = self.window.inside(2, x);
            match all.last_mut() {
                Some(last) if last.taps == taps => last.windows.end += 1,
                _ => all.push(Stretch {
                    windows: x..x + 1,
                    taps,
                }),
            }
        }
        all
    }

    /// Puts into `lines` those of the taps of a line of windows, counted over all images, that lie in the input.
    pub fn tap_lines(&self, row: usize, lines: &mut Vec<TapLine>) {
        lines.clear();
        let [depth, height, _] = self.windows;
        let (y, z, image) = (row % height, row / height % depth, row / height / depth);
        let window = self.window;
        let [_, kernel_y, kernel_x] = window.kernel;
        for tap_z in window.inside(0, z) {
            for tap_y in window.inside(1, y) {
                let at = |d: usize, window_at: usize, tap: usize| {
                    window_at * window.stride[d] + tap * window.dilation[d] - window.pad_begin[d]
                };
                let plane = at(0, z, tap_z) * self.strides[0];
                let line = at(1, y, tap_y) * self.strides[1];
                lines.push(TapLine {
                    from: self.from.wrapping_add(image * self.image + plane + line),
                    tap: (tap_z * kernel_y + tap_y) * kernel_x,
                });
            }
        }
    }

    /// Windows in each dimension.
    pub fn windows(&self) -> [usize; 3] {
        self.windows
    }

    /// Address of the input pixel that is `row` and `col` steps after the first one of a plane's first window; `plane` counts
    /// the depths of all images. Windows must have a depth of one and move by one.
    pub fn at(&self, plane: usize, row: usize, col: usize) -> *const f32 {
        let at = [plane % self.windows[0], row, col];
        let mut offset = plane / self.windows[0] * self.image;
        for d in 0..3 {
            let inside = at[d].checked_sub(self.window.pad_begin[d]);
            match inside.filter(|at| *at < self.window.input[d]) {
                Some(at) => offset += at * self.strides[d],
                None => return self.zeros,
            }
        }
        self.from.wrapping_add(offset)
    }

    /// Input elements that one more output pixel reads, channels aside: what its taps do not share with its neighbours.
    pub fn fresh(&self) -> usize {
        let stride: usize = self.window.stride.iter().product();
        stride.min(self.taps.len())
    }

    /// Image, plane, line and place in it of an output pixel.
    pub fn place(&self, pixel: usize) -> [usize; 4] {
        let [depth, height, width] = self.windows;
        let (line, x) = (pixel / width, pixel % width);
        let (plane, y) = (line / height, line % height);
        [plane / depth, plane % depth, y, x]
    }

    /// Writes the addresses for `rows` output pixels from a place on, which moves on by as many: for each tap, that of each
    /// pixel. To the addresses, but those of zeros, `channel` elements are added.
    ///
    /// # Safety
    /// `to` must have room for `taps * rows` addresses.
    pub unsafe fn fill(
        &self,
        at: &mut [usize; 4],
        rows: usize,
        channel: usize,
        to: *mut *const f32,
    ) {
        let mut row = 0;
        while row < rows {
            // Neighbours in a line whose windows lie in the input have all their taps equally far apart.
            let run = self.inner_run(at).min(rows - row);
            let base = self.first_tap(at, channel);
            if run > 0 {
                let step = (self.window.stride[2] * self.strides[2]) as isize;
                for (tap, &offset) in self.taps.iter().enumerate() {
                    let (to, base) = (
                        to.wrapping_add(tap * rows + row),
                        base.wrapping_offset(offset),
                    );
                    for next in 0..run {
                        // SAFETY: the caller's contract.
                        unsafe { *to.add(next) = base.wrapping_offset(next as isize * step) };
                    }
                }
            } else {
                for (tap, &offset) in self.taps.iter().enumerate() {
                    let inside = self.is_inside(at, tap);
                    let address = if inside {
                        base.wrapping_offset(offset)
                    } else {
                        self.zeros
                    };
                    // SAFETY: as above.
                    unsafe { *to.add(tap * rows + row) = address };
                }
            }
            row += run.max(1);
            at[3] += run.max(1);
            for d in [3, 2, 1] {
                if at[d] == self.windows[d - 1] {
                    at[d] = 0;
                    at[d - 1] += 1;
                }
            }
        }
    }

    /// Address of the first tap of a window, which may lie in the padding.
    fn first_tap(&self, at: &[usize; 4], channel: usize) -> *const f32 {
        let window = self.window;
        let mut offset = (at[0] * self.image + channel) as isize;
        for d in 0..3 {
            let begin = (at[d + 1] * window.stride[d]) as isize - window.pad_begin[d] as isize;
            offset += begin * self.strides[d] as isize;
        }
        self.from.wrapping_offset(offset)
    }

    /// How many windows of a line from this one on lie in the input.
    fn inner_run(&self, at: &[usize; 4]) -> usize {
        let [(first_z, end_z), (first_y, end_y), (first_x, end_x)] = self.inner;
        let whole = (first_z..end_z).contains(&at[1]) && (first_y..end_y).contains(&at[2]);
        if whole && at[3] >= first_x {
            end_x.saturating_sub(at[3])
        } else {
            0
        }
    }

    /// Whether a tap of a window lies in the input.
    fn is_inside(&self, at: &[usize; 4], tap: usize) -> bool {
        let [_, kernel_y, kernel_x] = self.window.kernel;
        let taps = [
            tap / (kernel_y * kernel_x),
            tap / kernel_x % kernel_y,
            tap % kernel_x,
        ];
        (0..3).all(|d| self.window.at(d, at[d + 1], taps[d]).is_some())
    }
}

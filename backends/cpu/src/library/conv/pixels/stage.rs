//! Copies of images that the kernels could not read as they are, or only slowly, in the words that they multiply.

use super::words::Reading;
use super::{Form, PixelInput, PixelWeights};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::simd::{Kernel, Simd, dispatch};
use crate::library::view::{Shared, View, dense_strides};
use crate::library::window::Window;
use crate::memory::Lent;

/// Pixels of a line that are copied at a time.
const RUN: usize = 16;

/// Elements below which a copy is not divided among threads.
const SERIAL_LEN: usize = 1 << 14;

/// Channels up to which the taps of a line count as channels: a filter of 7x7x3 is one of 7 taps and 21 channels.
const FEW_CHANNELS: usize = 15;

/// Channels that fill vectors.
const VECTOR: usize = 16;

/// Whether the taps of a line should count as channels where products run along those.
pub(super) fn merges_taps(channels: usize, taps: usize) -> bool {
    taps > 1 && !channels.is_multiple_of(VECTOR)
}

/// Output channels from which on a copy costs little beside the products.
const MANY_OUTPUTS: usize = 128;

/// Bytes between pixels, as multiples of which many of a tile's pixels share a set of the first-level cache, and all of them.
const COLLIDING: usize = 2048;
const ALL_COLLIDING: usize = 4096;

/// Words between pixels that would collide otherwise.
pub(super) fn pixel_step(words: usize) -> usize {
    let collides = words > 0 && (words * size_of::<f32>()).is_multiple_of(COLLIDING);
    words + if collides { RUN } else { 0 }
}

/// An image of words, in scratch memory unless it could be read as it was.
pub(super) struct Staged<'a> {
    from: *const f32,
    _memory: Option<Lent<'a>>,
    shape: [usize; 5],
    strides: [usize; 5],
    /// Geometry over the copy.
    pub window: Window,
    /// Words that a tap reads.
    pub inputs: usize,
}

impl Staged<'_> {
    pub fn view(&self) -> View<'_, f32, 5> {
        // SAFETY: `stage` took the memory for this shape and filled it, or the input has it.
        unsafe { View::from_raw(self.from, self.shape, self.strides) }
    }
}

/// Copies an image if that is needed or pays; with its padding where taps become channels. Where the input is transformed
/// after this, words are `f32`.
pub(super) fn stage<'a>(
    cx: &Context<'a>,
    window: &Window,
    input: &PixelInput<'_>,
    weights: &PixelWeights,
) -> Result<Option<Staged<'a>>> {
    let is_ready = matches!(input, PixelInput::Pairs(_));
    let input = input.view();
    let ([batch, .., channels], strides) = (input.shape(), input.strides());
    let padded: [usize; 3] =
        std::array::from_fn(|d| window.input[d] + window.pad_begin[d] + window.pad_end[d]);
    let is_dense_form = weights.form == Form::Panels;
    let merges = weights.groups == 1
        && !is_ready
        && match weights.form {
            Form::Panels => (1..=FEW_CHANNELS).contains(&channels) && window.kernel[2] > 1,
            Form::Dots => merges_taps(channels, window.kernel[2]),
            Form::Channels | Form::Tiles(_) => false,
        }
        && window.dilation[2] == 1
        // Not where padding is most of the image.
        && padded.iter().zip(&window.input).all(|(&p, &i)| p <= 2 * i + RUN);
    let distance = strides[3] * window.stride[2] * size_of::<f32>();
    let collides = is_dense_form
        && weights.shape[0] >= MANY_OUTPUTS
        && channels >= RUN
        && distance.is_multiple_of(ALL_COLLIDING);
    let scattered = channels > 1 && strides[4] != 1;
    let reading = match (weights.reading, weights.form) {
        (Reading::Pairs, Form::Tiles(_)) => Reading::Plain,
        _ if is_ready => Reading::Plain,
        (reading, _) => reading,
    };
    if !merges && !collides && !scattered && reading == Reading::Plain {
        return Ok(None);
    }
    let words = reading.words(channels);
    let (mut to, mut begin, mut step) = (*window, [0; 3], pixel_step(words));
    let mut inputs = match is_ready {
        true => weights.reading.words(weights.shape[1]),
        false => reading.words(weights.shape[1]),
    };
    if merges {
        inputs = window.kernel[2] * words;
        to.input = padded;
        to.kernel[2] = 1;
        (to.pad_begin, to.pad_end) = ([0; 3], [0; 3]);
        (begin, step) = (window.pad_begin, words);
    }
    let stands = !scattered && strides[3] == channels && padded == window.input;
    if merges && stands && reading == Reading::Plain {
        return Ok(Some(Staged {
            from: input.as_ptr(),
            _memory: None,
            shape: input.shape(),
            strides,
            window: to,
            inputs,
        }));
    }
    let [depth, height, width] = to.input;
    let mut strides = dense_strides([batch, depth, height, width, step]).unwrap_or([usize::MAX; 5]);
    strides[4] = 1;
    let len = batch.saturating_mul(strides[0]);
    let mut memory = cx.scratch.take::<f32>(len)?;
    if merges {
        memory.as_mut_slice::<f32>()[..len].fill(0.0);
    }
    let first = (0..3).map(|d| begin[d] * strides[d + 1]).sum::<usize>();
    let place = memory.as_ptr::<f32>().wrapping_add(first);
    // SAFETY: the memory holds the image and its border.
    unsafe {
        copy(
            cx,
            reading,
            input,
            place,
            [strides[0], strides[1], strides[2], step],
        );
    }
    Ok(Some(Staged {
        from: memory.as_ptr(),
        _memory: Some(memory),
        shape: [batch, depth, height, width, words],
        strides,
        window: to,
        inputs,
    }))
}

/// Copies an image to places whose images, planes, lines and pixels are `steps` words apart.
unsafe fn copy(
    cx: &Context,
    reading: Reading,
    from: &View<'_, f32, 5>,
    to: *mut f32,
    steps: [usize; 4],
) {
    let ([batch, depth, height, width, channels], strides) = (from.shape(), from.strides());
    let [image, plane, line, pixel, _] = strides;
    let (source, target) = (Shared(from.as_ptr().cast_mut()), Shared(to));
    let grain = (SERIAL_LEN / (width * channels).max(1)).max(1);
    let lines = Line {
        isa: cx.isa,
        reading,
        width,
        channels,
        strides: [pixel, strides[4]],
        step: steps[3],
    };
    cx.pool.run_ranges(batch * depth * height, grain, |range| {
        for index in range {
            let (n, z, y) = (
                index / height / depth,
                index / height % depth,
                index % height,
            );
            let from = source.get().wrapping_add(n * image + z * plane + y * line);
            let place = n * steps[0] + z * steps[1] + y * steps[2];
            // SAFETY: the view vouches for its elements; the line is this range's own.
            unsafe { lines.copy(from, target.get().wrapping_add(place)) };
        }
    });
}

/// How lines are copied.
struct Line {
    isa: Isa,
    reading: Reading,
    width: usize,
    channels: usize,
    /// Elements between pixels and channels of the source.
    strides: [usize; 2],
    /// Words between pixels of the copy.
    step: usize,
}

impl Line {
    /// # Safety
    /// The addresses must be those of a line.
    unsafe fn copy(&self, from: *const f32, to: *mut f32) {
        let Line {
            isa,
            reading,
            width,
            channels,
            strides: [pixel, channel],
            step,
        } = *self;
        let per_word = reading.channels();
        // SAFETY: the caller's contract.
        unsafe {
            if channels == 1 || channel == 1 {
                if pixel == channels && step * per_word == channels {
                    return reading.convert(isa, from, to, width * channels);
                }
                for x in 0..width {
                    reading.convert(isa, from.add(x * pixel), to.add(x * step), channels);
                }
                return;
            }
            if pixel == 1 && step == channels && reading == Reading::Plain {
                return dispatch(
                    isa,
                    Planes {
                        line: self,
                        from,
                        to,
                    },
                );
            }
            // The loops exist once for each kind of words.
            match reading {
                Reading::Plain => self.arrange(Reading::Plain, from, to),
                Reading::Rounded => self.arrange(Reading::Rounded, from, to),
                Reading::Pairs => self.arrange(Reading::Pairs, from, to),
            }
        }
    }

    /// A line whose channels are apart.
    ///
    /// # Safety
    /// As for [`Line::copy`].
    #[inline(always)]
    unsafe fn arrange(&self, reading: Reading, from: *const f32, to: *mut f32) {
        let [pixel, channel] = self.strides;
        let (width, channels, per_word) = (self.width, self.channels, reading.channels());
        for first in (0..width).step_by(RUN) {
            let run = first..(first + RUN).min(width);
            for c in 0..channels.next_multiple_of(per_word) {
                for x in run.clone() {
                    let word = to.wrapping_add(x * self.step + c / per_word);
                    // SAFETY: the caller's contract.
                    unsafe {
                        let there = c < channels;
                        let value = if there {
                            *from.add(x * pixel + c * channel)
                        } else {
                            0.0
                        };
                        reading.set(word, c % per_word, reading.round(value));
                    }
                }
            }
        }
    }
}

/// A line of an image that lies channels first.
struct Planes<'a> {
    line: &'a Line,
    from: *const f32,
    to: *mut f32,
}

impl Kernel for Planes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // SAFETY: the addresses are those of a line.
        unsafe {
            match self.line.channels {
                2 => self.interleave::<2>(),
                3 => self.interleave::<3>(),
                4 => self.interleave::<4>(),
                _ => self.line.arrange(Reading::Plain, self.from, self.to),
            }
        }
    }
}

impl Planes<'_> {
    /// # Safety
    /// As for [`Line::copy`], of `C` channels.
    #[inline(always)]
    unsafe fn interleave<const C: usize>(&self) {
        let channel = self.line.strides[1];
        for x in 0..self.line.width {
            for c in 0..C {
                // SAFETY: the caller's contract.
                unsafe { *self.to.add(x * C + c) = *self.from.add(c * channel + x) };
            }
        }
    }
}

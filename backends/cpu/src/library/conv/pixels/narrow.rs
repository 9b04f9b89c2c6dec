//! Weights of bf16: input rounded to bf16 is multiplied by them, two channels at a time where there is an instruction for it.

use half::bf16;

use super::{Form, PixelWeights, Reading, dense};
use crate::error::Result;
use crate::library::Context;
use crate::library::conv::check_dense;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::{Shared, View};
use crate::memory::{Buffer, Lent};

impl PixelWeights {
    /// Packs dense weights of one group, `[out_channels, in_channels, depth, height, width]`. Errors: weights that are not
    /// dense, out of memory.
    pub fn narrow(cx: &Context, weights: View<'_, bf16, 5>) -> Result<PixelWeights> {
        let shape = weights.shape();
        check_dense("weights", shape, weights.strides(), 1)?;
        let [outputs, inputs, taps @ ..] = shape;
        let reading = if cx.isa.bf16() {
            Reading::Pairs
        } else {
            Reading::Rounded
        };
        let words = words(reading, inputs);
        let taps: usize = taps.iter().product();
        let len: usize = outputs.saturating_mul(words).saturating_mul(taps);
        let mut flat = cx.scratch.take::<f32>(len)?;
        let at = |output: usize, input: usize, tap: usize| {
            let there = input < inputs;
            let from = weights
                .as_ptr()
                .wrapping_add((output * inputs + input) * taps + tap);
            // SAFETY: the weights are dense, and the element is one of theirs.
            if there { unsafe { *from } } else { bf16::ZERO }
        };
        for (index, word) in flat.as_mut_slice::<f32>()[..len].iter_mut().enumerate() {
            let (output, rest) = (index / (words * taps), index % (words * taps));
            let (input, tap) = (rest / taps, rest % taps);
            *word = match reading {
                Reading::Pairs => {
                    let low = at(output, 2 * input, tap).to_bits();
                    let high = at(output, 2 * input + 1, tap).to_bits();
                    f32::from_bits(u32::from(high) << 16 | u32::from(low))
                }
                Reading::Plain | Reading::Rounded => at(output, input, tap).to_f32(),
            };
        }
        let [_, _, kernel @ ..] = shape;
        let [depth, height, width] = kernel;
        let flat = View::dense(
            "weights",
            &flat.as_mut_slice::<f32>()[..len],
            [outputs, words, depth, height, width],
        )?;
        let columns = dense::padded_columns(cx.isa, outputs);
        let size = columns.saturating_mul(words).saturating_mul(taps);
        let packed = PixelWeights {
            isa: cx.isa,
            shape,
            groups: 1,
            form: Form::Panels,
            reading,
            words: Buffer::zeroed_for::<f32>(size, cx.scratch.usage())?,
        };
        let to = Shared(packed.words.as_ptr().cast::<f32>());
        // SAFETY: the weights are dense and the buffer has the length of that form.
        unsafe { dense::pack(cx, &flat, 1, to) };
        Ok(packed)
    }
}

/// Words of so many channels.
fn words(reading: Reading, channels: usize) -> usize {
    match reading {
        Reading::Pairs => channels.div_ceil(2),
        Reading::Plain | Reading::Rounded => channels,
    }
}

/// An input in the form in which the weights want it.
pub(super) struct Input<'a> {
    /// `[batch, depth, height, width, words]`, dense.
    pub view: View<'a, f32, 5>,
    _memory: Lent<'a>,
}

/// The input as the weights want it; `None` when that is as it is. Error: out of memory.
pub(super) fn input<'a>(
    cx: &Context<'a>,
    reading: Reading,
    input: &View<'_, f32, 5>,
) -> Result<Option<Input<'a>>> {
    if reading == Reading::Plain {
        return Ok(None);
    }
    let [batch, depth, height, width, channels] = input.shape();
    let [image, plane, line, pixel, _] = input.strides();
    let words = words(reading, channels);
    let lines = batch * depth * height;
    let memory = cx
        .scratch
        .take::<f32>(lines.saturating_mul(width).saturating_mul(words))?;
    let (from, to) = (
        Shared(input.as_ptr().cast_mut()),
        Shared(memory.as_ptr::<f32>()),
    );
    // Pixels that follow one another are converted in one run, if none ends in half a word.
    let dense = pixel == channels && (reading == Reading::Rounded || channels.is_multiple_of(2));
    let grain = (GRAIN / (width * channels).max(1)).max(1);
    cx.pool.run_ranges(lines, grain, |range| {
        for index in range {
            let (b, rest) = (index / (depth * height), index % (depth * height));
            let start = b * image + rest / height * plane + rest % height * line;
            let (runs, len) = if dense {
                (1, width * channels)
            } else {
                (width, channels)
            };
            for run in 0..runs {
                let part = Part {
                    from: from.get().wrapping_add(start + run * pixel),
                    to: to.get().wrapping_add((index * width + run) * words),
                    len,
                };
                match reading {
                    Reading::Pairs => dispatch(cx.isa, Pair(part)),
                    Reading::Plain | Reading::Rounded => dispatch(cx.isa, Round(part)),
                }
            }
        }
    });
    let shape = [batch, depth, height, width, words];
    let strides = [
        depth * height * width * words,
        height * width * words,
        width * words,
        words,
        1,
    ];
    // SAFETY: the memory holds that many words and lives as long as the view.
    let view = unsafe { View::from_raw(memory.as_ptr::<f32>().cast_const(), shape, strides) };
    Ok(Some(Input {
        view,
        _memory: memory,
    }))
}

/// Elements that a thread should have to convert.
const GRAIN: usize = 1 << 14;

/// Neighbouring elements and where their words go.
struct Part {
    from: *const f32,
    to: *mut f32,
    len: usize,
}

/// Two elements to a word, as bf16.
struct Pair(Part);

impl Kernel for Pair {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { from, to, len } = self.0;
        for at in (0..len).step_by(2 * S::LANES) {
            let there = (len - at).min(2 * S::LANES);
            let low = there.min(S::LANES);
            // SAFETY: `there` elements follow, and there is room for their words.
            unsafe {
                let a = f32::load_first_or_all(s, from.add(at), low);
                let b = f32::load_first_or_all(s, from.wrapping_add(at + S::LANES), there - low);
                let (even, odd) = s.unzip(a, b);
                let words = s.pair_bf16(even, odd);
                f32::store_first_or_all(s, to.add(at / 2), there.div_ceil(2), words);
            }
        }
    }
}

/// Elements rounded to bf16.
struct Round(Part);

impl Kernel for Round {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { from, to, len } = self.0;
        for at in (0..len).step_by(S::LANES) {
            let there = (len - at).min(S::LANES);
            // SAFETY: `there` elements follow, and there is room for them.
            unsafe {
                let v = f32::load_first_or_all(s, from.add(at), there);
                let wide = s.float_of_bits(s.shl::<16>(s.narrow_bf16(v)));
                f32::store_first_or_all(s, to.add(at), there, wide);
            }
        }
    }
}

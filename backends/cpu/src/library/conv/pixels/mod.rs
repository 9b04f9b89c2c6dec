//! Convolution of channels-last images, `[batch, depth, height, width, channels]`, of `f32` by weights of `f32` or `bf16`.
//!
//! Nothing is packed but the weights: for every tap of every output pixel a table holds the address of the input pixel (or of
//! zeros in the padding), and the kernels read the channels from there. [`dense`] multiplies pixels by panels of weights,
//! [`depthwise`] works on vectors of channels, [`dots`] computes a few output channels as products along the inputs, [`winograd`] multiplies less. Biases, a residual and a clamp are applied to the sums in registers ([`Tail`]).
//!
//! Every sum runs over taps and then channels in an order that the shape decides, so results depend neither on threads nor, from AVX2 on, on the level.

mod dense;
mod depthwise;
mod dots;
mod stage;
mod table;
#[cfg(test)]
mod tests;
mod winograd;
mod words;

use super::check_dense;
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::gemm::{Epilogue, Finished};
use crate::library::simd::Simd;
use crate::library::simd::loops::for_each_vector;
use crate::library::view::{Shared, View, ViewMut, mismatch};
use crate::library::window::Window;
use crate::memory::Buffer;
use dense::Strips;
use table::Pixels;
use winograd::Tiling;
use words::Reading;
pub use words::Weight;

/// What is done to every sum before it is stored, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Tail<'a> {
    /// Added: one number for each output channel.
    pub bias: Option<&'a [f32]>,
    /// Added: an element of the output's extents, dense. May be the output itself.
    pub residual: Option<Shared<f32>>,
    /// The least and the largest result; NaN stays.
    pub clamp: [f32; 2],
    /// What the result is multiplied by.
    pub gate: Option<Gate>,
}

/// `y` becomes `y * clamp(y * scale + shift) * factor + offset`, as in a hard swish; NaN stays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Of the line that is clamped.
    pub scale: f32,
    /// Of the line that is clamped.
    pub shift: f32,
    /// The least and the largest value of the line.
    pub bounds: [f32; 2],
    /// Applied to the product.
    pub factor: f32,
    /// Added to the product.
    pub offset: f32,
}

impl Tail<'_> {
    /// Changes nothing.
    pub const NONE: Tail<'static> = Tail {
        bias: None,
        residual: None,
        clamp: [f32::NEG_INFINITY, f32::INFINITY],
        gate: None,
    };
}

/// How sums become results.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    /// In registers.
    Tail(Tail<'a>),
    /// Once they are stored: `row` is the output pixel, counted over all images, `col` the channel; pixels that are finished
    /// in all their channels are handed out as one row.
    Epilogue(Epilogue<'a, f32>),
}

/// Images, `[batch, depth, height, width, channels]`.
#[derive(Clone, Copy)]
pub enum PixelInput<'a> {
    /// Copied first unless channels are neighbours in memory.
    Floats(View<'a, f32, 5>),
    /// In bf16, as the words of two channels that are multiplied by weights that [`PixelWeights::takes_pairs`].
    Pairs(View<'a, f32, 5>),
}

impl<'a> PixelInput<'a> {
    /// The images as words.
    fn view(&self) -> &View<'a, f32, 5> {
        match self {
            PixelInput::Floats(view) | PixelInput::Pairs(view) => view,
        }
    }

    /// Channels in a word.
    fn channels_of_word(&self) -> usize {
        match self {
            PixelInput::Floats(_) => 1,
            PixelInput::Pairs(_) => 2,
        }
    }
}

/// Where results go, `[batch, depth, height, width, out_channels]`.
#[derive(Debug)]
pub enum PixelOutput<'a> {
    /// Dense.
    Store(ViewMut<'a, f32, 5>),
    /// Nowhere: the epilogue takes what it needs of the sums.
    Discard,
}

/// A convolution's operands.
#[derive(Clone, Copy)]
pub struct Convolution<'a> {
    /// Geometry.
    pub window: &'a Window,
    /// The images.
    pub input: PixelInput<'a>,
    /// Packed for the context's level.
    pub weights: &'a PixelWeights,
    /// What is done to the sums.
    pub finish: Finish<'a>,
}

/// Weights packed for one [`Isa`].
#[derive(Debug)]
pub struct PixelWeights {
    isa: Isa,
    /// `[out_channels, in_channels / groups, depth, height, width]`
    shape: [usize; 5],
    groups: usize,
    form: Form,
    reading: Reading,
    words: Buffer,
}

/// Arrangement of packed weights. "Inputs" are input channels, or words of them ([`Reading`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// For each group, for each panel of output channels, for each tap, for each input: the panel's channels.
    Panels,
    /// For each tap, the channels: one input and one output channel in each group.
    Channels,
    /// For each output channel, for each tap, the inputs: one group.
    Dots,
    /// For each panel of output channels, for each place in a tile, for each input: the panel's channels.
    Tiles(Tiling),
}

impl Form {
    /// The form for weights of a shape, whose channels the groups divide.
    fn of<T: Weight>(
        isa: Isa,
        shape: [usize; 5],
        groups: usize,
        expected: Option<Expected>,
    ) -> Form {
        if groups == 1 && dots::pays(shape) {
            return Form::Dots;
        }
        let tiling = expected
            .filter(|e| groups == 1 && e.window.kernel == shape[2..])
            .and_then(|e| winograd::choose(e.window, e.batch, shape, T::reading(isa)));
        match tiling {
            Some(tiling) => Form::Tiles(tiling),
            None if groups > 1 && shape[0] == groups && shape[1] == 1 => Form::Channels,
            None => Form::Panels,
        }
    }

    /// What weights of this form multiply.
    fn reading<T: Weight>(self, isa: Isa, inputs: usize, groups: usize) -> Reading {
        let reading = T::reading(isa);
        // A word of one channel would be half empty.
        let divides = groups == 1 && inputs > 1 || reading.fills(inputs);
        match self {
            Form::Panels | Form::Tiles(_) if divides => reading,
            _ => T::WIDE,
        }
    }

    /// Words that weights of a shape take.
    fn len(self, isa: Isa, reading: Reading, shape: [usize; 5], groups: usize) -> usize {
        let [outputs, inputs, taps @ ..] = shape;
        let inputs = reading.words(inputs);
        let taps: usize = taps.iter().product();
        match self {
            Form::Panels => {
                let steps = inputs.saturating_mul(taps);
                let columns = Strips::new(isa, reading, steps).padded(outputs / groups);
                columns.saturating_mul(groups).saturating_mul(steps)
            }
            Form::Channels | Form::Dots => shape.iter().product(),
            Form::Tiles(tiling) => winograd::packed_len(isa, tiling, [outputs, inputs]),
        }
    }
}

/// Images that weights are packed for. Any others can be convolved with them too, but may take longer.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Geometry; the taps and their distances must be those of all calls.
    pub window: &'a Window,
    /// Images.
    pub batch: usize,
}

impl PixelWeights {
    /// Packs dense weights `[out_channels, in_channels / groups, depth, height, width]`, for minimal filtering where that pays
    /// for what is `expected`; without it every product is computed. Errors: channels that the groups do not divide, weights
    /// that are not dense, out of memory. The input of convolutions is rounded to the weights' type.
    pub fn new<T: Weight>(
        cx: &Context,
        weights: View<'_, T, 5>,
        groups: usize,
        expected: Option<Expected>,
    ) -> Result<PixelWeights> {
        let shape = weights.shape();
        check_dense("weights", shape, weights.strides(), 1)?;
        if groups == 0 || !shape[0].is_multiple_of(groups) {
            let wanted = format!("a multiple of {groups}");
            return Err(mismatch("output channels of weights", shape[0], wanted));
        }
        let form = Form::of::<T>(cx.isa, shape, groups, expected);
        let reading = form.reading::<T>(cx.isa, shape[1], groups);
        let len = form.len(cx.isa, reading, shape, groups);
        let all = (form, reading, shape, groups);
        let size = len.saturating_mul(size_of::<f32>());
        let words = Buffer::made(size, cx.scratch.usage(), all, |words| {
            let to = Shared(words.as_ptr().cast::<f32>());
            match form {
                // SAFETY: the weights are dense and the buffer has the length of that form.
                Form::Panels => unsafe { dense::pack(cx, reading, &weights, groups, to) },
                // SAFETY: as above.
                Form::Channels => unsafe { depthwise::pack(&weights, to.get()) },
                // SAFETY: as above.
                Form::Dots => unsafe { dots::pack(&weights, to.get()) },
                // SAFETY: as above.
                Form::Tiles(tiling) => unsafe { winograd::pack(cx, tiling, reading, &weights, to) },
            }
        })?;
        Ok(PixelWeights {
            isa: cx.isa,
            shape,
            groups,
            form,
            reading,
            words,
        })
    }

    /// Bytes that weights of this shape will take; `None` for channels that the groups do not divide.
    pub fn size_for<T: Weight>(
        cx: &Context,
        shape: [usize; 5],
        groups: usize,
        expected: Option<Expected>,
    ) -> Option<usize> {
        let divided = groups > 0 && shape[0].is_multiple_of(groups);
        let len = divided.then(|| {
            let form = Form::of::<T>(cx.isa, shape, groups, expected);
            let reading = form.reading::<T>(cx.isa, shape[1], groups);
            form.len(cx.isa, reading, shape, groups)
        });
        len?.checked_mul(size_of::<f32>())
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.words.size()
    }

    /// Whether images in bf16 can be read as they are, if their channels are neighbours in memory.
    pub fn takes_pairs(&self) -> bool {
        self.form == Form::Panels
            && self.reading == Reading::Pairs
            && self.reading.fills(self.shape[1])
    }

    fn as_ptr(&self) -> *const f32 {
        self.words.as_ptr().cast()
    }
}

/// What all kernels need of one call.
struct Job<'a> {
    /// Where the taps of output pixels are.
    pixels: Pixels<'a>,
    /// Output pixels over all images.
    count: usize,
    /// Words that a tap reads of an input pixel, and channels of the output, in a group.
    inputs: usize,
    outputs: usize,
    groups: usize,
    weights: *const f32,
    reading: Reading,
    /// Dense, `[pixels, channels]`; null where tasks keep sums for themselves, which only [`dense`] does.
    output: *mut f32,
    /// Elements between output pixels: all channels.
    stride: usize,
    tail: RawTail,
    epilogue: Option<Epilogue<'a, f32>>,
}

// SAFETY: what the addresses lead to is read only, but for the output, of which tasks write disjoint parts.
unsafe impl Sync for Job<'_> {}

/// A tail as addresses, null where there is none.
#[derive(Clone, Copy)]
struct RawTail {
    bias: *const f32,
    residual: *const f32,
    clamp: [f32; 2],
    gate: Option<Gate>,
}

impl RawTail {
    fn new(tail: &Tail) -> RawTail {
        let null = std::ptr::null();
        RawTail {
            bias: tail.bias.map_or(null, <[f32]>::as_ptr),
            residual: tail.residual.map_or(null, |r| r.get().cast_const()),
            clamp: tail.clamp,
            gate: tail.gate,
        }
    }

    /// What the sums of `len` channels from `channel` on begin with.
    ///
    /// # Safety
    /// The channels must exist.
    #[inline(always)]
    unsafe fn start<S: Simd>(&self, s: S, channel: usize, len: usize) -> S::F {
        if self.bias.is_null() {
            return s.splat(0.0);
        }
        // SAFETY: the caller's contract.
        unsafe { load(s, self.bias.add(channel), len) }
    }

    /// The result of sums for `len` elements of the output from `place` on, but for the gate.
    ///
    /// # Safety
    /// The elements must exist.
    #[inline(always)]
    unsafe fn end<S: Simd>(&self, s: S, sum: S::F, place: usize, len: usize) -> S::F {
        let mut sum = sum;
        if !self.residual.is_null() {
            // SAFETY: the caller's contract.
            sum = s.add(sum, unsafe { load(s, self.residual.add(place), len) });
        }
        clamp(s, sum, self.clamp)
    }

    /// Passes what [`RawTail::end`] gave, once it is stored, through the gate: in registers it would double what the kernels
    /// unroll. `rows` of `cols` elements, `stride` apart.
    ///
    /// # Safety
    /// The elements must exist.
    #[inline(always)]
    unsafe fn pass<S: Simd>(&self, s: S, to: *mut f32, [rows, stride, cols]: [usize; 3]) {
        let Some(gate) = self.gate else {
            return;
        };
        for row in 0..rows {
            let to = to.wrapping_add(row * stride);
            for_each_vector!(s, cols, |at, len| {
                // SAFETY: the caller's contract.
                unsafe {
                    let y = load(s, to.add(at), len);
                    let line = s.mul_add(y, s.splat(gate.scale), s.splat(gate.shift));
                    let product = s.mul(y, clamp(s, line, gate.bounds));
                    let y = s.mul_add(product, s.splat(gate.factor), s.splat(gate.offset));
                    store(s, to.add(at), len, y);
                }
            });
        }
    }
}

#[inline(always)]
fn clamp<S: Simd>(s: S, v: S::F, [low, high]: [f32; 2]) -> S::F {
    // A NaN is the second operand, which is what comes out.
    s.min(s.splat(high), s.max(s.splat(low), v))
}

#[inline(always)]
unsafe fn load<S: Simd>(s: S, from: *const f32, len: usize) -> S::F {
    // SAFETY: the caller's contract.
    unsafe {
        if len == S::LANES {
            s.load(from)
        } else {
            s.load_first(from, len)
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd>(s: S, to: *mut f32, len: usize, v: S::F) {
    // SAFETY: the caller's contract.
    unsafe {
        if len == S::LANES {
            s.store(to, v);
        } else {
            s.store_first(to, len, v);
        }
    }
}

impl Job<'_> {
    /// Hands finished pixels to the epilogue: `rows` of them from `first` on, `cols` channels from `col` on.
    fn finish(&self, first: usize, rows: usize, col: usize, cols: usize) {
        let start = self.output.wrapping_add(first * self.stride + col);
        self.finish_at((start, self.stride), [first, rows], [col, cols]);
    }

    /// As [`Job::finish`], of sums that begin at an address and whose rows are so far apart.
    fn finish_at(
        &self,
        (start, row_stride): (*mut f32, usize),
        [first, rows]: [usize; 2],
        [col, cols]: [usize; 2],
    ) {
        let Some(epilogue) = self.epilogue else {
            return;
        };
        let whole = cols == self.stride;
        let part = Finished {
            start,
            row_stride,
            batch: 0,
            row: first,
            rows: if whole { 1 } else { rows },
            col,
            cols: if whole { rows * cols } else { cols },
        };
        if rows > 0 && cols > 0 {
            epilogue(part);
        }
    }
}

/// Computes a convolution into `output`.
///
/// Errors: extents that do not agree, weights packed for another level, operands that are not laid out as said, out of memory.
pub fn convolve_pixels(
    cx: &Context,
    convolution: &Convolution,
    output: PixelOutput<'_>,
) -> Result<()> {
    let Convolution {
        window,
        input,
        weights,
        finish,
    } = *convolution;
    check(cx, convolution, &output)?;
    let outputs = weights.shape[0];
    let windows = window.output();
    let count = input.view().shape()[0] * windows.iter().product::<usize>();
    if count == 0 || outputs == 0 {
        return Ok(());
    }
    let channels = input.view().shape()[4];
    let mut zeros = cx.scratch.take::<f32>(channels)?;
    zeros.as_mut_slice::<f32>()[..channels].fill(0.0);
    let staged = stage::stage(cx, window, &input, weights)?;
    let (taps, image, inputs) = match &staged {
        Some(staged) => (&staged.window, staged.view(), staged.inputs),
        None => {
            let inputs = weights.shape[1] / input.channels_of_word();
            (window, *input.view(), inputs)
        }
    };
    let (tail, epilogue) = match finish {
        Finish::Tail(tail) => (tail, None),
        Finish::Epilogue(epilogue) => (Tail::NONE, Some(epilogue)),
    };
    let passing;
    let output = match &output {
        PixelOutput::Store(view) => view.as_ptr(),
        PixelOutput::Discard if weights.form == Form::Panels => std::ptr::null_mut(),
        PixelOutput::Discard => {
            passing = cx.scratch.take::<f32>(count.saturating_mul(outputs))?;
            passing.as_ptr()
        }
    };
    let job = Job {
        pixels: Pixels::new(taps, windows, &image, zeros.as_ptr()),
        count,
        inputs,
        outputs: outputs / weights.groups,
        groups: weights.groups,
        weights: weights.as_ptr(),
        reading: weights.reading,
        output,
        stride: outputs,
        tail: RawTail::new(&tail),
        epilogue,
    };
    match weights.form {
        // SAFETY: the views vouch for their elements and agree in their extents.
        Form::Panels => unsafe { dense::run(cx, &job) },
        // SAFETY: as above.
        Form::Channels => unsafe { depthwise::run(cx, &job) },
        // SAFETY: as above.
        Form::Dots => unsafe { dots::run(cx, &job) },
        // SAFETY: as above.
        Form::Tiles(tiling) => unsafe { winograd::run(cx, &job, tiling) },
    }
}

fn check(cx: &Context, convolution: &Convolution, output: &PixelOutput<'_>) -> Result<()> {
    let Convolution {
        window,
        input,
        weights,
        finish,
    } = convolution;
    let [outputs, inputs, taps @ ..] = weights.shape;
    if weights.isa != cx.isa {
        return Err(mismatch("packed weights", weights.isa, cx.isa));
    }
    let [batch, spatial @ .., words] = input.view().shape();
    let channels = words * input.channels_of_word();
    if matches!(input, PixelInput::Pairs(_)) && !weights.takes_pairs() {
        return Err(mismatch("words of images", "pairs", weights.reading));
    }
    if spatial != window.input {
        let what = "spatial extents of a convolution's input";
        return Err(mismatch(what, spatial, window.input));
    }
    if taps != window.kernel {
        return Err(mismatch("taps of weights", taps, window.kernel));
    }
    if matches!(weights.form, Form::Tiles(_)) && !winograd::applies(window) {
        return Err(mismatch(
            "window of transformed weights",
            *window,
            "3x3 that moves by one",
        ));
    }
    if channels != inputs * weights.groups {
        let wanted = inputs * weights.groups;
        return Err(mismatch(
            "input channels of a convolution",
            channels,
            wanted,
        ));
    }
    let [depth, height, width] = window.output();
    let wanted = [batch, depth, height, width, outputs];
    if let PixelOutput::Store(output) = output {
        if output.shape() != wanted {
            return Err(mismatch("output of a convolution", output.shape(), wanted));
        }
        check_dense("output of a convolution", wanted, output.strides(), 1)?;
    }
    match finish {
        Finish::Tail(Tail { bias: Some(b), .. }) if b.len() < outputs => {
            Err(mismatch("elements of a bias", b.len(), outputs))
        }
        _ => Ok(()),
    }
}

//! Gradients of convolutions' weights: a product of what windows hold, which is gathered, by the cotangent.

use super::contract::rounds;
use super::conv::{taps_of, window};
use super::operand::{Extents, Operand, copy_elements};
use super::pixels::five_last;
use super::{Call, Failure, whole_size};
use crate::library::gemm::{Left, Number, Output, Right, Windows, multiply, multiply_windows};
use crate::library::view::Element;
use crate::library::window::Window;
use crate::library::{Context, View, ViewMut};
use crate::memory::Lent;
use cupola_ir::composite::ConvWeightGradient;
use cupola_ir::{DType, TensorType};
use half::{bf16, f16};

/// Channels of a group on either side from which on the product fills its tiles.
const FULL_CHANNELS: i64 = 8;

/// Why there is no kernel for these operands.
pub(crate) fn refusal(p: &ConvWeightGradient, operands: &[&TensorType]) -> Option<String> {
    let [x, dy] = operands else {
        return Some("takes two operands".into());
    };
    let floats = matches!(x.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16);
    if !floats || x.dtype != dy.dtype {
        return Some(format!("no gradient of {} by {}", x.dtype, dy.dtype));
    }
    let spatial = p.kernel.len();
    if !(1..=3).contains(&spatial) {
        return Some(format!("{spatial} spatial axes"));
    }
    let groups = p.groups as i64;
    let fills = |t: &TensorType| {
        let channels = t.dims[spatial + 1].as_const();
        channels.is_some_and(|n| n / groups.max(1) >= FULL_CHANNELS)
    };
    if groups != 1 && !(fills(x) && fills(dy)) {
        return Some("groups of few channels".into());
    }
    let pads = p.pads_low.iter().chain(&p.pads_high);
    let negative = pads.filter_map(|d| d.as_const()).any(|pad| pad < 0);
    negative.then(|| "negative padding".into())
}

/// Runs the product.
pub(crate) fn run(call: &Call, p: &ConvWeightGradient) -> Result<(), Failure> {
    let kernel: Vec<usize> = (p.kernel.iter())
        .map(|d| whole_size(call.dim(d)?))
        .collect::<Result<_, Failure>>()?;
    let ints = [&p.strides[..], &p.dilations[..]];
    let taps = taps_of(call, &kernel, ints, [&p.pads_low, &p.pads_high])?;
    let (x, dy) = (&call.operands[0], &call.operands[1]);
    let channels = x.dims.len() - 1;
    let mut window = window(&x.dims[1..channels], &taps)?;
    let (x, _x_copy) = images(&call.cx, x, &mut window)?;
    let (dy, _dy_copy) = rows(&call.cx, dy)?;
    let gradient = Gradient {
        call,
        x: &x,
        dy: &dy,
        window: &window,
        groups: p.groups,
    };
    match dy.read {
        DType::F64 => gradient.run::<f64>(),
        DType::F16 => gradient.run::<f16>(),
        DType::BF16 => gradient.run::<bf16>(),
        _ => gradient.floats(),
    }
}

/// Images as windows read them: channels are neighbours, and the border is part of the image, so that `window` has none any
/// more. f32 that is to be rounded stays as it is.
fn images<'a>(
    cx: &Context<'a>,
    x: &Operand,
    window: &mut Window,
) -> Result<(Operand, Vec<Lent<'a>>), Failure> {
    let mut lent = vec![];
    let mut x = x.clone();
    if x.read != x.dtype && !rounds(&x) {
        let (copy, memory) = x.converted(cx, 0)?;
        lent.push(memory);
        x = copy;
    }
    let channels = x.dims.len() - 1;
    let neighbours = x.dims[channels] <= 1 || x.strides[channels] == 1;
    let is_padded = window.pad_begin != [0; 3] || window.pad_end != [0; 3];
    if is_padded {
        let (padded, memory) = padded(cx, &x, window)?;
        lent.push(memory);
        x = padded;
    } else if !neighbours || x.has_negative_stride() {
        let (copy, memory) = x.dense(cx, 0)?;
        lent.push(memory);
        x = copy;
    }
    Ok((x, lent))
}

/// A dense copy with zeros around the spatial axes, which are then part of what `window` is over.
fn padded<'a>(
    cx: &Context<'a>,
    x: &Operand,
    window: &mut Window,
) -> Result<(Operand, Lent<'a>), Failure> {
    let channels = x.dims.len() - 1;
    let lead = 4 - x.dims.len() + 1;
    let mut dims = x.dims.clone();
    let mut start = 0;
    for a in 1..channels {
        let d = a - 1 + lead;
        dims[a] += window.pad_begin[d] + window.pad_end[d];
    }
    let mut strides: Extents<isize> = dims.iter().map(|_| 0).collect();
    let mut len = 1usize;
    for a in (0..dims.len()).rev() {
        strides[a] = len as isize;
        len = len.saturating_mul(dims[a]);
    }
    for a in 1..channels {
        start += window.pad_begin[a - 1 + lead] * strides[a] as usize;
    }
    let size = len.saturating_mul(x.dtype.size());
    let memory = cx.scratch.take::<u8>(size.max(64))?;
    // SAFETY: the memory has that many bytes and nobody else has it.
    unsafe { memory.as_ptr::<u8>().write_bytes(0, size) };
    let whole = Operand {
        dtype: x.dtype,
        read: x.read,
        start: memory.as_ptr(),
        dims,
        strides,
    };
    let inside = Operand {
        start: whole.start.wrapping_add(start * x.dtype.size()),
        dims: x.dims.clone(),
        ..whole.clone()
    };
    copy_elements(cx, x, &inside);
    for d in 0..3 {
        window.input[d] += window.pad_begin[d] + window.pad_end[d];
    }
    (window.pad_begin, window.pad_end) = ([0; 3], [0; 3]);
    Ok((whole, memory))
}

/// The cotangent as rows of channels, one behind the other. f32 that is to be rounded stays as it is.
fn rows<'a>(cx: &Context<'a>, dy: &Operand) -> Result<(Operand, Option<Lent<'a>>), Failure> {
    if dy.read != dy.dtype && !rounds(dy) {
        let (copy, memory) = dy.converted(cx, 0)?;
        return Ok((copy, Some(memory)));
    }
    if dy.is_dense() {
        return Ok((dy.clone(), None));
    }
    let (copy, memory) = dy.dense(cx, 0)?;
    Ok((copy, Some(memory)))
}

/// A gradient whose operands are ready.
struct Gradient<'a> {
    call: &'a Call<'a>,
    x: &'a Operand,
    dy: &'a Operand,
    window: &'a Window,
    groups: usize,
}

impl Gradient<'_> {
    /// Of f32: where windows can be read in place, they are.
    fn floats(&self) -> Result<(), Failure> {
        if self.groups != 1 {
            return self.run::<f32>();
        }
        let result = &self.call.results[0];
        let last = result.dims.len() - 1;
        let (inputs, outputs) = (result.dims[last - 1], result.dims[last]);
        let windows = self.windows(0, inputs);
        let rows = self.columns(0, outputs);
        let shape = [self.window.volume() * inputs, outputs];
        // SAFETY: the result is dense, and this call has it alone; the rows are those of the view.
        let (rows, mut output) = unsafe {
            (
                View::from_raw(rows.as_ptr(), [rows.shape()[2], outputs], [outputs, 1]),
                ViewMut::from_raw(result.start.cast(), shape, [outputs, 1]),
            )
        };
        match multiply_windows(&self.call.cx, &windows, &rows, &mut output)? {
            true => Ok(()),
            false => self.run::<f32>(),
        }
    }

    fn run<T: Number>(&self) -> Result<(), Failure> {
        let result = &self.call.results[0];
        let last = result.dims.len() - 1;
        let all = result.dims[last];
        let (inputs, outputs) = (result.dims[last - 1], all / self.groups.max(1));
        for group in 0..self.groups {
            let left = match rounds(self.x) {
                true => Left::WideWindows(self.windows(group * inputs, inputs)),
                false => Left::Windows(self.windows(group * inputs, inputs)),
            };
            let columns = group * outputs;
            let right = match rounds(self.dy) {
                true => Right::Wide(self.columns(columns, outputs)),
                false => Right::View(self.columns(columns, outputs)),
            };
            let to = result.start.cast::<T>().wrapping_add(columns);
            let shape = [1, 1, self.window.volume() * inputs, outputs];
            // SAFETY: the result is dense, a group's channels are neighbouring columns, and this call has it alone.
            let output = unsafe { ViewMut::from_raw(to, shape, [0, 0, all, 1]) };
            multiply(&self.call.cx, left, right, Output::Narrow(output), None)?;
        }
        Ok(())
    }

    /// `count` channels of the cotangent from `first` on.
    fn columns<T: Element>(&self, first: usize, count: usize) -> View<'_, T, 4> {
        let all = self.dy.dims.last().copied().unwrap_or(1);
        let start = self.dy.start.cast::<T>().wrapping_add(first);
        let shape = [1, 1, self.dy.len() / all.max(1), count];
        // SAFETY: the cotangent is dense and was checked to lie inside its buffer when it was bound, or is a copy.
        unsafe { View::from_raw(start, shape, [0, 0, all, 1]) }
    }

    /// What windows hold of `count` channels from `first` on.
    fn windows<T: Element>(&self, first: usize, count: usize) -> Windows<'_, T> {
        let (mut dims, strides) = five_last(self.x);
        dims[4] = count;
        let start = self.x.start.cast::<T>().wrapping_add(first);
        // SAFETY: the operand was checked to lie inside its buffer when it was bound, or is a copy; strides are not negative.
        let images = unsafe { View::<T, 5>::from_raw(start, dims, strides) };
        let windows = Windows::new(&images, self.window);
        windows.unwrap_or_else(|| unreachable!("bug: images that were not made ready"))
    }
}

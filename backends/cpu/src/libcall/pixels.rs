//! Convolutions of channels-last images.

use super::conv::{five, taps, usable, view, window};
use super::operand::{Extents, Operand};
use super::tail::tail;
use super::{Call, Failure, Prepared, whole_size};
use crate::library::conv::pixels::{
    Convolution, Expected, Finish, PixelInput, PixelOutput, PixelWeights, Tail, convolve_pixels,
};
use crate::library::gemm::Finished;
use crate::library::gemm::numbers::Multiply;
use crate::library::view::Shared;
use crate::library::window::{Taps, Window};
use crate::library::{Context, View, ViewMut};
use cupola_ir::composite::ConvChannelsLast;
use cupola_ir::kernel::{Extent, Library};
use cupola_ir::{DType, Dim, TensorType};
use half::bf16;
use std::sync::OnceLock;

/// Output channels of a group from which on channels-last kernels fill their vectors.
const FULL_OUTPUTS: usize = 8;

/// Why there is no kernel for these operands.
pub(crate) fn refusal(p: &ConvChannelsLast, operands: &[&TensorType]) -> Option<String> {
    let [x, w] = operands else {
        return Some("takes two operands".into());
    };
    let by_channel = p.groups > 1 && w.dims[1].is(1);
    let narrow = w.dtype == DType::BF16 && !by_channel;
    let taken = match x.dtype {
        DType::F32 => w.dtype == DType::F32 || narrow,
        DType::BF16 => narrow,
        _ => false,
    };
    if !taken {
        return Some(format!(
            "no channels-last convolution of {} by {}",
            x.dtype, w.dtype
        ));
    }
    let spatial = x.rank().saturating_sub(2);
    if !(1..=3).contains(&spatial) {
        return Some(format!("{spatial} spatial axes"));
    }
    let (outputs, inputs) = (w.dims[0].as_const(), w.dims[1].as_const());
    let groups = p.groups as i64;
    let is_depthwise = outputs == Some(groups) && inputs == Some(1);
    let fills = outputs.is_some_and(|n| n / groups.max(1) >= FULL_OUTPUTS as i64);
    if groups != 1 && !is_depthwise && !fills {
        return Some("groups of few channels".into());
    }
    None
}

/// Packs the weights if they are constant.
pub(super) fn prepare(
    unit: &Library,
    p: &ConvChannelsLast,
    operands: &[Option<Operand>],
    cx: &Context,
) -> Result<Option<PixelWeights>, Failure> {
    let [_, Some(w)] = operands else {
        return Ok(None);
    };
    let window = expected_window(unit, p, &w.dims)?;
    let expected = expected(unit, window.as_ref());
    pack(p, w, cx, expected).map(Some)
}

/// Bytes that [`prepare`] will take for weights of these extents; `None` where it will fail.
pub(super) fn packed_size(
    unit: &Library,
    p: &ConvChannelsLast,
    weights: &[usize],
    cx: &Context,
) -> Option<usize> {
    let window = expected_window(unit, p, weights).ok()?;
    let expected = expected(unit, window.as_ref());
    let dtype = unit.operands[1].read;
    let operand = Operand {
        dtype,
        read: dtype,
        start: std::ptr::null_mut(),
        dims: Extents::from_slice(weights),
        strides: smallvec::smallvec![0; weights.len()],
    };
    let (shape, _) = five(&operand);
    match dtype {
        DType::BF16 => PixelWeights::size_for::<bf16>(cx, shape, p.groups, expected),
        _ => PixelWeights::size_for::<f32>(cx, shape, p.groups, expected),
    }
}

/// What calls of a unit are expected to look like.
fn expected<'a>(unit: &Library, window: Option<&'a Window>) -> Option<Expected<'a>> {
    let batch = known(unit.operands[0].dims[0]).unwrap_or(1);
    window.map(|window| Expected { window, batch })
}

/// Whether 3x3 windows may be computed with fewer multiplications, at some loss of precision: unless `CUPOLA_WINOGRAD` is `off`.
fn minimal_filtering() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| std::env::var_os("CUPOLA_WINOGRAD").is_none_or(|v| v != "off"))
}

/// Spatial extents where nothing is known of them.
const USUAL_EXTENT: usize = 32;

/// The geometry of most calls: with sizes that are not known, usual ones. `None` where minimal filtering is not to be used.
fn expected_window(
    unit: &Library,
    p: &ConvChannelsLast,
    weights: &[usize],
) -> Result<Option<Window>, Failure> {
    if !minimal_filtering() {
        return Ok(None);
    }
    let mut taps = vec![];
    let mut input = vec![];
    for a in 0..weights.len() - 2 {
        let pad = |pads: &[Dim]| whole_size(pads[a].as_const().unwrap_or(0));
        taps.push(Taps {
            kernel: weights[2 + a],
            stride: whole_size(p.strides[a])?,
            dilation: whole_size(p.dilations[a])?,
            pads: [pad(&p.pads_low)?, pad(&p.pads_high)?],
        });
        input.push(known(unit.operands[0].dims[1 + a]).unwrap_or(USUAL_EXTENT));
    }
    Ok(window(&input, &taps).ok())
}

fn known(extent: Extent) -> Option<usize> {
    match extent {
        Extent::Const(n) => usize::try_from(n).ok(),
        Extent::Size(_) => None,
    }
}

fn pack(
    p: &ConvChannelsLast,
    w: &Operand,
    cx: &Context,
    expected: Option<Expected>,
) -> Result<PixelWeights, Failure> {
    let (w, _copy) = usable(cx, w, 0)?;
    Ok(match w.dtype {
        DType::BF16 => PixelWeights::new(cx, view::<bf16>(&w), p.groups, expected)?,
        _ => PixelWeights::new(cx, view::<f32>(&w), p.groups, expected)?,
    })
}

/// Runs a convolution.
pub(crate) fn run(call: &Call, p: &ConvChannelsLast) -> Result<(), Failure> {
    let taps = taps(
        call,
        [&p.strides, &p.dilations],
        [&p.pads_low, &p.pads_high],
    )?;
    let x = &call.operands[0];
    let channels = x.dims.len() - 1;
    let (x, _copy) = usable(&call.cx, x, x.dims.len())?;
    let _wide;
    let window = window(&x.dims[1..channels], &taps)?;
    let fresh;
    let weights = match call.prepared {
        Some(Prepared::Pixels(weights)) => weights,
        _ => {
            let passing = call.cx.scratch.passing();
            let cx = Context {
                scratch: &passing,
                ..call.cx
            };
            fresh = pack(p, &call.operands[1], &cx, None)?;
            &fresh
        }
    };
    let x = match x.dtype {
        DType::BF16 if !are_pairs(&x, weights) => {
            let read = DType::F32;
            let (wide, memory) = Operand { read, ..x }.converted(&call.cx, 0)?;
            _wide = memory;
            wide
        }
        _ => x,
    };
    let pairs = (x.dtype == DType::BF16).then(|| words(&x));
    let input = match &pairs {
        Some(pairs) => PixelInput::Pairs(pixels_view(pairs)),
        None => PixelInput::Floats(pixels_view(&x)),
    };
    let mut convolution = Convolution {
        window: &window,
        input,
        weights,
        finish: Finish::Tail(Tail::NONE),
    };
    let result = &call.results[0];
    let channels = result.dims[channels];
    let Some(code) = &call.epilogue else {
        if result.dtype == DType::F32 {
            return run_into(call, &convolution, result.start);
        }
        let (isa, to) = (call.cx.isa, Shared(result.start.cast::<bf16>()));
        let round = |part: Finished<f32>| {
            for row in 0..part.rows {
                let place = (part.row + row) * channels + part.col;
                let from = part.start.wrapping_add(row * part.row_stride);
                // SAFETY: the part is this call's alone, and the result has as many elements.
                unsafe { bf16::narrow_row(isa, from, to.get().wrapping_add(place), part.cols) };
            }
        };
        convolution.finish = Finish::Epilogue(&round);
        return Ok(convolve_pixels(
            &call.cx,
            &convolution,
            PixelOutput::Discard,
        )?);
    };
    if let (DType::F32, Some((tail, bias))) = (result.dtype, tail(call, code)) {
        let bias = (!bias.is_empty()).then_some(&bias[..]);
        convolution.finish = Finish::Tail(Tail { bias, ..tail });
        return run_into(call, &convolution, result.start);
    }
    let finish =
        |part: Finished<f32>| code.finish(&part, |row| (part.row + row) * channels + part.col);
    convolution.finish = Finish::Epilogue(&finish);
    match result.dtype == DType::F32 && !code.reads_result() {
        true => run_into(call, &convolution, result.start),
        false => Ok(convolve_pixels(
            &call.cx,
            &convolution,
            PixelOutput::Discard,
        )?),
    }
}

/// Whether images in bf16 can be read as words of two channels.
fn are_pairs(x: &Operand, weights: &PixelWeights) -> bool {
    let last = x.dims.len() - 1;
    let even = |n: &isize| n % 2 == 0;
    let aligned = (x.start as usize).is_multiple_of(align_of::<f32>());
    weights.takes_pairs()
        && aligned
        && x.dims[last].is_multiple_of(2)
        && x.strides[last] == 1
        && x.strides[..last].iter().all(even)
}

/// Images in bf16 as words of two channels.
fn words(x: &Operand) -> Operand {
    let last = x.dims.len() - 1;
    let mut words = x.clone();
    words.dtype = DType::F32;
    words.read = DType::F32;
    words.dims[last] /= 2;
    for stride in &mut words.strides[..last] {
        *stride /= 2;
    }
    words
}

fn run_into(call: &Call, convolution: &Convolution, to: *mut u8) -> Result<(), Failure> {
    let (dims, strides) = five_last(&call.results[0]);
    // SAFETY: the result is dense and this call has it alone.
    let output = unsafe { ViewMut::from_raw(to.cast(), dims, strides) };
    let output = PixelOutput::Store(output);
    Ok(convolve_pixels(&call.cx, convolution, output)?)
}

/// Extents and strides of `[batch, spatial.., channels]` with spatial axes brought to three.
pub(super) fn five_last(x: &Operand) -> ([usize; 5], [usize; 5]) {
    let last = x.dims.len() - 1;
    let order = cupola_ir::composite::channels_first(last + 1);
    let ([batch, channels, depth, height, width], [b, c, d, h, w]) = five(&x.permuted(&order));
    ([batch, depth, height, width, channels], [b, d, h, w, c])
}

fn pixels_view(x: &Operand) -> View<'_, f32, 5> {
    let (dims, strides) = five_last(x);
    // SAFETY: the operand was checked to lie inside its buffer when it was bound; strides are not negative.
    unsafe { View::from_raw(x.start.cast(), dims, strides) }
}

//! Convolutions of channels-last images.

use super::conv::{Raw, five, taps, usable, view, window};
use super::operand::Operand;
use super::{Call, Failure, Prepared, whole_size};
use crate::library::conv::pixels::{
    Convolution, Expected, Finish, PixelWeights, Tail, convolve_pixels,
};
use crate::library::gemm::Finished;
use crate::library::view::Shared;
use crate::library::window::{Taps, Window};
use crate::library::{Context, View, ViewMut};
use cupola_ir::composite::ConvChannelsLast;
use cupola_ir::kernel::{
    AxisId, BufferId, Expr, ExprId, Extent, Index, IndexId, Kernel, Library, Phase,
};
use cupola_ir::{DType, Dim, Scalar, TensorType};
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
    if x.dtype != DType::F32 || w.dtype != DType::F32 && !narrow {
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
        dims: weights.to_vec(),
        strides: vec![0; weights.len()],
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
    let window = window(&x.dims[1..channels], &taps)?;
    let fresh;
    let weights = match call.prepared {
        Some(Prepared::Pixels(weights)) => weights,
        _ => {
            fresh = pack(p, &call.operands[1], &call.cx, None)?;
            &fresh
        }
    };
    let mut convolution = Convolution {
        window: &window,
        input: pixels_view(&x),
        weights,
        finish: Finish::Tail(Tail::NONE),
    };
    let result = &call.results[0];
    let Some(code) = &call.epilogue else {
        return run_into(call, &convolution, result.start);
    };
    if let Some((tail, bias)) = tail(call, code) {
        let bias = (!bias.is_empty()).then_some(&bias[..]);
        convolution.finish = Finish::Tail(Tail { bias, ..tail });
        return run_into(call, &convolution, result.start);
    }
    let raw = Raw::new(call, DType::F32)?;
    let channels = result.dims[channels];
    let finish =
        |part: Finished<f32>| code.finish(&part, |row| (part.row + row) * channels + part.col);
    convolution.finish = Finish::Epilogue(&finish);
    run_into(call, &convolution, raw.start)
}

fn run_into(call: &Call, convolution: &Convolution, to: *mut u8) -> Result<(), Failure> {
    let (dims, strides) = five_last(&call.results[0]);
    // SAFETY: the result (or scratch memory of its length) is dense and this call has it alone.
    let output = unsafe { ViewMut::from_raw(to.cast(), dims, strides) };
    Ok(convolve_pixels(&call.cx, convolution, output)?)
}

/// Extents and strides of `[batch, spatial.., channels]` with spatial axes brought to three.
fn five_last(x: &Operand) -> ([usize; 5], [usize; 5]) {
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

/// What an epilogue kernel does to each sum, when that is what [`Tail`] can say.
struct Recognised {
    biases: Vec<BufferId>,
    residual: Option<BufferId>,
    clamp: [f32; 2],
}

/// The epilogue as a tail without its bias, and the sum of all biases; empty without one.
fn tail(call: &Call, code: &super::Epilogue) -> Option<(Tail<'static>, Vec<f32>)> {
    let kernel = call.unit.epilogue.as_deref()?;
    let found = recognise(kernel)?;
    let buffer = |id: BufferId| (code.buffers[id.0 as usize], code.lens[id.0 as usize]);
    let result = &call.results[0];
    let size = result.len() * size_of::<f32>();
    let residual = match found.residual.map(buffer) {
        // What is read where something else was written already would be lost.
        Some((at, len)) if at != result.start && overlap((at, len), (result.start, size)) => {
            return None;
        }
        Some((at, _)) => Some(Shared(at.cast::<f32>())),
        None => None,
    };
    let channels = *result.dims.last()?;
    let mut bias = vec![];
    for (at, len) in found.biases.into_iter().map(buffer) {
        if len < channels * size_of::<f32>() || overlap((at, len), (result.start, size)) {
            return None;
        }
        bias.resize(channels, 0.0);
        for (c, sum) in bias.iter_mut().enumerate() {
            // SAFETY: the buffer holds a number for each channel, and nothing writes to it during the call.
            *sum += unsafe { *at.cast::<f32>().add(c) };
        }
    }
    let tail = Tail {
        residual,
        clamp: found.clamp,
        ..Tail::NONE
    };
    Some((tail, bias))
}

/// Whether two pieces of memory share bytes. Exact: a tail and an epilogue round differently, and where memory comes to lie
/// must not decide between them.
fn overlap((a, a_size): (*mut u8, usize), (b, b_size): (*mut u8, usize)) -> bool {
    let (a, b) = (a as usize, b as usize);
    a < b.saturating_add(b_size) && b < a.saturating_add(a_size)
}

/// Reads the one store of an epilogue: `min(max(sum + bias + residual, low), high)`, any part of it absent.
fn recognise(kernel: &Kernel) -> Option<Recognised> {
    let [Phase::Store { axes, stores }] = &kernel.phases[..] else {
        return None;
    };
    let ([], [store]) = (&axes[..], &stores[..]) else {
        return None;
    };
    if store.guard.is_some() || kernel.buffers.iter().any(|b| b.dtype != DType::F32) {
        return None;
    }
    let mut found = Recognised {
        biases: vec![],
        residual: None,
        clamp: [f32::NEG_INFINITY, f32::INFINITY],
    };
    let sums = clamped(kernel, store.value, &mut found.clamp)?;
    added(kernel, sums, store.index, &mut found)?.then_some(found)
}

/// What is clamped, and the bounds: an upper one outside of a lower one.
fn clamped(kernel: &Kernel, mut value: ExprId, clamp: &mut [f32; 2]) -> Option<ExprId> {
    for (f, bound) in [(Scalar::Min, 1), (Scalar::Max, 0)] {
        let Expr::Binary(g, x, y) = kernel.exprs[value.0 as usize] else {
            continue;
        };
        if f != g {
            continue;
        }
        let (x, limit) = match (number(kernel, x), number(kernel, y)) {
            (_, Some(limit)) => (x, limit),
            (Some(limit), None) => (y, limit),
            (None, None) => return None,
        };
        if limit.is_nan() {
            return None;
        }
        clamp[bound] = limit;
        value = x;
    }
    Some(value)
}

fn number(kernel: &Kernel, id: ExprId) -> Option<f32> {
    match kernel.exprs[id.0 as usize] {
        Expr::Const(l) if l.dtype == DType::F32 => Some(f32::from_bits(l.bits as u32)),
        _ => None,
    }
}

/// Whether the raw result is among the terms of a sum; notes what the others are.
fn added(kernel: &Kernel, id: ExprId, own: IndexId, found: &mut Recognised) -> Option<bool> {
    match kernel.exprs[id.0 as usize] {
        Expr::Binary(Scalar::Add, x, y) => {
            let (x, y) = (added(kernel, x, own, found)?, added(kernel, y, own, found)?);
            // The raw result is one term.
            (x != y || !x).then_some(x || y)
        }
        Expr::Load {
            buffer,
            index,
            guard: None,
        } => {
            if buffer == BufferId(0) {
                return (index == own).then_some(true);
            }
            let channel = Index::Axis(AxisId(kernel.parallel.checked_sub(1)? as u32));
            if index == own {
                found.residual.replace(buffer).is_none().then_some(false)
            } else if kernel.indices[index.0 as usize] == channel {
                found.biases.push(buffer);
                Some(false)
            } else {
                None
            }
        }
        _ => None,
    }
}

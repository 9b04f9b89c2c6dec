//! Convolutions and their adjoints.

use super::integer::Zeros;
use super::operand::Operand;
use super::{Call, Failure, Prepared, whole_size};
use crate::library::Context;
use crate::library::conv::{
    ByteInput, ByteWeights, ConvOutput, Convolve, PackedByteWeights, PackedWeights, Weights,
    convolve, convolve_bytes, convolve_transposed,
};
use crate::library::gemm::{Finished, Sum, ZeroPoints};
use crate::library::window::{Taps, Window};
use crate::library::{Element, View, ViewMut, gemm};
use crate::memory::Lent;
use cupola_ir::composite::{Conv, ConvTranspose, IntegerConv};
use cupola_ir::{DType, Dim, TensorType};
use half::{bf16, f16};

/// Why there is no convolution of these operands.
pub(crate) fn refusal(
    pads: &[&Vec<Dim>],
    operands: &[&TensorType],
    transposed: bool,
) -> Option<String> {
    let [x, w] = operands else {
        return Some("takes two operands".into());
    };
    let spatial = x.rank().checked_sub(2)?;
    if spatial > 3 {
        return Some(format!("{spatial} spatial axes"));
    }
    let bytes = |d: DType| matches!(d, DType::I8 | DType::U8);
    let floats = matches!(x.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16);
    let both = floats && x.dtype == w.dtype || !transposed && bytes(x.dtype) && bytes(w.dtype);
    if !both {
        return Some(format!("no convolution of {} by {}", x.dtype, w.dtype));
    }
    let negative = |d: &Dim| d.as_const().is_some_and(|c| c < 0);
    if transposed && pads.iter().any(|p| p.iter().any(negative)) {
        return Some("negative padding".into());
    }
    None
}

/// Extents and strides with spatial axes brought to three.
pub(super) fn five(x: &Operand) -> ([usize; 5], [usize; 5]) {
    let (mut dims, mut strides) = ([1; 5], [0; 5]);
    let lead = 5 - x.dims.len();
    for (a, (d, s)) in x.dims.iter().zip(&x.strides).enumerate() {
        let to = if a < 2 { a } else { a + lead };
        dims[to] = *d;
        strides[to] = *s as usize;
    }
    // Absent axes of one element count as dense.
    for a in 2..2 + lead {
        strides[a] = dims[a + 1..].iter().product();
    }
    (dims, strides)
}

pub(super) fn view<T: Element>(x: &Operand) -> View<'_, T, 5> {
    let (dims, strides) = five(x);
    // SAFETY: the operand was checked to lie inside its buffer when it was bound; strides are not negative.
    unsafe { View::from_raw(x.start.cast(), dims, strides) }
}

/// The operand itself, or a dense copy when its strides are negative or (`dense`) not those of a dense one.
pub(super) fn usable<'a>(
    cx: &Context<'a>,
    x: &Operand,
    from: usize,
) -> Result<(Operand, Option<Lent<'a>>), Failure> {
    let mut step = 1;
    let mut is_dense = true;
    for a in (from..x.dims.len()).rev() {
        is_dense &= x.dims[a] <= 1 || x.strides[a] == step;
        step *= x.dims[a] as isize;
    }
    if is_dense && !x.has_negative_stride() {
        return Ok((x.clone(), None));
    }
    let (copy, lent) = x.dense(cx, 0)?;
    Ok((copy, Some(lent)))
}

/// Why there is no convolution of these operands, `(x, w, x_zero, w_zero)`.
pub(crate) fn integer_refusal(p: &IntegerConv, operands: &[&TensorType]) -> Option<String> {
    let pads = [&p.pads_low, &p.pads_high];
    let factors = operands.get(..2).unwrap_or_default();
    super::integer::refusal(operands).or_else(|| refusal(&pads, factors, false))
}

/// Weights of a convolution, packed once; by the operands' dtype.
#[derive(Debug)]
pub(crate) enum Packed {
    F32(PackedWeights<f32>),
    F64(PackedWeights<f64>),
    F16(PackedWeights<f16>),
    BF16(PackedWeights<bf16>),
    Bytes(PackedByteWeights),
}

impl Packed {
    /// Bytes taken.
    pub(super) fn size(&self) -> usize {
        match self {
            Packed::F32(w) => w.size(),
            Packed::F64(w) => w.size(),
            Packed::F16(w) => w.size(),
            Packed::BF16(w) => w.size(),
            Packed::Bytes(w) => w.size(),
        }
    }
}

/// Packs the weights of a convolution if they are constant.
pub(super) fn prepare(
    p: &Conv,
    operands: &[Option<Operand>],
    cx: &Context,
) -> Result<Option<Packed>, Failure> {
    let [_, Some(w)] = operands else {
        return Ok(None);
    };
    let (w, _copy) = usable(cx, w, 0)?;
    Ok(Some(match w.dtype {
        DType::I8 | DType::U8 => Packed::Bytes(pack_bytes(cx, &w, ZeroPoints::One(0), p.groups)?),
        DType::F32 => Packed::F32(PackedWeights::new(cx, view(&w), p.groups)?),
        DType::F64 => Packed::F64(PackedWeights::new(cx, view(&w), p.groups)?),
        DType::F16 => Packed::F16(PackedWeights::new(cx, view(&w), p.groups)?),
        DType::BF16 => Packed::BF16(PackedWeights::new(cx, view(&w), p.groups)?),
        _ => return Ok(None),
    }))
}

/// Packs the weights of a convolution of integers if they and their zero points are constant.
pub(super) fn prepare_integers(
    p: &IntegerConv,
    operands: &[Option<Operand>],
    cx: &Context,
) -> Result<Option<Packed>, Failure> {
    let [_, Some(w), _, Some(zero)] = operands else {
        return Ok(None);
    };
    let (w, _copy) = usable(cx, w, 0)?;
    let zeros = Zeros::of(zero, w.dims[0]);
    let packed = pack_bytes(cx, &w, zeros.points(), p.groups)?;
    Ok(Some(Packed::Bytes(packed)))
}

fn pack_bytes(
    cx: &Context,
    w: &Operand,
    zero: ZeroPoints,
    groups: usize,
) -> crate::Result<PackedByteWeights> {
    let weights = ByteWeights {
        view: view::<u8>(w),
        signed: w.dtype == DType::I8,
        zero,
    };
    PackedByteWeights::new(cx, &weights, groups)
}

/// The taps of a convolution's spatial axes: strides and dilations, padding before and after.
pub(super) fn taps(
    call: &Call,
    [strides, dilations]: [&[i64]; 2],
    pads: [&[Dim]; 2],
) -> Result<Vec<Taps>, Failure> {
    taps_of(
        call,
        &call.operands[1].dims[2..],
        [strides, dilations],
        pads,
    )
}

/// As [`taps`], of a kernel of these extents.
pub(super) fn taps_of(
    call: &Call,
    kernel: &[usize],
    [strides, dilations]: [&[i64]; 2],
    pads: [&[Dim]; 2],
) -> Result<Vec<Taps>, Failure> {
    let one = |(a, kernel): (usize, &usize)| {
        let pad = |pads: &[Dim]| whole_size(call.dim(&pads[a])?);
        Ok(Taps {
            kernel: *kernel,
            stride: whole_size(strides[a])?,
            dilation: whole_size(dilations[a])?,
            pads: [pad(pads[0])?, pad(pads[1])?],
        })
    };
    kernel.iter().enumerate().map(one).collect()
}

/// Runs a convolution.
pub(crate) fn run(call: &Call, p: &Conv) -> Result<(), Failure> {
    let x = &call.operands[0];
    let taps = taps(
        call,
        [&p.strides, &p.dilations],
        [&p.pads_low, &p.pads_high],
    )?;
    let (x, _x_copy) = usable(&call.cx, x, usize::MAX)?;
    let window = window(&x.dims[2..], &taps)?;
    let floats = Floats {
        call,
        window: &window,
        groups: p.groups,
        x: &x,
    };
    if let Some(Prepared::Conv(packed)) = call.prepared {
        return match packed {
            Packed::F32(w) => floats.run(Weights::Packed(w), DType::F32),
            Packed::F64(w) => floats.run(Weights::Packed(w), DType::F64),
            Packed::F16(w) => floats.run(Weights::Packed(w), DType::F32),
            Packed::BF16(w) => floats.run(Weights::Packed(w), DType::F32),
            Packed::Bytes(w) => bytes(call, &window, &x, 0, w),
        };
    }
    let (w, _w_copy) = usable(&call.cx, &call.operands[1], 0)?;
    match x.dtype {
        DType::F32 => floats.run(Weights::View(view::<f32>(&w)), DType::F32),
        DType::F64 => floats.run(Weights::View(view::<f64>(&w)), DType::F64),
        DType::F16 => floats.run(Weights::View(view::<f16>(&w)), DType::F32),
        DType::BF16 => floats.run(Weights::View(view::<bf16>(&w)), DType::F32),
        _ => {
            let packed = pack_bytes(&call.cx, &w, ZeroPoints::One(0), p.groups)?;
            bytes(call, &window, &x, 0, &packed)
        }
    }
}

/// Runs a convolution of integers with zero points.
pub(crate) fn run_integers(call: &Call, p: &IntegerConv) -> Result<(), Failure> {
    let taps = taps(
        call,
        [&p.strides, &p.dilations],
        [&p.pads_low, &p.pads_high],
    )?;
    let [x, w, x_zero, w_zero] = call.operands else {
        unreachable!("bug: a convolution of {} operands", call.operands.len())
    };
    let window = window(&x.dims[2..], &taps)?;
    let zero = Zeros::of(x_zero, 1).points().at(0);
    if let Some(Prepared::Conv(Packed::Bytes(packed))) = call.prepared {
        return bytes(call, &window, x, zero, packed);
    }
    let (w, _w_copy) = usable(&call.cx, w, 0)?;
    let zeros = Zeros::of(w_zero, w.dims[0]);
    let packed = pack_bytes(&call.cx, &w, zeros.points(), p.groups)?;
    bytes(call, &window, x, zero, &packed)
}

pub(super) fn window(input: &[usize], taps: &[Taps]) -> Result<Window, Failure> {
    if input.is_empty() {
        return Ok(Window::new(&[1], &[Taps::ONE])?);
    }
    Ok(Window::new(input, taps)?)
}

/// Where raw results go: the final result, or scratch memory when the epilogue writes the final one in another form.
pub(super) struct Raw<'a> {
    pub start: *mut u8,
    _lent: Option<Lent<'a>>,
}

impl<'a> Raw<'a> {
    pub fn new(call: &Call<'a>, sum: DType) -> Result<Raw<'a>, Failure> {
        let result = &call.results[0];
        // Sums lie where the elements made of them will, if these take as much room.
        let fits = result.dtype.bits() == sum.bits();
        let elsewhere = matches!(&call.epilogue, Some(e) if !fits || e.reads_result());
        if !elsewhere {
            return Ok(Raw {
                start: result.start,
                _lent: None,
            });
        }
        let size = result.len().saturating_mul(sum.size()).max(1);
        let lent = call.cx.scratch.take::<u8>(size)?;
        Ok(Raw {
            start: lent.as_ptr(),
            _lent: Some(lent),
        })
    }
}

/// Runs the epilogue on a part of a result `[batch, channels, spatial..]`.
fn finish<C>(call: &super::Epilogue, dims: [usize; 5], part: &Finished<C>) {
    let elements = dims[2] * dims[3] * dims[4];
    call.finish(part, |row| {
        (part.batch * dims[1] + part.row + row) * elements + part.col
    });
}

/// A convolution of floats but for its weights.
struct Floats<'a> {
    call: &'a Call<'a>,
    window: &'a Window,
    groups: usize,
    x: &'a Operand,
}

impl Floats<'_> {
    fn run<T: Convolve>(&self, weights: Weights<'_, T>, sum: DType) -> Result<(), Failure> {
        let x = view::<T>(self.x);
        with_output::<T>(self.call, sum, |output, epilogue| {
            convolve(
                &self.call.cx,
                self.window,
                self.groups,
                x,
                weights,
                output,
                epilogue,
            )
        })
    }
}

/// Calls `run` with the output and the epilogue of a float convolution.
fn with_output<T: Convolve>(
    call: &Call,
    sum: DType,
    run: impl FnOnce(ConvOutput<'_, T>, Option<gemm::Epilogue<'_, Sum<T>>>) -> crate::Result<()>,
) -> Result<(), Failure> {
    let raw = Raw::new(call, sum)?;
    let (dims, strides) = five(&call.results[0]);
    // SAFETY: the result (or scratch memory of its length) is dense and this call has it alone.
    let output = unsafe {
        if call.epilogue.is_none() && call.results[0].dtype != sum {
            ConvOutput::Narrow(ViewMut::from_raw(raw.start.cast(), dims, strides))
        } else {
            ConvOutput::Store(ViewMut::from_raw(raw.start.cast(), dims, strides))
        }
    };
    let code = call.epilogue.as_ref();
    let finish = |part: Finished<Sum<T>>| {
        if let Some(code) = code {
            finish(code, dims, &part);
        }
    };
    let epilogue: Option<gemm::Epilogue<'_, Sum<T>>> = match code {
        Some(_) => Some(&finish),
        None => None,
    };
    Ok(run(output, epilogue)?)
}

fn bytes(
    call: &Call,
    window: &Window,
    x: &Operand,
    zero: i32,
    weights: &PackedByteWeights,
) -> Result<(), Failure> {
    let (x, _x_copy) = usable(&call.cx, x, x.dims.len() - 1)?;
    let raw = Raw::new(call, DType::I32)?;
    let (dims, strides) = five(&call.results[0]);
    let input = ByteInput {
        view: view::<u8>(&x),
        signed: x.dtype == DType::I8,
        zero,
    };
    // SAFETY: the result (or scratch memory of its length) is dense and this call has it alone.
    let output = unsafe { ViewMut::from_raw(raw.start.cast(), dims, strides) };
    let code = call.epilogue.as_ref();
    let finish = |part: Finished<i32>| {
        if let Some(code) = code {
            finish(code, dims, &part);
        }
    };
    let epilogue: Option<gemm::Epilogue<'_, i32>> = match code {
        Some(_) => Some(&finish),
        None => None,
    };
    Ok(convolve_bytes(
        &call.cx, window, &input, weights, output, epilogue,
    )?)
}

/// Runs a transposed convolution.
pub(crate) fn run_transposed(call: &Call, p: &ConvTranspose) -> Result<(), Failure> {
    let x = &call.operands[0];
    let result = &call.results[0].dims[2..];
    let mut taps = vec![];
    for a in 0..x.dims.len() - 2 {
        let (stride, dilation) = (whole_size(p.strides[a])?, whole_size(p.dilations[a])?);
        let kernel = call.operands[1].dims[2 + a];
        let low = whole_size(call.dim(&p.pads_low[a])?)?;
        // What the contributions reach beyond the result is padding.
        let reach = x.dims[2 + a].saturating_sub(1).saturating_mul(stride);
        let reach = reach
            .saturating_add(kernel.saturating_sub(1).saturating_mul(dilation))
            .saturating_add(1);
        let high = reach.saturating_sub(result[a].saturating_add(low));
        taps.push(Taps {
            kernel,
            stride,
            dilation,
            pads: [low, high],
        });
    }
    let (x, _x_copy) = usable(&call.cx, x, 2)?;
    let (w, _w_copy) = usable(&call.cx, &call.operands[1], 0)?;
    let window = window(result, &taps)?;
    macro_rules! run {
        ($t:ty, $sum:expr) => {
            with_output::<$t>(call, $sum, |output, epilogue| {
                let (x, w) = (view::<$t>(&x), view::<$t>(&w));
                convolve_transposed(&call.cx, &window, p.groups, x, w, output, epilogue)
            })
        };
    }
    match x.dtype {
        DType::F64 => run!(f64, DType::F64),
        DType::F16 => run!(f16, DType::F32),
        DType::BF16 => run!(bf16, DType::F32),
        _ => run!(f32, DType::F32),
    }
}

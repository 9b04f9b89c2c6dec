//! Library units: from strided views of buffers to calls of the kernels in [`crate::library`].
//!
//! Reading order: this file, `operand` (views with addresses), `epilogue` (generated code per finished part) and `tail` (none
//! needed), then one file per op; `packed` and `blocks` belong to `contract`.
#![allow(unsafe_code)]

mod attention;
mod blocks;
mod contract;
mod conv;
mod decode;
pub(crate) mod epilogue;
mod integer;
mod operand;
mod packed;
mod paged;
mod pixels;
mod quantise;
mod recurrent;
mod rows;
mod scatter;
mod sort;
mod tail;
mod weight_gradient;

use crate::device::Argument;
use crate::error::Error;
use crate::library::Context;
use crate::library::conv::pixels::PixelWeights;
use crate::library::gemm::{PackedBlocks, ZeroPoints};
use cupola_backend::Replacement;
use cupola_ir::composite::{LayerNorm, RmsNorm};
use cupola_ir::kernel::{Extent, Kernel, Library, View};
use cupola_ir::ops::Contract;
use cupola_ir::target::Claim;
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Op, TensorType};
use epilogue::Epilogue;
use operand::Operand;

/// The answer for the backend's target.
pub(crate) fn claim(op: &Op, operands: &[&TensorType]) -> Claim {
    use {CompositeOp as C, CoreOp as O};
    // Why not, and whether operands may be strided and an epilogue may follow.
    let (refusal, strided, epilogue) = match op {
        Op::Core(O::Contract(p)) => (contract::refusal(p, operands), true, true),
        Op::Composite(C::IntegerProduct(_)) => (integer::refusal(operands), true, true),
        Op::Composite(C::DynamicQuantize(_)) => (quantise::refusal(operands), false, false),
        Op::Core(O::Scatter(p)) => (scatter::refusal(p, operands), false, false),
        Op::Core(O::Gather(p)) => (decode::gather_refusal(p, operands), false, false),
        Op::Core(O::Cast(p)) => (decode::cast_refusal(p.to, operands), false, false),
        Op::Core(O::Sort(_)) => (sort::refusal(operands), false, false),
        Op::Composite(C::Conv(p)) => {
            let pads = [&p.pads_low, &p.pads_high];
            (conv::refusal(&pads, operands, false), true, true)
        }
        Op::Composite(C::IntegerConv(p)) => (conv::integer_refusal(p, operands), true, true),
        Op::Composite(C::ConvChannelsLast(p)) => (pixels::refusal(p, operands), true, true),
        Op::Composite(C::ConvTranspose(p)) => {
            (conv::refusal(&[&p.pads_low], operands, true), true, true)
        }
        Op::Composite(C::ConvWeightGradient(p)) => {
            (weight_gradient::refusal(p, operands), true, false)
        }
        Op::Composite(C::Attention(_)) => (attention::refusal(operands), true, false),
        Op::Composite(C::AttentionGradient(_)) => {
            (attention::gradient_refusal(operands), true, false)
        }
        Op::Composite(C::PagedAttention(_)) => (paged::refusal(operands), true, false),
        Op::Composite(C::Recurrent(p)) => (recurrent::refusal(p, operands), false, false),
        Op::Composite(C::Softmax(p)) => {
            let epilogue = rows::takes_epilogue(operands);
            (rows::softmax_refusal(p, operands), false, epilogue)
        }
        Op::Composite(C::LayerNorm(LayerNorm { axis, .. }) | C::RmsNorm(RmsNorm { axis, .. })) => {
            let epilogue = rows::takes_epilogue(operands);
            (rows::norm_refusal(*axis, operands), false, epilogue)
        }
        Op::Composite(
            C::Gelu(_) | C::Swish(_) | C::Swiglu(_) | C::Rope(_) | C::CrossEntropy(_),
        )
        | Op::Core(_)
        | Op::Host(_) => (Some("no library kernel".into()), false, false),
    };
    match refusal {
        Some(reason) => Claim::No { reason },
        None => Claim::Yes {
            strided,
            epilogue,
            converts: matches!(
                op,
                Op::Core(O::Contract(_))
                    | Op::Composite(
                        C::Attention(_) | C::AttentionGradient(_) | C::ConvWeightGradient(_)
                    )
            ),
        },
    }
}

/// Why a unit cannot be compiled; `None` when it can.
pub(crate) fn refusal(unit: &Library) -> Option<String> {
    let types: Vec<TensorType> = unit
        .operands
        .iter()
        .map(|v| TensorType {
            dtype: v.read,
            dims: v
                .dims
                .iter()
                .map(|e| match e {
                    Extent::Const(c) => (*c).into(),
                    Extent::Size(s) => unit.sizes[*s as usize].clone(),
                })
                .collect(),
        })
        .collect();
    let types: Vec<&TensorType> = types.iter().collect();
    match claim(&unit.op, &types) {
        Claim::No { reason } => Some(reason),
        Claim::Yes { epilogue, .. } if unit.epilogue.is_some() && !epilogue => {
            Some("no epilogue".into())
        }
        Claim::Yes { .. } => None,
    }
}

/// The kernel to generate for the unit's epilogue, over the accumulator that the library kernel hands out.
pub(crate) fn epilogue_kernel(unit: &Library) -> Option<Kernel> {
    let kernel = unit.epilogue.as_deref()?;
    let sum = sum_dtype(unit.operands[0].read);
    Some(epilogue::over(kernel, sum))
}

/// Type in which products of this operand type are summed and handed to epilogues.
fn sum_dtype(operand: DType) -> DType {
    match operand {
        DType::F16 | DType::BF16 => DType::F32,
        DType::I8 | DType::U8 => DType::I32,
        d => d,
    }
}

/// Forms of a unit's constant operands that the kernels read instead.
#[derive(Debug)]
pub(crate) enum Prepared {
    Contract(packed::Packed),
    Conv(conv::Packed),
    Pixels(PixelWeights),
    Recurrent(recurrent::Packed),
}

impl Prepared {
    /// Bytes taken.
    pub(crate) fn size(&self) -> usize {
        match self {
            Prepared::Contract(p) => p.size,
            Prepared::Conv(p) => p.size(),
            Prepared::Pixels(p) => p.size(),
            Prepared::Recurrent(p) => p.size(),
        }
    }

    /// Positions of the operands that it stands for, which runs do not read.
    pub(crate) fn operands(&self) -> &'static [usize] {
        match self {
            Prepared::Contract(p) => p.side.operands(),
            Prepared::Conv(_) | Prepared::Pixels(_) => &[1],
            Prepared::Recurrent(p) => p.operands(),
        }
    }
}

/// Makes what pays of a unit's constant operands; `None` where nothing does. Operands that a launch will refuse are left
/// to it.
pub(crate) fn prepare(
    unit: &Library,
    constants: &[Option<Argument>],
    cx: &Context,
) -> crate::Result<Option<Prepared>> {
    let fixed = |view: &View| {
        let extents = view.dims.iter().chain(&view.strides).chain([&view.offset]);
        extents.into_iter().all(|e| matches!(e, Extent::Const(_)))
    };
    let operands: Vec<Option<Operand>> = (unit.operands.iter().zip(constants))
        .map(|(view, argument)| {
            let argument = argument.as_ref().filter(|_| fixed(view))?;
            Operand::bind(view, argument, &[]).ok()
        })
        .collect();
    let made = match &unit.op {
        Op::Core(CoreOp::Contract(p)) => {
            let factors = [0, 1].map(|at: usize| operands[at].as_ref());
            let plain = [ZeroPoints::One(0); 2];
            packed::prepare(p, factors, plain, cx).map(|k| k.map(Prepared::Contract))
        }
        Op::Composite(CompositeOp::IntegerProduct(p)) => {
            integer::prepare(p, &operands, cx).map(|k| k.map(Prepared::Contract))
        }
        Op::Composite(CompositeOp::Conv(p)) => {
            conv::prepare(p, &operands, cx).map(|k| k.map(Prepared::Conv))
        }
        Op::Composite(CompositeOp::IntegerConv(p)) => {
            conv::prepare_integers(p, &operands, cx).map(|k| k.map(Prepared::Conv))
        }
        Op::Composite(CompositeOp::ConvChannelsLast(p)) => {
            pixels::prepare(unit, p, &operands, cx).map(|k| k.map(Prepared::Pixels))
        }
        Op::Composite(CompositeOp::Recurrent(p)) => {
            recurrent::prepare(p, &operands, cx).map(|k| k.map(Prepared::Recurrent))
        }
        _ => Ok(None),
    };
    match made {
        Ok(made) => Ok(made),
        Err(Failure::Error(e @ (Error::OutOfMemory { .. } | Error::NotKept))) => Err(e),
        Err(Failure::Fault(_) | Failure::Error(_)) => Ok(None),
    }
}

/// What [`prepare`] will stand for, given which operands are constants; its size, but for channels-last convolutions, as
/// that of these operands, without the padding of panels.
pub(crate) fn replacement(unit: &Library, is_constant: &[bool], cx: &Context) -> Replacement {
    let extents = |at: usize| -> Option<Vec<usize>> {
        let view = unit.operands.get(at).filter(|_| is_constant[at])?;
        let fixed = view.dims.iter().map(|d| match d {
            Extent::Const(n) => usize::try_from(*n).ok(),
            Extent::Size(_) => None,
        });
        fixed.collect()
    };
    let size = |at: usize| {
        let View { dtype, read, .. } = unit.operands[at];
        if let (DType::Block(format), Op::Core(CoreOp::Contract(p))) = (dtype, &unit.op) {
            return Some(PackedBlocks::size_of(
                format,
                blocks::extents(p, &extents(at)?),
            ));
        }
        // Of weights that are converted the narrower form is kept.
        let dtype = if read.bits() < dtype.bits() {
            read
        } else {
            dtype
        };
        let len = extents(at)?
            .into_iter()
            .try_fold(1usize, usize::checked_mul);
        dtype.storage_size(1, len?)
    };
    // The factor of a product that is packed, among those that can be.
    let factor = |p: &Contract, can: [bool; 2]| {
        let sides = [packed::Side::Right, packed::Side::Left];
        let pays = |side: &packed::Side| {
            let at = side.operands()[0];
            let dtype = unit.operands[at].read;
            can[at] && extents(at).is_some_and(|extents| packed::pays(p, *side, dtype, &extents))
        };
        sides.into_iter().find(pays).map(packed::Side::operands)
    };
    let arguments: Option<&[usize]> = match &unit.op {
        Op::Core(CoreOp::Contract(p)) => factor(p, [true; 2]),
        Op::Composite(CompositeOp::IntegerProduct(p)) => {
            factor(&p.contract(), [is_constant[2], is_constant[3]])
        }
        Op::Composite(CompositeOp::ConvChannelsLast(_)) => Some(&[1]),
        Op::Composite(CompositeOp::Conv(_)) => Some(&[1]),
        Op::Composite(CompositeOp::IntegerConv(_)) => is_constant[3].then_some(&[1]),
        Op::Composite(CompositeOp::Recurrent(_)) => Some(&[1, 2]),
        _ => None,
    };
    let arguments = arguments.unwrap_or_default();
    let sizes: Option<Vec<usize>> = arguments.iter().map(|at| size(*at)).collect();
    let sum = |sizes: Vec<usize>| sizes.into_iter().fold(0, usize::saturating_add);
    let size = match &unit.op {
        Op::Composite(CompositeOp::ConvChannelsLast(p)) => {
            extents(1).and_then(|weights| pixels::packed_size(unit, p, &weights, cx))
        }
        _ => sizes.map(sum),
    };
    match size {
        Some(size) => Replacement {
            arguments: arguments.to_vec(),
            size,
        },
        None => Replacement::default(),
    }
}

/// A call as a chain of steps, each of which threads can share, and work that they share before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    /// Steps.
    pub steps: f64,
    /// Seconds of one step on one thread.
    pub step: f64,
    /// Seconds of the work before, on one thread.
    pub before: f64,
}

impl Chain {
    /// Seconds for a thread to let others join in a step and wait for them, measured on two cores.
    const SHARING: f64 = 2e-6;

    /// Seconds on so many threads.
    pub(crate) fn seconds(&self, threads: usize) -> f64 {
        let sharing = if threads > 1 { Self::SHARING } else { 0.0 };
        let shared = self.before + self.steps * self.step;
        shared / threads as f64 + self.steps * sharing
    }
}

/// What is known of a unit that is a chain of steps.
pub(crate) fn chain(unit: &Library, sizes: &[i64]) -> Chain {
    match &unit.op {
        Op::Composite(CompositeOp::Recurrent(_)) => recurrent::chain(unit, sizes),
        _ => Chain::default(),
    }
}

/// What a library call runs with.
pub(crate) struct Call<'a> {
    pub unit: &'a Library,
    pub sizes: &'a [i64],
    pub cx: Context<'a>,
    pub operands: &'a [Operand],
    pub results: &'a [Operand],
    /// Generated code for finished parts, with its buffer arguments.
    pub epilogue: Option<Epilogue<'a>>,
    /// What was made of constant operands.
    pub prepared: Option<&'a Prepared>,
}

/// Why a call failed.
pub(crate) enum Failure {
    /// What the user's data made impossible.
    Fault(String),
    /// What the machine refused.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Error(e)
    }
}

impl Call<'_> {
    /// Runs the call.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match &self.unit.op {
            Op::Core(CoreOp::Contract(p)) => contract::run(self, p),
            Op::Composite(CompositeOp::IntegerProduct(p)) => integer::run(self, p),
            Op::Composite(CompositeOp::DynamicQuantize(_)) => quantise::run(self),
            Op::Core(CoreOp::Scatter(p)) => scatter::run(self, p),
            Op::Core(CoreOp::Sort(p)) => sort::run(self, p),
            Op::Composite(CompositeOp::Attention(p)) => attention::run(self, p),
            Op::Composite(CompositeOp::AttentionGradient(p)) => attention::run_gradient(self, p),
            Op::Composite(CompositeOp::PagedAttention(p)) => paged::run(self, p),
            Op::Core(CoreOp::Gather(p)) => decode::gather(self, p),
            Op::Core(CoreOp::Cast(_)) => decode::cast(self),
            Op::Composite(CompositeOp::Recurrent(p)) => recurrent::run(self, p),
            Op::Composite(CompositeOp::Softmax(p)) => rows::softmax(self, p),
            Op::Composite(CompositeOp::LayerNorm(p)) => rows::layer_norm(self, p),
            Op::Composite(CompositeOp::RmsNorm(p)) => rows::rms_norm(self, p),
            Op::Composite(CompositeOp::Conv(p)) => conv::run(self, p),
            Op::Composite(CompositeOp::IntegerConv(p)) => conv::run_integers(self, p),
            Op::Composite(CompositeOp::ConvChannelsLast(p)) => pixels::run(self, p),
            Op::Composite(CompositeOp::ConvTranspose(p)) => conv::run_transposed(self, p),
            Op::Composite(CompositeOp::ConvWeightGradient(p)) => weight_gradient::run(self, p),
            op => unreachable!("bug: {} was refused before", op.name()),
        }
    }

    /// The value of a dimension among the op's attributes.
    fn dim(&self, dim: &Dim) -> Result<i64, Failure> {
        let known = || self.unit.sizes.iter().position(|d| d == dim);
        let value = dim.as_const().or_else(|| known().map(|at| self.sizes[at]));
        value
            .ok_or_else(|| Failure::Fault(format!("the size {dim} is not among those of the unit")))
    }
}

/// A unit's operands and results with addresses, and the buffers of its epilogue.
pub(crate) struct Bound {
    pub operands: Vec<Operand>,
    pub results: Vec<Operand>,
    /// Addresses and bytes of the epilogue's buffers; the first stands for the raw result.
    pub epilogue: Vec<(*mut u8, usize)>,
}

// SAFETY: addresses are only followed by launches, which are given the same ones by somebody who keeps the memory alive.
unsafe impl Send for Bound {}
// SAFETY: as above.
unsafe impl Sync for Bound {}

/// Operands and results of a unit with addresses, checked to lie inside their buffers.
pub(crate) fn bind(unit: &Library, arguments: &[Argument], sizes: &[i64]) -> Result<Bound, String> {
    let views = unit.operands.iter().chain(&unit.results).enumerate();
    let mut operands = Vec::with_capacity(unit.operands.len() + unit.results.len());
    for (i, view) in views {
        let bound = Operand::bind(view, &arguments[i], sizes);
        operands.push(bound.map_err(|e| format!("argument {i}: {e}"))?);
    }
    let results = operands.split_off(unit.operands.len());
    if let Some(i) = (0..results.len()).find(|i| arguments[unit.operands.len() + i].constant) {
        return Err(format!("result {i} is in constant memory"));
    }
    Ok(Bound {
        operands,
        results,
        epilogue: vec![],
    })
}

/// A number that must not be negative.
fn whole_size(value: i64) -> Result<usize, Failure> {
    usize::try_from(value).map_err(|_| Failure::Fault(format!("{value} is negative")))
}

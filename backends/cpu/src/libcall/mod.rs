//! Library units: from strided views of buffers to calls of the kernels in [`crate::library`].
//!
//! Reading order: this file, `operand` (views with addresses), `epilogue` (generated code per finished part), then one
//! file per op.
#![allow(unsafe_code)]

mod attention;
mod contract;
mod conv;
pub(crate) mod epilogue;
mod operand;
mod scatter;

use crate::device::Argument;
use crate::error::Error;
use crate::library::Context;
use cupola_ir::kernel::{Kernel, Library};
use cupola_ir::target::Claim;
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Op, TensorType};
use epilogue::Epilogue;
use operand::Operand;

/// The answer for the backend's target.
pub(crate) fn claim(op: &Op, operands: &[&TensorType]) -> Claim {
    let refusal = match op {
        Op::Core(CoreOp::Contract(p)) => contract::refusal(p, operands),
        Op::Core(CoreOp::Scatter(p)) => scatter::refusal(p, operands),
        Op::Composite(CompositeOp::Conv(p)) => {
            conv::refusal(&[&p.pads_low, &p.pads_high], operands, false)
        }
        Op::Composite(CompositeOp::ConvTranspose(p)) => {
            conv::refusal(&[&p.pads_low], operands, true)
        }
        Op::Composite(CompositeOp::Attention(_)) => attention::refusal(operands),
        _ => Some("no library kernel".into()),
    };
    match refusal {
        Some(reason) => Claim::No { reason },
        None => {
            let scatter = matches!(op, Op::Core(CoreOp::Scatter(_)));
            let attention = matches!(op, Op::Composite(CompositeOp::Attention(_)));
            Claim::Yes {
                strided: !scatter,
                epilogue: !scatter && !attention,
            }
        }
    }
}

/// Why a unit cannot be compiled; `None` when it can.
pub(crate) fn refusal(unit: &Library) -> Option<String> {
    let types: Vec<TensorType> = unit
        .operands
        .iter()
        .map(|v| TensorType {
            dtype: v.dtype,
            dims: v
                .dims
                .iter()
                .map(|e| match e {
                    cupola_ir::kernel::Extent::Const(c) => (*c).into(),
                    cupola_ir::kernel::Extent::Size(s) => unit.sizes[*s as usize].clone(),
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
    let sum = sum_dtype(unit.operands[0].dtype);
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

/// What a library call runs with.
pub(crate) struct Call<'a> {
    pub unit: &'a Library,
    pub sizes: &'a [i64],
    pub cx: Context<'a>,
    pub operands: Vec<Operand>,
    pub results: Vec<Operand>,
    /// Generated code for finished parts, with its buffer arguments.
    pub epilogue: Option<Epilogue<'a>>,
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
            Op::Core(CoreOp::Scatter(p)) => scatter::run(self, p),
            Op::Composite(CompositeOp::Attention(p)) => attention::run(self, p),
            Op::Composite(CompositeOp::Conv(p)) => conv::run(self, p),
            Op::Composite(CompositeOp::ConvTranspose(p)) => conv::run_transposed(self, p),
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

/// Operands and results of a unit with addresses, checked to lie inside their buffers.
pub(crate) fn bind(
    unit: &Library,
    arguments: &[Argument],
    sizes: &[i64],
) -> Result<(Vec<Operand>, Vec<Operand>), String> {
    let views = unit.operands.iter().chain(&unit.results).enumerate();
    let all: Result<Vec<Operand>, String> = views
        .map(|(i, view)| {
            Operand::bind(view, &arguments[i], sizes).map_err(|e| format!("argument {i}: {e}"))
        })
        .collect();
    let mut all = all?;
    let results = all.split_off(unit.operands.len());
    if let Some(i) = (0..results.len()).find(|i| arguments[unit.operands.len() + i].constant) {
        return Err(format!("result {i} is in constant memory"));
    }
    Ok((all, results))
}

/// A number that must not be negative.
fn whole_size(value: i64) -> Result<usize, Failure> {
    usize::try_from(value).map_err(|_| Failure::Fault(format!("{value} is negative")))
}

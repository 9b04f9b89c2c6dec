//! Ops on the host: values that are not tensors (sequences, optionals, strings) and results whose extents only data
//! decides.
//!
//! A payload implements [`HostDef`]: its contract and its meaning stand together, since the host is the only place
//! that runs it. Extents that data decides are symbols named by the payload and bound from the result; sizes in a
//! payload's types are never read when it runs.
//!
//! Reading order: this file, then one file per group: `select`, `sequence`, `string`, `table`, `linear`,
//! `coupling`, `custom`.

pub mod coupling;
pub mod custom;
pub mod linear;
pub mod select;
pub mod sequence;
pub mod string;
pub mod table;

pub use coupling::*;
pub use custom::*;
pub use linear::*;
pub use select::*;
pub use sequence::*;
pub use string::*;
pub use table::*;

use super::{OpDef, tensors};
use crate::attr::op_family;
use crate::convert::{self, Lanes};
use crate::dim::Sym;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{Tensor, Value};
use crate::tensor_type::{TensorType, ValueType};

/// Contract and meaning of a host op's payload.
pub trait HostDef: OpDef {
    /// Symbols bound from the extents of the results.
    fn binds(&self) -> Vec<Sym> {
        vec![]
    }

    /// The results for these operands.
    ///
    /// # Errors
    /// A value outside what the op allows, without the op's name.
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String>;
}

op_family! {
    /// An op that runs on the host.
    HostOp {
        /// Indices of nonzero elements.
        NonZero = "non_zero",
        /// Distinct elements or slices.
        Unique = "unique",
        /// Boxes that do not overlap better ones.
        NonMaxSuppression = "non_max_suppression",
        /// A sequence of the operands.
        SequenceConstruct = "sequence_construct",
        /// A sequence with one more element.
        SequenceInsert = "sequence_insert",
        /// A sequence with one element less.
        SequenceErase = "sequence_erase",
        /// An element of a sequence.
        SequenceAt = "sequence_at",
        /// Number of elements.
        SequenceLength = "sequence_length",
        /// The same sequence under another element type.
        SequenceRetype = "sequence_retype",
        /// Parts of a tensor as a sequence.
        SplitToSequence = "split_to_sequence",
        /// Elements of a sequence joined.
        ConcatFromSequence = "concat_from_sequence",
        /// An optional value.
        MakeOptional = "make_optional",
        /// Whether there is a value.
        OptionalHas = "optional_has",
        /// The value of an optional.
        OptionalGet = "optional_get",
        /// Strings without stop words, in one case.
        StringNormalize = "string_normalize",
        /// Strings joined element by element.
        StringConcat = "string_concat",
        /// Strings split into words.
        StringSplit = "string_split",
        /// Whether strings match a pattern as a whole.
        RegexFullMatch = "regex_full_match",
        /// Values by key.
        Lookup = "lookup",
        /// Counts of known n-grams.
        CountNgrams = "count_ngrams",
        /// Determinant of square matrices.
        Determinant = "determinant",
        /// Inverse of square matrices.
        Inverse = "inverse",
        /// Probabilities of classes from those of pairs of classes.
        CoupleProbabilities = "couple_probabilities",
        /// Code of the program that built the graph.
        Custom = "custom",
    }
}

impl HostOp {
    /// The payload as its contract.
    pub fn def(&self) -> &dyn HostDef {
        match self {
            HostOp::NonZero(p) => p,
            HostOp::Unique(p) => p,
            HostOp::NonMaxSuppression(p) => p,
            HostOp::SequenceConstruct(p) => p,
            HostOp::SequenceInsert(p) => p,
            HostOp::SequenceErase(p) => p,
            HostOp::SequenceAt(p) => p,
            HostOp::SequenceLength(p) => p,
            HostOp::SequenceRetype(p) => p,
            HostOp::SplitToSequence(p) => p,
            HostOp::ConcatFromSequence(p) => p,
            HostOp::MakeOptional(p) => p,
            HostOp::OptionalHas(p) => p,
            HostOp::OptionalGet(p) => p,
            HostOp::StringNormalize(p) => p,
            HostOp::StringConcat(p) => p,
            HostOp::StringSplit(p) => p,
            HostOp::RegexFullMatch(p) => p,
            HostOp::Lookup(p) => p,
            HostOp::CountNgrams(p) => p,
            HostOp::Determinant(p) => p,
            HostOp::Inverse(p) => p,
            HostOp::CoupleProbabilities(p) => p,
            HostOp::Custom(p) => p,
        }
    }
}

/// A tensor operand.
fn tensor<'a>(operands: &[&'a Value], at: usize) -> Result<&'a Tensor, String> {
    let value = operands.get(at).and_then(|v| v.as_tensor());
    value.ok_or_else(|| format!("operand {at} should be a tensor"))
}

/// The elements of a sequence operand.
fn list<'a>(operands: &[&'a Value], at: usize) -> Result<&'a [Value], String> {
    match operands.get(at) {
        Some(Value::Sequence(v)) => Ok(v),
        _ => Err(format!("operand {at} should be a sequence")),
    }
}

/// The strings of a tensor operand.
fn strings<'a>(operands: &[&'a Value], at: usize) -> Result<&'a [String], String> {
    let t = tensor(operands, at)?;
    t.strings()
        .ok_or_else(|| format!("operand {at} should hold strings"))
}

/// The numbers of a tensor operand.
fn numbers(operands: &[&Value], at: usize) -> Result<Vec<f64>, String> {
    let lanes = convert::lanes(tensor(operands, at)?);
    Ok(lanes
        .ok_or_else(|| format!("operand {at} should hold numbers"))?
        .into_f64s())
}

/// The one number of a tensor operand.
fn number(operands: &[&Value], at: usize) -> Result<f64, String> {
    match numbers(operands, at)?[..] {
        [x] => Ok(x),
        _ => Err(format!("operand {at} should be one number")),
    }
}

/// The one integer of a tensor operand.
fn integer(operands: &[&Value], at: usize) -> Result<i64, String> {
    let all = tensor(operands, at)?.to_i64s();
    match all.as_deref() {
        Some([x]) => Ok(*x),
        _ => Err(format!("operand {at} should be one integer")),
    }
}

/// A tensor of `i64`.
fn i64s(shape: &[usize], values: &[i64]) -> Result<Value, String> {
    let t = Tensor::from_slice(shape, values);
    Ok(t.ok_or("a result of another length")?.into())
}

/// A tensor of strings.
fn texts(shape: Vec<usize>, values: Vec<String>) -> Result<Value, String> {
    let t = Tensor::from_strings(shape, values);
    Ok(t.ok_or("a result of another length")?.into())
}

/// Elements of `x` at flat positions, in another shape.
fn pick(x: &Tensor, at: &[usize], shape: &[usize]) -> Result<Tensor, String> {
    let wrong = || "a result of another length".to_string();
    if let Some(s) = x.strings() {
        let all = at.iter().map(|i| s[*i].clone()).collect();
        return Tensor::from_strings(shape.to_vec(), all).ok_or_else(wrong);
    }
    let lanes = match convert::lanes(x).ok_or("takes numbers or strings")? {
        Lanes::F(v) => Lanes::F(at.iter().map(|i| v[*i]).collect()),
        Lanes::I(v) => Lanes::I(at.iter().map(|i| v[*i]).collect()),
        Lanes::U(v) => Lanes::U(at.iter().map(|i| v[*i]).collect()),
    };
    convert::encode(&lanes, x.dtype(), shape, false).ok_or_else(wrong)
}

/// The only operand's type, a tensor of this dtype.
fn only<'a>(operands: &[&'a ValueType], dtype: Option<DType>) -> Result<&'a TensorType, String> {
    let x = tensors(operands, Some(1))?[0];
    match dtype {
        Some(d) if d != x.dtype => Err(format!("takes {d}, not {x}")),
        _ => Ok(x),
    }
}

//! Sequences and optionals.

use super::{HostDef, integer, list, pick, tensor};
use crate::attr::payload;
use crate::dim::Sym;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::OpDef;
use crate::ops::control::same_kind;
use crate::tensor::{Tensor, Value};
use crate::tensor_type::{TensorType, ValueType};

/// The element type of a sequence.
fn element(ty: &ValueType) -> Result<&ValueType, String> {
    match ty {
        ValueType::Sequence(e) => Ok(e),
        other => Err(format!("takes a sequence, not {other}")),
    }
}

/// The operand at a position.
fn at<'a>(operands: &[&'a ValueType], i: usize) -> Result<&'a ValueType, String> {
    let t = operands.get(i).copied();
    t.ok_or_else(|| format!("operand {i} is missing"))
}

/// The same value under a type.
fn kind(got: &ValueType, want: &ValueType) -> Result<(), String> {
    match same_kind(got, want) {
        true => Ok(()),
        false => Err(format!("{got} where {want} is needed")),
    }
}

/// A position that may count from the end; `len` itself only where one is inserted.
fn position(operands: &[&Value], at: usize, len: usize, end: bool) -> Result<usize, String> {
    let i = integer(operands, at)?;
    let n = len as i64;
    let top = if end { n } else { n - 1 };
    let i = if i < 0 { i.saturating_add(n) } else { i };
    match (0..=top).contains(&i) {
        true => Ok(i as usize),
        false => Err(format!("position {i} in a sequence of {n}")),
    }
}

payload! {
    /// The operands as a sequence; none for an empty one.
    SequenceConstruct {
        /// The sequence type.
        ty: ValueType,
    }
}

impl OpDef for SequenceConstruct {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let want = element(&self.ty)?;
        operands.iter().try_for_each(|t| kind(t, want))?;
        Ok(vec![self.ty.clone()])
    }
}

impl HostDef for SequenceConstruct {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let all = operands.iter().map(|v| (*v).clone()).collect();
        Ok(vec![Value::Sequence(all)])
    }
}

payload! {
    /// Operands `(sequence, value, position?)`: the value before that position, or at the end.
    SequenceInsert {
        /// The sequence type of the result.
        ty: ValueType,
    }
}

impl OpDef for SequenceInsert {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let want = element(&self.ty)?;
        kind(at(operands, 0)?, &self.ty)?;
        kind(at(operands, 1)?, want)?;
        Ok(vec![self.ty.clone()])
    }
}

impl HostDef for SequenceInsert {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let mut all = list(operands, 0)?.to_vec();
        let at = match operands.len() {
            3 => position(operands, 2, all.len(), true)?,
            _ => all.len(),
        };
        all.insert(at, operands[1].clone());
        Ok(vec![Value::Sequence(all)])
    }
}

payload! {
    /// Operands `(sequence, position?)`: without the element at that position, or the last.
    SequenceErase {}
}

impl OpDef for SequenceErase {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        element(at(operands, 0)?)?;
        Ok(vec![operands[0].clone()])
    }
}

impl HostDef for SequenceErase {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let mut all = list(operands, 0)?.to_vec();
        let at = match operands.len() {
            2 => position(operands, 1, all.len(), false)?,
            _ => all
                .len()
                .checked_sub(1)
                .ok_or("nothing to take out of an empty sequence")?,
        };
        all.remove(at);
        Ok(vec![Value::Sequence(all)])
    }
}

payload! {
    /// Operands `(sequence, position)`: the element there.
    SequenceAt {
        /// Type of the result.
        ty: ValueType,
        /// Symbols of the type bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for SequenceAt {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        kind(element(at(operands, 0)?)?, &self.ty)?;
        Ok(vec![self.ty.clone()])
    }
}

impl HostDef for SequenceAt {
    fn binds(&self) -> Vec<Sym> {
        self.binds.clone()
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let all = list(operands, 0)?;
        Ok(vec![all[position(operands, 1, all.len(), false)?].clone()])
    }
}

payload! {
    /// Number of elements: `i64[]`.
    SequenceLength {}
}

impl OpDef for SequenceLength {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        element(at(operands, 0)?)?;
        Ok(vec![TensorType::scalar(DType::I64).into()])
    }
}

impl HostDef for SequenceLength {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let len = list(operands, 0)?.len() as i64;
        Ok(vec![Tensor::scalar(len).into()])
    }
}

payload! {
    /// The operand, whose elements must be of another type than stated: an empty sequence is of every type.
    SequenceRetype {
        /// The sequence type.
        ty: ValueType,
    }
}

impl OpDef for SequenceRetype {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        element(at(operands, 0)?)?;
        element(&self.ty)?;
        Ok(vec![self.ty.clone()])
    }
}

impl HostDef for SequenceRetype {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        match operands[0].fits(&self.ty) {
            true => Ok(vec![operands[0].clone()]),
            false => Err(format!("the sequence is not of type {}", self.ty)),
        }
    }
}

/// Flat positions of `len` indices from `start` on along an axis of a row-major tensor.
fn part(shape: &[usize], axis: usize, start: usize, len: usize) -> Vec<usize> {
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    (0..outer)
        .flat_map(|o| {
            let first = (o * shape[axis] + start) * inner;
            first..first + len * inner
        })
        .collect()
}

payload! {
    /// Operands `(x, split?)`: `x` cut along an axis in parts of `split` indices (a scalar, the last part being the
    /// rest, or one number per part); in single indices without it.
    SplitToSequence {
        /// Cut axis.
        axis: usize,
        /// Single indices keep the axis.
        keep: bool,
        /// The sequence type.
        ty: ValueType,
    }
}

impl OpDef for SplitToSequence {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = at(operands, 0)?.as_tensor().ok_or("takes a tensor")?;
        let gone = usize::from(operands.len() == 1 && !self.keep);
        let e = element(&self.ty)?.as_tensor();
        let fits = e.is_some_and(|e| e.dtype == x.dtype && e.rank() + gone == x.rank());
        match fits && self.axis < x.rank() {
            true => Ok(vec![self.ty.clone()]),
            false => Err(format!("{x} along axis {} as {}", self.axis, self.ty)),
        }
    }
}

impl HostDef for SplitToSequence {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let n = *x.shape().get(self.axis).ok_or("no such axis")?;
        let lens: Vec<usize> = match operands.len() {
            1 => vec![1; n],
            _ => {
                let split = tensor(operands, 1)?;
                let given = split.to_i64s().ok_or("the split should be integers")?;
                let given: Option<Vec<usize>> =
                    given.iter().map(|v| usize::try_from(*v).ok()).collect();
                let given = given.ok_or("a part of negative length")?;
                match (split.shape(), &given[..]) {
                    ([], [0]) => return Err("parts of length 0".into()),
                    ([], [len]) => (0..n.div_ceil(*len))
                        .map(|i| (n - i * len).min(*len))
                        .collect(),
                    _ => given,
                }
            }
        };
        let total = lens.iter().try_fold(0usize, |a, b| a.checked_add(*b));
        if total != Some(n) {
            return Err(format!("parts {lens:?} of {n} indices"));
        }
        let mut start = 0;
        let mut all = vec![];
        for len in lens {
            let mut shape = x.shape().to_vec();
            shape[self.axis] = len;
            if operands.len() == 1 && !self.keep {
                shape.remove(self.axis);
            }
            let at = part(x.shape(), self.axis, start, len);
            all.push(pick(x, &at, &shape)?.into());
            start += len;
        }
        Ok(vec![Value::Sequence(all)])
    }
}

payload! {
    /// The elements of a sequence joined along an axis, or stacked along a new one.
    ConcatFromSequence {
        /// Axis of the result.
        axis: usize,
        /// The axis is new.
        stack: bool,
        /// Type of the result.
        ty: ValueType,
        /// Symbols of the type bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for ConcatFromSequence {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let e = element(at(operands, 0)?)?.as_tensor();
        let e = e.ok_or("takes a sequence of tensors")?;
        let y = self.ty.as_tensor().ok_or("gives a tensor")?;
        match e.dtype == y.dtype
            && e.rank() + usize::from(self.stack) == y.rank()
            && self.axis < y.rank()
        {
            true => Ok(vec![self.ty.clone()]),
            false => Err(format!("{e} joined along axis {} as {y}", self.axis)),
        }
    }
}

impl HostDef for ConcatFromSequence {
    fn binds(&self) -> Vec<Sym> {
        self.binds.clone()
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let all = list(operands, 0)?;
        let mut parts = vec![];
        for v in all {
            let t = v.as_tensor().ok_or("takes a sequence of tensors")?;
            let mut shape = t.shape().to_vec();
            if self.stack {
                if self.axis > shape.len() {
                    return Err(format!("axis {} of {t:?}", self.axis));
                }
                shape.insert(self.axis, 1);
            }
            parts.push(t.reshaped(shape).ok_or("a part of another length")?);
        }
        let parts: Vec<&Tensor> = parts.iter().collect();
        let Some(first) = parts.first() else {
            return Err("no elements to join".into());
        };
        let same = |t: &&Tensor| {
            t.dtype() == first.dtype()
                && t.shape().len() == first.shape().len()
                && (0..t.shape().len()).all(|a| a == self.axis || t.shape()[a] == first.shape()[a])
        };
        if self.axis >= first.shape().len() || !parts.iter().all(same) {
            return Err(format!("{parts:?} do not join along axis {}", self.axis));
        }
        let joined = crate::eval::join(&parts, self.axis)?;
        Ok(vec![joined.into()])
    }
}

payload! {
    /// The operand as an optional, or an empty optional without operand.
    MakeOptional {
        /// The optional type.
        ty: ValueType,
        /// Symbols of the type bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for MakeOptional {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let ValueType::Optional(inner) = &self.ty else {
            return Err(format!("{} is no optional", self.ty));
        };
        operands.iter().try_for_each(|t| kind(t, inner))?;
        Ok(vec![self.ty.clone()])
    }
}

impl HostDef for MakeOptional {
    fn binds(&self) -> Vec<Sym> {
        self.binds.clone()
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let inner = operands.first().map(|v| Box::new((*v).clone()));
        Ok(vec![Value::Optional(inner)])
    }
}

payload! {
    /// Whether an optional has a value: `bool[]`.
    OptionalHas {}
}

impl OpDef for OptionalHas {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        match at(operands, 0)? {
            ValueType::Optional(_) => Ok(vec![TensorType::scalar(DType::Bool).into()]),
            other => Err(format!("takes an optional, not {other}")),
        }
    }
}

impl HostDef for OptionalHas {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let has = matches!(operands[0], Value::Optional(Some(_)));
        let t = crate::convert::splat(f64::from(u8::from(has)), DType::Bool);
        Ok(vec![t.ok_or("no scalar of bool")?.into()])
    }
}

payload! {
    /// The value of an optional, which must have one.
    OptionalGet {
        /// Type of the result.
        ty: ValueType,
        /// Symbols of the type bound here.
        binds: Vec<Sym>,
    }
}

impl OpDef for OptionalGet {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        match at(operands, 0)? {
            ValueType::Optional(inner) => kind(inner, &self.ty)?,
            other => return Err(format!("takes an optional, not {other}")),
        }
        Ok(vec![self.ty.clone()])
    }
}

impl HostDef for OptionalGet {
    fn binds(&self) -> Vec<Sym> {
        self.binds.clone()
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        match operands[0] {
            Value::Optional(Some(v)) => Ok(vec![(**v).clone()]),
            _ => Err("the optional has no value".into()),
        }
    }
}

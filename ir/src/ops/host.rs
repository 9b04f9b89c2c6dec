//! Ops on the host: values that are not tensors (sequences, optionals, strings) and results whose extents only data
//! decides.
//!
//! A payload implements [`HostDef`]: its contract and its meaning stand together, since the host is the only place
//! that runs it. Extents that data decides are symbols named by the payload and bound from the result.

use super::{OpDef, tensors};
use crate::attr::{op_family, payload};
use crate::dim::{Dim, Sym};
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
    }
}

impl HostOp {
    /// The payload as its contract.
    pub fn def(&self) -> &dyn HostDef {
        match self {
            HostOp::NonZero(p) => p,
        }
    }
}

payload! {
    /// Indices of the elements that are not 0 (or false), in row-major order: `out: i64[rank, count]`.
    NonZero {
        /// Symbol for the number of such elements.
        count: Sym,
    }
}

impl OpDef for NonZero {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if x.dtype.bits() < 8 {
            return Err(format!("not of {}", x.dtype));
        }
        Ok(vec![
            TensorType::new(DType::I64, [Dim::from(x.rank()), Dim::from(&self.count)]).into(),
        ])
    }
}

impl HostDef for NonZero {
    fn binds(&self) -> Vec<Sym> {
        vec![self.count.clone()]
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = operands[0].as_tensor().ok_or("takes a tensor")?;
        let lanes = crate::convert::lanes(x).ok_or("takes numbers")?;
        let set: Vec<usize> = match lanes {
            crate::convert::Lanes::F(v) => (0..v.len()).filter(|i| v[*i] != 0.0).collect(),
            crate::convert::Lanes::I(v) => (0..v.len()).filter(|i| v[*i] != 0).collect(),
            crate::convert::Lanes::U(v) => (0..v.len()).filter(|i| v[*i] != 0).collect(),
        };
        let mut out = Vec::with_capacity(set.len() * x.shape().len());
        let mut stride = x.len();
        for n in x.shape() {
            stride /= (*n).max(1);
            out.extend(set.iter().map(|i| (i / stride.max(1) % n) as i64));
        }
        let out = Tensor::from_slice(&[x.shape().len(), set.len()], &out);
        Ok(vec![
            out.unwrap_or_else(|| unreachable!("bug: index count"))
                .into(),
        ])
    }
}

//! Elementwise ops.

use super::{OpDef, may_equal, tensors};
use crate::attr::payload;
use crate::dtype::{Class, DType};
use crate::scalar::Scalar;
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// `out[i] = f(x0[i], x1[i], ...)`; all operands have the same extents.
    Map {
        /// The function.
        f: Scalar,
    }
}

impl OpDef for Map {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, Some(self.f.arity()))?;
        let dtypes: Vec<DType> = xs.iter().map(|t| t.dtype).collect();
        let dtype = self.f.infer(&dtypes)?;
        for x in &xs[1..] {
            if x.rank() != xs[0].rank()
                || x.dims
                    .iter()
                    .zip(&xs[0].dims)
                    .any(|(a, b)| !may_equal(a, b))
            {
                return Err(format!(
                    "operands {} and {x} differ in extents; broadcast them first",
                    xs[0]
                ));
            }
        }
        // Of extents that are equal at run time the constant one says more.
        let pick = |axis: usize| {
            let dims = xs.iter().map(|x| &x.dims[axis]);
            dims.clone()
                .find(|d| d.as_const().is_some())
                .unwrap_or(&xs[0].dims[axis])
                .clone()
        };
        Ok(vec![
            TensorType {
                dtype,
                dims: (0..xs[0].rank()).map(pick).collect(),
            }
            .into(),
        ])
    }
}

payload! {
    /// Conversion of values. Float to integer truncates toward zero and wraps out-of-range values only as the target
    /// format defines (integers saturate at NaN = 0); to bool: nonzero. From a block type: dequantisation.
    Cast {
        /// Result dtype.
        to: DType,
        /// For float8 and float4 results: out-of-range values become the largest finite value instead of inf or NaN.
        saturate: bool,
    }
}

impl OpDef for Cast {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if self.to.class() == Class::Block
            || (x.dtype.class() == Class::Block && !self.to.is_float())
        {
            return Err(format!("no conversion from {} to {}", x.dtype, self.to));
        }
        Ok(vec![
            TensorType {
                dtype: self.to,
                dims: x.dims.clone(),
            }
            .into(),
        ])
    }
}

payload! {
    /// The same bits as another dtype of the same width.
    Bitcast {
        /// Result dtype.
        to: DType,
    }
}

impl OpDef for Bitcast {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if x.dtype.bits() == 0 || x.dtype.bits() != self.to.bits() {
            return Err(format!("{} and {} differ in width", x.dtype, self.to));
        }
        Ok(vec![
            TensorType {
                dtype: self.to,
                dims: x.dims.clone(),
            }
            .into(),
        ])
    }
}

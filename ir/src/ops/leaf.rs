//! Ops without operands: inputs, weights, constants, indices and dimensions.

use super::OpDef;
use crate::attr::payload;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::Tensor;
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// A named input. Its symbols are bound by the value it is given.
    Input {
        /// Unique among the inputs of the graph.
        name: String,
        /// Type.
        ty: ValueType,
    }
}

impl OpDef for Input {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![self.ty.clone()])
    }
}

payload! {
    /// A named weight, bound when a session is made and shared between sessions.
    Param {
        /// Unique among the weights of the graph.
        name: String,
        /// Type.
        ty: ValueType,
    }
}

impl OpDef for Param {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![self.ty.clone()])
    }
}

payload! {
    /// A constant tensor.
    Const {
        /// The elements; a handle that may point into a memory-mapped file.
        value: Tensor,
    }
}

impl OpDef for Const {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![self.value.ty().into()])
    }
}

payload! {
    /// `out[i] = i[axis]` over the given extents.
    Iota {
        /// Number type of the result.
        dtype: DType,
        /// Extents.
        dims: Vec<Dim>,
        /// Counted axis.
        axis: usize,
    }
}

impl OpDef for Iota {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        if self.axis >= self.dims.len() || !(self.dtype.is_int() || self.dtype.is_float()) {
            return Err(format!(
                "needs a number type and an axis below {}",
                self.dims.len()
            ));
        }
        Ok(vec![
            TensorType {
                dtype: self.dtype,
                dims: self.dims.clone(),
            }
            .into(),
        ])
    }
}

payload! {
    /// The values of dimensions: `out: i64[dims.len()]`.
    Dims {
        /// What to evaluate.
        dims: Vec<Dim>,
    }
}

impl OpDef for Dims {
    fn infer(&self, _: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![TensorType::new(DType::I64, [self.dims.len()]).into()])
    }
}

//! Reductions over axes.

use super::{OpDef, tensors};
use crate::attr::{attr_enum, payload};
use crate::dim::Dim;
use crate::dtype::{Class, DType};
use crate::tensor_type::{TensorType, ValueType};

attr_enum! {
    /// An associative reduction.
    ReduceKind {
        /// Sum; 0 over nothing.
        Sum = "sum",
        /// Product; 1 over nothing.
        Prod = "prod",
        /// Largest, NaN if any is; the smallest value of the type (-inf) over nothing. For bool: any.
        Max = "max",
        /// Smallest, NaN if any is; the largest value of the type (inf) over nothing. For bool: all.
        Min = "min",
    }
}

payload! {
    /// Reduces `axes` away.
    Reduce {
        /// What to compute.
        kind: ReduceKind,
        /// Reduced axes, ascending, distinct.
        axes: Vec<usize>,
        /// Type of the running value; the result has the operand's dtype.
        accum: DType,
    }
}

impl OpDef for Reduce {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        let number = matches!(
            x.dtype.class(),
            Class::Float | Class::Signed | Class::Unsigned
        );
        let order = matches!(self.kind, ReduceKind::Max | ReduceKind::Min);
        if !(number || order && x.dtype == DType::Bool) {
            return Err(format!("no {} of {}", self.kind.name(), x.dtype));
        }
        if self.axes.windows(2).any(|w| w[0] >= w[1])
            || self.axes.last().is_some_and(|a| *a >= x.rank())
        {
            return Err(format!("axes {:?} of rank {}", self.axes, x.rank()));
        }
        let kept: Vec<Dim> = (0..x.rank())
            .filter(|a| !self.axes.contains(a))
            .map(|a| x.dims[a].clone())
            .collect();
        Ok(vec![
            TensorType {
                dtype: x.dtype,
                dims: kept,
            }
            .into(),
        ])
    }
}

payload! {
    /// Index (i64) of the largest or smallest element along `axis`, which is reduced away. NaN counts as most
    /// extreme.
    ArgReduce {
        /// `max` or `min`.
        kind: ReduceKind,
        /// Reduced axis.
        axis: usize,
        /// Of equal elements take the last instead of the first.
        last: bool,
    }
}

impl OpDef for ArgReduce {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if !matches!(self.kind, ReduceKind::Max | ReduceKind::Min) || self.axis >= x.rank() {
            return Err(format!("needs max or min and an axis below {}", x.rank()));
        }
        if x.dims[self.axis].is(0) {
            return Err("the reduced axis has no elements".into());
        }
        let mut dims = x.dims.clone();
        dims.remove(self.axis);
        Ok(vec![
            TensorType {
                dtype: DType::I64,
                dims,
            }
            .into(),
        ])
    }
}

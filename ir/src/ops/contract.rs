//! The general matrix product.

use super::{OpDef, may_equal, tensors};
use crate::attr::payload;
use crate::dim::Dim;
use crate::dtype::{Class, DType};
use crate::tensor_type::{TensorType, ValueType};

payload! {
    /// `out[b, m, n] = sum over k of lhs[b, m, k] * rhs[b, n, k]`, for any number and order of axes of each kind.
    /// Result axes: batch axes in the order given, then the free axes of lhs, then those of rhs.
    Contract {
        /// Batch axes of lhs.
        lhs_batch: Vec<usize>,
        /// Batch axes of rhs, pairwise with `lhs_batch`.
        rhs_batch: Vec<usize>,
        /// Summed axes of lhs.
        lhs_contract: Vec<usize>,
        /// Summed axes of rhs, pairwise with `lhs_contract`.
        rhs_contract: Vec<usize>,
        /// Type of the running sum.
        accum: DType,
        /// Result dtype.
        out: DType,
    }
}

impl Contract {
    /// Axes of an operand of this rank that are neither batch nor contracted.
    pub fn free(rank: usize, batch: &[usize], contract: &[usize]) -> Vec<usize> {
        (0..rank)
            .filter(|a| !batch.contains(a) && !contract.contains(a))
            .collect()
    }
}

impl OpDef for Contract {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, Some(2))?;
        let (l, r) = (xs[0], xs[1]);
        let number = |d: DType| matches!(d.class(), Class::Float | Class::Signed | Class::Unsigned);
        let mixed_ints = l.dtype.is_int() && r.dtype.is_int();
        let block_rhs = l.dtype.is_float() && r.dtype.class() == Class::Block;
        if !(number(l.dtype) && (l.dtype == r.dtype || mixed_ints) || block_rhs) {
            return Err(format!("no product of {} and {}", l.dtype, r.dtype));
        }
        if self.lhs_batch.len() != self.rhs_batch.len()
            || self.lhs_contract.len() != self.rhs_contract.len()
        {
            return Err("batch and contracted axes come in pairs".into());
        }
        let distinct = |rank: usize, a: &[usize], b: &[usize]| {
            let mut all = [a, b].concat();
            all.sort_unstable();
            all.windows(2).all(|w| w[0] != w[1]) && all.last().is_none_or(|x| *x < rank)
        };
        if !distinct(l.rank(), &self.lhs_batch, &self.lhs_contract)
            || !distinct(r.rank(), &self.rhs_batch, &self.rhs_contract)
        {
            return Err("axes must be distinct and below the rank".into());
        }
        let pairs = self.lhs_batch.iter().zip(&self.rhs_batch);
        for (a, b) in pairs.chain(self.lhs_contract.iter().zip(&self.rhs_contract)) {
            if !may_equal(&l.dims[*a], &r.dims[*b]) {
                return Err(format!("{l} axis {a} and {r} axis {b} differ"));
            }
        }
        let mut dims: Vec<Dim> = self.lhs_batch.iter().map(|a| l.dims[*a].clone()).collect();
        let lhs_free = Contract::free(l.rank(), &self.lhs_batch, &self.lhs_contract);
        let rhs_free = Contract::free(r.rank(), &self.rhs_batch, &self.rhs_contract);
        dims.extend(lhs_free.iter().map(|a| l.dims[*a].clone()));
        dims.extend(rhs_free.iter().map(|a| r.dims[*a].clone()));
        Ok(vec![
            TensorType {
                dtype: self.out,
                dims,
            }
            .into(),
        ])
    }
}

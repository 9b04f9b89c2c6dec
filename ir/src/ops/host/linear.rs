//! Small dense linear algebra by Gaussian elimination with partial pivoting, in f64.

use super::{HostDef, numbers, only, tensor};
use crate::attr::payload;
use crate::convert::{self, Lanes};
use crate::error::Result;
use crate::ops::{OpDef, may_equal};
use crate::tensor::Value;
use crate::tensor_type::{TensorType, ValueType};

/// A stack of square matrices.
fn square(operands: &[&ValueType]) -> Result<TensorType, String> {
    let x = only(operands, None)?;
    match &x.dims[..] {
        [.., n, m] if may_equal(n, m) && x.dtype.is_float() => Ok(x.clone()),
        _ => Err(format!("takes square matrices of floats, not {x}")),
    }
}

/// Brings `n` rows of `width` columns into the form that elimination leaves: gives the determinant of the first `n`
/// columns; with `full` those become the identity (rows are only reduced below otherwise). Stops at a zero pivot.
fn eliminate(a: &mut [f64], n: usize, width: usize, full: bool) -> f64 {
    let mut det = 1.0;
    for c in 0..n {
        let best = (c..n).max_by(|i, j| a[i * width + c].abs().total_cmp(&a[j * width + c].abs()));
        let best = best.unwrap_or(c);
        let pivot = a[best * width + c];
        if pivot == 0.0 {
            return 0.0;
        }
        if best != c {
            for k in 0..width {
                a.swap(best * width + k, c * width + k);
            }
            det = -det;
        }
        det *= pivot;
        if full {
            for k in 0..width {
                a[c * width + k] /= pivot;
            }
        }
        let lead = a[c * width + c];
        for r in 0..n {
            if r == c || (!full && r < c) {
                continue;
            }
            let factor = a[r * width + c] / lead;
            for k in c..width {
                a[r * width + k] -= factor * a[c * width + k];
            }
        }
    }
    det
}

payload! {
    /// Determinant over the last two axes of `x: [.., n, n]`.
    Determinant {}
}

impl OpDef for Determinant {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let mut ty = square(operands)?;
        ty.dims.truncate(ty.rank() - 2);
        Ok(vec![ty.into()])
    }
}

impl HostDef for Determinant {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let [outer @ .., n, m] = x.shape() else {
            return Err(format!("{x:?} are no matrices"));
        };
        if n != m {
            return Err(format!("{x:?} are not square"));
        }
        let mut all = numbers(operands, 0)?;
        let count: usize = outer.iter().product();
        let det: Vec<f64> = (0..count)
            .map(|i| eliminate(&mut all[i * n * n..(i + 1) * n * n], *n, *n, false))
            .collect();
        let out = convert::encode(&Lanes::F(det), x.dtype(), outer, false);
        Ok(vec![out.ok_or("a result of another length")?.into()])
    }
}

payload! {
    /// Inverse over the last two axes of `x: [.., n, n]`; a singular matrix is an error.
    Inverse {}
}

impl OpDef for Inverse {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        Ok(vec![square(operands)?.into()])
    }
}

impl HostDef for Inverse {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let [.., n, m] = *x.shape() else {
            return Err(format!("{x:?} are no matrices"));
        };
        if n != m {
            return Err(format!("{x:?} are not square"));
        }
        let all = numbers(operands, 0)?;
        let mut out = Vec::with_capacity(all.len());
        for matrix in all.chunks(n.max(1) * n.max(1)) {
            let mut wide = vec![0.0; 2 * n * n];
            for r in 0..n {
                wide[r * 2 * n..][..n].copy_from_slice(&matrix[r * n..][..n]);
                wide[r * 2 * n + n + r] = 1.0;
            }
            if eliminate(&mut wide, n, 2 * n, true) == 0.0 {
                return Err("a matrix is singular".into());
            }
            for r in 0..n {
                out.extend_from_slice(&wide[r * 2 * n + n..][..n]);
            }
        }
        let out = convert::encode(&Lanes::F(out), x.dtype(), x.shape(), false);
        Ok(vec![out.ok_or("a result of another length")?.into()])
    }
}

//! Tables keyed by elements: label encoders and n-gram counters.

use std::collections::HashMap;

use super::{HostDef, only, pick, tensor};
use crate::attr::payload;
use crate::convert::{self, Lanes};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::OpDef;
use crate::tensor::{Tensor, Value};
use crate::tensor_type::{TensorType, ValueType};

/// An element as a key. Floats by their bits, every NaN and both zeros alike.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Text(String),
    Int(i64),
    Bits(u64),
}

fn keys(t: &Tensor) -> Result<Vec<Key>, String> {
    if let Some(s) = t.strings() {
        return Ok(s.iter().cloned().map(Key::Text).collect());
    }
    Ok(match convert::lanes(t).ok_or("takes numbers or strings")? {
        Lanes::I(v) => v.into_iter().map(Key::Int).collect(),
        Lanes::U(v) => v.into_iter().map(|x| Key::Int(x as i64)).collect(),
        Lanes::F(v) => v
            .into_iter()
            .map(|x| match x {
                x if x.is_nan() => Key::Bits(f64::NAN.to_bits()),
                x => Key::Bits((x + 0.0).to_bits()),
            })
            .collect(),
    })
}

payload! {
    /// `out[i] = values[j]` for the first `keys[j] = x[i]`, else the default.
    Lookup {
        /// Keys `[n]`, of the operand's dtype.
        keys: Tensor,
        /// Values `[n]`.
        values: Tensor,
        /// Value of unknown keys, one element of the dtype of `values`.
        default: Tensor,
    }
}

impl OpDef for Lookup {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, Some(self.keys.dtype()))?;
        if self.keys.len() != self.values.len()
            || self.default.len() != 1
            || self.default.dtype() != self.values.dtype()
        {
            return Err(format!(
                "keys {:?}, values {:?} and default {:?}",
                self.keys, self.values, self.default
            ));
        }
        Ok(vec![
            TensorType {
                dtype: self.values.dtype(),
                dims: x.dims.clone(),
            }
            .into(),
        ])
    }
}

impl HostDef for Lookup {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let mut table = HashMap::new();
        for (i, k) in keys(&self.keys)?.into_iter().enumerate() {
            table.entry(k).or_insert(i + 1);
        }
        // Position 0 is the default's.
        let at: Vec<usize> = keys(x)?
            .iter()
            .map(|k| table.get(k).copied().unwrap_or(0))
            .collect();
        let flat = |t: &Tensor| t.reshaped(vec![t.len()]).ok_or("bad extents");
        let (default, values) = (flat(&self.default)?, flat(&self.values)?);
        let all = crate::eval::join(&[&default, &values], 0)?;
        Ok(vec![pick(&all, &at, x.shape())?.into()])
    }
}

payload! {
    /// Counts, in each row of `x: [n]` or `[rows, n]`, how often each n-gram of a pool occurs: elements at equal
    /// distances of 1 to `most_skips + 1`. `out: f32[.., width]`, at an n-gram's column.
    CountNgrams {
        /// The n-grams one after the other.
        pool: Tensor,
        /// Elements of each n-gram.
        lens: Vec<usize>,
        /// Column of each n-gram.
        columns: Vec<usize>,
        /// Number of columns.
        width: usize,
        /// Most elements left out between two of an n-gram.
        most_skips: usize,
    }
}

impl OpDef for CountNgrams {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = only(operands, None)?;
        let total = self.lens.iter().try_fold(0usize, |a, b| a.checked_add(*b));
        if total != Some(self.pool.len())
            || self.lens.len() != self.columns.len()
            || self.columns.iter().any(|c| *c >= self.width)
        {
            return Err("the pool, the lengths and the columns do not agree".into());
        }
        let text = |d: DType| d == DType::String;
        if text(x.dtype) != text(self.pool.dtype()) || !(1..=2).contains(&x.rank()) {
            return Err(format!("{x} with a pool of {:?}", self.pool));
        }
        let mut dims = x.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = Dim::from(self.width);
        }
        Ok(vec![
            TensorType {
                dtype: DType::F32,
                dims,
            }
            .into(),
        ])
    }
}

impl HostDef for CountNgrams {
    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = tensor(operands, 0)?;
        let pool = keys(&self.pool)?;
        let mut table: HashMap<&[Key], usize> = HashMap::new();
        let mut start = 0;
        for (len, column) in self.lens.iter().zip(&self.columns) {
            table.insert(&pool[start..start + len], *column);
            start += len;
        }
        let mut lens = self.lens.clone();
        lens.sort_unstable();
        lens.dedup();
        let all = keys(x)?;
        let n = x.shape().last().copied().unwrap_or(0);
        let rows = if x.shape().len() == 2 {
            x.shape()[0]
        } else {
            1
        };
        let mut out = vec![0f32; rows * self.width];
        for (row, counts) in out.chunks_mut(self.width.max(1)).enumerate() {
            let row = &all[row * n..(row + 1) * n];
            for len in lens.iter().filter(|l| **l > 0 && **l <= n) {
                // A single element has no distances.
                let skips = if *len == 1 { 0 } else { self.most_skips.min(n) };
                for step in 1..=skips + 1 {
                    let reach = (len - 1) * step;
                    for first in 0..n.saturating_sub(reach) {
                        let gram: Vec<Key> =
                            (0..*len).map(|k| row[first + k * step].clone()).collect();
                        if let Some(column) = table.get(&gram[..]) {
                            counts[*column] += 1.0;
                        }
                    }
                }
            }
        }
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.width;
        }
        let out = Tensor::from_slice(&shape, &out);
        Ok(vec![out.ok_or("a result of another length")?.into()])
    }
}

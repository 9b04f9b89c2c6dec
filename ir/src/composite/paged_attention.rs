//! Attention of single queries over keys and values kept in pages.

use super::{Attention, CompositeDef};
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Bounds, Gather};
use crate::scalar::Scalar;
use crate::tensor_type::{TensorType, ValueType};
use crate::{DType, Dim, Op};

payload! {
    /// Operands `(q: [rows, heads, d], k: [pages, kv_heads, page_len, d], v: [pages, kv_heads, page_len, dv],
    /// table: i64[batch, blocks], sequences: i64[rows], positions: i64[rows])`, `heads` a multiple of `kv_heads`. Keys and
    /// values are floats; or i8 with two more operands `k_scales: [pages, kv_heads, page_len, n]` and `v_scales: [pages,
    /// kv_heads, page_len, m]` of floats, where `n` divides `d` and `m` divides `dv`: element `i` of a key is
    /// `k[.., i] * k_scales[.., i / (d / n)]`, and values likewise.
    /// Row `r` is a query of sequence `s = sequences[r]`; key `j` of that sequence lies at `j % page_len` of page
    /// `table[s, j / page_len]`. The row sees the keys `0 <= j <= positions[r]`, with a window only those with
    /// `j > positions[r] - window`; keys past `blocks * page_len` do not exist. Scores, caps and heads are those of
    /// [`Attention`], and a row that sees no key gives 0. `out: [rows, heads, dv]` has the dtype of q; k and v may be
    /// narrower floats; sums are in f32. A sequence outside the table fails the run, a page outside of k is the nearest.
    /// What lies at keys that no row sees is never used, nor are the table's entries for them.
    PagedAttention {
        /// Factor of the scores.
        scale: f64,
        /// Soft limit of the scores; 0 for none.
        softcap: f64,
        /// How many keys a row sees at most, its own included; 0 for all.
        window: i64,
    }
}

const NAME: &str = "composite.paged_attention";

impl PagedAttention {
    /// `true` where the key is seen: `bool[rows, keys]`.
    fn seen(&self, g: &mut Graph, positions: ValueId, keys: &Dim) -> Result<ValueId> {
        let rows = g.dim(positions, 0);
        let key = g.iota(DType::I64, &[rows.clone(), keys.clone()], 1)?;
        let last = g.unsqueeze(positions, &[1])?;
        let seen = g.binary(Scalar::Le, key, last)?;
        if self.window == 0 {
            return Ok(seen);
        }
        let window = g.number(self.window as f64, DType::I64)?;
        let before = g.binary(Scalar::Sub, last, window)?;
        let near = g.binary(Scalar::Lt, before, key)?;
        g.binary(Scalar::And, seen, near)
    }
}

/// The keys of each row's sequence in order: `[rows, kv_heads, blocks * page_len, d]`.
fn gathered(g: &mut Graph, pages: ValueId, blocks: ValueId) -> Result<ValueId> {
    let gather = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Clamp,
    };
    let x = g.one(gather, &[pages, blocks])?;
    let x = g.permute(x, &[0, 2, 1, 3, 4])?;
    let d = g.dims(x);
    let keys = d[2].clone() * d[3].clone();
    g.reshape(x, &[d[0].clone(), d[1].clone(), keys, d[4].clone()])
}

/// Gathered keys or values `[rows, kv_heads, keys, d]`, those in 8 bits times their scales `[rows, kv_heads, keys, n]`, as
/// the type of `q`.
fn scaled(g: &mut Graph, x: ValueId, scales: ValueId, q: ValueId) -> Result<ValueId> {
    let (dims, groups) = (g.dims(x), g.dim(scales, 3));
    let mut grouped = g.dims(scales);
    grouped.push(dims[3].floor_div(&groups));
    let x = g.cast(x, DType::F32)?;
    let x = g.reshape(x, &grouped)?;
    let scales = g.cast(scales, DType::F32)?;
    let scales = g.unsqueeze(scales, &[4])?;
    let x = g.binary(Scalar::Mul, x, scales)?;
    let x = g.reshape(x, &dims)?;
    g.cast_like(x, q)
}

impl CompositeDef for PagedAttention {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        6..=8
    }

    fn infer(&self, operands: &[&ValueType]) -> Option<Result<Vec<ValueType>, String>> {
        Some(self.result(operands).map(|t| vec![t.into()]))
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let types: Vec<&ValueType> = operands.iter().map(|x| g.ty(*x)).collect();
        let out = self.result(&types).map_err(|e| IrError::op(NAME, e))?;
        let [q, k, v, table, sequences, positions, ref scales @ ..] = *operands else {
            return Err(IrError::op(NAME, "takes 6 operands"));
        };
        let rows = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        let blocks = g.one(rows, &[table, sequences])?;
        let (mut k, mut v) = (gathered(g, k, blocks)?, gathered(g, v, blocks)?);
        if let [k_scales, v_scales] = *scales {
            let k_scales = gathered(g, k_scales, blocks)?;
            k = scaled(g, k, k_scales, q)?;
            let v_scales = gathered(g, v_scales, blocks)?;
            v = scaled(g, v, v_scales, q)?;
        }
        let seen = self.seen(g, positions, &g.dim(k, 2))?;
        // An unseen key weighs 0, which does not silence a value that is no number.
        let kept = g.unsqueeze(seen, &[1, 3])?;
        let zero = g.number_like(0.0, v)?;
        let v = g.select(kept, v, zero)?;
        let mask = g.unsqueeze(seen, &[1, 2])?;
        let q = g.unsqueeze(q, &[2])?;
        let attention = Attention {
            scale: self.scale,
            causal: false,
            softcap: self.softcap,
        };
        let y = g.one(Op::Composite(attention.into()), &[q, k, v, mask])?;
        Ok(vec![g.reshape(y, &out.dims)?])
    }
}

impl PagedAttention {
    /// The result's type, or what is wrong with the operands.
    fn result(&self, operands: &[&ValueType]) -> Result<TensorType, String> {
        let types: Option<Vec<&TensorType>> = operands.iter().map(|t| t.as_tensor()).collect();
        let types = types.unwrap_or_default();
        let [q, k, v, table, sequences, positions, ref scales @ ..] = types[..] else {
            return Err("takes 6 tensors".into());
        };
        if self.window < 0 {
            return Err(format!("a window of {} keys", self.window));
        }
        let ranks = [
            (q, 3),
            (k, 4),
            (v, 4),
            (table, 2),
            (sequences, 1),
            (positions, 1),
        ];
        if let Some((t, rank)) = ranks.iter().find(|(t, rank)| t.rank() != *rank) {
            return Err(format!("{t} should have {rank} axes"));
        }
        let floats = match scales {
            [] => vec![q, k, v],
            _ => [&[q], scales].concat(),
        };
        if let Some(t) = floats.iter().find(|t| !t.dtype.is_float()) {
            return Err(format!("{t} should be of floats"));
        }
        check_scales([k, v], scales)?;
        if let Some(t) = [table, sequences, positions]
            .iter()
            .find(|t| t.dtype != DType::I64)
        {
            return Err(format!("{t} should be of i64"));
        }
        let equal = [
            (k, 0, v, 0),
            (k, 1, v, 1),
            (k, 2, v, 2),
            (q, 2, k, 3),
            (sequences, 0, q, 0),
            (positions, 0, q, 0),
        ];
        for (a, i, b, j) in equal {
            if !crate::ops::may_equal(&a.dims[i], &b.dims[j]) {
                return Err(format!("axis {i} of {a} and axis {j} of {b} differ"));
            }
        }
        if let (Some(heads), Some(kv_heads)) = (q.dims[1].as_const(), k.dims[1].as_const())
            && (kv_heads <= 0 || heads % kv_heads != 0)
        {
            return Err(format!(
                "{heads} heads are no multiple of {kv_heads} key heads"
            ));
        }
        let dims = [q.dims[0].clone(), q.dims[1].clone(), v.dims[3].clone()];
        Ok(TensorType::new(q.dtype, dims))
    }
}

/// Whether scales are those of keys and values in 8 bits.
fn check_scales(stored: [&TensorType; 2], scales: &[&TensorType]) -> Result<(), String> {
    if scales.is_empty() {
        return Ok(());
    }
    if scales.len() != 2 {
        return Err("takes scales of keys and of values, or none".into());
    }
    for (x, scales) in stored.into_iter().zip(scales) {
        if x.dtype != DType::I8 {
            return Err(format!("{x} has scales and should be of i8"));
        }
        if scales.rank() != 4 {
            return Err(format!("{scales} should have 4 axes"));
        }
        if let Some(axis) = (0..3).find(|a| !crate::ops::may_equal(&scales.dims[*a], &x.dims[*a])) {
            return Err(format!("axis {axis} of {scales} and of {x} differ"));
        }
        let lens = (scales.dims[3].as_const(), x.dims[3].as_const());
        if let (Some(groups), Some(len)) = lens
            && (groups <= 0 || len % groups != 0)
        {
            return Err(format!("{groups} scales do not divide {len} elements"));
        }
    }
    Ok(())
}

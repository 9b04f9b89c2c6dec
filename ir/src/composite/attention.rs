//! Scaled dot-product attention.

use super::CompositeDef;
use super::gradient::{Rule, sum_to};
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Contract, ReduceKind};
use crate::scalar::Scalar;
use crate::{DType, Dim};

payload! {
    /// Operands `(q: [batch, heads, queries, d], k: [batch, kv_heads, keys, d], v: [batch, kv_heads, keys, dv], mask?)`,
    /// where `heads` is a multiple of `kv_heads`: head `h` uses key head `h / (heads / kv_heads)`. `mask` broadcasts
    /// against `[batch, heads, queries, keys]`: bool (true = attend) or a number that is added to the scores.
    /// `s = cap(scale * q k^T) + mask`, `cap(x) = softcap * tanh(x / softcap)` when softcap is not 0; query `i` sees key
    /// `j` only if `j <= i + keys - queries` when causal. `out = softmax(s) v: [batch, heads, queries, dv]`; a query
    /// that sees no key gives 0.
    Attention {
        /// Factor of the scores.
        scale: f64,
        /// Only keys up to the query's own position, aligned at the end.
        causal: bool,
        /// Soft limit of the scores; 0 for none.
        softcap: f64,
    }
}

impl CompositeDef for Attention {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let [q, k, v, mask @ ..] = operands else {
            return Err(IrError::op(
                "composite.attention",
                "takes q, k, v and perhaps a mask",
            ));
        };
        let (q, k, v) = (*q, *k, *v);
        if [q, k, v].iter().any(|x| g.rank(*x) != 4) {
            return Err(IrError::op("composite.attention", "q, k and v have 4 axes"));
        }
        let (heads, kv_heads) = (g.dim(q, 1), g.dim(k, 1));
        let group = heads.floor_div(&kv_heads);
        let repeat = |g: &mut Graph, x: ValueId| -> Result<ValueId> {
            if group.is(1) {
                return Ok(x);
            }
            let d = g.dims(x);
            let x = g.reshape(
                x,
                &[
                    d[0].clone(),
                    d[1].clone(),
                    Dim::ONE,
                    d[2].clone(),
                    d[3].clone(),
                ],
            )?;
            let x = g.broadcast_to(
                x,
                &[
                    d[0].clone(),
                    d[1].clone(),
                    group.clone(),
                    d[2].clone(),
                    d[3].clone(),
                ],
            )?;
            g.reshape(
                x,
                &[d[0].clone(), heads.clone(), d[2].clone(), d[3].clone()],
            )
        };
        let (k, v) = (repeat(g, k)?, repeat(g, v)?);
        let qw = g.widen(q)?;
        let qw = g.scale(qw, self.scale)?;
        let kw = g.widen(k)?;
        let vw = g.widen(v)?;
        let scores = g.matmul_nt(qw, kw)?;
        let scores = self.capped(g, scores)?;
        let scores = self.masked(g, scores, mask.first().copied())?;
        let p = weights(g, scores)?;
        let out = g.matmul(p, vw)?;
        Ok(vec![g.cast_like(out, q)?])
    }
    /// From scores that are computed again: `p = softmax(s)`, `dv = p^T dy`, `ds = p (dy v^T - sum(dy y))`, `dq = ds k`,
    /// `dk = ds^T q`, all but the softmax in products of the operands' own type. Heads that share keys are rows of one
    /// product.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        results: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let dy = cotangents[0]?;
        self.gradients(g, operands, results[0], dy, wanted)
            .transpose()
    }
}

impl Attention {
    /// Scores under their soft limit.
    fn capped(&self, g: &mut Graph, scores: ValueId) -> Result<ValueId> {
        if self.softcap == 0.0 {
            return Ok(scores);
        }
        let s = g.scale(scores, 1.0 / self.softcap)?;
        let s = g.unary(Scalar::Tanh, s)?;
        g.scale(s, self.softcap)
    }

    /// Scores with -inf where a query does not see a key.
    fn masked(&self, g: &mut Graph, scores: ValueId, mask: Option<ValueId>) -> Result<ValueId> {
        let mut scores = scores;
        let low = g.number_like(f64::NEG_INFINITY, scores)?;
        if let Some(mask) = mask {
            scores = if g.dtype(mask) == DType::Bool {
                g.select(mask, scores, low)?
            } else {
                let mask = g.cast_like(mask, scores)?;
                g.binary(Scalar::Add, scores, mask)?
            };
        }
        if self.causal {
            let dims = g.dims(scores);
            let (queries, keys) = (dims[2].clone(), dims[3].clone());
            let plane = [queries.clone(), keys.clone()];
            let i = g.iota(DType::I64, &plane, 0)?;
            let j = g.iota(DType::I64, &plane, 1)?;
            let offset = g.dim_value(&(keys - queries))?;
            let last = g.binary(Scalar::Add, i, offset)?;
            let seen = g.binary(Scalar::Le, j, last)?;
            scores = g.select(seen, scores, low)?;
        }
        Ok(scores)
    }

    fn gradients(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        y: ValueId,
        dy: ValueId,
        wanted: &[bool],
    ) -> Result<Option<Vec<Option<ValueId>>>> {
        let [q, k, v, mask @ ..] = operands else {
            return Ok(None);
        };
        let (q, k, v, mask) = (*q, *k, *v, mask.first().copied());
        let heads = Heads::of(g, q, k);
        let wide = g.accumulator(g.dtype(q));
        let raw = heads.product(g, q, k, Sum::Features, wide)?;
        let raw = g.scale(raw, self.scale)?;
        let capped = self.capped(g, raw)?;
        let scores = self.masked(g, capped, mask)?;
        let p = weights(g, scores)?;
        let dp = heads.product(g, dy, v, Sum::Features, wide)?;
        let own = {
            let (y, dy) = (g.cast(y, wide)?, g.cast(dy, wide)?);
            let part = g.binary(Scalar::Mul, y, dy)?;
            g.reduce_keep(ReduceKind::Sum, part, &[3])?
        };
        let centred = g.binary(Scalar::Sub, dp, own)?;
        let ds = g.binary(Scalar::Mul, p, centred)?;
        let mut grads = vec![None; operands.len()];
        if let (Some(mask), Some(true)) = (mask, wanted.get(3)) {
            let dims = g.dims(mask);
            let Some(sum) = sum_to(g, ds, &dims)? else {
                return Ok(None);
            };
            grads[3] = Some(g.cast_like(sum, mask)?);
        }
        let mut ds = ds;
        if self.softcap != 0.0 {
            let share = g.scale(capped, 1.0 / self.softcap)?;
            let share = g.binary(Scalar::Mul, share, share)?;
            let one = g.number_like(1.0, share)?;
            let slope = g.binary(Scalar::Sub, one, share)?;
            ds = g.binary(Scalar::Mul, ds, slope)?;
        }
        let ds = g.scale(ds, self.scale)?;
        let (ds, p) = (g.cast_like(ds, q)?, g.cast_like(p, q)?);
        if wanted[0] {
            grads[0] = Some(heads.product(g, ds, k, Sum::Keys, g.dtype(q))?);
        }
        if wanted[1] {
            grads[1] = Some(heads.product(g, ds, q, Sum::Queries, g.dtype(k))?);
        }
        if wanted[2] {
            grads[2] = Some(heads.product(g, p, dy, Sum::Queries, g.dtype(v))?);
        }
        Ok(Some(grads))
    }
}

/// Softmax over the keys; 0 for a query that sees none.
fn weights(g: &mut Graph, scores: ValueId) -> Result<ValueId> {
    let low = g.number_like(f64::NEG_INFINITY, scores)?;
    let max = g.reduce_keep(ReduceKind::Max, scores, &[3])?;
    // A row without any key has maximum -inf; 0 keeps exp(-inf - 0) = 0 there.
    let none = g.binary(Scalar::Eq, max, low)?;
    let zero = g.number_like(0.0, max)?;
    let max = g.select(none, zero, max)?;
    let shifted = g.binary(Scalar::Sub, scores, max)?;
    let e = g.unary(Scalar::Exp, shifted)?;
    let sum = g.reduce_keep(ReduceKind::Sum, e, &[3])?;
    let one = g.number_like(1.0, sum)?;
    let sum = g.select(none, one, sum)?;
    g.binary(Scalar::Div, e, sum)
}

/// What a product of the gradient sums over.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    /// `[queries, d] x [keys, d]` to `[queries, keys]`.
    Features,
    /// `[queries, keys] x [keys, d]` to `[queries, d]`.
    Keys,
    /// `[queries, keys] x [queries, d]` to `[keys, d]`, over all heads that share the keys.
    Queries,
}

/// Heads, and how many share keys.
struct Heads {
    heads: Dim,
    kv_heads: Dim,
    group: Dim,
}

impl Heads {
    fn of(g: &Graph, q: ValueId, k: ValueId) -> Heads {
        let (heads, kv_heads) = (g.dim(q, 1), g.dim(k, 1));
        let group = heads.floor_div(&kv_heads);
        Heads {
            heads,
            kv_heads,
            group,
        }
    }

    /// `[batch, heads, rows, cols]` as `[batch, kv_heads, group, rows, cols]`.
    fn split(&self, g: &mut Graph, x: ValueId) -> Result<ValueId> {
        let d = g.dims(x);
        let (kv_heads, group) = (self.kv_heads.clone(), self.group.clone());
        let dims = [d[0].clone(), kv_heads, group, d[2].clone(), d[3].clone()];
        g.reshape(x, &dims)
    }

    /// One of the gradient's products; the left operand has a row for each query of each head, the right one is of keys or,
    /// for sums over queries, of queries. Operands of other floats take the right one's type.
    fn product(
        &self,
        g: &mut Graph,
        l: ValueId,
        r: ValueId,
        sum: Sum,
        out: DType,
    ) -> Result<ValueId> {
        let l = g.cast_like(l, r)?;
        let l = self.split(g, l)?;
        let (r, l_sum, r_sum) = match sum {
            Sum::Features => (r, vec![4], vec![3]),
            Sum::Keys => (r, vec![4], vec![2]),
            Sum::Queries => (self.split(g, r)?, vec![2, 3], vec![2, 3]),
        };
        let contract = Contract {
            lhs_batch: vec![0, 1],
            rhs_batch: vec![0, 1],
            lhs_contract: l_sum,
            rhs_contract: r_sum,
            accum: g.accumulator(g.dtype(r)),
            out,
        };
        let y = g.one(contract, &[l, r])?;
        if sum == Sum::Queries {
            return Ok(y);
        }
        let d = g.dims(y);
        let dims = [d[0].clone(), self.heads.clone(), d[3].clone(), d[4].clone()];
        g.reshape(y, &dims)
    }
}

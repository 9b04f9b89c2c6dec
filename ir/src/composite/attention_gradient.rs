//! The gradient of scaled dot-product attention.

use super::attention::weights;
use super::gradient::sum_to;
use super::{Attention, CompositeDef};
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Contract, ReduceKind};
use crate::scalar::Scalar;
use crate::{DType, Dim};

payload! {
    /// Operands `(q, k, v, y, dy, mask?)`: those of an [`Attention`] with the same attributes, its result
    /// `y: [batch, heads, queries, dv]` and the cotangent `dy` of that. The results are the cotangents of q, k and v, each of
    /// its operand's type and extents.
    /// `p = softmax(s)`, `dv = p^T dy`, `ds = p (dy v^T - sum(dy y))` times the slope of the soft limit and the scale,
    /// `dq = ds k`, `dk = ds^T q`; sums over the heads that share keys. A query that sees no key adds nothing.
    AttentionGradient {
        /// Factor of the scores.
        scale: f64,
        /// Only keys up to the query's own position, aligned at the end.
        causal: bool,
        /// Soft limit of the scores; 0 for none.
        softcap: f64,
    }
}

impl AttentionGradient {
    /// The attention that it is the gradient of.
    pub fn attention(&self) -> Attention {
        Attention {
            scale: self.scale,
            causal: self.causal,
            softcap: self.softcap,
        }
    }
}

impl CompositeDef for AttentionGradient {
    fn arity(&self) -> std::ops::RangeInclusive<usize> {
        5..=6
    }

    fn decompose(&self, g: &mut Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let refuse = |what: String| IrError::op("composite.attention_gradient", what);
        let [q, k, v, y, dy, mask @ ..] = operands else {
            return Err(refuse("takes q, k, v, y, dy and perhaps a mask".into()));
        };
        if [q, k, v, y, dy].iter().any(|x| g.rank(**x) != 4) {
            return Err(refuse("q, k, v, y and dy have 4 axes".into()));
        }
        if g.dims(*y) != g.dims(*dy) {
            let (y, dy) = (g.ty(*y), g.ty(*dy));
            return Err(refuse(format!("y {y} and its cotangent {dy} differ")));
        }
        let known = Known {
            q: *q,
            k: *k,
            v: *v,
            y: *y,
            dy: *dy,
            mask: mask.first().copied(),
        };
        let grads = self.attention().gradients(g, &known, &[true; 3])?;
        let grads: Option<Vec<ValueId>> = grads.into_iter().flatten().take(3).collect();
        grads.ok_or_else(|| refuse("has no gradient".into()))
    }
}

/// What gradients are made of.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub q: ValueId,
    pub k: ValueId,
    pub v: ValueId,
    /// The result.
    pub y: ValueId,
    /// Its cotangent.
    pub dy: ValueId,
    pub mask: Option<ValueId>,
}

impl Known {
    /// In the order of [`AttentionGradient`].
    pub fn operands(&self) -> Vec<ValueId> {
        let five = [self.q, self.k, self.v, self.y, self.dy];
        five.into_iter().chain(self.mask).collect()
    }
}

impl Attention {
    /// From scores that are computed again: `p = softmax(s)`, `dv = p^T dy`, `ds = p (dy v^T - sum(dy y))`, `dq = ds k`,
    /// `dk = ds^T q`, all but the softmax in products of the operands' own type. Heads that share keys are rows of one
    /// product. One for each of q, k, v and the mask that is wanted; `None` where the mask's cannot be told.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        known: &Known,
        wanted: &[bool],
    ) -> Result<Option<Vec<Option<ValueId>>>> {
        let Known {
            q,
            k,
            v,
            y,
            dy,
            mask,
        } = *known;
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
        let mut grads = vec![None; 3 + usize::from(mask.is_some())];
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

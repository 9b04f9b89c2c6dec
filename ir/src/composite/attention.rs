//! Scaled dot-product attention.

use super::CompositeDef;
use super::attention_gradient::{AttentionGradient, Known};
use super::gradient::Rule;
use crate::attr::payload;
use crate::error::{IrError, Result};
use crate::graph::{Graph, ValueId};
use crate::ops::{Op, ReduceKind};
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

    /// By [`AttentionGradient`]; where only some of the gradients are wanted, or that of the mask, by what that is made of.
    fn vjp(
        &self,
        g: &mut Graph,
        operands: &[ValueId],
        results: &[ValueId],
        cotangents: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Rule {
        let dy = cotangents[0]?;
        let [q, k, v, mask @ ..] = operands else {
            return None;
        };
        let known = Known {
            q: *q,
            k: *k,
            v: *v,
            y: results[0],
            dy,
            mask: mask.first().copied(),
        };
        if wanted == [true; 3] || wanted == [true, true, true, false] {
            let gradient = AttentionGradient {
                scale: self.scale,
                causal: self.causal,
                softcap: self.softcap,
            };
            let all = known.operands();
            let grads = g.push(Op::Composite(gradient.into()), &all);
            return Some(grads.map(|grads| {
                let mut grads: Vec<Option<ValueId>> = grads.into_iter().map(Some).collect();
                grads.resize(operands.len(), None);
                grads
            }));
        }
        self.gradients(g, &known, wanted).transpose()
    }
}

impl Attention {
    /// Scores under their soft limit.
    pub(super) fn capped(&self, g: &mut Graph, scores: ValueId) -> Result<ValueId> {
        if self.softcap == 0.0 {
            return Ok(scores);
        }
        let s = g.scale(scores, 1.0 / self.softcap)?;
        let s = g.unary(Scalar::Tanh, s)?;
        g.scale(s, self.softcap)
    }

    /// Scores with -inf where a query does not see a key.
    pub(super) fn masked(
        &self,
        g: &mut Graph,
        scores: ValueId,
        mask: Option<ValueId>,
    ) -> Result<ValueId> {
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
}

/// Softmax over the keys; 0 for a query that sees none.
pub(super) fn weights(g: &mut Graph, scores: ValueId) -> Result<ValueId> {
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

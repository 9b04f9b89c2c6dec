//! Attention and what models put around it: rotary positions, linear attention, causal convolution.

use cupola_ir::composite::Attention;
use cupola_ir::ops::{ReduceKind, Scan};
use cupola_ir::{DType, Dim, Graph, Scalar, TensorType, ValueId};

use super::indexed::take;
use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[
    op("Attention", 23, attention),
    op("RotaryEmbedding", 23, rotary_embedding),
    op("LinearAttention", 1, linear_attention),
    op_in("com.microsoft", "RotaryEmbedding", 1, rotary_embedding_ms),
];

/// `[batch, seq, heads * d]` as `[batch, heads, seq, d]`.
pub(super) fn split_heads(g: &mut Graph, x: ValueId, heads: i64) -> OpResult<ValueId> {
    let d = g.dims(x);
    if d.len() != 3 || heads <= 0 {
        return invalid(format!("{} with {heads} heads", g.ty(x)));
    }
    let inner = d[2].floor_div(&Dim::Const(heads));
    let x = g.reshape(x, &[d[0].clone(), d[1].clone(), Dim::Const(heads), inner])?;
    Ok(g.permute(x, &[0, 2, 1, 3])?)
}

/// `[batch, heads, seq, d]` as `[batch, seq, heads * d]`.
pub(super) fn merge_heads(g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
    let d = g.dims(x);
    let x = g.permute(x, &[0, 2, 1, 3])?;
    let inner = d[1].clone() * d[3].clone();
    Ok(g.reshape(x, &[d[0].clone(), d[2].clone(), inner])?)
}

/// Which keys a query may see, collected from several rules.
#[derive(Default)]
struct Mask {
    /// Bool tensors: true where allowed.
    allowed: Vec<ValueId>,
    /// Numbers added to the scores.
    added: Option<ValueId>,
}

impl Mask {
    /// One operand for the attention composite.
    fn merge(self, g: &mut Graph, like: ValueId) -> OpResult<Option<ValueId>> {
        let mut allowed = None;
        for a in self.allowed {
            allowed = Some(match allowed {
                None => a,
                Some(b) => g.binary(Scalar::And, b, a)?,
            });
        }
        Ok(match (allowed, self.added) {
            (None, added) => added,
            (allowed, None) => allowed,
            (Some(a), Some(n)) => {
                let low = g.number_like(f64::NEG_INFINITY, n)?;
                let merged = g.select(a, n, low)?;
                Some(g.cast_like(merged, like)?)
            }
        })
    }
}

/// Positions of queries and keys: `i + offset` of shape `[.., queries, 1]` and `j` of shape `[1, keys]`, i64.
fn positions(
    g: &mut Graph,
    queries: &Dim,
    keys: &Dim,
    offset: ValueId,
) -> OpResult<(ValueId, ValueId)> {
    let i = g.iota(DType::I64, &[queries.clone(), Dim::ONE], 0)?;
    let j = g.iota(DType::I64, &[Dim::ONE, keys.clone()], 1)?;
    Ok((g.binary(Scalar::Add, i, offset)?, j))
}

fn attention(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let flat = cx.g.rank(cx.input(0)?) == 3;
    let (mut q, mut k, mut v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    if flat {
        let q_heads = cx.required_int("q_num_heads")?;
        let kv_heads = cx.required_int("kv_num_heads")?;
        q = split_heads(cx.g, q, q_heads)?;
        k = split_heads(cx.g, k, kv_heads)?;
        v = split_heads(cx.g, v, kv_heads)?;
    }
    if cx.g.rank(q) != 4 || cx.g.rank(k) != 4 || cx.g.rank(v) != 4 {
        return invalid("query, key and value must have 3 or 4 axes");
    }
    let past = cx.optional(4).zip(cx.optional(5));
    if past.is_some_and(|(k, v)| cx.g.rank(k) != 4 || cx.g.rank(v) != 4) {
        return invalid("past key and value must have 4 axes");
    }
    if cx.optional(6).is_some_and(|n| cx.g.rank(n) != 1) {
        return invalid("nonpad_kv_seqlen must have 1 axis");
    }
    let past_len = past.map_or(Dim::ZERO, |(p, _)| cx.g.dim(p, 2));
    if let Some((pk, pv)) = past {
        k = cx.g.concat(&[pk, k], 2)?;
        v = cx.g.concat(&[pv, v], 2)?;
    }
    let (queries, keys) = (cx.g.dim(q, 2), cx.g.dim(k, 2));
    let used = cx.optional(6);
    let mut causal = cx.flag("is_causal", false)?;
    let mut mask = Mask::default();
    if let Some(m) = cx.optional(3) {
        let m = pad_mask(cx, m, &keys)?;
        match cx.g.dtype(m) {
            DType::Bool => mask.allowed.push(m),
            _ => mask.added = Some(m),
        }
    }
    let left = cx.int_or("left_window_size", -1)?;
    let right = cx.int_or("right_window_size", -1)?;
    // The composite aligns the last query with the last key, which is the same when the counts agree.
    let aligned = used.is_none() && (keys.clone() - queries.clone()) == past_len;
    if (causal && !aligned) || left >= 0 || right >= 0 {
        let offset = match (used, past) {
            (Some(n), None) => {
                let n = cx.g.cast(n, DType::I64)?;
                let batch = cx.g.dim(n, 0);
                let n = cx.g.reshape(n, &[batch, Dim::ONE, Dim::ONE, Dim::ONE])?;
                let len = cx.g.dim_value(&queries)?;
                cx.g.binary(Scalar::Sub, n, len)?
            }
            _ => cx.g.dim_value(&past_len)?,
        };
        let (i, j) = positions(cx.g, &queries, &keys, offset)?;
        if causal && !aligned {
            mask.allowed.push(cx.g.binary(Scalar::Le, j, i)?);
            causal = false;
        }
        for (size, negate) in [(left, false), (right, true)] {
            if size >= 0 {
                let distance = if negate {
                    cx.g.binary(Scalar::Sub, j, i)?
                } else {
                    cx.g.binary(Scalar::Sub, i, j)?
                };
                let most = cx.g.number(size as f64, DType::I64)?;
                mask.allowed.push(cx.g.binary(Scalar::Le, distance, most)?);
            }
        }
    }
    if let Some(n) = used {
        let n = cx.g.cast(n, DType::I64)?;
        let batch = cx.g.dim(n, 0);
        let n = cx.g.reshape(n, &[batch, Dim::ONE, Dim::ONE, Dim::ONE])?;
        let j = cx.g.iota(DType::I64, &[Dim::ONE, keys.clone()], 1)?;
        mask.allowed.push(cx.g.binary(Scalar::Lt, j, n)?);
    }
    let head = cx.const_extent(q, 3)?;
    let scale = cx.float_or("scale", 1.0 / (head as f64).sqrt())?;
    let softcap = cx.float_or("softcap", 0.0)?;
    let scores = match cx.wants(3) {
        true => Some(scores(cx, [q, k], scale, softcap, &mask, causal)?),
        false => None,
    };
    let mask = mask.merge(cx.g, q)?;
    let operands: Vec<ValueId> = [q, k, v].into_iter().chain(mask).collect();
    let composite = Attention {
        scale,
        causal,
        softcap,
    };
    let mut y =
        cx.g.one(cupola_ir::Op::Composite(composite.into()), &operands)?;
    if flat {
        y = merge_heads(cx.g, y)?;
    }
    let mut out = vec![y, k, v];
    out.extend(scores);
    Ok(out)
}

/// A mask that covers fewer keys than there are forbids the rest.
fn pad_mask(cx: &mut NodeCx<'_, '_>, m: ValueId, keys: &Dim) -> OpResult<ValueId> {
    let dims = cx.g.dims(m);
    let Some(last) = dims.last() else {
        return Ok(m);
    };
    let missing = keys.clone() - last.clone();
    if missing.is(0) || last.is(1) && !keys.is(1) && missing.as_const().is_none() {
        return Ok(m);
    }
    let missing = cx.at_least_zero(&missing);
    let mut high = vec![Dim::ZERO; dims.len()];
    high[dims.len() - 1] = missing;
    let low = vec![Dim::ZERO; dims.len()];
    let value = match cx.g.dtype(m) {
        DType::Bool => cx.g.number(0.0, DType::Bool)?,
        _ => cx.g.number_like(f64::NEG_INFINITY, m)?,
    };
    Ok(cx.g.pad(m, value, &low, &high)?)
}

/// The scores that the node gives beside its result: 0 the product, 1 after the soft cap, 2 with the mask, 3 after the
/// softmax.
fn scores(
    cx: &mut NodeCx<'_, '_>,
    [q, k]: [ValueId; 2],
    scale: f64,
    softcap: f64,
    mask: &Mask,
    causal: bool,
) -> OpResult<ValueId> {
    let mode = cx.int_or("qk_matmul_output_mode", 0)?;
    let like = q;
    let d = cx.g.dims(k);
    let heads = cx.g.dim(q, 1);
    let group = heads.floor_div(&d[1]);
    let k = if group.is(1) {
        k
    } else {
        let x = cx.g.unsqueeze(k, &[2])?;
        let wide = [
            d[0].clone(),
            d[1].clone(),
            group,
            d[2].clone(),
            d[3].clone(),
        ];
        let x = cx.g.broadcast_to(x, &wide)?;
        cx.g.reshape(x, &[d[0].clone(), heads, d[2].clone(), d[3].clone()])?
    };
    let (q, k) = (cx.g.widen(q)?, cx.g.widen(k)?);
    let q = cx.g.scale(q, scale)?;
    let mut s = cx.g.matmul_nt(q, k)?;
    if mode >= 1 && softcap > 0.0 {
        let x = cx.g.scale(s, 1.0 / softcap)?;
        let x = cx.g.unary(Scalar::Tanh, x)?;
        s = cx.g.scale(x, softcap)?;
    }
    if mode >= 2 {
        let low = cx.g.number_like(f64::NEG_INFINITY, s)?;
        if let Some(added) = mask.added {
            let added = cx.g.cast_like(added, s)?;
            s = cx.g.binary(Scalar::Add, s, added)?;
        }
        let mut allowed = mask.allowed.clone();
        if causal {
            let d = cx.g.dims(s);
            let offset = cx.g.dim_value(&(d[3].clone() - d[2].clone()))?;
            let (i, j) = positions(cx.g, &d[2], &d[3], offset)?;
            allowed.push(cx.g.binary(Scalar::Le, j, i)?);
        }
        for a in allowed {
            s = cx.g.select(a, s, low)?;
        }
        if mode == 3 {
            let max = cx.g.reduce_keep(ReduceKind::Max, s, &[3])?;
            let none = cx.g.binary(Scalar::Eq, max, low)?;
            let zero = cx.g.number_like(0.0, s)?;
            let one = cx.g.number_like(1.0, s)?;
            let max = cx.g.select(none, zero, max)?;
            let e = cx.g.binary(Scalar::Sub, s, max)?;
            let e = cx.g.unary(Scalar::Exp, e)?;
            let sum = cx.g.reduce_keep(ReduceKind::Sum, e, &[3])?;
            let sum = cx.g.select(none, one, sum)?;
            s = cx.g.binary(Scalar::Div, e, sum)?;
        }
    }
    Ok(cx.g.cast_like(s, like)?)
}

fn rotary_embedding(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, cos, sin) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let ids = cx.optional(3);
    rotate(cx, x, cos, sin, ids)
}

/// The contrib form has the positions second; a single number is the first position of every row.
fn rotary_embedding_ms(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, ids, cos, sin) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.input(3)?);
    if cx.g.rank(x) < 3 {
        return invalid("the input must have 3 or 4 axes");
    }
    let seq_axis = cx.g.rank(x) - 2;
    let (batch, seq) = (cx.g.dim(x, 0), cx.g.dim(x, seq_axis));
    let ids = if cx.g.rank(ids) == 1 {
        let i = cx.g.iota(DType::I64, &[batch, seq], 1)?;
        let first = cx.g.cast(ids, DType::I64)?;
        cx.g.binary(Scalar::Add, i, first)?
    } else {
        ids
    };
    rotate(cx, x, cos, sin, Some(ids))
}

fn rotate(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    ids: Option<ValueId>,
) -> OpResult {
    let flat = cx.g.rank(x) == 3;
    if !flat && cx.g.rank(x) != 4 || cx.g.rank(cos) == 0 || cx.g.rank(sin) == 0 {
        return invalid("the input must have 3 or 4 axes and the caches one at least");
    }
    let original = x;
    // Work on [batch, heads, seq, d].
    let x = if flat {
        let mut heads = cx.int_or("num_heads", 0)?;
        if heads == 0 {
            // The contrib form may leave it to the width of the cache.
            let hidden = cx.const_extent(x, 2)? as i64;
            let half = cx.const_extent(cos, cx.g.rank(cos) - 1)? as i64;
            heads = hidden / (2 * half).max(1);
        }
        split_heads(cx.g, x, heads)?
    } else {
        x
    };
    let d = cx.const_extent(x, 3)?;
    let rotated = match cx.int_or("rotary_embedding_dim", 0)? {
        0 => d,
        n if n > 0 && n as usize <= d && n % 2 == 0 => n as usize,
        n => return invalid(format!("rotary_embedding_dim {n} of {d}")),
    };
    let interleaved = cx.flag("interleaved", false)?;
    let mut y = turn(cx.g, x, [cos, sin], ids, (rotated, interleaved))?;
    if flat {
        let dims = cx.g.dims(original);
        y = merge_heads(cx.g, y)?;
        y = cx.g.reshape(y, &dims)?;
    }
    Ok(vec![y])
}

/// The first `rotated` elements of each head of `x: [batch, heads, seq, d]` turned, as pairs of neighbours when
/// interleaved and of halves otherwise, by the rows of the caches that `ids: [batch, seq]` name (all rows in order
/// without).
pub(super) fn turn(
    g: &mut Graph,
    x: ValueId,
    caches: [ValueId; 2],
    ids: Option<ValueId>,
    (rotated, interleaved): (usize, bool),
) -> OpResult<ValueId> {
    let mut picked = vec![];
    for cache in caches {
        let cache = match ids {
            Some(ids) => {
                let ids = g.cast(ids, DType::I64)?;
                take(g, cache, 0, ids)?
            }
            None => cache,
        };
        picked.push(g.unsqueeze(cache, &[1])?);
    }
    let (cos, sin) = (picked[0], picked[1]);
    let half = Dim::from(rotated / 2);
    let front = g.slice_axis(x, 3, &Dim::ZERO, &Dim::from(rotated))?;
    let (x1, x2) = if interleaved {
        let dims = g.dims(front);
        let pairs = [&dims[..3], &[half.clone(), Dim::from(2usize)]].concat();
        let pairs = g.reshape(front, &pairs)?;
        (g.pick(pairs, 4, &Dim::ZERO)?, g.pick(pairs, 4, &Dim::ONE)?)
    } else {
        let x1 = g.slice_axis(front, 3, &Dim::ZERO, &half)?;
        (x1, g.slice_axis(front, 3, &half, &half)?)
    };
    let (a, b) = (
        g.binary(Scalar::Mul, cos, x1)?,
        g.binary(Scalar::Mul, sin, x2)?,
    );
    let real = g.binary(Scalar::Sub, a, b)?;
    let (a, b) = (
        g.binary(Scalar::Mul, sin, x1)?,
        g.binary(Scalar::Mul, cos, x2)?,
    );
    let imag = g.binary(Scalar::Add, a, b)?;
    let turned = if interleaved {
        let (real, imag) = (g.unsqueeze(real, &[4])?, g.unsqueeze(imag, &[4])?);
        let pairs = g.concat(&[real, imag], 4)?;
        let dims = g.dims(front);
        g.reshape(pairs, &dims)?
    } else {
        g.concat(&[real, imag], 3)?
    };
    let rest = g.dim(x, 3) - Dim::from(rotated);
    if rest.is(0) {
        return Ok(turned);
    }
    let rest = g.slice_axis(x, 3, &Dim::from(rotated), &rest)?;
    Ok(g.concat(&[turned, rest], 3)?)
}

/// The recurrence `S = exp(decay) * S + k (beta * (v - S^T k))^T`, `o = scale * S^T q`, step by step along time.
fn linear_attention(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (q_heads, kv_heads) = (
        cx.required_int("q_num_heads")?,
        cx.required_int("kv_num_heads")?,
    );
    if q_heads <= 0 || kv_heads <= 0 || q_heads % kv_heads != 0 {
        return invalid(format!("{q_heads} query heads over {kv_heads} key heads"));
    }
    let rule = cx.text_or("update_rule", "gated_delta")?;
    let (gated, delta) = match rule.as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return invalid(format!("update_rule '{other}'")),
    };
    if gated != cx.optional(4).is_some() || delta != cx.optional(5).is_some() {
        return invalid(format!(
            "update_rule '{rule}' does not go with the operands given"
        ));
    }
    let like = q;
    // [time, batch, heads, d], f32.
    let steps = |cx: &mut NodeCx<'_, '_>, x: ValueId, heads: i64| -> OpResult<ValueId> {
        let x = split_heads(cx.g, x, heads)?;
        let x = cx.g.permute(x, &[2, 0, 1, 3])?;
        Ok(cx.g.cast(x, DType::F32)?)
    };
    let (qs, ks, vs) = (
        steps(cx, q, q_heads)?,
        steps(cx, k, kv_heads)?,
        steps(cx, v, kv_heads)?,
    );
    let mut scanned = vec![qs, ks, vs];
    if let Some(decay) = cx.optional(4) {
        scanned.push(steps(cx, decay, kv_heads)?);
    }
    if let Some(beta) = cx.optional(5) {
        if cx.g.rank(beta) != 3 {
            return invalid("beta must have 3 axes");
        }
        let heads = if cx.g.dim(beta, 2).is(1) { 1 } else { kv_heads };
        scanned.push(steps(cx, beta, heads)?);
    }
    let (kd, vd) = (cx.g.dims(ks), cx.g.dims(vs));
    let state_dims = [kd[1].clone(), kd[2].clone(), kd[3].clone(), vd[3].clone()];
    let (state, state_like) = match cx.optional(3) {
        Some(s) => (cx.g.cast(s, DType::F32)?, s),
        None => {
            let zero = cx.g.number(0.0, DType::F32)?;
            (cx.g.broadcast_to(zero, &state_dims)?, like)
        }
    };
    let width = cx.const_extent(ks, 3)?;
    let scale = match cx.float_or("scale", 0.0)? {
        0.0 => 1.0 / (width as f64).sqrt(),
        s => s,
    };
    let body = linear_attention_step(
        cx.g,
        &scanned,
        state,
        (gated, delta),
        (q_heads / kv_heads, scale),
    )?;
    let time = cx.g.dim(qs, 0);
    let read = [kd[1].clone(), Dim::Const(q_heads), vd[3].clone()];
    let results = vec![
        TensorType::new(DType::F32, state_dims).into(),
        TensorType::new(DType::F32, [&[time], &read[..]].concat()).into(),
    ];
    let scan = Scan {
        body,
        carried: 1,
        scanned: scanned.len(),
        results,
        binds: vec![],
    };
    let operands: Vec<ValueId> = std::iter::once(state).chain(scanned).collect();
    let out = cx.g.push(scan, &operands)?;
    let y = cx.g.permute(out[1], &[1, 2, 0, 3])?;
    let y = merge_heads(cx.g, y)?;
    Ok(vec![
        cx.g.cast_like(y, like)?,
        cx.g.cast_like(out[0], state_like)?,
    ])
}

fn linear_attention_step(
    g: &mut Graph,
    scanned: &[ValueId],
    state: ValueId,
    (gated, delta): (bool, bool),
    (group, scale): (i64, f64),
) -> OpResult<Graph> {
    let mut b = Graph::new("linear_attention_step");
    let mut s = b.input("state", g.ty(state).clone())?;
    let mut ins = vec![];
    for (i, x) in scanned.iter().enumerate() {
        let t = TensorType::new(DType::F32, g.dims(*x)[1..].to_vec());
        ins.push(b.input(&format!("x{i}"), t)?);
    }
    let (q, k, mut v) = (ins[0], ins[1], ins[2]);
    let mut rest = ins[3..].iter().copied();
    let column = b.unsqueeze(k, &[3])?;
    if gated && let Some(decay) = rest.next() {
        let e = b.unary(Scalar::Exp, decay)?;
        let e = b.unsqueeze(e, &[3])?;
        s = b.binary(Scalar::Mul, s, e)?;
    }
    if delta && let Some(beta) = rest.next() {
        let held = b.binary(Scalar::Mul, s, column)?;
        let held = b.reduce(ReduceKind::Sum, held, &[2])?;
        let miss = b.binary(Scalar::Sub, v, held)?;
        v = b.binary(Scalar::Mul, beta, miss)?;
    }
    let row = b.unsqueeze(v, &[2])?;
    let outer = b.binary(Scalar::Mul, column, row)?;
    s = b.binary(Scalar::Add, s, outer)?;
    // Query heads [batch, kv_heads, group, d] read the state of their key head.
    let qd = b.dims(q);
    let heads = qd[1].floor_div(&Dim::Const(group));
    let q = b.reshape(q, &[qd[0].clone(), heads, Dim::Const(group), qd[2].clone()])?;
    let q = b.unsqueeze(q, &[4])?;
    let wide = b.unsqueeze(s, &[2])?;
    let o = b.binary(Scalar::Mul, q, wide)?;
    let o = b.reduce(ReduceKind::Sum, o, &[3])?;
    let od = b.dims(o);
    let o = b.reshape(o, &[od[0].clone(), qd[1].clone(), od[3].clone()])?;
    let o = b.scale(o, scale)?;
    b.output("state", s);
    b.output("out", o);
    Ok(b)
}

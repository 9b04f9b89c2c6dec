//! Fused attention: projections or packed operands are taken apart, masks become one operand, the rest is the
//! attention composite.
//!
//! Padding lowers scores by `mask_filter_value` here, it does not forbid keys: a row of padding only is an average.

use cupola_ir::composite;
use cupola_ir::{DType, Dim, Graph, Op, Scalar, ValueId};

use super::ms;
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid, unsupported};
use crate::ops::OpRow;
use crate::ops::attention::{merge_heads, split_heads, turn};
use crate::ops::indexed::write_rows;
use crate::ops::math::Math;
use crate::ops::matmul::product;
use crate::ops::quantize::scaled_product;

pub(in crate::ops) const OPS: &[OpRow] = &[
    ms("Attention", attention),
    ms("QAttention", quantised_attention),
    ms("MultiHeadAttention", multi_head),
    ms("GroupQueryAttention", group_query),
];

/// What scores are compared and combined with besides `q`, `k` and `v`.
#[derive(Default)]
struct Extras {
    /// Added to the scores.
    bias: Option<ValueId>,
    /// Bool: keys that a query may see; where false, `filter` is added.
    seen: Option<ValueId>,
    causal: bool,
    softcap: f64,
}

impl Extras {
    /// One operand for the composite.
    fn mask(&self, g: &mut Graph, q: ValueId, filter: f64) -> OpResult<Option<ValueId>> {
        let Some(seen) = self.seen else {
            return Ok(self.bias);
        };
        let mut m = Math { g };
        let dtype = m.g.accumulator(m.g.dtype(q));
        let zero = m.g.number(0.0, dtype)?;
        let padding = m.select(seen, zero, filter)?;
        Ok(Some(match self.bias {
            Some(bias) => {
                let bias = m.g.cast(bias, dtype)?;
                m.add(bias, padding)?
            }
            None => padding,
        }))
    }
}

/// The attention of `q` over `k` and `v`, all `[batch, heads, seq, d]`, with the heads merged again.
fn attend(
    cx: &mut NodeCx<'_, '_>,
    [q, k, v]: [ValueId; 3],
    extras: &Extras,
    filter: f64,
) -> OpResult<ValueId> {
    let width = cx.const_extent(q, 3)?;
    let scale = match cx.float_or("scale", 0.0)? {
        0.0 => 1.0 / (width as f64).sqrt(),
        s => s,
    };
    let mask = extras.mask(cx.g, q, filter)?;
    let op = composite::Attention {
        scale,
        causal: extras.causal,
        softcap: extras.softcap,
    };
    let operands: Vec<ValueId> = [q, k, v].into_iter().chain(mask).collect();
    let y = cx.g.one(Op::Composite(op.into()), &operands)?;
    merge_heads(cx.g, y)
}

/// Which of `total` keys a padding mask lets through, broadcast over `[batch, heads, queries, keys]`: lengths
/// `[batch]`, ends then starts `[2 * batch]`, or numbers that are 0 for padding.
fn padding(cx: &mut NodeCx<'_, '_>, mask: ValueId, q: ValueId, total: &Dim) -> OpResult<ValueId> {
    let dims = cx.g.dims(mask);
    let batch = cx.g.dim(q, 0);
    if let [n] = &dims[..] {
        let both = *n == batch.clone() * Dim::Const(2);
        if *n != batch && !both {
            // Which form it is shows in the extents.
            let open = [(mask, n), (q, &batch)];
            return match open.into_iter().find(|(_, d)| d.as_const().is_none()) {
                Some((v, _)) => Err(OpError::NeedsShape(v)),
                None => unsupported(format!("a mask of type {}", cx.g.ty(mask))),
            };
        }
        let mut m = Math { g: cx.g };
        let mask = m.g.cast(mask, DType::I64)?;
        let key = m.g.iota(DType::I64, std::slice::from_ref(total), 0)?;
        let part = |m: &mut Math<'_>, start: &Dim| -> OpResult<ValueId> {
            let part = m.g.slice_axis(mask, 0, start, &batch)?;
            Ok(m.g.unsqueeze(part, &[1, 2, 3])?)
        };
        let end = part(&mut m, &Dim::ZERO)?;
        let before = m.lt(key, end)?;
        if !both {
            return Ok(before);
        }
        let start = part(&mut m, &batch)?;
        let after = m.le(start, key)?;
        return m.and(before, after);
    }
    let mut m = Math { g: cx.g };
    let padded = m.eq(mask, 0.0)?;
    let seen = m.unary(Scalar::Not, padded)?;
    Ok(match dims.len() {
        2 => m.g.unsqueeze(seen, &[1, 2])?,
        3 => m.g.unsqueeze(seen, &[1])?,
        _ => return unsupported(format!("a mask of type {}", m.g.ty(mask))),
    })
}

/// Keys and values after those of a past `[2, batch, heads, past, d]`.
fn with_past(g: &mut Graph, past: Option<ValueId>, [k, v]: [ValueId; 2]) -> OpResult<[ValueId; 2]> {
    let Some(past) = past else {
        return Ok([k, v]);
    };
    if g.rank(past) != 5 {
        return invalid(format!("a past of type {}", g.ty(past)));
    }
    let old = [g.pick(past, 0, &Dim::ZERO)?, g.pick(past, 0, &Dim::ONE)?];
    Ok([g.concat(&[old[0], k], 2)?, g.concat(&[old[1], v], 2)?])
}

fn attention(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let mut projected = product(cx, x, w)?;
    if let Some(bias) = cx.optional(2) {
        projected = cx.g.binary(Scalar::Add, projected, bias)?;
    }
    self_attention(cx, projected, [3, 4, 5])
}

/// Operands (input, weight, bias, input_scale, weight_scale, mask, input_zero, weight_zero, past): the packed
/// projection in integers.
fn quantised_attention(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, w, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let scales = [cx.input(3)?, cx.input(4)?];
    let zeros = [cx.optional(6), cx.optional(7)];
    let projected = scaled_product(cx, [x, w], scales, zeros, Some(bias))?;
    self_attention(cx, projected, [5, 8, usize::MAX])
}

/// Attention over a packed projection; `operands` are those with the mask, the past and the bias of the scores.
fn self_attention(cx: &mut NodeCx<'_, '_>, projected: ValueId, operands: [usize; 3]) -> OpResult {
    if cx.flag("do_rotary", false)? || cx.flag("past_present_share_buffer", false)? {
        return unsupported("rotary positions or a shared buffer inside the operator");
    }
    let heads = cx.required_int("num_heads")?;
    let [_, _, width] = &cx.g.dims(projected)[..] else {
        return cx.bad_type(projected);
    };
    let widths: Vec<Dim> = match cx.ints_attr("qkv_hidden_sizes")?.filter(|w| !w.is_empty()) {
        Some(w) if w.len() == 3 => w.into_iter().map(Dim::Const).collect(),
        Some(w) => return invalid(format!("qkv_hidden_sizes {w:?}")),
        None => vec![width.floor_div(&Dim::Const(3)); 3],
    };
    let mut start = Dim::ZERO;
    let mut parts = vec![];
    for w in widths {
        let part = cx.g.slice_axis(projected, 2, &start, &w)?;
        parts.push(split_heads(cx.g, part, heads)?);
        start = start + w;
    }
    let [mask, past, bias] = operands.map(|i| cx.optional(i));
    let [k, v] = with_past(cx.g, past, [parts[1], parts[2]])?;
    let q = parts[0];
    let seen = match mask {
        Some(mask) => Some(padding(cx, mask, q, &cx.g.dim(k, 2))?),
        None => None,
    };
    let extras = Extras {
        bias,
        seen,
        causal: cx.flag("unidirectional", false)?,
        softcap: 0.0,
    };
    let filter = cx.float_or("mask_filter_value", -10000.0)?;
    let y = attend(cx, [q, k, v], &extras, filter)?;
    if !cx.wants(1) {
        return Ok(vec![y]);
    }
    let (k, v) = (cx.g.unsqueeze(k, &[0])?, cx.g.unsqueeze(v, &[0])?);
    Ok(vec![y, cx.g.concat(&[k, v], 0)?])
}

/// Query, key and value of `[batch, heads, seq, d]` from separate, packed or cached operands.
fn separate(cx: &mut NodeCx<'_, '_>, heads: i64) -> OpResult<[ValueId; 3]> {
    let q = cx.input(0)?;
    // [batch, seq, heads, count, d] packed.
    let unpack = |g: &mut Graph, x: ValueId, i: usize| -> OpResult<ValueId> {
        let part = g.pick(x, 3, &Dim::from(i))?;
        Ok(g.permute(part, &[0, 2, 1, 3])?)
    };
    if cx.g.rank(q) == 5 {
        return Ok([
            unpack(cx.g, q, 0)?,
            unpack(cx.g, q, 1)?,
            unpack(cx.g, q, 2)?,
        ]);
    }
    let bias = cx.optional(3);
    let mut start = Dim::ZERO;
    let mut part = |cx: &mut NodeCx<'_, '_>, x: ValueId| -> OpResult<ValueId> {
        if cx.g.rank(x) == 4 {
            return Ok(x);
        }
        let mut x = x;
        if let (Some(bias), 3) = (bias, cx.g.rank(x)) {
            let width = cx.g.dim(x, 2);
            let own = cx.g.slice_axis(bias, 0, &start, &width)?;
            start = start.clone() + width;
            x = cx.g.binary(Scalar::Add, x, own)?;
        }
        split_heads(cx.g, x, heads)
    };
    let k = cx.input(1)?;
    let q = part(cx, q)?;
    if cx.g.rank(k) == 5 {
        return Ok([q, unpack(cx.g, k, 0)?, unpack(cx.g, k, 1)?]);
    }
    let k = part(cx, k)?;
    let v = cx.input(2)?;
    Ok([q, k, part(cx, v)?])
}

fn multi_head(cx: &mut NodeCx<'_, '_>) -> OpResult {
    if cx.optional(8).is_some() || cx.optional(9).is_some() || cx.wants(3) {
        return unsupported("a shared buffer, beams, or the scores as a result");
    }
    let heads = cx.required_int("num_heads")?;
    let [q, mut k, mut v] = separate(cx, heads)?;
    if let Some((old_k, old_v)) = cx.optional(6).zip(cx.optional(7)) {
        k = cx.g.concat(&[old_k, k], 2)?;
        v = cx.g.concat(&[old_v, v], 2)?;
    }
    let seen = match cx.optional(4) {
        Some(mask) => Some(padding(cx, mask, q, &cx.g.dim(k, 2))?),
        None => None,
    };
    let extras = Extras {
        bias: cx.optional(5),
        seen,
        causal: cx.flag("unidirectional", false)?,
        softcap: 0.0,
    };
    let filter = cx.float_or("mask_filter_value", -10000.0)?;
    Ok(vec![attend(cx, [q, k, v], &extras, filter)?, k, v])
}

/// Query, key and value for `heads` query heads over `shared` key heads.
fn grouped(cx: &mut NodeCx<'_, '_>, heads: i64, shared: i64) -> OpResult<[ValueId; 3]> {
    let q = cx.input(0)?;
    let (Some(k), Some(v)) = (cx.optional(1), cx.optional(2)) else {
        // All heads side by side, those of the query first.
        let all = split_heads(cx.g, q, heads.saturating_add(shared).saturating_add(shared))?;
        let mut start = Dim::ZERO;
        let mut part = |count: i64| -> OpResult<ValueId> {
            let part = cx.g.slice_axis(all, 1, &start, &Dim::Const(count))?;
            start = start.clone() + Dim::Const(count);
            Ok(part)
        };
        return Ok([part(heads)?, part(shared)?, part(shared)?]);
    };
    Ok([
        split_heads(cx.g, q, heads)?,
        split_heads(cx.g, k, shared)?,
        split_heads(cx.g, v, shared)?,
    ])
}

/// Operands (query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos, sin, position_ids,
/// attention_bias, head_sink). `seqlens_k` holds the number of keys of each batch entry, new ones included, less one;
/// new keys are written into the cache after the old ones.
fn group_query(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let mut quantised = false;
    for name in ["k_quant_type", "v_quant_type"] {
        quantised |= cx.text_or(name, "NONE")? != "NONE";
    }
    let normed = cx.optional(14).is_some() || cx.optional(15).is_some();
    if quantised || normed || cx.flag("sliding_window_cache", false)? || cx.wants(3) {
        return unsupported(
            "a quantised or sliding cache, normalised heads, or scores as a result",
        );
    }
    let (heads, shared) = (
        cx.required_int("num_heads")?,
        cx.required_int("kv_num_heads")?,
    );
    if heads < 1 || shared < 1 || heads % shared != 0 {
        return invalid(format!("{heads} query heads over {shared} key heads"));
    }
    let [mut q, mut k, v] = grouped(cx, heads, shared)?;
    let (queries, batch) = (cx.g.dim(q, 2), cx.g.dim(q, 0));
    let (lens, total) = (cx.input(5)?, cx.input(6)?);
    let total = cx.extent(total, 0)?;
    let mut m = Math { g: cx.g };
    let lens = m.g.cast(lens, DType::I64)?;
    let lens = m.g.reshape(lens, std::slice::from_ref(&batch))?;
    // The first call brings all keys, and entries may be shorter than the longest.
    let count = m.dim(&queries, DType::I64)?;
    let all = m.dim(&total, DType::I64)?;
    let first = m.eq(count, all)?;
    let old = m.sub(lens, count)?;
    let old = m.add(old, 1.0)?;
    let old = m.select(first, 0.0, old)?;
    let old_wide = m.g.unsqueeze(old, &[1])?;
    let place = m.g.iota(DType::I64, std::slice::from_ref(&queries), 0)?;
    let place = m.add(old_wide, place)?;
    if cx.flag("do_rotary", false)? {
        let caches = [cx.input(7)?, cx.input(8)?];
        let ids = cx.optional(9).unwrap_or(place);
        let rotated = 2 * cx.const_extent(caches[0], 1)?;
        if rotated > cx.const_extent(q, 3)? {
            return invalid(format!("caches for {rotated} elements of a head"));
        }
        let style = (rotated, cx.flag("rotary_interleaved", false)?);
        q = turn(cx.g, q, caches, Some(ids), style)?;
        k = turn(cx.g, k, caches, Some(ids), style)?;
    }
    let present_k = cached(cx, 3, k, old, &total)?;
    let present_v = cached(cx, 4, v, old, &total)?;
    let extras = causal_window(cx, place, &cx.g.dim(present_k, 2))?;
    let (keys, values, extras) = sink(cx, [present_k, present_v], extras)?;
    let y = attend(cx, [q, keys, values], &extras, f64::NEG_INFINITY)?;
    Ok(vec![y, present_k, present_v])
}

/// New keys or values written into the cache of an operand, made as long as needed.
fn cached(
    cx: &mut NodeCx<'_, '_>,
    past: usize,
    new: ValueId,
    at: ValueId,
    total: &Dim,
) -> OpResult<ValueId> {
    let zero = cx.g.number_like(0.0, new)?;
    let mut dims = cx.g.dims(new);
    let cache = match cx.optional(past) {
        Some(past) if cx.g.rank(past) != 4 => return cx.bad_type(past),
        Some(past) => {
            let missing = cx.at_least_zero(&(total.clone() - cx.g.dim(past, 2)));
            let none = vec![Dim::ZERO; 4];
            let high = [Dim::ZERO, Dim::ZERO, missing, Dim::ZERO];
            cx.g.pad(past, zero, &none, &high)?
        }
        None => {
            dims[2] = total.clone();
            cx.g.broadcast_to(zero, &dims)?
        }
    };
    write_rows(cx.g, cache, new, Some(at), 2, false)
}

/// Keys up to the place `[batch, queries]` of each query, of which a window may keep the last ones only.
fn causal_window(cx: &mut NodeCx<'_, '_>, place: ValueId, keys: &Dim) -> OpResult<Extras> {
    let window = cx.int_or("local_window_size", -1)?;
    let causal = cx.flag("causal", true)?;
    let bias = cx.optional(10);
    let softcap = cx.float_or("softcap", 0.0)?;
    let lens = cx.input(5)?;
    let mut m = Math { g: cx.g };
    let place = m.g.unsqueeze(place, &[1, 3])?;
    let key = m.g.iota(DType::I64, std::slice::from_ref(keys), 0)?;
    let mut seen = if causal {
        m.le(key, place)?
    } else {
        let last = m.g.cast(lens, DType::I64)?;
        let batch = m.g.dim(place, 0);
        let last = m.g.reshape(last, &[batch, Dim::ONE, Dim::ONE, Dim::ONE])?;
        m.le(key, last)?
    };
    if window > 0 {
        let first = m.sub(place, window as f64)?;
        let near = m.lt(first, key)?;
        seen = m.and(seen, near)?;
    }
    // A bias counts the keys that there are, a cache may have room for more.
    let bias = match bias {
        Some(bias) if m.g.rank(bias) == 4 => {
            let missing = keys.clone() - m.g.dim(bias, 3);
            let zero = m.g.number_like(0.0, bias)?;
            let high = [Dim::ZERO, Dim::ZERO, Dim::ZERO, missing];
            Some(m.g.pad(bias, zero, &vec![Dim::ZERO; 4], &high)?)
        }
        Some(bias) => return cx.bad_type(bias),
        None => None,
    };
    Ok(Extras {
        bias,
        seen: Some(seen),
        causal: false,
        softcap,
    })
}

/// A share of the softmax that goes to no key, as one more key of zeros whose score is the head's sink (0 for a smooth
/// softmax).
fn sink(
    cx: &mut NodeCx<'_, '_>,
    [k, v]: [ValueId; 2],
    extras: Extras,
) -> OpResult<(ValueId, ValueId, Extras)> {
    let heads = cx.required_int("num_heads")?;
    let score = match cx.optional(11) {
        Some(score) => {
            cx.g.reshape(score, &[Dim::ONE, Dim::Const(heads), Dim::ONE, Dim::ONE])?
        }
        None if cx.flag("smooth_softmax", false)? => {
            let zero = cx.g.number_like(0.0, k)?;
            cx.g.reshape(zero, &vec![Dim::ONE; 4])?
        }
        None => return Ok((k, v, extras)),
    };
    let mask = extras.mask(cx.g, k, f64::NEG_INFINITY)?;
    let Some(mask) = mask else {
        unreachable!("bug: a causal mask is always there");
    };
    let score = cx.g.cast_like(score, mask)?;
    let (mut dims, own) = (cx.g.dims(mask), cx.g.dims(score));
    dims[1] = match dims[1].broadcast(&own[1]) {
        Some(d) => d,
        None => return invalid(format!("{} for {heads} heads", cx.g.ty(score))),
    };
    let mask = cx.g.broadcast_to(mask, &dims)?;
    dims[3] = Dim::ONE;
    let score = cx.g.broadcast_to(score, &dims)?;
    let bias = cx.g.concat(&[mask, score], 3)?;
    let zero = cx.g.number_like(0.0, k)?;
    let one = [Dim::ZERO, Dim::ZERO, Dim::ONE, Dim::ZERO];
    let none = vec![Dim::ZERO; 4];
    let (k, v) = (
        cx.g.pad(k, zero, &none, &one)?,
        cx.g.pad(v, zero, &none, &one)?,
    );
    let extras = Extras {
        bias: Some(bias),
        seen: None,
        ..extras
    };
    Ok((k, v, extras))
}

//! Scaled dot-product attention: `softmax(scale * q k^T + mask) v`, from any exporter.
//!
//! The rule starts at the second product and walks down: through the softmax, then through what is done to the scores
//! (mask added or selected, soft cap, scale, conversions, split and merged batch axes) to the first product. Batch axes
//! are brought to `[batch, heads]`; scales on q and k move into the composite; repeated key heads are undone.

use super::Cx;
use super::look::*;
use super::triangle::triangle;
use cupola_ir::composite::{Attention, CompositeOp};
use cupola_ir::ops::*;
use cupola_ir::{CoreOp, DType, Dim, Graph, IrError, NodeId, Op, Scalar, ValueId};

/// A number that stays the same when a score is added; several of them have a finite sum.
const LOST: f64 = -1e37;

/// What was found on the way from the softmax to the first product.
#[derive(Debug)]
struct Scores {
    /// The first product.
    product: ValueId,
    scale: f64,
    softcap: f64,
    masks: Vec<Mask>,
    /// Extents of the batch axes where a mask or the softmax sees them, outermost first.
    batch: Vec<Dim>,
}

#[derive(Clone, Copy, Debug)]
enum Mask {
    /// Added to the scores.
    Add(ValueId),
    /// Subtracted from the scores.
    Take(ValueId),
    /// Scores where true, a low number elsewhere.
    Keep(ValueId, f64),
    /// Scores where false.
    Drop(ValueId, f64),
}

/// One operand of a product as `[batch.., free, contracted]`.
struct Side {
    value: ValueId,
    perm: Vec<usize>,
}

/// Raises an attention that ends in this product.
pub(super) fn attention(
    g: &mut Graph,
    id: NodeId,
    cx: &mut Cx,
) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    let Op::Core(CoreOp::Contract(p)) = &g.node(id).op else {
        return Ok(None);
    };
    let Some((probabilities, values)) = sides(g, out, p) else {
        return Ok(None);
    };
    let Some((softmax, uses, x)) = before_softmax(g, probabilities.value, out, cx) else {
        return Ok(None);
    };
    let identity = |perm: &[usize]| perm.iter().enumerate().all(|(i, a)| i == *a);
    if !identity(&probabilities.perm) {
        cx.near::<()>(
            out,
            "attention: the second product does not sum over the softmax axis",
        );
        return Ok(None);
    }
    if !cx.is_used(softmax, uses) {
        cx.near::<()>(out, "attention: the probabilities are used elsewhere too");
        return Ok(None);
    }
    let Some(scores) = scores(g, x, out, cx) else {
        return Ok(None);
    };
    build(g, out, &values, scores, cx)
}

/// The operands of a product with one free and one contracted axis each.
fn sides(g: &Graph, v: ValueId, p: &Contract) -> Option<(Side, Side)> {
    let (l, r) = (g.def(v).operands[0], g.def(v).operands[1]);
    let ([lc], [rc]) = (&p.lhs_contract[..], &p.rhs_contract[..]) else {
        return None;
    };
    let side = |value: ValueId, batch: &[usize], contracted: usize| {
        let [free] = Contract::free(g.rank(value), batch, &[contracted])[..] else {
            return None;
        };
        let perm = [batch, &[free, contracted]].concat();
        Some(Side { value, perm })
    };
    Some((side(l, &p.lhs_batch, *lc)?, side(r, &p.rhs_batch, *rc)?))
}

/// The softmax behind a value, how often the way there uses it, and its operand. NaN of rows without any key may have
/// been replaced by 0.
fn before_softmax(
    g: &Graph,
    v: ValueId,
    out: ValueId,
    cx: &mut Cx,
) -> Option<(ValueId, u32, ValueId)> {
    let (mut v, mut uses) = (v, 1);
    // Conversion, repair of NaN, reshape: a few steps at most.
    for _ in 0..6 {
        if let Some(CompositeOp::Softmax(p)) = composite(g, v) {
            let x = g.def(v).operands[0];
            if p.log || p.axis + 1 != g.rank(v) {
                return cx.near(out, "attention: the softmax is not over the last axis");
            }
            return Some((v, uses, x));
        }
        v = match g.op_of(v) {
            Op::Core(CoreOp::Cast(_)) => g.def(v).operands[0],
            Op::Core(CoreOp::Reshape(_)) => same_plane(g, v)?,
            Op::Core(CoreOp::Map(p)) if p.f == Scalar::Select => {
                let xs = &g.def(v).operands;
                let nan = unary(g, xs[0], Scalar::IsNan)?;
                uses = 2;
                (g.as_uniform(xs[1]) == Some(0.0) && nan == xs[2]).then_some(xs[2])?
            }
            Op::Core(CoreOp::Permute(_)) => {
                let x = g.def(v).operands[0];
                matches!(composite(g, x), Some(CompositeOp::Softmax(_))).then_some(())?;
                return cx.near(out, "attention: the probabilities are transposed");
            }
            Op::Core(CoreOp::Map(p)) => {
                let after = g.def(v).operands.iter().any(|x| {
                    let x = before_broadcast(g, *x);
                    matches!(composite(g, x), Some(CompositeOp::Softmax(_)))
                });
                after.then_some(())?;
                let what = format!("attention: the probabilities go through {}", p.f.name());
                return cx.near(out, what);
            }
            _ => return None,
        };
    }
    None
}

/// The operand of a reshape that only splits or merges axes before the last two.
fn same_plane(g: &Graph, v: ValueId) -> Option<ValueId> {
    let x = g.def(v).operands[0];
    let (a, b) = (g.dims(v), g.dims(x));
    (a.len() >= 2 && b.len() >= 2 && a[a.len() - 2..] == b[b.len() - 2..]).then_some(x)
}

fn scores(g: &Graph, x: ValueId, out: ValueId, cx: &mut Cx) -> Option<Scores> {
    let mut s = Scores {
        product: x,
        scale: 1.0,
        softcap: 0.0,
        masks: vec![],
        batch: vec![],
    };
    let mut v = x;
    let shared = "attention: the scores are used elsewhere too";
    // Masks, cap, scale, conversions and reshapes in any number that an exporter might write.
    for _ in 0..16 {
        let dims = g.dims(v);
        let batch = dims.len().checked_sub(2)?;
        if !cx.is_private(v) {
            return cx.near(out, shared);
        }
        if batch > s.batch.len() && batch <= 2 {
            s.batch = dims[..batch].to_vec();
        }
        let inner = s.scale != 1.0 || s.softcap != 0.0;
        match g.op_of(v) {
            Op::Core(CoreOp::Contract(_)) => {
                s.product = v;
                return Some(s);
            }
            Op::Core(CoreOp::Cast(_)) => v = g.def(v).operands[0],
            Op::Core(CoreOp::Reshape(_)) => v = same_plane(g, v)?,
            Op::Core(CoreOp::Map(p)) => {
                let xs = g.def(v).operands.clone();
                if let Some((y, c)) = times(g, v) {
                    if let Some((inside, cap)) = capped(g, y, c) {
                        if inner {
                            return cx.near(out, "attention: scores are scaled after the soft cap");
                        }
                        s.softcap = cap;
                        v = inside;
                    } else {
                        s.scale *= c;
                        v = y;
                    }
                    continue;
                }
                if inner && matches!(p.f, Scalar::Add | Scalar::Sub | Scalar::Select) {
                    return cx.near(out, "attention: the mask is applied before the scale");
                }
                match (p.f, &xs[..]) {
                    (Scalar::Add, [a, b]) => {
                        let (score, mask) = if leads_to_product(g, *a) {
                            (*a, *b)
                        } else {
                            (*b, *a)
                        };
                        s.masks.push(Mask::Add(mask));
                        v = score;
                    }
                    (Scalar::Sub, [score, mask]) if leads_to_product(g, *score) => {
                        s.masks.push(Mask::Take(*mask));
                        v = *score;
                    }
                    (Scalar::Select, [c, a, b]) => match (g.as_uniform(*a), g.as_uniform(*b)) {
                        (None, Some(low)) if low <= -1e3 => {
                            s.masks.push(Mask::Keep(*c, low));
                            v = *a;
                        }
                        (Some(low), None) if low <= -1e3 => {
                            s.masks.push(Mask::Drop(*c, low));
                            v = *b;
                        }
                        _ => {
                            return cx.near(
                                out,
                                "attention: scores are replaced by something that is not low",
                            );
                        }
                    },
                    _ => {
                        return cx.near(
                            out,
                            format!("attention: the scores go through {}", p.f.name()),
                        );
                    }
                }
            }
            _ => return None,
        }
    }
    None
}

/// `(s, cap)` for `cap * tanh(s / cap)`.
fn capped(g: &Graph, y: ValueId, cap: f64) -> Option<(ValueId, f64)> {
    let inside = unary(g, y, Scalar::Tanh)?;
    let (s, c) = times(g, inside)?;
    near(c * cap, 1.0, g.dtype(y)).then_some((s, cap))
}

/// Whether a product defines the value through what is done to scores, which is never a repetition.
fn leads_to_product(g: &Graph, v: ValueId) -> bool {
    // Longer detours are no scores.
    let mut budget = 32;
    let mut work = vec![v];
    while let Some(v) = work.pop() {
        budget -= 1;
        if budget == 0 {
            return false;
        }
        match g.op_of(v) {
            Op::Core(CoreOp::Contract(_)) => return true,
            Op::Core(CoreOp::Cast(_) | CoreOp::Reshape(_) | CoreOp::Map(_)) => {
                work.extend(g.def(v).operands.iter().copied())
            }
            _ => {}
        }
    }
    false
}

fn build(
    g: &mut Graph,
    out: ValueId,
    values: &Side,
    scores: Scores,
    cx: &mut Cx,
) -> Result<Option<ValueId>, IrError> {
    let Op::Core(CoreOp::Contract(p)) = g.op_of(scores.product).clone() else {
        return Ok(None);
    };
    let Some((queries, keys)) = sides(g, scores.product, &p) else {
        cx.near::<()>(
            out,
            "attention: the first product sums or keeps several axes",
        );
        return Ok(None);
    };
    let batch = p.lhs_batch.len();
    if batch > 2 || scores.batch.len() < batch {
        cx.near::<()>(out, "attention: more than two batch axes");
        return Ok(None);
    }
    let dtypes = [queries.value, keys.value, values.value].map(|v| g.dtype(v));
    if dtypes.iter().any(|d| *d != dtypes[0] || !d.is_float()) {
        cx.near::<()>(out, "attention: q, k and v differ in type");
        return Ok(None);
    }
    // Batch axes as masks see them, filled up to [batch, heads].
    let mut lead = vec![Dim::ONE; 2 - scores.batch.len()];
    lead.extend(scores.batch.iter().cloned());
    let (q_base, q_scale) = strip_factors(g, queries.value);
    let (k_base, k_scale) = strip_factors(g, keys.value);
    let q = four(g, q_base, &queries.perm, &lead)?;
    let k = four(g, k_base, &keys.perm, &lead)?;
    // The second product contracts the keys: [batch, keys, d].
    let mut perm = values.perm.clone();
    let last = perm.len() - 1;
    perm.swap(last, last - 1);
    let v = four(g, values.value, &perm, &lead)?;
    let (k, v) = match (unrepeated(g, k), unrepeated(g, v)) {
        (Some(k2), Some(v2)) if g.dim(k2, 1) == g.dim(v2, 1) => (k2, v2),
        _ => (k, v),
    };
    let mut operands = vec![q, k, v];
    let plane = [g.dim(q, 2), g.dim(k, 2)];
    let full = [&lead[..], &plane[..]].concat();
    let alone = scores.masks.len() == 1;
    let (causal, masks): (Vec<Mask>, Vec<Mask>) =
        (scores.masks.iter()).partition(|m| is_causal(g, **m, &plane, dtypes[0], alone));
    operands.extend(mask(g, &masks, dtypes[0], &full)?);
    let op = Op::Composite(CompositeOp::Attention(Attention {
        scale: scores.scale * q_scale * k_scale,
        causal: !causal.is_empty(),
        softcap: scores.softcap,
    }));
    if !cx.is_claimed(g, &op, &operands) {
        return Ok(None);
    }
    let y = g.one(op, &operands)?;
    let y = g.cast_like(y, out)?;
    let dims = g.dims(out);
    g.reshape(y, &dims).map(Some)
}

/// A value with its axes in the given order, its batch axes being `lead`.
fn four(g: &mut Graph, v: ValueId, perm: &[usize], lead: &[Dim]) -> Result<ValueId, IrError> {
    let (mut v, mut perm) = (v, perm.to_vec());
    while let Op::Core(CoreOp::Permute(p)) = g.op_of(v) {
        perm.iter_mut().for_each(|a| *a = p.perm[*a]);
        v = g.def(v).operands[0];
    }
    let v = g.permute(v, &perm)?;
    let dims = g.dims(v);
    let plane = &dims[dims.len() - 2..];
    g.reshape(v, &[lead, plane].concat())
}

/// Key heads before each was repeated for a group of query heads.
fn unrepeated(g: &mut Graph, v: ValueId) -> Option<ValueId> {
    // The repetition may lie below a permutation that moves the heads.
    let (perm, x) = match g.op_of(v) {
        Op::Core(CoreOp::Permute(p)) => (Some(p.perm.clone()), g.def(v).operands[0]),
        _ => (None, v),
    };
    let Op::Core(CoreOp::Reshape(_)) = g.op_of(x) else {
        return None;
    };
    let wide = g.def(x).operands[0];
    let Op::Core(CoreOp::Broadcast(b)) = g.op_of(wide) else {
        return None;
    };
    let narrow = g.def(wide).operands[0];
    let (from, to, merged) = (g.dims(narrow), b.dims.clone(), g.dims(x));
    // [.., heads, 1, ..] -> [.., heads, group, ..] -> [.., heads * group, ..]
    let at = (0..from.len()).find(|a| from[*a] != to[*a])?;
    let only = (0..from.len()).all(|a| a == at || from[a] == to[a]);
    let heads = at.checked_sub(1)?;
    let mut expected = to.clone();
    expected.remove(at);
    expected[heads] = to[heads].clone() * to[at].clone();
    let axis = perm.as_ref().map_or(1, |p| p[1]);
    if !only || !from[at].is(1) || expected != merged || heads != axis {
        return None;
    }
    let mut dims = from;
    dims.remove(at);
    let few = g.reshape(narrow, &dims).ok()?;
    match perm {
        Some(p) => g.permute(few, &p).ok(),
        None => Some(few),
    }
}

/// Whether a mask hides exactly the keys after a query's own position. A low number hides like minus infinity where no
/// `other` mask can hide the rest of the row.
fn is_causal(g: &Graph, mask: Mask, plane: &[Dim; 2], dtype: DType, alone: bool) -> bool {
    let hides = |low: f64| {
        let lowest = if dtype == DType::F16 { -3e4 } else { -1e9 };
        low == f64::NEG_INFINITY || alone && low <= lowest
    };
    let (value, (below, above), low) = match mask {
        Mask::Add(v) => (v, (0.0, None), None),
        Mask::Take(_) => return false,
        Mask::Keep(v, low) => (v, (1.0, Some(0.0)), Some(low)),
        Mask::Drop(v, low) => (v, (0.0, Some(1.0)), Some(low)),
    };
    let Some(found) = triangle(g, value) else {
        return false;
    };
    let [queries, keys] = plane;
    found.offset == keys - queries
        && found.below == below
        && above.is_none_or(|a| a == found.above)
        && hides(low.unwrap_or(found.above))
}

/// All masks as one operand that broadcasts against `full`.
fn mask(
    g: &mut Graph,
    masks: &[Mask],
    dtype: DType,
    full: &[Dim],
) -> Result<Option<ValueId>, IrError> {
    let mut sum: Option<ValueId> = None;
    for m in masks {
        let m = match *m {
            Mask::Add(v) => narrowed(g, v, full)?,
            Mask::Take(v) => {
                let v = narrowed(g, v, full)?;
                g.unary(Scalar::Neg, v)?
            }
            Mask::Keep(c, low) | Mask::Drop(c, low) => {
                let c = narrowed(g, c, full)?;
                let keep = matches!(m, Mask::Keep(..));
                if masks.len() == 1 && low == f64::NEG_INFINITY {
                    let c = if keep { c } else { g.unary(Scalar::Not, c)? };
                    return Ok(Some(c));
                }
                // Finite, and so low that a score added to it is lost: a row without any key then weighs all keys
                // alike, as the pattern does.
                let zero = g.number(0.0, dtype)?;
                let low = if dtype == DType::F16 { low } else { LOST };
                let low = g.number(low, dtype)?;
                let (x, y) = if keep { (zero, low) } else { (low, zero) };
                g.select(c, x, y)?
            }
        };
        let m = g.cast(m, dtype)?;
        sum = Some(match sum {
            Some(s) => g.binary(Scalar::Add, s, m)?,
            None => m,
        });
    }
    Ok(sum)
}

/// A mask before repetition, with four axes.
fn narrowed(g: &mut Graph, v: ValueId, full: &[Dim]) -> Result<ValueId, IrError> {
    let x = before_broadcast(g, v);
    let dims = g.dims(x);
    let plane_at = dims.len().saturating_sub(2);
    let (lead, plane) = dims.split_at(plane_at);
    let lead: Vec<Dim> = if lead.len() <= 2 && lead.iter().all(|d| d.is(1)) {
        vec![Dim::ONE; 2]
    } else if lead.len() == 2 {
        lead.to_vec()
    } else {
        // Batch and heads merged in one axis: a full mask is split as the scores are.
        let wide = g.broadcast_to(x, &g.dims(v))?;
        let dims = g.dims(wide);
        let plane = dims[dims.len() - 2..].to_vec();
        return g.reshape(wide, &[&full[..2], &plane[..]].concat());
    };
    g.reshape(x, &[&lead[..], plane].concat())
}

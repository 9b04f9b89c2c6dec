//! Losses over class indices, and the optimiser steps of the training preview.

use cupola_ir::ops::{Bounds, Gather, ReduceKind};
use cupola_ir::{DType, Dim, Graph, Scalar, ValueId};

use super::activation::push_softmax;
use super::{OpRow, op, op_in};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

const TRAINING: &str = "ai.onnx.preview.training";

pub(super) const OPS: &[OpRow] = &[
    op("NegativeLogLikelihoodLoss", 12, negative_log_likelihood),
    op("SoftmaxCrossEntropyLoss", 12, softmax_cross_entropy),
    op_in(TRAINING, "Adagrad", 1, adagrad),
    op_in(TRAINING, "Adam", 1, adam),
    op_in(TRAINING, "Momentum", 1, momentum),
];

fn negative_log_likelihood(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, _), (target, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    let weight = cx.optional(2);
    let wide = cx.g.widen(x)?;
    let loss = picked_loss(cx, wide, target, weight)?;
    Ok(vec![cx.g.cast_like(loss, x)?])
}

fn softmax_cross_entropy(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let ((x, ty), (target, _)) = (cx.tensor_input(0)?, cx.tensor_input(1)?);
    if ty.rank() < 2 {
        return cx.bad_type(x);
    }
    let weight = cx.optional(2);
    let wide = cx.g.widen(x)?;
    let log = push_softmax(cx.g, wide, 1, true)?;
    let loss = picked_loss(cx, log, target, weight)?;
    Ok(vec![cx.g.cast_like(loss, x)?, cx.g.cast_like(log, x)?])
}

/// `-weight[t] * x[n, t, ..]` for the class `t` that target names, 0 where it is the ignored one, reduced as asked.
fn picked_loss(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    target: ValueId,
    weight: Option<ValueId>,
) -> OpResult<ValueId> {
    let rank = cx.g.rank(x);
    if rank < 2 || cx.g.rank(target) != rank - 1 || !cx.g.dtype(target).is_int() {
        return invalid(format!(
            "scores {} with classes {}",
            cx.g.ty(x),
            cx.g.ty(target)
        ));
    }
    let reduction = cx.text_or("reduction", "mean")?;
    let ignored = cx.int("ignore_index")?;
    let g = &mut *cx.g;
    let mut classes = g.cast(target, DType::I64)?;
    let mut kept = None;
    if let Some(ignored) = ignored {
        let ignored = g.constant(cupola_ir::Tensor::scalar(ignored))?;
        let hit = g.binary(Scalar::Eq, classes, ignored)?;
        let zero = g.number_like(0.0, classes)?;
        classes = g.select(hit, zero, classes)?;
        kept = Some(g.unary(Scalar::Not, hit)?);
    }
    let mut last: Vec<usize> = (0..rank).filter(|a| *a != 1).collect();
    last.push(1);
    let x = g.permute(x, &last)?;
    let pick = |batch: usize| Gather {
        axes: vec![batch],
        batch,
        bounds: Bounds::Check,
    };
    let score = g.one(pick(rank - 1), &[x, classes])?;
    let mut loss = g.unary(Scalar::Neg, score)?;
    let mut shares = None;
    if let Some(w) = weight {
        let w = g.cast_like(w, loss)?;
        let w = g.one(pick(0), &[w, classes])?;
        loss = g.binary(Scalar::Mul, loss, w)?;
        shares = Some(w);
    }
    if let Some(kept) = kept {
        let zero = g.number_like(0.0, loss)?;
        loss = g.select(kept, loss, zero)?;
        shares = Some(match shares {
            Some(w) => g.select(kept, w, zero)?,
            None => g.cast_like(kept, loss)?,
        });
    }
    let all: Vec<usize> = (0..rank - 1).collect();
    Ok(match (reduction.as_str(), shares) {
        ("none", _) => loss,
        ("sum", _) => g.reduce(ReduceKind::Sum, loss, &all)?,
        ("mean", Some(w)) => {
            let total = g.reduce(ReduceKind::Sum, loss, &all)?;
            let count = g.reduce(ReduceKind::Sum, w, &all)?;
            g.binary(Scalar::Div, total, count)?
        }
        ("mean", None) => {
            let mean = g.mean_keep(loss, &all)?;
            g.reshape(mean, &[])?
        }
        (other, _) => return invalid(format!("reduction '{other}' does not exist")),
    })
}

/// Rate, step and the tensors by role: operands `(R, T, X.., G.., ..)` with `roles` lists of one length.
struct Step {
    rate: ValueId,
    time: ValueId,
    tensors: Vec<Vec<ValueId>>,
}

fn step(cx: &NodeCx<'_, '_>, roles: usize) -> OpResult<Step> {
    let (rate, time) = (cx.input(0)?, cx.input(1)?);
    let rest = cx.inputs_from(2)?;
    if rest.is_empty() || rest.len() % roles != 0 {
        return invalid(format!(
            "{} tensors where a multiple of {roles} is needed",
            rest.len()
        ));
    }
    let each = rest.len() / roles;
    Ok(Step {
        rate,
        time,
        tensors: rest.chunks(each).map(<[ValueId]>::to_vec).collect(),
    })
}

/// `x * a + y`.
fn scaled_sum(g: &mut Graph, x: ValueId, a: f64, y: ValueId) -> OpResult<ValueId> {
    if a == 0.0 {
        return Ok(y);
    }
    let x = g.scale(x, a)?;
    Ok(g.binary(Scalar::Add, x, y)?)
}

/// `sqrt(h) + epsilon`.
fn spread(g: &mut Graph, h: ValueId, epsilon: f64) -> OpResult<ValueId> {
    let root = g.unary(Scalar::Sqrt, h)?;
    let epsilon = g.number_like(epsilon, root)?;
    Ok(g.binary(Scalar::Add, root, epsilon)?)
}

/// `x - rate * y`.
fn descend(g: &mut Graph, x: ValueId, rate: ValueId, y: ValueId) -> OpResult<ValueId> {
    let rate = g.cast_like(rate, x)?;
    let by = g.binary(Scalar::Mul, rate, y)?;
    Ok(g.binary(Scalar::Sub, x, by)?)
}

fn adagrad(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let epsilon = cx.float_or("epsilon", 1e-6)?;
    let decay = cx.float_or("decay_factor", 0.0)?;
    let norm = cx.float_or("norm_coefficient", 0.0)?;
    let s = step(cx, 3)?;
    let g = &mut *cx.g;
    let time = g.cast_like(s.time, s.rate)?;
    let time = g.scale(time, decay)?;
    let one = g.number_like(1.0, time)?;
    let slow = g.binary(Scalar::Add, time, one)?;
    let rate = g.binary(Scalar::Div, s.rate, slow)?;
    let (mut xs, mut hs) = (vec![], vec![]);
    for i in 0..s.tensors[0].len() {
        let [x, grad, h] = [s.tensors[0][i], s.tensors[1][i], s.tensors[2][i]];
        let grad = scaled_sum(g, x, norm, grad)?;
        let square = g.binary(Scalar::Mul, grad, grad)?;
        let h = g.binary(Scalar::Add, h, square)?;
        let root = spread(g, h, epsilon)?;
        let by = g.binary(Scalar::Div, grad, root)?;
        xs.push(descend(g, x, rate, by)?);
        hs.push(h);
    }
    Ok([xs, hs].concat())
}

fn adam(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (alpha, beta) = (cx.float_or("alpha", 0.9)?, cx.float_or("beta", 0.999)?);
    let epsilon = cx.float_or("epsilon", 1e-6)?;
    let norm = cx.float_or("norm_coefficient", 0.0)?;
    let post = cx.float_or("norm_coefficient_post", 0.0)?;
    let s = step(cx, 4)?;
    let g = &mut *cx.g;
    // R sqrt(1 - beta^T) / (1 - alpha^T) from the first step on, R itself at step 0.
    let time = g.cast_like(s.time, s.rate)?;
    let one = g.number_like(1.0, time)?;
    let missing = |g: &mut Graph, base: f64| -> OpResult<ValueId> {
        let base = g.number_like(base, time)?;
        let power = g.binary(Scalar::Pow, base, time)?;
        Ok(g.binary(Scalar::Sub, one, power)?)
    };
    let (low, high) = (missing(g, alpha)?, missing(g, beta)?);
    let high = g.unary(Scalar::Sqrt, high)?;
    let factor = g.binary(Scalar::Div, high, low)?;
    let corrected = g.binary(Scalar::Mul, s.rate, factor)?;
    let zero = g.number_like(0.0, time)?;
    let later = g.binary(Scalar::Lt, zero, time)?;
    let rate = g.select(later, corrected, s.rate)?;
    let (mut xs, mut vs, mut hs) = (vec![], vec![], vec![]);
    for i in 0..s.tensors[0].len() {
        let (x, grad) = (s.tensors[0][i], s.tensors[1][i]);
        let (v, h) = (s.tensors[2][i], s.tensors[3][i]);
        let grad = scaled_sum(g, x, norm, grad)?;
        let fresh = g.scale(grad, 1.0 - alpha)?;
        let v = scaled_sum(g, v, alpha, fresh)?;
        let square = g.binary(Scalar::Mul, grad, grad)?;
        let fresh = g.scale(square, 1.0 - beta)?;
        let h = scaled_sum(g, h, beta, fresh)?;
        let root = spread(g, h, epsilon)?;
        let by = g.binary(Scalar::Div, v, root)?;
        let x = descend(g, x, rate, by)?;
        xs.push(g.scale(x, 1.0 - post)?);
        vs.push(v);
        hs.push(h);
    }
    Ok([xs, vs, hs].concat())
}

fn momentum(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (alpha, beta) = (cx.float_or("alpha", 0.0)?, cx.float_or("beta", 0.0)?);
    let norm = cx.float_or("norm_coefficient", 0.0)?;
    let nesterov = match cx.text_or("mode", "standard")?.as_str() {
        "standard" => false,
        "nesterov" => true,
        other => return invalid(format!("mode '{other}' does not exist")),
    };
    let s = step(cx, 3)?;
    let g = &mut *cx.g;
    // The first step takes the gradient in full.
    let zero = g.number_like(0.0, s.time)?;
    let later = g.binary(Scalar::Lt, zero, s.time)?;
    let (mut xs, mut vs) = (vec![], vec![]);
    for i in 0..s.tensors[0].len() {
        let [x, grad, v] = [s.tensors[0][i], s.tensors[1][i], s.tensors[2][i]];
        let grad = scaled_sum(g, x, norm, grad)?;
        let (one, beta) = (g.number_like(1.0, x)?, g.number_like(beta, x)?);
        let later = g.reshape(later, &[] as &[Dim])?;
        let share = g.select(later, beta, one)?;
        let fresh = g.binary(Scalar::Mul, share, grad)?;
        let v = scaled_sum(g, v, alpha, fresh)?;
        let by = match nesterov {
            true => scaled_sum(g, v, alpha, grad)?,
            false => v,
        };
        xs.push(descend(g, x, s.rate, by)?);
        vs.push(v);
    }
    Ok([xs, vs].concat())
}

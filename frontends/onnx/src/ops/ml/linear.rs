//! Linear models and support vector machines.

use cupola_ir::ops::host::CoupleProbabilities;
use cupola_ir::ops::{ArgReduce, HostOp, ReduceKind};
use cupola_ir::{DType, Graph, Op, Scalar, ValueId};

use super::{Labels, Post, constant, ml, rows};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};
use crate::ops::OpRow;
use crate::ops::math::Math;

pub(in crate::ops) const OPS: &[OpRow] = &[
    ml("LinearRegressor", 1, linear_regressor),
    ml("LinearClassifier", 1, linear_classifier),
    ml("SVMRegressor", 1, svm_regressor),
    ml("SVMClassifier", 1, svm_classifier),
];

/// A row-major matrix of so many rows as a constant of the dtype of `like`.
fn matrix(g: &mut Graph, values: &[f64], rows: usize, like: ValueId) -> OpResult<ValueId> {
    if rows == 0 || values.is_empty() || !values.len().is_multiple_of(rows) {
        return invalid(format!("{} numbers for {rows} rows", values.len()));
    }
    let dtype = g.dtype(like);
    constant(g, values, &[rows, values.len() / rows], dtype)
}

fn required(cx: &NodeCx<'_, '_>, name: &str) -> OpResult<Vec<f64>> {
    match cx.floats_attr(name)? {
        Some(v) if !v.is_empty() => Ok(v),
        _ => invalid(format!("attribute '{name}' is missing")),
    }
}

/// `x coefficients^T + intercepts` for so many results, f32.
fn linear(cx: &mut NodeCx<'_, '_>, count: usize) -> OpResult<ValueId> {
    let x = rows(cx)?;
    let x = cx.g.cast(x, DType::F32)?;
    let coefficients = required(cx, "coefficients")?;
    let coefficients = matrix(cx.g, &coefficients, count, x)?;
    let y = cx.g.matmul_nt(x, coefficients)?;
    let intercepts = cx.floats_attr("intercepts")?.unwrap_or_default();
    if intercepts.is_empty() {
        return Ok(y);
    }
    if intercepts.len() != count {
        return invalid(format!(
            "{} intercepts for {count} results",
            intercepts.len()
        ));
    }
    let intercepts = constant(cx.g, &intercepts, &[count], DType::F32)?;
    Ok(cx.g.binary(Scalar::Add, y, intercepts)?)
}

fn linear_regressor(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let targets = usize::try_from(cx.int_or("targets", 1)?).unwrap_or(0);
    let y = linear(cx, targets)?;
    let post = Post::read(cx)?;
    Ok(vec![post.apply(&mut Math { g: cx.g }, y)?])
}

/// Position of the largest of each row.
fn best(g: &mut Graph, scores: ValueId) -> OpResult<ValueId> {
    let best = ArgReduce {
        kind: ReduceKind::Max,
        axis: 1,
        last: false,
    };
    Ok(g.one(best, &[scores])?)
}

/// 1 where the only column is above a number, else 0.
fn above(g: &mut Graph, score: ValueId, threshold: f64) -> OpResult<ValueId> {
    let mut m = Math { g };
    let yes = m.lt(threshold, score)?;
    let yes = m.g.cast(yes, DType::I64)?;
    Ok(m.g.squeeze(yes, &[1])?)
}

fn linear_classifier(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let labels = Labels::read(cx, "classlabels_ints", "classlabels_strings")?;
    let stated = cx.floats_attr("intercepts")?.map_or(0, |v| v.len());
    let classes = labels.as_ref().map_or(0, Labels::len);
    let count = if stated > 0 { stated } else { classes.max(1) };
    let labels = match labels {
        Some(labels) => labels,
        None => Labels::Ints((0..count.max(2) as i64).collect()),
    };
    if count > labels.len() {
        return invalid(format!("{count} scores for {} labels", labels.len()));
    }
    let scores = linear(cx, count)?;
    let post = Post::read(cx)?;
    if count == 1 {
        let second = above(cx.g, scores, 0.0)?;
        let (named, scores) = match labels.len() {
            // A single class has the labels 1 and 0 for yes and no.
            1 => (second, post.apply(&mut Math { g: cx.g }, scores)?),
            _ => (
                labels.of(cx.g, second)?,
                post.of_one(&mut Math { g: cx.g }, scores, true)?,
            ),
        };
        return Ok(vec![named, scores]);
    }
    let index = best(cx.g, scores)?;
    let named = labels.of(cx.g, index)?;
    Ok(vec![named, post.apply(&mut Math { g: cx.g }, scores)?])
}

/// How a row and a support vector are compared.
struct Kernel {
    kind: String,
    gamma: f64,
    coef0: f64,
    degree: f64,
}

impl Kernel {
    fn read(cx: &NodeCx<'_, '_>) -> OpResult<Kernel> {
        let kind = cx.text_or("kernel_type", "LINEAR")?;
        if !["LINEAR", "POLY", "RBF", "SIGMOID"].contains(&kind.as_str()) {
            return invalid(format!("kernel_type '{kind}' does not exist"));
        }
        let params = cx.floats_attr("kernel_params")?.unwrap_or_default();
        let param = |i: usize| params.get(i).copied().unwrap_or(0.0);
        Ok(Kernel {
            kind,
            gamma: param(0),
            coef0: param(1),
            degree: param(2),
        })
    }

    /// `[rows, vectors]` for `x: [rows, features]` and vectors `[vectors, features]`.
    fn of(&self, g: &mut Graph, x: ValueId, vectors: ValueId) -> OpResult<ValueId> {
        let mut m = Math { g };
        if self.kind == "RBF" {
            let x = m.g.unsqueeze(x, &[1])?;
            let d = m.sub(x, vectors)?;
            let square = m.mul(d, d)?;
            let distance = m.g.reduce(ReduceKind::Sum, square, &[2])?;
            let y = m.mul(distance, -self.gamma)?;
            return m.unary(Scalar::Exp, y);
        }
        let y = m.g.matmul_nt(x, vectors)?;
        if self.kind == "LINEAR" {
            return Ok(y);
        }
        let y = m.mul(y, self.gamma)?;
        let y = m.add(y, self.coef0)?;
        match self.kind.as_str() {
            "POLY" => m.f(Scalar::Pow, y, self.degree),
            _ => m.unary(Scalar::Tanh, y),
        }
    }
}

fn svm_regressor(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = rows(cx)?;
    let x = cx.g.cast(x, DType::F32)?;
    let coefficients = required(cx, "coefficients")?;
    let rho = required(cx, "rho")?;
    let supports = usize::try_from(cx.int_or("n_supports", 0)?).unwrap_or(0);
    let kernel = Kernel::read(cx)?;
    let weights = matrix(cx.g, &coefficients, 1, x)?;
    let y = match supports {
        0 => kernel.of(cx.g, x, weights)?,
        _ => {
            let vectors = matrix(cx.g, &required(cx, "support_vectors")?, supports, x)?;
            let near = kernel.of(cx.g, x, vectors)?;
            cx.g.matmul_nt(near, weights)?
        }
    };
    let post = Post::read(cx)?;
    let mut m = Math { g: cx.g };
    let y = m.add(y, rho[0])?;
    if cx.flag("one_class", false)? {
        let mut m = Math { g: cx.g };
        let inside = m.lt(0.0, y)?;
        let one = m.g.number(1.0, DType::F32)?;
        return Ok(vec![m.select(inside, one, -1.0)?]);
    }
    Ok(vec![post.apply(&mut Math { g: cx.g }, y)?])
}

/// What the pairs of classes of a support vector machine say about each row.
struct Pairs {
    /// `[rows, pairs]`: above 0 for the first class of a pair.
    scores: ValueId,
    /// How many pairs each class wins, `[rows, classes]`.
    votes: ValueId,
}

fn pairs(cx: &mut NodeCx<'_, '_>, x: ValueId, sizes: &[usize], rho: &[f64]) -> OpResult<Pairs> {
    let classes = sizes.len();
    let count = classes * classes.saturating_sub(1) / 2;
    let total = sizes.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
    let coefficients = required(cx, "coefficients")?;
    let total = match total {
        Some(n) if n > 0 && coefficients.len() == n.saturating_mul(classes - 1) => n,
        _ => {
            return invalid(format!(
                "{} coefficients for vectors {sizes:?}",
                coefficients.len()
            ));
        }
    };
    if rho.len() != count {
        return invalid(format!(
            "{} numbers in rho for {count} pairs of classes",
            rho.len()
        ));
    }
    let vectors = matrix(cx.g, &required(cx, "support_vectors")?, total, x)?;
    let near = Kernel::read(cx)?.of(cx.g, x, vectors)?;
    let mut starts = vec![0; classes];
    for c in 1..classes {
        starts[c] = starts[c - 1] + sizes[c - 1];
    }
    let (mut weights, mut wins, mut losses) = (
        vec![0.0; count * total],
        vec![0.0; count * classes],
        vec![0.0; count * classes],
    );
    let all = (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j)));
    for (p, (i, j)) in all.enumerate() {
        for (row, class) in [(j - 1, i), (i, j)] {
            let own = starts[class]..starts[class] + sizes[class];
            let from = &coefficients[row * total..][own.clone()];
            weights[p * total..][own].copy_from_slice(from);
        }
        wins[p * classes + i] = 1.0;
        losses[p * classes + j] = 1.0;
    }
    let weights = matrix(cx.g, &weights, count, x)?;
    let (wins, losses) = (
        matrix(cx.g, &wins, count, x)?,
        matrix(cx.g, &losses, count, x)?,
    );
    let dtype = cx.g.dtype(x);
    let mut m = Math { g: cx.g };
    let scores = m.g.matmul_nt(near, weights)?;
    let rho = constant(m.g, rho, &[count], dtype)?;
    let scores = m.add(scores, rho)?;
    let won = m.lt(0.0, scores)?;
    let won = m.g.cast(won, dtype)?;
    let lost = m.sub(1.0, won)?;
    let (won, lost) = (m.g.matmul(won, wins)?, m.g.matmul(lost, losses)?);
    let votes = m.add(won, lost)?;
    Ok(Pairs { scores, votes })
}

/// Probabilities of the classes from those of pairs, `1 / (1 + exp(a * score + b))` for the first class of a pair.
fn coupled(
    cx: &mut NodeCx<'_, '_>,
    scores: ValueId,
    a: &[f64],
    classes: usize,
) -> OpResult<ValueId> {
    let b = required(cx, "prob_b")?;
    if b.len() != a.len() {
        return invalid(format!(
            "{} and {} numbers for pairs of classes",
            a.len(),
            b.len()
        ));
    }
    let (count, dtype) = (a.len(), cx.g.dtype(scores));
    let mut m = Math { g: cx.g };
    let (a, b) = (
        constant(m.g, a, &[count], dtype)?,
        constant(m.g, &b, &[count], dtype)?,
    );
    let y = m.mul(scores, a)?;
    let y = m.add(y, b)?;
    let y = m.unary(Scalar::Neg, y)?;
    let y = m.unary(Scalar::Sigmoid, y)?;
    let op = HostOp::CoupleProbabilities(CoupleProbabilities { classes });
    Ok(m.g.one(Op::Host(op), &[y])?)
}

fn svm_classifier(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = rows(cx)?;
    let x = cx.g.cast(x, DType::F32)?;
    let rho = required(cx, "rho")?;
    let coefficients = required(cx, "coefficients")?;
    let post = Post::read(cx)?;
    let sizes = cx.ints_attr("vectors_per_class")?.unwrap_or_default();
    let sizes: Option<Vec<usize>> = sizes.iter().map(|n| usize::try_from(*n).ok()).collect();
    let sizes = match sizes {
        Some(v) => v,
        None => return invalid("a class with a negative number of vectors"),
    };
    let labels = Labels::read(cx, "classlabels_ints", "classlabels_strings")?;
    let count = labels.as_ref().map_or(sizes.len().max(1), Labels::len);
    let labels = labels.unwrap_or_else(|| Labels::Ints((0..count as i64).collect()));
    if sizes.iter().all(|n| *n == 0) {
        return linear_machine(cx, x, &coefficients, rho[0], &labels, post);
    }
    if sizes.len() != count {
        return invalid(format!(
            "vectors of {} classes, {count} labels",
            sizes.len()
        ));
    }
    let pairs = pairs(cx, x, &sizes, &rho)?;
    let a = cx.floats_attr("prob_a")?.unwrap_or_default();
    let winner = best(cx.g, pairs.votes)?;
    let named = labels.of(cx.g, winner)?;
    if !a.is_empty() {
        if a.len() != rho.len() {
            return invalid(format!(
                "{} numbers in prob_a for {} pairs",
                a.len(),
                rho.len()
            ));
        }
        let scores = coupled(cx, pairs.scores, &a, count)?;
        return Ok(vec![named, post.apply(&mut Math { g: cx.g }, scores)?]);
    }
    let mut m = Math { g: cx.g };
    let scores = match count {
        2 => post.of_one(&mut m, pairs.scores, false)?,
        _ => post.apply(&mut m, pairs.scores)?,
    };
    Ok(vec![named, scores])
}

/// Without support vectors: one linear score per class.
fn linear_machine(
    cx: &mut NodeCx<'_, '_>,
    x: ValueId,
    coefficients: &[f64],
    rho: f64,
    labels: &Labels,
    post: Post,
) -> OpResult {
    let weights = matrix(cx.g, coefficients, labels.len(), x)?;
    let mut m = Math { g: cx.g };
    let scores = m.g.matmul_nt(x, weights)?;
    let scores = m.add(scores, rho)?;
    if labels.len() == 1 {
        let yes = above(m.g, scores, 0.0)?;
        return Ok(vec![yes, post.apply(&mut m, scores)?]);
    }
    let index = best(m.g, scores)?;
    let named = labels.of(m.g, index)?;
    Ok(vec![named, post.apply(&mut m, scores)?])
}

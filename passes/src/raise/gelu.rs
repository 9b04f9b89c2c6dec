//! GELU in its exact and tanh forms: a product of one half, `x` and a gate, in any order and grouping.

use super::Cx;
use super::look::*;
use cupola_ir::composite::{CompositeOp, Gelu};
use cupola_ir::{Graph, IrError, NodeId, Op, Scalar, ValueId};

/// Raises a GELU that ends in this node.
pub(super) fn gelu(g: &mut Graph, id: NodeId, cx: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let out = g.node(id).results[0];
    let Some((x, tanh)) = match_gelu(g, out, cx) else {
        return Ok(None);
    };
    let op = Op::Composite(CompositeOp::Gelu(Gelu { tanh }));
    g.one(op, &[x]).map(Some)
}

fn match_gelu(g: &Graph, out: ValueId, cx: &mut Cx) -> Option<(ValueId, bool)> {
    let factors = factors(g, out, None).1;
    let dtype = g.dtype(out);
    let gate = factors.iter().find_map(|v| {
        let (inner, one) = plus(g, *v)?;
        let function =
            unary(g, inner, Scalar::Erf)
                .map(|y| (y, false))
                .or(unary(g, inner, Scalar::Tanh).map(|y| (y, true)))?;
        Some((*v, function, one))
    });
    let (gate, (inner, tanh), one) = gate?;
    if !near(one, 1.0, dtype) {
        return None;
    }
    let x = if tanh {
        cubic(g, inner)
    } else {
        let (x, c) = strip_to(g, inner, std::f64::consts::FRAC_1_SQRT_2);
        if !near(c, std::f64::consts::FRAC_1_SQRT_2, dtype) {
            return cx.near(out, "gelu: erf is not of x / sqrt(2)");
        }
        Some(x)
    };
    let Some(x) = x else {
        // x * (1 + tanh(..)) is common elsewhere: near only with a power that belongs to GELU.
        return near_cubic(g, inner).then(|| {
            cx.near(
                out,
                "gelu: tanh is not of sqrt(2 / pi) * (x + 0.044715 x^3)",
            )
        })?;
    };
    let (constant, rest) = self::factors(g, out, Some(x));
    let mut rest: Vec<ValueId> = rest.into_iter().filter(|v| *v != gate).collect();
    rest.retain(|v| *v != x);
    if !rest.is_empty() || !near(constant, 0.5, dtype) {
        return cx.near(out, "gelu: the product is not of one half, x and the gate");
    }
    let count = self::factors(g, out, Some(x)).1;
    let once = |v: ValueId| count.iter().filter(|c| **c == v).count() == 1;
    if !once(x) || !once(gate) {
        return cx.near(out, "gelu: x or the gate is there twice");
    }
    Some((x, tanh))
}

/// Constant part and other factors of a product; `stop` is not taken apart.
fn factors(g: &Graph, v: ValueId, stop: Option<ValueId>) -> (f64, Vec<ValueId>) {
    // GELU has five factors at most; a longer product is something else.
    const MAX_FACTORS: usize = 8;
    let (mut constant, mut out) = (1.0, vec![]);
    let mut work = vec![v];
    while let Some(v) = work.pop() {
        if Some(v) == stop || out.len() >= MAX_FACTORS {
            out.push(v);
        } else if let Some((x, c)) = times(g, v) {
            constant *= c;
            work.push(x);
        } else if let Some((x, y)) = binary(g, v, Scalar::Mul) {
            work.extend([x, y]);
        } else {
            out.push(v);
        }
    }
    (constant, out)
}

/// The value without constant factors, but no further than until they make up `factor`.
fn strip_to(g: &Graph, v: ValueId, factor: f64) -> (ValueId, f64) {
    let (mut v, mut product) = (v, 1.0);
    while !near(product, factor, g.dtype(v)) {
        let Some((x, c)) = times(g, v) else { break };
        (v, product) = (x, product * c);
    }
    (v, product)
}

/// `x` for `sqrt(2 / pi) * (x + 0.044715 x^3)`, also as `sqrt(2 / pi) * x * (1 + 0.044715 x^2)`.
fn cubic(g: &Graph, v: ValueId) -> Option<ValueId> {
    let dtype = g.dtype(v);
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let is_third = |c: f64| near(c, 0.044715, dtype);
    let (sum, c) = strip_to(g, v, root);
    if near(c, root, dtype) {
        for (x, cube) in either(g, sum, Scalar::Add) {
            if power(g, cube, x, 3).is_some_and(is_third) {
                return Some(x);
            }
        }
    }
    let (constant, rest) = factors(g, v, None);
    if !near(constant, root, dtype) {
        return None;
    }
    let (polynomial, x) = match rest[..] {
        [a, b] if plus(g, a).is_some() => (a, b),
        [a, b] => (b, a),
        _ => return None,
    };
    let (square, one) = plus(g, polynomial)?;
    (near(one, 1.0, dtype) && power(g, square, x, 2).is_some_and(is_third)).then_some(x)
}

/// Whether a sum with a square or cube of something is under the tanh.
fn near_cubic(g: &Graph, v: ValueId) -> bool {
    let is_power = |p: ValueId| match factors(g, p, None).1[..] {
        [p] => binary(g, p, Scalar::Pow).is_some(),
        [a, b] => a == b,
        [a, b, c] => a == b && b == c,
        _ => false,
    };
    let sums = factors(g, v, None).1.into_iter();
    sums.flat_map(|sum| either(g, sum, Scalar::Add))
        .any(|(_, p)| is_power(p))
}

/// `c` when the value is `c * x^exponent`.
fn power(g: &Graph, v: ValueId, x: ValueId, exponent: usize) -> Option<f64> {
    let (constant, rest) = factors(g, v, Some(x));
    let mut total = 0;
    for f in rest {
        total += if f == x {
            1
        } else {
            let (base, e) = binary(g, f, Scalar::Pow)?;
            let e = g.as_uniform(e)?;
            if base != x || e.fract() != 0.0 || !(1.0..=4.0).contains(&e) {
                return None;
            }
            e as usize
        };
    }
    (total == exponent).then_some(constant)
}

//! Identities of scalar functions and conversions. All are exact: `x * 1` is `x`, but `x + 0` is not for `x = -0`.

use super::Rewrite;
use cupola_ir::dtype::Class;
use cupola_ir::{CoreOp, DType, Graph, NodeId, Op, Scalar, ValueId};

/// A value with the extents of a node's result in place of the node.
fn instead(graph: &mut Graph, id: NodeId, value: ValueId) -> Rewrite {
    let result = graph.node(id).results[0];
    if graph.tensor(value).rank() != graph.tensor(result).rank() {
        return Ok(None);
    }
    // Extents that are equal only at run time: keep the node, which says so.
    let same = graph
        .dims(value)
        .iter()
        .zip(&graph.dims(result))
        .all(|(a, b)| a == b);
    Ok(same.then(|| value.into()))
}

/// A number of the result's extents and dtype.
fn number(graph: &mut Graph, id: NodeId, value: f64) -> Rewrite {
    let ty = graph.tensor(graph.node(id).results[0]);
    let c = graph.number(value, ty.dtype)?;
    let out = graph.broadcast_to(c, &ty.dims)?;
    Ok(Some(out.into()))
}

pub(super) fn map(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::Map(p)) = &node.op else {
        return Ok(None);
    };
    let xs = node.operands.clone();
    match (p.f, &xs[..]) {
        (f, [x]) => unary(graph, id, f, *x),
        (f, [x, y]) => binary(graph, id, f, *x, *y),
        (Scalar::Select, [c, x, y]) => {
            if x == y {
                return instead(graph, id, *x);
            }
            match graph.as_uniform(*c) {
                Some(0.0) => instead(graph, id, *y),
                Some(_) => instead(graph, id, *x),
                None => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

fn unary(graph: &mut Graph, id: NodeId, f: Scalar, x: ValueId) -> Rewrite {
    let Op::Core(CoreOp::Map(inner)) = graph.op_of(x) else {
        return Ok(None);
    };
    let y = graph.def(x).operands[0];
    match (f, inner.f) {
        (Scalar::Neg, Scalar::Neg) | (Scalar::Not, Scalar::Not) => instead(graph, id, y),
        (Scalar::Abs, Scalar::Neg | Scalar::Abs) => {
            let out = graph.unary(Scalar::Abs, y)?;
            Ok(Some(out.into()))
        }
        (
            Scalar::Floor | Scalar::Ceil | Scalar::Round | Scalar::Trunc,
            Scalar::Floor | Scalar::Ceil | Scalar::Round | Scalar::Trunc,
        ) => instead(graph, id, x),
        _ => Ok(None),
    }
}

fn binary(graph: &mut Graph, id: NodeId, f: Scalar, x: ValueId, y: ValueId) -> Rewrite {
    let dtype = graph.dtype(x);
    let int = dtype.is_int();
    let (a, b) = (graph.as_uniform(x), graph.as_uniform(y));
    match (f, a, b) {
        (Scalar::Mul, Some(1.0), _) => instead(graph, id, y),
        (Scalar::Mul | Scalar::Div, _, Some(1.0)) => instead(graph, id, x),
        (Scalar::Pow, _, Some(1.0)) if graph.dtype(y) == dtype => instead(graph, id, x),
        (Scalar::Pow, _, Some(2.0)) if graph.dtype(y) == dtype => {
            let out = graph.binary(Scalar::Mul, x, x)?;
            Ok(Some(out.into()))
        }
        (Scalar::Mul, _, Some(-1.0)) if dtype.is_float() => {
            let out = graph.unary(Scalar::Neg, x)?;
            Ok(Some(out.into()))
        }
        (Scalar::Add | Scalar::Or | Scalar::Xor, Some(0.0), _) if int => instead(graph, id, y),
        (
            Scalar::Add | Scalar::Sub | Scalar::Or | Scalar::Xor | Scalar::Shl | Scalar::Shr,
            _,
            Some(0.0),
        ) if int => instead(graph, id, x),
        // x - (+0) is x for every float; of x + c only c = -0 is.
        (Scalar::Sub, _, Some(c)) if c == 0.0 && c.is_sign_positive() => instead(graph, id, x),
        (Scalar::Add, _, Some(c)) if c == 0.0 && c.is_sign_negative() => instead(graph, id, x),
        (Scalar::Mul | Scalar::And, Some(0.0), _) | (Scalar::Mul | Scalar::And, _, Some(0.0))
            if int =>
        {
            number(graph, id, 0.0)
        }
        (Scalar::Sub, _, _) if int && x == y => number(graph, id, 0.0),
        (Scalar::Eq | Scalar::Le, _, _) if x == y && !dtype.is_float() => number(graph, id, 1.0),
        (Scalar::Lt, _, _) if x == y => number(graph, id, 0.0),
        (Scalar::Min | Scalar::Max | Scalar::And | Scalar::Or, _, _) if x == y => {
            instead(graph, id, x)
        }
        (_, _, _) if dtype == DType::Bool => boolean(graph, id, f, [x, y], [a, b]),
        (Scalar::Div, _, Some(c)) => divide(graph, x, c),
        _ => Ok(None),
    }
}

fn boolean(
    graph: &mut Graph,
    id: NodeId,
    f: Scalar,
    [x, y]: [ValueId; 2],
    known: [Option<f64>; 2],
) -> Rewrite {
    let (constant, other) = match known {
        [Some(c), _] => (c != 0.0, y),
        [_, Some(c)] => (c != 0.0, x),
        [None, None] => return Ok(None),
    };
    match (f, constant) {
        (Scalar::And, true) | (Scalar::Or, false) | (Scalar::Xor, false) | (Scalar::Eq, true) => {
            instead(graph, id, other)
        }
        (Scalar::And, false) => number(graph, id, 0.0),
        (Scalar::Or, true) => number(graph, id, 1.0),
        (Scalar::Xor, true) | (Scalar::Eq, false) => {
            let out = graph.unary(Scalar::Not, other)?;
            Ok(Some(out.into()))
        }
        _ => Ok(None),
    }
}

/// Division by a power of two is an exact product.
fn divide(graph: &mut Graph, x: ValueId, c: f64) -> Rewrite {
    let range = match graph.dtype(x) {
        DType::F64 => 1000,
        DType::F32 | DType::BF16 => 100,
        DType::F16 => 10,
        _ => return Ok(None),
    };
    let exponent = c.abs().log2();
    if exponent.fract() != 0.0 || exponent.abs() > f64::from(range) || c.abs() != exponent.exp2() {
        return Ok(None);
    }
    let out = graph.scale(x, 1.0 / c)?;
    Ok(Some(out.into()))
}

pub(super) fn cast(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let x = match node.operands.first() {
        Some(x) => *x,
        None => return Ok(None),
    };
    match &node.op {
        Op::Core(CoreOp::Cast(p)) => {
            if graph.dtype(x) == p.to {
                return instead(graph, id, x);
            }
            let Op::Core(CoreOp::Cast(_)) = graph.op_of(x) else {
                return Ok(None);
            };
            let y = graph.def(x).operands[0];
            let (from, through) = (graph.dtype(y), graph.dtype(x));
            if !holds_exactly(from, through) {
                return Ok(None);
            }
            let p = p.clone();
            if from == p.to {
                return instead(graph, id, y);
            }
            let out = graph.one(p, &[y])?;
            Ok(Some(out.into()))
        }
        Op::Core(CoreOp::Bitcast(p)) if graph.dtype(x) == p.to => instead(graph, id, x),
        _ => Ok(None),
    }
}

/// Whether every value of one dtype is a value of the other.
pub(crate) fn holds_exactly(from: DType, to: DType) -> bool {
    if from == to {
        return true;
    }
    let mantissa = |d: DType| match d {
        DType::F64 => 53,
        DType::F32 => 24,
        DType::F16 => 11,
        DType::BF16 => 8,
        _ => 0,
    };
    match (from.class(), to.class()) {
        (Class::Bool, Class::Signed | Class::Unsigned) => true,
        (Class::Bool, Class::Float) => mantissa(to) > 0,
        (Class::Signed | Class::Unsigned, Class::Signed | Class::Unsigned) => {
            match (from.int_range(), to.int_range()) {
                (Some((a, b)), Some((c, d))) => c <= a && b <= d,
                _ => false,
            }
        }
        (Class::Signed | Class::Unsigned, Class::Float) => from.bits() <= mantissa(to),
        (Class::Float, Class::Float) => matches!(
            (from, to),
            (DType::F32, DType::F64)
                | (DType::F16 | DType::BF16, DType::F32 | DType::F64)
                | (
                    DType::F8E4M3FN
                        | DType::F8E5M2
                        | DType::F8E4M3FNUZ
                        | DType::F8E5M2FNUZ
                        | DType::F4E2M1,
                    DType::F32 | DType::F64 | DType::F16
                )
        ),
        _ => false,
    }
}

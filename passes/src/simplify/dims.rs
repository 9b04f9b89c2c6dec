//! Shape arithmetic: small integer tensors whose elements are known as dimensions are computed symbolically; symbols
//! bound to what is known disappear.

use super::{Found, Rewrite};
use crate::region::Symbols;
use cupola_ir::ops::*;
use cupola_ir::{CoreOp, DType, Dim, Graph, NodeId, Op, Scalar, SymRange, Tensor, ValueId};

/// Most elements of a tensor of dimensions.
const MAX_LEN: usize = 64;

/// The elements of an i64 tensor as dimensions, when it is a constant or made of dimensions.
pub(super) fn known(graph: &Graph, value: ValueId) -> Option<Vec<Dim>> {
    let ty = graph.ty(value).as_tensor()?;
    let len = ty
        .const_shape()?
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))?;
    if ty.dtype != DType::I64 || len > MAX_LEN {
        return None;
    }
    let node = graph.def(value);
    match &node.op {
        Op::Core(CoreOp::Const(c)) => {
            Some(c.value.to_i64s()?.into_iter().map(Dim::Const).collect())
        }
        Op::Core(CoreOp::Dims(p)) => Some(p.dims.clone()),
        Op::Core(CoreOp::Reshape(_) | CoreOp::BindDim(_)) => known(graph, node.operands[0]),
        Op::Core(CoreOp::Broadcast(_)) => match &known(graph, node.operands[0])?[..] {
            [one] => Some(vec![one.clone(); len]),
            _ => None,
        },
        _ => None,
    }
}

/// Replaces a node on known dimensions by its value.
pub(super) fn evaluate(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(op) = &node.op else {
        return Ok(None);
    };
    let result = match node.results.first() {
        Some(v) => graph.ty(*v).as_tensor().cloned(),
        None => None,
    };
    let Some((ty, shape)) = result.and_then(|t| t.const_shape().map(|s| (t, s))) else {
        return Ok(None);
    };
    let len = shape.iter().fold(1usize, |n, d| n.saturating_mul(*d));
    if !matches!(ty.dtype, DType::I64 | DType::Bool) || len > MAX_LEN {
        return Ok(None);
    }
    let xs: Vec<Option<Vec<Dim>>> = node.operands.iter().map(|v| known(graph, *v)).collect();
    let dims = match op {
        CoreOp::Dims(p) if p.dims.iter().all(|d| d.as_const().is_some()) => Some(p.dims.clone()),
        CoreOp::Map(p) => {
            let xs: Option<Vec<Vec<Dim>>> = xs.into_iter().collect();
            xs.and_then(|xs| {
                (0..len)
                    .map(|i| scalar(graph, p.f, &xs.iter().map(|x| &x[i]).collect::<Vec<_>>()))
                    .collect()
            })
        }
        CoreOp::Slice(p) if shape.len() == 1 => xs[0].as_ref().and_then(|x| {
            let start = p.starts[0].as_const()?;
            let at = |i: usize| start.checked_add((i as i64).checked_mul(p.steps[0])?);
            (0..len)
                .map(|i| x.get(usize::try_from(at(i)?).ok()?).cloned())
                .collect()
        }),
        CoreOp::Concat(p) if p.axis == 0 => {
            let xs: Option<Vec<Vec<Dim>>> = xs.into_iter().collect();
            xs.map(|x| x.concat())
        }
        CoreOp::Gather(p) if p.axes == [0] && p.batch == 0 && p.bounds == Bounds::Check => {
            match &xs[..] {
                [Some(data), Some(index)] if graph.rank(node.operands[0]) == 1 => index
                    .iter()
                    .map(|i| data.get(usize::try_from(i.as_const()?).ok()?).cloned())
                    .collect(),
                _ => None,
            }
        }
        CoreOp::Reduce(p) if shape.is_empty() => xs[0]
            .as_ref()
            .and_then(|x| match p.kind {
                ReduceKind::Sum => Some(x.iter().fold(Dim::ZERO, |a, b| a + b.clone())),
                ReduceKind::Prod => Some(Dim::product(x)),
                ReduceKind::Max => x.iter().cloned().reduce(|a, b| a.larger(&b)),
                ReduceKind::Min => x.iter().cloned().reduce(|a, b| a.smaller(&b)),
            })
            .map(|d| vec![d]),
        _ => None,
    };
    let Some(dims) = dims.filter(|d| d.len() == len) else {
        return Ok(None);
    };
    let numbers: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
    let flat = match (numbers, ty.dtype) {
        (Some(n), DType::I64) => graph.constant(Tensor::vector(&n))?,
        (Some(n), _) => {
            let bytes: Vec<u8> = n.iter().map(|b| u8::from(*b != 0)).collect();
            match Tensor::new(DType::Bool, vec![len], bytes.into()) {
                Some(t) => graph.constant(t)?,
                None => return Ok(None),
            }
        }
        (None, DType::I64) => graph.one(Dims { dims }, &[])?,
        (None, _) => return Ok(None),
    };
    Ok(Some(graph.reshape(flat, &ty.dims)?.into()))
}

/// A scalar function on dimensions; comparisons only where the answer is known.
fn scalar(graph: &Graph, f: Scalar, x: &[&Dim]) -> Option<Dim> {
    if x.iter().any(|d| d.is_longer_than(Dim::FOLLOWED)) {
        return None;
    }
    let range = |d: &Dim| d.range(&|s| graph.ranges.get(s).copied().unwrap_or(SymRange::default()));
    let truth = |b: bool| Some(Dim::Const(i64::from(b)));
    match (f, x) {
        (Scalar::Neg, [a]) => Some(-(*a).clone()),
        (Scalar::Add, [a, b]) => Some((*a).clone() + (*b).clone()),
        (Scalar::Sub, [a, b]) => Some((*a).clone() - (*b).clone()),
        (Scalar::Mul, [a, b]) => Some((*a).clone() * (*b).clone()),
        // Truncation is rounding down where neither is negative.
        (Scalar::Div, [a, b]) if range(a).0 >= 0 && range(b).0 > 0 => Some(a.floor_div(b)),
        (Scalar::Min, [a, b]) => Some(a.smaller(b)),
        (Scalar::Max, [a, b]) => Some(a.larger(b)),
        (Scalar::Eq, [a, b]) => match (*a - *b).as_const() {
            Some(d) => truth(d == 0),
            None => {
                let (low, high) = range(&(*a - *b));
                if low > 0 || high < 0 {
                    truth(false)
                } else {
                    None
                }
            }
        },
        (Scalar::Lt, [a, b]) => {
            let (low, high) = range(&(*a - *b));
            match (high < 0, low >= 0) {
                (true, _) => truth(true),
                (_, true) => truth(false),
                _ => None,
            }
        }
        (Scalar::Le, [a, b]) => {
            let (low, high) = range(&(*a - *b));
            match (high <= 0, low > 0) {
                (true, _) => truth(true),
                (_, true) => truth(false),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A symbol bound to a known dimension is that dimension.
pub(super) fn bind(graph: &mut Graph, id: NodeId) -> Rewrite {
    let node = graph.node(id);
    let Op::Core(CoreOp::BindDim(p)) = &node.op else {
        return Ok(None);
    };
    let x = node.operands[0];
    let value = known(graph, x);
    let Some([dim]) = value.as_deref() else {
        return Ok(None);
    };
    if dim.as_const().is_some_and(|c| c < p.min) {
        return Ok(None);
    }
    let mut own = false;
    dim.for_each_sym(&mut |s| own |= *s == p.sym);
    if own {
        return Ok(None);
    }
    Ok(Some(Found {
        results: vec![x],
        symbols: Symbols::from_iter([(p.sym.clone(), dim.clone())]),
    }))
}

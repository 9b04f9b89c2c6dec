//! Constant folding: nodes on small constants are interpreted once, here.

use super::Found;
use cupola_ir::eval::{Env, eval_op};
use cupola_ir::ops::Const;
use cupola_ir::{CoreOp, Graph, IrError, NodeId, Op, OpClass, Tensor, Value, ValueId};

/// Most bytes of a folded result: the interpreter is slow, and folding must not blow up what a file stores compactly.
const MAX_RESULT: usize = 64 << 10;
/// Most bytes of all operands together.
const MAX_OPERANDS: usize = 1 << 20;
/// Most result elements times reduced elements.
const MAX_WORK: usize = 1 << 22;

pub(super) fn fold(graph: &mut Graph, id: NodeId) -> Result<Option<Found>, IrError> {
    let node = graph.node(id);
    let class = node.op.class();
    let foldable = match class {
        OpClass::Elementwise
        | OpClass::Reduction
        | OpClass::Contraction
        | OpClass::Indexed
        | OpClass::Composite => true,
        // Repetition is free where it is used, and not free to store.
        OpClass::View => !matches!(node.op, Op::Core(CoreOp::Broadcast(_) | CoreOp::Window(_))),
        OpClass::Host => node.op.binds().is_empty(),
        OpClass::Leaf | OpClass::Control | OpClass::Effect => false,
    };
    if !foldable || node.operands.is_empty() {
        return Ok(None);
    }
    let small = node.results.iter().all(|v| {
        graph.ty(*v).as_tensor().is_some_and(|t| {
            let shape = t.const_shape();
            shape.is_some_and(|s| size(t.dtype, &s).is_some_and(|n| n <= MAX_RESULT))
        })
    });
    if !small {
        return Ok(None);
    }
    let mut operands = vec![];
    let (mut bytes, mut work) = (0usize, 1usize);
    for v in &node.operands {
        let Some(t) = constant(graph, *v) else {
            return Ok(None);
        };
        bytes = bytes.saturating_add(t.bytes().len());
        work = work.saturating_mul(t.len().max(1));
        operands.push(Value::Tensor(t));
    }
    if bytes > MAX_OPERANDS || class == OpClass::Contraction && work > MAX_WORK {
        return Ok(None);
    }
    let types: Vec<_> = node.results.iter().map(|v| graph.ty(*v).clone()).collect();
    let refs: Vec<&Value> = operands.iter().collect();
    // What fails on these constants fails in the run, with the place in the model.
    let Ok(values) = eval_op(&node.op, &refs, &types, &mut Env::default()) else {
        return Ok(None);
    };
    let mut results = vec![];
    for value in values {
        match value {
            Value::Tensor(t) => results.push(graph.constant(t)?),
            Value::Sequence(_) | Value::Optional(_) => return Ok(None),
        }
    }
    Ok(Some(Found {
        results,
        ..Found::default()
    }))
}

fn size(dtype: cupola_ir::DType, shape: &[usize]) -> Option<usize> {
    if dtype == cupola_ir::DType::String {
        return shape.iter().try_fold(16usize, |n, d| n.checked_mul(*d));
    }
    Tensor::size_of(dtype, shape)
}

/// The value as a constant: also through a repetition, when that is small.
pub(super) fn constant(graph: &Graph, value: ValueId) -> Option<Tensor> {
    match graph.op_of(value) {
        Op::Core(CoreOp::Const(Const { value })) => Some(value.clone()),
        Op::Core(op @ CoreOp::Broadcast(_)) => {
            let ty = graph.tensor(value);
            let size = size(ty.dtype, &ty.const_shape()?)?;
            if size > MAX_RESULT {
                return None;
            }
            let x = constant(graph, graph.def(value).operands[0])?;
            let op = Op::Core(op.clone());
            let out = eval_op(&op, &[&Value::Tensor(x)], &[ty.into()], &mut Env::default());
            match out.ok()?.pop()? {
                Value::Tensor(t) => Some(t),
                Value::Sequence(_) | Value::Optional(_) => None,
            }
        }
        _ => None,
    }
}

/// The value of an elementwise node on constants, whatever its size: for rewrites that replace a weight by another of
/// the same size.
pub(crate) fn constant_of(graph: &Graph, value: ValueId) -> Option<Tensor> {
    let node = graph.def(value);
    if node.op.class() != OpClass::Elementwise {
        return None;
    }
    let mut operands = vec![];
    for v in &node.operands {
        operands.push(Value::Tensor(wide_constant(graph, *v)?));
    }
    let refs: Vec<&Value> = operands.iter().collect();
    let types = [graph.ty(value).clone()];
    match eval_op(&node.op, &refs, &types, &mut Env::default())
        .ok()?
        .pop()?
    {
        Value::Tensor(t) => Some(t),
        Value::Sequence(_) | Value::Optional(_) => None,
    }
}

/// A constant through views of any size.
fn wide_constant(graph: &Graph, value: ValueId) -> Option<Tensor> {
    let node = graph.def(value);
    match &node.op {
        Op::Core(CoreOp::Const(c)) => Some(c.value.clone()),
        Op::Core(CoreOp::Broadcast(_) | CoreOp::Reshape(_)) => {
            let x = Value::Tensor(wide_constant(graph, node.operands[0])?);
            let types = [graph.ty(value).clone()];
            match eval_op(&node.op, &[&x], &types, &mut Env::default())
                .ok()?
                .pop()?
            {
                Value::Tensor(t) => Some(t),
                Value::Sequence(_) | Value::Optional(_) => None,
            }
        }
        _ => None,
    }
}

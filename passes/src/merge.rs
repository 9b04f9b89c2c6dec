//! Merges products of one value with several constant matrices into one product with the matrices side by side: the
//! queries, keys and values of an attention, the gate and value of a gated unit. Biases are merged with them; the
//! parts of the result are views.
//!
//! Rule: only where the parts go on as views to library kernels, or meet in one gated unit; anything else would lose
//! the epilogue that it is for its product.

use crate::edit::Edits;
use crate::{Context, PassError, Result, Work};
use cupola_ir::eval::{Env, eval_op};
use cupola_ir::ops::{Concat, Contract};
use cupola_ir::{
    CompositeOp, CoreOp, DType, Dim, Graph, IrError, NodeId, Op, OpClass, Scalar, Tensor, Value,
    ValueId, ValueType,
};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

type Users = [SmallVec<[NodeId; 2]>];

/// One product.
struct Part {
    /// What the rest of the graph uses: the product, or its sum with the bias.
    result: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    /// Columns.
    width: usize,
}

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    let error = |error: IrError| PassError::Graph {
        pass: "merge",
        error,
    };
    let graph = &mut work.graph;
    let users = graph.users();
    let mut edits = Edits::default();
    for (x, op, parts) in groups(graph, &users) {
        let results = merge(graph, x, &op, &parts).map_err(error)?;
        for (part, new) in parts.iter().zip(results) {
            edits.replace(part.result, new);
        }
    }
    edits.apply(work).map_err(error)?;
    Ok(())
}

/// Products that become one, with their common operand and op.
fn groups(graph: &Graph, users: &Users) -> Vec<(ValueId, Contract, Vec<Part>)> {
    let mut at: FxHashMap<(ValueId, usize, DType, DType), usize> = FxHashMap::default();
    let mut all: Vec<(ValueId, Contract, Vec<Part>)> = vec![];
    for (id, node) in graph.nodes() {
        let Op::Core(CoreOp::Contract(p)) = &node.op else {
            continue;
        };
        let Some(part) = part(graph, id, p, users) else {
            continue;
        };
        let x = node.operands[0];
        let key = (x, p.rhs_contract[0], graph.dtype(part.weight), p.out);
        let next = all.len();
        let at = *at.entry(key).or_insert(next);
        if at == next {
            all.push((x, p.clone(), vec![]));
        }
        if all[at].1 == *p {
            all[at].2.push(part);
        }
    }
    all.retain(|(_, _, parts)| parts.len() > 1 && is_worth_it(graph, parts, users));
    all
}

/// A product of the last axis with a constant matrix, and the bias that is added to it.
fn part(graph: &Graph, id: NodeId, p: &Contract, users: &Users) -> Option<Part> {
    let node = graph.node(id);
    let (product, weight) = (node.results[0], node.operands[1]);
    let constant = graph.as_const(weight)?;
    let [_, _] = *constant.shape() else {
        return None;
    };
    let plain = p.lhs_batch.is_empty() && p.rhs_contract.len() == 1 && p.out.is_float();
    let is_output = graph.outputs().iter().any(|(_, v)| *v == product);
    if !plain || is_output {
        return None;
    }
    let width = constant.shape()[1 - p.rhs_contract[0]];
    let bias = match users[product.index()][..] {
        [user] => added(graph, user, product, width),
        _ => None,
    };
    Some(Part {
        result: bias.map_or(product, |(sum, _)| sum),
        weight,
        bias: bias.map(|(_, b)| b),
        width,
    })
}

/// The sum and the bias, when a node adds a constant vector of the last axis to the product.
fn added(
    graph: &Graph,
    user: NodeId,
    product: ValueId,
    width: usize,
) -> Option<(ValueId, ValueId)> {
    let node = graph.node(user);
    match (&node.op, &node.operands[..]) {
        (Op::Core(CoreOp::Map(f)), [x, y]) if f.f == Scalar::Add && x != y => {
            let wide = if *x == product { *y } else { *x };
            let Op::Core(CoreOp::Broadcast(_)) = graph.op_of(wide) else {
                return None;
            };
            let bias = graph.def(wide).operands[0];
            let len = graph.as_const(bias)?.len();
            let dims = graph.dims(bias);
            (len == width && dims.last() == Some(&Dim::from(width)))
                .then_some((node.results[0], bias))
        }
        _ => None,
    }
}

fn is_worth_it(graph: &Graph, parts: &[Part], users: &Users) -> bool {
    let gate = |part: &Part| match users[part.result.index()][..] {
        [user] => {
            matches!(graph.node(user).op, Op::Composite(CompositeOp::Swiglu(_))).then_some(user)
        }
        _ => None,
    };
    let gated = gate(&parts[0]).is_some_and(|g| parts.iter().all(|p| gate(p) == Some(g)));
    gated
        || parts
            .iter()
            .all(|p| goes_to_libraries(graph, p.result, users))
}

/// Whether all uses of a value, views of it included, are operands of attention.
fn goes_to_libraries(graph: &Graph, value: ValueId, users: &Users) -> bool {
    // A few reshapes and permutations; longer chains are something else.
    let mut budget = 16;
    let mut work = vec![value];
    while let Some(v) = work.pop() {
        let is_output = graph.outputs().iter().any(|(_, o)| *o == v);
        if is_output || users[v.index()].is_empty() || budget == 0 {
            return false;
        }
        budget -= 1;
        for user in &users[v.index()] {
            let node = graph.node(*user);
            match &node.op {
                Op::Composite(CompositeOp::Attention(_)) => {}
                op if op.class() == OpClass::View => work.extend(&node.results),
                _ => return false,
            }
        }
    }
    true
}

/// The parts of the merged product, one per product.
fn merge(
    graph: &mut Graph,
    x: ValueId,
    op: &Contract,
    parts: &[Part],
) -> Result<Vec<ValueId>, IrError> {
    let weights: Vec<Tensor> = parts
        .iter()
        .filter_map(|p| graph.as_const(p.weight).cloned())
        .collect();
    let weight = join(graph, weights, 1 - op.rhs_contract[0])?;
    let mut y = graph.one(op.clone(), &[x, weight])?;
    let dtype = graph.dtype(y);
    if parts.iter().any(|p| p.bias.is_some()) {
        let mut biases = vec![];
        for p in parts {
            let flat = match p.bias.and_then(|b| graph.as_const(b)) {
                Some(b) => b.reshaped(vec![p.width]),
                None => cupola_ir::convert::splat(0.0, dtype).and_then(|zero| {
                    Tensor::new(dtype, vec![p.width], zero.bytes().repeat(p.width).into())
                }),
            };
            biases.extend(flat);
        }
        let bias = join(graph, biases, 0)?;
        y = graph.binary(Scalar::Add, y, bias)?;
    }
    let axis = graph.rank(y) - 1;
    let mut start = 0;
    let mut results = vec![];
    for p in parts {
        results.push(graph.slice_axis(y, axis, &start.into(), &p.width.into())?);
        start += p.width;
    }
    Ok(results)
}

/// Constants side by side.
fn join(graph: &mut Graph, parts: Vec<Tensor>, axis: usize) -> Result<ValueId, IrError> {
    let op = Op::Core(CoreOp::Concat(Concat { axis }));
    let types: Vec<ValueType> = parts.iter().map(|t| t.ty().into()).collect();
    let values: Vec<Value> = parts.into_iter().map(Value::Tensor).collect();
    let refs: Vec<_> = types.iter().collect();
    let result = op
        .infer(&refs)
        .map_err(|what| IrError::op("concat", what))?;
    let refs: Vec<&Value> = values.iter().collect();
    match eval_op(&op, &refs, &result, &mut Env::default())?.pop() {
        Some(Value::Tensor(t)) => graph.constant(t),
        _ => unreachable!("bug: a join of tensors is a tensor"),
    }
}

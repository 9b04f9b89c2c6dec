//! Products and rows of block-quantised weights: the conversion to floats happens inside the product's kernel, and after
//! rows were picked, never to the whole matrix.

use super::Cx;
use super::look::before_cast;
use crate::precision::Precision;
use cupola_ir::dtype::Class;
use cupola_ir::ops::Contract;
use cupola_ir::{CoreOp, DType, Graph, IrError, NodeId, Op, ValueId};

/// `contract(x, cast(w))` with a block-quantised constant `w` becomes `contract(x, w)`, also when `w` is transposed or the
/// left operand. The sum is in integers when activations may be rounded to 8 bits.
pub(super) fn dequantise(
    g: &mut Graph,
    id: NodeId,
    cx: &mut Cx,
) -> Result<Option<ValueId>, IrError> {
    let node = g.node(id);
    let Op::Core(CoreOp::Contract(p)) = &node.op else {
        return Ok(None);
    };
    let (p, result) = (p.clone(), node.results[0]);
    let [l, r] = [node.operands[0], node.operands[1]];
    let Some((x, w, axes, is_left)) = (blocks(g, r).map(|(w, axes)| (l, w, axes, false)))
        .or_else(|| blocks(g, l).map(|(w, axes)| (r, w, axes, true)))
    else {
        return Ok(None);
    };
    if !p.lhs_batch.is_empty() {
        return Ok(cx.near(result, "product: the quantised weight has batch axes"));
    }
    let (own, other) = match is_left {
        false => (&p.lhs_contract, &p.rhs_contract),
        true => (&p.rhs_contract, &p.lhs_contract),
    };
    let summed: Vec<usize> = other.iter().map(|a| axes[*a]).collect();
    let free = Contract::free(axes.len(), &[], other);
    // Blocks lie along the last axis: only a product along it reads whole blocks.
    let along = summed.last().copied() == g.rank(w).checked_sub(1);
    if !along || !free.iter().map(|a| axes[*a]).is_sorted() {
        let what = "product: the quantised weight is not summed along its last axis";
        return Ok(cx.near(result, what));
    }
    let accum = match cx.context.options.precision {
        Precision::Model | Precision::Int8 => DType::I32,
        Precision::F32 | Precision::Bf16 | Precision::F16 => p.accum,
    };
    let product = Contract {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: own.clone(),
        rhs_contract: summed,
        accum,
        out: p.out,
    };
    let op = Op::Core(CoreOp::Contract(product));
    if !cx.is_claimed(g, &op, &[x, w]) {
        return Ok(None);
    }
    let y = g.one(op, &[x, w])?;
    if !is_left {
        return Ok(Some(y));
    }
    let (rows, cols) = (g.rank(y) - free.len(), free.len());
    let perm: Vec<usize> = (rows..rows + cols).chain(0..rows).collect();
    g.permute(y, &perm).map(Some)
}

/// The block-quantised constant that a value is the floats of, and which of its axes each of the value's is.
fn blocks(g: &Graph, v: ValueId) -> Option<(ValueId, Vec<usize>)> {
    if let Op::Core(CoreOp::Permute(p)) = g.op_of(v) {
        let (w, axes) = blocks(g, g.def(v).operands[0])?;
        return Some((w, p.perm.iter().map(|a| axes[*a]).collect()));
    }
    let w = before_cast(g, v);
    let is_blocks = w != v && g.dtype(w).class() == Class::Block && g.as_const(w).is_some();
    is_blocks.then(|| (w, (0..g.rank(w)).collect()))
}

/// `gather(cast(w))` of whole rows of block-quantised `w` becomes `cast(gather(w))`.
pub(super) fn rows(g: &mut Graph, id: NodeId, _: &mut Cx) -> Result<Option<ValueId>, IrError> {
    let node = g.node(id);
    let Op::Core(CoreOp::Gather(p)) = &node.op else {
        return Ok(None);
    };
    let wide = node.operands[0];
    let w = before_cast(g, wide);
    let last = g.rank(w).checked_sub(1);
    let whole = last.is_some_and(|last| !p.axes.contains(&last) && p.batch <= last);
    if w == wide || g.dtype(w).class() != Class::Block || !whole {
        return Ok(None);
    }
    let mut operands = node.operands.to_vec();
    let (op, cast) = (node.op.clone(), g.op_of(wide).clone());
    operands[0] = w;
    let picked = g.one(op, &operands)?;
    g.one(cast, &[picked]).map(Some)
}

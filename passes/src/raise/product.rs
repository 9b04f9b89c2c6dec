//! Products that read block-quantised weights: the conversion to floats happens inside the product's kernel.

use super::Cx;
use super::look::before_cast;
use cupola_ir::dtype::Class;
use cupola_ir::{CoreOp, Graph, IrError, NodeId, Op, ValueId};

/// `contract(x, cast(w))` with block-quantised `w` becomes `contract(x, w)`.
pub(super) fn dequantise(
    g: &mut Graph,
    id: NodeId,
    cx: &mut Cx,
) -> Result<Option<ValueId>, IrError> {
    let node = g.node(id);
    let Op::Core(CoreOp::Contract(p)) = &node.op else {
        return Ok(None);
    };
    let (x, w) = (node.operands[0], node.operands[1]);
    let packed = before_cast(g, w);
    if packed == w || g.dtype(packed).class() != Class::Block {
        return Ok(None);
    }
    // Blocks lie along the last axis: only a product along it reads whole blocks.
    let last = g.rank(packed).checked_sub(1);
    if p.rhs_contract.last().copied() != last {
        let _: Option<()> = cx.near(
            g.node(id).results[0],
            "product: the quantised weight is not summed along its last axis",
        );
        return Ok(None);
    }
    let op = Op::Core(CoreOp::Contract(p.clone()));
    if !cx.is_claimed(g, &op, &[x, packed]) {
        return Ok(None);
    }
    g.one(op, &[x, packed]).map(Some)
}

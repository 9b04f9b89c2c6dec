//! Work as dimensions: scalar operations of nodes, and what a graph computes and holds.

use cupola_ir::ops::Contract;
use cupola_ir::{CompositeOp, CoreOp, Dim, Graph, Node, Op, TensorType, ValueId};

/// Scalar operations of one node; a multiply-add counts as two, a function as one, moving elements as none.
pub fn node_flops(graph: &Graph, node: &Node) -> Dim {
    let len = |v: &ValueId| graph.ty(*v).as_tensor().map_or(Dim::ZERO, TensorType::len);
    let result = || node.results.first().map_or(Dim::ZERO, len);
    let two = Dim::from(2usize);
    match &node.op {
        Op::Core(op) => match op {
            CoreOp::Map(_) | CoreOp::Cast(_) | CoreOp::Random(_) => result(),
            CoreOp::Reduce(_) | CoreOp::ArgReduce(_) | CoreOp::Fold(_) => len(&node.operands[0]),
            CoreOp::Contract(p) => two * result() * contracted(graph, node, p),
            _ => Dim::ZERO,
        },
        Op::Composite(op) => match op {
            CompositeOp::Conv(_) | CompositeOp::ConvChannelsLast(_) => {
                let w = graph.dims(node.operands[1]);
                two * result() * Dim::product(&w[1..])
            }
            CompositeOp::ConvTranspose(_) => {
                let w = graph.dims(node.operands[1]);
                two * len(&node.operands[0]) * Dim::product(&w[1..])
            }
            // Every element of dy meets every place of its windows.
            CompositeOp::ConvWeightGradient(p) => {
                let inner = graph.dim(node.operands[0], p.kernel.len() + 1);
                let taps = Dim::product(&p.kernel) * inner.floor_div(&Dim::from(p.groups));
                two * len(&node.operands[1]) * taps
            }
            CompositeOp::Attention(_) => {
                let (q, k, v) = (node.operands[0], node.operands[1], node.operands[2]);
                let scores = len(&q) * graph.dim(k, 2);
                let values = result() * graph.dim(v, 2);
                two * (scores + values)
            }
            // Scores, gradients of scores, and one product for each operand.
            CompositeOp::AttentionGradient(_) => {
                let (q, k, dy) = (node.operands[0], node.operands[1], node.operands[4]);
                let keys = graph.dim(k, 2);
                let (by_depth, by_values) = (len(&q) * keys.clone(), len(&dy) * keys);
                two * (by_depth * Dim::from(3usize) + by_values * Dim::from(2usize))
            }
            _ => expanded_flops(graph, node, op),
        },
        Op::Host(_) => Dim::ZERO,
    }
}

fn contracted(graph: &Graph, node: &Node, p: &Contract) -> Dim {
    let lhs = graph.dims(node.operands[0]);
    Dim::product(p.lhs_contract.iter().map(|a| &lhs[*a]))
}

fn expanded_flops(graph: &Graph, node: &Node, op: &CompositeOp) -> Dim {
    let types: Vec<_> = node.operands.iter().map(|v| graph.ty(*v)).collect();
    op.expand(&types)
        .map_or(Dim::ZERO, |(g, _)| graph_cost(&g).0)
}

/// Scalar operations of a graph (regions once), and bytes of its inputs, constants and outputs.
pub fn graph_cost(graph: &Graph) -> (Dim, Dim) {
    let mut flops = Dim::ZERO;
    let mut bytes = Dim::ZERO;
    for (_, node) in graph.nodes() {
        flops = flops + node_flops(graph, node);
        for region in node.op.regions() {
            flops = flops + graph_cost(region).0;
        }
        if matches!(
            &node.op,
            Op::Core(CoreOp::Input(_) | CoreOp::Const(_) | CoreOp::Param(_))
        ) {
            bytes = bytes
                + node
                    .results
                    .first()
                    .map_or(Dim::ZERO, |v| value_size(graph, *v));
        }
    }
    for (_, v) in graph.outputs() {
        bytes = bytes + value_size(graph, *v);
    }
    (flops, bytes)
}

/// Bytes of a tensor value; sub-byte elements are counted in whole bytes of eight, block types by their blocks.
fn value_size(graph: &Graph, v: ValueId) -> Dim {
    graph.ty(v).as_tensor().map_or(Dim::ZERO, type_size)
}

fn type_size(t: &TensorType) -> Dim {
    match t.dtype {
        cupola_ir::DType::Block(b) => {
            (t.len() * Dim::from(b.block_size())).floor_div(&Dim::from(b.block_len()))
        }
        d if d.bits() >= 8 => t.len() * Dim::from(d.size()),
        d => (t.len() * Dim::from(d.bits())).ceil_div(&Dim::from(8usize)),
    }
}

//! What a unit stands for and costs, as `explain` and profiles report it. Costs are symbolic: one answer for all sizes.

use crate::plan::{Compiled, PlacedUnit};
use cupola_ir::composite::CompositeOp;
use cupola_ir::kernel::{Extent, Kernel, Library, Unit};
use cupola_ir::ops::Contract;
use cupola_ir::{CoreOp, DType, Dim, Graph, NodeId, Op, Origin};
use std::sync::Arc;

/// A unit's account.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitCost {
    /// Name of the unit.
    pub name: String,
    /// Source nodes in it, in order, without repeats.
    pub origins: Vec<Arc<Origin>>,
    /// Arithmetic operations; a multiplication with an addition counts as two, any other scalar function as one.
    pub flops: Dim,
    /// Bytes of all buffer arguments, each once: what a run moves at least, unless it gathers from a part of one.
    pub bytes: Dim,
}

/// The account of the unit at this position of [`Compiled::units`].
pub fn unit_cost(compiled: &Compiled, unit: usize) -> UnitCost {
    let placed: &PlacedUnit = &compiled.units[unit];
    let graph = &compiled.graph;
    let mut origins: Vec<Arc<Origin>> = vec![];
    for origin in placed.nodes.iter().flat_map(|n| &graph.node(*n).origins) {
        if !origins.contains(origin) {
            origins.push(origin.clone());
        }
    }
    let flops = placed
        .nodes
        .iter()
        .fold(Dim::ZERO, |sum, n| sum + node_flops(graph, *n));
    let bytes = match &placed.unit {
        Unit::Loops(k) => kernel_bytes(k, 0),
        Unit::Library(l) => library_bytes(l),
    };
    UnitCost {
        name: placed.unit.name(),
        origins,
        flops,
        bytes,
    }
}

fn node_flops(graph: &Graph, id: NodeId) -> Dim {
    let node = graph.node(id);
    let len = |k: usize| graph.tensor(node.operands[k]).len();
    let out = || graph.tensor(node.results[0]).len();
    let two = Dim::Const(2);
    match &node.op {
        Op::Core(CoreOp::Map(_)) => out(),
        Op::Core(CoreOp::Reduce(_) | CoreOp::ArgReduce(_) | CoreOp::Fold(_)) => len(0),
        Op::Core(CoreOp::Contract(p)) => {
            let Contract { lhs_contract, .. } = p;
            let dims = graph.dims(node.operands[0]);
            two * out() * Dim::product(lhs_contract.iter().map(|a| &dims[*a]))
        }
        Op::Composite(CompositeOp::Conv(_)) => {
            let weight = graph.dims(node.operands[1]);
            two * out() * Dim::product(&weight[1..])
        }
        Op::Composite(op) => {
            let types: Vec<_> = node.operands.iter().map(|v| graph.ty(*v)).collect();
            match op.expand(&types) {
                Ok((inner, _)) => {
                    let nodes: Vec<NodeId> = inner.nodes().map(|(id, _)| id).collect();
                    nodes
                        .into_iter()
                        .fold(Dim::ZERO, |sum, n| sum + node_flops(&inner, n))
                }
                Err(_) => Dim::ZERO,
            }
        }
        Op::Core(_) | Op::Host(_) => Dim::ZERO,
    }
}

fn kernel_bytes(kernel: &Kernel, skip: usize) -> Dim {
    let buffers = kernel.buffers.iter().skip(skip);
    buffers.fold(Dim::ZERO, |sum, b| {
        sum + storage(b.dtype, dim(b.len, &kernel.sizes))
    })
}

fn library_bytes(unit: &Library) -> Dim {
    let views = unit.operands.iter().chain(&unit.results);
    let own = views.fold(Dim::ZERO, |sum, v| {
        // An axis of stride 0 repeats what is there once.
        let axes = v.dims.iter().zip(&v.strides);
        let stored = axes.filter(|(_, s)| **s != Extent::Const(0));
        let len = stored.fold(Dim::ONE, |n, (d, _)| n * dim(*d, &unit.sizes));
        sum + storage(v.dtype, len)
    });
    // Buffers 0 and 1 of an epilogue are the result, which is counted.
    let epilogue = unit.epilogue.as_ref();
    own + epilogue.map_or(Dim::ZERO, |e| kernel_bytes(e, 2))
}

fn dim(extent: Extent, sizes: &[Dim]) -> Dim {
    match extent {
        Extent::Const(c) => Dim::Const(c),
        Extent::Size(s) => sizes[s as usize].clone(),
    }
}

fn storage(dtype: DType, len: Dim) -> Dim {
    match dtype {
        DType::Block(b) => len.floor_div(&b.block_len().into()) * b.block_size().into(),
        _ if dtype.is_whole_byte() => len * dtype.size().into(),
        _ => (len * dtype.bits().into()).ceil_div(&Dim::Const(8)),
    }
}

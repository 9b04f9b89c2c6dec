//! What a unit stands for and costs, as `explain` and profiles report it. Costs are symbolic: one answer for all sizes.

use crate::cost::node_flops;
use crate::plan::{Compiled, PlacedUnit, SlotId, Step, Storage, owner, touched};
use cupola_ir::kernel::{BufferId, Expr, Extent, Index, Kernel, Library, Unit};
use cupola_ir::{DType, Dim, NodeId, Origin};
use rustc_hash::FxHashMap;
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
    /// Bytes of all buffer arguments, each once: what a run moves at least. Of a buffer that is addressed by data, no
    /// more than there are positions to read it from.
    pub bytes: Dim,
    /// Those of [`UnitCost::bytes`] that belong to constants.
    pub constant_bytes: Dim,
}

/// The account of the unit at this position of [`Compiled::units`].
pub fn unit_cost(compiled: &Compiled, unit: usize) -> UnitCost {
    let placed: &PlacedUnit = &compiled.units[unit];
    let graph = &compiled.graph;
    let nodes = placed.nodes.iter();
    let sizes = match &placed.unit {
        Unit::Loops(k) => kernel_sizes(k, 0),
        Unit::Library(l) => library_sizes(l),
    };
    let sum = |sizes: &mut dyn Iterator<Item = &Dim>| sizes.fold(Dim::ZERO, |a, b| a + b.clone());
    let constant = constant_arguments(compiled, unit);
    let constants = sizes.iter().zip(&constant).filter(|(_, c)| **c);
    UnitCost {
        name: placed.unit.name(),
        origins: origins(compiled, &placed.nodes),
        flops: nodes.fold(Dim::ZERO, |sum, n| sum + node_flops(graph, graph.node(*n))),
        bytes: sum(&mut sizes.iter()),
        constant_bytes: sum(&mut constants.map(|(size, _)| size)),
    }
}

/// The source nodes that nodes of the compiled graph stand for, in order, without repeats.
pub fn origins(compiled: &Compiled, nodes: &[NodeId]) -> Vec<Arc<Origin>> {
    let mut all: Vec<Arc<Origin>> = vec![];
    for origin in nodes.iter().flat_map(|n| &compiled.graph.node(*n).origins) {
        if !all.contains(origin) {
            all.push(origin.clone());
        }
    }
    all
}

/// For each step of a plan the earlier steps whose results it reads, in order, without repeats.
pub fn dependencies(compiled: &Compiled) -> Vec<Vec<usize>> {
    let mut writer: FxHashMap<SlotId, usize> = FxHashMap::default();
    let mut all = vec![];
    for (at, step) in compiled.plan.steps.iter().enumerate() {
        let (reads, writes) = touched(compiled, step);
        let owners = reads.iter().map(|(slot, _)| owner(&compiled.plan, *slot));
        let mut from: Vec<usize> = owners.filter_map(|o| writer.get(&o).copied()).collect();
        from.sort_unstable();
        from.dedup();
        all.push(from);
        let owners = writes.iter().map(|(slot, _)| owner(&compiled.plan, *slot));
        writer.extend(owners.map(|o| (o, at)));
    }
    all
}

/// For each buffer argument of a unit whether it is a constant.
fn constant_arguments(compiled: &Compiled, unit: usize) -> Vec<bool> {
    let launch = compiled.plan.steps.iter().find_map(|s| match s {
        Step::Launch { unit: u, buffers } if *u == unit => Some(&buffers[..]),
        _ => None,
    });
    let slots = launch.unwrap_or_default().iter();
    let constant = slots.map(|s| &compiled.plan.slots[s.0 as usize].storage);
    constant
        .map(|s| {
            matches!(
                s,
                Storage::Const(_) | Storage::Made { .. } | Storage::Param(_)
            )
        })
        .collect()
}

/// Bytes of each buffer argument of a kernel.
fn kernel_sizes(kernel: &Kernel, skip: usize) -> Vec<Dim> {
    let gathers = |i: &Index| matches!(i, Index::Checked { .. });
    let positions = kernel.indices.iter().any(gathers).then(|| {
        let axes: Vec<Dim> = (kernel.axes.iter())
            .map(|a| dim(*a, &kernel.sizes))
            .collect();
        Dim::product(&axes)
    });
    let buffers = kernel.buffers.iter().enumerate().skip(skip);
    let each = buffers.map(|(i, b)| {
        let mut len = dim(b.len, &kernel.sizes);
        if let Some(positions) = &positions {
            let of_this =
                |e: &&Expr| matches!(e, Expr::Load { buffer, .. } if *buffer == BufferId(i as u32));
            let loads = kernel.exprs.iter().filter(of_this).count();
            if loads > 0 {
                len = len.smaller(&(positions.clone() * Dim::from(loads)));
            }
        }
        storage(b.dtype, len)
    });
    each.collect()
}

/// Bytes of each buffer argument of a library unit.
fn library_sizes(unit: &Library) -> Vec<Dim> {
    let views = unit.operands.iter().chain(&unit.results);
    let own = views.map(|v| {
        // An axis of stride 0 repeats what is there once.
        let axes = v.dims.iter().zip(&v.strides);
        let stored = axes.filter(|(_, s)| **s != Extent::Const(0));
        let len = stored.fold(Dim::ONE, |n, (d, _)| n * dim(*d, &unit.sizes));
        storage(v.dtype, len)
    });
    // Buffers 0 and 1 of an epilogue are the result, which is counted.
    let epilogue = unit.epilogue.as_ref().map(|e| kernel_sizes(e, 2));
    own.chain(epilogue.into_iter().flatten()).collect()
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

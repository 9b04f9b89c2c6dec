//! From the groups that fusion made to units: generated kernels, and library calls with their views and epilogues.

use super::{Lowered, Parts, Stop, epilogue, kernel, view_of};
use crate::fuse::Group;
use crate::place::Place;
use crate::plan::PlacedUnit;
use crate::{Context, Result, Work};
use cupola_ir::kernel::{Library, Unit, View};
use cupola_ir::{CoreOp, Dim, Graph, NodeId, Op, OpClass, TensorType, ValueId};

/// A unit and the values behind its buffer arguments.
#[derive(Clone, Debug)]
pub(crate) struct LoweredUnit {
    /// The unit and its nodes.
    pub placed: PlacedUnit,
    /// One value per buffer argument.
    pub buffers: Vec<ValueId>,
    /// The value whose node's position in the graph is that of the launch.
    pub launch: ValueId,
}

/// Lowers all groups; where one cannot be lowered as it is, fuses again with the offending value stored.
pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    loop {
        let mut units = vec![];
        let (mut stops, mut apart) = (vec![], vec![]);
        for group in &work.fusion.groups {
            match lower_group(work, group) {
                Ok(unit) => units.push(unit),
                // Each of them alone may be lowered.
                Err(_) if !group.beside.is_empty() => {
                    apart.push(group.root);
                    apart.extend(group.beside.iter().map(|b| b.value));
                }
                Err(stop) => stops.push(stop),
            }
        }
        if stops.is_empty() && apart.is_empty() {
            work.units = units;
            work.misses.append(&mut work.fusion.misses);
            return Ok(());
        }
        work.fusion.apart.extend(apart);
        for stop in stops {
            debug_assert!(!work.fusion.stored[stop.value.index()], "{stop:?}");
            work.fusion.forced.insert(stop.value, stop.code);
        }
        crate::fuse::run(work, context)?;
    }
}

fn lower_group(work: &Work, group: &Group) -> Result<LoweredUnit, Stop> {
    let graph = &work.graph;
    let name = name(graph, group);
    let (unit, buffers) = match group.anchor {
        None => {
            let dims = graph.dims(group.root);
            let is_row = |a: usize| match (&group.parallel, &group.parts) {
                (Some(parallel), _) => !parallel.contains(&(a as u32)),
                // Rows as long as they can be, for all but one axis at least.
                (None, Some((axis, _))) => {
                    let outer = dims[..*axis as usize].iter().any(|d| !d.is(1));
                    a == *axis as usize || outer && dims[a + 1..].iter().all(|d| d.is(1))
                }
                (None, None) => false,
            };
            let row: Vec<bool> = (0..dims.len())
                .map(|a| !dims[a].is(1) && is_row(a))
                .collect();
            let parts = group
                .parts
                .map(|(axis, join)| Parts::new(graph, axis, join));
            let Lowered {
                mut kernel,
                buffers,
            } = kernel(
                graph,
                &work.fusion.stored,
                group.root,
                &row,
                parts.as_ref(),
                &group.beside,
            )?;
            kernel.name = name;
            (Unit::Loops(kernel), buffers)
        }
        Some(anchor) => {
            let (library, buffers) = library(work, group, anchor, name)?;
            (Unit::Library(library), buffers)
        }
    };
    let mut nodes = group.members.clone();
    nodes.sort_unstable();
    Ok(LoweredUnit {
        placed: PlacedUnit {
            device: group.device,
            unit,
            nodes,
        },
        buffers,
        launch: group.launch,
    })
}

fn library(
    work: &Work,
    group: &Group,
    anchor: NodeId,
    name: String,
) -> Result<(Library, Vec<ValueId>), Stop> {
    let graph = &work.graph;
    let node = graph.node(anchor);
    let (strided, converts) = match work.places.of[anchor.index()] {
        Place::Library {
            strided, converts, ..
        } => (strided, converts),
        _ => (false, false),
    };
    let mut unit = Library {
        op: node.op.clone(),
        sizes: vec![],
        operands: vec![],
        results: vec![],
        epilogue: None,
    };
    // Attributes such as paddings may be sizes of their own.
    node.op.for_each_dim(&mut |d| {
        unit.extent(d);
    });
    let mut buffers = vec![];
    for v in &node.operands {
        let ty = graph.tensor(*v);
        if strided {
            let view = view_of(graph, *v, &work.fusion.stored, converts);
            buffers.push(view.base);
            let operand = view_in(&mut unit, &ty, &view.strides, &view.offset);
            unit.operands.push(View {
                dtype: graph.dtype(view.base),
                ..operand
            });
        } else {
            buffers.push(*v);
            let operand = dense(&mut unit, &ty);
            unit.operands.push(operand);
        }
    }
    for v in &node.results {
        let view = dense(&mut unit, &graph.tensor(*v));
        unit.results.push(view);
        buffers.push(*v);
    }
    let result = node.results[0];
    if group.root != result || !group.beside.is_empty() {
        let at = node.operands.len();
        buffers[at] = group.root;
        let dtype = graph.dtype(group.root);
        unit.results[0] = View {
            dtype,
            read: dtype,
            ..unit.results[0].clone()
        };
        let sizes = unit.sizes.clone();
        let Lowered {
            mut kernel,
            buffers: extra,
        } = epilogue(
            graph,
            &work.fusion.stored,
            group.root,
            result,
            sizes,
            &group.beside,
        )?;
        unit.sizes = kernel.sizes.clone();
        kernel.name = name;
        buffers.extend(extra.into_iter().skip(2));
        unit.epilogue = Some(Box::new(kernel));
    }
    Ok((unit, buffers))
}

fn view_in(unit: &mut Library, ty: &TensorType, strides: &[Dim], offset: &Dim) -> View {
    View {
        dtype: ty.dtype,
        read: ty.dtype,
        dims: ty.dims.iter().map(|d| unit.extent(d)).collect(),
        strides: strides.iter().map(|d| unit.extent(d)).collect(),
        offset: unit.extent(offset),
    }
}

fn dense(unit: &mut Library, ty: &TensorType) -> View {
    let mut stride = Dim::ONE;
    let mut strides = vec![Dim::ONE; ty.rank()];
    for (s, d) in strides.iter_mut().zip(&ty.dims).rev() {
        *s = stride.clone();
        stride = stride * d.clone();
    }
    view_in(unit, ty, &strides, &Dim::ZERO)
}

/// A name from what the group computes, in order: `sub_exp_sum`; for a library unit that of its epilogue.
fn name(graph: &Graph, group: &Group) -> String {
    // Longer names say no more.
    const MAX_PARTS: usize = 4;
    let mut nodes: Vec<NodeId> = group.members.clone();
    nodes.sort_unstable();
    let own = nodes.iter().filter(|n| Some(**n) != group.anchor);
    let parts: Vec<String> = own
        .filter_map(|n| {
            let op = &graph.node(*n).op;
            match op {
                Op::Core(CoreOp::Map(p)) => Some(p.f.name().to_string()),
                Op::Core(CoreOp::Reduce(p)) => Some(p.kind.name().to_string()),
                _ if op.class() == OpClass::View && nodes.len() > 1 => None,
                _ => Some(op.name()),
            }
        })
        .collect();
    match parts.len() {
        0 => group.anchor.map_or("copy".into(), |_| String::new()),
        n if n > MAX_PARTS => format!("{}_{}_{}_{}", parts[0], parts[1], n - 3, parts[n - 1]),
        _ => parts.join("_"),
    }
}

//! Says for every node where and how it runs: in a generated kernel, by a library kernel, or interpreted on the host.
//!
//! The primary device runs what it can; the host's CPU runs the rest, in a kernel if it can. Shape arithmetic (tiny
//! integers that come from dimensions or end in one) is interpreted on the host, where symbols are bound.

use crate::decompose::claim;
use crate::plan::{DeviceId, Miss, MissCode};
use crate::{Context, Result, Work};
use cupola_ir::dtype::Class;
use cupola_ir::target::{Claim, Target};
use cupola_ir::{CoreOp, DType, Graph, Node, NodeId, Op, OpClass, ValueId};

/// Most elements of a value that counts as shape arithmetic.
const MAX_TINY: usize = 16;

/// Where and how a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Input, weight, constant or state: exists at the start.
    Leaf,
    /// In a generated kernel on this device.
    Kernel(DeviceId),
    /// By a library kernel.
    Library {
        /// Device.
        device: DeviceId,
        /// Takes strided operands.
        strided: bool,
        /// Takes an epilogue.
        epilogue: bool,
        /// Converts operands when it reads them.
        converts: bool,
    },
    /// Interpreted on the host.
    Host,
    /// Holds regions.
    Control,
    /// Binds a symbol, writes a state, or communicates with other replicas.
    Effect,
}

/// Places of all nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Per node.
    pub of: Vec<Place>,
    /// Per node: computed from dimensions only, so that kernels compute it themselves instead of loading it.
    pub from_dims: Vec<bool>,
}

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let graph = &work.graph;
    let sinks = shape_sinks(graph, context);
    let mut places = Places::default();
    for (id, node) in graph.nodes() {
        let from_dims = is_from_dims(graph, node, &places.from_dims);
        let place = if from_dims || sinks[id.index()] {
            Place::Host
        } else {
            place_of(graph, id, context, &places.from_dims, &mut work.misses)
        };
        places.of.push(place);
        places.from_dims.push(from_dims);
    }
    work.places = places;
    for (value, what) in std::mem::take(&mut work.near) {
        work.misses.extend(value.map(|v| Miss {
            code: MissCode::NearPattern,
            node: work.graph.value(v).node,
            blocker: None,
            hint: what,
        }));
    }
    Ok(())
}

fn place_of(
    graph: &Graph,
    id: NodeId,
    context: &Context,
    from_dims: &[bool],
    misses: &mut Vec<Miss>,
) -> Place {
    let node = graph.node(id);
    match &node.op {
        Op::Core(CoreOp::Input(_) | CoreOp::Param(_) | CoreOp::Const(_) | CoreOp::ReadState(_)) => {
            return Place::Leaf;
        }
        Op::Core(CoreOp::WriteState(_) | CoreOp::BindDim(_)) => return Place::Effect,
        Op::Core(CoreOp::Collective(p)) if p.replicas > 1 => return Place::Effect,
        Op::Host(_) => return Place::Host,
        Op::Core(_) | Op::Composite(_) => {}
    }
    if node.op.class() == OpClass::Control {
        return Place::Control;
    }
    let mut values = node.operands.iter().chain(&node.results);
    // Strings live on the host by nature, whatever is done with them.
    if values.any(|v| holds_strings(graph, *v)) {
        return Place::Host;
    }
    let primary = context.options.device;
    let mut why = String::new();
    for device in [primary, DeviceId::HOST] {
        let target = context.target(device);
        if asks_library(graph, node) {
            match claim(graph, id, target) {
                Some(Claim::Yes {
                    strided,
                    epilogue,
                    converts,
                }) => {
                    note(misses, id, device, primary, &why);
                    return Place::Library {
                        device,
                        strided,
                        epilogue,
                        converts,
                    };
                }
                Some(Claim::No { reason }) if why.is_empty() => why = reason,
                Some(Claim::No { .. }) | None => {}
            }
        }
        match unsupported(graph, node, target, from_dims) {
            None => {
                note(misses, id, device, primary, &why);
                return Place::Kernel(device);
            }
            Some(reason) => why = reason,
        }
        if device == DeviceId::HOST {
            break;
        }
    }
    misses.push(Miss {
        code: MissCode::Unsupported,
        node: id,
        blocker: None,
        hint: format!("interpreted on the host: {why}"),
    });
    Place::Host
}

fn holds_strings(graph: &Graph, value: ValueId) -> bool {
    let tensor = graph.ty(value).as_tensor();
    tensor.is_some_and(|t| t.dtype == DType::String)
}

fn note(misses: &mut Vec<Miss>, node: NodeId, device: DeviceId, primary: DeviceId, why: &str) {
    if device != primary {
        misses.push(Miss {
            code: MissCode::OtherDevice,
            node,
            blocker: None,
            hint: format!("runs on the host: {why}"),
        });
    }
}

fn asks_library(graph: &Graph, node: &Node) -> bool {
    let widens_blocks = || {
        let is_cast = matches!(node.op, Op::Core(CoreOp::Cast(_)));
        is_cast && graph.dtype(node.operands[0]).class() == Class::Block
    };
    matches!(
        node.op.class(),
        OpClass::Composite | OpClass::Contraction | OpClass::Indexed
    ) || widens_blocks()
}

/// Why generated kernels on a target cannot compute a node; `None` when they can.
pub(crate) fn unsupported(
    graph: &Graph,
    node: &Node,
    target: &Target,
    from_dims: &[bool],
) -> Option<String> {
    let Op::Core(op) = &node.op else {
        return Some(format!("no kernel for {}", node.op.name()));
    };
    let accumulator = match op {
        CoreOp::Scatter(_)
        | CoreOp::Sort(_)
        | CoreOp::If(_)
        | CoreOp::Loop(_)
        | CoreOp::Scan(_)
        | CoreOp::Call(_)
        | CoreOp::Input(_)
        | CoreOp::Param(_)
        | CoreOp::Const(_)
        | CoreOp::ReadState(_)
        | CoreOp::WriteState(_)
        | CoreOp::BindDim(_) => return Some(format!("no generated kernel for {}", op.name())),
        CoreOp::Map(p) => {
            let operand = node.operands.last().map(|v| graph.dtype(*v));
            let expanded = operand.is_some_and(|d| cupola_ir::kernel::expands(p.f, d));
            if !target.scalars.contains(&p.f) && !expanded {
                return Some(format!("no scalar function {}", p.f.name()));
            }
            None
        }
        CoreOp::Reduce(p) => Some(p.accum),
        CoreOp::Contract(p) => Some(p.accum),
        CoreOp::Fold(_) => Some(graph.accumulator(graph.dtype(node.operands[0]))),
        CoreOp::Iota(_)
        | CoreOp::Dims(_)
        | CoreOp::Cast(_)
        | CoreOp::Bitcast(_)
        | CoreOp::Reshape(_)
        | CoreOp::Permute(_)
        | CoreOp::Broadcast(_)
        | CoreOp::Slice(_)
        | CoreOp::Pad(_)
        | CoreOp::Concat(_)
        | CoreOp::Window(_)
        | CoreOp::ArgReduce(_)
        | CoreOp::Gather(_)
        | CoreOp::Random(_)
        | CoreOp::Collective(_)
        | CoreOp::Transfer(_) => None,
    };
    // A number made of dimensions is an index in a kernel, whatever integers the device has.
    let is_index =
        |v: &ValueId| matches!(op, CoreOp::Cast(_)) && from_dims[graph.value(*v).node.index()];
    let operands = node.operands.iter().filter(|v| !is_index(v));
    let dtypes = operands
        .chain(&node.results)
        .map(|v| graph.dtype(*v))
        .chain(accumulator);
    dtypes
        .filter(|d| !target.has_dtype(*d))
        .map(|d| format!("no dtype {d}"))
        .next()
}

/// Whether a node's result is a few integers or booleans, however they come about.
fn is_tiny(graph: &Graph, node: &Node) -> bool {
    node.results.iter().all(|v| {
        graph.ty(*v).as_tensor().is_some_and(|t| {
            (t.dtype.is_int() && t.dtype.is_whole_byte() || t.dtype == DType::Bool)
                && t.const_shape()
                    .is_some_and(|s| s.iter().product::<usize>() <= MAX_TINY)
        })
    })
}

/// Whether a node computes shape arithmetic from dimensions and constants alone.
fn is_from_dims(graph: &Graph, node: &Node, known: &[bool]) -> bool {
    if matches!(&node.op, Op::Core(CoreOp::Dims(_))) {
        return is_tiny(graph, node);
    }
    let simple = matches!(node.op.class(), OpClass::Elementwise | OpClass::View);
    let constant = |v: &ValueId| graph.as_const(*v).and_then(crate::lower::uniform).is_some();
    let derived = |v: &ValueId| known[graph.value(*v).node.index()];
    simple
        && is_tiny(graph, node)
        && node.operands.iter().any(derived)
        && node.operands.iter().all(|v| derived(v) || constant(v))
}

/// Nodes whose tiny results end in a bound symbol, a trip count or a condition.
fn shape_sinks(graph: &Graph, context: &Context) -> Vec<bool> {
    let mut wanted = vec![false; graph.value_count()];
    for v in own_decisions(graph, context) {
        wanted[v.index()] = true;
    }
    let mut sinks = vec![false; graph.node_count()];
    for (id, node) in graph.nodes().rev() {
        let decisions = match &node.op {
            Op::Core(CoreOp::BindDim(_)) => 1,
            Op::Core(op) => op.decisions(),
            Op::Host(_) | Op::Composite(_) => 0,
        };
        for v in &node.operands[..decisions] {
            wanted[v.index()] = true;
        }
        if is_interpretable(node)
            && is_tiny(graph, node)
            && node.results.iter().any(|v| wanted[v.index()])
        {
            sinks[id.index()] = true;
            for v in &node.operands {
                wanted[v.index()] = true;
            }
        }
    }
    sinks
}

fn is_interpretable(node: &Node) -> bool {
    matches!(
        node.op.class(),
        OpClass::Elementwise | OpClass::View | OpClass::Reduction | OpClass::Indexed
    )
}

/// The outputs of a region from which the host computes whether it runs again, with those that they depend on by way of the
/// run before. None where the host would have to wait for a device: the device computes the condition then.
fn own_decisions(graph: &Graph, context: &Context) -> Vec<ValueId> {
    let feedback = &context.feedback;
    let outputs: Vec<ValueId> = graph.outputs().iter().map(|(_, v)| *v).collect();
    if feedback.decisions == 0 || context.options.device == DeviceId::HOST {
        return vec![];
    }
    let carried = |input: usize| feedback.output_for(input).map(|output| outputs[output]);
    // What is small and made of such values only, inputs included as long as the run before makes them so.
    let mut known = vec![true; graph.inputs().len()];
    let from_host = loop {
        let from_host = made_of_tiny(graph, &known);
        let lost = (0..known.len())
            .find(|at| known[*at] && carried(*at).is_some_and(|v| !from_host[v.index()]));
        match lost {
            Some(at) => known[at] = false,
            None => break from_host,
        }
    };
    let mut all: Vec<ValueId> = outputs[..feedback.decisions].to_vec();
    if all.iter().any(|v| !from_host[v.index()]) {
        return vec![];
    }
    let mut at = 0;
    while at < all.len() {
        let needed = inputs_of(graph, all[at]);
        let inputs = graph.inputs().iter().enumerate();
        let before = inputs
            .filter(|(_, v)| needed.contains(v))
            .filter_map(|(at, _)| carried(at));
        let more: Vec<ValueId> = before.filter(|v| !all.contains(v)).collect();
        all.extend(more);
        at += 1;
    }
    all
}

/// Values that are small integers or booleans, made by simple ops of nothing but such, constants and dimensions; inputs as
/// `known` says.
fn made_of_tiny(graph: &Graph, known: &[bool]) -> Vec<bool> {
    let mut made = vec![false; graph.value_count()];
    for (_, node) in graph.nodes() {
        let simple = match &node.op {
            Op::Core(CoreOp::Input(_)) => {
                let position = graph.inputs().iter().position(|v| *v == node.results[0]);
                position.is_some_and(|at| known[at])
            }
            Op::Core(CoreOp::Const(_) | CoreOp::Dims(_)) => true,
            _ => is_interpretable(node) && node.operands.iter().all(|v| made[v.index()]),
        };
        if simple && is_tiny(graph, node) {
            node.results.iter().for_each(|v| made[v.index()] = true);
        }
    }
    made
}

/// The inputs that a value depends on.
fn inputs_of(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let mut seen = vec![value];
    let mut at = 0;
    while at < seen.len() {
        for v in &graph.def(seen[at]).operands {
            if !seen.contains(v) {
                seen.push(*v);
            }
        }
        at += 1;
    }
    seen.retain(|v| graph.inputs().contains(v));
    seen
}

//! Puts images channels last where the device's convolutions want them so.
//!
//! Walks the nodes in order. A convolution whose channels-last form the device claims takes it; ops that follow the layout of
//! their operands (elementwise ops, pads, slices, joins, windows with their reductions) are built again on the channels-last
//! twins of what they read. The channels-first values become permutations of their twins, which are views: only what leaves
//! such a region is ever arranged again, by whoever reads it.
//!
//! Rule: the graph means the same before and after, so a wrong choice costs time only.

use crate::edit::Edits;
use crate::{Context, Level, PassError, Result, Work};
use cupola_ir::composite::{channels_first, channels_last};
use cupola_ir::ops::{Broadcast, Concat, Pad, Reduce, Slice, Window};
use cupola_ir::target::{Claim, Target};
use cupola_ir::{
    CompositeOp, CoreOp, DType, Graph, IrError, Node, NodeId, Op, TensorType, ValueId,
};
use rustc_hash::FxHashMap;

type Built = std::result::Result<Option<Twin>, IrError>;

/// What a node's result becomes.
enum Twin {
    /// The same, channels last.
    Last(ValueId),
    /// The same value.
    Plain(ValueId),
}

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let error = |error: IrError| PassError::Graph {
        pass: "layout",
        error,
    };
    let target = context.target(context.options.device);
    let mut layout = Layout {
        target,
        twins: FxHashMap::default(),
        views: FxHashMap::default(),
    };
    let mut edits = Edits::default();
    let graph = &mut work.graph;
    for id in (0..graph.node_count() as u32).map(NodeId) {
        let before = graph.node_count();
        let origins = graph.node(id).origins.clone();
        let Some(twin) = layout.node(graph, id).map_err(error)? else {
            continue;
        };
        let old = graph.node(id).results[0];
        let new = match twin {
            Twin::Plain(new) => new,
            Twin::Last(last) => {
                layout.twins.insert(old, last);
                let rank = graph.rank(last);
                graph.permute(last, &channels_first(rank)).map_err(error)?
            }
        };
        for new in before..graph.node_count() {
            graph.add_origins(NodeId(new as u32), &origins);
        }
        edits.replace(old, new);
    }
    edits.apply(work).map_err(error)?;
    Ok(())
}

struct Layout<'a> {
    target: &'a Target,
    /// Channels-last forms of values that have been computed in that layout.
    twins: FxHashMap<ValueId, ValueId>,
    /// Channels-last views of other values.
    views: FxHashMap<ValueId, ValueId>,
}

/// Where an axis of a value of this rank is when channels are last.
fn moved(axis: usize, rank: usize) -> usize {
    match axis {
        0 => 0,
        1 => rank - 1,
        a => a - 1,
    }
}

fn reordered<T: Clone>(items: &[T]) -> Vec<T> {
    let order = channels_last(items.len());
    order.iter().map(|a| items[*a].clone()).collect()
}

/// What a window is over, or the value itself.
fn windowed(graph: &Graph, v: ValueId) -> ValueId {
    match graph.op_of(v) {
        Op::Core(CoreOp::Window(_)) => graph.def(v).operands[0],
        _ => v,
    }
}

/// A convolution as the device takes it with channels last.
struct Taken {
    op: Op,
    /// It takes x in f32 where the convolution has it in the type of the weights, which comes to the same.
    widened: bool,
}

/// The channels-last form of a convolution, if the device has a kernel for that.
fn takes(graph: &Graph, node: &Node, target: &Target) -> Option<Taken> {
    let Op::Composite(CompositeOp::Conv(conv)) = &node.op else {
        return None;
    };
    let op = Op::Composite(CompositeOp::ConvChannelsLast(conv.clone().into()));
    let mut image = graph.ty(node.operands[0]).as_tensor()?.clone();
    let weights = graph.ty(node.operands[1]).as_tensor()?;
    if image.rank() < 3 {
        return None;
    }
    image.dims = reordered(&image.dims);
    let claimed = |image: &TensorType| {
        let claim = (target.claim)(&op, &[image, weights]);
        matches!(claim, Claim::Yes { .. })
    };
    if claimed(&image) {
        return Some(Taken { op, widened: false });
    }
    let narrow = image.dtype == weights.dtype && matches!(image.dtype, DType::BF16 | DType::F16);
    image.dtype = DType::F32;
    (narrow && claimed(&image)).then_some(Taken { op, widened: true })
}

/// Whether [`run`] will give a convolution a form that the device has a kernel for.
pub(crate) fn will_take(graph: &Graph, node: &Node, context: &Context) -> bool {
    let target = context.target(context.options.device);
    context.options.level >= Level::Fuse && takes(graph, node, target).is_some()
}

impl Layout<'_> {
    fn node(&mut self, graph: &mut Graph, id: NodeId) -> Built {
        let node = graph.node(id).clone();
        if let Op::Composite(CompositeOp::Conv(_)) = &node.op {
            return self.conv(graph, &node);
        }
        let Op::Core(op) = &node.op else {
            return Ok(None);
        };
        let images = match op {
            CoreOp::Reduce(_) => vec![windowed(graph, node.operands[0])],
            _ => node.operands.to_vec(),
        };
        if !images.iter().any(|v| self.twins.contains_key(v)) {
            return Ok(None);
        }
        match op {
            CoreOp::Map(_) | CoreOp::Cast(_) => self.each(graph, &node, op.clone()),
            CoreOp::Concat(p) => {
                let axis = moved(p.axis, graph.rank(node.operands[0]));
                self.each(graph, &node, Concat { axis }.into())
            }
            CoreOp::Slice(p) => {
                let slice = Slice {
                    starts: reordered(&p.starts),
                    steps: reordered(&p.steps),
                    dims: reordered(&p.dims),
                };
                self.each(graph, &node, slice.into())
            }
            CoreOp::Pad(p) => {
                let (low, high) = (reordered(&p.low), reordered(&p.high));
                let x = self.last(graph, node.operands[0])?;
                let padded = graph.one(Pad { low, high }, &[x, node.operands[1]])?;
                Ok(Some(Twin::Last(padded)))
            }
            CoreOp::Reduce(p) => self.reduce(graph, &node, p),
            _ => Ok(None),
        }
    }

    fn conv(&mut self, graph: &mut Graph, node: &Node) -> Built {
        let (x, w) = (node.operands[0], node.operands[1]);
        let Some(Taken { op, widened }) = takes(graph, node, self.target) else {
            return Ok(None);
        };
        let narrow = graph.dtype(x);
        let x = match graph.op_of(x) {
            _ if !widened => x,
            // The weights' type says what x is rounded to.
            Op::Core(CoreOp::Cast(_)) if graph.dtype(graph.def(x).operands[0]) == DType::F32 => {
                graph.def(x).operands[0]
            }
            _ => graph.cast(x, DType::F32)?,
        };
        let x = self.last(graph, x)?;
        let y = graph.one(op, &[x, w])?;
        Ok(Some(Twin::Last(graph.cast(y, narrow)?)))
    }

    /// An op that does to channels-last operands of the result's rank what it did before.
    fn each(&mut self, graph: &mut Graph, node: &Node, op: CoreOp) -> Built {
        let operands = node.operands.iter().map(|v| self.last(graph, *v));
        let operands = operands.collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Some(Twin::Last(graph.one(op, &operands)?)))
    }

    /// A reduction of a window's own axes keeps the layout; one of other axes gives what it gave.
    fn reduce(&mut self, graph: &mut Graph, node: &Node, p: &Reduce) -> Built {
        let x = node.operands[0];
        if let Op::Core(CoreOp::Window(window)) = graph.op_of(x).clone() {
            let base = graph.def(x).operands[0];
            let rank = graph.rank(base);
            if !p.axes.iter().copied().eq(rank..graph.rank(x)) {
                return Ok(None);
            }
            let base = self.last(graph, base)?;
            let axes = window.axes.iter().map(|a| moved(*a, rank)).collect();
            let windows = graph.one(Window { axes, ..window }, &[base])?;
            return Ok(Some(Twin::Last(graph.one(p.clone(), &[windows])?)));
        }
        let rank = graph.rank(x);
        let last = self.last(graph, x)?;
        let mut axes: Vec<usize> = p.axes.iter().map(|a| moved(*a, rank)).collect();
        axes.sort_unstable();
        let kept: Vec<usize> = (0..rank).filter(|a| !axes.contains(a)).collect();
        let reduce = Reduce { axes, ..p.clone() };
        let reduced = graph.one(reduce, &[last])?;
        // The kept axes in their old order.
        let order: Vec<usize> = (0..rank)
            .filter(|a| !p.axes.contains(a))
            .filter_map(|a| kept.iter().position(|k| *k == moved(a, rank)))
            .collect();
        Ok(Some(Twin::Plain(graph.permute(reduced, &order)?)))
    }

    /// A value channels last: its twin, or a view of it.
    fn last(&mut self, graph: &mut Graph, v: ValueId) -> std::result::Result<ValueId, IrError> {
        if let Some(known) = self.twins.get(&v).or_else(|| self.views.get(&v)) {
            return Ok(*known);
        }
        let dims = graph.dims(v);
        let repeats = matches!(graph.op_of(v), Op::Core(CoreOp::Broadcast(_)));
        let view = if repeats {
            let x = graph.def(v).operands[0];
            let x = self.last(graph, x)?;
            let dims = reordered(&dims);
            graph.one(Broadcast { dims }, &[x])?
        } else if dims[2..].iter().all(|d| d.is(1)) {
            graph.reshape(v, &reordered(&dims))?
        } else {
            graph.permute(v, &channels_last(dims.len()))?
        };
        self.views.insert(v, view);
        Ok(view)
    }
}

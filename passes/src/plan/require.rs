//! What has to hold of run-time sizes: extents that must be equal, slices that must stay inside. Kernels address memory
//! by these sizes and check nothing.

use cupola_ir::{
    Bindings, CompositeOp, CoreOp, Dim, Graph, NodeId, Op, SymRange, ValueId, ValueType,
};
use std::fmt;

/// A condition on sizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Require {
    /// Both are equal.
    Equal(Dim, Dim),
    /// The first is 1 or equals the second.
    Broadcasts(Dim, Dim),
    /// At least this.
    AtLeast(Dim, i64),
    /// `start + k * step` for all `k` below `count` lies in `0..extent`, and `count` is not negative.
    Inside {
        /// First index.
        start: Dim,
        /// Step.
        step: i64,
        /// Number of indices.
        count: Dim,
        /// Extent of the axis.
        extent: Dim,
    },
}

impl Require {
    /// Whether it holds; an unbound symbol or an overflow does not.
    pub fn holds(&self, bindings: &Bindings) -> bool {
        let value = |d: &Dim| d.eval(bindings);
        match self {
            Require::Equal(a, b) => matches!((value(a), value(b)), (Some(a), Some(b)) if a == b),
            Require::Broadcasts(a, b) => {
                matches!((value(a), value(b)), (Some(a), Some(b)) if a == b || a == 1)
            }
            Require::AtLeast(a, low) => value(a).is_some_and(|a| a >= *low),
            Require::Inside {
                start,
                step,
                count,
                extent,
            } => {
                let (Some(start), Some(count), Some(extent)) =
                    (value(start), value(count), value(extent))
                else {
                    return false;
                };
                let last = (count - 1)
                    .checked_mul(*step)
                    .and_then(|d| d.checked_add(start));
                count == 0
                    || count > 0
                        && (0..extent).contains(&start)
                        && last.is_some_and(|l| (0..extent).contains(&l))
            }
        }
    }
}

impl fmt::Display for Require {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Require::Equal(a, b) => write!(f, "{a} and {b} must be equal"),
            Require::Broadcasts(a, b) => write!(f, "{a} must be 1 or {b}"),
            Require::AtLeast(a, low) => write!(f, "{a} must be at least {low}"),
            Require::Inside {
                start,
                step,
                count,
                extent,
            } => write!(
                f,
                "{count} indices from {start} by {step} must be inside 0..{extent}"
            ),
        }
    }
}

struct Conditions<'g> {
    graph: &'g Graph,
    all: Vec<Require>,
}

impl Conditions<'_> {
    fn low(&self, d: &Dim) -> i64 {
        let ranges = &self.graph.ranges;
        d.range(&|s| ranges.get(s).copied().unwrap_or(SymRange::default()))
            .0
    }

    fn push(&mut self, that: Require) {
        if !self.all.contains(&that) {
            self.all.push(that);
        }
    }

    fn equal(&mut self, a: &Dim, b: &Dim) {
        // Most are the same dimension, which is told faster than a difference is made.
        if a != b && !(a - b).is(0) {
            self.push(Require::Equal(a.clone(), b.clone()));
        }
    }

    fn equal_dims(&mut self, a: &[Dim], b: &[Dim]) {
        for (a, b) in a.iter().zip(b) {
            self.equal(a, b);
        }
    }

    fn at_least(&mut self, d: &Dim, low: i64) {
        if self.low(d) < low {
            self.push(Require::AtLeast(d.clone(), low));
        }
    }
}

/// Conditions of composites, by op and operand types: the layers of a model have the same ones.
pub(super) type Composites = Vec<(CompositeOp, Vec<ValueType>, Vec<Require>)>;

/// Conditions of a node that are not known to hold at compile time. Those of its operands are taken to hold.
pub(super) fn of(graph: &Graph, id: NodeId, known: &mut Composites) -> Vec<Require> {
    let mut c = Conditions { graph, all: vec![] };
    let node = graph.node(id);
    let dims = |v: &ValueId| graph.dims(*v);
    match &node.op {
        Op::Core(op) => core(&mut c, op, &node.operands, graph),
        Op::Host(_) => {}
        Op::Composite(op) => {
            c.all.extend(inside(op, graph, &node.operands, known));
        }
    }
    // Types may have been refined: what inference gives and what is claimed must agree.
    let binds = !node.op.binds().is_empty();
    let types: Vec<_> = node.operands.iter().map(|v| graph.ty(*v)).collect();
    if let (false, true, Ok(inferred)) =
        (binds, node.op.regions().is_empty(), node.op.infer(&types))
    {
        for (t, v) in inferred.iter().zip(&node.results) {
            if let Some(t) = t.as_tensor() {
                c.equal_dims(&t.dims, &dims(v));
            }
        }
    }
    for v in &node.results {
        if matches!(
            &node.op,
            Op::Core(
                CoreOp::Slice(_)
                    | CoreOp::Reshape(_)
                    | CoreOp::Broadcast(_)
                    | CoreOp::Iota(_)
                    | CoreOp::Window(_)
                    | CoreOp::Random(_)
            )
        ) {
            for d in dims(v) {
                c.at_least(&d, 0);
            }
        }
    }
    c.all
}

/// Conditions of what a composite stands for.
fn inside(
    op: &CompositeOp,
    graph: &Graph,
    operands: &[ValueId],
    known: &mut Composites,
) -> Vec<Require> {
    let types: Vec<_> = operands.iter().map(|v| graph.ty(*v)).collect();
    let is_same = |(o, t, _): &&(CompositeOp, Vec<ValueType>, _)| {
        o == op && t.iter().eq(types.iter().copied())
    };
    if let Some((.., all)) = known.iter().find(is_same) {
        return all.clone();
    }
    let mut all = vec![];
    if let Ok((inner, _)) = op.expand(&types) {
        for (id, _) in inner.nodes() {
            all.extend(of(&inner, id, known));
        }
    }
    let types = types.into_iter().cloned().collect();
    known.push((op.clone(), types, all.clone()));
    all
}

fn core(c: &mut Conditions, op: &CoreOp, operands: &[ValueId], graph: &Graph) {
    let dims: Vec<Vec<Dim>> = operands.iter().map(|v| graph.dims(*v)).collect();
    match op {
        CoreOp::Map(_) => {
            for x in dims.iter().skip(1) {
                c.equal_dims(&dims[0], x);
            }
        }
        CoreOp::Reshape(p) => c.equal(&Dim::product(&dims[0]), &Dim::product(&p.dims)),
        CoreOp::Broadcast(p) => {
            for (a, b) in dims[0].iter().zip(&p.dims) {
                if !(a.is(1) || a == b) {
                    c.push(Require::Broadcasts(a.clone(), b.clone()));
                }
            }
        }
        CoreOp::Slice(p) => {
            for (a, extent) in dims[0].iter().enumerate() {
                let that = Require::Inside {
                    start: p.starts[a].clone(),
                    step: p.steps[a],
                    count: p.dims[a].clone(),
                    extent: extent.clone(),
                };
                let whole = p.starts[a].is(0) && p.steps[a] == 1 && p.dims[a] == *extent;
                if !whole && !that.holds(&Bindings::default()) {
                    c.push(that);
                }
            }
        }
        CoreOp::Pad(p) => {
            for d in p.low.iter().chain(&p.high) {
                c.at_least(d, 0);
            }
        }
        CoreOp::Concat(p) => {
            for x in dims.iter().skip(1) {
                for a in (0..x.len()).filter(|a| *a != p.axis) {
                    c.equal(&dims[0][a], &x[a]);
                }
            }
        }
        CoreOp::Contract(p) => {
            let pairs = p.lhs_batch.iter().zip(&p.rhs_batch);
            for (l, r) in pairs.chain(p.lhs_contract.iter().zip(&p.rhs_contract)) {
                c.equal(&dims[0][*l], &dims[1][*r]);
            }
        }
        CoreOp::ArgReduce(p) => c.at_least(&dims[0][p.axis], 1),
        CoreOp::Gather(p) => {
            for x in dims.iter().skip(2) {
                c.equal_dims(&dims[1], x);
            }
            c.equal_dims(&dims[0][..p.batch], &dims[1][..p.batch]);
        }
        CoreOp::Scatter(p) => {
            for x in dims.iter().skip(3) {
                c.equal_dims(&dims[2], x);
            }
            c.equal_dims(&dims[0][..p.batch], &dims[2][..p.batch]);
            let window = (p.batch..dims[0].len()).filter(|a| !p.axes.contains(a));
            let mut want = dims[2].clone();
            want.extend(window.map(|a| dims[0][a].clone()));
            c.equal_dims(&want, &dims[1]);
        }
        CoreOp::Input(_)
        | CoreOp::Param(_)
        | CoreOp::Const(_)
        | CoreOp::Iota(_)
        | CoreOp::Dims(_)
        | CoreOp::Cast(_)
        | CoreOp::Bitcast(_)
        | CoreOp::Permute(_)
        | CoreOp::Window(_)
        | CoreOp::Fold(_)
        | CoreOp::Reduce(_)
        | CoreOp::Sort(_)
        | CoreOp::If(_)
        | CoreOp::Loop(_)
        | CoreOp::Scan(_)
        | CoreOp::Call(_)
        | CoreOp::ReadState(_)
        | CoreOp::WriteState(_)
        | CoreOp::Random(_)
        | CoreOp::Collective(_)
        | CoreOp::Transfer(_)
        | CoreOp::BindDim(_) => {}
    }
}

//! Less memory for more work: values of the forward pass that the backward pass computes again instead of keeping them.

use crate::cost::node_flops;
use crate::{PassError, Result};
use cupola_ir::ops::CoreOp;
use cupola_ir::{Bindings, Dim, Graph, IrError, Node, NodeId, Op, OpClass, Origin, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;

/// How the source of the origin of nodes begins that compute something again on purpose.
const AGAIN: &str = "computed again";

/// What a node computes again, if that is what it is for; nodes that differ in it are not merged.
pub(crate) fn purpose(node: &Node) -> Option<&str> {
    let source = &node.origins.first()?.source;
    source.starts_with(AGAIN).then_some(&**source)
}

/// Nodes up to which something is computed again to spare one value.
const MAX_CONE: usize = 128;

/// Bytes that the backward pass keeps of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// As the graph was.
    pub before: u64,
    /// As it is now; more than the budget where nothing else can be computed again.
    pub after: u64,
    /// Values that are computed again.
    pub again: usize,
}

/// Makes what is computed after `loss` keep at most `budget` bytes of values that `loss` is made of, for the sizes of
/// `bindings`, by computing the others again where they are used. Cheapest first, in operations for each byte: elementwise
/// functions, norms and random numbers go before products. Inputs, weights and states are there anyway and count as
/// nothing; results do not change by a bit. To be applied after [`super::gradients`] and before the pipeline. Values keep
/// their ids.
///
/// # Errors
/// [`PassError::Options`] for a size that `bindings` leave open.
pub fn rematerialise(
    graph: &mut Graph,
    loss: ValueId,
    budget: u64,
    bindings: &Bindings,
) -> Result<Kept> {
    let forward = ancestors(graph, loss);
    let mut later: Vec<NodeId> = vec![];
    let mut crossing: FxHashSet<ValueId> = FxHashSet::default();
    for (id, node) in graph.nodes() {
        if forward[id.index()] {
            continue;
        }
        later.push(id);
        let of_forward = |v: &&ValueId| forward[graph.value(**v).node.index()];
        crossing.extend(
            node.operands
                .iter()
                .filter(of_forward)
                .map(|v| base(graph, *v)),
        );
    }
    crossing.retain(|v| !is_leaf(&graph.def(*v).op));
    let mut choice = Choice {
        graph,
        bindings,
        kept: crossing,
        costs: FxHashMap::default(),
        fixed: graph
            .outputs()
            .iter()
            .map(|(_, v)| base(graph, *v))
            .collect(),
    };
    let before = choice.size()?;
    let mut after = before;
    let mut dropped = FxHashSet::default();
    while after > budget {
        let Some(v) = choice.cheapest()? else { break };
        choice.drop(v);
        dropped.insert(v);
        after -= choice.size_of(v)?;
    }
    let kept = choice.kept;
    let again = dropped.len();
    compute_again(graph, &later, &kept, &dropped).map_err(|error| PassError::Graph {
        pass: "rematerialise",
        error,
    })?;
    Ok(Kept {
        before,
        after,
        again,
    })
}

/// Nodes that a value is made of, its own included.
fn ancestors(graph: &Graph, value: ValueId) -> Vec<bool> {
    let mut seen = vec![false; graph.node_count()];
    let mut open = vec![graph.value(value).node];
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut seen[id.index()], true) {
            let operands = graph.node(id).operands.iter();
            open.extend(operands.map(|v| graph.value(*v).node));
        }
    }
    seen
}

/// What is there without being kept.
fn is_leaf(op: &Op) -> bool {
    op.class() == OpClass::Leaf || matches!(op, Op::Core(CoreOp::ReadState(_)))
}

/// The value whose memory a view of one operand is in.
fn base(graph: &Graph, v: ValueId) -> ValueId {
    let node = graph.def(v);
    match (node.op.class(), &node.operands[..]) {
        (OpClass::View, [x]) => base(graph, *x),
        _ => v,
    }
}

/// Whether computing a node once more gives the same and does nothing else. Random numbers depend on their counter only.
fn repeats(op: &Op) -> bool {
    let pure = op.is_pure() || matches!(op, Op::Core(CoreOp::Random(_)));
    pure && op.binds().is_empty() && !matches!(op, Op::Host(_))
}

/// What is kept so far.
struct Choice<'a> {
    graph: &'a Graph,
    bindings: &'a Bindings,
    kept: FxHashSet<ValueId>,
    /// Values that have memory in any case.
    fixed: FxHashSet<ValueId>,
    /// What computing kept values again takes, as far as it has been asked for.
    costs: FxHashMap<ValueId, Cost>,
}

/// What computing a value again takes.
struct Cost {
    /// Operations, and accesses of memory; `None` where it cannot be done.
    work: Option<u64>,
    /// Kept values that it begins with.
    from: FxHashSet<ValueId>,
}

impl Choice<'_> {
    fn number(&self, dim: &Dim) -> Result<u64> {
        let size = dim.eval(self.bindings).and_then(|n| u64::try_from(n).ok());
        size.ok_or_else(|| {
            PassError::Options(format!("rematerialise: the size {dim} is not known"))
        })
    }

    fn size_of(&self, v: ValueId) -> Result<u64> {
        let Some(ty) = self.graph.ty(v).as_tensor() else {
            return Ok(0);
        };
        let len = self.number(&ty.len())?;
        Ok(len.saturating_mul(ty.dtype.bits() as u64).div_ceil(8))
    }

    fn size(&self) -> Result<u64> {
        let mut sum = 0u64;
        for v in &self.kept {
            sum = sum.saturating_add(self.size_of(*v)?);
        }
        Ok(sum)
    }

    /// Of what can be spared that which costs the fewest operations for each byte; the later one of equals, so that chains
    /// shorten from their ends.
    fn cheapest(&mut self) -> Result<Option<ValueId>> {
        let mut best: Option<(f64, ValueId)> = None;
        let mut kept: Vec<ValueId> = self.kept.difference(&self.fixed).copied().collect();
        kept.sort_unstable();
        for v in kept {
            if !self.costs.contains_key(&v) {
                let cost = self.cost(v)?;
                self.costs.insert(v, cost);
            }
            let Some(work) = self.costs[&v].work else {
                continue;
            };
            let size = self.size_of(v)?;
            if size == 0 {
                continue;
            }
            let cost = work as f64 / size as f64;
            if best.is_none_or(|(least, _)| cost <= least) {
                best = Some((cost, v));
            }
        }
        Ok(best.map(|(_, v)| v))
    }

    /// Keeps a value no longer.
    fn drop(&mut self, v: ValueId) {
        self.kept.remove(&v);
        self.costs.retain(|_, cost| !cost.from.contains(&v));
    }

    /// Operations that computing a value again from what is kept takes, and a memory access for each byte that is made on
    /// the way.
    fn cost(&self, value: ValueId) -> Result<Cost> {
        let mut seen = FxHashSet::default();
        let mut open = vec![self.graph.value(value).node];
        let mut cost = Cost {
            work: Some(0),
            from: FxHashSet::default(),
        };
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = self.graph.node(id);
            if !repeats(&node.op) || seen.len() > MAX_CONE {
                // More is to be computed again later, not less.
                cost.work = None;
                cost.from.clear();
                return Ok(cost);
            }
            let mut work = self.number(&node_flops(self.graph, node))?;
            if node.op.class() != OpClass::View {
                for v in &node.results {
                    work = work.saturating_add(self.size_of(*v)?);
                }
            }
            cost.work = cost.work.map(|sum| sum.saturating_add(work));
            for v in &node.operands {
                if self.kept.contains(v) {
                    cost.from.insert(*v);
                } else if !is_leaf(&self.graph.def(*v).op) {
                    open.push(self.graph.value(*v).node);
                }
            }
        }
        Ok(cost)
    }
}

/// Gives the later nodes their own copies of what is not kept.
fn compute_again(
    graph: &mut Graph,
    later: &[NodeId],
    kept: &FxHashSet<ValueId>,
    dropped: &FxHashSet<ValueId>,
) -> Result<(), IrError> {
    if dropped.is_empty() {
        return Ok(());
    }
    // Each value has copies of its own of what it is made of: shared ones would be kept from the first use to the last.
    let mut copies: FxHashMap<ValueId, Copies> = FxHashMap::default();
    for id in later {
        for k in 0..graph.node(*id).operands.len() {
            let v = graph.node(*id).operands[k];
            let base = base(graph, v);
            if dropped.contains(&base) {
                let copies = copies.entry(base).or_default();
                let copy = copy(graph, v, &format!("{AGAIN} {base}"), kept, copies)?;
                graph.node_mut(*id).operands[k] = copy;
            }
        }
    }
    graph.set_origin(None);
    graph.sort()
}

/// What values have become.
type Copies = FxHashMap<ValueId, ValueId>;

/// A copy of a value and of what it is made of down to what is kept.
fn copy(
    graph: &mut Graph,
    value: ValueId,
    source: &str,
    kept: &FxHashSet<ValueId>,
    copies: &mut Copies,
) -> Result<ValueId, IrError> {
    let mut open = vec![(value, false)];
    while let Some((v, ready)) = open.pop() {
        if copies.contains_key(&v) {
            continue;
        }
        let node = graph.def(v).clone();
        if kept.contains(&v) || is_leaf(&node.op) {
            copies.insert(v, v);
            continue;
        }
        if !ready {
            open.push((v, true));
            open.extend(node.operands.iter().map(|x| (*x, false)));
            continue;
        }
        let operands: Vec<ValueId> = node.operands.iter().map(|x| copies[x]).collect();
        let (name, op) = match node.origins.first() {
            Some(o) => (o.node.clone(), o.op.clone()),
            None => ("".into(), node.op.name().into()),
        };
        graph.set_origin(Some(Arc::new(Origin {
            source: source.into(),
            node: name,
            op,
        })));
        let results = graph.push(node.op.clone(), &operands)?;
        for (old, new) in node.results.iter().zip(results) {
            let ty = graph.ty(*old).clone();
            graph.refine(new, ty);
            copies.insert(*old, new);
        }
    }
    Ok(copies[&value])
}

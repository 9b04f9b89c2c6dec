//! Computes values before they are needed where less is kept then: of two values of the forward pass that only make one factor of
//! the backward pass any more, such as the slope of an activation, that factor is kept instead.
//!
//! Rules: elementwise nodes move, with all of their like operands, to where the last of these is made. They read at least two values
//! of their own shape that nothing else needs so late, and leave fewer bytes. What they leave is stored, or it would be computed
//! where it is used after all. Nothing is computed twice, and no result changes.

use crate::plan::MissCode;
use crate::{Context, PassError, Result, Work};
use cupola_ir::{CoreOp, Graph, NodeId, Op, OpClass, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    let graph = &work.graph;
    let search = Search::new(graph);
    // Where nodes go: after which other node.
    let mut moved: FxHashMap<NodeId, Vec<NodeId>> = FxHashMap::default();
    let mut kept = vec![];
    for group in search.groups() {
        if let Some((after, left)) = search.gain(&group) {
            moved.entry(after).or_default().extend(group);
            kept.extend(left);
        }
    }
    if moved.is_empty() {
        return Ok(());
    }
    let away: FxHashSet<NodeId> = moved.values().flatten().copied().collect();
    let mut order = vec![];
    for (id, _) in graph.nodes() {
        order.extend((!away.contains(&id)).then_some(id));
        order.extend(moved.remove(&id).into_iter().flatten());
    }
    let map = work.graph.compact_as(&order);
    let map = map.map_err(|error| PassError::Graph {
        pass: "advance",
        error,
    })?;
    let now = |v: ValueId| map.get(v.index()).copied().flatten();
    work.renumber(now);
    let kept = kept.into_iter().filter_map(now);
    let why = |v| (v, MissCode::KeepsLess);
    work.fusion.forced.extend(kept.map(why));
    Ok(())
}

struct Search<'g> {
    graph: &'g Graph,
    users: Vec<SmallVec<[NodeId; 2]>>,
    /// Per node: heavy ones up to it. Nodes with as many are close to each other.
    heavy: Vec<u32>,
    /// Per value: made of constants.
    constant: Vec<bool>,
    outputs: FxHashSet<ValueId>,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph) -> Search<'g> {
        let mut count = 0;
        let mut heavy = vec![];
        let mut constant = vec![false; graph.value_count()];
        for (_, node) in graph.nodes() {
            count += u32::from(is_heavy(&node.op));
            heavy.push(count);
            let is_const = matches!(node.op, Op::Core(CoreOp::Const(_)));
            let moves = matches!(node.op.class(), OpClass::View | OpClass::Elementwise);
            let from = |v: &ValueId| constant[v.index()];
            let all = is_const || moves && node.operands.iter().all(from);
            node.results.iter().for_each(|v| constant[v.index()] = all);
        }
        Search {
            graph,
            users: graph.users(),
            heavy,
            constant,
            outputs: graph.outputs().iter().map(|(_, v)| *v).collect(),
        }
    }

    /// Operands that are computed in the run.
    fn operands(&self, id: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        let all = self.graph.node(id).operands.iter().copied();
        all.filter(|v| !self.constant[v.index()])
    }

    fn is_elementwise(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let alike = |v: ValueId| {
            let view = self.graph.def(v).op.class() == OpClass::View;
            view || self.graph.dims(v) == self.graph.dims(node.results[0])
        };
        node.op.class() == OpClass::Elementwise
            && node.results.len() == 1
            && self.operands(id).all(alike)
    }

    /// Elementwise nodes that stand long after all that they are made of, which is made about the same time, joined to groups by what
    /// they read of each other; each in order.
    fn groups(&self) -> Vec<Vec<NodeId>> {
        let mut ready: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut group_of: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut groups: Vec<Vec<NodeId>> = vec![];
        for (id, _) in self.graph.nodes() {
            if !self.is_elementwise(id) {
                continue;
            }
            let own = |v: ValueId| {
                let at = self.graph.value(v).node;
                ready.get(&at).copied().unwrap_or(at.index())
            };
            let Some(last) = self.operands(id).map(own).max() else {
                continue;
            };
            let close = |at: usize| self.heavy[at] == self.heavy[last];
            if close(id.index()) || !self.operands(id).map(own).all(close) {
                continue;
            }
            ready.insert(id, last);
            let with = self.operands(id);
            let with = with.filter_map(|v| group_of.get(&self.graph.value(v).node).copied());
            let mut with: Vec<usize> = with.collect();
            with.sort_unstable();
            with.dedup();
            let to = with.first().copied().unwrap_or(groups.len());
            if to == groups.len() {
                groups.push(vec![]);
            }
            for other in with.into_iter().skip(1) {
                let members = std::mem::take(&mut groups[other]);
                group_of.extend(members.iter().map(|m| (*m, to)));
                groups[to].extend(members);
            }
            group_of.insert(id, to);
            groups[to].push(id);
        }
        groups.iter_mut().for_each(|g| g.sort_unstable());
        groups.retain(|g| !g.is_empty());
        groups
    }

    /// After which node a group is computed and what it leaves, if that is less than what need not be kept for it.
    fn gain(&self, group: &[NodeId]) -> Option<(NodeId, Vec<ValueId>)> {
        let members: FxHashSet<NodeId> = group.iter().copied().collect();
        let mut read: Vec<ValueId> = (group.iter().flat_map(|id| self.operands(*id)))
            .filter(|v| !members.contains(&self.graph.value(*v).node))
            .collect();
        read.sort_unstable();
        read.dedup();
        let last = read.iter().map(|v| self.graph.value(*v).node).max()?;
        let left: Vec<ValueId> = (group.iter().map(|id| self.graph.node(*id).results[0]))
            .filter(|v| {
                let users = &self.users[v.index()];
                self.outputs.contains(v) || users.iter().any(|id| !members.contains(id))
            })
            .collect();
        let dims = self.graph.dims(*left.first()?);
        let is_spared = |v: &&ValueId| {
            let node = self.graph.def(**v);
            let near = |id: &NodeId| {
                members.contains(id) || self.heavy[id.index()] == self.heavy[last.index()]
            };
            let moves = matches!(node.op.class(), OpClass::Leaf | OpClass::View);
            let state = matches!(node.op, Op::Core(CoreOp::ReadState(_)));
            !moves
                && !state
                && !self.outputs.contains(*v)
                && self.graph.dims(**v) == dims
                && self.users[v.index()].iter().all(near)
                && self.users[v.index()].iter().any(|id| !members.contains(id))
        };
        let bits = |v: &ValueId| self.graph.dtype(*v).bits();
        let spared: usize = read.iter().filter(is_spared).map(bits).sum();
        let alike = left.iter().all(|v| self.graph.dims(*v) == dims);
        (alike && left.iter().map(bits).sum::<usize>() < spared).then_some((last, left))
    }
}

/// Whether so much happens in a node that what stands behind it stands much later.
fn is_heavy(op: &Op) -> bool {
    match op.class() {
        OpClass::Contraction | OpClass::Composite | OpClass::Control | OpClass::Host => true,
        OpClass::Leaf
        | OpClass::View
        | OpClass::Elementwise
        | OpClass::Indexed
        | OpClass::Reduction
        | OpClass::Effect => false,
    }
}

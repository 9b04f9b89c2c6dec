//! Fusion: which values are stored, and which nodes each unit computes.
//!
//! Walks the graph from its outputs backwards. A value joins the unit of its users when that is one unit, or when
//! computing it again costs less than storing it; otherwise it is stored and becomes the root of a unit of its own.
//! A reduction joins if it is needed once per parallel index of the unit (softmax, norms: the rows); a library op
//! joins an elementwise unit as its anchor, which then is the op's epilogue. Where a device wants it, the parts of a join
//! (concat) along an axis of the root are stored in turn, so that no element computes or chooses among several.
//!
//! Rules: views are free; every value that does not join is recorded as a [`Miss`]. Not here: how the index
//! arithmetic works out (`lower`, which may send a value back as one that must be stored).

mod coords;
mod join;
mod limits;

pub(crate) use join::Beside;

use crate::alias::{alias, is_multiple};
use crate::place::{Place, unsupported};
use crate::plan::{DeviceId, Miss, MissCode};
use crate::{Context, Level, Result, Work};
use coords::{Coord, cost, differ, operand_coords};
use cupola_ir::{CoreOp, Dim, Graph, Node, NodeId, Op, OpClass, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

/// Cost up to which a value is computed again rather than stored: about what a store and a load cost, in additions.
const CHEAP: u32 = 8;
/// Parts up to which every element of a join may choose among them.
const FEW: u32 = 4;
/// Most nodes in a unit; bounds the recursion of `lower` too.
const MAX_MEMBERS: usize = 256;

/// A unit to be: the root and what is beside it are stored, the other members are inlined.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The stored value.
    pub root: ValueId,
    /// Other values that are stored.
    pub beside: Vec<Beside>,
    /// The unit is launched where this value stands in the graph.
    pub launch: ValueId,
    /// Device.
    pub device: DeviceId,
    /// Library node whose result 0 the rest of the group consumes.
    pub anchor: Option<NodeId>,
    /// Nodes computed, the root's first, then backwards.
    pub members: Vec<NodeId>,
    /// Axes of the root that are parallel; `None` for all.
    pub parallel: Option<Vec<u32>>,
    /// A join whose parts the unit writes one after the other, and the axis of the root along which they lie.
    pub parts: Option<(u32, NodeId)>,
    /// A reduction has joined or is the root.
    reduces: bool,
}

/// The outcome.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fusion {
    /// Groups in the order of their roots.
    pub groups: Vec<Group>,
    /// Per value: has memory of its own (or is a reshape of what has).
    pub stored: Vec<bool>,
    /// Per value: someone needs it stored.
    pub needed: Vec<bool>,
    /// Values that lie in another's memory: in which, and at which byte offset.
    pub aliases: FxHashMap<ValueId, (ValueId, Dim)>,
    /// Values that must be stored, and why.
    pub forced: FxHashMap<ValueId, MissCode>,
    /// Stored values whose units write nothing else.
    pub apart: FxHashSet<ValueId>,
    /// Fusions not made.
    pub misses: Vec<Miss>,
}

/// How one unit uses a value.
#[derive(Clone, Debug)]
struct Use {
    root: ValueId,
    coords: Vec<Coord>,
    /// Elements are computed as often as something that no node says.
    repeated: bool,
    /// How often every element is computed besides: for so many places in which it is used, and the parts of joins in which
    /// it is not.
    times: u32,
    user: NodeId,
}

struct Fuser<'a> {
    graph: &'a Graph,
    work: &'a Work,
    context: &'a Context<'a>,
    costs: Vec<u32>,
    reduced: Vec<bool>,
    users: Vec<SmallVec<[NodeId; 2]>>,
    uses: Vec<Vec<Use>>,
    groups: FxHashMap<ValueId, Group>,
    stored: Vec<bool>,
    needed: Vec<bool>,
    aliases: FxHashMap<ValueId, (ValueId, Dim)>,
    /// Outputs, and what outputs are reshapes of.
    escapes: Vec<bool>,
    misses: Vec<Miss>,
    /// Repeated values that are fine only if they end up computed once per row.
    rows: Vec<(ValueId, ValueId, Vec<u32>)>,
}

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    let mut forced = std::mem::take(&mut work.fusion.forced);
    let apart = std::mem::take(&mut work.fusion.apart);
    loop {
        let before = forced.len();
        let mut f = Fuser::new(work, context);
        f.walk(&forced);
        f.check_rows(&mut forced);
        f.check_buffers(&mut forced);
        if forced.len() > before {
            continue;
        }
        let (groups, dropped) = join::run(&f, &apart);
        for v in dropped {
            f.stored[v.index()] = false;
        }
        let (stored, needed, aliases, misses) = (f.stored, f.needed, f.aliases, f.misses);
        work.fusion = Fusion {
            groups,
            stored,
            needed,
            aliases,
            forced,
            apart,
            misses,
        };
        return Ok(());
    }
}

impl<'a> Fuser<'a> {
    fn new(work: &'a Work, context: &'a Context) -> Fuser<'a> {
        let graph = &work.graph;
        let mut costs = vec![0u32; graph.value_count()];
        let mut reduced = vec![false; graph.value_count()];
        let mut stored = vec![false; graph.value_count()];
        for (id, node) in graph.nodes() {
            let place = work.places.of[id.index()];
            let inlined = match place {
                Place::Kernel(_) => true,
                Place::Host => work.places.from_dims[id.index()],
                Place::Leaf | Place::Library { .. } | Place::Control | Place::Effect => false,
            };
            for v in &node.results {
                stored[v.index()] = !inlined;
                costs[v.index()] = cost(graph, node, place, &costs);
                reduced[v.index()] = node.op.class() == OpClass::Reduction
                    || node.op.class() == OpClass::Elementwise
                        && node.operands.iter().any(|x| reduced[x.index()])
                    || node.op.class() == OpClass::View && reduced[node.operands[0].index()];
            }
        }
        Fuser {
            graph,
            work,
            context,
            costs,
            reduced,
            users: graph.users(),
            uses: vec![vec![]; graph.value_count()],
            groups: FxHashMap::default(),
            stored,
            needed: vec![false; graph.value_count()],
            aliases: FxHashMap::default(),
            escapes: escapes(graph),
            misses: vec![],
            rows: vec![],
        }
    }

    fn walk(&mut self, forced: &FxHashMap<ValueId, MissCode>) {
        for (_, v) in self.graph.outputs() {
            self.store(*v);
        }
        for (id, node) in self.graph.nodes().rev() {
            match self.work.places.of[id.index()] {
                Place::Leaf => {}
                Place::Control | Place::Effect => self.store_operands(id),
                Place::Host => {
                    if self.work.places.from_dims[id.index()] {
                        // Kernels compute it themselves; the host computes it for whoever else needs it.
                        self.join_all(id);
                    } else {
                        for v in &node.results {
                            self.needed[v.index()] |= !self.uses[v.index()].is_empty();
                        }
                    }
                    let wanted = node.results.iter().any(|v| self.needed[v.index()]);
                    if wanted || !node.op.binds().is_empty() {
                        self.store_operands(id);
                    }
                }
                Place::Library {
                    device,
                    strided,
                    epilogue,
                    converts,
                } => {
                    let anchored = epilogue && self.anchor(id, device, forced);
                    if !anchored {
                        for v in &node.results {
                            self.needed[v.index()] = true;
                        }
                        let root = node.results[0];
                        self.groups.insert(
                            root,
                            Group {
                                root,
                                beside: vec![],
                                launch: root,
                                device,
                                anchor: Some(id),
                                members: vec![id],
                                parallel: None,
                                parts: None,
                                reduces: false,
                            },
                        );
                    }
                    for v in &node.operands {
                        self.store_view(*v, strided, converts);
                    }
                }
                Place::Kernel(device) => self.kernel(id, device, forced),
            }
        }
    }

    /// A value that is needed in memory, its own or another's.
    fn store(&mut self, value: ValueId) {
        let mut v = value;
        loop {
            if std::mem::replace(&mut self.needed[v.index()], true) {
                return;
            }
            let node = self.graph.value(v).node;
            if self.work.places.from_dims[node.index()] {
                return;
            }
            self.stored[v.index()] = true;
            match self.alias(v) {
                Some((base, offset)) => {
                    self.aliases.insert(v, (base, offset));
                    v = base;
                }
                None => return,
            }
        }
    }

    /// Where a value can lie in another's memory. A part only where the whole is in memory anyway and does not outlive
    /// the run for it, at an offset that every device takes.
    fn alias(&self, v: ValueId) -> Option<(ValueId, Dim)> {
        let node = self.graph.value(v).node;
        let Place::Kernel(_) = self.work.places.of[node.index()] else {
            return None;
        };
        let (base, offset) = alias(self.graph, v)?;
        let reshape = matches!(self.graph.op_of(v), Op::Core(CoreOp::Reshape(_)));
        let aligned = || {
            let all = self.context.targets.iter();
            all.into_iter().all(|t| is_multiple(&offset, t.alignment))
        };
        let part = || self.stored[base.index()] && !self.escapes[v.index()] && aligned();
        (reshape || part()).then_some((base, offset))
    }

    fn store_operands(&mut self, id: NodeId) {
        for v in &self.graph.node(id).operands {
            self.store(*v);
        }
    }

    /// An operand of a library kernel: what a chain of views leads to is stored if the kernel takes strides, and what
    /// is converted instead of the result if the kernel converts and another kernel would have to do only that.
    fn store_view(&mut self, value: ValueId, strided: bool, converts: bool) {
        if !strided {
            return self.store(value);
        }
        let view_of = |converts| crate::lower::view_of(self.graph, value, &self.stored, converts);
        let base = view_of(false).base;
        let is_apart = |x| !self.takes_conversion(x);
        let apart = crate::lower::conversion(self.graph, base).is_some_and(is_apart);
        self.store(if converts && apart && !self.stored[base.index()] {
            view_of(true).base
        } else {
            base
        });
    }

    /// Whether the unit that computes a value can store another type of it instead: nobody else needs the value.
    fn takes_conversion(&self, value: ValueId) -> bool {
        let mut v = value;
        loop {
            if self.stored[v.index()] && !self.epilogue(v) || self.users[v.index()].len() > 1 {
                return false;
            }
            let node = self.graph.def(v);
            if node.op.class() != OpClass::View {
                return true;
            }
            v = node.operands[0];
        }
    }

    /// Whether a value is the result of a library kernel that takes an epilogue.
    fn epilogue(&self, value: ValueId) -> bool {
        let place = self.work.places.of[self.graph.value(value).node.index()];
        matches!(place, Place::Library { epilogue: true, .. })
    }

    /// Decides on a node that a kernel can compute.
    fn kernel(&mut self, id: NodeId, device: DeviceId, forced: &FxHashMap<ValueId, MissCode>) {
        let value = self.graph.node(id).results[0];
        if !self.stored[value.index()] {
            if self.uses[value.index()].is_empty() {
                return;
            }
            match self.may_join(value, forced) {
                Ok(()) => {
                    self.join_all(id);
                    return;
                }
                Err((code, blocker)) => {
                    self.misses.push(Miss {
                        code,
                        node: id,
                        blocker: Some(blocker),
                        hint: hint(code).to_string(),
                    });
                    self.store(value);
                }
            }
        }
        if self.aliases.contains_key(&value) {
            return;
        }
        let rank = self.graph.rank(value) as u32;
        let reduces = matches!(
            self.graph.node(id).op.class(),
            OpClass::Reduction | OpClass::Contraction
        );
        let group = Group {
            root: value,
            beside: vec![],
            launch: value,
            device,
            anchor: None,
            members: vec![id],
            parallel: None,
            parts: None,
            reduces,
        };
        self.groups.insert(value, group);
        let coords = (0..rank).map(Coord::Axis).collect();
        let own = Use {
            root: value,
            coords,
            repeated: false,
            times: 1,
            user: id,
        };
        self.pass_on(id, &[own]);
    }

    /// Whether a value may be computed inside the units that use it.
    fn may_join(
        &mut self,
        value: ValueId,
        forced: &FxHashMap<ValueId, MissCode>,
    ) -> Result<(), (MissCode, NodeId)> {
        let uses = &self.uses[value.index()];
        let first = uses[0].user;
        let fail = |code: MissCode| Err((code, first));
        if let Some(code) = forced.get(&value) {
            return fail(*code);
        }
        let id = self.graph.value(value).node;
        let class = self.graph.node(id).op.class();
        let separate = self.context.options.level == Level::Separate;
        if separate && !matches!(class, OpClass::Leaf | OpClass::View) {
            return fail(MissCode::Level);
        }
        let cheap = self.costs[value.index()] <= CHEAP;
        if uses.len() > 1 && !cheap && class != OpClass::View {
            return fail(MissCode::SeveralUsers);
        }
        for u in uses {
            let group = &self.groups[&u.root];
            if group.members.len() >= MAX_MEMBERS {
                return fail(MissCode::TooLarge);
            }
            let target = self.context.target(group.device);
            let from_dims = &self.work.places.from_dims;
            if unsupported(self.graph, self.graph.node(id), target, from_dims).is_some()
                || self.work.places.of[id.index()] != Place::Kernel(group.device)
            {
                return fail(MissCode::OtherDevice);
            }
        }
        match class {
            OpClass::Reduction | OpClass::Contraction => self.may_reduce(value),
            OpClass::Leaf => Ok(()),
            OpClass::View => {
                let choices = uses.iter().map(|u| self.choices(id, u)).max();
                let in_turn = |u: &Use| {
                    let device = self.groups[&u.root].device;
                    self.context.target(device).joins_in_turn
                };
                // Parts that elements would have to choose from are written in turn by a unit of their own.
                match uses.iter().all(in_turn) && choices > Some(FEW) {
                    true => fail(MissCode::Recompute),
                    false => Ok(()),
                }
            }
            OpClass::Elementwise
            | OpClass::Indexed
            | OpClass::Effect
            | OpClass::Control
            | OpClass::Host
            | OpClass::Composite => {
                let cost = self.costs[value.index()];
                let again = |u: &Use| u.times > 1 && cost.saturating_mul(u.times) > 2 * CHEAP;
                if uses.iter().any(again) {
                    return fail(MissCode::Recompute);
                }
                let repeated: Vec<Use> = uses.iter().filter(|u| u.repeated).cloned().collect();
                if cheap || repeated.is_empty() {
                    return Ok(());
                }
                for u in repeated {
                    match axes(&u.coords) {
                        Some(axes) if self.reduced[value.index()] => {
                            self.rows.push((value, u.root, axes))
                        }
                        _ => return fail(MissCode::Recompute),
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether a reduction is needed exactly once per parallel index of its one user.
    fn may_reduce(&mut self, value: ValueId) -> Result<(), (MissCode, NodeId)> {
        let [u] = &self.uses[value.index()][..] else {
            return Err((MissCode::SeveralUsers, self.uses[value.index()][0].user));
        };
        let fail = Err((MissCode::ReductionShape, u.user));
        let (Some(mut own), Some(group)) = (axes(&u.coords), self.groups.get_mut(&u.root)) else {
            return fail;
        };
        if group.anchor.is_some() || group.parts.is_some() {
            return fail;
        }
        own.sort_unstable();
        let dims = self.graph.dims(u.root);
        let all: Vec<u32> = (0..dims.len() as u32)
            .filter(|a| !dims[*a as usize].is(1))
            .collect();
        let heavy = !matches!(
            self.graph.op_of(value),
            Op::Core(CoreOp::Reduce(_) | CoreOp::ArgReduce(_))
        );
        let fits = match &group.parallel {
            Some(parallel) => own == *parallel,
            None if own == all => true,
            // Rows: the stores run along the contiguous axis, and there is more than one row.
            None => {
                !group.reduces
                    && !heavy
                    && !own.is_empty()
                    && all.last().is_some_and(|a| !own.contains(a))
            }
        };
        if !fits {
            return fail;
        }
        group.parallel = Some(own);
        group.reduces = true;
        Ok(())
    }

    /// Makes a node a member of the units that use it.
    fn join_all(&mut self, id: NodeId) {
        let value = self.graph.node(id).results[0];
        let uses = self.uses[value.index()].clone();
        for u in &uses {
            if let Some(g) = self.groups.get_mut(&u.root) {
                g.members.push(id);
            }
        }
        self.pass_on(id, &uses);
    }

    /// Tells the operands of a member how they are used.
    fn pass_on(&mut self, id: NodeId, uses: &[Use]) {
        let node = self.graph.node(id);
        for u in uses {
            let times = u.times.saturating_mul(self.choices(id, u));
            if let Some(axis) = self.axis_of_parts(id, u)
                && let Some(group) = self.groups.get_mut(&u.root)
            {
                group.parts = Some((axis, id));
            }
            for k in 0..node.operands.len() {
                let (coords, repeats) = operand_coords(self.graph, id, k, &u.coords);
                let once = matches!(
                    &node.op,
                    Op::Core(CoreOp::Reduce(_) | CoreOp::ArgReduce(_) | CoreOp::Fold(_))
                );
                let next = Use {
                    root: u.root,
                    coords,
                    repeated: repeats || u.repeated && !once,
                    times,
                    user: id,
                };
                merge(&mut self.uses[node.operands[k].index()], next);
            }
        }
    }

    /// How many parts of a join a unit computes for every element: all of them, where it does not write them in turn.
    fn choices(&self, id: NodeId, u: &Use) -> u32 {
        let node = self.graph.node(id);
        match (&node.op, self.axis_of_parts(id, u)) {
            (Op::Core(CoreOp::Concat(p)), None) => self.parts(node, p.axis),
            _ => 1,
        }
    }

    /// Parts that have elements.
    fn parts(&self, join: &Node, axis: usize) -> u32 {
        let filled = |v: &&ValueId| !self.graph.dims(**v)[axis].is(0);
        join.operands.iter().filter(filled).count() as u32
    }

    /// The axis of the root along which the unit can write the parts of a join in turn.
    fn axis_of_parts(&self, id: NodeId, u: &Use) -> Option<u32> {
        let node = self.graph.node(id);
        let Op::Core(CoreOp::Concat(p)) = &node.op else {
            return None;
        };
        let Coord::Axis(axis) = u.coords[p.axis] else {
            return None;
        };
        let group = self.groups.get(&u.root)?;
        let in_turn = self.context.target(group.device).joins_in_turn;
        let free = match group.parts {
            None => !group.reduces && group.anchor.is_none(),
            Some((_, own)) => own == id,
        };
        let root = self.graph.dims(u.root);
        let parts = self.parts(node, p.axis);
        (in_turn && free && worthwhile(&root, axis as usize, parts)).then_some(axis)
    }

    /// Joins a library node to the elementwise unit that uses it, if that is possible.
    fn anchor(
        &mut self,
        id: NodeId,
        device: DeviceId,
        forced: &FxHashMap<ValueId, MissCode>,
    ) -> bool {
        let node = self.graph.node(id);
        let value = node.results[0];
        let separate = self.context.options.level == Level::Separate;
        let (code, blocker) = match &self.uses[value.index()][..] {
            [u, ..] if separate => (MissCode::Level, Some(u.user)),
            _ if self.needed[value.index()] => (MissCode::Escapes, None),
            [] => return false,
            [u] => {
                let Some(group) = self.groups.get(&u.root) else {
                    return false;
                };
                let dims = self.graph.dims(u.root);
                let expected = (0..dims.len() as u32)
                    .filter(|a| !dims[*a as usize].is(1))
                    .map(|a| (a, dims[a as usize].clone()));
                let own = self.graph.dims(value);
                let got = u.coords.iter().zip(&own).filter(|(_, d)| !d.is(1));
                let same = got
                    .map(|(c, d)| match c {
                        Coord::Axis(a) => Some((*a, d.clone())),
                        Coord::Zero | Coord::Derived(_) | Coord::Other => None,
                    })
                    .eq(expected.map(Some));
                let free = node.results.len() == 1
                    && group.anchor.is_none()
                    && !group.reduces
                    && group.device == device;
                if let Some(code) = forced.get(&value) {
                    (*code, Some(u.user))
                } else if same && free && !u.repeated {
                    let root = u.root;
                    if let Some(g) = self.groups.get_mut(&root) {
                        g.anchor = Some(id);
                        g.members.push(id);
                    }
                    self.stored[value.index()] = false;
                    return true;
                } else {
                    (MissCode::NoEpilogue, Some(u.user))
                }
            }
            [u, ..] => (MissCode::SeveralUsers, Some(u.user)),
        };
        self.misses.push(Miss {
            code,
            node: id,
            blocker,
            hint: hint(code).to_string(),
        });
        false
    }
}

/// Outputs, and what they are reshapes of.
fn escapes(graph: &Graph) -> Vec<bool> {
    let mut all = vec![false; graph.value_count()];
    for (_, v) in graph.outputs() {
        let mut v = *v;
        while !std::mem::replace(&mut all[v.index()], true)
            && let Op::Core(CoreOp::Reshape(_)) = graph.op_of(v)
        {
            v = graph.def(v).operands[0];
        }
    }
    all
}

/// Root axes of coordinates, when they are all known and distinct.
fn axes(coords: &[Coord]) -> Option<Vec<u32>> {
    let mut out = vec![];
    for c in coords {
        match c {
            Coord::Zero => {}
            Coord::Axis(a) if !out.contains(a) => out.push(*a),
            Coord::Axis(_) | Coord::Derived(_) | Coord::Other => return None,
        }
    }
    Some(out)
}

/// Whether to write parts along an axis in turn: not a few of them one behind the other, of which the unit then would not
/// write whole rows.
fn worthwhile(root: &[Dim], axis: usize, parts: u32) -> bool {
    let is_one = |dims: &[Dim]| dims.iter().all(|d| d.is(1));
    parts > 1 && (parts > FEW || is_one(&root[axis + 1..]) || !is_one(&root[..axis]))
}

fn merge(uses: &mut Vec<Use>, next: Use) {
    match uses.iter_mut().find(|u| u.root == next.root) {
        Some(known) => {
            known.times = match differ(&known.coords, &next.coords) {
                true => known.times.saturating_add(next.times),
                false => known.times.max(next.times),
            };
            for (a, b) in known.coords.iter_mut().zip(&next.coords) {
                *a = a.join(*b);
            }
            known.repeated |= next.repeated;
        }
        None => uses.push(next),
    }
}

fn hint(code: MissCode) -> &'static str {
    match code {
        MissCode::SeveralUsers => "several units use it, and it costs more to compute than to load",
        MissCode::Escapes => "it is an output, a state or an operand that must be in memory",
        MissCode::ReductionShape => "it is not needed once per row of the unit that uses it",
        MissCode::TooManyBuffers => "the unit would take more buffers than the device allows",
        MissCode::TooLarge => "the unit would become too large",
        MissCode::Recompute => "it would be computed again for every repetition",
        MissCode::OtherDevice => "its user runs on another device",
        MissCode::Unsupported => "the device has no kernel for it",
        MissCode::NearPattern => "it is nearly a known composite",
        MissCode::NoEpilogue => "what follows is not elementwise over the whole result",
        MissCode::DataDependent => "elements are addressed by data",
        MissCode::Level => "nothing is fused at -O0",
        MissCode::KeepsLess => "it is kept instead of several values that it is made of",
    }
}

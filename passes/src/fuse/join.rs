//! Units that write several results: groups that read the same elements, or of which one reads what the other writes, become
//! one, so that each element is read once. An update of Adam writes a parameter and both of its moments; a norm keeps its
//! rows' means beside what it makes of the rows; a product stores its sums beside what follows them.
//!
//! Rules: all results of a unit run over the axes of the largest, be it without those along its rows. What one part reads of
//! another's results is the element at its own position. The unit is launched where its last part stood, so nothing that comes
//! before may need what the others write. Updates of states, and sums of what the first part makes, are launched where that stood,
//! so that what it is made of does not stay. Only groups with a large operand in common are joined, or producer and consumer.

use super::coords::Coord;
use super::{Fuser, Group, MAX_MEMBERS, Use};
use crate::Level;
use crate::place::Place;
use cupola_ir::{CoreOp, NodeId, Op, OpClass, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

/// Groups with an operand in common that are tried with the next one that has it.
const OPEN: usize = 4;

/// Most units that an update is made of, one after the other.
const DEPTH: usize = 8;

/// Another value that a unit stores.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// The value.
    pub value: ValueId,
    /// Axis of the root that each of its axes follows; `None` for axes of extent 1.
    pub axes: Vec<Option<u32>>,
}

/// Which axes of a group's root its reductions need to be parallel.
#[derive(Clone, Debug, PartialEq)]
enum Space {
    /// None in particular.
    Any,
    /// These.
    Fixed(Vec<u32>),
}

/// The groups after joining, in the order of their launches, and the values that are no longer stored, since only their own unit
/// reads them. Groups that store one of `apart` stay as they are.
pub(super) fn run(f: &Fuser, apart: &FxHashSet<ValueId>) -> (Vec<Group>, Vec<ValueId>) {
    let mut groups: Vec<Group> = f.groups.values().cloned().collect();
    groups.sort_by_key(|g| g.root);
    if f.context.options.level == Level::Separate {
        return (groups, vec![]);
    }
    let mut joiner = Joiner::new(f, groups, apart);
    joiner.all();
    let dropped = (0..joiner.groups.len()).flat_map(|at| joiner.drop_unread(at));
    let dropped = dropped.collect();
    let mut groups: Vec<Group> = joiner.groups.into_iter().flatten().collect();
    groups.sort_by_key(|g| g.launch);
    (groups, dropped)
}

struct Joiner<'f, 'g> {
    f: &'f Fuser<'g>,
    apart: &'f FxHashSet<ValueId>,
    groups: Vec<Option<Group>>,
    /// By the root of a group as it was made: where it is now, and the axis of that unit's root that each of its axes follows.
    at: FxHashMap<ValueId, (usize, Vec<Option<u32>>)>,
    /// Values in the memory of each value.
    parts: FxHashMap<ValueId, Vec<ValueId>>,
    /// Values that each group reads, of those that are in memory.
    reads: Vec<FxHashSet<ValueId>>,
}

impl<'f, 'g> Joiner<'f, 'g> {
    fn new(f: &'f Fuser<'g>, groups: Vec<Group>, apart: &'f FxHashSet<ValueId>) -> Joiner<'f, 'g> {
        let mut parts: FxHashMap<ValueId, Vec<ValueId>> = FxHashMap::default();
        for (v, (base, _)) in &f.aliases {
            parts.entry(*base).or_default().push(*v);
        }
        let own = |g: &Group| own_axes(f, g.root);
        let at = groups.iter().enumerate();
        let at = at.map(|(i, g)| (g.root, (i, own(g)))).collect();
        let reads = groups.iter().map(|g| reads(f, g)).collect();
        Joiner {
            f,
            apart,
            at,
            parts,
            reads,
            groups: groups.into_iter().map(Some).collect(),
        }
    }

    /// Tries what has a stored value in common, value by value.
    fn all(&mut self) {
        for v in (0..self.f.graph.value_count()).map(|i| ValueId(i as u32)) {
            if !self.f.stored[v.index()] || self.is_number(v) {
                continue;
            }
            let users = self.f.uses[v.index()].iter().map(|u| u.root);
            let mut roots: Vec<ValueId> = users.filter(|r| self.at.contains_key(r)).collect();
            roots.sort_unstable();
            roots.extend(self.at.contains_key(&v).then_some(v));
            roots.rotate_right(usize::from(self.at.contains_key(&v)));
            let mut open: Vec<ValueId> = vec![];
            for root in roots {
                let with = open.iter().rev().take(OPEN).copied();
                let with: Vec<ValueId> = with.collect();
                if !with.into_iter().any(|other| self.join(v, other, root)) {
                    open.push(root);
                }
            }
        }
    }

    fn is_number(&self, v: ValueId) -> bool {
        let constant = self.f.graph.as_const(v);
        constant.and_then(crate::lower::uniform).is_some()
    }

    /// Joins the units that the groups of two roots are in, for the sake of a value that both touch; whether they are one now.
    fn join(&mut self, shared: ValueId, first: ValueId, second: ValueId) -> bool {
        let (Some((a, _)), Some((b, _))) = (self.at.get(&first), self.at.get(&second)) else {
            return false;
        };
        let (a, b) = (*a, *b);
        if a == b {
            return true;
        }
        let (Some(x), Some(y)) = (&self.groups[a], &self.groups[b]) else {
            return false;
        };
        // The later one takes the other in.
        let (early, late) = match x.launch <= y.launch {
            true => (a, b),
            false => (b, a),
        };
        let Some(joined) = self.joined(shared, early, late) else {
            return false;
        };
        self.replace(early, late, joined)
    }

    fn group(&self, at: usize) -> &Group {
        let group = self.groups[at].as_ref();
        group.unwrap_or_else(|| unreachable!("bug: a group that was joined before"))
    }

    /// The unit of two, and where the axes of the early one's root are in it, if they may be one.
    fn joined(&self, shared: ValueId, early: usize, late: usize) -> Option<Joined> {
        let (a, b) = (self.group(early), self.group(late));
        let free = |g: &Group| g.parts.is_none() && !self.apart.contains(&g.root);
        let few = a.members.len() + b.members.len() <= MAX_MEMBERS;
        if a.device != b.device
            || !free(a)
            || !free(b)
            || !few
            || !self.is_worthwhile(shared, early, late)
        {
            return None;
        }
        let joined = match (a.anchor, b.anchor) {
            (None, None) => self.over_axes(early, late)?,
            // An update streams through more memory than a product's tiles should make way for.
            (Some(_), None) if self.only_updates(late, DEPTH) => return None,
            (Some(id), None) => self.behind(id, early, late)?,
            (_, Some(_)) => return None,
        };
        let fits = self.reads_own_elements(early, late, &joined) && self.buffers(early, late);
        let at_once = fits && self.may_go_at_once(early, late);
        let launch = match at_once {
            true => self.group(early).launch,
            false => self.group(late).launch,
        };
        (fits && (at_once || self.is_ordered(early, late))).then_some(Joined { launch, ..joined })
    }

    /// Whether the value is read at the same elements, all over the axes of both units, or is what one of them writes.
    fn is_worthwhile(&self, shared: ValueId, early: usize, late: usize) -> bool {
        if self.is_constant(early) || self.is_constant(late) {
            return false;
        }
        if self.writes(early).any(|v| v == shared) {
            return true;
        }
        let of = |at: usize| {
            let uses = self.f.uses[shared.index()].iter();
            let own = uses.filter(|u| self.at.get(&u.root).is_some_and(|(i, _)| *i == at));
            own.map(|u| self.mapped(u)).collect::<Vec<_>>()
        };
        let (mine, theirs) = (of(early), of(late));
        let root = self.group(late).root;
        let dims = self.f.graph.dims(root);
        let len = cupola_ir::Dim::product(&dims);
        let as_many = self.f.graph.tensor(shared).len() == len;
        let covers = |coords: &[Coord]| {
            let has = |a: usize| dims[a].is(1) || coords.contains(&Coord::Axis(a as u32));
            as_many || (0..dims.len()).all(has)
        };
        // A row's reduction reads along its row.
        let rows = self.f.graph.rank(shared) >= dims.len();
        mine.iter().any(|m| theirs.contains(m) && covers(m))
            || rows && !mine.is_empty() && theirs.iter().any(|t| covers(t))
    }

    /// Coordinates of a use in terms of the axes of the unit's root.
    fn mapped(&self, u: &Use) -> Vec<Coord> {
        let axes = self.at.get(&u.root).map(|(_, axes)| &axes[..]);
        let follow = |c: &Coord| match c {
            Coord::Axis(a) => {
                let to = axes.and_then(|axes| axes.get(*a as usize).copied().flatten());
                to.map_or(Coord::Zero, Coord::Axis)
            }
            Coord::Zero | Coord::Derived(_) | Coord::Other => *c,
        };
        u.coords.iter().map(follow).collect()
    }

    /// Units of constants are run when the plan is loaded.
    fn is_constant(&self, at: usize) -> bool {
        let is = |v: &ValueId| self.f.graph.as_const(*v).is_some();
        self.reads[at].iter().all(is)
    }

    /// Two generated kernels over the same axes, or one over the rows of the other.
    fn over_axes(&self, early: usize, late: usize) -> Option<Joined> {
        let (a, b) = (self.group(early), self.group(late));
        let dims = |g: &Group| self.f.graph.dims(g.root);
        if dims(a) == dims(b) {
            let parallel = match (space(self.f, a), space(self.f, b)) {
                (Space::Any, Space::Any) => None,
                (Space::Fixed(p), Space::Any) | (Space::Any, Space::Fixed(p)) => Some(p),
                (Space::Fixed(p), Space::Fixed(q)) => (p == q).then_some(Some(p))?,
            };
            return Some(Joined {
                axes: own_axes(self.f, a.root),
                parallel,
                launch: b.launch,
            });
        }
        // The early one gives a value for each row.
        let read = self.f.uses[a.root.index()].iter();
        let mut read = read.filter(|u| self.at.get(&u.root).is_some_and(|(i, _)| *i == late));
        let coords = self.mapped(read.next()?);
        let axes: Vec<Option<u32>> = coords
            .iter()
            .map(|c| match c {
                Coord::Axis(x) => Some(Some(*x)),
                Coord::Zero => Some(None),
                Coord::Derived(_) | Coord::Other => None,
            })
            .collect::<Option<_>>()?;
        let mut own: Vec<u32> = axes.iter().flatten().copied().collect();
        own.sort_unstable();
        let distinct = own.windows(2).all(|w| w[0] != w[1]);
        let to = dims(b);
        let same = |(d, axis): (&cupola_ir::Dim, &Option<u32>)| match axis {
            Some(x) => *d == to[*x as usize],
            None => d.is(1),
        };
        let alike = dims(a).iter().zip(&axes).all(same);
        let mut all = (0..to.len() as u32).filter(|x| !to[*x as usize].is(1));
        let contiguous = all.next_back().is_some_and(|x| !own.contains(&x));
        let heavy = |id: &NodeId| {
            let class = self.f.graph.node(*id).op.class();
            class == OpClass::Contraction
        };
        let rows = match space(self.f, b) {
            Space::Fixed(p) => p == own,
            Space::Any => !own.is_empty() && !a.members.iter().any(heavy),
        };
        let reduces = matches!(space(self.f, a), Space::Fixed(_));
        (distinct && alike && contiguous && rows && reduces).then_some(Joined {
            axes,
            parallel: Some(own),
            launch: b.launch,
        })
    }

    /// An elementwise kernel behind a library kernel that finishes its elements by an epilogue.
    fn behind(&self, anchor: NodeId, early: usize, late: usize) -> Option<Joined> {
        let (a, b) = (self.group(early), self.group(late));
        let node = self.f.graph.node(anchor);
        let place = self.f.work.places.of[anchor.index()];
        let epilogue = matches!(place, Place::Library { epilogue: true, .. });
        let dims = self.f.graph.dims(node.results[0]);
        let same = dims == self.f.graph.dims(a.root) && dims == self.f.graph.dims(b.root);
        let mut written = self.writes(early);
        let reads = written.any(|v| self.reads[late].contains(&v));
        let fits = epilogue && node.results.len() == 1 && same && reads;
        let any = space(self.f, b) == Space::Any;
        (fits && any).then(|| Joined {
            axes: own_axes(self.f, a.root),
            parallel: None,
            launch: b.launch,
        })
    }

    /// The values that a unit stores.
    fn writes(&self, at: usize) -> impl Iterator<Item = ValueId> + '_ {
        let group = self.group(at);
        let beside = group.beside.iter().map(|b| b.value);
        std::iter::once(group.root).chain(beside)
    }

    /// Whether the late unit reads what the early one writes at its own elements only.
    fn reads_own_elements(&self, early: usize, late: usize, joined: &Joined) -> bool {
        let group = self.group(early);
        let root = std::iter::once((group.root, joined.axes.clone()));
        let beside = group.beside.iter().map(|b| {
            let follow = |a: &Option<u32>| a.and_then(|a| joined.axes[a as usize]);
            (b.value, b.axes.iter().map(follow).collect::<Vec<_>>())
        });
        root.chain(beside).all(|(v, axes)| {
            let wanted: Vec<Coord> = axes
                .iter()
                .map(|a| a.map_or(Coord::Zero, Coord::Axis))
                .collect();
            let of_late = |u: &&Use| self.at.get(&u.root).is_some_and(|(i, _)| *i == late);
            let mut uses = self.f.uses[v.index()].iter().filter(of_late);
            let own = uses.all(|u| self.mapped(u) == wanted);
            let mut parts = self.held_in(v).into_iter();
            own && !parts.any(|part| self.reads[late].contains(&part))
        })
    }

    /// All values that lie in the memory of this one.
    fn held_in(&self, v: ValueId) -> Vec<ValueId> {
        let mut all = vec![];
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            for part in self.parts.get(&v).into_iter().flatten() {
                all.push(*part);
                open.push(*part);
            }
        }
        all
    }

    /// Whether nothing needs what the early unit writes before the late one is launched.
    fn is_ordered(&self, early: usize, late: usize) -> bool {
        let launch = self.f.graph.value(self.group(late).launch).node;
        let (units, nodes) = self.readers(self.writes(early).collect());
        let later = |at: &usize| self.f.graph.value(self.group(*at).launch).node > launch;
        let mut others = units.iter().filter(|at| **at != early && **at != late);
        others.all(later) && nodes.iter().all(|id| *id > launch)
    }

    /// Whether the late unit may as well be launched where the early one is, so that what that reads need not be kept for it: it
    /// only updates states or makes less of what the early one makes, its extents are known, and all that it needs is there.
    fn may_go_at_once(&self, early: usize, late: usize) -> bool {
        let f = self.f;
        let known = |id: &NodeId| {
            let values = f.graph.node(*id).results.iter();
            values.copied().all(|v| self.known_len(v).is_some())
        };
        let launch = f.graph.value(self.group(early).launch).node;
        let own: FxHashSet<ValueId> = self.writes(early).chain(self.writes(late)).collect();
        let is_there = |v: &ValueId| {
            let v = self.holder(*v, &own);
            let node = f.graph.value(v).node;
            let made = match self.at.get(&v) {
                Some((at, _)) => f.graph.value(self.group(*at).launch).node,
                None => node,
            };
            own.contains(&v) || f.work.places.of[node.index()] == Place::Leaf || made < launch
        };
        (self.only_updates(late, DEPTH) || self.shrinks(early, late))
            && self.group(late).members.iter().all(known)
            && self.reads[late].iter().all(is_there)
    }

    /// Whether the late unit reads nothing of the run but what the early one writes, and writes less than that: launched at once,
    /// it takes no memory that would not be taken anyway.
    fn shrinks(&self, early: usize, late: usize) -> bool {
        let f = self.f;
        let made: FxHashSet<ValueId> = self.writes(early).collect();
        let of_early = |v: &ValueId| {
            let v = self.holder(*v, &made);
            made.contains(&v) || f.work.places.of[f.graph.value(v).node.index()] == Place::Leaf
        };
        let elements = |at: usize| {
            let lens = self.writes(at).map(|v| self.known_len(v));
            lens.sum::<Option<u64>>()
        };
        let less = elements(late).zip(elements(early));
        less.is_some_and(|(late, early)| late < early) && self.reads[late].iter().all(of_early)
    }

    /// The value in whose memory this one lies, or the first of `own` on the way there.
    fn holder(&self, mut v: ValueId, own: &FxHashSet<ValueId>) -> ValueId {
        while let (false, Some((base, _))) = (own.contains(&v), self.f.aliases.get(&v)) {
            v = *base;
        }
        v
    }

    /// Elements of a value whose extents are known.
    fn known_len(&self, v: ValueId) -> Option<u64> {
        let dims = self.f.graph.dims(v);
        let mut extents = dims.iter().map(|d| u64::try_from(d.as_const()?).ok());
        extents.try_fold(1u64, |n, d| n.checked_mul(d?))
    }

    /// Whether all that comes of a unit are new states.
    fn only_updates(&self, at: usize, depth: usize) -> bool {
        let escapes = self.writes(at).any(|v| self.f.escapes[v.index()]);
        let (units, nodes) = self.readers(self.writes(at).collect());
        let is_state = |id: &NodeId| {
            let op = &self.f.graph.node(*id).op;
            matches!(op, Op::Core(CoreOp::WriteState(_)))
        };
        let further =
            |unit: &usize| *unit == at || depth > 0 && self.only_updates(*unit, depth - 1);
        !escapes && nodes.iter().all(is_state) && units.iter().all(further)
    }

    /// The units that read values or what lies in their memory, and the other nodes that do, be it through views.
    fn readers(&self, values: Vec<ValueId>) -> (FxHashSet<usize>, Vec<NodeId>) {
        let f = self.f;
        let (mut units, mut nodes) = (FxHashSet::default(), vec![]);
        let mut seen: FxHashSet<ValueId> = values.iter().copied().collect();
        let mut open = values;
        while let Some(v) = open.pop() {
            let uses = f.uses[v.index()].iter();
            units.extend(uses.filter_map(|u| Some(self.at.get(&u.root)?.0)));
            for id in &f.users[v.index()] {
                if !matches!(f.work.places.of[id.index()], Place::Kernel(_)) {
                    nodes.push(*id);
                    continue;
                }
                let results = f.graph.node(*id).results.iter().copied();
                let through = |r: &ValueId| !f.stored[r.index()] || f.aliases.contains_key(r);
                open.extend(results.filter(|r| through(r) && seen.insert(*r)));
            }
        }
        (units, nodes)
    }

    /// Stores no longer what only the unit itself reads.
    fn drop_unread(&mut self, at: usize) -> Vec<ValueId> {
        let f = self.f;
        let Some(group) = self.groups[at].as_ref().filter(|g| !g.beside.is_empty()) else {
            return vec![];
        };
        let unread = |v: &ValueId| {
            let (units, nodes) = self.readers(vec![*v]);
            let own = nodes.is_empty() && units.iter().all(|unit| *unit == at);
            own && !f.escapes[v.index()] && !self.parts.contains_key(v)
        };
        let mut dropped: Vec<ValueId> = self.writes(at).filter(unread).collect();
        let mut group = group.clone();
        group.beside.retain(|b| !dropped.contains(&b.value));
        if dropped.contains(&group.root) {
            // Another over all of the axes takes its place.
            let axes = own_axes(f, group.root);
            let dims = f.graph.dims(group.root);
            let alike = |b: &Beside| b.axes == axes && f.graph.dims(b.value) == dims;
            match group.beside.iter().position(alike) {
                Some(next) => group.root = group.beside.remove(next).value,
                None => dropped.retain(|v| *v != group.root),
            }
        }
        self.groups[at] = Some(group);
        dropped
    }

    /// Whether the device takes as many buffers.
    fn buffers(&self, early: usize, late: usize) -> bool {
        let limit = self.f.context.target(self.group(late).device).max_buffers;
        let writes: FxHashSet<ValueId> = self.writes(early).chain(self.writes(late)).collect();
        let reads = self.reads[early].union(&self.reads[late]);
        let reads = reads.filter(|v| !writes.contains(v)).count();
        // What a library kernel reads through views.
        let anchor = self.group(early).anchor.map(|id| self.f.graph.node(id));
        let operands = anchor.map_or(0, |node| node.operands.len());
        reads + writes.len() + operands <= limit.max(4)
    }

    /// Puts the joined unit where the late one was.
    fn replace(&mut self, early: usize, late: usize, joined: Joined) -> bool {
        let (Some(a), Some(mut b)) = (self.groups[early].take(), self.groups[late].take()) else {
            return false;
        };
        let follow = |axes: &[Option<u32>]| -> Vec<Option<u32>> {
            let to = |a: &Option<u32>| a.and_then(|a| joined.axes[a as usize]);
            axes.iter().map(to).collect()
        };
        let mut beside = vec![Beside {
            value: a.root,
            axes: joined.axes.clone(),
        }];
        beside.extend(a.beside.iter().map(|x| Beside {
            value: x.value,
            axes: follow(&x.axes),
        }));
        if a.anchor.is_some() {
            // A library kernel's own result stays its first.
            beside[0].value = b.root;
            b.root = a.root;
        }
        b.beside.extend(beside);
        let known: FxHashSet<NodeId> = b.members.iter().copied().collect();
        let new = a.members.iter().filter(|id| !known.contains(id));
        b.members.extend(new.copied());
        b.anchor = a.anchor;
        b.launch = joined.launch;
        b.parallel = joined.parallel;
        b.reduces |= a.reduces;
        for (at, axes) in self.at.values_mut() {
            if *at == early {
                *at = late;
                *axes = follow(axes);
            }
        }
        let more = std::mem::take(&mut self.reads[early]);
        self.reads[late].extend(more);
        self.groups[late] = Some(b);
        true
    }
}

/// How two units become one.
struct Joined {
    /// Axis of the unit's root that each axis of the early one's root follows.
    axes: Vec<Option<u32>>,
    /// As in [`Group`].
    parallel: Option<Vec<u32>>,
    /// As in [`Group`].
    launch: ValueId,
}

/// Each axis of a value by itself.
fn own_axes(f: &Fuser, v: ValueId) -> Vec<Option<u32>> {
    let dims = f.graph.dims(v);
    let own = dims.iter().enumerate();
    own.map(|(a, d)| (!d.is(1)).then_some(a as u32)).collect()
}

fn space(f: &Fuser, g: &Group) -> Space {
    match &g.parallel {
        Some(p) => Space::Fixed(p.clone()),
        None if g.reduces => {
            let own = own_axes(f, g.root);
            Space::Fixed(own.into_iter().flatten().collect())
        }
        None => Space::Any,
    }
}

/// What a group reads of memory.
fn reads(f: &Fuser, group: &Group) -> FxHashSet<ValueId> {
    let nodes = group.members.iter().map(|id| f.graph.node(*id));
    let operands = nodes.flat_map(|node| node.operands.iter().copied());
    let in_memory = |v: &ValueId| {
        let number = || f.graph.as_const(*v).and_then(crate::lower::uniform);
        let leaf = matches!(f.graph.op_of(*v), Op::Core(CoreOp::Const(_)));
        (f.stored[v.index()] || leaf) && *v != group.root && number().is_none()
    };
    operands.filter(in_memory).collect()
}

//! What fusion knows of indices: which axis of the root each axis of an operand follows.

use crate::lower::runs;
use crate::place::Place;
use cupola_ir::{CoreOp, Dim, Graph, Node, NodeId, Op, OpClass, ValueId};
use rustc_hash::FxHasher;
use std::hash::{Hash, Hasher};

/// Index of an axis in terms of the root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Coord {
    /// The index of this axis of the root.
    Axis(u32),
    /// Always 0.
    Zero,
    /// A function of the root's indices; equal numbers are the same function.
    Derived(u64),
    /// Something else: more than one index for one of the root's, or unknown.
    Other,
}

impl Coord {
    /// Of uses at both.
    pub(super) fn join(self, other: Coord) -> Coord {
        match (self, other) {
            (a, b) if a == b => a,
            (Coord::Other, _) | (_, Coord::Other) => Coord::Other,
            both => Coord::Derived(number(&both)),
        }
    }
}

fn number(of: &impl Hash) -> u64 {
    let mut hasher = FxHasher::default();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The coordinate of an axis of an operand that a node makes of coordinates of its result.
fn derived(id: NodeId, axis: usize, from: &[Coord]) -> Coord {
    if from.contains(&Coord::Other) {
        return Coord::Other;
    }
    Coord::Derived(number(&(id, axis, from)))
}

/// Whether elements at one list of coordinates are other elements than at the other list; a reduction needs all along its
/// axes either way.
pub(super) fn differ(a: &[Coord], b: &[Coord]) -> bool {
    let both = a.iter().zip(b);
    let mut known = both.filter(|(a, b)| **a != Coord::Other && **b != Coord::Other);
    known.any(|(a, b)| a != b)
}

/// Coordinates of operand `k` for coordinates of the node's result, and whether elements are then needed repeatedly.
pub(super) fn operand_coords(
    graph: &Graph,
    id: NodeId,
    k: usize,
    coords: &[Coord],
) -> (Vec<Coord>, bool) {
    let node = graph.node(id);
    let dims = graph.dims(node.operands[k]);
    let rank = dims.len();
    let (mut out, repeats) = match &node.op {
        Op::Core(op) => core_coords(graph, op, id, k, coords, &dims),
        Op::Host(_) | Op::Composite(_) => (vec![Coord::Other; rank], true),
    };
    out.resize(rank, Coord::Other);
    for (c, d) in out.iter_mut().zip(&dims) {
        if d.is(1) {
            *c = Coord::Zero;
        }
    }
    (out, repeats)
}

fn core_coords(
    graph: &Graph,
    op: &CoreOp,
    id: NodeId,
    k: usize,
    coords: &[Coord],
    dims: &[Dim],
) -> (Vec<Coord>, bool) {
    let node = graph.node(id);
    let rank = dims.len();
    let other = vec![Coord::Other; rank];
    let made = |a: usize| derived(id, a, &coords[a..=a]);
    match op {
        CoreOp::Map(_) | CoreOp::Cast(_) | CoreOp::Bitcast(_) => (coords.to_vec(), false),
        CoreOp::Collective(_) | CoreOp::Transfer(_) => (coords.to_vec(), false),
        CoreOp::Permute(p) => {
            let mut out = other;
            for (i, a) in p.perm.iter().enumerate() {
                out[*a] = coords[i];
            }
            (out, false)
        }
        CoreOp::Broadcast(p) => {
            let same: Vec<bool> = dims
                .iter()
                .zip(&p.dims)
                .map(|(a, b)| a == b || a.is_clip_of(b))
                .collect();
            let out = coords.iter().zip(&same);
            let out = out.map(|(c, s)| if *s { *c } else { Coord::Other });
            (out.collect(), same.contains(&false))
        }
        CoreOp::Slice(p) => {
            let whole = |a: usize| p.starts[a].is(0) && p.steps[a] == 1;
            let out = (0..rank).map(|a| if whole(a) { coords[a] } else { made(a) });
            (out.collect(), false)
        }
        CoreOp::Reshape(p) => {
            let mut out = other;
            for (from, to) in runs(&p.dims, dims) {
                if let ([f], [t]) = (&from[..], &to[..])
                    && p.dims[*f] == dims[*t]
                {
                    out[*t] = coords[*f];
                } else {
                    let from: Vec<Coord> = from.iter().map(|f| coords[*f]).collect();
                    to.iter().for_each(|t| out[*t] = derived(id, *t, &from));
                }
            }
            (out, false)
        }
        CoreOp::Pad(p) => {
            let whole = |a: usize| p.low[a].is(0) && p.high[a].is(0);
            let out = (0..rank).map(|a| if whole(a) { coords[a] } else { made(a) });
            (out.collect(), k == 1)
        }
        CoreOp::Concat(p) => {
            let part = |a| derived(id, a + rank * k, &coords[a..=a]);
            let out = (0..rank).map(|a| if a == p.axis { part(a) } else { coords[a] });
            (out.collect(), false)
        }
        CoreOp::Window(p) => {
            let out = (0..rank).map(|a| {
                if p.axes.contains(&a) {
                    Coord::Other
                } else {
                    coords[a]
                }
            });
            (out.collect(), true)
        }
        CoreOp::Fold(p) => {
            let out = (0..rank).map(|a| {
                if a >= coords.len() || p.axes.contains(&a) {
                    Coord::Other
                } else {
                    coords[a]
                }
            });
            (out.collect(), false)
        }
        CoreOp::Reduce(p) => (insert(coords, &p.axes, rank), false),
        CoreOp::ArgReduce(p) => (insert(coords, &[p.axis], rank), false),
        CoreOp::Gather(p) => {
            let picked = graph.rank(node.operands[1]);
            if k > 0 {
                return (coords[..picked].to_vec(), coords.len() > picked);
            }
            let mut out = other;
            out[..p.batch].copy_from_slice(&coords[..p.batch]);
            let window = (p.batch..rank).filter(|a| !p.axes.contains(a));
            for (a, c) in window.zip(&coords[picked..]) {
                out[a] = *c;
            }
            (out, true)
        }
        CoreOp::Input(_)
        | CoreOp::Param(_)
        | CoreOp::Const(_)
        | CoreOp::Iota(_)
        | CoreOp::Dims(_)
        | CoreOp::Contract(_)
        | CoreOp::Scatter(_)
        | CoreOp::Sort(_)
        | CoreOp::If(_)
        | CoreOp::Loop(_)
        | CoreOp::Scan(_)
        | CoreOp::Call(_)
        | CoreOp::ReadState(_)
        | CoreOp::WriteState(_)
        | CoreOp::Random(_)
        | CoreOp::BindDim(_) => (other, true),
    }
}

/// Coordinates with `Other` inserted at `axes`.
fn insert(coords: &[Coord], axes: &[usize], rank: usize) -> Vec<Coord> {
    let mut kept = coords.iter();
    (0..rank)
        .map(|a| {
            if axes.contains(&a) {
                Coord::Other
            } else {
                kept.next().copied().unwrap_or(Coord::Other)
            }
        })
        .collect()
}

/// Cost of an element in additions, if everything up to reductions and library results were inlined.
pub(super) fn cost(graph: &Graph, node: &Node, place: Place, costs: &[u32]) -> u32 {
    // More than anything cheap: such a value is worth its own place in memory.
    const STORED: u32 = 9;
    let operands = || {
        let of = |v: &ValueId| costs[v.index()];
        node.operands.iter().map(of).fold(0u32, u32::saturating_add)
    };
    match (&node.op, place) {
        (_, Place::Leaf) => match graph.as_const(node.results[0]) {
            Some(c) if crate::lower::uniform(c).is_some() => 0,
            _ => 1,
        },
        (_, Place::Host) => 1,
        (_, Place::Library { .. } | Place::Control | Place::Effect) => STORED,
        (Op::Core(CoreOp::Map(p)), Place::Kernel(_)) => operands().saturating_add(p.f.cost()),
        (Op::Core(CoreOp::Random(_)), Place::Kernel(_)) => 40,
        (op, Place::Kernel(_)) => match op.class() {
            OpClass::Leaf => 0,
            // What is repeated is worth its own, smaller place, from which an element is loaded.
            OpClass::View if repeats(graph, node) => operands().min(1),
            OpClass::Elementwise | OpClass::Indexed => operands().saturating_add(1),
            OpClass::View => operands(),
            OpClass::Reduction
            | OpClass::Contraction
            | OpClass::Control
            | OpClass::Effect
            | OpClass::Host
            | OpClass::Composite => STORED,
        },
    }
}

/// Whether a node gives its operand's elements several times.
fn repeats(graph: &Graph, node: &Node) -> bool {
    let from = || graph.dims(node.operands[0]);
    matches!(&node.op, Op::Core(CoreOp::Broadcast(p)) if from() != p.dims)
}

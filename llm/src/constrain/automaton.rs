//! [`Automaton`]: a program followed through texts, with every state and step that was met kept.
//!
//! A state is a set of places in the program, each with the rules it is within: a stack. Stacks and states are numbered
//! when they first occur, so that a step that was taken before is one look into a table.

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::program::{Node, NodeId, Program};

/// Number of a state.
pub type StateId = u32;

/// No text leads on.
pub const DEAD: StateId = 0;

const UNKNOWN: StateId = u32::MAX;

/// Rules within rules: deeper texts are not allowed.
const MAX_DEPTH: u32 = 1000;

/// Places of one state: grammars that need more are too ambiguous to follow.
const MAX_PLACES: usize = 10_000;

/// Number of a stack; the empty one is [`BOTTOM`].
type StackId = u32;

const BOTTOM: StackId = 0;

/// Where to go on behind a rule, and the stack below.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Frame {
    node: NodeId,
    below: StackId,
}

/// A node that takes bytes, and the rules it is within.
type Place = (NodeId, StackId);

struct State {
    places: Arc<[Place]>,
    accepts: bool,
    steps: Box<[StateId; 256]>,
}

/// Places reached so far.
#[derive(Default)]
struct Reached {
    places: Vec<Place>,
    accepts: bool,
}

/// A program with the states that were met.
pub struct Automaton {
    program: Arc<Program>,
    frames: Vec<(Frame, u32)>,
    frame_ids: FxHashMap<Frame, StackId>,
    states: Vec<State>,
    state_ids: HashMap<(Arc<[Place]>, bool), StateId>,
    start: StateId,
}

impl Automaton {
    /// At the beginning of every text.
    pub fn new(program: Arc<Program>) -> Automaton {
        let bottom = Frame {
            node: NodeId::MAX,
            below: BOTTOM,
        };
        let mut automaton = Automaton {
            program,
            frames: vec![(bottom, 0)],
            frame_ids: FxHashMap::default(),
            states: vec![],
            state_ids: HashMap::new(),
            start: DEAD,
        };
        automaton.intern(Reached::default());
        let root = automaton.program.starts[automaton.program.root.0 as usize];
        let reached = automaton.close(vec![(root, BOTTOM)]);
        automaton.start = automaton.intern(reached);
        automaton
    }

    /// The state before a text.
    pub fn start(&self) -> StateId {
        self.start
    }

    /// Whether the text may end here.
    pub fn accepts(&self, state: StateId) -> bool {
        self.states[state as usize].accepts
    }

    /// Number of states that were met; each takes a little more than 1 KiB.
    pub fn state_len(&self) -> usize {
        self.states.len()
    }

    /// The state behind a byte.
    pub fn step(&mut self, state: StateId, byte: u8) -> StateId {
        let known = self.states[state as usize].steps[usize::from(byte)];
        if known != UNKNOWN {
            return known;
        }
        let program = &self.program;
        let places = self.states[state as usize].places.iter();
        let next = places.filter_map(|&(node, stack)| match &program.nodes[node as usize] {
            Node::Bytes(ranges, next) => ranges
                .iter()
                .any(|&(first, last)| (first..=last).contains(&byte))
                .then_some((*next, stack)),
            Node::Split(_) | Node::Call(..) | Node::Return => None,
        });
        let next: Vec<Place> = next.collect();
        let next = if next.is_empty() {
            DEAD
        } else {
            let reached = self.close(next);
            self.intern(reached)
        };
        self.states[state as usize].steps[usize::from(byte)] = next;
        next
    }

    /// All places that take a byte and are reached from these without one.
    fn close(&mut self, mut waiting: Vec<Place>) -> Reached {
        let program = self.program.clone();
        let mut reached = Reached::default();
        let mut seen: FxHashSet<Place> = waiting.iter().copied().collect();
        let mut visit = |place: Place, waiting: &mut Vec<Place>| {
            if seen.insert(place) {
                waiting.push(place);
            }
        };
        while let Some((node, stack)) = waiting.pop() {
            match &program.nodes[node as usize] {
                Node::Bytes(..) => reached.places.push((node, stack)),
                Node::Split(ways) => {
                    for &way in ways {
                        visit((way, stack), &mut waiting);
                    }
                }
                Node::Call(rule, next) => {
                    if let Some(stack) = self.enter(*next, stack) {
                        visit((program.starts[rule.0 as usize], stack), &mut waiting);
                    }
                }
                Node::Return if stack == BOTTOM => reached.accepts = true,
                Node::Return => {
                    let frame = self.frames[stack as usize].0;
                    visit((frame.node, frame.below), &mut waiting);
                }
            }
            if reached.places.len() > MAX_PLACES {
                return Reached::default();
            }
        }
        reached.places.sort_unstable();
        reached
    }

    /// The stack within a rule that goes on at `next`. A rule that ends another one takes its place, so that repetition by
    /// recursion takes no depth. `None` at the limit of depth.
    fn enter(&mut self, next: NodeId, below: StackId) -> Option<StackId> {
        if matches!(self.program.nodes[next as usize], Node::Return) {
            return Some(below);
        }
        let frame = Frame { node: next, below };
        if let Some(&known) = self.frame_ids.get(&frame) {
            return Some(known);
        }
        let depth = self.frames[below as usize].1 + 1;
        if depth > MAX_DEPTH {
            return None;
        }
        let stack = self.frames.len() as StackId;
        self.frames.push((frame, depth));
        self.frame_ids.insert(frame, stack);
        Some(stack)
    }

    fn intern(&mut self, reached: Reached) -> StateId {
        let key = (Arc::<[Place]>::from(reached.places), reached.accepts);
        if let Some(&known) = self.state_ids.get(&key) {
            return known;
        }
        let id = self.states.len() as StateId;
        // Nothing leads on from a state without places.
        let next = if key.0.is_empty() { DEAD } else { UNKNOWN };
        self.states.push(State {
            places: key.0.clone(),
            accepts: key.1,
            steps: Box::new([next; 256]),
        });
        self.state_ids.insert(key, id);
        id
    }
}

//! Simplification to a fixpoint: rules that never make a graph worse.
//!
//! A round walks the nodes in order and tries every rule of [`RULES`] on each; what a rule builds is looked at again
//! in the next round. A rule is a plain function that gives the values which replace a node's results. Rules keep
//! the exact result, signed zeros and NaN included.
//!
//! Reading order: `algebra` (scalar identities), `shape` (views), `dims` (symbolic integers and symbols), `control`
//! (branches and loops), `fold` (constants), `cse` (equal nodes).

mod algebra;
mod control;
mod cse;
mod dims;
mod fold;
mod shape;

pub(crate) use fold::constant_of;

use crate::edit::Edits;
use crate::region::Symbols;
use crate::{Context, PassError, Result, Work};
use cupola_ir::{Graph, IrError, NodeId, ValueId};

/// Most rounds; each one makes the graph smaller or simpler, so few are needed.
const MAX_ROUNDS: usize = 32;

/// What replaces a node.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// One value per result.
    pub results: Vec<ValueId>,
    /// Symbols whose value is now known.
    pub symbols: Symbols,
}

impl From<ValueId> for Found {
    fn from(v: ValueId) -> Found {
        Found {
            results: vec![v],
            symbols: Symbols::default(),
        }
    }
}

/// What a rule found, if anything.
type Rewrite = Result<Option<Found>, IrError>;

type Rule = fn(&mut Graph, NodeId) -> Rewrite;

/// The rules in the order in which they are tried.
const RULES: &[(&str, Rule)] = &[
    ("view", shape::view),
    ("join", shape::join),
    ("reduce", shape::reduce),
    ("gather", shape::gather),
    ("branch", control::branch),
    ("unroll", control::unroll),
    ("bind", dims::bind),
    ("dims", dims::evaluate),
    ("cast", algebra::cast),
    ("map", algebra::map),
    ("fold", fold::fold),
];

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    for _ in 0..MAX_ROUNDS {
        let changed = round(work).map_err(|error| PassError::Graph {
            pass: "simplify",
            error,
        })?;
        if !changed {
            break;
        }
    }
    Ok(())
}

fn round(work: &mut Work) -> Result<bool, IrError> {
    let mut edits = Edits::default();
    let mut known = cse::Known::default();
    let graph = &mut work.graph;
    for id in (0..graph.node_count() as u32).map(NodeId) {
        let operands = graph.node(id).operands.clone();
        for (k, v) in operands.iter().enumerate() {
            graph.node_mut(id).operands[k] = edits.follow(*v);
        }
        let Some(found) = rewrite(graph, id, &mut known)? else {
            continue;
        };
        let old = graph.node(id).results.clone();
        for (a, b) in old.into_iter().zip(found.results) {
            edits.replace(a, b);
        }
        edits.symbols.extend(found.symbols);
    }
    edits.apply(work)
}

fn rewrite(
    graph: &mut Graph,
    id: NodeId,
    known: &mut cse::Known,
) -> Result<Option<Found>, IrError> {
    let origins = graph.node(id).origins.clone();
    let before = graph.node_count();
    graph.set_origin(origins.first().cloned());
    for (name, rule) in RULES {
        if let Some(found) = rule(graph, id)? {
            tracing::trace!(rule = name, node = %id, "applied");
            for new in before..graph.node_count() {
                graph.add_origins(NodeId(new as u32), &origins);
            }
            return Ok(Some(found));
        }
        // What a rule built and then gave up is dead, and gone after the round.
    }
    Ok(known.equal_to(graph, id))
}

//! Simplification to a fixpoint: rules that never make a graph worse.
//!
//! A round walks the nodes in order and tries every rule of [`RULES`] on each; what a rule builds is looked at again
//! in the next round. A rule is a plain function that gives the values which replace a node's results. Rules keep
//! the exact result, signed zeros and NaN included.
//!
//! Reading order: `algebra` (scalar identities), `shape` (views), `dims` (symbolic integers and symbols), `fold`
//! (constants), `cse` (equal nodes).

mod algebra;
mod cse;
mod dims;
mod fold;
mod shape;

use crate::region::{Symbols, substitute};
use crate::{Context, PassError, Result, Work};
use cupola_ir::{Graph, IrError, NodeId, ValueId};
use rustc_hash::FxHashMap;

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

pub(crate) type Rule = fn(&mut Graph, NodeId) -> Result<Option<Found>, IrError>;

/// The rules in the order in which they are tried.
const RULES: &[(&str, Rule)] = &[
    ("view", shape::view),
    ("join", shape::join),
    ("reduce", shape::reduce),
    ("gather", shape::gather),
    ("branch", dims::branch),
    ("bind", dims::bind),
    ("dims", dims::evaluate),
    ("cast", algebra::cast),
    ("map", algebra::map),
    ("fold", fold::fold),
];

pub(crate) fn run(work: &mut Work, _: &Context) -> Result<()> {
    simplify(&mut work.graph).map_err(|error| PassError::Graph {
        pass: "simplify",
        error,
    })
}

/// Applies all rules until none applies.
pub(crate) fn simplify(graph: &mut Graph) -> Result<(), IrError> {
    for _ in 0..MAX_ROUNDS {
        if !round(graph)? {
            break;
        }
    }
    Ok(())
}

fn round(graph: &mut Graph) -> Result<bool, IrError> {
    let mut replaced: FxHashMap<ValueId, ValueId> = FxHashMap::default();
    let mut symbols = Symbols::default();
    let mut known = cse::Known::default();
    let count = graph.node_count();
    for id in (0..count as u32).map(NodeId) {
        let operands = graph.node(id).operands.clone();
        for (k, v) in operands.iter().enumerate() {
            let new = follow(*v, &replaced);
            if new != *v {
                graph.node_mut(id).operands[k] = new;
            }
        }
        let Some(found) = rewrite(graph, id, &mut known)? else {
            continue;
        };
        let old = graph.node(id).results.clone();
        for (a, b) in old.into_iter().zip(found.results) {
            let b = follow(b, &replaced);
            if a != b {
                replaced.insert(a, b);
            }
        }
        symbols.extend(found.symbols);
    }
    graph.set_origin(None);
    let changed = !replaced.is_empty() || !symbols.is_empty();
    if changed {
        graph.replace_all(&replaced);
        symbols.retain(|s, d| d.as_sym() != Some(s));
        substitute(graph, &symbols)?;
    }
    graph.compact()?;
    Ok(changed)
}

fn follow(mut v: ValueId, replaced: &FxHashMap<ValueId, ValueId>) -> ValueId {
    while let Some(n) = replaced.get(&v) {
        v = *n;
    }
    v
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

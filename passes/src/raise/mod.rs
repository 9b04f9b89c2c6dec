//! Raises patterns of core ops to composites, whatever exporter wrote them: softmax, norms, GELU, gated units, rotary
//! embeddings, attention; folds a per-channel scale into the convolution before it; lets products read block-quantised
//! weights directly.
//!
//! Rules look at core ops only, after simplification, and see through views and conversions where those change
//! nothing. A pattern is raised only when it means the same up to rounding. One that is close but is not the same is
//! recorded as a near miss, so that `explain` can tell which detail to change in the model.

mod attention;
mod conv;
mod gate;
mod gelu;
mod look;
mod norm;
mod product;
mod rope;
mod softmax;
mod triangle;

use crate::edit::Edits;
use crate::{Context, PassError, Result, Work};
use cupola_ir::{Graph, IrError, NodeId, Op, ValueId};

/// Most rounds: composites are made of composites (attention of softmax), never deep.
const MAX_ROUNDS: usize = 16;

/// What a rule sees beside the graph, and where it leaves near misses.
pub(crate) struct Cx<'a> {
    /// Targets and options.
    context: &'a Context<'a>,
    /// Users of every value at the start of the round, outputs counted.
    uses: Vec<u32>,
    near: Vec<(Option<ValueId>, String)>,
}

impl Cx<'_> {
    /// Whether nothing but one node needs the value. Values made in this round count as used elsewhere.
    fn is_private(&self, v: ValueId) -> bool {
        self.is_used(v, 1)
    }

    /// Whether the value is used exactly so often.
    fn is_used(&self, v: ValueId, times: u32) -> bool {
        self.uses.get(v.index()) == Some(&times)
    }

    /// Records a near miss that ends in `value`.
    fn near<T>(&mut self, value: ValueId, what: impl Into<String>) -> Option<T> {
        self.near.push((Some(value), what.into()));
        None
    }

    /// Whether the primary device has a kernel for a composite on these operands.
    fn is_claimed(&self, graph: &Graph, op: &Op, operands: &[ValueId]) -> bool {
        let types: Option<Vec<_>> = operands.iter().map(|v| graph.ty(*v).as_tensor()).collect();
        let target = self.context.target(self.context.options.device);
        types.is_some_and(|types| {
            matches!(
                (target.claim)(op, &types),
                cupola_ir::target::Claim::Yes { .. }
            )
        })
    }
}

/// Gives the value that replaces the node's result 0. A rule must not append nodes before it is sure.
type Rule = fn(&mut Graph, NodeId, &mut Cx) -> Result<Option<ValueId>, IrError>;

const RULES: &[(&str, Rule)] = &[
    ("softmax", softmax::softmax),
    ("norm", norm::norm),
    ("affine", norm::affine),
    ("gelu", gelu::gelu),
    ("swish", gate::swish),
    ("swiglu", gate::swiglu),
    ("rope", rope::rope),
    ("narrow", norm::narrow),
    ("attention", attention::attention),
    ("channel scale", conv::scale),
    ("block product", product::dequantise),
    ("block rows", product::rows),
];

pub(crate) fn run(work: &mut Work, context: &Context) -> Result<()> {
    for _ in 0..MAX_ROUNDS {
        let changed = round(work, context).map_err(|error| PassError::Graph {
            pass: "raise",
            error,
        })?;
        if !changed {
            break;
        }
    }
    Ok(())
}

fn round(work: &mut Work, context: &Context) -> Result<bool, IrError> {
    let graph = &mut work.graph;
    let mut uses = vec![0u32; graph.value_count()];
    for (_, node) in graph.nodes() {
        node.operands.iter().for_each(|v| uses[v.index()] += 1);
    }
    for (_, v) in graph.outputs() {
        uses[v.index()] += 1;
    }
    let mut cx = Cx {
        context,
        uses,
        near: vec![],
    };
    let mut edits = Edits::default();
    for id in (0..graph.node_count() as u32).map(NodeId) {
        let operands = graph.node(id).operands.clone();
        for (k, v) in operands.iter().enumerate() {
            graph.node_mut(id).operands[k] = edits.follow(*v);
        }
        let origins = graph.node(id).origins.clone();
        for (name, rule) in RULES {
            graph.set_origin(origins.first().cloned());
            if let Some(new) = rule(graph, id, &mut cx)? {
                tracing::debug!(rule = name, node = %id, "raised");
                let old = graph.node(id).results[0];
                let at = graph.value(new).node;
                graph.add_origins(at, &origins);
                edits.replace(old, new);
                break;
            }
        }
    }
    work.near = cx.near;
    edits.apply(work)
}

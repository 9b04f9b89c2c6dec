//! Parts of a graph as graphs of their own, for looking at them alone.

use crate::error::{Error, Result};
use cupola_ir::{Bindings, Dim, Graph, IrError, NodeId, Op, OpClass, ValueId};
use std::collections::{BTreeSet, HashMap};

/// A part of a graph.
pub struct Cut {
    /// The part: values that come from outside are inputs, constants and the like are copied.
    pub graph: Graph,
    /// For every input, the value of the whole graph that it stands for.
    pub inputs: Vec<ValueId>,
}

/// Whether a node can be part of a [`cut`]: it computes its results from its operands alone.
pub fn can_cut(op: &Op) -> bool {
    !matches!(op.class(), OpClass::Leaf | OpClass::Effect)
}

/// The nodes `keep` of a graph with `outputs`, named as in `names`. With `sizes`, every extent becomes the number that
/// the bindings give it; without, symbols stay, and a part that does not see what binds them is refused.
///
/// # Errors
/// What the verifier finds wrong with the part.
pub fn cut(
    graph: &Graph,
    keep: &BTreeSet<NodeId>,
    outputs: &[(String, ValueId)],
    sizes: Option<&Bindings>,
) -> Result<Cut> {
    let fixed = |d: &Dim| -> Dim {
        let number = |s: &cupola_ir::Sym| sizes.and_then(|b| b.get(s)).map(Dim::Const);
        d.substitute(&number)
    };
    let mut part = Cut {
        graph: Graph::new("part"),
        inputs: vec![],
    };
    part.graph.ranges.clone_from(&graph.ranges);
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for id in keep {
        let node = graph.node(*id);
        let mut operands = vec![];
        for v in &node.operands {
            let own = match map.get(v) {
                Some(known) => *known,
                None => outside(graph, *v, &mut part, &fixed)?,
            };
            map.insert(*v, own);
            operands.push(own);
        }
        part.graph.set_origin(node.origins.first().cloned());
        let results = part.graph.push(node.op.map_dims(&fixed), &operands)?;
        for (old, new) in node.results.iter().zip(results) {
            map.insert(*old, new);
        }
    }
    for (name, v) in outputs {
        let own = map.get(v).ok_or_else(|| {
            Error::Graph(IrError::Invalid(format!("{v} is not computed by the part")))
        })?;
        part.graph.output(name, *own);
    }
    part.graph.set_origin(None);
    part.graph.compact()?;
    cupola_ir::verify(&part.graph)?;
    Ok(part)
}

/// A value from outside of a part: a copy of what has no operands, else an input.
fn outside(
    graph: &Graph,
    v: ValueId,
    part: &mut Cut,
    fixed: &dyn Fn(&Dim) -> Dim,
) -> Result<ValueId> {
    let op = graph.op_of(v);
    let is_input = matches!(op, Op::Core(cupola_ir::CoreOp::Input(_)));
    if op.class() == OpClass::Leaf && !is_input {
        return Ok(part.graph.one(op.map_dims(fixed), &[])?);
    }
    part.inputs.push(v);
    let name = match is_input {
        true => graph.input_name(v).to_string(),
        false => format!("v{}", v.0),
    };
    Ok(part.graph.input(&name, graph.ty(v).map_dims(fixed))?)
}

//! Symbols and regions: replacing symbols throughout a graph, and putting a region's nodes in place of the op that
//! holds it.

use cupola_ir::attr::Attr;
use cupola_ir::{CoreOp, Dim, Graph, IrError, NodeId, Op, Sym, ValueId, ValueType};
use rustc_hash::FxHashMap;

/// Symbols and what they are.
pub(crate) type Symbols = FxHashMap<Sym, Dim>;

/// Replaces symbols in all attributes and types, regions included. Chains are followed.
///
/// # Errors
/// When an op does not take its attributes any more: the symbols contradict each other.
pub(crate) fn substitute(graph: &mut Graph, symbols: &Symbols) -> Result<(), IrError> {
    if symbols.is_empty() {
        return Ok(());
    }
    let ids: Vec<NodeId> = graph.nodes().map(|(id, _)| id).collect();
    for id in ids {
        let mut hit = false;
        let mut look = |d: &Dim| d.for_each_sym(&mut |s| hit |= symbols.contains_key(s));
        let node = graph.node(id);
        node.op.for_each_dim(&mut look);
        for v in &node.results {
            graph.ty(*v).for_each_dim(&mut look);
        }
        let regions = !node.op.regions().is_empty();
        if !hit && !regions {
            continue;
        }
        let op = substitute_op(&node.op, symbols)?;
        let results = node.results.clone();
        graph.node_mut(id).op = op;
        for v in results {
            let ty = graph.ty(v).map_dims(&|d| resolve(d, symbols));
            graph.refine(v, ty);
        }
    }
    Ok(())
}

/// A dimension with symbols replaced.
pub(crate) fn resolve(dim: &Dim, symbols: &Symbols) -> Dim {
    let mut dim = dim.clone();
    // Symbols may stand for expressions over other replaced symbols; more rounds than symbols would be a cycle.
    for _ in 0..=symbols.len() {
        let mut hit = false;
        dim.for_each_sym(&mut |s| hit |= symbols.contains_key(s));
        if !hit {
            break;
        }
        dim = dim.substitute(&|s| symbols.get(s).cloned());
    }
    dim
}

fn substitute_op(op: &Op, symbols: &Symbols) -> Result<Op, IrError> {
    let sym = |s: Sym| match symbols.get(&s).and_then(Dim::as_sym) {
        Some(new) => new.clone(),
        None => s,
    };
    let mut attrs = vec![];
    for (name, attr) in op.attrs() {
        let attr = match attr {
            Attr::Dim(d) => Attr::Dim(resolve(&d, symbols)),
            Attr::Dims(d) => Attr::Dims(d.iter().map(|d| resolve(d, symbols)).collect()),
            Attr::Type(t) => Attr::Type(t.map_dims(&|d| resolve(d, symbols))),
            Attr::Types(t) => Attr::Types(
                t.iter()
                    .map(|t| t.map_dims(&|d| resolve(d, symbols)))
                    .collect(),
            ),
            Attr::Sym(s) => Attr::Sym(sym(s)),
            Attr::Syms(s) => Attr::Syms(s.into_iter().map(sym).collect()),
            Attr::Graph(mut g) => {
                substitute(&mut g, symbols)?;
                Attr::Graph(g)
            }
            other => other,
        };
        attrs.push((name.to_string(), attr));
    }
    Op::from_name(&op.name(), attrs).map_err(|what| IrError::op(op.name(), what))
}

/// Appends a region's nodes with `operands` for its inputs and gives its outputs. `None` when the region's inputs have
/// extents that cannot be read off the operands.
///
/// # Errors
/// What an op finds wrong with the operands.
pub(crate) fn inline(
    graph: &mut Graph,
    region: &Graph,
    operands: &[ValueId],
) -> Result<Option<Vec<ValueId>>, IrError> {
    let mut symbols = Symbols::default();
    for (inner, outer) in region.inputs().iter().zip(operands) {
        if !unify(region.ty(*inner), graph.ty(*outer), &mut symbols) {
            return Ok(None);
        }
    }
    for (_, node) in region.nodes() {
        for s in node.op.binds() {
            let fresh = graph.fresh_sym(s.name());
            symbols.insert(s, Dim::from(&fresh));
        }
        if matches!(node.op, Op::Core(CoreOp::ReadState(_))) {
            return Ok(None);
        }
    }
    // A symbol that stands for itself needs no replacing, and would loop.
    symbols.retain(|s, d| d.as_sym() != Some(s));
    let mut region = region.clone();
    substitute(&mut region, &symbols)?;
    graph.inline(&region, operands).map(Some)
}

/// Reads symbols of `pattern` off a type that is an instance of it. Extents that are no plain symbol must be the same.
pub(crate) fn unify(pattern: &ValueType, actual: &ValueType, symbols: &mut Symbols) -> bool {
    match (pattern, actual) {
        (ValueType::Tensor(p), ValueType::Tensor(a)) => {
            p.rank() == a.rank()
                && p.dims.iter().zip(&a.dims).all(|(p, a)| match p.as_sym() {
                    Some(s) => match symbols.get(s) {
                        Some(known) => known == a || known.as_const().is_none(),
                        None => {
                            symbols.insert(s.clone(), a.clone());
                            true
                        }
                    },
                    None => p == a || p.as_const().is_some() && a.as_const().is_none(),
                })
        }
        (ValueType::Sequence(p), ValueType::Sequence(a))
        | (ValueType::Optional(p), ValueType::Optional(a)) => p == a,
        _ => false,
    }
}

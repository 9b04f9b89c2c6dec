//! Functions that a model brings along: names, recursion, and how many nodes they expand to.

use std::collections::HashMap;

use crate::error::{Place, ReadError};
use crate::proto::{FunctionProto, ModelProto, NodeProto};
use crate::scope::subgraphs;

/// Functions may call each other this deeply.
pub(crate) const MAX_CALL_DEPTH: usize = 128;

/// Nodes of a model once all functions are expanded. Unrolled language models have some ten
/// thousand.
pub(crate) const MAX_EXPANDED_NODES: u64 = 1 << 20;

/// What identifies a function: domain, name, overload.
type Key<'a> = (&'a str, &'a str, &'a str);

/// The function that `node` calls has this key.
pub(crate) fn key(node: &NodeProto) -> Key<'_> {
    (node.domain(), node.op_type(), node.overload())
}

pub(crate) fn place(function: &FunctionProto) -> Place {
    Place::Function {
        domain: function.domain().to_owned(),
        name: function.name().to_owned(),
    }
}

/// The index of each function of `model`.
///
/// # Errors
/// When two have the same key.
pub(crate) fn index(model: &ModelProto) -> Result<HashMap<Key<'_>, usize>, ReadError> {
    let mut functions = HashMap::new();
    for (index, function) in model.functions.iter().enumerate() {
        let key = (function.domain(), function.name(), function.overload());
        if functions.insert(key, index).is_some() {
            return Err(ReadError::FunctionTwice {
                place: place(function),
            });
        }
    }
    Ok(functions)
}

/// Checks that no function calls itself, that calls are not nested too deeply, and that the main
/// graph and each function expand to a bounded number of nodes.
pub(crate) fn check_expansion(model: &ModelProto) -> Result<(), ReadError> {
    let functions = index(model)?;
    let mut walk = Walk {
        model,
        functions,
        sizes: vec![Size::Unknown; model.functions.len()],
    };
    for function in 0..model.functions.len() {
        walk.function(function, 0)?;
    }
    if let Some(graph) = &model.graph {
        walk.nodes(&graph.node, 0)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Size {
    Unknown,
    /// On the path of calls that is being walked.
    Open,
    /// Number of expanded nodes, and how many calls are nested in it.
    Known {
        nodes: u64,
        depth: usize,
    },
}

struct Walk<'a> {
    model: &'a ModelProto,
    functions: HashMap<Key<'a>, usize>,
    sizes: Vec<Size>,
}

impl Walk<'_> {
    /// Expanded nodes and nested calls of a function that is called `depth` calls deep. Recursion
    /// is bounded by [`MAX_CALL_DEPTH`].
    fn function(&mut self, index: usize, depth: usize) -> Result<(u64, usize), ReadError> {
        let model = self.model;
        let function = &model.functions[index];
        match self.sizes[index] {
            Size::Known {
                nodes,
                depth: inner,
            } if depth + inner <= MAX_CALL_DEPTH => {
                return Ok((nodes, inner));
            }
            Size::Open => {
                return Err(ReadError::Recursion {
                    place: place(function),
                });
            }
            Size::Unknown if depth < MAX_CALL_DEPTH => {}
            Size::Known { .. } | Size::Unknown => {
                return Err(ReadError::CallDepth {
                    place: place(function),
                });
            }
        }
        self.sizes[index] = Size::Open;
        let (nodes, inner) = self.nodes(&function.node, depth)?;
        self.sizes[index] = Size::Known {
            nodes,
            depth: inner + 1,
        };
        Ok((nodes, inner + 1))
    }

    fn nodes(&mut self, nodes: &[NodeProto], depth: usize) -> Result<(u64, usize), ReadError> {
        let mut total = 0u64;
        let mut deepest = 0;
        for node in nodes {
            let (inner, inner_depth) = match self.functions.get(&key(node)) {
                Some(&index) => self.function(index, depth + 1)?,
                None => (1, 0),
            };
            total = total.saturating_add(inner);
            deepest = deepest.max(inner_depth);
            for graph in node.attribute.iter().flat_map(subgraphs) {
                let (inner, inner_depth) = self.nodes(&graph.node, depth)?;
                total = total.saturating_add(inner);
                deepest = deepest.max(inner_depth);
            }
            if total > MAX_EXPANDED_NODES {
                return Err(ReadError::Expansion);
            }
        }
        Ok((total, deepest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str) -> NodeProto {
        NodeProto {
            domain: Some("l".into()),
            op_type: Some(name.into()),
            ..Default::default()
        }
    }

    fn function(name: &str, callees: &[&str]) -> FunctionProto {
        FunctionProto {
            domain: Some("l".into()),
            name: Some(name.into()),
            node: callees.iter().map(|callee| call(callee)).collect(),
            ..Default::default()
        }
    }

    fn chain(len: usize) -> ModelProto {
        let name = |index: usize| format!("f{index}");
        let functions = (0..len).map(|index| function(&name(index), &[&name(index + 1)]));
        ModelProto {
            functions: functions.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn chains_are_bounded_in_either_order() {
        assert!(check_expansion(&chain(MAX_CALL_DEPTH)).is_ok());
        let mut long = chain(MAX_CALL_DEPTH + 2);
        assert!(matches!(
            check_expansion(&long),
            Err(ReadError::CallDepth { .. })
        ));
        long.functions.reverse();
        assert!(matches!(
            check_expansion(&long),
            Err(ReadError::CallDepth { .. })
        ));
        assert!(
            check_expansion(&chain(100_000)).is_err(),
            "and without deep recursion"
        );
    }

    #[test]
    fn cycles_through_several_functions_are_found() {
        let functions = vec![
            function("a", &["b"]),
            function("b", &["c"]),
            function("c", &["a"]),
        ];
        let model = ModelProto {
            functions,
            ..Default::default()
        };
        assert!(matches!(
            check_expansion(&model),
            Err(ReadError::Recursion { .. })
        ));
    }

    #[test]
    fn doubling_functions_are_counted_and_not_expanded() {
        let name = |index: usize| format!("f{index}");
        let doubling = |count: usize| {
            let functions = (0..count).map(|i| function(&name(i), &[&name(i + 1), &name(i + 1)]));
            ModelProto {
                functions: functions.collect(),
                ..Default::default()
            }
        };
        assert!(check_expansion(&doubling(20)).is_ok());
        assert!(matches!(
            check_expansion(&doubling(21)),
            Err(ReadError::Expansion)
        ));
        assert!(matches!(
            check_expansion(&doubling(100)),
            Err(ReadError::Expansion)
        ));
    }
}

//! Names and order: every value is made once, every use finds its value, and nodes come after what
//! they need.
//!
//! A subgraph sees the names of the graphs around it; an inner name hides an outer one. Graphs are
//! settled from the inside out: a subgraph reports the names that it takes from outside, and these
//! count as inputs of the node that holds it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::error::{Place, ReadError};
use crate::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto};

/// Names that a graph takes from the graphs around it, each with one place that uses it.
type Captures = HashMap<String, Place>;

/// The graphs that an attribute holds.
pub(crate) fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute
        .g
        .iter()
        .map(|graph| &**graph)
        .chain(&attribute.graphs)
}

/// The same, to change.
pub(crate) fn subgraphs_mut(
    attribute: &mut AttributeProto,
) -> impl Iterator<Item = &mut GraphProto> {
    attribute
        .g
        .iter_mut()
        .map(|graph| &mut **graph)
        .chain(&mut attribute.graphs)
}

/// Checks the names of the main graph and of all graphs in it, and sorts their nodes.
pub(crate) fn settle_model(graph: &mut GraphProto) -> Result<(), ReadError> {
    none_left(settle(graph)?)
}

/// The same for a function, which sees no names but its own.
pub(crate) fn settle_function(function: &mut FunctionProto) -> Result<(), ReadError> {
    let place = Place::Function {
        domain: function.domain().to_owned(),
        name: function.name().to_owned(),
    };
    let given: Vec<&str> = function.input.iter().map(String::as_str).collect();
    none_left(settle_nodes(
        &mut function.node,
        &given,
        &function.output,
        &place,
    )?)
}

fn none_left(captures: Captures) -> Result<(), ReadError> {
    // The smallest name, so that the message does not depend on hashing.
    match captures.into_iter().min_by(|lhs, rhs| lhs.0.cmp(&rhs.0)) {
        Some((name, place)) => Err(ReadError::Undefined { name, place }),
        None => Ok(()),
    }
}

fn settle(graph: &mut GraphProto) -> Result<Captures, ReadError> {
    let place = Place::Graph(graph.name().to_owned());
    let mut given: Vec<&str> = graph.input.iter().map(|input| input.name()).collect();
    let dense = graph.initializer.iter().map(|tensor| tensor.name());
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|sparse| sparse.values.as_ref());
    let sparse = sparse.map(|values| values.name());
    // An initializer of an input's name is that input's default.
    let is_input: HashSet<&str> = given.iter().copied().collect();
    let mut defaults = HashSet::new();
    for name in dense.chain(sparse) {
        if !is_input.contains(name) {
            given.push(name);
        } else if !defaults.insert(name) {
            return Err(ReadError::Duplicate {
                name: name.to_owned(),
                place,
            });
        }
    }
    let outputs: Vec<String> = graph
        .output
        .iter()
        .map(|output| output.name().to_owned())
        .collect();
    settle_nodes(&mut graph.node, &given, &outputs, &place)
}

/// `given` are the names that exist before any node runs.
fn settle_nodes(
    nodes: &mut Vec<NodeProto>,
    given: &[&str],
    outputs: &[String],
    place: &Place,
) -> Result<Captures, ReadError> {
    let mut inner = HashMap::new();
    for (index, node) in nodes.iter_mut().enumerate() {
        let mut captures = Captures::default();
        for attribute in &mut node.attribute {
            for graph in attribute
                .g
                .iter_mut()
                .map(|graph| &mut **graph)
                .chain(&mut attribute.graphs)
            {
                captures.extend(settle(graph)?);
            }
        }
        if !captures.is_empty() {
            inner.insert(index, captures);
        }
    }
    let makers = makers(nodes, given, place)?;
    let mut captures = Captures::default();
    let mut edges = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            match makers.get(name.as_str()) {
                Some(Some(maker)) => edges.push((*maker, index)),
                Some(None) => {}
                None => {
                    captures
                        .entry(name.clone())
                        .or_insert_with(|| Place::of_node(node));
                }
            }
        }
        for (name, place) in inner.remove(&index).into_iter().flatten() {
            match makers.get(name.as_str()) {
                Some(Some(maker)) => edges.push((*maker, index)),
                Some(None) => {}
                None => {
                    captures.entry(name).or_insert(place);
                }
            }
        }
    }
    for name in outputs {
        if !makers.contains_key(name.as_str()) && !captures.contains_key(name) {
            let place = Place::Value {
                kind: "output",
                name: name.clone(),
            };
            captures.insert(name.clone(), place);
        }
    }
    drop(makers);
    if edges.iter().any(|(maker, user)| maker >= user) {
        sort(nodes, &edges)?;
    }
    Ok(captures)
}

/// Which node makes each name; `None` for names that are given.
fn makers<'a>(
    nodes: &'a [NodeProto],
    given: &[&'a str],
    place: &Place,
) -> Result<HashMap<&'a str, Option<usize>>, ReadError> {
    let mut makers = HashMap::new();
    for &name in given {
        if makers.insert(name, None).is_some() {
            return Err(ReadError::Duplicate {
                name: name.to_owned(),
                place: place.clone(),
            });
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if makers.insert(name, Some(index)).is_some() {
                return Err(ReadError::Duplicate {
                    name: name.clone(),
                    place: Place::of_node(node),
                });
            }
        }
    }
    Ok(makers)
}

/// Sorts so that each edge leads forward, keeping the given order wherever it can be kept.
fn sort(nodes: &mut Vec<NodeProto>, edges: &[(usize, usize)]) -> Result<(), ReadError> {
    let mut users = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0usize; nodes.len()];
    for &(maker, user) in edges {
        users[maker].push(user);
        waiting[user] += 1;
    }
    let ready = (0..nodes.len()).filter(|&node| waiting[node] == 0);
    let mut ready: BinaryHeap<_> = ready.map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node);
        for &user in &users[node] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    if let Some(stuck) = waiting.iter().position(|&count| count > 0) {
        return Err(ReadError::Cycle {
            place: Place::of_node(&nodes[stuck]),
        });
    }
    *nodes = order
        .into_iter()
        .map(|node| std::mem::take(&mut nodes[node]))
        .collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ValueInfoProto;

    fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto {
            op_type: Some(op.into()),
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: outputs.iter().map(|&name| name.into()).collect(),
            ..Default::default()
        }
    }

    fn graph(inputs: &[&str], nodes: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
        let value = |name: &&str| ValueInfoProto {
            name: Some((*name).into()),
            ..Default::default()
        };
        GraphProto {
            input: inputs.iter().map(value).collect(),
            output: outputs.iter().map(value).collect(),
            node: nodes,
            ..Default::default()
        }
    }

    fn with_body(mut node: NodeProto, body: GraphProto) -> NodeProto {
        node.attribute = vec![AttributeProto {
            g: Some(Box::new(body)),
            ..Default::default()
        }];
        node
    }

    #[test]
    fn unsorted_nodes_are_sorted_and_others_keep_their_order() {
        let nodes = vec![
            node("B", &["a"], &["b"]),
            node("A", &["x"], &["a"]),
            node("C", &["b"], &["y"]),
        ];
        let mut unsorted = graph(&["x"], nodes, &["y"]);
        settle_model(&mut unsorted).unwrap();
        let ops: Vec<_> = unsorted.node.iter().map(|node| node.op_type()).collect();
        assert_eq!(ops, ["A", "B", "C"]);
    }

    #[test]
    fn a_capture_orders_its_node_and_an_inner_name_hides_an_outer_one() {
        let body = graph(&[], vec![node("Neg", &["late"], &["x"])], &["x"]);
        let nodes = vec![
            with_body(node("If", &["c"], &["y"]), body),
            node("Relu", &["x"], &["late"]),
        ];
        let mut model = graph(&["c", "x"], nodes, &["y"]);
        settle_model(&mut model).unwrap();
        assert_eq!(model.node[0].op_type(), "Relu");
    }

    #[test]
    fn errors_name_the_value_and_the_user() {
        let text = |mut graph: GraphProto| settle_model(&mut graph).unwrap_err().to_string();
        let cycle = vec![
            node("Add", &["x", "b"], &["a"]),
            node("Relu", &["a"], &["b"]),
        ];
        assert_eq!(
            text(graph(&["x"], cycle, &["b"])),
            "nodes need each other's results in a cycle, 'Add' node that makes 'a'"
        );
        let body = graph(&[], vec![node("Relu", &["ghost"], &["t"])], &["t"]);
        let branch = vec![with_body(node("If", &["c"], &["y"]), body)];
        assert_eq!(
            text(graph(&["c"], branch, &["y"])),
            "the value 'ghost' is not made anywhere, 'Relu' node that makes 't'"
        );
        let twice = vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])];
        assert_eq!(
            text(graph(&["x"], twice, &["y"])),
            "the value 'y' is made twice, 'Abs' node that makes 'y'"
        );
        assert_eq!(
            text(graph(&["x"], vec![], &["z"])),
            "the value 'z' is not made anywhere, output 'z'"
        );
        let own = graph(&[], vec![node("Relu", &["y"], &["t"])], &["t"]);
        let own = vec![with_body(node("If", &["c"], &["y"]), own)];
        assert!(
            text(graph(&["c"], own, &["y"])).contains("cycle"),
            "a node that captures itself"
        );
    }
}

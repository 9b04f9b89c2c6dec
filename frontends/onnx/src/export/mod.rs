//! [`export`]: a graph as an ONNX model of the standard operators.
//!
//! Core ops become the ONNX operators with the same meaning, several where one does not do; a
//! composite becomes its own operator where ONNX has it, else its decomposition is exported.
//! Symbolic extents are computed in the model from the shapes that bind them. The result needs no
//! operator beyond the standard domain, at [`EXPORT_OPSET`] where that suffices.
//!
//! Differences that ONNX does not let us state: the type that sums accumulate in, the order of NaN
//! in sorts and arg-reductions, and the smallest allowed value of a run-time size.
//!
//! Reading order: this file, `dims.rs`, then the families `scalar.rs`, `tensor.rs`, `index.rs`,
//! `control.rs`, `composite.rs`, `layers.rs`, `recurrent.rs`.

mod composite;
mod control;
mod dims;
mod index;
mod layers;
mod recurrent;
mod scalar;
mod tensor;

use std::collections::{HashMap, HashSet};

use cupola_ir::tensor::Tensor;
use cupola_ir::{CoreOp, DType, Dim, Graph, HostOp, Node, Op, Sym, ValueId, ValueType};
use cupola_source::quote;

use crate::convert::{element_of, view_from_tensor};
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto};
use crate::scope::{subgraphs, subgraphs_mut};
use crate::tensor::ElementType;
use crate::write::{self, Extent, attribute};
use dims::Binding;

/// The version of the standard operators that exported models use, unless an op needs a later one.
pub const EXPORT_OPSET: i64 = 21;

/// Why a graph cannot be exported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// ONNX, or this exporter, has nothing with the meaning of an op.
    #[error("{what} cannot be written as ONNX, {place}")]
    Unsupported {
        /// The op, type or function.
        what: String,
        /// The node.
        place: String,
    },
    /// A symbol that no input's extent is; its value cannot be computed in the model.
    #[error("the extent {0} cannot be computed from the shapes of inputs")]
    Symbol(String),
}

type Result<T> = std::result::Result<T, ExportError>;

/// The model of `graph`. Weights that `weights` knows become initializers, the others inputs.
///
/// # Errors
/// [`ExportError`] for the first op without a counterpart: block-quantised weights, states, random
/// numbers, collectives, and some host and scalar functions.
pub fn export(graph: &Graph, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<ModelProto> {
    let mut exporter = Exporter::new(weights);
    let reserved = graph.outputs().iter().map(|(name, _)| name.to_string());
    exporter.used.extend(reserved);
    let mut inputs = Vec::new();
    for &input in graph.inputs() {
        let name = exporter.unique(graph.input_name(input));
        inputs.push(write::value_info(
            &name,
            exporter.value_type(graph.ty(input))?,
        ));
        exporter.values.insert(input, name);
    }
    exporter.inputs = inputs;
    exporter.region(graph)?;
    let outputs = exporter.outputs(graph)?;
    let proto = GraphProto {
        name: Some(graph.name.clone()),
        node: exporter.nodes,
        initializer: exporter.initializers,
        input: exporter.inputs,
        output: outputs,
        ..Default::default()
    };
    Ok(write::model(proto, exporter.opset))
}

/// The state of one export. Names are unique over the whole model, regions included.
struct Exporter<'w> {
    weights: &'w dyn Fn(&str) -> Option<Tensor>,
    /// Version of the standard operators that the nodes so far need.
    opset: i64,
    inputs: Vec<crate::proto::ValueInfoProto>,
    initializers: Vec<TensorProto>,
    used: HashSet<String>,
    next: usize,
    /// Vectors and numbers that are initializers already.
    vectors: HashMap<Vec<i64>, String>,
    numbers: HashMap<(u64, DType), String>,
    /// Nodes of the ONNX graph that is being filled.
    nodes: Vec<NodeProto>,
    /// Names of the values of the graph that is being exported, and how often each is used.
    values: HashMap<ValueId, String>,
    uses: Vec<usize>,
    /// How symbols get their values here, and extents that have been computed already.
    symbols: HashMap<Sym, Binding>,
    extents: HashMap<Dim, String>,
    /// For results of `Expand`, and of views that only add axes before all others: what was expanded.
    expanded: HashMap<String, String>,
    /// Names that initializers get where those that have them now are not kept.
    wishes: HashMap<String, String>,
    /// Results of recurrent layers that were written with the layer in the other direction, by their first value.
    directions: HashMap<ValueId, Vec<String>>,
    /// The states at every step of two directions, and what has both.
    joined: HashMap<[String; 2], String>,
}

impl<'w> Exporter<'w> {
    fn new(weights: &'w dyn Fn(&str) -> Option<Tensor>) -> Exporter<'w> {
        Exporter {
            weights,
            opset: EXPORT_OPSET,
            inputs: Vec::new(),
            initializers: Vec::new(),
            used: HashSet::new(),
            next: 0,
            vectors: HashMap::new(),
            numbers: HashMap::new(),
            nodes: Vec::new(),
            values: HashMap::new(),
            symbols: HashMap::new(),
            extents: HashMap::new(),
            expanded: HashMap::new(),
            uses: Vec::new(),
            wishes: HashMap::new(),
            directions: HashMap::new(),
            joined: HashMap::new(),
        }
    }

    /// `hint` if it is free, else with a number.
    fn unique(&mut self, hint: &str) -> String {
        let hint = if hint.is_empty() { "value" } else { hint };
        if self.used.insert(hint.to_owned()) {
            return hint.to_owned();
        }
        loop {
            self.next += 1;
            let name = format!("{hint}_{}", self.next);
            if self.used.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Appends a node with one result and returns that.
    fn emit(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        let [result] = self.emit_all(op, inputs, attributes);
        result
    }

    /// Appends a node with several results.
    fn emit_all<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
    ) -> [String; N] {
        let results = self.emit_list(op, inputs, attributes, N);
        results
            .try_into()
            .unwrap_or_else(|_| unreachable!("bug: another number of results"))
    }

    /// Appends a node with `count` results.
    fn emit_list(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[AttributeProto],
        count: usize,
    ) -> Vec<String> {
        let hint = op.to_ascii_lowercase();
        let results: Vec<String> = (0..count).map(|_| self.unique(&hint)).collect();
        let mut node = write::node(op, inputs.iter().copied(), results.clone());
        node.attribute = attributes.to_vec();
        self.nodes.push(node);
        results
    }

    /// A vector of integers.
    fn ints(&mut self, values: &[i64]) -> String {
        if let Some(name) = self.vectors.get(values) {
            return name.clone();
        }
        let name = self.tensor("ints", &Tensor::vector(values));
        self.vectors.insert(values.to_vec(), name.clone());
        name
    }

    /// A scalar of any number type or bool.
    fn number(&mut self, value: f64, dtype: DType) -> Result<String> {
        let key = (value.to_bits(), dtype);
        if let Some(name) = self.numbers.get(&key) {
            return Ok(name.clone());
        }
        let mut graph = Graph::default();
        let made = graph.number(value, dtype).ok();
        let Some(tensor) = made.and_then(|made| graph.as_const(made)) else {
            return Err(unsupported(format!("the constant {value} of type {dtype}")));
        };
        let name = self.tensor("number", &tensor.clone());
        self.numbers.insert(key, name.clone());
        Ok(name)
    }

    /// An initializer; the tensor must have an ONNX type.
    fn tensor(&mut self, hint: &str, tensor: &Tensor) -> String {
        let name = self.unique(hint);
        let view = view_from_tensor(tensor).unwrap_or_else(|| unreachable!("bug: a block type"));
        self.initializers.push(write::initializer(&name, &view));
        name
    }

    /// The name of an operand.
    fn value(&self, id: ValueId) -> &str {
        self.values
            .get(&id)
            .unwrap_or_else(|| unreachable!("bug: value {id} before its node"))
    }

    /// Exports the nodes of a graph whose inputs have names in `values`.
    fn region(&mut self, graph: &Graph) -> Result<()> {
        for &input in graph.inputs() {
            let name = self.value(input).to_owned();
            self.bind_shape(graph.ty(input), &name);
        }
        self.region_nodes(graph)
    }

    fn region_nodes(&mut self, graph: &Graph) -> Result<()> {
        let outer = std::mem::replace(&mut self.uses, uses(graph));
        let waiting = std::mem::take(&mut self.directions);
        let exported = self.each_node(graph);
        (self.uses, self.directions) = (outer, waiting);
        exported
    }

    fn each_node(&mut self, graph: &Graph) -> Result<()> {
        for (_, node) in graph.nodes() {
            let operands: Vec<String> = node
                .operands
                .iter()
                .map(|&operand| self.value(operand).to_owned())
                .collect();
            let results = self
                .node(graph, node, &borrowed(&operands))
                .map_err(|error| placed(error, node))?;
            for (&id, name) in node.results.iter().zip(results) {
                self.values.insert(id, name);
            }
        }
        Ok(())
    }

    /// Exports a node and returns the names of its results.
    fn node(&mut self, graph: &Graph, node: &Node, operands: &[&str]) -> Result<Vec<String>> {
        match &node.op {
            Op::Core(op) => self.core(graph, node, op, operands),
            Op::Composite(op) => self.composite(graph, node, op, operands),
            Op::Host(HostOp::NonZero(p)) => {
                let result = self.emit("NonZero", operands, &[]);
                self.bind_axis(&p.count, &result, 1);
                Ok(vec![result])
            }
            // Sequences, optionals and strings grow operator by operator.
            #[allow(unreachable_patterns)]
            Op::Host(_) => Err(unsupported(node.op.name())),
        }
    }

    fn core(
        &mut self,
        graph: &Graph,
        node: &Node,
        op: &CoreOp,
        operands: &[&str],
    ) -> Result<Vec<String>> {
        let first = |at: usize| graph.tensor(node.operands[at]);
        let one = |name: String| Ok(vec![name]);
        match op {
            CoreOp::Input(_) => one(self.value(node.results[0]).to_owned()),
            CoreOp::Param(p) => {
                let name = match (self.weights)(&p.name) {
                    Some(tensor) => self.constant(&p.name, &tensor)?,
                    None => {
                        let name = self.unique(&p.name);
                        let kind = self.value_type(&p.ty)?;
                        self.inputs.push(write::value_info(&name, kind));
                        name
                    }
                };
                self.bind_shape(&p.ty, &name);
                one(name)
            }
            CoreOp::Const(p) => {
                let name = graph.value(node.results[0]).name.as_deref();
                one(self.constant(name.unwrap_or("constant"), &p.value)?)
            }
            CoreOp::Iota(p) => one(self.iota(p)?),
            CoreOp::Dims(p) => one(self.shape(&p.dims)?),
            CoreOp::Map(p) => {
                if let Some(made) = self.layer(graph, node, p.f, operands)? {
                    return one(made);
                }
                let operands = self.unexpanded(operands);
                one(self.map(p.f, first(0).dtype, &borrowed(&operands))?)
            }
            CoreOp::Cast(p) => {
                one(self.cast_with(operands[0], first(0).dtype, p.to, p.saturate)?)
            }
            CoreOp::Bitcast(p) if p.to == first(0).dtype => one(operands[0].to_owned()),
            CoreOp::Bitcast(p) => one(self.bitcast(operands[0], p.to)?),
            CoreOp::Reshape(p) => {
                let reshaped = self.reshape(operands[0], &p.dims)?;
                let more = p.dims.len().saturating_sub(first(0).rank());
                let ones = p.dims.iter().take(more).all(|dim| dim.is(1));
                if ones && p.dims[more..] == first(0).dims[..] {
                    let source = operands[0].to_owned();
                    self.expanded.insert(reshaped.clone(), source);
                }
                one(reshaped)
            }
            CoreOp::Permute(p) => one(self.permute(operands[0], &p.perm)),
            CoreOp::Broadcast(p) => one(self.expand(operands[0], &p.dims)?),
            CoreOp::Slice(p) => one(self.slice(operands[0], &first(0).dims, p)?),
            CoreOp::Pad(p) => one(self.pad(operands, p)?),
            CoreOp::Concat(p) => one(match self.joined_directions(operands, p.axis) {
                Some(both) => both,
                None => self.emit("Concat", operands, &[attribute("axis", p.axis as i64)]),
            }),
            CoreOp::Window(p) => one(self.window(operands[0], &first(0).dims, p)?),
            CoreOp::Fold(p) => one(self.fold(operands[0], &first(0), p)?),
            CoreOp::Reduce(p) => {
                let pooled = self.pool(graph, node.operands[0], p)?;
                one(match pooled {
                    Some(pooled) => pooled,
                    None => self.reduce(operands[0], first(0).dtype, p)?,
                })
            }
            CoreOp::ArgReduce(p) => one(self.arg_reduce(operands[0], first(0).dtype, p)?),
            CoreOp::Contract(p) => {
                one(self.contract(operands, &first(0), &first(1), p, graph, node)?)
            }
            CoreOp::Gather(p) => one(self.gather(operands, graph, node, p)?),
            CoreOp::Scatter(p) => one(self.scatter(operands, graph, node, p)?),
            CoreOp::Sort(p) => self.sort(operands[0], &first(0), p),
            CoreOp::If(p) => self.export_if(operands, p),
            CoreOp::Loop(p) => self.export_loop(operands, p, graph, node),
            CoreOp::Scan(p) => self.export_scan(operands, p),
            CoreOp::Call(p) => self.call(operands, p),
            CoreOp::Transfer(_) => one(operands[0].to_owned()),
            CoreOp::Collective(p) if p.replicas == 1 => one(operands[0].to_owned()),
            CoreOp::BindDim(p) => {
                self.bind_value(&p.sym, operands[0]);
                one(operands[0].to_owned())
            }
            CoreOp::ReadState(_)
            | CoreOp::WriteState(_)
            | CoreOp::Random(_)
            | CoreOp::Collective(_) => Err(unsupported(node.op.name())),
        }
    }

    /// The ONNX number of a type.
    fn element(&mut self, dtype: DType) -> Result<ElementType> {
        self.opset = self.opset.max(first_opset_with(dtype));
        element_of(dtype).ok_or_else(|| unsupported(format!("the type {dtype}")))
    }

    /// The ONNX type of a value. Extents that are more than a symbol are left open.
    fn value_type(&mut self, kind: &ValueType) -> Result<TypeProto> {
        Ok(match kind {
            ValueType::Tensor(tensor) => {
                let element = self.element(tensor.dtype)?;
                let extent = |dim: &Dim| match (dim.as_const(), dim.as_sym()) {
                    (Some(size), _) => Extent::Size(size as usize),
                    (None, Some(sym)) => Extent::Name(sym.name().to_owned()),
                    (None, None) => Extent::Unknown,
                };
                let dims: Vec<Extent> = tensor.dims.iter().map(extent).collect();
                write::tensor_type(element, &dims)
            }
            ValueType::Sequence(element) => write::sequence_type(self.value_type(element)?),
            ValueType::Optional(element) => write::optional_type(self.value_type(element)?),
        })
    }

    fn constant(&mut self, hint: &str, tensor: &Tensor) -> Result<String> {
        self.element(tensor.dtype())?;
        Ok(self.tensor(hint, tensor))
    }

    /// Gives the values of the graph's outputs their names: the nodes' results are renamed, values
    /// that no node makes or that are given out twice are copied.
    fn outputs(&mut self, graph: &Graph) -> Result<Vec<crate::proto::ValueInfoProto>> {
        let mut renamed = HashMap::new();
        let made: HashSet<String> = self
            .nodes
            .iter()
            .flat_map(|node| node.output.iter().cloned())
            .collect();
        let mut infos = Vec::new();
        for (name, value) in graph.outputs() {
            let current = self.value(*value).to_owned();
            if made.contains(&current) && !renamed.contains_key(&current) {
                renamed.insert(current, name.to_string());
            } else {
                self.nodes
                    .push(write::node("Identity", [current], [name.to_string()]));
            }
            infos.push(write::value_info(name, self.value_type(graph.ty(*value))?));
        }
        for (_, node) in graph.nodes() {
            for &result in &node.results {
                let current = self.value(result).to_owned();
                let name = graph.value(result).name.clone();
                if let Some(name) = name
                    && made.contains(&current)
                    && !renamed.contains_key(&current)
                    && self.used.insert(name.to_string())
                {
                    renamed.insert(current, name.to_string());
                }
            }
        }
        rename(&mut self.nodes, &renamed);
        let kept = graph
            .outputs()
            .iter()
            .map(|(name, _)| name.to_string())
            .collect();
        prune(&mut self.nodes, &mut self.initializers, kept);
        self.grant();
        Ok(infos)
    }

    /// Gives initializers the names that they wish for and nothing has.
    fn grant(&mut self) {
        let mut taken: HashSet<String> = self.inputs.iter().map(|i| i.name().to_owned()).collect();
        taken.extend(self.initializers.iter().map(|t| t.name().to_owned()));
        taken.extend(self.nodes.iter().flat_map(|node| node.output.clone()));
        let mut names = HashMap::new();
        for tensor in &mut self.initializers {
            if let Some(wish) = self.wishes.get(tensor.name())
                && taken.insert(wish.clone())
            {
                names.insert(tensor.name().to_owned(), wish.clone());
                tensor.name = Some(wish.clone());
            }
        }
        rename(&mut self.nodes, &names);
    }
}

/// How often each value is used, outputs included.
fn uses(graph: &Graph) -> Vec<usize> {
    let mut uses = vec![];
    let nodes = graph.nodes().flat_map(|(_, node)| &node.operands);
    for v in nodes.chain(graph.outputs().iter().map(|(_, v)| v)) {
        if uses.len() <= v.index() {
            uses.resize(v.index() + 1, 0);
        }
        uses[v.index()] += 1;
    }
    uses
}

fn rename(nodes: &mut [NodeProto], names: &HashMap<String, String>) {
    for node in nodes {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        }
        for graph in node.attribute.iter_mut().flat_map(subgraphs_mut) {
            rename(&mut graph.node, names);
        }
    }
}

/// Drops nodes and initializers that nothing uses; `used` are the names of outputs.
fn prune(nodes: &mut Vec<NodeProto>, tensors: &mut Vec<TensorProto>, mut used: HashSet<String>) {
    let mut kept = Vec::new();
    for node in std::mem::take(nodes).into_iter().rev() {
        if node.output.iter().any(|name| used.contains(name)) {
            collect_uses(&node, &mut used);
            kept.push(node);
        }
    }
    kept.reverse();
    *nodes = kept;
    tensors.retain(|tensor| used.contains(tensor.name()));
}

/// Adds the names that a node and the graphs in it read.
fn collect_uses(node: &NodeProto, used: &mut HashSet<String>) {
    used.extend(node.input.iter().cloned());
    for graph in node.attribute.iter().flat_map(subgraphs) {
        used.extend(graph.output.iter().map(|output| output.name().to_owned()));
        graph.node.iter().for_each(|node| collect_uses(node, used));
    }
}

fn borrowed(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn unsupported(what: impl Into<String>) -> ExportError {
    ExportError::Unsupported {
        what: what.into(),
        place: String::new(),
    }
}

/// Says which node an error is about, unless a region inside has said so.
fn placed(error: ExportError, node: &Node) -> ExportError {
    match error {
        ExportError::Unsupported { what, place } if place.is_empty() => {
            let place = match node.origins.first() {
                Some(origin) => format!("{} node {}", quote(&origin.op), quote(&origin.node)),
                None => format!("node {}", node.op.name()),
            };
            ExportError::Unsupported { what, place }
        }
        other => other,
    }
}

/// The first version of the standard operators that has this type.
fn first_opset_with(dtype: DType) -> i64 {
    match dtype {
        DType::F4E2M1 => 23,
        DType::F8E8M0 => 24,
        DType::I2 | DType::U2 => 25,
        _ => EXPORT_OPSET,
    }
}

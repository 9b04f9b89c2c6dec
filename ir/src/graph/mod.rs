//! The dataflow graph: an arena of nodes over typed values.
//!
//! Ids are never reused; nodes stand in an order in which every operand is defined, and every symbol bound, before it
//! is used. Passes append nodes with [`Graph::push`] and redirect uses with [`Graph::replace`]; [`Graph::compact`]
//! then drops what is dead and restores the order. Reading order: this file, `builder`, `verify`, `text`, `order`.

mod builder;
mod order;
pub mod text;
mod verify;

pub use order::{NodeGraph, dot, node_graph};
pub use verify::{verify, verify_region};

use crate::dim::{Dim, Sym, SymRange};
use crate::dtype::DType;
use crate::error::{IrError, Result};
use crate::ops::{CoreOp, Input, Op};
use crate::tensor::Tensor;
use crate::tensor_type::{TensorType, ValueType};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

macro_rules! id {
    ($(#[$m:meta])* $name:ident, $prefix:literal) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            /// Position in the arena.
            pub fn index(self) -> usize { self.0 as usize }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($prefix, "{}"), self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{self}") }
        }
    };
}
id!(
    /// A value of a graph, printed `%12`.
    ValueId,
    "%"
);
id!(
    /// A node of a graph, printed `#12`.
    NodeId,
    "#"
);

/// Where a node came from; kept through all passes for messages and reports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// File or builder.
    pub source: Arc<str>,
    /// Name of the source's node.
    pub node: Arc<str>,
    /// Operator of the source's node.
    pub op: Arc<str>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub operands: SmallVec<[ValueId; 4]>,
    /// Results.
    pub results: SmallVec<[ValueId; 1]>,
    /// Source nodes it stands for; several after a fusion.
    pub origins: SmallVec<[Arc<Origin>; 1]>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Type.
    pub ty: ValueType,
    /// Name in the source, for messages.
    pub name: Option<Arc<str>>,
    /// Defining node.
    pub node: NodeId,
    /// Which of the node's results.
    pub index: usize,
}

/// A state slot: a value kept between runs.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSlot {
    /// Type; symbols in it are bound by what the slot holds.
    pub ty: ValueType,
    /// Value before the first run.
    pub initial: Tensor,
}

/// A dataflow graph, or a region of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name.
    pub name: String,
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
    inputs: Vec<ValueId>,
    outputs: Vec<(Arc<str>, ValueId)>,
    /// What is known of symbols.
    pub ranges: BTreeMap<Sym, SymRange>,
    /// State slots.
    pub slots: BTreeMap<String, StateSlot>,
    origin: Option<Arc<Origin>>,
    fresh: u32,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        Graph {
            name: name.to_string(),
            ..Graph::default()
        }
    }

    /// Appends a node and infers its result types.
    ///
    /// # Errors
    /// What the op finds wrong with operands or attributes.
    pub fn push(
        &mut self,
        op: impl Into<Op>,
        operands: &[ValueId],
    ) -> Result<SmallVec<[ValueId; 1]>> {
        let op = op.into();
        let inferred = {
            let types: SmallVec<[&ValueType; 4]> = operands.iter().map(|v| self.ty(*v)).collect();
            op.infer(&types).map_err(|what| self.error(&op, what))?
        };
        let node = NodeId(self.nodes.len() as u32);
        let mut results = SmallVec::new();
        for (index, ty) in inferred.into_iter().enumerate() {
            results.push(ValueId(self.values.len() as u32));
            self.values.push(ValueInfo {
                ty,
                name: None,
                node,
                index,
            });
        }
        let origins = self.origin.iter().cloned().collect();
        self.nodes.push(Node {
            op,
            operands: operands.into(),
            results: results.clone(),
            origins,
        });
        Ok(results)
    }

    /// Gives a node more results by an op on the same operands whose first results are those that it has. Gives the new ones.
    ///
    /// # Errors
    /// What the op finds wrong, or fewer results than there are or others.
    pub fn extend(&mut self, node: NodeId, op: impl Into<Op>) -> Result<Vec<ValueId>> {
        let op = op.into();
        let inferred = {
            let operands = self.node(node).operands.iter();
            let types: SmallVec<[&ValueType; 4]> = operands.map(|v| self.ty(*v)).collect();
            op.infer(&types).map_err(|what| self.error(&op, what))?
        };
        let own = &self.node(node).results;
        let first = own.len();
        let same =
            |(v, ty): (&ValueId, &ValueType)| crate::ops::control::same_kind(ty, self.ty(*v));
        if inferred.len() < first || !own.iter().zip(&inferred).all(same) {
            return Err(self.error(&op, "has other results than the op in its place"));
        }
        let more: Vec<ValueId> = (inferred.into_iter().enumerate().skip(first))
            .map(|(index, ty)| {
                self.values.push(ValueInfo {
                    ty,
                    name: None,
                    node,
                    index,
                });
                ValueId(self.values.len() as u32 - 1)
            })
            .collect();
        let node = &mut self.nodes[node.index()];
        node.op = op;
        node.results.extend(more.iter().copied());
        Ok(more)
    }

    /// Appends a node with one result.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn one(&mut self, op: impl Into<Op>, operands: &[ValueId]) -> Result<ValueId> {
        Ok(self.push(op, operands)?[0])
    }

    /// An error about an op, with the name of the source node under construction.
    pub fn error(&self, op: &Op, what: impl Into<String>) -> IrError {
        let name = match &self.origin {
            Some(o) if !o.node.is_empty() => format!("{} '{}' ({})", o.op, o.node, op.name()),
            Some(o) => format!("{} ({})", o.op, op.name()),
            None => op.name(),
        };
        IrError::op(name, what)
    }

    /// Appends a named input.
    ///
    /// # Errors
    /// None in practice; kept for uniformity with [`Graph::push`].
    pub fn input(&mut self, name: &str, ty: impl Into<ValueType>) -> Result<ValueId> {
        let value = self.one(
            CoreOp::Input(Input {
                name: name.to_string(),
                ty: ty.into(),
            }),
            &[],
        )?;
        self.set_name(value, name);
        self.inputs.push(value);
        Ok(value)
    }

    /// Names a value as the next output. One value may be several outputs.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.into(), value));
    }

    /// Redirects the output at this position.
    pub fn set_output(&mut self, position: usize, value: ValueId) {
        self.outputs[position].1 = value;
    }

    /// Removes the outputs for which `keep` is false (by position).
    pub fn retain_outputs(&mut self, keep: impl Fn(usize) -> bool) {
        let mut position = 0;
        self.outputs.retain(|_| {
            position += 1;
            keep(position - 1)
        });
    }

    /// Origin given to nodes pushed from now on.
    pub fn set_origin(&mut self, origin: Option<Arc<Origin>>) {
        self.origin = origin;
    }

    /// Adds source nodes to a node's origins (repeats left out).
    pub fn add_origins(&mut self, node: NodeId, origins: &[Arc<Origin>]) {
        let own = &mut self.nodes[node.index()].origins;
        for o in origins {
            if !own.contains(o) {
                own.push(o.clone());
            }
        }
    }

    /// Names a value for messages.
    pub fn set_name(&mut self, value: ValueId, name: &str) {
        self.values[value.index()].name = Some(name.into());
    }

    /// Overrides a result type where more is known than inference sees (equal extents under another expression).
    pub fn refine(&mut self, value: ValueId, ty: ValueType) {
        debug_assert!(crate::ops::control::same_kind(&ty, self.ty(value)));
        self.values[value.index()].ty = ty;
    }

    /// Takes an input away that nothing uses; [`Graph::compact`] drops its node.
    pub fn remove_input(&mut self, at: usize) {
        self.inputs.remove(at);
    }

    /// A symbol that the graph has not handed out before. `hint` becomes part of its name.
    pub fn fresh_sym(&mut self, hint: &str) -> Sym {
        self.fresh += 1;
        Sym::new(&format!("{hint}.{}", self.fresh))
    }

    /// All nodes in order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.nodes
            .iter()
            .enumerate()
            .map(|(i, n)| (NodeId(i as u32), n))
    }

    /// Number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// A node, to change its op in place (types of its results must stay the same).
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.index()]
    }

    /// The node that defines a value.
    pub fn def(&self, id: ValueId) -> &Node {
        self.node(self.value(id).node)
    }

    /// The op that defines a value.
    pub fn op_of(&self, id: ValueId) -> &Op {
        &self.def(id).op
    }

    /// Inputs in order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Outputs in order.
    pub fn outputs(&self) -> &[(Arc<str>, ValueId)] {
        &self.outputs
    }

    /// Types of the inputs.
    pub fn input_types(&self) -> Vec<ValueType> {
        self.inputs.iter().map(|v| self.ty(*v).clone()).collect()
    }

    /// Types of the outputs.
    pub fn output_types(&self) -> Vec<ValueType> {
        self.outputs
            .iter()
            .map(|(_, v)| self.ty(*v).clone())
            .collect()
    }

    /// Name of an input.
    pub fn input_name(&self, value: ValueId) -> &str {
        match self.op_of(value) {
            Op::Core(CoreOp::Input(p)) => &p.name,
            _ => "",
        }
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &ValueType {
        &self.values[value.index()].ty
    }

    /// Tensor type of a value; an empty-rank bool for what is no tensor (the verifier reports it).
    pub fn tensor(&self, value: ValueId) -> TensorType {
        self.ty(value)
            .as_tensor()
            .cloned()
            .unwrap_or(TensorType::scalar(DType::Bool))
    }

    /// Element type of a tensor value.
    pub fn dtype(&self, value: ValueId) -> DType {
        self.tensor(value).dtype
    }

    /// Extents of a tensor value.
    pub fn dims(&self, value: ValueId) -> Vec<Dim> {
        self.tensor(value).dims
    }

    /// One extent of a tensor value.
    pub fn dim(&self, value: ValueId, axis: usize) -> Dim {
        self.tensor(value).dims[axis].clone()
    }

    /// Number of axes of a tensor value.
    pub fn rank(&self, value: ValueId) -> usize {
        self.ty(value).as_tensor().map_or(0, TensorType::rank)
    }

    /// The constant tensor that defines a value.
    pub fn as_const(&self, value: ValueId) -> Option<&Tensor> {
        match self.op_of(value) {
            Op::Core(CoreOp::Const(c)) => Some(&c.value),
            _ => None,
        }
    }

    /// The one number that all elements of a constant have (also through broadcast and reshape).
    pub fn as_uniform(&self, value: ValueId) -> Option<f64> {
        match self.op_of(value) {
            Op::Core(CoreOp::Const(c)) => crate::convert::uniform(&c.value),
            Op::Core(CoreOp::Broadcast(_) | CoreOp::Reshape(_) | CoreOp::Permute(_)) => {
                self.as_uniform(self.def(value).operands[0])
            }
            _ => None,
        }
    }

    /// Nodes that use each value, in order; outputs are not among them.
    pub fn users(&self) -> Vec<SmallVec<[NodeId; 2]>> {
        let mut users = vec![SmallVec::new(); self.values.len()];
        for (id, node) in self.nodes() {
            for v in &node.operands {
                let list: &mut SmallVec<[NodeId; 2]> = &mut users[v.index()];
                if list.last() != Some(&id) {
                    list.push(id);
                }
            }
        }
        users
    }

    /// Makes every use of `old` a use of `new` (operands and outputs). A missing name is taken over.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        self.replace_all(&FxHashMap::from_iter([(old, new)]));
    }

    /// Redirects many values at once; chains are followed.
    pub fn replace_all(&mut self, map: &FxHashMap<ValueId, ValueId>) {
        let resolve = |mut v: ValueId| {
            while let Some(n) = map.get(&v) {
                v = *n;
            }
            v
        };
        for node in &mut self.nodes {
            node.operands.iter_mut().for_each(|v| *v = resolve(*v));
        }
        self.outputs.iter_mut().for_each(|(_, v)| *v = resolve(*v));
        for old in map.keys() {
            let new = resolve(*old);
            if self.values[new.index()].name.is_none() {
                self.values[new.index()].name = self.values[old.index()].name.clone();
            }
        }
    }

    /// Restores the order of definition before use. Nothing is dropped: values keep their ids, only those of nodes change.
    ///
    /// # Errors
    /// [`IrError::Invalid`] when values depend on each other in a cycle.
    pub fn sort(&mut self) -> Result<()> {
        self.bring_forward(&[])
    }

    /// As [`Graph::sort`], with the nodes of these values, and what they need, before all others but inputs, whose symbols
    /// any node may use.
    ///
    /// # Errors
    /// As [`Graph::sort`].
    pub fn bring_forward(&mut self, values: &[ValueId]) -> Result<()> {
        let given = self.inputs.iter().chain(values);
        let first = given.map(|v| self.value(*v).node);
        let all: Vec<NodeId> = first.chain(self.nodes().map(|(id, _)| id)).collect();
        let order = order::in_order(self, &all)?;
        let mut old: Vec<Option<Node>> = std::mem::take(&mut self.nodes)
            .into_iter()
            .map(Some)
            .collect();
        for id in order {
            let Some(node) = old[id.index()].take() else {
                continue;
            };
            for r in &node.results {
                self.values[r.index()].node = NodeId(self.nodes.len() as u32);
            }
            self.nodes.push(node);
        }
        Ok(())
    }

    /// Drops nodes that no output, state or effect needs and restores the order of definition before use. Ids change;
    /// inputs stay. Symbols' binders are kept while the symbol is used. Gives the new id of every old value that is
    /// left.
    ///
    /// # Errors
    /// [`IrError::Invalid`] when values depend on each other in a cycle.
    pub fn compact(&mut self) -> Result<Vec<Option<ValueId>>> {
        self.compact_replaced(&FxHashMap::default())
    }

    /// As [`Graph::compact`], after the values of `replaced` have become others: these stand where the first ones stood. At the
    /// end, where they were made, they would be computed when the first node needs them, and what they read would be kept so long.
    ///
    /// # Errors
    /// [`IrError::Invalid`] when values depend on each other in a cycle.
    pub fn compact_replaced(
        &mut self,
        replaced: &FxHashMap<ValueId, ValueId>,
    ) -> Result<Vec<Option<ValueId>>> {
        let places = order::places(self, replaced);
        self.compact_as(&places)
    }

    /// As [`Graph::compact`], in the order of `places`, which names every node that is needed, as far as what they need comes before
    /// them.
    ///
    /// # Errors
    /// [`IrError::Invalid`] when values depend on each other in a cycle.
    pub fn compact_as(&mut self, places: &[NodeId]) -> Result<Vec<Option<ValueId>>> {
        let keep = order::live_in_order(self, places)?;
        let mut old_nodes: Vec<Option<Node>> = std::mem::take(&mut self.nodes)
            .into_iter()
            .map(Some)
            .collect();
        let old_values = std::mem::take(&mut self.values);
        let mut map = vec![ValueId(u32::MAX); old_values.len()];
        for id in keep {
            let Some(mut node) = old_nodes[id.index()].take() else {
                continue;
            };
            node.operands.iter_mut().for_each(|v| *v = map[v.index()]);
            let new_id = NodeId(self.nodes.len() as u32);
            for r in &mut node.results {
                map[r.index()] = ValueId(self.values.len() as u32);
                self.values.push(ValueInfo {
                    node: new_id,
                    ..old_values[r.index()].clone()
                });
                *r = map[r.index()];
            }
            self.nodes.push(node);
        }
        self.inputs.iter_mut().for_each(|v| *v = map[v.index()]);
        self.outputs
            .iter_mut()
            .for_each(|(_, v)| *v = map[v.index()]);
        let left = |v: ValueId| (v.0 != u32::MAX).then_some(v);
        Ok(map.into_iter().map(left).collect())
    }

    /// Assembles a graph from parts, for readers; nothing is checked (see [`verify`]).
    pub(crate) fn push_raw(&mut self, node: Node, types: Vec<ValueType>) -> SmallVec<[ValueId; 1]> {
        let id = NodeId(self.nodes.len() as u32);
        let is_input = matches!(node.op, Op::Core(CoreOp::Input(_)));
        let mut node = node;
        node.results = types
            .into_iter()
            .enumerate()
            .map(|(index, ty)| {
                self.values.push(ValueInfo {
                    ty,
                    name: None,
                    node: id,
                    index,
                });
                ValueId(self.values.len() as u32 - 1)
            })
            .collect();
        if is_input {
            self.inputs.extend(node.results.first());
        }
        let results = node.results.clone();
        self.nodes.push(node);
        results
    }

    /// Appends all nodes of another graph, its inputs replaced by `operands`; gives the values of its outputs.
    ///
    /// # Errors
    /// What an op finds wrong with the new operands.
    pub fn inline(&mut self, other: &Graph, operands: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut map: Vec<Option<ValueId>> = vec![None; other.values.len()];
        for (v, operand) in other.inputs.iter().zip(operands) {
            map[v.index()] = Some(*operand);
        }
        let origin = self.origin.clone();
        for (_, node) in other.nodes() {
            if matches!(node.op, Op::Core(CoreOp::Input(_))) {
                continue;
            }
            let operands: Vec<ValueId> = node
                .operands
                .iter()
                .map(|v| {
                    map[v.index()].ok_or_else(|| {
                        IrError::Invalid(format!("{v} is used before it is defined"))
                    })
                })
                .collect::<Result<_>>()?;
            let results = self.push(node.op.clone(), &operands)?;
            if origin.is_none() {
                let id = self.value(results[0]).node;
                self.nodes[id.index()].origins = node.origins.clone();
            }
            for (old, new) in node.results.iter().zip(&results) {
                map[old.index()] = Some(*new);
                if let Some(name) = &other.values[old.index()].name {
                    self.values[new.index()].name = Some(name.clone());
                }
            }
        }
        other
            .outputs
            .iter()
            .map(|(n, v)| {
                map[v.index()]
                    .ok_or_else(|| IrError::Invalid(format!("output '{n}' is not defined")))
            })
            .collect()
    }
}

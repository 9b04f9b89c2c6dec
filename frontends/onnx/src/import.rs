//! [`import`]: a checked [`Model`] as a graph. A pure function of the file and the options; nothing is executed.
//!
//! Nodes are visited in order. Each one's importer (see [`crate::ops`]) appends core ops and composites; afterwards
//! results whose elements are known by then become constants, so that shape arithmetic vanishes as it goes. Types are
//! those that the ops infer: types that the file states serve for inputs only, and are compared at the outputs.
//!
//! Names live in a [`Scope`]. A model's functions are inlined with a scope of their own. A subgraph becomes a region
//! with its captures as inputs ([`region`]), or is inlined where it is known to run ([`inline`]).
//!
//! Failures are collected: the results of a node that is not supported are poison, nodes that use them are skipped,
//! and the import fails at the end with all of them. A malformed node or a limit ends it at once.

use std::sync::{Arc, LazyLock};

use cupola_ir::graph::Origin;
use cupola_ir::ops::Dims;
use cupola_ir::tensor::Tensor;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, TensorType, ValueId, ValueType};
use cupola_source::quote;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::context::NodeCx;
use crate::convert::tensor_from_view;
use crate::error::Place;
use crate::import_error::{ImportError, OpError, OpResult, UnsupportedOp, clip, invalid};
use crate::ops::control::Formal;
use crate::ops::{FAMILIES, OpRow};
use crate::proto::tensor_shape_proto::dimension;
use crate::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto,
    TypeProto, ValueInfoProto, type_proto,
};
use crate::read::Model;
use crate::shape::{Deps, Elem, Facts};
use crate::symbols::{Source, Symbols};

/// A tensor that an operator makes may claim this many bytes at most: far above what any machine has.
const MAX_TENSOR_SIZE: u128 = 1 << 40;

/// An extent may be an expression of this many atoms at most.
const MAX_EXTENT_ATOMS: usize = 1024;

/// A graph, its regions included, may have this many nodes at most.
const MAX_NODES: usize = 1 << 22;

/// A sparse initializer may take this many bytes once it is dense.
const MAX_DENSE_SIZE: u64 = 1 << 30;

/// A node of an operator that the program brings along.
pub struct CustomNode<'a> {
    /// The file's node, with its attributes.
    pub proto: &'a NodeProto,
    /// Its inputs in order; `None` for one that is left out.
    pub inputs: &'a [Option<ValueId>],
}

/// Appends what a custom operator's node means and gives its results, or says what is wrong with the node.
pub type ImportCustom =
    dyn Fn(&mut Graph, &CustomNode<'_>) -> Result<Vec<ValueId>, String> + Send + Sync;

/// An operator that the program brings along. It comes before functions of the model and operators of the importer of the
/// same name.
#[derive(Clone)]
pub struct CustomOp {
    /// Domain; empty for the standard one.
    pub domain: String,
    /// Operator name.
    pub op: String,
    /// Its meaning.
    pub import: Arc<ImportCustom>,
}

impl std::fmt::Debug for CustomOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CustomOp({}::{})", self.domain, self.op)
    }
}

/// What the importer may assume beyond what the file says.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name of the file, for the origins of nodes.
    pub source: String,
    /// Values of inputs that decide the structure of the graph; the graph keeps the input and does not read it.
    pub known_inputs: FxHashMap<String, Tensor>,
    /// Types of inputs that the file leaves open.
    pub input_types: FxHashMap<String, ValueType>,
    /// Values of named dimensions.
    pub set_dims: FxHashMap<String, i64>,
    /// Operators beside those of this crate.
    pub custom: Vec<CustomOp>,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The graph. Its inputs are those of the model that have no initializer, in order; its outputs those of the model.
    pub graph: Graph,
    /// Statements of the file that turned out wrong and were ignored.
    pub warnings: Vec<String>,
}

/// The graph of a model.
///
/// # Errors
/// [`ImportError`]; its `fault()` says whose fault it is. On [`ImportError::NeedsInputs`] call again with more options.
pub fn import(model: &Model, options: &ImportOptions) -> Result<Imported, ImportError> {
    let mut shared = Shared::new(model, options);
    let env = Env {
        opsets: model.opsets().into_iter().collect(),
        attributes: FxHashMap::default(),
    };
    let proto = model.graph();
    let mut g = Graph::new(proto.name());
    let mut facts = Facts::default();
    let mut scope = Scope::default();
    shared.inputs(proto, &mut g, &mut facts, &mut scope)?;
    shared.initializers(proto, &mut g, &mut scope)?;
    shared.nodes(&proto.node, &mut g, &mut facts, &mut scope, &env)?;
    shared.report()?;
    let mut names = FxHashSet::default();
    for (i, output) in proto.output.iter().enumerate() {
        let Some(Slot::Value(v)) = scope.lookup(output.name()) else {
            unreachable!("bug: poison without a report, or an output that the reader let through");
        };
        shared.check_output(output, g.ty(v))?;
        match names.insert(output.name()) {
            true => g.output(output.name(), v),
            false => g.output(&format!("{}.{i}", output.name()), v),
        }
    }
    g.ranges = std::mem::take(&mut shared.symbols.ranges);
    g.set_origin(None);
    let place = || Place::Model;
    g.compact().map_err(|e| shared.place(e.into(), place()))?;
    Ok(Imported {
        graph: g,
        warnings: shared.warnings,
    })
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    /// A value of the graph under construction.
    Value(ValueId),
    /// The result of a node that could not be imported.
    Poison,
}

/// Names of values, inner ones hiding outer ones.
#[derive(Debug, Default)]
pub(crate) struct Scope<'p, 'm> {
    names: FxHashMap<&'m str, Slot>,
    parent: Option<&'p Scope<'p, 'm>>,
}

impl<'m> Scope<'_, 'm> {
    pub(crate) fn lookup(&self, name: &str) -> Option<Slot> {
        let mut scope = Some(self);
        while let Some(s) = scope {
            if let Some(slot) = s.names.get(name) {
                return Some(*slot);
            }
            scope = s.parent;
        }
        None
    }

    fn set(&mut self, name: &'m str, slot: Slot) {
        if !name.is_empty() {
            self.names.insert(name, slot);
        }
    }
}

/// What nodes of one graph or function share.
pub(crate) struct Env<'a, 'm> {
    pub(crate) opsets: FxHashMap<&'a str, i64>,
    /// Attributes of the call that is being inlined.
    pub(crate) attributes: FxHashMap<&'m str, &'m AttributeProto>,
}

/// A subgraph as a graph of its own.
pub(crate) struct Region {
    pub(crate) graph: Graph,
    /// Elements of the outputs, as far as they are known.
    pub(crate) outputs: Vec<Option<std::rc::Rc<[Elem]>>>,
}

/// What the whole import shares.
pub(crate) struct Shared<'m> {
    model: &'m Model,
    options: &'m ImportOptions,
    source: Arc<str>,
    pub(crate) symbols: Symbols,
    unsupported: Vec<UnsupportedOp>,
    needed_values: FxHashSet<String>,
    needed_types: FxHashSet<String>,
    warnings: Vec<String>,
    node_count: usize,
    random_count: u64,
}

impl<'m> Shared<'m> {
    fn new(model: &'m Model, options: &'m ImportOptions) -> Shared<'m> {
        Shared {
            model,
            options,
            source: options.source.as_str().into(),
            symbols: Symbols::default(),
            unsupported: vec![],
            needed_values: FxHashSet::default(),
            needed_types: FxHashSet::default(),
            warnings: vec![],
            node_count: 0,
            random_count: 0,
        }
    }

    /// A stored tensor as a constant.
    pub(crate) fn tensor(&self, proto: &TensorProto) -> Result<Tensor, OpError> {
        let view = self.model.tensor(proto).map_err(ImportError::from)?;
        tensor_from_view(view).map_err(OpError::Unsupported)
    }

    /// A stored sparse tensor as a dense constant.
    pub(crate) fn sparse(&self, proto: &SparseTensorProto) -> Result<Tensor, OpError> {
        let view = self.model.sparse(proto).map_err(ImportError::from)?;
        match view.to_dense(MAX_DENSE_SIZE) {
            Ok(dense) => tensor_from_view(dense).map_err(OpError::Unsupported),
            Err(fault) => match fault.fault() {
                cupola_source::Fault::Malformed => invalid(fault.to_string()),
                cupola_source::Fault::Unsupported => Err(OpError::Unsupported(fault.to_string())),
                cupola_source::Fault::Limit => Err(OpError::Limit(fault.to_string())),
            },
        }
    }

    /// A number for each random op, so that no two draw the same bits.
    pub(crate) fn next_stream(&mut self) -> u64 {
        self.random_count += 1;
        self.random_count
    }

    fn inputs(
        &mut self,
        proto: &'m GraphProto,
        g: &mut Graph,
        facts: &mut Facts,
        scope: &mut Scope<'_, 'm>,
    ) -> Result<(), ImportError> {
        let stored = stored_names(proto);
        for input in proto.input.iter().filter(|i| !stored.contains(i.name())) {
            let name = input.name();
            let place = || Place::Value {
                kind: "input",
                name: name.to_owned(),
            };
            let Some(ty) = self.input_type(input).map_err(|e| self.place(e, place()))? else {
                self.needed_types.insert(name.to_owned());
                scope.set(name, Slot::Poison);
                continue;
            };
            ty.for_each_dim(&mut |d| {
                d.for_each_sym(&mut |s| {
                    self.symbols.state_source(s, Source::Input(name.to_owned()))
                })
            });
            let v = g
                .input(name, ty)
                .map_err(|e| self.place(e.into(), place()))?;
            facts.update(g, &mut self.symbols);
            facts.set_deps(v, Deps::input(name));
            let known = match self.options.known_inputs.get(name) {
                Some(t) => {
                    if g.dtype(v) != t.dtype() || g.rank(v) != t.shape().len() {
                        let what = format!("{} where {t:?} is given", g.ty(v));
                        return Err(self.place(OpError::Invalid(what), place()));
                    }
                    g.constant(t.clone())
                        .map_err(|e| self.place(e.into(), place()))?
                }
                None => v,
            };
            scope.set(name, Slot::Value(known));
        }
        Ok(())
    }

    fn input_type(&mut self, input: &ValueInfoProto) -> OpResult<Option<ValueType>> {
        let declared = match &input.r#type {
            Some(ty) => declared_type(self, ty, input.name())?,
            None => None,
        };
        let given = self.options.input_types.get(input.name()).cloned();
        let known = self.options.known_inputs.get(input.name());
        let given = known.map(|t| ValueType::Tensor(t.ty())).or(given);
        if let (Some(ValueType::Tensor(d)), Some(ValueType::Tensor(t))) = (&declared, &given)
            && d.dtype != t.dtype
        {
            return invalid(format!("stated as {d}, given as {t}"));
        }
        Ok(given.or(declared))
    }

    fn initializers(
        &mut self,
        proto: &'m GraphProto,
        g: &mut Graph,
        scope: &mut Scope<'_, 'm>,
    ) -> Result<(), ImportError> {
        for tensor in &proto.initializer {
            let place = || Place::Value {
                kind: "initializer",
                name: tensor.name().to_owned(),
            };
            let made = self.tensor(tensor).and_then(|t| Ok(g.constant(t)?));
            let v = made.map_err(|e| self.place(e, place()))?;
            g.set_name(v, tensor.name());
            scope.set(tensor.name(), Slot::Value(v));
        }
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            let place = || Place::Value {
                kind: "sparse initializer",
                name: name.to_owned(),
            };
            let made = self.sparse(sparse).and_then(|t| Ok(g.constant(t)?));
            let v = made.map_err(|e| self.place(e, place()))?;
            g.set_name(v, name);
            scope.set(name, Slot::Value(v));
        }
        Ok(())
    }

    fn nodes(
        &mut self,
        nodes: &'m [NodeProto],
        g: &mut Graph,
        facts: &mut Facts,
        scope: &mut Scope<'_, 'm>,
        env: &Env<'_, 'm>,
    ) -> Result<(), ImportError> {
        for node in nodes {
            let before = g.node_count();
            let results = match self.node(node, g, facts, scope, env) {
                Ok(results) => results,
                Err(e) => {
                    self.failed(node, env, e, g, facts)?;
                    node.output.iter().for_each(|n| scope.set(n, Slot::Poison));
                    continue;
                }
            };
            facts.update(g, &mut self.symbols);
            self.check_limits(node, g, before)?;
            for (name, v) in node.output.iter().zip(results) {
                let v = settle(g, facts, v);
                if !name.is_empty() {
                    if g.value(v).name.is_none() {
                        g.set_name(v, name);
                    }
                    scope.set(name, Slot::Value(v));
                }
            }
            facts.update(g, &mut self.symbols);
        }
        Ok(())
    }

    fn node(
        &mut self,
        node: &'m NodeProto,
        g: &mut Graph,
        facts: &mut Facts,
        scope: &Scope<'_, 'm>,
        env: &Env<'_, 'm>,
    ) -> OpResult {
        let options = self.options;
        let custom =
            (options.custom.iter()).find(|c| c.domain == node.domain() && c.op == node.op_type());
        let function = self.model.function(node);
        let opset = env.opsets.get(node.domain()).copied().unwrap_or(1);
        let row = match (custom, function) {
            (Some(_), _) | (_, Some(_)) => None,
            (None, None) => Some(find_row(node.domain(), node.op_type(), opset)?),
        };
        let mut inputs = smallvec::SmallVec::new();
        for name in &node.input {
            inputs.push(match scope.lookup(name) {
                Some(Slot::Value(v)) => Some(v),
                Some(Slot::Poison) => return Err(OpError::Poisoned),
                // An empty name, or an input that the call of a function leaves out.
                None => None,
            });
        }
        let name = node.name();
        let first = node.output.iter().find(|o| !o.is_empty());
        g.set_origin(Some(Arc::new(Origin {
            source: self.source.clone(),
            node: if name.is_empty() {
                first.map_or("", String::as_str)
            } else {
                name
            }
            .into(),
            op: node.op_type().into(),
        })));
        let mut cx = NodeCx {
            g,
            opset,
            node,
            inputs,
            facts,
            scope,
            env,
            shared: self,
        };
        let results = match (custom, function, row) {
            (Some(own), _, _) => {
                let node = CustomNode {
                    proto: node,
                    inputs: &cx.inputs,
                };
                (own.import)(cx.g, &node).map_err(OpError::Invalid)?
            }
            (_, Some(f), _) => call(&mut cx, f)?,
            (_, _, Some(row)) => (row.import)(&mut cx)?,
            (None, None, None) => unreachable!("bug: neither function nor operator"),
        };
        if cx.output_count() > results.len() {
            return invalid(format!(
                "{} results named, it has {}",
                cx.output_count(),
                results.len()
            ));
        }
        Ok(results)
    }

    fn failed(
        &mut self,
        node: &NodeProto,
        env: &Env<'_, 'm>,
        e: OpError,
        g: &Graph,
        facts: &mut Facts,
    ) -> Result<(), ImportError> {
        facts.update(g, &mut self.symbols);
        let reason = match e {
            OpError::Unsupported(reason) => reason,
            OpError::NeedsValue(v) => match self.needs_value(v, g, facts) {
                true => return Ok(()),
                false => "its structure depends on a value that only run time knows".to_owned(),
            },
            OpError::NeedsShape(v) => match self.needs_shape(g.ty(v)) {
                true => return Ok(()),
                false => "its structure depends on a size that only run time knows".to_owned(),
            },
            OpError::Poisoned => return Ok(()),
            other => return Err(self.place(other, Place::of_node(node))),
        };
        let first = node.output.iter().find(|o| !o.is_empty());
        self.unsupported.push(UnsupportedOp {
            domain: node.domain().to_owned(),
            op: node.op_type().to_owned(),
            opset: env.opsets.get(node.domain()).copied().unwrap_or(1),
            node: match node.name() {
                "" => first.cloned().unwrap_or_default(),
                name => name.to_owned(),
            },
            reason,
        });
        Ok(())
    }

    /// Asks for the inputs that decide a value: their elements, and where sizes take part, their types; false when
    /// that would not help.
    pub(crate) fn needs_value(&mut self, v: ValueId, g: &Graph, facts: &Facts) -> bool {
        let Deps::Inputs(names) = facts.deps(v) else {
            return false;
        };
        let mut asked = !names.is_empty();
        self.needed_values.extend(names.iter().cloned());
        let (mut open, mut seen) = (vec![v], FxHashSet::default());
        while let Some(v) = open.pop() {
            if !seen.insert(v) {
                continue;
            }
            let elems = facts.elems(v).into_iter().flat_map(|e| e.iter());
            let dims = elems.filter_map(|e| match e {
                Elem::Int(d) | Elem::Scaled(d, _) => Some(d.clone()),
                Elem::Real(_) | Elem::Bool(_) | Elem::Unknown => None,
            });
            let sizes = TensorType {
                dtype: DType::I64,
                dims: dims.collect(),
            };
            asked |= self.needs_shape(&sizes.into());
            open.extend(&g.def(v).operands);
        }
        asked
    }

    /// Asks for the inputs that decide the extents of a type; false when there are none to ask for.
    fn needs_shape(&mut self, ty: &ValueType) -> bool {
        let mut asked = false;
        let mut sources = vec![];
        ty.for_each_dim(&mut |d| {
            d.for_each_sym(&mut |s| sources.extend(self.symbols.source(s).cloned()))
        });
        for source in sources {
            match source {
                Source::Input(name) if self.is_open(&name) => {
                    self.needed_types.insert(name);
                    asked = true;
                }
                Source::Values(Deps::Inputs(names)) if !names.is_empty() => {
                    self.needed_values.extend(names.iter().cloned());
                    asked = true;
                }
                Source::Input(_) | Source::Values(_) => {}
            }
        }
        asked
    }

    /// Whether the caller can still say more about an input's type: it gave none, or one with open extents.
    fn is_open(&self, input: &str) -> bool {
        let given = self.options.input_types.get(input);
        given.is_none_or(|ty| {
            let mut open = false;
            ty.for_each_dim(&mut |d| open |= d.as_const().is_none());
            open
        })
    }

    fn check_limits(
        &mut self,
        node: &NodeProto,
        g: &Graph,
        before: usize,
    ) -> Result<(), ImportError> {
        self.node_count += g.node_count() - before;
        let place = || Place::of_node(node);
        if self.node_count > MAX_NODES {
            let what = format!("the graph has more than {MAX_NODES} nodes");
            return Err(ImportError::Limit {
                what,
                place: place(),
            });
        }
        for index in before..g.node_count() {
            for v in &g.node(cupola_ir::NodeId(index as u32)).results {
                let Some(t) = g.ty(*v).as_tensor() else {
                    continue;
                };
                if t.dims.iter().any(|d| d.is_longer_than(MAX_EXTENT_ATOMS)) {
                    return Err(ImportError::Limit {
                        what: format!("an extent depends on more than {MAX_EXTENT_ATOMS} terms"),
                        place: place(),
                    });
                }
                let size = t
                    .dims
                    .iter()
                    .try_fold(t.dtype.bits().max(8) as u128 / 8, |p, d| {
                        let n = d.as_const().unwrap_or(1);
                        u128::try_from(n).ok().map(|n| p.saturating_mul(n))
                    });
                match size {
                    None => {
                        let what = format!("a result would be {t}");
                        return Err(ImportError::Malformed {
                            what,
                            place: place(),
                        });
                    }
                    Some(s) if s > MAX_TENSOR_SIZE => {
                        let what = format!("a tensor {t} has more than {MAX_TENSOR_SIZE} bytes");
                        return Err(ImportError::Limit {
                            what: clip(&what),
                            place: place(),
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn place(&self, e: OpError, place: Place) -> ImportError {
        match e {
            OpError::Invalid(what) => ImportError::Malformed {
                what: clip(&what),
                place,
            },
            OpError::Limit(what) => ImportError::Limit {
                what: clip(&what),
                place,
            },
            OpError::Placed(e) => *e,
            OpError::Unsupported(reason) => ImportError::Unsupported(vec![UnsupportedOp {
                domain: String::new(),
                op: place.to_string(),
                opset: 0,
                node: String::new(),
                reason,
            }]),
            OpError::NeedsValue(_) | OpError::NeedsShape(_) | OpError::Poisoned => {
                unreachable!("bug: handled where the node is known")
            }
        }
    }

    fn report(&mut self) -> Result<(), ImportError> {
        if !self.unsupported.is_empty() {
            return Err(ImportError::Unsupported(std::mem::take(
                &mut self.unsupported,
            )));
        }
        if self.needed_values.is_empty() && self.needed_types.is_empty() {
            return Ok(());
        }
        let sorted = |names: &mut FxHashSet<String>| {
            let mut all: Vec<String> = names.drain().collect();
            all.sort();
            all
        };
        Err(ImportError::NeedsInputs {
            values: sorted(&mut self.needed_values),
            types: sorted(&mut self.needed_types),
        })
    }

    /// Compares the stated type of an output with the inferred one: another element type, or other extents for the
    /// same number of axes, are mistakes; another number of axes is common in real files and only noted.
    fn check_output(&mut self, output: &ValueInfoProto, ty: &ValueType) -> Result<(), ImportError> {
        let Some(stated) = &output.r#type else {
            return Ok(());
        };
        let place = || Place::Value {
            kind: "output",
            name: output.name().to_owned(),
        };
        let Ok(Some(stated)) = declared_type(self, stated, "output") else {
            return Ok(());
        };
        let (ValueType::Tensor(s), ValueType::Tensor(t)) = (&stated, ty) else {
            return Ok(());
        };
        let differs = |(a, b): (&Dim, &Dim)| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b);
        if s.dtype != t.dtype || (s.rank() == t.rank() && s.dims.iter().zip(&t.dims).any(differs)) {
            let what = format!("stated as {s}, but computed as {t}");
            return Err(ImportError::Malformed {
                what: clip(&what),
                place: place(),
            });
        }
        if s.rank() != t.rank() {
            let name = quote(output.name());
            self.warnings.push(format!(
                "output {name} is stated as {s}, but computed as {t}"
            ));
        }
        Ok(())
    }
}

/// Replaces a result whose elements are known by a constant, or by `dims` for sizes.
fn settle(g: &mut Graph, facts: &Facts, v: ValueId) -> ValueId {
    if matches!(
        g.op_of(v),
        Op::Core(CoreOp::Const(_) | CoreOp::Dims(_) | CoreOp::Input(_) | CoreOp::BindDim(_))
    ) {
        return v;
    }
    if let Some(t) = facts.constant(g, v) {
        return g.constant(t).unwrap_or(v);
    }
    let ty = g.tensor(v);
    let Some(elems) = facts
        .elems(v)
        .filter(|_| ty.dtype == DType::I64 && ty.rank() <= 1)
    else {
        return v;
    };
    let dims = elems.iter().map(|e| match e {
        Elem::Int(d) => Some(d.clone()),
        Elem::Real(_) | Elem::Scaled(..) | Elem::Bool(_) | Elem::Unknown => None,
    });
    let Some(dims) = dims.collect::<Option<Vec<Dim>>>() else {
        return v;
    };
    let sizes = g.one(Dims { dims }, &[]);
    sizes.and_then(|d| g.reshape(d, &ty.dims)).unwrap_or(v)
}

fn stored_names(proto: &GraphProto) -> FxHashSet<&str> {
    let dense = proto.initializer.iter().map(|t| t.name());
    let sparse = proto.sparse_initializer.iter();
    let sparse = sparse.filter_map(|t| t.values.as_ref()).map(|t| t.name());
    dense.chain(sparse).collect()
}

/// Operators by domain and name, versions ascending.
static TABLE: LazyLock<FxHashMap<(&str, &str), Vec<&OpRow>>> = LazyLock::new(|| {
    let mut table: FxHashMap<(&str, &str), Vec<&OpRow>> = FxHashMap::default();
    for row in FAMILIES.iter().flat_map(|rows| rows.iter()) {
        table.entry((row.domain, row.name)).or_default().push(row);
    }
    table
        .values_mut()
        .for_each(|rows| rows.sort_by_key(|r| r.since));
    table
});

/// The operators that can be imported: domain (empty for the standard one), name, and first version of the domain with
/// each meaning that there is.
pub fn operators() -> impl Iterator<Item = (&'static str, &'static str, i64)> {
    let rows = FAMILIES.iter().flat_map(|family| family.iter());
    rows.map(|row| (row.domain, row.name, row.since))
}

fn find_row(domain: &str, name: &str, opset: i64) -> OpResult<&'static OpRow> {
    let Some(rows) = TABLE.get(&(domain, name)) else {
        return Err(OpError::Unsupported(String::new()));
    };
    match rows.iter().rev().find(|r| r.since <= opset) {
        Some(row) => Ok(row),
        None => Err(OpError::Unsupported(format!(
            "only known from version {}",
            rows[0].since
        ))),
    }
}

/// Inlines a call of a model's function.
fn call<'m>(cx: &mut NodeCx<'_, 'm>, function: &'m FunctionProto) -> OpResult {
    let mut env = Env {
        opsets: cx.env.opsets.clone(),
        attributes: FxHashMap::default(),
    };
    if !function.opset_import.is_empty() {
        let own = function.opset_import.iter();
        env.opsets = own.map(|o| (o.domain(), o.version())).collect();
    }
    for default in &function.attribute_proto {
        env.attributes.insert(default.name(), default);
    }
    for given in &cx.node.attribute {
        let value = match given.ref_attr_name() {
            "" => Some(given),
            outer => cx.env.attributes.get(outer).copied(),
        };
        if let Some(value) = value {
            env.attributes.insert(given.name(), value);
        }
    }
    let mut scope = Scope::default();
    for (name, v) in function.input.iter().zip(&cx.inputs) {
        if let Some(v) = v {
            scope.set(name, Slot::Value(*v));
        }
    }
    cx.shared
        .nodes(&function.node, cx.g, cx.facts, &mut scope, &env)?;
    results(&scope, function.output.iter().map(String::as_str))
}

fn results<'a>(scope: &Scope<'_, '_>, names: impl Iterator<Item = &'a str>) -> OpResult {
    names
        .map(|name| match scope.lookup(name) {
            Some(Slot::Value(v)) => Ok(v),
            Some(Slot::Poison) => Err(OpError::Poisoned),
            None => invalid(format!("the value {} is not made anywhere", quote(name))),
        })
        .collect()
}

/// Names that a graph uses and does not make, repeats included.
pub(crate) fn free_names<'m>(graph: &'m GraphProto, out: &mut Vec<&'m str>) {
    let mut own: FxHashSet<&str> = stored_names(graph);
    own.extend(graph.input.iter().map(|i| i.name()));
    own.extend(
        graph
            .node
            .iter()
            .flat_map(|n| n.output.iter().map(String::as_str)),
    );
    let mut used = vec![];
    for node in &graph.node {
        used.extend(node.input.iter().map(String::as_str));
        for attribute in &node.attribute {
            for inner in attribute.g.iter().map(|g| &**g).chain(&attribute.graphs) {
                free_names(inner, &mut used);
            }
        }
    }
    used.extend(graph.output.iter().map(|o| o.name()));
    out.extend(
        used.into_iter()
            .filter(|n| !n.is_empty() && !own.contains(n)),
    );
}

/// See [`NodeCx::inline`].
pub(crate) fn inline<'m>(
    cx: &mut NodeCx<'_, 'm>,
    graph: &'m GraphProto,
    given: &[ValueId],
) -> OpResult {
    if graph.input.len() != given.len() {
        return invalid(format!(
            "a subgraph has {} inputs instead of {}",
            graph.input.len(),
            given.len()
        ));
    }
    let mut scope = Scope {
        names: FxHashMap::default(),
        parent: Some(cx.scope),
    };
    for (input, v) in graph.input.iter().zip(given) {
        scope.set(input.name(), Slot::Value(*v));
    }
    cx.shared.initializers(graph, cx.g, &mut scope)?;
    cx.shared
        .nodes(&graph.node, cx.g, cx.facts, &mut scope, cx.env)?;
    results(&scope, graph.output.iter().map(|o| o.name()))
}

/// See [`NodeCx::region`].
pub(crate) fn region<'m>(
    cx: &mut NodeCx<'_, 'm>,
    graph: &'m GraphProto,
    given: Vec<Formal>,
    captures: &[(&'m str, ValueId)],
) -> OpResult<Region> {
    if graph.input.len() != given.len() {
        return invalid(format!(
            "a subgraph has {} inputs instead of {}",
            graph.input.len(),
            given.len()
        ));
    }
    let mut g = Graph::new(graph.name());
    let mut facts = Facts::default();
    let mut scope = Scope::default();
    for (input, formal) in graph.input.iter().zip(given) {
        let v = match formal {
            Formal::Input(ty) => g.input(input.name(), ty)?,
            Formal::Known(value) => g.constant(value)?,
        };
        scope.set(input.name(), Slot::Value(v));
    }
    cx.facts.update(cx.g, &mut cx.shared.symbols);
    for (name, outer) in captures {
        let v = g.input(name, cx.g.ty(*outer).clone())?;
        facts.update(&g, &mut cx.shared.symbols);
        facts.set_deps(v, cx.facts.deps(*outer));
        if let Some(elems) = cx.facts.elems(*outer) {
            facts.set_elems(v, elems.clone());
        }
        scope.set(name, Slot::Value(v));
    }
    let mut free = vec![];
    free_names(graph, &mut free);
    for name in free {
        if scope.lookup(name).is_none()
            && let Some(Slot::Value(outer)) = cx.scope.lookup(name)
            && let Some(t) = cx.g.as_const(outer)
        {
            let v = g.constant(t.clone())?;
            g.set_name(v, name);
            scope.set(name, Slot::Value(v));
        }
    }
    cx.shared.initializers(graph, &mut g, &mut scope)?;
    cx.shared
        .nodes(&graph.node, &mut g, &mut facts, &mut scope, cx.env)?;
    let values = results(&scope, graph.output.iter().map(|o| o.name()))?;
    for (i, v) in values.iter().enumerate() {
        g.output(&format!("{i}"), *v);
    }
    facts.update(&g, &mut cx.shared.symbols);
    let outputs = values.iter().map(|v| facts.elems(*v).cloned()).collect();
    g.set_origin(None);
    g.compact()?;
    Ok(Region { graph: g, outputs })
}

/// The dtype of an element type number.
pub(crate) fn dtype_of_number(number: i64) -> OpResult<DType> {
    let element = i32::try_from(number)
        .ok()
        .and_then(|n| crate::tensor::ElementType::from_number(n).ok());
    match element {
        Some(element) => crate::convert::dtype_of(element).map_err(OpError::Unsupported),
        None => invalid(format!("element type {number} does not exist")),
    }
}

/// See [`NodeCx::declared`].
pub(crate) fn declared_type(
    shared: &mut Shared<'_>,
    ty: &TypeProto,
    hint: &str,
) -> OpResult<Option<ValueType>> {
    let inner = |shared: &mut Shared<'_>, ty: Option<&TypeProto>| match ty {
        Some(ty) => declared_type(shared, ty, hint),
        None => invalid("a type is incomplete"),
    };
    Ok(match &ty.value {
        Some(type_proto::Value::TensorType(t)) => {
            let dtype = dtype_of_number(i64::from(t.elem_type()))?;
            let Some(stated) = &t.shape else {
                return Ok(None);
            };
            let mut dims = Vec::with_capacity(stated.dim.len());
            for d in &stated.dim {
                dims.push(match &d.value {
                    Some(dimension::Value::DimValue(n)) if *n > 0 => Dim::Const(*n),
                    Some(dimension::Value::DimParam(name))
                        if !matches!(name.as_str(), "" | "?") =>
                    {
                        match shared.options.set_dims.get(name) {
                            Some(n) => Dim::Const(*n),
                            None => Dim::from(&shared.symbols.named(name)),
                        }
                    }
                    // Writers use 0, -1 and `?` for "any".
                    _ => Dim::from(&shared.symbols.fresh(hint)),
                });
            }
            Some(TensorType { dtype, dims }.into())
        }
        Some(type_proto::Value::SequenceType(s)) => {
            inner(shared, s.elem_type.as_deref())?.map(|t| ValueType::Sequence(Box::new(t)))
        }
        Some(type_proto::Value::OptionalType(s)) => {
            inner(shared, s.elem_type.as_deref())?.map(|t| ValueType::Optional(Box::new(t)))
        }
        Some(type_proto::Value::MapType(_)) => return Err(OpError::Unsupported("maps".into())),
        Some(type_proto::Value::SparseTensorType(_)) => {
            return Err(OpError::Unsupported("sparse tensors as inputs".into()));
        }
        Some(type_proto::Value::OpaqueType(_)) => {
            return Err(OpError::Unsupported("opaque types".into()));
        }
        None => None,
    })
}

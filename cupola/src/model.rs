//! Models: files told by their content, imported to graphs.

use crate::error::{Error, Result};
use crate::runner::{Options, Runner};
use cupola_ir::{DType, Dim, Graph, Tensor, Value, ValueType};
use cupola_onnx::{ImportError, ImportOptions};
use cupola_runtime::Host;
use cupola_source::{Format, Source};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Fixed values of symbolic dimensions, by name.
    pub set: BTreeMap<String, i64>,
}

/// An input that decides the structure of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Structural {
    /// By its dtype and rank.
    Rank(String),
    /// By its value.
    Value(String),
}

/// A model: something that gives a graph, perhaps one graph per value of inputs that decide its structure.
pub struct Model {
    source: ModelSource,
    options: ModelOptions,
    name: String,
    plain: OnceLock<Arc<Graph>>,
}

enum ModelSource {
    Graph(Arc<Graph>),
    Onnx(Box<cupola_onnx::Model>),
}

impl Model {
    /// Opens a file with default options.
    ///
    /// # Errors
    /// A file that cannot be read, is malformed, or holds no graph.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Model::open_with(path, ModelOptions::default())
    }

    /// Opens a file; its kind is told by content.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with(path: impl AsRef<Path>, options: ModelOptions) -> Result<Model> {
        let path = path.as_ref();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let source = if path.is_dir() {
            return Err(Error::Format(format!("{name} is a folder; folders hold language models, which come later")));
        } else {
            Source::open(path)?
        };
        let format = source.format();
        let source = match format {
            Format::Onnx => ModelSource::Onnx(Box::new(cupola_onnx::Model::read(&source)?)),
            Format::CupolaText => {
                let text = std::str::from_utf8(source.bytes());
                let text = text.map_err(|e| Error::Format(format!("the text graph is not UTF-8: {e}")))?;
                ModelSource::Graph(Arc::new(cupola_ir::graph::text::parse(text)?))
            }
            Format::CupolaBinary => ModelSource::Graph(Arc::new(cupola_native::read(&source)?)),
            other => return Err(Error::Format(format!("{name}: {other} holds no graph that can be run"))),
        };
        Ok(Model { source, options, name, plain: OnceLock::new() })
    }

    /// A model from a graph built in memory.
    pub fn from_graph(graph: Graph) -> Model {
        let name = graph.name.clone();
        Model { source: ModelSource::Graph(Arc::new(graph)), options: ModelOptions::default(), name, plain: OnceLock::new() }
    }

    /// File or graph name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ONNX file, when it is one.
    pub fn as_onnx(&self) -> Option<&cupola_onnx::Model> {
        match &self.source {
            ModelSource::Onnx(m) => Some(m),
            ModelSource::Graph(_) => None,
        }
    }

    /// The graph without knowing any input; imported once.
    ///
    /// # Errors
    /// [`ImportError::NeedsInputs`] when the structure depends on input values; what the importer finds.
    pub fn graph(&self) -> Result<Arc<Graph>> {
        if let Some(graph) = self.plain.get() {
            return Ok(graph.clone());
        }
        let graph = Arc::new(self.graph_with(&BTreeMap::new(), &BTreeMap::new())?);
        Ok(self.plain.get_or_init(|| graph).clone())
    }

    /// Names and types of the inputs, in order. Where the structure depends on inputs, types are as declared.
    ///
    /// # Errors
    /// What the importer finds.
    pub fn input_types(&self) -> Result<Vec<(String, ValueType)>> {
        match (self.graph(), &self.source) {
            (Err(Error::Import(ImportError::NeedsInputs { .. })), ModelSource::Onnx(m)) => {
                Ok(cupola_onnx::declared_inputs(m)?)
            }
            (Err(e), _) => Err(e),
            (Ok(g), _) => {
                Ok(g.inputs().iter().map(|v| (g.input_name(*v).to_string(), g.ty(*v).clone())).collect())
            }
        }
    }

    /// The graph given values of some inputs and types of others.
    pub(crate) fn graph_with(
        &self,
        known: &BTreeMap<String, Tensor>,
        types: &BTreeMap<String, (DType, Vec<Dim>)>,
    ) -> Result<Graph> {
        match &self.source {
            ModelSource::Graph(g) => Ok(Graph::clone(g)),
            ModelSource::Onnx(m) => {
                let options = ImportOptions {
                    known_inputs: known.clone(),
                    input_types: types.clone(),
                    set_dims: self.options.set.clone(),
                    source: self.name.clone(),
                    ..ImportOptions::default()
                };
                Ok(cupola_onnx::import(m, &options)?.graph)
            }
        }
    }

    /// The graph for these inputs, and those that decided its structure.
    pub(crate) fn graph_for(&self, inputs: &BTreeMap<String, Value>) -> Result<(Graph, Vec<Structural>)> {
        let mut known = BTreeMap::new();
        let mut types = BTreeMap::new();
        loop {
            let graph = match known.is_empty() && types.is_empty() {
                true => self.graph().map(|g| Graph::clone(&g)),
                false => self.graph_with(&known, &types),
            };
            match graph {
                Err(Error::Import(ImportError::NeedsInputs { names })) => {
                    let before = (known.len(), types.len());
                    for name in &names {
                        let Some(tensor) = inputs.get(name).and_then(Value::as_tensor) else { continue };
                        // A rank may be all that is missing; the value is the second resort.
                        let dims: Vec<Dim> =
                            (0..tensor.shape().len()).map(|a| Dim::sym(&format!("{name}.{a}"))).collect();
                        if types.insert(name.clone(), (tensor.dtype(), dims)).is_some() {
                            known.insert(name.clone(), tensor.clone());
                        }
                    }
                    if (known.len(), types.len()) == before {
                        return Err(ImportError::NeedsInputs { names }.into());
                    }
                }
                Err(e) => return Err(e),
                Ok(graph) => {
                    let by_rank = types.into_keys().filter(|n| !known.contains_key(n)).map(Structural::Rank).collect();
                    let by_value = known.keys().cloned().map(Structural::Value).collect();
                    return Ok((graph, [by_rank, by_value].concat()));
                }
            }
        }
    }

    /// A runner of this model on a device of the host.
    pub fn runner(self, host: Arc<Host>, options: Options) -> Runner {
        Runner::new(self, host, options)
    }
}

//! Models: files told by their content, imported to graphs.

use crate::artifact::{self, Prepared};
use crate::error::{Error, Result};
use crate::runner::{Options, Runner};
use cupola_gguf::Gguf;
use cupola_ir::{DType, Dim, Graph, Tensor, TensorType, Value, ValueType};
use cupola_language::{Config, LanguageModel};
use cupola_onnx::{ImportError, ImportOptions};
use cupola_runtime::{Host, Identify, Key, Release};
use cupola_source::{Format, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Fixed values of symbolic dimensions, by name.
    pub set: BTreeMap<String, i64>,
    /// Operators of ONNX files that the program brings along.
    pub custom: Vec<cupola_onnx::CustomOp>,
    /// How language models keep keys and values.
    pub language: cupola_language::Options,
}

/// An input that decides the structure of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Structural {
    /// By its dtype and rank.
    Rank(String),
    /// By its dtype and extents.
    Shape(String),
    /// By its value.
    Value(String),
}

/// What the importer was told of inputs.
#[derive(Default)]
struct InputFacts {
    values: BTreeMap<String, Tensor>,
    types: BTreeMap<String, ValueType>,
    shapes: BTreeSet<String>,
}

impl InputFacts {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.types.is_empty()
    }

    /// Adds what the importer asks for; whether anything was new. Of a type first the rank is given, and the extents
    /// only when that is not enough.
    fn learn(
        &mut self,
        values: &[String],
        types: &[String],
        inputs: &BTreeMap<String, Value>,
    ) -> bool {
        let mut new = false;
        for name in values {
            if let Some(tensor) = inputs.get(name).and_then(Value::as_tensor) {
                new |= self.values.insert(name.clone(), tensor.clone()).is_none();
            }
        }
        for name in types {
            let Some(value) = inputs.get(name) else {
                continue;
            };
            let again = self.types.contains_key(name);
            let ty = match again {
                true => type_of(name, value),
                false => open_type_of(name, value),
            };
            if let Some(ty) = ty {
                new |= !again || self.shapes.insert(name.clone());
                self.types.insert(name.clone(), ty);
            }
        }
        new
    }

    fn structural(&self) -> Vec<Structural> {
        let ranks = self
            .types
            .keys()
            .filter(|n| !self.shapes.contains(*n))
            .cloned()
            .map(Structural::Rank);
        let shapes = self.shapes.iter().cloned().map(Structural::Shape);
        ranks
            .chain(shapes)
            .chain(self.values.keys().cloned().map(Structural::Value))
            .collect()
    }
}

/// The type of an input's value. Extents that differ among the elements of a sequence are symbols named after the
/// input; `None` when elements differ in more than that, or there is none to tell.
pub(crate) fn type_of(name: &str, value: &Value) -> Option<ValueType> {
    Some(match value {
        Value::Tensor(t) => t.ty().into(),
        Value::Sequence(elements) => {
            let mut types = elements.iter().map(|v| type_of(name, v));
            let first = types.next()??;
            let merged = types.try_fold(first, |all, ty| merged(name, all, ty?))?;
            ValueType::Sequence(Box::new(merged))
        }
        Value::Optional(v) => ValueType::Optional(Box::new(type_of(name, v.as_deref()?)?)),
    })
}

/// The type of an input's value with all extents as symbols named after the input.
pub(crate) fn open_type_of(name: &str, value: &Value) -> Option<ValueType> {
    fn open(name: &str, ty: ValueType) -> ValueType {
        match ty {
            ValueType::Tensor(t) => {
                let dims = (0..t.rank()).map(|a| Dim::sym(&format!("{name}.{a}")));
                TensorType::new(t.dtype, dims).into()
            }
            ValueType::Sequence(t) => ValueType::Sequence(Box::new(open(name, *t))),
            ValueType::Optional(t) => ValueType::Optional(Box::new(open(name, *t))),
        }
    }
    Some(open(name, type_of(name, value)?))
}

/// The type of values of both types.
fn merged(name: &str, a: ValueType, b: ValueType) -> Option<ValueType> {
    let (ValueType::Tensor(x), ValueType::Tensor(y)) = (&a, &b) else {
        return (a == b).then_some(a);
    };
    if x.dtype != y.dtype || x.rank() != y.rank() {
        return None;
    }
    let pairs = x.dims.iter().zip(&y.dims).enumerate();
    let dims = pairs.map(|(i, (m, n))| match m == n {
        true => m.clone(),
        false => Dim::sym(&format!("{name}.{i}")),
    });
    Some(TensorType::new(x.dtype, dims).into())
}

/// A model: something that gives a graph, perhaps one graph per value of inputs that decide its structure.
pub struct Model {
    source: ModelSource,
    options: ModelOptions,
    name: String,
    /// The files whose bytes the graph's constants are.
    files: Vec<Source>,
    /// What was compiled ahead of time.
    prepared: Option<Prepared>,
    plain: OnceLock<Arc<Graph>>,
    /// Sizes of a language model.
    config: Option<Config>,
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
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if path.is_dir() {
            return Model::language(name, path, options);
        }
        let source = Source::open(path)?;
        let format = source.format();
        let mut files = vec![source.clone()];
        let mut prepared = None;
        let source = match format {
            Format::Onnx => {
                let model = cupola_onnx::Model::read(&source)?;
                files.extend(model.files().sources().cloned());
                ModelSource::Onnx(Box::new(model))
            }
            Format::CupolaText => {
                let text = std::str::from_utf8(source.bytes());
                let text =
                    text.map_err(|e| Error::Format(format!("the text graph is not UTF-8: {e}")))?;
                ModelSource::Graph(Arc::new(cupola_ir::graph::text::parse(text)?))
            }
            Format::CupolaProgram => {
                let opened = artifact::read(&source)?;
                prepared = Some(opened.prepared);
                ModelSource::Graph(Arc::new(opened.graph))
            }
            Format::CupolaBinary => {
                ModelSource::Graph(Arc::new(cupola_native::read(source.bytes())?))
            }
            Format::Gguf if Gguf::read(&source)?.architecture().is_some() => {
                return Model::language(name, path, options);
            }
            known @ (Format::Gguf | Format::SafeTensors) => {
                return Err(Error::NoGraph(format!(
                    "{name}: {known} holds weights without a graph; check and inspect read it, it cannot be run"
                )));
            }
            _ => {
                return Err(Error::Format(format!(
                    "{} is of no known format",
                    cupola_source::quote(&name)
                )));
            }
        };
        Ok(Model {
            source,
            options,
            name,
            files,
            prepared,
            plain: OnceLock::new(),
            config: None,
        })
    }

    /// A language model: its files are data, its graph that of its architecture.
    fn language(name: String, path: &Path, options: ModelOptions) -> Result<Model> {
        let model = LanguageModel::open(path, &options.language)?;
        Ok(Model {
            source: ModelSource::Graph(Arc::new(model.graph)),
            options,
            name,
            files: model.files,
            prepared: None,
            plain: OnceLock::new(),
            config: Some(model.config),
        })
    }

    /// A model from a graph built in memory.
    pub fn from_graph(graph: Graph) -> Model {
        let name = graph.name.clone();
        Model {
            source: ModelSource::Graph(Arc::new(graph)),
            options: ModelOptions::default(),
            name,
            files: vec![],
            prepared: None,
            plain: OnceLock::new(),
            config: None,
        }
    }

    /// Sizes of a language model; `None` of any other.
    pub fn language_config(&self) -> Option<&Config> {
        self.config.as_ref()
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
        let graph = Arc::new(self.graph_with(&InputFacts::default())?);
        Ok(self.plain.get_or_init(|| graph).clone())
    }

    /// Names and types of the inputs, in order. Where the structure depends on inputs, types are as declared.
    ///
    /// # Errors
    /// What the importer finds.
    pub fn input_types(&self) -> Result<Vec<(String, ValueType)>> {
        match (self.graph(), &self.source) {
            (Err(Error::Import(ImportError::NeedsInputs { .. })), ModelSource::Onnx(m)) => {
                Ok(declared_inputs(m)?)
            }
            (Err(e), _) => Err(e),
            (Ok(g), _) => Ok(g
                .inputs()
                .iter()
                .map(|v| (g.input_name(*v).to_string(), g.ty(*v).clone()))
                .collect()),
        }
    }

    /// The graph given values of some inputs and types of others.
    fn graph_with(&self, facts: &InputFacts) -> Result<Graph> {
        match &self.source {
            ModelSource::Graph(g) => Ok(Graph::clone(g)),
            ModelSource::Onnx(m) => {
                let options = ImportOptions {
                    source: self.name.clone(),
                    known_inputs: facts
                        .values
                        .iter()
                        .map(|(n, t)| (n.clone(), t.clone()))
                        .collect(),
                    input_types: facts
                        .types
                        .iter()
                        .map(|(n, t)| (n.clone(), t.clone()))
                        .collect(),
                    custom: self.options.custom.clone(),
                    set_dims: self
                        .options
                        .set
                        .iter()
                        .map(|(n, v)| (n.clone(), *v))
                        .collect(),
                };
                Ok(cupola_onnx::import(m, &options)?.graph)
            }
        }
    }

    /// The graph for these inputs.
    ///
    /// # Errors
    /// As [`Model::graph`], and [`ImportError::NeedsInputs`] when a needed input is not given.
    pub fn graph_for_inputs(&self, inputs: &BTreeMap<String, Value>) -> Result<Graph> {
        Ok(self.graph_for(inputs)?.0)
    }

    /// The graph for these inputs, and those that decided its structure.
    pub(crate) fn graph_for(
        &self,
        inputs: &BTreeMap<String, Value>,
    ) -> Result<(Graph, Vec<Structural>)> {
        let mut facts = InputFacts::default();
        loop {
            let graph = match facts.is_empty() {
                true => self.graph().map(|g| Graph::clone(&g)),
                false => self.graph_with(&facts),
            };
            match graph {
                Err(Error::Import(ImportError::NeedsInputs { values, types })) => {
                    if !facts.learn(&values, &types, inputs) {
                        return Err(ImportError::NeedsInputs { values, types }.into());
                    }
                }
                Err(e) => return Err(e),
                Ok(graph) => return Ok((graph, facts.structural())),
            }
        }
    }

    /// Options for running the model: what is known of its files and of what was compiled before is added.
    pub(crate) fn complete(&self, options: &mut Options) {
        if let Some(prepared) = &self.prepared {
            options.release.get_or_insert_with(|| release(&self.files));
            prepared.apply(options);
        } else {
            know_files(&self.files, options);
        }
    }

    /// A runner of this model on a device of the host.
    pub fn runner(self, host: Arc<Host>, options: Options) -> Runner {
        Runner::new(self, host, options)
    }
}

/// Adds to the options what is known of the files whose bytes constants are.
pub(crate) fn know_files(files: &[Source], options: &mut Options) {
    options.release.get_or_insert_with(|| release(files));
    options.identify.get_or_insert_with(|| identify(files));
}

/// Lets pages of files go that compiled programs do not need any more.
fn release(files: &[Source]) -> Release {
    let files = files.to_vec();
    Release::new(move |bytes| files.iter().for_each(|f| f.release(bytes)))
}

/// Names constants by the files they lie in.
fn identify(files: &[Source]) -> Identify {
    let files = files.to_vec();
    Identify::new(move |bytes| {
        let name = files.iter().find_map(|f| f.identify(bytes));
        name.map(|name| Key(name.0))
    })
}

/// Names and kinds of an ONNX model's inputs as declared; extents are not looked at.
fn declared_inputs(model: &cupola_onnx::Model) -> Result<Vec<(String, ValueType)>> {
    let graph = model.graph();
    let constant = |name: &str| graph.initializer.iter().any(|t| t.name() == name);
    let mut all = vec![];
    for input in graph.input.iter().filter(|i| !constant(i.name())) {
        let element: ValueType = TensorType::scalar(DType::F32).into();
        let kind = input
            .r#type
            .as_ref()
            .map(cupola_onnx::ValueKind::of_type)
            .transpose()?;
        let ty = match kind {
            None | Some(cupola_onnx::ValueKind::Tensor) => element,
            Some(cupola_onnx::ValueKind::Sequence) => ValueType::Sequence(Box::new(element)),
            Some(cupola_onnx::ValueKind::Optional) => ValueType::Optional(Box::new(element)),
        };
        all.push((input.name().to_string(), ty));
    }
    Ok(all)
}

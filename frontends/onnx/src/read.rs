//! [`Model`]: an ONNX file decoded, checked and normalised, before operators are looked at.
//!
//! The steps: walk the bytes ([`crate::wire`]), decode them without copying tensor data, check
//! versions, functions, nodes and tensors ([`crate::check`]), then names and order
//! ([`crate::scope`]). What a [`Model`] promises is listed at the type.

use std::path::Path;

use cupola_source::Source;
use prost::Message as _;

use crate::check::{Checker, Opsets, normalise_domain};
use crate::error::{Place, ReadError};
use crate::external::ExternalFiles;
use crate::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TensorProto,
};
use crate::sparse::SparseView;
use crate::tensor::TensorView;
use crate::wire::Message;
use crate::{function, scope, sparse, tensor, wire};

/// The newest IR version that is known.
pub const MAX_IR_VERSION: i64 = 14;

/// The newest version of the standard operator set that is known.
pub const MAX_OPSET: i64 = 28;

/// An ONNX model whose structure is sound.
///
/// What holds for it, in the main graph, in every subgraph and in every function:
/// - nodes come after the nodes whose results they use, including those that their subgraphs use;
/// - every value is made once in its graph, and every use finds it there or in a graph around it;
/// - every node has an operator name and a domain that is imported (`""` is the standard one);
/// - every attribute has a type, at most one value, and the value belongs to the type;
/// - element types exist; shapes have at most 64 dimensions, none negative, and do not overflow;
/// - every stored tensor has as much data as its shape needs, and side files lie in the folder of
///   the model;
/// - functions do not call themselves, and expand to at most 2^20 nodes.
///
/// Messages are nested at most 92 deep, so recursion over subgraphs and types is safe.
#[derive(Debug)]
pub struct Model {
    proto: ModelProto,
    opsets: Opsets,
    files: ExternalFiles,
    /// Function indices in order of (domain, name, overload).
    functions: Vec<usize>,
}

impl Model {
    /// Reads the file at `path`. Side files are sought in its folder.
    ///
    /// # Errors
    /// [`ReadError`] for the first thing that is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Model, ReadError> {
        Model::read(&Source::open(path)?)
    }

    /// Reads a model from bytes. Tensor data stays a slice of them. Time and memory are bounded by
    /// the size of the structure, whatever sizes the file claims.
    ///
    /// # Errors
    /// [`ReadError`] for the first thing that is wrong.
    pub fn read(source: &Source) -> Result<Model, ReadError> {
        wire::check(source.bytes(), Message::Model).map_err(ReadError::Wire)?;
        let proto = ModelProto::decode(source.bytes().clone())?;
        let files = ExternalFiles::in_folder(source.folder());
        Model::from_proto(proto, files)
    }

    /// Checks and normalises a decoded model.
    pub(crate) fn from_proto(
        mut proto: ModelProto,
        mut files: ExternalFiles,
    ) -> Result<Model, ReadError> {
        if proto.graph.is_none() {
            return Err(ReadError::NoGraph);
        }
        let opsets = check_versions(&mut proto)?;
        for function in &mut proto.functions {
            normalise_domain(&mut function.domain);
            let own = match function.opset_import.is_empty() {
                true => opsets.clone(),
                false => imports(&mut function.opset_import)?,
            };
            let mut checker = Checker {
                files: &mut files,
                opsets: &own,
                in_function: true,
            };
            checker.function(function)?;
            scope::settle_function(function)?;
        }
        if let Some(graph) = &mut proto.graph {
            let mut checker = Checker {
                files: &mut files,
                opsets: &opsets,
                in_function: false,
            };
            checker.main_graph(graph)?;
            scope::settle_model(graph)?;
        }
        function::check_expansion(&proto)?;
        let mut functions: Vec<usize> = (0..proto.functions.len()).collect();
        functions.sort_unstable_by_key(|&index| function_key(&proto.functions[index]));
        Ok(Model {
            proto,
            opsets,
            files,
            functions,
        })
    }

    /// The checked message.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        self.proto
            .graph
            .as_ref()
            .unwrap_or_else(|| unreachable!("bug: the graph was checked"))
    }

    /// The imported version of a domain; the standard one is `""`. Functions import their own.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.opsets.get(domain).copied()
    }

    /// All imported domains with their versions, by name.
    pub fn opsets(&self) -> Vec<(&str, i64)> {
        let mut opsets: Vec<_> = self
            .opsets
            .iter()
            .map(|(domain, &version)| (domain.as_str(), version))
            .collect();
        opsets.sort_unstable();
        opsets
    }

    /// The function of the model that `node` calls, if it calls one.
    pub fn function(&self, node: &NodeProto) -> Option<&FunctionProto> {
        let functions = &self.proto.functions;
        let found = self
            .functions
            .binary_search_by_key(&function::key(node), |&index| {
                function_key(&functions[index])
            });
        found.ok().map(|index| &functions[self.functions[index]])
    }

    /// The data of a tensor of this model: a slice of the file, or converted from a typed list.
    ///
    /// # Errors
    /// [`ReadError::Tensor`] for a value that its element type cannot hold. Sizes were checked.
    pub fn tensor(&self, tensor: &TensorProto) -> Result<TensorView, ReadError> {
        tensor::view(tensor, &self.files).map_err(|fault| ReadError::Tensor {
            fault,
            place: Place::Value {
                kind: "tensor",
                name: tensor.name().to_owned(),
            },
        })
    }

    /// A sparse tensor of this model.
    ///
    /// # Errors
    /// As for [`Model::tensor`].
    pub fn sparse(&self, tensor: &SparseTensorProto) -> Result<SparseView, ReadError> {
        sparse::view(tensor, &self.files).map_err(|fault| {
            let name = tensor
                .values
                .as_ref()
                .map_or("", |values| values.name())
                .to_owned();
            ReadError::Tensor {
                fault,
                place: Place::Value {
                    kind: "sparse tensor",
                    name,
                },
            }
        })
    }

    /// The side files that hold tensor data.
    pub fn files(&self) -> &ExternalFiles {
        &self.files
    }
}

fn function_key(function: &FunctionProto) -> (&str, &str, &str) {
    (function.domain(), function.name(), function.overload())
}

fn check_versions(proto: &mut ModelProto) -> Result<Opsets, ReadError> {
    match proto.ir_version() {
        version @ ..=0 => return Err(ReadError::IrVersion(version)),
        version if version > MAX_IR_VERSION => return Err(ReadError::NewerIrVersion(version)),
        // Operator sets came with version 3; before it there was only the first.
        1 | 2 if proto.opset_import.is_empty() => {
            return Ok(Opsets::from_iter([(String::new(), 1)]));
        }
        _ => {}
    }
    if proto.opset_import.is_empty() {
        return Err(ReadError::NoOpset);
    }
    imports(&mut proto.opset_import)
}

fn imports(list: &mut [OperatorSetIdProto]) -> Result<Opsets, ReadError> {
    let mut opsets = Opsets::default();
    for import in list {
        normalise_domain(&mut import.domain);
        let (domain, version) = (import.domain().to_owned(), import.version());
        let before = opsets.insert(domain.clone(), version);
        let twice = before.is_some_and(|before| before != version);
        if version < 1 || twice {
            return Err(ReadError::Opset {
                domain,
                version,
                twice,
            });
        }
        if domain.is_empty() && version > MAX_OPSET {
            return Err(ReadError::NewerOpset(version));
        }
    }
    Ok(opsets)
}

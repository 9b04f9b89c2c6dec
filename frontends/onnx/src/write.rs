//! Building and writing ONNX models: short constructors for the messages, and files with their
//! weights inside or beside them.
//!
//! Nothing here knows operators. [`write_file`] replaces a file in one step, so that a model may be
//! written over the one that it was read from while its weights are still mapped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cupola_source::quote;
use prost::Message as _;

use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_proto::DataLocation;
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::tensor::{ElementType, TensorView};
use crate::value::to_tensor;

/// A model of one graph, with the schema version that goes with `opset`, the version of the
/// standard operators. Other domains are added to `opset_import` of the result.
pub fn model(graph: GraphProto, opset: i64) -> ModelProto {
    ModelProto {
        ir_version: Some(ir_version_for(opset)),
        producer_name: Some("cupola".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(opset),
        }],
        graph: Some(graph),
        ..Default::default()
    }
}

/// The IR version of the ONNX release that brought this operator set: what the oldest reader that
/// knows the operators also knows.
fn ir_version_for(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        _ => 14,
    }
}

/// A node of the standard domain without attributes. An empty input name leaves an operand out.
pub fn node(
    op: &str,
    inputs: impl IntoIterator<Item = impl Into<String>>,
    outputs: impl IntoIterator<Item = impl Into<String>>,
) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.into_iter().map(Into::into).collect(),
        output: outputs.into_iter().map(Into::into).collect(),
        ..Default::default()
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(TensorView),
    Graph(GraphProto),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Graphs(Vec<GraphProto>),
    Type(TypeProto),
}

impl From<f32> for AttributeValue {
    fn from(value: f32) -> AttributeValue {
        AttributeValue::Float(value)
    }
}

impl From<i64> for AttributeValue {
    fn from(value: i64) -> AttributeValue {
        AttributeValue::Int(value)
    }
}

impl From<&str> for AttributeValue {
    fn from(value: &str) -> AttributeValue {
        AttributeValue::String(Bytes::copy_from_slice(value.as_bytes()))
    }
}

impl From<Vec<i64>> for AttributeValue {
    fn from(value: Vec<i64>) -> AttributeValue {
        AttributeValue::Ints(value)
    }
}

impl From<Vec<f32>> for AttributeValue {
    fn from(value: Vec<f32>) -> AttributeValue {
        AttributeValue::Floats(value)
    }
}

/// An attribute with its type stated.
pub fn attribute(name: &str, value: impl Into<AttributeValue>) -> AttributeProto {
    let mut proto = AttributeProto {
        name: Some(name.to_owned()),
        ..Default::default()
    };
    let kind = match value.into() {
        AttributeValue::Float(value) => {
            proto.f = Some(value);
            AttributeType::Float
        }
        AttributeValue::Int(value) => {
            proto.i = Some(value);
            AttributeType::Int
        }
        AttributeValue::String(value) => {
            proto.s = Some(value);
            AttributeType::String
        }
        AttributeValue::Tensor(value) => {
            proto.t = Some(Box::new(to_tensor(&value)));
            AttributeType::Tensor
        }
        AttributeValue::Graph(value) => {
            proto.g = Some(Box::new(value));
            AttributeType::Graph
        }
        AttributeValue::Floats(values) => {
            proto.floats = values;
            AttributeType::Floats
        }
        AttributeValue::Ints(values) => {
            proto.ints = values;
            AttributeType::Ints
        }
        AttributeValue::Strings(values) => {
            proto.strings = values;
            AttributeType::Strings
        }
        AttributeValue::Graphs(values) => {
            proto.graphs = values;
            AttributeType::Graphs
        }
        AttributeValue::Type(value) => {
            proto.tp = Some(Box::new(value));
            AttributeType::TypeProto
        }
    };
    proto.r#type = Some(kind as i32);
    proto
}

/// A dimension of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A fixed size.
    Size(usize),
    /// A name; dimensions of one name have one size.
    Name(String),
    /// Anything.
    Unknown,
}

/// The type of tensors of this element type and shape.
pub fn tensor_type(element: ElementType, dims: &[Extent]) -> TypeProto {
    let dim = |extent: &Extent| Dimension {
        denotation: None,
        value: match extent {
            Extent::Size(size) => Some(dimension::Value::DimValue(*size as i64)),
            Extent::Name(name) => Some(dimension::Value::DimParam(name.clone())),
            Extent::Unknown => None,
        },
    };
    let shape = TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(element as i32),
        shape: Some(shape),
    };
    type_of(type_proto::Value::TensorType(tensor))
}

/// The type of sequences of values of type `element`.
pub fn sequence_type(element: TypeProto) -> TypeProto {
    let sequence = type_proto::Sequence {
        elem_type: Some(Box::new(element)),
    };
    type_of(type_proto::Value::SequenceType(Box::new(sequence)))
}

/// The type of a value of type `element` that may be absent.
pub fn optional_type(element: TypeProto) -> TypeProto {
    let optional = type_proto::Optional {
        elem_type: Some(Box::new(element)),
    };
    type_of(type_proto::Value::OptionalType(Box::new(optional)))
}

fn type_of(value: type_proto::Value) -> TypeProto {
    TypeProto {
        denotation: None,
        value: Some(value),
    }
}

/// A graph input, output or annotated value.
pub fn value_info(name: &str, kind: TypeProto) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(kind),
        ..Default::default()
    }
}

/// An initializer. The data is not copied until the model is written.
pub fn initializer(name: &str, tensor: &TensorView) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        ..to_tensor(tensor)
    }
}

/// Where [`write_file`] puts the data of initializers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// In the model file while that stays below [`MAX_FILE_SIZE`], which other readers need; else
    /// beside it.
    Auto,
    /// In the model file, whatever its size.
    Inside,
    /// In a file beside the model, named like it with `.data` appended.
    Beside,
}

/// Protobuf readers other than this one take at most 2 GiB; a little less leaves room for what
/// tools add.
pub const MAX_FILE_SIZE: usize = (2 << 30) - (1 << 20);

/// Initializers smaller than this stay in the model: shapes and scalars that readers look at while
/// they load it.
const MIN_BESIDE_SIZE: usize = 1024;

/// Weights in a side file begin at multiples of this, so that they can be mapped and vector code
/// can use them in place.
const SIDE_ALIGNMENT: u64 = 4096;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system refused; nothing was changed.
    #[error("cannot write the file: {error}, {}", quote(&path.to_string_lossy()))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The path has no file name that can be written into a model.
    #[error("the path has no file name in UTF-8, {}", quote(&.0.to_string_lossy()))]
    Name(PathBuf),
}

/// Writes `model` to `path`, its large initializers where `weights` says. Existing files are
/// replaced only once the new ones are complete.
///
/// # Errors
/// [`WriteError`] when a file cannot be written.
pub fn write_file(mut model: ModelProto, path: &Path, weights: Weights) -> Result<(), WriteError> {
    let beside = match weights {
        Weights::Auto => model.encoded_len() > MAX_FILE_SIZE,
        Weights::Inside => false,
        Weights::Beside => true,
    };
    if beside {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = format!(
            "{}.data",
            name.ok_or_else(|| WriteError::Name(path.to_owned()))?
        );
        let side_path = path.with_file_name(&name);
        replace(&side_path, |out| match &mut model.graph {
            Some(graph) => move_weights(graph, &name, out),
            None => Ok(()),
        })?;
    }
    replace(path, |out| out.write_all(&model.encode_to_vec()))
}

/// Writes the data of the large initializers to `out` and leaves references to the file `name`.
fn move_weights(graph: &mut GraphProto, name: &str, out: &mut dyn Write) -> io::Result<()> {
    let mut at = 0u64;
    for tensor in &mut graph.initializer {
        let large = tensor
            .raw_data
            .take_if(|data| data.len() >= MIN_BESIDE_SIZE);
        let Some(data) = large else { continue };
        let begin = at.next_multiple_of(SIDE_ALIGNMENT);
        io::copy(&mut io::Read::take(io::repeat(0), begin - at), out)?;
        out.write_all(&data)?;
        at = begin + data.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        tensor.data_location = Some(DataLocation::External as i32);
        tensor.external_data = vec![
            entry("location", name.to_owned()),
            entry("offset", begin.to_string()),
            entry("length", data.len().to_string()),
        ];
    }
    Ok(())
}

/// Writes a file beside `path` and then gives it that name.
fn replace(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let failed = |error| WriteError::Io {
        path: path.to_owned(),
        error,
    };
    let name = path
        .file_name()
        .ok_or_else(|| WriteError::Name(path.to_owned()))?;
    let mut partial = OsString::from(".");
    partial.push(name);
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(partial);
    let write = || {
        let mut out = BufWriter::new(File::create(&partial)?);
        content(&mut out)?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
        failed(error)
    })
}

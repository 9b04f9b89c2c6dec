//! Values in files of their own (`input_0.pb`): tensors, sequences and optionals, read and written.

use bytes::Bytes;
use prost::Message as _;

use crate::error::{Place, ReadError};
use crate::external::ExternalFiles;
use crate::proto::{
    OptionalProto, SequenceProto, TensorProto, TypeProto, optional_proto, sequence_proto,
    type_proto,
};
use crate::tensor::{self, TensorData, TensorView};
use crate::wire::{self, Message};

/// A value as graph inputs and outputs have it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(TensorView),
    /// Values of one kind, in order.
    Sequence(Vec<Value>),
    /// A value, or none.
    Optional(Option<Box<Value>>),
}

/// Which of the three messages a value file holds: the file does not say so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A `TensorProto`.
    Tensor,
    /// A `SequenceProto`.
    Sequence,
    /// An `OptionalProto`.
    Optional,
}

impl ValueKind {
    /// The kind of value that a graph input or output of type `kind` has.
    ///
    /// # Errors
    /// [`ReadError::ValueKind`] for maps, sparse tensors and opaque types.
    pub fn of_type(kind: &TypeProto) -> Result<ValueKind, ReadError> {
        match &kind.value {
            None | Some(type_proto::Value::TensorType(_)) => Ok(ValueKind::Tensor),
            Some(type_proto::Value::SequenceType(_)) => Ok(ValueKind::Sequence),
            Some(type_proto::Value::OptionalType(_)) => Ok(ValueKind::Optional),
            Some(type_proto::Value::MapType(_)) => Err(ReadError::ValueKind("maps")),
            Some(type_proto::Value::SparseTensorType(_)) => {
                Err(ReadError::ValueKind("sparse tensors"))
            }
            Some(type_proto::Value::OpaqueType(_)) => Err(ReadError::ValueKind("opaque values")),
        }
    }
}

impl Value {
    /// Reads a value file. Raw tensor data stays a slice of `bytes`.
    ///
    /// # Errors
    /// [`ReadError`] for bytes that are not such a message, for tensors whose data does not fit
    /// their shape, and for kinds that are not supported. Side files are never opened.
    pub fn read(bytes: &Bytes, kind: ValueKind) -> Result<Value, ReadError> {
        let message = match kind {
            ValueKind::Tensor => Message::Tensor,
            ValueKind::Sequence => Message::Sequence,
            ValueKind::Optional => Message::Optional,
        };
        wire::check(bytes, message).map_err(ReadError::Wire)?;
        match kind {
            ValueKind::Tensor => from_tensor(&TensorProto::decode(bytes.clone())?),
            ValueKind::Sequence => from_sequence(&SequenceProto::decode(bytes.clone())?),
            ValueKind::Optional => from_optional(&OptionalProto::decode(bytes.clone())?),
        }
    }

    /// The bytes of a value file with this value. Tensors are written as raw data.
    pub fn to_bytes(&self, name: &str) -> Vec<u8> {
        let name = (!name.is_empty()).then(|| name.to_owned());
        match self {
            Value::Tensor(tensor) => TensorProto {
                name,
                ..to_tensor(tensor)
            }
            .encode_to_vec(),
            Value::Sequence(values) => SequenceProto {
                name,
                ..to_sequence(values)
            }
            .encode_to_vec(),
            Value::Optional(value) => OptionalProto {
                name,
                ..to_optional(value.as_deref())
            }
            .encode_to_vec(),
        }
    }
}

fn from_tensor(proto: &TensorProto) -> Result<Value, ReadError> {
    let view = tensor::view(proto, &ExternalFiles::none());
    let place = || Place::Value {
        kind: "tensor",
        name: proto.name().to_owned(),
    };
    view.map(Value::Tensor).map_err(|fault| ReadError::Tensor {
        fault,
        place: place(),
    })
}

fn from_sequence(proto: &SequenceProto) -> Result<Value, ReadError> {
    use sequence_proto::DataType;
    if !proto.map_values.is_empty() || proto.elem_type == Some(DataType::Map as i32) {
        return Err(ReadError::ValueKind("maps"));
    }
    if !proto.sparse_tensor_values.is_empty()
        || proto.elem_type == Some(DataType::SparseTensor as i32)
    {
        return Err(ReadError::ValueKind("sparse tensors"));
    }
    let tensors = proto.tensor_values.iter().map(from_tensor);
    let sequences = proto.sequence_values.iter().map(from_sequence);
    let optionals = proto.optional_values.iter().map(from_optional);
    let kinds = [
        (DataType::Tensor, proto.tensor_values.len()),
        (DataType::Sequence, proto.sequence_values.len()),
        (DataType::Optional, proto.optional_values.len()),
    ];
    if kinds
        .iter()
        .any(|&(kind, len)| len > 0 && proto.elem_type() != kind as i32)
    {
        return Err(ReadError::Value(
            "a sequence has elements of another kind than it states",
        ));
    }
    Ok(Value::Sequence(
        tensors
            .chain(sequences)
            .chain(optionals)
            .collect::<Result<_, _>>()?,
    ))
}

fn from_optional(proto: &OptionalProto) -> Result<Value, ReadError> {
    use optional_proto::DataType;
    let missing = || ReadError::Value("an optional states a kind of value and has none of it");
    let kind = DataType::try_from(proto.elem_type())
        .map_err(|_| ReadError::Value("an optional states a kind of value that does not exist"))?;
    let value = match kind {
        DataType::Undefined => return Ok(Value::Optional(None)),
        DataType::Tensor => proto.tensor_value.as_ref().map(from_tensor),
        DataType::Sequence => proto.sequence_value.as_ref().map(from_sequence),
        DataType::Optional => proto.optional_value.as_deref().map(from_optional),
        DataType::Map => return Err(ReadError::ValueKind("maps")),
        DataType::SparseTensor => return Err(ReadError::ValueKind("sparse tensors")),
    };
    Ok(Value::Optional(Some(Box::new(value.ok_or_else(missing)??))))
}

/// The message for a tensor, without a name.
pub fn to_tensor(tensor: &TensorView) -> TensorProto {
    let mut proto = TensorProto {
        dims: tensor.dims.iter().map(|&dim| dim as i64).collect(),
        data_type: Some(tensor.element as i32),
        ..Default::default()
    };
    match &tensor.data {
        TensorData::Raw(bytes) => proto.raw_data = Some(bytes.clone()),
        TensorData::Strings(strings) => proto.string_data = strings.clone(),
    }
    proto
}

fn to_sequence(values: &[Value]) -> SequenceProto {
    let mut proto = SequenceProto::default();
    // An empty sequence is taken for one of tensors.
    let mut kind = sequence_proto::DataType::Tensor;
    for value in values {
        match value {
            Value::Tensor(tensor) => proto.tensor_values.push(to_tensor(tensor)),
            Value::Sequence(values) => {
                kind = sequence_proto::DataType::Sequence;
                proto.sequence_values.push(to_sequence(values));
            }
            Value::Optional(value) => {
                kind = sequence_proto::DataType::Optional;
                proto.optional_values.push(to_optional(value.as_deref()));
            }
        }
    }
    proto.elem_type = Some(kind as i32);
    proto
}

fn to_optional(value: Option<&Value>) -> OptionalProto {
    let mut proto = OptionalProto::default();
    let kind = match value {
        None => optional_proto::DataType::Undefined,
        Some(Value::Tensor(tensor)) => {
            proto.tensor_value = Some(to_tensor(tensor));
            optional_proto::DataType::Tensor
        }
        Some(Value::Sequence(values)) => {
            proto.sequence_value = Some(to_sequence(values));
            optional_proto::DataType::Sequence
        }
        Some(Value::Optional(value)) => {
            proto.optional_value = Some(Box::new(to_optional(value.as_deref())));
            optional_proto::DataType::Optional
        }
    };
    proto.elem_type = Some(kind as i32);
    proto
}

//! A bounded walk over the protobuf wire format, before anything is decoded.
//!
//! The walk visits every message of a known kind without allocating, and so can promise what the
//! decoder cannot: nesting has a limit, every length lies inside the message around it, and the
//! decoded form fits a budget. A two-byte field may otherwise become a structure of hundreds of
//! bytes. Payloads (weights) are stepped over, so the time depends on the structure, not on the
//! file's size.

use crate::proto;
use std::mem::size_of;

/// Messages may be nested this deep. A subgraph takes three levels (node, attribute, graph), so 30
/// subgraphs inside each other fit. The decoder's own limit is 100.
pub(crate) const MAX_DEPTH: usize = 92;

/// The decoded structures, without tensor data, may take this many bytes. A node with its names
/// and attributes takes about a kilobyte, so this is half a million nodes.
pub(crate) const MAX_DECODED_SIZE: u64 = 512 << 20;

/// What is wrong with the bytes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireFault {
    /// What is wrong.
    pub kind: WireFaultKind,
    /// Offset of the field in the file, in bytes.
    pub offset: u64,
}

/// The ways in which bytes fail to be a message that we accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireFaultKind {
    /// A field's key or length is not a valid varint, or its number or wire type does not exist.
    #[error("not a protobuf message: invalid field")]
    Key,
    /// A field runs past the end of the message around it.
    #[error("the file is cut: a field runs past the end of its message")]
    Truncated,
    /// A group, which no ONNX message has.
    #[error("not an ONNX message: it contains a protobuf group")]
    Group,
    /// A message inside another where a plain value belongs, or the reverse.
    #[error("not an ONNX message: a field has the wrong wire type")]
    WrongType,
    /// Nested too deeply. A limit, not a mistake.
    #[error("messages are nested more than {MAX_DEPTH} deep")]
    Depth,
    /// The decoded form would take too much memory. A limit, not a mistake.
    #[error("the model's structure would take more than {} MiB", MAX_DECODED_SIZE >> 20)]
    Size,
}

/// The kinds of message with message fields. `Leaf` is any other message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TensorType,
    WrapperType,
    Shape,
    Function,
    Training,
    Annotation,
    DeviceConfiguration,
    ShardingSpec,
    ShardedDim,
    Sequence,
    Map,
    Optional,
    Leaf,
}

impl Message {
    /// What the length-delimited field `number` holds: `Some` for a message, `None` for a string,
    /// bytes, a packed list or a field that is not known.
    fn child(self, number: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, number) {
            (Model, 7) => Graph,
            (Model, 8 | 14 | 26) => Leaf,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Training, 1 | 2) => Graph,
            (Training, 3 | 4) => Leaf,
            (Graph, 1) => Node,
            (Graph, 5) => Tensor,
            (Graph, 15) => SparseTensor,
            (Graph, 11..=13) => ValueInfo,
            (Graph, 14) => Annotation,
            (Graph, 16) => Leaf,
            (Annotation, 2) => Leaf,
            (Function, 7) => Node,
            (Function, 9 | 14) => Leaf,
            (Function, 11) => Attribute,
            (Function, 12) => ValueInfo,
            (Node, 5) => Attribute,
            (Node, 9) => Leaf,
            (Node, 10) => DeviceConfiguration,
            (DeviceConfiguration, 2) => ShardingSpec,
            (ShardingSpec, 3) => Leaf,
            (ShardingSpec, 4) => ShardedDim,
            (ShardedDim, 2) => Leaf,
            (Attribute, 5 | 10) => Tensor,
            (Attribute, 6 | 11) => Graph,
            (Attribute, 22 | 23) => SparseTensor,
            (Attribute, 14 | 15) => Type,
            (Tensor, 3 | 13 | 16) => Leaf,
            (SparseTensor, 1 | 2) => Tensor,
            (ValueInfo, 2) => Type,
            (ValueInfo, 4) => Leaf,
            (Type, 1 | 8) => TensorType,
            (Type, 4 | 5 | 9) => WrapperType,
            (Type, 7) => Leaf,
            (TensorType, 2) => Shape,
            (WrapperType, 1 | 2) => Type,
            (Shape, 1) => Leaf,
            (Sequence, 3) => Tensor,
            (Sequence, 4) => SparseTensor,
            (Sequence, 5) => Sequence,
            (Sequence, 6) => Map,
            (Sequence, 7) => Optional,
            (Map, 5) => Sequence,
            (Optional, 3) => Tensor,
            (Optional, 4) => SparseTensor,
            (Optional, 5) => Sequence,
            (Optional, 6) => Map,
            (Optional, 7) => Optional,
            _ => return None,
        })
    }

    /// Bytes that one decoded message takes, without what it points to.
    fn decoded_size(self) -> usize {
        match self {
            Message::Model => size_of::<proto::ModelProto>(),
            Message::Graph => size_of::<proto::GraphProto>(),
            Message::Node => size_of::<proto::NodeProto>(),
            Message::Attribute => size_of::<proto::AttributeProto>(),
            Message::Tensor => size_of::<proto::TensorProto>(),
            Message::SparseTensor => size_of::<proto::SparseTensorProto>(),
            Message::ValueInfo => size_of::<proto::ValueInfoProto>(),
            Message::Type => size_of::<proto::TypeProto>(),
            Message::TensorType => size_of::<proto::type_proto::Tensor>(),
            Message::WrapperType => size_of::<proto::type_proto::Map>(),
            Message::Shape => size_of::<proto::TensorShapeProto>(),
            Message::Function => size_of::<proto::FunctionProto>(),
            Message::Training => size_of::<proto::TrainingInfoProto>(),
            Message::Annotation => size_of::<proto::TensorAnnotation>(),
            Message::DeviceConfiguration => size_of::<proto::NodeDeviceConfigurationProto>(),
            Message::ShardingSpec => size_of::<proto::ShardingSpecProto>(),
            Message::ShardedDim => size_of::<proto::ShardedDimProto>(),
            Message::Sequence => size_of::<proto::SequenceProto>(),
            Message::Map => size_of::<proto::MapProto>(),
            Message::Optional => size_of::<proto::OptionalProto>(),
            // The largest of them: `DeviceConfigurationProto`.
            Message::Leaf => size_of::<proto::DeviceConfigurationProto>(),
        }
    }
}

/// A string or a list costs its own structure besides its content.
const STRING_SIZE: u64 = size_of::<bytes::Bytes>() as u64;

/// Walks `bytes` as a message of kind `root`.
///
/// # Errors
/// The first fault in file order.
pub(crate) fn check(bytes: &[u8], root: Message) -> Result<(), WireFault> {
    let mut enclosing = [(Message::Leaf, 0usize); MAX_DEPTH];
    let mut depth = 0;
    let (mut message, mut end) = (root, bytes.len());
    let mut at = 0;
    let mut budget = MAX_DECODED_SIZE;
    loop {
        while at == end {
            if depth == 0 {
                return Ok(());
            }
            depth -= 1;
            (message, end) = enclosing[depth];
        }
        let start = at;
        let fault = |kind| WireFault {
            kind,
            offset: start as u64,
        };
        let key = varint(bytes, &mut at, end).ok_or(fault(WireFaultKind::Key))?;
        let number = key >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(fault(WireFaultKind::Key));
        }
        let child = message.child(number);
        if child.is_some() && key & 7 != 2 {
            return Err(fault(WireFaultKind::WrongType));
        }
        let skipped = match key & 7 {
            0 => {
                varint(bytes, &mut at, end).ok_or(fault(WireFaultKind::Key))?;
                0
            }
            1 => 8,
            2 => varint(bytes, &mut at, end).ok_or(fault(WireFaultKind::Key))?,
            3 | 4 => return Err(fault(WireFaultKind::Group)),
            5 => 4,
            _ => return Err(fault(WireFaultKind::Key)),
        };
        if skipped > (end - at) as u64 {
            return Err(fault(WireFaultKind::Truncated));
        }
        let field_end = at + skipped as usize;
        let cost = match (child, key & 7) {
            (Some(child), _) => child.decoded_size() as u64,
            (None, 2) => STRING_SIZE,
            (None, _) => 0,
        };
        budget = budget.checked_sub(cost).ok_or(fault(WireFaultKind::Size))?;
        let Some(child) = child else {
            at = field_end;
            continue;
        };
        if depth == MAX_DEPTH {
            return Err(fault(WireFaultKind::Depth));
        }
        enclosing[depth] = (message, end);
        depth += 1;
        (message, end) = (child, field_end);
    }
}

/// A base-128 number at `at`, which moves past it. `None` past `end` or with more than 64 bits.
fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0;
    for (index, &byte) in bytes[*at..end].iter().take(10).enumerate() {
        if index == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *at += index + 1;
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn kind(bytes: &[u8]) -> Option<WireFaultKind> {
        check(bytes, Message::Model).err().map(|fault| fault.kind)
    }

    #[test]
    fn faults_name_their_offset() {
        assert_eq!(kind(b""), None);
        assert_eq!(kind(b"\x08\x08\x3a\x00"), None);
        let cut = check(b"\x08\x08\x3a\x05\x12\x01", Message::Model);
        assert_eq!(
            cut,
            Err(WireFault {
                kind: WireFaultKind::Truncated,
                offset: 2
            })
        );
        // The node's name fits the file, but not the node.
        let inner = check(b"\x3a\x05\x0a\x02\x1a\x02aaaa", Message::Model);
        assert_eq!(
            inner,
            Err(WireFault {
                kind: WireFaultKind::Truncated,
                offset: 4
            })
        );
        assert_eq!(kind(b"\x0b\x0b"), Some(WireFaultKind::Group));
        assert_eq!(kind(b"\x00\x00"), Some(WireFaultKind::Key));
        assert_eq!(kind(b"\x38\x00"), Some(WireFaultKind::WrongType));
        assert_eq!(kind(&[0xff; 12]), Some(WireFaultKind::Key));
        assert_eq!(
            kind(b"\x3a\xff\xff\xff\xff\x07"),
            Some(WireFaultKind::Truncated)
        );
    }

    #[test]
    fn depth_within_the_limit_is_decoded_and_beyond_it_refused() {
        let nested = |levels: usize| {
            let mut kind = proto::TypeProto::default();
            for _ in 0..levels {
                let inner = Some(Box::new(kind));
                let sequence = proto::type_proto::Sequence { elem_type: inner };
                let value = proto::type_proto::Value::SequenceType(Box::new(sequence));
                kind = proto::TypeProto {
                    denotation: None,
                    value: Some(value),
                };
            }
            let info = proto::ValueInfoProto {
                r#type: Some(kind),
                ..Default::default()
            };
            let graph = proto::GraphProto {
                input: vec![info],
                ..Default::default()
            };
            let model = proto::ModelProto {
                graph: Some(graph),
                ..Default::default()
            };
            model.encode_to_vec()
        };
        let fits = nested(44);
        assert_eq!(kind(&fits), None);
        assert!(
            proto::ModelProto::decode(&fits[..]).is_ok(),
            "the decoder must not be stricter"
        );
        assert_eq!(kind(&nested(45)), Some(WireFaultKind::Depth));
    }

    #[test]
    fn small_fields_that_decode_to_large_structures_have_a_budget() {
        let count = MAX_DECODED_SIZE as usize / size_of::<proto::NodeProto>() + 1;
        let mut bytes = vec![0x3a];
        prost::encoding::encode_varint(count as u64 * 2, &mut bytes);
        bytes.extend(std::iter::repeat_n([0x0a, 0x00], count).flatten());
        assert_eq!(kind(&bytes), Some(WireFaultKind::Size));
    }
}

//! [`ReadError`]: everything that can be wrong with an ONNX file before operators are looked at.

use std::fmt;

use cupola_source::{Fault, SourceError, clip, quote};

use crate::function::{MAX_CALL_DEPTH, MAX_EXPANDED_NODES};
use crate::proto::NodeProto;
use crate::read::{MAX_IR_VERSION, MAX_OPSET};
use crate::tensor::TensorFault;
use crate::wire::{WireFault, WireFaultKind};

/// Why an ONNX file was refused. `Display` is one line, `what, where`, of at most about 400 bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// User input: the file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// User input or limit: the bytes are not a message that we accept.
    #[error("{}, at byte {}", .0.kind, .0.offset)]
    Wire(WireFault),
    /// User input: a message that the decoder refuses, such as a name that is not UTF-8.
    #[error("not an ONNX message: {0}")]
    Decode(String),
    /// User input: nothing in it.
    #[error("the model has no graph")]
    NoGraph,
    /// User input: `ir_version` is missing or not positive.
    #[error("the model has no valid IR version: {0}")]
    IrVersion(i64),
    /// Unsupported: written for a newer schema.
    #[error("IR version {0} is newer than {MAX_IR_VERSION}, the newest one known")]
    NewerIrVersion(i64),
    /// User input: no operator set is imported.
    #[error("the model imports no operator set")]
    NoOpset,
    /// User input: an operator set version that is not positive, or two for one domain.
    #[error("operator set {} is imported with version {version}{}", quote(domain), if *twice { " after another version" } else { "" })]
    Opset {
        /// Domain of the operator set; empty for the standard one.
        domain: String,
        /// The version that the model asks for.
        version: i64,
        /// Whether another version was imported before.
        twice: bool,
    },
    /// Unsupported: a version of the standard operators that is not known.
    #[error("operator set version {0} is newer than {MAX_OPSET}, the newest one known")]
    NewerOpset(i64),
    /// User input: a node of a domain that is not imported.
    #[error("the operator set {} is not imported, {place}", quote(domain))]
    Domain {
        /// The domain.
        domain: String,
        /// Where it is used.
        place: Place,
    },
    /// User input: a thing that must have a name has none.
    #[error("{what} has no name, {place}")]
    Unnamed {
        /// What lacks the name.
        what: &'static str,
        /// Where it is.
        place: Place,
    },
    /// User input: two values of one name in a graph.
    #[error("the value {} is made twice, {place}", quote(name))]
    Duplicate {
        /// The name.
        name: String,
        /// The second definition.
        place: Place,
    },
    /// User input: a value that nothing makes.
    #[error("the value {} is not made anywhere, {place}", quote(name))]
    Undefined {
        /// The name.
        name: String,
        /// Where it is used.
        place: Place,
    },
    /// User input: nodes that need each other.
    #[error("nodes need each other's results in a cycle, {place}")]
    Cycle {
        /// One of the nodes.
        place: Place,
    },
    /// User input: a type that is not one.
    #[error("{what}, {place}")]
    Type {
        /// What is wrong with it.
        what: TypeFault,
        /// The value that has the type.
        place: Place,
    },
    /// User input: an attribute that contradicts itself.
    #[error("attribute {} {what}, {place}", quote(attribute))]
    Attribute {
        /// Name of the attribute.
        attribute: String,
        /// What is wrong with it.
        what: &'static str,
        /// The node or function.
        place: Place,
    },
    /// A stored tensor that cannot be used; the fault says whose fault it is.
    #[error("{fault}, {place}")]
    Tensor {
        /// What is wrong with it.
        fault: TensorFault,
        /// The tensor.
        place: Place,
    },
    /// User input: two functions of one name.
    #[error("the function is defined twice, {place}")]
    FunctionTwice {
        /// The function.
        place: Place,
    },
    /// User input: a function that calls itself, directly or through others.
    #[error("the function calls itself, {place}")]
    Recursion {
        /// The function.
        place: Place,
    },
    /// Limit: functions that call each other too deeply.
    #[error("function calls are nested more than {MAX_CALL_DEPTH} deep, {place}")]
    CallDepth {
        /// A function of the chain.
        place: Place,
    },
    /// Limit: too many nodes once functions are expanded.
    #[error("the model has more than {MAX_EXPANDED_NODES} nodes once its functions are expanded")]
    Expansion,
    /// Unsupported: a kind of value that no test data here has.
    #[error("{0} are not supported, in a value file")]
    ValueKind(&'static str),
    /// User input: a value file that contradicts itself.
    #[error("{0}, in a value file")]
    Value(&'static str),
}

/// What can be wrong with a `TypeProto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeFault {
    /// A value that must have a type has none.
    #[error("the type is missing")]
    Missing,
    /// No element type of this number.
    #[error("element type {0} does not exist")]
    ElementType(i32),
    /// A dimension below -1. (-1 is taken as unknown, as many writers mean it.)
    #[error("a dimension is {0}")]
    NegativeDim(i64),
    /// More than 64 dimensions.
    #[error("{0} dimensions are too many")]
    Rank(usize),
    /// The number of elements does not fit into 64 bits.
    #[error("the number of elements overflows")]
    Overflow,
}

impl ReadError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            ReadError::Source(error) => error.fault(),
            ReadError::Wire(fault) => match fault.kind {
                WireFaultKind::Depth | WireFaultKind::Size => Fault::Limit,
                WireFaultKind::Key
                | WireFaultKind::Truncated
                | WireFaultKind::Group
                | WireFaultKind::WrongType => Fault::Malformed,
            },
            ReadError::Tensor { fault, .. } => fault.fault(),
            ReadError::Type {
                what: TypeFault::Rank(_),
                ..
            }
            | ReadError::CallDepth { .. }
            | ReadError::Expansion => Fault::Limit,
            ReadError::NewerIrVersion(_) | ReadError::NewerOpset(_) | ReadError::ValueKind(_) => {
                Fault::Unsupported
            }
            ReadError::Decode(_)
            | ReadError::NoGraph
            | ReadError::IrVersion(_)
            | ReadError::NoOpset
            | ReadError::Opset { .. }
            | ReadError::Domain { .. }
            | ReadError::Unnamed { .. }
            | ReadError::Duplicate { .. }
            | ReadError::Undefined { .. }
            | ReadError::Cycle { .. }
            | ReadError::Type { .. }
            | ReadError::Attribute { .. }
            | ReadError::FunctionTwice { .. }
            | ReadError::Recursion { .. }
            | ReadError::Value(_) => Fault::Malformed,
        }
    }
}

impl From<prost::DecodeError> for ReadError {
    fn from(error: prost::DecodeError) -> ReadError {
        ReadError::Decode(clip(&error.to_string(), 240))
    }
}

/// Where in a model something is: words and names, printed quoted and cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A node, by its operator and its name or else its first output.
    Node {
        /// Operator name.
        op: Box<str>,
        /// Name of the node; empty when it has none.
        name: Box<str>,
        /// First output that has a name; empty when there is none.
        output: Box<str>,
    },
    /// An attribute of a node.
    Attribute {
        /// Name of the attribute.
        name: String,
        /// The node.
        node: Box<Place>,
    },
    /// A graph, by name.
    Graph(String),
    /// An input, output or initializer of a graph, or a value whose type is stated.
    Value {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A function.
    Function {
        /// Its domain.
        domain: String,
        /// Its name.
        name: String,
    },
    /// The model as a whole.
    Model,
}

impl Place {
    /// The place of `node`.
    pub fn of_node(node: &NodeProto) -> Place {
        let output = node.output.iter().find(|output| !output.is_empty());
        Place::Node {
            op: node.op_type().into(),
            name: node.name().into(),
            output: output.map_or("", String::as_str).into(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Node { op, name, output } if name.is_empty() => {
                write!(f, "{} node that makes {}", quote(op), quote(output))
            }
            Place::Node { op, name, .. } => write!(f, "{} node {}", quote(op), quote(name)),
            Place::Attribute { name, node } => write!(f, "attribute {} of {node}", quote(name)),
            Place::Graph(name) => write!(f, "graph {}", quote(name)),
            Place::Value { kind, name } => write!(f, "{kind} {}", quote(name)),
            Place::Function { domain, name } => {
                write!(f, "function {} of domain {}", quote(name), quote(domain))
            }
            Place::Model => f.write_str("in the model"),
        }
    }
}

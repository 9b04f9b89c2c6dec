//! Rules for single nodes, attributes, types and tensors that need no knowledge of operators, and
//! the few normalisations that save every later reader a case:
//!
//! - the domain `ai.onnx` is written as the empty string;
//! - every attribute states its type;
//! - a declared dimension of -1, which many writers mean as unknown, has no value.

use std::collections::{HashMap, HashSet};

use crate::error::{Place, ReadError, TypeFault};
use crate::external::ExternalFiles;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_shape_proto::dimension;
use crate::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::tensor::{ElementType, MAX_RANK};
use crate::{function, sparse, tensor};

/// Imported operator sets: domain to version.
pub(crate) type Opsets = HashMap<String, i64>;

/// `ai.onnx` is another way to write the standard domain.
pub(crate) fn normalise_domain(domain: &mut Option<String>) {
    if domain.as_deref() == Some("ai.onnx") {
        *domain = None;
    }
}

/// Walks the graphs of one model. `opsets` are those of the model or of the function it is in.
pub(crate) struct Checker<'a> {
    pub(crate) files: &'a mut ExternalFiles,
    pub(crate) opsets: &'a Opsets,
    /// Whether attributes may refer to attributes of a function around them.
    pub(crate) in_function: bool,
}

impl Checker<'_> {
    /// The main graph: its inputs must have types.
    pub(crate) fn main_graph(&mut self, graph: &mut GraphProto) -> Result<(), ReadError> {
        for input in &graph.input {
            let kind = input.r#type.as_ref().and_then(|kind| kind.value.as_ref());
            let known = match kind {
                None => false,
                Some(type_proto::Value::TensorType(tensor)) => tensor.elem_type() != 0,
                Some(_) => true,
            };
            if !known {
                let place = Place::Value {
                    kind: "input",
                    name: input.name().to_owned(),
                };
                return Err(ReadError::Type {
                    what: TypeFault::Missing,
                    place,
                });
            }
        }
        self.graph(graph)
    }

    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), ReadError> {
        let kinds = [
            ("input", &mut graph.input),
            ("output", &mut graph.output),
            ("value", &mut graph.value_info),
        ];
        for (kind, infos) in kinds {
            for info in infos {
                if info.name().is_empty() {
                    let place = Place::Graph(graph.name.clone().unwrap_or_default());
                    return Err(ReadError::Unnamed { what: kind, place });
                }
                check_value(info, kind)?;
            }
        }
        let unnamed = |what| ReadError::Unnamed {
            what,
            place: Place::Graph(graph.name().to_owned()),
        };
        for initializer in &graph.initializer {
            if initializer.name().is_empty() {
                return Err(unnamed("an initializer"));
            }
            self.tensor(initializer, || Place::Value {
                kind: "initializer",
                name: initializer.name().to_owned(),
            })?;
        }
        for initializer in &graph.sparse_initializer {
            let name = initializer
                .values
                .as_ref()
                .map_or("", |values| values.name());
            if name.is_empty() {
                return Err(unnamed("a sparse initializer"));
            }
            sparse::check(initializer, self.files).map_err(|fault| ReadError::Tensor {
                fault,
                place: Place::Value {
                    kind: "sparse initializer",
                    name: name.to_owned(),
                },
            })?;
        }
        graph.node.iter_mut().try_for_each(|node| self.node(node))
    }

    /// The body of a function and the defaults of its attributes.
    pub(crate) fn function(&mut self, function: &mut FunctionProto) -> Result<(), ReadError> {
        let place = function::place(function);
        if function.name().is_empty() {
            return Err(ReadError::Unnamed {
                what: "a function",
                place,
            });
        }
        if function
            .input
            .iter()
            .chain(&function.output)
            .any(String::is_empty)
        {
            return Err(ReadError::Unnamed {
                what: "an input or output",
                place,
            });
        }
        for info in &mut function.value_info {
            check_value(info, "value")?;
        }
        let defaults = function
            .attribute_proto
            .iter()
            .map(|attribute| attribute.name());
        let names = function
            .attribute
            .iter()
            .map(String::as_str)
            .chain(defaults);
        check_unique(names, &place)?;
        for attribute in &mut function.attribute_proto {
            self.attribute(attribute, &place)?;
        }
        function
            .node
            .iter_mut()
            .try_for_each(|node| self.node(node))
    }

    fn node(&mut self, node: &mut NodeProto) -> Result<(), ReadError> {
        normalise_domain(&mut node.domain);
        let place = || Place::of_node(node);
        if node.op_type().is_empty() {
            return Err(ReadError::Unnamed {
                what: "the operator",
                place: place(),
            });
        }
        if !self.opsets.contains_key(node.domain()) {
            let domain = node.domain().to_owned();
            return Err(ReadError::Domain {
                domain,
                place: place(),
            });
        }
        if node.attribute.is_empty() {
            return Ok(());
        }
        let place = place();
        check_unique(
            node.attribute.iter().map(|attribute| attribute.name()),
            &place,
        )?;
        node.attribute
            .iter_mut()
            .try_for_each(|attribute| self.attribute(attribute, &place))
    }

    fn attribute(
        &mut self,
        attribute: &mut AttributeProto,
        place: &Place,
    ) -> Result<(), ReadError> {
        check_attribute(attribute, self.in_function).map_err(|what| ReadError::Attribute {
            attribute: attribute.name().to_owned(),
            what,
            place: place.clone(),
        })?;
        let inner = || Place::Attribute {
            name: attribute.name().to_owned(),
            node: Box::new(place.clone()),
        };
        for tensor in attribute
            .t
            .iter()
            .map(|tensor| &**tensor)
            .chain(&attribute.tensors)
        {
            self.tensor(tensor, inner)?;
        }
        let single = attribute.sparse_tensor.iter().map(|sparse| &**sparse);
        for sparse in single.chain(&attribute.sparse_tensors) {
            sparse::check(sparse, self.files).map_err(|fault| ReadError::Tensor {
                fault,
                place: inner(),
            })?;
        }
        let inner = inner();
        let single = attribute.tp.iter_mut().map(|kind| &mut **kind);
        for kind in single.chain(&mut attribute.type_protos) {
            check_type(kind).map_err(|what| ReadError::Type {
                what,
                place: inner.clone(),
            })?;
        }
        let single = attribute.g.iter_mut().map(|graph| &mut **graph);
        single
            .chain(&mut attribute.graphs)
            .try_for_each(|graph| self.graph(graph))
    }

    fn tensor(&mut self, tensor: &TensorProto, place: impl Fn() -> Place) -> Result<(), ReadError> {
        tensor::check(tensor, self.files).map_err(|fault| ReadError::Tensor {
            fault,
            place: place(),
        })
    }
}

/// Attribute names of one node must be there and differ.
fn check_unique<'a>(names: impl Iterator<Item = &'a str>, place: &Place) -> Result<(), ReadError> {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(ReadError::Unnamed {
                what: "an attribute",
                place: place.clone(),
            });
        }
        if !seen.insert(name) {
            let attribute = name.to_owned();
            let what = "is given twice";
            return Err(ReadError::Attribute {
                attribute,
                what,
                place: place.clone(),
            });
        }
    }
    Ok(())
}

/// The value fields of an attribute that are set, as the types they belong to.
fn set_fields(attribute: &AttributeProto) -> impl Iterator<Item = AttributeType> {
    [
        (AttributeType::Float, attribute.f.is_some()),
        (AttributeType::Int, attribute.i.is_some()),
        (AttributeType::String, attribute.s.is_some()),
        (AttributeType::Tensor, attribute.t.is_some()),
        (AttributeType::Graph, attribute.g.is_some()),
        (
            AttributeType::SparseTensor,
            attribute.sparse_tensor.is_some(),
        ),
        (AttributeType::TypeProto, attribute.tp.is_some()),
        (AttributeType::Floats, !attribute.floats.is_empty()),
        (AttributeType::Ints, !attribute.ints.is_empty()),
        (AttributeType::Strings, !attribute.strings.is_empty()),
        (AttributeType::Tensors, !attribute.tensors.is_empty()),
        (AttributeType::Graphs, !attribute.graphs.is_empty()),
        (
            AttributeType::SparseTensors,
            !attribute.sparse_tensors.is_empty(),
        ),
        (AttributeType::TypeProtos, !attribute.type_protos.is_empty()),
    ]
    .into_iter()
    .filter_map(|(kind, set)| set.then_some(kind))
}

/// Checks that the value belongs to the stated type, and states the type where it is missing.
fn check_attribute(attribute: &mut AttributeProto, in_function: bool) -> Result<(), &'static str> {
    let stated = AttributeType::try_from(attribute.r#type.unwrap_or(0))
        .map_err(|_| "has a type that does not exist")?;
    let first = set_fields(attribute).next();
    if set_fields(attribute).nth(1).is_some() {
        return Err("has two values");
    }
    if !attribute.ref_attr_name().is_empty() {
        return match (in_function, first, stated) {
            (false, _, _) => Err("refers to a function's attribute outside a function"),
            (true, Some(_), _) => Err("has a value and refers to another one"),
            (true, None, AttributeType::Undefined) => Err("has no type"),
            (true, None, _) => Ok(()),
        };
    }
    match (stated, first) {
        (AttributeType::Undefined, None) => Err("has neither a type nor a value"),
        (AttributeType::Undefined, Some(first)) => {
            attribute.r#type = Some(first as i32);
            Ok(())
        }
        (stated, Some(first)) if stated == first => Ok(()),
        (_, Some(_)) => Err("has a value of another type than stated"),
        (
            AttributeType::Tensor
            | AttributeType::Graph
            | AttributeType::SparseTensor
            | AttributeType::TypeProto,
            None,
        ) => Err("has no value"),
        // Writers without field presence leave out zeros, empty strings and empty lists.
        (_, None) => Ok(()),
    }
}

fn check_value(info: &mut ValueInfoProto, kind: &'static str) -> Result<(), ReadError> {
    let Some(stated) = &mut info.r#type else {
        return Ok(());
    };
    check_type(stated).map_err(|what| {
        let name = info.name.clone().unwrap_or_default();
        ReadError::Type {
            what,
            place: Place::Value { kind, name },
        }
    })
}

/// Checks element types and dimensions of a type. Its depth was bounded when the file was walked.
fn check_type(kind: &mut TypeProto) -> Result<(), TypeFault> {
    let inner = |kind: &mut Option<Box<TypeProto>>| match kind {
        Some(kind) => check_type(kind),
        None => Err(TypeFault::Missing),
    };
    match &mut kind.value {
        None | Some(type_proto::Value::OpaqueType(_)) => Ok(()),
        Some(type_proto::Value::TensorType(tensor)) => {
            check_element(tensor.elem_type())?;
            tensor.shape.as_mut().map_or(Ok(()), check_shape)
        }
        Some(type_proto::Value::SparseTensorType(tensor)) => {
            check_element(tensor.elem_type())?;
            tensor.shape.as_mut().map_or(Ok(()), check_shape)
        }
        Some(type_proto::Value::SequenceType(sequence)) => inner(&mut sequence.elem_type),
        Some(type_proto::Value::OptionalType(optional)) => inner(&mut optional.elem_type),
        Some(type_proto::Value::MapType(map)) => {
            check_element(map.key_type())?;
            inner(&mut map.value_type)
        }
    }
}

/// 0 stands for a type that is not known, which only some places allow.
fn check_element(number: i32) -> Result<(), TypeFault> {
    match ElementType::try_from(number) {
        Ok(_) => Ok(()),
        Err(_) => Err(TypeFault::ElementType(number)),
    }
}

fn check_shape(shape: &mut TensorShapeProto) -> Result<(), TypeFault> {
    if shape.dim.len() > MAX_RANK {
        return Err(TypeFault::Rank(shape.dim.len()));
    }
    let mut len = 1i64;
    for dim in &mut shape.dim {
        match dim.value {
            Some(dimension::Value::DimValue(-1)) => dim.value = None,
            Some(dimension::Value::DimValue(size)) if size < 0 => {
                return Err(TypeFault::NegativeDim(size));
            }
            Some(dimension::Value::DimValue(size)) if size > 0 => {
                len = len.checked_mul(size).ok_or(TypeFault::Overflow)?;
            }
            Some(dimension::Value::DimValue(_) | dimension::Value::DimParam(_)) | None => {}
        }
    }
    Ok(())
}

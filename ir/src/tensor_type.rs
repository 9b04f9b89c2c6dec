//! Types of values: tensors, sequences and optionals.

use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use std::fmt;

/// Element type and extents of a tensor. Layout is not part of the type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first; empty for a scalar.
    pub dims: Vec<Dim>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = impl Into<Dim>>) -> TensorType {
        TensorType {
            dtype,
            dims: dims.into_iter().map(Into::into).collect(),
        }
    }

    /// A scalar type.
    pub fn scalar(dtype: DType) -> TensorType {
        TensorType {
            dtype,
            dims: vec![],
        }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn len(&self) -> Dim {
        Dim::product(&self.dims)
    }

    /// Whether an extent is known to be 0.
    pub fn is_empty(&self) -> bool {
        self.dims.iter().any(|d| d.is(0))
    }

    /// Extents when all are known at compile time.
    pub fn const_shape(&self) -> Option<Vec<usize>> {
        self.dims
            .iter()
            .map(|d| usize::try_from(d.as_const()?).ok())
            .collect()
    }

    /// Extents under bindings; `None` when one is unbound or negative.
    pub fn shape(&self, bindings: &Bindings) -> Option<Vec<usize>> {
        self.dims
            .iter()
            .map(|d| usize::try_from(d.eval(bindings)?).ok())
            .collect()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// Type of a value in a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// A dense tensor.
    Tensor(TensorType),
    /// A list of values of one type. Extents of the element type that differ from element to element are symbols
    /// that nothing binds; they are bound anew where an element is taken out.
    Sequence(Box<ValueType>),
    /// A value or nothing.
    Optional(Box<ValueType>),
}

impl ValueType {
    /// The tensor type, when it is one.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(t) => Some(t),
            ValueType::Sequence(_) | ValueType::Optional(_) => None,
        }
    }

    /// Calls `visit` for every dimension that a value binds or must have; those of a sequence's elements are not.
    pub fn for_each_dim(&self, visit: &mut dyn FnMut(&Dim)) {
        match self {
            ValueType::Tensor(t) => t.dims.iter().for_each(visit),
            ValueType::Sequence(_) => {}
            ValueType::Optional(t) => t.for_each_dim(visit),
        }
    }

    /// The same type with every dimension rewritten.
    pub fn map_dims(&self, f: &dyn Fn(&Dim) -> Dim) -> ValueType {
        match self {
            ValueType::Tensor(t) => ValueType::Tensor(TensorType {
                dtype: t.dtype,
                dims: t.dims.iter().map(f).collect(),
            }),
            ValueType::Sequence(t) => ValueType::Sequence(Box::new(t.map_dims(f))),
            ValueType::Optional(t) => ValueType::Optional(Box::new(t.map_dims(f))),
        }
    }
}

impl From<TensorType> for ValueType {
    fn from(t: TensorType) -> Self {
        ValueType::Tensor(t)
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(t) => write!(f, "{t}"),
            ValueType::Sequence(t) => write!(f, "seq({t})"),
            ValueType::Optional(t) => write!(f, "optional({t})"),
        }
    }
}

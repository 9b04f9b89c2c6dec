//! Host tensors and run-time values: the currency of constants, the interpreter, inputs and outputs.
//!
//! A [`Tensor`] is dense, row-major, little-endian and immutable; its bytes are a shared handle that may point into a
//! memory-mapped file. Conversion of elements to and from wide numbers lives in `crate::convert`.

use crate::dtype::DType;
use crate::tensor_type::{TensorType, ValueType};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Storage of a tensor's elements.
#[derive(Clone, PartialEq, Eq)]
pub enum Data {
    /// Little-endian packed elements of any dtype but strings.
    Bytes(Bytes),
    /// Elements of a string tensor.
    Strings(Arc<[String]>),
}

/// A dense host tensor.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor over packed bytes; `None` when the number of bytes is not what dtype and shape need.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Option<Tensor> {
        (Self::size_of(dtype, &shape)? == bytes.len()).then_some(Tensor {
            dtype,
            shape,
            data: Data::Bytes(bytes),
        })
    }

    /// A string tensor; `None` when the count does not match.
    pub fn from_strings(shape: Vec<usize>, strings: Vec<String>) -> Option<Tensor> {
        let len = shape.iter().try_fold(1usize, |p, d| p.checked_mul(*d))?;
        (len == strings.len()).then(|| Tensor {
            dtype: DType::String,
            shape,
            data: Data::Strings(strings.into()),
        })
    }

    /// Bytes that a tensor takes; `None` on overflow, strings, and rows that are no multiple of a block.
    pub fn size_of(dtype: DType, shape: &[usize]) -> Option<usize> {
        let (inner, outer) = shape.split_last().map_or((1, &[][..]), |(i, o)| (*i, o));
        dtype.storage_size(
            outer.iter().try_fold(1usize, |p, d| p.checked_mul(*d))?,
            inner,
        )
    }

    /// A tensor from Rust numbers; `None` when the count does not match the shape.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Option<Tensor> {
        let len = shape.iter().try_fold(1usize, |p, d| p.checked_mul(*d))?;
        (len == values.len()).then(|| Tensor {
            dtype: T::DTYPE,
            shape: shape.to_vec(),
            data: Data::Bytes(Bytes::copy_from_slice(bytemuck::cast_slice(values))),
        })
    }

    /// A one-axis tensor.
    pub fn vector<T: Element>(values: &[T]) -> Tensor {
        Tensor::from_slice(&[values.len()], values)
            .unwrap_or_else(|| unreachable!("bug: vector length"))
    }

    /// A scalar tensor.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_slice(&[], &[value]).unwrap_or_else(|| unreachable!("bug: scalar length"))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packed bytes; empty for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Bytes(b) => b,
            Data::Strings(_) => &[],
        }
    }

    /// The shared byte handle; `None` for strings.
    pub fn shared_bytes(&self) -> Option<Bytes> {
        match &self.data {
            Data::Bytes(b) => Some(b.clone()),
            Data::Strings(_) => None,
        }
    }

    /// Strings of a string tensor.
    pub fn strings(&self) -> Option<&[String]> {
        match &self.data {
            Data::Bytes(_) => None,
            Data::Strings(s) => Some(s),
        }
    }

    /// Elements as Rust numbers when the dtype is `T`'s. Copies when the bytes are not aligned.
    pub fn to_vec<T: Element>(&self) -> Option<Vec<T>> {
        (self.dtype == T::DTYPE).then(|| bytemuck::pod_collect_to_vec(self.bytes()))
    }

    /// The same elements under another shape; `None` when the count differs.
    pub fn reshaped(&self, shape: Vec<usize>) -> Option<Tensor> {
        let len = shape.iter().try_fold(1usize, |p, d| p.checked_mul(*d))?;
        (len == self.len()).then(|| Tensor {
            dtype: self.dtype,
            shape,
            data: self.data.clone(),
        })
    }

    /// The type, with constant extents.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, self.shape.iter().copied())
    }

    /// The elements as integers when the dtype is an integer or bool (of a whole-byte kind).
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        Some(match self.dtype {
            DType::I64 => self.to_vec::<i64>()?,
            DType::I32 => self.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
            DType::I16 => self.to_vec::<i16>()?.into_iter().map(i64::from).collect(),
            DType::I8 => self.to_vec::<i8>()?.into_iter().map(i64::from).collect(),
            DType::U64 => self
                .to_vec::<u64>()?
                .into_iter()
                .map(|v| v as i64)
                .collect(),
            DType::U32 => self.to_vec::<u32>()?.into_iter().map(i64::from).collect(),
            DType::U16 => self.to_vec::<u16>()?.into_iter().map(i64::from).collect(),
            DType::U8 | DType::Bool => self.bytes().iter().map(|v| i64::from(*v)).collect(),
            _ => return None,
        })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// Rust number types that are elements of a dtype, bit for bit.
pub trait Element: bytemuck::Pod {
    /// The dtype.
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f64 => F64, f32 => F32, half::f16 => F16, half::bf16 => BF16, i64 => I64, i32 => I32, i16 => I16, i8 => I8,
    u64 => U64, u32 => U32, u16 => U16, u8 => U8);

/// A run-time value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// A list.
    Sequence(Vec<Value>),
    /// Something or nothing.
    Optional(Option<Box<Value>>),
}

impl Value {
    /// The tensor, when it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            Value::Sequence(_) | Value::Optional(_) => None,
        }
    }

    /// Whether the value is of this kind (tensor of this dtype and rank, sequence, optional), extents aside.
    pub fn fits(&self, ty: &ValueType) -> bool {
        match (self, ty) {
            (Value::Tensor(v), ValueType::Tensor(t)) => {
                v.dtype == t.dtype && v.shape.len() == t.rank()
            }
            (Value::Sequence(v), ValueType::Sequence(t)) => v.iter().all(|x| x.fits(t)),
            (Value::Optional(v), ValueType::Optional(t)) => v.as_ref().is_none_or(|x| x.fits(t)),
            _ => false,
        }
    }
}

impl From<Tensor> for Value {
    fn from(t: Tensor) -> Self {
        Value::Tensor(t)
    }
}

//! Tensors as stored in a model: shape and data checked, and every storage form brought to one.
//!
//! ONNX keeps tensor data in `raw_data`, in one of six typed lists, or in a side file. [`TensorView`]
//! has one form for all: little-endian bytes as `raw_data` has them, which for raw and external data
//! are a slice of the mapped file.

use bytes::Bytes;
use cupola_source::{Fault, quote};

use crate::external::ExternalFiles;
use crate::proto::TensorProto;
use crate::proto::tensor_proto::DataLocation;

/// The element types of ONNX.
pub use crate::proto::tensor_proto::DataType as ElementType;

/// Tensors have at most this many dimensions.
pub const MAX_RANK: usize = 64;

impl ElementType {
    /// Bits that one element takes in raw data: 4-bit and 2-bit elements are packed from the low bits
    /// up, 6-bit ones as one stream from the low bits up. `None` for strings and `Undefined`.
    pub fn bits(self) -> Option<u32> {
        match self {
            ElementType::Undefined | ElementType::String => None,
            ElementType::Uint2 | ElementType::Int2 => Some(2),
            ElementType::Uint4 | ElementType::Int4 | ElementType::Float4e2m1 => Some(4),
            ElementType::Float6e2m3 | ElementType::Float6e3m2 => Some(6),
            ElementType::Bool
            | ElementType::Uint8
            | ElementType::Int8
            | ElementType::Float8e4m3fn
            | ElementType::Float8e4m3fnuz
            | ElementType::Float8e5m2
            | ElementType::Float8e5m2fnuz
            | ElementType::Float8e8m0 => Some(8),
            ElementType::Uint16
            | ElementType::Int16
            | ElementType::Float16
            | ElementType::Bfloat16 => Some(16),
            ElementType::Float | ElementType::Int32 | ElementType::Uint32 => Some(32),
            ElementType::Double
            | ElementType::Int64
            | ElementType::Uint64
            | ElementType::Complex64 => Some(64),
            ElementType::Complex128 => Some(128),
        }
    }

    /// The element type with this number in a file.
    ///
    /// # Errors
    /// [`TensorFault::ElementType`] for a number without a type and for `Undefined`.
    pub fn from_number(number: i32) -> Result<ElementType, TensorFault> {
        match ElementType::try_from(number) {
            Ok(ElementType::Undefined) | Err(_) => Err(TensorFault::ElementType(number)),
            Ok(element) => Ok(element),
        }
    }
}

/// A tensor of a file with its data in canonical form.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorView {
    /// Type of the elements.
    pub element: ElementType,
    /// The shape, outermost dimension first; empty for a scalar.
    pub dims: Vec<usize>,
    /// As many elements as the product of `dims`.
    pub data: TensorData,
}

/// The elements of a [`TensorView`] in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Little-endian, [`ElementType::bits`] each, padded with zero bits to a whole byte at the end.
    /// Not necessarily aligned. Booleans are 0 or 1.
    Raw(Bytes),
    /// Strings of any bytes, usually UTF-8.
    Strings(Vec<Bytes>),
}

impl TensorView {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.dims.contains(&0)
    }
}

/// Why a stored tensor cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorFault {
    /// User input: no such element type.
    #[error("element type {0} does not exist")]
    ElementType(i32),
    /// Unsupported: complex numbers.
    #[error("complex numbers are not supported")]
    Complex,
    /// Unsupported: a tensor split into segments.
    #[error("segmented tensors are not supported")]
    Segment,
    /// Limit: more than [`MAX_RANK`] dimensions.
    #[error("{0} dimensions, at most {MAX_RANK} are supported")]
    Rank(usize),
    /// User input: a dimension below zero.
    #[error("dimension {index} is {dim}")]
    NegativeDim {
        /// Which dimension.
        index: usize,
        /// Its value.
        dim: i64,
    },
    /// User input: the size of the shape does not fit into 64 bits.
    #[error("the number of elements overflows")]
    Overflow,
    /// User input: data of the wrong size.
    #[error("the data has {found} bytes, {needed} are needed for the shape")]
    DataSize {
        /// Bytes there are.
        found: u64,
        /// Bytes that shape and type ask for.
        needed: u64,
    },
    /// User input: a typed list of the wrong length.
    #[error("{field} has {found} entries, {needed} are needed for the shape")]
    DataLen {
        /// Name of the list.
        field: &'static str,
        /// Entries there are.
        found: u64,
        /// Entries that shape and type ask for.
        needed: u64,
    },
    /// User input: data in a field that this element type does not use, or in two fields.
    #[error("{0} holds data where the element type does not allow it")]
    WrongField(&'static str),
    /// User input: a number in a typed list that the element type cannot hold.
    #[error("the value {0} does not fit the element type")]
    Value(i128),
    /// User input: a stored boolean other than 0 and 1.
    #[error("a boolean is stored as {0}")]
    Boolean(u8),
    /// User input: a mistake in the reference to a side file.
    #[error("external data: {0}")]
    External(&'static str),
    /// User input: a side file that must not be or cannot be opened.
    #[error("external data: the file {what}, {}", quote(file))]
    ExternalFile {
        /// What is wrong with it.
        what: &'static str,
        /// Its name in the model.
        file: String,
    },
    /// User input: a range outside the side file.
    #[error(
        "external data: {size} bytes at offset {offset} of a file with {file_size} bytes, {}",
        quote(file)
    )]
    ExternalRange {
        /// Name of the file in the model.
        file: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        size: u64,
        /// Size of the whole file.
        file_size: u64,
    },
    /// User input: a sparse tensor that breaks a rule.
    #[error("sparse tensor: {0}")]
    Sparse(&'static str),
    /// User input: an index of a sparse tensor outside its shape.
    #[error("sparse tensor: index {index} is outside the shape")]
    SparseIndex {
        /// The index as stored.
        index: i64,
    },
    /// Unsupported: a sparse tensor of elements that are not whole bytes.
    #[error("sparse tensors of this element type are not supported")]
    SparseElement,
    /// Limit: a dense tensor larger than the caller allows.
    #[error("{size} bytes once made dense, {limit} are allowed")]
    DenseSize {
        /// Bytes of the dense tensor.
        size: u64,
        /// The caller's limit.
        limit: u64,
    },
}

impl TensorFault {
    pub(crate) fn external(what: &'static str, file: &str) -> TensorFault {
        TensorFault::ExternalFile {
            what,
            file: file.to_owned(),
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            TensorFault::Complex | TensorFault::Segment | TensorFault::SparseElement => {
                Fault::Unsupported
            }
            TensorFault::Rank(_) | TensorFault::DenseSize { .. } => Fault::Limit,
            TensorFault::ElementType(_)
            | TensorFault::NegativeDim { .. }
            | TensorFault::Overflow
            | TensorFault::DataSize { .. }
            | TensorFault::DataLen { .. }
            | TensorFault::WrongField(_)
            | TensorFault::Value(_)
            | TensorFault::Boolean(_)
            | TensorFault::External(_)
            | TensorFault::ExternalFile { .. }
            | TensorFault::ExternalRange { .. }
            | TensorFault::Sparse(_)
            | TensorFault::SparseIndex { .. } => Fault::Malformed,
        }
    }
}

/// Type, shape and size of a tensor, without its data.
struct Header {
    element: ElementType,
    dims: Vec<usize>,
    len: u64,
    /// Size of the data in raw form; 0 for strings.
    size: u64,
}

/// Checks everything about a tensor that can be told without touching its data, so that
/// [`view`] of it can only fail on a value.
pub(crate) fn check(tensor: &TensorProto, files: &mut ExternalFiles) -> Result<(), TensorFault> {
    let header = header(tensor)?;
    if is_external(tensor) {
        check_no_other_field(tensor, "")?;
        if header.element == ElementType::String {
            return Err(TensorFault::WrongField("external_data"));
        }
        if header.size > 0 {
            files.map(tensor)?;
            files.slice(tensor, header.size)?;
        }
        return Ok(());
    }
    stored(tensor, &header).map(drop)
}

/// The tensor with its data: a slice of the file for raw and external data, otherwise converted.
///
/// # Errors
/// [`TensorFault`] when type, shape and data do not fit together. Allocates only for typed lists,
/// and no more than twice what they take.
pub(crate) fn view(tensor: &TensorProto, files: &ExternalFiles) -> Result<TensorView, TensorFault> {
    let header = header(tensor)?;
    let data = if is_external(tensor) {
        if header.element == ElementType::String {
            return Err(TensorFault::WrongField("external_data"));
        }
        let empty = header.size == 0;
        TensorData::Raw(if empty {
            Bytes::new()
        } else {
            files.slice(tensor, header.size)?
        })
    } else {
        match stored(tensor, &header)? {
            Stored::Raw(bytes) => TensorData::Raw(bytes.clone()),
            Stored::Strings => TensorData::Strings(tensor.string_data.clone()),
            Stored::Typed => TensorData::Raw(convert(tensor, header.element)?),
        }
    };
    if let (ElementType::Bool, TensorData::Raw(bytes)) = (header.element, &data)
        && let Some(&byte) = bytes.iter().find(|&&byte| byte > 1)
    {
        return Err(TensorFault::Boolean(byte));
    }
    Ok(TensorView {
        element: header.element,
        dims: header.dims,
        data,
    })
}

fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(DataLocation::External as i32)
}

fn header(tensor: &TensorProto) -> Result<Header, TensorFault> {
    let element = ElementType::from_number(tensor.data_type())?;
    if matches!(element, ElementType::Complex64 | ElementType::Complex128) {
        return Err(TensorFault::Complex);
    }
    if tensor.segment.is_some() {
        return Err(TensorFault::Segment);
    }
    let (dims, len) = shape(&tensor.dims)?;
    let size = match element.bits() {
        Some(bits) => len
            .checked_mul(u64::from(bits))
            .ok_or(TensorFault::Overflow)?
            .div_ceil(8),
        None => 0,
    };
    Ok(Header {
        element,
        dims,
        len,
        size,
    })
}

/// The dimensions as sizes and their product.
pub(crate) fn shape(dims: &[i64]) -> Result<(Vec<usize>, u64), TensorFault> {
    if dims.len() > MAX_RANK {
        return Err(TensorFault::Rank(dims.len()));
    }
    if let Some(index) = dims.iter().position(|&dim| dim < 0) {
        return Err(TensorFault::NegativeDim {
            index,
            dim: dims[index],
        });
    }
    // The product of the dimensions that are not zero must fit as well, or strides would overflow.
    let nonzero = dims.iter().filter(|&&dim| dim != 0);
    let product = nonzero
        .copied()
        .try_fold(1i64, i64::checked_mul)
        .ok_or(TensorFault::Overflow)?;
    let len = if dims.contains(&0) { 0 } else { product };
    let dims = dims
        .iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| TensorFault::Overflow));
    Ok((dims.collect::<Result<_, _>>()?, len as u64))
}

enum Stored<'a> {
    Raw(&'a Bytes),
    Strings,
    Typed,
}

/// Finds the field that holds the data and checks its length.
fn stored<'a>(tensor: &'a TensorProto, header: &Header) -> Result<Stored<'a>, TensorFault> {
    if !tensor.external_data.is_empty() {
        return Err(TensorFault::WrongField("external_data"));
    }
    let field = typed_field(header.element);
    match &tensor.raw_data {
        Some(raw) if header.element == ElementType::String && !raw.is_empty() => {
            Err(TensorFault::WrongField("raw_data"))
        }
        // Some writers set an empty `raw_data` beside a typed list.
        Some(raw) if !raw.is_empty() || field.len(tensor) == 0 && field != Field::Strings => {
            check_no_other_field(tensor, "raw_data")?;
            let found = raw.len() as u64;
            if found != header.size {
                return Err(TensorFault::DataSize {
                    found,
                    needed: header.size,
                });
            }
            Ok(Stored::Raw(raw))
        }
        Some(_) | None => {
            check_no_other_field(tensor, field.name())?;
            let needed = match (field, header.element.bits()) {
                (Field::Int32, Some(2 | 4)) => header.size,
                _ => header.len,
            };
            let found = field.len(tensor) as u64;
            if found != needed {
                return Err(TensorFault::DataLen {
                    field: field.name(),
                    found,
                    needed,
                });
            }
            Ok(if field == Field::Strings {
                Stored::Strings
            } else {
                Stored::Typed
            })
        }
    }
}

/// The typed lists of `TensorProto`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Float,
    Int32,
    Strings,
    Int64,
    Double,
    Uint64,
}

const FIELDS: [Field; 6] = [
    Field::Float,
    Field::Int32,
    Field::Strings,
    Field::Int64,
    Field::Double,
    Field::Uint64,
];

impl Field {
    fn name(self) -> &'static str {
        match self {
            Field::Float => "float_data",
            Field::Int32 => "int32_data",
            Field::Strings => "string_data",
            Field::Int64 => "int64_data",
            Field::Double => "double_data",
            Field::Uint64 => "uint64_data",
        }
    }

    fn len(self, tensor: &TensorProto) -> usize {
        match self {
            Field::Float => tensor.float_data.len(),
            Field::Int32 => tensor.int32_data.len(),
            Field::Strings => tensor.string_data.len(),
            Field::Int64 => tensor.int64_data.len(),
            Field::Double => tensor.double_data.len(),
            Field::Uint64 => tensor.uint64_data.len(),
        }
    }
}

/// The typed list that an element type uses.
fn typed_field(element: ElementType) -> Field {
    match element {
        ElementType::Float | ElementType::Complex64 => Field::Float,
        ElementType::Double | ElementType::Complex128 => Field::Double,
        ElementType::String => Field::Strings,
        ElementType::Int64 => Field::Int64,
        ElementType::Uint32 | ElementType::Uint64 => Field::Uint64,
        ElementType::Undefined
        | ElementType::Int32
        | ElementType::Int16
        | ElementType::Int8
        | ElementType::Int4
        | ElementType::Int2
        | ElementType::Uint16
        | ElementType::Uint8
        | ElementType::Uint4
        | ElementType::Uint2
        | ElementType::Bool
        | ElementType::Float16
        | ElementType::Bfloat16
        | ElementType::Float8e4m3fn
        | ElementType::Float8e4m3fnuz
        | ElementType::Float8e5m2
        | ElementType::Float8e5m2fnuz
        | ElementType::Float8e8m0
        | ElementType::Float6e2m3
        | ElementType::Float6e3m2
        | ElementType::Float4e2m1 => Field::Int32,
    }
}

fn check_no_other_field(tensor: &TensorProto, used: &str) -> Result<(), TensorFault> {
    let raw_used = tensor.raw_data.as_ref().is_some_and(|raw| !raw.is_empty());
    if used != "raw_data" && raw_used {
        return Err(TensorFault::WrongField("raw_data"));
    }
    match FIELDS
        .into_iter()
        .find(|field| field.name() != used && field.len(tensor) > 0)
    {
        Some(field) => Err(TensorFault::WrongField(field.name())),
        None => Ok(()),
    }
}

/// A typed list as raw data. The list's length has been checked.
fn convert(tensor: &TensorProto, element: ElementType) -> Result<Bytes, TensorFault> {
    let bytes = match typed_field(element) {
        Field::Float => tensor
            .float_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Field::Double => tensor
            .double_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Field::Int64 => tensor
            .int64_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Field::Uint64 if element == ElementType::Uint64 => tensor
            .uint64_data
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Field::Uint64 => {
            let mut bytes = Vec::with_capacity(tensor.uint64_data.len() * 4);
            for &value in &tensor.uint64_data {
                let fault = TensorFault::Value(i128::from(value));
                bytes.extend(u32::try_from(value).map_err(|_| fault)?.to_le_bytes());
            }
            bytes
        }
        Field::Int32 => convert_int32(&tensor.int32_data, element)?,
        Field::Strings => unreachable!("bug: strings have no raw form"),
    };
    Ok(Bytes::from(bytes))
}

/// `int32_data` holds one element an entry, or one byte of packed 4-bit and 2-bit elements.
fn convert_int32(values: &[i32], element: ElementType) -> Result<Vec<u8>, TensorFault> {
    let bits = element.bits().unwrap_or(32);
    match bits {
        32 => Ok(values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()),
        16 => {
            let mut bytes = Vec::with_capacity(values.len() * 2);
            for &value in values {
                bytes.extend((fitting(value, 16)? as u16).to_le_bytes());
            }
            Ok(bytes)
        }
        6 => {
            let mut bytes = vec![0; (values.len() * 6).div_ceil(8)];
            for (index, &value) in values.iter().enumerate() {
                if !(0..64).contains(&value) {
                    return Err(TensorFault::Value(i128::from(value)));
                }
                let (byte, shift) = (index * 6 / 8, index * 6 % 8);
                let pair = (value as u16) << shift;
                bytes[byte] |= pair as u8;
                if shift > 2 {
                    bytes[byte + 1] |= (pair >> 8) as u8;
                }
            }
            Ok(bytes)
        }
        _ => values
            .iter()
            .map(|&value| fitting(value, 8).map(|value| value as u8))
            .collect(),
    }
}

/// `value` if it fits `bits` bits, read as signed or as unsigned. Writers differ in which they use
/// for bit patterns.
fn fitting(value: i32, bits: u32) -> Result<i32, TensorFault> {
    let fits = value >= -(1 << (bits - 1)) && value < 1 << bits;
    if fits {
        Ok(value)
    } else {
        Err(TensorFault::Value(i128::from(value)))
    }
}

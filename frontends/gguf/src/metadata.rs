//! Metadata values. Arrays and strings stay slices of the file.

use std::fmt;

use bytes::Bytes;

/// The types of metadata values, with their numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with this number in a file.
    pub fn from_number(number: u32) -> Option<ValueType> {
        ValueType::ALL.get(number as usize).copied()
    }

    /// Name, as in `u32`.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Bytes of a value; `None` for strings and arrays, whose size varies.
    pub fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Usually UTF-8.
    String(Bytes),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one type. Decoded when iterated.
#[derive(Clone, PartialEq)]
pub struct Array {
    element: ValueType,
    len: usize,
    /// The checked elements as they are in the file.
    bytes: Bytes,
}

impl Array {
    /// `bytes` must be exactly `len` well-formed elements.
    pub(crate) fn new(element: ValueType, len: usize, bytes: Bytes) -> Array {
        Array {
            element,
            len,
            bytes,
        }
    }

    /// Type of the elements; never [`ValueType::Array`].
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as they are in the file: little-endian numbers, or strings with an eight-byte
    /// length in front.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements in order. Finding the last string of an array takes a walk over all of them.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        let mut at = 0;
        (0..self.len).map(move |_| {
            let (value, size) = decode(self.element, &self.bytes, at)
                .unwrap_or_else(|| unreachable!("bug: array elements were checked"));
            at += size;
            value
        })
    }
}

/// Decodes the value at `at`, and says how many bytes it took. `None` when it is cut, when a
/// boolean is neither 0 nor 1, and for arrays.
pub(crate) fn decode(kind: ValueType, bytes: &Bytes, at: usize) -> Option<(Value, usize)> {
    let rest = &bytes[at..];
    macro_rules! number {
        ($variant:ident, $number:ty) => {{
            let value = <$number>::from_le_bytes(*rest.first_chunk()?);
            (Value::$variant(value), size_of::<$number>())
        }};
    }
    Some(match kind {
        ValueType::U8 => number!(U8, u8),
        ValueType::I8 => number!(I8, i8),
        ValueType::U16 => number!(U16, u16),
        ValueType::I16 => number!(I16, i16),
        ValueType::U32 => number!(U32, u32),
        ValueType::I32 => number!(I32, i32),
        ValueType::F32 => number!(F32, f32),
        ValueType::U64 => number!(U64, u64),
        ValueType::I64 => number!(I64, i64),
        ValueType::F64 => number!(F64, f64),
        ValueType::Bool => match rest.first()? {
            0 => (Value::Bool(false), 1),
            1 => (Value::Bool(true), 1),
            _ => return None,
        },
        ValueType::String => {
            let len = usize::try_from(u64::from_le_bytes(*rest.first_chunk()?)).ok()?;
            let end = len.checked_add(8).filter(|&end| end <= rest.len())?;
            (Value::String(bytes.slice(at + 8..at + end)), end)
        }
        ValueType::Array => return None,
    })
}

impl Value {
    /// The type of the value.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// An integer of any type, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::U64(value) => Some(value),
            Value::I8(value) => value.try_into().ok(),
            Value::I16(value) => value.try_into().ok(),
            Value::I32(value) => value.try_into().ok(),
            Value::I64(value) => value.try_into().ok(),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) => None,
            Value::String(_) | Value::Array(_) => None,
        }
    }

    /// A floating-point number of either type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(value) => Some(value.into()),
            Value::F64(value) => Some(value),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A string, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// Longest part of a string, and most elements of an array, that `Display` shows.
const SHOWN: usize = 8;
const SHOWN_SIZE: usize = 96;

/// One line: strings quoted, escaped and cut, arrays with their type, length and first elements.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(value) => value.fmt(f),
            Value::I8(value) => value.fmt(f),
            Value::U16(value) => value.fmt(f),
            Value::I16(value) => value.fmt(f),
            Value::U32(value) => value.fmt(f),
            Value::I32(value) => value.fmt(f),
            Value::F32(value) => value.fmt(f),
            Value::Bool(value) => value.fmt(f),
            Value::U64(value) => value.fmt(f),
            Value::I64(value) => value.fmt(f),
            Value::F64(value) => value.fmt(f),
            Value::String(bytes) => {
                let shown = &bytes[..bytes.len().min(SHOWN_SIZE)];
                let more = if shown.len() < bytes.len() { "..." } else { "" };
                write!(
                    f,
                    "\"{}\"{more}",
                    String::from_utf8_lossy(shown).escape_debug()
                )
            }
            Value::Array(array) => {
                write!(f, "{}[{}] [", array.element.name(), array.len)?;
                for (index, value) in array.iter().take(SHOWN).enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str(if array.len > SHOWN { ", ...]" } else { "]" })
            }
        }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Value::Array(self.clone()))
    }
}

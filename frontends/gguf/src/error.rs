//! [`GgufError`]: everything that can be wrong with a GGUF file.

use cupola_source::{Fault, SourceError, quote};

/// Why a GGUF file was refused. `Display` is one line, `what, where`, of at most about 400 bytes.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// User input: the file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// User input: the file does not begin like one.
    #[error("not a GGUF file, at byte 0")]
    Magic,
    /// Unsupported: a version other than 2 and 3.
    #[error("version {0} is not supported (2 and 3 are), at byte 4")]
    Version(u32),
    /// Unsupported: written on a big-endian machine.
    #[error("big-endian files are not supported, at byte 4")]
    BigEndian,
    /// User input: the file ends too early.
    #[error("the file is cut: {what} runs past the end, at byte {offset}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
    },
    /// User input: a count that the file is too small for.
    #[error("the file claims {count} {what}, more than fit into it, at byte {offset}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The count.
        count: u64,
        /// Where it stands.
        offset: usize,
    },
    /// User input: a key or tensor name that is not UTF-8.
    #[error("{what} is not UTF-8, at byte {offset}")]
    Utf8 {
        /// A key or a tensor name.
        what: &'static str,
        /// Where it begins.
        offset: usize,
    },
    /// User input: no value type of this number.
    #[error("value type {number} does not exist, key {}", quote(key))]
    ValueType {
        /// The number in the file.
        number: u32,
        /// The key.
        key: String,
    },
    /// Unsupported: arrays in arrays.
    #[error("arrays of arrays are not supported, key {}", quote(key))]
    NestedArray {
        /// The key.
        key: String,
    },
    /// User input: a cut value, or a boolean that is neither 0 nor 1.
    #[error("the value is cut or not a valid {kind}, key {}", quote(key))]
    Value {
        /// Name of the value type.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// User input: a key that is there twice.
    #[error("the key is there twice, key {}", quote(.0))]
    DuplicateKey(String),
    /// User input: a key of the format itself with a value of the wrong type.
    #[error("the value must be of type {needed}, key {}", quote(key))]
    KeyType {
        /// The key.
        key: &'static str,
        /// The type it must have.
        needed: &'static str,
    },
    /// User input: an alignment that is not a power of two.
    #[error("alignment {0} is not a power of two, key 'general.alignment'")]
    Alignment(u32),
    /// User input: two tensors of one name.
    #[error("the tensor is there twice, tensor {}", quote(.0))]
    DuplicateTensor(String),
    /// Limit: more than four dimensions.
    #[error("{rank} dimensions, at most 4 are supported, tensor {}", quote(tensor))]
    Rank {
        /// Number of dimensions.
        rank: u32,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: the size of the tensor does not fit into 63 bits.
    #[error("the number of elements or bytes overflows, tensor {}", quote(.0))]
    Overflow(String),
    /// User input: no tensor type of this number.
    #[error("tensor type {number} does not exist, tensor {}", quote(tensor))]
    TensorType {
        /// The number in the file.
        number: u32,
        /// Name of the tensor.
        tensor: String,
    },
    /// Unsupported: a tensor type that files no longer use.
    #[error("tensor type {name} is no longer supported, tensor {}", quote(tensor))]
    RemovedType {
        /// Name of the type.
        name: &'static str,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: a row that is not a whole number of blocks.
    #[error(
        "a row of {row} elements is not a multiple of {block} as {kind} needs, tensor {}",
        quote(tensor)
    )]
    Block {
        /// Elements of a row.
        row: u64,
        /// Elements of a block.
        block: u64,
        /// Name of the tensor type.
        kind: &'static str,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: an offset that is not a multiple of the alignment.
    #[error(
        "offset {offset} is not a multiple of the alignment {alignment}, tensor {}",
        quote(tensor)
    )]
    Misaligned {
        /// Offset in the data.
        offset: u64,
        /// Alignment of the file.
        alignment: u32,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: data outside the file.
    #[error(
        "{size} bytes at offset {offset} run past the end of the data, tensor {}",
        quote(tensor)
    )]
    Range {
        /// Offset in the data.
        offset: u64,
        /// Bytes of the tensor.
        size: u64,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: two tensors that share bytes.
    #[error("the data overlaps that of {}, tensor {}", quote(other), quote(tensor))]
    Overlap {
        /// Name of the tensor that begins first.
        other: String,
        /// Name of the other tensor.
        tensor: String,
    },
    /// User input: a file that does not fit to the others that the model was split into.
    #[error("{what}, file {}", quote(file))]
    Split {
        /// What is wrong.
        what: &'static str,
        /// The file.
        file: String,
    },
    /// User input: a size of the model that no model can have.
    #[error("{} {what}", quote(key))]
    Hyperparameter {
        /// The key.
        key: String,
        /// What is wrong with its value.
        what: &'static str,
    },
}

impl GgufError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            GgufError::Version(_)
            | GgufError::BigEndian
            | GgufError::NestedArray { .. }
            | GgufError::RemovedType { .. } => Fault::Unsupported,
            GgufError::Rank { .. } => Fault::Limit,
            GgufError::Source(_)
            | GgufError::Magic
            | GgufError::Truncated { .. }
            | GgufError::Count { .. }
            | GgufError::Utf8 { .. }
            | GgufError::ValueType { .. }
            | GgufError::Value { .. }
            | GgufError::DuplicateKey(_)
            | GgufError::KeyType { .. }
            | GgufError::Alignment(_)
            | GgufError::DuplicateTensor(_)
            | GgufError::Overflow(_)
            | GgufError::TensorType { .. }
            | GgufError::Block { .. }
            | GgufError::Misaligned { .. }
            | GgufError::Range { .. }
            | GgufError::Overlap { .. }
            | GgufError::Split { .. }
            | GgufError::Hyperparameter { .. } => Fault::Malformed,
        }
    }
}

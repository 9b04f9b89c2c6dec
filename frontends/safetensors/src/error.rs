//! [`SafeTensorsError`]: everything that can be wrong with safetensors files and folders.

use std::path::PathBuf;

use cupola_source::{Fault, SourceError, clip, quote};

use crate::header::MAX_HEADER_SIZE;
use crate::read::MAX_RANK;

/// Why a file or folder was refused. `Display` is one line, `what, where`, of at most about 400
/// bytes.
#[derive(Debug, thiserror::Error)]
pub enum SafeTensorsError {
    /// User input: a file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// User input: too short for a header, or the header runs past the end.
    #[error("the file is cut: a header of {claimed} bytes in a file of {size}, at byte 0")]
    Truncated {
        /// Size of the header as the file has it.
        claimed: u64,
        /// Size of the file.
        size: u64,
    },
    /// Limit: a header beyond the limit of the format.
    #[error("a header of {0} bytes, at most {MAX_HEADER_SIZE} are allowed, at byte 0")]
    HeaderSize(u64),
    /// User input: JSON that cannot be parsed, or has other fields than it must have.
    #[error("{} {file}", clip(message, 200))]
    Json {
        /// What the parser says, with line and column.
        message: String,
        /// Which text it is.
        file: &'static str,
    },
    /// User input: a name or key that is there twice.
    #[error("the {what} is there twice, {what} {}", quote(name))]
    Duplicate {
        /// A tensor or a metadata key.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// User input: no element type of this name.
    #[error(
        "element type {} does not exist, tensor {}",
        quote(dtype),
        quote(tensor)
    )]
    DType {
        /// Name of the type.
        dtype: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// Unsupported: complex numbers and 6-bit floats.
    #[error("element type {dtype} is not supported, tensor {}", quote(tensor))]
    UnsupportedDType {
        /// Name of the type.
        dtype: &'static str,
        /// Name of the tensor.
        tensor: String,
    },
    /// Limit: too many dimensions.
    #[error(
        "{rank} dimensions, at most {MAX_RANK} are supported, tensor {}",
        quote(tensor)
    )]
    Rank {
        /// Number of dimensions.
        rank: usize,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: the size of the shape does not fit into 63 bits.
    #[error("the number of elements or bytes overflows, tensor {}", quote(.0))]
    Overflow(String),
    /// User input: offsets that are reversed or outside the file.
    #[error(
        "bytes {begin} to {end} are not a range of the {size} bytes of data, tensor {}",
        quote(tensor)
    )]
    Range {
        /// Begin of the range.
        begin: u64,
        /// End of the range.
        end: u64,
        /// Bytes of data in the file.
        size: u64,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: a range that does not fit shape and type.
    #[error(
        "the data has {found} bytes, {needed} are needed for the shape, tensor {}",
        quote(tensor)
    )]
    Size {
        /// Bytes of the range.
        found: u64,
        /// Bytes that shape and type ask for.
        needed: u64,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: a tensor that begins before the one in front of it ends.
    #[error("the data overlaps that of {}, tensor {}", quote(other), quote(tensor))]
    Overlap {
        /// Name of the tensor in front.
        other: String,
        /// Name of the other one.
        tensor: String,
    },
    /// User input: bytes that belong to no tensor, which the format forbids.
    #[error("bytes {begin} to {end} of the data belong to no tensor")]
    Hole {
        /// Begin of the hole.
        begin: u64,
        /// End of the hole.
        end: u64,
    },
    /// User input: a stored boolean other than 0 and 1.
    #[error("a boolean is stored as {value}, tensor {}", quote(tensor))]
    Boolean {
        /// The byte.
        value: u8,
        /// Name of the tensor.
        tensor: String,
    },
    /// User input: a folder without weights.
    #[error("no safetensors file, or several without an index, in folder {}", quote(&.0.to_string_lossy()))]
    NoWeights(PathBuf),
    /// User input: a shard name that is not a plain file name.
    #[error("the index names a file outside the folder, file {}", quote(.0))]
    ShardName(String),
    /// User input: a tensor of the index that its shard does not have.
    #[error(
        "the file {} of the index does not have it, tensor {}",
        quote(shard),
        quote(tensor)
    )]
    NotInShard {
        /// Name of the shard.
        shard: String,
        /// Name of the tensor.
        tensor: String,
    },
}

impl SafeTensorsError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            SafeTensorsError::HeaderSize(_) | SafeTensorsError::Rank { .. } => Fault::Limit,
            SafeTensorsError::UnsupportedDType { .. } => Fault::Unsupported,
            SafeTensorsError::Source(_)
            | SafeTensorsError::Truncated { .. }
            | SafeTensorsError::Json { .. }
            | SafeTensorsError::Duplicate { .. }
            | SafeTensorsError::DType { .. }
            | SafeTensorsError::Overflow(_)
            | SafeTensorsError::Range { .. }
            | SafeTensorsError::Size { .. }
            | SafeTensorsError::Overlap { .. }
            | SafeTensorsError::Hole { .. }
            | SafeTensorsError::Boolean { .. }
            | SafeTensorsError::NoWeights(_)
            | SafeTensorsError::ShardName(_)
            | SafeTensorsError::NotInShard { .. } => Fault::Malformed,
        }
    }
}

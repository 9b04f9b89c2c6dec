//! [`SafeTensors`]: one file read and checked. Time and memory are proportional to the header.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bytes::Bytes;
use cupola_ir::DType;
use cupola_source::Source;

use crate::error::SafeTensorsError;
use crate::header::{Entry, Header, MAX_HEADER_SIZE};

/// Tensors have at most this many dimensions.
pub const MAX_RANK: usize = 64;

/// Named tensors from one file, or from all files of a sharded model. Names are unique.
#[derive(Debug, Default)]
pub struct SafeTensors {
    tensors: Vec<Tensor>,
    names: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
}

/// A named tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name, unique in its set.
    pub name: String,
    /// Type of the elements; never a string or a block type.
    pub dtype: DType,
    /// The shape, outermost dimension first.
    pub dims: Vec<usize>,
    /// Little-endian elements in row-major order, a slice of the file, not necessarily aligned.
    /// Booleans are 0 or 1.
    pub data: Bytes,
}

impl SafeTensors {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`SafeTensorsError`] for the first thing that is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensors, SafeTensorsError> {
        SafeTensors::read(&Source::open(path)?)
    }

    /// Reads a file from bytes, of which tensor data stays slices. The tensors must cover the data
    /// exactly, as the format asks.
    ///
    /// # Errors
    /// [`SafeTensorsError`] for the first thing that is wrong.
    pub fn read(source: &Source) -> Result<SafeTensors, SafeTensorsError> {
        let (header, data) = split(source.bytes())?;
        let header: Header =
            serde_json::from_slice(header).map_err(|error| SafeTensorsError::Json {
                message: error.to_string(),
                file: "of the header",
            })?;
        let mut set = SafeTensors {
            metadata: metadata(&header)?,
            ..SafeTensors::default()
        };
        let mut ranges = Vec::with_capacity(header.tensors.len());
        for (name, entry) in header.tensors {
            let (begin, end) = entry.data_offsets;
            let tensor = tensor(name, entry, &data)?;
            ranges.push((begin, end, set.tensors.len()));
            set.push(tensor)?;
        }
        set.check_cover(ranges, data.len() as u64)?;
        Ok(set)
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.names.get(name).map(|&index| &self.tensors[index])
    }

    /// Free-form text that the writer left, in file order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    pub(crate) fn push(&mut self, tensor: Tensor) -> Result<(), SafeTensorsError> {
        if self
            .names
            .insert(tensor.name.clone(), self.tensors.len())
            .is_some()
        {
            return Err(SafeTensorsError::Duplicate {
                what: "tensor",
                name: tensor.name,
            });
        }
        self.tensors.push(tensor);
        Ok(())
    }

    /// Adds the metadata of another file, except for keys that are there already.
    pub(crate) fn add_metadata(&mut self, other: &SafeTensors) {
        for (key, value) in &other.metadata {
            if !self.metadata.iter().any(|(known, _)| known == key) {
                self.metadata.push((key.clone(), value.clone()));
            }
        }
    }

    /// Checks that the ranges follow each other without holes from 0 to `size`.
    fn check_cover(
        &self,
        mut ranges: Vec<(u64, u64, usize)>,
        size: u64,
    ) -> Result<(), SafeTensorsError> {
        ranges.sort_unstable();
        let mut covered = 0;
        let mut last = 0;
        for (begin, end, index) in ranges {
            if begin < covered {
                let name = |index: usize| self.tensors[index].name.clone();
                return Err(SafeTensorsError::Overlap {
                    other: name(last),
                    tensor: name(index),
                });
            }
            if begin > covered {
                return Err(SafeTensorsError::Hole {
                    begin: covered,
                    end: begin,
                });
            }
            (covered, last) = (end, index);
        }
        if covered < size {
            return Err(SafeTensorsError::Hole {
                begin: covered,
                end: size,
            });
        }
        Ok(())
    }
}

/// The header text and the data after it.
fn split(bytes: &Bytes) -> Result<(&[u8], Bytes), SafeTensorsError> {
    let size = bytes.len() as u64;
    let cut = |claimed| SafeTensorsError::Truncated { claimed, size };
    let claimed = u64::from_le_bytes(*bytes.first_chunk().ok_or(cut(0))?);
    let end = claimed
        .checked_add(8)
        .filter(|&end| end <= size)
        .ok_or(cut(claimed))? as usize;
    if claimed > MAX_HEADER_SIZE {
        return Err(SafeTensorsError::HeaderSize(claimed));
    }
    Ok((&bytes[8..end], bytes.slice(end..)))
}

fn metadata(header: &Header) -> Result<Vec<(String, String)>, SafeTensorsError> {
    let duplicate = |what, name: &str| SafeTensorsError::Duplicate {
        what,
        name: name.to_owned(),
    };
    if header.metadata.len() > 1 {
        return Err(duplicate("key", "__metadata__"));
    }
    let pairs = header.metadata.first().map_or(&[][..], |pairs| &pairs.0);
    let mut seen = HashSet::new();
    match pairs.iter().find(|(key, _)| !seen.insert(key)) {
        Some((key, _)) => Err(duplicate("key", key)),
        None => Ok(pairs.to_vec()),
    }
}

fn tensor(name: String, entry: Entry, data: &Bytes) -> Result<Tensor, SafeTensorsError> {
    let dtype = dtype(&entry.dtype, &name)?;
    if entry.shape.len() > MAX_RANK {
        return Err(SafeTensorsError::Rank {
            rank: entry.shape.len(),
            tensor: name,
        });
    }
    let Some(needed) = stored_size(&entry.shape, dtype) else {
        return Err(SafeTensorsError::Overflow(name));
    };
    let (begin, end) = entry.data_offsets;
    let size = data.len() as u64;
    if begin > end || end > size {
        return Err(SafeTensorsError::Range {
            begin,
            end,
            size,
            tensor: name,
        });
    }
    let found = end - begin;
    if found != needed {
        return Err(SafeTensorsError::Size {
            found,
            needed,
            tensor: name,
        });
    }
    let data = data.slice(begin as usize..end as usize);
    if let (DType::Bool, Some(&value)) = (dtype, data.iter().find(|&&byte| byte > 1)) {
        return Err(SafeTensorsError::Boolean {
            value,
            tensor: name,
        });
    }
    let dims = entry.shape.into_iter().map(|dim| dim as usize).collect();
    Ok(Tensor {
        name,
        dtype,
        dims,
        data,
    })
}

/// Names of element types in files.
pub(crate) const DTYPES: [(&str, DType); 19] = [
    ("BOOL", DType::Bool),
    ("F4", DType::F4E2M1),
    ("U8", DType::U8),
    ("I8", DType::I8),
    ("F8_E5M2", DType::F8E5M2),
    ("F8_E4M3", DType::F8E4M3FN),
    ("F8_E8M0", DType::F8E8M0),
    ("F8_E4M3FNUZ", DType::F8E4M3FNUZ),
    ("F8_E5M2FNUZ", DType::F8E5M2FNUZ),
    ("I16", DType::I16),
    ("U16", DType::U16),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("I32", DType::I32),
    ("U32", DType::U32),
    ("F32", DType::F32),
    ("F64", DType::F64),
    ("I64", DType::I64),
    ("U64", DType::U64),
];

fn dtype(name: &str, tensor: &str) -> Result<DType, SafeTensorsError> {
    if let Some((_, dtype)) = DTYPES.iter().find(|(known, _)| *known == name) {
        return Ok(*dtype);
    }
    let tensor = tensor.to_owned();
    match ["C64", "F6_E2M3", "F6_E3M2"]
        .into_iter()
        .find(|known| *known == name)
    {
        Some(dtype) => Err(SafeTensorsError::UnsupportedDType { dtype, tensor }),
        None => Err(SafeTensorsError::DType {
            dtype: name.to_owned(),
            tensor,
        }),
    }
}

/// Bytes of a tensor; `None` when they, or the product of the dimensions that are not zero, do not
/// fit into 63 bits or into the address space.
pub(crate) fn stored_size(dims: &[u64], dtype: DType) -> Option<u64> {
    let nonzero = dims.iter().filter(|&&dim| dim != 0);
    let len = nonzero.copied().try_fold(1u64, u64::checked_mul)?;
    let size = len.checked_mul(dtype.bits() as u64)?.div_ceil(8);
    let limit = isize::MAX as u64;
    let fits = len <= limit && size <= limit;
    fits.then_some(if dims.contains(&0) { 0 } else { size })
}

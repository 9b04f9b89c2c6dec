//! [`Gguf`]: the container read and checked. Time and memory are proportional to the file's header.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use cupola_source::Source;

use crate::error::GgufError;
use crate::metadata::{self, Array, Value, ValueType};
use crate::tensor_type::GgmlType;

/// A GGUF file. Every tensor lies in the file, no two share bytes, and names and keys are unique.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    alignment: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
    keys: HashMap<String, usize>,
    names: HashMap<String, usize>,
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name, unique in the file.
    pub name: String,
    /// The shape, outermost dimension first (the file has it the other way round).
    pub dims: Vec<usize>,
    /// How elements are stored. A row (the last dimension) is a whole number of blocks.
    pub kind: GgmlType,
    /// The stored elements, a slice of the file.
    pub data: Bytes,
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.dims.contains(&0)
    }
}

const ARCHITECTURE: &str = "general.architecture";
const ALIGNMENT: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u32 = 32;
const MAX_RANK: u32 = 4;

/// The least bytes that a key with its value and a tensor's entry take.
const MIN_KEY_SIZE: u64 = 8 + 4 + 1;
const MIN_TENSOR_SIZE: u64 = 8 + 4 + 4 + 8;

impl Gguf {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`GgufError`] for the first thing that is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, GgufError> {
        Gguf::read(&Source::open(path)?)
    }

    /// Reads a container from bytes, of which arrays, strings and tensor data stay slices.
    ///
    /// # Errors
    /// [`GgufError`] for the first thing that is wrong.
    pub fn read(source: &Source) -> Result<Gguf, GgufError> {
        let mut reader = Reader {
            bytes: source.bytes(),
            at: 0,
        };
        let version = read_version(&mut reader)?;
        let tensor_count = reader.count("tensors", MIN_TENSOR_SIZE)?;
        let key_count = reader.count("keys", MIN_KEY_SIZE)?;
        let (metadata, keys) = read_metadata(&mut reader, key_count)?;
        let alignment = check_general(&metadata, &keys)?;
        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            entries.push(read_entry(&mut reader, alignment)?);
        }
        let data_start = reader.at.checked_next_multiple_of(alignment as usize);
        let data = match data_start.filter(|&start| start <= source.bytes().len()) {
            Some(start) => source.bytes().slice(start..),
            None if entries.is_empty() => Bytes::new(),
            None => {
                return Err(GgufError::Truncated {
                    what: "tensor data",
                    offset: reader.at,
                });
            }
        };
        check_overlap(&entries)?;
        let mut names = HashMap::new();
        let mut tensors = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            if names.insert(entry.name.clone(), index).is_some() {
                return Err(GgufError::DuplicateTensor(entry.name));
            }
            tensors.push(entry.with_data(&data)?);
        }
        Ok(Gguf {
            version,
            alignment,
            metadata,
            tensors,
            keys,
            names,
        })
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every tensor begins at a multiple of this many bytes from the start of the file.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// All keys with their values, in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&index| &self.metadata[index].1)
    }

    /// The value of `general.architecture`, if it is there.
    pub fn architecture(&self) -> Option<&str> {
        self.get(ARCHITECTURE)?.as_str()
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.names.get(name).map(|&index| &self.tensors[index])
    }
}

/// A position in the file.
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn array<const SIZE: usize>(&mut self, what: &'static str) -> Result<[u8; SIZE], GgufError> {
        let found = self.bytes[self.at..].first_chunk();
        let found = *found.ok_or(GgufError::Truncated {
            what,
            offset: self.at,
        })?;
        self.at += SIZE;
        Ok(found)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_size` bytes each.
    fn count(&mut self, what: &'static str, min_size: u64) -> Result<u64, GgufError> {
        let offset = self.at;
        let count = self.u64(what)?;
        if count > (self.bytes.len() - self.at) as u64 / min_size {
            return Err(GgufError::Count {
                what,
                count,
                offset,
            });
        }
        Ok(count)
    }

    fn name(&mut self, what: &'static str) -> Result<String, GgufError> {
        let offset = self.at;
        let cut = GgufError::Truncated { what, offset };
        let (value, size) = metadata::decode(ValueType::String, self.bytes, self.at).ok_or(cut)?;
        self.at += size;
        let text = value.as_str().ok_or(GgufError::Utf8 { what, offset })?;
        Ok(text.to_owned())
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.value_type(key)?;
        if kind != ValueType::Array {
            return self.plain_value(kind, key);
        }
        let element = self.value_type(key)?;
        let min_size = match element {
            ValueType::Array => {
                return Err(GgufError::NestedArray {
                    key: key.to_owned(),
                });
            }
            ValueType::String => 8,
            _ => element.size().unwrap_or(1) as u64,
        };
        let len = self.count("array elements", min_size)? as usize;
        let start = self.at;
        match element.size() {
            Some(size) if element != ValueType::Bool => self.at += len * size,
            _ => {
                for _ in 0..len {
                    self.plain_value(element, key)?;
                }
            }
        }
        Ok(Value::Array(Array::new(
            element,
            len,
            self.bytes.slice(start..self.at),
        )))
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, GgufError> {
        let number = self.u32("a value type")?;
        let fault = || GgufError::ValueType {
            number,
            key: key.to_owned(),
        };
        ValueType::from_number(number).ok_or_else(fault)
    }

    fn plain_value(&mut self, kind: ValueType, key: &str) -> Result<Value, GgufError> {
        let fault = || GgufError::Value {
            kind: kind.name(),
            key: key.to_owned(),
        };
        let (value, size) = metadata::decode(kind, self.bytes, self.at).ok_or_else(fault)?;
        self.at += size;
        Ok(value)
    }
}

fn read_version(reader: &mut Reader<'_>) -> Result<u32, GgufError> {
    if !reader.bytes.starts_with(b"GGUF") {
        return Err(GgufError::Magic);
    }
    reader.at = 4;
    match reader.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        swapped if swapped != 0 && swapped & 0xffff == 0 => Err(GgufError::BigEndian),
        version => Err(GgufError::Version(version)),
    }
}

type Metadata = (Vec<(String, Value)>, HashMap<String, usize>);

fn read_metadata(reader: &mut Reader<'_>, count: u64) -> Result<Metadata, GgufError> {
    let mut metadata = Vec::new();
    let mut keys = HashMap::new();
    for index in 0..count {
        let key = reader.name("a key")?;
        if keys.insert(key.clone(), index as usize).is_some() {
            return Err(GgufError::DuplicateKey(key));
        }
        let value = reader.value(&key)?;
        metadata.push((key, value));
    }
    Ok((metadata, keys))
}

/// Checks the keys that the format itself defines, and returns the alignment.
fn check_general(
    metadata: &[(String, Value)],
    keys: &HashMap<String, usize>,
) -> Result<u32, GgufError> {
    let get = |key: &str| keys.get(key).map(|&index| &metadata[index].1);
    if get(ARCHITECTURE).is_some_and(|value| value.as_str().is_none()) {
        return Err(GgufError::KeyType {
            key: ARCHITECTURE,
            needed: "string",
        });
    }
    match get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(alignment)) if alignment.is_power_of_two() => Ok(alignment),
        Some(&Value::U32(alignment)) => Err(GgufError::Alignment(alignment)),
        Some(_) => Err(GgufError::KeyType {
            key: ALIGNMENT,
            needed: "u32",
        }),
    }
}

/// A row of the tensor table.
struct Entry {
    name: String,
    dims: Vec<usize>,
    kind: GgmlType,
    offset: u64,
    size: u64,
}

impl Entry {
    fn with_data(self, data: &Bytes) -> Result<Tensor, GgufError> {
        let Entry {
            name,
            dims,
            kind,
            offset,
            size,
        } = self;
        let end = offset
            .checked_add(size)
            .filter(|&end| end <= data.len() as u64);
        let Some(end) = end else {
            return Err(GgufError::Range {
                offset,
                size,
                tensor: name,
            });
        };
        Ok(Tensor {
            name,
            dims,
            kind,
            data: data.slice(offset as usize..end as usize),
        })
    }
}

fn read_entry(reader: &mut Reader<'_>, alignment: u32) -> Result<Entry, GgufError> {
    let name = reader.name("a tensor name")?;
    let rank = reader.u32("a tensor's rank")?;
    if rank > MAX_RANK {
        return Err(GgufError::Rank { rank, tensor: name });
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        dims.push(reader.u64("a tensor's shape")?);
    }
    let number = reader.u32("a tensor's type")?;
    let Some(kind) = GgmlType::from_number(number) else {
        return Err(match GgmlType::removed(number) {
            Some(removed) => GgufError::RemovedType {
                name: removed,
                tensor: name,
            },
            None => GgufError::TensorType {
                number,
                tensor: name,
            },
        });
    };
    let row = dims.first().copied().unwrap_or(1);
    if row % kind.block_len() != 0 {
        let (block, kind) = (kind.block_len(), kind.name());
        return Err(GgufError::Block {
            row,
            block,
            kind,
            tensor: name,
        });
    }
    let offset = reader.u64("a tensor's offset")?;
    let Some(size) = stored_size(&dims, kind) else {
        return Err(GgufError::Overflow(name));
    };
    if offset % u64::from(alignment) != 0 {
        return Err(GgufError::Misaligned {
            offset,
            alignment,
            tensor: name,
        });
    }
    let dims = dims.into_iter().rev().map(|dim| dim as usize).collect();
    Ok(Entry {
        name,
        dims,
        kind,
        offset,
        size,
    })
}

/// Bytes of a tensor; `None` when they, or the product of the dimensions that are not zero, do not
/// fit into 63 bits or into the address space.
fn stored_size(dims: &[u64], kind: GgmlType) -> Option<u64> {
    let nonzero = dims.iter().filter(|&&dim| dim != 0);
    let len = nonzero.copied().try_fold(1u64, u64::checked_mul)?;
    let size = len
        .div_ceil(kind.block_len())
        .checked_mul(kind.block_size())?;
    let limit = isize::MAX as u64;
    let fits = len <= limit && size <= limit;
    fits.then_some(if dims.contains(&0) { 0 } else { size })
}

fn check_overlap(entries: &[Entry]) -> Result<(), GgufError> {
    let mut order: Vec<&Entry> = entries.iter().filter(|entry| entry.size > 0).collect();
    order.sort_by_key(|entry| entry.offset);
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if second.offset - first.offset < first.size {
            let (other, tensor) = (first.name.clone(), second.name.clone());
            // A tensor that is there twice shares its data, but its name is the mistake.
            return Err(match other == tensor {
                true => GgufError::DuplicateTensor(tensor),
                false => GgufError::Overlap { other, tensor },
            });
        }
    }
    Ok(())
}

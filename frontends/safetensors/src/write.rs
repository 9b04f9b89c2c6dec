//! Writing safetensors files, for checkpoints and conversion.

use std::collections::HashSet;
use std::io::{self, Write};

use cupola_ir::{DType, Tensor};

use crate::read::{DTYPES, stored_size};

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct TensorToWrite<'a> {
    /// Name, unique in the file and not `__metadata__`.
    pub name: &'a str,
    /// Type of the elements; strings, block types and sub-byte integers have no place in the format.
    pub dtype: DType,
    /// The shape, outermost dimension first.
    pub dims: &'a [usize],
    /// Little-endian elements, exactly as many as the shape has.
    pub data: &'a [u8],
}

impl<'a> TensorToWrite<'a> {
    /// A tensor under a name.
    pub fn new(name: &'a str, tensor: &'a Tensor) -> TensorToWrite<'a> {
        TensorToWrite {
            name,
            dtype: tensor.dtype(),
            dims: tensor.shape(),
            data: tensor.bytes(),
        }
    }
}

/// Writes a file with these tensors and this metadata. The largest element types come first, so
/// that every tensor is aligned to its elements; the header is padded to eight bytes with blanks.
/// The same tensors in any order give the same bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for tensors that the format cannot hold, a size that does not
/// fit the shape, and repeated names; else what `out` returns.
pub fn write(
    out: &mut impl Write,
    tensors: &[TensorToWrite<'_>],
    metadata: &[(&str, &str)],
) -> io::Result<()> {
    let mut order: Vec<&TensorToWrite<'_>> = tensors.iter().collect();
    order.sort_by(|lhs, rhs| {
        rhs.dtype
            .bits()
            .cmp(&lhs.dtype.bits())
            .then(lhs.name.cmp(rhs.name))
    });
    let mut seen = HashSet::new();
    let mut header = String::from("{");
    if !metadata.is_empty() {
        header.push_str("\"__metadata__\":{");
        for (index, (key, value)) in metadata.iter().enumerate() {
            if !seen.insert(*key) {
                return Err(invalid("a metadata key is given twice"));
            }
            let separator = if index == 0 { "" } else { "," };
            header.push_str(&format!("{separator}{}:{}", json(key)?, json(value)?));
        }
        header.push('}');
    }
    seen.clear();
    let mut offset = 0;
    for tensor in &order {
        if !seen.insert(tensor.name) || tensor.name == "__metadata__" {
            return Err(invalid("a tensor name is given twice or reserved"));
        }
        let dtype = DTYPES.iter().find(|(_, dtype)| *dtype == tensor.dtype);
        let (dtype, _) =
            dtype.ok_or_else(|| invalid("an element type has no name in the format"))?;
        let dims: Vec<u64> = tensor.dims.iter().map(|&dim| dim as u64).collect();
        if stored_size(&dims, tensor.dtype) != Some(tensor.data.len() as u64) {
            return Err(invalid("the data of a tensor does not fit its shape"));
        }
        let end = offset + tensor.data.len();
        let separator = if header.len() == 1 { "" } else { "," };
        let (name, dims) = (json(tensor.name)?, json(&dims)?);
        header.push_str(&format!(
            "{separator}{name}:{{\"dtype\":\"{dtype}\",\"shape\":{dims},\"data_offsets\":[{offset},{end}]}}"
        ));
        offset = end;
    }
    header.push('}');
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    order
        .iter()
        .try_for_each(|tensor| out.write_all(tensor.data))
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> io::Result<String> {
    serde_json::to_string(value).map_err(io::Error::from)
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

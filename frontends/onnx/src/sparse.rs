//! Sparse tensors: checked, with linear positions, and made dense within a limit.

use bytes::Bytes;

use crate::external::ExternalFiles;
use crate::proto::SparseTensorProto;
use crate::tensor::{self, ElementType, TensorData, TensorFault, TensorView};

/// A sparse tensor: values at ascending positions of an otherwise zero tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseView {
    /// Type of the elements.
    pub element: ElementType,
    /// Shape of the dense tensor.
    pub dims: Vec<usize>,
    /// The values as raw data, one for each position.
    pub values: Bytes,
    /// Row-major positions in the dense tensor, strictly ascending, all inside the shape.
    pub positions: Vec<usize>,
}

impl SparseView {
    /// The dense tensor.
    ///
    /// # Errors
    /// [`TensorFault::DenseSize`] when it would take more than `max_size` bytes.
    pub fn to_dense(&self, max_size: u64) -> Result<TensorView, TensorFault> {
        let width = element_size(self.element)?;
        let len = self
            .dims
            .iter()
            .try_fold(1u64, |len, &dim| len.checked_mul(dim as u64));
        let size = len
            .and_then(|len| len.checked_mul(width as u64))
            .ok_or(TensorFault::Overflow)?;
        if size > max_size {
            return Err(TensorFault::DenseSize {
                size,
                limit: max_size,
            });
        }
        let mut dense = vec![0; size as usize];
        for (&position, value) in self.positions.iter().zip(self.values.chunks_exact(width)) {
            dense[position * width..][..width].copy_from_slice(value);
        }
        let data = TensorData::Raw(dense.into());
        Ok(TensorView {
            element: self.element,
            dims: self.dims.clone(),
            data,
        })
    }
}

fn element_size(element: ElementType) -> Result<usize, TensorFault> {
    match element.bits() {
        Some(bits) if bits % 8 == 0 => Ok(bits as usize / 8),
        Some(_) | None => Err(TensorFault::SparseElement),
    }
}

/// Maps the side files that a sparse tensor uses, and checks all of it.
pub(crate) fn check(
    sparse: &SparseTensorProto,
    files: &mut ExternalFiles,
) -> Result<(), TensorFault> {
    for part in [&sparse.values, &sparse.indices].into_iter().flatten() {
        tensor::check(part, files)?;
    }
    view(sparse, files).map(drop)
}

/// The sparse tensor with its positions. Indices may be linear (`[count]`) or one per dimension
/// (`[count, rank]`).
pub(crate) fn view(
    sparse: &SparseTensorProto,
    files: &ExternalFiles,
) -> Result<SparseView, TensorFault> {
    let part = |part: &Option<_>, missing| match part {
        Some(part) => tensor::view(part, files),
        None => Err(TensorFault::Sparse(missing)),
    };
    let values = part(&sparse.values, "the values are missing")?;
    let indices = part(&sparse.indices, "the indices are missing")?;
    let (dims, len) = tensor::shape(&sparse.dims)?;
    let &[count] = &values.dims[..] else {
        return Err(TensorFault::Sparse("the values must have one dimension"));
    };
    element_size(values.element)?;
    let TensorData::Raw(raw_values) = values.data else {
        return Err(TensorFault::SparseElement);
    };
    let (ElementType::Int64, TensorData::Raw(raw_indices)) = (indices.element, &indices.data)
    else {
        return Err(TensorFault::Sparse("the indices must be of type int64"));
    };
    let per_dimension = match &indices.dims[..] {
        [rows] if *rows == count => false,
        [rows, columns] if *rows == count && *columns == dims.len() => true,
        _ => {
            return Err(TensorFault::Sparse(
                "the shape of the indices fits neither form",
            ));
        }
    };
    let mut entries = raw_indices.chunks_exact(8).map(|entry| {
        let entry = entry
            .first_chunk()
            .map_or(0, |entry| i64::from_le_bytes(*entry));
        (entry, usize::try_from(entry))
    });
    let mut positions = Vec::with_capacity(count);
    for _ in 0..count {
        let position = if per_dimension {
            dims.iter()
                .try_fold(0, |position, &dim| match entries.next() {
                    Some((_, Ok(entry))) if entry < dim => Ok(position * dim + entry),
                    Some((index, _)) => Err(TensorFault::SparseIndex { index }),
                    None => unreachable!("bug: the number of indices was checked"),
                })?
        } else {
            match entries.next() {
                Some((_, Ok(entry))) if (entry as u64) < len => entry,
                Some((index, _)) => return Err(TensorFault::SparseIndex { index }),
                None => unreachable!("bug: the number of indices was checked"),
            }
        };
        if positions.last().is_some_and(|&last| last >= position) {
            return Err(TensorFault::Sparse("the indices must ascend"));
        }
        positions.push(position);
    }
    Ok(SparseView {
        element: values.element,
        dims,
        values: raw_values,
        positions,
    })
}

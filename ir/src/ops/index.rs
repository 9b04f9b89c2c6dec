//! Ops that address elements by data: gather, scatter and sort.

use super::{OpDef, may_equal, same_dtype, tensors};
use crate::attr::{attr_enum, payload};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor_type::{TensorType, ValueType};

attr_enum! {
    /// What an index outside its axis does.
    Bounds {
        /// The run fails with an error.
        Check = "check",
        /// The nearest valid index is used.
        Clamp = "clamp",
        /// A gather yields 0, a scatter leaves the element out.
        Skip = "skip",
    }
}

attr_enum! {
    /// How a scattered update meets the old value.
    ScatterKind {
        /// Replaces it; the last update in row-major order wins.
        Set = "set",
        /// Is added.
        Add = "add",
        /// Is multiplied.
        Mul = "mul",
        /// The larger stays.
        Max = "max",
        /// The smaller stays.
        Min = "min",
    }
}

/// Operand extents of gather and scatter, split in batch, index and window parts.
struct Split {
    index: Vec<Dim>,
    window: Vec<Dim>,
}

fn split(
    data: &TensorType,
    batch: usize,
    axes: &[usize],
    indices: &[&TensorType],
) -> Result<Split, String> {
    let rank = data.rank();
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != axes.len() || axes.iter().any(|a| *a >= rank || *a < batch) || batch > rank {
        return Err(format!(
            "indexed axes {axes:?} with {batch} batch axes of {data}"
        ));
    }
    if indices.len() != axes.len() || axes.is_empty() {
        return Err(format!(
            "needs one index operand for each of {} axes",
            axes.len()
        ));
    }
    let first = indices[0];
    for i in indices {
        let same = i.rank() == first.rank()
            && i.dims.iter().zip(&first.dims).all(|(a, b)| may_equal(a, b));
        if i.dtype != DType::I64 || !same {
            return Err(format!(
                "indices {first} and {i} must be i64 of the same extents"
            ));
        }
    }
    if first.rank() < batch || (0..batch).any(|a| !may_equal(&first.dims[a], &data.dims[a])) {
        return Err(format!(
            "indices {first} do not begin with the {batch} batch extents of {data}"
        ));
    }
    let window = (batch..rank)
        .filter(|a| !axes.contains(a))
        .map(|a| data.dims[a].clone())
        .collect();
    Ok(Split {
        index: first.dims.clone(),
        window,
    })
}

payload! {
    /// Operands `(data, index per axis of axes)`. Index operands have extents `[batch.., picked..]`, where the batch
    /// extents are the first `batch` of data. `out: [batch.., picked.., window..]`, where the window axes are those
    /// of data that are neither batch nor in `axes`, in order:
    /// `out[b, p, w] = data[b, axes := index[b, p], others := w]`. Indices are not negative.
    Gather {
        /// Indexed axes of data.
        axes: Vec<usize>,
        /// Leading axes that data and indices share.
        batch: usize,
        /// Indices outside.
        bounds: Bounds,
    }
}

impl OpDef for Gather {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, None)?;
        let (data, indices) = xs.split_first().ok_or("takes data and indices")?;
        let s = split(data, self.batch, &self.axes, indices)?;
        Ok(vec![
            TensorType {
                dtype: data.dtype,
                dims: [s.index, s.window].concat(),
            }
            .into(),
        ])
    }
}

payload! {
    /// Operands `(data, updates, index per axis of axes)`, with the extents of [`Gather`]'s result for `updates`. The
    /// result is data with the updates applied.
    Scatter {
        /// Indexed axes of data.
        axes: Vec<usize>,
        /// Leading axes that data and indices share.
        batch: usize,
        /// How updates meet old values.
        kind: ScatterKind,
        /// Indices outside.
        bounds: Bounds,
    }
}

impl OpDef for Scatter {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let xs = tensors(operands, None)?;
        let [data, updates, indices @ ..] = &xs[..] else {
            return Err("takes data, updates and indices".into());
        };
        same_dtype(&[data, updates])?;
        let s = split(data, self.batch, &self.axes, indices)?;
        let want = [s.index, s.window].concat();
        if want.len() != updates.rank()
            || want
                .iter()
                .zip(&updates.dims)
                .any(|(a, b)| !may_equal(a, b))
        {
            return Err(format!("updates {updates} should have extents {want:?}"));
        }
        Ok(vec![ValueType::Tensor((*data).clone())])
    }
}

payload! {
    /// Stable sort along an axis: results `(values, indices: i64)`. NaN counts as largest.
    Sort {
        /// Sorted axis.
        axis: usize,
        /// Largest first.
        descending: bool,
    }
}

impl OpDef for Sort {
    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        let x = tensors(operands, Some(1))?[0];
        if self.axis >= x.rank() {
            return Err(format!("axis {} of rank {}", self.axis, x.rank()));
        }
        let indices = TensorType {
            dtype: DType::I64,
            dims: x.dims.clone(),
        };
        Ok(vec![ValueType::Tensor(x.clone()), indices.into()])
    }
}

//! Sorting along an axis.

use super::operand::Operand;
use super::{Call, Failure};
use crate::library::sort::{Order, Selection, Sortable, select};
use crate::library::view::{Element, View, ViewMut};
use cupola_ir::ops::Sort;
use cupola_ir::{DType, TensorType};
use half::{bf16, f16};

/// Why this operand is not sorted here.
pub(crate) fn refusal(operands: &[&TensorType]) -> Option<String> {
    let [x] = operands else {
        return Some("takes one operand".into());
    };
    let known = x.dtype.is_whole_byte() && (x.dtype.is_int() || is_float(x.dtype));
    (!known).then(|| format!("no order of {}", x.dtype))
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

/// Sorts.
pub(crate) fn run(call: &Call, p: &Sort) -> Result<(), Failure> {
    match call.operands[0].dtype {
        DType::F16 => sort::<f16>(call, p),
        DType::BF16 => sort::<bf16>(call, p),
        DType::F32 => sort::<f32>(call, p),
        DType::F64 => sort::<f64>(call, p),
        DType::I8 => sort::<i8>(call, p),
        DType::I16 => sort::<i16>(call, p),
        DType::I32 => sort::<i32>(call, p),
        DType::I64 => sort::<i64>(call, p),
        DType::U8 => sort::<u8>(call, p),
        DType::U16 => sort::<u16>(call, p),
        DType::U32 => sort::<u32>(call, p),
        DType::U64 => sort::<u64>(call, p),
        d => unreachable!("bug: sort of {d} was refused before"),
    }
}

fn sort<T: Sortable>(call: &Call, p: &Sort) -> Result<(), Failure> {
    let order = match p.descending {
        true => Order::Descending,
        false => Order::Ascending,
    };
    let (shape, strides) = lines(&call.operands[0], p.axis);
    // SAFETY: operand and results are dense and lie inside their buffers; this call has the results alone.
    unsafe {
        let input = View::<T, 3>::from_raw(call.operands[0].start.cast(), shape, strides);
        let values = output::<T>(&call.results[0], shape, strides);
        let positions = output::<i64>(&call.results[1], shape, strides);
        let (values, positions) = (Some(values), Some(positions));
        Ok(select(
            &call.cx,
            order,
            Selection::Sorted,
            input,
            values,
            positions,
        )?)
    }
}

/// A dense operand as lines along an axis: extents and strides of `[outer, len, inner]`.
fn lines(x: &Operand, axis: usize) -> ([usize; 3], [usize; 3]) {
    let extent = |dims: &[usize]| dims.iter().product::<usize>();
    let (len, inner) = (x.dims[axis], extent(&x.dims[axis + 1..]));
    (
        [extent(&x.dims[..axis]), len, inner],
        [len * inner, inner, 1],
    )
}

/// A result with these extents.
///
/// # Safety
/// The result must be dense with that many elements of `T`, and nothing else may use it.
unsafe fn output<'a, T: Element>(
    x: &Operand,
    shape: [usize; 3],
    strides: [usize; 3],
) -> ViewMut<'a, T, 3> {
    // SAFETY: the caller's contract.
    unsafe { ViewMut::from_raw(x.start.cast(), shape, strides) }
}

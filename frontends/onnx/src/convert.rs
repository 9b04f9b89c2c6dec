//! Tensors and values between the file's form and the graph's.

use bytes::Bytes;
use cupola_ir::DType;
use cupola_ir::tensor::{Tensor, Value as IrValue};

use crate::tensor::{ElementType, TensorData, TensorView};
use crate::value::Value;

/// The dtype of an ONNX element type.
///
/// # Errors
/// The name of a type that the graph does not have.
pub fn dtype_of(element: ElementType) -> Result<DType, String> {
    Ok(match element {
        ElementType::Float => DType::F32,
        ElementType::Uint8 => DType::U8,
        ElementType::Int8 => DType::I8,
        ElementType::Uint16 => DType::U16,
        ElementType::Int16 => DType::I16,
        ElementType::Int32 => DType::I32,
        ElementType::Int64 => DType::I64,
        ElementType::String => DType::String,
        ElementType::Bool => DType::Bool,
        ElementType::Float16 => DType::F16,
        ElementType::Double => DType::F64,
        ElementType::Uint32 => DType::U32,
        ElementType::Uint64 => DType::U64,
        ElementType::Bfloat16 => DType::BF16,
        ElementType::Float8e4m3fn => DType::F8E4M3FN,
        ElementType::Float8e4m3fnuz => DType::F8E4M3FNUZ,
        ElementType::Float8e5m2 => DType::F8E5M2,
        ElementType::Float8e5m2fnuz => DType::F8E5M2FNUZ,
        ElementType::Uint4 => DType::U4,
        ElementType::Int4 => DType::I4,
        ElementType::Float4e2m1 => DType::F4E2M1,
        ElementType::Float8e8m0 => DType::F8E8M0,
        ElementType::Uint2 => DType::U2,
        ElementType::Int2 => DType::I2,
        ElementType::Undefined
        | ElementType::Complex64
        | ElementType::Complex128
        | ElementType::Float6e2m3
        | ElementType::Float6e3m2 => {
            return Err(format!("elements of type {}", element.as_str_name()));
        }
    })
}

/// The ONNX element type of a dtype; `None` for block types.
pub fn element_of(dtype: DType) -> Option<ElementType> {
    Some(match dtype {
        DType::Bool => ElementType::Bool,
        DType::I2 => ElementType::Int2,
        DType::I4 => ElementType::Int4,
        DType::I8 => ElementType::Int8,
        DType::I16 => ElementType::Int16,
        DType::I32 => ElementType::Int32,
        DType::I64 => ElementType::Int64,
        DType::U2 => ElementType::Uint2,
        DType::U4 => ElementType::Uint4,
        DType::U8 => ElementType::Uint8,
        DType::U16 => ElementType::Uint16,
        DType::U32 => ElementType::Uint32,
        DType::U64 => ElementType::Uint64,
        DType::F16 => ElementType::Float16,
        DType::BF16 => ElementType::Bfloat16,
        DType::F32 => ElementType::Float,
        DType::F64 => ElementType::Double,
        DType::F8E4M3FN => ElementType::Float8e4m3fn,
        DType::F8E4M3FNUZ => ElementType::Float8e4m3fnuz,
        DType::F8E5M2 => ElementType::Float8e5m2,
        DType::F8E5M2FNUZ => ElementType::Float8e5m2fnuz,
        DType::F8E8M0 => ElementType::Float8e8m0,
        DType::F4E2M1 => ElementType::Float4e2m1,
        DType::String => ElementType::String,
        DType::Block(_) => return None,
    })
}

/// A tensor of a file as a graph's tensor; numbers share the file's bytes.
///
/// # Errors
/// What the graph does not have: an element type, or text that is not UTF-8.
pub fn tensor_from_view(view: TensorView) -> Result<Tensor, String> {
    let dtype = dtype_of(view.element)?;
    let made = match view.data {
        TensorData::Raw(bytes) => Tensor::new(dtype, view.dims, bytes),
        TensorData::Strings(strings) => {
            let strings: Result<Vec<String>, _> = strings
                .iter()
                .map(|s| String::from_utf8(s.to_vec()))
                .collect();
            Tensor::from_strings(view.dims, strings.map_err(|_| "text that is not UTF-8")?)
        }
    };
    made.ok_or_else(|| "a tensor of this size".to_owned())
}

/// A graph's tensor as a file has it; `None` for block types.
pub fn view_from_tensor(t: &Tensor) -> Option<TensorView> {
    let data = match t.strings() {
        Some(s) => TensorData::Strings(
            s.iter()
                .map(|s| Bytes::copy_from_slice(s.as_bytes()))
                .collect(),
        ),
        None => TensorData::Raw(t.shared_bytes()?),
    };
    Some(TensorView {
        element: element_of(t.dtype())?,
        dims: t.shape().to_vec(),
        data,
    })
}

/// A value of a file as a graph's value.
///
/// # Errors
/// As [`tensor_from_view`].
pub fn value_from_file(value: Value) -> Result<IrValue, String> {
    Ok(match value {
        Value::Tensor(t) => IrValue::Tensor(tensor_from_view(t)?),
        Value::Sequence(v) => IrValue::Sequence(
            v.into_iter()
                .map(value_from_file)
                .collect::<Result<_, _>>()?,
        ),
        Value::Optional(v) => IrValue::Optional(match v {
            Some(v) => Some(Box::new(value_from_file(*v)?)),
            None => None,
        }),
    })
}

/// A graph's value as a file has it; `None` for block types.
pub fn value_to_file(value: &IrValue) -> Option<Value> {
    Some(match value {
        IrValue::Tensor(t) => Value::Tensor(view_from_tensor(t)?),
        IrValue::Sequence(v) => {
            Value::Sequence(v.iter().map(value_to_file).collect::<Option<_>>()?)
        }
        IrValue::Optional(v) => Value::Optional(match v {
            Some(v) => Some(Box::new(value_to_file(v)?)),
            None => None,
        }),
    })
}

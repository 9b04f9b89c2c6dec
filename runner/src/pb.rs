//! Values as ONNX test data (`.pb` files).

use crate::fail::{Failure, Outcome};
use cupola::onnx;
use cupola::{Value, ValueType};
use std::path::Path;

/// Reads one value of the kind that a type says.
pub fn read(path: &Path, ty: &ValueType) -> Outcome<Value> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io("cannot read", path, e))?;
    let kind = match ty {
        ValueType::Tensor(_) => onnx::ValueKind::Tensor,
        ValueType::Sequence(_) => onnx::ValueKind::Sequence,
        ValueType::Optional(_) => onnx::ValueKind::Optional,
    };
    let raw = onnx::Value::read(&bytes.into(), kind).map_err(cupola::Error::from)?;
    onnx::value_from_file(raw).map_err(|e| Failure::malformed(format!("{}: {e}", path.display())))
}

/// Writes one value.
pub fn write(path: &Path, name: &str, value: &Value) -> Outcome {
    let raw = onnx::value_to_file(value);
    let raw = raw.ok_or_else(|| {
        Failure::malformed(format!("{name}: of a type that ONNX files do not have"))
    })?;
    std::fs::write(path, raw.to_bytes(name)).map_err(|e| Failure::io("cannot write", path, e))
}

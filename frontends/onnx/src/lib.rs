//! Cupola: cupola-onnx.

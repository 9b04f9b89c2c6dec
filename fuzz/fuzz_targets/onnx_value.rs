//! A value file of each kind from any bytes. What is read must survive being written.
#![no_main]

use bytes::Bytes;
use cupola_onnx::{Value, ValueKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    for kind in [ValueKind::Tensor, ValueKind::Sequence, ValueKind::Optional] {
        if let Ok(value) = Value::read(&bytes, kind) {
            let written = Bytes::from(value.to_bytes("x"));
            assert_eq!(Value::read(&written, kind).ok(), Some(value));
        }
    }
});

//! A GGUF file from any bytes: metadata printed, small tensors dequantised.
#![no_main]

use cupola_gguf::{Gguf, dequantize};
use cupola_ir::DType;
use cupola_source::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Gguf::read(&Source::from_bytes(bytes.to_vec())) {
        Ok(file) => {
            for (key, value) in file.metadata() {
                assert!(file.get(key).is_some());
                value.to_string();
            }
            for tensor in file.tensors() {
                if let (Some(DType::Block(format)), 0..=65_536) = (tensor.kind.dtype(), tensor.len()) {
                    let mut out = vec![0.0; tensor.len()];
                    dequantize(format, &tensor.data, &mut out).expect("the size was checked");
                }
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() <= 400 && !text.chars().any(char::is_control), "{text:?}");
        }
    }
});

//! A safetensors file from any bytes. What is read must survive being written.
#![no_main]

use cupola_safetensors::{SafeTensors, TensorToWrite, write};
use cupola_source::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match SafeTensors::read(&Source::from_bytes(bytes.to_vec())) {
        Ok(file) => {
            let tensors: Vec<_> = file
                .tensors()
                .iter()
                .map(|tensor| TensorToWrite {
                    name: &tensor.name,
                    dtype: tensor.dtype,
                    dims: &tensor.dims,
                    data: &tensor.data,
                })
                .collect();
            let mut written = Vec::new();
            write(&mut written, &tensors, &[]).expect("what was read can be written");
            let again = SafeTensors::read(&Source::from_bytes(written)).expect("and read again");
            for tensor in file.tensors() {
                let other = again.tensor(&tensor.name).expect("with every tensor");
                assert_eq!(tensor.data, other.data);
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() <= 400 && !text.chars().any(char::is_control), "{text:?}");
        }
    }
});

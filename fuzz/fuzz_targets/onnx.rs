//! An ONNX model from any bytes: read, everything in it looked at, imported, exported.
#![no_main]

use cupola_onnx::{ImportOptions, Model, export, import};
use cupola_source::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Model::read(&Source::from_bytes(bytes.to_vec())) {
        Ok(model) => {
            for tensor in &model.graph().initializer {
                // Four elements at most share a byte of the file.
                let fits = |len: usize| len <= 4 * bytes.len();
                assert!(model.tensor(tensor).map_or(true, |view| fits(view.len())));
            }
            for sparse in &model.graph().sparse_initializer {
                model.sparse(sparse).map(|view| view.to_dense(1 << 20)).ok();
            }
            for node in &model.graph().node {
                model.function(node);
            }
            match import(&model, &ImportOptions::default()) {
                Ok(imported) => drop(export(&imported.graph, &|_| None)),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.len() <= 490 && !text.chars().any(char::is_control), "{text:?}");
                }
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() <= 400 && !text.chars().any(char::is_control), "{text:?}");
        }
    }
});

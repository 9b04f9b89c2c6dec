//! The same model from GGUF and from safetensors ends with the same kernels.

mod common;

use common::on;
use cupola_language::{LanguageModel, Options};
use cupola_runtime::{DeviceSpec, Host, Program};
use std::path::Path;

/// Names and machine code of all units, in order.
fn kernels(path: &Path) -> Vec<(String, String)> {
    let model = LanguageModel::open(path, &Options::default()).expect("a model");
    let program = Program::compile(model.graph, &Host::new(), &on(DeviceSpec::Cpu));
    program.expect("a program").listings()
}

#[test]
fn both_formats_end_with_the_same_kernels() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["qwen2", "qwen3", "gemma2", "phi3"] {
        let folder = kernels(&fixtures.join(name));
        let file = kernels(&fixtures.join(name).join("model.gguf"));
        assert!(folder.len() > 10, "{name}: {}", folder.len());
        assert!(folder.iter().any(|(_, code)| !code.is_empty()), "{name}");
        assert_eq!(folder.len(), file.len(), "{name}");
        for (a, b) in folder.iter().zip(&file) {
            assert_eq!(a, b, "{name}");
        }
    }
}

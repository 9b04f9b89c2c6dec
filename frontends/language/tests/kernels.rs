//! The same model from GGUF and from safetensors ends with the same kernels.

mod common;

use common::on;
use cupola_ir::Graph;
use cupola_language::{LanguageModel, Options};
use cupola_runtime::{DeviceSpec, Host, Program};
use std::path::{Path, PathBuf};

fn program(graph: Graph) -> Program {
    Program::compile(graph, &Host::new(), &on(DeviceSpec::Cpu)).expect("a program")
}

fn fixture(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    folder.join(name)
}

/// Names and machine code of all units, in order.
fn kernels(path: &Path) -> Vec<(String, String)> {
    let model = LanguageModel::open(path, &Options::default()).expect("a model");
    program(model.graph).listings()
}

/// Names of those of a model's layers, sorted: products with what was fused into them, attention and norms. Their code
/// differs where exporters write sums the other way round. How rows come in and go out differs: files of ONNX make a mask of
/// an input, the others are given rows of several texts.
fn of_layers(all: Vec<(String, String)>) -> Vec<String> {
    let is_of_layer = |name: &String| name.starts_with("contract") || name.starts_with("composite");
    let names = all.into_iter().map(|(name, _)| name);
    let mut kept: Vec<String> = names.filter(is_of_layer).collect();
    kept.sort();
    kept
}

#[test]
fn both_formats_end_with_the_same_kernels() {
    for name in ["qwen2", "qwen3", "gemma2", "phi3"] {
        let folder = kernels(&fixture(name));
        let file = kernels(&fixture(name).join("model.gguf"));
        assert!(folder.len() > 10, "{name}: {}", folder.len());
        assert!(folder.iter().any(|(_, code)| !code.is_empty()), "{name}");
        assert_eq!(folder.len(), file.len(), "{name}");
        for (a, b) in folder.iter().zip(&file) {
            assert_eq!(a, b, "{name}");
        }
    }
}

#[test]
fn an_exported_model_ends_with_the_same_kernels() {
    let read = cupola_onnx::Model::open(fixture("bert/model.onnx")).expect("a model");
    let imported = cupola_onnx::import(&read, &Default::default()).expect("a graph");
    let exported = of_layers(program(imported.graph).listings());
    let folder = of_layers(kernels(&fixture("bert")));
    let file = of_layers(kernels(&fixture("bert/model.gguf")));
    // Two layers of attention, two norms and four products at least, and a norm before them.
    assert!(exported.len() >= 15, "{exported:#?}");
    assert_eq!(exported, folder);
    assert_eq!(exported, file);
}

//! Language models are models: their graphs can be looked at, compiled and run like any other.

use cupola::{DType, Host, Model, Options, Tensor, Value};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../frontends/language/tests/fixtures")
        .join(name)
}

#[test]
fn a_decoder_shows_its_inputs_and_states() {
    for name in ["llama", "llama/model.gguf"] {
        let model = Model::open(fixture(name)).expect("a model");
        let types = model.input_types().expect("inputs");
        let names: Vec<&str> = types.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(
            names,
            ["tokens", "positions", "sequences", "table", "wanted"]
        );
        let graph = model.graph().expect("a graph");
        let slots: Vec<&str> = graph.slots.keys().map(String::as_str).collect();
        assert_eq!(slots, ["key.0", "key.1", "value.0", "value.1"]);
    }
}

#[test]
fn an_encoder_runs() {
    let model = Model::open(fixture("bert/model.gguf")).expect("a model");
    let mut runner = model.runner(Host::new().into(), Options::default());
    let ints = |v: &[i64]| Value::from(Tensor::from_slice(&[1, 3], v).expect("three"));
    let mask = Tensor::new(DType::Bool, vec![1, 3], vec![1u8; 3].into()).expect("three");
    let out = runner.run(vec![
        ("tokens", ints(&[3, 17, 40])),
        ("positions", ints(&[0, 1, 2])),
        ("mask", mask.into()),
        ("segments", ints(&[0, 0, 0])),
    ]);
    let out = out.expect("a run");
    let embedding = out[1].1.as_tensor().expect("a tensor");
    assert_eq!(
        (out[1].0.as_str(), embedding.shape()),
        ("embedding", &[1, 32][..])
    );
    let length: f32 = embedding
        .to_vec::<f32>()
        .expect("f32")
        .iter()
        .map(|x| x * x)
        .sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

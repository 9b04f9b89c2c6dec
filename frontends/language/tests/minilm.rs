//! MiniLM from its folder against `transformers` (`tests/models/reference`). `CUPOLA_TEST_MODELS` names the folder that
//! `scripts/fetch_models.py` filled; without it nothing is checked, and the test says so.

mod common;

use common::on;
use cupola_ir::{DType, Tensor, Value};
use cupola_language::{Kind, LanguageModel, Options};
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn member(name: &str) -> Vec<u8> {
    let path = "../../tests/models/reference/minilm-l6-v2-f32.npz";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let file = std::fs::File::open(&path).expect("a reference");
    let mut archive = zip::ZipArchive::new(file).expect("a zip archive");
    let mut bytes = vec![];
    let mut member = archive.by_name(&format!("{name}.npy")).expect(name);
    member.read_to_end(&mut bytes).expect("readable");
    bytes
}

fn array<T: npyz::Deserialize>(name: &str) -> Vec<T> {
    let bytes = member(name);
    let file = npyz::NpyFile::new(&bytes[..]).expect(name);
    file.into_vec().expect(name)
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS").map(PathBuf::from) else {
        eprintln!("CUPOLA_TEST_MODELS is not set: nothing is checked");
        return;
    };
    let path = folder.join("minilm-l6-v2-f32");
    let model = LanguageModel::open(path, &Options::default()).expect("a model");
    assert_eq!(model.config.kind, Kind::Encoder);
    assert_eq!((model.config.vocab_len, model.config.width), (30522, 384));
    let options = CompileOptions {
        precision: cupola_passes::Precision::F32,
        ..on(DeviceSpec::Cpu)
    };
    let program = Program::compile(model.graph, &Host::new(), &options).expect("a program");
    let mut session = Session::new(Arc::new(program));
    let ints = |v: &[i64]| Value::from(Tensor::from_slice(&[4, 12], v).expect("a batch"));
    let mask: Vec<u8> = array::<i64>("in.1").iter().map(|v| *v as u8).collect();
    let mask = Tensor::new(DType::Bool, vec![4, 12], mask.clone().into()).expect("a mask");
    let positions: Vec<i64> = (0..4).flat_map(|_| 0..12).collect();
    let out = session.run(vec![
        ("tokens", ints(&array("in.0"))),
        ("positions", ints(&positions)),
        ("mask", mask.clone().into()),
        ("segments", ints(&[0; 48])),
    ]);
    let out = out.expect("a run");
    let rows = |i: usize| {
        out[i]
            .1
            .as_tensor()
            .expect("a tensor")
            .to_vec::<f32>()
            .expect("f32")
    };
    let near = |what: &str, got: &[f32], want: &[f32]| {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() < 2e-5, "{what}, element {i}: {g} and {w}");
        }
    };
    let (hidden, want) = (rows(0), array::<f32>("out.0"));
    assert_eq!(hidden.len(), want.len());
    let seen = mask.bytes().iter().enumerate().filter(|(_, m)| **m == 1);
    for (i, _) in seen {
        let row = i * 384..(i + 1) * 384;
        near("hidden", &hidden[row.clone()], &want[row]);
    }
    let (embedding, want) = (rows(1), array::<f32>("out.1"));
    assert_eq!(embedding.len(), want.len());
    near("embedding", &embedding, &want);
}

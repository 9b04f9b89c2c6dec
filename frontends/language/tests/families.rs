//! Tiny random models of every family against `transformers`, from safetensors and from what llama.cpp's converter makes
//! of them (`fixtures/make.py`): all at once, in steps beside another sequence, by the interpreter and compiled.

mod common;

use common::{Rows, Running, on};
use cupola_ir::{DType, Tensor, Value};
use cupola_language::{Kind, LanguageModel, Options};
use cupola_passes::Precision;
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use cupola_safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn folders(kind: Kind) -> Vec<PathBuf> {
    let all = std::fs::read_dir(fixtures()).expect("fixtures").flatten();
    let mut folders: Vec<PathBuf> = all
        .map(|e| e.path())
        .filter(|path| path.join("config.json").exists())
        .filter(|path| open(path).config.kind == kind)
        .collect();
    folders.sort();
    folders
}

/// The folder itself and the GGUF file in it, perhaps split; what GGUF files cannot say has none.
fn forms(folder: &Path) -> Vec<PathBuf> {
    let files = ["model.gguf", "model-00002-of-00003.gguf"].map(|name| folder.join(name));
    let all = [folder.to_path_buf()].into_iter().chain(files);
    all.filter(|path| path.exists()).collect()
}

fn open(path: &Path) -> LanguageModel {
    let options = Options {
        cache_dtype: DType::F32,
        page_len: 4,
        ..Options::default()
    };
    LanguageModel::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Tokens and the rows that they should give, from a file beside the model.
fn expected(folder: &Path, name: &str) -> (Vec<i64>, Vec<Vec<f32>>) {
    let file = SafeTensors::open(folder.join("expected.safetensors")).expect("expectations");
    let read = |name: &str| {
        let t = file.tensor(name).expect("a tensor");
        Tensor::new(t.dtype, t.dims.clone(), t.data.clone()).expect("a tensor")
    };
    let rows = read(name);
    let width = rows.shape()[1];
    let all = rows.to_vec::<f32>().expect("f32");
    let tokens = read("tokens").to_i64s().expect("integers");
    (tokens, all.chunks(width).map(<[f32]>::to_vec).collect())
}

fn assert_near(what: &str, got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (r, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let near = (g - w).abs() <= 1e-4 * (1.0 + w.abs());
            assert!(near, "{what}, row {r}, element {i}: {g} and {w}");
        }
    }
}

fn f32_on(device: DeviceSpec) -> CompileOptions {
    CompileOptions {
        precision: Precision::F32,
        threads: 1,
        ..on(device)
    }
}

#[test]
fn decoders_give_the_logits_of_transformers() {
    let folders = folders(Kind::Decoder);
    assert!(folders.len() >= 12, "{folders:?}");
    for folder in folders {
        let (tokens, want) = expected(&folder, "logits");
        for path in forms(&folder) {
            let model = open(&path);
            cupola_ir::verify(&model.graph).expect("a valid graph");
            for device in [DeviceSpec::Reference, DeviceSpec::Cpu] {
                let what = format!("{} on {device}", path.display());
                let mut running = Running::new(&model, &f32_on(device), 1, 32);
                assert_near(&what, &running.whole(&tokens), &want);
            }
        }
    }
}

#[test]
fn steps_beside_another_sequence_give_the_same() {
    for folder in folders(Kind::Decoder) {
        let (tokens, want) = expected(&folder, "logits");
        let model = open(&folder);
        let mut running = Running::new(&model, &f32_on(DeviceSpec::Cpu), 3, 32);
        let other: Vec<i64> = tokens.iter().rev().copied().collect();
        let mut got = vec![];
        // The sequence lies in the middle of the table; the other one is a token ahead.
        for (start, len) in [(0, 7), (7, 1), (8, 1), (9, 5), (14, 6)] {
            let own = Rows {
                sequence: 1,
                start,
                tokens: &tokens[start..start + len],
            };
            let beside = Rows {
                sequence: 2,
                start,
                tokens: &other[start..start + len],
            };
            let (first, second) = if start == 8 {
                (beside, own)
            } else {
                (own, beside)
            };
            let at = if start == 8 { len } else { 0 };
            got.extend(running.step(&[first, second]).drain(at..at + len));
        }
        assert_near(&folder.display().to_string(), &got, &want);
    }
}

#[test]
fn encoders_give_the_rows_of_transformers_whatever_stands_beside() {
    let folders = folders(Kind::Encoder);
    assert!(!folders.is_empty());
    for folder in folders {
        let (tokens, want) = expected(&folder, "hidden");
        let len = tokens.len();
        // A shorter text beside it, filled up with anything.
        let batch: Vec<i64> = tokens.iter().chain(tokens.iter().rev()).copied().collect();
        let ints = |v: &[i64]| Value::from(Tensor::from_slice(&[2, len], v).expect("a batch"));
        let positions: Vec<i64> = (0..2).flat_map(|_| 0..len as i64).collect();
        let mask: Vec<u8> = (0..2 * len).map(|i| u8::from(i < len + 3)).collect();
        let mask = Tensor::new(DType::Bool, vec![2, len], mask.into()).expect("a mask");
        for path in forms(&folder) {
            let model = open(&path);
            for device in [DeviceSpec::Reference, DeviceSpec::Cpu] {
                let what = format!("{} on {device}", path.display());
                let program = Program::compile(model.graph.clone(), &Host::new(), &f32_on(device));
                let mut session = Session::new(Arc::new(program.expect("a program")));
                let inputs = vec![
                    ("tokens", ints(&batch)),
                    ("positions", ints(&positions)),
                    ("mask", mask.clone().into()),
                    ("segments", ints(&vec![0; 2 * len])),
                ];
                let out = session.run(inputs).expect("a run");
                let rows = |i: usize| out[i].1.as_tensor().expect("a tensor").to_vec::<f32>();
                let hidden = rows(0).expect("f32");
                let width = model.config.width;
                let hidden: Vec<Vec<f32>> = hidden.chunks(width).map(<[f32]>::to_vec).collect();
                assert_near(&what, &hidden[..len], &want);
                let embedding = rows(1).expect("f32");
                assert_near(&what, &[embedding[..width].to_vec()], &[pooled(&want)]);
                assert_near(
                    &what,
                    &[embedding[width..].to_vec()],
                    &[pooled(&hidden[len..len + 3])],
                );
            }
        }
    }
}

/// The mean of rows, of length 1.
fn pooled(rows: &[Vec<f32>]) -> Vec<f32> {
    let mean: Vec<f64> = (0..rows[0].len())
        .map(|i| rows.iter().map(|r| f64::from(r[i])).sum::<f64>() / rows.len() as f64)
        .collect();
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.iter().map(|x| (x / length) as f32).collect()
}

#[test]
fn texts_beyond_the_original_context_are_turned_by_the_long_factors() {
    let folder = fixtures().join("phi3");
    let file = SafeTensors::open(folder.join("expected-long.safetensors")).expect("expectations");
    let read = |name: &str| {
        let t = file.tensor(name).expect("a tensor");
        Tensor::new(t.dtype, t.dims.clone(), t.data.clone()).expect("a tensor")
    };
    let tokens = read("tokens").to_i64s().expect("integers");
    let logits = read("logits").to_vec::<f32>().expect("f32");
    let want: Vec<Vec<f32>> = logits.chunks(64).map(<[f32]>::to_vec).collect();
    // Asked for as the context, or known as the longest text that will come.
    for (context_len, text_len) in [(Some(80), None), (None, Some(80)), (None, Some(usize::MAX))] {
        let options = Options {
            cache_dtype: DType::F32,
            page_len: 4,
            context_len,
            text_len,
        };
        for path in forms(&folder) {
            let model = LanguageModel::open(&path, &options).expect("a model");
            let mut running = Running::new(&model, &f32_on(DeviceSpec::Cpu), 1, 80);
            assert_near(&path.display().to_string(), &running.whole(&tokens), &want);
        }
    }
    // Texts within the original context are turned by the short ones.
    let (tokens, want) = expected(&folder, "logits");
    let options = Options {
        cache_dtype: DType::F32,
        page_len: 4,
        context_len: None,
        text_len: Some(64),
    };
    let model = LanguageModel::open(&folder, &options).expect("a model");
    let mut running = Running::new(&model, &f32_on(DeviceSpec::Cpu), 1, 32);
    assert_near("short", &running.whole(&tokens), &want);
}

/// What PyTorch exports is the same model; `kernels` compares what is made of it.
#[test]
fn an_exported_encoder_agrees_with_pytorch() {
    let folder = fixtures().join("bert");
    let read = cupola_onnx::Model::open(folder.join("model.onnx")).expect("a model");
    let imported = cupola_onnx::import(&read, &Default::default()).expect("a graph");
    let options = f32_on(DeviceSpec::Cpu);
    let program = Program::compile(imported.graph, &Host::new(), &options).expect("a program");
    let (tokens, want) = expected(&folder, "hidden");
    let row = |values: &[i64]| Tensor::from_slice(&[1, values.len()], values).expect("a row");
    let inputs = vec![
        ("tokens", row(&tokens).into()),
        ("mask", row(&vec![1; tokens.len()]).into()),
        ("kinds", row(&vec![0; tokens.len()]).into()),
    ];
    let outputs = Session::new(Arc::new(program)).run(inputs).expect("a run");
    let hidden = outputs[0].1.as_tensor().and_then(Tensor::to_vec::<f32>);
    let hidden = hidden.expect("numbers");
    let rows: Vec<Vec<f32>> = hidden.chunks(want[0].len()).map(<[f32]>::to_vec).collect();
    assert_near("bert from ONNX", &rows, &want);
}

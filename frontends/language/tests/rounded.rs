//! Keys and values in 8 bits: the CPU as the interpreter, both near what keys as they are give, in half the memory.

mod common;

use common::{Rows, Running, on};
use cupola_ir::{DType, Tensor};
use cupola_language::{Kind, LanguageModel, Options};
use cupola_passes::Precision;
use cupola_runtime::{CompileOptions, DeviceSpec};
use std::path::{Path, PathBuf};

const TOKENS: [i64; 20] = [
    3, 17, 40, 8, 63, 0, 25, 25, 9, 31, 58, 2, 44, 12, 12, 50, 7, 36, 21, 5,
];

fn open(path: &Path, cache_dtype: DType) -> LanguageModel {
    let options = Options {
        cache_dtype,
        page_len: 4,
        ..Options::default()
    };
    LanguageModel::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Folders of decoders.
fn decoders() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let all = std::fs::read_dir(fixtures).expect("fixtures").flatten();
    let folders = all.map(|e| e.path());
    let folders = folders.filter(|path| path.join("config.json").exists());
    folders
        .filter(|path| open(path, DType::F32).config.kind == Kind::Decoder)
        .collect()
}

/// Logits of a prompt and of steps after it.
fn logits(model: &LanguageModel, device: DeviceSpec) -> Vec<Vec<f32>> {
    let options = CompileOptions {
        precision: Precision::F32,
        threads: 1,
        ..on(device)
    };
    let mut running = Running::new(model, &options, 1, 32);
    let mut all = vec![];
    for (start, len) in [(0, 9), (9, 1), (10, 6), (16, 1), (17, 3)] {
        let tokens = &TOKENS[start..start + len];
        all.extend(running.step(&[Rows {
            sequence: 0,
            start,
            tokens,
        }]));
    }
    all
}

/// The largest difference, over the root mean square of the second.
fn difference(got: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    let (got, want) = (got.concat(), want.concat());
    assert!(got.iter().all(|x| x.is_finite()) && got.len() == want.len());
    let square: f32 = want.iter().map(|x| x * x).sum();
    let most = got.iter().zip(&want).map(|(g, w)| (g - w).abs());
    most.fold(0.0, f32::max) / (square / want.len() as f32).sqrt()
}

#[test]
fn the_cpu_gives_what_the_interpreter_gives() {
    let folders = decoders();
    assert!(folders.len() >= 12, "{folders:?}");
    for folder in folders {
        let name = folder.display();
        let model = open(&folder, DType::I8);
        cupola_ir::verify(&model.graph).expect("a valid graph");
        let reference = logits(&model, DeviceSpec::Reference);
        let compiled = logits(&model, DeviceSpec::Cpu);
        // A number near half a step may be rounded to either side.
        let between = difference(&compiled, &reference);
        assert!(between < 0.02, "{name}: {between}");
        let exact = logits(&open(&folder, DType::F32), DeviceSpec::Cpu);
        let rounding = difference(&compiled, &exact);
        assert!((1e-5..0.1).contains(&rounding), "{name}: {rounding}");
    }
}

#[test]
fn a_page_takes_half_the_bytes() {
    for folder in decoders() {
        let [narrow, half] = [DType::I8, DType::F16].map(|dtype| open(&folder, dtype));
        let of = |model: &LanguageModel| -> usize {
            let slots = model.graph.slots.values().filter_map(|s| s.ty.as_tensor());
            let page = |t: &cupola_ir::TensorType| {
                let dims = t.dims[1..].iter().filter_map(cupola_ir::Dim::as_const);
                let dims: Vec<usize> = dims.map(|d| d as usize).collect();
                Tensor::size_of(t.dtype, &dims).expect("a size")
            };
            slots.map(page).sum()
        };
        assert_eq!(narrow.config.page_size(), of(&narrow));
        assert_eq!(half.config.page_size(), of(&half));
        // Heads of 8 elements have a scale each: 10 bytes of 16.
        assert!(of(&narrow) * 16 <= of(&half) * 10, "{}", folder.display());
    }
}

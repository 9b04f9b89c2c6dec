//! SmolLM2 against PyTorch in f64 on the widened weights. `CUPOLA_TEST_MODELS` names the folder that
//! `scripts/fetch_models.py` filled; without it nothing is checked, and the test says so.

mod common;

use common::{Rows, Running, best, on};
use cupola_ir::DType;
use cupola_language::{LanguageModel, Options};
use cupola_runtime::{CompileOptions, DeviceSpec};
use std::path::PathBuf;

/// `<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n`
const PROMPT: [i64; 16] = [
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
];

/// `The capital of France is Paris.` and the end of the turn.
const ANSWER: [i64; 8] = [504, 3575, 282, 4649, 314, 7042, 30, 2];

/// The most likely tokens at each step, with the logarithms of their probabilities.
const LIKELY: [[(usize, f64); 4]; 8] = [
    [
        (504, -0.587394),
        (60, -2.316642),
        (38634, -2.344618),
        (15319, -2.483865),
    ],
    [
        (3575, -0.006709),
        (14937, -5.817405),
        (1797, -7.581288),
        (5326, -8.058146),
    ],
    [
        (282, -0.004263),
        (2240, -5.531240),
        (314, -8.943666),
        (1215, -10.431590),
    ],
    [
        (4649, -0.008619),
        (260, -5.474939),
        (3432, -7.287160),
        (4004, -7.894922),
    ],
    [
        (314, -0.013339),
        (28, -4.413279),
        (282, -8.152346),
        (5721, -9.099779),
    ],
    [
        (7042, -0.029571),
        (450, -5.710815),
        (4528, -5.740892),
        (38634, -5.755959),
    ],
    [
        (30, -0.189606),
        (28, -1.780190),
        (731, -6.410107),
        (816, -7.736959),
    ],
    [
        (2, -0.352673),
        (669, -2.567039),
        (7042, -2.635828),
        (657, -4.021805),
    ],
];

fn log_probability(logits: &[f32], token: usize) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    f64::from(logits[token]) - max - sum.ln()
}

#[test]
fn the_answer_is_the_same() {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MODELS").map(PathBuf::from) else {
        eprintln!("CUPOLA_TEST_MODELS is not set: nothing is checked");
        return;
    };
    let path = folder.join("smollm2-135m-q4_1/model.gguf");
    let options = Options {
        cache_dtype: DType::F32,
        ..Options::default()
    };
    let model = LanguageModel::open(path, &options).expect("a model");
    assert_eq!(model.config.vocab_len, 49152);
    assert_eq!(model.config.blocks.len(), 30);
    let options = CompileOptions {
        precision: cupola_passes::Precision::F32,
        ..on(DeviceSpec::Cpu)
    };
    let mut running = Running::new(&model, &options, 1, 32);
    let mut logits = running.whole(&PROMPT).pop().expect("rows");
    for (i, token) in ANSWER.iter().enumerate() {
        assert_eq!(best(&logits), *token);
        for (token, want) in LIKELY[i] {
            let got = log_probability(&logits, token);
            assert!(
                (got - want).abs() < 2e-4,
                "step {i}, token {token}: {got} and {want}"
            );
        }
        let tokens = &[*token];
        let rows = Rows {
            sequence: 0,
            start: PROMPT.len() + i,
            tokens,
        };
        logits = running.step(&[rows]).pop().expect("a row");
    }
}

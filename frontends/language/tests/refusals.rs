//! Files that are no model, or not the model they say: one error that names what is wrong.

use cupola_ir::DType;
use cupola_language::{LanguageModel, Options};
use cupola_source::Fault;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(name)
}

/// A copy of a fixture's folder under the build folder, its configuration changed.
fn changed(name: &str, to: &str, from: &str, with: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(to);
    std::fs::create_dir_all(&folder).expect("a folder");
    let source = fixture(name);
    let config = std::fs::read_to_string(source.join("config.json")).expect("a configuration");
    assert!(config.contains(from), "{from}");
    std::fs::write(folder.join("config.json"), config.replace(from, with)).expect("written");
    let weights = "model.safetensors";
    std::fs::copy(source.join(weights), folder.join(weights)).expect("copied");
    folder
}

fn refusal(path: &Path) -> (String, Fault) {
    match LanguageModel::open(path, &Options::default()) {
        Ok(_) => panic!("{} was taken", path.display()),
        Err(e) => (e.to_string(), e.fault()),
    }
}

#[test]
fn configurations_that_do_not_fit_are_named() {
    for (i, (from, with, part, fault)) in [
        (
            "\"llama\"",
            "\"lama\"",
            "architecture 'lama' is not supported",
            Fault::Unsupported,
        ),
        (
            "\"hidden_size\": 32",
            "\"hidden_size\": 40",
            "tensor 'model.embed_tokens.weight'",
            Fault::Malformed,
        ),
        (
            "\"hidden_size\": 32",
            "\"hidden_size\": -1",
            "not a count, key 'hidden_size'",
            Fault::Malformed,
        ),
        (
            "\"hidden_size\": 32,",
            "",
            "missing, key 'hidden_size'",
            Fault::Malformed,
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "has no place in architecture 'llama'",
            Fault::Unsupported,
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "missing, tensor 'blk.2",
            Fault::Malformed,
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 2000000000",
            "2000000000 blocks",
            Fault::Malformed,
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 0",
            "is 0, key 'num_attention_heads'",
            Fault::Malformed,
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 3",
            "3 heads are no multiple of 2",
            Fault::Malformed,
        ),
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 64",
            "extents [32, 32] where [512, 32] are needed",
            Fault::Malformed,
        ),
        (
            "\"rms_norm_eps\": 1e-06",
            "\"rms_norm_eps\": \"x\"",
            "not a finite number",
            Fault::Malformed,
        ),
        (
            "\"silu\"",
            "\"softsign\"",
            "the function 'softsign'",
            Fault::Unsupported,
        ),
        (
            "\"rope_type\": \"default\"",
            "\"rope_type\": \"spiral\"",
            "the scaling 'spiral'",
            Fault::Unsupported,
        ),
        (
            "\"rope_type\": \"default\"",
            "\"rope_type\": \"linear\"",
            "missing, key 'factor'",
            Fault::Malformed,
        ),
        (
            "\"rope_theta\": 10000.0",
            "\"rope_theta\": 0.5",
            "not above 1",
            Fault::Malformed,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (error, found) = refusal(&changed("llama", &format!("refused-{i}"), from, with));
        assert!(error.contains(part), "{with}: {error}");
        assert_eq!(found, fault, "{error}");
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
    }
}

#[test]
fn options_that_no_cache_has_are_refused() {
    for options in [
        Options {
            page_len: 0,
            ..Options::default()
        },
        Options {
            cache_dtype: DType::I16,
            ..Options::default()
        },
        Options {
            context_len: Some(0),
            ..Options::default()
        },
    ] {
        assert!(
            LanguageModel::open(fixture("llama"), &options).is_err(),
            "{options:?}"
        );
    }
}

#[test]
fn cut_and_changed_files_are_refused_without_a_panic() {
    let bytes = std::fs::read(fixture("qwen3/model.gguf")).expect("a file");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutant.gguf");
    let mut state = 1u32;
    let mut random = |n: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % n
    };
    let (mut refused, header) = (0, 3000.min(bytes.len()));
    for i in 0..400 {
        let mut mutant = bytes.clone();
        match i % 4 {
            0 => mutant.truncate(random(bytes.len())),
            _ => {
                let at = random(header);
                mutant[at] = random(256) as u8;
            }
        }
        std::fs::write(&path, &mutant).expect("written");
        if let Err(e) = LanguageModel::open(&path, &Options::default()) {
            assert!(!e.to_string().contains('\n'), "{e}");
            refused += 1;
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn longer_contexts_turn_by_other_angles() {
    for name in ["phi3", "phi3/model.gguf"] {
        let open = |context_len| {
            let options = Options {
                context_len,
                ..Options::default()
            };
            let model = LanguageModel::open(fixture(name), &options).expect("a model");
            (
                model.config.context_len,
                cupola_ir::graph::text::print(&model.graph),
            )
        };
        let (short, long) = (open(Some(64)), open(Some(100)));
        assert_eq!((short.0, long.0), (64, 100));
        assert_eq!(open(None).1, short.1);
        assert_ne!(short.1, long.1);
    }
}

//! Every ONNX file of the malformed corpus: what the container layer must refuse, it refuses with
//! the right fault and one short line; everything else it reads.

use std::path::PathBuf;
use std::time::Instant;

use cupola_onnx::{Model, ReadError};
use cupola_source::Fault::{self, Limit, Malformed, Unsupported};

/// The unpacked corpus: `CUPOLA_TEST_MALFORMED`, or where `scripts/test.sh` unpacks it, or none.
/// The unpacked corpus, if the environment names one (`scripts/test.sh` does).
fn corpus() -> Option<PathBuf> {
    std::env::var_os("CUPOLA_TEST_MALFORMED").map(PathBuf::from)
}

/// The cases that are wrong whatever the operators mean, with the fault. Operator rules are the
/// importer's: those files must pass here.
const STRUCTURAL: &[(&str, Fault)] = &[
    ("onnx_empty_file", Malformed),
    ("onnx_text", Malformed),
    ("onnx_truncated_3", Malformed),
    ("onnx_truncated_8", Malformed),
    ("onnx_len_2g", Malformed),
    ("onnx_groups_deep", Malformed),
    ("onnx_type_nest_50k", Limit),
    ("onnx_subgraph_nest_3000", Limit),
    ("onnx_opset_999", Unsupported),
    ("onnx_dims_2e62x4", Malformed),
    ("onnx_dims_negative", Malformed),
    ("onnx_raw_short", Malformed),
    ("onnx_huge_no_data", Malformed),
    ("onnx_dtype_999", Malformed),
    ("onnx_sparse_index_out", Malformed),
    ("onnx_ext_traversal", Malformed),
    ("onnx_ext_traversal_mid", Malformed),
    ("onnx_ext_absolute", Malformed),
    ("onnx_ext_symlink", Malformed),
    ("onnx_ext_missing", Malformed),
    ("onnx_ext_offset_past", Malformed),
    ("onnx_ext_overflow", Malformed),
    ("onnx_cycle_2", Malformed),
    ("onnx_undefined_input", Malformed),
    ("onnx_dup_output", Malformed),
    ("onnx_output_unmade", Malformed),
    ("onnx_unknown_domain", Malformed),
    ("onnx_function_laughs", Limit),
    ("onnx_function_recursive", Malformed),
    ("onnx_if_undefined_capture", Malformed),
];

fn check_message(name: &str, error: &ReadError) {
    let text = error.to_string();
    assert!(text.len() <= 400, "{name}: {} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{name}: {text:?}");
    assert!(!text.contains("CANARY"), "{name}: {text}");
}

#[test]
fn the_corpus_is_taken_as_it_says() {
    let Some(folder) = corpus() else {
        eprintln!(
            "the malformed files are not unpacked (scripts/test.sh does it): nothing checked"
        );
        return;
    };
    let list = std::fs::read_to_string(folder.join("corpus.json")).expect("the corpus");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for case in list["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if case["format"] != "onnx" {
            continue;
        }
        seen += 1;
        let start = Instant::now();
        let model = Model::open(folder.join(name).join(case["file"].as_str().unwrap()));
        if start.elapsed().as_secs() >= 2 {
            wrong.push(format!("{name}: took {:?}", start.elapsed()));
        }
        if let Err(error) = &model {
            check_message(name, error);
        }
        let expected = STRUCTURAL
            .iter()
            .find(|(structural, _)| *structural == name);
        let found = model.as_ref().err().map(ReadError::fault);
        let fits = match expected {
            Some((_, fault)) => found == Some(*fault),
            None => case["expect"] == "survive" || found.is_none(),
        };
        if !fits {
            wrong.push(format!(
                "{name}: {:?}",
                model.map(|_| "accepted").map_err(|e| e.to_string())
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 60, "only {seen} ONNX files in {}", folder.display());
}

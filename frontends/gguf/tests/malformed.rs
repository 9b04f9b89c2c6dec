//! Every GGUF file of the malformed corpus: refused with the right fault and one short line, or
//! read.

use std::path::PathBuf;
use std::time::Instant;

use cupola_gguf::Gguf;
use cupola_source::Fault::{self, Limit, Malformed, Unsupported};

/// The unpacked corpus, if the environment names one (`scripts/test.sh` does).
fn corpus() -> Option<PathBuf> {
    std::env::var_os("CUPOLA_TEST_MALFORMED").map(PathBuf::from)
}

/// The fault of each refused file, where it is not simply malformed.
const FAULTS: &[(&str, Fault)] = &[
    ("gguf_version_99", Unsupported),
    ("gguf_arr_nested", Unsupported),
    ("gguf_ndims_9", Limit),
];

/// Well-formed containers whose hyperparameters make no sense. The architecture's importer knows.
const MODEL_RULES: &[&str] = &["gguf_hparam_head_count"];

#[test]
fn the_corpus_is_taken_as_it_says() {
    let Some(folder) = corpus() else { return };
    let list = std::fs::read_to_string(folder.join("corpus.json")).expect("the corpus");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let mut seen = 0;
    for case in list["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if case["format"] != "gguf" {
            continue;
        }
        seen += 1;
        let start = Instant::now();
        let file = Gguf::open(folder.join(name).join(case["file"].as_str().unwrap()));
        assert!(
            start.elapsed().as_secs() < 2,
            "{name} took {:?}",
            start.elapsed()
        );
        match file {
            Ok(_) => assert!(
                case["expect"] != "reject" || MODEL_RULES.contains(&name),
                "{name} was accepted"
            ),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    case["expect"] != "accept" && name != "gguf_control",
                    "{name}: {text}"
                );
                assert!(
                    text.len() <= 400 && !text.chars().any(char::is_control),
                    "{name}: {text}"
                );
                if case["expect"] == "reject" {
                    let expected = FAULTS.iter().find(|(known, _)| *known == name);
                    let expected = expected.map_or(Malformed, |(_, fault)| *fault);
                    assert_eq!(error.fault(), expected, "{name}: {text}");
                }
            }
        }
    }
    assert!(seen >= 20, "only {seen} GGUF files in {}", folder.display());
}

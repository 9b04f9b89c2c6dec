//! Every safetensors file of the malformed corpus: refused with the right fault and one short line, or
//! read.

use std::path::PathBuf;
use std::time::Instant;

use cupola_safetensors::SafeTensors;
use cupola_source::Fault;

/// The unpacked corpus, if the environment names one (`scripts/test.sh` does).
fn corpus() -> Option<PathBuf> {
    std::env::var_os("CUPOLA_TEST_MALFORMED").map(PathBuf::from)
}

#[test]
fn the_corpus_is_taken_as_it_says() {
    let Some(folder) = corpus() else { return };
    let list = std::fs::read_to_string(folder.join("corpus.json")).expect("the corpus");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let mut seen = 0;
    for case in list["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if case["format"] != "safetensors" {
            continue;
        }
        seen += 1;
        let start = Instant::now();
        let file = SafeTensors::open(folder.join(name).join(case["file"].as_str().unwrap()));
        assert!(
            start.elapsed().as_secs() < 2,
            "{name} took {:?}",
            start.elapsed()
        );
        match file {
            Ok(_) => assert!(case["expect"] != "reject", "{name} was accepted"),
            Err(error) => {
                let text = error.to_string();
                assert!(case["expect"] != "accept", "{name}: {text}");
                assert!(
                    text.len() <= 400 && !text.chars().any(char::is_control),
                    "{name}: {text}"
                );
                assert_eq!(error.fault(), Fault::Malformed, "{name}: {text}");
            }
        }
    }
    assert!(
        seen >= 15,
        "only {seen} safetensors files in {}",
        folder.display()
    );
}

//! Operator rules on broken files: every model of the malformed corpus that breaks one is refused with one short line,
//! the sound ones become valid graphs, and nothing takes long or much memory.

use std::path::PathBuf;
use std::time::Instant;

use cupola_ir::verify;
use cupola_onnx::{ImportError, ImportOptions, Model, import};

fn outcome(path: PathBuf) -> Result<(), String> {
    let model = Model::open(path).map_err(|e| e.to_string())?;
    match import(&model, &ImportOptions::default()) {
        Ok(imported) => {
            verify(&imported.graph).expect("a valid graph");
            Ok(())
        }
        Err(ImportError::NeedsInputs { values, .. }) => panic!("needs {values:?}"),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn the_corpus_is_taken_as_it_says() {
    let Some(folder) = std::env::var_os("CUPOLA_TEST_MALFORMED").map(PathBuf::from) else {
        eprintln!(
            "the malformed files are not unpacked (scripts/test.sh does it): nothing checked"
        );
        return;
    };
    let list = std::fs::read_to_string(folder.join("corpus.json")).expect("the corpus");
    let list: serde_json::Value = serde_json::from_str(&list).expect("a list");
    let (mut seen, mut wrong) = (0, vec![]);
    for case in list["cases"].as_array().expect("cases") {
        if case["format"] != "onnx" || case["verb"] != "check" {
            continue;
        }
        seen += 1;
        let name = case["name"].as_str().expect("a name");
        let start = Instant::now();
        let outcome = outcome(
            folder
                .join(name)
                .join(case["file"].as_str().expect("a file")),
        );
        let fits = match case["expect"].as_str() {
            Some("accept") => outcome.is_ok(),
            Some("reject") => outcome.is_err(),
            _ => true,
        };
        if let Err(text) = &outcome {
            assert!(text.len() <= 480, "{name}: {} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "{name}: {text:?}");
        }
        if !fits || start.elapsed().as_secs() >= 2 {
            wrong.push(format!("{name}: {outcome:?} in {:?}", start.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 60, "only {seen} ONNX files in {}", folder.display());
}

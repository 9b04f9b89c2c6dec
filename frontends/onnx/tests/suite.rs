//! Every model of the conformance suites is read with all its tensors, and every value file comes
//! back the same after it was written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cupola_onnx::proto::ValueInfoProto;
use cupola_onnx::{ExportError, ImportOptions, Model, Value, ValueKind, export, import};
use cupola_source::Source;
use prost::Message;

/// The folders of suites that the environment names (`scripts/test.sh` does).
fn suites() -> Vec<PathBuf> {
    let names = ["CUPOLA_TEST_SUITE", "CUPOLA_TEST_FUZZ"];
    names
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .collect()
}

fn check_value(file: &Path, info: &ValueInfoProto) {
    let kind = ValueKind::of_type(info.r#type.as_ref().expect("a type")).expect("a known kind");
    let source = Source::open(file).unwrap();
    let value = Value::read(source.bytes(), kind);
    let value = value.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let written = Bytes::from(value.to_bytes(info.name()));
    assert_eq!(
        Value::read(&written, kind).unwrap(),
        value,
        "{}",
        file.display()
    );
}

fn check_case(folder: &Path) -> usize {
    let model = Model::open(folder.join("model.onnx"));
    let model = model.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let graph = model.graph();
    for tensor in &graph.initializer {
        model
            .tensor(tensor)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    }
    let defaults: HashSet<&str> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name())
        .collect();
    let inputs = || {
        graph
            .input
            .iter()
            .filter(|input| !defaults.contains(input.name()))
    };
    let mut values = 0;
    for data_set in (0..).map(|index| folder.join(format!("test_data_set_{index}"))) {
        if !data_set.exists() {
            return values;
        }
        let inputs = inputs()
            .enumerate()
            .map(|(index, info)| (format!("input_{index}.pb"), info));
        let outputs = graph.output.iter().enumerate();
        let outputs = outputs.map(|(index, info)| (format!("output_{index}.pb"), info));
        for (name, info) in inputs.chain(outputs) {
            // An optional input may have no file.
            if data_set.join(&name).exists() {
                check_value(&data_set.join(&name), info);
                values += 1;
            }
        }
    }
    values
}

#[test]
fn models_and_values_are_read() {
    for suite in suites() {
        let folders = std::fs::read_dir(&suite)
            .expect("the suite")
            .map(|entry| entry.unwrap().path());
        let cases: Vec<PathBuf> = folders
            .filter(|folder| folder.join("model.onnx").exists())
            .collect();
        let values: usize = cases.iter().map(|case| check_case(case)).sum();
        assert!(
            cases.len() >= 50,
            "only {} cases in {}",
            cases.len(),
            suite.display()
        );
        assert!(
            values > cases.len(),
            "only {values} values in {}",
            suite.display()
        );
    }
}

#[test]
fn what_is_imported_is_exported_and_imported_again() {
    for suite in suites() {
        let mut exported = 0;
        for entry in std::fs::read_dir(&suite).expect("the suite") {
            let folder = entry.unwrap().path();
            let Ok(model) = Model::open(folder.join("model.onnx")) else {
                continue;
            };
            let Ok(imported) = import(&model, &ImportOptions::default()) else {
                continue;
            };
            let proto = match export(&imported.graph, &|_| None) {
                Ok(proto) => proto,
                Err(ExportError::Unsupported { .. }) => continue,
                Err(error) => panic!("{}: {error}", folder.display()),
            };
            let source = Source::from_bytes(proto.encode_to_vec());
            let again = Model::read(&source)
                .map_err(|error| error.to_string())
                .and_then(|model| {
                    let imported = import(&model, &ImportOptions::default());
                    imported.map_err(|error| error.to_string())
                });
            let again = again.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            let names = |graph: &cupola_ir::Graph| -> Vec<String> {
                graph
                    .outputs()
                    .iter()
                    .map(|(name, _)| name.to_string())
                    .collect()
            };
            assert_eq!(
                names(&again.graph),
                names(&imported.graph),
                "{}",
                folder.display()
            );
            exported += 1;
        }
        assert!(
            exported >= 50,
            "only {exported} exported from {}",
            suite.display()
        );
    }
}

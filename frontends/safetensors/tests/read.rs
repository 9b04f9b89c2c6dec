//! Files against the reference crate, folders, and damaged files.

use std::path::PathBuf;

use cupola_ir::DType;
use cupola_safetensors::{ModelFolder, SafeTensors, SafeTensorsError, TensorToWrite, write};
use cupola_source::{Fault, Source};
use proptest::prelude::*;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        data,
    ]
    .concat()
}

fn read(header: &str, data: &[u8]) -> Result<SafeTensors, SafeTensorsError> {
    SafeTensors::read(&Source::from_bytes(file(header, data)))
}

fn tensor<'a>(name: &'a str, dtype: DType, dims: &'a [usize], data: &'a [u8]) -> TensorToWrite<'a> {
    TensorToWrite {
        name,
        dtype,
        dims,
        data,
    }
}

fn sample() -> Vec<u8> {
    let mut bytes = Vec::new();
    let data: Vec<u8> = (0..64).collect();
    let tensors = [
        tensor("b", DType::F32, &[2, 3], &data[..24]),
        tensor("a \"quoted\"\n", DType::I64, &[], &data[..8]),
        tensor("flags", DType::Bool, &[2], &[0, 1]),
        tensor("none", DType::BF16, &[3, 0], &[]),
        tensor("small", DType::F4E2M1, &[4], &[0x21, 0x43]),
    ];
    write(&mut bytes, &tensors, &[("format", "pt"), ("who", "test")]).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_here_and_by_the_reference() {
    let bytes = sample();
    let ours = SafeTensors::read(&Source::from_bytes(bytes.clone())).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(ours.tensors().len(), theirs.len());
    for tensor in ours.tensors() {
        let reference = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(tensor.dims, reference.shape());
        assert_eq!(&tensor.data[..], reference.data());
    }
    assert_eq!(ours.tensor("flags").unwrap().dtype, DType::Bool);
    assert!(ours.tensor("nothing").is_none());
    assert_eq!(ours.metadata()[1], ("who".to_owned(), "test".to_owned()));
}

#[test]
fn what_the_reference_writes_is_read() {
    use safetensors::tensor::TensorView;
    let data: Vec<u8> = (0..48).collect();
    let view =
        |dtype, dims: &[usize], len| TensorView::new(dtype, dims.to_vec(), &data[..len]).unwrap();
    let tensors = [
        ("x", view(safetensors::Dtype::F16, &[3, 2], 12)),
        ("y", view(safetensors::Dtype::F8_E4M3, &[5], 5)),
        ("z", view(safetensors::Dtype::U64, &[2, 3], 48)),
    ];
    let bytes = safetensors::serialize(tensors.clone(), None).unwrap();
    let ours = SafeTensors::read(&Source::from_bytes(bytes)).unwrap();
    for (name, reference) in &tensors {
        let tensor = ours.tensor(name).unwrap();
        assert_eq!(tensor.dims, reference.shape());
        assert_eq!(&tensor.data[..], reference.data());
    }
    assert_eq!(ours.tensor("y").unwrap().dtype, DType::F8E4M3FN);
}

#[test]
fn writing_refuses_what_the_format_cannot_hold() {
    let refused = |tensors: &[TensorToWrite<'_>]| {
        write(&mut Vec::new(), tensors, &[])
            .unwrap_err()
            .to_string()
    };
    let good = tensor("a", DType::U8, &[1], &[1]);
    assert!(refused(&[good, good]).contains("twice"));
    assert!(refused(&[TensorToWrite { dims: &[2], ..good }]).contains("shape"));
    assert!(
        refused(&[TensorToWrite {
            dtype: DType::I4,
            ..good
        }])
        .contains("type")
    );
    assert!(
        refused(&[TensorToWrite {
            name: "__metadata__",
            ..good
        }])
        .contains("reserved")
    );
}

fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn refused(entries: &[(&str, String)], size: usize) -> SafeTensorsError {
    let entries: Vec<String> = entries
        .iter()
        .map(|(name, entry)| format!("\"{name}\":{entry}"))
        .collect();
    read(&format!("{{{}}}", entries.join(",")), &vec![9; size]).unwrap_err()
}

#[test]
fn mistakes_are_named() {
    let text = |entries: &[(&str, String)], size| refused(entries, size).to_string();
    let first = || ("a", entry("U8", "[1]", 0, 1));
    expect_test::expect!["the tensor is there twice, tensor 'a'"]
        .assert_eq(&text(&[first(), ("a", entry("U8", "[1]", 1, 2))], 2));
    expect_test::expect!["the data overlaps that of 'a', tensor 'b'"].assert_eq(&text(
        &[
            ("b", entry("U8", "[2]", 1, 3)),
            ("a", entry("U8", "[2]", 0, 2)),
        ],
        3,
    ));
    expect_test::expect!["bytes 1 to 2 of the data belong to no tensor"]
        .assert_eq(&text(&[first(), ("b", entry("U8", "[1]", 2, 3))], 3));
    expect_test::expect!["bytes 1 to 3 of the data belong to no tensor"]
        .assert_eq(&text(&[first()], 3));
    expect_test::expect!["bytes 4 to 0 are not a range of the 4 bytes of data, tensor 'a'"]
        .assert_eq(&text(&[("a", entry("F32", "[1]", 4, 0))], 4));
    expect_test::expect!["the data has 4 bytes, 8 are needed for the shape, tensor 'a'"]
        .assert_eq(&text(&[("a", entry("F32", "[2]", 0, 4))], 4));
    expect_test::expect!["a boolean is stored as 9, tensor 'a'"]
        .assert_eq(&text(&[("a", entry("BOOL", "[1]", 0, 1))], 1));
    expect_test::expect!["the number of elements or bytes overflows, tensor 'a'"].assert_eq(&text(
        &[("a", entry("F32", "[4294967296,4294967296,0]", 0, 0))],
        0,
    ));
    expect_test::expect!["element type 'F33' does not exist, tensor 'a'"]
        .assert_eq(&text(&[("a", entry("F33", "[]", 0, 4))], 4));
    assert!(text(&[("a", entry("U8", "[-1]", 0, 1))], 1).contains("of the header"));
    assert!(text(&[("a", entry("U8", "[1.5]", 0, 1))], 1).contains("of the header"));
}

#[test]
fn limits_and_unsupported_types_are_told_from_mistakes() {
    assert_eq!(
        refused(&[("a", entry("C64", "[]", 0, 8))], 8).fault(),
        Fault::Unsupported
    );
    let rank = format!("{:?}", [1; 65]);
    assert_eq!(
        refused(&[("a", entry("U8", &rank, 0, 1))], 1).fault(),
        Fault::Limit
    );
    let mut large = vec![0; 8 + 100_000_001];
    large[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    let error = SafeTensors::read(&Source::from_bytes(large)).unwrap_err();
    assert_eq!(error.fault(), Fault::Limit);
}

#[test]
fn metadata_is_there_once_and_its_keys_too() {
    let refused = |header| read(header, &[]).unwrap_err().to_string();
    let twice = refused(r#"{"__metadata__":{},"__metadata__":{}}"#);
    assert_eq!(twice, "the key is there twice, key '__metadata__'");
    let twice = refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#);
    assert_eq!(twice, "the key is there twice, key 'k'");
    assert!(read("{}", &[]).unwrap().tensors().is_empty());
}

/// A folder of its own for one test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("cupola-safetensors-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), content).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn shard(name: &str, value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = [value];
    write(
        &mut bytes,
        &[tensor(name, DType::U8, &[1], &data)],
        &[("from", name)],
    )
    .unwrap();
    bytes
}

#[test]
fn folders_with_one_file_and_with_shards() {
    let folder = Folder::new("folder");
    assert!(matches!(
        ModelFolder::open(&folder.0),
        Err(SafeTensorsError::NoWeights(_))
    ));
    folder.put("other.safetensors", shard("x", 1));
    folder.put("config.json", r#"{"model_type": "llama"}"#);
    let model = ModelFolder::open(&folder.0).unwrap();
    assert_eq!(model.config.unwrap()["model_type"], "llama");
    assert_eq!(model.weights.tensor("x").unwrap().data[..], [1]);
    folder.put("second.safetensors", shard("y", 2));
    assert!(
        ModelFolder::open(&folder.0).is_err(),
        "two files without an index"
    );
    folder.put("model.safetensors", shard("z", 3));
    assert!(
        ModelFolder::open(&folder.0)
            .unwrap()
            .weights
            .tensor("z")
            .is_some()
    );

    let index = |map: &str| {
        let text = format!(r#"{{"metadata": {{"total_size": 2}}, "weight_map": {map}}}"#);
        folder.put("model.safetensors.index.json", text);
        ModelFolder::open(&folder.0)
    };
    let model = index(r#"{"y": "second.safetensors", "x": "other.safetensors"}"#).unwrap();
    let names: Vec<_> = model
        .weights
        .tensors()
        .iter()
        .map(|tensor| &tensor.name[..])
        .collect();
    assert_eq!(names, ["y", "x"]);
    assert_eq!(
        model.weights.metadata(),
        [("from".to_owned(), "y".to_owned())]
    );
    let refused = |map: &str| index(map).unwrap_err().to_string();
    assert!(refused(r#"{"y": "../second.safetensors"}"#).contains("outside the folder"));
    assert!(refused(r#"{"y": "/second.safetensors"}"#).contains("outside the folder"));
    assert!(refused(r#"{"y": "missing.safetensors"}"#).contains("cannot read"));
    assert!(refused(r#"{"q": "second.safetensors"}"#).contains("tensor 'q'"));
    let twice = r#"{"y": "second.safetensors", "y": "second.safetensors"}"#;
    assert!(refused(twice).contains("there twice"));
    folder.put("config.json", "[".repeat(100_000));
    assert!(refused("{}").contains("of config.json"));
}

fn exercise(bytes: Vec<u8>) {
    match SafeTensors::read(&Source::from_bytes(bytes)) {
        Ok(file) => {
            for tensor in file.tensors() {
                let bits = tensor.dims.iter().product::<usize>() * tensor.dtype.bits();
                assert_eq!(tensor.data.len(), bits.div_ceil(8));
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.len() <= 400 && !text.chars().any(char::is_control),
                "{text:?}"
            );
        }
    }
}

#[test]
fn every_cut_and_every_single_bit_flip() {
    let sample = sample();
    for len in 0..sample.len() {
        exercise(sample[..len].to_vec());
    }
    for bit in 0..sample.len() * 8 {
        let mut bytes = sample.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        exercise(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_text(damage in prop::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..8)) {
        let mut bytes = sample();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        exercise(bytes);
    }

    #[test]
    fn any_header(picks in prop::collection::vec(prop::sample::select(&b"[]{}\",:019adF_\\ "[..]), 0..80)) {
        let header: String = picks.into_iter().map(char::from).collect();
        exercise(file(&header, &[]));
    }
}

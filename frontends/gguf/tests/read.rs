//! A valid file with every value type, and damaged ones.

use cupola_gguf::{GgmlType, Gguf, GgufError, Value, ValueType};
use cupola_ir::{BlockFormat, DType};
use cupola_source::Source;
use proptest::prelude::*;

/// Writes GGUF files as they come, right or wrong.
#[derive(Clone, Default)]
struct File {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

impl File {
    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> File {
        self.keys
            .push([text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self
    }

    fn array(self, key: &str, element: u32, len: u64, values: &[u8]) -> File {
        let head = [&element.to_le_bytes()[..], &len.to_le_bytes()].concat();
        self.key(key, 9, &[&head[..], values].concat())
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> File {
        let mut entry = text(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        entry.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn read(&self) -> Result<Gguf, GgufError> {
        Gguf::read(&Source::from_bytes(self.bytes()))
    }
}

fn sample() -> File {
    let strings = [text("one"), text(""), text("th\u{1b}ree")].concat();
    File {
        data: (0..164).collect(),
        ..File::default()
    }
    .key("general.architecture", 8, &text("llama"))
    .key("a.u8", 0, &[200])
    .key("a.i8", 1, &[200])
    .key("a.u16", 2, &60_000u16.to_le_bytes())
    .key("a.i16", 3, &(-5i16).to_le_bytes())
    .key("a.u32", 4, &4_000_000_000u32.to_le_bytes())
    .key("a.i32", 5, &(-6i32).to_le_bytes())
    .key("a.f32", 6, &1.5f32.to_le_bytes())
    .key("a.bool", 7, &[1])
    .key("a.u64", 10, &u64::MAX.to_le_bytes())
    .key("a.i64", 11, &i64::MIN.to_le_bytes())
    .key("a.f64", 12, &(-0.25f64).to_le_bytes())
    .array("a.strings", 8, 3, &strings)
    .array(
        "a.numbers",
        4,
        10,
        &(0..10u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
    )
    .array("a.flags", 7, 2, &[0, 1])
    .array("a.empty", 12, 0, &[])
    .tensor("blocks", &[32, 2], 2, 0)
    .tensor("plain", &[3, 2, 4], 1, 64)
    .tensor("scalar", &[], 0, 128)
    .tensor("none", &[0, 5], 0, 160)
}

#[test]
fn every_value_type_and_the_tensor_table() {
    let file = sample().read().unwrap();
    assert_eq!((file.version(), file.alignment()), (3, 32));
    assert_eq!(file.architecture(), Some("llama"));
    assert_eq!(file.get("a.u8").unwrap().as_u64(), Some(200));
    assert_eq!(file.get("a.i8"), Some(&Value::I8(-56)));
    assert_eq!(file.get("a.i8").unwrap().as_u64(), None);
    assert_eq!(file.get("a.bool").unwrap().as_bool(), Some(true));
    assert_eq!(file.get("a.f64").unwrap().as_f64(), Some(-0.25));
    assert_eq!(file.get("a.missing"), None);
    let strings = file.get("a.strings").unwrap().as_array().unwrap();
    assert_eq!((strings.element(), strings.len()), (ValueType::String, 3));
    let values: Vec<_> = strings.iter().collect();
    assert_eq!(values[2].as_str(), Some("th\u{1b}ree"));
    let dump: Vec<String> = file
        .metadata()
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    expect_test::expect![[r#"
        general.architecture = "llama"
        a.u8 = 200
        a.i8 = -56
        a.u16 = 60000
        a.i16 = -5
        a.u32 = 4000000000
        a.i32 = -6
        a.f32 = 1.5
        a.bool = true
        a.u64 = 18446744073709551615
        a.i64 = -9223372036854775808
        a.f64 = -0.25
        a.strings = string[3] ["one", "", "th\u{1b}ree"]
        a.numbers = u32[10] [0, 1, 2, 3, 4, 5, 6, 7, ...]
        a.flags = bool[2] [false, true]
        a.empty = f64[0] []"#]]
    .assert_eq(&dump.join("\n"));

    let blocks = file.tensor("blocks").unwrap();
    assert_eq!(blocks.dims, [2, 32]);
    assert_eq!(
        blocks.kind,
        GgmlType::Known(DType::Block(BlockFormat::Q4_0))
    );
    assert_eq!(&blocks.data[..], (0..36).collect::<Vec<u8>>());
    assert_eq!(file.tensor("plain").unwrap().data[0], 64);
    assert_eq!(file.tensor("plain").unwrap().dims, [4, 2, 3]);
    assert_eq!(
        (file.tensors()[2].len(), file.tensors()[2].data.len()),
        (1, 4)
    );
    assert!(file.tensor("none").unwrap().is_empty());
}

#[test]
fn mistakes_are_named() {
    let refused = |file: File| file.read().map(|_| ()).unwrap_err().to_string();
    let file = || File {
        data: vec![0; 64],
        ..File::default()
    };
    let first = file().tensor("a", &[16], 0, 0);
    expect_test::expect!["the data overlaps that of 'a', tensor 'b'"]
        .assert_eq(&refused(first.clone().tensor("b", &[1], 0, 32)));
    expect_test::expect!["the tensor is there twice, tensor 'a'"]
        .assert_eq(&refused(first.clone().tensor("a", &[1], 0, 32)));
    expect_test::expect!["the tensor is there twice, tensor 'a'"]
        .assert_eq(&refused(first.tensor("a", &[0], 0, 32)));
    expect_test::expect!["68 bytes at offset 0 run past the end of the data, tensor 'a'"]
        .assert_eq(&refused(file().tensor("a", &[17], 0, 0)));
    expect_test::expect!["offset 8 is not a multiple of the alignment 32, tensor 'a'"]
        .assert_eq(&refused(file().tensor("a", &[1], 0, 8)));
    expect_test::expect!["tensor type Q4_2 is no longer supported, tensor 'a'"]
        .assert_eq(&refused(file().tensor("a", &[32], 4, 0)));
    expect_test::expect!["the number of elements or bytes overflows, tensor 'a'"]
        .assert_eq(&refused(file().tensor("a", &[1 << 40, 1 << 40, 0], 0, 0)));
    expect_test::expect!["the number of elements or bytes overflows, tensor 'a'"]
        .assert_eq(&refused(file().tensor("a", &[1 << 62], 0, 0)));
    expect_test::expect!["the value must be of type u32, key 'general.alignment'"].assert_eq(
        &refused(file().key("general.alignment", 10, &[32, 0, 0, 0, 0, 0, 0, 0])),
    );
    expect_test::expect!["alignment 24 is not a power of two, key 'general.alignment'"]
        .assert_eq(&refused(file().key("general.alignment", 4, &[24, 0, 0, 0])));
    expect_test::expect!["the value is cut or not a valid bool, key 'b'"]
        .assert_eq(&refused(file().array("b", 7, 2, &[0, 2])));
    expect_test::expect!["value type 13 does not exist, key 'b'"]
        .assert_eq(&refused(file().key("b", 13, &[0; 8])));
    let mut swapped = sample().bytes();
    swapped[4..8].copy_from_slice(&[0, 0, 0, 3]);
    let error = Gguf::read(&Source::from_bytes(swapped)).unwrap_err();
    assert!(matches!(error, GgufError::BigEndian));
}

fn exercise(bytes: Vec<u8>) {
    match Gguf::read(&Source::from_bytes(bytes)) {
        Ok(file) => {
            for (key, value) in file.metadata() {
                assert!(file.get(key).is_some() && value.to_string().len() < 10_000);
                if let Value::Array(array) = value {
                    assert_eq!(array.iter().count(), array.len());
                }
            }
            for tensor in file.tensors() {
                let blocks = tensor.len() as u64 / tensor.kind.block_len();
                assert_eq!(tensor.data.len() as u64, blocks * tensor.kind.block_size());
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
    let sample = sample().bytes();
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
    fn several_damaged_words(damage in prop::collection::vec(
        (any::<prop::sample::Index>(), prop_oneof![any::<u64>(), 0..64u64, (0..64u32).prop_map(|bit| 1 << bit)]),
        1..6,
    )) {
        let mut bytes = sample().bytes();
        for (index, value) in damage {
            let index = index.index(bytes.len() - 8);
            bytes[index..index + 8].copy_from_slice(&value.to_le_bytes());
        }
        exercise(bytes);
    }
}

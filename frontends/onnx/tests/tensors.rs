//! Every element type in every storage form, side files, sparse tensors, value files, and a model
//! larger than 2 GiB.

use std::path::PathBuf;

use bytes::Bytes;
use cupola_onnx::proto::tensor_proto::DataLocation;
use cupola_onnx::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto,
    TensorProto,
};
use cupola_onnx::{
    ElementType, Model, ReadError, TensorData, TensorFault, TensorView, Value, ValueKind,
};
use cupola_source::{Fault, Source};
use prost::Message;

fn model_of(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(21),
        }],
        graph: Some(graph),
        ..Default::default()
    }
}

fn read(tensor: TensorProto) -> Result<TensorView, TensorFault> {
    let tensor = TensorProto {
        name: Some("t".into()),
        ..tensor
    };
    let graph = GraphProto {
        initializer: vec![tensor],
        ..Default::default()
    };
    let source = Source::from_bytes(model_of(graph).encode_to_vec());
    let result = Model::read(&source).and_then(|model| model.tensor(&model.graph().initializer[0]));
    result.map_err(|error| match error {
        ReadError::Tensor { fault, .. } => fault,
        other => panic!("{other}"),
    })
}

fn raw(element: ElementType, dims: &[i64], bytes: &[u8]) -> TensorProto {
    TensorProto {
        data_type: Some(element as i32),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::copy_from_slice(bytes)),
        ..Default::default()
    }
}

fn ints(element: ElementType, dims: &[i64], values: &[i32]) -> TensorProto {
    TensorProto {
        data_type: Some(element as i32),
        dims: dims.to_vec(),
        int32_data: values.to_vec(),
        ..Default::default()
    }
}

fn bytes_of(tensor: TensorProto) -> Vec<u8> {
    match read(tensor).unwrap().data {
        TensorData::Raw(bytes) => bytes.to_vec(),
        TensorData::Strings(strings) => panic!("{strings:?}"),
    }
}

#[test]
fn typed_lists_become_raw_data() {
    use ElementType::*;
    let float = TensorProto {
        float_data: vec![1.0, -0.0],
        ..ints(Float, &[2], &[])
    };
    assert_eq!(bytes_of(float), [0, 0, 0x80, 0x3f, 0, 0, 0, 0x80]);
    let double = TensorProto {
        double_data: vec![1.0],
        ..ints(Double, &[], &[])
    };
    assert_eq!(bytes_of(double), 1f64.to_le_bytes());
    let long = TensorProto {
        int64_data: vec![-2],
        ..ints(Int64, &[1], &[])
    };
    assert_eq!(bytes_of(long), (-2i64).to_le_bytes());
    let wide = TensorProto {
        uint64_data: vec![u64::MAX],
        ..ints(Uint64, &[1], &[])
    };
    assert_eq!(bytes_of(wide), [255; 8]);
    let narrow = TensorProto {
        uint64_data: vec![u32::MAX.into()],
        ..ints(Uint32, &[1], &[])
    };
    assert_eq!(bytes_of(narrow), [255; 4]);
    assert_eq!(
        bytes_of(ints(Int32, &[1, 2], &[-1, 258])),
        [255, 255, 255, 255, 2, 1, 0, 0]
    );
    for element in [Int16, Uint16, Float16, Bfloat16] {
        assert_eq!(
            bytes_of(ints(element, &[2], &[0x3c00, -1])),
            [0, 0x3c, 255, 255],
            "{element:?}"
        );
    }
    let bytes = [
        Float8e4m3fn,
        Float8e4m3fnuz,
        Float8e5m2,
        Float8e5m2fnuz,
        Float8e8m0,
        Int8,
        Uint8,
    ];
    for element in bytes {
        assert_eq!(
            bytes_of(ints(element, &[3], &[0x7e, 255, -128])),
            [0x7e, 255, 0x80]
        );
    }
    assert_eq!(bytes_of(ints(Bool, &[2], &[0, 1])), [0, 1]);
    for element in [Int4, Uint4, Float4e2m1] {
        assert_eq!(bytes_of(ints(element, &[3], &[0x21, 0x0f])), [0x21, 0x0f]);
    }
    for element in [Int2, Uint2] {
        assert_eq!(bytes_of(ints(element, &[5], &[0xe4, 0x03])), [0xe4, 0x03]);
    }
}

#[test]
fn six_bit_elements_are_packed_as_one_stream() {
    for len in 0..9usize {
        let values: Vec<i32> = (0..len)
            .map(|index| (index as i32 * 23 + 41) % 64)
            .collect();
        let packed = bytes_of(ints(ElementType::Float6e2m3, &[len as i64], &values));
        assert_eq!(packed.len(), (len * 6).div_ceil(8));
        for (index, &value) in values.iter().enumerate() {
            let bit = |bit: usize| packed[bit / 8] >> (bit % 8) & 1;
            let found: i32 = (0..6).map(|k| i32::from(bit(index * 6 + k)) << k).sum();
            assert_eq!(found, value, "element {index} of {len}");
        }
    }
}

#[test]
fn values_that_do_not_fit_are_refused() {
    use ElementType::*;
    assert_eq!(
        read(ints(Uint8, &[1], &[256])),
        Err(TensorFault::Value(256))
    );
    assert_eq!(
        read(ints(Int8, &[1], &[-129])),
        Err(TensorFault::Value(-129))
    );
    assert_eq!(
        read(ints(Float16, &[1], &[65536])),
        Err(TensorFault::Value(65536))
    );
    assert_eq!(
        read(ints(Float6e3m2, &[1], &[64])),
        Err(TensorFault::Value(64))
    );
    let wide = TensorProto {
        uint64_data: vec![1 << 32],
        ..ints(Uint32, &[1], &[])
    };
    assert_eq!(read(wide), Err(TensorFault::Value(1 << 32)));
    assert_eq!(read(ints(Bool, &[1], &[2])), Err(TensorFault::Boolean(2)));
    assert_eq!(read(raw(Bool, &[2], &[1, 7])), Err(TensorFault::Boolean(7)));
}

#[test]
fn shape_and_data_must_agree() {
    use ElementType::*;
    let size = |found, needed| Err(TensorFault::DataSize { found, needed });
    assert_eq!(read(raw(Float, &[3], &[0; 8])), size(8, 12));
    assert_eq!(read(raw(Int4, &[3], &[0; 3])), size(3, 2));
    assert_eq!(read(raw(Int2, &[5], &[0; 1])), size(1, 2));
    assert_eq!(read(raw(Float6e3m2, &[4], &[0; 4])), size(4, 3));
    assert_eq!(read(raw(Float, &[], &[])), size(0, 4));
    let len = |field, found, needed| {
        Err(TensorFault::DataLen {
            field,
            found,
            needed,
        })
    };
    assert_eq!(
        read(ints(Float16, &[2, 2], &[0; 3])),
        len("int32_data", 3, 4)
    );
    assert_eq!(read(ints(Float, &[2], &[])), len("float_data", 0, 2));
    assert_eq!(
        read(ints(Float, &[2], &[1])),
        Err(TensorFault::WrongField("int32_data"))
    );
    assert_eq!(
        read(raw(String, &[1], b"a")),
        Err(TensorFault::WrongField("raw_data"))
    );
    assert_eq!(
        read(raw(Float, &[1 << 31, 1 << 31, 4], &[])),
        Err(TensorFault::Overflow)
    );
    assert_eq!(
        read(raw(Float, &[1 << 62, 0, 1 << 62], &[])),
        Err(TensorFault::Overflow)
    );
    assert_eq!(
        read(raw(Double, &[1 << 61], &[])),
        Err(TensorFault::Overflow)
    );
    assert_eq!(read(raw(Float, &[0; 65], &[])), Err(TensorFault::Rank(65)));
    assert_eq!(
        read(raw(Complex64, &[1], &[0; 8])),
        Err(TensorFault::Complex)
    );
    assert_eq!(
        read(ints(Undefined, &[0], &[])),
        Err(TensorFault::ElementType(0))
    );
    let empty = read(raw(Float, &[2, 0, 3], &[])).unwrap();
    assert!(empty.is_empty() && empty.dims == [2, 0, 3]);
    let scalar = read(raw(Uint8, &[], &[9])).unwrap();
    assert_eq!((scalar.len(), scalar.dims.len()), (1, 0));
}

#[test]
fn strings_are_any_bytes() {
    let strings = vec![Bytes::from_static(b"\xff\0"), Bytes::new()];
    let tensor = TensorProto {
        string_data: strings.clone(),
        ..ints(ElementType::String, &[2], &[])
    };
    assert_eq!(read(tensor).unwrap().data, TensorData::Strings(strings));
}

fn sparse(dims: &[i64], values: TensorProto, indices: TensorProto) -> Result<Vec<u8>, TensorFault> {
    let values = TensorProto {
        name: Some("s".into()),
        ..values
    };
    let sparse = SparseTensorProto {
        values: Some(values),
        indices: Some(indices),
        dims: dims.to_vec(),
    };
    let graph = GraphProto {
        sparse_initializer: vec![sparse],
        ..Default::default()
    };
    let source = Source::from_bytes(model_of(graph).encode_to_vec());
    let model = Model::read(&source).map_err(|error| match error {
        ReadError::Tensor { fault, .. } => fault,
        other => panic!("{other}"),
    })?;
    let view = model.sparse(&model.graph().sparse_initializer[0]).unwrap();
    match view.to_dense(1 << 20)?.data {
        TensorData::Raw(bytes) => Ok(bytes.to_vec()),
        TensorData::Strings(_) => unreachable!(),
    }
}

#[test]
fn sparse_tensors_become_dense_within_a_limit() {
    let longs = |dims: &[i64], values: &[i64]| TensorProto {
        int64_data: values.to_vec(),
        ..ints(ElementType::Int64, dims, &[])
    };
    let values = || raw(ElementType::Uint8, &[2], &[7, 9]);
    assert_eq!(
        sparse(&[2, 3], values(), longs(&[2], &[1, 5])),
        Ok(vec![0, 7, 0, 0, 0, 9])
    );
    let both = longs(&[2, 2], &[0, 1, 1, 2]);
    assert_eq!(sparse(&[2, 3], values(), both), Ok(vec![0, 7, 0, 0, 0, 9]));
    let out = |index| Err(TensorFault::SparseIndex { index });
    assert_eq!(sparse(&[2, 3], values(), longs(&[2], &[1, 6])), out(6));
    assert_eq!(sparse(&[2, 3], values(), longs(&[2], &[-1, 5])), out(-1));
    assert_eq!(
        sparse(&[2, 3], values(), longs(&[2, 2], &[0, 3, 1, 0])),
        out(3)
    );
    let descending = sparse(&[2, 3], values(), longs(&[2], &[5, 5]));
    assert_eq!(
        descending,
        Err(TensorFault::Sparse("the indices must ascend"))
    );
    let huge = sparse(&[1 << 40], values(), longs(&[2], &[0, 1]));
    assert_eq!(
        huge,
        Err(TensorFault::DenseSize {
            size: 1 << 40,
            limit: 1 << 20
        })
    );
    assert!(sparse(&[2, 3], values(), longs(&[3], &[1, 2, 3])).is_err());
}

/// A folder of its own for one test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("cupola-onnx-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("inside/sub")).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn external(entries: &[(&str, &str)], len: i64) -> TensorProto {
    let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    TensorProto {
        name: Some("w".into()),
        data_location: Some(DataLocation::External as i32),
        external_data: entries.iter().map(entry).collect(),
        ..ints(ElementType::Uint8, &[len], &[])
    }
}

#[test]
fn side_files_stay_inside_the_folder_and_are_mapped_once() {
    let folder = Folder::new("external");
    std::fs::write(folder.0.join("outside.bin"), b"CANARY").unwrap();
    std::fs::write(folder.0.join("inside/w.bin"), b"abcdef").unwrap();
    std::fs::write(folder.0.join("inside/sub/w.bin"), b"ghi").unwrap();
    let open = |tensors: Vec<TensorProto>| {
        let graph = GraphProto {
            initializer: tensors,
            ..Default::default()
        };
        let path = folder.0.join("inside/model.onnx");
        std::fs::write(&path, model_of(graph).encode_to_vec()).unwrap();
        Model::open(path)
    };
    let second = external(&[("location", "./sub/w.bin"), ("checksum", "ignored")], 3);
    let second = TensorProto {
        name: Some("v".into()),
        ..second
    };
    let third = external(&[("location", "w.bin")], 6);
    let third = TensorProto {
        name: Some("u".into()),
        ..third
    };
    let first = external(
        &[("location", "w.bin"), ("offset", "1"), ("length", "2")],
        2,
    );
    let model = open(vec![first, second, third]).unwrap();
    let data: Vec<_> = model
        .graph()
        .initializer
        .iter()
        .map(|tensor| model.tensor(tensor).unwrap().data)
        .collect();
    let raw = |bytes: &'static [u8]| TensorData::Raw(Bytes::from_static(bytes));
    assert_eq!(data, [raw(b"bc"), raw(b"ghi"), raw(b"abcdef")]);
    assert_eq!(model.files().iter().count(), 2);

    let refused = |entries: &[(&str, &str)]| {
        let error = open(vec![external(entries, 2)]).unwrap_err();
        assert_eq!(error.fault(), Fault::Malformed);
        let text = error.to_string();
        assert!(!text.contains("CANARY"), "{text}");
        text
    };
    assert!(refused(&[("location", "../outside.bin")]).contains("without '..'"));
    assert!(refused(&[("location", "sub/../w.bin")]).contains("without '..'"));
    assert!(refused(&[("location", "/etc/passwd")]).contains("relative path"));
    assert!(refused(&[("location", "")]).contains("relative path"));
    assert!(
        refused(&[("location", "sub")]).contains("cannot be read"),
        "a folder"
    );
    assert!(refused(&[("location", "nope.bin")]).contains("does not exist"));
    assert!(refused(&[("offset", "0")]).contains("location is missing"));
    assert!(refused(&[("location", "w.bin"), ("location", "w.bin")]).contains("twice"));
    assert!(refused(&[("location", "w.bin"), ("offset", "-1")]).contains("whole number"));
    assert!(refused(&[("location", "w.bin"), ("offset", "5")]).contains("offset 5"));
    assert!(refused(&[("location", "w.bin"), ("length", "3")]).contains("3 bytes, 2 are needed"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../outside.bin", folder.0.join("inside/link.bin")).unwrap();
        assert!(refused(&[("location", "link.bin")]).contains("symbolic link"));
        std::os::unix::fs::symlink("..", folder.0.join("inside/up")).unwrap();
        assert!(refused(&[("location", "up/outside.bin")]).contains("symbolic link"));
        std::os::unix::fs::symlink("w.bin", folder.0.join("inside/alias.bin")).unwrap();
        assert!(open(vec![external(&[("location", "alias.bin")], 6)]).is_ok());
    }
}

#[test]
fn a_model_larger_than_two_gibibytes_is_not_copied() {
    use std::io::{Seek, SeekFrom, Write};
    const SIZE: u64 = (5 << 29) + 3;
    let folder = Folder::new("large");
    // The graph with one initializer, whose raw data is a hole in the file.
    let mut tensor = raw(ElementType::Uint8, &[SIZE as i64], &[]).encode_to_vec();
    tensor.truncate(tensor.len() - 2);
    tensor.extend(
        TensorProto {
            name: Some("w".into()),
            ..Default::default()
        }
        .encode_to_vec(),
    );
    tensor.push(0x4a);
    prost::encoding::encode_varint(SIZE, &mut tensor);
    let mut graph = vec![0x2a];
    prost::encoding::encode_varint(tensor.len() as u64 + SIZE, &mut graph);
    graph.extend(tensor);
    let mut head = ModelProto {
        graph: None,
        ..model_of(GraphProto::default())
    }
    .encode_to_vec();
    head.push(0x3a);
    prost::encoding::encode_varint(graph.len() as u64 + SIZE, &mut head);
    head.extend(graph);
    let path = folder.0.join("model.onnx");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&head).unwrap();
    file.seek(SeekFrom::Start(head.len() as u64 + SIZE - 1))
        .unwrap();
    file.write_all(&[42]).unwrap();
    drop(file);

    let source = Source::open(&path).unwrap();
    let model = Model::read(&source).unwrap();
    let tensor = model.tensor(&model.graph().initializer[0]).unwrap();
    let TensorData::Raw(bytes) = tensor.data else {
        panic!("strings")
    };
    assert_eq!(bytes.len() as u64, SIZE);
    assert_eq!(bytes.last(), Some(&42));
    assert_eq!(
        bytes.as_ptr(),
        source.bytes()[head.len()..].as_ptr(),
        "a slice of the mapping"
    );
}

#[test]
fn value_files_come_back_as_they_were_written() {
    let tensor = |byte: u8| {
        let data = TensorData::Raw(Bytes::from(vec![byte, 1]));
        Value::Tensor(TensorView {
            element: ElementType::Uint8,
            dims: vec![2],
            data,
        })
    };
    let strings = TensorData::Strings(vec![Bytes::from_static(b"\xffz")]);
    let text = TensorView {
        element: ElementType::String,
        dims: vec![],
        data: strings,
    };
    let some = |value| Value::Optional(Some(Box::new(value)));
    let values = [
        (ValueKind::Tensor, tensor(3)),
        (ValueKind::Tensor, Value::Tensor(text)),
        (ValueKind::Sequence, Value::Sequence(vec![])),
        (
            ValueKind::Sequence,
            Value::Sequence(vec![tensor(1), tensor(2)]),
        ),
        (
            ValueKind::Sequence,
            Value::Sequence(vec![Value::Sequence(vec![tensor(4)])]),
        ),
        (
            ValueKind::Sequence,
            Value::Sequence(vec![Value::Optional(None), some(tensor(9))]),
        ),
        (ValueKind::Optional, Value::Optional(None)),
        (ValueKind::Optional, some(tensor(5))),
        (ValueKind::Optional, some(Value::Sequence(vec![tensor(6)]))),
        (ValueKind::Optional, some(Value::Optional(None))),
    ];
    for (kind, value) in values {
        let bytes = Bytes::from(value.to_bytes("x"));
        assert_eq!(Value::read(&bytes, kind).unwrap(), value);
    }
}

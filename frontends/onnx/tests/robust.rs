//! Damaged files: the reader returns, whatever the bytes are.

use bytes::Bytes;
use cupola_onnx::proto::attribute_proto::AttributeType;
use cupola_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, TensorProto, ValueInfoProto,
};
use cupola_onnx::{ElementType, Model, Value, ValueKind};
use cupola_source::Source;
use proptest::prelude::*;
use prost::Message;

fn node(domain: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        domain: Some(domain.into()),
        op_type: Some(op.into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: outputs.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

fn tensor(name: &str, element: ElementType, dims: &[i64], bytes: &'static [u8]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(element as i32),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::from_static(bytes)),
        ..Default::default()
    }
}

/// A valid model with an initializer of each kind, a subgraph that captures, and a function.
fn sample() -> Vec<u8> {
    let value = |name: &str| ValueInfoProto {
        name: Some(name.into()),
        ..Default::default()
    };
    let body = GraphProto {
        node: vec![node("", "Relu", &["x"], &["t"])],
        output: vec![value("t")],
        ..Default::default()
    };
    let mut branch = node("", "If", &["c"], &["b"]);
    branch.attribute = vec![AttributeProto {
        name: Some("then_branch".into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(Box::new(body)),
        ..Default::default()
    }];
    let typed = TensorProto {
        name: Some("q".into()),
        data_type: Some(ElementType::Float16 as i32),
        dims: vec![3],
        int32_data: vec![15360, 0, 65535],
        ..Default::default()
    };
    let sparse = SparseTensorProto {
        values: Some(tensor("s", ElementType::Uint8, &[1], &[7])),
        indices: Some(tensor(
            "",
            ElementType::Int64,
            &[1],
            &[4, 0, 0, 0, 0, 0, 0, 0],
        )),
        dims: vec![2, 3],
    };
    let graph = GraphProto {
        name: Some("main".into()),
        node: vec![node("f", "Twice", &["b"], &["y"]), branch],
        initializer: vec![
            tensor("c", ElementType::Bool, &[], &[1]),
            tensor("x", ElementType::Float, &[1], &[0, 0, 128, 63]),
            typed,
        ],
        sparse_initializer: vec![sparse],
        output: vec![value("y")],
        ..Default::default()
    };
    let function = FunctionProto {
        name: Some("Twice".into()),
        domain: Some("f".into()),
        input: vec!["a".into()],
        output: vec!["r".into()],
        node: vec![node("ai.onnx", "Add", &["a", "a"], &["r"])],
        opset_import: vec![OperatorSetIdProto {
            domain: Some("".into()),
            version: Some(21),
        }],
        ..Default::default()
    };
    let import = |domain: &str| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(1),
    };
    let model = ModelProto {
        ir_version: Some(10),
        opset_import: vec![import("ai.onnx"), import("f")],
        graph: Some(graph),
        functions: vec![function],
        ..Default::default()
    };
    model.encode_to_vec()
}

/// Reads the file and everything in it; errors must be short and printable.
fn exercise(bytes: Vec<u8>) -> bool {
    let source = Source::from_bytes(bytes);
    for kind in [ValueKind::Tensor, ValueKind::Sequence, ValueKind::Optional] {
        if let Err(error) = Value::read(source.bytes(), kind) {
            assert!(error.to_string().len() <= 400);
        }
    }
    match Model::read(&source) {
        Ok(model) => {
            for tensor in &model.graph().initializer {
                let view = model.tensor(tensor);
                assert!(view.map_or(true, |view| view.len() <= 1 << 20));
            }
            for node in &model.graph().node {
                model.function(node);
            }
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.len() <= 400 && !text.chars().any(char::is_control),
                "{text:?}"
            );
            false
        }
    }
}

#[test]
fn the_sample_is_valid_and_normalised() {
    let model = Model::read(&Source::from_bytes(sample())).unwrap();
    let ops: Vec<_> = model
        .graph()
        .node
        .iter()
        .map(|node| node.op_type())
        .collect();
    assert_eq!(ops, ["If", "Twice"], "sorted");
    let function = model.function(&model.graph().node[1]).unwrap();
    assert_eq!(
        function.node[0].domain(),
        "",
        "the standard domain has one spelling"
    );
    assert!(model.function(&model.graph().node[0]).is_none());
    assert_eq!(model.opsets(), [("", 1), ("f", 1)]);
    assert!(exercise(sample()));
}

#[test]
fn every_cut_and_every_single_bit_flip() {
    let sample = sample();
    let mut accepted = 0;
    for len in 0..sample.len() {
        accepted += usize::from(exercise(sample[..len].to_vec()));
    }
    // Fields may be left out at the end, but not many.
    assert!(accepted < 20, "{accepted} cuts accepted");
    for bit in 0..sample.len() * 8 {
        let mut bytes = sample.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        exercise(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn several_damaged_bytes(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = sample();
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        exercise(bytes);
    }

    #[test]
    fn a_moved_piece(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(), len in 1usize..64) {
        let mut bytes = sample();
        let from = from.index(bytes.len());
        let piece: Vec<u8> = bytes[from..].iter().copied().take(len).collect();
        let to = to.index(bytes.len());
        bytes.splice(to..to, piece);
        exercise(bytes);
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(bytes);
    }
}

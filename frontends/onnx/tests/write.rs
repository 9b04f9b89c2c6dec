//! Models built and written, with their weights inside and beside them.

use std::path::PathBuf;

use bytes::Bytes;
use cupola_onnx::proto::{GraphProto, ModelProto};
use cupola_onnx::write::{
    Extent, Weights, attribute, initializer, model, node, sequence_type, tensor_type, value_info,
    write_file,
};
use cupola_onnx::{ElementType, Model, TensorData, TensorView};

/// A folder of its own for one test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("cupola-onnx-write-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn weight(len: usize, seed: u8) -> TensorView {
    let bytes: Vec<u8> = (0..len * 4)
        .map(|index| (index as u8).wrapping_mul(seed))
        .collect();
    let data = TensorData::Raw(Bytes::from(bytes));
    TensorView {
        element: ElementType::Float,
        dims: vec![len],
        data,
    }
}

fn sample() -> ModelProto {
    let any = [const { Extent::Unknown }; 3];
    let shape = [
        Extent::Name("batch".to_owned()),
        Extent::Size(300),
        Extent::Unknown,
    ];
    let float = |dims: &[Extent]| tensor_type(ElementType::Float, dims);
    let mut concat = node("Concat", ["x", "w"], ["y"]);
    concat.attribute = vec![attribute("axis", -1)];
    let graph = GraphProto {
        name: Some("main".to_owned()),
        node: vec![concat, node("SequenceConstruct", ["y"], ["s"])],
        initializer: vec![
            initializer("w", &weight(300, 3)),
            initializer("small", &weight(2, 5)),
            initializer("v", &weight(2000, 7)),
        ],
        input: vec![value_info("x", float(&shape))],
        output: vec![value_info("s", sequence_type(float(&any)))],
        ..Default::default()
    };
    model(graph, 21)
}

fn weights(model: &Model) -> Vec<TensorView> {
    let graph = model.graph();
    graph
        .initializer
        .iter()
        .map(|tensor| model.tensor(tensor).unwrap())
        .collect()
}

#[test]
fn weights_inside_and_beside_are_read_back() {
    let folder = Folder::new("weights");
    let path = folder.0.join("model.onnx");
    let expected = [weight(300, 3), weight(2, 5), weight(2000, 7)];
    for placing in [Weights::Auto, Weights::Inside] {
        write_file(sample(), &path, placing).unwrap();
        let model = Model::open(&path).unwrap();
        assert_eq!(model.proto(), &sample());
        assert_eq!(weights(&model), expected);
        assert_eq!(folder.names(), ["model.onnx"]);
    }
    write_file(sample(), &path, Weights::Beside).unwrap();
    assert_eq!(folder.names(), ["model.onnx", "model.onnx.data"]);
    let model = Model::open(&path).unwrap();
    assert_eq!(weights(&model), expected);
    let graph = model.graph();
    assert!(graph.initializer[1].raw_data.is_some(), "small ones stay");
    assert_eq!(graph.initializer[2].external_data[1].value(), "4096");

    // Written over itself while its weights are mapped.
    let mut again = sample();
    let graph = again.graph.as_mut().unwrap();
    graph.initializer = weights(&model)
        .iter()
        .map(|view| initializer("again", view))
        .take(1)
        .collect();
    graph.node[0].input[1] = "again".to_owned();
    write_file(again, &path, Weights::Beside).unwrap();
    assert_eq!(weights(&model), expected, "the old mapping is untouched");
    assert_eq!(weights(&Model::open(&path).unwrap()), expected[..1]);
}

#[test]
fn a_refused_path_leaves_nothing_behind() {
    let folder = Folder::new("refused");
    std::fs::create_dir(folder.0.join("taken.onnx")).unwrap();
    let error = write_file(sample(), &folder.0.join("taken.onnx"), Weights::Inside).unwrap_err();
    assert!(
        error.to_string().contains("cannot write the file"),
        "{error}"
    );
    assert_eq!(folder.names(), ["taken.onnx"]);
    assert!(write_file(sample(), &folder.0.join("none/model.onnx"), Weights::Inside).is_err());
}

#[test]
fn the_version_fits_the_operators() {
    let version = |opset| model(GraphProto::default(), opset).ir_version.unwrap();
    assert_eq!(
        [7, 9, 13, 17, 21, 27, 28].map(version),
        [3, 4, 7, 8, 10, 13, 14]
    );
}

//! Operators that a program brings along: as a graph of known ops, and as code on the host.

use cupola::ir::ops::host::{Custom, CustomKernel};
use cupola::ir::{HostOp, Op, Scalar};
use cupola::onnx::proto::OperatorSetIdProto;
use cupola::onnx::{CustomOp, ElementType, encode, write};
use cupola::{DeviceSpec, Host, Model, ModelOptions, Options, Tensor, Value, ValueType};
use std::sync::Arc;

/// `y = Reverse(Weigh(x))` of the domain `example`, with an attribute.
fn model_file(name: &str) -> std::path::PathBuf {
    let float = |name: &str| {
        let ty = write::tensor_type(ElementType::Float, &[write::Extent::Size(3)]);
        write::value_info(name, ty)
    };
    let mut weigh = write::node("Weigh", ["x"], ["w"]);
    weigh.domain = Some("example".into());
    weigh.attribute.push(write::attribute("factor", 2.5f32));
    let mut reverse = write::node("Reverse", ["w"], ["y"]);
    reverse.domain = Some("example".into());
    let graph = cupola::onnx::proto::GraphProto {
        name: Some("custom".into()),
        node: vec![weigh, reverse],
        input: vec![float("x")],
        output: vec![float("y")],
        ..Default::default()
    };
    let mut model = write::model(graph, 21);
    model.opset_import.push(OperatorSetIdProto {
        domain: Some("example".into()),
        version: Some(1),
    });
    let path = std::env::temp_dir().join(format!("cupola-{name}-{}.onnx", std::process::id()));
    std::fs::write(&path, encode(&model)).expect("a file");
    path
}

/// Elements of a f32 vector from last to first.
struct Reverse;

impl CustomKernel for Reverse {
    fn name(&self) -> &str {
        "reverse"
    }

    fn infer(&self, operands: &[&ValueType]) -> Result<Vec<ValueType>, String> {
        match operands {
            [one] => Ok(vec![(*one).clone()]),
            _ => Err(format!("takes 1 operand, not {}", operands.len())),
        }
    }

    fn eval(&self, operands: &[&Value]) -> Result<Vec<Value>, String> {
        let x = operands[0].as_tensor().and_then(Tensor::to_vec::<f32>);
        let mut x = x.ok_or("takes floats")?;
        x.reverse();
        Ok(vec![Tensor::vector(&x).into()])
    }
}

fn custom() -> Vec<CustomOp> {
    let kernel: Arc<dyn CustomKernel> = Arc::new(Reverse);
    let weigh = CustomOp {
        domain: "example".into(),
        op: "Weigh".into(),
        import: Arc::new(|graph, node| {
            let factor = node.proto.attribute.iter().find(|a| a.name() == "factor");
            let factor = factor.and_then(|a| a.f).ok_or("'factor' is missing")?;
            let x = node.inputs.first().copied().flatten().ok_or("takes x")?;
            let y = graph
                .scale(x, f64::from(factor))
                .map_err(|e| e.to_string())?;
            let y = graph.unary(Scalar::Neg, y).map_err(|e| e.to_string())?;
            Ok(vec![y])
        }),
    };
    let reverse = CustomOp {
        domain: "example".into(),
        op: "Reverse".into(),
        import: Arc::new(move |graph, node| {
            let x = node.inputs.first().copied().flatten().ok_or("takes x")?;
            let op = Op::Host(HostOp::Custom(Custom {
                kernel: kernel.clone(),
            }));
            let results = graph.push(op, &[x]).map_err(|e| e.to_string())?;
            Ok(results.to_vec())
        }),
    };
    vec![weigh, reverse]
}

#[test]
fn operators_given_by_value_run_on_every_device() {
    let path = model_file("custom");
    let without = Model::open(&path).expect("a sound file").graph();
    assert!(without.is_err_and(|e| e.to_string().contains("example::Weigh")));
    let devices = [DeviceSpec::Cpu, DeviceSpec::Reference].into_iter();
    let gpu = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").map(|_| DeviceSpec::Gpu(0));
    for device in devices.chain(gpu) {
        let model_options = ModelOptions {
            custom: custom(),
            ..ModelOptions::default()
        };
        let options = Options {
            device: device.clone(),
            verify: true,
            ..Options::default()
        };
        let model = Model::open_with(&path, model_options).expect("a sound file");
        let mut runner = model.runner(Host::new().into(), options);
        let x: Value = Tensor::vector(&[1.0f32, 2.0, 3.0]).into();
        let out = runner.run(vec![("x", x)]).expect("a run");
        let want: Value = Tensor::vector(&[-7.5f32, -5.0, -2.5]).into();
        assert_eq!(out[0].1, want, "{device}");
    }
    std::fs::remove_file(path).expect("the file was made here");
}

#[test]
fn a_graph_with_code_in_it_is_shown_but_not_read_back() {
    let path = model_file("shown");
    let options = ModelOptions {
        custom: custom(),
        ..ModelOptions::default()
    };
    let graph = Model::open_with(&path, options)
        .and_then(|m| m.graph())
        .expect("a graph");
    let text = cupola::to_text(&graph);
    assert!(
        text.contains("host.custom(") && text.contains("\"reverse\""),
        "{text}"
    );
    let error = cupola::ir::graph::text::parse(&text).expect_err("code is missing");
    assert!(error.to_string().contains("given by value"), "{error}");
    std::fs::remove_file(path).expect("the file was made here");
}

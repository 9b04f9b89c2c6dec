//! Uses of single operators: stored ones, and the models made of them.

use bytes::Bytes;
use cupola_ir::convert::{Lanes, encode};
use cupola_ir::tensor::{Tensor, Value};
use cupola_ir::{Class, DType};
use cupola_onnx::proto::{AttributeProto, GraphProto, OperatorSetIdProto, ValueInfoProto};
use cupola_onnx::write::{self, AttributeValue, Extent, tensor_type, value_info};
use cupola_onnx::{Model, ReadError, element_of, encode as encode_model, view_from_tensor};
use cupola_source::Source;
use serde_json::Value as Json;

/// Whether a model states the extents of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extents {
    Stated,
    Open,
}

/// Stored cases by file.
pub const FILES: [&str; 3] = [
    include_str!("vision.json"),
    include_str!("ml.json"),
    include_str!("contrib.json"),
];

/// A tensor of `{"type", "shape", "values"}`; numbers that JSON lacks are the texts `nan`, `inf` and `-inf`.
fn tensor(json: &Json) -> Tensor {
    let shape: Vec<usize> = list(&json["shape"], |v| v.as_u64().expect("an extent") as usize);
    let name = json["type"].as_str().expect("a type");
    let values = &json["values"];
    if name == "string" {
        let texts = list(values, |v| v.as_str().expect("a text").to_string());
        return Tensor::from_strings(shape, texts).expect("as many texts as the shape says");
    }
    let dtype = DType::from_name(name).expect("a known type");
    let lanes = match dtype.class() {
        Class::Float => Lanes::F(list(values, number)),
        Class::Signed => Lanes::I(list(values, |v| v.as_i64().expect("an integer"))),
        Class::Unsigned => Lanes::U(list(values, |v| v.as_u64().expect("an integer"))),
        Class::Bool => Lanes::U(list(values, |v| {
            u64::from(v.as_bool().expect("a truth value"))
        })),
        Class::String | Class::Block => unreachable!("no numbers"),
    };
    encode(&lanes, dtype, &shape, false).expect("as many numbers as the shape says")
}

fn list<T>(json: &Json, f: impl Fn(&Json) -> T) -> Vec<T> {
    json.as_array().expect("a list").iter().map(f).collect()
}

fn number(json: &Json) -> f64 {
    match json.as_str() {
        Some(text) => text.parse().expect("nan or inf"),
        None => json.as_f64().expect("a number"),
    }
}

/// An attribute of `{kind: value}`, the kinds named like the fields of the file format.
fn attribute(name: &str, json: &Json) -> AttributeProto {
    let one = json.as_object().and_then(|o| o.iter().next());
    let (kind, v) = one.expect("one kind");
    let text = |v: &Json| Bytes::copy_from_slice(v.as_str().expect("a text").as_bytes());
    let float = |v: &Json| number(v) as f32;
    let int = |v: &Json| v.as_i64().expect("an integer");
    let value = match kind.as_str() {
        "i" => AttributeValue::Int(int(v)),
        "f" => AttributeValue::Float(float(v)),
        "s" => AttributeValue::String(text(v)),
        "t" => AttributeValue::Tensor(view_from_tensor(&tensor(v)).expect("a plain type")),
        "ints" => AttributeValue::Ints(list(v, int)),
        "floats" => AttributeValue::Floats(list(v, float)),
        "strings" => AttributeValue::Strings(list(v, text)),
        other => panic!("no attribute of kind {other}"),
    };
    write::attribute(name, value)
}

/// A stored use of an operator.
pub struct Case {
    pub name: String,
    pub domain: String,
    pub op: String,
    pub version: i64,
    pub attributes: Vec<AttributeProto>,
    pub inputs: Vec<Option<Tensor>>,
    /// Results, none where they are not asked for.
    pub outputs: Vec<Option<Tensor>>,
    /// Relative and absolute.
    pub tolerance: (f64, f64),
}

impl Case {
    /// The cases of a file.
    pub fn all(file: &str) -> Vec<Case> {
        let cases: Vec<Json> = serde_json::from_str(file).expect("a list of cases");
        assert!(!cases.is_empty());
        cases.iter().map(Case::read).collect()
    }

    fn read(case: &Json) -> Case {
        let text = |key: &str| case[key].as_str().expect("a text").to_string();
        let tensors = |key: &str| {
            list(&case[key], |v| match v.is_null() {
                true => None,
                false => Some(tensor(v)),
            })
        };
        let attributes = case["attributes"].as_object().expect("attributes");
        Case {
            name: text("name"),
            domain: text("domain"),
            op: text("op"),
            version: case["version"].as_i64().expect("a version"),
            attributes: attributes.iter().map(|(n, v)| attribute(n, v)).collect(),
            inputs: tensors("inputs"),
            outputs: tensors("outputs"),
            tolerance: (number(&case["rtol"]), number(&case["atol"])),
        }
    }

    /// The model of the case: one node with its operands as inputs `x0`, `x1`, .. (none where absent) and its results
    /// `y0`, ..
    pub fn model(&self, extents: Extents) -> Result<Model, ReadError> {
        let given = names('x', self.inputs.iter().map(Option::is_some));
        let asked = names('y', self.outputs.iter().map(Option::is_some));
        let input = |(name, t): (&String, &Option<Tensor>)| {
            let t = t.as_ref()?;
            let dims: Vec<Extent> = (t.shape().iter())
                .map(|n| match extents {
                    Extents::Stated => Extent::Size(*n),
                    Extents::Open => Extent::Unknown,
                })
                .collect();
            let element = element_of(t.dtype()).expect("a plain type");
            Some(value_info(name, tensor_type(element, &dims)))
        };
        let output = |name: &String| ValueInfoProto {
            name: Some(name.clone()),
            ..Default::default()
        };
        let mut node = write::node(&self.op, given.clone(), asked.clone());
        node.domain = Some(self.domain.clone());
        node.attribute = self.attributes.clone();
        let graph = GraphProto {
            name: Some("node".into()),
            input: given.iter().zip(&self.inputs).filter_map(input).collect(),
            output: asked.iter().filter(|n| !n.is_empty()).map(output).collect(),
            node: vec![node],
            ..Default::default()
        };
        let standard = if self.domain.is_empty() {
            self.version
        } else {
            20
        };
        let mut model = write::model(graph, standard);
        if !self.domain.is_empty() {
            model.opset_import.push(OperatorSetIdProto {
                domain: Some(self.domain.clone()),
                version: Some(self.version),
            });
        }
        Model::read(&Source::from_bytes(encode_model(&model)))
    }

    /// What the inputs of the model are given.
    pub fn given(&self) -> Vec<(String, Value)> {
        let present = self.inputs.iter().enumerate();
        let named =
            |(i, t): (usize, &Option<Tensor>)| Some((format!("x{i}"), Value::Tensor(t.clone()?)));
        present.filter_map(named).collect()
    }
}

fn names(letter: char, there: impl Iterator<Item = bool>) -> Vec<String> {
    let name = |(i, there)| match there {
        true => format!("{letter}{i}"),
        false => String::new(),
    };
    there.enumerate().map(name).collect()
}

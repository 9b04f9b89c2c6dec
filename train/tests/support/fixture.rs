//! Reference values stored as safetensors.

use cupola_ir::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Tensors by name.
pub struct Fixture(pub BTreeMap<String, Tensor>);

impl Fixture {
    /// Reads a file of `tests/fixtures`.
    pub fn read(name: &str) -> Fixture {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).expect("a fixture");
        let head = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let table: serde_json::Value =
            serde_json::from_slice(&bytes[8..8 + head]).expect("a table");
        let data = &bytes[8 + head..];
        let number = |v: &serde_json::Value| v.as_u64().expect("a number") as usize;
        let entries = table.as_object().expect("an object").iter();
        let tensors = entries.filter(|(n, _)| *n != "__metadata__").map(|(n, e)| {
            let dtype = match e["dtype"].as_str().expect("a type") {
                "F32" => DType::F32,
                "F64" => DType::F64,
                "I64" => DType::I64,
                other => panic!("{other}"),
            };
            let shape: Vec<usize> = e["shape"]
                .as_array()
                .expect("a shape")
                .iter()
                .map(number)
                .collect();
            let at = e["data_offsets"].as_array().expect("offsets");
            let part = data[number(&at[0])..number(&at[1])].to_vec();
            let tensor = Tensor::new(dtype, shape, part.into()).expect("a tensor");
            (n.clone(), tensor)
        });
        Fixture(tensors.collect())
    }

    /// A tensor of a case.
    pub fn get(&self, case: &str, role: &str) -> &Tensor {
        let name = format!("{case}/{role}");
        self.0.get(&name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// Tensors of a case whose role begins with this, by what follows.
    pub fn roles(&self, case: &str, prefix: &str) -> BTreeMap<String, Tensor> {
        let start = format!("{case}/{prefix}");
        let own = self
            .0
            .iter()
            .filter_map(|(n, t)| Some((n.strip_prefix(&start)?, t)));
        own.map(|(n, t)| (n.to_string(), t.clone())).collect()
    }

    /// Names of the cases.
    pub fn cases(&self) -> BTreeSet<String> {
        let names = self.0.keys().filter_map(|n| Some(n.split_once('/')?.0));
        names.map(str::to_string).collect()
    }
}

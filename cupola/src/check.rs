//! `check`: is a file sound?

use crate::error::{Error, Result};
use crate::model::Model;
use cupola_onnx::ImportError;
use cupola_source::{Format, Source};
use std::path::Path;

/// What a sound file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// Format name.
    pub format: String,
    /// Facts in order: what, value.
    pub facts: Vec<(String, String)>,
}

/// Validates an ONNX, GGUF, safetensors or Cupola file; infers types and shapes of graphs. No tensor is allocated that
/// the file merely claims.
///
/// # Errors
/// The first reason why the file is not sound.
pub fn check_file(path: impl AsRef<Path>) -> Result<FileSummary> {
    let path = path.as_ref();
    let source = Source::open(path)?;
    let format = source.format();
    let fact = |k: &str, v: String| (k.to_string(), v);
    let facts = match format {
        Format::Gguf => {
            let file = cupola_gguf::Gguf::read(&source)?;
            cupola_gguf::hyperparameters::check(&file)?;
            vec![
                fact("version", file.version().to_string()),
                fact("metadata keys", file.metadata().len().to_string()),
                fact("tensors", file.tensors().len().to_string()),
            ]
        }
        Format::SafeTensors => {
            let file = cupola_safetensors::SafeTensors::read(&source)?;
            vec![fact("tensors", file.tensors().len().to_string())]
        }
        Format::Onnx | Format::CupolaText | Format::CupolaBinary | Format::CupolaProgram => {
            graph_facts(&Model::open(path)?)?
        }
        _ => {
            return Err(Error::Format(format!(
                "{} is of no known format",
                cupola_source::quote(&path.to_string_lossy())
            )));
        }
    };
    Ok(FileSummary {
        format: format.to_string(),
        facts,
    })
}

fn graph_facts(model: &Model) -> Result<Vec<(String, String)>> {
    let graph = match model.graph() {
        Ok(g) => g,
        Err(Error::Import(ImportError::NeedsInputs { values, types })) => {
            let names: Vec<String> = values
                .iter()
                .chain(&types)
                .map(|n| cupola_source::quote(n))
                .collect();
            return Ok(vec![(
                "structure".into(),
                format!("decided by {}", names.join(", ")),
            )]);
        }
        Err(e) => return Err(e),
    };
    cupola_ir::verify(&graph)?;
    let join = |all: Vec<String>| all.join(", ");
    let quote = cupola_source::quote;
    let inputs = graph
        .inputs()
        .iter()
        .map(|v| format!("{} {}", quote(graph.input_name(*v)), graph.ty(*v)));
    let outputs = graph
        .outputs()
        .iter()
        .map(|(n, v)| format!("{} {}", quote(n), graph.ty(*v)));
    Ok(vec![
        ("inputs".into(), join(inputs.collect())),
        ("outputs".into(), join(outputs.collect())),
        ("nodes".into(), graph.node_count().to_string()),
    ])
}

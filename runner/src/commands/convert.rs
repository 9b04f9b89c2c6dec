//! `cupola convert`: between formats, by suffix.

use crate::args::ConvertArgs;
use crate::fail::{Failure, Outcome};
use crate::inputs::parse_set;
use crate::outputs;
use cupola::{Model, ModelOptions};

/// Reads a model and writes it in the format of the output's suffix, complete or not at all.
pub fn convert(args: &ConvertArgs) -> Outcome {
    let model = Model::open_with(
        &args.input,
        ModelOptions {
            set: parse_set(&args.set)?,
            ..ModelOptions::default()
        },
    )?;
    let graph = model.graph()?;
    let suffix = args
        .output
        .extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let bytes = match suffix.as_str() {
        "cup" => cupola::to_text(&graph).into_bytes(),
        "cupola" => cupola::to_binary(&graph),
        "onnx" => cupola::to_onnx(&graph)?,
        _ => {
            return Err(Failure::usage(format!(
                "{}: write .cupola, .cup or .onnx",
                args.output.display()
            )));
        }
    };
    outputs::write_whole(&args.output, &bytes)
}

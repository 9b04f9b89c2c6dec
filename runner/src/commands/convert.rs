//! `cupola convert`: between formats, by suffix.

use crate::args::ConvertArgs;
use crate::fail::{Failure, Outcome};
use crate::inputs::parse_set;
use cupola::{Model, ModelOptions};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

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
    write_whole(&args.output, &bytes)
}

/// Writes a file, complete or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Outcome {
    write_atomically(path, |mut file| file.write_all(bytes))
}

/// Writes beside the target and renames.
pub fn write_atomically(path: &Path, write: impl FnOnce(File) -> io::Result<()>) -> Outcome {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = Path::new(&temporary);
    let written = File::create(temporary).and_then(write);
    let written = written.and_then(|()| std::fs::rename(temporary, path));
    written.map_err(|e| {
        // It may not even have been begun.
        let _ = std::fs::remove_file(temporary);
        Failure::io("cannot write", path, e)
    })
}

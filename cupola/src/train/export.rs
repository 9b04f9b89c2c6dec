//! A trained model as a file that others read.

use super::assemble::{Assembled, assemble};
use super::checkpoint::Checkpoint;
use super::config::wrong;
use crate::error::{Error, Result};
use crate::tools::{to_binary, to_onnx};
use cupola_ir::Tensor;
use cupola_safetensors::TensorToWrite;
use cupola_source::write_atomically;
use cupola_train::data::Dataset;
use std::io::Write;
use std::path::Path;

/// Writes the model by the file's suffix: `.onnx` and `.cupola` for inference, `.safetensors` for its weights alone.
///
/// # Errors
/// Another suffix, an op that ONNX has not, a file that cannot be written.
pub fn export(
    model: &Assembled,
    weights: &dyn Fn(&str) -> Option<Tensor>,
    path: &Path,
) -> Result<()> {
    let suffix = path.extension().unwrap_or_default().to_string_lossy();
    let bytes = match suffix.to_lowercase().as_str() {
        "onnx" => to_onnx(&model.net.inference_graph(weights)?)?,
        "cupola" => to_binary(&model.net.inference_graph(weights)?),
        "safetensors" => weights_file(model, weights)?,
        _ => {
            let what = "is none of .onnx, .safetensors and .cupola";
            return Err(wrong(format!("export: {} {what}", path.display())));
        }
    };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::Write(path.into(), e.to_string()))?;
    }
    let written = write_atomically(path, |file| file.write_all(&bytes));
    written.map_err(|e| Error::Write(path.into(), e.to_string()))
}

/// Writes the model of a checkpoint.
///
/// # Errors
/// As [`export`].
pub fn export_checkpoint(checkpoint: &Checkpoint, data: &Dataset, path: &Path) -> Result<()> {
    let model = assemble(&checkpoint.config, data)?;
    export(&model, &|name| checkpoint.slots.get(name).cloned(), path)
}

fn weights_file(model: &Assembled, weights: &dyn Fn(&str) -> Option<Tensor>) -> Result<Vec<u8>> {
    let parameters = model.net.parameters().iter().map(|p| &p.name);
    let names = parameters.chain(model.net.buffers().iter().map(|b| &b.name));
    let tensors: Vec<(&String, Tensor)> = names
        .filter_map(|name| Some((name, weights(name)?)))
        .collect();
    let tensors: Vec<TensorToWrite> = (tensors.iter())
        .map(|(name, t)| TensorToWrite::new(name, t))
        .collect();
    let mut bytes = vec![];
    let written = cupola_safetensors::write(&mut bytes, &tensors, &[("format", "pt")]);
    written.map_err(|e| wrong(format!("export: {e}")))?;
    Ok(bytes)
}

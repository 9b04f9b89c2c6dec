//! What tests of `cupola train` share.

use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// JSON lines.
pub fn lines(output: &str) -> Vec<Json> {
    let each = output.lines();
    each.map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}")))
        .collect()
}

/// The losses of all steps.
pub fn losses(output: &str) -> Vec<f64> {
    let all = lines(output);
    let steps = all.iter().filter(|l| l.get("lr").is_some());
    steps.map(|l| l["loss"].as_f64().expect("a loss")).collect()
}

/// The data of a safetensors file, and its header without metadata.
pub fn tensors(path: &Path) -> (Json, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Json = serde_json::from_slice(&bytes[8..8 + len]).expect("a header");
    if let Some(all) = header.as_object_mut() {
        all.remove("__metadata__");
    }
    (header, bytes[8 + len..].to_vec())
}

/// The checkpoint of the last step in a folder.
pub fn last(folder: &Path) -> PathBuf {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = (entries.flatten())
        .map(|e| e.path())
        .filter(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("step-"))
        })
        .collect();
    paths.sort();
    paths.pop().expect("a checkpoint")
}

/// A configuration of digits with all that shards have to agree on: dropout, batch norm, a schedule, an uneven last batch.
pub fn digits(more: &str) -> String {
    let root = super::repository();
    format!(
        "loss = \"ce:smoothing=0.05\"\noptim = \"adam:lr=2e-3\"\nschedule = \"cosine:warmup=5,steps=60\"\nbatch = 90\n\
         seed = 3\n{more}\n[data]\nfiles = [{:?}]\nkind = \"table\"\nclass_target = true\nstandardise = true\n\
         validation = 0.1\ntest = 0.2\n[model]\nlayers = [\"linear:64,name=fc1\", \"batch_norm\", \"relu\", \"dropout:0.2\", \
         \"linear:classes,name=fc2\"]\n",
        root.join("examples/train/digits.csv.gz")
    )
}

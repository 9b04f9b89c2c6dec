//! [`ModelFolder`]: a folder with weights in one or several files and a configuration.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use cupola_source::Source;

use crate::error::SafeTensorsError;
use crate::header::Index;
use crate::read::SafeTensors;

/// Configuration and index files may have this many bytes; real ones have at most some megabytes.
const MAX_JSON_SIZE: u64 = 100_000_000;

/// A model as a folder: `config.json`, and `model.safetensors` or shards with an index.
#[derive(Debug)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// The parsed `config.json`, if there is one.
    pub config: Option<serde_json::Value>,
    /// The tensors of all files.
    pub weights: SafeTensors,
    /// What the files with tensors were read from.
    pub sources: Vec<Source>,
}

impl ModelFolder {
    /// Reads the folder at `path`: `model.safetensors.index.json` with the files that it names,
    /// else `model.safetensors`, else the only `*.safetensors` file.
    ///
    /// Files may be symbolic links that lead elsewhere, as download caches make them; names in the
    /// index may not.
    ///
    /// # Errors
    /// [`SafeTensorsError`] for the first thing that is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFolder, SafeTensorsError> {
        let path = path.as_ref().to_owned();
        let config = optional_json(&path.join("config.json"), "of config.json")?;
        let index = path.join("model.safetensors.index.json");
        let mut sources = vec![];
        let weights = match index.exists() {
            true => read_shards(&path, &index, &mut sources)?,
            false => read_file(&only_file(&path)?, &mut sources)?,
        };
        Ok(ModelFolder {
            path,
            config,
            weights,
            sources,
        })
    }

    /// Another JSON file of the folder, if it is there.
    ///
    /// # Errors
    /// [`SafeTensorsError`] for a file that cannot be read or parsed.
    pub fn json(&self, name: &str) -> Result<Option<serde_json::Value>, SafeTensorsError> {
        optional_json(&self.path.join(name), "of a side file")
    }
}

fn optional_json(
    path: &Path,
    file: &'static str,
) -> Result<Option<serde_json::Value>, SafeTensorsError> {
    match path.exists() {
        true => read_json(path, file).map(Some),
        false => Ok(None),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    file: &'static str,
) -> Result<T, SafeTensorsError> {
    let source = Source::open(path)?;
    let size = source.bytes().len() as u64;
    if size > MAX_JSON_SIZE {
        return Err(SafeTensorsError::HeaderSize(size));
    }
    serde_json::from_slice(source.bytes()).map_err(|error| SafeTensorsError::Json {
        message: error.to_string(),
        file,
    })
}

fn only_file(folder: &Path) -> Result<PathBuf, SafeTensorsError> {
    let usual = folder.join("model.safetensors");
    if usual.exists() {
        return Ok(usual);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path()).filter(|path| {
        path.extension()
            .is_some_and(|suffix| suffix == "safetensors")
    });
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file),
        _ => Err(SafeTensorsError::NoWeights(folder.to_owned())),
    }
}

fn read_file(path: &Path, sources: &mut Vec<Source>) -> Result<SafeTensors, SafeTensorsError> {
    let source = Source::open(path)?;
    let file = SafeTensors::read(&source)?;
    sources.push(source);
    Ok(file)
}

fn read_shards(
    folder: &Path,
    index: &Path,
    sources: &mut Vec<Source>,
) -> Result<SafeTensors, SafeTensorsError> {
    let index: Index = read_json(index, "of the index")?;
    let mut shards: HashMap<String, SafeTensors> = HashMap::new();
    let mut weights = SafeTensors::default();
    for (name, shard) in index.weight_map.0 {
        if !shards.contains_key(&shard) {
            let mut parts = Path::new(&shard).components();
            let plain = matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            );
            if !plain {
                return Err(SafeTensorsError::ShardName(shard));
            }
            let file = read_file(&folder.join(&shard), sources)?;
            weights.add_metadata(&file);
            shards.insert(shard.clone(), file);
        }
        let tensor = shards.get(&shard).and_then(|file| file.tensor(&name));
        let Some(tensor) = tensor else {
            return Err(SafeTensorsError::NotInShard {
                shard,
                tensor: name,
            });
        };
        weights.push(tensor.clone())?;
    }
    Ok(weights)
}

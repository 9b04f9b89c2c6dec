//! Files and folders as models.

use crate::build::{self, Builder};
use crate::config::{CacheBlock, Config, Kind, LanguageModel, Options};
use crate::error::{LanguageError, Result};
use crate::families::{self, Family};
use crate::keys::Keys;
use crate::weights::Weights;
use cupola_gguf::{Gguf, GgufParts};
use cupola_safetensors::ModelFolder;
use serde_json::Value as Json;
use std::path::Path;

impl LanguageModel {
    /// Opens a GGUF file (with the others that it was split into) or a folder of safetensors with a `config.json`.
    ///
    /// # Errors
    /// [`LanguageError`] for the first thing that is wrong.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<LanguageModel> {
        let path = path.as_ref();
        match path.is_dir() {
            true => LanguageModel::from_folder(&ModelFolder::open(path)?, options),
            false => LanguageModel::from_gguf(&GgufParts::open(path)?, options),
        }
    }

    /// The model of a GGUF file.
    ///
    /// # Errors
    /// [`LanguageError`] for the first thing that is wrong.
    pub fn from_gguf(parts: &GgufParts, options: &Options) -> Result<LanguageModel> {
        let file = parts.first();
        let missing = || LanguageError::MissingKey("general.architecture".into());
        let architecture = file.architecture().ok_or_else(missing)?;
        let family = families::by_architecture(architecture)?;
        cupola_gguf::hyperparameters::check(file)?;
        let keys = Keys::Gguf { file, architecture };
        let files: Vec<&Gguf> = parts.files().iter().collect();
        let weights = Weights::of_gguf(&files);
        let mut model = assemble(family, &keys, &weights, options)?;
        model.files = parts.sources().to_vec();
        Ok(model)
    }

    /// The model of a folder.
    ///
    /// # Errors
    /// [`LanguageError`] for the first thing that is wrong.
    pub fn from_folder(folder: &ModelFolder, options: &Options) -> Result<LanguageModel> {
        let none = || LanguageError::NoModel("the folder has no config.json".into());
        let config = folder.config.as_ref().ok_or_else(none)?;
        let mut config = config.get("text_config").unwrap_or(config).clone();
        let pooling = folder.json("1_Pooling/config.json")?;
        if let (Json::Object(all), Some(Json::Object(more))) = (&mut config, pooling) {
            all.extend(more);
        }
        let missing = || LanguageError::MissingKey("model_type".into());
        let name = config.get("model_type").and_then(Json::as_str);
        let family = families::by_model_type(name.ok_or_else(missing)?)?;
        let keys = Keys::Folder(&config);
        let weights = Weights::of_folder(&folder.weights, &family.names);
        let mut model = assemble(family, &keys, &weights, options)?;
        model.files = folder.sources.clone();
        Ok(model)
    }
}

fn assemble(
    family: &Family,
    keys: &Keys,
    weights: &Weights,
    options: &Options,
) -> Result<LanguageModel> {
    options.check()?;
    let source = families::Source {
        keys,
        weights,
        options,
    };
    let recipe = (family.recipe)(&source)?;
    let transposed = family.transposed_in_folders && !keys.is_gguf();
    let name = family.architecture;
    let builder = Builder::new(name, weights, &recipe, options, transposed);
    finish(builder, family.kind, name)
}

/// The graph of a recipe, with what an engine must know of it. All tensors must have been used.
pub(crate) fn finish(builder: Builder, kind: Kind, name: &str) -> Result<LanguageModel> {
    let (weights, recipe, options) = builder.parts();
    let (graph, vocab_len) = match kind {
        Kind::Decoder => build::decoder(builder)?,
        Kind::Encoder => build::encoder(builder)?,
    };
    weights.check_used(name)?;
    let kept = match kind {
        Kind::Decoder => &recipe.blocks[..],
        Kind::Encoder => &[],
    };
    let cache = kept.iter().map(|block| CacheBlock {
        kv_heads: block.kv_heads,
        key_len: block.key_len,
        value_len: block.value_len,
        window: block.window,
    });
    let config = Config {
        architecture: name.to_owned(),
        kind,
        vocab_len,
        context_len: options.context_len.unwrap_or(recipe.context_len),
        width: recipe.width,
        blocks: cache.collect(),
        page_len: options.page_len,
        cache_dtype: options.cache_dtype,
    };
    Ok(LanguageModel {
        graph,
        config,
        files: vec![],
    })
}

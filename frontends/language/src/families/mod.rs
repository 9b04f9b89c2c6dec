//! Architectures: what each makes of its hyperparameters. A family is a row of [`FAMILIES`] and a function that makes a
//! [`Recipe`]; what its tensors tell by being there needs no line.

mod bert;
mod common;
mod gemma;
mod gpt2;
mod llama;
mod phi3;
mod qwen;

use crate::config::{Kind, Options};
use crate::error::{LanguageError, Result};
use crate::keys::Keys;
use crate::names::Names;
use crate::recipe::Recipe;
use crate::weights::Weights;

/// What a family makes its recipe from.
pub(crate) struct Source<'a> {
    pub keys: &'a Keys<'a>,
    pub weights: &'a Weights,
    pub options: &'a Options,
}

/// An architecture.
pub(crate) struct Family {
    /// Name in GGUF files.
    pub architecture: &'static str,
    /// `model_type` in `config.json` files.
    pub model_types: &'static [&'static str],
    /// Which contract the graph follows.
    pub kind: Kind,
    /// Names of tensors in folders.
    pub names: Names,
    /// Matrices in folders have the summed axis first.
    pub transposed_in_folders: bool,
    /// The recipe.
    pub recipe: fn(&Source) -> Result<Recipe>,
}

const FAMILIES: &[Family] = &[
    llama::FAMILY,
    qwen::QWEN2,
    qwen::QWEN3,
    qwen::QWEN3_MOE,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    phi3::FAMILY,
    gpt2::FAMILY,
    bert::FAMILY,
];

fn unknown(name: &str, known: Vec<&str>) -> LanguageError {
    LanguageError::Architecture {
        name: name.to_owned(),
        known: known.join(", "),
    }
}

/// The family of a GGUF file.
pub(crate) fn by_architecture(name: &str) -> Result<&'static Family> {
    let found = FAMILIES.iter().find(|f| f.architecture == name);
    let known = || FAMILIES.iter().map(|f| f.architecture).collect();
    found.ok_or_else(|| unknown(name, known()))
}

/// The family of a folder.
pub(crate) fn by_model_type(name: &str) -> Result<&'static Family> {
    let found = FAMILIES.iter().find(|f| f.model_types.contains(&name));
    let known = || {
        FAMILIES
            .iter()
            .flat_map(|f| f.model_types)
            .copied()
            .collect()
    };
    found.ok_or_else(|| unknown(name, known()))
}

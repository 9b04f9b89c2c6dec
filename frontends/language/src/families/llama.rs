//! Llama and those that share its blocks: Mistral, Mixtral, SmolLM.

use super::common;
use super::{Family, Source};
use crate::error::Result;
use crate::names;
use crate::recipe::Recipe;

pub(super) const FAMILY: Family = Family {
    architecture: "llama",
    model_types: &["llama", "mistral", "mixtral"],
    names: names::LLAMA,
    transposed_in_folders: false,
    recipe,
};

fn recipe(source: &Source) -> Result<Recipe> {
    let mut recipe = common::decoder(source)?;
    // GGUF files hold the rows of queries and keys in another order, that of neighbouring pairs.
    recipe.ropes[0].interleaved = source.keys.is_gguf();
    if !source.keys.is_gguf() {
        let window = source.keys.optional_count("attention.sliding_window")?;
        let blocks = recipe.blocks.iter_mut();
        blocks.for_each(|block| block.window = window.unwrap_or(0));
    }
    Ok(recipe)
}

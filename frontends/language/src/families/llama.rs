//! Llama and those that share its blocks: Mistral, Mixtral, SmolLM.

use super::common;
use super::{Family, Source};
use crate::config::Kind;
use crate::error::Result;
use crate::names;
use crate::recipe::Recipe;

pub(super) const FAMILY: Family = Family {
    kind: Kind::Decoder,
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
    common::slide(source, &mut recipe, |_| true)?;
    Ok(recipe)
}

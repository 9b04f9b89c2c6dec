//! GPT-2: learned positions, centred norms, a feed-forward part without gate.

use super::common;
use super::{Family, Source};
use crate::config::Kind;
use crate::error::Result;
use crate::names;
use crate::recipe::{Activation, Recipe};

pub(super) const FAMILY: Family = Family {
    architecture: "gpt2",
    model_types: &["gpt2"],
    kind: Kind::Decoder,
    names: names::GPT2,
    transposed_in_folders: true,
    recipe,
};

fn recipe(source: &Source) -> Result<Recipe> {
    let mut recipe = common::decoder(source)?;
    recipe.activation = common::activation(source, Activation::GeluTanh)?;
    recipe.ropes.clear();
    let blocks = recipe.blocks.iter_mut();
    blocks.for_each(|block| block.rope = None);
    Ok(recipe)
}

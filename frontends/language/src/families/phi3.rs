//! Phi 3 and 4: queries, keys and values by one matrix, gate and value by another.

use super::common;
use super::{Family, Source};
use crate::config::Kind;
use crate::error::Result;
use crate::names;
use crate::recipe::Recipe;

pub(super) const FAMILY: Family = Family {
    architecture: "phi3",
    model_types: &["phi3"],
    kind: Kind::Decoder,
    names: names::LLAMA,
    transposed_in_folders: false,
    recipe,
};

fn recipe(source: &Source) -> Result<Recipe> {
    let mut recipe = common::decoder(source)?;
    common::slide(source, &mut recipe, |_| true)?;
    Ok(recipe)
}

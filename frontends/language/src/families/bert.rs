//! BERT and the sentence encoders made of it.

use super::common;
use super::{Family, Source};
use crate::config::Kind;
use crate::error::{LanguageError, Result};
use crate::names;
use crate::recipe::{Activation, Pooling, Recipe};

pub(super) const FAMILY: Family = Family {
    architecture: "bert",
    model_types: &["bert"],
    kind: Kind::Encoder,
    names: names::BERT,
    transposed_in_folders: false,
    recipe,
};

fn recipe(source: &Source) -> Result<Recipe> {
    let mut recipe = common::decoder(source)?;
    recipe.activation = common::activation(source, Activation::Gelu)?;
    recipe.ropes.clear();
    recipe.pooling = pooling(source)?;
    Ok(recipe)
}

/// Numbers of GGUF files, flags of sentence encoders in folders; the mean where neither says anything.
fn pooling(source: &Source) -> Result<Pooling> {
    let keys = source.keys;
    if keys.flag("pooling_mode_cls_token")? == Some(true) {
        return Ok(Pooling::First);
    }
    match keys.optional_count("pooling_type")? {
        None | Some(0 | 1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::First),
        Some(other) => {
            let what = format!("pooling of kind {other}");
            Err(LanguageError::unsupported(
                &keys.spelled("pooling_type"),
                what,
            ))
        }
    }
}

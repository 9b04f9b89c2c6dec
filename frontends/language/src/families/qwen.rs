//! Qwen 2 and 3, the latter with norms of queries and keys and with or without experts.

use super::common;
use super::{Family, Source};
use crate::config::Kind;
use crate::error::Result;
use crate::names;
use crate::recipe::Recipe;

const fn family(architecture: &'static str, model_types: &'static [&'static str]) -> Family {
    Family {
        architecture,
        model_types,
        kind: Kind::Decoder,
        names: names::LLAMA,
        transposed_in_folders: false,
        recipe,
    }
}

pub(super) const QWEN2: Family = family("qwen2", &["qwen2"]);
pub(super) const QWEN3: Family = family("qwen3", &["qwen3"]);
pub(super) const QWEN3_MOE: Family = family("qwen3moe", &["qwen3_moe"]);

fn recipe(source: &Source) -> Result<Recipe> {
    let mut recipe = common::decoder(source)?;
    if source.keys.flag("use_sliding_window")? == Some(true) {
        let first = source.keys.optional_count("max_window_layers")?;
        common::slide(source, &mut recipe, |i| i >= first.unwrap_or(0))?;
    }
    Ok(recipe)
}

//! Gemma 1 to 3: scaled embeddings, norms around every part, blocks of which some slide a window.

use super::common;
use super::{Family, Source};
use crate::config::Kind;
use crate::error::Result;
use crate::names;
use crate::recipe::{Activation, Recipe};
use crate::rope::{self, Scaling, Setup};

const fn family(
    architecture: &'static str,
    model_types: &'static [&'static str],
    names: names::Names,
    recipe: fn(&Source) -> Result<Recipe>,
) -> Family {
    Family {
        architecture,
        model_types,
        kind: Kind::Decoder,
        names,
        transposed_in_folders: false,
        recipe,
    }
}

pub(super) const GEMMA: Family = family("gemma", &["gemma"], names::LLAMA, first);
pub(super) const GEMMA2: Family = family("gemma2", &["gemma2"], names::GEMMA, second);
pub(super) const GEMMA3: Family = family("gemma3", &["gemma3_text", "gemma3"], names::GEMMA, third);

fn first(source: &Source) -> Result<Recipe> {
    let mut recipe = common::decoder(source)?;
    recipe.embedding_scale = (recipe.width as f64).sqrt();
    recipe.activation = Activation::GeluTanh;
    // Files other than GGUF hold what is added to 1.
    recipe.norm.offset = if source.keys.is_gguf() { 0.0 } else { 1.0 };
    Ok(recipe)
}

/// Scores by what the model states; GGUF files state nothing, and only the models of this many blocks divide by other
/// than the length of their heads.
fn scale(source: &Source, recipe: &mut Recipe, blocks: usize) -> Result<()> {
    let stated = source.keys.number("query_pre_attn_scalar")?;
    let is_odd = source.keys.is_gguf() && recipe.blocks.len() == blocks;
    for block in &mut recipe.blocks {
        let divisor = match stated {
            Some(stated) => stated,
            None if is_odd => (recipe.width / block.heads) as f64,
            None => continue,
        };
        block.scale = divisor.powf(-0.5);
    }
    Ok(())
}

fn second(source: &Source) -> Result<Recipe> {
    let mut recipe = first(source)?;
    scale(source, &mut recipe, 46)?;
    common::slide(source, &mut recipe, |i| i % 2 == 0)?;
    let cap = source.keys.number("attn_logit_softcapping")?.unwrap_or(0.0);
    let blocks = recipe.blocks.iter_mut();
    blocks.for_each(|block| block.cap = cap);
    recipe.logit_cap = source
        .keys
        .number("final_logit_softcapping")?
        .unwrap_or(0.0);
    Ok(recipe)
}

/// Blocks that slide a window turn by a base of their own, without scaling.
fn third(source: &Source) -> Result<Recipe> {
    let mut recipe = first(source)?;
    scale(source, &mut recipe, 62)?;
    common::slide(source, &mut recipe, |i| i % 6 != 5)?;
    let head_len = recipe.blocks[0].key_len;
    let (local, global) = match rope::parameters(source.keys, Some("full_attention")) {
        Some(part) => {
            let near = rope::parameters(source.keys, Some("sliding_attention"));
            let local = near
                .as_ref()
                .and_then(|near| near.number("rope_theta").transpose());
            let trained = source.keys.count("context_length")?;
            let longest = source.options.longest_text(trained);
            let scaling = rope::stated(&part, "", source.keys, longest)?;
            let base = part.number("rope_theta")?.unwrap_or(1e6);
            (
                local.transpose()?,
                common::setup(source, head_len, base, scaling)?,
            )
        }
        None => {
            let key = match source.keys.is_gguf() {
                true => "rope.freq_base_swa",
                false => "rope_local_base_freq",
            };
            (
                source.keys.number(key)?,
                common::rotation(source, head_len)?,
            )
        }
    };
    let local = common::setup(source, head_len, local.unwrap_or(1e4), Scaling::None)?;
    recipe.ropes = [global, local]
        .iter()
        .map(Setup::rope)
        .collect::<Result<_>>()?;
    let blocks = recipe.blocks.iter_mut();
    blocks.for_each(|block| block.rope = Some(usize::from(block.window > 0)));
    Ok(recipe)
}

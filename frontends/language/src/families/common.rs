//! What most decoders have in common; families change what is theirs.

use super::Source;
use crate::error::{LanguageError, Result};
use crate::recipe::{Activation, Block, Experts, Norm, Pooling, Recipe};
use crate::rope::{self, Scaling, Setup};

/// Blocks beyond any real model.
const MAX_BLOCKS: usize = 4096;
/// Experts beyond any real model.
const MAX_EXPERTS: usize = 4096;
/// Elements of a head beyond any real model.
const MAX_HEAD_LEN: usize = 1 << 16;

/// A decoder of equal blocks with a gated feed-forward part and rotation of heads, its pairs half the rotated part apart.
pub(super) fn decoder(source: &Source) -> Result<Recipe> {
    let keys = source.keys;
    let width = keys.count("embedding_length")?;
    let blocks = blocks(source, width)?;
    let setup = rotation(source, blocks[0].key_len)?;
    Ok(Recipe {
        width,
        context_len: keys.count("context_length")?,
        norm: norm(source)?,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_cap: 0.0,
        parallel: false,
        activation: activation(source, Activation::Silu)?,
        experts: experts(source, blocks[0].feed_len)?,
        pooling: Pooling::Mean,
        ropes: vec![setup.rope()?],
        blocks,
    })
}

/// Norms by mean and variance where the model states their epsilon, else by root mean square.
fn norm(source: &Source) -> Result<Norm> {
    let keys = source.keys;
    let centred = "attention.layer_norm_epsilon";
    let is_centred = keys.has(centred);
    let key = match is_centred {
        true => centred,
        false => "attention.layer_norm_rms_epsilon",
    };
    Ok(Norm {
        centred: is_centred,
        epsilon: keys.epsilon(key)?,
        offset: 0.0,
    })
}

fn blocks(source: &Source, width: usize) -> Result<Vec<Block>> {
    let keys = source.keys;
    let len = keys.count("block_count")?;
    if len > MAX_BLOCKS {
        let key = keys.spelled("block_count");
        return Err(LanguageError::key(
            &key,
            format!("{len} blocks; at most {MAX_BLOCKS} are supported"),
        ));
    }
    let heads = keys.counts("attention.head_count", len, None)?;
    let kv_heads = match keys.has("attention.head_count_kv") {
        true => keys.counts("attention.head_count_kv", len, None)?,
        false => heads.clone(),
    };
    let feed = keys.counts("feed_forward_length", len, Some(4 * width))?;
    let key_len = keys.count_or("attention.key_length", width / heads[0])?;
    let value_len = keys.count_or("attention.value_length", key_len)?;
    let is_head = |len: usize| (1..=MAX_HEAD_LEN).contains(&len);
    if !is_head(key_len) || !is_head(value_len) {
        let key = keys.spelled("attention.key_length");
        return Err(LanguageError::key(
            &key,
            format!("heads of {key_len} elements"),
        ));
    }
    let block = |i: usize| {
        if !heads[i].is_multiple_of(kv_heads[i]) {
            let what = format!(
                "{} heads are no multiple of {} of keys",
                heads[i], kv_heads[i]
            );
            let key = keys.spelled("attention.head_count_kv");
            return Err(LanguageError::key(&key, what));
        }
        Ok(Block {
            heads: heads[i],
            kv_heads: kv_heads[i],
            key_len,
            value_len,
            scale: (key_len as f64).powf(-0.5),
            cap: 0.0,
            window: 0,
            rope: Some(0),
            feed_len: feed[i],
        })
    };
    (0..len).map(block).collect()
}

/// The rotation that the keys ask for, of heads of this length.
pub(super) fn rotation(source: &Source, head_len: usize) -> Result<Setup> {
    let keys = source.keys;
    let parameters = rope::parameters(keys, None);
    let inner = |key: &str| match &parameters {
        Some(part) => part.number(key),
        None => Ok(None),
    };
    let base = match keys.is_gguf() {
        true => keys.number("rope.freq_base")?,
        false => inner("rope_theta")?.or(keys.number("rope_theta")?),
    };
    let part = inner("partial_rotary_factor")?.or(keys.number("partial_rotary_factor")?);
    let len = match keys.is_gguf() {
        true => keys.count_or("rope.dimension_count", head_len)?,
        false => (part.unwrap_or(1.0) * head_len as f64) as usize,
    };
    let base = base.unwrap_or(10000.0);
    let scaling = divisors(source, len)?;
    checked(source, head_len, len, base, scaling)
}

/// A rotation of whole heads.
pub(super) fn setup(
    source: &Source,
    head_len: usize,
    base: f64,
    scaling: Scaling,
) -> Result<Setup> {
    checked(source, head_len, head_len, base, scaling)
}

fn checked(
    source: &Source,
    head_len: usize,
    len: usize,
    base: f64,
    scaling: Scaling,
) -> Result<Setup> {
    let wrong = |key: &str, what: String| Err(LanguageError::key(&source.keys.spelled(key), what));
    if !len.is_multiple_of(2) || len > head_len || len == 0 {
        let what = format!("{len} of {head_len} elements cannot be turned in pairs");
        return wrong("rope.dimension_count", what);
    }
    if base <= 1.0 {
        return wrong("rope.freq_base", format!("the base {base} is not above 1"));
    }
    Ok(Setup {
        len,
        base,
        interleaved: false,
        scaling,
    })
}

/// The scaling of the keys, with the divisors that GGUF files carry as tensors.
fn divisors(source: &Source, len: usize) -> Result<Scaling> {
    let Source { keys, weights, .. } = source;
    let context = source.options.longest_text(keys.count("context_length")?);
    let read = |name: &str| -> Result<Vec<f64>> {
        let stored = weights.vector(name, len / 2)?;
        Ok(stored.into_iter().map(f64::from).collect())
    };
    let [short, long] = ["rope_factors_short.weight", "rope_factors_long.weight"];
    if weights.has(short) {
        [short, long].iter().for_each(|name| weights.skip(name));
        let trained = keys.count("rope.scaling.original_context_length")?;
        let is_long = context.is_some_and(|context| context > trained);
        let magnitude = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        return Ok(Scaling::Divisors(
            read(if is_long { long } else { short })?,
            magnitude,
        ));
    }
    match weights.has("rope_freqs.weight") {
        true => Ok(Scaling::Divisors(read("rope_freqs.weight")?, 1.0)),
        false => rope::scaling(keys, context),
    }
}

/// The function that a `config.json` names; that of the family in GGUF files, which name none.
pub(super) fn activation(source: &Source, default: Activation) -> Result<Activation> {
    let key = ["hidden_activation", "hidden_act", "activation_function"];
    let found = key
        .iter()
        .find_map(|key| Some((*key, source.keys.text(key)?)));
    let Some((key, name)) = found.filter(|_| !source.keys.is_gguf()) else {
        return Ok(default);
    };
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => {
            let what = format!("the function {}", cupola_source::quote(other));
            return Err(LanguageError::unsupported(key, what));
        }
    })
}

fn experts(source: &Source, feed_len: usize) -> Result<Option<Experts>> {
    let keys = source.keys;
    let Some(len @ 1..) = keys.optional_count("expert_count")? else {
        return Ok(None);
    };
    let used = keys.count("expert_used_count")?;
    if used > len || len > MAX_EXPERTS {
        let key = keys.spelled("expert_used_count");
        return Err(LanguageError::key(&key, format!("{used} of {len} experts")));
    }
    Ok(Some(Experts {
        len,
        used,
        feed_len: keys.count_or("expert_feed_forward_length", feed_len)?,
        normalised: keys.flag("expert_weights_norm")?.unwrap_or(true),
    }))
}

/// Gives the blocks that slide a window, if the model has one: those that its list of kinds names, or those of the family's
/// pattern.
pub(super) fn slide(
    source: &Source,
    recipe: &mut Recipe,
    pattern: impl Fn(usize) -> bool,
) -> Result<()> {
    let keys = source.keys;
    let Some(window @ 1..) = keys.optional_count("attention.sliding_window")? else {
        return Ok(());
    };
    let kinds = keys.texts("layer_types");
    let every = keys.optional_count("sliding_window_pattern")?;
    for (i, block) in recipe.blocks.iter_mut().enumerate() {
        let slides = match (&kinds, every) {
            (Some(kinds), _) => kinds.get(i) == Some(&"sliding_attention"),
            (None, Some(every @ 1..)) => (i + 1) % every != 0,
            (None, _) => pattern(i),
        };
        if slides {
            block.window = window;
        }
    }
    Ok(())
}

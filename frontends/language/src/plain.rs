//! [`Plain`]: decoders that no file describes, by their sizes and tensors.

use crate::build::Builder;
use crate::config::{Kind, LanguageModel, Options};
use crate::error::{LanguageError, Result};
use crate::open::finish;
use crate::recipe::{Activation, Block, Norm, Pooling, Recipe};
use crate::weights::Weights;
use cupola_ir::Tensor;
use std::collections::BTreeMap;

/// A decoder of blocks in their plain form: a centred norm before attention, another before two matrices with the tanh form of
/// GELU between them, as many heads of keys as of queries, learned positions or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Plain {
    /// Name of the model.
    pub name: String,
    /// Elements of a row between blocks.
    pub width: usize,
    /// Positions it was made for.
    pub context_len: usize,
    /// Added below the root of norms.
    pub epsilon: f64,
    /// Heads, and elements between the two matrices, of each block.
    pub blocks: Vec<(usize, usize)>,
}

impl LanguageModel {
    /// A plain decoder of tensors under the names of GGUF files: `token_embd.weight: [tokens, width]`,
    /// `position_embd.weight: [context_len, width]`, of block N `blk.N.attn_norm`, `blk.N.attn_qkv: [3 * width, width]` (or
    /// `attn_q`, `attn_k`, `attn_v`), `blk.N.attn_output`, `blk.N.ffn_norm`, `blk.N.ffn_up`, `blk.N.ffn_down`, then `output_norm`
    /// and `output` (the embedding where it is missing), each `.weight` and perhaps `.bias`.
    ///
    /// # Errors
    /// [`LanguageError`] for heads that do not divide the width, tensors that are missing, of other extents or too many.
    pub fn of_tensors(
        plain: &Plain,
        tensors: &BTreeMap<String, Tensor>,
        options: &Options,
    ) -> Result<LanguageModel> {
        options.check()?;
        let weights = Weights::of_tensors(tensors);
        let blocks = plain.blocks.iter().map(|(heads, feed_len)| {
            if *heads == 0 || !plain.width.is_multiple_of(*heads) {
                let what = format!("{heads} heads do not divide the width {}", plain.width);
                return Err(LanguageError::key("heads", what));
            }
            let head_len = plain.width / heads;
            Ok(Block {
                heads: *heads,
                kv_heads: *heads,
                key_len: head_len,
                value_len: head_len,
                scale: (head_len as f64).powf(-0.5),
                cap: 0.0,
                window: 0,
                rope: None,
                feed_len: *feed_len,
            })
        });
        let recipe = Recipe {
            width: plain.width,
            context_len: plain.context_len,
            norm: Norm {
                centred: true,
                epsilon: plain.epsilon,
                offset: 0.0,
            },
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: 0.0,
            parallel: false,
            activation: Activation::GeluTanh,
            experts: None,
            pooling: Pooling::Mean,
            ropes: vec![],
            blocks: blocks.collect::<Result<_>>()?,
        };
        let builder = Builder::new(&plain.name, &weights, &recipe, options, false);
        finish(builder, Kind::Decoder, &plain.name)
    }
}

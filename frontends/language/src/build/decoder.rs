//! Decoders: rows of tokens through the blocks, logits of those that are wanted.

use super::Builder;
use super::attention::Step;
use crate::error::Result;
use crate::recipe::Block;
use cupola_ir::{DType, Dim, Graph, Scalar, TensorType, ValueId};

/// The graph of [`crate::Kind::Decoder`], and the length of its vocabulary.
pub(crate) fn decoder(mut b: Builder) -> Result<(Graph, usize)> {
    let vocab_len = b.vocab_len();
    let mut input = |name: &str, dims: &[&str]| {
        let dims = dims.iter().map(|name| Dim::sym(name));
        b.graph.input(name, TensorType::new(DType::I64, dims))
    };
    let tokens = input("tokens", &["rows"])?;
    let positions = input("positions", &["rows"])?;
    let sequences = input("sequences", &["rows"])?;
    let table = input("table", &["batch", "blocks"])?;
    let wanted = input("wanted", &["outs"])?;
    let mut x = b.rows("token_embd.weight", vocab_len, tokens)?;
    x = b.graph.scale(x, b.recipe.embedding_scale)?;
    if let Some(&[len, _]) = b.weights.dims("position_embd.weight") {
        let learned = b.rows("position_embd.weight", len, positions)?;
        x = b.graph.binary(Scalar::Add, x, learned)?;
    }
    let step = Step::new(&mut b, positions, sequences, table)?;
    for (i, block) in b.recipe.blocks.iter().enumerate() {
        x = b.block(x, i, block, &step)?;
    }
    b.part("output", "rows");
    let x = b.picked(x, wanted)?;
    let x = b.norm(x, "output_norm")?;
    let logits = b.logits(x, vocab_len)?;
    b.graph.output("logits", logits);
    Ok((b.graph, vocab_len))
}

impl Builder<'_> {
    fn block(&mut self, x: ValueId, i: usize, block: &Block, step: &Step) -> Result<ValueId> {
        let at = |name: &str| format!("blk.{i}.{name}");
        let read = self.optional_norm(x, &at("attn_norm"))?;
        let attended = self.attention(read, i, block, step)?;
        let attended = self.optional_norm(attended, &at("post_attention_norm"))?;
        if self.recipe.parallel {
            let own = match self.weights.has(&at("ffn_norm.weight")) {
                true => self.norm(x, &at("ffn_norm"))?,
                false => read,
            };
            let fed = self.feed(own, i, block)?;
            let sum = self.graph.binary(Scalar::Add, attended, fed)?;
            return self.added(x, sum);
        }
        let x = self.added(x, attended)?;
        let read = self.optional_norm(x, &at("ffn_norm"))?;
        let fed = self.feed(read, i, block)?;
        let fed = self.optional_norm(fed, &at("post_ffw_norm"))?;
        self.added(x, fed)
    }

    /// The row with what a part gives for it.
    fn added(&mut self, x: ValueId, part: ValueId) -> Result<ValueId> {
        let part = self.graph.scale(part, self.recipe.residual_scale)?;
        Ok(self.graph.binary(Scalar::Add, x, part)?)
    }

    /// Logits by the head, which is the embedding where there is no other.
    fn logits(&mut self, x: ValueId, vocab_len: usize) -> Result<ValueId> {
        let name = match self.weights.has("output.weight") {
            true => "output.weight",
            false => "token_embd.weight",
        };
        let head = self.weights.get(name, &[vocab_len, self.recipe.width])?;
        self.part("output", "product");
        let y = self.product(x, head, false)?;
        let y = self.biased(y, "output", vocab_len)?;
        let y = self.graph.scale(y, self.recipe.logit_scale)?;
        self.capped(y, self.recipe.logit_cap)
    }
}

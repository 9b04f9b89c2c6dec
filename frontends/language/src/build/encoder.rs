//! Encoders: whole texts through the blocks, one row per token and one for each text.

use super::Builder;
use crate::error::Result;
use crate::recipe::{Block, Pooling};
use cupola_ir::composite::Attention;
use cupola_ir::ops::ReduceKind;
use cupola_ir::{DType, Dim, Graph, Op, Scalar, TensorType, ValueId};

/// What is added by segment, where the model tells segments apart.
const SEGMENTS: &str = "token_types.weight";

/// The graph of [`crate::Kind::Encoder`], and the length of its vocabulary.
pub(crate) fn encoder(mut b: Builder) -> Result<(Graph, usize)> {
    let vocab_len = b.vocab_len();
    let mut input = |name: &str, dtype| {
        let dims = ["batch", "length"].map(Dim::sym);
        b.graph.input(name, TensorType::new(dtype, dims))
    };
    let tokens = input("tokens", DType::I64)?;
    let positions = input("positions", DType::I64)?;
    let mask = input("mask", DType::Bool)?;
    let mut x = b.rows("token_embd.weight", vocab_len, tokens)?;
    if let Some(&[len, _]) = b.weights.dims(SEGMENTS) {
        let dims = ["batch", "length"].map(Dim::sym);
        let segments = b
            .graph
            .input("segments", TensorType::new(DType::I64, dims))?;
        let own = b.rows(SEGMENTS, len, segments)?;
        x = b.graph.binary(Scalar::Add, x, own)?;
    }
    if let Some(&[len, _]) = b.weights.dims("position_embd.weight") {
        let learned = b.rows("position_embd.weight", len, positions)?;
        x = b.graph.binary(Scalar::Add, x, learned)?;
    }
    x = b.norm(x, "token_embd_norm")?;
    for (i, block) in b.recipe.blocks.iter().enumerate() {
        x = b.encoder_block(x, i, block, mask)?;
    }
    b.graph.output("hidden", x);
    let embedding = b.pooled(x, mask)?;
    b.graph.output("embedding", embedding);
    Ok((b.graph, vocab_len))
}

impl Builder<'_> {
    fn encoder_block(
        &mut self,
        x: ValueId,
        i: usize,
        block: &Block,
        mask: ValueId,
    ) -> Result<ValueId> {
        let at = |name: &str| format!("blk.{i}.{name}");
        let attended = self.seen_all(x, i, block, mask)?;
        let x = self.graph.binary(Scalar::Add, x, attended)?;
        let x = self.norm(x, &at("attn_output_norm"))?;
        let fed = self.feed(x, i, block)?;
        let x = self.graph.binary(Scalar::Add, x, fed)?;
        self.norm(x, &at("layer_output_norm"))
    }

    /// What attention of every token to all of its text adds.
    fn seen_all(&mut self, x: ValueId, i: usize, block: &Block, mask: ValueId) -> Result<ValueId> {
        let [q, k, v] = self.queries_keys_values(x, i, block)?;
        let v = self.heads(v, block.kv_heads)?;
        self.part(&format!("blk.{i}.attn"), "attention");
        let g = &mut self.graph;
        let [q, k, v] = [q, k, v].map(|part| g.permute(part, &[0, 2, 1, 3]));
        let mask = g.unsqueeze(mask, &[1, 2])?;
        let op = Attention {
            scale: block.scale,
            causal: false,
            softcap: 0.0,
        };
        let y = g.one(Op::Composite(op.into()), &[q?, k?, v?, mask])?;
        let y = g.permute(y, &[0, 2, 1, 3])?;
        let y = self.flat(y)?;
        self.linear(y, &format!("blk.{i}.attn_output"), self.recipe.width)
    }

    /// One row per text, of length 1.
    fn pooled(&mut self, x: ValueId, mask: ValueId) -> Result<ValueId> {
        self.part("embedding", "pooling");
        let pooling = self.recipe.pooling;
        let g = &mut self.graph;
        let row = match pooling {
            Pooling::First => g.pick(x, 1, &Dim::ZERO)?,
            Pooling::Mean => {
                let weight = g.cast(mask, DType::F32)?;
                let count = g.reduce_keep(ReduceKind::Sum, weight, &[1])?;
                let one = g.number(1.0, DType::F32)?;
                let count = g.binary(Scalar::Max, count, one)?;
                let weight = g.unsqueeze(weight, &[2])?;
                let kept = g.binary(Scalar::Mul, x, weight)?;
                let sum = g.reduce(ReduceKind::Sum, kept, &[1])?;
                g.binary(Scalar::Div, sum, count)?
            }
        };
        let square = g.binary(Scalar::Mul, row, row)?;
        let square = g.reduce_keep(ReduceKind::Sum, square, &[1])?;
        // The least length that is divided by, below which nothing but rounding is left.
        let least = g.number(1e-24, DType::F32)?;
        let square = g.binary(Scalar::Max, square, least)?;
        let inverse = g.unary(Scalar::Rsqrt, square)?;
        Ok(g.binary(Scalar::Mul, row, inverse)?)
    }
}

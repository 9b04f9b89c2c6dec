//! Feed-forward parts, with and without gates, of one matrix or of experts.

use super::Builder;
use crate::error::Result;
use crate::recipe::{Activation, Block};
use cupola_ir::composite::{Gelu, Swiglu, Swish};
use cupola_ir::{Op, Scalar, ValueId};

impl Builder<'_> {
    /// What the feed-forward part adds to the rows.
    pub(super) fn feed(&mut self, x: ValueId, i: usize, block: &Block) -> Result<ValueId> {
        let at = |name: &str| format!("blk.{i}.{name}");
        if let Some(experts) = self.recipe.experts
            && self.weights.has(&at("ffn_gate_inp.weight"))
        {
            return self.experts(x, i, experts);
        }
        let (len, width) = (block.feed_len, self.recipe.width);
        let joined = self.joined_rows(&at("ffn_up.weight")) == Some(2 * len);
        let inner = if self.weights.has(&at("ffn_gate.weight")) {
            let gate = self.linear(x, &at("ffn_gate"), len)?;
            let up = self.linear(x, &at("ffn_up"), len)?;
            self.gated(gate, up)?
        } else if joined {
            let both = self.linear(x, &at("ffn_up"), 2 * len)?;
            let parts = self.split(both, &[len, len])?;
            self.gated(parts[0], parts[1])?
        } else {
            let up = self.linear(x, &at("ffn_up"), len)?;
            self.activated(up)?
        };
        self.linear(inner, &at("ffn_down"), width)
    }

    /// Columns of the product by a matrix.
    fn joined_rows(&self, name: &str) -> Option<usize> {
        let dims = self.weights.dims(name)?;
        dims.get(usize::from(self.transposed)).copied()
    }

    pub(super) fn gated(&mut self, gate: ValueId, up: ValueId) -> Result<ValueId> {
        if self.recipe.activation == Activation::Silu {
            let op = Op::Composite(Swiglu { alpha: 1.0 }.into());
            return Ok(self.graph.one(op, &[gate, up])?);
        }
        let gate = self.activated(gate)?;
        Ok(self.graph.binary(Scalar::Mul, gate, up)?)
    }

    fn activated(&mut self, x: ValueId) -> Result<ValueId> {
        let g = &mut self.graph;
        let op: Op = match self.recipe.activation {
            Activation::Silu => Op::Composite(Swish { alpha: 1.0 }.into()),
            Activation::Gelu => Op::Composite(Gelu { tanh: false }.into()),
            Activation::GeluTanh => Op::Composite(Gelu { tanh: true }.into()),
            Activation::Relu => {
                let zero = g.number_like(0.0, x)?;
                return Ok(g.binary(Scalar::Max, x, zero)?);
            }
        };
        Ok(g.one(op, &[x])?)
    }
}

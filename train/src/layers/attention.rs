//! Self-attention with several heads.

use super::known;
use crate::error::{Result, TrainError};
use crate::init::Init;
use crate::net::Net;
use cupola_ir::composite::Attention;
use cupola_ir::{DType, Dim, Op, Scalar, ValueId};

/// Settings of [`Net::self_attention`].
#[derive(Clone, Debug, PartialEq)]
pub struct SelfAttention {
    /// Number of heads; divides the width.
    pub heads: usize,
    /// Positions see only themselves and those before.
    pub causal: bool,
    /// Whether there are biases.
    pub bias: bool,
    /// Probability of dropout of the weights that values are summed with.
    pub dropout: f64,
}

impl Net {
    /// Multi-head self-attention of `x: [batch, steps, width]`. Parameters as those of `torch.nn.MultiheadAttention`:
    /// `in_proj_weight: [3 * width, width]`, `in_proj_bias: [3 * width]`, `out_proj.weight: [width, width]`, `out_proj.bias: [width]`.
    ///
    /// # Errors
    /// An operand of other than three axes; heads that do not divide the width.
    pub fn self_attention(&mut self, name: &str, x: ValueId, a: &SelfAttention) -> Result<ValueId> {
        let rank = self.graph.rank(x);
        if rank != 3 {
            let what = format!("takes [batch, steps, width], not {}", self.graph.ty(x));
            return Err(TrainError::layer(name, what));
        }
        let width = known(&self.graph, name, x, 2)?;
        // The rule of Glorot and Bengio (2010) over the joined matrix, as PyTorch's module has it.
        let bound = (6.0 / (4 * width) as f64).sqrt();
        let shape = [3 * width, width];
        let w = self.parameter(
            &format!("{name}.in_proj_weight"),
            &shape,
            Init::Uniform { bound },
        )?;
        let w = self.graph.cast_like(w, x)?;
        let mut qkv = self.graph.matmul_nt(x, w)?;
        if a.bias {
            let b = self.parameter(&format!("{name}.in_proj_bias"), &[3 * width], Init::ZEROS)?;
            qkv = self.add(qkv, b)?;
        }
        let y = self.attention(name, qkv, a.heads, a.causal, a.dropout)?;
        let out = format!("{name}.out_proj");
        if !a.bias {
            return self.linear_without_bias(&out, y, width);
        }
        // That of the result begins with zeros, unlike a linear layer's.
        let y = self.linear_without_bias(&out, y, width)?;
        let b = self.parameter(&format!("{out}.bias"), &[width], Init::ZEROS)?;
        self.add(y, b)
    }

    /// Scaled dot-product attention of joined queries, keys and values `[batch, steps, 3 * width]` with several heads:
    /// `[batch, steps, width]`. With `dropout` the weights of the values are dropped in training, after they were normalised.
    ///
    /// # Errors
    /// An operand of other than three axes; heads that do not divide the width; a probability outside 0 to 1.
    pub fn attention(
        &mut self,
        name: &str,
        qkv: ValueId,
        heads: usize,
        causal: bool,
        dropout: f64,
    ) -> Result<ValueId> {
        let joined = match self.graph.rank(qkv) {
            3 => known(&self.graph, name, qkv, 2)?,
            _ => 0,
        };
        if joined == 0 || heads == 0 || joined % (3 * heads) != 0 {
            let what = format!(
                "takes [batch, steps, 3 * width] with a width that {heads} heads divide, not {}",
                self.graph.ty(qkv)
            );
            return Err(TrainError::layer(name, what));
        }
        let (width, each) = (joined / 3, joined / 3 / heads);
        let g = &mut self.graph;
        let (batch, steps) = (g.dim(qkv, 0), g.dim(qkv, 1));
        let split = [batch.clone(), steps.clone(), heads.into(), each.into()];
        let mut parts = vec![];
        for i in 0..3 {
            let part = g.slice_axis(qkv, 2, &Dim::from(i * width), &Dim::from(width))?;
            let part = g.reshape(part, &split)?;
            parts.push(g.permute(part, &[0, 2, 1, 3])?);
        }
        let op = Attention {
            scale: 1.0 / (each as f64).sqrt(),
            causal,
            softcap: 0.0,
        };
        let mut y = g.one(Op::Composite(op.clone().into()), &parts)?;
        if dropout != 0.0 {
            let dropped = self.dropped_attention(&op, &parts, dropout)?;
            self.switch(dropped, y);
            y = dropped;
        }
        let g = &mut self.graph;
        let y = g.permute(y, &[0, 2, 1, 3])?;
        Ok(g.reshape(y, &[batch, steps, width.into()])?)
    }

    /// Attention in parts, with dropout between the softmax and the product with the values.
    fn dropped_attention(&mut self, op: &Attention, qkv: &[ValueId], p: f64) -> Result<ValueId> {
        let g = &mut self.graph;
        let scores = g.matmul_nt(qkv[0], qkv[1])?;
        let mut scores = g.scale(scores, op.scale)?;
        if op.causal {
            let plane = g.dims(scores)[2..].to_vec();
            let row = g.iota(DType::I64, &plane, 0)?;
            let column = g.iota(DType::I64, &plane, 1)?;
            let seen = g.binary(Scalar::Le, column, row)?;
            let low = g.number_like(f64::NEG_INFINITY, scores)?;
            scores = g.select(seen, scores, low)?;
        }
        let weights = self.softmax(scores)?;
        let weights = self.dropout(weights, p)?;
        let g = &mut self.graph;
        let weights = g.cast_like(weights, qkv[2])?;
        Ok(g.matmul(weights, qkv[2])?)
    }
}

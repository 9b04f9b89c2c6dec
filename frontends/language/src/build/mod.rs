//! Recipe and weights as a graph.
//!
//! Biases, joined matrices, norms of queries and keys, norms after a part, learned positions and heads are there when
//! their tensors are. Matrices stay in the type that the file has and are widened where they are used.

mod attention;
mod decoder;
mod encoder;
mod experts;
mod feed;

pub(crate) use decoder::decoder;
pub(crate) use encoder::encoder;

use crate::config::Options;
use crate::error::Result;
use crate::recipe::{Norm, Recipe};
use crate::weights::Weights;
use cupola_ir::composite::{LayerNorm, RmsNorm};
use cupola_ir::graph::Origin;
use cupola_ir::ops::{Bounds, Gather};
use cupola_ir::{DType, Dim, Graph, Op, Scalar, Tensor, ValueId};
use std::sync::Arc;

/// A graph under construction, with what it is made from.
pub(crate) struct Builder<'a> {
    graph: Graph,
    weights: &'a Weights,
    recipe: &'a Recipe,
    options: &'a Options,
    /// Matrices are stored with the summed axis first.
    transposed: bool,
}

impl<'a> Builder<'a> {
    pub fn new(
        name: &str,
        weights: &'a Weights,
        recipe: &'a Recipe,
        options: &'a Options,
        transposed: bool,
    ) -> Builder<'a> {
        Builder {
            graph: Graph::new(name),
            weights,
            recipe,
            options,
            transposed,
        }
    }

    /// What the graph is made from.
    pub fn parts(&self) -> (&'a Weights, &'a Recipe, &'a Options) {
        (self.weights, self.recipe, self.options)
    }

    /// Names the part of the model that the next nodes belong to.
    fn part(&mut self, node: &str, op: &str) {
        let origin = Origin {
            source: self.graph.name.as_str().into(),
            node: node.into(),
            op: op.into(),
        };
        self.graph.set_origin(Some(Arc::new(origin)));
    }

    /// A stored vector as a constant of f32, with a number added to every element.
    fn vector(&mut self, name: &str, len: usize, offset: f32) -> Result<ValueId> {
        let mut values = self.weights.vector(name, len)?;
        values.iter_mut().for_each(|v| *v += offset);
        Ok(self.graph.constant(Tensor::vector(&values))?)
    }

    /// `x[.., inner] -> [.., cols]` by the matrix `name`, with the bias beside it if there is one.
    fn linear(&mut self, x: ValueId, name: &str, cols: usize) -> Result<ValueId> {
        let inner = self.last_len(x);
        let weight = format!("{name}.weight");
        let stored = match self.transposed {
            true => [inner, cols],
            false => [cols, inner],
        };
        let matrix = self.weights.get(&weight, &stored)?;
        self.part(name, "product");
        let y = self.product(x, matrix, self.transposed)?;
        self.biased(y, name, cols)
    }

    /// The product with a constant matrix, its summed axis first or last.
    fn product(&mut self, x: ValueId, matrix: Tensor, transposed: bool) -> Result<ValueId> {
        let g = &mut self.graph;
        let matrix = g.constant(matrix)?;
        let matrix = g.cast_like(matrix, x)?;
        Ok(match transposed {
            true => g.matmul(x, matrix)?,
            false => g.matmul_nt(x, matrix)?,
        })
    }

    fn biased(&mut self, y: ValueId, name: &str, len: usize) -> Result<ValueId> {
        let bias = format!("{name}.bias");
        if !self.weights.has(&bias) {
            return Ok(y);
        }
        let bias = self.vector(&bias, len, 0.0)?;
        Ok(self.graph.binary(Scalar::Add, y, bias)?)
    }

    /// The norm of the last axis by the factors (and the bias, if there is one) of this name.
    fn norm(&mut self, x: ValueId, name: &str) -> Result<ValueId> {
        let len = self.last_len(x);
        let Norm {
            centred,
            epsilon,
            offset,
        } = self.recipe.norm;
        self.part(name, "norm");
        let scale = self.vector(&format!("{name}.weight"), len, offset as f32)?;
        let mut operands = vec![x, scale];
        let bias = format!("{name}.bias");
        if centred && self.weights.has(&bias) {
            operands.push(self.vector(&bias, len, 0.0)?);
        }
        let axis = self.graph.rank(x) - 1;
        let op = match centred {
            true => Op::Composite(
                LayerNorm {
                    axis,
                    epsilon,
                    stats: false,
                }
                .into(),
            ),
            false => Op::Composite(RmsNorm { axis, epsilon }.into()),
        };
        Ok(self.graph.one(op, &operands)?)
    }

    /// The norm if its tensor is there.
    fn optional_norm(&mut self, x: ValueId, name: &str) -> Result<ValueId> {
        match self.weights.has(&format!("{name}.weight")) {
            true => self.norm(x, name),
            false => Ok(x),
        }
    }

    /// Tokens that have an embedding; 0 where the tensor is missing, which its use then reports.
    fn vocab_len(&self) -> usize {
        let dims = self.weights.dims("token_embd.weight");
        dims.and_then(|d| d.first()).copied().unwrap_or(0)
    }

    /// Rows of the matrix `name`, as f32.
    fn rows(&mut self, name: &str, len: usize, index: ValueId) -> Result<ValueId> {
        let width = self.recipe.width;
        let matrix = self.weights.get(name, &[len, width])?;
        self.part(name, "rows");
        let matrix = self.graph.constant(matrix)?;
        let rows = self.picked(matrix, index)?;
        Ok(self.graph.cast(rows, DType::F32)?)
    }

    /// `x[index, ..]`.
    fn picked(&mut self, x: ValueId, index: ValueId) -> Result<ValueId> {
        let gather = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        Ok(self.graph.one(gather, &[x, index])?)
    }

    /// `cap * tanh(x / cap)`; `x` where the cap is 0.
    fn capped(&mut self, x: ValueId, cap: f64) -> Result<ValueId> {
        if cap == 0.0 {
            return Ok(x);
        }
        let g = &mut self.graph;
        let x = g.scale(x, 1.0 / cap)?;
        let x = g.unary(Scalar::Tanh, x)?;
        Ok(g.scale(x, cap)?)
    }

    /// Parts of the last axis, one after the other.
    fn split(&mut self, x: ValueId, lens: &[usize]) -> Result<Vec<ValueId>> {
        let axis = self.graph.rank(x) - 1;
        let mut start = 0;
        let mut parts = vec![];
        for len in lens {
            let (from, to) = (Dim::from(start), Dim::from(*len));
            parts.push(self.graph.slice_axis(x, axis, &from, &to)?);
            start += len;
        }
        Ok(parts)
    }

    /// The last axis as two: heads and their elements.
    fn heads(&mut self, x: ValueId, heads: usize) -> Result<ValueId> {
        let mut dims = self.graph.dims(x);
        if let Some(last) = dims.pop() {
            dims.push(Dim::from(heads));
            dims.push(last.floor_div(&Dim::from(heads)));
        }
        Ok(self.graph.reshape(x, &dims)?)
    }

    /// The last two axes as one.
    fn flat(&mut self, x: ValueId) -> Result<ValueId> {
        let mut dims = self.graph.dims(x);
        if let (Some(b), Some(a)) = (dims.pop(), dims.pop()) {
            dims.push(a * b);
        }
        Ok(self.graph.reshape(x, &dims)?)
    }

    /// The last extent, which is always a number in models.
    fn last_len(&self, x: ValueId) -> usize {
        let dims = self.graph.dims(x);
        let last = dims.last().and_then(Dim::as_const);
        last.map_or(0, |len| len as usize)
    }
}

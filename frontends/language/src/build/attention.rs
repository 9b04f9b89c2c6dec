//! Attention of decoders: queries, keys and values of a step, the cache they go to, what rows see of it.

use super::Builder;
use crate::config::scales_of;
use crate::error::Result;
use crate::recipe::Block;
use crate::rope::Rope;
use cupola_ir::composite::{self, PagedAttention};
use cupola_ir::graph::StateSlot;
use cupola_ir::ops::{Bounds, Gather, ReadState, ReduceKind, Scatter, ScatterKind, WriteState};
use cupola_ir::{DType, Dim, Op, Scalar, Tensor, TensorType, ValueId};

/// What all blocks of a step share.
pub(super) struct Step {
    positions: ValueId,
    sequences: ValueId,
    table: ValueId,
    /// Where each row's keys and values go.
    page: ValueId,
    offset: ValueId,
    /// Cosines and sines `[rows, 1, pairs]` of each of the recipe's rotations.
    turns: Vec<[ValueId; 2]>,
}

impl Step {
    pub fn new(
        b: &mut Builder,
        positions: ValueId,
        sequences: ValueId,
        table: ValueId,
    ) -> Result<Step> {
        b.part("cache", "place");
        let page_len = b.graph.number(b.options.page_len as f64, DType::I64)?;
        let block = b.graph.binary(Scalar::Div, positions, page_len)?;
        let offset = b.graph.binary(Scalar::Rem, positions, page_len)?;
        let gather = Gather {
            axes: vec![0, 1],
            batch: 0,
            bounds: Bounds::Check,
        };
        let page = b.graph.one(gather, &[table, sequences, block])?;
        let ropes = b.recipe.ropes.iter();
        let turns = ropes
            .map(|rope| b.turns(rope, positions))
            .collect::<Result<_>>()?;
        Ok(Step {
            positions,
            sequences,
            table,
            page,
            offset,
            turns,
        })
    }
}

impl Builder<'_> {
    /// Cosines and sines `[.., 1, pairs]` of a rotation at positions `[..]`.
    fn turns(&mut self, rope: &Rope, positions: ValueId) -> Result<[ValueId; 2]> {
        self.part("rope", "turns");
        let g = &mut self.graph;
        let rank = g.rank(positions);
        let at = g.cast(positions, DType::F32)?;
        let at = g.unsqueeze(at, &[rank, rank + 1])?;
        let frequencies: Vec<f32> = rope.frequencies.iter().map(|f| *f as f32).collect();
        let frequencies = g.constant(Tensor::vector(&frequencies))?;
        let angles = g.binary(Scalar::Mul, at, frequencies)?;
        let mut turn = |f| {
            let y = g.unary(f, angles)?;
            g.scale(y, rope.magnitude)
        };
        Ok([turn(Scalar::Cos)?, turn(Scalar::Sin)?])
    }

    /// Heads `[rows, heads, len]` turned; elements beyond the rotation's pairs stay.
    fn turned(&mut self, x: ValueId, rope: usize, step: &Step) -> Result<ValueId> {
        let len = self.last_len(x);
        let kind = &self.recipe.ropes[rope];
        let (width, interleaved) = (2 * kind.frequencies.len(), kind.interleaved);
        let [cos, sin] = step.turns[rope];
        let op = Op::Composite(composite::Rope { interleaved }.into());
        if width == len {
            return Ok(self.graph.one(op, &[x, cos, sin])?);
        }
        let parts = self.split(x, &[width, len - width])?;
        let turned = self.graph.one(op, &[parts[0], cos, sin])?;
        let axis = self.graph.rank(x) - 1;
        Ok(self.graph.concat(&[turned, parts[1]], axis)?)
    }

    /// What attention adds to the rows.
    pub(super) fn attention(
        &mut self,
        x: ValueId,
        i: usize,
        block: &Block,
        step: &Step,
    ) -> Result<ValueId> {
        let [q, k, v] = self.queries_keys_values(x, i, block)?;
        // Values that are only rounded are so before they are dealt to heads: by the kernel of the product.
        let v = match self.options.cache_dtype {
            DType::I8 => v,
            dtype => self.graph.cast(v, dtype)?,
        };
        let v = self.heads(v, block.kv_heads)?;
        let (mut q, mut k) = (q, k);
        self.part(&format!("blk.{i}.rope"), "rope");
        if let Some(rope) = block.rope {
            q = self.turned(q, rope, step)?;
            k = self.turned(k, rope, step)?;
        }
        self.part(&format!("blk.{i}.attn"), "attention");
        let stored = [
            self.kept("key", i, k, step)?,
            self.kept("value", i, v, step)?,
        ];
        let op = PagedAttention {
            scale: block.scale,
            softcap: block.cap,
            window: block.window as i64,
        };
        let [k, v] = [stored[0].0, stored[1].0];
        let mut operands = vec![q, k, v, step.table, step.sequences, step.positions];
        operands.extend(stored.iter().filter_map(|(_, scales)| *scales));
        let y = self.graph.one(Op::Composite(op.into()), &operands)?;
        let y = self.flat(y)?;
        self.linear(y, &format!("blk.{i}.attn_output"), self.recipe.width)
    }

    /// Queries and keys `[rows, heads, len]`, with norms where the model has them, and values `[rows, heads * len]`.
    pub(super) fn queries_keys_values(
        &mut self,
        x: ValueId,
        i: usize,
        block: &Block,
    ) -> Result<[ValueId; 3]> {
        let at = |name: &str| format!("blk.{i}.{name}");
        let lens = [
            block.heads * block.key_len,
            block.kv_heads * block.key_len,
            block.kv_heads * block.value_len,
        ];
        let [q, k, v] = match self.weights.has(&at("attn_qkv.weight")) {
            true => {
                let joined = self.linear(x, &at("attn_qkv"), lens.iter().sum())?;
                let parts = self.split(joined, &lens)?;
                [parts[0], parts[1], parts[2]]
            }
            false => [
                self.linear(x, &at("attn_q"), lens[0])?,
                self.linear(x, &at("attn_k"), lens[1])?,
                self.linear(x, &at("attn_v"), lens[2])?,
            ],
        };
        let q = self.normed_heads(q, &at("attn_q_norm"), block.heads)?;
        let k = self.normed_heads(k, &at("attn_k_norm"), block.kv_heads)?;
        Ok([q, k, v])
    }

    /// The last axis as heads, normed over all elements or over those of a head, as the norm's length says.
    fn normed_heads(&mut self, x: ValueId, name: &str, heads: usize) -> Result<ValueId> {
        let whole = [self.last_len(x)];
        if self.weights.dims(&format!("{name}.weight")) == Some(&whole) && heads > 1 {
            let x = self.norm(x, name)?;
            return self.heads(x, heads);
        }
        let x = self.heads(x, heads)?;
        self.optional_norm(x, name)
    }

    /// What the cache holds of keys or values from now on, with the rows `[rows, heads, len]` in it, and their scales where
    /// they are in 8 bits.
    fn kept(
        &mut self,
        name: &str,
        i: usize,
        rows: ValueId,
        step: &Step,
    ) -> Result<(ValueId, Option<ValueId>)> {
        let dtype = self.options.cache_dtype;
        let slot = format!("{name}.{i}");
        if dtype != DType::I8 {
            let rows = self.graph.cast(rows, dtype)?;
            return Ok((self.slot(&slot, rows, step)?, None));
        }
        let (codes, scales) = self.rounded(rows)?;
        let codes = self.slot(&slot, codes, step)?;
        let scales = self.slot(&format!("{name}_scale.{i}"), scales, step)?;
        Ok((codes, Some(scales)))
    }

    /// Rows `[rows, heads, len]` as i8, and their scales `f16[rows, heads, scales]`: the largest of the numbers that share
    /// one is 127 steps.
    fn rounded(&mut self, rows: ValueId) -> Result<(ValueId, ValueId)> {
        let len = self.last_len(rows);
        let groups = scales_of(len);
        let g = &mut self.graph;
        let dims = g.dims(rows);
        let mut grouped = dims[..2].to_vec();
        grouped.extend([Dim::from(groups), Dim::from(len / groups)]);
        let x = g.reshape(rows, &grouped)?;
        let size = g.unary(Scalar::Abs, x)?;
        let most = g.reduce_keep(ReduceKind::Max, size, &[3])?;
        let scales = g.scale(most, 1.0 / 127.0)?;
        // Beyond the largest f16 the numbers are cut off, as they would be in a cache of f16.
        let largest = g.number_like(65504.0, scales)?;
        let scales = g.binary(Scalar::Min, scales, largest)?;
        let scales = g.cast(scales, DType::F16)?;
        let step = g.cast(scales, DType::F32)?;
        let zero = g.number_like(0.0, step)?;
        let is_zero = g.binary(Scalar::Eq, step, zero)?;
        let one = g.number_like(1.0, step)?;
        let divisor = g.select(is_zero, one, step)?;
        let x = g.binary(Scalar::Div, x, divisor)?;
        let x = g.unary(Scalar::Round, x)?;
        let [low, high] = [-127.0, 127.0];
        let high = g.number_like(high, x)?;
        let x = g.binary(Scalar::Min, x, high)?;
        let low = g.number_like(low, x)?;
        let x = g.binary(Scalar::Max, x, low)?;
        let codes = g.cast(x, DType::I8)?;
        let codes = g.reshape(codes, &dims)?;
        Ok((codes, g.squeeze(scales, &[3])?))
    }

    /// The slot with the rows written into it: what it holds from now on.
    fn slot(&mut self, slot: &str, rows: ValueId, step: &Step) -> Result<ValueId> {
        let g = &mut self.graph;
        let dtype = g.dtype(rows);
        let [heads, len] = [g.dim(rows, 1), g.dim(rows, 2)];
        let page_len = Dim::from(self.options.page_len);
        let dims = [Dim::sym("pages"), heads, page_len, len];
        let none = dims[1..].iter().filter_map(Dim::as_const);
        let none: Vec<usize> = [0].into_iter().chain(none.map(|d| d as usize)).collect();
        let ty = TensorType::new(dtype, dims);
        let initial = Tensor::new(dtype, none, bytes::Bytes::new());
        let initial = initial.unwrap_or_else(|| unreachable!("bug: no page has no bytes"));
        let state = StateSlot {
            ty: ty.clone().into(),
            initial,
        };
        g.slots.insert(slot.to_owned(), state);
        let read = ReadState {
            slot: slot.to_owned(),
            ty: ty.into(),
        };
        let before = g.one(read, &[])?;
        let scatter = Scatter {
            axes: vec![0, 2],
            batch: 0,
            kind: ScatterKind::Set,
            bounds: Bounds::Check,
        };
        let after = g.one(scatter, &[before, rows, step.page, step.offset])?;
        let write = WriteState {
            slot: slot.to_owned(),
        };
        Ok(g.one(write, &[after])?)
    }
}

//! Scaled dot-product attention: `softmax(scale * q k^T + mask) v`, without ever storing the scores as a whole.
//!
//! The query rows that share a head of keys (several positions, and several heads where queries are grouped) are cut into
//! blocks; for each of them, blocks of keys and values pass by, and the softmax is kept up to date as they do: largest score so
//! far, sum of exponentials, and the weighted sum of values, rescaled when the largest score grows. Few rows against many keys
//! (decoding) are cut along the keys too, and the parts are combined at the end. How the keys are cut depends on the shapes only,
//! so the result depends neither on the number of threads nor on the width of vectors (as long as they multiply and add alike).
//!
//! Reading order: this file (contract and division of work), `rows` (where keys and values are), `block` (one block of rows),
//! `words`, `vectors`, `gradient`.

mod block;
mod gradient;
mod rows;
mod vectors;
mod words;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::library::Context;
use crate::library::gemm::driver::IN_PLACE_ROWS;
use crate::library::gemm::formats::FloatWords;
use crate::library::simd::loops::for_each_vector;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::{Shared, View, ViewMut, mismatch};
use block::{Part, RowBlock};
pub use gradient::{Cotangents, Gradient, differentiate};
use half::bf16;
pub use rows::{PageStart, Pages, Rows, Scales};

/// Operands and options. `heads` must be a multiple of `kv_heads`; query head `h` uses key head `h / (heads / kv_heads)`.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a, T> {
    /// `[batch, heads, rows, depth]`, any strides.
    pub query: View<'a, T, 4>,
    /// `[batch, kv_heads, keys, depth]`.
    pub key: Rows<'a, T>,
    /// `[batch, kv_heads, keys, value_depth]`.
    pub value: Rows<'a, T>,
    /// Factor of the scores, usually `1 / sqrt(depth)`.
    pub scale: f32,
    /// With `Some(c)`, scores become `c * tanh(score / c)` before the mask.
    pub softcap: Option<f32>,
    /// What is added to the scores or which of them count, `[batch, heads, rows, keys]`; broadcast by strides of 0.
    pub mask: Option<Mask<'a>>,
    /// Which keys a row may see by position.
    pub band: Band<'a>,
    /// For each batch entry, how many of the keys exist; None: all of them.
    pub key_lens: Option<&'a [usize]>,
    /// What a row without any visible key yields.
    pub unseeing: Unseeing,
    /// Queries, keys, weights and values may be rounded to bf16 before they are multiplied, where that is faster.
    pub narrow: bool,
}

/// A mask of scores.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Added to the scores; `-inf` hides a key.
    Add(View<'a, f32, 4>),
    /// Nonzero lets a key be seen.
    Keep(View<'a, u8, 4>),
}

/// Row `i` sees key `j` if `p - before <= j <= p + after`, with `p = i + offset`; None is no limit. Causal attention is
/// `after: Some(0)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Band<'a> {
    /// Keys before the row's own position.
    pub before: Option<usize>,
    /// Keys after the row's own position.
    pub after: Option<usize>,
    /// Position of the first row, usually the number of keys of earlier calls.
    pub offset: isize,
    /// Position of the first row for each batch entry, instead of `offset`.
    pub offsets: Option<&'a [isize]>,
}

impl Band<'_> {
    /// Rows see the keys up to their own position, the first row's being `offset`.
    pub const fn causal(offset: isize) -> Band<'static> {
        Band {
            before: None,
            after: Some(0),
            offset,
            offsets: None,
        }
    }

    /// The keys that row `row` of batch entry `batch` sees, out of `keys`.
    fn range(&self, batch: usize, row: usize, keys: usize) -> std::ops::Range<usize> {
        let offset = self.offsets.map_or(self.offset, |offsets| offsets[batch]);
        let position = offset.saturating_add_unsigned(row);
        let clamp = |at: isize| usize::try_from(at).map_or(0, |at| at.min(keys));
        let begin = self
            .before
            .map_or(0, |before| clamp(position.saturating_sub_unsigned(before)));
        let end = self.after.map_or(keys, |after| {
            clamp(position.saturating_add_unsigned(after).saturating_add(1))
        });
        begin.min(end)..end
    }
}

/// The result of a row that sees no key: one whose mask is `-inf` throughout, or that the band, the key lengths or an empty key
/// operand leave without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unseeing {
    /// Zeros.
    Zero,
    /// NaN, what the softmax of nothing but `-inf` is.
    Nan,
}

/// Keys of one part when few rows meet many keys.
const PART_KEYS: usize = 512;

const _: () = assert!(PART_KEYS.is_multiple_of(block::BLOCK_KEYS));

/// Rows of a key head up to which keys are cut into parts, and values used where they are.
const FEW_ROWS: usize = IN_PLACE_ROWS;

/// Rows of a key head up to which scores are dot products of rows and keys in memory; more pay for packing the keys.
const DOT_ROWS: usize = 3;

/// Rows in a block, at least and at most where there are many: packing keys and values then costs a few percent.
const LEAST_ROWS: usize = 56;
const MOST_ROWS: usize = 168;

/// Extents of one attention.
#[derive(Debug, Clone, Copy)]
struct Extents {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    rows: usize,
    keys: usize,
    depth: usize,
    value_depth: usize,
}

impl Extents {
    /// Rows that share a key head.
    fn group_rows(&self) -> usize {
        self.heads / self.kv_heads * self.rows
    }

    /// Rows of the blocks into which those of a key head are cut.
    fn block_rows(&self, threads: usize, tile_rows: usize) -> usize {
        let rows = self.group_rows();
        if rows <= FEW_ROWS {
            return rows;
        }
        // Tall blocks pack keys and values less often, short ones can be shared out better.
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let blocks = wanted
            .div_ceil(self.batch * self.kv_heads)
            .clamp(rows.div_ceil(MOST_ROWS), rows.div_ceil(LEAST_ROWS));
        rows.div_ceil(blocks).next_multiple_of(tile_rows)
    }
}

/// Computes attention into `output`, `[batch, heads, rows, value_depth]`, whose last dimension must be dense. Scores and sums are
/// f32 whatever the types; the result is rounded once.
///
/// Errors: extents that do not agree, an output whose last dimension is not dense, out of memory.
pub fn attend<T: FloatWords, O: Float>(
    cx: &Context,
    attention: &Attention<'_, T>,
    output: ViewMut<'_, O, 4>,
) -> Result<()> {
    let extents = check(attention, &output)?;
    let Extents {
        batch,
        heads,
        kv_heads,
        rows,
        keys,
        value_depth,
        ..
    } = extents;
    if batch == 0 || heads == 0 || rows == 0 || value_depth == 0 {
        return Ok(());
    }
    let group_rows = extents.group_rows();
    let block_rows = extents.block_rows(cx.pool.threads(), T::tiles(cx.isa).max_rows());
    let blocks = group_rows.div_ceil(block_rows);
    let parts = if group_rows <= FEW_ROWS {
        keys.div_ceil(PART_KEYS).max(1)
    } else {
        1
    };
    let to = (Shared(output.as_ptr()), output.strides());
    let units = batch * kv_heads * blocks;
    // Of each part: the weighted sum of values, then the largest score and the sum of exponentials of each row.
    let part_len = block_rows * (value_depth + 2);
    let partial = if parts > 1 {
        Some(cx.scratch.take::<f32>(units * parts * part_len)?)
    } else {
        None
    };
    let dots = group_rows <= DOT_ROWS && attention.key.are_dense();
    let narrow = attention.narrow && cx.isa.bf16() && !dots;
    let row_block = |unit: usize| {
        let first = unit % blocks * block_rows;
        RowBlock {
            attention,
            extents,
            batch: unit / blocks / kv_heads,
            kv_head: unit / blocks % kv_heads,
            first,
            count: block_rows.min(group_rows - first),
        }
    };
    cx.try_run(units * parts, |index| {
        let (unit, part) = (index / parts, index % parts);
        let block = row_block(unit);
        let visible = block.visible(0..block.count);
        let span = match parts {
            1 => visible,
            _ => visible.start.max(part * PART_KEYS)..visible.end.min((part + 1) * PART_KEYS),
        };
        let result = partial
            .as_ref()
            .map(|lent| lent.as_ptr::<f32>().wrapping_add(index * part_len));
        if narrow {
            block.run::<bf16, O>(cx, span, dots, result, to)
        } else {
            block.run::<f32, O>(cx, span, dots, result, to)
        }
    })?;
    if let Some(partial) = &partial {
        cx.pool.run(units, |unit| {
            let from = partial
                .as_ptr::<f32>()
                .wrapping_add(unit * parts * part_len);
            dispatch(
                cx.isa,
                Combine {
                    block: &row_block(unit),
                    from,
                    parts,
                    part_len,
                    to,
                },
            );
        });
    }
    Ok(())
}

fn check<T: FloatWords, O: Float>(
    attention: &Attention<T>,
    output: &ViewMut<'_, O, 4>,
) -> Result<Extents> {
    let [batch, heads, rows, depth] = attention.query.shape();
    let [key_batch, kv_heads, keys, key_depth] = attention.key.shape();
    let [.., value_depth] = attention.value.shape();
    if [key_batch, key_depth] != [batch, depth] {
        return Err(mismatch(
            "keys' batch and depth",
            [key_batch, key_depth],
            [batch, depth],
        ));
    }
    let wanted = [batch, kv_heads, keys, value_depth];
    if attention.value.shape() != wanted {
        return Err(mismatch("values", attention.value.shape(), wanted));
    }
    if heads > 0 && (kv_heads == 0 || !heads.is_multiple_of(kv_heads)) {
        return Err(mismatch(
            "query heads",
            heads,
            format!("a multiple of the {kv_heads} key heads"),
        ));
    }
    let wanted = [batch, heads, rows, value_depth];
    if output.shape() != wanted {
        return Err(mismatch("output of attention", output.shape(), wanted));
    }
    if output.strides()[3] != 1 && value_depth > 1 {
        return Err(mismatch(
            "last stride of attention's output",
            output.strides()[3],
            1,
        ));
    }
    let mask_shape = match &attention.mask {
        None => [batch, heads, rows, keys],
        Some(Mask::Add(view)) => view.shape(),
        Some(Mask::Keep(view)) => view.shape(),
    };
    if mask_shape != [batch, heads, rows, keys] {
        return Err(mismatch("mask", mask_shape, [batch, heads, rows, keys]));
    }
    if let Some(lens) = attention.key_lens
        && (lens.len() != batch || lens.iter().any(|&len| len > keys))
    {
        return Err(Error::Operand {
            what: "key lengths",
            reason: format!("{lens:?} for batch {batch} of {keys} keys"),
        });
    }
    if let Some(offsets) = attention.band.offsets
        && offsets.len() != batch
    {
        return Err(mismatch("number of row offsets", offsets.len(), batch));
    }
    Ok(Extents {
        batch,
        heads,
        kv_heads,
        rows,
        keys,
        depth,
        value_depth,
    })
}

/// Combines the parts of one block of rows.
struct Combine<'a, T, O> {
    block: &'a RowBlock<'a, T>,
    from: *const f32,
    parts: usize,
    part_len: usize,
    to: (Shared<O>, [usize; 4]),
}

impl<T: FloatWords, O: Float> Kernel for Combine<'_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Combine {
            block,
            from,
            parts,
            part_len,
            to,
        } = self;
        let depth = block.extents.value_depth;
        // SAFETY: each part has `count` rows of `depth` sums and two numbers for each row, written by `RowBlock::run`.
        unsafe {
            for row in 0..block.count {
                let part = |part: usize| {
                    Part::at(
                        from.cast_mut().wrapping_add(part * part_len),
                        block.count,
                        depth,
                    )
                };
                let largest = (0..parts)
                    .map(|p| *part(p).largest.add(row))
                    .fold(f32::NEG_INFINITY, larger);
                let weight = |p: usize| {
                    if largest == f32::NEG_INFINITY {
                        1.0
                    } else {
                        (*part(p).largest.add(row) - largest).exp()
                    }
                };
                let total: f32 = (0..parts).map(|p| *part(p).sum.add(row) * weight(p)).sum();
                let factor = block.factor(total);
                let out = block.output_row(row, to);
                for_each_vector!(s, depth, |at, len| {
                    let mut v = s.splat(0.0);
                    for p in 0..parts {
                        let values = s.load_first(part(p).values.add(row * depth + at), len);
                        v = s.mul_add(values, s.splat(weight(p)), v);
                    }
                    O::store_first_or_all(s, out.add(at), len, s.mul(v, s.splat(factor)));
                });
            }
        }
    }
}

/// The larger number; NaN if either is.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

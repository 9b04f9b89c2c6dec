//! The gradient of attention, without ever storing the scores as a whole.
//!
//! The rows of a key head (positions of each of its query heads) are cut into blocks. For each block and [`BLOCK_KEYS`] keys at
//! a time, scores are computed again, become the softmax's weights `p`, and with the products of cotangent and values the
//! gradient of the scores `ds`; both stay in the second-level cache for the products that sum over the rows. Rows meet only the
//! keys up to the last that one of their tile sees by position, so that causal attention costs half.
//!
//! Sums over rows are taken in the order of the rows, in parts that depend on the shapes only, so the result does not depend
//! on the number of threads.
//!
//! Reading order: this file (contract and division of work), `buffers`, `block` (one block of rows), `vectors`.

mod block;
mod buffers;
mod vectors;

use super::block::BLOCK_KEYS;
use super::words::Words;
use super::{Attention, Extents, check};
use crate::error::Result;
use crate::library::Context;
use crate::library::gemm::formats::FloatWords;
use crate::library::simd::{Float, dispatch};
use crate::library::view::{Shared, View, ViewMut, mismatch};
use buffers::Buffers;
use half::bf16;
use vectors::Write;

/// Operands. Keys and values must be [`super::Rows::At`]; what a row without any visible key yields has no gradient.
#[derive(Debug, Clone, Copy)]
pub struct Gradient<'a, T> {
    /// Operands and options of the attention.
    pub attention: Attention<'a, T>,
    /// Its result, `[batch, heads, rows, value_depth]`, any strides.
    pub output: View<'a, T, 4>,
    /// The result's cotangent, any strides.
    pub cotangent: View<'a, T, 4>,
}

/// Cotangents of the operands, of their extents; last dimensions must be dense.
#[derive(Debug)]
pub struct Cotangents<'a, O> {
    /// `[batch, heads, rows, depth]`
    pub query: ViewMut<'a, O, 4>,
    /// `[batch, kv_heads, keys, depth]`
    pub key: ViewMut<'a, O, 4>,
    /// `[batch, kv_heads, keys, value_depth]`
    pub value: ViewMut<'a, O, 4>,
}

/// Rows in a block: whole tiles on every level but AVX2, and enough for sums over rows to be worth their additions.
const BLOCK_ROWS: usize = 112;

/// Parts of the work from which on none is cut further.
const ENOUGH_PARTS: usize = 16;

/// Computes the cotangents of queries, keys and values. Scores and sums are f32 whatever the types; results are rounded once.
///
/// Errors: extents that do not agree, a result whose last dimension is not dense, keys or values in pages, out of memory.
pub fn differentiate<T: FloatWords, O: Float>(
    cx: &Context,
    gradient: &Gradient<'_, T>,
    into: &Cotangents<'_, O>,
) -> Result<()> {
    let work = Heads {
        gradient,
        extents: check_gradient(gradient, into)?,
        key: rows_at("keys", &gradient.attention.key)?,
        value: rows_at("values", &gradient.attention.value)?,
        query_to: (Shared(into.query.as_ptr()), into.query.strides()),
        key_to: (Shared(into.key.as_ptr()), into.key.strides()),
        value_to: (Shared(into.value.as_ptr()), into.value.strides()),
    };
    if gradient.attention.narrow && cx.isa.bf16() {
        work.run::<bf16>(cx)
    } else {
        work.run::<f32>(cx)
    }
}

/// All heads of keys.
struct Heads<'a, T, O> {
    gradient: &'a Gradient<'a, T>,
    extents: Extents,
    key: &'a View<'a, T, 4>,
    value: &'a View<'a, T, 4>,
    query_to: (Shared<O>, [usize; 4]),
    key_to: (Shared<O>, [usize; 4]),
    value_to: (Shared<O>, [usize; 4]),
}

impl<T: FloatWords, O: Float> Heads<'_, T, O> {
    fn run<W: Words>(&self, cx: &Context) -> Result<()> {
        let Extents {
            batch,
            heads,
            kv_heads,
            rows,
            keys,
            depth,
            value_depth,
        } = self.extents;
        let heads_of_keys = batch * kv_heads;
        if heads_of_keys == 0 {
            return Ok(());
        }
        let blocks = heads / kv_heads * rows.div_ceil(BLOCK_ROWS);
        let parts = ENOUGH_PARTS.div_ceil(heads_of_keys).min(blocks).max(1);
        let sum_len = keys * (depth + value_depth);
        let lay = |start| Buffers::lay::<W>(cx.isa, &self.extents, start);
        let (_, size) = lay(std::ptr::null_mut());
        let partial = match parts {
            1 => None,
            _ => Some(cx.scratch.take::<f32>(heads_of_keys * parts * sum_len)?),
        };
        cx.try_run(heads_of_keys * parts, |index| -> Result<()> {
            let (head, part) = (index / parts, index % parts);
            let own = if partial.is_none() { sum_len } else { 0 };
            let lent = cx.scratch.take::<f32>(size + own)?;
            let (buffers, _) = lay(lent.as_ptr());
            let sums = match &partial {
                Some(partial) => partial.as_ptr::<f32>().wrapping_add(index * sum_len),
                None => lent.as_ptr::<f32>().wrapping_add(size),
            };
            let one = self.head(head, sums);
            let range = part * blocks / parts..(part + 1) * blocks / parts;
            // SAFETY: the buffers have the sizes of these extents, and the sums are this task's alone.
            unsafe {
                one.run::<W>(cx.isa, &buffers, range);
                if parts == 1 {
                    one.write(cx, 1, sum_len);
                }
            }
            Ok(())
        })?;
        if let Some(partial) = &partial {
            cx.pool.run(heads_of_keys, |head| {
                let sums = partial.as_ptr::<f32>();
                let one = self.head(head, sums.wrapping_add(head * parts * sum_len));
                // SAFETY: all parts are there, and nobody else has this head's.
                unsafe { one.write(cx, parts, sum_len) };
            });
        }
        Ok(())
    }

    /// A head by number, with the place of its sums.
    fn head(&self, index: usize, sums: *mut f32) -> OneHead<'_, T, O> {
        let Extents {
            kv_heads,
            keys,
            depth,
            ..
        } = self.extents;
        OneHead {
            all: self,
            batch: index / kv_heads,
            kv_head: index % kv_heads,
            key_sums: sums,
            value_sums: sums.wrapping_add(keys * depth),
        }
    }
}

/// A head of keys with the query heads that use it.
struct OneHead<'a, T, O> {
    all: &'a Heads<'a, T, O>,
    batch: usize,
    kv_head: usize,
    /// Where the sums over rows are taken: `[keys, depth]`.
    key_sums: *mut f32,
    /// `[keys, value_depth]`
    value_sums: *mut f32,
}

impl<T: FloatWords, O: Float> OneHead<'_, T, O> {
    /// Writes the sums of all parts, `part_len` numbers apart.
    ///
    /// # Safety
    /// The sums are there, and nobody else uses them or writes this head's results.
    unsafe fn write(&self, cx: &Context, parts: usize, part_len: usize) {
        let Extents {
            keys,
            depth,
            value_depth,
            ..
        } = self.all.extents;
        let results = [
            (self.key_sums, depth, self.all.key_to),
            (self.value_sums, value_depth, self.all.value_to),
        ];
        for (from, depth, (to, strides)) in results {
            let first = self.batch * strides[0] + self.kv_head * strides[1];
            let write = Write {
                from,
                parts,
                part_len,
                rows: keys,
                depth,
                to: to.get().wrapping_add(first),
                stride: strides[2],
            };
            dispatch(cx.isa, write);
        }
    }
}

/// The operand's rows in memory.
fn rows_at<'a, T>(what: &'static str, rows: &'a super::Rows<'a, T>) -> Result<&'a View<'a, T, 4>> {
    match rows {
        super::Rows::At(view) => Ok(view),
        super::Rows::In(_) => Err(crate::error::Error::Operand {
            what,
            reason: "in pages have no gradient".into(),
        }),
    }
}

fn check_gradient<T: FloatWords, O: Float>(
    gradient: &Gradient<T>,
    into: &Cotangents<'_, O>,
) -> Result<Extents> {
    let attention = &gradient.attention;
    let [batch, heads, rows, _] = attention.query.shape();
    let wanted = [batch, heads, rows, attention.value.shape()[3]];
    for (what, shape) in [
        ("result of attention", gradient.output.shape()),
        ("cotangent of attention", gradient.cotangent.shape()),
    ] {
        if shape != wanted {
            return Err(mismatch(what, shape, wanted));
        }
    }
    for (what, to, wanted) in [
        ("cotangent of queries", &into.query, attention.query.shape()),
        ("cotangent of keys", &into.key, attention.key.shape()),
        ("cotangent of values", &into.value, attention.value.shape()),
    ] {
        if to.shape() != wanted {
            return Err(mismatch(what, to.shape(), wanted));
        }
        if to.strides()[3] != 1 && wanted[3] > 1 {
            return Err(mismatch(what, to.strides()[3], "a last stride of 1"));
        }
    }
    // SAFETY: only its extents are looked at.
    let like_output =
        unsafe { ViewMut::<O, 4>::from_raw(into.value.as_ptr(), wanted, [0, 0, 0, 1]) };
    check(attention, &like_output)
}

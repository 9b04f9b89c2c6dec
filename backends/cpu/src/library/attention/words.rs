//! What the products of attention multiply: f32, or pairs of bf16 where the processor has their dot product.

use bytemuck::Pod;
use half::bf16;

use crate::isa::Isa;
use crate::library::gemm::formats::{BrainPairs, Floats};
use crate::library::gemm::pack::{Panel, Strided, pack_floats, pack_pairs};
use crate::library::gemm::tile::{LEFT_ROW, TileSet, Tiles};
use crate::library::simd::{Float, Simd};

/// A format of the products; sums are f32.
pub(super) trait Words: 'static {
    /// One word of either operand.
    type Word: Pod + Send + Sync;
    /// Numbers in a word, neighbours along the inner dimension.
    const GROUP: usize;
    /// Tiles for queries by keys.
    fn packed(isa: Isa) -> TileSet<Self::Word, Self::Word, f32>;
    /// Tiles for weights, in rows, by values.
    fn over_rows(isa: Isa) -> TileSet<Self::Word, Self::Word, f32>;
    /// Tiles for weights, read along their columns, by queries or cotangents: a word holds neighbouring rows.
    fn over_columns(isa: Isa) -> TileSet<Self::Word, Self::Word, f32>;
    /// Packs a panel, which counts in words.
    ///
    /// # Safety
    /// As [`pack_floats`].
    unsafe fn pack<T: Float>(isa: Isa, source: &Strided<T>, panel: &Panel<Self::Word>);
    /// Stores a vector of weights at element `at` of a row of words, which may be the row they come from. What NaN becomes is
    /// open: the sum of the weights tells.
    ///
    /// # Safety
    /// The row must have room for them; the processor multiplies such words.
    unsafe fn store<S: Simd>(s: S, row: *mut f32, at: usize, v: S::F);
    /// Stores vectors of two neighbouring rows for tiles over columns; the second is not there at the end of an odd number of
    /// rows. Rows of words are [`LEFT_ROW`] apart.
    ///
    /// # Safety
    /// There must be room for the words; the processor multiplies such words.
    unsafe fn store_rows<S: Simd>(s: S, to: *mut Self::Word, even: S::F, odd: Option<S::F>);
}

impl Words for f32 {
    type Word = f32;
    const GROUP: usize = 1;

    fn packed(isa: Isa) -> TileSet<f32, f32, f32> {
        Floats::<f32>::set(isa)
    }
    fn over_rows(isa: Isa) -> TileSet<f32, f32, f32> {
        Floats::<f32>::over_rows(isa)
    }
    fn over_columns(isa: Isa) -> TileSet<f32, f32, f32> {
        Floats::<f32>::over_columns(isa)
    }
    unsafe fn pack<T: Float>(isa: Isa, source: &Strided<T>, panel: &Panel<f32>) {
        // SAFETY: passed on.
        unsafe { pack_floats(isa, source, panel) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, row: *mut f32, at: usize, v: S::F) {
        // SAFETY: passed on.
        unsafe { s.store(row.add(at), v) }
    }
    #[inline(always)]
    unsafe fn store_rows<S: Simd>(s: S, to: *mut f32, even: S::F, odd: Option<S::F>) {
        // SAFETY: passed on.
        unsafe {
            s.store(to, even);
            if let Some(odd) = odd {
                s.store(to.add(LEFT_ROW), odd);
            }
        }
    }
}

impl Words for bf16 {
    type Word = u32;
    const GROUP: usize = 2;

    fn packed(isa: Isa) -> TileSet<u32, u32, f32> {
        BrainPairs::set(isa)
    }
    fn over_rows(isa: Isa) -> TileSet<u32, u32, f32> {
        BrainPairs::over_rows(isa)
    }
    fn over_columns(isa: Isa) -> TileSet<u32, u32, f32> {
        BrainPairs::over_columns(isa)
    }
    unsafe fn pack<T: Float>(isa: Isa, source: &Strided<T>, panel: &Panel<u32>) {
        // SAFETY: passed on.
        unsafe { pack_pairs(isa, source, panel) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, row: *mut f32, at: usize, v: S::F) {
        // SAFETY: passed on; what is overwritten lies before what is still to be read.
        unsafe { s.store_brains(row.cast::<u16>().add(at), v) }
    }
    #[inline(always)]
    unsafe fn store_rows<S: Simd>(s: S, to: *mut u32, even: S::F, odd: Option<S::F>) {
        let odd = match odd {
            Some(odd) => odd,
            None => s.splat(0.0),
        };
        // SAFETY: passed on.
        unsafe { s.store(to.cast(), s.pair_bf16(even, odd)) }
    }
}

//! Products of few rows and columns over a long inner dimension: parts of that are multiplied apart, and their results added.
//!
//! A part is one thread's, which packs what it multiplies: nothing goes from core to core but the results, and no thread waits
//! for another until all are there. Parts are whole blocks of the inner dimension, as many as the sizes of the product say, so
//! that the order of sums depends neither on threads nor on caches.

use std::ops::Range;

use bytemuck::Pod;

use super::block::share;
use super::driver::{Finished, Product, Right, Target, inner_block};
use super::tile::TileSet;
use crate::error::Result;
use crate::library::Context;
use crate::library::view::Shared;
use crate::memory::Lent;

/// Most parts.
const PARTS: usize = 16;

/// Blocks of the inner dimension from which on there are parts.
const LEAST_BLOCKS: usize = 8;

/// How many times longer than both others the inner dimension is at least.
const DEPTH: usize = 16;

/// Most elements of the result.
const MOST_ELEMENTS: usize = 1 << 16;

/// Elements that are added at least, for another thread to be worth it.
const GRAIN: usize = 1 << 12;

/// One such product and its parts.
pub(super) struct Deep<'a, A: 'static, B: 'static, C: 'static> {
    product: &'a Product<'a, A, B, C>,
    cx: &'a Context<'a>,
    tiles: &'a TileSet<A, B, C>,
    /// Words of a part, but for the last.
    words: usize,
    parts: usize,
}

/// Words of a part and the number of parts of a product of these sizes; `None` where it is better left whole.
fn parts(rows: usize, cols: usize, inner: usize) -> Option<(usize, usize)> {
    let block = inner_block(inner);
    let blocks = inner.div_ceil(block);
    let is_small = rows.saturating_mul(cols) <= MOST_ELEMENTS;
    let is_long = inner / DEPTH >= rows.max(cols) && blocks >= LEAST_BLOCKS;
    let words = blocks.div_ceil(PARTS) * block;
    (is_small && is_long).then(|| (words, inner.div_ceil(words)))
}

impl<'a, A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync> Deep<'a, A, B, C> {
    /// The division of a product, if it is of this kind.
    pub fn of(
        product: &'a Product<'a, A, B, C>,
        cx: &'a Context<'a>,
        tiles: &'a TileSet<A, B, C>,
    ) -> Option<Self> {
        // Where only rows are to be packed they are divided, on as many threads as have enough of them: the order of sums must
        // not depend on how many that is.
        if matches!(product.right, Right::Packed(_)) {
            return None;
        }
        let (words, parts) = parts(product.rows, product.cols, product.inner)?;
        Some(Deep {
            product,
            cx,
            tiles,
            words,
            parts,
        })
    }

    /// Computes the product. Error: out of scratch memory.
    ///
    /// # Safety
    /// As [`Product::run`].
    pub unsafe fn run(&self) -> Result<()> {
        let Product { rows, cols, .. } = *self.product;
        let sums = self.cx.scratch.take::<C>(self.parts * rows * cols)?;
        self.cx.try_run(self.parts, |part| {
            let to = Shared(sums.as_ptr::<C>().wrapping_add(part * rows * cols));
            let end = self.product.inner.min((part + 1) * self.words);
            // SAFETY: passed on; the part's results are this call's alone.
            unsafe { self.part(part * self.words..end, to) }
        })?;
        let groups = (rows * cols * self.parts / GRAIN).clamp(1, self.cx.pool.threads());
        let groups = groups.min(rows);
        // SAFETY: every part is there, and groups have rows of their own.
        self.cx.pool.run(groups, |group| unsafe {
            self.add(&sums, share(rows, groups, group))
        });
        Ok(())
    }

    /// The product over a range of words.
    unsafe fn part(&self, words: Range<usize>, to: Shared<C>) -> Result<()> {
        let row_stride = self.product.cols;
        let part = Product {
            target: Target::Store { to, row_stride },
            epilogue: None,
            ..*self.product
        };
        // SAFETY: passed on.
        unsafe { part.blocks(self.cx, self.tiles, words, 1) }
    }

    /// Adds the parts' results in a range of rows and passes them on.
    unsafe fn add(&self, sums: &Lent<'_>, rows: Range<usize>) {
        let cols = self.product.cols;
        let at = |part: usize| {
            let first = part * self.product.rows + rows.start;
            sums.as_ptr::<C>().wrapping_add(first * cols)
        };
        // SAFETY: the rows of all parts lie in the scratch memory, those of the target are this call's.
        unsafe {
            for part in 1..self.parts {
                (self.tiles.add)(at(0), at(part), rows.len() * cols);
            }
            let (start, row_stride) = match self.product.target {
                Target::Discard => (at(0), cols),
                Target::Store { to, row_stride } | Target::Add { to, row_stride } => {
                    (to.get().wrapping_add(rows.start * row_stride), row_stride)
                }
            };
            for row in 0..rows.len() {
                let (from, to) = (at(0).add(row * cols), start.wrapping_add(row * row_stride));
                match self.product.target {
                    Target::Discard => {}
                    Target::Store { .. } => from.copy_to_nonoverlapping(to, cols),
                    Target::Add { .. } => (self.tiles.add)(to, from, cols),
                }
            }
            if let Some(epilogue) = self.product.epilogue {
                epilogue(Finished {
                    start,
                    row_stride,
                    batch: self.product.batch,
                    row: rows.start,
                    rows: rows.len(),
                    col: 0,
                    cols,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::parts;
    use crate::library::Context;
    use crate::library::gemm::tests::seen_by_epilogue;
    use crate::library::gemm::{Left, Number, Output, PackedLeft, PackedRight, Right, multiply};
    use crate::library::testing::{Rng, contexts};
    use crate::library::view::{View, ViewMut};

    /// In parts, of which the last is shorter, also where two elements make a word.
    const SHAPE: [usize; 3] = [9, 6_851, 35];

    #[test]
    fn only_long_products_have_parts() {
        assert_eq!(parts(9, 32, 43_264), Some((8 * 384, 15)));
        assert_eq!(parts(64, 128, 9_216), Some((2 * 384, 12)));
        assert_eq!(parts(128, 384, 1_536), None);
        assert_eq!(parts(1, 1_000, 4_096), None);
        assert_eq!(parts(0, 0, 0), None);
    }

    /// Small whole numbers, whose sums have no rounding.
    fn numbers<T: Number>(rng: &mut Rng, len: usize, number: fn(f32) -> T) -> (Vec<T>, Vec<f32>) {
        let plain: Vec<f32> = (0..len).map(|_| rng.below(7) as f32 - 3.0).collect();
        (plain.iter().map(|x| number(*x)).collect(), plain)
    }

    fn check<T: Number<Sum = f32>>(number: fn(f32) -> T) {
        let [rows, inner, cols] = SHAPE;
        let mut rng = Rng::new(3);
        let (left, x) = numbers(&mut rng, rows * inner, number);
        let (right, y) = numbers(&mut rng, inner * cols, number);
        let mut want = vec![0f32; rows * cols];
        for (at, sum) in want.iter_mut().enumerate() {
            let (row, col) = (at / cols, at % cols);
            *sum = (0..inner)
                .map(|k| x[row * inner + k] * y[k * cols + col])
                .sum();
        }
        let left = View::dense("left", &left, [rows, inner]).expect("fits");
        let right = View::dense("right", &right, [inner, cols]).expect("fits");
        contexts(|cx| {
            let packed_left = PackedLeft::new(cx, left).expect("memory");
            let packed = PackedRight::new(cx, right).expect("memory");
            let lefts = [Left::View(left.batched()), Left::Packed(&packed_left)];
            let rights = [Right::View(right.batched()), Right::Packed(&packed)];
            for (left, right) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                stores_and_adds(cx, left, right, &want);
                let seen = seen_by_epilogue(cx, left, right, [rows, cols]);
                assert!(seen == want, "{:?} with an epilogue", cx.isa);
            }
        });
    }

    fn stores_and_adds<T: Number<Sum = f32>>(
        cx: &Context,
        left: Left<T>,
        right: Right<T>,
        want: &[f32],
    ) {
        let [rows, _, cols] = SHAPE;
        for adds in [false, true] {
            let mut out = vec![1f32; rows * cols];
            let view = ViewMut::dense("out", &mut out, [1, 1, rows, cols]).expect("fits");
            let output = match adds {
                true => Output::Add(view),
                false => Output::Store(view),
            };
            multiply(cx, left, right, output, None).expect("agrees");
            let base = if adds { 1.0 } else { 0.0 };
            let same = out.iter().zip(want).all(|(got, want)| *got == want + base);
            assert!(same, "{:?}, adding: {adds}", cx.isa);
        }
    }

    #[test]
    fn parts_add_up() {
        check(|x| x);
        check(bf16::from_f32);
    }
}

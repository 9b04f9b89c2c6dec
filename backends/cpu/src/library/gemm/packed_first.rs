//! Products that only an epilogue sees: the smaller operand is packed as a whole before.
//!
//! Accumulators that nobody keeps lie in blocks that stay near. Were both operands packed block by block, each block of rows would
//! pack all columns anew, or each block of columns all rows. So what is small is packed once, and what is large is too: rows by
//! tasks that each own some (`own_rows`), columns by one block after the other.

use bytemuck::Pod;

use super::driver::{DISCARD_BLOCK, Left, Product, Right, Target, panel_rows};
use super::own_rows::OwnRows;
use super::packed::Cut;
use super::tile::TileSet;
use crate::error::Result;
use crate::isa::caches;
use crate::library::Context;
use crate::library::view::Shared;

impl<A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync> Product<'_, A, B, C> {
    /// Packs the smaller operand as a whole and then computes the product, where only the epilogue sees it: accumulators are kept
    /// for small blocks then, each of which would pack that operand anew. `None` where one block does, where an operand is packed
    /// already, and where the smaller one does not stay in a part of the third-level cache.
    ///
    /// # Safety
    /// As [`Product::run`].
    pub(super) unsafe fn pack_one_first(
        &self,
        cx: &Context,
        tiles: &TileSet<A, B, C>,
    ) -> Option<Result<()>> {
        let Product {
            rows, cols, inner, ..
        } = *self;
        let in_blocks = rows.saturating_mul(cols) > DISCARD_BLOCK && inner > 0;
        let Left::Pack(left_packer) = self.left else {
            return None;
        };
        let (Right::Pack(right_packer)
        | Right::Rows {
            packer: right_packer,
            ..
        }) = self.right
        else {
            return None;
        };
        if !matches!(self.target, Target::Discard) || !in_blocks || self.reads_rows() {
            return None;
        }
        let height = panel_rows(tiles, rows);
        let left = Cut::new(rows, inner, height, |count| tiles.tile_rows(count));
        let right = Cut::new(cols, inner, tiles.panel_cols(), |_| tiles.panel_cols());
        let room = caches().l3 / 4;
        // SAFETY: passed on; panels of the whole operand are packed where the product then reads them.
        unsafe {
            if cols <= rows && right.len().saturating_mul(size_of::<B>()) <= room {
                Some(cx.scratch.take::<B>(right.len()).and_then(|lent| {
                    let start = Shared(lent.as_ptr::<B>());
                    right.fill(start, right_packer, cx.pool);
                    let packed = Product {
                        right: Right::Packed(right.at(start)),
                        ..*self
                    };
                    match OwnRows::in_turn(&packed, cx, tiles) {
                        Some(own) => own.run_in_turn(),
                        None => packed.blocks(cx, tiles, 0..inner, cx.pool.threads()),
                    }
                }))
            } else if rows < cols && left.len().saturating_mul(size_of::<A>()) <= room {
                Some(cx.scratch.take::<A>(left.len()).and_then(|lent| {
                    let start = Shared(lent.as_ptr::<A>());
                    left.fill(start, left_packer, cx.pool);
                    let packed = Product {
                        left: Left::Packed(left.at(start)),
                        ..*self
                    };
                    packed.blocks(cx, tiles, 0..inner, cx.pool.threads())
                }))
            } else {
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use half::bf16;

    use crate::library::gemm::{Finished, Left, Number, Output, Right, multiply};
    use crate::library::testing::{Rng, contexts};
    use crate::library::view::{View, ViewMut};

    /// Products that only the epilogue sees, of more accumulators than are kept at a time: the smaller operand is packed first.
    /// The result is that of a product that is stored, bit by bit.
    fn check_discarded<T: Number<Sum = f32>>(shape: [usize; 3], number: fn(f32) -> T) {
        let [rows, inner, cols] = shape;
        let mut rng = Rng::new(11);
        let mut numbers =
            |len: usize| -> Vec<T> { (0..len).map(|_| number(rng.float())).collect() };
        let (left, right) = (numbers(rows * inner), numbers(inner * cols));
        // SAFETY: the elements of `left`, columns first.
        let left = unsafe { View::from_raw(left.as_ptr(), [1, 1, rows, inner], [0, 0, 1, rows]) };
        let right = View::dense("right", &right, [1, 1, inner, cols]).expect("fits");
        contexts(|cx| {
            let mut want = vec![0f32; rows * cols];
            let view = ViewMut::dense("out", &mut want, [1, 1, rows, cols]).expect("fits");
            let (left, right) = (Left::View(left), Right::View(right));
            multiply(cx, left, right, Output::Store(view), None).expect("agrees");
            let seen = Mutex::new(vec![f32::NAN; rows * cols]);
            let epilogue = |part: Finished<f32>| {
                let mut seen = seen.lock().expect("no panic");
                for row in 0..part.rows {
                    let at = (part.row + row) * cols + part.col;
                    // SAFETY: the part's elements are this call's.
                    let from = unsafe {
                        std::slice::from_raw_parts(part.start.add(row * part.row_stride), part.cols)
                    };
                    let to = &mut seen[at..at + part.cols];
                    assert!(to.iter().all(|x| x.is_nan()), "{row} twice");
                    to.copy_from_slice(from);
                }
            };
            let output = Output::Discard([1, 1, rows, cols]);
            multiply(cx, left, right, output, Some(&epilogue)).expect("agrees");
            assert!(*seen.lock().expect("no panic") == want, "{:?}", cx.isa);
        });
    }

    #[test]
    fn packing_one_operand_first_does_not_change_the_result() {
        check_discarded([2_101, 19, 517], |x| x);
        check_discarded([517, 19, 2_101], |x| x);
        check_discarded([1_301, 811, 835], bf16::from_f32);
        check_discarded([835, 67, 1_301], bf16::from_f32);
    }
}

//! Products of rows that are packed on the way by a right operand that is packed already: every thread has rows of its own.
//!
//! There is a group of rows for each thread, or several where they would not stay in the third-level cache with all their words.
//! Who comes first to a group packs it, and then multiplies it by ranges of right panels. So what one thread packs it reads, and
//! what it writes lies in rows of its own, which it most likely reads again in the next product: hardly a line moves from core to
//! core. Where only the epilogue sees the product and the right operand was packed just before, groups are small and each is done
//! at once. Measured on two threads of Zen 4: where every thread packs a part of all rows and multiplies all of them by columns of
//! its own, packing takes five times as long.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::*};

use bytemuck::Pod;

use super::block::{Block, BlockWork, Panels, RowPanels, is_resident, share};
use super::driver::{Left, Packer, Product, Right, SERIAL_STEPS, Target, inner_block};
use super::pack::Panel;
use super::packed::Placed;
use super::tile::TileSet;
use crate::error::Result;
use crate::isa::caches;
use crate::library::Context;
use crate::library::view::Shared;
use crate::memory::Lent;

/// Rows that a group must have, so that reading the right panels from the third-level cache is hidden.
const LEAST_ROWS: usize = 28;

/// Ranges of right panels for each thread, if they are wide enough: what is left of one that comes late is shared.
const TASKS: usize = 8;

/// Columns of a range at least: epilogues run along them.
const LEAST_COLS: usize = 128;

/// One such product and its division.
pub(super) struct OwnRows<'a, A: 'static, B: 'static, C: 'static> {
    product: &'a Product<'a, A, B, C>,
    cx: &'a Context<'a>,
    tiles: &'a TileSet<A, B, C>,
    packer: Packer<'a, A>,
    right: Placed<B>,
    threads: usize,
    groups: usize,
}

/// A group of rows.
struct Group<'a, A, C> {
    rows: Range<usize>,
    /// Room for its rows when packed, with all their words.
    left: Shared<A>,
    /// Room for the accumulators of a part of the columns, where the product is discarded.
    sums: Option<Shared<C>>,
    place: &'a Place,
}

/// What has been done with the room of a group.
#[derive(Debug, Default)]
struct Place {
    packed: OnceLock<()>,
    /// Somebody uses the accumulators.
    taken: AtomicBool,
}

impl<'a, A: Pod + Send + Sync, B: Pod + Send + Sync, C: Pod + Send + Sync> OwnRows<'a, A, B, C> {
    /// The division of a product, if it is of this kind and has enough rows.
    pub fn of(
        product: &'a Product<'a, A, B, C>,
        cx: &'a Context<'a>,
        tiles: &'a TileSet<A, B, C>,
    ) -> Option<Self> {
        let (Left::Pack(packer), Right::Packed(right)) = (product.left, product.right) else {
            return None;
        };
        let (rows, inner) = (product.rows, product.inner);
        let steps = rows.saturating_mul(product.cols).saturating_mul(inner);
        let threads = match steps < SERIAL_STEPS {
            true => 1,
            false => cx.pool.threads(),
        };
        let room = (caches().l2 / 2).max(caches().l3 / 4 / threads);
        let most = room / inner.saturating_mul(size_of::<A>()).max(1);
        let groups = rows.div_ceil(most.saturating_mul(threads).max(1)) * threads;
        let suits = inner > 0 && rows / groups >= LEAST_ROWS;
        suits.then_some(OwnRows {
            product,
            cx,
            tiles,
            packer,
            right,
            threads,
            groups,
        })
    }

    /// The division of a product whose accumulators go to the epilogue only: groups that stay in the second-level cache when
    /// packed, with their accumulators for a few right panels. For [`OwnRows::run_in_turn`].
    pub fn in_turn(
        product: &'a Product<'a, A, B, C>,
        cx: &'a Context<'a>,
        tiles: &'a TileSet<A, B, C>,
    ) -> Option<Self> {
        let own = OwnRows::of(product, cx, tiles)?;
        let most = (caches().l2 / 2 / (product.inner * size_of::<A>())).max(1);
        let wanted = match own.threads {
            1 => 1,
            threads => (TASKS * threads).min(product.rows / (2 * LEAST_ROWS)),
        };
        let groups = own.groups.max(product.rows.div_ceil(most)).max(wanted);
        (product.rows / groups >= LEAST_ROWS).then_some(OwnRows { groups, ..own })
    }

    /// Computes the product, each group from packing to epilogue at once. Error: out of scratch memory.
    ///
    /// # Safety
    /// As [`Product::run`].
    pub unsafe fn run_in_turn(&self) -> Result<()> {
        let panels = self.product.cols.div_ceil(self.tiles.panel_cols());
        let task = |index: usize| {
            let left = (self.cx.scratch).take::<A>(self.most_rows() * self.product.inner)?;
            let group = Group {
                rows: self.rows(index),
                left: Shared(left.as_ptr()),
                sums: None,
                place: &Place::default(),
            };
            let sums = self.cx.scratch.take::<C>(self.sums_len())?;
            self.pack(&group);
            // SAFETY: the rows are packed; every group is computed once.
            unsafe { self.parts(&group, 0..panels, Some(Shared(sums.as_ptr()))) };
            Ok(())
        };
        match self.threads {
            1 => (0..self.groups).try_for_each(task),
            _ => self.cx.try_run(self.groups, task),
        }
    }

    /// Computes the product. Error: out of scratch memory.
    ///
    /// # Safety
    /// As [`Product::run`].
    pub unsafe fn run(&self) -> Result<()> {
        let Product { cols, inner, .. } = *self.product;
        let discards = matches!(self.product.target, Target::Discard);
        let at_a_time = self.groups_at_a_time();
        let left_len = at_a_time * self.most_rows() * inner;
        let sums = discards.then(|| self.cx.scratch.take::<C>(at_a_time * self.sums_len()));
        let (left, sums) = (self.cx.scratch.take::<A>(left_len)?, sums.transpose()?);
        let panels = cols.div_ceil(self.tiles.panel_cols());
        let wide = (LEAST_COLS / self.tiles.panel_cols()).max(1);
        let ranges = (TASKS * self.threads / at_a_time).clamp(1, panels.div_ceil(wide));
        for first in (0..self.groups).step_by(at_a_time) {
            let count = at_a_time.min(self.groups - first);
            let places: Vec<Place> = (0..count).map(|_| Place::default()).collect();
            let task = |index: usize| {
                let (at, range) = (index / ranges, index % ranges);
                let group = Group {
                    rows: self.rows(first + at),
                    left: Shared(
                        left.as_ptr::<A>()
                            .wrapping_add(at * self.most_rows() * inner),
                    ),
                    sums: (sums.as_ref())
                        .map(|sums| Shared(sums.as_ptr::<C>().wrapping_add(at * self.sums_len()))),
                    place: &places[at],
                };
                // SAFETY: passed on; every pair of a group and a range is computed once.
                unsafe { self.task(&group, share(panels, ranges, range)) }
            };
            match self.threads {
                1 => (0..count * ranges).try_for_each(task)?,
                _ => self.cx.try_run(count * ranges, task)?,
            }
        }
        Ok(())
    }

    /// Groups that are packed at a time, so that scratch memory is bounded.
    fn groups_at_a_time(&self) -> usize {
        let group = self.most_rows() * self.product.inner * size_of::<A>();
        let rounds = (caches().l3 / 4 / (group * self.threads)).max(1);
        self.groups.min(rounds * self.threads)
    }

    /// Rows of the largest group, with those that fill its last panel.
    fn most_rows(&self) -> usize {
        self.product.rows.div_ceil(self.groups).next_multiple_of(2)
    }

    /// Rows of a group.
    fn rows(&self, group: usize) -> Range<usize> {
        RowPanels::even(self.product.rows, self.groups).range(group..group + 1)
    }

    /// Panels of a group.
    fn row_panels(&self, rows: usize) -> (RowPanels, usize) {
        let panels = rows.div_ceil(self.tiles.max_rows());
        (RowPanels::even(rows, panels), panels)
    }

    /// Right panels that are used together: as many as stay in the second-level cache while the rows pass by, or, where the
    /// rows stay there, as many as leave room for their accumulators.
    fn panels_at_a_time(&self) -> usize {
        let (rows, words) = (self.most_rows(), inner_block(self.product.inner));
        let width = self.tiles.panel_cols();
        let panels = match is_resident::<A>(rows, words) {
            true => caches().l2 / 8 / (rows * width * size_of::<C>()),
            false => caches().l2 / 2 / (words * width * size_of::<B>()),
        };
        panels.max(1)
    }

    /// Accumulators of a group that are kept at a time when the product is discarded.
    fn sums_len(&self) -> usize {
        self.most_rows() * self.panels_at_a_time() * self.tiles.panel_cols()
    }

    /// One group by a range of right panels, epilogue included.
    unsafe fn task(&self, group: &Group<'_, A, C>, panels: Range<usize>) -> Result<()> {
        group.place.packed.get_or_init(|| self.pack(group));
        let sums = Sums::of(self.cx, group, self.sums_len())?;
        // SAFETY: passed on; the rows are packed.
        unsafe { self.parts(group, panels, sums.as_ref().map(Sums::start)) };
        Ok(())
    }

    /// One packed group by a range of right panels.
    unsafe fn parts(&self, group: &Group<'_, A, C>, panels: Range<usize>, sums: Option<Shared<C>>) {
        let step = self.panels_at_a_time();
        for first in panels.clone().step_by(step) {
            let now = first..panels.end.min(first + step);
            // SAFETY: passed on; this part of the target is this task's.
            unsafe { self.part(group, now, sums) };
        }
    }

    /// Packs rows, all their words, for one block of the inner dimension after the other.
    fn pack(&self, Group { rows, left, .. }: &Group<'_, A, C>) {
        let inner = self.product.inner;
        let (split, panels) = self.row_panels(rows.len());
        let places = rows.len().next_multiple_of(2);
        for start in (0..inner).step_by(inner_block(inner)) {
            let words = inner_block(inner).min(inner - start);
            for panel in 0..panels {
                let part = split.range(panel..panel + 1);
                (self.packer)(&Panel {
                    first: rows.start + part.start,
                    count: part.len(),
                    height: self.tiles.tile_rows(part.len()),
                    start,
                    words,
                    to: (left.get()).wrapping_add(start * places + part.start * words),
                });
            }
        }
    }

    /// A group by right panels that are computed and finished together.
    unsafe fn part(
        &self,
        Group { rows, left, .. }: &Group<'_, A, C>,
        panels: Range<usize>,
        sums: Option<Shared<C>>,
    ) {
        let Product { cols, inner, .. } = *self.product;
        let width = self.tiles.panel_cols();
        let (split, left_panels) = self.row_panels(rows.len());
        let (col, end) = (panels.start * width, cols.min(panels.end * width));
        let (to, row_stride, adds) = match (self.product.target, sums) {
            (Target::Store { to, row_stride }, _) => (to, row_stride, false),
            (Target::Add { to, row_stride }, _) => (to, row_stride, true),
            (Target::Discard, Some(sums)) => (sums, end - col, false),
            (Target::Discard, None) => unreachable!("bug: nowhere to put accumulators"),
        };
        let to = match sums {
            Some(_) => to,
            None => Shared(to.get().wrapping_add(rows.start * row_stride + col)),
        };
        let places = rows.len().next_multiple_of(2);
        for start in (0..inner).step_by(inner_block(inner)) {
            let words = inner_block(inner).min(inner - start);
            let next = start + words;
            let block = Block {
                row: rows.start,
                rows: rows.len(),
                col,
                cols: end - col,
                start,
                words,
                last: next == inner,
            };
            // After the last panel comes the first one of the next block, or of the next columns.
            let right_next = match block.last {
                true => self
                    .right
                    .panels(0, inner_block(inner).min(inner), panels.end * width),
                false => (self.right).panels(next, inner_block(inner).min(inner - next), col),
            };
            let work = BlockWork {
                product: self.product,
                tiles: self.tiles,
                rows: split,
                block: &block,
                panels: &Panels {
                    left: Shared(left.get().wrapping_add(start * places)),
                    right: Shared(self.right.panels(start, words, col)),
                    right_panel: width * words,
                    right_row: width,
                    right_last: None,
                    right_next: Shared(right_next),
                    sliced: false,
                },
                to,
                row_stride,
                add: start > 0 || adds,
            };
            // SAFETY: passed on.
            unsafe { work.task(0..left_panels, 0..panels.len()) };
        }
    }
}

/// Accumulators of one task of a discarded product: its group's, or others where those are in use.
enum Sums<'a, C> {
    Own(Shared<C>, &'a AtomicBool),
    Lent(Lent<'a>),
}

impl<'a, C: Pod> Sums<'a, C> {
    fn of<A>(cx: &Context<'a>, group: &Group<'a, A, C>, len: usize) -> Result<Option<Self>> {
        let Some(start) = group.sums else {
            return Ok(None);
        };
        let taken = &group.place.taken;
        Ok(Some(match taken.swap(true, Acquire) {
            false => Sums::Own(start, taken),
            true => Sums::Lent(cx.scratch.take::<C>(len)?),
        }))
    }

    fn start(&self) -> Shared<C> {
        match self {
            Sums::Own(start, _) => *start,
            Sums::Lent(lent) => Shared(lent.as_ptr()),
        }
    }
}

impl<C> Drop for Sums<'_, C> {
    fn drop(&mut self) {
        if let Sums::Own(_, taken) = self {
            taken.store(false, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::library::gemm::tests::seen_by_epilogue;
    use crate::library::gemm::{Left, Number, Output, PackedRight, Right, multiply};
    use crate::library::testing::{Rng, contexts};
    use crate::library::view::{View, ViewMut};

    /// Odd rows in several groups, several blocks of words, several ranges of right panels.
    const SHAPE: [usize; 3] = [367, 901, 421];

    fn numbers<T: Number>(rng: &mut Rng, len: usize, number: fn(f32) -> T) -> Vec<T> {
        (0..len).map(|_| number(rng.float())).collect()
    }

    /// The right operand in memory takes the other way; both add in the same order.
    fn check<T: Number<Sum = f32>>(number: fn(f32) -> T) {
        let [rows, inner, cols] = SHAPE;
        contexts(|cx| {
            let mut rng = Rng::new(5);
            let left = numbers(&mut rng, rows * inner, number);
            let right = numbers(&mut rng, inner * cols, number);
            let left = Left::View(View::dense("left", &left, [1, 1, rows, inner]).expect("fits"));
            let right = View::dense("right", &right, [inner, cols]).expect("fits");
            let packed = PackedRight::new(cx, right).expect("memory");
            let product = |right, adds| {
                let mut out = vec![1f32; rows * cols];
                let view = ViewMut::dense("out", &mut out, [1, 1, rows, cols]).expect("fits");
                let output = if adds {
                    Output::Add(view)
                } else {
                    Output::Store(view)
                };
                multiply(cx, left, right, output, None).expect("agrees");
                out
            };
            for adds in [true, false] {
                let want = product(Right::View(right.batched()), adds);
                let got = product(Right::Packed(&packed), adds);
                assert!(want == got, "{:?}, adding: {adds}", cx.isa);
            }
            let seen = seen_by_epilogue(cx, left, Right::Packed(&packed), [rows, cols]);
            let want = product(Right::Packed(&packed), false);
            assert!(seen == want, "{:?} with an epilogue", cx.isa);
        });
    }

    #[test]
    fn packing_ahead_does_not_change_the_result() {
        check(|x| x);
        check(bf16::from_f32);
    }
}

//! Operands packed as a whole: constant weights ahead of time, and what many blocks of one product would pack.

use bytemuck::Pod;

use super::driver::{PACK_SERIAL_WORDS, inner_block};
use super::pack::Panel;
use crate::error::Result;
use crate::library::Context;
use crate::library::view::Shared;
use crate::memory::Buffer;
use crate::threads::Pool;

/// How an operand of `across` rows or columns and `inner` words is cut into panels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    across: usize,
    inner: usize,
    /// Places in each panel; the last one may have fewer.
    height: usize,
    /// Places in the last panel, if it is not full.
    last: usize,
    /// Places of all panels together.
    places: usize,
}

impl Cut {
    /// `height` rows or columns to a panel; `last_height(count)` gives the places of a panel that holds only `count`.
    pub fn new(
        across: usize,
        inner: usize,
        height: usize,
        last_height: impl Fn(usize) -> usize,
    ) -> Cut {
        let rest = across % height;
        let last = if rest > 0 { last_height(rest) } else { 0 };
        Cut {
            across,
            inner,
            height,
            last,
            places: across / height * height + last,
        }
    }

    /// Words of all panels.
    pub fn len(&self) -> usize {
        self.places.saturating_mul(self.inner)
    }

    /// Writes all panels, on all threads, to memory that has room for them.
    pub fn fill<W: Pod + Send>(
        &self,
        start: Shared<W>,
        packer: impl Fn(&Panel<W>) + Sync,
        pool: &Pool,
    ) {
        let Cut {
            across,
            inner,
            height,
            last,
            ..
        } = *self;
        let (block, count) = (inner_block(inner), across.div_ceil(height));
        let to = self.at(start);
        let grain = (PACK_SERIAL_WORDS / (height * block)).max(1);
        pool.run_ranges(inner.div_ceil(block) * count, grain, |range| {
            for index in range {
                let (start, first) = (index / count * block, index % count * height);
                let words = block.min(inner - start);
                let count = height.min(across - first);
                packer(&Panel {
                    first,
                    count,
                    height: if count < height { last } else { height },
                    start,
                    words,
                    to: to.panels(start, words, first),
                });
            }
        });
    }

    /// The panels in memory where they begin.
    pub fn at<W>(&self, start: Shared<W>) -> Placed<W> {
        Placed {
            start,
            height: self.height,
            places: self.places,
        }
    }
}

/// Where the panels of one operand lie: for each block of the inner dimension, for each panel, its words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed<W> {
    start: Shared<W>,
    height: usize,
    places: usize,
}

impl<W> Placed<W> {
    /// Address of the panels from row or column `first` (a multiple of the panel height) on, in the block of `words` words
    /// that begins at word `start`.
    pub fn panels(&self, start: usize, words: usize, first: usize) -> *mut W {
        debug_assert!(first.is_multiple_of(self.height));
        let start_of_block = self.start.get().wrapping_add(start * self.places);
        start_of_block.wrapping_add(first * words)
    }
}

/// All panels of one operand, with their memory.
#[derive(Debug)]
pub(crate) struct Packed<W> {
    words: Buffer,
    cut: Cut,
    word: std::marker::PhantomData<W>,
}

impl<W: Pod + Send> Packed<W> {
    /// Packs an operand that is cut so. Error: out of memory.
    pub fn new(cut: Cut, packer: impl Fn(&Panel<W>) + Sync, cx: &Context) -> Result<Packed<W>> {
        let Cut {
            across,
            inner,
            height,
            places,
            ..
        } = cut;
        let form = (std::any::type_name::<W>(), across, inner, height, places);
        let size = cut.len().saturating_mul(size_of::<W>());
        let words = Buffer::made(size, cx.scratch.usage(), form, |buffer| {
            cut.fill(Shared(buffer.as_ptr().cast::<W>()), packer, cx.pool);
        })?;
        Ok(Packed {
            words,
            cut,
            word: std::marker::PhantomData,
        })
    }
}

impl<W> Packed<W> {
    /// Where the panels lie.
    pub fn placed(&self) -> Placed<W> {
        self.cut.at(Shared(self.words.as_ptr().cast::<W>()))
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.words.size()
    }
}

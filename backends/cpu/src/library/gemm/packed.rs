//! Operands packed ahead of time: constant weights.

use bytemuck::Pod;

use super::driver::{PACK_SERIAL_WORDS, inner_block};
use super::pack::Panel;
use crate::error::Result;
use crate::library::Context;
use crate::memory::Buffer;

/// All panels of one operand: for each block of the inner dimension, for each panel, its words.
#[derive(Debug)]
pub(crate) struct Packed<W> {
    words: Buffer,
    /// Places in each panel; the last one may have fewer.
    height: usize,
    /// Places of all panels together.
    places: usize,
    word: std::marker::PhantomData<W>,
}

impl<W: Pod> Packed<W> {
    /// Packs an operand of `across` rows or columns, `height` to a panel; `last_height(count)` gives the places of a panel
    /// that holds only `count`. Error: out of memory.
    pub fn new(
        across: usize,
        inner: usize,
        height: usize,
        last_height: impl Fn(usize) -> usize + Sync,
        packer: impl Fn(&Panel<W>) + Sync,
        cx: &Context,
    ) -> Result<Packed<W>> {
        let full = across / height;
        let rest = across % height;
        let places = full * height + if rest > 0 { last_height(rest) } else { 0 };
        let len = places.saturating_mul(inner);
        let form = (std::any::type_name::<W>(), across, inner, height, places);
        let size = len.saturating_mul(size_of::<W>());
        let (block, count) = (inner_block(inner), across.div_ceil(height));
        let words = Buffer::made(size, cx.scratch.usage(), form, |buffer| {
            let grain = (PACK_SERIAL_WORDS / (height * block)).max(1);
            cx.pool
                .run_ranges(inner.div_ceil(block) * count, grain, |range| {
                    for index in range {
                        let (start, first) = (index / count * block, index % count * height);
                        let words = block.min(inner - start);
                        let count = height.min(across - first);
                        packer(&Panel {
                            first,
                            count,
                            height: match count < height {
                                true => last_height(count),
                                false => height,
                            },
                            start,
                            words,
                            to: panels(buffer, places, [start, words, first]),
                        });
                    }
                });
        })?;
        Ok(Packed {
            words,
            height,
            places,
            word: std::marker::PhantomData,
        })
    }

    /// Address of the panels from row or column `first` (a multiple of the panel height) on, in the block of `words` words
    /// that begins at word `start`.
    pub fn panels(&self, start: usize, words: usize, first: usize) -> *mut W {
        debug_assert!(first.is_multiple_of(self.height));
        panels(&self.words, self.places, [start, words, first])
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.words.size()
    }
}

/// Address of the panels from row or column `first` on, in the block of `words` words that begins at word `start`, of
/// `places` places together.
fn panels<W>(buffer: &Buffer, places: usize, [start, words, first]: [usize; 3]) -> *mut W {
    let start_of_block = buffer.as_ptr().cast::<W>();
    start_of_block.wrapping_add(start * places + first * words)
}

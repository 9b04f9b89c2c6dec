//! Block-quantised weights packed ahead of time for the dot-product instructions.
//!
//! A *strip* holds [`WIDTH`] columns of the right operand. Along the inner dimension it is cut into *tiles* of [`STEP`] elements,
//! of which up to [`CHUNK`] follow each other behind a header with their scales, so that codes stay aligned to cache lines:
//!
//! | part | bytes |
//! |---|---|
//! | steps: what scales (and minima) are multiples of | 16 f32 each; only [`Scales::Steps`] |
//! | for each tile its scales, then minima: for each group, 16 columns | 1, 2 or 4 each |
//! | for each tile eight vectors of 64 codes: 16 columns of 4 neighbours | 512; 256 as nibbles, where a byte holds the code of vector `v < 4` low and that of `v + 4` high; 384 with six bits, the two upper ones of vectors `v % 4` of a half in one byte behind the nibbles |

use cupola_ir::BlockFormat;
use cupola_ir::convert::{BlockCodes, PlainCodes, block_codes, plain_block};
use half::f16;

use crate::error::Result;
use crate::library::Context;
use crate::library::view::{Shared, mismatch};
use crate::memory::Buffer;

/// Columns of a strip.
pub(super) const WIDTH: usize = 16;
/// Elements along the inner dimension in a tile.
pub(super) const STEP: usize = 32;
/// Tiles behind one header.
pub(super) const CHUNK: usize = 8;

/// How codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Four bits that are the number.
    Nibbles,
    /// Four bits that choose from [`Layout::table`].
    Table,
    /// Six bits: nibbles, then the bits above them.
    Sixes,
    /// Eight bits.
    Bytes,
}

/// How scales and minima are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// f16.
    Halves,
    /// f32.
    Floats,
    /// Signed multiples, of 8 bits, of the steps in the header.
    Steps,
}

/// How the strips of one format look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub coding: Coding,
    pub scales: Scales,
    /// Scales of a tile: 1 or 2.
    pub groups: usize,
    pub has_min: bool,
    /// The unsigned code that stands for 0.
    pub zero: u8,
    /// Unsigned codes by nibble, four times.
    pub table: [u8; 64],
    /// Nibbles by unsigned code, the other way round.
    nibbles: [u8; 256],
}

impl Layout {
    pub fn of(format: BlockFormat) -> Layout {
        use BlockFormat as B;
        const SHIFT: u8 = 128;
        let levels = format.levels();
        let (coding, zero) = match levels {
            None if matches!(format, B::Q5_0 | B::Q5_1 | B::Q5_K | B::Q6_K) => (Coding::Sixes, 32),
            None => (Coding::Bytes, SHIFT),
            Some([first, .., last]) if i16::from(*last) - i16::from(*first) < 16 => {
                (Coding::Nibbles, first.unsigned_abs())
            }
            Some(_) => (Coding::Table, SHIFT),
        };
        let mut table = [0; 64];
        for (at, slot) in table.iter_mut().enumerate() {
            let level = levels.and_then(|levels| levels.get(at % 16));
            *slot = level.map_or(0, |level| (*level as u8).wrapping_add(zero));
        }
        let mut nibbles = [0; 256];
        for (at, code) in table[..levels.map_or(0, |l| l.len().min(16))]
            .iter()
            .enumerate()
        {
            nibbles[usize::from(*code)] = at as u8;
        }
        let scales = match format {
            B::Q4_0 | B::Q4_1 | B::Q5_0 | B::Q5_1 | B::Q8_0 | B::Q8_1 | B::IQ4_NL | B::NVFP4 => {
                Scales::Halves
            }
            B::MXFP4 | B::Q8_K => Scales::Floats,
            _ => Scales::Steps,
        };
        Layout {
            coding,
            scales,
            groups: STEP / format.group_len(),
            has_min: format.has_min(),
            zero,
            table,
            nibbles,
        }
    }

    /// Vectors of 16 numbers for each kind of scale: with a minimum two.
    fn kinds(&self) -> usize {
        1 + usize::from(self.has_min)
    }

    /// Bytes of a scale.
    fn scale_size(&self) -> usize {
        match self.scales {
            Scales::Halves => 2,
            Scales::Floats => 4,
            Scales::Steps => 1,
        }
    }

    /// Bytes from one group's scales to the next one's.
    pub fn group_size(&self) -> usize {
        WIDTH * self.scale_size()
    }

    /// Bytes from the scales of a tile to its minima.
    pub fn min_offset(&self) -> usize {
        self.groups * self.group_size()
    }

    /// Bytes of all scales of a tile.
    pub fn scales_size(&self) -> usize {
        self.kinds() * self.min_offset()
    }

    /// Bytes of the steps.
    pub fn steps_size(&self) -> usize {
        match self.scales {
            Scales::Steps => self.kinds() * WIDTH * size_of::<f32>(),
            Scales::Halves | Scales::Floats => 0,
        }
    }

    /// Bytes of the header of so many tiles.
    pub fn header_size(&self, tiles: usize) -> usize {
        (self.steps_size() + tiles * self.scales_size()).next_multiple_of(64)
    }

    /// Bytes of the codes of a tile.
    pub fn codes_size(&self) -> usize {
        match self.coding {
            Coding::Nibbles | Coding::Table => WIDTH * STEP / 2,
            Coding::Sixes => WIDTH * STEP * 3 / 4,
            Coding::Bytes => WIDTH * STEP,
        }
    }

    /// Bytes of so many tiles with their header.
    pub fn chunk_size(&self, tiles: usize) -> usize {
        self.header_size(tiles) + tiles * self.codes_size()
    }

    /// Bytes of a strip of so many tiles.
    pub fn strip_size(&self, tiles: usize) -> usize {
        let rest = match tiles % CHUNK {
            0 => 0,
            rest => self.chunk_size(rest),
        };
        tiles / CHUNK * self.chunk_size(CHUNK) + rest
    }
}

/// A right operand of block-quantised numbers packed ahead of time.
#[derive(Debug)]
pub struct PackedBlocks {
    strips: Buffer,
    pub(super) layout: Layout,
    pub(super) inner: usize,
    pub(super) cols: usize,
}

impl PackedBlocks {
    /// Packs `bytes`: for each column the blocks of its `inner` elements.
    ///
    /// Errors: an inner extent that is no multiple of the block, bytes that are not as many as that takes, out of memory.
    pub fn new(
        cx: &Context,
        format: BlockFormat,
        bytes: &[u8],
        [inner, cols]: [usize; 2],
    ) -> Result<PackedBlocks> {
        let what = "block-quantised operand";
        if !inner.is_multiple_of(format.block_len()) {
            return Err(mismatch(what, inner, format.block_len()));
        }
        let column = inner / format.block_len() * format.block_size();
        if column.checked_mul(cols) != Some(bytes.len()) {
            return Err(mismatch(what, bytes.len(), [column, cols]));
        }
        let layout = Layout::of(format);
        let tiles = inner / STEP;
        let size = layout.strip_size(tiles);
        let count = cols.div_ceil(WIDTH);
        let strips = Buffer::lasting(count.saturating_mul(size), cx.scratch.usage())?;
        let start = Shared(strips.as_ptr());
        cx.pool.run(count, |index| {
            // SAFETY: strips lie side by side in the buffer, and each is written once.
            let strip = unsafe {
                std::slice::from_raw_parts_mut(start.get().wrapping_add(index * size), size)
            };
            let first = index * WIDTH;
            let columns = &bytes[first * column..cols.min(first + WIDTH) * column];
            if plain_block(format, &bytes[..format.block_size().min(bytes.len())]).is_some() {
                return write_plain(strip, &layout, format, columns, tiles);
            }
            for (col, blocks) in columns.chunks_exact(column.max(1)).enumerate() {
                let place = Place {
                    layout: &layout,
                    tiles,
                    col,
                };
                for (at, block) in blocks.chunks_exact(format.block_size()).enumerate() {
                    let Ok(block) = block_codes(format, block) else {
                        unreachable!("bug: chunks have the size of a block");
                    };
                    place.write(strip, at * format.block_len(), format.block_len(), &block);
                }
            }
        });
        Ok(PackedBlocks {
            strips,
            layout,
            inner,
            cols,
        })
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.strips.size()
    }

    /// Bytes that packing so many columns of this format takes.
    pub fn size_of(format: BlockFormat, [inner, cols]: [usize; 2]) -> usize {
        let strip = Layout::of(format).strip_size(inner / STEP);
        cols.div_ceil(WIDTH).saturating_mul(strip)
    }

    /// Tiles of a strip.
    pub(super) fn tiles(&self) -> usize {
        self.inner / STEP
    }

    /// Strips.
    pub(super) fn count(&self) -> usize {
        self.cols.div_ceil(WIDTH)
    }

    /// Bytes of a strip.
    pub(super) fn strip_size(&self) -> usize {
        self.layout.strip_size(self.tiles())
    }

    /// First byte of a strip.
    pub(super) fn strip(&self, index: usize) -> *const u8 {
        self.strips.as_ptr().wrapping_add(index * self.strip_size())
    }
}

/// A column of a strip.
struct Place<'a> {
    layout: &'a Layout,
    /// Tiles of the strip.
    tiles: usize,
    col: usize,
}

impl Place<'_> {
    /// Writes a block of `len` elements from element `first` of the column on; a whole block lies in one chunk.
    fn write(&self, strip: &mut [u8], first: usize, len: usize, block: &BlockCodes) {
        let Place { layout, tiles, col } = *self;
        let chunk = first / (CHUNK * STEP);
        let size = CHUNK.min(tiles - chunk * CHUNK);
        let chunk_bytes = &mut strip[chunk * layout.chunk_size(CHUNK)..][..layout.chunk_size(size)];
        let (header, codes) = chunk_bytes.split_at_mut(layout.header_size(size));
        if layout.scales == Scales::Steps {
            put(header, col * 4, &block.scale.to_le_bytes());
            if layout.has_min {
                put(header, (WIDTH + col) * 4, &block.min.to_le_bytes());
            }
        }
        let group_len = STEP / layout.groups;
        for group in 0..len / group_len {
            let at = first % (CHUNK * STEP) + group * group_len;
            let (tile, inside) = (at / STEP, at % STEP);
            let scales = layout.steps_size()
                + tile * layout.scales_size()
                + inside / group_len * layout.group_size();
            self.put_scale(header, scales, block.scale, block.scales[group]);
            if layout.has_min {
                let mins = scales + layout.min_offset();
                self.put_scale(header, mins, block.min, block.mins[group]);
            }
        }
        for (at, part) in block.codes[..len].chunks_exact(STEP).enumerate() {
            let tile = first / STEP % CHUNK + at;
            let size = layout.codes_size();
            self.put_codes(&mut codes[tile * size..][..size], part);
        }
    }

    /// Writes the scale `step * multiple` of the column into the group of scales at `start`.
    fn put_scale(&self, header: &mut [u8], start: usize, step: f32, multiple: f32) {
        let at = start + self.col * self.layout.scale_size();
        match self.layout.scales {
            Scales::Halves => put(header, at, &f16::from_f32(step * multiple).to_le_bytes()),
            Scales::Floats => put(header, at, &(step * multiple).to_le_bytes()),
            Scales::Steps => put(header, at, &(multiple as i8).to_le_bytes()),
        }
    }

    /// Writes the column's part of a tile.
    fn put_codes(&self, tile: &mut [u8], codes: &[i8]) {
        let Place { layout, col, .. } = *self;
        let mut bytes = [0u8; STEP];
        for (byte, code) in bytes.iter_mut().zip(codes) {
            *byte = (*code as u8).wrapping_add(layout.zero);
        }
        if layout.coding == Coding::Table {
            bytes = bytes.map(|code| layout.nibbles[usize::from(code)]);
        }
        let words: [u32; STEP / 4] =
            std::array::from_fn(|v| u32::from_le_bytes([0, 1, 2, 3].map(|k| bytes[4 * v + k])));
        let mut store = |vector: usize, word: u32| {
            put(tile, vector * 64 + col * 4, &word.to_le_bytes());
        };
        if layout.coding == Coding::Bytes {
            (words.into_iter().enumerate()).for_each(|(v, word)| store(v, word));
            return;
        }
        const LOW: u32 = 0x0F0F_0F0F;
        let (first, second) = words.split_at(STEP / 8);
        for (v, (a, b)) in first.iter().zip(second).enumerate() {
            store(v, a & LOW | (b & LOW) << 4);
        }
        if layout.coding == Coding::Sixes {
            for (half, words) in [first, second].into_iter().enumerate() {
                let upper = words.iter().enumerate();
                let bits = upper.map(|(v, word)| (word >> 4 & 0x0303_0303) << (2 * v));
                store(STEP / 8 + half, bits.fold(0, |all, bits| all | bits));
            }
        }
    }
}

/// Writes a strip whose blocks are plain, and so one tile each: tile by tile, all columns at a time, so that every vector of
/// codes is written once.
fn write_plain(
    strip: &mut [u8],
    layout: &Layout,
    format: BlockFormat,
    columns: &[u8],
    tiles: usize,
) {
    let size = format.block_size();
    let mut chunks = strip.chunks_mut(layout.chunk_size(CHUNK));
    for start in (0..tiles).step_by(CHUNK) {
        let count = CHUNK.min(tiles - start);
        let chunk = chunks.next().unwrap_or_default();
        let (header, codes) = chunk.split_at_mut(layout.header_size(count));
        let headers = header.chunks_exact_mut(layout.scales_size());
        let tiles_of_chunk = headers.zip(codes.chunks_exact_mut(layout.codes_size()));
        for (at, (scales, codes)) in tiles_of_chunk.take(count).enumerate() {
            let mut words = [[0u32; WIDTH]; STEP / 4];
            let (scales, mins) = scales.split_at_mut(layout.min_offset());
            for (col, blocks) in columns.chunks_exact(tiles * size).enumerate() {
                let Some(block) = plain_block(format, &blocks[(start + at) * size..][..size])
                else {
                    unreachable!("bug: a format is plain or is not");
                };
                scales[col * 2..][..2].copy_from_slice(&block.scale);
                if layout.has_min {
                    mins[col * 2..][..2].copy_from_slice(&block.min);
                }
                let word = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
                match block.codes {
                    PlainCodes::Nibbles(nibbles) => {
                        let from = nibbles.chunks_exact(4);
                        (from.zip(&mut words)).for_each(|(from, to)| to[col] = word(from));
                    }
                    // What the code of 0 adds to a byte is its highest bit.
                    PlainCodes::Bytes(bytes) => {
                        let from = bytes.chunks_exact(4);
                        (from.zip(&mut words))
                            .for_each(|(from, to)| to[col] = word(from) ^ 0x8080_8080);
                    }
                }
            }
            for (codes, words) in codes.chunks_exact_mut(4).zip(words.as_flattened()) {
                codes.copy_from_slice(&words.to_le_bytes());
            }
        }
    }
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

//! Where keys and values are: rows of an operand, or of pages that a table names.

use std::ops::Range;

use half::{bf16, f16};

use crate::library::simd::loops::for_each_vector;
use crate::library::simd::{Float, Kernel, Simd};
use crate::library::view::View;

/// Keys or values, `[batch, kv_heads, keys, depth]`.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a, T> {
    /// Any strides.
    At(View<'a, T, 4>),
    /// In pages.
    In(Pages<'a>),
}

impl<T: crate::library::Element> Rows<'_, T> {
    /// Extents.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Rows::At(view) => view.shape(),
            Rows::In(pages) => [pages.tables.len(), pages.kv_heads, pages.keys, pages.depth],
        }
    }

    /// Whether elements of a row are neighbours where products read them.
    pub fn are_dense(&self) -> bool {
        match self {
            Rows::At(view) => view.strides()[3] == 1,
            Rows::In(_) => true,
        }
    }
}

/// Rows in pages `[pages, kv_heads, page_len, depth]`, dense. Key `j` of batch entry `b` is row `j % page_len` of page
/// `tables[b][j / page_len]`.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    /// The first element.
    pub start: PageStart,
    /// Number of pages.
    pub count: usize,
    /// Key heads of a page.
    pub kv_heads: usize,
    /// Keys of a page.
    pub page_len: usize,
    /// Elements of a row.
    pub depth: usize,
    /// Most keys of any batch entry; fewer exist where key lengths say so.
    pub keys: usize,
    /// Pages of each batch entry, as far as keys are read; one outside stands for the nearest.
    pub tables: &'a [&'a [i64]],
}

/// Address of stored elements.
#[derive(Debug, Clone, Copy)]
pub enum PageStart {
    /// f32
    F32(*const f32),
    /// f16
    F16(*const f16),
    /// bf16
    BF16(*const bf16),
    /// i8, each `depth / groups` neighbours times a scale in `[pages, kv_heads, page_len, groups]`.
    I8(*const i8, Scales),
}

/// Scales of rows in 8 bits.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    /// The first.
    pub start: *const f16,
    /// Scales of a row.
    pub groups: usize,
}

// SAFETY: the elements are only read, and outlive what refers to them by the lifetime of `Pages`.
unsafe impl Send for PageStart {}
// SAFETY: as above.
unsafe impl Sync for PageStart {}

/// Copies keys of one head to rows that follow each other, as `T`.
pub(super) struct Stage<'a, T> {
    pub pages: &'a Pages<'a>,
    pub batch: usize,
    pub kv_head: usize,
    pub keys: Range<usize>,
    pub to: *mut T,
}

impl<T: Float> Kernel for Stage<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.pages.start {
            PageStart::F32(start) => self.copy(s, start),
            PageStart::F16(start) => self.copy(s, start),
            PageStart::BF16(start) => self.copy(s, start),
            PageStart::I8(start, scales) => self.scale(start, scales),
        }
    }
}

impl<T: Float> Stage<'_, T> {
    /// Runs of neighbouring rows: the number of the first among all rows of all pages, where it goes to, and how many.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = (usize, *mut T, usize)> {
        let Pages {
            count: pages,
            kv_heads,
            page_len,
            depth,
            tables,
            ..
        } = *self.pages;
        let last = pages as i64 - 1;
        let table = tables[self.batch];
        let mut key = self.keys.start;
        std::iter::from_fn(move || {
            if key >= self.keys.end {
                return None;
            }
            let page = table[key / page_len].clamp(0, last) as usize;
            let row = key % page_len;
            let count = (page_len - row).min(self.keys.end - key);
            let from = (page * kv_heads + self.kv_head) * page_len + row;
            let to = self.to.wrapping_add((key - self.keys.start) * depth);
            key += count;
            Some((from, to, count))
        })
    }

    #[inline(always)]
    fn copy<S: Simd, P: Float>(&self, s: S, start: *const P) {
        let depth = self.pages.depth;
        for (first, to, count) in self.runs() {
            let from = start.wrapping_add(first * depth);
            for_each_vector!(s, count * depth, |at, len| {
                // SAFETY: pages are inside, as whoever made `Pages` saw to; there is room for all keys.
                unsafe {
                    let v = P::load_first_or_all(s, from.add(at), len);
                    T::store_first_or_all(s, to.add(at), len, v);
                }
            });
        }
    }

    /// Plain loops, which the compiler makes vectors of.
    #[inline(always)]
    fn scale(&self, start: *const i8, Scales { start: by, groups }: Scales) {
        let depth = self.pages.depth;
        if depth == 0 {
            return;
        }
        let group = depth / groups;
        for (first, to, count) in self.runs() {
            for row in 0..count {
                // SAFETY: pages and their scales are inside, as whoever made `Pages` saw to; there is room for all keys.
                let (codes, scales, to) = unsafe {
                    let at = first + row;
                    (
                        std::slice::from_raw_parts(start.add(at * depth), depth),
                        std::slice::from_raw_parts(by.add(at * groups), groups),
                        std::slice::from_raw_parts_mut(to.add(row * depth), depth),
                    )
                };
                let parts = codes.chunks_exact(group).zip(to.chunks_exact_mut(group));
                for ((codes, to), scale) in parts.zip(scales) {
                    let scale = scale.widen();
                    for (code, to) in codes.iter().zip(to) {
                        *to = T::narrow(f32::from(*code) * scale);
                    }
                }
            }
        }
    }
}

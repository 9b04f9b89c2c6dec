//! Activations in the order in which the tiles read them: in panels of a few rows, for each tile of the inner dimension the
//! elements of all rows.

use super::strips::{Layout, STEP};
use crate::library::gemm::pack::Strided;
use crate::library::simd::{Float, Kernel, Simd};

/// 2^23 + 2^22: added as bits to an integer below 2^22, it makes a float that is this number more.
pub(super) const MAGIC: f32 = 12_582_912.0;
/// The bits of 2^23, the float in which a unit is the lowest bit.
pub(super) const BIAS: i32 = 0x4B00_0000;

/// [`STEP`] activations of a row in 8 bits: `scale * code`, with a scale for each half.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Integers {
    /// Four codes each.
    pub codes: [i32; STEP / 4],
    /// What the sums of both halves begin with: the bits of [`MAGIC`], less what unsigned weight codes add.
    pub start: [i32; 2],
    pub scales: [f32; 2],
    /// What the codes stand for, added up: of each half, where weights have one group in a tile all in the first.
    pub sums: [f32; 2],
    pub unused: [u32; 2],
}

/// [`STEP`] activations of a row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Floats(pub [f32; STEP]);

/// Arranges rows of a panel.
pub(super) struct Arrange<'a, T> {
    pub source: &'a Strided<T>,
    pub layout: &'a Layout,
    /// First row of the panel, rows that exist, places for rows.
    pub first: usize,
    pub rows: usize,
    pub height: usize,
    /// As [`Floats`] instead of [`Integers`].
    pub exact: bool,
    pub to: *mut u8,
}

impl<T: Float> Kernel for Arrange<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tiles = self.source.inner / STEP;
        for row in 0..self.height {
            for tile in 0..tiles {
                let mut x = [0f32; STEP];
                if row < self.rows {
                    let from = self.source.at(self.first + row, tile * STEP);
                    for at in (0..STEP).step_by(S::LANES) {
                        // SAFETY: the row has all elements of the tile, which are neighbours.
                        unsafe { s.store(x.as_mut_ptr().add(at), T::load(s, from.add(at))) };
                    }
                }
                let place = tile * self.height + row;
                // SAFETY: the panel has room for all rows of all tiles.
                unsafe {
                    if self.exact {
                        self.to.cast::<Floats>().add(place).write(Floats(x));
                    } else {
                        let integers = quantised(s, &x, self.layout);
                        self.to.cast::<Integers>().add(place).write(integers);
                    }
                }
            }
        }
    }
}

/// The largest code.
const TOP: f32 = 127.0;

/// Largest magnitudes below this count as zero, so that its inverse is finite.
const LEAST: f32 = 1e-30;

/// Elements that share a scale.
const HALF: usize = STEP / 2;

#[inline(always)]
fn quantised<S: Simd>(s: S, x: &[f32; STEP], layout: &Layout) -> Integers {
    let magic = MAGIC.to_bits() as i32;
    let mut out = Integers {
        codes: [0; STEP / 4],
        start: [magic; 2],
        scales: [0.0; 2],
        sums: [0.0; 2],
        unused: [0; 2],
    };
    for half in 0..2 {
        let from = &x[half * HALF..][..HALF];
        let mut largest = s.splat(0.0);
        let mut is_number = s.splat(0.0);
        for at in (0..HALF).step_by(S::LANES) {
            // SAFETY: the lanes lie inside the half.
            let v = unsafe { s.load(from.as_ptr().add(at)) };
            largest = s.max(s.abs(v), largest);
            // NaN and infinity stay; everything else becomes 0.
            is_number = s.add(is_number, s.mul(v, s.splat(0.0)));
        }
        let largest = s.largest(largest);
        if s.sum(is_number).is_nan() {
            // Every product with it is NaN.
            out.scales[half] = f32::NAN;
            out.sums[half] = f32::NAN;
            continue;
        }
        if largest < LEAST {
            continue;
        }
        let inverse = s.splat(TOP / largest);
        let mut integers = [0i32; HALF];
        for at in (0..HALF).step_by(S::LANES) {
            // SAFETY: the lanes lie inside the half.
            unsafe {
                let steps = s.mul(s.load(from.as_ptr().add(at)), inverse);
                let codes = s.bits(s.add(s.round(steps), s.splat(MAGIC)));
                s.int_store(integers.as_mut_ptr().add(at), codes);
            }
        }
        let sum: i32 = integers.iter().map(|code| code - magic).sum();
        out.start[half] -= i32::from(layout.zero) * sum;
        out.scales[half] = largest / TOP;
        out.sums[half] = out.scales[half] * sum as f32;
        // The lowest byte of each is the code.
        let words = &mut out.codes[half * HALF / 4..][..HALF / 4];
        for (codes, four) in words.iter_mut().zip(integers.chunks_exact(4)) {
            for (k, code) in four.iter().enumerate() {
                *codes |= (code & 0xFF) << (8 * k);
            }
        }
    }
    if layout.groups == 1 {
        out.sums = [out.sums[0] + out.sums[1], 0.0];
    }
    out
}

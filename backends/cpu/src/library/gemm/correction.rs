//! What zero points change of a product of bytes, taken off the finished parts.

use super::driver::Finished;
use super::pack::Strided;
use crate::isa::Isa;
use crate::library::simd::{Kernel, Simd, dispatch};
use crate::memory::Buffer;

/// Zero points of an operand as its words hold them.
#[derive(Debug)]
pub(crate) enum Points {
    /// One for all rows or columns.
    One(i32),
    /// One for each.
    Each(Vec<i32>),
}

impl Points {
    /// One for each, all shifted.
    pub fn each(points: &[i32], shift: i32) -> Points {
        let points: Vec<i32> = points.iter().map(|point| point + shift).collect();
        match points.iter().all(|point| *point == 0) {
            true => Points::One(0),
            false => Points::Each(points),
        }
    }

    /// That of a row or column.
    pub fn at(&self, index: usize) -> i32 {
        match self {
            Points::One(point) => *point,
            Points::Each(points) => points[index],
        }
    }

    /// Whether there is nothing to take off for them.
    pub fn is_zero(&self) -> bool {
        matches!(self, Points::One(0))
    }
}

/// Sums of rows of the left, or of columns less `inner` times their zero point of the right operand.
#[derive(Debug)]
pub(crate) enum Sums {
    /// Nobody needs them.
    None,
    Made(Vec<i32>),
    Kept(Buffer),
}

/// What a finished product still needs to know of an operand.
#[derive(Debug)]
pub(crate) struct Correction {
    pub points: Points,
    pub sums: Sums,
}

impl Correction {
    /// Without sums.
    pub fn of(points: Points) -> Correction {
        Correction {
            points,
            sums: Sums::None,
        }
    }

    fn sums(&self) -> &[i32] {
        match &self.sums {
            Sums::None => &[],
            Sums::Made(sums) => sums,
            // SAFETY: the buffer was made of so many whole numbers, and is not written any more.
            Sums::Kept(buffer) => unsafe {
                std::slice::from_raw_parts(buffer.as_ptr().cast(), buffer.size() / size_of::<i32>())
            },
        }
    }
}

/// Takes zero points off a part of a product of words.
///
/// # Safety
/// The part must be exclusively the caller's, and the operands have the sums that the other's zero points ask for.
pub(crate) unsafe fn correct(
    isa: Isa,
    part: &Finished<i32>,
    left: &Correction,
    right: &Correction,
) {
    dispatch(isa, Correct { part, left, right });
}

struct Correct<'a> {
    part: &'a Finished<i32>,
    left: &'a Correction,
    right: &'a Correction,
}

impl Kernel for Correct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Correct { part, left, right } = self;
        let cols = part.col..part.col + part.cols;
        for row in 0..part.rows {
            // SAFETY: the row lies inside the part.
            let products = unsafe {
                std::slice::from_raw_parts_mut(part.start.add(row * part.row_stride), part.cols)
            };
            let row = part.row + row;
            let point = left.points.at(row);
            if point != 0 {
                take_off(products, &right.sums()[cols.clone()], point);
            }
            match &right.points {
                Points::One(0) => {}
                Points::One(point) => {
                    let rest = point.wrapping_mul(left.sums()[row]);
                    for product in products {
                        *product = product.wrapping_sub(rest);
                    }
                }
                Points::Each(points) => {
                    take_off(products, &points[cols.clone()], left.sums()[row]);
                }
            }
        }
    }
}

/// `products -= factor * others`
#[inline(always)]
fn take_off(products: &mut [i32], others: &[i32], factor: i32) {
    for (product, other) in products.iter_mut().zip(others) {
        *product = product.wrapping_sub(factor.wrapping_mul(*other));
    }
}

/// Sums along the inner dimension of bytes, `sign` turned over, as unsigned numbers: one for each place across.
pub(crate) fn sum_bytes(isa: Isa, source: &Strided<u8>, sign: u8, sums: &mut [i32]) {
    dispatch(isa, SumBytes { source, sign, sums });
}

struct SumBytes<'a> {
    source: &'a Strided<u8>,
    sign: u8,
    sums: &'a mut [i32],
}

impl Kernel for SumBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let SumBytes { source, sign, sums } = self;
        let inner = source.inner;
        if source.along == 1 {
            for (across, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the row lies inside the operand.
                let row = unsafe { std::slice::from_raw_parts(source.at(across, 0), inner) };
                let mut all = 0i32;
                for byte in row {
                    all = all.wrapping_add(i32::from(byte ^ sign));
                }
                *sum = all;
            }
            return;
        }
        sums.fill(0);
        if source.across == 1 {
            for along in 0..inner {
                // SAFETY: as above.
                let row = unsafe { std::slice::from_raw_parts(source.at(0, along), sums.len()) };
                for (sum, byte) in sums.iter_mut().zip(row) {
                    *sum = sum.wrapping_add(i32::from(byte ^ sign));
                }
            }
            return;
        }
        for (across, sum) in sums.iter_mut().enumerate() {
            for along in 0..inner {
                // SAFETY: the element lies inside the operand.
                let byte = unsafe { *source.at(across, along) };
                *sum = sum.wrapping_add(i32::from(byte ^ sign));
            }
        }
    }
}

//! Products of 8-bit integers with zero points, in i32.
//!
//! With VNNI, words are four bytes, left unsigned by right signed; an operand of the other signedness is shifted by 128, and the
//! shift joins the zero point, whose effect is taken off the finished product with the sums of rows and columns:
//! `sum((a - x) * (b - y)) = sum(a * b) - x * (sum(b) - inner * y) - y * sum(a)`. Those of packed operands are kept with them,
//! others are only summed where the other operand's zero point is not 0. Elsewhere, words are two 16-bit differences from the
//! zero point, and nothing remains to be done. Both are exact modulo 2^32.

use super::correction::{Correction, Points, Sums, correct, sum_bytes};
use super::driver::{Epilogue, Finished, Left, Product, Right, Target};
use super::formats::{BytePairs, ByteQuads};
use super::numbers::{pack_left_with, pack_right_with};
use super::pack::{Panel, Strided, pack_elements, pack_quads};
use super::packed::Packed;
use super::tile::Tiles;
use super::{left_of, right_of};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::view::{Shared, View, ViewMut, mismatch};
use crate::memory::Buffer;

/// The numbers that stand for zero.
#[derive(Debug, Clone, Copy)]
pub enum ZeroPoints<'a> {
    /// One for the whole operand.
    One(i32),
    /// One for each row of the left or column of the right operand.
    Each(&'a [i32]),
}

/// 8-bit integers; signed ones are given as their bytes ([`View::as_bytes`]). Zero points must be numbers of the same type.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a, const N: usize> {
    /// The elements.
    pub view: View<'a, u8, N>,
    /// Whether they are `i8`.
    pub signed: bool,
    /// What to subtract.
    pub zero_points: ZeroPoints<'a>,
}

/// The left operand, `[batch, batch, rows, inner]`.
#[derive(Debug, Clone, Copy)]
pub enum BytesLeft<'a> {
    /// In memory.
    View(Bytes<'a, 4>),
    /// Packed, the same one for the whole batch.
    Packed(&'a PackedBytesLeft),
}

/// The right operand, `[batch, batch, inner, cols]`.
#[derive(Debug, Clone, Copy)]
pub enum BytesRight<'a> {
    /// In memory.
    View(Bytes<'a, 4>),
    /// Packed, the same one for the whole batch.
    Packed(&'a PackedBytesRight),
}

/// A left operand of 8-bit integers packed ahead of time, `[rows, inner]`.
#[derive(Debug)]
pub struct PackedBytesLeft(PackedBytes);

/// A right operand of 8-bit integers packed ahead of time, `[inner, cols]`.
#[derive(Debug)]
pub struct PackedBytesRight(PackedBytes);

#[derive(Debug)]
struct PackedBytes {
    words: Packed<u32>,
    isa: Isa,
    across: usize,
    inner: usize,
    correction: Correction,
}

impl<'a, const N: usize> View<'a, i8, N> {
    /// The same elements as bytes.
    pub fn as_bytes(&self) -> View<'a, u8, N> {
        // SAFETY: i8 and u8 have the same layout.
        unsafe { View::from_raw(self.as_ptr().cast(), self.shape(), self.strides()) }
    }
}

impl<'a> Bytes<'a, 2> {
    /// The matrix as a batch of one.
    pub fn batched(&self) -> Bytes<'a, 4> {
        Bytes {
            view: self.view.batched(),
            signed: self.signed,
            zero_points: self.zero_points,
        }
    }
}

impl ZeroPoints<'_> {
    /// That of a row or column.
    pub(crate) fn at(&self, index: usize) -> i32 {
        match self {
            ZeroPoints::One(point) => *point,
            ZeroPoints::Each(points) => points[index],
        }
    }

    fn check(&self, what: &'static str, across: usize) -> Result<()> {
        match self {
            ZeroPoints::Each(points) if points.len() != across => {
                Err(mismatch(what, points.len(), across))
            }
            _ => Ok(()),
        }
    }
}

/// Which side of the product an operand is on; decides the signedness of its quads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// An operand with what packing needs.
#[derive(Clone, Copy)]
struct Operand<'a> {
    source: Strided<u8>,
    across: usize,
    signed: bool,
    zero_points: ZeroPoints<'a>,
    side: Side,
}

impl Operand<'_> {
    /// Added to elements and zero points to reach the signedness of a quad's side.
    fn shift(&self) -> i32 {
        match (self.side, self.signed) {
            (Side::Left, true) => 128,
            (Side::Right, false) => -128,
            (Side::Left, false) | (Side::Right, true) => 0,
        }
    }

    fn value(&self, byte: u8) -> i32 {
        if self.signed {
            i32::from(byte as i8)
        } else {
            i32::from(byte)
        }
    }

    fn pack_pairs(&self, panel: &Panel<u32>) {
        let convert = |across, byte| (self.value(byte) - self.zero_points.at(across)) as i16;
        // SAFETY: driver and `Packed` ask for panels inside the matrix, with room for them.
        unsafe { pack_elements::<u8, i16, 2>(&self.source, &panel.with(panel.to.cast()), convert) }
    }

    fn pack_quads(&self, isa: Isa, panel: &Panel<u32>) {
        let flip = if self.shift() == 0 { 0 } else { 0x80 };
        // SAFETY: as above.
        unsafe { pack_quads(isa, &self.source, panel, flip) }
    }

    /// Packs in the way of `isa`.
    fn pack(&self, isa: Isa, panel: &Panel<u32>) {
        if isa.vnni() {
            self.pack_quads(isa, panel)
        } else {
            self.pack_pairs(panel)
        }
    }

    /// Zero points after the shift; 0 for pairs, of which they are taken off.
    fn points(&self, isa: Isa) -> Points {
        let shift = self.shift();
        match self.zero_points {
            _ if !isa.vnni() => Points::One(0),
            ZeroPoints::One(point) => Points::One(point + shift),
            ZeroPoints::Each(points) => Points::each(points, shift),
        }
    }

    /// What the product is corrected by, but for sums, that are added where `sums` is true.
    fn correction(&self, isa: Isa, sums: bool) -> Correction {
        let mut correction = Correction::of(self.points(isa));
        if sums && isa.vnni() {
            let mut all = vec![0; self.across];
            self.sum(isa, &correction.points, &mut all);
            correction.sums = Sums::Made(all);
        }
        correction
    }

    /// Sums of rows or columns after the shift; those of columns less their zero points, once for each element.
    fn sum(&self, isa: Isa, points: &Points, sums: &mut [i32]) {
        let inner = self.source.inner as i32;
        let sign = if self.signed { 0x80 } else { 0 };
        sum_bytes(isa, &self.source, sign, sums);
        // Bytes were read as unsigned, with the sign's bit turned over: 128 more than they are.
        let own = self.shift() - i32::from(sign);
        for (at, sum) in sums.iter_mut().enumerate() {
            let point = match self.side {
                Side::Left => 0,
                Side::Right => points.at(at),
            };
            *sum = sum.wrapping_add(inner.wrapping_mul(own.wrapping_sub(point)));
        }
    }
}

impl PackedBytesLeft {
    /// Packs `source`, `[rows, inner]`, for use at the context's level. Errors: zero points that do not fit, out of memory.
    pub fn new(cx: &Context, source: &Bytes<'_, 2>) -> Result<PackedBytesLeft> {
        let [rows, _] = source.view.shape();
        let operand = operand(&source.batched(), 0, Side::Left);
        PackedBytes::new(cx, &operand, rows).map(PackedBytesLeft)
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.0.words.size()
    }
}

impl PackedBytesRight {
    /// Packs `source`, `[inner, cols]`, for use at the context's level. Errors: zero points that do not fit, out of memory.
    pub fn new(cx: &Context, source: &Bytes<'_, 2>) -> Result<PackedBytesRight> {
        let [_, cols] = source.view.shape();
        let operand = operand(&source.batched(), 0, Side::Right);
        PackedBytes::new(cx, &operand, cols).map(PackedBytesRight)
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.0.words.size()
    }
}

impl PackedBytes {
    fn new(cx: &Context, operand: &Operand, across: usize) -> Result<PackedBytes> {
        let isa = cx.isa;
        operand
            .zero_points
            .check("zero points of a packed operand", across)?;
        let words = operand.source.inner.div_ceil(group(isa));
        let packer = |panel: &Panel<u32>| operand.pack(isa, panel);
        let packed = match (operand.side, isa.vnni()) {
            (Side::Left, true) => pack_left_with(&ByteQuads::set(isa), across, words, packer, cx)?,
            (Side::Left, false) => pack_left_with(&BytePairs::set(isa), across, words, packer, cx)?,
            (Side::Right, true) => {
                pack_right_with(&ByteQuads::set(isa), across, words, packer, cx)?
            }
            (Side::Right, false) => {
                pack_right_with(&BytePairs::set(isa), across, words, packer, cx)?
            }
        };
        let mut correction = operand.correction(isa, false);
        if isa.vnni() {
            let form = ("sums", across, operand.source.inner);
            let sums = Buffer::made(across * size_of::<i32>(), cx.scratch.usage(), form, |to| {
                // SAFETY: the buffer has room for as many numbers, and nobody else knows it yet.
                let sums = unsafe { std::slice::from_raw_parts_mut(to.as_ptr().cast(), across) };
                operand.sum(isa, &correction.points, sums);
            })?;
            correction.sums = Sums::Kept(sums);
        }
        Ok(PackedBytes {
            words: packed,
            isa,
            across,
            inner: operand.source.inner,
            correction,
        })
    }
}

/// Bytes in a word.
fn group(isa: Isa) -> usize {
    if isa.vnni() { 4 } else { 2 }
}

fn operand<'a>(bytes: &Bytes<'a, 4>, offset: usize, side: Side) -> Operand<'a> {
    let [_, _, rows, cols] = bytes.view.shape();
    let (source, across) = match side {
        Side::Left => (left_of(&bytes.view, offset), rows),
        Side::Right => (right_of(&bytes.view, offset), cols),
    };
    Operand {
        source,
        across,
        signed: bytes.signed,
        zero_points: bytes.zero_points,
        side,
    }
}

/// Computes `output[b, m, n] (+)= sum over k of (left[b, m, k] - x) * (right[b, k, n] - y)` modulo 2^32, with zero points `x` and
/// `y`. `output` is `[batch, batch, rows, cols]`, overwritten or, with `add`, added to; neighbouring columns must be neighbours
/// in memory.
///
/// Errors: extents or zero points that do not agree, an operand packed for another level, out of memory.
pub fn multiply_bytes(
    cx: &Context,
    left: BytesLeft<'_>,
    right: BytesRight<'_>,
    output: ViewMut<'_, i32, 4>,
    add: bool,
    epilogue: Option<Epilogue<'_, i32>>,
) -> Result<()> {
    let [outer, batch, rows, cols] = output.shape();
    let inner = match &left {
        BytesLeft::View(bytes) => bytes.view.shape()[3],
        BytesLeft::Packed(packed) => packed.0.inner,
    };
    check_left(cx.isa, &left, [outer, batch, rows, inner])?;
    check_right(cx.isa, &right, [outer, batch, inner, cols])?;
    let [to_outer, to_batch, row_stride, col_stride] = output.strides();
    if col_stride != 1 && cols > 1 {
        return Err(mismatch(
            "column stride of a product's output",
            col_stride,
            1,
        ));
    }
    let to = Shared(output.as_ptr());
    let one = |index: usize| {
        let (o, b) = (index / batch, index % batch);
        let offset = |view: &View<u8, 4>| o * view.strides()[0] + b * view.strides()[1];
        let place = Shared(to.get().wrapping_add(o * to_outer + b * to_batch));
        let target = if add {
            Target::Add {
                to: place,
                row_stride,
            }
        } else {
            Target::Store {
                to: place,
                row_stride,
            }
        };
        let left = match &left {
            BytesLeft::View(bytes) => One::Operand(operand(bytes, offset(&bytes.view), Side::Left)),
            BytesLeft::Packed(packed) => One::Packed(&packed.0),
        };
        let right = match &right {
            BytesRight::View(bytes) => {
                One::Operand(operand(bytes, offset(&bytes.view), Side::Right))
            }
            BytesRight::Packed(packed) => One::Packed(&packed.0),
        };
        // SAFETY: the shapes agree, and the views vouch for their elements.
        unsafe {
            one_product(
                cx,
                &left,
                &right,
                [rows, inner, cols],
                target,
                epilogue,
                index,
            )
        }
    };
    let count = outer * batch;
    if count >= 4 * cx.pool.threads() {
        cx.try_run(count, one)
    } else {
        (0..count).try_for_each(one)
    }
}

fn check_left(isa: Isa, left: &BytesLeft, shape: [usize; 4]) -> Result<()> {
    match left {
        BytesLeft::View(bytes) if bytes.view.shape() != shape => Err(mismatch(
            "left operand of a product",
            bytes.view.shape(),
            shape,
        )),
        BytesLeft::View(bytes) => bytes
            .zero_points
            .check("zero points of the left operand", shape[2]),
        BytesLeft::Packed(packed) if packed.0.across != shape[2] => {
            Err(mismatch("packed left rows", packed.0.across, shape[2]))
        }
        BytesLeft::Packed(packed) if packed.0.isa != isa => {
            Err(mismatch("packed left operand", packed.0.isa, isa))
        }
        BytesLeft::Packed(_) => Ok(()),
    }
}

fn check_right(isa: Isa, right: &BytesRight, shape: [usize; 4]) -> Result<()> {
    match right {
        BytesRight::View(bytes) if bytes.view.shape() != shape => Err(mismatch(
            "right operand of a product",
            bytes.view.shape(),
            shape,
        )),
        BytesRight::View(bytes) => bytes
            .zero_points
            .check("zero points of the right operand", shape[3]),
        BytesRight::Packed(packed) if [packed.0.inner, packed.0.across] != shape[2..] => {
            Err(mismatch(
                "packed right operand",
                [packed.0.inner, packed.0.across],
                &shape[2..],
            ))
        }
        BytesRight::Packed(packed) if packed.0.isa != isa => {
            Err(mismatch("packed right operand", packed.0.isa, isa))
        }
        BytesRight::Packed(_) => Ok(()),
    }
}

/// An operand of one matrix.
enum One<'a> {
    Operand(Operand<'a>),
    Packed(&'a PackedBytes),
}

unsafe fn one_product(
    cx: &Context,
    left: &One,
    right: &One,
    [rows, inner, cols]: [usize; 3],
    target: Target<i32>,
    user: Option<Epilogue<i32>>,
    batch: usize,
) -> Result<()> {
    let isa = cx.isa;
    let (own_left, own_right);
    let (left_pack, right_pack);
    let is_zero = |one: &One| match one {
        One::Operand(operand) => operand.points(isa).is_zero(),
        One::Packed(packed) => packed.correction.points.is_zero(),
    };
    let (left_zero, right_zero) = (is_zero(left), is_zero(right));
    let (left, left_correction) = match left {
        One::Operand(operand) => {
            own_left = operand.correction(isa, !right_zero);
            left_pack = move |panel: &Panel<u32>| operand.pack(isa, panel);
            (Left::Pack(&left_pack), &own_left)
        }
        One::Packed(packed) => (Left::Packed(packed.words.placed()), &packed.correction),
    };
    let (right, right_correction) = match right {
        One::Operand(operand) => {
            own_right = operand.correction(isa, !left_zero);
            right_pack = move |panel: &Panel<u32>| operand.pack(isa, panel);
            (Right::Pack(&right_pack), &own_right)
        }
        One::Packed(packed) => (Right::Packed(packed.words.placed()), &packed.correction),
    };
    let correct = |part: Finished<i32>| {
        // SAFETY: the driver hands out the part for exclusive use.
        unsafe { correct(isa, &part, left_correction, right_correction) };
        if let Some(user) = user {
            user(part);
        }
    };
    let epilogue: Option<Epilogue<i32>> = match left_zero && right_zero {
        true => user,
        false => Some(&correct),
    };
    let words = inner.div_ceil(group(isa));
    let product = Product {
        rows,
        cols,
        inner: words,
        left,
        right,
        target,
        epilogue,
        batch,
    };
    let tiles = if isa.vnni() {
        ByteQuads::set(isa)
    } else {
        BytePairs::set(isa)
    };
    // SAFETY: passed on.
    unsafe { product.run(cx, &tiles) }
}

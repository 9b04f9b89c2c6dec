//! Matrix products: `c[b, m, n] (+)= sum over k of a[b, m, k] * b[b, k, n]`.
//!
//! Operands may be strided in any way or packed ahead of time; f16 and bf16 are accumulated in f32, integers modulo 2^32 or
//! 2^64, 8-bit integers with zero points in i32 ([`multiply_bytes`]). The result does not depend on the number of threads.
//!
//! Reading order: `tile` (the register tile), `formats` (number formats by level), `pack`, `packed`, `windows`, `driver` (blocking and
//! threads), `block` (the order of tiles), `own_rows` (packed right operands), `packed_first` (products that only an epilogue sees), `deep` (long inner dimensions), `lines` (windows in place), `numbers`, `dots` (without packing), this file
//! (operands and batches), `bytes` and `correction` (8-bit integers), `quantised` (block-quantised weights).

mod block;
mod bytes;
pub(crate) mod correction;
mod deep;
mod dots;
pub(crate) mod driver;
pub(crate) mod formats;
mod lines;
pub(crate) mod numbers;
mod own_rows;
pub(crate) mod pack;
pub(crate) mod packed;
mod packed_first;
mod quantised;
pub(crate) mod tile;
pub(crate) mod windows;

#[cfg(test)]
mod tests;

use std::any::TypeId;
use std::marker::PhantomData;

use half::{bf16, f16};

pub use bytes::{
    Bytes, BytesLeft, BytesRight, PackedBytesLeft, PackedBytesRight, ZeroPoints, multiply_bytes,
};
pub use dots::few;
pub use driver::{Epilogue, Finished};
pub use lines::multiply_windows;
pub use quantised::{Activations, BlockNumber, BlockOutput, PackedBlocks, multiply_blocks};
pub use windows::Windows;

use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::view::{Element, Shared, View, ViewMut, mismatch};
use driver::Target;
use numbers::Multiply;
use pack::Strided;
use packed::Packed;

/// A type that [`multiply`] takes: `f32`, `f64`, `f16`, `bf16`, `i32`, `u32`, `i64`, `u64`.
pub trait Number: Element + Multiply {}
impl<T: Element + Multiply> Number for T {}

/// A 16-bit float that f32 is multiplied by: `f16` or `bf16`.
pub trait Half: Element + numbers::Narrow {}
impl<T: Element + numbers::Narrow> Half for T {}

/// The accumulator and result type of a [`Number`]: `f32` for the 16-bit floats, else the number itself.
pub type Sum<T> = <T as Multiply>::Sum;

/// The left operand, `[batch, batch, rows, inner]`.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a, T> {
    /// In memory.
    View(View<'a, T, 4>),
    /// In memory as f32, to be rounded to `T`, a float of 16 bits.
    Wide(View<'a, f32, 4>),
    /// Elements of windows; a batch of one.
    Windows(Windows<'a, T>),
    /// As [`Left::Windows`], in memory as f32, to be rounded to `T`, a float of 16 bits.
    WideWindows(Windows<'a, f32>),
    /// Packed, the same one for the whole batch.
    Packed(&'a PackedLeft<T>),
}

/// The right operand, `[batch, batch, inner, cols]`.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a, T> {
    /// In memory.
    View(View<'a, T, 4>),
    /// In memory as f32, to be rounded to `T`, a float of 16 bits.
    Wide(View<'a, f32, 4>),
    /// Packed, the same one for the whole batch.
    Packed(&'a PackedRight<T>),
}

/// Where the product goes, `[batch, batch, rows, cols]`; neighbouring columns must be neighbours in memory.
#[derive(Debug)]
pub enum Output<'a, T: Number> {
    /// Overwrite.
    Store(ViewMut<'a, Sum<T>, 4>),
    /// Add to what is there.
    Add(ViewMut<'a, Sum<T>, 4>),
    /// Overwrite, rounded to the operands' type after the epilogue has seen the accumulators.
    Narrow(ViewMut<'a, T, 4>),
    /// Nowhere: the epilogue takes what it needs. The value is the shape.
    Discard([usize; 4]),
}

/// A left operand packed ahead of time for one [`Isa`].
#[derive(Debug)]
pub struct PackedLeft<T> {
    panels: AnyPacked,
    isa: Isa,
    rows: usize,
    inner: usize,
    number: PhantomData<T>,
}

/// A right operand packed ahead of time for one [`Isa`]; 16-bit floats stay 16 bits wide.
#[derive(Debug)]
pub struct PackedRight<T> {
    panels: AnyPacked,
    isa: Isa,
    inner: usize,
    cols: usize,
    number: PhantomData<T>,
}

#[derive(Debug)]
pub(crate) enum AnyPacked {
    F32(Packed<f32>),
    F64(Packed<f64>),
    F16(Packed<f16>),
    Bf16(Packed<bf16>),
    Words(Packed<u32>),
    I32(Packed<i32>),
    I64(Packed<i64>),
}

impl AnyPacked {
    fn size(&self) -> usize {
        match self {
            AnyPacked::F32(packed) => packed.size(),
            AnyPacked::F64(packed) => packed.size(),
            AnyPacked::F16(packed) => packed.size(),
            AnyPacked::Bf16(packed) => packed.size(),
            AnyPacked::Words(packed) => packed.size(),
            AnyPacked::I32(packed) => packed.size(),
            AnyPacked::I64(packed) => packed.size(),
        }
    }
}

impl<T: Number> PackedLeft<T> {
    /// Packs `source`, `[rows, inner]`, for use at the context's level. Error: out of memory.
    pub fn new(cx: &Context, source: View<'_, T, 2>) -> Result<PackedLeft<T>> {
        let [rows, inner] = source.shape();
        let panels = T::pack_left(cx, &left_of(&source.batched(), 0), rows)?;
        Ok(PackedLeft {
            panels,
            isa: cx.isa,
            rows,
            inner,
            number: PhantomData,
        })
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.panels.size()
    }
}

impl<T: Number> PackedRight<T> {
    /// Packs `source`, `[inner, cols]`, for use at the context's level. Error: out of memory.
    pub fn new(cx: &Context, source: View<'_, T, 2>) -> Result<PackedRight<T>> {
        PackedRight::by(cx, source, T::pack_right)
    }

    /// Bytes taken.
    pub fn size(&self) -> usize {
        self.panels.size()
    }
}

impl PackedRight<f32> {
    /// Packs `source`, `[inner, cols]`, as it is, to be widened when it is multiplied by f32. Error: out of memory.
    pub fn narrow<T: Half>(cx: &Context, source: View<'_, T, 2>) -> Result<PackedRight<f32>> {
        PackedRight::by(cx, source, T::pack_narrow)
    }
}

impl<T> PackedRight<T> {
    /// Packs elements of `E` by `pack`, to be multiplied by `T`.
    fn by<E: Element>(
        cx: &Context,
        source: View<'_, E, 2>,
        pack: impl Fn(&Context, &Strided<E>, usize) -> Result<AnyPacked>,
    ) -> Result<PackedRight<T>> {
        let [inner, cols] = source.shape();
        Ok(PackedRight {
            panels: pack(cx, &right_of(&source.batched(), 0), cols)?,
            isa: cx.isa,
            inner,
            cols,
            number: PhantomData,
        })
    }
}

impl<'a, T: Element> View<'a, T, 2> {
    /// The matrix as a batch of one.
    pub fn batched(&self) -> View<'a, T, 4> {
        let ([rows, cols], [row, col]) = (self.shape(), self.strides());
        // SAFETY: the same elements; extents of 1 add none.
        unsafe { View::from_raw(self.as_ptr(), [1, 1, rows, cols], [0, 0, row, col]) }
    }
}

impl<'a, T: Element> ViewMut<'a, T, 2> {
    /// The matrix as a batch of one.
    pub fn batched(self) -> ViewMut<'a, T, 4> {
        let ([rows, cols], [row, col]) = (self.shape(), self.strides());
        // SAFETY: the same elements, given up by `self`; extents of 1 add none.
        unsafe { ViewMut::from_raw(self.as_ptr(), [1, 1, rows, cols], [0, 0, row, col]) }
    }
}

/// Computes the product of `left` and `right` into `output`.
///
/// Batch extents must agree; repeat an operand by a stride of 0. Rows of a batch that share the right operand are faster as one
/// matrix: views whose strides allow it are merged here when there is no epilogue. NaN and infinity propagate; the order of
/// summation is fixed by the shapes and the [`Isa`].
///
/// Errors: extents that do not agree, an operand packed for another level, columns of the output that are not neighbours, out of
/// memory.
pub fn multiply<T: Number>(
    cx: &Context,
    left: Left<'_, T>,
    right: Right<'_, T>,
    output: Output<'_, T>,
    epilogue: Option<Epilogue<'_, Sum<T>>>,
) -> Result<()> {
    let shape = match &output {
        Output::Store(view) | Output::Add(view) => view.shape(),
        Output::Narrow(view) => view.shape(),
        Output::Discard(shape) => *shape,
    };
    let inner = check_operands(cx.isa, &left, &right, shape)?;
    let problem = Problem {
        left,
        right,
        output: RawOutput::new(output, shape)?,
        shape,
        inner,
        epilogue,
    }
    .merged();
    for_each_matrix(cx, &problem, |batch| problem.one(cx, batch))
}

/// The inner extent, if everything agrees.
fn check_operands<T: Number>(
    isa: Isa,
    left: &Left<T>,
    right: &Right<T>,
    shape: [usize; 4],
) -> Result<usize> {
    let [outer, batch, rows, cols] = shape;
    let shape = match left {
        Left::View(view) => view.shape(),
        Left::Wide(view) => view.shape(),
        Left::Windows(windows) => [1, 1, windows.rows(), windows.inner()],
        Left::WideWindows(windows) => [1, 1, windows.rows(), windows.inner()],
        Left::Packed(packed) => [outer, batch, rows, packed.inner],
    };
    let inner = shape[3];
    if shape != [outer, batch, rows, inner] {
        return Err(mismatch(
            "left operand of a product",
            shape,
            [outer, batch, rows, inner],
        ));
    }
    match left {
        Left::Packed(packed) if packed.rows != rows => {
            return Err(mismatch("packed left rows", packed.rows, rows));
        }
        Left::Packed(packed) if packed.isa != isa => {
            return Err(mismatch("packed left operand", packed.isa, isa));
        }
        _ => {}
    }
    let seen = match right {
        Right::View(view) => view.shape(),
        Right::Wide(view) => view.shape(),
        Right::Packed(packed) => [outer, batch, packed.inner, packed.cols],
    };
    match right {
        _ if seen != [outer, batch, inner, cols] => Err(mismatch(
            "right operand of a product",
            seen,
            [outer, batch, inner, cols],
        )),
        Right::Packed(packed) if packed.isa != isa => {
            Err(mismatch("packed right operand", packed.isa, isa))
        }
        _ => Ok(inner),
    }
}

/// An output as addresses.
#[derive(Debug, Clone, Copy)]
struct RawOutput<T: Number> {
    kind: OutputKind<T>,
    /// Elements between batches and rows.
    strides: [usize; 3],
}

#[derive(Debug, Clone, Copy)]
enum OutputKind<T: Number> {
    Store(Shared<Sum<T>>),
    Add(Shared<Sum<T>>),
    Narrow(Shared<T>),
    Discard,
}

impl<T: Number> RawOutput<T> {
    fn new(output: Output<'_, T>, shape: [usize; 4]) -> Result<RawOutput<T>> {
        let (kind, strides) = match output {
            Output::Store(view) => (OutputKind::Store(Shared(view.as_ptr())), view.strides()),
            Output::Add(view) => (OutputKind::Add(Shared(view.as_ptr())), view.strides()),
            Output::Narrow(view) if TypeId::of::<T>() == TypeId::of::<Sum<T>>() => (
                OutputKind::Store(Shared(view.as_ptr().cast())),
                view.strides(),
            ),
            Output::Narrow(view) => (OutputKind::Narrow(Shared(view.as_ptr())), view.strides()),
            Output::Discard(_) => (OutputKind::Discard, [0, 0, 0, 1]),
        };
        let [outer, batch, row, col] = strides;
        if col != 1 && shape[3] > 1 {
            return Err(mismatch("column stride of a product's output", col, 1));
        }
        Ok(RawOutput {
            kind,
            strides: [outer, batch, row],
        })
    }
}

struct Problem<'a, T: Number> {
    left: Left<'a, T>,
    right: Right<'a, T>,
    output: RawOutput<T>,
    shape: [usize; 4],
    inner: usize,
    epilogue: Option<Epilogue<'a, Sum<T>>>,
}

/// Runs `one` for every matrix of the batch: small ones side by side, large ones one after the other with all threads each.
fn for_each_matrix<T: Number>(
    cx: &Context,
    problem: &Problem<T>,
    one: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let [outer, batch, rows, cols] = problem.shape;
    let count = outer * batch;
    let steps = rows.saturating_mul(cols).saturating_mul(problem.inner);
    let fills_threads = count >= 4 * cx.pool.threads() || (count > 1 && steps < BATCH_STEPS);
    if fills_threads && steps.saturating_mul(count) >= BATCH_STEPS_TOTAL {
        cx.try_run(count, one)
    } else {
        (0..count).try_for_each(one)
    }
}

/// Multiplications of one matrix below which matrices of a batch are computed side by side.
const BATCH_STEPS: usize = 1 << 22;
/// Multiplications of all matrices below which nothing is divided among threads.
const BATCH_STEPS_TOTAL: usize = 1 << 17;

impl<T: Number> Problem<'_, T> {
    /// The same problem with batch dimensions merged into the rows, where the right operand is shared, the strides allow it and
    /// no epilogue would notice.
    fn merged(mut self) -> Self {
        for d in [1, 0] {
            let [extent, rows] = [self.shape[d], self.shape[2]];
            let strides = match &self.left {
                Left::View(left) => left.strides(),
                Left::Wide(left) => left.strides(),
                Left::Windows(_) | Left::WideWindows(_) | Left::Packed(_) => break,
            };
            if self.epilogue.is_some() {
                break;
            }
            let shared = match &self.right {
                Right::View(right) => right.strides()[d] == 0,
                Right::Wide(right) => right.strides()[d] == 0,
                Right::Packed(_) => true,
            };
            let (mut from, to) = (strides, &mut self.output.strides);
            let even = rows == 1 || (from[d] == rows * from[2] && to[d] == rows * to[2]);
            if extent == 1 {
                continue;
            }
            if extent == 0 || !shared || !even || matches!(self.output.kind, OutputKind::Discard) {
                break;
            }
            if rows == 1 {
                (from[2], to[2]) = (from[d], to[d]);
            }
            self.shape[d] = 1;
            self.shape[2] = rows * extent;
            let [outer, batch, rows, _] = self.shape;
            let shape = [outer, batch, rows, self.inner];
            // SAFETY: the same elements in another numbering.
            self.left = unsafe {
                match self.left {
                    Left::View(left) => Left::View(View::from_raw(left.as_ptr(), shape, from)),
                    Left::Wide(left) => Left::Wide(View::from_raw(left.as_ptr(), shape, from)),
                    other => other,
                }
            };
        }
        self
    }

    /// Computes matrix `index` of the batch.
    fn one(&self, cx: &Context, index: usize) -> Result<()> {
        let [_, batch, rows, cols] = self.shape;
        let (outer, inner) = (index / batch, index % batch);
        let offset = |strides: [usize; 3]| outer * strides[0] + inner * strides[1];
        let row_stride = self.output.strides[2];
        let place = offset(self.output.strides);
        let narrow;
        let (target, epilogue): (_, Option<Epilogue<Sum<T>>>) = match self.output.kind {
            OutputKind::Store(to) => (
                Target::Store {
                    to: Shared(to.get().wrapping_add(place)),
                    row_stride,
                },
                self.epilogue,
            ),
            OutputKind::Add(to) => (
                Target::Add {
                    to: Shared(to.get().wrapping_add(place)),
                    row_stride,
                },
                self.epilogue,
            ),
            OutputKind::Discard => (Target::Discard, self.epilogue),
            OutputKind::Narrow(to) => {
                let isa = cx.isa;
                let user = self.epilogue;
                narrow = move |part: Finished<Sum<T>>| {
                    if let Some(user) = user {
                        user(part);
                    }
                    for row in 0..part.rows {
                        let to = to
                            .get()
                            .wrapping_add(place + (part.row + row) * row_stride + part.col);
                        // SAFETY: the part lies inside the output, whose view is exclusively ours.
                        unsafe {
                            T::narrow_row(isa, part.start.add(row * part.row_stride), to, part.cols)
                        };
                    }
                };
                (Target::Discard, Some(&narrow))
            }
        };
        let matrix = Matrix {
            left: match &self.left {
                Left::View(view) => OneLeft::Strided(left_of(view, offset(batch_strides(view)))),
                Left::Wide(view) => OneLeft::Wide(left_of(view, offset(batch_strides(view)))),
                Left::Windows(windows) => OneLeft::Windows(windows),
                Left::WideWindows(windows) => OneLeft::WideWindows(windows),
                Left::Packed(packed) => OneLeft::Packed(&packed.panels),
            },
            right: match &self.right {
                Right::View(view) => OneRight::Strided(right_of(view, offset(batch_strides(view)))),
                Right::Wide(view) => OneRight::Wide(right_of(view, offset(batch_strides(view)))),
                Right::Packed(packed) => OneRight::Packed(&packed.panels),
            },
            rows,
            cols,
            inner: self.inner,
            target,
            epilogue,
            batch: index,
        };
        // SAFETY: `multiply` has checked that the views' shapes agree, and the views vouch for their elements.
        unsafe { T::multiply(cx, &matrix) }
    }
}

fn batch_strides<T: Element>(view: &View<'_, T, 4>) -> [usize; 3] {
    let [outer, batch, ..] = view.strides();
    [outer, batch, 0]
}

fn left_of<T: Element>(view: &View<'_, T, 4>, offset: usize) -> Strided<T> {
    let ([.., inner], [_, _, across, along]) = (view.shape(), view.strides());
    Strided {
        from: view.as_ptr().wrapping_add(offset),
        across,
        along,
        inner,
    }
}

fn right_of<T: Element>(view: &View<'_, T, 4>, offset: usize) -> Strided<T> {
    let ([_, _, inner, _], [_, _, along, across]) = (view.shape(), view.strides());
    Strided {
        from: view.as_ptr().wrapping_add(offset),
        across,
        along,
        inner,
    }
}

/// One matrix of a batch.
pub(crate) struct Matrix<'a, T: Number> {
    left: OneLeft<'a, T>,
    right: OneRight<'a, T>,
    rows: usize,
    cols: usize,
    inner: usize,
    target: Target<Sum<T>>,
    epilogue: Option<Epilogue<'a, Sum<T>>>,
    batch: usize,
}

enum OneLeft<'a, T> {
    Strided(Strided<T>),
    /// To be rounded to `T`.
    Wide(Strided<f32>),
    Windows(&'a Windows<'a, T>),
    /// To be rounded to `T`.
    WideWindows(&'a Windows<'a, f32>),
    Packed(&'a AnyPacked),
}

enum OneRight<'a, T> {
    Strided(Strided<T>),
    /// To be rounded to `T`.
    Wide(Strided<f32>),
    Packed(&'a AnyPacked),
}

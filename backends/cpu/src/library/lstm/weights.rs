//! Matrices of weights in f32 or bf16, multiplied by f32; for bf16 the other operand is rounded too.

use half::bf16;

use crate::error::Result;
use crate::library::Context;
use crate::library::gemm::{Epilogue, Left, Output, PackedRight, Right, multiply};
use crate::library::view::{Element, View, ViewMut};

/// Weights in memory, `[rows, inner]`: a product has one column for each of their rows.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// Taken as they are.
    F32(View<'a, f32, 2>),
    /// Multiplied by bf16.
    Bf16(View<'a, bf16, 2>),
}

/// Weights packed ahead of time for one [`Isa`].
#[derive(Debug)]
pub enum PackedWeights {
    /// Taken as they are.
    F32(PackedRight<f32>),
    /// Multiplied by bf16.
    Bf16(PackedRight<bf16>),
}

impl Weights<'_> {
    /// Rows and inner extent.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Weights::F32(view) => view.shape(),
            Weights::Bf16(view) => view.shape(),
        }
    }

    /// Packs `count` rows from `first` on. Error: out of memory.
    ///
    /// # Panics
    /// In debug builds, when there are not so many rows.
    pub(super) fn pack_rows(
        &self,
        cx: &Context,
        first: usize,
        count: usize,
    ) -> Result<PackedWeights> {
        debug_assert!(first + count <= self.shape()[0]);
        Ok(match self {
            Weights::F32(view) => {
                let columns = columns(view, first, count);
                PackedWeights::F32(PackedRight::new(cx, columns)?)
            }
            Weights::Bf16(view) => {
                let columns = columns(view, first, count);
                PackedWeights::Bf16(PackedRight::new(cx, columns)?)
            }
        })
    }

    /// Packs all rows. Error: out of memory.
    pub fn pack(&self, cx: &Context) -> Result<PackedWeights> {
        self.pack_rows(cx, 0, self.shape()[0])
    }

    /// As the right operand of a product.
    pub fn factor(&self) -> Factor<'_> {
        match self {
            Weights::F32(view) => Factor::F32(Right::View(view.permuted([1, 0]).batched())),
            Weights::Bf16(view) => Factor::Bf16(Right::View(view.permuted([1, 0]).batched())),
        }
    }
}

/// Rows of a matrix, seen as columns.
fn columns<'a, T: Element>(view: &View<'a, T, 2>, first: usize, count: usize) -> View<'a, T, 2> {
    let ([_, inner], [row, col]) = (view.shape(), view.strides());
    let start = view.as_ptr().wrapping_add(first * row);
    // SAFETY: the rows are among those of the view.
    unsafe { View::from_raw(start, [inner, count], [col, row]) }
}

impl PackedWeights {
    /// Bytes taken.
    pub fn size(&self) -> usize {
        match self {
            PackedWeights::F32(packed) => packed.size(),
            PackedWeights::Bf16(packed) => packed.size(),
        }
    }

    /// As the right operand of a product.
    pub fn factor(&self) -> Factor<'_> {
        match self {
            PackedWeights::F32(packed) => Factor::F32(Right::Packed(packed)),
            PackedWeights::Bf16(packed) => Factor::Bf16(Right::Packed(packed)),
        }
    }
}

/// Weights as the right operand of a product.
#[derive(Debug, Clone, Copy)]
pub enum Factor<'a> {
    /// Taken as they are.
    F32(Right<'a, f32>),
    /// Multiplied by bf16.
    Bf16(Right<'a, bf16>),
}

impl Factor<'_> {
    /// `output = left * weights^T`. Errors: as [`multiply`].
    pub fn multiply(
        self,
        cx: &Context,
        left: View<'_, f32, 4>,
        output: ViewMut<'_, f32, 4>,
        epilogue: Option<Epilogue<'_, f32>>,
    ) -> Result<()> {
        match self {
            Factor::F32(right) => {
                multiply(cx, Left::View(left), right, Output::Store(output), epilogue)
            }
            Factor::Bf16(right) => {
                multiply(cx, Left::Wide(left), right, Output::Store(output), epilogue)
            }
        }
    }
}

//! Strided views of memory: what kernels read and write.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::error::{Error, Result};

mod sealed {
    pub trait Sealed {}
}

/// A number type that tensors are stored in.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Send + Sync + std::fmt::Debug + PartialEq
{
}

macro_rules! elements {
    ($($type:ty),*) => {
        $(impl sealed::Sealed for $type {}
        impl Element for $type {})*
    };
}
elements!(f32, f64, f16, bf16, i8, u8, i16, u16, i32, u32, i64, u64);

/// Read-only elements at `offset = sum(index[d] * strides[d])`, `index[d] < shape[d]`. Strides are in elements; 0 broadcasts.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T, const N: usize> {
    start: *const T,
    shape: [usize; N],
    strides: [usize; N],
    lifetime: PhantomData<&'a [T]>,
}

/// Like [`View`], for writing: distinct indices are distinct elements.
#[derive(Debug)]
pub struct ViewMut<'a, T, const N: usize> {
    start: *mut T,
    shape: [usize; N],
    strides: [usize; N],
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a View only reads and stands for `&[T]`.
unsafe impl<T: Sync, const N: usize> Send for View<'_, T, N> {}
// SAFETY: as above.
unsafe impl<T: Sync, const N: usize> Sync for View<'_, T, N> {}
// SAFETY: a ViewMut stands for `&mut [T]`.
unsafe impl<T: Send, const N: usize> Send for ViewMut<'_, T, N> {}
// SAFETY: shared access to a ViewMut gives no access to elements except through raw pointers.
unsafe impl<T: Sync, const N: usize> Sync for ViewMut<'_, T, N> {}

/// Strides of a dense row-major array, or None on overflow. Zero extents count as 1.
pub fn dense_strides<const N: usize>(shape: [usize; N]) -> Option<[usize; N]> {
    let mut strides = [1; N];
    let mut size = 1usize;
    for d in (0..N).rev() {
        strides[d] = size;
        size = size.checked_mul(shape[d].max(1))?;
    }
    Some(strides)
}

/// Elements from the first to the last one of a view, both included; 0 for an empty view, None on overflow.
fn extent(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for (&len, &stride) in shape.iter().zip(strides) {
        last = last.checked_add((len - 1).checked_mul(stride)?)?;
    }
    last.checked_add(1)
}

/// Whether distinct indices give distinct offsets. Sufficient, not necessary: each dimension steps over all inner ones.
fn is_injective(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut dims: Vec<(usize, usize)> = strides
        .iter()
        .copied()
        .zip(shape.iter().copied())
        .filter(|d| d.1 > 1)
        .collect();
    dims.sort_unstable();
    let mut reach = 0;
    dims.into_iter().all(|(stride, len)| {
        let free = stride > reach;
        reach += stride * (len - 1);
        free
    })
}

fn check_extent(what: &'static str, shape: &[usize], strides: &[usize], len: usize) -> Result<()> {
    match extent(shape, strides) {
        Some(needed) if needed <= len => Ok(()),
        _ => Err(Error::Operand {
            what,
            reason: format!(
                "shape {shape:?} with strides {strides:?} does not fit into {len} elements"
            ),
        }),
    }
}

impl<'a, T: Element, const N: usize> View<'a, T, N> {
    /// A view of `data` from its first element on. Error, naming `what`: it reaches beyond `data`.
    pub fn new(
        what: &'static str,
        data: &'a [T],
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self> {
        check_extent(what, &shape, &strides, data.len())?;
        Ok(View {
            start: data.as_ptr(),
            shape,
            strides,
            lifetime: PhantomData,
        })
    }

    /// A dense row-major view. Error, naming `what`: `data` is shorter than the product of `shape`.
    pub fn dense(what: &'static str, data: &'a [T], shape: [usize; N]) -> Result<Self> {
        Self::new(what, data, shape, strides_or_error(what, shape)?)
    }

    /// A view from a raw address.
    ///
    /// # Safety
    /// Every element of the view must be readable and initialised for `'a`, and not written meanwhile.
    pub const unsafe fn from_raw(start: *const T, shape: [usize; N], strides: [usize; N]) -> Self {
        View {
            start,
            shape,
            strides,
            lifetime: PhantomData,
        }
    }

    /// Extents.
    pub const fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// Distances between neighbours, in elements.
    pub const fn strides(&self) -> [usize; N] {
        self.strides
    }

    /// Address of the first element.
    pub const fn as_ptr(&self) -> *const T {
        self.start
    }

    /// The element at `index`. Panics when out of range; not for inner loops.
    pub fn at(&self, index: [usize; N]) -> T {
        assert!(
            index.iter().zip(&self.shape).all(|(i, len)| i < len),
            "{index:?} in {:?}",
            self.shape
        );
        let offset: usize = index
            .iter()
            .zip(&self.strides)
            .map(|(i, stride)| i * stride)
            .sum();
        // SAFETY: the index is inside the view, whose elements are readable.
        unsafe { *self.start.add(offset) }
    }

    /// The same elements with dimensions in another order; `order` is a permutation.
    pub fn permuted(&self, order: [usize; N]) -> Self {
        View {
            shape: order.map(|d| self.shape[d]),
            strides: order.map(|d| self.strides[d]),
            ..*self
        }
    }
}

impl<'a, T: Element, const N: usize> ViewMut<'a, T, N> {
    /// A writable view of `data`. Errors, naming `what`: it reaches beyond `data`, or elements may overlap.
    pub fn new(
        what: &'static str,
        data: &'a mut [T],
        shape: [usize; N],
        strides: [usize; N],
    ) -> Result<Self> {
        check_extent(what, &shape, &strides, data.len())?;
        if !is_injective(&shape, &strides) {
            let reason = format!("shape {shape:?} with strides {strides:?} overlaps itself");
            return Err(Error::Operand { what, reason });
        }
        Ok(ViewMut {
            start: data.as_mut_ptr(),
            shape,
            strides,
            lifetime: PhantomData,
        })
    }

    /// A dense row-major writable view. Error, naming `what`: `data` is shorter than the product of `shape`.
    pub fn dense(what: &'static str, data: &'a mut [T], shape: [usize; N]) -> Result<Self> {
        Self::new(what, data, shape, strides_or_error(what, shape)?)
    }

    /// A writable view from a raw address.
    ///
    /// # Safety
    /// Every element of the view must be writable and initialised for `'a` and accessed only through this view meanwhile, and
    /// distinct indices must be distinct elements.
    pub const unsafe fn from_raw(start: *mut T, shape: [usize; N], strides: [usize; N]) -> Self {
        ViewMut {
            start,
            shape,
            strides,
            lifetime: PhantomData,
        }
    }

    /// Extents.
    pub const fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// Distances between neighbours, in elements.
    pub const fn strides(&self) -> [usize; N] {
        self.strides
    }

    /// Address of the first element.
    pub const fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// A shorter loan of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_, T, N> {
        ViewMut {
            start: self.start,
            shape: self.shape,
            strides: self.strides,
            lifetime: PhantomData,
        }
    }
}

fn strides_or_error<const N: usize>(what: &'static str, shape: [usize; N]) -> Result<[usize; N]> {
    dense_strides(shape).ok_or_else(|| Error::Operand {
        what,
        reason: format!("shape {shape:?} is too large"),
    })
}

/// The error for two operands that do not agree.
pub(crate) fn mismatch(
    what: &'static str,
    got: impl std::fmt::Debug,
    wanted: impl std::fmt::Debug,
) -> Error {
    Error::Operand {
        what,
        reason: format!("is {got:?}, must be {wanted:?}"),
    }
}

/// A raw pointer that threads of one region may share. Whoever follows it answers for disjoint or read-only access.
#[derive(Debug)]
pub(crate) struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}
// SAFETY: see the type: the users of the address answer for it.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address; a method, so that closures capture the whole wrapper.
    pub fn get(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked() {
        let data = [0f32; 12];
        assert!(View::dense("x", &data, [3, 4]).is_ok());
        assert!(View::dense("x", &data, [3, 5]).is_err());
        assert!(View::new("x", &data, [3, 4], [1, 3]).is_ok());
        assert!(View::new("x", &data, [3, 4], [2, 3]).is_err());
        assert!(View::new("x", &data, [1000, 12], [0, 1]).is_ok());
        assert!(View::new("x", &data, [0, usize::MAX], [usize::MAX, usize::MAX]).is_ok());
        assert!(View::new("x", &data, [usize::MAX, 2], [usize::MAX, 1]).is_err());
        assert!(View::dense("x", &data, [usize::MAX, usize::MAX]).is_err());
        assert!(View::dense("x", &data, []).is_ok());
    }

    #[test]
    fn written_elements_do_not_overlap() {
        let mut data = [0f32; 12];
        assert!(ViewMut::dense("x", &mut data, [2, 6]).is_ok());
        assert!(ViewMut::new("x", &mut data, [2, 6], [0, 1]).is_err());
        assert!(ViewMut::new("x", &mut data, [2, 3], [2, 1]).is_err());
        assert!(ViewMut::new("x", &mut data, [1, 3], [0, 4]).is_ok());
    }

    #[test]
    fn elements_and_permutation() {
        let data: Vec<i32> = (0..24).collect();
        let view = View::dense("x", &data, [2, 3, 4]).expect("fits");
        assert_eq!(view.at([1, 2, 3]), 23);
        let turned = view.permuted([2, 0, 1]);
        assert_eq!(turned.shape(), [4, 2, 3]);
        assert_eq!(turned.at([3, 1, 2]), 23);
    }
}

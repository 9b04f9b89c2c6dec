//! Views of buffers at launch: address, extents, strides.

use crate::device::Argument;
use crate::error::Result;
use crate::library::Context;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::Shared;
use crate::memory::Lent;
use crate::schedule::extent;
use cupola_ir::kernel::View;
use cupola_ir::{BlockFormat, DType};
use half::{bf16, f16};
use smallvec::{SmallVec, smallvec};
use std::marker::PhantomData;
use std::ops::Range;

/// Numbers by axis; more axes than usual take an allocation.
pub(crate) type Extents<T> = SmallVec<[T; 6]>;

/// A strided view with an address.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub dtype: DType,
    /// The type in which a kernel takes the elements.
    pub read: DType,
    /// Address of the element at index 0.
    pub start: *mut u8,
    pub dims: Extents<usize>,
    /// Elements from one index to the next.
    pub strides: Extents<isize>,
}

impl Operand {
    /// Puts a view on its buffer; the elements it reaches must lie inside.
    pub(crate) fn bind(
        view: &View,
        argument: &Argument,
        sizes: &[i64],
    ) -> std::result::Result<Operand, String> {
        let offset = extent(view.offset, sizes);
        if let DType::Block(format) = view.dtype {
            let dims: Extents<i64> = view.dims.iter().map(|e| extent(*e, sizes)).collect();
            return Operand::bind_blocks(view, format, argument, &dims, offset);
        }
        let size = view.dtype.size();
        let mut dims = Extents::with_capacity(view.dims.len());
        let mut strides = Extents::with_capacity(view.dims.len());
        // The first and the last element that are reached; nothing where a number overflows.
        let mut reach = Some((offset, offset));
        let (mut is_valid, mut is_empty) = (size > 0, false);
        for (d, s) in view.dims.iter().zip(&view.strides) {
            let (d, s) = (extent(*d, sizes), extent(*s, sizes));
            is_valid &= d >= 0;
            is_empty |= d == 0;
            reach = reach.and_then(|(low, high)| {
                let step = d.checked_sub(1)?.checked_mul(s)?;
                Some((
                    low.checked_add(step.min(0))?,
                    high.checked_add(step.max(0))?,
                ))
            });
            dims.push(d as usize);
            strides.push(s as isize);
        }
        if !is_valid {
            return Err(format!("extents {dims:?} of {}", view.dtype));
        }
        let len = argument.size / size;
        let is_inside = |(low, high): (i64, i64)| low >= 0 && high < len as i64;
        if !is_empty && !reach.is_some_and(is_inside) {
            return Err(format!(
                "extents {dims:?}, strides {strides:?} and offset {offset} reach outside {len} elements"
            ));
        }
        Ok(Operand {
            dtype: view.dtype,
            read: view.read,
            // Never followed when there is no element, so that it may point anywhere.
            start: argument
                .start
                .wrapping_offset((offset as isize).wrapping_mul(size as isize)),
            dims,
            strides,
        })
    }

    /// Puts a dense view of block-quantised rows on its buffer; strides count for nothing.
    fn bind_blocks(
        view: &View,
        format: BlockFormat,
        argument: &Argument,
        dims: &[i64],
        offset: i64,
    ) -> std::result::Result<Operand, String> {
        let extents: Option<Extents<usize>> =
            dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let size = extents.as_deref().and_then(|dims| {
            let (inner, outer) = dims.split_last()?;
            let rows = outer.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
            DType::Block(format).storage_size(rows, *inner)
        });
        match (extents, size) {
            (Some(dims), Some(size)) if size <= argument.size && offset == 0 => Ok(Operand {
                dtype: view.dtype,
                read: view.read,
                start: argument.start,
                strides: smallvec![0; dims.len()],
                dims,
            }),
            _ => Err(format!(
                "extents {dims:?} of {} at {offset} in {} bytes",
                view.dtype, argument.size
            )),
        }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// The same elements with axes in another order; axes not named are dropped (taken at index 0).
    pub(crate) fn permuted(&self, axes: &[usize]) -> Operand {
        Operand {
            dtype: self.dtype,
            read: self.read,
            start: self.start,
            dims: axes.iter().map(|a| self.dims[*a]).collect(),
            strides: axes.iter().map(|a| self.strides[*a]).collect(),
        }
    }

    /// Whether elements follow each other in row-major order.
    pub(crate) fn is_dense(&self) -> bool {
        let mut step = 1;
        let mut axes = self.dims.iter().zip(&self.strides).rev();
        axes.all(|(d, s)| {
            let follows = *d <= 1 || *s == step;
            step *= *d as isize;
            follows
        })
    }

    /// Whether some stride is negative where it matters.
    pub(crate) fn has_negative_stride(&self) -> bool {
        (self.dims.iter().zip(&self.strides)).any(|(d, s)| *d > 1 && *s < 0)
    }

    /// A dense row-major copy in scratch memory; of the first `repeated` axes those of stride 0 keep it.
    pub(crate) fn dense<'a>(
        &self,
        cx: &Context<'a>,
        repeated: usize,
    ) -> Result<(Operand, Lent<'a>)> {
        let kept: Extents<usize> = (self.dims.iter().zip(&self.strides).enumerate())
            .map(|(a, (d, s))| {
                if *s == 0 && a < repeated {
                    (*d).min(1)
                } else {
                    *d
                }
            })
            .collect();
        let mut strides: Extents<isize> = smallvec![0; kept.len()];
        let mut len = 1usize;
        for a in (0..kept.len()).rev() {
            strides[a] = if kept[a] > 1 { len as isize } else { 0 };
            len = len.saturating_mul(kept[a]);
        }
        let lent = cx
            .scratch
            .take::<u8>(len.saturating_mul(self.dtype.size()).max(64))?;
        let copy = Operand {
            dtype: self.dtype,
            read: self.read,
            start: lent.as_ptr(),
            dims: self.dims.clone(),
            strides,
        };
        let from = Operand {
            dims: kept.clone(),
            ..self.clone()
        };
        let to = Operand {
            dims: kept,
            ..copy.clone()
        };
        copy_elements(cx, &from, &to);
        Ok((copy, lent))
    }
}

impl Operand {
    /// A dense row-major copy of the type in which elements are taken; of the first `repeated` axes those of stride 0 keep it.
    pub(crate) fn converted<'a>(
        &self,
        cx: &Context<'a>,
        repeated: usize,
    ) -> Result<(Operand, Lent<'a>)> {
        let (copy, source) = self.dense(cx, repeated)?;
        let axes = copy.dims.iter().zip(&copy.strides);
        let len = axes.map(|(d, s)| if *s == 0 { (*d).min(1) } else { *d });
        let len: usize = len.product();
        let size = len.saturating_mul(self.read.size()).max(64);
        let target = cx.scratch.take::<u8>(size)?;
        let (from, to) = (Shared(source.as_ptr::<u8>()), Shared(target.as_ptr::<u8>()));
        let (stored, read) = (self.dtype, self.read);
        cx.pool.run_ranges(len, 1 << 14, |range| {
            let part = Part {
                from: from.get(),
                to: to.get(),
                range,
            };
            match stored {
                DType::F16 => part.read_as::<f16>(cx, read),
                DType::BF16 => part.read_as::<bf16>(cx, read),
                _ => part.read_as::<f32>(cx, read),
            }
        });
        let converted = Operand {
            dtype: self.read,
            start: target.as_ptr(),
            ..copy
        };
        Ok((converted, target))
    }
}

/// A range of elements to convert.
struct Part {
    from: *const u8,
    to: *mut u8,
    range: Range<usize>,
}

impl Part {
    /// Converts from `A` to one of the float types.
    fn read_as<A: Float>(self, cx: &Context, to: DType) {
        match to {
            DType::F16 => dispatch(cx.isa, Convert::<A, f16>(self, PhantomData)),
            DType::BF16 => dispatch(cx.isa, Convert::<A, bf16>(self, PhantomData)),
            _ => dispatch(cx.isa, Convert::<A, f32>(self, PhantomData)),
        }
    }
}

struct Convert<A, B>(Part, PhantomData<(A, B)>);

impl<A: Float, B: Float> Kernel for Convert<A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Part { from, to, range } = self.0;
        let (from, to) = (from.cast::<A>(), to.cast::<B>());
        for at in range.clone().step_by(S::LANES) {
            let len = (range.end - at).min(S::LANES);
            // SAFETY: both copies have as many elements, and ranges are disjoint.
            unsafe {
                let v = A::load_first_or_all(s, from.add(at), len);
                B::store_first_or_all(s, to.add(at), len, v);
            }
        }
    }
}

/// Copies elements between views of equal extents.
pub(crate) fn copy_elements(cx: &Context, from: &Operand, to: &Operand) {
    if from.dims.contains(&0) {
        return;
    }
    let axes = runs(from, to);
    let (outer, inner) = axes.split_at(axes.len().saturating_sub(2));
    let rows: usize = outer.iter().map(|a| a.0).product();
    let size = from.dtype.size();
    let row: usize = inner.iter().map(|a| a.0).product();
    let (source, target) = (Shared(from.start), Shared(to.start));
    cx.pool.run_ranges(rows, (1 << 15) / row.max(1), |range| {
        for at in range {
            let (mut rest, mut x, mut y) = (at, 0isize, 0isize);
            for (n, s, t) in outer.iter().rev() {
                let i = (rest % n) as isize;
                rest /= n;
                x += i * s;
                y += i * t;
            }
            let (x, y) = (
                source.get().wrapping_offset(x * size as isize),
                target.get().wrapping_offset(y * size as isize),
            );
            // SAFETY: the views lie inside their buffers (checked when bound) or in scratch memory of their length,
            // and different rows are different elements of the target.
            unsafe {
                match size {
                    1 => copy_plane::<u8>(x, y, inner),
                    2 => copy_plane::<u16>(x, y, inner),
                    4 => copy_plane::<u32>(x, y, inner),
                    _ => copy_plane::<u64>(x, y, inner),
                }
            }
        }
    });
}

/// Axes (extent, source stride, target stride) without those of one element, adjacent ones merged where possible.
fn runs(from: &Operand, to: &Operand) -> Vec<(usize, isize, isize)> {
    let mut axes: Vec<(usize, isize, isize)> = vec![];
    for ((n, s), t) in from.dims.iter().zip(&from.strides).zip(&to.strides) {
        if *n == 1 {
            continue;
        }
        match axes.last_mut() {
            Some(last) if last.1 == *s * *n as isize && last.2 == *t * *n as isize => {
                *last = (last.0 * n, *s, *t);
            }
            _ => axes.push((*n, *s, *t)),
        }
    }
    axes
}

/// Copies up to two axes of elements.
///
/// # Safety
/// The addressed elements must be readable and writable as `T`.
unsafe fn copy_plane<T: Copy>(from: *const u8, to: *mut u8, axes: &[(usize, isize, isize)]) {
    let (from, to) = (from.cast::<T>(), to.cast::<T>());
    let one = (1, 0, 0);
    let (outer, inner) = match axes {
        [] => (one, one),
        [a] => (one, *a),
        [a, b, ..] => (*a, *b),
    };
    for i in 0..outer.0 as isize {
        let (x, y) = (
            from.wrapping_offset(i * outer.1),
            to.wrapping_offset(i * outer.2),
        );
        if inner.1 == 1 && inner.2 == 1 {
            // SAFETY: the caller's contract.
            unsafe { x.copy_to_nonoverlapping(y, inner.0) };
            continue;
        }
        for k in 0..inner.0 as isize {
            // SAFETY: the caller's contract; scratch and buffers are aligned to elements.
            unsafe {
                y.wrapping_offset(k * inner.2)
                    .write_unaligned(x.wrapping_offset(k * inner.1).read_unaligned());
            }
        }
    }
}

/// Adjacent axes as one axis, when the strides allow it: extent and stride. No axes count as one element.
pub(crate) fn merged(dims: &[usize], strides: &[isize]) -> Option<(usize, isize)> {
    let mut whole: Option<(usize, isize)> = None;
    for (n, s) in dims.iter().zip(strides) {
        whole = match whole {
            _ if *n == 1 => whole,
            None => Some((*n, *s)),
            Some((m, t)) if t == *s * *n as isize => Some((m * n, *s)),
            Some(_) => return None,
        };
    }
    Some(whole.unwrap_or((1, 0)))
}

//! Pooling over one to three spatial dimensions: the largest element of each window, with its index if wanted, or the mean.
//!
//! `input` is `[batch, channels, depth, height, width]` with any strides; `output` has, for each channel, as many elements as
//! there are windows: [`Window::output`], or [`Window::output_with_partial`] where windows may reach beyond the end.

#[cfg(test)]
mod tests;

use half::{bf16, f16};

use crate::error::Result;
use crate::library::Context;
use crate::library::padded::Padded;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::{Element, Shared, View, ViewMut, mismatch};
use crate::library::window::Window;

/// A type whose largest element can be found; NaN counts as larger than any number.
pub trait Ordered: Element + PartialOrd {
    /// What a window without elements yields: the smallest value.
    const LOWEST: Self;
    /// The vector kernel, if the type has one.
    #[doc(hidden)]
    fn vectors(cx: &Context, pool: &Pool<Self, Self>) -> Option<Result<()>> {
        let _ = (cx, pool);
        None
    }
}

macro_rules! ordered {
    ($($t:ty: $lowest:expr $(, $vectors:expr)?;)*) => {
        $(impl Ordered for $t {
            const LOWEST: $t = $lowest;
            $(fn vectors(cx: &Context, pool: &Pool<$t, $t>) -> Option<Result<()>> {
                $vectors(cx, pool)
            })?
        })*
    };
}
ordered! {
    f32: f32::NEG_INFINITY, max_of_floats;
    f16: f16::NEG_INFINITY, max_of_floats;
    bf16: bf16::NEG_INFINITY, max_of_floats;
    f64: f64::NEG_INFINITY;
    i8: i8::MIN;
    u8: u8::MIN;
    i16: i16::MIN;
    u16: u16::MIN;
    i32: i32::MIN;
    u32: u32::MIN;
    i64: i64::MIN;
    u64: u64::MIN;
}

/// In which order the indices of [`max_pool`] number the elements of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexOrder {
    /// Width changes fastest.
    RowMajor,
    /// Depth (or the first spatial dimension of extent above 1) changes fastest.
    ColumnMajor,
}

/// Which elements the divisor of [`average_pool`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divisor {
    /// Those of the input.
    Input,
    /// Those of the input and its padding, but none beyond the padding.
    Padded,
}

/// Operands of one pooling, checked.
#[doc(hidden)]
#[derive(Debug)]
pub struct Pool<'a, T, U> {
    window: &'a Window,
    input: View<'a, T, 5>,
    windows: [usize; 3],
    output: Shared<U>,
    output_strides: [usize; 5],
}

impl<'a, T: Element, U: Element> Pool<'a, T, U> {
    fn new(window: &'a Window, input: View<'a, T, 5>, output: &ViewMut<'_, U, 5>) -> Result<Self> {
        let [batch, channels, spatial @ ..] = input.shape();
        let [to_batch, to_channels, windows @ ..] = output.shape();
        if spatial != window.input {
            return Err(mismatch(
                "spatial extents of a pooled input",
                spatial,
                window.input,
            ));
        }
        let known = windows == window.output() || windows == window.output_with_partial();
        if [to_batch, to_channels] != [batch, channels] || !known {
            let [z, y, x] = window.output();
            return Err(mismatch(
                "output of pooling",
                output.shape(),
                [batch, channels, z, y, x],
            ));
        }
        let (to, output_strides) = (Shared(output.as_ptr()), output.strides());
        Ok(Pool {
            window,
            input,
            windows,
            output: to,
            output_strides,
        })
    }

    fn planes(&self) -> usize {
        let [batch, channels, ..] = self.input.shape();
        batch * channels
    }

    /// First element of an input plane and of an output plane.
    fn plane(&self, index: usize) -> (*const T, *mut U) {
        let [_, channels, ..] = self.input.shape();
        let place =
            |strides: [usize; 5]| index / channels * strides[0] + index % channels * strides[1];
        let from = self
            .input
            .as_ptr()
            .wrapping_add(place(self.input.strides()));
        (
            from,
            self.output.get().wrapping_add(place(self.output_strides)),
        )
    }

    fn for_each_window(&self, mut visit: impl FnMut([usize; 3])) {
        for z in 0..self.windows[0] {
            for y in 0..self.windows[1] {
                for x in 0..self.windows[2] {
                    visit([z, y, x]);
                }
            }
        }
    }
}

fn dot(a: [usize; 3], strides: &[usize]) -> usize {
    a[0] * strides[0] + a[1] * strides[1] + a[2] * strides[2]
}

/// The largest element of each window; NaN if the window has one. A window without any element of the input yields the smallest
/// value of the type. Errors: extents that do not agree, out of memory.
pub fn max_pool<T: Ordered>(
    cx: &Context,
    window: &Window,
    input: View<'_, T, 5>,
    output: ViewMut<'_, T, 5>,
) -> Result<()> {
    let pool = Pool::new(window, input, &output)?;
    if let Some(done) = T::vectors(cx, &pool) {
        return done;
    }
    cx.pool.run(pool.planes(), |plane| {
        let (_, to) = pool.plane(plane);
        pool.for_each_window(|at| {
            let (largest, _) = largest_of(&pool, plane, at);
            // SAFETY: the window is inside the output, and this chunk alone writes its plane.
            unsafe { *to.add(dot(at, &pool.output_strides[2..])) = largest };
        });
    });
    Ok(())
}

/// As [`max_pool`], with the index of each largest element, the first one of equals, in the whole input taken as dense
/// `[batch, channels, ...]` with planes numbered in `order`; -1 for a window without any element of the input. Errors: extents
/// that do not agree.
pub fn max_pool_with_indices<T: Ordered>(
    cx: &Context,
    window: &Window,
    input: View<'_, T, 5>,
    output: ViewMut<'_, T, 5>,
    indices: ViewMut<'_, i64, 5>,
    order: IndexOrder,
) -> Result<()> {
    let pool = Pool::new(window, input, &output)?;
    let places = Pool::new(window, input, &indices)?;
    if places.windows != pool.windows {
        return Err(mismatch("indices of pooling", places.windows, pool.windows));
    }
    let [depth, height, width] = window.input;
    cx.pool.run(pool.planes(), |plane| {
        let ((_, to), (_, to_index)) = (pool.plane(plane), places.plane(plane));
        pool.for_each_window(|at| {
            let (largest, place) = largest_of(&pool, plane, at);
            let index = place.map_or(-1, |[z, y, x]| {
                let inner = match order {
                    IndexOrder::RowMajor => (z * height + y) * width + x,
                    IndexOrder::ColumnMajor => (x * height + y) * depth + z,
                };
                (plane * depth * height * width + inner) as i64
            });
            // SAFETY: the window is inside the outputs, and this chunk alone writes its plane.
            unsafe {
                *to.add(dot(at, &pool.output_strides[2..])) = largest;
                *to_index.add(dot(at, &places.output_strides[2..])) = index;
            }
        });
    });
    Ok(())
}

/// The first of the largest elements of a window, and where it is.
fn largest_of<T: Ordered, U: Element>(
    pool: &Pool<T, U>,
    plane: usize,
    at: [usize; 3],
) -> (T, Option<[usize; 3]>) {
    let window = pool.window;
    let (from, _) = pool.plane(plane);
    let strides = pool.input.strides();
    let [z_taps, y_taps, x_taps] = [0, 1, 2].map(|d| window.inside(d, at[d]));
    let mut best = (T::LOWEST, None);
    for z in z_taps {
        for y in y_taps.clone() {
            for x in x_taps.clone() {
                let taps = [z, y, x];
                let place = [0, 1, 2].map(|d| {
                    at[d] * window.stride[d] + taps[d] * window.dilation[d] - window.pad_begin[d]
                });
                // SAFETY: `inside` gives taps inside the input.
                let value = unsafe { *from.add(dot(place, &strides[2..])) };
                let is_nan = |x: T| x.partial_cmp(&x).is_none();
                if best.1.is_none() || value > best.0 || (is_nan(value) && !is_nan(best.0)) {
                    best = (value, Some(place));
                }
            }
        }
    }
    best
}

/// The mean of each window, accumulated in f32 (f64 for f64), divided by the number of elements that `divisor` counts; 0 where it
/// counts none. Errors: extents that do not agree, out of memory.
pub fn average_pool<T: Averaged>(
    cx: &Context,
    window: &Window,
    divisor: Divisor,
    input: View<'_, T, 5>,
    output: ViewMut<'_, T, 5>,
) -> Result<()> {
    let pool = Pool::new(window, input, &output)?;
    T::average(cx, &pool, divisor)
}

/// A type that can be averaged: `f32`, `f64`, `f16`, `bf16`.
pub trait Averaged: Element {
    #[doc(hidden)]
    fn average(cx: &Context, pool: &Pool<Self, Self>, divisor: Divisor) -> Result<()>;
}

macro_rules! averaged_floats {
    ($($t:ty),*) => {
        $(impl Averaged for $t {
            fn average(cx: &Context, pool: &Pool<$t, $t>, divisor: Divisor) -> Result<()> {
                let counts = counts(pool.window, pool.windows, divisor);
                match vectors(cx, pool, Mean { counts: &counts }, 0.0) {
                    Some(done) => done,
                    None => average_each(cx, pool, &counts, |x| x.widen(), <$t>::narrow, |a, b| a + b, |sum, count| sum / count),
                }
            }
        })*
    };
}
averaged_floats!(f32, f16, bf16);

impl Averaged for f64 {
    fn average(cx: &Context, pool: &Pool<f64, f64>, divisor: Divisor) -> Result<()> {
        let counts = counts(pool.window, pool.windows, divisor);
        average_each(
            cx,
            pool,
            &counts,
            |x| x,
            |x| x,
            |a, b| a + b,
            |sum, count| sum / f64::from(count),
        )
    }
}

/// In each dimension, for each window, the elements that the divisor counts; their product is the divisor.
fn counts(window: &Window, windows: [usize; 3], divisor: Divisor) -> [Vec<f32>; 3] {
    std::array::from_fn(|d| {
        let count = |at: usize| match divisor {
            Divisor::Input => window.inside(d, at).len(),
            Divisor::Padded => {
                let end = window.pad_begin[d] + window.input[d] + window.pad_end[d];
                end.saturating_sub(at * window.stride[d])
                    .div_ceil(window.dilation[d])
                    .min(window.kernel[d])
            }
        };
        (0..windows[d]).map(|at| count(at) as f32).collect()
    })
}

fn average_each<T: Element, A: Copy + Default>(
    cx: &Context,
    pool: &Pool<T, T>,
    counts: &[Vec<f32>; 3],
    widen: impl Fn(T) -> A + Sync,
    narrow: impl Fn(A) -> T + Sync,
    add: impl Fn(A, A) -> A + Sync,
    divide: impl Fn(A, f32) -> A + Sync,
) -> Result<()> {
    let (window, strides) = (pool.window, pool.input.strides());
    cx.pool.run(pool.planes(), |plane| {
        let (from, to) = pool.plane(plane);
        pool.for_each_window(|at| {
            let mut sum = A::default();
            for z in window.inside(0, at[0]) {
                for y in window.inside(1, at[1]) {
                    for x in window.inside(2, at[2]) {
                        let taps = [z, y, x];
                        let place = [0, 1, 2].map(|d| {
                            at[d] * window.stride[d] + taps[d] * window.dilation[d]
                                - window.pad_begin[d]
                        });
                        // SAFETY: `inside` gives taps inside the input.
                        sum = add(sum, widen(unsafe { *from.add(dot(place, &strides[2..])) }));
                    }
                }
            }
            let count = counts[0][at[0]] * counts[1][at[1]] * counts[2][at[2]];
            let mean = if count > 0.0 {
                divide(sum, count)
            } else {
                A::default()
            };
            // SAFETY: the window is inside the output, and this chunk alone writes its plane.
            unsafe { *to.add(dot(at, &pool.output_strides[2..])) = narrow(mean) };
        });
    });
    Ok(())
}

/// What the vector kernel does with the elements of a window.
trait Reduction: Copy + Sync {
    fn step<S: Simd>(self, s: S, so_far: S::F, x: S::F) -> S::F;
    /// The result for a vector of windows from `at` on, `len` of which exist.
    fn finish<S: Simd>(self, s: S, at: [usize; 3], len: usize, v: S::F) -> S::F;
}

#[derive(Clone, Copy)]
struct Largest;

impl Reduction for Largest {
    #[inline(always)]
    fn step<S: Simd>(self, s: S, so_far: S::F, x: S::F) -> S::F {
        // `max` yields `x` if that is NaN; a NaN found before must stay.
        s.select(s.is_nan(so_far), so_far, s.max(so_far, x))
    }
    #[inline(always)]
    fn finish<S: Simd>(self, _: S, _: [usize; 3], _: usize, v: S::F) -> S::F {
        v
    }
}

#[derive(Clone, Copy)]
struct Mean<'a> {
    counts: &'a [Vec<f32>; 3],
}

impl Reduction for Mean<'_> {
    #[inline(always)]
    fn step<S: Simd>(self, s: S, so_far: S::F, x: S::F) -> S::F {
        s.add(so_far, x)
    }
    #[inline(always)]
    fn finish<S: Simd>(self, s: S, at: [usize; 3], len: usize, v: S::F) -> S::F {
        let outer = s.splat(self.counts[0][at[0]] * self.counts[1][at[1]]);
        // SAFETY: `len` windows exist from `at[2]` on.
        let count = s.mul(outer, unsafe {
            s.load_first(self.counts[2].as_ptr().add(at[2]), len)
        });
        s.select(s.lt(s.splat(0.0), count), s.div(v, count), s.splat(0.0))
    }
}

fn max_of_floats<T: Float>(cx: &Context, pool: &Pool<T, T>) -> Option<Result<()>> {
    vectors(cx, pool, Largest, f32::NEG_INFINITY)
}

/// Reduces padded planes by vectors of windows; None if a plane would be too large.
fn vectors<T: Float, R: Reduction>(
    cx: &Context,
    pool: &Pool<T, T>,
    reduction: R,
    padding: f32,
) -> Option<Result<()>> {
    let padded = Padded::new(pool.window, pool.windows)?;
    let count = pool.planes();
    let chunks = count.min(cx.pool.threads() * 8);
    let strides = pool.input.strides();
    Some(cx.try_run(chunks, |chunk| {
        let mut plane = cx.scratch.take::<f32>(padded.len)?;
        plane.as_mut_slice::<f32>()[..padded.len].fill(padding);
        for index in chunk * count / chunks..(chunk + 1) * count / chunks {
            let (from, to) = pool.plane(index);
            // SAFETY: the view vouches for its plane; the scratch buffer has the plane's length.
            unsafe {
                padded.fill(
                    cx.isa,
                    from,
                    [strides[2], strides[3], strides[4]],
                    plane.as_ptr(),
                )
            };
            let plane = plane.as_ptr::<f32>().cast_const();
            dispatch(
                cx.isa,
                Reduce {
                    pool,
                    padded: &padded,
                    reduction,
                    padding,
                    plane,
                    to,
                },
            );
        }
        Ok(())
    }))
}

struct Reduce<'a, T, R> {
    pool: &'a Pool<'a, T, T>,
    padded: &'a Padded<'a>,
    reduction: R,
    padding: f32,
    plane: *const f32,
    to: *mut T,
}

impl<T: Float, R: Reduction> Kernel for Reduce<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Reduce {
            pool,
            padded,
            reduction,
            padding,
            plane,
            to,
        } = self;
        let [depth, height, width] = pool.windows;
        let kernel = pool.window.kernel;
        let [.., step] = pool.output_strides;
        for z in 0..depth {
            for y in 0..height {
                for x in (0..width).step_by(S::LANES) {
                    let mut v = s.splat(padding);
                    for tap_z in 0..kernel[0] {
                        for tap_y in 0..kernel[1] {
                            for tap_x in 0..kernel[2] {
                                let place = padded.place([z, y, x], [tap_z, tap_y, tap_x]);
                                // SAFETY: the plane holds the taps of whole vectors of windows.
                                v = reduction.step(s, v, unsafe { s.load(plane.add(place)) });
                            }
                        }
                    }
                    let len = (width - x).min(S::LANES);
                    let v = reduction.finish(s, [z, y, x], len, v);
                    let to = to.wrapping_add(dot([z, y, x], &pool.output_strides[2..]));
                    // SAFETY: `len` windows of the output are left in this row.
                    unsafe {
                        match (step, len == S::LANES) {
                            (1, true) => T::store(s, to, v),
                            (1, false) => T::store_first(s, to, len, v),
                            _ => store_apart(s, to, step, len, v),
                        }
                    }
                }
            }
        }
    }
}

/// Stores the first `len` lanes `step` elements apart.
#[inline(always)]
unsafe fn store_apart<S: Simd, T: Float>(s: S, to: *mut T, step: usize, len: usize, v: S::F) {
    let mut lanes = [T::narrow(0.0); crate::library::simd::MAX_LANES];
    // SAFETY: the array holds any vector; the caller vouches for `to`.
    unsafe {
        T::store(s, lanes.as_mut_ptr(), v);
        for (lane, &x) in lanes.iter().enumerate().take(len) {
            *to.add(lane * step) = x;
        }
    }
}

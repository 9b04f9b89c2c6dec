//! How each number type is multiplied: its format, its packing, and the driver's operands made of them.

use bytemuck::Pod;
use half::{bf16, f16};

use super::dots;
use super::driver::{self, Epilogue, Finished, Product, Target};
use super::formats::{BrainPairs, Doubles, Floats, Wrapping};
use super::pack::{Panel, Strided, pack_elements, pack_floats, pack_pairs, pack_rounded};
use super::packed::{Cut, Packed};
use super::tile::{TileSet, Tiles};
use super::windows::Windows;
use super::{AnyPacked, Matrix, Number, OneLeft, OneRight, Sum};
use crate::error::Result;
use crate::isa::Isa;
use crate::library::Context;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::{Element, Shared};

/// How one number type is multiplied.
#[allow(private_interfaces, reason = "sealed: callable in this module only")]
pub trait Multiply: Sized + 'static {
    type Sum: Element;
    fn pack_left(cx: &Context, source: &Strided<Self>, rows: usize) -> Result<AnyPacked>;
    fn pack_right(cx: &Context, source: &Strided<Self>, cols: usize) -> Result<AnyPacked>;
    /// # Safety
    /// Operands and target are valid for the sizes of the matrix.
    unsafe fn multiply(cx: &Context, matrix: &Matrix<Self>) -> Result<()>
    where
        Self: Number;
    /// # Safety
    /// `len` elements may be read and written.
    unsafe fn narrow_row(isa: Isa, from: *const Self::Sum, to: *mut Self, len: usize);
}

/// Packs all of a left operand.
pub(crate) fn pack_left_with<A: Pod + Send, B, C>(
    tiles: &TileSet<A, B, C>,
    rows: usize,
    words: usize,
    packer: impl Fn(&Panel<A>) + Sync,
    cx: &Context,
) -> Result<Packed<A>> {
    let height = driver::panel_rows(tiles, rows);
    let cut = Cut::new(rows, words, height, |count| tiles.tile_rows(count));
    Packed::new(cut, packer, cx)
}

/// Packs all of a right operand.
pub(super) fn pack_right_with<A, B: Pod + Send, C>(
    tiles: &TileSet<A, B, C>,
    cols: usize,
    words: usize,
    packer: impl Fn(&Panel<B>) + Sync,
    cx: &Context,
) -> Result<Packed<B>> {
    let width = tiles.panel_cols();
    Packed::new(Cut::new(cols, words, width, |_| width), packer, cx)
}

/// Runs the driver for format `F`, whose accumulators have the layout of `T`'s.
///
/// # Safety
/// As [`Multiply::multiply`]; `left` and `right` must fit the format and the matrix.
unsafe fn drive<T: Number, F>(
    cx: &Context,
    matrix: &Matrix<T>,
    words: usize,
    left: driver::Left<F::A>,
    right: driver::Right<F::B>,
) -> Result<()>
where
    F: Tiles<C = Sum<T>>,
{
    let tiles: TileSet<F::A, F::B, F::C> = F::set(cx.isa);
    let product = Product {
        rows: matrix.rows,
        cols: matrix.cols,
        inner: words,
        left,
        right,
        target: matrix.target,
        epilogue: matrix.epilogue,
        batch: matrix.batch,
    };
    // SAFETY: passed on.
    unsafe { product.run(cx, &tiles) }
}

const FOREIGN: &str = "bug: packed for another number type";

/// Numbers whose words are themselves: packing and direct rows alike.
macro_rules! plain_numbers {
    ($($t:ty as $word:ty: $format:ty, $packed:ident, $pack:expr, windows $windows:expr, dots $dots:expr;)*) => {
        $(#[allow(private_interfaces, reason = "sealed: callable in this module only")]
        impl Multiply for $t {
            type Sum = $t;
            fn pack_left(cx: &Context, source: &Strided<$t>, rows: usize) -> Result<AnyPacked> {
                let isa = cx.isa;
                let packer = |panel: &Panel<$word>| $pack(isa, source, panel);
                pack_left_with(&<$format>::set(isa), rows, source.inner, packer, cx).map(AnyPacked::$packed)
            }
            fn pack_right(cx: &Context, source: &Strided<$t>, cols: usize) -> Result<AnyPacked> {
                let isa = cx.isa;
                let packer = |panel: &Panel<$word>| $pack(isa, source, panel);
                pack_right_with(&<$format>::set(isa), cols, source.inner, packer, cx).map(AnyPacked::$packed)
            }
            unsafe fn multiply(cx: &Context, matrix: &Matrix<$t>) -> Result<()> {
                // SAFETY: passed on.
                if let Some(done) = unsafe { $dots(cx, matrix) } {
                    return done;
                }
                let isa = cx.isa;
                let (pack_left, pack_windows);
                let left = match &matrix.left {
                    OneLeft::Packed(AnyPacked::$packed(packed)) => driver::Left::Packed(packed.placed()),
                    OneLeft::Packed(_) | OneLeft::Wide(_) | OneLeft::WideWindows(_) => unreachable!("{FOREIGN}"),
                    OneLeft::Strided(source) => {
                        pack_left = move |panel: &Panel<$word>| $pack(isa, source, panel);
                        driver::Left::Pack(&pack_left)
                    }
                    OneLeft::Windows(windows) => {
                        pack_windows = move |panel: &Panel<$word>| $windows(isa, windows, panel);
                        driver::Left::Pack(&pack_windows)
                    }
                };
                let pack_right;
                let right = match &matrix.right {
                    OneRight::Packed(AnyPacked::$packed(packed)) => driver::Right::Packed(packed.placed()),
                    OneRight::Packed(_) | OneRight::Wide(_) => unreachable!("{FOREIGN}"),
                    OneRight::Strided(source) => {
                        pack_right = move |panel: &Panel<$word>| $pack(isa, source, panel);
                        if source.across == 1 || matrix.cols == 1 {
                            let from = Shared(source.from.cast::<$word>().cast_mut());
                            driver::Right::Rows { from, stride: source.along, packer: &pack_right }
                        } else {
                            driver::Right::Pack(&pack_right)
                        }
                    }
                };
                let target = match matrix.target {
                    Target::Store { to, row_stride } => Target::Store { to: Shared(to.get().cast::<$word>()), row_stride },
                    Target::Add { to, row_stride } => Target::Add { to: Shared(to.get().cast::<$word>()), row_stride },
                    Target::Discard => Target::Discard,
                };
                let as_word;
                let epilogue: Option<Epilogue<$word>> = match matrix.epilogue {
                    None => None,
                    Some(user) => {
                        as_word = move |part: Finished<$word>| user(part.cast::<$t>());
                        Some(&as_word)
                    }
                };
                let product = Product {
                    rows: matrix.rows,
                    cols: matrix.cols,
                    inner: matrix.inner,
                    left,
                    right,
                    target,
                    epilogue,
                    batch: matrix.batch,
                };
                // SAFETY: passed on; signed and unsigned words have the same layout.
                unsafe { product.run(cx, &<$format>::set(isa)) }
            }
            unsafe fn narrow_row(_: Isa, from: *const $t, to: *mut $t, len: usize) {
                // SAFETY: passed on.
                unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
            }
        })*
    };
}

fn pack_f32(isa: Isa, source: &Strided<f32>, panel: &Panel<f32>) {
    // SAFETY: driver and `Packed` ask for panels inside the matrix, with room for them.
    unsafe { pack_floats(isa, source, panel) }
}

fn pack_same<T: Element, W: Element>(_: Isa, source: &Strided<T>, panel: &Panel<W>) {
    // SAFETY: as for `pack_f32`.
    unsafe { pack_elements::<T, T, 1>(source, &panel.with(panel.to.cast()), |_, x| x) }
}

fn windows_f32(isa: Isa, source: &Windows<f32>, panel: &Panel<f32>) {
    source.pack_floats(isa, panel);
}

fn windows_same<T: Element, W: Element>(_: Isa, source: &Windows<T>, panel: &Panel<W>) {
    source.pack_same(panel);
}

/// Products of f32 that need no packing, or whose right operand is packed as a narrower float.
unsafe fn f32_otherwise(cx: &Context, matrix: &Matrix<f32>) -> Option<Result<()>> {
    // SAFETY: passed on.
    unsafe {
        match &matrix.right {
            OneRight::Packed(AnyPacked::F16(packed)) => Some(by_narrow(cx, matrix, packed)),
            OneRight::Packed(AnyPacked::Bf16(packed)) => Some(by_narrow(cx, matrix, packed)),
            OneRight::Packed(_) | OneRight::Wide(_) | OneRight::Strided(_) => {
                dots::multiply(cx, matrix)
            }
        }
    }
}

/// f32 by panels of a narrower float.
unsafe fn by_narrow<B>(cx: &Context, matrix: &Matrix<f32>, right: &Packed<B>) -> Result<()>
where
    Floats<B>: Tiles<A = f32, B = B, C = f32>,
{
    let (pack_left, pack_windows);
    let left = match &matrix.left {
        OneLeft::Packed(AnyPacked::F32(packed)) => driver::Left::Packed(packed.placed()),
        OneLeft::Packed(_) | OneLeft::Wide(_) | OneLeft::WideWindows(_) => {
            unreachable!("{FOREIGN}")
        }
        OneLeft::Strided(source) => {
            pack_left = move |panel: &Panel<f32>| pack_f32(cx.isa, source, panel);
            driver::Left::Pack(&pack_left)
        }
        OneLeft::Windows(windows) => {
            pack_windows = move |panel: &Panel<f32>| windows_f32(cx.isa, windows, panel);
            driver::Left::Pack(&pack_windows)
        }
    };
    let right = driver::Right::Packed(right.placed());
    // SAFETY: passed on.
    unsafe { drive::<f32, Floats<B>>(cx, matrix, matrix.inner, left, right) }
}

/// Number types without dot products from memory.
unsafe fn no_dots<T: Number>(_: &Context, _: &Matrix<T>) -> Option<Result<()>> {
    None
}

plain_numbers! {
    f32 as f32: Floats<f32>, F32, pack_f32, windows windows_f32, dots f32_otherwise;
    f64 as f64: Doubles, F64, pack_same, windows windows_same, dots no_dots;
    i32 as i32: Wrapping<i32>, I32, pack_same, windows windows_same, dots no_dots;
    u32 as i32: Wrapping<i32>, I32, pack_same, windows windows_same, dots no_dots;
    i64 as i64: Wrapping<i64>, I64, pack_same, windows windows_same, dots no_dots;
    u64 as i64: Wrapping<i64>, I64, pack_same, windows windows_same, dots no_dots;
}

/// Packing of 16-bit floats that f32 is multiplied by.
#[allow(private_interfaces, reason = "sealed: callable in this module only")]
pub trait Narrow: Sized {
    fn pack_narrow(cx: &Context, source: &Strided<Self>, cols: usize) -> Result<AnyPacked>;
}

/// An operand of 16-bit floats, in memory as such or as f32.
#[derive(Clone, Copy)]
enum Halves<'a, T> {
    Own(&'a Strided<T>),
    Wide(&'a Strided<f32>),
    Windows(&'a Windows<'a, T>),
    WideWindows(&'a Windows<'a, f32>),
}

impl<'a, T: Float + Number> Halves<'a, T> {
    /// The left operand of a matrix, unless it is packed.
    fn of(left: &'a OneLeft<'_, T>) -> Option<Self> {
        match left {
            OneLeft::Strided(source) => Some(Halves::Own(source)),
            OneLeft::Wide(source) => Some(Halves::Wide(source)),
            OneLeft::Windows(windows) => Some(Halves::Windows(windows)),
            OneLeft::WideWindows(windows) => Some(Halves::WideWindows(windows)),
            OneLeft::Packed(_) => None,
        }
    }

    /// The right operand of a matrix, unless it is packed.
    fn of_right(right: &'a OneRight<'_, T>) -> Option<Self> {
        match right {
            OneRight::Strided(source) => Some(Halves::Own(source)),
            OneRight::Wide(source) => Some(Halves::Wide(source)),
            OneRight::Packed(_) => None,
        }
    }

    /// Packs as words of two bf16.
    fn pack_pairs(self, isa: Isa, panel: &Panel<u32>) {
        // SAFETY: driver and `Packed` ask for panels inside the matrix, with room for them.
        unsafe {
            match self {
                Halves::Own(source) => pack_pairs(isa, source, panel),
                Halves::Wide(source) => pack_pairs(isa, source, panel),
                Halves::Windows(windows) => windows.pack_pairs(isa, panel),
                Halves::WideWindows(windows) => windows.pack_pairs(isa, panel),
            }
        }
    }

    /// Packs as f32 words.
    fn pack_floats(self, isa: Isa, panel: &Panel<f32>) {
        // SAFETY: as above.
        unsafe {
            match self {
                Halves::Own(source) => pack_floats(isa, source, panel),
                Halves::Wide(source) => pack_rounded::<T>(isa, source, panel),
                Halves::Windows(windows) => windows.pack_floats(isa, panel),
                Halves::WideWindows(windows) => windows.pack_rounded::<T>(isa, panel),
            }
        }
    }
}

/// 16-bit floats: the left operand is widened while packing; a right operand packed ahead of time stays narrow.
macro_rules! half_numbers {
    ($($t:ty: $packed:ident, pairs on $pairs:expr;)*) => {
        $(#[allow(private_interfaces, reason = "sealed: callable in this module only")]
        impl Narrow for $t {
            fn pack_narrow(cx: &Context, source: &Strided<$t>, cols: usize) -> Result<AnyPacked> {
                let isa = cx.isa;
                let packer = |panel: &Panel<$t>| pack_same(isa, source, panel);
                pack_right_with(&<Floats<$t>>::set(isa), cols, source.inner, packer, cx).map(AnyPacked::$packed)
            }
        }
        #[allow(private_interfaces, reason = "sealed: callable in this module only")]
        impl Multiply for $t {
            type Sum = f32;
            fn pack_left(cx: &Context, source: &Strided<$t>, rows: usize) -> Result<AnyPacked> {
                let isa = cx.isa;
                let left = Halves::Own(source);
                if $pairs(isa) {
                    let packer = |panel: &Panel<u32>| left.pack_pairs(isa, panel);
                    return pack_left_with(&<BrainPairs>::set(isa), rows, source.inner.div_ceil(2), packer, cx).map(AnyPacked::Words);
                }
                let packer = |panel: &Panel<f32>| left.pack_floats(isa, panel);
                pack_left_with(&<Floats<f32>>::set(isa), rows, source.inner, packer, cx).map(AnyPacked::F32)
            }
            fn pack_right(cx: &Context, source: &Strided<$t>, cols: usize) -> Result<AnyPacked> {
                let isa = cx.isa;
                if $pairs(isa) {
                    let packer = |panel: &Panel<u32>| Halves::Own(source).pack_pairs(isa, panel);
                    return pack_right_with(&<BrainPairs>::set(isa), cols, source.inner.div_ceil(2), packer, cx).map(AnyPacked::Words);
                }
                Self::pack_narrow(cx, source, cols)
            }
            unsafe fn multiply(cx: &Context, matrix: &Matrix<$t>) -> Result<()> {
                // SAFETY: passed on.
                if let Some(done) = unsafe { dots::multiply(cx, matrix) } {
                    return done;
                }
                let isa = cx.isa;
                let (left, right) = (Halves::of(&matrix.left), Halves::of_right(&matrix.right));
                let few_rows = matrix.rows <= driver::IN_PLACE_ROWS;
                if let (OneRight::Strided(source), Some(left), true) = (&matrix.right, left, few_rows)
                    && source.across == 1
                {
                    let pack_left = move |panel: &Panel<f32>| left.pack_floats(isa, panel);
                    let pack_right = move |panel: &Panel<$t>| pack_same(isa, source, panel);
                    let from = Shared(source.from.cast_mut());
                    let right = driver::Right::Rows { from, stride: source.along, packer: &pack_right };
                    // SAFETY: passed on.
                    return unsafe { drive::<$t, Floats<$t>>(cx, matrix, matrix.inner, driver::Left::Pack(&pack_left), right) };
                }
                if $pairs(isa) {
                    let pack_left = move |panel: &Panel<u32>| if let Some(left) = left { left.pack_pairs(isa, panel) };
                    let left = match &matrix.left {
                        OneLeft::Packed(AnyPacked::Words(packed)) => driver::Left::Packed(packed.placed()),
                        OneLeft::Packed(_) => unreachable!("{FOREIGN}"),
                        _ => driver::Left::Pack(&pack_left),
                    };
                    let pack_right = move |panel: &Panel<u32>| if let Some(right) = right { right.pack_pairs(isa, panel) };
                    let right = match &matrix.right {
                        OneRight::Packed(AnyPacked::Words(packed)) => driver::Right::Packed(packed.placed()),
                        OneRight::Packed(_) => unreachable!("{FOREIGN}"),
                        OneRight::Strided(_) | OneRight::Wide(_) => driver::Right::Pack(&pack_right),
                    };
                    // SAFETY: passed on.
                    return unsafe { drive::<$t, BrainPairs>(cx, matrix, matrix.inner.div_ceil(2), left, right) };
                }
                let pack_left = move |panel: &Panel<f32>| if let Some(left) = left { left.pack_floats(isa, panel) };
                let left = match &matrix.left {
                    OneLeft::Packed(AnyPacked::F32(packed)) => driver::Left::Packed(packed.placed()),
                    OneLeft::Packed(_) => unreachable!("{FOREIGN}"),
                    _ => driver::Left::Pack(&pack_left),
                };
                match &matrix.right {
                    // SAFETY: passed on.
                    OneRight::Packed(AnyPacked::$packed(packed)) => unsafe {
                        drive::<$t, Floats<$t>>(cx, matrix, matrix.inner, left, driver::Right::Packed(packed.placed()))
                    },
                    OneRight::Packed(_) => unreachable!("{FOREIGN}"),
                    OneRight::Strided(_) | OneRight::Wide(_) => {
                        let pack_right = move |panel: &Panel<f32>| if let Some(right) = right { right.pack_floats(isa, panel) };
                        // SAFETY: passed on.
                        unsafe { drive::<$t, Floats<f32>>(cx, matrix, matrix.inner, left, driver::Right::Pack(&pack_right)) }
                    }
                }
            }
            unsafe fn narrow_row(isa: Isa, from: *const f32, to: *mut $t, len: usize) {
                dispatch(isa, NarrowRow { from, to, len });
            }
        })*
    };
}

half_numbers! {
    f16: F16, pairs on |_: Isa| false;
    bf16: Bf16, pairs on |isa: Isa| isa.bf16();
}

struct NarrowRow<T> {
    from: *const f32,
    to: *mut T,
    len: usize,
}

impl<T: Float> Kernel for NarrowRow<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.len / S::LANES * S::LANES;
        // SAFETY: `len` elements may be read and written, see `narrow_row`.
        unsafe {
            for at in (0..whole).step_by(S::LANES) {
                T::store(s, self.to.add(at), s.load(self.from.add(at)));
            }
            let rest = self.len - whole;
            if rest > 0 {
                T::store_first(
                    s,
                    self.to.add(whole),
                    rest,
                    s.load_first(self.from.add(whole), rest),
                );
            }
        }
    }
}

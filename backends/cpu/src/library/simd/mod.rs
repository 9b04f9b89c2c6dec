//! Vectors of `f32` and `i32` at the width of the machine, and the dispatch from an [`Isa`] to code compiled for it.
//!
//! Kernels implement [`Kernel`] with `run` marked `#[inline(always)]`; [`dispatch`] calls it from a function compiled with the
//! features of the level, into which everything is inlined. A value of a type implementing [`Simd`] proves that those features
//! exist, which is what makes the arithmetic methods safe.
//!
//! Closures and iterator adaptors over vectors are to be avoided: what is not inlined into such a function is compiled without its
//! features. Loops over vectors are macros therefore (`loops`).
//!
//! Reading order: the trait here, then `avx512.rs`, which is the closest to it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod baseline;
pub(crate) mod loops;

use half::{bf16, f16};

use crate::isa::{Isa, Level};

pub use baseline::Baseline;
#[cfg(target_arch = "x86_64")]
pub use {avx2::Avx2, avx512::Avx512};

/// Operations on vectors of [`Simd::LANES`] numbers.
///
/// The `load*` and `store*` methods are unsafe: the addressed elements (the first `len <= LANES` for `*_first`) must be readable
/// or writable; no alignment is needed. `*_first` loads put 0 into the other lanes.
#[allow(
    clippy::missing_safety_doc,
    reason = "one contract for all, stated above"
)]
pub trait Simd: Copy + Send + Sync + 'static {
    /// `f32` lanes.
    type F: Copy;
    /// `i32` lanes; arithmetic wraps.
    type I: Copy;
    /// One truth value for each lane.
    type M: Copy;
    /// Lanes of a vector, a power of two, at most [`MAX_LANES`].
    const LANES: usize;

    /// [`Simd::LANES`], where the type has no name.
    #[inline(always)]
    fn lanes(self) -> usize {
        Self::LANES
    }
    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Loads [`Simd::LANES`] elements.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// Loads `len` elements.
    unsafe fn load_first(self, from: *const f32, len: usize) -> Self::F;
    /// Stores all lanes.
    unsafe fn store(self, to: *mut f32, v: Self::F);
    /// Stores the first `len` lanes.
    unsafe fn store_first(self, to: *mut f32, len: usize, v: Self::F);
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the level has fused multiply-add.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a < b ? a : b`: `b` when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Square root, correctly rounded.
    fn sqrt(self, v: Self::F) -> Self::F;
    /// Nearest integer, ties to even; exact for magnitudes below 2^22.
    fn round(self, v: Self::F) -> Self::F;
    /// `v * 2^n` for integral `n` in -252..=254, gradual underflow included.
    fn scale(self, v: Self::F, n: Self::F) -> Self::F;
    /// `a < b`, false for NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `v != v`
    fn is_nan(self, v: Self::F) -> Self::M;
    /// Lane by lane `mask ? a : b`.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Whether any lane is true.
    fn any(self, mask: Self::M) -> bool;
    /// The mask whose lane `i` is bit `i`; higher bits are ignored.
    fn mask(self, bits: u32) -> Self::M;
    /// Loads the elements of true lanes, 0 for the others, which are not accessed.
    unsafe fn load_where(self, mask: Self::M, from: *const f32) -> Self::F;

    /// All lanes `x`.
    fn int_splat(self, x: i32) -> Self::I;
    /// Loads [`Simd::LANES`] elements.
    unsafe fn int_load(self, from: *const i32) -> Self::I;
    /// Stores all lanes.
    unsafe fn int_store(self, to: *mut i32, v: Self::I);
    /// `a + b`
    fn int_add(self, a: Self::I, b: Self::I) -> Self::I;
    /// Lane by lane `mask ? a : b`.
    fn int_select(self, mask: Self::M, a: Self::I, b: Self::I) -> Self::I;
    /// The lanes' bit patterns.
    fn bits(self, v: Self::F) -> Self::I;
    /// The numbers with these bit patterns.
    fn float_of_bits(self, v: Self::I) -> Self::F;
    /// Bitwise and.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift left by a constant.
    fn shl<const N: u32>(self, v: Self::I) -> Self::I;
    /// Logical shift right by a constant.
    fn shr<const N: u32>(self, v: Self::I) -> Self::I;
    /// Loads 16-bit elements, widened with zeros.
    unsafe fn load_u16(self, from: *const u16) -> Self::I;
    /// Loads `len <= LANES` 16-bit elements, widened with zeros; zeros in the other lanes.
    #[inline(always)]
    unsafe fn load_first_u16(self, from: *const u16, len: usize) -> Self::I {
        let mut lanes = [0u16; MAX_LANES];
        // SAFETY: passed on for `from`; the array holds any vector.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), len);
            self.load_u16(lanes.as_ptr())
        }
    }
    /// Stores the low 16 bits of lanes, which must be in `0..65536`.
    unsafe fn store_u16(self, to: *mut u16, v: Self::I);
    /// Loads and widens.
    unsafe fn load_f16(self, from: *const f16) -> Self::F;
    /// Narrows, rounding to nearest even, and stores.
    unsafe fn store_f16(self, to: *mut f16, v: Self::F);

    /// Stores all lanes around the caches, where the level can and the address is aligned to the vector.
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32, v: Self::F) {
        // SAFETY: passed on.
        unsafe { self.store(to, v) }
    }
    /// Orders earlier [`Simd::stream`]s before later stores.
    #[inline(always)]
    fn end_streaming(self) {}
    /// The lanes of `a` followed by those of `b`, at even and at odd places.
    fn unzip(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);
    /// Transposes the square of the first [`Simd::LANES`] vectors.
    fn transpose(self, rows: &mut [Self::F; MAX_LANES]);

    /// The mask of the first `len` lanes.
    #[inline(always)]
    fn first(self, len: usize) -> Self::M {
        self.mask((1u32 << len) - 1)
    }
    /// The first `len` lanes of `v`, those of `other` after them.
    #[inline(always)]
    fn keep_first(self, len: usize, v: Self::F, other: Self::F) -> Self::F {
        if len == Self::LANES {
            v
        } else {
            self.select(self.first(len), v, other)
        }
    }

    /// Sum of the lanes, in a fixed order.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        self.fold(v, |a, b| a + b)
    }

    /// Largest lane; which one of NaN and a number is not determined.
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        self.fold(v, |a, b| if a > b { a } else { b })
    }

    /// Combines the lanes pairwise: halves, quarters and so on.
    #[inline(always)]
    fn fold(self, v: Self::F, combine: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0f32; MAX_LANES];
        // SAFETY: the array has room for all lanes.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        let mut half = Self::LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] = combine(lanes[lane], lanes[lane + half]);
            }
            half /= 2;
        }
        lanes[0]
    }

    /// `c - a * b`, rounded as [`Simd::mul_add`].
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.mul_add(self.neg(a), b, c)
    }

    /// `-v`, also of NaN and 0.
    #[inline(always)]
    fn neg(self, v: Self::F) -> Self::F {
        self.sub(self.splat(-0.0), v)
    }

    /// Magnitude.
    #[inline(always)]
    fn abs(self, v: Self::F) -> Self::F {
        self.float_of_bits(self.and(self.bits(v), self.int_splat(i32::MAX)))
    }

    /// Loads and widens.
    ///
    /// # Safety
    /// As for the other loads.
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F {
        // SAFETY: passed on; bf16 is a transparent u16.
        self.float_of_bits(self.shl::<16>(unsafe { self.load_u16(from.cast()) }))
    }

    /// Narrows, rounding to nearest even, NaN to a quiet NaN, and stores.
    ///
    /// # Safety
    /// As for the other stores.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: Self::F) {
        let narrow = self.narrow_bf16(v);
        // SAFETY: passed on.
        unsafe { self.store_u16(to.cast(), narrow) };
    }

    /// The bits of each lane as bf16, rounded to nearest even, NaN to a quiet NaN.
    #[inline(always)]
    fn narrow_bf16(self, v: Self::F) -> Self::I {
        let bits = self.bits(v);
        let odd = self.and(self.shr::<16>(bits), self.int_splat(1));
        let rounded = self.shr::<16>(self.int_add(bits, self.int_add(odd, self.int_splat(0x7FFF))));
        let quiet = self.or(self.shr::<16>(bits), self.int_splat(0x40));
        self.int_select(self.is_nan(v), quiet, rounded)
    }

    /// In each lane the bits of two bf16: `even` in the lower half, `odd` in the upper one.
    ///
    /// # Safety
    /// Only where the processor multiplies bf16 ([`crate::isa::Isa::bf16`]): subnormals may become zero, as they count there.
    #[inline(always)]
    unsafe fn pair_bf16(self, even: Self::F, odd: Self::F) -> Self::F {
        let upper = self.shl::<16>(self.narrow_bf16(odd));
        self.float_of_bits(self.or(self.narrow_bf16(even), upper))
    }

    /// The numbers of `low`, then those of `high`, as bf16, two in each lane.
    ///
    /// # Safety
    /// As [`Simd::pair_bf16`].
    #[inline(always)]
    unsafe fn join_bf16(self, low: Self::F, high: Self::F) -> Self::F {
        let (even, odd) = self.unzip(low, high);
        // SAFETY: passed on.
        unsafe { self.pair_bf16(even, odd) }
    }

    /// Stores numbers as bf16.
    ///
    /// # Safety
    /// As [`Simd::pair_bf16`], and there must be room for a vector of them.
    #[inline(always)]
    unsafe fn store_brains(self, to: *mut u16, v: Self::F) {
        let narrow = self.narrow_bf16(v);
        // SAFETY: the caller's contract.
        unsafe { self.store_u16(to, narrow) }
    }
}

/// The widest vector of any level.
pub const MAX_LANES: usize = 16;

/// Partial sums that are kept whatever the width of vectors, so that levels agree: element `i` belongs to part `i % PARTS`.
pub const PARTS: usize = MAX_LANES;

/// Most vectors that hold them.
pub const MAX_VECTORS: usize = 4;

/// [`PARTS`] lanes in as many vectors as hold them, brought to one: halves are added to halves.
#[inline(always)]
pub(crate) fn join_parts<S: Simd>(s: S, vectors: &[S::F; MAX_VECTORS]) -> S::F {
    let [a, b, c, d] = *vectors;
    match PARTS / S::LANES {
        1 => a,
        2 => s.add(a, b),
        _ => s.add(s.add(a, c), s.add(b, d)),
    }
}

/// The sum of [`PARTS`] lanes: halves are added to halves.
#[inline(always)]
pub(crate) fn sum_parts<S: Simd>(s: S, vectors: &[S::F; MAX_VECTORS]) -> f32 {
    s.sum(join_parts(s, vectors))
}

/// A storage type that vectors of `f32` are loaded from and stored to.
#[allow(
    clippy::missing_safety_doc,
    reason = "the contract of Simd's loads and stores"
)]
pub trait Float: super::Element {
    /// The `f32` of the same value.
    fn widen(self) -> f32;
    /// Nearest value, ties to even.
    fn narrow(x: f32) -> Self;
    /// Loads [`Simd::LANES`] elements.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;
    /// Stores all lanes.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::F);

    /// Stores all lanes, around the caches where possible.
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, to: *mut Self, v: S::F) {
        // SAFETY: passed on.
        unsafe { Self::store(s, to, v) }
    }

    /// Loads `len <= LANES` elements twice and puts them into pairs, see [`Simd::pair_bf16`]; the second ones are zero where they
    /// are not given.
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(
        s: S,
        even: *const Self,
        odd: Option<*const Self>,
        len: usize,
    ) -> S::F {
        // SAFETY: passed on.
        unsafe {
            let even = Self::load_first_or_all(s, even, len);
            let odd = match odd {
                Some(odd) => Self::load_first_or_all(s, odd, len),
                None => s.splat(0.0),
            };
            s.pair_bf16(even, odd)
        }
    }

    /// Loads `len` elements, with the plain load when they fill a vector.
    #[inline(always)]
    unsafe fn load_first_or_all<S: Simd>(s: S, from: *const Self, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe {
            if len == S::LANES {
                Self::load(s, from)
            } else {
                Self::load_first(s, from, len)
            }
        }
    }

    /// Stores `len` lanes, with the plain store when they are all.
    #[inline(always)]
    unsafe fn store_first_or_all<S: Simd>(s: S, to: *mut Self, len: usize, v: S::F) {
        // SAFETY: passed on.
        unsafe {
            if len == S::LANES {
                Self::store(s, to, v);
            } else {
                Self::store_first(s, to, len, v);
            }
        }
    }

    /// Loads the elements whose bit is set, 0 for the others, which are not accessed.
    #[inline(always)]
    unsafe fn load_where<S: Simd>(s: S, bits: u32, from: *const Self) -> S::F {
        let mut lanes = [0f32; MAX_LANES];
        for (lane, slot) in lanes.iter_mut().enumerate().take(S::LANES) {
            if bits >> lane & 1 == 1 {
                // SAFETY: passed on.
                *slot = unsafe { *from.wrapping_add(lane) }.widen();
            }
        }
        // SAFETY: the array holds any vector.
        unsafe { s.load(lanes.as_ptr()) }
    }

    /// Loads `len <= LANES` elements, 0 for the rest.
    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, from: *const Self, len: usize) -> S::F {
        let mut lanes = [Self::narrow(0.0); MAX_LANES];
        // SAFETY: passed on for `from`; the array holds any vector.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), len);
            Self::load(s, lanes.as_ptr())
        }
    }

    /// Stores the first `len <= LANES` lanes.
    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, to: *mut Self, len: usize, v: S::F) {
        let mut lanes = [Self::narrow(0.0); MAX_LANES];
        // SAFETY: the array holds any vector; passed on for `to`.
        unsafe {
            Self::store(s, lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, len);
        }
    }
}

impl Float for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { s.load(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut f32, v: S::F) {
        // SAFETY: passed on.
        unsafe { s.store(to, v) }
    }
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, to: *mut f32, v: S::F) {
        // SAFETY: passed on.
        unsafe { s.stream(to, v) }
    }
    #[inline(always)]
    unsafe fn load_where<S: Simd>(s: S, bits: u32, from: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { s.load_where(s.mask(bits), from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, from: *const f32, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { s.load_first(from, len) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, to: *mut f32, len: usize, v: S::F) {
        // SAFETY: passed on.
        unsafe { s.store_first(to, len, v) }
    }
}

impl Float for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f16) -> S::F {
        // SAFETY: passed on.
        unsafe { s.load_f16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut f16, v: S::F) {
        // SAFETY: passed on.
        unsafe { s.store_f16(to, v) }
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const bf16) -> S::F {
        // SAFETY: passed on.
        unsafe { s.load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, from: *const bf16, len: usize) -> S::F {
        // SAFETY: passed on; bf16 is a transparent u16.
        s.float_of_bits(s.shl::<16>(unsafe { s.load_first_u16(from.cast(), len) }))
    }
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(
        s: S,
        even: *const bf16,
        odd: Option<*const bf16>,
        len: usize,
    ) -> S::F {
        // SAFETY: as above.
        let half = |from: *const bf16| unsafe { s.load_first_u16(from.cast(), len) };
        let even = half(even);
        s.float_of_bits(match odd {
            Some(odd) => s.or(even, s.shl::<16>(half(odd))),
            None => even,
        })
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut bf16, v: S::F) {
        // SAFETY: passed on.
        unsafe { s.store_bf16(to, v) }
    }
}

/// Code that exists once for every level.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// The code; must be `#[inline(always)]`, as must be everything hot that it calls.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`.
#[inline]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.level() {
        Level::Baseline => kernel.run(Baseline),
        // SAFETY: an Isa of that level proves that the processor has the features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::run(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => unreachable!("bug: an x86 level on another architecture"),
    }
}

#[cfg(test)]
mod tests;

//! Number formats of the matrix product: which words are multiplied by which instruction on which level.
//!
//! | format | words | accumulator | AVX-512 | AVX2 | baseline |
//! |---|---|---|---|---|---|
//! | [`Floats`] | f32 by f32, f16 or bf16 | f32 | fma 14x32 | fma 6x16 | 4x8 |
//! | [`Doubles`] | f64 | f64 | fma 14x16 | fma 6x8 | 4x8 |
//! | [`BrainPairs`] | 2 bf16 | f32 | `vdpbf16ps` 14x32 (needs BF16) | - | - |
//! | [`BytePairs`] | 2 i16 | i32 | `vpmaddwd` 14x32 | `vpmaddwd` 6x16 | 4x8 |
//! | [`ByteQuads`] | 4 u8 by 4 i8 | i32 | `vpdpbusd` 14x32 (needs VNNI) | - | - |
//! | [`Wrapping`] | i32 | i32, modulo 2^32 | 14x32 | 6x16 | 4x8 |
//! | [`Wrapping`] | i64 | i64, modulo 2^64 | 14x16 | 6x8, single | 4x8 |

use std::marker::PhantomData;

use half::{bf16, f16};

use super::tile::{Dot, LEFT_ROW, Tile, TileSet, Tiles, add_all, run_tile, tile_set};
use crate::isa::{Isa, Level};
use crate::library::simd::{Baseline, Float, Simd};
#[cfg(target_arch = "x86_64")]
use {
    crate::library::simd::{Avx2, Avx512},
    std::arch::x86_64::*,
};

#[cfg(not(target_arch = "x86_64"))]
const NO_SUCH_LEVEL: &str = "bug: an x86 level on another architecture";

/// f32 times a float stored as `B`.
#[derive(Debug)]
pub(crate) struct Floats<B>(PhantomData<B>);

#[derive(Debug, Clone, Copy)]
struct FloatDot<S, B>(S, PhantomData<B>);

impl<S: Simd, B: Float> Dot for FloatDot<S, B> {
    type A = f32;
    type B = B;
    type C = f32;
    type Sums = S::F;
    type Words = S::F;
    const LANES: usize = S::LANES;

    #[inline(always)]
    fn zero(self) -> S::F {
        self.0.splat(0.0)
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const B) -> S::F {
        // SAFETY: passed on.
        unsafe { B::load(self.0, from) }
    }
    #[inline(always)]
    fn dot(self, a: f32, b: S::F, sums: S::F) -> S::F {
        self.0.mul_add(self.0.splat(a), b, sums)
    }
    #[inline(always)]
    fn add(self, a: S::F, b: S::F) -> S::F {
        self.0.add(a, b)
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> S::F {
        // SAFETY: passed on.
        unsafe { self.0.load(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, sums: S::F) {
        // SAFETY: passed on.
        unsafe { self.0.store(to, sums) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, len: usize) -> S::F {
        // SAFETY: passed on.
        unsafe { self.0.load_first(from, len) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, len: usize, sums: S::F) {
        // SAFETY: passed on.
        unsafe { self.0.store_first(to, len, sums) }
    }
}

/// Lists the tile sets of a format; needs names `DotOn512`, `DotOn256` of types and constructors.
macro_rules! by_level {
    ($left:ident, $isa:expr, $wide:ty: $wide_token:expr, $half:ty: $half_token:expr, $base:ty: $base_token:expr) => {
        match $isa.level() {
            Level::Baseline => tile_set!($left, $base, $base_token, rows: 1 2 4),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => tile_set!($left, $half, $half_token, "avx2,fma,f16c", rows: 1 2 4 6),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                tile_set!($left, $wide, $wide_token, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", rows: 1 2 4 6 8 10 12 14)
            }
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => unreachable!("{NO_SUCH_LEVEL}"),
        }
    };
}

macro_rules! float_tiles {
    ($($b:ty),*) => {
        $(impl Tiles for Floats<$b> {
            type A = f32;
            type B = $b;
            type C = f32;
            fn set(isa: Isa) -> TileSet<f32, $b, f32> {
                by_level!(
                    packed,
                    isa,
                    FloatDot<Avx512, $b>: FloatDot(Avx512::new(), PhantomData),
                    FloatDot<Avx2, $b>: FloatDot(Avx2::new(), PhantomData),
                    FloatDot<Baseline, $b>: FloatDot(Baseline, PhantomData)
                )
            }
        })*
    };
}
float_tiles!(f32, f16, bf16);

impl Floats<f32> {
    /// Tiles whose left operand is not packed.
    pub fn over_rows(isa: Isa) -> TileSet<f32, f32, f32> {
        by_level!(
            rows,
            isa,
            FloatDot<Avx512, f32>: FloatDot(Avx512::new(), PhantomData),
            FloatDot<Avx2, f32>: FloatDot(Avx2::new(), PhantomData),
            FloatDot<Baseline, f32>: FloatDot(Baseline, PhantomData)
        )
    }

    /// Tiles whose left operand is not packed and is read along its columns.
    pub fn over_columns(isa: Isa) -> TileSet<f32, f32, f32> {
        by_level!(
            columns,
            isa,
            FloatDot<Avx512, f32>: FloatDot(Avx512::new(), PhantomData),
            FloatDot<Avx2, f32>: FloatDot(Avx2::new(), PhantomData),
            FloatDot<Baseline, f32>: FloatDot(Baseline, PhantomData)
        )
    }
}

/// A float that can be the right operand's word.
pub trait FloatWords: Float + words::Words {}
impl<T: Float + words::Words> FloatWords for T {}

mod words {
    use super::*;

    #[allow(private_interfaces, reason = "sealed: callable in this crate only")]
    pub trait Words: Sized + 'static {
        /// The tiles of f32 by this type.
        fn tiles(isa: Isa) -> TileSet<f32, Self, f32>;
    }

    #[allow(private_interfaces, reason = "sealed: callable in this crate only")]
    impl<T: 'static> Words for T
    where
        Floats<T>: Tiles<A = f32, B = T, C = f32>,
    {
        fn tiles(isa: Isa) -> TileSet<f32, T, f32> {
            Floats::<T>::set(isa)
        }
    }
}

/// f64.
#[derive(Debug)]
pub(crate) struct Doubles;

/// Writes a [`Dot`] over x86 intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsic_dot {
    (
        $name:ident: $a:ty, $b:ty => $c:ty, $lanes:literal lanes, $sums:ty, $words:ty,
        zero $zero:expr, words $load_words:expr, dot $dot:expr, add $add:expr,
        load $load:expr, store $store:expr, load_first $load_first:expr, store_first $store_first:expr
    ) => {
        #[derive(Debug, Clone, Copy)]
        struct $name(());
        impl $name {
            /// # Safety
            /// The processor must have the features of the tile set it is used in.
            #[inline(always)]
            const unsafe fn new() -> $name {
                $name(())
            }
        }
        impl Dot for $name {
            type A = $a;
            type B = $b;
            type C = $c;
            type Sums = $sums;
            type Words = $words;
            const LANES: usize = $lanes;
            #[inline(always)]
            fn zero(self) -> $sums {
                // SAFETY: the token proves the features.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load_words(self, from: *const $b) -> $words {
                // SAFETY: the caller's contract; the token proves the features.
                unsafe { $load_words(from) }
            }
            #[inline(always)]
            fn dot(self, a: $a, b: $words, sums: $sums) -> $sums {
                // SAFETY: the token proves the features.
                unsafe { $dot(a, b, sums) }
            }
            #[inline(always)]
            fn add(self, a: $sums, b: $sums) -> $sums {
                // SAFETY: the token proves the features.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn load(self, from: *const $c) -> $sums {
                // SAFETY: the caller's contract; the token proves the features.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $c, sums: $sums) {
                // SAFETY: the caller's contract; the token proves the features.
                unsafe { $store(to.cast(), sums) }
            }
            #[inline(always)]
            unsafe fn load_first(self, from: *const $c, len: usize) -> $sums {
                // SAFETY: the caller's contract; the token proves the features.
                unsafe { $load_first(from, len) }
            }
            #[inline(always)]
            unsafe fn store_first(self, to: *mut $c, len: usize, sums: $sums) {
                // SAFETY: the caller's contract; the token proves the features.
                unsafe { $store_first(to, len, sums) }
            }
        }
    };
}

/// The mask of the first `len <= 16` lanes.
#[inline(always)]
fn mask(len: usize) -> u16 {
    ((1u32 << len) - 1) as u16
}

/// The vector mask of the first `len` of the lanes of a 256-bit vector of `32 / PER` lanes of `PER` 32-bit parts each.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn mask256(parts: usize) -> __m256i {
    const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: eight elements from `8 - parts` on lie inside the array; AVX2 is the caller's.
    unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - parts).cast()) }
}

#[cfg(target_arch = "x86_64")]
intrinsic_dot! {
    Double512: f64, f64 => f64, 8 lanes, __m512d, __m512d,
    zero _mm512_setzero_pd, words |from| _mm512_loadu_pd(from),
    dot |a, b, sums| _mm512_fmadd_pd(_mm512_set1_pd(a), b, sums), add _mm512_add_pd,
    load |from: *const f64| _mm512_loadu_pd(from), store |to: *mut f64, v| _mm512_storeu_pd(to, v),
    load_first |from, len| _mm512_maskz_loadu_pd(mask(len) as u8, from),
    store_first |to, len, v| _mm512_mask_storeu_pd(to, mask(len) as u8, v)
}
#[cfg(target_arch = "x86_64")]
intrinsic_dot! {
    Double256: f64, f64 => f64, 4 lanes, __m256d, __m256d,
    zero _mm256_setzero_pd, words |from| _mm256_loadu_pd(from),
    dot |a, b, sums| _mm256_fmadd_pd(_mm256_set1_pd(a), b, sums), add _mm256_add_pd,
    load |from: *const f64| _mm256_loadu_pd(from), store |to: *mut f64, v| _mm256_storeu_pd(to, v),
    load_first |from, len| _mm256_maskload_pd(from, mask256(2 * len)),
    store_first |to, len, v| _mm256_maskstore_pd(to, mask256(2 * len), v)
}

/// Writes a [`Dot`] into 32-bit integers, of words that fill a lane: what one step adds.
#[cfg(target_arch = "x86_64")]
macro_rules! word_dot {
    ($name:ident 512: $word:ty, $step:expr) => {
        intrinsic_dot! {
            $name: $word, $word => i32, 16 lanes, __m512i, __m512i,
            zero _mm512_setzero_si512, words |from: *const $word| _mm512_loadu_si512(from.cast()),
            dot |a: $word, b, sums| $step(sums, _mm512_set1_epi32(a as i32), b), add _mm512_add_epi32,
            load |from: *const __m512i| _mm512_loadu_si512(from), store |to: *mut __m512i, v| _mm512_storeu_si512(to, v),
            load_first |from, len| _mm512_maskz_loadu_epi32(mask(len), from),
            store_first |to, len, v| _mm512_mask_storeu_epi32(to, mask(len), v)
        }
    };
    ($name:ident 256: $word:ty, $step:expr) => {
        intrinsic_dot! {
            $name: $word, $word => i32, 8 lanes, __m256i, __m256i,
            zero _mm256_setzero_si256, words |from: *const $word| _mm256_loadu_si256(from.cast()),
            dot |a: $word, b, sums| $step(sums, _mm256_set1_epi32(a as i32), b), add _mm256_add_epi32,
            load |from: *const __m256i| _mm256_loadu_si256(from), store |to: *mut __m256i, v| _mm256_storeu_si256(to, v),
            load_first |from, len| _mm256_maskload_epi32(from, mask256(len)),
            store_first |to, len, v| _mm256_maskstore_epi32(to, mask256(len), v)
        }
    };
}

#[cfg(target_arch = "x86_64")]
word_dot!(BytePair512 512: u32, |sums, a, b| _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)));
#[cfg(target_arch = "x86_64")]
word_dot!(BytePair256 256: u32, |sums, a, b| _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)));
#[cfg(target_arch = "x86_64")]
word_dot!(ByteQuad512 512: u32, _mm512_dpbusd_epi32);
#[cfg(target_arch = "x86_64")]
word_dot!(Word512 512: i32, |sums, a, b| _mm512_add_epi32(sums, _mm512_mullo_epi32(a, b)));
#[cfg(target_arch = "x86_64")]
word_dot!(Word256 256: i32, |sums, a, b| _mm256_add_epi32(sums, _mm256_mullo_epi32(a, b)));

impl Tiles for Doubles {
    type A = f64;
    type B = f64;
    type C = f64;
    fn set(isa: Isa) -> TileSet<f64, f64, f64> {
        by_level!(
            packed,
            isa,
            Double512: Double512::new(),
            Double256: Double256::new(),
            ScalarDot<f64>: ScalarDot(PhantomData)
        )
    }
}

/// Two bf16 in one word; only where [`Isa::bf16`]. Subnormals count as zero.
#[derive(Debug)]
pub(crate) struct BrainPairs;

#[cfg(target_arch = "x86_64")]
intrinsic_dot! {
    BrainPair512: u32, u32 => f32, 16 lanes, __m512, __m512i,
    zero _mm512_setzero_ps, words |from: *const u32| _mm512_loadu_si512(from.cast()),
    dot |a: u32, b, sums| _mm512_dpbf16_ps(sums, into_brains(_mm512_set1_epi32(a as i32)), into_brains(b)),
    add _mm512_add_ps,
    load |from: *const f32| _mm512_loadu_ps(from), store |to: *mut f32, v| _mm512_storeu_ps(to, v),
    load_first |from, len| _mm512_maskz_loadu_ps(mask(len), from),
    store_first |to, len, v| _mm512_mask_storeu_ps(to, mask(len), v)
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn into_brains(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of any content.
    unsafe { std::mem::transmute(v) }
}

impl BrainPairs {
    /// Tiles whose left operand is not packed.
    pub fn over_rows(isa: Isa) -> TileSet<u32, u32, f32> {
        assert!(isa.bf16(), "bug: BF16 tiles without BF16");
        #[cfg(target_arch = "x86_64")]
        return tile_set!(rows, BrainPair512, BrainPair512::new(), "avx512f,avx512bw,avx512vl,avx512bf16", rows: 1 2 4 6 8 10 12 14);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{NO_SUCH_LEVEL}")
    }

    /// Tiles whose left operand is not packed and is read along its columns.
    pub fn over_columns(isa: Isa) -> TileSet<u32, u32, f32> {
        assert!(isa.bf16(), "bug: BF16 tiles without BF16");
        #[cfg(target_arch = "x86_64")]
        return tile_set!(columns, BrainPair512, BrainPair512::new(), "avx512f,avx512bw,avx512vl,avx512bf16", rows: 1 2 4 6 8 10 12 14);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{NO_SUCH_LEVEL}")
    }
}

impl Tiles for BrainPairs {
    type A = u32;
    type B = u32;
    type C = f32;
    fn set(isa: Isa) -> TileSet<u32, u32, f32> {
        assert!(isa.bf16(), "bug: BF16 tiles without BF16");
        #[cfg(target_arch = "x86_64")]
        return tile_set!(packed, BrainPair512, BrainPair512::new(), "avx512f,avx512bw,avx512vl,avx512bf16", rows: 1 2 4 6 8 10 12 14);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{NO_SUCH_LEVEL}")
    }
}

/// Two 8-bit integers widened to i16, zero points taken off, in one word.
#[derive(Debug)]
pub(crate) struct BytePairs;

impl Tiles for BytePairs {
    type A = u32;
    type B = u32;
    type C = i32;
    fn set(isa: Isa) -> TileSet<u32, u32, i32> {
        by_level!(
            packed,
            isa,
            BytePair512: BytePair512::new(),
            BytePair256: BytePair256::new(),
            ScalarDot<PairOfBytes>: ScalarDot(PhantomData)
        )
    }
}

/// Four u8 times four i8 in one word; only where [`Isa::vnni`].
#[derive(Debug)]
pub(crate) struct ByteQuads;

impl Tiles for ByteQuads {
    type A = u32;
    type B = u32;
    type C = i32;
    fn set(isa: Isa) -> TileSet<u32, u32, i32> {
        assert!(isa.vnni(), "bug: VNNI tiles without VNNI");
        #[cfg(target_arch = "x86_64")]
        return tile_set!(packed, ByteQuad512, ByteQuad512::new(), "avx512f,avx512bw,avx512vl,avx512vnni", rows: 1 2 4 6 8 10 12 14);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{NO_SUCH_LEVEL}")
    }
}

/// Integers modulo 2^32 or 2^64; signed and unsigned are the same here.
#[derive(Debug)]
pub(crate) struct Wrapping<T>(PhantomData<T>);

/// A step on single numbers, four at a time.
#[derive(Debug, Clone, Copy)]
struct ScalarDot<T>(PhantomData<T>);

/// What [`ScalarDot`] needs of a format.
trait ScalarStep: Copy {
    type Word: bytemuck::Pod;
    type Sum: bytemuck::Pod;
    fn step(a: Self::Word, b: Self::Word, sum: Self::Sum) -> Self::Sum;
    fn plus(a: Self::Sum, b: Self::Sum) -> Self::Sum;
}

macro_rules! scalar_steps {
    ($($format:ty: $word:ty => $sum:ty, $step:expr, $plus:expr;)*) => {
        $(impl ScalarStep for $format {
            type Word = $word;
            type Sum = $sum;
            #[inline(always)]
            fn step(a: $word, b: $word, sum: $sum) -> $sum {
                $step(a, b, sum)
            }
            #[inline(always)]
            fn plus(a: $sum, b: $sum) -> $sum {
                $plus(a, b)
            }
        })*
    };
}

/// Tells the i16 pairs from other 32-bit words.
#[derive(Debug, Clone, Copy)]
struct PairOfBytes;

#[inline(always)]
fn step_of_pairs(a: u32, b: u32, sum: i32) -> i32 {
    let low = |word: u32| i32::from(word as i16);
    let high = |word: u32| i32::from((word >> 16) as i16);
    sum.wrapping_add(low(a) * low(b) + high(a) * high(b))
}

scalar_steps! {
    f64: f64 => f64, |a: f64, b: f64, sum: f64| a * b + sum, |a: f64, b: f64| a + b;
    i32: i32 => i32, |a: i32, b: i32, sum: i32| sum.wrapping_add(a.wrapping_mul(b)), i32::wrapping_add;
    i64: i64 => i64, |a: i64, b: i64, sum: i64| sum.wrapping_add(a.wrapping_mul(b)), i64::wrapping_add;
    PairOfBytes: u32 => i32, step_of_pairs, i32::wrapping_add;
}

const SCALAR_LANES: usize = 4;

impl<T: ScalarStep> Dot for ScalarDot<T> {
    type A = T::Word;
    type B = T::Word;
    type C = T::Sum;
    type Sums = [T::Sum; SCALAR_LANES];
    type Words = [T::Word; SCALAR_LANES];
    const LANES: usize = SCALAR_LANES;

    #[inline(always)]
    fn zero(self) -> Self::Sums {
        bytemuck::Zeroable::zeroed()
    }
    #[inline(always)]
    unsafe fn load_words(self, from: *const T::Word) -> Self::Words {
        // SAFETY: the caller's contract.
        unsafe { from.cast::<Self::Words>().read_unaligned() }
    }
    #[inline(always)]
    fn dot(self, a: T::Word, b: Self::Words, mut sums: Self::Sums) -> Self::Sums {
        for (sum, word) in sums.iter_mut().zip(b) {
            *sum = T::step(a, word, *sum);
        }
        sums
    }
    #[inline(always)]
    fn add(self, mut a: Self::Sums, b: Self::Sums) -> Self::Sums {
        for (sum, other) in a.iter_mut().zip(b) {
            *sum = T::plus(*sum, other);
        }
        a
    }
    #[inline(always)]
    unsafe fn load(self, from: *const T::Sum) -> Self::Sums {
        // SAFETY: the caller's contract.
        unsafe { from.cast::<Self::Sums>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T::Sum, sums: Self::Sums) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<Self::Sums>().write_unaligned(sums) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const T::Sum, len: usize) -> Self::Sums {
        let mut sums = self.zero();
        for (lane, sum) in sums.iter_mut().enumerate().take(len) {
            // SAFETY: the caller's contract.
            *sum = unsafe { *from.add(lane) };
        }
        sums
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut T::Sum, len: usize, sums: Self::Sums) {
        for (lane, &sum) in sums.iter().enumerate().take(len) {
            // SAFETY: the caller's contract.
            unsafe { *to.add(lane) = sum };
        }
    }
}

#[cfg(target_arch = "x86_64")]
intrinsic_dot! {
    Long512: i64, i64 => i64, 8 lanes, __m512i, __m512i,
    zero _mm512_setzero_si512, words |from: *const i64| _mm512_loadu_si512(from.cast()),
    dot |a: i64, b, sums| _mm512_add_epi64(sums, _mm512_mullo_epi64(_mm512_set1_epi64(a), b)),
    add _mm512_add_epi64,
    load |from: *const __m512i| _mm512_loadu_si512(from), store |to: *mut __m512i, v| _mm512_storeu_si512(to, v),
    load_first |from, len| _mm512_maskz_loadu_epi64(mask(len) as u8, from),
    store_first |to, len, v| _mm512_mask_storeu_epi64(to, mask(len) as u8, v)
}

impl Tiles for Wrapping<i32> {
    type A = i32;
    type B = i32;
    type C = i32;
    fn set(isa: Isa) -> TileSet<i32, i32, i32> {
        by_level!(
            packed,
            isa,
            Word512: Word512::new(),
            Word256: Word256::new(),
            ScalarDot<i32>: ScalarDot(PhantomData)
        )
    }
}

impl Tiles for Wrapping<i64> {
    type A = i64;
    type B = i64;
    type C = i64;
    fn set(isa: Isa) -> TileSet<i64, i64, i64> {
        by_level!(
            packed,
            isa,
            Long512: Long512::new(),
            ScalarDot<i64>: ScalarDot(PhantomData),
            ScalarDot<i64>: ScalarDot(PhantomData)
        )
    }
}

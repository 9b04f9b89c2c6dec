//! What tiles of block-quantised weights need of a level beyond [`Simd`].

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use crate::library::simd::{Avx2, Avx512};
use crate::library::simd::{Baseline, Simd};

/// A level with dot products of bytes.
pub(super) trait Lanes: Copy {
    /// Its vectors.
    type S: Simd;
    /// The token of the vectors.
    fn simd(self) -> Self::S;
    /// In every lane: adds the products of four unsigned codes and the four signed bytes of `x`, exactly.
    fn dot(self, sums: I<Self>, codes: I<Self>, x: i32) -> I<Self>;
    /// As [`Lanes::dot`] for codes below 128.
    #[inline(always)]
    fn dot_small(self, sums: I<Self>, codes: I<Self>, x: i32) -> I<Self> {
        self.dot(sums, codes, x)
    }
    /// In every byte, which is below 16: that of the table, which is repeated every 16 bytes.
    fn lookup(self, table: I<Self>, codes: I<Self>) -> I<Self>;
    /// Loads signed bytes as floats.
    ///
    /// # Safety
    /// As many as lanes must be readable.
    unsafe fn load_i8(self, from: *const i8) -> F<Self>;
}

/// Integers of a level.
pub(super) type I<L> = <<L as Lanes>::S as Simd>::I;
/// Floats of a level.
pub(super) type F<L> = <<L as Lanes>::S as Simd>::F;

impl Lanes for Baseline {
    type S = Baseline;
    #[inline(always)]
    fn simd(self) -> Baseline {
        self
    }
    #[inline(always)]
    fn dot(self, mut sums: [i32; 4], codes: [i32; 4], x: i32) -> [i32; 4] {
        let x = x.to_le_bytes();
        for (sum, code) in sums.iter_mut().zip(codes) {
            for (code, x) in code.to_le_bytes().into_iter().zip(x) {
                *sum += i32::from(code) * i32::from(x as i8);
            }
        }
        sums
    }
    #[inline(always)]
    fn lookup(self, table: [i32; 4], codes: [i32; 4]) -> [i32; 4] {
        let table: [u8; 16] = bytemuck::cast(table);
        let mut codes: [u8; 16] = bytemuck::cast(codes);
        for code in &mut codes {
            *code = table[usize::from(*code & 15)];
        }
        bytemuck::cast(codes)
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> [f32; 4] {
        // SAFETY: the caller's contract.
        let [a, b, c, d] = unsafe { from.cast::<[i8; 4]>().read_unaligned() };
        [a, b, c, d].map(f32::from)
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    type S = Avx2;
    #[inline(always)]
    fn simd(self) -> Avx2 {
        self
    }
    #[inline(always)]
    fn dot(self, sums: __m256i, codes: __m256i, x: i32) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let even = _mm256_madd_epi16(
                _mm256_and_si256(codes, _mm256_set1_epi16(0xFF)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)),
            );
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), _mm256_srai_epi16::<8>(x));
            _mm256_add_epi32(sums, _mm256_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    fn dot_small(self, sums: __m256i, codes: __m256i, x: i32) -> __m256i {
        // SAFETY: the token proves the features. Two products are at most 2 * 127 * 128.
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(x));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    fn lookup(self, table: __m256i, codes: __m256i) -> __m256i {
        // SAFETY: the token proves the features.
        unsafe { _mm256_shuffle_epi8(table, codes) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256 {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx512 {
    type S = Avx512;
    #[inline(always)]
    fn simd(self) -> Avx512 {
        self
    }
    #[inline(always)]
    fn dot(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe {
            let x = _mm512_set1_epi32(x);
            let even = _mm512_madd_epi16(
                _mm512_and_si512(codes, _mm512_set1_epi16(0xFF)),
                _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)),
            );
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(codes), _mm512_srai_epi16::<8>(x));
            _mm512_add_epi32(sums, _mm512_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    fn dot_small(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: the token proves the features. Two products are at most 2 * 127 * 128.
        unsafe {
            let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi32(x));
            _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, codes: __m512i) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_shuffle_epi8(table, codes) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
}

/// AVX-512 with VNNI.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Vnni(Avx512);

#[cfg(target_arch = "x86_64")]
impl Vnni {
    /// # Safety
    /// The processor must have AVX512-VNNI and what [`Avx512`] stands for.
    #[inline(always)]
    pub const unsafe fn new() -> Vnni {
        // SAFETY: the caller's contract.
        Vnni(unsafe { Avx512::new() })
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Vnni {
    type S = Avx512;
    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }
    #[inline(always)]
    fn dot(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: the token proves the features.
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, codes: __m512i) -> __m512i {
        self.0.lookup(table, codes)
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        // SAFETY: passed on.
        unsafe { self.0.load_i8(from) }
    }
}

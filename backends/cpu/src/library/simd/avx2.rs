//! 256-bit vectors of x86-64-v3.

use std::arch::x86_64::*;

use half::f16;

use super::{Kernel, Simd};

/// Proof of AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

/// Compiles `kernel` with the level's features.
///
/// # Safety
/// The processor must have them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

impl Avx2 {
    /// # Safety
    /// The processor must have the level's features.
    #[inline(always)]
    pub(crate) const unsafe fn new() -> Avx2 {
        Avx2(())
    }

    /// The mask of the first `len <= 8` lanes.
    #[inline(always)]
    fn first(self, len: usize) -> __m256i {
        const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: eight elements from `8 - len` on lie inside the array; the token proves the features.
        unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - len).cast()) }
    }
}

/// The lower and the upper halves of each 128 bits, lanes interleaved.
#[inline(always)]
unsafe fn pairs(a: __m256, b: __m256) -> (__m256, __m256) {
    // SAFETY: the caller's token proves the features.
    unsafe { (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)) }
}

/// The same with pairs of lanes.
#[inline(always)]
unsafe fn quads(a: __m256, b: __m256) -> (__m256, __m256) {
    // SAFETY: the caller's token proves the features.
    unsafe {
        let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
        (
            _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)),
        )
    }
}

/// `2^n` for normal results.
#[inline(always)]
unsafe fn power(n: __m256i) -> __m256 {
    // SAFETY: the caller's token proves the features.
    unsafe {
        let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    type M = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sqrt(self, v: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_sqrt_ps(v) }
    }
    #[inline(always)]
    fn mask(self, bits: u32) -> Self::M {
        // SAFETY: the token proves the features.
        unsafe {
            let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let chosen = _mm256_and_si256(_mm256_set1_epi32(bits as i32), bit);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, bit))
        }
    }
    #[inline(always)]
    unsafe fn load_where(self, mask: Self::M, from: *const f32) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_maskload_ps(from, _mm256_castps_si256(mask)) }
    }
    #[inline(always)]
    fn int_splat(self, x: i32) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn int_add(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn bits(self, v: Self::F) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_castps_si256(v) }
    }
    #[inline(always)]
    fn float_of_bits(self, v: Self::I) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_castsi256_ps(v) }
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, len: usize) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_maskload_ps(from, self.first(len)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, len: usize, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_maskstore_ps(to, self.first(len), v) }
    }
    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    fn scale(self, v: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe {
            let n = _mm256_cvtps_epi32(_mm256_max_ps(n, _mm256_set1_ps(-252.0)));
            let half = _mm256_srai_epi32::<1>(n);
            _mm256_mul_ps(
                _mm256_mul_ps(v, power(half)),
                power(_mm256_sub_epi32(n, half)),
            )
        }
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the features.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn is_nan(self, v: Self::F) -> Self::M {
        // SAFETY: the token proves the features.
        unsafe { _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm256_blendv_ps(b, a, mask) }
    }
    #[inline(always)]
    fn any(self, mask: Self::M) -> bool {
        // SAFETY: the token proves the features.
        unsafe { _mm256_movemask_ps(mask) != 0 }
    }
    #[inline(always)]
    unsafe fn int_load(self, from: *const i32) -> Self::I {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn int_store(self, to: *mut i32, v: Self::I) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }
    #[inline(always)]
    fn int_select(self, mask: Self::M, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_blendv_epi8(b, a, _mm256_castps_si256(mask)) }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, v: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_sllv_epi32(v, _mm256_set1_epi32(N as i32)) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, v: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm256_srlv_epi32(v, _mm256_set1_epi32(N as i32)) }
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, v: Self::I) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe {
            let packed =
                _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storeu_si128(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe {
            if (to as usize).is_multiple_of(32) {
                _mm256_stream_ps(to, v);
            } else {
                _mm256_storeu_ps(to, v);
            }
        }
    }
    #[inline(always)]
    fn end_streaming(self) {
        // SAFETY: SSE is part of the baseline.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn unzip(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        // SAFETY: the token proves the features.
        unsafe {
            // Each half-vector holds its even (odd) lanes of `a`, then those of `b`; the middle pairs change places.
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            (
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even)),
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd)),
            )
        }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F; super::MAX_LANES]) {
        // SAFETY: the token proves the features.
        unsafe {
            for i in 0..2 {
                let (low01, high01) = pairs(rows[4 * i], rows[4 * i + 1]);
                let (low23, high23) = pairs(rows[4 * i + 2], rows[4 * i + 3]);
                (rows[4 * i], rows[4 * i + 1]) = quads(low01, low23);
                (rows[4 * i + 2], rows[4 * i + 3]) = quads(high01, high23);
            }
            for j in 0..4 {
                let (above, below) = (rows[j], rows[4 + j]);
                rows[j] = _mm256_permute2f128_ps::<0x20>(above, below);
                rows[4 + j] = _mm256_permute2f128_ps::<0x31>(above, below);
            }
        }
    }
}

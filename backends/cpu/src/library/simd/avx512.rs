//! 512-bit vectors of x86-64-v4.

use std::arch::{asm, x86_64::*};

use half::f16;

use super::{Kernel, Simd};

/// Proof of AVX-512 F, BW, CD, DQ, VL, AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

/// Compiles `kernel` with the level's features.
///
/// # Safety
/// The processor must have them.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

impl Avx512 {
    /// # Safety
    /// The processor must have the level's features.
    #[inline(always)]
    pub(crate) const unsafe fn new() -> Avx512 {
        Avx512(())
    }
}

/// The mask of the first `len <= 16` lanes.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    ((1u32 << len) - 1) as __mmask16
}

/// The numbers of `low`, then those of `high`, as bf16. Not the intrinsic, which would not be inlined where the level does not
/// promise the instruction.
///
/// # Safety
/// The processor must have AVX-512 BF16.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn join_brains(low: __m512, high: __m512) -> __m512 {
    let joined;
    // SAFETY: the instruction exists and touches registers only.
    unsafe {
        asm!("vcvtne2ps2bf16 {joined}, {high}, {low}",
            joined = lateout(zmm_reg) joined, high = in(zmm_reg) high, low = in(zmm_reg) low,
            options(pure, nomem, nostack, preserves_flags));
    }
    joined
}

/// Numbers as bf16.
///
/// # Safety
/// As [`join_brains`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn brains(v: __m512) -> __m256i {
    let narrow;
    // SAFETY: as above.
    unsafe {
        asm!("vcvtneps2bf16 {narrow}, {v}", narrow = lateout(ymm_reg) narrow, v = in(zmm_reg) v,
            options(pure, nomem, nostack, preserves_flags));
    }
    narrow
}

/// The lower and the upper halves of each 128 bits, lanes interleaved.
#[inline(always)]
unsafe fn pairs(a: __m512, b: __m512) -> (__m512, __m512) {
    // SAFETY: the caller's token proves the features.
    unsafe { (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)) }
}

/// The same with pairs of lanes.
#[inline(always)]
unsafe fn quads(a: __m512, b: __m512) -> (__m512, __m512) {
    // SAFETY: the caller's token proves the features.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        (
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)),
        )
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sqrt(self, v: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_sqrt_ps(v) }
    }
    #[inline(always)]
    fn mask(self, bits: u32) -> Self::M {
        bits as __mmask16
    }
    #[inline(always)]
    unsafe fn load_where(self, mask: Self::M, from: *const f32) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
    #[inline(always)]
    fn int_splat(self, x: i32) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn int_add(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn bits(self, v: Self::F) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    fn float_of_bits(self, v: Self::I) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_castsi512_ps(v) }
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, len: usize) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_maskz_loadu_ps(first(len), from) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, len: usize, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_mask_storeu_ps(to, first(len), v) }
    }
    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    fn scale(self, v: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        // SAFETY: the token proves the features.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn is_nan(self, v: Self::F) -> Self::M {
        // SAFETY: the token proves the features.
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v) }
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }
    #[inline(always)]
    fn any(self, mask: Self::M) -> bool {
        mask != 0
    }
    #[inline(always)]
    unsafe fn int_load(self, from: *const i32) -> Self::I {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn int_store(self, to: *mut i32, v: Self::I) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }
    #[inline(always)]
    fn int_select(self, mask: Self::M, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_mask_blend_epi32(mask, b, a) }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, v: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_slli_epi32::<N>(v) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, v: Self::I) -> Self::I {
        // SAFETY: the token proves the features.
        unsafe { _mm512_srli_epi32::<N>(v) }
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_first_u16(self, from: *const u16, len: usize) -> Self::I {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(len), from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, v: Self::I) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(v)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        // SAFETY: the token proves the features.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32, v: Self::F) {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe {
            if (to as usize).is_multiple_of(64) {
                _mm512_stream_ps(to, v);
            } else {
                _mm512_storeu_ps(to, v);
            }
        }
    }
    #[inline(always)]
    fn end_streaming(self) {
        // SAFETY: SSE is part of the baseline.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn pair_bf16(self, even: Self::F, odd: Self::F) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features. Word `i` of the first half goes beside that of the second.
        unsafe {
            let joined = _mm512_castps_si512(self.join_bf16(even, odd));
            let lower = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(joined));
            let upper = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(joined));
            _mm512_castsi512_ps(_mm512_or_si512(lower, _mm512_slli_epi32::<16>(upper)))
        }
    }
    #[inline(always)]
    unsafe fn join_bf16(self, low: Self::F, high: Self::F) -> Self::F {
        // SAFETY: the caller's contract; the token proves the features.
        unsafe { join_brains(low, high) }
    }
    #[inline(always)]
    unsafe fn store_brains(self, to: *mut u16, v: Self::F) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), brains(v)) }
    }
    #[inline(always)]
    fn unzip(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        // SAFETY: the token proves the features.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (
                _mm512_permutex2var_ps(a, even, b),
                _mm512_permutex2var_ps(a, odd, b),
            )
        }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F; 16]) {
        // SAFETY: the token proves the features.
        unsafe {
            // After this loop, row 4 * i + j holds in its part l (of 128 bits) column 4 * l + j of rows 4 * i .. 4 * i + 4.
            for i in 0..4 {
                let (low01, high01) = pairs(rows[4 * i], rows[4 * i + 1]);
                let (low23, high23) = pairs(rows[4 * i + 2], rows[4 * i + 3]);
                (rows[4 * i], rows[4 * i + 1]) = quads(low01, low23);
                (rows[4 * i + 2], rows[4 * i + 3]) = quads(high01, high23);
            }
            for j in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(rows[j], rows[4 + j]);
                let odd = _mm512_shuffle_f32x4::<0xDD>(rows[j], rows[4 + j]);
                let even_below = _mm512_shuffle_f32x4::<0x88>(rows[8 + j], rows[12 + j]);
                let odd_below = _mm512_shuffle_f32x4::<0xDD>(rows[8 + j], rows[12 + j]);
                rows[j] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
                rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
                rows[8 + j] = _mm512_shuffle_f32x4::<0xDD>(even, even_below);
                rows[12 + j] = _mm512_shuffle_f32x4::<0xDD>(odd, odd_below);
            }
        }
    }
}

//! What pixels and weights are multiplied as: words of 32 bits, each a channel as `f32` or two neighbouring ones as `bf16`.

use half::bf16;

use crate::isa::Isa;
use crate::library::simd::{Float, Kernel, Simd, dispatch};

/// What becomes of the input before it is multiplied by the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Nothing: words are `f32`.
    Plain,
    /// It is rounded to bf16, the type of the weights; words are `f32`.
    Rounded,
    /// Words are two neighbouring channels in bf16.
    Pairs,
}

impl Reading {
    /// Channels of a word.
    pub fn channels(self) -> usize {
        match self {
            Reading::Plain | Reading::Rounded => 1,
            Reading::Pairs => 2,
        }
    }

    /// Words of so many channels.
    pub fn words(self, channels: usize) -> usize {
        channels.div_ceil(self.channels())
    }

    /// Whether so many channels leave no place of a word empty.
    pub fn fills(self, channels: usize) -> bool {
        channels.is_multiple_of(self.channels())
    }

    /// A number of the input as the words have it.
    #[inline(always)]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Reading::Plain => value,
            Reading::Rounded | Reading::Pairs => bf16::from_f32(value).to_f32(),
        }
    }

    /// Writes a channel of a word, rounded to what that holds.
    ///
    /// # Safety
    /// The word must be there, `part` less than [`Reading::channels`].
    #[inline(always)]
    pub unsafe fn set(self, word: *mut f32, part: usize, value: f32) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Reading::Plain | Reading::Rounded => *word = value,
                Reading::Pairs => *word.cast::<bf16>().add(part) = bf16::from_f32(value),
            }
        }
    }

    /// Writes the words of neighbouring channels.
    ///
    /// # Safety
    /// `from` must have `len` channels, `to` room for their words.
    pub unsafe fn convert(self, isa: Isa, from: *const f32, to: *mut f32, len: usize) {
        match self {
            // SAFETY: the caller's contract.
            Reading::Plain => unsafe { from.copy_to_nonoverlapping(to, len) },
            Reading::Rounded => dispatch(isa, Round { from, to, len }),
            // SAFETY: as above; pairs are only made where there are instructions for them.
            Reading::Pairs => unsafe { pairs::convert(from, to, len) },
        }
    }
}

/// A type of weights.
pub trait Weight: Float {
    /// How they are multiplied without an instruction for the type.
    const WIDE: Reading;
    /// How they are multiplied on a machine.
    fn reading(isa: Isa) -> Reading;
}

impl Weight for f32 {
    const WIDE: Reading = Reading::Plain;
    fn reading(_: Isa) -> Reading {
        Reading::Plain
    }
}

impl Weight for bf16 {
    const WIDE: Reading = Reading::Rounded;
    fn reading(isa: Isa) -> Reading {
        if isa.bf16() {
            Reading::Pairs
        } else {
            Reading::Rounded
        }
    }
}

/// Elements rounded to bf16.
struct Round {
    from: *const f32,
    to: *mut f32,
    len: usize,
}

impl Kernel for Round {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round { from, to, len } = self;
        for at in (0..len).step_by(S::LANES) {
            let there = (len - at).min(S::LANES);
            // SAFETY: `there` elements follow, and there is room for them.
            unsafe {
                let v = f32::load_first_or_all(s, from.add(at), there);
                let rounded = s.float_of_bits(s.shl::<16>(s.narrow_bf16(v)));
                f32::store_first_or_all(s, to.add(at), there, rounded);
            }
        }
    }
}

/// A kind of words in vectors.
pub(super) trait Words<S: Simd> {
    /// What words of a pixel and of weights add to a sum.
    fn step(s: S, x: S::F, w: S::F, sum: S::F) -> S::F;
    /// Writes `len` channels from `channel` on to a pixel, with what fills their last word.
    ///
    /// # Safety
    /// The pixel must have room for the words of all these channels.
    unsafe fn put(s: S, pixel: *mut f32, channel: usize, len: usize, v: S::F);
}

/// Words are f32.
pub(super) struct Floats;

impl<S: Simd> Words<S> for Floats {
    #[inline(always)]
    fn step(s: S, x: S::F, w: S::F, sum: S::F) -> S::F {
        s.mul_add(x, w, sum)
    }
    #[inline(always)]
    unsafe fn put(s: S, pixel: *mut f32, channel: usize, len: usize, v: S::F) {
        // SAFETY: the caller's contract.
        unsafe { f32::store_first_or_all(s, pixel.add(channel), len, v) }
    }
}

/// Code over words that exists once for every level, and once for pairs of bf16.
pub(super) trait WordKernel {
    /// The code; must be `#[inline(always)]`.
    fn run<S: Simd, W: Words<S>>(self, s: S);
}

struct OfFloats<K>(K);

impl<K: WordKernel> Kernel for OfFloats<K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run::<S, Floats>(s);
    }
}

/// Runs `kernel` compiled for `isa` and words as they are read.
///
/// # Safety
/// Words are pairs only where the processor has instructions for them.
#[inline]
pub(super) unsafe fn dispatch_words<K: WordKernel>(isa: Isa, reading: Reading, kernel: K) {
    match reading {
        Reading::Plain | Reading::Rounded => dispatch(isa, OfFloats(kernel)),
        // SAFETY: the caller's contract.
        Reading::Pairs => unsafe { pairs::run(kernel) },
    }
}

/// Words of two bf16.
#[cfg(target_arch = "x86_64")]
mod pairs {
    use super::{WordKernel, Words};
    use crate::library::simd::Avx512;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    struct Pairs;

    impl Words<Avx512> for Pairs {
        #[inline(always)]
        fn step(_: Avx512, x: __m512, w: __m512, sum: __m512) -> __m512 {
            // SAFETY: all are 64 bytes of any content; `run` has the feature.
            unsafe {
                let [x, w] = transmute::<[__m512; 2], [__m512bh; 2]>([x, w]);
                _mm512_dpbf16_ps(sum, x, w)
            }
        }
        #[inline(always)]
        unsafe fn put(_: Avx512, pixel: *mut f32, channel: usize, len: usize, v: __m512) {
            // SAFETY: the caller's contract; `run` has the feature.
            unsafe {
                let halves = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
                let to = pixel.cast::<i16>().add(channel);
                if len == 16 {
                    _mm256_storeu_si256(to.cast(), halves);
                } else {
                    let mask = first(len.next_multiple_of(2)) as u16;
                    _mm256_mask_storeu_epi16(to, mask, halves);
                }
            }
        }
    }

    fn first(len: usize) -> u32 {
        ((1u64 << len) - 1) as u32
    }

    /// # Safety
    /// The kernel's own; the processor must have AVX512-BF16.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16"
    )]
    pub unsafe fn run<K: WordKernel>(kernel: K) {
        // SAFETY: the features are those of this function.
        kernel.run::<Avx512, Pairs>(unsafe { Avx512::new() });
    }

    /// # Safety
    /// As [`super::Reading::convert`]; the processor must have AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn convert(from: *const f32, to: *mut f32, len: usize) {
        let to = to.cast::<i16>();
        let whole = len / 32 * 32;
        for at in (0..whole).step_by(32) {
            // SAFETY: these elements exist.
            unsafe {
                let (low, high) = (
                    _mm512_loadu_ps(from.add(at)),
                    _mm512_loadu_ps(from.add(at + 16)),
                );
                let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(to.add(at).cast(), halves);
            }
        }
        let rest = len - whole;
        if rest > 0 {
            let there = first(rest);
            // SAFETY: as above; elements that do not exist are not accessed.
            unsafe {
                let low = _mm512_maskz_loadu_ps(there as u16, from.add(whole));
                let upper = from.wrapping_add(whole + 16);
                let high = _mm512_maskz_loadu_ps((there >> 16) as u16, upper);
                let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                let mask = first(rest.next_multiple_of(2));
                _mm512_mask_storeu_epi16(to.add(whole), mask, halves);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod pairs {
    use super::WordKernel;

    pub unsafe fn run<K: WordKernel>(_: K) {
        unreachable!("bug: pairs of bf16 on another architecture")
    }

    pub unsafe fn convert(_: *const f32, _: *mut f32, _: usize) {
        unreachable!("bug: pairs of bf16 on another architecture")
    }
}

//! Arrays of four, which the compiler turns into the baseline's vectors (SSE2, NEON).

use half::f16;

use super::Simd;

/// The level that needs no proof.
#[derive(Debug, Clone, Copy)]
pub struct Baseline;

const LANES: usize = 4;

#[inline(always)]
fn each<A: Copy, B>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn pairs<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn choose<A: Copy>(mask: [bool; LANES], a: [A; LANES], b: [A; LANES]) -> [A; LANES] {
    let pick = |lane: usize| if mask[lane] { a[lane] } else { b[lane] };
    [pick(0), pick(1), pick(2), pick(3)]
}

impl Simd for Baseline {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type M = [bool; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's contract.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, len: usize) -> Self::F {
        let mut lanes = [0.0; LANES];
        for (lane, slot) in lanes.iter_mut().enumerate().take(len) {
            // SAFETY: the caller's contract.
            *slot = unsafe { *from.add(lane) };
        }
        lanes
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: Self::F) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, len: usize, v: Self::F) {
        for (lane, &x) in v.iter().enumerate().take(len) {
            // SAFETY: the caller's contract.
            unsafe { *to.add(lane) = x };
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // x86's baseline has no fused form: `f32::mul_add` would call a library function for each lane.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            let lane = |i: usize| a[i].mul_add(b[i], c[i]);
            [lane(0), lane(1), lane(2), lane(3)]
        } else {
            self.add(self.mul(a, b), c)
        }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        pairs(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, v: Self::F) -> Self::F {
        each(v, f32::sqrt)
    }
    #[inline(always)]
    fn round(self, v: Self::F) -> Self::F {
        // Adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even.
        const SHIFT: f32 = 12_582_912.0;
        each(v, |x| (x + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale(self, v: Self::F, n: Self::F) -> Self::F {
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        pairs(v, n, |x, n| {
            // SAFETY: the caller's `n` is small and integral; a NaN lane is brought into range by `max`.
            let n = unsafe { n.max(-252.0).to_int_unchecked::<i32>() };
            let half = n >> 1;
            x * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        pairs(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn is_nan(self, v: Self::F) -> Self::M {
        each(v, f32::is_nan)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        choose(mask, a, b)
    }
    #[inline(always)]
    fn any(self, mask: Self::M) -> bool {
        mask[0] | mask[1] | mask[2] | mask[3]
    }
    #[inline(always)]
    fn mask(self, bits: u32) -> Self::M {
        each([1, 2, 4, 8], |bit| bits & bit != 0)
    }
    #[inline(always)]
    unsafe fn load_where(self, mask: Self::M, from: *const f32) -> Self::F {
        let mut lanes = [0.0; LANES];
        for (lane, slot) in lanes.iter_mut().enumerate() {
            if mask[lane] {
                // SAFETY: the caller's contract.
                *slot = unsafe { *from.wrapping_add(lane) };
            }
        }
        lanes
    }
    #[inline(always)]
    fn int_splat(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn int_load(self, from: *const i32) -> Self::I {
        // SAFETY: the caller's contract.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn int_store(self, to: *mut i32, v: Self::I) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<Self::I>().write_unaligned(v) }
    }
    #[inline(always)]
    fn int_add(self, a: Self::I, b: Self::I) -> Self::I {
        pairs(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn int_select(self, mask: Self::M, a: Self::I, b: Self::I) -> Self::I {
        choose(mask, a, b)
    }
    #[inline(always)]
    fn bits(self, v: Self::F) -> Self::I {
        each(v, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn float_of_bits(self, v: Self::I) -> Self::F {
        each(v, |x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        pairs(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        pairs(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        pairs(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, v: Self::I) -> Self::I {
        each(v, |x| x << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, v: Self::I) -> Self::I {
        each(v, |x| (x as u32 >> N) as i32)
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        // SAFETY: the caller's contract.
        each(
            unsafe { from.cast::<[u16; LANES]>().read_unaligned() },
            i32::from,
        )
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, v: Self::I) {
        // SAFETY: the caller's contract.
        unsafe {
            to.cast::<[u16; LANES]>()
                .write_unaligned(each(v, |x| x as u16))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> Self::F {
        // SAFETY: the caller's contract.
        each(
            unsafe { from.cast::<[f16; LANES]>().read_unaligned() },
            f16::to_f32,
        )
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: Self::F) {
        // SAFETY: the caller's contract.
        unsafe {
            to.cast::<[f16; LANES]>()
                .write_unaligned(each(v, f16::from_f32))
        }
    }
    #[inline(always)]
    fn unzip(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        ([a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]])
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F; super::MAX_LANES]) {
        let [a, b, c, d, ..] = *rows;
        for lane in 0..LANES {
            rows[lane] = [a[lane], b[lane], c[lane], d[lane]];
        }
    }
}

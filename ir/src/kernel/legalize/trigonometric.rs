//! Circular functions and their inverses, in f32.

use super::build::Builder;
use crate::dtype::DType;
use crate::kernel::ExprId;
use crate::scalar::Scalar;
use std::f32::consts::{FRAC_PI_2, FRAC_PI_4, PI};

/// `(sin(r) / r - 1) / r^2` as a polynomial of `r^2`, `|r| <= pi / 4`; error 3.9e-9.
const SIN: [f32; 3] = [-0.166_666_54, 0.008_332_137, -1.951_202_9e-4];
/// `(cos(r) - 1 + r^2 / 2) / r^4` as a polynomial of `r^2`; error 1e-10.
const COS: [f32; 3] = [0.041_666_646, -0.001_388_733_7, 2.443_484_7e-5];
/// `(atan(t) / t - 1) / t^2` as a polynomial of `t^2`, `|t| <= tan(pi / 8)`; error 7.1e-10.
const ATAN: [f32; 5] = [
    -0.333_333_13,
    0.199_984_16,
    -0.142_424_15,
    0.105_851_226,
    -0.060_552_22,
];
/// `(asin(t) / t - 1) / t^2` as a polynomial of `t^2`, `|t| <= 1/2`; error 4.8e-9.
const ASIN: [f32; 5] = [
    0.166_667_52,
    0.074_952_975,
    0.045_470_376,
    0.024_179_51,
    0.042_166_315,
];
/// `2 / pi` after the binary point, behind a word of zeros.
const TWO_OVER_PI: [u32; 8] = [
    0,
    0xA2F9_836E,
    0x4E44_1529,
    0xFC27_57D1,
    0xF534_DDC0,
    0xDB62_9599,
    0x3C43_9041,
    0xFE51_63AB,
];
/// `tan(pi / 8)` and its reciprocal, where the arctangent changes its argument.
const TAN_PI_8: f32 = 0.414_213_57;
const COT_PI_8: f32 = 2.414_213_7;

/// The upper half of the product of a number of 24 bits and a u32, in u32 arithmetic.
fn upper_product(b: &mut Builder, m: ExprId, w: ExprId) -> ExprId {
    let (half, mask) = (b.u(16), b.u(0xFFFF));
    let (m_low, m_high) = (b.and(m, mask), b.shr(m, half));
    let (w_low, w_high) = (b.and(w, mask), b.shr(w, half));
    let low = b.mul(m_low, w_low);
    let low = b.shr(low, half);
    let middle = b.mul(m_high, w_low);
    let middle = b.add(middle, low);
    let cross = b.mul(m_low, w_high);
    let part = b.and(middle, mask);
    let cross = b.add(cross, part);
    let high = b.mul(m_high, w_high);
    let (middle, cross) = (b.shr(middle, half), b.shr(cross, half));
    let high = b.add(high, middle);
    b.add(high, cross)
}

/// The quadrant (u32, modulo 4) and the rest in `-pi/4..pi/4` of `|x|`: the significand times the 96 bits of `2 / pi`
/// that matter for its exponent (Payne and Hanek, 1983). Exact for every finite argument.
fn quadrant(b: &mut Builder, x: ExprId) -> (ExprId, ExprId) {
    let size = b.unary(Scalar::Abs, x);
    let bits = b.bits(size, DType::U32);
    let (c23, mask, hidden) = (b.u(23), b.u(0x007F_FFFF), b.u(0x0080_0000));
    let exponent = b.shr(bits, c23);
    let m = b.and(bits, mask);
    let m = b.or(m, hidden);
    // First bit of the window in TWO_OVER_PI: exponents below 126 are in the first quadrant and do not come here.
    let (first, c5, c31, c32) = (b.u(120), b.u(5), b.u(31), b.u(32));
    let start = b.sub(exponent, first);
    let word = b.shr(start, c5);
    let shift = b.and(start, c31);
    let back = b.sub(c32, shift);
    let after: Vec<ExprId> = (1..5u32)
        .map(|n| {
            let n = b.u(n);
            b.lt(word, n)
        })
        .collect();
    let words: Vec<ExprId> = (0..4)
        .map(|k| {
            let mut w = b.u(TWO_OVER_PI[k + 4]);
            for (i, below) in after.iter().enumerate().rev() {
                let earlier = b.u(TWO_OVER_PI[k + i]);
                w = b.select(*below, earlier, w);
            }
            w
        })
        .collect();
    let window: Vec<ExprId> = (0..3)
        .map(|k| {
            let high = b.shl(words[k], shift);
            let low = b.shr(words[k + 1], back);
            b.or(high, low)
        })
        .collect();
    // The product modulo 2^96, its upper 64 bits: 2 of the quadrant, 62 of the fraction.
    let high = b.mul(m, window[0]);
    let carry_high = upper_product(b, m, window[1]);
    let high = b.add(high, carry_high);
    let low_part = b.mul(m, window[1]);
    let carry_low = upper_product(b, m, window[2]);
    let low = b.add(low_part, carry_low);
    let overflow = b.lt(low, low_part);
    let (one, zero, two, thirty) = (b.u(1), b.u(0), b.u(2), b.u(30));
    let carry = b.select(overflow, one, zero);
    let high = b.add(high, carry);
    let q = b.shr(high, thirty);
    let fraction = b.shl(high, two);
    let next = b.shr(low, thirty);
    let fraction = b.or(fraction, next);
    let rest = b.shl(low, two);
    // A fraction of a half or more belongs to the next quadrant as a negative one.
    let up = b.shr(fraction, c31);
    let q = b.add(q, up);
    let fraction = b.bits(fraction, DType::I32);
    let fraction = b.cast(fraction, DType::F32);
    let rest = b.cast(rest, DType::F32);
    // 2^-32
    let tiny = b.f(f32::from_bits(0x2F80_0000));
    let fraction = b.fma(rest, tiny, fraction);
    let unit = b.f(FRAC_PI_2 * f32::from_bits(0x2F80_0000));
    let r = b.mul(fraction, unit);
    let limit = b.f(FRAC_PI_4);
    let near = b.lt(size, limit);
    let q = b.select(near, zero, q);
    let r = b.select(near, size, r);
    (q, r)
}

/// `sin(r)` and `cos(r)` for `|r| <= pi / 4`.
fn sin_cos(b: &mut Builder, r: ExprId) -> (ExprId, ExprId) {
    let square = b.mul(r, r);
    let p = b.polynomial(square, &SIN);
    let cube = b.mul(square, r);
    let sin = b.fma(cube, p, r);
    let p = b.polynomial(square, &COS);
    let (half, one) = (b.f(-0.5), b.f(1.0));
    let p = b.fma(square, p, half);
    let cos = b.fma(square, p, one);
    (sin, cos)
}

/// Bit `bit` of `q` moved to the sign bit.
fn sign_from(b: &mut Builder, q: ExprId, bit: u32) -> ExprId {
    let (shift, mask) = (b.u(31 - bit), b.u(0x8000_0000));
    let moved = b.shl(q, shift);
    b.and(moved, mask)
}

fn is_odd(b: &mut Builder, q: ExprId) -> ExprId {
    let one = b.u(1);
    let low = b.and(q, one);
    b.eq(low, one)
}

/// `y` for finite `x`, NaN for others.
fn finite_only(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    let size = b.unary(Scalar::Abs, x);
    let (inf, nan) = (b.f(f32::INFINITY), b.f(f32::NAN));
    let finite = b.lt(size, inf);
    b.select(finite, y, nan)
}

pub(super) fn sin(b: &mut Builder, x: ExprId) -> ExprId {
    let (q, r) = quadrant(b, x);
    let (sin, cos) = sin_cos(b, r);
    let odd = is_odd(b, q);
    let y = b.select(odd, cos, sin);
    let turn = sign_from(b, q, 1);
    let sign = b.sign_bit(x);
    let sign = b.xor(sign, turn);
    let y = b.flip(y, sign);
    finite_only(b, x, y)
}

pub(super) fn cos(b: &mut Builder, x: ExprId) -> ExprId {
    let (q, r) = quadrant(b, x);
    let (sin, cos) = sin_cos(b, r);
    let odd = is_odd(b, q);
    let y = b.select(odd, sin, cos);
    let one = b.u(1);
    let q = b.add(q, one);
    let sign = sign_from(b, q, 1);
    let y = b.flip(y, sign);
    finite_only(b, x, y)
}

pub(super) fn tan(b: &mut Builder, x: ExprId) -> ExprId {
    let (q, r) = quadrant(b, x);
    let (sin, cos) = sin_cos(b, r);
    let odd = is_odd(b, q);
    let top = b.select(odd, cos, sin);
    let bottom = b.select(odd, sin, cos);
    let y = b.div(top, bottom);
    let turn = sign_from(b, q, 0);
    let sign = b.sign_bit(x);
    let sign = b.xor(sign, turn);
    let y = b.flip(y, sign);
    finite_only(b, x, y)
}

/// `base + atan(t)` for `|t| <= tan(pi / 8)`.
fn atan_from(b: &mut Builder, base: ExprId, t: ExprId) -> ExprId {
    let square = b.mul(t, t);
    let p = b.polynomial(square, &ATAN);
    let cube = b.mul(square, t);
    let y = b.fma(cube, p, t);
    b.add(base, y)
}

/// `atan(t)`, `atan(1/t)` or `atan((t - 1) / (t + 1))` with what is missing, so that the argument is small.
pub(super) fn atan(b: &mut Builder, x: ExprId) -> ExprId {
    let t = b.unary(Scalar::Abs, x);
    let (low, high) = (b.f(TAN_PI_8), b.f(COT_PI_8));
    let (one, minus, zero) = (b.f(1.0), b.f(-1.0), b.f(0.0));
    let (mid, big) = (b.lt(low, t), b.lt(high, t));
    let (less, more) = (b.sub(t, one), b.add(t, one));
    let top = b.select(mid, less, t);
    let top = b.select(big, minus, top);
    let bottom = b.select(mid, more, one);
    let bottom = b.select(big, t, bottom);
    let t = b.div(top, bottom);
    let (quarter, half) = (b.f(FRAC_PI_4), b.f(FRAC_PI_2));
    let base = b.select(mid, quarter, zero);
    let base = b.select(big, half, base);
    let y = atan_from(b, base, t);
    let sign = b.sign_bit(x);
    b.flip(y, sign)
}

/// The arctangent of the smaller over the larger magnitude, moved to its octant.
pub(super) fn atan2(b: &mut Builder, y: ExprId, x: ExprId) -> ExprId {
    let (ay, ax) = (b.unary(Scalar::Abs, y), b.unary(Scalar::Abs, x));
    let (zero, one, inf) = (b.f(0.0), b.f(1.0), b.f(f32::INFINITY));
    let steep = b.lt(ax, ay);
    let top = b.select(steep, ax, ay);
    let bottom = b.select(steep, ay, ax);
    let t = b.div(top, bottom);
    let (top_zero, bottom_zero) = (b.eq(top, zero), b.eq(bottom, zero));
    let none = b.and(top_zero, bottom_zero);
    let t = b.select(none, zero, t);
    let (top_inf, bottom_inf) = (b.eq(top, inf), b.eq(bottom, inf));
    let both = b.and(top_inf, bottom_inf);
    let t = b.select(both, one, t);
    let low = b.f(TAN_PI_8);
    let mid = b.lt(low, t);
    let (less, more) = (b.sub(t, one), b.add(t, one));
    let moved = b.div(less, more);
    let t = b.select(mid, moved, t);
    let quarter = b.f(FRAC_PI_4);
    let base = b.select(mid, quarter, zero);
    let angle = atan_from(b, base, t);
    let (half, whole) = (b.f(FRAC_PI_2), b.f(PI));
    let other = b.sub(half, angle);
    let angle = b.select(steep, other, angle);
    let behind = b.sign_bit(x);
    let none = b.u(0);
    let ahead = b.eq(behind, none);
    let other = b.sub(whole, angle);
    let angle = b.select(ahead, angle, other);
    let sign = b.sign_bit(y);
    b.flip(angle, sign)
}

/// Whether `|x| < 1/2`, and the arcsine of `|x|` then, of `sqrt((1 - |x|) / 2)` otherwise.
fn asin_core(b: &mut Builder, x: ExprId) -> (ExprId, ExprId) {
    let size = b.unary(Scalar::Abs, x);
    let (half, one) = (b.f(0.5), b.f(1.0));
    let small = b.lt(size, half);
    let square = b.mul(size, size);
    let rest = b.sub(one, size);
    let rest = b.mul(rest, half);
    let square = b.select(small, square, rest);
    let root = b.unary(Scalar::Sqrt, rest);
    let t = b.select(small, size, root);
    let p = b.polynomial(square, &ASIN);
    let cube = b.mul(square, t);
    let y = b.fma(cube, p, t);
    (small, y)
}

pub(super) fn asin(b: &mut Builder, x: ExprId) -> ExprId {
    let (small, y) = asin_core(b, x);
    let (minus, half) = (b.f(-2.0), b.f(FRAC_PI_2));
    let large = b.fma(y, minus, half);
    let y = b.select(small, y, large);
    let sign = b.sign_bit(x);
    b.flip(y, sign)
}

pub(super) fn acos(b: &mut Builder, x: ExprId) -> ExprId {
    let (small, y) = asin_core(b, x);
    let (half, whole, zero) = (b.f(FRAC_PI_2), b.f(PI), b.f(0.0));
    let sign = b.sign_bit(x);
    let signed = b.flip(y, sign);
    let near = b.sub(half, signed);
    let double = b.add(y, y);
    let other = b.sub(whole, double);
    let below = b.lt(x, zero);
    let far = b.select(below, other, double);
    b.select(small, near, far)
}

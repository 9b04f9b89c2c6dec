//! Powers and remainders.

use super::build::Builder;
use super::exponential::{clamp, exp_small, scale, split};
use crate::dtype::{Class, DType};
use crate::kernel::ExprId;
use crate::scalar::Scalar;

/// `(2 atanh(s) - 2 s) / s^3` as a polynomial of `s^2`, `|s| <= 0.172`; error 1e-11 of `2 atanh(s)`.
const ATANH: [f32; 4] = [0.666_666_6, 0.400_003_34, 0.285_372_8, 0.235_827_66];
/// `log2(e)` in two parts, the first of 12 bits.
const LOG2_E: [f32; 2] = [1.442_382_8, 3.122_283_9e-4];
/// Exponents beyond this overflow or vanish for every base but 1.
const LARGE: f32 = 1_099_511_627_776.0;

pub(super) fn pow(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    if b.dtype(x).is_int() {
        return int_pow(b, x, y);
    }
    let size = b.unary(Scalar::Abs, x);
    let [log_high, log_low] = log2(b, size);
    // The product of the logarithm and y, as a sum of two.
    let exponent = clamp(b, y, -LARGE, LARGE);
    let y_high = b.upper(exponent);
    let y_low = b.sub(exponent, y_high);
    let high = b.mul(y_high, log_high);
    let low = b.mul(y_low, log_high);
    let low = b.fma(exponent, log_low, low);
    let sum = b.add(high, low);
    let sum = clamp(b, sum, -160.0, 140.0);
    let k = b.unary(Scalar::Round, sum);
    let rest = b.sub(high, k);
    let rest = b.add(rest, low);
    // Out of range before the clamp: any rest in bounds will do.
    let rest = clamp(b, rest, -1.0, 1.0);
    let ln2 = b.f(std::f32::consts::LN_2);
    let rest = b.mul(rest, ln2);
    let power = exp_small(b, rest);
    let k = b.cast(k, DType::I32);
    let power = scale(b, power, k);
    edges(b, x, y, size, power)
}

/// The binary logarithm of a positive number as a sum of two, the first of 12 bits; error 2^-30 of it.
fn log2(b: &mut Builder, x: ExprId) -> [ExprId; 2] {
    let (e, f) = split(b, x);
    // log(1 + f) = 2 atanh(s), s = f / (f + 2) as a sum of two.
    let two = b.f(2.0);
    let d = b.add(f, two);
    let d_high = b.upper(d);
    let d_low = b.sub(d_high, two);
    let d_low = b.sub(f, d_low);
    let s = b.div(f, d);
    let s_high = b.upper(s);
    let product = b.mul(s_high, d_high);
    let rest = b.sub(f, product);
    let product = b.mul(s_high, d_low);
    let rest = b.sub(rest, product);
    let s_low = b.div(rest, d);
    let square = b.mul(s, s);
    let p = b.polynomial(square, &ATANH);
    let cube = b.mul(square, s);
    let tail = b.mul(cube, p);
    let double_low = b.add(s_low, s_low);
    let low = b.add(tail, double_low);
    let double = b.add(s_high, s_high);
    let sum = b.add(double, low);
    let high = b.upper(sum);
    let back = b.sub(high, double);
    let low = b.sub(low, back);
    // Times log2(e), plus the exponent.
    let (c_high, c_low) = (b.f(LOG2_E[0]), b.f(LOG2_E[1]));
    let z_high = b.mul(c_high, high);
    let z_low = b.mul(c_high, low);
    let part = b.mul(c_low, low);
    let z_low = b.add(z_low, part);
    let z_low = b.fma(c_low, high, z_low);
    let sum = b.add(z_high, z_low);
    let sum = b.add(sum, e);
    let high = b.upper(sum);
    let back = b.sub(high, e);
    let back = b.sub(back, z_high);
    let low = b.sub(z_low, back);
    [high, low]
}

/// Zero, infinite, negative and NaN operands, as IEEE 754 has them for `pow`.
fn edges(b: &mut Builder, x: ExprId, y: ExprId, size: ExprId, power: ExprId) -> ExprId {
    let (zero, one, inf, nan) = (b.f(0.0), b.f(1.0), b.f(f32::INFINITY), b.f(f32::NAN));
    let (base_zero, base_inf) = (b.eq(size, zero), b.eq(size, inf));
    let y_below = b.lt(y, zero);
    let from_zero = b.select(y_below, inf, zero);
    let from_inf = b.select(y_below, zero, inf);
    let power = b.select(base_zero, from_zero, power);
    let power = b.select(base_inf, from_inf, power);
    // A negative base: an odd exponent gives a negative result, a fraction none.
    let whole = b.unary(Scalar::Trunc, y);
    let integral = b.eq(whole, y);
    let y_size = b.unary(Scalar::Abs, y);
    let exact = b.f(16_777_216.0);
    let small = b.lt(y_size, exact);
    let number = b.cast(y, DType::I32);
    let (bit, flag) = (b.i(1), b.i(1));
    let bit = b.and(number, bit);
    let odd = b.eq(bit, flag);
    let odd = b.and(odd, small);
    let odd = b.and(odd, integral);
    let sign = b.sign_bit(x);
    let none = b.u(0);
    let sign = b.select(odd, sign, none);
    let power = b.flip(power, sign);
    let x_below = b.lt(x, zero);
    let finite = b.lt(size, inf);
    let fraction = b.not(integral);
    let undefined = b.and(x_below, finite);
    let undefined = b.and(undefined, fraction);
    let power = b.select(undefined, nan, power);
    let (nan_x, nan_y) = (b.unary(Scalar::IsNan, x), b.unary(Scalar::IsNan, y));
    let any = b.or(nan_x, nan_y);
    let power = b.select(any, nan, power);
    let (y_zero, x_one) = (b.eq(y, zero), b.eq(x, one));
    let unit = b.or(y_zero, x_one);
    b.select(unit, one, power)
}

/// By squaring; a negative exponent gives the truncated reciprocal, 0 but for 1 and -1.
fn int_pow(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    let dtype = b.dtype(x);
    let (zero, one) = (b.number(0, x), b.number(1, x));
    let mut result = one;
    let mut base = x;
    for bit in 0..dtype.bits() as i64 {
        let at = b.number(bit, y);
        let shifted = b.shr(y, at);
        let low = b.and(shifted, one);
        let set = b.eq(low, one);
        let product = b.mul(result, base);
        result = b.select(set, product, result);
        base = b.mul(base, base);
    }
    if dtype.class() == Class::Unsigned {
        return result;
    }
    let minus = b.number(-1, x);
    let below = b.lt(y, zero);
    let (is_one, is_minus) = (b.eq(x, one), b.eq(x, minus));
    // The low bit of y alone decides for 1 and -1, whatever the sign of y.
    let unit = b.or(is_one, is_minus);
    let kept = b.select(unit, result, zero);
    b.select(below, kept, result)
}

/// Long division of the magnitudes, two digits of 12 bits: exact for quotients below 2^23.
pub(super) fn rem(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    if b.dtype(x).is_int() {
        // x - (x / y) y; division by zero gives 0 and leaves x.
        let q = b.div(x, y);
        let product = b.mul(q, y);
        return b.sub(x, product);
    }
    let (size, by) = (b.unary(Scalar::Abs, x), b.unary(Scalar::Abs, y));
    let (zero, inf, nan) = (b.f(0.0), b.f(f32::INFINITY), b.f(f32::NAN));
    let by_high = b.upper(by);
    let by_low = b.sub(by, by_high);
    let mut rest = size;
    for _ in 0..2 {
        let q = b.div(rest, by);
        let q = b.unary(Scalar::Trunc, q);
        let q = b.upper(q);
        for part in [by_high, by_low] {
            let product = b.mul(q, part);
            rest = b.sub(rest, product);
        }
    }
    // The last digit may be one too large or too small.
    let under = b.lt(rest, zero);
    let more = b.add(rest, by);
    let rest = b.select(under, more, rest);
    let fits = b.lt(rest, by);
    let less = b.sub(rest, by);
    let rest = b.select(fits, rest, less);
    let at_least = b.lt(rest, zero);
    let rest = b.select(at_least, zero, rest);
    let fits = b.lt(rest, by);
    let rest = b.select(fits, rest, zero);
    let shorter = b.lt(size, by);
    let rest = b.select(shorter, size, rest);
    let sign = b.sign_bit(x);
    let rest = b.flip(rest, sign);
    let (finite, some) = (b.lt(size, inf), b.lt(zero, by));
    let defined = b.and(finite, some);
    b.select(defined, rest, nan)
}

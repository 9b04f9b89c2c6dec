//! Exponentials, logarithms and what is made of them, in f32.

use super::build::Builder;
use crate::dtype::DType;
use crate::kernel::ExprId;
use crate::scalar::Scalar;

/// `ln 2` in two parts; the first has 10 bits, so that its product with an exponent is exact.
pub(super) const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// `(e^r - 1 - r) / r^2` for `|r| <= ln(2) / 2`; error of `e^r` 3.3e-9.
const EXP: [f32; 5] = [
    0.499_999_94,
    0.166_665_15,
    0.041_668_456,
    0.008_369_419,
    0.001_381_314_4,
];
/// The same with an error of 2.6e-10 of `e^r - 1`.
const EXPM1: [f32; 6] = [
    0.5,
    0.166_666_67,
    0.041_666_344,
    0.008_333_27,
    0.001_394_200_7,
    1.991_559_3e-4,
];
/// `(log(1 + f) - f + f^2 / 2) / f^3` for `sqrt(1/2) <= 1 + f <= sqrt(2)`; error of the logarithm 5.9e-9.
const LOG: [f32; 8] = [
    0.333_333_3,
    -0.250_008_2,
    0.200_012_27,
    -0.166_233_57,
    0.142_017_59,
    -0.131_601_83,
    0.127_615_75,
    -0.076_344_93,
];
/// `(sinh(x) / x - 1) / x^2` as a polynomial of `x^2`, `|x| <= 1`; error 5.2e-11.
const SINH: [f32; 4] = [0.166_666_67, 0.008_333_35, 1.983_616e-4, 2.816_951_3e-6];
/// `tanh(x) / x` as a quotient of polynomials of `x^2`, `|x| <= 9`; error 1.3e-9.
const TANH: [&[f32]; 2] = [
    &[
        1.0,
        0.136_808_62,
        3.869_515_4e-3,
        2.803_144e-5,
        3.064_275_6e-8,
        -1.224_634_8e-11,
    ],
    &[
        1.0,
        0.470_141_95,
        0.027_250_184,
        3.940_725_6e-4,
        1.289_043e-6,
    ],
];
/// `erf(x) / x` as a quotient of polynomials of `x^2`, `|x| <= 4`; error 2.5e-8.
const ERF: [&[f32]; 2] = [
    &[
        1.128_379_1,
        0.193_544_6,
        0.053_101_428,
        3.883_237_5e-3,
        2.845_494e-4,
        1.986_614_5e-6,
    ],
    &[
        1.0,
        0.504_857,
        0.115_349_57,
        0.015_207_071,
        1.185_517_5e-3,
        3.741_754e-5,
    ],
];

/// `x`, but at least `low`; NaN stays.
fn at_least(b: &mut Builder, low: f32, x: ExprId) -> ExprId {
    let low = b.f(low);
    if b.has(Scalar::Max) {
        return b.binary(Scalar::Max, low, x);
    }
    let under = b.lt(x, low);
    b.select(under, low, x)
}

/// `x`, but at most `high`; NaN stays.
fn at_most(b: &mut Builder, x: ExprId, high: f32) -> ExprId {
    let high = b.f(high);
    if b.has(Scalar::Min) {
        return b.binary(Scalar::Min, high, x);
    }
    let over = b.lt(high, x);
    b.select(over, high, x)
}

/// `x` within bounds; NaN stays.
pub(super) fn clamp(b: &mut Builder, x: ExprId, low: f32, high: f32) -> ExprId {
    let x = at_least(b, low, x);
    at_most(b, x, high)
}

/// `k` (an integer as f32) and `r` with `x = k ln 2 + r`. Clamped where `e^x` is 0 or infinite even after one
/// halving.
fn reduce(b: &mut Builder, x: ExprId) -> (ExprId, ExprId) {
    let x = clamp(b, x, -104.0, 90.0);
    let scale = b.f(std::f32::consts::LOG2_E);
    let k = b.mul(x, scale);
    let k = b.unary(Scalar::Round, k);
    let mut r = x;
    for part in LN2 {
        let part = b.f(-part);
        r = b.fma(k, part, r);
    }
    (k, r)
}

/// `2^k` for an i32 within the exponents of normal numbers.
fn power_of_two(b: &mut Builder, k: ExprId) -> ExprId {
    let (bias, shift) = (b.i(127), b.i(23));
    let bits = b.add(k, bias);
    let bits = b.shl(bits, shift);
    b.bits(bits, DType::F32)
}

/// `y * 2^k` for an i32 up to twice the range of exponents, rounded once even when subnormal.
pub(super) fn scale(b: &mut Builder, y: ExprId, k: ExprId) -> ExprId {
    let one = b.i(1);
    let half = b.shr(k, one);
    let rest = b.sub(k, half);
    let (first, second) = (power_of_two(b, half), power_of_two(b, rest));
    let y = b.mul(y, first);
    b.mul(y, second)
}

/// `e^r` for `|r| <= ln(2) / 2`.
pub(super) fn exp_small(b: &mut Builder, r: ExprId) -> ExprId {
    let p = b.polynomial(r, &EXP);
    let square = b.mul(r, r);
    let y = b.fma(square, p, r);
    let one = b.f(1.0);
    b.add(y, one)
}

/// `e^x * 2^shift`.
fn exp_shifted(b: &mut Builder, x: ExprId, shift: i32) -> ExprId {
    let (k, r) = reduce(b, x);
    let y = exp_small(b, r);
    let k = b.cast(k, DType::I32);
    let shift = b.i(shift);
    let k = b.add(k, shift);
    scale(b, y, k)
}

pub(super) fn exp(b: &mut Builder, x: ExprId) -> ExprId {
    exp_shifted(b, x, 0)
}

pub(super) fn expm1(b: &mut Builder, x: ExprId) -> ExprId {
    let (k, r) = reduce(b, x);
    let p = b.polynomial(r, &EXPM1);
    let square = b.mul(r, r);
    let small = b.fma(square, p, r);
    // 2^k (e^r - 1) + (2^k - 1); beyond 2^30 the 1 does not count.
    let one = b.f(1.0);
    let near = clamp(b, k, -30.0, 30.0);
    let near = b.cast(near, DType::I32);
    let power = power_of_two(b, near);
    let whole = b.sub(power, one);
    let y = b.fma(power, small, whole);
    let large = b.add(small, one);
    let k = b.cast(k, DType::I32);
    let large = scale(b, large, k);
    let limit = b.f(20.0);
    let over = b.lt(limit, x);
    let y = b.select(over, large, y);
    keep_zero(b, x, y)
}

/// `y`, or `x` itself where that is zero of either sign.
fn keep_zero(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    let zero = b.f(0.0);
    let none = b.eq(x, zero);
    b.select(none, x, y)
}

/// Exponent (an integer as f32) and significand minus 1 of a positive number, the significand within
/// `sqrt(1/2)` and `sqrt(2)`.
pub(super) fn split(b: &mut Builder, x: ExprId) -> (ExprId, ExprId) {
    let (least, up) = (b.f(f32::MIN_POSITIVE), b.f(8_388_608.0));
    let subnormal = b.lt(x, least);
    let scaled = b.mul(x, up);
    let x = b.select(subnormal, scaled, x);
    let (down, zero) = (b.f(-23.0), b.f(0.0));
    let shift = b.select(subnormal, down, zero);
    // The bits of sqrt(1/2): what lies above decides the exponent.
    let root = b.i(0x3F35_04F3);
    let bits = b.bits(x, DType::I32);
    let bits = b.sub(bits, root);
    let (shr, mask) = (b.i(23), b.i(0x007F_FFFF));
    let e = b.shr(bits, shr);
    let e = b.cast(e, DType::F32);
    let e = b.add(e, shift);
    let m = b.and(bits, mask);
    let m = b.add(m, root);
    let m = b.bits(m, DType::F32);
    let one = b.f(1.0);
    let f = b.sub(m, one);
    (e, f)
}

/// `e ln 2 + log(1 + f)`.
fn log_of(b: &mut Builder, e: ExprId, f: ExprId) -> ExprId {
    let p = b.polynomial(f, &LOG);
    let square = b.mul(f, f);
    let cube = b.mul(f, square);
    let tail = b.mul(cube, p);
    let (high, low, half) = (b.f(LN2[0]), b.f(LN2[1]), b.f(-0.5));
    let tail = b.fma(e, low, tail);
    let tail = b.fma(square, half, tail);
    let y = b.add(f, tail);
    b.fma(e, high, y)
}

/// `y` but where `x` is below, at or infinitely above the start of a logarithm's domain.
fn log_edges(b: &mut Builder, x: ExprId, start: f32, y: ExprId) -> ExprId {
    let (start, inf) = (b.f(start), b.f(f32::INFINITY));
    let (nan, minus) = (b.f(f32::NAN), b.f(f32::NEG_INFINITY));
    let finite = b.lt(x, inf);
    let y = b.select(finite, y, x);
    let below = b.lt(x, start);
    let y = b.select(below, nan, y);
    let at = b.eq(x, start);
    b.select(at, minus, y)
}

pub(super) fn log(b: &mut Builder, x: ExprId) -> ExprId {
    let (e, f) = split(b, x);
    let y = log_of(b, e, f);
    log_edges(b, x, 0.0, y)
}

/// Where `1 + x` needs no exponent, `x` is its exact fraction; elsewhere its rounding does not count.
pub(super) fn log1p(b: &mut Builder, x: ExprId) -> ExprId {
    let (one, zero) = (b.f(1.0), b.f(0.0));
    let sum = b.add(x, one);
    let (e, f) = split(b, sum);
    let near = b.eq(e, zero);
    let f = b.select(near, x, f);
    let y = log_of(b, e, f);
    let y = log_edges(b, x, -1.0, y);
    keep_zero(b, x, y)
}

/// `e^|x| / 2` and a quarter of its reciprocal, `e^-|x| / 2`.
fn halves(b: &mut Builder, x: ExprId) -> (ExprId, ExprId) {
    let size = b.unary(Scalar::Abs, x);
    let up = exp_shifted(b, size, -1);
    let quarter = b.f(0.25);
    let down = b.div(quarter, up);
    (up, down)
}

pub(super) fn sinh(b: &mut Builder, x: ExprId) -> ExprId {
    let (up, down) = halves(b, x);
    let large = b.sub(up, down);
    let sign = b.sign_bit(x);
    let large = b.flip(large, sign);
    let square = b.mul(x, x);
    let p = b.polynomial(square, &SINH);
    let cube = b.mul(square, x);
    let small = b.fma(cube, p, x);
    let one = b.f(1.0);
    let near = b.lt(square, one);
    let y = b.select(near, small, large);
    keep_zero(b, x, y)
}

pub(super) fn cosh(b: &mut Builder, x: ExprId) -> ExprId {
    let (up, down) = halves(b, x);
    b.add(up, down)
}

/// `a P(a^2) / Q(a^2)` for `a` up to `limit`, at most 1, of `a = |x|`; and that size.
fn quotient(b: &mut Builder, x: ExprId, [p, q]: [&[f32]; 2], limit: f32) -> (ExprId, ExprId) {
    let size = b.unary(Scalar::Abs, x);
    let near = at_most(b, size, limit);
    let square = b.mul(near, near);
    let p = b.polynomial(square, p);
    let q = b.polynomial(square, q);
    let p = b.mul(near, p);
    let y = b.div(p, q);
    (at_most(b, y, 1.0), size)
}

/// Beyond 9.02 the result rounds to 1.
pub(super) fn tanh(b: &mut Builder, x: ExprId) -> ExprId {
    let (y, size) = quotient(b, x, TANH, 9.02);
    let (limit, one) = (b.f(9.02), b.f(1.0));
    let over = b.lt(limit, size);
    let y = b.select(over, one, y);
    let sign = b.sign_bit(x);
    b.flip(y, sign)
}

/// Beyond 3.92 the result rounds to 1; at 4.15 the quotient is above that.
pub(super) fn erf(b: &mut Builder, x: ExprId) -> ExprId {
    let (y, _) = quotient(b, x, ERF, 4.15);
    let sign = b.sign_bit(x);
    b.flip(y, sign)
}

/// With `e = e^-|x|`: `1 / (1 + e)`, times `e` for negative `x`.
pub(super) fn sigmoid(b: &mut Builder, x: ExprId) -> ExprId {
    let size = b.unary(Scalar::Abs, x);
    let minus = b.unary(Scalar::Neg, size);
    let e = b.unary(Scalar::Exp, minus);
    let (one, zero) = (b.number(1, x), b.number(0, x));
    let sum = b.add(e, one);
    let below = b.lt(x, zero);
    let top = b.select(below, e, one);
    b.div(top, sum)
}

/// Above this the square of a number plus 1 is the square.
const LARGE: f32 = 1e9;

/// `log1p(argument)`, or `log1p(x) + ln 2` for large `x`.
fn area(b: &mut Builder, x: ExprId, argument: ExprId) -> ExprId {
    let (limit, ln2, zero) = (b.f(LARGE), b.f(std::f32::consts::LN_2), b.f(0.0));
    let large = b.lt(limit, x);
    let argument = b.select(large, x, argument);
    let more = b.select(large, ln2, zero);
    let y = b.unary(Scalar::Log1p, argument);
    b.add(y, more)
}

/// `log1p(a + a^2 / (1 + sqrt(a^2 + 1)))` of `a = |x|`.
pub(super) fn asinh(b: &mut Builder, x: ExprId) -> ExprId {
    let size = b.unary(Scalar::Abs, x);
    let one = b.f(1.0);
    let square = b.mul(size, size);
    let root = b.add(square, one);
    let root = b.unary(Scalar::Sqrt, root);
    let root = b.add(root, one);
    let rest = b.div(square, root);
    let argument = b.add(size, rest);
    let y = area(b, size, argument);
    let sign = b.sign_bit(x);
    let y = b.flip(y, sign);
    keep_zero(b, x, y)
}

/// `log1p(t + sqrt(t (t + 2)))` of `t = x - 1`.
pub(super) fn acosh(b: &mut Builder, x: ExprId) -> ExprId {
    let (one, two, nan) = (b.f(1.0), b.f(2.0), b.f(f32::NAN));
    let t = b.sub(x, one);
    let root = b.add(t, two);
    let root = b.mul(t, root);
    let root = b.unary(Scalar::Sqrt, root);
    let argument = b.add(t, root);
    let y = area(b, x, argument);
    let below = b.lt(x, one);
    b.select(below, nan, y)
}

/// `log1p(2 a / (1 - a)) / 2` of `a = |x|`.
pub(super) fn atanh(b: &mut Builder, x: ExprId) -> ExprId {
    let size = b.unary(Scalar::Abs, x);
    let (one, half) = (b.f(1.0), b.f(0.5));
    let rest = b.sub(one, size);
    let double = b.add(size, size);
    let argument = b.div(double, rest);
    let y = b.unary(Scalar::Log1p, argument);
    let y = b.mul(y, half);
    let sign = b.sign_bit(x);
    b.flip(y, sign)
}

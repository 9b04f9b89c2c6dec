//! Expansions without polynomials: signs, extremes, rounding, remainders with the divisor's sign, bit counts.

use super::build::Builder;
use crate::dtype::{Class, DType};
use crate::kernel::ExprId;
use crate::scalar::Scalar;

/// f32 numbers from here on are integers.
const INTEGRAL: f32 = 8_388_608.0;

pub(super) fn neg(b: &mut Builder, x: ExprId) -> ExprId {
    match b.dtype(x) {
        DType::F32 => {
            let mask = b.u(0x8000_0000);
            b.flip(x, mask)
        }
        DType::F64 => {
            let zero = b.literal(DType::F64, (-0f64).to_bits());
            b.sub(zero, x)
        }
        _ => {
            let zero = b.number(0, x);
            b.sub(zero, x)
        }
    }
}

pub(super) fn abs(b: &mut Builder, x: ExprId) -> ExprId {
    match b.dtype(x) {
        DType::F32 => {
            let (bits, mask) = (b.bits(x, DType::U32), b.u(0x7FFF_FFFF));
            let bits = b.and(bits, mask);
            b.bits(bits, DType::F32)
        }
        d if d.class() == Class::Unsigned => x,
        _ => {
            let zero = b.number(0, x);
            let below = b.lt(x, zero);
            let minus = b.unary(Scalar::Neg, x);
            let positive = b.select(below, minus, x);
            // -0 is not below 0; adding 0 takes its sign away and changes nothing else.
            if b.dtype(x) == DType::F64 {
                b.add(positive, zero)
            } else {
                positive
            }
        }
    }
}

pub(super) fn sign(b: &mut Builder, x: ExprId) -> ExprId {
    let (zero, one, minus) = (b.number(0, x), b.number(1, x), b.number(-1, x));
    let is_zero = b.eq(x, zero);
    let rest = b.select(is_zero, zero, x);
    let above = b.lt(zero, x);
    let rest = b.select(above, one, rest);
    if b.dtype(x).class() == Class::Unsigned {
        return rest;
    }
    let below = b.lt(x, zero);
    b.select(below, minus, rest)
}

fn extreme(b: &mut Builder, x: ExprId, y: ExprId, keep: ExprId) -> ExprId {
    let chosen = b.select(keep, x, y);
    if b.dtype(x).class() != Class::Float {
        return chosen;
    }
    // A NaN in y is chosen already: comparisons with it are false.
    let nan = b.unary(Scalar::IsNan, x);
    b.select(nan, x, chosen)
}

pub(super) fn min(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    let keep = b.lt(x, y);
    extreme(b, x, y, keep)
}

pub(super) fn max(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    let keep = b.lt(y, x);
    extreme(b, x, y, keep)
}

/// Magnitude bits of an f32.
fn magnitude(b: &mut Builder, x: ExprId) -> ExprId {
    let (bits, mask) = (b.bits(x, DType::U32), b.u(0x7FFF_FFFF));
    b.and(bits, mask)
}

/// By bits for f32, since shader compilers may take `x != x` to be false.
pub(super) fn is_nan(b: &mut Builder, x: ExprId) -> ExprId {
    if b.dtype(x) == DType::F32 {
        let (bits, inf) = (magnitude(b, x), b.u(0x7F80_0000));
        return b.lt(inf, bits);
    }
    let same = b.eq(x, x);
    b.not(same)
}

pub(super) fn is_inf(b: &mut Builder, x: ExprId) -> ExprId {
    if b.dtype(x) == DType::F32 {
        let (bits, inf) = (magnitude(b, x), b.u(0x7F80_0000));
        return b.eq(bits, inf);
    }
    let size = b.unary(Scalar::Abs, x);
    let inf = b.literal(DType::F64, f64::INFINITY.to_bits());
    b.eq(size, inf)
}

pub(super) fn recip(b: &mut Builder, x: ExprId) -> ExprId {
    let one = b.number(1, x);
    b.div(one, x)
}

pub(super) fn rsqrt(b: &mut Builder, x: ExprId) -> ExprId {
    let root = b.unary(Scalar::Sqrt, x);
    recip(b, root)
}

/// The magnitude `y` with the sign of `x` where `|x|` has a fraction, otherwise `x` itself.
fn rounded(b: &mut Builder, x: ExprId, size: ExprId, y: ExprId) -> ExprId {
    let sign = b.sign_bit(x);
    let y = b.flip(y, sign);
    let limit = b.f(INTEGRAL);
    let fractional = b.lt(size, limit);
    b.select(fractional, y, x)
}

pub(super) fn trunc(b: &mut Builder, x: ExprId) -> ExprId {
    let size = b.unary(Scalar::Abs, x);
    let whole = b.cast(size, DType::I32);
    let whole = b.cast(whole, DType::F32);
    rounded(b, x, size, whole)
}

/// Halves to even by adding and taking away 2^23, where the unit in the last place is 1.
pub(super) fn round(b: &mut Builder, x: ExprId) -> ExprId {
    let size = b.unary(Scalar::Abs, x);
    let limit = b.f(INTEGRAL);
    let sum = b.add(size, limit);
    let whole = b.sub(sum, limit);
    rounded(b, x, size, whole)
}

pub(super) fn floor(b: &mut Builder, x: ExprId) -> ExprId {
    let whole = b.unary(Scalar::Trunc, x);
    let (over, one) = (b.lt(x, whole), b.f(1.0));
    let less = b.sub(whole, one);
    b.select(over, less, whole)
}

pub(super) fn ceil(b: &mut Builder, x: ExprId) -> ExprId {
    let whole = b.unary(Scalar::Trunc, x);
    let (under, one) = (b.lt(whole, x), b.f(1.0));
    let more = b.add(whole, one);
    // -0.5 becomes -0: only magnitudes of 1 and more gain by the addition.
    b.select(under, more, whole)
}

/// The remainder with the sign of the divisor, from the one with the sign of the dividend.
pub(super) fn modulo(b: &mut Builder, x: ExprId, y: ExprId) -> ExprId {
    let r = b.binary(Scalar::Rem, x, y);
    if b.dtype(x).class() == Class::Unsigned {
        return r;
    }
    let zero = b.number(0, x);
    let (below_r, below_y, none) = (b.lt(r, zero), b.lt(y, zero), b.eq(r, zero));
    let differ = b.xor(below_r, below_y);
    let some = b.not(none);
    let wrong = b.and(differ, some);
    let moved = b.add(r, y);
    let r = b.select(wrong, moved, r);
    if b.dtype(x) != DType::F32 {
        return r;
    }
    // Zero has the sign of the divisor.
    let sign = b.sign_bit(y);
    let signed = b.flip(zero, sign);
    b.select(none, signed, r)
}

/// Sums of neighbouring bit groups, in u32 (or u64) arithmetic.
pub(super) fn popcount(b: &mut Builder, x: ExprId) -> ExprId {
    let dtype = b.dtype(x);
    let wide = if dtype.bits() == 64 {
        DType::U64
    } else {
        DType::U32
    };
    // Bits above a narrow element are those of its sign: take only its own.
    let x = b.cast(x, wide);
    let own = b.literal(wide, u64::MAX >> (64 - dtype.bits()));
    let mut x = b.and(x, own);
    for (step, mask) in [
        (1, 0x5555_5555_5555_5555u64),
        (2, 0x3333_3333_3333_3333),
        (4, 0x0F0F_0F0F_0F0F_0F0F),
        (8, 0x00FF_00FF_00FF_00FF),
        (16, 0x0000_FFFF_0000_FFFF),
        (32, 0x0000_0000_FFFF_FFFF),
    ] {
        if step >= dtype.bits() {
            break;
        }
        let mask = b.literal(wide, mask & (u64::MAX >> (64 - wide.bits())));
        let step = b.literal(wide, step as u64);
        let low = b.and(x, mask);
        let high = b.shr(x, step);
        let high = b.and(high, mask);
        x = b.add(low, high);
    }
    b.cast(x, dtype)
}

//! Functions of 32-bit floats whose built-ins in WGSL are too inexact, or undefined at the edges.
//!
//! Polynomials are least-squares fits, weighted towards equal error, of the function divided by its leading term; the
//! interval and the largest relative error are given with each.

use super::prelude::{Helper, helpers};

/// The helpers of functions of 32-bit floats.
pub(super) const HELPERS: &[Helper] = helpers! {
// 1e-8 for s = x / (2 + x), |s| <= 0.2.
"log1p_small" [] "fn log1p_small(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let q = s * s;
    return 2.0 * s * (1.0 + q * (0.33333331 + q * (0.20000501 + q * (0.14251145 + q * 0.1207693))));
}"
// Exponent, and the logarithm of the mantissa taken between sqrt(1/2) and sqrt(2).
"split_log" ["log1p_small"] "fn split_log(x: f32) -> vec2<f32> {
    let bits = bitcast<i32>(x);
    let exponent = (bits - 0x3f3504f3) >> 23u;
    let mantissa = bitcast<f32>(bits - (exponent << 23u));
    return vec2<f32>(f32(exponent), log1p_small(mantissa - 1.0));
}"
// Built-in logarithms are exact to an absolute error only. ln 2 is split so that its product with an exponent is exact.
"log_f32" ["split_log", "float_of", "is_inf"] "fn log_f32(x: f32) -> f32 {
    if !(x > 0.0) {
        return select(float_of(0x7fc00000u), float_of(0xff800000u), x == 0.0);
    }
    if is_inf(x) {
        return x;
    }
    let parts = split_log(x);
    return parts.x * 0.69314575 + (parts.y + parts.x * 0.0000014286068);
}"
"log1p_f32" ["log1p_small", "log_f32"] "fn log1p_f32(x: f32) -> f32 {
    if x > -0.3 && x < 0.45 {
        return select(log1p_small(x), x, x == 0.0);
    }
    return log_f32(1.0 + x);
}"
"expm1_f32" [] "fn expm1_f32(x: f32) -> f32 {
    if abs(x) < 0.35 {
        return x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666667 + x * (0.0083333333 + x * (0.0013888889 + x * 0.0001984127))))));
    }
    return exp(x) - 1.0;
}"
// Quarter turns in an angle, and the rest in [-pi/4, pi/4]. Small numbers of turns are subtracted in three parts, the first
// two with so few bits that products with up to 2^12 turns are exact. Large angles are multiplied by the bits of 2 / pi
// that matter at their exponent, in 64-bit integers (Payne and Hanek, 1983).
"quarter_turns" ["large_turns"] "fn quarter_turns(x: f32) -> Turned {
    if abs(x) > 5000.0 {
        return large_turns(x);
    }
    let turns = round(x * 0.63661975);
    let rest = ((x - turns * 1.5703125) - turns * 0.00048375129699707) - turns * 7.5497899549e-8;
    return Turned(rest, i32(turns));
}"
"large_turns" ["mul_wide", "add_i64", "i64_to_f32", "float_of"] "struct Turned { rest: f32, turns: i32 }

fn large_turns(x: f32) -> Turned {
    // 2 / pi, behind two bits for whole turns.
    var two_over_pi = array<u32, 8>(0u, 0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u, 0x4f10e410u, 0x7f9458eau);
    let bits = bitcast<u32>(x);
    let exponent = ((bits >> 23u) & 0xffu) - 126u;
    if exponent > 128u {
        return Turned(float_of(0x7fc00000u), 0);
    }
    let mantissa = (bits << 8u) | 0x80000000u;
    let word = exponent >> 5u;
    let shift = exponent & 31u;
    var window = vec3<u32>(two_over_pi[word], two_over_pi[word + 1u], two_over_pi[word + 2u]);
    if shift != 0u {
        let next = vec3<u32>(window.y, window.z, two_over_pi[word + 3u]);
        window = (window << vec3<u32>(shift)) | (next >> vec3<u32>(32u - shift));
    }
    // The leading two bits count quarter turns.
    let low = mul_wide(mantissa, window.z);
    let middle = add_i64(mul_wide(mantissa, window.y), vec2<u32>(low.y, 0u));
    let product = vec2<u32>(middle.x, middle.y + mantissa * window.x);
    var turns = i32(product.y >> 30u);
    var rest = vec2<u32>(product.x, product.y & 0x3fffffffu);
    if (rest.y & 0x20000000u) != 0u {
        rest.y |= 0xc0000000u;
        turns += 1;
    }
    let angle = i64_to_f32(rest) * 3.4061215e-19;
    let negative = (bits & 0x80000000u) != 0u;
    return Turned(select(angle, -angle, negative), select(turns, -turns, negative));
}"
"sin_small" [] "fn sin_small(x: f32) -> f32 {
    let q = x * x;
    return x + x * q * (-0.16666667 + q * (0.0083333333 + q * (-0.00019841270 + q * 0.0000027557319)));
}"
"cos_small" [] "fn cos_small(x: f32) -> f32 {
    let q = x * x;
    return 1.0 + q * (-0.5 + q * (0.041666667 + q * (-0.0013888889 + q * (0.000024801587 - q * 2.7557319e-7))));
}"
"sin_f32" ["quarter_turns", "sin_small", "cos_small"] "fn sin_f32(x: f32) -> f32 {
    if x == 0.0 {
        return x;
    }
    let t = quarter_turns(x);
    let value = select(sin_small(t.rest), cos_small(t.rest), (t.turns & 1) != 0);
    return select(value, -value, (t.turns & 2) != 0);
}"
"cos_f32" ["quarter_turns", "sin_small", "cos_small"] "fn cos_f32(x: f32) -> f32 {
    let t = quarter_turns(x);
    let value = select(cos_small(t.rest), sin_small(t.rest), (t.turns & 1) != 0);
    return select(value, -value, ((t.turns + 1) & 2) != 0);
}"
"tan_f32" ["quarter_turns", "sin_small", "cos_small"] "fn tan_f32(x: f32) -> f32 {
    if x == 0.0 {
        return x;
    }
    let t = quarter_turns(x);
    let s = sin_small(t.rest);
    let c = cos_small(t.rest);
    return select(s / c, -c / s, (t.turns & 1) != 0);
}"
// 2e-8 on [0, tan(pi/8)].
"atan_f32" ["with_sign", "is_nan"] "fn atan_f32(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    let a = abs(x);
    var base = 0.0;
    var t = a;
    if a > 2.4142135 {
        base = 1.5707964;
        t = -1.0 / a;
    } else if a > 0.41421357 {
        base = 0.78539819;
        t = (a - 1.0) / (a + 1.0);
    }
    let q = t * t;
    return with_sign(base + t * (0.99999998 + q * (-0.33332808 + q * (0.19974713 + q * (-0.13854338 + q * 0.07993244)))), x);
}"
// 5e-9 on [0, 0.5].
"asin_small" [] "fn asin_small(x: f32) -> f32 {
    let q = x * x;
    return x * (1.0 + q * (0.16666792 + q * (0.07494368 + q * (0.04555767 + q * (0.02382403 + q * 0.04269016)))));
}"
"asin_f32" ["asin_small", "with_sign", "float_of"] "fn asin_f32(x: f32) -> f32 {
    let a = abs(x);
    if a <= 0.5 {
        return asin_small(x);
    }
    if !(a <= 1.0) {
        return float_of(0x7fc00000u);
    }
    return with_sign(1.5707964 - 2.0 * asin_small(sqrt((1.0 - a) * 0.5)), x);
}"
"acos_f32" ["asin_small", "float_of"] "fn acos_f32(x: f32) -> f32 {
    let a = abs(x);
    if a <= 0.5 {
        return 1.5707964 - asin_small(x);
    }
    if !(a <= 1.0) {
        return float_of(0x7fc00000u);
    }
    let half = 2.0 * asin_small(sqrt((1.0 - a) * 0.5));
    return select(half, 3.1415927 - half, x < 0.0);
}"
"atan2_f32" ["atan_f32", "with_sign", "is_inf", "is_nan"] "fn atan2_f32(y: f32, x: f32) -> f32 {
    if is_nan(x) || is_nan(y) {
        return x + y;
    }
    let left = (bitcast<u32>(x) & 0x80000000u) != 0u;
    var angle = 0.0;
    if is_inf(x) && is_inf(y) {
        angle = 0.78539819;
    } else if y == 0.0 {
        angle = 0.0;
    } else if x == 0.0 {
        angle = 1.5707964;
    } else {
        angle = atan_f32(abs(y) / abs(x));
    }
    return with_sign(select(angle, 3.1415927 - angle, left), y);
}"
"sinh_f32" ["with_sign"] "fn sinh_f32(x: f32) -> f32 {
    let a = abs(x);
    if a < 1.0 {
        let q = x * x;
        return x * (1.0 + q * (0.16666667 + q * (0.0083333333 + q * (0.00019841270 + q * 0.0000027557319))));
    }
    // e^a may overflow where half of it does not.
    let e = exp(a * 0.5);
    return with_sign((0.5 * e) * e - 0.5 / e / e, x);
}"
"cosh_f32" [] "fn cosh_f32(x: f32) -> f32 {
    let e = exp(abs(x) * 0.5);
    return (0.5 * e) * e + 0.5 / e / e;
}"
// 1e-9 on [0, 0.55].
"tanh_f32" ["with_sign", "is_nan"] "fn tanh_f32(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    let a = abs(x);
    if a < 0.55 {
        let q = x * x;
        return x * (1.0 + q * (-0.33333312 + q * (0.13332479 + q * (-0.05384441 + q * (0.02104611 - q * 0.00624406)))));
    }
    // Beyond 15 the result rounds to 1.
    return with_sign(1.0 - 2.0 / (exp(2.0 * min(a, 15.0)) + 1.0), x);
}"
"asinh_f32" ["with_sign", "log1p_f32", "log_f32"] "fn asinh_f32(x: f32) -> f32 {
    let a = abs(x);
    if a > 1.0e10 {
        return with_sign(log_f32(a) + 0.69314718, x);
    }
    return with_sign(log1p_f32(a + a * a / (1.0 + sqrt(1.0 + a * a))), x);
}"
"acosh_f32" ["log1p_f32", "log_f32", "float_of"] "fn acosh_f32(x: f32) -> f32 {
    if !(x >= 1.0) {
        return float_of(0x7fc00000u);
    }
    if x > 1.0e10 {
        return log_f32(x) + 0.69314718;
    }
    let t = x - 1.0;
    return log1p_f32(t + sqrt(t * (2.0 + t)));
}"
"atanh_f32" ["log1p_f32", "with_sign", "float_of"] "fn atanh_f32(x: f32) -> f32 {
    let a = abs(x);
    if !(a <= 1.0) {
        return float_of(0x7fc00000u);
    }
    if a == 1.0 {
        return with_sign(float_of(0x7f800000u), x);
    }
    return with_sign(0.5 * log1p_f32(2.0 * a / (1.0 - a)), x);
}"
// 4e-11 on [0, 1]; beyond, the exponent of erfc to 3e-9 on [1, 4].
"erf_f32" ["with_sign", "is_nan"] "fn erf_f32(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    let a = abs(x);
    if a < 1.0 {
        let q = x * x;
        return x * (1.12837917 + q * (-0.376126385 + q * (0.112837827 + q * (-0.0268654458 + q * (0.00522107487
            + q * (-0.000848471132 + q * (0.000112705435 - q * 0.00000968013356)))))));
    }
    let t = min(a, 4.0);
    let e = -0.00038590257 + t * (1.13053849 + t * (0.631217274 + t * (0.110766116 + t * (-0.026902525 + t * (0.00497795214
        + t * (-0.0006609201 + t * (0.0000578279168 + t * (-0.00000286502729 + t * 5.55587979e-8))))))));
    return with_sign(1.0 - exp(-e), x);
}"
"sigmoid_f32" [] "fn sigmoid_f32(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(1.0, e, x < 0.0) / (1.0 + e);
}"
// 2^(y log2 a): the exponent's part of the product in two exact halves, since the result's error is that of the product.
"exp2_product" ["split_log", "float_of"] "fn exp2_product(a: f32, y: f32) -> f32 {
    let parts = split_log(a);
    let y_high = bitcast<f32>(bitcast<u32>(y) & 0xfffff000u);
    let y_low = y - y_high;
    let small = y * (parts.y * 1.442695);
    let whole = round(y * parts.x + small);
    if abs(whole) > 300.0 {
        return select(0.0, float_of(0x7f800000u), whole > 0.0);
    }
    let rest = ((y_high * parts.x - whole) + y_low * parts.x) + small;
    // Two steps, since the scale itself may lie beyond the range.
    let n = i32(whole);
    return ldexp(ldexp(exp2(rest), n / 2), n - n / 2);
}"
// Whole exponents up to 64 by repeated squaring, others by logarithm.
"pow_f32" ["with_sign", "is_nan", "is_inf", "float_of", "exp2_product"] "fn pow_f32(x: f32, y: f32) -> f32 {
    if y == 0.0 || x == 1.0 {
        return 1.0;
    }
    if is_nan(x) || is_nan(y) {
        return x + y;
    }
    let whole = trunc(y) == y;
    if whole && abs(y) <= 64.0 && !is_inf(x) {
        var left = u32(abs(y));
        var base = x;
        var result = 1.0;
        for (var bit = 0u; bit < 7u; bit += 1u) {
            if (left & 1u) != 0u {
                result *= base;
            }
            left >>= 1u;
            if left == 0u {
                break;
            }
            base *= base;
        }
        return select(result, 1.0 / result, y < 0.0);
    }
    let odd = whole && abs(y) < 16777216.0 && (u32(abs(y)) & 1u) == 1u;
    let negative = (bitcast<u32>(x) & 0x80000000u) != 0u;
    let a = abs(x);
    var result = 0.0;
    if a == 0.0 || is_inf(x) || is_inf(y) {
        let grows = (a > 1.0) == (y > 0.0);
        result = select(0.0, float_of(0x7f800000u), grows);
        if a == 1.0 {
            result = 1.0;
        }
    } else if negative && !whole {
        return float_of(0x7fc00000u);
    } else {
        result = exp2_product(a, y);
    }
    return select(result, -result, negative && odd);
}"
// Subtracts the divisor times falling powers of two, each time exactly.
"rem_f32" ["is_nan", "is_inf", "float_of", "with_sign"] "fn rem_f32(x: f32, y: f32) -> f32 {
    let b = abs(y);
    var r = abs(x);
    if is_nan(x) || is_nan(y) || is_inf(x) || b == 0.0 {
        return float_of(0x7fc00000u);
    }
    if is_inf(y) || r < b {
        return x;
    }
    // The least exponent of a subnormal is that of the smallest normal number.
    let high = i32(max(bitcast<u32>(r) >> 23u, 1u));
    let low = i32(max(bitcast<u32>(b) >> 23u, 1u));
    for (var n = high - low; n >= 0; n -= 1) {
        var scaled = b;
        if n > 0 {
            scaled = ldexp(ldexp(b, n / 2), n - n / 2);
        }
        if scaled <= r {
            r -= scaled;
        }
    }
    return with_sign(r, x);
}"
"mod_f32" ["rem_f32", "with_sign"] "fn mod_f32(x: f32, y: f32) -> f32 {
    let r = rem_f32(x, y);
    if r == 0.0 {
        return with_sign(0.0, y);
    }
    return select(r, r + y, (r < 0.0) != (y < 0.0));
}"
};

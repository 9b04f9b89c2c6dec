//! WGSL helper functions that generated kernels call: 64-bit integers as pairs of words, float functions whose built-ins
//! are too inexact or undefined at the edges, random numbers. Those of 64-bit floats are in `double` and
//! `double_functions`.
//!
//! Each helper names those it calls; a kernel gets the ones it needs, callees first.

use super::{double, double_functions};

/// A helper function.
pub(super) struct Helper {
    pub name: &'static str,
    pub calls: &'static [&'static str],
    pub text: &'static str,
}

/// All helpers.
fn all() -> impl Iterator<Item = &'static Helper> {
    HELPERS
        .iter()
        .chain(double::HELPERS)
        .chain(double_functions::HELPERS)
}

/// Writes the helpers in `wanted` and all they call, each once.
pub(super) fn write(wanted: &[&'static str], out: &mut String) {
    let mut written = vec![false; all().count()];
    for name in wanted {
        write_one(name, &mut written, out);
    }
}

fn write_one(name: &str, written: &mut [bool], out: &mut String) {
    let found = all().enumerate().find(|(_, helper)| helper.name == name);
    let (position, helper) = found.unwrap_or_else(|| unreachable!("bug: no helper `{name}`"));
    if !std::mem::replace(&mut written[position], true) {
        for callee in helper.calls {
            write_one(callee, written, out);
        }
        out.push_str(&double::with_constants(helper.text));
    }
}

macro_rules! helpers {
    ($($name:literal [$($call:literal),*] $text:literal)*) => {
        &[$(Helper { name: $name, calls: &[$($call),*], text: concat!($text, "\n") }),*]
    };
}
pub(super) use helpers;

/// Polynomials are least-squares fits, weighted towards equal error, of the function divided by its leading term; the
/// interval and the largest relative error are given with each.
const HELPERS: &[Helper] = helpers! {
"floor_div" [] "fn floor_div(a: i32, b: i32) -> i32 {
    return select(a / b, -((b - 1 - a) / b), a < 0);
}"
"floor_rem" ["floor_div"] "fn floor_rem(a: i32, b: i32) -> i32 {
    return a - floor_div(a, b) * b;
}"
"checked32" [] "fn checked32(v: i32, extent: i32) -> i32 {
    return max(min(v, extent - 1), 0);
}"
"checked64" [] "fn checked64(v: vec2<u32>, extent: i32) -> i32 {
    let last = max(extent - 1, 0);
    let inside = v.y == 0u && v.x <= u32(last);
    return select(select(last, 0, (v.y & 0x80000000u) != 0u), bitcast<i32>(v.x), inside);
}"
"outside64" [] "fn outside64(v: vec2<u32>, extent: i32) -> bool {
    return v.y != 0u || v.x >= u32(max(extent, 0));
}"
"is_nan" [] "fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}"
"is_inf" [] "fn is_inf(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) == 0x7f800000u;
}"
// Infinity and NaN cannot be written as constants, and a driver may fold expressions that give them.
"float_of" [] "fn float_of(bits: u32) -> f32 {
    var word = bits;
    return bitcast<f32>(word);
}"
"min_f32" ["is_nan"] "fn min_f32(x: f32, y: f32) -> f32 {
    return select(min(x, y), x + y, is_nan(x) || is_nan(y));
}"
"max_f32" ["is_nan"] "fn max_f32(x: f32, y: f32) -> f32 {
    return select(max(x, y), x + y, is_nan(x) || is_nan(y));
}"
"sign_f32" ["is_nan"] "fn sign_f32(x: f32) -> f32 {
    return select(select(0.0, select(-1.0, 1.0, x > 0.0), x != 0.0), x, is_nan(x));
}"
// Joining the bits instead is compiled wrongly by Mesa 26.1 behind a test for NaN.
"with_sign" [] "fn with_sign(magnitude: f32, sign: f32) -> f32 {
    return select(abs(magnitude), -abs(magnitude), bitcast<i32>(sign) < 0);
}"
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
"mod_i32" [] "fn mod_i32(x: i32, y: i32) -> i32 {
    let r = x % y;
    return select(r, r + y, r != 0 && (r < 0) != (y < 0));
}"
"pow_u32" [] "fn pow_u32(x: u32, y: u32) -> u32 {
    var base = x;
    var left = y;
    var result = 1u;
    for (var bit = 0u; bit < 32u; bit += 1u) {
        if (left & 1u) != 0u {
            result *= base;
        }
        base *= base;
        left >>= 1u;
    }
    return result;
}"
"pow_i32" ["pow_u32"] "fn pow_i32(x: i32, y: i32) -> i32 {
    if y < 0 {
        // The reciprocal, truncated.
        let odd = (y & 1) != 0;
        return select(select(0, select(1, -1, odd), x == -1), 1, x == 1);
    }
    return bitcast<i32>(pow_u32(bitcast<u32>(x), bitcast<u32>(y)));
}"
"f32_to_i32" [] "fn f32_to_i32(x: f32) -> i32 {
    if !(x > -2147483648.0) {
        return select(0, -2147483647 - 1, x <= -2147483648.0);
    }
    return select(i32(clamp(x, -2147483520.0, 2147483520.0)), 2147483647, x >= 2147483648.0);
}"
"f32_to_u32" [] "fn f32_to_u32(x: f32) -> u32 {
    if !(x > 0.0) {
        return 0u;
    }
    return select(u32(clamp(x, 0.0, 4294967040.0)), 0xffffffffu, x >= 4294967296.0);
}"
"mul_wide" [] "fn mul_wide(a: u32, b: u32) -> vec2<u32> {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let middle = ah * bl + ((al * bl) >> 16u);
    let other = al * bh + (middle & 0xffffu);
    return vec2<u32>(a * b, ah * bh + (middle >> 16u) + (other >> 16u));
}"
"i64_of_i32" [] "fn i64_of_i32(x: i32) -> vec2<u32> {
    return vec2<u32>(bitcast<u32>(x), bitcast<u32>(x >> 31u));
}"
"add_i64" [] "fn add_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}"
"sub_i64" [] "fn sub_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}"
"neg_i64" ["sub_i64"] "fn neg_i64(a: vec2<u32>) -> vec2<u32> {
    return sub_i64(vec2<u32>(0u, 0u), a);
}"
"mul_i64" ["mul_wide"] "fn mul_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = mul_wide(a.x, b.x);
    return vec2<u32>(low.x, low.y + a.x * b.y + a.y * b.x);
}"
"negative_i64" [] "fn negative_i64(a: vec2<u32>) -> bool {
    return (a.y & 0x80000000u) != 0u;
}"
"abs_i64" ["neg_i64", "negative_i64"] "fn abs_i64(a: vec2<u32>) -> vec2<u32> {
    return select(a, neg_i64(a), negative_i64(a));
}"
"sign_i64" ["negative_i64"] "fn sign_i64(a: vec2<u32>) -> vec2<u32> {
    return select(vec2<u32>(select(0u, 1u, any(a != vec2<u32>(0u, 0u))), 0u), vec2<u32>(0xffffffffu, 0xffffffffu), negative_i64(a));
}"
"less_u64" [] "fn less_u64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}"
"less_i64" [] "fn less_i64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return bitcast<i32>(a.y) < bitcast<i32>(b.y) || (a.y == b.y && a.x < b.x);
}"
"shl_i64" [] "fn shl_i64(a: vec2<u32>, n: vec2<u32>) -> vec2<u32> {
    if n.y != 0u || n.x >= 64u {
        return vec2<u32>(0u, 0u);
    }
    if n.x >= 32u {
        return vec2<u32>(0u, a.x << (n.x & 31u));
    }
    let carried = select(a.x >> ((32u - n.x) & 31u), 0u, n.x == 0u);
    return vec2<u32>(a.x << n.x, (a.y << n.x) | carried);
}"
"shr_u64" [] "fn shr_u64(a: vec2<u32>, n: vec2<u32>) -> vec2<u32> {
    if n.y != 0u || n.x >= 64u {
        return vec2<u32>(0u, 0u);
    }
    if n.x >= 32u {
        return vec2<u32>(a.y >> (n.x & 31u), 0u);
    }
    let carried = select(a.y << ((32u - n.x) & 31u), 0u, n.x == 0u);
    return vec2<u32>((a.x >> n.x) | carried, a.y >> n.x);
}"
"shr_i64" [] "fn shr_i64(a: vec2<u32>, n: vec2<u32>) -> vec2<u32> {
    let fill = bitcast<u32>(bitcast<i32>(a.y) >> 31u);
    if n.y != 0u || n.x >= 64u {
        return vec2<u32>(fill, fill);
    }
    if n.x >= 32u {
        return vec2<u32>(bitcast<u32>(bitcast<i32>(a.y) >> (n.x & 31u)), fill);
    }
    let carried = select(a.y << ((32u - n.x) & 31u), 0u, n.x == 0u);
    return vec2<u32>((a.x >> n.x) | carried, bitcast<u32>(bitcast<i32>(a.y) >> n.x));
}"
// Quotient in xy, remainder in zw; the dividend itself for a divisor of zero.
"divide_u64" ["less_u64", "sub_i64"] "fn divide_u64(a: vec2<u32>, b: vec2<u32>) -> vec4<u32> {
    if b.x == 0u && b.y == 0u {
        return vec4<u32>(a, a);
    }
    if a.y == 0u && b.y == 0u {
        return vec4<u32>(a.x / b.x, 0u, a.x % b.x, 0u);
    }
    var quotient = a;
    var rest = vec2<u32>(0u, 0u);
    for (var bit = 0u; bit < 64u; bit += 1u) {
        let over = (rest.y & 0x80000000u) != 0u;
        rest = vec2<u32>((rest.x << 1u) | (quotient.y >> 31u), (rest.y << 1u) | (rest.x >> 31u));
        quotient = vec2<u32>(quotient.x << 1u, (quotient.y << 1u) | (quotient.x >> 31u));
        if over || !less_u64(rest, b) {
            rest = sub_i64(rest, b);
            quotient.x |= 1u;
        }
    }
    return vec4<u32>(quotient, rest);
}"
"div_u64" ["divide_u64"] "fn div_u64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return divide_u64(a, b).xy;
}"
"rem_u64" ["divide_u64"] "fn rem_u64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return divide_u64(a, b).zw;
}"
"div_i64" ["divide_u64", "abs_i64", "neg_i64", "negative_i64"] "fn div_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let q = divide_u64(abs_i64(a), abs_i64(b)).xy;
    return select(q, neg_i64(q), negative_i64(a) != negative_i64(b));
}"
"rem_i64" ["divide_u64", "abs_i64", "neg_i64", "negative_i64"] "fn rem_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let r = divide_u64(abs_i64(a), abs_i64(b)).zw;
    return select(r, neg_i64(r), negative_i64(a));
}"
"mod_i64" ["rem_i64", "add_i64", "negative_i64"] "fn mod_i64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let r = rem_i64(a, b);
    let turn = any(r != vec2<u32>(0u, 0u)) && negative_i64(r) != negative_i64(b);
    return select(r, add_i64(r, b), turn);
}"
"pow_u64" ["mul_i64"] "fn pow_u64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    var base = x;
    var left = y;
    var result = vec2<u32>(1u, 0u);
    for (var bit = 0u; bit < 64u; bit += 1u) {
        if (left.x & 1u) != 0u {
            result = mul_i64(result, base);
        }
        left = vec2<u32>((left.x >> 1u) | (left.y << 31u), left.y >> 1u);
        if left.x == 0u && left.y == 0u {
            break;
        }
        base = mul_i64(base, base);
    }
    return result;
}"
"pow_i64" ["pow_u64", "negative_i64", "i64_of_i32"] "fn pow_i64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    if negative_i64(y) {
        let one = all(x == vec2<u32>(1u, 0u));
        let minus_one = all(x == vec2<u32>(0xffffffffu, 0xffffffffu));
        let odd = (y.x & 1u) != 0u;
        return i64_of_i32(select(select(0, select(1, -1, odd), minus_one), 1, one));
    }
    return pow_u64(x, y);
}"
// To nearest, ties to even: the leading 24 bits, with a sticky bit for all behind.
"u64_to_f32" [] "fn u64_to_f32(a: vec2<u32>) -> f32 {
    if a.y == 0u {
        return f32(a.x);
    }
    let shift = 32u - countLeadingZeros(a.y);
    let high = select((a.y << ((32u - shift) & 31u)) | (a.x >> shift), a.y, shift == 32u);
    let lost = select(a.x & ((1u << (shift & 31u)) - 1u), a.x, shift == 32u);
    let leading = high | select(0u, 1u, lost != 0u);
    return ldexp(f32(leading), i32(shift));
}"
"i64_to_f32" ["u64_to_f32", "abs_i64", "negative_i64"] "fn i64_to_f32(a: vec2<u32>) -> f32 {
    let magnitude = u64_to_f32(abs_i64(a));
    return select(magnitude, -magnitude, negative_i64(a));
}"
"f32_to_u64" [] "fn f32_to_u64(x: f32) -> vec2<u32> {
    if !(x >= 1.0) {
        return vec2<u32>(0u, 0u);
    }
    if x >= 18446744073709551616.0 {
        return vec2<u32>(0xffffffffu, 0xffffffffu);
    }
    let bits = bitcast<u32>(x);
    let shift = i32(bits >> 23u) - 150;
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    if shift <= 0 {
        return vec2<u32>(mantissa >> u32(-shift), 0u);
    }
    let left = u32(shift);
    if left >= 32u {
        return vec2<u32>(0u, mantissa << (left & 31u));
    }
    return vec2<u32>(mantissa << left, mantissa >> (32u - left));
}"
"f32_to_i64" ["f32_to_u64", "neg_i64"] "fn f32_to_i64(x: f32) -> vec2<u32> {
    if x >= 9223372036854775808.0 {
        return vec2<u32>(0xffffffffu, 0x7fffffffu);
    }
    if x <= -9223372036854775808.0 {
        return vec2<u32>(0u, 0x80000000u);
    }
    let magnitude = f32_to_u64(abs(x));
    return select(magnitude, neg_i64(magnitude), x < 0.0);
}"
// Philox-4x32-10 (Salmon et al., 2011).
"philox" ["mul_wide"] "fn philox(counter: vec4<u32>, start_key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var key = start_key;
    for (var turn = 0u; turn < 10u; turn += 1u) {
        let p = mul_wide(0xd2511f53u, c.x);
        let q = mul_wide(0xcd9e8d57u, c.z);
        c = vec4<u32>(q.y ^ c.y ^ key.x, q.x, p.y ^ c.w ^ key.y, p.x);
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}"
"random_word" ["philox"] "fn random_word(element: u32, key: vec2<u32>, run: vec2<u32>) -> u32 {
    let words = philox(vec4<u32>(element / 4u, 0u, run), key);
    return words[element % 4u];
}"
};

#[cfg(test)]
mod tests {
    use super::{all, write};
    use cupola_shaders::check::check_wgsl;

    #[test]
    fn every_helper_is_valid() {
        let names: Vec<&'static str> = all().map(|helper| helper.name).collect();
        let mut text = String::new();
        write(&names, &mut text);
        text.push_str("@compute @workgroup_size(1) fn main() {}\n");
        if let Err(error) = check_wgsl(&text) {
            panic!("{error}");
        }
    }

    #[test]
    fn callees_come_first_and_once() {
        let mut text = String::new();
        write(&["mod_i64", "rem_i64"], &mut text);
        assert_eq!(text.matches("fn rem_i64(").count(), 1);
        assert!(text.find("fn rem_i64(") < text.find("fn mod_i64("));
    }
}

//! Elementary functions of 64-bit floats in WGSL, in terms of the arithmetic of [`super::double`]. Polynomials are Taylor
//! series, but for that of `erfc_terms`, which is interpolated at Chebyshev nodes; their largest errors are given.

use super::prelude::{Helper, helpers};

/// The helpers of functions of 64-bit floats.
pub(super) const HELPERS: &[Helper] = helpers! {
"horner_step" ["add_f64", "mul_f64"] "fn horner_step(sum: vec2<u32>, x: vec2<u32>, factor: vec2<u32>) -> vec2<u32> {
    return add_f64(mul_f64(sum, x), factor);
}"
// A number times a power of two.
"scale_f64" ["is_zero_f64", "is_finite_f64", "parts_f64", "pack_f64"] "fn scale_f64(x: vec2<u32>, by: i32) -> vec2<u32> {
    if is_zero_f64(x) || !is_finite_f64(x) {
        return x;
    }
    let a = parts_f64(x);
    return pack_f64(x.y & 0x80000000u, a.exponent + by, a.mantissa);
}"
// The exponential of |x| <= 0.35, to 4e-18.
"exp_small" ["horner_step"] "fn exp_small(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 14>(f64(1.6059043836821613e-10), f64(2.08767569878681e-09), f64(2.505210838544172e-08),
        f64(2.755731922398589e-07), f64(2.7557319223985893e-06), f64(2.48015873015873e-05),
        f64(0.0001984126984126984), f64(0.001388888888888889), f64(0.008333333333333333),
        f64(0.041666666666666664), f64(0.16666666666666666), f64(0.5), f64(1.0), f64(1.0));
    var sum = factors[0];
    for (var at = 1u; at < 14u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
// Multiples of ln 2 are subtracted in two parts, the first with so few bits that its products are exact.
"exp_f64" ["is_nan_f64", "less_f64", "mul_f64", "sub_f64", "round_f64", "f64_to_i32", "exp_small", "scale_f64"] "fn exp_f64(x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) {
        return x;
    }
    if less_f64(f64(709.8), x) {
        return f64(inf);
    }
    if less_f64(x, f64(-745.2)) {
        return f64(0.0);
    }
    let n = round_f64(mul_f64(x, f64(1.4426950408889634)));
    let near = sub_f64(x, mul_f64(n, f64(0.6931471803691238)));
    let rest = sub_f64(near, mul_f64(n, f64(1.9082149292705877e-10)));
    return scale_f64(exp_small(rest), f64_to_i32(n));
}"
// (e^x - 1) / x of |x| <= 0.4, to 1e-21.
"expm1_terms" ["horner_step"] "fn expm1_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 16>(f64(4.779477332387385e-14), f64(7.647163731819816e-13), f64(1.1470745597729725e-11),
        f64(1.6059043836821613e-10), f64(2.08767569878681e-09), f64(2.505210838544172e-08),
        f64(2.755731922398589e-07), f64(2.7557319223985893e-06), f64(2.48015873015873e-05),
        f64(0.0001984126984126984), f64(0.001388888888888889), f64(0.008333333333333333),
        f64(0.041666666666666664), f64(0.16666666666666666), f64(0.5), f64(1.0));
    var sum = factors[0];
    for (var at = 1u; at < 16u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
"expm1_f64" ["abs_f64", "less_f64", "mul_f64", "expm1_terms", "exp_f64", "sub_f64"] "fn expm1_f64(x: vec2<u32>) -> vec2<u32> {
    if less_f64(abs_f64(x), f64(0.4)) {
        return mul_f64(x, expm1_terms(x));
    }
    return sub_f64(exp_f64(x), f64(1.0));
}"
// atanh(s) / s - 1 over s^2 = x <= 0.032, to 1e-18.
"log_terms" ["horner_step"] "fn log_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 11>(f64(0.043478260869565216), f64(0.047619047619047616), f64(0.05263157894736842), f64(0.058823529411764705),
        f64(0.06666666666666667), f64(0.07692307692307693), f64(0.09090909090909091), f64(0.1111111111111111),
        f64(0.14285714285714285), f64(0.2), f64(0.3333333333333333));
    var sum = factors[0];
    for (var at = 1u; at < 11u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
// log(1 + x) with |x / (2 + x)| <= 0.18.
"log1p_near" ["add_f64", "mul_f64", "div_f64", "log_terms"] "fn log1p_near(x: vec2<u32>) -> vec2<u32> {
    let s = div_f64(x, add_f64(f64(2.0), x));
    let twice = add_f64(s, s);
    let q = mul_f64(s, s);
    return add_f64(twice, mul_f64(twice, mul_f64(q, log_terms(q))));
}"
// A positive finite number as a power of two and a mantissa from sqrt(1/2) to sqrt(2).
"binade_f64" ["parts_f64", "pack_f64"] "struct Binade { mantissa: vec2<u32>, exponent: i32 }

fn binade_f64(x: vec2<u32>) -> Binade {
    let a = parts_f64(x);
    let up = select(0, 1, a.mantissa.y > 0xb504f333u);
    return Binade(pack_f64(0u, -up, a.mantissa), a.exponent + up);
}"
"log_f64" ["is_nan_f64", "is_zero_f64", "binade_f64", "sub_f64", "log1p_near", "f64_of_i32", "add_f64", "mul_f64"] "fn log_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return f64(-inf);
    }
    if is_nan_f64(x) || (x.y & 0x80000000u) != 0u {
        return f64(NaN);
    }
    if x.y >= 0x7ff00000u {
        return x;
    }
    let b = binade_f64(x);
    let n = f64_of_i32(b.exponent);
    let near = add_f64(log1p_near(sub_f64(b.mantissa, f64(1.0))), mul_f64(n, f64(1.9082149292705877e-10)));
    return add_f64(mul_f64(n, f64(0.6931471803691238)), near);
}"
// What 1 + x rounds away counts by its share.
"log1p_f64" ["less_f64", "is_zero_f64", "is_finite_f64", "log1p_near", "log_f64", "add_f64", "sub_f64", "div_f64"] "fn log1p_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return x;
    }
    if less_f64(f64(-0.29), x) && less_f64(x, f64(0.41)) {
        return log1p_near(x);
    }
    let u = add_f64(f64(1.0), x);
    if is_zero_f64(u) || !is_finite_f64(u) {
        return log_f64(u);
    }
    return add_f64(log_f64(u), div_f64(sub_f64(x, sub_f64(u, f64(1.0))), u));
}"
// Quarter turns in an angle, and the rest in [-pi/4, pi/4]: the mantissa times the bits of 2 / pi that matter at its
// exponent, 192 of them (Payne and Hanek, 1983), behind 66 zeros. The two highest bits of the product count quarter turns.
"quarter_turns_f64" ["is_zero_f64", "is_finite_f64", "parts_f64", "mul_wide", "add_i64", "leading_zeros", "left_by", "shr_u64", "pack_f64", "mul_f64"] "struct Turned64 { rest: vec2<u32>, turns: i32 }

fn quarter_turns_f64(x: vec2<u32>) -> Turned64 {
    let high = x.y & 0x7fffffffu;
    if high < 0x3fe921fbu {
        return Turned64(x, 0);
    }
    if !is_finite_f64(x) {
        return Turned64(f64(NaN), 0);
    }
    var two_over_pi = array<u32, 40>(
        0u, 0u, 0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u, 0x4f10e410u, 0x7f9458eau, 0xf7aef158u,
        0x6dc91b8eu, 0x909374b8u, 0x01924bbau, 0x82746487u, 0x3f877ac7u, 0x2c4a69cfu, 0xba208d7du, 0x4baed121u, 0x3a671c09u,
        0xad17df90u, 0x4e64758eu, 0x60d4ce7du, 0x272117e2u, 0xef7e4a0eu, 0xc7fe25ffu, 0xf7816603u, 0xfbcbc462u, 0xd6829b47u,
        0xdb4d9fb3u, 0xc9f2c26du, 0xd3d18fd9u, 0xa797fa8bu, 0x5d49eeb1u, 0xfaf97c5eu, 0xcf41ce7du, 0xe294a4bau, 0x9afed7ecu,
        0x47e35742u, 0x1580cc11u, 0xbf1edaeau);
    let a = parts_f64(x);
    let first = u32(a.exponent + 1);
    let shift = first & 31u;
    // Low words first.
    var window = array<u32, 6>();
    for (var at = 0u; at < 6u; at += 1u) {
        let word = (first >> 5u) + 5u - at;
        let next = select(two_over_pi[word + 1u] >> ((32u - shift) & 31u), 0u, shift == 0u);
        window[at] = (two_over_pi[word] << shift) | next;
    }
    var product = array<u32, 6>();
    var carry = 0u;
    for (var at = 0u; at < 6u; at += 1u) {
        let sum = add_i64(mul_wide(window[at], a.mantissa.x), vec2<u32>(carry, 0u));
        product[at] = sum.x;
        carry = sum.y;
    }
    carry = 0u;
    for (var at = 0u; at < 5u; at += 1u) {
        let part = add_i64(mul_wide(window[at], a.mantissa.y), vec2<u32>(carry, 0u));
        let sum = add_i64(part, vec2<u32>(product[at + 1u], 0u));
        product[at + 1u] = sum.x;
        carry = sum.y;
    }
    var turns = i32(product[5] >> 30u);
    var near = vec2<u32>((product[4] << 2u) | (product[3] >> 30u), (product[5] << 2u) | (product[4] >> 30u));
    var far = vec2<u32>((product[2] << 2u) | (product[1] >> 30u), (product[3] << 2u) | (product[2] >> 30u));
    var sign = 0u;
    if (near.y & 0x80000000u) != 0u {
        near = ~near;
        far = ~far;
        sign = 0x80000000u;
        turns += 1;
    }
    let lead = min(leading_zeros(near), 63u);
    let shifted = left_by(near, lead) | shr_u64(far, vec2<u32>(64u - lead, 0u));
    let rest = mul_f64(pack_f64(sign, -1 - i32(lead), shifted), f64(1.5707963267948966));
    if (x.y & 0x80000000u) != 0u {
        return Turned64(vec2<u32>(rest.x, rest.y ^ 0x80000000u), -turns);
    }
    return Turned64(rest, turns);
}"
// (sin(a) / a - 1) / x over a^2 = x <= 0.62, to 1e-19.
"sin_terms" ["horner_step"] "fn sin_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 8>(f64(2.8114572543455206e-15), f64(-7.647163731819816e-13), f64(1.6059043836821613e-10),
        f64(-2.505210838544172e-08), f64(2.7557319223985893e-06), f64(-0.0001984126984126984),
        f64(0.008333333333333333), f64(-0.16666666666666666));
    var sum = factors[0];
    for (var at = 1u; at < 8u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
// (cos(a) - 1) / x over a^2 = x <= 0.62, to 2e-18.
"cos_terms" ["horner_step"] "fn cos_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 8>(f64(4.779477332387385e-14), f64(-1.1470745597729725e-11), f64(2.08767569878681e-09),
        f64(-2.755731922398589e-07), f64(2.48015873015873e-05), f64(-0.001388888888888889),
        f64(0.041666666666666664), f64(-0.5));
    var sum = factors[0];
    for (var at = 1u; at < 8u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
"sin_near" ["mul_f64", "add_f64", "sin_terms"] "fn sin_near(x: vec2<u32>) -> vec2<u32> {
    let q = mul_f64(x, x);
    return add_f64(x, mul_f64(x, mul_f64(q, sin_terms(q))));
}"
"cos_near" ["mul_f64", "add_f64", "cos_terms"] "fn cos_near(x: vec2<u32>) -> vec2<u32> {
    let q = mul_f64(x, x);
    return add_f64(f64(1.0), mul_f64(q, cos_terms(q)));
}"
// The sine of an angle and so many quarter turns.
"sin_turned" ["sin_near", "cos_near", "neg_f64"] "fn sin_turned(rest: vec2<u32>, turns: i32) -> vec2<u32> {
    var value = rest;
    if (turns & 1) != 0 {
        value = cos_near(rest);
    } else {
        value = sin_near(rest);
    }
    return select(value, neg_f64(value), (turns & 2) != 0);
}"
"sin_f64" ["quarter_turns_f64", "sin_turned", "is_zero_f64"] "fn sin_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return x;
    }
    let t = quarter_turns_f64(x);
    return sin_turned(t.rest, t.turns);
}"
"cos_f64" ["quarter_turns_f64", "sin_turned"] "fn cos_f64(x: vec2<u32>) -> vec2<u32> {
    let t = quarter_turns_f64(x);
    return sin_turned(t.rest, t.turns + 1);
}"
"tan_f64" ["quarter_turns_f64", "sin_turned", "div_f64", "is_zero_f64"] "fn tan_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return x;
    }
    let t = quarter_turns_f64(x);
    return div_f64(sin_turned(t.rest, t.turns), sin_turned(t.rest, t.turns + 1));
}"
// (atan(t) / t - 1) / x over t^2 = x <= 0.04, to 3e-19.
"atan_terms" ["horner_step"] "fn atan_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 12>(f64(0.04), f64(-0.043478260869565216), f64(0.047619047619047616), f64(-0.05263157894736842),
        f64(0.058823529411764705), f64(-0.06666666666666667), f64(0.07692307692307693), f64(-0.09090909090909091),
        f64(0.1111111111111111), f64(-0.14285714285714285), f64(0.2), f64(-0.3333333333333333));
    var sum = factors[0];
    for (var at = 1u; at < 12u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
// Angles next to multiples of pi / 8, by the tangent of the difference; each multiple in two parts.
"atan_f64" ["is_nan_f64", "is_zero_f64", "abs_f64", "less_f64", "add_f64", "sub_f64", "mul_f64", "div_f64", "neg_f64", "atan_terms", "with_sign_f64"] "fn atan_f64(x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) || is_zero_f64(x) {
        return x;
    }
    let a = abs_f64(x);
    var tangent = f64(0.0);
    var base = f64(0.0);
    var more = f64(0.0);
    var t = a;
    if less_f64(f64(5.027339492125848), a) {
        base = f64(1.5707963267948966);
        more = f64(6.123233995736766e-17);
        t = neg_f64(div_f64(f64(1.0), a));
    } else if less_f64(f64(0.198912367379658), a) {
        if less_f64(f64(1.496605762665489), a) {
            tangent = f64(2.414213562373095);
            base = f64(1.1780972450961724);
            more = f64(2.7563998718653792e-17);
        } else if less_f64(f64(0.6681786379192989), a) {
            tangent = f64(1.0);
            base = f64(0.7853981633974483);
            more = f64(3.061616997868383e-17);
        } else {
            tangent = f64(0.41421356237309503);
            base = f64(0.39269908169872414);
            more = f64(3.060132146563891e-18);
        }
        t = div_f64(sub_f64(a, tangent), add_f64(f64(1.0), mul_f64(a, tangent)));
    }
    let q = mul_f64(t, t);
    let near = add_f64(t, add_f64(more, mul_f64(t, mul_f64(q, atan_terms(q)))));
    return with_sign_f64(add_f64(base, near), x);
}"
"asin_f64" ["add_f64", "sub_f64", "mul_f64", "div_f64", "sqrt_f64", "atan_f64", "is_zero_f64"] "fn asin_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return x;
    }
    let leg = sqrt_f64(mul_f64(sub_f64(f64(1.0), x), add_f64(f64(1.0), x)));
    return atan_f64(div_f64(x, leg));
}"
"acos_f64" ["add_f64", "sub_f64", "div_f64", "sqrt_f64", "atan_f64", "scale_f64"] "fn acos_f64(x: vec2<u32>) -> vec2<u32> {
    let ratio = div_f64(sub_f64(f64(1.0), x), add_f64(f64(1.0), x));
    return scale_f64(atan_f64(sqrt_f64(ratio)), 1);
}"
"atan2_f64" ["is_nan_f64", "is_inf_f64", "is_zero_f64", "abs_f64", "div_f64", "atan_f64", "sub_f64", "with_sign_f64"] "fn atan2_f64(y: vec2<u32>, x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) || is_nan_f64(y) {
        return f64(NaN);
    }
    var angle = f64(0.0);
    if is_inf_f64(x) && is_inf_f64(y) {
        angle = f64(0.7853981633974483);
    } else if !is_zero_f64(y) {
        angle = atan_f64(div_f64(abs_f64(y), abs_f64(x)));
    }
    if (x.y & 0x80000000u) != 0u {
        // Pi in two parts.
        angle = sub_f64(f64(3.141592653589793), sub_f64(angle, f64(1.2246467991473532e-16)));
    }
    return with_sign_f64(angle, y);
}"
// Half of e^a, which may overflow where this does not, and half of e^-a.
"half_exps" ["exp_f64", "scale_f64", "mul_f64", "div_f64"] "struct HalfExps { up: vec2<u32>, down: vec2<u32> }

fn half_exps(a: vec2<u32>) -> HalfExps {
    let e = exp_f64(scale_f64(a, -1));
    return HalfExps(mul_f64(scale_f64(e, -1), e), div_f64(div_f64(f64(0.5), e), e));
}"
"sinh_f64" ["is_zero_f64", "abs_f64", "less_f64", "expm1_f64", "add_f64", "sub_f64", "div_f64", "scale_f64", "half_exps", "with_sign_f64"] "fn sinh_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return x;
    }
    let a = abs_f64(x);
    if less_f64(a, f64(1.0)) {
        let t = expm1_f64(a);
        return with_sign_f64(scale_f64(add_f64(t, div_f64(t, add_f64(t, f64(1.0)))), -1), x);
    }
    let halves = half_exps(a);
    return with_sign_f64(sub_f64(halves.up, halves.down), x);
}"
"cosh_f64" ["abs_f64", "half_exps", "add_f64"] "fn cosh_f64(x: vec2<u32>) -> vec2<u32> {
    let halves = half_exps(abs_f64(x));
    return add_f64(halves.up, halves.down);
}"
"tanh_f64" ["is_nan_f64", "is_zero_f64", "abs_f64", "min_f64", "expm1_f64", "scale_f64", "add_f64", "div_f64", "with_sign_f64"] "fn tanh_f64(x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) || is_zero_f64(x) {
        return x;
    }
    // Beyond 22 the result rounds to 1.
    let t = expm1_f64(scale_f64(min_f64(abs_f64(x), f64(22.0)), 1));
    return with_sign_f64(div_f64(t, add_f64(t, f64(2.0))), x);
}"
"asinh_f64" ["is_nan_f64", "is_zero_f64", "abs_f64", "less_f64", "log_f64", "log1p_f64", "add_f64", "mul_f64", "div_f64", "sqrt_f64", "with_sign_f64"] "fn asinh_f64(x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) || is_zero_f64(x) {
        return x;
    }
    let a = abs_f64(x);
    if less_f64(f64(1e10), a) {
        return with_sign_f64(add_f64(log_f64(a), f64(0.6931471805599453)), x);
    }
    let q = mul_f64(a, a);
    let root = sqrt_f64(add_f64(f64(1.0), q));
    return with_sign_f64(log1p_f64(add_f64(a, div_f64(q, add_f64(f64(1.0), root)))), x);
}"
"acosh_f64" ["less_f64", "least_f64", "log_f64", "log1p_f64", "add_f64", "sub_f64", "mul_f64", "sqrt_f64"] "fn acosh_f64(x: vec2<u32>) -> vec2<u32> {
    if !least_f64(f64(1.0), x) {
        return f64(NaN);
    }
    if less_f64(f64(1e10), x) {
        return add_f64(log_f64(x), f64(0.6931471805599453));
    }
    let t = sub_f64(x, f64(1.0));
    return log1p_f64(add_f64(t, sqrt_f64(mul_f64(t, add_f64(f64(2.0), t)))));
}"
"atanh_f64" ["abs_f64", "is_zero_f64", "log1p_f64", "scale_f64", "sub_f64", "div_f64", "with_sign_f64"] "fn atanh_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) {
        return x;
    }
    let a = abs_f64(x);
    let value = log1p_f64(div_f64(scale_f64(a, 1), sub_f64(f64(1.0), a)));
    return with_sign_f64(scale_f64(value, -1), x);
}"
// erf(a) / a over a^2 = x <= 1, to 1e-17.
"erf_terms" ["horner_step"] "fn erf_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 19>(f64(4.763348040515068e-18), f64(-9.063970842808673e-17), f64(1.6342614095367152e-15),
        f64(-2.7835162072109215e-14), f64(4.4632242632864775e-13), f64(-6.7113668551641105e-12),
        f64(9.422759064650411e-11), f64(-1.2290555301717928e-09), f64(1.4807192815879218e-08),
        f64(-1.6365844691234924e-07), f64(1.6462114365889248e-06), f64(-1.492565035840625e-05),
        f64(0.00012055332981789664), f64(-0.0008548327023450853), f64(0.005223977625442188),
        f64(-0.026866170645131252), f64(0.11283791670955126), f64(-0.37612638903183754), f64(1.1283791670955126));
    var sum = factors[0];
    for (var at = 1u; at < 19u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
// erfc(a) e^(a a) over x = (a - 2.5) / (a + 2.5), 1 <= a <= 6, to 6e-19.
"erfc_terms" ["horner_step"] "fn erfc_terms(x: vec2<u32>) -> vec2<u32> {
    var factors = array<vec2<u32>, 17>(f64(3.337863159568859e-07), f64(1.2990553929048753e-07), f64(-1.7951606853809492e-06),
        f64(-2.3142533630656856e-06), f64(7.550775872384821e-06), f64(1.8617115164516332e-05),
        f64(-3.4181988228511654e-05), f64(-0.00012887742120781101), f64(0.00022838036004161998),
        f64(0.0008759154634998542), f64(-0.0026423659635319476), f64(-0.003993701166238519),
        f64(0.03992253907556971), f64(-0.12503305237882445), f64(0.2517131932174494), f64(-0.3717367339489734),
        f64(0.2108063640611436));
    var sum = factors[0];
    for (var at = 1u; at < 17u; at += 1u) {
        sum = horner_step(sum, x, factors[at]);
    }
    return sum;
}"
"erf_f64" ["is_nan_f64", "abs_f64", "less_f64", "erf_terms", "erfc_terms", "exp_f64", "neg_f64", "add_f64", "sub_f64", "mul_f64", "div_f64", "with_sign_f64"] "fn erf_f64(x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) {
        return x;
    }
    let a = abs_f64(x);
    let q = mul_f64(a, a);
    if less_f64(a, f64(1.0)) {
        return mul_f64(x, erf_terms(q));
    }
    if less_f64(f64(6.0), a) {
        return with_sign_f64(f64(1.0), x);
    }
    let u = div_f64(sub_f64(a, f64(2.5)), add_f64(a, f64(2.5)));
    let rest = mul_f64(exp_f64(neg_f64(q)), erfc_terms(u));
    return with_sign_f64(sub_f64(f64(1.0), rest), x);
}"
// The exponential of the negative magnitude cannot overflow.
"sigmoid_f64" ["exp_f64", "add_f64", "div_f64"] "fn sigmoid_f64(x: vec2<u32>) -> vec2<u32> {
    let e = exp_f64(vec2<u32>(x.x, x.y | 0x80000000u));
    let top = select(f64(1.0), e, (x.y & 0x80000000u) != 0u);
    return div_f64(top, add_f64(f64(1.0), e));
}"
// The upper 26 bits, so that products of two such numbers are exact.
"upper_f64" [] "fn upper_f64(x: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(x.x & 0xf8000000u, x.y);
}"
// A logarithm in two parts, the first of 26 bits: the error of a power is that of the product with its exponent.
"long_log" ["binade_f64", "upper_f64", "add_f64", "sub_f64", "mul_f64", "div_f64", "f64_of_i32", "log_terms"] "struct LongLog { upper: vec2<u32>, lower: vec2<u32> }

fn long_log(x: vec2<u32>) -> LongLog {
    let b = binade_f64(x);
    let f = sub_f64(b.mantissa, f64(1.0));
    let sum = add_f64(b.mantissa, f64(1.0));
    let s = div_f64(f, sum);
    // s in two parts: what the upper part times the sum leaves of f.
    let s_upper = upper_f64(s);
    let sum_upper = upper_f64(sum);
    let sum_lower = sub_f64(b.mantissa, sub_f64(sum_upper, f64(1.0)));
    let left_over = sub_f64(sub_f64(f, mul_f64(s_upper, sum_upper)), mul_f64(s_upper, sum_lower));
    let s_lower = div_f64(left_over, sum);
    let q = mul_f64(s, s);
    let tail = add_f64(s_lower, mul_f64(s, mul_f64(q, log_terms(q))));
    let n = f64_of_i32(b.exponent);
    let whole = mul_f64(n, f64(0.6931471803691238));
    let twice = add_f64(s_upper, s_upper);
    let rest = add_f64(add_f64(tail, tail), mul_f64(n, f64(1.9082149292705877e-10)));
    let near = add_f64(whole, twice);
    // One of the two is zero or the whole part is the larger.
    let lost = select(sub_f64(twice, sub_f64(near, whole)), f64(0.0), b.exponent == 0);
    let small = add_f64(rest, lost);
    let upper = upper_f64(add_f64(near, small));
    return LongLog(upper, add_f64(sub_f64(near, upper), small));
}"
"pow_magnitude" ["long_log", "upper_f64", "add_f64", "sub_f64", "mul_f64", "less_f64", "round_f64", "f64_to_i32", "exp_small", "scale_f64", "abs_f64"] "fn pow_magnitude(a: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    let log = long_log(a);
    let y_upper = upper_f64(y);
    let main = mul_f64(y_upper, log.upper);
    if less_f64(f64(800.0), abs_f64(main)) {
        return select(f64(inf), f64(0.0), (main.y & 0x80000000u) != 0u);
    }
    let more = add_f64(mul_f64(sub_f64(y, y_upper), log.upper), mul_f64(y, log.lower));
    let n = round_f64(mul_f64(main, f64(1.4426950408889634)));
    let near = sub_f64(main, mul_f64(n, f64(0.6931471803691238)));
    let rest = add_f64(near, sub_f64(more, mul_f64(n, f64(1.9082149292705877e-10))));
    return scale_f64(exp_small(rest), f64_to_i32(n));
}"
"pow_f64" ["is_zero_f64", "is_nan_f64", "is_inf_f64", "trunc_f64", "abs_f64", "less_f64", "f64_to_u64", "mul_f64", "pow_magnitude"] "fn pow_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(y) || all(x == f64(1.0)) {
        return f64(1.0);
    }
    if is_nan_f64(x) || is_nan_f64(y) {
        return f64(NaN);
    }
    let a = abs_f64(x);
    let whole = all(trunc_f64(y) == y) || is_inf_f64(y);
    // Small whole powers by multiplication, which is exact where the result is.
    if whole && less_f64(f64(0.0), y) && less_f64(y, f64(8.5)) {
        var product = x;
        for (var left = f64_to_u64(y).x; left > 1u; left -= 1u) {
            product = mul_f64(product, x);
        }
        return product;
    }
    let odd = whole && less_f64(abs_f64(y), f64(9007199254740992.0)) && (f64_to_u64(abs_f64(y)).x & 1u) != 0u;
    let negative = (x.y & 0x80000000u) != 0u;
    let one = all(a == f64(1.0));
    var result = f64(1.0);
    if is_zero_f64(x) || is_inf_f64(x) || is_inf_f64(y) {
        let grows = less_f64(f64(1.0), a) == ((y.y & 0x80000000u) == 0u);
        result = select(select(f64(0.0), f64(inf), grows), f64(1.0), one);
    } else if negative && !whole {
        return f64(NaN);
    } else if !one {
        result = pow_magnitude(a, y);
    }
    return vec2<u32>(result.x, result.y | select(0u, 0x80000000u, negative && odd));
}"
};

//! 64-bit floats in WGSL, which has none: IEEE arithmetic in integers on pairs of words, low word first, and the
//! elementary functions in terms of it.
//!
//! Addition, multiplication, division, square root, remainders and conversions are rounded correctly, to nearest with
//! ties to even, subnormals included; every NaN that is made is the quiet one. The functions are within a few units in
//! the last place ([`super::prelude`] writes what a kernel calls). In these texts `f64(1.5)` is a constant, which is
//! written as its two words.
//!
//! A positive number is taken apart as a 64-bit mantissa with its highest bit set and an exponent: the value is
//! `mantissa * 2^(exponent - 63)`. Bits that are shifted out leave a one in the lowest place, so that rounding still
//! sees on which side of a tie the number lies.

use cupola_ir::Scalar;

use super::prelude::{Helper, helpers};

/// The helper for a function of one 64-bit float.
pub(super) fn unary(f: Scalar) -> Option<&'static str> {
    Some(match f {
        Scalar::Neg => "neg_f64",
        Scalar::Abs => "abs_f64",
        Scalar::Sign => "sign_f64",
        Scalar::Floor => "floor_f64",
        Scalar::Ceil => "ceil_f64",
        Scalar::Round => "round_f64",
        Scalar::Trunc => "trunc_f64",
        Scalar::Sqrt => "sqrt_f64",
        Scalar::Rsqrt => "rsqrt_f64",
        Scalar::Recip => "recip_f64",
        Scalar::Exp => "exp_f64",
        Scalar::Expm1 => "expm1_f64",
        Scalar::Log => "log_f64",
        Scalar::Log1p => "log1p_f64",
        Scalar::Sin => "sin_f64",
        Scalar::Cos => "cos_f64",
        Scalar::Tan => "tan_f64",
        Scalar::Asin => "asin_f64",
        Scalar::Acos => "acos_f64",
        Scalar::Atan => "atan_f64",
        Scalar::Sinh => "sinh_f64",
        Scalar::Cosh => "cosh_f64",
        Scalar::Tanh => "tanh_f64",
        Scalar::Asinh => "asinh_f64",
        Scalar::Acosh => "acosh_f64",
        Scalar::Atanh => "atanh_f64",
        Scalar::Erf => "erf_f64",
        Scalar::Sigmoid => "sigmoid_f64",
        Scalar::IsNan => "is_nan_f64",
        Scalar::IsInf => "is_inf_f64",
        _ => return None,
    })
}

/// The helper for a function of two 64-bit floats.
pub(super) fn binary(f: Scalar) -> Option<&'static str> {
    Some(match f {
        Scalar::Add => "add_f64",
        Scalar::Sub => "sub_f64",
        Scalar::Mul => "mul_f64",
        Scalar::Div => "div_f64",
        Scalar::Rem => "rem_f64",
        Scalar::Mod => "mod_f64",
        Scalar::Pow => "pow_f64",
        Scalar::Atan2 => "atan2_f64",
        Scalar::Min => "min_f64",
        Scalar::Max => "max_f64",
        Scalar::Eq => "same_f64",
        Scalar::Lt => "less_f64",
        Scalar::Le => "least_f64",
        _ => return None,
    })
}

/// Replaces `f64(NUMBER)` by the number's words.
pub(super) fn with_constants(text: &str) -> String {
    const MARK: &str = "f64(";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let number = after[MARK.len()..].split(')').next().unwrap_or_default();
        match number.parse::<f64>() {
            // The name of a function ends in the same letters.
            Ok(value) if !before.ends_with('_') => {
                let bits = value.to_bits();
                out.push_str(&format!(
                    "vec2<u32>({:#x}u, {:#x}u)",
                    bits as u32,
                    bits >> 32
                ));
                rest = &after[MARK.len() + number.len() + 1..];
            }
            _ => {
                out.push_str(MARK);
                rest = &after[MARK.len()..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// The helpers of 64-bit floats.
pub(super) const HELPERS: &[Helper] = helpers! {
"leading_zeros" [] "fn leading_zeros(a: vec2<u32>) -> u32 {
    return select(countLeadingZeros(a.y), 32u + countLeadingZeros(a.x), a.y == 0u);
}"
// By less than 64.
"left_by" [] "fn left_by(a: vec2<u32>, n: u32) -> vec2<u32> {
    let s = n & 31u;
    let carried = select(a.x >> ((32u - s) & 31u), 0u, s == 0u);
    return select(vec2<u32>(a.x << s, (a.y << s) | carried), vec2<u32>(0u, a.x << s), n >= 32u);
}"
// By any number; a one in the lowest place stands for what falls out.
"right_sticky" [] "fn right_sticky(a: vec2<u32>, n: u32) -> vec2<u32> {
    if n == 0u {
        return a;
    }
    if n >= 64u {
        return vec2<u32>(select(0u, 1u, (a.x | a.y) != 0u), 0u);
    }
    let s = n & 31u;
    let below = (1u << s) - 1u;
    if n >= 32u {
        let lost = a.x | (a.y & below);
        return vec2<u32>((a.y >> s) | select(0u, 1u, lost != 0u), 0u);
    }
    let lost = a.x & below;
    return vec2<u32>((a.x >> s) | (a.y << (32u - s)) | select(0u, 1u, lost != 0u), a.y >> s);
}"
"is_nan_f64" [] "fn is_nan_f64(a: vec2<u32>) -> bool {
    let high = a.y & 0x7fffffffu;
    return high > 0x7ff00000u || (high == 0x7ff00000u && a.x != 0u);
}"
"is_inf_f64" [] "fn is_inf_f64(a: vec2<u32>) -> bool {
    return (a.y & 0x7fffffffu) == 0x7ff00000u && a.x == 0u;
}"
"is_zero_f64" [] "fn is_zero_f64(a: vec2<u32>) -> bool {
    return ((a.y & 0x7fffffffu) | a.x) == 0u;
}"
"is_finite_f64" [] "fn is_finite_f64(a: vec2<u32>) -> bool {
    return (a.y & 0x7ff00000u) != 0x7ff00000u;
}"
"neg_f64" [] "fn neg_f64(a: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x, a.y ^ 0x80000000u);
}"
"abs_f64" [] "fn abs_f64(a: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x, a.y & 0x7fffffffu);
}"
"with_sign_f64" [] "fn with_sign_f64(magnitude: vec2<u32>, sign: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(magnitude.x, (magnitude.y & 0x7fffffffu) | (sign.y & 0x80000000u));
}"
"sign_f64" ["is_nan_f64", "is_zero_f64", "with_sign_f64"] "fn sign_f64(a: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(a) {
        return a;
    }
    return select(with_sign_f64(f64(1.0), a), vec2<u32>(0u, 0u), is_zero_f64(a));
}"
// A finite number other than zero.
"parts_f64" ["leading_zeros", "left_by"] "struct Parts { mantissa: vec2<u32>, exponent: i32 }

fn parts_f64(a: vec2<u32>) -> Parts {
    let biased = (a.y >> 20u) & 0x7ffu;
    let fraction = vec2<u32>(a.x, a.y & 0xfffffu);
    if biased != 0u {
        return Parts(left_by(fraction | vec2<u32>(0u, 0x100000u), 11u), i32(biased) - 1023);
    }
    let lead = leading_zeros(fraction);
    return Parts(left_by(fraction, lead), -1011 - i32(lead));
}"
// Rounds a mantissa whose highest bit need not be set; `sign` is the highest bit or 0.
"pack_f64" ["leading_zeros", "left_by", "right_sticky", "add_i64"] "fn pack_f64(sign: u32, exponent: i32, mantissa: vec2<u32>) -> vec2<u32> {
    if (mantissa.x | mantissa.y) == 0u {
        return vec2<u32>(0u, sign);
    }
    let lead = leading_zeros(mantissa);
    let biased = exponent - i32(lead) + 1023;
    if biased >= 2047 {
        return vec2<u32>(0u, sign | 0x7ff00000u);
    }
    let kept = right_sticky(left_by(mantissa, lead), 9u + u32(clamp(1 - biased, 0, 64)));
    let behind = kept.x & 7u;
    let up = select(0u, 1u, (behind & 2u) != 0u && (behind & 5u) != 0u);
    let whole = vec2<u32>((kept.x >> 2u) | (kept.y << 30u), kept.y >> 2u);
    // The mantissa's leading bit counts as one in the exponent's field, and so does a carry out of it.
    let bits = add_i64(whole, vec2<u32>(up, u32(max(biased, 1) - 1) << 20u));
    return vec2<u32>(bits.x, bits.y | sign);
}"
"add_f64" ["is_nan_f64", "less_u64", "right_sticky", "left_by", "add_i64", "sub_i64", "pack_f64"] "fn add_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    let swapped = less_u64(vec2<u32>(x.x, x.y & 0x7fffffffu), vec2<u32>(y.x, y.y & 0x7fffffffu));
    let large = select(x, y, swapped);
    let small = select(y, x, swapped);
    let differ = ((x.y ^ y.y) & 0x80000000u) != 0u;
    let high = (large.y >> 20u) & 0x7ffu;
    let low = (small.y >> 20u) & 0x7ffu;
    if high == 0x7ffu {
        let none = is_nan_f64(large) || (low == 0x7ffu && differ);
        return select(large, f64(NaN), none);
    }
    let sign = large.y & 0x80000000u;
    let a = left_by(vec2<u32>(large.x, (large.y & 0xfffffu) | select(0u, 0x100000u, high != 0u)), 10u);
    let b = left_by(vec2<u32>(small.x, (small.y & 0xfffffu) | select(0u, 0x100000u, low != 0u)), 10u);
    let aligned = right_sticky(b, max(high, 1u) - max(low, 1u));
    if differ {
        let rest = sub_i64(a, aligned);
        return pack_f64(select(sign, 0u, (rest.x | rest.y) == 0u), i32(max(high, 1u)) - 1022, rest);
    }
    return pack_f64(sign, i32(max(high, 1u)) - 1022, add_i64(a, aligned));
}"
"sub_f64" ["add_f64", "neg_f64"] "fn sub_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    return add_f64(x, neg_f64(y));
}"
// The high half of a product, with a one in the lowest place for what lies below.
"mul_high" ["mul_wide", "add_i64"] "fn mul_high(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = mul_wide(a.x, b.x);
    let middle = add_i64(mul_wide(a.x, b.y), vec2<u32>(low.y, 0u));
    let other = add_i64(mul_wide(a.y, b.x), vec2<u32>(middle.x, 0u));
    let high = add_i64(add_i64(mul_wide(a.y, b.y), vec2<u32>(middle.y, 0u)), vec2<u32>(other.y, 0u));
    return vec2<u32>(high.x | select(0u, 1u, (low.x | other.x) != 0u), high.y);
}"
"mul_f64" ["is_finite_f64", "is_nan_f64", "is_zero_f64", "parts_f64", "mul_high", "pack_f64"] "fn mul_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    let sign = (x.y ^ y.y) & 0x80000000u;
    let zero = is_zero_f64(x) || is_zero_f64(y);
    if !is_finite_f64(x) || !is_finite_f64(y) {
        let none = is_nan_f64(x) || is_nan_f64(y) || zero;
        return select(vec2<u32>(0u, sign | 0x7ff00000u), f64(NaN), none);
    }
    if zero {
        return vec2<u32>(0u, sign);
    }
    let a = parts_f64(x);
    let b = parts_f64(y);
    return pack_f64(sign, a.exponent + b.exponent + 1, mul_high(a.mantissa, b.mantissa));
}"
// Bit by bit, with the two behind those that are kept.
"div_f64" ["is_finite_f64", "is_nan_f64", "is_inf_f64", "is_zero_f64", "parts_f64", "less_u64", "sub_i64", "pack_f64"] "fn div_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    let sign = (x.y ^ y.y) & 0x80000000u;
    let ends = (is_inf_f64(x) && is_inf_f64(y)) || (is_zero_f64(x) && is_zero_f64(y));
    if is_nan_f64(x) || is_nan_f64(y) || ends {
        return f64(NaN);
    }
    if is_inf_f64(x) || is_zero_f64(y) {
        return vec2<u32>(0u, sign | 0x7ff00000u);
    }
    if is_zero_f64(x) || is_inf_f64(y) {
        return vec2<u32>(0u, sign);
    }
    let a = parts_f64(x);
    let b = parts_f64(y);
    // Mantissas have 53 bits, so there is room for a doubled rest.
    var rest = vec2<u32>((a.mantissa.x >> 11u) | (a.mantissa.y << 21u), a.mantissa.y >> 11u);
    let divisor = vec2<u32>((b.mantissa.x >> 11u) | (b.mantissa.y << 21u), b.mantissa.y >> 11u);
    var quotient = vec2<u32>(0u, 0u);
    for (var bit = 0u; bit < 57u; bit += 1u) {
        quotient = vec2<u32>(quotient.x << 1u, (quotient.y << 1u) | (quotient.x >> 31u));
        if !less_u64(rest, divisor) {
            rest = sub_i64(rest, divisor);
            quotient.x |= 1u;
        }
        rest = vec2<u32>(rest.x << 1u, (rest.y << 1u) | (rest.x >> 31u));
    }
    quotient = vec2<u32>((quotient.x << 1u) | select(0u, 1u, (rest.x | rest.y) != 0u), (quotient.y << 1u) | (quotient.x >> 31u));
    return pack_f64(sign, a.exponent - b.exponent + 6, quotient);
}"
"sqrt_f64" ["is_nan_f64", "is_zero_f64", "parts_f64", "right_sticky", "less_u64", "sub_i64", "left_by", "pack_f64"] "fn sqrt_f64(x: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(x) || is_nan_f64(x) {
        return x;
    }
    if (x.y & 0x80000000u) != 0u {
        return f64(NaN);
    }
    if x.y >= 0x7ff00000u {
        return x;
    }
    let a = parts_f64(x);
    // Two bits of the radicand for each of the root; the first pair has its leading one.
    let odd = (a.exponent & 1) != 0;
    var radicand = select(right_sticky(a.mantissa, 1u), a.mantissa, odd);
    var root = vec2<u32>(0u, 0u);
    var rest = vec2<u32>(0u, 0u);
    for (var bit = 0u; bit < 57u; bit += 1u) {
        rest = vec2<u32>((rest.x << 2u) | (radicand.y >> 30u), (rest.y << 2u) | (rest.x >> 30u));
        radicand = left_by(radicand, 2u);
        let trial = vec2<u32>((root.x << 2u) | 1u, (root.y << 2u) | (root.x >> 30u));
        root = left_by(root, 1u);
        if !less_u64(rest, trial) {
            rest = sub_i64(rest, trial);
            root.x |= 1u;
        }
    }
    root = left_by(root, 1u);
    root.x |= select(0u, 1u, (rest.x | rest.y) != 0u);
    return pack_f64(0u, (a.exponent >> 1u) + 6, root);
}"
"recip_f64" ["div_f64"] "fn recip_f64(x: vec2<u32>) -> vec2<u32> {
    return div_f64(f64(1.0), x);
}"
"rsqrt_f64" ["div_f64", "sqrt_f64"] "fn rsqrt_f64(x: vec2<u32>) -> vec2<u32> {
    return div_f64(f64(1.0), sqrt_f64(x));
}"
// Bits whose order as unsigned numbers is that of the floats; both zeros are alike.
"order_f64" ["is_zero_f64"] "fn order_f64(a: vec2<u32>) -> vec2<u32> {
    if is_zero_f64(a) {
        return vec2<u32>(0u, 0x80000000u);
    }
    return select(vec2<u32>(a.x, a.y | 0x80000000u), ~a, (a.y & 0x80000000u) != 0u);
}"
"less_f64" ["order_f64", "less_u64", "is_nan_f64"] "fn less_f64(x: vec2<u32>, y: vec2<u32>) -> bool {
    return !is_nan_f64(x) && !is_nan_f64(y) && less_u64(order_f64(x), order_f64(y));
}"
"least_f64" ["order_f64", "less_u64", "is_nan_f64"] "fn least_f64(x: vec2<u32>, y: vec2<u32>) -> bool {
    return !is_nan_f64(x) && !is_nan_f64(y) && !less_u64(order_f64(y), order_f64(x));
}"
"same_f64" ["is_zero_f64", "is_nan_f64"] "fn same_f64(x: vec2<u32>, y: vec2<u32>) -> bool {
    return (all(x == y) && !is_nan_f64(x)) || (is_zero_f64(x) && is_zero_f64(y));
}"
"min_f64" ["less_f64", "is_nan_f64"] "fn min_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    return select(y, x, is_nan_f64(x) || less_f64(x, y));
}"
"max_f64" ["less_f64", "is_nan_f64"] "fn max_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    return select(y, x, is_nan_f64(x) || less_f64(y, x));
}"
"trunc_f64" [] "fn trunc_f64(x: vec2<u32>) -> vec2<u32> {
    let exponent = i32((x.y >> 20u) & 0x7ffu) - 1023;
    if exponent >= 52 {
        return x;
    }
    if exponent < 0 {
        return vec2<u32>(0u, x.y & 0x80000000u);
    }
    let fraction = u32(52 - exponent);
    if fraction >= 32u {
        return vec2<u32>(0u, x.y & ~((1u << (fraction - 32u)) - 1u));
    }
    return vec2<u32>(x.x & ~((1u << fraction) - 1u), x.y);
}"
"floor_f64" ["trunc_f64", "sub_f64"] "fn floor_f64(x: vec2<u32>) -> vec2<u32> {
    let whole = trunc_f64(x);
    if all(whole == x) || (x.y & 0x80000000u) == 0u {
        return whole;
    }
    return sub_f64(whole, f64(1.0));
}"
"ceil_f64" ["floor_f64", "neg_f64"] "fn ceil_f64(x: vec2<u32>) -> vec2<u32> {
    return neg_f64(floor_f64(neg_f64(x)));
}"
// The sum with 2^52 has no place for a fraction.
"round_f64" ["add_f64", "sub_f64", "abs_f64", "with_sign_f64"] "fn round_f64(x: vec2<u32>) -> vec2<u32> {
    let magnitude = abs_f64(x);
    if magnitude.y >= 0x43300000u {
        return x;
    }
    return with_sign_f64(sub_f64(add_f64(magnitude, f64(4503599627370496.0)), f64(4503599627370496.0)), x);
}"
"rem_f64" ["is_finite_f64", "is_nan_f64", "is_zero_f64", "abs_f64", "less_u64", "sub_i64", "parts_f64", "left_by", "pack_f64"] "fn rem_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    if !is_finite_f64(x) || is_nan_f64(y) || is_zero_f64(y) {
        return f64(NaN);
    }
    if is_zero_f64(x) || less_u64(abs_f64(x), abs_f64(y)) {
        return x;
    }
    let a = parts_f64(x);
    let b = parts_f64(y);
    var rest = vec2<u32>((a.mantissa.x >> 11u) | (a.mantissa.y << 21u), a.mantissa.y >> 11u);
    let divisor = vec2<u32>((b.mantissa.x >> 11u) | (b.mantissa.y << 21u), b.mantissa.y >> 11u);
    for (var turn = a.exponent - b.exponent; turn >= 0; turn -= 1) {
        if !less_u64(rest, divisor) {
            rest = sub_i64(rest, divisor);
        }
        if turn > 0 {
            rest = vec2<u32>(rest.x << 1u, (rest.y << 1u) | (rest.x >> 31u));
        }
    }
    return pack_f64(x.y & 0x80000000u, b.exponent, left_by(rest, 11u));
}"
"mod_f64" ["rem_f64", "is_zero_f64", "is_nan_f64", "add_f64"] "fn mod_f64(x: vec2<u32>, y: vec2<u32>) -> vec2<u32> {
    let r = rem_f64(x, y);
    if is_zero_f64(r) {
        return vec2<u32>(0u, y.y & 0x80000000u);
    }
    if is_nan_f64(r) || ((r.y ^ y.y) & 0x80000000u) == 0u {
        return r;
    }
    return add_f64(r, y);
}"
"f64_of_f32" ["pack_f64"] "fn f64_of_f32(x: f32) -> vec2<u32> {
    let bits = bitcast<u32>(x);
    let sign = bits & 0x80000000u;
    let exponent = (bits >> 23u) & 0xffu;
    let fraction = bits & 0x7fffffu;
    if exponent == 255u {
        return select(vec2<u32>(0u, sign | 0x7ff00000u), f64(NaN), fraction != 0u);
    }
    if exponent == 0u {
        return pack_f64(sign, -118, vec2<u32>(0u, fraction));
    }
    return vec2<u32>(fraction << 29u, sign | ((exponent + 896u) << 20u) | (fraction >> 3u));
}"
// Numbers between two of f32 give the one whose last bit is set: another rounding, to fewer bits, is then as if from the
// f64 itself.
"f32_near_f64" ["is_nan_f64", "is_inf_f64", "is_zero_f64", "parts_f64", "right_sticky"] "fn f32_near_f64(x: vec2<u32>, to_odd: bool) -> u32 {
    let sign = x.y & 0x80000000u;
    if is_nan_f64(x) {
        return 0x7fc00000u;
    }
    if is_inf_f64(x) {
        return sign | 0x7f800000u;
    }
    if is_zero_f64(x) {
        return sign;
    }
    let a = parts_f64(x);
    let biased = a.exponent + 127;
    if biased >= 255 {
        return sign | select(0x7f800000u, 0x7f7fffffu, to_odd);
    }
    let kept = right_sticky(a.mantissa, 38u + u32(clamp(1 - biased, 0, 64))).x;
    let field = u32(max(biased, 1) - 1) << 23u;
    if to_odd {
        return sign | (field + ((kept >> 2u) | select(0u, 1u, (kept & 3u) != 0u)));
    }
    let up = select(0u, 1u, (kept & 2u) != 0u && (kept & 5u) != 0u);
    return sign | (field + (kept >> 2u) + up);
}"
"f32_of_f64" ["f32_near_f64"] "fn f32_of_f64(x: vec2<u32>) -> f32 {
    return bitcast<f32>(f32_near_f64(x, false));
}"
"f32_odd_f64" ["f32_near_f64"] "fn f32_odd_f64(x: vec2<u32>) -> f32 {
    return bitcast<f32>(f32_near_f64(x, true));
}"
"f64_of_u64" ["pack_f64"] "fn f64_of_u64(x: vec2<u32>) -> vec2<u32> {
    return pack_f64(0u, 63, x);
}"
"f64_of_i64" ["pack_f64", "abs_i64"] "fn f64_of_i64(x: vec2<u32>) -> vec2<u32> {
    return pack_f64(x.y & 0x80000000u, 63, abs_i64(x));
}"
"f64_of_i32" ["pack_f64"] "fn f64_of_i32(x: i32) -> vec2<u32> {
    return pack_f64(bitcast<u32>(x) & 0x80000000u, 31, vec2<u32>(0u, u32(abs(x))));
}"
// Out of range saturates, NaN gives 0.
"f64_to_u64" ["is_nan_f64", "parts_f64", "shr_u64"] "fn f64_to_u64(x: vec2<u32>) -> vec2<u32> {
    if is_nan_f64(x) || (x.y & 0x80000000u) != 0u || x.y < 0x3ff00000u {
        return vec2<u32>(0u, 0u);
    }
    let exponent = (x.y >> 20u) - 1023u;
    if exponent >= 64u {
        return vec2<u32>(0xffffffffu, 0xffffffffu);
    }
    return shr_u64(parts_f64(x).mantissa, vec2<u32>(63u - exponent, 0u));
}"
"f64_to_i64" ["f64_to_u64", "abs_f64", "neg_i64", "less_u64"] "fn f64_to_i64(x: vec2<u32>) -> vec2<u32> {
    let negative = (x.y & 0x80000000u) != 0u;
    let magnitude = f64_to_u64(abs_f64(x));
    if (magnitude.y & 0x80000000u) != 0u {
        return select(vec2<u32>(0xffffffffu, 0x7fffffffu), vec2<u32>(0u, 0x80000000u), negative);
    }
    return select(magnitude, neg_i64(magnitude), negative);
}"
"f64_to_u32" ["f64_to_u64"] "fn f64_to_u32(x: vec2<u32>) -> u32 {
    let whole = f64_to_u64(x);
    return select(whole.x, 0xffffffffu, whole.y != 0u);
}"
"f64_to_i32" ["f64_to_u32", "abs_f64"] "fn f64_to_i32(x: vec2<u32>) -> i32 {
    let magnitude = f64_to_u32(abs_f64(x));
    if (x.y & 0x80000000u) != 0u {
        return select(-bitcast<i32>(magnitude), -2147483647 - 1, magnitude >= 0x80000000u);
    }
    return bitcast<i32>(min(magnitude, 0x7fffffffu));
}"
};

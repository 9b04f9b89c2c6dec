//! 64-bit integers as pairs of words, the low one first.

use super::prelude::{Helper, helpers};

/// The helpers of 64-bit integers.
pub(super) const HELPERS: &[Helper] = helpers! {
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
};

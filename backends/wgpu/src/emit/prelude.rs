//! WGSL helper functions that generated kernels call. Float functions are in `float_functions`, 64-bit integers in `long`,
//! 64-bit floats in `double` and `double_functions`; the rest is here.
//!
//! Each helper names those it calls; a kernel gets the ones it needs, callees first.

use super::{double, double_functions, float_functions, long};

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
        .chain(float_functions::HELPERS)
        .chain(long::HELPERS)
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

/// Comparisons at the edges of float arithmetic, indices, integers of 32 bits, random numbers.
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

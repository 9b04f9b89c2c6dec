//! Conversion between f32 and floats of 8 and 4 bits, as WGSL.

use crate::element::Element;
use crate::template::fill;

/// What the largest codes of a format mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    /// The top exponent holds infinity and NaN.
    Ieee,
    /// All ones is NaN, there is no infinity.
    Ones,
    /// Minus zero is NaN, there is no infinity.
    MinusZero,
    /// Every code is a number.
    Finite,
}

struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: u32,
    special: Special,
}

fn format_of(element: Element) -> Format {
    let (exponent_bits, mantissa_bits, bias, special) = match element {
        Element::F8E4M3Fn => (4, 3, 7, Special::Ones),
        Element::F8E4M3Fnuz => (4, 3, 8, Special::MinusZero),
        Element::F8E5M2 => (5, 2, 15, Special::Ieee),
        Element::F8E5M2Fnuz => (5, 2, 16, Special::MinusZero),
        Element::F4E2M1 => (2, 1, 1, Special::Finite),
        other => unreachable!("bug: {other:?} is no small float"),
    };
    Format {
        exponent_bits,
        mantissa_bits,
        bias,
        special,
    }
}

/// Powers of two are rounded up; what has no code becomes the nearest when saturating, otherwise NaN.
const POWER_OF_TWO: &str = "fn f8e8m0_value(code: u32) -> f32 {
    if code == 255u {
        return bitcast<f32>(0x7fc00000u + code);
    }
    return bitcast<f32>(select(code << 23u, 0x400000u, code == 0u));
}

fn f8e8m0_bits(value: f32, saturate: bool) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 255u;
    }
    if bits <= 0x200000u || bits >= 0x80000000u {
        return select(255u, 0u, saturate);
    }
    if bits <= 0x400000u {
        return 0u;
    }
    let code = max((bits >> 23u) + select(0u, 1u, (bits & 0x7fffffu) != 0u), 1u);
    return select(code, select(255u, 254u, saturate), code > 254u);
}
";

/// `NAME_value(code) -> f32` and `NAME_bits(value, saturate) -> u32`, to nearest, ties to even.
pub(crate) fn helpers(element: Element) -> String {
    if element == Element::F8E8M0 {
        return POWER_OF_TWO.to_owned();
    }
    let format = format_of(element);
    let Format {
        exponent_bits,
        mantissa_bits,
        bias,
        special,
    } = format;
    let sign_at = exponent_bits + mantissa_bits;
    let sign_bit = 1u32 << sign_at;
    let top_exponent = ((1 << exponent_bits) - 1) << mantissa_bits;
    let largest = match special {
        Special::Ieee => top_exponent - 1,
        Special::Ones => sign_bit - 2,
        Special::MinusZero | Special::Finite => sign_bit - 1,
    };
    let not_a_number = match special {
        Special::Ieee => format!("sign | {}u", top_exponent | (1 << (mantissa_bits - 1))),
        Special::Ones => format!("sign | {}u", sign_bit - 1),
        Special::MinusZero => format!("{sign_bit}u"),
        // NaN has no code and becomes -0, as in the reference.
        Special::Finite => format!("{sign_bit}u"),
    };
    let beyond = match special {
        Special::Ieee => format!("select(sign | {top_exponent}u, sign | {largest}u, saturate)"),
        Special::Ones | Special::MinusZero => {
            format!("select({not_a_number}, sign | {largest}u, saturate)")
        }
        Special::Finite => format!("sign | {largest}u"),
    };
    let decode_special = match special {
        Special::Ieee => format!(
            "    if magnitude >= {top_exponent}u {{
        return bitcast<f32>(sign | select(0x7fc00000u, 0x7f800000u, magnitude == {top_exponent}u));
    }}\n"
        ),
        Special::Ones => format!(
            "    if magnitude == {}u {{\n        return bitcast<f32>(sign | 0x7fc00000u);\n    }}\n",
            sign_bit - 1
        ),
        Special::MinusZero => {
            format!(
                "    if code == {sign_bit}u {{\n        return bitcast<f32>(0x7fc00000u + magnitude);\n    }}\n"
            )
        }
        Special::Finite => String::new(),
    };
    let encode_zero = match special {
        Special::MinusZero => "    if code == 0u {\n        return 0u;\n    }\n",
        Special::Ieee | Special::Ones | Special::Finite => "",
    };
    // Adding a power of two whose last f32 bit weighs as much as the format's smallest number rounds to that.
    let magic = (127 - bias + 1 - mantissa_bits + 23) << 23;
    fill(
        include_str!("../wgsl/minifloat.wgsl"),
        &[
            ("NAME", element.name()),
            ("SIGN", &sign_bit.to_string()),
            ("SIGN_SHIFT", &(31 - sign_at).to_string()),
            ("SIGN_AT", &sign_at.to_string()),
            ("DECODE_SPECIAL", &decode_special),
            ("MANTISSA", &mantissa_bits.to_string()),
            ("WIDEN", &(23 - mantissa_bits).to_string()),
            ("REBIAS", &(127 - bias).to_string()),
            ("REBIAS_CODE", &((127 - bias) << mantissa_bits).to_string()),
            ("SMALLEST_NORMAL", &((128 - bias) << 23).to_string()),
            (
                "UNIT",
                &((127 + 1 - bias - mantissa_bits) << 23).to_string(),
            ),
            ("HALF", &((1u32 << (22 - mantissa_bits)) - 1).to_string()),
            ("MAGIC", &magic.to_string()),
            ("NAN", &not_a_number),
            ("LARGEST", &largest.to_string()),
            ("BEYOND", &beyond),
            ("ENCODE_ZERO", encode_zero),
        ],
    )
}

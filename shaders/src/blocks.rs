//! Block-quantised weights, decoded where they are read.
//!
//! A buffer holds whole blocks, little end first. Element `i` of a group is `scale * code + min`; for a buffer NAME
//! [`accessors`] gives, with `block` the byte where a block starts:
//!
//! - `NAME_scale(block, group) -> vec2<f32>`: scale and minimum of the block's group;
//! - `NAME_codes(block, four) -> vec4<f32>`: codes of elements `4 * four` to `4 * four + 3` of the block;
//! - `NAME_four(i) -> vec4<f32>`: elements `i` to `i + 3` of the buffer, `i` a multiple of four.
//!
//! Small codebooks are constants of the text, large ones ([`book_buffer`]) a buffer `NAME_book` of words.
//!
//! Scales are apart from codes so that a loop over a group decodes its scale once. Codes come out of words by masks that
//! handle four elements at a time.

use std::fmt::Write as _;

use cupola_ir::BlockFormat;
use cupola_ir::convert::codebook;

use crate::template::fill;

/// What makes a format's accessors differ from another's: WGSL expressions over `block`, and `group` or `four`.
struct Decoder {
    /// The scale of all groups, `f32`.
    scale: String,
    /// The minimum of all groups, `f32`; 0 where there is none.
    min: &'static str,
    /// Statements that give `codes`, a `vec4<f32>`.
    codes: String,
}

impl Decoder {
    fn new(scale: &str, min: &'static str, codes: &str) -> Self {
        Self {
            scale: scale.to_owned(),
            min,
            codes: codes.to_owned(),
        }
    }

    /// Codes that are unsigned bytes of the word `expression`, less `zero`.
    fn bytes(scale: &str, min: &'static str, expression: &str, zero: u32) -> Self {
        let codes =
            format!("let codes = vec4<f32>(unpack4xU8({expression})) - vec4<f32>({zero}.0);");
        Self::new(scale, min, &codes)
    }

    /// Codes that are places in a table of 16 signed bytes, the places being the bytes of a word.
    fn table(scale: &str, expression: &str, levels: [i8; 16]) -> Self {
        let words: Vec<String> = levels
            .chunks_exact(4)
            .map(|four| {
                let bytes: [u8; 4] = std::array::from_fn(|at| four[at] as u8);
                format!("{:#x}u", u32::from_le_bytes(bytes))
            })
            .collect();
        let mut codes = format!(
            "var table = vec4<u32>({});
    let places = unpack4xU8({expression});
    let codes = vec4<f32>(",
            words.join(", ")
        );
        for (at, component) in ["x", "y", "z", "w"].iter().enumerate() {
            let _ = write!(
                codes,
                "{}f32(extractBits(bitcast<i32>(table[places.{component} >> 2u]), (places.{component} & 3u) * 8u, 8u))",
                if at == 0 { "" } else { ", " }
            );
        }
        codes.push_str(");");
        Self::new(scale, "0.0", &codes)
    }
}

/// The levels of the 4-bit formats without even steps, and of the 4-bit float, doubled.
const NONLINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Byte and shift, within codes of two bits that start at byte 0, of four elements: each 32 bytes hold 128 elements,
/// those that share a byte being 32 apart.
const PAIR_BYTE: &str = "(four >> 5u) * 32u + (four & 7u) * 4u";
const PAIR_SHIFT: &str = "((four >> 3u) & 3u) * 2u";

/// Four-bit codes of 32 elements in 16 bytes: low halves first, then high ones.
fn halves(first: u32) -> String {
    format!("(WORD(block + {first}u + (four & 3u) * 4u) >> ((four >> 2u) * 4u)) & 0x0f0f0f0fu")
}

/// Four bits spread over the lowest bits of four bytes.
fn spread(bits: &str) -> String {
    format!("((({bits} & 15u) * 0x204081u) & 0x01010101u)")
}

fn decoder(format: BlockFormat) -> Decoder {
    use BlockFormat as B;
    let pairs = |first: u32| {
        format!("(WORD(block + {first}u + {PAIR_BYTE}) >> ({PAIR_SHIFT})) & 0x03030303u")
    };
    let five = |high: u32, low: u32| {
        let high = spread(&format!("(WORD(block + {high}u) >> (four * 4u))"));
        format!("({}) | ({high} << 4u)", halves(low))
    };
    let wide_halves = |first: u32| {
        format!(
            "(WORD(block + {first}u + (four >> 4u) * 32u + (four & 7u) * 4u) >> (((four >> 3u) & 1u) * 4u)) & 0x0f0f0f0fu"
        )
    };
    let signed = |scale: &str, first: u32| {
        let codes =
            format!("let codes = vec4<f32>(unpack4xI8(WORD(block + {first}u + four * 4u)));");
        Decoder::new(scale, "0.0", &codes)
    };
    match format {
        B::Q4_0 => Decoder::bytes("HALF(block)", "0.0", &halves(2), 8),
        B::Q4_1 => Decoder::bytes("HALF(block)", "HALF(block + 2u)", &halves(4), 0),
        B::Q5_0 => Decoder::bytes("HALF(block)", "0.0", &five(2, 6), 16),
        B::Q5_1 => Decoder::bytes("HALF(block)", "HALF(block + 2u)", &five(4, 8), 0),
        B::Q8_0 => signed("HALF(block)", 2),
        B::Q8_1 => signed("HALF(block)", 4),
        B::Q8_K => signed("bitcast<f32>(WORD(block))", 4),
        B::Q2_K => Decoder::bytes(
            "HALF(block + 80u) * f32(BYTE(block + group) & 15u)",
            "-HALF(block + 82u) * f32(BYTE(block + group) >> 4u)",
            &pairs(16),
            0,
        ),
        B::Q3_K => Decoder::bytes(
            "HALF(block + 108u) * (f32(((BYTE(block + 96u + (group & 7u)) >> ((group >> 3u) * 4u)) & 15u) \
             | (((BYTE(block + 104u + (group & 3u)) >> ((group >> 2u) * 2u)) & 3u) << 4u)) - 32.0)",
            "0.0",
            &format!(
                "({}) | (((WORD(block + (four & 7u) * 4u) >> (four >> 3u)) & 0x01010101u) << 2u)",
                pairs(32)
            ),
            4,
        ),
        B::Q4_K => Decoder::bytes(K_SCALE, K_MIN, &wide_halves(16), 0),
        B::Q5_K => Decoder::bytes(
            K_SCALE,
            K_MIN,
            &format!(
                "({}) | (((WORD(block + 16u + (four & 7u) * 4u) >> (four >> 3u)) & 0x01010101u) << 4u)",
                wide_halves(48)
            ),
            0,
        ),
        B::Q6_K => Decoder::bytes(
            "HALF(block + 208u) * f32(extractBits(bitcast<i32>(BYTE(block + 192u + group)), 0u, 8u))",
            "0.0",
            &format!(
                "((WORD(block + (four >> 5u) * 64u + ((four >> 3u) & 1u) * 32u + (four & 7u) * 4u) \
                 >> (((four >> 4u) & 1u) * 4u)) & 0x0f0f0f0fu) | (({}) << 4u)",
                pairs(128)
            ),
            32,
        ),
        B::IQ4_NL => Decoder::table("HALF(block)", &halves(2), NONLINEAR),
        B::IQ4_XS => Decoder::table(
            "HALF(block) * (f32(((BYTE(block + 4u + (group >> 1u)) >> ((group & 1u) * 4u)) & 15u) \
             | (((WORD(block) >> (16u + group * 2u)) & 3u) << 4u)) - 32.0)",
            "(WORD(block + 8u + (four >> 3u) * 16u + (four & 3u) * 4u) >> (((four >> 2u) & 1u) * 4u)) & 0x0f0f0f0fu",
            NONLINEAR,
        ),
        B::MXFP4 => Decoder::table(
            "bitcast<f32>(select((BYTE(block) - 1u) << 23u, 0x200000u << (BYTE(block) & 1u), BYTE(block) < 2u))",
            &halves(1),
            E2M1_DOUBLED,
        ),
        B::NVFP4 => Decoder::table(
            NV_SCALE,
            "(WORD(block + 4u + (four >> 2u) * 8u + (four & 1u) * 4u) >> (((four >> 1u) & 1u) * 4u)) & 0x0f0f0f0fu",
            E2M1_DOUBLED,
        ),
        B::TQ1_0 => Decoder::new("HALF(block + 52u)", "0.0", TERNARY),
        B::TQ2_0 => Decoder::bytes("HALF(block + 64u)", "0.0", &pairs(0), 1),
        B::IQ2_XXS | B::IQ2_XS | B::IQ2_S | B::IQ3_XXS | B::IQ3_S | B::IQ1_S | B::IQ1_M => {
            book_decoder(format)
        }
    }
}

/// Six-bit scales and minima of eight groups: four plain, the upper four with their high bits above the first eight.
const K_SCALE: &str = "HALF(block) * f32(select((BYTE(block + 8u + group) & 15u) | ((BYTE(block + group) >> 6u) << 4u), \
     BYTE(block + 4u + group) & 63u, group < 4u))";
const K_MIN: &str = "-HALF(block + 2u) * f32(select((BYTE(block + 8u + group) >> 4u) | ((BYTE(block + 4u + group) >> 6u) << 4u), \
     BYTE(block + 8u + group) & 63u, group < 4u))";

/// Half of a float of four exponent and three mantissa bits, whose code 127 is 0.
const NV_SCALE: &str = "select(select(bitcast<f32>(((((BYTE(block + group) >> 3u) & 15u) + 119u) << 23u) \
     | ((BYTE(block + group) & 7u) << 20u)), f32(BYTE(block + group) & 7u) * 0.0009765625, \
     ((BYTE(block + group) >> 3u) & 15u) == 0u), 0.0, BYTE(block + group) == 127u)";

/// Five ternary digits in a byte, as a fraction of 256: 32 bytes, 16 bytes, then 4 bytes of four digits.
const TERNARY: &str =
    "let place = select(select(vec2<u32>((four - 60u) & 3u, 48u), vec2<u32>(((four - 40u) >> 2u) & 7u, 32u + ((four - 40u) & 3u) * 4u), \
     four < 60u), vec2<u32>(four >> 3u, (four & 7u) * 4u), four < 40u);
    let power = select((0x1b090301u >> (place.x * 8u)) & 255u, 81u, place.x == 4u);
    let digits = (((unpack4xU8(WORD(block + place.y)) * power) & vec4<u32>(255u)) * 3u) >> vec4<u32>(8u);
    let codes = vec4<f32>(digits) - vec4<f32>(1.0);";

/// The formats whose codes point into a codebook. An entry holds eight values of two bits or four of four.
fn book_decoder(format: BlockFormat) -> Decoder {
    use BlockFormat as B;
    // Seven sign bits, the eighth making their number even; or plain ones.
    let even = |bits: &str| {
        format!(
            "let seven = ({bits}) & 127u;\n    let signs = seven | ((countOneBits(seven) & 1u) << 7u);"
        )
    };
    let (index, signs) = match format {
        B::IQ2_XXS => (
            "BYTE(block + 2u + (four >> 3u) * 8u + ((four >> 1u) & 3u))",
            even("WORD(block + 6u + (four >> 3u) * 8u) >> (((four >> 1u) & 3u) * 7u)"),
        ),
        B::IQ2_XS => (
            "PAIR(block + 2u + (four >> 1u) * 2u) & 511u",
            even("PAIR(block + 2u + (four >> 1u) * 2u) >> 9u"),
        ),
        B::IQ2_S => (
            "BYTE(block + 2u + (four >> 1u)) | (((BYTE(block + 66u + (four >> 3u)) >> (((four >> 1u) & 3u) * 2u)) & 3u) << 8u)",
            "let signs = BYTE(block + 34u + (four >> 1u));".to_owned(),
        ),
        B::IQ3_XXS => (
            "BYTE(block + 2u + four)",
            even("WORD(block + 66u + (four >> 3u) * 4u) >> (((four >> 1u) & 3u) * 7u)"),
        ),
        B::IQ3_S => (
            "BYTE(block + 2u + four) | (((BYTE(block + 66u + (four >> 3u)) >> (four & 7u)) & 1u) << 8u)",
            "let signs = BYTE(block + 74u + (four >> 1u));".to_owned(),
        ),
        B::IQ1_S => (
            "BYTE(block + 2u + (four >> 1u)) | (((PAIR(block + 34u + (four >> 3u) * 2u) >> (((four >> 1u) & 3u) * 3u)) & 7u) << 8u)",
            "let offset = select(1.0, -1.0, PAIR(block + 34u + (four >> 3u) * 2u) >= 0x8000u);".to_owned(),
        ),
        _ => (
            "BYTE(block + (four >> 1u)) | (((BYTE(block + 32u + (four >> 2u)) >> (((four >> 1u) & 1u) * 4u)) & 7u) << 8u)",
            "let offset = select(1.0, -1.0, ((BYTE(block + 32u + (four >> 2u)) >> (((four >> 1u) & 1u) * 4u)) & 8u) != 0u);"
                .to_owned(),
        ),
    };
    let odd = |code: &str| format!("f32((({code}) & 15u) * 2u + 1u)");
    let nibble = |first: u32| {
        odd(&format!(
            "BYTE(block + {first}u + (group >> 1u)) >> ((group & 1u) * 4u)"
        ))
    };
    let scale = match format {
        B::IQ2_XXS => format!(
            "HALF(block) * 0.125 * {}",
            odd("WORD(block + 6u + group * 8u) >> 28u")
        ),
        B::IQ2_XS => format!("HALF(block) * 0.125 * {}", nibble(66)),
        B::IQ2_S => format!("HALF(block) * 0.125 * {}", nibble(74)),
        B::IQ3_XXS => format!(
            "HALF(block) * 0.25 * {}",
            odd("WORD(block + 66u + group * 4u) >> 28u")
        ),
        B::IQ3_S => format!("HALF(block) * {}", nibble(106)),
        B::IQ1_S => format!(
            "HALF(block) * 0.125 * {}",
            odd("(PAIR(block + 34u + group * 2u) >> 12u) & 7u")
        ),
        _ => format!(
            "unpack2x16float((PAIR(block + 48u) >> 12u) | ((PAIR(block + 50u) >> 12u) << 4u) \
             | ((PAIR(block + 52u) >> 12u) << 8u) | ((PAIR(block + 54u) >> 12u) << 12u)).x * 0.125 * {}",
            odd("(PAIR(block + 48u + (group >> 2u) * 2u) >> ((group & 3u) * 3u)) & 7u")
        ),
    };
    // Levels as bytes of a word, by two bits; four-bit values give odd or evenly stepped levels by arithmetic.
    let two_bits = |levels: &str| {
        format!(
            "(vec4<u32>({levels}) >> (((vec4<u32>(entry) >> (vec4<u32>(0u, 2u, 4u, 6u) + vec4<u32>((four & 1u) * 8u))) & vec4<u32>(3u)) * 8u)) & vec4<u32>(255u)"
        )
    };
    let three_bits = "(vec4<u32>(entry) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(7u)";
    let (levels, is_ternary) = match format {
        B::IQ2_XXS | B::IQ2_XS | B::IQ2_S => {
            (format!("vec4<f32>({})", two_bits("0x002b1908u")), false)
        }
        // 4, 12, .. 52, then 62.
        B::IQ3_XXS => (
            format!(
                "min(vec4<f32>({three_bits}) * 8.0 + 4.0, vec4<f32>(52.0)) + select(vec4<f32>(), vec4<f32>(10.0), \
                 ({three_bits}) == vec4<u32>(7u))"
            ),
            false,
        ),
        B::IQ3_S => (format!("vec4<f32>({three_bits}) * 2.0 + 1.0"), false),
        _ => (
            format!("vec4<f32>({}) - 8.0", two_bits("0x08100800u")),
            true,
        ),
    };
    let finish = match is_ternary {
        true => format!("let codes = {levels} + offset;"),
        false => format!(
            "let negative = ((vec4<u32>(signs >> ((four & 1u) * 4u)) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u)) == vec4<u32>(1u);
    let levels = {levels};
    let codes = select(levels, -levels, negative);"
        ),
    };
    let codes = format!(
        "let index = {index};
    {signs}
    let entry = (ENTRY_PAIR >> ((index & 1u) * 16u)) & 0xffffu;
    {finish}"
    );
    Decoder::new(&scale, "0.0", &codes)
}

/// Reading bytes of a buffer of words. A word that straddles two is read where blocks are not of whole words only; its
/// second half may lie past the end when nothing of it is used.
fn byte_functions(name: &str, format: BlockFormat) -> String {
    let word = match format.block_size() % 4 {
        0 => format!("return load_{name}(at >> 2u);"),
        2 => format!(
            "let first = at >> 2u;
    let low = load_{name}(first);
    let high = load_{name}(min(first + 1u, len_{name}() - 1u));
    return select(low, (low >> 16u) | (high << 16u), (at & 2u) != 0u);"
        ),
        _ => format!(
            "let first = at >> 2u;
    let shift = (at & 3u) * 8u;
    let low = load_{name}(first);
    let high = load_{name}(min(first + 1u, len_{name}() - 1u));
    return select((low >> shift) | (high << ((32u - shift) & 31u)), low, shift == 0u);"
        ),
    };
    format!(
        "fn {name}_word(at: u32) -> u32 {{
    {word}
}}
fn {name}_byte(at: u32) -> u32 {{ return (load_{name}(at >> 2u) >> ((at & 3u) * 8u)) & 255u; }}
fn {name}_pair(at: u32) -> u32 {{ return (load_{name}(at >> 2u) >> ((at & 2u) * 8u)) & 0xffffu; }}
fn {name}_half(at: u32) -> f32 {{ return unpack2x16float({name}_pair(at)).x; }}
"
    )
}

/// Bytes of the largest codebook that a kernel may hold as a constant: drivers take a second to compile one of 1 KiB, and
/// twenty for one of 4 KiB.
const LARGEST_BOOK: usize = 1 << 10;

/// The codebook that kernels with a format read from a buffer: one that is too large for a constant.
pub fn book_buffer(format: BlockFormat) -> Option<&'static [u8]> {
    codebook(format).filter(|bytes| bytes.len() > LARGEST_BOOK)
}

/// The codebook of a format as a constant of two entries a word, if it has a small one.
fn book(name: &str, format: BlockFormat) -> String {
    let small = codebook(format).filter(|_| book_buffer(format).is_none());
    let Some(bytes) = small else {
        return String::new();
    };
    let words: Vec<String> = bytes
        .chunks_exact(4)
        .map(|word| {
            let word: [u8; 4] = std::array::from_fn(|at| word[at]);
            format!("{:#x}u", u32::from_le_bytes(word))
        })
        .collect();
    format!(
        "const {name}_book = array<u32, {}>({});\n",
        words.len(),
        words.join(", ")
    )
}

/// The accessors of a buffer NAME of words, see the module's documentation. Blocks must hold fewer than 2^32 elements and
/// bytes in all.
pub fn accessors(name: &str, format: BlockFormat) -> String {
    let decoder = decoder(format);
    let entry = match book_buffer(format) {
        Some(_) => format!("load_{name}_book(index >> 1u)"),
        None => format!("{name}_book[index >> 1u]"),
    };
    let bind = |code: &str| {
        code.replace("WORD(", &format!("{name}_word("))
            .replace("BYTE(", &format!("{name}_byte("))
            .replace("PAIR(", &format!("{name}_pair("))
            .replace("HALF(", &format!("{name}_half("))
            .replace("ENTRY_PAIR", &entry)
    };
    let mut text = byte_functions(name, format);
    text.push_str(&book(name, format));
    text.push_str(&fill(
        "fn ${NAME}_scale(block: u32, group: u32) -> vec2<f32> {
    return vec2<f32>(${SCALE}, ${MIN});
}
fn ${NAME}_codes(block: u32, four: u32) -> vec4<f32> {
    ${CODES}
    return codes;
}
fn ${NAME}_four(i: u32) -> vec4<f32> {
    let block = (i / ${LEN}u) * ${SIZE}u;
    let within = i % ${LEN}u;
    let scale = ${NAME}_scale(block, within / ${GROUP}u);
    return scale.x * ${NAME}_codes(block, within / 4u) + scale.y;
}
",
        &[
            ("NAME", name),
            ("SCALE", &bind(&decoder.scale)),
            ("MIN", &bind(decoder.min)),
            ("CODES", &bind(&decoder.codes)),
            ("LEN", &format.block_len().to_string()),
            ("SIZE", &format.block_size().to_string()),
            ("GROUP", &format.group_len().to_string()),
        ],
    ));
    text
}

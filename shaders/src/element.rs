//! How element types live in WGSL storage buffers.
//!
//! WGSL has 32-bit scalars only (f16 is optional, 8-bit types do not exist), so narrower elements are packed in `u32`
//! words, lowest bits first, and 64-bit numbers are pairs of words, low word first.

use crate::minifloat;

/// What a storage buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float: 4 exponent bits, no infinity.
    F8E4M3Fn,
    /// 8-bit float: 4 exponent bits, no infinity, no negative zero.
    F8E4M3Fnuz,
    /// 8-bit float: 5 exponent bits, as IEEE.
    F8E5M2,
    /// 8-bit float: 5 exponent bits, no infinity, no negative zero.
    F8E5M2Fnuz,
    /// 4-bit float: 2 exponent bits, every code a number.
    F4E2M1,
    /// 8-bit power of two, no sign.
    F8E8M0,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned.
    U32,
    /// 16-bit signed.
    I16,
    /// 16-bit unsigned.
    U16,
    /// 8-bit signed.
    I8,
    /// 8-bit unsigned.
    U8,
    /// 4-bit signed.
    I4,
    /// 4-bit unsigned.
    U4,
    /// 2-bit signed.
    I2,
    /// 2-bit unsigned.
    U2,
    /// A byte that is 0 or 1.
    Bool,
    /// 64-bit signed, two words.
    I64,
    /// 64-bit unsigned, two words.
    U64,
    /// 64-bit float, two words.
    F64,
}

impl Element {
    /// Every element type.
    pub const ALL: [Self; 23] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4M3Fn,
        Self::F8E4M3Fnuz,
        Self::F8E5M2,
        Self::F8E5M2Fnuz,
        Self::F4E2M1,
        Self::F8E8M0,
        Self::I32,
        Self::U32,
        Self::I16,
        Self::U16,
        Self::I8,
        Self::U8,
        Self::I4,
        Self::U4,
        Self::I2,
        Self::U2,
        Self::Bool,
        Self::I64,
        Self::U64,
        Self::F64,
    ];

    /// Bits of one element in storage.
    pub fn bits(self) -> u32 {
        match self {
            Self::I2 | Self::U2 => 2,
            Self::I4 | Self::U4 | Self::F4E2M1 => 4,
            Self::I8
            | Self::U8
            | Self::Bool
            | Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F8E8M0 => 8,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::I64 | Self::U64 | Self::F64 => 64,
        }
    }

    /// Elements in a word; 1 for 32 and 64 bits.
    pub fn per_word(self) -> u32 {
        32 / self.bits().min(32)
    }

    /// Whether [`Width::Four`](crate::Width::Four) exists for it.
    pub fn has_fours(self) -> bool {
        matches!(
            self,
            Self::F32
                | Self::F16
                | Self::Bf16
                | Self::I32
                | Self::U32
                | Self::I16
                | Self::U16
                | Self::I8
                | Self::U8
                | Self::Bool
                | Self::F8E4M3Fn
                | Self::F8E4M3Fnuz
                | Self::F8E5M2
                | Self::F8E5M2Fnuz
        )
    }

    /// Lower-case name, as used in helper functions.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F8E4M3Fn => "f8e4m3fn",
            Self::F8E4M3Fnuz => "f8e4m3fnuz",
            Self::F8E5M2 => "f8e5m2",
            Self::F8E5M2Fnuz => "f8e5m2fnuz",
            Self::F4E2M1 => "f4e2m1",
            Self::F8E8M0 => "f8e8m0",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I4 => "i4",
            Self::U4 => "u4",
            Self::I2 => "i2",
            Self::U2 => "u2",
            Self::Bool => "bool",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F64 => "f64",
        }
    }

    /// WGSL type that `load_NAME` gives and `store_NAME` takes.
    pub fn value_type(self) -> &'static str {
        match self {
            Self::F32
            | Self::F16
            | Self::Bf16
            | Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => "f32",
            Self::I32 | Self::I16 | Self::I8 | Self::I4 | Self::I2 => "i32",
            Self::U32 | Self::U16 | Self::U8 | Self::U4 | Self::U2 => "u32",
            Self::Bool => "bool",
            Self::I64 | Self::U64 | Self::F64 => "vec2<u32>",
        }
    }

    /// Vector of four values.
    pub fn value_type4(self) -> &'static str {
        match self.value_type() {
            "f32" => "vec4<f32>",
            "i32" => "vec4<i32>",
            "u32" => "vec4<u32>",
            "bool" => "vec4<bool>",
            other => unreachable!("bug: there are no vectors of {other}"),
        }
    }

    /// WGSL type of its stored bits.
    pub(crate) fn bits_type(self) -> &'static str {
        match self.bits() {
            64 => "vec2<u32>",
            _ => "u32",
        }
    }

    /// Shift from element to word index, and mask of the place within a word.
    pub(crate) fn place(self) -> (u32, u32) {
        let per_word = self.per_word();
        (per_word.trailing_zeros(), per_word - 1)
    }

    /// Its stored bits for `value`, in the low bits of a word.
    pub(crate) fn encoded(self) -> String {
        let mask = u32::MAX >> (32 - self.bits().min(32));
        match self {
            Self::F32 | Self::I32 => "bitcast<u32>(value)".to_owned(),
            Self::U32 | Self::I64 | Self::U64 | Self::F64 => "value".to_owned(),
            Self::F16 | Self::Bf16 => format!("{}_bits(value)", self.name()),
            Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => {
                format!("{}_bits(value, false)", self.name())
            }
            Self::I16 | Self::I8 | Self::I4 | Self::I2 => {
                format!("(bitcast<u32>(value) & {mask}u)")
            }
            Self::U16 | Self::U8 | Self::U4 | Self::U2 => format!("(value & {mask}u)"),
            Self::Bool => "select(0u, 1u, value)".to_owned(),
        }
    }

    /// The value of stored bits given as WGSL, for narrow numbers.
    pub(crate) fn decoded(self, bits: &str) -> String {
        match self {
            Self::F16 => format!("unpack2x16float({bits}).x"),
            Self::Bf16 => format!("bitcast<f32>({bits} << 16u)"),
            Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => {
                format!("{}_value({bits})", self.name())
            }
            Self::I16 | Self::I8 | Self::I4 | Self::I2 => {
                format!("extractBits(bitcast<i32>({bits}), 0u, {}u)", self.bits())
            }
            Self::U16 | Self::U8 | Self::U4 | Self::U2 => bits.to_owned(),
            Self::F32 | Self::I32 | Self::U32 | Self::Bool | Self::I64 | Self::U64 | Self::F64 => {
                unreachable!("bug: {self:?} is no narrow number")
            }
        }
    }

    /// Helper functions that its accessors call, in WGSL; empty for none. `f16_bits`, `bf16_bits` and, for 8 and 4-bit floats,
    /// `NAME_bits(value, saturate)` and `NAME_value(bits)`.
    pub fn helpers(self) -> String {
        match self {
            Self::F16 => F16_BITS.to_owned(),
            Self::Bf16 => BF16_BITS.to_owned(),
            Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => minifloat::helpers(self),
            Self::F32
            | Self::I32
            | Self::U32
            | Self::I16
            | Self::U16
            | Self::I8
            | Self::U8
            | Self::I4
            | Self::U4
            | Self::I2
            | Self::U2
            | Self::Bool
            | Self::I64
            | Self::U64
            | Self::F64 => String::new(),
        }
    }
}

/// Float to nearest f16, ties to even, in integer arithmetic: the built-in packing leaves rounding and overflow to the
/// driver. Subnormals round by an addition whose last bit has the weight of f16's.
const F16_BITS: &str = "fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= 0x47800000u {
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if magnitude < 0x38800000u {
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
    }
    return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
}
";

/// Float to nearest bfloat16, ties to even; a NaN stays one.
const BF16_BITS: &str = "fn bf16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
";

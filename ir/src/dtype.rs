//! Element types of tensors and their storage.
//!
//! A dtype says how one element is stored; it never says where or in which layout. Sub-byte types are packed
//! little end first (element 0 in the low bits). Block types store groups of elements along the innermost axis.

use std::fmt;

/// A block-quantised storage format: `block_len` elements of one row share scales inside `block_size` bytes.
///
/// The layouts are those of the GGUF file format (version 3). Only storage and conversion are legal on them:
/// cast to a float type (dequantise), and gather, slice and concat along outer axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

impl BlockFormat {
    /// Every format with its text name, elements per block and bytes per block.
    pub const TABLE: &'static [(BlockFormat, &'static str, usize, usize)] = &[
        (BlockFormat::Q4_0, "q4_0", 32, 18),
        (BlockFormat::Q4_1, "q4_1", 32, 20),
        (BlockFormat::Q5_0, "q5_0", 32, 22),
        (BlockFormat::Q5_1, "q5_1", 32, 24),
        (BlockFormat::Q8_0, "q8_0", 32, 34),
        (BlockFormat::Q8_1, "q8_1", 32, 36),
        (BlockFormat::Q2_K, "q2_k", 256, 84),
        (BlockFormat::Q3_K, "q3_k", 256, 110),
        (BlockFormat::Q4_K, "q4_k", 256, 144),
        (BlockFormat::Q5_K, "q5_k", 256, 176),
        (BlockFormat::Q6_K, "q6_k", 256, 210),
        (BlockFormat::Q8_K, "q8_k", 256, 292),
        (BlockFormat::IQ2_XXS, "iq2_xxs", 256, 66),
        (BlockFormat::IQ2_XS, "iq2_xs", 256, 74),
        (BlockFormat::IQ3_XXS, "iq3_xxs", 256, 98),
        (BlockFormat::IQ1_S, "iq1_s", 256, 50),
        (BlockFormat::IQ4_NL, "iq4_nl", 32, 18),
        (BlockFormat::IQ3_S, "iq3_s", 256, 110),
        (BlockFormat::IQ2_S, "iq2_s", 256, 82),
        (BlockFormat::IQ4_XS, "iq4_xs", 256, 136),
        (BlockFormat::IQ1_M, "iq1_m", 256, 56),
        (BlockFormat::TQ1_0, "tq1_0", 256, 54),
        (BlockFormat::TQ2_0, "tq2_0", 256, 66),
        (BlockFormat::MXFP4, "mxfp4", 32, 17),
        (BlockFormat::NVFP4, "nvfp4", 64, 36),
    ];

    fn row(self) -> &'static (BlockFormat, &'static str, usize, usize) {
        Self::TABLE
            .iter()
            .find(|r| r.0 == self)
            .unwrap_or_else(|| unreachable!("bug: block format without a row"))
    }

    /// Text name, as in `q4_k`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements in a block.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes in a block.
    pub fn block_size(self) -> usize {
        self.row().3
    }
}

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    Bool,
    I2,
    I4,
    I8,
    I16,
    I32,
    I64,
    U2,
    U4,
    U8,
    U16,
    U32,
    U64,
    F16,
    BF16,
    F32,
    F64,
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3FN,
    /// 8-bit float, 4 exponent bits, no infinities, no negative zero.
    F8E4M3FNUZ,
    /// 8-bit float, 5 exponent bits, IEEE-like.
    F8E5M2,
    /// 8-bit float, 5 exponent bits, no infinities, no negative zero.
    F8E5M2FNUZ,
    /// 8-bit power-of-two scale (exponent only).
    F8E8M0,
    /// 4-bit float, 2 exponent bits, 1 mantissa bit.
    F4E2M1,
    /// UTF-8 text; lives on the host only.
    String,
    /// Block-quantised storage.
    Block(BlockFormat),
}

/// What kind of number a dtype holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Class {
    Bool,
    Signed,
    Unsigned,
    Float,
    String,
    Block,
}

impl DType {
    /// Every plain (not block) dtype with its text name and bits per element (0 for strings).
    pub const TABLE: &'static [(DType, &'static str, usize)] = &[
        (DType::Bool, "bool", 8),
        (DType::I2, "i2", 2),
        (DType::I4, "i4", 4),
        (DType::I8, "i8", 8),
        (DType::I16, "i16", 16),
        (DType::I32, "i32", 32),
        (DType::I64, "i64", 64),
        (DType::U2, "u2", 2),
        (DType::U4, "u4", 4),
        (DType::U8, "u8", 8),
        (DType::U16, "u16", 16),
        (DType::U32, "u32", 32),
        (DType::U64, "u64", 64),
        (DType::F16, "f16", 16),
        (DType::BF16, "bf16", 16),
        (DType::F32, "f32", 32),
        (DType::F64, "f64", 64),
        (DType::F8E4M3FN, "f8e4m3fn", 8),
        (DType::F8E4M3FNUZ, "f8e4m3fnuz", 8),
        (DType::F8E5M2, "f8e5m2", 8),
        (DType::F8E5M2FNUZ, "f8e5m2fnuz", 8),
        (DType::F8E8M0, "f8e8m0", 8),
        (DType::F4E2M1, "f4e2m1", 4),
        (DType::String, "string", 0),
    ];

    fn row(self) -> Option<&'static (DType, &'static str, usize)> {
        Self::TABLE.iter().find(|r| r.0 == self)
    }

    /// Text name, as in `f32` or `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Block(b) => b.name(),
            _ => {
                self.row()
                    .unwrap_or_else(|| unreachable!("bug: dtype without a row"))
                    .1
            }
        }
    }

    /// The dtype of a text name.
    pub fn from_name(name: &str) -> Option<DType> {
        let plain = Self::TABLE.iter().find(|r| r.1 == name).map(|r| r.0);
        plain.or_else(|| {
            BlockFormat::TABLE
                .iter()
                .find(|r| r.1 == name)
                .map(|r| DType::Block(r.0))
        })
    }

    /// Number class.
    pub fn class(self) -> Class {
        use DType::*;
        match self {
            Bool => Class::Bool,
            I2 | I4 | I8 | I16 | I32 | I64 => Class::Signed,
            U2 | U4 | U8 | U16 | U32 | U64 => Class::Unsigned,
            F16 | BF16 | F32 | F64 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0
            | F4E2M1 => Class::Float,
            String => Class::String,
            Block(_) => Class::Block,
        }
    }

    /// Bits of one element; 0 for strings and block types.
    pub fn bits(self) -> usize {
        self.row().map_or(0, |r| r.2)
    }

    /// Whether elements are integers of either signedness (bool is not).
    pub fn is_int(self) -> bool {
        matches!(self.class(), Class::Signed | Class::Unsigned)
    }

    /// Whether elements are floating point.
    pub fn is_float(self) -> bool {
        self.class() == Class::Float
    }

    /// Whether elements have a size in whole bytes (not sub-byte, string or block).
    pub fn is_whole_byte(self) -> bool {
        self.bits() >= 8
    }

    /// Bytes of one element of a whole-byte type; 0 otherwise.
    pub fn size(self) -> usize {
        self.bits() / 8
    }

    /// Bytes that `rows` rows of `inner` elements take. Sub-byte types are packed over the whole tensor, block
    /// types per row. `None` on overflow, for strings, and for a row that is no multiple of the block.
    pub fn storage_size(self, rows: usize, inner: usize) -> Option<usize> {
        match self {
            DType::Block(b) => {
                if !inner.is_multiple_of(b.block_len()) {
                    return None;
                }
                rows.checked_mul(inner / b.block_len())?
                    .checked_mul(b.block_size())
            }
            DType::String => None,
            _ => Some(
                rows.checked_mul(inner)?
                    .checked_mul(self.bits())?
                    .div_ceil(8),
            ),
        }
    }

    /// Smallest and largest value of an integer or bool type.
    pub fn int_range(self) -> Option<(i128, i128)> {
        let bits = self.bits() as u32;
        match self.class() {
            Class::Bool => Some((0, 1)),
            Class::Signed => Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
            Class::Unsigned => Some((0, (1i128 << bits) - 1)),
            Class::Float | Class::String | Class::Block => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

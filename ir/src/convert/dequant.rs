//! Block-quantised weights to f32, bit for bit as the reference implementation of the format does.
//!
//! Every format stores blocks of consecutive elements of a row; each function here turns one block into
//! integers and their scales ([`BlockCodes`]), from which floats follow with the roundings of the reference:
//! products first, then the sum, never fused. The formats with codebooks are in `dequant_codebook.rs`.

use crate::dtype::BlockFormat;
use half::f16;

use super::dequant_codebook as codebook;

/// The bytes are not as many as the elements need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes of {} do not hold {len} elements", format.name())]
pub struct SizeMismatch {
    /// The format asked for.
    pub format: BlockFormat,
    /// Bytes given.
    pub size: usize,
    /// Elements asked for.
    pub len: usize,
}

/// Most elements of a block.
pub const MAX_BLOCK: usize = 256;
/// Most groups of a block.
const MAX_GROUPS: usize = MAX_BLOCK / 16;

/// A block as integers. Element `i` of group `g = i / group_len` is
/// `scale * scales[g] * codes[i] + min * mins[g]`, without the sum where the format has no minimum.
#[derive(Clone, Debug)]
pub struct BlockCodes {
    /// What all scales are multiples of.
    pub scale: f32,
    /// One for each group: an integer of 8 bits, unless `scale` is 1.
    pub scales: [f32; MAX_GROUPS],
    /// What all minima are multiples of; 0 in formats without.
    pub min: f32,
    /// One for each group: an integer of at most 6 bits.
    pub mins: [f32; MAX_GROUPS],
    /// The elements.
    pub codes: [i8; MAX_BLOCK],
}

impl BlockCodes {
    /// A block of one scale.
    pub(super) fn new(scale: f32) -> BlockCodes {
        BlockCodes {
            scale,
            scales: [1.0; MAX_GROUPS],
            min: 0.0,
            mins: [1.0; MAX_GROUPS],
            codes: [0; MAX_BLOCK],
        }
    }

    /// A block of one scale and one minimum.
    fn with_min(scale: f32, min: f32) -> BlockCodes {
        BlockCodes {
            min,
            ..BlockCodes::new(scale)
        }
    }
}

impl BlockFormat {
    /// Elements that share a scale: 16 or 32.
    pub fn group_len(self) -> usize {
        use BlockFormat::*;
        match self {
            Q2_K | Q3_K | Q6_K | IQ2_XS | IQ2_S | IQ1_M | NVFP4 => 16,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 | Q4_K | Q5_K | Q8_K | IQ2_XXS | IQ3_XXS
            | IQ1_S | IQ4_NL | IQ3_S | IQ4_XS | TQ1_0 | TQ2_0 | MXFP4 => 32,
        }
    }

    /// The integers that elements are made of, in ascending order, where those are at most 16.
    pub fn levels(self) -> Option<&'static [i8]> {
        use BlockFormat::*;
        match self {
            Q4_0 => Some(&[-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]),
            Q4_1 | Q4_K => Some(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
            Q2_K => Some(&[0, 1, 2, 3]),
            Q3_K => Some(&[-4, -3, -2, -1, 0, 1, 2, 3]),
            TQ1_0 | TQ2_0 => Some(&[-1, 0, 1, 2]),
            IQ4_NL | IQ4_XS => Some(&NONLINEAR),
            MXFP4 | NVFP4 => Some(&[-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]),
            IQ2_XXS | IQ2_XS | IQ2_S => Some(&[-43, -25, -8, 0, 8, 25, 43]),
            IQ3_XXS => Some(&[
                -62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62,
            ]),
            IQ3_S => Some(&[-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15]),
            IQ1_S | IQ1_M => Some(&[-9, -7, -1, 1, 7, 9]),
            Q5_0 | Q5_1 | Q8_0 | Q8_1 | Q5_K | Q6_K | Q8_K => None,
        }
    }

    /// Whether a minimum is added to the scaled integers.
    pub fn has_min(self) -> bool {
        use BlockFormat::*;
        matches!(self, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K)
    }
}

/// Takes a block apart.
///
/// # Errors
/// When `block` is not one block of the format.
pub fn block_codes(format: BlockFormat, block: &[u8]) -> Result<BlockCodes, SizeMismatch> {
    match format {
        BlockFormat::Q4_0 => sized(format, block, q4_0),
        BlockFormat::Q4_1 => sized(format, block, q4_1),
        BlockFormat::Q5_0 => sized(format, block, q5_0),
        BlockFormat::Q5_1 => sized(format, block, q5_1),
        BlockFormat::Q8_0 => sized(format, block, q8_0),
        BlockFormat::Q8_1 => sized(format, block, q8_1),
        BlockFormat::Q2_K => sized(format, block, q2_k),
        BlockFormat::Q3_K => sized(format, block, q3_k),
        BlockFormat::Q4_K => sized(format, block, q4_k),
        BlockFormat::Q5_K => sized(format, block, q5_k),
        BlockFormat::Q6_K => sized(format, block, q6_k),
        BlockFormat::Q8_K => sized(format, block, q8_k),
        BlockFormat::IQ2_XXS => sized(format, block, codebook::iq2_xxs),
        BlockFormat::IQ2_XS => sized(format, block, codebook::iq2_xs),
        BlockFormat::IQ2_S => sized(format, block, codebook::iq2_s),
        BlockFormat::IQ3_XXS => sized(format, block, codebook::iq3_xxs),
        BlockFormat::IQ3_S => sized(format, block, codebook::iq3_s),
        BlockFormat::IQ1_S => sized(format, block, codebook::iq1_s),
        BlockFormat::IQ1_M => sized(format, block, codebook::iq1_m),
        BlockFormat::IQ4_NL => sized(format, block, iq4_nl),
        BlockFormat::IQ4_XS => sized(format, block, iq4_xs),
        BlockFormat::TQ1_0 => sized(format, block, tq1_0),
        BlockFormat::TQ2_0 => sized(format, block, tq2_0),
        BlockFormat::MXFP4 => sized(format, block, mxfp4),
        BlockFormat::NVFP4 => sized(format, block, nvfp4),
    }
}

/// The parts of a block of 32 elements whose codes lie in it as they are.
#[derive(Clone, Copy, Debug)]
pub struct PlainBlock<'a> {
    /// Bytes of the scale, an f16.
    pub scale: [u8; 2],
    /// Bytes of the minimum, an f16; 0 in formats without.
    pub min: [u8; 2],
    /// The codes.
    pub codes: PlainCodes<'a>,
}

/// Codes of 32 elements.
#[derive(Clone, Copy, Debug)]
pub enum PlainCodes<'a> {
    /// Positions in [`BlockFormat::levels`]: byte `i` holds that of element `i` low and of `i + 16` high.
    Nibbles(&'a [u8; 16]),
    /// Signed bytes.
    Bytes(&'a [u8; 32]),
}

/// Takes a block apart without decoding it; `None` for formats whose blocks are not that simple.
#[inline]
pub fn plain_block(format: BlockFormat, block: &[u8]) -> Option<PlainBlock<'_>> {
    let (header, codes) = match format {
        BlockFormat::Q4_0 | BlockFormat::IQ4_NL | BlockFormat::Q8_0 => block.split_at_checked(2)?,
        BlockFormat::Q4_1 => block.split_at_checked(4)?,
        _ => return None,
    };
    Some(PlainBlock {
        scale: [header[0], header[1]],
        min: header[2..].try_into().unwrap_or_default(),
        codes: match format {
            BlockFormat::Q8_0 => PlainCodes::Bytes(codes.try_into().ok()?),
            _ => PlainCodes::Nibbles(codes.try_into().ok()?),
        },
    })
}

/// Decodes whole blocks: `out` takes the elements of `bytes` in order.
///
/// # Errors
/// When `bytes` is not exactly the blocks of `out`.
pub fn dequantize(format: BlockFormat, bytes: &[u8], out: &mut [f32]) -> Result<(), SizeMismatch> {
    let blocks = out.len() / format.block_len();
    let whole = out.len() == blocks * format.block_len();
    if !whole || Some(bytes.len()) != blocks.checked_mul(format.block_size()) {
        return Err(SizeMismatch {
            format,
            size: bytes.len(),
            len: out.len(),
        });
    }
    let blocks = bytes.chunks_exact(format.block_size());
    for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
        let block = block_codes(format, block)?;
        let groups = out.chunks_exact_mut(format.group_len());
        let codes = block.codes.chunks_exact(format.group_len());
        for (group, (out, codes)) in groups.zip(codes).enumerate() {
            let scale = block.scale * block.scales[group];
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = scale * f32::from(code);
            }
            if format.has_min() {
                let min = block.min * block.mins[group];
                out.iter_mut().for_each(|out| *out += min);
            }
        }
    }
    Ok(())
}

fn sized<const SIZE: usize>(
    format: BlockFormat,
    block: &[u8],
    decode: fn(&[u8; SIZE]) -> BlockCodes,
) -> Result<BlockCodes, SizeMismatch> {
    let block: &[u8; SIZE] = block.try_into().map_err(|_| SizeMismatch {
        format,
        size: block.len(),
        len: format.block_len(),
    })?;
    Ok(decode(block))
}

/// The half-precision number at byte `at`.
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Nibble `index % 2` of a byte, the low one first.
fn nibble(byte: u8, index: usize) -> u8 {
    byte >> (4 * (index % 2)) & 15
}

/// Twice as many elements as bytes: low nibbles first, then high ones.
fn nibbles(bytes: &[u8], codes: &mut [i8], value: impl Fn(u8) -> i8) {
    for (index, &byte) in bytes.iter().enumerate() {
        codes[index] = value(byte & 15);
        codes[index + bytes.len()] = value(byte >> 4);
    }
}

/// `d * (q - 8)`.
fn q4_0(block: &[u8; 18]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0));
    nibbles(&block[2..], &mut out.codes, |q| q as i8 - 8);
    out
}

/// `d * q + m`.
fn q4_1(block: &[u8; 20]) -> BlockCodes {
    let mut out = BlockCodes::with_min(half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], &mut out.codes, |q| q as i8);
    out
}

/// Elements of five bits: the nibbles and, element by element, the bits above them.
fn five_bits(nibbles: &[u8], high: &[u8], codes: &mut [i8], zero: i8) {
    for (index, code) in codes.iter_mut().enumerate().take(32) {
        let high = (high[index / 8] >> (index % 8) & 1) << 4;
        *code = (nibble(nibbles[index % 16], index / 16) | high) as i8 - zero;
    }
}

/// `d * (q - 16)` with five bits.
fn q5_0(block: &[u8; 22]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0));
    five_bits(&block[6..], &block[2..6], &mut out.codes, 16);
    out
}

/// `d * q + m` with five bits.
fn q5_1(block: &[u8; 24]) -> BlockCodes {
    let mut out = BlockCodes::with_min(half_at(block, 0), half_at(block, 2));
    five_bits(&block[8..], &block[4..8], &mut out.codes, 0);
    out
}

fn signed(scale: f32, bytes: &[u8]) -> BlockCodes {
    let mut out = BlockCodes::new(scale);
    for (code, &byte) in out.codes.iter_mut().zip(bytes) {
        *code = byte as i8;
    }
    out
}

/// `d * q` with signed bytes.
fn q8_0(block: &[u8; 34]) -> BlockCodes {
    signed(half_at(block, 0), &block[2..])
}

/// As [`q8_0`]; the second number of the block is the sum, which decoding does not need.
fn q8_1(block: &[u8; 36]) -> BlockCodes {
    signed(half_at(block, 0), &block[4..])
}

/// As [`q8_0`] with a single-precision scale; the sums at the end are not needed.
fn q8_k(block: &[u8; 292]) -> BlockCodes {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    signed(scale, &block[4..260])
}

/// Where element `index` of 256 lies when each of 32 consecutive bytes holds four elements that
/// are 32 apart, two bits each: the byte and the shift.
fn pairs(index: usize) -> (usize, usize) {
    (index / 128 * 32 + index % 32, index / 32 % 4 * 2)
}

/// `d * scale * q - dmin * min`, scale and min of four bits for each 16 elements.
fn q2_k(block: &[u8; 84]) -> BlockCodes {
    let mut out = BlockCodes::with_min(half_at(block, 80), -half_at(block, 82));
    for (group, &scales) in block[..16].iter().enumerate() {
        out.scales[group] = f32::from(scales & 15);
        out.mins[group] = f32::from(scales >> 4);
    }
    for (index, code) in out.codes.iter_mut().enumerate() {
        let (byte, shift) = pairs(index);
        *code = (block[16 + byte] >> shift & 3) as i8;
    }
    out
}

/// `d * (scale - 32) * q`, six-bit scales for each 16 elements. A set mask bit means that 4 is not
/// subtracted.
fn q3_k(block: &[u8; 110]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 108));
    let scales = &block[96..108];
    for (group, scale) in out.scales.iter_mut().enumerate() {
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        *scale = f32::from(nibble(scales[group % 8], group / 8) | high << 4) - 32.0;
    }
    for (index, code) in out.codes.iter_mut().enumerate() {
        let (byte, shift) = pairs(index);
        let low = block[32 + byte] >> shift & 3;
        let high = block[index % 32] >> (index / 32) & 1;
        *code = low as i8 - if high == 1 { 0 } else { 4 };
    }
    out
}

/// Sets scales and minima, six bits each, of 8 sub-blocks. Four of each are plain; the upper four have their
/// low bits in the last four bytes and their high bits above the first eight.
fn scales_and_mins(bytes: &[u8], out: &mut BlockCodes) {
    for index in 0..8 {
        let (scale, min) = match index {
            0..4 => (bytes[index] & 63, bytes[index + 4] & 63),
            _ => (
                bytes[index + 4] & 15 | bytes[index - 4] >> 6 << 4,
                bytes[index + 4] >> 4 | bytes[index] >> 6 << 4,
            ),
        };
        out.scales[index] = f32::from(scale);
        out.mins[index] = f32::from(min);
    }
}

/// `d * scale * q - dmin * min` for each 32 elements.
fn q4_k(block: &[u8; 144]) -> BlockCodes {
    let mut out = BlockCodes::with_min(half_at(block, 0), -half_at(block, 2));
    scales_and_mins(&block[4..16], &mut out);
    for (group, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, &byte) in codes.iter_mut().zip(&block[16 + group / 2 * 32..]) {
            *code = nibble(byte, group) as i8;
        }
    }
    out
}

/// As [`q4_k`] with a fifth bit.
fn q5_k(block: &[u8; 176]) -> BlockCodes {
    let mut out = BlockCodes::with_min(half_at(block, 0), -half_at(block, 2));
    scales_and_mins(&block[4..16], &mut out);
    for (group, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        let low = &block[48 + group / 2 * 32..];
        for ((code, &byte), &high) in codes.iter_mut().zip(low).zip(&block[16..48]) {
            *code = (nibble(byte, group) | (high >> group & 1) << 4) as i8;
        }
    }
    out
}

/// `d * scale * (q - 32)` with six bits and a signed scale for each 16 elements.
fn q6_k(block: &[u8; 210]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 208));
    for (scale, &byte) in out.scales.iter_mut().zip(&block[192..208]) {
        *scale = f32::from(byte as i8);
    }
    for (index, code) in out.codes.iter_mut().enumerate() {
        let (half, quarter) = (index / 128, index / 32 % 4);
        let low = block[half * 64 + quarter % 2 * 32 + index % 32];
        let (byte, shift) = pairs(index);
        *code = (nibble(low, quarter / 2) | (block[128 + byte] >> shift & 3) << 4) as i8 - 32;
    }
    out
}

/// The 16 levels of the non-linear four-bit formats.
const NONLINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

fn iq4_nl(block: &[u8; 18]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0));
    nibbles(&block[2..], &mut out.codes, |q| NONLINEAR[usize::from(q)]);
    out
}

/// As [`iq4_nl`] with a six-bit scale for each 32 elements.
fn iq4_xs(block: &[u8; 136]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0));
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (group, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        let low = nibble(block[4 + group / 2], group);
        let inner = low | ((high >> (2 * group) & 3) as u8) << 4;
        out.scales[group] = f32::from(inner) - 32.0;
        nibbles(&block[8 + group * 16..][..16], codes, |q| {
            NONLINEAR[usize::from(q)]
        });
    }
    out
}

/// Ternary digits: a byte holds five base-3 digits as a fraction of 256; multiplying by a power of
/// three brings a digit to the top.
fn tq1_0(block: &[u8; 54]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 52));
    let runs = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];
    let mut codes = out.codes.iter_mut();
    for (start, width, digits) in runs {
        for digit in 0..digits {
            for (&byte, code) in block[start..start + width].iter().zip(codes.by_ref()) {
                let top = byte.wrapping_mul(3u8.pow(digit));
                *code = ((u16::from(top) * 3) >> 8) as i8 - 1;
            }
        }
    }
    out
}

/// Two bits for each ternary digit.
fn tq2_0(block: &[u8; 66]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 64));
    for (index, code) in out.codes.iter_mut().enumerate() {
        let (byte, shift) = pairs(index);
        *code = (block[byte] >> shift & 3) as i8 - 1;
    }
    out
}

/// Twice the values of the four-bit float with two exponent bits and one mantissa bit.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of `2^(exponent - 127)`, which is subnormal for the two smallest exponents.
fn half_power(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

fn mxfp4(block: &[u8; 17]) -> BlockCodes {
    let mut out = BlockCodes::new(half_power(block[0]));
    nibbles(&block[1..], &mut out.codes, |q| {
        E2M1_DOUBLED[usize::from(q)]
    });
    out
}

/// Half of an unsigned float with four exponent and three mantissa bits; the largest code is 0.
fn half_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), f32::from(code & 7));
    let power = |exponent: u32| f32::from_bits((exponent + 120) << 23);
    let value = match (code, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 8.0 * power(1),
        _ => (1.0 + mantissa / 8.0) * power(exponent),
    };
    value * 0.5
}

/// Four groups of 16 elements, each with a scale of its own.
fn nvfp4(block: &[u8; 36]) -> BlockCodes {
    let mut out = BlockCodes::new(1.0);
    for (group, codes) in out.codes.chunks_exact_mut(16).enumerate().take(4) {
        out.scales[group] = half_e4m3(block[group]);
        nibbles(&block[4 + group * 8..][..8], codes, |q| {
            E2M1_DOUBLED[usize::from(q)]
        });
    }
    out
}

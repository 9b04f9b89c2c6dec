//! Block-quantised weights to f32, bit for bit as the reference implementation of the format does.
//!
//! Every format stores blocks of consecutive elements of a row; each function here turns one block
//! into floats with the same roundings in the same order as the reference (products first, then
//! the subtraction, never fused). The formats with codebooks are in `dequant_codebook.rs`.

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
    match format {
        BlockFormat::Q4_0 => each(bytes, out, q4_0),
        BlockFormat::Q4_1 => each(bytes, out, q4_1),
        BlockFormat::Q5_0 => each(bytes, out, q5_0),
        BlockFormat::Q5_1 => each(bytes, out, q5_1),
        BlockFormat::Q8_0 => each(bytes, out, q8_0),
        BlockFormat::Q8_1 => each(bytes, out, q8_1),
        BlockFormat::Q2_K => each(bytes, out, q2_k),
        BlockFormat::Q3_K => each(bytes, out, q3_k),
        BlockFormat::Q4_K => each(bytes, out, q4_k),
        BlockFormat::Q5_K => each(bytes, out, q5_k),
        BlockFormat::Q6_K => each(bytes, out, q6_k),
        BlockFormat::Q8_K => each(bytes, out, q8_k),
        BlockFormat::IQ2_XXS => each(bytes, out, codebook::iq2_xxs),
        BlockFormat::IQ2_XS => each(bytes, out, codebook::iq2_xs),
        BlockFormat::IQ2_S => each(bytes, out, codebook::iq2_s),
        BlockFormat::IQ3_XXS => each(bytes, out, codebook::iq3_xxs),
        BlockFormat::IQ3_S => each(bytes, out, codebook::iq3_s),
        BlockFormat::IQ1_S => each(bytes, out, codebook::iq1_s),
        BlockFormat::IQ1_M => each(bytes, out, codebook::iq1_m),
        BlockFormat::IQ4_NL => each(bytes, out, iq4_nl),
        BlockFormat::IQ4_XS => each(bytes, out, iq4_xs),
        BlockFormat::TQ1_0 => each(bytes, out, tq1_0),
        BlockFormat::TQ2_0 => each(bytes, out, tq2_0),
        BlockFormat::MXFP4 => each(bytes, out, mxfp4),
        BlockFormat::NVFP4 => each(bytes, out, nvfp4),
    }
    Ok(())
}

fn each<const SIZE: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: fn(&[u8; SIZE], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<SIZE>();
    let (floats, _) = out.as_chunks_mut::<LEN>();
    for (block, floats) in blocks.iter().zip(floats) {
        decode(block, floats);
    }
}

/// The half-precision number at byte `at`.
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Nibble `index % 2` of a byte, the low one first.
fn nibble(byte: u8, index: usize) -> u8 {
    byte >> (4 * (index % 2)) & 15
}

/// 32 elements from 16 bytes: low nibbles first, then high ones.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    for (index, &byte) in bytes.iter().enumerate() {
        out[index] = value(byte & 15);
        out[index + bytes.len()] = value(byte >> 4);
    }
}

/// `d * (q - 8)`.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], out, |q| scale * (f32::from(q) - 8.0));
}

/// `d * q + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], out, |q| scale * f32::from(q) + min);
}

/// The fifth bits of 32 elements, element by element.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    move |index| (bytes[index / 8] >> (index % 8) & 1) << 4
}

/// `d * (q - 16)` with five bits.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let high = fifth_bits(&block[2..6]);
    for (index, out) in out.iter_mut().enumerate() {
        let q = nibble(block[6 + index % 16], index / 16) | high(index);
        *out = scale * (f32::from(q) - 16.0);
    }
}

/// `d * q + m` with five bits.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    let high = fifth_bits(&block[4..8]);
    for (index, out) in out.iter_mut().enumerate() {
        let q = nibble(block[8 + index % 16], index / 16) | high(index);
        *out = scale * f32::from(q) + min;
    }
}

fn signed(scale: f32, bytes: &[u8], out: &mut [f32]) {
    for (out, &byte) in out.iter_mut().zip(bytes) {
        *out = scale * f32::from(byte as i8);
    }
}

/// `d * q` with signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    signed(half_at(block, 0), &block[2..], out);
}

/// As [`q8_0`]; the second number of the block is the sum, which decoding does not need.
fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    signed(half_at(block, 0), &block[4..], out);
}

/// As [`q8_0`] with a single-precision scale; the sums at the end are not needed.
fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    signed(scale, &block[4..260], out);
}

/// Where element `index` of 256 lies when each of 32 consecutive bytes holds four elements that
/// are 32 apart, two bits each: the byte and the shift.
fn pairs(index: usize) -> (usize, usize) {
    (index / 128 * 32 + index % 32, index / 32 % 4 * 2)
}

/// `d * scale * q - dmin * min`, scale and min of four bits for each 16 elements.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, min) = (half_at(block, 80), half_at(block, 82));
    for (index, out) in out.iter_mut().enumerate() {
        let (byte, shift) = pairs(index);
        let q = block[16 + byte] >> shift & 3;
        let scales = block[index / 16];
        *out = scale * f32::from(scales & 15) * f32::from(q) - min * f32::from(scales >> 4);
    }
}

/// `d * (scale - 32) * q`, six-bit scales for each 16 elements. A set mask bit means that 4 is not
/// subtracted.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half_at(block, 108);
    let scales = &block[96..108];
    for (index, out) in out.iter_mut().enumerate() {
        let (byte, shift) = pairs(index);
        let low = block[32 + byte] >> shift & 3;
        let high = block[index % 32] >> (index / 32) & 1;
        let group = index / 16;
        let inner = nibble(scales[group % 8], group / 8)
            | (scales[8 + group % 4] >> (group / 4 * 2) & 3) << 4;
        let q = low as i8 - if high == 1 { 0 } else { 4 };
        *out = scale * (f32::from(inner) - 32.0) * f32::from(q);
    }
}

/// Scale and minimum, six bits each, of sub-block `index` of 8. Four of each are plain; the upper
/// four have their low bits in the last four bytes and their high bits above the first eight.
fn scale_and_min(scales: &[u8], index: usize) -> (f32, f32) {
    let (scale, min) = match index {
        0..4 => (scales[index] & 63, scales[index + 4] & 63),
        _ => (
            scales[index + 4] & 15 | scales[index - 4] >> 6 << 4,
            scales[index + 4] >> 4 | scales[index] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(min))
}

/// `d * scale * q - dmin * min` for each 32 elements.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (inner, inner_min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (scale * inner, min * inner_min);
        for (out, &byte) in out.iter_mut().zip(&block[16 + group / 2 * 32..]) {
            *out = scale * f32::from(nibble(byte, group)) - min;
        }
    }
}

/// As [`q4_k`] with a fifth bit.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (inner, inner_min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (scale * inner, min * inner_min);
        let low = &block[48 + group / 2 * 32..];
        for ((out, &byte), &high) in out.iter_mut().zip(low).zip(&block[16..48]) {
            let q = nibble(byte, group) | (high >> group & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// `d * scale * (q - 32)` with six bits and a signed scale for each 16 elements.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for (index, out) in out.iter_mut().enumerate() {
        let (half, quarter) = (index / 128, index / 32 % 4);
        let low = block[half * 64 + quarter % 2 * 32 + index % 32];
        let (byte, shift) = pairs(index);
        let q = nibble(low, quarter / 2) | (block[128 + byte] >> shift & 3) << 4;
        let inner = f32::from(block[192 + index / 16] as i8);
        *out = scale * inner * (f32::from(q) - 32.0);
    }
}

/// The 16 levels of the non-linear four-bit formats.
const NONLINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], out, |q| scale * NONLINEAR[usize::from(q)]);
}

/// As [`iq4_nl`] with a six-bit scale for each 32 elements.
fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let low = nibble(block[4 + group / 2], group);
        let inner = low | ((high >> (2 * group) & 3) as u8) << 4;
        let scale = scale * (f32::from(inner) - 32.0);
        nibbles(&block[8 + group * 16..][..16], out, |q| {
            scale * NONLINEAR[usize::from(q)]
        });
    }
}

/// Ternary digits: a byte holds five base-3 digits as a fraction of 256; multiplying by a power of
/// three brings a digit to the top.
fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let scale = half_at(block, 52);
    let runs = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];
    let mut index = 0;
    for (start, width, digits) in runs {
        for digit in 0..digits {
            for &byte in &block[start..start + width] {
                let top = byte.wrapping_mul(3u8.pow(digit));
                let trit = (u16::from(top) * 3) >> 8;
                out[index] = scale * (f32::from(trit) - 1.0);
                index += 1;
            }
        }
    }
}

/// Two bits for each ternary digit.
fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = half_at(block, 64);
    for (index, out) in out.iter_mut().enumerate() {
        let (byte, shift) = pairs(index);
        *out = scale * (f32::from(block[byte] >> shift & 3) - 1.0);
    }
}

/// Twice the values of the four-bit float with two exponent bits and one mantissa bit.
const E2M1_DOUBLED: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0,
];

/// Half of `2^(exponent - 127)`, which is subnormal for the two smallest exponents.
fn half_power(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let scale = half_power(block[0]);
    nibbles(&block[1..], out, |q| scale * E2M1_DOUBLED[usize::from(q)]);
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
fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = half_e4m3(block[group]);
        nibbles(&block[4 + group * 8..][..8], out, |q| {
            scale * E2M1_DOUBLED[usize::from(q)]
        });
    }
}

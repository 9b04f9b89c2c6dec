//! The block formats whose codes point into codebooks of 4 or 8 values.
//!
//! `codebooks.bin` holds the six codebooks of the format one after the other, an entry in 16 bits
//! little-endian: eight values of two bits, or four values of four bits, the first value lowest.
//! Each value is an index into the few levels that the codebook uses.

use std::ops::Range;

use crate::dtype::BlockFormat;

use super::dequant::{BlockCodes, half_at};

static CODEBOOKS: &[u8; 9216] = include_bytes!("codebooks.bin");

/// Entries of each codebook in `codebooks.bin`.
const IQ2_XXS: Range<usize> = 0..256;
const IQ2_XS: Range<usize> = 256..768;
const IQ2_S: Range<usize> = 768..1792;
const IQ3_XXS: Range<usize> = 1792..2048;
const IQ3_S: Range<usize> = 2048..2560;
const IQ1: Range<usize> = 2560..4608;

const LEVELS_2: [i8; 4] = [8, 25, 43, 0];
const LEVELS_3_XXS: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const LEVELS_3: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
/// In eighths, the unit of the offset.
const LEVELS_1: [i8; 4] = [-8, 0, 8, 0];

/// The codebook that a format's codes point into, 16 bits an entry: eight values of two bits, or four values of four
/// bits (of which three are used), the first value lowest. `None` for formats without.
pub fn codebook(format: BlockFormat) -> Option<&'static [u8]> {
    let entries = match format {
        BlockFormat::IQ2_XXS => IQ2_XXS,
        BlockFormat::IQ2_XS => IQ2_XS,
        BlockFormat::IQ2_S => IQ2_S,
        BlockFormat::IQ3_XXS => IQ3_XXS,
        BlockFormat::IQ3_S => IQ3_S,
        BlockFormat::IQ1_S | BlockFormat::IQ1_M => IQ1,
        _ => return None,
    };
    Some(&CODEBOOKS[entries.start * 2..entries.end * 2])
}

fn entry(book: Range<usize>, index: usize) -> u16 {
    let at = (book.start + index) * 2;
    u16::from_le_bytes([CODEBOOKS[at], CODEBOOKS[at + 1]])
}

/// Eight values of a two-bit codebook.
fn eight(book: Range<usize>, index: usize, levels: [i8; 4]) -> impl Iterator<Item = i8> {
    let entry = entry(book, index);
    (0..8).map(move |k| levels[usize::from(entry >> (2 * k) & 3)])
}

/// Four values of a four-bit codebook.
fn four(book: Range<usize>, index: usize, levels: [i8; 8]) -> impl Iterator<Item = i8> {
    let entry = entry(book, index);
    (0..4).map(move |k| levels[usize::from(entry >> (4 * k) & 7)])
}

/// Seven sign bits; the eighth makes their number even.
fn even_signs(code: u32) -> u8 {
    let code = (code & 127) as u8;
    code | ((code.count_ones() & 1) as u8) << 7
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Values, negated where a bit of `signs` is set.
fn write(codes: &mut [i8], values: impl Iterator<Item = i8>, signs: u8) {
    for (index, (code, value)) in codes.iter_mut().zip(values).enumerate() {
        *code = if signs >> index & 1 == 1 {
            -value
        } else {
            value
        };
    }
}

/// Scales of four bits are odd multiples of the smallest one.
fn odd(code: u8) -> f32 {
    2.0 * f32::from(code & 15) + 1.0
}

fn nibble_at(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 2] >> (4 * (index % 2)) & 15
}

/// For each 32 elements four codes of eight bits, then four sign codes and a four-bit scale.
pub(crate) fn iq2_xxs(block: &[u8; 66]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0) * 0.125);
    for (group, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        let at = 2 + group * 8;
        let rest = u32_at(block, at + 4);
        out.scales[group] = odd((rest >> 28) as u8);
        for (index, codes) in codes.chunks_exact_mut(8).enumerate() {
            let values = eight(IQ2_XXS, usize::from(block[at + index]), LEVELS_2);
            write(codes, values, even_signs(rest >> (7 * index)));
        }
    }
    out
}

/// Codes of nine bits with seven sign bits above them; a four-bit scale for each 16 elements.
pub(crate) fn iq2_xs(block: &[u8; 74]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0) * 0.125);
    for (index, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let code = u16_at(block, 2 + index * 2);
        out.scales[index / 2] = odd(nibble_at(&block[66..], index / 2));
        let values = eight(IQ2_XS, usize::from(code & 511), LEVELS_2);
        write(codes, values, even_signs(u32::from(code >> 9)));
    }
    out
}

/// Codes of ten bits, eight of them in one place and two in another; plain sign bits.
pub(crate) fn iq2_s(block: &[u8; 82]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0) * 0.125);
    for (index, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + index / 4] >> (2 * (index % 4)) & 3);
        let code = usize::from(block[2 + index]) | high << 8;
        out.scales[index / 2] = odd(nibble_at(&block[74..], index / 2));
        write(codes, eight(IQ2_S, code, LEVELS_2), block[34 + index]);
    }
    out
}

/// Codes of eight bits for four elements; sign codes and a four-bit scale for each 32 elements.
pub(crate) fn iq3_xxs(block: &[u8; 98]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0) * 0.25);
    for (index, codes) in out.codes.chunks_exact_mut(4).enumerate() {
        let rest = u32_at(block, 66 + index / 8 * 4);
        out.scales[index / 8] = odd((rest >> 28) as u8);
        let signs = even_signs(rest >> (7 * (index / 2 % 4))) >> (4 * (index % 2));
        let values = four(IQ3_XXS, usize::from(block[2 + index]), LEVELS_3_XXS);
        write(codes, values, signs);
    }
    out
}

/// Codes of nine bits for four elements; plain sign bits; a four-bit scale for each 32 elements.
pub(crate) fn iq3_s(block: &[u8; 110]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0));
    for (index, codes) in out.codes.chunks_exact_mut(4).enumerate() {
        let high = usize::from(block[66 + index / 8] >> (index % 8) & 1);
        let code = usize::from(block[2 + index]) | high << 8;
        out.scales[index / 8] = odd(nibble_at(&block[106..], index / 8));
        let signs = block[74 + index / 2] >> (4 * (index % 2));
        write(codes, four(IQ3_S, code, LEVELS_3), signs);
    }
    out
}

/// Ternary values and their common offset, in eighths.
fn ternary(codes: &mut [i8], code: usize, is_negative: bool) {
    let delta = if is_negative { -1 } else { 1 };
    for (out, value) in codes.iter_mut().zip(eight(IQ1, code, LEVELS_1)) {
        *out = value + delta;
    }
}

/// Codes of eleven bits; a three-bit scale and the sign of the offset for each 32 elements.
pub(crate) fn iq1_s(block: &[u8; 50]) -> BlockCodes {
    let mut out = BlockCodes::new(half_at(block, 0) * 0.125);
    for (index, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let rest = u16_at(block, 34 + index / 4 * 2);
        let high = usize::from(rest >> (3 * (index % 4)) & 7);
        out.scales[index / 4] = odd((rest >> 12 & 7) as u8);
        ternary(
            codes,
            usize::from(block[2 + index]) | high << 8,
            rest >> 15 == 1,
        );
    }
    out
}

/// As [`iq1_s`] with a three-bit scale for each 16 elements and the sign of the offset for each 8.
/// The half-precision scale lies in the top four bits of the four words of scales.
pub(crate) fn iq1_m(block: &[u8; 56]) -> BlockCodes {
    let words = [0, 1, 2, 3].map(|word| u16_at(block, 48 + word * 2));
    let bits = words
        .iter()
        .enumerate()
        .fold(0, |bits, (k, word)| bits | word >> 12 << (4 * k));
    let mut out = BlockCodes::new(half::f16::from_bits(bits).to_f32() * 0.125);
    for (index, codes) in out.codes.chunks_exact_mut(8).enumerate() {
        let rest = block[32 + index / 2] >> (4 * (index % 2));
        out.scales[index / 2] = odd((words[index / 8] >> (3 * (index / 2 % 4)) & 7) as u8);
        let code = usize::from(block[index]) | usize::from(rest & 7) << 8;
        ternary(codes, code, rest & 8 != 0);
    }
    out
}

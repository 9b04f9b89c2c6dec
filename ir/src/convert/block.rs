//! Dequantisation of block formats, as the GGUF file format lays them out.
//!
//! One function per format: the bytes of a block to its elements. Products are exact in `f64`.

use super::minifloat::decode_scale;
use crate::dtype::BlockFormat;

/// Elements of whole blocks; bytes after the last whole block are ignored. `None` for a format without a decoder.
pub fn dequantize(format: BlockFormat, bytes: &[u8]) -> Option<Vec<f64>> {
    use BlockFormat::*;
    let decode: fn(&[u8], &mut [f64]) = match format {
        Q4_0 => q4_0,
        Q4_1 => q4_1,
        Q5_0 => q5_0,
        Q5_1 => q5_1,
        Q8_0 => q8_0,
        Q8_1 => q8_1,
        Q2_K => q2_k,
        Q3_K => q3_k,
        Q4_K => q4_k,
        Q5_K => q5_k,
        Q6_K => q6_k,
        Q8_K => q8_k,
        IQ4_NL => iq4_nl,
        IQ4_XS => iq4_xs,
        TQ2_0 => tq2_0,
        MXFP4 => mxfp4,
        IQ2_XXS | IQ2_XS | IQ3_XXS | IQ1_S | IQ3_S | IQ2_S | IQ1_M | TQ1_0 | NVFP4 => return None,
    };
    let blocks = bytes.len() / format.block_size();
    let mut out = vec![0.0; blocks * format.block_len()];
    let sources = bytes.chunks_exact(format.block_size());
    for (source, elements) in sources.zip(out.chunks_exact_mut(format.block_len())) {
        decode(source, elements);
    }
    Some(out)
}

fn half(b: &[u8], at: usize) -> f64 {
    half::f16::from_le_bytes([b[at], b[at + 1]]).to_f64()
}

fn signed(byte: u8) -> f64 {
    f64::from(byte as i8)
}

/// 32 codes of 4 bits: low nibbles are the first half.
fn nibbles(qs: &[u8], y: &mut [f64], f: impl Fn(usize, u8) -> f64) {
    let n = qs.len();
    for (j, q) in qs.iter().enumerate() {
        y[j] = f(j, q & 15);
        y[j + n] = f(j + n, q >> 4);
    }
}

fn q4_0(b: &[u8], y: &mut [f64]) {
    let d = half(b, 0);
    nibbles(&b[2..], y, |_, q| d * (f64::from(q) - 8.0));
}

fn q4_1(b: &[u8], y: &mut [f64]) {
    let (d, m) = (half(b, 0), half(b, 2));
    nibbles(&b[4..], y, |_, q| d * f64::from(q) + m);
}

fn fifth_bits(b: &[u8]) -> impl Fn(usize, u8) -> f64 {
    let high = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    move |j, q| f64::from(u32::from(q) | ((high >> j) & 1) << 4)
}

fn q5_0(b: &[u8], y: &mut [f64]) {
    let d = half(b, 0);
    let code = fifth_bits(&b[2..]);
    nibbles(&b[6..], y, |j, q| d * (code(j, q) - 16.0));
}

fn q5_1(b: &[u8], y: &mut [f64]) {
    let (d, m) = (half(b, 0), half(b, 2));
    let code = fifth_bits(&b[4..]);
    nibbles(&b[8..], y, |j, q| d * code(j, q) + m);
}

fn bytes_times(qs: &[u8], d: f64, y: &mut [f64]) {
    y.iter_mut().zip(qs).for_each(|(y, q)| *y = d * signed(*q));
}

fn q8_0(b: &[u8], y: &mut [f64]) {
    bytes_times(&b[2..], half(b, 0), y);
}

fn q8_1(b: &[u8], y: &mut [f64]) {
    bytes_times(&b[4..], half(b, 0), y);
}

fn q8_k(b: &[u8], y: &mut [f64]) {
    let d = f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    bytes_times(&b[4..260], d, y);
}

/// Bytes: 16 scales (low nibble) and minima (high nibble), 64 of codes, scale of scales, scale of minima.
fn q2_k(b: &[u8], y: &mut [f64]) {
    let (d, dmin) = (half(b, 80), half(b, 82));
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let scale = d * f64::from(b[group] & 15);
        let min = dmin * f64::from(b[group] >> 4);
        let (qs, shift) = two_bits(&b[16..80], group);
        for (y, q) in y.iter_mut().zip(qs) {
            *y = scale * f64::from((q >> shift) & 3) - min;
        }
    }
}

/// Codes of 2 bits: 128 elements take 32 bytes, the first 32 elements in the low bits. The bytes and the shift of a
/// group of 16.
fn two_bits(qs: &[u8], group: usize) -> (&[u8], usize) {
    let first = group / 8 * 32 + group % 2 * 16;
    (&qs[first..first + 16], group % 8 / 2 * 2)
}

/// Bytes: 32 of third bits, 64 of codes, 16 scales of 6 bits in 12 bytes, scale of scales.
fn q3_k(b: &[u8], y: &mut [f64]) {
    let (high, qs, scales, d) = (&b[..32], &b[32..96], &b[96..108], half(b, 108));
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let low = if group < 8 {
            scales[group] & 15
        } else {
            scales[group - 8] >> 4
        };
        let top = (scales[8 + group % 4] >> (group / 4 * 2)) & 3;
        let scale = d * (f64::from(low | top << 4) - 32.0);
        let (qs, shift) = two_bits(qs, group);
        let high = &high[group % 2 * 16..];
        for ((y, q), h) in y.iter_mut().zip(qs).zip(high) {
            let third = (h >> (group / 2)) & 1;
            *y = scale * (f64::from(((q >> shift) & 3) | third << 2) - 4.0);
        }
    }
}

/// Scale and minimum of a group of 32, 6 bits each, packed in 12 bytes.
fn scale_min(s: &[u8], group: usize) -> (f64, f64) {
    let (scale, min) = if group < 4 {
        (s[group] & 63, s[group + 4] & 63)
    } else {
        (
            (s[group + 4] & 15) | (s[group - 4] >> 6) << 4,
            (s[group + 4] >> 4) | (s[group] >> 6) << 4,
        )
    };
    (f64::from(scale), f64::from(min))
}

/// Bytes: scale of scales, scale of minima, 12 of scales and minima, 128 of codes.
fn q4_k(b: &[u8], y: &mut [f64]) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], group);
        let qs = &b[16 + group / 2 * 32..];
        for (y, q) in y.iter_mut().zip(qs) {
            let code = (q >> (group % 2 * 4)) & 15;
            *y = d * scale * f64::from(code) - dmin * min;
        }
    }
}

/// As [`q4_k`] with 32 bytes of fifth bits before the codes.
fn q5_k(b: &[u8], y: &mut [f64]) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], group);
        let qs = &b[48 + group / 2 * 32..];
        for ((y, q), h) in y.iter_mut().zip(qs).zip(&b[16..48]) {
            let code = (q >> (group % 2 * 4)) & 15 | ((h >> group) & 1) << 4;
            *y = d * scale * f64::from(code) - dmin * min;
        }
    }
}

/// Bytes: 128 of low nibbles, 64 of upper bit pairs, 16 signed scales, scale of scales.
fn q6_k(b: &[u8], y: &mut [f64]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let (side, quarter, part) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[side * 64 + quarter % 2 * 32 + part..];
        let high = &high[side * 32 + part..];
        let scale = d * signed(scales[group]);
        for ((y, l), h) in y.iter_mut().zip(low).zip(high) {
            let code = (l >> (quarter / 2 * 4)) & 15 | ((h >> (quarter * 2)) & 3) << 4;
            *y = scale * (f64::from(code) - 32.0);
        }
    }
}

/// The 16 levels of the nonlinear 4-bit formats.
const NONLINEAR: [f64; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

fn iq4_nl(b: &[u8], y: &mut [f64]) {
    let d = half(b, 0);
    nibbles(&b[2..], y, |_, q| d * NONLINEAR[usize::from(q)]);
}

/// Bytes: scale of scales, 16 bits of upper scale bit pairs, 4 of lower scale nibbles, 128 of codes.
fn iq4_xs(b: &[u8], y: &mut [f64]) {
    let d = half(b, 0);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let low = (b[4 + group / 2] >> (group % 2 * 4)) & 15;
        let top = ((high >> (group * 2)) & 3) as u8;
        let scale = d * (f64::from(low | top << 4) - 32.0);
        let qs = &b[8 + group * 16..24 + group * 16];
        nibbles(qs, y, |_, q| scale * NONLINEAR[usize::from(q)]);
    }
}

/// Bytes: 64 of codes of 2 bits, scale; code 1 is zero.
fn tq2_0(b: &[u8], y: &mut [f64]) {
    let d = half(b, 64);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let qs = &b[group / 4 * 32..];
        for (y, q) in y.iter_mut().zip(qs) {
            *y = d * (f64::from((q >> (group % 4 * 2)) & 3) - 1.0);
        }
    }
}

/// Bytes: a power-of-two scale, 16 of 4-bit floats.
fn mxfp4(b: &[u8], y: &mut [f64]) {
    const LEVELS: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let d = decode_scale(b[0]);
    let level = |q: u8| {
        let size = LEVELS[usize::from(q & 7)];
        if q & 8 == 0 { size } else { -size }
    };
    nibbles(&b[1..], y, |_, q| d * level(q));
}

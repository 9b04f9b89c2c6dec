//! Dequantisation against stored results, bit for bit.
//!
//! `data/dequantize.bin` was made with the Python package `gguf` 0.19.0 (its numpy implementation;
//! `q8_1` and `q8_k`, which it lacks, by scale times byte in numpy): random blocks with finite
//! scales, and extreme exponents for `mxfp4` and `nvfp4`. An entry is: length of the name (u8),
//! name, size of the blocks (u32), blocks, number of floats (u32), floats.

use cupola_gguf::dequantize;
use cupola_ir::BlockFormat;

fn split<'a>(rest: &mut &'a [u8], size: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(size);
    *rest = tail;
    head
}

fn number(rest: &mut &[u8]) -> usize {
    u32::from_le_bytes(split(rest, 4).try_into().unwrap()) as usize
}

#[test]
fn every_format_matches_the_reference() {
    let mut rest = &include_bytes!("data/dequantize.bin")[..];
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let name_len = usize::from(split(&mut rest, 1)[0]);
        let name = std::str::from_utf8(split(&mut rest, name_len)).unwrap();
        let size = number(&mut rest);
        let blocks = split(&mut rest, size);
        let len = number(&mut rest);
        let floats = split(&mut rest, len * 4).chunks_exact(4);
        let expected: Vec<f32> = floats
            .map(|float| f32::from_le_bytes(float.try_into().unwrap()))
            .collect();
        let &(format, ..) = BlockFormat::TABLE
            .iter()
            .find(|(format, ..)| format.name() == name)
            .unwrap();
        let mut found = vec![f32::NAN; len];
        dequantize(format, blocks, &mut found).unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{name}[{index}]: {found} {expected}"
            );
        }
        seen.push(format);
    }
    seen.sort();
    let mut all: Vec<_> = BlockFormat::TABLE
        .iter()
        .map(|&(format, ..)| format)
        .collect();
    all.sort();
    assert_eq!(seen, all);
}

#[test]
fn lengths_are_checked() {
    let mut out = [0.0; 64];
    assert!(dequantize(BlockFormat::Q4_0, &[0; 36], &mut out).is_ok());
    assert!(dequantize(BlockFormat::Q4_0, &[0; 35], &mut out).is_err());
    assert!(dequantize(BlockFormat::Q4_0, &[0; 36], &mut out[..63]).is_err());
    assert!(dequantize(BlockFormat::Q4_0, &[], &mut []).is_ok());
    assert!(dequantize(BlockFormat::Q6_K, &[0; 210], &mut out).is_err());
}

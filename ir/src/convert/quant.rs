//! Floats to block-quantised weights.

use crate::dtype::{BlockFormat, DType};
use crate::tensor::Tensor;
use bytes::Bytes;
use half::f16;

/// The largest integer used; -128 is not, so that the range is symmetric.
const TOP: f32 = 127.0;

/// A tensor of `q8_0`: 32 neighbours along the last axis share a scale, the largest magnitude over 127 rounded to f16. `None`
/// when the values are not as many as the shape says, or the last axis is no multiple of 32.
pub fn quantize_q8_0(shape: &[usize], values: &[f32]) -> Option<Tensor> {
    let format = BlockFormat::Q8_0;
    let blocks = values.chunks_exact(format.block_len());
    let mut bytes = Vec::with_capacity(blocks.len() * format.block_size());
    for block in blocks {
        let range = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        let scale = f16::from_f32(range / TOP);
        let step = scale.to_f32();
        bytes.extend(scale.to_le_bytes());
        bytes.extend(block.iter().map(|x| {
            let code = if step > 0.0 { x / step } else { 0.0 };
            code.round_ties_even().clamp(-TOP, TOP) as i8 as u8
        }));
    }
    let is_whole = shape.iter().product::<usize>() == values.len();
    Tensor::new(DType::Block(format), shape.to_vec(), Bytes::from(bytes)).filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::dequantize;

    #[test]
    fn rounding_costs_at_most_half_a_step() {
        let values: Vec<f32> = (0..128).map(|k| ((k * 37) % 101) as f32 - 50.0).collect();
        let t = quantize_q8_0(&[2, 64], &values).expect("whole blocks");
        let mut back = vec![0f32; 128];
        dequantize(BlockFormat::Q8_0, t.bytes(), &mut back).expect("as many");
        for (block, back) in values.chunks(32).zip(back.chunks(32)) {
            let range = block.iter().fold(0f32, |m, x| m.max(x.abs()));
            let allowed = range / TOP * 0.51 + range * 1e-3;
            assert!(
                block
                    .iter()
                    .zip(back)
                    .all(|(x, y)| (x - y).abs() <= allowed)
            );
        }
        assert!(quantize_q8_0(&[2, 48], &[0.0; 96]).is_none());
        assert!(quantize_q8_0(&[2, 32], &[0.0; 32]).is_none());
    }
}

//! Elements as wide numbers: every dtype decodes to `f64`, `i64` or `u64` lanes and encodes back with the rounding
//! and saturation that [`crate::ops::Cast`] defines.
//!
//! `minifloat` has the floats of 16 bits and fewer, `pack` the sub-byte integers, `dequant` and
//! `quant` block formats, `text`
//! numbers as strings.

mod dequant;
mod dequant_codebook;
mod minifloat;
mod pack;
mod quant;
mod text;

pub use dequant::{
    BlockCodes, MAX_BLOCK, PlainBlock, PlainCodes, SizeMismatch, block_codes, dequantize,
    plain_block,
};
pub use dequant_codebook::codebook;
pub(crate) use pack::{pack, unpack};
pub use quant::quantize_q8_0;

use crate::dtype::{Class, DType};
use crate::eval::scalar::Num;
use crate::tensor::Tensor;
use bytes::Bytes;
use half::{bf16, f16};
use minifloat::Format;

/// Elements of a tensor as wide numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Lanes {
    /// Float dtypes.
    F(Vec<f64>),
    /// Signed integer dtypes.
    I(Vec<i64>),
    /// Unsigned integer dtypes and bool (0 or 1).
    U(Vec<u64>),
}

impl Lanes {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Lanes::F(v) => v.len(),
            Lanes::I(v) => v.len(),
            Lanes::U(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as `f64`, integers beyond 2^53 rounded.
    pub fn into_f64s(self) -> Vec<f64> {
        match self {
            Lanes::F(v) => v,
            Lanes::I(v) => v.into_iter().map(|x| x as f64).collect(),
            Lanes::U(v) => v.into_iter().map(|x| x as f64).collect(),
        }
    }
}

/// Decodes a tensor; block formats are dequantised (to f32). `None` for strings.
pub fn lanes(t: &Tensor) -> Option<Lanes> {
    let b = t.bytes();
    macro_rules! wide {
        ($t:ty, $v:ident, $w:ty) => {
            Lanes::$v(
                b.as_chunks::<{ size_of::<$t>() }>()
                    .0
                    .iter()
                    .map(|c| <$w>::from(<$t>::from_le_bytes(*c)))
                    .collect(),
            )
        };
    }
    Some(match t.dtype() {
        DType::F64 => wide!(f64, F, f64),
        DType::F32 => wide!(f32, F, f64),
        DType::F16 => wide!(half::f16, F, f64),
        DType::BF16 => wide!(half::bf16, F, f64),
        DType::I64 => wide!(i64, I, i64),
        DType::I32 => wide!(i32, I, i64),
        DType::I16 => wide!(i16, I, i64),
        DType::I8 => wide!(i8, I, i64),
        DType::U64 => wide!(u64, U, u64),
        DType::U32 => wide!(u32, U, u64),
        DType::U16 => wide!(u16, U, u64),
        DType::U8 => wide!(u8, U, u64),
        DType::Bool => Lanes::U(b.iter().map(|v| u64::from(*v != 0)).collect()),
        DType::U2 | DType::U4 => {
            let codes = unpack(b, t.dtype().bits(), t.len());
            Lanes::U(codes.into_iter().map(u64::from).collect())
        }
        DType::I2 | DType::I4 => {
            let unused = 8 - t.dtype().bits() as u32;
            let codes = unpack(b, t.dtype().bits(), t.len()).into_iter();
            Lanes::I(
                codes
                    .map(|c| i64::from((c << unused) as i8 >> unused))
                    .collect(),
            )
        }
        DType::F4E2M1 => Lanes::F(decode_small(t.dtype(), &unpack(b, 4, t.len()))?),
        DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => {
            Lanes::F(decode_small(t.dtype(), b)?)
        }
        DType::F8E8M0 => Lanes::F(b.iter().map(|c| minifloat::decode_scale(*c)).collect()),
        DType::Block(format) => {
            let mut out = vec![0f32; t.len()];
            dequantize(format, b, &mut out).ok()?;
            Lanes::F(out.into_iter().map(f64::from).collect())
        }
        DType::String => return None,
    })
}

/// Decodes one code per byte through a table.
fn decode_small(dtype: DType, codes: &[u8]) -> Option<Vec<f64>> {
    let format = Format::of(dtype)?;
    let table: Vec<f64> = (0..1u32 << dtype.bits())
        .map(|c| format.decode(c))
        .collect();
    Some(codes.iter().map(|c| table[usize::from(*c)]).collect())
}

/// Encodes lanes as a dtype of the same class, rounding floats to nearest even (float8 and float4 saturate) and
/// wrapping integers; `None` when the count does not match or the class differs.
pub fn tensor(lanes: &Lanes, dtype: DType, shape: &[usize]) -> Option<Tensor> {
    encode(lanes, dtype, shape, true)
}

/// [`tensor`] with a choice of what float8 and float4 numbers out of range become (see [`crate::ops::Cast`]).
pub fn encode(lanes: &Lanes, dtype: DType, shape: &[usize], saturate: bool) -> Option<Tensor> {
    macro_rules! narrow {
        ($v:expr, $f:expr) => {
            $v.iter().flat_map($f).collect::<Vec<u8>>()
        };
    }
    macro_rules! codes {
        ($v:expr) => {{
            let format = Format::of(dtype)?;
            $v.iter().map(move |x| format.encode(*x, saturate))
        }};
    }
    let bytes: Vec<u8> = match (lanes, dtype) {
        (Lanes::F(v), DType::F64) => narrow!(v, |x| x.to_le_bytes()),
        (Lanes::F(v), DType::F32) => narrow!(v, |x| (*x as f32).to_le_bytes()),
        (Lanes::F(v), DType::F16 | DType::BF16) => {
            let format = Format::of(dtype)?;
            narrow!(v, |x| (format.encode(*x, false) as u16).to_le_bytes())
        }
        (Lanes::F(v), DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ) => {
            codes!(v).map(|c| c as u8).collect()
        }
        (Lanes::F(v), DType::F4E2M1) => pack(codes!(v).map(|c| c as u8), 4),
        (Lanes::F(v), DType::F8E8M0) => v
            .iter()
            .map(|x| minifloat::encode_scale(*x, saturate))
            .collect(),
        (Lanes::I(v), DType::I64) => narrow!(v, |x| x.to_le_bytes()),
        (Lanes::I(v), DType::I32) => narrow!(v, |x| (*x as i32).to_le_bytes()),
        (Lanes::I(v), DType::I16) => narrow!(v, |x| (*x as i16).to_le_bytes()),
        (Lanes::I(v), DType::I8) => v.iter().map(|x| *x as u8).collect(),
        (Lanes::I(v), DType::I4 | DType::I2) => pack(v.iter().map(|x| *x as u8), dtype.bits()),
        (Lanes::U(v), DType::U64) => narrow!(v, |x| x.to_le_bytes()),
        (Lanes::U(v), DType::U32) => narrow!(v, |x| (*x as u32).to_le_bytes()),
        (Lanes::U(v), DType::U16) => narrow!(v, |x| (*x as u16).to_le_bytes()),
        (Lanes::U(v), DType::U8) => v.iter().map(|x| *x as u8).collect(),
        (Lanes::U(v), DType::U4 | DType::U2) => pack(v.iter().map(|x| *x as u8), dtype.bits()),
        (Lanes::U(v), DType::Bool) => v.iter().map(|x| u8::from(*x != 0)).collect(),
        _ => return None,
    };
    Tensor::new(dtype, shape.to_vec(), Bytes::from(bytes))
}

/// Converts the elements of a tensor as [`crate::ops::Cast`] defines it.
///
/// # Errors
/// A string that is no number, or a conversion that does not exist.
pub fn cast(t: &Tensor, to: DType, saturate: bool) -> Result<Tensor, String> {
    if t.dtype() == to {
        return Ok(t.clone());
    }
    let none = || format!("no conversion from {} to {to}", t.dtype());
    if let Some(narrow) = narrow_floats(t, to) {
        return Ok(narrow);
    }
    if to == DType::String {
        let strings = text::format(t).ok_or_else(none)?;
        return Tensor::from_strings(t.shape().to_vec(), strings).ok_or_else(none);
    }
    let lanes = match t.strings() {
        Some(strings) => text::parse(strings, to)?,
        None => convert(lanes(t).ok_or_else(none)?, to).ok_or_else(none)?,
    };
    encode(&lanes, to, t.shape(), saturate).ok_or_else(none)
}

/// f32 as f16 or bf16 without the detour over wide numbers: whole models are converted this way.
fn narrow_floats(t: &Tensor, to: DType) -> Option<Tensor> {
    if t.dtype() != DType::F32 {
        return None;
    }
    let floats = t.bytes().as_chunks::<4>().0.iter();
    let floats = floats.map(|b| f32::from_le_bytes(*b));
    let bytes: Vec<u8> = match to {
        DType::F16 => floats
            .flat_map(|x| f16::from_f32(x).to_le_bytes())
            .collect(),
        DType::BF16 => floats
            .flat_map(|x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        _ => return None,
    };
    Tensor::new(to, t.shape().to_vec(), bytes.into())
}

/// Lanes as lanes of another dtype's class. Floats become integers by truncation, saturated to the dtype's range
/// (NaN is 0) but for packed ones, which wrap; integers wrap when encoded; anything nonzero is true. `None` for strings and block types.
pub fn convert(lanes: Lanes, to: DType) -> Option<Lanes> {
    Some(match (to.class(), lanes) {
        (Class::Bool, Lanes::F(v)) => Lanes::U(v.iter().map(|x| u64::from(*x != 0.0)).collect()),
        (Class::Bool, Lanes::I(v)) => Lanes::U(v.iter().map(|x| u64::from(*x != 0)).collect()),
        (Class::Bool, Lanes::U(v)) => Lanes::U(v.iter().map(|x| u64::from(*x != 0)).collect()),
        (Class::Signed, Lanes::F(v)) => {
            // Packed integers wrap, as the ONNX cast to them does: they are made from bytes.
            let (lo, hi) = if to.bits() < 8 {
                (i128::from(i64::MIN), i128::from(i64::MAX))
            } else {
                to.int_range()?
            };
            let (lo, hi) = (lo as i64, hi as i64);
            Lanes::I(v.iter().map(|x| (*x as i64).clamp(lo, hi)).collect())
        }
        (Class::Unsigned, Lanes::F(v)) => {
            if to.bits() < 8 {
                return Some(Lanes::U(v.iter().map(|x| (*x as i64) as u64).collect()));
            }
            let hi = to.int_range()?.1 as u64;
            Lanes::U(v.iter().map(|x| (*x as u64).min(hi)).collect())
        }
        (Class::Signed, Lanes::U(v)) => Lanes::I(v.into_iter().map(|x| x as i64).collect()),
        (Class::Unsigned, Lanes::I(v)) => Lanes::U(v.into_iter().map(|x| x as u64).collect()),
        (Class::Float, Lanes::I(v)) => {
            Lanes::F(v.into_iter().map(|x| from_int(i128::from(x), to)).collect())
        }
        (Class::Float, Lanes::U(v)) => {
            Lanes::F(v.into_iter().map(|x| from_int(i128::from(x), to)).collect())
        }
        (Class::Float, lanes @ Lanes::F(_))
        | (Class::Signed, lanes @ Lanes::I(_))
        | (Class::Unsigned, lanes @ Lanes::U(_)) => lanes,
        (Class::String | Class::Block, _) => return None,
    })
}

/// An integer as an `f64` that rounds to the nearest number of the dtype: for narrower formats an inexact `f64` is
/// made odd, which keeps the later rounding from seeing a tie that is none.
fn from_int(x: i128, to: DType) -> f64 {
    let near = x as f64;
    if to == DType::F64 || near as i128 == x || near.to_bits() & 1 == 1 {
        return near;
    }
    // `near` is even and inexact: the odd neighbour lies on the side of `x`.
    let away = (x > near as i128) == (x > 0);
    f64::from_bits(if away {
        near.to_bits() + 1
    } else {
        near.to_bits() - 1
    })
}

/// A wide number rounded (floats, without saturation) or wrapped (integers) to a dtype of its own class.
pub(crate) fn round(x: Num, dtype: DType) -> Num {
    let unused = 64 - dtype.bits().clamp(1, 64) as u32;
    match x {
        Num::F(x) => Num::F(match dtype {
            DType::F64 => x,
            DType::F32 => f64::from(x as f32),
            DType::F8E8M0 => minifloat::decode_scale(minifloat::encode_scale(x, false)),
            _ => Format::of(dtype).map_or(x, |f| f.decode(f.encode(x, false))),
        }),
        Num::I(x) => Num::I(x << unused >> unused),
        Num::U(x) if dtype == DType::Bool => Num::U(u64::from(x != 0)),
        Num::U(x) => Num::U(x << unused >> unused),
    }
}

/// A scalar of a dtype, rounded or saturated; `None` for strings and block types.
pub fn splat(value: f64, dtype: DType) -> Option<Tensor> {
    tensor(&convert(Lanes::F(vec![value]), dtype)?, dtype, &[])
}

/// The one number that all elements are; `None` when they differ, there is none, or they are no numbers.
pub fn uniform(t: &Tensor) -> Option<f64> {
    // Constants with few elements only: weights are not worth the scan.
    if t.len() > 4096 {
        return None;
    }
    let values = lanes(t)?.into_f64s();
    let first = *values.first()?;
    values.iter().all(|x| *x == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_rounded_once() {
        // Halfway between two f32 numbers plus 1: f64 rounds the 1 away and would leave a tie.
        let x = (1i64 << 62) + (1i64 << 38) + 1;
        let t = cast(&Tensor::scalar(x), DType::F32, true).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap(), [x as f32]);
        let t = cast(&Tensor::scalar(-x), DType::F32, true).unwrap();
        assert_eq!(t.to_vec::<f32>().unwrap(), [-x as f32]);
    }

    #[test]
    fn floats_saturate_and_integers_wrap() {
        let x = Tensor::vector(&[f64::NAN, -1e30, 1e30, -1.9, 300.0]);
        let i8s = cast(&x, DType::I8, true).unwrap();
        assert_eq!(i8s.to_vec::<i8>().unwrap(), [0, -128, 127, -1, 127]);
        let u8s = cast(&x, DType::U8, true).unwrap();
        assert_eq!(u8s.to_vec::<u8>().unwrap(), [0, 0, 255, 0, 255]);
        let wrapped = cast(&Tensor::vector(&[200i16, -200]), DType::I8, true).unwrap();
        assert_eq!(wrapped.to_vec::<i8>().unwrap(), [-56, 56]);
        let nibbles = cast(&Tensor::vector(&[7i8, 8, -9]), DType::I4, true).unwrap();
        assert_eq!(lanes(&nibbles), Some(Lanes::I(vec![7, -8, 7])));
    }
}

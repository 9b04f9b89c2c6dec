//! Elements as wide numbers: every dtype decodes to `f64`, `i64` or `u64` lanes and encodes back with the rounding
//! and saturation that [`crate::ops::Cast`] defines.

use crate::dtype::{Class, DType};
use crate::tensor::Tensor;
use bytes::Bytes;

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
}

/// Decodes a tensor; `None` for strings.
pub fn lanes(t: &Tensor) -> Option<Lanes> {
    let b = t.bytes();
    macro_rules! wide {
        ($t:ty, $v:ident, $w:ty) => {
            Lanes::$v(
                bytemuck::pod_collect_to_vec::<u8, $t>(b)
                    .into_iter()
                    .map(<$w>::from)
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
        _ => return None,
    })
}

/// Encodes lanes as a dtype of the same class, rounding floats to nearest even and wrapping integers; `None` when the
/// count does not match or the class differs.
pub fn tensor(lanes: &Lanes, dtype: DType, shape: &[usize]) -> Option<Tensor> {
    macro_rules! narrow {
        ($v:expr, $t:ty, $f:expr) => {
            bytemuck::cast_slice::<$t, u8>(&$v.iter().map($f).collect::<Vec<$t>>()).to_vec()
        };
    }
    let bytes = match (lanes, dtype) {
        (Lanes::F(v), DType::F64) => narrow!(v, f64, |x| *x),
        (Lanes::F(v), DType::F32) => narrow!(v, f32, |x| *x as f32),
        (Lanes::F(v), DType::F16) => narrow!(v, half::f16, |x| half::f16::from_f64(*x)),
        (Lanes::F(v), DType::BF16) => narrow!(v, half::bf16, |x| half::bf16::from_f64(*x)),
        (Lanes::I(v), DType::I64) => narrow!(v, i64, |x| *x),
        (Lanes::I(v), DType::I32) => narrow!(v, i32, |x| *x as i32),
        (Lanes::I(v), DType::I16) => narrow!(v, i16, |x| *x as i16),
        (Lanes::I(v), DType::I8) => narrow!(v, i8, |x| *x as i8),
        (Lanes::U(v), DType::U64) => narrow!(v, u64, |x| *x),
        (Lanes::U(v), DType::U32) => narrow!(v, u32, |x| *x as u32),
        (Lanes::U(v), DType::U16) => narrow!(v, u16, |x| *x as u16),
        (Lanes::U(v), DType::U8) => narrow!(v, u8, |x| *x as u8),
        (Lanes::U(v), DType::Bool) => narrow!(v, u8, |x| u8::from(*x != 0)),
        _ => return None,
    };
    Tensor::new(dtype, shape.to_vec(), Bytes::from(bytes))
}

/// A scalar of a dtype, rounded or saturated; `None` for strings and block types.
pub fn splat(value: f64, dtype: DType) -> Option<Tensor> {
    let lanes = match dtype.class() {
        Class::Float => Lanes::F(vec![value]),
        Class::Signed => {
            let (lo, hi) = dtype.int_range()?;
            Lanes::I(vec![(value as i64).clamp(lo as i64, hi as i64)])
        }
        Class::Unsigned => Lanes::U(vec![(value as u64).min(dtype.int_range()?.1 as u64)]),
        Class::Bool => Lanes::U(vec![u64::from(value != 0.0)]),
        Class::String | Class::Block => return None,
    };
    tensor(&lanes, dtype, &[])
}

/// The one number that all elements are; `None` when they differ, there is none, or they are no numbers.
pub fn uniform(t: &Tensor) -> Option<f64> {
    // Constants with few elements only: weights are not worth the scan.
    if t.len() > 4096 {
        return None;
    }
    let same = |mut v: std::vec::IntoIter<f64>| {
        let first = v.next()?;
        v.all(|x| x == first).then_some(first)
    };
    same(match lanes(t)? {
        Lanes::F(v) => v.into_iter(),
        Lanes::I(v) => v
            .into_iter()
            .map(|x| x as f64)
            .collect::<Vec<_>>()
            .into_iter(),
        Lanes::U(v) => v
            .into_iter()
            .map(|x| x as f64)
            .collect::<Vec<_>>()
            .into_iter(),
    })
}

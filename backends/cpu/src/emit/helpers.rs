//! Host functions that generated code calls: what has no instruction sequence of its own.

use crate::vector::{Elem, Type};
use cupola_ir::convert::{self, Lanes};
use cupola_ir::{DType, Scalar, Tensor};
use half::{bf16, f16};
use std::sync::{Mutex, OnceLock};

/// A host function with scalar arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Helper {
    /// A scalar function of one float.
    Unary(Scalar, Elem),
    /// A scalar function of two floats.
    Binary(Scalar, Elem),
    /// Integer power of 64-bit operands, wrapping. Signed exponents below 0 give the truncated quotient.
    Power { signed: bool },
    /// The f32 value of an 8-bit or 4-bit float.
    Decode(DType),
    /// Bits (in an I32) of the 8-bit or 4-bit float nearest to an f64.
    Encode { to: DType, saturate: bool },
    /// Bits (in an I32) of the 16-bit float nearest to an f64.
    Shorten(DType),
    /// A packed element: (first byte of the buffer, element index) to I32, sign repeated; 0 for a negative index.
    LoadPacked(DType),
    /// Stores a packed element atomically: (first byte of the buffer, element index, I32).
    StorePacked(DType),
    /// Adds atomically: (address, element as I64 or in its float register).
    AtomicAdd(DType),
}

impl Helper {
    /// Argument elements and result element.
    pub(crate) fn signature(self) -> (Vec<Elem>, Option<Elem>) {
        use Elem::*;
        match self {
            Helper::Unary(_, e) => (vec![e], Some(e)),
            Helper::Binary(_, e) => (vec![e, e], Some(e)),
            Helper::Power { .. } => (vec![I64, I64], Some(I64)),
            Helper::Decode(_) => (vec![I32], Some(F32)),
            Helper::Encode { .. } => (vec![F64], Some(I32)),
            Helper::Shorten(_) => (vec![F64], Some(I32)),
            Helper::LoadPacked(_) => (vec![I64, I64], Some(I32)),
            Helper::StorePacked(_) => (vec![I64, I64, I32], None),
            Helper::AtomicAdd(d) if d.is_float() => (vec![I64, register(d)], None),
            Helper::AtomicAdd(_) => (vec![I64, I64], None),
        }
    }

    /// Result type for lanes.
    pub(crate) fn result(self, lanes: u16) -> Option<Type> {
        self.signature().1.map(|elem| Type { elem, lanes })
    }
}

/// What a register holds of a dtype; for bool the mask of one lane.
pub(crate) fn register(dtype: DType) -> Elem {
    use DType::*;
    match dtype {
        Bool => Elem::M8,
        I2 | I4 | I8 | U2 | U4 | U8 => Elem::I8,
        I16 | U16 => Elem::I16,
        I32 | U32 => Elem::I32,
        I64 | U64 => Elem::I64,
        F64 => Elem::F64,
        F32 | F16 | BF16 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 | F4E2M1 => {
            Elem::F32
        }
        String | Block(_) => unreachable!("bug: {dtype} in a kernel"),
    }
}

/// Addresses of all host functions, in the order of [`Helper::place`]. Generated code finds them by their places in this
/// table, so that it does not depend on where the process has them.
pub(crate) fn table() -> &'static [usize] {
    static TABLE: OnceLock<Vec<usize>> = OnceLock::new();
    TABLE.get_or_init(|| all().iter().map(|h| h.address() as usize).collect())
}

/// All host functions.
fn all() -> &'static [Helper] {
    use DType::*;
    static ALL: OnceLock<Vec<Helper>> = OnceLock::new();
    ALL.get_or_init(|| {
        let small = [F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1];
        let packed = [I2, I4, U2, U4, F4E2M1];
        let numbers = [I8, U8, I16, U16, I32, U32, I64, U64, F16, BF16, F32, F64];
        let mut all = vec![];
        for elem in [Elem::F32, Elem::F64] {
            all.extend(UNARY.map(|f| Helper::Unary(f, elem)));
            all.extend(BINARY.map(|f| Helper::Binary(f, elem)));
        }
        all.extend([true, false].map(|signed| Helper::Power { signed }));
        all.extend(small.map(Helper::Decode));
        for saturate in [true, false] {
            all.extend(small.map(|to| Helper::Encode { to, saturate }));
        }
        all.extend([F16, BF16].map(Helper::Shorten));
        all.extend(packed.map(Helper::LoadPacked));
        all.extend(packed.map(Helper::StorePacked));
        all.extend(numbers.map(Helper::AtomicAdd));
        all
    })
}

impl Helper {
    /// Place in [`table`].
    pub(crate) fn place(self) -> usize {
        let known = all().iter().position(|h| *h == self);
        known.unwrap_or_else(|| unreachable!("bug: {self:?} is not in the table"))
    }

    /// The address of the function.
    fn address(self) -> *const u8 {
        match self {
            Helper::Unary(f, Elem::F32) => unary_f32(f),
            Helper::Unary(f, _) => unary_f64(f),
            Helper::Binary(f, Elem::F32) => binary_f32(f),
            Helper::Binary(f, _) => binary_f64(f),
            Helper::Power { signed: true } => power_signed as *const u8,
            Helper::Power { signed: false } => power_unsigned as *const u8,
            Helper::Shorten(DType::BF16) => shorten_bf16 as *const u8,
            Helper::Shorten(_) => shorten_f16 as *const u8,
            Helper::AtomicAdd(d) => super::atomic::add_function(d)
                .unwrap_or_else(|| unreachable!("bug: atomic addition of {d}")),
            Helper::Decode(d) => decoder(d),
            Helper::Encode { to, saturate } => encoder(to, saturate),
            Helper::LoadPacked(d) => super::atomic::load_packed(d),
            Helper::StorePacked(d) => super::atomic::store_packed(d),
        }
    }
}

/// Values of all codes of an 8-bit or 4-bit float.
fn values(dtype: DType) -> &'static [f32; 256] {
    static TABLES: Mutex<Vec<(DType, &'static [f32; 256])>> = Mutex::new(Vec::new());
    let mut tables = TABLES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some((_, table)) = tables.iter().find(|(d, _)| *d == dtype) {
        return table;
    }
    let count = 1usize << dtype.bits();
    let codes: Vec<u8> = match dtype.bits() {
        4 => (0..8u8).map(|i| (2 * i) | ((2 * i + 1) << 4)).collect(),
        _ => (0..=255).collect(),
    };
    let all = Tensor::new(dtype, vec![count], codes.into());
    let lanes = all.and_then(|t| convert::lanes(&t)).map(Lanes::into_f64s);
    let lanes = lanes.unwrap_or_else(|| unreachable!("bug: no values of {dtype}"));
    let table = Box::leak(Box::new([0f32; 256]));
    (0..256).for_each(|code| table[code] = lanes[code % count] as f32);
    tables.push((dtype, table));
    table
}

/// The f32 value of an 8-bit or 4-bit float.
pub(crate) fn decode(dtype: DType, code: u32) -> f32 {
    values(dtype)[(code & 0xFF) as usize]
}

/// The code of the 8-bit or 4-bit float nearest to a number.
fn encode(dtype: DType, x: f64, saturate: bool) -> u32 {
    let code = convert::encode(&Lanes::F(vec![x]), dtype, &[1], saturate);
    code.and_then(|t| t.bytes().first().copied())
        .map_or(0, u32::from)
}

macro_rules! small_floats {
    ($($d:ident),*) => {
        fn decoder(dtype: DType) -> *const u8 {
            match dtype {
                $(DType::$d => {
                    extern "C" fn call(code: u32) -> f32 {
                        static TABLE: OnceLock<&'static [f32; 256]> = OnceLock::new();
                        TABLE.get_or_init(|| values(DType::$d))[(code & 0xFF) as usize]
                    }
                    call as *const u8
                })*
                d => unreachable!("bug: {d} is no small float"),
            }
        }

        fn encoder(dtype: DType, saturate: bool) -> *const u8 {
            match (dtype, saturate) {
                $((DType::$d, true) => {
                    extern "C" fn call(x: f64) -> u32 {
                        encode(DType::$d, x, true)
                    }
                    call as *const u8
                }
                (DType::$d, false) => {
                    extern "C" fn call(x: f64) -> u32 {
                        encode(DType::$d, x, false)
                    }
                    call as *const u8
                })*
                (d, _) => unreachable!("bug: {d} is no small float"),
            }
        }
    };
}

small_floats!(F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1);

macro_rules! float_functions {
    ($unary:ident, $binary:ident, $t:ty; $($f:ident => $one:expr),*; $($g:ident => $two:expr),*) => {
        fn $unary(f: Scalar) -> *const u8 {
            match f {
                $(Scalar::$f => {
                    extern "C" fn call(x: $t) -> $t {
                        let f: fn(f64) -> f64 = $one;
                        f(f64::from(x)) as $t
                    }
                    call as *const u8
                })*
                _ => unreachable!("bug: {f:?} has no helper"),
            }
        }

        fn $binary(f: Scalar) -> *const u8 {
            match f {
                $(Scalar::$g => {
                    extern "C" fn call(x: $t, y: $t) -> $t {
                        let f: fn(f64, f64) -> f64 = $two;
                        f(f64::from(x), f64::from(y)) as $t
                    }
                    call as *const u8
                })*
                _ => unreachable!("bug: {f:?} has no helper"),
            }
        }
    };
}

macro_rules! functions {
    ($unary:ident, $binary:ident, $t:ty) => {
        float_functions!($unary, $binary, $t;
            Exp => f64::exp, Expm1 => f64::exp_m1, Log => f64::ln, Log1p => f64::ln_1p, Sin => f64::sin,
            Cos => f64::cos, Tan => f64::tan, Asin => f64::asin, Acos => f64::acos, Atan => f64::atan,
            Sinh => f64::sinh, Cosh => f64::cosh, Tanh => f64::tanh, Asinh => f64::asinh, Acosh => f64::acosh,
            Atanh => f64::atanh, Erf => erf, Sigmoid => |x| 1.0 / (1.0 + (-x).exp());
            Pow => f64::powf, Atan2 => f64::atan2, Rem => |x, y| x % y, Mod => floor_mod);
    };
}

/// Functions of one float that there are helpers of.
const UNARY: [Scalar; 18] = {
    use Scalar::*;
    [
        Exp, Expm1, Log, Log1p, Sin, Cos, Tan, Asin, Acos, Atan, Sinh, Cosh, Tanh, Asinh, Acosh,
        Atanh, Erf, Sigmoid,
    ]
};

/// Functions of two floats that there are helpers of.
const BINARY: [Scalar; 4] = [Scalar::Pow, Scalar::Atan2, Scalar::Rem, Scalar::Mod];

functions!(unary_f32, binary_f32, f32);
functions!(unary_f64, binary_f64, f64);

/// Remainder with the sign of the divisor.
fn floor_mod(x: f64, y: f64) -> f64 {
    let r = x % y;
    if r == 0.0 {
        0f64.copysign(y)
    } else if (r < 0.0) != (y < 0.0) {
        r + y
    } else {
        r
    }
}

/// Gauss error function: a series of one sign (DLMF 7.6.2), and a continued fraction of the complement (7.9.1).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if x.is_nan() || a == 0.0 {
        return x;
    }
    if a >= 6.0 {
        return x.signum();
    }
    let scale = std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp();
    if a < 2.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..64 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
        }
        return (scale * sum).copysign(x);
    }
    let tail = (1..=60).rev().fold(a, |t, k| a + f64::from(k) / 2.0 / t);
    (1.0 - scale / 2.0 / tail).copysign(x)
}

fn power(base: u64, exponent: u64) -> u64 {
    let (mut base, mut left, mut result) = (base, exponent, 1u64);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        left >>= 1;
    }
    result
}

extern "C" fn power_unsigned(x: u64, y: u64) -> u64 {
    power(x, y)
}

extern "C" fn power_signed(x: i64, y: i64) -> i64 {
    match (x, y) {
        (_, 0..) => power(x as u64, y as u64) as i64,
        (1, _) => 1,
        (-1, _) => 1 - 2 * (y & 1),
        _ => 0,
    }
}

extern "C" fn shorten_f16(x: f64) -> u32 {
    u32::from(f16::from_f64(x).to_bits())
}

extern "C" fn shorten_bf16(x: f64) -> u32 {
    u32::from(bf16::from_f64(x).to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_helper_has_a_place_of_its_own() {
        for (at, helper) in all().iter().enumerate() {
            assert_eq!(helper.place(), at, "{helper:?}");
            assert_ne!(table()[at], 0, "{helper:?}");
        }
    }
}

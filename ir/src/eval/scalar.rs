//! Every scalar function on wide numbers: the meaning of [`Scalar`].
//!
//! Floats are computed in `f64` and rounded to the dtype once, when the result is encoded; integers in 64 bits and
//! wrapped to the dtype's width.

use super::special::erf;
use crate::convert::Lanes;
use crate::dtype::{Class, DType};
use crate::scalar::Scalar;

/// Elements as the kind of number that a function of this dtype works on.
pub(crate) trait Number: Copy + PartialOrd {
    /// The function of one operand on elements of `bits` bits.
    fn unary(f: Scalar, bits: u32) -> Option<fn(Self, u32) -> Self>;
    /// The function of two operands; `None` as a result is a division by zero.
    fn binary(f: Scalar) -> Option<fn(Self, Self, u32) -> Option<Self>>;
    /// `x * y + z`.
    fn fma(x: Self, y: Self, z: Self) -> Self;
}

/// The smaller, NaN if either is.
fn min(x: f64, y: f64) -> f64 {
    if x.is_nan() || x < y { x } else { y }
}

/// The larger, NaN if either is.
fn max(x: f64, y: f64) -> f64 {
    if x.is_nan() || x > y { x } else { y }
}

fn sigmoid(x: f64) -> f64 {
    // e^x of a positive number could overflow.
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        x.exp() / (1.0 + x.exp())
    }
}

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

impl Number for f64 {
    fn unary(f: Scalar, _: u32) -> Option<fn(f64, u32) -> f64> {
        Some(match f {
            Scalar::Neg => |x, _| -x,
            Scalar::Abs => |x, _| x.abs(),
            Scalar::Sign => |x, _| {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else if x == 0.0 {
                    0.0
                } else {
                    x
                }
            },
            Scalar::Floor => |x, _| x.floor(),
            Scalar::Ceil => |x, _| x.ceil(),
            Scalar::Round => |x, _| x.round_ties_even(),
            Scalar::Trunc => |x, _| x.trunc(),
            Scalar::Sqrt => |x, _| x.sqrt(),
            Scalar::Rsqrt => |x, _| 1.0 / x.sqrt(),
            Scalar::Recip => |x, _| 1.0 / x,
            Scalar::Exp => |x, _| x.exp(),
            Scalar::Expm1 => |x, _| x.exp_m1(),
            Scalar::Log => |x, _| x.ln(),
            Scalar::Log1p => |x, _| x.ln_1p(),
            Scalar::Sin => |x, _| x.sin(),
            Scalar::Cos => |x, _| x.cos(),
            Scalar::Tan => |x, _| x.tan(),
            Scalar::Asin => |x, _| x.asin(),
            Scalar::Acos => |x, _| x.acos(),
            Scalar::Atan => |x, _| x.atan(),
            Scalar::Sinh => |x, _| x.sinh(),
            Scalar::Cosh => |x, _| x.cosh(),
            Scalar::Tanh => |x, _| x.tanh(),
            Scalar::Asinh => |x, _| x.asinh(),
            Scalar::Acosh => |x, _| x.acosh(),
            Scalar::Atanh => |x, _| x.atanh(),
            Scalar::Erf => |x, _| erf(x),
            Scalar::Sigmoid => |x, _| sigmoid(x),
            _ => return None,
        })
    }

    fn binary(f: Scalar) -> Option<fn(f64, f64, u32) -> Option<f64>> {
        Some(match f {
            Scalar::Add => |x, y, _| Some(x + y),
            Scalar::Sub => |x, y, _| Some(x - y),
            Scalar::Mul => |x, y, _| Some(x * y),
            Scalar::Div => |x, y, _| Some(x / y),
            Scalar::Rem => |x, y, _| Some(x % y),
            Scalar::Mod => |x, y, _| Some(floor_mod(x, y)),
            Scalar::Pow => |x, y, _| Some(x.powf(y)),
            Scalar::Atan2 => |y, x, _| Some(y.atan2(x)),
            Scalar::Min => |x, y, _| Some(min(x, y)),
            Scalar::Max => |x, y, _| Some(max(x, y)),
            _ => return None,
        })
    }

    fn fma(x: f64, y: f64, z: f64) -> f64 {
        x * y + z
    }
}

macro_rules! integer {
    ($t:ident, $neg_pow:expr, $sign:expr, $abs:expr, $modulo:expr, $shr_all:expr) => {
        impl Number for $t {
            fn unary(f: Scalar, bits: u32) -> Option<fn($t, u32) -> $t> {
                Some(match f {
                    Scalar::Neg => |x, _| x.wrapping_neg(),
                    Scalar::Abs => $abs,
                    Scalar::Sign => $sign,
                    Scalar::Not if bits == 1 => |x, _| x ^ 1,
                    Scalar::Not => |x, _| !x,
                    Scalar::PopCount => |x, bits| {
                        let unused = $t::BITS - bits;
                        $t::from((x << unused).count_ones() as u8)
                    },
                    _ => return None,
                })
            }

            fn binary(f: Scalar) -> Option<fn($t, $t, u32) -> Option<$t>> {
                Some(match f {
                    Scalar::Add => |x, y, _| Some(x.wrapping_add(y)),
                    Scalar::Sub => |x, y, _| Some(x.wrapping_sub(y)),
                    Scalar::Mul => |x, y, _| Some(x.wrapping_mul(y)),
                    Scalar::Div => |x, y, _| (y != 0).then(|| x.wrapping_div(y)),
                    Scalar::Rem => |x, y, _| (y != 0).then(|| x.wrapping_rem(y)),
                    Scalar::Mod => |x, y, _| (y != 0).then(|| $modulo(x, y)),
                    Scalar::Pow => |x, y, _| Some($neg_pow(x, y).unwrap_or_else(|| power(x, y))),
                    Scalar::Min => |x, y, _| Some(x.min(y)),
                    Scalar::Max => |x, y, _| Some(x.max(y)),
                    Scalar::And => |x, y, _| Some(x & y),
                    Scalar::Or => |x, y, _| Some(x | y),
                    Scalar::Xor => |x, y, _| Some(x ^ y),
                    // A negative count is a large one.
                    Scalar::Shl => |x, y, bits| {
                        let inside = (y as u64) < u64::from(bits);
                        Some(if inside { x << y } else { 0 })
                    },
                    Scalar::Shr => |x, y, bits| {
                        let inside = (y as u64) < u64::from(bits);
                        Some(if inside { x >> y } else { $shr_all(x) })
                    },
                    _ => return None,
                })
            }

            fn fma(x: $t, y: $t, z: $t) -> $t {
                x.wrapping_mul(y).wrapping_add(z)
            }
        }
    };
}

/// `x^y` for `y >= 0`, wrapping.
fn power<T: Copy + Into<i128>>(x: T, y: T) -> T
where
    T: FromWrapped,
{
    let (mut base, mut left) = (x.into() as i64 as u64, y.into() as i64 as u64);
    let mut result = 1u64;
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        left >>= 1;
    }
    T::from_wrapped(result)
}

/// The low 64 bits as a number.
trait FromWrapped {
    fn from_wrapped(bits: u64) -> Self;
}

impl FromWrapped for i64 {
    fn from_wrapped(bits: u64) -> i64 {
        bits as i64
    }
}

impl FromWrapped for u64 {
    fn from_wrapped(bits: u64) -> u64 {
        bits
    }
}

integer!(
    i64,
    |x: i64, y: i64| {
        // The reciprocal, truncated: 0 but for 1 and -1.
        (y < 0).then_some(match x {
            1 => 1,
            -1 => {
                if y % 2 == 0 {
                    1
                } else {
                    -1
                }
            }
            _ => 0,
        })
    },
    |x, _| x.signum(),
    |x, _| x.wrapping_abs(),
    |x: i64, y: i64| {
        let r = x.wrapping_rem(y);
        if r != 0 && (r < 0) != (y < 0) {
            r + y
        } else {
            r
        }
    },
    |x: i64| x >> 63
);
integer!(
    u64,
    |_: u64, _: u64| None,
    |x, _| x.min(1),
    |x, _| x,
    |x: u64, y: u64| x % y,
    |_: u64| 0
);

fn apply<T: Number>(f: Scalar, operands: &[&[T]], bits: u32) -> Result<Vec<T>, String> {
    let unknown = || format!("{} has no meaning on this dtype", f.name());
    match operands {
        [x] => {
            let g = T::unary(f, bits).ok_or_else(unknown)?;
            Ok(x.iter().map(|x| g(*x, bits)).collect())
        }
        [x, y] => {
            let g = T::binary(f).ok_or_else(unknown)?;
            let all = x.iter().zip(*y).map(|(x, y)| g(*x, *y, bits));
            all.collect::<Option<Vec<T>>>()
                .ok_or_else(|| "integer division by zero".into())
        }
        [x, y, z] if f == Scalar::Fma => {
            let all = x.iter().zip(*y).zip(*z);
            Ok(all.map(|((x, y), z)| T::fma(*x, *y, *z)).collect())
        }
        _ => Err(unknown()),
    }
}

fn test<T: PartialOrd>(f: Scalar) -> Option<fn(&T, &T) -> bool> {
    Some(match f {
        Scalar::Eq => |x, y| x == y,
        Scalar::Lt => |x, y| x < y,
        Scalar::Le => |x, y| x <= y,
        _ => return None,
    })
}

fn compare<T: Number>(f: Scalar, x: &[T], y: &[T]) -> Option<Vec<u64>> {
    let test = test(f)?;
    Some(
        x.iter()
            .zip(y)
            .map(|(x, y)| u64::from(test(x, y)))
            .collect(),
    )
}

/// A scalar function over equally many elements of every operand; all operands have `dtype`. For the comparisons and
/// tests the result is bool (0 or 1). Not for `select`, which does not compute (see `eval::view`).
///
/// # Errors
/// Integer division by zero, or a function that does not take the dtype.
pub fn eval(f: Scalar, dtype: DType, operands: &[&Lanes]) -> Result<Lanes, String> {
    let bits = if dtype.class() == Class::Bool {
        1
    } else {
        dtype.bits() as u32
    };
    let mixed = || format!("{} has operands of different kinds", f.name());
    match (f, operands) {
        (Scalar::IsNan, [Lanes::F(x)]) => {
            return Ok(Lanes::U(x.iter().map(|x| u64::from(x.is_nan())).collect()));
        }
        (Scalar::IsInf, [Lanes::F(x)]) => {
            return Ok(Lanes::U(
                x.iter().map(|x| u64::from(x.is_infinite())).collect(),
            ));
        }
        (Scalar::Eq | Scalar::Lt | Scalar::Le, [x, y]) => {
            let result = match (x, y) {
                (Lanes::F(x), Lanes::F(y)) => compare(f, x, y),
                (Lanes::I(x), Lanes::I(y)) => compare(f, x, y),
                (Lanes::U(x), Lanes::U(y)) => compare(f, x, y),
                _ => None,
            };
            return result.map(Lanes::U).ok_or_else(mixed);
        }
        _ => {}
    }
    macro_rules! all {
        ($v:ident) => {
            operands
                .iter()
                .map(|x| match x {
                    Lanes::$v(x) => Some(&x[..]),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .ok_or_else(mixed)?
        };
    }
    Ok(match operands.first() {
        Some(Lanes::F(_)) => Lanes::F(apply(f, &all!(F), bits)?),
        Some(Lanes::I(_)) => Lanes::I(apply(f, &all!(I), bits)?),
        Some(Lanes::U(_)) => Lanes::U(apply(f, &all!(U), bits)?),
        None => return Err(format!("{} takes operands", f.name())),
    })
}

/// One element as a wide number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Num {
    /// Of a float dtype.
    F(f64),
    /// Of a signed integer dtype.
    I(i64),
    /// Of an unsigned integer dtype, or bool (0 or 1).
    U(u64),
}

impl Num {
    /// Element `at` of lanes.
    pub fn of(lanes: &Lanes, at: usize) -> Option<Num> {
        match lanes {
            Lanes::F(v) => v.get(at).copied().map(Num::F),
            Lanes::I(v) => v.get(at).copied().map(Num::I),
            Lanes::U(v) => v.get(at).copied().map(Num::U),
        }
    }

    /// Whether nonzero, for bools.
    pub fn is_true(self) -> bool {
        match self {
            Num::F(x) => x != 0.0,
            Num::I(x) => x != 0,
            Num::U(x) => x != 0,
        }
    }
}

fn one<T: Number>(f: Scalar, x: T, y: Option<T>, z: Option<T>, bits: u32) -> Option<T> {
    match (y, z) {
        (None, _) => Some(T::unary(f, bits)?(x, bits)),
        // Integer division by zero is 0 here; graphs refuse it, kernels may compute it where nobody looks.
        (Some(y), None) => match T::binary(f)?(x, y, bits) {
            None => T::binary(Scalar::Sub)?(x, x, bits),
            some => some,
        },
        (Some(y), Some(z)) => (f == Scalar::Fma).then(|| T::fma(x, y, z)),
    }
}

/// A scalar function of single elements, not rounded to the dtype; integer division by zero gives 0. `None` when the
/// function does not take them.
pub fn eval_one(f: Scalar, dtype: DType, operands: &[Num]) -> Option<Num> {
    let bits = if dtype == DType::Bool {
        1
    } else {
        dtype.bits() as u32
    };
    let truth = |b: bool| Some(Num::U(u64::from(b)));
    match (f, operands) {
        (Scalar::Select, [c, x, y]) => return Some(if c.is_true() { *x } else { *y }),
        (Scalar::IsNan, [Num::F(x)]) => return truth(x.is_nan()),
        (Scalar::IsInf, [Num::F(x)]) => return truth(x.is_infinite()),
        (Scalar::Eq | Scalar::Lt | Scalar::Le, [x, y]) => {
            return truth(match (x, y) {
                (Num::F(x), Num::F(y)) => test(f)?(x, y),
                (Num::I(x), Num::I(y)) => test(f)?(x, y),
                (Num::U(x), Num::U(y)) => test(f)?(x, y),
                _ => return None,
            });
        }
        _ => {}
    }
    macro_rules! kind {
        ($v:ident, $x:expr) => {{
            let get = |at: usize| match operands.get(at) {
                Some(Num::$v(x)) => Some(Some(*x)),
                Some(_) => None,
                None => Some(None),
            };
            one(f, $x, get(1)?, get(2)?, bits).map(Num::$v)
        }};
    }
    match *operands.first()? {
        Num::F(x) => kind!(F, x),
        Num::I(x) => kind!(I, x),
        Num::U(x) => kind!(U, x),
    }
}

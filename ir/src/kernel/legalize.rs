//! Expansion of scalar functions that a target lacks into ones that it has.
//!
//! Every target is taken to have addition, subtraction, multiplication, division, bit operations, shifts,
//! comparisons, `select`, casts and bitcasts of its dtypes, and the square root; everything else can be expanded for
//! f32, and what needs no polynomial for other dtypes too (see [`expands`]). Narrower floats are expanded in f32.
//!
//! The polynomials are minimax fits of this project (Remez exchange in 40 digits, coefficients rounded to f32); each
//! function states its range reduction. [`error_bound`] is the largest error over all arguments in units in the last
//! place, with and without fused multiplication. Arguments and results that are subnormal, infinite or NaN are exact in
//! kind, on a device that keeps subnormals.
//!
//! `build` has the builder, `basic` what needs no polynomial, `exponential`, `trigonometric` and `power` the rest.

mod basic;
mod build;
mod exponential;
mod power;
mod trigonometric;

use super::{Expr, Kernel};
use crate::dtype::{Class, DType};
use crate::scalar::Scalar;
use crate::target::Target;
use build::Builder;

/// The kernel with every scalar function that the target lacks expanded, where [`expands`] says so; other functions
/// stay. The meaning is the same up to [`error_bound`].
pub fn legalize(kernel: &Kernel, target: &Target) -> Kernel {
    let mut b = Builder::new(kernel, target);
    let mut map = Vec::with_capacity(kernel.exprs.len());
    for (at, expr) in kernel.exprs.iter().enumerate() {
        let to = |e: super::ExprId| map[e.0 as usize];
        let new = match *expr {
            Expr::Unary(f, x) => b.unary(f, to(x)),
            Expr::Binary(f, x, y) => b.binary(f, to(x), to(y)),
            Expr::Ternary(f, x, y, z) => b.ternary(f, to(x), to(y), to(z)),
            Expr::Accum { .. } => b.typed(*expr, kernel.dtype(super::ExprId(at as u32))),
            other => b.raw(other.map_exprs(to)),
        };
        map.push(new);
    }
    let mut out = b.finish();
    out.for_each_value_use(|e| *e = map[e.0 as usize]);
    out
}

/// Whether [`legalize`] can expand a function of operands of this dtype.
pub fn expands(f: Scalar, dtype: DType) -> bool {
    use Scalar::*;
    match f {
        // What every target has.
        Add | Sub | Mul | Div | And | Or | Xor | Not | Shl | Shr | Eq | Lt | Le | Select | Sqrt => {
            false
        }
        // Built from those for any dtype that has them.
        Neg | Abs | Sign | Min | Max | Fma => dtype.is_int() || dtype.is_float(),
        Recip | Rsqrt | Sigmoid | IsNan | IsInf => dtype.is_float(),
        Mod => dtype.is_int() || dtype.is_float(),
        Rem => dtype == DType::F32 || is_narrow(dtype) || dtype.is_int(),
        Pow => dtype == DType::F32 || is_narrow(dtype) || dtype.is_int() && dtype.is_whole_byte(),
        PopCount => dtype.is_int(),
        Floor | Ceil | Round | Trunc | Exp | Expm1 | Log | Log1p | Sin | Cos | Tan | Asin
        | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Atan2 => {
            dtype == DType::F32 || is_narrow(dtype)
        }
    }
}

/// Whether a float type is computed on in f32.
fn is_narrow(dtype: DType) -> bool {
    dtype.class() == Class::Float && !matches!(dtype, DType::F32 | DType::F64)
}

/// The largest error of an f32 expansion in units in the last place; 0 for a function that is exact. Narrower floats
/// are rounded once more.
pub fn error_bound(f: Scalar) -> f64 {
    use Scalar::*;
    match f {
        Neg | Abs | Sign | Floor | Ceil | Round | Trunc | Min | Max | IsNan | IsInf | PopCount
        | And | Or | Xor | Not | Shl | Shr | Eq | Lt | Le | Select => 0.0,
        // One correct rounding.
        Add | Sub | Mul | Div | Sqrt | Recip => 0.5,
        // Of the exact sum: as wrong as the rounded product when terms cancel.
        Fma => f64::INFINITY,
        // Exact while |x / y| is below 2^23; a larger quotient gives some number between 0 and y.
        Rem | Mod => 0.5,
        Rsqrt | Exp | Log => 1.5,
        Expm1 | Sinh | Cosh => 2.0,
        Sin | Cos | Asin | Acos | Atan | Atan2 => 3.0,
        Log1p | Sigmoid | Pow => 3.0,
        Tan => 5.0,
        Asinh | Acosh | Atanh => 5.0,
        Tanh => 6.0,
        Erf => 7.0,
    }
}

#[cfg(test)]
mod tests;

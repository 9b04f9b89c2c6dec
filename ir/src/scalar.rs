//! The table of scalar functions: everything a [`crate::ops::Map`] or a kernel expression can compute per element.
//!
//! One row per function: text name, arity, type rule. `eval` (the meaning, on wide numbers) is in
//! `crate::eval::scalar`; backends name the functions they have natively in their `Target`, and
//! `crate::kernel::legalize` expands the rest.
//!
//! Integer arithmetic wraps. Integer division and remainder by zero is a run-time error. Comparisons with NaN are
//! false; `min` and `max` return NaN when an operand is NaN; `round` is half to even.

use crate::attr::attr_enum;
use crate::dtype::{Class, DType};

/// How the dtypes of a scalar function relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeRule {
    /// All operands and the result have one float dtype.
    Float,
    /// All operands and the result have one dtype, integer or float.
    Number,
    /// All operands and the result have one integer dtype.
    Int,
    /// All operands and the result have one dtype, integer or bool.
    Bits,
    /// Operands have one dtype (any, strings for `eq` only); the result is bool.
    Compare,
    /// One float operand; the result is bool.
    FloatTest,
    /// Bool, then two operands of one dtype, which is the result's.
    Select,
}

attr_enum! {
    /// A scalar function.
    Scalar {
        /// `-x`.
        Neg = "neg",
        /// `|x|`.
        Abs = "abs",
        /// -1, 0 or 1 by sign; NaN stays.
        Sign = "sign",
        /// Round toward minus infinity.
        Floor = "floor",
        /// Round toward plus infinity.
        Ceil = "ceil",
        /// Round to nearest, halves to even.
        Round = "round",
        /// Round toward zero.
        Trunc = "trunc",
        /// Square root.
        Sqrt = "sqrt",
        /// `1 / sqrt(x)`.
        Rsqrt = "rsqrt",
        /// `1 / x`.
        Recip = "recip",
        /// `e^x`.
        Exp = "exp",
        /// `e^x - 1`.
        Expm1 = "expm1",
        /// Natural logarithm.
        Log = "log",
        /// `log(1 + x)`.
        Log1p = "log1p",
        /// Sine of radians.
        Sin = "sin",
        /// Cosine of radians.
        Cos = "cos",
        /// Tangent of radians.
        Tan = "tan",
        /// Inverse sine.
        Asin = "asin",
        /// Inverse cosine.
        Acos = "acos",
        /// Inverse tangent.
        Atan = "atan",
        /// Hyperbolic sine.
        Sinh = "sinh",
        /// Hyperbolic cosine.
        Cosh = "cosh",
        /// Hyperbolic tangent.
        Tanh = "tanh",
        /// Inverse hyperbolic sine.
        Asinh = "asinh",
        /// Inverse hyperbolic cosine.
        Acosh = "acosh",
        /// Inverse hyperbolic tangent.
        Atanh = "atanh",
        /// Gauss error function.
        Erf = "erf",
        /// `1 / (1 + e^-x)`.
        Sigmoid = "sigmoid",
        /// `x + y`.
        Add = "add",
        /// `x - y`.
        Sub = "sub",
        /// `x * y`.
        Mul = "mul",
        /// `x / y`; integers truncate toward zero.
        Div = "div",
        /// Remainder with the sign of `x` (C `fmod`).
        Rem = "rem",
        /// Remainder with the sign of `y` (Python `%`).
        Mod = "mod",
        /// `x^y`.
        Pow = "pow",
        /// `atan2(y, x)` of operands (y, x).
        Atan2 = "atan2",
        /// The smaller; NaN if either is.
        Min = "min",
        /// The larger; NaN if either is.
        Max = "max",
        /// Bitwise or logical and.
        And = "and",
        /// Bitwise or logical or.
        Or = "or",
        /// Bitwise or logical exclusive or.
        Xor = "xor",
        /// Bitwise or logical not.
        Not = "not",
        /// Shift left; 0 when the count is the width or more.
        Shl = "shl",
        /// Shift right, arithmetic for signed; the sign or 0 when the count is the width or more.
        Shr = "shr",
        /// Number of one bits in the operand.
        PopCount = "popcount",
        /// `x == y`.
        Eq = "eq",
        /// `x < y`.
        Lt = "lt",
        /// `x <= y`.
        Le = "le",
        /// Whether NaN.
        IsNan = "is_nan",
        /// Whether an infinity.
        IsInf = "is_inf",
        /// `c ? x : y`.
        Select = "select",
        /// `x * y + z`, rounded once or twice.
        Fma = "fma",
    }
}

impl Scalar {
    /// Number of operands.
    pub fn arity(self) -> usize {
        use Scalar::*;
        match self {
            Neg | Abs | Sign | Floor | Ceil | Round | Trunc | Sqrt | Rsqrt | Recip | Exp
            | Expm1 | Log | Log1p | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh
            | Asinh | Acosh | Atanh | Erf | Sigmoid | Not | PopCount | IsNan | IsInf => 1,
            Add | Sub | Mul | Div | Rem | Mod | Pow | Atan2 | Min | Max | And | Or | Xor | Shl
            | Shr | Eq | Lt | Le => 2,
            Select | Fma => 3,
        }
    }

    /// Type rule.
    pub fn rule(self) -> TypeRule {
        use Scalar::*;
        match self {
            Floor | Ceil | Round | Trunc | Sqrt | Rsqrt | Recip | Exp | Expm1 | Log | Log1p
            | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh
            | Erf | Sigmoid | Atan2 => TypeRule::Float,
            Neg | Abs | Sign | Add | Sub | Mul | Div | Rem | Mod | Pow | Min | Max | Fma => {
                TypeRule::Number
            }
            Shl | Shr | PopCount => TypeRule::Int,
            And | Or | Xor | Not => TypeRule::Bits,
            Eq | Lt | Le => TypeRule::Compare,
            IsNan | IsInf => TypeRule::FloatTest,
            Select => TypeRule::Select,
        }
    }

    /// Result dtype for operand dtypes.
    ///
    /// # Errors
    /// What the function would accept.
    pub fn infer(self, operands: &[DType]) -> Result<DType, String> {
        if operands.len() != self.arity() {
            return Err(format!(
                "takes {} operands, not {}",
                self.arity(),
                operands.len()
            ));
        }
        let (first, rest) = (operands[0], &operands[1..]);
        let same = rest.iter().all(|d| *d == first);
        let class = first.class();
        let float_or_int = matches!(class, Class::Float | Class::Signed | Class::Unsigned);
        let (ok, result) = match self.rule() {
            TypeRule::Float => (same && class == Class::Float, first),
            TypeRule::Number => (same && float_or_int, first),
            TypeRule::Int => (same && first.is_int(), first),
            TypeRule::Bits => (same && (first.is_int() || class == Class::Bool), first),
            TypeRule::Compare => {
                let string = class == Class::String && self == Scalar::Eq;
                (
                    same && (string || float_or_int || class == Class::Bool),
                    DType::Bool,
                )
            }
            TypeRule::FloatTest => (class == Class::Float, DType::Bool),
            TypeRule::Select => (
                first == DType::Bool && rest[0] == rest[1] && rest[0].class() != Class::Block,
                rest[0],
            ),
        };
        if ok {
            Ok(result)
        } else {
            Err(format!(
                "does not take operands of {operands:?} ({:?})",
                self.rule()
            ))
        }
    }

    /// Whether swapping the two operands changes nothing.
    pub fn is_commutative(self) -> bool {
        use Scalar::*;
        matches!(self, Add | Mul | Min | Max | And | Or | Xor | Eq)
    }
}

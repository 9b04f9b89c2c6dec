//! The table of scalar functions: everything a [`crate::ops::Map`] or a kernel expression can compute per element.
//!
//! One row per function: text name, arity, type rule, cost. `eval` (the meaning, on wide numbers) is in
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

/// One row per function: text name, number of operands, type rule, and cost in additions as fusion counts it.
macro_rules! scalar_functions {
    ($($(#[$meta:meta])* $function:ident = $text:literal: $arity:literal $rule:ident $cost:literal),* $(,)?) => {
        attr_enum! {
            /// A scalar function.
            Scalar { $($(#[$meta])* $function = $text),* }
        }
        impl Scalar {
            /// Number of operands.
            pub fn arity(self) -> usize {
                match self { $(Scalar::$function => $arity),* }
            }

            /// Type rule.
            pub fn rule(self) -> TypeRule {
                match self { $(Scalar::$function => TypeRule::$rule),* }
            }

            /// What one evaluation costs, in additions.
            pub fn cost(self) -> u32 {
                match self { $(Scalar::$function => $cost),* }
            }
        }
    };
}

scalar_functions! {
    /// `-x`.
    Neg = "neg": 1 Number 1,
    /// `|x|`.
    Abs = "abs": 1 Number 1,
    /// -1, 0 or 1 by sign; NaN stays.
    Sign = "sign": 1 Number 2,
    /// Round toward minus infinity.
    Floor = "floor": 1 Float 1,
    /// Round toward plus infinity.
    Ceil = "ceil": 1 Float 1,
    /// Round to nearest, halves to even.
    Round = "round": 1 Float 1,
    /// Round toward zero.
    Trunc = "trunc": 1 Float 1,
    /// Square root.
    Sqrt = "sqrt": 1 Float 4,
    /// `1 / sqrt(x)`.
    Rsqrt = "rsqrt": 1 Float 4,
    /// `1 / x`.
    Recip = "recip": 1 Float 4,
    /// `e^x`.
    Exp = "exp": 1 Float 12,
    /// `e^x - 1`.
    Expm1 = "expm1": 1 Float 12,
    /// Natural logarithm.
    Log = "log": 1 Float 12,
    /// `log(1 + x)`.
    Log1p = "log1p": 1 Float 12,
    /// Sine of radians.
    Sin = "sin": 1 Float 12,
    /// Cosine of radians.
    Cos = "cos": 1 Float 12,
    /// Tangent of radians.
    Tan = "tan": 1 Float 12,
    /// Inverse sine.
    Asin = "asin": 1 Float 12,
    /// Inverse cosine.
    Acos = "acos": 1 Float 12,
    /// Inverse tangent.
    Atan = "atan": 1 Float 12,
    /// Hyperbolic sine.
    Sinh = "sinh": 1 Float 12,
    /// Hyperbolic cosine.
    Cosh = "cosh": 1 Float 12,
    /// Hyperbolic tangent.
    Tanh = "tanh": 1 Float 12,
    /// Inverse hyperbolic sine.
    Asinh = "asinh": 1 Float 12,
    /// Inverse hyperbolic cosine.
    Acosh = "acosh": 1 Float 12,
    /// Inverse hyperbolic tangent.
    Atanh = "atanh": 1 Float 12,
    /// Gauss error function.
    Erf = "erf": 1 Float 12,
    /// `1 / (1 + e^-x)`.
    Sigmoid = "sigmoid": 1 Float 12,
    /// `x + y`.
    Add = "add": 2 Number 1,
    /// `x - y`.
    Sub = "sub": 2 Number 1,
    /// `x * y`.
    Mul = "mul": 2 Number 1,
    /// `x / y`; integers truncate toward zero.
    Div = "div": 2 Number 4,
    /// Remainder with the sign of `x` (C `fmod`).
    Rem = "rem": 2 Number 12,
    /// Remainder with the sign of `y` (Python `%`).
    Mod = "mod": 2 Number 12,
    /// `x^y`.
    Pow = "pow": 2 Number 12,
    /// `atan2(y, x)` of operands (y, x).
    Atan2 = "atan2": 2 Float 12,
    /// The smaller; NaN if either is.
    Min = "min": 2 Number 1,
    /// The larger; NaN if either is.
    Max = "max": 2 Number 1,
    /// Bitwise or logical and.
    And = "and": 2 Bits 1,
    /// Bitwise or logical or.
    Or = "or": 2 Bits 1,
    /// Bitwise or logical exclusive or.
    Xor = "xor": 2 Bits 1,
    /// Bitwise or logical not.
    Not = "not": 1 Bits 1,
    /// Shift left; 0 when the count is the width or more.
    Shl = "shl": 2 Int 1,
    /// Shift right, arithmetic for signed; the sign or 0 when the count is the width or more.
    Shr = "shr": 2 Int 1,
    /// Number of one bits in the operand.
    PopCount = "popcount": 1 Int 2,
    /// `x == y`.
    Eq = "eq": 2 Compare 1,
    /// `x < y`.
    Lt = "lt": 2 Compare 1,
    /// `x <= y`.
    Le = "le": 2 Compare 1,
    /// Whether NaN.
    IsNan = "is_nan": 1 FloatTest 1,
    /// Whether an infinity.
    IsInf = "is_inf": 1 FloatTest 1,
    /// `c ? x : y`.
    Select = "select": 3 Select 1,
    /// `x * y + z`, rounded once or twice.
    Fma = "fma": 3 Number 1,
}

impl Scalar {
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

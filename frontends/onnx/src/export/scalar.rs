//! Elementwise functions and conversions.

use cupola_ir::{Class, DType, Scalar};

use super::{Exporter, Result, unsupported};
use crate::write::attribute;

impl Exporter<'_> {
    /// A conversion of values.
    pub(super) fn cast(&mut self, x: &str, from: DType, to: DType) -> Result<String> {
        self.cast_with(x, from, to, true)
    }

    pub(super) fn cast_with(
        &mut self,
        x: &str,
        from: DType,
        to: DType,
        saturate: bool,
    ) -> Result<String> {
        if from == to {
            return Ok(x.to_owned());
        }
        if from.class() == Class::Block {
            return Err(unsupported(format!("dequantisation of {from}")));
        }
        let element = self.element(to)?;
        let mut attributes = vec![attribute("to", element as i32 as i64)];
        if !saturate {
            attributes.push(attribute("saturate", 0));
        }
        Ok(self.emit("Cast", &[x], &attributes))
    }

    /// The same bits as another type.
    pub(super) fn bitcast(&mut self, x: &str, to: DType) -> Result<String> {
        const FIRST_WITH_BITCAST: i64 = 26;
        let element = self.element(to)?;
        self.opset = self.opset.max(FIRST_WITH_BITCAST);
        Ok(self.emit("BitCast", &[x], &[attribute("to", element as i32 as i64)]))
    }

    /// A scalar function over operands of equal shape; `dtype` is that of the first.
    pub(super) fn map(&mut self, f: Scalar, dtype: DType, xs: &[&str]) -> Result<String> {
        if let Some(op) = same_operator(f, dtype) {
            return Ok(self.emit(op, xs, &[]));
        }
        match f {
            Scalar::Rsqrt => {
                let root = self.emit("Sqrt", xs, &[]);
                Ok(self.emit("Reciprocal", &[&root], &[]))
            }
            Scalar::Trunc => {
                let sign = self.emit("Sign", xs, &[]);
                let size = self.emit("Abs", xs, &[]);
                let whole = self.emit("Floor", &[&size], &[]);
                Ok(self.emit("Mul", &[&sign, &whole], &[]))
            }
            Scalar::Expm1 => self.expm1(xs[0], dtype),
            Scalar::Log1p => self.log1p(xs[0], dtype),
            Scalar::Rem => Ok(self.emit("Mod", xs, &[attribute("fmod", 1)])),
            Scalar::Mod => self.float_mod(xs[0], xs[1], dtype),
            Scalar::Fma => {
                let product = self.emit("Mul", &xs[..2], &[]);
                Ok(self.emit("Add", &[&product, xs[2]], &[]))
            }
            Scalar::Lt | Scalar::Le => {
                // Booleans have no order in ONNX.
                let op = if f == Scalar::Lt {
                    "Less"
                } else {
                    "LessOrEqual"
                };
                let lhs = self.cast(xs[0], dtype, DType::I32)?;
                let rhs = self.cast(xs[1], dtype, DType::I32)?;
                Ok(self.emit(op, &[&lhs, &rhs], &[]))
            }
            Scalar::Shl | Scalar::Shr => self.shift(f, xs[0], xs[1], dtype),
            _ => Err(unsupported(format!("the function {} of {dtype}", f.name()))),
        }
    }

    /// `tanh(x / 2) * (e^x + 1)`, which does not cancel near 0.
    fn expm1(&mut self, x: &str, dtype: DType) -> Result<String> {
        let half = self.number(0.5, dtype)?;
        let one = self.number(1.0, dtype)?;
        let halved = self.emit("Mul", &[x, &half], &[]);
        let tanh = self.emit("Tanh", &[&halved], &[]);
        let exp = self.emit("Exp", &[x], &[]);
        let sum = self.emit("Add", &[&exp, &one], &[]);
        Ok(self.emit("Mul", &[&tanh, &sum], &[]))
    }

    /// `2 atanh(x / (2 + x))` near 0, `log(1 + x)` elsewhere.
    fn log1p(&mut self, x: &str, dtype: DType) -> Result<String> {
        let half = self.number(0.5, dtype)?;
        let one = self.number(1.0, dtype)?;
        let two = self.number(2.0, dtype)?;
        let more = self.emit("Add", &[x, &two], &[]);
        let ratio = self.emit("Div", &[x, &more], &[]);
        let atanh = self.emit("Atanh", &[&ratio], &[]);
        let near = self.emit("Mul", &[&atanh, &two], &[]);
        let sum = self.emit("Add", &[x, &one], &[]);
        let far = self.emit("Log", &[&sum], &[]);
        let size = self.emit("Abs", &[x], &[]);
        let is_near = self.emit("Less", &[&size, &half], &[]);
        Ok(self.emit("Where", &[&is_near, &near, &far], &[]))
    }

    /// The remainder with the sign of the divisor, which ONNX has for integers only.
    fn float_mod(&mut self, x: &str, y: &str, dtype: DType) -> Result<String> {
        let zero = self.number(0.0, dtype)?;
        let rest = self.emit("Mod", &[x, y], &[attribute("fmod", 1)]);
        let rest_low = self.emit("Less", &[&rest, &zero], &[]);
        let rest_high = self.emit("Greater", &[&rest, &zero], &[]);
        let divisor_low = self.emit("Less", &[y, &zero], &[]);
        let divisor_high = self.emit("Greater", &[y, &zero], &[]);
        let first = self.emit("And", &[&rest_low, &divisor_high], &[]);
        let second = self.emit("And", &[&rest_high, &divisor_low], &[]);
        let differ = self.emit("Or", &[&first, &second], &[]);
        let other = self.emit("Add", &[&rest, y], &[]);
        Ok(self.emit("Where", &[&differ, &other, &rest], &[]))
    }

    /// Shifts, which ONNX has for unsigned integers and counts below the width. A signed number is
    /// shifted right by shifting the complement of a negative one.
    fn shift(&mut self, f: Scalar, x: &str, count: &str, dtype: DType) -> Result<String> {
        let width = dtype.bits() as f64;
        let unsigned = match dtype.bits() {
            8 => DType::U8,
            16 => DType::U16,
            32 => DType::U32,
            64 => DType::U64,
            _ => return Err(unsupported(format!("a shift of {dtype}"))),
        };
        let direction = if f == Scalar::Shl { "LEFT" } else { "RIGHT" };
        let negative = match (f, dtype.class()) {
            (Scalar::Shr, Class::Signed) => {
                let zero = self.number(0.0, dtype)?;
                Some(self.emit("Less", &[x, &zero], &[]))
            }
            _ => None,
        };
        let mut bits = x.to_owned();
        if let Some(negative) = &negative {
            let flipped = self.emit("BitwiseNot", &[x], &[]);
            bits = self.emit("Where", &[negative, &flipped, x], &[]);
        }
        let bits = self.cast(&bits, dtype, unsigned)?;
        let count = self.cast(count, dtype, unsigned)?;
        let limit = self.number(width - 1.0, unsigned)?;
        let fits = self.emit("LessOrEqual", &[&count, &limit], &[]);
        let zero = self.number(0.0, unsigned)?;
        let safe = self.emit("Where", &[&fits, &count, &zero], &[]);
        let shifted = self.emit(
            "BitShift",
            &[&bits, &safe],
            &[attribute("direction", direction)],
        );
        let shifted = self.emit("Where", &[&fits, &shifted, &zero], &[]);
        let result = self.cast(&shifted, unsigned, dtype)?;
        let Some(negative) = negative else {
            return Ok(result);
        };
        let flipped = self.emit("BitwiseNot", &[&result], &[]);
        Ok(self.emit("Where", &[&negative, &flipped, &result], &[]))
    }
}

/// The operator that is just this function on this type.
fn same_operator(f: Scalar, dtype: DType) -> Option<&'static str> {
    let bool_or = |logical, bitwise| {
        Some(if dtype == DType::Bool {
            logical
        } else {
            bitwise
        })
    };
    match f {
        Scalar::Neg => Some("Neg"),
        Scalar::Abs => Some("Abs"),
        Scalar::Sign => Some("Sign"),
        Scalar::Floor => Some("Floor"),
        Scalar::Ceil => Some("Ceil"),
        Scalar::Round => Some("Round"),
        Scalar::Sqrt => Some("Sqrt"),
        Scalar::Recip => Some("Reciprocal"),
        Scalar::Exp => Some("Exp"),
        Scalar::Log => Some("Log"),
        Scalar::Sin => Some("Sin"),
        Scalar::Cos => Some("Cos"),
        Scalar::Tan => Some("Tan"),
        Scalar::Asin => Some("Asin"),
        Scalar::Acos => Some("Acos"),
        Scalar::Atan => Some("Atan"),
        Scalar::Sinh => Some("Sinh"),
        Scalar::Cosh => Some("Cosh"),
        Scalar::Tanh => Some("Tanh"),
        Scalar::Asinh => Some("Asinh"),
        Scalar::Acosh => Some("Acosh"),
        Scalar::Atanh => Some("Atanh"),
        Scalar::Erf => Some("Erf"),
        Scalar::Sigmoid => Some("Sigmoid"),
        Scalar::Add => Some("Add"),
        Scalar::Sub => Some("Sub"),
        Scalar::Mul => Some("Mul"),
        Scalar::Div => Some("Div"),
        Scalar::Mod if dtype.is_int() => Some("Mod"),
        Scalar::Pow => Some("Pow"),
        Scalar::Min => Some("Min"),
        Scalar::Max => Some("Max"),
        Scalar::And => bool_or("And", "BitwiseAnd"),
        Scalar::Or => bool_or("Or", "BitwiseOr"),
        Scalar::Xor => bool_or("Xor", "BitwiseXor"),
        Scalar::Not => bool_or("Not", "BitwiseNot"),
        Scalar::Eq => Some("Equal"),
        Scalar::Lt if dtype != DType::Bool => Some("Less"),
        Scalar::Le if dtype != DType::Bool => Some("LessOrEqual"),
        Scalar::IsNan => Some("IsNaN"),
        Scalar::IsInf => Some("IsInf"),
        Scalar::Select => Some("Where"),
        Scalar::Rsqrt
        | Scalar::Trunc
        | Scalar::Expm1
        | Scalar::Log1p
        | Scalar::Rem
        | Scalar::Mod
        | Scalar::Atan2
        | Scalar::Shl
        | Scalar::Shr
        | Scalar::PopCount
        | Scalar::Lt
        | Scalar::Le
        | Scalar::Fma => None,
    }
}

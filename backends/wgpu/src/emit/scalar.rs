//! Scalar functions and conversions as WGSL expressions over operands already computed.
//!
//! Values are held wider than they are stored: every float up to 32 bits is an `f32`, every integer up to 32 bits an `i32`
//! or `u32` that is wrapped to its width after each operation, 64-bit integers and floats are pairs of words. Floats narrower than
//! 32 bits are rounded by casts and stores only.

use cupola_ir::{DType, Scalar};
use cupola_shaders::Element;

use super::{EmitError, double};

/// What an expression is made of, and the helper functions it calls.
pub(super) struct Code<'a> {
    /// Names of helpers needed so far.
    pub helpers: &'a mut Vec<&'static str>,
    /// Small float types whose conversions are needed so far.
    pub elements: &'a mut Vec<Element>,
}

/// How values of a dtype are held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Bool,
    Float,
    Signed,
    Unsigned,
    Signed64,
    Unsigned64,
    Float64,
}

/// Storage of a dtype, if kernels can hold it.
pub(super) fn element_of(dtype: DType) -> Option<Element> {
    Some(match dtype {
        DType::Bool => Element::Bool,
        DType::I2 => Element::I2,
        DType::I4 => Element::I4,
        DType::I8 => Element::I8,
        DType::I16 => Element::I16,
        DType::I32 => Element::I32,
        DType::I64 => Element::I64,
        DType::U2 => Element::U2,
        DType::U4 => Element::U4,
        DType::U8 => Element::U8,
        DType::U16 => Element::U16,
        DType::U32 => Element::U32,
        DType::U64 => Element::U64,
        DType::F16 => Element::F16,
        DType::BF16 => Element::Bf16,
        DType::F32 => Element::F32,
        DType::F8E4M3FN => Element::F8E4M3Fn,
        DType::F8E4M3FNUZ => Element::F8E4M3Fnuz,
        DType::F8E5M2 => Element::F8E5M2,
        DType::F8E5M2FNUZ => Element::F8E5M2Fnuz,
        DType::F4E2M1 => Element::F4E2M1,
        DType::F8E8M0 => Element::F8E8M0,
        DType::F64 => Element::F64,
        DType::String | DType::Block(_) => return None,
    })
}

/// As [`element_of`], or an error that names the dtype.
pub(super) fn element(dtype: DType) -> Result<Element, EmitError> {
    element_of(dtype).ok_or_else(|| EmitError(format!("dtype {dtype}")))
}

pub(super) fn held(dtype: DType) -> Result<Held, EmitError> {
    Ok(match element(dtype)?.value_type() {
        "bool" => Held::Bool,
        "f32" => Held::Float,
        "i32" => Held::Signed,
        "u32" => Held::Unsigned,
        _ if dtype == DType::I64 => Held::Signed64,
        _ if dtype == DType::F64 => Held::Float64,
        _ => Held::Unsigned64,
    })
}

impl Held {
    /// WGSL type.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Float => "f32",
            Self::Signed => "i32",
            Self::Unsigned => "u32",
            Self::Signed64 | Self::Unsigned64 | Self::Float64 => "vec2<u32>",
        }
    }
}

impl Code<'_> {
    /// A call of a helper function.
    pub(super) fn call(&mut self, name: &'static str, arguments: &[&str]) -> String {
        if !self.helpers.contains(&name) {
            self.helpers.push(name);
        }
        format!("{name}({})", arguments.join(", "))
    }

    fn element(&mut self, element: Element) {
        if !self.elements.contains(&element) {
            self.elements.push(element);
        }
    }

    /// A value given by its bits, as a tensor would store them.
    pub(super) fn literal(&mut self, dtype: DType, bits: u64) -> Result<String, EmitError> {
        Ok(match held(dtype)? {
            Held::Bool => (bits & 1 != 0).to_string(),
            Held::Signed => {
                let unused = 64 - dtype.bits() as u32;
                signed_literal(((bits << unused) as i64 >> unused) as i32)
            }
            Held::Unsigned => format!("{}u", bits & (u64::MAX >> (64 - dtype.bits() as u32))),
            Held::Signed64 | Held::Unsigned64 | Held::Float64 => {
                format!("vec2<u32>({}u, {}u)", bits as u32, (bits >> 32) as u32)
            }
            Held::Float => match dtype {
                DType::F32 => self.float_literal(bits as u32),
                DType::BF16 => self.float_literal((bits as u32) << 16),
                DType::F16 => {
                    self.float_literal(half::f16::from_bits(bits as u16).to_f32().to_bits())
                }
                _ => {
                    let element = element(dtype)?;
                    self.element(element);
                    format!("{}_value({}u)", element.name(), bits as u32)
                }
            },
        })
    }

    /// Numbers in decimal, which reads exactly; what decimal cannot say or a flushing compiler may lose, by its bits.
    fn float_literal(&mut self, bits: u32) -> String {
        let value = f32::from_bits(bits);
        if value.is_normal() || bits == 0 {
            return format!("{value:?}f");
        }
        self.call("float_of", &[&format!("{bits:#x}u")])
    }

    /// Wraps an integer held in 32 bits to its dtype's width.
    pub(super) fn wrapped(&self, dtype: DType, value: String) -> String {
        match dtype {
            DType::I2 | DType::I4 | DType::I8 | DType::I16 => {
                format!("extractBits({value}, 0u, {}u)", dtype.bits())
            }
            DType::U2 | DType::U4 | DType::U8 | DType::U16 => {
                format!("(({value}) & {}u)", (1u32 << dtype.bits()) - 1)
            }
            _ => value,
        }
    }

    /// A function of one operand.
    pub(super) fn unary(&mut self, f: Scalar, dtype: DType, x: &str) -> Result<String, EmitError> {
        let unsupported = || EmitError(format!("{} of {dtype}", f.name()));
        let value = match held(dtype)? {
            Held::Float => self.float_unary(f, x).ok_or_else(unsupported)?,
            Held::Float64 => self.call(double::unary(f).ok_or_else(unsupported)?, &[x]),
            Held::Bool => match f {
                Scalar::Not => format!("!{x}"),
                _ => return Err(unsupported()),
            },
            Held::Signed | Held::Unsigned => {
                let signed = held(dtype)? == Held::Signed;
                match f {
                    Scalar::Neg if signed => format!("-({x})"),
                    Scalar::Neg => format!("(0u - {x})"),
                    Scalar::Abs if signed => format!("abs({x})"),
                    Scalar::Abs => x.to_owned(),
                    Scalar::Sign if signed => format!("sign({x})"),
                    Scalar::Sign => format!("min({x}, 1u)"),
                    Scalar::Not => format!("~({x})"),
                    Scalar::PopCount if dtype.bits() < 32 && signed => {
                        format!("countOneBits({x} & {})", (1u32 << dtype.bits()) - 1)
                    }
                    Scalar::PopCount => format!("countOneBits({x})"),
                    _ => return Err(unsupported()),
                }
            }
            Held::Signed64 | Held::Unsigned64 => {
                let signed = dtype == DType::I64;
                match f {
                    Scalar::Neg => self.call("neg_i64", &[x]),
                    Scalar::Abs if signed => self.call("abs_i64", &[x]),
                    Scalar::Abs => x.to_owned(),
                    Scalar::Sign if signed => self.call("sign_i64", &[x]),
                    Scalar::Sign => format!("vec2<u32>(min({x}.x | {x}.y, 1u), 0u)"),
                    Scalar::Not => format!("~({x})"),
                    Scalar::PopCount => {
                        format!("vec2<u32>(countOneBits({x}.x) + countOneBits({x}.y), 0u)")
                    }
                    _ => return Err(unsupported()),
                }
            }
        };
        Ok(self.wrapped(dtype, value))
    }

    fn float_unary(&mut self, f: Scalar, x: &str) -> Option<String> {
        let helper = match f {
            Scalar::Neg => return Some(format!("-({x})")),
            Scalar::Abs => return Some(format!("abs({x})")),
            Scalar::Floor => return Some(format!("floor({x})")),
            Scalar::Ceil => return Some(format!("ceil({x})")),
            Scalar::Round => return Some(format!("round({x})")),
            Scalar::Trunc => return Some(format!("trunc({x})")),
            Scalar::Sqrt => return Some(format!("sqrt({x})")),
            Scalar::Rsqrt => return Some(format!("inverseSqrt({x})")),
            Scalar::Recip => return Some(format!("(1.0 / {x})")),
            Scalar::Exp => return Some(format!("exp({x})")),
            Scalar::Sign => "sign_f32",
            Scalar::Expm1 => "expm1_f32",
            Scalar::Log => "log_f32",
            Scalar::Log1p => "log1p_f32",
            Scalar::Sin => "sin_f32",
            Scalar::Cos => "cos_f32",
            Scalar::Tan => "tan_f32",
            Scalar::Asin => "asin_f32",
            Scalar::Acos => "acos_f32",
            Scalar::Atan => "atan_f32",
            Scalar::Sinh => "sinh_f32",
            Scalar::Cosh => "cosh_f32",
            Scalar::Tanh => "tanh_f32",
            Scalar::Asinh => "asinh_f32",
            Scalar::Acosh => "acosh_f32",
            Scalar::Atanh => "atanh_f32",
            Scalar::Erf => "erf_f32",
            Scalar::Sigmoid => "sigmoid_f32",
            Scalar::IsNan => "is_nan",
            Scalar::IsInf => "is_inf",
            _ => return None,
        };
        Some(self.call(helper, &[x]))
    }

    /// A function of two operands of `dtype`.
    pub(super) fn binary(
        &mut self,
        f: Scalar,
        dtype: DType,
        x: &str,
        y: &str,
    ) -> Result<String, EmitError> {
        let unsupported = || EmitError(format!("{} of {dtype}", f.name()));
        let value = match held(dtype)? {
            Held::Float => self.float_binary(f, x, y).ok_or_else(unsupported)?,
            Held::Float64 => self.call(double::binary(f).ok_or_else(unsupported)?, &[x, y]),
            Held::Bool => match f {
                Scalar::And => format!("({x} & {y})"),
                Scalar::Or => format!("({x} | {y})"),
                Scalar::Xor => format!("({x} != {y})"),
                Scalar::Eq => format!("({x} == {y})"),
                Scalar::Lt => format!("(!{x} & {y})"),
                Scalar::Le => format!("(!{x} | {y})"),
                Scalar::Min => format!("({x} & {y})"),
                Scalar::Max => format!("({x} | {y})"),
                _ => return Err(unsupported()),
            },
            Held::Signed | Held::Unsigned => {
                self.int_binary(f, dtype, x, y).ok_or_else(unsupported)?
            }
            Held::Signed64 | Held::Unsigned64 => self
                .long_binary(f, dtype == DType::I64, x, y)
                .ok_or_else(unsupported)?,
        };
        Ok(match f {
            Scalar::Eq | Scalar::Lt | Scalar::Le => value,
            _ => self.wrapped(dtype, value),
        })
    }

    fn float_binary(&mut self, f: Scalar, x: &str, y: &str) -> Option<String> {
        let helper = match f {
            Scalar::Add => return Some(format!("({x} + {y})")),
            Scalar::Sub => return Some(format!("({x} - {y})")),
            Scalar::Mul => return Some(format!("({x} * {y})")),
            Scalar::Div => return Some(format!("({x} / {y})")),
            Scalar::Eq => return Some(format!("({x} == {y})")),
            Scalar::Lt => return Some(format!("({x} < {y})")),
            Scalar::Le => return Some(format!("({x} <= {y})")),
            Scalar::Rem => "rem_f32",
            Scalar::Mod => "mod_f32",
            Scalar::Pow => "pow_f32",
            Scalar::Atan2 => "atan2_f32",
            Scalar::Min => "min_f32",
            Scalar::Max => "max_f32",
            _ => return None,
        };
        Some(self.call(helper, &[x, y]))
    }

    fn int_binary(&mut self, f: Scalar, dtype: DType, x: &str, y: &str) -> Option<String> {
        let signed = dtype.int_range().is_some_and(|(least, _)| least < 0);
        let bits = dtype.bits();
        Some(match f {
            Scalar::Add => format!("({x} + {y})"),
            Scalar::Sub => format!("({x} - {y})"),
            Scalar::Mul => format!("({x} * {y})"),
            Scalar::Div => format!("({x} / {y})"),
            Scalar::Rem => format!("({x} % {y})"),
            Scalar::Mod if signed => self.call("mod_i32", &[x, y]),
            Scalar::Mod => format!("({x} % {y})"),
            Scalar::Pow if signed => self.call("pow_i32", &[x, y]),
            Scalar::Pow => self.call("pow_u32", &[x, y]),
            Scalar::Min => format!("min({x}, {y})"),
            Scalar::Max => format!("max({x}, {y})"),
            Scalar::And => format!("({x} & {y})"),
            Scalar::Or => format!("({x} | {y})"),
            Scalar::Xor => format!("({x} ^ {y})"),
            // A negative count is a large one.
            Scalar::Shl => {
                let zero = if signed { "0" } else { "0u" };
                format!("select({x} << (u32({y}) & 31u), {zero}, u32({y}) >= {bits}u)")
            }
            Scalar::Shr if signed => format!("({x} >> min(u32({y}), 31u))"),
            Scalar::Shr => format!("select({x} >> ({y} & 31u), 0u, {y} >= {bits}u)"),
            Scalar::Eq => format!("({x} == {y})"),
            Scalar::Lt => format!("({x} < {y})"),
            Scalar::Le => format!("({x} <= {y})"),
            _ => return None,
        })
    }

    fn long_binary(&mut self, f: Scalar, signed: bool, x: &str, y: &str) -> Option<String> {
        let pick = |for_signed, for_unsigned| if signed { for_signed } else { for_unsigned };
        let less = pick("less_i64", "less_u64");
        let helper = match f {
            Scalar::And => return Some(format!("({x} & {y})")),
            Scalar::Or => return Some(format!("({x} | {y})")),
            Scalar::Xor => return Some(format!("({x} ^ {y})")),
            Scalar::Eq => return Some(format!("all({x} == {y})")),
            Scalar::Lt => return Some(self.call(less, &[x, y])),
            Scalar::Le => return Some(format!("!{}", self.call(less, &[y, x]))),
            Scalar::Min => return Some(format!("select({y}, {x}, {})", self.call(less, &[x, y]))),
            Scalar::Max => return Some(format!("select({x}, {y}, {})", self.call(less, &[x, y]))),
            Scalar::Add => "add_i64",
            Scalar::Sub => "sub_i64",
            Scalar::Mul => "mul_i64",
            Scalar::Div => pick("div_i64", "div_u64"),
            Scalar::Rem => pick("rem_i64", "rem_u64"),
            Scalar::Mod => pick("mod_i64", "rem_u64"),
            Scalar::Pow => pick("pow_i64", "pow_u64"),
            Scalar::Shl => "shl_i64",
            Scalar::Shr => pick("shr_i64", "shr_u64"),
            _ => return None,
        };
        Some(self.call(helper, &[x, y]))
    }

    /// `x * y + z`.
    pub(super) fn fma(
        &mut self,
        dtype: DType,
        x: &str,
        y: &str,
        z: &str,
    ) -> Result<String, EmitError> {
        if held(dtype)? == Held::Float {
            return Ok(format!("fma({x}, {y}, {z})"));
        }
        let product = self.binary(Scalar::Mul, dtype, x, y)?;
        self.binary(Scalar::Add, dtype, &product, z)
    }

    /// Whether an integer is zero.
    pub(super) fn is_zero(&mut self, dtype: DType, x: &str) -> Result<String, EmitError> {
        Ok(match held(dtype)? {
            Held::Bool => format!("!{x}"),
            Held::Float => format!("({x} == 0.0)"),
            Held::Signed => format!("({x} == 0)"),
            Held::Unsigned => format!("({x} == 0u)"),
            Held::Signed64 | Held::Unsigned64 => format!("all({x} == vec2<u32>(0u, 0u))"),
            Held::Float64 => self.call("is_zero_f64", &[x]),
        })
    }

    /// An `i32` as a number of `to`.
    pub(super) fn number_of_index(&mut self, to: DType, x: &str) -> Result<String, EmitError> {
        Ok(match held(to)? {
            Held::Bool => format!("({x} != 0)"),
            Held::Float => {
                let value = format!("f32({x})");
                self.rounded(to, value, true)?
            }
            Held::Signed => self.wrapped(to, x.to_owned()),
            Held::Unsigned => self.wrapped(to, format!("bitcast<u32>({x})")),
            Held::Signed64 | Held::Unsigned64 => self.call("i64_of_i32", &[x]),
            Held::Float64 => self.call("f64_of_i32", &[x]),
        })
    }

    /// A float rounded to a narrower format.
    fn rounded(&mut self, to: DType, value: String, saturate: bool) -> Result<String, EmitError> {
        let element = element(to)?;
        Ok(match to {
            DType::F32 => value,
            DType::F16 => {
                self.element(element);
                format!("unpack2x16float(f16_bits({value})).x")
            }
            DType::BF16 => {
                self.element(element);
                format!("bitcast<f32>(bf16_bits({value}) << 16u)")
            }
            _ => {
                self.element(element);
                let name = element.name();
                format!("{name}_value({name}_bits({value}, {saturate}))")
            }
        })
    }

    /// Conversion as the graph's `Cast` defines it.
    pub(super) fn cast(
        &mut self,
        from: DType,
        to: DType,
        saturate: bool,
        x: &str,
    ) -> Result<String, EmitError> {
        let rounds = from.is_float() && from.bits() <= 8;
        if from == to && !rounds {
            return Ok(x.to_owned());
        }
        let (source, target) = (held(from)?, held(to)?);
        if target == Held::Bool {
            let zero = self.is_zero(from, x)?;
            return Ok(format!("!({zero})"));
        }
        if target == Held::Float64 {
            return Ok(self.double_of(source, x));
        }
        Ok(match (source, target) {
            (Held::Bool, Held::Float) => {
                // Not every format has a zero.
                self.rounded(to, format!("select(0.0, 1.0, {x})"), saturate)?
            }
            (Held::Bool, Held::Signed) => self.wrapped(to, format!("select(0, 1, {x})")),
            (Held::Bool, Held::Unsigned) => format!("select(0u, 1u, {x})"),
            (Held::Bool, Held::Signed64 | Held::Unsigned64) => {
                format!("vec2<u32>(select(0u, 1u, {x}), 0u)")
            }
            (Held::Float, Held::Float) => self.rounded(to, x.to_owned(), saturate)?,
            (Held::Float, Held::Signed64) => self.call("f32_to_i64", &[x]),
            (Held::Float, Held::Unsigned64) => self.call("f32_to_u64", &[x]),
            (Held::Float, Held::Signed | Held::Unsigned) => {
                self.float_to_int(to, ["f32_to_i32", "f32_to_u32"], x)
            }
            (Held::Signed, Held::Float) => self.rounded(to, format!("f32({x})"), saturate)?,
            (Held::Unsigned, Held::Float) => self.rounded(to, format!("f32({x})"), saturate)?,
            (Held::Signed64, Held::Float) => {
                let value = self.call("i64_to_f32", &[x]);
                self.rounded(to, value, saturate)?
            }
            (Held::Unsigned64, Held::Float) => {
                let value = self.call("u64_to_f32", &[x]);
                self.rounded(to, value, saturate)?
            }
            (Held::Signed, Held::Signed) => self.wrapped(to, x.to_owned()),
            (Held::Signed, Held::Unsigned) => self.wrapped(to, format!("bitcast<u32>({x})")),
            (Held::Unsigned, Held::Unsigned) => self.wrapped(to, x.to_owned()),
            (Held::Unsigned, Held::Signed) => self.wrapped(to, format!("bitcast<i32>({x})")),
            (Held::Signed, Held::Signed64 | Held::Unsigned64) => self.call("i64_of_i32", &[x]),
            (Held::Unsigned, Held::Signed64 | Held::Unsigned64) => format!("vec2<u32>({x}, 0u)"),
            (Held::Signed64 | Held::Unsigned64, Held::Signed) => {
                self.wrapped(to, format!("bitcast<i32>({x}.x)"))
            }
            (Held::Signed64 | Held::Unsigned64, Held::Unsigned) => {
                self.wrapped(to, format!("{x}.x"))
            }
            (Held::Signed64 | Held::Unsigned64, Held::Signed64 | Held::Unsigned64) => x.to_owned(),
            (Held::Float64, Held::Float) if to == DType::F32 => self.call("f32_of_f64", &[x]),
            (Held::Float64, Held::Float) => {
                let near = self.call("f32_odd_f64", &[x]);
                self.rounded(to, near, saturate)?
            }
            (Held::Float64, Held::Signed64) => self.call("f64_to_i64", &[x]),
            (Held::Float64, Held::Unsigned64) => self.call("f64_to_u64", &[x]),
            (Held::Float64, Held::Signed | Held::Unsigned) => {
                self.float_to_int(to, ["f64_to_i32", "f64_to_u32"], x)
            }
            (_, Held::Float64) => unreachable!("bug: handled above"),
            (_, Held::Bool) => unreachable!("bug: handled above"),
        })
    }

    /// A value of this kind as a 64-bit float.
    fn double_of(&mut self, source: Held, x: &str) -> String {
        match source {
            Held::Bool => format!("vec2<u32>(0u, select(0u, 0x3ff00000u, {x}))"),
            Held::Float => self.call("f64_of_f32", &[x]),
            Held::Signed => self.call("f64_of_i32", &[x]),
            Held::Unsigned => self.call("f64_of_u64", &[&format!("vec2<u32>({x}, 0u)")]),
            Held::Signed64 => self.call("f64_of_i64", &[x]),
            Held::Unsigned64 => self.call("f64_of_u64", &[x]),
            Held::Float64 => x.to_owned(),
        }
    }

    /// Truncates toward zero; out of range saturates, NaN gives 0. `whole` are the conversions to i32 and u32.
    fn float_to_int(&mut self, to: DType, whole: [&'static str; 2], x: &str) -> String {
        let (least, most) = to.int_range().unwrap_or((0, 1));
        let (name, suffix) = match least < 0 {
            true => (whole[0], ""),
            false => (whole[1], "u"),
        };
        let value = self.call(name, &[x]);
        match to {
            DType::I32 | DType::U32 => value,
            _ => format!("clamp({value}, {least}{suffix}, {most}{suffix})"),
        }
    }

    /// The same bits as another dtype of equal width.
    pub(super) fn bitcast(&mut self, from: DType, to: DType, x: &str) -> Result<String, EmitError> {
        let (source, target) = (held(from)?, held(to)?);
        if matches!(source, Held::Signed64 | Held::Unsigned64 | Held::Float64) {
            return Ok(x.to_owned());
        }
        let mask = u32::MAX >> (32 - from.bits() as u32);
        let bits = match source {
            Held::Bool => format!("select(0u, 1u, {x})"),
            Held::Unsigned => x.to_owned(),
            Held::Signed => format!("(bitcast<u32>({x}) & {mask}u)"),
            Held::Float if from == DType::F32 => format!("bitcast<u32>({x})"),
            Held::Float => {
                let element = element(from)?;
                self.element(element);
                match from {
                    DType::F16 | DType::BF16 => format!("{}_bits({x})", element.name()),
                    _ => format!("{}_bits({x}, false)", element.name()),
                }
            }
            Held::Signed64 | Held::Unsigned64 | Held::Float64 => {
                unreachable!("bug: handled above")
            }
        };
        Ok(match target {
            Held::Bool => format!("({bits} != 0u)"),
            Held::Unsigned => bits,
            Held::Signed => self.wrapped(to, format!("bitcast<i32>({bits})")),
            Held::Float => match to {
                DType::F32 => format!("bitcast<f32>({bits})"),
                DType::F16 => format!("unpack2x16float({bits}).x"),
                DType::BF16 => format!("bitcast<f32>({bits} << 16u)"),
                _ => {
                    let element = element(to)?;
                    self.element(element);
                    format!("{}_value({bits})", element.name())
                }
            },
            Held::Signed64 | Held::Unsigned64 | Held::Float64 => {
                return Err(EmitError(format!("bitcast of {from} to {to}")));
            }
        })
    }
}

/// The least i32 has no literal of its own: the minus sign comes after reading the number.
pub(super) fn signed_literal(value: i32) -> String {
    match value {
        i32::MIN => "(-2147483647 - 1)".to_owned(),
        negative if negative < 0 => format!("({negative})"),
        other => other.to_string(),
    }
}

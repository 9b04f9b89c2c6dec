//! The builder: shared expressions, numbers and the dispatch to expansions.

use super::{basic, expands, exponential, is_narrow, power, trigonometric};
use crate::dtype::DType;
use crate::kernel::{Expr, ExprId, Kernel, Literal};
use crate::scalar::Scalar;
use crate::target::Target;
use rustc_hash::FxHashMap;

/// Writes the expressions of a kernel anew.
pub(super) struct Builder {
    out: Kernel,
    seen: FxHashMap<Expr, ExprId>,
    dtypes: Vec<DType>,
    native: Vec<Scalar>,
}

impl Builder {
    /// Everything but the expressions is taken over.
    pub(super) fn new(kernel: &Kernel, target: &Target) -> Builder {
        Builder {
            out: Kernel {
                exprs: vec![],
                ..kernel.clone()
            },
            seen: FxHashMap::default(),
            dtypes: vec![],
            native: target.scalars.clone(),
        }
    }

    pub(super) fn finish(self) -> Kernel {
        self.out
    }

    pub(super) fn dtype(&self, e: ExprId) -> DType {
        self.dtypes[e.0 as usize]
    }

    pub(super) fn has(&self, f: Scalar) -> bool {
        self.native.contains(&f)
    }

    /// An expression as it stands, shared with an equal one.
    pub(super) fn raw(&mut self, expr: Expr) -> ExprId {
        let dtype = match expr {
            Expr::Const(l) => l.dtype,
            Expr::Index(_, dtype) => dtype,
            Expr::Less(..) => DType::Bool,
            Expr::Load { buffer, .. } => self.out.buffers[buffer.0 as usize].dtype,
            Expr::Unary(Scalar::IsNan | Scalar::IsInf, _)
            | Expr::Binary(Scalar::Eq | Scalar::Lt | Scalar::Le, ..) => DType::Bool,
            Expr::Unary(_, x) | Expr::Binary(_, x, _) => self.dtype(x),
            Expr::Ternary(_, _, y, _) => self.dtype(y),
            Expr::Cast { to, .. } | Expr::Bitcast { to, .. } => to,
            Expr::Random { .. } => DType::U32,
            Expr::Accum { .. } => unreachable!("bug: the dtype of an accumulator is given"),
        };
        self.typed(expr, dtype)
    }

    /// [`Builder::raw`] with the dtype known.
    pub(super) fn typed(&mut self, expr: Expr, dtype: DType) -> ExprId {
        if let Some(e) = self.seen.get(&expr) {
            return *e;
        }
        let e = ExprId(self.out.exprs.len() as u32);
        self.out.exprs.push(expr);
        self.dtypes.push(dtype);
        self.seen.insert(expr, e);
        e
    }

    /// A function of one operand, expanded when the target lacks it.
    pub(super) fn unary(&mut self, f: Scalar, x: ExprId) -> ExprId {
        use Scalar::*;
        let dtype = self.dtype(x);
        if self.has(f) || !expands(f, dtype) {
            return self.raw(Expr::Unary(f, x));
        }
        if is_narrow(dtype) {
            let wide = self.cast(x, DType::F32);
            let y = self.unary(f, wide);
            return if matches!(f, IsNan | IsInf) {
                y
            } else {
                self.cast(y, dtype)
            };
        }
        match f {
            Neg => basic::neg(self, x),
            Abs => basic::abs(self, x),
            Sign => basic::sign(self, x),
            Floor => basic::floor(self, x),
            Ceil => basic::ceil(self, x),
            Round => basic::round(self, x),
            Trunc => basic::trunc(self, x),
            Recip => basic::recip(self, x),
            Rsqrt => basic::rsqrt(self, x),
            IsNan => basic::is_nan(self, x),
            IsInf => basic::is_inf(self, x),
            PopCount => basic::popcount(self, x),
            Exp => exponential::exp(self, x),
            Expm1 => exponential::expm1(self, x),
            Log => exponential::log(self, x),
            Log1p => exponential::log1p(self, x),
            Sinh => exponential::sinh(self, x),
            Cosh => exponential::cosh(self, x),
            Tanh => exponential::tanh(self, x),
            Asinh => exponential::asinh(self, x),
            Acosh => exponential::acosh(self, x),
            Atanh => exponential::atanh(self, x),
            Erf => exponential::erf(self, x),
            Sigmoid => exponential::sigmoid(self, x),
            Sin => trigonometric::sin(self, x),
            Cos => trigonometric::cos(self, x),
            Tan => trigonometric::tan(self, x),
            Asin => trigonometric::asin(self, x),
            Acos => trigonometric::acos(self, x),
            Atan => trigonometric::atan(self, x),
            Sqrt | Not | Add | Sub | Mul | Div | Rem | Mod | Pow | Atan2 | Min | Max | And | Or
            | Xor | Shl | Shr | Eq | Lt | Le | Select | Fma => {
                unreachable!("bug: {} has no expansion of one operand", f.name())
            }
        }
    }

    /// A function of two operands, expanded when the target lacks it.
    pub(super) fn binary(&mut self, f: Scalar, x: ExprId, y: ExprId) -> ExprId {
        let dtype = self.dtype(x);
        if self.has(f) || !expands(f, dtype) {
            return self.raw(Expr::Binary(f, x, y));
        }
        if is_narrow(dtype) {
            let (x, y) = (self.cast(x, DType::F32), self.cast(y, DType::F32));
            let z = self.binary(f, x, y);
            return self.cast(z, dtype);
        }
        match f {
            Scalar::Min => basic::min(self, x, y),
            Scalar::Max => basic::max(self, x, y),
            Scalar::Rem => power::rem(self, x, y),
            Scalar::Mod => basic::modulo(self, x, y),
            Scalar::Pow => power::pow(self, x, y),
            Scalar::Atan2 => trigonometric::atan2(self, x, y),
            _ => unreachable!("bug: {} has no expansion of two operands", f.name()),
        }
    }

    /// A function of three operands, expanded when the target lacks it.
    pub(super) fn ternary(&mut self, f: Scalar, x: ExprId, y: ExprId, z: ExprId) -> ExprId {
        if f == Scalar::Fma && !self.has(f) {
            let product = self.mul(x, y);
            return self.add(product, z);
        }
        self.raw(Expr::Ternary(f, x, y, z))
    }

    /// An f32 number.
    pub(super) fn f(&mut self, value: f32) -> ExprId {
        self.literal(DType::F32, u64::from(value.to_bits()))
    }

    /// An i32 number.
    pub(super) fn i(&mut self, value: i32) -> ExprId {
        self.literal(DType::I32, u64::from(value as u32))
    }

    /// A u32 number.
    pub(super) fn u(&mut self, value: u32) -> ExprId {
        self.literal(DType::U32, u64::from(value))
    }

    pub(super) fn literal(&mut self, dtype: DType, bits: u64) -> ExprId {
        self.raw(Expr::Const(Literal { dtype, bits }))
    }

    /// A small integer as a number of the dtype of `like`.
    pub(super) fn number(&mut self, value: i64, like: ExprId) -> ExprId {
        let dtype = self.dtype(like);
        let bits = match dtype {
            DType::F64 => (value as f64).to_bits(),
            DType::F32 => u64::from((value as f32).to_bits()),
            _ if dtype.is_int() => value as u64 & (u64::MAX >> (64 - dtype.bits())),
            _ => unreachable!("bug: {dtype} is computed on in f32"),
        };
        self.literal(dtype, bits)
    }

    pub(super) fn cast(&mut self, x: ExprId, to: DType) -> ExprId {
        if self.dtype(x) == to {
            return x;
        }
        // Arithmetic on narrow floats overflows to infinity or NaN, as the interpreter has it.
        self.raw(Expr::Cast {
            x,
            to,
            saturate: false,
        })
    }

    pub(super) fn bits(&mut self, x: ExprId, to: DType) -> ExprId {
        self.raw(Expr::Bitcast { x, to })
    }

    pub(super) fn add(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Add, x, y)
    }

    pub(super) fn sub(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Sub, x, y)
    }

    pub(super) fn mul(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Mul, x, y)
    }

    pub(super) fn div(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Div, x, y)
    }

    /// `x * y + z`, fused where the target can.
    pub(super) fn fma(&mut self, x: ExprId, y: ExprId, z: ExprId) -> ExprId {
        self.ternary(Scalar::Fma, x, y, z)
    }

    pub(super) fn lt(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Lt, x, y)
    }

    pub(super) fn eq(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Eq, x, y)
    }

    pub(super) fn select(&mut self, c: ExprId, x: ExprId, y: ExprId) -> ExprId {
        self.ternary(Scalar::Select, c, x, y)
    }

    pub(super) fn and(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::And, x, y)
    }

    pub(super) fn or(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Or, x, y)
    }

    pub(super) fn xor(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Xor, x, y)
    }

    pub(super) fn not(&mut self, x: ExprId) -> ExprId {
        self.raw(Expr::Unary(Scalar::Not, x))
    }

    pub(super) fn shl(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Shl, x, y)
    }

    pub(super) fn shr(&mut self, x: ExprId, y: ExprId) -> ExprId {
        self.binary(Scalar::Shr, x, y)
    }

    /// `c[0] + c[1] x + c[2] x^2 + ...` by Horner's rule, f32.
    pub(super) fn polynomial(&mut self, x: ExprId, c: &[f32]) -> ExprId {
        let (last, rest) = c.split_last().unwrap_or((&0.0, &[]));
        let mut sum = self.f(*last);
        for c in rest.iter().rev() {
            let c = self.f(*c);
            sum = self.fma(sum, x, c);
        }
        sum
    }

    /// The sign bit of an f32 as a u32 mask.
    pub(super) fn sign_bit(&mut self, x: ExprId) -> ExprId {
        let bits = self.bits(x, DType::U32);
        let mask = self.u(0x8000_0000);
        self.and(bits, mask)
    }

    /// An f32 with the bits of a u32 mask flipped.
    pub(super) fn flip(&mut self, x: ExprId, mask: ExprId) -> ExprId {
        let bits = self.bits(x, DType::U32);
        let bits = self.xor(bits, mask);
        self.bits(bits, DType::F32)
    }

    /// The upper 12 bits of an f32's significand: products of two such numbers are exact.
    pub(super) fn upper(&mut self, x: ExprId) -> ExprId {
        let bits = self.bits(x, DType::U32);
        let mask = self.u(0xFFFF_F000);
        let bits = self.and(bits, mask);
        self.bits(bits, DType::F32)
    }
}

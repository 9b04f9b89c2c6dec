//! Scalar functions: one place that says how each becomes vector operations, a helper call, or both.

use super::lower::Lower;
use super::{BinOp, CmpOp, Elem, Op, Reg, UnOp};
use crate::emit::helpers::Helper;
use cupola_ir::{Class, DType, Scalar};

impl Lower<'_> {
    /// A function of one operand of this dtype.
    pub(crate) fn unary(&mut self, f: Scalar, x: Reg, dtype: DType) -> Reg {
        let float = dtype.is_float();
        match f {
            Scalar::Neg => {
                let y = self.b.unary(UnOp::Neg, x);
                self.rounded_int(y, dtype)
            }
            Scalar::Abs if dtype.class() == Class::Unsigned => x,
            Scalar::Abs => {
                let y = self.b.unary(UnOp::Abs, x);
                self.rounded_int(y, dtype)
            }
            Scalar::Sign => self.sign(x, dtype),
            Scalar::Floor => self.b.unary(UnOp::Floor, x),
            Scalar::Ceil => self.b.unary(UnOp::Ceil, x),
            Scalar::Round => self.b.unary(UnOp::Nearest, x),
            Scalar::Trunc => self.b.unary(UnOp::Trunc, x),
            Scalar::Sqrt => {
                let y = self.b.unary(UnOp::Sqrt, x);
                self.rounded(y, dtype)
            }
            Scalar::Rsqrt => {
                let root = self.b.unary(UnOp::Sqrt, x);
                let one = self.float_like(1.0, x);
                let y = self.b.binary(BinOp::Div, one, root);
                self.rounded(y, dtype)
            }
            Scalar::Recip => {
                let one = self.float_like(1.0, x);
                let y = self.b.binary(BinOp::Div, one, x);
                self.rounded(y, dtype)
            }
            Scalar::Not if dtype == DType::Bool => self.b.unary(UnOp::Not, x),
            Scalar::Not => {
                let y = self.b.unary(UnOp::Not, x);
                self.rounded(y, dtype)
            }
            Scalar::PopCount => {
                let x = self.without_sign_copies(x, dtype);
                let y = self.b.unary(UnOp::PopCount, x);
                self.rounded(y, dtype)
            }
            Scalar::IsNan if float => self.b.cmp(CmpOp::Ne, x, x),
            Scalar::IsInf if float => {
                let magnitude = self.abs(x);
                let infinity = self.float_like(f64::INFINITY, x);
                self.b.cmp(CmpOp::Eq, magnitude, infinity)
            }
            _ => {
                let elem = self.b.elem(x);
                let y = self.call(Helper::Unary(f, elem), &[x]);
                self.rounded(y, dtype)
            }
        }
    }

    fn sign(&mut self, x: Reg, dtype: DType) -> Reg {
        if dtype.is_float() {
            let (zero, one, minus) = (
                self.float_like(0.0, x),
                self.float_like(1.0, x),
                self.float_like(-1.0, x),
            );
            let (below, above) = (
                self.b.cmp(CmpOp::LtF, x, zero),
                self.b.cmp(CmpOp::LtF, zero, x),
            );
            // Zero and NaN stay what they are.
            let y = self.b.select(below, minus, x);
            return self.b.select(above, one, y);
        }
        let (zero, one, minus) = (
            self.int_like(0, x),
            self.int_like(1, x),
            self.int_like(-1, x),
        );
        if dtype.class() == Class::Unsigned {
            let none = self.b.cmp(CmpOp::Eq, x, zero);
            return self.b.select(none, zero, one);
        }
        let (below, above) = (
            self.b.cmp(CmpOp::LtS, x, zero),
            self.b.cmp(CmpOp::LtS, zero, x),
        );
        let y = self.b.select(below, minus, zero);
        self.b.select(above, one, y)
    }

    /// Sub-byte results wrap.
    fn rounded_int(&mut self, x: Reg, dtype: DType) -> Reg {
        if dtype.is_int() {
            self.rounded(x, dtype)
        } else {
            x
        }
    }

    /// A sub-byte integer with zeros above.
    fn without_sign_copies(&mut self, x: Reg, dtype: DType) -> Reg {
        if dtype.bits() >= 8 {
            return x;
        }
        let keep = self.int_like((1 << dtype.bits()) - 1, x);
        self.b.binary(BinOp::And, x, keep)
    }

    /// A function of two operands of this dtype.
    pub(crate) fn scalar_binary(&mut self, f: Scalar, x: Reg, y: Reg, dtype: DType) -> Reg {
        let class = dtype.class();
        let pick = |signed, unsigned| match class {
            Class::Signed => signed,
            _ => unsigned,
        };
        let arithmetic = |s: &mut Self, op| {
            let z = s.b.binary(op, x, y);
            s.rounded(z, dtype)
        };
        match f {
            Scalar::Add => arithmetic(self, BinOp::Add),
            Scalar::Sub => arithmetic(self, BinOp::Sub),
            Scalar::Mul => arithmetic(self, BinOp::Mul),
            Scalar::Div if class == Class::Float => arithmetic(self, BinOp::Div),
            Scalar::Div => {
                self.check_divisor(y);
                arithmetic(self, pick(BinOp::DivS, BinOp::DivU))
            }
            Scalar::Rem | Scalar::Mod if class != Class::Float => {
                self.int_remainder(f, x, y, dtype)
            }
            Scalar::Min | Scalar::Max if class == Class::Float => self.extreme_float(f, x, y),
            Scalar::Min => {
                let op = pick(BinOp::MinS, BinOp::MinU);
                self.b.binary(op, x, y)
            }
            Scalar::Max => {
                let op = pick(BinOp::MaxS, BinOp::MaxU);
                self.b.binary(op, x, y)
            }
            Scalar::And => self.b.binary(BinOp::And, x, y),
            Scalar::Or => self.b.binary(BinOp::Or, x, y),
            Scalar::Xor => self.b.binary(BinOp::Xor, x, y),
            Scalar::Shl | Scalar::Shr => self.shifted(f, x, y, dtype),
            Scalar::Eq | Scalar::Lt | Scalar::Le if class == Class::Bool => {
                self.compare_masks(f, x, y)
            }
            Scalar::Eq => self.b.cmp(CmpOp::Eq, x, y),
            Scalar::Lt => self
                .b
                .cmp(pick3(class, CmpOp::LtF, CmpOp::LtS, CmpOp::LtU), x, y),
            Scalar::Le => self
                .b
                .cmp(pick3(class, CmpOp::LeF, CmpOp::LeS, CmpOp::LeU), x, y),
            Scalar::Pow if class != Class::Float => self.int_power(x, y, dtype),
            _ => {
                let elem = self.b.elem(x);
                let z = self.call(Helper::Binary(f, elem), &[x, y]);
                self.rounded(z, dtype)
            }
        }
    }

    /// NaN if either operand is NaN. That of two constants or none needs a second look at the first operand.
    fn extreme_float(&mut self, f: Scalar, x: Reg, y: Reg) -> Reg {
        let min = f == Scalar::Min;
        let (plain, full) = match min {
            true => (BinOp::MinOrSecond, BinOp::MinF),
            false => (BinOp::MaxOrSecond, BinOp::MaxF),
        };
        match (self.is_number(x), self.is_number(y)) {
            (true, _) => self.b.binary(plain, x, y),
            (false, true) => self.b.binary(plain, y, x),
            (false, false) => self.b.binary(full, x, y),
        }
    }

    /// Whether a float register is a constant other than NaN.
    fn is_number(&self, x: Reg) -> bool {
        let bits = self.b.constant_bits(x);
        bits.is_some_and(|bits| match self.b.elem(x) {
            Elem::F32 => !f32::from_bits(bits as u32).is_nan(),
            Elem::F64 => !f64::from_bits(bits).is_nan(),
            _ => false,
        })
    }

    fn int_remainder(&mut self, f: Scalar, x: Reg, y: Reg, dtype: DType) -> Reg {
        self.check_divisor(y);
        if dtype.class() == Class::Unsigned {
            return self.b.binary(BinOp::RemU, x, y);
        }
        let r = self.b.binary(BinOp::RemS, x, y);
        if f == Scalar::Rem {
            return r;
        }
        // A remainder of the other sign than the divisor's is moved by one divisor.
        let zero = self.int_like(0, r);
        let differs = self.b.binary(BinOp::Xor, r, y);
        let differs = self.b.cmp(CmpOp::LtS, differs, zero);
        let nonzero = self.b.cmp(CmpOp::Ne, r, zero);
        let move_it = self.b.binary(BinOp::And, differs, nonzero);
        let moved = self.b.add(r, y);
        self.b.select(move_it, moved, r)
    }

    fn shifted(&mut self, f: Scalar, x: Reg, y: Reg, dtype: DType) -> Reg {
        let signed = dtype.class() == Class::Signed;
        let op = match f {
            Scalar::Shl => BinOp::Shl,
            _ if signed => BinOp::ShrS,
            _ => BinOp::ShrU,
        };
        let width = dtype.bits() as i64;
        if let Some(count) = self.b.constant_bits(y).filter(|c| *c < width as u64) {
            let z = self.b.shift(op, x, count as u8);
            return self.rounded(z, dtype);
        }
        let y = self.without_sign_copies(y, dtype);
        let (zero, last) = (self.int_like(0, x), self.int_like(width - 1, x));
        let count = self.b.binary(BinOp::MinU, y, last);
        let z = self.b.binary(op, x, count);
        let z = self.rounded(z, dtype);
        if op == BinOp::ShrS {
            return z;
        }
        let beyond = self.b.cmp(CmpOp::LtU, last, y);
        self.b.select(beyond, zero, z)
    }

    fn compare_masks(&mut self, f: Scalar, x: Reg, y: Reg) -> Reg {
        match f {
            Scalar::Eq => {
                let differ = self.b.binary(BinOp::Xor, x, y);
                self.b.unary(UnOp::Not, differ)
            }
            Scalar::Lt => {
                let not = self.b.unary(UnOp::Not, x);
                self.b.binary(BinOp::And, not, y)
            }
            _ => {
                let not = self.b.unary(UnOp::Not, x);
                self.b.binary(BinOp::Or, not, y)
            }
        }
    }

    fn int_power(&mut self, x: Reg, y: Reg, dtype: DType) -> Reg {
        let elem = self.b.elem(x);
        let wide = if dtype.class() == Class::Signed {
            DType::I64
        } else {
            DType::U64
        };
        let (x, y) = (
            self.cast(x, dtype, wide, true),
            self.cast(y, dtype, wide, true),
        );
        let signed = wide == DType::I64;
        let z = self.call(Helper::Power { signed }, &[x, y]);
        let z = self.b.convert(super::Conv::Wrap, z, elem);
        self.rounded(z, dtype)
    }

    /// A function of three operands; `dtype` is that of the last two.
    pub(crate) fn ternary(&mut self, f: Scalar, x: Reg, y: Reg, z: Reg, dtype: DType) -> Reg {
        match f {
            Scalar::Select if dtype == DType::Bool => {
                let yes = self.b.binary(BinOp::And, x, y);
                let not = self.b.unary(UnOp::Not, x);
                let no = self.b.binary(BinOp::And, not, z);
                self.b.binary(BinOp::Or, yes, no)
            }
            Scalar::Select => self.b.select(x, y, z),
            _ if dtype.is_float() => {
                let r = self.b.fma(x, y, z);
                self.rounded(r, dtype)
            }
            _ => {
                let p = self.b.mul(x, y);
                let r = self.b.add(p, z);
                self.rounded(r, dtype)
            }
        }
    }

    /// Extracts a lane as a scalar.
    pub(crate) fn lane(&mut self, x: Reg, k: u16) -> Reg {
        let t = self.b.ty(x);
        if t.lanes == 1 {
            return x;
        }
        let elem = if t.elem.is_mask() { Elem::M8 } else { t.elem };
        self.b.op(Op::Extract(x, k), super::Type { elem, lanes: 1 })
    }
}

fn pick3(class: Class, float: CmpOp, signed: CmpOp, unsigned: CmpOp) -> CmpOp {
    match class {
        Class::Float => float,
        Class::Signed => signed,
        _ => unsigned,
    }
}

//! Integers and truth values of one lane, in general registers. Bits above an element's own are undefined; truth values
//! are 0 or 1.

use super::super::encode::Bmi;
use super::*;

impl Select<'_> {
    /// A value with its element extended to 64 bits.
    pub(super) fn extended(&mut self, v: V, elem: Elem, signed: bool) -> V {
        match elem.bits() {
            64 => v,
            bits => {
                let what = What::Extend(bits / 8, signed);
                self.code.general(what, &[Src::Value(v)])
            }
        }
    }

    /// A register as a source, extended to 64 bits.
    fn extended_src(&mut self, reg: Reg, elem: Elem, signed: bool) -> Src {
        if let Some(bits) = self.known(reg) {
            let unused = 64 - elem.bits();
            let value = match signed {
                true => ((bits << unused) as i64) >> unused,
                false => ((bits << unused) >> unused) as i64,
            };
            if let Ok(small) = i32::try_from(value) {
                return Src::Int(small);
            }
        }
        let v = self.one(reg);
        Src::Value(self.extended(v, elem, signed))
    }

    pub(super) fn unary_scalar(&mut self, op: UnOp, v: V, elem: Elem) -> V {
        let x = Src::Value(v);
        match op {
            UnOp::Not if elem.is_mask() => self.alu(Alu::Xor, x, Src::Int(1)),
            UnOp::Not => self.code.general(What::Not, &[x]),
            UnOp::Neg => self.code.general(What::Neg, &[x]),
            UnOp::Abs => {
                let v = self.extended(v, elem, true);
                let sign = self.shift_general(7, v, 63);
                let flipped = self.alu(Alu::Xor, Src::Value(v), Src::Value(sign));
                self.alu(Alu::Sub, Src::Value(flipped), Src::Value(sign))
            }
            UnOp::PopCount => {
                let v = self.extended(v, elem, false);
                self.code.general(What::PopCount, &[Src::Value(v)])
            }
            op => unreachable!("bug: {op:?} of an integer"),
        }
    }

    fn shift_general(&mut self, digit: u8, v: V, n: u8) -> V {
        let r = self.code.value(Class::General);
        let inst = self
            .code
            .push(What::Shift(digit), Some(r), &[Src::Value(v)]);
        inst.imm = Some(n);
        r
    }

    pub(super) fn shift_scalar(&mut self, op: BinOp, v: V, n: u8, elem: Elem) -> V {
        match op {
            BinOp::Shl => self.shift_general(4, v, n),
            BinOp::ShrS => {
                let v = self.extended(v, elem, true);
                self.shift_general(7, v, n)
            }
            _ => {
                let v = self.extended(v, elem, false);
                self.shift_general(5, v, n)
            }
        }
    }

    pub(super) fn binary_general(&mut self, op: BinOp, x: Reg, y: Reg, elem: Elem) -> V {
        let simple = match op {
            BinOp::Add => Some(Alu::Add),
            BinOp::Sub => Some(Alu::Sub),
            BinOp::Mul => Some(Alu::Imul),
            BinOp::And => Some(Alu::And),
            BinOp::Or => Some(Alu::Or),
            BinOp::Xor => Some(Alu::Xor),
            _ => None,
        };
        if let Some(op) = simple {
            let (a, b) = (self.int_src(x), self.int_src(y));
            return self.alu(op, a, b);
        }
        let (a, b) = (self.one(x), self.one(y));
        self.binary_scalar(op, a, b, elem)
    }

    pub(super) fn binary_scalar(&mut self, op: BinOp, a: V, b: V, elem: Elem) -> V {
        let (x, y) = (Src::Value(a), Src::Value(b));
        let signed = matches!(
            op,
            BinOp::DivS | BinOp::RemS | BinOp::MinS | BinOp::MaxS | BinOp::ShrS
        );
        let long = |s: &mut Self| (s.extended(a, elem, signed), s.extended(b, elem, signed));
        match op {
            BinOp::Add => self.alu(Alu::Add, x, y),
            BinOp::Sub => self.alu(Alu::Sub, x, y),
            BinOp::Mul => self.alu(Alu::Imul, x, y),
            BinOp::MulHalves => {
                let a = self.extended(a, Elem::I32, false);
                let b = self.extended(b, Elem::I32, false);
                self.alu(Alu::Imul, Src::Value(a), Src::Value(b))
            }
            BinOp::And => self.alu(Alu::And, x, y),
            BinOp::Or => self.alu(Alu::Or, x, y),
            BinOp::Xor => self.alu(Alu::Xor, x, y),
            BinOp::DivS | BinOp::DivU | BinOp::RemS | BinOp::RemU => {
                let (a, b) = long(self);
                let rem = matches!(op, BinOp::RemS | BinOp::RemU);
                let what = What::Divide { signed, rem };
                self.code.general(what, &[Src::Value(a), Src::Value(b)])
            }
            BinOp::MinS | BinOp::MinU | BinOp::MaxS | BinOp::MaxU => {
                let (a, b) = long(self);
                let cc = match op {
                    BinOp::MinS => Cc::Less,
                    BinOp::MinU => Cc::Below,
                    BinOp::MaxS => Cc::Greater,
                    _ => Cc::Above,
                };
                let (a, b) = (Src::Value(a), Src::Value(b));
                let first = self.code.general(What::Compare(cc), &[a, b]);
                self.code.general(What::Choose, &[Src::Value(first), a, b])
            }
            BinOp::Shl | BinOp::ShrS | BinOp::ShrU => {
                let a = self.extended(a, elem, signed);
                let bmi = match op {
                    BinOp::Shl => Bmi::Shl,
                    BinOp::ShrS => Bmi::ShrS,
                    _ => Bmi::ShrU,
                };
                self.code.general(What::Bmi(bmi), &[Src::Value(a), y])
            }
            op => unreachable!("bug: {op:?} of integers"),
        }
    }

    pub(super) fn cmp_general(&mut self, op: CmpOp, x: Reg, y: Reg, elem: Elem) -> V {
        let signed = !matches!(op, CmpOp::LtU | CmpOp::LeU);
        let a = {
            let v = self.one(x);
            Src::Value(self.extended(v, elem, signed))
        };
        let b = self.extended_src(y, elem, signed);
        let cc = match op {
            CmpOp::Eq => Cc::Zero,
            CmpOp::Ne => Cc::NotZero,
            CmpOp::LtS | CmpOp::LtF => Cc::Less,
            CmpOp::LeS | CmpOp::LeF => Cc::LessEqual,
            CmpOp::LtU => Cc::Below,
            CmpOp::LeU => Cc::BelowEqual,
        };
        self.code.general(What::Compare(cc), &[a, b])
    }

    /// An integer in the low lane of a vector register.
    pub(super) fn in_vector(&mut self, v: V, elem: Elem) -> V {
        let form = if elem.bits() == 64 {
            &f::MOVQ_XR
        } else {
            &f::MOVD_XR
        };
        self.rm(form, Width::W128, Class::Vector, v)
    }

    /// The low lane of a vector register.
    pub(super) fn in_general(&mut self, v: V, elem: Elem) -> V {
        let form = if elem.bits() == 64 {
            &f::MOVQ_RX
        } else {
            &f::MOVD_RX
        };
        self.mr(form, Width::W128, Class::General, v, None)
    }

    /// The low lane of a part's mask as 0 or 1.
    pub(super) fn mask_to_scalar(&mut self, mask: V) -> V {
        let bits = self.mask_bits(mask, 32);
        self.alu(Alu::And, Src::Value(bits), Src::Int(1))
    }

    /// 0 or 1 as a mask with this many equal lanes.
    pub(super) fn mask_from_scalar(&mut self, v: V, lanes: usize) -> V {
        let all = self.code.general(What::Neg, &[Src::Value(v)]);
        if !self.wide {
            return self.in_vector(all, Elem::I64);
        }
        let some = match lanes {
            64 => all,
            n => self.shift_general(5, all, 64 - n as u8),
        };
        self.rm(&f::KMOV_KR, Width::W128, Class::Mask, some)
    }

    /// Bits of a part's mask, lane 0 lowest; of `bits` each. Bits above the lanes of a vector are undefined.
    pub(super) fn mask_bits(&mut self, mask: V, bits: u32) -> V {
        if self.wide {
            return self.rm(&f::KMOV_RK, Width::W128, Class::General, mask);
        }
        let form: &'static Form = match bits {
            64 => &f::MOVMSKPD,
            32 => &f::MOVMSKPS,
            _ => &f::PMOVMSKB,
        };
        self.rm(form, Width::W256, Class::General, mask)
    }
}

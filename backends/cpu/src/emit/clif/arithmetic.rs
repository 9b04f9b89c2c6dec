//! Arithmetic, comparisons, selections and reductions.

use super::*;

impl Emit<'_> {
    pub(super) fn unary(&mut self, f: UnOp, x: Reg, ty: Type) -> Parts {
        let scalar = ty.lanes == 1;
        if !scalar && f == UnOp::PopCount && ty.elem != Elem::I8 {
            let lanes = self.lanes(x);
            let all: Vec<Value> = lanes.into_iter().map(|v| self.f.ins().popcnt(v)).collect();
            return self.pack(ty, &all);
        }
        let parts = self.get(x);
        parts
            .into_iter()
            .map(|v| match f {
                UnOp::Neg if ty.elem.is_float() => self.f.ins().fneg(v),
                UnOp::Neg => self.f.ins().ineg(v),
                UnOp::Abs if ty.elem.is_float() => self.f.ins().fabs(v),
                UnOp::Abs => self.f.ins().iabs(v),
                UnOp::Not if scalar && ty.elem.is_mask() => self.f.ins().bxor_imm_u(v, 1),
                UnOp::Not => self.f.ins().bnot(v),
                UnOp::Sqrt => self.f.ins().sqrt(v),
                UnOp::Floor => self.f.ins().floor(v),
                UnOp::Ceil => self.f.ins().ceil(v),
                UnOp::Nearest => self.f.ins().nearest(v),
                UnOp::Trunc => self.f.ins().trunc(v),
                UnOp::PopCount => self.f.ins().popcnt(v),
            })
            .collect()
    }

    pub(super) fn binary(&mut self, f: BinOp, x: Reg, y: Reg, ty: Type) -> Parts {
        if ty.lanes > 1 && !has_vector_form(f, ty.elem) {
            let (x, y) = (self.lanes(x), self.lanes(y));
            let all: Vec<Value> = (x.into_iter().zip(y))
                .map(|(x, y)| self.binary_value(f, x, y, ty.elem, false))
                .collect();
            return self.pack(ty, &all);
        }
        let (x, y) = (self.get(x), self.get(y));
        (x.into_iter().zip(y))
            .map(|(x, y)| self.binary_value(f, x, y, ty.elem, ty.lanes > 1))
            .collect()
    }

    pub(super) fn binary_value(
        &mut self,
        f: BinOp,
        x: Value,
        y: Value,
        elem: Elem,
        vector: bool,
    ) -> Value {
        let float = elem.is_float();
        let i = self.f.ins();
        match f {
            BinOp::Add if float => i.fadd(x, y),
            BinOp::Add => i.iadd(x, y),
            BinOp::Sub if float => i.fsub(x, y),
            BinOp::Sub => i.isub(x, y),
            BinOp::Mul if float => i.fmul(x, y),
            BinOp::Mul => i.imul(x, y),
            BinOp::MulHalves => self.multiply_halves(x, y),
            BinOp::Div => i.fdiv(x, y),
            BinOp::And => i.band(x, y),
            BinOp::Or => i.bor(x, y),
            BinOp::Xor => i.bxor(x, y),
            BinOp::Shl => i.ishl(x, y),
            BinOp::ShrS => i.sshr(x, y),
            BinOp::ShrU => i.ushr(x, y),
            BinOp::DivS | BinOp::RemS => self.divide_signed(f, x, y, scalar_type(elem)),
            BinOp::DivU | BinOp::RemU => self.divide_unsigned(f, x, y, scalar_type(elem)),
            BinOp::MinF | BinOp::MaxF => self.extreme_float(f, x, y, elem, vector),
            BinOp::MinOrSecond | BinOp::MaxOrSecond => {
                self.plain_extreme(f == BinOp::MinOrSecond, x, y, elem, vector)
            }
            BinOp::MinS | BinOp::MaxS | BinOp::MinU | BinOp::MaxU
                if !vector || elem == Elem::I64 =>
            {
                let cmp = match f {
                    BinOp::MinS | BinOp::MaxS => CmpOp::LtS,
                    _ => CmpOp::LtU,
                };
                let less = self.cmp_value(cmp, x, y, elem, vector);
                let (a, b) = if matches!(f, BinOp::MinS | BinOp::MinU) {
                    (x, y)
                } else {
                    (y, x)
                };
                self.choose(less, a, b, elem, vector)
            }
            BinOp::MinS => i.smin(x, y),
            BinOp::MaxS => i.smax(x, y),
            BinOp::MinU => i.umin(x, y),
            BinOp::MaxU => i.umax(x, y),
        }
    }

    /// The product of the low halves of 64-bit lanes.
    fn multiply_halves(&mut self, x: Value, y: Value) -> Value {
        let ty = self.f.func.dfg.value_type(x);
        let low = self.f.ins().iconst(I64, 0xFFFF_FFFF);
        let low = match ty.is_vector() {
            true => self.f.ins().splat(ty, low),
            false => low,
        };
        let (x, y) = (self.f.ins().band(x, low), self.f.ins().band(y, low));
        self.f.ins().imul(x, y)
    }

    /// A comparison of floats. Cranelift 0.135 folds an unaligned load into the packed comparisons of plain SSE, which
    /// fault on it; a change of type keeps the load an instruction of its own. (With AVX nothing faults, and the plain
    /// form is recognised as a minimum or maximum.)
    pub(super) fn compare_floats(
        &mut self,
        cc: FloatCC,
        x: Value,
        y: Value,
        vector: bool,
    ) -> Value {
        if !vector || self.has_fma {
            return self.f.ins().fcmp(cc, x, y);
        }
        let mut apart = |v: Value| {
            let ty = self.f.func.dfg.value_type(v);
            let raw = self.f.ins().bitcast(I8X16, bits(), v);
            self.f.ins().bitcast(ty, bits(), raw)
        };
        let (x, y) = (apart(x), apart(y));
        self.f.ins().fcmp(cc, x, y)
    }

    /// NaN if either is NaN: the plain form gives the second operand then, and a NaN in the first overrides it.
    pub(super) fn extreme_float(
        &mut self,
        f: BinOp,
        x: Value,
        y: Value,
        elem: Elem,
        vector: bool,
    ) -> Value {
        let r = self.plain_extreme(f == BinOp::MinF, x, y, elem, vector);
        let nan = self.compare_floats(FloatCC::Unordered, x, x, vector);
        self.choose(nan, x, r, elem, vector)
    }

    /// `x < y ? x : y`, or the other way round: one instruction.
    pub(super) fn plain_extreme(
        &mut self,
        min: bool,
        x: Value,
        y: Value,
        elem: Elem,
        vector: bool,
    ) -> Value {
        let (a, b) = if min { (x, y) } else { (y, x) };
        let first = self.compare_floats(FloatCC::LessThan, a, b, vector);
        self.choose(first, x, y, elem, vector)
    }

    /// `mask ? a : b` of values.
    pub(super) fn choose(
        &mut self,
        mask: Value,
        a: Value,
        b: Value,
        elem: Elem,
        vector: bool,
    ) -> Value {
        if !vector {
            return self.f.ins().select(mask, a, b);
        }
        let ty = vector_type(elem);
        let mask = if elem.is_float() {
            self.f.ins().bitcast(ty, bits(), mask)
        } else {
            mask
        };
        self.f.ins().bitselect(mask, a, b)
    }

    /// Division that never traps: see [`BinOp::DivS`].
    pub(super) fn divide_signed(&mut self, f: BinOp, x: Value, y: Value, ty: types::Type) -> Value {
        let zero = self.f.ins().iconst(ty, 0);
        let one = self.f.ins().iconst(ty, 1);
        let none = self.f.ins().icmp_imm_s(IntCC::Equal, y, 0);
        let minus = self.f.ins().icmp_imm_s(IntCC::Equal, y, -1);
        let odd = self.f.ins().bor(none, minus);
        let safe = self.f.ins().select(odd, one, y);
        if f == BinOp::RemS {
            let r = self.f.ins().srem(x, safe);
            return self.f.ins().select(odd, zero, r);
        }
        let q = self.f.ins().sdiv(x, safe);
        let negated = self.f.ins().ineg(x);
        let q = self.f.ins().select(minus, negated, q);
        self.f.ins().select(none, zero, q)
    }

    pub(super) fn divide_unsigned(
        &mut self,
        f: BinOp,
        x: Value,
        y: Value,
        ty: types::Type,
    ) -> Value {
        let zero = self.f.ins().iconst(ty, 0);
        let one = self.f.ins().iconst(ty, 1);
        let none = self.f.ins().icmp_imm_s(IntCC::Equal, y, 0);
        let safe = self.f.ins().select(none, one, y);
        let r = if f == BinOp::RemU {
            self.f.ins().urem(x, safe)
        } else {
            self.f.ins().udiv(x, safe)
        };
        self.f.ins().select(none, zero, r)
    }

    pub(super) fn shift(&mut self, f: BinOp, x: Value, n: i64) -> Value {
        let n = self.f.ins().iconst(I32, n);
        match f {
            BinOp::Shl => self.f.ins().ishl(x, n),
            BinOp::ShrS => self.f.ins().sshr(x, n),
            _ => self.f.ins().ushr(x, n),
        }
    }

    pub(super) fn cmp(&mut self, f: CmpOp, x: Reg, y: Reg) -> Parts {
        let ty = self.ty(x);
        let (x, y) = (self.get(x), self.get(y));
        (x.into_iter().zip(y))
            .map(|(x, y)| self.cmp_value(f, x, y, ty.elem, ty.lanes > 1))
            .collect()
    }

    pub(super) fn cmp_value(
        &mut self,
        f: CmpOp,
        mut x: Value,
        mut y: Value,
        elem: Elem,
        vector: bool,
    ) -> Value {
        if elem.is_float() {
            let cc = match f {
                CmpOp::Eq => FloatCC::Equal,
                CmpOp::Ne => FloatCC::NotEqual,
                CmpOp::LeF | CmpOp::LeS | CmpOp::LeU => FloatCC::LessThanOrEqual,
                CmpOp::LtF | CmpOp::LtS | CmpOp::LtU => FloatCC::LessThan,
            };
            return self.compare_floats(cc, x, y, vector);
        }
        let mut cc = match f {
            CmpOp::Eq => IntCC::Equal,
            CmpOp::Ne => IntCC::NotEqual,
            CmpOp::LtS | CmpOp::LtF => IntCC::SignedLessThan,
            CmpOp::LeS | CmpOp::LeF => IntCC::SignedLessThanOrEqual,
            CmpOp::LtU => IntCC::UnsignedLessThan,
            CmpOp::LeU => IntCC::UnsignedLessThanOrEqual,
        };
        if vector && elem == Elem::I64 {
            // No unsigned 64-bit vector comparison: the sign bit is flipped on both sides.
            let unsigned = match cc {
                IntCC::UnsignedLessThan => Some(IntCC::SignedLessThan),
                IntCC::UnsignedLessThanOrEqual => Some(IntCC::SignedLessThanOrEqual),
                _ => None,
            };
            if let Some(signed) = unsigned {
                let mut bytes = [0u8; 16];
                (bytes[7], bytes[15]) = (0x80, 0x80);
                let flip = self.vector_constant(I64X2, bytes);
                (x, y) = (self.f.ins().bxor(x, flip), self.f.ins().bxor(y, flip));
                cc = signed;
            }
        }
        self.f.ins().icmp(cc, x, y)
    }

    pub(super) fn select(&mut self, mask: Reg, x: Reg, y: Reg, ty: Type) -> Parts {
        let (m, x, y) = (self.get(mask), self.get(x), self.get(y));
        (m.into_iter().zip(x).zip(y))
            .map(|((m, x), y)| self.choose(m, x, y, ty.elem, ty.lanes > 1))
            .collect()
    }

    pub(super) fn fma(&mut self, x: Reg, y: Reg, z: Reg) -> Parts {
        let (x, y, z) = (self.get(x), self.get(y), self.get(z));
        (x.into_iter().zip(y).zip(z))
            .map(|((x, y), z)| {
                if self.has_fma {
                    return self.f.ins().fma(x, y, z);
                }
                let p = self.f.ins().fmul(x, y);
                self.f.ins().fadd(p, z)
            })
            .collect()
    }

    /// A scalar truth value: whether any lane is set.
    pub(super) fn any(&mut self, mask: Reg) -> Value {
        let bits = self.lane_bits(mask);
        match bits {
            Lanes::One(v) => v,
            Lanes::Bits(v, _) => self.f.ins().icmp_imm_s(IntCC::NotEqual, v, 0),
        }
    }

    /// A mask as bits of an I64, lane 0 lowest (more than 64 lanes are combined modulo 64).
    pub(super) fn lane_bits(&mut self, mask: Reg) -> Lanes {
        let ty = self.ty(mask);
        if ty.lanes == 1 {
            return Lanes::One(self.one(mask));
        }
        let per = (VECTOR * 8 / ty.elem.bits()).min(u32::from(ty.lanes));
        let parts = self.get(mask);
        let mut all: Option<Value> = None;
        for (i, p) in parts.into_iter().enumerate() {
            let mut v = self.f.ins().vhigh_bits(I64, p);
            if per < VECTOR * 8 / ty.elem.bits() {
                v = self.f.ins().band_imm_u(v, (1i64 << per) - 1);
            }
            let at = i64::from(per) * i as i64;
            if at > 0 {
                v = self.f.ins().ishl_imm_u(v, at);
            }
            all = Some(match all {
                None => v,
                Some(a) => self.f.ins().bor(a, v),
            });
        }
        let v = all.unwrap_or_else(|| unreachable!("bug: a mask without parts"));
        let full = if ty.lanes >= 64 {
            -1
        } else {
            (1i64 << ty.lanes) - 1
        };
        Lanes::Bits(v, full)
    }

    /// All lanes combined.
    pub(super) fn reduce(&mut self, f: BinOp, x: Reg) -> Value {
        let ty = self.ty(x);
        let mut parts = self.get(x);
        let mut lanes = usize::from(ty.lanes);
        if has_vector_form(f, ty.elem) {
            while parts.len() > 1 {
                let half = parts.len() / 2;
                let upper = parts.split_off(half);
                parts = (parts.into_iter().zip(upper))
                    .map(|(a, b)| self.binary_value(f, a, b, ty.elem, true))
                    .collect();
                lanes /= 2;
            }
        }
        let mut all: Vec<Value> = (0..lanes)
            .map(|k| self.extract_from(&parts, ty, k))
            .collect();
        while all.len() > 1 {
            let half = all.len() / 2;
            let upper = all.split_off(half);
            all = (all.into_iter().zip(upper))
                .map(|(a, b)| self.binary_value(f, a, b, ty.elem, false))
                .collect();
        }
        all[0]
    }
}

/// Whether the machine (of every architecture) has this on vectors.
fn has_vector_form(f: BinOp, elem: Elem) -> bool {
    match f {
        BinOp::DivS | BinOp::DivU | BinOp::RemS | BinOp::RemU => false,
        BinOp::Shl | BinOp::ShrS | BinOp::ShrU => false,
        BinOp::Mul => elem != Elem::I8,
        _ => true,
    }
}

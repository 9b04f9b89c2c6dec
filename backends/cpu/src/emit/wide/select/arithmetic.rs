//! Arithmetic, comparisons and selections of vectors (and of single floats, which are vectors of one lane).

use super::*;

/// The sign bit of a lane.
fn sign(bits: u32) -> u64 {
    1 << (bits - 1)
}

impl Select<'_> {
    /// Applies an operation part by part.
    fn each(&mut self, x: Reg, mut one: impl FnMut(&mut Self, V) -> V) -> Vec<V> {
        let parts = self.parts(x);
        parts.into_iter().map(|v| one(self, v)).collect()
    }

    fn each_pair(&mut self, x: Reg, y: Reg, mut one: impl FnMut(&mut Self, V, V) -> V) -> Vec<V> {
        let (x, y) = (self.parts(x), self.parts(y));
        x.into_iter().zip(y).map(|(a, b)| one(self, a, b)).collect()
    }

    pub(super) fn unary(&mut self, op: UnOp, x: Reg, ty: Type) -> Vec<V> {
        if self.class(ty) == Class::General {
            let v = self.one(x);
            return vec![self.unary_scalar(op, v, ty.elem)];
        }
        if op == UnOp::PopCount {
            return self.by_lane(&[x], ty, |s, v| s.unary_scalar(op, v[0], ty.elem));
        }
        let w = self.shape(ty).width;
        self.each(x, |s, v| s.unary_part(op, v, ty, w))
    }

    fn unary_part(&mut self, op: UnOp, v: V, ty: Type, w: Width) -> V {
        let bits = ty.elem.bits();
        let round = |s: &mut Self, mode: u8| {
            let form = if bits == 32 { &f::ROUNDPS } else { &f::ROUNDPD };
            s.rm_imm(form, w, Class::Vector, v, mode | 8)
        };
        match op {
            UnOp::Neg if ty.elem.is_float() => {
                let mask = self.splat_constant(sign(bits), bits);
                self.rvm(xor(bits), w, v, mask)
            }
            UnOp::Neg => {
                let zero = self.splat_constant(0, 64);
                self.rvm(integer(Alu::Sub, bits), w, zero, v)
            }
            UnOp::Abs if ty.elem.is_float() => {
                let mask = self.splat_constant(sign(bits) - 1, bits);
                self.rvm(and(bits), w, v, mask)
            }
            UnOp::Abs => match bits {
                8 => self.rm(&f::PABSB, w, Class::Vector, v),
                16 => self.rm(&f::PABSW, w, Class::Vector, v),
                32 => self.rm(&f::PABSD, w, Class::Vector, v),
                _ if self.wide => self.rm(&f::PABSQ, w, Class::Vector, v),
                _ => {
                    let zero = self.splat_constant(0, 64);
                    let below = self.rvm(&f::PCMPGTQ, w, zero, v);
                    let flipped = self.rvm(&f::PXORD, w, v, below);
                    self.rvm(&f::PSUBQ, w, flipped, below)
                }
            },
            UnOp::Not if ty.elem.is_mask() && self.wide => {
                let form = match self.shape(ty).lanes {
                    ..=8 => &f::KNOTB,
                    16 => &f::KNOTW,
                    32 => &f::KNOTD,
                    _ => &f::KNOTQ,
                };
                self.rm(form, Width::W128, Class::Mask, v)
            }
            UnOp::Not => {
                let ones = self.splat_constant(u64::MAX, 64);
                self.rvm(&f::PXORQ, w, v, ones)
            }
            UnOp::Sqrt if bits == 32 => self.rm(&f::SQRTPS, w, Class::Vector, v),
            UnOp::Sqrt => self.rm(&f::SQRTPD, w, Class::Vector, v),
            UnOp::Nearest => round(self, 0),
            UnOp::Floor => round(self, 1),
            UnOp::Ceil => round(self, 2),
            UnOp::Trunc => round(self, 3),
            UnOp::PopCount => unreachable!("bug: bits are counted lane by lane"),
        }
    }

    pub(super) fn binary(&mut self, op: BinOp, x: Reg, y: Reg, ty: Type) -> Vec<V> {
        if self.class(ty) == Class::General {
            return vec![self.binary_general(op, x, y, ty.elem)];
        }
        if !self.has_form(op, ty.elem) {
            return self.by_lane(&[x, y], ty, |s, v| s.binary_scalar(op, v[0], v[1], ty.elem));
        }
        self.each_pair(x, y, |s, a, b| s.binary_part(op, a, b, ty))
    }

    /// Whether vectors have this operation.
    pub(super) fn has_form(&self, op: BinOp, elem: Elem) -> bool {
        match op {
            BinOp::DivS | BinOp::DivU | BinOp::RemS | BinOp::RemU => false,
            BinOp::Shl | BinOp::ShrU => elem.bits() >= 32 || self.wide && elem.bits() == 16,
            BinOp::ShrS => elem.bits() == 32 || self.wide && elem.bits() >= 16,
            BinOp::MulHalves => true,
            BinOp::Mul => elem != Elem::I8 && (elem != Elem::I64 || self.wide),
            _ => true,
        }
    }

    /// One part of an operation that [`Select::has_form`].
    pub(super) fn binary_part(&mut self, op: BinOp, a: V, b: V, ty: Type) -> V {
        let w = self.shape(ty).width;
        let bits = ty.elem.bits();
        if ty.elem.is_mask() && self.wide {
            let form = match op {
                BinOp::And => &f::KAND,
                BinOp::Or => &f::KOR,
                _ => &f::KXOR,
            };
            let src = [Src::Value(a), Src::Value(b), Src::None];
            return self.code.form(form, Width::W256, Class::Mask, src, None);
        }
        if ty.elem.is_float() {
            return self.binary_float(op, a, b, ty, w);
        }
        let form: &'static Form = match op {
            BinOp::Add => integer(Alu::Add, bits),
            BinOp::Sub => integer(Alu::Sub, bits),
            BinOp::Mul => match bits {
                16 => &f::PMULLW,
                32 => &f::PMULLD,
                _ => &f::PMULLQ,
            },
            BinOp::MulHalves => &f::PMULUDQ,
            BinOp::And => and(bits),
            BinOp::Or => or(bits),
            BinOp::Xor => xor(bits),
            BinOp::Shl => pick(bits, [&f::PSLLVW, &f::PSLLVW, &f::PSLLVD, &f::PSLLVQ]),
            BinOp::ShrU => pick(bits, [&f::PSRLVW, &f::PSRLVW, &f::PSRLVD, &f::PSRLVQ]),
            BinOp::ShrS => pick(bits, [&f::PSRAVW, &f::PSRAVW, &f::PSRAVD, &f::PSRAVQ]),
            BinOp::MinS | BinOp::MinU | BinOp::MaxS | BinOp::MaxU if bits == 64 && !self.wide => {
                let unsigned = matches!(op, BinOp::MinU | BinOp::MaxU);
                let cmp = if unsigned { CmpOp::LtU } else { CmpOp::LtS };
                let less = self.cmp_part(cmp, a, b, ty);
                let (x, y) = match op {
                    BinOp::MinS | BinOp::MinU => (a, b),
                    _ => (b, a),
                };
                return self.choose_part(less, x, y, ty);
            }
            BinOp::MinS => pick(bits, [&f::PMINSB, &f::PMINSW, &f::PMINSD, &f::PMINSQ]),
            BinOp::MinU => pick(bits, [&f::PMINUB, &f::PMINUW, &f::PMINUD, &f::PMINUQ]),
            BinOp::MaxS => pick(bits, [&f::PMAXSB, &f::PMAXSW, &f::PMAXSD, &f::PMAXSQ]),
            BinOp::MaxU => pick(bits, [&f::PMAXUB, &f::PMAXUW, &f::PMAXUD, &f::PMAXUQ]),
            op => unreachable!("bug: {op:?} of integer vectors"),
        };
        self.rvm(form, w, a, b)
    }

    fn binary_float(&mut self, op: BinOp, a: V, b: V, ty: Type, w: Width) -> V {
        let double = ty.elem == Elem::F64;
        let two = |ps: &'static Form, pd: &'static Form| if double { pd } else { ps };
        let form = match op {
            BinOp::Add => two(&f::ADDPS, &f::ADDPD),
            BinOp::Sub => two(&f::SUBPS, &f::SUBPD),
            BinOp::Mul => two(&f::MULPS, &f::MULPD),
            BinOp::Div => two(&f::DIVPS, &f::DIVPD),
            BinOp::MinF | BinOp::MinOrSecond => two(&f::MINPS, &f::MINPD),
            BinOp::MaxF | BinOp::MaxOrSecond => two(&f::MAXPS, &f::MAXPD),
            op => unreachable!("bug: {op:?} of floats"),
        };
        let r = self.rvm(form, w, a, b);
        if !matches!(op, BinOp::MinF | BinOp::MaxF) {
            return r;
        }
        // The instruction gives its second operand where either is NaN.
        let nan = self.cmp_part(CmpOp::Ne, a, a, ty);
        self.choose_part(nan, a, r, ty)
    }

    pub(super) fn shift(&mut self, op: BinOp, x: Reg, n: u8, ty: Type) -> Vec<V> {
        if self.class(ty) == Class::General {
            let v = self.one(x);
            return vec![self.shift_scalar(op, v, n, ty.elem)];
        }
        let w = self.shape(ty).width;
        self.each(x, |s, v| s.shift_part(op, v, n, ty, w))
    }

    fn shift_part(&mut self, op: BinOp, v: V, n: u8, ty: Type, w: Width) -> V {
        let bits = ty.elem.bits();
        let imm = |s: &mut Self, form, v, n| s.rm_imm(form, w, Class::Vector, v, n);
        let keep = |s: &mut Self, v, mask: u64| {
            let mask = s.splat_constant(mask, 8);
            s.rvm(&f::PANDD, w, v, mask)
        };
        match (op, bits) {
            (BinOp::Shl, 8) => {
                let v = imm(self, &f::PSLLW, v, n);
                keep(self, v, 0xFF << n & 0xFF)
            }
            (BinOp::ShrU, 8) => {
                let v = imm(self, &f::PSRLW, v, n);
                keep(self, v, 0xFF >> n)
            }
            (BinOp::ShrS, 8) => {
                // (x >> n) with zeros, then the sign bit is repeated by flipping and subtracting it.
                let v = imm(self, &f::PSRLW, v, n);
                let v = keep(self, v, 0xFF >> n);
                let sign = self.splat_constant(0x80 >> n, 8);
                let v = self.rvm(&f::PXORD, w, v, sign);
                self.rvm(&f::PSUBB, w, v, sign)
            }
            (BinOp::Shl, _) => imm(
                self,
                pick(bits, [&f::PSLLW, &f::PSLLW, &f::PSLLD, &f::PSLLQ]),
                v,
                n,
            ),
            (BinOp::ShrU, _) => imm(
                self,
                pick(bits, [&f::PSRLW, &f::PSRLW, &f::PSRLD, &f::PSRLQ]),
                v,
                n,
            ),
            (_, 64) if !self.wide => {
                let v = imm(self, &f::PSRLQ, v, n);
                let sign = self.splat_constant(sign(64) >> n, 64);
                let v = self.rvm(&f::PXORQ, w, v, sign);
                self.rvm(&f::PSUBQ, w, v, sign)
            }
            _ => imm(
                self,
                pick(bits, [&f::PSRAW, &f::PSRAW, &f::PSRAD, &f::PSRAQ]),
                v,
                n,
            ),
        }
    }

    pub(super) fn cmp(&mut self, op: CmpOp, x: Reg, y: Reg) -> Vec<V> {
        let ty = self.ty(x);
        if self.class(ty) == Class::General {
            return vec![self.cmp_general(op, x, y, ty.elem)];
        }
        let masks = self.each_pair(x, y, |s, a, b| s.cmp_part(op, a, b, ty));
        match ty.lanes {
            1 => vec![self.mask_to_scalar(masks[0])],
            _ => masks,
        }
    }

    /// The mask of one part: in a mask register, or all ones in a vector.
    pub(super) fn cmp_part(&mut self, op: CmpOp, a: V, b: V, ty: Type) -> V {
        let w = self.shape(ty).width;
        if ty.elem.is_float() {
            // Predicates: equal, less, less or equal, all false with NaN, and not equal, true with NaN.
            let imm = match op {
                CmpOp::Eq => 0,
                CmpOp::Ne => 4,
                CmpOp::LtF | CmpOp::LtS | CmpOp::LtU => 17,
                CmpOp::LeF | CmpOp::LeS | CmpOp::LeU => 18,
            };
            let forms: [&'static Form; 2] = match ty.elem {
                Elem::F32 => [&f::VCMPPS, &f::KCMPPS],
                _ => [&f::VCMPPD, &f::KCMPPD],
            };
            return match self.wide {
                true => self.cmp_k(forms[1], w, a, b, imm),
                false => self.rvm_imm(forms[0], w, a, b, imm),
            };
        }
        let bits = ty.elem.bits();
        if self.wide {
            let imm = match op {
                CmpOp::Eq => 0,
                CmpOp::Ne => 4,
                CmpOp::LtS | CmpOp::LtU | CmpOp::LtF => 1,
                CmpOp::LeS | CmpOp::LeU | CmpOp::LeF => 2,
            };
            let form: &'static Form = match op {
                CmpOp::LtU | CmpOp::LeU => {
                    pick(bits, [&f::KCMPUB, &f::KCMPUW, &f::KCMPUD, &f::KCMPUQ])
                }
                _ => pick(bits, [&f::KCMPB, &f::KCMPW, &f::KCMPD, &f::KCMPQ]),
            };
            return self.cmp_k(form, w, a, b, imm);
        }
        self.cmp_narrow(op, a, b, bits, w)
    }

    fn cmp_k(&mut self, form: &'static Form, w: Width, a: V, b: V, imm: u8) -> V {
        let src = [Src::Value(a), Src::Value(b), Src::None];
        self.code.form(form, w, Class::Mask, src, Some(imm))
    }

    /// AVX2 compares integers for equality and signed order only.
    fn cmp_narrow(&mut self, op: CmpOp, mut a: V, mut b: V, bits: u32, w: Width) -> V {
        let equal: &'static Form = pick(bits, [&f::PCMPEQB, &f::PCMPEQW, &f::PCMPEQD, &f::PCMPEQQ]);
        let greater: &'static Form =
            pick(bits, [&f::PCMPGTB, &f::PCMPGTW, &f::PCMPGTD, &f::PCMPGTQ]);
        if matches!(op, CmpOp::LtU | CmpOp::LeU) {
            let flip = self.splat_constant(sign(bits), bits);
            (a, b) = (
                self.rvm(&f::PXORD, w, a, flip),
                self.rvm(&f::PXORD, w, b, flip),
            );
        }
        let (mask, negate) = match op {
            CmpOp::Eq => (self.rvm(equal, w, a, b), false),
            CmpOp::Ne => (self.rvm(equal, w, a, b), true),
            CmpOp::LtS | CmpOp::LtU | CmpOp::LtF => (self.rvm(greater, w, b, a), false),
            CmpOp::LeS | CmpOp::LeU | CmpOp::LeF => (self.rvm(greater, w, a, b), true),
        };
        if !negate {
            return mask;
        }
        let ones = self.splat_constant(u64::MAX, 64);
        self.rvm(&f::PXORD, w, mask, ones)
    }

    pub(super) fn select(&mut self, mask: Reg, x: Reg, y: Reg, ty: Type) -> Vec<V> {
        if self.class(ty) == Class::General {
            let m = Src::Value(self.one(mask));
            let (x, y) = (self.int_src(x), self.int_src(y));
            return vec![self.code.general(What::Choose, &[m, x, y])];
        }
        let masks = match ty.lanes {
            1 => {
                let m = self.one(mask);
                vec![self.mask_from_scalar(m, 1)]
            }
            _ => self.parts(mask),
        };
        let (x, y) = (self.parts(x), self.parts(y));
        (masks.into_iter().zip(x).zip(y))
            .map(|((m, a), b)| self.choose_part(m, a, b, ty))
            .collect()
    }

    /// `mask ? a : b` of one part.
    pub(super) fn choose_part(&mut self, mask: V, a: V, b: V, ty: Type) -> V {
        let w = self.shape(ty).width;
        let form: &'static Form = match (ty.elem, self.wide) {
            (Elem::F32, true) => &f::KBLENDPS,
            (Elem::F64, true) => &f::KBLENDPD,
            (e, true) => pick(
                e.bits(),
                [&f::KBLENDB, &f::KBLENDW, &f::KBLENDD, &f::KBLENDQ],
            ),
            (Elem::F32, false) => &f::BLENDVPS,
            (Elem::F64, false) => &f::BLENDVPD,
            (_, false) => &f::PBLENDVB,
        };
        let src = [Src::Value(b), Src::Value(a), Src::Value(mask)];
        self.code.form(form, w, Class::Vector, src, None)
    }

    pub(super) fn fma(&mut self, x: Reg, y: Reg, z: Reg, ty: Type) -> Vec<V> {
        let w = self.shape(ty).width;
        let (x, y, z) = (self.parts(x), self.parts(y), self.parts(z));
        (x.into_iter().zip(y).zip(z))
            .map(|((a, b), c)| {
                let v = self.code.value(Class::Vector);
                let src = [a, b, c].map(Src::Value);
                let wide = ty.elem == Elem::F64;
                self.code.push(What::Fma(wide), Some(v), &src).width = w;
                v
            })
            .collect()
    }

    /// All lanes combined: the upper half of them with the lower, again and again.
    pub(super) fn reduce(&mut self, op: BinOp, x: Reg) -> V {
        let ty = self.ty(x);
        if ty.lanes == 1 {
            return self.one(x);
        }
        let mut parts = self.parts(x);
        if !self.has_form(op, ty.elem) {
            let mut lanes: Vec<V> = (0..usize::from(ty.lanes))
                .map(|k| self.lane_of(&parts, ty, k))
                .collect();
            while lanes.len() > 1 {
                let upper = lanes.split_off(lanes.len() / 2);
                lanes = (lanes.into_iter().zip(upper))
                    .map(|(a, b)| self.binary_scalar(op, a, b, ty.elem))
                    .collect();
            }
            return lanes[0];
        }
        while parts.len() > 1 {
            let upper = parts.split_off(parts.len() / 2);
            parts = (parts.into_iter().zip(upper))
                .map(|(a, b)| self.binary_part(op, a, b, ty))
                .collect();
        }
        let mut lanes = self.shape(ty).lanes;
        let mut v = parts[0];
        while lanes > 1 {
            lanes /= 2;
            let upper = self.moved_down(v, lanes * ty.elem.bits() as usize / 8);
            let half = Type {
                lanes: if lanes == 1 { 2 } else { lanes as u16 },
                ..ty
            };
            v = self.binary_part(op, v, upper, half);
        }
        if ty.elem.is_float() {
            return v;
        }
        self.in_general(v, ty.elem)
    }
}

/// The form for elements of 8, 16, 32 or 64 bits.
pub(super) fn pick(bits: u32, forms: [&'static Form; 4]) -> &'static Form {
    forms[bits.trailing_zeros() as usize - 3]
}

fn integer(op: Alu, bits: u32) -> &'static Form {
    match op {
        Alu::Add => pick(bits, [&f::PADDB, &f::PADDW, &f::PADDD, &f::PADDQ]),
        _ => pick(bits, [&f::PSUBB, &f::PSUBW, &f::PSUBD, &f::PSUBQ]),
    }
}

pub(super) fn and(bits: u32) -> &'static Form {
    if bits == 64 { &f::PANDQ } else { &f::PANDD }
}

pub(super) fn or(bits: u32) -> &'static Form {
    if bits == 64 { &f::PORQ } else { &f::PORD }
}

pub(super) fn xor(bits: u32) -> &'static Form {
    if bits == 64 { &f::PXORQ } else { &f::PXORD }
}

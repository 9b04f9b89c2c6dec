//! Conversions, which change the number of parts.

use super::*;

impl Select<'_> {
    pub(super) fn convert(&mut self, f: Conv, x: Reg, to: Type) -> Vec<V> {
        let from = self.ty(x);
        if let Some(Value::Memory(place)) = self.values[x.0 as usize] {
            return self.widen_from(f, place, from, to);
        }
        let parts = self.parts(x);
        if to.lanes == 1 {
            return vec![self.convert_one(f, parts[0], from, to)];
        }
        match f {
            Conv::SExt => self.widen(&parts, from, to, true),
            Conv::ZExt => self.widen(&parts, from, to, false),
            Conv::Wrap => self.narrow(parts, from, to, false),
            Conv::Mask => self.convert_masks(parts, from, to),
            Conv::Bits => parts,
            Conv::Half if to.elem.is_float() => self.widen_with(&f::CVTPH2PS, &parts, from, to),
            Conv::Half => self.shrink_with(&f::CVTPS2PH, Some(0), parts, from, to),
            Conv::Float => self.float_to_float(&parts, from, to),
            Conv::SToF | Conv::UToF => self.int_to_float(&parts, from, to, f == Conv::SToF),
            Conv::FToS | Conv::FToU => self.float_to_int(&parts, from, to, f == Conv::FToS),
        }
    }

    /// Widens elements as they are loaded.
    fn widen_from(&mut self, f: Conv, place: Place, from: Type, to: Type) -> Vec<V> {
        let form = match f {
            Conv::Half => &f::CVTPH2PS,
            _ => widening(from, to, f == Conv::SExt),
        };
        let shape = self.shape(to);
        let step = shape.lanes * from.elem.bits() as usize / 8;
        (0..shape.parts)
            .map(|p| {
                let part = Place {
                    disp: place.disp + (p * step) as i32,
                    ..place
                };
                self.load_from(form, shape.width, part, None)
            })
            .collect()
    }

    /// Of one lane.
    fn convert_one(&mut self, f: Conv, v: V, from: Type, to: Type) -> V {
        let signed = matches!(f, Conv::SExt | Conv::SToF | Conv::FToS);
        match f {
            Conv::SExt | Conv::ZExt => self.extended(v, from.elem, signed),
            Conv::Wrap | Conv::Mask => v,
            Conv::Half if to.elem.is_float() => {
                let v = self.in_vector(v, from.elem);
                self.rm(&f::CVTPH2PS, Width::W128, Class::Vector, v)
            }
            Conv::Half => {
                let v = self.mr(&f::CVTPS2PH, Width::W128, Class::Vector, v, Some(0));
                self.in_general(v, to.elem)
            }
            Conv::Bits if to.elem.is_float() => self.in_vector(v, from.elem),
            Conv::Bits => self.in_general(v, from.elem),
            Conv::Float => self.float_to_float(&[v], from, to)[0],
            Conv::SToF | Conv::UToF if signed || from.elem.bits() < 64 => {
                let v = self.extended(v, from.elem, signed);
                self.long_to_float(v, to.elem)
            }
            Conv::SToF | Conv::UToF => {
                let v = self.in_vector(v, from.elem);
                self.int_to_float(&[v], from, to, signed)[0]
            }
            Conv::FToS if to.elem.bits() == 64 && !self.wide => self.float_to_long(v, from),
            Conv::FToS | Conv::FToU => {
                let v = self.float_to_int(&[v], from, to, signed)[0];
                self.in_general(v, to.elem)
            }
        }
    }

    /// A signed 64-bit integer to the nearest float.
    fn long_to_float(&mut self, v: V, to: Elem) -> V {
        let form = if to == Elem::F32 {
            &f::CVTSI2SS
        } else {
            &f::CVTSI2SD
        };
        let zero = self.splat_constant(0, 64);
        self.rvm(form, Width::W128, zero, v)
    }

    /// One float to a signed 64-bit integer, saturating.
    fn float_to_long(&mut self, v: V, from: Type) -> V {
        let double = Type {
            elem: Elem::F64,
            lanes: 1,
        };
        let v = self.float_to_float(&[v], from, double)[0];
        let limit = self.splat_constant(2f64.powi(63).to_bits(), 64);
        let r = self.rm(&f::CVTTSD2SI, Width::W128, Class::General, v);
        let over = self.cmp_part(CmpOp::LeF, limit, v, double);
        let over = self.in_general(over, Elem::I64);
        let r = self.alu(Alu::Xor, Src::Value(r), Src::Value(over));
        let number = self.cmp_part(CmpOp::Eq, v, v, double);
        let number = self.in_general(number, Elem::I64);
        self.alu(Alu::And, Src::Value(r), Src::Value(number))
    }

    /// The lanes of each part of `to`, at the bottom of a register, of narrower parts.
    fn pieces(&mut self, parts: &[V], from: Type, to: Type) -> Vec<V> {
        let (have, want) = (self.shape(from), self.shape(to));
        (0..want.parts)
            .map(|p| {
                let first = p * want.lanes;
                let offset = first % have.lanes * from.elem.bits() as usize / 8;
                self.moved_down(parts[first / have.lanes], offset)
            })
            .collect()
    }

    /// Converts part by part to wider lanes.
    fn widen_with(&mut self, form: &'static Form, parts: &[V], from: Type, to: Type) -> Vec<V> {
        let width = self.shape(to).width;
        let pieces = self.pieces(parts, from, to);
        pieces
            .into_iter()
            .map(|v| self.rm(form, width, Class::Vector, v))
            .collect()
    }

    /// Converts part by part to lanes of half the size.
    fn halve_with(&mut self, form: &'static Form, parts: &[V], from: Type, to: Type) -> Vec<V> {
        let shape = self.shape(from);
        let halves: Vec<V> = parts
            .iter()
            .map(|v| self.rm(form, shape.width, Class::Vector, *v))
            .collect();
        self.side_by_side(halves, shape.lanes * to.elem.bits() as usize / 8, to)
    }

    /// Registers with so many bytes each as the parts of a type.
    fn side_by_side(&mut self, mut pieces: Vec<V>, mut size: usize, to: Type) -> Vec<V> {
        let shape = self.shape(to);
        if size == 8 && pieces.len() > 1 {
            pieces = pieces
                .chunks(2)
                .map(|pair| self.rvm(&f::PUNPCKLQDQ, Width::W128, pair[0], pair[1]))
                .collect();
            size = 16;
        }
        let per = pieces.len() / shape.parts;
        pieces
            .chunks(per)
            .map(|some| self.joined(some.to_vec(), size))
            .collect()
    }

    /// Integers, or vector masks, with more bits.
    fn widen(&mut self, parts: &[V], from: Type, to: Type, signed: bool) -> Vec<V> {
        self.widen_with(widening(from, to, signed), parts, from, to)
    }

    /// The low bits of integers, or vector masks with fewer bits.
    fn narrow(&mut self, parts: Vec<V>, from: Type, to: Type, mask: bool) -> Vec<V> {
        if !self.wide {
            return self.narrow_pairs(parts, from, to, mask);
        }
        let form = match (from.elem.bits(), to.elem.bits()) {
            (64, 32) => &f::PMOVQD,
            (64, 16) => &f::PMOVQW,
            (64, _) => &f::PMOVQB,
            (32, 16) => &f::PMOVDW,
            (32, _) => &f::PMOVDB,
            _ => &f::PMOVWB,
        };
        self.shrink_with(form, None, parts, from, to)
    }

    /// Converts part by part to smaller lanes, with a form whose result takes the place of memory.
    fn shrink_with(
        &mut self,
        form: &'static Form,
        imm: Option<u8>,
        parts: Vec<V>,
        from: Type,
        to: Type,
    ) -> Vec<V> {
        let shape = self.shape(from);
        let pieces: Vec<V> = (parts.into_iter())
            .map(|v| self.mr(form, shape.width, Class::Vector, v, imm))
            .collect();
        self.side_by_side(pieces, shape.lanes * to.elem.bits() as usize / 8, to)
    }

    /// By halving the bits of two registers at a time.
    fn narrow_pairs(&mut self, mut parts: Vec<V>, from: Type, to: Type, mask: bool) -> Vec<V> {
        let w = Width::W256;
        let mut bits = from.elem.bits();
        while bits > to.elem.bits() {
            bits /= 2;
            if bits < 32 && !mask {
                let keep = self.splat_constant((1 << bits) - 1, 2 * bits);
                parts = parts
                    .into_iter()
                    .map(|v| self.rvm(&f::PANDD, w, v, keep))
                    .collect();
            }
            let form: &'static Form = match (bits, mask) {
                (16, false) => &f::PACKUSDW,
                (16, true) => &f::PACKSSDW,
                (_, false) => &f::PACKUSWB,
                (_, true) => &f::PACKSSWB,
            };
            parts = parts
                .chunks(2)
                .map(|pair| {
                    let (a, b) = (pair[0], *pair.last().unwrap_or(&pair[0]));
                    let mixed = match bits {
                        32 => self.rvm_imm(&f::SHUFPS, w, a, b, 0x88),
                        _ => self.rvm(form, w, a, b),
                    };
                    // Both registers' lower halves came first.
                    self.rm_imm(&f::PERMQ, w, Class::Vector, mixed, 0xD8)
                })
                .collect();
        }
        parts
    }

    /// A mask for elements of another width.
    pub(super) fn convert_masks(&mut self, parts: Vec<V>, from: Type, to: Type) -> Vec<V> {
        let (a, b) = (from.elem.bits(), to.elem.bits());
        if a == b || from.lanes == 1 {
            return parts;
        }
        if !self.wide {
            return match a < b {
                true => self.widen(&parts, from, to, true),
                false => self.narrow(parts, from, to, true),
            };
        }
        let (have, want) = (self.shape(from), self.shape(to));
        let k = |s: &mut Self, form, v, imm| {
            let src = [Src::None, Src::Value(v), Src::None];
            s.code.form(form, Width::W128, Class::Mask, src, imm)
        };
        if want.parts > have.parts {
            let clean: &'static Form = match want.lanes {
                8 => &f::KMOVB,
                16 => &f::KMOVW,
                _ => &f::KMOVD,
            };
            return (0..want.parts)
                .map(|p| {
                    let first = p * want.lanes;
                    let mut v = parts[first / have.lanes];
                    let down = first % have.lanes;
                    if down > 0 {
                        v = k(self, &f::KSHIFTR, v, Some(down as u8));
                    }
                    k(self, clean, v, None)
                })
                .collect();
        }
        let per = have.parts / want.parts;
        parts
            .chunks(per)
            .map(|some| {
                let mut all = some[0];
                for (i, v) in some.iter().enumerate().skip(1) {
                    let up = k(self, &f::KSHIFTL, *v, Some((i * have.lanes) as u8));
                    let src = [Src::Value(all), Src::Value(up), Src::None];
                    all = self.code.form(&f::KOR, Width::W256, Class::Mask, src, None);
                }
                all
            })
            .collect()
    }

    fn float_to_float(&mut self, parts: &[V], from: Type, to: Type) -> Vec<V> {
        match (from.elem, to.elem) {
            (Elem::F32, Elem::F64) => self.widen_with(&f::CVTPS2PD, parts, from, to),
            (Elem::F64, Elem::F32) => self.halve_with(&f::CVTPD2PS, parts, from, to),
            _ => parts.to_vec(),
        }
    }

    fn int_to_float(&mut self, parts: &[V], from: Type, to: Type, signed: bool) -> Vec<V> {
        let w = self.shape(to).width;
        let each = |s: &mut Self, form: &'static Form| -> Vec<V> {
            parts
                .iter()
                .map(|v| s.rm(form, w, Class::Vector, *v))
                .collect()
        };
        match (from.elem.bits(), to.elem.bits(), signed) {
            (32, 32, true) => each(self, &f::CVTDQ2PS),
            (32, 32, false) if self.wide => each(self, &f::CVTUDQ2PS),
            (32, 32, false) => parts.iter().map(|v| self.halves_to_float(*v, w)).collect(),
            (32, _, true) => self.widen_with(&f::CVTDQ2PD, parts, from, to),
            (32, _, false) if self.wide => self.widen_with(&f::CVTUDQ2PD, parts, from, to),
            (32, _, false) => {
                let long = Type {
                    elem: Elem::I64,
                    ..to
                };
                // With the exponent of 2^52 the integer is the significand's end.
                let wide = self.widen(parts, from, long, false);
                let base = self.splat_constant(2f64.powi(52).to_bits(), 64);
                (wide.into_iter())
                    .map(|v| {
                        let v = self.rvm(&f::PORQ, w, v, base);
                        self.rvm(&f::SUBPD, w, v, base)
                    })
                    .collect()
            }
            (_, 64, true) if self.wide => each(self, &f::CVTQQ2PD),
            (_, 64, false) if self.wide => each(self, &f::CVTUQQ2PD),
            (_, _, true) if self.wide => self.halve_with(&f::CVTQQ2PS, parts, from, to),
            (_, _, false) if self.wide => self.halve_with(&f::CVTUQQ2PS, parts, from, to),
            (_, _, true) => self.convert_lanes(parts, from, to, |s, v| {
                let y = s.long_to_float(v, to.elem);
                s.in_general(y, to.elem)
            }),
            _ => self.lacks(to),
        }
    }

    /// Unsigned integers as the sum of two floats, of their upper and lower halves.
    fn halves_to_float(&mut self, v: V, w: Width) -> V {
        let high = self.rm_imm(&f::PSRLD, w, Class::Vector, v, 16);
        let high = self.rm(&f::CVTDQ2PS, w, Class::Vector, high);
        let scale = self.splat_constant(u64::from(65_536f32.to_bits()), 32);
        let high = self.rvm(&f::MULPS, w, high, scale);
        let mask = self.splat_constant(0xFFFF, 32);
        let low = self.rvm(&f::PANDD, w, v, mask);
        let low = self.rm(&f::CVTDQ2PS, w, Class::Vector, low);
        self.rvm(&f::ADDPS, w, high, low)
    }

    /// Converts lanes as integers in general registers, one after the other.
    fn convert_lanes(
        &mut self,
        parts: &[V],
        from: Type,
        to: Type,
        one: impl Fn(&mut Self, V) -> V,
    ) -> Vec<V> {
        let shape = self.shape(to);
        (0..shape.parts)
            .map(|p| {
                self.gathered(shape.lanes, to.elem, &mut |s, k| {
                    let v = s.lane_of(parts, from, p * shape.lanes + k);
                    Src::Value(one(s, v))
                })
            })
            .collect()
    }

    fn float_to_int(&mut self, parts: &[V], from: Type, to: Type, signed: bool) -> Vec<V> {
        let w = self.shape(from).width;
        let constant = |s: &mut Self, x: f64| match from.elem {
            Elem::F32 => s.splat_constant(u64::from((x as f32).to_bits()), 32),
            _ => s.splat_constant(x.to_bits(), 64),
        };
        if to.elem.bits() == 64 {
            if !self.wide {
                return match signed {
                    true => self.convert_lanes(parts, from, to, |s, v| {
                        s.float_to_long(v, Type { lanes: 1, ..from })
                    }),
                    false => self.lacks(to),
                };
            }
            let double = Type {
                elem: Elem::F64,
                ..to
            };
            let parts = self.float_to_float(parts, from, double);
            return (parts.into_iter())
                .map(|v| self.double_to_long(v, to, signed))
                .collect();
        }
        match (from.elem, signed) {
            (Elem::F32, true) => {
                let limit = constant(self, 2f64.powi(31));
                let most = self.splat_constant(0x7FFF_FFFF, 32);
                let forms = &f::CVTTPS2DQ;
                parts
                    .iter()
                    .map(|v| self.saturated(forms, *v, limit, most, from, to))
                    .collect()
            }
            (Elem::F32, false) => parts
                .iter()
                .map(|v| self.float_to_unsigned(*v, from, to))
                .collect(),
            (_, true) => {
                let (zero, low, high) = (
                    constant(self, 0.0),
                    constant(self, -2f64.powi(31)),
                    constant(self, 2f64.powi(31) - 1.0),
                );
                let clamped: Vec<V> = (parts.iter())
                    .map(|v| {
                        let nan = self.cmp_part(CmpOp::Ne, *v, *v, from);
                        let v = self.choose_part(nan, zero, *v, from);
                        let v = self.rvm(&f::MAXPD, w, v, low);
                        self.rvm(&f::MINPD, w, v, high)
                    })
                    .collect();
                self.halve_with(&f::CVTTPD2DQ, &clamped, from, to)
            }
            (_, false) => {
                let (zero, high) = (constant(self, 0.0), constant(self, 2f64.powi(32) - 1.0));
                // NaN gives the second operand.
                let clamped: Vec<V> = (parts.iter())
                    .map(|v| {
                        let v = self.rvm(&f::MAXPD, w, *v, zero);
                        self.rvm(&f::MINPD, w, v, high)
                    })
                    .collect();
                if self.wide {
                    return self.halve_with(&f::CVTTPD2UDQ, &clamped, from, to);
                }
                let middle = constant(self, 2f64.powi(31));
                let moved: Vec<V> = (clamped.into_iter())
                    .map(|v| {
                        let v = self.rm_imm(&f::ROUNDPD, w, Class::Vector, v, 11);
                        self.rvm(&f::SUBPD, w, v, middle)
                    })
                    .collect();
                let flip = self.splat_constant(0x8000_0000, 32);
                let w = self.shape(to).width;
                let halves = self.halve_with(&f::CVTTPD2DQ, &moved, from, to);
                halves
                    .into_iter()
                    .map(|v| self.rvm(&f::PXORD, w, v, flip))
                    .collect()
            }
        }
    }

    /// Truncation with the largest integer from `limit` on and 0 for NaN; the instruction gives the least for both.
    fn saturated(
        &mut self,
        form: &'static Form,
        v: V,
        limit: V,
        most: V,
        from: Type,
        to: Type,
    ) -> V {
        let w = self.shape(to).width;
        let r = self.rm(form, w, Class::Vector, v);
        let over = self.cmp_part(CmpOp::LeF, limit, v, from);
        let r = self.choose_part(over, most, r, to);
        let zero = self.splat_constant(0, 64);
        let nan = self.cmp_part(CmpOp::Ne, v, v, from);
        self.choose_part(nan, zero, r, to)
    }

    fn float_to_unsigned(&mut self, v: V, from: Type, to: Type) -> V {
        let w = self.shape(to).width;
        let zero = self.splat_constant(0, 64);
        let v = self.rvm(&f::MAXPS, w, v, zero);
        if self.wide {
            return self.rm(&f::CVTTPS2UDQ, w, Class::Vector, v);
        }
        let middle = self.splat_constant(u64::from(2f32.powi(31).to_bits()), 32);
        let upper = self.cmp_part(CmpOp::LeF, middle, v, from);
        let less = self.rvm(&f::PANDD, w, upper, middle);
        let rest = self.rvm(&f::SUBPS, w, v, less);
        let r = self.rm(&f::CVTTPS2DQ, w, Class::Vector, rest);
        let sign = self.splat_constant(0x8000_0000, 32);
        let flip = self.rvm(&f::PANDD, w, upper, sign);
        let r = self.rvm(&f::PXORD, w, r, flip);
        let end = self.splat_constant(u64::from(2f32.powi(32).to_bits()), 32);
        let over = self.cmp_part(CmpOp::LeF, end, v, from);
        self.rvm(&f::PORD, w, r, over)
    }

    /// AVX-512 only.
    fn double_to_long(&mut self, v: V, to: Type, signed: bool) -> V {
        let w = self.shape(to).width;
        let double = Type {
            elem: Elem::F64,
            ..to
        };
        if !signed {
            let zero = self.splat_constant(0, 64);
            let v = self.rvm(&f::MAXPD, w, v, zero);
            return self.rm(&f::CVTTPD2UQQ, w, Class::Vector, v);
        }
        let limit = self.splat_constant(2f64.powi(63).to_bits(), 64);
        let most = self.splat_constant(i64::MAX as u64, 64);
        self.saturated(&f::CVTTPD2QQ, v, limit, most, double, to)
    }
}

/// The form that gives integers more bits.
fn widening(from: Type, to: Type, signed: bool) -> &'static Form {
    let forms: [&'static Form; 2] = match (from.elem.bits(), to.elem.bits()) {
        (8, 16) => [&f::PMOVZXBW, &f::PMOVSXBW],
        (8, 32) => [&f::PMOVZXBD, &f::PMOVSXBD],
        (8, _) => [&f::PMOVZXBQ, &f::PMOVSXBQ],
        (16, 32) => [&f::PMOVZXWD, &f::PMOVSXWD],
        (16, _) => [&f::PMOVZXWQ, &f::PMOVSXWQ],
        _ => [&f::PMOVZXDQ, &f::PMOVSXDQ],
    };
    forms[usize::from(signed)]
}

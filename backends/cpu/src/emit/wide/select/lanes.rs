//! Lanes as scalars and scalars as lanes.

use super::super::encode::Bmi;
use super::*;

impl Select<'_> {
    /// Every lane the same.
    pub(super) fn splat(&mut self, x: Reg, ty: Type) -> Vec<V> {
        let shape = self.shape(ty);
        let bits = ty.elem.bits();
        let v = self.one(x);
        let v = match self.class(ty) {
            Class::Mask => self.mask_from_scalar(v, shape.lanes),
            _ => {
                let low = match (ty.elem.is_float(), ty.elem.is_mask()) {
                    (true, _) => v,
                    (_, true) => self.mask_from_scalar(v, 1),
                    _ => self.in_vector(v, ty.elem),
                };
                self.broadcast(low, bits, shape.width)
            }
        };
        vec![v; shape.parts]
    }

    fn broadcast(&mut self, low: V, bits: u32, width: Width) -> V {
        let form = arithmetic::pick(
            bits,
            [
                &f::BROADCASTB,
                &f::BROADCASTW,
                &f::BROADCASTD,
                &f::BROADCASTQ,
            ],
        );
        self.rm(form, width, Class::Vector, low)
    }

    /// `base + k * step` in lane `k`.
    pub(super) fn ramp(&mut self, base: Reg, step: i64, ty: Type) -> Vec<V> {
        let shape = self.shape(ty);
        let size = ty.elem.bits() as usize / 8;
        let start = self.splat(base, ty)[0];
        (0..shape.parts)
            .map(|p| {
                let offset = |k: usize| ((p * shape.lanes + k) as i64).wrapping_mul(step);
                let mut bytes: Vec<u8> = (0..shape.lanes)
                    .flat_map(|k| offset(k).to_le_bytes()[..size].to_vec())
                    .collect();
                // A spilled constant is loaded whole.
                bytes.resize(if self.wide { 64 } else { 32 }, 0);
                let offsets = self.code.constant(Constant::Bytes(bytes));
                let form =
                    arithmetic::pick(ty.elem.bits(), [&f::PADDB, &f::PADDW, &f::PADDD, &f::PADDQ]);
                self.rvm(form, shape.width, start, offsets)
            })
            .collect()
    }

    /// The lanes below a count.
    pub(super) fn tail(&mut self, count: Reg, ty: Type) -> Vec<V> {
        let shape = self.shape(ty);
        let count = self.one(count);
        if self.wide {
            let ones = self.int(-1);
            let keep = What::Bmi(Bmi::KeepBelow);
            let all = self
                .code
                .general(keep, &[Src::Value(ones), Src::Value(count)]);
            return (0..shape.parts)
                .map(|p| {
                    let at = (p * shape.lanes) as u8;
                    let mut part = Src::Value(all);
                    if at > 0 {
                        let v = self.code.value(Class::General);
                        self.code.push(What::Shift(5), Some(v), &[part]).imm = Some(at);
                        part = Src::Value(v);
                    }
                    if shape.lanes < 64 {
                        let bits = self.int((1i64 << shape.lanes) - 1);
                        part = Src::Value(self.alu(Alu::And, part, Src::Value(bits)));
                    }
                    let src = [Src::None, part, Src::None];
                    self.code
                        .form(&f::KMOV_KR, Width::W128, Class::Mask, src, None)
                })
                .collect();
        }
        let elem = Elem::int(ty.elem.bits());
        let int = Type { elem, ..ty };
        let low = self.in_vector(count, elem);
        let count = self.broadcast(low, elem.bits(), shape.width);
        (0..shape.parts)
            .map(|p| {
                let size = elem.bits() as usize / 8;
                let mut bytes: Vec<u8> = (0..shape.lanes)
                    .flat_map(|k| (p * shape.lanes + k).to_le_bytes()[..size].to_vec())
                    .collect();
                bytes.resize(32, 0);
                let own = self.code.constant(Constant::Bytes(bytes));
                self.cmp_part(CmpOp::LtS, own, count, int)
            })
            .collect()
    }

    /// Scalars as lanes: floats in vector registers, others in general ones.
    pub(super) fn pack(&mut self, all: &[V], ty: Type) -> Vec<V> {
        if ty.lanes == 1 {
            return all.to_vec();
        }
        let lane = |s: &mut Self, v: V| match ty.elem.is_float() {
            true => s.in_general(v, ty.elem),
            false => v,
        };
        all.chunks(self.shape(ty).lanes)
            .map(|lanes| {
                self.gathered(lanes.len(), ty.elem, &mut |s, k| {
                    Src::Value(lane(s, lanes[k]))
                })
            })
            .collect()
    }

    /// A part of so many lanes, each an integer in a general register or memory.
    pub(super) fn gathered(
        &mut self,
        count: usize,
        elem: Elem,
        lane: &mut dyn FnMut(&mut Self, usize) -> Src,
    ) -> V {
        let size = elem.bits() as usize / 8;
        let per = 16 / size;
        let insert: &'static Form = arithmetic::pick(
            elem.bits(),
            [&f::PINSRB, &f::PINSRW, &f::PINSRD, &f::PINSRQ],
        );
        let mut quarters = vec![];
        for first in (0..count).step_by(per) {
            let mut v = self.splat_constant(0, 64);
            for k in first..(first + per).min(count) {
                let src = [Src::Value(v), lane(self, k), Src::None];
                let imm = Some((k - first) as u8);
                v = self.code.form(insert, Width::W128, Class::Vector, src, imm);
            }
            quarters.push(v);
        }
        self.joined(quarters, 16)
    }

    /// Registers side by side, each of `size` bytes (16 or 32).
    pub(super) fn joined(&mut self, mut parts: Vec<V>, mut size: usize) -> V {
        while parts.len() > 1 {
            parts = parts
                .chunks(2)
                .map(|pair| {
                    let (form, width): (&'static Form, _) = match size {
                        16 => (&f::INSERT128, Width::W256),
                        _ => (&f::INSERT256, Width::W512),
                    };
                    self.rvm_imm(form, width, pair[0], pair[1], 1)
                })
                .collect();
            size *= 2;
        }
        parts[0]
    }

    /// The register moved down by so many bytes: a multiple of 16, or less than 16 within the lowest 16.
    pub(super) fn moved_down(&mut self, v: V, bytes: usize) -> V {
        match bytes {
            0 => v,
            32 => self.mr(&f::EXTRACT256, Width::W512, Class::Vector, v, Some(1)),
            16 | 48 => {
                let width = if self.wide { Width::W512 } else { Width::W256 };
                self.mr(
                    &f::EXTRACT128,
                    width,
                    Class::Vector,
                    v,
                    Some(bytes as u8 / 16),
                )
            }
            1..16 => self.rm_imm(&f::PSRLDQ, Width::W128, Class::Vector, v, bytes as u8),
            _ => {
                let v = self.moved_down(v, bytes & !15);
                self.moved_down(v, bytes & 15)
            }
        }
    }

    /// One lane of parts as a scalar.
    pub(super) fn lane_of(&mut self, parts: &[V], ty: Type, k: usize) -> V {
        let shape = self.shape(ty);
        let (part, k) = (parts[k / shape.lanes], k % shape.lanes);
        let bits = ty.elem.bits();
        if ty.elem.is_mask() {
            let all = self.mask_bits(part, bits);
            let step = if self.wide || bits >= 32 {
                1
            } else {
                bits as usize / 8
            };
            let v = self.code.value(Class::General);
            self.code
                .push(What::Shift(5), Some(v), &[Src::Value(all)])
                .imm = Some((k * step) as u8);
            return self.alu(Alu::And, Src::Value(v), Src::Int(1));
        }
        let at = k * bits as usize / 8;
        if ty.elem.is_float() {
            return self.moved_down(part, at);
        }
        let chunk = self.moved_down(part, at & !15);
        let form = arithmetic::pick(bits, [&f::PEXTRB, &f::PEXTRW, &f::PEXTRD, &f::PEXTRQ]);
        let within = (at & 15) * 8 / bits as usize;
        self.mr(form, Width::W128, Class::General, chunk, Some(within as u8))
    }

    pub(super) fn extract(&mut self, x: Reg, k: usize) -> V {
        let ty = self.ty(x);
        let parts = self.parts(x);
        match ty.lanes {
            1 => parts[0],
            _ => self.lane_of(&parts, ty, k),
        }
    }

    /// Computes lane by lane what has no vector form, on integers.
    pub(super) fn by_lane(
        &mut self,
        sources: &[Reg],
        ty: Type,
        mut one: impl FnMut(&mut Self, &[V]) -> V,
    ) -> Vec<V> {
        let shape = self.shape(ty);
        let all: Vec<Vec<V>> = sources.iter().map(|r| self.parts(*r)).collect();
        (0..shape.parts)
            .map(|p| {
                self.gathered(shape.lanes, ty.elem, &mut |s, k| {
                    let k = p * shape.lanes + k;
                    let lanes: Vec<V> = (sources.iter().zip(&all))
                        .map(|(r, parts)| s.lane_of(parts, s.ty(*r), k))
                        .collect();
                    Src::Value(one(s, &lanes))
                })
            })
            .collect()
    }

    /// Not 0 where any lane is set.
    pub(super) fn any(&mut self, mask: Reg) -> V {
        let ty = self.ty(mask);
        let parts = self.parts(mask);
        if ty.lanes == 1 {
            return parts[0];
        }
        let all = parts.into_iter().reduce(|a, b| match self.wide {
            true => {
                let src = [Src::Value(a), Src::Value(b), Src::None];
                self.code.form(&f::KOR, Width::W256, Class::Mask, src, None)
            }
            false => self.rvm(&f::PORD, self.shape(ty).width, a, b),
        });
        let all = all.unwrap_or_else(|| unreachable!("bug: a mask without parts"));
        self.mask_bits_of(all, ty)
    }

    /// [`Select::mask_bits`] of a part of this mask type.
    fn mask_bits_of(&mut self, part: V, ty: Type) -> V {
        if self.wide || self.shape(ty).width == Width::W256 {
            return self.mask_bits(part, ty.elem.bits());
        }
        self.rm(&f::PMOVMSKB, Width::W128, Class::General, part)
    }
}

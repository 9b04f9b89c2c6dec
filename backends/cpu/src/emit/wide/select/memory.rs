//! Loads and stores.

use super::super::code::Place as Address;
use super::*;
use crate::vector::Place;

impl Select<'_> {
    /// The address of a place's first element.
    pub(super) fn address(&mut self, place: &Place, size: u32) -> Address {
        let base = self.one(place.base);
        match place.index {
            Some(index) => self.beside(base, index, size),
            None => Address {
                base,
                index: None,
                disp: 0,
            },
        }
    }

    fn at(&self, place: Address, offset: usize) -> Address {
        Address {
            disp: place.disp + offset as i32,
            ..place
        }
    }

    pub(super) fn load(&mut self, place: &Place, guard: Option<Reg>, ty: Type) -> Vec<V> {
        let size = ty.elem.bits() / 8;
        if ty.lanes == 1 {
            let from = self.address(place, size);
            let guard = guard.map(|g| self.one(g));
            return vec![self.load_one(from, guard, ty.elem)];
        }
        match &place.pattern {
            Pattern::Dense => {
                let from = self.address(place, size);
                self.load_dense(from, guard, ty)
            }
            Pattern::Strided(stride) => {
                let from = self.address(place, size);
                self.load_strided(from, *stride, guard, ty)
            }
            Pattern::Each(offsets) => {
                let base = self.one(place.base);
                let offsets: Vec<Reg> = offsets.to_vec();
                self.gather(guard, ty, &mut |s, k| s.beside(base, offsets[k], size))
            }
        }
    }

    /// The place of an element at an offset in a register.
    fn beside(&mut self, base: V, offset: Reg, size: u32) -> Address {
        if let Some(bits) = self.known(offset)
            && let Ok(disp) = i32::try_from((bits as i64).wrapping_mul(i64::from(size)))
        {
            return Address {
                base,
                index: None,
                disp,
            };
        }
        Address {
            base,
            index: Some((self.one(offset), size.trailing_zeros() as u8)),
            disp: 0,
        }
    }

    /// An address that may be read whatever the guard: that of zeros where it is 0.
    fn safe(&mut self, place: Address, guard: V) -> Address {
        let address = self.code.general(What::Lea, &[Src::Mem(place)]);
        let zeros = self.word(self.arguments, super::ZEROS);
        let src = [guard, address, zeros].map(Src::Value);
        Address {
            base: self.code.general(What::Choose, &src),
            index: None,
            disp: 0,
        }
    }

    /// One element as a scalar.
    fn load_one(&mut self, place: Address, guard: Option<V>, elem: Elem) -> V {
        let place = match guard {
            Some(g) => self.safe(place, g),
            None => place,
        };
        match elem {
            Elem::F32 => self.load_from(&f::LD_SS, Width::W128, place, None),
            Elem::F64 => self.load_from(&f::LD_SD, Width::W128, place, None),
            e => {
                let what = What::Extend(e.bits() / 8, false);
                self.code.general(what, &[Src::Mem(place)])
            }
        }
    }

    pub(super) fn load_dense(&mut self, from: Address, guard: Option<Reg>, ty: Type) -> Vec<V> {
        let shape = self.shape(ty);
        let bits = ty.elem.bits();
        let step = shape.width.bytes() as usize;
        let Some(guard) = guard else {
            return (0..shape.parts)
                .map(|p| {
                    let place = self.at(from, p * step);
                    self.load_from(&f::MOVUPS, shape.width, place, None)
                })
                .collect();
        };
        if !self.wide && bits < 32 {
            return self.gather(Some(guard), ty, &mut |s, k| {
                s.at(from, k * bits as usize / 8)
            });
        }
        let masks = self.masks(guard, ty);
        (masks.into_iter().enumerate())
            .map(|(p, mask)| {
                let place = self.at(from, p * step);
                if self.wide {
                    let form =
                        arithmetic::pick(bits, [&f::MOVDQU8, &f::MOVDQU16, &f::MOVUPS, &f::MOVUPD]);
                    return self.load_from(form, shape.width, place, Some(mask));
                }
                let form = if bits == 32 {
                    &f::PMASKLDD
                } else {
                    &f::PMASKLDQ
                };
                let src = [Src::Value(mask), Src::Mem(place), Src::None];
                self.code.form(form, shape.width, Class::Vector, src, None)
            })
            .collect()
    }

    /// The parts of a guard for elements of this type.
    fn masks(&mut self, guard: Reg, ty: Type) -> Vec<V> {
        let (have, want) = (self.ty(guard), Type::mask(ty.elem.bits(), ty.lanes));
        let parts = self.parts(guard);
        self.convert_masks(parts, have, want)
    }

    /// One element at a time into vectors.
    fn gather(
        &mut self,
        guard: Option<Reg>,
        ty: Type,
        place: &mut dyn FnMut(&mut Self, usize) -> Address,
    ) -> Vec<V> {
        let shape = self.shape(ty);
        let guard = guard.map(|g| (self.ty(g), self.parts(g)));
        (0..shape.parts)
            .map(|p| {
                self.gathered(shape.lanes, ty.elem, &mut |s, k| {
                    let k = p * shape.lanes + k;
                    let mut from = place(s, k);
                    if let Some((ty, parts)) = &guard {
                        let g = s.lane_of(parts, *ty, k);
                        from = s.safe(from, g);
                    }
                    Src::Mem(from)
                })
            })
            .collect()
    }

    /// Lanes at a stride: dense where that is 1.
    fn load_strided(&mut self, from: Address, stride: Reg, guard: Option<Reg>, ty: Type) -> Vec<V> {
        let (other, after) = (self.code.label(), self.code.label());
        let class = self.class(ty);
        let results: Vec<V> = (0..self.shape(ty).parts)
            .map(|_| self.code.value(class))
            .collect();
        let step = self.one(stride);
        let place = self.code.general(What::Lea, &[Src::Mem(from)]);
        let from = Address {
            base: place,
            index: None,
            disp: 0,
        };
        self.code.push(
            What::JumpIf(Cc::NotZero, other),
            None,
            &[Src::Value(step), Src::Int(1)],
        );
        let dense = self.load_dense(from, guard, ty);
        self.copy_all(&results, &dense);
        self.code.push(What::Jump(after), None, &[]);
        self.label(other);
        let scattered = self.gather(guard, ty, &mut strided(place, step, ty));
        self.copy_all(&results, &scattered);
        self.label(after);
        results
    }

    fn copy_all(&mut self, to: &[V], from: &[V]) {
        for (to, from) in to.iter().zip(from) {
            self.code.push(What::Move, Some(*to), &[Src::Value(*from)]);
        }
    }

    pub(super) fn store(&mut self, place: &Place, value: Reg, guard: Option<Reg>) {
        let ty = self.ty(value);
        let size = ty.elem.bits() / 8;
        let parts = self.parts(value);
        if ty.lanes == 1 {
            let to = self.address(place, size);
            return self.store_one(to, parts[0], ty.elem);
        }
        match &place.pattern {
            Pattern::Dense => {
                let to = self.address(place, size);
                self.store_dense(to, &parts, guard, ty);
            }
            Pattern::Strided(stride) => {
                let to = self.address(place, size);
                let (other, after) = (self.code.label(), self.code.label());
                let step = self.one(*stride);
                let first = self.code.general(What::Lea, &[Src::Mem(to)]);
                let to = Address {
                    base: first,
                    index: None,
                    disp: 0,
                };
                self.code.push(
                    What::JumpIf(Cc::NotZero, other),
                    None,
                    &[Src::Value(step), Src::Int(1)],
                );
                self.store_dense(to, &parts, guard, ty);
                self.code.push(What::Jump(after), None, &[]);
                self.label(other);
                let mut places = strided(first, step, ty);
                self.scatter(&parts, guard, ty, &mut places);
                self.label(after);
            }
            Pattern::Each(offsets) => {
                let base = self.one(place.base);
                let offsets: Vec<Reg> = offsets.to_vec();
                self.scatter(&parts, guard, ty, &mut |s, k| {
                    s.beside(base, offsets[k], size)
                });
            }
        }
    }

    fn store_one(&mut self, to: Address, v: V, elem: Elem) {
        let what = match elem {
            Elem::F32 => What::Form(&f::ST_SS),
            Elem::F64 => What::Form(&f::ST_SD),
            e => What::Store(e.bits() / 8),
        };
        self.code.push(what, None, &[Src::Value(v), Src::Mem(to)]);
    }

    fn store_dense(&mut self, to: Address, parts: &[V], guard: Option<Reg>, ty: Type) {
        let shape = self.shape(ty);
        let bits = ty.elem.bits();
        if guard.is_some() && !self.wide && bits < 32 {
            return self.scatter(parts, guard, ty, &mut |s, k| {
                s.at(to, k * bits as usize / 8)
            });
        }
        let Some(guard) = guard else {
            return self.store_all(to, parts, shape);
        };
        let masks = self.masks(guard, ty);
        let form: &'static Form = match (self.wide, bits) {
            (true, _) => {
                arithmetic::pick(bits, [&f::ST_DQU8, &f::ST_DQU16, &f::ST_UPS, &f::ST_UPD])
            }
            (false, 32) => &f::PMASKSTD,
            _ => &f::PMASKSTQ,
        };
        self.store_parts(form, to, parts, shape, Some(&masks));
    }

    /// Whole parts: around the caches if the launch asks for it and they are aligned.
    fn store_all(&mut self, to: Address, parts: &[V], shape: Shape) {
        let least = if self.wide { Width::W512 } else { Width::W256 };
        if shape.width < least {
            return self.store_parts(&f::ST_UPS, to, parts, shape, None);
        }
        self.streams = true;
        let (around, after) = (self.code.label(), self.code.label());
        let start = self.code.general(What::Lea, &[Src::Mem(to)]);
        let mask = Src::Int(shape.width.bytes() as i32 - 1);
        let odd = self.alu(Alu::And, Src::Value(start), mask);
        let odd = self.alu(Alu::Or, Src::Value(odd), Src::Value(self.cached));
        let src = [Src::Value(odd), Src::Int(0)];
        self.code.push(What::JumpIf(Cc::Zero, around), None, &src);
        self.store_parts(&f::ST_UPS, to, parts, shape, None);
        self.code.push(What::Jump(after), None, &[]);
        self.label(around);
        self.store_parts(&f::ST_NTPS, to, parts, shape, None);
        self.label(after);
    }

    fn store_parts(
        &mut self,
        form: &'static Form,
        to: Address,
        parts: &[V],
        shape: Shape,
        masks: Option<&[V]>,
    ) {
        for (p, v) in parts.iter().enumerate() {
            let place = Src::Mem(self.at(to, p * shape.width.bytes() as usize));
            let mask = masks.map_or(Src::None, |m| Src::Value(m[p]));
            let src = [Src::Value(*v), place, mask];
            self.code.push(What::Form(form), None, &src).width = shape.width;
        }
    }

    /// One lane at a time to memory.
    fn scatter(
        &mut self,
        parts: &[V],
        guard: Option<Reg>,
        ty: Type,
        place: &mut dyn FnMut(&mut Self, usize) -> Address,
    ) {
        let guard = guard.map(|g| (self.ty(g), self.parts(g)));
        for k in 0..usize::from(ty.lanes) {
            let to = place(self, k);
            let skip = guard.as_ref().map(|(ty, masks)| {
                let set = self.lane_of(masks, *ty, k);
                let skip = self.code.label();
                self.code.push(
                    What::JumpIf(Cc::Zero, skip),
                    None,
                    &[Src::Value(set), Src::Int(0)],
                );
                skip
            });
            let v = self.lane_of(parts, ty, k);
            self.store_one(to, v, ty.elem);
            if let Some(skip) = skip {
                self.label(skip);
            }
        }
    }
}

/// Places at a stride, asked for in order.
fn strided<'p>(first: V, stride: V, ty: Type) -> impl FnMut(&mut Select<'p>, usize) -> Address {
    let log2 = (ty.elem.bits() / 8).trailing_zeros() as u8;
    let mut at = first;
    move |s, k| {
        if k > 0 {
            let next = Address {
                base: at,
                index: Some((stride, log2)),
                disp: 0,
            };
            at = s.code.general(What::Lea, &[Src::Mem(next)]);
        }
        Address {
            base: at,
            index: None,
            disp: 0,
        }
    }
}

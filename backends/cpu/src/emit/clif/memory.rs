//! Loads and stores.

use super::*;

impl Emit<'_> {
    pub(super) fn address(&mut self, place: &Place, size: u32) -> Value {
        let base = self.one(place.base);
        match place.index {
            None => base,
            Some(i) => self.offset(base, i, size),
        }
    }

    pub(super) fn offset(&mut self, base: Value, index: Reg, size: u32) -> Value {
        let index = self.one(index);
        let scaled = match size {
            1 => index,
            _ => self
                .f
                .ins()
                .ishl_imm_u(index, i64::from(size.trailing_zeros())),
        };
        self.f.ins().iadd(base, scaled)
    }

    pub(super) fn load(&mut self, place: &Place, guard: Option<Reg>, ty: Type) -> Parts {
        let size = ty.elem.bits() / 8;
        match &place.pattern {
            Pattern::Dense => {
                let address = self.address(place, size);
                match guard {
                    None => self.load_dense(address, ty),
                    Some(g) if ty.lanes == 1 => {
                        let g = self.one(g);
                        vec![self.load_lane(place, address, Some(g), ty.elem)]
                    }
                    Some(g) => self.load_guarded(place, address, g, ty),
                }
            }
            Pattern::Strided(stride) => {
                let address = self.address(place, size);
                self.load_strided(place, address, *stride, guard, ty)
            }
            Pattern::Each(offsets) => {
                let base = self.one(place.base);
                let addresses: Vec<Value> = offsets
                    .iter()
                    .map(|o| self.offset(base, *o, size))
                    .collect();
                self.gather(place, &addresses, guard, ty)
            }
        }
    }

    /// Lanes next to each other.
    pub(super) fn load_dense(&mut self, address: Value, ty: Type) -> Parts {
        if ty.lanes == 1 {
            return vec![self.f.ins().load(scalar_type(ty.elem), plain(), address, 0)];
        }
        let total = u32::from(ty.lanes) * ty.elem.bits() / 8;
        let vector = vector_type(ty.elem);
        if total >= VECTOR {
            return (0..total / VECTOR)
                .map(|p| {
                    self.f
                        .ins()
                        .load(vector, plain(), address, (p * VECTOR) as i32)
                })
                .collect();
        }
        let v = match total {
            8 => {
                let x = self.f.ins().load(I64, plain(), address, 0);
                self.f.ins().scalar_to_vector(I64X2, x)
            }
            4 => {
                let x = self.f.ins().load(I32, plain(), address, 0);
                self.f.ins().scalar_to_vector(I32X4, x)
            }
            _ => {
                let x = self.f.ins().uload16(I32, plain(), address, 0);
                self.f.ins().scalar_to_vector(I32X4, x)
            }
        };
        let have = if total == 8 { I64X2 } else { I32X4 };
        vec![if have == vector {
            v
        } else {
            self.f.ins().bitcast(vector, bits(), v)
        }]
    }

    /// One element; where the guard is 0 the start of the buffer is read instead and the value is 0.
    pub(super) fn load_lane(
        &mut self,
        place: &Place,
        address: Value,
        guard: Option<Value>,
        elem: Elem,
    ) -> Value {
        let ty = scalar_type(elem);
        let Some(g) = guard else {
            return self.f.ins().load(ty, plain(), address, 0);
        };
        let _ = place;
        let zeros = self.f.ins().load(I64, plain(), self.arguments, ZEROS);
        let address = self.f.ins().select(g, address, zeros);
        self.f.ins().load(ty, plain(), address, 0)
    }

    /// Dense lanes under a mask: one load when all are wanted, otherwise lane by lane.
    pub(super) fn load_guarded(
        &mut self,
        place: &Place,
        address: Value,
        guard: Reg,
        ty: Type,
    ) -> Parts {
        let Lanes::Bits(mask, full) = self.lane_bits(guard) else {
            unreachable!("bug: a scalar guard of a vector load")
        };
        let all = self.f.ins().icmp_imm_s(IntCC::Equal, mask, full);
        let size = i64::from(ty.elem.bits() / 8);
        self.either(
            all,
            ty,
            |s| s.load_dense(address, ty),
            |s| {
                let addresses: Vec<Value> = (0..i64::from(ty.lanes))
                    .map(|k| s.f.ins().iadd_imm_s(address, k * size))
                    .collect();
                s.gather(place, &addresses, Some(guard), ty)
            },
        )
    }

    pub(super) fn load_strided(
        &mut self,
        place: &Place,
        address: Value,
        stride: Reg,
        guard: Option<Reg>,
        ty: Type,
    ) -> Parts {
        let stride = self.one(stride);
        let mut dense = self.f.ins().icmp_imm_s(IntCC::Equal, stride, 1);
        if let Some(g) = guard
            && let Lanes::Bits(mask, full) = self.lane_bits(g)
        {
            let all = self.f.ins().icmp_imm_s(IntCC::Equal, mask, full);
            dense = self.f.ins().band(dense, all);
        }
        let size = i64::from((ty.elem.bits() / 8).trailing_zeros());
        self.either(
            dense,
            ty,
            |s| s.load_dense(address, ty),
            |s| {
                let addresses = s.strided(address, stride, size, ty.lanes);
                s.gather(place, &addresses, guard, ty)
            },
        )
    }

    pub(super) fn strided(
        &mut self,
        address: Value,
        stride: Value,
        size_log2: i64,
        lanes: u16,
    ) -> Vec<Value> {
        let step = self.f.ins().ishl_imm_u(stride, size_log2);
        let mut all = vec![address];
        for k in 1..usize::from(lanes) {
            all.push(self.f.ins().iadd(all[k - 1], step));
        }
        all
    }

    /// The parts of one of two ways to compute them.
    pub(super) fn either(
        &mut self,
        cond: Value,
        ty: Type,
        yes: impl FnOnce(&mut Self) -> Parts,
        no: impl FnOnce(&mut Self) -> Parts,
    ) -> Parts {
        let [then, other, after] = [0; 3].map(|_| self.f.create_block());
        self.f.ins().brif(cond, then, &[], other, &[]);
        let part = self.part_type(ty);
        let parts: Parts = (0..self.parts(ty))
            .map(|_| self.f.append_block_param(after, part))
            .collect();
        self.f.switch_to_block(then);
        let args: Vec<BlockArg> = yes(self).into_iter().map(BlockArg::Value).collect();
        self.f.ins().jump(after, &args);
        self.f.switch_to_block(other);
        let args: Vec<BlockArg> = no(self).into_iter().map(BlockArg::Value).collect();
        self.f.ins().jump(after, &args);
        self.f.switch_to_block(after);
        parts
    }

    pub(super) fn gather(
        &mut self,
        place: &Place,
        addresses: &[Value],
        guard: Option<Reg>,
        ty: Type,
    ) -> Parts {
        let guards = guard.map(|g| self.lanes(g));
        let all: Vec<Value> = (0..addresses.len())
            .map(|k| {
                let g = guards.as_ref().map(|g| g[k]);
                self.load_lane(place, addresses[k], g, ty.elem)
            })
            .collect();
        self.pack(ty, &all)
    }

    pub(super) fn store(&mut self, place: &Place, value: Reg) {
        let ty = self.ty(value);
        let size = ty.elem.bits() / 8;
        match &place.pattern {
            Pattern::Dense => {
                let address = self.address(place, size);
                self.store_dense(address, value);
            }
            Pattern::Strided(stride) => {
                let address = self.address(place, size);
                let stride = self.one(*stride);
                let dense = self.f.ins().icmp_imm_s(IntCC::Equal, stride, 1);
                let [then, other, after] = [0; 3].map(|_| self.f.create_block());
                self.f.ins().brif(dense, then, &[], other, &[]);
                self.f.switch_to_block(then);
                self.store_dense(address, value);
                self.f.ins().jump(after, &[]);
                self.f.switch_to_block(other);
                let log2 = i64::from(size.trailing_zeros());
                let addresses = self.strided(address, stride, log2, ty.lanes);
                self.scatter(&addresses, value);
                self.f.ins().jump(after, &[]);
                self.f.switch_to_block(after);
            }
            Pattern::Each(offsets) => {
                let base = self.one(place.base);
                let addresses: Vec<Value> = offsets
                    .iter()
                    .map(|o| self.offset(base, *o, size))
                    .collect();
                self.scatter(&addresses, value);
            }
        }
    }

    pub(super) fn scatter(&mut self, addresses: &[Value], value: Reg) {
        for (x, address) in self.lanes(value).into_iter().zip(addresses) {
            self.f.ins().store(plain(), x, *address, 0);
        }
    }

    pub(super) fn store_dense(&mut self, address: Value, value: Reg) {
        let ty = self.ty(value);
        let parts = self.get(value);
        let total = u32::from(ty.lanes) * ty.elem.bits() / 8;
        if ty.lanes == 1 || total >= VECTOR {
            for (i, p) in parts.into_iter().enumerate() {
                self.f
                    .ins()
                    .store(plain(), p, address, (i as u32 * VECTOR) as i32);
            }
            return;
        }
        let (as_type, _) = match total {
            8 => (I64X2, I64),
            4 => (I32X4, I32),
            _ => (I16X8, I16),
        };
        let v = if vector_type(ty.elem) == as_type {
            parts[0]
        } else {
            self.f.ins().bitcast(as_type, bits(), parts[0])
        };
        let low = self.f.ins().extractlane(v, 0u8);
        self.f.ins().store(plain(), low, address, 0);
    }
}

//! Element expressions.

use super::lower::Lower;
use super::{CmpOp, Conv, Elem, Inst, Op, Pattern, Place, Reg, Type, random};
use crate::emit::helpers::{Helper, register};
use cupola_ir::kernel::{BufferId, Expr, ExprId, IndexId, Item, Literal, Store, StoreKind};
use cupola_ir::{Class, DType};

impl Lower<'_> {
    /// Evaluates expressions in arena order, so that depth does not recurse.
    pub(crate) fn prepare(&mut self, roots: &[ExprId]) {
        let mut needed = vec![false; self.kernel.exprs.len()];
        let mut seen = vec![false; self.kernel.indices.len()];
        let mut open: Vec<Item> = roots.iter().copied().map(Item::Expr).collect();
        while let Some(item) = open.pop() {
            let known = match item {
                Item::Expr(e) => {
                    std::mem::replace(&mut needed[e.0 as usize], true)
                        || self.known_value(e).is_some()
                }
                Item::Index(i) => std::mem::replace(&mut seen[i.0 as usize], true),
            };
            if !known {
                item.for_each_operand(self.kernel, |operand| open.push(operand));
            }
        }
        for e in (0..needed.len()).filter(|e| needed[*e]) {
            self.value(ExprId(e as u32));
        }
    }

    /// Evaluates an expression: one lane when it is the same in all. Bool values are masks, floats below 32 bits are
    /// f32 registers that hold exactly representable values, integers below 8 bits are sign- or zero-extended.
    pub(crate) fn value(&mut self, id: ExprId) -> Reg {
        if let Some(known) = self.known_value(id) {
            return known;
        }
        let reg = match self.kernel.exprs[id.0 as usize] {
            Expr::Const(l) => self.literal(l),
            Expr::Index(i, dtype) => {
                let x = self.index_vector(i);
                self.cast(x, DType::I64, dtype, true)
            }
            Expr::Less(a, b) => {
                let (a, b) = (self.index_vector(a), self.index_vector(b));
                self.b.cmp(CmpOp::LtS, a, b)
            }
            Expr::Load {
                buffer,
                index,
                guard,
            } => self.load(buffer, index, guard),
            Expr::Unary(f, x) => {
                let dtype = self.kernel.dtype(x);
                let x = self.value(x);
                self.unary(f, x, dtype)
            }
            Expr::Binary(f, x, y) => {
                let dtype = self.kernel.dtype(x);
                let (x, y) = (self.value(x), self.value(y));
                self.scalar_binary(f, x, y, dtype)
            }
            Expr::Ternary(f, x, y, z) => {
                let dtype = self.kernel.dtype(y);
                let (x, y, z) = (self.value(x), self.value(y), self.value(z));
                self.ternary(f, x, y, z, dtype)
            }
            Expr::Cast { x, to, saturate } => {
                let from = self.kernel.dtype(x);
                let x = self.value(x);
                self.cast(x, from, to, saturate)
            }
            Expr::Bitcast { x, to } => {
                let from = self.kernel.dtype(x);
                let x = self.value(x);
                let bits = self.store_storage(x, from);
                self.load_storage(bits, to)
            }
            Expr::Accum { phase, accum } => self.results[phase as usize][accum as usize],
            Expr::Random {
                index,
                stream,
                seed,
                run,
            } => {
                let element = self.index_vector(index);
                let seed = self.b.op(Op::Size(seed), Type::INDEX);
                let run = self.b.op(Op::Size(run), Type::INDEX);
                random::bits(&mut self.b, element, stream, seed, run)
            }
        };
        self.remember_value(id, reg);
        reg
    }

    /// Calls a helper that gives a value.
    pub(crate) fn call(&mut self, helper: Helper, args: &[Reg]) -> Reg {
        let lanes = args.iter().map(|a| self.b.lanes(*a)).max().unwrap_or(1);
        let args: Box<[Reg]> = args.iter().map(|a| self.b.splat(*a, lanes)).collect();
        let Some(ty) = helper.result(lanes) else {
            unreachable!("bug: {helper:?} gives no value")
        };
        self.b.op(Op::Call(helper, args), ty)
    }

    fn literal(&mut self, l: Literal) -> Reg {
        let elem = register(l.dtype);
        let ty = Type { elem, lanes: 1 };
        match l.dtype.class() {
            Class::Float => match l.dtype {
                DType::F32 => self.b.constant(l.bits & 0xFFFF_FFFF, ty),
                DType::F64 => self.b.constant(l.bits, ty),
                DType::F16 => {
                    let x = half::f16::from_bits(l.bits as u16).to_f64();
                    self.b.float(x, ty)
                }
                DType::BF16 => {
                    let x = half::bf16::from_bits(l.bits as u16).to_f64();
                    self.b.float(x, ty)
                }
                _ => {
                    let x = crate::emit::helpers::decode(l.dtype, l.bits as u32);
                    self.b.float(f64::from(x), ty)
                }
            },
            Class::Signed if elem == Elem::I8 => {
                let unused = 64 - l.dtype.bits();
                let x = ((l.bits << unused) as i64) >> unused;
                self.b.constant(x as u64 & 0xFF, ty)
            }
            Class::Bool => self.b.constant(l.bits & 1, ty),
            _ => {
                let keep = u64::MAX >> (64 - l.dtype.bits());
                if ty == Type::INDEX {
                    self.b.index(l.bits as i64)
                } else {
                    self.b.constant(l.bits & keep, ty)
                }
            }
        }
    }

    fn load(&mut self, buffer: BufferId, index: IndexId, guard: Option<ExprId>) -> Reg {
        let dtype = self.kernel.buffers[buffer.0 as usize].dtype;
        let guard = guard.map(|g| self.value(g));
        self.check(index, guard);
        if !dtype.is_whole_byte() {
            return self.load_packed(buffer, index, guard, dtype);
        }
        let (place, reach) = self.place(buffer, index, dtype);
        let lanes = reach.max(guard.map_or(1, |g| self.b.lanes(g)));
        let place = match guard {
            Some(g) if lanes > 1 && self.b.lanes(g) == 1 => self.inside(place, buffer, g),
            _ => place,
        };
        let place = self.repeated(place, reach, lanes);
        let guard = self.active(guard, lanes, dtype.bits() as u32);
        let guard = guard.map(|g| self.b.splat(g, lanes));
        let ty = Type {
            elem: Elem::int(dtype.bits() as u32),
            lanes,
        };
        let ty = match dtype {
            DType::F32 | DType::F64 => Type {
                elem: register(dtype),
                lanes,
            },
            _ => ty,
        };
        let op = Op::Load(place, guard);
        let bits = if self.written[buffer.0 as usize] {
            self.b.fresh(op, ty)
        } else {
            self.b.careful(op, ty)
        };
        if ty.elem.is_float() {
            bits
        } else {
            self.load_storage(bits, dtype)
        }
    }

    /// A place that begins with the buffer where a guard of all lanes is false: a processor may take hundreds of cycles over
    /// a masked vector in memory that is not there, even if it touches none of it (measured on Zen 4).
    fn inside(&mut self, place: Place, buffer: BufferId, guard: Reg) -> Place {
        let start = self.b.op(Op::Buffer(buffer.0), Type::INDEX);
        Place {
            base: self.b.select(guard, place.base, start),
            ..place
        }
    }

    /// A place of one element as a place of lanes that all meet it.
    fn repeated(&mut self, place: Place, reach: u16, lanes: u16) -> Place {
        if reach == lanes {
            return place;
        }
        let offset = place.index.unwrap_or_else(|| self.b.index(0));
        Place {
            base: place.base,
            index: None,
            pattern: Pattern::Each(std::iter::repeat_n(offset, usize::from(lanes)).collect()),
        }
    }

    fn load_packed(
        &mut self,
        buffer: BufferId,
        index: IndexId,
        guard: Option<Reg>,
        dtype: DType,
    ) -> Reg {
        let start = self.b.op(Op::Buffer(buffer.0), Type::INDEX);
        let mut at = self.index_vector(index);
        if let Some(g) = guard {
            let nothing = self.b.index(-1);
            at = self.b.select(g, at, nothing);
        }
        let lanes = self.b.lanes(at);
        let args: Box<[Reg]> = [self.b.splat(start, lanes), at].into();
        let op = Op::Call(Helper::LoadPacked(dtype), args);
        let ty = Type {
            elem: Elem::I32,
            lanes,
        };
        let code = if self.written[buffer.0 as usize] {
            self.b.fresh(op, ty)
        } else {
            self.b.careful(op, ty)
        };
        if dtype.is_float() {
            self.call(Helper::Decode(dtype), &[code])
        } else {
            self.b.convert(Conv::Wrap, code, Elem::I8)
        }
    }

    /// Stores of one phase: all values before the first store.
    pub(crate) fn stores(&mut self, stores: &[Store]) {
        let values: Vec<ExprId> = (stores.iter())
            .filter(|s| s.guard.is_none())
            .map(|s| s.value)
            .collect();
        self.prepare(&values);
        let mut ready = vec![];
        for s in stores.iter().filter(|s| s.guard.is_none()) {
            ready.push((s, self.value(s.value)));
        }
        for (s, value) in ready {
            self.store(s, value);
        }
        for s in stores {
            let Some(guard) = s.guard else { continue };
            let guard = self.value(guard);
            self.open_if(guard);
            self.prepare(&[s.value]);
            let value = self.value(s.value);
            self.store(s, value);
            self.close();
        }
    }

    fn store(&mut self, s: &Store, value: Reg) {
        let dtype = self.kernel.buffers[s.buffer.0 as usize].dtype;
        self.check(s.index, None);
        if !dtype.is_whole_byte() {
            return self.store_packed(s, value, dtype);
        }
        match s.kind {
            StoreKind::Set => {
                let (place, reach) = self.place(s.buffer, s.index, dtype);
                let lanes = reach.max(self.b.lanes(value));
                let value = self.b.splat(value, lanes);
                let place = self.repeated(place, reach, lanes);
                let value = if register(dtype).is_float() && dtype.bits() >= 32 {
                    value
                } else {
                    self.store_storage(value, dtype)
                };
                let guard = self.active(None, lanes, dtype.bits() as u32);
                self.b.push(Inst::Store {
                    place,
                    value,
                    guard,
                });
            }
            StoreKind::AtomicAdd => {
                let at = self.index_vector(s.index);
                let start = self.b.op(Op::Buffer(s.buffer.0), Type::INDEX);
                let size = self.b.index(dtype.size() as i64);
                let offset = self.b.mul(at, size);
                let address = self.b.add(offset, start);
                // Every lane adds, even where all meet one element.
                let lanes = self.lanes();
                let value = if dtype.is_float() {
                    value
                } else {
                    self.cast(value, dtype, DType::I64, true)
                };
                let args = [self.b.splat(address, lanes), self.b.splat(value, lanes)];
                self.b
                    .push(Inst::Call(Helper::AtomicAdd(dtype), args.into()));
            }
        }
    }

    fn store_packed(&mut self, s: &Store, value: Reg, dtype: DType) {
        let code = match dtype.class() {
            Class::Float => self.encode(value, dtype, false),
            _ => self.b.convert(Conv::ZExt, value, Elem::I32),
        };
        let at = self.index_vector(s.index);
        let start = self.b.op(Op::Buffer(s.buffer.0), Type::INDEX);
        let lanes = self.b.lanes(at).max(self.b.lanes(code));
        let args = [start, at, code].map(|r| self.b.splat(r, lanes));
        self.b
            .push(Inst::Call(Helper::StorePacked(dtype), args.into()));
    }

    /// Integer division faults of a divisor.
    pub(crate) fn check_divisor(&mut self, y: Reg) {
        let zero = self.b.constant(
            0,
            Type {
                elem: self.b.elem(y),
                lanes: 1,
            },
        );
        let bad = self.b.cmp(CmpOp::Eq, y, zero);
        self.fault(bad, super::Fault::Division);
    }

    /// An integer constant of this register's element type.
    pub(crate) fn int_like(&mut self, value: i64, like: Reg) -> Reg {
        let elem = self.b.elem(like);
        let keep = u64::MAX >> (64 - elem.bits());
        if elem == Elem::I64 {
            return self.b.index(value);
        }
        self.b
            .constant(value as u64 & keep, Type { elem, lanes: 1 })
    }

    /// A float constant of this register's element type.
    pub(crate) fn float_like(&mut self, value: f64, like: Reg) -> Reg {
        let elem = self.b.elem(like);
        self.b.float(value, Type { elem, lanes: 1 })
    }
}

//! From instructions with allocated registers to bytes: spilled operands, copies for two-operand instructions, frame and
//! constants.
//!
//! `general` has the integer instructions. The writer keeps for itself rax and rdx, the two highest vector registers, k0 and k7.

mod general;

use super::allocate::{Allocation, Home, Registers, allocate};
use super::code::{Class, Code, Constant, Inst, Place, Src, V, What};
use super::encode::{Address, Alu, Assembler, Cc, Label, Operands, Rm, Width};
use super::forms::{self as f, Form, Layout};
use rustc_hash::FxHashMap;

const RAX: u8 = 0;
const RDX: u8 = 2;
const RSP: u8 = 4;
/// Registers that a function must leave as they were.
const PRESERVED: [u8; 6] = [3, 5, 12, 13, 14, 15];
const K_FIRST: u8 = 7;
const K_SECOND: u8 = 0;

/// Fixed places in the frame, from rsp: the caller's stack pointer, the three arguments, fault bits.
const OLD_STACK: i32 = 0;
const ARGUMENTS: i32 = 8;
const FAULTS: i32 = 32;
const SLOTS: u32 = 64;

/// Offset of the fault word's address in [`crate::jit::Arguments`].
const FAULT_WORD: i32 = 16;

/// The bytes of a function with these instructions.
pub(super) fn write(code: &Code, evex: bool) -> Vec<u8> {
    let (width, scratch) = match evex {
        true => (Width::W512, [30, 31]),
        false => (Width::W256, [14, 15]),
    };
    let registers = Registers {
        general: vec![1, 6, 7, 8, 9, 10, 11, 3, 5, 12, 13, 14, 15],
        vector: (0..scratch[0]).collect(),
        mask: (1..K_FIRST).collect(),
    };
    let allocation = allocate(code, &registers);
    let mut w = Writer {
        code,
        asm: Assembler::new(evex),
        allocation,
        width,
        scratch,
        labels: code.label_count(),
        pool: vec![],
        places: FxHashMap::default(),
    };
    w.function();
    let pool = std::mem::take(&mut w.pool);
    w.asm.finish(&pool)
}

struct Writer<'c> {
    code: &'c Code,
    asm: Assembler,
    allocation: Allocation,
    width: Width,
    scratch: [u8; 2],
    labels: u32,
    pool: Vec<u8>,
    places: FxHashMap<Constant, u32>,
}

impl Writer<'_> {
    fn function(&mut self) {
        let homes = &self.allocation.homes;
        let general = |v: usize| self.code.classes[v] == Class::General;
        let saved: Vec<u8> = (PRESERVED.into_iter())
            .filter(|r| (0..homes.len()).any(|v| general(v) && homes[v] == Home::Register(*r)))
            .collect();
        let [general, vector, mask] = self.allocation.slots;
        let size = SLOTS + vector * self.width.bytes() + 8 * (general + mask);
        saved.iter().for_each(|r| self.asm.push(*r));
        self.asm.load(RAX, Rm::Reg(RSP));
        self.asm
            .alu_imm(Alu::Sub, Rm::Reg(RSP), size.next_multiple_of(64) as i32);
        self.asm.alu_imm(Alu::And, Rm::Reg(RSP), -64);
        self.asm.store(8, frame(OLD_STACK), RAX);
        for (i, r) in [7, 6, RDX].into_iter().enumerate() {
            self.asm.store(8, frame(ARGUMENTS + 8 * i as i32), r);
        }
        let faults = self
            .code
            .insts
            .iter()
            .any(|i| matches!(i.what, What::Fault(_)));
        if faults {
            self.asm.constant(RAX, 0);
            self.asm.store(8, frame(FAULTS), RAX);
        }
        let mut constants: Vec<V> = self.code.constants.keys().copied().collect();
        constants.sort();
        for v in constants {
            if let Home::Register(r) = self.home(v) {
                self.load_constant(v, r);
            }
        }
        for inst in &self.code.insts {
            self.inst(inst);
        }
        if faults {
            self.report();
        }
        self.asm.load(RSP, Rm::Mem(frame(OLD_STACK)));
        saved.iter().rev().for_each(|r| self.asm.pop(*r));
        self.asm.leave();
    }

    /// Adds the fault bits to the launch's word.
    fn report(&mut self) {
        let none = self.label();
        self.asm.load(RAX, Rm::Mem(frame(FAULTS)));
        self.asm.test(RAX, RAX);
        self.asm.jump_if(Cc::Zero, none);
        self.asm.load(RDX, Rm::Mem(frame(ARGUMENTS)));
        self.asm
            .load(RDX, Rm::Mem(Address::Base(RDX, None, FAULT_WORD)));
        self.asm.lock_or(RDX, RAX);
        self.asm.bind(none);
    }

    fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    fn home(&self, v: V) -> Home {
        self.allocation.homes[v.0 as usize]
    }

    fn register(&self, v: V) -> Option<u8> {
        match self.home(v) {
            Home::Register(r) => Some(r),
            _ => None,
        }
    }

    /// Address of a spilled value.
    fn slot(&self, class: Class, slot: u32) -> Address {
        let [general, vector, _] = self.allocation.slots;
        let vectors = SLOTS + vector * self.width.bytes();
        frame(match class {
            Class::Vector => SLOTS + slot * self.width.bytes(),
            Class::General => vectors + 8 * slot,
            Class::Mask => vectors + 8 * (general + slot),
        } as i32)
    }

    /// Place of a constant behind the code.
    fn place(&mut self, constant: &Constant) -> u32 {
        if let Some(at) = self.places.get(constant) {
            return *at;
        }
        let bytes = match constant {
            Constant::Bytes(all) => all.clone(),
            Constant::Splat(bits, size) => {
                let one = &bits.to_le_bytes()[..usize::from(*size)];
                let count = match self.asm.evex {
                    true => 1,
                    false => self.width.bytes() as usize / one.len(),
                };
                one.repeat(count)
            }
        };
        let start = self
            .pool
            .len()
            .next_multiple_of(bytes.len().next_power_of_two());
        self.pool.resize(start, 0);
        self.pool.extend_from_slice(&bytes);
        self.places.insert(constant.clone(), start as u32);
        start as u32
    }

    fn load_constant(&mut self, v: V, to: u8) {
        let constant = self.code.constants[&v].clone();
        let at = Rm::Mem(Address::Pool(self.place(&constant)));
        let form = match constant {
            Constant::Splat(_, size) if self.asm.evex => match size {
                1 => &f::BROADCASTB,
                2 => &f::BROADCASTW,
                4 => &f::BROADCASTD,
                _ => &f::BROADCASTQ,
            },
            _ => &f::MOVUPS,
        };
        self.vector(form, self.width, to, 0, at);
    }

    fn vector(&mut self, form: &Form, width: Width, reg: u8, v: u8, rm: Rm) {
        let operands = Operands {
            reg,
            v,
            rm,
            mask: 0,
            imm: None,
        };
        self.asm.vector(form, width, operands);
    }

    fn load_class(&mut self, class: Class, reg: u8, from: Rm) {
        match class {
            Class::General => self.asm.load(reg, from),
            Class::Vector => self.vector(&f::MOVUPS, self.width, reg, 0, from),
            Class::Mask => self.vector(&f::KMOV_KM, Width::W128, reg, 0, from),
        }
    }

    fn store_class(&mut self, class: Class, to: Address, reg: u8) {
        match class {
            Class::General => self.asm.store(8, to, reg),
            Class::Vector => self.vector(&f::ST_UPS, self.width, reg, 0, Rm::Mem(to)),
            Class::Mask => self.vector(&f::KMOV_MK, Width::W128, reg, 0, Rm::Mem(to)),
        }
    }

    /// A value in a register: its own, or this one after loading it.
    fn read(&mut self, v: V, scratch: u8) -> u8 {
        let class = self.code.class(v);
        match self.home(v) {
            Home::Register(r) => return r,
            Home::Slot(s) => {
                let from = Rm::Mem(self.slot(class, s));
                self.load_class(class, scratch, from);
            }
            Home::Pool => self.load_constant(v, scratch),
            Home::None => unreachable!("bug: a value without a home is read"),
        }
        scratch
    }

    /// Stores a result that was computed in a scratch register.
    fn finish(&mut self, v: V, reg: u8) {
        if let Home::Slot(s) = self.home(v) {
            let class = self.code.class(v);
            let to = self.slot(class, s);
            self.store_class(class, to, reg);
        }
    }

    /// The register that a result is computed in.
    fn target(&self, v: V, scratch: u8) -> u8 {
        self.register(v).unwrap_or(scratch)
    }

    /// A memory operand; uses rax, and rdx meanwhile, for what is spilled.
    fn address(&mut self, p: &Place) -> Address {
        let spilled = |v: V| self.register(v).is_none();
        match p.index {
            Some((i, log2)) if spilled(p.base) && spilled(i) => {
                let (base, index) = (self.read(p.base, RAX), self.read(i, RDX));
                self.asm
                    .lea(RAX, Address::Base(base, Some((index, log2)), p.disp));
                Address::Base(RAX, None, 0)
            }
            index => {
                let base = self.read(p.base, RAX);
                let index = index.map(|(i, log2)| (self.read(i, RAX), log2));
                Address::Base(base, index, p.disp)
            }
        }
    }

    /// A source of a vector instruction as register or memory.
    fn vector_rm(&mut self, src: &Src, form: &Form, scratch: u8) -> Rm {
        let v = match src {
            Src::Value(v) => *v,
            Src::Mem(p) => return Rm::Mem(self.address(p)),
            s => unreachable!("bug: {s:?} in a vector instruction"),
        };
        let class = self.code.class(v);
        let register_only = form.register_only(self.asm.evex);
        match self.home(v) {
            Home::Slot(s) if !register_only => Rm::Mem(self.slot(class, s)),
            Home::Pool if !register_only => {
                let constant = self.code.constants[&v].clone();
                match constant {
                    Constant::Splat(_, size) if self.asm.evex => {
                        if size != form.broadcast {
                            return Rm::Reg(self.read(v, scratch));
                        }
                        Rm::Broadcast(Address::Pool(self.place(&constant)))
                    }
                    _ => Rm::Mem(Address::Pool(self.place(&constant))),
                }
            }
            _ => {
                let scratch = if class == Class::General {
                    RAX
                } else {
                    scratch
                };
                Rm::Reg(self.read(v, scratch))
            }
        }
    }

    fn form(&mut self, form: &'static Form, inst: &Inst) {
        let mut o = Operands {
            reg: 0,
            v: 0,
            rm: Rm::Reg(0),
            mask: 0,
            imm: inst.imm,
        };
        let scratch = |s: &Self, v: V| match s.code.class(v) {
            Class::General => [RAX, RDX],
            Class::Vector => s.scratch,
            Class::Mask => [K_FIRST, K_SECOND],
        };
        let target = inst.dst.map(|d| {
            let first = scratch(self, d)[0];
            self.target(d, first)
        });
        let (a, b, c) = (&inst.src[0], &inst.src[1], &inst.src[2]);
        let first = if let Src::Value(v) = a {
            let s = scratch(self, *v)[0];
            Some(self.read(*v, s))
        } else {
            None
        };
        match form.layout {
            Layout::Rvm | Layout::Rm | Layout::Vm(_) => {
                let second = match b {
                    Src::Value(v) => scratch(self, *v)[1],
                    _ => 0,
                };
                o.rm = self.vector_rm(b, form, second);
                let target = target.unwrap_or_else(|| unreachable!("bug: no result"));
                (o.reg, o.v) = match form.layout {
                    Layout::Vm(_) => (0, target),
                    _ => (target, first.unwrap_or(0)),
                };
            }
            Layout::Mr | Layout::Mvr => {
                o.reg = first.unwrap_or_else(|| unreachable!("bug: nothing to store"));
                o.rm = match target {
                    Some(t) => Rm::Reg(t),
                    None => self.vector_rm(b, form, 0),
                };
            }
        }
        if let Src::Value(v) = c {
            match (self.code.class(*v), form.layout) {
                (Class::Mask, _) => o.mask = self.read(*v, K_FIRST),
                (_, Layout::Mvr) => o.v = self.read(*v, self.scratch[1]),
                _ => o.imm = Some(self.read(*v, self.scratch[1]) << 4),
            }
        }
        self.asm.vector(form, inst.width, o);
        if let (Some(d), Some(t)) = (inst.dst, target) {
            self.finish(d, t);
        }
    }

    fn fma(&mut self, wide: bool, inst: &Inst) {
        let forms: [&'static Form; 3] = match wide {
            false => [&f::FMA132PS, &f::FMA213PS, &f::FMA231PS],
            true => [&f::FMA132PD, &f::FMA213PD, &f::FMA231PD],
        };
        let [a, b, c] = inst.src.map(|s| match s {
            Src::Value(v) => v,
            s => unreachable!("bug: {s:?} in a multiplication"),
        });
        let dst = inst.dst.unwrap_or_else(|| unreachable!("bug: no result"));
        let t = self.target(dst, self.scratch[0]);
        let own = |s: &Self, v: V| s.register(v) == Some(t);
        let (a, b) = if own(self, b) && !own(self, a) {
            (b, a)
        } else {
            (a, b)
        };
        let emit = |s: &mut Self, form: usize, v: u8, rm: Rm| {
            s.vector(forms[form], inst.width, t, v, rm);
        };
        if own(self, c) {
            // The register factor goes first.
            let (a, b) = if self.register(a).is_none() {
                (b, a)
            } else {
                (a, b)
            };
            let v = self.read(a, self.scratch[1]);
            let rm = self.vector_rm(&Src::Value(b), forms[2], self.scratch[0]);
            emit(self, 2, v, rm);
        } else {
            if !own(self, a) {
                let from = self.vector_rm(&Src::Value(a), &f::MOVUPS, t);
                if from != Rm::Reg(t) {
                    self.load_class(Class::Vector, t, from);
                }
            }
            // The target holds a: a * b + c, one of b and c may be in memory.
            if self.register(b).is_none() && self.register(c).is_some() {
                let v = self.read(c, self.scratch[1]);
                let rm = self.vector_rm(&Src::Value(b), forms[0], self.scratch[1]);
                emit(self, 0, v, rm);
            } else {
                let v = self.read(b, self.scratch[1]);
                let other = if v == self.scratch[1] {
                    self.scratch[0]
                } else {
                    self.scratch[1]
                };
                let rm = self.vector_rm(&Src::Value(c), forms[1], other);
                emit(self, 1, v, rm);
            }
        }
        self.finish(dst, t);
    }

    fn copy(&mut self, src: &Src, dst: V) {
        let class = self.code.class(dst);
        if class == Class::General {
            let t = self.target(dst, RAX);
            self.general_to(src, t);
            return self.finish(dst, t);
        }
        let Src::Value(v) = src else {
            unreachable!("bug: a copy of {src:?}")
        };
        let scratch = if class == Class::Vector {
            self.scratch[0]
        } else {
            K_FIRST
        };
        let t = self.target(dst, scratch);
        let from = self.read(*v, t);
        if from != t && self.register(dst).is_none() {
            return self.finish(dst, from);
        }
        if from != t {
            self.load_class(class, t, Rm::Reg(from));
        }
        self.finish(dst, t);
    }

    fn inst(&mut self, inst: &Inst) {
        let [a, b, _] = inst.src;
        match inst.what {
            What::Form(form) => return self.form(form, inst),
            What::Fma(wide) => return self.fma(wide, inst),
            What::Store(size) => {
                let Rm::Mem(to) = self.general_rm(&b, RAX) else {
                    unreachable!("bug: a store to a register")
                };
                let value = self.general_reg(&a, RDX);
                return self.asm.store(size, to, value);
            }
            What::Label(label) => return self.asm.bind(label),
            What::Jump(label) => return self.asm.jump(label),
            What::JumpIf(cc, label) => {
                self.compare(&a, &b);
                return self.asm.jump_if(cc, label);
            }
            What::Fault(bit) => return self.asm.alu_imm(Alu::Or, Rm::Mem(frame(FAULTS)), bit),
            What::LoopStart => return self.asm.align(32),
            What::LoopEnd => return,
            What::Fence => return self.asm.sfence(),
            _ => {}
        }
        let dst = inst.dst.unwrap_or_else(|| unreachable!("bug: no result"));
        self.result(inst, dst);
    }
}

/// A place in the frame.
fn frame(offset: i32) -> Address {
    Address::Base(RSP, None, offset)
}

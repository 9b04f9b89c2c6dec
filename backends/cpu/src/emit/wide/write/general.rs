//! Integer instructions: two-operand forms, comparisons, division.

use super::*;

impl Writer<'_> {
    /// An integer source as register or memory.
    pub(super) fn general_rm(&mut self, src: &Src, scratch: u8) -> Rm {
        match src {
            Src::Value(v) => match self.home(*v) {
                Home::Slot(s) => Rm::Mem(self.slot(Class::General, s)),
                _ => Rm::Reg(self.read(*v, scratch)),
            },
            Src::Int(i) => {
                self.asm.constant(scratch, i64::from(*i));
                Rm::Reg(scratch)
            }
            Src::Mem(p) => Rm::Mem(self.address(p)),
            Src::None => unreachable!("bug: a missing source"),
        }
    }

    pub(super) fn general_reg(&mut self, src: &Src, scratch: u8) -> u8 {
        match self.general_rm(src, scratch) {
            Rm::Reg(r) => r,
            rm => {
                self.asm.load(scratch, rm);
                scratch
            }
        }
    }

    /// Copies a source to this register.
    pub(super) fn general_to(&mut self, src: &Src, to: u8) {
        match self.general_rm(src, to) {
            Rm::Reg(r) if r == to => {}
            rm => self.asm.load(to, rm),
        }
    }

    fn alu(&mut self, op: Alu, inst: &Inst, dst: V) {
        let [mut a, mut b, _] = inst.src;
        let t = self.target(dst, RAX);
        let is_target =
            |s: &Self, src: &Src| matches!(src, Src::Value(v) if s.register(*v) == Some(t));
        if is_target(self, &b) && !is_target(self, &a) {
            if op == Alu::Sub {
                let v = self.general_reg(&b, t);
                self.asm.load(RDX, Rm::Reg(v));
                self.general_to(&a, t);
                self.asm.alu(op, t, Rm::Reg(RDX));
                return self.finish(dst, t);
            }
            std::mem::swap(&mut a, &mut b);
        }
        self.general_to(&a, t);
        match b {
            Src::Int(i) => self.asm.alu_imm(op, Rm::Reg(t), i),
            b => {
                let rm = self.general_rm(&b, RDX);
                self.asm.alu(op, t, rm);
            }
        }
        self.finish(dst, t);
    }

    pub(super) fn compare(&mut self, a: &Src, b: &Src) {
        let a = self.general_reg(a, RAX);
        match b {
            Src::Int(0) => self.asm.test(a, a),
            Src::Int(i) => self.asm.alu_imm(Alu::Cmp, Rm::Reg(a), *i),
            b => {
                let rm = self.general_rm(b, RDX);
                self.asm.alu(Alu::Cmp, a, rm);
            }
        }
    }

    fn choose(&mut self, inst: &Inst, dst: V) {
        let [a, b, c] = inst.src;
        self.compare(&a, &Src::Int(0));
        let t = self.target(dst, RDX);
        if matches!(b, Src::Value(v) if self.register(v) == Some(t)) {
            let rm = self.general_rm(&c, RAX);
            self.asm.cmov(Cc::Zero, t, rm);
        } else {
            self.general_to(&c, t);
            let rm = self.general_rm(&b, RAX);
            self.asm.cmov(Cc::NotZero, t, rm);
        }
        self.finish(dst, t);
    }

    /// Division by 0 gives 0, by -1 the negated number.
    fn divide(&mut self, signed: bool, rem: bool, inst: &Inst, dst: V) {
        let [zero, minus, done] = [0; 3].map(|_| self.label());
        self.general_to(&inst.src[0], RAX);
        let divisor = self.general_rm(&inst.src[1], RDX);
        self.asm.alu_imm(Alu::Cmp, divisor, 0);
        self.asm.jump_if(Cc::Zero, zero);
        if signed {
            self.asm.alu_imm(Alu::Cmp, divisor, -1);
            self.asm.jump_if(Cc::Zero, minus);
            self.asm.cqo();
        } else {
            self.asm.constant(RDX, 0);
        }
        self.asm.group3(if signed { 7 } else { 6 }, divisor);
        self.asm.jump(done);
        self.asm.bind(minus);
        self.asm.group3(3, Rm::Reg(RAX));
        self.asm.constant(RDX, 0);
        self.asm.jump(done);
        self.asm.bind(zero);
        self.asm.constant(RAX, 0);
        self.asm.constant(RDX, 0);
        self.asm.bind(done);
        let result = if rem { RDX } else { RAX };
        match self.register(dst) {
            Some(r) => self.asm.load(r, Rm::Reg(result)),
            None => self.finish(dst, result),
        }
    }

    pub(super) fn result(&mut self, inst: &Inst, dst: V) {
        let [a, b, _] = inst.src;
        let t = self.target(dst, RAX);
        match inst.what {
            What::Move => return self.copy(&a, dst),
            What::Alu(op) => return self.alu(op, inst, dst),
            What::Choose => return self.choose(inst, dst),
            What::Divide { signed, rem } => return self.divide(signed, rem, inst, dst),
            What::Constant => self.asm.constant(t, inst.long),
            What::Argument(n) => {
                let from = frame(ARGUMENTS + 8 * i32::from(n));
                self.asm.load(t, Rm::Mem(from));
            }
            What::Shift(digit) => {
                self.general_to(&a, t);
                self.asm.shift(digit, t, inst.imm.unwrap_or(0));
            }
            What::Bmi(op) => {
                let v = self.general_reg(&b, RDX);
                let rm = self.general_rm(&a, RAX);
                self.asm.bmi(op, t, rm, v);
            }
            What::Neg | What::Not => {
                self.general_to(&a, t);
                let digit = if inst.what == What::Neg { 3 } else { 2 };
                self.asm.group3(digit, Rm::Reg(t));
            }
            What::PopCount => {
                let rm = self.general_rm(&a, RAX);
                self.asm.popcnt(t, rm);
            }
            What::Extend(size, signed) => {
                let rm = self.general_rm(&a, RAX);
                self.asm.extend(size, signed, t, rm);
            }
            What::Lea => {
                let Rm::Mem(from) = self.general_rm(&a, RAX) else {
                    unreachable!("bug: the address of a register")
                };
                self.asm.lea(t, from);
            }
            What::Compare(cc) => {
                self.compare(&a, &b);
                self.asm.set(cc, t);
            }
            what => unreachable!("bug: {what:?} gives no value"),
        }
        self.finish(dst, t);
    }
}

//! Instruction bytes of x86-64: VEX and EVEX from the table of forms, and the few general-purpose instructions needed.

use super::forms::{Encoding, Form, Layout};

/// Bits of the vector registers that an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    W128 = 0,
    W256 = 1,
    W512 = 2,
}

impl Width {
    pub(super) fn bytes(self) -> u32 {
        16 << self as u32
    }
}

/// A memory operand of machine registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// Base, index with the logarithm of its factor, displacement.
    Base(u8, Option<(u8, u8)>, i32),
    /// A place in the constants behind the code.
    Pool(u32),
}

/// A register (of the class the instruction takes there) or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rm {
    Reg(u8),
    Mem(Address),
    /// One element in memory for all lanes.
    Broadcast(Address),
}

/// Operands of a vector instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub reg: u8,
    pub v: u8,
    pub rm: Rm,
    /// Number of the mask register; 0: none.
    pub mask: u8,
    /// The immediate, or the fourth register times 16.
    pub imm: Option<u8>,
}

/// Two-operand integer instructions, by the opcode of `op r, rm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alu {
    Add = 0x03,
    Or = 0x0B,
    And = 0x23,
    Sub = 0x2B,
    Xor = 0x33,
    Cmp = 0x3B,
    Imul = 0xAF,
}

/// Condition codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cc {
    Below = 2,
    Zero = 4,
    NotZero = 5,
    BelowEqual = 6,
    Above = 7,
    Less = 12,
    LessEqual = 14,
    Greater = 15,
}

/// A place in the code that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(pub u32);

/// Machine code being written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    pub bytes: Vec<u8>,
    /// Whether forms of both encodings use EVEX.
    pub evex: bool,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
    /// Places of displacements to the pool, and the offsets within it.
    pool_uses: Vec<(usize, u32)>,
}

impl Assembler {
    pub(super) fn new(evex: bool) -> Assembler {
        Assembler {
            evex,
            ..Assembler::default()
        }
    }

    fn u8(&mut self, b: u8) {
        self.bytes.push(b);
    }

    fn u32(&mut self, x: u32) {
        self.bytes.extend_from_slice(&x.to_le_bytes());
    }

    /// Defines a label here.
    pub(super) fn bind(&mut self, label: Label) {
        let at = label.0 as usize;
        if self.labels.len() <= at {
            self.labels.resize(at + 1, None);
        }
        self.labels[at] = Some(self.bytes.len());
    }

    /// Aligns the next instruction with one long no-op or several.
    pub(super) fn align(&mut self, to: usize) {
        let mut missing = self.bytes.len().next_multiple_of(to) - self.bytes.len();
        while missing > 0 {
            let n = missing.min(NOPS.len());
            self.bytes.extend_from_slice(NOPS[n - 1]);
            missing -= n;
        }
    }

    /// Fills in jumps and appends the constants, aligned to 64 bytes.
    pub(super) fn finish(mut self, pool: &[u8]) -> Vec<u8> {
        for (at, label) in std::mem::take(&mut self.jumps) {
            let Some(Some(target)) = self.labels.get(label.0 as usize) else {
                unreachable!("bug: a jump to a label without a place")
            };
            let distance = (*target as i64 - (at as i64 + 4)) as i32;
            self.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        if pool.is_empty() {
            return self.bytes;
        }
        self.bytes
            .resize(self.bytes.len().next_multiple_of(64), 0xCC);
        let start = self.bytes.len();
        for (at, offset) in std::mem::take(&mut self.pool_uses) {
            // Relative to the end of the instruction, whose distance the place holds already.
            let mut behind = [0; 4];
            behind.copy_from_slice(&self.bytes[at..at + 4]);
            let end = at as i64 + 4 + i64::from(i32::from_le_bytes(behind));
            let distance = (start as i64 + i64::from(offset) - end) as i32;
            self.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        self.bytes.extend_from_slice(pool);
        self.bytes
    }

    /// ModRM, SIB and displacement; `behind` bytes of the instruction follow them.
    fn modrm(&mut self, reg: u8, rm: Rm, behind: u8, short: bool) {
        let reg = (reg & 7) << 3;
        let address = match rm {
            Rm::Reg(r) => return self.u8(0xC0 | reg | r & 7),
            Rm::Mem(a) | Rm::Broadcast(a) => a,
        };
        match address {
            Address::Pool(offset) => {
                self.u8(reg | 5);
                self.pool_uses.push((self.bytes.len(), offset));
                self.u32(u32::from(behind));
            }
            Address::Base(base, index, disp) => {
                let size = match disp {
                    0 if base & 7 != 5 => 0,
                    -128..=127 if short => 1,
                    _ => 2,
                };
                if index.is_none() && base & 7 != 4 {
                    self.u8(size << 6 | reg | base & 7);
                } else {
                    let (index, log2) = index.unwrap_or((4, 0));
                    self.u8(size << 6 | reg | 4);
                    self.u8(log2 << 6 | (index & 7) << 3 | base & 7);
                }
                match size {
                    0 => {}
                    1 => self.u8(disp as u8),
                    _ => self.u32(disp as u32),
                }
            }
        }
    }

    /// Extension bits of `rm`: X and B.
    fn extension(rm: Rm, vector: bool) -> (u8, u8) {
        match rm {
            Rm::Reg(r) => (if vector { r >> 4 & 1 } else { 0 }, r >> 3 & 1),
            Rm::Mem(Address::Pool(_)) | Rm::Broadcast(Address::Pool(_)) => (0, 0),
            Rm::Mem(Address::Base(base, index, _))
            | Rm::Broadcast(Address::Base(base, index, _)) => {
                (index.map_or(0, |(i, _)| i >> 3 & 1), base >> 3 & 1)
            }
        }
    }

    /// A vector instruction.
    pub(super) fn vector(&mut self, form: &Form, width: Width, o: Operands) {
        debug_assert_eq!(form.imm, o.imm.is_some(), "bug: immediate of {}", form.name);
        let evex = match form.encoding {
            Encoding::Both => self.evex,
            Encoding::Vex => false,
            Encoding::Evex => true,
        };
        let (reg, v) = match form.layout {
            Layout::Rvm | Layout::Mvr => (o.reg, o.v),
            Layout::Rm | Layout::Mr => (o.reg, 0),
            Layout::Vm(extension) => (extension, o.v),
        };
        if evex {
            self.evex_prefix(form, width, reg, v, o);
        } else {
            self.vex_prefix(form, width, reg, v, o.rm);
        }
        self.u8(form.opcode);
        self.modrm(reg, o.rm, o.imm.is_some().into(), !evex);
        if let Some(imm) = o.imm {
            self.u8(imm);
        }
    }

    fn vex_prefix(&mut self, form: &Form, width: Width, reg: u8, v: u8, rm: Rm) {
        let (x, b) = Self::extension(rm, false);
        let length = u8::from(width != Width::W128);
        self.u8(0xC4);
        self.u8((!reg >> 3 & 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | form.map as u8);
        self.u8(u8::from(form.vex_w) << 7 | (!v & 15) << 3 | length << 2 | form.prefix as u8);
    }

    fn evex_prefix(&mut self, form: &Form, width: Width, reg: u8, v: u8, o: Operands) {
        let (x, b) = Self::extension(o.rm, true);
        let broadcast = u8::from(matches!(o.rm, Rm::Broadcast(_)));
        let zero = u8::from(form.zeroing && o.mask != 0);
        self.u8(0x62);
        self.u8((!reg >> 3 & 1) << 7
            | (x ^ 1) << 6
            | (b ^ 1) << 5
            | (!reg >> 4 & 1) << 4
            | form.map as u8);
        self.u8(u8::from(form.w) << 7 | (!v & 15) << 3 | 4 | form.prefix as u8);
        self.u8(zero << 7 | (width as u8) << 5 | broadcast << 4 | (!v >> 4 & 1) << 3 | o.mask);
    }

    /// A general-purpose instruction: prefix byte, REX, opcode bytes, operands. `behind` bytes follow.
    fn plain(&mut self, prefix: Option<u8>, opcode: &[u8], w: bool, reg: u8, rm: Rm, behind: u8) {
        let (x, b) = Self::extension(rm, false);
        if let Some(p) = prefix {
            self.u8(p);
        }
        // Always present, so that all registers have their low byte.
        self.u8(0x40 | u8::from(w) << 3 | (reg >> 3 & 1) << 2 | x << 1 | b);
        self.bytes.extend_from_slice(opcode);
        self.modrm(reg, rm, behind, true);
    }

    /// `reg = reg op rm`, 64 bits.
    pub(super) fn alu(&mut self, op: Alu, reg: u8, rm: Rm) {
        match op {
            Alu::Imul => self.plain(None, &[0x0F, 0xAF], true, reg, rm, 0),
            _ => self.plain(None, &[op as u8], true, reg, rm, 0),
        }
    }

    /// `rm = rm op imm`, 64 bits (for a product only `reg = reg * imm`).
    pub(super) fn alu_imm(&mut self, op: Alu, rm: Rm, imm: i32) {
        if let (Alu::Imul, Rm::Reg(r)) = (op, rm) {
            self.plain(None, &[0x69], true, r, rm, 4);
            return self.u32(imm as u32);
        }
        let digit = op as u8 >> 3;
        if let Ok(short) = i8::try_from(imm) {
            self.plain(None, &[0x83], true, digit, rm, 1);
            self.u8(short as u8);
        } else {
            self.plain(None, &[0x81], true, digit, rm, 4);
            self.u32(imm as u32);
        }
    }

    /// `test a, b`, 64 bits.
    pub(super) fn test(&mut self, a: u8, b: u8) {
        self.plain(None, &[0x85], true, a, Rm::Reg(b), 0);
    }

    /// Register or memory to register, 64 bits.
    pub(super) fn load(&mut self, reg: u8, rm: Rm) {
        self.plain(None, &[0x8B], true, reg, rm, 0);
    }

    /// Register to memory: the low `size` bytes.
    pub(super) fn store(&mut self, size: u32, address: Address, reg: u8) {
        let rm = Rm::Mem(address);
        match size {
            1 => self.plain(None, &[0x88], false, reg, rm, 0),
            2 => self.plain(Some(0x66), &[0x89], false, reg, rm, 0),
            4 => self.plain(None, &[0x89], false, reg, rm, 0),
            _ => self.plain(None, &[0x89], true, reg, rm, 0),
        }
    }

    /// The low `size` bytes of register or memory, extended to 64 bits.
    pub(super) fn extend(&mut self, size: u32, signed: bool, reg: u8, rm: Rm) {
        match (size, signed) {
            (1, true) => self.plain(None, &[0x0F, 0xBE], true, reg, rm, 0),
            (1, false) => self.plain(None, &[0x0F, 0xB6], true, reg, rm, 0),
            (2, true) => self.plain(None, &[0x0F, 0xBF], true, reg, rm, 0),
            (2, false) => self.plain(None, &[0x0F, 0xB7], true, reg, rm, 0),
            (4, true) => self.plain(None, &[0x63], true, reg, rm, 0),
            (4, false) => self.plain(None, &[0x8B], false, reg, rm, 0),
            _ => self.load(reg, rm),
        }
    }

    /// A constant of 64 bits.
    pub(super) fn constant(&mut self, reg: u8, value: i64) {
        if let Ok(low) = u32::try_from(value) {
            self.u8(0x40 | reg >> 3);
            self.u8(0xB8 | reg & 7);
            self.u32(low);
        } else if let Ok(low) = i32::try_from(value) {
            self.plain(None, &[0xC7], true, 0, Rm::Reg(reg), 4);
            self.u32(low as u32);
        } else {
            self.u8(0x48 | reg >> 3);
            self.u8(0xB8 | reg & 7);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn lea(&mut self, reg: u8, address: Address) {
        self.plain(None, &[0x8D], true, reg, Rm::Mem(address), 0);
    }

    /// Shift by a constant: 4 left, 5 right, 7 right with the sign.
    pub(super) fn shift(&mut self, digit: u8, reg: u8, count: u8) {
        self.plain(None, &[0xC1], true, digit, Rm::Reg(reg), 1);
        self.u8(count);
    }

    /// 2: not, 3: neg, 6: div, 7: idiv (both of rdx:rax).
    pub(super) fn group3(&mut self, digit: u8, rm: Rm) {
        self.plain(None, &[0xF7], true, digit, rm, 0);
    }

    /// Sign of rax to all bits of rdx.
    pub(super) fn cqo(&mut self) {
        self.bytes.extend_from_slice(&[0x48, 0x99]);
    }

    /// 1 or 0.
    pub(super) fn set(&mut self, cc: Cc, reg: u8) {
        self.plain(None, &[0x0F, 0x90 | cc as u8], false, 0, Rm::Reg(reg), 0);
        self.extend(1, false, reg, Rm::Reg(reg));
    }

    pub(super) fn cmov(&mut self, cc: Cc, reg: u8, rm: Rm) {
        self.plain(None, &[0x0F, 0x40 | cc as u8], true, reg, rm, 0);
    }

    pub(super) fn popcnt(&mut self, reg: u8, rm: Rm) {
        self.plain(Some(0xF3), &[0x0F, 0xB8], true, reg, rm, 0);
    }

    /// BMI2 with three registers: `reg = rm shifted by v`, or (bzhi) `rm` below bit `v`.
    pub(super) fn bmi(&mut self, op: Bmi, reg: u8, rm: Rm, v: u8) {
        let (prefix, opcode) = match op {
            Bmi::Shl => (1, 0xF7),
            Bmi::ShrS => (2, 0xF7),
            Bmi::ShrU => (3, 0xF7),
            Bmi::KeepBelow => (0, 0xF5),
        };
        let (x, b) = Self::extension(rm, false);
        self.u8(0xC4);
        self.u8((!reg >> 3 & 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | 2);
        self.u8(0x80 | (!v & 15) << 3 | prefix);
        self.u8(opcode);
        self.modrm(reg, rm, 0, true);
    }

    pub(super) fn jump(&mut self, label: Label) {
        self.u8(0xE9);
        self.jump_to(label);
    }

    pub(super) fn jump_if(&mut self, cc: Cc, label: Label) {
        self.bytes.extend_from_slice(&[0x0F, 0x80 | cc as u8]);
        self.jump_to(label);
    }

    fn jump_to(&mut self, label: Label) {
        self.jumps.push((self.bytes.len(), label));
        self.u32(0);
    }

    pub(super) fn push(&mut self, reg: u8) {
        self.bytes
            .extend_from_slice(&[0x40 | reg >> 3, 0x50 | reg & 7]);
    }

    pub(super) fn pop(&mut self, reg: u8) {
        self.bytes
            .extend_from_slice(&[0x40 | reg >> 3, 0x58 | reg & 7]);
    }

    /// `lock or dword [base], reg`
    pub(super) fn lock_or(&mut self, base: u8, reg: u8) {
        let rm = Rm::Mem(Address::Base(base, None, 0));
        self.plain(Some(0xF0), &[0x09], false, reg, rm, 0);
    }

    /// Waits for streamed stores.
    pub(super) fn sfence(&mut self) {
        self.bytes.extend_from_slice(&[0x0F, 0xAE, 0xF8]);
    }

    /// Leaves the upper halves clean for code without VEX, and returns.
    pub(super) fn leave(&mut self) {
        self.bytes.extend_from_slice(&[0xC5, 0xF8, 0x77, 0xC3]);
    }
}

/// Instructions of BMI2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bmi {
    Shl,
    ShrS,
    ShrU,
    /// The bits below a position.
    KeepBelow,
}

/// No-ops of 1 to 8 bytes.
const NOPS: [&[u8]; 8] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0F, 0x1F, 0x00],
    &[0x0F, 0x1F, 0x40, 0x00],
    &[0x0F, 0x1F, 0x44, 0x00, 0x00],
    &[0x66, 0x0F, 0x1F, 0x44, 0x00, 0x00],
    &[0x0F, 0x1F, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0F, 0x1F, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

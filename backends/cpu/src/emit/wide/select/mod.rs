//! From a vector program to machine instructions: blocks, variables, and the parts that registers of many lanes have.
//!
//! `arithmetic`, `scalar`, `convert` and `memory` have the operations.

mod arithmetic;
mod convert;
mod lanes;
mod memory;
mod scalar;

use super::code::{Class, Code, Constant, Place, Src, V, What};
use super::encode::{Alu, Cc, Width};
use super::forms::{self as f, Form};
use crate::vector::{self, BinOp, CmpOp, Conv, Elem, Op, Pattern, Program, Reg, Type, UnOp, Var};

/// The instructions of a program; `None` if it has operations that this emitter lacks.
pub(super) fn select(program: &Program, wide: bool) -> Option<Code> {
    let flow = flow(program);
    let mut s = Select {
        program,
        wide,
        code: Code::default(),
        values: vec![None; program.registers.len()],
        vars: vec![],
        range: [V(0); 2],
        arguments: V(0),
        cached: V(0),
        streams: false,
        flow,
        block_start: 0,
        lacking: false,
    };
    s.arguments = s.code.general(What::Argument(0), &[]);
    s.range = [1, 2].map(|n| s.code.general(What::Argument(n), &[]));
    for ty in &program.vars {
        let class = s.class(*ty);
        let count = s.shape(*ty).parts;
        let all = (0..count).map(|_| s.code.value(class)).collect();
        s.vars.push(all);
    }
    let streams = s.word(s.arguments, STREAMS);
    let none = [Src::Value(streams), Src::Int(0)];
    s.cached = s.code.general(What::Compare(Cc::Zero), &none);
    s.block(&program.body);
    if s.streams {
        let end = s.code.label();
        let src = [Src::Value(s.cached), Src::Int(0)];
        s.code.push(What::JumpIf(Cc::NotZero, end), None, &src);
        s.code.push(What::Fence, None, &[]);
        s.label(end);
    }
    (!s.lacking).then_some(s.code)
}

/// Offset of the flag in [`crate::jit::Arguments`].
const STREAMS: i32 = 24;

/// Offset of the address of zeros in [`crate::jit::Arguments`].
const ZEROS: i32 = 32;

/// How a register of lanes is cut into machine registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    width: Width,
    parts: usize,
    /// Lanes of a part.
    lanes: usize,
}

/// What is known of a program's register.
#[derive(Clone, Debug)]
enum Value {
    /// The bits of every lane.
    Constant(u64),
    Parts(Vec<V>),
    /// Elements next to each other in memory, which their only use loads as it widens them.
    Memory(Place),
}

struct Select<'p> {
    program: &'p Program,
    /// AVX-512.
    wide: bool,
    code: Code,
    values: Vec<Option<Value>>,
    vars: Vec<Vec<V>>,
    range: [V; 2],
    arguments: V,
    /// 0 when results are to be written around the caches, else 1.
    cached: V,
    /// Whether any store can do that.
    streams: bool,
    flow: Flow,
    /// First instruction of the open block.
    block_start: usize,
    /// An operation was met that has no instructions here.
    lacking: bool,
}

impl Select<'_> {
    fn ty(&self, reg: Reg) -> Type {
        self.program.ty(reg)
    }

    fn shape(&self, ty: Type) -> Shape {
        let lanes = usize::from(ty.lanes);
        if lanes == 1 {
            return Shape {
                width: Width::W128,
                parts: 1,
                lanes: 1,
            };
        }
        let per_byte = ty.elem.bits() as usize / 8;
        let most = if self.wide { 64 } else { 32 };
        let total = lanes * per_byte;
        let width = match total.min(most) {
            0..=16 => Width::W128,
            17..=32 => Width::W256,
            _ => Width::W512,
        };
        let parts = total.div_ceil(most).max(1);
        Shape {
            width,
            parts,
            lanes: lanes / parts,
        }
    }

    fn class(&self, ty: Type) -> Class {
        match (ty.lanes, ty.elem) {
            (1, e) if !e.is_float() => Class::General,
            (1, _) => Class::Vector,
            (_, e) if e.is_mask() && self.wide => Class::Mask,
            _ => Class::Vector,
        }
    }

    fn set(&mut self, reg: Reg, value: Value) {
        self.values[reg.0 as usize] = Some(value);
    }

    fn known(&self, reg: Reg) -> Option<u64> {
        match self.values[reg.0 as usize] {
            Some(Value::Constant(bits)) => Some(bits),
            _ => None,
        }
    }

    /// The machine registers of a register.
    fn parts(&mut self, reg: Reg) -> Vec<V> {
        let ty = self.ty(reg);
        match self.values[reg.0 as usize].clone() {
            Some(Value::Parts(all)) => all,
            Some(Value::Memory(place)) => self.load_dense(place, None, ty),
            Some(Value::Constant(bits)) => {
                let count = self.shape(ty).parts;
                let v = match self.class(ty) {
                    Class::General => self.int(bits as i64),
                    Class::Vector if ty.elem.is_mask() => {
                        let all = if bits & 1 == 1 { u64::MAX } else { 0 };
                        self.splat_constant(all, 64)
                    }
                    Class::Vector => self.splat_constant(bits, ty.elem.bits()),
                    Class::Mask => {
                        let lanes = self.shape(ty).lanes;
                        let all = if bits & 1 == 1 {
                            u64::MAX >> (64 - lanes)
                        } else {
                            0
                        };
                        let bits = self.int(all as i64);
                        self.rm(&f::KMOV_KR, Width::W128, Class::Mask, bits)
                    }
                };
                vec![v; count]
            }
            None => unreachable!("bug: {reg} is used before it is known"),
        }
    }

    /// The machine register of a register of one lane.
    fn one(&mut self, reg: Reg) -> V {
        self.parts(reg)[0]
    }

    /// A scalar integer as a source.
    fn int_src(&mut self, reg: Reg) -> Src {
        if let Some(bits) = self.known(reg)
            && let Ok(small) = i32::try_from(bits as i64)
        {
            return Src::Int(small);
        }
        Src::Value(self.one(reg))
    }

    /// A constant in a general register.
    fn int(&mut self, value: i64) -> V {
        let v = self.code.value(Class::General);
        self.code.push(What::Constant, Some(v), &[]).long = value;
        v
    }

    fn splat_constant(&mut self, bits: u64, width: u32) -> V {
        let keep = u64::MAX >> (64 - width);
        self.code
            .constant(Constant::Splat(bits & keep, (width / 8) as u8))
    }

    /// `form dst, a, b`
    fn rvm(&mut self, form: &'static Form, width: Width, a: V, b: V) -> V {
        let src = [Src::Value(a), Src::Value(b), Src::None];
        self.code.form(form, width, Class::Vector, src, None)
    }

    fn rvm_imm(&mut self, form: &'static Form, width: Width, a: V, b: V, imm: u8) -> V {
        let src = [Src::Value(a), Src::Value(b), Src::None];
        self.code.form(form, width, Class::Vector, src, Some(imm))
    }

    /// `form dst, b`
    fn rm(&mut self, form: &'static Form, width: Width, class: Class, b: V) -> V {
        self.code.form(
            form,
            width,
            class,
            [Src::None, Src::Value(b), Src::None],
            None,
        )
    }

    fn rm_imm(&mut self, form: &'static Form, width: Width, class: Class, b: V, imm: u8) -> V {
        self.code.form(
            form,
            width,
            class,
            [Src::None, Src::Value(b), Src::None],
            Some(imm),
        )
    }

    /// `form dst, a` with the result in the place of memory.
    fn mr(&mut self, form: &'static Form, width: Width, class: Class, a: V, imm: Option<u8>) -> V {
        self.code.form(
            form,
            width,
            class,
            [Src::Value(a), Src::None, Src::None],
            imm,
        )
    }

    fn load_from(&mut self, form: &'static Form, width: Width, place: Place, mask: Option<V>) -> V {
        let mask = mask.map_or(Src::None, Src::Value);
        let src = [Src::None, Src::Mem(place), mask];
        self.code.form(form, width, Class::Vector, src, None)
    }

    fn alu(&mut self, op: Alu, a: Src, b: Src) -> V {
        self.code.general(What::Alu(op), &[a, b])
    }

    fn block(&mut self, block: &[vector::Inst]) {
        let outer = std::mem::replace(&mut self.block_start, self.code.insts.len());
        for inst in block {
            self.step(inst);
        }
        self.block_start = outer.max(self.code.insts.len());
    }

    fn step(&mut self, inst: &vector::Inst) {
        match inst {
            vector::Inst::Let(reg, op) => {
                let value = self.op(*reg, op);
                self.set(*reg, value);
            }
            vector::Inst::Set(var, reg) => self.set_var(*var, *reg),
            vector::Inst::Store {
                place,
                value,
                guard,
            } => self.store(place, *value, *guard),
            vector::Inst::Call(..) => self.lacking = true,
            vector::Inst::Fault(mask, fault) => {
                let any = self.any(*mask);
                let none = self.code.label();
                self.code.push(
                    What::JumpIf(Cc::Zero, none),
                    None,
                    &[Src::Value(any), Src::Int(0)],
                );
                self.code.push(What::Fault(*fault as i32), None, &[]);
                self.label(none);
            }
            vector::Inst::Loop {
                counter,
                from,
                to,
                step,
                body,
            } => self.counted(*counter, *from, *to, *step, body),
            vector::Inst::If { cond, body } => {
                let after = self.code.label();
                let cond = self.one(*cond);
                self.code.push(
                    What::JumpIf(Cc::Zero, after),
                    None,
                    &[Src::Value(cond), Src::Int(0)],
                );
                self.block(body);
                self.label(after);
            }
        }
    }

    fn label(&mut self, label: super::encode::Label) {
        self.code.push(What::Label(label), None, &[]);
        // Nothing before this may be taken for what was computed last.
        self.block_start = self.code.insts.len();
    }

    /// A loop that is only reached when it runs at least once.
    fn counted(&mut self, counter: Reg, from: Reg, to: Reg, step: i64, body: &[vector::Inst]) {
        let at = self.code.value(Class::General);
        let (from, to) = (self.int_src(from), self.int_src(to));
        self.code.push(What::Move, Some(at), &[from]);
        self.set(counter, Value::Parts(vec![at]));
        let head = self.code.label();
        self.code.push(What::LoopStart, None, &[]);
        self.label(head);
        self.block(body);
        self.code.push(
            What::Alu(Alu::Add),
            Some(at),
            &[Src::Value(at), Src::Int(step as i32)],
        );
        self.code
            .push(What::JumpIf(Cc::Less, head), None, &[Src::Value(at), to]);
        self.code.push(What::LoopEnd, None, &[]);
        self.block_start = self.code.insts.len();
    }

    fn set_var(&mut self, var: Var, reg: Reg) {
        let homes = self.vars[var.0 as usize].clone();
        let constant = self.known(reg).is_some();
        let parts = self.parts(reg);
        for (home, part) in homes.into_iter().zip(parts) {
            if constant || !self.computed_into(home, part, reg) {
                self.code.push(What::Move, Some(home), &[Src::Value(part)]);
            }
        }
    }

    /// Makes the instruction that computed a value write the variable at once, if nothing is in the way.
    fn computed_into(&mut self, home: V, part: V, reg: Reg) -> bool {
        if self.flow.uses[reg.0 as usize] != 1 {
            return false;
        }
        let own = &mut self.code.insts[self.block_start..];
        let Some(at) = own.iter().rposition(|i| i.dst == Some(part)) else {
            return false;
        };
        let later = own[at + 1..]
            .iter()
            .any(|i| i.uses(part) || i.uses(home) || i.dst == Some(home));
        let twice = own[..at].iter().any(|i| i.dst == Some(part));
        if later || twice {
            return false;
        }
        own[at].dst = Some(home);
        true
    }

    fn op(&mut self, reg: Reg, op: &Op) -> Value {
        let ty = self.ty(reg);
        let parts = match op {
            Op::Const(bits) => return Value::Constant(*bits),
            Op::Splat(x) if self.known(*x).is_some() => {
                return Value::Constant(self.known(*x).unwrap_or(0));
            }
            Op::Size(s) => vec![self.argument(8, *s)],
            Op::Buffer(b) => vec![self.argument(0, *b)],
            Op::Begin => vec![self.range[0]],
            Op::End => vec![self.range[1]],
            Op::Splat(x) => self.splat(*x, ty),
            Op::Ramp(base, step) => self.ramp(*base, *step, ty),
            Op::Tail(count) => self.tail(*count, ty),
            Op::Pack(all) => {
                let all: Vec<V> = all.iter().map(|r| self.one(*r)).collect();
                self.pack(&all, ty)
            }
            Op::Extract(x, k) => vec![self.extract(*x, usize::from(*k))],
            Op::Unary(f, x) => self.unary(*f, *x, ty),
            Op::Binary(f, x, y) => self.binary(*f, *x, *y, ty),
            Op::Shift(f, x, n) => self.shift(*f, *x, *n, ty),
            Op::Cmp(f, x, y) => self.cmp(*f, *x, *y),
            Op::Select(m, x, y) => self.select(*m, *x, *y, ty),
            Op::Fma(x, y, z) => self.fma(*x, *y, *z, ty),
            Op::Convert(f, x) => self.convert(*f, *x, ty),
            Op::Load(place, None) if self.flow.widened[reg.0 as usize] => {
                return Value::Memory(self.address(place, ty.elem.bits() / 8));
            }
            Op::Load(place, guard) => self.load(place, *guard, ty),
            Op::Call(..) => self.lacks(ty),
            Op::Reduce(f, x) => vec![self.reduce(*f, *x)],
            Op::Get(var) => self.get_var(reg, *var),
        };
        Value::Parts(parts)
    }

    /// Stands for what cannot be computed here.
    fn lacks(&mut self, ty: Type) -> Vec<V> {
        self.lacking = true;
        let class = self.class(ty);
        vec![self.code.value(class); self.shape(ty).parts]
    }

    fn get_var(&mut self, reg: Reg, var: Var) -> Vec<V> {
        let homes = self.vars[var.0 as usize].clone();
        if !self.flow.overwritten[reg.0 as usize] {
            return homes;
        }
        let copy = |s: &mut Self, home: V| {
            let v = s.code.value(s.code.class(home));
            s.code.push(What::Move, Some(v), &[Src::Value(home)]);
            v
        };
        homes.into_iter().map(|h| copy(self, h)).collect()
    }

    /// An element of one of the lists in the arguments.
    fn argument(&mut self, list: i32, at: u32) -> V {
        let list = self.word(self.arguments, list);
        self.word(list, at as i32 * 8)
    }

    /// 64 bits in memory.
    fn word(&mut self, base: V, disp: i32) -> V {
        let from = Src::Mem(Place {
            base,
            index: None,
            disp,
        });
        self.code.general(What::Extend(8, false), &[from])
    }
}

/// What is known of the uses of registers.
struct Flow {
    /// Number of uses.
    uses: Vec<u32>,
    /// Of a variable's value: whether the variable is set again before its last use.
    overwritten: Vec<bool>,
    /// Loaded from neighbouring elements only to be widened, before anything is stored.
    widened: Vec<bool>,
}

fn flow(program: &Program) -> Flow {
    let count = program.registers.len();
    let mut walk = Walk {
        at: 0,
        uses: vec![0; count],
        born: vec![0; count],
        last: vec![0; count],
        sets: vec![],
        gets: vec![],
        loops: vec![],
        program,
        loaded: vec![],
        widened: vec![false; count],
    };
    walk.block(&program.body);
    let mut overwritten = vec![false; count];
    for (reg, var) in &walk.gets {
        let r = reg.0 as usize;
        let during = |at: &u32| *at > walk.born[r] && *at < walk.last[r];
        overwritten[r] = walk.sets.iter().any(|(v, at)| v == var && during(at));
    }
    let uses = walk.uses;
    let widened = (walk.widened.into_iter().zip(&uses)).map(|(w, uses)| w && *uses == 1);
    Flow {
        widened: widened.collect(),
        uses,
        overwritten,
    }
}

struct Walk<'p> {
    program: &'p Program,
    /// Loads of short lanes since a block began or something was stored.
    loaded: Vec<Reg>,
    widened: Vec<bool>,
    at: u32,
    uses: Vec<u32>,
    born: Vec<u32>,
    last: Vec<u32>,
    sets: Vec<(Var, u32)>,
    gets: Vec<(Reg, Var)>,
    /// Start of each open loop, and what is used in it from outside.
    loops: Vec<(u32, Vec<Reg>)>,
}

impl Walk<'_> {
    /// Takes note of loads, and of what becomes of them.
    fn note(&mut self, reg: Reg, op: &Op) {
        let ty = self.program.ty(reg);
        match op {
            Op::Load(place, None) if place.pattern == Pattern::Dense && ty.lanes > 1 => {
                self.loaded.push(reg);
            }
            Op::Convert(Conv::ZExt | Conv::SExt | Conv::Half, x)
                if ty.elem.bits() > self.program.ty(*x).elem.bits() && self.loaded.contains(x) =>
            {
                self.widened[x.0 as usize] = true;
            }
            _ => {}
        }
    }

    fn touch(&mut self, reg: Reg) {
        let r = reg.0 as usize;
        self.uses[r] += 1;
        self.last[r] = self.last[r].max(self.at);
        for (start, kept) in &mut self.loops {
            if self.born[r] < *start {
                kept.push(reg);
            }
        }
    }

    fn block(&mut self, block: &[vector::Inst]) {
        self.loaded.clear();
        for inst in block {
            self.at += 1;
            if !matches!(inst, vector::Inst::Let(..) | vector::Inst::Set(..)) {
                self.loaded.clear();
            }
            match inst {
                vector::Inst::Let(reg, op) => {
                    op.for_each_operand(&mut |r| self.touch(r));
                    self.note(*reg, op);
                    self.born[reg.0 as usize] = self.at;
                    if let Op::Get(var) = op {
                        self.gets.push((*reg, *var));
                    }
                }
                vector::Inst::Set(var, reg) => {
                    self.touch(*reg);
                    self.sets.push((*var, self.at));
                }
                vector::Inst::Store {
                    place,
                    value,
                    guard,
                } => {
                    place.for_each_operand(&mut |r| self.touch(r));
                    self.touch(*value);
                    guard.iter().for_each(|g| self.touch(*g));
                }
                vector::Inst::Call(_, all) => all.iter().for_each(|r| self.touch(*r)),
                vector::Inst::Fault(mask, _) => self.touch(*mask),
                vector::Inst::Loop {
                    counter,
                    from,
                    to,
                    body,
                    ..
                } => {
                    self.touch(*from);
                    self.loops.push((self.at, vec![]));
                    self.touch(*to);
                    self.born[counter.0 as usize] = self.at;
                    self.block(body);
                    self.at += 1;
                    let (_, kept) = self.loops.pop().unwrap_or_default();
                    for reg in kept {
                        let last = &mut self.last[reg.0 as usize];
                        *last = self.at.max(*last);
                    }
                }
                vector::Inst::If { cond, body } => {
                    self.touch(*cond);
                    self.block(body);
                }
            }
        }
    }
}

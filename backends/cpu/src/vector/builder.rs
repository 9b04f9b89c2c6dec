//! Builds programs: every operation goes to the outermost open block that has its operands, once.

use super::{BinOp, CmpOp, Conv, Elem, Fault, Inst, Op, Program, Reg, Type, UnOp, Var};
use rustc_hash::FxHashMap;

/// An open block.
#[derive(Debug, Default)]
pub(crate) struct Level {
    insts: Vec<Inst>,
    known: FxHashMap<(Op, Type), Reg>,
    faults: Vec<(Reg, Fault)>,
    /// Entered only under a condition: what must not run without need (loads, faults) is not moved above it.
    barrier: bool,
    opener: Option<Opener>,
}

#[derive(Debug)]
enum Opener {
    Loop {
        counter: Reg,
        from: Reg,
        to: Reg,
        step: i64,
    },
    If(Reg),
}

/// A program under construction.
#[derive(Debug)]
pub(crate) struct Builder {
    types: Vec<Type>,
    homes: Vec<usize>,
    vars: Vec<Type>,
    levels: Vec<Level>,
    constants: FxHashMap<Reg, u64>,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            types: vec![],
            homes: vec![],
            vars: vec![],
            levels: vec![Level::default()],
            constants: FxHashMap::default(),
        }
    }

    /// Ends the program. All blocks must be closed.
    pub(crate) fn finish(mut self, name: &str) -> Program {
        debug_assert_eq!(self.levels.len(), 1, "bug: open blocks");
        Program {
            name: name.to_string(),
            registers: self.types,
            vars: self.vars,
            body: self.levels.pop().map(|l| l.insts).unwrap_or_default(),
        }
    }

    pub(crate) fn ty(&self, reg: Reg) -> Type {
        self.types[reg.0 as usize]
    }

    pub(crate) fn lanes(&self, reg: Reg) -> u16 {
        self.ty(reg).lanes
    }

    pub(crate) fn elem(&self, reg: Reg) -> Elem {
        self.ty(reg).elem
    }

    /// Number of the block that a register is defined in.
    pub(crate) fn home(&self, reg: Reg) -> usize {
        self.homes[reg.0 as usize]
    }

    /// Number of the innermost open block.
    pub(crate) fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// Number of the innermost block that is only entered under a condition.
    pub(crate) fn barrier(&self) -> usize {
        self.levels.iter().rposition(|l| l.barrier).unwrap_or(0)
    }

    fn define(&mut self, level: usize, ty: Type, op: Op) -> Reg {
        let reg = Reg(self.types.len() as u32);
        self.types.push(ty);
        self.homes.push(level);
        self.levels[level].insts.push(Inst::Let(reg, op));
        reg
    }

    fn operands_home(&self, op: &Op) -> usize {
        let mut home = 0;
        op.for_each_operand(&mut |r| home = home.max(self.home(r)));
        home
    }

    /// A pure operation.
    pub(crate) fn op(&mut self, op: Op, ty: Type) -> Reg {
        self.op_from(op, ty, 0)
    }

    /// An operation that must not run when the program would not reach this place.
    pub(crate) fn careful(&mut self, op: Op, ty: Type) -> Reg {
        let barrier = self.barrier();
        self.op_from(op, ty, barrier)
    }

    /// An operation whose result may differ each time this place is reached.
    pub(crate) fn fresh(&mut self, op: Op, ty: Type) -> Reg {
        let depth = self.depth();
        self.define(depth, ty, op)
    }

    fn op_from(&mut self, op: Op, ty: Type, outermost: usize) -> Reg {
        if let Some(c) = self.folded(&op) {
            return c;
        }
        let level = self.operands_home(&op).max(outermost);
        let key = (op, ty);
        if let Some(reg) = self.levels[..=level]
            .iter()
            .find_map(|l| l.known.get(&key).copied())
        {
            return reg;
        }
        let reg = self.define(level, ty, key.0.clone());
        self.levels[level].known.insert(key, reg);
        reg
    }

    /// Constant of an index register.
    pub(crate) fn as_const(&self, reg: Reg) -> Option<i64> {
        if self.ty(reg) != Type::INDEX {
            return None;
        }
        self.constant_bits(reg).map(|bits| bits as i64)
    }

    /// Bits of a constant of one lane.
    pub(crate) fn constant_bits(&self, reg: Reg) -> Option<u64> {
        self.constants.get(&reg).copied()
    }

    /// Index arithmetic that needs no instruction.
    fn folded(&mut self, op: &Op) -> Option<Reg> {
        let Op::Binary(f, a, b) = *op else {
            return None;
        };
        if self.ty(a) != Type::INDEX {
            return None;
        }
        let (x, y) = (self.as_const(a), self.as_const(b));
        match (f, x, y) {
            (BinOp::Add, Some(0), _) | (BinOp::Mul, Some(1), _) => Some(b),
            (BinOp::Add | BinOp::Sub, _, Some(0))
            | (BinOp::Mul | BinOp::DivU | BinOp::DivS, _, Some(1)) => Some(a),
            (BinOp::Mul, Some(0), _) => Some(a),
            (BinOp::Mul, _, Some(0)) => Some(b),
            (BinOp::RemU | BinOp::RemS, _, Some(1)) => Some(self.index(0)),
            (BinOp::Add, Some(x), Some(y)) => Some(self.index(x.wrapping_add(y))),
            (BinOp::Sub, Some(x), Some(y)) => Some(self.index(x.wrapping_sub(y))),
            (BinOp::Mul, Some(x), Some(y)) => Some(self.index(x.wrapping_mul(y))),
            (BinOp::And, Some(x), Some(y)) => Some(self.index(x & y)),
            (BinOp::MinS, Some(x), Some(y)) => Some(self.index(x.min(y))),
            (BinOp::MaxS, Some(x), Some(y)) => Some(self.index(x.max(y))),
            _ => None,
        }
    }

    /// A constant index.
    pub(crate) fn index(&mut self, value: i64) -> Reg {
        self.constant(value as u64, Type::INDEX)
    }

    /// A constant of any type, given by its bits.
    pub(crate) fn constant(&mut self, bits: u64, ty: Type) -> Reg {
        let reg = self.op(Op::Const(bits), ty);
        if ty.lanes == 1 {
            self.constants.insert(reg, bits);
        }
        reg
    }

    /// A float constant in an f32 or f64 type.
    pub(crate) fn float(&mut self, value: f64, ty: Type) -> Reg {
        let bits = match ty.elem {
            Elem::F32 => u64::from((value as f32).to_bits()),
            _ => value.to_bits(),
        };
        self.constant(bits, ty)
    }

    /// Widens a scalar to this many lanes; what has them already is unchanged.
    pub(crate) fn splat(&mut self, x: Reg, lanes: u16) -> Reg {
        let ty = self.ty(x);
        if ty.lanes == lanes {
            return x;
        }
        self.op(
            Op::Splat(x),
            Type {
                elem: ty.elem,
                lanes,
            },
        )
    }

    /// Both operands with equally many lanes.
    pub(crate) fn level_lanes(&mut self, a: Reg, b: Reg) -> (Reg, Reg) {
        let lanes = self.lanes(a).max(self.lanes(b));
        (self.splat(a, lanes), self.splat(b, lanes))
    }

    pub(crate) fn unary(&mut self, f: UnOp, x: Reg) -> Reg {
        self.op(Op::Unary(f, x), self.ty(x))
    }

    pub(crate) fn binary(&mut self, f: BinOp, a: Reg, b: Reg) -> Reg {
        let (a, b) = if self.elem(a).is_mask() {
            self.level_masks(a, b)
        } else {
            self.level_lanes(a, b)
        };
        self.op(Op::Binary(f, a, b), self.ty(a))
    }

    /// Two masks with equally many lanes of equal width.
    pub(crate) fn level_masks(&mut self, a: Reg, b: Reg) -> (Reg, Reg) {
        let lanes = self.lanes(a).max(self.lanes(b));
        let bits = self.elem(a).bits().max(self.elem(b).bits());
        let ty = Type::mask(bits, lanes);
        (self.mask_as(a, ty), self.mask_as(b, ty))
    }

    /// A mask as another mask type.
    pub(crate) fn mask_as(&mut self, mask: Reg, ty: Type) -> Reg {
        let mask = self.splat(mask, ty.lanes);
        if self.ty(mask) == ty {
            return mask;
        }
        self.op(Op::Convert(Conv::Mask, mask), ty)
    }

    pub(crate) fn shift(&mut self, f: BinOp, x: Reg, count: u8) -> Reg {
        self.op(Op::Shift(f, x, count), self.ty(x))
    }

    pub(crate) fn cmp(&mut self, f: CmpOp, a: Reg, b: Reg) -> Reg {
        let (a, b) = self.level_lanes(a, b);
        let t = self.ty(a);
        self.op(Op::Cmp(f, a, b), Type::mask(t.elem.bits(), t.lanes))
    }

    /// `mask ? a : b` for values that are not masks.
    pub(crate) fn select(&mut self, mask: Reg, a: Reg, b: Reg) -> Reg {
        let lanes = self.lanes(mask).max(self.lanes(a)).max(self.lanes(b));
        let (a, b) = (self.splat(a, lanes), self.splat(b, lanes));
        let ty = self.ty(a);
        let mask = self.mask_as(mask, Type::mask(ty.elem.bits(), lanes));
        self.op(Op::Select(mask, a, b), ty)
    }

    pub(crate) fn fma(&mut self, a: Reg, b: Reg, c: Reg) -> Reg {
        let lanes = self.lanes(a).max(self.lanes(b)).max(self.lanes(c));
        let (a, b, c) = (
            self.splat(a, lanes),
            self.splat(b, lanes),
            self.splat(c, lanes),
        );
        self.op(Op::Fma(a, b, c), self.ty(a))
    }

    /// Conversion to another element type, lanes kept.
    pub(crate) fn convert(&mut self, f: Conv, x: Reg, elem: Elem) -> Reg {
        let t = self.ty(x);
        if t.elem == elem {
            return x;
        }
        self.op(
            Op::Convert(f, x),
            Type {
                elem,
                lanes: t.lanes,
            },
        )
    }

    pub(crate) fn add(&mut self, a: Reg, b: Reg) -> Reg {
        self.binary(BinOp::Add, a, b)
    }

    pub(crate) fn sub(&mut self, a: Reg, b: Reg) -> Reg {
        self.binary(BinOp::Sub, a, b)
    }

    pub(crate) fn mul(&mut self, a: Reg, b: Reg) -> Reg {
        self.binary(BinOp::Mul, a, b)
    }

    /// A variable with a start value set here.
    pub(crate) fn var(&mut self, init: Reg) -> Var {
        let var = Var(self.vars.len() as u32);
        self.vars.push(self.ty(init));
        self.push(Inst::Set(var, init));
        var
    }

    pub(crate) fn get(&mut self, var: Var) -> Reg {
        let ty = self.vars[var.0 as usize];
        self.fresh(Op::Get(var), ty)
    }

    /// Records a fault, once for each mask.
    pub(crate) fn fault(&mut self, mask: Reg, fault: Fault) {
        let level = self.home(mask).max(self.barrier());
        let known = &mut self.levels[level].faults;
        if !known.contains(&(mask, fault)) {
            known.push((mask, fault));
            self.levels[level].insts.push(Inst::Fault(mask, fault));
        }
    }

    /// A step at this place.
    pub(crate) fn push(&mut self, inst: Inst) {
        let depth = self.depth();
        self.levels[depth].insts.push(inst);
    }

    /// Opens a loop and gives its counter.
    pub(crate) fn open_loop(&mut self, from: Reg, to: Reg, step: i64) -> Reg {
        let counter = Reg(self.types.len() as u32);
        self.types.push(Type::INDEX);
        self.homes.push(self.levels.len());
        self.levels.push(Level {
            opener: Some(Opener::Loop {
                counter,
                from,
                to,
                step,
            }),
            ..Level::default()
        });
        counter
    }

    /// Opens a conditional block.
    pub(crate) fn open_if(&mut self, cond: Reg) {
        self.levels.push(Level {
            barrier: true,
            opener: Some(Opener::If(cond)),
            ..Level::default()
        });
    }

    /// Closes the innermost loop or conditional block.
    pub(crate) fn close(&mut self) {
        let Some(Level {
            insts: body,
            opener: Some(opener),
            ..
        }) = self.levels.pop()
        else {
            unreachable!("bug: no open block")
        };
        if body.is_empty() {
            return;
        }
        self.push(match opener {
            Opener::Loop {
                counter,
                from,
                to,
                step,
            } => Inst::Loop {
                counter,
                from,
                to,
                step,
                body,
            },
            Opener::If(cond) => Inst::If { cond, body },
        });
    }
}

impl Op {
    /// Calls `visit` for every register read.
    pub(crate) fn for_each_operand(&self, visit: &mut dyn FnMut(Reg)) {
        match self {
            Op::Const(_) | Op::Size(_) | Op::Buffer(_) | Op::Begin | Op::End | Op::Get(_) => {}
            Op::Splat(a)
            | Op::Ramp(a, _)
            | Op::Tail(a)
            | Op::Extract(a, _)
            | Op::Unary(_, a)
            | Op::Shift(_, a, _)
            | Op::Convert(_, a)
            | Op::Reduce(_, a) => visit(*a),
            Op::Binary(_, a, b) | Op::Cmp(_, a, b) => [*a, *b].into_iter().for_each(visit),
            Op::Select(a, b, c) | Op::Fma(a, b, c) => [*a, *b, *c].into_iter().for_each(visit),
            Op::Pack(all) | Op::Call(_, all) => all.iter().copied().for_each(visit),
            Op::Load(place, guard) => {
                place.for_each_operand(visit);
                guard.iter().copied().for_each(visit);
            }
        }
    }
}

impl super::Place {
    /// Calls `visit` for every register read.
    pub(crate) fn for_each_operand(&self, visit: &mut dyn FnMut(Reg)) {
        visit(self.base);
        self.index.iter().copied().for_each(&mut *visit);
        match &self.pattern {
            super::Pattern::Dense => {}
            super::Pattern::Strided(s) => visit(*s),
            super::Pattern::Each(all) => all.iter().copied().for_each(visit),
        }
    }
}

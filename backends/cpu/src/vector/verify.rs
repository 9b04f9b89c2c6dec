//! The verifier of vector programs: registers are assigned once and used where they are known, and types agree.
//!
//! Development builds check every program before it becomes machine code.

use super::{BinOp, Elem, Inst, Op, Pattern, Place, Program, Reg, Type};

/// What is wrong with a program; the first mistake found.
pub(crate) fn verify(program: &Program) -> Result<(), String> {
    let mut verifier = Verifier {
        program,
        assigned: vec![false; program.registers.len()],
        known: vec![],
    };
    verifier.block(&program.body)
}

struct Verifier<'p> {
    program: &'p Program,
    assigned: Vec<bool>,
    /// Registers assigned in the open blocks, in order.
    known: Vec<Reg>,
}

impl Verifier<'_> {
    fn block(&mut self, block: &[Inst]) -> Result<(), String> {
        let outer = self.known.len();
        for inst in block {
            self.inst(inst)?;
        }
        // What a block assigns is not known after it.
        self.known.truncate(outer);
        Ok(())
    }

    fn inst(&mut self, inst: &Inst) -> Result<(), String> {
        match inst {
            Inst::Let(reg, op) => {
                self.op(*reg, op)
                    .map_err(|e| format!("{reg}: {} = {op}: {e}", self.program.ty(*reg)))?;
                self.assign(*reg)
            }
            Inst::Set(var, reg) => {
                let ty = self.program.vars[var.0 as usize];
                self.expect(*reg, ty)
            }
            Inst::Store {
                place,
                value,
                guard,
            } => {
                let ty = self.ty(*value)?;
                self.guard(*guard, ty)
                    .map_err(|()| "a store under no mask".to_string())?;
                self.place(place, ty)
            }
            Inst::Call(_, operands) => operands.iter().try_for_each(|r| self.ty(*r).map(drop)),
            Inst::Fault(mask, _) => match self.ty(*mask)? {
                ty if ty.elem.is_mask() => Ok(()),
                ty => Err(format!("a fault under {mask}: {ty}")),
            },
            Inst::Loop {
                counter,
                from,
                to,
                step,
                body,
            } => {
                self.expect(*from, Type::INDEX)?;
                self.expect(*to, Type::INDEX)?;
                if *step < 1 || self.program.ty(*counter) != Type::INDEX {
                    return Err(format!("a loop by {step} over {counter}"));
                }
                let outer = self.known.len();
                self.assign(*counter)?;
                self.block(body)?;
                self.known.truncate(outer);
                Ok(())
            }
            Inst::If { cond, body } => {
                self.expect(*cond, Type::mask(8, 1))?;
                self.block(body)
            }
        }
    }

    fn assign(&mut self, reg: Reg) -> Result<(), String> {
        let before = std::mem::replace(&mut self.assigned[reg.0 as usize], true);
        self.known.push(reg);
        match before {
            true => Err(format!("{reg} is assigned twice")),
            false => Ok(()),
        }
    }

    /// The type of a register that is used.
    fn ty(&self, reg: Reg) -> Result<Type, String> {
        match self.known.contains(&reg) {
            true => Ok(self.program.ty(reg)),
            false => Err(format!("{reg} is not known here")),
        }
    }

    fn expect(&self, reg: Reg, ty: Type) -> Result<(), String> {
        match self.ty(reg)? {
            found if found == ty => Ok(()),
            found => Err(format!("{reg}: {found} where {ty} is taken")),
        }
    }

    fn all(&self, regs: &[Reg], ty: Type) -> Result<(), String> {
        regs.iter().try_for_each(|r| self.expect(*r, ty))
    }

    /// A mask for the lanes of a type, if any.
    fn guard(&self, guard: Option<Reg>, ty: Type) -> Result<(), ()> {
        let Some(guard) = guard else { return Ok(()) };
        match self.ty(guard) {
            Ok(mask) if mask.elem.is_mask() && mask.lanes == ty.lanes => Ok(()),
            _ => Err(()),
        }
    }

    /// A place that holds elements of this type.
    fn place(&self, place: &Place, ty: Type) -> Result<(), String> {
        self.expect(place.base, Type::INDEX)?;
        if let Some(index) = place.index {
            self.expect(index, Type::INDEX)?;
        }
        match &place.pattern {
            Pattern::Dense => Ok(()),
            Pattern::Strided(stride) => self.expect(*stride, Type::INDEX),
            Pattern::Each(all) if all.len() == usize::from(ty.lanes) => self.all(all, Type::INDEX),
            Pattern::Each(all) => Err(format!("{} places for {ty}", all.len())),
        }
    }

    fn op(&self, reg: Reg, op: &Op) -> Result<(), String> {
        let ty = self.program.ty(reg);
        let one = Type { lanes: 1, ..ty };
        let wrong = || Err(format!("gives no {ty}"));
        let must = |holds: bool| if holds { Ok(()) } else { wrong() };
        match op {
            Op::Const(_) => Ok(()),
            Op::Size(_) | Op::Buffer(_) | Op::Begin | Op::End => must(ty == Type::INDEX),
            Op::Splat(x) => {
                let from = self.ty(*x)?;
                must(from.lanes == 1 && same_kind(from.elem, ty.elem))
            }
            Op::Ramp(base, _) => {
                must(!ty.elem.is_float() && !ty.elem.is_mask())?;
                let from = self.ty(*base)?;
                must(from.lanes == 1 && !from.elem.is_float())
            }
            Op::Tail(count) => {
                must(ty.elem.is_mask() && ty.lanes > 1)?;
                self.expect(*count, Type::INDEX)
            }
            Op::Pack(all) => {
                must(all.len() == usize::from(ty.lanes))?;
                let kinds = |r: &Reg| must(same_kind(self.ty(*r)?.elem, ty.elem));
                all.iter().try_for_each(kinds)
            }
            Op::Extract(x, k) => {
                let from = self.ty(*x)?;
                must(*k < from.lanes && ty.lanes == 1 && same_kind(from.elem, ty.elem))
            }
            Op::Unary(_, x) => self.expect(*x, ty),
            Op::Binary(_, x, y) => self.all(&[*x, *y], ty),
            Op::Shift(f, x, n) => {
                must(matches!(f, BinOp::Shl | BinOp::ShrS | BinOp::ShrU))?;
                must(u32::from(*n) < ty.elem.bits() && !ty.elem.is_float())?;
                self.expect(*x, ty)
            }
            Op::Cmp(_, x, y) => {
                let from = self.ty(*x)?;
                self.expect(*y, from)?;
                must(ty == Type::mask(from.elem.bits(), from.lanes))
            }
            Op::Select(mask, x, y) => {
                self.all(&[*x, *y], ty)?;
                let mask = self.ty(*mask)?;
                must(mask == Type::mask(ty.elem.bits(), ty.lanes))
            }
            Op::Fma(x, y, z) => self.all(&[*x, *y, *z], ty),
            Op::Convert(_, x) => must(self.ty(*x)?.lanes == ty.lanes),
            Op::Load(place, guard) => {
                self.guard(*guard, ty).or_else(|()| wrong())?;
                self.place(place, ty)
            }
            Op::Call(_, operands) => operands.iter().try_for_each(|r| {
                let lanes = self.ty(*r)?.lanes;
                must(lanes == ty.lanes)
            }),
            Op::Reduce(_, x) => {
                must(ty.lanes == 1)?;
                let from = self.ty(*x)?;
                must(same_kind(from.elem, one.elem))
            }
            Op::Get(var) => must(self.program.vars[var.0 as usize] == ty),
        }
    }
}

/// Whether lanes of one register can be lanes of the other: masks of a single lane have a width of their own.
fn same_kind(x: Elem, y: Elem) -> bool {
    x == y || x.is_mask() && y.is_mask()
}

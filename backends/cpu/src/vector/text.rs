//! The text form, for listings and tests.

use super::{Elem, Inst, Op, Pattern, Place, Program, Reg, Type, Var};
use std::fmt::{self, Display, Formatter};

impl Display for Reg {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl Display for Var {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl Display for Elem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl Display for Type {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.lanes {
            1 => write!(f, "{}", self.elem),
            n => write!(f, "{}x{n}", self.elem),
        }
    }
}

fn list(regs: &[Reg]) -> String {
    let all: Vec<String> = regs.iter().map(Reg::to_string).collect();
    all.join(", ")
}

fn lower<T: fmt::Debug>(x: T) -> String {
    format!("{x:?}").to_lowercase()
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[{}", self.base)?;
        if let Some(i) = self.index {
            write!(f, " + {i}")?;
        }
        match &self.pattern {
            Pattern::Dense => {}
            Pattern::Strided(s) => write!(f, " step {s}")?,
            Pattern::Each(all) => write!(f, " each {}", list(all))?,
        }
        f.write_str("]")
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Op::Const(c) => write!(f, "const {:#x}", c),
            Op::Size(s) => write!(f, "size {s}"),
            Op::Buffer(b) => write!(f, "buffer {b}"),
            Op::Begin => f.write_str("begin"),
            Op::End => f.write_str("end"),
            Op::Splat(x) => write!(f, "splat {x}"),
            Op::Ramp(x, s) => write!(f, "ramp {x}, {s}"),
            Op::Tail(n) => write!(f, "tail {n}"),
            Op::Pack(all) => write!(f, "pack {}", list(all)),
            Op::Extract(x, k) => write!(f, "extract {x}, {k}"),
            Op::Unary(op, x) => write!(f, "{} {x}", lower(op)),
            Op::Binary(op, x, y) => write!(f, "{} {x}, {y}", lower(op)),
            Op::Shift(op, x, n) => write!(f, "{} {x}, #{n}", lower(op)),
            Op::Cmp(op, x, y) => write!(f, "{} {x}, {y}", lower(op)),
            Op::Select(m, x, y) => write!(f, "select {m}, {x}, {y}"),
            Op::Fma(x, y, z) => write!(f, "fma {x}, {y}, {z}"),
            Op::Convert(c, x) => write!(f, "{} {x}", lower(c)),
            Op::Load(p, None) => write!(f, "load {p}"),
            Op::Load(p, Some(g)) => write!(f, "load {p} if {g}"),
            Op::Call(h, all) => write!(f, "call {h:?} ({})", list(all)),
            Op::Reduce(op, x) => write!(f, "reduce {} {x}", lower(op)),
            Op::Get(v) => write!(f, "get {v}"),
        }
    }
}

impl Display for Program {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}", self.name)?;
        self.block(f, &self.body, 1)
    }
}

impl Program {
    fn block(&self, f: &mut Formatter<'_>, block: &[Inst], depth: usize) -> fmt::Result {
        for inst in block {
            (0..depth).try_for_each(|_| f.write_str("  "))?;
            match inst {
                Inst::Let(r, op) => writeln!(f, "{r}: {} = {op}", self.ty(*r))?,
                Inst::Set(v, r) => writeln!(f, "set {v} = {r}")?,
                Inst::Store {
                    place,
                    value,
                    guard: None,
                } => writeln!(f, "store {place} = {value}")?,
                Inst::Store {
                    place,
                    value,
                    guard: Some(g),
                } => writeln!(f, "store {place} = {value} if {g}")?,
                Inst::Call(h, all) => writeln!(f, "call {h:?} ({})", list(all))?,
                Inst::Fault(m, fault) => writeln!(f, "fault {} if {m}", lower(fault))?,
                Inst::Loop {
                    counter,
                    from,
                    to,
                    step,
                    body,
                } => {
                    writeln!(f, "loop {counter} = {from} to {to} by {step}")?;
                    self.block(f, body, depth + 1)?;
                }
                Inst::If { cond, body } => {
                    writeln!(f, "if {cond}")?;
                    self.block(f, body, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}

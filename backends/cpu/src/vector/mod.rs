//! The vector program: explicit lanes, virtual registers and counted loops, between a kernel and machine code.
//!
//! A [`Program`] computes one range of a kernel's parallel positions. Registers are assigned once; values that change
//! over loop iterations are [`Var`]s. A register holds one element or `lanes` elements, for any power of two: how many
//! machine registers that takes is the emitter's business. All decisions of schedule are made when it is built: lanes,
//! order, unrolling (by more lanes than a machine register holds), hoisting, common subexpressions.
//!
//! Reading order: this file, `text`, `verify`, `builder` (hoisting and sharing), `lower` (phases and loops), `index`, `expr`,
//! `scalar`, `convert`, `random`.

mod builder;
mod convert;
mod expr;
mod index;
mod lower;
mod random;
mod scalar;
mod text;
mod verify;

#[cfg(test)]
mod tests;

pub(crate) use lower::{Machine, Shape, lower};
pub(crate) use verify::verify;

use crate::emit::helpers::Helper;

/// A virtual register: position in [`Program::registers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reg(pub u32);

/// A variable: position in [`Program::vars`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Var(pub u32);

/// What one lane holds. Integers have no sign; masks are all ones or all zeros in vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Elem {
    I8,
    I16,
    I32,
    I64,
    F32,
    F64,
    /// Truth value beside elements of 8 bits; the others likewise. A single lane is always `M8`.
    M8,
    M16,
    M32,
    M64,
}

impl Elem {
    /// Bits of a lane.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Elem::I8 | Elem::M8 => 8,
            Elem::I16 | Elem::M16 => 16,
            Elem::I32 | Elem::F32 | Elem::M32 => 32,
            Elem::I64 | Elem::F64 | Elem::M64 => 64,
        }
    }

    pub(crate) fn is_mask(self) -> bool {
        matches!(self, Elem::M8 | Elem::M16 | Elem::M32 | Elem::M64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F64)
    }

    /// The integer of that width.
    pub(crate) fn int(bits: u32) -> Elem {
        match bits {
            8 => Elem::I8,
            16 => Elem::I16,
            32 => Elem::I32,
            _ => Elem::I64,
        }
    }

    /// The mask of that width.
    pub(crate) fn mask(bits: u32) -> Elem {
        match bits {
            8 => Elem::M8,
            16 => Elem::M16,
            32 => Elem::M32,
            _ => Elem::M64,
        }
    }
}

/// Contents of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Type {
    pub elem: Elem,
    /// 1, or the lanes of the loop.
    pub lanes: u16,
}

impl Type {
    pub(crate) const INDEX: Type = Type {
        elem: Elem::I64,
        lanes: 1,
    };

    /// A truth value: of one lane always `M8`.
    pub(crate) fn mask(bits: u32, lanes: u16) -> Type {
        let elem = if lanes == 1 {
            Elem::M8
        } else {
            Elem::mask(bits)
        };
        Type { elem, lanes }
    }
}

/// Of one operand, type kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum UnOp {
    Neg,
    Abs,
    Not,
    Sqrt,
    Floor,
    Ceil,
    Nearest,
    Trunc,
    PopCount,
}

/// Of two operands of one type, type kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BinOp {
    Add,
    Sub,
    Mul,
    /// All 64 bits of the product of the low halves of two I64, which count as unsigned.
    MulHalves,
    /// Float quotient.
    Div,
    /// Integer quotient toward zero; `x / 0 = 0`, `MIN / -1 = MIN`.
    DivS,
    DivU,
    /// Integer remainder with the sign of `x`; `x rem 0 = 0`.
    RemS,
    RemU,
    /// The smaller; floats: either of equal ones, NaN if either is.
    MinS,
    MinU,
    MaxS,
    MaxU,
    MinF,
    MaxF,
    /// The smaller float; the second operand if either is NaN or both are equal.
    MinOrSecond,
    MaxOrSecond,
    And,
    Or,
    Xor,
    /// Shifts by a count below the width, in the low bits of each lane.
    Shl,
    ShrS,
    ShrU,
}

/// Comparison; with NaN only `Ne` is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CmpOp {
    Eq,
    Ne,
    LtS,
    LeS,
    LtU,
    LeU,
    LtF,
    LeF,
}

/// Conversion to the type of the result register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Conv {
    /// Wider integer, sign repeated.
    SExt,
    /// Wider integer, zeros above.
    ZExt,
    /// Narrower integer, low bits.
    Wrap,
    /// Signed integer to float, nearest.
    SToF,
    /// Unsigned integer to float, nearest.
    UToF,
    /// Float to signed integer, toward zero, saturating, NaN to 0.
    FToS,
    /// Float to unsigned integer likewise.
    FToU,
    /// f32 to f64 or back.
    Float,
    /// Same bits.
    Bits,
    /// Mask of another width.
    Mask,
    /// Bits of half precision (in an I16) to f32 or back, nearest.
    Half,
}

/// Where the lanes of a load or store lie, in elements from the first one's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pattern {
    /// Next to each other (also: the only one).
    Dense,
    /// At multiples of a stride known at run time; 1 is common.
    Strided(Reg),
    /// Anywhere.
    Each(Box<[Reg]>),
}

/// An address: `base + index * size of an element`, both scalars.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub base: Reg,
    pub index: Option<Reg>,
    pub pattern: Pattern,
}

/// What a register is computed from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// The same bits in every lane.
    Const(u64),
    /// Run-time size.
    Size(u32),
    /// First byte of a buffer argument.
    Buffer(u32),
    /// First position of the range.
    Begin,
    /// End of the range.
    End,
    /// Every lane.
    Splat(Reg),
    /// Lane `k` is `base + k * step` (integers).
    Ramp(Reg, i64),
    /// Set in the lanes below a count between 0 and the lanes.
    Tail(Reg),
    /// Lanes from scalars.
    Pack(Box<[Reg]>),
    /// One lane.
    Extract(Reg, u16),
    Unary(UnOp, Reg),
    Binary(BinOp, Reg, Reg),
    /// `Shl`, `ShrS` or `ShrU` by a constant below the width.
    Shift(BinOp, Reg, u8),
    Cmp(CmpOp, Reg, Reg),
    /// Mask, then the value where it is set, then the other.
    Select(Reg, Reg, Reg),
    /// `a * b + c`, rounded once or twice.
    Fma(Reg, Reg, Reg),
    Convert(Conv, Reg),
    /// Reads elements; where the mask is unset nothing is read and the value is 0.
    Load(Place, Option<Reg>),
    /// A host function, lane by lane.
    Call(Helper, Box<[Reg]>),
    /// All lanes combined into one.
    Reduce(BinOp, Reg),
    /// The present value of a variable.
    Get(Var),
}

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Inst {
    Let(Reg, Op),
    Set(Var, Reg),
    /// Writes elements; where the mask is unset nothing is written.
    Store {
        place: Place,
        value: Reg,
        guard: Option<Reg>,
    },
    /// A host function called for its effect, lane by lane.
    Call(Helper, Box<[Reg]>),
    /// Records a fault when any lane of the mask is set.
    Fault(Reg, Fault),
    /// `counter` runs from `from` to below `to` by `step`.
    Loop {
        counter: Reg,
        from: Reg,
        to: Reg,
        step: i64,
        body: Vec<Inst>,
    },
    /// Runs the body when the scalar mask is set.
    If {
        cond: Reg,
        body: Vec<Inst>,
    },
}

/// What went wrong in a launch: a bit of the fault word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Fault {
    /// An index outside its axis.
    Index = 1,
    /// Integer division by zero.
    Division = 2,
}

/// Code for one range of parallel positions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Program {
    /// Name for listings.
    pub name: String,
    /// Types of registers.
    pub registers: Vec<Type>,
    /// Types of variables.
    pub vars: Vec<Type>,
    /// Steps.
    pub body: Vec<Inst>,
}

impl Program {
    /// Type of a register.
    pub(crate) fn ty(&self, reg: Reg) -> Type {
        self.registers[reg.0 as usize]
    }
}

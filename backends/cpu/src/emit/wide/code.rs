//! Machine instructions over values that have no registers yet: what selection makes and allocation reads.

use super::encode::{Alu, Bmi, Cc, Label, Width};
use super::forms::Form;
use rustc_hash::FxHashMap;

/// A value that needs a register. Most are written once; variables, and the results of branches, more often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct V(pub u32);

/// Kinds of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    General,
    Vector,
    /// Of AVX-512.
    Mask,
}

/// An address of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub base: V,
    /// Index and the logarithm of its factor.
    pub index: Option<(V, u8)>,
    pub disp: i32,
}

/// A source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Src {
    None,
    Value(V),
    Int(i32),
    Mem(Place),
}

/// What an instruction does; `a`, `b`, `c` are its sources in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    /// `a` goes to `vvvv` (or is the stored register), `b` to `rm`; `c` is the mask, or the fourth operand of a blend.
    Form(&'static Form),
    /// `a * b + c`; of f64 if set.
    Fma(bool),
    Move,
    /// The constant in `long`.
    Constant,
    /// `a op b`
    Alu(Alu),
    /// Digits as [`super::encode::Assembler::shift`].
    Shift(u8),
    /// `a` shifted by `b`, or its bits below `b`.
    Bmi(Bmi),
    Neg,
    Not,
    PopCount,
    /// Extension from so many bytes of `a` (also from memory).
    Extend(u32, bool),
    /// Stores the low bytes of `a` at `b`.
    Store(u32),
    Lea,
    /// 1 where `a` compares so to `b`.
    Compare(Cc),
    /// `a` not zero ? `b` : `c`
    Choose,
    /// Quotient or remainder (rem, signed) of `a` and `b`, never trapping.
    Divide {
        signed: bool,
        rem: bool,
    },
    Label(Label),
    Jump(Label),
    /// Jumps where `a` compares so to `b`.
    JumpIf(Cc, Label),
    /// Adds a fault to the launch.
    Fault(i32),
    LoopStart,
    LoopEnd,
    /// Orders streamed stores before what follows.
    Fence,
    /// The arguments of the function: pointer, begin, end.
    Argument(u8),
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inst {
    pub what: What,
    pub width: Width,
    pub dst: Option<V>,
    pub src: [Src; 3],
    pub imm: Option<u8>,
    pub long: i64,
}

impl Inst {
    pub(super) fn new(what: What, dst: Option<V>, src: &[Src]) -> Inst {
        let mut all = [Src::None; 3];
        all[..src.len()].copy_from_slice(src);
        Inst {
            what,
            width: Width::W128,
            dst,
            src: all,
            imm: None,
            long: 0,
        }
    }

    /// Calls `visit` for every value that is read.
    pub(super) fn for_each_use(&self, visit: &mut dyn FnMut(V)) {
        for s in &self.src {
            match s {
                Src::Value(v) => visit(*v),
                Src::Mem(p) => {
                    visit(p.base);
                    p.index.iter().for_each(|(i, _)| visit(*i));
                }
                Src::None | Src::Int(_) => {}
            }
        }
    }

    pub(super) fn uses(&self, v: V) -> bool {
        let mut found = false;
        self.for_each_use(&mut |u| found |= u == v);
        found
    }
}

/// A constant of vectors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Constant {
    /// The same element everywhere: bits and bytes of it.
    Splat(u64, u8),
    /// All bytes of a register.
    Bytes(Vec<u8>),
}

/// The instructions of a program.
#[derive(Debug, Default)]
pub(super) struct Code {
    pub insts: Vec<Inst>,
    pub classes: Vec<Class>,
    /// Values that are constants: nothing defines them.
    pub constants: FxHashMap<V, Constant>,
    known: FxHashMap<Constant, V>,
    labels: u32,
}

impl Code {
    pub(super) fn value(&mut self, class: Class) -> V {
        self.classes.push(class);
        V(self.classes.len() as u32 - 1)
    }

    pub(super) fn class(&self, v: V) -> Class {
        self.classes[v.0 as usize]
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// Labels in use.
    pub(super) fn label_count(&self) -> u32 {
        self.labels
    }

    /// A vector constant, one value for each.
    pub(super) fn constant(&mut self, constant: Constant) -> V {
        if let Some(v) = self.known.get(&constant) {
            return *v;
        }
        let v = self.value(Class::Vector);
        self.known.insert(constant.clone(), v);
        self.constants.insert(v, constant);
        v
    }

    pub(super) fn push(&mut self, what: What, dst: Option<V>, src: &[Src]) -> &mut Inst {
        self.insts.push(Inst::new(what, dst, src));
        self.insts
            .last_mut()
            .unwrap_or_else(|| unreachable!("bug: nothing pushed"))
    }

    /// A new general register computed from sources.
    pub(super) fn general(&mut self, what: What, src: &[Src]) -> V {
        let v = self.value(Class::General);
        self.push(what, Some(v), src);
        v
    }

    /// A result of a vector instruction in a new value.
    pub(super) fn form(
        &mut self,
        form: &'static Form,
        width: Width,
        class: Class,
        src: [Src; 3],
        imm: Option<u8>,
    ) -> V {
        let v = self.value(class);
        let inst = self.push(What::Form(form), Some(v), &src);
        inst.width = width;
        inst.imm = imm;
        v
    }
}

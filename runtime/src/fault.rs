//! Mistakes that a compiler could make, put into a compiled graph on purpose: what looks for mistakes (`cupola bisect`,
//! `cupola compare`) is tried with them.
//!
//! A fault is systematic: it changes every kernel or launch that it fits, so a part of the graph compiled on its own shows
//! it too. Memory stays in bounds.

use cupola_ir::kernel::{
    AccumKind, Expr, ExprId, Extent, Index, IndexId, Kernel, Literal, Phase, Unit,
};
use cupola_ir::{DType, Dim, Scalar};
use cupola_passes::{Compiled, PlacedUnit, Step};
use std::fmt;
use std::str::FromStr;

/// A mistake of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Products with a constant forget the constant.
    DroppedScale,
    /// Fused sums with an operand in memory forget it.
    DroppedBias,
    /// Library kernels store their result without the fused epilogue.
    LostEpilogue,
    /// Fused sums of floats subtract.
    AddBecomesSub,
    /// Differences, quotients and powers take their operands the other way round.
    SwappedOperands,
    /// Functions are taken for a neighbour in the table (`exp` for `expm1`, `tanh` for `erf`).
    WrongFunction,
    /// Reductions leave out the last element.
    ShortReduction,
    /// The larger is taken for the smaller.
    MaxBecomesMin,
    /// Selections take the other branch.
    InvertedSelect,
    /// Loads read the element before the one they should.
    ShiftedLoad,
    /// Launches mix up two operands of one type.
    SwappedBuffers,
    /// Stored f32 values are rounded to bf16.
    NarrowedStore,
    /// Constants other than 0 and 1 are a quarter too large.
    WrongConstant,
}

impl Fault {
    /// All faults.
    pub const ALL: [Fault; 13] = [
        Fault::DroppedScale,
        Fault::DroppedBias,
        Fault::LostEpilogue,
        Fault::AddBecomesSub,
        Fault::SwappedOperands,
        Fault::WrongFunction,
        Fault::ShortReduction,
        Fault::MaxBecomesMin,
        Fault::InvertedSelect,
        Fault::ShiftedLoad,
        Fault::SwappedBuffers,
        Fault::NarrowedStore,
        Fault::WrongConstant,
    ];

    /// Text name.
    pub fn name(self) -> &'static str {
        match self {
            Fault::DroppedScale => "dropped-scale",
            Fault::DroppedBias => "dropped-bias",
            Fault::LostEpilogue => "lost-epilogue",
            Fault::AddBecomesSub => "add-becomes-sub",
            Fault::SwappedOperands => "swapped-operands",
            Fault::WrongFunction => "wrong-function",
            Fault::ShortReduction => "short-reduction",
            Fault::MaxBecomesMin => "max-becomes-min",
            Fault::InvertedSelect => "inverted-select",
            Fault::ShiftedLoad => "shifted-load",
            Fault::SwappedBuffers => "swapped-buffers",
            Fault::NarrowedStore => "narrowed-store",
            Fault::WrongConstant => "wrong-constant",
        }
    }

    /// Puts the mistake in wherever it fits, regions included.
    pub(crate) fn apply(self, compiled: &mut Compiled) {
        compiled.units.iter_mut().for_each(|u| self.in_unit(u));
        if self == Fault::SwappedBuffers {
            swap_buffers(compiled);
        }
        for step in &mut compiled.plan.steps {
            if let Step::Control { bodies, .. } = step {
                bodies.iter_mut().for_each(|b| self.apply(b));
            }
        }
    }

    fn in_unit(self, unit: &mut PlacedUnit) {
        let fused = unit.nodes.len() > 1;
        match &mut unit.unit {
            Unit::Loops(kernel) => self.in_kernel(kernel, fused),
            Unit::Library(library) => {
                if let Some(kernel) = &mut library.epilogue {
                    if self == Fault::LostEpilogue {
                        lose(kernel);
                    } else if self != Fault::ShiftedLoad {
                        // An epilogue runs while result 0 is hot: it has no element but its own to load.
                        self.in_kernel(kernel, true);
                    }
                }
            }
        }
    }

    fn in_kernel(self, kernel: &mut Kernel, fused: bool) {
        match self {
            Fault::LostEpilogue | Fault::SwappedBuffers => {}
            Fault::DroppedScale
            | Fault::DroppedBias
            | Fault::AddBecomesSub
            | Fault::SwappedOperands
            | Fault::WrongFunction
            | Fault::InvertedSelect
            | Fault::WrongConstant => {
                for at in 0..kernel.exprs.len() {
                    if let Some(wrong) = self.expression(kernel, at, fused) {
                        kernel.exprs[at] = wrong;
                    }
                }
            }
            Fault::MaxBecomesMin => {
                for e in &mut kernel.exprs {
                    if let Expr::Binary(f @ Scalar::Max, ..) = e {
                        *f = Scalar::Min;
                    }
                }
                for_each_accum(kernel, |kind| {
                    if *kind == AccumKind::Max {
                        *kind = AccumKind::Min;
                    }
                });
            }
            Fault::ShortReduction => shorten(kernel),
            Fault::ShiftedLoad => shift_loads(kernel),
            Fault::NarrowedStore => narrow_stores(kernel),
        }
    }

    /// What an expression becomes; `None` where the fault does not fit.
    fn expression(self, kernel: &Kernel, at: usize, fused: bool) -> Option<Expr> {
        let get = |id: ExprId| kernel.exprs[id.0 as usize];
        let is_const = |id: ExprId| matches!(get(id), Expr::Const(_));
        let is_load = |id: ExprId| matches!(get(id), Expr::Load { .. });
        let own = kernel.exprs[at];
        let float = kernel.dtype(ExprId(at as u32)).is_float();
        match (self, own) {
            (Fault::DroppedScale, Expr::Binary(Scalar::Mul, x, y)) if float => {
                match (is_const(x), is_const(y)) {
                    (false, true) => Some(get(x)),
                    (true, false) => Some(get(y)),
                    _ => None,
                }
            }
            (Fault::DroppedBias, Expr::Binary(Scalar::Add, x, y)) if float && fused => {
                match (is_load(x), is_load(y)) {
                    (_, true) => Some(get(x)),
                    (true, false) => Some(get(y)),
                    _ => None,
                }
            }
            (Fault::AddBecomesSub, Expr::Binary(Scalar::Add, x, y)) if float && fused => {
                Some(Expr::Binary(Scalar::Sub, x, y))
            }
            (
                Fault::SwappedOperands,
                Expr::Binary(f @ (Scalar::Sub | Scalar::Div | Scalar::Pow), x, y),
            ) if float => Some(Expr::Binary(f, y, x)),
            (Fault::WrongFunction, Expr::Unary(f, x)) => Some(Expr::Unary(neighbour(f)?, x)),
            (Fault::InvertedSelect, Expr::Ternary(Scalar::Select, c, x, y)) => {
                Some(Expr::Ternary(Scalar::Select, c, y, x))
            }
            (Fault::WrongConstant, Expr::Const(l)) => Some(Expr::Const(enlarged(l)?)),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(s: &str) -> Result<Fault, String> {
        let found = Fault::ALL.into_iter().find(|f| f.name() == s);
        found.ok_or_else(|| {
            let names: Vec<&str> = Fault::ALL.iter().map(|f| f.name()).collect();
            format!("'{s}' is no fault; there are {}", names.join(", "))
        })
    }
}

/// A function that is easily taken for another.
fn neighbour(f: Scalar) -> Option<Scalar> {
    Some(match f {
        Scalar::Exp => Scalar::Expm1,
        Scalar::Log => Scalar::Log1p,
        Scalar::Tanh => Scalar::Erf,
        Scalar::Erf | Scalar::Sigmoid => Scalar::Tanh,
        Scalar::Rsqrt => Scalar::Recip,
        Scalar::Sqrt => Scalar::Abs,
        Scalar::Round => Scalar::Floor,
        Scalar::Floor => Scalar::Ceil,
        Scalar::Sin => Scalar::Cos,
        Scalar::Cos => Scalar::Sin,
        _ => return None,
    })
}

/// A float constant other than 0 and 1, a quarter larger.
fn enlarged(l: Literal) -> Option<Literal> {
    let plain = |x: f64| x.is_finite() && x != 0.0 && x.abs() != 1.0;
    let bits = match l.dtype {
        DType::F32 => {
            let x = f32::from_bits(l.bits as u32);
            plain(f64::from(x)).then(|| u64::from((x * 1.25).to_bits()))
        }
        DType::F64 => {
            let x = f64::from_bits(l.bits);
            plain(x).then(|| (x * 1.25).to_bits())
        }
        _ => None,
    };
    bits.map(|bits| Literal {
        dtype: l.dtype,
        bits,
    })
}

fn for_each_accum(kernel: &mut Kernel, mut f: impl FnMut(&mut AccumKind)) {
    for phase in &mut kernel.phases {
        if let Phase::Reduce { accums, .. } = phase {
            accums.iter_mut().for_each(|a| f(&mut a.kind));
        }
    }
}

/// The store that follows loses what was computed since result 0 was loaded.
fn lose(kernel: &mut Kernel) {
    let raw = kernel
        .exprs
        .iter()
        .position(|e| matches!(e, Expr::Load { buffer, .. } if buffer.0 == 0));
    let Some(raw) = raw.map(|at| ExprId(at as u32)) else {
        return;
    };
    let same = kernel.buffers[0].dtype == kernel.buffers[1].dtype;
    for phase in &mut kernel.phases {
        if let (Phase::Store { stores, .. }, true) = (phase, same) {
            stores.iter_mut().for_each(|s| s.value = raw);
        }
    }
}

/// Every reduce phase ends one element early along its last axis.
fn shorten(kernel: &mut Kernel) {
    let mut axes: Vec<usize> = vec![];
    for phase in &kernel.phases {
        if let Phase::Reduce { axes: own, .. } = phase {
            axes.extend(own.last().map(|a| a.0 as usize));
        }
    }
    for a in axes {
        kernel.axes[a] = match kernel.axes[a] {
            Extent::Const(n) => Extent::Const((n - 1).max(0)),
            Extent::Size(s) => {
                let less = kernel.sizes[s as usize].clone() - Dim::ONE;
                kernel.extent(&less.larger(&Dim::ZERO))
            }
        };
    }
}

/// Every load reads the element before, the first one itself.
fn shift_loads(kernel: &mut Kernel) {
    let (zero, one) = (kernel.index(Index::Const(0)), kernel.index(Index::Const(1)));
    for at in 0..kernel.exprs.len() {
        if let Expr::Load { index, .. } = kernel.exprs[at] {
            let before = kernel.index(Index::Sub(index, one));
            let shifted: IndexId = kernel.index(Index::Max(before, zero));
            if let Expr::Load { index, .. } = &mut kernel.exprs[at] {
                *index = shifted;
            }
        }
    }
}

fn narrow_stores(kernel: &mut Kernel) {
    let mut phases = std::mem::take(&mut kernel.phases);
    for phase in &mut phases {
        let Phase::Store { stores, .. } = phase else {
            continue;
        };
        for store in stores {
            if kernel.buffers[store.buffer.0 as usize].dtype == DType::F32 {
                let cast = |x: ExprId, to: DType| Expr::Cast {
                    x,
                    to,
                    saturate: false,
                };
                let narrow = kernel.expr(cast(store.value, DType::BF16));
                store.value = kernel.expr(cast(narrow, DType::F32));
            }
        }
    }
    kernel.phases = phases;
}

/// Launches read their first two operands of one type the wrong way round.
fn swap_buffers(compiled: &mut Compiled) {
    let slots = &compiled.plan.slots;
    for step in &mut compiled.plan.steps {
        let Step::Launch { unit, buffers } = step else {
            continue;
        };
        let accesses = compiled.units[*unit].unit.accesses();
        let read = |i: &usize| accesses[*i] == cupola_ir::kernel::Access::Read;
        let reads: Vec<usize> = (0..buffers.len()).filter(read).collect();
        let pair = reads.iter().enumerate().find_map(|(k, i)| {
            let ty = |i: usize| &slots[buffers[i].0 as usize].ty;
            let j = reads[k + 1..].iter().find(|j| ty(*i) == ty(**j))?;
            Some((*i, *j))
        });
        if let Some((i, j)) = pair {
            buffers.swap(i, j);
        }
    }
}

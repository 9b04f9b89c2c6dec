//! From a kernel and its shape to a program: ranges, loops, phases and accumulators.

use super::builder::Builder;
use super::index::Lanes;
use super::{BinOp, CmpOp, Elem, Fault, Inst, Op, Program, Reg, Type, UnOp, Var};
use cupola_ir::kernel::{
    Accum, AccumKind, AxisId, Expr, ExprId, Extent, Index, IndexId, Kernel, Phase, Store,
};
use cupola_ir::{Class, DType};
use rustc_hash::FxHashMap;

/// Which loops have lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The innermost parallel axis, around all phases.
    Parallel {
        /// Lanes.
        lanes: u16,
    },
    /// The innermost axis of each phase, with so many lanes (1: none).
    Phases {
        /// Lanes of each phase.
        lanes: Vec<u16>,
    },
}

/// What a program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Vectors of 128 bits; positions that do not fill all lanes run one by one.
    Portable,
    /// Vectors of 256 or 512 bits; positions that do not fill all lanes run at once under a mask, and instructions convert
    /// half precision.
    Wide,
}

/// What is known in an open block.
#[derive(Default)]
struct Memo {
    values: FxHashMap<ExprId, Reg>,
    indices: FxHashMap<IndexId, Lanes>,
}

/// A lowering in progress.
pub(crate) struct Lower<'k> {
    pub(crate) kernel: &'k Kernel,
    pub(crate) b: Builder,
    /// Buffers that the kernel both stores to and may load.
    pub(crate) written: Vec<bool>,
    /// Results of the accumulators of finished phases.
    pub(crate) results: Vec<Vec<Reg>>,
    /// Per index: whether it is never below 0.
    pub(crate) not_negative: Vec<bool>,
    /// Per index: the faulting checked indices it is computed from.
    pub(crate) checks: Vec<Vec<u32>>,
    memo: Vec<Memo>,
    axes: Vec<Option<Reg>>,
    lane: Option<(AxisId, u16)>,
    pub(crate) machine: Machine,
    /// Within a masked tail: the number of its positions.
    tail: Option<Reg>,
}

/// Lowers a kernel.
pub(crate) fn lower(kernel: &Kernel, shape: &Shape, machine: Machine) -> Program {
    let mut lower = Lower::new(kernel, machine);
    let (begin, end) = (
        lower.b.op(Op::Begin, Type::INDEX),
        lower.b.op(Op::End, Type::INDEX),
    );
    let some = lower.b.cmp(CmpOp::LtS, begin, end);
    lower.open_if(some);
    match shape {
        Shape::Parallel { lanes } => lower.parallel_lanes(begin, end, *lanes),
        Shape::Phases { lanes } => lower.phase_lanes(begin, end, lanes),
    }
    lower.close();
    lower.b.finish(&kernel.name)
}

impl<'k> Lower<'k> {
    fn new(kernel: &'k Kernel, machine: Machine) -> Lower<'k> {
        let mut written = vec![false; kernel.buffers.len()];
        for phase in &kernel.phases {
            if let Phase::Store { stores, .. } = phase {
                stores
                    .iter()
                    .for_each(|s| written[s.buffer.0 as usize] = true);
            }
        }
        let (not_negative, checks) = facts(kernel);
        Lower {
            kernel,
            b: Builder::new(),
            written,
            results: vec![],
            not_negative,
            checks,
            memo: vec![Memo::default()],
            axes: vec![None; kernel.axes.len()],
            lane: None,
            machine,
            tail: None,
        }
    }

    pub(crate) fn known_value(&self, id: ExprId) -> Option<Reg> {
        self.memo.iter().find_map(|m| m.values.get(&id).copied())
    }

    pub(crate) fn remember_value(&mut self, id: ExprId, reg: Reg) {
        let home = self.b.home(reg);
        self.memo[home].values.insert(id, reg);
    }

    pub(crate) fn known_index(&self, id: IndexId) -> Option<Lanes> {
        self.memo.iter().find_map(|m| m.indices.get(&id).cloned())
    }

    pub(crate) fn remember_index(&mut self, id: IndexId, lanes: &Lanes) {
        let home = match lanes {
            Lanes::Uniform(r) => self.b.home(*r),
            Lanes::Affine(..) | Lanes::Each(_) => self.b.depth(),
        };
        self.memo[home].indices.insert(id, lanes.clone());
    }

    pub(crate) fn open_if(&mut self, cond: Reg) {
        self.b.open_if(cond);
        self.memo.push(Memo::default());
    }

    fn open_loop(&mut self, from: Reg, to: Reg, step: i64) -> Reg {
        self.memo.push(Memo::default());
        self.b.open_loop(from, to, step)
    }

    pub(crate) fn close(&mut self) {
        self.b.close();
        self.memo.pop();
    }

    pub(crate) fn axis(&self, axis: AxisId) -> Reg {
        self.axes[axis.0 as usize].unwrap_or_else(|| unreachable!("bug: axis outside its loop"))
    }

    pub(crate) fn lane_axis(&self) -> Option<AxisId> {
        self.lane.map(|l| l.0)
    }

    pub(crate) fn lanes(&self) -> u16 {
        self.lane.map_or(1, |l| l.1)
    }

    /// A guard of so many lanes that is false outside a masked tail as well; `bits` is the width of its mask if it is
    /// of the tail alone.
    pub(crate) fn active(&mut self, guard: Option<Reg>, lanes: u16, bits: u32) -> Option<Reg> {
        let Some(count) = self.tail.filter(|_| lanes > 1) else {
            return guard;
        };
        let own = self.b.op(Op::Tail(count), Type::mask(bits, lanes));
        Some(match guard {
            Some(g) => self.b.binary(BinOp::And, g, own),
            None => own,
        })
    }

    /// Records a fault where a mask is set.
    pub(crate) fn fault(&mut self, mask: Reg, fault: Fault) {
        let ty = self.b.ty(mask);
        let mask = self
            .active(Some(mask), ty.lanes, ty.elem.bits())
            .unwrap_or(mask);
        self.b.fault(mask, fault);
    }

    fn extent(&mut self, extent: Extent) -> Reg {
        match extent {
            Extent::Const(c) => self.b.index(c),
            Extent::Size(s) => self.b.op(Op::Size(s), Type::INDEX),
        }
    }

    /// Sets axes from a row-major position.
    fn decompose(&mut self, position: Reg, axes: std::ops::Range<usize>) {
        let mut rest = position;
        for axis in axes.clone().rev() {
            if axis == axes.start {
                self.axes[axis] = Some(rest);
                break;
            }
            let n = self.extent(self.kernel.axes[axis]);
            self.axes[axis] = Some(self.floor_div(rest, n, true, true));
            rest = self.floor_div(rest, n, true, false);
        }
    }

    fn parallel_lanes(&mut self, begin: Reg, end: Reg, lanes: u16) {
        let inner = self.kernel.parallel - 1;
        let axis = AxisId(inner as u32);
        let mut body = |s: &mut Self| s.phases(None);
        if inner == 0 {
            return self.lane_loops(axis, begin, end, lanes, &mut body);
        }
        let n = self.extent(self.kernel.axes[inner]);
        let one = self.b.index(1);
        let first = self.floor_div(begin, n, true, false);
        let last = self.b.sub(end, one);
        let last = self.floor_div(last, n, true, false);
        let after = self.b.add(last, one);
        let row = self.open_loop(first, after, 1);
        self.decompose(row, 0..inner);
        let base = self.b.mul(row, n);
        let zero = self.b.index(0);
        let from = self.b.sub(begin, base);
        let from = self.b.binary(BinOp::MaxS, from, zero);
        let to = self.b.sub(end, base);
        let to = self.b.binary(BinOp::MinS, to, n);
        self.lane_loops(axis, from, to, lanes, &mut body);
        self.close();
    }

    fn phase_lanes(&mut self, begin: Reg, end: Reg, lanes: &[u16]) {
        let position = self.open_loop(begin, end, 1);
        self.decompose(position, 0..self.kernel.parallel);
        self.phases(Some(lanes));
        self.close();
    }

    /// A loop over an axis: as many whole vectors as fit, then single positions.
    fn lane_loops(
        &mut self,
        axis: AxisId,
        from: Reg,
        to: Reg,
        lanes: u16,
        body: &mut dyn FnMut(&mut Self),
    ) {
        let mut middle = from;
        if lanes > 1 {
            let count = self.b.sub(to, from);
            let whole = self.b.index(-i64::from(lanes));
            let whole = self.b.binary(BinOp::And, count, whole);
            middle = self.b.add(from, whole);
            self.one_loop(axis, from, middle, lanes, body);
        }
        if lanes > 1
            && self.b.as_const(middle).is_some()
            && self.b.as_const(middle) == self.b.as_const(to)
        {
            return;
        }
        if lanes > 1 && self.machine == Machine::Wide {
            return self.masked_tail(axis, middle, to, lanes, body);
        }
        self.one_loop(axis, middle, to, 1, body);
    }

    /// The positions that are left, fewer than the lanes, at once.
    fn masked_tail(
        &mut self,
        axis: AxisId,
        from: Reg,
        to: Reg,
        lanes: u16,
        body: &mut dyn FnMut(&mut Self),
    ) {
        let any = self.b.cmp(CmpOp::LtS, from, to);
        self.open_if(any);
        let count = self.b.sub(to, from);
        self.axes[axis.0 as usize] = Some(from);
        let outer = self.lane.replace((axis, lanes));
        self.tail = Some(count);
        body(self);
        self.close();
        self.tail = None;
        self.lane = outer;
        self.axes[axis.0 as usize] = None;
    }

    fn one_loop(
        &mut self,
        axis: AxisId,
        from: Reg,
        to: Reg,
        lanes: u16,
        body: &mut dyn FnMut(&mut Self),
    ) {
        let bounds = self.b.as_const(from).zip(self.b.as_const(to));
        if bounds.is_some_and(|(from, to)| from >= to) {
            return;
        }
        let outer = self.lane;
        let any = self.b.cmp(CmpOp::LtS, from, to);
        self.open_if(any);
        let at = self.open_loop(from, to, i64::from(lanes));
        self.axes[axis.0 as usize] = Some(at);
        if lanes > 1 {
            self.lane = Some((axis, lanes));
        }
        body(self);
        self.close();
        self.close();
        self.lane = outer;
        self.axes[axis.0 as usize] = None;
    }

    /// All phases in order; with lanes for their own axes, or within the lanes that are open.
    fn phases(&mut self, lanes: Option<&[u16]>) {
        let kernel = self.kernel;
        self.results.clear();
        for (at, phase) in kernel.phases.iter().enumerate() {
            let own = lanes.map_or(1, |l| l[at]);
            let results = match phase {
                Phase::Reduce { axes, accums } => self.reduce(axes, accums, own),
                Phase::Store { axes, stores } => {
                    self.store_phase(axes, stores, own);
                    vec![]
                }
            };
            self.results.push(results);
            self.forget_stored();
        }
    }

    /// Loads of stored buffers must be repeated after a phase.
    fn forget_stored(&mut self) {
        let loads = self
            .kernel
            .exprs
            .iter()
            .any(|e| matches!(e, Expr::Load { buffer, .. } if self.written[buffer.0 as usize]));
        if loads {
            self.memo.iter_mut().for_each(|m| {
                m.values.clear();
                m.indices.clear();
            });
        }
    }

    /// Loops over the axes of a phase, the innermost with lanes.
    fn nest(&mut self, axes: &[AxisId], lanes: u16, body: &mut dyn FnMut(&mut Self)) {
        let Some((inner, outer)) = axes.split_last() else {
            return body(self);
        };
        let zero = self.b.index(0);
        let mut opened = 0;
        // Nothing is moved out of the nest when it is empty in any axis.
        for axis in axes {
            let n = self.extent(self.kernel.axes[axis.0 as usize]);
            if self.b.as_const(n).is_none_or(|n| n <= 0) {
                let some = self.b.cmp(CmpOp::LtS, zero, n);
                self.open_if(some);
                opened += 1;
            }
        }
        for axis in outer {
            let n = self.extent(self.kernel.axes[axis.0 as usize]);
            let at = self.open_loop(zero, n, 1);
            self.axes[axis.0 as usize] = Some(at);
        }
        let n = self.extent(self.kernel.axes[inner.0 as usize]);
        self.lane_loops(*inner, zero, n, lanes, body);
        for _ in 0..outer.len() + opened {
            self.close();
        }
    }

    fn store_phase(&mut self, axes: &[AxisId], stores: &[Store], lanes: u16) {
        self.nest(axes, lanes, &mut |s| s.stores(stores));
    }

    fn reduce(&mut self, axes: &[AxisId], accums: &[Accum], lanes: u16) -> Vec<Reg> {
        let all = |s: &mut Self, lanes| -> Vec<Running> {
            accums.iter().map(|a| s.start(a, lanes)).collect()
        };
        let (mut narrow, mut wide) = (vec![], vec![]);
        if lanes == 1 || self.machine == Machine::Portable {
            narrow = all(self, self.lanes());
        }
        if lanes > 1 {
            wide = all(self, lanes);
        }
        let values: Vec<ExprId> = accums.iter().map(|a| a.value).collect();
        self.nest(axes, lanes, &mut |s| {
            s.prepare(&values);
            let own = lanes > 1 && s.lanes() == lanes;
            let running = if own { &wide } else { &narrow };
            for (a, r) in accums.iter().zip(running) {
                let x = s.value(a.value);
                s.step(a, *r, x, axes, own);
            }
        });
        let mut results = vec![];
        for (i, a) in accums.iter().enumerate() {
            let across = wide.get(i).map(|w| self.across(a, *w));
            results.push(self.result(a, narrow.get(i).copied(), across));
        }
        results
    }

    /// The start value of an accumulator.
    fn start(&mut self, a: &Accum, lanes: u16) -> Running {
        let dtype = self.kernel.dtype(a.value);
        let first = self.identity(a.kind, dtype);
        let first = self.b.splat(first, lanes);
        let value = self.b.var(first);
        let position = matches!(a.kind, AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. });
        let position = position.then(|| {
            let zero = self.b.index(0);
            let zero = self.b.splat(zero, lanes);
            self.b.var(zero)
        });
        Running { value, position }
    }

    fn identity(&mut self, kind: AccumKind, dtype: DType) -> Reg {
        let elem = accumulator(dtype);
        let ty = Type { elem, lanes: 1 };
        let largest = matches!(kind, AccumKind::Min | AccumKind::ArgMin { .. });
        match (kind, dtype.class()) {
            (AccumKind::Sum, Class::Float) => self.b.float(0.0, ty),
            (AccumKind::Prod, Class::Float) => self.b.float(1.0, ty),
            (AccumKind::Sum, _) => self.b.constant(0, ty),
            (AccumKind::Prod, _) => self.b.constant(1, ty),
            (_, Class::Float) if largest => self.b.float(f64::INFINITY, ty),
            (_, Class::Float) => self.b.float(f64::NEG_INFINITY, ty),
            _ => {
                let (lo, hi) = dtype.int_range().unwrap_or((0, 0));
                let keep = u64::MAX >> (64 - elem.bits());
                let limit = if largest { hi } else { lo };
                self.b.constant(limit as u64 & keep, ty)
            }
        }
    }

    /// Takes one value into an accumulator; `across`: one value of each lane into the lanes of one accumulator.
    fn step(&mut self, a: &Accum, running: Running, x: Reg, axes: &[AxisId], across: bool) {
        let dtype = self.kernel.dtype(a.value);
        let x = if dtype == DType::Bool {
            self.mask_to_int(x, Elem::I8)
        } else {
            x
        };
        let best = self.b.get(running.value);
        let x = self.b.splat(x, self.b.lanes(best));
        let Some(position) = running.position else {
            let mut next = self.b.binary(combination(a.kind, dtype), best, x);
            if let Some(active) = self.active_accumulator(best, across) {
                next = self.b.select(active, next, best);
            }
            return self.b.push(Inst::Set(running.value, next));
        };
        let at = self.position(axes);
        let old = self.b.get(position);
        let at = self.b.splat(at, self.b.lanes(best));
        let (largest, last) = extreme(a.kind);
        let mut better = self.compare(largest, last, x, best, dtype);
        if dtype.is_float() {
            let new_nan = self.b.cmp(CmpOp::Ne, x, x);
            let new_nan = if last {
                new_nan
            } else {
                let number = self.b.cmp(CmpOp::Eq, best, best);
                self.b.binary(BinOp::And, new_nan, number)
            };
            // A number never replaces NaN: the comparison is false then.
            better = self.b.binary(BinOp::Or, better, new_nan);
        }
        if let Some(active) = self.active_accumulator(best, across) {
            better = self.b.binary(BinOp::And, better, active);
        }
        let value = self.b.select(better, x, best);
        let place = self.b.select(better, at, old);
        self.b.push(Inst::Set(running.value, value));
        self.b.push(Inst::Set(position, place));
    }

    /// The lanes of an accumulator that a tail has values for.
    fn active_accumulator(&mut self, best: Reg, across: bool) -> Option<Reg> {
        let ty = self.b.ty(best);
        let lanes = if across { ty.lanes } else { 1 };
        self.active(None, lanes, ty.elem.bits())
    }

    /// Whether `x` is strictly (or also equally) more extreme than `y`; false with NaN.
    fn compare(&mut self, largest: bool, or_equal: bool, x: Reg, y: Reg, dtype: DType) -> Reg {
        let f = match (dtype.class(), or_equal) {
            (Class::Float, false) => CmpOp::LtF,
            (Class::Float, true) => CmpOp::LeF,
            (Class::Signed, false) => CmpOp::LtS,
            (Class::Signed, true) => CmpOp::LeS,
            (_, false) => CmpOp::LtU,
            (_, true) => CmpOp::LeU,
        };
        let (low, high) = if largest { (y, x) } else { (x, y) };
        self.b.cmp(f, low, high)
    }

    /// Row-major position within the axes, as I64.
    fn position(&mut self, axes: &[AxisId]) -> Reg {
        let mut at = self.b.index(0);
        for axis in axes {
            let n = self.extent(self.kernel.axes[axis.0 as usize]);
            at = self.b.mul(at, n);
            let i = self.axis(*axis);
            at = self.b.add(at, i);
        }
        match self.lane {
            Some((axis, lanes)) if axes.last() == Some(&axis) => {
                let ty = Type {
                    elem: Elem::I64,
                    lanes,
                };
                self.b.op(Op::Ramp(at, 1), ty)
            }
            _ => at,
        }
    }

    /// The lanes of an accumulator combined: value and position.
    fn across(&mut self, a: &Accum, wide: Running) -> (Reg, Option<Reg>) {
        let dtype = self.kernel.dtype(a.value);
        let value = self.b.get(wide.value);
        let Some(position) = wide.position else {
            let t = self.b.ty(value);
            let f = combination(a.kind, dtype);
            let ty = Type {
                elem: t.elem,
                lanes: 1,
            };
            return (self.b.op(Op::Reduce(f, value), ty), None);
        };
        let positions = self.b.get(position);
        let mut best = (self.lane(value, 0), self.lane(positions, 0));
        for k in 1..self.b.lanes(value) {
            let other = (self.lane(value, k), self.lane(positions, k));
            best = self.better(a.kind, best, other, dtype);
        }
        (best.0, Some(best.1))
    }

    /// The more extreme of two scalars with positions; among equal ones the first or last.
    fn better(
        &mut self,
        kind: AccumKind,
        x: (Reg, Reg),
        y: (Reg, Reg),
        dtype: DType,
    ) -> (Reg, Reg) {
        let (largest, last) = extreme(kind);
        let above = self.compare(largest, false, y.0, x.0, dtype);
        let mut equal = self.b.cmp(CmpOp::Eq, x.0, y.0);
        let mut take = above;
        if dtype.is_float() {
            let (x_nan, y_nan) = (
                self.b.cmp(CmpOp::Ne, x.0, x.0),
                self.b.cmp(CmpOp::Ne, y.0, y.0),
            );
            let both = self.b.binary(BinOp::And, x_nan, y_nan);
            equal = self.b.binary(BinOp::Or, equal, both);
            let number = self.b.unary(UnOp::Not, x_nan);
            let only = self.b.binary(BinOp::And, y_nan, number);
            take = self.b.binary(BinOp::Or, take, only);
        }
        let (low, high) = if last { (x.1, y.1) } else { (y.1, x.1) };
        let nearer = self.b.cmp(CmpOp::LtS, low, high);
        let tie = self.b.binary(BinOp::And, equal, nearer);
        let take = self.b.binary(BinOp::Or, take, tie);
        (self.b.select(take, y.0, x.0), self.b.select(take, y.1, x.1))
    }

    /// The result of an accumulator from its narrow part and the combined lanes of its wide part; there is one at least.
    fn result(
        &mut self,
        a: &Accum,
        narrow: Option<Running>,
        across: Option<(Reg, Option<Reg>)>,
    ) -> Reg {
        let dtype = self.kernel.dtype(a.value);
        let own = narrow.map(|r| (self.b.get(r.value), r.position.map(|p| self.b.get(p))));
        let (value, position) = match (across, own) {
            (Some((v, Some(p))), Some((value, Some(at)))) => {
                let best = self.better(a.kind, (v, p), (value, at), dtype);
                (best.0, Some(best.1))
            }
            (Some((v, _)), Some((value, _))) => {
                (self.b.binary(combination(a.kind, dtype), v, value), None)
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => unreachable!("bug: an accumulator without variables"),
        };
        if let Some(at) = position {
            return at;
        }
        if dtype == DType::Bool {
            return self.load_storage(value, DType::Bool);
        }
        self.rounded(value, dtype)
    }
}

/// Variables of a running accumulator.
#[derive(Clone, Copy)]
struct Running {
    value: Var,
    position: Option<Var>,
}

/// What an accumulator's variable holds.
fn accumulator(dtype: DType) -> Elem {
    match dtype {
        DType::Bool => Elem::I8,
        _ => crate::emit::helpers::register(dtype),
    }
}

fn combination(kind: AccumKind, dtype: DType) -> BinOp {
    match (kind, dtype.class()) {
        (AccumKind::Sum, _) => BinOp::Add,
        (AccumKind::Prod, _) => BinOp::Mul,
        (AccumKind::Max | AccumKind::ArgMax { .. }, Class::Float) => BinOp::MaxF,
        (AccumKind::Max | AccumKind::ArgMax { .. }, Class::Signed) => BinOp::MaxS,
        (AccumKind::Max | AccumKind::ArgMax { .. }, _) => BinOp::MaxU,
        (AccumKind::Min | AccumKind::ArgMin { .. }, Class::Float) => BinOp::MinF,
        (AccumKind::Min | AccumKind::ArgMin { .. }, Class::Signed) => BinOp::MinS,
        (AccumKind::Min | AccumKind::ArgMin { .. }, _) => BinOp::MinU,
    }
}

/// Whether the largest is sought, and whether the last of equal ones.
fn extreme(kind: AccumKind) -> (bool, bool) {
    match kind {
        AccumKind::ArgMax { last } => (true, last),
        AccumKind::ArgMin { last } => (false, last),
        AccumKind::Max => (true, false),
        AccumKind::Sum | AccumKind::Prod | AccumKind::Min => (false, false),
    }
}

/// Per index: never below 0, and the faulting checks it depends on.
fn facts(kernel: &Kernel) -> (Vec<bool>, Vec<Vec<u32>>) {
    let mut not_negative: Vec<bool> = vec![];
    let mut checks: Vec<Vec<u32>> = vec![];
    for (at, index) in kernel.indices.iter().enumerate() {
        let (sign, mut below) = match *index {
            Index::Const(c) => (c >= 0, vec![]),
            Index::Size(_) => (false, vec![]),
            Index::Axis(_) => (true, vec![]),
            Index::Checked { extent, fault, .. } => {
                let mut own = checks[extent.0 as usize].clone();
                if fault {
                    own.push(at as u32);
                }
                (true, own)
            }
            Index::Add(a, b)
            | Index::Sub(a, b)
            | Index::Mul(a, b)
            | Index::Div(a, b)
            | Index::Rem(a, b)
            | Index::Min(a, b)
            | Index::Max(a, b) => {
                let (x, y) = (not_negative[a.0 as usize], not_negative[b.0 as usize]);
                let sign = match index {
                    Index::Add(..) | Index::Mul(..) | Index::Min(..) => x && y,
                    Index::Max(..) => x || y,
                    Index::Div(..) => x,
                    Index::Rem(..) => true,
                    _ => false,
                };
                let both = [&checks[a.0 as usize][..], &checks[b.0 as usize][..]].concat();
                (sign, both)
            }
        };
        below.sort_unstable();
        below.dedup();
        not_negative.push(sign);
        checks.push(below);
    }
    (not_negative, checks)
}

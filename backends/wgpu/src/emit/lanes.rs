//! Four neighbouring positions in one thread: which values they share, and which accesses are one vector.
//!
//! Along one axis whose length is a multiple of four, a thread takes positions `4 n` to `4 n + 3`. An index that is the same
//! for all four is computed once, as is one that grows by one from each to the next; loads and stores at the latter, from a
//! multiple of four on, are vectors. Whether a length or factor is a multiple of four is all this needs to know of sizes.

use cupola_ir::kernel::{Expr, ExprId, Index, IndexId, Item, Kernel, Store, StoreKind};

use super::scalar::element_of;

/// Positions of a thread.
pub const LANES: u32 = 4;

/// How an index goes from one of the four positions to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Same,
    One,
    Other,
}

/// An index at the four positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lane {
    step: Step,
    /// Whether it is a multiple of four at the first.
    aligned: bool,
}

/// A kernel seen along one axis.
#[derive(Debug, Clone)]
pub(crate) struct LaneView {
    /// The axis.
    pub(super) axis: usize,
    /// Whether accumulators differ between the positions: the axis is parallel.
    pub(super) parallel: bool,
    indices: Vec<Lane>,
    /// Whether each expression is the same for all four.
    same: Vec<bool>,
    /// Loads that are vectors.
    fours: Vec<bool>,
}

impl LaneView {
    /// `aligned` says of each size whether it is a multiple of four; `wide` has the buffers that hold vectors.
    pub(crate) fn new(kernel: &Kernel, axis: usize, aligned: &[bool], wide: u64) -> Self {
        let mut view = Self {
            axis,
            parallel: axis < kernel.parallel,
            indices: Vec::new(),
            same: vec![true; kernel.exprs.len()],
            fours: vec![false; kernel.exprs.len()],
        };
        // Indices and expressions refer to each other, so what is the same is taken back until nothing changes.
        loop {
            view.indices.clear();
            for &index in &kernel.indices {
                let lane = view.lane_of(index, aligned);
                view.indices.push(lane);
            }
            let mut changed = false;
            for at in 0..kernel.exprs.len() {
                if view.same[at] && !view.is_same(kernel.exprs[at]) {
                    view.same[at] = false;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        for at in 0..kernel.exprs.len() {
            view.fours[at] = view.makes_vector(kernel, kernel.exprs[at], wide);
        }
        view
    }

    fn lane_of(&self, index: Index, aligned: &[bool]) -> Lane {
        let of = |id: IndexId| self.indices[id.0 as usize];
        let lane = |step, aligned| Lane { step, aligned };
        let both = |x: IndexId, y: IndexId| of(x).aligned && of(y).aligned;
        match index {
            Index::Const(value) => lane(Step::Same, value % i64::from(LANES) == 0),
            Index::Size(at) => lane(
                Step::Same,
                aligned.get(at as usize).copied().unwrap_or(false),
            ),
            Index::Axis(axis) if axis.0 as usize == self.axis => lane(Step::One, true),
            Index::Axis(_) => lane(Step::Same, false),
            Index::Add(x, y) => {
                let step = match (of(x).step, of(y).step) {
                    (Step::Same, step) | (step, Step::Same) => step,
                    _ => Step::Other,
                };
                lane(step, both(x, y))
            }
            Index::Sub(x, y) => {
                let step = match (of(x).step, of(y).step) {
                    (step, Step::Same) => step,
                    _ => Step::Other,
                };
                lane(step, both(x, y))
            }
            Index::Mul(x, y) => lane(all_same(of(x), of(y)), of(x).aligned || of(y).aligned),
            // Four positions from a multiple of four on lie in one interval of a multiple of four.
            Index::Div(x, y) => match (of(x).step, of(y).step) {
                (Step::One, Step::Same) if both(x, y) => lane(Step::Same, false),
                _ => lane(all_same(of(x), of(y)), false),
            },
            Index::Rem(x, y) => match (of(x).step, of(y).step) {
                (Step::One, Step::Same) if both(x, y) => lane(Step::One, true),
                _ => lane(all_same(of(x), of(y)), both(x, y)),
            },
            Index::Min(x, y) | Index::Max(x, y) => lane(all_same(of(x), of(y)), both(x, y)),
            Index::Checked { value, extent, .. } => {
                let same = self.same[value.0 as usize] && of(extent).step == Step::Same;
                lane(if same { Step::Same } else { Step::Other }, false)
            }
        }
    }

    fn is_same(&self, expr: Expr) -> bool {
        match expr {
            Expr::Accum { .. } => !self.parallel,
            Expr::Less(x, y) => {
                let (x, y) = (self.indices[x.0 as usize], self.indices[y.0 as usize]);
                let whole = x.step == Step::One && y.step == Step::Same && x.aligned && y.aligned;
                whole || all_same(x, y) == Step::Same
            }
            other => {
                let mut same = true;
                other.for_each_operand(|operand| {
                    same &= match operand {
                        Item::Expr(expr) => self.same[expr.0 as usize],
                        Item::Index(index) => self.step(index) == Step::Same,
                    };
                });
                same
            }
        }
    }

    fn makes_vector(&self, kernel: &Kernel, expr: Expr, wide: u64) -> bool {
        match expr {
            Expr::Load {
                buffer,
                index,
                guard,
            } => {
                self.is_run(index)
                    && guard.is_none_or(|guard| self.same[guard.0 as usize])
                    && is_wide(kernel, buffer.0 as usize, wide)
            }
            _ => false,
        }
    }

    /// Whether an index is `4 n` to `4 n + 3`.
    fn is_run(&self, index: IndexId) -> bool {
        let lane = self.indices[index.0 as usize];
        lane.step == Step::One && lane.aligned
    }

    pub(super) fn step(&self, index: IndexId) -> Step {
        self.indices[index.0 as usize].step
    }

    /// Whether an item is written once for the four positions.
    pub(super) fn is_shared(&self, item: Item) -> bool {
        match item {
            Item::Index(index) => self.step(index) != Step::Other,
            Item::Expr(expr) => self.same[expr.0 as usize] || self.is_four(expr),
        }
    }

    pub(crate) fn is_four(&self, expr: ExprId) -> bool {
        self.fours[expr.0 as usize]
    }

    /// Whether the four elements of a store are one vector.
    pub(crate) fn stores_four(&self, kernel: &Kernel, store: &Store, wide: u64) -> bool {
        store.kind == StoreKind::Set
            && self.is_run(store.index)
            && store.guard.is_none_or(|guard| self.same[guard.0 as usize])
            && is_wide(kernel, store.buffer.0 as usize, wide)
    }

    /// Whether taking four positions helps these roots and these stores: every access along the axis is a vector, and there
    /// is one. Narrow elements are stored no other way.
    pub(crate) fn pays(
        &self,
        kernel: &Kernel,
        roots: &[Item],
        stores: &[Store],
        wide: u64,
    ) -> bool {
        let mut vectors = 0;
        for store in stores {
            let narrow = element_of(kernel.buffers[store.buffer.0 as usize].dtype)
                .is_none_or(|element| element.bits() < 32);
            match self.stores_four(kernel, store, wide) {
                true => vectors += 1,
                false if narrow || self.step(store.index) == Step::One => return false,
                false => {}
            }
        }
        let mut reached = rustc_hash::FxHashSet::default();
        let mut stack = roots.to_vec();
        while let Some(item) = stack.pop() {
            if !reached.insert(item) {
                continue;
            }
            item.for_each_operand(kernel, |operand| stack.push(operand));
            let Item::Expr(expr) = item else { continue };
            let Expr::Load { index, .. } = kernel.exprs[expr.0 as usize] else {
                continue;
            };
            match self.is_four(expr) {
                true => vectors += 1,
                false if self.step(index) == Step::One => return false,
                false => {}
            }
        }
        vectors > 0 && reached.len() <= MOST_ITEMS
    }
}

/// Items of a kernel that are written four times at most: texts stay short enough to compile quickly.
const MOST_ITEMS: usize = 200;

fn all_same(x: Lane, y: Lane) -> Step {
    match (x.step, y.step) {
        (Step::Same, Step::Same) => Step::Same,
        _ => Step::Other,
    }
}

fn is_wide(kernel: &Kernel, buffer: usize, wide: u64) -> bool {
    buffer < 64
        && wide >> buffer & 1 == 1
        && element_of(kernel.buffers[buffer].dtype).is_some_and(|element| element.has_fours())
}

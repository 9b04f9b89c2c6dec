//! From the lowerer's sums of axes to the kernel's index and expression arenas: what is not needed is dropped, and
//! adjacent axes that every index runs through as one are merged.

use super::affine::Opaque;
use super::{Affine, Lowered, Lowerer, RUN, SEED, Term};
use cupola_ir::kernel::{
    Access, AxisId, BufferDecl, BufferId, Expr, ExprId, Extent, Index, IndexId, Item, Kernel,
    Phase, Store, StoreKind,
};
use cupola_ir::{Dim, ValueId};
use rustc_hash::FxHashMap;

/// What to emit beside the expressions.
pub(super) struct Shape {
    /// The stores, one after the other.
    pub stores: Vec<Stores>,
    /// Run-time sizes so far.
    pub sizes: Vec<Dim>,
    /// Merge and drop axes where possible.
    pub collapse: bool,
}

/// Values stored along axes.
pub(super) struct Stores {
    /// The axes, inside the parallel ones.
    pub axes: Vec<u32>,
    /// The values.
    pub each: Vec<Stored>,
}

/// A value and where it is stored.
pub(super) struct Stored {
    /// Buffer.
    pub buffer: BufferId,
    /// Offset.
    pub index: IndexId,
    /// Value.
    pub value: ExprId,
}

struct Emitter<'l, 'g> {
    from: &'l Lowerer<'g>,
    kernel: Kernel,
    axes: Vec<Option<AxisId>>,
    exprs: FxHashMap<ExprId, ExprId>,
    indices: FxHashMap<Index, IndexId>,
    opaques: FxHashMap<u32, IndexId>,
}

impl Lowerer<'_> {
    pub(super) fn emit(self, shape: Shape) -> Lowered {
        let (live, affines) = self.live(&shape);
        let lists = self.axis_lists(&shape, &affines);
        let mut e = Emitter {
            axes: vec![None; self.space.axes.len()],
            kernel: Kernel {
                sizes: shape.sizes.clone(),
                ..Kernel::default()
            },
            exprs: FxHashMap::default(),
            indices: FxHashMap::default(),
            opaques: FxHashMap::default(),
            from: &self,
        };
        let ids = e.declare_axes(&lists);
        let mut used = vec![false; self.buffers.len()];
        for b in live.iter().filter_map(|x| match &self.exprs[x.0 as usize] {
            Expr::Load { buffer, .. } => Some(buffer.0),
            _ => None,
        }) {
            used[b as usize] = true;
        }
        for stored in shape.stores.iter().flat_map(|s| &s.each) {
            used[stored.buffer.0 as usize] = true;
        }
        if !shape.collapse {
            // The buffers that a library unit fixes.
            used[..2].iter_mut().for_each(|u| *u = true);
        }
        let mut buffers = vec![];
        let mut buffer_ids = vec![BufferId(0); used.len()];
        for (b, (value, access)) in self.buffers.iter().enumerate().filter(|(b, _)| used[*b]) {
            buffer_ids[b] = BufferId(buffers.len() as u32);
            buffers.push(*value);
            e.declare_buffer(*value, *access);
        }
        for (at, x) in live.iter().enumerate() {
            e.exprs.insert(*x, ExprId(at as u32));
        }
        for x in &live {
            let expr = e.expr(self.exprs[x.0 as usize], &buffer_ids);
            e.kernel.exprs.push(expr);
        }
        for (k, phase) in self.phases.iter().enumerate() {
            let accums = phase.accums.iter().map(|a| cupola_ir::kernel::Accum {
                kind: a.kind,
                value: e.exprs[&a.value],
            });
            let accums = accums.collect();
            e.kernel.phases.push(Phase::Reduce {
                axes: ids[k + 1].clone(),
                accums,
            });
        }
        for (stores, axes) in shape.stores.iter().zip(&ids[self.phases.len() + 1..]) {
            let each = stores.each.iter().map(|s| Store {
                buffer: buffer_ids[s.buffer.0 as usize],
                index: e.index(s.index),
                value: e.exprs[&s.value],
                guard: None,
                kind: StoreKind::Set,
            });
            let stores = each.collect();
            e.kernel.phases.push(Phase::Store {
                axes: axes.clone(),
                stores,
            });
        }
        Lowered {
            kernel: e.kernel,
            buffers,
        }
    }

    /// Expressions (ascending) and indices that stores and accumulators need.
    fn live(&self, shape: &Shape) -> (Vec<ExprId>, Vec<Affine>) {
        let mut exprs = vec![false; self.exprs.len()];
        let mut seen = vec![false; self.affines.len()];
        let mut affines = vec![];
        let mut work: Vec<ExprId> = self
            .phases
            .iter()
            .flat_map(|p| p.accums.iter().map(|a| a.value))
            .collect();
        let stored = || shape.stores.iter().flat_map(|s| &s.each);
        work.extend(stored().map(|s| s.value));
        let affine = |s: &Stored| self.affines[s.index.0 as usize].clone();
        let mut indices: Vec<Affine> = stored().map(affine).collect();
        loop {
            if let Some(x) = indices.pop() {
                for (t, _) in &x.terms {
                    if let Term::Opaque(o) = t {
                        match &self.space.opaques[*o as usize] {
                            Opaque::Div(x, _) | Opaque::Rem(x, _) => indices.push(x.clone()),
                            Opaque::Checked { value, .. } => work.push(*value),
                        }
                    }
                }
                affines.push(x);
                continue;
            }
            let Some(e) = work.pop() else { break };
            if std::mem::replace(&mut exprs[e.0 as usize], true) {
                continue;
            }
            self.exprs[e.0 as usize].for_each_operand(|operand| match operand {
                Item::Expr(e) => work.push(e),
                Item::Index(i) => {
                    if !std::mem::replace(&mut seen[i.0 as usize], true) {
                        indices.push(self.affines[i.0 as usize].clone());
                    }
                }
            });
        }
        let live = (0..exprs.len()).filter(|i| exprs[*i]);
        (live.map(|i| ExprId(i as u32)).collect(), affines)
    }

    /// Axes of the parallel part, each reduction and each store, as runs that become one axis.
    fn axis_lists(&self, shape: &Shape, affines: &[Affine]) -> Vec<Vec<Vec<u32>>> {
        let phase = |p: &super::Reduction| {
            let axes = p.axes.iter().filter_map(|a| match a.terms.first() {
                Some((Term::Axis(a), _)) => Some(*a),
                _ => None,
            });
            axes.collect::<Vec<_>>()
        };
        let mut lists = vec![(0..self.parallel).collect()];
        lists.extend(self.phases.iter().map(phase));
        lists.extend(shape.stores.iter().map(|s| s.axes.clone()));
        let merged = |list: Vec<u32>| {
            let mut runs: Vec<Vec<u32>> = vec![];
            for axis in list {
                match runs.last_mut() {
                    Some(run) if shape.collapse && self.mergeable(run, axis, affines) => {
                        run.push(axis)
                    }
                    _ => runs.push(vec![axis]),
                }
            }
            runs
        };
        lists.into_iter().map(merged).collect()
    }

    /// Whether every index runs through the last axis of `run` and `axis` as through one axis.
    fn mergeable(&self, run: &[u32], axis: u32, affines: &[Affine]) -> bool {
        let Some(outer) = run.last() else {
            return false;
        };
        let coefficient = |x: &Affine, a: u32| {
            let found = x.terms.iter().find(|(t, _)| *t == Term::Axis(a));
            found.map_or(Dim::ZERO, |(_, c)| c.clone())
        };
        let extent = &self.space.axes[axis as usize];
        affines
            .iter()
            .all(|x| coefficient(x, *outer) == coefficient(x, axis) * extent.clone())
    }
}

impl Emitter<'_, '_> {
    fn declare_axes(&mut self, lists: &[Vec<Vec<u32>>]) -> Vec<Vec<AxisId>> {
        let extents = &self.from.space.axes;
        let mut ids = vec![];
        for (k, list) in lists.iter().enumerate() {
            let mut own = vec![];
            for run in list {
                let id = AxisId(self.kernel.axes.len() as u32);
                let extent = Dim::product(run.iter().map(|a| &extents[*a as usize]));
                let extent = self.kernel.extent(&extent);
                self.kernel.axes.push(extent);
                // The innermost of merged axes carries the index; the others' shares are part of its coefficient.
                if let Some(inner) = run.last() {
                    self.axes[*inner as usize] = Some(id);
                }
                own.push(id);
            }
            if k == 0 {
                self.kernel.parallel = own.len();
            }
            ids.push(own);
        }
        ids
    }

    fn declare_buffer(&mut self, value: ValueId, access: Access) {
        let ty = self.from.graph.tensor(value);
        let len = self.kernel.extent(&ty.len());
        self.kernel.buffers.push(BufferDecl {
            dtype: ty.dtype,
            access,
            len,
        });
    }

    fn push(&mut self, index: Index) -> IndexId {
        let next = IndexId(self.kernel.indices.len() as u32);
        let at = *self.indices.entry(index).or_insert(next);
        if at == next {
            self.kernel.indices.push(index);
        }
        at
    }

    fn size(&mut self, dim: &Dim) -> IndexId {
        let index = match self.kernel.extent(dim) {
            Extent::Const(c) => Index::Const(c),
            Extent::Size(s) => Index::Size(s),
        };
        self.push(index)
    }

    fn index(&mut self, index: IndexId) -> IndexId {
        let affine = self.from.affines[index.0 as usize].clone();
        self.affine(&affine)
    }

    fn affine(&mut self, x: &Affine) -> IndexId {
        let mut sum = (!x.constant.is(0)).then(|| self.size(&x.constant));
        for (t, c) in &x.terms {
            let term = match t {
                Term::Axis(a) => match self.axes[*a as usize] {
                    Some(id) => self.push(Index::Axis(id)),
                    None => continue,
                },
                Term::Opaque(o) => self.opaque(*o),
            };
            let product = if c.is(1) {
                term
            } else {
                let c = self.size(c);
                self.push(Index::Mul(term, c))
            };
            sum = Some(match sum {
                Some(sum) => self.push(Index::Add(sum, product)),
                None => product,
            });
        }
        sum.unwrap_or_else(|| self.push(Index::Const(0)))
    }

    fn opaque(&mut self, at: u32) -> IndexId {
        if let Some(known) = self.opaques.get(&at) {
            return *known;
        }
        let index = match &self.from.space.opaques[at as usize] {
            Opaque::Div(x, by) => {
                let (x, by) = (self.affine(x), self.size(by));
                Index::Div(x, by)
            }
            Opaque::Rem(x, by) => {
                let (x, by) = (self.affine(x), self.size(by));
                Index::Rem(x, by)
            }
            Opaque::Checked {
                value,
                extent,
                fault,
            } => Index::Checked {
                value: self.exprs[value],
                extent: self.size(extent),
                fault: *fault,
            },
        };
        let id = self.push(index);
        self.opaques.insert(at, id);
        id
    }

    fn expr(&mut self, expr: Expr, buffers: &[BufferId]) -> Expr {
        let expr = expr.map_exprs(|e| self.exprs[&e]);
        match expr.map_indices(|i| self.index(i)) {
            Expr::Load {
                buffer,
                index,
                guard,
            } => Expr::Load {
                buffer: buffers[buffer.0 as usize],
                index,
                guard,
            },
            Expr::Random { index, stream, .. } => {
                let mut entry = |name: &str| match self.kernel.extent(&Dim::sym(name)) {
                    Extent::Size(s) => s,
                    Extent::Const(_) => unreachable!("bug: a symbol is no constant"),
                };
                Expr::Random {
                    index,
                    stream,
                    seed: entry(SEED),
                    run: entry(RUN),
                }
            }
            other => other,
        }
    }
}

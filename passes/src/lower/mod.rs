//! Lowering: a group of graph nodes to one kernel.
//!
//! There is one recursive function, [`Lowerer::lower`]: the element of a value at given coordinates, as an expression.
//! A stored value is a load; anything else is inlined as a function of its coordinates, so that views cost index
//! arithmetic only. Reductions become accumulators of a phase of their own. What cannot be inlined is answered with
//! [`Stop`]: `fuse` then stores that value and tries again.
//!
//! Reading order: `affine` (indices), this file, `index` (ops that address elements), `reduce` (sums), `emit` (to the kernel's arenas),
//! `unit` (groups to units).

mod affine;
mod emit;
mod index;
mod reduce;
mod unit;

pub use affine::runs;
pub use index::{conversion, view_of};
pub(crate) use unit::{LoweredUnit, run};

use affine::{Affine, Coords, Space, Term};

use crate::fuse::Beside;
use crate::plan::MissCode;
use cupola_ir::kernel::{Access, Accum, BufferId, Expr, ExprId, IndexId, Item, Kernel, Literal};
use cupola_ir::{CoreOp, DType, Dim, Graph, NodeId, Op, Scalar, Tensor, ValueId};
use rustc_hash::FxHashMap;

/// Most expressions of a kernel: beyond this, compilers and readers suffer more than memory traffic costs.
const MAX_EXPRS: usize = 4096;

/// A value that has to be stored instead of inlined, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The value.
    pub value: ValueId,
    /// Why.
    pub code: MissCode,
}

/// A kernel and the values behind its buffers.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The kernel.
    pub kernel: Kernel,
    /// One value per buffer.
    pub buffers: Vec<ValueId>,
}

struct Reduction {
    axes: Vec<Affine>,
    extents: Vec<Dim>,
    accums: Vec<Accum>,
}

/// Symbol whose value at launch is the session's seed.
pub const SEED: &str = "session.seed";
/// Symbol whose value at launch is the number of the run.
pub const RUN: &str = "session.run";

/// State of lowering one kernel. Expressions refer to indices by their position in `affines`.
pub struct Lowerer<'g> {
    graph: &'g Graph,
    stored: &'g [bool],
    /// What the kernel stores, and at which offset.
    roots: Vec<(ValueId, Affine)>,
    anchor: Option<ValueId>,
    space: Space,
    parallel: u32,
    affines: Vec<Affine>,
    affine_ids: FxHashMap<Affine, IndexId>,
    exprs: Vec<Expr>,
    expr_ids: FxHashMap<Expr, ExprId>,
    needs: Vec<u32>,
    buffers: Vec<(ValueId, Access)>,
    phases: Vec<Reduction>,
    memo: FxHashMap<(ValueId, Coords, Option<ExprId>), ExprId>,
}

/// Parts of the root, to be stored one after the other.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The axis of the root along which they lie.
    pub axis: usize,
    /// Their extents.
    pub extents: Vec<Dim>,
}

impl Parts {
    /// The operands of a join that lie along an axis of the root.
    pub fn new(graph: &Graph, axis: u32, join: NodeId) -> Parts {
        let node = graph.node(join);
        let along = match &node.op {
            Op::Core(CoreOp::Concat(p)) => p.axis,
            op => unreachable!("bug: {} joins nothing", op.name()),
        };
        let extents = node.operands.iter().map(|v| graph.dims(*v)[along].clone());
        Parts {
            axis: axis as usize,
            extents: extents.filter(|d| !d.is(0)).collect(),
        }
    }
}

/// Lowers `root`, the values `beside` it and everything not stored that they depend on. `row` says which axes of the root the
/// stores loop over inside the parallel axes; that of parts is one of them.
///
/// # Errors
/// A value that must be stored first.
pub fn kernel(
    graph: &Graph,
    stored: &[bool],
    root: ValueId,
    row: &[bool],
    parts: Option<&Parts>,
    beside: &[Beside],
) -> Result<Lowered, Stop> {
    let mut me = Lowerer::new(graph, stored);
    let dims = graph.dims(root);
    let mut at = vec![Affine::zero(); dims.len()];
    for axis in (0..dims.len()).filter(|a| !row[*a]) {
        at[axis] = me.space.axis(&dims[axis]);
    }
    me.parallel = me.space.axes.len() as u32;
    let whole = Parts {
        axis: dims.len(),
        extents: vec![Dim::ONE],
    };
    let parts = parts.unwrap_or(&whole);
    let mut stores = vec![];
    let mut start = Dim::ZERO;
    for extent in &parts.extents {
        let first = me.space.axes.len() as u32;
        for axis in (0..dims.len()).filter(|a| row[*a]) {
            at[axis] = match axis == parts.axis {
                true => me.space.axis(extent).offset(&start),
                false => me.space.axis(&dims[axis]),
            };
        }
        let axes: Vec<u32> = (first..me.space.axes.len() as u32).collect();
        let position = Coords {
            dims: dims.clone(),
            at: at.clone(),
        };
        let all = me.positions(root, position, beside);
        me.roots = (all.iter())
            .map(|(v, coords)| (*v, coords.linear()))
            .collect();
        let along = |coords: &Coords| coords.at.iter().any(|x| !me.is_parallel(x));
        let inner = |coords: &Coords| axes.is_empty() || along(coords);
        let (inner, outer) = (all.into_iter()).partition(|(v, coords)| *v == root || inner(coords));
        for (axes, values) in [(vec![], outer), (axes.clone(), inner)] {
            let each = me.stored(values)?;
            if !each.is_empty() {
                stores.push(emit::Stores { axes, each });
            }
        }
        start = start + extent.clone();
    }
    Ok(me.emit(emit::Shape {
        stores,
        sizes: vec![],
        collapse: true,
    }))
}

/// Lowers the elementwise rest of a library unit: `root` and the values `beside` it as functions of `anchor`, the unit's result
/// 0. Buffer 0 is the anchor, buffer 1 the root; `sizes` are those of the unit so far.
///
/// # Errors
/// A value that must be stored first.
pub fn epilogue(
    graph: &Graph,
    stored: &[bool],
    root: ValueId,
    anchor: ValueId,
    sizes: Vec<Dim>,
    beside: &[Beside],
) -> Result<Lowered, Stop> {
    let mut me = Lowerer::new(graph, stored);
    me.anchor = Some(anchor);
    let dims = graph.dims(anchor);
    me.space.axes = dims.clone();
    me.parallel = dims.len() as u32;
    let at = dims.iter().enumerate().map(|(a, d)| {
        if d.is(1) {
            Affine::zero()
        } else {
            Affine::term(Term::Axis(a as u32))
        }
    });
    // The root may have other axes over the same elements.
    let position = Coords {
        at: at.collect(),
        dims,
    };
    me.buffer(anchor, Access::Read);
    let all = me.positions(root, position, beside);
    me.roots = (all.iter())
        .map(|(v, coords)| (*v, coords.linear()))
        .collect();
    let each = me.stored(all)?;
    let stores = emit::Stores { axes: vec![], each };
    Ok(me.emit(emit::Shape {
        stores: vec![stores],
        sizes,
        collapse: false,
    }))
}

impl<'g> Lowerer<'g> {
    fn new(graph: &'g Graph, stored: &'g [bool]) -> Lowerer<'g> {
        Lowerer {
            graph,
            stored,
            roots: vec![],
            anchor: None,
            space: Space::default(),
            parallel: 0,
            affines: vec![],
            affine_ids: FxHashMap::default(),
            exprs: vec![],
            expr_ids: FxHashMap::default(),
            needs: vec![],
            buffers: vec![],
            phases: vec![],
            memo: FxHashMap::default(),
        }
    }

    /// The positions of the root's element, which is that of `position`, and of those beside it.
    fn positions(
        &self,
        root: ValueId,
        position: Coords,
        beside: &[Beside],
    ) -> Vec<(ValueId, Coords)> {
        let follow = |a: &Option<u32>| match a {
            Some(a) => position.at[*a as usize].clone(),
            None => Affine::zero(),
        };
        let beside = beside.iter().map(|b| {
            let at = b.axes.iter().map(follow).collect();
            let dims = self.graph.dims(b.value);
            (b.value, Coords { dims, at })
        });
        let mut all: Vec<(ValueId, Coords)> = beside.collect();
        all.insert(0, (root, position));
        all
    }

    /// Values at their positions, to be stored there.
    fn stored(&mut self, values: Vec<(ValueId, Coords)>) -> Result<Vec<emit::Stored>, Stop> {
        let each = values.into_iter().map(|(v, coords)| {
            Ok(emit::Stored {
                buffer: self.buffer(v, Access::Write),
                value: self.lower(v, &coords, None)?,
                index: self.index(coords.linear()),
            })
        });
        each.collect()
    }

    fn index(&mut self, affine: Affine) -> IndexId {
        let next = IndexId(self.affines.len() as u32);
        let at = *self.affine_ids.entry(affine.clone()).or_insert(next);
        if at == next {
            self.affines.push(affine);
        }
        at
    }

    fn expr(&mut self, expr: Expr) -> ExprId {
        let next = ExprId(self.exprs.len() as u32);
        let at = *self.expr_ids.entry(expr).or_insert(next);
        if at == next {
            let needs = self.phases_needed(&expr);
            self.needs.push(needs);
            self.exprs.push(expr);
        }
        at
    }

    fn buffer(&mut self, value: ValueId, access: Access) -> BufferId {
        let known = self.buffers.iter().position(|b| *b == (value, access));
        BufferId(known.unwrap_or_else(|| {
            self.buffers.push((value, access));
            self.buffers.len() - 1
        }) as u32)
    }

    /// Number of leading phases that must have run before an expression can be evaluated.
    fn phases_needed(&self, expr: &Expr) -> u32 {
        let mut needed = match expr {
            Expr::Accum { phase, .. } => phase + 1,
            _ => 0,
        };
        expr.for_each_operand(|operand| {
            needed = needed.max(match operand {
                Item::Expr(e) => self.needs[e.0 as usize],
                Item::Index(i) => self.index_needs(i),
            });
        });
        needed
    }

    fn index_needs(&self, index: IndexId) -> u32 {
        self.affine_needs(&self.affines[index.0 as usize])
    }

    fn affine_needs(&self, x: &Affine) -> u32 {
        let of = |t: &Term| match t {
            Term::Axis(_) => 0,
            Term::Opaque(o) => match &self.space.opaques[*o as usize] {
                affine::Opaque::Div(x, _) | affine::Opaque::Rem(x, _) => self.affine_needs(x),
                affine::Opaque::Checked { value, .. } => self.needs[value.0 as usize],
            },
        };
        x.terms.iter().map(|(t, _)| of(t)).max().unwrap_or(0)
    }

    /// Whether an index is the same for all positions inside one parallel index.
    fn is_parallel(&self, x: &Affine) -> bool {
        x.terms.iter().all(|(t, _)| match t {
            Term::Axis(a) => *a < self.parallel,
            Term::Opaque(o) => match &self.space.opaques[*o as usize] {
                affine::Opaque::Div(x, _) | affine::Opaque::Rem(x, _) => self.is_parallel(x),
                affine::Opaque::Checked { .. } => false,
            },
        })
    }

    /// A number of a dtype.
    fn number(&mut self, value: f64, dtype: DType) -> ExprId {
        let bits = cupola_ir::convert::splat(value, dtype).and_then(|t| literal(&t));
        let Some(literal) = bits else {
            unreachable!("bug: no number of {dtype}")
        };
        self.expr(Expr::Const(literal))
    }

    fn select(&mut self, condition: ExprId, x: ExprId, y: ExprId) -> ExprId {
        if x == y {
            return x;
        }
        self.expr(Expr::Ternary(Scalar::Select, condition, x, y))
    }

    fn and(&mut self, a: Option<ExprId>, b: Option<ExprId>) -> Option<ExprId> {
        match (a, b) {
            (Some(a), Some(b)) if a != b => Some(self.expr(Expr::Binary(Scalar::And, a, b))),
            (a, b) => a.or(b),
        }
    }

    fn cast(&mut self, x: ExprId, from: DType, to: DType, saturate: bool) -> ExprId {
        if from == to {
            return x;
        }
        match self.exprs[x.0 as usize] {
            // An index becomes the number directly: devices without 64-bit integers can then hold it.
            Expr::Index(i, DType::I64)
                if matches!(to, DType::F32 | DType::F64 | DType::I32 | DType::U32) =>
            {
                self.expr(Expr::Index(i, to))
            }
            _ => self.expr(Expr::Cast { x, to, saturate }),
        }
    }

    /// The element of `value` at `at`. Where `guard` is false no load happens and the result is not used.
    fn lower(
        &mut self,
        value: ValueId,
        at: &Coords,
        guard: Option<ExprId>,
    ) -> Result<ExprId, Stop> {
        let own = self.roots.iter().find(|(root, _)| *root == value);
        let own = own.map(|(_, position)| *position == at.linear());
        if own == Some(false) {
            // What the kernel itself writes elsewhere cannot be read in it.
            return Err(Stop {
                value,
                code: MissCode::SeveralUsers,
            });
        }
        let guard = guard.filter(|_| own.is_none());
        if self.anchor == Some(value) || self.stored[value.index()] && own.is_none() {
            if let Some(literal) = self.graph.as_const(value).and_then(uniform) {
                return Ok(self.expr(Expr::Const(literal)));
            }
            let buffer = self.buffer(value, Access::Read);
            let index = self.index(at.linear());
            return Ok(self.expr(Expr::Load {
                buffer,
                index,
                guard,
            }));
        }
        let key = (value, at.clone(), guard);
        if let Some(known) = self.memo.get(&key) {
            return Ok(*known);
        }
        if self.exprs.len() + self.affines.len() > MAX_EXPRS {
            return Err(Stop {
                value,
                code: MissCode::TooLarge,
            });
        }
        let expr = self.compute(value, at, guard)?;
        self.memo.insert(key, expr);
        Ok(expr)
    }

    /// As [`Self::lower`], for a value that is computed here.
    fn compute(
        &mut self,
        value: ValueId,
        at: &Coords,
        guard: Option<ExprId>,
    ) -> Result<ExprId, Stop> {
        let graph = self.graph;
        let node = graph.def(value);
        let x = node.operands.first().copied();
        let operand = |k: usize| node.operands[k];
        let Op::Core(op) = &node.op else {
            return Err(Stop {
                value,
                code: MissCode::Unsupported,
            });
        };
        match op {
            CoreOp::Const(c) => match uniform(&c.value) {
                Some(literal) => Ok(self.expr(Expr::Const(literal))),
                None => Err(Stop {
                    value,
                    code: MissCode::Unsupported,
                }),
            },
            CoreOp::Iota(p) => {
                let own = at.reindex(&p.dims, &mut self.space);
                let index = self.index(own[p.axis].clone());
                Ok(self.expr(Expr::Index(index, p.dtype)))
            }
            CoreOp::Dims(p) => Ok(self.dims(&p.dims, &at.linear())),
            CoreOp::Map(p) => {
                let mut args = node
                    .operands
                    .iter()
                    .map(|v| self.lower(*v, at, guard))
                    .collect::<Result<Vec<_>, _>>()?;
                let divides = matches!(p.f, Scalar::Div | Scalar::Rem | Scalar::Mod);
                let dtype = graph.dtype(operand(0));
                if let (true, true, Some(guard)) = (divides, dtype.is_int(), guard) {
                    // A guarded load gives 0, which must not become a division by zero.
                    let one = self.number(1.0, dtype);
                    args[1] = self.select(guard, args[1], one);
                }
                Ok(self.expr(match args[..] {
                    [x] => Expr::Unary(p.f, x),
                    [x, y] => Expr::Binary(p.f, x, y),
                    [x, y, z] => Expr::Ternary(p.f, x, y, z),
                    _ => unreachable!("bug: scalar function of {} operands", args.len()),
                }))
            }
            CoreOp::Cast(p) => {
                let from = graph.dtype(operand(0));
                let x = self.lower(operand(0), at, guard)?;
                Ok(self.cast(x, from, p.to, p.saturate))
            }
            CoreOp::Bitcast(p) => {
                let x = self.lower(operand(0), at, guard)?;
                Ok(self.expr(Expr::Bitcast { x, to: p.to }))
            }
            CoreOp::Reshape(_)
            | CoreOp::Permute(_)
            | CoreOp::Broadcast(_)
            | CoreOp::Slice(_)
            | CoreOp::Window(_) => {
                let x = operand(0);
                let inner = index::through_view(graph, value, x, at, &mut self.space);
                self.lower(x, &inner, guard)
            }
            CoreOp::Pad(p) => self.pad(p, value, operand(0), operand(1), at, guard),
            CoreOp::Concat(p) => self.concat(p.axis, value, at, guard),
            CoreOp::Gather(p) => self.gather(p, value, at, guard),
            CoreOp::Fold(p) => self.fold(p, value, operand(0), at),
            CoreOp::Reduce(p) => self.reduce(p, value, operand(0), at),
            CoreOp::ArgReduce(p) => self.arg_reduce(p, value, operand(0), at),
            CoreOp::Contract(p) => self.contract(p, value, at),
            CoreOp::Random(p) => {
                let index = self.index(at.linear());
                Ok(self.expr(Expr::Random {
                    index,
                    stream: p.stream,
                    seed: 0,
                    run: 0,
                }))
            }
            CoreOp::Collective(_) | CoreOp::Transfer(_) => match x {
                Some(x) => self.lower(x, at, guard),
                None => unreachable!("bug: transfer of nothing"),
            },
            CoreOp::Input(_)
            | CoreOp::Param(_)
            | CoreOp::Scatter(_)
            | CoreOp::Sort(_)
            | CoreOp::If(_)
            | CoreOp::Loop(_)
            | CoreOp::Scan(_)
            | CoreOp::Call(_)
            | CoreOp::ReadState(_)
            | CoreOp::WriteState(_)
            | CoreOp::BindDim(_) => Err(Stop {
                value,
                code: MissCode::Unsupported,
            }),
        }
    }

    fn dims(&mut self, dims: &[Dim], at: &Affine) -> ExprId {
        let entry = |me: &mut Self, d: &Dim| {
            let index = me.index(Affine::constant(d.clone()));
            me.expr(Expr::Index(index, DType::I64))
        };
        if let Some(k) = at.constant.as_const()
            && at.terms.is_empty()
            && let Some(d) = dims.get(k as usize)
        {
            return entry(self, d);
        }
        let mut out = match dims.last() {
            Some(last) => entry(self, last),
            None => return self.number(0.0, DType::I64),
        };
        let position = self.index(at.clone());
        for (k, d) in dims.iter().enumerate().rev().skip(1) {
            let limit = self.index(Affine::constant(k + 1));
            let before = self.expr(Expr::Less(position, limit));
            let x = entry(self, d);
            out = self.select(before, x, out);
        }
        out
    }
}

/// The one element of a whole-byte constant whose elements are all the same bits.
pub fn uniform(t: &Tensor) -> Option<Literal> {
    let size = t.dtype().size();
    // Larger constants are data, not numbers.
    if size == 0 || t.is_empty() || t.len() > 64 {
        return None;
    }
    let mut elements = t.bytes().chunks_exact(size);
    let first = elements.next()?;
    elements.all(|e| e == first).then(|| literal(t)).flatten()
}

fn literal(t: &Tensor) -> Option<Literal> {
    let size = t.dtype().size();
    let mut bits = [0u8; 8];
    let bytes = t.bytes().get(..size)?;
    bits.get_mut(..size)?.copy_from_slice(bytes);
    (size > 0).then(|| Literal {
        dtype: t.dtype(),
        bits: u64::from_le_bytes(bits),
    })
}

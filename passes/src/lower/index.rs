//! Lowering of the ops that only address elements: views, borders, joins, gathers and folds.

use super::{Affine, Coords, Lowerer, Space, Stop, Term, affine};
use cupola_ir::kernel::{AccumKind, Expr, ExprId};
use cupola_ir::ops::*;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, Scalar, ValueId};

/// Strides and offset of a value as a view of another, both in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Strided {
    /// The viewed value.
    pub base: ValueId,
    /// Elements from one index to the next, per axis of the viewing value.
    pub strides: Vec<Dim>,
    /// Element offset of the first element.
    pub offset: Dim,
}

/// The value as a strided view of the farthest operand that a chain of views leads to; stops at values that are
/// stored anyway. Strides are not negative. The value itself when nothing else fits. With `converts` the chain may hold one
/// conversion, which is left to the reader: the base then has another dtype than the value.
pub fn view_of(graph: &Graph, value: ValueId, stored: &[bool], converts: bool) -> Strided {
    let mut space = Space::default();
    let dims = graph.dims(value);
    let at = dims.iter().enumerate().map(|(axis, d)| {
        space.axes.push(d.clone());
        if d.is(1) {
            Affine::zero()
        } else {
            Affine::term(Term::Axis(axis as u32))
        }
    });
    let mut coords = Coords {
        at: at.collect(),
        dims,
    };
    let strides_of = |base: ValueId, coords: &Coords, space: &Space| -> Option<Strided> {
        let linear = coords.linear();
        let mut strides = vec![Dim::ZERO; space.axes.len()];
        for (t, c) in &linear.terms {
            match t {
                Term::Axis(a) if affine::non_negative(c) => strides[*a as usize] = c.clone(),
                Term::Axis(_) | Term::Opaque(_) => return None,
            }
        }
        Some(Strided {
            base,
            strides,
            offset: linear.constant,
        })
    };
    // The dense strides of the value itself are products of extents, whatever expressions those are.
    let own = graph.dims(value);
    let dense = (0..own.len()).map(|axis| match own[axis].is(1) {
        true => Dim::ZERO,
        false => Dim::product(&own[axis + 1..]),
    });
    let mut best = Strided {
        base: value,
        strides: dense.collect(),
        offset: Dim::ZERO,
    };
    let mut at = value;
    let mut may_convert = converts;
    while !stored[at.index()] {
        let x = match graph.op_of(at) {
            Op::Core(
                CoreOp::Reshape(_)
                | CoreOp::Permute(_)
                | CoreOp::Broadcast(_)
                | CoreOp::Slice(_)
                | CoreOp::Window(_),
            ) => {
                let x = graph.def(at).operands[0];
                coords = through_view(graph, at, x, &coords, &mut space);
                x
            }
            Op::Core(CoreOp::Cast(_)) if std::mem::take(&mut may_convert) => {
                match conversion(graph, at) {
                    Some(x) => x,
                    None => break,
                }
            }
            _ => break,
        };
        at = x;
        match strides_of(x, &coords, &space) {
            Some(view) => best = view,
            None => break,
        }
    }
    best
}

/// What a value is another float type of, when it is one of those that kernels convert as they read.
pub fn conversion(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let Op::Core(CoreOp::Cast(_)) = graph.op_of(value) else {
        return None;
    };
    let x = graph.def(value).operands[0];
    let known = |v| matches!(graph.dtype(v), DType::F32 | DType::F16 | DType::BF16);
    (known(x) && known(value)).then_some(x)
}

/// Coordinates of `x` for those of `value`, a view of it.
pub fn through_view(
    graph: &Graph,
    value: ValueId,
    x: ValueId,
    at: &Coords,
    space: &mut Space,
) -> Coords {
    let dims = graph.dims(x);
    let own = |space: &mut Space| at.reindex(&graph.dims(value), space);
    let indices = match graph.op_of(value) {
        Op::Core(CoreOp::Permute(p)) => {
            let own = own(space);
            let mut out = own.clone();
            for (k, a) in p.perm.iter().enumerate() {
                out[*a] = own[k].clone();
            }
            out
        }
        Op::Core(CoreOp::Broadcast(p)) => {
            let own = own(space);
            let axes = own.into_iter().zip(dims.iter().zip(&p.dims));
            axes.map(|(i, (from, to))| repeat(&i, from, to)).collect()
        }
        Op::Core(CoreOp::Slice(p)) => own(space)
            .iter()
            .zip(p.starts.iter().zip(&p.steps))
            .map(|(i, (start, step))| i.scale(&Dim::Const(*step)).offset(start))
            .collect(),
        Op::Core(CoreOp::Window(p)) => {
            let mut out = own(space);
            let inner = out.split_off(dims.len());
            for (k, a) in p.axes.iter().enumerate() {
                let window = out[*a].scale(&Dim::Const(p.strides[k]));
                out[*a] = window.add(&inner[k].scale(&Dim::Const(p.dilations[k])));
            }
            out
        }
        // A reshape keeps the order of elements, and so the coordinates.
        _ => return at.clone(),
    };
    Coords { dims, at: indices }
}

/// Index of an operand axis under a broadcast. Where only the binding decides whether the axis is repeated, the index
/// is multiplied by 0 or 1.
fn repeat(index: &Affine, from: &Dim, to: &Dim) -> Affine {
    if from == to || from.is_clip_of(to) {
        return index.clone();
    }
    match from.as_const() {
        Some(1) => Affine::zero(),
        Some(_) => index.clone(),
        None => index.scale(&(from.clone() - Dim::ONE).smaller(&Dim::ONE)),
    }
}

impl Lowerer<'_> {
    /// `0 <= index < extent` as far as it is not known to hold; `None` when it always does.
    fn inside(&mut self, index: &Affine, low: &Dim, high: &Dim) -> Option<ExprId> {
        let above = (!self.space.is_non_negative(&index.offset(&-low.clone()))).then(|| {
            let (a, b) = (low.clone() - Dim::ONE, index.clone());
            let (a, b) = (self.index(Affine::constant(a)), self.index(b));
            self.expr(Expr::Less(a, b))
        });
        let below = (!self.space.is_below(index, high)).then(|| {
            let (a, b) = (
                self.index(index.clone()),
                self.index(Affine::constant(high.clone())),
            );
            self.expr(Expr::Less(a, b))
        });
        self.and(above, below)
    }

    pub(super) fn pad(
        &mut self,
        p: &Pad,
        value: ValueId,
        x: ValueId,
        border: ValueId,
        at: &Coords,
        guard: Option<ExprId>,
    ) -> Result<ExprId, Stop> {
        let own = at.reindex(&self.graph.dims(value), &mut self.space);
        let dims = self.graph.dims(x);
        let mut inside = None;
        let mut inner = vec![];
        for (axis, i) in own.iter().enumerate() {
            let i = i.offset(&-p.low[axis].clone());
            if !(p.low[axis].is(0) && p.high[axis].is(0)) {
                let here = self.inside(&i, &Dim::ZERO, &dims[axis]);
                inside = self.and(inside, here);
            }
            inner.push(i);
        }
        let coords = Coords { dims, at: inner };
        let Some(condition) = inside else {
            return self.lower(x, &coords, guard);
        };
        let both = self.and(guard, inside);
        let e = self.lower(x, &coords, both)?;
        let scalar = Coords {
            dims: vec![],
            at: vec![],
        };
        let border = self.lower(border, &scalar, guard)?;
        Ok(self.select(condition, e, border))
    }

    pub(super) fn concat(
        &mut self,
        axis: usize,
        value: ValueId,
        at: &Coords,
        guard: Option<ExprId>,
    ) -> Result<ExprId, Stop> {
        let parts = self.graph.def(value).operands.clone();
        let own = at.reindex(&self.graph.dims(value), &mut self.space);
        let mut start = Dim::ZERO;
        let mut elements = vec![];
        for part in &parts {
            let dims = self.graph.dims(*part);
            let end = start.clone() + dims[axis].clone();
            if dims[axis].is(0) {
                continue;
            }
            if self.space.is_below(&own[axis], &start) {
                // Here the index never gets to this part and those behind it.
                break;
            }
            if (self.space).is_non_negative(&own[axis].offset(&-end.clone())) {
                start = end;
                continue;
            }
            let here = self.inside(&own[axis], &start, &end);
            let here = self.and(guard, here);
            let mut inner = own.clone();
            inner[axis] = own[axis].offset(&-start.clone());
            let e = self.lower(*part, &Coords { dims, at: inner }, here)?;
            elements.push((e, end.clone()));
            start = end;
        }
        let Some((mut out, _)) = elements.pop() else {
            let dtype = self.graph.dtype(value);
            return Ok(self.number(0.0, dtype));
        };
        for (e, end) in elements.into_iter().rev() {
            let (a, b) = (
                self.index(own[axis].clone()),
                self.index(Affine::constant(end)),
            );
            let before = self.expr(Expr::Less(a, b));
            out = self.select(before, e, out);
        }
        Ok(out)
    }

    pub(super) fn gather(
        &mut self,
        p: &Gather,
        value: ValueId,
        at: &Coords,
        guard: Option<ExprId>,
    ) -> Result<ExprId, Stop> {
        let operands = self.graph.def(value).operands.clone();
        let (data, indices) = (operands[0], &operands[1..]);
        let dims = self.graph.dims(data);
        let own = at.reindex(&self.graph.dims(value), &mut self.space);
        let index_dims = self.graph.dims(indices[0]);
        let (picked, window) = own.split_at(index_dims.len());
        let index_at = Coords {
            dims: index_dims,
            at: picked.to_vec(),
        };
        let mut inner = vec![Affine::zero(); dims.len()];
        inner[..p.batch].clone_from_slice(&picked[..p.batch]);
        let others = (p.batch..dims.len()).filter(|a| !p.axes.contains(a));
        for (a, i) in others.zip(window) {
            inner[a] = i.clone();
        }
        let mut inside = None;
        for (axis, index) in p.axes.iter().zip(indices) {
            let mut i = self.lower(*index, &index_at, guard)?;
            if let Some(guard) = guard {
                let zero = self.number(0.0, DType::I64);
                i = self.select(guard, i, zero);
            }
            if p.bounds == Bounds::Skip {
                let extent = self.index(Affine::constant(dims[*axis].clone()));
                let extent = self.expr(Expr::Index(extent, DType::I64));
                let zero = self.number(0.0, DType::I64);
                let above = self.expr(Expr::Binary(Scalar::Le, zero, i));
                let below = self.expr(Expr::Binary(Scalar::Lt, i, extent));
                let both = self.and(Some(above), Some(below));
                inside = self.and(inside, both);
            }
            // A constant index that is known to be inside needs no check.
            inner[*axis] = self.space.opaque(affine::Opaque::Checked {
                value: i,
                extent: dims[*axis].clone(),
                fault: p.bounds == Bounds::Check,
            });
        }
        let coords = Coords { dims, at: inner };
        let both = self.and(guard, inside);
        let e = self.lower(data, &coords, both)?;
        Ok(match inside {
            Some(inside) => {
                let dtype = self.graph.dtype(data);
                let zero = self.number(0.0, dtype);
                self.select(inside, e, zero)
            }
            None => e,
        })
    }

    /// Sums, for an element, the window positions that cover it.
    pub(super) fn fold(
        &mut self,
        p: &Fold,
        value: ValueId,
        x: ValueId,
        at: &Coords,
    ) -> Result<ExprId, Stop> {
        let xt = self.graph.tensor(x);
        let accum = self.graph.accumulator(xt.dtype);
        let own = at.reindex(&p.dims, &mut self.space);
        let rank = p.dims.len();
        let sum = self.accumulate(value, &own, AccumKind::Sum, &p.sizes, &mut |me, inner| {
            let mut coords = own.clone();
            coords.extend(inner.iter().cloned());
            let mut covered = None;
            for (k, a) in p.axes.iter().enumerate() {
                let back = inner[k].scale(&Dim::Const(-p.dilations[k]));
                let first = own[*a].add(&back);
                let (window, rest) = me.space.div_rem(&first, &Dim::Const(p.strides[k]));
                if !rest.is(0) {
                    let one = Affine::constant(Dim::ONE);
                    let (rest, one) = (me.index(rest), me.index(one));
                    let aligned = me.expr(Expr::Less(rest, one));
                    covered = me.and(covered, Some(aligned));
                }
                let here = me.inside(&window, &Dim::ZERO, &xt.dims[*a]);
                covered = me.and(covered, here);
                coords[*a] = window;
            }
            debug_assert_eq!(coords.len(), rank + p.axes.len());
            let coords = Coords {
                dims: xt.dims.clone(),
                at: coords,
            };
            let e = me.lower(x, &coords, covered)?;
            let e = match covered {
                Some(covered) => {
                    let zero = me.number(0.0, xt.dtype);
                    me.select(covered, e, zero)
                }
                None => e,
            };
            Ok(me.cast(e, xt.dtype, accum, true))
        })?;
        Ok(self.cast(sum, accum, xt.dtype, true))
    }
}

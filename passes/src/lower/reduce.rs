//! Lowering of what sums over axes: reductions, positions of extremes and products become accumulators of phases.

use super::{Affine, Coords, Lowerer, Reduction, Stop};
use crate::plan::MissCode;
use cupola_ir::kernel::{Accum, AccumKind, Expr, ExprId};
use cupola_ir::ops::*;
use cupola_ir::{DType, Dim, Scalar, ValueId};

/// The element of a reduction at positions of its axes.
type Body<'b, 'g> = dyn FnMut(&mut Lowerer<'g>, &[Affine]) -> Result<ExprId, Stop> + 'b;

impl<'g> Lowerer<'g> {
    pub(super) fn reduce(
        &mut self,
        p: &Reduce,
        value: ValueId,
        x: ValueId,
        at: &Coords,
    ) -> Result<ExprId, Stop> {
        let xt = self.graph.tensor(x);
        let kind = match p.kind {
            ReduceKind::Sum => AccumKind::Sum,
            ReduceKind::Prod => AccumKind::Prod,
            ReduceKind::Max => AccumKind::Max,
            ReduceKind::Min => AccumKind::Min,
        };
        // The largest and smallest of integers are exact in their own type, and right over nothing.
        let ordered = matches!(p.kind, ReduceKind::Max | ReduceKind::Min);
        let accum = if ordered && !xt.dtype.is_float() {
            xt.dtype
        } else {
            p.accum
        };
        let (kept, reduced) = split(&xt.dims, &p.axes);
        let own = at.reindex(&kept, &mut self.space);
        let extents = reduced;
        let result = self.accumulate(value, &own, kind, &extents, &mut |me, inner| {
            let coords = Coords {
                dims: xt.dims.clone(),
                at: merge(&own, inner, &p.axes),
            };
            let e = me.lower(x, &coords, None)?;
            Ok(me.cast(e, xt.dtype, accum, true))
        })?;
        Ok(self.cast(result, accum, xt.dtype, true))
    }

    pub(super) fn arg_reduce(
        &mut self,
        p: &ArgReduce,
        value: ValueId,
        x: ValueId,
        at: &Coords,
    ) -> Result<ExprId, Stop> {
        let xt = self.graph.tensor(x);
        let kind = if p.kind == ReduceKind::Max {
            AccumKind::ArgMax { last: p.last }
        } else {
            AccumKind::ArgMin { last: p.last }
        };
        let (kept, extents) = split(&xt.dims, &[p.axis]);
        let own = at.reindex(&kept, &mut self.space);
        self.accumulate(value, &own, kind, &extents, &mut |me, inner| {
            let coords = Coords {
                dims: xt.dims.clone(),
                at: merge(&own, inner, &[p.axis]),
            };
            let e = me.lower(x, &coords, None)?;
            // Booleans are compared as numbers.
            Ok(if xt.dtype == DType::Bool {
                me.cast(e, DType::Bool, DType::I32, true)
            } else {
                e
            })
        })
    }

    pub(super) fn contract(
        &mut self,
        p: &Contract,
        value: ValueId,
        at: &Coords,
    ) -> Result<ExprId, Stop> {
        let operands = &self.graph.def(value).operands;
        let (l, r) = (operands[0], operands[1]);
        let (lt, rt) = (self.graph.tensor(l), self.graph.tensor(r));
        let lhs_free = Contract::free(lt.rank(), &p.lhs_batch, &p.lhs_contract);
        let rhs_free = Contract::free(rt.rank(), &p.rhs_batch, &p.rhs_contract);
        let own = at.reindex(&self.graph.dims(value), &mut self.space);
        let (batch, free) = own.split_at(p.lhs_batch.len());
        let (lhs_at, rhs_at) = free.split_at(lhs_free.len());
        let extents: Vec<Dim> = p.lhs_contract.iter().map(|a| lt.dims[*a].clone()).collect();
        let product =
            self.accumulate(value, &own, AccumKind::Sum, &extents, &mut |me, inner| {
                let side = |dims: &[Dim], groups: [(&[usize], &[Affine]); 3]| {
                    let mut at = vec![Affine::zero(); dims.len()];
                    for (axes, from) in groups {
                        for (a, i) in axes.iter().zip(from) {
                            at[*a] = i.clone();
                        }
                    }
                    Coords {
                        dims: dims.to_vec(),
                        at,
                    }
                };
                let lc = side(
                    &lt.dims,
                    [
                        (&p.lhs_batch, batch),
                        (&lhs_free, lhs_at),
                        (&p.lhs_contract, inner),
                    ],
                );
                let rc = side(
                    &rt.dims,
                    [
                        (&p.rhs_batch, batch),
                        (&rhs_free, rhs_at),
                        (&p.rhs_contract, inner),
                    ],
                );
                let x = me.lower(l, &lc, None)?;
                let y = me.lower(r, &rc, None)?;
                let x = me.cast(x, lt.dtype, p.accum, true);
                let y = me.cast(y, rt.dtype, p.accum, true);
                Ok(me.expr(Expr::Binary(Scalar::Mul, x, y)))
            })?;
        Ok(self.cast(product, p.accum, p.out, true))
    }

    /// An accumulator over axes of the given extents. It joins an earlier phase over the same extents unless its
    /// value needs that phase's results.
    pub(super) fn accumulate(
        &mut self,
        value: ValueId,
        at: &[Affine],
        kind: AccumKind,
        extents: &[Dim],
        body: &mut Body<'_, 'g>,
    ) -> Result<ExprId, Stop> {
        if !at.iter().all(|i| self.is_parallel(i)) {
            return Err(Stop {
                value,
                code: MissCode::ReductionShape,
            });
        }
        for phase in 0..self.phases.len() {
            if self.phases[phase].extents != extents {
                continue;
            }
            let axes = self.phases[phase].axes.clone();
            let element = body(self, &axes)?;
            if self.needs[element.0 as usize] <= phase as u32 {
                return Ok(self.push_accum(phase, kind, element));
            }
        }
        let axes: Vec<Affine> = extents.iter().map(|d| self.space.axis(d)).collect();
        let element = body(self, &axes)?;
        if extents.iter().all(|d| d.is(1)) {
            return Ok(match kind {
                AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => element,
                AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => self.number(0.0, DType::I64),
            });
        }
        self.phases.push(Reduction {
            axes,
            extents: extents.to_vec(),
            accums: vec![],
        });
        Ok(self.push_accum(self.phases.len() - 1, kind, element))
    }

    fn push_accum(&mut self, phase: usize, kind: AccumKind, value: ExprId) -> ExprId {
        let accum = Accum { kind, value };
        let accums = &mut self.phases[phase].accums;
        let at = accums.iter().position(|a| *a == accum).unwrap_or_else(|| {
            accums.push(accum);
            accums.len() - 1
        });
        self.expr(Expr::Accum {
            phase: phase as u32,
            accum: at as u32,
        })
    }
}

/// Extents split in those that stay and those at `axes`.
fn split(dims: &[Dim], axes: &[usize]) -> (Vec<Dim>, Vec<Dim>) {
    let kept = (0..dims.len()).filter(|a| !axes.contains(a));
    (
        kept.map(|a| dims[a].clone()).collect(),
        axes.iter().map(|a| dims[*a].clone()).collect(),
    )
}

/// Indices of an operand: `inner` at `axes`, `outer` elsewhere.
fn merge(outer: &[Affine], inner: &[Affine], axes: &[usize]) -> Vec<Affine> {
    let (mut outer, mut inner) = (outer.iter(), inner.iter());
    let rank = outer.len() + inner.len();
    (0..rank)
        .map(|a| {
            let from = if axes.contains(&a) {
                inner.next()
            } else {
                outer.next()
            };
            from.cloned()
                .unwrap_or_else(|| unreachable!("bug: fewer indices than axes"))
        })
        .collect()
}

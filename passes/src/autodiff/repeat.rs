//! Scans and loops: the gradient is a scan over the same steps from the last to the first.
//!
//! The forward node is made to give more: what it carries into every step, and those values of a step that cost more than
//! elementwise work (products, reductions, composites) where the gradient needs them. Everything else of a step is computed
//! again from these. What a step adds to a capture's gradient as a product or a sum is not added up step by step: its factors
//! are stacked, and one product or sum over all steps is taken at the end (`deferred`). What a step of the backward scan is made of is in `back`. Any number of steps is followed, also
//! one that only a condition decides.

use super::back::{Back, Role};
use super::deferred::Factor;
use super::{Grads, Ir, Site, depending};
use crate::region::{Symbols, resolve, unify};
use cupola_ir::ops::{CoreOp, Loop, Scan};
use cupola_ir::{Dim, Graph, NodeId, Op, Scalar, TensorType, ValueId, ValueType};

/// A scan, or a loop as one over the numbers of its iterations.
pub(super) struct Repetition {
    pub(super) body: Graph,
    pub(super) carried: usize,
    pub(super) scanned: usize,
    /// Operands before the carried ones.
    pub(super) decisions: usize,
    /// Inputs of the body before the carried ones: the iteration's number.
    pub(super) numbers: usize,
    /// Outputs of the body before the carried ones: the condition.
    pub(super) conditions: usize,
}

impl Repetition {
    pub(super) fn of_scan(p: &Scan) -> Repetition {
        Repetition {
            body: p.body.clone(),
            carried: p.carried,
            scanned: p.scanned,
            decisions: 0,
            numbers: 0,
            conditions: 0,
        }
    }

    pub(super) fn of_loop(p: &Loop) -> Repetition {
        Repetition {
            body: p.body.clone(),
            carried: p.carried,
            scanned: 0,
            decisions: 2,
            numbers: 1,
            conditions: 1,
        }
    }

    /// The body's input that takes an operand.
    pub(super) fn input(&self, operand: usize) -> ValueId {
        self.body.inputs()[operand - self.decisions + self.numbers]
    }

    /// The body's output behind a result.
    pub(super) fn output(&self, result: usize) -> ValueId {
        self.body.outputs()[result + self.conditions].1
    }

    pub(super) fn operands(&self) -> std::ops::Range<usize> {
        self.decisions..self.decisions + self.body.inputs().len() - self.numbers
    }

    pub(super) fn is_carried(&self, operand: usize) -> bool {
        operand < self.decisions + self.carried
    }

    pub(super) fn is_scanned(&self, operand: usize) -> bool {
        !self.is_carried(operand) && operand < self.decisions + self.carried + self.scanned
    }

    /// Operands that depend on what is wanted, in any step.
    pub(super) fn active(&self, wanted: &[bool]) -> Vec<bool> {
        let order: Vec<NodeId> = self.body.nodes().map(|(id, _)| id).collect();
        let mut active = wanted.to_vec();
        loop {
            let inputs: Vec<ValueId> = (self.operands())
                .filter(|at| active[*at])
                .map(|at| self.input(at))
                .collect();
            let found = depending(&self.body, &order, &inputs);
            let mut changed = false;
            for k in 0..self.carried {
                let at = self.decisions + k;
                if !active[at] && found.contains(&self.output(k)) {
                    (active[at], changed) = (true, true);
                }
            }
            if !changed {
                return active;
            }
        }
    }
}

/// Gradients of the operands of a scan or loop.
pub(super) fn repeat(g: &mut Graph, site: &Site, p: &Repetition) -> Grads {
    let mut grads = vec![None; site.operands.len()];
    let active = p.active(&site.wanted);
    // Symbols of the body as the graph around knows them; none where these differ from step to step.
    let mut symbols = Symbols::default();
    let known = p.operands().all(|at| {
        let ty = g.ty(site.operands[at]);
        let ty = if p.is_scanned(at) {
            row_of(ty)
        } else {
            ty.clone()
        };
        unify(p.body.ty(p.input(at)), &ty, &mut symbols)
    });
    symbols.retain(|s, d| d.as_sym() != Some(s));
    let symbols = known.then_some(symbols);
    let Some(mut back) = Back::of(g, site, p, &active, symbols.as_ref())? else {
        return Ok(grads);
    };
    back.finish()?;
    let steps = save(g, site, p, &back, symbols.as_ref())?;
    let operands = back.operands(g, site, p, &steps)?;
    let carried = back.carried.len();
    let scanned = back.roles.len() - carried - back.captures();
    let mut results: Vec<ValueType> = (back.carried.iter())
        .map(|at| sum_type(g, g.ty(site.operands[*at]), p.is_carried(*at)))
        .collect();
    let rows = back.rows.iter().map(|at| g.ty(site.operands[*at]).clone());
    results.extend(rows);
    // Only where symbols are known is anything else stacked.
    let none = Symbols::default();
    for ty in back.graph.output_types().iter().skip(results.len()) {
        results.push(stacked(&steps.count, ty, symbols.as_ref().unwrap_or(&none)));
    }
    let scan = Scan {
        body: std::mem::take(&mut back.graph),
        carried,
        scanned,
        results,
        binds: vec![],
    };
    let made = g.push(scan, &operands)?;
    for (at, v) in back.carried.iter().zip(&made) {
        grads[*at] = Some(g.cast_like(*v, site.operands[*at])?);
    }
    for (at, v) in back.rows.iter().zip(&made[carried..]) {
        let row = g.flip(*v, 0)?;
        // The rows' own extents are those of the operand.
        let ty = g.ty(site.operands[*at]).clone();
        g.refine(row, ty);
        grads[*at] = Some(row);
    }
    let factor = |f: &Factor| match f {
        Factor::Row(at) => operands[*at],
        Factor::Output(at) => made[carried + at],
    };
    for (at, deferred) in &back.deferred {
        let part = deferred.build(g, factor, symbols.as_ref())?;
        let part = g.cast_like(part, site.operands[*at])?;
        grads[*at] = Some(match grads[*at] {
            Some(sum) => g.binary(Scalar::Add, sum, part)?,
            None => part,
        });
    }
    Ok(grads)
}

/// Type of one row.
fn row_of(ty: &ValueType) -> ValueType {
    match ty {
        ValueType::Tensor(t) if t.rank() > 0 => ValueType::Tensor(TensorType {
            dtype: t.dtype,
            dims: t.dims[1..].to_vec(),
        }),
        other => other.clone(),
    }
}

/// Sums of captures' gradients are kept in their accumulator; cotangents in their own type.
pub(super) fn sum_type(g: &Graph, ty: &ValueType, is_cotangent: bool) -> ValueType {
    match ty {
        ValueType::Tensor(t) if !is_cotangent => ValueType::Tensor(TensorType {
            dtype: g.accumulator(t.dtype),
            dims: t.dims.clone(),
        }),
        other => other.clone(),
    }
}

/// Type of a value of every step.
fn stacked(count: &Dim, ty: &ValueType, symbols: &Symbols) -> ValueType {
    match ty {
        ValueType::Tensor(t) => {
            let own = t.dims.iter().map(|d| resolve(d, symbols));
            ValueType::Tensor(TensorType {
                dtype: t.dtype,
                dims: std::iter::once(count.clone()).chain(own).collect(),
            })
        }
        other => other.clone(),
    }
}

/// What is known of all steps.
pub(super) struct Steps {
    pub(super) count: Dim,
    /// Values of the body, stacked.
    pub(super) saved: Vec<(ValueId, ValueId)>,
}

/// Makes the forward node stack what the backward body takes of its steps.
fn save(
    g: &mut Graph,
    site: &Site,
    p: &Repetition,
    back: &Back,
    symbols: Option<&Symbols>,
) -> Ir<Steps> {
    let of_role = |role: &Role| match role {
        Role::Saved(v) => Some(*v),
        _ => None,
    };
    let mut values: Vec<ValueId> = back.roles.iter().filter_map(of_role).collect();
    let mut op = g.node(site.node).op.clone();
    let mut binds = vec![];
    let count = match &op {
        Op::Core(CoreOp::Scan(s)) => g.dim(site.operands[s.carried], 0),
        Op::Core(CoreOp::Loop(l)) => match trips(g, site, l) {
            Some(count) => count,
            None => {
                // The iterations' numbers are stacked to count them.
                let sym = g.fresh_sym(&format!("{}.trips", l.body.name));
                values.push(p.body.inputs()[0]);
                binds.push(sym.clone());
                Dim::from(&sym)
            }
        },
        other => unreachable!("bug: {} repeats nothing", other.name()),
    };
    if values.is_empty() {
        return Ok(Steps {
            count,
            saved: vec![],
        });
    }
    let none = Symbols::default();
    let type_of = |v: &ValueId| {
        // A carried value has the extents that it came with.
        let at = p.operands().find(|at| p.input(*at) == *v);
        let ty = at.map_or(p.body.ty(*v), |at| g.ty(site.operands[at]));
        stacked(&count, ty, symbols.unwrap_or(&none))
    };
    let types: Vec<ValueType> = values.iter().map(type_of).collect();
    let (body, results, bound) = match &mut op {
        Op::Core(CoreOp::Scan(s)) => (&mut s.body, &mut s.results, &mut s.binds),
        Op::Core(CoreOp::Loop(l)) => (&mut l.body, &mut l.results, &mut l.binds),
        other => unreachable!("bug: {} repeats nothing", other.name()),
    };
    for v in &values {
        let mut name = format!("step.{}", body.outputs().len());
        while body.outputs().iter().any(|(n, _)| **n == *name) {
            name.push('\'');
        }
        body.output(&name, *v);
    }
    results.extend(types);
    bound.extend(binds);
    let more = g.extend(site.node, op)?;
    Ok(Steps {
        count,
        saved: values.into_iter().zip(more).collect(),
    })
}

/// How often a loop runs, where that is known or something else of it is stacked.
fn trips(g: &Graph, site: &Site, l: &Loop) -> Option<Dim> {
    if let Some(stacked) = site.results.get(l.carried) {
        return g.ty(*stacked).as_tensor()?.dims.first().cloned();
    }
    let holds = |g: &Graph, v: ValueId| g.as_uniform(v) == Some(1.0);
    let goes_on = l
        .body
        .outputs()
        .first()
        .is_some_and(|(_, v)| holds(&l.body, *v));
    let most = g.as_uniform(site.operands[0]).filter(|n| *n >= 0.0)?;
    (goes_on && holds(g, site.operands[1])).then_some(Dim::Const(most as i64))
}

//! Sums over the steps of a scan that are taken at the end: of products, one product over all steps.

use super::Ir;
use crate::region::{Symbols, resolve};
use cupola_ir::ops::{Contract, CoreOp, Map, Reduce, ReduceKind};
use cupola_ir::{Graph, Op, Scalar, ValueId};
use rustc_hash::FxHashSet;

/// Where a value of a step comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// It is the same in every step.
    Fixed,
    /// It is the row of the body's input at this position.
    Row(usize),
    /// It is computed.
    Changing,
}

/// What is stacked of a factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Factor {
    /// The scan's operand at this position.
    Row(usize),
    /// The scan's stacked result at this position.
    Output(usize),
}

/// A term of a gradient, over all steps.
#[derive(Debug)]
pub(super) struct Deferred {
    sum: Op,
    pub(super) factors: Vec<Factor>,
    /// Linear ops that follow, with the constant that they take.
    after: Vec<(Op, Option<Op>)>,
}

/// Takes the terms of a sum that can be computed at the end, and adds their factors to what is `stacked`. What is left of the
/// sum, if anything.
pub(super) fn defer(
    g: &mut Graph,
    sum: ValueId,
    source: &dyn Fn(ValueId) -> Source,
    stacked: &mut Vec<ValueId>,
) -> Ir<(Vec<Deferred>, Option<ValueId>)> {
    let mut terms = vec![];
    let mut open = vec![sum];
    while let Some(v) = open.pop() {
        match g.op_of(v) {
            Op::Core(CoreOp::Map(Map { f: Scalar::Add })) => {
                open.extend(g.def(v).operands.iter().rev().copied());
            }
            _ => terms.push(v),
        }
    }
    let mut found = vec![];
    let mut rest = None;
    for term in terms {
        match one(g, term, source, stacked) {
            Some(deferred) => found.push(deferred),
            None => {
                rest = Some(match rest {
                    Some(sum) => g.binary(Scalar::Add, sum, term)?,
                    None => term,
                });
            }
        }
    }
    Ok((found, rest))
}

/// A product or sum of values that change with the step, or views of one.
fn one(
    g: &Graph,
    term: ValueId,
    source: &dyn Fn(ValueId) -> Source,
    stacked: &mut Vec<ValueId>,
) -> Option<Deferred> {
    let mut after = vec![];
    let mut v = term;
    let (sum, factors) = loop {
        let node = g.def(v);
        let Op::Core(op) = &node.op else {
            return None;
        };
        match op {
            CoreOp::Contract(_) | CoreOp::Reduce(_) => {
                break (over_steps(op)?, node.operands.to_vec());
            }
            CoreOp::Reshape(_) | CoreOp::Permute(_) | CoreOp::Cast(_) | CoreOp::Slice(_) => {
                after.push((node.op.clone(), None));
                v = node.operands[0];
            }
            // Only zeros around are linear.
            CoreOp::Pad(_) if g.as_uniform(node.operands[1]) == Some(0.0) => {
                let value = g.def(node.operands[1]);
                if !value.operands.is_empty() {
                    return None;
                }
                after.push((node.op.clone(), Some(value.op.clone())));
                v = node.operands[0];
            }
            _ => return None,
        }
    };
    if factors.iter().any(|v| fixed(g, *v, source)) {
        return None;
    }
    let factors = factors.into_iter().map(|v| match source(v) {
        Source::Row(at) => Factor::Row(at),
        Source::Fixed | Source::Changing => {
            let at = stacked.iter().position(|s| *s == v);
            Factor::Output(at.unwrap_or_else(|| {
                stacked.push(v);
                stacked.len() - 1
            }))
        }
    });
    let factors = factors.collect();
    after.reverse();
    Some(Deferred {
        sum,
        factors,
        after,
    })
}

/// A product or sum with the steps as one more summed axis, the first one of the operands.
fn over_steps(op: &CoreOp) -> Option<Op> {
    let shift = |axes: &[usize]| axes.iter().map(|a| a + 1).collect::<Vec<_>>();
    let first = |axes: &[usize]| [&[0], &shift(axes)[..]].concat();
    match op {
        CoreOp::Contract(p) => Some(Op::from(CoreOp::Contract(Contract {
            lhs_batch: shift(&p.lhs_batch),
            rhs_batch: shift(&p.rhs_batch),
            lhs_contract: first(&p.lhs_contract),
            rhs_contract: first(&p.rhs_contract),
            ..p.clone()
        }))),
        CoreOp::Reduce(p) if p.kind == ReduceKind::Sum => {
            let axes = first(&p.axes);
            Some(Op::from(CoreOp::Reduce(Reduce { axes, ..p.clone() })))
        }
        _ => None,
    }
}

/// Whether a factor is the same in every step.
fn fixed(g: &Graph, v: ValueId, source: &dyn Fn(ValueId) -> Source) -> bool {
    let mut open = vec![v];
    let mut seen = FxHashSet::default();
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        let node = g.def(v);
        match (source(v), &node.op) {
            (Source::Fixed, _) => {}
            (Source::Row(_), _) | (_, Op::Core(CoreOp::Input(_))) => return false,
            (Source::Changing, _) => open.extend(node.operands.iter().copied()),
        }
    }
    true
}

impl Deferred {
    /// Appends it to the graph around the scan.
    pub(super) fn build(
        &self,
        g: &mut Graph,
        factor: impl Fn(&Factor) -> ValueId,
        symbols: Option<&Symbols>,
    ) -> Ir<ValueId> {
        let none = Symbols::default();
        let symbols = symbols.unwrap_or(&none);
        let factors: Vec<ValueId> = self.factors.iter().map(factor).collect();
        let mut v = g.one(self.sum.clone(), &factors)?;
        for (op, constant) in &self.after {
            let mut operands = vec![v];
            if let Some(constant) = constant {
                operands.push(g.one(constant.clone(), &[])?);
            }
            v = g.one(op.map_dims(&|d| resolve(d, symbols)), &operands)?;
        }
        Ok(v)
    }
}

//! Einstein summation: diagonals, sums and pairwise contractions, left to right.

use cupola_ir::ops::{Bounds, Contract, Gather, ReduceKind};
use cupola_ir::{DType, Graph, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid};

pub(super) const OPS: &[OpRow] = &[op("Einsum", 12, einsum)];

/// A letter, or an axis of the ellipsis counted from its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// A value and a label for each of its axes.
#[derive(Clone)]
struct Term {
    value: ValueId,
    labels: Vec<Label>,
}

/// Labels of one term of the equation for a value of this rank (`None`: as many ellipsis axes as given).
fn labels(text: &str, rank: Result<usize, usize>) -> OpResult<Vec<Label>> {
    let letters = text.replace("...", "").chars().count();
    let dots = match rank {
        Ok(rank) => rank.checked_sub(letters),
        Err(dots) => Some(dots),
    };
    let (true, Some(dots)) = (
        text.contains("...") || dots == Some(0) || rank.is_err(),
        dots,
    ) else {
        return invalid(format!("'{text}' does not fit an operand of {rank:?} axes"));
    };
    let mut all = vec![];
    for (i, part) in text.split("...").enumerate() {
        match i {
            0 => {}
            1 => all.extend((0..dots).rev().map(Label::Ellipsis)),
            _ => return invalid(format!("two ellipses in '{text}'")),
        }
        for c in part.chars() {
            if !c.is_ascii_alphabetic() {
                return invalid(format!("'{c}' in an equation"));
            }
            all.push(Label::Letter(c));
        }
    }
    Ok(all)
}

fn einsum(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let Some(equation) = cx.text("equation")? else {
        return invalid("attribute 'equation' is missing");
    };
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (&equation[..], None),
    };
    let parts: Vec<&str> = left.split(',').collect();
    let values = cx.inputs_from(0)?;
    if parts.len() != values.len() || values.is_empty() {
        return invalid(format!(
            "equation '{equation}' for {} operands",
            values.len()
        ));
    }
    let g = &mut *cx.g;
    let mut terms = vec![];
    for (value, part) in values.iter().zip(&parts) {
        let labels = labels(part, Ok(g.rank(*value)))?;
        terms.push(diagonal(
            g,
            Term {
                value: *value,
                labels,
            },
        )?);
    }
    let every = || terms.iter().flat_map(|t| t.labels.iter().copied());
    let dots = every()
        .filter_map(|l| match l {
            Label::Ellipsis(i) => Some(i + 1),
            Label::Letter(_) => None,
        })
        .max()
        .unwrap_or(0);
    let result = match right {
        Some(text) => labels(text, Err(dots))?,
        None => {
            // The ellipsis, then the letters that occur once in the whole equation.
            let mut once: Vec<Label> = left
                .chars()
                .filter(|c| c.is_ascii_alphabetic() && left.matches(*c).count() == 1)
                .map(Label::Letter)
                .collect();
            once.sort_unstable();
            let mut all: Vec<Label> = (0..dots).rev().map(Label::Ellipsis).collect();
            all.extend(once);
            all
        }
    };
    for (i, l) in result.iter().enumerate() {
        if result[..i].contains(l) || !every().any(|m| m == *l) {
            return invalid(format!("the result of '{equation}' cannot have {l:?}"));
        }
    }
    drop_ones(g, &mut terms)?;
    let mut rest = terms.into_iter();
    let mut acc = rest
        .next()
        .unwrap_or_else(|| unreachable!("bug: no operand"));
    let mut rest: Vec<Term> = rest.collect();
    rest.reverse();
    while let Some(next) = rest.pop() {
        let needed = |l: &Label| result.contains(l) || rest.iter().any(|t| t.labels.contains(l));
        acc = pair(g, acc, next, &needed)?;
    }
    let acc = sum_out(g, acc, &|l| result.contains(l))?;
    let perm: Vec<usize> = result
        .iter()
        .filter_map(|l| acc.labels.iter().position(|m| m == l))
        .collect();
    Ok(vec![g.permute(acc.value, &perm)?])
}

/// Takes the diagonal of axes with one label.
fn diagonal(g: &mut Graph, mut t: Term) -> OpResult<Term> {
    loop {
        let twice = (0..t.labels.len()).find_map(|a| {
            Some((
                a,
                a + 1 + t.labels[a + 1..].iter().position(|l| *l == t.labels[a])?,
            ))
        });
        let Some((a, b)) = twice else {
            return Ok(t);
        };
        let (n, m) = (g.dim(t.value, a), g.dim(t.value, b));
        if (&n - &m).as_const().is_some_and(|d| d != 0) {
            return invalid(format!("a diagonal of {}", g.ty(t.value)));
        }
        let index = g.iota(DType::I64, &[n], 0)?;
        let op = Gather {
            axes: vec![a, b],
            batch: 0,
            bounds: Bounds::Check,
        };
        t.value = g.one(op, &[t.value, index, index])?;
        let label = t.labels[a];
        t.labels.remove(b);
        t.labels.remove(a);
        t.labels.insert(0, label);
    }
}

/// Removes axes of extent 1 whose label has another extent elsewhere: they broadcast.
fn drop_ones(g: &mut Graph, terms: &mut [Term]) -> OpResult<()> {
    let wide: Vec<Label> = terms
        .iter()
        .flat_map(|t| t.labels.iter().zip(g.dims(t.value)))
        .filter(|(_, d)| !d.is(1))
        .map(|(l, _)| *l)
        .collect();
    for t in terms {
        let dims = g.dims(t.value);
        let gone: Vec<usize> = (0..dims.len())
            .filter(|a| dims[*a].is(1) && wide.contains(&t.labels[*a]))
            .collect();
        t.value = g.squeeze(t.value, &gone)?;
        for a in gone.iter().rev() {
            t.labels.remove(*a);
        }
    }
    Ok(())
}

/// Sums the axes whose labels are not needed.
fn sum_out(g: &mut Graph, t: Term, needed: &dyn Fn(&Label) -> bool) -> OpResult<Term> {
    let gone: Vec<usize> = (0..t.labels.len())
        .filter(|a| !needed(&t.labels[*a]))
        .collect();
    let value = g.reduce(ReduceKind::Sum, t.value, &gone)?;
    let labels = t.labels.into_iter().filter(|l| needed(l)).collect();
    Ok(Term { value, labels })
}

/// The product of two terms, summed over shared labels that nothing else needs.
fn pair(g: &mut Graph, a: Term, b: Term, needed: &dyn Fn(&Label) -> bool) -> OpResult<Term> {
    let a = {
        let other = b.labels.clone();
        sum_out(g, a, &|l| needed(l) || other.contains(l))?
    };
    let b = {
        let other = a.labels.clone();
        sum_out(g, b, &|l| needed(l) || other.contains(l))?
    };
    let shared = |kept: bool| -> (Vec<usize>, Vec<usize>) {
        (a.labels.iter().enumerate())
            .filter(|(_, l)| needed(l) == kept)
            .filter_map(|(i, l)| Some((i, b.labels.iter().position(|m| m == l)?)))
            .unzip()
    };
    let ((lhs_batch, rhs_batch), (lhs_contract, rhs_contract)) = (shared(true), shared(false));
    let free = |t: &Term, batch: &[usize], contract: &[usize]| -> Vec<Label> {
        let axes = Contract::free(t.labels.len(), batch, contract);
        axes.into_iter().map(|i| t.labels[i]).collect()
    };
    let mut labels: Vec<Label> = lhs_batch.iter().map(|i| a.labels[*i]).collect();
    labels.extend(free(&a, &lhs_batch, &lhs_contract));
    labels.extend(free(&b, &rhs_batch, &rhs_contract));
    let dtype = g.dtype(a.value);
    let op = Contract {
        lhs_batch,
        rhs_batch,
        lhs_contract,
        rhs_contract,
        accum: g.accumulator(dtype),
        out: dtype,
    };
    let value = g.one(op, &[a.value, b.value])?;
    Ok(Term { value, labels })
}

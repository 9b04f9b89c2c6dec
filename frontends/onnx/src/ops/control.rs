//! Control flow: `If`, `Loop` and `Scan` as regions with explicit captures.
//!
//! A branch that is known to be taken is inlined. What a loop carries may change its extents from one iteration to the
//! next: such extents become symbols of the body, found by importing it until its inputs and outputs agree.

use cupola_ir::convert::splat;
use cupola_ir::ops::{If, Loop, Scan};
use cupola_ir::tensor::Tensor;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, Scalar, Sym, TensorType, ValueId, ValueType};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import::Region;
use crate::import_error::{ImportError, OpError, OpResult, invalid, unsupported};
use crate::proto::GraphProto;
use crate::shape::Elem;
use crate::symbols::Mark;
use crate::tensor::MAX_RANK;

pub(super) const OPS: &[OpRow] = &[
    op("If", 1, branch),
    op("Loop", 1, repeat),
    op("Scan", 8, scan_batch),
    op("Scan", 9, scan),
];

/// An input of a subgraph.
pub(crate) enum Formal {
    /// An input of the region.
    Input(ValueType),
    /// Always this value.
    Known(Tensor),
}

fn branch(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let condition = cx.input(0)?;
    let (yes, no) = (cx.graph_attr("then_branch")?, cx.graph_attr("else_branch")?);
    if yes.output.len() != no.output.len() {
        let counts = (yes.output.len(), no.output.len());
        return invalid(format!(
            "branches with {} and {} results",
            counts.0, counts.1
        ));
    }
    if let Some(t) = cx.known(condition) {
        let taken = t
            .to_i64s()
            .is_some_and(|v| v.first().is_some_and(|x| *x != 0));
        return cx.inline(if taken { yes } else { no }, &[]);
    }
    let captures = cx.captures(&[yes, no])?;
    let mark = cx.mark();
    let then_branch = guarded(cx, yes, condition, &captures)?;
    let else_branch = guarded(cx, no, condition, &captures)?;
    let (mut results, mut binds) = (vec![], vec![]);
    for (a, b) in then_branch
        .output_types()
        .iter()
        .zip(else_branch.output_types())
    {
        let Some(merged) = merge(cx, a, &b, &mut vec![]) else {
            // The branches differ in rank: which one runs must be known.
            return match (a, &b) {
                (ValueType::Tensor(x), ValueType::Tensor(y)) if x.dtype != y.dtype => {
                    invalid(format!("branches give {a} and {b}"))
                }
                _ => Err(OpError::NeedsValue(condition)),
            };
        };
        results.push(cx.seen_from_outside(&merged, mark, &mut binds));
    }
    let condition = cx.g.reshape(condition, &[])?;
    let operands: Vec<ValueId> = [condition]
        .into_iter()
        .chain(captures.iter().map(|(_, v)| *v))
        .collect();
    let op = If {
        then_branch,
        else_branch,
        results,
        binds,
    };
    Ok(cx.g.push(CoreOp::If(op), &operands)?.to_vec())
}

/// A branch of an `If` whose condition is not known. What looks malformed in it may be what the condition guards
/// against (a squeeze of an axis that is not 1), so the inputs that decide the condition are asked for first.
fn guarded<'m>(
    cx: &mut NodeCx<'_, 'm>,
    branch: &'m GraphProto,
    condition: ValueId,
    captures: &[(&'m str, ValueId)],
) -> OpResult<Graph> {
    match cx.region(branch, vec![], captures) {
        Ok(region) => Ok(region.graph),
        Err(OpError::Placed(e)) if matches!(*e, ImportError::Malformed { .. }) => {
            match cx.ask_for(condition) {
                true => Err(OpError::Poisoned),
                false => Err(OpError::Placed(e)),
            }
        }
        Err(e) => Err(e),
    }
}

/// The type of values of either type: extents that differ become fresh symbols, which are added to `fresh`. `None`
/// when they differ in more than that.
fn merge(
    cx: &mut NodeCx<'_, '_>,
    a: &ValueType,
    b: &ValueType,
    fresh: &mut Vec<Sym>,
) -> Option<ValueType> {
    Some(match (a, b) {
        (ValueType::Tensor(x), ValueType::Tensor(y)) => {
            if x.dtype != y.dtype || x.rank() != y.rank() {
                return None;
            }
            let mut dims = x.dims.clone();
            for (d, other) in dims.iter_mut().zip(&y.dims) {
                // A symbol that already stands for "changes" stays.
                let varies = d.as_sym().is_some_and(|s| fresh.contains(s));
                if d != other && !varies {
                    let sym = cx.fresh_sym("varies");
                    *d = Dim::from(&sym);
                    fresh.push(sym);
                }
            }
            TensorType {
                dtype: x.dtype,
                dims,
            }
            .into()
        }
        (ValueType::Sequence(x), ValueType::Sequence(y)) => {
            ValueType::Sequence(Box::new(merge(cx, x, y, fresh)?))
        }
        (ValueType::Optional(x), ValueType::Optional(y)) => {
            ValueType::Optional(Box::new(merge(cx, x, y, fresh)?))
        }
        _ => return None,
    })
}

/// A loop body together with the types of what it carries.
struct Body {
    region: Region,
    carried: Vec<ValueType>,
}

/// Imports a loop body until the types of the carried values are the same before and after. `formals` gives the
/// body's inputs for types of the carried values; `first` is the body's output that carries the first of them.
fn settle<'m>(
    cx: &mut NodeCx<'_, 'm>,
    graph: &'m GraphProto,
    initial: Vec<ValueType>,
    captures: &[(&'m str, ValueId)],
    first: usize,
    formals: impl Fn(&[ValueType]) -> Vec<Formal>,
) -> OpResult<Body> {
    let mut carried = initial;
    let mut fresh = vec![];
    // Each round turns at least one extent into a symbol.
    let rounds: usize = carried
        .iter()
        .map(|t| {
            let mut n = 0;
            t.for_each_dim(&mut |_| n += 1);
            if let ValueType::Sequence(_) = t {
                n += 1 + MAX_RANK;
            }
            n
        })
        .sum();
    for _ in 0..=rounds {
        let region = cx.region(graph, formals(&carried), captures)?;
        let out = region.graph.output_types();
        let mut changed = false;
        for (i, before) in carried.iter_mut().enumerate() {
            let Some(after) = out.get(first + i) else {
                return invalid(format!("the body gives {} results, too few", out.len()));
            };
            let merged = match merge(cx, before, after, &mut fresh) {
                None => super::sequence::widened(cx, before, after, &mut fresh),
                merged => merged,
            };
            let Some(merged) = merged else {
                return match (&*before, after) {
                    (ValueType::Tensor(x), ValueType::Tensor(y)) if x.dtype != y.dtype => invalid(
                        format!("a carried value is {before} before and {after} after"),
                    ),
                    _ => unsupported(format!(
                        "a carried value that is {before} before and {after} after"
                    )),
                };
            };
            changed |= merged != *before;
            *before = merged;
        }
        if !changed {
            return Ok(Body { region, carried });
        }
    }
    unreachable!("bug: every extent is a symbol and still changes")
}

fn repeat(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let body = cx.graph_attr("body")?;
    let initial = cx.inputs_from(2.min(cx.input_count()))?;
    let n = initial.len();
    if body.input.len() != n + 2 || body.output.len() < n + 1 {
        return invalid(format!(
            "a body with {} inputs and {} outputs carries {n} values",
            body.input.len(),
            body.output.len()
        ));
    }
    let trips = match cx.optional(0) {
        Some(m) => {
            let m = cx.g.cast(m, DType::I64)?;
            let m = cx.g.reshape(m, &[])?;
            let zero = cx.g.number(0.0, DType::I64)?;
            cx.g.binary(Scalar::Max, m, zero)?
        }
        None => cx.g.number(-1.0, DType::I64)?,
    };
    let condition = match cx.optional(1) {
        Some(c) => cx.g.reshape(c, &[])?,
        None => cx.g.number(1.0, DType::Bool)?,
    };
    let captures = cx.captures(&[body])?;
    let mark = cx.mark();
    let types: Vec<ValueType> = initial.iter().map(|v| cx.g.ty(*v).clone()).collect();
    let Some(always) = splat(1.0, DType::Bool) else {
        unreachable!("bug: no scalar of bool");
    };
    let Body {
        mut region,
        carried,
    } = settle(cx, body, types, &captures, 1, |carried| {
        let iteration = TensorType::scalar(DType::I64).into();
        let head = [Formal::Input(iteration), Formal::Known(always.clone())];
        let rest = carried.iter().cloned().map(Formal::Input);
        head.into_iter().chain(rest).collect()
    })?;
    let g = &mut region.graph;
    if cx.optional(1).is_none() {
        // Without a condition the loop runs to its count, whatever the body says.
        let always = g.constant(always)?;
        g.set_output(0, always);
    } else {
        let c = g.outputs()[0].1;
        let c = g.reshape(c, &[])?;
        g.set_output(0, c);
    }
    let ends_early = match (cx.optional(1), region.outputs.first()) {
        (None, _) => false,
        (Some(_), Some(Some(e))) => e[..] != [Elem::Bool(true)] || !known_true(cx, condition),
        (Some(_), _) => true,
    };
    let count = match cx.elems(trips).as_deref() {
        Some([Elem::Int(d)]) if !ends_early && cx.optional(0).is_some() => Some(d.clone()),
        _ => None,
    };
    let out = region.graph.output_types();
    let mut binds = vec![];
    let mut results: Vec<ValueType> = carried
        .iter()
        .map(|t| cx.seen_from_outside(t, mark, &mut binds))
        .collect();
    stacked(cx, &out[1 + n..], count, mark, &mut results, &mut binds)?;
    let initial: Vec<ValueId> = (initial.into_iter().zip(&carried))
        .map(|(v, ty)| super::sequence::retyped(cx.g, v, ty))
        .collect::<OpResult<_>>()?;
    let operands: Vec<ValueId> = [trips, condition]
        .into_iter()
        .chain(initial)
        .chain(captures.iter().map(|(_, v)| *v))
        .collect();
    let op = Loop {
        body: region.graph,
        carried: n,
        results,
        binds,
    };
    Ok(cx.g.push(CoreOp::Loop(op), &operands)?.to_vec())
}

fn known_true(cx: &mut NodeCx<'_, '_>, condition: ValueId) -> bool {
    cx.elems(condition).as_deref() == Some(&[Elem::Bool(true)])
}

/// Types of per-iteration results stacked along a new leading axis of `count` entries (a fresh symbol when unknown).
fn stacked(
    cx: &mut NodeCx<'_, '_>,
    scanned: &[ValueType],
    count: Option<Dim>,
    mark: Mark,
    results: &mut Vec<ValueType>,
    binds: &mut Vec<Sym>,
) -> OpResult<()> {
    if scanned.is_empty() {
        return Ok(());
    }
    let count = count.unwrap_or_else(|| {
        let sym = cx.fresh_sym("trips");
        binds.push(sym.clone());
        Dim::from(&sym)
    });
    for t in scanned {
        let ValueType::Tensor(t) = cx.seen_from_outside(t, mark, binds) else {
            return invalid("a loop cannot stack values that are no tensors");
        };
        let mut dims = t.dims;
        dims.insert(0, count.clone());
        results.push(
            TensorType {
                dtype: t.dtype,
                dims,
            }
            .into(),
        );
    }
    Ok(())
}

/// Axes and directions of what a scan reads and writes.
struct ScanSpec {
    scanned: usize,
    carried: usize,
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
    input_reversed: Vec<bool>,
    output_reversed: Vec<bool>,
}

fn scan_spec(cx: &NodeCx<'_, '_>, body: &GraphProto, operands: usize) -> OpResult<ScanSpec> {
    let scanned = cx.required_int("num_scan_inputs")?;
    let carried = usize::try_from(scanned)
        .ok()
        .and_then(|s| operands.checked_sub(s));
    let (Some(carried), 1..) = (carried, scanned) else {
        return invalid(format!(
            "num_scan_inputs is {scanned} of {operands} operands"
        ));
    };
    let scanned = scanned as usize;
    let outputs = body.output.len();
    let Some(stacked) = outputs.checked_sub(carried) else {
        return invalid(format!(
            "the body gives {outputs} results and carries {carried}"
        ));
    };
    if body.input.len() != operands {
        return invalid(format!(
            "a body with {} inputs for {operands} operands",
            body.input.len()
        ));
    }
    let ints = |name: &str, count: usize| -> OpResult<Vec<i64>> {
        let v = cx.ints_attr(name)?.unwrap_or_else(|| vec![0; count]);
        match v.len() == count {
            true => Ok(v),
            false => invalid(format!("{name} {v:?}, {count} are needed")),
        }
    };
    let flags =
        |name: &str, count| Ok::<_, OpError>(ints(name, count)?.iter().map(|v| *v != 0).collect());
    // Version 8 has one attribute for the directions of inputs, and no axes.
    let directions = match cx.has("directions") {
        true => "directions",
        false => "scan_input_directions",
    };
    Ok(ScanSpec {
        scanned,
        carried,
        input_axes: ints("scan_input_axes", scanned)?,
        output_axes: ints("scan_output_axes", stacked)?,
        input_reversed: flags(directions, scanned)?,
        output_reversed: flags("scan_output_directions", stacked)?,
    })
}

/// The axis moved to another place.
fn move_axis(g: &mut Graph, x: ValueId, from: usize, to: usize) -> OpResult<ValueId> {
    let mut perm: Vec<usize> = (0..g.rank(x)).filter(|a| *a != from).collect();
    perm.insert(to, from);
    Ok(g.permute(x, &perm)?)
}

fn scan(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let body = cx.graph_attr("body")?;
    let operands = cx.inputs_from(0)?;
    let spec = scan_spec(cx, body, operands.len())?;
    let mut ready = operands;
    for (i, v) in ready[spec.carried..].iter_mut().enumerate() {
        let axis = cx.axis(spec.input_axes[i], cx.g.rank(*v))?;
        *v = move_axis(cx.g, *v, axis, 0)?;
        if spec.input_reversed[i] {
            *v = cx.g.flip(*v, 0)?;
        }
    }
    let captures = cx.captures(&[body])?;
    let mark = cx.mark();
    let (region, types) = scan_body(cx, body, &spec, &ready, &captures)?;
    let results = push_scan(cx, region, types, &spec, &ready, &captures, mark)?;
    finish_scan(cx, &spec, results)
}

/// The body for these operands, the scanned ones with the scanned axis first.
fn scan_body<'m>(
    cx: &mut NodeCx<'_, 'm>,
    body: &'m GraphProto,
    spec: &ScanSpec,
    ready: &[ValueId],
    captures: &[(&'m str, ValueId)],
) -> OpResult<(Region, Vec<ValueType>)> {
    let mut slices = vec![];
    for v in &ready[spec.carried..] {
        let t = cx.g.tensor(*v);
        if t.rank() == 0 {
            return cx.bad_type(*v);
        }
        slices.push(ValueType::from(TensorType {
            dtype: t.dtype,
            dims: t.dims[1..].to_vec(),
        }));
    }
    let initial = ready[..spec.carried].iter();
    let initial = initial.map(|v| cx.g.ty(*v).clone()).collect();
    let Body { region, carried } = settle(cx, body, initial, captures, 0, |carried| {
        let all = carried.iter().chain(&slices).cloned();
        all.map(Formal::Input).collect()
    })?;
    Ok((region, carried))
}

fn push_scan(
    cx: &mut NodeCx<'_, '_>,
    region: Region,
    carried: Vec<ValueType>,
    spec: &ScanSpec,
    ready: &[ValueId],
    captures: &[(&str, ValueId)],
    mark: Mark,
) -> OpResult {
    let out = region.graph.output_types();
    let mut binds = vec![];
    let mut results: Vec<ValueType> = carried
        .iter()
        .map(|t| cx.seen_from_outside(t, mark, &mut binds))
        .collect();
    let count = cx.g.dim(ready[spec.carried], 0);
    stacked(
        cx,
        &out[spec.carried..],
        Some(count),
        mark,
        &mut results,
        &mut binds,
    )?;
    let operands: Vec<ValueId> = ready
        .iter()
        .copied()
        .chain(captures.iter().map(|(_, v)| *v))
        .collect();
    let op = Scan {
        body: region.graph,
        carried: spec.carried,
        scanned: spec.scanned,
        results,
        binds,
    };
    Ok(cx.g.push(CoreOp::Scan(op), &operands)?.to_vec())
}

fn finish_scan(cx: &mut NodeCx<'_, '_>, spec: &ScanSpec, mut results: Vec<ValueId>) -> OpResult {
    for (i, v) in results[spec.carried..].iter_mut().enumerate() {
        if spec.output_reversed[i] {
            *v = cx.g.flip(*v, 0)?;
        }
        let axis = cx.axis(spec.output_axes[i], cx.g.rank(*v))?;
        *v = move_axis(cx.g, *v, 0, axis)?;
    }
    Ok(results)
}

/// Version 8: every operand has a batch axis first, and the sequence axis after it. A scan over the batch holds the
/// scan over the sequence.
fn scan_batch(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let body = cx.graph_attr("body")?;
    if cx.optional(0).is_some() {
        return unsupported("sequence lengths");
    }
    let operands = cx.inputs_from(1)?;
    let mut spec = scan_spec(cx, body, operands.len())?;
    spec.input_axes.fill(0);
    let captures = cx.captures(&[body])?;
    let mark = cx.mark();
    // The operands of one batch entry, as inputs of the outer body.
    let mut outer = Graph::new("batch");
    let mut entry = vec![];
    for (i, v) in operands.iter().enumerate() {
        let t = cx.g.tensor(*v);
        if t.rank() == 0 {
            return cx.bad_type(*v);
        }
        let ty = TensorType {
            dtype: t.dtype,
            dims: t.dims[1..].to_vec(),
        };
        entry.push(outer.input(&format!("entry.{i}"), ty)?);
    }
    let inner_captures: Vec<(&str, ValueId)> = captures
        .iter()
        .map(|(name, v)| Ok((*name, outer.input(name, cx.g.ty(*v).clone())?)))
        .collect::<OpResult<_>>()?;
    let count = outer.dim(entry[spec.carried], 0);
    for (i, v) in entry[spec.carried..].iter_mut().enumerate() {
        if spec.input_reversed[i] {
            *v = outer.flip(*v, 0)?;
        }
    }
    let slices: Vec<ValueType> = entry[spec.carried..]
        .iter()
        .map(|v| {
            let t = outer.tensor(*v);
            TensorType {
                dtype: t.dtype,
                dims: t.dims[1..].to_vec(),
            }
            .into()
        })
        .collect();
    let initial: Vec<ValueType> = entry[..spec.carried]
        .iter()
        .map(|v| outer.ty(*v).clone())
        .collect();
    let Body { region, carried } = settle(cx, body, initial, &captures, 0, |carried| {
        carried
            .iter()
            .chain(&slices)
            .cloned()
            .map(Formal::Input)
            .collect()
    })?;
    let inner_types = region.graph.output_types();
    let mut binds = vec![];
    let mut results: Vec<ValueType> = carried
        .iter()
        .map(|t| cx.seen_from_outside(t, mark, &mut binds))
        .collect();
    stacked(
        cx,
        &inner_types[spec.carried..],
        Some(count),
        mark,
        &mut results,
        &mut binds,
    )?;
    if !binds.is_empty() {
        return unsupported("extents that change from batch entry to batch entry");
    }
    let inner_operands: Vec<ValueId> = entry
        .into_iter()
        .chain(inner_captures.iter().map(|(_, v)| *v))
        .collect();
    let inner = Scan {
        body: region.graph,
        carried: spec.carried,
        scanned: spec.scanned,
        results: results.clone(),
        binds: vec![],
    };
    let values = outer.push(CoreOp::Scan(inner), &inner_operands)?;
    for (i, v) in values.iter().enumerate() {
        let v = match i.checked_sub(spec.carried).map(|k| spec.output_reversed[k]) {
            Some(true) => outer.flip(*v, 0)?,
            Some(false) | None => *v,
        };
        outer.output(&format!("{i}"), v);
    }
    let batch = cx.g.dim(operands[0], 0);
    let results = results
        .into_iter()
        .map(|t| match t {
            ValueType::Tensor(t) => {
                let mut dims = t.dims;
                dims.insert(0, batch.clone());
                TensorType {
                    dtype: t.dtype,
                    dims,
                }
                .into()
            }
            other => other,
        })
        .collect();
    let scanned = operands.len();
    let operands: Vec<ValueId> = operands
        .into_iter()
        .chain(captures.iter().map(|(_, v)| *v))
        .collect();
    let op = Scan {
        body: outer,
        carried: 0,
        scanned,
        results,
        binds: vec![],
    };
    Ok(cx.g.push(Op::Core(CoreOp::Scan(op)), &operands)?.to_vec())
}

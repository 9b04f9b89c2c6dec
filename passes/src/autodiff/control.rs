//! Regions: the gradient of a choice is a choice, that of a repetition is in `repeat`.

use super::{Grads, Ir, Site, backward, zeros};
use cupola_ir::ops::{CoreOp, If};
use cupola_ir::{Graph, IrError, Op, ValueId};
use rustc_hash::FxHashSet;

/// A choice between the gradients of the branches, which take the cotangents as further captures and compute again what they
/// need of the values in between.
pub(super) fn choice(g: &mut Graph, site: &Site, p: &If) -> Grads {
    let wanted = &site.wanted[1..];
    let (given, cotangents): (Vec<usize>, Vec<ValueId>) = (site.given.iter().enumerate())
        .filter_map(|(i, v)| Some((i, (*v)?)))
        .unzip();
    let mut branches = [
        Branch::of(&p.then_branch, &given, wanted)?,
        Branch::of(&p.else_branch, &given, wanted)?,
    ];
    // Captures that either branch has a gradient for.
    let either = |at: &usize| branches.iter().any(|b| b.grads[*at].is_some());
    let flowing: Vec<usize> = (0..wanted.len()).filter(either).collect();
    let mut grads = vec![None; site.operands.len()];
    if flowing.is_empty() {
        return Ok(grads);
    }
    for branch in &mut branches {
        branch.finish(&flowing)?;
    }
    let [then_branch, else_branch] = branches.map(|b| b.graph);
    let results = flowing.iter().map(|at| g.ty(site.operands[1 + at]).clone());
    let choice = If {
        then_branch,
        else_branch,
        results: results.collect(),
        binds: vec![],
    };
    let operands = [&site.operands[..], &cotangents].concat();
    let made = g.push(choice, &operands)?;
    for (at, v) in flowing.into_iter().zip(made) {
        grads[1 + at] = Some(v);
    }
    Ok(grads)
}

/// A branch with its gradients appended.
struct Branch {
    graph: Graph,
    captures: Vec<ValueId>,
    grads: Vec<Option<ValueId>>,
}

impl Branch {
    fn of(region: &Graph, given: &[usize], wanted: &[bool]) -> Ir<Branch> {
        let mut graph = Graph::new(&format!("{}.back", region.name));
        graph.ranges = region.ranges.clone();
        let captures = clone_inputs(&mut graph, region)?;
        let mut seeds = vec![];
        for (k, at) in given.iter().enumerate() {
            let ty = region.ty(region.outputs()[*at].1).clone();
            seeds.push((*at, graph.input(&fresh_name(&graph, k), ty)?));
        }
        let map = clone_nodes(&mut graph, region, &captures)?;
        let outputs: Vec<ValueId> = region.outputs().iter().map(|(_, v)| map(*v)).collect();
        let seeds: Vec<_> = seeds.iter().map(|(at, v)| (outputs[*at], *v)).collect();
        let asked: Vec<ValueId> = (captures.iter().zip(wanted))
            .filter(|(_, wanted)| **wanted)
            .map(|(v, _)| *v)
            .collect();
        let mut found = backward(&mut graph, &seeds, &asked, &FxHashSet::default())?.into_iter();
        let grads = wanted.iter().map(|w| if *w { found.next()? } else { None });
        let grads = grads.collect();
        graph.set_origin(None);
        Ok(Branch {
            graph,
            captures,
            grads,
        })
    }

    /// Gives the gradients of these captures, zeros where there are none.
    fn finish(&mut self, flowing: &[usize]) -> Ir<()> {
        for at in flowing {
            let grad = match self.grads[*at] {
                Some(v) => v,
                None => {
                    let ty = self.graph.ty(self.captures[*at]).clone();
                    zeros(&mut self.graph, &ty)?
                }
            };
            self.graph.output(&format!("d{at}"), grad);
        }
        self.graph.compact()?;
        Ok(())
    }
}

/// A name that no input has.
fn fresh_name(graph: &Graph, at: usize) -> String {
    let mut name = format!("dy{at}");
    while graph.inputs().iter().any(|v| graph.input_name(*v) == name) {
        name.push('\'');
    }
    name
}

/// Inputs of the same names and types.
pub(super) fn clone_inputs(to: &mut Graph, from: &Graph) -> Ir<Vec<ValueId>> {
    let inputs = from.inputs().iter();
    inputs
        .map(|v| to.input(from.input_name(*v), from.ty(*v).clone()))
        .collect()
}

/// All nodes of a region on other values for its inputs; what a value has become. States are written once, by the region
/// itself.
pub(super) fn clone_nodes(
    to: &mut Graph,
    from: &Graph,
    inputs: &[ValueId],
) -> Ir<impl Fn(ValueId) -> ValueId + use<>> {
    let mut map: Vec<Option<ValueId>> = vec![None; from.value_count()];
    for (v, new) in from.inputs().iter().zip(inputs) {
        map[v.index()] = Some(*new);
    }
    for (_, node) in from.nodes() {
        if matches!(node.op, Op::Core(CoreOp::Input(_))) {
            continue;
        }
        let operands = node.operands.iter().map(|v| {
            map[v.index()]
                .ok_or_else(|| IrError::Invalid(format!("{v} is used before it is defined")))
        });
        let operands: Vec<ValueId> = operands.collect::<Ir<_>>()?;
        if matches!(node.op, Op::Core(CoreOp::WriteState(_))) {
            map[node.results[0].index()] = Some(operands[0]);
            continue;
        }
        to.set_origin(node.origins.first().cloned());
        let results = to.push(node.op.clone(), &operands)?;
        for (old, new) in node.results.iter().zip(results) {
            to.refine(new, from.ty(*old).clone());
            map[old.index()] = Some(new);
        }
    }
    to.set_origin(None);
    Ok(move |v: ValueId| {
        map.get(v.index())
            .copied()
            .flatten()
            .unwrap_or_else(|| unreachable!("bug: {v} was not cloned"))
    })
}

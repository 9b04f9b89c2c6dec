//! Where numbers became none: the first node of a step whose result is not finite though all its operands are.

use super::team::Team;
use super::trainer::request;
use crate::error::Result;
use crate::runner::Options;
use cupola_ir::{CoreOp, Graph, Op, OpClass, Tensor, ValueId, convert};
use cupola_runtime::{Host, Program};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values looked at in one run: each is kept in memory until the run ends.
const AT_ONCE: usize = 48;

/// Runs a step once more, from the state of the shards and with these inputs of each, as parts that show every value; gives the
/// first node that turns finite operands into a result that is not, in words. `None` where none does.
///
/// # Errors
/// What compilation and the runs find.
pub fn first(
    graph: &Graph,
    team: &mut Team,
    inputs: &[Vec<(String, Tensor)>],
    host: &Host,
    options: &Options,
) -> Result<Option<String>> {
    for (at, inputs) in inputs.iter().enumerate() {
        if let Some((name, t)) = inputs.iter().find(|(_, t)| !is_finite(t)) {
            let what = format!("input '{name}' {}, which the data hold", t.ty());
            return Ok(Some(in_shard(team, at, &what)));
        }
    }
    let state = team.leader().state_mut();
    for name in graph.slots.keys() {
        let value = state.slot(name).map(|v| v.to_host()).transpose()?;
        let tensor = value.as_ref().and_then(|v| v.as_tensor());
        if tensor.is_some_and(|t| !is_finite(t)) {
            let what = format!("state '{name}', which the step before left so");
            return Ok(Some(what));
        }
    }
    drop(state);
    let values: Vec<ValueId> = (graph.nodes())
        .filter(|(_, n)| match n.op.class() {
            OpClass::Leaf => false,
            OpClass::Effect => matches!(&n.op, Op::Core(CoreOp::Collective(_))),
            _ => true,
        })
        .flat_map(|(_, n)| n.results.to_vec())
        .filter(|v| graph.ty(*v).as_tensor().is_some_and(|t| t.dtype.is_float()))
        .collect();
    let mut known: Vec<BTreeMap<ValueId, bool>> = vec![BTreeMap::new(); inputs.len()];
    for part in values.chunks(AT_ONCE) {
        let mut shown = graph.clone();
        shown.retain_outputs(|_| false);
        for v in part {
            shown.output(&v.to_string(), *v);
        }
        let program = Arc::new(Program::compile(shown, host, options)?);
        let mut again = vec![];
        for at in 0..inputs.len() {
            again.push(team.beside(at, &program)?);
        }
        let requests = inputs.iter().map(|i| request(i.clone())).collect();
        let outputs = team.run_in(&mut again, requests)?;
        for (at, (known, outputs)) in known.iter_mut().zip(outputs).enumerate() {
            for (v, (_, value)) in part.iter().zip(outputs) {
                let value = value.to_host()?;
                let finite = value.as_tensor().is_none_or(is_finite);
                known.insert(*v, finite);
                if !finite
                    && graph
                        .def(*v)
                        .operands
                        .iter()
                        .all(|o| is_sound(graph, known, *o))
                {
                    return Ok(Some(in_shard(team, at, &describe(graph, *v))));
                }
            }
        }
    }
    Ok(None)
}

/// Where there are several shards: in which of them.
fn in_shard(team: &Team, at: usize, what: &str) -> String {
    match team.count {
        1 => what.to_string(),
        _ => format!("{what} of shard {}", team.first + at),
    }
}

/// Whether a value that was seen, or a constant, is finite; other leaves were looked at.
fn is_sound(graph: &Graph, known: &BTreeMap<ValueId, bool>, value: ValueId) -> bool {
    let is_constant = || match graph.def(value).op.class() {
        OpClass::Leaf => constant_is_finite(graph, value),
        _ => true,
    };
    known.get(&value).copied().unwrap_or_else(is_constant)
}

/// Whether a leaf holds finite numbers; inputs and slots were looked at.
fn constant_is_finite(graph: &Graph, value: ValueId) -> bool {
    match &graph.def(value).op {
        cupola_ir::Op::Core(cupola_ir::CoreOp::Const(c)) => is_finite(&c.value),
        _ => true,
    }
}

fn is_finite(t: &Tensor) -> bool {
    match t.dtype().is_float() {
        true => match convert::lanes(t) {
            Some(convert::Lanes::F(values)) => values.iter().all(|x| x.is_finite()),
            _ => true,
        },
        false => true,
    }
}

/// A node in words: its number and op, the names nearest to it.
fn describe(graph: &Graph, value: ValueId) -> String {
    let node = graph.def(value);
    let name = |v: ValueId| graph.value(v).name.as_ref().map(ToString::to_string);
    let own = name(value).map_or(String::new(), |n| format!(" '{n}'"));
    let origin = node.origins.first();
    let origin = origin.map_or(String::new(), |o| format!(" of {} '{}'", o.op, o.node));
    let operands: Vec<String> = (node.operands.iter())
        .map(|o| name(*o).unwrap_or_else(|| o.to_string()))
        .collect();
    format!(
        "{} {}{own}{origin}({})",
        graph.value(value).node,
        node.op.name(),
        operands.join(", ")
    )
}

//! Where numbers became none: the first node of a step whose result is not finite though all its operands are.

use crate::error::Result;
use crate::runner::Options;
use cupola_ir::{Graph, OpClass, Tensor, ValueId, convert};
use cupola_runtime::{Host, Program, Request, Session};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values looked at in one run: each is kept in memory until the run ends.
const AT_ONCE: usize = 48;

/// Runs a step once more, from the state of `session` and with these inputs, as parts that show every value; gives the
/// first node that turns finite operands into a result that is not, in words. `None` where none does.
///
/// # Errors
/// What compilation and the runs find.
pub fn first(
    graph: &Graph,
    session: &mut Session,
    inputs: Vec<(String, Tensor)>,
    host: &Host,
    options: &Options,
) -> Result<Option<String>> {
    let mut known: BTreeMap<ValueId, bool> = BTreeMap::new();
    if let Some((name, t)) = inputs.iter().find(|(_, t)| !is_finite(t)) {
        let what = format!("input '{name}' {:?}, which the data hold", t.ty());
        return Ok(Some(what));
    }
    let state = session.state_mut();
    let (seed, run) = (state.seed, state.run);
    let names: Vec<String> = graph.slots.keys().cloned().collect();
    for name in &names {
        let value = state.slot(name).map(|v| v.to_host()).transpose()?;
        let tensor = value.as_ref().and_then(|v| v.as_tensor());
        if tensor.is_some_and(|t| !is_finite(t)) {
            let what = format!("state '{name}', which the step before left so");
            return Ok(Some(what));
        }
    }
    let values: Vec<ValueId> = (graph.nodes())
        .filter(|(_, n)| !matches!(n.op.class(), OpClass::Leaf | OpClass::Effect))
        .flat_map(|(_, n)| n.results.to_vec())
        .filter(|v| graph.ty(*v).as_tensor().is_some_and(|t| t.dtype.is_float()))
        .collect();
    for part in values.chunks(AT_ONCE) {
        let mut shown = graph.clone();
        shown.retain_outputs(|_| false);
        for v in part {
            shown.output(&v.to_string(), *v);
        }
        let program = Arc::new(Program::compile(shown, host, options)?);
        let mut again = Session::new(program.clone());
        let mut copy = again.state_mut();
        (copy.seed, copy.run) = (seed, run);
        for name in &names {
            if let Some(value) = state.slot(name) {
                copy.set_slot(name, value.clone())?;
            }
        }
        drop(copy);
        let mut request = Request::new();
        for (name, tensor) in &inputs {
            request = request.input(name, tensor.clone());
        }
        let outputs = again.execute(request)?;
        for (v, (_, value)) in part.iter().zip(outputs) {
            let value = value.to_host()?;
            let finite = value.as_tensor().is_none_or(is_finite);
            known.insert(*v, finite);
            let node = graph.def(*v);
            let is_constant = |o: &ValueId| match graph.def(*o).op.class() {
                OpClass::Leaf => constant_is_finite(graph, *o),
                _ => true,
            };
            let sound = |o: &ValueId| known.get(o).copied().unwrap_or_else(|| is_constant(o));
            if !finite && node.operands.iter().all(sound) {
                return Ok(Some(describe(graph, *v)));
            }
        }
    }
    Ok(None)
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

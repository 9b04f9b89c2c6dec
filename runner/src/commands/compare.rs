//! `cupola compare`: where do two devices differ?
//!
//! With `--all-nodes` every tensor of the graph is an output, so a difference is seen at the first node that causes it
//! (and nothing is fused; `cupola bisect` looks into fused kernels).

use crate::args::{CompareArgs, CompileArgs, Precision};
use crate::compare::{self, Difference, Tolerance};
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs};
use cupola::ir::{OpClass, ValueId};
use cupola::{DType, Graph, Host, Program, Session, Value, ValueType};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Compares outputs, or all nodes, between devices. The first device is the standard, in the model's own types.
pub fn compare(args: &CompareArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let graph = model.graph_for_inputs(&given)?;
    let tensor = |t: &ValueType| t.as_tensor().is_some_and(|t| t.dtype != DType::String);
    let (graph, values) = match args.all_nodes {
        true => with_all_values(&graph, tensor),
        false => {
            let values = graph.outputs().iter().map(|(_, v)| *v).collect();
            (graph, values)
        }
    };
    let host = super::host(&args.compile);
    let tolerance = Tolerance {
        rtol: args.rtol,
        atol: args.atol,
        device: false,
    };
    let [first, others @ ..] = &args.devices[..] else {
        return Err(Failure::usage("--devices needs two"));
    };
    let standard = CompileArgs {
        fault: None,
        precision: Precision::F32,
        ..args.compile.clone()
    };
    let want = run_on(&graph, first, &standard, &host, &given)?;
    let mut rows = vec![];
    let mut bad = None;
    for device in others {
        let got = run_on(&graph, device, &args.compile, &host, &given)?;
        for (i, ((name, g), (_, w))) in got.iter().zip(&want).enumerate() {
            let d = compare::values(name, g, w, tolerance);
            let what = values
                .get(i)
                .map_or(String::new(), |v| describe(&graph, *v));
            if !d.is_ok() && bad.is_none() {
                bad = Some(format!("{device}: {what} {}", d.detail));
            }
            rows.push((device.clone(), name.clone(), what, d));
        }
    }
    report(&rows, args.json.as_deref())?;
    bad.map_or(Ok(()), |b| Err(Failure::differs(b)))
}

fn report(rows: &[(String, String, String, Difference)], json_to: Option<&str>) -> Outcome {
    if let Some(to) = json_to {
        let all: Vec<_> = rows
            .iter()
            .map(|(device, name, node, d)| {
                json!({ "device": device, "value": name, "node": node, "max_abs": d.max_abs, "max_rel": d.max_rel, "max_rms": d.max_rms, "ok": d.is_ok() })
            })
            .collect();
        return outputs::write_json(to, &json!(all));
    }
    let width = rows
        .iter()
        .map(|r| r.1.len())
        .max()
        .unwrap_or(5)
        .clamp(5, 40);
    println!(
        "{:10} {:width$} {:>11} {:>11} {:>11}  node",
        "device", "value", "max abs", "max rel", "max/rms"
    );
    for (device, name, node, d) in rows {
        let mark = if d.is_ok() { ' ' } else { '*' };
        println!(
            "{device:10} {name:width$} {:11.3e} {:11.3e} {:11.3e} {mark}{node}",
            d.max_abs, d.max_rel, d.max_rms
        );
    }
    Ok(())
}

/// The graph with every value of the top level that `wanted` picks as an output, and those values in order.
pub fn with_all_values(
    graph: &Graph,
    wanted: impl Fn(&ValueType) -> bool,
) -> (Graph, Vec<ValueId>) {
    let mut graph = graph.clone();
    let values: Vec<ValueId> = graph
        .nodes()
        .filter(|(_, n)| n.op.class() != OpClass::Leaf)
        .flat_map(|(_, n)| n.results.to_vec())
        .filter(|v| wanted(graph.ty(*v)))
        .collect();
    graph.retain_outputs(|_| false);
    for v in &values {
        let name = graph
            .value(*v)
            .name
            .as_ref()
            .map_or(String::new(), |n| format!(" {n}"));
        graph.output(&format!("{v}{name}"), *v);
    }
    (graph, values)
}

/// Runs a graph on a device with inputs by name.
pub fn run_on(
    graph: &Graph,
    device: &str,
    compile: &CompileArgs,
    host: &Arc<Host>,
    given: &BTreeMap<String, Value>,
) -> Outcome<Vec<(String, Value)>> {
    let mut options = super::options(compile)?;
    options.device = device.parse().map_err(Failure::usage)?;
    let program = Program::compile(graph.clone(), host, &options)?;
    let mut session = Session::new(Arc::new(program));
    session.state_mut().seed = compile.seed;
    let names: Vec<String> = graph
        .inputs()
        .iter()
        .map(|v| graph.input_name(*v).to_string())
        .collect();
    let named = names
        .iter()
        .filter_map(|n| given.get(n).map(|v| (n.as_str(), v.clone())))
        .collect();
    Ok(session.run(named)?)
}

/// The node that computes a value, and its source.
pub fn describe(graph: &Graph, value: ValueId) -> String {
    let node = graph.def(value);
    let origin = node
        .origins
        .first()
        .map_or(String::new(), |o| format!(" of {} '{}'", o.op, o.node));
    format!("{} {}{origin}", graph.value(value).node, node.op.name())
}

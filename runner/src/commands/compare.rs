//! `cupola compare` and `cupola bisect`: where do two devices differ?
//!
//! Both run the same graph with every tensor that both devices can give back as an output, so a difference is seen at
//! the first node that causes it.

use crate::args::{BisectArgs, CompareArgs, CompileArgs};
use crate::compare::{self, Difference, Tolerance};
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs};
use cupola::ir::{CoreOp, NodeId, Op, OpClass, ValueId};
use cupola::{DType, Graph, Host, Model, Program, Session, Value};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Compares outputs, or all nodes, between devices.
pub fn compare(args: &CompareArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let (graph, values) = observed(&model, &given, args.all_nodes)?;
    let host = super::host();
    let tolerance = Tolerance {
        rtol: args.rtol,
        atol: args.atol,
        device: false,
    };
    let [first, others @ ..] = &args.devices[..] else {
        return Err(Failure::usage("--devices needs two"));
    };
    let want = run_on(&graph, first, &args.compile, &host, &given)?;
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
                json!({ "device": device, "value": name, "node": node, "max_abs": d.max_abs, "max_rel": d.max_rel, "ok": d.is_ok() })
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
        "{:10} {:width$} {:>11} {:>11}  node",
        "device", "value", "max abs", "max rel"
    );
    for (device, name, node, d) in rows {
        let mark = if d.is_ok() { ' ' } else { '*' };
        println!(
            "{device:10} {name:width$} {:11.3e} {:11.3e} {mark}{node}",
            d.max_abs, d.max_rel
        );
    }
    Ok(())
}

/// Finds the first node whose result differs, and writes the smallest graph that shows it.
pub fn bisect(args: &BisectArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let (graph, values) = observed(&model, &given, true)?;
    let host = super::host();
    let tolerance = Tolerance {
        rtol: args.rtol,
        atol: args.atol,
        device: false,
    };
    let want = run_on(&graph, &args.good, &args.compile, &host, &given)?;
    let got = run_on(&graph, &args.bad, &args.compile, &host, &given)?;
    let differs = |i: usize| !compare::values(&got[i].0, &got[i].1, &want[i].1, tolerance).is_ok();
    let Some(first) = (0..values.len()).find(|i| differs(*i)) else {
        println!(
            "no difference between {} and {} in {} values",
            args.good,
            args.bad,
            values.len()
        );
        return Ok(());
    };
    let node = graph.value(values[first]).node;
    let small = reproducer(&graph, node, &values, &want)?;
    let detail = compare::values(&got[first].0, &got[first].1, &want[first].1, tolerance).detail;
    let what = describe(&graph, values[first]);
    let nodes = small
        .nodes()
        .filter(|(_, n)| n.op.class() != OpClass::Leaf)
        .count();
    if let Some(path) = &args.output {
        let text = cupola::to_text(&small);
        super::convert::write_whole(path, text.as_bytes())?;
    }
    match &args.json {
        Some(to) => outputs::write_json(
            to,
            &json!({ "node": node.to_string(), "what": what, "detail": detail, "reproducer_nodes": nodes,
                "reproducer": args.output.as_ref().map(|p| p.display().to_string()) }),
        )?,
        None => {
            println!("first difference: {what}");
            println!("  {detail}");
            match &args.output {
                Some(path) => println!("  reproducer of {nodes} nodes in {}", path.display()),
                None => print!("{}", cupola::to_text(&small)),
            }
        }
    }
    Err(Failure::differs(format!("{what}: {detail}")))
}

/// The graph with every tensor value of the top level as an output, and those values in order.
fn observed(
    model: &Model,
    given: &BTreeMap<String, Value>,
    all: bool,
) -> Outcome<(Graph, Vec<ValueId>)> {
    let mut graph = model.graph_for_inputs(given)?;
    if !all {
        let values = graph.outputs().iter().map(|(_, v)| *v).collect();
        return Ok((graph, values));
    }
    let wanted: Vec<ValueId> = graph
        .nodes()
        .filter(|(_, n)| n.op.class() != OpClass::Leaf)
        .flat_map(|(_, n)| n.results.to_vec())
        .filter(|v| {
            graph
                .ty(*v)
                .as_tensor()
                .is_some_and(|t| t.dtype != DType::String)
        })
        .collect();
    graph.retain_outputs(|_| false);
    for v in &wanted {
        let name = graph
            .value(*v)
            .name
            .as_ref()
            .map_or(String::new(), |n| format!(" {n}"));
        graph.output(&format!("{v}{name}"), *v);
    }
    Ok((graph, wanted))
}

fn run_on(
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

fn describe(graph: &Graph, value: ValueId) -> String {
    let node = graph.def(value);
    let origin = node
        .origins
        .first()
        .map_or(String::new(), |o| format!(" of {} '{}'", o.op, o.node));
    format!("{} {}{origin}", graph.value(value).node, node.op.name())
}

/// The node alone: its operands become constants with the values that the good device computed.
fn reproducer(
    graph: &Graph,
    node: NodeId,
    values: &[ValueId],
    known: &[(String, Value)],
) -> Outcome<Graph> {
    let mut small = Graph::new("reproducer");
    let source = graph.node(node);
    let mut operands = vec![];
    for v in &source.operands {
        let seen = values
            .iter()
            .position(|x| x == v)
            .and_then(|i| known[i].1.as_tensor().cloned());
        let operand = match (seen, graph.op_of(*v)) {
            (Some(tensor), _) => small.constant(tensor).map_err(cupola::Error::from)?,
            (None, Op::Core(CoreOp::Input(p))) => small
                .input(&p.name, p.ty.clone())
                .map_err(cupola::Error::from)?,
            (None, op) => small.one(op.clone(), &[]).map_err(cupola::Error::from)?,
        };
        operands.push(operand);
    }
    let results = small
        .push(source.op.clone(), &operands)
        .map_err(cupola::Error::from)?;
    for (i, r) in results.iter().enumerate() {
        small.output(&format!("y{i}"), *r);
    }
    Ok(small)
}

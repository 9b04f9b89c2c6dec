//! `cupola inspect`: what is in a model.

use crate::args::{InspectArgs, InspectFormat};
use crate::fail::{Missing, Outcome};
use crate::{inputs, outputs};
use cupola::ir::{CoreOp, OpClass};
use cupola::{Graph, Model, SupportRow, check_file};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

/// Prints inputs, outputs, parameters and ops, or the graph after a pass.
pub fn inspect(args: &InspectArgs) -> Outcome {
    if let Some(step) = &args.after {
        let model = super::open(&args.model, &args.compile)?;
        let graph = graph_of(&model, args)?;
        let graph = cupola::graph_after(
            &graph,
            step,
            &super::host(&args.compile),
            &super::options(&args.compile)?,
        )?;
        return show_graph(&graph, args);
    }
    let model = match super::open(&args.model, &args.compile) {
        Ok(model) => model,
        // Containers of weights without a graph have a table of contents.
        Err(_) if check_file(&args.model).is_ok() => return contents(args),
        Err(e) => return Err(e),
    };
    let graph = match graph_of(&model, args) {
        Ok(graph) => graph,
        Err(e) if args.support && !e.missing.is_empty() => {
            return show_support(&missing(&e.missing), args);
        }
        // Without its inputs a graph may not be known; what the file states is.
        Err(e) if args.input.input.is_empty() && !args.support => {
            return contents(args).map_err(|_| e);
        }
        Err(e) => return Err(e),
    };
    if args.support {
        let table = cupola::support(
            &graph,
            &super::host(&args.compile),
            &super::options(&args.compile)?,
        )?;
        return show_support(&table, args);
    }
    match (&args.json, args.format) {
        (Some(to), _) => outputs::write_json(to, &facts(&graph)),
        (None, InspectFormat::Json) => outputs::write_json("-", &facts(&graph)),
        (None, InspectFormat::Text) => {
            print_facts(model.name(), &facts(&graph));
            Ok(())
        }
        (None, InspectFormat::Dot | InspectFormat::Html) => show_graph(&graph, args),
    }
}

/// The graph, given inputs that decide its structure if any are.
fn graph_of(model: &Model, args: &InspectArgs) -> Outcome<Graph> {
    if args.input.input.is_empty() && args.input.inputs.is_none() {
        return Ok(Graph::clone(&*model.graph()?));
    }
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, false)?;
    Ok(model.graph_for_inputs(&given)?)
}

/// Rows for what is not implemented.
fn missing(all: &[Missing]) -> Vec<SupportRow> {
    let mut rows: BTreeMap<&str, SupportRow> = BTreeMap::new();
    for m in all {
        let row = rows.entry(&m.op).or_insert_with(|| SupportRow {
            op: m.op.clone(),
            count: 0,
            support: "missing",
            why: m.why.clone(),
        });
        row.count += 1;
    }
    rows.into_values().collect()
}

fn show_graph(graph: &Graph, args: &InspectArgs) -> Outcome {
    match args.format {
        InspectFormat::Text => print!("{}", cupola::to_text(graph)),
        InspectFormat::Dot => print!("{}", cupola::ir::graph::dot(graph)),
        InspectFormat::Json => outputs::write_json("-", &nodes(graph))?,
        InspectFormat::Html => print!("{}", html(graph)),
    }
    Ok(())
}

fn contents(args: &InspectArgs) -> Outcome {
    let summary = check_file(&args.model)?;
    let facts: BTreeMap<&str, &str> = summary
        .facts
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    match &args.json {
        Some(to) => outputs::write_json(to, &json!({ "format": summary.format, "facts": facts })),
        None => {
            println!("{}", summary.format);
            facts.iter().for_each(|(k, v)| println!("  {k:16} {v}"));
            Ok(())
        }
    }
}

fn facts(graph: &Graph) -> Json {
    let inputs = graph.inputs().iter();
    let inputs: Vec<Json> = inputs
        .map(|v| json!({ "name": graph.input_name(*v), "type": graph.ty(*v).to_string() }))
        .collect();
    let outputs = graph.outputs().iter();
    let outputs: Vec<Json> = outputs
        .map(|(n, v)| json!({ "name": &**n, "type": graph.ty(*v).to_string() }))
        .collect();
    let mut source_ops: BTreeMap<String, usize> = BTreeMap::new();
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    let (mut count, mut elements, mut bytes) = (0usize, 0usize, 0usize);
    let mut seen = std::collections::HashSet::new();
    for (_, node) in graph.nodes() {
        if let cupola::ir::Op::Core(CoreOp::Const(c)) = &node.op {
            count += 1;
            elements += c.value.len();
            bytes += c.value.bytes().len();
        } else {
            *ops.entry(node.op.name()).or_default() += 1;
        }
        for o in &node.origins {
            if seen.insert(o.clone()) {
                *source_ops.entry(o.op.to_string()).or_default() += 1;
            }
        }
    }
    let (flops, moved) = cupola::passes::cost::graph_cost(graph);
    json!({
        "name": graph.name, "inputs": inputs, "outputs": outputs,
        "parameters": { "tensors": count, "elements": elements, "bytes": bytes },
        "source_ops": source_ops, "ops": ops, "nodes": graph.node_count(),
        "flops": flops.to_string(), "bytes": moved.to_string(),
        "states": graph.slots.keys().collect::<Vec<_>>(),
    })
}

fn print_facts(name: &str, f: &Json) {
    println!("{name}");
    for key in ["inputs", "outputs"] {
        println!("{key}");
        for v in f[key].as_array().into_iter().flatten() {
            println!(
                "  {:24} {}",
                v["name"].as_str().unwrap_or_default(),
                v["type"].as_str().unwrap_or_default()
            );
        }
    }
    let p = &f["parameters"];
    println!(
        "parameters {} tensors, {} elements, {} bytes",
        p["tensors"], p["elements"], p["bytes"]
    );
    println!("flops      {}", f["flops"].as_str().unwrap_or_default());
    println!("bytes      {}", f["bytes"].as_str().unwrap_or_default());
    for (title, key) in [
        ("operators of the file", "source_ops"),
        ("ops of the graph", "ops"),
    ] {
        println!("{title}");
        let mut all: Vec<(&String, u64)> = f[key]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k, v.as_u64().unwrap_or(0)))
            .collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        all.iter().for_each(|(k, n)| println!("  {k:32} {n:6}"));
    }
}

fn nodes(graph: &Graph) -> Json {
    let each = graph.nodes().map(|(id, n)| {
        json!({
            "id": id.to_string(), "op": n.op.name(),
            "operands": n.operands.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "results": n.results.iter().map(|v| json!({ "id": v.to_string(), "type": graph.ty(*v).to_string() })).collect::<Vec<_>>(),
            "origins": n.origins.iter().map(|o| json!({ "op": &*o.op, "node": &*o.node })).collect::<Vec<_>>(),
        })
    });
    each.collect()
}

fn show_support(table: &[SupportRow], args: &InspectArgs) -> Outcome {
    if let Some(to) = &args.json {
        let rows: Vec<Json> = table
            .iter()
            .map(|r| json!({ "op": r.op, "count": r.count, "support": r.support, "why": r.why }))
            .collect();
        return outputs::write_json(to, &json!(rows));
    }
    println!(
        "{:32} {:>6}  {:12} why",
        "operator", "count", args.compile.device
    );
    for r in table {
        println!("{:32} {:6}  {:12} {}", r.op, r.count, r.support, r.why);
    }
    Ok(())
}

/// One page: a table of nodes, foldable by source operator; no script, no outside resources.
fn html(graph: &Graph) -> String {
    let escape = outputs::escape;
    let mut rows = String::new();
    for (id, n) in graph.nodes() {
        if n.op.class() == OpClass::Leaf && !matches!(n.op, cupola::ir::Op::Core(CoreOp::Input(_)))
        {
            continue;
        }
        let operands: Vec<String> = n
            .operands
            .iter()
            .map(|v| format!("<a href=\"#v{}\">{v}</a>", v.0))
            .collect();
        let results: Vec<String> = n
            .results
            .iter()
            .map(|v| {
                format!(
                    "<span id=\"v{}\">{v}</span>: {}",
                    v.0,
                    escape(&graph.ty(*v).to_string())
                )
            })
            .collect();
        let origin = n.origins.first().map_or(String::new(), |o| {
            format!("{} {}", escape(&o.op), escape(&o.node))
        });
        rows.push_str(&format!(
            "<tr><td>{id}</td><td>{}</td><td>{}</td><td>{}</td><td>{origin}</td></tr>\n",
            escape(&n.op.name()),
            operands.join(" "),
            results.join("<br>")
        ));
    }
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>{0}</title><style>body{{font:14px sans-serif;margin:2em}}\
         table{{border-collapse:collapse}}td,th{{border-bottom:1px solid #ddd;padding:.2em .8em;text-align:left;\
         vertical-align:top}}:target{{background:#fe8}}</style><h1>{0}</h1>\n<table><tr><th>node<th>op<th>operands\
         <th>results<th>source</tr>\n{rows}</table>\n",
        escape(&graph.name)
    )
}

//! `cupola explain`: the final kernels with the source nodes in each, and every fusion that was not made.

use crate::args::ExplainArgs;
use crate::fail::Outcome;
use crate::{inputs, outputs};
use cupola::ir::NodeId;
use cupola::passes::Compiled;
use cupola::passes::explain::{origins, unit_cost};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

/// Prints kernels, host steps and misses.
pub fn explain(args: &ExplainArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let graph = model.graph_for_inputs(&given)?;
    let program = cupola::Program::compile(
        graph,
        &super::host(&args.compile),
        &super::options(&args.compile)?,
    )?;
    let Some(compiled) = program.compiled() else {
        println!("the reference interpreter runs nodes one by one; there are no kernels");
        return Ok(());
    };
    let document = document(compiled, args.node.as_deref());
    if let Some(to) = &args.json {
        return outputs::write_json(to, &document);
    }
    print_text(&document);
    if args.code {
        for (name, listing) in program.listings() {
            println!("\n; {name}\n{listing}");
        }
    }
    Ok(())
}

fn sources(compiled: &Compiled, nodes: &[NodeId]) -> Vec<Json> {
    let all = origins(compiled, nodes).into_iter();
    all.map(|o| json!({ "op": &*o.op, "node": &*o.node }))
        .collect()
}

fn document(compiled: &Compiled, only: Option<&str>) -> Json {
    let wanted = |sources: &[Json]| only.is_none_or(|n| sources.iter().any(|s| s["node"] == n));
    let mut kernels = vec![];
    let (mut composites, mut libraries) = (BTreeMap::new(), BTreeMap::new());
    for c in &compiled.composites {
        *composites.entry(c.name).or_insert(0usize) += 1;
        *libraries.entry(c.name).or_insert(0usize) += usize::from(c.library);
    }
    for (i, unit) in compiled.units.iter().enumerate() {
        let from = sources(compiled, &unit.nodes);
        let ops: Vec<String> = unit
            .nodes
            .iter()
            .map(|n| compiled.graph.node(*n).op.name())
            .collect();
        if wanted(&from) {
            let cost = unit_cost(compiled, i);
            let library = matches!(unit.unit, cupola::ir::kernel::Unit::Library(_));
            kernels.push(json!({
                "kernel": i, "name": unit.unit.name(), "device": unit.device.0, "library": library, "ops": ops,
                "sources": from, "flops": cost.flops.to_string(), "bytes": cost.bytes.to_string(),
            }));
        }
    }
    let mut host = vec![];
    for step in &compiled.plan.steps {
        if let cupola::passes::Step::Host { node, .. }
        | cupola::passes::Step::Control { node, .. } = step
        {
            let from = sources(compiled, &[*node]);
            if wanted(&from) {
                host.push(json!({ "op": compiled.graph.node(*node).op.name(), "sources": from }));
            }
        }
    }
    let misses: Vec<Json> = compiled
        .misses
        .iter()
        .map(|m| {
            json!({
                "code": m.code.name(), "op": compiled.graph.node(m.node).op.name(),
                "sources": sources(compiled, &[m.node]),
                "blocker": m.blocker.map(|b| json!({ "op": compiled.graph.node(b).op.name(), "sources": sources(compiled, &[b]) })),
                "hint": m.hint,
            })
        })
        .filter(|m| wanted(m["sources"].as_array().map_or(&[], |v| &v[..])))
        .collect();
    json!({
        "kernels": kernels, "composites": composites, "by_library": libraries, "host": host, "misses": misses,
    })
}

fn names(sources: &Json) -> String {
    let all = sources.as_array().into_iter().flatten();
    let all: Vec<String> = all
        .map(|s| {
            format!(
                "{} {}",
                s["op"].as_str().unwrap_or(""),
                s["node"].as_str().unwrap_or("")
            )
        })
        .collect();
    match all.len() {
        0..=4 => all.join(", "),
        n => format!("{}, and {} more", all[..4].join(", "), n - 4),
    }
}

fn print_text(d: &Json) {
    let list = |key: &str| d[key].as_array().cloned().unwrap_or_default();
    let kernels = list("kernels");
    println!("{} kernels", kernels.len());
    for k in &kernels {
        let text = |key: &str| k[key].as_str().unwrap_or_default().to_string();
        println!(
            "{:4}  {:40} {}",
            k["kernel"],
            text("name"),
            names(&k["sources"])
        );
        println!(
            "      {:40} flops {}, bytes {}",
            "",
            text("flops"),
            text("bytes")
        );
    }
    if let Some(all) = d["composites"].as_object().filter(|c| !c.is_empty()) {
        let one = |(name, count): (&String, &Json)| match &d["by_library"][name] {
            n if n == count => format!("{count} {name} (library kernels)"),
            n => format!("{count} {name} ({n} by library kernels, the others fused)"),
        };
        let all: Vec<String> = all.iter().map(one).collect();
        println!("composites: {}", all.join(", "));
    }
    let host = list("host");
    if !host.is_empty() {
        println!("{} host steps", host.len());
        host.iter().for_each(|h| {
            println!(
                "      {:40} {}",
                h["op"].as_str().unwrap_or(""),
                names(&h["sources"])
            )
        });
    }
    let misses = list("misses");
    println!("{} misses", misses.len());
    for m in &misses {
        let text = |key: &str| m[key].as_str().unwrap_or_default().to_string();
        println!(
            "      {:18} {:20} {}",
            text("code"),
            text("op"),
            names(&m["sources"])
        );
        if let Some(b) = m["blocker"].as_object() {
            println!(
                "      {:18} blocked by {} {}",
                "",
                b["op"].as_str().unwrap_or(""),
                names(&b["sources"])
            );
        }
        println!("      {:18} {}", "", text("hint"));
    }
}

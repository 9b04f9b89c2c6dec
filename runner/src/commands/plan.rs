//! `cupola plan`: the memory a model will need, before any weight is loaded.

use crate::args::PlanArgs;
use crate::fail::{Failure, Outcome};
use crate::inputs::parse_set;
use crate::outputs;
use serde_json::json;

/// Prints weights, activations and state bytes; exit 5 over a budget.
pub fn plan(args: &PlanArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let graph = model.graph()?;
    let set = parse_set(&args.compile.set)?;
    let memory = cupola::plan_memory(
        &graph,
        &super::host(),
        &super::options(&args.compile)?,
        &set,
    )?;
    let total = memory.total();
    let document = json!({
        "weights": memory.weights, "activations": memory.activations, "outputs": memory.outputs,
        "states": memory.states, "total": total, "unbound": memory.unbound,
    });
    match &args.json {
        Some(to) => outputs::write_json(to, &document)?,
        None => {
            let rows = [
                ("weights", memory.weights),
                ("activations", memory.activations),
                ("outputs", memory.outputs),
                ("states", memory.states),
                ("total", total),
            ];
            rows.iter().for_each(|(name, bytes)| {
                println!("{name:12} {bytes:>16} bytes  {:>10}", human(*bytes))
            });
            if !memory.unbound.is_empty() {
                println!("taken as 1 (use --set): {}", memory.unbound.join(", "));
            }
        }
    }
    match args.compile.memory {
        Some(budget) if total > budget => {
            let message = format!("needs {total} bytes, the budget is {budget}");
            Err(Failure::limit(message))
        }
        _ => Ok(()),
    }
}

fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

//! `cupola plan`: the memory a model will need, before any weight is loaded.

use super::language::USUAL_CONTEXT;
use crate::args::{PlanArgs, PlanLlmArgs};
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs};
use cupola::language::Kind;
use cupola::llm::StepSizes;
use cupola::{Graph, MemoryPlan, Model, Value};
use serde_json::json;
use std::collections::BTreeMap;

/// Prints weights, activations and state bytes, and the sizes that they are for; exit 5 over a budget. The same flags
/// as for `run` give the plan of the same program.
pub fn plan(args: &PlanArgs) -> Outcome {
    if args.train {
        let sizes = inputs::parse_set(&args.compile.set)?;
        return report(
            &super::train::plan(&args.model, &args.compile, &sizes)?,
            args,
            false,
        );
    }
    let import = super::language::import(&args.compile, args.llm.context, args.llm.cache);
    let model = super::open_as(&args.model, &args.compile, import)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, false)?;
    let graph = model.graph_for_inputs(&given)?;
    let mut sizes = inputs::parse_set(&args.compile.set)?;
    for v in graph.inputs() {
        let value = given.get(graph.input_name(*v));
        if let (Some(t), Some(x)) = (graph.ty(*v).as_tensor(), value.and_then(Value::as_tensor)) {
            let extents = t.dims.iter().zip(x.shape());
            sizes.extend(
                extents.filter_map(|(d, n)| Some((d.as_sym()?.name().to_string(), *n as i64))),
            );
        }
    }
    let texts = texts(&model, &graph, &args.llm)?;
    for (name, size) in texts.iter().flatten() {
        sizes.entry(name.clone()).or_insert(*size);
    }
    let options = super::options(&args.compile)?;
    let memory = cupola::plan_memory(&graph, &super::host(&args.compile), &options, &sizes)?;
    report(&memory, args, texts.is_some())
}

fn report(memory: &MemoryPlan, args: &PlanArgs, is_decoder: bool) -> Outcome {
    let bytes = &memory.bytes;
    let total = bytes.total();
    let mut document = json!({
        "weights": bytes.weights, "activations": bytes.activations, "outputs": bytes.outputs,
        "states": bytes.states, "total": total, "sizes": memory.sizes, "unset": memory.unset,
        "undecided": memory.undecided,
    });
    if is_decoder {
        document["kv_cache"] = json!(bytes.states);
        document["workspace"] = json!(bytes.activations.saturating_add(bytes.outputs));
    }
    match &args.json {
        Some(to) => outputs::write_json(to, &document)?,
        None => print_text(memory, is_decoder),
    }
    match args.compile.memory {
        Some(budget) if total > budget => {
            let message = format!("needs {total} bytes, the budget is {budget}");
            Err(Failure::limit(message))
        }
        _ => Ok(()),
    }
}

/// The sizes of a decoder's largest step, and of the cache of all texts; `None` of any other model.
fn texts(
    model: &Model,
    graph: &Graph,
    args: &PlanLlmArgs,
) -> Outcome<Option<BTreeMap<String, i64>>> {
    let config = model.language_config().filter(|c| c.kind == Kind::Decoder);
    let Some(config) = config else {
        return Ok(None);
    };
    let usual = config.context_len.min(USUAL_CONTEXT);
    let context_len = args.context.unwrap_or(usual);
    let positions = context_len.saturating_mul(args.slots);
    let sizes = StepSizes {
        rows: args.batch,
        texts: args.slots,
        wanted: args.slots,
        context_len,
        pages: positions.div_ceil(config.page_len),
    };
    Ok(Some(sizes.symbols(graph).map_err(cupola::Error::from)?))
}

fn print_text(memory: &MemoryPlan, is_decoder: bool) {
    let bytes = &memory.bytes;
    let states = if is_decoder { "KV cache" } else { "states" };
    let rows = [
        ("weights", bytes.weights),
        ("activations", bytes.activations),
        ("outputs", bytes.outputs),
        (states, bytes.states),
        ("total", bytes.total()),
    ];
    for (name, value) in &memory.sizes {
        let how = match memory.unset.contains(name) {
            true => "  not set, taken as 1 (--set or -i say it)",
            false => "",
        };
        println!("{name} = {value}{how}");
    }
    for (name, bytes) in rows {
        println!("{name:12} {bytes:>16} bytes  {:>10}", human(bytes));
    }
    if !memory.undecided.is_empty() {
        println!(
            "not counted, the data of a run decides: {}",
            memory.undecided.join(", ")
        );
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

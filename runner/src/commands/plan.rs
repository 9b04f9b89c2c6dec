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
    match &args.memory {
        None => Ok(()),
        Some(text) => {
            let budget = parse_bytes(text)
                .ok_or_else(|| Failure::usage(format!("--memory {text}: as in 512MiB")))?;
            if total <= budget {
                return Ok(());
            }
            let message = format!("needs {total} bytes, the budget is {budget}");
            Err(Failure {
                status: 5,
                code: "limit",
                message,
            })
        }
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

/// `1024`, `512MiB`, `2GB`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "KiB" | "K" => 1024.0,
        "MiB" | "M" => 1024.0 * 1024.0,
        "GiB" | "G" => 1024.0 * 1024.0 * 1024.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let bytes = number.trim().parse::<f64>().ok()? * factor;
    (bytes >= 0.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_parse() {
        assert_eq!(parse_bytes("1024"), Some(1024));
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        assert_eq!(parse_bytes("1.5KB"), Some(1500));
        assert_eq!(parse_bytes("lots"), None);
        assert_eq!(parse_bytes("-1"), None);
    }
}

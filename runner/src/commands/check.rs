//! `cupola check`: is this file sound? Allocates nothing that the file merely claims.

use crate::args::CheckArgs;
use crate::fail::Outcome;
use crate::outputs;
use cupola::{FileSummary, check_file};
use serde_json::json;

/// Validates a file and prints a short summary.
pub fn check(args: &CheckArgs) -> Outcome {
    let summary: FileSummary = check_file(&args.file)?;
    match &args.json {
        Some(to) => {
            let facts: serde_json::Map<String, serde_json::Value> = summary
                .facts
                .iter()
                .map(|(k, v)| (k.clone(), json!(v)))
                .collect();
            outputs::write_json(to, &json!({ "format": summary.format, "facts": facts }))
        }
        None => {
            println!("{}: sound", summary.format);
            let width = summary
                .facts
                .iter()
                .map(|(k, _)| k.len())
                .max()
                .unwrap_or(0);
            for (key, value) in &summary.facts {
                println!("  {key:width$}  {value}");
            }
            Ok(())
        }
    }
}

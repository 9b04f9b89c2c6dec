//! Outputs: printed, or written to files.

use crate::fail::{Failure, Outcome};
use crate::{npy, pb};
use cupola::ir::convert::{self, Lanes};
use cupola::{Tensor, Value, WholeFile};
use serde_json::{Value as Json, json};
use std::fmt::Write;
use std::io::{self, Write as _};
use std::path::Path;

/// Most elements printed of one output.
const SHOWN: usize = 8;

/// Prints every output: name, type, summary and first values.
pub fn print(outputs: &[(String, Value)]) {
    let width = outputs
        .iter()
        .map(|(n, _)| n.len())
        .max()
        .unwrap_or(0)
        .min(32);
    for (name, value) in outputs {
        println!("{name:width$}  {}", summary(value));
    }
}

fn summary(value: &Value) -> String {
    match value {
        Value::Tensor(t) => tensor_summary(t),
        Value::Sequence(v) => {
            let each: Vec<String> = v.iter().take(SHOWN).map(summary).collect();
            format!("sequence of {}: {}", v.len(), each.join("; "))
        }
        Value::Optional(None) => "nothing".into(),
        Value::Optional(Some(v)) => summary(v),
    }
}

fn tensor_summary(t: &Tensor) -> String {
    let mut text = format!("{}", t.ty());
    if let Some(s) = t.strings() {
        let shown: Vec<String> = s.iter().take(SHOWN).map(|x| format!("{x:?}")).collect();
        let _ = write!(
            text,
            "  {}{}",
            shown.join(" "),
            if s.len() > SHOWN { " ..." } else { "" }
        );
        return text;
    }
    let numbers: Vec<f64> = match convert::lanes(t) {
        Some(Lanes::F(v)) => v,
        Some(Lanes::I(v)) => v.into_iter().map(|x| x as f64).collect(),
        Some(Lanes::U(v)) => v.into_iter().map(|x| x as f64).collect(),
        None => return text,
    };
    let shown: Vec<String> = numbers.iter().take(SHOWN).map(|x| number(*x)).collect();
    if numbers.len() > 1 {
        let min = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let max = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let _ = write!(
            text,
            "  min {} max {} mean {} ",
            number(min),
            number(max),
            number(mean)
        );
    }
    let _ = write!(
        text,
        " {}{}",
        shown.join(" "),
        if numbers.len() > SHOWN { " ..." } else { "" }
    );
    text
}

fn number(x: f64) -> String {
    if x == x.trunc() && x.abs() < 1e15 {
        format!("{x}")
    } else {
        format!("{x:.6}")
    }
}

/// Text for a page of HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Types and first values as JSON.
pub fn to_json(outputs: &[(String, Value)]) -> Json {
    outputs
        .iter()
        .map(|(name, value)| describe(name, value))
        .collect()
}

fn describe(name: &str, value: &Value) -> Json {
    match value {
        Value::Tensor(t) => {
            json!({ "name": name, "dtype": t.dtype().name(), "shape": t.shape(), "summary": tensor_summary(t) })
        }
        Value::Sequence(v) => {
            let all: Vec<Json> = v.iter().map(|x| describe("", x)).collect();
            json!({ "name": name, "sequence": all })
        }
        Value::Optional(v) => {
            json!({ "name": name, "optional": v.as_ref().map(|x| describe("", x)) })
        }
    }
}

/// A file name for an output: characters outside `A-Za-z0-9._-` become `_`.
pub fn file_name(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    if clean.is_empty() || clean.starts_with('.') {
        format!("_{clean}")
    } else {
        clean
    }
}

/// Writes outputs to a folder: `output_<i>.pb` when `as_pb`, else `NAME.npy`.
pub fn write(dir: &Path, outputs: &[(String, Value)], as_pb: bool) -> Outcome {
    std::fs::create_dir_all(dir).map_err(|e| Failure::io("cannot create", dir, e))?;
    for (i, (name, value)) in outputs.iter().enumerate() {
        match value {
            Value::Tensor(t) if !as_pb && t.strings().is_none() => {
                npy::write(&dir.join(format!("{}.npy", file_name(name))), t)?;
            }
            _ if as_pb => pb::write(&dir.join(format!("output_{i}.pb")), name, value)?,
            _ => pb::write(&dir.join(format!("{}.pb", file_name(name))), name, value)?,
        }
    }
    Ok(())
}

/// Writes a file, complete or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Outcome {
    write_atomically(path, |file| file.write_all(bytes))
}

/// As [`write_whole`], of what comes piece by piece.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut WholeFile) -> io::Result<()>,
) -> Outcome {
    cupola::write_atomically(path, write).map_err(|e| Failure::io("cannot write", path, e))
}

/// Writes JSON to a file, or to standard output for `-`.
pub fn write_json(to: &str, json: &Json) -> Outcome {
    let text = serde_json::to_string_pretty(json).unwrap_or_default();
    if to == "-" {
        println!("{text}");
        return Ok(());
    }
    let path = Path::new(to);
    std::fs::write(path, text + "\n").map_err(|e| Failure::io("cannot write", path, e))
}

//! `cupola bench compare`: results of several files side by side, and what became slower or faster.
//!
//! A file holds what `cupola bench --json` or `cupola bench --suite` wrote: `{"machine": .., "rows": [{"name": ..,
//! "samples_ms": [..]}, ..]}`, one row without the list around it, or a row on each line. Several results of the suite in
//! one file, a line each, count like several files.

use crate::args::BenchCompareArgs;
use crate::commands::suite::{page, results as suite};
use crate::fail::{Failure, Outcome};
use crate::outputs;
use crate::outputs::write_whole;
use crate::significance::{Shift, median, shift};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The results of a file, or of one device of a file.
struct Results {
    label: String,
    machine: Json,
    /// Samples in milliseconds by name.
    rows: BTreeMap<String, Vec<f64>>,
    /// All of it, where the suite wrote it.
    suite: Option<suite::Results>,
}

/// How a row lies to that of the first file.
struct Verdict {
    shift: Shift,
    word: &'static str,
}

/// Prints the table; with `--check`, status 6 when something became slower.
pub fn compare(args: &BenchCompareArgs) -> Outcome {
    let mut all: Vec<Results> = vec![];
    for file in &args.files {
        all.extend(read(file)?);
    }
    write_suite(args, &all)?;
    if all.len() < 2 && args.html.is_none() && args.merge.is_none() {
        return Err(Failure::usage("one result alone compares with nothing"));
    }
    let mut names: Vec<&String> = all.iter().flat_map(|r| r.rows.keys()).collect();
    names.sort();
    names.dedup();
    let tests = names.len() * (all.len() - 1).max(1);
    let judge = |name: &str, other: &Results| {
        let (before, after) = (all[0].rows.get(name)?, other.rows.get(name)?);
        let shift = shift(before, after)?;
        // Several tests at once: each is held to its share of the chance.
        let sure = shift.p < args.chance / tests as f64 && before.len().min(after.len()) >= LEAST;
        let word = match shift.factor {
            f if sure && f > 1.0 + args.least => "slower",
            f if sure && f < 1.0 / (1.0 + args.least) => "faster",
            _ => "",
        };
        Some(Verdict { shift, word })
    };
    let table: Vec<(&str, Vec<Option<Verdict>>)> = (names.iter())
        .map(|name| {
            (
                name.as_str(),
                all[1..].iter().map(|r| judge(name, r)).collect(),
            )
        })
        .collect();
    match &args.json {
        Some(to) => outputs::write_json(to, &document(&all, &table))?,
        None => print(&all, &table),
    }
    let slower = |v: &&Option<Verdict>| v.as_ref().is_some_and(|v| v.word == "slower");
    let count = table.iter().flat_map(|(_, v)| v).filter(slower).count();
    if args.check && count > 0 {
        return Err(Failure::differs(format!("{count} rows became slower")));
    }
    Ok(())
}

/// Fewest samples of each side for a verdict.
const LEAST: usize = 5;

/// Writes the page and the joined file that are asked for.
fn write_suite(args: &BenchCompareArgs, all: &[Results]) -> Outcome {
    if args.html.is_none() && args.merge.is_none() {
        return Ok(());
    }
    let of_suite = |r: &Results| {
        let what = format!("{}: --html and --merge take results of --suite", r.label);
        let suite = r.suite.clone().ok_or_else(|| Failure::usage(what))?;
        Ok((r.label.clone(), suite))
    };
    let all: Vec<(String, suite::Results)> = all.iter().map(of_suite).collect::<Outcome<_>>()?;
    if let Some(path) = &args.html {
        write_whole(path, page::page(&all).as_bytes())?;
    }
    if let Some(path) = &args.merge {
        let line = |(_, r): &(String, suite::Results)| serde_json::to_string(r).unwrap_or_default();
        let lines: Vec<String> = all.iter().map(line).collect();
        write_whole(path, (lines.join("\n") + "\n").as_bytes())?;
    }
    Ok(())
}

/// The documents of a file: the whole of it, or one on each line.
fn documents(path: &Path) -> Outcome<Vec<Json>> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("cannot read", path, e))?;
    if let Ok(document) = serde_json::from_str(&text) {
        return Ok(vec![document]);
    }
    let lines = text.lines().filter(|l| l.trim_start().starts_with('{'));
    let each: Result<Vec<Json>, _> = lines.map(serde_json::from_str).collect();
    let malformed = |_| {
        let path = path.display();
        Failure::malformed(format!("{path}: neither JSON nor JSON lines"))
    };
    each.map_err(malformed)
}

fn read(path: &Path) -> Outcome<Vec<Results>> {
    let stem = path
        .file_stem()
        .map(|s| s.to_string_lossy().into_owned())
        .unwrap_or_default();
    let place = path.display().to_string();
    let documents = documents(path)?;
    let (mut devices, mut others) = (vec![], Results::empty(&stem));
    for document in &documents {
        match suite::Results::read(document, &place)? {
            None => others.add(document, &place)?,
            Some(suite) => {
                let label = match documents.len() {
                    1 => stem.clone(),
                    _ => format!("{stem}: {}", suite.machine.name),
                };
                let mut device = Results::empty(&label);
                device.add(document, &place)?;
                device.suite = Some(suite);
                devices.push(device);
            }
        }
    }
    if !others.rows.is_empty() {
        devices.push(others);
    }
    match devices.is_empty() {
        true => Err(Failure::malformed(format!("{place}: no results"))),
        false => Ok(devices),
    }
}

impl Results {
    fn empty(label: &str) -> Results {
        Results {
            label: label.to_string(),
            machine: Json::Null,
            rows: BTreeMap::new(),
            suite: None,
        }
    }

    /// Adds the rows of a document, or the document as a row.
    fn add(&mut self, document: &Json, place: &str) -> Outcome {
        let malformed = |what: &str| Failure::malformed(format!("{place}: {what}"));
        if !document["machine"].is_null() {
            self.machine = document["machine"].clone();
        }
        let own = std::slice::from_ref(document);
        for row in document["rows"].as_array().map_or(own, |rows| &rows[..]) {
            let samples = row["samples_ms"].as_array();
            let samples = samples.ok_or_else(|| malformed("a result without samples_ms"))?;
            let samples: Option<Vec<f64>> = samples.iter().map(Json::as_f64).collect();
            let samples = samples.filter(|s| s.iter().all(|x| *x > 0.0) && !s.is_empty());
            let samples = samples.ok_or_else(|| malformed("samples_ms holds positive numbers"))?;
            let name = row["name"].as_str().unwrap_or("run").to_string();
            self.rows.entry(name).or_default().extend(samples);
        }
        Ok(())
    }
}

fn document(all: &[Results], table: &[(&str, Vec<Option<Verdict>>)]) -> Json {
    let files: Vec<Json> = (all.iter())
        .map(|r| json!({ "file": r.label, "machine": r.machine }))
        .collect();
    let rows = table.iter().map(|(name, verdicts)| {
        let medians: Vec<Option<f64>> = all
            .iter()
            .map(|r| r.rows.get(*name).map(|s| median(s)))
            .collect();
        let verdicts: Vec<Json> = (verdicts.iter().flatten())
            .map(|v| json!({ "factor": v.shift.factor, "p": v.shift.p, "verdict": v.word }))
            .collect();
        json!({ "name": name, "median_ms": medians, "against_first": verdicts })
    });
    json!({ "files": files, "rows": rows.collect::<Vec<_>>() })
}

fn print(all: &[Results], table: &[(&str, Vec<Option<Verdict>>)]) {
    let width = table
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max(8);
    let mut head = format!("{:width$}  {:>14}", "ms", clip(&all[0].label));
    for r in &all[1..] {
        head.push_str(&format!(
            "  {:>14} {:>7} {:>8} {:6}",
            clip(&r.label),
            "factor",
            "p",
            ""
        ));
    }
    println!("{}", head.trim_end());
    for (name, verdicts) in table {
        let cell = |r: &Results| {
            r.rows
                .get(*name)
                .map_or("-".into(), |s| format!("{:.4}", median(s)))
        };
        let mut line = format!("{name:width$}  {:>14}", cell(&all[0]));
        for (r, verdict) in all[1..].iter().zip(verdicts) {
            line.push_str(&format!("  {:>14}", cell(r)));
            line.push_str(&match verdict {
                Some(v) => format!(" {:>7.3} {:>8.1e} {:6}", v.shift.factor, v.shift.p, v.word),
                None => format!(" {:>7} {:>8} {:6}", "", "", ""),
            });
        }
        println!("{}", line.trim_end());
    }
    let differ = all[1..].iter().any(|r| r.machine != all[0].machine);
    if differ {
        eprintln!("the files are of different machines: factors compare these, not versions");
    }
}

/// The end of a long label.
fn clip(label: &str) -> String {
    let skip = label.chars().count().saturating_sub(14);
    label.chars().skip(skip).collect()
}

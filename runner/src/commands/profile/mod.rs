//! `cupola profile`: where the time of a run goes, as a table, a trace and a page.
//!
//! Reading order: this file (the command, the table, JSON), `trace`, `page`, `charts`.

mod charts;
mod page;
mod trace;

use crate::args::ProfileArgs;
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs};
use cupola::{Bound, Profile, ProfileOptions, StepProfile};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Runs a model, notes every step, and says where the time went.
pub fn profile(args: &ProfileArgs) -> Outcome {
    let (name, found) = match args.train {
        true => super::train::profile(&args.model, &args.compile, options(args))?,
        false => of_model(args)?,
    };
    let Some(profile) = found else {
        let what = "the reference interpreter has no kernels to measure; choose another device";
        return Err(Failure::usage(what));
    };
    let name = name.as_str();
    if let Some(path) = &args.trace {
        crate::outputs::write_whole(path, trace::document(name, &profile).to_string().as_bytes())?;
    }
    if let Some(path) = &args.html {
        crate::outputs::write_whole(path, page::page(name, &profile).as_bytes())?;
    }
    match &args.json {
        Some(to) => outputs::write_json(to, &to_json(name, &profile)),
        None => {
            print(&profile, args);
            Ok(())
        }
    }
}

fn options(args: &ProfileArgs) -> ProfileOptions {
    ProfileOptions {
        runs: args.runs as usize,
        ..ProfileOptions::default()
    }
}

/// The name of a model and where the time of its runs goes.
fn of_model(args: &ProfileArgs) -> Outcome<(String, Option<Profile>)> {
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let mut runner = model.runner(super::host(&args.compile), super::options(&args.compile)?);
    let _busy = super::busy("measuring");
    let session = runner.session(&given)?;
    session.state_mut().seed = args.compile.seed;
    let found = cupola::profile(session, &given, options(args))?;
    Ok((runner.model().name().to_string(), found))
}

/// A line of the table.
struct Row {
    name: String,
    sources: String,
    calls: usize,
    time: Duration,
    flops: u64,
    bytes: u64,
    limit: Option<Duration>,
    bound: &'static str,
}

impl Row {
    fn of(step: &StepProfile) -> Row {
        Row {
            name: step.name.clone(),
            sources: sources(step),
            calls: step.calls,
            time: step.time,
            flops: step.flops,
            bytes: step.bytes,
            limit: step.limit.map(|(limit, _)| limit),
            bound: bound(step),
        }
    }

    fn add(&mut self, step: &StepProfile) {
        self.calls += step.calls;
        self.time += step.time;
        self.flops = self.flops.saturating_add(step.flops);
        self.bytes = self.bytes.saturating_add(step.bytes);
        let both = self.limit.zip(step.limit);
        self.limit = both.map(|(sum, (limit, _))| sum + limit);
    }
}

/// What bounds a step, in a word.
fn bound(step: &StepProfile) -> &'static str {
    match step.limit {
        Some((_, Bound::Compute)) => "compute",
        Some((_, Bound::Memory)) => "memory",
        None => step.kind.name(),
    }
}

/// The source nodes of a step, the first few by name.
fn sources(step: &StepProfile) -> String {
    const SHOWN: usize = 3;
    let names = step.sources.iter().take(SHOWN);
    let mut text: Vec<String> = names.map(|(op, node)| format!("{op} {node}")).collect();
    if step.sources.len() > SHOWN {
        text.push(format!("{} more", step.sources.len() - SHOWN));
    }
    text.join(", ")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Amount per nanosecond: of bytes GB/s, of operations GFLOP/s.
fn rate(amount: u64, time: Duration) -> Option<f64> {
    (amount > 0 && time > Duration::ZERO).then(|| amount as f64 / time.as_nanos() as f64)
}

fn rows(profile: &Profile, by_name: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = match by_name {
        false => profile.steps.iter().map(Row::of).collect(),
        true => {
            let mut named: BTreeMap<&str, Row> = BTreeMap::new();
            for step in &profile.steps {
                let known = named.get_mut(step.name.as_str());
                match known {
                    Some(row) => row.add(step),
                    None => {
                        named.insert(&step.name, Row::of(step));
                    }
                }
            }
            named.into_values().collect()
        }
    };
    rows.sort_by_key(|row| std::cmp::Reverse(row.time));
    rows
}

fn print(profile: &Profile, args: &ProfileArgs) {
    println!("{}", summary(profile));
    println!(
        "{:34} {:>5} {:>9} {:>6} {:>9} {:>9} {:>7} {:>8} {:>6} {:8} sources",
        "kernel", "calls", "ms", "share", "MB", "MFLOP", "GB/s", "GFLOP/s", "limit", "bound"
    );
    let all = rows(profile, args.by_name);
    let shown = match args.rows {
        0 => all.len(),
        n => n.min(all.len()),
    };
    let share = |time: Duration| 100.0 * time.as_secs_f64() / profile.run.as_secs_f64().max(1e-12);
    let line = |row: &Row| {
        let number =
            |x: Option<f64>, digits: usize| x.map_or(String::new(), |x| format!("{x:.digits$}"));
        let limit = row
            .limit
            .map(|l| 100.0 * l.as_secs_f64() / row.time.as_secs_f64().max(1e-12));
        let name: String = row.name.chars().take(34).collect();
        println!(
            "{name:34} {:>5} {:>9.4} {:>5.1}% {:>9.3} {:>9.2} {:>7} {:>8} {:>6} {:8} {}",
            row.calls,
            millis(row.time),
            share(row.time),
            row.bytes as f64 / 1e6,
            row.flops as f64 / 1e6,
            number(rate(row.bytes, row.time), 1),
            number(rate(row.flops, row.time), 1),
            limit.map_or(String::new(), |l| format!("{l:.0}%")),
            row.bound,
            row.sources
        );
    };
    all[..shown].iter().for_each(line);
    let rest = &all[shown..];
    let overhead = profile.overhead();
    let plain = |name: String, time: Duration| {
        println!(
            "{name:34} {:>5} {:>9.4} {:>5.1}%",
            "",
            millis(time),
            share(time)
        );
    };
    if !rest.is_empty() {
        plain(
            format!("{} others", rest.len()),
            rest.iter().map(|r| r.time).sum(),
        );
    }
    plain("outside of kernels".into(), overhead);
    plain("run".into(), profile.run);
}

/// A line on the run and one on the machine.
fn summary(profile: &Profile) -> String {
    let mut text = format!(
        "run {:.3} ms, recorded {:.3} ms, {} steps; medians",
        millis(profile.run),
        millis(profile.recorded),
        profile.steps.len(),
    );
    for (device, by_device) in profile.devices.iter().zip(&profile.clocks).skip(1) {
        let how = match by_device {
            true => "by the device's own clock",
            false => "from the host, one by one: the device tells no times",
        };
        text.push_str(&format!("\nkernels on {device} are timed {how}"));
    }
    if let Some(rates) = &profile.rates {
        let read = rates
            .reads
            .iter()
            .map(|(_, rate)| format!("{:.0}", rate / 1e9));
        let read: Vec<String> = read.collect();
        text.push_str(&format!(
            "\nmachine: {:.0} GFLOP/s f32 multiply-add; reads {} GB/s (L2, L3, memory); copy {:.0} GB/s",
            rates.f32_ops / 1e9,
            read.join(", "),
            rates.copy / 1e9
        ));
    }
    text
}

fn to_json(name: &str, profile: &Profile) -> Json {
    let step = |s: &StepProfile| {
        let sources: Vec<Json> = (s.sources.iter())
            .map(|(op, node)| json!({ "op": op, "node": node }))
            .collect();
        json!({
            "plan": s.at.0, "step": s.at.1, "kind": s.kind.name(), "device": profile.devices[s.device],
            "device_clock": profile.clocks[s.device], "name": s.name, "sources": sources, "calls": s.calls, "ms": millis(s.time),
            "flops": s.flops, "bytes": s.bytes, "gb_s": rate(s.bytes, s.time), "gflop_s": rate(s.flops, s.time),
            "limit_ms": s.limit.map(|(limit, _)| millis(limit)), "bound": bound(s), "fraction": s.fraction(),
            "reads": s.reads,
        })
    };
    let rates = profile.rates.as_ref().map(|r| {
        let reads: Vec<f64> = r.reads.iter().map(|(_, rate)| rate / 1e9).collect();
        json!({ "f32_gflop_s": r.f32_ops / 1e9, "read_gb_s": reads, "copy_gb_s": r.copy / 1e9 })
    });
    json!({
        "model": name, "run_ms": millis(profile.run), "recorded_ms": millis(profile.recorded),
        "overhead_ms": millis(profile.overhead()), "machine": rates, "weight_bytes": profile.weight_bytes,
        "working_bytes": profile.memory.blocks.values().sum::<u64>(),
        "steps": profile.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

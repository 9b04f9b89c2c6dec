//! `cupola bench --suite`: measures a device, the kernels and the models of `cupola::suite` on it.
//!
//! Reading order: this file (what is measured and for how long), `results` (the file), `page` (files as a page), `forecast`
//! (what a GPU would do that is not here).

mod forecast;
pub mod page;
pub mod results;

use crate::args::{BenchArgs, CompileArgs};
use crate::fail::{Failure, Outcome};
use crate::outputs::write_whole;
use crate::significance::median;
use cupola::ir::Value;
use cupola::runtime::{DeviceInfo, Rates, processor};
use cupola::suite::{Arithmetic, Case, Group, cases};
use cupola::{DeviceSpec, Host, Options, Program, Session, Timings, timings};
use results::{LeftOut, Machine, Measured, Results, Row, SCHEMA};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// After so long no further case is begun, so that a run ends within five minutes.
const WHOLE: Duration = Duration::from_secs(270);

/// Time for the samples of a case.
const SAMPLING: Duration = Duration::from_millis(600);

/// Most samples of a case.
const SAMPLES: usize = 50;

/// Seconds of a run, at [`EXPECTED`] of what the device reaches, from which on a kernel is left out, and a model.
const LONGEST: [f64; 2] = [0.5, 2.0];

/// The part of a device's limits that is expected of a kernel when its time is foreseen.
const EXPECTED: f64 = 0.25;

/// Measures and reports.
pub fn suite(args: &BenchArgs) -> Outcome {
    let chosen = chosen(args.only.as_deref().unwrap_or_default())?;
    let options = super::options(&args.compile)?;
    if let Some(gpu) = &args.forecast {
        return forecast::forecast(&chosen, gpu, &options);
    }
    if !matches!(options.device, DeviceSpec::Cpu | DeviceSpec::Gpu(_)) {
        let what = "the suite measures one device: --device cpu, gpu or gpu:N";
        return Err(Failure::usage(what));
    }
    let results = measure(&chosen, &args.compile, options)?;
    if let Some(path) = &args.output {
        let line = serde_json::to_string(&results).unwrap_or_default() + "\n";
        write_whole(path, line.as_bytes())?;
    }
    print(&results);
    Ok(())
}

/// The cases whose name contains a text.
fn chosen(only: &str) -> Outcome<Vec<Case>> {
    let all = cases().into_iter();
    let chosen: Vec<Case> = all.filter(|c| c.name.contains(only)).collect();
    match chosen.is_empty() {
        true => Err(Failure::usage(format!("no case is named like '{only}'"))),
        false => Ok(chosen),
    }
}

fn measure(chosen: &[Case], args: &CompileArgs, options: Options) -> Outcome<Results> {
    let start = Instant::now();
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH);
    let bench = Bench::new(args, options)?;
    let bar = indicatif::ProgressBar::new(chosen.len() as u64).with_style(
        indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
    );
    let (mut rows, mut left_out) = (vec![], vec![]);
    for case in chosen {
        bar.set_message(case.name.clone());
        let found = match start.elapsed() < WHOLE {
            true => bench.row(case),
            false => Err("no time was left".to_string()),
        };
        match found {
            Ok(row) => rows.push(row),
            Err(reason) => left_out.push(LeftOut {
                name: case.name.clone(),
                reason,
            }),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Results {
        schema: SCHEMA.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        unix_time: unix_time.map_or(0, |t| t.as_secs()),
        seconds: start.elapsed().as_secs_f64(),
        machine: machine(&bench.host, &bench.options.device)?,
        measured: Measured::from(&bench.rates),
        rows,
        left_out,
    })
}

/// A device with what was measured of it.
struct Bench {
    host: Arc<Host>,
    options: Options,
    rates: Rates,
}

impl Bench {
    /// Opens the device and measures it.
    fn new(args: &CompileArgs, options: Options) -> Outcome<Bench> {
        let host = super::host(args);
        let all = cases();
        let least = all.iter().min_by(|a, b| a.bytes.total_cmp(&b.bytes));
        let least = least.unwrap_or_else(|| unreachable!("bug: a suite without cases"));
        let program = Program::compile(least.build()?.graph, &host, &options)?;
        let rates = program.measure().ok_or_else(|| {
            Failure::new(1, "run", format!("{} cannot be measured", options.device))
        })?;
        Ok(Bench {
            host,
            options,
            rates,
        })
    }

    /// The least seconds for a case.
    fn limit(&self, case: &Case) -> f64 {
        let rates = &self.rates;
        let arithmetic = match case.arithmetic {
            Arithmetic::F32 => rates.f32_ops,
            Arithmetic::F16 => {
                let half = rates.f16_ops.unwrap_or(0.0).max(rates.f32_ops);
                rates.matrix_ops.unwrap_or(0.0).max(half)
            }
        };
        let memory = match case.bytes as u64 {
            size if rates.read_rate(size) > rates.copy => rates.read_rate(size),
            _ => rates.copy,
        };
        (case.flops / arithmetic).max(case.bytes / memory)
    }

    /// Measures a case, or says why not.
    fn row(&self, case: &Case) -> Result<Row, String> {
        let limit = self.limit(case);
        let expected = limit / EXPECTED;
        if expected > LONGEST[usize::from(case.group == Group::Model)] {
            return Err(format!("a run would take about {expected:.1} s"));
        }
        let built = case.build().map_err(|e| e.to_string())?;
        let program = Program::compile(built.graph, &self.host, &self.options);
        let program = program.map_err(|e| e.to_string())?;
        let fallback = program.fallbacks();
        let inputs: BTreeMap<String, Value> = (built.inputs.into_iter())
            .map(|(name, value)| (name, value.into()))
            .collect();
        let mut session = Session::new(Arc::new(program));
        let found = timings(&mut session, &inputs, SAMPLING, SAMPLES).map_err(|e| e.to_string())?;
        let found = found.ok_or("the device has no kernels")?;
        Ok(row_of(case, &found, limit, fallback))
    }
}

fn row_of(case: &Case, found: &Timings, limit: f64, fallback: Vec<String>) -> Row {
    let samples = match case.group {
        Group::Model => &found.runs,
        _ => &found.kernels,
    };
    let millis = |all: &[Duration]| -> Vec<f64> {
        all.iter()
            .map(|t| t.as_secs_f64().max(1e-9) * 1e3)
            .collect()
    };
    let samples_ms = millis(samples);
    let median_ms = median(&samples_ms);
    let giga = |amount: f64| amount / median_ms / 1e6;
    Row {
        name: case.name.clone(),
        group: case.group.name().into(),
        median_ms,
        run_ms: median(&millis(&found.runs)),
        kernels: found.launches,
        flops: case.flops,
        bytes: case.bytes,
        gflop_s: giga(case.flops),
        gb_s: giga(case.bytes),
        limit_ms: limit * 1e3,
        fraction: limit * 1e3 / median_ms,
        fallback,
        samples_ms,
    }
}

fn machine(host: &Host, device: &DeviceSpec) -> Outcome<Machine> {
    let facts = |info: &DeviceInfo| info.facts.iter().cloned().collect::<BTreeMap<_, _>>();
    let own = host.devices()?.into_iter().find(|d| d.spec == *device);
    let processor = processor();
    let mut host = facts(&processor);
    host.insert("name".into(), processor.name.clone());
    let own = own.unwrap_or(processor);
    Ok(Machine {
        device: device.to_string(),
        facts: facts(&own),
        name: own.name,
        host,
    })
}

fn print(results: &Results) {
    let m = &results.measured;
    println!("{} ({})", results.machine.name, results.machine.device);
    println!("{}", summary(m));
    let width = results.rows.iter().map(|r| r.name.len()).max().unwrap_or(4);
    println!(
        "{:width$} {:>11} {:>10} {:>9} {:>9}",
        "", "median ms", "GFLOP/s", "GB/s", "of limit"
    );
    for r in &results.rows {
        let note = match r.fallback.is_empty() {
            true => String::new(),
            false => format!("  partly on the CPU: {}", r.fallback.join(", ")),
        };
        println!(
            "{:width$} {:>11.4} {:>10.1} {:>9.1} {:>8.0}%{note}",
            r.name,
            r.median_ms,
            r.gflop_s,
            r.gb_s,
            100.0 * r.fraction
        );
    }
    for l in &results.left_out {
        println!("{:width$} left out: {}", l.name, l.reason);
    }
    println!("{:.0} s", results.seconds);
}

/// What was measured of a device, in a line.
pub fn summary(m: &Measured) -> String {
    let optional = |name: &str, rate: Option<f64>| {
        rate.map_or(String::new(), |r| format!(", {name} {r:.0} GFLOP/s"))
    };
    format!(
        "copy {:.1} GB/s, f32 {:.0} GFLOP/s{}{}, submission {:.0} us, kernel {:.1} us",
        m.copy_gb_s,
        m.f32_gflop_s,
        optional("f16", m.f16_gflop_s),
        optional("matrix units", m.matrix_gflop_s),
        m.submit_us,
        m.dispatch_us
    )
}

//! Times the ladder of kernels and prints a table, or with `--json FILE` writes what `cupola bench compare` reads: samples
//! and the facts of the machine.
//!
//! `cargo run --release -p cupola-benches -- [--threads N] [--match TEXT] [--json FILE]`

use anyhow::{Context, Result, bail};
use cupola::Host;
use cupola::runtime::{Rates, processor};
use cupola_benches::{Case, ladder};
use serde_json::{Value as Json, json};
use std::time::{Duration, Instant};

/// Time spent on a case, half a second; five runs at least.
const TIME: Duration = Duration::from_millis(500);

/// Most samples of a case that a file keeps, evenly spaced.
const KEPT: usize = 200;

#[derive(Default)]
struct Arguments {
    threads: usize,
    only: String,
    json: Option<String>,
}

fn arguments() -> Result<Arguments> {
    let mut parsed = Arguments::default();
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || {
            given
                .next()
                .with_context(|| format!("{name} takes a value"))
        };
        match name.as_str() {
            "--threads" => parsed.threads = value()?.parse().context("--threads")?,
            "--match" => parsed.only = value()?,
            "--json" => parsed.json = Some(value()?),
            _ => bail!("there are --threads N, --match TEXT and --json FILE"),
        }
    }
    Ok(parsed)
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let host = Host::new();
    let mut rates = None;
    let mut rows = vec![];
    println!(
        "{:34} {:>10} {:>9} {:>9} {:>9}",
        "", "median ms", "GFLOP/s", "GB/s", "of limit"
    );
    for case in ladder()?
        .iter()
        .filter(|c| c.name.contains(&arguments.only))
    {
        let (rate, samples) = time(case, &host, arguments.threads, rates.take())?;
        let row = row(case, &rate, &samples);
        let get = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:34} {:>10.4} {:>9.1} {:>9.1} {:>8.0}%",
            case.name,
            get("median_ms"),
            get("gflop_s"),
            get("gb_s"),
            100.0 * get("fraction")
        );
        rates = Some(rate);
        rows.push(row);
    }
    if let Some(file) = arguments.json {
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"), "threads": arguments.threads,
            "machine": machine(), "measured": rates.as_ref().map(measured), "rows": rows,
        });
        std::fs::write(&file, document.to_string()).with_context(|| file)?;
    }
    Ok(())
}

/// The machine's limits, measured by the first case, and milliseconds of each run.
fn time(
    case: &Case,
    host: &Host,
    threads: usize,
    known: Option<Rates>,
) -> Result<(Rates, Vec<f64>)> {
    let (mut session, inputs) = case.session(host, threads)?;
    let rates = match known {
        Some(rates) => rates,
        None => session
            .program()
            .measure()
            .context("the processor measures itself")?,
    };
    for _ in 0..3 {
        session.run(inputs.clone())?;
    }
    let mut samples = vec![];
    let start = Instant::now();
    while samples.len() < 5 || start.elapsed() < TIME {
        let inputs = inputs.clone();
        let one = Instant::now();
        let outputs = session.run(inputs)?;
        samples.push(one.elapsed().as_secs_f64() * 1e3);
        drop(outputs);
    }
    Ok((rates, samples))
}

fn row(case: &Case, rates: &Rates, samples: &[f64]) -> Json {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let kept: Vec<f64> = samples
        .iter()
        .step_by(samples.len().div_ceil(KEPT))
        .copied()
        .collect();
    let per_second = |amount: f64| amount / median / 1e6;
    json!({
        "name": case.name, "median_ms": median, "gflop_s": per_second(case.flops), "gb_s": per_second(case.bytes),
        "fraction": case.limit(rates).as_secs_f64() * 1e3 / median, "samples_ms": kept,
    })
}

/// What results are compared with: another machine gives other results.
fn machine() -> Json {
    let processor = processor();
    let facts = processor.facts.into_iter().map(|(k, v)| (k, json!(v)));
    let name = ("name".to_string(), json!(processor.name));
    Json::Object(std::iter::once(name).chain(facts).collect())
}

fn measured(rates: &Rates) -> Json {
    let reads: Vec<f64> = rates.reads.iter().map(|(_, rate)| rate / 1e9).collect();
    json!({ "f32_gflop_s": rates.f32_ops / 1e9, "read_gb_s": reads, "copy_gb_s": rates.copy / 1e9 })
}

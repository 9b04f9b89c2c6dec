//! `cupola tuning`: tables of kernels that were timed; and the flags `--tune` and `--tune-table` of other commands.

use crate::args::{CompileArgs, TuningArgs};
use crate::fail::{Failure, Outcome};
use crate::outputs;
use cupola::runtime::{RuntimeError, Table, TuneObserver, TuneOptions, Tuning};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What the command line says of tuning; `usual` is when it is to be done where that says nothing.
pub fn options(args: &CompileArgs, usual: Option<Tuning>) -> TuneOptions {
    TuneOptions {
        mode: match (args.deterministic, args.tune) {
            (true, _) => Some(Tuning::Never),
            (false, true) => Some(Tuning::First),
            (false, false) => usual,
        },
        table: args.tune_table.clone(),
        observer: Some(Arc::new(Progress::default())),
    }
}

/// A bar on standard error, on a terminal only.
#[derive(Debug, Default)]
struct Progress(Mutex<Option<ProgressBar>>);

impl TuneObserver for Progress {
    fn timing(&self, done: usize, total: usize, class: &str) {
        let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if done == total {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
            return;
        }
        let bar = bar.get_or_insert_with(|| ProgressBar::new(total as u64).with_style(style()));
        bar.set_position(done as u64);
        bar.set_message(class.to_string());
    }
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("tuning {bar:30} {pos}/{len} {msg}");
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Shows tables and writes them joined.
pub fn tuning(args: &TuningArgs) -> Outcome {
    let mut joined = Table::default();
    for file in &args.files {
        joined.merge(read(file)?);
    }
    if let Some(path) = &args.merge {
        joined.write(path).map_err(|e| failure(&e))?;
    }
    match &args.json {
        Some(to) => outputs::write_json(to, &json!(joined)),
        None => {
            print(&joined);
            Ok(())
        }
    }
}

fn read(path: &Path) -> Outcome<Table> {
    // A table that is to be added to need not exist, one that is to be shown must.
    path.metadata()
        .map_err(|e| Failure::io("cannot read", path, e))?;
    Table::read(path).map_err(|e| failure(&e))
}

fn failure(error: &impl ToString) -> Failure {
    RuntimeError::Table(error.to_string()).into()
}

fn print(table: &Table) {
    for entry in &table.devices {
        let d = &entry.device;
        println!("{} ({}, {}, {})", d.adapter, d.driver, d.interface, d.tier);
        for (class, winner) in &entry.problems {
            println!(
                "  {class}\n    {:.1} us  {}",
                winner.seconds * 1e6,
                winner.plan
            );
            if winner.predicted != winner.plan {
                println!(
                    "    {:.1} us  {} was predicted",
                    winner.predicted_seconds * 1e6,
                    winner.predicted
                );
            }
        }
    }
}

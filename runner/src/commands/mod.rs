//! One file per command.

mod bench;
mod check;
mod compare;
mod conformance;
mod convert;
mod devices;
mod explain;
mod inspect;
mod plan;
mod run;

use crate::args::{Command, CompileArgs};
use crate::fail::{Failure, Outcome};
use crate::inputs::parse_set;
use cupola::{DeviceSpec, Host, Model, ModelOptions, Options};
use std::path::Path;
use std::sync::Arc;

/// Runs a command.
pub fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Devices(a) => devices::devices(&a),
        Command::Doctor(a) => devices::doctor(&a),
        Command::Inspect(a) => inspect::inspect(&a),
        Command::Bench(a) => bench::bench(&a),
        Command::Explain(a) => explain::explain(&a),
        Command::Plan(a) => plan::plan(&a),
        Command::Compare(a) => compare::compare(&a),
        Command::Bisect(a) => compare::bisect(&a),
        Command::Convert(a) => convert::convert(&a),
        Command::Check(a) => check::check(&a),
        Command::Run(a) => run::run(&a),
        Command::Conformance(a) => conformance::conformance(&a),
    }
}

/// Compile options from the command line.
pub fn options(args: &CompileArgs) -> Outcome<Options> {
    let device: DeviceSpec = args.device.parse().map_err(Failure::usage)?;
    Ok(Options {
        device,
        level: args.level,
        threads: args.threads,
        no_fallback: args.no_fallback,
        ..Options::default()
    })
}

/// Opens a model with the dimensions of `--set`.
pub fn open(path: &Path, args: &CompileArgs) -> Outcome<Model> {
    Ok(Model::open_with(
        path,
        ModelOptions {
            set: parse_set(&args.set)?,
        },
    )?)
}

/// The devices of this process.
pub fn host() -> Arc<Host> {
    Arc::new(Host::new())
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "panic: {}",
        text.unwrap_or_else(|| "of unknown kind".into())
    )
}

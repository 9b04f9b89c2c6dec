//! One file per command.

mod bench;
mod bench_compare;
mod bench_worker;
mod bisect;
mod check;
mod compare;
mod compile;
mod conformance;
mod convert;
mod devices;
mod explain;
mod inspect;
mod language;
mod plan;
mod profile;
mod run;
mod suite;
mod train;
mod tuning;

use crate::args::{Command, CompileArgs, Precision};
use crate::fail::{Failure, Outcome};
use crate::inputs::parse_set;
use crate::outputs;
use crate::probe::ChildProber;
use cupola::runtime::{TuneOptions, Tuning};
use cupola::{
    Cache, DeviceSpec, Host, HostOptions, Keep, LanguageOptions, Model, ModelOptions, Options,
};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Runs a command. Where a model needs what is not implemented, `--json` gets the list of it.
pub fn dispatch(command: Command) -> Outcome {
    let json = json_target(&command).map(ToString::to_string);
    let outcome = start(command);
    if let (Err(failure), Some(to)) = (&outcome, json)
        && !failure.missing.is_empty()
    {
        let document = json!({ "error": failure.code, "missing": failure.missing });
        outputs::write_json(&to, &document)?;
    }
    outcome
}

/// Where `--json` goes.
fn json_target(command: &Command) -> Option<&str> {
    let json = match command {
        Command::Devices(a) | Command::Doctor(a) => &a.json,
        Command::Inspect(a) => &a.json,
        Command::Bench(a) => &a.json,
        Command::Explain(a) => &a.json,
        Command::Plan(a) => &a.json,
        Command::Profile(a) => &a.json,
        Command::Compare(a) => &a.json,
        Command::Bisect(a) => &a.json,
        Command::Check(a) => &a.json,
        Command::Run(a) => &a.json,
        Command::Tuning(a) => &a.json,
        Command::Generate(a) => &a.json,
        Command::Tokenize(a) => &a.json,
        Command::Perplexity(a) => &a.json,
        Command::Embed(a) => &a.json,
        Command::Eval(a) => &a.json,
        // Its JSON is lines, written as they come.
        Command::Train(_)
        | Command::Chat(_)
        | Command::Serve(_)
        | Command::Compile(_)
        | Command::Convert(_)
        | Command::Conformance(_)
        | Command::TryGpu(_) => return None,
    };
    json.as_deref()
}

fn start(command: Command) -> Outcome {
    match command {
        Command::Devices(a) => devices::devices(&a),
        Command::Doctor(a) => devices::doctor(&a),
        Command::TryGpu(a) => devices::try_gpu(&a),
        Command::Inspect(a) => inspect::inspect(&a),
        Command::Bench(a) => bench::bench(&a),
        Command::Explain(a) => explain::explain(&a),
        Command::Plan(a) => plan::plan(&a),
        Command::Profile(a) => profile::profile(&a),
        Command::Compare(a) => compare::compare(&a),
        Command::Bisect(a) => bisect::bisect(&a),
        Command::Compile(a) => compile::compile(&a),
        Command::Convert(a) => convert::convert(&a),
        Command::Check(a) => check::check(&a),
        Command::Run(a) => run::run(&a),
        Command::Conformance(a) => conformance::conformance(&a),
        Command::Tuning(a) => tuning::tuning(&a),
        Command::Generate(a) => language::generate(&a),
        Command::Chat(a) => language::chat(&a),
        Command::Embed(a) => language::embed(&a),
        Command::Serve(a) => language::serve(&a),
        Command::Tokenize(a) => language::tokenize(&a),
        Command::Perplexity(a) => language::perplexity(&a),
        Command::Train(a) => train::train(&a),
        Command::Eval(a) => train::eval(&a),
    }
}

/// Compile options from the command line.
pub fn options(args: &CompileArgs) -> Outcome<Options> {
    options_for(&args.device, args)
}

/// As [`options`], for another device.
pub fn options_for(device: &str, args: &CompileArgs) -> Outcome<Options> {
    let device: DeviceSpec = device.parse().map_err(Failure::usage)?;
    Ok(Options {
        device,
        level: args.level,
        threads: args.threads,
        precision: precision(args.precision),
        no_fallback: args.no_fallback,
        memory: args.memory,
        deterministic: args.deterministic,
        fault: args.fault,
        keep: Keep {
            cache: Cache::from_environment(),
            ..Keep::default()
        },
        ..Options::default()
    })
}

fn precision(asked: Precision) -> cupola::Precision {
    match asked {
        Precision::Model => cupola::Precision::Model,
        Precision::F32 => cupola::Precision::F32,
        Precision::Bf16 => cupola::Precision::Bf16,
        Precision::F16 => cupola::Precision::F16,
        Precision::Int8 => cupola::Precision::Int8,
    }
}

/// A spinner on standard error for as long as the guard lives, on a terminal only.
pub fn busy(what: &str) -> Busy {
    let bar = indicatif::ProgressBar::new_spinner().with_message(what.to_string());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    Busy(bar)
}

/// Clears its spinner at the end.
pub struct Busy(indicatif::ProgressBar);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Opens a model with the dimensions of `--set`.
pub fn open(path: &Path, args: &CompileArgs) -> Outcome<Model> {
    open_as(path, args, LanguageOptions::default())
}

/// As [`open`], with a say in how a language model keeps keys and values.
pub fn open_as(path: &Path, args: &CompileArgs, language: LanguageOptions) -> Outcome<Model> {
    let _busy = busy("loading");
    Ok(Model::open_with(
        path,
        ModelOptions {
            set: parse_set(&args.set)?,
            language,
            ..ModelOptions::default()
        },
    )?)
}

/// The devices of this process, where kernels are chosen by what is known of them, and timed for that only when asked.
pub fn host(args: &CompileArgs) -> Arc<Host> {
    host_with(tuning::options(args, Some(Tuning::Known)))
}

/// The devices of this process.
pub fn host_with(tune: TuneOptions) -> Arc<Host> {
    Arc::new(Host::with(HostOptions {
        cache: Cache::from_environment(),
        prober: Some(Arc::new(ChildProber)),
        tune,
        ..HostOptions::default()
    }))
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

//! `cupola train` and `cupola eval`.
//!
//! Reading order: this file (the commands), `spread` (replicas and processes), `watch` (what is told while a run goes on), `page` (the
//! report), `trace`.

mod page;
mod spread;
mod trace;
mod watch;

use crate::args::{Amp, CompileArgs, EvalArgs, RecipeArgs, TrainArgs, Which};
use crate::fail::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::{inputs, npy, outputs};
use cupola::train::{self, Checkpoint, Config, Ended, Parts, Readers, Scores, Trainer};
use cupola::{DType, MemoryPlan, Profile, ProfileOptions, Tensor, TensorType, ValueType};
use cupola_mpi::Job;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use watch::Watch;

/// Trains a model.
pub fn train(args: &TrainArgs) -> Outcome {
    match args.mpi {
        true => spread::as_process(|job| run(args, Some(job))),
        false => run(args, None),
    }
}

fn run(args: &TrainArgs, job: Option<&Arc<Job>>) -> Outcome {
    let mut config = configuration(args)?;
    // There is nothing to save before the first step.
    let interrupt = Interrupt::watch();
    interrupt.set_idle(true);
    let begun = match &args.resume {
        Some(path) => {
            let own = config.checkpoint.folder.clone();
            Some(Checkpoint::open(&path.clone().or(own).unwrap_or_default())?)
        }
        None => None,
    };
    if let (None, Some(begun)) = (config.shards, &begun) {
        config.shards = begun.config.shards;
    }
    let parts = open(&config)?;
    let mut trainer = {
        let _busy = super::busy("compiling");
        let spread = spread::places(&config, &args.compile, job)?;
        Trainer::spread(config, parts, spread)?
    };
    if let Some(begun) = &begun {
        trainer.resume(begun)?;
    }
    if args.trace.is_some() {
        trainer.record(trace::STEPS);
    }
    interrupt.set_idle(false);
    let ended = match trainer.is_first() {
        true => run_first(args, &mut trainer, &interrupt)?,
        false => trainer.run(&mut |_| ControlFlow::Continue(()))?,
    };
    if let (true, Some(path)) = (trainer.is_first(), &args.trace) {
        let recorded = trainer.recorded().unwrap_or_default();
        outputs::write_json(
            &path.display().to_string(),
            &trace::document(trainer.program(), &recorded),
        )?;
    }
    trainer.finish()?;
    match ended {
        Ended::Done | Ended::Early => Ok(()),
        Ended::Stopped => Err(Failure::new(
            1,
            "run",
            "stopped by Ctrl-C; --resume goes on from the checkpoint",
        )),
    }
}

/// Trains, and tells what happens; then what the test samples say, and the files that are asked for.
fn run_first(args: &TrainArgs, trainer: &mut Trainer, interrupt: &Interrupt) -> Outcome<Ended> {
    let mut watch = Watch::new(trainer, args.json.as_deref())?;
    let ended = trainer.run(&mut |event| watch.hear(&event, interrupt))?;
    let test = trainer.parts().test.clone();
    let test = match test.len() {
        0 => None,
        _ => Some(trainer.evaluate(&test)?),
    };
    watch.finish(ended, test.as_ref())?;
    let paths = trainer.config().export.clone();
    for path in paths.iter().chain(&args.export) {
        trainer.export(path)?;
    }
    if let Some(path) = &args.html {
        let page = page::page(trainer, &watch.history, test.as_ref());
        outputs::write_whole(path, page.as_bytes())?;
    }
    Ok(ended)
}

/// The configuration with what the command line says otherwise.
fn configuration(args: &TrainArgs) -> Outcome<Config> {
    let path = &args.config;
    if !path.exists() {
        let what = format!("{} does not exist", path.display());
        return Err(Failure::usage(what));
    }
    let is_toml = path.extension().is_some_and(|e| e == "toml");
    let mut config = match is_toml {
        true => Config::open(path)?,
        false => {
            let mut config = Config::default();
            let stem = path.file_stem().unwrap_or_default();
            config.name = stem.to_string_lossy().into_owned();
            config.model.file = Some(path.clone());
            config
        }
    };
    let own = config.clone();
    override_by(&mut config, &args.run);
    if args.compile.seed != 0 {
        config.seed = args.compile.seed;
    }
    if let Some(folder) = &args.checkpoints {
        config.checkpoint.folder = Some(folder.clone());
    }
    // A checkpoint has them too, and may be used from elsewhere.
    config.place(Path::new(""));
    // What a sound file does not say is wrong with the command line.
    match config.check() {
        Ok(()) => Ok(config),
        Err(e) if !is_toml || own.check().is_ok() => Err(Failure::usage(e.to_string())),
        Err(e) => Err(e.into()),
    }
}

fn override_by(config: &mut Config, args: &RecipeArgs) {
    if !args.data.is_empty() {
        config.data.files.clone_from(&args.data);
    }
    let texts = [
        (&args.loss, &mut config.loss),
        (&args.optim, &mut config.optim),
        (&args.schedule, &mut config.schedule),
    ];
    for (given, own) in texts {
        if let Some(given) = given {
            own.clone_from(given);
        }
    }
    if let Some(share) = args.validation {
        config.data.validation = share;
    }
    if let Some(amp) = args.amp {
        config.amp = Some(match amp {
            Amp::Bf16 => train::Amp::Bf16,
            Amp::F16 => train::Amp::F16,
        });
    }
    config.double |= args.double;
    config.batch = args.batch.unwrap_or(config.batch);
    // Either bound alone replaces both of the configuration.
    if args.epochs.is_some() || args.steps.is_some() {
        config.epochs = args.epochs;
        config.steps = args.steps;
    }
    if !args.metric.is_empty() {
        config.metrics.clone_from(&args.metric);
    }
    config.replicas = args.replicas.or(config.replicas);
    config.shards = args.shards.or(config.shards);
    config.sync_batch_norm |= args.sync_batch_norm;
    if args.output.is_some() {
        config.model.output.clone_from(&args.output);
    }
}

/// The memory that steps of a configuration need.
pub fn plan(
    path: &Path,
    compile: &CompileArgs,
    sizes: &BTreeMap<String, i64>,
) -> Outcome<MemoryPlan> {
    let config = Config::open(path)?;
    let parts = open(&config)?;
    let (host, options) = (super::host(compile), super::options(compile)?);
    Ok(train::plan(&config, &parts, &host, &options, sizes)?)
}

/// The name of a configuration and where the time of its steps goes.
pub fn profile(
    path: &Path,
    compile: &CompileArgs,
    options: ProfileOptions,
) -> Outcome<(String, Option<Profile>)> {
    let config = Config::open(path)?;
    let name = config.name.clone();
    let parts = open(&config)?;
    let host = super::host(compile);
    let mut trainer = Trainer::new(config, parts, host, &super::options(compile)?)?;
    let _busy = super::busy("measuring");
    Ok((name, trainer.profile(options)?))
}

/// A picture as bytes `[channels, height, width]`.
fn picture(path: &Path, extents: [usize; 3]) -> Result<Tensor, String> {
    let ty = ValueType::from(TensorType::new(DType::U8, extents));
    inputs::image_input(path, "x", &ty, &BTreeMap::new()).map_err(|e| without_path(e.message, path))
}

/// A message whose reader says the path too.
fn without_path(message: String, path: &Path) -> String {
    let begin = format!("{}: ", path.display());
    message
        .strip_prefix(&begin)
        .map(str::to_owned)
        .unwrap_or(message)
}

/// Calls with what reads pictures, arrays and tokens.
fn with_readers<T>(
    tokenizer: Option<&Path>,
    then: impl FnOnce(&Readers) -> cupola::Result<T>,
) -> Outcome<T> {
    let array = |path: &Path| npy::read(path).map_err(|e| without_path(e.message, path));
    let tokenizer = tokenizer.map(cupola::language::tokenizer).transpose()?;
    let encode = |text: &str| match &tokenizer {
        Some(t) => t.encode(text, false, false).map_err(|e| e.to_string()),
        None => Ok(vec![]),
    };
    let kinds = tokenizer.as_ref().map(|t| t.vocab_len());
    let readers = Readers {
        image: &picture,
        npy: &array,
        tokens: kinds.map(|kinds| (&encode as _, kinds)),
    };
    Ok(then(&readers)?)
}

/// The samples of a configuration.
fn open(config: &Config) -> Outcome<Parts> {
    let _busy = super::busy("reading data");
    with_readers(config.data.tokenizer.as_deref(), |readers| {
        Parts::open(config, readers)
    })
}

/// Measures a trained model.
pub fn eval(args: &EvalArgs) -> Outcome {
    let mut checkpoint = Checkpoint::open(&train::checkpoint_path(&args.checkpoint)?)?;
    if !args.metric.is_empty() {
        checkpoint.config.metrics.clone_from(&args.metric);
    }
    let config = &checkpoint.config;
    let part = match args.data.is_empty() {
        true => {
            let parts = open(config)?;
            let usual = match parts.test.len() {
                0 => Which::Validation,
                _ => Which::Test,
            };
            match args.part.unwrap_or(usual) {
                Which::Train => parts.train,
                Which::Validation => parts.validation,
                Which::Test => parts.test,
            }
        }
        false => with_readers(config.data.tokenizer.as_deref(), |readers| {
            Parts::open_others(&checkpoint, &args.data, readers)
        })?,
    };
    if part.len() == 0 {
        let what = "that part of the data has no samples; --part or --data names others";
        return Err(Failure::usage(what));
    }
    let scores = evaluate(&checkpoint, &part, &args.compile)?;
    for path in &args.export {
        train::export_checkpoint(&checkpoint, &part.data, path)?;
    }
    let document = scores_json(&scores, checkpoint.progress.step);
    match &args.json {
        Some(to) => outputs::write_json(to, &document),
        None => {
            println!("{} samples: {}", scores.samples, scores_text(&scores));
            Ok(())
        }
    }
}

fn evaluate(
    checkpoint: &Checkpoint,
    part: &cupola::train::parts::data::Part,
    compile: &CompileArgs,
) -> Outcome<Scores> {
    let _busy = super::busy("evaluating");
    let (host, options) = (super::host(compile), super::options(compile)?);
    Ok(train::evaluate_checkpoint(
        checkpoint, part, &host, &options,
    )?)
}

/// `loss 0.1234, accuracy 0.98`.
fn scores_text(scores: &Scores) -> String {
    let mut text = format!("loss {:.6}", scores.loss);
    for (metric, value) in &scores.metrics {
        text.push_str(&format!(", {} {value:.4}", metric.name()));
    }
    text
}

/// Results as JSON; what is no number is null.
fn scores_json(scores: &Scores, step: u64) -> Json {
    let mut document = json!({ "step": step, "samples": scores.samples, "loss": scores.loss });
    for (metric, value) in &scores.metrics {
        document[metric.name()] = json!(value);
    }
    document
}

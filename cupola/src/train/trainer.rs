//! The loop: batches go in, parameters change, and now and then somebody looks.

use super::assemble::{Assembled, feed};
use super::build::{build, dealing, total_steps};
use super::checkpoint::{self, Checkpoint, Progress};
use super::config::{Config, wrong};
use super::dataset::Parts;
use super::evaluate::{Scores, evaluate, graph_of, inputs_of};
use super::event::{Ended, Event, Listener, StepReport};
use super::recipe::{self, Rates};
use super::team::{Spread, Team};
use super::{blame, export};
use crate::error::{Error, Result};
use crate::profile::{Profile, ProfileOptions, profile};
use crate::runner::Options;
use cupola_ir::{Tensor, TensorType};
use cupola_runtime::{Host, Program, Recording, Request, RuntimeError};
use cupola_train::data::{Batch, Loader, Part, Position};
use cupola_train::metrics::Metric;
use cupola_train::{SHARE, TrainStep};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Steps in a row that may be left out for infinities before that counts as a failure: the scale has gone from its first
/// value to less than any useful one long before.
const MOST_SKIPPED: u64 = 100;

/// A training run.
pub struct Trainer {
    config: Config,
    parts: Parts,
    model: Assembled,
    step: TrainStep,
    team: Team,
    inputs: Vec<(String, TensorType)>,
    host: Arc<Host>,
    options: Options,
    eval: Option<Arc<Program>>,
    rates: Rates,
    metrics: Vec<Metric>,
    progress: Progress,
    skipped: u64,
    record_until: Option<u64>,
    recorded: Option<Recording>,
}

impl Trainer {
    /// Builds and compiles the step of a configuration for its samples, with first weights by the seed.
    ///
    /// # Errors
    /// What is wrong with the configuration, the model or the data; what compilation finds.
    pub fn new(
        config: Config,
        parts: Parts,
        host: Arc<Host>,
        options: &Options,
    ) -> Result<Trainer> {
        Trainer::spread(config, parts, Spread::alone(host, options))
    }

    /// As [`Trainer::new`], on several replicas. In every process but the first the run writes nothing and measures nothing.
    ///
    /// # Errors
    /// As [`Trainer::new`], and numbers of replicas, shards and samples that do not fit together.
    pub fn spread(mut config: Config, parts: Parts, spread: Spread) -> Result<Trainer> {
        let shards = spread.shards(&config)?;
        config.shards = Some(shards);
        let Some((host, options)) = spread.places.first().cloned() else {
            return Err(wrong("a run needs a device"));
        };
        let (model, step, rate) = build(&config, &parts, &host, &options)?;
        let team = Team::new(&step.graph, spread, config.seed, shards)?;
        let inputs = inputs_of(team.sessions[0].program());
        let rates = Rates::parse(
            &config.schedule,
            total_steps(&config, &parts.train),
            config.epochs.unwrap_or(0),
        )?;
        let mut trainer = Trainer {
            metrics: config.metrics()?,
            progress: Progress::new(rate),
            config,
            parts,
            model,
            step,
            team,
            inputs,
            host,
            options,
            eval: None,
            rates,
            skipped: 0,
            record_until: None,
            recorded: None,
        };
        trainer.reset()?;
        trainer.check_batches()?;
        Ok(trainer)
    }

    /// Parameters and the optimiser's memory as at the beginning.
    fn reset(&mut self) -> Result<()> {
        for slot in &self.step.slots {
            let value = self.step.initial(slot, self.config.seed)?;
            for session in &mut self.team.sessions {
                session.state_mut().set_slot(&slot.name, value.clone())?;
            }
        }
        for session in &mut self.team.sessions {
            session.state_mut().run = 0;
        }
        Ok(())
    }

    fn check_batches(&self) -> Result<()> {
        match self.batches() {
            0 => {
                let what = format!(
                    "{} samples to train on make no whole batch of {}",
                    self.parts.train.len(),
                    self.config.batch
                );
                Err(wrong(what))
            }
            _ => Ok(()),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The samples.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// How far the run is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        self.model.net.trainable_len()
    }

    /// Batches of an epoch.
    pub fn batches(&self) -> usize {
        dealing(&self.config).batches(self.parts.train.len())
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        total_steps(&self.config, &self.parts.train)
    }

    /// The program of a step.
    pub fn program(&self) -> &Arc<Program> {
        self.team.sessions[0].program()
    }

    /// Goes on where a checkpoint was written. Model, optimiser and batches must be those of its run; epochs, steps and
    /// what is written may be others.
    ///
    /// # Errors
    /// A checkpoint of another model, seed or order of samples.
    pub fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let was = &checkpoint.config;
        let now = &self.config;
        let differs = |what: &str| {
            let what = format!("the checkpoint is of a run with another {what}");
            Err(Error::Checkpoint(what))
        };
        if was.seed != now.seed {
            return differs("seed");
        }
        if was.batch != now.batch || was.shuffle != now.shuffle || was.drop_last != now.drop_last {
            return differs("order of samples (batch, shuffle, drop_last)");
        }
        if was.loss != now.loss || was.amp != now.amp || was.double != now.double {
            return differs("loss, amp or double");
        }
        if was.shards.unwrap_or(1) != now.shards.unwrap_or(1) {
            return differs("number of shards");
        }
        if was.sync_batch_norm != now.sync_batch_norm {
            return differs("sync_batch_norm");
        }
        self.restore(checkpoint)?;
        Ok(())
    }

    /// Takes state and position of a checkpoint.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for slot in &self.step.slots {
            let refused = |what: String| Error::Checkpoint(format!("slot '{}' {what}", slot.name));
            let value = checkpoint.slots.get(&slot.name);
            let value = value.ok_or_else(|| refused("is not in the checkpoint".into()))?;
            if value.ty() != slot.ty {
                return Err(refused(format!(
                    "is {} in the checkpoint, not {}",
                    value.ty(),
                    slot.ty
                )));
            }
            for session in &mut self.team.sessions {
                session.state_mut().set_slot(&slot.name, value.clone())?;
            }
        }
        if let Some(name) =
            (checkpoint.slots.keys()).find(|n| self.step.slots.iter().all(|s| s.name != **n))
        {
            let what =
                format!("slot '{name}' of the checkpoint is none of this model and optimiser");
            return Err(Error::Checkpoint(what));
        }
        for session in &mut self.team.sessions {
            session.state_mut().run = checkpoint.progress.runs;
        }
        self.progress = checkpoint.progress.clone();
        if let Some(plateau) = &mut self.rates.plateau {
            plateau.memory = self.progress.plateau();
        }
        self.skipped = 0;
        Ok(())
    }

    /// Everything that a run needs to go on.
    ///
    /// # Errors
    /// A device that fails.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let saved = self.team.leader().state_mut().save()?;
        let slots = saved.into_iter().filter_map(|(name, value)| {
            let tensor = value.as_tensor()?.clone();
            Some((name, tensor))
        });
        Ok(Checkpoint {
            config: self.config.clone(),
            progress: self.progress.clone(),
            classes: self.parts.train.data.classes.clone(),
            vocabulary: self.parts.train.data.vocabulary.clone(),
            slots: slots.collect(),
        })
    }

    /// Does one step.
    ///
    /// # Errors
    /// What the run finds; [`Error::NotFinite`] for a loss that is no number, with the node where that began.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let began = Instant::now();
        let lr = self.lr();
        let outputs = self.launch(batch, lr)?;
        let output = |name: &str| number(&outputs, name);
        let is_skipped = is_skipped(&outputs);
        let loss = output("loss").unwrap_or(f64::NAN);
        self.skipped = if is_skipped { self.skipped + 1 } else { 0 };
        if (!loss.is_finite() && !is_skipped) || self.skipped > MOST_SKIPPED {
            return Err(self.blame(batch, lr, loss));
        }
        let progress = &mut self.progress;
        progress.step += 1;
        progress.updates += u64::from(!is_skipped);
        progress.runs += 1;
        if self.record_until.is_some_and(|step| step <= progress.step) && self.recorded.is_none() {
            self.recorded = self.team.leader().state_mut().recording.take();
        }
        Ok(StepReport {
            step: progress.step,
            epoch: batch.at.epoch,
            loss,
            lr,
            grad_norm: output("grad_norm"),
            scale: output("scale"),
            is_skipped,
            samples: batch.len,
            time: began.elapsed(),
        })
    }

    /// The learning rate of the next step.
    fn lr(&self) -> f64 {
        let progress = &self.progress;
        (self.rates).at(progress.rate, progress.step, progress.at.epoch)
    }

    /// All inputs of a step for one of this process's shards.
    fn fed(&self, batch: &Batch, lr: f64, at: usize) -> Result<Vec<(String, Tensor)>> {
        let mut fed = self.step.hyper(self.progress.updates + 1, lr);
        let shard;
        let mut batch = batch;
        if self.team.count > 1 {
            shard = batch.shard(self.team.first + at, self.team.count);
            let share = shard.len as f64 / batch.len.max(1) as f64;
            let share = match self.config.double {
                true => Tensor::scalar(share),
                false => Tensor::scalar(share as f32),
            };
            fed.push((SHARE.into(), share));
            batch = &shard;
        }
        let rest: Vec<(String, TensorType)> = (self.inputs.iter())
            .filter(|(n, _)| fed.iter().all(|(f, _)| f != n))
            .cloned()
            .collect();
        fed.extend(feed(batch, &rest, &self.model.target)?);
        Ok(fed)
    }

    fn launch(&mut self, batch: &Batch, lr: f64) -> Result<Vec<(String, Tensor)>> {
        let mut requests = vec![];
        for at in 0..self.team.sessions.len() {
            requests.push(request(self.fed(batch, lr, at)?));
        }
        let outputs = self.team.run(requests)?;
        let mut all = vec![];
        for (name, value) in outputs {
            if let Some(t) = value.to_host()?.as_tensor() {
                all.push((name, t.clone()));
            }
        }
        Ok(all)
    }

    /// Says where the time of steps on the first batch goes; `None` on the reference device, which has no kernels. Parameters
    /// and the optimiser's memory are afterwards as at the beginning of a run.
    ///
    /// # Errors
    /// What a run finds; a configuration with several shards.
    pub fn profile(&mut self, options: ProfileOptions) -> Result<Option<Profile>> {
        if self.team.count > 1 {
            return Err(wrong("a profile is of one replica with one shard"));
        }
        let first = Loader::new(
            &self.parts.train,
            dealing(&self.config),
            Position::default(),
            Some(1),
        );
        let first = first.map_err(|_| RuntimeError::Lost)?.next();
        let batch = first.ok_or_else(|| wrong("there is no batch to measure"))?;
        let fed = self.fed(&batch, self.lr(), 0)?;
        let inputs = fed.into_iter().map(|(n, t)| (n, t.into())).collect();
        let found = profile(self.team.leader(), &inputs, options)?;
        self.reset()?;
        Ok(found)
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// As [`Trainer::step`]; a checkpoint that cannot be written.
    pub fn run(&mut self, listen: &mut Listener) -> Result<Ended> {
        let total = self.total_steps();
        let loader = Loader::new(
            &self.parts.train,
            dealing(&self.config),
            self.progress.at,
            self.config.epochs,
        );
        let loader = loader.map_err(|_| RuntimeError::Lost)?;
        let batches = self.batches();
        let mut waiting = Instant::now();
        let mut asked = false;
        for batch in loader {
            if self.progress.step >= total {
                break;
            }
            // Other processes hear what was asked of the first while they do the next step.
            let begun = self.team.begin_to_agree(&[u8::from(asked)])?;
            let report = self.step(&batch)?;
            let report = StepReport {
                time: waiting.elapsed(),
                ..report
            };
            let is_last = batch.at.batch + 1 == batches;
            self.progress.at = match is_last {
                true => Position {
                    epoch: batch.at.epoch + 1,
                    batch: 0,
                },
                false => Position {
                    batch: batch.at.batch + 1,
                    ..batch.at
                },
            };
            asked |= listen(Event::Step(report)).is_break();
            let agreed = match self.team.agreed(begun)? {
                Some(said) => said.first().is_some_and(|b| *b != 0),
                None => asked,
            };
            let is_end = agreed || report.step >= total;
            if self.look(is_last, is_end, listen)? {
                return Ok(Ended::Early);
            }
            if agreed {
                return Ok(Ended::Stopped);
            }
            waiting = Instant::now();
        }
        Ok(Ended::Done)
    }

    /// Validates and saves where it is time to, in the first process, and tells the others; whether to stop early.
    fn look(&mut self, is_epoch: bool, is_end: bool, listen: &mut Listener) -> Result<bool> {
        let step = self.progress.step;
        let is_time = |every: Option<u64>| every.map_or(is_epoch, |n| step.is_multiple_of(n));
        let measures = self.parts.validation.len() > 0 && is_time(self.config.validation.every);
        let saves = is_time(self.config.checkpoint.every) || is_end;
        if !measures && !saves {
            return Ok(false);
        }
        let mut said = vec![];
        if self.team.is_first() {
            let stop = self.look_first(measures, saves, listen)?;
            said = serde_json::to_vec(&(stop, &self.progress)).unwrap_or_default();
        }
        let said = self.team.agree(said)?;
        let mut stop = false;
        if let Ok((is_over, progress)) = serde_json::from_slice::<(bool, Progress)>(&said) {
            stop = is_over;
            self.progress = progress;
        }
        if let Some(plateau) = &mut self.rates.plateau {
            plateau.memory = self.progress.plateau();
        }
        self.team.compare()?;
        Ok(stop)
    }

    /// Validates and saves; whether to stop early.
    fn look_first(&mut self, measures: bool, saves: bool, listen: &mut Listener) -> Result<bool> {
        let step = self.progress.step;
        let mut stop = false;
        let is_new = if measures {
            let (is_best, is_over) = self.validate(listen)?;
            stop = is_over;
            is_best
        } else {
            false
        };
        let Some(folder) = self.config.checkpoint.folder.clone() else {
            return Ok(stop);
        };
        let is_due = saves || stop;
        if !is_due && !is_new {
            return Ok(stop);
        }
        let written = std::fs::create_dir_all(&folder);
        written.map_err(|e| Error::Write(folder.clone(), e.to_string()))?;
        let checkpoint = self.checkpoint()?;
        if is_new {
            checkpoint.write(&folder.join(checkpoint::BEST))?;
        }
        if is_due {
            let path = folder.join(checkpoint::name_of(step));
            checkpoint.write(&path)?;
            checkpoint::thin(&folder, self.config.checkpoint.keep);
            // Whoever wants the run to end is asked again after the next step.
            let _ = listen(Event::Saved(path));
        }
        Ok(stop)
    }

    /// Validates; whether nothing was better, and whether patience is over.
    fn validate(&mut self, listen: &mut Listener) -> Result<(bool, bool)> {
        let part = self.parts.validation.clone();
        let scores = self.evaluate(&part)?;
        let settings = &self.config.validation;
        let watched = settings.watch.as_deref().unwrap_or("loss");
        let value = scores.value(watched).unwrap_or(f64::NAN);
        let grows = Metric::named(watched).is_some_and(Metric::grows);
        let progress = &mut self.progress;
        let is_best = match progress.best {
            None => !value.is_nan(),
            Some(best) if grows => value > best + settings.least,
            Some(best) => value < best - settings.least,
        };
        if is_best {
            progress.best = Some(value);
            progress.bad = 0;
        } else {
            progress.bad += 1;
        }
        if let Some(plateau) = &mut self.rates.plateau {
            plateau.maximise = grows;
            progress.rate = plateau.rate(progress.rate, value);
            progress.set_plateau(plateau.memory);
        }
        let is_over = settings.patience.is_some_and(|p| progress.bad > p);
        let step = progress.step;
        let _ = listen(Event::Validated {
            step,
            scores,
            is_best,
        });
        Ok((is_best, is_over))
    }

    /// How well the model does on a part.
    ///
    /// # Errors
    /// What compilation and the runs find.
    pub fn evaluate(&mut self, part: &Part) -> Result<Scores> {
        let program = match &self.eval {
            Some(program) => program.clone(),
            None => {
                let graph = graph_of(&self.model)?;
                let program = Arc::new(Program::compile(graph, &self.host, &self.options)?);
                self.eval = Some(program.clone());
                program
            }
        };
        let state = self.team.leader().state_mut();
        let batch = self.config.validation.batch.unwrap_or(self.config.batch);
        let slot = |name: &str| state.slot(name).cloned();
        evaluate(&program, &self.model, part, batch, &self.metrics, &slot)
    }

    /// Compares the states of all shards of all processes, which every checkpoint does too.
    ///
    /// # Errors
    /// [`Error::Replicas`] with the first slot that differs.
    pub fn compare(&mut self) -> Result<()> {
        self.team.compare()
    }

    /// Whether this process tells, measures and writes what all have.
    pub fn is_first(&self) -> bool {
        self.team.is_first()
    }

    /// Waits until the first process comes here too, with what only it does after the run.
    ///
    /// # Errors
    /// A process that has failed.
    pub fn finish(&mut self) -> Result<()> {
        self.team.agree(vec![]).map(|_| ())
    }

    /// Notes when what runs in the next `steps` steps, of the first shard of this process.
    pub fn record(&mut self, steps: u64) {
        self.record_until = Some(self.progress.step + steps);
        self.team.leader().state_mut().recording = Some(Recording::new());
    }

    /// What was noted since [`Trainer::record`].
    pub fn recorded(&mut self) -> Option<Recording> {
        let running = || self.team.leader().state_mut().recording.take();
        self.recorded.take().or_else(running)
    }

    /// Writes the model by the file's suffix: `.onnx` and `.cupola` for inference, `.safetensors` for its weights.
    ///
    /// # Errors
    /// As for the formats; a file that cannot be written.
    pub fn export(&mut self, path: &Path) -> Result<()> {
        let saved = self.team.leader().state_mut().save()?;
        let weights = |name: &str| saved.get(name).and_then(|v| v.as_tensor()).cloned();
        export::export(&self.model, &weights, path)
    }

    /// The error for a loss that is no number: where that began. State and inputs of the step are found again by doing
    /// the run over from its last checkpoint, bit by bit.
    fn blame(&mut self, batch: &Batch, lr: f64, loss: f64) -> Error {
        let step = self.progress.step + 1;
        let found = self.replay().and_then(|()| {
            let mut inputs = vec![];
            for at in 0..self.team.sessions.len() {
                inputs.push(self.fed(batch, lr, at)?);
            }
            blame::first(
                &self.step.graph,
                &mut self.team,
                &inputs,
                &self.host,
                &self.options,
            )
        });
        let place = match found {
            Ok(Some(place)) => format!("it begins at {place}"),
            Ok(None) => "each op by itself gives finite numbers".into(),
            Err(e) => format!("where it begins is not known: {e}"),
        };
        Error::NotFinite(format!(
            "the loss of step {step} is {loss}; {place}; a lower learning rate or clip_norm may help"
        ))
    }

    /// Brings state to what it was before the step that failed.
    fn replay(&mut self) -> Result<()> {
        let wanted = self.progress.step;
        let folder = self.config.checkpoint.folder.clone();
        let last = folder.and_then(|f| checkpoint::last(&f));
        let begun = last.and_then(|path| Checkpoint::open(&path).ok());
        let begun = begun.filter(|c| c.progress.step <= wanted && c.config == self.config);
        match begun {
            Some(checkpoint) => self.restore(&checkpoint)?,
            None => {
                self.reset()?;
                let (_, rate) = recipe::optimiser(&self.config.optim)?;
                self.progress = Progress::new(rate);
            }
        }
        let loader = Loader::new(
            &self.parts.train,
            dealing(&self.config),
            self.progress.at,
            None,
        );
        for batch in loader.map_err(|_| RuntimeError::Lost)? {
            if self.progress.step >= wanted {
                break;
            }
            self.progress.at.epoch = batch.at.epoch;
            let lr = self.lr();
            let outputs = self.launch(&batch, lr)?;
            self.progress.step += 1;
            self.progress.updates += u64::from(!is_skipped(&outputs));
        }
        Ok(())
    }
}

/// An output of a step that is one number.
fn number(outputs: &[(String, Tensor)], name: &str) -> Option<f64> {
    let (_, found) = outputs.iter().find(|(n, _)| n == name)?;
    let single = found.to_vec::<f32>();
    let single = single.and_then(|x| x.first().map(|x| f64::from(*x)));
    single.or_else(|| found.to_vec::<f64>()?.first().copied())
}

/// Whether a step made no update, since a gradient was infinite.
fn is_skipped(outputs: &[(String, Tensor)]) -> bool {
    number(outputs, "found_inf").is_some_and(|f| f != 0.0)
}

/// A request with these inputs.
pub(super) fn request(inputs: Vec<(String, Tensor)>) -> Request {
    let each = inputs.into_iter();
    each.fold(Request::new(), |r, (name, tensor)| r.input(&name, tensor))
}

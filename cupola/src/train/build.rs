//! What a run is made of: the model, its step, how samples are dealt, how many steps there are.

use super::assemble::{Assembled, assemble};
use super::config::{Config, wrong};
use super::dataset::Parts;
use super::recipe;
use crate::error::{Error, Result};
use crate::runner::Options;
use crate::tools::{MemoryPlan, plan_memory};
use cupola_ir::Tensor;
use cupola_runtime::Host;
use cupola_safetensors::SafeTensors;
use cupola_train::data::{Dealing, Part};
use cupola_train::{Memory, TrainStep};
use std::collections::BTreeMap;
use std::path::Path;

/// The model of a configuration, its step, and the base of the learning rate.
///
/// # Errors
/// What is wrong with the configuration, the model or the data.
pub(super) fn build(
    config: &Config,
    parts: &Parts,
    host: &Host,
    options: &Options,
) -> Result<(Assembled, TrainStep, f64)> {
    config.check()?;
    let mut model = assemble(config, &parts.train.data)?;
    let freeze = &config.model.freeze;
    let is_none = |f: &&String| (model.net.parameters().iter()).all(|p| !p.name.starts_with(*f));
    if let Some(name) = freeze.iter().find(is_none) {
        let what = format!("model.freeze: no parameter's name begins with '{name}'");
        return Err(wrong(what));
    }
    (model.net).freeze(|name| freeze.iter().any(|f| name.starts_with(f.as_str())));
    if let Some(path) = &config.model.weights {
        let weights = read_weights(path)?;
        let unknown = model.net.load(&weights)?;
        if unknown.len() == weights.len() {
            let what = format!("{}: no tensor has the name of a parameter", path.display());
            return Err(wrong(what));
        }
    }
    let (optimiser, rate) = recipe::optimiser(&config.optim)?;
    let mut what = recipe::step_options(config, options.deterministic);
    let mut step = (model.net).train_step(model.loss, &optimiser, &what)?;
    let Some(all) = options.memory else {
        return Ok((model, step, rate));
    };
    let sizes = sizes(config);
    let needed = |step: &TrainStep| -> Result<u64> {
        let plan = plan_memory(&step.graph, host, options, &sizes)?;
        Ok(plan.bytes.total())
    };
    let mut too_much = needed(&step)?;
    if too_much <= all {
        return Ok((model, step, rate));
    }
    // What the backward pass keeps is one part of what is needed, which the plan alone knows: the most is looked for that
    // it may keep.
    let (mut kept, mut budget) = (0, 0);
    for _ in 0..MOST_PLANS {
        what.memory = Some(Memory {
            budget,
            sizes: sizes.clone().into_iter().collect(),
        });
        let next = (model.net).train_step(model.loss, &optimiser, &what)?;
        let fits = needed(&next)? <= all;
        match fits {
            true => kept = budget,
            false => too_much = budget,
        }
        if fits || budget == 0 {
            step = next;
        }
        if too_much == 0 {
            break;
        }
        budget = kept + (too_much - kept) / 2;
    }
    Ok((model, step, rate))
}

/// How often a step is planned to find one within a budget.
const MOST_PLANS: u32 = 8;

/// Sizes of a step's symbols, where they are known.
fn sizes(config: &Config) -> BTreeMap<String, i64> {
    let shard = config.batch.div_ceil(config.shards.unwrap_or(1).max(1));
    let usual = [("batch", Some(shard)), ("steps", config.data.length)];
    let known = usual.into_iter();
    known
        .filter_map(|(name, size)| Some((name.to_string(), size? as i64)))
        .collect()
}

/// The memory that the steps of a run need: states are weights and what the optimiser keeps. Nothing is compiled for the
/// device or allocated there. Of several shards it is one's. `sizes` fixes symbols beside the batch.
///
/// # Errors
/// As [`Trainer::new`], but for compilation.
pub fn plan(
    config: &Config,
    parts: &Parts,
    host: &Host,
    options: &Options,
    sizes: &BTreeMap<String, i64>,
) -> Result<MemoryPlan> {
    let config = &Config {
        shards: config.shards.or(config.replicas),
        ..config.clone()
    };
    let (_, step, _) = build(config, parts, host, options)?;
    let mut all = self::sizes(config);
    all.extend(sizes.clone());
    plan_memory(&step.graph, host, options, &all)
}

/// How the samples of a run are dealt.
pub(super) fn dealing(config: &Config) -> Dealing {
    Dealing {
        batch: config.batch,
        drop_last: config.drop_last,
        shuffle: config.shuffle,
        seed: config.seed,
    }
}

/// Steps of a whole run.
pub(super) fn total_steps(config: &Config, part: &Part) -> u64 {
    let batches = dealing(config).batches(part.len()) as u64;
    let epochs = config.epochs.map(|e| e.saturating_mul(batches));
    epochs.into_iter().chain(config.steps).min().unwrap_or(0)
}

/// Tensors of a safetensors file by name.
fn read_weights(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    if !path.exists() {
        return Err(Error::Missing(format!("{} does not exist", path.display())));
    }
    let file = SafeTensors::open(path);
    let file = file.map_err(|e| wrong(format!("{}: {e}", path.display())))?;
    let mut all = BTreeMap::new();
    for t in file.tensors() {
        if let Some(tensor) = Tensor::new(t.dtype, t.dims.clone(), t.data.clone()) {
            all.insert(t.name.clone(), tensor);
        }
    }
    Ok(all)
}

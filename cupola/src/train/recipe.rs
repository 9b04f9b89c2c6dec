//! Losses, optimisers and schedules by their descriptions in text.

use super::config::{Amp, Config, wrong};
use crate::error::Result;
use cupola_ir::{DType, ValueId};
use cupola_train::{
    Clip, CrossEntropy, Divergence, GradScaler, Net, Optimiser, Plateau, Reduction, Rule, Schedule,
    Spec, StepOptions,
};

/// A loss by its description.
#[derive(Clone, Debug)]
pub struct Loss {
    spec: Spec,
}

/// What a loss compares scores with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The number of a class.
    Class,
    /// Numbers of the extents of the scores.
    Numbers,
}

impl Loss {
    /// Reads a description, as in `ce:smoothing=0.1`.
    ///
    /// # Errors
    /// A name that is no loss's.
    pub fn parse(text: &str) -> Result<Loss> {
        let spec = Spec::parse(text)?;
        let known = ["ce", "nll", "mse", "l1", "huber", "smooth_l1", "bce", "kl"];
        if !known.contains(&spec.name.as_str()) {
            let what = format!("no loss '{}'; there are {}", spec.name, known.join(", "));
            return Err(wrong(what));
        }
        Ok(Loss { spec })
    }

    /// What it compares with.
    pub fn target(&self) -> Target {
        match self.spec.name.as_str() {
            "ce" | "nll" => Target::Class,
            _ => Target::Numbers,
        }
    }

    /// The class that counts for nothing.
    ///
    /// # Errors
    /// A setting that is no number.
    pub fn ignored(&self) -> Result<i64> {
        let spec = &self.spec;
        match spec.text("ignore", None) {
            Some(text) => {
                let class = text.parse();
                class.map_err(|_| wrong(format!("'{spec}': ignore is no whole number")))
            }
            None => Ok(CrossEntropy::default().ignore),
        }
    }

    /// Appends it; scores of every step of a sequence are compared one by one.
    ///
    /// # Errors
    /// Extents that do not match, settings that mean nothing.
    pub fn append(&self, net: &mut Net, x: ValueId, target: ValueId) -> Result<ValueId> {
        let spec = &self.spec;
        let loss = match spec.name.as_str() {
            name @ ("ce" | "nll") => {
                let settings = CrossEntropy {
                    smoothing: spec.number("smoothing", None, 0.0)?,
                    ignore: self.ignored()?,
                    ..CrossEntropy::default()
                };
                match name {
                    "ce" => net.cross_entropy(x, target, &settings),
                    _ => net.nll(x, target, &settings),
                }
            }
            "mse" => net.mse(x, target, Reduction::Mean),
            "l1" => net.l1(x, target, Reduction::Mean),
            "huber" => {
                let delta = spec.number("delta", Some(0), 1.0)?;
                net.huber(x, target, delta, Reduction::Mean)
            }
            "smooth_l1" => {
                let beta = spec.number("beta", Some(0), 1.0)?;
                net.smooth_l1(x, target, beta, Reduction::Mean)
            }
            "bce" => net.bce_with_logits(x, target, None, Reduction::Mean),
            _ => net.kl_div(x, target, false, Divergence::BatchMean),
        };
        let loss = loss?;
        spec.finish()?;
        Ok(loss)
    }
}

/// An optimiser and its base rate by their description, as in `adam:lr=1e-3,betas=0.9/0.98`.
///
/// # Errors
/// A name that is no optimiser's, settings that mean nothing.
pub fn optimiser(text: &str) -> Result<(Optimiser, f64)> {
    let spec = Spec::parse(text)?;
    let mut optimiser = match spec.name.as_str() {
        "sgd" => {
            let mut optimiser = Optimiser::sgd();
            optimiser.rule = Rule::Sgd {
                momentum: spec.number("momentum", None, 0.0)?,
                dampening: spec.number("dampening", None, 0.0)?,
                nesterov: spec.flag("nesterov", false)?,
            };
            optimiser
        }
        name @ ("adam" | "adamw") => {
            let mut optimiser = match name {
                "adam" => Optimiser::adam(),
                _ => Optimiser::adamw(),
            };
            let betas = match spec.text("betas", None) {
                None => (0.9, 0.999),
                Some(text) => {
                    let parts = text.split_once('/');
                    let parsed = parts.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                    parsed.ok_or_else(|| wrong(format!("'{spec}': betas is not like 0.9/0.999")))?
                }
            };
            optimiser.rule = Rule::Adam {
                betas,
                epsilon: spec.number("eps", None, 1e-8)?,
                amsgrad: spec.flag("amsgrad", false)?,
                decoupled: name == "adamw",
            };
            optimiser
        }
        other => {
            let what = format!("no optimiser '{other}'; there are sgd, adam, adamw");
            return Err(wrong(what));
        }
    };
    optimiser.weight_decay = spec.number("weight_decay", None, optimiser.weight_decay)?;
    if spec.flag("no_vector_decay", false)? {
        optimiser = optimiser.no_decay_of_vectors();
    }
    let rate = spec.number("lr", Some(0), 1e-3)?;
    spec.finish()?;
    let checked = optimiser.check();
    checked.map_err(|e| wrong(format!("'{spec}': {e}")))?;
    if rate < 0.0 {
        return Err(wrong(format!("'{spec}': a learning rate below 0")));
    }
    Ok((optimiser, rate))
}

/// How the learning rate changes over a run.
#[derive(Clone, Debug)]
pub struct Rates {
    schedule: Schedule,
    by_epoch: bool,
    /// Lowers the rate where validation no longer improves.
    pub plateau: Option<Plateau>,
}

impl Rates {
    /// Reads a description of a schedule, as in `cosine:warmup=100,min=1e-5`. What takes a number of steps has all
    /// `total` steps of the run (or epochs, with `epochs`) but those of the warm-up, where nothing is said.
    ///
    /// # Errors
    /// A name that is no schedule's, settings that mean nothing or are out of range.
    pub fn parse(text: &str, total_steps: u64, total_epochs: u64) -> Result<Rates> {
        let spec = Spec::parse(text)?;
        let by_epoch = spec.flag("epochs", false)?;
        let warmup = spec.count("warmup", None)?.unwrap_or(0) as u64;
        let total = if by_epoch { total_epochs } else { total_steps };
        let rest = total.saturating_sub(warmup).max(1);
        let mut plateau = None;
        let schedule = match spec.name.as_str() {
            "plateau" => {
                let usual = Plateau::default();
                plateau = Some(Plateau {
                    factor: spec.number("factor", None, usual.factor)?,
                    patience: spec
                        .count("patience", None)?
                        .map_or(usual.patience, |n| n as u64),
                    threshold: spec.number("threshold", None, usual.threshold)?,
                    cooldown: spec.count("cooldown", None)?.unwrap_or(0) as u64,
                    minimum: spec.number("min", None, 0.0)?,
                    ..usual
                });
                Schedule::Constant
            }
            _ => schedule(&spec, rest)?,
        };
        spec.finish()?;
        let schedule = match warmup {
            0 => schedule,
            steps => Schedule::warmup(steps, schedule),
        };
        let checked = schedule.check();
        checked.map_err(|e| wrong(format!("'{spec}': {e}")))?;
        Ok(Rates {
            schedule,
            by_epoch,
            plateau,
        })
    }

    /// The rate of a step (from 0) in an epoch (from 0), from the base rate.
    pub fn at(&self, base: f64, step: u64, epoch: u64) -> f64 {
        let at = if self.by_epoch { epoch } else { step };
        self.schedule.rate(base, at)
    }
}

fn schedule(spec: &Spec, rest: u64) -> Result<Schedule> {
    let count = |key: &str, usual: u64| -> Result<u64> {
        Ok(spec.count(key, None)?.map_or(usual, |n| n as u64))
    };
    let minimum = || spec.number("min", None, 0.0);
    Ok(match spec.name.as_str() {
        "constant" => Schedule::Constant,
        "step" => Schedule::Step {
            size: spec.size("size", None, &[])? as u64,
            gamma: spec.number("gamma", None, 0.1)?,
        },
        "multi_step" => {
            let text = spec.text("at", None).unwrap_or_default();
            let steps: Result<Vec<u64>, _> = text.split('/').map(str::parse).collect();
            Schedule::MultiStep {
                milestones: steps
                    .map_err(|_| wrong(format!("'{spec}': at is not like 100/200")))?,
                gamma: spec.number("gamma", None, 0.1)?,
            }
        }
        "exponential" => Schedule::Exponential {
            gamma: spec.number("gamma", Some(0), 0.95)?,
        },
        "cosine" => Schedule::Cosine {
            steps: count("steps", rest)?,
            minimum: minimum()?,
        },
        "restarts" => Schedule::CosineRestarts {
            first: spec.size("first", None, &[])? as u64,
            factor: count("factor", 1)?,
            minimum: minimum()?,
        },
        "linear" => Schedule::Linear {
            start: spec.number("start", None, 1.0)?,
            end: spec.number("end", None, 0.0)?,
            steps: count("steps", rest)?,
        },
        "polynomial" => Schedule::Polynomial {
            steps: count("steps", rest)?,
            power: spec.number("power", None, 1.0)?,
        },
        "one_cycle" => Schedule::OneCycle {
            total: count("steps", rest)?,
            rise: spec.number("rise", None, 0.3)?,
            divisor: spec.number("divisor", None, 25.0)?,
            final_divisor: spec.number("final_divisor", None, 1e4)?,
            linear: spec.flag("straight", false)?,
        },
        other => {
            let what = format!(
                "no schedule '{other}'; there are constant, step, multi_step, exponential, cosine, restarts, linear, \
                 polynomial, one_cycle, plateau"
            );
            return Err(wrong(what));
        }
    })
}

/// What a step does beside the optimiser's update. Where bits are not to depend on how it is spread, statistics don't either.
pub fn step_options(config: &Config, deterministic: bool) -> StepOptions {
    let shards = config.shards.unwrap_or(1);
    let norm = config.clip_norm.map(Clip::Norm);
    StepOptions {
        clip: norm.or(config.clip_value.map(Clip::Value)),
        scaler: (config.amp == Some(Amp::F16)).then(GradScaler::default),
        autocast: config.amp.map(|amp| match amp {
            Amp::Bf16 => DType::BF16,
            Amp::F16 => DType::F16,
        }),
        shards,
        sync_batch_norm: config.sync_batch_norm || deterministic && shards > 1,
        ..StepOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optimisers_are_read() {
        let (adam, rate) = optimiser("adamw:3e-4,betas=0.9/0.95,weight_decay=0.1").expect("adamw");
        assert_eq!((rate, adam.weight_decay), (3e-4, 0.1));
        let Rule::Adam {
            betas, decoupled, ..
        } = adam.rule
        else {
            panic!("Adam");
        };
        assert_eq!((betas, decoupled), ((0.9, 0.95), true));
        for (text, what) in [
            ("adm", "no optimiser 'adm'; there are sgd, adam, adamw"),
            ("adam:beta=0.9", "'beta' means nothing here"),
            ("sgd:lr=-1", "a learning rate below 0"),
            ("adam:betas=0.9", "betas is not like 0.9/0.999"),
        ] {
            let error = optimiser(text).expect_err(text).to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn schedules_fill_the_run() {
        let rates = Rates::parse("cosine:warmup=10", 110, 5).expect("a schedule");
        assert_eq!(rates.at(1.0, 10, 0), 1.0);
        assert!((rates.at(1.0, 60, 0) - 0.5).abs() < 1e-12);
        let rates = Rates::parse("step:size=1,gamma=0.5,epochs=true", 110, 5).expect("a schedule");
        assert_eq!(rates.at(1.0, 70, 3), 0.125);
        assert!(Rates::parse("step", 1, 1).is_err());
        assert!(Rates::parse("sine", 1, 1).is_err());
    }

    #[test]
    fn losses_are_known_by_name() {
        assert_eq!(
            Loss::parse("ce:smoothing=0.1").expect("a loss").target(),
            Target::Class
        );
        assert!(Loss::parse("cross").is_err());
    }
}

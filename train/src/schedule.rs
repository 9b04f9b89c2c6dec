//! Learning-rate schedules: functions of the number of schedule steps, in f64, on the host.
//!
//! A schedule is stepped after the optimiser, so that the first step of training has the rate of step 0.

use crate::error::{Result, TrainError};
use std::f64::consts::PI;

/// How the learning rate follows from the base rate and the number of steps done.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// The base rate.
    Constant,
    /// `gamma` once every `size` steps.
    Step {
        /// Steps between changes.
        size: u64,
        /// Factor of a change.
        gamma: f64,
    },
    /// `gamma` at each milestone; a milestone given twice counts twice.
    MultiStep {
        /// Steps of the changes.
        milestones: Vec<u64>,
        /// Factor of a change.
        gamma: f64,
    },
    /// `gamma` every step.
    Exponential {
        /// Factor of a step.
        gamma: f64,
    },
    /// A cosine from the base rate to `minimum` over `steps` steps, which goes on as a cosine after them.
    Cosine {
        /// Steps of half a period.
        steps: u64,
        /// Smallest rate.
        minimum: f64,
    },
    /// Cosines from the base rate to `minimum` of `first` steps, then `factor` times as many, and so on.
    CosineRestarts {
        /// Steps of the first period.
        first: u64,
        /// Growth of the periods.
        factor: u64,
        /// Rate at the end of a period.
        minimum: f64,
    },
    /// A factor that goes from `start` to `end` in equal parts over `steps` steps, then stays.
    Linear {
        /// First factor.
        start: f64,
        /// Last factor.
        end: f64,
        /// Steps between them.
        steps: u64,
    },
    /// `base * (1 - step / steps)^power`, 0 from `steps` on.
    Polynomial {
        /// Steps to 0.
        steps: u64,
        /// Exponent.
        power: f64,
    },
    /// A factor that goes from `start` to 1 in equal parts over `steps` steps; then another schedule from its own step 0 on.
    Warmup {
        /// First factor.
        start: f64,
        /// Steps of the warm-up.
        steps: u64,
        /// What follows.
        then: Box<Schedule>,
    },
    /// One cycle (Smith and Topin, 2017): the base rate is the peak; from `base / divisor` up to it over `rise` of all steps,
    /// then down to `base / divisor / final_divisor`, both by a cosine (or a straight line).
    OneCycle {
        /// All steps.
        total: u64,
        /// Part of the steps before the peak.
        rise: f64,
        /// Peak over start.
        divisor: f64,
        /// Start over end.
        final_divisor: f64,
        /// Straight lines instead of cosines.
        linear: bool,
    },
    /// Other schedules one after another: each begins with its own step 0 at the step given with it (the first at 0).
    Sequence(Vec<(u64, Schedule)>),
}

impl Schedule {
    /// [`Schedule::OneCycle`] with the usual shape: 30% rise from 1/25 of the peak, down to 1/10,000 of the start.
    pub fn one_cycle(total: u64) -> Schedule {
        Schedule::OneCycle {
            total,
            rise: 0.3,
            divisor: 25.0,
            final_divisor: 1e4,
            linear: false,
        }
    }

    /// [`Schedule::Warmup`] from nearly nothing to `then`.
    pub fn warmup(steps: u64, then: Schedule) -> Schedule {
        Schedule::Warmup {
            start: 1.0 / (steps.max(1) as f64 + 1.0),
            steps,
            then: Box::new(then),
        }
    }

    /// The rate after `step` steps of the schedule.
    pub fn rate(&self, base: f64, step: u64) -> f64 {
        let k = step as f64;
        match self {
            Schedule::Constant => base,
            Schedule::Step { size, gamma } => base * gamma.powf((step / (*size).max(1)) as f64),
            Schedule::MultiStep { milestones, gamma } => {
                let passed = milestones.iter().filter(|m| **m <= step).count();
                base * gamma.powi(passed as i32)
            }
            Schedule::Exponential { gamma } => base * gamma.powf(k),
            Schedule::Cosine { steps, minimum } => {
                let part = k / (*steps).max(1) as f64;
                minimum + (base - minimum) * (1.0 + (PI * part).cos()) / 2.0
            }
            Schedule::CosineRestarts {
                first,
                factor,
                minimum,
            } => {
                let part = restart_part(step, *first, *factor);
                minimum + (base - minimum) * (1.0 + (PI * part).cos()) / 2.0
            }
            Schedule::Linear { start, end, steps } => base * line(*start, *end, *steps, step),
            Schedule::Polynomial { steps, power } => {
                let left = 1.0 - k / (*steps).max(1) as f64;
                base * left.max(0.0).powf(*power)
            }
            Schedule::Warmup { start, steps, then } => match step.checked_sub(*steps) {
                Some(later) => then.rate(base, later),
                None => base * line(*start, 1.0, *steps, step),
            },
            Schedule::OneCycle { .. } => self.one_cycle_rate(base, k),
            Schedule::Sequence(parts) => {
                let begun = parts.iter().rev().find(|(from, _)| *from <= step);
                let part = begun.or(parts.first());
                part.map_or(base, |(from, s)| s.rate(base, step.saturating_sub(*from)))
            }
        }
    }

    fn one_cycle_rate(&self, base: f64, k: f64) -> f64 {
        let Schedule::OneCycle {
            total,
            rise,
            divisor,
            final_divisor,
            linear,
        } = self
        else {
            return base;
        };
        let (start, end) = (base / divisor, base / divisor / final_divisor);
        let last = total.saturating_sub(1) as f64;
        let peak = rise * *total as f64 - 1.0;
        let between = |from: f64, to: f64, part: f64| match linear {
            true => from + (to - from) * part,
            false => to + (from - to) / 2.0 * (1.0 + (PI * part).cos()),
        };
        if k <= peak {
            between(start, base, k / peak)
        } else {
            let part = if last > peak {
                (k - peak) / (last - peak)
            } else {
                1.0
            };
            between(base, end, part.min(1.0))
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Options`] for periods of no steps and factors that are no numbers.
    pub fn check(&self) -> Result<()> {
        let (counts, numbers): (Vec<u64>, Vec<f64>) = match self {
            Schedule::Constant => (vec![], vec![]),
            Schedule::Step { size, gamma } => (vec![*size], vec![*gamma]),
            Schedule::MultiStep { gamma, .. } | Schedule::Exponential { gamma } => {
                (vec![], vec![*gamma])
            }
            Schedule::Cosine { steps, minimum } => (vec![*steps], vec![*minimum]),
            Schedule::CosineRestarts {
                first,
                factor,
                minimum,
            } => (vec![*first, *factor], vec![*minimum]),
            Schedule::Linear { start, end, steps } => (vec![*steps], vec![*start, *end]),
            Schedule::Polynomial { steps, power } => (vec![*steps], vec![*power]),
            Schedule::Warmup { start, then, .. } => {
                then.check()?;
                (vec![], vec![*start])
            }
            Schedule::OneCycle {
                total,
                rise,
                divisor,
                final_divisor,
                ..
            } => {
                if !(0.0..=1.0).contains(rise) || *divisor <= 0.0 || *final_divisor <= 0.0 {
                    let what = "one cycle: the rise is a part of 1 and divisors are positive";
                    return Err(TrainError::Options(what.into()));
                }
                (vec![*total], vec![])
            }
            Schedule::Sequence(parts) => {
                let ordered = parts.windows(2).all(|w| w[0].0 < w[1].0);
                if !ordered || parts.first().is_none_or(|(from, _)| *from != 0) {
                    let what =
                        "a sequence of schedules begins at step 0 and goes on at later steps";
                    return Err(TrainError::Options(what.into()));
                }
                parts.iter().try_for_each(|(_, s)| s.check())?;
                (vec![], vec![])
            }
        };
        if counts.contains(&0) || numbers.iter().any(|n| !n.is_finite()) {
            let what = "a schedule's periods have at least one step, and its factors are finite";
            return Err(TrainError::Options(what.into()));
        }
        Ok(())
    }
}

/// From `start` to `end` over `steps` steps, then `end`.
fn line(start: f64, end: f64, steps: u64, step: u64) -> f64 {
    let part = step.min(steps) as f64 / steps.max(1) as f64;
    start + (end - start) * part
}

/// How much of the period is over that a step falls in.
fn restart_part(step: u64, first: u64, factor: u64) -> f64 {
    let (mut start, mut period) = (0, first.max(1));
    if factor <= 1 {
        start = step / period * period;
    }
    while factor > 1 && step - start >= period {
        start += period;
        period = period.saturating_mul(factor);
    }
    (step - start) as f64 / period as f64
}

/// Lowers the rate when a watched number no longer improves.
#[derive(Clone, Debug, PartialEq)]
pub struct Plateau {
    /// Factor of a change.
    pub factor: f64,
    /// Checks without improvement that are let pass.
    pub patience: u64,
    /// Least relative improvement that counts.
    pub threshold: f64,
    /// The number grows as it improves.
    pub maximise: bool,
    /// Checks after a change before the next begin to count.
    pub cooldown: u64,
    /// Smallest rate.
    pub minimum: f64,
    /// What it has seen.
    pub memory: PlateauMemory,
}

/// What a [`Plateau`] has seen; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PlateauMemory {
    /// The best number.
    pub best: Option<f64>,
    /// Checks since then.
    pub bad: u64,
    /// Checks that are still let pass after a change.
    pub cooling: u64,
}

impl Default for Plateau {
    fn default() -> Self {
        Plateau {
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            maximise: false,
            cooldown: 0,
            minimum: 0.0,
            memory: PlateauMemory::default(),
        }
    }
}

impl Plateau {
    /// The rate after one more check of the watched number.
    pub fn rate(&mut self, rate: f64, watched: f64) -> f64 {
        let m = &mut self.memory;
        let is_better = m.best.is_none_or(|best| match self.maximise {
            true => watched > best * (1.0 + self.threshold),
            false => watched < best * (1.0 - self.threshold),
        });
        // A number that is none is never the best.
        if is_better && !watched.is_nan() {
            (m.best, m.bad) = (Some(watched), 0);
        } else {
            m.bad += 1;
        }
        if m.cooling > 0 {
            (m.cooling, m.bad) = (m.cooling - 1, 0);
        }
        if m.bad <= self.patience {
            return rate;
        }
        (m.cooling, m.bad) = (self.cooldown, 0);
        let lower = (rate * self.factor).max(self.minimum);
        // Differences below this are no change, as in PyTorch.
        if rate - lower > 1e-8 { lower } else { rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &Schedule, want: &[f64]) {
        schedule.check().expect("a sound schedule");
        for (k, want) in want.iter().enumerate() {
            let got = schedule.rate(1.0, k as u64);
            assert!(
                (got - want).abs() < 1e-6,
                "{schedule:?} at {k}: {got}, not {want}"
            );
        }
    }

    // Numbers of PyTorch 2.15.
    #[test]
    fn schedules_have_the_rates_of_pytorch() {
        let step = Schedule::Step {
            size: 3,
            gamma: 0.1,
        };
        check(&step, &[1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01]);
        let multi = Schedule::MultiStep {
            milestones: vec![1, 3, 3],
            gamma: 0.5,
        };
        check(&multi, &[1.0, 0.5, 0.5, 0.125]);
        check(
            &Schedule::Exponential { gamma: 0.9 },
            &[1.0, 0.9, 0.81, 0.729],
        );
        let cosine = Schedule::Cosine {
            steps: 4,
            minimum: 0.1,
        };
        check(
            &cosine,
            &[1.0, 0.868198, 0.55, 0.231802, 0.1, 0.231802, 0.55],
        );
        let restarts = Schedule::CosineRestarts {
            first: 3,
            factor: 2,
            minimum: 0.0,
        };
        check(
            &restarts,
            &[
                1.0, 0.75, 0.25, 1.0, 0.933013, 0.75, 0.5, 0.25, 0.066987, 1.0,
            ],
        );
        let again = Schedule::CosineRestarts {
            first: 2,
            factor: 1,
            minimum: 0.0,
        };
        check(&again, &[1.0, 0.5, 1.0, 0.5]);
        let linear = Schedule::Linear {
            start: 1.0 / 3.0,
            end: 1.0,
            steps: 5,
        };
        check(
            &linear,
            &[0.333333, 0.466667, 0.6, 0.733333, 0.866667, 1.0, 1.0],
        );
        let cycle = Schedule::one_cycle(9);
        check(
            &cycle,
            &[
                0.04, 0.651358, 0.994415, 0.898567, 0.705645, 0.462637, 0.22873, 0.060893, 4e-6,
            ],
        );
    }

    #[test]
    fn warm_up_goes_before_any_schedule() {
        let s = Schedule::Warmup {
            start: 0.25,
            steps: 3,
            then: Box::new(Schedule::Exponential { gamma: 0.5 }),
        };
        check(&s, &[0.25, 0.5, 0.75, 1.0, 0.5, 0.25]);
        check(
            &Schedule::warmup(3, Schedule::Constant),
            &[0.25, 0.5, 0.75, 1.0],
        );
        let sequence = Schedule::Sequence(vec![
            (0, Schedule::Constant),
            (
                2,
                Schedule::Polynomial {
                    steps: 4,
                    power: 2.0,
                },
            ),
        ]);
        check(&sequence, &[1.0, 1.0, 1.0, 0.5625, 0.25, 0.0625, 0.0]);
    }

    #[test]
    fn plateau_lowers_the_rate_after_too_many_bad_checks() {
        // Rates of ReduceLROnPlateau with patience 1, cooldown 1.
        let mut p = Plateau {
            patience: 1,
            cooldown: 1,
            ..Plateau::default()
        };
        let mut rate = 1.0;
        let watched = [1.0, 0.9, 0.9, 0.95, 0.99, 0.99, 0.99, 0.5, f64::NAN];
        let rates = watched.map(|w| {
            rate = p.rate(rate, w);
            rate
        });
        let want = [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01];
        assert!(
            rates.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12),
            "{rates:?}"
        );
    }

    #[test]
    fn unsound_settings_are_refused() {
        assert!(
            Schedule::Step {
                size: 0,
                gamma: 0.1
            }
            .check()
            .is_err()
        );
        assert!(Schedule::Exponential { gamma: f64::NAN }.check().is_err());
        assert!(
            Schedule::Sequence(vec![(1, Schedule::Constant)])
                .check()
                .is_err()
        );
    }
}

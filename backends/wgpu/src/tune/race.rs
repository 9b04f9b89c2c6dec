//! Times the plans of a problem against each other, on scratch operands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cupola_shaders::Windows;

use super::table::Winner;
use super::{Pace, Question};
use crate::adapter::Timestamps;
use crate::device::{Bindings, Command, Dispatch, GpuBuffer, GpuDevice};
use crate::error::Error;
use crate::executable::{PreparedStep, library_steps};
use crate::library::Place;
use crate::library::plans::{Candidate, Contest};

/// Bytes that the operands of successive runs lie in, if they are small: more than most caches hold, so that runs find
/// memory as cold as among other kernels.
const SPREAD: u64 = 64 << 20;

/// Most copies of the operands.
const MOST_COPIES: u64 = 4;

/// A measurement of at least so long counts, unless it takes more runs than that.
const ROUND: Duration = Duration::from_millis(2);
const MOST_REPEATS: f64 = 64.0;

/// Most rounds in which every plan runs; the best of each counts. Two at least.
const ROUNDS: usize = 5;

/// A plan that takes so many times as long as the best after a round is out.
const HOPELESS: f64 = 2.0;

/// How much faster than the predicted plan another has to be.
const GAIN: f64 = 1.03;

/// A plan in the race.
struct Runner<'a> {
    name: &'a str,
    steps: Vec<PreparedStep>,
    /// Bindings of each step, for each copy of the operands.
    bound: Vec<Vec<Bindings>>,
    best: f64,
}

/// Runs the plans of a contest; `None` when it was stopped, when fewer than two of them run, or the predicted one does not.
///
/// # Errors
/// What the device finds wrong with all of them: memory, a loss.
pub(super) fn race(
    gpu: &GpuDevice,
    contest: &Contest,
    question: &Question,
    pace: &Pace,
    stop: &AtomicBool,
) -> Result<Option<Winner>, Error> {
    let track = Track::new(gpu, contest, question)?;
    let mut runners = Vec::new();
    for candidate in &contest.candidates {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match track.runner(candidate, question) {
            Ok(runner) => runners.push(runner),
            Err(error) => {
                tracing::debug!(plan = candidate.name, %error, "left out");
                gpu.check()?;
            }
        }
    }
    let predicted = &contest.candidates[0].name;
    if runners.len() < 2 || runners[0].name != predicted {
        return Ok(None);
    }
    // The first run also clears the operands.
    track.seconds(&runners[0], 1)?;
    let once = track.seconds(&runners[0], 1)?;
    let repeats = (ROUND.as_secs_f64() / once).clamp(1.0, MOST_REPEATS) as usize;
    let start = Instant::now();
    for round in 0..ROUNDS {
        if round >= 2 && start.elapsed() > pace.patience {
            break;
        }
        for runner in &mut runners {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let begun = Instant::now();
            if round == 0 {
                track.seconds(runner, 1)?;
            }
            runner.best = runner.best.min(track.seconds(runner, repeats)?);
            if pace.shared {
                std::thread::sleep(begun.elapsed());
            }
        }
        let least = least(&runners);
        runners.retain(|runner| runner.best <= HOPELESS * least || runner.name == predicted);
    }
    let least = least(&runners);
    let usual = &runners[0];
    let is_best = |runner: &&Runner<'_>| runner.best <= least;
    let best = match usual.best <= GAIN * least {
        true => usual,
        false => runners.iter().find(is_best).unwrap_or(usual),
    };
    Ok(Some(Winner {
        plan: best.name.to_owned(),
        seconds: best.best,
        predicted: predicted.clone(),
        predicted_seconds: usual.best,
    }))
}

fn least(runners: &[Runner<'_>]) -> f64 {
    (runners.iter()).fold(f64::INFINITY, |least, runner| least.min(runner.best))
}

/// The memory that plans run on.
struct Track<'a> {
    gpu: &'a GpuDevice,
    /// Arguments, in several copies.
    copies: Vec<Vec<GpuBuffer>>,
    /// By position the largest that any plan asks for.
    scratch: Vec<GpuBuffer>,
    /// Nobody reads what faults are reported here.
    faults: GpuBuffer,
}

impl<'a> Track<'a> {
    fn new(gpu: &'a GpuDevice, contest: &Contest, question: &Question) -> Result<Self, Error> {
        let size: u64 = question.arguments.iter().sum();
        let copies = (SPREAD / size.max(1)).clamp(1, MOST_COPIES);
        let copy = |_| {
            let sizes = question.arguments.iter();
            sizes.map(|&size| gpu.allocate(size)).collect()
        };
        let mut scratch: Vec<u64> = Vec::new();
        for candidate in &contest.candidates {
            let needed = &candidate.program.scratch;
            scratch.resize(scratch.len().max(needed.len()), 0);
            for (size, needed) in scratch.iter_mut().zip(needed) {
                *size = (*size).max(*needed);
            }
        }
        Ok(Self {
            gpu,
            copies: (0..copies).map(copy).collect::<Result<_, Error>>()?,
            scratch: (scratch.iter())
                .map(|&size| gpu.allocate(size))
                .collect::<Result<_, Error>>()?,
            faults: gpu.allocate(4)?,
        })
    }

    /// A plan on this memory.
    fn runner<'c>(
        &self,
        candidate: &'c Candidate,
        question: &Question,
    ) -> Result<Runner<'c>, Error> {
        let Candidate { name, program, .. } = candidate;
        let (library, sizes) = (&question.library, &question.sizes);
        let steps = library_steps(self.gpu, library, sizes, program, |_| Windows::ONE)?;
        let bind = |copy: &Vec<GpuBuffer>| {
            let bound = steps.iter().map(|step| {
                let range = |place: &Place| {
                    Ok(match *place {
                        Place::Argument(at) => copy[at].whole(),
                        Place::Scratch(at) => self.scratch[at].first(program.scratch[at]),
                        Place::Book(format) => self.gpu.book(format)?.whole(),
                        Place::Faults => self.faults.whole(),
                    })
                };
                let ranges = step.places.iter().map(range);
                let ranges = ranges.collect::<Result<Vec<_>, Error>>()?;
                self.gpu.bind(&step.pipeline, &ranges)
            });
            bound.collect::<Result<Vec<_>, _>>()
        };
        Ok(Runner {
            name,
            bound: self.copies.iter().map(bind).collect::<Result<_, _>>()?,
            steps,
            best: f64::INFINITY,
        })
    }

    /// Seconds of a run, the mean of some.
    fn seconds(&self, runner: &Runner<'_>, repeats: usize) -> Result<f64, Error> {
        let run = |at: usize| {
            let bound = &runner.bound[at % runner.bound.len()];
            (runner.steps.iter().zip(bound)).map(|(step, bindings)| {
                Command::Dispatch(Dispatch {
                    pipeline: &step.pipeline,
                    bindings,
                    params: &step.params,
                    groups: step.groups,
                })
            })
        };
        let commands: Vec<Command<'_>> = (0..repeats).flat_map(run).collect();
        if self.gpu.features().timestamps != Timestamps::Absent {
            let spans = self.gpu.run_stamped(&commands)?;
            let ends = spans.first().zip(spans.last());
            let taken = ends.map_or(Duration::ZERO, |(first, last)| last.1 - first.0);
            if !taken.is_zero() {
                return Ok(taken.as_secs_f64() / repeats as f64);
            }
        }
        let start = Instant::now();
        let submission = self.gpu.submit(&commands)?;
        self.gpu.wait(&submission)?;
        Ok(start.elapsed().as_secs_f64().max(1e-9) / repeats as f64)
    }
}

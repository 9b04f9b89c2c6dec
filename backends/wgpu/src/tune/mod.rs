//! Tuning: where the cost model finds several plans near each other, the device decides.
//!
//! A problem that is met for the first time is a [`Question`]. Its plans run on scratch operands ([`race`]); the fastest is
//! used from then on and kept in a [`Table`], beside what else is known of the adapter and its driver, and in a file if
//! one is named. In the background this takes half of the device's time at most, in pieces of a few milliseconds, while
//! runs go on by the plans that are predicted to be fastest.

mod race;
mod records;
pub mod table;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustc_hash::FxHashSet;

use crate::adapter::AdapterKind;
use crate::device::{DeviceOptions, GpuDevice, lock};
use crate::error::Error;
use crate::library::plans::Entry;
use crate::library::unit::LibraryUnit;
use crate::peaks::Peaks;
use race::race;
use records::Records;

/// When kernels are timed on the problems they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// Never, and nothing that was measured before counts: every process chooses the same kernels.
    Never,
    /// Never; what was measured before is used.
    Known,
    /// While the first runs go on, for problems whose plans are predicted to be close. Not with a limited memory.
    Background,
    /// Before the first run, for every problem.
    First,
}

/// Whether and when to tune.
#[derive(Debug, Clone, Default)]
pub struct TuneOptions {
    /// When; without one, in the background on real adapters and never on software.
    pub mode: Option<Tuning>,
    /// A file with a [`table::Table`]: what it knows of the device is used, what is found out is added. It need not be there.
    pub table: Option<PathBuf>,
    /// Told about problems that are timed before a run.
    pub observer: Option<Arc<dyn TuneObserver>>,
}

/// Watches tuning.
pub trait TuneObserver: fmt::Debug + Send + Sync {
    /// Number `done` (from 0) of `total` problems comes now; `done == total` is the end of them.
    fn timing(&self, done: usize, total: usize, class: &str);
}

/// A problem whose plans may be worth timing.
#[derive(Debug)]
pub(crate) struct Question {
    pub library: Arc<LibraryUnit>,
    /// Sizes of the launch.
    pub sizes: Vec<i64>,
    /// Bytes of each argument.
    pub arguments: Vec<u64>,
}

/// How much timing may cost.
#[derive(Debug, Clone, Copy)]
struct Pace {
    entry: Entry,
    /// For the contest of one problem, not counting compilers.
    patience: Duration,
    /// Most bytes of operands.
    memory: u64,
    /// Whether runs go on meanwhile, so that the device is left to them half of the time.
    shared: bool,
}

impl Pace {
    const BACKGROUND: Self = Self {
        entry: Entry {
            within: 1.5,
            most: 6,
        },
        patience: Duration::from_millis(300),
        memory: 256 << 20,
        shared: true,
    };
    const FIRST: Self = Self {
        entry: Entry {
            within: 3.0,
            most: 12,
        },
        patience: Duration::from_millis(1000),
        memory: 2 << 30,
        shared: false,
    };
}

/// What a device knows of plans, and finds out.
#[derive(Debug)]
pub(crate) struct Tuner {
    gpu: Arc<GpuDevice>,
    mode: Tuning,
    observer: Option<Arc<dyn TuneObserver>>,
    records: Arc<Records>,
    /// Classes that were asked about.
    met: Mutex<FxHashSet<String>>,
    worker: Mutex<Option<Worker>>,
}

/// The thread that tunes in the background.
#[derive(Debug)]
struct Worker {
    questions: Sender<(String, Question)>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Tuner {
    /// Gives a device what is known of its rates and plans.
    ///
    /// # Errors
    /// [`Error::Table`] for a damaged file.
    pub fn new(gpu: &Arc<GpuDevice>, options: &DeviceOptions) -> Result<Self, Error> {
        let is_software = gpu.facts().kind == AdapterKind::Software;
        let usual = match is_software || options.memory_budget.is_some() {
            true => Tuning::Known,
            false => Tuning::Background,
        };
        let options = &options.tune;
        let mode = options.mode.unwrap_or(usual);
        let records = Records::open(gpu, options.table.as_deref())?;
        if mode != Tuning::Never {
            if let Some(peaks) = Peaks::recall(gpu) {
                gpu.learn(peaks.rates(gpu.model().rates));
            }
            records.apply(gpu);
        }
        Ok(Self {
            gpu: Arc::clone(gpu),
            mode,
            observer: options.observer.clone(),
            records: Arc::new(records),
            met: Mutex::default(),
            worker: Mutex::default(),
        })
    }

    /// Takes note of problems that are about to be run: times their plans now, or soon.
    ///
    /// # Errors
    /// A lost device, and [`Error::Table`] where the file cannot be written.
    pub fn meet(&self, questions: Vec<Question>) -> Result<(), Error> {
        match self.mode {
            Tuning::Never | Tuning::Known => Ok(()),
            Tuning::Background => {
                self.fresh(questions)?.into_iter().for_each(|q| self.ask(q));
                Ok(())
            }
            Tuning::First => self.answer(&self.fresh(questions)?),
        }
    }

    /// Questions that nobody has asked before, with their classes.
    fn fresh(&self, questions: Vec<Question>) -> Result<Vec<(String, Question)>, Error> {
        let choices = Arc::clone(&self.gpu.model().choices);
        let mut met = lock(&self.met);
        let mut fresh = Vec::new();
        for question in questions {
            let Some(class) = question.library.class(&question.sizes)? else {
                continue;
            };
            if choices.plan(&class).is_none() && met.insert(class.clone()) {
                fresh.push((class, question));
            }
        }
        Ok(fresh)
    }

    /// Answers all questions now.
    fn answer(&self, questions: &[(String, Question)]) -> Result<(), Error> {
        let tell = |done: usize, class: &str| {
            if let Some(observer) = &self.observer {
                observer.timing(done, questions.len(), class);
            }
        };
        for (at, (class, question)) in questions.iter().enumerate() {
            tell(at, class);
            let stop = AtomicBool::new(false);
            settle(&self.gpu, &self.records, question, &Pace::FIRST, &stop)?;
        }
        if questions.is_empty() {
            return Ok(());
        }
        tell(questions.len(), "");
        self.records.save(&self.gpu)
    }

    /// Has a question answered in the background. Without a thread for that it stays open.
    fn ask(&self, question: (String, Question)) {
        let mut worker = lock(&self.worker);
        if worker.is_none() {
            *worker = Worker::start(&self.gpu, &self.records);
        }
        if let Some(worker) = &*worker {
            // A worker that has ended has no more answers.
            let _ = worker.questions.send(question);
        }
    }
}

impl Drop for Tuner {
    fn drop(&mut self) {
        if let Some(worker) = lock(&self.worker).take() {
            worker.stop.store(true, Ordering::Relaxed);
            drop(worker.questions);
            // It ends after the piece of work at hand; how, does not matter any more.
            let _ = worker.thread.join();
        }
    }
}

impl Worker {
    fn start(gpu: &Arc<GpuDevice>, records: &Arc<Records>) -> Option<Self> {
        let (questions, asked) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (gpu, records, own) = (Arc::clone(gpu), Arc::clone(records), Arc::clone(&stop));
        let work = move || work(&gpu, &records, &asked, &own);
        let thread = std::thread::Builder::new()
            .name("cupola-tuner".to_owned())
            .spawn(work)
            .ok()?;
        Some(Self {
            questions,
            stop,
            thread,
        })
    }
}

/// Answers questions until nobody asks any more.
fn work(
    gpu: &GpuDevice,
    records: &Records,
    questions: &Receiver<(String, Question)>,
    stop: &AtomicBool,
) {
    while let Ok((class, question)) = questions.recv() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let settled = settle(gpu, records, &question, &Pace::BACKGROUND, stop);
        if let Err(error) = settled.and_then(|()| records.save(gpu)) {
            tracing::warn!(class, %error, "not tuned");
            if gpu.is_lost() {
                return;
            }
        }
    }
}

/// Times the plans of a problem and decides for the fastest, where there are several and memory to run them.
///
/// # Errors
/// What the device finds wrong, other than with a single plan.
fn settle(
    gpu: &GpuDevice,
    records: &Records,
    question: &Question,
    pace: &Pace,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let Question {
        library,
        sizes,
        arguments,
    } = question;
    let needed = arguments.iter().fold(0u64, |all, &n| all.saturating_add(n));
    if needed > pace.memory || arguments.contains(&0) {
        return Ok(());
    }
    let Some(contest) = library.contest(sizes, &gpu.model(), pace.entry)? else {
        return Ok(());
    };
    if contest.candidates.len() < 2 {
        return Ok(());
    }
    let winner = match race(gpu, &contest, question, pace, stop) {
        Ok(winner) => winner,
        // The predicted plan does with less.
        Err(Error::OutOfMemory { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(winner) = winner else {
        return Ok(());
    };
    tracing::debug!(class = contest.class, ?winner, "tuned");
    gpu.decide([(contest.class.as_str(), winner.plan.as_str())]);
    records.note(&contest.class, winner);
    Ok(())
}

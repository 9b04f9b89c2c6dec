//! Replicas: sessions that run one training step together, each on its share of the samples, and meet at collectives.
//!
//! A [`Group`] is what the replicas of this process share; a [`Link`] reaches those of other processes. Collectives are matched
//! by their number: every replica comes to the same ones in the same order. A replica hands its operands over and goes on; a
//! thread of the group combines what all have given, neighbours first (see [`cupola_ir::ops::Collective`]), so that results do
//! not depend on how replicas are spread over processes. Replicas that share a device take turns ([`Turn`]): one computes while
//! the others wait for results.
//!
//! The first replica that fails ends the group: whoever waits, or comes later, is told which one it was and why.

mod link;

pub use link::{Idle, Link};

use crate::error::{Result, RuntimeError};
use cupola_ir::eval::{self, Stop};
use cupola_ir::ops::{Collective, CollectiveKind};
use cupola_ir::{DType, Tensor};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often a waiting run looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// The results of a collective.
#[derive(Debug)]
pub(crate) struct Done {
    pub tensors: Vec<Tensor>,
    /// When all replicas of the process had given their operands, and when the results were there.
    pub span: (Instant, Instant),
}

/// One collective on its way.
#[derive(Debug)]
struct Round {
    op: Collective,
    given: Vec<Option<Vec<Tensor>>>,
    done: Option<Arc<Done>>,
    taken: usize,
}

#[derive(Debug, Default)]
struct Board {
    rounds: VecDeque<Round>,
    /// Number of the first of them.
    first: u64,
    failed: Option<RuntimeError>,
    closed: bool,
}

impl Board {
    fn round(&mut self, number: u64) -> Option<&mut Round> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.rounds.get_mut(at)
    }
}

#[derive(Debug)]
struct Shared {
    /// Replicas in all processes.
    size: usize,
    /// Number of the first of this process.
    first: usize,
    /// Replicas of this process.
    local: usize,
    board: Mutex<Board>,
    changed: Condvar,
    idle: Idle,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn fail(&self, error: RuntimeError) {
        let mut board = self.board();
        if board.failed.is_none() {
            board.failed = Some(error);
        }
        self.changed.notify_all();
    }
}

/// The replicas of this process, and the thread that combines what they give. Dropping it ends that.
#[derive(Debug)]
pub struct Group {
    shared: Arc<Shared>,
    worker: Option<std::thread::JoinHandle<()>>,
}

impl Group {
    /// A group with `local` replicas in this process and as many in each of the others that the link reaches.
    ///
    /// # Errors
    /// [`RuntimeError::Setting`] for numbers that are no powers of two; a system that starts no thread.
    pub fn new(local: usize, link: Option<Box<dyn Link>>) -> Result<Group> {
        let (rank, processes) = link.as_ref().map_or((0, 1), |l| (l.rank(), l.size()));
        for (what, count) in [("replicas in a process", local), ("processes", processes)] {
            if !count.is_power_of_two() {
                let what = format!("{count} {what}: must be a power of two");
                return Err(RuntimeError::Setting(what));
            }
        }
        let shared = Arc::new(Shared {
            size: local * processes,
            first: local * rank,
            local,
            board: Mutex::default(),
            changed: Condvar::new(),
            idle: Idle::new(local),
        });
        let own = shared.clone();
        let worker = std::thread::Builder::new()
            .name("cupola-replicas".into())
            .spawn(move || serve(&own, link))
            .map_err(|_| RuntimeError::Lost)?;
        Ok(Group {
            shared,
            worker: Some(worker),
        })
    }

    /// The replicas of this process in order. Those of a [`Turn`] compute one after the other.
    pub fn replicas(&self, turn: impl Fn(usize) -> Option<Turn>) -> Vec<Arc<Replica>> {
        let each = (0..self.shared.local).map(|at| Replica {
            shared: self.shared.clone(),
            at,
            next: AtomicU64::new(0),
            turn: turn(at),
        });
        each.map(Arc::new).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.shared.board().closed = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            // It has no result, and a panic in it was told where it mattered.
            let _ = worker.join();
        }
    }
}

/// Combines what replicas give, collective by collective, until the group ends or fails.
fn serve(shared: &Shared, mut link: Option<Box<dyn Link>>) {
    let mut number = 0;
    loop {
        let (op, given) = {
            let mut board = shared.board();
            loop {
                if board.closed || board.failed.is_some() {
                    return;
                }
                let ready = |r: &&mut Round| r.given.iter().all(Option::is_some);
                if let Some(round) = board.round(number).filter(ready) {
                    let given = round.given.iter_mut().filter_map(Option::take);
                    break (round.op.clone(), given.collect::<Vec<_>>());
                }
                board = shared
                    .changed
                    .wait(board)
                    .unwrap_or_else(|e| e.into_inner());
            }
        };
        let start = Instant::now();
        let combined = tree(op.kind, given).and_then(|own| match &mut link {
            Some(link) => link::across(&mut **link, number, op.kind, own, &shared.idle),
            None => Ok(own),
        });
        match combined {
            Ok(tensors) => {
                let done = Done {
                    tensors,
                    span: (start, Instant::now()),
                };
                if let Some(round) = shared.board().round(number) {
                    round.done = Some(Arc::new(done));
                }
                shared.changed.notify_all();
            }
            Err(what) => return shared.fail(RuntimeError::Exchange(what)),
        }
        number += 1;
    }
}

/// What neighbours, then neighbouring pairs and so on make of their operands.
fn tree(kind: CollectiveKind, mut all: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>, String> {
    while all.len() > 1 {
        let mut rest = all.into_iter();
        let mut pairs = vec![];
        while let (Some(lower), upper) = (rest.next(), rest.next()) {
            pairs.push(match upper {
                Some(upper) => combine(kind, &lower, &upper)?,
                None => lower,
            });
        }
        all = pairs;
    }
    Ok(all.pop().unwrap_or_default())
}

/// Operand by operand, what two neighbours make of them.
fn combine(
    kind: CollectiveKind,
    lower: &[Tensor],
    upper: &[Tensor],
) -> Result<Vec<Tensor>, String> {
    if lower.len() != upper.len() && kind != CollectiveKind::Broadcast {
        let (a, b) = (lower.len(), upper.len());
        return Err(format!("replicas give {a} and {b} operands"));
    }
    let each = lower.iter().enumerate();
    each.map(|(at, a)| match kind {
        CollectiveKind::Broadcast => Ok(a.clone()),
        CollectiveKind::AllReduceSum if a.dtype() == DType::F32 && a.ty() == upper[at].ty() => {
            Ok(sum(a, &upper[at]))
        }
        _ => eval::combine(kind, a, &upper[at]),
    })
    .collect()
}

/// The sum of two f32 tensors of one shape.
fn sum(a: &Tensor, b: &Tensor) -> Tensor {
    let mut bytes = vec![0u8; a.bytes().len()];
    let operands = a.bytes().chunks_exact(4).zip(b.bytes().chunks_exact(4));
    for (to, (x, y)) in bytes.chunks_exact_mut(4).zip(operands) {
        let read = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        to.copy_from_slice(&(read(x) + read(y)).to_le_bytes());
    }
    let sum = Tensor::new(DType::F32, a.shape().to_vec(), bytes.into());
    sum.unwrap_or_else(|| unreachable!("bug: as many bytes as its operands"))
}

/// Lets sessions that share a device compute one after the other.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<(Mutex<bool>, Condvar)>);

impl Turn {
    fn take(&self) {
        let (busy, free) = &*self.0;
        let mut busy = busy.lock().unwrap_or_else(|e| e.into_inner());
        while *busy {
            busy = free.wait(busy).unwrap_or_else(|e| e.into_inner());
        }
        *busy = true;
    }

    fn give(&self) {
        let (busy, free) = &*self.0;
        *busy.lock().unwrap_or_else(|e| e.into_inner()) = false;
        free.notify_one();
    }
}

/// One replica's place in a group; [`crate::State::replica`] holds it for a session.
#[derive(Debug)]
pub struct Replica {
    shared: Arc<Shared>,
    at: usize,
    /// Number of its next collective.
    next: AtomicU64,
    turn: Option<Turn>,
}

impl Replica {
    /// Its number among all replicas of all processes.
    pub fn number(&self) -> usize {
        self.shared.first + self.at
    }

    /// Replicas in all processes.
    pub fn size(&self) -> usize {
        self.shared.size
    }

    /// Hands operands over; gives the number to wait for.
    pub(crate) fn start(&self, op: &Collective, operands: Vec<Tensor>) -> Result<u64> {
        let (own, size) = (self.number(), self.size());
        if op.replicas != size {
            let what = format!(
                "collective of {} replicas in a group of {size}",
                op.replicas
            );
            return Err(RuntimeError::Exchange(what));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut board = self.shared.board();
        if let Some(error) = &board.failed {
            return Err(error.clone());
        }
        let local = self.shared.local;
        while board.round(number).is_none() {
            board.rounds.push_back(Round {
                op: op.clone(),
                given: (0..local).map(|_| None).collect(),
                done: None,
                taken: 0,
            });
        }
        if let Some(round) = board.round(number) {
            if round.op != *op {
                let (a, b) = (round.op.kind.name(), op.kind.name());
                let what = format!("replica {own} comes to {b} where another comes to {a}");
                return Err(RuntimeError::Exchange(what));
            }
            round.given[self.at] = Some(operands);
        }
        self.shared.changed.notify_all();
        Ok(number)
    }

    /// Waits for the results of a collective; meanwhile others that share its device compute.
    pub(crate) fn wait(&self, number: u64, stop: &Stop) -> Result<Arc<Done>> {
        if let Some(done) = self.take(&mut self.shared.board(), number)? {
            return Ok(done);
        }
        if let Some(turn) = &self.turn {
            turn.give();
        }
        let waited = self.wait_idle(number, stop);
        if let Some(turn) = &self.turn {
            turn.take();
        }
        waited
    }

    fn wait_idle(&self, number: u64, stop: &Stop) -> Result<Arc<Done>> {
        self.shared.idle.during(|| self.wait_for(number, stop))
    }

    fn wait_for(&self, number: u64, stop: &Stop) -> Result<Arc<Done>> {
        let mut board = self.shared.board();
        loop {
            if let Some(done) = self.take(&mut board, number)? {
                return Ok(done);
            }
            stop.check()?;
            let waited = self.shared.changed.wait_timeout(board, LOOK);
            board = waited.unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    fn take(&self, board: &mut Board, number: u64) -> Result<Option<Arc<Done>>> {
        if let Some(error) = &board.failed {
            return Err(error.clone());
        }
        let Some(round) = board.round(number) else {
            return Ok(None);
        };
        let Some(done) = round.done.clone() else {
            return Ok(None);
        };
        round.taken += 1;
        let local = self.shared.local;
        while board.rounds.front().is_some_and(|r| r.taken == local) {
            board.rounds.pop_front();
            board.first += 1;
        }
        Ok(Some(done))
    }

    /// Exchanges tensors outside of a run, by one call on each replica's own thread: the results of a collective.
    ///
    /// # Errors
    /// [`RuntimeError::Replica`] where one has failed, [`RuntimeError::Exchange`] for operands that do not fit together.
    pub fn exchange(&self, kind: CollectiveKind, operands: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let number = self.begin(kind, operands)?;
        self.end(number)
    }

    /// The first half of [`Replica::exchange`], for a thread that speaks for several replicas.
    ///
    /// # Errors
    /// As [`Replica::exchange`].
    pub fn begin(&self, kind: CollectiveKind, operands: Vec<Tensor>) -> Result<u64> {
        let replicas = self.size();
        self.start(&Collective { kind, replicas }, operands)
    }

    /// The second half.
    ///
    /// # Errors
    /// As [`Replica::exchange`].
    pub fn end(&self, number: u64) -> Result<Vec<Tensor>> {
        let done = self.wait_idle(number, &Stop::default())?;
        Ok(done.tensors.clone())
    }

    /// Ends the group: all who wait for this replica are told why.
    pub fn fail(&self, error: &RuntimeError) {
        let told = match error {
            RuntimeError::Replica { .. } | RuntimeError::Exchange(_) => error.clone(),
            error => RuntimeError::Replica {
                number: self.number(),
                what: error.to_string(),
            },
        };
        self.shared.fail(told);
    }

    /// Begins a run of its session: waits for its turn.
    pub(crate) fn enter(self: Arc<Replica>) -> Entered {
        if let Some(turn) = &self.turn {
            turn.take();
        }
        Entered {
            replica: self,
            is_whole: false,
        }
    }
}

/// A run of a replica's session. One that is dropped before it was left ends the group.
pub(crate) struct Entered {
    replica: Arc<Replica>,
    is_whole: bool,
}

impl Entered {
    /// Ends the run; an error ends the group.
    pub fn leave<T>(mut self, result: &Result<T>) {
        self.is_whole = true;
        if let Err(error) = result {
            self.replica.fail(error);
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if !self.is_whole {
            self.replica.fail(&RuntimeError::Lost);
        }
        if let Some(turn) = &self.replica.turn {
            turn.give();
        }
    }
}

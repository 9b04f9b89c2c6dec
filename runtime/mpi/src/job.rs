//! A job, held by the one thread that calls the library.

use crate::MpiError;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::MatchedReceiveVec;
use mpi::request;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a process that does nothing else looks for a message again and again: most come within that.
const EAGER: Duration = Duration::from_millis(5);

/// Pauses after that, or while it computes: short at first, then as long as nobody notices beside a step.
const PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_micros(500));

/// Most bytes of one message: the library counts in 32 bits.
const MOST: usize = 1 << 30;

enum Order {
    Exchange {
        with: usize,
        bytes: Vec<u8>,
        is_idle: Box<dyn Fn() -> bool + Send>,
        reply: Sender<Result<Vec<u8>, MpiError>>,
    },
    Abort(u8),
}

/// A process of an MPI job. Dropping the last handle leaves the job; the library may be joined once only.
#[derive(Debug)]
pub struct Job {
    rank: usize,
    size: usize,
    on_machine: (usize, usize),
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// Rank and size; then those among the processes of this machine.
type Facts = (usize, usize, (usize, usize));

impl Job {
    /// Joins the job that this process belongs to; alone where no launcher started it.
    ///
    /// # Errors
    /// A library that was joined before or cannot be used by several threads.
    pub fn join() -> Result<Job, MpiError> {
        let (told, facts) = mpsc::channel();
        let (orders, taken) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("cupola-mpi".into())
            .spawn(move || serve(&told, &taken))
            .map_err(|e| MpiError::Library(e.to_string()))?;
        let ended = || MpiError::Library("its thread ended".into());
        let (rank, size, on_machine) = facts.recv().map_err(|_| ended())??;
        Ok(Job {
            rank,
            size,
            on_machine,
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of this process among those of its machine, and how many they are.
    pub fn on_machine(&self) -> (usize, usize) {
        self.on_machine
    }

    /// Sends bytes to a process and gives those that it sends; both call at the same time. While the process `is_idle`, they are
    /// looked for without pauses.
    ///
    /// # Errors
    /// What the library finds.
    pub fn exchange(
        &self,
        with: usize,
        bytes: Vec<u8>,
        is_idle: impl Fn() -> bool + Send + 'static,
    ) -> Result<Vec<u8>, MpiError> {
        let (reply, got) = mpsc::channel();
        let order = Order::Exchange {
            with,
            bytes,
            is_idle: Box::new(is_idle),
            reply,
        };
        let ended = || MpiError::Library("its thread ended".into());
        let orders = self.orders.as_ref().ok_or_else(ended)?;
        orders.send(order).map_err(|_| ended())?;
        got.recv().map_err(|_| ended())?
    }

    /// Ends all processes of the job with this status; returns only where that is not possible.
    pub fn abort(&self, status: u8) {
        let Some(orders) = &self.orders else { return };
        if orders.send(Order::Abort(status)).is_ok() {
            // The library ends the process.
            loop {
                std::thread::park();
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It has no result.
            let _ = thread.join();
        }
    }
}

/// Joins, tells what there is, and does what is ordered until nobody can order any more.
fn serve(told: &Sender<Result<Facts, MpiError>>, orders: &Receiver<Order>) {
    // Whoever asked is there until it is told.
    let world = match join() {
        Ok(universe) => universe,
        Err(e) => return drop(told.send(Err(e))),
    };
    let (_universe, world) = world;
    let machine = world.split_shared(world.rank());
    let number = |n: i32| usize::try_from(n).unwrap_or(0);
    let facts = (
        number(world.rank()),
        number(world.size()),
        (number(machine.rank()), number(machine.size())),
    );
    drop(machine);
    let _ = told.send(Ok(facts));
    for order in orders {
        match order {
            Order::Exchange {
                with,
                bytes,
                is_idle,
                reply,
            } => {
                // Whoever ordered it may have failed meanwhile.
                let _ = reply.send(exchange(&world, with, &bytes, &*is_idle));
            }
            Order::Abort(status) => world.abort(i32::from(status)),
        }
    }
}

fn join() -> Result<(Universe, SimpleCommunicator), MpiError> {
    let joined = mpi::initialize_with_threading(Threading::Funneled);
    let (universe, threading) =
        joined.ok_or_else(|| MpiError::Library("it was joined before".into()))?;
    if threading < Threading::Funneled {
        return Err(MpiError::Library("it allows no threads".into()));
    }
    let world = universe.world();
    Ok((universe, world))
}

/// Both send and receive at once, in parts of [`MOST`] bytes; the last is one of fewer.
fn exchange(
    world: &SimpleCommunicator,
    with: usize,
    bytes: &[u8],
    is_idle: &dyn Fn() -> bool,
) -> Result<Vec<u8>, MpiError> {
    let rank = i32::try_from(with).ok().filter(|r| *r < world.size());
    let rank = rank.ok_or_else(|| MpiError::Library(format!("there is no process {with}")))?;
    let other = world.process_at_rank(rank);
    let (mut sends, mut takes) = (true, true);
    let (mut rest, mut got) = (bytes, vec![]);
    while sends || takes {
        let (next, after) = rest.split_at(rest.len().min(MOST));
        let part = turn(&other, sends.then_some(next), takes, is_idle);
        sends = sends && next.len() == MOST;
        if let Some(part) = part {
            takes = part.len() == MOST;
            match got.is_empty() {
                true => got = part,
                false => got.extend(part),
            }
        }
        rest = after;
    }
    Ok(got)
}

/// Sends one message, receives one, or both at once.
fn turn<P: Source + Destination>(
    other: &P,
    bytes: Option<&[u8]>,
    wanted: bool,
    is_idle: &dyn Fn() -> bool,
) -> Option<Vec<u8>> {
    request::scope(|scope| {
        let mut sending = bytes.map(|bytes| other.immediate_send(scope, bytes));
        let (mut got, mut pause) = (None, Pause::default());
        loop {
            if wanted && got.is_none() {
                let message = other.immediate_matched_probe();
                got = message.map(|m| m.matched_receive_vec::<u8>().0);
            }
            sending = sending.take().and_then(|s| s.test().err());
            if sending.is_none() && got.is_some() == wanted {
                return got;
            }
            pause.wait(is_idle());
        }
    })
}

/// Waiting that costs next to nothing while the process computes, or after a while.
struct Pause {
    /// Since when the process has done nothing else.
    idle: Option<Instant>,
    next: Duration,
}

impl Default for Pause {
    fn default() -> Pause {
        Pause {
            idle: None,
            next: PAUSES.0,
        }
    }
}

impl Pause {
    fn wait(&mut self, is_idle: bool) {
        self.idle = self.idle.filter(|_| is_idle);
        if is_idle && self.idle.get_or_insert_with(Instant::now).elapsed() < EAGER {
            std::thread::yield_now();
        } else {
            std::thread::sleep(self.next);
            // A computing process notices soon when it becomes idle.
            if is_idle {
                self.next = (self.next * 2).min(PAUSES.1);
            }
        }
    }
}

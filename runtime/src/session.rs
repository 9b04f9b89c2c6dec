//! The user's object: a program with a state of its own.

use crate::error::{Result, RuntimeError};
use crate::program::Program;
use crate::state::{RunStats, State, Weights};
use crate::value::{Place, RunValue};
use cupola_ir::eval::Stop;
use cupola_ir::{Graph, Value};
use std::ops::DerefMut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};

/// Stops a run from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Makes the running or next run fail with [`RuntimeError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes a cancellation back.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What to run with: inputs by name, on the host or a device, and where outputs go (on the host where nothing is said).
#[derive(Debug, Default)]
pub struct Request {
    inputs: Vec<(String, RunValue)>,
    places: Vec<(String, Place)>,
}

impl Request {
    /// Nothing yet.
    pub fn new() -> Request {
        Request::default()
    }

    /// Gives an input.
    #[must_use]
    pub fn input(mut self, name: &str, value: impl Into<RunValue>) -> Request {
        self.inputs.push((name.to_string(), value.into()));
        self
    }

    /// Says where an output goes.
    #[must_use]
    pub fn output(mut self, name: &str, place: Place) -> Request {
        self.places.push((name.to_string(), place));
        self
    }

    /// Inputs and places in the graph's order.
    fn order(self, graph: &Graph) -> Result<Job> {
        let names: Vec<&str> = (graph.inputs().iter())
            .map(|v| graph.input_name(*v))
            .collect();
        let taken = |i: usize| format!("not given; its type is {}", graph.ty(graph.inputs()[i]));
        let inputs = in_order(self.inputs, &names, "input", |i| {
            Err(RuntimeError::input(names[i], taken(i)))
        })?;
        let names: Vec<&str> = graph.outputs().iter().map(|(n, _)| &**n).collect();
        let places = in_order(self.places, &names, "output", |_| Ok(Place::Host))?;
        Ok(Job { inputs, places })
    }
}

/// Named things in the order of `names`, each given at most once; `missing` stands in for those that are not.
fn in_order<T>(
    given: Vec<(String, T)>,
    names: &[&str],
    kind: &str,
    missing: impl Fn(usize) -> Result<T>,
) -> Result<Vec<T>> {
    let mut ordered: Vec<Option<T>> = names.iter().map(|_| None).collect();
    for (name, thing) in given {
        let Some(at) = names.iter().position(|n| *n == name) else {
            let what = format!("no such {kind}; there are {}", names.join(", "));
            return Err(RuntimeError::input(name, what));
        };
        if ordered[at].replace(thing).is_some() {
            return Err(RuntimeError::input(name, "given twice"));
        }
    }
    let each = ordered.into_iter().enumerate();
    each.map(|(i, thing)| thing.map_or_else(|| missing(i), Ok))
        .collect()
}

/// A request in the graph's order.
struct Job {
    inputs: Vec<RunValue>,
    places: Vec<Place>,
}

/// Named outputs in the graph's order.
pub type Outputs = Vec<(String, RunValue)>;

/// A submitted run.
#[derive(Debug)]
pub struct Pending {
    result: Receiver<Result<Outputs>>,
    cancel: Cancel,
}

impl Pending {
    /// Waits for the outputs.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn wait(self) -> Result<Outputs> {
        self.result.recv().unwrap_or(Err(RuntimeError::Lost))
    }

    /// The outputs if the run has ended; they are given once.
    pub fn try_take(&mut self) -> Option<Result<Outputs>> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(RuntimeError::Lost)),
        }
    }

    /// Stops this run, or keeps it from starting.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

/// Runs a shared [`Program`] for one caller. Sessions of one program may run at the same time.
pub struct Session {
    core: Arc<Core>,
    worker: Option<Sender<Box<dyn FnOnce(&Core) + Send>>>,
    /// Submitted runs that have not ended.
    waiting: Arc<AtomicUsize>,
}

/// What the session shares with the thread that runs submitted requests.
struct Core {
    program: Arc<Program>,
    state: Mutex<State>,
    cancel: Cancel,
}

impl Core {
    fn run(&self, job: Job, cancel: Option<&Cancel>) -> Result<Vec<RunValue>> {
        let flags = std::iter::once(&self.cancel).chain(cancel);
        let stop = Stop {
            flags: flags.map(|c| c.0.clone()).collect(),
            deadline: None,
        };
        let mut state = self.state();
        self.program.run(&mut state, job.inputs, job.places, &stop)
    }

    /// A run that panicked has not touched the state, which changes at the end only, but for elements that its plan writes over.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn name(&self, outputs: Vec<RunValue>) -> Outputs {
        let names = self.program.graph().outputs().iter();
        names.map(|(n, _)| n.to_string()).zip(outputs).collect()
    }
}

/// The stack of the thread that runs submitted requests: deeply nested regions recurse.
const STACK_SIZE: usize = 64 << 20;

impl Session {
    /// A session with fresh state and seed 0.
    pub fn new(program: Arc<Program>) -> Session {
        Session::with_weights(program, Weights::default())
    }

    /// A session with fresh state, seed 0 and weights that other sessions may share.
    pub fn with_weights(program: Arc<Program>, weights: Weights) -> Session {
        let mut state = program.new_state(0);
        state.weights = weights;
        Session {
            core: Arc::new(Core {
                program,
                state: Mutex::new(state),
                cancel: Cancel::default(),
            }),
            worker: None,
            waiting: Arc::default(),
        }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.core.program
    }

    /// The state, to look at, save or restore it; waits for a run in progress.
    pub fn state_mut(&mut self) -> impl DerefMut<Target = State> + '_ {
        self.core.state()
    }

    /// Figures of the last run; waits for a run in progress.
    pub fn stats(&self) -> RunStats {
        self.core.state().stats
    }

    /// A handle that stops runs from another thread.
    pub fn cancel_handle(&self) -> Cancel {
        self.core.cancel.clone()
    }

    /// Runs with named inputs; gives named outputs on the host in the graph's order.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a missing, unknown or unfit input; otherwise as [`Program::run`].
    pub fn run(&mut self, inputs: Vec<(&str, Value)>) -> Result<Vec<(String, Value)>> {
        let each = inputs.into_iter();
        let request = each.fold(Request::new(), |r, (n, v)| r.input(n, v));
        let outputs = self.execute(request)?.into_iter();
        outputs.map(|(n, v)| Ok((n, v.to_host()?))).collect()
    }

    /// Runs a request, after those submitted before; gives named outputs in the graph's order.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn execute(&mut self, request: Request) -> Result<Outputs> {
        if self.waiting.load(Ordering::Acquire) > 0 {
            return self.submit(request)?.wait();
        }
        let job = request.order(self.core.program.graph())?;
        Ok(self.core.name(self.core.run(job, None)?))
    }

    /// Starts a request and returns at once. Requests of one session run in order, on a thread of the session's own.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a missing or unknown input, [`RuntimeError::Lost`] when no thread can be started;
    /// what the run finds comes from [`Pending::wait`].
    pub fn submit(&mut self, request: Request) -> Result<Pending> {
        let job = request.order(self.core.program.graph())?;
        let (sender, result) = mpsc::channel();
        let cancel = Cancel::default();
        let (own, waiting) = (cancel.clone(), self.waiting.clone());
        waiting.fetch_add(1, Ordering::AcqRel);
        let task = Box::new(move |core: &Core| {
            let outputs = core.run(job, Some(&own)).map(|all| core.name(all));
            waiting.fetch_sub(1, Ordering::AcqRel);
            // Whoever submitted may not care any more.
            let _ = sender.send(outputs);
        });
        let sent = self.worker()?.send(task);
        sent.map_err(|_| RuntimeError::Lost)?;
        Ok(Pending { result, cancel })
    }

    /// The queue of the session's thread, which ends with the session, once the queue is empty.
    fn worker(&mut self) -> Result<&Sender<Box<dyn FnOnce(&Core) + Send>>> {
        if self.worker.is_none() {
            let (sender, tasks) = mpsc::channel::<Box<dyn FnOnce(&Core) + Send>>();
            let core = self.core.clone();
            std::thread::Builder::new()
                .name("cupola-session".into())
                .stack_size(STACK_SIZE)
                .spawn(move || tasks.into_iter().for_each(|task| task(&core)))
                .map_err(|_| RuntimeError::Lost)?;
            self.worker = Some(sender);
        }
        self.worker.as_ref().ok_or(RuntimeError::Lost)
    }
}

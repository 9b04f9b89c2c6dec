//! What belongs to one caller, and the weights that callers share.

use crate::error::{Result, RuntimeError};
use crate::pool::{Layouts, Pool};
use crate::record::Recording;
use crate::replicas::Replica;
use crate::value::RunValue;
use cupola_ir::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Named weights on a device; clones share them. [`crate::Program::weights`] makes one.
#[derive(Clone, Debug, Default)]
pub struct Weights(pub(crate) Arc<BTreeMap<String, RunValue>>);

/// Bounds on the runs of one caller; `None` leaves a default that only stops what can never end well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunLimits {
    /// Bytes of weights and working memory together.
    pub memory: Option<u64>,
    /// Time of one run, looked at between steps.
    pub time: Option<Duration>,
    /// Iterations of one loop.
    pub trips: Option<u64>,
}

/// What one caller keeps between runs: state slots (in the device's memory, once a run has written them), random
/// counters, reusable memory.
#[derive(Debug)]
pub struct State {
    pub(crate) slots: BTreeMap<String, RunValue>,
    /// Weights that the graph takes by name.
    pub weights: Weights,
    /// Seed of random ops.
    pub seed: u64,
    /// Number of complete runs.
    pub run: u64,
    /// Bounds on every run.
    pub limits: RunLimits,
    /// Give back, during a run, the pages of files in which it picked rows of constants: they count as memory of the process
    /// until then. For runs that pick many; each page costs a fault when it is needed again.
    pub gives_back_picked: bool,
    /// Figures of the last run.
    pub stats: RunStats,
    /// Notes every step of every run while it is there. On a device with a queue steps then no longer overlap.
    pub recording: Option<Recording>,
    /// Its place among the replicas that run the program together, which collectives of several need.
    pub replica: Option<Arc<Replica>>,
    pub(crate) pools: Vec<Pool>,
    pub(crate) layouts: Layouts,
}

impl State {
    pub(crate) fn new(slots: BTreeMap<String, RunValue>, seed: u64) -> State {
        State {
            slots,
            weights: Weights::default(),
            seed,
            run: 0,
            limits: RunLimits::default(),
            gives_back_picked: false,
            stats: RunStats::default(),
            recording: None,
            replica: None,
            pools: vec![],
            layouts: Layouts::default(),
        }
    }

    /// Names of the state slots, sorted.
    pub fn slot_names(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// The value of a state slot, where it is.
    pub fn slot(&self, name: &str) -> Option<&RunValue> {
        self.slots.get(name)
    }

    /// Gives a state slot a value; its type is checked by the next run.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a slot that the graph does not have.
    pub fn set_slot(&mut self, name: &str, value: impl Into<RunValue>) -> Result<()> {
        match self.slots.get_mut(name) {
            Some(slot) => *slot = value.into(),
            None => return Err(RuntimeError::input(name, "no such state slot")),
        }
        Ok(())
    }

    /// All state slots on the host, to save them.
    ///
    /// # Errors
    /// A device that fails.
    pub fn save(&self) -> Result<BTreeMap<String, Value>> {
        let each = self
            .slots
            .iter()
            .map(|(n, v)| Ok((n.clone(), v.to_host()?)));
        each.collect()
    }
}

/// Figures of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunStats {
    /// Wall time.
    pub time: Duration,
    /// Units launched.
    pub launches: u64,
    /// Times that the host waited for results of another device before the run could go on or end.
    pub waits: u64,
    /// Times that commands were submitted to other devices than the host.
    pub submissions: u64,
    /// Bytes that the host read from their memory.
    pub read_bytes: u64,
    /// Bytes of working memory held after the run, for the next one.
    pub held_bytes: u64,
    /// Most bytes of working memory held.
    pub peak_bytes: u64,
    /// Bytes of working memory that the plan asks for at these sizes, packed; 0 on the reference device.
    pub planned_bytes: u64,
}

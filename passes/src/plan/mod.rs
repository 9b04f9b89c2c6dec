//! The plan: what a compiled graph does, step by step, and where its values live.
//!
//! A plan is symbolic: extents are dimensions, offsets are decided by [`pack`] when symbols are bound, from what
//! [`Slot::first`] and [`Slot::last`] say is alive together. Nothing here names a backend; devices are positions in
//! the list of targets that the graph was compiled for. Device 0 is always the host's CPU.
//!
//! Reading order: this file (what a plan is), `build` (how it is made), `once` (what is computed when it is loaded), `inplace`
//! (results over operands), `require` (what must hold of run-time sizes), `pack` (offsets), `footprint` (bytes of all that),
//! `check` (the checker that tests run beside).

mod build;
mod check;
mod footprint;
mod inplace;
mod once;
mod pack;
mod require;

pub use check::{check_packing, check_plan};
pub use footprint::{Footprint, footprint};
pub use pack::{Packing, is_packed, pack, slot_sizes};
pub use require::Require;

pub(crate) use build::build;
pub(crate) use check::touched;
pub(crate) use pack::owner;

use cupola_ir::kernel::Unit;
use cupola_ir::{Dim, Graph, NodeId, Origin, Sym, Tensor, ValueId, ValueType};
use std::ops::Range;
use std::sync::Arc;

/// Position in the list of targets given to `compile`. 0 is the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// The host's CPU.
    pub const HOST: DeviceId = DeviceId(0);
}

/// Position in [`Plan::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// Where a slot's memory comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    /// Input of the graph (position), given by the caller.
    Input(usize),
    /// A weight by name.
    Param(String),
    /// A constant, put on the device once.
    Const(Tensor),
    /// Made of constants when the plan is loaded, by [`Plan::once`] at this position.
    Made {
        /// The position.
        by: usize,
    },
    /// A state slot: the value at the start of the run.
    State(String),
    /// Planned memory, alive from `first` to `last`.
    Planned,
    /// Bytes of another slot from a byte offset on (a reshape, a slice of whole rows, a part of a concat).
    Alias {
        /// The slot that owns the memory; never an alias itself.
        of: SlotId,
        /// Byte offset.
        offset: Dim,
    },
    /// A host value that is no tensor or holds strings; lives in a table of values instead of memory.
    HostValue,
}

/// A value at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// The value of the compiled graph it holds.
    pub value: ValueId,
    /// Type; dense row-major on its device unless a host value.
    pub ty: ValueType,
    /// Device whose memory it is in.
    pub device: DeviceId,
    /// Where the memory comes from.
    pub storage: Storage,
    /// Step that writes it (0 for what exists at the start).
    pub first: usize,
    /// Last step that reads it (or an alias of it); the number of steps for outputs and states.
    pub last: usize,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Runs a compiled unit.
    Launch {
        /// Position in [`Compiled::units`].
        unit: usize,
        /// Buffer arguments in the unit's order.
        buffers: Vec<SlotId>,
    },
    /// Interprets one node on the host: host ops, and ops that no backend here can run.
    Host {
        /// Node of [`Compiled::graph`].
        node: NodeId,
        /// Operands, on the host.
        operands: Vec<SlotId>,
        /// Results, on the host.
        results: Vec<SlotId>,
    },
    /// Runs a node with regions. What decides which region runs and how often is on the host; other operands are where they
    /// were made, results where the first region gives them.
    Control {
        /// Node of [`Compiled::graph`].
        node: NodeId,
        /// Operands.
        operands: Vec<SlotId>,
        /// Results.
        results: Vec<SlotId>,
        /// One compiled region per region of the node, in order.
        bodies: Vec<Compiled>,
    },
    /// Copies a value between devices.
    Transfer {
        /// Source.
        from: SlotId,
        /// Destination, of the same type.
        to: SlotId,
    },
    /// Binds a symbol to a number (i64 scalar on the host).
    Bind {
        /// The symbol.
        sym: Sym,
        /// The number.
        from: SlotId,
        /// Smallest allowed value.
        min: i64,
    },
    /// Fails the run unless the bound sizes are as a node's operands and attributes need them. Comes before anything
    /// that relies on it.
    Require {
        /// Node of [`Compiled::graph`].
        node: NodeId,
        /// What must hold.
        that: Require,
    },
    /// Hands operands to the other replicas of the program, in the order of these steps, and goes on.
    Collective {
        /// Node of [`Compiled::graph`].
        node: NodeId,
        /// Operands, on any device.
        operands: Vec<SlotId>,
    },
    /// Waits for the results of a collective.
    Await {
        /// Node of the collective.
        node: NodeId,
        /// Results, on the host.
        results: Vec<SlotId>,
    },
    /// Makes a slot's contents the value of a state after the run.
    WriteState {
        /// State slot name.
        slot: String,
        /// The new value.
        from: SlotId,
    },
}

/// A unit that reads constants only and has no sizes, run when the plan is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Once {
    /// Position in [`Compiled::units`].
    pub unit: usize,
    /// Buffer arguments in the unit's order: constants, what was made of them before, and the result.
    pub buffers: Vec<SlotId>,
    /// The slot of the result.
    pub result: SlotId,
}

/// Steps and slots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Values.
    pub slots: Vec<Slot>,
    /// What is computed of constants when the plan is loaded, in order.
    pub once: Vec<Once>,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Runs of launches on one device that do not depend on each other, each a long chain of small steps, and may run at
    /// the same time.
    pub concurrent: Vec<Range<usize>>,
    /// Slots of the graph's inputs, in order.
    pub inputs: Vec<SlotId>,
    /// Slots of the graph's outputs, in order, on the host or the primary device.
    pub outputs: Vec<SlotId>,
    /// Slots of states that steps write into: their memory must be the run's alone. After a run that fails, elements that it
    /// was to write are undefined.
    pub overwritten: Vec<SlotId>,
    /// From this step on whole states are written over; a run that came so far is not stopped, since its states would be partly
    /// those of before.
    pub commits: Option<usize>,
}

/// A unit and where it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedUnit {
    /// Device.
    pub device: DeviceId,
    /// What to compile.
    pub unit: Unit,
    /// Nodes of [`Compiled::graph`] that it computes, for `explain` and profiles.
    pub nodes: Vec<NodeId>,
}

/// A composite that stood in the graph, whether the model's file or a pattern made it one.
#[derive(Clone, Debug, PartialEq)]
pub struct Recognised {
    /// Name of the composite.
    pub name: &'static str,
    /// Source nodes that it stands for.
    pub origins: Vec<Arc<Origin>>,
    /// The device has a library kernel for it; otherwise it was taken apart and fused with what is around it.
    pub library: bool,
}

/// Why two ops were not fused or an op was not placed on the primary device.
#[derive(Clone, Debug, PartialEq)]
pub struct Miss {
    /// Short code from [`MissCode`].
    pub code: MissCode,
    /// The node that would have joined.
    pub node: NodeId,
    /// The node that blocks.
    pub blocker: Option<NodeId>,
    /// What could be done about it.
    pub hint: String,
}

/// The closed list of reasons for a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MissCode {
    /// The value has several users and recomputing it would cost more than storing it.
    SeveralUsers,
    /// The value is an output or a state.
    Escapes,
    /// Two reductions over different axes.
    ReductionShape,
    /// More buffer arguments than the device allows.
    TooManyBuffers,
    /// The kernel would become too large.
    TooLarge,
    /// The value would be computed again for every repetition of it.
    Recompute,
    /// The op runs on another device.
    OtherDevice,
    /// The device has no kernel for the op, dtype or scalar function.
    Unsupported,
    /// The pattern is nearly a known composite, but differs in a detail.
    NearPattern,
    /// The library kernel takes no epilogue or no such operand.
    NoEpilogue,
    /// The op orders or addresses elements by data.
    DataDependent,
    /// The level asked for does not fuse.
    Level,
    /// Kept instead of several values that it is made of.
    KeepsLess,
}

impl MissCode {
    /// Text code, as in `explain`.
    pub fn name(self) -> &'static str {
        match self {
            MissCode::SeveralUsers => "several-users",
            MissCode::Escapes => "escapes",
            MissCode::ReductionShape => "reduction-shape",
            MissCode::TooManyBuffers => "too-many-buffers",
            MissCode::TooLarge => "too-large",
            MissCode::Recompute => "recompute",
            MissCode::OtherDevice => "other-device",
            MissCode::Unsupported => "unsupported",
            MissCode::NearPattern => "near-pattern",
            MissCode::NoEpilogue => "no-epilogue",
            MissCode::DataDependent => "data-dependent",
            MissCode::Level => "level",
            MissCode::KeepsLess => "keeps-less",
        }
    }
}

/// A compiled graph: everything the runtime needs, nothing backend-specific.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// The graph after all passes; nodes are referred to by steps.
    pub graph: Graph,
    /// Units to compile.
    pub units: Vec<PlacedUnit>,
    /// Steps and slots.
    pub plan: Plan,
    /// Fusions and placements that were not made.
    pub misses: Vec<Miss>,
    /// Composites of the model, as read or raised.
    pub composites: Vec<Recognised>,
}

impl Compiled {
    /// The regions of all control steps, compiled.
    pub fn bodies(&self) -> impl Iterator<Item = &Compiled> {
        self.plan.steps.iter().flat_map(|step| match step {
            Step::Control { bodies, .. } => &bodies[..],
            _ => &[],
        })
    }
}

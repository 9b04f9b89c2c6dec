//! Cupola's passes: graph to graph to kernels to plan.
//!
//! [`compile`] walks one constant table, [`PIPELINE`]; every entry is a plain function over [`Work`]. Reading order is
//! that of the table: `raise`, `merge`, `decompose`, `sink`, `layout`, `precision`, `narrow`, `stage`, `split`, `bucket`,
//! `advance`, `place`, `fuse`, `lower`, `plan`.

mod advance;
mod alias;
mod autocast;
pub mod autodiff;
mod bucket;
pub mod cost;
mod decompose;
mod edit;
mod error;
pub mod explain;
mod fuse;
mod layout;
mod lower;
mod merge;
mod narrow;
mod place;
pub mod plan;
mod precision;
mod raise;
mod region;
mod simplify;
mod sink;
mod split;
mod stage;

pub use autocast::autocast;
pub use error::{PassError, Result};
pub use lower::{RUN, SEED};
pub use plan::{
    Compiled, DeviceId, Miss, MissCode, Once, PlacedUnit, Plan, Recognised, Slot, SlotId, Step,
    Storage,
};
pub use precision::{Precision, with_precision};

use cupola_ir::target::Target;
use cupola_ir::{CoreOp, Graph, Sym, ValueId};
use rustc_hash::FxHashSet;
use std::fmt;
use std::sync::Arc;

/// Deepest nesting of regions.
const MAX_DEPTH: usize = 32;

/// Called after every pass with its name and the graph.
pub type Hook = Arc<dyn Fn(&str, &Graph) + Send + Sync>;

/// How much the passes do to a graph; each level does what those before it do. Results agree up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// One unit per op that computes something, after exact simplification: what the other levels are checked against.
    Separate,
    /// Ops are fused.
    Fuse,
    /// Patterns become composites, for which devices have kernels.
    #[default]
    Raise,
    /// Products that share an operand become one, at the price of a copy of their weights.
    Merge,
}

impl Level {
    /// The level of a number as in `-O2`; larger numbers are the last level.
    pub fn from_number(number: u8) -> Level {
        match number {
            0 => Level::Separate,
            1 => Level::Fuse,
            2 => Level::Raise,
            _ => Level::Merge,
        }
    }
}

/// How to compile.
#[derive(Clone)]
pub struct Options {
    /// How much is done.
    pub level: Level,
    /// The device that runs what it can; the rest runs on the host.
    pub device: DeviceId,
    /// Type in which products with constant weights are computed.
    pub precision: Precision,
    /// Verify the graph after every pass.
    pub verify: bool,
    /// Bytes of gradients that travel between replicas together, at most but for the last that are added; fewer in small graphs.
    pub bucket: u64,
    /// Sees the graph after every pass (of the outermost graph only).
    pub dump_after: Option<Hook>,
}

/// Usual bytes of gradients that travel between replicas together. Larger ones begin later and overlap less with the backward
/// pass, smaller ones cost more messages.
pub const USUAL_BUCKET: u64 = 4 << 20;

impl Default for Options {
    fn default() -> Options {
        Options {
            level: Level::default(),
            device: DeviceId::HOST,
            precision: Precision::default(),
            verify: false,
            bucket: USUAL_BUCKET,
            dump_after: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Options {{ level: {:?}, device: {:?}, precision: {:?}, verify: {}, bucket: {} }}",
            self.level, self.device, self.precision, self.verify, self.bucket
        )
    }
}

/// What all passes see.
pub(crate) struct Context<'a> {
    targets: &'a [&'a Target],
    options: &'a Options,
    /// Symbols bound outside, for regions.
    outer: FxHashSet<Sym>,
    depth: usize,
    /// What becomes of a region's outputs.
    feedback: Feedback,
}

/// What becomes of a region's outputs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Feedback {
    /// So many of the first decide whether the region runs again.
    decisions: usize,
    /// So many after them are the inputs of the next run, from this input on.
    carried: usize,
    first_input: usize,
}

impl Feedback {
    /// That of an op's regions.
    fn of(op: &CoreOp) -> Feedback {
        match op {
            // The condition comes first, and before the carried values the iteration's number.
            CoreOp::Loop(p) => Feedback {
                decisions: 1,
                carried: p.carried,
                first_input: 1,
            },
            CoreOp::Scan(p) => Feedback {
                carried: p.carried,
                ..Feedback::default()
            },
            _ => Feedback::default(),
        }
    }

    /// The output that is an input in the next run.
    fn output_for(&self, input: usize) -> Option<usize> {
        let at = input.checked_sub(self.first_input)?;
        (at < self.carried).then_some(self.decisions + at)
    }
}

impl Context<'_> {
    fn target(&self, device: DeviceId) -> &Target {
        self.targets[device.0 as usize]
    }
}

/// A graph on its way to a plan.
#[derive(Default)]
pub(crate) struct Work {
    graph: Graph,
    places: place::Places,
    fusion: fuse::Fusion,
    units: Vec<lower::LoweredUnit>,
    plan: Plan,
    misses: Vec<Miss>,
    composites: Vec<Recognised>,
    /// Values that end something close to a known composite, and what differs.
    near: Vec<(Option<ValueId>, String)>,
}

impl Work {
    /// Gives what is noted of values their new numbers; what is noted of values that are gone goes too.
    fn renumber(&mut self, now: impl Fn(ValueId) -> Option<ValueId>) {
        for (v, _) in &mut self.near {
            *v = v.and_then(&now);
        }
        self.near.retain(|(v, _)| v.is_some());
    }
}

type Pass = fn(&mut Work, &Context) -> Result<()>;

/// The passes in order, and the level from which on they run.
const PIPELINE: &[(&str, Level, Pass)] = &[
    ("simplify", Level::Separate, simplify::run),
    ("raise", Level::Raise, raise::run),
    ("merge", Level::Merge, merge::run),
    ("decompose", Level::Separate, decompose::run),
    ("sink", Level::Fuse, sink::run),
    ("layout", Level::Fuse, layout::run),
    ("clean", Level::Separate, simplify::run),
    ("precision", Level::Separate, precision::run),
    ("narrow", Level::Fuse, narrow::run),
    ("stage", Level::Fuse, stage::run),
    ("split", Level::Separate, split::run),
    ("bucket", Level::Fuse, bucket::run),
    ("advance", Level::Fuse, advance::run),
    ("place", Level::Separate, place::run),
    ("fuse", Level::Separate, fuse::run),
    ("lower", Level::Separate, lower::run),
    ("plan", Level::Separate, plan::build),
];

/// Names of the passes in order, as `dump_after` is given them.
pub fn pass_names() -> impl Iterator<Item = &'static str> {
    PIPELINE.iter().map(|(name, ..)| *name)
}

/// Compiles a graph for `targets`; `targets[0]` is the host's CPU.
///
/// # Errors
/// An invalid graph, something not implemented, or a limit.
pub fn compile(graph: Graph, targets: &[&Target], options: &Options) -> Result<Compiled> {
    if options.device.0 as usize >= targets.len() {
        return Err(PassError::Options(format!(
            "device {} of {} targets",
            options.device.0,
            targets.len()
        )));
    }
    let context = Context {
        targets,
        options,
        outer: FxHashSet::default(),
        depth: 0,
        feedback: Feedback::default(),
    };
    compile_in(graph, &context)
}

/// As [`compile`], inside a context: regions come back here.
pub(crate) fn compile_in(graph: Graph, context: &Context) -> Result<Compiled> {
    if context.depth > MAX_DEPTH {
        return Err(PassError::Limit(format!(
            "regions nested deeper than {MAX_DEPTH}"
        )));
    }
    let mut work = Work {
        graph,
        ..Work::default()
    };
    verify(&work, context, "import")?;
    for (name, level, pass) in PIPELINE {
        let span = tracing::debug_span!("pass", name, nodes = work.graph.node_count()).entered();
        let start = std::time::Instant::now();
        if *level <= context.options.level {
            pass(&mut work, context)?;
        }
        tracing::debug!(micros = start.elapsed().as_micros() as u64, "done");
        drop(span);
        if context.options.verify {
            verify(&work, context, name)?;
        }
        if let (Some(hook), 0) = (&context.options.dump_after, context.depth) {
            hook(name, &work.graph);
        }
    }
    Ok(Compiled {
        graph: work.graph,
        units: work.units.into_iter().map(|u| u.placed).collect(),
        plan: work.plan,
        misses: work.misses,
        composites: work.composites,
    })
}

fn verify(work: &Work, context: &Context, pass: &'static str) -> Result<()> {
    cupola_ir::graph::verify_region(&work.graph, &context.outer)
        .map_err(|error| PassError::Graph { pass, error })
}

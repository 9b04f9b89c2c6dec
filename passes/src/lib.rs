//! Cupola's passes: graph to graph to kernels to plan.
//!
//! [`compile`] walks one constant table, [`PIPELINE`]; every entry is a plain function over [`Work`]. Reading order is
//! that of the table: `raise`, `decompose`, `place`, `fuse`, `lower`, `plan`.

pub mod cost;
mod decompose;
mod edit;
mod error;
pub mod explain;
mod fuse;
mod lower;
mod place;
pub mod plan;
mod raise;
mod region;
mod simplify;

pub use cost::kernel_cost;
pub use error::{PassError, Result};
pub use lower::{RUN, SEED};
pub use plan::{Compiled, DeviceId, Miss, MissCode, PlacedUnit, Plan, Slot, SlotId, Step, Storage};

use cupola_ir::target::Target;
use cupola_ir::{Graph, Sym, ValueId};
use rustc_hash::FxHashSet;
use std::fmt;
use std::sync::Arc;

/// Deepest nesting of regions.
const MAX_DEPTH: usize = 32;

/// Called after every pass with its name and the graph.
pub type Hook = Arc<dyn Fn(&str, &Graph) + Send + Sync>;

/// How to compile.
#[derive(Clone, Default)]
pub struct Options {
    /// The device that runs what it can; the rest runs on the host.
    pub device: DeviceId,
    /// Verify the graph after every pass.
    pub verify: bool,
    /// Sees the graph after every pass (of the outermost graph only).
    pub dump_after: Option<Hook>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Options {{ device: {:?}, verify: {} }}",
            self.device, self.verify
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
}

impl Context<'_> {
    fn target(&self, device: DeviceId) -> &Target {
        self.targets[device.0 as usize]
    }

    fn is_region(&self) -> bool {
        self.depth > 0
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
    /// Values that end something close to a known composite, and what differs.
    near: Vec<(Option<ValueId>, String)>,
}

type Pass = fn(&mut Work, &Context) -> Result<()>;

/// The passes in order.
const PIPELINE: &[(&str, Pass)] = &[
    ("simplify", simplify::run),
    ("raise", raise::run),
    ("decompose", decompose::run),
    ("clean", simplify::run),
    ("place", place::run),
    ("fuse", fuse::run),
    ("lower", lower::run),
    ("plan", plan::build),
];

/// Names of the passes in order, as `dump_after` is given them.
pub fn pass_names() -> impl Iterator<Item = &'static str> {
    PIPELINE.iter().map(|(name, _)| *name)
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
    for (name, pass) in PIPELINE {
        let span = tracing::debug_span!("pass", name, nodes = work.graph.node_count()).entered();
        let start = std::time::Instant::now();
        pass(&mut work, context)?;
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
    })
}

fn verify(work: &Work, context: &Context, pass: &'static str) -> Result<()> {
    cupola_ir::graph::verify_region(&work.graph, &context.outer)
        .map_err(|error| PassError::Graph { pass, error })
}

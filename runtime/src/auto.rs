//! The device `auto`: compiles for the CPU and for every GPU, times both, keeps the faster.

use crate::devices::{DeviceSpec, Host};
use crate::error::Result;
use crate::program::{CompileOptions, Program};
use crate::value::RunValue;
use cupola_ir::dim::SymRange;
use cupola_ir::eval::Stop;
use cupola_ir::{Bindings, Graph, Tensor, ValueType};
use std::time::{Duration, Instant};

/// What a symbol is taken as for the timing, unless its range says otherwise.
const TYPICAL_EXTENT: i64 = 64;

/// Timed runs after one that warms up.
const RUNS: usize = 3;

/// Longest time of a run that is still worth waiting for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A program for the device of this host that runs the graph fastest on inputs of zeros. A device that cannot run it
/// (or not on such inputs) is not chosen; when none can, the CPU is.
pub(crate) fn compile(graph: Graph, host: &Host, options: &CompileOptions) -> Result<Program> {
    let start = Instant::now();
    let on = |device: &DeviceSpec| {
        let options = CompileOptions {
            device: device.clone(),
            ..options.clone()
        };
        Program::compile(graph.clone(), host, &options)
    };
    let mut best = on(&DeviceSpec::Cpu)?;
    let gpus = host.worthwhile_gpus();
    if let (false, Some(inputs)) = (gpus.is_empty(), zeros(&graph)) {
        let mut least = time(&best, &inputs, PATIENCE).unwrap_or(PATIENCE);
        for device in gpus {
            let Ok(program) = on(&device) else { continue };
            if let Some(taken) = time(&program, &inputs, least).filter(|t| *t < least) {
                (best, least) = (program, taken);
            }
        }
    }
    best.compile_time = start.elapsed();
    Ok(best)
}

/// Shortest of some runs; `None` when a run fails or takes much longer than `limit`.
fn time(program: &Program, inputs: &[RunValue], limit: Duration) -> Option<Duration> {
    let mut state = program.new_state(0);
    let mut least = None;
    for _ in 0..=RUNS {
        let start = Instant::now();
        let stop = Stop {
            flags: vec![],
            // The first run also prepares what later ones reuse.
            deadline: Some(start + limit * 10),
        };
        let run = program.run(&mut state, inputs.to_vec(), vec![], &stop);
        run.ok()?;
        least = Some(least.map_or(start.elapsed(), |l: Duration| l.min(start.elapsed())));
    }
    least
}

/// A typical extent within what is known of a symbol.
fn typical(range: &SymRange) -> i64 {
    let multiple = range.multiple.max(1);
    let extent = (TYPICAL_EXTENT / multiple).max(1).saturating_mul(multiple);
    extent.clamp(range.min.max(0), range.max.max(range.min.max(0)))
}

/// Zeros for every input; `None` when an input is no tensor or has extents that cannot be chosen.
fn zeros(graph: &Graph) -> Option<Vec<RunValue>> {
    let mut bindings = Bindings::default();
    let one = |v: &cupola_ir::ValueId| {
        let ValueType::Tensor(ty) = graph.ty(*v) else {
            return None;
        };
        ty.dims.iter().for_each(|d| {
            d.for_each_sym(&mut |s| {
                if bindings.get(s).is_none() {
                    let range = graph.ranges.get(s);
                    let extent = range.map_or(TYPICAL_EXTENT, typical);
                    bindings.set(s.clone(), extent);
                }
            });
        });
        let shape = ty.shape(&bindings)?;
        let size = Tensor::size_of(ty.dtype, &shape).filter(|s| *s < 1 << 30)?;
        Some(Tensor::new(ty.dtype, shape, vec![0u8; size].into())?.into())
    };
    graph.inputs().iter().map(one).collect()
}

//! A program: a graph compiled for devices, immutable and shared.

use crate::devices::{DeviceSpec, Host};
use crate::error::{Result, RuntimeError};
use crate::exec::{self, RunCx};
use crate::load::{Loaded, WeightCache};
use crate::pool::{Layouts, Pool};
use cupola_backend::Backend;
use cupola_ir::eval::{self, Env};
use cupola_ir::{Bindings, DType, Graph, Op, Tensor, Value, ValueId};
use cupola_passes::{Compiled, DeviceId, MissCode, Options, Step};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Device that runs the graph.
    pub device: DeviceSpec,
    /// Optimisation level, 0 to 3.
    pub level: u8,
    /// Threads of the CPU device; 0 for one per physical core.
    pub threads: usize,
    /// Fail with [`RuntimeError::Fallback`] when anything but shape arithmetic, host values and conditions would run
    /// on another device.
    pub no_fallback: bool,
    /// Verify the graph after every pass.
    pub verify: bool,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            device: DeviceSpec::Cpu,
            level: 2,
            threads: 0,
            no_fallback: false,
            verify: false,
        }
    }
}

/// A compiled graph. Cheap to share; many sessions may run it at once.
pub struct Program {
    graph: Graph,
    engine: Engine,
    /// Device it was compiled for.
    pub device: DeviceSpec,
    /// Time spent compiling.
    pub compile_time: Duration,
}

enum Engine {
    Reference,
    Compiled {
        loaded: Box<Loaded>,
        devices: Vec<Arc<dyn Backend>>,
        primary: DeviceId,
        weight_bytes: u64,
    },
}

impl Program {
    /// Compiles a graph for a device of this host.
    ///
    /// # Errors
    /// What passes and backends find; [`RuntimeError::NoDevice`]; [`RuntimeError::Fallback`] when forbidden.
    pub fn compile(graph: Graph, host: &Host, options: &CompileOptions) -> Result<Program> {
        let start = Instant::now();
        let (device, devices) = host.open(&options.device, options.threads)?;
        let engine = match device {
            DeviceSpec::Reference => Engine::Reference,
            _ => {
                let targets: Vec<_> = devices.iter().map(|d| d.target()).collect();
                let primary = DeviceId(devices.len() as u32 - 1);
                let pass_options = Options {
                    device: primary,
                    verify: options.verify,
                    ..Options::default()
                };
                let compiled = cupola_passes::compile(graph.clone(), &targets, &pass_options)?;
                if options.no_fallback {
                    let ops = fallbacks(&compiled, primary);
                    if !ops.is_empty() {
                        return Err(RuntimeError::Fallback {
                            device: device.to_string(),
                            ops,
                        });
                    }
                }
                let mut weights = WeightCache::default();
                let loaded = Box::new(Loaded::new(compiled, &devices, &mut weights)?);
                Engine::Compiled {
                    loaded,
                    devices,
                    primary,
                    weight_bytes: weights.bytes,
                }
            }
        };
        Ok(Program {
            graph,
            engine,
            device,
            compile_time: start.elapsed(),
        })
    }

    /// The graph as it was given.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The compiled form; `None` on the reference device.
    pub fn compiled(&self) -> Option<&Compiled> {
        match &self.engine {
            Engine::Reference => None,
            Engine::Compiled { loaded, .. } => Some(&loaded.compiled),
        }
    }

    /// Compiled units, regions included.
    pub fn unit_count(&self) -> usize {
        match &self.engine {
            Engine::Reference => 0,
            Engine::Compiled { loaded, .. } => loaded.unit_count(),
        }
    }

    /// Bytes of weights on the devices, packed forms that backends made of them included.
    pub fn weight_bytes(&self) -> u64 {
        match &self.engine {
            Engine::Reference => 0,
            Engine::Compiled { weight_bytes, .. } => *weight_bytes,
        }
    }

    /// Listings of the generated code of all units at the top level, with their names.
    pub fn listings(&self) -> Vec<(String, String)> {
        match &self.engine {
            Engine::Reference => vec![],
            Engine::Compiled { loaded, .. } => {
                let units = loaded.compiled.units.iter().zip(&loaded.executables);
                units.map(|(u, e)| (u.unit.name(), e.listing())).collect()
            }
        }
    }

    /// Source operators that run elsewhere than on the device asked for, sorted, each once. Shape arithmetic, host
    /// values and conditions do not count.
    pub fn fallbacks(&self) -> Vec<String> {
        match &self.engine {
            Engine::Reference => vec![],
            Engine::Compiled {
                loaded, primary, ..
            } => {
                let mut all = fallbacks(&loaded.compiled, *primary);
                for body in loaded.bodies.values().flatten() {
                    all.extend(fallbacks(&body.compiled, *primary));
                }
                all.sort();
                all.dedup();
                all
            }
        }
    }

    /// A fresh state: slots at their initial values.
    pub fn new_state(&self, seed: u64) -> State {
        let slots = self
            .graph
            .slots
            .iter()
            .map(|(n, s)| (n.clone(), Value::Tensor(s.initial.clone())))
            .collect();
        let pools = match &self.engine {
            Engine::Reference => vec![],
            Engine::Compiled { devices, .. } => devices.iter().map(|_| Pool::default()).collect(),
        };
        State {
            slots,
            pools,
            layouts: Layouts::default(),
            seed,
            run: 0,
            params: BTreeMap::new(),
            stats: RunStats::default(),
        }
    }

    /// Runs once with inputs in the graph's order; gives outputs in order. The state changes only on success.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for inputs that do not fit, and whatever fails while running.
    pub fn run(
        &self,
        state: &mut State,
        inputs: Vec<Value>,
        cancel: &Arc<AtomicBool>,
    ) -> Result<Vec<Value>> {
        let start = Instant::now();
        self.check_inputs(&inputs)?;
        let (outputs, states, launches, planned_bytes) = match &self.engine {
            Engine::Reference => {
                let mut env = Env::default();
                env.states.clone_from(&state.slots);
                env.params.clone_from(&state.params);
                (env.seed, env.run, env.cancel) = (state.seed, state.run, Some(cancel.clone()));
                let outputs = eval::run(&self.graph, &inputs, &mut env)?;
                (outputs, env.states, 0, 0)
            }
            Engine::Compiled {
                loaded, devices, ..
            } => {
                let mut cx = RunCx {
                    devices,
                    pools: &mut state.pools,
                    layouts: &mut state.layouts,
                    params: &state.params,
                    states: &state.slots,
                    new_states: BTreeMap::new(),
                    seed: state.seed,
                    run: state.run,
                    cancel,
                    launches: 0,
                    planned_bytes: 0,
                };
                let outputs = exec::execute(loaded, inputs, Bindings::default(), &mut cx)?;
                (outputs, cx.new_states, cx.launches, cx.planned_bytes)
            }
        };
        state.slots.extend(states);
        state.run += 1;
        state.stats = RunStats {
            time: start.elapsed(),
            launches,
            held_bytes: state.pools.iter().map(|p| p.held).sum(),
            peak_bytes: state.pools.iter().map(|p| p.peak).sum(),
            planned_bytes,
        };
        Ok(outputs)
    }

    fn check_inputs(&self, inputs: &[Value]) -> Result<()> {
        let takes = self.graph.inputs();
        if inputs.len() != takes.len() {
            let names: Vec<&str> = takes.iter().map(|v| self.graph.input_name(*v)).collect();
            let what = format!(
                "{} given, {} taken ({})",
                inputs.len(),
                takes.len(),
                names.join(", ")
            );
            return Err(RuntimeError::Input {
                name: "*".into(),
                what,
            });
        }
        for (v, value) in takes.iter().zip(inputs) {
            let ty = self.graph.ty(*v);
            if !value.fits(ty) {
                let what = format!("{} given, {ty} taken", describe(value));
                return Err(RuntimeError::Input {
                    name: self.graph.input_name(*v).to_string(),
                    what,
                });
            }
        }
        Ok(())
    }
}

/// Dtype and extents of a value, for messages.
fn describe(value: &Value) -> String {
    match value {
        Value::Tensor(t) => format!("{}{:?}", t.dtype(), t.shape()),
        Value::Sequence(v) => format!("a sequence of {}", v.len()),
        Value::Optional(v) => format!(
            "an optional with {}",
            if v.is_some() { "a value" } else { "nothing" }
        ),
    }
}

/// Source operators of one plan that run elsewhere than on the primary device.
fn fallbacks(compiled: &Compiled, primary: DeviceId) -> Vec<String> {
    let graph = &compiled.graph;
    let mut names = vec![];
    let mut note = |node| {
        let node = graph.node(node);
        let origin = node.origins.first().map(|o| o.op.to_string());
        names.push(origin.unwrap_or_else(|| node.op.name()));
    };
    for miss in &compiled.misses {
        if matches!(miss.code, MissCode::OtherDevice | MissCode::Unsupported) {
            note(miss.node);
        }
    }
    if primary != DeviceId::HOST {
        let plain = |v: &ValueId| {
            graph
                .ty(*v)
                .as_tensor()
                .is_some_and(|t| t.dtype != DType::String)
        };
        for step in &compiled.plan.steps {
            // Sequences, optionals and strings live on the host by nature.
            if let Step::Host { node, .. } = step
                && let Op::Host(_) = graph.node(*node).op
                && graph
                    .node(*node)
                    .operands
                    .iter()
                    .chain(&graph.node(*node).results)
                    .all(plain)
            {
                note(*node);
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

/// What one caller keeps between runs: state slots, random counters, reusable memory.
#[derive(Debug)]
pub struct State {
    /// Values of state slots.
    pub slots: BTreeMap<String, Value>,
    /// Weights by name.
    pub params: BTreeMap<String, Tensor>,
    /// Seed of random ops.
    pub seed: u64,
    /// Number of complete runs.
    pub run: u64,
    /// Figures of the last run.
    pub stats: RunStats,
    pools: Vec<Pool>,
    layouts: Layouts,
}

/// Figures of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RunStats {
    /// Wall time.
    pub time: Duration,
    /// Units launched.
    pub launches: u64,
    /// Bytes of working memory held after the run, for the next one.
    pub held_bytes: u64,
    /// Most bytes of working memory held.
    pub peak_bytes: u64,
    /// Bytes of working memory that the plan asks for at these sizes, packed; 0 on the reference device.
    pub planned_bytes: u64,
}

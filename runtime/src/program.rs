//! A program: a graph compiled for devices, immutable and shared.

use crate::devices::{DeviceSpec, Host};
use crate::error::{Result, RuntimeError};
use crate::exec::{self, RunCx};
use crate::fault::Fault;
use crate::frame::Outputs;
use crate::keeping::{Identify, Keep, Keeping};
use crate::load::{Loaded, Release, WeightCache};
use crate::pool::Pool;
use crate::queue::Queue;
use crate::record::Recording;
use crate::state::{RunStats, State, Weights};
use crate::value::{DeviceTensor, Place, RunValue};
use bytes::Bytes;
use cupola_backend::{Backend, Key, Rates};
use cupola_ir::eval::{self, Env, Exchange, Limits, Stop};
use cupola_ir::kernel::{Phase, StoreKind, Unit};
use cupola_ir::ops::Collective;
use cupola_ir::{Bindings, DType, Graph, IrError, Op, Tensor, Value, ValueId};
use cupola_passes::plan::{self, Footprint, Packing};
use cupola_passes::{Compiled, DeviceId, MissCode, Options, Precision, Step};
use std::collections::BTreeMap;
use std::sync::Arc;
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
    /// Type in which products with constant weights are computed.
    pub precision: Precision,
    /// Fail with [`RuntimeError::Fallback`] when anything but shape arithmetic, host values and conditions would run
    /// on another device.
    pub no_fallback: bool,
    /// Verify the graph after every pass.
    pub verify: bool,
    /// Bytes that weights and working memory may take together; a program or run that needs more is refused.
    pub memory: Option<u64>,
    /// Refuse what could give other bits at another run: additions whose order is left to chance, and a device that is
    /// chosen by the clock ([`DeviceSpec::Auto`] is the CPU then).
    pub deterministic: bool,
    /// Compile this mistake in, to try what finds mistakes.
    pub fault: Option<Fault>,
    /// Told of constants that need not stay in memory where the graph has them.
    pub release: Option<Release>,
    /// Where machine code and packed weights come from and go to; by default they are made anew and kept nowhere.
    pub keep: Keep,
    /// Names constants for what is kept; those it does not know are named by their contents.
    pub identify: Option<Identify>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            device: DeviceSpec::Cpu,
            level: 2,
            threads: 0,
            precision: Precision::Model,
            no_fallback: false,
            verify: false,
            memory: None,
            deterministic: false,
            fault: None,
            release: None,
            keep: Keep::default(),
            identify: None,
        }
    }
}

/// A compiled graph. Cheap to share; many sessions may run it at once.
pub struct Program {
    graph: Graph,
    engine: Engine,
    memory: Option<u64>,
    /// Device it was compiled for.
    pub device: DeviceSpec,
    /// Time spent compiling.
    pub compile_time: Duration,
}

enum Engine {
    /// Interprets this graph.
    Reference(Box<Graph>),
    Compiled {
        loaded: Box<Loaded>,
        devices: Vec<Arc<dyn Backend>>,
        primary: DeviceId,
        weight_bytes: u64,
        keeping: Option<Arc<Keeping>>,
    },
}

impl Engine {
    fn compile(
        graph: &Graph,
        device: &DeviceSpec,
        devices: Vec<Arc<dyn Backend>>,
        options: &CompileOptions,
    ) -> Result<Engine> {
        let targets: Vec<_> = devices.iter().map(|d| d.target()).collect();
        let primary = DeviceId(devices.len() as u32 - 1);
        let pass_options = Options {
            device: primary,
            verify: options.verify,
            level: cupola_passes::Level::from_number(options.level),
            precision: options.precision,
            ..Options::default()
        };
        let mut compiled = cupola_passes::compile(graph.clone(), &targets, &pass_options)?;
        if let Some(fault) = options.fault {
            fault.apply(&mut compiled);
        }
        if options.no_fallback {
            let ops = fallbacks(&compiled, primary);
            if !ops.is_empty() {
                return Err(RuntimeError::Fallback {
                    device: device.to_string(),
                    ops,
                });
            }
        }
        if options.deterministic {
            check_deterministic(&compiled)?;
        }
        if let Some(budget) = options.memory {
            let need = crate::load::weight_size(&compiled, &devices);
            if need > budget {
                return Err(RuntimeError::Memory { need, budget });
            }
        }
        let keeping = Keeping::new(&compiled, &devices, &options.keep, options.identify.clone());
        let mut weights = WeightCache::new(options.release.clone(), keeping.clone());
        let loaded = Box::new(Loaded::new(compiled, &devices, &mut weights)?);
        Ok(Engine::Compiled {
            loaded,
            devices,
            primary,
            weight_bytes: weights.bytes,
            keeping,
        })
    }
}

impl Program {
    /// Compiles a graph for a device of this host.
    ///
    /// # Errors
    /// What passes and backends find; [`RuntimeError::NoDevice`]; [`RuntimeError::Fallback`] when forbidden;
    /// [`RuntimeError::Memory`] for weights over the budget.
    pub fn compile(graph: Graph, host: &Host, options: &CompileOptions) -> Result<Program> {
        if options.device == DeviceSpec::Auto && !options.deterministic {
            return crate::auto::compile(graph, host, options);
        }
        let start = Instant::now();
        let (device, devices) = host.open(&options.device, options.threads)?;
        let engine = match device {
            DeviceSpec::Reference => {
                let graph = cupola_passes::with_precision(graph.clone(), options.precision)?;
                Engine::Reference(Box::new(graph))
            }
            _ => Engine::compile(&graph, &device, devices, options)?,
        };
        Ok(Program {
            graph,
            engine,
            memory: options.memory,
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
            Engine::Reference(_) => None,
            Engine::Compiled { loaded, .. } => Some(&loaded.compiled),
        }
    }

    /// The plans of the graph and of all regions, by the numbers that a [`Recording`] uses; the graph's is 0. None on
    /// the reference device.
    pub fn plans(&self) -> BTreeMap<usize, &Compiled> {
        match &self.engine {
            Engine::Reference(_) => BTreeMap::new(),
            Engine::Compiled { loaded, .. } => loaded.plans(),
        }
    }

    /// Names of the devices that units run on, by [`DeviceId`].
    pub fn device_names(&self) -> Vec<String> {
        match &self.engine {
            Engine::Reference(_) => vec![],
            Engine::Compiled { devices, .. } => {
                devices.iter().map(|d| d.target().name.clone()).collect()
            }
        }
    }

    /// Whether kernels on each of [`Program::device_names`] are timed by the device's own clock.
    pub fn device_clocks(&self) -> Vec<bool> {
        match &self.engine {
            Engine::Reference(_) => vec![],
            Engine::Compiled { devices, .. } => {
                devices.iter().map(|d| d.device().has_clock()).collect()
            }
        }
    }

    /// What the program's device reaches in short measurements made now; `None` where it measures nothing.
    pub fn measure(&self) -> Option<Rates> {
        self.backend()?.measure()
    }

    /// Where the plan of the graph puts its packed memory on each device, for these sizes; `None` while a size is not
    /// known.
    pub fn packings(&self, bindings: &Bindings) -> Option<Vec<Packing>> {
        let Engine::Compiled {
            loaded, devices, ..
        } = &self.engine
        else {
            return None;
        };
        let plan = &loaded.compiled.plan;
        let sizes: Option<Vec<u64>> = plan::slot_sizes(plan, bindings).into_iter().collect();
        let sizes = sizes?;
        let each = devices.iter().enumerate().map(|(d, backend)| {
            let target = backend.target();
            let alignment = target.alignment as u64;
            plan::pack(
                plan,
                DeviceId(d as u32),
                &sizes,
                alignment,
                target.max_binding,
            )
        });
        Some(each.collect())
    }

    /// Compiled units, regions included.
    pub fn unit_count(&self) -> usize {
        match &self.engine {
            Engine::Reference(_) => 0,
            Engine::Compiled { loaded, .. } => loaded.unit_count(),
        }
    }

    /// Bytes of weights on the devices, packed forms that backends made of them included.
    pub fn weight_bytes(&self) -> u64 {
        match &self.engine {
            Engine::Reference(_) => 0,
            Engine::Compiled { weight_bytes, .. } => *weight_bytes,
        }
    }

    /// The budget that it was compiled with.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Bytes that a run with these sizes takes, by kind, weights as the devices hold them; what a size that is not known
    /// decides is not counted. `None` on the reference device.
    pub fn footprint(&self, bindings: &Bindings) -> Option<Footprint> {
        let Engine::Compiled {
            loaded,
            devices,
            weight_bytes,
            ..
        } = &self.engine
        else {
            return None;
        };
        let targets: Vec<_> = devices.iter().map(|d| d.target()).collect();
        let mut all = plan::footprint(&loaded.compiled, &targets, bindings);
        all.weights = all.weights.saturating_add(*weight_bytes);
        Some(all)
    }

    /// Whether a device that it runs on was lost. No run will succeed; compiled again, it runs on the device opened anew.
    pub fn is_lost(&self) -> bool {
        match &self.engine {
            Engine::Reference(_) => false,
            Engine::Compiled { devices, .. } => devices.iter().any(|d| d.device().is_lost()),
        }
    }

    fn keeping(&self) -> Option<&Arc<Keeping>> {
        match &self.engine {
            Engine::Reference(_) => None,
            Engine::Compiled { keeping, .. } => keeping.as_ref(),
        }
    }

    /// Whether all code and packed weights had been kept, so that nothing was compiled.
    pub fn was_kept(&self) -> bool {
        self.keeping().is_some_and(|k| k.is_complete())
    }

    /// The key of the program and what was made for it, for [`crate::store::write`]; complete until the first run, and
    /// ever with [`Keep::all`].
    pub fn pieces(&self) -> Option<(Key, Vec<(Key, Bytes)>)> {
        Some(self.keeping()?.pieces())
    }

    /// Listings of the generated code of all units at the top level, with their names.
    pub fn listings(&self) -> Vec<(String, String)> {
        match &self.engine {
            Engine::Reference(_) => vec![],
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
            Engine::Reference(_) => vec![],
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
        let slots = self.graph.slots.iter();
        let slots = slots.map(|(n, s)| (n.clone(), s.initial.clone().into()));
        let mut state = State::new(slots.collect(), seed);
        if let Engine::Compiled { devices, .. } = &self.engine {
            state.pools = devices.iter().map(|_| Pool::default()).collect();
        }
        state
    }

    fn backend(&self) -> Option<&Arc<dyn Backend>> {
        match &self.engine {
            Engine::Reference(_) => None,
            Engine::Compiled {
                devices, primary, ..
            } => Some(&devices[primary.0 as usize]),
        }
    }

    fn memory_backend(&self) -> Result<&Arc<dyn Backend>> {
        self.backend().ok_or_else(|| RuntimeError::NoDevice {
            device: self.device.to_string(),
            what: "the interpreter has no memory of its own; give it host tensors".into(),
        })
    }

    /// Copies a tensor to the program's device.
    ///
    /// # Errors
    /// A device that refuses memory or fails; the reference device, which has no memory of its own.
    pub fn upload(&self, tensor: &Tensor) -> Result<DeviceTensor> {
        DeviceTensor::upload(self.memory_backend()?, tensor)
    }

    /// Memory on the program's device for a tensor of this type, contents undefined.
    ///
    /// # Errors
    /// As [`Program::upload`].
    pub fn empty(&self, dtype: DType, shape: &[usize]) -> Result<DeviceTensor> {
        DeviceTensor::empty(self.memory_backend()?, dtype, shape)
    }

    /// A tensor of zeros on the program's device. Where the system hands out zeroed memory nothing is written.
    ///
    /// # Errors
    /// As [`Program::upload`].
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<DeviceTensor> {
        DeviceTensor::zeros(self.memory_backend()?, dtype, shape)
    }

    /// Puts named weights (`param`s of the graph) on the program's device once, for any number of sessions.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a weight that the graph does not take; as [`Program::upload`].
    pub fn weights(&self, tensors: BTreeMap<String, Tensor>) -> Result<Weights> {
        let known = |name: &str| {
            self.graph.nodes().any(
                |(_, n)| matches!(&n.op, Op::Core(cupola_ir::CoreOp::Param(p)) if p.name == name),
            )
        };
        let mut all = BTreeMap::new();
        for (name, tensor) in tensors {
            if !known(&name) {
                return Err(RuntimeError::input(name, "no such weight"));
            }
            let value = match self.backend() {
                Some(backend) => DeviceTensor::upload(backend, &tensor)?.into(),
                None => tensor.into(),
            };
            all.insert(name, value);
        }
        Ok(Weights(Arc::new(all)))
    }

    /// Runs once with inputs in the graph's order; gives outputs in order, each where `places` says (on the host past
    /// its end). The state changes only on success.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for inputs that do not fit, [`RuntimeError::Cancelled`], limits of the state, and
    /// whatever fails while running.
    pub fn run(
        &self,
        state: &mut State,
        inputs: Vec<RunValue>,
        places: Vec<Place>,
        stop: &Stop,
    ) -> Result<Vec<RunValue>> {
        let Some(replica) = state.replica.clone() else {
            return self.run_entered(state, inputs, places, stop);
        };
        let entered = replica.enter();
        let outputs = self.run_entered(state, inputs, places, stop);
        entered.leave(&outputs);
        outputs
    }

    /// Runs, after whoever has the device before.
    fn run_entered(
        &self,
        state: &mut State,
        inputs: Vec<RunValue>,
        places: Vec<Place>,
        stop: &Stop,
    ) -> Result<Vec<RunValue>> {
        let start = Instant::now();
        let began = state.recording.as_ref().map(Recording::now);
        self.check_inputs(&inputs)?;
        let mut stop = stop.clone();
        let own = state.limits.time.map(|t| start + t);
        stop.deadline = own.into_iter().chain(stop.deadline).min();
        stop.check()?;
        let budget = self.memory.into_iter().chain(state.limits.memory).min();
        let mut limits = Limits::default();
        limits.trips = state.limits.trips.unwrap_or(limits.trips);
        let (outputs, states, stats) = match &self.engine {
            Engine::Reference(graph) => {
                self.interpret(graph, state, &inputs, &places, limits, budget, stop)?
            }
            Engine::Compiled {
                loaded,
                devices,
                weight_bytes,
                ..
            } => {
                let budget = budget.map(|b| b.saturating_sub(*weight_bytes));
                for pool in &mut state.pools {
                    pool.budget = budget;
                }
                let mut cx = RunCx {
                    devices,
                    pools: &mut state.pools,
                    layouts: &mut state.layouts,
                    queues: devices.iter().map(|_| Queue::default()).collect(),
                    blocks: vec![],
                    params: &state.weights.0,
                    states: &state.slots,
                    new_states: BTreeMap::new(),
                    seed: state.seed,
                    run: state.run,
                    limits,
                    stop: &stop,
                    launches: 0,
                    waits: 0,
                    submissions: 0,
                    read_bytes: 0,
                    planned: 0,
                    planned_peak: 0,
                    budget,
                    gives_back_picked: state.gives_back_picked,
                    replica: state.replica.clone(),
                    recording: state.recording.as_mut(),
                };
                let outputs = Outputs::Places(places);
                let bindings = Bindings::default();
                let outputs = exec::execute(loaded, inputs, outputs, bindings, &mut cx)?;
                let stats = RunStats {
                    launches: cx.launches,
                    waits: cx.waits,
                    submissions: cx.submissions,
                    read_bytes: cx.read_bytes,
                    planned_bytes: cx.planned_peak,
                    held_bytes: cx.pools.iter().map(|p| p.held).sum(),
                    peak_bytes: cx.pools.iter().map(|p| p.peak).sum(),
                    ..RunStats::default()
                };
                (outputs, cx.new_states, stats)
            }
        };
        state.slots.extend(states);
        state.run += 1;
        if let (Some(recording), Some(began)) = (&mut state.recording, began) {
            recording.runs.push((began, recording.now()));
        }
        if let Some(keeping) = self.keeping() {
            // Not before there is a result: whoever waits for the first one is not to wait for this.
            keeping.write();
        }
        state.stats = RunStats {
            time: start.elapsed(),
            ..stats
        };
        Ok(outputs)
    }

    /// Runs on the reference interpreter.
    fn interpret(
        &self,
        graph: &Graph,
        state: &State,
        inputs: &[RunValue],
        places: &[Place],
        mut limits: Limits,
        budget: Option<u64>,
        stop: Stop,
    ) -> Result<(Vec<RunValue>, BTreeMap<String, RunValue>, RunStats)> {
        if places.iter().any(|p| matches!(p, Place::Into(_))) {
            self.memory_backend()?;
        }
        if let Some(bytes) = budget.and_then(|b| usize::try_from(b).ok()) {
            limits.total_size = limits.total_size.min(bytes);
        }
        let on_host = |all: &BTreeMap<String, RunValue>| -> Result<BTreeMap<String, Value>> {
            let each = all.iter().map(|(n, v)| Ok((n.clone(), v.to_host()?)));
            each.collect()
        };
        let params = on_host(&state.weights.0)?.into_iter();
        let tensors = params.filter_map(|(n, v)| Some((n, v.as_tensor()?.clone())));
        let mut env = Env::default();
        (env.seed, env.run, env.limits, env.stop) = (state.seed, state.run, limits, stop);
        env.exchange = state.replica.clone().map(|replica| {
            Exchange(Arc::new(move |p: &Collective, xs: &[&Tensor]| {
                let given = xs.iter().map(|t| (*t).clone()).collect();
                let number = replica.start(p, given).map_err(|e| e.to_string())?;
                let done = replica.wait(number, &Stop::default());
                Ok(done.map_err(|e| e.to_string())?.tensors.clone())
            }))
        });
        env.params = tensors.collect();
        env.states = on_host(&state.slots)?;
        let inputs: Vec<Value> = inputs
            .iter()
            .map(RunValue::to_host)
            .collect::<Result<_>>()?;
        let outputs = eval::run(graph, &inputs, &mut env)?;
        let outputs = outputs.into_iter().map(RunValue::Host).collect();
        let states = env.states.into_iter().map(|(n, v)| (n, v.into())).collect();
        Ok((outputs, states, RunStats::default()))
    }

    fn check_inputs(&self, inputs: &[RunValue]) -> Result<()> {
        let takes = self.graph.inputs();
        if inputs.len() != takes.len() {
            let names: Vec<&str> = takes.iter().map(|v| self.graph.input_name(*v)).collect();
            let what = format!(
                "{} given, {} taken ({})",
                inputs.len(),
                takes.len(),
                names.join(", ")
            );
            return Err(RuntimeError::input("*", what));
        }
        for (v, value) in takes.iter().zip(inputs) {
            let ty = self.graph.ty(*v);
            let fits = match value {
                RunValue::Host(v) => v.fits(ty),
                RunValue::Device(t) => ty
                    .as_tensor()
                    .is_some_and(|ty| ty.dtype == t.dtype() && ty.rank() == t.shape().len()),
            };
            if !fits {
                let what = format!("{} given, {ty} taken", describe(value));
                return Err(RuntimeError::input(self.graph.input_name(*v), what));
            }
        }
        Ok(())
    }
}

/// Dtype and extents of a value, for messages.
fn describe(value: &RunValue) -> String {
    match value {
        RunValue::Device(t) => t.ty().to_string(),
        RunValue::Host(Value::Tensor(t)) => t.ty().to_string(),
        RunValue::Host(Value::Sequence(v)) => format!("a sequence of {}", v.len()),
        RunValue::Host(Value::Optional(v)) => format!(
            "an optional with {}",
            if v.is_some() { "a value" } else { "nothing" }
        ),
    }
}

/// Refuses units whose float additions come in any order.
fn check_deterministic(compiled: &Compiled) -> Result<()> {
    let unordered = |unit: &Unit| match unit {
        Unit::Loops(k) => k.phases.iter().any(|phase| match phase {
            Phase::Store { stores, .. } => stores.iter().any(|s| {
                s.kind == StoreKind::AtomicAdd && k.buffers[s.buffer.0 as usize].dtype.is_float()
            }),
            Phase::Reduce { .. } => false,
        }),
        Unit::Library(_) => false,
    };
    if let Some(unit) = compiled.units.iter().find(|u| unordered(&u.unit)) {
        let what = format!(
            "{} adds in any order, which --deterministic forbids",
            unit.unit.name()
        );
        return Err(IrError::Unsupported(what).into());
    }
    compiled.bodies().try_for_each(check_deterministic)
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

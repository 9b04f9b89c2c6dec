//! Where the time of a run goes: each step's time beside what it computes and moves, and what the machine would need.

use crate::error::Result;
use cupola_ir::{Bindings, Dim, Value};
use cupola_passes::explain::{dependencies, origins, unit_cost};
use cupola_passes::plan;
use cupola_passes::{Compiled, DeviceId, Step};
use cupola_runtime::{Event, Program, Rates, Recording, Session};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long [`profile`] looks.
#[derive(Clone, Copy, Debug)]
pub struct ProfileOptions {
    /// Runs before anything is noted.
    pub warmup: usize,
    /// Recorded runs, and as many that are only timed.
    pub runs: usize,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        ProfileOptions {
            warmup: 3,
            runs: 20,
        }
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// Runs compiled code on a device.
    Kernel,
    /// Interprets an op on the host.
    Host,
    /// Runs regions; its time is what theirs leaves.
    Control,
    /// Copies between devices.
    Transfer,
}

impl StepKind {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            StepKind::Kernel => "kernel",
            StepKind::Host => "host",
            StepKind::Control => "control",
            StepKind::Transfer => "transfer",
        }
    }
}

/// What bounds a step from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Bytes moved.
    Memory,
}

/// One step of a plan over all recorded runs.
#[derive(Clone, Debug)]
pub struct StepProfile {
    /// The plan (0 is the graph, others its regions) and the step in it.
    pub at: (usize, usize),
    /// What it does.
    pub kind: StepKind,
    /// The device that runs it: position in [`Profile::devices`].
    pub device: usize,
    /// Name of the kernel or op.
    pub name: String,
    /// Source nodes as operator and name.
    pub sources: Vec<(String, String)>,
    /// Executions in one run.
    pub calls: usize,
    /// Time in one run, the median over runs.
    pub time: Duration,
    /// Operations in one run, at the sizes of the last execution.
    pub flops: u64,
    /// Bytes read and written in one run.
    pub bytes: u64,
    /// The least time that the device's measured limits allow, and which of them that is. `None` where nothing is
    /// measured or nothing is moved.
    pub limit: Option<(Duration, Bound)>,
    /// Steps of the same plan whose results it reads.
    pub reads: Vec<usize>,
}

impl StepProfile {
    /// The least time allowed as a fraction of the time taken; near 1 there is nothing left to gain.
    pub fn fraction(&self) -> Option<f64> {
        let (limit, _) = self.limit?;
        (self.time > Duration::ZERO).then(|| limit.as_secs_f64() / self.time.as_secs_f64())
    }
}

/// A value in packed memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySlot {
    /// First and last step in which it is alive.
    pub steps: (usize, usize),
    /// Device and block.
    pub block: (usize, u32),
    /// Offset in the block and bytes.
    pub range: (u64, u64),
    /// Type of the value.
    pub ty: String,
}

/// Working memory of the graph's plan.
#[derive(Clone, Debug, Default)]
pub struct MemoryTimeline {
    /// Steps of the plan.
    pub steps: usize,
    /// Bytes of each block of each device.
    pub blocks: BTreeMap<(usize, u32), u64>,
    /// What lies in them.
    pub slots: Vec<MemorySlot>,
}

/// Where the time of a run goes.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Time of a run that is not recorded, the median.
    pub run: Duration,
    /// Time of a recorded run, the median.
    pub recorded: Duration,
    /// Steps by plan and position.
    pub steps: Vec<StepProfile>,
    /// Names of the devices, the host's processor first.
    pub devices: Vec<String>,
    /// Whether kernels of each device were timed by its own clock; the others by the host's, one by one.
    pub clocks: Vec<bool>,
    /// The limits of the device, measured after the runs.
    pub rates: Option<Rates>,
    /// Bytes of weights on the devices.
    pub weight_bytes: u64,
    /// Working memory; empty where some size is known only while running.
    pub memory: MemoryTimeline,
    /// The steps of the recorded run closest to the median, in time since its start.
    pub trace: Vec<Event>,
    /// Its length.
    pub trace_time: Duration,
}

impl Profile {
    /// Time in steps, by medians.
    pub fn in_steps(&self) -> Duration {
        self.steps.iter().map(|s| s.time).sum()
    }

    /// The least time that the measured limits allow for the work of all steps; `None` where nothing is measured.
    pub fn limit(&self) -> Option<Duration> {
        let limits = self.steps.iter().filter_map(|s| s.limit);
        self.rates.as_ref()?;
        Some(limits.map(|(limit, _)| limit).sum())
    }

    /// Time of a run outside of all steps: checking and binding inputs, laying out memory, dispatching, reading results.
    pub fn overhead(&self) -> Duration {
        self.run.saturating_sub(self.in_steps())
    }
}

/// Runs a session with these inputs and notes where time goes; `None` for the reference device, which has no steps.
///
/// # Errors
/// What a run finds.
pub fn profile(
    session: &mut Session,
    inputs: &BTreeMap<String, Value>,
    options: ProfileOptions,
) -> Result<Option<Profile>> {
    let program = session.program().clone();
    if program.compiled().is_none() {
        return Ok(None);
    }
    for _ in 0..options.warmup {
        run(session, inputs)?;
    }
    let (plain, recording) = sample(session, inputs, options.runs.max(1))?;
    let rates = program.measure();
    Ok(Some(evaluate(&program, &recording, plain, rates)))
}

/// Times of single runs.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// Whole runs: inputs from the host, outputs to the host.
    pub runs: Vec<Duration>,
    /// Kernels of as many other runs, added up; by the device's clock where it has one.
    pub kernels: Vec<Duration>,
    /// Kernels in a run.
    pub launches: usize,
}

/// Times a session for about `time`, after one run that is not noted: at most `most` runs of each kind, and at least three
/// unless they take much longer.
/// `None` for the reference device, which has no kernels.
///
/// # Errors
/// What a run finds.
pub fn timings(
    session: &mut Session,
    inputs: &BTreeMap<String, Value>,
    time: Duration,
    most: usize,
) -> Result<Option<Timings>> {
    let program = session.program().clone();
    if program.compiled().is_none() {
        return Ok(None);
    }
    run(session, inputs)?;
    let start = Instant::now();
    let mut found = Timings::default();
    let mut go_on = true;
    while go_on {
        let (plain, recording) = sample(session, inputs, 1)?;
        let each = times(&recording);
        let plans = program.plans();
        let launches = each
            .iter()
            .filter(|((plan, step), _)| {
                matches!(plans[plan].plan.steps[*step], Step::Launch { .. })
            })
            .map(|(_, figures)| figures);
        found.launches = launches.clone().map(|(calls, _)| calls).sum();
        found.kernels.push(launches.map(|(_, time)| *time).sum());
        found.runs.extend(plain);
        let patience = if found.runs.len() < 3 { 8 * time } else { time };
        go_on = found.runs.len() < most && start.elapsed() < patience;
    }
    Ok(Some(found))
}

/// Times of runs that are not recorded, and a recording of as many in between.
fn sample(
    session: &mut Session,
    inputs: &BTreeMap<String, Value>,
    runs: usize,
) -> Result<(Vec<Duration>, Recording)> {
    let (mut plain, mut recording) = (vec![], Recording::new());
    for _ in 0..runs {
        plain.push(run(session, inputs)?);
        session.state_mut().recording = Some(recording);
        let recorded = run(session, inputs);
        recording = session.state_mut().recording.take().unwrap_or_default();
        recorded?;
    }
    Ok((plain, recording))
}

/// One run; its time, outputs on the host included.
fn run(session: &mut Session, inputs: &BTreeMap<String, Value>) -> Result<Duration> {
    let named = inputs.iter().map(|(n, v)| (n.as_str(), v.clone()));
    let named: Vec<(&str, Value)> = named.collect();
    let start = Instant::now();
    let outputs = session.run(named)?;
    let time = start.elapsed();
    drop(outputs);
    Ok(time)
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn evaluate(
    program: &Program,
    recording: &Recording,
    plain: Vec<Duration>,
    rates: Option<Rates>,
) -> Profile {
    let lengths: Vec<Duration> = recording.runs.iter().map(|(a, b)| *b - *a).collect();
    let recorded = median(lengths.clone());
    let typical = (0..lengths.len()).min_by_key(|i| lengths[*i].abs_diff(recorded));
    let typical = typical.unwrap_or(0);
    let origin = recording.runs.get(typical).map_or(Duration::ZERO, |r| r.0);
    let trace = recording.events.iter().filter(|e| e.run == typical);
    let trace = trace.map(|e| Event {
        start: e.start - origin,
        end: e.end - origin,
        ..*e
    });
    let plans = program.plans();
    let reads: BTreeMap<usize, Vec<Vec<usize>>> =
        plans.iter().map(|(n, c)| (*n, dependencies(c))).collect();
    let memory = memory(program, recording.bindings.get(&0));
    let machine = rates.as_ref().map(|rates| Machine {
        rates,
        all: program.weight_bytes() + memory.blocks.values().sum::<u64>(),
        device: DeviceId(program.device_names().len().saturating_sub(1) as u32),
    });
    let steps = times(recording).into_iter().map(|(at, (calls, time))| {
        let bindings = recording.bindings.get(&at.0).cloned().unwrap_or_default();
        let reads = reads[&at.0][at.1].clone();
        describe(
            plans[&at.0],
            at,
            calls,
            time,
            &bindings,
            machine.as_ref(),
            reads,
        )
    });
    Profile {
        run: median(plain),
        recorded,
        steps: steps.collect(),
        weight_bytes: program.weight_bytes(),
        memory,
        trace: trace.collect(),
        trace_time: lengths.get(typical).copied().unwrap_or_default(),
        devices: program.device_names(),
        clocks: program.device_clocks(),
        rates,
    }
}

/// Executions in one run and the median of the time in one run, by plan and step. The time of regions is theirs, not
/// that of the step around them.
fn times(recording: &Recording) -> BTreeMap<(usize, usize), (usize, Duration)> {
    let mut all: BTreeMap<(usize, usize), Vec<(usize, Duration)>> = BTreeMap::new();
    let runs = recording.runs.len();
    // Events end in order, so those inside a step come right before it.
    let mut finished: Vec<(Duration, Duration)> = vec![];
    for event in recording.events.iter().filter(|e| e.run < runs) {
        let mut own = event.end - event.start;
        while let Some((_, length)) = finished.pop_if(|(start, _)| *start >= event.start) {
            own = own.saturating_sub(length);
        }
        finished.push((event.start, event.end - event.start));
        let at = all.entry((event.plan, event.step));
        let of_run = &mut at.or_insert_with(|| vec![(0, Duration::ZERO); runs])[event.run];
        *of_run = (of_run.0 + 1, of_run.1 + own);
    }
    let one = |(at, each): ((usize, usize), Vec<(usize, Duration)>)| {
        let calls = each.iter().map(|(calls, _)| *calls).max().unwrap_or(0);
        let time = median(each.into_iter().map(|(_, time)| time).collect());
        (at, (calls, time))
    };
    all.into_iter().map(one).collect()
}

/// The limits that steps are compared with.
struct Machine<'a> {
    rates: &'a Rates,
    /// Bytes that a run touches in all: constants come from the level of memory that holds this.
    all: u64,
    /// The device whose limits they are.
    device: DeviceId,
}

impl Machine<'_> {
    /// The least time for `flops`, and for `bytes` of which `constant` are constants. What a step reads beside constants
    /// has just been written, so it is taken to lie where as much as the step moves fits.
    fn limit(&self, flops: u64, bytes: u64, constant: u64) -> Option<(Duration, Bound)> {
        let moving = bytes.saturating_sub(constant);
        let rate = |size: u64| match self.rates.reads.last() {
            Some((_, memory)) if self.rates.read_rate(size) == *memory => {
                memory.max(self.rates.copy)
            }
            _ => self.rates.read_rate(size),
        };
        let compute = flops as f64 / self.rates.f32_ops;
        let memory = constant as f64 / rate(self.all) + moving as f64 / rate(moving);
        let (seconds, bound) = match compute >= memory {
            true => (compute, Bound::Compute),
            false => (memory, Bound::Memory),
        };
        let limit = Duration::try_from_secs_f64(seconds).ok()?;
        (seconds > 0.0).then_some((limit, bound))
    }
}

fn describe(
    compiled: &Compiled,
    at: (usize, usize),
    calls: usize,
    time: Duration,
    bindings: &Bindings,
    machine: Option<&Machine>,
    reads: Vec<usize>,
) -> StepProfile {
    let amount = |d: &Dim| {
        d.eval(bindings)
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(0)
    };
    let times = |n: u64| n.saturating_mul(calls as u64);
    let (mut flops, mut bytes, mut limit, mut device) = (0, 0, None, DeviceId::HOST);
    let (kind, name, origins) = match &compiled.plan.steps[at.1] {
        Step::Launch { unit, .. } => {
            let cost = unit_cost(compiled, *unit);
            (flops, bytes) = (amount(&cost.flops), amount(&cost.bytes));
            let constant = amount(&cost.constant_bytes);
            device = compiled.units[*unit].device;
            let machine = machine.filter(|m| m.device == device);
            limit = machine.and_then(|m| m.limit(flops, bytes, constant));
            (StepKind::Kernel, cost.name, cost.origins)
        }
        Step::Host { node, .. } => {
            let name = compiled.graph.node(*node).op.name();
            (StepKind::Host, name, origins(compiled, &[*node]))
        }
        Step::Control { node, .. } => {
            let name = compiled.graph.node(*node).op.name();
            (StepKind::Control, name, origins(compiled, &[*node]))
        }
        Step::Collective { node, .. } => {
            let name = compiled.graph.node(*node).op.name();
            (StepKind::Host, name, origins(compiled, &[*node]))
        }
        Step::Await { node, .. } => {
            let name = format!("wait for {}", compiled.graph.node(*node).op.name());
            (StepKind::Host, name, origins(compiled, &[*node]))
        }
        Step::Transfer { .. } => (StepKind::Transfer, "transfer".into(), vec![]),
        Step::Bind { .. } | Step::Require { .. } | Step::WriteState { .. } => {
            unreachable!("bug: a step that does no work was recorded")
        }
    };
    let source = |o: &std::sync::Arc<cupola_ir::Origin>| (o.op.to_string(), o.node.to_string());
    StepProfile {
        at,
        kind,
        device: device.0 as usize,
        name,
        sources: origins.iter().map(source).collect(),
        calls,
        time,
        flops: times(flops),
        bytes: times(bytes),
        limit: limit.map(|(one, bound)| (one * calls as u32, bound)),
        reads,
    }
}

/// What lies where in packed memory while the graph's plan runs with these sizes.
fn memory(program: &Program, bindings: Option<&Bindings>) -> MemoryTimeline {
    let packings = bindings.and_then(|b| Some((b, program.packings(b)?)));
    let (Some((bindings, packings)), Some(compiled)) = (packings, program.compiled()) else {
        return MemoryTimeline::default();
    };
    let plan = &compiled.plan;
    let mut timeline = MemoryTimeline {
        steps: plan.steps.len(),
        ..MemoryTimeline::default()
    };
    let sizes = plan::slot_sizes(plan, bindings);
    for (device, packing) in packings.iter().enumerate() {
        let blocks = packing.blocks.iter().enumerate();
        let blocks = blocks.map(|(b, size)| ((device, b as u32), *size));
        timeline.blocks.extend(blocks);
        for (i, slot) in plan.slots.iter().enumerate() {
            let Some((block, offset)) = packing.at[i] else {
                continue;
            };
            timeline.slots.push(MemorySlot {
                steps: (slot.first, slot.last),
                block: (device, block),
                range: (offset, sizes[i].unwrap_or(0)),
                ty: slot.ty.to_string(),
            });
        }
    }
    timeline
}
